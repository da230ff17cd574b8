"""The one operation of this package: h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh) for all t.

A backend is a file with one function of one signature, and stands in the table BACKENDS.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from torch_rnn.ops.bptt import bptt
from torch_rnn.ops.checks import check
from torch_rnn.ops.cpu import INSTRUCTIONS, cpu, instructions, library
from torch_rnn.ops.eager import eager
from torch_rnn.ops.nonlinearities import NONLINEARITIES
from torch_rnn.ops.segments import in_segments
from torch_rnn.ops.triton_backend import proven, triton_backend
from torch_rnn.ops.triton_backend import runs_on as triton_runs_on

log = logging.getLogger(__name__)
_SAID: set[str] = set()
BACKENDS = {"eager": eager, "bptt": bptt, "cpu": cpu, "triton": triton_backend}


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
    """All states h (B, T, H) of a batch of sequences; with `final` also each row's last state hT (B, H).

    x        (B, T, D) floats, or (B, T) integer ids, where `Wxh x[t]` is the column Wxh[:, x[t]].
    Wxh      (H, D), float32 or float64, or bfloat16, for which "eager" serves; fastest for ids when it is the
             transpose of a (D, H) buffer.
    bh, Whh  (H,), (H, H), of Wxh's dtype and device.
    h0       (B, H), the state before the first step; zeros if None.
    lengths  (B,) integers in 0..T; T for every row if None. Past its length a row leaves h unchanged, so
             that h[:, -1] is each row's last state; what stands in the padding of x is never read.
    nonlinearity  "tanh", "relu" or "linear".
    backend  "auto", or one of BACKENDS; `which` tells what "auto" is on a device.
    final    where only the last state is used, hT is faster than h[:, -1], whose gradient is as large as h.
    recompute  keep about sqrt(T) states for the backward pass and compute the others again, there.

    Raises TypeError or ValueError naming the argument, its value and what is allowed. On CUDA the values of
    ids and lengths are not read, so that the host never waits: check them where they are made.
    """
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity is {nonlinearity!r}; it must be one of {', '.join(NONLINEARITIES)}")
    check(x, Wxh, bh, Whh, h0, lengths)
    check_backend(backend)
    run = _chosen(backend, x.device, Wxh.dtype)
    if not x.is_floating_point():
        x = x.long()
    if h0 is None:
        h0 = Wxh.new_zeros(x.shape[0], Wxh.shape[0])
    if lengths is not None:
        lengths = lengths.to(x.device, torch.int64, non_blocking=True)
    if recompute and torch.is_grad_enabled():
        h, hT = in_segments(run, x, Wxh, bh, Whh, h0, lengths, nonlinearity)
    else:
        h, hT = run(x, Wxh, bh, Whh, h0, lengths, nonlinearity)
    return (h, hT) if final else h


def which(backend: str = "auto", device: torch.device | str = "cpu") -> str:
    """The name of the backend that runs for `backend` on a device, "auto" being the fastest one.

    Raises ValueError for a backend that does not exist, or does not run there.
    """
    device = torch.device(device)
    check_backend(backend)
    if backend == "auto":
        return _announced(_fastest(device), device.type)
    allowed = available(device)
    if backend not in allowed:
        why = ", which was not built here" if backend == "cpu" == device.type else ""
        raise ValueError(
            f"backend is {backend!r}{why}; on {device} it must be one of auto, {', '.join(allowed)}"
        )
    return backend


# What torch.compiler.assume_constant_result does, without importing its machinery, which takes seconds.
which._dynamo_marked_constant = True


def check_backend(backend: str) -> None:
    """Raises ValueError for a name that is no backend's; whether it runs here is not asked."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend is {backend!r}; it must be one of auto, {', '.join(BACKENDS)}")


def available(device: torch.device | str) -> list[str]:
    """The backends that run on a device."""
    on_cpu = torch.device(device).type == "cpu"
    runs = {"cpu": on_cpu and library() is not None, "triton": triton_runs_on(device)}
    return [name for name in BACKENDS if runs.get(name, True)]


def _chosen(backend: str, device: torch.device, dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    """What computes: the backend, or where none but the plain loop can, that; for an export `scan`."""
    if torch.compiler.is_exporting():
        return importlib.import_module("torch_rnn.ops.scan").scan  # slow to import
    if _transforms():
        return _announced_eager("under torch.func and forward-mode differentiation")
    if dtype is torch.bfloat16:
        return _announced_eager("for weights in bfloat16")
    return BACKENDS[which(backend, device)]


def _transforms() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which only plain operations know.

    A fused kernel would have no tangent, or one of zeros in silence, and no rule for vmap.
    """
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def _announced_eager(why: str) -> Callable[..., tuple[Tensor, Tensor]]:
    if not torch.compiler.is_compiling() and why not in _SAID:
        _SAID.add(why)
        log.info("backend %s: eager", why)
    return eager


def _fastest(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu" if library() else "bptt"
    return "triton" if proven(device) else "bptt"


@cache
def _announced(backend: str, device: str) -> str:
    how = f" ({INSTRUCTIONS[instructions()]})" if backend == "cpu" else ""
    log.info("backend on %s: %s%s", device, backend, how)
    return backend
