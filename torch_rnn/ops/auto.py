"""What backend="auto" stands for: the first backend that fits, runs and agrees with eager on the device.

The choice depends on the device, the dtype and H. It never measures time, which would wait for the device and
could differ between runs and processes.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torch_rnn.ops.cpu import library
from torch_rnn.ops.cuda_backend import MAX_H, MIN_CAPABILITY, cuda_backend
from torch_rnn.ops.cuda_backend import runs_on as cuda_runs_on
from torch_rnn.ops.cudnn import cudnn
from torch_rnn.ops.cudnn import runs_on as cudnn_runs_on
from torch_rnn.ops.eager import eager
from torch_rnn.ops.graphs import capturing
from torch_rnn.ops.triton_backend import matmul_precision, plan, precision, triton_backend
from torch_rnn.ops.triton_backend import runs_on as triton_runs_on

log = logging.getLogger(__name__)
ON_GPU: dict[str, tuple[Callable, Callable[[torch.device], bool]]] = {
    "cuda": (cuda_backend, cuda_runs_on),
    "triton": (triton_backend, triton_runs_on),
    "cudnn": (cudnn, cudnn_runs_on),
}
"""Backend on GPUs: its function, and whether it runs on a device."""
FUSED = (
    ("cuda", MIN_CAPABILITY, {"float32": MAX_H}),
    ("triton", (8, 0), {"float32": 128, "float64": 128, "bf16": 256}),
)
"""Name, lowest compute capability, and largest H by precision. "bf16" is float32 with rounded products."""
_AGREES: dict[tuple, bool] = {}


def fastest(device: torch.device, dtype: torch.dtype, H: int) -> str:
    """Returns the name of the backend that "auto" uses."""
    if device.type == "cpu":
        return "cpu" if library() else "bptt"
    if device.type != "cuda":
        return "bptt"
    products = precision(dtype, device)
    kind = "bf16" if products == "bf16" else str(dtype).removeprefix("torch.")
    for name in candidates(torch.cuda.get_device_capability(device), H, kind):
        if not ON_GPU[name][1](device):
            continue
        if name == "triton" and not plan(H, dtype, products, device).rows:
            continue  # this GPU has less shared memory, so each step would be a kernel of its own
        if agrees_with_eager(name, device, dtype, H):
            return name
    return "bptt"


def candidates(capability: tuple[int, int], H: int, precision: str) -> list[str]:
    """Returns the backends to try on a GPU, the fastest first: fused kernels that fit, then cudnn.

    Args:
        capability: the device's compute capability.
        H: the hidden size.
        precision: a key of the dictionaries in FUSED.
    """
    fused = [
        name for name, lowest, largest in FUSED if capability >= lowest and H <= largest.get(precision, 0)
    ]
    return [*fused, "cudnn"]


def agrees_with_eager(name: str, device: torch.device, dtype: torch.dtype, H: int) -> bool:
    """Returns whether a backend agrees with eager on a device, and logs a warning if not.

    Compares them once for each dtype, H and precision. A lack of memory is not remembered. During the capture
    of a CUDA graph nothing can be compared, so only an earlier result counts.
    """
    case = (name, device, dtype, H, precision(dtype, device))
    if case in _AGREES:
        return _AGREES[case]
    what = f"{name} is not used on {device} for {dtype} and H = {H}"
    if capturing(device):
        log.warning("%s: it is untested; run a step before you capture a CUDA graph", what)
        return False
    try:
        problem = difference(ON_GPU[name][0], device, dtype, H)
    except torch.OutOfMemoryError as error:
        log.warning("%s now: %s", what, error)
        return False
    except Exception as error:  # compilers and drivers can raise anything; other backends still work
        problem = str(error) or repr(error)
    if problem:
        log.warning("%s: %s", what, problem)
    _AGREES[case] = not problem
    return not problem


def difference(
    run: Callable[..., tuple[Tensor, Tensor]], device: torch.device, dtype: torch.dtype, H: int
) -> str:
    """Returns what differs from eager in forward and backward passes; an empty string if nothing does."""
    B, T, D = 3, 19, 7
    g = torch.Generator("cpu").manual_seed(0)
    draw = partial(torch.randn, generator=g, device="cpu", dtype=torch.float64)
    weights = [draw(H, D) / 4, draw(H) / 4, draw(H, H) / (2 * H**0.5), draw(B, H) / 4]
    ids = torch.randint(D, (B, T), generator=g, device="cpu").to(device)
    floats, lengths = draw(B, T, D).to(device), torch.tensor([T, 0, 12], device="cpu").to(device)
    allowed = _allowed(dtype, device)
    # Together, the two cases use every kernel with and without each optional argument.
    for x, n, uses_h in ((ids, lengths, True), (floats, None, False)):
        results = []
        with torch.inference_mode(False), torch.enable_grad():
            for function, kind in ((run, dtype), (eager, torch.float64)):
                inputs = [weight.to(device, kind).requires_grad_() for weight in weights]
                h, hT = function(x.to(kind) if x.is_floating_point() else x, *inputs, n, "tanh")
                loss = h.sum() + hT.sum() if uses_h else hT.sum()
                results.append([h, hT, *torch.autograd.grad(loss, inputs)])
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
    return {"highest": 1e-5, "high": 5e-3, "medium": 5e-2}[matmul_precision()]
