"""The name of the hardware that a result was measured on."""

import platform
from pathlib import Path

import torch


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
