"""Checks of what language models need, which raise AssertionError or return.

Their tests call them. test_faults.py calls them with seeded faults, which they must find.
"""

import weakref
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_rnn import RNN, NumpyRNN
from torch_rnn.negatives import draw_negatives, inclusion_probabilities, log_uniform
from torch_rnn.nn.layers import Weights
from torch_rnn.reference import PARAMETERS
from torch_rnn.testing import assert_parity

NAMES = ("dh", "dWhy", "dby")


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations allocate: the largest one, and the most at a time."""

    def __init__(self):
        super().__init__()
        self.largest, self.most, self.now = 0, 0, 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), args)
        return result

    def _count(self, storage, args):
        if storage in self._known:
            return
        self._known.add(storage)
        if any(
            isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() == storage.data_ptr() for arg in args
        ):
            return  # a view of something older
        size = storage.nbytes()
        self.now += size
        self.largest, self.most = max(self.largest, size), max(self.most, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size):
        self.now -= size


def readout(
    N: int, V: int, H: int, bias: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Returns h, Why, by and targets. The last word is a target more often than the others."""
    g = torch.Generator().manual_seed(N + 10 * V + 100 * H)
    h, Why, by = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((N, H), (V, H), (V,)))
    targets = torch.randint(V, (N,), generator=g).where(torch.rand(N, generator=g) < 0.6, V - 1)
    h, Why, by = (tensor.to(dtype).requires_grad_() for tensor in (h, Why, by))
    return h, Why, by if bias else None, targets


def gradients(loss: Tensor, *tensors: Tensor | None) -> dict[str, Tensor]:
    """Returns the gradients of 0.7 times the loss by name, so that a forgotten factor shows."""
    named = {name: tensor for name, tensor in zip(NAMES, tensors, strict=True) if tensor is not None}
    return dict(zip(named, torch.autograd.grad(0.7 * loss, list(named.values())), strict=True))


def assert_equal_losses(got: Tensor, want: Tensor, h: Tensor, Why: Tensor, by: Tensor | None) -> None:
    """Compares two float64 losses and their gradients, to 1e-12."""
    assert_parity("loss", got, want.detach(), torch.float64)
    want = gradients(want, h, Why, by)
    for name, gradient in gradients(got, h, Why, by).items():
        assert_parity(name, gradient, want[name], torch.float64)


def linear_cross_entropy(module: ModuleType, N: int, V: int, H: int, bias: bool, rows: float) -> None:
    """Compares the loss in chunks of so many rows with that of all logits; values and gradients."""
    h, Why, by, targets = readout(N, V, H, bias)
    got = module.linear_cross_entropy(h, Why, by, targets, chunk_bytes=int(8 * V * rows))
    want = F.cross_entropy(F.linear(h, Why, by), targets, reduction="sum")
    assert_equal_losses(got, want, h, Why, by)


def sampled_cross_entropy(module: ModuleType, bias: bool) -> None:
    """Compares the sampled loss with its equation row by row; negatives repeat, and some are targets."""
    h, Why, by, targets = readout(9, 12, 5, bias)
    negatives = torch.tensor([11, 3, 3, 0, 7])
    log_q = torch.tensor([0.3, -1.2, -1.2, -2.0, 0.1], dtype=torch.float64)
    want = 0.0
    for h_n, target in zip(h, targets.tolist(), strict=True):
        y = F.linear(h_n, Why, by)
        kept = [k for k, v in enumerate(negatives.tolist()) if v != target]
        Z = y[target].exp() + (y[negatives[kept]] - log_q[kept]).exp().sum()
        want = want + Z.log() - y[target]
    assert_equal_losses(module.sampled_cross_entropy(h, Why, by, targets, negatives, log_q), want, h, Why, by)


def sampled_from_all(module: ModuleType, bias: bool) -> None:
    """Compares the sampled loss with the full one where each word is drawn once."""
    h, Why, by, targets = readout(9, 12, 5, bias)
    p = inclusion_probabilities(12, log_uniform(12))
    sample, log_q = draw_negatives(p, torch.Generator().manual_seed(0))
    got = module.sampled_cross_entropy(h, Why, by, targets, sample, log_q)
    want = F.cross_entropy(F.linear(h, Why, by), targets, reduction="sum")
    assert_equal_losses(got, want, h, Why, by)


def sampled_partition_function(module: ModuleType, drawing: ModuleType, draws: int = 2000) -> None:
    """Checks that the mean of Z over samples is the sum of the full softmax, to 5 standard errors."""
    h, Why, by, targets = readout(1, 30, 4)
    y = F.linear(h, Why, by)[0].detach()
    p, g = drawing.inclusion_probabilities(6, drawing.log_uniform(30)), torch.Generator().manual_seed(1)
    Z = []
    for _ in range(draws):
        loss = module.sampled_cross_entropy(h, Why, by, targets, *drawing.draw_negatives(p, g))
        Z.append(loss.detach() + y[targets[0]])
    Z = torch.stack(Z).exp()
    error = (Z.mean() - y.exp().sum()).abs() / (Z.std() / draws**0.5)
    assert Z.std() > 0.1 * Z.mean(), "this case has too little noise to show a fault"
    assert error < 5, f"the mean of Z is off by {error:.1f} standard errors"


class Drawing(NamedTuple):
    """The settings of how ids are drawn."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


DRAWINGS = (
    Drawing(),
    Drawing(temperature=0.5),
    Drawing(temperature=3.0),
    Drawing(temperature=0),
    Drawing(top_k=1),
    Drawing(top_k=4),
    Drawing(top_k=100),
    Drawing(top_p=0.6),
    Drawing(top_p=1e-9),
    Drawing(top_p=1.0),
    Drawing(temperature=1.7, top_k=5, top_p=0.8),
)


def drawn_in_numpy(
    rnn: NumpyRNN, prompt: np.ndarray, uniform: np.ndarray, h0: np.ndarray, drawing: Drawing
) -> list[int]:
    """Draws an id for each uniform number, word by word, in a loop over the reference."""
    ids, x = [], prompt
    for u in uniform:
        y = rnn.forward(x, h0).reshape(-1, rnn.output_size)[-1]
        h0 = rnn.hs[-1]
        if drawing.temperature == 0:
            x = [int(np.argmax(y))]
        else:
            p = np.exp((y - y.max()) / drawing.temperature)
            if drawing.top_k is not None:
                p = np.array([p_v * (np.sum(p > p_v) < drawing.top_k) for p_v in p])
            if drawing.top_p is not None:
                p = p / p.sum()
                p = np.array([p_v * (np.sum(p[p > p_v]) < drawing.top_p) for p_v in p])
            below, v = 0.0, -1
            while below < (1 - u) * p.sum() or v < 0:
                v += 1
                below += p[v]
            x = [v]
        ids += x
    return ids


def generation(module: ModuleType, readout: str, drawing: Drawing, steps: int = 40) -> None:
    """Compares what Generation draws for three rows, and its states, with a loop over NumpyRNN."""
    V, H, B = 9, 7, 3
    reference = NumpyRNN(V, H, V, readout=readout, seed=5)
    rng = np.random.default_rng(1)
    for name in PARAMETERS:
        getattr(reference, name)[...] += rng.standard_normal(getattr(reference, name).shape) / 2
    rnn = RNN.from_numpy(reference)
    prompt, h0 = rng.integers(V, size=(B, 4)), rng.standard_normal((B, H)) / 2
    uniform = torch.rand(steps, B, dtype=torch.float64, generator=torch.Generator().manual_seed(8)).numpy()
    weights = [Weights(rnn.Wxh, rnn.bh, rnn.Whh)]
    generator = torch.Generator().manual_seed(8)
    drawn = module.Generation(
        torch.from_numpy(prompt), weights, rnn.Why, rnn.by, torch.from_numpy(h0)[None],
        **drawing._asdict(), generator=generator,
    )  # fmt: skip
    got = torch.stack([next(drawn) for _ in range(steps)], dim=1)
    for b in range(B):
        want = drawn_in_numpy(reference, prompt[b], uniform[:, b], h0[b], drawing)
        assert got[b].tolist() == want, f"row {b} is {got[b].tolist()}; it should be {want}"
        reference.forward(np.concatenate([prompt[b], want[:-1]]), h0[b])
        assert_parity("h", drawn.h[0, b], reference.hs[-1], torch.float64)


def numpy_sample(module: ModuleType, readout: str, temperature: float) -> None:
    """Compares NumpyRNN.sample with a loop over forward."""
    reference = module.NumpyRNN(9, 7, 9, readout=readout, seed=5)
    rng = np.random.default_rng(1)
    for name in PARAMETERS:
        getattr(reference, name)[...] += rng.standard_normal(getattr(reference, name).shape) / 2
    prompt, h0 = rng.integers(9, size=4), rng.standard_normal(7) / 2
    uniform = np.random.default_rng(3).random(40)
    got = reference.sample(prompt, 40, temperature=temperature, seed=3, h0=h0)
    assert got.tolist() == drawn_in_numpy(reference, prompt, uniform, h0, Drawing(temperature))
