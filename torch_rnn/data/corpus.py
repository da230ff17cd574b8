"""Corpus: the base class of data sets of texts on disk, IMDB and a user's own files."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torch_rnn.data.batches import RaggedSequences
from torch_rnn.data.cache import cached
from torch_rnn.data.datamodule import SequenceData, check_positive
from torch_rnn.data.documents import Documents
from torch_rnn.data.text import TOKENIZER, TORCHTEXT, Vocabulary
from torch_rnn.data.tokens import grouped_split, read_tokens, write_tokens
from torch_rnn.errors import RunError

log = logging.getLogger(__name__)
FORMAT = 2
"""Version of the cache's contents. A new version makes new folders and keeps those of an older one."""


class Corpus(SequenceData):
    """Tokenizes documents once, and then reads the tokens from a cache that may be larger than memory.

    A subclass implements `source`.

    Args:
        cache: The folder for the tokens; None is data/cache.
        max_features: The number of ids: `<unk>` and the most frequent words of the training texts.
        maxlen: Only the last maxlen tokens of a text are used.
        validation: The part of the training texts that is held out, group by group.
        batch_size: Sequences in a batch.
        seed: The seed of the order of the batches and of word dropout.
        word_dropout: The probability with which a training text loses each of its tokens in a step.
    """

    labels: tuple[str, ...] = ()
    """The labels in the documents, in the order of the classes."""

    def __init__(
        self,
        cache: str | None,
        max_features: int,
        maxlen: int,
        validation: float,
        batch_size: int,
        seed: int,
        word_dropout: float,
    ):
        super().__init__(batch_size, seed, word_dropout)
        check_positive(max_features=max_features, maxlen=maxlen)
        if not 0 < validation < 1:
            raise ValueError(f"validation is {validation}; it must be between 0 and 1")
        self.cache = Path(cache or Path("data", "cache"))
        self.input_size = self.max_features = max_features
        self.maxlen, self.validation = maxlen, validation
        self.tokens: Path | None = None

    def source(self) -> tuple[list[Path], dict[str, Any], Callable[[], Mapping[str, Documents]]]:
        """Returns the paths of the source, its fingerprint and a function that opens "train" and "test"."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Finds the documents, and tokenizes them if they are not in the cache."""
        if self.tokens is not None:
            return
        paths, fingerprint, open_splits = self.source()
        recipe = {"source": fingerprint, "tokenizer": TOKENIZER, "torchtext": TORCHTEXT, "format": FORMAT}
        self.tokens = cached(
            self.cache,
            self.name,
            recipe,
            lambda part, work: write_tokens(open_splits(), part, work),
            origin="\n".join(str(path.resolve()) for path in paths),
        )
        self.labels = tuple(json.loads((self.tokens / "classes.json").read_text(encoding="utf-8")))

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        self.prepare_data()
        words = json.loads((self.tokens / "words.json").read_text(encoding="utf-8"))
        self.vocabulary = Vocabulary(words).first(self.max_features)
        train, test = (read_tokens(self.tokens, split) for split in ("train", "test"))
        fitted, held_out = grouped_split(train.keys, self.validation)
        if len(fitted) == 0:
            raise RunError(f"validation is {self.validation}; that leaves no data for training")
        for split, tokens, index in (
            ("train", train, fitted),
            ("validation", train, held_out),
            ("test", test, np.arange(len(test.labels))),
        ):
            sequences = RaggedSequences(tokens.ids, tokens.offsets, index, self.maxlen, self.max_features)
            self.add_split(split, sequences, np.asarray(tokens.labels)[index])
        sizes = ", ".join(f"{split} {len(labels):,}" for split, (_, labels) in self.splits.items())
        log.info("%s: %s texts; %s words", self.name, sizes, f"{len(self.vocabulary):,}")
