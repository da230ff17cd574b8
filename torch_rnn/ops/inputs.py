"""The part of the recurrence that needs no loop: xw[t] = Wxh x[t] + bh for all t at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_rnn.ops.context import autocast_off


def real_steps(lengths: Tensor, T: int) -> Tensor:
    """Returns the (B, T) mask t < lengths[b]. Example: lengths [1, 2] and T = 2 give [[1, 0], [1, 1]]."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def add_at_ids(dxw: Tensor, ids: Tensor, lengths: Tensor | None, D: int) -> Tensor:
    """Returns the gradient of the look-up, (D, H): the sum of dxw (B, T, H) for each id, without padding."""
    if lengths is not None:
        ids = ids.masked_fill(~real_steps(lengths, ids.shape[1]), 0)  # dxw is zero there
    return dxw.new_zeros(D, dxw.shape[2]).index_add(0, ids.flatten(), dxw.flatten(0, 1))


def project(x: Tensor, Wxh: Tensor, bh: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns xw (B, T, H) for floats x (B, T, D) or ids x (B, T).

    Replaces the padding of x with zeros first, so that NaN or invalid ids there reach neither xw nor a
    gradient. In memory, time comes first, so that each step is one block.
    """
    if lengths is not None:
        padded = ~real_steps(lengths, x.shape[1])
        x = x.masked_fill(padded if x.dim() == 2 else padded[..., None], 0)
    x = x.transpose(0, 1)  # (T, B) or (T, B, D)
    with autocast_off(x.device.type):
        xw = F.linear(x, Wxh, bh) if x.is_floating_point() else F.embedding(x, Wxh.t()) + bh
    return xw.transpose(0, 1)
