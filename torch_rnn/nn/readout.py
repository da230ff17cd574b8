"""The h of y = Why h + by: the last state of each row, the mean or maximum of its states, or every state."""

import torch
from torch import Tensor

from torch_rnn.ops.context import autocast_off
from torch_rnn.ops.inputs import real_steps

READOUTS = ("last", "mean", "max", "every")


def read(readout: str, h: Tensor, last: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Returns what Why is applied to: (B, width), or h itself for "every".

    For "mean" and "max" the order of the real steps does not matter. Of equal maxima, one gets the gradient.

    Args:
        readout: one of READOUTS.
        h: the states (B, T, width).
        last: the last states (B, width), which a row without a real step is read from.
        lengths: (B,) integers, the number of real steps of each row; T for every row if None.
    """
    if readout not in READOUTS:
        raise ValueError(f"readout is {readout!r}; it must be one of {', '.join(READOUTS)}")
    T = h.shape[1]
    if readout == "every":
        return h
    if readout == "last" or T == 0:
        return last
    if lengths is None:
        return h.mean(dim=1) if readout == "mean" else h.max(dim=1).values
    lengths = lengths.to(h.device)
    real = real_steps(lengths, T)
    if readout == "mean":
        with autocast_off(h.device.type):  # which would round the states
            total = torch.bmm(real[:, None].to(h.dtype), h)[:, 0]  # a product needs no copy of h
        pooled = total / lengths.clamp(min=1)[:, None]
    else:
        pooled = h.masked_fill(~real[..., None], -torch.inf).max(dim=1).values
    return torch.where((lengths > 0)[:, None], pooled, last)
