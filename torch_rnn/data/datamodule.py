"""Splits and SequenceData: the base classes of the data modules, from sequences to loaders."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from torch_rnn.data.batches import (
    WHOLE_BATCH,
    BucketBatchSampler,
    Loader,
    RaggedSequences,
    Sequences,
    Shard,
    lengths_of,
)
from torch_rnn.data.text import Vocabulary
from torch_rnn.errors import RunError
from torch_rnn.losses import check_distributions, check_labels
from torch_rnn.nn.module import RNN
from torch_rnn.ops.checks import check_values


def check_positive(**settings: int) -> None:
    """Raises ValueError naming the first setting that is below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


class Splits(LightningDataModule):
    """Data in splits, of whose batches each process of the Trainer gets its part.

    A subclass implements `loader`.
    """

    def loader(self, split: str, shard: Shard = WHOLE_BATCH) -> Loader:
        """Returns the loader of a split's batches, or of a part of each."""
        raise NotImplementedError

    def train_dataloader(self) -> Loader:
        return self.loader("train", self._shard())

    def val_dataloader(self) -> Loader:
        return self.loader("validation", self._shard())

    def test_dataloader(self) -> Loader:
        return self.loader("test", self._shard())

    def _shard(self) -> Shard:
        """Returns the part of each batch for this process of the Trainer."""
        return Shard(self.trainer.global_rank, self.trainer.world_size) if self.trainer else WHOLE_BATCH


class SequenceData(Splits):
    """Train, validation and test sequences with their labels, in batches of similar length.

    A subclass sets `name`, `input_size` and `classes`, and in `setup` calls `add_split` for each split
    ("train", "validation", "test"); where the sequences are text it also sets `vocabulary` and `maxlen`.
    """

    name: str
    """The name of the data in results.json."""
    input_size: int
    """The width of x, or the number of different ids."""
    classes: tuple[str, ...]
    """The names of the classes, in the order of their numbers."""
    labels_steps: bool = False
    """Whether each step has a label; otherwise each sequence has one."""
    vocabulary: Vocabulary | None = None
    maxlen: int | None = None
    evidence: float = 0.0
    """The weight in the loss of the evidence that a teacher gives of each step; 0 where it gives none."""

    def __init__(self, batch_size: int, seed: int, word_dropout: float = 0.0):
        super().__init__()
        check_positive(batch_size=batch_size)
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
        """Checks the sequences and labels of a split and keeps them.

        Raises:
            RunError: An id, a number or a label is out of range. The message names the split.
        """
        ragged = isinstance(sequences, RaggedSequences)  # these replace ids that are too high
        try:
            for x in [np.array([sequences.flat.min(initial=0)])] if ragged else sequences:
                check_values(torch.from_numpy(x), None if ragged else self.input_size, None, None)
            for y in labels if self.labels_steps else [np.asarray(labels)]:
                if y.ndim == 2:
                    check_distributions(torch.from_numpy(y), y.shape[:1], len(self.classes))
                else:
                    check_labels(torch.from_numpy(y), y.shape, len(self.classes))
        except (TypeError, ValueError) as error:
            raise RunError(f"the {split} data: {error}") from error
        self.splits[split] = (sequences, labels)

    def fingerprint(self) -> dict[str, str]:
        """Returns digests of the vocabulary and of all sequences and labels, by name.

        A run is only resumed on data with the same digests. Of `RaggedSequences`, which may be larger than
        memory, only the lengths count.
        """
        digests = {}
        if self.vocabulary is not None:
            words = "\n".join(self.vocabulary.words).encode("utf-8", "surrogatepass")
            digests["vocabulary"] = hashlib.sha256(words).hexdigest()
        digest = hashlib.sha256()
        for split in sorted(self.splits):
            sequences, labels = self.splits[split]
            digest.update(lengths_of(sequences).astype(np.int64).data)
            if not isinstance(sequences, RaggedSequences):
                for x in sequences:
                    digest.update(np.ascontiguousarray(x).data)
            if not isinstance(labels, np.ndarray):
                labels = np.concatenate([np.atleast_1d(y) for y in labels])
            digest.update(labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64).data)
        return {**digests, "sequences": digest.hexdigest()}

    def check_compatible(self, rnn: RNN) -> None:
        """Raises RunError if the outputs of the rnn do not match the labels of these data."""
        needed = {1, 2} if len(self.classes) == 2 else {len(self.classes)}
        if rnn.output_size not in needed:
            allowed = " or ".join(map(str, sorted(needed)))
            raise RunError(f"output_size is {rnn.output_size}; {len(self.classes)} classes need {allowed}")
        if (rnn.readout == "every") != self.labels_steps:
            needed = "every" if self.labels_steps else "last, mean or max"
            raise RunError(f"readout is {rnn.readout}; the labels of {self.name} need {needed}")
        if self.evidence:
            self._check_evidence(rnn)

    def _check_evidence(self, rnn: RNN) -> None:
        """Raises RunError if the rnn has no outputs to compare with a teacher's evidence of each step."""
        outputs = 1 if len(self.classes) == 2 else len(self.classes)
        for name, value, allowed in (
            ("output_size", rnn.output_size, (outputs,)),
            ("readout", rnn.readout, ("last", "mean")),
        ):
            if value not in allowed:
                raise RunError(
                    f"{name} is {value}, and data.evidence {self.evidence}; with evidence it must be "
                    f"{' or '.join(map(str, allowed))}"
                )

    def _evidence(self, split: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        """Returns the `evidence` of `Sequences` for a split."""
        return None

    def remarks(self, rnn: RNN) -> list[str]:
        """Returns sentences about the trained rnn for the report, beside loss and accuracy."""
        return []

    def about(self) -> dict[str, Any]:
        """Returns what a model file says about its data: for texts, all that labelling another text needs."""
        about = {"dataset": self.name, "classes": self.classes}
        if self.vocabulary is not None:
            about["text"] = {"maxlen": self.maxlen, "vocabulary": self.vocabulary.words}
        return about

    def facts(self) -> dict[str, Any]:
        """Returns what results.json says about the training data."""
        return {}

    def loader(self, split: str, shard: Shard = WHOLE_BATCH) -> Loader:
        """Returns the loader of a split's batches, or of a part of each."""
        sequences, labels = self.splits[split]
        train = split == "train"
        return Loader(
            Sequences(sequences, labels, self.word_dropout if train else 0.0, shard, self._evidence(split)),
            BucketBatchSampler(lengths_of(sequences), self.batch_size, self.seed, shuffle=train),
        )
