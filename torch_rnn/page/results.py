"""The result of a run: accuracy with its interval, scores of each class, confusion matrix and calibration."""

import math
from typing import Any

import numpy as np

from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.predictions import Predictions

MAX_CLASSES = 20
"""Limit on the classes that have scores of their own and a confusion matrix."""
BINS = 10
"""Bins of the calibration curve."""
Z = 1.96


def wilson(right: float, n: int, z: float = Z) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion, `right` of n (Wilson, 1927).

    Raises ValueError for n below 1 or `right` outside 0..n.
    """
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1")
    if not 0 <= right <= n:
        raise ValueError(f"right is {right}; it must be in 0..{n}")
    p = right / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


def result(run: FinishedRun, found: Predictions) -> dict[str, Any]:
    """Returns what the first panel shows."""
    classes = list(run.data.classes)
    splits = {}
    for split in ("test", "validation"):
        scores = run.results[split]
        low, high = wilson(round(scores["accuracy"] * scores["n"]), scores["n"])
        splits[split] = {**scores, "low": low, "high": high}
    few = len(classes) <= MAX_CLASSES
    matrix = confusion(found.labels, found.chosen, len(classes)) if few else None
    return {
        "splits": splits,
        "classes": scores_of_classes(matrix, classes) if few else None,
        "confusion": matrix.tolist() if few else None,
        "calibration": calibration(found.labels, found.probabilities),
        "scored": len(found.labels),
        "sequences": len(found.rows),
        "of": found.of,
        "remarks": run.data.remarks(run.rnn),
    }


def confusion(labels: np.ndarray, chosen: np.ndarray, classes: int) -> np.ndarray:
    """Returns how often each class (row) was called each class (column), (classes, classes)."""
    return np.bincount(labels * classes + chosen, minlength=classes * classes).reshape(classes, classes)


def scores_of_classes(matrix: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Returns the precision, the recall and the number of examples of each class; None where it has none."""
    rows = []
    for i, name in enumerate(classes):
        called, real, right = matrix[:, i].sum(), matrix[i].sum(), matrix[i, i]
        rows.append(
            {
                "name": name,
                "precision": right / called if called else None,
                "recall": right / real if real else None,
                "n": int(real),
            }
        )
    return rows


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Returns the calibration curve.

    With two classes, it compares the probability of the second one with how often it is right; with more, the
    probability of the most probable class. `error` is the mean distance, weighted by the numbers (Naeini et
    al., 2015).
    """
    two = probabilities.shape[1] == 2
    said = probabilities[:, 1] if two else probabilities.max(axis=1)
    true = labels == 1 if two else labels == probabilities.argmax(axis=1)
    said, true = (
        said[np.isfinite(said)],
        true[np.isfinite(said)],
    )  # NaN, of logits that overflow, is in no bin
    bins = np.minimum((said * BINS).astype(int), BINS - 1)
    points, error = [], 0.0
    for i in range(BINS):
        inside = bins == i
        if n := int(inside.sum()):
            low, high = wilson(int(true[inside].sum()), n)
            mean, part = float(said[inside].mean()), float(true[inside].mean())
            points.append({"said": mean, "true": part, "low": low, "high": high, "n": n})
            error += abs(mean - part) * n / len(said)
    return {"points": points, "error": error}
