"""Weak scaling of training on this machine, one thread a process, and what a process sends in a step.

Runs scripts/train_imdb.py under torchrun with 1, 2, ... processes of so many rows each, in turns, and gives
the medians; further arguments are settings of these runs. Beside the bytes of all gradients stand those of
Wxh's columns of the batch's words alone, since the others are zero: what a sparse reduction would send.
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
from torch_rnn.training.cli import CLI
from torch_rnn.training.run import configure_output

ROOT = Path(__file__).parents[1]
STEPS, BATCHES = 200, 50


class Batches(NamedTuple):
    """Of one process's part of a batch, and of all of it: how many different words, by mean."""

    part: float
    whole: float
    columns: int
    """Bytes of one of Wxh's columns."""
    rest: int
    """Bytes of the other parameters."""
    Wxh: int
    """Bytes of Wxh."""


def trained(processes: int, rows: int, settings: list[str]) -> dict:
    """results.json of so many processes with so many rows each."""
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
            raise SystemExit(run.stderr[-2000:])
        return json.loads(Path(folder, "run", "results.json").read_text(encoding="utf-8"))


def batches(processes: int, rows: int, settings: list[str]) -> Batches:
    logging.disable(logging.WARNING)
    try:
        cli = CLI([*settings, f"--data.batch_size={processes * rows}"])
        cli.datamodule.setup()
    finally:
        logging.disable(logging.NOTSET)
    means = []
    for shard in (Shard(0, processes), Shard()):
        found = list(islice(cli.datamodule.loader("train", shard), BATCHES))
        means.append(statistics.fmean(len(batch.x.unique()) for batch in found))
    rnn = cli.model.rnn
    rest = 4 * sum(parameter.numel() for parameter in rnn.parameters()) - 4 * rnn.Wxh.numel()
    return Batches(*means, 4 * rnn.hidden_size, rest, 4 * rnn.Wxh.numel())


def sent(processes: int, of: Batches) -> dict[str, float]:
    """Bytes a process sends in a step; an id has four. A ring sends 2 (W - 1) / W of what it sums."""
    ring, others = 2 * (processes - 1) / processes, processes - 1
    return {
        "all gradients": ring * (of.Wxh + of.rest),
        "columns, gathered": others * of.part * (of.columns + 4) + ring * of.rest,
        "columns, summed": others * of.part * 4 + ring * (of.whole * of.columns + of.rest),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=64, help="of a batch, each process's")
    parser.add_argument("--turns", type=int, default=3)
    chosen, settings = parser.parse_known_args()
    for name in ("rows", "turns"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}; it must be at least 1")
    if min(chosen.processes) < 1:
        parser.error(f"--processes is {chosen.processes}; each must be at least 1")
    if not any(of.startswith("--config") for of in settings):
        settings = ["--config", str(ROOT / "configs" / "imdb.yaml"), *settings]
    configure_output()
    plan = [processes for _ in range(chosen.turns) for processes in chosen.processes]
    found = [(processes, trained(processes, chosen.rows, settings)) for processes in track(plan, "training")]
    speeds, rows = Table("processes", "ms a step", "tokens a second", "efficiency"), {}
    for processes, results in found:
        rows.setdefault(processes, []).append((results["tokens_per_second"], results["ms_per_step"]))
    medians = {
        of: [statistics.median(values) for values in zip(*row, strict=True)] for of, row in rows.items()
    }
    first = chosen.processes[0]
    for processes, (tokens, milliseconds) in medians.items():
        efficiency = tokens / medians[first][0] * first / processes
        speeds.add_row(str(processes), f"{milliseconds:.2f}", f"{tokens:,.0f}", f"{efficiency:.0%}")
    Console().print(speeds)
    columns = ("all gradients", "columns, gathered", "columns, summed")
    volumes = Table("processes", "words: part, whole", *columns, title="KB that a process sends in a step")
    for processes in sorted({*chosen.processes, 2, 4, 8, 16}):
        of = batches(processes, chosen.rows, settings)
        cells = [f"{value / 1000:,.0f}" for value in sent(processes, of).values()]
        volumes.add_row(str(processes), f"{of.part:,.0f}, {of.whole:,.0f}", *cells)
    Console().print(volumes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
