"""The one operation of this package: h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh) for all t.

Each backend is a file with one function. All have the same signature and are listed in BACKENDS.
"""

import importlib
import logging
import operator
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from torch_rnn.devices import check_device
from torch_rnn.ops.auto import FUSED_NONLINEARITIES, fastest
from torch_rnn.ops.bptt import bptt
from torch_rnn.ops.checks import check
from torch_rnn.ops.context import in_dtype_of, is_transforming
from torch_rnn.ops.cpu import INSTRUCTIONS, cpu, instructions, library
from torch_rnn.ops.cuda_backend import MAX_H as CUDA_MAX_H
from torch_rnn.ops.cuda_backend import check_size as check_size_for_cuda
from torch_rnn.ops.cuda_backend import cuda_backend
from torch_rnn.ops.cuda_backend import runs_on as cuda_runs_on
from torch_rnn.ops.cudnn import cudnn
from torch_rnn.ops.cudnn import runs_on as cudnn_runs_on
from torch_rnn.ops.eager import eager
from torch_rnn.ops.nonlinearities import NONLINEARITIES
from torch_rnn.ops.segments import in_segments
from torch_rnn.ops.triton_backend import runs_on as triton_runs_on
from torch_rnn.ops.triton_backend import triton_backend

log = logging.getLogger(__name__)
_LOGGED: set[str] = set()
BACKENDS = {
    "eager": eager,
    "bptt": bptt,
    "cpu": cpu,
    "cuda": cuda_backend,
    "triton": triton_backend,
    "cudnn": cudnn,
}


def recurrence(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    backend: str = "auto",
    final: bool = False,
    recompute: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes all states of a batch of sequences.

    Args:
        x: (B, T, D) floats, or (B, T) integer ids, where `Wxh x[t]` is the column Wxh[:, x[t]].
        Wxh: (H, D), float32, float64 or bfloat16 (which always runs on "eager"). For ids it is fastest as the
            transpose of a contiguous (D, H) tensor.
        bh, Whh: (H,) and (H, H), with Wxh's dtype and device.
        h0: (B, H), the state before the first step; zeros if None.
        lengths: (B,) integers in 0..T; T for every row if None. Past its length, a row keeps its state, so
            h[:, -1] is each row's last state. The padding of x is never read.
        nonlinearity: "tanh", "relu" or "linear".
        backend: "auto" or a key of BACKENDS. `which` returns what "auto" stands for on a device.
        final: whether to return hT too. If you need only the last state, hT is faster than h[:, -1], because
            the gradient of h[:, -1] is as large as h.
        recompute: whether to store only about sqrt(T) states and recompute the others in the backward pass.
            torch.func, forward-mode differentiation and torch.export store all.

    Returns:
        h (B, T, H); with `final`, the pair of h and each row's last state hT (B, H).

    Raises:
        TypeError, ValueError: The message names the argument, its value and what is allowed. On CUDA, values
            of ids and lengths are not checked, because the host would have to wait. Check them beforehand.
    """
    if not isinstance(nonlinearity, str) or nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity is {nonlinearity!r}; it must be one of {', '.join(NONLINEARITIES)}")
    x, h0 = in_dtype_of(Wxh, x), in_dtype_of(Wxh, h0)
    check(x, Wxh, bh, Whh, h0, lengths)
    check_backend(backend)
    run = _choose(backend, Wxh, nonlinearity)
    if not x.is_floating_point():
        x = x.long()
    if h0 is None:
        h0 = Wxh.new_zeros(x.shape[0], Wxh.shape[0])
    if lengths is not None:
        lengths = lengths.to(x.device, torch.int64, non_blocking=True)
    if recompute and torch.is_grad_enabled() and not is_transforming() and not _is_exporting():
        h, hT = in_segments(run, x, Wxh, bh, Whh, h0, lengths, nonlinearity)
    else:
        h, hT = run(x, Wxh, bh, Whh, h0, lengths, nonlinearity)
    return (h, hT) if final else h


def which(
    backend: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    hidden_size: int = 32,
    nonlinearity: str = "tanh",
) -> str:
    """Returns the name of the backend that runs on a device; for "auto", what it stands for there.

    On CUDA, "auto" depends on the other arguments and compares the backend with eager at the first call.

    Raises ValueError for a device that is not there, and for a backend that does not exist, does not run on
    the device, or lacks the size.
    """
    device = torch.device(device)
    check_backend(backend)
    if backend == "auto":
        check_device(device)
        return _logged(fastest(device, dtype, hidden_size, nonlinearity), device.type)
    allowed = available(device)
    if backend not in allowed:
        reason = ", which was not built here" if backend == "cpu" == device.type else ""
        raise ValueError(
            f"backend is {backend!r}{reason}; on {device} it must be one of auto, {', '.join(allowed)}"
        )
    if backend == "cuda":
        check_size_for_cuda(dtype, hidden_size)
    return backend


# Does what torch.compiler.assume_constant_result does, whose import takes seconds.
which._dynamo_marked_constant = True


def check_backend(backend: str) -> None:
    """Raises ValueError for an unknown name. Does not check whether the backend runs on this machine."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend is {backend!r}; it must be one of auto, {', '.join(BACKENDS)}")


def available(
    device: torch.device | str, dtype: torch.dtype = torch.float32, hidden_size: int = 1
) -> list[str]:
    """Returns the names of the backends that run on a device, for a dtype and a hidden size."""
    on_cpu = torch.device(device).type == "cpu"
    runs = {
        "cpu": on_cpu and library() is not None,
        "cuda": cuda_runs_on(device) and dtype is torch.float32 and hidden_size <= CUDA_MAX_H,
        "triton": triton_runs_on(device),
        "cudnn": cudnn_runs_on(device),
    }
    return [name for name in BACKENDS if runs.get(name, True)]


def _choose(backend: str, Wxh: Tensor, nonlinearity: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns the function to run: usually the backend's; eager, bptt or scan where only they can compute."""
    if _is_exporting():
        return importlib.import_module("torch_rnn.ops.scan").scan  # slow to import
    if is_transforming():  # a fused kernel has no rule for vmap, and its tangents would be missing or zero
        return _fallback("eager", "under torch.func and forward-mode differentiation")
    if Wxh.dtype is torch.bfloat16:
        return _fallback("eager", "for weights in bfloat16")
    H = operator.index(Wxh.shape[0])  # a constant for torch.compile, which compiles anew for another H
    name = which(backend, Wxh.device, Wxh.dtype, H, nonlinearity)
    if nonlinearity not in FUSED_NONLINEARITIES.get(name, NONLINEARITIES):
        if backend != "auto":
            raise ValueError(
                f"nonlinearity is {nonlinearity!r}; backend {name!r} lacks it, use 'auto' or 'bptt'"
            )
        return _fallback("bptt", f"for the nonlinearity {nonlinearity!r}")
    return BACKENDS[name]


def _is_exporting() -> bool:
    """Returns whether torch.export traces."""
    return torch.compiler.is_exporting()


_is_exporting._dynamo_marked_constant = True  # in PyTorch 2.11, torch.compile takes is_exporting() for true


def _fallback(backend: str, reason: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns the function of a slower backend; logs the reason once."""
    if not torch.compiler.is_compiling() and reason not in _LOGGED:
        _LOGGED.add(reason)
        log.info("backend %s: %s", reason, backend)
    return BACKENDS[backend]


@cache
def _logged(backend: str, device: str) -> str:
    """Returns `backend`; logs it at the first call for each kind of device."""
    instruction_set = f" ({INSTRUCTIONS[instructions()]})" if backend == "cpu" else ""
    log.info("backend on %s: %s%s", device, backend, instruction_set)
    return backend
