"""Slow points of the recurrence: states that it hardly changes while nothing is read.

Without input the recurrence is s -> F(s) = f(Whh s + bh); of several layers, s has the states of all of them.
Slow points are minima of q(s) = |F(s) - s|^2 / 2, found from states that occur (Sussillo and Barak, 2013;
Maheswaranathan et al., 2019, arXiv 1906.10720). The eigenvalues of the Jacobian dF/ds there say how fast the
recurrence forgets: a direction with the eigenvalue z keeps |z|^n of a change after n steps.
"""

from typing import Any, NamedTuple

import numpy as np

from torch_rnn.nn.module import RNN
from torch_rnn.ops.nonlinearities import NONLINEARITIES

STARTS = 96
"""States to start from."""
SLOW = 1e-7
"""The search for a slow point ends where q is below this times the width of s."""
ITERATIONS = 60
MAX_WIDTH = 256
"""Limit on the width of s."""


class Dynamics(NamedTuple):
    """The recurrence without input, of one direction: the weights of its layers in float64."""

    layers: list[tuple[np.ndarray | None, np.ndarray, np.ndarray]]
    """Wxh (None for the first layer, which reads nothing), Whh and bh of each layer."""
    nonlinearity: str

    @property
    def width(self) -> int:
        return sum(len(Whh) for _, Whh, _ in self.layers)

    def step(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns F(s) (K, n) and the Jacobians dF/ds (K, n, n) of states s (K, n)."""
        function, derivative = _in_numpy(self.nonlinearity)
        after, jacobian = np.empty_like(s), np.zeros((*s.shape, s.shape[1]))
        end = 0
        for Wxh, Whh, bh in self.layers:
            start, end = end, end + len(Whh)
            a, own = s[:, start:end] @ Whh.T + bh, slice(start, end)
            if Wxh is not None:
                below = slice(start - Wxh.shape[1], start)
                a = a + after[:, below] @ Wxh.T
            after[:, own] = function(a)
            slope = derivative(after[:, own])[:, :, None]
            jacobian[:, own, own] = slope * Whh
            if Wxh is not None:
                jacobian[:, own, :start] = slope * (Wxh @ jacobian[:, below, :start])
        return after, jacobian


def dynamics(rnn: RNN) -> Dynamics | None:
    """Returns the recurrence without input; None where it is too wide or depends on the other direction.

    With two directions and one layer it is that of the forward direction.
    """
    if rnn.bidirectional and rnn.num_layers > 1:
        return None
    layers = []
    for number, names in enumerate(rnn.names):
        Wxh, Whh, bh = (getattr(rnn, kind + names[0]) for kind in ("Wxh", "Whh", "bh"))
        numbers = [None if value is None else value.detach().double().numpy() for value in (Wxh, Whh, bh)]
        bh = np.zeros(len(numbers[1])) if numbers[2] is None else numbers[2]
        layers.append((numbers[0] if number else None, numbers[1], bh))
    found = Dynamics(layers, rnn.nonlinearity)
    return found if found.width <= MAX_WIDTH else None


def minimise(system: Dynamics, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns slow points (K, n) near the starts (K, n), and q there (K,).

    Levenberg and Marquardt's method. Each search ends as soon as q is small, so it stays near its start; to
    go on would gather the points of a line attractor in the few fixed points on it.
    """
    s, damping = starts.copy(), np.full(len(starts), 1e-2)
    after, jacobian = system.step(s)
    residual = after - s
    q = 0.5 * (residual**2).sum(axis=1)
    unit = np.eye(s.shape[1])
    for _ in range(ITERATIONS):
        going = np.flatnonzero((q > SLOW * s.shape[1]) & (damping < 1e8))
        if len(going) == 0:
            break
        A = jacobian[going] - unit
        gradient = np.einsum("kij,ki->kj", A, residual[going])
        hessian = np.einsum("kij,kil->kjl", A, A) + damping[going, None, None] * unit
        tried = s[going] - np.linalg.solve(hessian, gradient[..., None])[..., 0]
        after, slopes = system.step(tried)
        step = after - tried
        better_q = 0.5 * (step**2).sum(axis=1)
        better = better_q < q[going]
        damping[going] *= np.where(better, 0.3, 4.0)
        taken = going[better]
        s[taken], residual[taken], jacobian[taken] = tried[better], step[better], slopes[better]
        q[taken] = better_q[better]
    return s, q


def slow_points(system: Dynamics, starts: np.ndarray) -> dict[str, Any]:
    """Returns slow points, q there, and the eigenvalues of the Jacobian, the largest first.

    Points where the search did not end are left out, and of points that coincide one is kept.
    """
    s, q = minimise(system, starts)
    kept = np.flatnonzero(np.isfinite(s).all(axis=1) & (q <= 1e-4 * s.shape[1]))
    chosen: list[int] = []
    for i in kept[np.argsort(q[kept], kind="stable")]:
        if all(np.linalg.norm(s[i] - s[j]) > 1e-3 * (1 + np.linalg.norm(s[i])) for j in chosen):
            chosen.append(int(i))
    if not chosen:
        return {"s": np.zeros((0, s.shape[1])), "q": [], "eigenvalues": []}
    _, jacobian = system.step(s[chosen])
    return {"s": s[chosen], "q": q[chosen].tolist(), "eigenvalues": [eigenvalues(J) for J in jacobian]}


def eigenvalues(matrix: np.ndarray) -> list[list[float]]:
    """Returns the real and imaginary parts of the eigenvalues, those with the largest modulus first."""
    values = np.linalg.eigvals(matrix)
    values = values[np.argsort(-np.abs(values), kind="stable")]
    return np.stack([values.real, values.imag], axis=1).tolist()


def _in_numpy(name: str):
    """Returns a nonlinearity and its derivative, as a function of the output, for arrays."""
    import torch

    function, derivative = NONLINEARITIES[name]
    return (
        lambda a: function(torch.from_numpy(a)).numpy(),
        lambda h: derivative(torch.from_numpy(h)).numpy(),
    )
