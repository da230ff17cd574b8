"""The checks of correctness, each based on the one before: rung_1 to rung_4 raise AssertionError or return.

The tests of the packages call them. test_faults.py calls them with seeded faults, which they must find.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_rnn import RNN, NumpyRNN, recurrence
from torch_rnn.losses import cross_entropy
from torch_rnn.ops import available
from torch_rnn.ops.inputs import real_steps
from torch_rnn.reference import CLIP, PARAMETERS
from torch_rnn.testing import (
    CENTRAL_DIFFERENCES,
    TOLERANCES,
    assert_parity,
    batch_gradients,
    central_differences,
    twice_the_error,
)

READOUTS = ("last", "every")


class Shape(NamedTuple):
    """B, T, D and H of a batch, whether x is ids, and its lengths (None: all T)."""

    B: int
    T: int
    D: int
    H: int
    ids: bool
    lengths: tuple[int, ...] | None = None


SHAPES = (
    Shape(3, 7, 5, 4, ids=True),
    Shape(3, 7, 5, 4, ids=False),
    Shape(1, 1, 2, 1, ids=False),
    Shape(1, 1, 1, 1, ids=True),
    Shape(4, 9, 6, 37, ids=True, lengths=(1, 9, 0, 5)),
    Shape(4, 9, 6, 37, ids=False, lengths=(9, 1, 4, 0)),
    Shape(2, 6, 3, 8, ids=False, lengths=(0, 0)),
    Shape(5, 120, 11, 16, ids=True, lengths=(120, 1, 64, 119, 120)),
)


def affordable(shape: Shape, backend: str, device: str) -> Shape:
    """Shortens the longest shape for Triton's interpreter, which takes 10 ms a step."""
    if backend == "triton" and device == "cpu" and shape == SHAPES[-1]:
        return shape._replace(T=40, lengths=(40, 1, 21, 39, 40))
    return shape


def inputs(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns x (float64 or ids), lengths and a nonzero h0. The padding of x holds invalid values."""
    g = torch.Generator().manual_seed(seed)
    B, T, D, H = shape[:4]
    x = torch.randint(D, (B, T), generator=g) if shape.ids else torch.randn(B, T, D, generator=g).double()
    lengths = None if shape.lengths is None else torch.tensor(shape.lengths)
    if lengths is not None:
        x[~real_steps(lengths, T)] = -(10**6) if shape.ids else torch.nan
    return x, lengths, torch.randn(B, H, generator=g).double() / 2


def labels(shape: Shape, C: int, readout: str, seed: int = 1) -> Tensor:
    """Returns labels that are mostly the highest class; if balanced, dby would cancel to rounding errors."""
    g = torch.Generator().manual_seed(seed)
    size = (shape.B, shape.T) if readout == "every" else (shape.B,)
    highest = max(C, 2) - 1
    return torch.randint(highest + 1, size, generator=g).where(torch.rand(size, generator=g) < 0.4, highest)


def rows(x: Tensor, lengths: Tensor | None, y: Tensor, readout: str) -> tuple[list, list]:
    """Returns a padded batch as lists of sequences and labels for the reference, without padding."""
    ends = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
    sequences = [row[:end].numpy() for row, end in zip(x, ends, strict=True)]
    return sequences, [
        row[:end].numpy() if readout == "every" else row for row, end in zip(y, ends, strict=True)
    ]


def skip_unless_it_runs(backend: str, device: str, dtype: torch.dtype = torch.float64) -> None:
    """Skips the test if the backend does not run on the device here with this dtype."""
    if backend not in available(device, dtype):
        pytest.skip(f"{backend} does not run on {device} with {dtype} here")


def rung_1(reference: type[NumpyRNN], shape: Shape, readout: str, C: int) -> None:
    """Compares every gradient of reference.py, including dh0, with central differences."""
    x, lengths, h0 = inputs(shape)
    y = labels(shape, C, readout)
    rnn = reference(shape.D, shape.H, C, readout=readout)
    rnn.bh += 0.1
    rnn.by -= 0.2
    for sequence, y_true, h0_row in zip(*rows(x, lengths, y, readout), h0.numpy(), strict=True):
        got = rnn.backward(sequence, y_true, rnn.forward(sequence, h0_row))
        for name, want in central_differences(rnn, sequence, y_true, h0_row.copy()).items():
            if np.abs(want).max(initial=0) < 1e-9:  # no steps: the true gradient is zero
                assert not got[name].any(), f"{name} should be zero"
            else:
                assert_parity(name, torch.tensor(got[name]), want, torch.float64, CENTRAL_DIFFERENCES)


def rung_2(backend: str, shape: Shape, readout: str, C: int, dtype: torch.dtype, device: str = "cpu") -> None:
    """Compares an RNN with the reference: states, logits, loss, and gradients of all parameters and h0."""
    x, lengths, h0 = inputs(shape)
    y = labels(shape, C, readout)
    sequences, targets = rows(x, lengths, y, readout)
    reference = NumpyRNN(shape.D, shape.H, C, readout=readout, seed=3)
    reference.bh += 0.1
    reference.by -= 0.2
    logits, loss, want = batch_gradients(reference, sequences, targets, h0.numpy())

    rnn = RNN.from_numpy(reference, backend=backend, dtype=dtype, device=device)
    x = x.to(device) if shape.ids else x.to(device, dtype)
    h0 = h0.to(device, dtype).requires_grad_()
    lengths = None if lengths is None else lengths.to(device)
    h = rnn.states(x, lengths, h0)
    for b, sequence in enumerate(sequences):
        reference.forward(sequence, h0[b].detach().cpu().double().numpy())
        states = np.concatenate([reference.hs[1:], np.repeat(reference.hs[-1:], shape.T - len(sequence), 0)])
        assert_parity(f"h[{b}]", h[b], states, dtype)
    y_pred = rnn(x, lengths, h0)
    got_losses = cross_entropy(y_pred, y.to(device))
    if readout == "every":
        real = torch.ones_like(y, dtype=torch.bool) if lengths is None else real_steps(lengths.cpu(), shape.T)
        assert_parity("logits", y_pred[real.to(device)], np.concatenate(logits), dtype)
        got_losses = got_losses[real.to(device)]
    else:
        assert_parity("logits", y_pred, logits, dtype)
    got_loss = got_losses.sum() / shape.B
    assert_parity("loss", got_loss, np.array(loss), dtype)
    got = torch.autograd.grad(got_loss, [*rnn.parameters(), h0], materialize_grads=True)
    for name, gradient in zip([*dict(rnn.named_parameters()), "h0"], got, strict=True):
        assert_parity(f"d{name}", gradient, want[f"d{name}"], dtype)


def states_and_gradients(
    backend: str, shape: Shape, dtype: torch.dtype, nonlinearity: str, device: str
) -> dict[str, Tensor]:
    """Returns h, hT, and their gradients for random dh and dhT, and for dhT alone.

    dh is nonzero at padded steps too.
    """
    x, lengths, h0 = inputs(shape)
    g = torch.Generator().manual_seed(5)
    D, H = shape.D, shape.H
    tensors = {"Wxh": torch.randn(D, H, generator=g).t(), "bh": torch.randn(H, generator=g)}
    tensors["Whh"] = torch.nn.init.orthogonal_(torch.empty(H, H), generator=g) * 0.9
    tensors = {name: tensor.double() / 2 for name, tensor in tensors.items()} | {"h0": h0}
    if not shape.ids:
        tensors["x"] = x
    tensors = {name: value.to(device, dtype).requires_grad_() for name, value in tensors.items()}
    dh = torch.randn(shape.B, shape.T, H, generator=g).to(device, dtype)
    dhT = torch.randn(shape.B, H, generator=g).to(device, dtype)
    h, hT = recurrence(
        tensors.get("x", x.to(device)),
        *(tensors[name] for name in ("Wxh", "bh", "Whh", "h0")),
        None if lengths is None else lengths.to(device),
        nonlinearity=nonlinearity,
        backend=backend,
        final=True,
    )
    results = {"h": h, "hT": hT}
    for outputs, upstream, name in (((h, hT), (dh, dhT), "d{}"), ((hT,), (dhT,), "d{} of hT alone")):
        got = torch.autograd.grad(
            outputs, list(tensors.values()), upstream, retain_graph=True, materialize_grads=True
        )
        results |= {name.format(tensor): gradient for tensor, gradient in zip(tensors, got, strict=True)}
    return results


def rung_3(
    backend: str, shape: Shape, dtype: torch.dtype, nonlinearity: str = "tanh", device: str = "cpu"
) -> None:
    """Checks that a backend's error against float64 is at most twice the error of eager, plus a margin."""
    shape = affordable(shape, backend, device)
    truth = states_and_gradients("eager", shape, torch.float64, nonlinearity, "cpu")
    eager = states_and_gradients("eager", shape, dtype, nonlinearity, device)
    got = states_and_gradients(backend, shape, dtype, nonlinearity, device)
    for name, want in truth.items():
        assert_parity(name, got[name], want, dtype, twice_the_error(eager[name], want))


def rung_4(
    backend: str, readout: str, C: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> None:
    """Compares losses and parameters of ten clipped training steps in NumPy and in the RNN."""
    shape = Shape(10, 30, 6, 8, ids=False, lengths=(30, 1, 30, 12, 5, 29, 30, 2, 8, 17))
    x, lengths, _ = inputs(shape)
    x[..., 0] *= 50  # a large input with small weights: dWxh gets clipped, and h is not saturated
    sequences, targets = rows(x, lengths, labels(shape, C, readout), readout)
    reference = NumpyRNN(shape.D, shape.H, C, readout=readout)
    reference.Wxh[:, 0] /= 50
    rnn = RNN.from_numpy(reference, backend=backend, dtype=dtype, device=device)
    tolerance = len(sequences) * TOLERANCES[dtype]  # each step adds its own rounding
    got, want, extremes = [], [], []
    for sequence, y_true in zip(sequences, targets, strict=True):
        gradients = reference.backward(sequence, y_true, reference.forward(sequence))
        extremes += [f(gradients[f"d{name}"]) for name in PARAMETERS for f in (np.min, np.max)]
        want += reference.train([sequence], [y_true], epochs=1, learning_rate=0.002)
        got += rnn.fit([sequence], [y_true], epochs=1, learning_rate=0.002)
    assert min(extremes) < -2 * CLIP, "this case does not clip below"
    assert max(extremes) > 2 * CLIP, "this case does not clip above"
    assert_parity("losses", torch.tensor(got, dtype=dtype), np.array(want), dtype, tolerance)
    for name in PARAMETERS:
        assert_parity(name, getattr(rnn, name), getattr(reference, name), dtype, tolerance)
