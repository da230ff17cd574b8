"""Label texts, given as arguments or a line each on standard input, with a trained model.

Prints the label, its probability and the text, separated by tabs. Reads model.safetensors alone. Lines that
are typed are answered one by one, lines from a pipe 64 at a time.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch

from torch_rnn import RNN
from torch_rnn.data.batches import collate
from torch_rnn.nn.weights import load_weights

BATCH = 64


def predictions(model: Path, texts: Iterable[str]) -> Iterator[tuple[str, float, str]]:
    """For each text the most probable class, its probability, and the text. Raises ValueError for a model
    that was not trained on text."""
    from torch_rnn.data.text import Vocabulary, tokenize

    rnn = RNN.load(model)
    _, about = load_weights(model)
    if "text" not in about:
        raise ValueError(f"{model} was trained on {about.get('dataset', 'other data')}, not on text")
    vocabulary, maxlen = Vocabulary(about["text"]["vocabulary"]), about["text"]["maxlen"]
    if len(vocabulary) > rnn.input_size:
        raise ValueError(
            f"{model} has {len(vocabulary):,} words and weights for {rnn.input_size:,}; its vocabulary is "
            f"another one's: train again"
        )
    texts = iter(texts)
    size = 1 if sys.stdin.isatty() else BATCH
    while batch := list(islice(texts, size)):
        x, lengths, *_ = collate(
            [vocabulary.encode(tokenize(text)[-maxlen:]) for text in batch], [0] * len(batch)
        )
        with torch.no_grad():
            logits = rnn(x, lengths)
        p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
        p = torch.cat([1 - p, p], dim=1) if logits.shape[1] == 1 else p  # (B, classes)
        for text, row in zip(batch, p, strict=True):
            yield about["classes"][int(row.argmax())], float(row.max()), text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN_FOLDER", help="what a training run left, or its model file"
    )
    parser.add_argument("texts", nargs="*", metavar="text", help="none: a text a line on standard input")
    chosen = parser.parse_args()
    model = chosen.run / "model.safetensors" if chosen.run.is_dir() else chosen.run
    lines = (line.rstrip("\n") for line in sys.stdin)
    try:
        for label, probability, text in predictions(model, chosen.texts or lines):
            print(f"{label}\t{probability:.4f}\t{text}", flush=True)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
