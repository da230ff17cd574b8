"""Vectors of texts and n-grams: the gradient, which pairs a step has, and the weights of the n-grams."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import logsigmoid, normalize

from torch_rnn.data import vectors
from torch_rnn.data.vectors import Vectors, _step, _steps, _trained, ngram_weights


def made(n=40, m=30, seed=0):
    """Which of m n-grams n texts have."""
    return csr_matrix(np.random.default_rng(seed).random((n, m)) < 0.3, dtype=float)


def test_a_step_goes_up_the_gradient(monkeypatch):
    monkeypatch.setattr("torch_rnn.data.vectors.STEPS", 1)
    x, rng = made(), np.random.default_rng(1)
    often, others = (torch.from_numpy(rng.dirichlet(np.ones(30))).float() for _ in range(2))
    texts, ngrams = (Vectors(normalize(torch.from_numpy(rng.normal(size=(n, 7))).float())) for n in x.shape)
    _, pairs = next(_steps(x, np.full(30, 0.8), rng))
    parts = [(texts, pairs.texts), (ngrams, pairs.ngrams)]
    before = [part.values[index].clone().requires_grad_() for part, index in parts]
    t, g = (part / part.norm(dim=1, keepdim=True) for part in before)
    total = torch.zeros(())
    for row, column in zip(pairs.rows, pairs.columns, strict=True):
        total = total + logsigmoid(6 * t[row] @ g[column])
    for row in range(len(t)):
        size = (pairs.rows == row).sum()
        for column, ngram in enumerate(pairs.ngrams):
            drawn = others[ngram] / (1 - torch.exp(-often[ngram] * len(pairs.rows)))
            total = total + 5 * size * drawn * logsigmoid(-6 * t[row] @ g[column])
    gradients = torch.autograd.grad(total, before)
    untouched = [part.values.clone() for part, _ in parts]
    _step(texts, ngrams, pairs, often, others, 0.3)
    for (part, index), start, gradient, old in zip(parts, before, gradients, untouched, strict=True):
        # The first step has the length 0.3, whatever the gradient's is.
        wanted = start + 0.3 * gradient / gradient.norm(dim=1, keepdim=True)
        torch.testing.assert_close(part.values[index], wanted / wanted.norm(dim=1, keepdim=True))
        old[index] = part.values[index]
        assert torch.equal(part.values, old)


def in_loops(x, share):
    """Returns what `_trained` does, from the loss in the module's docstring."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    texts, ngrams = (torch.randn(n, vectors.SIZE, generator=generator).double().numpy() for n in x.shape)
    parts = [part / np.linalg.norm(part, axis=1)[:, None] for part in (texts, ngrams)]
    squares = [np.zeros(n) for n in x.shape]
    occurrences = share * x.toarray().sum(axis=0)
    for epoch in range(vectors.EPOCHS):
        for done, pairs in _steps(x, share, rng):
            texts, ngrams = (part.copy() for part in parts)
            gradients = [np.zeros_like(part) for part in parts]
            for row, text in enumerate(pairs.texts):
                own = pairs.ngrams[pairs.columns[pairs.rows == row]]
                for ngram in pairs.ngrams:
                    in_step = 1 - np.exp(-len(pairs.rows) * occurrences[ngram] / occurrences.sum())
                    drawn = occurrences[ngram] ** 0.75 / (occurrences**0.75).sum() / in_step
                    c = texts[text] @ ngrams[ngram]
                    slope = 6 / (1 + np.exp(6 * c)) if ngram in own else 0
                    slope -= 5 * len(own) * drawn * 6 / (1 + np.exp(-6 * c))
                    gradients[0][text] += slope * ngrams[ngram]
                    gradients[1][ngram] += slope * texts[text]
            rate = 0.7 * (1 - (epoch + done) / vectors.EPOCHS)
            for part, square, gradient in zip(parts, squares, gradients, strict=True):
                for i in np.flatnonzero(gradient.any(axis=1)):
                    along = gradient[i] - (gradient[i] @ part[i]) * part[i]
                    square[i] += along @ along
                    moved = part[i] + rate * along / np.sqrt(square[i])
                    part[i] = moved / np.linalg.norm(moved)
    return parts[1]


def test_training_is_the_definition(monkeypatch):
    for name, value in {"SIZE": 5, "EPOCHS": 2, "STEPS": 3, "TEXTS": 4}.items():
        monkeypatch.setattr(vectors, name, value)
    x, share = made(n=6, m=8), np.linspace(0.2, 1, 8)
    np.testing.assert_allclose(_trained(x, share), in_loops(x, share), atol=1e-5)


def test_the_recipe_has_every_constant():
    others = ("RECIPE", "TYPE_CHECKING")
    constants = {
        name: value for name, value in vars(vectors).items() if name.isupper() and name not in others
    }
    assert sorted(vectors.RECIPE) == sorted(constants.values())


def test_an_epoch_has_each_pair_as_often_as_its_share(monkeypatch):
    monkeypatch.setattr("torch_rnn.data.vectors.TEXTS", 16)
    x, share = made(), np.where(np.arange(30) % 3, 1.0, 0.0)
    seen, done, groups = np.zeros(x.shape), [], set()
    for part, pairs in _steps(x, share, np.random.default_rng(0)):
        assert len(pairs.texts) <= 16
        assert torch.equal(pairs.ngrams, pairs.ngrams.unique())
        seen[pairs.texts[pairs.rows], pairs.ngrams[pairs.columns]] += 1
        done.append(part)
        groups.add(frozenset(pairs.texts.tolist()))
    assert len(groups) == len(done)  # a text meets others in each step
    assert np.array_equal(seen, x.toarray() * share)
    assert done == sorted(done)
    assert 0 <= done[0] < done[-1] < 1
    half = sum(len(pairs.rows) for _, pairs in _steps(x, np.full(30, 0.5), np.random.default_rng(0)))
    assert 0.35 * x.nnz < half < 0.65 * x.nnz


def two_classes(n=600):
    """Returns which n-grams n texts have, and their classes; n-grams 0..9 and 20..29 are of class 0.

    Of 0..19 there is none in the last third, of 20..39 none in the first 100.
    """
    rng = np.random.default_rng(0)
    classes, x = rng.integers(2, size=n), np.zeros((n, 40))
    for i, label in enumerate(classes):
        x[i, rng.permutation(10)[:4] + 10 * label] = i < 2 * n // 3
        x[i, rng.permutation(10)[:4] + 20 + 10 * label] = i >= 100
    return csr_matrix(x), classes


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("torch_rnn.data.vectors.SIZE", 8)


def test_ngrams_that_no_labelled_text_has_have_weights(small):
    """They stand beside n-grams of labelled texts in texts without a label."""
    x, classes = two_classes()
    weights = ngram_weights(x, np.ones(40), classes[:100, None])
    assert weights.shape == (40, 1)
    assert x[:100, 20:].nnz == 0
    assert (weights[20:30] < 0).all()
    assert (weights[30:] > 0).all()


def test_the_weights_are_those_of_a_regression_on_mean_vectors(small):
    """Of three classes, each against the others."""
    x, classes = two_classes()
    share = np.random.default_rng(1).random(40)
    gold = np.eye(3)[classes + (np.arange(600) % 3 == 0)]
    weights = ngram_weights(x, share, gold[:300])
    vectors = _trained(x, share)
    dense = x.toarray() * share
    means = dense @ vectors / dense.sum(1, keepdims=True)
    for c in range(3):
        logits = (
            LogisticRegression(C=100, max_iter=1000).fit(means[:300], gold[:300, c]).decision_function(means)
        )
        np.testing.assert_allclose(x @ weights[:, c], logits * dense.sum(1), rtol=1e-3, atol=1e-3)


def test_equal_arguments_give_equal_bits():
    x, share = made(), np.full(30, 0.7)
    found = _trained(x, share)
    assert found.shape == (30, vectors.SIZE)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert np.array_equal(found, _trained(x, share))


@pytest.mark.parametrize("x", [csr_matrix((3, 5)), made()])
def test_ngrams_that_are_not_trained_have_no_weight(x):
    assert not ngram_weights(x, np.zeros(x.shape[1]), np.array([[0], [1]])).any()
