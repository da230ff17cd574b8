"""The quickstart corpus: the RNN can predict its labels, a bag of words cannot."""

import json
from pathlib import Path

import numpy as np
import torch

from torch_rnn.data.grammar import CONTRASTS, Grammar, corpus
from torch_rnn.data.text import tokenize
from torch_rnn.training import main

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def word_counts(data: Grammar, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the counts (n, V) of each word in each review, and the labels (n,)."""
    sequences, labels = data.splits[split]
    counts = torch.zeros(len(sequences), len(data.vocabulary))
    for row, ids in zip(counts, sequences, strict=True):
        row += torch.bincount(torch.from_numpy(ids), minlength=len(row))
    return counts, torch.from_numpy(labels).float()


def test_a_bag_of_words_does_not_pass_75_percent():
    assert 1 - CONTRASTS / 2 < 0.75, "the grammar limits the accuracy of every bag of words"
    data = Grammar()
    data.setup()
    (x, y), (x_test, y_test) = word_counts(data, "train"), word_counts(data, "test")
    w = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.binary_cross_entropy_with_logits(x @ w[1:] + w[0], y)
            + 1e-5 * w.square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(loss)
    accuracy = float((((x_test @ w[1:] + w[0]) > 0) == (y_test > 0)).float().mean())
    assert accuracy < 0.75
    assert accuracy > 0.55, "the logistic regression has learnt too little"


def test_the_rnn_passes_95_percent_with_the_published_configuration(tmp_path):
    arguments = ["--config", str(QUICKSTART), "--trainer.default_root_dir", str(tmp_path)]
    assert main(QUICKSTART, arguments) == 0
    test = json.loads((tmp_path / "results.json").read_text())["test"]
    assert test["accuracy"] > 0.95
    assert test["n"] == 2000


def test_exchanging_the_opinions_of_a_contrast_exchanges_the_label():
    texts, labels = corpus(2000, seed=3)
    contrasts = [
        (text, label) for text, label in zip(texts, labels, strict=True) if " at first , but " in text
    ]
    assert len(contrasts) > 300
    assert 0.4 < np.mean([label for _, label in contrasts]) < 0.6


def test_reviews_are_equal_for_equal_seeds_alone():
    assert corpus(50, seed=1)[0] == corpus(50, seed=1)[0]
    assert not set(corpus(50, seed=1)[0]) & set(corpus(50, seed=2)[0])
    assert sum(corpus(50, seed=1)[1]) == 25


def test_words_and_lengths():
    texts, _ = corpus(500, seed=0)
    lengths = [len(tokenize(text)) for text in texts]
    assert min(lengths) >= 4
    assert max(lengths) < 120
    assert all("{" not in text for text in texts)
