"""The fused loop for the CPU: cpu.c, which takes eight sequences at a time through all their steps.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)

For ids it also fuses the look-up of the columns of Wxh and its gradient. The library is built by pip install
where there is a C compiler, and is plain C: it is loaded with ctypes and given addresses.
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
NONLINEARITIES = ("tanh", "relu", "linear")  # by the number that cpu.h gives them
INSTRUCTIONS = ("avx512", "avx2", "generic")  # by the number that cpu.c gives them, the best first
NO_MEMORY, BAD_LENGTH, BAD_ID = 1, 2, 3  # what the kernels return, as cpu.h has it
SIZES = ("B", "T", "H", "nonlinearity", "threads")
ARRAYS = (
    "lengths", "ids", "xw", "columns", "bh", "Whh", "h0", "h", "hT", "dh", "dhT", "dxw", "dcolumns",
    "dbh", "dWhh", "dh0",
)  # fmt: skip
_KEPT = threading.local()  # each thread's scratch memory


class Recurrence(ctypes.Structure):
    """struct Recurrence of cpu.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in SIZES]
        + [(name, ctypes.c_void_p) for name in ARRAYS]
        + [("D", ctypes.c_int64)]
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, and one warning, where they were not built or cannot be loaded."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_cpu{suffix}")
        if path.exists():
            try:
                kernels = ctypes.CDLL(str(path))
            except OSError as error:
                log.warning("the fused CPU backend cannot be loaded (%s); bptt serves", error)
                return None
            if kernels.torch_rnn_size() != ctypes.sizeof(Recurrence):
                log.warning(
                    "the fused CPU backend is of another version: pip install torch_rnn anew; bptt serves"
                )
                return None
            _share_threads(kernels)
            return kernels
    log.warning("the fused CPU backend was not built (it needs a C compiler); bptt serves")
    return None


def _share_threads(kernels: ctypes.CDLL) -> None:
    """Gives the kernels the threads of the OpenMP runtime that PyTorch has loaded, where it can be found."""
    maps = Path("/proc/self/maps")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    for path in sorted(path for path in loaded if re.search(r"/lib(gomp|iomp5|omp)\b[^/]*\.so", path)):
        runtime = ctypes.CDLL(path)
        if hasattr(runtime, "GOMP_parallel"):
            kernels.torch_rnn_use_openmp(ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p))
            return


def instructions() -> int:
    """Which of INSTRUCTIONS runs: the best that this processor has."""
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
    """h (B, T, H) and hT (B, H); the arguments are those of `recurrence`, already checked."""
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
    """(xw, Whh, h0) -> (h, hT); or ids, columns = Wxh^T (D, H) and bh in place of xw."""
    h, hT = _states(xw, ids, h0)
    given = {"xw": xw, "ids": ids, "columns": columns, "bh": bh, "Whh": Whh, "h0": h0, "lengths": lengths}
    _call("forward", given, {"h": h, "hT": hT}, nonlinearity, 0 if columns is None else len(columns))
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
    """dxw, dWhh, dh0, dcolumns (D, H) and dbh; with ids dxw is empty, without them dcolumns and dbh are."""
    made = _gradients(ids, D, h, Whh, h0)
    given = {"dh": dh, "dhT": dhT, "ids": ids, "Whh": Whh, "h0": h0, "lengths": lengths, "h": h}
    scratch = {} if ids is None else {"dxw": _scratch(h)}
    _call("backward", given, made | scratch, nonlinearity, D)
    return tuple(made.values())


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
        "dxw": torch.empty_like(h) if ids is None else h.new_empty(0),
        "dWhh": torch.empty_like(Whh),
        "dh0": torch.empty_like(h0),
        "dcolumns": h.new_zeros(D, H),
        "dbh": h.new_zeros(H),
    }


def _scratch(like: Tensor) -> Tensor:
    """Memory of that size and dtype, kept for the next call of this thread: new pages are slow to get."""
    kept = getattr(_KEPT, "memory", None)
    if kept is None or kept.dtype != like.dtype or kept.numel() < like.numel():
        kept = _KEPT.memory = like.new_empty(like.numel())
    return kept


def _save(ctx, inputs, output):
    _, ids, columns, _, Whh, h0, lengths, ctx.nonlinearity = inputs
    ctx.D = 0 if columns is None else len(columns)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(ids, Whh, h0, lengths, output[0])


def _differentiate(ctx, dh: Tensor | None, dhT: Tensor | None) -> tuple[Tensor | None, ...]:
    ids, Whh, h0, lengths, h = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted: the formula in differentiable operations
        dhs = None if dh is None else dh.transpose(0, 1)
        dxw, dWhh, dh0 = derivatives(dhs, dhT, h.transpose(0, 1), Whh, h0, lengths, ctx.nonlinearity)
        dxw = dxw.transpose(0, 1)
        of_ids = None if ids is None else (add_at_ids(dxw, ids, lengths, ctx.D), dxw.sum(dim=(0, 1)))
    else:
        found = backward(dh, dhT, ids, ctx.D, h, Whh, h0, lengths, ctx.nonlinearity)
        dxw, dWhh, dh0, *of_ids = found
    if ids is None:
        return dxw, None, None, None, dWhh, dh0, None, None
    return None, None, *of_ids, dWhh, dh0, None, None


forward.register_autograd(_differentiate, setup_context=_save)


def _call(name: str, given: dict[str, Tensor | None], made: dict[str, Tensor], nonlinearity: str, D: int = 0):
    """Runs a kernel on contiguous arrays; ctypes lets other Python threads run meanwhile."""
    h = (given | made)["h"]
    # Named, so that a copy that `contiguous` makes lives until the kernel is done.
    arrays = {key: value.contiguous() for key, value in given.items() if value is not None} | made
    problem = Recurrence(
        *h.shape, NONLINEARITIES.index(nonlinearity), torch.get_num_threads(),
        **{key: value.data_ptr() for key, value in arrays.items()}, D=D,
    )  # fmt: skip
    real = "float" if h.dtype == torch.float32 else "double"
    kernel = getattr(library(), f"torch_rnn_{name}_{real}")
    status = kernel(ctypes.byref(problem), instructions())
    if status == NO_MEMORY:
        raise MemoryError(f"the {name} pass of {tuple(h.shape)} states found no memory")
    if status == BAD_LENGTH:
        raise ValueError(f"lengths are not all in 0..{h.shape[1]}, the steps of x")
    if status == BAD_ID:
        raise ValueError(f"x has ids at real steps that are not in 0..{D - 1}")
