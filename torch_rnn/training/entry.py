"""The entry of the scripts: exit status and at most one line for whatever ends them."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch_rnn.errors import RunError
from torch_rnn.training.signals import Stop, Stopped


def main(
    default_config: Path,
    arguments: Sequence[str] | None = None,
    task: str = "classification",
    page: Callable[..., Path] | None = None,
) -> int:
    """Trains, lets validation choose the weights, tests them once and reports.

    Args:
        default_config: the configuration where the arguments have no --config.
        arguments: those of the command line if None.
        task: "classification" or "language".
        page: called with the folder and the data of the finished run; writes a page and returns its path.

    Returns:
        The exit status: 0, or 2 after one sentence for a run that cannot be done, or 128 + the number of the
        signal that has stopped it, or 1 where the reader of standard output has closed it.
    """
    try:
        with Stop() as stop:
            stop.waits = True  # an exception within an import may end the process, or be hidden
            try:
                from torch_rnn.training.run import run  # takes seconds, in which a signal may come
            finally:
                stop.waits = False
                stop.raise_if_requested()
            given = config_first(sys.argv[1:] if arguments is None else arguments, default_config)
            run(given, stop, task, page)
            sys.stdout.flush()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except (RunError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            return 1
        name, why = error.filename or "a file", error.strerror or error
        print(
            f"error: {name} cannot be written or read ({why}); mend that, then --resume auto", file=sys.stderr
        )
        return 2
    return 0


@contextmanager
def ends_quietly(waits: bool = False) -> Iterator[None]:
    """Ends a script without a traceback: after a signal with one line, after a closed output with none.

    A context for imports, which take seconds, and a decorator for main(). Raises SystemExit with the status
    that `main` would return.

    Args:
        waits: whether a signal is only noted until the end, as within imports: an exception there may end the
            process, or be hidden.
    """
    try:
        with Stop() as stop:
            stop.waits = waits
            try:
                yield
                sys.stdout.flush()
            finally:
                stop.raise_if_requested()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except BrokenPipeError:
        if not output_is_closed():
            raise
        sys.exit(1)


def output_is_closed() -> bool:
    """Whether the reader of standard output has closed it, as an empty line shows.

    The rest of the output is then discarded; else Python would write it at exit and print an error.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def config_first(arguments: Sequence[str], default_config: Path) -> list[str]:
    """Puts --config first, so that the other arguments override it; adds the default where there is none."""
    configs, others, pending = [], [], iter(arguments)
    for argument in pending:
        if argument in ("--config", "-c"):
            configs += [argument, *([value] if (value := next(pending, None)) is not None else [])]
        elif re.match("(--config|-c)=", argument):
            configs.append(argument)
        else:
            others.append(argument)
    return [*(configs or ["--config", str(default_config)]), *others]
