"""Times functions in turns within one run, so that changes in the machine's load affect all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds of one call: the median, the lowest and the highest."""

    median: float
    low: float
    high: float


def in_turns(
    calls: Mapping[str, Callable[[], None]], turns: int, calls_a_turn: int = 3, repeats: int = 1
) -> dict[str, Timing]:
    """Times the functions in turns, A B A B ...

    In each turn, a function is called once without timing, then `calls_a_turn` times with timing. On a GPU, a
    call's time includes the wait until the device is done. With `repeats`, each timed call is so many calls
    and one wait, divided by their number.
    """
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            call()
            for _ in range(calls_a_turn):
                start = _now()
                for _ in range(repeats):
                    call()
                milliseconds[name].append(1000 * (_now() - start) / repeats)
    return {name: Timing(statistics.median(ms), min(ms), max(ms)) for name, ms in milliseconds.items()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
