"""A sweep: every combination in a folder of its own, one table, and on again after a stop."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
from trials import ROOT, SMALL

SWEEP = ROOT / "scripts" / "sweep.py"
FIXED = [f"--{name}={value}" for name, value in SMALL.items()]
FIXED = ["--config", str(ROOT / "configs" / "quickstart.yaml"), *FIXED]


def sweep(folder, *more):
    return subprocess.Popen(
        [sys.executable, str(SWEEP), str(folder), *FIXED, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_seeds_and_settings_end_in_one_table_of_mean_and_spread(tmp_path):
    process = sweep(tmp_path, "--seed_everything", "1,2,none", "--model.hidden_size", "4")
    printed, errors = process.communicate()
    assert process.returncode == 2
    assert 'error: Parser key "seed_everything"' in errors
    assert f"({tmp_path}/seed_everything=none ended with 2; see its log.txt)" in errors
    found = [
        json.loads((tmp_path / f"seed_everything={seed}" / "results.json").read_text()) for seed in (1, 2)
    ]
    (group,) = json.loads((tmp_path / "sweep.json").read_text())
    accuracies = [of["test"]["accuracy"] for of in found]
    assert group["seeds"] == [1, 2]
    assert group["test/accuracy"]["values"] == accuracies
    assert group["test/accuracy"]["mean"] == pytest.approx(statistics.fmean(accuracies))
    assert group["test/accuracy"]["spread"] == pytest.approx(statistics.stdev(accuracies))
    assert f"{statistics.fmean(accuracies):.2%} ± {statistics.stdev(accuracies):.2%}" in printed


def test_a_stopped_sweep_stops_its_runs(tmp_path):
    more = ["--seed_everything", "1,2", "--data.train", "4096", "--jobs", "1"]
    process, first = sweep(tmp_path, *more), tmp_path / "seed_everything=1"
    while not (first / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    assert "start the sweep again to go on" in errors
    assert "stopped by SIGTERM" in (first / "log.txt").read_text()
    assert not (tmp_path / "seed_everything=2").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.hiden_size", "4"], "error: unrecognized arguments: --model.hiden_size"),
        (["--model.hidden_size", "4,0"], "error: hidden_size is 0; it must be at least 1"),
    ],
)
def test_a_setting_that_is_refused_starts_no_run(run, tmp_path, more, message, capsys):
    assert run("sweep", tmp_path / "sweep", *FIXED, *more, "--seed_everything", "1,2,3") == 2
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
    ],
)
def test_refuses_bad_arguments(run, tmp_path, more, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("sweep", tmp_path / "sweep", *more)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
