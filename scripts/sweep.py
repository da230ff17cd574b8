"""Train every combination of settings, several runs side by side, and print one table of mean and spread.

    python scripts/sweep.py runs/sweep --seed_everything 1,2,3 --model.hidden_size 32,64

A value with commas is a list of values to try; every other argument is passed to each run unchanged. Each
run has its own folder in the sweep's folder and starts with --resume auto, so a sweep that was stopped can be
started again to go on. Every value is checked before the first run. The runs that are side by side share the
cores; OMP_NUM_THREADS sets the number of threads of each run instead.
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
SET_BY_SWEEP = {
    "trainer.default_root_dir": "name the folder of the sweep, in which each run gets its own",
    "resume": "leave it out, each run starts with --resume auto",
}
SCORES = tuple(
    (split, score)
    for split in ("test", "validation")
    for score in ("accuracy", "bits_per_character", "perplexity", "loss")
)
"""The figures of a run in the order of the table; a run has those of its kind."""


class Run(NamedTuple):
    settings: dict[str, str]
    """This run's values of the settings that are tried."""
    folder: Path


class Ended(NamedTuple):
    status: int
    error: str
    """One line, empty after status 0."""


def grid(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the settings with several values, and the arguments that all runs share.

    Raises ValueError for an argument that is not a --setting with its value, or that the sweep sets itself.
    """
    tried, fixed = {}, []
    pairs = iter(arguments)
    for argument in pairs:
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or (not equals and (value := next(pairs, None)) is None):
            raise ValueError(f"{argument} stands alone; settings are given as --name value")
        if name[2:] in SET_BY_SWEEP:
            raise ValueError(f"{name} is set by the sweep; {SET_BY_SWEEP[name[2:]]}")
        if "," in value and not value.startswith(("[", "{")):
            tried[name[2:]] = values = value.split(",")
            if len({value.replace("/", "_") for value in values}) < len(values):
                raise ValueError(f"{name} is {value}; its values must be different, as must their folders")
        else:
            fixed += [name, value]
    return tried, fixed


def combinations(tried: dict[str, list[str]], folder: Path) -> Iterator[Run]:
    """Yields a run for each combination of values."""
    for values in itertools.product(*tried.values()):
        settings = dict(zip(tried, values, strict=True))
        parts = (f"{name.rsplit('.', 1)[-1]}={value.replace('/', '_')}" for name, value in settings.items())
        yield Run(settings, folder / (",".join(parts) or "run"))


def to_check(runs: Sequence[Run]) -> list[Run]:
    """Returns runs that together have every value of every setting but the seed."""
    chosen, seen = [], set()
    for run in runs:
        values = {(name, value) for name, value in run.settings.items() if name != SEED}
        if not chosen or not values <= seen:
            chosen.append(run)
            seen |= values
    return chosen


def refusal(run: Run, script: Path, fixed: list[str]) -> str:
    """Returns the error with which the script refuses the settings, empty where it accepts them."""
    checked = subprocess.run(
        [sys.executable, str(script), *fixed, *run_arguments(run), "--resume", "auto", "--check"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return error_line(checked.stderr) if checked.returncode else ""


def run_arguments(run: Run) -> list[str]:
    """Returns a run's own settings and its folder as arguments."""
    settings = [part for name, value in run.settings.items() for part in (f"--{name}", value)]
    return [*settings, "--trainer.default_root_dir", str(run.folder)]


def error_line(text: str) -> str:
    """Returns the last line that begins with "error:", else the last line."""
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in reversed(lines) if line.startswith("error:")), f"error: {lines[-1]}")


def start(run: Run, script: Path, fixed: list[str], threads: int, running: set, stopping: Event) -> Ended:
    """Runs one combination. Its output is appended to log.txt beside its results."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / "log.txt", "ab") as log:
        before = log.tell()
        process = subprocess.Popen(
            [sys.executable, str(script), *fixed, *run_arguments(run), "--resume", "auto"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"OMP_NUM_THREADS": str(threads)} | os.environ,
        )
    running.add(process)
    if stopping.is_set():  # a signal came before the process was in `running`
        process.terminate()
    try:
        status = process.wait()
    finally:
        running.discard(process)
    output = (run.folder / "log.txt").read_bytes()[before:].decode(errors="replace")
    return Ended(status, error_line(output) if status else "")


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(runs: Sequence[Run], script: Path, fixed: list[str], jobs: int) -> list[Ended]:
    """Returns how each run ended. Raises Stopped for a signal, after the runs have saved and ended."""
    threads, running, stopping = max(1, usable_cores() // jobs), set(), Event()
    with Stop(), ThreadPoolExecutor(jobs) as pool:
        try:
            started = [pool.submit(start, run, script, fixed, threads, running, stopping) for run in runs]
            return [ended.result() for ended in track(started, "sweep")]
        except (Stopped, OSError):
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def merged(runs: Sequence[Run]) -> list[dict]:
    """Returns for each combination without the seed its settings, seeds, and mean and spread of each score.

    The spread is the sample's standard deviation, None for a single run.
    """
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        results = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
        key = tuple((name, value) for name, value in run.settings.items() if name != SEED)
        groups.setdefault(key, []).append(results)
    return [
        {
            "settings": dict(key),
            "seeds": [results["seed"] for results in group],
            **{
                f"{split}/{score}": summary([results[split][score] for results in group])
                for split, score in SCORES
                if score in group[0].get(split, {})
            },
        }
        for key, group in groups.items()
    ]


def summary(values: Sequence[float]) -> dict[str, float | list[float] | None]:
    """Returns the mean, the spread and the values themselves."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "values": list(values)}


def cell(score: str, values: dict[str, float | None]) -> str:
    """Returns mean ± spread as text."""
    form = "{:.2%}" if score == "accuracy" else "{:.4f}"
    spread = "" if values["spread"] is None else " ± " + form.format(values["spread"])
    return form.format(values["mean"]) + spread


def table(groups: Sequence[dict]) -> Table:
    names = list(groups[0]["settings"])
    scores = [(split, score) for split, score in SCORES if f"{split}/{score}" in groups[0]]
    rows = Table(*names, "runs", *(f"{split} {score}" for split, score in scores))
    for group in groups:
        cells = [cell(score, group[f"{split}/{score}"]) for split, score in scores]
        rows.add_row(*(group["settings"][name] for name in names), str(len(group["seeds"])), *cells)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="folder of the sweep, made if it is missing")
    parser.add_argument(
        "--script", type=Path, default=ROOT / "scripts" / "train_imdb.py", help="trains each run"
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of runs side by side")
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
        return sweep(runs, chosen.script, fixed, chosen.jobs, chosen.folder)
    except Stopped as stopped:
        print(f"stopped by signal {stopped.signum}; start the sweep again to go on", file=sys.stderr)
        return stopped.status
    except OSError as error:
        name, why = error.filename or "a file", error.strerror or error
        print(
            f"error: {name} cannot be written or read ({why}); mend that, then start the sweep again",
            file=sys.stderr,
        )
        return 2


def sweep(runs: Sequence[Run], script: Path, fixed: list[str], jobs: int, folder: Path) -> int:
    """Checks the settings, trains the runs, prints the table and returns the exit status."""
    with Stop(), ThreadPoolExecutor(jobs) as pool:
        errors = [*filter(None, pool.map(lambda run: refusal(run, script, fixed), to_check(runs)))]
    if errors:
        print("\n".join(dict.fromkeys(errors)), file=sys.stderr)
        return 2
    ended = list(zip(runs, side_by_side(runs, script, fixed, jobs), strict=True))
    for run, (status, error) in ended:
        if status:
            print(f"{error} ({run.folder} ended with {status}; see its log.txt)", file=sys.stderr)
    if finished := [run for run, (status, _) in ended if status == 0]:
        groups = merged(finished)
        text = json.dumps(groups, indent=2)
        write_atomically(folder / "sweep.json", lambda part: part.write_text(text, encoding="utf-8"))
        Console().print(table(groups))
        print(folder / "sweep.json")
    return 0 if len(finished) == len(runs) else 2


if __name__ == "__main__":
    sys.exit(main())
