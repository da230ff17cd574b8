"""Train an RNN on your own texts: --data.train FILE --data.test FILE; --help lists every setting.

Each is a .csv, .tsv or .jsonl file with text and label, or a folder of .txt files in a folder for each class.
"""

import sys
from pathlib import Path

from torch_rnn.training import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1] / "configs" / "text.yaml"))
