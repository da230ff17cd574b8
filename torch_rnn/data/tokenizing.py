"""documents -> token ids on disk, streamed on all cores in little memory, and resumed after a kill.

First each chunk of documents is written to its own file: its words, their counts, and ids that are valid
within the chunk. A later start keeps the complete files. Then the words of all training chunks become the
vocabulary, and the ids of each chunk in turn are replaced by those of the vocabulary.
"""

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
from itertools import count
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torch_rnn.data.documents import START, Document, Documents, Position
from torch_rnn.data.progress import progress_of_bytes
from torch_rnn.data.text import Vocabulary, tokenize
from torch_rnn.data.tokens import PROBABILITIES, UNLABELLED, group_key
from torch_rnn.errors import RunError
from torch_rnn.files import write_atomically

CHUNK_SIZE = 1 << 24
"""Approximate number of characters in a chunk."""
MAX_WORDS = 1 << 20
"""Limit on the vocabulary. The rarer half is dropped when counting reaches twice as many words."""
MAX_UNKNOWN = 20
"""Limit on the unknown tokens that are kept by name."""


def write_tokens(splits: Mapping[str, Documents], folder: Path, work: Path) -> None:
    """Writes the documents of "train" and the other splits as `Tokens`, with words.json and classes.json.

    Args:
        splits: The documents of each split.
        folder: An existing folder for the result.
        work: A folder for the chunks, which a later start uses again.

    Raises:
        RunError: A split has no document or a label that "train" lacks, or "train" has only one label.
    """
    work.mkdir(exist_ok=True)
    chunks = {split: _write_chunks(split, source, work, tokenize) for split, source in splits.items()}
    classes = _classes(chunks)
    vocabulary = _vocabulary(chunks["train"])
    (folder / "words.json").write_text(json.dumps(vocabulary.words), encoding="utf-8")
    (folder / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    for split, paths in chunks.items():
        _write_split(paths, vocabulary, classes, folder, split)


def write_unlabelled(source: Documents, vocabulary: Vocabulary, folder: Path, work: Path) -> None:
    """Writes documents without labels as `Tokens`, with the ids of a vocabulary; 0 is every other word.

    Where the documents have probabilities, they are written as unlabelled_probabilities.npy, (n, C) float64.

    Args:
        source: The documents.
        vocabulary: The words and their ids.
        folder: An existing folder for the result.
        work: A folder for the chunks, which a later start uses again.
    """
    work.mkdir(exist_ok=True)
    paths = _write_chunks(UNLABELLED, source, work, tokenize)
    _write_split(paths, vocabulary, None, folder, UNLABELLED)


def write_stream(splits: Mapping[str, Documents], tokens: str, folder: Path, work: Path) -> None:
    """Writes the ids of long texts, with words.json, and for each split counts and unknown tokens.

    {split}_counts.npy has the number of each id, (V,) int64; {split}_unknown.json the most frequent tokens
    that "train" lacks, with their numbers.

    Args:
        splits: The pieces of the text of "train" and of other splits.
        tokens: "characters" (Unicode code points) or "words".
        folder: An existing folder for the result.
        work: A folder for the chunks, which a later start uses again.
    """
    work.mkdir(exist_ok=True)
    split_text = list if tokens == "characters" else tokenize
    chunks = {split: _write_chunks(split, source, work, split_text) for split, source in splits.items()}
    vocabulary = _vocabulary(chunks["train"])
    (folder / "words.json").write_text(json.dumps(vocabulary.words), encoding="utf-8")
    for split, paths in chunks.items():
        _write_split(paths, vocabulary, None, folder, split)
        counts, unknown = np.zeros(len(vocabulary), np.int64), Counter()
        for path in paths:
            words, numbers = _read_list(path, "words"), _read_array(path, "counts")
            ids = vocabulary.encode(words)
            np.add.at(counts, ids, numbers)
            unknown.update({words[i]: int(numbers[i]) for i in np.flatnonzero(ids == 0)})
        np.save(folder / f"{split}_counts.npy", counts, allow_pickle=False)
        text = json.dumps(unknown.most_common(MAX_UNKNOWN))
        (folder / f"{split}_unknown.json").write_text(text, encoding="utf-8")


class Chunk(NamedTuple):
    documents: list[Document]
    start: Position
    end: Position


def _write_chunks(
    split: str, source: Documents, work: Path, split_text: Callable[[str], list[str]]
) -> list[Path]:
    """Writes the chunks of a split that no earlier start has written; returns the files of all, in order."""
    with progress_of_bytes() as progress, _workers(source.size) as submit:
        bar, paths = progress.add_task("tokenizing " + split, total=source.size), []
        pending: deque[tuple[Future, Position]] = deque()

        def finish_oldest() -> None:
            future, end = pending.popleft()
            future.result()
            progress.update(bar, completed=source.bytes_before(end))

        for path, chunk in _chunks(split, source, work):
            paths.append(path)
            if chunk is not None:
                pending.append((submit(_write_chunk, path, chunk, split_text), chunk.end))
            if len(pending) > 2 * _cores():
                finish_oldest()
        while pending:
            finish_oldest()
        progress.update(bar, completed=source.size)
    if not paths:
        raise RunError(f"the {split} data hold no document")
    return paths


def _chunks(split: str, source: Documents, work: Path) -> Iterator[tuple[Path, Chunk | None]]:
    """Yields the file of each chunk, and the chunk itself if an earlier start has not written it whole."""
    position, stream = START, None
    for number in count():
        path, chunk = work / f"{split}-{number:06}.npz", None
        end = _end_of_chunk(path, position)
        if end is not None:
            stream = None
        else:
            stream = stream or source.read(position)
            chunk = _read_chunk(stream, position)
            if not chunk.documents:
                return
            end = chunk.end
        yield path, chunk
        position = end


def _read_chunk(stream: Iterator[tuple[Document, Position]], start: Position) -> Chunk:
    """Takes documents from a stream that is at `start` until they have CHUNK_SIZE characters together."""
    documents, size, end = [], 0, start
    for document, end in stream:  # noqa: B007 (end is the position after the last document)
        documents.append(document)
        size += len(document.text) + 100  # each object takes memory, however short its text
        if size >= CHUNK_SIZE:
            break
    return Chunk(documents, start, end)


def _write_chunk(path: Path, chunk: Chunk, split_text: Callable[[str], list[str]]) -> None:
    """Tokenizes a chunk and writes its file."""
    ids: dict[str, int] = {}
    rows = [
        np.array([ids.setdefault(word, len(ids)) for word in split_text(document.text)], dtype=np.int32)
        for document in chunk.documents
    ]
    flat, classes = np.concatenate(rows), sorted({document.label for document in chunk.documents})
    number = {label: i for i, label in enumerate(classes)}
    arrays = {
        "ids": flat,
        "lengths": np.array([len(row) for row in rows]),
        "counts": np.bincount(flat, minlength=len(ids)),
        "words": _bytes(list(ids)),
        "labels": np.array([number[document.label] for document in chunk.documents], dtype=np.int32),
        "classes": _bytes(classes),
        "keys": np.array([group_key(document.group) for document in chunk.documents], dtype=np.uint64),
        "places": np.array([chunk.start, chunk.end]),
    }
    if chunk.documents[0].probabilities:
        arrays[PROBABILITIES] = np.array([document.probabilities for document in chunk.documents])

    def write(part: Path) -> None:
        with open(part, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)


def _end_of_chunk(path: Path, start: Position) -> Position | None:
    """Returns the position after the chunk in a file; None if the file is missing, damaged or another's."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            for name in arrays:  # reading an array verifies its checksum
                arrays[name]
            first, end = map(tuple, arrays["places"].tolist())
            return end if first == start else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _classes(chunks: Mapping[str, list[Path]]) -> list[str]:
    """Returns the labels of "train", ordered as numbers if all are whole numbers, else alphabetically."""
    labels = {
        split: {label for path in paths for label in _read_list(path, "classes")}
        for split, paths in chunks.items()
    }
    known = labels["train"]
    for split, others in labels.items():
        if unknown := others - known:
            raise RunError(
                f"the {split} data have the label {min(unknown)!r}, which the train data lack; they "
                f"have {', '.join(map(repr, sorted(known)[:20]))}"
            )
    if len(known) < 2:
        raise RunError(f"the train data have one label only ({min(known)!r}); there must be two or more")
    numbers = all(re.fullmatch("-?[0-9]+", label) for label in known)
    return sorted(known, key=lambda label: (int(label) if numbers else 0, label))


def _vocabulary(paths: list[Path]) -> Vocabulary:
    """Returns the vocabulary of the words in these chunks."""
    counts: Counter[str] = Counter()
    for path in paths:
        with np.load(path) as arrays:
            words, numbers = json.loads(arrays["words"].tobytes()), arrays["counts"].tolist()
        for word, n in zip(words, numbers, strict=True):
            counts[word] += n
        if len(counts) > 2 * MAX_WORDS:
            counts = Counter(dict(counts.most_common(MAX_WORDS)))
    return Vocabulary.build(counts, min(MAX_WORDS, len(counts) + 1))


def _write_split(
    paths: list[Path], vocabulary: Vocabulary, classes: list[str] | None, folder: Path, split: str
) -> None:
    """Writes the arrays of a split, with one chunk in memory at a time; classes is None without labels."""
    lengths = np.concatenate([_read_array(path, "lengths") for path in paths])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    number = {"": -1} if classes is None else {label: i for i, label in enumerate(classes)}
    labels, keys, probabilities = [], [], []
    with open(folder / f"{split}_ids.npy", "wb") as file:
        shape = {"descr": "<i4", "fortran_order": False, "shape": (int(offsets[-1]),)}
        np.lib.format.write_array_header_1_0(file, shape)
        for path in paths:
            with np.load(path) as arrays:
                id_of_word = vocabulary.encode(json.loads(arrays["words"].tobytes()))
                file.write(id_of_word[arrays["ids"]].astype("<i4").data)
                names = json.loads(arrays["classes"].tobytes())
                class_of_label = np.array([number[name] for name in names], np.int32)
                labels.append(class_of_label[arrays["labels"]])
                keys.append(arrays["keys"])
                if PROBABILITIES in arrays:
                    probabilities.append(arrays[PROBABILITIES])
    arrays = {"offsets": offsets, "labels": np.concatenate(labels), "keys": np.concatenate(keys)}
    if probabilities:
        arrays[PROBABILITIES] = np.concatenate(probabilities)
    for name, array in arrays.items():
        np.save(folder / f"{split}_{name}.npy", array, allow_pickle=False)


def _bytes(words: list[str]) -> np.ndarray:
    return np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)


def _read_array(path: Path, name: str) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays[name]


def _read_list(path: Path, name: str) -> list[str]:
    return json.loads(_read_array(path, name).tobytes())


def _cores() -> int:
    """Returns the number of cores, at most 8 because each core has three chunks in memory."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextmanager
def _workers(size: int) -> Iterator[Callable[..., Future]]:
    """Returns a `submit` to one process for each core; to this process where there is little to do."""
    if size <= CHUNK_SIZE or _cores() == 1 or "fork" not in get_all_start_methods():
        yield _run_now
        return
    with warnings.catch_warnings():
        # Python 3.12 warns of fork beside threads; the workers take no lock that a thread may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ProcessPoolExecutor(_cores(), get_context("fork"), _start_worker, (os.getpid(),))
        try:
            yield pool.submit
        except BrokenProcessPool as error:
            raise RunError(
                "a process that tokenizes has died, perhaps for lack of memory; start again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _run_now(work: Callable[..., None], *args: Any) -> Future:
    future: Future = Future()
    future.set_result(work(*args))
    return future


def _start_worker(parent: int) -> None:
    """Leaves SIGINT and SIGUSR1 to the parent, and ends this process when the parent is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in {"SIGINT", "SIGUSR1"} & set(dir(signal)):
        signal.signal(getattr(signal, name), signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
