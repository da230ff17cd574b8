"""TextGenerator: a trained language model with the vocabulary of its data, which writes text."""

import os
from collections.abc import Iterator
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from torch_rnn.data.text import Vocabulary, tokenize
from torch_rnn.nn.module import RNN, model_file
from torch_rnn.nn.weights import load_weights


class TextGenerator:
    """Writes text with a trained RNN, token by token.

    Attributes:
        rnn: the RNN, in evaluation mode.
        vocabulary: the tokens and their ids.
        tokens: "characters" or "words".
    """

    def __init__(self, rnn: RNN, vocabulary: Vocabulary, tokens: str):
        self.rnn, self.vocabulary, self.tokens = rnn.eval(), vocabulary, tokens

    def __repr__(self) -> str:
        return f"TextGenerator({self.rnn!r}, {len(self.vocabulary):,} {self.tokens})"

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, backend: str = "auto", device: torch.device | str | None = None
    ) -> "TextGenerator":
        """Reads what the training of a language model left: its folder, or its model.safetensors.

        Raises FileNotFoundError where there is no such file, ValueError for a damaged one or for another
        model.
        """
        path = model_file(path)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} cannot be read (No such file or directory); a training run writes it when it ends"
            )
        rnn = RNN.load(path, backend=backend, device=device)
        _, about = load_weights(path)
        if "language" not in about:
            raise ValueError(
                f"{path} is no language model: it was trained on {about.get('dataset', 'other data')}; "
                f"scripts/train_lm.py trains one"
            )
        vocabulary = Vocabulary(about["language"]["vocabulary"])
        if len(vocabulary) != rnn.input_size:
            raise ValueError(
                f"{path} has {len(vocabulary):,} tokens and weights for {rnn.input_size:,}; its vocabulary "
                f"is another one's: train again"
            )
        return cls(rnn, vocabulary, about["language"]["tokens"])

    def encode(self, text: str) -> Tensor:
        """Returns the ids of a text, int64 (T,).

        An unknown word becomes `<unk>`. Raises ValueError for an unknown character, by name.
        """
        tokens = list(text) if self.tokens == "characters" else tokenize(text)
        ids = torch.from_numpy(self.vocabulary.encode(tokens)).long()
        if self.tokens == "characters" and (ids == 0).any():
            unknown = sorted({token for token, i in zip(tokens, ids.tolist(), strict=True) if i == 0})
            known = "".join(self.vocabulary.words[1:81])
            raise ValueError(
                f"prompt has {', '.join(map(repr, unknown[:10]))}, which the model has never read; it knows "
                f"{len(self.vocabulary) - 1} characters, such as {known!r}"
            )
        return ids

    def generate(self, prompt: str = "", length: int = 500, n: int = 1, **settings: Any) -> list[str]:
        """Returns n texts that go on after the prompt, without it. Arguments are those of `stream`."""
        pieces = list(self.stream(prompt, length, n, **settings))
        return ["".join(text) for text in zip(*pieces, strict=True)]

    def stream(
        self,
        prompt: str = "",
        length: int = 500,
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[list[str]]:
        """Yields at each step the next piece of each of the n texts. The same seed gives the same texts.

        Args:
            prompt: the text before; where it is empty, a line's end, or for words a full stop, is read.
            length: the number of characters or words to write.
            n: the number of texts.
            temperature, top_k, top_p: as in `RNN.generate`.
            seed: of the random numbers.

        Raises:
            TypeError, ValueError: for an unknown character in the prompt, or a setting out of range.
        """
        for name, value in (("length", length), ("n", n), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} is {value!r}; it must be a whole number")
            if name == "seed":
                if not -(2**63) <= value < 2**63:
                    raise ValueError(f"seed is {value}; it must be a whole number of 64 bits")
            elif value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if len(ids := self.encode(prompt)) == 0:
            start = "\n" if self.tokens == "characters" else "."
            ids = torch.from_numpy(self.vocabulary.encode([start])).long()
        device = self.rnn.Why.device
        drawn = self.rnn.generate_steps(
            ids.to(device).expand(n, -1),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=torch.Generator().manual_seed(seed),
        )
        between = "" if self.tokens == "characters" else " "
        words = self.vocabulary.words
        return ([between + words[i] for i in ids.tolist()] for ids in islice(drawn, length))
