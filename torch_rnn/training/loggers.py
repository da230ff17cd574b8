"""Loggers that the user adds: they get the rows of metrics.csv, and after a resume no row twice."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from torch_rnn.training.metrics import Metrics

log = logging.getLogger(__name__)
REWINDABLE = (CSVLogger, TensorBoardLogger)


def versions(loggers: Sequence[Logger]) -> list[int | str | None]:
    """Returns the version of each logger that can be rewound, which names its folder; None of the others."""
    return [logger.version if isinstance(logger, REWINDABLE) else None for logger in loggers]


@rank_zero_only
def rewind(
    loggers: Sequence[Logger], versions: Sequence[int | str | None], rows: Sequence[Mapping[str, str]]
) -> None:
    """Makes each logger's folder hold what it held at a checkpoint, by writing its files again.

    Args:
        loggers: those of the Trainer.
        versions: of the loggers at the checkpoint; where their number differs, nothing is rewound.
        rows: of metrics.csv at the checkpoint.
    """
    if len(versions) != len(loggers):
        return
    for logger, version in zip(loggers, versions, strict=True):
        if isinstance(logger, Metrics):
            continue
        if not isinstance(logger, REWINDABLE) or version is None:
            log.warning(
                "%s cannot be rewound: it gets the steps after the last checkpoint twice",
                type(logger).__name__,
            )
            continue
        logger._version = version  # else a resumed run would get a folder of its own
        if isinstance(logger, TensorBoardLogger):  # CSVLogger removes its own file
            for events in Path(logger.log_dir).glob("events.out.tfevents.*"):
                events.unlink()
        for row in rows:
            values = {name: float(value) for name, value in row.items() if name != "step"}
            logger.log_metrics(values, int(row["step"]))
        logger.save()
