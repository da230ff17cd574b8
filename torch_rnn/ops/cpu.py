"""The fused loop for the CPU, which calls cpu.c.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)

For ids it also fuses the look-up of the columns of Wxh and its gradient. `pip install` builds the C library
if there is a C compiler. The library is loaded with ctypes and receives the addresses of tensors.
"""

import ctypes
import importlib.machinery
import logging
import re
import threading
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from torch_rnn.ops.bptt import derivatives
from torch_rnn.ops.inputs import add_at_ids, project

log = logging.getLogger(__name__)
NONLINEARITIES = ("tanh", "relu", "linear")  # in the order of cpu.h
INSTRUCTIONS = ("avx512", "avx2", "generic")  # in the order of cpu.c, the fastest first
NO_MEMORY, BAD_LENGTH, BAD_ID = 1, 2, 3  # what the kernels return, see cpu.h
SIZES = ("B", "T", "H", "nonlinearity", "threads")
ARRAYS = (
    "lengths", "ids", "xw", "columns", "bh", "Whh", "h0", "h", "hT", "dh", "dhT", "dxw", "dcolumns",
    "dbh", "dWhh", "dh0",
)  # fmt: skip
_SCRATCH = threading.local()


class Recurrence(ctypes.Structure):
    """The struct Recurrence of cpu.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in SIZES]
        + [(name, ctypes.c_void_p) for name in ARRAYS]
        + [("D", ctypes.c_int64)]
    )


@cache
def library() -> ctypes.CDLL | None:
    """Returns the compiled kernels; logs a warning and returns None if they are missing or unusable."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_cpu{suffix}")
        if path.exists():
            try:
                kernels = ctypes.CDLL(str(path))
            except OSError as error:
                log.warning("the fused CPU backend cannot be loaded (%s); using bptt instead", error)
                return None
            if kernels.torch_rnn_size() != ctypes.sizeof(Recurrence):
                log.warning(
                    "the fused CPU backend is of another version; install torch_rnn again; using bptt now"
                )
                return None
            _share_threads(kernels)
            return kernels
    log.warning("the fused CPU backend was not built, which needs a C compiler; using bptt instead")
    return None


def _share_threads(kernels: ctypes.CDLL) -> None:
    """Lets the kernels use the threads of PyTorch's OpenMP runtime, if it can be found."""
    maps = Path("/proc/self/maps")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    for path in sorted(path for path in loaded if re.search(r"/lib(gomp|iomp5|omp)\b[^/]*\.so", path)):
        runtime = ctypes.CDLL(path)
        if hasattr(runtime, "GOMP_parallel"):
            kernels.torch_rnn_use_openmp(ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p))
            return


def instructions() -> int:
    """Returns the index in INSTRUCTIONS of the fastest instruction set that this processor has."""
    return library().torch_rnn_best()


def cpu(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Returns h (B, T, H) and hT (B, H). The arguments are those of `recurrence`, already checked."""
    if x.is_floating_point():
        return forward(project(x, Wxh, bh, lengths), None, None, None, Whh, h0, lengths, nonlinearity)
    return forward(None, x, Wxh.t(), bh, Whh, h0, lengths, nonlinearity)


@torch.library.custom_op("torch_rnn::cpu_forward", mutates_args=(), device_types="cpu")
def forward(
    xw: Tensor | None,
    ids: Tensor | None,
    columns: Tensor | None,
    bh: Tensor | None,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Returns h and hT, from either xw (B, T, H) or ids (B, T), columns = Wxh^T (D, H) and bh."""
    h, hT = _states(xw, ids, h0)
    inputs = {"xw": xw, "ids": ids, "columns": columns, "bh": bh, "Whh": Whh, "h0": h0, "lengths": lengths}
    _call("forward", inputs, {"h": h, "hT": hT}, nonlinearity, 0 if columns is None else len(columns))
    return h, hT


@torch.library.custom_op("torch_rnn::cpu_backward", mutates_args=(), device_types="cpu")
def backward(
    dh: Tensor | None,
    dhT: Tensor | None,
    ids: Tensor | None,
    D: int,
    h: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns dxw, dWhh, dh0, dcolumns (D, H) and dbh.

    With ids, dxw is empty; without ids, dcolumns and dbh are empty.
    """
    gradients = _gradients(ids, D, h, Whh, h0)
    inputs = {"dh": dh, "dhT": dhT, "ids": ids, "Whh": Whh, "h0": h0, "lengths": lengths, "h": h}
    scratch = {} if ids is None else {"dxw": _scratch(h)}
    _call("backward", inputs, gradients | scratch, nonlinearity, D)
    return tuple(gradients.values())


@forward.register_fake
def _(xw, ids, columns, bh, Whh, h0, lengths, nonlinearity):
    return _states(xw, ids, h0)


@backward.register_fake
def _(dh, dhT, ids, D, h, Whh, h0, lengths, nonlinearity):
    return tuple(_gradients(ids, D, h, Whh, h0).values())


def _states(xw: Tensor | None, ids: Tensor | None, h0: Tensor) -> tuple[Tensor, Tensor]:
    B, H = h0.shape
    T = (ids if xw is None else xw).shape[1]
    return h0.new_empty(B, T, H), h0.new_empty(B, H)


def _gradients(ids: Tensor | None, D: int, h: Tensor, Whh: Tensor, h0: Tensor) -> dict[str, Tensor]:
    H = 0 if ids is None else h.shape[2]
    return {
        "dxw": h.new_empty(h.shape if ids is None else 0),
        "dWhh": Whh.new_empty(Whh.shape),  # not empty_like, which keeps strides: the kernel writes rows
        "dh0": h0.new_empty(h0.shape),
        "dcolumns": h.new_zeros(D, H),
        "dbh": h.new_zeros(H),
    }


def _scratch(like: Tensor) -> Tensor:
    """Returns memory of like's size and dtype, which this thread reuses because new memory pages are slow."""
    memory = getattr(_SCRATCH, "memory", None)
    if memory is None or memory.dtype != like.dtype or memory.numel() < like.numel():
        memory = _SCRATCH.memory = like.new_empty(like.numel())
    return memory


def _save(ctx, inputs, output):
    _, ids, columns, _, Whh, h0, lengths, ctx.nonlinearity = inputs
    ctx.D = 0 if columns is None else len(columns)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(ids, Whh, h0, lengths, output[0])


def _differentiate(ctx, dh: Tensor | None, dhT: Tensor | None) -> tuple[Tensor | None, ...]:
    ids, Whh, h0, lengths, h = ctx.saved_tensors
    if torch.is_grad_enabled():  # with create_graph=True
        dhs = None if dh is None else dh.transpose(0, 1)
        dxw, dWhh, dh0 = derivatives(dhs, dhT, h.transpose(0, 1), Whh, h0, lengths, ctx.nonlinearity)
        dxw = dxw.transpose(0, 1)
        if ids is not None:
            dcolumns, dbh = add_at_ids(dxw, ids, lengths, ctx.D), dxw.sum(dim=(0, 1))
    else:
        gradients = backward(dh, dhT, ids, ctx.D, h, Whh, h0, lengths, ctx.nonlinearity)
        dxw, dWhh, dh0, dcolumns, dbh = gradients
    if ids is None:
        return dxw, None, None, None, dWhh, dh0, None, None
    return None, None, dcolumns, dbh, dWhh, dh0, None, None


forward.register_autograd(_differentiate, setup_context=_save)


def _call(
    name: str, inputs: dict[str, Tensor | None], outputs: dict[str, Tensor], nonlinearity: str, D: int
) -> None:
    """Runs a kernel, which writes to the outputs. ctypes releases the GIL during the call."""
    h = (inputs | outputs)["h"]
    # This variable keeps the copies that `contiguous` may make alive until the kernel is done.
    arrays = {key: value.contiguous() for key, value in inputs.items() if value is not None} | outputs
    arguments = Recurrence(
        *h.shape, NONLINEARITIES.index(nonlinearity), torch.get_num_threads(),
        **{key: value.data_ptr() for key, value in arrays.items()}, D=D,
    )  # fmt: skip
    real = "float" if h.dtype == torch.float32 else "double"
    kernel = getattr(library(), f"torch_rnn_{name}_{real}")
    status = kernel(ctypes.byref(arguments), instructions())
    if status == NO_MEMORY:
        raise MemoryError(f"out of memory in the {name} pass of {tuple(h.shape)} states")
    if status == BAD_LENGTH:
        raise ValueError(f"lengths are not all in 0..{h.shape[1]}, the steps of x")
    if status == BAD_ID:
        raise ValueError(f"x has ids at real steps that are not in 0..{D - 1}")
