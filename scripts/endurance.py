"""Break runs in every way that they are promised to survive, and print promise, tries and failures.

Small runs with dropout and real files are killed, damaged and starved. The trials take about 40 minutes,
with --scale 0.1 a tenth of that. The exit status is 1 where a promise is broken.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from torch_rnn.benchmarks.tables import replace_section

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import file_trials  # noqa: E402 (in tests/, which is now on the path)
import process_trials  # noqa: E402
import trials  # noqa: E402

TRIALS = {  # name: trial, tries
    "steps": (trials.every_step, 59),
    "language": (trials.every_step_of_a_language_model, 59),
    "kills": (trials.kills, 100),
    "saves": (file_trials.kills_in_save, 200),
    "damage": (file_trials.damage, 1000),
    "disk": (trials.full_disk, 20),
    "signals": (trials.signals, 30),
    "input": (trials.bad_input, 1),
    "many": (file_trials.many_at_once, 20),
    "cost": (trials.cost, 1),
    "worlds": (process_trials.worlds, 4),
    "workers": (process_trials.lost_workers, 10),
}


def table(rows: list[trials.Found]) -> str:
    """Returns the table of tests/README.md, in Markdown."""
    lines = ["| promise | tries | failures |", "|---|---|---|"]
    for row in rows:
        seen = f" ({row.seen})" if row.seen else ""
        lines.append(f"| {row.promise}{seen} | {row.tries:,} | {len(row.failures)} |")
    return "\n".join(lines) + "\n"


def show(rows: list[trials.Found]) -> None:
    """Prints the same table on the screen."""
    shown = Table("promise", "tries", "failures")
    for row in rows:
        seen = f" ({row.seen})" if row.seen else ""
        shown.add_row(row.promise + seen, f"{row.tries:,}", str(len(row.failures)))
    Console().print(shown)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "trials", nargs="*", metavar="trial", help=f"any of {', '.join(TRIALS)} (default: all)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of tries (default: 1)")
    parser.add_argument("--readme", action="store_true", help="put the table into tests/README.md")
    chosen = parser.parse_args()
    if unknown := set(chosen.trials) - set(TRIALS):
        parser.error(f"trial is {', '.join(sorted(unknown))}; it must be one of {', '.join(TRIALS)}")
    if not 0 < chosen.scale <= 10:
        parser.error(f"--scale is {chosen.scale}; it must be above 0 and at most 10")
    logging.disable(logging.INFO)
    rows = []
    for name in chosen.trials or TRIALS:
        trial, tries = TRIALS[name]
        with tempfile.TemporaryDirectory(prefix="endurance-") as work:
            rows.append(trial(Path(work), max(1, round(tries * chosen.scale))))
            for failure in rows[-1].failures:
                print(failure, file=sys.stderr)
    show(rows)
    if chosen.readme:
        replace_section(table(rows), ROOT / "tests" / "README.md", "endurance")
    return int(any(row.failures for row in rows))


if __name__ == "__main__":
    sys.exit(main())
