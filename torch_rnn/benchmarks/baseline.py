"""The NumPy baseline and the RNN on one batch: how far they differ, and how long each takes."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch

from torch_rnn.data.batches import Batch, collate
from torch_rnn.losses import cross_entropy
from torch_rnn.nn.module import RNN
from torch_rnn.reference import PARAMETERS, NumpyRNN
from torch_rnn.testing import Comparison, batch_gradients, compare, tolerance

LEARNING_RATE = 0.01


class Training(NamedTuple):
    """N training steps of one implementation: what it has learnt, and the median milliseconds of a step."""

    rnn: NumpyRNN | RNN
    milliseconds: float


def as_batch(tokens: list[np.ndarray], labels: list[int]) -> Batch:
    """Ids of any lengths as one padded batch."""
    return collate([ids.astype(np.int64) for ids in tokens], labels)


def compare_once(reference: NumpyRNN, rnn: RNN, batch: Batch) -> list[Comparison]:
    """One forward and backward pass of both: h, logits, the mean loss and its gradients."""
    sequences = _rows(batch)
    logits, loss, gradients = batch_gradients(reference, sequences, batch.labels.tolist())
    states = []
    for sequence in sequences:
        reference.forward(sequence)
        states.append(np.pad(reference.hs[1:], ((0, batch.x.shape[1] - len(sequence)), (0, 0)), mode="edge"))
    x, lengths, labels = (tensor.to(rnn.Wxh.device) for tensor in batch[:3])
    got_logits = rnn(x, lengths)
    got_loss = cross_entropy(got_logits, labels).mean()
    got_gradients = torch.autograd.grad(got_loss, list(rnn.parameters()))
    pairs = {"h": (rnn.states(x, lengths), np.stack(states)), "logits": (got_logits, logits)}
    pairs["loss"] = (got_loss, np.array(loss))
    for name, gradient in zip(dict(rnn.named_parameters()), got_gradients, strict=True):
        pairs[f"d{name}"] = (gradient, gradients[f"d{name}"])
    dtype, T = rnn.Wxh.dtype, batch.x.shape[1]
    return [
        compare(name, got, want, dtype, tolerance(dtype, T, passes=2 if name.startswith("d") else 1))
        for name, (got, want) in pairs.items()
    ]


def compare_trained(want: Training, got: Training, T: int, steps: int) -> list[Comparison]:
    """The parameters after so many steps, each a forward and a backward pass over T."""
    dtype = got.rnn.Wxh.dtype
    allowed = tolerance(dtype, T, passes=2 * steps)
    return [
        compare(
            f"{name} after {steps} steps", getattr(got.rnn, name), getattr(want.rnn, name), dtype, allowed
        )
        for name in PARAMETERS
    ]


def train_reference(reference: NumpyRNN, batch: Batch, steps: int, clip: float) -> Training:
    """Steps of clipped descent on the batch's mean gradient, of a copy of the reference."""
    rnn, sequences, labels = deepcopy(reference), _rows(batch), batch.labels.tolist()

    def step() -> None:
        rnn.update(batch_gradients(rnn, sequences, labels)[2], LEARNING_RATE, clip)

    return Training(rnn, _median_milliseconds(step, steps))


def train_rnn(rnn: RNN, batch: Batch, steps: int, clip: float) -> Training:
    """The same steps of a copy of the RNN; one more on another copy comes first and is not timed."""
    x, lengths, labels = (tensor.to(rnn.Wxh.device) for tensor in batch[:3])

    def step(rnn: RNN) -> None:
        optimizer = torch.optim.SGD(rnn.parameters(), lr=LEARNING_RATE)
        cross_entropy(rnn(x, lengths), labels).mean().backward()
        torch.nn.utils.clip_grad_value_(rnn.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        if x.is_cuda:
            torch.cuda.synchronize()

    step(deepcopy(rnn))
    trained = deepcopy(rnn)
    return Training(trained, _median_milliseconds(lambda: step(trained), steps))


def _rows(batch: Batch) -> list[np.ndarray]:
    return [row[:length].numpy() for row, length in zip(batch.x, batch.lengths, strict=True)]


def _median_milliseconds(step: Callable[[], None], steps: int) -> float:
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
