"""The states of test sequences on their first two principal components."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_rnn.data.batches import BatchIndices, Sequences
from torch_rnn.losses import probabilities
from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.predictions import Predictions, batches, logits_of_states

SEQUENCES, STATES = 320, 4
"""Sequences whose states are shown, and states of each, its last one among them."""
CONTEXT = 6
"""Words before a state that its label shows."""


class Sample(NamedTuple):
    """States of the top layer's forward direction."""

    h: np.ndarray
    """(N, H) float64."""
    said: np.ndarray
    """(N, C), the probabilities of each class in the end; at that step, if every step has an output."""
    last: np.ndarray
    """(N,), whether it is the last state of its sequence."""
    places: list[tuple[int, int]]
    """The number of the sequence in the test split, and the step."""


class Plane(NamedTuple):
    """The plane of the first two principal components."""

    mean: np.ndarray
    """(H,)"""
    axes: np.ndarray
    """(2, H), orthonormal rows; a row of zeros where H is 1."""
    explained: list[float]
    """The part of the variance along each."""

    def project(self, h: np.ndarray) -> np.ndarray:
        """Returns (N, 2) for states (N, H)."""
        return (h - self.mean) @ self.axes.T


@torch.no_grad()
def sample(run: FinishedRun, found: Predictions) -> Sample:
    """Draws states of test sequences."""
    rng, rnn = np.random.default_rng(1), run.rnn
    rows = np.unique(found.rows)
    h, said, last, places = [], [], [], []
    for numbers, (x, n, *_) in batches(run.data, "test", rng.permutation(rows)[:SEQUENCES]):
        states = rnn.states(x, n)
        p = probabilities(logits_of_states(rnn, states, n)).double().numpy()
        states = states[:, :, : rnn.hidden_size].double().numpy()
        for b, (number, length) in enumerate(zip(numbers.tolist(), n.tolist(), strict=True)):
            if length == 0:
                continue
            steps = {length - 1, *rng.integers(length, size=STATES - 1).tolist()}
            for t in sorted(steps):
                h.append(states[b, t])
                said.append(p[b, t] if p.ndim == 3 else p[b])
                last.append(t == length - 1)
                places.append((number, t))
    return Sample(np.array(h), np.array(said), np.array(last), places)


@torch.no_grad()
def joint_states(run: FinishedRun, places: list[tuple[int, int]]) -> np.ndarray:
    """Returns the forward direction's states of all layers side by side, (K, layers * H), at these places."""
    sequences, labels = run.data.splits["test"]
    rows, steps = np.array([row for row, _ in places]), torch.tensor([t + 1 for _, t in places])
    x = Sequences(sequences, labels)[BatchIndices((0,), rows)].x
    _, last = run.rnn.states(x, steps, final=True)
    last = last.reshape(-1, len(rows), run.rnn.hidden_size)[:: 2 if run.rnn.bidirectional else 1]
    return last.transpose(0, 1).reshape(len(rows), -1).double().numpy()


def plane(h: np.ndarray) -> Plane:
    """Returns the plane of the first two principal components of h (N, H).

    The sign of each axis is that of its largest entry, so that equal states give equal planes.
    """
    mean = h.mean(axis=0)
    _, values, axes = (
        part.numpy() for part in torch.linalg.svd(torch.from_numpy(h - mean), full_matrices=False)
    )
    parts = values**2 / max((values**2).sum(), 1e-300)
    axes = np.concatenate([axes[:2], np.zeros((max(0, 2 - len(axes)), h.shape[1]))])
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    return Plane(mean, axes * np.where(signs == 0, 1, signs)[:, None], [*parts[:2].tolist(), 0.0][:2])


def states(
    run: FinishedRun, drawn: Sample, flat: Plane, words: Callable[[int], list[str]] | None
) -> dict[str, Any]:
    """Returns the points of the state space, the plane, and where Why points in it."""
    points = flat.project(drawn.h)
    Why = run.rnn.Why.detach().double().numpy()[:, : run.rnn.hidden_size]
    labels = None
    if words is not None:
        labels = [" ".join(words(i)[max(0, t + 1 - CONTEXT) : t + 1]) for i, t in drawn.places]
    return {
        "points": points,
        "said": drawn.said[:, 1] if drawn.said.shape[1] == 2 else drawn.said.argmax(axis=1),
        "last": drawn.last,
        "labels": labels,
        "mean": flat.mean,
        "axes": flat.axes,
        "explained": flat.explained,
        "readout": Why @ flat.axes.T,
        "sequences": len({number for number, _ in drawn.places}),
        "directions": 2 if run.rnn.bidirectional else 1,
        "layers": run.rnn.num_layers,
    }
