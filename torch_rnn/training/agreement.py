"""How several processes agree at which step to save or to stop."""

import time
from typing import Any

import torch

INTERVAL = 0.5
"""Seconds between two exchanges, about."""


class Agreement:
    """Gives all processes of a run the same answer at the same step.

    An exchange costs time, so there is one about every half a second. Each exchange also agrees on the number
    of calls until the next one, that of the slowest process.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._calls, self._next, self._since = 0, 1, time.monotonic()

    def start(self) -> None:
        """Starts measuring the pace of the calls."""
        self._since = time.monotonic()

    def soon(self) -> None:
        """Makes the next call exchange, because the pace of the calls changes."""
        self._next = 1

    def highest(self, mine: int, *, at_once: bool = False) -> int:
        """Returns the highest of all processes' numbers, or 0 where this call does not exchange.

        Every process must call this at the same places of its run.
        """
        self._calls += 1
        if self._calls < self._next and not at_once:
            return 0
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")  # so that no GPU has to be waited for
        now = time.monotonic()
        fitting = max(1, int(INTERVAL * self._calls / max(now - self._since, 1e-9)))
        answers = torch.tensor([mine, -fitting])
        torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MAX, group=self._group)
        self._calls, self._next, self._since = 0, 1 if at_once else -int(answers[1]), now
        return int(answers[0])
