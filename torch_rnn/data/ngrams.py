"""NGrams: logistic regression on the set of a text's unigrams and bigrams.

Each n-gram is weighted by its naive-Bayes log-count ratio (Wang and Manning, 2012, "Baselines and Bigrams").
With more than two classes there is one regression of each class against the rest, and their probabilities are
divided by their sum.
"""

import warnings
from pathlib import Path

import numpy as np

from torch_rnn.data.tokens import Tokens
from torch_rnn.errors import RunError

C = 0.3
"""The inverse of the L2 penalty."""
MIN_DOCUMENTS = 3
"""The number of training texts in which an n-gram must be."""
MAX_TOKENS = 1 << 26
"""Limit on the tokens to fit on, because all must be in memory."""


class NGrams:
    """Probabilities of classes from the set of a text's unigrams and bigrams.

    Args:
        n_words: The number of different ids.
        keys: (m,) int64, sorted: a for the unigram of id a, n_words + a * n_words + b for the bigram a b.
        weights: (m, R), the weight of each n-gram in each of R regressions; R is 1 for two classes.
        bias: (R,)
    """

    def __init__(self, n_words: int, keys: np.ndarray, weights: np.ndarray, bias: np.ndarray):
        self.n_words, self.keys, self.weights, self.bias = n_words, keys, weights, bias

    @classmethod
    def fit(cls, tokens: Tokens, rows: np.ndarray, n_words: int, n_classes: int) -> "NGrams":
        """Fits on the documents with the numbers `rows`, or on a pseudo-random part that fits into memory."""
        regression = _logistic_regression()
        order = rows[np.argsort(np.asarray(tokens.keys)[rows], kind="stable")]  # the keys are pseudo-random
        fits_in_memory = np.cumsum(np.diff(tokens.offsets)[order]) <= MAX_TOKENS
        rows = np.sort(order[fits_in_memory][: _max_documents(n_words)])
        ids, offsets = _take(tokens, rows)
        labels = np.asarray(tokens.labels)[rows]
        if len(present := np.unique(labels)) < n_classes:
            raise RunError(
                f"the teacher ngrams needs training texts of every class; {n_classes - len(present)} of "
                f"{n_classes} have none beside validation, or in other groups: lower validation, or leave "
                f"the teacher out"
            )
        documents, keys = _ngrams(ids, offsets, n_words)
        starts = np.flatnonzero(np.diff(keys, prepend=-1))  # of the runs of equal keys
        counts = np.diff(starts, append=len(keys))
        frequent = counts >= MIN_DOCUMENTS
        if not frequent.any():
            raise RunError(
                f"the teacher ngrams finds no word in {MIN_DOCUMENTS} training texts; leave it out"
            )
        documents = documents[np.repeat(frequent, counts)]
        columns = np.repeat(np.arange(frequent.sum()), counts[frequent])
        targets = [labels == 1] if n_classes == 2 else [labels == c for c in range(n_classes)]
        fits = [_fit(regression, documents, columns, target) for target in targets]
        weights, bias = zip(*fits, strict=True)
        return cls(n_words, keys[starts[frequent]], np.stack(weights, axis=1), np.array(bias))

    def probabilities(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns (n, C) float64 for n texts; text i is ids[offsets[i] : offsets[i + 1]]."""
        n = len(offsets) - 1
        if n > (most := _max_documents(self.n_words)):
            halves = (offsets[: most + 1], offsets[most:])
            return np.concatenate(
                [self.probabilities(ids[part[0] : part[-1]], part - part[0]) for part in halves]
            )
        documents, keys = _ngrams(ids, offsets, self.n_words)
        columns = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[columns] == keys
        documents, columns = documents[known], columns[known]
        scores = np.stack(
            [np.bincount(documents, weights[columns], minlength=n) for weights in self.weights.T], axis=1
        )
        p = 1 / (1 + np.exp(-np.clip(scores + self.bias, -500, 500)))
        return np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p / p.sum(axis=1, keepdims=True)

    def label(self, tokens: Tokens) -> np.ndarray:
        """Returns the probabilities (n, C) of all documents."""
        return np.concatenate([self.probabilities(ids, offsets) for _, ids, offsets in tokens.pieces()])

    def save(self, path: Path) -> None:
        arrays = {"keys": self.keys, "weights": self.weights, "bias": self.bias}
        with open(path, "wb") as file:
            np.savez(file, n_words=np.array(self.n_words), **arrays)

    @classmethod
    def load(cls, path: Path) -> "NGrams":
        with np.load(path) as arrays:
            return cls(int(arrays["n_words"]), arrays["keys"], arrays["weights"], arrays["bias"])


def _logistic_regression() -> type:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise RunError("the teacher ngrams needs scikit-learn: pip install scikit-learn") from error
    return LogisticRegression


def _take(tokens: Tokens, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids and the offsets of these documents, whose numbers are sorted."""
    wanted = np.zeros(len(tokens.labels), dtype=bool)
    wanted[rows] = True
    parts = [
        ids[np.repeat(wanted[first : first + len(offsets) - 1], np.diff(offsets))]
        for first, ids, offsets in tokens.pieces()
    ]
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(np.diff(tokens.offsets)[rows])])


def _max_documents(n_words: int) -> int:
    """Returns the number of documents whose n-grams can be numbered with 62 bits."""
    return (1 << 62) // (n_words * (n_words + 1))


def _ngrams(ids: np.ndarray, offsets: np.ndarray, n_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the documents and the keys of their n-grams, each pair once, sorted by key and document.

    An n-gram with an unknown word is left out.
    """
    n, ids = len(offsets) - 1, ids.astype(np.int64)
    documents = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    known = ids > 0
    pairs = known[:-1] & known[1:] & (documents[:-1] == documents[1:])
    bigrams = n_words + ids[:-1][pairs] * n_words + ids[1:][pairs]
    both = np.concatenate([ids[known] * n + documents[known], bigrams * n + documents[:-1][pairs]])
    both.sort()
    keys, documents = np.divmod(both[np.diff(both, prepend=-1) > 0], max(n, 1))
    return documents, keys


def _fit(
    regression: type, documents: np.ndarray, columns: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, float]:
    """Returns the weights (m,) and the bias of one regression; the columns are sorted."""
    from scipy.sparse import csc_matrix

    m = int(columns[-1]) + 1
    with_target, without = (
        1 + np.bincount(columns[target[documents] == value], minlength=m) for value in (True, False)
    )
    ratios = np.log(with_target / with_target.sum()) - np.log(without / without.sum())
    indptr = np.searchsorted(columns, np.arange(m + 1))
    arrays = ratios[columns], documents.astype(np.int32), indptr.astype(np.int32)
    x = csc_matrix(arrays, (len(target), m)).tocsr()
    model = regression(C=C, solver="liblinear", dual=True, random_state=0, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a solution that is nearly converged is as good
        model.fit(x, target)
    return ratios * model.coef_[0], float(model.intercept_[0])
