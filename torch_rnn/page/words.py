"""The words that push most, each way: the mean contribution of a word to a logit, over the test texts."""

from typing import Any

import numpy as np

from torch_rnn.data.batches import RaggedSequences, lengths_of
from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.predictions import MAX_STEPS, Predictions

WORDS = 20
"""Words each way."""


def words(run: FinishedRun, found: Predictions) -> dict[str, Any]:
    """Returns for each logit the words that raise it most and those that lower it most.

    A word that occurs seldom has a mean that says little; it is left out.
    """
    seen = found.word_counts
    least = int(np.clip(seen.sum() / 50_000, 2, 20))
    usual = np.flatnonzero(seen >= least)
    usual = usual[usual > 0]  # id 0 stands for every word that is not in the vocabulary
    trained, texts = train_counts(run, len(seen))
    ways = []
    for c in range(found.word_sums.shape[1]):
        mean = found.word_sums[usual, c] / seen[usual]
        order = np.argsort(mean, kind="stable")
        up, down = order[::-1][:WORDS], order[:WORDS]
        ways.append(
            {
                way: [
                    {
                        "word": run.data.vocabulary.words[usual[i]],
                        "mean": float(mean[i]),
                        "test": int(seen[usual[i]]),
                        "train": int(trained[usual[i]]),
                    }
                    for i in chosen
                    if (mean[i] > 0) == (way == "up")
                ]
                for way, chosen in (("up", up), ("down", down))
            }
        )
    return {"logits": ways, "least": least, "train texts": texts, "test texts": len(found.rows)}


def train_counts(run: FinishedRun, V: int) -> tuple[np.ndarray, int]:
    """Returns how often each id occurs in labelled training texts, and in how many of them it was counted."""
    sequences, _ = run.data.splits["train"]
    labelled = getattr(run.data, "labelled", len(sequences))  # unlabelled texts and pieces follow
    lengths = lengths_of(sequences)[:labelled]
    rows = np.arange(max(1, int(np.searchsorted(np.cumsum(lengths), MAX_STEPS))))[: len(lengths)]
    if isinstance(sequences, RaggedSequences):
        counts = lengths[rows]
        ids = sequences.take(rows, np.arange(counts.sum()), counts)
    else:
        ids = np.concatenate([sequences[i] for i in rows])
    return np.bincount(ids, minlength=V)[:V], len(rows)
