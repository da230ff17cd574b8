"""What the page needs to continue a text: the weights and vocabulary of an RNN that predicts tokens.

Beyond MAX_WEIGHTS bytes of weights it gets what the RNN makes of a held-out text in their place.
"""

from typing import Any

import torch

from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.language import held_out
from torch_rnn.page.reading import MAX_WEIGHTS, size, weights
from torch_rnn.page.states import Plane

PROMPT = {"characters": 60, "words": 10}
"""Tokens of the prompt that the page begins with, from the text that no weight was fitted to."""
LENGTH = {"characters": 400, "words": 80}
"""Tokens that the page writes at first, and of a text that it has in place of the weights."""
NEXT = 5
"""The most probable next tokens that such a text has at each place."""


def writing(run: FinishedRun, flat: Plane | None = None) -> dict[str, Any]:
    """Returns what the writing panel needs; `flat` is the plane of the state space."""
    vocabulary, tokens = run.data.vocabulary.words, tokens_of(run)
    bytes_of_weights = size(run.rnn, len(vocabulary))
    if bytes_of_weights > MAX_WEIGHTS:
        return {
            "tokens": tokens,
            "weights": None,
            "megabytes": bytes_of_weights / 1e6,
            "stored": stored(run, held_out_ids(run, LENGTH[tokens]), flat),
        }
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "weights": weights(run.rnn, len(vocabulary)),
        "prompt": prompt(run, tokens),
        "length": LENGTH[tokens],
    }


@torch.no_grad()
def stored(run: FinishedRun, ids: list[int], flat: Plane | None) -> dict[str, Any]:
    """Returns what the page computes of a prompt where it has the weights.

    Returns:
        tokens, ids, given (how many of them are the prompt's: all), held (the probability that each had
        before it was read; None for the first), next (the most probable tokens after each, with their
        probabilities) and path (the states in the plane; None without a plane).
    """
    rnn, words = run.rnn, run.data.vocabulary.words
    x = torch.tensor(ids)
    h = rnn.states(x)
    p = torch.softmax((h @ rnn.Why.t() + (0 if rnn.by is None else rnn.by)).double(), dim=1)
    best = p.topk(min(NEXT, p.shape[1]))
    held = p[torch.arange(len(ids) - 1), x[1:]].tolist()
    return {
        "tokens": [words[i] for i in ids],
        "ids": ids,
        "given": len(ids),
        "held": [None, *held],
        "next": [
            [[words[i], q] for i, q in zip(*pair, strict=True)]
            for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        "path": None if flat is None else flat.project(h.double().numpy()),
    }


def tokens_of(run: FinishedRun) -> str:
    """Returns "characters" or "words"."""
    if run.is_language:
        return run.data.tokens
    return "characters" if all(len(word) == 1 for word in run.data.vocabulary.words[1:]) else "words"


def prompt(run: FinishedRun, tokens: str) -> str:
    """Returns the beginning of the held-out text, from the start of a line where one is near."""
    words = [run.data.vocabulary.words[i] for i in held_out_ids(run, 2 * PROMPT[tokens]) if i > 0]
    if tokens == "words":
        return " ".join(words[: PROMPT[tokens]])
    text = "".join(words)
    start = text[: PROMPT[tokens] // 2].find("\n") + 1
    return text[start:].lstrip("\n")[: PROMPT[tokens]]


def held_out_ids(run: FinishedRun, n: int) -> list[int]:
    """Returns the first n ids of the text that no weight was fitted to."""
    if run.is_language:
        return held_out(run.data, n)[0][0].tolist()
    return run.data.splits["test"][0][0][:n].tolist()
