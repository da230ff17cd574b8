"""TextClassifier: a trained RNN with the vocabulary and the classes of its data, for texts in Python."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torch_rnn.data.batches import collate
from torch_rnn.data.text import Vocabulary, tokenize
from torch_rnn.losses import probabilities
from torch_rnn.nn.module import RNN, model_file
from torch_rnn.nn.weights import load_weights


class TextClassifier:
    """Labels texts with a trained RNN.

    Attributes:
        rnn: the RNN, in evaluation mode.
        vocabulary: the words and their ids.
        classes: the names of the classes, in the order of the columns of `probabilities`.
        maxlen: the number of tokens of a text that are read, its last ones.
    """

    def __init__(self, rnn: RNN, vocabulary: Vocabulary, classes: Sequence[str], maxlen: int):
        self.rnn, self.vocabulary, self.classes, self.maxlen = rnn.eval(), vocabulary, tuple(classes), maxlen

    def __repr__(self) -> str:
        words, classes = f"{len(self.vocabulary):,} words", ", ".join(self.classes)
        return f"TextClassifier({self.rnn!r}, {words}, classes {classes}, maxlen {self.maxlen})"

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, backend: str = "auto", device: torch.device | str | None = None
    ) -> "TextClassifier":
        """Reads what a training run left: its folder, or its model.safetensors.

        Raises FileNotFoundError where there is no such file, ValueError for a damaged one or for a model that
        was not trained on text.
        """
        path = model_file(path)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} cannot be read (No such file or directory); a training run writes it when it ends"
            )
        rnn = RNN.load(path, backend=backend, device=device)
        _, about = load_weights(path)
        if "text" not in about:
            other = "is a language model, not a classifier; use scripts/sample.py"
            if "language" not in about:
                other = f"was trained on {about.get('dataset', 'other data')}, not on texts with labels"
            raise ValueError(f"{path} {other}")
        vocabulary = Vocabulary(about["text"]["vocabulary"])
        if len(vocabulary) > rnn.input_size:
            raise ValueError(
                f"{path} has {len(vocabulary):,} words and weights for {rnn.input_size:,}; its vocabulary is "
                f"another one's: train again"
            )
        return cls(rnn, vocabulary, about["classes"], about["text"]["maxlen"])

    def predict(self, texts: Sequence[str], batch_size: int = 64) -> list[str]:
        """Returns the most probable class of each text. Arguments and errors are those of `probabilities`."""
        return [self.classes[i] for i in self.probabilities(texts, batch_size).argmax(dim=1).tolist()]

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Returns the probability of each class for each text, (len(texts), len(classes)), on the CPU.

        An empty text is scored from the initial state. Raises TypeError for one text in place of several, or
        for an entry that is no text.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts is a str; it must be a list of texts: [{texts[:20]!r}]")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        rows = [self._ids(text) for text in texts]
        found = [torch.empty(0, len(self.classes))]
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            x, lengths, *_ = collate(batch, [0] * len(batch))
            logits = self.rnn(x.to(self.rnn.Why.device), lengths)
            found.append(probabilities(logits).float().cpu())
        return torch.cat(found)

    def _ids(self, text: str) -> np.ndarray:
        if not isinstance(text, str):
            raise TypeError(f"texts has {text!r}; each must be a str")
        return self.vocabulary.encode(tokenize(text)[-self.maxlen :])
