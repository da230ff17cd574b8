"""sequences -> batches of similar length: (x, lengths, labels).

The order of the batches and the randomness inside each are a function of (seed, epoch, step) alone: there is
no generator whose state could be lost.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

POOL = 50
"""Batches are cut from pools of this many, each sorted by length: little padding, still a random order."""


class Batch(NamedTuple):
    x: Tensor
    """(B, T) ids or (B, T, D) floats, padded with zeros."""
    lengths: Tensor
    """(B,)"""
    labels: Tensor
    """(B,), or (B, T) where each step has one."""
    scored: int | None = None
    """How many labels the whole batch has, of which this may be one process's part; None: as this."""
    tokens: int | None = None
    """How many steps the whole batch has."""


class Flat(Protocol):
    """One long array of ids that is read piece by piece."""

    def read(self, starts: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The pieces (n,) that are wanted, one after the other, with room for those that are not."""

    def min(self, initial: int) -> int:
        """The lowest of all ids and of `initial`."""


class RaggedSequences(Sequence):
    """Sequences of ids that lie one after the other in one array, in memory or in a file.

    flat (N,) ids; offsets (n + 1,): sequence i is flat[offsets[i] : offsets[i + 1]]; index: which of them, in
    which order. Of each the last maxlen ids are taken, and ids from max_features on are 0, `<unk>`.
    """

    def __init__(
        self, flat: np.ndarray | Flat, offsets: np.ndarray, index: np.ndarray, maxlen: int, max_features: int
    ):
        self.flat = flat
        self.ends = offsets[1:][index]
        self.starts = np.maximum(offsets[:-1][index], self.ends - maxlen)
        self.max_features = max_features
        self.lengths = self.ends - self.starts

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> np.ndarray:
        length = self.lengths[i]
        return self.take(np.array([i]), np.arange(length), np.array([length]))

    def take(self, rows: np.ndarray, kept: np.ndarray, left: np.ndarray) -> np.ndarray:
        """The ids at the places `kept` (N,), counted through all these sequences, `left` of each."""
        lengths = self.lengths[rows]
        if isinstance(self.flat, np.ndarray):
            begins = np.cumsum(lengths) - lengths
            ids = self.flat[kept + np.repeat(self.starts[rows] - begins, left)]
        else:
            ids = self.flat.read(self.starts[rows], lengths, left > 0)[kept]
        ids[ids >= self.max_features] = 0
        return ids


class BatchIndices(NamedTuple):
    """What a batch is made of: the seed of its randomness, and which sequences."""

    seed: tuple[int, ...]
    rows: np.ndarray


class BucketBatchSampler(Sampler[BatchIndices]):
    """Draws batches of similar length: shuffled anew in each epoch, or all sorted by length.

    lengths (n,) of the sequences. `set_epoch` is called by Lightning at the start of each epoch. The next
    iteration begins at batch `start`, those after it at 0; `drawn` is how far this one has come.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, shuffle: bool):
        self.lengths, self.batch_size, self.seed, self.shuffle = lengths, batch_size, seed, shuffle
        self.epoch = self.start = self.drawn = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[BatchIndices]:
        batches, start = self._rows(), self.start
        self.start = 0
        for step in range(start, len(batches)):
            self.drawn = step + 1
            yield BatchIndices((self.seed, self.epoch, step), batches[step])

    def _rows(self) -> list[np.ndarray]:
        n = len(self.lengths)
        if not self.shuffle:
            return self._cut(np.argsort(self.lengths, kind="stable"))
        rng = np.random.default_rng((self.seed, self.epoch))
        order, pool = rng.permutation(n), POOL * self.batch_size
        pools = [order[start : start + pool] for start in range(0, n, pool)]
        batches = [
            batch
            for rows in pools
            for batch in self._cut(rows[np.argsort(self.lengths[rows], kind="stable")])
        ]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]


class Shard(NamedTuple):
    """Which part of every batch a process takes: its rows rank, rank + world, rank + 2 world, ..."""

    rank: int = 0
    world: int = 1


WHOLE = Shard()


class Loader(DataLoader):
    """Loads the batches that a BucketBatchSampler draws, and can begin in the middle of an epoch."""

    def __init__(self, sequences: "Sequences", sampler: BucketBatchSampler):
        super().__init__(sequences, sampler=sampler, batch_size=None)  # the sampler draws whole batches

    def state_dict(self) -> dict[str, int]:
        return {"step": self.sampler.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.start = state["step"]


class Sequences(Dataset):
    """Makes the batch of a BatchIndices.

    sequences   of (T,) ids or (T, D) floats.
    labels      one a sequence, or for each a (T,) array of one a step.
    word_dropout  the probability with which each step of a sequence is left out, so that what remains is
                shorter (Iyyer et al., 2015, section 3); a sequence that would lose all keeps all.
    shard       the part of each batch to make. What is drawn at random is drawn for the whole batch, so that
                all parts together are the same batch, however many they are.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        labels: Sequence[np.ndarray | int],
        word_dropout: float = 0.0,
        shard: Shard = WHOLE,
    ):
        self.sequences, self.labels, self.word_dropout = sequences, labels, word_dropout
        self.shard = shard

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, draw: BatchIndices) -> Batch:
        if isinstance(self.sequences, RaggedSequences):
            kept, left = self._kept(self.sequences.lengths[draw.rows], draw.seed)
        else:
            all_steps, lengths = one_after_the_other([self.sequences[i] for i in draw.rows])
            kept, left = self._kept(lengths, draw.seed)
        tokens, (rank, world) = len(kept), self.shard
        if world > 1:
            mine = np.arange(len(left)) % world == rank
            kept, left = kept[np.repeat(mine, left)], np.where(mine, left, 0)
        ragged = isinstance(self.sequences, RaggedSequences)
        flat = self.sequences.take(draw.rows, kept, left) if ragged else all_steps[kept]
        one_array = isinstance(self.labels, np.ndarray)
        labels = self.labels[draw.rows] if one_array else [self.labels[i] for i in draw.rows]
        scored = tokens if np.ndim(labels[0]) else len(labels)
        lengths = left[rank::world]
        return Batch(
            pad(flat, lengths), torch.from_numpy(lengths), stack(labels)[rank::world], scored, tokens
        )

    def _kept(self, lengths: np.ndarray, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The steps that are not left out, counted through all sequences, and how many that are of each."""
        ends = np.cumsum(lengths)
        if not self.word_dropout:
            return np.arange(ends[-1]), lengths
        chosen = np.random.default_rng(seed).random(ends[-1], dtype=np.float32) >= self.word_dropout
        kept, left = _true(chosen, ends)
        if (left == 0).any():
            for i in np.flatnonzero(left == 0):
                chosen[ends[i] - lengths[i] : ends[i]] = True
            kept, left = _true(chosen, ends)
        return kept, left


def _true(chosen: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where `chosen` is True, and how many of these places lie before each end, and after the last one."""
    places = np.flatnonzero(chosen)
    return places, np.diff(np.searchsorted(places, ends), prepend=0)


def collate(sequences: Sequence[np.ndarray], labels: Sequence[np.ndarray | int]) -> Batch:
    """Sequences, and labels where each step has one, padded to the longest of them."""
    flat, lengths = one_after_the_other(sequences)
    return Batch(pad(flat, lengths), torch.from_numpy(lengths), stack(labels))


def one_after_the_other(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (T, ...) as one array (N, ...), and their lengths (n,)."""
    return np.concatenate(sequences), np.array([len(sequence) for sequence in sequences])


def pad(flat: np.ndarray, lengths: np.ndarray) -> Tensor:
    """What `one_after_the_other` gave, as (n, T, ...) with zeros behind: ids as int64, floats as they are."""
    T = int(lengths.max(initial=1))  # with T = 0 some backends would leave weights without a gradient
    dtype = np.int64 if flat.dtype.kind in "iu" else flat.dtype
    x = np.zeros((len(lengths), T, *flat.shape[1:]), dtype)
    x[np.arange(T) < lengths[:, None]] = flat
    return torch.from_numpy(x)


def stack(labels: Sequence[np.ndarray | int]) -> Tensor:
    """Labels as (n,), or (n, T) with zeros behind each where they are one a step."""
    return (
        pad(*one_after_the_other(labels)) if np.ndim(labels[0]) else torch.from_numpy(np.array(labels)).long()
    )
