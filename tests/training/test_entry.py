"""The entry of the training scripts: order of arguments, interruptions, settings that are refused."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from trials import CONFIG, SCRIPT, SMALL, arguments, train

from torch_rnn import ops
from torch_rnn.nn.weights import load_weights
from torch_rnn.training import trainer_settings
from torch_rnn.training.entry import config_first, main

DEFAULT = Path("default.yaml")


def test_the_order_of_arguments_does_not_matter():
    for given in (
        ["--data.train", "a", "--config", "c.yaml", "--data.test", "b"],
        ["--data.train", "a", "--data.test", "b", "--config=c.yaml"],
        ["--data.train", "a", "--data.test", "b", "-c", "c.yaml"],
    ):
        ordered = config_first(given, DEFAULT)
        assert ordered[-4:] == ["--data.train", "a", "--data.test", "b"]
        assert "c.yaml" in " ".join(ordered[:-4])
    assert config_first(["--data.train", "a"], DEFAULT) == ["--config", "default.yaml", "--data.train", "a"]
    assert config_first(["--config", "a", "--x", "1", "--config", "b"], DEFAULT) == [
        "--config", "a", "--config", "b", "--x", "1",
    ]  # fmt: skip


def test_settings_before_config_are_kept(tmp_path, capsys):
    settings = [f"--{name}={value}" for name, value in SMALL.items()]
    given = [*settings, f"--trainer.default_root_dir={tmp_path}", "--config", str(CONFIG), "--check"]
    assert main(DEFAULT, given) == 0
    assert capsys.readouterr().out == f"the settings are valid; the run would be in {tmp_path}\n"


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_ctrl_c_while_packages_are_imported_ends_in_one_line(tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments(tmp_path / "run", SMALL)], stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.strip().splitlines()[-1].startswith("stopped by SIGINT")
    assert "Traceback" not in error


def test_a_closed_output_ends_a_run_quietly_and_it_can_be_resumed(tmp_path, capsys):
    settings = SMALL | {"trainer.max_epochs": 1, "trainer.enable_progress_bar": True}
    given = [*arguments(tmp_path, settings), "--trainer.callbacks=TQDMProgressBar", "--resume=auto"]
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as output, redirect_stdout(output):
        assert main(CONFIG, given) == 1
    error = capsys.readouterr().err
    assert "error" not in error
    assert "Traceback" not in error
    assert main(CONFIG, given) == 0


@pytest.mark.bad_input
@pytest.mark.parametrize("backend", ["triton", "cudnn"])
def test_a_backend_that_does_not_run_on_the_device_is_refused(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(ops, "triton_runs_on", lambda device: False)  # its interpreter runs on a CPU
    settings = SMALL | {"model.backend": backend, "trainer.accelerator": "cpu"}
    status, error = train(tmp_path / "run", settings)
    assert status == 2
    assert error.startswith(f"error: backend is '{backend}'; on cpu it must be one of auto, eager")
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--trainer.callbacks+=ModelCheckpoint"],
            "trainer.callbacks has ModelCheckpoint; the run saves itself",
        ),
        (["--trainer.callbacks=ModelCheckpoint"], "trainer.callbacks has ModelCheckpoint; the run saves"),
        (["--trainer.callbacks+=EMAWeightAveraging"], "trainer.callbacks has EMAWeightAveraging; validation"),
        (["--trainer.callbacks+=Timer"], "trainer.callbacks has Timer; use trainer.max_time"),
        (["--trainer.plugins=AsyncCheckpointIO"], "AsyncCheckpointIO; checkpoints are signed"),
        (["--trainer.enable_checkpointing=false"], "trainer.enable_checkpointing is false; the run always"),
        (["--trainer.limit_predict_batches=3"], "trainer.limit_predict_batches is 3"),
        (["--trainer.use_distributed_sampler=true"], "trainer.use_distributed_sampler is true"),
        (["--trainer.sync_batchnorm=true"], "trainer.sync_batchnorm is true; the model has no batch norm"),
        (["--trainer.barebones=true"], "trainer.barebones is true"),
        (["--trainer.model_registry=x"], "trainer.model_registry is x"),
        (["--trainer.strategy=ddp_spawn"], "trainer.strategy is ddp_spawn"),
        (
            ["--trainer.precision=16-mixed"],
            "trainer.precision is 16-mixed; on this device it must be bf16-mixed",
        ),
        (["--trainer.val_check_interval=00:00:00:01"], "trainer.val_check_interval is 00:00:00:01"),
        (["--model.weight_decay=0.1"], "weight_decay is 0.1; adam has none"),
        (
            ["--model.optimizer=adamw", "--model.weight_decay=-1"],
            "weight_decay is -1.0; it must be at least 0",
        ),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else "",
)
def test_settings_that_would_be_ignored_are_refused_before_the_run_begins(tmp_path, more, message):
    status, error = train(tmp_path / "run", SMALL | {"trainer.accelerator": "cpu"}, *more)
    assert status == 2
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
def test_a_callback_whose_package_is_not_installed_is_refused_before_the_run_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_settings, "find_spec", lambda package: None)
    more = ["--trainer.callbacks+=DeviceStatsMonitor"]
    status, error = train(tmp_path / "run", SMALL | {"trainer.accelerator": "cpu"}, *more)
    assert status == 2
    assert "DeviceStatsMonitor needs a package that is not installed: pip install psutil" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
def test_early_stopping_without_a_validation_ends_in_a_sentence(tmp_path):
    more = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=validation/loss"]
    status, error = train(tmp_path / "run", SMALL | {"trainer.max_steps": 3}, *more)
    assert status == 2
    assert "EarlyStopping looks at the validation after 3 steps, and the first comes after 16" in error
    assert "step 3" not in error
    interval = {"trainer.val_check_interval": 3, "trainer.max_steps": 3}
    assert train(tmp_path / "other", SMALL | interval, *more)[0] == 0
    later = {"trainer.check_val_every_n_epoch": 2, "trainer.max_epochs": 2}
    lenient = [*more, "--trainer.callbacks.strict=false", "--trainer.callbacks.check_on_train_epoch_end=true"]
    assert train(tmp_path / "lenient", SMALL | later, *lenient)[0] == 0


@pytest.mark.bad_input
def test_where_the_steps_of_an_epoch_change_a_missing_score_is_noticed_at_its_end(tmp_path):
    more = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=validation/loss"]
    more += ["--trainer.callbacks+=GradientAccumulationScheduler", '--trainer.callbacks.scheduling={"0": 4}']
    enough = SMALL | {"trainer.max_steps": 6}  # 4 steps an epoch
    assert train(tmp_path / "enough", enough, *more)[0] == 0
    status, error = train(tmp_path / "run", SMALL | {"trainer.max_steps": 2}, *more)
    assert status == 2
    assert "EarlyStopping has no score to compare" in error


def test_a_trial_may_have_fewer_steps_than_the_run(tmp_path):
    status, _ = train(tmp_path / "run", SMALL | {"trainer.min_steps": 9, "trainer.fast_dev_run": True})
    assert status == 0


def test_a_training_that_ends_before_its_first_validation_leaves_its_last_weights(tmp_path, caplog):
    more = ["--trainer.callbacks=TQDMProgressBar"]  # in place of EarlyStopping
    assert train(tmp_path, SMALL | {"trainer.max_steps": 3}, *more) == (0, "")
    assert "the weights of the last step are the chosen ones" in caplog.text
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["best_epoch"], found["epochs"]) == (1, 1)
    trained = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights, _ = load_weights(tmp_path / "model.safetensors")
    assert trained.keys() == {f"rnn.{name}" for name in weights}
    assert all(torch.equal(weights[name], trained[f"rnn.{name}"]) for name in weights)


@pytest.mark.parametrize(
    "more",
    [
        ["--trainer.plugins=LightningEnvironment"],
        ["--trainer.callbacks+=LearningRateMonitor"],
        ["--trainer.profiler=simple"],
        ["--model.optimizer=adamw", "--model.weight_decay=0.1"],
        ["--trainer.reload_dataloaders_every_n_epochs=1"],
    ],
    ids=" ".join,
)
def test_settings_that_are_accepted_work(tmp_path, more):
    assert train(tmp_path / "run", SMALL, *more)[0] == 0
    metrics = (tmp_path / "run" / "metrics.csv").read_text()
    assert ("lr-Adam" in metrics) == ("LearningRateMonitor" in more[0])
