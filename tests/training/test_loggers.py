"""Loggers beside metrics.csv: they get the same rows, and after a resume each row once."""

import csv
import importlib.util

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trials import SMALL, stopped_at, train

SETTINGS = SMALL | {"checkpoint.seconds": 0.01}
LOGGERS = {
    "TensorBoardLogger": lambda folder: scalars(folder),
    "CSVLogger": lambda folder: cells(folder / "metrics.csv"),
}


def cells(path):
    """Returns (column, step, value) of a CSV file of metrics, sorted, without the epochs and test scores."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(
        (name, int(row["step"]), float(value))
        for row in rows
        for name, value in row.items()
        if value and name.startswith(("train/", "validation/"))
    )


def scalars(folder):
    """Returns the same of a folder of TensorBoard events."""
    events = EventAccumulator(str(folder)).Reload()
    return sorted(
        (tag, event.step, event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
        if tag.startswith(("train/", "validation/"))
    )


def with_logger(name, folder):
    return [f"--trainer.logger={name}", f"--trainer.logger.save_dir={folder}"]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_gets_the_rows_of_metrics_csv_once_over_a_resume(tmp_path, name):
    more, logged = with_logger(name, tmp_path / "logs"), tmp_path / "logs" / "lightning_logs"
    with stopped_at(20):
        assert train(tmp_path / "run", SETTINGS, *more)[0] == 143
    assert train(tmp_path / "run", SETTINGS, *more, "--resume", "auto")[0] == 0
    assert [path.name for path in logged.iterdir()] == ["version_0"]
    wanted, found = cells(tmp_path / "run" / "metrics.csv"), LOGGERS[name](logged / "version_0")
    assert [cell[:2] for cell in found] == [cell[:2] for cell in wanted]
    assert [cell[2] for cell in found] == pytest.approx([cell[2] for cell in wanted], rel=1e-6)


def test_rows_after_the_checkpoint_are_not_written_twice(tmp_path):
    more = with_logger("CSVLogger", tmp_path / "logs")
    with stopped_at(20):
        assert train(tmp_path / "run", SETTINGS, *more)[0] == 143
    with stopped_at(30):  # its rows are lost: the run goes on from the checkpoint of step 20 again
        train(tmp_path / "run", SETTINGS | {"checkpoint.seconds": 60}, *more, "--resume", "auto")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    assert train(tmp_path / "run", SETTINGS, *more, "--resume", "auto")[0] == 0
    logged = tmp_path / "logs" / "lightning_logs"
    assert cells(logged / "version_0" / "metrics.csv") == cells(tmp_path / "run" / "metrics.csv")


@pytest.mark.parametrize(("name", "other"), [tuple(LOGGERS), tuple(LOGGERS)[::-1]])
def test_a_logger_of_another_class_or_run_changes_no_log(tmp_path, name, other):
    settings, logged = SMALL | {"trainer.max_epochs": 2}, tmp_path / "logs" / "lightning_logs"
    with stopped_at(20):
        assert train(tmp_path / "run", settings, *with_logger(name, tmp_path / "logs"))[0] == 143
    before = {path: path.read_bytes() for path in logged.rglob("*") if path.is_file()}
    assert before
    for version, (folder, logger, checkpoint) in enumerate(
        (
            (tmp_path / "copy", name, tmp_path / "run" / "checkpoints" / "last.ckpt"),
            (tmp_path / "run", other, "auto"),
        ),
        start=1,
    ):
        more = with_logger(logger, tmp_path / "logs")
        assert train(folder, settings, *more, "--resume", str(checkpoint)) == (0, "")
        wanted, found = cells(folder / "metrics.csv"), LOGGERS[logger](logged / f"version_{version}")
        assert [cell[:2] for cell in found] == [cell[:2] for cell in wanted]
    assert before == {path: path.read_bytes() for path in logged.glob("version_0/**/*") if path.is_file()}


def test_the_settings_and_the_test_scores_are_logged_too(tmp_path):
    assert train(tmp_path / "run", SETTINGS, *with_logger("CSVLogger", tmp_path / "logs"))[0] == 0
    folder = tmp_path / "logs" / "lightning_logs" / "version_0"
    assert "model.hidden_size: 8" in (folder / "hparams.yaml").read_text()
    assert "test/accuracy" in (folder / "metrics.csv").read_text()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.logger=true"], "trainer.logger is true; metrics.csv is always written"),
        (["--trainer.logger=false"], "trainer.logger is false; metrics.csv is always written"),
        (
            ["--trainer.logger=CometLogger"],
            "CometLogger needs a package that is not installed: pip",
        ),
    ],
)
def test_loggers_that_cannot_be_are_refused_in_a_sentence(tmp_path, more, message):
    if "Comet" in message and importlib.util.find_spec("comet_ml"):
        pytest.skip("comet_ml is installed here, so no package is missing")
    status, error = train(tmp_path / "run", SETTINGS, *more)
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
