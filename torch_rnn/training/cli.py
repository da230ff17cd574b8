"""The command line: a model, its data and a Trainer, as a YAML file and arguments describe them.

Configuration enters here; below are plain keyword arguments.
"""

import difflib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from torch_rnn.data.datamodule import SequenceData
from torch_rnn.data.textstream import TextStream
from torch_rnn.errors import RunError
from torch_rnn.files import write_atomically
from torch_rnn.ops import which
from torch_rnn.training.checkpoint import Checkpoints
from torch_rnn.training.checkpoint_file import SignedIO
from torch_rnn.training.classifier import Classifier
from torch_rnn.training.language_model import LanguageModel
from torch_rnn.training.metrics import Metrics
from torch_rnn.training.report import METRICS, Clock
from torch_rnn.training.resume import CONFIG, run_settings
from torch_rnn.training.start import start_from
from torch_rnn.training.trained_rnn import TrainedRNN
from torch_rnn.training.trainer_settings import (
    check_cuda_graph,
    check_packages,
    check_precision,
    check_trainer,
)

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """What a command line trains."""

    model: type[TrainedRNN]
    data: type[LightningDataModule]
    """The base class of the data modules."""
    links: tuple[str, ...]
    """The attributes of the data that are arguments of the model."""
    data_sets: tuple[str, ...]
    """The names of the data sets in `torch_rnn.data`."""

    def help(self) -> str:
        """Returns how to list the settings of the data, which --help does not."""
        *first, last = (f"torch_rnn.data.{name}" for name in self.data_sets)
        return f"The settings of the data: --data.help CLASS, with the CLASS {', '.join(first)} or {last}."


TASKS = {
    "classification": Task(
        Classifier,
        SequenceData,
        ("input_size", "n_classes", "evidence"),
        ("IMDB", "TextFiles", "Grammar", "Addition"),
    ),
    "language": Task(LanguageModel, TextStream, ("input_size", "tokens"), ("TextStream", "IMDBStream")),
}


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml whole or not at all."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        path = Path(trainer.default_root_dir, CONFIG)
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


class Parser(LightningArgumentParser):
    """Answers a setting that it cannot parse with one sentence and exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        hint = self._similar(message) or "--help lists the settings, --data.help CLASS those of the data"
        print(f"error: {one_sentence(message)}; {hint}", file=sys.stderr)
        raise SystemExit(2)

    def _similar(self, message: str) -> str:
        """Returns a question that names a setting similar to an unknown one; an empty string if none is."""
        unknown = re.search(r"nrecognized arguments: --([\w.]+)|Option '([\w.]+)' is not accepted", message)
        name = (unknown[1] or unknown[2]) if unknown else ""
        known = [option.removeprefix("--") for option in self._option_string_actions]
        found = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        return f"did you mean {'--' * bool(unknown[1])}{found[0]}?" if found else ""


class CLI(LightningCLI):
    """Parses the arguments, checks the settings and makes the three objects; it writes no run.

    Raises RunError for settings that are refused, SystemExit for those that cannot be parsed.
    """

    def __init__(self, arguments: Sequence[str], task: Task = TASKS["classification"]):
        self.task, self.clock = task, Clock()
        check_config_files(arguments)
        try:
            super().__init__(
                task.model,
                task.data,
                subclass_mode_data=True,
                run=False,
                auto_configure_optimizers=False,
                args=list(arguments),
                parser_class=Parser,
                parser_kwargs={"allow_abbrev": False, "epilog": task.help()},
                save_config_callback=SaveConfig,
                save_config_kwargs={"save_to_log_dir": False},
            )
            rnn, device = self.model.rnn, self.trainer.strategy.root_device
            dtype = torch.float64 if self.trainer.precision == "64-true" else torch.float32
            if rnn.backend != "auto" or device.type == "cpu":  # on a GPU, auto would compile kernels here
                which(rnn.backend, device, dtype, rnn.hidden_size, rnn.nonlinearity)
            check_precision(self.config.trainer.precision, self.trainer.precision)
            check_packages(self.trainer)
            self.model.check_length(self.trainer)
            if self.model.cuda_graph:
                check_cuda_graph(self.trainer)
        except RunError:
            raise
        except (ValueError, TypeError, MisconfigurationException) as error:  # from a constructor
            raise RunError(one_sentence(str(error))) from error
        self.datamodule.check_compatible(self.model.rnn)
        if self.model.start_from is not None:
            if self.datamodule.vocabulary is None:
                self.datamodule.setup("fit")  # which finds the vocabulary
            self.model.started = start_from(self.model.start_from, self.model.rnn, self.datamodule)
            log.info("%s", self.model.started)

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
        parser.add_argument(
            "--check", action="store_true", help="check the settings and end; only the token cache is written"
        )
        parser.add_argument("--page", type=bool, default=True, help="leave report.html in the run's folder")
        parser.set_defaults(
            {
                "trainer.use_distributed_sampler": False,
                "checkpoint.monitor": f"validation/{self.task.model.scores[0]}",
            }
        )
        for name in self.task.links:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str]) -> None:
        super().parse_arguments(parser, args)
        seed = self.config.seed_everything
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise RunError(f"seed_everything is {seed}; it must be a whole number in 0..{2**32 - 1}")

    def before_instantiate_classes(self) -> None:
        # no settings of a run
        self.resume, self.check, self.page = (self.config.pop(name) for name in ("resume", "check", "page"))
        if self.resume not in (None, "auto") and not Path(self.resume).exists():
            raise RunError(
                f"{self.resume} cannot be read (No such file or directory); --resume takes auto or a "
                f"checkpoint's path"
            )
        trainer = self.config.trainer
        trainer.callbacks = _listed(trainer.callbacks, Namespace)
        scores = self.task.model.scores
        check_trainer(trainer, scores)
        allowed = [f"validation/{score}" for score in scores]
        if (monitor := self.config.checkpoint.monitor) not in allowed:
            raise RunError(f"checkpoint.monitor is {monitor}; it must be {' or '.join(allowed)}")
        if trainer.enable_progress_bar is False:
            trainer.callbacks = [bar for bar in trainer.callbacks if "ProgressBar" not in bar.class_path]
        if trainer.default_root_dir == "":
            raise RunError("trainer.default_root_dir is empty; name a folder, or leave it out for runs/NAME")
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(Path("runs", Path(str(self.config.config[0])).stem))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.folder = Path(self.config.trainer.default_root_dir)
        self.checkpoints = self.config_init.checkpoint
        self.checkpoints.metrics = Metrics(self.folder / METRICS)
        self.checkpoints.seed = self.datamodule.seed
        self.checkpoints.settings = settings = self.settings()
        self.model.save_hyperparameters(settings)  # which Lightning gives to the user's loggers
        given = self.config_init.trainer
        loggers = [self.checkpoints.metrics, *_listed(given.logger, Logger)]
        plugins = [SignedIO(), *_listed(given.plugins, object)]
        own_environment = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect() and not own_environment:
            plugins.append(SLURMEnvironment(auto_requeue=False))  # scripts/train.sbatch requeues
        trainer = super().instantiate_trainer(logger=loggers, plugins=plugins, **kwargs)
        # A checkpoint is written at the start of a step, before other callbacks log in it.
        trainer.callbacks.remove(self.checkpoints)
        trainer.callbacks[:0] = [self.clock, self.checkpoints]
        return trainer

    def settings(self) -> dict[str, Any]:
        """Returns the settings that decide a run's numbers, by their dotted names."""
        return run_settings(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))


def check_config_files(arguments: Sequence[str]) -> None:
    """Raises RunError, which names the file, for a --config that is no YAML file with settings."""
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, _, own = name.partition("=")
        path = Path(own or value)
        if flag not in ("--config", "-c") or not os.path.isfile(
            path
        ):  # False for settings that are given as text
            continue
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunError(f"--config {path} is not YAML ({' '.join(str(error).split())})") from error
        if not isinstance(settings, dict):
            raise RunError(
                f"--config {path} holds no settings; each is a line such as model: or seed_everything: 1"
            )


def one_sentence(message: str) -> str:
    """Shortens what jsonargparse says of a bad setting: no lists of types, none of its own objects."""
    if missing := re.findall(r"Requirement '([^']+)' not met|No module named '([^']+)'", message):
        name = re.search(r"class_path '[\w.]*?(\w+)'", message)
        package = re.split(r"[<>=!~\[. ]", "".join(missing[-1]))[0]
        return (
            f"{name[1] if name else 'a setting'} needs a package that is not installed: pip install {package}"
        )
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if key and value and (allowed := _allowed(message)):
        return f"{key[1]} is {value[1].strip()}; it must be {' or '.join(allowed)}"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    beside = re.compile(r"Does not validate|Subtypes:|Errors:|Given value|Expected a <class|$")
    return " ".join(line for line in lines if not beside.match(line)).rstrip(".") or message


def _allowed(message: str) -> list[str]:
    """Returns the kinds of values, and the values, that jsonargparse expected."""
    words = {
        "<class 'int'>": "an integer",
        "<class 'float'>": "a number",
        "<class 'bool'>": "true or false",
        "<class 'str'>": "a text",
        "dot import path string": "the name of a class",
    }
    kinds = [word for kind, word in words.items() if f"Expected a {kind}" in message]
    values = [
        value.strip(" '\"")
        for literal in re.findall(r"Expected a typing\.Literal\[(.*?)\]", message)
        for value in literal.split(",")
    ]
    return kinds + ([f"one of {', '.join(dict.fromkeys(values))}"] if values else [])


def _listed(value: Any, kind: type) -> list[Any]:
    return (
        []
        if value is None
        else [value]
        if isinstance(value, kind) and not isinstance(value, list)
        else [*value]
    )
