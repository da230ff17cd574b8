"""The scripts that are not a training: compare_numpy.py and predict.py."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
import torch

from torch_rnn import RNN, parity
from torch_rnn.recurrence import BACKENDS

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def run(monkeypatch):
    """run(script, *arguments): its main() in this process, and its exit status."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return script.main()

    return run


@pytest.fixture
def model(tmp_path):
    """A model of three words: "good" is positive, "bad" negative, and every other word nothing."""
    rnn = RNN(3, 2, 1, init="seed")
    with torch.no_grad():
        rnn.Wxh.copy_(torch.tensor([[0.0, 3.0, -3.0], [0.0, 0.0, 0.0]]))
        rnn.Whh.zero_().add_(torch.eye(2))
        rnn.Why.copy_(torch.tensor([[4.0, 0.0]]))
    text = {"maxlen": 4, "vocabulary": ["<unk>", "good", "bad"]}
    rnn.save(tmp_path / "model.safetensors", dataset="made", classes=["negative", "positive"], text=text)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compare_numpy_finds_every_tensor_in_tolerance(run, tmp_path, capsys, dtype):
    assert run("compare_numpy", "--steps", 2, "--dtype", dtype, "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    names = ["h", "logits", "loss", "dWxh", "dWhh", "dWhy", "dbh", "dby"]
    names += [f"{name} after 2 steps" for name in ("Wxh", "Whh", "Why", "bh", "by")]
    assert set(found["differences"]) == set(BACKENDS)
    for rows in found["differences"].values():
        assert sorted(row["name"] for row in rows) == sorted(names)
        assert all(row["holds"] and row["relative"] <= row["tolerance"] < 1e-3 for row in rows)
    assert found["batch"] == {"B": 32, "T": 500, "V": 10000, "H": 32}
    assert set(found["milliseconds_per_step"]) == {"NumPy", *BACKENDS}
    assert "OUT" not in capsys.readouterr().out


def test_compare_numpy_exits_with_1_where_a_row_is_out_of_tolerance(run, monkeypatch, capsys):
    monkeypatch.setitem(parity.TOLERANCES, torch.float32, 1e-9)
    assert run("compare_numpy", "--steps", 1) == 1
    assert "OUT" in capsys.readouterr().out


def test_compare_numpy_refuses_bad_arguments(run, capsys):
    for arguments, message in (
        (["--steps", 0], "--steps is 0; it must be at least 1"),
        (["--dtype", "float16"], "invalid choice"),
        (["--json", "missing/file.json"], "missing is not a folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run("compare_numpy", *arguments)
        assert message in capsys.readouterr().err


def test_predict_labels_arguments_and_lines(run, model, capsys, monkeypatch):
    assert run("predict", model, "A GOOD film.", "bad", "good but then it is bad") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["positive", "negative", "negative"]
    assert all(0.5 <= float(row[1]) <= 1 for row in rows)
    assert rows[0][2] == "A GOOD film."
    monkeypatch.setattr(sys, "stdin", io.StringIO("good\n\nbad bad\n"))
    assert run("predict", model / "model.safetensors") == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        "positive", "negative", "negative",
    ]  # fmt: skip


def test_predict_refuses_what_is_no_model_for_text(run, model, tmp_path, capsys):
    RNN(2, 2, 1).save(tmp_path / "numbers", dataset="addition")
    (tmp_path / "rubbish").write_text("rubbish")
    for path, message in (
        (tmp_path / "missing", "No such file"),
        (tmp_path / "numbers", "was trained on addition, not on text"),
        (tmp_path / "rubbish", "is not a weights file"),
    ):
        assert run("predict", path, "good") == 2
        assert message in capsys.readouterr().err
