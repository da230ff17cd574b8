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
    """The tokens of a text. Example: "It's <br /> GOOD." gives ["it", "'", "s", "good", "."]."""
    return _torchtext()[0](text)


@cache
def _torchtext() -> tuple[Callable[[str], list[str]], type]:
    """Its tokenizer and its Vocab. Raises ImportError, which names the fix, for any other version."""
    try:
        installed = metadata.version("torchtext")
    except metadata.PackageNotFoundError:
        installed = "not installed"
    if installed != TORCHTEXT:  # seen before the import: that of 0.7 to 0.18 ends in a linker error
        raise ImportError(
            f"torchtext is {installed}; torch_rnn needs {TORCHTEXT}, the last one in pure Python "
            f"(0.7 to 0.18 load under torch 2.3 or older only): pip install torchtext=={TORCHTEXT}"
        )
    from torchtext.data import get_tokenizer
    from torchtext.vocab import Vocab

    return get_tokenizer(TOKENIZER), Vocab


class Vocabulary:
    """Words and their ids, the most frequent first; id 0 is every word that it does not hold.

    A vocabulary of n words is the first n of any larger one: ids from n on become 0, and nothing else moves.
    """

    def __init__(self, words: Sequence[str]):
        if not words or words[0] != UNKNOWN:
            raise ValueError(f"words starts with {list(words[:1])}; a vocabulary starts with {UNKNOWN!r}")
        self.words = list(words)
        self._ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def build(cls, counts: Counter, max_features: int | None = None) -> "Vocabulary":
        """From the number of times each word occurs; max_features counts all ids, that of `<unk>` too."""
        _, vocab = _torchtext()
        # torchtext's max_size does not count the specials.
        max_size = None if max_features is None else max_features - 1
        return cls(vocab(counts, max_size=max_size, specials=[UNKNOWN]).itos)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """The tokens' ids, int32 (T,)."""
        return np.array([self._ids.get(token, 0) for token in tokens], dtype=np.int32)

    def first(self, max_features: int) -> "Vocabulary":
        """The vocabulary of the max_features most frequent words, `<unk>` counted."""
        return Vocabulary(self.words[:max_features])
