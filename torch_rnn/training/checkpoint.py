"""Checkpoints: a run that is killed at any moment goes on, and ends in the same bits.

A checkpoint is the whole run after one step: weights, optimiser, loops, sums, curves and the best weights so
far; beside it nothing is needed but the data. Order and randomness are functions of (seed, epoch, step), so
that no generator has a state that could be lost.

The file is what torch.save writes. Its zip comment is "sha256 " and the digest of all bytes before it, since
torch.load itself reads a flipped bit in silence. A new one is written beside the last one and flushed to the
disk before it takes its name; the last one is then the previous one.
"""

import hashlib
import io
import logging
import math
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from torch_rnn.errors import RunError, diverged
from torch_rnn.files import write_atomically
from torch_rnn.training.metrics import Metrics
from torch_rnn.training.signals import Stop, Stopped

log = logging.getLogger(__name__)
FOLDER, LAST, PREVIOUS = "checkpoints", "last.ckpt", "previous.ckpt"
MARK = b"sha256 "
COMMENT = len(MARK) + 64
ASK_SECONDS = 0.5
"""Between two questions of several processes to each other."""
BETTER = {"validation/accuracy": 1.0, "validation/loss": -1.0}
"""What may be monitored, and the sign with which more of it is better."""


def write_checkpoint(path: str | os.PathLike, checkpoint: Mapping[str, Any]) -> None:
    """Writes a signed checkpoint at `path`; a valid one that stood there is kept beside it as previous.ckpt.

    Raises RunError where the disk does not take it: then both files are as they were.
    """
    path, buffer = Path(path), io.BytesIO()
    torch.save(checkpoint, buffer)
    blob = buffer.getvalue()[:-2] + COMMENT.to_bytes(2, "little")  # the comment's length ends a zip file
    signed = blob + MARK + hashlib.sha256(blob).hexdigest().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        keep = path.with_name(PREVIOUS) if _is_valid(path) else None
        write_atomically(path, lambda part: part.write_bytes(signed), keep=keep)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); the checkpoint before it is untouched: make room, "
            f"then go on with --resume auto"
        ) from error


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU. No pickled code is run, whatever the file holds.

    Raises RunError naming the file where it cannot be read, is no checkpoint, or one bit of it has changed.
    """
    contents = _verified(Path(path))
    try:
        return torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise RunError(
            f"{path} is not a checkpoint of torch_rnn: it holds more than tensors and numbers"
        ) from error


def check_run(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises RunError where the file is no valid checkpoint of a run with these settings."""
    checkpoint = read_checkpoint(path)
    if "settings" not in checkpoint:
        raise RunError(f"{path} is not a checkpoint of a training run; name one that a run has left")
    refuse_another_run(checkpoint["settings"], settings)


def newest(folder: Path) -> Path | None:
    """The newest valid checkpoint of a run's folder, None where it has none; the log says which are refused.

    Raises RunError where it has checkpoints and none of them is valid.
    """
    refused = []
    for path in checkpoints_in(folder):
        try:
            read_checkpoint(path)
        except RunError as error:
            refused.append(str(error))
            log.warning("refused: %s", error)
        else:
            return path
    if refused:
        raise RunError(f"{'; '.join(refused)}; no other is left: to start anew, delete {folder}")
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, valid or not, the newest first."""
    return [path for name in (LAST, PREVIOUS) if (path := folder / FOLDER / name).exists()]


def _verified(path: Path) -> bytes:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); name a checkpoint that a run has left"
        ) from error
    blob, comment = contents[:-COMMENT], contents[-COMMENT:]
    if comment != MARK + hashlib.sha256(blob).hexdigest().encode():
        raise RunError(f"{path} is damaged, cut short or no checkpoint: its SHA-256 is not the one it names")
    return contents


def _is_valid(path: Path) -> bool:
    try:
        return bool(_verified(path))
    except RunError:
        return False


class SignedIO(CheckpointIO):
    """How Lightning's Trainer writes and reads checkpoints: signed, whole, and without pickled code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        write_checkpoint(path, checkpoint)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Saves the run while it trains, and keeps the weights that validation found best.

    monitor   what is best: the highest validation/accuracy or the lowest validation/loss.
    seconds   after so long the next step is followed by a checkpoint, so that a kill costs at most these
              seconds, and the validation that it falls into; 0 for one after every step, or with several
              processes after about half a second.

    Who makes the Trainer sets seed, stop, metrics and settings: the seed of the steps' randomness, the
    signals to obey, the curves to save, and what a run must have in common with a checkpoint to resume it.
    """

    def __init__(
        self,
        monitor: Literal["validation/accuracy", "validation/loss"] = "validation/accuracy",
        seconds: float = 30.0,
    ):
        if monitor not in BETTER:
            raise ValueError(f"monitor is {monitor!r}; it must be {' or '.join(BETTER)}")
        if not 0 <= seconds <= 60:
            raise ValueError(f"seconds is {seconds}; it must be in 0..60")
        self.monitor, self.seconds = monitor, seconds
        self.best: dict[str, Tensor] | None = None
        self.score = -float("inf")
        self.seed = 0
        self.stop = Stop()
        self.metrics: Metrics | None = None
        self.settings: dict[str, Any] = {}
        self._saved_at = 0.0
        self._trained = False
        self._known: dict[str, Tensor] = {}
        self._group: Any = None
        self._unasked, self._ask_after, self._asked_at = 0, 1, 0.0
        self._data: dict[str, str] = {}

    def setup(self, trainer: Trainer, model: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._data = trainer.datamodule.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.score = state_dict["best"], state_dict["score"]

    def on_save_checkpoint(
        self, trainer: Trainer, model: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["settings"], checkpoint["data"] = self.settings, self._data
        checkpoint["metrics"] = self.metrics.text() if self.metrics else ""
        checkpoint["trained"] = self._trained
        checkpoint["known"] = dict(trainer.callback_metrics)  # what early stopping looks at
        loops = checkpoint["loops"]["fit_loop"]
        if trainer.validating:
            _go_on_with_validation(loops)
        elif not self._trained:
            _go_on_with_the_next_step(loops)

    def on_load_checkpoint(
        self, trainer: Trainer, model: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        refuse_another_run(checkpoint["data"], self._data)
        if self.metrics:
            self.metrics.restore(checkpoint["metrics"])
        trainer.should_stop = checkpoint["trained"]
        self._known = checkpoint["known"]

    def on_train_start(self, trainer: Trainer, model: LightningModule) -> None:
        # The loader may have been made before the checkpoint was read, and then has not heard where to begin.
        trainer.fit_loop._load_combined_loader_states()
        trainer.callback_metrics.update(self._known)
        self.stop.wait_for_the_step()
        self._saved_at = self._asked_at = time.monotonic()

    def on_train_batch_start(
        self, trainer: Trainer, model: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Here all that belongs to the steps before has been done, validation and curves included."""
        between_steps = batch_idx % trainer.accumulate_grad_batches == 0 and trainer.global_step > 0
        if between_steps and (asked := self._asked(trainer, self.seconds)):
            self._save(trainer, model, asked)
        seed_step(self.seed, trainer.fit_loop.epoch_loop.total_batch_idx, model.device)

    def on_validation_start(self, trainer: Trainer, model: LightningModule) -> None:
        self.stop.listen()
        # A validation may be long: the steps before it shall not be lost with it.
        if _is_in_fit(trainer) and (asked := self._asked(trainer, self.seconds / 10, at_once=True)):
            self._save(trainer, model, asked)

    def on_test_start(self, trainer: Trainer, model: LightningModule) -> None:
        self.stop.listen()

    def on_validation_batch_end(self, trainer: Trainer, model: LightningModule, *_: Any) -> None:
        if _is_in_fit(trainer) and (asked := self._asked(trainer)):
            self._save(trainer, model, asked)

    def on_validation_end(self, trainer: Trainer, model: LightningModule) -> None:
        if not _is_in_fit(trainer):
            return
        self._ask_after = 1  # steps have another pace
        score = BETTER[self.monitor] * float(trainer.callback_metrics[self.monitor])
        if score > self.score:
            self.score = score
            self.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def on_train_end(self, trainer: Trainer, model: LightningModule) -> None:
        self._trained = True
        self._save(trainer, model, self._asked(trainer, at_once=True))
        self.stop.waits = False

    def on_exception(self, trainer: Trainer, model: LightningModule, exception: BaseException) -> None:
        self.stop.waits = False

    def _asked(self, trainer: Trainer, seconds: float = math.inf, at_once: bool = False) -> int:
        """The signal that has come, else 1 if nothing was saved for so many seconds, else 0.

        Several processes ask each other at the same step, about every half a second or at once, and go by the
        same answer: a signal to any of them is one to all, and when to save the first one says.
        """
        mine = self.stop.requested or int(
            time.monotonic() - self._saved_at >= seconds and trainer.is_global_zero
        )
        if trainer.world_size == 1:
            return mine
        self._unasked += 1
        if self._unasked < self._ask_after and not at_once:
            return 0
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")  # so that no GPU is waited for
        now = time.monotonic()
        fitting = max(1, int(ASK_SECONDS * self._unasked / max(now - self._asked_at, 1e-9)))
        answers = torch.tensor([mine, -fitting])
        torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MAX, group=self._group)
        self._unasked, self._ask_after, self._asked_at = 0, 1 if at_once else -int(answers[1]), now
        return int(answers[0])

    def _save(self, trainer: Trainer, model: LightningModule, asked: int) -> None:
        """Writes a checkpoint. Raises Stopped where it was a signal that asked for it."""
        if not trainer.fast_dev_run:
            if not all(parameter.isfinite().all() for parameter in model.parameters()):
                raise diverged("a weight", trainer.global_step)
            trainer.save_checkpoint(Path(trainer.default_root_dir, FOLDER, LAST), weights_only=False)
        self._saved_at = time.monotonic()
        if asked > 1:
            self.stop.waits = False
            raise Stopped(asked, trainer.global_step)


def _is_in_fit(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Makes the randomness of a step, dropout for instance, a function of (seed, step)."""
    state = _mixed(_mixed(seed) + step)
    torch.default_generator.manual_seed(state)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(state)


def _mixed(z: int) -> int:
    """SplitMix64 (Steele, Lea and Flood, 2014): 64 bits, each of which depends on every bit of z."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def refuse_another_run(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises RunError where a checkpoint's settings or data are not those of this run, naming the first."""
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise RunError(
                f"{name} is {ours.get(name)} and was {theirs.get(name)} when the run began; go on with its "
                f"own settings, or start another with --trainer.default_root_dir"
            )


def _go_on_with_the_next_step(loops: dict[str, Any]) -> None:
    """Lightning's loops, which have just begun a step, as after the step before it, and nothing left open."""
    batches = loops["epoch_loop.batch_progress"]
    total, current = batches["total"]["completed"], batches["current"]["completed"]
    batches["current"] = dict.fromkeys(batches["current"], current)
    # Were all of these equal, Lightning would think that a validation has just ended, and count a step more.
    batches["total"] = dict.fromkeys(batches["total"], total) | {"started": total - 1}
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # it is counted again at the start
    loops["state_dict"]["combined_loader"] = [{"step": current}]


def _go_on_with_validation(loops: dict[str, Any]) -> None:
    """Lightning's loops, amid a validation, as at its start; with no batch begun, it would be skipped."""
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["current"] = dict.fromkeys(validation["current"], 0)
    validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validation["is_last_batch"] = False
    batches = loops["epoch_loop.batch_progress"]
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["completed"])
    step = 0 if batches["is_last_batch"] else batches["current"]["completed"]  # 0 of the next epoch
    loops["state_dict"]["combined_loader"] = [{"step": step}]
