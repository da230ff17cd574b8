"""The scripts that are not a training: compare_numpy.py and predict.py."""

import contextlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from torch_rnn import RNN, testing
from torch_rnn.benchmarks import language
from torch_rnn.data.imdb import find_reviews
from torch_rnn.errors import RunError
from torch_rnn.ops import BACKENDS, available


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


@contextlib.contextmanager
def closed_output():
    """Makes standard output a pipe whose reader has closed it."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as output, contextlib.redirect_stdout(output):
        yield


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compare_numpy_finds_every_tensor_in_tolerance(run, tmp_path, capsys, dtype):
    assert run("compare_numpy", "--steps", 2, "--dtype", dtype, "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    names = ["h", "logits", "loss", "dWxh", "dWhh", "dWhy", "dbh", "dby"]
    names += [f"{name} after 2 steps" for name in ("Wxh", "Whh", "Why", "bh", "by")]
    assert set(found["differences"]) == set(available("cpu")) - {"triton"}
    for rows in found["differences"].values():
        assert sorted(row["name"] for row in rows) == sorted(names)
        assert all(row["holds"] and row["relative"] <= row["tolerance"] < 1e-3 for row in rows)
    assert found["batch"] == {"B": 32, "T": 500, "V": 10000, "H": 32}
    assert set(found["milliseconds_per_step"]) == {"NumPy"} | set(found["differences"])
    assert "OUT" not in capsys.readouterr().out


def test_compare_numpy_exits_with_1_where_a_row_is_out_of_tolerance(run, monkeypatch, capsys):
    monkeypatch.setitem(testing.TOLERANCES, torch.float32, 1e-9)
    assert run("compare_numpy", "--steps", 1) == 1
    assert "OUT" in capsys.readouterr().out


@pytest.mark.bad_input
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
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good\n\nbad bad\n")))
    assert run("predict", model / "model.safetensors") == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        "positive", "negative", "negative",
    ]  # fmt: skip


def test_predict_takes_a_long_text_with_full_stops_and_no_file(run, model, tmp_path, capsys):
    assert run("predict", model, "good. " * 60 + "good!") == 0
    assert capsys.readouterr().out.startswith("positive")
    (tmp_path / "lines.txt").write_text("good")
    with pytest.raises(SystemExit, match="2"):
        run("predict", model, tmp_path / "lines.txt")
    assert "is a file, not a text; to label its lines" in capsys.readouterr().err


@pytest.mark.bad_input
def test_predict_refuses_lines_that_are_not_utf_8(run, model, capsys, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"good\nbad caf\xe9\n"), "utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", lines)
    assert run("predict", model) == 2
    assert "error: line 2 of standard input is not UTF-8 (invalid continuation" in capsys.readouterr().err


@pytest.mark.bad_input
def test_page_refuses_where_it_cannot_write(run, tmp_path, capsys):
    assert run("page", tmp_path / "run", "--out", tmp_path) == 2
    assert f"error: --out {tmp_path} cannot be written, since it is a folder" in capsys.readouterr().err


@pytest.mark.bad_input
def test_page_names_no_setting_that_it_lacks(run, tmp_path, monkeypatch, capsys):
    def missing(*_, **settings):
        monkeypatch.setattr("torch_rnn.data.imdb.download", refuse)
        return find_reviews(tmp_path / "gone")

    def refuse(*_):
        raise RunError("there is no network")

    monkeypatch.setattr("torch_rnn.page.write_page", missing, raising=False)
    assert run("page", tmp_path) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: IMDB is not under {tmp_path / 'gone'}, and there is no network. Put")
    assert error.endswith("aclImdb folder there")


@pytest.mark.bad_input
def test_predict_refuses_what_is_no_model_for_text(run, model, tmp_path, capsys):
    RNN(2, 2, 1).save(tmp_path / "numbers", dataset="addition")
    (tmp_path / "rubbish").write_text("rubbish")
    text = {"maxlen": 4, "vocabulary": ["<unk>", "good", "bad"]}
    RNN(2, 2, 1).save(tmp_path / "other words", classes=["negative", "positive"], text=text)
    for path, message in (
        (tmp_path / "missing", "No such file"),
        (tmp_path / "numbers", "was trained on addition, not on text"),
        (tmp_path / "rubbish", "is not a weights file"),
        (tmp_path / "other words", "has 3 words and weights for 2; its vocabulary is another one's"),
    ):
        assert run("predict", path, "good") == 2
        assert message in capsys.readouterr().err


def test_a_closed_output_ends_a_script_quietly_and_loses_no_file(run, model, tmp_path, capsys):
    compared = {"bptt": []}, {"NumPy": 1.0}
    for arguments, changes in (
        (("predict", model, "good", "bad"), {}),
        (("compare_numpy", "--json", tmp_path / "found.json"), {"compare": lambda *args: compared}),
    ):
        with closed_output(), pytest.raises(SystemExit, match="1"):
            run(*arguments, **changes)
    assert json.loads((tmp_path / "found.json").read_text())["milliseconds_per_step"] == {"NumPy": 1.0}
    assert capsys.readouterr() == ("", "")


def test_another_broken_pipe_is_not_hidden(run, model):
    def broken(*args):
        raise BrokenPipeError("a worker has died")

    with pytest.raises(BrokenPipeError, match="a worker has died"):
        run("predict", model, "good", predictions=broken)


@pytest.mark.parametrize("moment", ["import", "main"])
@pytest.mark.parametrize("name", ["predict", "compare_numpy"])
def test_ctrl_c_ends_a_script_in_one_line(run, model, monkeypatch, capsys, name, moment):
    def interrupt(*args):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    imported, work = {
        "predict": ("torch_rnn.training.text_classifier", "predictions"),
        "compare_numpy": ("torch_rnn.benchmarks.timing", "compare"),
    }[name]
    if moment == "import":
        module = ModuleType(imported)
        module.__getattr__ = interrupt
        monkeypatch.setitem(sys.modules, imported, module)
    with pytest.raises(SystemExit, match="130"):
        run(name, *([model, "good"] if name == "predict" else []), **{work: interrupt})
    assert capsys.readouterr().err == "stopped by SIGINT\n"


SMALL = {
    "GRIDS": {"cpu": {"small": [(2, 8), (3, 4)]}}, "T": 12, "V": 20, "TIMES": (4, 8),
    "memory": lambda names, *args: dict.fromkeys(names, 2**20), "keras_is_there": lambda: False,
    "LANGUAGE": (language.Sizes(2, 5, 4, 6, 10), language.Sizes(2, 5, 4, 30, 10)),
}  # fmt: skip


def test_benchmark_checks_then_times_and_writes_the_readmes_table(run, tmp_path):
    readmes = [tmp_path / "README.md", tmp_path / "scripts" / "README.md"]
    readmes[1].parent.mkdir()
    for readme in readmes:
        readme.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    assert run("benchmark", "--turns", 1, "--out", tmp_path, "--readme", **SMALL, ROOT=tmp_path) == 0
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert [(shape["B"], shape["H"]) for shape in found["shapes"]] == [(2, 8), (3, 4)]
    assert [shape["T"] for shape in found["times"]] == [4, 8]
    assert all(row["milliseconds"]["launch by launch"]["median"] > 0 for row in found["training_step"])
    for shape in found["shapes"]:
        assert {"bptt", "nn.RNN"} <= set(shape["milliseconds"])
        for timing in shape["milliseconds"].values():
            for times in (timing["forward"], timing["training"]):
                assert 0 < times["low"] <= times["median"] <= times["high"]
    few, many = found["language"]
    assert set(few["milliseconds"]) == {language.OURS, language.PEER}
    assert set(many["milliseconds"]) == {language.OURS, language.SAMPLED, language.PEER} == set(many["bytes"])
    table = (tmp_path / "benchmark.md").read_text()
    assert "| 2, 8 | " in table
    assert "| 30 | " in table
    assert readmes[1].read_text() == f"before\n<!-- benchmark -->\n{table}<!-- /benchmark -->\nafter\n"
    short = readmes[0].read_text().removeprefix("before\n<!-- benchmark -->\n")
    assert table.startswith(short.removesuffix("<!-- /benchmark -->\nafter\n"))
    assert (tmp_path / "scripts" / "benchmark.png").exists()
    assert (tmp_path / "benchmark.png").read_bytes()[:4] == b"\x89PNG"


def test_benchmark_refuses_to_time_a_wrong_backend(run, tmp_path, monkeypatch, capsys):
    right = BACKENDS["bptt"]
    monkeypatch.setitem(BACKENDS, "bptt", lambda *args: tuple(1.0001 * state for state in right(*args)))
    assert run("benchmark", "--turns", 1, "--out", tmp_path, **SMALL) == 1
    assert "bptt differs from eager at B = 2, H = 8; not timed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_benchmark_refuses_to_time_a_wrong_language_model(run, tmp_path, monkeypatch, capsys):
    right = language.sampled_cross_entropy
    monkeypatch.setattr(language, "sampled_cross_entropy", lambda *args: 1.0001 * right(*args))
    assert run("benchmark", "--turns", 1, "--out", tmp_path, **SMALL) == 1
    assert "torch_rnn, sampled differs from torch.nn at V = 6; not timed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_scaling_counts_speed_and_bytes(run, tmp_path, monkeypatch, capsys):
    def trained(processes, rows, settings):
        return {"tokens_per_second": 1000 * processes**0.5, "ms_per_step": 1.0}

    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    settings = ["--config", config, "--data.train", "3000", "--data.validation", "10", "--data.test", "10"]
    assert run("scaling", "--processes", 1, 4, "--rows", 3, *settings, trained=trained, BATCHES=5) == 0
    printed = capsys.readouterr().out
    assert "50%" in printed  # 2,000 tokens a second from 4 processes, each of which alone has 1,000
    script = run.module("scaling")
    batches = script.Batches(part=10, whole=15, columns=128, rest=100, Wxh=12800)
    assert script.sent(2, batches) == {
        "all gradients": 12900, "columns, gathered": 10 * 132 + 100, "columns, summed": 40 + 15 * 128 + 100,
    }  # fmt: skip
    assert set(script.sent(1, batches).values()) == {0}
