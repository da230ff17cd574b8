"""Trials of what a run is promised to survive, as often as asked: the suite's few, scripts/endurance.py's many.

A trial is a function of a folder and a number of tries, and tells what it found.
"""

import contextlib
import io
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track

from torch_rnn import cli, reviews
from torch_rnn.cache import cached
from torch_rnn.checkpoint import FOLDER, LAST, Checkpoints, newest, read_checkpoint, write_checkpoint
from torch_rnn.errors import RunError
from torch_rnn.files import remove_parts
from torch_rnn.grammar import corpus
from torch_rnn.imdb import write_tokens
from torch_rnn.rnn import RNN

ROOT = Path(__file__).parents[1]
SCRIPT, CONFIG = ROOT / "scripts" / "train_imdb.py", ROOT / "configs" / "quickstart.yaml"
RESULT = ("model.safetensors", "metrics.csv", "curves.png")
SMALL = {  # two layers with every kind of dropout, 16 steps an epoch
    "data.train": 256, "data.validation": 64, "data.test": 64, "data.batch_size": 16, "data.max_features": 200,
    "data.word_dropout": 0.3, "model.hidden_size": 8, "model.num_layers": 2, "model.dropout": 0.2,
    "model.recurrent_dropout": 0.2, "trainer.max_epochs": 3, "trainer.log_every_n_steps": 3,
    "trainer.enable_progress_bar": False,
}  # fmt: skip
LONGER = SMALL | {"data.train": 4096, "trainer.max_epochs": 4, "checkpoint.seconds": 0.2}


class Found(NamedTuple):
    """What a trial saw."""

    promise: str
    tries: int
    failures: list[str]
    seen: str = ""


def arguments(folder: Path, settings: dict[str, object]) -> list[str]:
    given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["--config", str(CONFIG), "--trainer.default_root_dir", str(folder), *given]


def train(folder: Path, settings: dict[str, object], *more: str) -> tuple[int, str]:
    """A run in this process: its exit status, and what it printed as an error."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        status = cli.main(CONFIG, [*arguments(folder, settings), *more])
    return status, error.getvalue().strip()


def start(folder: Path, settings: dict[str, object], log: Path) -> subprocess.Popen:
    """The same run as a user starts it, in a process of its own, with --resume auto."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments(folder, settings), "--resume", "auto"],
            stdout=file,
            stderr=file,
        )


def differences(folder: Path, undisturbed: Path) -> list[str]:
    return [
        f"{name} differs"
        for name in RESULT
        if (folder / name).read_bytes() != (undisturbed / name).read_bytes()
    ]


@contextlib.contextmanager
def stopped_at(moment: int):
    """Runs in this process get SIGTERM before step `moment`, or amid the validation batch -moment."""
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


def every_step(work: Path, tries: int) -> Found:
    """Every step of three epochs, and every batch of their validations, as the point to resume from."""
    train(work / "undisturbed", SMALL)
    points = [*range(1, 48), *range(-12, 0)]
    failures = []
    for point in track(points[:: max(1, len(points) // tries)], "resume"):
        folder = work / str(point)
        with stopped_at(point):
            status, error = train(folder, SMALL)
        if status != 143:
            failures.append(f"stop at {point}: exit status {status} {error}")
        status, error = train(folder, SMALL, "--resume", "auto")
        wrong = (
            differences(folder, work / "undisturbed") if status == 0 else [f"exit status {status} {error}"]
        )
        failures += [f"resumed at {point}: {of}" for of in wrong]
        shutil.rmtree(folder)
    return Found(
        "Resumed after any step, or amid validation: weights, metrics.csv and curves.png are bit for bit those "
        "of the undisturbed run",
        len(points[:: max(1, len(points) // tries)]),
        failures,
    )


def kills(work: Path, tries: int) -> Found:
    """kill -9 at random moments of real runs, each started again until it is done."""
    rng, log, began = random.Random(0), work / "log", time.monotonic()
    start(work / "undisturbed", LONGER, log).wait()
    lasts = time.monotonic() - began
    killed, run, failures = 0, 0, []
    while killed < tries:
        folder = work / f"run{run}"
        while True:
            process = start(folder, LONGER, log)
            try:
                # While kills are left, the last of them may come late, since a run that is killed too soon
                # never gets anywhere.
                process.wait(rng.uniform(0.0, 1.2 * lasts) if killed < tries else None)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
        run += 1
        if process.returncode:
            failures.append(f"run {run}: exit status {process.returncode}, see {log}")
            break
        failures += [f"run {run}: {of}" for of in differences(folder, work / "undisturbed")]
        strays = [path.name for path in folder.rglob(".*")]
        failures += [f"run {run} left {', '.join(strays)}"] if strays else []
    return Found(
        "kill -9 at any moment, dropout on: the same bits in the end, and no stray file",
        killed,
        failures,
        f"{run} runs",
    )


def kills_in_save(work: Path, tries: int) -> Found:
    """kill -9 while a checkpoint of 32 MB is being written, TMPDIR being on another file system."""
    os.environ["TMPDIR"] = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
    rng, failures, path, last = random.Random(1), [], work / FOLDER / LAST, -1
    blob, inside = torch.zeros(8 << 20), 0
    path.parent.mkdir()
    for number in track(range(tries), "kills in a save"):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                for step in range(last + 1, last + 1000):
                    write_checkpoint(path, {"step": step, "blob": blob})
            os._exit(1)
        time.sleep(rng.uniform(0, 0.2))
        while not list(path.parent.glob(".*.part")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        inside += bool(list(path.parent.glob(".*.part")))
        remove_parts(path.parent)
        try:
            found = newest(work)
            if found is not None or last >= 0:
                step = read_checkpoint(found)["step"]
                if step < last:
                    failures.append(f"kill {number}: step {step} after {last}")
                last = step
        except (RunError, TypeError) as error:
            failures.append(f"kill {number}: {error}")
        strays = {of.name for of in path.parent.iterdir()} - {"last.ckpt", "previous.ckpt"}
        failures += [f"kill {number} left {strays}"] if strays else []
    return Found(
        "kill -9 inside a save, TMPDIR on another file system: a loadable checkpoint, no older than the last "
        "one, and no stray file after the next start",
        tries,
        failures,
        f"{inside} with a half-written file",
    )


def damaged(contents: bytes, rng: random.Random) -> bytes:
    """The contents with one bit flipped, or cut short; each as often."""
    if rng.random() < 0.5:
        return contents[: rng.randrange(len(contents))]
    at = rng.randrange(len(contents))
    return contents[:at] + bytes([contents[at] ^ 1 << rng.randrange(8)]) + contents[at + 1 :]


def refused(path: Path, read: Callable[[Path], object]) -> str:
    """Empty where reading fails with a sentence that names the file."""
    try:
        read(path)
    except (RunError, ValueError) as error:
        return "" if path.name in str(error) else f"{path.name} is not named: {error}"
    except Exception as error:
        return f"{path.name}: {type(error).__name__}: {error}"
    return f"damage to {path.name} was read in silence"


def damage(work: Path, tries: int) -> Found:
    """Flipped bits and truncations of checkpoints, weights, token caches and archives."""
    rng, failures = random.Random(2), []
    train(work / "run", SMALL)
    archive = work / "aclImdb.tar.xz"
    write_archive(archive, 40)
    folder = cached(work / "cache", "imdb", {}, lambda part: write_tokens(archive, part))
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("torch_rnn.cache").addHandler(handler)

    def read_cache(path: Path) -> None:
        cached(work / "cache", "imdb", {}, lambda part: write_tokens(archive, part))
        if messages:
            raise RunError(messages.pop())

    kinds = {
        "checkpoint": (lambda: work / "run" / FOLDER / LAST, read_checkpoint),
        "weights": (lambda: work / "run" / "model.safetensors", RNN.load),
        "token cache": (lambda: rng.choice(sorted(folder.iterdir())), read_cache),
        "archive": (lambda: archive, reviews.read),
    }
    for number in track(range(tries), "damage"):
        choose, read = list(kinds.values())[number % len(kinds)]
        path = choose()
        good = path.read_bytes()
        path.write_bytes(damaged(good, rng))
        failures += [of for of in [refused(path, read)] if of]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(good)
    return Found(
        f"A flipped bit or a truncation of a {', '.join(kinds)} is refused, and the file is named",
        tries,
        failures,
    )


def write_archive(path: Path, n: int) -> None:
    """n reviews of the grammar in each of the four folders, in the published layout of IMDB."""
    import tarfile

    texts, _ = corpus(4 * n, seed=0)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as tar:
        for split in ("train", "test"):
            for kind in ("neg", "pos"):
                files = {f"{kind}/{i}_5.txt": texts.pop() for i in range(n)}
                files[f"urls_{kind}.txt"] = "".join(f"film{i // 4}\n" for i in range(n))
                for name, text in files.items():
                    member = tarfile.TarInfo(f"aclImdb/{split}/{name}")
                    member.size = len(text.encode())
                    tar.addfile(member, io.BytesIO(text.encode()))


def full_disk(work: Path, tries: int) -> Found:
    """A disk that takes no more of a file than a limit drawn at random, while a run saves."""
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
        status, error = train(folder, SMALL, "--resume", "auto")
        wrong = (
            differences(folder, work / "undisturbed") if status == 0 else [f"exit status {status} {error}"]
        )
        failures += [f"{number}: {of}" for of in wrong]
        shutil.rmtree(folder)
    return Found(
        "Disk full: one sentence says so, the old checkpoint stays, and with room again the run ends in the same bits",
        tries,
        failures,
    )


def signals(work: Path, tries: int) -> Found:
    """SIGTERM, SIGUSR1 and Ctrl-C at random moments of real runs that save nothing on their own."""
    rng, failures, log = random.Random(4), [], work / "log"
    settings = LONGER | {"checkpoint.seconds": 60, "trainer.log_every_n_steps": 1}
    start(work / "undisturbed", settings, log).wait()
    for number in track(range(tries), "signals"):
        folder, signum = work / f"run{number}", (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[number % 3]
        process = start(folder, settings, log)
        while not (folder / "metrics.csv").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signum)
        status = process.wait()
        if status != 128 + signum:
            failures.append(f"{signum.name}: exit status {status}, see {log}")
            continue
        steps = read_checkpoint(folder / FOLDER / LAST)["global_step"]
        rows = (folder / "metrics.csv").read_text().splitlines()
        begun = 1 + max(int(row.split(",")[1]) for row in rows[1:])
        failures += [f"{signum.name}: {steps} steps saved of {begun}"] if begun - steps > 1 else []
        status, error = train(folder, settings, "--resume", "auto")
        wrong = (
            differences(folder, work / "undisturbed") if status == 0 else [f"exit status {status} {error}"]
        )
        failures += [f"{signum.name}: {of}" for of in wrong]
    return Found(
        "SIGTERM, SIGUSR1, Ctrl-C: exit status 143, 138, 130, at most one step lost, resumed to the same bits",
        tries,
        failures,
    )


def many_at_once(work: Path, tries: int) -> Found:
    """Eight processes prepare the same data, and the one that is at it is killed half-way."""
    archive = work / "aclImdb.tar.xz"
    write_archive(archive, 500)

    def manifest(parent: Path) -> bytes:
        def make(part: Path) -> None:
            (parent / "maker").write_text(str(os.getpid()))
            write_tokens(archive, part)

        return (cached(parent, "imdb", {}, make) / "manifest.json").read_bytes()

    (work / "alone").mkdir()
    began, right, rng, failures = time.monotonic(), manifest(work / "alone"), random.Random(5), []
    lasts = time.monotonic() - began
    for number in track(range(tries), "many at once"):
        parent = work / f"round{number}"
        parent.mkdir()
        children = []
        for _ in range(8):
            if (child := os.fork()) == 0:
                status = 2
                with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
                    status = int(manifest(parent) != right)
                os._exit(status)
            children.append(child)
        while not ((parent / "maker").exists() and (parent / "maker").read_text()):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.1, 0.9) * lasts)
        victim = int((parent / "maker").read_text())
        os.kill(victim, signal.SIGKILL)
        ended = wait_for(children, seconds=60)
        for child, status in ended.items():
            if child != victim and status != 0:
                failures.append(f"round {number}: status {status}")
        if strays := [path.name for path in parent.glob("*.part")]:
            failures.append(f"round {number} left {strays}")
    return Found(
        "Eight processes prepare the same data, one is killed half-way: seven see the same whole cache, none waits "
        "for ever",
        tries,
        failures,
    )


def wait_for(children: list[int], seconds: float) -> dict[int, int]:
    """The statuses of the children; one that has not ended by then is killed, and has status -1."""
    end, statuses = time.monotonic() + seconds, {}
    while len(statuses) < len(children):
        for child in set(children) - set(statuses):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                statuses[child] = status
            elif time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                statuses[child] = -1
        time.sleep(0.005)
    return statuses


def bad_input(work: Path, tries: int) -> Found:
    """The test suite's table of bad input."""
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
        "Bad input (module, data, configuration, files): one sentence that names what, where and what to do; "
        "nothing half-written",
        passed + sum(counts.values()),
        failures or ([] if run.returncode == 0 else [run.stdout[-500:]]),
    )


def cost(work: Path, tries: int) -> Found:
    """The time that checks and seeding take of a training step, inside a real run."""
    recurrence, loss = (sys.modules[f"torch_rnn.{name}"] for name in ("recurrence", "loss"))
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
        for of in undo:
            of()
    if status:
        return Found("Cost", 0, [error])
    step = 1e3 * json.loads((work / "run" / "results.json").read_text())["ms_per_step"]
    checks = 1e6 * sum(sorted(times)[len(times) // 2] for times in spent.values())
    return Found(
        "All checks together take at most 1 % of a step or 50 us, whichever is more",
        len(spent["on_train_batch_start"]),
        [] if checks <= max(50, step / 100) else [f"{checks:.0f} us"],
        f"{checks:.0f} us of {step:,.0f}, by median",
    )
