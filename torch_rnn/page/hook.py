"""`write_page`, which imports what it needs when it is called: scripts name it before they train."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch_rnn.data.datamodule import SequenceData
    from torch_rnn.data.textstream import TextStream

PAGE = "report.html"


def write_page(
    folder: Path, data: "SequenceData | TextStream | None" = None, out: Path | None = None
) -> Path:
    """Writes the page of a finished run, whole or not at all, and returns its path.

    Args:
        folder: The folder of the run.
        data: The data of the run, set up; None makes them from its settings.
        out: The file to write; None is report.html in the folder.

    Raises:
        RunError: The folder holds no finished run, or its data cannot be found.
    """
    from torch_rnn.page.finished import read_run
    from torch_rnn.page.write import write

    folder = Path(folder)
    out = folder / PAGE if out is None else Path(out)
    write(read_run(folder, data), out)
    return out
