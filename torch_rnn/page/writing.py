"""What the page needs to continue a text: the weights and vocabulary of an RNN that predicts tokens."""

from typing import Any

from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.language import held_out
from torch_rnn.page.reading import MAX_WEIGHTS, size, weights

PROMPT = {"characters": 60, "words": 10}
"""Tokens of the prompt that the page begins with, from the text that no weight was fitted to."""
LENGTH = {"characters": 400, "words": 80}
"""Tokens that the page writes at first."""


def writing(run: FinishedRun) -> dict[str, Any]:
    """Returns what the writing panel needs; beyond MAX_WEIGHTS bytes of weights only how many there are."""
    vocabulary = run.data.vocabulary.words
    bytes_of_weights = size(run.rnn, len(vocabulary))
    if bytes_of_weights > MAX_WEIGHTS:
        return {"weights": None, "megabytes": bytes_of_weights / 1e6}
    tokens = tokens_of(run)
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "weights": weights(run.rnn, len(vocabulary)),
        "prompt": prompt(run, tokens),
        "length": LENGTH[tokens],
    }


def tokens_of(run: FinishedRun) -> str:
    """Returns "characters" or "words"."""
    if run.is_language:
        return run.data.tokens
    return "characters" if all(len(word) == 1 for word in run.data.vocabulary.words[1:]) else "words"


def prompt(run: FinishedRun, tokens: str) -> str:
    """Returns the beginning of the held-out text, from the start of a line where one is near."""
    data = run.data
    if run.is_language:
        ids = held_out(data, 2 * PROMPT[tokens])[0][0].tolist()
    else:
        ids = data.splits["test"][0][0].tolist()
    words = [data.vocabulary.words[i] for i in ids if i > 0]
    if tokens == "words":
        return " ".join(words[: PROMPT[tokens]])
    text = "".join(words)
    start = text[: PROMPT[tokens] // 2].find("\n") + 1
    return text[start:].lstrip("\n")[: PROMPT[tokens]]
