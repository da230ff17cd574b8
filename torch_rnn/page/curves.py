"""The curves of a training: what metrics.csv has, and the learning rate, which is a function of the step."""

from typing import Any

import numpy as np

from torch_rnn.page.finished import FinishedRun
from torch_rnn.training.trained_rnn import cosine

MAX_POINTS = 2000
"""Limit on the points of a curve; more are thinned out evenly."""
NAMES = (
    "train/batch_loss", "train/loss", "validation/loss", "train/accuracy", "validation/accuracy",
    "train/bits_per_character", "validation/bits_per_character", "train/perplexity", "validation/perplexity",
    "train/gradient_norm", "train/disagreement",
)  # fmt: skip


def curves(run: FinishedRun) -> dict[str, Any]:
    """Returns each curve as its steps and values, and the step of the best checkpoint."""
    found = {name: _curve(run.metrics, name) for name in NAMES}
    steps = max((curve["steps"][-1] for curve in found.values() if curve["steps"]), default=0) + 1
    return {**found, "learning rate": learning_rates(run, steps), "best": _best(run)}


def learning_rates(run: FinishedRun, steps: int) -> dict[str, list] | None:
    """Returns the learning rates of the first `steps` steps; None where the schedule's length is unknown."""
    model = run.settings["model"]
    at = np.unique(np.linspace(0, steps - 1, min(steps, 200)).astype(int))
    if model.get("schedule", "constant") == "constant":
        factors = np.ones(len(at))
    else:
        total = planned_steps(run)
        if total is None:
            return None
        factors = np.array([cosine(int(step), total) for step in at])
    return {"steps": at.tolist(), "values": (factors * model["learning_rate"]).tolist()}


def planned_steps(run: FinishedRun) -> int | None:
    """Returns the number of steps over which the schedule is spread; None where it cannot be told."""
    trainer = run.settings["trainer"]
    batches, limit = len(run.data.loader("train")), trainer.get("limit_train_batches")
    if isinstance(limit, float):
        batches = int(batches * limit)
    elif limit is not None:
        batches = min(batches, limit)
    accumulated = trainer.get("accumulate_grad_batches") or 1
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    whole = None if epochs in (None, -1) else epochs * -(-batches // accumulated)
    limits = [limit for limit in (whole, steps if steps not in (None, -1) else None) if limit is not None]
    return min(limits, default=None)


def _curve(metrics: list[dict[str, str]], name: str) -> dict[str, list]:
    points = [(int(row["step"]), float(row[name])) for row in metrics if name in row]
    points = points[:: -(-len(points) // MAX_POINTS) or 1]
    return {"steps": [step for step, _ in points], "values": [value for _, value in points]}


def _best(run: FinishedRun) -> int | None:
    """Returns the step at which the weights were taken that were scored."""
    rows = [row for row in run.metrics if "validation/loss" in row]
    monitor = run.settings.get("checkpoint", {}).get("monitor", "validation/accuracy")
    if not rows or monitor not in rows[0]:
        return None
    sign = 1 if monitor.endswith("accuracy") else -1
    best = max(rows, key=lambda row: (sign * float(row[monitor]), -float(row["validation/loss"])))
    return int(best["step"])
