"""metrics.csv: one row for each log call of a training. After a resume, the file holds no row twice."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from torch_rnn.errors import RunError
from torch_rnn.files import write_atomically


class Metrics(Logger):
    """Appends rows to a CSV file: epoch, step, and the other columns in the order in which they first came.

    Raises RunError where the disk refuses a row.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.rows: list[dict[str, str]] = []
        self.columns = ["epoch", "step"]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def version(self) -> str:
        return ""

    @property
    def log_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: str(value) for name, value in {**metrics, "step": step}.items()}
        new = [name for name in row if name not in self.columns]
        self.rows.append(row)
        self.columns += new
        if new or len(self.rows) == 1:
            self._write()
        else:
            self._append(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml holds them."""

    def text(self) -> str:
        """Returns all rows so far."""
        return self._csv(self.rows, header=True)

    @rank_zero_only
    def restore(self, text: str) -> None:
        """Makes the file hold the rows of an earlier `text()` and no others."""
        self.columns, self.rows = parse(text)
        self._write()

    def _write(self) -> None:
        def write(part: Path) -> None:
            part.write_text(self.text(), encoding="utf-8", newline="")

        try:
            write_atomically(self.path, write)
        except OSError as error:
            raise self._refusal(error) from error

    def _append(self, row: Mapping[str, str]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(self._csv([row], header=False))
        except OSError as error:
            raise self._refusal(error) from error

    def _csv(self, rows: list[dict[str, str]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _refusal(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path} cannot be written ({error.strerror}); make room, then go on with --resume auto"
        )


def parse(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns and the rows, without empty cells, of what `Metrics.text` returned."""
    reader = csv.DictReader(io.StringIO(text))
    rows = [{name: value for name, value in row.items() if value} for row in reader]
    return list(reader.fieldnames or ["epoch", "step"]), rows
