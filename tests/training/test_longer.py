"""A run that is finished, or not, and is then to be trained for more epochs."""

import json
import re
from pathlib import Path

import pytest
from trials import SMALL, arguments, differences, stopped_at, train

from torch_rnn.errors import RunError
from torch_rnn.training.cli import CLI
from torch_rnn.training.resume import check_same_run

CONSTANT = SMALL | {"model.schedule": "constant", "trainer.max_epochs": 2}
LONGER = CONSTANT | {"trainer.max_epochs": 4}


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "long"
    assert train(folder, LONGER) == (0, "")
    return folder


def test_a_finished_run_goes_on_to_the_bits_of_a_long_one(tmp_path, long):
    folder = tmp_path / "run"
    assert train(folder, CONSTANT)[0] == 0
    assert json.loads((folder / "results.json").read_text())["epochs"] == 2
    with stopped_at(50):  # the longer run may be stopped too
        assert train(folder, LONGER, "--resume", "auto")[0] == 143
    assert not (folder / "results.json").exists()
    assert train(folder, LONGER, "--resume", "auto")[0] == 0
    assert differences(folder, long) == []
    assert json.loads((folder / "results.json").read_text())["epochs"] == 4


def test_an_unfinished_run_may_be_made_longer_too(tmp_path, long):
    folder = tmp_path / "run"
    with stopped_at(20):
        assert train(folder, CONSTANT)[0] == 143
    assert train(folder, LONGER, "--resume", "auto")[0] == 0
    assert differences(folder, long) == []


@pytest.mark.bad_input
def test_what_makes_no_sense_is_refused_and_nothing_is_lost(tmp_path):
    folder, cosine = tmp_path / "run", tmp_path / "cosine"
    assert train(folder, CONSTANT)[0] == 0
    assert train(cosine, CONSTANT | {"model.schedule": "cosine"})[0] == 0
    for where, more, message in (
        (
            folder,
            {"trainer.max_epochs": 1},
            "trainer.max_epochs is 1 and was 2 in the run so far (it may only",
        ),
        (folder, {"trainer.max_epochs": 4, "model.hidden_size": 9}, "model.hidden_size is 9 and was 8"),
        (cosine, {"trainer.max_epochs": 4, "model.schedule": "cosine"}, "(the cosine schedule has spread"),
    ):
        before = {path: path.read_bytes() for path in where.rglob("*") if path.is_file()}
        status, error = train(where, CONSTANT | more, "--resume", "auto")
        assert status == 2
        assert message in error
        assert before == {path: path.read_bytes() for path in where.rglob("*") if path.is_file()}
    assert train(folder, LONGER)[0] == 2  # without --resume nothing is overwritten


STOPPING = "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=validation/loss"
SECOND = "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/loss"


def settings_with(*more):
    return CLI([*arguments(Path("run"), CONSTANT | {"trainer.callbacks": "null"}), *more]).settings()


def test_the_progress_bar_may_come_and_go():
    for more in ([], STOPPING):
        settings = settings_with(*more, "--trainer.enable_progress_bar=false")
        check_same_run(settings, settings_with(*more, "--trainer.enable_progress_bar=true"))
        check_same_run(settings_with(*more, "--trainer.callbacks+=RichProgressBar"), settings)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "trainer.callbacks.0.class_path is None and was lightning.pytorch.callbacks.EarlyStopping"),
        ([*STOPPING, "--trainer.callbacks.patience=9"], "callbacks.0.init_args.patience is 9 and was 3"),
        (
            [*SECOND, *STOPPING],
            "callbacks.0.init_args.monitor is train/loss and was validation/loss",
        ),
        (
            [*STOPPING, "--trainer.callbacks+=Callback"],
            "callbacks.1.class_path is lightning.Callback and was None",
        ),
    ],
    ids=["fewer", "changed", "two of a class", "without arguments"],
)
def test_every_change_of_callbacks_is_refused(more, message):
    settings = settings_with(*more)
    with pytest.raises(RunError, match=re.escape(message)):
        check_same_run(settings_with(*STOPPING), settings)


@pytest.mark.bad_input
def test_a_run_that_stopped_early_does_not_go_on(tmp_path):
    early = CONSTANT | {"trainer.max_epochs": 6, "model.learning_rate": 1e-9}  # no validation is better
    patience = "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=validation/loss"
    more = [*patience, "--trainer.callbacks.min_delta=1", "--trainer.callbacks.patience=1"]
    assert train(tmp_path, early, *more)[0] == 0
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] < 6
    status, error = train(tmp_path, early | {"trainer.max_epochs": 9}, *more, "--resume", "auto")
    assert status == 2
    assert "was stopped before its limit, by early stopping or max_time" in error
    assert (tmp_path / "results.json").exists()


@pytest.mark.bad_input
def test_a_checkpoint_of_another_folder_overwrites_no_run(tmp_path):
    for name in ("a", "b"):
        with stopped_at(20):
            assert train(tmp_path / name, CONSTANT)[0] == 143
    before = {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}
    status, error = train(
        tmp_path / "b", CONSTANT, "--resume", str(tmp_path / "a" / "checkpoints" / "last.ckpt")
    )
    assert status == 2
    assert "holds a run, which going on from" in error
    assert before == {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}


@pytest.mark.bad_input
def test_the_cosine_schedule_needs_a_length(tmp_path):
    status, error = train(tmp_path, SMALL | {"model.schedule": "cosine", "trainer.max_epochs": -1})
    assert status == 2
    assert "schedule is cosine; it needs a length" in error
