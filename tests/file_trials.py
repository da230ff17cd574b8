"""Trials of files: killed while they are written, damaged where they lie, prepared by many at once."""

import contextlib
import io
import logging
import os
import random
import signal
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track
from trials import SMALL, Found, train

from torch_rnn.data import imdb
from torch_rnn.data.cache import cached
from torch_rnn.data.grammar import corpus
from torch_rnn.data.tokens import write_tokens
from torch_rnn.errors import RunError
from torch_rnn.files import remove_parts
from torch_rnn.nn.module import RNN
from torch_rnn.training.checkpoint_file import FOLDER, LAST, newest, read_checkpoint, write_checkpoint


def kills_in_save(work: Path, tries: int) -> Found:
    """kill -9 while a checkpoint of 32 MB is being written, TMPDIR being on another file system."""
    rng, failures, path, last = random.Random(1), [], work / FOLDER / LAST, -1
    blob, inside = torch.zeros(8 << 20), 0
    path.parent.mkdir()
    for number in track(range(tries), "kills in a save"):
        child = fork()
        if child == 0:
            os.environ["TMPDIR"] = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
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
        "kill -9 inside a save, TMPDIR on another file system: a checkpoint loads, no older than the last"
        " one, and the next start leaves no stray file",
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
    folder = cached(
        work / "cache", "imdb", {}, lambda part, work: write_tokens(imdb.read_reviews(archive), part, work)
    )
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("torch_rnn.data.cache").addHandler(handler)

    def read_cache(path: Path) -> None:
        cached(
            work / "cache",
            "imdb",
            {},
            lambda part, work: write_tokens(imdb.read_reviews(archive), part, work),
        )
        if messages:
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
        failures += [of for of in [refused(path, read)] if of]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(good)
    return Found(
        "a flipped bit or a truncation of a checkpoint, weights, a token cache or an archive: refused,"
        " and the file is named",
        tries,
        failures,
    )


def write_archive(path: Path, n: int) -> None:
    """n reviews of the grammar in each of the four folders, in the published layout of IMDB."""
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


def many_at_once(work: Path, tries: int) -> Found:
    """Eight processes prepare the same data, and the one that is at it is killed half-way."""
    archive = work / "aclImdb.tar.xz"
    write_archive(archive, 500)

    def manifest(parent: Path) -> bytes:
        def make(part: Path, work: Path) -> None:
            (parent / "maker").write_text(str(os.getpid()))
            write_tokens(imdb.read_reviews(archive), part, work)

        return (cached(parent, "imdb", {}, make) / "manifest.json").read_bytes()

    (work / "alone").mkdir()
    began, right, rng, failures = time.monotonic(), manifest(work / "alone"), random.Random(5), []
    lasts = time.monotonic() - began
    for number in track(range(tries), "many at once"):
        parent = work / f"round{number}"
        parent.mkdir()
        children = []
        for _ in range(8):
            if (child := fork()) == 0:
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
        "eight processes prepare the same data, one is killed half-way: seven see the same whole cache,"
        " none waits for ever",
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


def fork() -> int:
    """os.fork, which Python 3.12 warns of where there are threads; no child here computes with them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
