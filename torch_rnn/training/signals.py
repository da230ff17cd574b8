"""SIGTERM, SIGUSR1, Ctrl-C: the step is finished and saved, and the run ends with 128 + their number."""

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT) + ((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ())


class Stopped(Exception):
    """The run has ended because a signal asked for it; `step` is the one that was saved, if any was."""

    def __init__(self, signum: int, step: int | None = None):
        self.signum, self.step = signum, step
        self.status = 128 + signum
        saved = "" if step is None else f" after step {step}, which is saved; go on with --resume auto"
        super().__init__(f"stopped by {signal.Signals(signum).name}{saved}")


class Stop:
    """What a signal has asked for. As a context it listens; within, a signal ends the run at once, or waits.

    requested   the signal's number, None while there was none. A second Ctrl-C never waits.
    waits       whether a signal is only noted.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def listen(self) -> None:
        """Takes the signals over; again, where another library has put its own handlers in the way."""
        for signum in self._before:
            signal.signal(signum, self._receive)

    def wait_for_the_step(self) -> None:
        """From here on a signal is only noted: whoever runs the steps looks at `requested`, and saves."""
        self.listen()
        self.waits = True

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        again = self.requested == signum == signal.SIGINT
        self.requested = signum
        if again or not self.waits:
            self.waits = False
            raise Stopped(signum)
