"""The fused loop in CUDA C++: the backend "cuda", which launches the kernels of cuda_kernels.cu.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)

A block of threads keeps Whh in registers and computes all steps of a sequence. This limits H to MAX_H, and
all numbers are float32. NVRTC compiles a kernel when a process first uses it, which takes seconds. Results
are deterministic, and a row's states do not depend on the other rows.
"""

import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from torch_rnn.ops import nvrtc
from torch_rnn.ops.bptt import derivatives
from torch_rnn.ops.context import needs_operators
from torch_rnn.ops.inputs import add_at_ids, project

NONLINEARITIES = ("tanh", "relu", "linear")
MAX_H = 128
MAX_D = 2**31 - 1  # ids become int32
MIN_CAPABILITY = (7, 0)
SOURCE = Path(__file__).with_name("cuda_kernels.cu")
RUN, SUM_THREADS = 64, 512  # RUN as in cuda_kernels.cu; SUM_THREADS is any multiple of MAX_H
FIELDS = (
    "B", "T", "H", "D", "xw", "columns", "bh", "Whh", "h0", "ids", "lengths", "hs", "hT", "dhs", "dhT",
    "dhs_step", "dhs_row", "das", "dh0", "partials", "keys", "order", "dcolumns", "borders",
)  # fmt: skip
"""The struct Call of cuda_kernels.cu; each field has 8 bytes."""
_CALL = struct.Struct(f"{len(FIELDS)}q")
_INDEX = {name: i for i, name in enumerate(FIELDS)}


def runs_on(device: torch.device | str) -> bool:
    """Returns whether the kernels run on a device."""
    return not why_not(torch.device(device))


def why_not(device: torch.device) -> str:
    """Returns why the kernels do not run on a device; an empty string if they do."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    return _why_not(device)


@cache
def _why_not(device: torch.device) -> str:
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.cuda is None:
        return f"{device} is not a CUDA GPU that this PyTorch can use"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"{device} has compute capability {capability}; it must be at least {MIN_CAPABILITY}"
    if nvrtc.nvrtc() is None:
        return "the library NVRTC was not found; CUDA builds of PyTorch install it"
    if nvrtc.driver() is None:
        return "the CUDA driver (libcuda) cannot be loaded"
    if nvrtc.architecture(capability) is None:
        return f"{device} has compute capability {capability}, which this version of NVRTC no longer supports"
    return ""


def warm(device: torch.device | str, H: int, nonlinearity: str = "tanh") -> None:
    """Compiles and loads all kernels for a hidden size, which must happen before a CUDA graph is captured.

    Forward and backward passes load what they use, so a warm-up run of the same code has this effect too.
    """
    device = torch.device(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    for variant in (True, False):
        _loop_kernel(index, "forward", H, nonlinearity, variant)
        _loop_kernel(index, "backward", H, nonlinearity, variant)
    for key in ("short", "int"):
        _sum_kernels(index, H, key)


def cuda_backend(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Returns h (B, T, H) and hT (B, H). The arguments are those of `recurrence`, already checked."""
    check_size(Whh.dtype, len(Whh))
    run = forward if needs_operators(x, Wxh, bh, Whh, h0, lengths) else _Recurrence.apply
    if x.is_floating_point() or Wxh.shape[1] > MAX_D:
        xw = project(x, Wxh, bh, lengths).transpose(0, 1)
        hs, hT = run(xw, None, None, None, Whh, h0, lengths, nonlinearity)
    else:
        hs, hT = run(None, x, Wxh.t(), bh, Whh, h0, lengths, nonlinearity)
    return hs.transpose(0, 1), hT


def check_size(dtype: torch.dtype, H: int) -> None:
    """Raises ValueError for a dtype or a hidden size that the kernels lack."""
    if dtype is not torch.float32 or H > MAX_H:
        raise ValueError(
            f"Whh is {dtype} with H = {H}; backend 'cuda' allows float32 and H up to {MAX_H}, use 'auto'"
        )


def _forward(
    xw: Tensor | None,
    ids: Tensor | None,
    columns: Tensor | None,
    bh: Tensor | None,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Returns hs (T, B, H) and hT, from either xw (T, B, H) or ids (B, T), columns = Wxh^T (D, H) and bh."""
    xw, ids, columns, bh, Whh, h0, lengths = _contiguous(xw, ids, columns, bh, Whh, h0, lengths)
    hs, hT = _states(xw, ids, h0)
    T, B, H = hs.shape
    if B == 0 or H == 0:
        return hs, hT
    D = 0 if columns is None else len(columns)
    if ids is not None and D == 0 and T > 0:
        raise ValueError("x has ids; Wxh has no columns")
    kernel = _loop_kernel(Whh.get_device(), "forward", H, nonlinearity, ids is not None)
    _launch(
        kernel, min(B, kernel.resident),
        B=B, T=T, H=H, D=D, xw=xw, ids=ids, columns=columns, bh=bh, Whh=Whh, h0=h0, lengths=lengths,
        hs=hs, hT=hT,
    )  # fmt: skip
    return hs, hT


def _backward(
    dhs: Tensor | None,
    dhT: Tensor | None,
    hs: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns das (T, B, H), dWhh with dbh as an additional last row (H + 1, H), and dh0.

    A gradient that is None stands for zeros.
    """
    das, dh0 = hs.new_empty(hs.shape), h0.new_empty(h0.shape)
    T, B, H = hs.shape
    if B == 0 or H == 0:
        return das, Whh.new_zeros(H + 1, H), dh0
    dhT, hs, Whh, h0, lengths = _contiguous(dhT, hs, Whh, h0, lengths)
    if dhs is not None and dhs.stride(2) != 1:
        dhs = dhs.contiguous()
    step, row = (0, 0) if dhs is None else dhs.stride()[:2]
    kernel = _loop_kernel(Whh.get_device(), "backward", H, nonlinearity, dhs is not None)
    blocks = min(B, kernel.resident)
    partials = hs.new_empty(blocks, H + 1, H)
    _launch(
        kernel, blocks,
        B=B, T=T, H=H, dhs=dhs, dhs_step=step, dhs_row=row, dhT=dhT, hs=hs, Whh=Whh, h0=h0, lengths=lengths,
        das=das, dh0=dh0, partials=partials,
    )  # fmt: skip
    return das, partials.sum(0), dh0


def _sum_by_id(das: Tensor, ids: Tensor, lengths: Tensor | None, D: int) -> Tensor:
    """Returns dWxh^T (D, H): the sum of das (T, B, H) for each id of ids (B, T), without padding.

    Sorts the steps by id, so that each sum always has the same order, which atomic additions do not have.
    """
    das, ids, lengths = _contiguous(das, ids, lengths)
    T, B, H = das.shape
    dcolumns = das.new_zeros(D, H)
    N = T * B
    if N == 0 or H == 0:
        return dcolumns
    key, dtype = ("short", torch.int16) if D < 2**15 else ("int", torch.int32)  # short keys sort faster
    make_keys, sum_runs, sum_borders = _sum_kernels(das.get_device(), H, key)
    keys = ids.new_empty(N, dtype=dtype)
    fields = {"B": B, "T": T, "H": H, "D": D, "ids": ids, "lengths": lengths}
    _launch(make_keys, -(-N // SUM_THREADS), **fields, keys=keys)
    keys, order = torch.sort(keys, stable=True)
    blocks = -(-N // RUN)
    fields |= {"das": das, "keys": keys, "order": order, "dcolumns": dcolumns}
    fields["borders"] = das.new_empty(blocks, 2, H)
    _launch(sum_runs, blocks, **fields)
    _launch(sum_borders, blocks, **fields)
    return dcolumns


class _Recurrence(torch.autograd.Function):
    """The operations below without the cost of the dispatcher."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx, dhs, dhT):
        if needs_operators(dhs, dhT):
            return _differentiate(ctx, dhs, dhT, backward, sum_by_id)
        return _differentiate(ctx, dhs, dhT, _backward, _sum_by_id)


# Without device types, vmap would pass its batched tensors on to the kernels.
operator = partial(torch.library.custom_op, mutates_args=(), device_types=("cpu", "cuda"))
forward = operator("torch_rnn::cuda_forward", _forward)
backward = operator("torch_rnn::cuda_backward", _backward)
sum_by_id = operator("torch_rnn::cuda_sum_by_id", _sum_by_id)


@forward.register_fake
def _(xw, ids, columns, bh, Whh, h0, lengths, nonlinearity):
    return _states(xw, ids, h0)


@backward.register_fake
def _(dhs, dhT, hs, Whh, h0, lengths, nonlinearity):
    H = hs.shape[2]
    return hs.new_empty(hs.shape), Whh.new_empty(H + 1, H), h0.new_empty(h0.shape)


@sum_by_id.register_fake
def _(das, ids, lengths, D):
    return das.new_empty(D, das.shape[2])


def _states(xw: Tensor | None, ids: Tensor | None, h0: Tensor) -> tuple[Tensor, Tensor]:
    B, H = h0.shape
    T = ids.shape[1] if xw is None else xw.shape[0]
    return h0.new_empty(T, B, H), h0.new_empty(B, H)


def _save(ctx, inputs, output):
    _, ids, columns, _, Whh, h0, lengths, ctx.nonlinearity = inputs
    ctx.D = 0 if columns is None else len(columns)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(ids, Whh, h0, lengths, output[0])


def _differentiate(
    ctx, dhs: Tensor | None, dhT: Tensor | None, backward: Callable, sum_by_id: Callable
) -> tuple[Tensor | None, ...]:
    ids, Whh, h0, lengths, hs = ctx.saved_tensors
    if torch.is_grad_enabled():  # with create_graph=True
        with torch.autocast(hs.device.type, enabled=False):
            das, dWhh, dh0 = derivatives(dhs, dhT, hs, Whh, h0, lengths, ctx.nonlinearity)
            dbh = das.sum((0, 1))
            if ids is not None:
                dcolumns = add_at_ids(das.transpose(0, 1), ids, lengths, ctx.D)
    else:
        das, dWhh, dh0 = backward(dhs, dhT, hs, Whh, h0, lengths, ctx.nonlinearity)
        dWhh, dbh = dWhh[:-1], dWhh[-1]
        if ids is not None:
            dcolumns = sum_by_id(das, ids, lengths, ctx.D) if ctx.needs_input_grad[2] else None
    if ids is None:
        return das, None, None, None, dWhh, dh0, None, None
    return None, None, dcolumns, dbh, dWhh, dh0, None, None


forward.register_autograd(
    lambda ctx, dhs, dhT: _differentiate(ctx, dhs, dhT, backward, sum_by_id), setup_context=_save
)


def _launch(kernel: nvrtc.Kernel, blocks: int, **fields: Tensor | int | None) -> None:
    """Launches a kernel. Passes the fields of Call: addresses of contiguous tensors, 0 for the others."""
    numbers = [0] * len(FIELDS)
    for name, value in fields.items():
        if value is not None:
            numbers[_INDEX[name]] = value if type(value) is int else value.data_ptr()
    kernel.launch(blocks, _CALL.pack(*numbers))


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _padded(H: int) -> int:
    """Returns P of cuda_kernels.cu."""
    return 32 if H <= 32 else 64 if H <= 64 else 128


def _loop_kernel(index: int, name: str, H: int, nonlinearity: str, variant: bool) -> nvrtc.Kernel:
    """Returns a kernel of all steps; `variant` is whether "forward" has ids, or "backward" has dhs."""
    P = _padded(H)
    threads = {32: 32, 64: 128, 128: 128 if name == "forward" else 256}[P]
    name = f"{name}<{P}, {nonlinearity.upper()}, {str(variant).lower()}>"
    return _kernel(index, name, threads, 2 * P * 4)


def _sum_kernels(index: int, H: int, key: str) -> tuple[nvrtc.Kernel, nvrtc.Kernel, nvrtc.Kernel]:
    P = _padded(H)
    return (
        _kernel(index, f"make_keys<{key}>", SUM_THREADS, 0),
        _kernel(index, f"sum_runs<{key}>", P, 0),
        _kernel(index, f"sum_borders<{key}, {P}>", SUM_THREADS, SUM_THREADS * 4),
    )


@cache
def _kernel(index: int, name: str, threads: int, shared: int) -> nvrtc.Kernel:
    return nvrtc.load(SOURCE.read_text(), name, index, threads, shared)
