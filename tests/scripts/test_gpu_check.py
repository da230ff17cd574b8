"""gpu_check.py without a GPU: its table of checks, and its parsers on what the real commands print."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import gpu_trials
import pytest
import torch

from torch_rnn.benchmarks import checks
from torch_rnn.benchmarks.checks import Check
from torch_rnn.training import entry

ROOT = Path(__file__).parents[2]
HARDWARE = {"GPU": "a GPU", "torch": "2.13"}


@pytest.fixture
def script(run):
    return run.module("gpu_check")


def test_without_a_gpu_it_says_so_and_exits_with_2(run, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("gpu_check") == 2
    assert capsys.readouterr().err.strip().endswith("no CUDA device, or this torch was built without CUDA")


@pytest.mark.parametrize(("code", "status"), [("print(1)", 0), ("raise SystemExit(1)", 1)])
def test_exit_status(run, tmp_path, monkeypatch, capsys, code, status):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    commands = {"it": code, "slow": "raise SystemExit(1)"}
    chosen = [
        Check(name, [sys.executable, "-S", "-c", code], lambda output: ({}, ""), 10, quick=name == "it")
        for name, code in commands.items()
    ]
    changes = {"checks": lambda work: chosen, "machine": lambda: HARDWARE}
    assert run("gpu_check", "--quick", "--out", tmp_path / "out", **changes) == status
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["name"] for row in report["checks"]] == ["it"]
    assert run("gpu_check", "--out", tmp_path / "all", **changes) == 1
    assert str(tmp_path / "all" / "report.md") in capsys.readouterr().out


def test_the_table(script, tmp_path, monkeypatch):
    """Names and folders differ, the time limits of --quick fit into the total, and requirements are told."""
    table = script.checks(tmp_path)
    assert (
        len({check.name for check in table}) == len({tuple(check.command) for check in table}) == len(table)
    )
    assert sum(check.limit for check in table if check.quick) <= script.TOTAL
    monkeypatch.setenv("TORCH_RNN_DATA", str(tmp_path))
    monkeypatch.setattr(checks, "sanitizer_path", lambda: None)
    reasons = {check.name: checks.missing(check) for check in table}
    assert "has no IMDB reviews" in reasons["IMDB, one epoch, 32-true"]
    assert "is not installed" in reasons["compute-sanitizer, memcheck"]
    assert not reasons["ladder, cuda"]
    (tmp_path / "aclImdb").mkdir()
    assert not checks.missing(next(check for check in table if check.name == "IMDB, one epoch, 32-true"))


def of(script, name, work):
    """Returns a check, and the arguments behind its script's name."""
    check = next(check for check in script.checks(work) if check.name == name)
    return check, check.command[2:]


def test_scripts_accept_the_arguments_of_the_table(run, script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for check in script.checks(tmp_path):
        for name in ("benchmark", "compare_numpy"):
            if str(script.SCRIPTS / f"{name}.py") in check.command:
                monkeypatch.setattr(sys, "argv", check.command[1:])
                assert run.module(name).arguments().device == "cuda"
    monkeypatch.undo()
    for name, status in (("32-true", 0), ("bf16-mixed", 0), ("CUDA graphs", 2)):  # 2: it needs a GPU
        check, arguments = of(script, f"IMDB, one epoch, {name}", tmp_path)
        assert check.command[1].endswith("train_imdb.py")
        arguments = ["cpu" if argument == "cuda" else argument for argument in arguments]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert entry.main(ROOT / "configs" / "imdb.yaml", [*arguments, "--check"]) == status
    assert not any("env" in check.command for check in script.checks(tmp_path))  # Windows has none
    trials = {check.command[-1] for check in script.checks(tmp_path) if str(script.TRIALS) in check.command}
    assert trials == set(gpu_trials.TRIALS)


def test_figures_of_a_training(script, tmp_path):
    check, arguments = of(script, "quickstart", tmp_path)
    arguments = ["cpu" if argument == "cuda" else argument for argument in arguments]
    small = ["--data.train", 64, "--data.validation", 32, "--data.test", 32, "--trainer.max_epochs", 1]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert entry.main(ROOT / "configs" / "imdb.yaml", [*arguments, *map(str, small)]) == 0
    figures, problem = check.parse("")
    assert figures["epochs"] == 1
    assert figures["ms_per_step"] > 0
    assert problem == f"test accuracy is {figures['test accuracy']:.1%}; it must reach 95%"
    assert script.read_training(tmp_path / "quickstart", 0.0, "")[1] == ""


def test_figures_of_compare_numpy(run, script, tmp_path, capsys):
    check, arguments = of(script, "compare_numpy", tmp_path)
    arguments = ["cpu" if argument == "cuda" else argument for argument in arguments]
    status = run("compare_numpy", *arguments, "--steps", 1, T=20, V=200)
    figures, problem = check.parse(capsys.readouterr().out)
    assert status == (1 if problem else 0)  # so small a batch may be out of tolerance
    assert figures["bptt, largest difference / tolerance"] > 0
    assert figures["bptt, ms a step"] > 0
    path = tmp_path / "compare_numpy.json"
    found = json.loads(path.read_text())
    for holds, want in ((True, ""), (False, "bptt: h is out of tolerance")):
        for rows in found["differences"].values():
            rows[:] = [row | {"holds": True} for row in rows]
        found["differences"]["bptt"][0]["holds"] = holds
        path.write_text(json.dumps(found))
        assert check.parse("")[1] == want


def test_figures_of_the_benchmark(run, script, tmp_path, capsys):
    """On the CPU, the CUDA graphs are plain calls, and a backend that cannot be captured is left out."""
    check, arguments = of(script, "benchmark, float32", tmp_path)
    arguments = ["cpu" if argument == "cuda" else argument for argument in arguments]
    small = {"GRIDS": {"cpu": {"small": [(2, 8)]}}, "T": 12, "V": 20}
    benchmark = run.module("benchmark")
    row = benchmark.row

    def as_one_graph(training):
        if "bptt" in training.__qualname__:
            raise RuntimeError("not permitted when stream is capturing")
        return training

    def replayed(*arguments, **settings):
        return row(*arguments[:6], replays=True)

    vars(benchmark).update(as_one_graph=as_one_graph, **small)
    shape = replayed(2, 8, 12, "cpu", 1)
    assert all(times["replay"]["median"] > 0 for times in shape["milliseconds"].values())
    assert run("benchmark", *arguments, **small, keras_is_installed=lambda: False) == 0
    assert not (tmp_path / "float32" / "benchmark.png").exists()
    path = tmp_path / "float32" / "benchmark.json"
    found = json.loads(path.read_text())
    found["shapes"] = [shape]
    path.write_text(json.dumps(found))
    figures, problem = check.parse(capsys.readouterr().out)
    assert problem == ""
    assert figures["B = 2, T = 12, H = 8, nn.RNN, ms"] > 0
    assert figures["B = 2, T = 12, H = 8, bptt, ms as a CUDA graph"] > 0


def test_figures_of_pytest(script, tmp_path):
    """The table's command with a file of its own, which is quicker than one that imports torch."""
    check, _ = of(script, "tests of ops", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    file = tmp_path / "test_it.py"
    file.write_text("import pytest\n@pytest.mark.filterwarnings('error')\ndef test_cuda(): pass\n")
    command = ["not cuda" if part == "cuda" else part for part in check.command]
    done = subprocess.run([*command[:-1], file], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    figures, problem = check.parse(done.stdout)
    assert figures == {"passed": 1}
    assert problem == ""
    failed = "FAILED tests/a.py::b - assert 1 == 2\n1 failed, 7 passed, 2 skipped, 9 deselected in 3.21s"
    assert check.parse(failed) == (
        {"failed": 1, "passed": 7, "skipped": 2}, "FAILED tests/a.py::b - assert 1 == 2",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no test passed"):
        check.parse("9 deselected in 3.21s")


def test_figures_of_compute_sanitizer(script, monkeypatch):
    ops = sys.modules["torch_rnn.ops"]
    monkeypatch.setattr(ops, "available", lambda *args: ["eager", "bptt"])
    assert gpu_trials.small_trial("cpu")[1] == ["none of this package's kernels runs here"]
    monkeypatch.setitem(ops.BACKENDS, "kernel", ops.BACKENDS["bptt"])
    monkeypatch.setattr(ops, "available", lambda *args: ["eager", "kernel"])
    figures, problems = gpu_trials.small_trial("cpu")
    assert (figures, problems) == ({"backends": "kernel"}, [])
    answer = json.dumps({"figures": figures, "problems": problems})
    start = "========= COMPUTE-SANITIZER\n"
    for summary, count in (
        ("========= ERROR SUMMARY: 0 errors", {"errors": 0}),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", {"hazards": 0}),
    ):
        assert script.read_sanitizer(f"{start}{answer}\n{summary}\n") == (count, "")
    wrong = "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 1 error"
    assert script.read_sanitizer(f"{start}{answer}\n{wrong}\n") == ({"errors": 1}, "1 errors")
    with pytest.raises(IndexError):
        script.read_sanitizer(f"{start}{answer}\n")
