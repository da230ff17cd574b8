"""Intervals, scores of classes, calibration and curves: against figures that are known."""

import math

import numpy as np
import pytest
from made_runs import make_run

from torch_rnn.page.curves import curves, learning_rates, planned_steps
from torch_rnn.page.finished import read_run
from torch_rnn.page.results import calibration, confusion, scores_of_classes, wilson
from torch_rnn.training.trained_rnn import cosine


def test_wilson_has_the_published_values():
    # Newcombe (1998, Statistics in Medicine 17, 857-872), table I, method 3.
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(right, n, z=1.959964) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20)[1] == pytest.approx(1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("right", "n", "named"), [(1, 0, "n is 0"), (-1, 5, "right is -1"), (6, 5, "right is 6")]
)
def test_wilson_refuses_what_is_no_proportion(right, n, named):
    with pytest.raises(ValueError, match=named):
        wilson(right, n)


def test_the_confusion_matrix_and_the_scores_of_each_class():
    matrix = confusion(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1]), 3)
    assert matrix.tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]
    first, second, third = scores_of_classes(matrix, ["a", "b", "c"])
    assert first == {"name": "a", "precision": 1, "recall": pytest.approx(2 / 3), "n": 3}
    assert second == {"name": "b", "precision": pytest.approx(2 / 3), "recall": 1, "n": 2}
    assert third == {"name": "c", "precision": None, "recall": None, "n": 0}


def test_calibration_counts_each_output_once_and_is_exact_where_the_probabilities_are():
    rng = np.random.default_rng(0)
    said = rng.random(200_000)
    labels = (rng.random(200_000) < said).astype(int)
    found = calibration(labels, np.stack([1 - said, said], axis=1))
    assert found["error"] < 0.01
    assert sum(point["n"] for point in found["points"]) == 200_000
    assert all(point["low"] <= point["true"] <= point["high"] for point in found["points"])
    wrong = calibration(np.zeros(10, dtype=int), np.tile([0.0, 0.0, 1.0], (10, 1)))
    assert wrong["error"] == 1


def test_the_line_stands_at_the_lower_loss_of_the_best_accuracies(tmp_path):
    scores = enumerate(((0.8, 0.1), (0.9, 0.5), (0.9, 0.4), (0.9, 0.6)))
    rows = [
        {"step": str(10 * i), "validation/accuracy": str(accuracy), "validation/loss": str(loss)}
        for i, (accuracy, loss) in scores
    ]
    rows.append({"step": "30", "train/disagreement": "0.25"})
    found = curves(read_run(tmp_path, make_run(tmp_path).data)._replace(metrics=rows))
    assert found["best"] == 20
    assert found["train/disagreement"] == {"steps": [30], "values": [0.25]}


def test_curves_have_what_was_logged_and_the_learning_rate(tmp_path):
    run = read_run(tmp_path, make_run(tmp_path).data)
    found = curves(run)
    assert found["validation/accuracy"] == {"steps": [5, 11], "values": [0.55, 0.61]}
    assert len(found["train/batch_loss"]["steps"]) == 12
    assert found["best"] == 11
    assert planned_steps(run) == 12  # 48 texts in batches of 8, two epochs
    rates = found["learning rate"]
    assert rates["values"] == pytest.approx([0.01 * cosine(step, 12) for step in rates["steps"]])
    run.settings["trainer"]["max_epochs"] = -1
    assert learning_rates(run, 12) is None
    run.settings["model"]["schedule"] = "constant"
    assert set(learning_rates(run, 12)["values"]) == {0.01}


@pytest.mark.parametrize(("limit", "steps"), [(0.5, 6), (4, 8), (100, 12)])
def test_the_planned_steps_obey_the_limits_of_the_trainer(tmp_path, limit, steps):
    run = read_run(tmp_path, make_run(tmp_path).data)
    run.settings["trainer"]["limit_train_batches"] = limit
    assert planned_steps(run) == steps
    run.settings["trainer"]["accumulate_grad_batches"] = 2
    assert planned_steps(run) == 2 * math.ceil(steps / 4)
    run.settings["trainer"]["max_steps"] = 3
    assert planned_steps(run) == 3
