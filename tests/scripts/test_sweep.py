"""Sweeps: a folder for every combination, one table, clear errors, and the way on after a stop."""

import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
from trials import CONFIG, PROCESSES, ROOT, SMALL, run_logged

from torch_rnn.training import entry

FIXED = ["--config", str(CONFIG), *(f"--{name}={value}" for name, value in SMALL.items())]

# Stands in for train_imdb.py where a test is about the sweep alone: it starts in milliseconds.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, seed = Path(given["--trainer.default_root_dir"]), given.get("--seed_everything", "1")

def stop(*_):
    time.sleep(0.2)
    print("stopped by SIGTERM")
    sys.exit(143)

if "--check" in sys.argv:
    sys.exit()
if seed == "forever":
    signal.signal(signal.SIGTERM, stop)
    (folder / "metrics.csv").touch()
    time.sleep(60)
if seed == "silent":
    os.kill(os.getpid(), signal.SIGKILL)
if not seed.isdigit():
    sys.exit(f"error: seed {seed} is refused")
scores = {"accuracy": 1 / (1 + int(seed)), "loss": int(seed)}
threads = os.environ["OMP_NUM_THREADS"]
results = {"seed": int(seed), "test": scores, "validation": scores, "threads": threads}
(folder / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def stand_in(tmp_path):
    """Returns the arguments with which a sweep starts the stand-in instead of a training."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return ["--script", str(tmp_path / "stand_in.py")]


def results(folder, seed):
    return json.loads((folder / f"seed_everything={seed}" / "results.json").read_text())


def check_here(command, **_):
    """Stands in for subprocess.run: checks the settings in this process, which has imported torch."""
    with contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            status = entry.main(CONFIG, command[2:])
        except SystemExit as exit:
            status = exit.code
    return subprocess.CompletedProcess(command, status, stderr=error.getvalue())


class Forked:
    """Stands in for subprocess.Popen: starts the training from a process that has imported torch."""

    def __init__(self, command, stdout, **_):
        self.process = PROCESSES.Process(target=run_logged, args=(command[2:], stdout.name))
        self.process.start()

    def wait(self):
        self.process.join()
        return self.process.exitcode


def test_seeds_and_settings_end_in_one_table_of_mean_and_spread(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", check_here)
    monkeypatch.setattr(subprocess, "Popen", Forked)
    arguments = [*FIXED, "--seed_everything", "1,2,none", "--model.hidden_size", "4"]
    assert run("sweep", tmp_path, *arguments) == 2
    printed, errors = capsys.readouterr()
    assert "error: seed_everything is none; it must be an integer" in errors
    assert f"({tmp_path}/seed_everything=none ended with 2; see its log.txt)" in errors
    (group,) = json.loads((tmp_path / "sweep.json").read_text())
    accuracies = [results(tmp_path, seed)["test"]["accuracy"] for seed in (1, 2)]
    assert group["seeds"] == [1, 2]
    assert group["test/accuracy"]["values"] == accuracies
    assert group["test/accuracy"]["mean"] == pytest.approx(statistics.fmean(accuracies))
    assert group["test/accuracy"]["spread"] == pytest.approx(statistics.stdev(accuracies))
    assert f"{statistics.fmean(accuracies):.2%} ± {statistics.stdev(accuracies):.2%}" in printed
    monkeypatch.setattr(subprocess, "Popen", None)  # other settings in the same folders are refused at once
    assert run("sweep", tmp_path, *FIXED, "--seed_everything", "1,2", "--model.hidden_size", "8") == 2
    assert "hidden_size" in capsys.readouterr().err


def test_a_stopped_sweep_stops_its_runs(tmp_path, stand_in):
    command = [sys.executable, ROOT / "scripts" / "sweep.py", tmp_path, *stand_in, "--jobs", "1"]
    command += ["--seed_everything", "forever,2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    first = tmp_path / "seed_everything=forever"
    while not (first / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    assert "start the sweep again to go on" in errors
    assert "stopped by SIGTERM" in (first / "log.txt").read_text()
    assert not (tmp_path / "seed_everything=2").exists()


@pytest.mark.parametrize("given", [None, "5"])
def test_runs_share_the_usable_cores_unless_omp_num_threads_is_set(
    run, tmp_path, stand_in, monkeypatch, given
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert run("sweep", tmp_path, *stand_in, "--seed_everything", "1,2", "--jobs", 2) == 0
    assert [results(tmp_path, seed)["threads"] for seed in (1, 2)] == [given or "3"] * 2


@pytest.mark.bad_input
def test_only_an_error_of_this_attempt_is_shown(run, tmp_path, stand_in, capsys):
    folder = tmp_path / "seed_everything=silent"
    folder.mkdir()
    (folder / "log.txt").write_text("error: an earlier attempt\n")
    assert run("sweep", tmp_path, *stand_in, "--seed_everything", "silent,none") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: no message ({folder} ended with -9; see its log.txt)",
        f"error: seed none is refused ({tmp_path}/seed_everything=none ended with 1; see its log.txt)",
    ]
    assert (folder / "log.txt").read_text() == "error: an earlier attempt\n"


@pytest.mark.bad_input
def test_a_folder_that_cannot_be_made_is_one_sentence(run, tmp_path, stand_in, capsys):
    (tmp_path / "file").touch()
    assert run("sweep", tmp_path / "file", *stand_in, "--seed_everything", "1,2") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path}/file/seed_everything=1 cannot be written or read (Not a directory); "
        f"mend that, then start the sweep again"
    ]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.hiden_size", "4"], "error: unrecognized arguments: --model.hiden_size"),
        (["--model.hidden_size", "4,0"], "error: hidden_size is 0; it must be at least 1"),
    ],
)
def test_a_setting_that_is_refused_starts_no_run(run, tmp_path, more, message, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", check_here)
    more = [*more, "--seed_everything", "1,2,3", "--jobs", "1"]  # one check at a time redirects stderr
    assert run("sweep", tmp_path / "sweep", *FIXED, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "sweep").exists()


def test_every_value_is_checked_once(run):
    script = run.module("sweep")
    tried = {"seed_everything": ["1", "2"], "model.hidden_size": ["4", "8"], "model.readout": ["last", "max"]}
    checked = script.to_check(list(script.combinations(tried, ROOT)))
    assert [tuple(run.settings.values())[1:] for run in checked] == [
        ("4", "last"),
        ("4", "max"),
        ("8", "last"),
    ]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["--script", "nowhere.py"], "--script is nowhere.py, which does not exist"),
        (["--model.hidden_size"], "--model.hidden_size stands alone; settings are given as --name value"),
        (["64"], "64 stands alone"),
        (["--seed_everything", "1,2,1"], "--seed_everything is 1,2,1; its values must be different, as must"),
        (["--data.root", "a/b,a_b"], "--data.root is a/b,a_b; its values must be different, as must their"),
        (
            ["--trainer.default_root_dir", "runs/mine"],
            "--trainer.default_root_dir is set by the sweep; name the folder of the sweep, in which each run "
            "gets its own",
        ),
        (["--resume=auto"], "--resume is set by the sweep; leave it out, each run starts with --resume auto"),
    ],
)
def test_refuses_bad_arguments(run, tmp_path, more, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("sweep", tmp_path / "sweep", *more)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_language_model_has_its_own_scores(run, tmp_path):
    sweep, runs = run.module("sweep"), []
    for seed, loss in (("1", 1.5), ("2", 1.7)):
        runs.append(sweep.Run({"seed_everything": seed}, tmp_path / seed))
        runs[-1].folder.mkdir()
        validation = {"bits_per_character": 2 * loss, "loss": loss, "n": 9}
        (runs[-1].folder / "results.json").write_text(
            json.dumps({"seed": int(seed), "validation": validation})
        )
    (group,) = sweep.merged(runs)
    assert group["validation/loss"]["mean"] == pytest.approx(1.6)
    assert [column.header for column in sweep.table([group]).columns] == [
        "runs", "validation bits_per_character", "validation loss"
    ]  # fmt: skip
