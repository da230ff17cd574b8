"""Texts from files, read as a stream that can begin at any document.

The formats are CSV and TSV with a header, JSON lines, Parquet files or a folder of them, and a folder with
one folder of .txt files for each class. All text is in UTF-8. A text has a label, or one probability for each
class, or neither.
"""

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
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
    probabilities: tuple[float, ...] = ()
    """One for each class, or none."""


Position = tuple[int, int]
"""Where a document begins. In a text file: (bytes, lines) before it. In class folders or in memory:
(documents before it, 0). In Parquet: (row groups before its own, rows before it in its own).
"""
START: Position = (0, 0)
SUFFIXES = ".csv, .tsv, .jsonl or .parquet"
BATCH_ROWS = 256
"""Rows of a Parquet file in memory at a time."""


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


def documents(
    path: Path,
    text: str = "text",
    label: str | None = "label",
    split: str = "train",
    probabilities: Sequence[str] = (),
) -> "ColumnFile | ParquetFiles | TextFolders":
    """Opens a file with a column of texts, a folder of Parquet files, or folders of .txt files.

    Args:
        path: The file or folder.
        text: The column of the texts.
        label: The column of the labels; None for texts without.
        split: The split to take from a folder with the Parquet files of several splits.
        probabilities: The columns with the probability of each class.
    """
    columns = Columns(text, label, tuple(probabilities))
    if path.is_dir():
        shards = sorted(path.glob("[!.]*.parquet"))
        if shards and not any(path.glob("[!.]*/*.txt")):
            return ParquetFiles(_shards_of_split(path, shards, split), columns)
        if probabilities:
            raise RunError(f"{path} is a folder, which has no probabilities; it must be a {SUFFIXES} file")
        return TextFolders(path, labelled=label is not None)
    if not path.is_file():
        raise RunError(f"{path} does not exist; name a {SUFFIXES} file, or a folder of classes or shards")
    if path.suffix in (".csv", ".tsv"):
        return Table(path, columns)
    if path.suffix == ".jsonl":
        return JsonLines(path, columns)
    if path.suffix == ".parquet":
        return ParquetFiles([path], columns)
    raise RunError(f"{path} ends in {path.suffix or 'nothing'}; it must be {SUFFIXES}, or a folder")


def _shards_of_split(folder: Path, shards: list[Path], split: str) -> list[Path]:
    """Returns the shards whose name begins with the split, or all if their names tell no splits apart."""
    prefixes = {shard: re.match("[A-Za-z]*", shard.name)[0].lower() for shard in shards}
    names = set(prefixes.values())
    if split in names:
        return [shard for shard in shards if prefixes[shard] == split]
    if len(names) > 1 or names & {"train", "test"}:
        raise RunError(
            f"{folder} has .parquet files named {', '.join(sorted(f'{name}*' for name in names))}, and none "
            f"named {split}*; name a file or a folder of the {split} data alone with --data.{split}"
        )
    return shards


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


class Columns(NamedTuple):
    """The columns of a file, or the keys of its objects."""

    text: str
    label: str | None
    probabilities: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [self.text, *([] if self.label is None else [self.label]), *self.probabilities]

    @property
    def help(self) -> str:
        """What to do where a column is missing."""
        if self.probabilities:
            return (
                "scripts/label.py writes a column with the texts, and one with the probability of each class"
            )
        others = "" if self.label is None else ", --data.label_column"
        return f"name yours with --data.text_column{others}"


class ColumnFile:
    """A file with a column of texts, and of labels or probabilities."""

    def __init__(self, path: Path, columns: Columns):
        self.path, self.columns = path, columns
        self.size = path.stat().st_size

    def bytes_before(self, position: Position) -> int:
        return position[0]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what changes when the file or the choice of columns does."""
        text, label, probabilities = self.columns
        return file_fingerprint(self.path) | {"columns": [self.path.suffix, text, label, *probabilities]}

    def check_columns(self, columns: Collection[str]) -> None:
        """Raises RunError if a column is missing."""
        if missing := set(self.columns.names) - set(columns):
            raise RunError(
                f"{self.path} has the columns {', '.join(columns) or 'none'}, and no "
                f"{' and no '.join(sorted(missing))}; {self.columns.help}"
            )

    def document(self, values: Sequence[Any], error: Callable[[str], RunError]) -> Document:
        """Returns the document of one row; `error` makes the exception that names the row."""
        text, *others = values
        if not isinstance(text, str):
            raise error(f"has {self.columns.text} {text!r}; it must be a text")
        if self.columns.label is None:
            return Document(text, "", text, self._distribution(others, error))
        label = others[0]
        if isinstance(label, bool) or not isinstance(label, str | int) or str(label).strip() == "":
            raise error(f"has {self.columns.label} {label!r}; it must be a word or a whole number")
        return Document(text, str(label).strip(), text)

    def _distribution(self, values: list[Any], error: Callable[[str], RunError]) -> tuple[float, ...]:
        numbers = []
        for name, value in zip(self.columns.probabilities, values, strict=True):
            try:
                numbers.append(float(value))
            except (TypeError, ValueError):
                numbers.append(math.nan)
            if not 0 <= numbers[-1] <= 1:
                raise error(f"has {name} {value!r}; it must be a number from 0 to 1")
        if numbers and abs(sum(numbers) - 1) > 0.01:
            raise error(f"has probabilities with the sum {sum(numbers):.4g}; it must be 1")
        return tuple(number / sum(numbers) for number in numbers)


class Table(ColumnFile):
    """CSV, or TSV by its suffix, with a header (RFC 4180: quoted fields may hold line breaks)."""

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        header, _, first = next(self._rows(START), ([], None, START))
        self.check_columns(header)
        columns = [header.index(name) for name in self.columns.names]
        for row, lines, position in self._rows(max(start, first)):
            if row and len(row) != len(header):
                raise lines.error(f"has {len(row)} columns; the header has {len(header)}")
            if row:
                yield self.document([row[column] for column in columns], lines.error), position

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
            if not isinstance(row, dict) or not row.keys() >= set(self.columns.names):
                raise lines.error(
                    f"is no object with {' and '.join(self.columns.names)}; {self.columns.help}"
                )
            yield self.document([row[name] for name in self.columns.names], lines.error), lines.position


class ParquetFile(ColumnFile):
    """A Parquet file, read in batches of rows; a position is (row groups, rows of the next one) before it."""

    def __init__(self, path: Path, columns: Columns):
        super().__init__(path, columns)
        with self._open() as file:
            self.check_columns(file.schema_arrow.names)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        self.first_rows = [0, *accumulate(group.num_rows for group in groups)]
        self.first_bytes = [0, *accumulate(group.total_byte_size for group in groups)]  # uncompressed
        self.size = self.first_bytes[-1]

    def bytes_before(self, position: Position) -> int:
        group, row = position
        rows, size = (first[group + 1] - first[group] for first in (self.first_rows, self.first_bytes))
        return self.first_bytes[group] + size * row // max(rows, 1)

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        with self._open() as file:
            for group in range(start[0], file.num_row_groups):
                row = start[1] if group == start[0] else 0
                for columns in self._read_columns(file, group, row):
                    for cells in zip(*columns, strict=True):
                        row += 1
                        error = partial(self._error, self.first_rows[group] + row)
                        try:
                            values = [cell.as_py() for cell in cells]
                        except UnicodeDecodeError as problem:
                            raise error(f"is not UTF-8 ({problem.reason})") from problem
                        yield self.document(values, error), (group, row)

    def _read_columns(self, file: Any, group: int, skipped: int) -> Iterator[list[Iterable]]:
        """Yields the columns of a row group in batches, without the first `skipped` rows."""
        columns = self.columns.names
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            first = min(skipped, len(batch))
            yield [batch.column(batch.schema.names.index(name)).slice(first) for name in columns]
            skipped -= first

    def _error(self, row: int, problem: str) -> RunError:
        return RunError(f"{self.path}: row {row} {problem}")

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise RunError(f"{self.path} cannot be read without pyarrow: pip install pyarrow") from error
        # With the default options, pyarrow reads a whole row group into memory.
        options = {"pre_buffer": False, "buffer_size": 1 << 20, "page_checksum_verification": True}
        try:
            with pyarrow.parquet.ParquetFile(self.path, **options) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            raise RunError(f"{self.path} is damaged or not a Parquet file ({error})") from error


class ParquetFiles:
    """Parquet files, one after the other; the row groups of a position are counted through all files."""

    def __init__(self, paths: list[Path], columns: Columns):
        self.files = [ParquetFile(path, columns) for path in paths]
        self.size = sum(file.size for file in self.files)

    def bytes_before(self, position: Position) -> int:
        group, row = position
        before = 0  # bytes in the files before
        for file in self.files:
            groups = len(file.first_rows) - 1
            if group < groups:
                return before + file.bytes_before((group, row))
            before, group = before + file.size, group - groups
        return before

    def fingerprint(self) -> dict[str, Any]:
        return {"files": [[file.path.name, file.fingerprint()] for file in self.files]}

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        before = 0  # row groups in the files before
        for file in self.files:
            groups = len(file.first_rows) - 1
            if start[0] < before + groups:
                first = (start[0] - before, start[1]) if start[0] >= before else START
                for document, (group, row) in file.read(first):
                    yield document, (before + group, row)
            before += groups


class TextFolders:
    """A folder whose folders are the classes; each .txt file in them is a document.

    If the texts are not labelled, the files may be in the folder itself, too.
    """

    def __init__(self, path: Path, labelled: bool = True):
        self.path, self.labelled = path, labelled
        files = [*path.glob("*/*.txt"), *([] if labelled else path.glob("*.txt"))]
        self.files = sorted(f for f in files if f.parent == path or not f.parent.name.startswith("."))
        if not self.files and labelled:
            raise RunError(f"{path} has no folder with .txt files in it; it must have one for each class")
        if not self.files:
            raise RunError(f"{path} has no .txt files and no .parquet files")
        self.sizes = [file.stat().st_size for file in self.files]
        self.offsets = [0, *accumulate(self.sizes)]
        self.size = self.offsets[-1]

    def bytes_before(self, position: Position) -> int:
        return self.offsets[position[0]]

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
            yield Document(text, file.parent.name if self.labelled else "", text), (i + 1, 0)


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
