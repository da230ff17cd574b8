"""gpu_check.py without a GPU: its runner on fake commands, its parsers on what the real commands print."""

import contextlib
import io
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import gpu_trials
import pytest
import torch
from rich.console import Console

from torch_rnn.training import entry

ROOT = Path(__file__).parents[2]
HARDWARE = {"GPU": "a GPU", "torch": "2.13"}


@pytest.fixture
def script(run):
    return run.module("gpu_check")


@pytest.fixture
def check(script):
    def check(name, code, parse=lambda output: ({"lines": len(output.splitlines())}, ""), limit=10.0, **rest):
        return script.Check(name, [sys.executable, "-S", "-c", code], parse, limit, **rest)

    return check


def unreadable(output):
    raise ValueError("no figures")


def test_without_a_gpu_it_says_so_and_exits_with_2(run, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("gpu_check") == 2
    assert capsys.readouterr().err.strip().endswith("no CUDA device, or this torch was built without CUDA")


def test_no_check_stops_the_others(script, check, tmp_path):
    child = (
        "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])"
    )
    chosen = [
        check("passes", "print('a line')"),
        check("exits with 3", "print('first'); print('the reason'); raise SystemExit(3)"),
        check("is slow", child, limit=0.5),
        check("cannot be read", "print(1)", unreadable),
        check("finds a problem", "print(1)", lambda output: ({"n": 1}, "h differs")),
        check("lacks something", "print(1)", needs=("pytest", "no_such_module")),
        script.Check("is no command", ["/no/such/file"], unreadable, 10),
    ]
    begin, screen = time.perf_counter(), io.StringIO()
    outcomes = script.check_all(chosen, tmp_path, tmp_path, HARDWARE, Console(file=screen, width=200))
    assert time.perf_counter() - begin < 20
    found = {outcome.name: (outcome.status, outcome.reason) for outcome in outcomes}
    assert found["passes"] == ("passed", "")
    assert found["exits with 3"] == ("failed", "exit status 3: the reason")
    assert found["is slow"] == ("failed", "it took longer than 0 s")
    assert found["cannot be read"][1].startswith("its output cannot be read (ValueError: no figures), see ")
    assert found["finds a problem"] == ("failed", "h differs")
    assert found["lacks something"] == ("skipped", "the package no_such_module is not installed")
    assert found["is no command"][1].startswith("it cannot be started: ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"] == HARDWARE
    assert [row["name"] for row in report["checks"]] == [check.name for check in chosen]
    assert report["checks"][0]["figures"] == {"lines": 1}
    text = (tmp_path / "report.md").read_text()
    assert "- GPU: a GPU" in text
    assert "| exits with 3 | failed: exit status 3: the reason | " in text
    assert sys.executable in text
    assert "passes, " in screen.getvalue()


def test_after_a_timeout_no_process_is_left(script, check, tmp_path):
    late = tmp_path / "late"
    code = f"import time; time.sleep(1.5); open({str(late)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {code!r}])"
    assert script.run(check("is slow", parent, limit=0.7), tmp_path, 0.7).status == "failed"
    time.sleep(1.2)
    assert not late.exists()


def test_a_run_that_is_killed_leaves_what_it_has(script, check, tmp_path):
    def stop(output):
        raise KeyboardInterrupt

    chosen = [check("first", "print(1)"), check("second", "print(1)", stop)]
    with pytest.raises(KeyboardInterrupt):
        script.check_all(chosen, tmp_path, tmp_path, HARDWARE, Console(file=io.StringIO()))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in report["checks"]] == ["first"]


def test_a_check_that_would_begin_too_late_is_skipped(script, check, tmp_path):
    script.TOTAL = 0
    (outcome,) = script.check_all(
        [check("late", "print(1)")], tmp_path, tmp_path, HARDWARE, Console(file=io.StringIO())
    )
    assert outcome.status == "skipped"


@pytest.mark.parametrize(("code", "status"), [("print(1)", 0), ("raise SystemExit(1)", 1)])
def test_exit_status(run, script, check, tmp_path, monkeypatch, capsys, code, status):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = [check("it", code), check("slow", "raise SystemExit(1)", quick=False)]
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
    script.sanitizer_path = lambda: None
    reasons = {check.name: script.missing(check) for check in table}
    assert "has no IMDB reviews" in reasons["IMDB, one epoch, 32-true"]
    assert "is not installed" in reasons["compute-sanitizer, memcheck"]
    assert not reasons["ladder, cuda"]
    (tmp_path / "aclImdb").mkdir()
    assert not script.missing(next(check for check in table if check.name == "IMDB, one epoch, 32-true"))


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


def test_figures_of_the_ladder(script, monkeypatch, capsys):
    import ladder

    ops = sys.modules["torch_rnn.ops"]
    figures, problems = gpu_trials.ladder_trial("eager", "cpu", 3)
    assert (figures, problems) == (
        {"float32, comparisons": 3, "float64, comparisons": 3, "failed": 0}, [],
    )  # fmt: skip
    figures, problems = gpu_trials.ladder_trial("bptt", "cpu", 3)
    assert figures == {
        "float32, comparisons": 3 + 2 * 3 + 1, "bf16, comparisons": 2, "float64, comparisons": 3 + 2 * 3 + 1,
        "failed": 0,
    }, problems  # fmt: skip
    assert problems == []
    monkeypatch.setattr(ladder, "SHAPES", ladder.SHAPES[:1])
    assert gpu_trials.ladder_trial("cudnn", "cpu") == (
        {"note": "cudnn does not run on this cpu device", "failed": 0}, [],
    )  # fmt: skip
    right = ops.BACKENDS["bptt"]
    monkeypatch.setitem(ops.BACKENDS, "bptt", lambda *given: tuple(1.01 * part for part in right(*given)))
    figures, problems = gpu_trials.ladder_trial("bptt", "cpu")
    assert figures["failed"] == len(problems) > 8
    assert any(text.startswith("bptt, float64, rung 3 relu") for text in problems)
    assert script.read_trial("noise\n" + json.dumps({"figures": figures, "problems": problems}))[1]


def test_the_choice_of_auto(monkeypatch):
    ops = sys.modules["torch_rnn.ops"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fits = {32: "cuda", 64: "cuda", 128: "cuda", 300: "cudnn"}

    def choice(_, device, dtype, H):
        other = dtype is torch.float64 or torch.is_autocast_enabled(device)
        return "triton" if other and H <= 128 else fits[H]

    monkeypatch.setattr(ops, "which", choice)
    figures, problems = gpu_trials.auto_trial("cpu")
    assert problems == []
    assert figures["H = 128, float32"] == "cuda"
    assert figures["H = 128, float64"] == figures["H = 128, bf16"] == "triton"
    assert len(figures) == 9

    def wrong(_, device, dtype, H):
        if H == 64:
            logging.getLogger("torch_rnn.ops.proof").warning("cuda is not used: h differs")
        return "bptt" if H <= 64 else choice(_, device, dtype, H)

    monkeypatch.setattr(ops, "which", wrong)
    _, problems = gpu_trials.auto_trial("cpu")
    assert problems == [
        "H = 32, float32: auto is bptt, not cuda: cpu is not a CUDA GPU that this PyTorch can use",
        "H = 64, float32: auto is bptt, not cuda: cuda is not used: h differs",
        "H = 32, bf16: auto is bptt, not triton: triton does not run here",
        "H = 64, bf16: auto is bptt, not triton: cuda is not used: h differs",
    ]


def test_large_batches_and_the_reserve_space(monkeypatch, capsys):
    ops = sys.modules["torch_rnn.ops"]
    monkeypatch.setattr(ops, "available", lambda device: ["eager", "bptt"])
    assert gpu_trials.batches_trial("cpu", ((3, 4),))[1] == ["no fused backend runs here"]
    monkeypatch.setitem(ops.BACKENDS, "triton", ops.BACKENDS["bptt"])
    monkeypatch.setattr(ops, "available", lambda device: ["eager", "bptt", "triton"])
    figures, problems = gpu_trials.batches_trial("cpu", ((30, 4),))
    assert (figures, problems) == ({"backends": "triton", "batches": 1, "failed": 0}, [])
    monkeypatch.setattr(gpu_trials, "replayed", lambda function, x: function(x))
    assert gpu_trials.reserve_trial("bptt", "cpu") == ({"comparisons": 6, "failed": 0}, [])
    right = ops.BACKENDS["bptt"]
    monkeypatch.setitem(ops.BACKENDS, "triton", lambda *given: tuple(1.01 * part for part in right(*given)))
    _, problems = gpu_trials.batches_trial("cpu", ((30, 4),))
    assert [text.split(":")[0] for text in problems] == [
        "triton, B = 30, H = 4", "triton, B = 30, H = 4, bf16",
    ]  # fmt: skip
    monkeypatch.setattr(gpu_trials, "replayed", lambda function, x: function(x.flip(0)))
    assert len(gpu_trials.reserve_trial("bptt", "cpu")[1]) == 2


def test_environment_variables_reach_a_check_and_its_report(script, check, tmp_path):
    code = "import os; print(os.environ['A_VARIABLE'])"
    chosen = check("variable", code, lambda output: ({"value": output.strip()}, ""))
    outcome = script.run(chosen._replace(environment=(("A_VARIABLE", "a b"),)), tmp_path, 10)
    assert outcome.figures == {"value": "a b"}
    assert outcome.command.startswith("'A_VARIABLE=a b' ")


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


def test_trials_of_training_report_what_they_saw(monkeypatch):
    import trials

    class Process:
        exitcode = 0

        def join(self):
            pass

    monkeypatch.setattr(trials, "kills", lambda work, tries: trials.Found("", tries, ["run 1: it differs"]))
    assert gpu_trials.resume_trial() == ({"kills": 3}, ["run 1: it differs"])
    monkeypatch.setattr(trials, "train", lambda folder, settings: (0, ""))
    monkeypatch.setattr(trials, "start", lambda folder, settings, log: Process())
    monkeypatch.setattr(trials, "differences", lambda folder, other: [])
    assert gpu_trials.shared_trial() == ({"processes": 2}, [])
    monkeypatch.setattr(
        trials, "differences", lambda folder, other: ["metrics.csv differs"] * (folder.name == "second")
    )
    assert gpu_trials.shared_trial()[1] == ["second process: metrics.csv differs"]
