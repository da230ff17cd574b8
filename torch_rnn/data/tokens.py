"""Token ids on disk -> arrays; ids that take too much memory are read from the file, batch by batch."""

import hashlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torch_rnn.errors import RunError

MAX_IN_MEMORY = 1 << 28
"""Limit on the bytes of ids to hold in memory; if there are more, each batch reads its own from the file."""
ARRAYS = ("ids", "offsets", "labels", "keys")
UNLABELLED, PROBABILITIES = "unlabelled", "probabilities"


class Tokens(NamedTuple):
    """The n documents of a split, or of a source without labels."""

    ids: "np.ndarray | IdsOnDisk"
    """(N,) int32, the ids of all documents; on disk if they have more bytes than MAX_IN_MEMORY."""
    offsets: np.ndarray
    """(n + 1,) int64: document i is ids[offsets[i] : offsets[i + 1]]."""
    labels: np.ndarray
    """(n,) int32, indices into classes.json; -1 without labels."""
    keys: np.ndarray
    """(n,) uint64, equal for the documents of a group; the keys of the groups are pseudo-random."""

    def pieces(self, size: int = 1 << 22) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields the documents in pieces of about `size` tokens: number of the first, ids, and offsets."""
        first, n = 0, len(self.labels)
        while first < n:
            end = int(np.searchsorted(self.offsets, self.offsets[first] + size, side="right")) - 1
            end = min(max(end, first + 1), n)
            offsets = np.asarray(self.offsets[first : end + 1])
            start, length = offsets[:1], offsets[-1:] - offsets[:1]
            if isinstance(self.ids, np.ndarray):
                ids = self.ids[offsets[0] : offsets[-1]]
            else:
                ids = self.ids.read(start, length, length > 0)
            yield first, ids, offsets - offsets[0]
            first = end

    def text_keys(self) -> np.ndarray:
        """Returns (n,) uint64, equal for equal sequences of ids."""
        keys = []
        for _, ids, offsets in self.pieces():
            for start, end in pairwise(offsets.tolist()):
                keys.append(int.from_bytes(hashlib.sha256(ids[start:end].data).digest()[:8], "big"))
        return np.array(keys, dtype=np.uint64)


def cut(tokens: Tokens, size: int) -> tuple[Tokens, np.ndarray]:
    """Cuts each document into pieces of about `size` tokens, all of nearly the same length.

    Returns:
        The pieces, with labels and keys of their documents, and the number of each piece's document (n,).
    """
    lengths = np.diff(tokens.offsets)
    counts = np.maximum(1, np.rint(lengths / size)).astype(np.int64)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = tokens.offsets[:-1][document] + lengths[document] * number // counts[document]
    offsets = np.append(starts, tokens.offsets[-1])
    return Tokens(tokens.ids, offsets, tokens.labels[document], tokens.keys[document]), document


def read_tokens(folder: Path, split: str) -> Tokens:
    """Returns a split that `write_tokens` has written, or UNLABELLED of `write_unlabelled`."""
    ids, *others = (folder / f"{split}_{name}.npy" for name in ARRAYS)
    small = ids.stat().st_size <= MAX_IN_MEMORY
    arrays = (np.load(path, mmap_mode="r") for path in others)
    return Tokens(np.load(ids) if small else IdsOnDisk(ids), *arrays)


def joined(first: Tokens, second: Tokens) -> Tokens:
    """Returns the documents of both."""
    ids = [tokens.ids for tokens in (first, second)]
    both = np.concatenate(ids) if all(isinstance(part, np.ndarray) for part in ids) else JoinedIds(*ids)
    offsets = np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]])
    return Tokens(
        both, offsets, *(np.concatenate(arrays) for arrays in zip(first[2:], second[2:], strict=True))
    )


class JoinedIds:
    """Two arrays of ids, one after the other, of which one at least is on disk."""

    def __init__(self, first: "np.ndarray | IdsOnDisk", second: "np.ndarray | IdsOnDisk"):
        self.parts, self.boundary = (first, second), first.size

    def read(self, starts: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Returns the n pieces, concatenated; those that are not wanted (n,) are not read, and undefined."""
        ids = np.empty(lengths.sum(), np.int32)
        second = starts >= self.boundary
        for i, part in enumerate(self.parts):
            rows = second == bool(i)
            if not rows.any():
                continue
            steps = np.repeat(rows, lengths)
            begins = starts[rows] - (self.boundary if i else 0)
            if isinstance(part, np.ndarray):
                within = np.arange(steps.sum()) - np.repeat(
                    np.cumsum(lengths[rows]) - lengths[rows], lengths[rows]
                )
                ids[steps] = part[np.repeat(begins, lengths[rows]) + within]
            else:
                ids[steps] = part.read(begins, lengths[rows], wanted[rows])
        return ids

    def min(self, initial: int) -> int:
        """Returns the lowest of all ids and `initial`."""
        return min(int(part.min(initial=initial)) for part in self.parts)


class IdsOnDisk:
    """The ids of a .npy file. They are read, not mapped: pages of a mapped file would stay in memory."""

    def __init__(self, path: Path):
        self.file = open(path, "rb")  # noqa: SIM115 (__del__ closes it)
        np.lib.format.read_magic(self.file)
        (self.size,), _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
        self.start = self.file.tell()
        self.lowest: int | None = None

    def __del__(self) -> None:
        self.file.close()

    def read(self, starts: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Returns the n pieces, concatenated; those that are not wanted (n,) are not read, and undefined."""
        ends = np.cumsum(lengths)
        ids = np.empty(ends[-1], self.dtype)
        for start, begin, end in zip(
            starts[wanted].tolist(), (ends - lengths)[wanted].tolist(), ends[wanted].tolist(), strict=True
        ):
            offset, piece = self.start + start * self.dtype.itemsize, ids[begin:end]
            if os.preadv(self.file.fileno(), [piece], offset) != piece.nbytes:
                raise RunError(f"{self.file.name} has been cut short; start again, and it is made anew")
        return ids

    def min(self, initial: int) -> int:
        """Returns the lowest of all ids and `initial`."""
        if self.lowest is None:
            self.file.seek(self.start)
            self.lowest = initial
            while len(ids := np.fromfile(self.file, self.dtype, MAX_IN_MEMORY // 16)):
                self.lowest = min(self.lowest, int(ids.min()))
        return min(initial, self.lowest)


def grouped_split(keys: np.ndarray, part: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the n documents to train on and of those to hold out, group by group.

    Groups are held out in the order of their keys until they have the given part of the documents: the split
    depends on the groups alone.

    Args:
        keys: The keys (n,) of the documents' groups.
        part: The part of the documents to hold out.
    """
    groups, sizes = np.unique(keys, return_counts=True)
    last = groups[np.searchsorted(np.cumsum(sizes), part * len(keys))]
    return np.flatnonzero(keys > last), np.flatnonzero(keys <= last)


def parts_of_groups(keys: np.ndarray, n: int) -> np.ndarray:
    """Returns the part (N,) of each document, in 0..n-1: about as many documents each, groups undivided.

    Args:
        keys: The keys (N,) of the documents' groups.
        n: The number of parts.
    """
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    return ((np.cumsum(sizes) - sizes) * n // max(len(keys), 1))[group]


def group_key(group: str) -> int:
    """Returns the first 64 bits of the SHA-256 of a group's name."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big")
