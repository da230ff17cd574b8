"""The fused loop for the GPU: the backend "triton", which launches the kernels of triton_kernels.py.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)

If Whh fits into the memory of one multiprocessor, one program computes all steps of a sequence. Otherwise,
triton_steps.py launches one kernel for each step.

The products with Whh are exact float32 ("ieee"), or their factors are rounded to bfloat16 and their sums are
float32 ("bf16"). PyTorch's own settings select "bf16": torch.autocast with bfloat16, or
torch.set_float32_matmul_precision("medium"). The backward pass uses the precision of the forward pass. States
stay float32. The products that PyTorch computes (xw, dWhh, and step by step) use TF32 if "high" allows it.
"""

from functools import cache, wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_rnn.ops.bptt import derivatives, sum_of_products
from torch_rnn.ops.graphs import on_device
from torch_rnn.ops.inputs import add_at_ids, project, real_steps
from torch_rnn.ops.triton_steps import back_step_by_step, kernels, step_by_step

NONLINEARITIES = ("tanh", "relu", "linear")  # those of `apply` in triton_kernels.py
RESERVE = 24 * 1024
"""Bytes of shared memory that a program needs in addition to Whh."""


@cache
def interpreted() -> bool:
    """Returns whether the kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    if kernels() is None:
        return False
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(kernels().forward_kernel, InterpretedFunction)


def runs_on(device: torch.device | str) -> bool:
    """Returns whether the kernels run on a device: compute capability 8.0 or above, or the interpreter."""
    if kernels() is None:
        return False
    if torch.device(device).type == "cpu":
        return interpreted()
    on_gpu = torch.device(device).type == "cuda" and torch.cuda.is_available() and not interpreted()
    return on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)


def matmul_precision() -> str:
    """Returns torch.get_float32_matmul_precision(), which raises if PyTorch's newer settings were used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest" if torch.backends.cuda.matmul.fp32_precision in ("none", "ieee") else "high"


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """Returns "ieee" or "bf16", as PyTorch's settings ask for now. float64 is always "ieee"."""
    bf16 = matmul_precision() == "medium"
    if torch.is_autocast_enabled(device.type):
        bf16 |= torch.get_autocast_dtype(device.type) is torch.bfloat16
    return "bf16" if bf16 and dtype is torch.float32 else "ieee"


precision._dynamo_marked_constant = True  # compiled code keeps the settings of its compilation


def triton_backend(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Returns h (B, T, H) and hT (B, H). The arguments are those of `recurrence`, already checked."""
    chosen = precision(Wxh.dtype, x.device)
    with torch.autocast(x.device.type, enabled=False):
        if x.is_floating_point():
            xw = project(x, Wxh, bh, lengths).transpose(0, 1)
            hs, hT = forward(xw, None, None, None, Whh, h0, lengths, nonlinearity, chosen)
        else:
            hs, hT = forward(None, x, Wxh.t(), bh, Whh, h0, lengths, nonlinearity, chosen)
    return hs.transpose(0, 1), hT


def _on_device_of_tensors(function):
    """Makes the tensors' device the current one, because Triton launches on the current device."""

    @wraps(function)
    def wrapper(*args):
        with on_device(next(arg.device for arg in args if isinstance(arg, Tensor))):
            return function(*args)

    return wrapper


@torch.library.custom_op("torch_rnn::triton_forward", mutates_args=())
@_on_device_of_tensors
def forward(
    xw: Tensor | None,
    ids: Tensor | None,
    columns: Tensor | None,
    bh: Tensor | None,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Returns hs (T, B, H) and hT, from either xw (T, B, H) or ids (B, T), columns = Wxh^T (D, H) and bh."""
    xw, ids, columns, bh, Whh, h0, lengths = _contiguous(xw, ids, columns, bh, Whh, h0, lengths)
    hs, hT = _states(xw, ids, h0)
    T, B, H = hs.shape
    if B == 0:
        return hs, hT
    if ids is not None and len(columns) == 0 and T > 0:
        raise ValueError("x has ids; Wxh has no columns")
    if not _fits(Whh, precision):
        if xw is None:
            xw = F.embedding(ids.t().contiguous().clamp(0, len(columns) - 1), columns) + bh
        return hs, step_by_step(xw, Whh, h0, lengths, nonlinearity, precision, hs)
    grid, sizes = _launch(B, H, precision)
    D = 0 if columns is None else len(columns)
    kernels().forward_kernel[grid](
        xw, ids, columns, bh, Whh.t().contiguous(), h0, lengths, hs, hT, B, T, D,
        H=H, NONLINEARITY=nonlinearity, **sizes,
    )  # fmt: skip
    return hs, hT


@torch.library.custom_op("torch_rnn::triton_backward", mutates_args=())
@_on_device_of_tensors
def backward(
    dhs: Tensor | None,
    dhT: Tensor | None,
    hs: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dxw (T, B, H), dWhh and dh0. A gradient that is None stands for zeros."""
    dhs, dhT, hs, Whh, h0, lengths = _contiguous(dhs, dhT, hs, Whh, h0, lengths)
    das, dWhh, dh0 = _gradients(hs, Whh, h0)
    T, B, H = hs.shape
    if B == 0:
        return das, dWhh.zero_(), dh0
    if _fits(Whh, precision):
        grid, sizes = _launch(B, H, precision)
        kernels().backward_kernel[grid](
            dhs, dhT, hs, Whh, lengths, das, dh0, B, T,
            H=H, NONLINEARITY=nonlinearity, **sizes,
        )  # fmt: skip
    else:
        dh0 = back_step_by_step(dhs, dhT, hs, Whh, h0, lengths, nonlinearity, precision, das)
    before = torch.cat([h0[None], hs])[:-1]  # h[t-1]
    return das, sum_of_products(das, before), dh0


@torch.library.custom_op("torch_rnn::triton_sum_by_id", mutates_args=())
@_on_device_of_tensors
def sum_by_id(das: Tensor, ids: Tensor, lengths: Tensor | None, D: int) -> Tensor:
    """Returns dWxh^T (D, H): the sum of das (T, B, H) for each id of ids (B, T), without padding."""
    T, _, H = das.shape
    dcolumns = das.new_empty(D, H)
    ids = ids.clamp(0, D - 1)
    if lengths is not None:
        ids = ids.masked_fill(~real_steps(lengths, T), D)  # D is past the last column, so it is not summed
    ids, order = torch.sort(ids.t().flatten(), stable=True)
    starts = torch.searchsorted(ids, torch.arange(D + 1, device=ids.device))
    P = _padded(H)
    warps = 8 if P >= 1024 else 4
    kernels().sum_by_id_kernel[(D,)](
        das.contiguous(), order, starts, dcolumns, H=H, P=P, ROWS=16, num_warps=warps
    )
    return dcolumns


@forward.register_fake
def _(xw, ids, columns, bh, Whh, h0, lengths, nonlinearity, precision):
    return _states(xw, ids, h0)


@backward.register_fake
def _(dhs, dhT, hs, Whh, h0, lengths, nonlinearity, precision):
    return _gradients(hs, Whh, h0)


@sum_by_id.register_fake
def _(das, ids, lengths, D):
    return das.new_empty(D, das.shape[2])


def _states(xw: Tensor | None, ids: Tensor | None, h0: Tensor) -> tuple[Tensor, Tensor]:
    B, H = h0.shape
    T = ids.shape[1] if xw is None else xw.shape[0]
    return h0.new_empty(T, B, H), h0.new_empty(B, H)


def _gradients(hs: Tensor, Whh: Tensor, h0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return hs.new_empty(hs.shape), Whh.new_empty(Whh.shape), h0.new_empty(h0.shape)


def _save(ctx, inputs, output):
    _, ids, columns, _, Whh, h0, lengths, ctx.nonlinearity, ctx.precision = inputs
    ctx.D = 0 if columns is None else len(columns)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(ids, Whh, h0, lengths, output[0])


def _differentiate(ctx, dhs: Tensor | None, dhT: Tensor | None) -> tuple[Tensor | None, ...]:
    ids, Whh, h0, lengths, hs = ctx.saved_tensors
    if torch.is_grad_enabled():  # with create_graph=True
        dxw, dWhh, dh0 = derivatives(dhs, dhT, hs, Whh, h0, lengths, ctx.nonlinearity)
        if ids is None:
            return dxw, None, None, None, dWhh, dh0, None, None, None
        dxw = dxw.transpose(0, 1)
        return None, None, add_at_ids(dxw, ids, lengths, ctx.D), dxw.sum((0, 1)), dWhh, dh0, None, None, None
    with torch.autocast(hs.device.type, enabled=False):
        das, dWhh, dh0 = backward(dhs, dhT, hs, Whh, h0, lengths, ctx.nonlinearity, ctx.precision)
    if ids is None:
        return das, None, None, None, dWhh, dh0, None, None, None
    dcolumns = sum_by_id(das, ids, lengths, ctx.D)
    return None, None, dcolumns, das.sum((0, 1)), dWhh, dh0, None, None, None


forward.register_autograd(_differentiate, setup_context=_save)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _padded(H: int) -> int:
    """Returns H rounded up to a power of two and at least 16, as Triton's matrix products need."""
    return max(16, 1 << (H - 1).bit_length())


def _fits(Whh: Tensor, precision: str) -> bool:
    """Returns whether Whh fits into the shared memory of one multiprocessor."""
    size = 2 if precision == "bf16" else Whh.element_size()
    return _padded(len(Whh)) ** 2 * size + RESERVE <= _shared_memory(Whh.device)


@cache
def _shared_memory(device: torch.device) -> int:
    """Returns the bytes of shared memory that a program can use; for the interpreter, those of an H100."""
    if device.type == "cpu":
        return 227 * 1024
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _launch(B: int, H: int, precision: str) -> tuple[tuple[int], dict[str, int | str]]:
    """Returns the launch grid and the kernel's constants.

    A program computes one sequence; with "bf16" 16, the number of rows that a tensor core multiplies.
    """
    P = _padded(H)
    rows, warps = (16, 8 if P > 64 else 4) if precision == "bf16" else (1, {16: 1, 32: 1, 64: 4}.get(P, 8))
    if precision == "bf16" and interpreted():
        precision = "bf16, interpreted"
    return (-(-B // rows),), {"P": P, "ROWS": rows, "PRECISION": precision, "num_warps": warps}
