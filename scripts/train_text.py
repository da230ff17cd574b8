"""Train an RNN on your own texts: --data.train FILE --data.test FILE; --help lists the settings.

Each is a .csv, .tsv, .jsonl or .parquet file with text and label, a folder of parquet shards, or a folder
with one folder of .txt files for each class.
"""

import sys
from pathlib import Path

from torch_rnn.page import write_page
from torch_rnn.training import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1] / "configs" / "text.yaml", page=write_page))
