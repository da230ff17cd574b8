"""Slow points of the recurrence: states that it hardly changes while its input is constant.

With a constant input the recurrence is s -> F(s) = f(Whh s + b); of several layers, s has the states of all
of them. Slow points are minima of q(s) = |F(s) - s|^2 / 2, found from states that occur (Sussillo and Barak,
2013; Maheswaranathan et al., 2019, arXiv 1906.10720). The eigenvalues of the Jacobian dF/ds there say how
fast the recurrence forgets: a direction with the eigenvalue z keeps |z|^n of a change after n steps.

A layer does not depend on those above it. So they are searched one after the other, from the first on, and
the eigenvalues of dF/ds are those of the layers' own Jacobians.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_rnn.nn.module import RNN
from torch_rnn.ops.nonlinearities import NONLINEARITIES

STARTS = 96
"""States to start from; fewer where H is above 64."""
LEAST_STARTS = 6
SLOW = 1e-7
"""The search for a slow point ends where q is below this times the width of s."""
MAX_Q = 1e-6
"""Points where q is larger, times the width of s, are left out: there the state moves on. At a minimum J has
the eigenvalue 1 nevertheless, as the gradient of q is (J - I)^T (F(s) - s)."""
APART = 0.1
"""Of slow points that are closer than this part of the states' standard deviation, one is shown."""
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

    Wxh: Tensor | None
    """None for the first layer: its input is constant, and a part of bh."""
    Whh: Tensor
    bh: Tensor


class Dynamics(NamedTuple):
    """The recurrence with a constant input."""

    layers: list[Layer]
    nonlinearity: str

    def step(self, s: Tensor) -> Tensor:
        """Returns F(s) (K, n) of states s (K, n)."""
        after: list[Tensor] = []
        for layer, own in zip(self.layers, s.chunk(len(self.layers), dim=1), strict=True):
            after.append(self.layer_step(layer, own, self.constant(layer, after)))
        return torch.cat(after, dim=1)

    def constant(self, layer: Layer, below: list[Tensor]) -> Tensor:
        """Returns what a layer adds to Whh s: bh, and what it reads from the layers below (K, H) each."""
        return layer.bh if layer.Wxh is None else layer.bh + below[-1] @ layer.Wxh.t()

    def layer_step(self, layer: Layer, s: Tensor, constant: Tensor) -> Tensor:
        """Returns the states (K, H) of a layer after its states s (K, H)."""
        return NONLINEARITIES[self.nonlinearity].function(s @ layer.Whh.t() + constant)

    def jacobian(self, layer: Layer, after: Tensor) -> Tensor:
        """Returns the Jacobians (K, H, H) of a layer by its own state, from the states (K, H) after it."""
        return NONLINEARITIES[self.nonlinearity].derivative(after)[:, :, None] * layer.Whh


def dynamics(rnn: RNN, x: Tensor | None = None) -> Dynamics | None:
    """Returns the recurrence whose input is x (D,), or zeros.

    With two directions and one layer it is that of the forward direction. It returns None where H is above
    MAX_WIDTH, and where the state depends on the other direction.
    """
    if rnn.hidden_size > MAX_WIDTH or (rnn.bidirectional and rnn.num_layers > 1):
        return None
    layers = []
    for number, names in enumerate(rnn.names):
        Wxh, Whh, bh = (getattr(rnn, kind + names[0]) for kind in ("Wxh", "Whh", "bh"))
        Wxh, Whh = Wxh.detach().double(), Whh.detach().double()
        bh = Whh.new_zeros(len(Whh)) if bh is None else bh.detach().double()
        if number == 0 and x is not None:
            bh = bh + Wxh @ x
        layers.append(Layer(Wxh if number else None, Whh, bh))
    return Dynamics(layers, rnn.nonlinearity)


def number_of_starts(rnn: RNN) -> int:
    """Returns from how many states to search."""
    return min(STARTS, max(LEAST_STARTS, int(STARTS * (64 / rnn.hidden_size) ** 2)))


def slow_points(system: Dynamics, starts: Tensor, apart: float | None = None) -> dict[str, Any]:
    """Returns slow points, q there, and the eigenvalues of the Jacobian, the largest first.

    Points where the search did not end are left out. Of points whose distance is at most `apart`, one is
    kept; None is 1e-3 times 1 + the norm of one of them, so that only those that coincide are one.

    Returns:
        s (P, n), q (P,) and eigenvalues (P, n, 2), with their real and imaginary parts.
    """
    s = minimise(system, starts)
    q = 0.5 * ((system.step(s) - s) ** 2).sum(dim=1)
    cubes = sum(len(layer.bh) ** 3 for layer in system.layers)
    most = max(1, int(min(MAX_CUBES / cubes, MAX_EIGENVALUES / s.shape[1])))
    chosen: list[int] = []
    for i in q.argsort(stable=True).tolist():
        if len(chosen) == most or not q[i] <= MAX_Q * s.shape[1]:  # NaN is the largest
            break
        limit = 1e-3 * (1 + s[i].norm()) if apart is None else apart
        if all((s[i] - s[j]).norm() > limit for j in chosen):
            chosen.append(i)
    return {"s": s[chosen], "q": q[chosen].tolist(), "eigenvalues": spectra(system, s[chosen])}


def minimise(system: Dynamics, starts: Tensor) -> Tensor:
    """Returns slow points (K, n) near the starts (K, n), searched layer by layer."""
    found, after = [], []
    for layer, own in zip(system.layers, starts.chunk(len(system.layers), dim=1), strict=True):
        constant = system.constant(layer, after).expand(own.shape)
        found.append(minimise_layer(system, layer, own, constant))
        after.append(system.layer_step(layer, found[-1], constant))
    return torch.cat(found, dim=1)


def minimise_layer(system: Dynamics, layer: Layer, starts: Tensor, constant: Tensor) -> Tensor:
    """Returns slow points (K, H) of a layer, near the starts (K, H).

    Levenberg and Marquardt's method. Each search ends as soon as q is small, so it stays near its start; to
    go on would gather the points of a line attractor in the few fixed points on it.
    """
    s, damping = starts.clone(), starts.new_full((len(starts),), 1e-2)
    after = system.layer_step(layer, s, constant)
    q, H = 0.5 * ((after - s) ** 2).sum(dim=1), s.shape[1]
    unit = torch.eye(H, dtype=s.dtype)
    products = 1.7 * len(system.layers) * len(s) * H**3  # A'A and a third of it to solve
    for _ in range(min(ITERATIONS, max(5, int(MAX_PRODUCTS / products)))):
        going = ((q > SLOW * H) & (damping < 1e8)).nonzero()[:, 0]
        if len(going) == 0:
            break
        A = system.jacobian(layer, after[going]) - unit
        gradient = A.mT @ (after[going] - s[going])[..., None]
        hessian = A.mT @ A + damping[going, None, None] * unit
        tried = s[going] - torch.linalg.solve(hessian, gradient)[..., 0]
        tried_after = system.layer_step(layer, tried, constant[going])
        tried_q = 0.5 * ((tried_after - tried) ** 2).sum(dim=1)
        better = tried_q < q[going]
        damping[going] *= torch.where(better, 0.3, 4.0)
        taken = going[better]
        s[taken], after[taken], q[taken] = tried[better], tried_after[better], tried_q[better]
    return s


def spectra(system: Dynamics, s: Tensor) -> list[list[list[float]]]:
    """Returns for each of the states s (K, n) the eigenvalues of dF/ds, the largest first.

    dF/ds is block triangular, so its eigenvalues are those of its diagonal blocks.
    """
    after = system.step(s).chunk(len(system.layers), dim=1)
    blocks = [system.jacobian(layer, own) for layer, own in zip(system.layers, after, strict=True)]
    return [eigenvalues(*at) for at in zip(*blocks, strict=True)]


def eigenvalues(*matrices: Tensor) -> list[list[float]]:
    """Returns the real and imaginary parts of the eigenvalues of matrices, the largest modulus first."""
    values = torch.cat([torch.linalg.eigvals(matrix) for matrix in matrices])
    return torch.view_as_real(values[values.abs().argsort(descending=True, stable=True)]).tolist()
