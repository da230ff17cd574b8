"""metrics.csv: rows as they come, new columns at the end, and back to any earlier moment."""

import csv

import pytest

from torch_rnn.errors import RunError
from torch_rnn.training.metrics import Metrics


def test_rows_and_columns_in_the_order_in_which_they_came(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.log_metrics({"epoch": 0, "loss": 0.1 + 0.2}, step=4)
    metrics.log_metrics({"epoch": 0, "accuracy": 0.5}, step=9)
    metrics.log_metrics({"epoch": 1, "loss": 1e-9}, step=14)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "loss", "accuracy"]
    assert [row["step"] for row in rows] == ["4", "9", "14"]
    assert float(rows[0]["loss"]) == 0.1 + 0.2
    assert (rows[1]["loss"], rows[1]["accuracy"]) == ("", "0.5")


def test_restored_it_goes_on_as_if_nothing_had_been(tmp_path):
    rows = [({"epoch": 0, "loss": 0.3}, 1), ({"epoch": 0, "accuracy": 0.5}, 2), ({"epoch": 1, "new": 1.0}, 3)]
    undisturbed, killed = Metrics(tmp_path / "undisturbed"), Metrics(tmp_path / "killed")
    for n, (row, step) in enumerate(rows):
        undisturbed.log_metrics(row, step)
        killed.log_metrics(row, step)
        if n == 1:
            text = killed.text()
    resumed = Metrics(tmp_path / "killed")
    resumed.restore(text)
    assert (tmp_path / "killed").read_text() == text
    resumed.log_metrics(*rows[2])
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_it_can_be_restored_to_nothing(tmp_path):
    Metrics(tmp_path / "metrics.csv").log_metrics({"epoch": 0}, 1)
    Metrics(tmp_path / "metrics.csv").restore("")
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step\n"


@pytest.mark.bad_input
def test_where_it_cannot_be_written_one_sentence_says_so(tmp_path):
    with pytest.raises(RunError, match=r"nowhere/metrics\.csv cannot be written .*--resume auto"):
        Metrics(tmp_path / "nowhere" / "metrics.csv").log_metrics({"epoch": 0}, 1)
