"""The recurrence as one call of cuDNN: the backend "cudnn", for GPUs and sizes without a fused kernel.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)

cuDNN receives a padded batch, because PyTorch selects its persistent kernels (H up to 384 forward, 256
backward) only for those. It also computes the padding, whose states are replaced afterwards.

Floats x are multiplied by Wxh in cuDNN. For ids, cuDNN receives the columns of Wxh, and the identity as its
input matrix. There 0 * inf is NaN: if one unit of xw[t] is infinite or NaN, all units of h[t] are NaN. In the
other backends, the others are NaN one step later or not at all.

Products are exact float32, never TF32 or bfloat16. Results are deterministic only with the environment
variable CUBLAS_WORKSPACE_CONFIG=:4096:8. cuDNN has no "linear", which runs on bptt.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from torch_rnn.ops.bptt import bptt, derivatives
from torch_rnn.ops.inputs import project, real_steps

aten = torch.ops.aten
NONLINEARITIES = ("tanh", "relu", "linear")
MODES = {"relu": 0, "tanh": 1}  # cudnnRNNMode_t
_PRECISION = threading.RLock()


def runs_on(device: torch.device | str) -> bool:
    """Returns whether cuDNN is installed, enabled and supports the device."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_available() or torch.version.hip:
        return False
    try:
        return torch.backends.cudnn.enabled and torch.backends.cudnn.version() is not None
    except RuntimeError:  # the versions of cuDNN, PyTorch and the GPU do not match
        return False


def cudnn(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Returns h (B, T, H) and hT (B, H). The arguments are those of `recurrence`, already checked."""
    (B, T), (H, D) = x.shape[:2], Wxh.shape
    if nonlinearity == "linear" or 0 in (B, T, H, D):
        return bptt(x, Wxh, bh, Whh, h0, lengths, nonlinearity)
    real = None if lengths is None else real_steps(lengths, T).t()[..., None]  # (T, B, 1)
    with torch.autocast(x.device.type, enabled=False):
        if x.is_floating_point() and (real is None or nonlinearity == "tanh"):
            x, W, b = x.transpose(0, 1), Wxh, bh
            x = x if real is None else x.masked_fill(~real, 0)
        else:
            x, b = project(x, Wxh, bh, lengths).transpose(0, 1), torch.zeros_like(bh)
            W = torch.eye(H, dtype=Wxh.dtype, device=Wxh.device)
            if real is not None and nonlinearity == "relu":
                # Makes the states of the padding zero. They could overflow, and 0 * inf would reach dWhh.
                x = x.masked_fill(~real, torch.finfo(x.dtype).min)
        inputs = (x, W, b, Whh, h0)
        train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        hs, hT, *_ = forward(*inputs, nonlinearity, train)
        if real is None:
            return hs.transpose(0, 1), hT
        is_last = torch.arange(T, device=x.device)[:, None] == lengths.clamp(max=T) - 1  # (T, B)
        last = torch.where(is_last[..., None], hs, 0).sum(dim=0)
        hT = torch.where((lengths > 0)[:, None], last, h0)
        return torch.where(real, hs, hT).transpose(0, 1), hT


@torch.library.custom_op("torch_rnn::cudnn_forward", mutates_args=())
def forward(
    x: Tensor, Wxh: Tensor, bh: Tensor, Whh: Tensor, h0: Tensor, nonlinearity: str, train: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes all T steps of x (T, B, D).

    Returns:
        hs (T, B, H), hT (B, H), and two tensors for the backward pass: cuDNN's reserve space, which is empty
        unless `train`, and the bytes of its weight buffer.
    """
    weights, buffer = (Wxh, Whh, bh, bh), _weight_buffer(Wxh, bh, Whh, nonlinearity)
    with _without_tf32():
        hs, hT, _, reserve, _ = aten._cudnn_rnn(
            x.contiguous(), weights, len(weights), buffer, h0.unsqueeze(0).contiguous(), None,
            *_settings(nonlinearity, len(Whh), train), None,
        )  # fmt: skip
    return hs, hT.squeeze(0), reserve, buffer.view(torch.uint8)


@torch.library.custom_op("torch_rnn::cudnn_backward", mutates_args=())
def backward(
    dhs: Tensor | None,
    dhT: Tensor | None,
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    hs: Tensor,
    reserve: Tensor,
    buffer: Tensor,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns dx, dWxh, dbh, dWhh and dh0. Either dhs or dhT may be None, which stands for zeros."""
    weights = (Wxh, Whh, bh, bh)
    with _without_tf32():
        dx, dh0, _, (dWxh, dWhh, dbh, _) = aten._cudnn_rnn_backward(
            x.contiguous(), weights, len(weights), buffer.view(x.dtype), h0.unsqueeze(0).contiguous(), None,
            hs.contiguous(), dhs, None if dhT is None else dhT.unsqueeze(0), None,
            *_settings(nonlinearity, len(Whh), True), None,
            reserve.clone(),  # cuDNN overwrites it, and a graph may be differentiated twice
            [True, True, False, True],
        )  # fmt: skip
    dWxh, dbh, dWhh = dWxh.clone(), dbh.clone(), dWhh.clone()  # cuDNN's share memory
    return dx, dWxh, dbh, dWhh, dh0.squeeze(0)


@forward.register_fake
def _(x, Wxh, bh, Whh, h0, nonlinearity, train):
    size = torch.library.get_ctx().new_dynamic_size
    hs, hT = x.new_empty(*x.shape[:2], len(Whh)), h0.new_empty(h0.shape)
    return hs, hT, *(x.new_empty(size(), dtype=torch.uint8) for _ in range(2))


@backward.register_fake
def _(dhs, dhT, x, Wxh, bh, Whh, h0, hs, reserve, buffer, nonlinearity):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, Wxh, bh, Whh, h0))


def _save(ctx, inputs, output):
    *tensors, ctx.nonlinearity, _ = inputs
    hs, _, reserve, buffer = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, hs, reserve, buffer)


def _differentiate(ctx, dhs: Tensor | None, dhT: Tensor | None, *_) -> tuple[Tensor | None, ...]:
    if dhs is None and dhT is None:
        return (None,) * 7
    x, Wxh, bh, Whh, h0, hs, reserve, buffer = ctx.saved_tensors
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled():  # with create_graph=True
            dxw, dWhh, dh0 = derivatives(dhs, dhT, hs, Whh, h0, None, ctx.nonlinearity)
            dWxh = dxw.flatten(0, 1).t() @ x.flatten(0, 1)
            return dxw @ Wxh, dWxh, dxw.sum(dim=(0, 1)), dWhh, dh0, None, None
        gradients = backward(dhs, dhT, x, Wxh, bh, Whh, h0, hs, reserve, buffer, ctx.nonlinearity)
        return *gradients, None, None


forward.register_autograd(_differentiate, setup_context=_save)


def _settings(nonlinearity: str, H: int, train: bool) -> tuple:
    """Returns the arguments mode ... batch_sizes of aten._cudnn_rnn and aten._cudnn_rnn_backward."""
    proj_size, num_layers, batch_first, dropout, bidirectional = 0, 1, False, 0.0, False
    settings = (MODES[nonlinearity], H, proj_size, num_layers, batch_first, dropout, train, bidirectional)
    return *settings, []  # no batch sizes: not packed


def _weight_buffer(Wxh: Tensor, bh: Tensor, Whh: Tensor, nonlinearity: str) -> Tensor:
    """Returns a copy of the weights in cuDNN's layout. cuDNN's second bias is zero."""
    H, D = Wxh.shape
    size, starts = _layout(D, H, MODES[nonlinearity], Wxh.dtype, Wxh.device)
    parts = []
    for weight, start, end in zip((Wxh, Whh, bh), starts, (*starts[1:3], size), strict=False):
        parts += [weight.reshape(-1), weight.new_zeros(end - start - weight.numel())]
    return torch.cat(parts)


@cache
def _layout(
    D: int, H: int, mode: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, tuple[int, ...]]:
    """Returns the size of cuDNN's weight buffer, and where Wxh, Whh and the two biases start in it."""
    shapes = ((H, D), (H, H), (H,), (H,))
    weights = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    buffer = aten._cudnn_rnn_flatten_weight(weights, len(weights), D, mode, H, 0, 1, False, False)
    return buffer.numel(), tuple(weight.storage_offset() for weight in weights)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Turns TF32 off for cuDNN's RNNs. The setting belongs to the process, so other threads wait.

    The RNNs may inherit their setting. To inherit cannot be restored, so then the inherited setting changes.
    """
    rnn, parent = torch.backends.cudnn.rnn, torch.backends.cudnn
    with _PRECISION:
        if rnn.fp32_precision != "tf32":
            yield
            return
        before = _own_precision()
        parent.fp32_precision = "ieee"
        try:
            if rnn.fp32_precision != "tf32":
                yield
                return
        finally:
            parent.fp32_precision = before
        rnn.fp32_precision = "ieee"
        try:
            yield
        finally:
            rnn.fp32_precision = "tf32"


def _own_precision() -> str:
    """Returns torch.backends.cudnn.fp32_precision, or "none" if that is inherited from torch.backends."""
    value, parent = torch.backends.cudnn.fp32_precision, torch.backends.fp32_precision
    if value == "none" or value != parent:
        return value
    torch.backends.fp32_precision = "ieee" if value == "tf32" else "tf32"
    try:
        return value if torch.backends.cudnn.fp32_precision == value else "none"
    finally:
        torch.backends.fp32_precision = parent
