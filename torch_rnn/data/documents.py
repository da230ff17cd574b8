"""Labelled texts from files, read as a stream that can begin at any document.

The formats are CSV and TSV with a header, JSON lines, and a folder with one folder of .txt files for each
class. All are in UTF-8.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch_rnn.errors import RunError

MAX_FIELD_SIZE = 1 << 24
"""Limit on the characters of a CSV field. A longer one has quotation marks that are never closed."""


class Document(NamedTuple):
    text: str
    label: str
    group: str
    """Documents of one group stay in one split: the film of a review, or the text itself."""


Position = tuple[int, int]
"""Where the next document begins: (bytes, lines) or (files, 0) before it."""
START: Position = (0, 0)


class Documents(Protocol):
    """A source of documents."""

    size: int
    """Bytes of the whole source."""

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        """Yields the documents from `start` on, each with the position after it.

        Raises:
            RunError: A document is malformed. The message names the file and the line.
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


def documents(path: Path, text: str = "text", label: str = "label") -> "ColumnFile | ClassFolders":
    """Opens a .csv, .tsv or .jsonl file with the columns `text` and `label`, or a folder of class folders."""
    if path.is_dir():
        return ClassFolders(path)
    if not path.is_file():
        raise RunError(f"{path} does not exist; name a .csv, .tsv or .jsonl file, or a folder of classes")
    if path.suffix in (".csv", ".tsv"):
        return Table(path, text, label)
    if path.suffix == ".jsonl":
        return JsonLines(path, text, label)
    raise RunError(f"{path} ends in {path.suffix or 'nothing'}; it must be .csv, .tsv or .jsonl, or a folder")


class LineReader:
    """Iterates over the lines of a UTF-8 file; `position` is (bytes, lines) before the next line."""

    def __init__(self, path: Path, start: Position):
        self.path, self.position = path, start

    def __iter__(self) -> Iterator[str]:
        offset, number = self.position
        with reading(self.path), open(self.path, "rb") as file:
            file.seek(offset)
            for line in file:
                offset, number = self.position = (offset + len(line), number + 1)
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise self.error(f"is not UTF-8 ({error.reason})") from error
                yield text

    def error(self, problem: str) -> RunError:
        """Returns an error that names the line read last."""
        return RunError(f"{self.path}: line {self.position[1]} {problem}")


class ColumnFile:
    """A file with a column of texts and a column of labels."""

    def __init__(self, path: Path, text: str, label: str):
        self.path, self.text, self.label = path, text, label
        self.size = path.stat().st_size

    def fingerprint(self) -> dict[str, Any]:
        """Returns what changes when the file or the choice of columns does."""
        return file_fingerprint(self.path) | {"columns": [self.path.suffix, self.text, self.label]}

    def check_columns(self, columns: Collection[str]) -> None:
        """Raises RunError if the column of texts or of labels is missing."""
        if missing := {self.text, self.label} - set(columns):
            raise RunError(
                f"{self.path} has the columns {', '.join(columns) or 'none'}, and no "
                f"{' and no '.join(sorted(missing))}; name yours with --data.text_column, --data.label_column"
            )

    def document(self, text: Any, label: Any, error: Callable[[str], RunError]) -> Document:
        """Returns the document of one row; `error` makes the exception that names the row."""
        if not isinstance(text, str):
            raise error(f"has {self.text} {text!r}; it must be a text")
        if isinstance(label, bool) or not isinstance(label, str | int) or str(label).strip() == "":
            raise error(f"has {self.label} {label!r}; it must be a word or a whole number")
        return Document(text, str(label).strip(), text)


class Table(ColumnFile):
    """CSV, or TSV by its suffix, with a header (RFC 4180: quoted fields may hold line breaks)."""

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        header, _, first = next(self._rows(START), ([], None, START))
        self.check_columns(header)
        text, label = header.index(self.text), header.index(self.label)
        for row, lines, position in self._rows(max(start, first)):
            if row and len(row) != len(header):
                raise lines.error(f"has {len(row)} columns; the header has {len(header)}")
            if row:
                yield self.document(row[text], row[label], lines.error), position

    def _rows(self, start: Position) -> Iterator[tuple[list[str], LineReader, Position]]:
        """Yields the rows, each with the reader and the position after the row; an empty line is []."""
        csv.field_size_limit(MAX_FIELD_SIZE)
        lines = LineReader(self.path, start)
        try:
            for row in csv.reader(lines, delimiter="\t" if self.path.suffix == ".tsv" else ",", strict=True):
                yield row, lines, lines.position
        except csv.Error as error:
            raise lines.error(f"cannot be read as CSV: {error}") from error


class JsonLines(ColumnFile):
    """One JSON object a line."""

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        lines = LineReader(self.path, start)
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise lines.error(f"is not JSON: {error}") from error
            if not isinstance(row, dict) or not {self.text, self.label} <= row.keys():
                raise lines.error(
                    f"is no object with {self.text} and {self.label}; name them with --data.text_column and "
                    f"--data.label_column"
                )
            yield self.document(row[self.text], row[self.label], lines.error), lines.position


class ClassFolders:
    """A folder whose folders are the classes; each .txt file in them is a document."""

    def __init__(self, path: Path):
        self.path = path
        self.files = sorted(file for file in path.glob("*/*.txt") if not file.parent.name.startswith("."))
        if not self.files:
            raise RunError(f"{path} has no folder with .txt files in it; it must have one for each class")
        self.sizes = [file.stat().st_size for file in self.files]
        self.size = sum(self.sizes)

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for file, size in zip(self.files, self.sizes, strict=True):
            name = file.relative_to(self.path).as_posix()
            digest.update(f"{name} {size} {file.stat().st_mtime_ns}\n".encode())
        return {"folder": digest.hexdigest()}

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        for i in range(start[0], len(self.files)):
            file = self.files[i]
            with reading(file):
                text = file.read_bytes().decode("utf-8")
            yield Document(text, file.parent.name, text), (i + 1, 0)


class DocumentList:
    """Documents in memory."""

    def __init__(self, documents: Sequence[Document]):
        self.documents = documents
        self.size = sum(len(document.text) for document in documents)

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
