"""Trials of files: a kill while they are written, damage, and preparation by many processes at once."""

import contextlib
import io
import logging
import os
import random
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import rich
import torch
from made_reviews import reviews, write_archive
from rich.progress import track
from trials import SMALL, Found, train

from torch_rnn.data import imdb
from torch_rnn.data.cache import cached
from torch_rnn.data.tokenizing import write_tokens
from torch_rnn.errors import RunError
from torch_rnn.files import remove_parts
from torch_rnn.nn.module import RNN
from torch_rnn.training.checkpoint_file import FOLDER, LAST, newest, read_checkpoint, write_checkpoint


def kills_in_save(work: Path, tries: int) -> Found:
    """Sends SIGKILL while a checkpoint of 32 MB is written and TMPDIR is on another file system."""
    rng, failures, path, last_step = random.Random(1), [], work / FOLDER / LAST, -1
    blob, half_written = torch.zeros(8 << 20), 0
    path.parent.mkdir()
    for number in track(range(tries), "kills in a save"):
        child = fork()
        if child == 0:
            os.environ["TMPDIR"] = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
            with contextlib.suppress(BaseException):
                for step in range(last_step + 1, last_step + 1000):
                    write_checkpoint(path, {"step": step, "blob": blob})
            os._exit(1)
        time.sleep(rng.uniform(0, 0.2))
        while not list(path.parent.glob(".*.part")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        half_written += bool(list(path.parent.glob(".*.part")))
        remove_parts(path.parent)
        try:
            checkpoint = newest(work)
            if checkpoint is not None or last_step >= 0:
                step = read_checkpoint(checkpoint)["step"]
                if step < last_step:
                    failures.append(f"kill {number}: step {step} after {last_step}")
                last_step = step
        except (RunError, TypeError) as error:
            failures.append(f"kill {number}: {error}")
        strays = {file.name for file in path.parent.iterdir()} - {"last.ckpt", "previous.ckpt"}
        failures += [f"kill {number} left {strays}"] if strays else []
    return Found(
        "kill -9 inside a save, TMPDIR on another file system: a checkpoint loads, no older than the last"
        " one, and the next start leaves no stray file",
        tries,
        failures,
        f"{half_written} with a half-written file",
    )


def damaged(contents: bytes, rng: random.Random) -> bytes:
    """Returns the contents cut short or with one bit flipped, at random."""
    if rng.random() < 0.5:
        return contents[: rng.randrange(len(contents))]
    i = rng.randrange(len(contents))
    return contents[:i] + bytes([contents[i] ^ 1 << rng.randrange(8)]) + contents[i + 1 :]


def failure_of_reading(path: Path, read: Callable[[Path], object]) -> str:
    """Returns "" if reading a damaged file fails with an error that names it, else what happened instead."""
    try:
        read(path)
    except (RunError, ValueError) as error:
        return "" if path.name in str(error) else f"{path.name} is not named: {error}"
    except Exception as error:
        return f"{path.name}: {type(error).__name__}: {error}"
    return f"damage to {path.name} was read in silence"


def damage(work: Path, tries: int) -> Found:
    """Flips bits of checkpoints, weights, token caches and archives, or truncates them."""
    rng, failures = random.Random(2), []
    train(work / "run", SMALL)
    archive = work / "aclImdb.tar.xz"
    write_archive(archive, reviews(40, 40))

    def prepare() -> Path:
        return cached(
            work / "cache",
            "imdb",
            {},
            lambda part, work: write_tokens(imdb.read_reviews(archive), part, work),
        )

    folder = prepare()
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("torch_rnn.data.cache").addHandler(handler)

    def read_cache(path: Path) -> None:
        prepare()
        if messages:  # the warning that a damaged cache is made again
            raise RunError(messages.pop())

    kinds = {
        "checkpoint": (lambda: work / "run" / FOLDER / LAST, read_checkpoint),
        "weights": (lambda: work / "run" / "model.safetensors", RNN.load),
        "token cache": (lambda: rng.choice(sorted(folder.iterdir())), read_cache),
        "archive": (lambda: archive, imdb.read_reviews),
    }
    for number in track(range(tries), "damage"):
        choose, read = list(kinds.values())[number % len(kinds)]
        path = choose()
        good = path.read_bytes()
        path.write_bytes(damaged(good, rng))
        if failure := failure_of_reading(path, read):
            failures.append(failure)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(good)
    return Found(
        "a flipped bit or a truncation of a checkpoint, weights, a token cache or an archive: refused,"
        " and the file is named",
        tries,
        failures,
    )


def many_at_once(work: Path, tries: int) -> Found:
    """Lets eight processes prepare the same data, and kills the one that writes it half-way."""
    archive = work / "aclImdb.tar.xz"
    write_archive(archive, reviews(500, 500))

    def manifest(parent: Path) -> bytes:
        """Prepares the data and returns its manifest. The file `writer` names the process that writes."""

        def make(part: Path, work: Path) -> None:
            (parent / "writer").write_text(str(os.getpid()))
            write_tokens(imdb.read_reviews(archive), part, work)

        return (cached(parent, "imdb", {}, make) / "manifest.json").read_bytes()

    (work / "alone").mkdir()
    rng, failures, start = random.Random(5), [], time.monotonic()
    expected = manifest(work / "alone")
    seconds = time.monotonic() - start
    for number in track(range(tries), "many at once"):
        parent = work / f"round{number}"
        parent.mkdir()
        children = []
        for _ in range(8):
            if (child := fork()) == 0:
                status = 2
                with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
                    status = int(manifest(parent) != expected)
                os._exit(status)
            children.append(child)
        while not ((parent / "writer").exists() and (parent / "writer").read_text()):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.1, 0.9) * seconds)
        victim = int((parent / "writer").read_text())
        os.kill(victim, signal.SIGKILL)
        ended = wait_for(children, seconds=60)
        for child, status in ended.items():
            if child != victim and status != 0:
                failures.append(f"round {number}: status {status}")
        if strays := [path.name for path in parent.glob("*.part")]:
            failures.append(f"round {number} left {strays}")
    return Found(
        "eight processes prepare the same data, one is killed half-way: seven see the same whole cache,"
        " none waits for ever",
        tries,
        failures,
    )


def wait_for(children: list[int], seconds: float) -> dict[int, int]:
    """Returns the statuses of the children. Kills those that have not ended in time; their status is -1."""
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


def fork() -> int:
    """Forks without Python 3.12's warning of threads: no child here computes with them.

    The child gets a rich console of its own: the thread that draws the parent's progress bar may hold the
    console's lock at this moment, and in the child nothing would ever release it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        rich.reconfigure()
    return child
