"""Film reviews from a small grammar, for a first run without a download. They are not IMDB.

    review   -> aside* verdict aside*
    verdict  -> opinion(label) . | contrast
    contrast -> opinion(other) at first , but opinion(label) in the end .
              | although opinion(other) , opinion(label) .
              | opinion(label) , even though opinion(other) .
    opinion  -> the acting was wonderful | the plot was not dull | nobody would call the film bad | ...

A bag of words cannot tell which opinion of a contrast decides: if the two are exchanged, the same words have
the other label. With 60 % contrasts its accuracy is at most 40 + 60 / 2 = 70 %.
"""

from collections import Counter

import numpy as np

from torch_rnn.data.datamodule import SequenceData, check_positive
from torch_rnn.data.text import Vocabulary, tokenize
from torch_rnn.nn.module import RNN

CONTRASTS = 0.6
DENIALS = 0.3
CONTRAST_FORMS = (
    "{other} at first , but {label} in the end .",
    "although {other} , {label} .",
    "{label} , even though {other} .",
)
SUBJECTS = (
    "the film", "the acting", "the plot", "the music", "the dialogue", "the cast", "the ending",
    "the camera work", "the story", "the direction", "the humour", "the first hour", "the leading lady",
    "the villain", "the pacing",
)  # fmt: skip
NEGATIVE = (
    "bad", "dull", "awful", "boring", "weak", "silly", "lifeless", "clumsy", "tedious", "shallow",
    "forgettable",
)  # fmt: skip
POSITIVE = (
    "good", "wonderful", "moving", "funny", "brilliant", "clever", "charming", "gripping", "superb",
    "honest", "fresh",
)  # fmt: skip
ASSERTED = ("{subject} was {adjective}", "{subject} was really {adjective}", "i found {subject} {adjective}")
DENIED = (
    "{subject} was not {adjective}",
    "{subject} was never {adjective}",
    "i did not find {subject} {adjective}",
    "nobody would call {subject} {adjective}",
)
ASIDES = (
    "i saw it on {day} with my {relative} .",
    "my {relative} had bought the tickets on {day} .",
    "it runs for about two hours .",
    "most of it takes place in {place} .",
    "a {person} leaves {place} and meets a {person} .",
    "the {person} has a secret , and so does the {person} .",
    "we talked about it on the way home .",
    "it was made in {place} some years ago .",
)
FILLERS = {
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "relative": ("brother", "sister", "mother", "father", "aunt", "uncle", "cousin"),
    "place": (
        "paris",
        "a small town",
        "london",
        "the desert",
        "a village",
        "new york",
        "space",
        "the mountains",
    ),
    "person": ("doctor", "thief", "teacher", "soldier", "painter", "farmer", "lawyer", "sailor", "widow"),
}


def review(rng: np.random.Generator, label: int) -> str:
    """Returns a review with the label 0 (negative) or 1 (positive)."""
    before, after = rng.integers(4), rng.integers(3)
    sentences = (
        [_aside(rng) for _ in range(before)] + [_verdict(rng, label)] + [_aside(rng) for _ in range(after)]
    )
    return " ".join(sentences)


def corpus(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Returns n reviews, half of them positive, and their labels (n,); equal seeds give equal reviews."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    return [review(rng, label) for label in labels], labels


def _verdict(rng: np.random.Generator, label: int) -> str:
    if rng.random() >= CONTRASTS:
        return f"{_opinion(rng, label)} ."
    return _pick(rng, CONTRAST_FORMS).format(label=_opinion(rng, label), other=_opinion(rng, 1 - label))


def _opinion(rng: np.random.Generator, label: int) -> str:
    denied = rng.random() < DENIALS
    form = _pick(rng, DENIED if denied else ASSERTED)
    adjective = _pick(rng, POSITIVE if denied != bool(label) else NEGATIVE)
    return form.format(subject=_pick(rng, SUBJECTS), adjective=adjective)


def _aside(rng: np.random.Generator) -> str:
    form = _pick(rng, ASIDES)
    for name, words in FILLERS.items():
        while f"{{{name}}}" in form:
            form = form.replace(f"{{{name}}}", _pick(rng, words), 1)
    return form


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


class Grammar(SequenceData):
    """Reviews from the grammar, which do not depend on the seed.

    Args:
        train: The number of training reviews.
        validation: The number of validation reviews.
        test: The number of test reviews.
        max_features, maxlen, batch_size, seed, word_dropout: As in `Corpus`.
    """

    name = "quickstart"
    classes = ("negative", "positive")

    def __init__(
        self,
        train: int = 8000,
        validation: int = 1000,
        test: int = 2000,
        max_features: int = 10000,
        maxlen: int = 500,
        batch_size: int = 64,
        seed: int = 0,
        word_dropout: float = 0.0,
    ):
        super().__init__(batch_size, seed, word_dropout)
        self.sizes = {"train": train, "validation": validation, "test": test}
        check_positive(**self.sizes, max_features=max_features, maxlen=maxlen)
        self.input_size = self.max_features = max_features
        self.maxlen = maxlen

    def remarks(self, rnn: RNN) -> list[str]:
        return ["The reviews of the quickstart come from a small grammar: this is not a result on IMDB."]

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        for i, (split, size) in enumerate(self.sizes.items()):
            texts, labels = corpus(size, seed=i)
            tokens = [tokenize(text)[-self.maxlen :] for text in texts]
            if split == "train":
                self.vocabulary = Vocabulary.build(Counter(w for t in tokens for w in t), self.max_features)
            self.add_split(split, [self.vocabulary.encode(t) for t in tokens], labels)
