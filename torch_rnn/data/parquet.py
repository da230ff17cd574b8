"""Parquet files with a column of texts, read as documents."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch_rnn.data.columns import ColumnFile, Columns
from torch_rnn.data.documents import START, Document, Position
from torch_rnn.errors import RunError

BATCH_ROWS = 256
"""Rows in memory at a time."""


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
