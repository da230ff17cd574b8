"""How far each step moves the logits: contributions that sum, with by, to the logits.

The state of a direction is the sum of its changes: h[t] is the sum of h[s] - h[s-1] over s <= t, where h[-1]
is 0. A readout is a weighted sum of states, unit by unit, so it is a weighted sum of changes:

    last, every   Why h[T]             each change counts fully
    mean          Why mean of h[t]     the change at t counts with the share of the steps from t on
    max           Why max of h[t]      of each unit, the changes up to its largest value count

The second direction does the same from the last step to the first, and both are added at the step. Of several
layers, the states are those of the top one.
"""

import torch
from torch import Tensor

from torch_rnn.nn.module import RNN
from torch_rnn.ops.inputs import real_steps


@torch.no_grad()
def contributions(rnn: RNN, x: Tensor, lengths: Tensor) -> Tensor:
    """Returns how far each step moves each logit, (B, T, C); the sum over T plus `by` is the logits.

    With the readout "every" these are the logits of the last step.

    Args:
        rnn: The RNN.
        x: (B, T) ids or (B, T, D) floats.
        lengths: (B,), the number of real steps of each row; a step that is not real contributes 0.
    """
    return contributions_of_states(rnn, rnn.states(x, lengths), lengths)


def contributions_of_states(rnn: RNN, h: Tensor, lengths: Tensor) -> Tensor:
    """Returns the same for the states h (B, T, directions * H) that `rnn.states` has returned."""
    moved, counted = [], []
    for direction, states in enumerate(h.split(rnn.hidden_size, dim=2)):
        moved.append(changes(states, backwards=bool(direction)))
        counted.append(_share(rnn.readout, states, lengths, backwards=bool(direction)))
    return (torch.cat(moved, dim=2) * torch.cat(counted, dim=2)) @ rnn.Why.t()


def changes(h: Tensor, backwards: bool) -> Tensor:
    """Returns h[t] - h[t-1], or h[t] - h[t+1] for a direction that goes backwards; (B, T, H)."""
    zero = torch.zeros_like(h[:, :1])
    before = torch.cat([h[:, 1:], zero], dim=1) if backwards else torch.cat([zero, h[:, :-1]], dim=1)
    return h - before


def running_logits(rnn: RNN, h: Tensor, parts: Tensor) -> Tensor:
    """Returns the logits after each step of one sequence, (T, C).

    They are those of the sequence that ends there. With two directions, which would read a shorter sequence
    anew, they are `by` plus the contributions so far.

    Args:
        rnn: The RNN.
        h: The states (T, directions * H).
        parts: The contributions (T, C).
    """
    by = 0 if rnn.by is None else rnn.by
    if rnn.bidirectional:
        return parts.cumsum(dim=0) + by
    if rnn.readout == "mean":
        h = h.cumsum(dim=0) / torch.arange(1, len(h) + 1, dtype=h.dtype)[:, None]
    elif rnn.readout == "max":
        h = h.cummax(dim=0).values
    return h @ rnn.Why.t() + by


def _share(readout: str, h: Tensor, lengths: Tensor, backwards: bool) -> Tensor:
    """Returns the share with which each change counts in the readout, (B, T, H)."""
    T = h.shape[1]
    if readout in ("last", "every"):
        return torch.ones_like(h)
    t, n = torch.arange(T)[None, :], lengths[:, None]
    if readout == "mean":
        steps = t + 1 if backwards else n - t
        share = (steps * (t < n)).to(h.dtype) / n.clamp(min=1)
        return share[..., None].expand_as(h)
    highest = h.masked_fill(~real_steps(lengths, T)[..., None], -torch.inf).argmax(dim=1)  # (B, H)
    t = t[..., None]
    return (t >= highest[:, None] if backwards else t <= highest[:, None]).to(h.dtype)
