"""TrainedRNN: the base of the LightningModules. It has the optimiser, the metrics and the logs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from torch_rnn.errors import RunError, diverged
from torch_rnn.nn.module import RNN
from torch_rnn.training.graphed import GraphedPasses, GraphedUpdate
from torch_rnn.training.start import Started

WARMUP = 0.05
"""The fraction of the steps in which the learning rate of the cosine schedule grows from zero."""


class TrainedRNN(LightningModule):
    """Optimises an RNN by the mean loss of its outputs; gradients are clipped by the Trainer.

    A subclass sets `rnn` and `n_sums`, adds the sums of each batch with `_add`, and turns the sums of a split
    into metrics in `_means`. The settings are described in `Classifier`.
    """

    rnn: RNN
    n_sums: int
    """The number of sums of the split train; the last one counts the scored outputs."""
    scores: tuple[str, ...]
    """The metrics that may be monitored."""

    def __init__(
        self,
        optimizer: str,
        learning_rate: float,
        schedule: str,
        weight_decay: float,
        start_from: str | None = None,
        start_learning_rate: float | None = None,
        cuda_graph: bool = False,
    ):
        super().__init__()
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0")
        if optimizer not in ("adam", "adamw", "sgd"):
            raise ValueError(f"optimizer is {optimizer!r}; it must be adam, adamw or sgd")
        if schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule is {schedule!r}; it must be constant or cosine")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
        if weight_decay and optimizer != "adamw":
            raise ValueError(
                f"weight_decay is {weight_decay}; {optimizer} has none, it must be 0 or with adamw"
            )
        if start_learning_rate is not None and start_from is None:
            raise ValueError(
                f"start_learning_rate is {start_learning_rate}, and start_from is null; set both"
            )
        if start_learning_rate is not None and not 0 <= start_learning_rate < math.inf:
            raise ValueError(f"start_learning_rate is {start_learning_rate}; it must be at least 0")
        self.optimizer, self.weight_decay = optimizer, weight_decay
        self.start_from, self.start_learning_rate = start_from, start_learning_rate
        self.started: Started | None = None
        self.cuda_graph = cuda_graph
        self._graphed: GraphedPasses | None = None
        self._update: GraphedUpdate | None = None
        self.learning_rate, self.schedule = learning_rate, schedule
        self._sums: dict[str, list[Tensor | int]] = {}
        self.scored: dict[str, int] = {}  # the number of outputs behind the last metrics of each split

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        n = self.n_sums
        sums = self._stacked("train") if "train" in self._sums else torch.zeros(n, dtype=torch.double)
        checkpoint["sums"] = self.all_gather(sums).reshape(-1, n)  # one row for each process

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = checkpoint["sums"].to(self.device)
        if len(sums) != self.trainer.world_size:  # the first process takes over all of them
            sums = torch.stack([sums.sum(dim=0), *[sums[0] * 0] * (self.trainer.world_size - 1)])
        self._sums = {"train": list(sums[self.trainer.global_rank])}
        # Lightning makes a model float64 only after it has read the weights, and would round them.
        self.rnn.to(checkpoint["state_dict"]["rnn.Why"].dtype)

    def remarks(self, data: LightningDataModule) -> list[str]:
        """Returns sentences for the report, beside the metrics."""
        return data.remarks(self.rnn)

    def on_fit_start(self) -> None:
        self._graphed = self._update = None  # Lightning has moved the parameters to the device

    def on_train_epoch_end(self) -> None:
        self._log_means("train")

    def on_validation_epoch_end(self) -> None:
        self._log_means("validation", prog_bar=True)

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._logs_this_step():
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            self.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))

    def configure_optimizers(self):
        # Lightning cannot clip the scaled gradients of a fused one; None leaves PyTorch its next fastest.
        fused = None if "mixed" in self.trainer.precision else True
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(self._groups(), lr=self.learning_rate)
        elif self.optimizer == "adam":
            optimizer = torch.optim.Adam(self._groups(), lr=self.learning_rate, fused=fused)
        else:
            optimizer = torch.optim.AdamW(self._groups(), lr=self.learning_rate, fused=fused)
        if self.schedule == "constant":
            return optimizer
        self.check_length(self.trainer)
        steps = self.trainer.estimated_stepping_batches
        schedule = LambdaLR(optimizer, lambda step: cosine(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def check_length(self, trainer: Trainer) -> None:
        """Raises RunError where the schedule needs a length and the trainer sets none."""
        if self.schedule == "cosine" and trainer.max_epochs == trainer.max_steps == -1:
            raise RunError(
                "schedule is cosine; it needs a length: set trainer.max_epochs or trainer.max_steps"
            )

    def _groups(self) -> list[dict[str, Any]]:
        """Returns the parameters in groups of one learning rate and one weight decay each."""
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.rnn.named_parameters():
            decay = self._decay(name) if parameter.dim() > 1 else 0.0
            groups.setdefault((self._rate(name), decay), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]

    def _rate(self, name: str) -> float:
        """Returns the learning rate of the parameter with this name."""
        taken = self.started.taken if self.started and self.start_learning_rate is not None else ()
        return self.start_learning_rate if name in taken else self.learning_rate

    def _decay(self, name: str) -> float:
        """Returns the weight decay of the matrix with this name."""
        return self.weight_decay

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._graphed is None:
            super().backward(loss, *args, **kwargs)
        else:
            self._graphed.assign_gradients()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self._update is None:
            self._clip(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:  # the optimiser does nothing where it finds no gradient; `optimizer_step` replays the update
            optimizer.zero_grad()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._graphed is None:
            return
        self._graphed.assign_gradients()
        if self._update is not None:
            self._update()
        else:  # the first step of a fit was made as usual
            plain, limit = optimizer.optimizer, self.trainer.gradient_clip_val
            clip = functools.partial(self._clip, plain, limit, self.trainer.gradient_clip_algorithm)
            self._update = GraphedUpdate(plain, clip)

    def _clip(self, optimizer: torch.optim.Optimizer, limit: float | None, algorithm: str | None) -> None:
        """Clips the gradients as the Trainer's settings say."""
        self.clip_gradients(optimizer, limit, algorithm)

    def _passes(self, *arguments: Tensor | int | None) -> tuple[Tensor | int, ...]:
        """Returns the loss of a training step and, without a gradient, what else is needed of it."""
        raise NotImplementedError

    def _step(self, *arguments: Tensor | int | None) -> tuple[Tensor | int, ...]:
        """Returns `_passes(*arguments)`; with cuda_graph it computes the gradients, too."""
        if not self.cuda_graph:
            return self._passes(*arguments)
        if self._graphed is None:
            self._graphed = GraphedPasses(self._passes, list(self.rnn.parameters()))
        return self._graphed(*arguments)

    def _mean(self, total: Tensor, scored: int | Tensor) -> Tensor:
        """Returns the loss of a training step from the summed loss of this process and the outputs of all."""
        # DDP takes the mean over the processes; this makes it the mean over the outputs of the whole batch.
        total = total * self.trainer.world_size
        return total / (max(scored, 1) if isinstance(scored, int) else scored.clamp(min=1))

    def _checked(self, loss: Tensor) -> Tensor:
        """Returns the loss of a training step, and logs it. Raises RunError where it is not finite."""
        world = self.trainer.world_size
        logs = self._logs_this_step()
        if logs or (world == 1 and loss.device.type == "cpu"):  # reading it makes the host wait elsewhere
            mean = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean") if world > 1 else loss
            if not math.isfinite(mean.item()):
                raise diverged("the loss", self.trainer.global_step + 1)
            if logs:
                self.log("train/batch_loss", mean, prog_bar=True)
        return loss

    def _add(self, split: str, *values: Tensor | int) -> None:
        """Adds a batch's values to the sums of the split; floats are added in float64."""
        sums = self._sums.setdefault(split, [0] * len(values))
        for i, value in enumerate(values):
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            sums[i] = sums[i] + (value.detach().double() if is_float else value)

    def _means(self, *sums: Tensor) -> dict[str, Tensor]:
        """Returns the metrics of a split from its sums over all processes."""
        raise NotImplementedError

    def _log_means(self, split: str, prog_bar: bool = False) -> None:
        if split not in self._sums:  # no batch
            return
        sums = self._stacked(split)
        del self._sums[split]
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.scored[split] = int(sums[-1])
        for name, mean in self._means(*sums).items():
            self.log(f"{split}/{name}", mean.float(), prog_bar=prog_bar)

    def _stacked(self, split: str) -> Tensor:
        """Returns the split's sums (n_sums,) in float64."""
        return torch.stack([torch.as_tensor(sum, device=self.device).double() for sum in self._sums[split]])

    def _logs_this_step(self) -> bool:
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0


def cosine(step: int, steps: int) -> float:
    """Returns the learning rate's factor at a step: linear from 0 to 1, then half a cosine from 1 to 0."""
    warmup = WARMUP * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
