"""Documents: texts with labels, from a source that can begin at any of them.

A text has a label, or one probability for each class, or neither. `formats` has the sources of files.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch_rnn.errors import RunError


class Document(NamedTuple):
    text: str
    label: str
    group: str
    """Documents of one group stay in one split: the film of a review, or the text itself."""
    probabilities: tuple[float, ...] = ()
    """One for each class, or none."""


Position = tuple[int, int]
"""Where a document begins. In a text file: (bytes, lines) before it. In class folders or in memory:
(documents before it, 0). In Parquet: (row groups before its own, rows before it in its own).
"""
START: Position = (0, 0)


class Documents(Protocol):
    """A source of documents."""

    size: int
    """Bytes of the whole source."""

    def bytes_before(self, position: Position) -> int:
        """Returns the bytes before a position, for Parquet estimated within a row group."""

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        """Yields the documents from `start` on, each with the position after it.

        Raises:
            RunError: A document is malformed. The message names the file and the line or the row.
        """


@contextmanager
def reading(name: Path | str) -> Iterator[None]:
    """Turns an error of reading or decoding a file into a RunError that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise RunError(f"{name} is not UTF-8: {error}") from error
    except OSError as error:
        raise RunError(f"{name} cannot be read: {error.strerror}") from error


class DocumentList:
    """Documents in memory."""

    def __init__(self, documents: Sequence[Document]):
        self.documents = documents
        sizes = (len(document.text.encode("utf-8", "surrogatepass")) for document in documents)
        self.offsets = [0, *accumulate(sizes)]
        self.size = self.offsets[-1]

    def bytes_before(self, position: Position) -> int:
        return self.offsets[position[0]]

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        for i in range(start[0], len(self.documents)):
            yield self.documents[i], (i + 1, 0)


def file_fingerprint(path: Path) -> dict[str, Any]:
    """Returns the size and time of a file and the SHA-256 of its first and last MiB."""
    status = path.stat()
    with open(path, "rb") as file:
        ends = hashlib.sha256(file.read(1 << 20))
        file.seek(max(0, status.st_size - (1 << 20)))
        ends.update(file.read())
    return {"size": status.st_size, "time": status.st_mtime_ns, "ends": ends.hexdigest()}
