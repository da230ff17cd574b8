"""The same loop with the backward pass written by hand: back-propagation through time (Werbos, 1990).

    h[t] = tanh(a[t]),  a[t] = Wxh x[t] + bh + Whh h[t-1] = xw[t] + Whh h[t-1]

    da[t]   = tanh'(a[t]) * (dh[t] + Whh^T da[t+1])          tanh'(a) = 1 - tanh(a)^2
    dxw[t]  = da[t]
    dWhh    = sum over t of da[t] h[t-1]^T                   one large product, after the loop
    dh0     = Whh^T da[0]

Where a row is past its length, h[t] = h[t-1]: there da[t] = 0, and dh passes through unchanged.
"""

import torch
from torch import Tensor

from torch_rnn.recurrence.inputs import project
from torch_rnn.recurrence.nonlinearities import NONLINEARITIES


def bptt(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> Tensor:
    """All states h (B, T, H) of a batch; the arguments are those of `recurrence`, already checked."""
    return _BPTT.apply(project(x, Wxh, bh, lengths), Whh, h0, lengths, nonlinearity)


class _BPTT(torch.autograd.Function):
    """(xw, Whh, h0) -> h. Inside, time comes first: each step is one block of memory."""

    @staticmethod
    def forward(
        ctx, xw: Tensor, Whh: Tensor, h0: Tensor, lengths: Tensor | None, nonlinearity: str
    ) -> Tensor:
        f = NONLINEARITIES[nonlinearity].function
        xw = xw.transpose(0, 1)  # (T, B, H)
        WhhT, unmasked = Whh.t(), _steps_without_padding(lengths, len(xw))
        h, hs = h0, torch.empty_like(xw)
        for t in range(len(xw)):
            h_next = f(torch.addmm(xw[t], h, WhhT))
            h = hs[t] = h_next if t < unmasked else torch.where((t < lengths)[:, None], h_next, h)
        hs = hs.transpose(0, 1)
        ctx.save_for_backward(hs, Whh, h0, lengths)
        ctx.nonlinearity, ctx.unmasked = nonlinearity, unmasked
        return hs

    @staticmethod
    def backward(ctx, dh: Tensor) -> tuple[Tensor | None, ...]:
        """Made of differentiable operations on dh, h, Whh and h0, so second derivatives are exact too."""
        hs, Whh, h0, lengths = ctx.saved_tensors
        dhs, hs = dh.transpose(0, 1), hs.transpose(0, 1)  # (T, B, H)
        derivative = NONLINEARITIES[ctx.nonlinearity].derivative(hs)
        das, dh_next = [], torch.zeros_like(h0)
        for t in reversed(range(len(hs))):
            dh_t = dhs[t] + dh_next
            da = derivative[t] * dh_t
            if t < ctx.unmasked:
                dh_next = da @ Whh
            else:
                real = (t < lengths)[:, None]
                da = torch.where(real, da, 0)
                dh_next = torch.where(real, da @ Whh, dh_t)
            das.append(da)
        dxw = torch.stack(das[::-1]) if das else dhs
        before = torch.cat([h0[None], hs])[:-1]  # h[t-1]
        dWhh = dxw.flatten(0, 1).t() @ before.flatten(0, 1) if ctx.needs_input_grad[1] else None
        return dxw.transpose(0, 1), dWhh, dh_next, None, None


def _steps_without_padding(lengths: Tensor | None, T: int) -> int:
    """How many first steps need no mask. On a GPU it stays 0: asking would make the host wait."""
    if lengths is None:
        return T
    return int(lengths.min()) if lengths.device.type == "cpu" and len(lengths) else 0
