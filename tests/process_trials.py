"""Trials of several processes on this machine, connected by gloo."""

import csv
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from trials import SCRIPT, Found, arguments, differences, start, train, wait_for_rows

from torch_rnn.nn.weights import load_weights

RAGGED = {  # the last batch has one row, so that one of two processes has none
    "data.train": 1981, "data.validation": 101, "data.test": 99, "data.batch_size": 33,
    "data.max_features": 200, "data.word_dropout": 0.3,
    "model.hidden_size": 8, "model.recurrent_dropout": 0.2,
    "trainer.max_epochs": 2, "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": False,
    "trainer.accelerator": "cpu", "trainer.precision": "64-true", "checkpoint.seconds": 0.2,
}  # fmt: skip
LONGER = RAGGED | {"data.train": 3961, "model.members": 2}


def together(folder: Path, processes: int, settings: dict[str, object]) -> list[BaseProcess]:
    """Starts the run in so many processes, with the environment variables that torchrun would set.

    This is quicker than torchrun, because the processes are forked from one that has imported the package.
    """
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    common = {
        "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "TORCHELASTIC_RUN_ID": "trial",
        "MASTER_ADDR": "localhost", "MASTER_PORT": port,
    }  # fmt: skip
    return [
        start(
            folder, settings | {"trainer.devices": processes}, folder.parent / "together.log",
            **common, RANK=rank, LOCAL_RANK=rank,
        )
        for rank in range(processes)
    ]  # fmt: skip


def statuses(processes: list[BaseProcess]) -> list[int | None]:
    """Waits for the processes and returns their exit statuses."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def torchrun(folder: Path, processes: int, settings: dict[str, object], *more: str) -> subprocess.Popen:
    """The run in so many processes, with --resume auto; torchrun.log beside the folder has what it prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = settings | {"trainer.devices": processes}
    with open(folder.parent / "torchrun.log", "ab") as log:
        return subprocess.Popen(
            [*command, *more, str(SCRIPT), *arguments(folder, settings), "--resume", "auto"],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )


def worlds(work: Path, tries: int) -> Found:
    """Compares 2, 4, 8 processes with one, in float64 and in float32; two tries for each number."""
    failures, worst = [], {}
    for precision, tolerance, steps in (("64-true", 1e-12, None), ("32-true", 1e-5, 20)):
        settings = RAGGED | {"trainer.precision": precision}
        train(work / precision, settings)
        for processes in (2, 4, 8)[: max(1, tries // 2)]:
            folder = work / f"{precision}-{processes}"
            if status := torchrun(folder, processes, settings).wait():
                failures.append(f"{processes} processes: exit status {status}")
                continue
            difference = unequal(folder, work / precision, steps)
            worst[precision] = max(difference, worst.get(precision, 0))
            if difference > tolerance:
                failures.append(f"{processes} processes, {precision}: {difference:.1e}")
    seen = ", ".join(f"{precision[:2]} bits: {value:.0e}" for precision, value in worst.items())
    return Found(
        "2 or 4 processes, ragged batches: losses, gradient norms, metrics and weights are those of one "
        "process, to 1e-12 in float64; in float32, of the first 20 steps, to 1e-5",
        2 * max(1, tries // 2),
        failures,
        seen,
    )


def unequal(folder: Path, other: Path, steps: int | None = None) -> float:
    """Returns the largest difference between the logged values and weights of two runs.

    Each difference is relative to the largest entry of its column or tensor. With `steps`, only the values
    logged in so many first steps are compared.
    """
    runs = [logged_values(folder, steps), logged_values(other, steps)]
    return max(
        max(abs(a - b) for a, b in zip(values, runs[1][name], strict=True)) / max(map(abs, runs[1][name]))
        for name, values in runs[0].items()
        if values
    )


def logged_values(folder: Path, steps: int | None) -> dict[str, list[float]]:
    """Returns the columns of metrics.csv; without `steps`, the weights too."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:steps]
    names = [name for name in rows[0] if "/" in name]
    values = {name: [float(row[name]) for row in rows if row[name]] for name in names}
    if steps is None:
        weights, _ = load_weights(folder / "model.safetensors")
        values |= {name: weight.double().flatten().tolist() for name, weight in weights.items()}
    return values


def workers(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def lost_workers(work: Path, tries: int) -> Found:
    """Sends SIGTERM to one of two processes, so that both save and stop; later kills one under torchrun."""
    failures = []
    if any(statuses(together(work / "undisturbed", 2, LONGER))):
        failures.append(f"the undisturbed run failed, see {work / 'together.log'}")
    for number in range(tries):
        folder = work / f"run{number}"
        processes = together(folder, 2, LONGER)
        wait_for_rows(folder, processes[0], 20 + 10 * number % 40)
        os.kill(processes[number % 2].pid, signal.SIGTERM)
        if (stopped := statuses(processes)) != [143, 143]:
            failures.append(f"{number}: exit statuses {stopped} after SIGTERM")
        process = torchrun(folder, 2, LONGER, "--max-restarts=1")
        wait_for_rows(folder, process, 130 + 10 * number % 40)
        os.kill(workers(process)[number % 2], signal.SIGKILL)
        if status := process.wait():
            failures.append(f"{number}: exit status {status}, see {work / 'torchrun.log'}")
        else:
            failures += [f"{number}: {wrong}" for wrong in differences(folder, work / "undisturbed")]
    return Found(
        "one of two processes gets SIGTERM, later one is killed under torchrun --max-restarts: the same bits "
        "in the end",
        tries,
        failures,
    )
