"""One run from its arguments to its report: train, let validation choose the weights, test them once."""

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from torch_rnn.errors import RunError
from torch_rnn.files import remove_parts
from torch_rnn.training.checkpoint_file import FOLDER, checkpoints_in, newest
from torch_rnn.training.cli import CLI, TASKS
from torch_rnn.training.loggers import rewind
from torch_rnn.training.metrics import parse
from torch_rnn.training.report import CURVES, METRICS, draw_curves, print_results, results, write_results
from torch_rnn.training.resume import (
    RESULTS,
    check_checkpoint,
    check_same_run,
    damaged,
    is_longer,
    read_finished,
)
from torch_rnn.training.signals import Stop

log = logging.getLogger(__name__)
MODEL = "model.safetensors"


def run(arguments: Sequence[str], stop: Stop, task: str, page: Callable[..., Path] | None = None) -> None:
    """Does a run, continues it from where it was stopped, or prints the report of a finished one.

    The task is a key of `cli.TASKS`, and page that of `entry.main`.

    Raises RunError for what cannot be run, Stopped for a signal.
    """
    configure_output()
    check_torchrun()
    torch.utils.deterministic.fill_uninitialized_memory = False  # it finds mistakes, and takes time
    cli = CLI(arguments, TASKS[task])
    if cli.check:
        if not (cli.trainer.fast_dev_run or is_finished(cli)):
            checkpoint_to_resume(cli)
        print(f"the settings are valid; the run would be in {cli.folder}")
        return
    cli.checkpoints.stop = stop
    if cli.trainer.fast_dev_run:
        train(cli, None)
        return
    # Only the first process writes before all have begun to train, so all find the same files here.
    with claimed(cli.folder) if rank_zero_only.rank == 0 else nullcontext():
        if is_finished(cli):
            report_again(cli.folder)
            return
        checkpoint = checkpoint_to_resume(cli)
        if rank_zero_only.rank == 0:
            (cli.folder / RESULTS).unlink(missing_ok=True)  # of the shorter run that goes on
        scores = train(cli, checkpoint)
        if cli.trainer.is_global_zero:
            report(cli, scores)
            if page is not None and cli.page:
                add_page(cli, page)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes the folder, locks it for one run, and removes the temporary files of a killed one.

    The lock file is deleted at the end, while it is still locked. A process that has opened it before that
    and locks it afterwards has locked nothing, and tries again.

    Raises RunError where another run has locked it, or where it cannot be made.
    """
    elsewhere = "name another with --trainer.default_root_dir"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
        while not _is_at(Path(lock.lock_file), lock._context.lock_file_fd):
            lock.release()
            lock.acquire()
        remove_parts(folder)
        remove_parts(folder / FOLDER)
    except Timeout as error:
        raise RunError(f"{folder} is in use by another run; {elsewhere}") from error
    except OSError as error:
        raise RunError(f"{folder} cannot be made ({error}); {elsewhere}") from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def _is_at(path: Path, file: int) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def check_torchrun() -> None:
    """Raises RunError where processes that torchrun restarts would wait for those that have died.

    torchrun would give them the store in which these have left their addresses (PyTorch's issue 135712).
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise RunError(
            "torchrun --max-restarts restarts processes into a store of those that have died; set the "
            "environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"
        )


def continues_finished(cli: CLI) -> bool:
    """Whether a finished run is to be trained longer. Raises RunError where the settings do not allow it."""
    if cli.resume is None:
        return False
    _, before = read_finished(cli.folder)
    check_same_run(before, cli.settings())
    return is_longer(before, cli.settings())


def is_finished(cli: CLI) -> bool:
    """Whether the folder holds a finished run to which nothing is to be added.

    Raises RunError for one without --resume auto, or with settings that do not continue it.
    """
    if not (cli.folder / RESULTS).exists() or continues_finished(cli):
        return False
    if cli.resume != "auto":
        raise RunError(
            f"{cli.folder} holds a finished run; delete it, name another with --trainer.default_root_dir, or "
            f"see its results again, or train it longer, with --resume auto"
        )
    return True


def checkpoint_to_resume(cli: CLI) -> dict[str, Any] | None:
    """Returns the checkpoint to go on from and its path as "path"; None for the start.

    Raises RunError where a start would overwrite a run, or the checkpoint is of another one.
    """
    if cli.resume is None and checkpoints_in(cli.folder):
        raise RunError(
            f"{cli.folder} holds a run that did not finish: go on with it with --resume auto, delete it, or "
            f"name another with --trainer.default_root_dir"
        )
    if cli.resume is None:
        return None
    path = newest(cli.folder) if cli.resume == "auto" else Path(cli.resume)
    own = [checkpoint.resolve() for checkpoint in checkpoints_in(cli.folder)]
    if own and path is not None and path.resolve() not in own:
        raise RunError(
            f"{cli.folder} holds a run, which going on from {path} would overwrite; delete it, or name "
            f"another folder with --trainer.default_root_dir"
        )
    return None if path is None else {**check_checkpoint(path, cli.settings()), "path": path}


def train(cli: CLI, checkpoint: dict[str, Any] | None) -> dict[str, Mapping[str, float]]:
    """Trains, from a checkpoint or from the start, and tests.

    Returns the scores of validation and, where the data have one, of the test.
    """
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if checkpoint is not None:
        rows = parse(checkpoint["metrics"])[1]
        rewind(trainer.loggers, trainer.default_root_dir, checkpoint["loggers"], rows)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint and checkpoint["path"])
    except MisconfigurationException as error:
        raise RunError(str(error)) from error
    except RuntimeError as error:
        if "Early stopping conditioned on metric" not in str(error):
            raise
        raise RunError(
            "EarlyStopping has no score to compare: no validation came before the end of an epoch or of the "
            "training; raise trainer.max_steps, lower trainer.val_check_interval or leave the callback out"
        ) from error
    if cli.checkpoints.best is not None:
        model.load_state_dict(cli.checkpoints.best)
    elif not trainer.fast_dev_run:
        monitor = cli.checkpoints.monitor
        if monitor in {**trainer.callback_metrics, **(checkpoint or {}).get("scores", {})}:
            raise RunError(
                f"{monitor} was never finite, so no weights can be chosen: the training diverges; start it "
                f"anew with a lower --model.learning_rate or --trainer.gradient_clip_val"
            )
        if trainer.global_step == 0:
            raise RunError("nothing was trained: trainer.max_epochs and trainer.max_steps must allow a step")
        log.warning("no validation came before the end, so the weights of the last step are the chosen ones")
        cli.checkpoints.best_epoch = trainer.current_epoch
    loggers, trainer.loggers = trainer.loggers, []  # the validation that chose the weights is logged already
    (validation,) = trainer.validate(model, datamodule=data, verbose=False)
    trainer.loggers = [logger for logger in loggers if logger is not cli.checkpoints.metrics]
    scores = {"validation": validation}
    if "test" in data.splits:
        (scores["test"],) = trainer.test(model, datamodule=data, verbose=False)
    return scores


def report(cli: CLI, scores: dict[str, Mapping[str, float]]) -> None:
    """Writes the picture, the model and, last, the results into the run's folder, and prints them."""
    model, data, folder = cli.model, cli.datamodule, cli.folder
    found = results(cli.trainer, model, data, cli.clock, scores, cli.checkpoints.best_epoch)
    found["command"] = shlex.join(["python", *sys.argv])
    draw_curves(folder / METRICS, folder / CURVES)
    started = {} if model.started is None else {"started_from": model.started._asdict()}
    model.rnn.save(folder / MODEL, **data.about(), **started)
    write_results(folder / RESULTS, found)
    print_results(found, model.remarks(data), Console())
    print(folder / RESULTS)


def add_page(cli: CLI, page: Callable[..., Path]) -> None:
    """Adds the page to a finished run. A failure is one warning: the run has all its results."""
    try:
        print(page(cli.folder, cli.datamodule))
    except Exception as error:
        log.warning(
            "the page of %s could not be made (%s: %s); the run is complete; scripts/page.py makes it again",
            cli.folder, type(error).__name__, error,
        )  # fmt: skip


def report_again(folder: Path) -> None:
    """Prints a finished run's results."""
    found, _ = read_finished(folder)
    remarks, console = [f"{folder} holds this finished run; nothing was left to do."], Console()
    try:
        with console.capture() as printed:
            print_results(found, remarks, console)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder, RESULTS) from error
    print(printed.get(), end="")
    print(folder / RESULTS)


def configure_output() -> None:
    """Prints one plain line a message, without Lightning's advertisements and advice that does not apply."""
    level = logging.INFO if rank_zero_only.rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    for package in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{package}.utilities.rank_zero").addFilter(
            # A lower precision of products is chosen by trainer.precision.
            lambda record: not re.search("Tip:|set_float32_matmul_precision", record.getMessage())
        )
    for message in (
        ".*does not have many workers.*",  # a batch is ready in 1 ms
        "LightningCLI's args parameter",  # `entry.config_first` changes the arguments
        ".*recommended to use `self.log.*sync_dist",  # `Classifier` sums over processes itself
        ".*treespec, LeafSpec.*",  # Lightning's own, under torch 2.13
    ):
        warnings.filterwarnings("ignore", message=message)
