"""Checks: commands with a time limit, how to read what they print, and a report of what became of them."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch_rnn.benchmarks.outputs import Figures
from torch_rnn.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(__file__).parents[2]
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
COLOURS = {PASSED: "green", FAILED: "bold red", SKIPPED: "yellow"}


class Check(NamedTuple):
    """A command, and how to read what it prints and writes.

    parse(output) returns figures, and a problem or an empty string. The check also fails if it raises.
    """

    name: str
    command: list[str]
    parse: Callable[[str], tuple[Figures, str]]
    limit: float
    """Seconds."""
    needs: tuple[str, ...] = ()
    """Modules, "imdb" or "compute-sanitizer"; if one is missing, the check is skipped."""
    quick: bool = True
    """Whether --quick runs it too."""
    environment: tuple[tuple[str, str], ...] = ()
    """Names and values of additional environment variables."""

    def text(self) -> str:
        """Returns the command for a shell."""
        return shlex.join([*(f"{name}={value}" for name, value in self.environment), *self.command])


class Outcome(NamedTuple):
    """What became of a check."""

    name: str
    command: str
    status: str
    reason: str
    seconds: float
    figures: Figures


def check_all(
    chosen: list[Check], out: Path, work: Path, hardware: dict[str, str], total: float, console: "Console"
) -> list[Outcome]:
    """Runs the checks one after the other, for `total` seconds at most.

    Writes report.md and report.json to `out` after each of them. What they print goes to files in `work`.
    """
    outcomes, begin = [], time.perf_counter()
    write_reports(out, hardware, outcomes)
    for check in chosen:
        left = total - (time.perf_counter() - begin)
        if left > 0:
            with console.status(f"{check.name} (at most {min(check.limit, left):.0f} s)"):
                outcomes.append(run(check, work, min(check.limit, left)))
        else:
            reason = f"the {total:.0f} s for all checks are used up"
            outcomes.append(Outcome(check.name, check.text(), SKIPPED, reason, 0.0, {}))
        write_reports(out, hardware, outcomes)
        text = f"{check.name}, {outcomes[-1].seconds:.1f} s: {result(outcomes[-1])}"
        console.print(text, style=COLOURS[outcomes[-1].status], markup=False, highlight=False)
    return outcomes


def run(check: Check, work: Path, limit: float) -> Outcome:
    """Runs a check for at most `limit` seconds. What it prints goes to a file in `work`."""
    command = check.text()
    if reason := missing(check):
        return Outcome(check.name, command, SKIPPED, reason, 0.0, {})
    log, begin = work / f"{re.sub('[^a-z0-9]+', '_', check.name.lower())}.log", time.perf_counter()
    problem, status = run_command(check.command, log, limit, check.environment)
    seconds, figures = round(time.perf_counter() - begin, 1), {}
    if not problem:
        output = log.read_text(encoding="utf-8", errors="replace")
        try:
            figures, problem = check.parse(output)
        except Exception as error:  # the output may be anything
            problem = f"its output cannot be read ({type(error).__name__}: {error}), see {log}"
        if status:
            last = "".join(output.strip().splitlines()[-1:])
            problem = f"exit status {status}: {problem or last}"
    return Outcome(check.name, command, FAILED if problem else PASSED, problem, seconds, figures)


def missing(check: Check) -> str:
    """Returns why a check cannot run here; an empty string if it can."""
    for need in check.needs:
        if need == "imdb":
            root = os.environ.get("TORCH_RNN_DATA") or "data"
            if not list(Path(root).glob("aclImdb*")):
                return f"the folder {root} has no IMDB reviews; set TORCH_RNN_DATA"
        elif need == "compute-sanitizer":
            if sanitizer_path() is None:
                return "compute-sanitizer is not installed; it comes with the CUDA toolkit"
        elif importlib.util.find_spec(need) is None:
            return f"the package {need} is not installed"
    return ""


def sanitizer_path() -> str | None:
    """Returns the path of compute-sanitizer, which comes with the CUDA toolkit."""
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(f"{toolkit}/bin/compute-sanitizer")


def run_command(
    command: list[str], log: Path, limit: float, additional: tuple[tuple[str, str], ...] = ()
) -> tuple[str, int]:
    """Returns a problem, which is empty if the command ended by itself, and its exit status.

    After the limit, kills the command with all processes that it started.
    """
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "COLUMNS": "120",
        **dict(additional),
    }
    with open(log, "wb") as file:
        try:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"it cannot be started: {error}", 1
        try:
            return "", process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"it took longer than {limit:.0f} s", 1
        finally:
            kill_with_children(process)


def kill_with_children(process: subprocess.Popen) -> None:
    """Ends a process and all that it started; does nothing if they have ended."""
    if sys.platform == "win32":
        if process.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_reports(out: Path, hardware: dict[str, str], outcomes: list[Outcome]) -> None:
    contents = {"machine": hardware, "checks": [outcome._asdict() for outcome in outcomes]}
    texts = {"report.json": json.dumps(contents, indent=2) + "\n", "report.md": markdown(hardware, outcomes)}
    for name, text in texts.items():
        write_atomically(out / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))


def markdown(hardware: dict[str, str], outcomes: list[Outcome]) -> str:
    lines = ["# GPU check", "", *(f"- {name}: {value}" for name, value in hardware.items()), ""]
    lines += ["| check | result | seconds |", "|---|---|---|"]
    for outcome in outcomes:
        lines.append(f"| {outcome.name} | {result(outcome)} | {outcome.seconds:.1f} |".replace("\n", " "))
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}", "", "```bash", outcome.command, "```", ""]
        lines += [f"- {name}: {value}" for name, value in outcome.figures.items()]
    return "\n".join(lines) + "\n"


def result(outcome: Outcome) -> str:
    return f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status
