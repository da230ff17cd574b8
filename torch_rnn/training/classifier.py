"""Classifier: the LightningModule that trains an RNN. logits -> loss -> metrics, the optimiser, the logs."""

import math
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from torch_rnn.data.batches import Batch
from torch_rnn.data.datamodule import SequenceData
from torch_rnn.errors import RunError, diverged
from torch_rnn.losses import cross_entropy, most_probable, most_probable_label
from torch_rnn.nn.module import RNN
from torch_rnn.ops.inputs import real_steps, trusted

WARMUP = 0.05
"""The fraction of the steps in which the learning rate of the cosine schedule grows from zero."""


class Classifier(LightningModule):
    """Trains an RNN by cross-entropy; gradients are clipped by the Trainer (`gradient_clip_val`).

    It logs for each split the loss in nats and the accuracy, both over all scored outputs; where a label is a
    distribution, its most probable class counts as the right one. Every
    `log_every_n_steps` it also logs the batch's loss and the gradient's norm before clipping.

    Args:
        input_size: the number of ids, or the width of a float input; the data sets it.
        hidden_size: H, the size of the state.
        output_size: the number of outputs; null for what the classes need: 1 for two of them.
        num_layers: the number of recurrences on top of each other.
        bidirectional: gives each layer a second recurrence, from the last step to the first.
        nonlinearity: of the recurrence.
        dropout: the probability of zeroing each number that a layer passes to the next.
        recurrent_dropout: the probability of zeroing each entry of Whh, drawn anew in each step of training.
        readout: what the outputs are read from: the "last" state, the "mean" or "max" of the states at real
            steps, or "every" state.
        init: "orthogonal" for semi-orthogonal matrices (Saxe et al., 2014), "seed" for normal * 0.01.
        backend: "auto", or one of eager, bptt, cpu, cuda, triton and cudnn.
        optimizer: "adam" (Kingma and Ba, 2015), "adamw" (Loshchilov and Hutter, 2019) or "sgd", plain descent
            as in the article.
        learning_rate: of every step, or the highest one of the "cosine" schedule.
        schedule: "constant", or "cosine": linear growth in the first 5 % of the steps, then half a cosine
            down to zero (Loshchilov and Hutter, 2017, without restarts).
        weight_decay: the fraction of each matrix that "adamw" subtracts in a step, times the learning rate;
            biases do not decay.
        n_classes: the number of classes of the data.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = 1,
        num_layers: int = 1,
        bidirectional: bool = False,
        nonlinearity: Literal["tanh", "relu", "linear"] = "tanh",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        readout: Literal["last", "mean", "max", "every"] = "last",
        init: Literal["orthogonal", "seed"] = "orthogonal",
        backend: str = "auto",
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        learning_rate: float = 0.001,
        schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        n_classes: int = 2,
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
        self.rnn = RNN(
            input_size,
            hidden_size,
            (1 if n_classes == 2 else n_classes) if output_size is None else output_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            nonlinearity=nonlinearity,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            readout=readout,
            init=init,
            backend=backend,
        )
        self.optimizer, self.weight_decay = optimizer, weight_decay
        self.learning_rate, self.schedule = learning_rate, schedule
        self._sums: dict[str, list[Tensor | int]] = {}
        self.scored: dict[str, int] = {}  # the number of outputs behind the last metrics of each split

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.rnn(x, lengths)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = self._stacked("train") if "train" in self._sums else torch.zeros(3, dtype=torch.double)
        checkpoint["sums"] = self.all_gather(sums).reshape(-1, 3)  # one row for each process

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = checkpoint["sums"].to(self.device)
        if len(sums) != self.trainer.world_size:  # the first process takes over all of them
            sums = torch.stack([sums.sum(dim=0), *[sums[0] * 0] * (self.trainer.world_size - 1)])
        self._sums = {"train": list(sums[self.trainer.global_rank])}
        # Lightning makes a model float64 only after it has read the weights, and would round them.
        self.rnn.to(checkpoint["state_dict"]["rnn.Why"].dtype)

    def training_step(self, batch: Batch, step: int) -> Tensor:
        total, scored = self._score("train", batch)
        scored = scored if batch.scored is None else batch.scored
        world = self.trainer.world_size
        # DDP takes the mean over the processes; this makes it the mean over the outputs of the whole batch.
        loss = total * world / (max(scored, 1) if isinstance(scored, int) else scored.clamp(min=1))
        logs = self._logs_this_step()
        if logs or (world == 1 and loss.device.type == "cpu"):  # reading it makes the host wait elsewhere
            mean = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean") if world > 1 else loss
            if not math.isfinite(mean.item()):
                raise diverged("the loss", self.trainer.global_step + 1)
            if logs:
                self.log("train/batch_loss", mean, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, step: int) -> None:
        self._score("validation", batch)

    def test_step(self, batch: Batch, step: int) -> None:
        self._score("test", batch)

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
        matrices = [parameter for parameter in self.parameters() if parameter.dim() > 1]
        biases = [parameter for parameter in self.parameters() if parameter.dim() == 1]
        fused = (
            "mixed" not in self.trainer.precision
        )  # Lightning cannot clip the scaled gradients of a fused one
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), lr=self.learning_rate)
        elif self.optimizer == "adam":
            optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=fused)
        else:
            groups = [
                {"params": matrices, "weight_decay": self.weight_decay},
                {"params": biases, "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, fused=fused)
        if self.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise RunError(
                "schedule is cosine; it needs a length: set trainer.max_epochs or trainer.max_steps"
            )
        schedule = LambdaLR(optimizer, lambda step: cosine(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _score(self, split: str, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """Returns the summed loss of this process's outputs and their number, and adds both to the sums."""
        x, lengths, labels, *_ = batch
        # SequenceData has checked all values once.
        with trusted() if isinstance(self.trainer.datamodule, SequenceData) else nullcontext():
            logits = self.rnn(x, lengths)
            losses = cross_entropy(logits, labels)
        hits = most_probable(logits) == most_probable_label(labels)
        if self.rnn.readout == "every":
            real = real_steps(lengths, x.shape[1])
            losses, hits, scored = losses.masked_fill(~real, 0), hits & real, lengths.sum()
        else:
            scored = losses.numel()
        loss = losses.sum()
        sums = self._sums.setdefault(split, [0, 0, 0])
        for i, value in enumerate((loss.detach().double(), hits.sum(), scored)):
            sums[i] = sums[i] + value
        return loss, scored

    def _log_means(self, split: str, prog_bar: bool = False) -> None:
        if split not in self._sums:  # no batch
            return
        sums = self._stacked(split)
        del self._sums[split]
        loss, hits, scored = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.scored[split] = int(scored)
        self.log(f"{split}/loss", (loss / scored).float(), prog_bar=prog_bar)
        self.log(f"{split}/accuracy", (hits / scored).float(), prog_bar=prog_bar)

    def _stacked(self, split: str) -> Tensor:
        """Returns the split's sums (3,) in float64."""
        return torch.stack([torch.as_tensor(sum, device=self.device).double() for sum in self._sums[split]])

    def _logs_this_step(self) -> bool:
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0


def cosine(step: int, steps: int) -> float:
    """Returns the learning rate's factor at a step: linear from 0 to 1, then half a cosine from 1 to 0."""
    warmup = WARMUP * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
