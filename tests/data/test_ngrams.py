"""The n-gram teacher against its definition, on few words."""

import sys

import numpy as np
import pytest
from scipy.sparse import vstack
from sklearn.linear_model import LogisticRegression

from torch_rnn.data.ngrams import NGrams
from torch_rnn.data.tokens import Tokens
from torch_rnn.data.vectors import ngram_weights
from torch_rnn.errors import RunError

WORDS = 12


def made(n=120, classes=3, seed=0):
    """Returns documents whose class decides which words are frequent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n).astype(np.int32)
    rows = [
        np.where(rng.random(k) < 0.4, 1 + labels[i], rng.integers(WORDS, size=k))
        for i, k in enumerate(rng.integers(0, 9, size=n))
    ]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    ids = np.concatenate(rows).astype(np.int32)
    return Tokens(ids, offsets, labels, rng.integers(1 << 60, size=n).astype(np.uint64)), rows


def sets(rows):
    """Returns the set of unigrams, bigrams and trigrams without id 0 of each document."""
    grams = [
        {tuple(row[i : i + n].tolist()) for n in (1, 2, 3) for i in range(len(row) - n + 1)} for row in rows
    ]
    return [{gram for gram in found if all(gram)} for found in grams]


def key_of(gram, bigrams):
    """Returns the key of an n-gram; a trigram's has the number of its bigram among the sorted ones."""
    if len(gram) < 3:
        return gram[0] if len(gram) == 1 else WORDS + gram[0] * WORDS + gram[1]
    return WORDS + WORDS**2 + bigrams.index(gram[:2]) * WORDS + gram[2]


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_the_definition(classes, is_sorted, monkeypatch):
    if not is_sorted:
        monkeypatch.setattr("torch_rnn.data.ngrams.SORTED", 0)
    documents, rows = made(classes=classes)
    fitted = np.arange(0, 120, 2)
    model = NGrams.fit(documents, fitted, WORDS, classes)
    grams = sets(rows)
    counts = {gram: sum(gram in grams[i] for i in fitted) for gram in set().union(*grams)}
    names = sorted((gram for gram in counts if counts[gram] >= 3), key=lambda gram: (len(gram), gram))
    assert {len(gram) for gram in names} == {1, 2, 3}
    bigrams = [gram for gram in names if len(gram) == 2]
    assert model.keys.tolist() == [key_of(gram, bigrams) for gram in names]
    x = np.array([[gram in found for gram in names] for found in grams], dtype=float)
    p = []
    for c in (1,) if classes == 2 else range(classes):
        target = documents.labels == c
        positive, negative = 1 + x[fitted][target[fitted]].sum(0), 1 + x[fitted][~target[fitted]].sum(0)
        weighted = x * np.log((positive / positive.sum()) / (negative / negative.sum()))
        regression = LogisticRegression(C=0.3, solver="liblinear", dual=True, random_state=0, max_iter=1000)
        p.append(regression.fit(weighted[fitted], target[fitted]).predict_proba(weighted)[:, 1])
    p = np.stack([1 - p[0], p[0]], 1) if classes == 2 else np.stack(p, 1) / np.sum(p, 0)[:, None]
    np.testing.assert_allclose(model.label(documents), p, atol=1e-6)
    assert (model.label(documents).argmax(1) == documents.labels).mean() > 0.6


@pytest.mark.parametrize("classes", [2, 3])
def test_self_training_is_the_definition(classes, monkeypatch):
    monkeypatch.setattr("torch_rnn.data.ngrams.ROUNDS", 1)
    monkeypatch.setattr("torch_rnn.data.ngrams.SURE", 0.6)
    documents, _ = made(classes=classes)
    more, _ = made(classes=classes, seed=1)
    rows, index = np.arange(0, 120, 2), np.arange(100)
    model = NGrams.fit(documents, rows, WORDS, classes)
    known, guessed = model.label(documents), model.label(more)[index]
    taught = model.taught(documents, rows, more, index)
    assert np.array_equal(taught.keys, model.keys)
    x = np.stack([model._matrix(*part).toarray() for part in (documents[:2], more[:2])])
    x = np.concatenate([x[0][rows], x[1][index]])
    p = np.concatenate([np.eye(classes)[documents.labels[rows]], guessed])
    columns = []
    for c in (1,) if classes == 2 else range(classes):
        positive, negative = 1 + x.T @ p[:, c], 1 + x.T @ (1 - p[:, c])
        ratios = np.log((positive / positive.sum()) / (negative / negative.sum()))
        sure = (p[:, c] >= 0.6) | (p[:, c] <= 0.4)
        assert len(rows) < sure.sum() < len(p)
        regression = LogisticRegression(C=0.3, solver="liblinear", dual=True, random_state=0, max_iter=1000)
        columns.append(ratios * regression.fit(x[sure] * ratios, p[sure, c] > 0.5).coef_[0])
    np.testing.assert_allclose(taught.weights, np.stack(columns, 1), atol=1e-5)
    assert not np.allclose(taught.label(documents), known)


@pytest.mark.parametrize("classes", [2, 3])
def test_teaching_with_vectors_is_the_definition(classes):
    documents, _ = made(classes=classes)
    more, _ = made(classes=classes, seed=1)
    rows, index = np.arange(0, 120, 2), np.arange(5, 100)
    model, labels = NGrams.fit(documents, rows, WORDS, classes), documents.labels[rows]
    taught = model.taught_with_vectors(documents, rows, more, index)
    matrices = [model._matrix(*part) for part in (documents[:2], more[:2])]
    x = vstack([matrices[0][rows], matrices[1][index]]).tocsr()
    share, gold = np.zeros(len(model.keys)), np.eye(classes)[labels]
    for c in range(classes):
        positive, negative = (1 + x[: len(rows)][part].sum(0).A1 for part in (labels == c, labels != c))
        ratio = np.log((positive / positive.sum()) / (negative / negative.sum()))
        share = np.maximum(share, np.minimum(np.abs(ratio), 1))
    assert 0 < (share < 1).mean() < 1
    of_vectors = ngram_weights(x, share, gold[:, -1:] if classes == 2 else gold)

    def half_each(model):
        spread, other = (x @ weights for weights in (model.weights, of_vectors))
        weights = model.weights + of_vectors * spread.std(0) / other.std(0)
        return NGrams(WORDS, model.keys, weights / 2, model.bias / 2)

    p = half_each(model).label(more)[index]
    expected = half_each(model._fitted(x, np.concatenate([gold, p])))
    np.testing.assert_allclose(taught.weights, expected.weights, atol=1e-5)
    np.testing.assert_allclose(taught.bias, expected.bias, atol=1e-6)


def test_teaching_with_vectors_without_unlabelled_texts_learns_from_labelled_ones():
    (documents, _), (more, _) = made(), made(seed=1)
    rows = np.arange(0, 120, 2)
    model = NGrams.fit(documents, rows, WORDS, 3)
    taught = model.taught_with_vectors(documents, rows, more, np.arange(0))
    assert (taught.label(documents).argmax(1) == documents.labels)[rows].mean() > 0.8
    assert not np.allclose(taught.weights, model.weights / 2)


def test_each_round_of_self_training_begins_with_the_last_model(monkeypatch):
    monkeypatch.setattr("torch_rnn.data.ngrams.SURE", 0.6)
    (documents, _), (more, _) = made(), made(seed=1)
    texts = documents, np.arange(0, 120, 2), more, np.arange(100)
    model = NGrams.fit(*texts[:2], WORDS, 3)
    two_rounds = model.taught(*texts)
    monkeypatch.setattr("torch_rnn.data.ngrams.ROUNDS", 1)
    one_round = model.taught(*texts)
    assert np.array_equal(one_round.taught(*texts).weights, two_rounds.weights)
    assert not np.array_equal(one_round.weights, two_rounds.weights)


def test_without_unlabelled_texts_self_training_changes_nothing():
    (documents, _), (more, _) = made(), made(seed=1)
    rows = np.arange(0, 120, 2)
    model = NGrams.fit(documents, rows, WORDS, 3)
    taught = model.taught(documents, rows, more, np.arange(0))  # all of them are equal to labelled ones
    assert np.array_equal(taught.weights, model.weights)


def test_a_text_without_a_trigram_is_labelled_alone_as_among_others():
    documents, rows = made()
    model = NGrams.fit(documents, np.arange(120), WORDS, 3)
    bigram = next(row for row in rows if len(row) > 1)[:2]
    for text in (bigram[:0], bigram[:1], bigram):
        alone = model.probabilities(text.astype(np.int32), np.array([0, len(text)]))
        ids = np.concatenate([text, rows[0], text]).astype(np.int32)
        among = model.probabilities(ids, np.cumsum([0, len(text), len(rows[0]), len(text)]))
        assert np.array_equal(among[[0, 2]], np.concatenate([alone, alone]))


@pytest.mark.parametrize("classes", [2, 3])
def test_evidence_is_the_weight_of_every_ngram_where_it_ends_and_where_it_begins(classes):
    documents, rows = made(classes=classes)
    model = NGrams.fit(documents, np.arange(120), WORDS, classes)
    bigrams = [divmod(key - WORDS, WORDS) for key in model.bigrams.tolist()]
    weights = dict(zip(model.keys.tolist(), model.weights, strict=True))
    found = model.evidence(documents.ids, documents.offsets)
    assert found.dtype == np.float32
    expected = np.zeros((len(documents.ids), 2, len(model.bias)))
    n_found = [0, 0, 0]
    for start, row in zip(documents.offsets, rows, strict=False):
        for n in (1, 2, 3):
            for i in range(len(row) - n + 1):
                gram = tuple(row[i : i + n].tolist())
                if not all(gram) or (n == 3 and gram[:2] not in bigrams):
                    continue
                if (weight := weights.get(key_of(gram, bigrams))) is not None:
                    expected[start + i + n - 1, 0] += weight
                    expected[start + i, 1] += weight
                    n_found[n - 1] += 1
    assert min(n_found) > 10
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_evidence_of_a_text_without_a_repeated_ngram_is_its_logit():
    model = NGrams.fit(made(classes=2)[0], np.arange(120), WORDS, 2)
    row = np.array([1, 2, 0, 5, 3, 1 + 6, 4], np.int32)
    offsets = np.array([0, len(row)])
    p = model.probabilities(row, offsets)[0, 1]
    sums = model.evidence(row, offsets).sum(0)[:, 0] + model.bias
    np.testing.assert_allclose(sums, np.log(p / (1 - p)), rtol=1e-5)
    assert model.evidence(np.empty(0, np.int32), np.array([0, 0])).shape == (0, 2, 1)


def test_it_is_the_same_in_pieces_and_from_its_file(tmp_path, monkeypatch):
    documents, _ = made()
    model = NGrams.fit(documents, np.arange(120), WORDS, 3)
    model.save(tmp_path / "ngrams.npz")
    again = NGrams.fit(documents, np.arange(120), WORDS, 3)
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "ngrams.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    pieces = [
        NGrams.load(tmp_path / "ngrams.npz").probabilities(ids, offsets)
        for _, ids, offsets in documents.pieces(20)
    ]
    assert len(pieces) > 10
    assert np.array_equal(np.concatenate(pieces), model.label(documents))
    monkeypatch.setattr("torch_rnn.data.ngrams._max_documents", lambda n_words: 50)
    assert np.array_equal(model.label(documents), np.concatenate(pieces))


def test_it_is_fitted_on_a_part_that_fits_into_memory(monkeypatch):
    documents, _ = made()
    monkeypatch.setattr("torch_rnn.data.ngrams.MAX_TOKENS", 200)
    rows, taken = np.arange(120), []
    monkeypatch.setattr("torch_rnn.data.ngrams._take", lambda tokens, rows: taken.append(rows) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        NGrams.fit(documents, rows, WORDS, 3)
    lengths = np.diff(documents.offsets)
    assert 180 < lengths[taken[0]].sum() <= 200
    assert set(documents.keys[taken[0]]) == set(np.sort(documents.keys)[: len(taken[0])])


@pytest.mark.bad_input
def test_what_it_cannot_be_fitted_on_is_refused(monkeypatch):
    documents, _ = made()
    with pytest.raises(RunError, match="needs training texts of every class; 1 of 4 have none"):
        NGrams.fit(documents, np.arange(120), WORDS, 4)
    with pytest.raises(RunError, match="finds no word in 3 training texts"):
        NGrams.fit(documents, np.array([list(documents.labels).index(c) for c in range(3)]), WORDS, 3)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(RunError, match=r"^teachers of n-grams, .* need scikit-learn: pip install sci"):
        NGrams.fit(documents, np.arange(120), WORDS, 3)
