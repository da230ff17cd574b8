"""A run from its configuration to its report: what it leaves, that it can be repeated, what it refuses."""

import csv
import inspect
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from made_reviews import reviews, write_archive

from torch_rnn import RNN
from torch_rnn.errors import RunError
from torch_rnn.nn.weights import load_weights
from torch_rnn.training import main, run
from torch_rnn.training.cli import CLI, TASKS

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "--trainer.max_epochs",
    "2",
    "--trainer.log_every_n_steps",
    "2",
    "--data.train",
    "300",
    "--data.validation",
    "100",
    "--data.test",
    "100",
]


def quickstart(folder, *arguments):
    config = CONFIGS / "quickstart.yaml"
    folder = ["--trainer.default_root_dir", str(folder)]
    return main(config, ["--config", str(config), *SMALL, *folder, *arguments])


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


def test_a_misspelt_setting_gets_a_suggestion(tmp_path, capsys):
    with pytest.raises(SystemExit):
        quickstart(tmp_path / "run", "--model.hiden_size", "5")
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("--model.hiden_size 5; did you mean --model.hidden_size?")


def test_help_says_how_to_list_the_settings_of_the_data(tmp_path, capsys):
    with pytest.raises(SystemExit):
        quickstart(tmp_path / "run", "--help")
    assert "The settings of the data: --data.help CLASS, with the CLASS" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        quickstart(tmp_path / "run", "--data.help", "torch_rnn.data.TextFiles")
    assert "--data.text_column" in capsys.readouterr().out


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.rot", "x"],
        ["--trainer.max_epoch", "3"],
        ["--model.hidden", "3"],
        ["--seed", "3"],
        ["--data.batch_size", "many"],
        ["--model.readout", "first"],
        ["--config", "missing.yaml"],
        ["--seed_everything", "true"],
        ["--trainer.precision", "7"],
        ["--data.class_path", "nonsense.Data"],
        ["--checkpoint.seconds", "soon"],
    ],
)
def test_misspelt_shortened_and_wrong_settings_exit_with_2(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        quickstart(tmp_path / "run", *arguments)
    assert exit.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    hint = re.compile(r"error: .*; (--help lists the settings, --data.help CLASS|did you mean --[\w.]+\?)")
    assert [line for line in lines if hint.match(line)]
    assert not any("Namespace" in line or "Subtypes" in line for line in lines)
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_epochs", "three"], "trainer.max_epochs is three; it must be an integer"),
        (["--data.batch_size", "many"], "batch_size is many; it must be an integer"),
        (["--model.learning_rate", "fast"], "model.learning_rate is fast; it must be a number"),
        (
            ["--model.nonlinearity", "tnah"],
            "model.nonlinearity is tnah; it must be one of tanh, relu",
        ),
        (["--trainer.callbacks", "nope"], "trainer.callbacks is nope; it must be the name of a class"),
    ],
)
def test_a_value_of_a_wrong_kind_is_named_with_what_is_allowed(tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit):
        quickstart(tmp_path / "run", *arguments)
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.hidden_size", "0"], "hidden_size is 0; it must be at least 1"),
        (["--model.learning_rate", "-1"], "learning_rate is -1.0; it must be above 0"),
        (["--model.backend", "cudnn"], "backend is 'cudnn'"),
        (["--model.cuda_graph", "true"], "model.cuda_graph is true; it needs a GPU with CUDA"),
        (["--data.batch_size", "0"], "batch_size is 0; it must be at least 1"),
        (["--data.train", "0"], "train is 0; it must be at least 1"),
        (["--model.readout", "every"], "readout is every; the labels of quickstart need last, mean or max"),
        (["--model.output_size", "3"], "output_size is 3; 2 classes need 1 or 2"),
        (["--model.learning_rate", ".inf"], "learning_rate is inf; it must be above 0"),
        (["--trainer.log_every_n_steps", "0"], "trainer.log_every_n_steps is 0; it must be at least 1"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches is 0"),
        (["--trainer.check_val_every_n_epoch", "0"], "trainer.check_val_every_n_epoch is 0"),
        (["--trainer.max_steps", "0"], "trainer.max_steps is 0; it must be at least 1, or -1"),
        (["--trainer.overfit_batches", "1"], "use trainer.limit_train_batches"),
        (["--trainer.precision", "16-true"], "trainer.precision is 16-true; the weights are float32"),
        (["--trainer.devices", "2.5"], "should be an int > 0"),
        (["--trainer.limit_val_batches", "0.00001"], "limit_val_batches"),
        (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val is -1; it must be at least 0"),
        (["--trainer.min_epochs", "99"], "trainer.min_epochs is 99; it must be at most trainer.max_epochs"),
        (
            ["--trainer.max_steps", "5", "--trainer.min_steps", "6"],
            "trainer.min_steps is 6; it must be at most",
        ),
        (["--trainer.max_epochs", "1", "--trainer.min_steps", "999"], "trainer.max_epochs 1 allows "),
        (["--trainer.default_root_dir", ""], "trainer.default_root_dir is empty; name a folder, or leave it"),
        (["--seed_everything", "-3"], "seed_everything is -3; it must be a whole number in 0..4294967295"),
        (["--seed_everything", "4294967296"], "seed_everything is 4294967296; it must be a whole number in"),
        (["--data.wordd_dropout", "0.1"], "Option 'wordd_dropout' is not accepted"),
        (["--data.validaton", "9"], "Option 'validaton' is not accepted; did you mean validation?"),
        (["--trainer.accelerator", "gpu"], "No supported gpu backend found"),
        (["--trainer.max_epochs", "-5"], "`max_epochs` must be a non-negative integer or -1"),
        (["--checkpoint.seconds", "61"], "seconds is 61.0; it must be in 0..60"),
        (["--resume", "missing.ckpt"], "missing.ckpt cannot be read (No such file or directory)"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs and trainer.max_steps must allow a step"),
        (["--trainer.limit_val_batches", "0"], "trainer.limit_val_batches is 0"),
    ],
)
def test_settings_out_of_range_exit_with_2_and_a_sentence(tmp_path, arguments, message, capsys):
    try:
        status = quickstart(tmp_path / "run", *arguments)
    except SystemExit as exit:  # the parser itself found that the data cannot be made
        status = exit.code
    assert status == 2
    printed = capsys.readouterr().err
    assert "error:" in printed
    assert message in printed


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no settings; each is a line such as model: or seed_everything: 1"),
        ("- 1", "holds no settings"),
        ("a: [\nb: }", "is not YAML (while parsing a flow node"),
        ("a: \udcff", "is not YAML ("),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, text, message, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    for given in (["--config", str(path)], [f"--config={path}"]):
        assert quickstart(tmp_path / "run", *given) == 2
        assert f"error: --config {path} {message}" in capsys.readouterr().err


def test_settings_can_be_given_as_text(tmp_path):
    text = "{model: {" + ", ".join(f"dropout: 0.0{0:0{n}}" for n in range(40)) + ", hidden_size: 9}}"
    assert len(text) > 255
    assert quickstart(tmp_path / "run", "--config", text, "--check") == 0


def settings_of(kind):
    """Returns the names of a class's settings; with **settings it has those of its base, too."""
    found = inspect.signature(kind.__init__).parameters
    names = {name for name, parameter in found.items() if parameter.kind is not parameter.VAR_KEYWORD}
    more = settings_of(kind.__base__) if len(names) < len(found) else set()
    return names - {"self"} | more


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_complete(path, tmp_path, monkeypatch):
    """Each sets every setting of the model and of the data, and is accepted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train"])
    given = [f"--data.{split}={split}.csv" for split in ("train", "test")] if path.stem == "text" else []
    for split in ("train", "test"):
        Path(f"{split}.csv").write_text("text,label\ngood,1\nbad,0\n")
    shipped = yaml.safe_load(path.read_text())
    language = "Stream" in shipped["data"]["class_path"]
    if language:
        Path("text.txt").write_text("to be or not to be")
        monkeypatch.setattr("torch_rnn.data.textstream.find_shakespeare", lambda root: Path("text.txt"))
    if path.stem == "imdb_lm":
        write_archive(Path("aclImdb.tar.xz"), reviews(40, 4))
        given = ["--data.root=.", "--data.unlabelled=false", "--model.negatives=5"]
    cli = CLI(["--config", str(path), *given], TASKS["language" if language else "classification"])
    for settings, thing, linked in (
        (shipped["model"], cli.model, set(cli.task.links)),
        (
            shipped["data"]["init_args"],
            cli.datamodule,
            {"seed", *(["train", "test"] if path.stem == "text" else [])},
        ),
    ):
        assert {*settings, *linked} == settings_of(type(thing))
    assert cli.datamodule.seed == shipped["seed_everything"]
    assert cli.trainer.gradient_clip_val == shipped["trainer"]["gradient_clip_val"]
