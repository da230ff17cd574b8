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
        settings: Those of `Corpus`.
    """

    name = "text"

    def __init__(
        self,
        train: str,
        test: str,
        text_column: str = "text",
        label_column: str = "label",
        **settings: Any,
    ):
        super().__init__(**settings)
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
        for source in splits.values():
            next(source.read(), None)  # which refuses missing columns before another file is tokenized
        fingerprint = {split: source.fingerprint() for split, source in splits.items()}
        return [self.train, self.test], fingerprint, lambda: splits
