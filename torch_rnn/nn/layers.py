"""Recurrences on top of each other, in one direction or both, and steps that a mask leaves out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_rnn.ops import recurrence
from torch_rnn.ops.checks import check_lengths
from torch_rnn.ops.inputs import real_steps


class Weights(NamedTuple):
    """Of one layer in one direction: Wxh (H, D), bh (H,) or None for zeros, Whh (H, H)."""

    Wxh: Tensor
    bh: Tensor | None
    Whh: Tensor


def layered(
    x: Tensor,
    weights: Sequence[Sequence[Weights]],
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    backend: str = "auto",
    dropout: Callable[[Tensor], Tensor] | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """The top layer's states h (B, T, directions * H), and every layer's and direction's last, hT (n, B, H).

    x        (B, T, D) floats, or (B, T) ids.
    weights  of each layer, from the bottom, those of its one or two directions; n in all, as in hT.
    h0       (n, B, H); zeros if None.
    lengths  (B,) integers in 0..T.
    mask     (B, T) booleans, True where a step is real; with lengths a step is real where both say so.
    dropout  is applied to what each layer but the first takes in.
    recompute  as in `recurrence`.

    A step that is not real leaves the state unchanged, in both directions; the second goes from T - 1 to 0.
    Raises TypeError or ValueError as `recurrence` does.
    """
    if mask is not None:
        mask = mask.to(x.device)
        if lengths is not None:
            check_lengths(lengths, *x.shape[:2])
            mask = mask & real_steps(lengths.to(x.device), x.shape[1])
        order, lengths = torch.argsort(~mask, dim=1, stable=True), mask.sum(dim=1)
        x = _along_time(x, order)
    last, number = [], 0
    for layer, directions in enumerate(weights):
        if layer and dropout is not None:
            x = dropout(x)
        found = []
        for direction, (Wxh, bh, Whh) in enumerate(directions):
            start = None if h0 is None else h0[number]
            h, hT = recurrence(
                _reversed(x, lengths) if direction else x,
                Wxh,
                Wxh.new_zeros(len(Wxh)) if bh is None else bh,
                Whh,
                start,
                lengths,
                nonlinearity=nonlinearity,
                backend=backend,
                final=True,
                recompute=recompute,
            )
            if start is None:
                start = torch.zeros_like(hT)
            if direction:
                h = _reversed_states(h, start, lengths)
            if mask is not None and layer == len(weights) - 1:
                h = _spread(h, start, mask, bool(direction))
            found.append(h)
            last.append(hT)
            number += 1
        x = torch.cat(found, dim=2) if len(found) > 1 else found[0]
    return x, torch.stack(last)


def _along_time(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, t]] for x (B, T') or (B, T', D)."""
    return x.gather(1, index if x.dim() == 2 else index[..., None].expand(-1, -1, x.shape[2]))


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row's real steps from the last to the first, then its padding."""
    if lengths is None:
        return x.flip(1)
    t, lengths = torch.arange(x.shape[1], device=x.device), lengths.to(x.device, torch.int64)[:, None]
    return _along_time(x, torch.where(t < lengths, lengths - 1 - t, t))


def _reversed_states(h: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
    """The states of a reversed x where they belong in time; in the padding, before all real steps, h0."""
    h = _reversed(h, lengths)
    if lengths is None:
        return h
    return torch.where(real_steps(lengths.to(h.device), h.shape[1])[..., None], h, h0[:, None])


def _spread(h: Tensor, h0: Tensor, mask: Tensor, backwards: bool) -> Tensor:
    """h of the real steps, which lie in front, to where the mask has them; elsewhere what is held there."""
    taken = mask.cumsum(dim=1)  # real steps up to t
    if backwards:
        return _along_time(torch.cat([h, h0[:, None]], dim=1), taken - mask.long())
    return _along_time(torch.cat([h0[:, None], h], dim=1), taken)
