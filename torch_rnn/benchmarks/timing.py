"""Timing that can be trusted: in turns within one run, each after a call of its own, medians and spread.

And on what it was: a figure without its machine says nothing.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds of one call: the median, the lowest and the highest."""

    median: float
    low: float
    high: float


def in_turns(calls: Mapping[str, Callable[[], None]], turns: int, calls_a_turn: int = 3) -> dict[str, Timing]:
    """Times the calls in turns, A B A B ...: in each turn one call that is not counted, then some that are.

    On a GPU a call is waited for. What the machine does meanwhile meets all of them alike.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            call()
            for _ in range(calls_a_turn):
                start = _now()
                call()
                found[name].append(1000 * (_now() - start))
    return {name: Timing(statistics.median(ms), min(ms), max(ms)) for name, ms in found.items()}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with family and model, and how many threads PyTorch has on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    about = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))
    }
    name = about.get("model name", platform.machine())
    if "cpu family" in about:  # one name may stand for several generations
        name += f" (family {about['cpu family']}, model {about['model']})"
    return f"{name}, {torch.get_num_threads()} CPU threads"


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
