"""The weights of n-grams by their vectors, which are trained to tell the n-grams of a text from others.

A text and an n-gram have a vector of length 1 each, with the cosine c. For a text with n n-grams, training
raises

    the sum over its n-grams of log sigmoid(6 c) + 5 n times the mean over others of log sigmoid(-6 c)

after Thongtan and Phienthrakul (2019, "Sentiment Classification Using Document Embeddings Trained with Cosine
Similarity"). n-grams that say little of the classes are mostly left out, after Zhang and Arefyev (2022, "The
Document Vectors Using Cosine Similarity Revisited"). Texts without labels have vectors, too: an n-gram that
few labelled texts have stands beside others that have a similar meaning, and shares their weight. Only the
vectors of the n-grams are used in the end.
"""

from collections.abc import Iterator
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
INVERSE_PENALTY = 100
"""The inverse of the L2 penalty of a regression."""
RECIPE = (SIZE, SHARPNESS, NEGATIVES, EPOCHS, STEPS, TEXTS, RATE, INVERSE_PENALTY)
"""What the weights depend on beside the texts."""


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


def ngram_weights(x: "csr_matrix", share: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the weights (m, R) of n-grams in R logistic regressions, each on the mean vector of a text.

    The mean is over the n-grams of the text, weighted by their `share`. Where w · mean + b is the logit, an
    n-gram with the vector g has the weight share (w · g + b), so that the sum of the weights of a text's
    n-grams is the logit times the sum of their shares: it has the same sign, and grows with the text.

    Equal arguments and threads give equal bits.

    Args:
        x: (n, m) which n-grams a text has.
        share: (m,) in 0..1, the part of its occurrences with which an n-gram is trained on.
        labels: (k, R) zeros and ones for the first k texts; the others have none.
    """
    from sklearn.linear_model import LogisticRegression

    vectors = _trained(x, share)
    known = x[: len(labels)]
    sizes = np.maximum(known @ share, 1e-6)
    means = (known @ (share[:, None] * vectors)) / sizes[:, None]
    found = [LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(means, column) for column in labels.T]
    return share[:, None] * np.stack([vectors @ r.coef_[0] + r.intercept_[0] for r in found], axis=1)


def _trained(x: "csr_matrix", share: np.ndarray) -> np.ndarray:
    """Returns the vectors (m, SIZE) of the n-grams."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    texts, ngrams = (Vectors(normalize(torch.randn(n, SIZE, generator=generator), dim=1)) for n in x.shape)
    occurrences = np.bincount(x.indices, minlength=x.shape[1]) * share + 1e-9
    often, others = occurrences / occurrences.sum(), occurrences**0.75 / (occurrences**0.75).sum()
    parts = torch.from_numpy(often).float(), torch.from_numpy(others).float()
    for epoch in range(EPOCHS):
        for done, pairs in _steps(x, share, rng):
            _step(texts, ngrams, pairs, *parts, RATE * (1 - (epoch + done) / EPOCHS))
    return ngrams.values.numpy()


def _step(texts: Vectors, ngrams: Vectors, pairs: Pairs, often: Tensor, others: Tensor, rate: float) -> None:
    """Changes the vectors of the pairs: each text of the step meets each n-gram of it.

    Args:
        often: (m,) the part of all pairs that each n-gram has.
        others: (m,) the probabilities with which n-grams are drawn as the others of a text.
    """
    t, g = texts.values[pairs.texts], ngrams.values[pairs.ngrams]
    cosines = t @ g.T  # (b, u)
    sizes = torch.bincount(pairs.rows, minlength=len(t))
    # The n-grams of this step stand for all. Each is divided by the probability that it occurs in a step.
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
