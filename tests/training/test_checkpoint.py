"""What checkpoint.py promises, in a few tries each (scripts/endurance.py makes many), and what it refuses."""

import json
import pickle
import shutil
import zipfile
from types import SimpleNamespace

import file_trials
import pytest
import torch
import trials
from trials import SMALL, differences, stopped_at, train

from torch_rnn.errors import RunError
from torch_rnn.training.checkpoint import Checkpoints
from torch_rnn.training.checkpoint_file import (
    FOLDER,
    LAST,
    PREVIOUS,
    newest,
    read_checkpoint,
    write_checkpoint,
)
from torch_rnn.training.classifier import Classifier
from torch_rnn.training.resume import check_same_data, check_same_run, run_settings
from torch_rnn.training.seeding import seed_step


@pytest.mark.parametrize(
    ("trial", "tries"),
    [
        (trials.every_step, 6),
        (trials.every_step_of_a_language_model, 6),
        (trials.kills, 3),
        (trials.signals, 3),
        (trials.full_disk, 2),
        (file_trials.kills_in_save, 5),
        (file_trials.damage, 60),
        (file_trials.many_at_once, 1),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_few_tries_of(trial, tries, tmp_path):
    found = trial(tmp_path, tries)
    assert found.tries >= tries
    assert found.failures == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(folder, SMALL) == (0, "")
    return folder


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A run that was stopped before step 20, went on, and was stopped before step 23: two checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    for step in (20, 23):
        with stopped_at(step):
            status, error = train(folder, SMALL, *(["--resume", "auto"] if step == 23 else []))
        assert (status, f"stopped by SIGTERM after step {step}, which is saved" in error) == (143, True)
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    return shutil.copytree(stopped_once, tmp_path / "run")


def flip(path, bit=4000):
    contents = bytearray(path.read_bytes())
    contents[bit // 8] ^= 1 << bit % 8
    path.write_bytes(contents)


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"trainer.val_check_interval": 0.5, "trainer.precision": "64-true"}, (9, 17, 32)),
        ({"trainer.check_val_every_n_epoch": 2, "trainer.max_epochs": 4}, (9, 17, 32)),
        ({"trainer.accumulate_grad_batches": 3, "trainer.limit_train_batches": 11}, (3, 4, 10)),
        ({"trainer.max_steps": 41, "trainer.limit_train_batches": 15}, (9, 17, 32)),
        ({"trainer.callbacks+": "LearningRateMonitor", "trainer.log_every_n_steps": 1}, (9, 17, 32)),
    ],
    ids=str,
)
def test_other_loops_resume_to_the_same_bits_too(tmp_path, more, steps):
    settings = SMALL | more
    assert train(tmp_path / "undisturbed", settings)[0] == 0
    for points in (steps, (-2,)):
        folder = tmp_path / str(points[0])
        for point in points:
            with stopped_at(point):
                assert train(folder, settings, "--resume", "auto")[0] == 143
        assert train(folder, settings, "--resume", "auto")[0] == 0
        assert differences(folder, tmp_path / "undisturbed") == []


def test_the_previous_one_serves_where_the_last_one_is_damaged(stopped, undisturbed, caplog):
    flip(stopped / FOLDER / LAST)
    assert newest(stopped) == stopped / FOLDER / PREVIOUS
    assert f"refused: {stopped / FOLDER / LAST} is damaged" in caplog.text
    good = (stopped / FOLDER / PREVIOUS).read_bytes()
    with stopped_at(22):
        assert train(stopped, SMALL, "--resume", "auto")[0] == 143
    assert (stopped / FOLDER / PREVIOUS).read_bytes() == good  # a damaged one does not take its place
    assert train(stopped, SMALL, "--resume", "auto")[0] == 0
    assert differences(stopped, undisturbed) == []


def test_a_resumed_run_may_be_stopped_in_its_validation_too(stopped, undisturbed):
    for point in (-2, 34, -1):
        with stopped_at(point):
            assert train(stopped, SMALL, "--resume", "auto")[0] == 143
    assert train(stopped, SMALL, "--resume", "auto")[0] == 0
    assert differences(stopped, undisturbed) == []


@pytest.mark.bad_input
def test_where_none_is_valid_nothing_starts_anew(stopped):
    for name in (LAST, PREVIOUS):
        flip(stopped / FOLDER / name)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    status, error = train(stopped, SMALL, "--resume", "auto")
    assert status == 2
    assert "last.ckpt is damaged" in error
    assert f"to start anew, delete {stopped}" in error
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_any_checkpoint_can_be_named_and_the_run_may_have_moved(stopped, undisturbed, tmp_path):
    folder = tmp_path / "elsewhere"
    path = str(stopped / FOLDER / PREVIOUS)
    assert train(folder, SMALL | {"checkpoint.seconds": 1}, "--resume", path)[0] == 0
    assert differences(folder, undisturbed) == []


def test_auto_starts_what_has_not_begun_and_reports_what_is_done(undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(folder, SMALL, "--resume", "auto") == (0, "")
    assert differences(folder, undisturbed) == []
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert trials.entry.main(trials.CONFIG, [*trials.arguments(folder, SMALL), "--resume", "auto"]) == 0
    printed = capsys.readouterr().out
    assert f"{json.loads((folder / 'results.json').read_text())['test']['accuracy']:.2%}" in printed
    assert printed.rstrip().endswith("results.json")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_time_is_counted_over_all_parts_of_a_run(stopped):
    assert train(stopped, SMALL, "--resume", "auto")[0] == 0
    found = json.loads((stopped / "results.json").read_text())
    assert found["epochs"] == 3
    callbacks = read_checkpoint(stopped / FOLDER / LAST)["callbacks"].values()
    (clock,) = [saved for saved in callbacks if "tokens" in saved]
    assert clock["steps"] == 48
    assert 0 < clock["seconds"] < clock["elapsed"] < found["seconds"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seed_everything": 2}, "seed_everything is 2 and was 1 in the run so far"),
        ({"model.hidden_size": 9}, "model.hidden_size is 9 and was 8"),
        ({"trainer.max_epochs": 4}, "trainer.max_epochs is 4 and was 3"),
        ({"data.train": 272}, "data.init_args.train is 272 and was 256"),
        ({"checkpoint.monitor": "validation/loss"}, "checkpoint.monitor is validation/loss and was"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_not_gone_on_with(stopped, undisturbed, more, message, finished):
    status, error = train(undisturbed if finished else stopped, SMALL | more, "--resume", "auto")
    assert status == 2
    assert message in error
    assert "go on with its own settings, or start another with --trainer.default_root_dir" in error
    assert read_checkpoint(stopped / FOLDER / LAST)["global_step"] == 23


def test_a_run_goes_on_with_or_without_cuda_graphs():
    before, now = ({"model": {"hidden_size": 8, "cuda_graph": value}} for value in (True, False))
    check_same_run(run_settings(before), run_settings(now))
    in_an_older_checkpoint = {"model.hidden_size": 8, "model.cuda_graph": True}
    check_same_run(in_an_older_checkpoint, run_settings(now))


def test_of_equally_accurate_weights_those_with_the_lower_loss_are_kept(monkeypatch):
    monkeypatch.setattr("torch_rnn.training.checkpoint._is_in_fit", lambda trainer: True)
    checkpoints, model = Checkpoints(), torch.nn.Linear(1, 1)
    for epoch, (accuracy, loss) in enumerate(
        ((0.8, 0.1), (0.9, float("nan")), (0.9, 0.5), (0.9, 0.4), (0.9, 0.6), (0.9, 0.4))
    ):
        scores = {"validation/accuracy": torch.tensor(accuracy), "validation/loss": torch.tensor(loss)}
        torch.nn.init.constant_(model.weight, epoch)
        checkpoints.on_validation_end(SimpleNamespace(callback_metrics=scores, current_epoch=epoch), model)
    assert checkpoints.best_epoch == 4
    assert checkpoints.best["weight"].item() == 3


@pytest.mark.bad_input
def test_a_checkpoint_of_an_earlier_version_is_named_as_one():
    with pytest.raises(
        RunError, match="the checkpoint is of an earlier version of torch_rnn; finish the run"
    ):
        check_same_data({"data": "1", "vocabulary": "2"}, {"sequences": "1", "vocabulary": "2"})


@pytest.mark.bad_input
def test_other_data_are_not_gone_on_with(stopped, monkeypatch):
    monkeypatch.setattr("torch_rnn.data.grammar.SUBJECTS", ("the film", "the book"))
    status, error = train(stopped, SMALL, "--resume", "auto")
    assert status == 2
    assert "the data have changed since the checkpoint: other sequences, other vocabulary" in error


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, r"there\.ckpt cannot be read \(No such file or directory\); name a checkpoint"),
        (b"", r"there\.ckpt is damaged, cut short or no checkpoint"),
        (b"<html>404</html>", r"there\.ckpt is damaged, cut short or no checkpoint"),
        ("torch.save", r"there\.ckpt is damaged, cut short or no checkpoint"),
        ("pickle", r"there\.ckpt is not a checkpoint of torch_rnn: it holds more than tensors and numbers"),
        ("foreign", r"there\.ckpt is not a checkpoint of a training run"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_never_run(tmp_path, contents, message):
    path, ran = tmp_path / "there.ckpt", tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return pickle.loads, (pickle.dumps(ran.touch),)

    if contents == "torch.save":
        torch.save({"a": 1}, path)
    elif contents == "pickle":
        write_checkpoint(path, {"state_dict": Payload()})
    elif contents == "foreign":
        write_checkpoint(path, {"a": 1})
    elif contents is not None:
        path.write_bytes(contents)
    if contents != "foreign":
        with pytest.raises(RunError, match=message):
            read_checkpoint(path)
    status, error = train(tmp_path / "run", SMALL, "--resume", str(path))
    assert status == 2
    assert "there.ckpt" in error
    assert not ran.exists()
    assert train(tmp_path / "run", SMALL, "--resume", "auto")[0] == 0


def test_it_is_a_zip_file_that_torch_can_load_and_whose_digest_any_tool_can_read(stopped):
    path = stopped / FOLDER / LAST
    assert torch.load(path, weights_only=True)["global_step"] == 23
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256 ")


def test_the_randomness_of_a_step_is_a_function_of_seed_and_step():
    def drawn(seed, step):
        seed_step(seed, step, torch.device("cpu"))
        return torch.rand(4).tolist()

    assert drawn(1, 5) == drawn(1, 5)
    assert len({tuple(drawn(seed, step)) for seed in range(20) for step in range(20)}) == 400


@pytest.mark.bad_input
def test_refuses_bad_settings():
    for settings, message in (
        ({"monitor": "test/accuracy"}, "monitor is 'test/accuracy'; it must be validation/accuracy or"),
        ({"seconds": 61.0}, r"seconds is 61\.0; it must be in 0\.\.60"),
        ({"seconds": float("nan")}, "seconds is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoints(**settings)


@pytest.mark.bad_input
def test_a_validation_score_that_is_never_finite_is_named(tmp_path, monkeypatch):
    def add(self, split, loss, *others):
        plain(self, split, loss * (torch.nan if split == "validation" else 1), *others)

    plain = Classifier._add
    monkeypatch.setattr(Classifier, "_add", add)
    settings = SMALL | {"checkpoint.monitor": "validation/loss", "trainer.max_epochs": 1}
    for more in ((), ("--resume", "auto")):
        status, error = train(tmp_path, settings, *more)
        assert status == 2
        assert "validation/loss was never finite, so no weights can be chosen: the training diverges" in error
        assert "a lower --model.learning_rate or --trainer.gradient_clip_val" in error


@pytest.mark.bad_input
def test_a_training_that_diverges_ends_and_saves_nothing_of_it(tmp_path, monkeypatch):
    folder, step = tmp_path / "run", trials.Checkpoints.on_train_batch_start

    def poison(self, trainer, model, batch, batch_idx):
        step(self, trainer, model, batch, batch_idx)
        if trainer.global_step == 30:
            with torch.no_grad():
                model.rnn.Whh[0, 0] = torch.nan

    monkeypatch.setattr(trials.Checkpoints, "on_train_batch_start", poison)
    status, error = train(folder, SMALL | {"checkpoint.seconds": 0})
    assert status == 2
    assert "the loss is not finite at step 31: the training diverges; lower --model.learning_rate" in error
    state = read_checkpoint(folder / FOLDER / LAST)
    assert state["global_step"] == 30
    assert all(value.isfinite().all() for value in state["state_dict"].values())
