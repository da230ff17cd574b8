"""Figures, read from what a check prints or writes.

Each function returns figures, and a problem, which is empty if there is none. It raises an error where the
output is not what the check's command prints.
"""

import json
import re
from pathlib import Path

Figures = dict[str, float | int | str]


def read_trial(output: str) -> tuple[Figures, str]:
    """Reads the JSON in the last line that a trial of tests/gpu_trials.py printed."""
    found = json.loads(output.strip().splitlines()[-1])
    return found["figures"], "; ".join(found["problems"])


def read_pytest(output: str) -> tuple[Figures, str]:
    *lines, summary = output.strip().splitlines()
    figures = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|errors?|skipped)", summary)}
    if not figures.get("passed"):
        raise ValueError(f"no test passed: {summary}")
    return figures, "; ".join(line for line in lines if line.startswith(("FAILED", "ERROR")))


def read_compare_numpy(path: Path, _: str) -> tuple[Figures, str]:
    found, figures, problems = json.loads(path.read_text(encoding="utf-8")), {}, []
    for backend, rows in found["differences"].items():
        largest = max(row["relative"] / row["tolerance"] for row in rows)
        figures[f"{backend}, largest difference / tolerance"] = round(largest, 3)
        figures[f"{backend}, ms a step"] = round(found["milliseconds_per_step"][backend], 3)
        problems += [f"{backend}: {row['name']} is out of tolerance" for row in rows if not row["holds"]]
    return figures, "; ".join(problems)


def read_benchmark(folder: Path, _: str) -> tuple[Figures, str]:
    found, figures = json.loads((folder / "benchmark.json").read_text(encoding="utf-8")), {}
    for row in found.get("imdb_lengths", found["shapes"]):
        for name, times in row["milliseconds"].items():
            where = f"B = {row['B']}, T = {row['T']}, H = {row['H']}, {name}"
            figures[f"{where}, ms"] = round(times["training"]["median"], 4)
            if "replay" in times:
                figures[f"{where}, ms as a CUDA graph"] = round(times["replay"]["median"], 4)
    return figures, ""


def read_training(folder: Path, lowest: float, _: str) -> tuple[Figures, str]:
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    names = ("epochs", "seconds", "ms_per_step", "tokens_per_second", "device")
    accuracy = found["test"]["accuracy"]
    problem = "" if accuracy >= lowest else f"test accuracy is {accuracy:.1%}; it must reach {lowest:.0%}"
    return {"test accuracy": accuracy} | {name: found[name] for name in names}, problem


def read_sanitizer(output: str) -> tuple[Figures, str]:
    lines = output.splitlines()
    _, problem = read_trial("\n".join(line for line in lines if not line.startswith("=========")))
    number, kind = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (error|hazard)", output)[-1]
    return {f"{kind}s": int(number)}, problem or ("" if number == "0" else f"{number} {kind}s")
