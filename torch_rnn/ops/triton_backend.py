"""The fused loop for the GPU: the backend "triton", which launches the kernels of triton_kernels.py.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)

If Whh fits into the registers or the shared memory of one multiprocessor, one program computes all steps of a
sequence. Otherwise, triton_steps.py launches one kernel for each step.

The products with Whh are exact float32 ("ieee"), or their factors are rounded to bfloat16 and their sums are
float32 ("bf16"). PyTorch's own settings select "bf16": torch.autocast with bfloat16, or
torch.set_float32_matmul_precision("medium"). The backward pass uses the precision of the forward pass. States
stay float32. The products that PyTorch computes (xw, step by step, and dWhh of a large Whh) use TF32 if
"high" allows it.
"""

import contextlib
from functools import cache, partial, wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_rnn.ops.bptt import derivatives, sum_of_products
from torch_rnn.ops.context import needs_operators
from torch_rnn.ops.graphs import on_device
from torch_rnn.ops.inputs import add_at_ids, project
from torch_rnn.ops.triton_steps import back_step_by_step, kernels, step_by_step

NONLINEARITIES = ("tanh", "relu", "linear")  # those of `apply` in triton_kernels.py
RESERVE = 24 * 1024
"""Bytes of shared memory that a program needs in addition to Whh."""
IN_REGISTERS = 128
"""Largest H whose Whh fits into registers."""
SUMS = 64 * 1024**2
"""Most bytes for the shares of dWhh that the programs of the backward pass sum."""
CHUNK = 64
"""Rows of a frequent id that one program sums."""


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
    if torch.device(device).type != "cuda" or not torch.cuda.is_available() or torch.version.hip:
        return False
    return not interpreted() and torch.cuda.get_device_capability(device) >= (8, 0)


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


class Plan(NamedTuple):
    """How the kernels compute with one size of Whh: the sequences of a program and the constants of launches.

    `rows` is 1 with Whh in registers, 16 with Whh in shared memory, and 0 if each step is a kernel. `sums`
    says whether the backward pass also computes dWhh and dbh.
    """

    rows: int
    sums: bool
    forward: dict[str, int | str]
    backward: dict[str, int | str]


@cache
def plan(H: int, dtype: torch.dtype, precision: str, device: torch.device) -> Plan:
    """Returns how to compute with Whh (H, H) on a device."""
    P, size = _padded(H), dtype.itemsize
    if precision == "bf16" and interpreted():
        precision = "bf16, interpreted"
    constants = {"H": H, "P": P, "PRECISION": precision}
    if P > IN_REGISTERS:
        if precision == "ieee" or P * P * 2 + RESERVE > _shared_memory(device):
            return Plan(0, False, {}, {})
        constants |= {"ROWS": 16, "AHEAD": 1, "UNROLL": 1, "num_warps": 8}
        return Plan(16, False, constants, constants)
    # A thread has 255 registers, of which at most 128 hold Whh, or Whh and dWhh. A float64 takes two.
    # The AHEAD steps together take longer than memory. For the interpreter, more of them only take time.
    constants |= {"ROWS": 1, "AHEAD": 2 if interpreted() else 32 // size, "maxnreg": 255}
    sums = P * size <= 512
    warps = max(P // 32, P * P * size // 16384, 1)
    forward = constants | {"UNROLL": 8 if P <= 32 else 4, "num_warps": warps}
    if size == 8:  # tanh has 17 divisions: code of several steps takes minutes to compile
        forward["UNROLL"] = 1
    if P * size == 1024:  # and registers beside those of Whh, of which 512 threads have 128 each
        forward |= {"num_warps": 16, "maxnreg": 128}
    backward_warps = max(P * P * size**2 // 32768, 1) if sums else warps
    backward = constants | {"UNROLL": 2, "num_warps": backward_warps}
    return Plan(1, sums, forward, backward)


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
    with _without_autocast(x.device.type):
        xw, ids = (project(x, Wxh, bh, lengths), None) if x.is_floating_point() else (None, x)
        if ids is None:  # project has used them
            Wxh = bh = None
        if not needs_operators(x, xw, Wxh, bh, Whh, h0, lengths):
            return _Recurrence.apply(xw, ids, Wxh, bh, Whh, h0, lengths, nonlinearity, chosen)
        xw, columns = None if xw is None else xw.transpose(0, 1), None if Wxh is None else Wxh.t()
        hs, hT = forward_operator(xw, ids, columns, bh, Whh, h0, lengths, nonlinearity, chosen)
        return hs.transpose(0, 1), hT


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """Turns autocast off, unless it is off already: the context takes longer than a launch."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _on_device_of_tensors(function):
    """Makes the tensors' device the current one, because Triton launches on the current device."""

    @wraps(function)
    def wrapper(*args):
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if device.type == "cpu" or device.index == torch.cuda.current_device():
            return function(*args)
        with on_device(device):
            return function(*args)

    return wrapper


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
    xw, ids, columns, bh, h0, lengths = _contiguous(xw, ids, columns, bh, h0, lengths)
    hs, hT = _states(xw, ids, h0)
    T, B, H = hs.shape
    if B == 0:
        return hs, hT
    D = 0 if columns is None else len(columns)
    if ids is not None and D == 0 and T > 0:
        raise ValueError("x has ids; Wxh has no columns")
    rows, _, constants, _ = plan(H, Whh.dtype, precision, Whh.device)
    if rows != 1 and xw is None:  # a large kernel lacks the registers to look columns up
        xw = F.embedding(ids.t().contiguous().clamp(0, D - 1), columns) + bh
        ids = columns = bh = None
    if not rows:
        return hs, step_by_step(xw, Whh, h0, lengths, nonlinearity, precision, hs)
    if rows != 1 or H > 64:  # a smaller one takes less time to read with strides than to transpose
        Whh = Whh.t().contiguous().t()
    kernels().forward_kernel[(-(-B // rows),)](
        xw, ids, columns, bh, Whh, h0, lengths, hs, hT, B, T, D, Whh.stride(1), Whh.stride(0),
        NONLINEARITY=nonlinearity, **constants,
    )  # fmt: skip
    return hs, hT


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
    """Returns dxw (T, B, H), dWhh with dbh as its last row (H + 1, H), and dh0.

    A gradient that is None stands for zeros.
    """
    dhs, dhT, hs, Whh, h0, lengths = _contiguous(dhs, dhT, hs, Whh, h0, lengths)
    T, B, H = hs.shape
    if B == 0:
        return hs.new_empty(hs.shape), Whh.new_zeros((H + 1, H)), h0.new_empty(h0.shape)
    das, dh0, sums = hs.new_empty(hs.shape), h0.new_empty((B, H)), None
    rows, summed, _, constants = plan(H, Whh.dtype, precision, Whh.device)
    if rows:
        programs = -(-B // rows)
        if summed:
            programs = min(B, max(1, SUMS // ((H + 1) * H * Whh.element_size())))
            sums = Whh.new_empty((programs, H + 1, H))
        kernels().backward_kernel[(programs,)](
            dhs, dhT, hs, h0, Whh, lengths, das, dh0, sums, B, T, H, 1, H, 1,
            NONLINEARITY=nonlinearity, **constants,
        )  # fmt: skip
        if summed:
            return das, sums.sum(0), dh0
    else:
        dh0 = back_step_by_step(dhs, dhT, hs, Whh, h0, lengths, nonlinearity, precision, das)
    before = torch.cat([h0[None], hs])[:-1]  # h[t-1]
    return das, torch.cat([sum_of_products(das, before), das.sum((0, 1))[None]]), dh0


@_on_device_of_tensors
def sum_by_id(das: Tensor, ids: Tensor, lengths: Tensor | None, D: int) -> Tensor:
    """Returns dWxh^T (D, H): the sum of das (T, B, H) for each id of ids (B, T), without padding."""
    T, B, H = das.shape
    das, ids, lengths = _contiguous(das, ids, lengths)
    dcolumns = das.new_empty((D, H))
    # The time to sort grows with the number of bits.
    keys = ids.new_empty((T * B,), dtype=torch.int16 if D < 2**15 else torch.int64)
    if T * B:
        kernels().keys_kernel[(-(-T * B // 1024),)](ids, lengths, keys, T, B, D, SIZE=1024)
    keys, order = torch.sort(keys, stable=True)
    starts = torch.searchsorted(keys, torch.arange(D + 1, dtype=keys.dtype, device=keys.device))
    P = _padded(H)
    constants = {"H": H, "P": P, "ROWS": 16, "CHUNK": CHUNK, "num_warps": 8 if P >= 1024 else 4}
    chunks = das.new_empty((T * B // CHUNK, H))
    if len(chunks):
        kernels().sum_chunks_kernel[(len(chunks),)](das, keys, order, chunks, D, **constants)
    kernels().sum_by_id_kernel[(D,)](das, order, starts, chunks, dcolumns, **constants)
    return dcolumns


# Without device types, vmap would pass its batched tensors on to the kernels.
operator = partial(torch.library.custom_op, mutates_args=(), device_types=("cpu", "cuda"))
forward_operator = operator("torch_rnn::triton_forward", forward)
backward_operator = operator("torch_rnn::triton_backward", backward)
sum_by_id_operator = operator("torch_rnn::triton_sum_by_id", sum_by_id)


@forward_operator.register_fake
def _(xw, ids, columns, bh, Whh, h0, lengths, nonlinearity, precision):
    return _states(xw, ids, h0)


@backward_operator.register_fake
def _(dhs, dhT, hs, Whh, h0, lengths, nonlinearity, precision):
    return _gradients(hs, Whh, h0)


@sum_by_id_operator.register_fake
def _(das, ids, lengths, D):
    return das.new_empty(D, das.shape[2])


def _states(xw: Tensor | None, ids: Tensor | None, h0: Tensor) -> tuple[Tensor, Tensor]:
    B, H = h0.shape
    T = ids.shape[1] if xw is None else xw.shape[0]
    return h0.new_empty((T, B, H)), h0.new_empty((B, H))


def _gradients(hs: Tensor, Whh: Tensor, h0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    H = len(Whh)
    return hs.new_empty(hs.shape), Whh.new_empty((H + 1, H)), h0.new_empty(h0.shape)


def _save(ctx, inputs, output):
    _, ids, columns, _, Whh, h0, lengths, ctx.nonlinearity, ctx.precision = inputs
    ctx.D = 0 if columns is None else len(columns)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(ids, Whh, h0, lengths, output[0])


def _differentiate(ctx, dhs: Tensor | None, dhT: Tensor | None) -> tuple[Tensor | None, ...]:
    ids, Whh, h0, lengths, hs = ctx.saved_tensors
    return *_all_gradients(
        ctx, backward_operator, sum_by_id_operator, dhs, dhT, hs, ids, Whh, h0, lengths
    ), *[None] * 3


forward_operator.register_autograd(_differentiate, setup_context=_save)


def _all_gradients(
    ctx, backward, sum_by_id, dhs, dhT, hs, ids, Whh, h0, lengths
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of the tensors that `forward` takes: xw, ids, columns, bh, Whh and h0."""
    if torch.is_grad_enabled():  # with create_graph=True
        dxw, dWhh, dh0 = derivatives(dhs, dhT, hs, Whh, h0, lengths, ctx.nonlinearity)
        if ids is None:
            return dxw, None, None, None, dWhh, dh0
        dcolumns = add_at_ids(dxw.transpose(0, 1), ids, lengths, ctx.D)
        return None, None, dcolumns, dxw.sum((0, 1)), dWhh, dh0
    with _without_autocast(hs.device.type):
        das, dWhh_dbh, dh0 = backward(dhs, dhT, hs, Whh, h0, lengths, ctx.nonlinearity, ctx.precision)
        dWhh = dWhh_dbh.narrow(0, 0, len(Whh))
        if ids is None:
            return das, None, None, None, dWhh, dh0
        dcolumns = sum_by_id(das, ids, lengths, ctx.D) if ctx.needs_input_grad[2] else None
        return None, None, dcolumns, dWhh_dbh.select(0, len(Whh)), dWhh, dh0


class _Recurrence(torch.autograd.Function):
    """What forward_operator does, in less time.

    Takes xw (B, T, H), or ids and Wxh; returns h (B, T, H) and hT.
    """

    @staticmethod
    def forward(ctx, xw, ids, Wxh, bh, Whh, h0, lengths, nonlinearity, precision):
        xw, columns = None if xw is None else xw.transpose(0, 1), None if Wxh is None else Wxh.t()
        inputs = (xw, ids, columns, bh, Whh, h0, lengths, nonlinearity, precision)
        hs, hT = forward(*inputs)
        output = hs.transpose(0, 1), hT
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx, dh, dhT):
        ids, Whh, h0, lengths, h = ctx.saved_tensors
        dhs = None if dh is None else dh.transpose(0, 1)
        functions = backward, sum_by_id
        if needs_operators(dh, dhT):
            functions = backward_operator, sum_by_id_operator
        dxw, _, dcolumns, *gradients = _all_gradients(
            ctx, *functions, dhs, dhT, h.transpose(0, 1), ids, Whh, h0, lengths
        )
        dxw, dWxh = None if dxw is None else dxw.transpose(0, 1), None if dcolumns is None else dcolumns.t()
        return dxw, None, dWxh, *gradients, None, None, None


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _padded(H: int) -> int:
    """Returns H rounded up to a power of two and at least 16, as Triton's matrix products need."""
    return max(16, 1 << (H - 1).bit_length())


@cache
def _shared_memory(device: torch.device) -> int:
    """Returns the bytes of shared memory that a program can use; for the interpreter, those of an H100."""
    if device.type == "cpu":
        return 227 * 1024
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
