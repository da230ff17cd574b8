"""The h of y = Why h + by: the last state of each row, the mean or maximum of its states, or every state."""

import torch
from torch import Tensor

from torch_rnn.ops.inputs import real_steps

READOUTS = ("last", "mean", "max", "every")


def read(
    readout: str, h: Tensor, last: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Returns what Why is applied to: (B, width), or h itself for "every".

    Args:
        readout: one of READOUTS.
        h: the states (B, T, width).
        last: the last states (B, width), which a row without a real step is read from.
        lengths, mask: as in `RNN.forward`; a step is real where both say so.
    """
    B, T = h.shape[:2]
    if readout == "every":
        return h
    if readout == "last" or T == 0:
        return last
    if lengths is None and mask is None:
        return h.mean(dim=1) if readout == "mean" else h.amax(dim=1)
    real = torch.ones(B, T, dtype=torch.bool, device=h.device)
    if lengths is not None:
        real = real & real_steps(lengths.to(h.device), T)
    if mask is not None:
        real = real & mask.to(h.device)
    if readout == "mean":
        pooled = h.masked_fill(~real[..., None], 0).sum(dim=1) / real.sum(dim=1).clamp(min=1)[:, None]
    else:
        pooled = h.masked_fill(~real[..., None], -torch.inf).amax(dim=1)
    return torch.where(real.any(dim=1)[:, None], pooled, last)
