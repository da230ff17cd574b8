"""Label texts, given as arguments or one a line on standard input, with a trained model.

Prints the label, its probability and the text, separated by tabs. Lines that are typed are answered one by
one, lines from a pipe or a file 64 at a time.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch_rnn
from torch_rnn.training.entry import ends_quietly

BATCH = 64


def predictions(model: "torch_rnn.TextClassifier", texts: Iterable[str]) -> Iterator[tuple[str, float, str]]:
    """Yields for each text the most probable class, its probability, and the text.

    The RNN is made float64: over 500 words an RNN may amplify float32's rounding to 1e-5 of a probability. So
    this script and report.html, which computes in float64, say the same of a text.
    """
    model.rnn.double()
    texts, size = iter(texts), 1 if sys.stdin.isatty() else BATCH
    while batch := list(islice(texts, size)):
        for text, row in zip(batch, model.probabilities(batch), strict=True):
            yield model.classes[int(row.argmax())], float(row.max()), text


def decoded(line: bytes, n: int) -> str:
    """Returns a line of standard input. Raises ValueError, which names it, where it is not UTF-8."""
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"line {n} of standard input is not UTF-8 ({error.reason})") from error


@ends_quietly()
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of a training run, or its model file")
    parser.add_argument(
        "texts", nargs="*", default=[], metavar="text", help="none: one text a line on standard input"
    )
    chosen = parser.parse_args()
    for text in chosen.texts:
        if Path(text).suffix and os.path.isfile(text):  # False for a text too long to be a name
            parser.error(
                f"{text} is a file, not a text; to label its lines: predict.py {chosen.run} < {text}"
            )
    lines = (decoded(line, n) for n, line in enumerate(sys.stdin.buffer, start=1))
    try:
        model = torch_rnn.TextClassifier.load(chosen.run)
        for label, probability, text in predictions(model, chosen.texts or lines):
            print(f"{label}\t{probability:.4f}\t{text}", flush=True)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
