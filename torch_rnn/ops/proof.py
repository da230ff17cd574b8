"""Whether a backend agrees with eager on a device. "auto" uses no backend on a GPU that has not shown it."""

import logging
import threading
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torch_rnn.ops.eager import eager
from torch_rnn.ops.graphs import capturing, on_device
from torch_rnn.ops.triton_backend import matmul_precision, precision

log = logging.getLogger(__name__)
Backend = Callable[..., tuple[Tensor, Tensor]]
_AGREES: dict[tuple, bool] = {}
MANY_ROWS = 20_000
"""More sequences than a GPU computes at the same time, so that programs compute several in turn."""
MANY_IDS = 33_000
"""More ids than 16 bits can number."""


def agrees_with_eager(
    name: str, run: Backend, device: torch.device, dtype: torch.dtype, H: int, nonlinearity: str
) -> bool:
    """Returns whether a backend agrees with eager on a device, and logs a warning if not.

    Compares them once for each dtype, H, nonlinearity and precision. A lack of memory is not remembered.
    During the capture of a CUDA graph nothing can be compared, so only an earlier result counts.
    """
    case = (name, device, dtype, H, nonlinearity, precision(dtype, device))
    if case in _AGREES:
        return _AGREES[case]
    what = f"{name} is not used on {device} for {dtype}, H = {H} and {nonlinearity}"
    if capturing(device):
        log.warning("%s: it is untested; run a step before you capture a CUDA graph", what)
        return False
    problem = _in_a_new_thread(run, device, dtype, H, nonlinearity)
    if "out of memory" in problem.lower() or "ALLOC_FAILED" in problem:
        log.warning("%s now: %s", what, problem)
        return False
    if problem:
        log.warning("%s: %s", what, problem)
    _AGREES[case] = not problem
    return not problem


def _in_a_new_thread(run: Backend, device: torch.device, *case: object) -> str:
    """Returns what `difference` returns or raises.

    A new thread has none of the caller's modes: inference mode, checkpointing, hooks, the default device.
    """
    problems = []
    autocast = torch.autocast(
        device.type,
        enabled=torch.is_autocast_enabled(device.type),
        dtype=torch.get_autocast_dtype(device.type),
    )

    def compare() -> None:
        try:
            with on_device(device), autocast:
                problems.append(difference(run, device, *case))
        except Exception as error:  # compilers and drivers can raise anything; other backends still work
            problems.append(str(error) or repr(error))

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    return problems[0]


def difference(run: Backend, device: torch.device, dtype: torch.dtype, H: int, nonlinearity: str) -> str:
    """Returns what differs from eager in forward and backward passes; an empty string if nothing does.

    The cases use every kernel, with and without each optional argument; those with many rows and ids only
    run on a GPU.
    """
    g = torch.Generator("cpu").manual_seed(0)
    draw = partial(torch.randn, generator=g, device="cpu", dtype=torch.float64)
    shapes = [(3, 120, 7, True), (3, 19, 7, False)]  # B, T, D, and whether x is ids
    if device.type == "cuda":
        shapes += [(MANY_ROWS, 2, 7, True), (3, 40, MANY_IDS, True)]
    allowed = _allowed(dtype, device)
    for B, T, D, is_ids in shapes:
        weights = [draw(H, D) / 4, draw(H) / 4, draw(H, H) / (2 * H**0.5), draw(B, H) / 4]
        if is_ids:
            x = torch.randint(D, (B, T), generator=g, device="cpu")
            x[:, ::2] = 1  # a frequent id
            lengths = torch.randint(T + 1, (B,), generator=g, device="cpu")
            lengths[:3] = torch.tensor([T, 0, T // 2], device="cpu")
        else:
            x, lengths = draw(B, T, D), None
        problem = _compare(run, [x, *weights, lengths], device, dtype, nonlinearity, allowed)
        if problem:
            return problem
    return ""


def _compare(
    run: Backend,
    inputs: list[Tensor | None],
    device: torch.device,
    dtype: torch.dtype,
    nonlinearity: str,
    allowed: float,
) -> str:
    x, *weights, lengths = inputs
    x, lengths = x.to(device), None if lengths is None else lengths.to(device)
    results = []
    for function, kind in ((run, dtype), (eager, torch.float64)):
        tensors = [weight.to(device, kind).requires_grad_() for weight in weights]
        h, hT = function(x.to(kind) if x.is_floating_point() else x, *tensors, lengths, nonlinearity)
        loss = hT.sum() if lengths is None else h.sum() + hT.sum()
        results.append([h, hT, *torch.autograd.grad(loss, tensors)])
    for name, got, want in zip(("h", "hT", "dWxh", "dbh", "dWhh", "dh0"), *results, strict=True):
        error = float((got.detach() - want.detach()).abs().max() / want.detach().abs().max())
        if not error <= allowed:  # also true for NaN
            return f"{name} differs from eager by {error:.1e} of its largest entry"
    return ""


def _allowed(dtype: torch.dtype, device: torch.device) -> float:
    """Returns the largest relative error that PyTorch's settings of precision allow."""
    if dtype is torch.float64:
        return 1e-10
    if precision(dtype, device) == "bf16":
        return 5e-2
    return {"highest": 3e-5, "high": 5e-3, "medium": 5e-2}[matmul_precision()]
