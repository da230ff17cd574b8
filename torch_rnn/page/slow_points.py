"""Slow points of the recurrence: states that it hardly changes while its input is constant.

With a constant input the recurrence is s -> F(s) = f(Whh s + b); of several layers, s has the states of all
of them. Slow points are minima of q(s) = |F(s) - s|^2 / 2, found from states that occur (Sussillo and Barak,
2013; Maheswaranathan et al., 2019, arXiv 1906.10720). The eigenvalues of the Jacobian dF/ds there say how
fast the recurrence forgets: a direction with the eigenvalue z keeps |z|^n of a change after n steps.

A layer does not depend on those above it. So they are searched one after the other, from the first on, and
the eigenvalues of dF/ds are those of the layers' own Jacobians.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from torch_rnn.nn.module import RNN
from torch_rnn.ops.nonlinearities import NONLINEARITIES

STARTS = 96
"""States to start from; fewer where H is above 64."""
LEAST_STARTS = 6
SLOW = 1e-7
"""The search for a slow point ends where q is below this times the width of s."""
ITERATIONS = 60
MAX_PRODUCTS = 4e10
"""Limit on the products of the search; a large H has fewer iterations."""
MAX_CUBES = 1e9
"""Limit on the sum of H^3 over the Jacobians whose eigenvalues are computed; a large H has fewer points."""
MAX_EIGENVALUES = 10_000
"""Limit on the eigenvalues of all points."""
MAX_WIDTH = 512
"""Limit on H."""


class Layer(NamedTuple):
    """The forward direction of a layer, in float64."""

    Wxh: np.ndarray | None
    """None for the first layer: its input is constant, and a part of bh."""
    Whh: np.ndarray
    bh: np.ndarray


class Dynamics(NamedTuple):
    """The recurrence with a constant input."""

    layers: list[Layer]
    nonlinearity: str

    def step(self, s: np.ndarray) -> np.ndarray:
        """Returns F(s) (K, n) of states s (K, n)."""
        after: list[np.ndarray] = []
        for layer, own in zip(self.layers, np.split(s, len(self.layers), axis=1), strict=True):
            after.append(self.layer_step(layer, own, self.constant(layer, after)))
        return np.concatenate(after, axis=1)

    def constant(self, layer: Layer, below: list[np.ndarray]) -> np.ndarray:
        """Returns what a layer adds to Whh s: bh, and what it reads from the layers below (K, H) each."""
        return layer.bh if layer.Wxh is None else layer.bh + below[-1] @ layer.Wxh.T

    def layer_step(self, layer: Layer, s: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """Returns the states (K, H) of a layer after its states s (K, H)."""
        function = NONLINEARITIES[self.nonlinearity].function
        return function(torch.from_numpy(s @ layer.Whh.T + constant)).numpy()

    def jacobian(self, layer: Layer, after: np.ndarray) -> np.ndarray:
        """Returns the Jacobians (K, H, H) of a layer by its own state, from the states (K, H) after it."""
        derivative = NONLINEARITIES[self.nonlinearity].derivative
        return derivative(torch.from_numpy(after)).numpy()[:, :, None] * layer.Whh


def dynamics(rnn: RNN, x: np.ndarray | None = None) -> Dynamics | None:
    """Returns the recurrence whose input is x (D,), or zeros.

    With two directions and one layer it is that of the forward direction. It returns None where H is above
    MAX_WIDTH, and where the state depends on the other direction.
    """
    if rnn.hidden_size > MAX_WIDTH or (rnn.bidirectional and rnn.num_layers > 1):
        return None
    layers = []
    for number, names in enumerate(rnn.names):
        Wxh, Whh, bh = (getattr(rnn, kind + names[0]) for kind in ("Wxh", "Whh", "bh"))
        Wxh, Whh, bh = (
            None if value is None else value.detach().double().numpy() for value in (Wxh, Whh, bh)
        )
        bh = np.zeros(len(Whh)) if bh is None else bh
        if number == 0 and x is not None:
            bh = bh + Wxh @ x
        layers.append(Layer(Wxh if number else None, Whh, bh))
    return Dynamics(layers, rnn.nonlinearity)


def number_of_starts(rnn: RNN) -> int:
    """Returns from how many states to search."""
    return int(np.clip(STARTS * (64 / rnn.hidden_size) ** 2, LEAST_STARTS, STARTS))


def slow_points(system: Dynamics, starts: np.ndarray, apart: float | None = None) -> dict[str, Any]:
    """Returns slow points, q there, and the eigenvalues of the Jacobian, the largest first.

    Points where the search did not end are left out. Of points whose distance is at most `apart`, one is
    kept; None is 1e-3 times 1 + the norm of one of them, so that only those that coincide are one.

    Returns:
        s (P, n), q (P,) and eigenvalues (P, n, 2), with their real and imaginary parts.
    """
    s = minimise(system, starts)
    q = 0.5 * ((system.step(s) - s) ** 2).sum(axis=1)
    kept = np.flatnonzero(np.isfinite(s).all(axis=1) & (q <= 1e-4 * s.shape[1]))
    cubes = sum(len(layer.bh) ** 3 for layer in system.layers)
    most = max(1, int(min(MAX_CUBES / cubes, MAX_EIGENVALUES / s.shape[1])))
    chosen: list[int] = []
    for i in kept[np.argsort(q[kept], kind="stable")]:
        limit = 1e-3 * (1 + np.linalg.norm(s[i])) if apart is None else apart
        if len(chosen) < most and all(np.linalg.norm(s[i] - s[j]) > limit for j in chosen):
            chosen.append(int(i))
    return {"s": s[chosen], "q": q[chosen], "eigenvalues": spectra(system, s[chosen])}


def minimise(system: Dynamics, starts: np.ndarray) -> np.ndarray:
    """Returns slow points (K, n) near the starts (K, n), searched layer by layer."""
    found, after = [], []
    for layer, own in zip(system.layers, np.split(starts, len(system.layers), axis=1), strict=True):
        constant = np.broadcast_to(system.constant(layer, after), own.shape)
        found.append(minimise_layer(system, layer, own, constant))
        after.append(system.layer_step(layer, found[-1], constant))
    return np.concatenate(found, axis=1)


def minimise_layer(system: Dynamics, layer: Layer, starts: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Returns slow points (K, H) of a layer, near the starts (K, H).

    Levenberg and Marquardt's method. Each search ends as soon as q is small, so it stays near its start; to
    go on would gather the points of a line attractor in the few fixed points on it.
    """
    s, damping = starts.copy(), np.full(len(starts), 1e-2)
    after = system.layer_step(layer, s, constant)
    q, unit = 0.5 * ((after - s) ** 2).sum(axis=1), np.eye(s.shape[1])
    products = 1.7 * len(system.layers) * s.size * s.shape[1] ** 2  # A'A and a third of it to solve
    for _ in range(int(np.clip(MAX_PRODUCTS / products, 5, ITERATIONS))):
        going = np.flatnonzero((q > SLOW * s.shape[1]) & (damping < 1e8))
        if len(going) == 0:
            break
        A = system.jacobian(layer, after[going]) - unit
        gradient = A.transpose(0, 2, 1) @ (after[going] - s[going])[..., None]
        hessian = A.transpose(0, 2, 1) @ A + damping[going, None, None] * unit
        tried = s[going] - np.linalg.solve(hessian, gradient)[..., 0]
        tried_after = system.layer_step(layer, tried, constant[going])
        tried_q = 0.5 * ((tried_after - tried) ** 2).sum(axis=1)
        better = tried_q < q[going]
        damping[going] *= np.where(better, 0.3, 4.0)
        taken = going[better]
        s[taken], after[taken], q[taken] = tried[better], tried_after[better], tried_q[better]
    return s


def spectra(system: Dynamics, s: np.ndarray) -> list[list[list[float]]]:
    """Returns for each of the states s (K, n) the eigenvalues of dF/ds, the largest first.

    dF/ds is block triangular, so its eigenvalues are those of its diagonal blocks.
    """
    after = np.split(system.step(s), len(system.layers), axis=1)
    blocks = [system.jacobian(layer, own) for layer, own in zip(system.layers, after, strict=True)]
    return [
        sorted_pairs(np.concatenate([np.linalg.eigvals(J) for J in at])) for at in zip(*blocks, strict=True)
    ]


def eigenvalues(matrix: np.ndarray) -> list[list[float]]:
    """Returns the real and imaginary parts of the eigenvalues, those with the largest modulus first."""
    return sorted_pairs(np.linalg.eigvals(matrix))


def sorted_pairs(values: np.ndarray) -> list[list[float]]:
    """Returns the real and imaginary parts of complex numbers, those with the largest modulus first."""
    values = values[np.argsort(-np.abs(values), kind="stable")]
    return np.stack([values.real, values.imag], axis=1).tolist()
