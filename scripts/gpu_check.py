"""Checks and times everything on this machine's GPU, and writes report.md and report.json.

Each check is a command with a time limit; one that fails or takes too long does not stop the others. The
reports are written again after each check. The exit status is 0 if no check failed, 1 if one did, and 2 where
there is no GPU.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed, too

from torch_rnn.files import write_atomically  # noqa: E402

SCRIPTS, TRIALS = ROOT / "scripts", ROOT / "tests" / "gpu_trials.py"
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
GRAPHED = ("test_graphed", "test_graphed_update")
"""The files whose tests on a GPU need neither torchtext nor jsonargparse."""
COLOURS = {PASSED: "green", FAILED: "bold red", SKIPPED: "yellow"}
TOTAL = 590
"""Seconds for all checks: a check is stopped then, and the later ones are skipped."""
Figures = dict[str, float | int | str]


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


def checks(work: Path) -> list[Check]:
    """Returns all checks, the most important first. Their files go to the folder `work`."""
    training = ("lightning", "torchtext", "jsonargparse")
    pytest = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-ra", "--strict-markers"]
    deterministic = (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),)
    marked, tests = [*pytest, "-m", "cuda"], ROOT / "tests"
    sanitizer = sanitizer_path() or "compute-sanitizer"
    uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    numpy, imdb = work / "compare_numpy.json", work / "imdb"
    return [
        Check("choice of auto", trial("auto"), read_trial, 60),
        *(
            Check(f"ladder, {backend}", trial(f"ladder-{backend}"), read_trial, limit, ("pytest", *needs))
            for backend, limit, needs in (("cuda", 60, ()), ("triton", 180, ("triton",)), ("cudnn", 40, ()))
        ),
        Check("large batches", trial("batches"), read_trial, 90, ("pytest",)),
        Check("cuDNN's reserve space", trial("reserve"), read_trial, 60, (), False, deterministic),
        Check(
            "tests of ops", [*marked, str(tests / "ops")],
            read_pytest, 120, ("pytest",), False, deterministic,
        ),
        Check(  # not all of these are marked, because without a GPU they run in Triton's interpreter
            "tests of Triton", [*pytest, str(tests / "ops" / "test_triton.py"), "-k", "not compile"],
            read_pytest, 90, ("pytest", "triton"), False, deterministic,
        ),
        Check(
            "compare_numpy", script("compare_numpy", "--device", "cuda", "--json", numpy),
            partial(read_compare_numpy, numpy), 60, ("lightning", "torchtext"),
        ),
        Check(
            "tests of CUDA graphs", [*marked, *(str(tests / "training" / f"{name}.py") for name in GRAPHED)],
            read_pytest, 90, ("pytest", "lightning"), False, deterministic,
        ),
        *(
            Check(
                f"benchmark, {dtype}",
                benchmark(work / dtype, "--dtype", dtype, "--turns", 2),
                partial(read_benchmark, work / dtype), 100, quick=dtype == "float32",
            )
            for dtype in ("float32", "bfloat16")
        ),
        Check(
            "quickstart",
            training_run(work / "quickstart", "--config", ROOT / "configs" / "quickstart.yaml"),
            partial(read_training, work / "quickstart", 0.95), 60, training, False,
        ),
        Check(
            "tests of the module", [*marked, str(tests / "nn")],
            read_pytest, 60, ("pytest",), False, deterministic,
        ),
        Check(
            "tests of training",
            [*marked, str(tests / "training"), *(f"--ignore-glob=*/{name}.py" for name in GRAPHED)],
            read_pytest, 60, ("pytest", *training), False, deterministic,
        ),
        *(
            Check(f"ladder, {backend}", trial(f"ladder-{backend}"), read_trial, 60, ("pytest",), False)
            for backend in ("eager", "bptt")
        ),
        Check("resume after kill -9", trial("resume"), read_trial, 90, ("pytest", *training), False),
        Check("two processes on one GPU", trial("shared"), read_trial, 60, ("pytest", *training), False),
        *(
            Check(
                f"IMDB, one epoch, {name}",
                training_run(work / f"imdb-{i}", "--trainer.max_epochs", 1, *more),
                partial(read_training, work / f"imdb-{i}", 0.6), 90, (*training, "imdb"), False,
            )
            for i, (name, *more) in enumerate(
                (
                    ("32-true",),
                    ("bf16-mixed", "--trainer.precision", "bf16-mixed"),
                    ("CUDA graphs", "--model.cuda_graph", "true"),
                )
            )
        ),
        Check(
            "benchmark, IMDB's lengths", benchmark(imdb, "--imdb", "--turns", 1),
            partial(read_benchmark, imdb), 100, (*training, "imdb"), False,
        ),
        *(
            Check(
                f"compute-sanitizer, {tool}",
                [sanitizer, "--error-exitcode", "1", "--tool", tool, *trial("small")],
                read_sanitizer, 120, ("pytest", "compute-sanitizer"), False, uncached,
            )
            for tool in ("memcheck", "racecheck")
        ),
    ]  # fmt: skip


def script(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)]


def benchmark(folder: Path, *arguments: object) -> list[str]:
    return script("benchmark", "--device", "cuda", "--brief", *arguments, "--out", folder)


def training_run(folder: Path, *arguments: object) -> list[str]:
    settings = ("--trainer.accelerator", "cuda", "--trainer.default_root_dir", folder)
    return script("train_imdb", *arguments, *settings, "--trainer.enable_progress_bar", "false")


def trial(name: str) -> list[str]:
    return [sys.executable, str(TRIALS), name]


def sanitizer_path() -> str | None:
    """Returns the path of compute-sanitizer, which comes with the CUDA toolkit."""
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(f"{toolkit}/bin/compute-sanitizer")


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


def read_trial(output: str) -> tuple[Figures, str]:
    """Reads the JSON in the last line that a trial of tests/gpu_trials.py printed."""
    found = json.loads(output.strip().splitlines()[-1])
    return found["figures"], "; ".join(found["problems"])


def read_pytest(output: str) -> tuple[Figures, str]:
    *lines, summary = output.strip().splitlines()
    figures = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|errors?|skipped)", summary)}
    if not figures.get("passed"):
        raise ValueError(f"no test passed: {summary}")
    return figures, "; ".join(line for line in lines if line.startswith(("FAILED", "ERROR")))


def read_compare_numpy(path: Path, _: str) -> tuple[Figures, str]:
    found, figures, problems = json.loads(path.read_text(encoding="utf-8")), {}, []
    for backend, rows in found["differences"].items():
        largest = max(row["relative"] / row["tolerance"] for row in rows)
        figures[f"{backend}, largest difference / tolerance"] = round(largest, 3)
        figures[f"{backend}, ms a step"] = round(found["milliseconds_per_step"][backend], 3)
        problems += [f"{backend}: {row['name']} is out of tolerance" for row in rows if not row["holds"]]
    return figures, "; ".join(problems)


def read_benchmark(folder: Path, _: str) -> tuple[Figures, str]:
    found, figures = json.loads((folder / "benchmark.json").read_text(encoding="utf-8")), {}
    for row in found.get("imdb_lengths", found["shapes"]):
        for name, times in row["milliseconds"].items():
            where = f"B = {row['B']}, T = {row['T']}, H = {row['H']}, {name}"
            figures[f"{where}, ms"] = round(times["training"]["median"], 4)
            if "replay" in times:
                figures[f"{where}, ms as a CUDA graph"] = round(times["replay"]["median"], 4)
    return figures, ""


def read_training(folder: Path, lowest: float, _: str) -> tuple[Figures, str]:
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    names = ("epochs", "seconds", "ms_per_step", "tokens_per_second", "device")
    accuracy = found["test"]["accuracy"]
    problem = "" if accuracy >= lowest else f"test accuracy is {accuracy:.1%}; it must reach {lowest:.0%}"
    return {"test accuracy": accuracy} | {name: found[name] for name in names}, problem


def read_sanitizer(output: str) -> tuple[Figures, str]:
    lines = output.splitlines()
    _, problem = read_trial("\n".join(line for line in lines if not line.startswith("=========")))
    number, kind = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (error|hazard)", output)[-1]
    return {f"{kind}s": int(number)}, problem or ("" if number == "0" else f"{number} {kind}s")


def machine() -> dict[str, str]:
    """Returns the hardware and the versions that the results depend on."""
    properties = torch.cuda.get_device_properties(0)
    driver = triton = "unknown"
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
        driver = answer.stdout.split()[0]
    with contextlib.suppress(metadata.PackageNotFoundError):
        triton = metadata.version("triton")
    return {
        "GPU": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "driver": driver,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "torch": torch.__version__,
        "Triton": triton,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "CPU cores": str(os.cpu_count()),
    }


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


def check_all(
    chosen: list[Check], out: Path, work: Path, hardware: dict[str, str], console: Console
) -> list[Outcome]:
    """Runs the checks one after the other. Writes the reports to `out` after each of them."""
    outcomes, begin = [], time.perf_counter()
    write_reports(out, hardware, outcomes)
    for check in chosen:
        left = TOTAL - (time.perf_counter() - begin)
        if left > 0:
            with console.status(f"{check.name} (at most {min(check.limit, left):.0f} s)"):
                outcomes.append(run(check, work, min(check.limit, left)))
        else:
            reason = f"the {TOTAL} s for all checks are used up"
            outcomes.append(Outcome(check.name, check.text(), SKIPPED, reason, 0.0, {}))
        write_reports(out, hardware, outcomes)
        text = f"{check.name}, {outcomes[-1].seconds:.1f} s: {result(outcomes[-1])}"
        console.print(text, style=COLOURS[outcomes[-1].status], markup=False, highlight=False)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="default: runs/gpu_check")
    parser.add_argument("--quick", action="store_true", help="only the most important checks")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: this machine has no CUDA device, or this torch was built without CUDA", file=sys.stderr)
        return 2
    out = arguments.out.resolve()
    work = out / time.strftime("%Y-%m-%d-%H-%M-%S")  # a new one, because no training overwrites another
    work.mkdir(parents=True)
    chosen = [check for check in checks(work) if check.quick or not arguments.quick]
    console = Console()
    outcomes = check_all(chosen, out, work, machine(), console)
    numbers = {status: sum(outcome.status == status for outcome in outcomes) for status in COLOURS}
    console.print(", ".join(f"{number} {status}" for status, number in numbers.items()))
    console.print(out / "report.md", soft_wrap=True)
    return int(numbers[FAILED] > 0)


if __name__ == "__main__":
    sys.exit(main())
