"""SequenceData: what the data modules share, from sequences to loaders."""

from collections.abc import Sequence

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from torch_rnn.batches import Ragged, Sequences, SimilarLength
from torch_rnn.rnn import RNN
from torch_rnn.text import Vocabulary


def at_least_1(**settings: int) -> None:
    """Raises ValueError naming the first setting that is below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


class SequenceData(LightningDataModule):
    """Train, validation and test sequences with their labels, in batches of similar length.

    A subclass sets `name`, `input_size` and `classes`, and in `setup` calls `hold` for each of the splits
    "train", "validation" and "test"; where the sequences are text it also sets `vocabulary` and `maxlen`.
    """

    name: str
    """results.json calls the data this."""
    input_size: int
    """The width of x, or the number of different ids."""
    classes: tuple[str, ...]
    """What each class is called."""
    vocabulary: Vocabulary | None = None
    maxlen: int | None = None

    def __init__(self, batch_size: int, seed: int, word_dropout: float = 0.0):
        super().__init__()
        at_least_1(batch_size=batch_size)
        if not 0 <= word_dropout < 1:
            raise ValueError(f"word_dropout is {word_dropout}; it must be at least 0 and below 1")
        self.batch_size, self.seed, self.word_dropout = batch_size, seed, word_dropout
        self.splits: dict[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray | int]]] = {}

    def hold(self, split: str, sequences: Sequence[np.ndarray], labels: Sequence[np.ndarray | int]) -> None:
        """Keeps the sequences and labels of a split."""
        self.splits[split] = (sequences, labels)

    def remarks(self, rnn: RNN) -> list[str]:
        """What a reader of the report should know beside loss and accuracy, of the trained and tested rnn."""
        return []

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def _loader(self, split: str) -> DataLoader:
        sequences, labels = self.splits[split]
        lengths = (
            sequences.lengths if isinstance(sequences, Ragged) else np.array([len(s) for s in sequences])
        )
        train = split == "train"
        return DataLoader(
            Sequences(sequences, labels, self.word_dropout if train else 0.0),
            sampler=SimilarLength(lengths, self.batch_size, self.seed, shuffle=train),
            batch_size=None,  # the sampler draws whole batches
        )
