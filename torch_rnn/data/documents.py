"""Files of labelled texts -> documents, read as a stream that can begin at any of them.

CSV and TSV with a header, JSON lines, or a folder with a folder of .txt files for each class; all in UTF-8.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from torch_rnn.errors import RunError

LARGEST = 1 << 24
"""No field of a table has more characters; one that seems to is in quotation marks that are never closed."""


class Document(NamedTuple):
    text: str
    label: str
    group: str
    """Documents of one group are not torn apart by a split: the film of a review, or the text itself."""


Place = tuple[int, int]
"""Where reading goes on after a document: an offset (bytes, or files), and how many lines lie before it."""


class Documents(Protocol):
    """A source of documents."""

    size: int
    """Of all of it, in bytes."""

    def read(self, place: Place = (0, 0)) -> Iterator[tuple[Document, Place]]:
        """The documents from a place on, each with the place behind it. Raises RunError naming the line."""


@contextmanager
def reading(name: Path | str) -> Iterator[None]:
    """Raises RunError naming the file where reading or decoding it fails."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise RunError(f"{name} is not UTF-8: {error}") from error
    except OSError as error:
        raise RunError(f"{name} cannot be read: {error.strerror}") from error


def documents(path: Path, text: str = "text", label: str = "label") -> "Lines | Folder":
    """The documents of a .csv, .tsv or .jsonl file with these two columns, or of a folder for each class."""
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise RunError(f"{path} does not exist; name a .csv, .tsv or .jsonl file, or a folder of classes")
    if path.suffix in (".csv", ".tsv"):
        return Table(path, text, label)
    if path.suffix == ".jsonl":
        return JsonLines(path, text, label)
    raise RunError(f"{path} ends in {path.suffix or 'nothing'}; it must be .csv, .tsv or .jsonl, or a folder")


class Lines:
    """A text file, line by line, with the place behind the last one."""

    def __init__(self, path: Path, text: str, label: str):
        self.path, self.text, self.label = path, text, label
        self.size = path.stat().st_size

    def fingerprint(self) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            ends = hashlib.sha256(file.read(1 << 20))
            file.seek(max(0, self.size - (1 << 20)))
            ends.update(file.read())
        columns = [self.path.suffix, self.text, self.label]
        time = self.path.stat().st_mtime_ns
        return {"size": self.size, "time": time, "ends": ends.hexdigest(), "columns": columns}

    def lines(self, place: Place) -> Iterator[str]:
        self.offset, self.line = place
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for line in self._read(file):
                self.offset += len(line)
                self.line += 1
                try:
                    yield line.decode("utf-8-sig" if self.line == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise self.refusal(f"is not UTF-8 ({error.reason})") from error

    def _read(self, file: BinaryIO) -> Iterator[bytes]:
        with reading(self.path):
            yield from file

    def refusal(self, what: str) -> RunError:
        return RunError(f"{self.path}: line {self.line} {what}")

    def document(self, text: Any, label: Any) -> tuple[Document, Place]:
        if not isinstance(text, str):
            raise self.refusal(f"has {self.text} {text!r}; it must be a text")
        if isinstance(label, bool) or not isinstance(label, str | int) or str(label).strip() == "":
            raise self.refusal(f"has {self.label} {label!r}; it must be a word or a whole number")
        return Document(text, str(label).strip(), text), (self.offset, self.line)


class Table(Lines):
    """CSV, or TSV by its ending, with a header (RFC 4180: fields in quotes may hold line breaks)."""

    def read(self, place: Place = (0, 0)) -> Iterator[tuple[Document, Place]]:
        csv.field_size_limit(LARGEST)
        delimiter = "\t" if self.path.suffix == ".tsv" else ","
        header = self._row(csv.reader(self.lines((0, 0)), delimiter=delimiter, strict=True)) or []
        if missing := {self.text, self.label} - set(header):
            raise RunError(
                f"{self.path} has the columns {', '.join(header) or 'none'}, and no "
                f"{' and no '.join(sorted(missing))}; name yours with --data.text_column, --data.label_column"
            )
        where = header.index(self.text), header.index(self.label)
        rows = csv.reader(self.lines(max(place, (self.offset, self.line))), delimiter=delimiter, strict=True)
        while (row := self._row(rows)) is not None:
            if row and len(row) != len(header):
                raise self.refusal(f"has {len(row)} columns; the header has {len(header)}")
            if row:
                yield self.document(row[where[0]], row[where[1]])

    def _row(self, rows: Iterator[list[str]]) -> list[str] | None:
        try:
            return next(rows, None)
        except csv.Error as error:
            raise self.refusal(f"cannot be read as CSV: {error}") from error


class JsonLines(Lines):
    """A JSON object a line."""

    def read(self, place: Place = (0, 0)) -> Iterator[tuple[Document, Place]]:
        for line in self.lines(place):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self.refusal(f"is not JSON: {error}") from error
            if not isinstance(found, dict) or not {self.text, self.label} <= found.keys():
                raise self.refusal(
                    f"is no object with {self.text} and {self.label}; name them with --data.text_column and "
                    f"--data.label_column"
                )
            yield self.document(found[self.text], found[self.label])


class DocumentList:
    """Documents in memory."""

    def __init__(self, documents: Sequence[Document]):
        self.documents = documents
        self.size = sum(len(document.text) for document in documents)

    def read(self, place: Place = (0, 0)) -> Iterator[tuple[Document, Place]]:
        for i in range(place[0], len(self.documents)):
            yield self.documents[i], (i + 1, 0)


class Folder:
    """A folder whose folders are the classes; each .txt file in one of them is a document."""

    def __init__(self, path: Path):
        self.path = path
        self.files = sorted(file for file in path.glob("*/*.txt") if not file.parent.name.startswith("."))
        if not self.files:
            raise RunError(f"{path} has no folder with .txt files in it; it must have one for each class")
        self.sizes = [file.stat().st_size for file in self.files]
        self.size = sum(self.sizes)

    def fingerprint(self) -> dict[str, Any]:
        listing = hashlib.sha256()
        for file, size in zip(self.files, self.sizes, strict=True):
            name = file.relative_to(self.path).as_posix()
            listing.update(f"{name} {size} {file.stat().st_mtime_ns}\n".encode())
        return {"folder": listing.hexdigest()}

    def read(self, place: Place = (0, 0)) -> Iterator[tuple[Document, Place]]:
        for i in range(place[0], len(self.files)):
            file = self.files[i]
            with reading(file):
                text = file.read_bytes().decode("utf-8")
            yield Document(text, file.parent.name, text), (i + 1, 0)
