"""The PyTorch loop with a hand-written backward pass: back-propagation through time (Werbos, 1990).

    h[t] = tanh(a[t]),  a[t] = Wxh x[t] + bh + Whh h[t-1] = xw[t] + Whh h[t-1]

    da[t]   = tanh'(a[t]) * (dh[t] + Whh^T da[t+1])          tanh'(a) = 1 - tanh(a)^2
    dxw[t]  = da[t]
    dWhh    = sum over t of da[t] h[t-1]^T                   one large product after the loop
    dh0     = Whh^T da[0]

Past a row's length, h[t] = h[t-1], so da[t] = 0 and dh passes through unchanged.
"""

import math

import torch
from torch import Tensor

from torch_rnn.ops.context import autocast_off
from torch_rnn.ops.inputs import project
from torch_rnn.ops.nonlinearities import NONLINEARITIES


def bptt(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Returns h (B, T, H) and hT (B, H). The arguments are those of `recurrence`, already checked."""
    with autocast_off(x.device.type):  # states keep the dtype of the weights
        hs, hT = forward(project(x, Wxh, bh, lengths).transpose(0, 1), Whh, h0, lengths, nonlinearity)
        return hs.transpose(0, 1), hT


@torch.library.custom_op("torch_rnn::bptt_forward", mutates_args=())
def forward(
    xw: Tensor, Whh: Tensor, h0: Tensor, lengths: Tensor | None, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """Returns hs (T, B, H) and hT. Time comes first, so that each step is one block of memory."""
    f = NONLINEARITIES[nonlinearity].function
    WhhT, unmasked = Whh.t(), _steps_without_padding(lengths, len(xw))
    h, hs = h0, xw.new_empty(xw.shape)
    for t in range(len(xw)):
        h_next = f(torch.addmm(xw[t], h, WhhT))
        h = hs[t] = h_next if t < unmasked else torch.where((t < lengths)[:, None], h_next, h)
    return hs, h.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("torch_rnn::bptt_backward", mutates_args=())
def backward(
    dhs: Tensor | None,
    dhT: Tensor | None,
    hs: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dxw (T, B, H), dWhh and dh0. A gradient that is None stands for zeros."""
    dxw, dWhh, dh0 = derivatives(dhs, dhT, hs, Whh, h0, lengths, nonlinearity)
    return dxw, dWhh, dh0.clone(memory_format=torch.contiguous_format)


@forward.register_fake
def _(xw, Whh, h0, lengths, nonlinearity):
    return xw.new_empty(xw.shape), h0.new_empty(h0.shape)


@backward.register_fake
def _(dhs, dhT, hs, Whh, h0, lengths, nonlinearity):
    return hs.new_empty(hs.shape), Whh.new_empty(Whh.shape), h0.new_empty(h0.shape)


def _save(ctx, inputs, output):
    _, Whh, h0, lengths, ctx.nonlinearity = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], Whh, h0, lengths)


def _differentiate(ctx, dhs: Tensor | None, dhT: Tensor | None) -> tuple[Tensor | None, ...]:
    # With create_graph=True, autograd must be able to differentiate the backward pass too.
    formula = derivatives if torch.is_grad_enabled() else backward
    hs, Whh, h0, lengths = ctx.saved_tensors
    with autocast_off(hs.device.type):
        return *formula(dhs, dhT, hs, Whh, h0, lengths, ctx.nonlinearity), None, None


forward.register_autograd(_differentiate, setup_context=_save)


def derivatives(
    dhs: Tensor | None,
    dhT: Tensor | None,
    hs: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes what `backward` does with differentiable operations, which allows second derivatives."""
    unmasked = _steps_without_padding(lengths, len(hs))
    derivative = NONLINEARITIES[nonlinearity].derivative(hs)
    das, dh_next = [], torch.zeros_like(h0) if dhT is None else dhT
    for t in reversed(range(len(hs))):
        dh_t = dh_next if dhs is None else dhs[t] + dh_next
        da = derivative[t] * dh_t
        if t < unmasked:
            dh_next = da @ Whh
        else:
            real = (t < lengths)[:, None]
            da = torch.where(real, da, 0)
            dh_next = torch.where(real, da @ Whh, dh_t)
        das.append(da)
    dxw = torch.stack(das[::-1]) if das else torch.zeros_like(hs)
    before = torch.cat([h0[None], hs])[:-1]  # h[t-1]
    return dxw, sum_of_products(dxw, before), dh_next


def sum_of_products(da: Tensor, h: Tensor) -> Tensor:
    """Returns the sum over t and b of da[t, b] h[t, b]^T, (H, H), for da and h (T, B, H).

    Adds up about sqrt(T) short sums, because one long sum would lose more precision.
    """
    T, B, H = da.shape
    size = math.isqrt(T) or 1
    whole = T // size * size

    def pieces(x: Tensor) -> Tensor:
        return x[:whole].reshape(T // size, size * B, H)

    rest = da[whole:].flatten(0, 1).t() @ h[whole:].flatten(0, 1)
    return torch.bmm(pieces(da).mT, pieces(h)).sum(dim=0) + rest


def _steps_without_padding(lengths: Tensor | None, T: int) -> int:
    """Returns how many steps from the start need no mask; 0 on a GPU, where the host would have to wait."""
    if lengths is None:
        return T
    return int(lengths.min()) if lengths.device.type == "cpu" and len(lengths) else 0
