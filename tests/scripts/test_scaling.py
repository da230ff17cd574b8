"""Scaling: a training that fails is one sentence."""

import re
import subprocess
from pathlib import Path

import pytest


@pytest.mark.bad_input
def test_a_failed_training_is_one_sentence_that_names_it_and_its_output(run, tmp_path, monkeypatch, capsys):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "the output\n", "Traceback\nerror: no data\n")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("scaling", "--processes", 3, "--rows", 5) == 2
    (line,) = capsys.readouterr().err.splitlines()
    start = "error: the training with --processes 3 --rows 5 ended with 1; see its output in "
    log = re.fullmatch(re.escape(start) + "(.*)", line)[1]
    assert Path(log).read_text() == "the output\nTraceback\nerror: no data\n"
