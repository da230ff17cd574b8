"""documents -> token ids on disk, as a stream: on all cores, in little memory, and resumed after a kill.

First each chunk of documents becomes a file of its own: its words, how often each occurs, and ids that count
within the chunk. What is there need not be made again. Then the words of all training chunks become the
vocabulary, and each chunk's ids those of the vocabulary, one chunk after the other.
"""

import hashlib
import json
import os
import re
import signal
import threading
import time
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from torch_rnn.data.documents import Document, Documents, Place
from torch_rnn.data.text import Vocabulary, tokenize
from torch_rnn.errors import RunError
from torch_rnn.files import write_atomically

CHUNK = 1 << 24
"""Characters of text a chunk, about."""
WORDS = 1 << 20
"""The vocabulary's size at most. Of twice as many different words, the rarer half is forgotten."""
RESIDENT = 1 << 28
"""Bytes of ids that are held in memory; of more, only what a batch needs is read."""
ARRAYS = ("ids", "offsets", "labels", "keys")


class Tokens(NamedTuple):
    """A split's documents."""

    ids: "np.ndarray | IdFile"
    """(N,) int32, of all documents one after the other; in a file if they have more bytes than RESIDENT."""
    offsets: np.ndarray
    """(n + 1,) int64: document i is ids[offsets[i] : offsets[i + 1]]."""
    labels: np.ndarray
    """(n,) int32, places in classes.json."""
    keys: np.ndarray
    """(n,) uint64, equal for the documents of one group and else drawn at random."""


def write_tokens(splits: Mapping[str, Documents], folder: Path, work: Path) -> None:
    """The documents of "train" and the other splits as `Tokens`, words.json and classes.json in the folder.

    work is where the chunks are kept until all is done. Raises RunError for a label that "train" does not
    have, and where it has only one.
    """
    work.mkdir(exist_ok=True)
    chunks = {split: _write_chunks(split, source, work) for split, source in splits.items()}
    classes = _classes(chunks)
    vocabulary = _vocabulary(chunks["train"])
    (folder / "words.json").write_text(json.dumps(vocabulary.words), encoding="utf-8")
    (folder / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    for split, paths in chunks.items():
        _join(paths, vocabulary, classes, folder, split)


def read_tokens(folder: Path, split: str) -> Tokens:
    """What `write_tokens` wrote of a split."""
    ids, *others = (folder / f"{split}_{name}.npy" for name in ARRAYS)
    small = ids.stat().st_size <= RESIDENT
    return Tokens(np.load(ids) if small else IdFile(ids), *(np.load(path, mmap_mode="r") for path in others))


class IdFile:
    """The ids of a .npy file, read where they lie: mapped, a file of any size would become resident."""

    def __init__(self, path: Path):
        self.file = open(path, "rb")  # noqa: SIM115 (open as long as it is in use)
        np.lib.format.read_magic(self.file)
        (self.size,), _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
        self.start = self.file.tell()
        self.lowest: int | None = None

    def __del__(self) -> None:
        self.file.close()

    def read(self, starts: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The pieces (n,) that are wanted, one after the other, with room for those that are not."""
        ends = np.cumsum(lengths)
        ids = np.empty(ends[-1], self.dtype)
        for start, begin, end in zip(
            starts[wanted].tolist(), (ends - lengths)[wanted].tolist(), ends[wanted].tolist(), strict=True
        ):
            place, piece = self.start + start * self.dtype.itemsize, ids[begin:end]
            if os.preadv(self.file.fileno(), [piece], place) != piece.nbytes:
                raise RunError(f"{self.file.name} has been cut short; start again, and it is made anew")
        return ids

    def min(self, initial: int) -> int:
        """The lowest of all ids and of `initial`."""
        if self.lowest is None:
            self.file.seek(self.start)
            self.lowest = initial
            while len(ids := np.fromfile(self.file, self.dtype, RESIDENT // 16)):
                self.lowest = min(self.lowest, int(ids.min()))
        return min(initial, self.lowest)


def grouped_split(keys: np.ndarray, part: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits n documents by their groups' keys (n,): the indices of those that are learnt and of the others.

    Groups are held out in the order of their keys until they have the part asked for: the split depends on
    nothing but the groups.
    """
    groups, sizes = np.unique(keys, return_counts=True)
    last = groups[np.searchsorted(np.cumsum(sizes), part * len(keys))]
    return np.flatnonzero(keys > last), np.flatnonzero(keys <= last)


def key_of(group: str) -> int:
    """The first 64 bits of the SHA-256 of a group's name."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _write_chunks(split: str, source: Documents, work: Path) -> list[Path]:
    """The files of all chunks of a split, in their order; only those that are not there yet are made."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("tokenizing " + split, *columns) as progress, _workers(source.size) as submit:
        bar, paths, place = progress.add_task("", total=source.size), [], (0, 0)
        pending: deque[tuple[Future, int]] = deque()

        def settle(most: int) -> None:
            while len(pending) > most:
                future, size = pending.popleft()
                future.result()
                progress.advance(bar, size)

        while True:
            path = work / f"{split}-{len(paths):06}.npz"
            end = _end(path, place)
            if end is None:
                found, end = _chunk(source, place)
                if not found:
                    break
                pending.append(
                    (submit(_tokenized, path, found, place, end), sum(len(of.text) for of in found))
                )
                settle(2 * _cores())
            paths.append(path)
            place = end
        settle(0)
        progress.update(bar, completed=source.size)
    if not paths:
        raise RunError(f"the {split} data hold no document")
    return paths


def _chunk(source: Documents, place: Place) -> tuple[list[Document], Place]:
    """The documents from a place on that have CHUNK characters together, and the place behind them."""
    found, size, end = [], 0, place
    for document, end in source.read(place):  # noqa: B007 (it is what is behind the last one)
        found.append(document)
        size += len(document.text) + 100  # a short text takes room too
        if size >= CHUNK:
            break
    return found, end


def _tokenized(path: Path, found: list[Document], start: Place, end: Place) -> None:
    """Writes a chunk's file."""
    ids: dict[str, int] = {}
    rows = [
        np.array([ids.setdefault(word, len(ids)) for word in tokenize(document.text)], dtype=np.int32)
        for document in found
    ]
    flat, labels = np.concatenate(rows), sorted({document.label for document in found})
    number = {label: i for i, label in enumerate(labels)}
    arrays = {
        "ids": flat,
        "lengths": np.array([len(row) for row in rows]),
        "counts": np.bincount(flat, minlength=len(ids)),
        "words": _bytes(list(ids)),
        "labels": np.array([number[document.label] for document in found], dtype=np.int32),
        "classes": _bytes(labels),
        "keys": np.array([key_of(document.group) for document in found], dtype=np.uint64),
        "places": np.array([start, end]),
    }

    def write(part: Path) -> None:
        with open(part, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)


def _end(path: Path, start: Place) -> Place | None:
    """The place behind a chunk that an earlier start has left whole; None where it is to be made."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            for name in arrays:  # whose checksums zip compares
                arrays[name]
            begins, ends = map(tuple, arrays["places"].tolist())
            return ends if begins == start else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _classes(chunks: Mapping[str, list[Path]]) -> list[str]:
    """The labels of "train", in the order of their numbers if all are numbers, else of the alphabet."""
    found = {
        split: [(path, _read_list(path, "classes")) for path in paths] for split, paths in chunks.items()
    }
    known = {label for _, labels in found["train"] for label in labels}
    for split, parts in found.items():
        for _, labels in parts:
            if unknown := set(labels) - known:
                raise RunError(
                    f"the {split} data have the label {min(unknown)!r}, which the train data lack; they "
                    f"have {', '.join(map(repr, sorted(known)[:20]))}"
                )
    if len(known) < 2:
        raise RunError(f"the train data have one label only ({min(known)!r}); there must be two or more")
    numbers = all(re.fullmatch("-?[0-9]+", label) for label in known)
    return sorted(known, key=lambda label: (int(label) if numbers else 0, label))


def _vocabulary(paths: list[Path]) -> Vocabulary:
    counts: Counter[str] = Counter()
    for path in paths:
        with np.load(path) as arrays:
            words, numbers = json.loads(arrays["words"].tobytes()), arrays["counts"].tolist()
        for word, n in zip(words, numbers, strict=True):
            counts[word] += n
        if len(counts) > 2 * WORDS:
            counts = Counter(dict(counts.most_common(WORDS)))
    return Vocabulary.build(counts, min(WORDS, len(counts) + 1))


def _join(paths: list[Path], vocabulary: Vocabulary, classes: list[str], folder: Path, split: str) -> None:
    """Writes a split's arrays, with one chunk in memory at a time."""
    lengths = np.concatenate([_read(path, "lengths") for path in paths])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    number = {label: i for i, label in enumerate(classes)}
    labels, keys = [], []
    with open(folder / f"{split}_ids.npy", "wb") as file:
        shape = {"descr": "<i4", "fortran_order": False, "shape": (int(offsets[-1]),)}
        np.lib.format.write_array_header_1_0(file, shape)
        for path in paths:
            with np.load(path) as arrays:
                of_all = vocabulary.encode(json.loads(arrays["words"].tobytes()))
                file.write(of_all[arrays["ids"]].astype("<i4").data)
                of_classes = np.array(
                    [number[label] for label in json.loads(arrays["classes"].tobytes())], np.int32
                )
                labels.append(of_classes[arrays["labels"]])
                keys.append(arrays["keys"])
    for name, array in (
        ("offsets", offsets),
        ("labels", np.concatenate(labels)),
        ("keys", np.concatenate(keys)),
    ):
        np.save(folder / f"{split}_{name}.npy", array, allow_pickle=False)


def _bytes(words: list[str]) -> np.ndarray:
    return np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)


def _read(path: Path, name: str) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays[name]


def _read_list(path: Path, name: str) -> list[str]:
    return json.loads(_read(path, name).tobytes())


def _cores() -> int:
    """As many as are there, but eight at most: each works on a chunk, and two more wait for it in memory."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextmanager
def _workers(size: int) -> Iterator[Callable[..., Future]]:
    """A function that hands work to another process, one a core; where there is little to do, to this one."""
    if size <= CHUNK or _cores() == 1 or "fork" not in get_all_start_methods():
        yield _at_once
        return
    with warnings.catch_warnings():
        # Python 3.12 warns of fork where there are threads: the workers touch nothing that these may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ProcessPoolExecutor(_cores(), get_context("fork"), _be_a_worker, (os.getpid(),))
        try:
            yield pool.submit
        except BrokenProcessPool as error:
            raise RunError(
                "a process that tokenizes has died, for want of memory perhaps; start again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _at_once(work: Callable[..., None], *args: Any) -> Future:
    future: Future = Future()
    future.set_result(work(*args))
    return future


def _be_a_worker(parent: int) -> None:
    """Leaves signals to the parent, and ends when it is gone, since nobody would ever give it work again."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in {"SIGINT", "SIGUSR1"} & set(dir(signal)):
        signal.signal(getattr(signal, name), signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
