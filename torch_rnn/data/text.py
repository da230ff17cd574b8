"""text -> tokens -> ids: torchtext's "basic_english" tokenizer and its Vocab, nothing else of torchtext."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import metadata

import numpy as np

TOKENIZER = "basic_english"
TORCHTEXT = "0.6.0"
UNKNOWN = "<unk>"


def tokenize(text: str) -> list[str]:
    """Returns the tokens of a text. Example: "It's <br /> GOOD." gives ["it", "'", "s", "good", "."]."""
    return _torchtext()[0](text)


@cache
def _torchtext() -> tuple[Callable[[str], list[str]], type]:
    """Returns torchtext's tokenizer and Vocab. Raises ImportError for any version but TORCHTEXT."""
    try:
        installed = metadata.version("torchtext")
    except metadata.PackageNotFoundError:
        installed = "not installed"
    if installed != TORCHTEXT:  # checked before the import, since 0.7 to 0.18 fail with a linker error
        raise ImportError(
            f"torchtext is {installed}; torch_rnn needs {TORCHTEXT}, the last one in pure Python "
            f"(0.7 to 0.18 load under torch 2.3 or older only): pip install torchtext=={TORCHTEXT}"
        )
    from torchtext.data import get_tokenizer
    from torchtext.vocab import Vocab

    return get_tokenizer(TOKENIZER), Vocab


class Vocabulary:
    """Words and their ids, the most frequent first. Id 0 stands for every other word.

    A vocabulary of n words consists of the first n of any larger one, so a smaller one only turns ids into 0.
    """

    def __init__(self, words: Sequence[str]):
        if not words or words[0] != UNKNOWN:
            raise ValueError(f"words starts with {list(words[:1])}; a vocabulary starts with {UNKNOWN!r}")
        self.words = list(words)
        self._ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def build(cls, counts: Counter, max_features: int | None = None) -> "Vocabulary":
        """Builds a vocabulary from the counts of words; max_features is the number of ids, with `<unk>`."""
        _, vocab = _torchtext()
        # torchtext's max_size does not count the specials.
        max_size = None if max_features is None else max_features - 1
        return cls(vocab(counts, max_size=max_size, specials=[UNKNOWN]).itos)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """Returns the ids of the tokens, int32 (T,)."""
        return np.array([self._ids.get(token, 0) for token in tokens], dtype=np.int32)

    def first(self, max_features: int) -> "Vocabulary":
        """Returns the vocabulary of the first max_features ids."""
        return Vocabulary(self.words[:max_features])
