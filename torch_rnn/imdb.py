"""IMDB: the published reviews as token ids, in batches; validation holds out whole films."""

import hashlib
import json
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
from rich.progress import track

from torch_rnn import reviews
from torch_rnn.batches import Ragged
from torch_rnn.cache import cached
from torch_rnn.datamodule import SequenceData, at_least_1
from torch_rnn.reviews import Review
from torch_rnn.text import TOKENIZER, TORCHTEXT, Vocabulary, tokenize

log = logging.getLogger(__name__)
ARRAYS = ("ids", "offsets", "labels", "films")


class IMDB(SequenceData):
    """The reviews of Maas et al. (2011), sentiment as two classes.

    root          the folder with `aclImdb/` or its archive; $TORCH_RNN_DATA, else data/, if None. Where it
                  has neither, the archive is downloaded into it.
    cache         the folder for the tokens; data/cache if None.
    max_features  how many ids there are: the most frequent words of the training reviews, and `<unk>`.
    maxlen        the last so many tokens of a review are read.
    validation    the part of the training reviews that is held out, film by film: a random part would share
                  its films with the rest, and read 2 to 3 points too high.
    batch_size, seed, word_dropout   of the training, as in `SequenceData`; seed orders the batches.
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
        super().__init__(batch_size, seed, word_dropout)
        at_least_1(max_features=max_features, maxlen=maxlen)
        if not 0 < validation < 1:
            raise ValueError(f"validation is {validation}; it must be between 0 and 1")
        self.root = Path(root or os.environ.get("TORCH_RNN_DATA") or "data")
        self.cache = Path(cache or Path("data", "cache"))
        self.input_size = self.max_features = max_features
        self.maxlen, self.validation = maxlen, validation
        self.tokens: Path | None = None

    def prepare_data(self) -> None:
        """Finds or downloads the reviews, and tokenizes them where the cache does not have them yet."""
        source = reviews.find(self.root)
        made_from = {"source": reviews.fingerprint(source), "tokenizer": TOKENIZER, "torchtext": TORCHTEXT}
        self.tokens = cached(self.cache, "imdb", made_from, lambda part: write_tokens(source, part))

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        if self.tokens is None:
            self.prepare_data()
        train, test = (read_tokens(self.tokens, split) for split in ("train", "test"))
        words = json.loads((self.tokens / "words.json").read_text(encoding="utf-8"))
        self.vocabulary = Vocabulary(words).first(self.max_features)
        learnt, held_out = hold_out_films(train["films"], self.validation)
        for split, arrays, index in (
            ("train", train, learnt),
            ("validation", train, held_out),
            ("test", test, np.arange(len(test["labels"]))),
        ):
            sequences = Ragged(arrays["ids"], arrays["offsets"], index, self.maxlen, self.max_features)
            self.hold(split, sequences, np.asarray(arrays["labels"])[index])
        self._report(len(train["labels"]), len(test["labels"]))

    def _report(self, train: int, test: int) -> None:
        parts = ", ".join(f"{split} {len(labels):,}" for split, (_, labels) in self.splits.items())
        log.info("IMDB from %s: %s reviews; %s words", self.root, parts, f"{len(self.vocabulary):,}")
        if (train, test) != (25_000, 25_000):
            log.warning(
                "This is not the whole data set: %s training and %s test reviews, 25,000 and 25,000 are "
                "published. Accuracy here is not accuracy on the published test set.",
                f"{train:,}", f"{test:,}",
            )  # fmt: skip


def hold_out_films(films: np.ndarray, part: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits reviews by film: films (n,) of addresses -> the indices of the learnt and of the held-out ones.

    Films are held out in the order of the SHA-256 of their address until they have the part asked for: the
    split depends on nothing but the films.
    """
    order = sorted(set(films.tolist()), key=lambda film: hashlib.sha256(film.encode()).digest())
    count, chosen, held = Counter(films.tolist()), set(), 0
    for film in order:
        if held >= part * len(films):
            break
        chosen.add(film)
        held += count[film]
    held_out = np.array([film in chosen for film in films.tolist()])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def write_tokens(source: Path, folder: Path) -> None:
    """All reviews as ids of the vocabulary of all training words, and that vocabulary."""
    found = reviews.read(source)
    tokens = [tokenize(review.text) for review in track(found, description="tokenizing")]
    counts = Counter(
        word for review, words in zip(found, tokens, strict=True) if review.split == "train" for word in words
    )
    vocabulary = Vocabulary.build(counts)
    (folder / "words.json").write_text(json.dumps(vocabulary.words), encoding="utf-8")
    for split in ("train", "test"):
        rows = [(r, vocabulary.encode(t)) for r, t in zip(found, tokens, strict=True) if r.split == split]
        for name, array in _arrays(rows).items():
            np.save(folder / f"{split}_{name}.npy", array, allow_pickle=False)


def _arrays(rows: list[tuple[Review, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        "ids": np.concatenate([ids for _, ids in rows]),
        "offsets": np.cumsum([0] + [len(ids) for _, ids in rows]),
        "labels": np.array([review.label for review, _ in rows], dtype=np.int8),
        "films": np.array([review.film for review, _ in rows]),
    }


def read_tokens(folder: Path, split: str) -> dict[str, np.ndarray]:
    """The memory-mapped arrays that `write_tokens` wrote for "train" or "test"."""
    return {name: np.load(folder / f"{split}_{name}.npy", mmap_mode="r") for name in ARRAYS}
