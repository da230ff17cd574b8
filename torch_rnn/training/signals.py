"""SIGTERM, SIGUSR1, Ctrl-C: the step is finished and saved, and the run ends with 128 + their number."""

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT) + ((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ())


class Stopped(BaseException):
    """Ends a run because a signal asked for it; `step` is the step that was saved, if one was.

    Like KeyboardInterrupt it is no Exception, so that no library's `except Exception` hides it.
    """

    def __init__(self, signum: int, step: int | None = None):
        self.signum, self.step = signum, step
        self.status = 128 + signum
        saved = "" if step is None else f" after step {step}, which is saved; go on with --resume auto"
        super().__init__(f"stopped by {signal.Signals(signum).name}{saved}")


class Stop:
    """Receives signals while it is used as a context. A signal either raises Stopped at once or is noted.

    Attributes:
        requested: the number of the signal that came, or None.
        waits: whether a signal is only noted. A second Ctrl-C raises Stopped all the same.
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
        """Installs the handlers, again where another library has installed its own meanwhile."""
        for signum in self._before:
            signal.signal(signum, self._receive)

    def wait_for_the_step(self) -> None:
        """Makes signals wait: from here on the training loop looks at `requested` after each step."""
        self.listen()
        self.waits = True

    def raise_if_requested(self) -> None:
        """Raises Stopped where a signal has come and a library has hidden the exception."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        again = self.requested == signum == signal.SIGINT
        self.requested = signum
        if again or not self.waits:
            self.waits = False
            raise Stopped(signum)
