"""Compares the RNN with the NumPy reference on a batch of real size: every tensor, every gradient, and time.

The exit status is 1 where a difference is out of tolerance.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from torch_rnn.training.entry import ends_quietly

with ends_quietly(waits=True):  # imports
    import torch
    from rich.console import Console
    from rich.table import Table

    from torch_rnn import RNN, NumpyRNN
    from torch_rnn.benchmarks import baseline
    from torch_rnn.benchmarks.timing import in_turns
    from torch_rnn.data.batches import Batch
    from torch_rnn.errors import RunError
    from torch_rnn.files import write_atomically
    from torch_rnn.ops import available
    from torch_rnn.testing import Comparison

B, T, V, H = 32, 500, 10_000, 32
POSITIVE = 12
"""Positive reviews in the batch. With 16 of 32, the terms of dby would cancel and leave only rounding."""
CLIP = 0.005
"""Small enough to take effect: the mean gradient over a batch is far below the article's limit of 5."""
CALLS_A_TURN = 2


def grammar_batch() -> Batch:
    """Returns quickstart reviews, each with others in front of it so that it has T tokens."""
    from torch_rnn.data.grammar import corpus
    from torch_rnn.data.text import Vocabulary, tokenize

    texts, labels = corpus(64 * B, seed=0)
    tokens = [tokenize(text) for text in texts]
    vocabulary = Vocabulary.build(Counter(word for words in tokens for word in words), V)
    rows, selected = [], _select(labels.tolist())
    for i in selected:
        words, before = tokens[i], i
        while len(words) < T:
            before = (before + 1) % len(tokens)
            words = tokens[before] + words
        rows.append(vocabulary.encode(words[-T:]))
    return baseline.as_batch(rows, [int(labels[i]) for i in selected])


def imdb_batch(root: str | None, cache: str | None) -> Batch:
    """Returns IMDB training reviews, cut to their last T tokens and padded."""
    from torch_rnn.data.imdb import IMDB

    data = IMDB(root=root, cache=cache, max_features=V, maxlen=T)
    data.setup()
    sequences, labels = data.splits["train"]
    selected = _select(labels.tolist())
    return baseline.as_batch([sequences[i] for i in selected], [int(labels[i]) for i in selected])


def _select(labels: list[int]) -> list[int]:
    positive = [i for i, label in enumerate(labels) if label == 1]
    negative = [i for i, label in enumerate(labels) if label == 0]
    return positive[:POSITIVE] + negative[: B - POSITIVE]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--steps", type=int, default=10, help="clipped training steps (default: 10)")
    parser.add_argument("--imdb", action="store_true", help="IMDB reviews instead of the quickstart corpus")
    parser.add_argument("--data.root", help="the folder with IMDB (default: $TORCH_RNN_DATA, else data/)")
    parser.add_argument("--data.cache", help="the folder for IMDB's cached tokens (default: data/cache)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; it must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device is cuda; this machine has no CUDA device, or this torch was built without CUDA"
        )
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json is {args.json}; {args.json.parent} is not a folder")
    return args


def compare(batch: Batch, device: str, dtype: str, steps: int) -> tuple[dict[str, list[Comparison]], dict]:
    """Returns each backend's comparisons with NumPy, and the milliseconds of a training step by name."""
    reference = NumpyRNN(V, H, 1)
    want = baseline.reference_pass(reference, batch)
    runs, rows = {"NumPy": baseline.reference_training(reference, batch, steps, CLIP)}, {}
    dtype = getattr(torch, dtype)
    for backend in available(device, dtype, H):
        if backend == "triton" and device == "cpu":
            continue  # Triton's interpreter is only for tests
        rnn = RNN.from_numpy(reference, backend=backend, device=device, dtype=dtype)
        rows[backend] = baseline.compare_pass(want, rnn, batch)
        runs[backend] = baseline.rnn_training(rnn, batch, steps, CLIP)
    turns = -(-steps // (1 + CALLS_A_TURN))  # so that each run makes at least `steps` steps
    timings = in_turns(runs, turns, CALLS_A_TURN)
    for backend in rows:
        trained = runs["NumPy"].trained, runs[backend].trained
        rows[backend] += baseline.compare_trained(*trained, batch.x.shape[1], steps)
    return rows, {name: timing.median for name, timing in timings.items()}


@ends_quietly()
def main() -> int:
    args = arguments()
    try:
        folders = (getattr(args, "data.root"), getattr(args, "data.cache"))
        batch = imdb_batch(*folders) if args.imdb else grammar_batch()
    except (RunError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows, milliseconds = compare(batch, args.device, args.dtype, args.steps)
    results = {
        "text": "imdb" if args.imdb else "quickstart",
        "batch": {"B": B, "T": batch.x.shape[1], "V": V, "H": H},
        "device": args.device,
        "dtype": args.dtype,
        "differences": {backend: [as_json(row) for row in table] for backend, table in rows.items()},
        "milliseconds_per_step": milliseconds,
    }
    if args.json:
        text = json.dumps(results, indent=2) + "\n"
        write_atomically(args.json, lambda part: part.write_text(text, encoding="utf-8"))
    show(results, Console())
    return 0 if all(row.holds for table in rows.values() for row in table) else 1


def as_json(row: Comparison) -> dict[str, str | float | bool]:
    return row._asdict() | {"holds": row.holds}


def show(results: dict, console: Console) -> None:
    batch = ", ".join(f"{name} = {size}" for name, size in results["batch"].items())
    table = Table(
        title=f"{results['dtype']} on {results['device']} against NumPy: {batch}, {results['text']}"
    )
    table.add_column("backend")
    table.add_column("tensor")
    for name in ("largest difference", "relative", "allowed"):
        table.add_column(name, justify="right")
    table.add_column("")
    for backend, rows in results["differences"].items():
        for row in rows:
            figures = (f"{row[name]:.1e}" for name in ("absolute", "relative", "tolerance"))
            table.add_row(backend, row["name"], *figures, "ok" if row["holds"] else "[bold red]OUT[/]")
        table.add_section()
    console.print(table)
    times = Table(title="one training step (median, timed in turns)")
    for name in ("", "milliseconds", "NumPy takes"):
        times.add_column(name, justify="right" if name else "left")
    numpy = results["milliseconds_per_step"]["NumPy"]
    for name, milliseconds in results["milliseconds_per_step"].items():
        times.add_row(name, f"{milliseconds:.1f}", f"{numpy / milliseconds:.1f} times as long")
    console.print(times)


if __name__ == "__main__":
    sys.exit(main())
