"""Trains every combination of settings, several runs side by side, and ends in one table: mean and spread.

    python scripts/sweep.py runs/sweep --seed_everything 1,2,3 --model.hidden_size 32,64

A value with commas is a list of values to try; every other argument is given to each run as it stands. Each
run has its folder in the sweep's and is started with --resume auto: a sweep that was stopped goes on.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from torch_rnn.files import write_atomically
from torch_rnn.training.signals import Stop, Stopped

ROOT = Path(__file__).parents[1]
SEED = "seed_everything"
SCORES = (("test", "accuracy"), ("test", "loss"), ("validation", "accuracy"), ("validation", "loss"))


class Run(NamedTuple):
    settings: dict[str, str]
    """The values of this run of the settings that are tried."""
    folder: Path


def grid(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The settings with several values, and the arguments that all runs have.

    Raises ValueError for an argument that is no --setting and its value.
    """
    tried, fixed = {}, []
    pairs = iter(arguments)
    for argument in pairs:
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or (not equals and (value := next(pairs, None)) is None):
            raise ValueError(f"{argument} stands alone; settings are given as --name value")
        if "," in value and not value.startswith(("[", "{")):
            tried[name[2:]] = value.split(",")
        else:
            fixed += [name, value]
    return tried, fixed


def combinations(tried: dict[str, list[str]], folder: Path) -> Iterator[Run]:
    for values in itertools.product(*tried.values()):
        settings = dict(zip(tried, values, strict=True))
        name = ",".join(
            f"{of.rsplit('.', 1)[-1]}={value.replace('/', '_')}" for of, value in settings.items()
        )
        yield Run(settings, folder / (name or "run"))


def start(run: Run, script: Path, fixed: list[str], threads: int, running: set, stopping: Event) -> int:
    """Runs one combination; its output is in log.txt beside its results. Returns its exit status."""
    run.folder.mkdir(parents=True, exist_ok=True)
    chosen = [part for name, value in run.settings.items() for part in (f"--{name}", value)]
    where = ["--trainer.default_root_dir", str(run.folder), "--resume", "auto"]
    with open(run.folder / "log.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), *fixed, *chosen, *where],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
    running.add(process)
    if stopping.is_set():  # meanwhile
        process.terminate()
    try:
        return process.wait()
    finally:
        running.discard(process)


def side_by_side(runs: Sequence[Run], script: Path, fixed: list[str], jobs: int) -> list[int]:
    """The runs' exit statuses. Raises Stopped for a signal, after the runs that it finds have saved."""
    threads, running, stopping = max(1, (os.cpu_count() or 1) // jobs), set(), Event()
    with Stop(), ThreadPoolExecutor(jobs) as pool:
        try:
            started = [pool.submit(start, run, script, fixed, threads, running, stopping) for run in runs]
            return [of.result() for of in track(started, "sweep")]
        except Stopped:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def merged(runs: Sequence[Run]) -> list[dict]:
    """For every combination but for the seed: its settings, the seeds, and the mean and spread of each score.

    The spread is the sample's standard deviation, and None of one run.
    """
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        found = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
        key = tuple((name, value) for name, value in run.settings.items() if name != SEED)
        groups.setdefault(key, []).append(found)
    return [
        {
            "settings": dict(key),
            "seeds": [found["seed"] for found in results],
            **{
                f"{split}/{score}": summary([found[split][score] for found in results])
                for split, score in SCORES
            },
        }
        for key, results in groups.items()
    ]


def summary(values: Sequence[float]) -> dict[str, float | list[float] | None]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "values": list(values)}


def shown(score: str, found: dict[str, float | None]) -> str:
    form = "{:.2%}" if score == "accuracy" else "{:.4f}"
    spread = "" if found["spread"] is None else " ± " + form.format(found["spread"])
    return form.format(found["mean"]) + spread


def table(groups: Sequence[dict]) -> Table:
    names = list(groups[0]["settings"])
    rows = Table(*names, "runs", *(f"{split} {score}" for split, score in SCORES))
    for group in groups:
        cells = [shown(score, group[f"{split}/{score}"]) for split, score in SCORES]
        rows.add_row(*(group["settings"][name] for name in names), str(len(group["seeds"])), *cells)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument("--script", type=Path, default=ROOT / "scripts" / "train_imdb.py")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side; they share the cores")
    chosen, rest = parser.parse_known_args()
    try:
        tried, fixed = grid(rest)
    except ValueError as error:
        parser.error(str(error))
    if chosen.jobs < 1:
        parser.error(f"--jobs is {chosen.jobs}; it must be at least 1")
    if not chosen.script.is_file():
        parser.error(f"--script is {chosen.script}, which does not exist")
    runs = list(combinations(tried, chosen.folder))
    try:
        statuses = side_by_side(runs, chosen.script, fixed, chosen.jobs)
    except Stopped as stopped:
        print(f"stopped by signal {stopped.signum}; start the sweep again to go on", file=sys.stderr)
        return stopped.status
    failed = [(run, status) for run, status in zip(runs, statuses, strict=True) if status]
    for run, status in failed:
        print(f"error: {run.folder} ended with {status}; see its log.txt", file=sys.stderr)
    if finished := [run for run, status in zip(runs, statuses, strict=True) if status == 0]:
        groups = merged(finished)
        text = json.dumps(groups, indent=2)
        write_atomically(chosen.folder / "sweep.json", lambda part: part.write_text(text, encoding="utf-8"))
        Console().print(table(groups))
        print(chosen.folder / "sweep.json")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
