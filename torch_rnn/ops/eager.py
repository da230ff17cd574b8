"""The PyTorch loop that defines the operation. Its gradient comes from autograd.

h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)
"""

import torch
from torch import Tensor

from torch_rnn.ops.inputs import project
from torch_rnn.ops.nonlinearities import NONLINEARITIES


def eager(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Returns h (B, T, H) and hT (B, H). The arguments are those of `recurrence`, already checked."""
    f = NONLINEARITIES[nonlinearity].function
    xw = project(x, Wxh, bh, lengths)  # (B, T, H)
    h, hs = h0, []
    # unbind instead of xw[:, t]: the gradients of T slices would be T tensors as large as xw.
    for t, xw_t in enumerate(xw.unbind(1)):  # xw_t (B, H)
        h_next = f(xw_t + h @ Whh.t())
        h = h_next if lengths is None else torch.where((t < lengths)[:, None], h_next, h)
        hs.append(h)
    return torch.stack(hs, dim=1) if hs else xw, h
