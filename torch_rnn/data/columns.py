"""Files with a column of texts, read as documents: CSV and TSV with a header, JSON lines, all in UTF-8."""

import csv
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch_rnn.data.documents import START, Document, Position, file_fingerprint, reading
from torch_rnn.errors import RunError

MAX_FIELD_SIZE = 1 << 24
"""Limit on the characters of a CSV field. A longer one has quotation marks that are never closed."""


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
        if not columns:
            raise RunError(f"{self.path} names no columns; it must begin with a line of their names")
        if twice := [name for name in self.columns.names if list(columns).count(name) > 1]:
            raise RunError(f"{self.path} has several columns {twice[0]}; give each another name")
        if missing := set(self.columns.names) - set(columns):
            hint = self.columns.help
            if len(columns) == 1 and ";" in (only := next(iter(columns))) and set(only.split(";")) >= missing:
                hint = "write commas between them in place of semicolons, or tabs in a .tsv file"
            raise RunError(
                f"{self.path} has the columns {', '.join(columns)}, and no "
                f"{' and no '.join(sorted(missing))}; {hint}"
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
