"""SequenceData: what the data modules share, from sequences to loaders."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from torch_rnn.data.batches import WHOLE, BucketBatchSampler, Loader, RaggedSequences, Sequences, Shard
from torch_rnn.data.text import Vocabulary
from torch_rnn.errors import RunError
from torch_rnn.losses import check_labels
from torch_rnn.nn.module import RNN
from torch_rnn.ops.checks import check_values


def at_least_1(**settings: int) -> None:
    """Raises ValueError naming the first setting that is below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def lengths_of(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """The lengths (n,) of sequences (T, ...)."""
    return (
        sequences.lengths if isinstance(sequences, RaggedSequences) else np.array([len(s) for s in sequences])
    )


class SequenceData(LightningDataModule):
    """Train, validation and test sequences with their labels, in batches of similar length.

    A subclass sets `name`, `input_size` and `classes`, and in `setup` calls `add_split` for each split
    ("train", "validation", "test"); where the sequences are text it also sets `vocabulary` and `maxlen`.
    """

    name: str
    """results.json calls the data this."""
    input_size: int
    """The width of x, or the number of different ids."""
    classes: tuple[str, ...]
    """What each class is called, in the order of their numbers."""
    labels_steps: bool = False
    """Whether each step has a label, or each sequence one."""
    vocabulary: Vocabulary | None = None
    maxlen: int | None = None

    def __init__(self, batch_size: int, seed: int, word_dropout: float = 0.0):
        super().__init__()
        at_least_1(batch_size=batch_size)
        if not 0 <= word_dropout < 1:
            raise ValueError(f"word_dropout is {word_dropout}; it must be at least 0 and below 1")
        self.batch_size, self.seed, self.word_dropout = batch_size, seed, word_dropout
        self.splits: dict[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray | int]]] = {}

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    def add_split(
        self, split: str, sequences: Sequence[np.ndarray], labels: Sequence[np.ndarray | int]
    ) -> None:
        """Keeps the sequences and labels of a split; their values are checked here, once.

        Raises RunError naming the split for an id, a number or a label out of range.
        """
        ragged = isinstance(sequences, RaggedSequences)  # which replaces ids that are too high
        try:
            for x in [np.array([sequences.flat.min(initial=0)])] if ragged else sequences:
                check_values(torch.from_numpy(x), None if ragged else self.input_size, None, None)
            for y in labels if self.labels_steps else [np.asarray(labels)]:
                check_labels(torch.from_numpy(y), y.shape, len(self.classes))
        except (TypeError, ValueError) as error:
            raise RunError(f"the {split} data: {error}") from error
        self.splits[split] = (sequences, labels)

    def fingerprint(self) -> dict[str, str]:
        """Digests of the vocabulary and of all lengths and labels: what tells these data from others."""
        found = {}
        if self.vocabulary is not None:
            found["vocabulary"] = hashlib.sha256(
                "\n".join(self.vocabulary.words).encode("utf-8", "surrogatepass")
            ).hexdigest()
        digest = hashlib.sha256()
        for split in sorted(self.splits):
            sequences, labels = self.splits[split]
            digest.update(lengths_of(sequences).astype(np.int64).data)
            labels = (
                labels
                if isinstance(labels, np.ndarray)
                else np.concatenate([np.atleast_1d(y) for y in labels])
            )
            digest.update(labels.astype(np.int64).data)
        return {**found, "data": digest.hexdigest()}

    def check_compatible(self, rnn: RNN) -> None:
        """Raises RunError where the rnn's outputs are not what these data have labels for."""
        needed = {1, 2} if len(self.classes) == 2 else {len(self.classes)}
        if rnn.output_size not in needed:
            allowed = " or ".join(map(str, sorted(needed)))
            raise RunError(f"output_size is {rnn.output_size}; {len(self.classes)} classes need {allowed}")
        if (rnn.readout == "every") != self.labels_steps:
            needed = "every" if self.labels_steps else "last, mean or max"
            raise RunError(f"readout is {rnn.readout}; the labels of {self.name} need {needed}")

    def remarks(self, rnn: RNN) -> list[str]:
        """What a reader of the report should know beside loss and accuracy, of the trained and tested rnn."""
        return []

    def train_dataloader(self) -> Loader:
        return self.loader("train", self._shard())

    def val_dataloader(self) -> Loader:
        return self.loader("validation", self._shard())

    def test_dataloader(self) -> Loader:
        return self.loader("test", self._shard())

    def _shard(self) -> Shard:
        """What of each batch falls to this process of the Trainer's."""
        return Shard(self.trainer.global_rank, self.trainer.world_size) if self.trainer else WHOLE

    def loader(self, split: str, shard: Shard = WHOLE) -> Loader:
        """The batches of a split, or a part of each."""
        sequences, labels = self.splits[split]
        train = split == "train"
        return Loader(
            Sequences(sequences, labels, self.word_dropout if train else 0.0, shard),
            BucketBatchSampler(lengths_of(sequences), self.batch_size, self.seed, shuffle=train),
        )
