"""The settings of a run: which are refused, and how; that the shipped configurations are complete."""

import inspect
import re
import sys
from pathlib import Path

import pytest
import yaml
from made_reviews import reviews, write_archive
from quickstart_runs import CONFIGS, quickstart

from torch_rnn.training.cli import CLI, TASKS


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
