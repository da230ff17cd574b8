"""Stacks recurrences: several layers, one or two directions, and masks."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from torch_rnn.ops import recurrence
from torch_rnn.ops.checks import check_h0, check_lengths
from torch_rnn.ops.context import trusted
from torch_rnn.ops.inputs import real_steps


class Weights(NamedTuple):
    """The weights of one layer and direction: Wxh (H, D), bh (H,) or None for zeros, Whh (H, H)."""

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
    reduce: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the states of a stack of layers.

    A step that is not real leaves the state unchanged. The second direction goes from step T - 1 to step 0.

    Args:
        x: (B, T, D) floats or (B, T) ids.
        weights: for each layer, from the bottom, the weights of its one or two directions; n in all.
        h0: (n, B, H); zeros if None.
        lengths: (B,) integers in 0..T.
        mask: (B, T) booleans, True at real steps. With lengths, a step is real if both say so.
        dropout: applied to the input of each layer but the first.
        nonlinearity, backend, recompute: as in `recurrence`.
        reduce: takes the states (B, T, H) of a direction of the top layer, its last states (B, H) and the
            number of real steps, which come first, in the order in which the direction reads them; returns
            (B, H). It spares the work of putting states in the order of time.

    Returns:
        The top layer's states h (B, T, directions * H), or, with `reduce`, what it returned for them (B,
        directions * H); and the last states of all layers and directions, hT (n, B, H).

    Raises:
        TypeError, ValueError: as in `recurrence`.
    """
    if mask is not None:
        mask = mask.to(x.device)
        if lengths is not None:
            check_lengths(lengths, *x.shape[:2])
            mask = mask & real_steps(lengths.to(x.device), x.shape[1])
        # Moves the real steps to the front, so that the mask becomes lengths.
        order, lengths = torch.argsort(~mask, dim=1, stable=True), mask.sum(dim=1)
        x = _gather_steps(x, order)
    last = []
    for layer, directions in enumerate(weights):
        if layer and dropout is not None:
            x = dropout(x)
        states = []
        for direction, (Wxh, bh, Whh) in enumerate(directions):
            start = None if h0 is None else h0[len(last)]
            if layer and start is not None:
                check_h0(start)
            with unchecked() if layer else nullcontext():
                h, hT = recurrence(
                    reversed_steps(x, lengths) if direction else x,
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
            is_top = layer == len(weights) - 1
            if is_top and reduce is not None:
                h = reduce(h, hT, lengths)
            elif direction:
                h = _reversed_states(h, start, lengths)
            if is_top and reduce is None and mask is not None:
                h = _at_masked_steps(h, start, mask, bool(direction))
            states.append(h)
            last.append(hT)
        x = torch.cat(states, dim=-1) if len(states) > 1 else states[0]
    return x, torch.stack(last)


def unchecked() -> AbstractContextManager[None]:
    """Skips the checks of values for a layer above the first: NaN in the states below is no fault of x."""
    return nullcontext() if torch.compiler.is_compiling() else trusted()


def _gather_steps(x: Tensor, index: Tensor) -> Tensor:
    """Returns x[b, index[b, t]] for x (B, T') or (B, T', D)."""
    return x.gather(1, index if x.dim() == 2 else index[..., None].expand(-1, -1, x.shape[2]))


def reversed_steps(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverses the real steps of each row. The padding stays at the end."""
    if lengths is None:
        return x.flip(1)
    t, lengths = torch.arange(x.shape[1], device=x.device), lengths.to(x.device, torch.int64)[:, None]
    return _gather_steps(x, torch.where(t < lengths, lengths - 1 - t, t))


def _reversed_states(h: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
    """Puts the states of a reversed x in the order of time; the padding, which comes first then, holds h0."""
    h = reversed_steps(h, lengths)
    if lengths is None:
        return h
    return torch.where(real_steps(lengths.to(h.device), h.shape[1])[..., None], h, h0[:, None])


def _at_masked_steps(h: Tensor, h0: Tensor, mask: Tensor, backwards: bool) -> Tensor:
    """Moves the states of real steps from the front to the mask's steps; the other steps repeat a state."""
    count = mask.cumsum(dim=1)  # real steps up to and including t
    if backwards:
        return _gather_steps(torch.cat([h, h0[:, None]], dim=1), count - mask.long())
    return _gather_steps(torch.cat([h0[:, None], h], dim=1), count)
