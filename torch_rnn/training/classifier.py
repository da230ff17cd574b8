"""Classifier: the LightningModule that trains an RNN on labels. logits -> loss -> metrics."""

from contextlib import nullcontext
from typing import Literal

from torch import Tensor

from torch_rnn.data.batches import Batch
from torch_rnn.data.datamodule import SequenceData
from torch_rnn.losses import cross_entropy, most_probable, most_probable_label
from torch_rnn.nn.module import RNN
from torch_rnn.ops.inputs import real_steps, trusted
from torch_rnn.training.trained_rnn import TrainedRNN


class Classifier(TrainedRNN):
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
        start_from: a run's folder, or its model.safetensors, whose Wxh, Whh and bh are taken over as the
            start, and by name whatever else fits. It must have the same vocabulary.
        start_learning_rate: of the weights that are taken over; null for `learning_rate`.
        n_classes: the number of classes of the data.
    """

    n_sums, scores = 3, ("accuracy", "loss")

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
        start_from: str | None = None,
        start_learning_rate: float | None = None,
        n_classes: int = 2,
    ):
        super().__init__(optimizer, learning_rate, schedule, weight_decay, start_from, start_learning_rate)
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

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.rnn(x, lengths)

    def training_step(self, batch: Batch, step: int) -> Tensor:
        total, scored = self._score("train", batch)
        return self._mean_loss(total, scored if batch.scored is None else batch.scored)

    def validation_step(self, batch: Batch, step: int) -> None:
        self._score("validation", batch)

    def test_step(self, batch: Batch, step: int) -> None:
        self._score("test", batch)

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
        self._add(split, loss.detach().double(), hits.sum(), scored)
        return loss, scored

    def _means(self, loss: Tensor, hits: Tensor, scored: Tensor) -> dict[str, Tensor]:
        return {"loss": loss / scored, "accuracy": hits / scored}
