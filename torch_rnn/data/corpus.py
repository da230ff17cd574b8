"""Corpus: texts on disk as batches of token ids; what IMDB and a user's own files have in common."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torch_rnn.data.batches import RaggedSequences
from torch_rnn.data.cache import cached
from torch_rnn.data.datamodule import SequenceData, at_least_1
from torch_rnn.data.documents import Documents
from torch_rnn.data.text import TOKENIZER, TORCHTEXT, Vocabulary
from torch_rnn.data.tokens import grouped_split, read_tokens, write_tokens
from torch_rnn.errors import RunError

log = logging.getLogger(__name__)
FORMAT = 2
"""Of the cache. Another one is another recipe, so that what an older version wrote is left alone."""


class Corpus(SequenceData):
    """Tokenizes documents once, and then reads them from a cache that may be larger than memory.

    cache         the folder for the tokens; data/cache if None.
    max_features  how many ids there are: the most frequent words of the training texts, and `<unk>`.
    maxlen        the last so many tokens of a text are read.
    validation    the part of the training texts that is held out, group by group.
    batch_size, seed, word_dropout   of the training, as in `SequenceData`; seed orders the batches.

    A subclass has `source()`. `labels` are what the documents call the classes, by their numbers.
    """

    labels: tuple[str, ...] = ()

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
        at_least_1(max_features=max_features, maxlen=maxlen)
        if not 0 < validation < 1:
            raise ValueError(f"validation is {validation}; it must be between 0 and 1")
        self.cache = Path(cache or Path("data", "cache"))
        self.input_size = self.max_features = max_features
        self.maxlen, self.validation = maxlen, validation
        self.tokens: Path | None = None

    def source(self) -> tuple[dict[str, Any], Callable[[], Mapping[str, Documents]]]:
        """What tells the source from another one, and a function that opens its "train" and "test"."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Finds the documents, and tokenizes them where the cache does not have them yet."""
        if self.tokens is not None:
            return
        source, opened = self.source()
        made_from = {"source": source, "tokenizer": TOKENIZER, "torchtext": TORCHTEXT, "format": FORMAT}
        self.tokens = cached(
            self.cache, self.name, made_from, lambda part, work: write_tokens(opened(), part, work)
        )
        self.labels = tuple(json.loads((self.tokens / "classes.json").read_text(encoding="utf-8")))

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        self.prepare_data()
        words = json.loads((self.tokens / "words.json").read_text(encoding="utf-8"))
        self.vocabulary = Vocabulary(words).first(self.max_features)
        train, test = (read_tokens(self.tokens, split) for split in ("train", "test"))
        learnt, held_out = grouped_split(train.keys, self.validation)
        if len(learnt) == 0:
            raise RunError(
                f"validation is {self.validation}; that leaves nothing of these data to learn from"
            )
        for split, tokens, index in (
            ("train", train, learnt),
            ("validation", train, held_out),
            ("test", test, np.arange(len(test.labels))),
        ):
            sequences = RaggedSequences(tokens.ids, tokens.offsets, index, self.maxlen, self.max_features)
            self.add_split(split, sequences, np.asarray(tokens.labels)[index])
        parts = ", ".join(f"{split} {len(labels):,}" for split, (_, labels) in self.splits.items())
        log.info("%s: %s texts; %s words", self.name, parts, f"{len(self.vocabulary):,}")
