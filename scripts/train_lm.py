"""Train a language model on tiny Shakespeare, or with --data.path FILE on another text; --help lists all.

scripts/sample.py then writes text with it.
"""

import sys
from pathlib import Path

from torch_rnn.page import write_page
from torch_rnn.training import main

if __name__ == "__main__":
    sys.exit(
        main(Path(__file__).parents[1] / "configs" / "shakespeare.yaml", task="language", page=write_page)
    )
