"""Measure weak scaling of training on this machine, and compute what a process sends in a step.

Runs scripts/train_imdb.py under torchrun with 1, 2, ... processes in turns, with the same number of rows and
one thread in each, and prints medians. Other arguments are settings of these runs. A second table compares
the bytes of all gradients with those of a sparse reduction, which sends only the columns of Wxh whose words
are in the batch: the gradient of the other columns is zero.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from torch_rnn.data.batches import Shard
from torch_rnn.errors import RunError
from torch_rnn.training.cli import CLI
from torch_rnn.training.run import configure_output

ROOT = Path(__file__).parents[1]
STEPS, BATCHES = 200, 50


class Batches(NamedTuple):
    """What determines the bytes of a step; the numbers of words are means over batches."""

    part: float
    """Different words in one process's part of a batch."""
    whole: float
    """Different words in the whole batch."""
    columns: int
    """Bytes of one of Wxh's columns."""
    rest: int
    """Bytes of the other parameters."""
    Wxh: int
    """Bytes of Wxh."""


def trained(processes: int, rows: int, settings: list[str]) -> dict:
    """Returns the results.json of a training with `rows` rows of each batch in each process.

    Raises RunError, and keeps the output in a file, if the training fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        limits = [f"--trainer.limit_train_batches={STEPS}", "--trainer.max_epochs=1"]
        limits += ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
        size = [f"--trainer.devices={processes}", f"--data.batch_size={processes * rows}"]
        where = [f"--trainer.default_root_dir={folder}/run", "--trainer.accelerator=cpu"]
        script = [str(ROOT / "scripts" / "train_imdb.py"), *settings, *size, *limits, *where]
        run = subprocess.run(
            [*torchrun, f"--nproc-per-node={processes}", *script, "--trainer.enable_progress_bar=false"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if run.returncode:
            prefix = f"scaling-{processes}-"
            with tempfile.NamedTemporaryFile("w", prefix=prefix, suffix=".log", delete=False) as log:
                log.write(run.stdout + run.stderr)
            raise RunError(
                f"the training with --processes {processes} --rows {rows} ended with {run.returncode}; "
                f"see its output in {log.name}"
            )
        return json.loads(Path(folder, "run", "results.json").read_text(encoding="utf-8"))


def batches(processes: int, rows: int, settings: list[str]) -> Batches:
    """Counts the words of the first batches."""
    logging.disable(logging.WARNING)
    try:
        cli = CLI([*settings, f"--data.batch_size={processes * rows}"])
        cli.datamodule.setup()
    finally:
        logging.disable(logging.NOTSET)
    means = []
    for shard in (Shard(0, processes), Shard()):
        first = islice(cli.datamodule.loader("train", shard), BATCHES)
        means.append(statistics.fmean(len(batch.x.unique()) for batch in first))
    rnn = cli.model.rnn
    rest = 4 * sum(parameter.numel() for parameter in rnn.parameters()) - 4 * rnn.Wxh.numel()
    return Batches(*means, 4 * rnn.hidden_size, rest, 4 * rnn.Wxh.numel())


def sent(processes: int, counts: Batches) -> dict[str, float]:
    """Returns the bytes that a process sends in a step: three ways to reduce the gradients.

    An id has 4 bytes. A ring of W processes sends 2 (W - 1) / W of what it sums.
    """
    ring, others = 2 * (processes - 1) / processes, processes - 1
    return {
        "all gradients": ring * (counts.Wxh + counts.rest),
        "columns, gathered": others * counts.part * (counts.columns + 4) + ring * counts.rest,
        "columns, summed": others * counts.part * 4 + ring * (counts.whole * counts.columns + counts.rest),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes to compare"
    )
    parser.add_argument("--rows", type=int, default=64, help="rows of each batch in each process")
    parser.add_argument("--turns", type=int, default=3, help="trainings with each number of processes")
    chosen, settings = parser.parse_known_args()
    for name in ("rows", "turns"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}; it must be at least 1")
    if min(chosen.processes) < 1:
        parser.error(f"--processes is {chosen.processes}; each must be at least 1")
    if not any(setting.startswith("--config") for setting in settings):
        settings = ["--config", str(ROOT / "configs" / "imdb.yaml"), *settings]
    configure_output()
    plan = [processes for _ in range(chosen.turns) for processes in chosen.processes]
    speeds, measured = Table("processes", "ms a step", "tokens a second", "efficiency"), {}
    try:
        for processes in track(plan, "training"):
            results = trained(processes, chosen.rows, settings)
            speed = results["tokens_per_second"], results["ms_per_step"]
            measured.setdefault(processes, []).append(speed)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    medians = {
        processes: [statistics.median(values) for values in zip(*turns, strict=True)]
        for processes, turns in measured.items()
    }
    first = chosen.processes[0]
    for processes, (tokens, milliseconds) in medians.items():
        efficiency = tokens / medians[first][0] * first / processes
        speeds.add_row(str(processes), f"{milliseconds:.2f}", f"{tokens:,.0f}", f"{efficiency:.0%}")
    Console().print(speeds)
    columns = ("all gradients", "columns, gathered", "columns, summed")
    volumes = Table("processes", "words: part, whole", *columns, title="KB that a process sends in a step")
    for processes in sorted({*chosen.processes, 2, 4, 8, 16}):
        counts = batches(processes, chosen.rows, settings)
        cells = [f"{value / 1000:,.0f}" for value in sent(processes, counts).values()]
        volumes.add_row(str(processes), f"{counts.part:,.0f}, {counts.whole:,.0f}", *cells)
    Console().print(volumes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
