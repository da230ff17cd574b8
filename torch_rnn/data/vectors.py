"""VectorClassifier: logistic regression on a vector of each text, which tells its n-grams from others.

A text and an n-gram have a vector of length 1 each, with the cosine c. For a text with n n-grams, training
raises

    the sum over its n-grams of log sigmoid(6 c) + 5 n times the mean over others of log sigmoid(-6 c)

after Thongtan and Phienthrakul (2019, "Sentiment Classification Using Document Embeddings Trained with Cosine
Similarity"). n-grams that say little of the classes are mostly left out, after Zhang and Arefyev (2022, "The
Document Vectors Using Cosine Similarity Revisited"). Texts without labels have vectors, too, so that the
classifier learns of n-grams that no labelled text has.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SIZE = 128
"""The length of a vector."""
SHARPNESS = 6.0
"""The factor of a cosine in the loss."""
NEGATIVES = 5.0
"""The weight of the other n-grams for each one that a text has."""
EPOCHS = 8
STEPS = 24
"""The number of steps of a text in an epoch, each with another part of its n-grams."""
TEXTS = 128
"""The number of texts in a step."""
RATE = 0.7
"""The length of a first step, in radians; the rate goes down to zero."""
PLACES = 10
"""The number of steps of a text that comes later."""
DRAWN = 512
"""The number of others that these meet."""
PLACED = 64
"""The number of these in memory at a time."""
RECIPE = (SIZE, SHARPNESS, NEGATIVES, EPOCHS, STEPS, TEXTS, RATE, PLACES, DRAWN)
"""What the vectors depend on beside the texts."""


class Pairs(NamedTuple):
    """The n-grams of the texts of a step."""

    texts: Tensor
    """(b,) the texts."""
    rows: Tensor
    """(p,) the place in `texts` of each pair's text."""
    ngrams: Tensor
    """(u,) the n-grams that occur, each once."""
    columns: Tensor
    """(p,) the place in `ngrams` of each pair's n-gram."""


class Vectors:
    """Vectors of length 1, which move by AdaGrad (Duchi et al., 2011) with one rate for all of a vector."""

    def __init__(self, values: Tensor):
        self.values, self.squares = values, torch.zeros(len(values))

    def move(self, index: Tensor, before: Tensor, gradient: Tensor, rate: float) -> None:
        """Moves the vectors `index`, which are `before` (n, SIZE), up the gradient and along the sphere."""
        gradient = gradient - (gradient * before).sum(dim=1, keepdim=True) * before
        self.squares[index] += gradient.square().sum(dim=1)
        scale = rate / self.squares[index].sqrt().clamp(min=1e-8)
        self.values[index] = normalize(before + scale[:, None] * gradient, dim=1)


class VectorClassifier:
    """Logistic regression on the vectors of texts.

    Args:
        ngrams: (m, SIZE) the vectors of the n-grams.
        share: (m,) in 0..1, the part of its occurrences with which an n-gram is trained on.
        others: (m,) the probabilities with which n-grams are drawn as the others of a text.
        weights: (SIZE, R), where R is 1 for two classes, else their number.
        bias: (R,)
    """

    def __init__(
        self, ngrams: np.ndarray, share: np.ndarray, others: np.ndarray, weights: np.ndarray, bias: np.ndarray
    ):
        self.ngrams, self.share, self.others, self.weights, self.bias = ngrams, share, others, weights, bias

    @classmethod
    def fit(
        cls, x: "csr_matrix", share: np.ndarray, labels: np.ndarray
    ) -> tuple["VectorClassifier", np.ndarray]:
        """Returns the classifier and its probabilities (n, C) of the texts that it was fitted on.

        Equal arguments and threads give equal bits.

        Args:
            x: (n, m) which n-grams a text has.
            share: (m,)
            labels: of the first texts; the others have none.
        """
        from sklearn.linear_model import LogisticRegression

        vectors, ngrams, others = _trained(x, share)
        regression = LogisticRegression(C=10, max_iter=1000).fit(vectors[: len(labels)], labels)
        found = cls(ngrams, share, others, regression.coef_.T, regression.intercept_)
        return found, found._of_vectors(vectors)

    def probabilities(self, x: "csr_matrix") -> np.ndarray:
        """Returns the probabilities (n, C) of other texts; each is independent of the rest."""
        return self._of_vectors(self._placed(x))

    def _of_vectors(self, vectors: np.ndarray) -> np.ndarray:
        logits = vectors @ self.weights + self.bias
        return softmax(np.concatenate([-logits / 2, logits / 2], axis=1) if logits.shape[1] == 1 else logits)

    def _placed(self, x: "csr_matrix") -> np.ndarray:
        """Returns the vectors (n, SIZE) of texts that are trained while those of the n-grams stay."""
        ngrams = torch.from_numpy(self.ngrams)
        drawn = np.random.default_rng(0).choice(len(self.others), DRAWN, p=self.others)
        drawn = ngrams[torch.from_numpy(drawn)]
        found = np.empty((x.shape[0], SIZE), np.float32)
        for start in range(0, x.shape[0], PLACED):
            part = x[start : start + PLACED].tocsc()
            known = np.flatnonzero(np.diff(part.indptr))
            own = ngrams[torch.from_numpy(known)]
            weights = torch.from_numpy((part[:, known].toarray() * self.share[known]).astype(np.float32))
            sizes = weights.sum(dim=1, keepdim=True)
            texts = Vectors(normalize(weights @ own - sizes * drawn.mean(dim=0), dim=1))
            for step in range(PLACES):
                t = texts.values
                gradient = (weights * torch.sigmoid(-SHARPNESS * (t @ own.T))) @ own
                gradient -= NEGATIVES / DRAWN * sizes * (torch.sigmoid(SHARPNESS * (t @ drawn.T)) @ drawn)
                texts.move(torch.arange(len(t)), t, gradient, RATE * (1 - step / PLACES))
            found[start : start + PLACED] = texts.values.numpy()
        return found

    def save(self, path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "VectorClassifier":
        with np.load(path) as arrays:
            return cls(**arrays)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities (n, C) of logits (n, C)."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _trained(x: "csr_matrix", share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the vectors of the texts (n, SIZE) and of the n-grams (m, SIZE), and `others` (m,)."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    texts, ngrams = (Vectors(normalize(torch.randn(n, SIZE, generator=generator), dim=1)) for n in x.shape)
    occurrences = np.bincount(x.indices, minlength=x.shape[1]) * share + 1e-9
    often, others = occurrences / occurrences.sum(), occurrences**0.75 / (occurrences**0.75).sum()
    parts = torch.from_numpy(often).float(), torch.from_numpy(others).float()
    for epoch in range(EPOCHS):
        for done, pairs in _steps(x, share, rng):
            _step(texts, ngrams, pairs, *parts, RATE * (1 - (epoch + done) / EPOCHS))
    return texts.values.numpy(), ngrams.values.numpy(), others


def _step(texts: Vectors, ngrams: Vectors, pairs: Pairs, often: Tensor, others: Tensor, rate: float) -> None:
    """Changes the vectors of the pairs: each text of the step meets each n-gram of it.

    Args:
        often: (m,) the part of all pairs that each n-gram has.
        others: (m,) the probabilities with which n-grams are drawn as the others of a text.
    """
    t, g = texts.values[pairs.texts], ngrams.values[pairs.ngrams]
    cosines = t @ g.T  # (b, u)
    sizes = torch.bincount(pairs.rows, minlength=len(t))
    # Only the n-grams of this step are the others, so they count by how seldom they are in one.
    seldom = 1 / -torch.expm1(-often[pairs.ngrams] * len(pairs.rows))
    weights = NEGATIVES * sizes[:, None] * (others[pairs.ngrams] * seldom)
    slopes = torch.sigmoid(SHARPNESS * cosines).mul_(weights).neg_()
    places = pairs.rows * len(g) + pairs.columns
    slopes.view(-1)[places] += torch.sigmoid(-SHARPNESS * cosines.view(-1)[places])  # a pair is there once
    texts.move(pairs.texts, t, slopes @ g, rate)
    ngrams.move(pairs.ngrams, g, slopes.T @ t, rate)


def _steps(x: "csr_matrix", share: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[float, Pairs]]:
    """Yields the steps of an epoch, each with the part of the epoch that is done."""
    kept = np.flatnonzero(rng.random(len(x.indices), dtype=np.float32) < share[x.indices])
    part = rng.integers(STEPS, size=len(kept), dtype=np.uint8)
    owners = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    for number in range(STEPS):
        chosen = kept[part == number]
        offsets = np.searchsorted(owners[chosen], np.arange(x.shape[0] + 1))
        order = rng.permutation(x.shape[0])
        for start in range(0, len(order), TEXTS):
            texts = order[start : start + TEXTS]
            counts = offsets[texts + 1] - offsets[texts]
            first = offsets[texts] - (np.cumsum(counts) - counts)
            pairs = chosen[np.arange(counts.sum()) + np.repeat(first, counts)]
            if len(pairs) == 0:
                continue
            ngrams, columns = np.unique(x.indices[pairs], return_inverse=True)
            rows = np.repeat(np.arange(len(texts)), counts)
            arrays = (torch.from_numpy(a.astype(np.int64)) for a in (texts, rows, ngrams, columns))
            yield (number + start / len(order)) / STEPS, Pairs(*arrays)
