"""Trials of several processes on this machine: torchrun starts them, gloo connects them."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

from trials import SCRIPT, Found, arguments, differences, train, wait_for_rows

from torch_rnn.nn.weights import load_weights

RAGGED = {  # the last batch has one row, so that one of two processes has none
    "data.train": 1981, "data.validation": 101, "data.test": 99, "data.batch_size": 33,
    "data.max_features": 200, "data.word_dropout": 0.3,
    "model.hidden_size": 8, "model.recurrent_dropout": 0.2,
    "trainer.max_epochs": 2, "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": False,
    "trainer.accelerator": "cpu", "trainer.precision": "64-true", "checkpoint.seconds": 0.2,
}  # fmt: skip
LONGER = RAGGED | {"data.train": 3961}
LOGGED = ("train/batch_loss", "train/gradient_norm", "train/loss", "validation/loss", "validation/accuracy")


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
    """1, 2, 4, ... processes, as many worlds as tries, in float64 and in float32."""
    failures, worst = [], {}
    for precision, tolerance, steps in (("64-true", 1e-12, None), ("32-true", 1e-5, 20)):
        settings = RAGGED | {"trainer.precision": precision}
        train(work / precision, settings)
        for processes in (2, 4, 8)[: max(1, tries // 2)]:
            folder = work / f"{precision}-{processes}"
            if status := torchrun(folder, processes, settings).wait():
                failures.append(f"{processes} processes: exit status {status}")
                continue
            found = unequal(folder, work / precision, steps)
            worst[precision] = max(found, worst.get(precision, 0))
            failures += [f"{processes} processes, {precision}: {found:.1e}"] if found > tolerance else []
    seen = ", ".join(f"{precision[:2]} bits: {value:.0e}" for precision, value in worst.items())
    return Found(
        "2 or 4 processes, ragged batches: losses, gradient norms, metrics and weights are those of one "
        "process, to 1e-12 in float64; in float32, of the first 20 steps, to 1e-5",
        2 * max(1, tries // 2),
        failures,
        seen,
    )


def unequal(folder: Path, other: Path, steps: int | None = None) -> float:
    """The largest difference of what two runs logged and of their weights, by the largest entry of each.

    With steps, of what they logged in so many first steps.
    """
    of = []
    for run in (folder, other):
        with open(run / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))[:steps]
        of.append({name: [float(row[name]) for row in rows if row[name]] for name in LOGGED})
        if steps is None:
            weights, _ = load_weights(run / "model.safetensors")
            of[-1] |= {name: value.double().flatten().tolist() for name, value in weights.items()}
    return max(
        max(abs(a - b) for a, b in zip(of[0][name], of[1][name], strict=True)) / max(map(abs, of[1][name]))
        for name in of[1]
        if of[1][name]
    )


def workers(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def lost_workers(work: Path, tries: int) -> Found:
    """One of two processes gets SIGTERM, so that both save and stop; later one is killed, and restarted."""
    torchrun(work / "undisturbed", 2, LONGER).wait()
    failures = []
    for number in range(tries):
        folder = work / f"run{number}"
        process = torchrun(folder, 2, LONGER)
        wait_for_rows(folder, process, 20 + 10 * number % 40)
        os.kill(workers(process)[number % 2], signal.SIGTERM)
        if process.wait() == 0:
            failures.append(f"{number}: SIGTERM did not stop it")
        process = torchrun(folder, 2, LONGER, "--max-restarts=1")
        wait_for_rows(folder, process, 130 + 10 * number % 40)
        os.kill(workers(process)[number % 2], signal.SIGKILL)
        if status := process.wait():
            failures.append(f"{number}: exit status {status}, see {work / 'torchrun.log'}")
        else:
            failures += [f"{number}: {of}" for of in differences(folder, work / "undisturbed")]
    return Found(
        "one of two processes gets SIGTERM, later one is killed under torchrun --max-restarts: the same bits "
        "in the end",
        tries,
        failures,
    )
