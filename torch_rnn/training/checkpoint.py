"""Checkpoints: a run that is killed at any moment goes on, and ends in the same bits.

A checkpoint is the whole run after one step: weights, optimiser, loops, sums, curves and the best weights so
far. To go on, a run needs nothing else but the data: order and randomness are functions of (seed, epoch,
step), so that no generator has a state that could be lost.
"""

import math
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from torch_rnn.errors import diverged
from torch_rnn.training.agreement import Agreement
from torch_rnn.training.checkpoint_file import FOLDER, LAST
from torch_rnn.training.lightning_state import continue_with_next_step, continue_with_validation
from torch_rnn.training.loggers import logs
from torch_rnn.training.metrics import Metrics
from torch_rnn.training.resume import check_same_data, is_longer
from torch_rnn.training.seeding import seed_step
from torch_rnn.training.signals import Stop, Stopped
from torch_rnn.training.trainer_settings import check_length

SIGNS = {"validation/accuracy": 1.0, "validation/loss": -1.0}
"""What may be monitored; the sign makes higher better."""


class Checkpoints(Checkpoint):
    """Saves the run while it trains, and keeps the weights that validation found best.

    The CLI sets seed (of the steps' randomness), stop (the signals to obey), metrics (the curves to save) and
    settings (those that a checkpoint must share with the run that resumes it).

    Args:
        monitor: the score of the best weights, the highest validation/accuracy or the lowest validation/loss.
        seconds: the time between checkpoints, 0..60; 0 for one after every step (with several processes,
            after about half a second). A kill costs at most this time and the validation in which it happens.
    """

    def __init__(
        self,
        monitor: Literal["validation/accuracy", "validation/loss"] = "validation/accuracy",
        seconds: float = 30.0,
    ):
        if monitor not in SIGNS:
            raise ValueError(f"monitor is {monitor!r}; it must be {' or '.join(SIGNS)}")
        if not 0 <= seconds <= 60:
            raise ValueError(f"seconds is {seconds}; it must be in 0..60")
        self.monitor, self.seconds = monitor, seconds
        self.best: dict[str, Tensor] | None = None
        self.score, self.best_epoch = (-math.inf, -math.inf), 0
        self.seed = 0
        self.stop = Stop()
        self.metrics: Metrics | None = None
        self.settings: dict[str, Any] = {}
        self._saved_at = 0.0
        self._trained = self._stopped_early = False
        self._restored_scores: dict[str, Tensor] = {}
        self._agreement = Agreement()
        self._data: dict[str, str] = {}

    def setup(self, trainer: Trainer, model: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._data = trainer.datamodule.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "score": self.score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.score = state_dict["best"], tuple(state_dict["score"])
        self.best_epoch = state_dict["best_epoch"]

    def on_save_checkpoint(
        self, trainer: Trainer, model: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["settings"], checkpoint["data"] = self.settings, self._data
        checkpoint["metrics"] = self.metrics.text() if self.metrics else ""
        checkpoint["loggers"] = logs(trainer.loggers, trainer.default_root_dir)
        checkpoint["trained"], checkpoint["stopped_early"] = self._trained, self._stopped_early
        checkpoint["scores"] = dict(trainer.callback_metrics)  # early stopping compares them
        loops = checkpoint["loops"]["fit_loop"]
        if trainer.validating:
            continue_with_validation(loops)
        elif not self._trained:
            continue_with_next_step(loops)

    def on_load_checkpoint(
        self, trainer: Trainer, model: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        check_same_data(checkpoint["data"], self._data)
        if self.metrics:
            self.metrics.restore(checkpoint["metrics"])
        longer = is_longer(checkpoint["settings"], self.settings)
        trainer.should_stop = checkpoint["trained"] and not longer
        self._restored_scores = checkpoint["scores"]

    def on_train_start(self, trainer: Trainer, model: LightningModule) -> None:
        check_length(trainer)
        # A loader that was made before the checkpoint was read does not know yet at which batch to begin.
        trainer.fit_loop._load_combined_loader_states()
        trainer.callback_metrics.update(self._restored_scores)
        self.stop.wait_for_the_step()
        self._saved_at = time.monotonic()
        self._agreement.start()

    def on_train_batch_start(
        self, trainer: Trainer, model: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves here, because here the steps before are complete, with their validation and curves."""
        between_steps = batch_idx % trainer.accumulate_grad_batches == 0 and trainer.global_step > 0
        if between_steps and (reason := self._reason_to_save(trainer, self.seconds)):
            self._save(trainer, model, reason)
        seed_step(self.seed, trainer.fit_loop.epoch_loop.total_batch_idx, model.device)

    def on_validation_start(self, trainer: Trainer, model: LightningModule) -> None:
        self.stop.listen()
        # A validation may be long: a kill within it must not cost the steps before it too.
        if _is_in_fit(trainer) and (reason := self._reason_to_save(trainer, self.seconds / 10, at_once=True)):
            self._save(trainer, model, reason)

    def on_test_start(self, trainer: Trainer, model: LightningModule) -> None:
        self.stop.listen()

    def on_validation_batch_end(self, trainer: Trainer, model: LightningModule, *_: Any) -> None:
        if _is_in_fit(trainer) and (reason := self._reason_to_save(trainer)):
            self._save(trainer, model, reason)

    def on_validation_end(self, trainer: Trainer, model: LightningModule) -> None:
        if not _is_in_fit(trainer):
            return
        self._agreement.soon()
        scores = trainer.callback_metrics
        loss = float(scores["validation/loss"].nan_to_num(math.inf))
        score = SIGNS[self.monitor] * float(scores[self.monitor]), -loss
        if score > self.score:
            self.score, self.best_epoch = score, trainer.current_epoch + 1
            self.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def on_train_end(self, trainer: Trainer, model: LightningModule) -> None:
        self._trained, self._stopped_early = True, trainer.should_stop
        self._save(trainer, model, self._reason_to_save(trainer, at_once=True))
        self.stop.waits = False

    def on_exception(self, trainer: Trainer, model: LightningModule, exception: BaseException) -> None:
        self.stop.waits = False

    def _reason_to_save(self, trainer: Trainer, seconds: float = math.inf, at_once: bool = False) -> int:
        """Returns the number of a signal that came, else 1 if nothing was saved for so long, else 0.

        All processes get the same answer at the same step: a signal to one of them counts for all, and the
        first one measures the time. at_once makes them exchange it now.
        """
        late = trainer.is_global_zero and time.monotonic() - self._saved_at >= seconds
        reason = self.stop.requested or int(late)
        return reason if trainer.world_size == 1 else self._agreement.highest(reason, at_once=at_once)

    def _save(self, trainer: Trainer, model: LightningModule, reason: int) -> None:
        """Writes a checkpoint. Raises Stopped where the reason is a signal."""
        if not trainer.fast_dev_run:
            if not all(parameter.isfinite().all() for parameter in model.parameters()):
                raise diverged("a weight", trainer.global_step)
            trainer.save_checkpoint(Path(trainer.default_root_dir, FOLDER, LAST), weights_only=False)
        self._saved_at = time.monotonic()
        if reason > 1:
            self.stop.waits = False
            raise Stopped(reason, trainer.global_step)


def _is_in_fit(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking
