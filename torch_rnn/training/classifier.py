"""Classifier: the LightningModule that trains an RNN on labels. logits -> loss -> metrics."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from torch_rnn.data.batches import Batch
from torch_rnn.data.datamodule import SequenceData
from torch_rnn.losses import cross_entropy, most_probable, most_probable_label
from torch_rnn.nn.members import clip_members, clip_values_of_members, joined, member_logits, rows_of_members
from torch_rnn.nn.module import RNN
from torch_rnn.ops.context import trusted
from torch_rnn.ops.inputs import real_steps
from torch_rnn.training.evidence import disagreement
from torch_rnn.training.graphed import widened
from torch_rnn.training.trained_rnn import TrainedRNN


class Classifier(TrainedRNN):
    """Trains an RNN by cross-entropy; gradients are clipped by the Trainer (`gradient_clip_val`).

    It logs for each split the loss in nats and the accuracy, both over all scored outputs; where a label is a
    distribution, its most probable class counts as the right one. With `evidence` it also logs the mean
    disagreement of the training texts, which these losses leave out. Every `log_every_n_steps` it logs the
    batch's whole loss and the gradient's norm before clipping.

    Args:
        input_size: the number of ids, or the width of a float input; the data sets it.
        hidden_size: H, the size of the state.
        output_size: the number of outputs; null for what the classes need: 1 for two of them.
        num_layers: the number of recurrences on top of each other.
        bidirectional: gives each layer a second recurrence, from the last step to the first.
        members: the number of RNNs of hidden_size / members units each, which are trained from other initial
            weights, each on its own part of every batch. Together they are one RNN, whose logits are the mean
            of theirs: its weights are in blocks. Validation, test and the saved model use it as a whole. To
            train each as long as one alone, multiply batch_size and max_epochs by members. The norm of each
            member's gradient is clipped by itself.
        nonlinearity: of the recurrence.
        dropout: the probability of zeroing each number that a layer passes to the next.
        recurrent_dropout: the probability of zeroing each entry of Whh, drawn anew in each step of training.
        readout: what the outputs are read from: the "last" state, the "mean" or "max" of the states at real
            steps, or "every" state.
        init: "orthogonal" for semi-orthogonal matrices (Saxe et al., 2014), "seed" for normal * 0.01,
            "integrator" for the former with a quarter of the units as slow sums of the others (`RNN`).
        input_scale: a factor on the initial Wxh of the first layer. The columns that "orthogonal" gives a
            large vocabulary are so short that the states of an untrained RNN are nearly linear.
        recurrent_scale: a factor on the initial Whh.
        backend: "auto", or one of eager, bptt, cpu, cuda, triton and cudnn.
        optimizer: "adam" (Kingma and Ba, 2015), "adamw" (Loshchilov and Hutter, 2019) or "sgd", plain descent
            as in the article.
        learning_rate: of every step, or the highest one of the "cosine" schedule.
        schedule: "constant", or "cosine": linear growth in the first 5 % of the steps, then half a cosine
            down to zero (Loshchilov and Hutter, 2017, without restarts).
        weight_decay: the fraction of each matrix that "adamw" subtracts in a step, times the learning rate;
            biases do not decay.
        start_from: a run's folder, or its model.safetensors, whose Wxh, Whh and bh are taken over as the
            start, and by name whatever else fits; `init` and the scales act on the other weights. It must
            have the same vocabulary.
        start_learning_rate: of the weights that are taken over; null for `learning_rate`.
        cuda_graph: replays a step as two CUDA graphs, which saves the host's time: the forward and backward
            pass, one graph for each shape of a batch, then clipping and the optimiser's update. Needs one
            GPU. A batch is padded to a multiple of 16 steps.
        n_classes: the number of classes of the data.
        evidence: the weight in the loss of the disagreement with a teacher's evidence of each step; the data
            set it.
    """

    scores = ("accuracy", "loss")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = 1,
        num_layers: int = 1,
        bidirectional: bool = False,
        members: int = 1,
        nonlinearity: Literal["tanh", "relu", "linear"] = "tanh",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        readout: Literal["last", "mean", "max", "every"] = "last",
        init: Literal["orthogonal", "seed", "integrator"] = "orthogonal",
        input_scale: float = 1.0,
        recurrent_scale: float = 1.0,
        backend: str = "auto",
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        learning_rate: float = 0.001,
        schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        start_from: str | None = None,
        start_learning_rate: float | None = None,
        cuda_graph: bool = False,
        n_classes: int = 2,
        evidence: float = 0.0,
    ):
        super().__init__(
            optimizer, learning_rate, schedule, weight_decay, start_from, start_learning_rate, cuda_graph
        )
        if members < 1 or hidden_size % members:
            raise ValueError(f"members is {members}; it must divide hidden_size, {hidden_size}, evenly")
        if members > 1 and init == "integrator" and hidden_size < 4 * members:
            raise ValueError(
                f"hidden_size is {hidden_size}; with init 'integrator' it must be at least 4 a member: "
                f"{4 * members}"
            )
        if members > 1 and start_from is not None:
            raise ValueError(f"members is {members}; with start_from it must be 1")
        self.members, self.evidence = members, evidence
        self.n_sums = 4 if evidence else 3  # of "train", see `_passes`
        rnns = [
            RNN(
                input_size,
                hidden_size // members,
                (1 if n_classes == 2 else n_classes) if output_size is None else output_size,
                num_layers=num_layers,
                bidirectional=bidirectional,
                nonlinearity=nonlinearity,
                dropout=dropout,
                recurrent_dropout=recurrent_dropout,
                readout=readout,
                init=init,
                input_scale=input_scale,
                recurrent_scale=recurrent_scale,
                backend=backend,
            )
            for _ in range(members)
        ]
        self.rnn = rnns[0] if members == 1 else joined(rnns)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.rnn(x, lengths)

    def training_step(self, batch: Batch, step: int) -> Tensor:
        x, lengths, labels, scored, _, evidence = batch
        if self.cuda_graph:
            x, evidence = widened(x), None if evidence is None else widened(evidence)
            if self.rnn.readout == "every":  # the number of steps would be another constant in each batch
                labels, scored = widened(labels), None
        loss, *sums = self._step(x, lengths, labels, scored, evidence)
        self._add("train", *sums)
        return self._checked(loss)

    def validation_step(self, batch: Batch, step: int) -> None:
        self._add("validation", *self._score_whole(*batch[:3]))

    def test_step(self, batch: Batch, step: int) -> None:
        self._add("test", *self._score_whole(*batch[:3]))

    def _passes(
        self, x: Tensor, lengths: Tensor, labels: Tensor, of_all: int | None, evidence: Tensor | None = None
    ) -> tuple:
        """Returns the loss and the batch's sums: of the losses, the right outputs, with evidence the rows'
        `disagreement`, and the scored outputs. of_all is the number of outputs that all processes score."""
        apart: list[Tensor] = []
        if self.members == 1 and evidence is None:
            total, hits, scored = self._score_whole(x, lengths, labels)
        else:
            total, hits, scored, *apart = self._score_members(x, lengths, labels, evidence)
        loss = total + self.evidence * apart[0] if apart else total
        sums = (total.detach(), hits, *(part.detach() for part in apart), scored)
        return self._mean(loss, scored if of_all is None else of_all), *sums

    def _score_whole(self, x: Tensor, lengths: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
        """Returns `_score` of the RNN as a whole."""
        with self._trusted():
            return self._score(self.rnn(x, lengths), lengths, labels)

    def _score_members(
        self, x: Tensor, lengths: Tensor, labels: Tensor, evidence: Tensor | None
    ) -> tuple[Tensor | int, ...]:
        """Returns `_score` of the members, each on its own rows, and with evidence the sum of the rows'
        `disagreement`."""
        rows = rows_of_members(self.members, self.trainer.global_rank, self.trainer.world_size)
        added: list[list[Tensor]] | None = None if evidence is None else []
        with self._trusted():
            logits = torch.cat(member_logits(self.rnn, rows, x, lengths, added))
            of_rows = (torch.cat([part[own] for own in rows]) for part in (lengths, labels))
            scores = self._score(logits, *of_rows)
        if evidence is None:
            return scores
        apart = [
            disagreement(steps, evidence[own], lengths[own]).sum()
            for steps, own in zip(added, rows, strict=True)
        ]
        return *scores, torch.stack(apart).sum()

    def _trusted(self) -> AbstractContextManager:
        """Returns the context without checks of values where SequenceData has checked all of them once."""
        return trusted() if isinstance(self.trainer.datamodule, SequenceData) else nullcontext()

    def _score(self, logits: Tensor, lengths: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
        """Returns sums over this process's outputs: the loss, the right ones, and their number."""
        losses = cross_entropy(logits, labels)
        hits = most_probable(logits) == most_probable_label(labels)
        if self.rnn.readout == "every":
            real = real_steps(lengths, logits.shape[1])
            losses, hits, scored = losses.masked_fill(~real, 0), hits & real, lengths.sum()
        else:
            scored = losses.numel()
        return losses.sum(), hits.sum(), scored

    def _clip(self, optimizer: torch.optim.Optimizer, limit: float | None, algorithm: str | None) -> None:
        if self.members > 1 and limit:
            clip = clip_values_of_members if algorithm == "value" else clip_members
            clip(self.rnn, self.members, limit)
        else:
            super()._clip(optimizer, limit, algorithm)

    def _rate(self, name: str) -> float:
        # Why holds each member's readout divided by `members`, so its learning rate is divided, too.
        if name == "Why":
            return super()._rate(name) / self.members
        # The gradient of the mean loss in a member's other weights is that of its own loss divided by
        # `members`. This changes the steps of plain descent alone; by belongs to all members.
        return super()._rate(name) * (self.members if self.optimizer == "sgd" and name != "by" else 1)

    def _decay(self, name: str) -> float:
        # It is multiplied by the learning rate.
        return super()._decay(name) * (self.members if name == "Why" else 1)

    def _means(self, loss: Tensor, hits: Tensor, *others: Tensor) -> dict[str, Tensor]:
        *apart, scored = others
        means = {"loss": loss / scored, "accuracy": hits / scored}
        return means | ({"disagreement": apart[0] / scored} if apart else {})
