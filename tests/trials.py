"""Trials of what a run is promised to survive: the suite makes a few tries, scripts/endurance.py many.

A trial is a function of a folder and a number of tries. It returns the promise and the failures.
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from torch_rnn.training import entry
from torch_rnn.training.checkpoint import Checkpoints
from torch_rnn.training.checkpoint_file import FOLDER, LAST, read_checkpoint

ROOT = Path(__file__).parents[1]
SCRIPT, CONFIG = ROOT / "scripts" / "train_imdb.py", ROOT / "configs" / "quickstart.yaml"
LANGUAGE_CONFIG = ROOT / "configs" / "shakespeare.yaml"
RESULT = ("model.safetensors", "metrics.csv", "curves.png")
SMALL = {  # two layers with every kind of dropout, 16 steps an epoch
    "data.train": 256, "data.validation": 64, "data.test": 64, "data.batch_size": 16,
    "data.max_features": 200, "data.word_dropout": 0.3,
    "model.hidden_size": 8, "model.num_layers": 2, "model.dropout": 0.2, "model.recurrent_dropout": 0.2,
    "trainer.max_epochs": 3, "trainer.log_every_n_steps": 3, "trainer.enable_progress_bar": False,
}  # fmt: skip
TEXT = "".join(
    f"{n} sheep came, {n * n} went; who counts {'them' if n % 3 else 'us'} on day {n % 7}?\n"
    for n in range(99)
)
LONGER = SMALL | {"data.train": 1024, "trainer.max_epochs": 4, "checkpoint.seconds": 0.2}  # 64 steps an epoch
PROCESSES = multiprocessing.get_context("forkserver")  # which imports once what each run needs
PROCESSES.set_forkserver_preload(["torch_rnn.training.run", "matplotlib.pyplot", "torchtext"])


class Found(NamedTuple):
    """The result of a trial. seen: a figure to show beside the promise."""

    promise: str
    tries: int
    failures: list[str]
    seen: str = ""


def language(work: Path) -> dict[str, object]:
    """Returns the settings of a language model: 16 steps an epoch, and 4 batches in a validation."""
    path = work / "text.txt"
    path.write_text(TEXT[:645], encoding="utf-8")
    return {
        "config": LANGUAGE_CONFIG, "data.path": path, "data.cache": work / "cache", "data.validation": 0.2,
        "data.batch_size": 4, "data.steps": 8,
        "model.hidden_size": 8, "model.num_layers": 2, "model.dropout": 0.2, "model.recurrent_dropout": 0.2,
        "model.output_dropout": 0.2, "model.softmax": "sampled", "model.negatives": 10,
        "trainer.max_epochs": 3, "trainer.log_every_n_steps": 3, "trainer.enable_progress_bar": False,
    }  # fmt: skip


def arguments(folder: Path, settings: dict[str, object]) -> list[str]:
    settings = {"config": CONFIG, "trainer.default_root_dir": folder} | settings
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def run_main(given: list[str]) -> int:
    """Runs the command line; returns its exit status."""
    task = "language" if str(LANGUAGE_CONFIG) in given else "classification"
    return entry.main(CONFIG, given, task)


def train(folder: Path, settings: dict[str, object], *more: str) -> tuple[int, str]:
    """Runs the command line in this process; returns its exit status and what it printed as an error."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        status = run_main([*arguments(folder, settings), *more])
    return status, error.getvalue().strip()


def start(folder: Path, settings: dict[str, object], log: Path, **environment: object) -> BaseProcess:
    """Starts the same run in a process of its own, with --resume auto; the log gets what it prints."""
    given = [*arguments(folder, settings), "--resume", "auto"]
    process = PROCESSES.Process(target=run_logged, args=(given, log), kwargs=environment)
    process.start()
    return process


def run_logged(given: list[str], log: Path, **environment: object) -> None:
    """Runs the command line with environment variables, prints into the log, and exits with its status."""
    os.environ |= {name: str(value) for name, value in environment.items()}
    with open(log, "ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(run_main(given))


def wait_for_rows(folder: Path, process: BaseProcess | subprocess.Popen, rows: int) -> None:
    """Waits until metrics.csv has so many rows, or the run has ended."""
    path = folder / "metrics.csv"
    ended = process.poll if isinstance(process, subprocess.Popen) else lambda: process.exitcode
    while ended() is None and not (path.exists() and path.read_text().count("\n") > rows):
        time.sleep(0.005)


def differences(folder: Path, undisturbed: Path) -> list[str]:
    return [
        f"{name} differs"
        for name in RESULT
        if (folder / name).read_bytes() != (undisturbed / name).read_bytes()
    ]


def differences_after_resume(folder: Path, settings: dict[str, object], undisturbed: Path) -> list[str]:
    """Resumes a run in this process; returns what differs from the undisturbed run, or why it failed."""
    status, error = train(folder, settings, "--resume", "auto")
    return differences(folder, undisturbed) if status == 0 else [f"exit status {status} {error}"]


@contextlib.contextmanager
def stopped_at(moment: int):
    """Sends SIGTERM to this process before step `moment`, or at the end of the validation batch -moment."""
    batch_start, batch_end, seen = Checkpoints.on_train_batch_start, Checkpoints.on_validation_batch_end, [0]

    def before_a_step(self, trainer, *rest):
        if trainer.global_step == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        batch_start(self, trainer, *rest)

    def in_validation(self, trainer, *rest):
        seen[0] -= trainer.state.fn == "fit"
        if seen[0] == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        batch_end(self, trainer, *rest)

    Checkpoints.on_train_batch_start, Checkpoints.on_validation_batch_end = before_a_step, in_validation
    try:
        yield
    finally:
        Checkpoints.on_train_batch_start, Checkpoints.on_validation_batch_end = batch_start, batch_end


def every_step(work: Path, tries: int, settings: dict[str, object] = SMALL) -> Found:
    """Stops runs before each step of three epochs and within each validation, and resumes them."""
    train(work / "undisturbed", settings)
    points = [*range(1, 48), *range(-12, 0)]
    failures = []
    for point in track(points[:: max(1, len(points) // tries)], "resume"):
        folder = work / str(point)
        with stopped_at(point):
            status, error = train(folder, settings)
        if status != 143:
            failures.append(f"stop at {point}: exit status {status} {error}")
        wrong = differences_after_resume(folder, settings, work / "undisturbed")
        failures += [f"resumed at {point}: {difference}" for difference in wrong]
        shutil.rmtree(folder)
    return Found(
        "resumed after any step, or amid validation: weights, metrics.csv and curves.png are those"
        " of the undisturbed run, bit for bit",
        len(points[:: max(1, len(points) // tries)]),
        failures,
    )


def every_step_of_a_language_model(work: Path, tries: int) -> Found:
    """Does the same with a language model, whose state is carried from batch to batch."""
    found = every_step(work, tries, language(work))
    return found._replace(promise=f"a language model {found.promise}")


def kills(work: Path, tries: int) -> Found:
    """Kills real runs at random moments, and starts each again until it is done."""
    rng, log = random.Random(0), work / "log"
    train(work / "undisturbed", LONGER)
    lasts = json.loads((work / "undisturbed" / "results.json").read_text())["seconds"]
    killed, run, failures = 0, 0, []
    while killed < tries:
        folder = work / f"run{run}"
        while True:
            process = start(folder, LONGER, log)
            process.join(rng.uniform(0, lasts) if killed < tries else None)
            if not process.is_alive():
                break
            process.kill()
            process.join()
            killed += 1
        run += 1
        if process.exitcode:
            failures.append(f"run {run}: exit status {process.exitcode}, see {log}")
            break
        wrong = differences(folder, work / "undisturbed")
        failures += [f"run {run}: {difference}" for difference in wrong]
        strays = [path.name for path in folder.rglob(".*")]
        failures += [f"run {run} left {', '.join(strays)}"] if strays else []
    return Found(
        "kill -9 at any moment, dropout on: the same bits in the end, and no stray file",
        killed,
        failures,
        f"{run} runs",
    )


def full_disk(work: Path, tries: int) -> Found:
    """Limits the size of files to a random number of bytes while a run saves."""
    train(work / "undisturbed", SMALL)
    size = (work / "undisturbed" / FOLDER / LAST).stat().st_size
    rng, failures = random.Random(3), []
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for number in track(range(tries), "full disk"):
        folder = work / f"run{number}"
        with stopped_at(rng.randrange(1, 47)):
            train(folder, SMALL)
        before = (folder / FOLDER / LAST).read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(1, size // 2), hard))
        try:
            status, error = train(folder, SMALL | {"checkpoint.seconds": 0}, "--resume", "auto")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if status != 2 or "cannot be written" not in error:
            failures.append(f"{number}: exit status {status}, {error}")
        if before not in [path.read_bytes() for path in (folder / FOLDER).iterdir()]:
            failures.append(f"{number}: the old checkpoint is gone")
        wrong = differences_after_resume(folder, SMALL, work / "undisturbed")
        failures += [f"{number}: {difference}" for difference in wrong]
        shutil.rmtree(folder)
    return Found(
        "disk full: one sentence says so, the old checkpoint stays, and with room again the run ends in"
        " the same bits",
        tries,
        failures,
    )


def signals(work: Path, tries: int) -> Found:
    """Sends SIGTERM, SIGUSR1 or SIGINT at random moments to runs that save nothing on their own."""
    rng, failures, log = random.Random(4), [], work / "log"
    settings = LONGER | {"checkpoint.seconds": 60, "trainer.log_every_n_steps": 1}
    train(work / "undisturbed", settings)
    logged = len((work / "undisturbed" / "metrics.csv").read_text().splitlines()) - 1
    for number in track(range(tries), "signals"):
        folder, signum = work / f"run{number}", (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[number % 3]
        process = start(folder, settings, log)
        wait_for_rows(folder, process, rng.randrange(1, logged))
        os.kill(process.pid, signum)
        process.join()
        if process.exitcode != 128 + signum:
            failures.append(f"{signum.name}: exit status {process.exitcode}, see {log}")
            continue
        steps = read_checkpoint(folder / FOLDER / LAST)["global_step"]
        rows = (folder / "metrics.csv").read_text().splitlines()
        begun = 1 + max(int(row.split(",")[1]) for row in rows[1:])
        failures += [f"{signum.name}: {steps} steps saved of {begun}"] if begun - steps > 1 else []
        wrong = differences_after_resume(folder, settings, work / "undisturbed")
        failures += [f"{signum.name}: {difference}" for difference in wrong]
    return Found(
        "SIGTERM, SIGUSR1, Ctrl-C: exit status 143, 138, 130; at most one step is lost; resumed to the"
        " same bits",
        tries,
        failures,
    )


def bad_input(work: Path, tries: int) -> Found:
    """Runs the tests marked bad_input."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "bad_input", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", run.stdout.splitlines()[-1])
    }
    passed = counts.pop("passed", 0)
    failures = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Found(
        "bad input (module, data, configuration, files): one sentence names it and what to do, nothing is"
        " half-written",
        passed + sum(counts.values()),
        failures or ([] if run.returncode == 0 else [run.stdout[-500:]]),
    )


def cost(work: Path, tries: int) -> Found:
    """Measures the time that checks and seeding take of a training step, inside a real run."""
    recurrence, loss = (sys.modules[f"torch_rnn.{name}"] for name in ("ops", "losses"))
    spent = {}

    def timed(owner: object, name: str) -> None:
        plain = getattr(owner, name)

        def wrapper(*args, **kwargs):
            began = time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                spent.setdefault(name, []).append(time.perf_counter() - began)

        setattr(owner, name, wrapper)
        undo.append(lambda: setattr(owner, name, plain))

    undo: list[Callable[[], None]] = []
    for owner, name in ((recurrence, "check"), (loss, "check_labels"), (Checkpoints, "on_train_batch_start")):
        timed(owner, name)
    try:
        status, error = train(work / "run", {"trainer.enable_progress_bar": False, "trainer.max_epochs": 4})
    finally:
        for restore in undo:
            restore()
    if status:
        return Found("Cost", 0, [error])
    step = 1e3 * json.loads((work / "run" / "results.json").read_text())["ms_per_step"]
    checks = 1e6 * sum(sorted(times)[len(times) // 2] for times in spent.values())
    return Found(
        "all checks together take at most 1 % of a step or 50 us, whichever is more",
        len(spent["on_train_batch_start"]),
        [] if checks <= max(50, step / 100) else [f"{checks:.0f} us"],
        f"{checks:.0f} us of {step:,.0f}, by median",
    )
