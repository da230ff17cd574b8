"""Checks and times everything on this machine's GPU, and writes report.md and report.json.

Each check is a command with a time limit; one that fails or takes too long does not stop the others. The
reports are written again after each check. The exit status is 0 if no check failed, 1 if one did, and 2 where
there is no GPU.
"""

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed, too

from torch_rnn.benchmarks.checks import COLOURS, FAILED, Check, check_all, sanitizer_path  # noqa: E402
from torch_rnn.benchmarks.outputs import (  # noqa: E402
    read_benchmark,
    read_compare_numpy,
    read_pytest,
    read_sanitizer,
    read_training,
    read_trial,
)

SCRIPTS, TRIALS = ROOT / "scripts", ROOT / "tests" / "gpu_trials.py"
GRAPHED = ("test_graphed", "test_graphed_update")
"""The files whose tests on a GPU need neither torchtext nor jsonargparse."""
TOTAL = 590
"""Seconds for all checks: a check is stopped then, and the later ones are skipped."""


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
    outcomes = check_all(chosen, out, work, machine(), TOTAL, console)
    numbers = {status: sum(outcome.status == status for outcome in outcomes) for status in COLOURS}
    console.print(", ".join(f"{number} {status}" for status, number in numbers.items()))
    console.print(out / "report.md", soft_wrap=True)
    return int(numbers[FAILED] > 0)


if __name__ == "__main__":
    sys.exit(main())
