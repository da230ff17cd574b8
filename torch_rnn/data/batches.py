"""sequences -> batches of similar length: (x, lengths, labels).

The order of the batches and the randomness in each are a function of (seed, epoch, step) alone: there is no
generator whose state must be saved.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

POOL = 50
"""Batches in a pool. Sequences are sorted by length within a pool: little padding, yet a random order."""


class Batch(NamedTuple):
    x: Tensor
    """(B, T) ids or (B, T, D) floats, padded with zeros."""
    lengths: Tensor
    """(B,)"""
    labels: Tensor
    """(B,), or (B, T) with one label a step, or floats (B, C) with a distribution over the classes."""
    scored: int | None = None
    """The number of labels in the whole batch, of which this may be one process's part; None if it is all."""
    tokens: int | None = None
    """The number of steps in the whole batch."""
    evidence: Tensor | None = None
    """(B, T, 2, R) what a teacher says of each step, of what ends there and of what begins there."""


class StoredIds(Protocol):
    """A long array of ids that is read in pieces."""

    def read(self, starts: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Returns the n pieces, concatenated; those that are not wanted (n,) are not read, and undefined."""

    def min(self, initial: int) -> int:
        """Returns the lowest of all ids and `initial`."""


class RaggedSequences(Sequence):
    """Sequences of ids that are concatenated in one array, in memory or in a file.

    Args:
        flat: The ids (N,).
        offsets: (n + 1,): sequence i is flat[offsets[i] : offsets[i + 1]].
        index: The sequences to use, in their order.
        maxlen: Only the last maxlen ids of each sequence are used.
        max_features: Ids from max_features on become 0, `<unk>`.
    """

    def __init__(
        self,
        flat: np.ndarray | StoredIds,
        offsets: np.ndarray,
        index: np.ndarray,
        maxlen: int,
        max_features: int,
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

    def take(self, rows: np.ndarray, steps: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Returns the ids at `steps` (N,), counted through the rows (n,) with `counts` (n,) in each."""
        return self.known(self.take_all(rows, steps, counts))

    def known(self, ids: np.ndarray) -> np.ndarray:
        """Returns the ids, with 0 for those from max_features on."""
        return np.where(ids < self.max_features, ids, 0)

    def take_all(self, rows: np.ndarray, steps: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Returns what `take` does, with the ids from max_features on as they are."""
        lengths = self.lengths[rows]
        if isinstance(self.flat, np.ndarray):
            first_steps = np.cumsum(lengths) - lengths
            return self.flat[steps + np.repeat(self.starts[rows] - first_steps, counts)]
        return self.flat.read(self.starts[rows], lengths, counts > 0)[steps]


class BatchIndices(NamedTuple):
    """The seed of a batch's randomness and the indices of its sequences."""

    seed: tuple[int, ...]
    rows: np.ndarray


class BucketBatchSampler(Sampler[BatchIndices]):
    """Draws batches of sequences of similar length: shuffled anew in each epoch, or sorted by length.

    The next iteration begins at batch `start`, later ones at 0. `drawn` counts the batches of this iteration.
    Lightning calls `set_epoch` at the start of each epoch.

    Args:
        lengths: The lengths (n,) of the sequences.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, shuffle: bool):
        self.lengths, self.batch_size, self.seed, self.shuffle = lengths, batch_size, seed, shuffle
        self.epoch = self.start = self.drawn = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[BatchIndices]:
        batches, start = self._batches(), self.start
        self.start = 0
        for step in range(start, len(batches)):
            self.drawn = step + 1
            yield BatchIndices((self.seed, self.epoch, step), batches[step])

    def _batches(self) -> list[np.ndarray]:
        n = len(self.lengths)
        if not self.shuffle:
            return self._split(np.argsort(self.lengths, kind="stable"))
        rng = np.random.default_rng((self.seed, self.epoch))
        order, pool = rng.permutation(n), POOL * self.batch_size
        pools = [order[start : start + pool] for start in range(0, n, pool)]
        batches = [
            batch
            for rows in pools
            for batch in self._split(rows[np.argsort(self.lengths[rows], kind="stable")])
        ]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _split(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]


class Shard(NamedTuple):
    """The part of each batch that a process computes: the rows rank, rank + world, rank + 2 world, ..."""

    rank: int = 0
    world: int = 1


WHOLE_BATCH = Shard()


class Loader(DataLoader):
    """Loads the batches of a BucketBatchSampler; its state can resume in the middle of an epoch."""

    def __init__(self, sequences: "Sequences", sampler: BucketBatchSampler):
        super().__init__(sequences, sampler=sampler, batch_size=None)  # the sampler draws whole batches

    def state_dict(self) -> dict[str, int]:
        return {"step": self.sampler.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.start = state["step"]


class Sequences(Dataset):
    """Makes the batch of a BatchIndices.

    Args:
        sequences: Arrays (T,) of ids or (T, D) of floats.
        labels: One label a sequence, or an array (T,) with one a step; or an array (n, C) of floats, a
            distribution over the classes for each sequence.
        word_dropout: The probability with which a step is removed, which shortens the sequence (Iyyer et al.,
            2015, section 3). A sequence that would lose all its steps keeps them all.
        shard: The part of each batch to make. Randomness is drawn for the whole batch, so the batch does not
            depend on the number of parts.
        evidence: Takes the ids (N,) of sequences and offsets (n + 1,), sequence i being ids[offsets[i] :
            offsets[i + 1]], and returns the evidence of each step (N, 2, R); for RaggedSequences.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        labels: Sequence[np.ndarray | int],
        word_dropout: float = 0.0,
        shard: Shard = WHOLE_BATCH,
        evidence: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ):
        self.sequences, self.labels, self.word_dropout = sequences, labels, word_dropout
        self.shard, self.lengths, self.evidence = shard, lengths_of(sequences), evidence

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, batch: BatchIndices) -> Batch:
        rank, world = self.shard
        steps, counts = self._drop_steps(self.lengths[batch.rows], batch.seed)
        labels = stack(self._labels_of(batch.rows))
        tokens = len(steps)
        scored = tokens if labels.dim() > 1 and not labels.is_floating_point() else len(labels)
        if world > 1:
            mine = np.arange(len(counts)) % world == rank
            steps, counts = steps[np.repeat(mine, counts)], np.where(mine, counts, 0)
        lengths, labels, evidence = counts[rank::world], labels[rank::world], None
        if self.evidence is None:
            x = self._take(batch.rows, steps, counts)
        else:
            ids = self.sequences.take_all(batch.rows, steps, counts)
            evidence = pad(self.evidence(ids, np.concatenate([[0], np.cumsum(lengths)])), lengths)
            x = self.sequences.known(ids)
        return Batch(pad(x, lengths), torch.from_numpy(lengths), labels, scored, tokens, evidence)

    def _drop_steps(self, lengths: np.ndarray, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the remaining steps (N,), counted through the rows, and their number (n,) in each row."""
        ends = np.cumsum(lengths)
        if not self.word_dropout:
            return np.arange(ends[-1]), lengths
        kept = np.random.default_rng(seed).random(ends[-1], dtype=np.float32) >= self.word_dropout
        steps, counts = _true_steps(kept, ends)
        if (counts == 0).any():
            for i in np.flatnonzero(counts == 0):
                kept[ends[i] - lengths[i] : ends[i]] = True
            steps, counts = _true_steps(kept, ends)
        return steps, counts

    def _take(self, rows: np.ndarray, steps: np.ndarray, counts: np.ndarray) -> np.ndarray:
        if isinstance(self.sequences, RaggedSequences):
            return self.sequences.take(rows, steps, counts)
        return np.concatenate([self.sequences[i] for i in rows])[steps]

    def _labels_of(self, rows: np.ndarray) -> Sequence[np.ndarray | int]:
        return self.labels[rows] if isinstance(self.labels, np.ndarray) else [self.labels[i] for i in rows]


def _true_steps(kept: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where `kept` (N,) is True, and how often in each row; the rows end at `ends` (n,)."""
    steps = np.flatnonzero(kept)
    return steps, np.diff(np.searchsorted(steps, ends), prepend=0)


def lengths_of(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the lengths (n,) of sequences (T, ...)."""
    if isinstance(sequences, RaggedSequences):
        return sequences.lengths
    return np.array([len(sequence) for sequence in sequences], dtype=np.int64)


def collate(sequences: Sequence[np.ndarray], labels: Sequence[np.ndarray | int]) -> Batch:
    """Returns the batch of these sequences, padded to the longest of them."""
    lengths = lengths_of(sequences)
    return Batch(pad(np.concatenate(sequences), lengths), torch.from_numpy(lengths), stack(labels))


def pad(flat: np.ndarray, lengths: np.ndarray) -> Tensor:
    """Returns concatenated sequences (N, ...) as (n, T, ...), padded with zeros at the end; ids as int64."""
    T = int(lengths.max(initial=1))  # with T = 0 some backends would leave weights without a gradient
    dtype = np.int64 if flat.dtype.kind in "iu" else flat.dtype
    x = np.zeros((len(lengths), T, *flat.shape[1:]), dtype)
    x[np.arange(T) < lengths[:, None]] = flat
    return torch.from_numpy(x)


def stack(labels: Sequence[np.ndarray | int]) -> Tensor:
    """Returns the labels as (n,), as (n, T) padded with zeros for one a step, or as floats (n, C)."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "f":
        return torch.from_numpy(labels)
    if np.ndim(labels[0]):
        return pad(np.concatenate(labels), lengths_of(labels))
    return torch.from_numpy(np.array(labels)).long()
