"""IMDBStream: the training and unlabelled reviews of IMDB as one long text of words for a language model."""

import hashlib

import numpy as np

from torch_rnn.data import teaching
from torch_rnn.data.imdb import IMDB
from torch_rnn.data.teaching import words
from torch_rnn.data.text import Vocabulary
from torch_rnn.data.textstream import TextStream
from torch_rnn.data.tokens import UNLABELLED, Tokens, grouped_split, read_tokens


class IMDBStream(TextStream):
    """The reviews of Maas et al. (2011) but those of the test, one after the other, in an order by films.

    The vocabulary is that of `IMDB` with as many max_features, so that its classifiers can start from the
    model. Validation reads the reviews of the held-out films. Unlabelled reviews of these films, or equal to
    another review, are left out.

    Args:
        root: The folder with the reviews, as in `IMDB`.
        unlabelled: Whether to read the unlabelled reviews, too.
        validation: The part of the labelled training reviews that is held out, film by film.
        cache, max_features, batch_size, steps, seed: As in `TextStream`.
    """

    def __init__(
        self,
        root: str | None = None,
        unlabelled: bool = True,
        validation: float = 0.1,
        max_features: int = 10000,
        cache: str | None = None,
        batch_size: int = 64,
        steps: int = 64,
        seed: int = 0,
    ):
        super().__init__(
            validation=validation, tokens="words", max_features=max_features, root=root, cache=cache,
            batch_size=batch_size, steps=steps, seed=seed,
        )  # fmt: skip
        self.name, self.unlabelled = "imdb", unlabelled

    def prepare_data(self) -> None:
        """Finds the reviews, and tokenizes them if they are not in the cache."""
        if self.folder is not None:
            return
        corpus = IMDB(self.root, cache=str(self.cache), validation=self.validation)
        corpus.prepare_tokens()
        self.folder = corpus.tokens
        self.vocabulary = Vocabulary(words(self.folder)).first(self.max_features)
        train = read_tokens(self.folder, "train")
        fitted, held_out = grouped_split(train.keys, self.validation)
        parts = [(train, fitted)]
        if self.unlabelled:
            more = teaching.tokenized(self.cache, corpus.name, self.folder, corpus.unlabelled_source())
            chosen, _ = teaching.choose(self.folder, self.validation, teaching.Unlabelled(more, "known"))
            parts.append((read_tokens(more, UNLABELLED), chosen))
        self._parts = {"train": parts, "validation": [(train, held_out)]}

    def setup(self, stage: str | None = None) -> None:
        if self._ids:
            return
        self.prepare_data()
        self._ids = {split: one_text(parts) for split, parts in self._parts.items()}
        self._check_sizes()

    def counts(self, split: str = "train") -> np.ndarray:
        V = len(self.vocabulary)
        ids = self._ids[split]
        return np.bincount(np.where(ids < V, ids, 0), minlength=V)

    def fingerprint(self) -> dict[str, str]:
        digests = super().fingerprint()
        return digests | {"tokens": hashlib.sha256(self._ids["train"].data).hexdigest()}


def one_text(parts: list[tuple[Tokens, np.ndarray]]) -> np.ndarray:
    """Returns the ids of the chosen documents of each part, in the order of the keys of their groups."""
    keys = np.concatenate([tokens.keys[index] for tokens, index in parts])
    rows = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for tokens, index in parts for i in index]
    return np.concatenate([rows[i] for i in np.argsort(keys, kind="stable")])
