"""The loop as one node of a graph, so that T can vary in exported models (torch.export and ONNX).

h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)

Only used for export, because the second derivative of PyTorch's `scan` is silently wrong.
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
    """Returns h (B, T, H) and hT (B, H). The arguments are those of `recurrence`, already checked."""
    f = NONLINEARITIES[nonlinearity].function
    xw = project(x, Wxh, bh, lengths).transpose(0, 1)
    B, T = xw.shape[1], xw.shape[0]
    real = xw.new_ones(B, T, dtype=torch.bool) if lengths is None else real_steps(lengths, T)

    def step(h: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        xw_t, real_t = inputs
        h = torch.where(real_t[:, None], f(xw_t + h @ Whh.t()), h)
        return h, h.clone()  # scan does not allow one tensor as two outputs

    hT, hs = over_time(step, h0, (xw, real.t()), dim=0)
    return hs.transpose(0, 1), hT
