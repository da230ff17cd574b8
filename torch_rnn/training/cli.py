"""script -> configuration -> Trainer -> report. Configuration enters here; below are plain arguments."""

import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from torch_rnn.data.datamodule import SequenceData
from torch_rnn.errors import RunError
from torch_rnn.files import remove_parts, write_atomically
from torch_rnn.training.checkpoint import (
    FOLDER,
    Checkpoints,
    SignedIO,
    check_run,
    checkpoints_in,
    newest,
    refuse_another_run,
)
from torch_rnn.training.classifier import Classifier
from torch_rnn.training.metrics import Metrics
from torch_rnn.training.report import Clock, draw_curves, print_results, results, write_results
from torch_rnn.training.signals import Stop, Stopped

log = logging.getLogger(__name__)
RESULTS, CURVES, METRICS = "results.json", "curves.png", "metrics.csv"
LOGGED = tuple(f"{split}/{score}" for split in ("validation", "train") for score in ("accuracy", "loss"))
MODEL, CONFIG = "model.safetensors", "config.yaml"
MAY_CHANGE_ON_RESUME = re.compile(
    r"config|trainer\.(default_root_dir|accelerator|devices|num_nodes|strategy|callbacks\..*RichProgressBar.*"
    r"|enable_\w+|profiler)|data\.init_args\.(root|cache)|checkpoint\.seconds"
)
"""The settings that a run may be resumed without: they do not change its numbers, or only their rounding."""


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml whole or not at all."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        path = Path(trainer.default_root_dir, CONFIG)
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


class Parser(LightningArgumentParser):
    """Answers a setting that it cannot take with one sentence and exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"error: {one_sentence(message)}; --help lists every setting", file=sys.stderr)
        raise SystemExit(2)


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
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False},
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            metavar="auto|PATH",
            help="auto: start, go on from the newest valid checkpoint, or report a finished run; "
            "PATH: go on from this checkpoint",
        )
        parser.link_arguments("data.input_size", "model.input_size", apply_on="instantiate")
        parser.link_arguments("data.n_classes", "model.n_classes", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def before_instantiate_classes(self) -> None:
        self.resume = self.config.pop("resume")  # how it was started is no setting of the run
        trainer = self.config.trainer
        trainer.use_distributed_sampler = False  # SequenceData gives each process its part of every batch
        if not trainer.enable_progress_bar and trainer.enable_progress_bar is not None:
            trainer.callbacks = [of for of in trainer.callbacks or [] if "ProgressBar" not in of.class_path]
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(Path("runs", Path(str(self.config.config[0])).stem))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.folder = Path(self.config.trainer.default_root_dir)
        self.clock, self.checkpoints = Clock(), self.config_init.checkpoint
        self.checkpoints.metrics = Metrics(self.folder / METRICS)
        self.checkpoints.seed = self.datamodule.seed
        self.checkpoints.settings = self.settings()
        plugins = [SignedIO()]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # scripts/train.sbatch requeues
        trainer = super().instantiate_trainer(logger=self.checkpoints.metrics, plugins=plugins, **kwargs)
        trainer.callbacks.insert(0, self.clock)
        return trainer

    def settings(self) -> dict[str, Any]:
        """The settings that decide a run's numbers, by their dotted names."""
        return settings(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))


def settings(config: Any, name: str = "") -> dict[str, Any]:
    """A configuration's leaves by their dotted names, but for those that do not change a run's numbers."""
    if isinstance(config, list) and config and isinstance(config[0], dict):  # callbacks, by their class
        config = {of["class_path"]: of.get("init_args", {}) for of in config}
    if not isinstance(config, dict):
        return {} if MAY_CHANGE_ON_RESUME.fullmatch(name) else {name: config}
    found = {}
    for key, value in config.items():
        found |= settings(value, f"{name}.{key}" if name else key)
    return found


def one_sentence(message: str) -> str:
    """What jsonargparse says of a bad setting, without its lists of types and its own objects."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    beside = re.compile(r"Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|$")
    return " ".join(line for line in lines if not beside.match(line)).rstrip(".")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the folder for one run, and clears away what a killed one was writing.

    Raises RunError where another run is in it, or where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
        remove_parts(folder)
        remove_parts(folder / FOLDER)
    except Timeout as error:
        raise RunError(
            f"{folder} is in use by another run; name another with --trainer.default_root_dir"
        ) from error
    except OSError as error:
        raise RunError(
            f"{folder} cannot be made ({error}); name another with --trainer.default_root_dir"
        ) from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def main(default_config: Path, arguments: Sequence[str] | None = None) -> int:
    """Trains, lets validation choose the weights, tests them once, reports; returns the exit status.

    Without --config it takes default_config. Exit status 2, and one sentence, for what cannot be run; 128 +
    the signal's number where a signal has stopped it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not any(re.match(r"--config(=|$)|-c", argument) for argument in arguments):
        arguments = ["--config", str(default_config), *arguments]
    speak_plainly()
    torch.utils.deterministic.fill_uninitialized_memory = False  # which finds mistakes, and takes time
    try:
        with Stop() as stop:
            run(arguments, stop)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except (RunError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        name, why = error.filename or "a file", error.strerror or error
        print(
            f"error: {name} cannot be written or read ({why}); mend that, then --resume auto", file=sys.stderr
        )
        return 2
    return 0


def run(arguments: Sequence[str], stop: Stop) -> None:
    """One run from its arguments to its report, or from where it was stopped, or only its report again."""
    check_torchrun()
    try:
        cli = CLI(arguments)
    except (
        ValueError,
        TypeError,
        MisconfigurationException,
    ) as error:  # a setting that a constructor refuses
        raise RunError(str(error)) from error
    cli.datamodule.check_compatible(cli.model.rnn)
    check_trainer(cli.config.trainer)
    cli.checkpoints.stop = stop
    if cli.trainer.fast_dev_run:
        train(cli, None)
        return
    # All processes come to the same beginning: none of them writes before all have begun to train.
    with claimed(cli.folder) if rank_zero_only.rank == 0 else nullcontext():
        if (cli.folder / RESULTS).exists():
            report_again(cli)
            return
        scores = train(cli, checkpoint_to_resume(cli))
        if cli.trainer.is_global_zero:
            report(cli, scores)


def check_trainer(settings: Namespace) -> None:
    """Raises RunError for settings that Lightning takes, and that end in another error or in nothing."""
    clip = settings.gradient_clip_val
    if clip is not None and not 0 <= clip < math.inf:
        raise RunError(f"trainer.gradient_clip_val is {clip}; it must be at least 0, and 0 is no clipping")
    for name in ("log_every_n_steps", "accumulate_grad_batches", "check_val_every_n_epoch"):
        if (value := settings[name]) is not None and value < 1:
            raise RunError(f"trainer.{name} is {value}; it must be at least 1")
    if settings.max_steps == 0:
        raise RunError("trainer.max_steps is 0; it must be at least 1, or -1 for no limit")
    if settings.overfit_batches:
        raise RunError(
            f"trainer.overfit_batches is {settings.overfit_batches}; use trainer.limit_train_batches"
        )
    if str(settings.precision).startswith(("16-true", "transformer")):
        raise RunError(
            f"trainer.precision is {settings.precision}; the weights are float32, float64 or bfloat16: it "
            f"must be 32-true, 64-true, bf16-true, bf16-mixed or 16-mixed"
        )
    for callback in settings.callbacks or []:
        monitor = callback.get("init_args", {}).get("monitor")
        if monitor is not None and monitor not in LOGGED:
            raise RunError(
                f"{callback.class_path}: monitor is {monitor}; it must be one of {', '.join(LOGGED)}"
            )


def check_torchrun() -> None:
    """Raises RunError where processes that torchrun restarts would wait for those that have died.

    It then gives them the store in which these have left their addresses (PyTorch's issue 135712).
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise RunError(
            "torchrun --max-restarts restarts processes into a store of those that have died; set the "
            "environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"
        )


def checkpoint_to_resume(cli: CLI) -> Path | None:
    """The checkpoint to go on from; None for the start. Raises RunError where that would lose something."""
    if cli.resume is None and checkpoints_in(cli.folder):
        raise RunError(
            f"{cli.folder} holds a run that did not finish: go on with it with --resume auto, delete it, or "
            f"name another with --trainer.default_root_dir"
        )
    if cli.resume is None:
        return None
    path = newest(cli.folder) if cli.resume == "auto" else Path(cli.resume)
    if path is not None:
        check_run(path, cli.settings())
    return path


def train(cli: CLI, checkpoint: Path | None) -> dict[str, Mapping[str, float]]:
    """Trains, from a checkpoint or from the start, and tests; returns the scores of validation and test."""
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if getattr(trainer, name) == 0:
            raise RunError(
                f"trainer.{name} is 0; a run needs at least one batch to train, to choose and to test"
            )
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    except MisconfigurationException as error:
        raise RunError(str(error)) from error
    if cli.checkpoints.best is not None:
        model.load_state_dict(cli.checkpoints.best)
    elif not trainer.fast_dev_run:
        raise RunError("nothing was chosen: at least one epoch must be trained and validated")
    trainer.loggers = []  # metrics.csv is the training's; these scores stand in results.json
    (validation,) = trainer.validate(model, datamodule=data, verbose=False)
    (test,) = trainer.test(model, datamodule=data, verbose=False)
    return {"test": test, "validation": validation}


def report(cli: CLI, scores: dict[str, Mapping[str, float]]) -> None:
    """Leaves the picture, the model and, last, the results in the run's folder, and prints them."""
    model, data, folder = cli.model, cli.datamodule, cli.folder
    found = results(cli.trainer, model, data, cli.clock, scores)
    draw_curves(folder / METRICS, folder / CURVES)
    save_model(folder / MODEL, model, data)
    write_results(folder / RESULTS, found)
    print_results(found, data.remarks(model.rnn), Console())
    print(folder / RESULTS)


def report_again(cli: CLI) -> None:
    """Prints a finished run's results. Raises RunError without --resume auto, or where it was another run."""
    folder = cli.folder
    if cli.resume != "auto":
        raise RunError(
            f"{folder} holds a finished run; delete it, name another with --trainer.default_root_dir, or see "
            f"its results again with --resume auto"
        )
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        began_with = settings(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(
            f"{folder} holds a finished run whose files are damaged ({error}); delete it"
        ) from error
    refuse_another_run(began_with, cli.settings())
    print_results(found, [f"{folder} holds this finished run; nothing was left to do."], Console())
    print(folder / RESULTS)


def save_model(path: Path, model: Classifier, data: SequenceData) -> None:
    """Weights and settings, and where the data are text all that is needed to read another text."""
    about = {"dataset": data.name, "classes": data.classes}
    if data.vocabulary is not None:
        about["text"] = {"maxlen": data.maxlen, "vocabulary": data.vocabulary.words}
    model.rnn.save(path, **about)


def speak_plainly() -> None:
    """One plain line a message, without advertisements and without advice that does not apply here."""
    level = logging.INFO if rank_zero_only.rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # a batch is ready in 1 ms
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # --config may be put before
    warnings.filterwarnings(
        "ignore", message=".*recommended to use `self.log.*sync_dist"
    )  # is summed already
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning's own, under torch 2.13
