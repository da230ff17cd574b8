"""IMDB: the published reviews as token ids, in batches; validation holds out whole films."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch_rnn.data import reviews
from torch_rnn.data.corpus import Corpus
from torch_rnn.data.documents import Document, Documents, Listed

log = logging.getLogger(__name__)


class IMDB(Corpus):
    """The reviews of Maas et al. (2011), sentiment as two classes.

    root          the folder with `aclImdb/` or its archive; $TORCH_RNN_DATA, else data/, if None. Where it
                  has neither, the archive is downloaded into it.
    validation    the part of the training reviews that is held out, film by film: a random part would share
                  its films with the rest, and read 2 to 3 points too high.
    cache, max_features, maxlen, batch_size, seed, word_dropout   as in `Corpus`.
    """

    name = "imdb"
    classes = ("negative", "positive")

    def __init__(
        self,
        root: str | None = None,
        cache: str | None = None,
        max_features: int = 10000,
        maxlen: int = 500,
        validation: float = 0.1,
        batch_size: int = 64,
        seed: int = 0,
        word_dropout: float = 0.0,
    ):
        super().__init__(cache, max_features, maxlen, validation, batch_size, seed, word_dropout)
        self.root = Path(root or os.environ.get("TORCH_RNN_DATA") or "data")

    def source(self) -> tuple[dict[str, Any], Callable[[], dict[str, Documents]]]:
        source = reviews.find(self.root)
        return reviews.fingerprint(source), partial(read, source)

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        super().setup(stage)
        test = len(self.splits["test"][1])
        train = len(self.splits["train"][1]) + len(self.splits["validation"][1])
        if (train, test) != (25_000, 25_000):
            log.warning(
                "This is not the whole data set: %s training and %s test reviews, 25,000 and 25,000 are "
                "published. Accuracy here is not accuracy on the published test set.",
                f"{train:,}", f"{test:,}",
            )  # fmt: skip


def read(source: Path) -> dict[str, Documents]:
    """All labelled reviews in the order of their names; 0 and 1 are the labels, and the film is the group."""
    found = reviews.read(source)
    return {
        split: Listed([Document(of.text, str(of.label), of.film) for of in found if of.split == split])
        for split in ("train", "test")
    }
