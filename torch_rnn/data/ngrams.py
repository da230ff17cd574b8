"""NGrams: logistic regression on the set of a text's unigrams, bigrams and trigrams.

Each n-gram is weighted by its naive-Bayes log-count ratio (Wang and Manning, 2012, "Baselines and Bigrams").
With more than two classes there is one regression of each class against the rest, and their probabilities are
divided by their sum.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torch_rnn.data.tokens import Tokens
from torch_rnn.data.vectors import ngram_weights
from torch_rnn.errors import RunError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

INVERSE_PENALTY = 0.3
"""The inverse of the L2 penalty."""
MIN_DOCUMENTS = 3
"""The number of labelled texts in which an n-gram must be."""
SURE = 0.9
"""The lowest probability with which a text that the model has labelled itself is fitted."""
ROUNDS = 2
"""Rounds of self-training."""
MAX_TOKENS = 1 << 25
"""Limit on the tokens to fit on, because all must be in memory."""
SORTED = 1 << 20
"""Fewer keys than this are sorted before a search, which is faster; the order of more needs much memory."""


class NGrams:
    """Probabilities of classes from the set of a text's n-grams.

    Args:
        n_words: The number of different ids.
        keys: (m,) int64, sorted: a for the unigram of id a, n_words + a * n_words + b for the bigram a b, and
            n_words + n_words ** 2 + i * n_words + c for the bigram number i, in their order, and c after it.
        weights: (m, R), the weight of each n-gram in each of R regressions; R is 1 for two classes.
        bias: (R,)
    """

    def __init__(self, n_words: int, keys: np.ndarray, weights: np.ndarray, bias: np.ndarray):
        self.n_words, self.keys, self.weights, self.bias = n_words, keys, weights, bias
        first, last = np.searchsorted(keys, (n_words, n_words + n_words**2))
        self.first_bigram, self.bigrams = first, keys[first:last]
        self.of_words = np.zeros((n_words, weights.shape[1]))  # the weight of each id
        self.of_words[keys[:first]] = weights[:first]

    @classmethod
    def fit(cls, tokens: Tokens, rows: np.ndarray, n_words: int, n_classes: int) -> "NGrams":
        """Fits on the documents with the numbers `rows`, or on a pseudo-random part that fits into memory."""
        logistic_regression()
        rows = _that_fit_into_memory(tokens, rows, n_words)
        ids, offsets = _take(tokens, rows)
        labels = np.asarray(tokens.labels)[rows]
        if len(present := np.unique(labels)) < n_classes:
            raise RunError(
                f"the teacher ngrams needs training texts of every class; {n_classes - len(present)} of "
                f"{n_classes} have none beside validation, or in other groups: lower validation, or leave "
                f"the teacher out"
            )
        keys = _frequent(_ngrams(ids, offsets, n_words)[1])
        if len(keys) == 0:
            raise RunError(
                f"the teacher ngrams finds no word in {MIN_DOCUMENTS} training texts; leave it out"
            )
        bigrams = keys[keys >= n_words]
        keys = np.concatenate([keys, _frequent(_trigrams(ids, offsets, n_words, bigrams)[1])])
        model = cls(n_words, keys, np.empty((len(keys), 0)), np.empty(0))
        return model._fitted(model._matrix(ids, offsets), np.eye(n_classes)[labels])

    def taught(self, tokens: Tokens, rows: np.ndarray, more: Tokens, index: np.ndarray) -> "NGrams":
        """Returns a model fitted on the documents `rows` and on unlabelled ones that this model has labelled.

        These are ROUNDS rounds of self-training (Scudder, 1965). The ratios count each unlabelled text by its
        probabilities. The regression of a class reads those of which the model of the round before is sure.

        Args:
            more: The unlabelled texts.
            index: The numbers of those to use.
        """
        known, unknown, labels = self._known_and_unknown(tokens, rows, more, index)
        both, model = _stacked(known, unknown), self
        for _ in range(ROUNDS):
            p = model._probabilities(unknown)
            model = self._fitted(both, np.concatenate([np.eye(p.shape[1])[labels], p]))
        return model

    def taught_with_vectors(
        self, tokens: Tokens, rows: np.ndarray, more: Tokens, index: np.ndarray
    ) -> "NGrams":
        """Returns a model whose weights are the means of two: those of `ngram_weights`, and of a regression.

        The first come from vectors that are trained on all of these texts. The regression is as in `taught`,
        after one round, in which the unlabelled texts are labelled by the first and by this model together.

        Args:
            more, index: As in `taught`.
        """
        known, unknown, labels = self._known_and_unknown(tokens, rows, more, index)
        both, gold = _stacked(known, unknown), np.eye(max(self.weights.shape[1], 2))[labels]
        ratios = np.abs([_ratios(known, p) for p in _columns(gold)]).max(axis=0)
        weights = ngram_weights(both, np.minimum(ratios, 1), _columns(gold).T)
        p = self._mean_with(weights, both)._probabilities(unknown)
        return self._fitted(both, np.concatenate([gold, p]))._mean_with(weights, both)

    def _mean_with(self, weights: np.ndarray, x: "csr_matrix") -> "NGrams":
        """Returns the model whose logits are the mean of this one's and of the sums of other weights (m, R),
        which are scaled to the spread of this one's logits on the documents (n, m)."""
        scale = (x @ self.weights).std(axis=0) / np.maximum((x @ weights).std(axis=0), 1e-12)
        return NGrams(self.n_words, self.keys, (self.weights + scale * weights) / 2, self.bias / 2)

    def _known_and_unknown(
        self, tokens: Tokens, rows: np.ndarray, more: Tokens, index: np.ndarray
    ) -> tuple["csr_matrix", "csr_matrix", np.ndarray]:
        """Returns the matrix of the labelled documents, that of the unlabelled ones, and the labels.

        Both are of documents that fit into memory together.
        """
        rows = _that_fit_into_memory(tokens, rows, self.n_words)
        left = MAX_TOKENS - int(np.diff(tokens.offsets)[rows].sum())
        index = _that_fit_into_memory(more, index, self.n_words, left)
        known, unknown = (self._matrix(*_take(*part)) for part in ((tokens, rows), (more, index)))
        return known, unknown, np.asarray(tokens.labels)[rows]

    def _fitted(self, x: "csr_matrix", labels: np.ndarray) -> "NGrams":
        """Returns the model with these n-grams, fitted on documents (n, m) and distributions (n, C)."""
        weights, bias = zip(*(_regression(x, p) for p in _columns(labels)), strict=True)
        return NGrams(self.n_words, self.keys, np.stack(weights, axis=1), np.array(bias))

    def probabilities(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns (n, C) float64 for n texts; text i is ids[offsets[i] : offsets[i + 1]]."""
        n = len(offsets) - 1
        if n > (most := _max_documents(self.n_words)):
            halves = (offsets[: most + 1], offsets[most:])
            return np.concatenate(
                [self.probabilities(ids[part[0] : part[-1]], part - part[0]) for part in halves]
            )
        return self._probabilities(self._matrix(ids, offsets))

    def evidence(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns what each token adds to the logits of its text, (N, 2, R) float32.

        [:, 0] is the sum of the weights of the n-grams that end at the token, [:, 1] of those that begin
        there. Unlike in `probabilities`, an n-gram counts each time it occurs. Text i is ids[offsets[i] :
        offsets[i + 1]].
        """
        ids, n = ids.astype(np.int64), self.n_words
        found = np.zeros((len(ids), 2, self.weights.shape[1]), np.float32)

        def add(begins: np.ndarray, order: int, places: np.ndarray) -> None:
            found[begins, 1] += self.weights[places]
            found[begins + order, 0] += self.weights[places]

        found[:] = self.of_words[ids][:, None]
        number = _number_of_bigrams(ids, offsets, n, self.bigrams)
        pairs = np.flatnonzero(number >= 0)
        add(pairs, 1, self.first_bigram + number[pairs])
        triples = np.flatnonzero((number[:-1] >= 0) & (number[1:] >= 0))
        known, places = _places(n + n**2 + number[triples] * n + ids[triples + 2], self.keys)
        add(triples[known], 2, places)
        return found

    def label(self, tokens: Tokens) -> np.ndarray:
        """Returns the probabilities (n, C) of all documents."""
        return np.concatenate([self.probabilities(ids, offsets) for _, ids, offsets in tokens.pieces()])

    def _probabilities(self, x: "csr_matrix") -> np.ndarray:
        p = 1 / (1 + np.exp(-np.clip(x @ self.weights + self.bias, -500, 500)))
        return np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p / p.sum(axis=1, keepdims=True)

    def _matrix(self, ids: np.ndarray, offsets: np.ndarray) -> "csr_matrix":
        """Returns which n-grams are in which of n documents, (n, m) zeros and ones."""
        from scipy.sparse import csc_matrix

        documents, keys = (
            np.concatenate(arrays)
            for arrays in zip(
                _ngrams(ids, offsets, self.n_words),
                _trigrams(ids, offsets, self.n_words, self.bigrams),
                strict=True,
            )
        )
        known, columns = _places(keys, self.keys)
        indptr = np.searchsorted(columns, np.arange(len(self.keys) + 1)).astype(np.int32)
        arrays = np.ones(len(columns)), documents[known].astype(np.int32), indptr
        return csc_matrix(arrays, (len(offsets) - 1, len(self.keys))).tocsr()

    def save(self, path: Path) -> None:
        arrays = {"keys": self.keys, "weights": self.weights, "bias": self.bias}
        with open(path, "wb") as file:
            np.savez(file, n_words=np.array(self.n_words), **arrays)

    @classmethod
    def load(cls, path: Path) -> "NGrams":
        with np.load(path) as arrays:
            return cls(int(arrays["n_words"]), arrays["keys"], arrays["weights"], arrays["bias"])


def logistic_regression() -> type:
    """Returns scikit-learn's class. Raises RunError where it is not installed."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise RunError(
            "teachers of n-grams, which data.evidence, data.distillation and data.pieces use too, need "
            "scikit-learn: pip install scikit-learn"
        ) from error
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


def _that_fit_into_memory(
    tokens: Tokens, rows: np.ndarray, n_words: int, limit: int | None = None
) -> np.ndarray:
    """Returns the rows, or a pseudo-random part of them with at most `limit` tokens (None: MAX_TOKENS)."""
    limit = MAX_TOKENS if limit is None else limit
    order = rows[np.argsort(np.asarray(tokens.keys)[rows], kind="stable")]  # the keys are pseudo-random
    fits_in_memory = np.cumsum(np.diff(tokens.offsets)[order]) <= limit
    return np.sort(order[fits_in_memory][: _max_documents(n_words)])


def _max_documents(n_words: int) -> int:
    """Returns the number of documents whose n-grams can be numbered with 62 bits."""
    return (1 << 62) // (n_words * (n_words + 1))


def _ngrams(ids: np.ndarray, offsets: np.ndarray, n_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the documents and the keys of their unigrams and bigrams, sorted by key and document.

    Each pair is there once. An n-gram with an unknown word is left out.
    """
    n, ids = len(offsets) - 1, ids.astype(np.int64)
    documents = np.repeat(np.arange(n), np.diff(offsets))
    known = ids > 0
    pairs = known[:-1] & known[1:] & (documents[:-1] == documents[1:])
    bigrams = n_words + ids[:-1][pairs] * n_words + ids[1:][pairs]
    both = np.concatenate([ids[known] * n + documents[known], bigrams * n + documents[:-1][pairs]])
    both.sort()
    keys, documents = np.divmod(both[np.diff(both, prepend=-1) > 0], max(n, 1))
    return documents, keys


def _trigrams(
    ids: np.ndarray, offsets: np.ndarray, n_words: int, bigrams: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `_ngrams` does, for the trigrams whose two bigrams are among the sorted `bigrams`."""
    n, ids = len(offsets) - 1, ids.astype(np.int64)
    documents = np.repeat(np.arange(n), np.diff(offsets))
    number = _number_of_bigrams(ids, offsets, n_words, bigrams)
    here = (number[:-1] >= 0) & (number[1:] >= 0)
    keys = n_words + n_words**2 + number[:-1][here] * n_words + ids[2:][here[:-1]]
    documents = documents[:-1][here]
    order = np.argsort(keys, kind="stable")  # the documents of a key stay sorted
    keys, documents = keys[order], documents[order]
    once = (np.diff(keys, prepend=-1) > 0) | (np.diff(documents, prepend=-1) > 0)
    return documents[once], keys[once]


def _number_of_bigrams(ids: np.ndarray, offsets: np.ndarray, n_words: int, bigrams: np.ndarray) -> np.ndarray:
    """Returns (N,) the places among the sorted `bigrams` of those that begin at each token; -1 where none."""
    found, places = _places(n_words + ids[:-1] * n_words + ids[1:], bigrams)
    number = np.full(len(ids), -1)
    number[:-1][found] = places
    number[offsets[1:][offsets[1:] > 0] - 1] = -1  # it would go on in the next document
    return number


def _places(keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which keys (n,) are among the sorted ones, and the places there of those that are."""
    if len(among) == 0:
        return np.zeros(len(keys), bool), np.empty(0, np.int64)
    if len(keys) < SORTED:  # in this order the search stays in the cache of the processor
        order, places = np.argsort(keys), np.empty(len(keys), np.int64)
        places[order] = np.searchsorted(among, keys[order])
    else:  # the order would need too much memory
        places = np.searchsorted(among, keys)
    places = np.minimum(places, len(among) - 1)
    found = among[places] == keys
    return found, places[found]


def _frequent(keys: np.ndarray) -> np.ndarray:
    """Returns the keys that occur MIN_DOCUMENTS times among these, which are sorted."""
    starts = np.flatnonzero(np.diff(keys, prepend=-1))  # of the runs of equal keys
    return keys[starts[np.diff(starts, append=len(keys)) >= MIN_DOCUMENTS]]


def _stacked(first: "csr_matrix", second: "csr_matrix") -> "csr_matrix":
    from scipy.sparse import vstack

    return vstack([first, second]).tocsr()


def _columns(labels: np.ndarray) -> np.ndarray:
    """Returns of distributions (n, C) the rows (R, n) to which a regression each is fitted."""
    return labels.T[1:] if labels.shape[1] == 2 else labels.T


def _ratios(x: "csr_matrix", p: np.ndarray) -> np.ndarray:
    """Returns the naive-Bayes log-count ratios (m,) of a class with the probabilities p (n,)."""
    with_target, without = (1 + x.T @ part for part in (p, 1 - p))
    return np.log(with_target / with_target.sum()) - np.log(without / without.sum())


def _regression(x: "csr_matrix", p: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the weights (m,) and the bias for documents (n, m) and their probabilities (n,) of a class."""
    ratios = _ratios(x, p)
    sure = np.maximum(p, 1 - p) >= SURE
    x = x[sure]
    x.data *= ratios[x.indices]
    model = logistic_regression()(
        C=INVERSE_PENALTY, solver="liblinear", dual=True, random_state=0, max_iter=1000
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a solution that is nearly converged is as good
        model.fit(x, p[sure] > 0.5)
    return ratios * model.coef_[0], float(model.intercept_[0])
