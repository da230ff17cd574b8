"""A long sequence of ids -> batches of B streams that read it side by side, T steps at a time.

This is truncated back-propagation through time (Williams and Peng, 1990): the state goes on from each batch
to the next, its gradient does not. The place where an epoch begins is a function of (seed, epoch) alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from torch_rnn.data.batches import WHOLE_BATCH, Shard, StoredIds

PADDING = -1
"""The target of a step after the end of a stream."""


class StreamBatch(NamedTuple):
    x: Tensor
    """(B, T) ids."""
    targets: Tensor
    """(B, T): the id after each of x; PADDING after the end of a stream."""
    first: bool
    """Whether the streams begin here, with a state of zeros."""
    scored: int
    """The number of targets of the whole batch, of which this may be one process's part."""
    tokens: int
    """The number of steps of the whole batch."""


class Place(NamedTuple):
    epoch: int
    step: int


class StreamSampler(Sampler):
    """Yields the places of an epoch in order. It can start in the middle of one.

    Setting `start` makes the next iteration begin there; later ones begin at 0. `drawn` counts the steps of
    this iteration. Lightning calls `set_epoch` at the start of each epoch.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self.epoch = self.start = self.drawn = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Place]:
        start, self.start = self.start, 0
        for step in range(start, self.steps):
            self.drawn = step + 1
            yield Place(self.epoch, step)


class Streams(Dataset):
    """Makes the batch at a Place.

    In training the text is a ring: an epoch begins at a random place of it, every stream has the same length,
    and the last few ids, fewer than B * T, are left out. Otherwise the streams have all ids, in order.

    Args:
        ids: The ids (n,).
        n: Their number.
        max_features: Ids from max_features on become 0, `<unk>`.
        streams: B.
        steps: T.
        seed: The seed of the beginnings, for training; None to read the text from its beginning to its end.
        shard: The streams of this process: rank, rank + world, rank + 2 world, ...
    """

    def __init__(
        self,
        ids: np.ndarray | StoredIds,
        n: int,
        max_features: int,
        streams: int,
        steps: int,
        seed: int | None = None,
        shard: Shard = WHOLE_BATCH,
    ):
        self.ids, self.n, self.max_features = ids, n, max_features
        self.streams, self.steps, self.seed, self.shard = streams, steps, seed, shard
        targets = n - 1
        self.batches = targets // (streams * steps) if seed is not None else -(-targets // streams // steps)
        self.length = self.batches * steps if seed is not None else -(-targets // streams)

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, place: Place) -> StreamBatch:
        offset = 0
        if self.seed is not None:
            offset = int(np.random.default_rng((self.seed, place.epoch)).integers(self.n))
        begin = place.step * self.steps
        T = min(self.steps, self.length - begin)
        lengths = np.full(self.streams, T)
        if self.seed is None:  # the last streams are shorter, or have nothing left
            rest = self.n - 1 - np.arange(self.streams) * self.length
            lengths = np.clip(np.minimum(rest, self.length) - begin, 0, T)
        rows = np.arange(self.shard.rank, self.streams, self.shard.world)
        x = np.zeros((len(rows), T), np.int64)
        targets = np.full((len(rows), T), PADDING, np.int64)
        starts = (offset + rows * self.length + begin) % self.n
        for row, (start, length) in enumerate(zip(starts.tolist(), lengths[rows].tolist(), strict=True)):
            if length:
                ids = self._read(start, length + 1)
                x[row, :length], targets[row, :length] = ids[:-1], ids[1:]
        scored = int(lengths.sum())
        return StreamBatch(torch.from_numpy(x), torch.from_numpy(targets), begin == 0, scored, scored)

    def _read(self, start: int, length: int) -> np.ndarray:
        """Returns the ids from `start` on, which may go on at the beginning of the text."""
        head = min(length, self.n - start)
        pieces = [(start, head), (0, length - head)] if head < length else [(start, head)]
        if isinstance(self.ids, np.ndarray):
            ids = np.concatenate([self.ids[begin : begin + size] for begin, size in pieces])
        else:
            begins, sizes = np.array(pieces).T
            ids = self.ids.read(begins, sizes, sizes > 0)
        return np.where(ids < self.max_features, ids, 0)
