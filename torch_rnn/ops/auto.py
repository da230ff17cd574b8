"""What backend="auto" stands for: the first backend that fits, runs and agrees with eager on the device.

The choice depends on the device, the dtype, H and the nonlinearity. It never measures time, which would wait
for the device and could differ between runs and processes.
"""

from collections.abc import Callable

import torch

from torch_rnn.ops.cpu import NONLINEARITIES as CPU_NONLINEARITIES
from torch_rnn.ops.cpu import library
from torch_rnn.ops.cuda_backend import MAX_H, MIN_CAPABILITY, cuda_backend
from torch_rnn.ops.cuda_backend import NONLINEARITIES as CUDA_NONLINEARITIES
from torch_rnn.ops.cuda_backend import runs_on as cuda_runs_on
from torch_rnn.ops.cudnn import NONLINEARITIES as CUDNN_NONLINEARITIES
from torch_rnn.ops.cudnn import cudnn
from torch_rnn.ops.cudnn import runs_on as cudnn_runs_on
from torch_rnn.ops.proof import agrees_with_eager
from torch_rnn.ops.triton_backend import NONLINEARITIES as TRITON_NONLINEARITIES
from torch_rnn.ops.triton_backend import plan, precision, triton_backend
from torch_rnn.ops.triton_backend import runs_on as triton_runs_on

ON_GPU: dict[str, tuple[Callable, Callable[[torch.device], bool]]] = {
    "cuda": (cuda_backend, cuda_runs_on),
    "triton": (triton_backend, triton_runs_on),
    "cudnn": (cudnn, cudnn_runs_on),
}
"""Backend on GPUs: its function, and whether it runs on a device."""
FUSED_NONLINEARITIES = {
    "cpu": CPU_NONLINEARITIES,
    "cuda": CUDA_NONLINEARITIES,
    "triton": TRITON_NONLINEARITIES,
    "cudnn": CUDNN_NONLINEARITIES,
}
"""Those of the backends that have a table of their own; the others have all."""
FUSED = (
    ("cuda", MIN_CAPABILITY, {"float32": MAX_H}),
    ("triton", (8, 0), {"float32": 128, "float64": 128, "bf16": 256}),
)
"""Name, lowest compute capability, and largest H by precision. "bf16" is float32 with rounded products."""


def fastest(device: torch.device, dtype: torch.dtype, H: int, nonlinearity: str) -> str:
    """Returns the name of the backend that "auto" uses."""
    if device.type == "cpu":
        return "cpu" if library() else "bptt"
    if device.type != "cuda":
        return "bptt"
    products = precision(dtype, device)
    kind = "bf16" if products == "bf16" else str(dtype).removeprefix("torch.")
    for name in candidates(torch.cuda.get_device_capability(device), H, kind):
        run, runs_on = ON_GPU[name]
        if not runs_on(device) or nonlinearity not in FUSED_NONLINEARITIES[name]:
            continue
        if name == "triton" and not plan(H, dtype, products, device).rows:
            continue  # this GPU has less shared memory, so each step would be a kernel of its own
        if agrees_with_eager(name, run, device, dtype, H, nonlinearity):
            return name
    return "bptt"


def candidates(capability: tuple[int, int], H: int, precision: str) -> list[str]:
    """Returns the backends to try on a GPU, the fastest first: fused kernels that fit, then cudnn.

    Args:
        capability: the device's compute capability.
        H: the hidden size.
        precision: a key of the dictionaries in FUSED.
    """
    fused = [name for name, lowest, sizes in FUSED if capability >= lowest and H <= sizes.get(precision, 0)]
    return [*fused, "cudnn"]
