"""script -> configuration -> Trainer -> report. Configuration enters here; below are plain arguments."""

import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from torch_rnn.classifier import Classifier
from torch_rnn.datamodule import SequenceData
from torch_rnn.errors import RunError
from torch_rnn.report import Clock, draw_curves, print_results, results, write_results

log = logging.getLogger(__name__)
RESULTS, CURVES, METRICS = "results.json", "curves.png", "metrics.csv"
MODEL, CONFIG = "model.safetensors", "config.yaml"


class CLI(LightningCLI):
    """A Classifier, a SequenceData and a Trainer, as one YAML file and the command line describe them."""

    def __init__(self, arguments: Sequence[str]):
        super().__init__(
            Classifier,
            SequenceData,
            subclass_mode_data=True,
            run=False,
            auto_configure_optimizers=False,
            args=list(arguments),
            parser_kwargs={"allow_abbrev": False},
            save_config_kwargs={"overwrite": True},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.input_size", "model.input_size", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def before_instantiate_classes(self) -> None:
        trainer = self.config.trainer
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(Path("runs", Path(str(self.config.config[0])).stem))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        logger = CSVLogger(self.config.trainer.default_root_dir, name="", version="")
        trainer = super().instantiate_trainer(logger=logger, **kwargs)
        self.clock = Clock()
        trainer.callbacks.append(self.clock)
        return trainer


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the folder for one run, and clears away what a run that did not finish has left there.

    Raises RunError where it holds a finished run or another run is in it, or where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{folder} is in use by another run; name another with --trainer.default_root_dir"
        ) from error
    except OSError as error:
        raise RunError(
            f"{folder} cannot be made ({error}); name another with --trainer.default_root_dir"
        ) from error
    try:
        if (folder / RESULTS).exists():
            raise RunError(
                f"{folder} holds a finished run; delete it, or name another with --trainer.default_root_dir"
            )
        if (folder / CONFIG).exists():
            log.warning("%s holds a run that did not finish; it is started anew", folder)
            for name in (METRICS, "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
                (folder / name).unlink(missing_ok=True)
        yield
    finally:
        (folder / ".lock").unlink()
        lock.release()


def main(default_config: Path, arguments: Sequence[str] | None = None) -> int:
    """Trains, lets validation choose a checkpoint, tests that once, reports; returns the exit status.

    Without --config it takes default_config. Exit status 2, and one sentence, for what cannot be run.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not any(re.match(r"--config(=|$)|-c", argument) for argument in arguments):
        arguments = ["--config", str(default_config), *arguments]
    _speak_plainly()
    torch.utils.deterministic.fill_uninitialized_memory = False  # which finds mistakes, and takes time
    try:
        try:
            cli = CLI(arguments)
        except ValueError as error:  # a setting that a constructor refuses
            raise RunError(str(error)) from error
        cli.datamodule.suit(cli.model.rnn)
        if cli.trainer.fast_dev_run:
            train(cli)
        else:
            with claimed(Path(cli.trainer.default_root_dir)):
                report(cli, *train(cli))
    except (RunError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(cli: CLI) -> tuple[dict[str, Mapping[str, float]], int, float]:
    """Trains and tests; returns the scores of the validation and the test, the epochs and the seconds."""
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if getattr(trainer, name) == 0:
            raise RunError(
                f"trainer.{name} is 0; a run needs at least one batch to train, to choose and to test"
            )
    started = time.perf_counter()
    trainer.fit(model, datamodule=data)
    if trainer.fast_dev_run:
        chosen = None
    elif trainer.checkpoint_callback and trainer.checkpoint_callback.best_model_path:
        chosen = trainer.checkpoint_callback.best_model_path
    else:
        raise RunError("no checkpoint was saved: at least one epoch must be trained and validated")
    epochs = trainer.current_epoch
    trainer.loggers = []  # metrics.csv is the training's; these scores stand in results.json
    (validation,) = trainer.validate(model, datamodule=data, ckpt_path=chosen, verbose=False)
    (test,) = trainer.test(model, datamodule=data, ckpt_path=chosen, verbose=False)
    return {"test": test, "validation": validation}, epochs, time.perf_counter() - started


def report(cli: CLI, scores: dict[str, Mapping[str, float]], epochs: int, seconds: float) -> None:
    """Leaves the picture, the model and, last, the results in the run's folder, and prints them."""
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    folder = Path(trainer.default_root_dir)
    found = results(trainer, model, data, cli.clock, scores, epochs, seconds)
    draw_curves(folder / METRICS, folder / CURVES)
    save_model(folder / MODEL, model, data)
    write_results(folder / RESULTS, found)
    print_results(found, data.remarks(model.rnn), Console())
    print(folder / RESULTS)


def save_model(path: Path, model: Classifier, data: SequenceData) -> None:
    """Weights and settings, and where the data are text all that is needed to read another text."""
    about = {"dataset": data.name, "classes": data.classes}
    if data.vocabulary is not None:
        about["text"] = {"maxlen": data.maxlen, "vocabulary": data.vocabulary.words}
    model.rnn.save(path, **about)


def _speak_plainly() -> None:
    """One plain line a message, without advertisements and without advice that does not apply here."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # a batch is ready in 1 ms
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # --config may be put before
    warnings.filterwarnings("ignore", message="Experiment logs directory")  # `claim` has made it ready
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning's own, under torch 2.13
