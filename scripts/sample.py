"""Write text with a trained language model, after a prompt.

The text appears as it is drawn. The same seed gives the same text. Several samples (--n) are drawn side by
side and printed one after the other, each below its number.
"""

import argparse
import sys
from pathlib import Path

from torch_rnn.training.entry import ends_quietly


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_FOLDER", help="of scripts/train_lm.py, or its model file")
    add("--prompt", default="", metavar="TEXT", help="what the text goes on from (default: a new line)")
    add("--length", type=int, default=500, metavar="N", help="characters or words to write (default: 500)")
    add("--temperature", type=float, default=0.8, help="0: always the most probable one (default: 0.8)")
    add("--top-k", type=int, metavar="N", help="draw from the N most probable ones only")
    add("--top-p", type=float, metavar="P", help="draw from the fewest that have the probability P together")
    add("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    add("--n", type=int, default=1, metavar="N", help="the number of samples (default: 1)")
    add("--stream", action="store_true", help="show each character as it is drawn (default on a terminal)")
    return parser


@ends_quietly()
def main() -> int:
    chosen = parser().parse_args()
    try:
        from torch_rnn.training.text_generator import TextGenerator

        generator = TextGenerator.load(chosen.run)
        pieces = generator.stream(
            chosen.prompt,
            chosen.length,
            chosen.n,
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            top_p=chosen.top_p,
            seed=chosen.seed,
        )
        if chosen.n == 1 and (chosen.stream or sys.stdout.isatty()):
            print(chosen.prompt, end="", flush=True)
            for (piece,) in pieces:
                print(piece, end="", flush=True)
            print()
            return 0
        for number, text in enumerate(map("".join, zip(*pieces, strict=True)), start=1):
            heading = f"{number}:\n" if chosen.n > 1 else ""
            print(f"{heading}{chosen.prompt}{text}")
    except BrokenPipeError:
        raise
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
