"""A run from its configuration to its report: what it leaves, that it repeats, what it does not overwrite."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from made_reviews import write_archive
from quickstart_runs import CONFIGS, quickstart

from torch_rnn import RNN
from torch_rnn.errors import RunError
from torch_rnn.nn.weights import load_weights
from torch_rnn.training import main, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert quickstart(folder) == 0
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_what_a_run_leaves(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "metrics.csv", "curves.png", "model.safetensors", "results.json", "checkpoints",
    }  # fmt: skip
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["last.ckpt"]
    assert (finished / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = results(finished)
    assert found["dataset"] == "quickstart"
    assert found["parameters"] == sum(p.numel() for p in RNN(10000, 32, 1).parameters())
    assert (found["epochs"], found["seed"]) == (2, 1)
    for split in ("test", "validation"):
        assert set(found[split]) == {"accuracy", "loss", "n"}
        assert found[split]["n"] == 100
    for name in ("seconds", "ms_per_step", "tokens_per_second", "peak_memory"):
        assert found[name] > 0
    assert {"python", "torch", "lightning", "torchtext", "numpy", "torch_rnn"} == set(found["versions"])
    assert found["device"]


def test_metrics_are_the_trainings(finished):
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {
        "epoch", "step", "train/batch_loss", "train/gradient_norm", "train/loss", "train/accuracy",
        "validation/loss", "validation/accuracy",
    }  # fmt: skip
    assert sum(bool(row["validation/accuracy"]) for row in rows) == 2
    assert all(float(row["train/gradient_norm"]) > 0 for row in rows if row["train/gradient_norm"])


def test_the_model_file_is_all_that_a_prediction_needs(finished):
    rnn = RNN.load(finished / "model.safetensors")
    state = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    (best,) = [saved["best"] for saved in state["callbacks"].values() if "best" in saved]
    assert all(torch.equal(best[f"rnn.{name}"], value) for name, value in rnn.state_dict().items())
    _, about = load_weights(finished / "model.safetensors")
    assert about["dataset"] == "quickstart"
    assert about["classes"] == ["negative", "positive"]
    assert about["text"]["maxlen"] == 500
    assert about["text"]["vocabulary"][0] == "<unk>"


def test_config_yaml_is_complete_and_runs_again_to_the_same_bits(finished, tmp_path):
    shutil.copy(finished / "config.yaml", tmp_path / "again.yaml")
    again = ["--config", str(tmp_path / "again.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(CONFIGS / "imdb.yaml", again) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        finished / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "run" / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()
    timings = {"seconds", "ms_per_step", "tokens_per_second", "peak_memory"}
    first, second = results(finished), results(tmp_path / "run")
    assert {k: v for k, v in first.items() if k not in timings} == {
        k: v for k, v in second.items() if k not in timings
    }


def test_another_seed_is_another_run(finished, tmp_path):
    assert quickstart(tmp_path / "run", "--seed_everything", "2") == 0
    assert results(tmp_path / "run")["seed"] == 2
    assert results(tmp_path / "run")["test"]["loss"] != results(finished)["test"]["loss"]


@pytest.mark.bad_input
def test_a_finished_run_is_never_overwritten(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert quickstart(finished) == 2
    assert "holds a finished run; delete it, name another with --trainer.default_root_dir, or see its" in (
        capsys.readouterr().err
    )
    assert quickstart(finished, "--check") == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert quickstart(finished, "--check", "--resume", "auto") == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


@pytest.mark.bad_input
def test_an_unfinished_run_is_not_lost_without_asking(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    for more in ([], ["--check"]):
        assert quickstart(tmp_path / "run", *more) == 2
        assert "holds a run that did not finish: go on with it with --resume auto" in capsys.readouterr().err
    assert quickstart(tmp_path / "run", "--check", "--resume", "auto") == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.bad_input
def test_a_damaged_file_of_a_finished_run_is_named_and_can_be_written_again(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    for name, contents in (
        ("results.json", "{}"),
        ("results.json", '{"dataset": "'),
        ("results.json", json.dumps(results(finished) | {"test": {"accuracy": "x", "loss": 0, "n": 0}})),
        ("config.yaml", "[1]"),
    ):
        shutil.copy(finished / "results.json", folder)
        (folder / name).write_text(contents)
        assert quickstart(folder, "--resume", "auto") == 2
        shown = capsys.readouterr()
        assert shown.err.splitlines()[-1].startswith(
            f"error: {folder / name} is missing, damaged or incomplete, though the run is finished; delete "
            f"{folder / 'results.json'}, then --resume auto writes both again"
        )
        assert "Traceback" not in shown.err + shown.out
        assert "accuracy" not in shown.out
    (folder / "results.json").unlink()
    assert quickstart(folder, "--resume", "auto") == 0
    assert results(folder)["test"] == results(finished)["test"]
    assert (folder / "config.yaml").read_text() == (
        (finished / "config.yaml").read_text().replace(str(finished), str(folder))
    )


def test_what_was_killed_before_its_first_checkpoint_starts_anew(finished, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "metrics.csv"):
        shutil.copy(finished / name, tmp_path / "run")
    (tmp_path / "run" / ".results.json.123.part").touch()
    assert quickstart(tmp_path / "run") == 0
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert not list((tmp_path / "run").glob(".*"))


def test_the_path_of_the_results_is_the_last_line_and_quickstart_says_what_it_is_not(tmp_path, capsys):
    assert quickstart(tmp_path) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1] == str(tmp_path / "results.json")
    assert "this is not a result on IMDB" in " ".join(" ".join(lines).split())


def test_without_config_it_takes_the_default_and_names_the_folder_after_it(tmp_path, monkeypatch):
    write_archive(tmp_path / "data" / "aclImdb.tar.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_RNN_DATA", raising=False)
    assert main(CONFIGS / "imdb.yaml", ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]) == 0
    found = results(tmp_path / "runs" / "imdb")
    assert (found["dataset"], found["test"]["n"]) == ("imdb", 12)
    assert list((tmp_path / "data" / "cache").glob("imdb-*/manifest.json"))


def test_foreign_files_are_left_alone(finished, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_text("not ours")
    (tmp_path / "run" / "notes").touch()
    assert quickstart(tmp_path / "run") == 0
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").read_text() == "not ours"
    assert (tmp_path / "run" / "notes").exists()


@pytest.mark.bad_input
def test_two_runs_in_one_folder_are_one_and_a_refusal(tmp_path, capsys):
    tmp_path.joinpath("run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert quickstart(tmp_path / "run") == 2
    assert "is in use by another run" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert quickstart(tmp_path / "file" / "run") == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.bad_input
def test_a_lock_file_that_was_deleted_meanwhile_locks_nothing(tmp_path, monkeypatch):
    class Late(FileLock):
        """Locks a file that another process deletes, at its end, after this one has opened it."""

        def acquire(self, *args, **kwargs):
            super().acquire(*args, **kwargs)
            if not deleted:
                Path(self.lock_file).unlink()
                deleted.append(self.lock_file)

    deleted = []
    monkeypatch.setattr(run, "FileLock", Late)
    with run.claimed(tmp_path), pytest.raises(RunError, match="is in use by another run"):
        run.claimed(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_the_number_of_scored_outputs_is_what_was_scored(tmp_path):
    assert quickstart(tmp_path / "run", "--trainer.limit_test_batches", "1") == 0
    assert results(tmp_path / "run")["test"]["n"] == 64
