"""Vectors of texts: the gradient, which pairs a step has, and what a classifier of the vectors knows."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.nn.functional import logsigmoid, normalize

from torch_rnn.data import vectors
from torch_rnn.data.vectors import VectorClassifier, Vectors, _step, _steps, _trained


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


def test_an_epoch_has_each_pair_as_often_as_its_share(monkeypatch):
    monkeypatch.setattr("torch_rnn.data.vectors.TEXTS", 16)
    x, share = made(), np.where(np.arange(30) % 3, 1.0, 0.0)
    seen, done = np.zeros(x.shape), []
    for part, pairs in _steps(x, share, np.random.default_rng(0)):
        assert len(pairs.texts) <= 16
        assert torch.equal(pairs.ngrams, pairs.ngrams.unique())
        seen[pairs.texts[pairs.rows], pairs.ngrams[pairs.columns]] += 1
        done.append(part)
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


def test_a_classifier_of_vectors_knows_ngrams_without_a_label(small):
    """They stand beside n-grams of labelled texts in texts without a label."""
    x, classes = two_classes()
    classifier, p = VectorClassifier.fit(x, np.ones(40), classes[:100])
    assert p.shape == (600, 2)
    assert (p.argmax(1) == classes)[400:].mean() > 0.95  # which have no n-gram of a labelled text
    later, right = two_classes(900)
    assert (classifier.probabilities(later[600:]).argmax(1) == right[600:]).mean() > 0.95


def test_a_later_text_is_placed_near_the_maximum(small):
    x, classes = two_classes(200)
    share = np.where(np.arange(40) % 2, 1, 0.02)
    classifier, _ = VectorClassifier.fit(x, share, classes)
    found = torch.from_numpy(classifier._placed(x[:5])).double()
    ngrams, drawn = (torch.from_numpy(part).double() for part in (classifier.ngrams, classifier.others))
    weights = torch.from_numpy(x[:5].toarray() * share)

    def objective(t):
        cosines = normalize(t, dim=1) @ ngrams.T
        away = (drawn * logsigmoid(-6 * cosines)).sum(1) * weights.sum(1)
        return (weights * logsigmoid(6 * cosines)).sum(1) + 5 * away

    best = torch.randn(5, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([best], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-objective(best).sum()).backward()
        optimizer.step()
    assert (torch.cosine_similarity(found, best) > 0.9).all()
    assert (objective(found) > objective(best) - 0.2).all()


def test_a_later_text_is_independent_of_others_and_of_the_file(small, tmp_path):
    x, classes = two_classes()
    classifier, _ = VectorClassifier.fit(x, np.ones(40), classes[:100] + 2 * (np.arange(100) % 5 == 0))
    p = classifier.probabilities(x)
    assert p.shape == (600, 4)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    classifier.save(tmp_path / "vectors.npz")
    saved = VectorClassifier.load(tmp_path / "vectors.npz")
    np.testing.assert_allclose(saved.probabilities(x[7:9]), p[7:9], atol=1e-5)


def test_equal_arguments_give_equal_bits():
    x, share = made(), np.full(30, 0.7)
    found, again = _trained(x, share), _trained(x, share)
    for part, n in zip(found[:2], x.shape, strict=True):
        assert part.shape == (n, vectors.SIZE)
        assert np.allclose(np.linalg.norm(part, axis=1), 1)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
    drawn = (0.7 * x.toarray().sum(0)) ** 0.75
    np.testing.assert_allclose(found[2], drawn / drawn.sum(), rtol=1e-6)


@pytest.mark.parametrize("x", [csr_matrix((3, 5)), made()])
def test_texts_without_a_trained_ngram_have_a_vector(x):
    classifier, p = VectorClassifier.fit(x, np.zeros(x.shape[1]), np.array([0, 1]))
    assert np.isfinite(p).all()
    assert np.isfinite(classifier.probabilities(x)).all()
