"""Progress bars for bytes that are read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_of_bytes() -> "Progress":
    """Returns bars with what is read, the bytes so far, their speed and the time that is left."""
    # Python's typing keeps one Union of float and int, in the order of its first use. In rich it is float: a
    # Trainer of Lightning that is imported later would read `limit_test_batches: 1` as 1.0, all batches.
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress("{task.description}", *columns)
