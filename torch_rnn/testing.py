"""Compares tensors with reference values, with this package's only table of tolerances.

The difference of two tensors is their largest absolute difference, divided by the reference's largest entry.
Relative differences of single entries say little near zero: there, two correct float64 loops differ by 7e-12,
while the difference used here is 7e-16.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_rnn.reference import NumpyRNN

CENTRAL_DIFFERENCES = 1e-6
"""For a hand-written gradient against (L(p + e) - L(p - e)) / 2e in float64."""

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6}
"""For one pass of a plain loop over at most 100 steps, against the float64 reference."""

MARGINS = {torch.float64: 1e-12, torch.float32: 4 * torch.finfo(torch.float32).eps}
"""Error that a fused kernel may add to twice the plain loop's error."""


def tolerance(dtype: torch.dtype, T: int, passes: int) -> float:
    """Returns the tolerance for values that a plain loop computed in some passes over T steps.

    States take one pass, gradients two. Each step rounds. Errors that the recurrence neither shrinks nor
    amplifies grow as sqrt(T), as in a random walk. The errors of the passes add up.
    """
    return TOLERANCES[dtype] * passes * max(1.0, (T / 100) ** 0.5)


class Comparison(NamedTuple):
    """The difference of one tensor from its reference values, and the tolerance."""

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
    """Compares `got`, which must have `dtype`, with `want`. The default tolerance is TOLERANCES[dtype].

    Raises AssertionError if one of the two has NaN, or dtype or shape are wrong.
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
    """Raises AssertionError as `compare` does, or if the difference is out of tolerance."""
    row = compare(name, got, want, dtype, tolerance)
    assert row.holds, f"{name} differs by {row.relative:.1e}; allowed is {row.tolerance:.1e}"


def twice_the_error(eager: Tensor, truth: Tensor) -> float:
    """Returns a backend's tolerance against float64 values: twice the error of eager plus MARGINS."""
    return 2 * compare("eager", eager, truth, eager.dtype).relative + MARGINS[eager.dtype]


def central_differences(
    rnn: NumpyRNN, x: np.ndarray, y_true: np.ndarray, h0: np.ndarray, epsilon: float = 1e-5
) -> dict[str, np.ndarray]:
    """Returns the gradient of `rnn.loss(y_true, rnn.forward(x, h0))`, entry by entry."""
    parameters = {name: getattr(rnn, name) for name in ("Wxh", "Whh", "Why", "bh", "by")} | {"h0": h0}
    gradients = {}
    for name, parameter in parameters.items():
        gradient = np.zeros_like(parameter)
        for entry in np.ndindex(parameter.shape):
            value, losses = parameter[entry], []
            for change in (epsilon, -epsilon):
                parameter[entry] = value + change
                losses.append(rnn.loss(y_true, rnn.forward(x, h0)))
            parameter[entry] = value
            gradient[entry] = (losses[0] - losses[1]) / (2 * epsilon)
        gradients["d" + name] = gradient
    return gradients


def batch_gradients(
    rnn: NumpyRNN, sequences: list[np.ndarray], labels: list, h0: np.ndarray | None = None
) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Returns the reference's logits, mean loss and mean gradients over a batch. h0 and dh0 are (B, H)."""
    logits, losses, gradients = [], [], []
    for b, (x, y_true) in enumerate(zip(sequences, labels, strict=True)):
        logits.append(rnn.forward(x, None if h0 is None else h0[b]))
        losses.append(rnn.loss(y_true, logits[-1]))
        gradients.append(rnn.backward(x, y_true, logits[-1]))
    mean = {name: np.mean([g[name] for g in gradients], axis=0) for name in gradients[0] if name != "dh0"}
    mean["dh0"] = np.stack([g["dh0"] for g in gradients]) / len(gradients)
    return np.stack(logits) if rnn.readout == "last" else logits, float(np.mean(losses)), mean
