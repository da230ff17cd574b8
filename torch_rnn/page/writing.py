"""What the page needs to continue a text: the weights and vocabulary of an RNN that predicts tokens."""

from typing import Any

from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.reading import MAX_WEIGHTS, size, weights

PROMPT = 60
"""Characters of the prompt that the page begins with, from the test split."""


def writing(run: FinishedRun) -> dict[str, Any] | None:
    """Returns what the writing panel needs; None beyond MAX_WEIGHTS bytes of weights."""
    vocabulary = run.data.vocabulary.words
    if size(run.rnn, len(vocabulary)) > MAX_WEIGHTS:
        return None
    characters = all(len(word) == 1 for word in vocabulary[1:])
    first = [vocabulary[i] for i in run.data.splits["test"][0][0][:PROMPT].tolist()]
    return {
        "tokens": "characters" if characters else "words",
        "vocabulary": vocabulary,
        "weights": weights(run.rnn, len(vocabulary)),
        "prompt": "".join(first) if characters else " ".join(first[: PROMPT // 6]),
    }
