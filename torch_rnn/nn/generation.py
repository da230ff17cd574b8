"""Draws ids from an RNN that predicts the next one: each drawn id is the input of the next step.

h = tanh(Wxh[:, id] + Whh h + bh)          y = Why h + by          id ~ softmax(y / temperature)
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from numbers import Integral, Real

import torch
from torch import Tensor

from torch_rnn.nn.layers import Weights, layered
from torch_rnn.ops.context import readable
from torch_rnn.ops.nonlinearities import NONLINEARITIES

LOWEST_TEMPERATURE = 1e-6
"""The lowest one but 0. Logits divided by much less would overflow."""


class Generation(Iterator[Tensor]):
    """Yields the next ids of B rows, (B,) int64, without an end.

    A step takes the same time however long the text is. The weights are a copy of those at the start; dropout
    and autocast are off. At each step a row's id is the smallest one whose cumulative probability reaches
    1 - u, where u in [0, 1) is the row's entry of
    `torch.rand(B, 1, dtype=torch.float64, generator=generator)`. What is drawn for a row depends on its own
    values and place alone.

    Args:
        ids: (B, T) integers, the prompt, T at least 1.
        weights: for each layer, from the bottom, its weights (one direction).
        Why, by: of the readout; by is None for zeros.
        h0: (layers, B, H), the states before the prompt; zeros if None.
        nonlinearity, backend: as in `recurrence`.
        temperature, top_k, top_p, generator: as in `RNN.generate`.

    Attributes:
        h: (layers, B, H), the states before the latest ids are read. With those ids as the prompt, they are
            the h0 of a generation that continues.
    """

    def __init__(
        self,
        ids: Tensor,
        weights: Sequence[Weights],
        Why: Tensor,
        by: Tensor | None,
        h0: Tensor | None = None,
        *,
        nonlinearity: str = "tanh",
        backend: str = "auto",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ):
        check_drawing(temperature, top_k, top_p, generator)
        if ids.shape[1] == 0:
            raise ValueError(f"ids has shape {tuple(ids.shape)}; the prompt needs at least one step")
        self.temperature, self.top_k, self.top_p, self.generator = temperature, top_k, top_p, generator
        self._f = NONLINEARITIES[nonlinearity].function
        with torch.no_grad():
            weights = [
                Weights(*(None if w is None else w.detach().clone() for w in layer)) for layer in weights
            ]
            settings = {"nonlinearity": nonlinearity, "backend": backend}
            states = layered(ids, [[layer] for layer in weights], h0, **settings)[1]
            bottom, *self._upper = weights
            self._columns = bottom.Wxh.t() if bottom.bh is None else bottom.Wxh.t() + bottom.bh  # (D, H)
            self._WhhT = [layer.Whh.t() for layer in weights]
            self._WhyT, self._by = Why.detach().clone().t(), None if by is None else by.detach().clone()
        self._states = list(states)
        self._next: Tensor | None = None  # the latest ids, which the next step reads

    @property
    def h(self) -> Tensor:
        return torch.stack(self._states)

    @torch.no_grad()
    def __next__(self) -> Tensor:
        kind = self._columns.device.type
        autocast = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            if self._next is not None:
                self._step(self._next)
            h = self._states[-1]
            y = h @ self._WhyT if self._by is None else torch.addmm(self._by, h, self._WhyT)
            self._next = self._draw(y)
        return self._next

    def _step(self, ids: Tensor) -> None:
        xw = self._columns.index_select(0, ids)
        for layer, (h, WhhT) in enumerate(zip(self._states, self._WhhT, strict=True)):
            if layer:
                Wxh, bh, _ = self._upper[layer - 1]
                below = self._states[layer - 1]
                xw = below @ Wxh.t() if bh is None else torch.addmm(bh, below, Wxh.t())
            self._states[layer] = self._f(torch.addmm(xw, h, WhhT))

    def _draw(self, y: Tensor) -> Tensor:
        """Returns ids (B,) for the logits y (B, V)."""
        if self.temperature == 0:
            ids = y.argmax(dim=1)
            _check_finite(y.gather(1, ids[:, None]))
            return ids
        if self.temperature != 1:
            y = y.double().div_(self.temperature)
        p = y.softmax(dim=1, dtype=torch.float64)
        _check_finite(p.sum(dim=1))
        if self.top_k is not None or self.top_p is not None:
            p = keep_most_probable(p, self.top_k, self.top_p)
        cumulative = p.cumsum(dim=1)
        where = y.device if self.generator is None else self.generator.device
        u = torch.rand(len(y), 1, dtype=torch.float64, device=where, generator=self.generator)
        reached = (1 - u).to(y.device) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, reached)[:, 0].clamp_(max=p.shape[1] - 1)


def _check_finite(y: Tensor) -> None:
    """Raises ValueError where what was computed from the logits has NaN or infinity; not on a GPU."""
    if readable(y) and not y.isfinite().all():
        raise ValueError(
            "the logits have NaN or infinity; the weights and h0 must be finite and not too large"
        )


def keep_most_probable(p: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Returns p (B, V) with zeros for the ids that top_k and top_p leave out.

    top_k keeps the ids that fewer than top_k others exceed. Of these, top_p keeps the nucleus (Holtzman et
    al., 2020): the ids for which those that are more probable have less than top_p of the sum. Equally
    probable ids are kept together.
    """
    if top_k is not None and top_k < p.shape[1]:
        lowest = p.topk(top_k, dim=1).values[:, -1:]
        p = p.where(p >= lowest, 0)
    if top_p is not None and top_p < 1:
        ordered = p.sort(dim=1, descending=True).values
        before = ordered.cumsum(dim=1).sub_(ordered)
        kept = before < top_p * ordered.sum(dim=1, keepdim=True)
        lowest = ordered.where(kept, torch.inf).amin(dim=1, keepdim=True)
        p = p.where(p >= lowest, 0)
    return p


def check_drawing(
    temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None = None
) -> None:
    """Raises TypeError or ValueError, which names the first argument that is out of range."""
    for name, value in (("temperature", temperature), ("top_p", 1 if top_p is None else top_p)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} is {value!r}; it must be a number")
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator is {generator!r}; it must be a torch.Generator")
    if temperature != 0 and not LOWEST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0, or {LOWEST_TEMPERATURE} or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, Integral):
            raise TypeError(f"top_k is {top_k!r}; it must be a whole number")
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
