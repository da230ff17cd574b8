"""How far back the training signal reaches: dL/dh[t] by distance, and the eigenvalues of Whh."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_rnn.data.batches import lengths_of
from torch_rnn.errors import RunError
from torch_rnn.losses import cross_entropy
from torch_rnn.nn.members import joined
from torch_rnn.nn.module import RNN
from torch_rnn.nn.readout import read
from torch_rnn.ops.inputs import real_steps
from torch_rnn.ops.nonlinearities import NONLINEARITIES
from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.predictions import Predictions, batches
from torch_rnn.page.slow_points import eigenvalues
from torch_rnn.training.start import start_from

SEQUENCES = 240
"""Test sequences whose gradients are averaged."""
MAX_STEPS = 1000
"""Limit on the length of these sequences."""
LEAST = 24
"""The curves end where fewer sequences would reach."""
MAX_NUMBERS = 10_000_000
"""Limit on the numbers in all states of these sequences."""
MAX_WIDTH = 512
"""Limit on H for eigenvalues."""
DIRECTIONS = ("forward", "backward")


def memory(run: FinishedRun, found: Predictions) -> dict[str, Any]:
    """Returns the gradient norms and the eigenvalues, before and after training."""
    before = initial(run)
    models = {"after": run.rnn} if before is None else {"before": before, "after": run.rnn}
    rows = reaching(gradient_rows(run, found), run)
    gradients = {when: gradient_norms(rnn, run, rows) for when, rnn in models.items()}
    return {"gradients": gradients, "sequences": len(rows), "spectra": spectra(models)}


def spectra(models: dict[str, RNN]) -> list[dict[str, Any]]:
    """Returns the eigenvalues of each Whh in each of the models; an empty list beyond MAX_WIDTH."""
    found, after = [], models["after"]
    for number, names in enumerate(after.names if after.hidden_size <= MAX_WIDTH else (), start=1):
        for direction, name in zip(DIRECTIONS, names, strict=False):
            matrices = {when: getattr(rnn, f"Whh{name}").detach() for when, rnn in models.items()}
            values = {when: eigenvalues(Whh.double()) for when, Whh in matrices.items()}
            called = [f"layer {number}"] * (len(after.names) > 1) + [direction] * (len(names) > 1)
            found.append({"name": " ".join(called), **values})
    return found


def initial(run: FinishedRun) -> RNN | None:
    """Draws the initial weights of the run again, which are a function of its seed.

    Where it has started from another run, that one's weights are taken over; None if they are gone.
    """
    model, settings = run.settings["model"], run.rnn.settings
    members = model.get("members", 1)
    settings |= {"hidden_size": settings["hidden_size"] // members, "backend": "eager"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.results["seed"])
        rnns = [RNN(**settings, dtype=torch.get_default_dtype()).eval() for _ in range(members)]
    rnn, taken = rnns[0] if members == 1 else joined(rnns).eval(), ()
    try:
        if model.get("start_from") is not None:
            taken = start_from(model["start_from"], rnn, run.data).taken
    except RunError:
        return None
    if run.is_language and "by" not in taken:
        counts = torch.from_numpy(run.data.counts()).double().clamp(min=1)
        rnn.by.data.copy_((counts / counts.sum()).log())  # as the training begins
    return rnn


def gradient_rows(run: FinishedRun, found: Predictions) -> np.ndarray:
    """Draws from the longer half of the test sequences that are not longer than MAX_STEPS.

    Where all are longer, it returns the shortest of them.
    """
    rows = np.unique(found.rows)
    lengths = lengths_of(run.data.splits["test"][0])[rows]
    fit = rows[(lengths <= MAX_STEPS) & (lengths > 0)]
    if len(fit) == 0:
        return rows[np.argsort(lengths, kind="stable")][:1]
    order = fit[np.argsort(lengths_of(run.data.splits["test"][0])[fit], kind="stable")]
    widest = (
        min(MAX_STEPS, int(lengths.max())) * run.rnn.hidden_size * run.rnn.num_layers * len(run.rnn.names[0])
    )
    count = max(1, min(SEQUENCES, MAX_NUMBERS // widest))
    return np.random.default_rng(2).permutation(order[len(order) // 2 :])[:count]


def reaching(rows: np.ndarray, run: FinishedRun) -> np.ndarray:
    """Returns those of the sequences that are as long as the LEAST longest: each has all distances."""
    lengths = lengths_of(run.data.splits["test"][0])[rows]
    return rows[lengths >= np.sort(lengths)[-min(LEAST, len(rows))]]


def gradient_norms(rnn: RNN, run: FinishedRun, rows: np.ndarray) -> list[dict[str, Any]]:
    """Returns for each direction of the top layer the mean norm of dL/dh[t] by distance.

    The distance is the number of steps from t to the last step that this direction reads; the largest is that
    which all sequences have. L is the loss of one sequence.
    """
    T = int(lengths_of(run.data.splits["test"][0])[rows].min())
    directions = len(rnn.names[0])
    sums = np.zeros((directions, T))
    for _, (x, lengths, labels, *_) in batches(run.data, "test", rows):
        for direction, gradient in enumerate(state_gradients(rnn, x, lengths, labels)):
            norms = gradient.norm(dim=2).numpy()
            for b, n in enumerate(lengths.tolist()):
                sums[direction] += norms[b, :T] if direction else norms[b, n - T : n][::-1]
    return [
        {"name": name, "distances": list(range(T)), "norms": (sums[d] / len(rows)).tolist()}
        for d, name in enumerate(DIRECTIONS[:directions])
    ]


def state_gradients(rnn: RNN, x: Tensor, lengths: Tensor, labels: Tensor) -> list[Tensor]:
    """Returns dL/dh (B, T, H) of each direction of the top layer, in float64, by autograd.

    It is the whole gradient: with that through the later states.
    """
    rnn = deepcopy(rnn).double()
    f, directions = NONLINEARITIES[rnn.nonlinearity].function, len(rnn.names[0])
    real = real_steps(lengths, x.shape[1])
    h = x if x.dtype == torch.int64 else x.double()
    for names in rnn.names:
        tops = [unrolled(rnn, name, h, real, f, backwards=bool(d)) for d, name in enumerate(names)]
        h = torch.cat([torch.stack(states, dim=1) for states in tops], dim=2)
    last = torch.cat([tops[0][-1], *(states[0] for states in tops[1:])], dim=1)
    logits = read(rnn.readout, h, last, lengths) @ rnn.Why.t() + (0 if rnn.by is None else rnn.by)
    losses = cross_entropy(logits, labels)
    loss = losses[real].sum() if rnn.readout == "every" else losses.sum()
    flat = torch.autograd.grad(loss, [state for states in tops for state in states])
    T = len(flat) // directions
    return [torch.stack(flat[d * T : (d + 1) * T], dim=1) for d in range(directions)]


def unrolled(rnn: RNN, name: str, x: Tensor, real: Tensor, f, backwards: bool) -> list[Tensor]:
    """Returns the states (B, H) of each step of one direction of a layer, as nodes of autograd's graph."""
    Wxh, Whh, bh = (getattr(rnn, kind + name) for kind in ("Wxh", "Whh", "bh"))
    xw = Wxh.t()[x] if x.dtype == torch.int64 else x @ Wxh.t()
    xw = xw if bh is None else xw + bh
    h, T = xw.new_zeros(len(xw), len(Whh)), xw.shape[1]
    states = [h] * T
    for t in reversed(range(T)) if backwards else range(T):
        h = torch.where(real[:, t, None], f(xw[:, t] + h @ Whh.t()), h)
        states[t] = h
    return states
