"""Write report.html, the page that shows a finished run and what its RNN does, again: page.py RUN."""

import argparse
import re
import sys
from pathlib import Path

from torch_rnn.training.entry import ends_quietly


@ends_quietly()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of a finished training run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="to write; report.html in the folder")
    chosen = parser.parse_args()
    with ends_quietly(waits=True):
        from torch_rnn.errors import RunError
        from torch_rnn.files import check_writable
        from torch_rnn.page import write_page

    try:
        if chosen.out is not None:
            check_writable("--out", chosen.out)
        print(write_page(chosen.run, out=chosen.out))
    except (RunError, OSError, ImportError) as error:
        # This script has no --data.root; the message has named the folder.
        message = re.sub(r" into a folder and name it with --data\.root.*", " there", str(error))
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
