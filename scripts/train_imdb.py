"""Train an RNN on IMDB, or with --config on something else; --help lists the settings."""

import sys
from pathlib import Path

from torch_rnn.page import write_page
from torch_rnn.training import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1] / "configs" / "imdb.yaml", page=write_page))
