"""The runner of checks, on fake commands."""

import io
import json
import sys
import time

import pytest

from torch_rnn.benchmarks.checks import Check, check_all, run

HARDWARE = {"GPU": "a GPU", "torch": "2.13"}


def check(name, code, parse=lambda output: ({"lines": len(output.splitlines())}, ""), limit=10.0, **rest):
    return Check(name, [sys.executable, "-S", "-c", code], parse, limit, **rest)


def console(file):
    from rich.console import Console  # above, it would make Lightning read 1 batch as 1.0, all of them

    return Console(file=file, width=200)


def unreadable(output):
    raise ValueError("no figures")


def test_no_check_stops_the_others(tmp_path):
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
        Check("is no command", ["/no/such/file"], unreadable, 10),
    ]
    begin, screen = time.perf_counter(), io.StringIO()
    outcomes = check_all(chosen, tmp_path, tmp_path, HARDWARE, 60, console(screen))
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


def test_after_a_timeout_no_process_is_left(tmp_path):
    late = tmp_path / "late"
    code = f"import time; time.sleep(1.5); open({str(late)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {code!r}])"
    assert run(check("is slow", parent, limit=0.7), tmp_path, 0.7).status == "failed"
    time.sleep(1.2)
    assert not late.exists()


def test_a_run_that_is_killed_leaves_what_it_has(tmp_path):
    def stop(output):
        raise KeyboardInterrupt

    chosen = [check("first", "print(1)"), check("second", "print(1)", stop)]
    with pytest.raises(KeyboardInterrupt):
        check_all(chosen, tmp_path, tmp_path, HARDWARE, 60, console(io.StringIO()))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in report["checks"]] == ["first"]


def test_a_check_that_would_begin_too_late_is_skipped(tmp_path):
    (outcome,) = check_all(
        [check("late", "print(1)")], tmp_path, tmp_path, HARDWARE, 0, console(io.StringIO())
    )
    assert outcome.status == "skipped"
    assert outcome.reason == "the 0 s for all checks are used up"


def test_environment_variables_reach_a_check_and_its_report(tmp_path):
    code = "import os; print(os.environ['A_VARIABLE'])"
    chosen = check("variable", code, lambda output: ({"value": output.strip()}, ""))
    outcome = run(chosen._replace(environment=(("A_VARIABLE", "a b"),)), tmp_path, 10)
    assert outcome.figures == {"value": "a b"}
    assert outcome.command.startswith("'A_VARIABLE=a b' ")
