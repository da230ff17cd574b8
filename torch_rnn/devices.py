"""Devices: whether one is there, and the name of the hardware that a result was measured on."""

import platform
from pathlib import Path

import torch


def check_device(device: torch.device | str | int | None) -> None:
    """Raises ValueError for a GPU that is not there, unless a dispatch mode makes tensors of its own."""
    if device is None or torch.device(device).type != "cuda" or torch._C._len_torch_dispatch_stack():
        return
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if n <= (torch.device(device).index or 0):
        here = f"this machine has {n} CUDA device{'' if n == 1 else 's'}"
        raise ValueError(f"device is {str(device)!r}; {here if n else 'there is no CUDA device here'}")


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or the processor's name, family and model with PyTorch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))
    }
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:  # several processor generations can share one name
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    threads = torch.get_num_threads()
    return f"{name}, {threads} CPU thread{'s' if threads > 1 else ''}"
