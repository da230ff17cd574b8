"""Is it the same? The comparison that every claim of this package rests on, and its only table of tolerances.

A difference is the largest one of a tensor, relative to that tensor's largest entry. Element by element, two
correct loops differ by 7e-12 in float64 where this reads 7e-16: an entry near zero has no relative error.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_rnn.reference import NumpyRNN

CENTRAL_DIFFERENCES = 1e-6
"""A hand-written gradient against (L(p + e) - L(p - e)) / 2e in float64."""

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6}
"""One pass of a plain loop in each dtype over up to 100 steps, against the reference, which is float64."""

FLOORS = {torch.float64: 1e-12, torch.float32: 4 * torch.finfo(torch.float32).eps}
"""What a fused kernel may err beyond twice the plain loop's own error."""


def tolerance(dtype: torch.dtype, T: int, passes: int) -> float:
    """How far values may be from the reference that have gone so many times through T steps of a plain loop.

    States have gone through it once, gradients twice. Each step rounds; where the recurrence neither shrinks
    nor grows what it carries, T roundings add up as sqrt(T) (a random walk), and each pass adds its own.
    """
    return TOLERANCES[dtype] * passes * max(1.0, (T / 100) ** 0.5)


class Comparison(NamedTuple):
    """One tensor against its reference: a row of a table."""

    name: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.relative <= self.tolerance


def compare(
    name: str, got: Tensor, want: Tensor | np.ndarray, dtype: torch.dtype, tolerance: float | None = None
) -> Comparison:
    """`got`, which must be of `dtype`, against `want`; the tolerance is the dtype's own if None.

    Raises AssertionError for NaN on either side, another dtype or another shape.
    """
    want = torch.as_tensor(want, dtype=torch.float64)
    assert got.dtype == dtype, f"{name} is {got.dtype}; it should be {dtype}"
    assert got.shape == want.shape, f"{name} has shape {tuple(got.shape)}; it should be {tuple(want.shape)}"
    got, want = got.detach().cpu().double(), want.detach().cpu()
    assert not got.isnan().any(), f"{name} has NaN"
    assert not want.isnan().any(), f"the reference for {name} has NaN"
    absolute = float((got - want).abs().max()) if got.numel() else 0.0
    largest = float(want.abs().max()) if want.numel() else 0.0
    relative = absolute / largest if largest else (torch.inf if absolute else 0.0)
    return Comparison(name, absolute, relative, TOLERANCES[dtype] if tolerance is None else tolerance)


def assert_parity(
    name: str, got: Tensor, want: Tensor | np.ndarray, dtype: torch.dtype, tolerance: float | None = None
) -> None:
    """Raises AssertionError where `compare` does, or where the difference is out of tolerance."""
    row = compare(name, got, want, dtype, tolerance)
    assert row.holds, f"{name} differs by {row.relative:.1e}; allowed is {row.tolerance:.1e}"


def twice_the_error(eager: Tensor, truth: Tensor) -> float:
    """How far a backend may be from the float64 truth: twice as far as eager in its dtype, and a floor."""
    return 2 * compare("eager", eager, truth, eager.dtype).relative + FLOORS[eager.dtype]


def central_differences(
    rnn: NumpyRNN, x: np.ndarray, y_true: np.ndarray, h0: np.ndarray, epsilon: float = 1e-5
) -> dict[str, np.ndarray]:
    """The gradient of `rnn.loss(y_true, rnn.forward(x, h0))` by nudging every entry of every parameter."""
    parameters = {name: getattr(rnn, name) for name in ("Wxh", "Whh", "Why", "bh", "by")} | {"h0": h0}
    gradients = {}
    for name, parameter in parameters.items():
        gradient = np.zeros_like(parameter)
        for entry in np.ndindex(parameter.shape):
            before, losses = parameter[entry], []
            for nudge in (epsilon, -epsilon):
                parameter[entry] = before + nudge
                losses.append(rnn.loss(y_true, rnn.forward(x, h0)))
            parameter[entry] = before
            gradient[entry] = (losses[0] - losses[1]) / (2 * epsilon)
        gradients["d" + name] = gradient
    return gradients


def batch_gradients(
    rnn: NumpyRNN, sequences: list[np.ndarray], labels: list, h0: np.ndarray | None = None
) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """The reference's logits, mean loss and mean gradient over a batch, a sequence at a time.

    h0 is (B, H); its gradient comes back as (B, H) too, the others in their parameter's shape.
    """
    logits, losses, gradients = [], [], []
    for b, (x, y_true) in enumerate(zip(sequences, labels, strict=True)):
        logits.append(rnn.forward(x, None if h0 is None else h0[b]))
        losses.append(rnn.loss(y_true, logits[-1]))
        gradients.append(rnn.backward(x, y_true, logits[-1]))
    mean = {name: np.mean([g[name] for g in gradients], axis=0) for name in gradients[0] if name != "dh0"}
    mean["dh0"] = np.stack([g["dh0"] for g in gradients]) / len(gradients)
    return np.stack(logits) if rnn.readout == "last" else logits, float(np.mean(losses)), mean
