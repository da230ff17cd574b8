"""Compares the RNN with the NumPy reference on one batch: one pass, and the weights after training steps."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch

from torch_rnn.data.batches import Batch, collate
from torch_rnn.losses import cross_entropy
from torch_rnn.nn.module import RNN
from torch_rnn.reference import PARAMETERS, NumpyRNN
from torch_rnn.testing import Comparison, batch_gradients, compare, tolerance

LEARNING_RATE = 0.01


class TrainingRun:
    """Trains a copy of a model, one step a call, and keeps the model as it is after `steps` steps."""

    def __init__(self, model: NumpyRNN | RNN, step: Callable[[NumpyRNN | RNN], None], steps: int):
        self.model, self.step, self.steps = deepcopy(model), step, steps
        self.calls = 0
        self.trained: NumpyRNN | RNN | None = None

    def __call__(self) -> None:
        self.step(self.model)
        self.calls += 1
        if self.calls == self.steps:
            self.trained = deepcopy(self.model)


def as_batch(tokens: list[np.ndarray], labels: list[int]) -> Batch:
    """Returns a padded batch of id sequences of any lengths."""
    return collate([ids.astype(np.int64) for ids in tokens], labels)


def reference_pass(reference: NumpyRNN, batch: Batch) -> dict[str, np.ndarray]:
    """Returns the reference's h, logits, mean loss and gradients (dWxh and so on) on a batch."""
    sequences, T = _rows(batch), batch.x.shape[1]
    logits, loss, gradients = batch_gradients(reference, sequences, batch.labels.tolist())
    states = []
    for sequence in sequences:
        reference.forward(sequence)
        states.append(np.pad(reference.hs[1:], ((0, T - len(sequence)), (0, 0)), mode="edge"))
    return {"h": np.stack(states), "logits": logits, "loss": np.array(loss)} | gradients


def compare_pass(want: dict[str, np.ndarray], rnn: RNN, batch: Batch) -> list[Comparison]:
    """Compares one forward and backward pass of an RNN with what `reference_pass` returned."""
    x, lengths, labels = (tensor.to(rnn.Wxh.device) for tensor in batch[:3])
    logits = rnn(x, lengths)
    loss = cross_entropy(logits, labels).mean()
    gradients = torch.autograd.grad(loss, list(rnn.parameters()))
    got = {"h": rnn.states(x, lengths), "logits": logits, "loss": loss}
    for name, gradient in zip(dict(rnn.named_parameters()), gradients, strict=True):
        got[f"d{name}"] = gradient
    dtype, T = rnn.Wxh.dtype, batch.x.shape[1]
    return [
        compare(name, tensor, want[name], dtype, tolerance(dtype, T, passes=2 if name.startswith("d") else 1))
        for name, tensor in got.items()
    ]


def compare_trained(want: NumpyRNN, got: RNN, T: int, steps: int) -> list[Comparison]:
    """Compares the parameters after `steps` training steps, each a forward and a backward pass over T."""
    dtype = got.Wxh.dtype
    allowed = tolerance(dtype, T, passes=2 * steps)
    return [
        compare(f"{name} after {steps} steps", getattr(got, name), getattr(want, name), dtype, allowed)
        for name in PARAMETERS
    ]


def reference_training(reference: NumpyRNN, batch: Batch, steps: int, clip: float) -> TrainingRun:
    """Returns gradient descent with the batch's mean gradient, each entry clipped, in NumPy."""
    sequences, labels = _rows(batch), batch.labels.tolist()

    def step(rnn: NumpyRNN) -> None:
        rnn.update(batch_gradients(rnn, sequences, labels)[2], LEARNING_RATE, clip)

    return TrainingRun(reference, step, steps)


def rnn_training(rnn: RNN, batch: Batch, steps: int, clip: float) -> TrainingRun:
    """Returns the same training of an RNN."""
    x, lengths, labels = (tensor.to(rnn.Wxh.device) for tensor in batch[:3])

    def step(rnn: RNN) -> None:
        optimizer = torch.optim.SGD(rnn.parameters(), lr=LEARNING_RATE)
        cross_entropy(rnn(x, lengths), labels).mean().backward()
        torch.nn.utils.clip_grad_value_(rnn.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()

    return TrainingRun(rnn, step, steps)


def _rows(batch: Batch) -> list[np.ndarray]:
    return [row[:length].numpy() for row, length in zip(batch.x, batch.lengths, strict=True)]
