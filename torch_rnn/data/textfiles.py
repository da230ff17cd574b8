"""A user's own texts, with two classes or more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch_rnn.data.corpus import Corpus
from torch_rnn.data.documents import Documents
from torch_rnn.data.formats import documents


class TextFiles(Corpus):
    """Labelled texts in files of the formats of `documents`.

    The classes are the labels of the training texts, ordered as numbers or else alphabetically. Equal texts
    are held out together.

    Args:
        train: The file or folder of the training and validation texts.
        test: The file or folder of the test texts.
        text_column: The name of the column, or the key, of the texts.
        label_column: The name of the column, or the key, of the labels.
        cache, max_features, maxlen, validation, batch_size, seed, word_dropout, unlabelled, teacher,
            temperature, confidence, teacher_weight, distillation, pieces, evidence: As in `Corpus`.
    """

    name = "text"

    def __init__(
        self,
        train: str,
        test: str,
        text_column: str = "text",
        label_column: str = "label",
        cache: str | None = None,
        max_features: int = 10000,
        maxlen: int = 500,
        validation: float = 0.1,
        batch_size: int = 64,
        seed: int = 0,
        word_dropout: float = 0.0,
        unlabelled: str | None = None,
        teacher: str | None = None,
        temperature: float = 1.0,
        confidence: float = 0.0,
        teacher_weight: float = 1.0,
        distillation: float = 0.0,
        pieces: int = 0,
        evidence: float = 0.0,
    ):
        super().__init__(
            cache, max_features, maxlen, validation, batch_size, seed, word_dropout,
            unlabelled, teacher, temperature, confidence, teacher_weight, distillation, pieces, evidence,
        )  # fmt: skip
        self.train, self.test = Path(train), Path(test)
        self.text_column, self.label_column = text_column, label_column

    @property
    def classes(self) -> tuple[str, ...]:
        self.prepare_tokens()
        return self.labels

    def source(self) -> tuple[list[Path], dict[str, Any], Callable[[], dict[str, Documents]]]:
        splits = {
            split: documents(path, self.text_column, self.label_column, split)
            for split, path in (("train", self.train), ("test", self.test))
        }
        fingerprint = {split: source.fingerprint() for split, source in splits.items()}
        return [self.train, self.test], fingerprint, lambda: splits
