"""Loggers that the user adds: they get the rows of metrics.csv, and after a resume no row twice."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from torch_rnn.training.metrics import Metrics

log = logging.getLogger(__name__)
REWINDABLE = (CSVLogger, TensorBoardLogger)


def logs(loggers: Sequence[Logger], run: str) -> list[dict[str, int | str]]:
    """Returns which log each logger that can be rewound writes for the run in the folder `run`."""
    return [_log(logger, run) for logger in loggers if isinstance(logger, REWINDABLE)]


@rank_zero_only
def rewind(
    loggers: Sequence[Logger], run: str, before: Sequence[Mapping], rows: Sequence[Mapping[str, str]]
) -> None:
    """Makes each logger's log hold what metrics.csv held at a checkpoint.

    A log of this run is written again in its own folder. A logger of another class, folder or run begins a
    new log, so that no other log is changed.

    Args:
        loggers: those of the Trainer.
        run: the folder of the run.
        before: what `logs` returned at the checkpoint.
        rows: of metrics.csv at the checkpoint.
    """
    for logger in loggers:
        if isinstance(logger, Metrics):
            continue
        if not isinstance(logger, REWINDABLE):
            log.warning(
                "%s cannot be rewound: it gets the steps after the last checkpoint twice",
                type(logger).__name__,
            )
            continue
        # CSVLogger removes its own file.
        if _continues(logger, run, before) and isinstance(logger, TensorBoardLogger):
            for events in Path(logger.log_dir).glob("events.out.tfevents.*"):
                events.unlink()
        for row in rows:
            values = {name: float(value) for name, value in row.items() if name != "step"}
            logger.log_metrics(values, int(row["step"]))
        logger.save()


def _continues(logger: Logger, run: str, before: Sequence[Mapping]) -> bool:
    """Gives a logger the version of its log at the checkpoint. Returns False where it had none there."""
    given = logger._version  # None: the logger chooses a new one
    for earlier in before:
        if given in (None, earlier["version"]):
            logger._version = earlier["version"]
            if _log(logger, run) == earlier:
                return True
    logger._version = given
    return False


def _log(logger: Logger, run: str) -> dict[str, int | str]:
    return {
        "class": type(logger).__name__,
        "version": logger.version,
        "folder": os.path.abspath(logger.log_dir),
        "run": os.path.abspath(run),
    }
