"""The loop as one node of a graph, for torch.export and ONNX alone, where T stays free.

h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)

Elsewhere it is not used: the second derivative of PyTorch's `scan` is wrong in silence.
"""

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as over_time

from torch_rnn.ops.inputs import project, real_steps
from torch_rnn.ops.nonlinearities import NONLINEARITIES


def scan(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """h (B, T, H) and hT (B, H); the arguments are those of `recurrence`, already checked."""
    f = NONLINEARITIES[nonlinearity].function
    xw = project(x, Wxh, bh, lengths).transpose(0, 1)
    B, T = xw.shape[1], xw.shape[0]
    real = xw.new_ones(B, T, dtype=torch.bool) if lengths is None else real_steps(lengths, T)

    def step(h: Tensor, at_t: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        xw_t, real_t = at_t
        h = torch.where(real_t[:, None], f(xw_t + h @ Whh.t()), h)
        return h, h.clone()  # two outputs must not be one tensor

    hT, hs = over_time(step, h0, (xw, real.t()), dim=0)
    return hs.transpose(0, 1), hT
