"""Signals: noted while a step runs, obeyed at once elsewhere, and given back in the end."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from torch_rnn.training.signals import SIGNALS, Stop, Stopped

BATCH_FILE = Path(__file__).parents[2] / "scripts" / "train.sbatch"


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_outside_the_steps_a_signal_ends_the_run_at_once(signum):
    with pytest.raises(Stopped) as stopped, Stop():
        send(signum)
    assert stopped.value.status == 128 + signum
    assert f"stopped by {signum.name}" in str(stopped.value)


@pytest.mark.parametrize("signum", SIGNALS)
def test_during_a_step_it_is_noted(signum):
    with Stop() as stop:
        stop.wait_for_the_step()
        send(signum)
        assert stop.requested == signum
    assert "after step 7, which is saved; go on with --resume auto" in str(Stopped(signum, 7))


def test_a_second_ctrl_c_does_not_wait():
    with Stop() as stop:
        stop.wait_for_the_step()
        send(signal.SIGINT)
        with pytest.raises(Stopped):
            send(signal.SIGINT)


def test_handlers_of_others_are_put_aside_and_back():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with Stop() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as another library would, meanwhile
        stop.wait_for_the_step()
        send(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (138, True), (143, False), (2, False)])
def test_the_batch_file_requeues_what_was_stopped_for_want_of_time(tmp_path, status, requeued):
    srun, scontrol = f'echo "$@" > srun.log; exit {status}', 'echo "$@" > scontrol.log'
    for name, line in (("srun", srun), ("scontrol", scontrol)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    environment |= {"SLURM_NTASKS_PER_NODE": "4"}
    run = subprocess.run(["bash", BATCH_FILE, "--model.hidden_size", "64"], cwd=tmp_path, env=environment)
    assert run.returncode == status
    command = "--gpu-bind=none --kill-on-bad-exit=1 python scripts/train_imdb.py --resume auto"
    command += " --trainer.num_nodes 2 --trainer.devices 4"
    assert (tmp_path / "srun.log").read_text() == f"{command} --model.hidden_size 64\n"
    assert (tmp_path / "scontrol.log").exists() == requeued
