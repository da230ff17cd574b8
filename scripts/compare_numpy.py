"""Compare the RNN with the NumPy reference on a batch of real size: every tensor and gradient, and time.

Exit status 1 where a difference is out of tolerance.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from torch_rnn import RNN, NumpyRNN
from torch_rnn.benchmarks.baseline import as_batch, compare_once, compare_trained, train_reference, train_rnn
from torch_rnn.data.batches import Batch
from torch_rnn.errors import RunError
from torch_rnn.files import write_atomically
from torch_rnn.ops import available
from torch_rnn.testing import Comparison

B, T, V, H = 32, 500, 10_000, 32
POSITIVE = 12
"""Of 32: with 16 dby would be a difference of equal numbers, and its relative error say nothing."""
CLIP = 0.005
"""Small enough to clip: the mean gradient over a batch is far below the article's 5."""


def grammar_batch() -> Batch:
    """Reviews of the quickstart corpus, joined until there are T tokens; a row ends with its label's."""
    from torch_rnn.data.grammar import corpus
    from torch_rnn.data.text import Vocabulary, tokenize

    texts, labels = corpus(64 * B, seed=0)
    tokens = [tokenize(text) for text in texts]
    vocabulary = Vocabulary.build(Counter(word for words in tokens for word in words), V)
    rows, chosen = [], _chosen(labels.tolist())
    for i in chosen:
        words, before = tokens[i], i
        while len(words) < T:
            before = (before + 1) % len(tokens)
            words = tokens[before] + words
        rows.append(vocabulary.encode(words[-T:]))
    return as_batch(rows, [int(labels[i]) for i in chosen])


def imdb_batch(root: str | None, cache: str | None) -> Batch:
    """Training reviews of IMDB, their last T tokens, each of its own length."""
    from torch_rnn.data.imdb import IMDB

    data = IMDB(root=root, cache=cache, max_features=V, maxlen=T)
    data.setup()
    sequences, labels = data.splits["train"]
    chosen = _chosen(labels.tolist())
    return as_batch([sequences[i] for i in chosen], [int(labels[i]) for i in chosen])


def _chosen(labels: list[int]) -> list[int]:
    of = {label: [i for i, found in enumerate(labels) if found == label] for label in (0, 1)}
    return of[1][:POSITIVE] + of[0][: B - POSITIVE]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--steps", type=int, default=10, help="clipped training steps (default: 10)")
    parser.add_argument("--imdb", action="store_true", help="reviews of IMDB, not of the quickstart corpus")
    parser.add_argument("--data.root", help="the folder with IMDB (default: $TORCH_RNN_DATA, else data/)")
    parser.add_argument("--data.cache", help="the folder for its tokens (default: data/cache)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same figures as JSON")
    chosen = parser.parse_args()
    if chosen.steps < 1:
        parser.error(f"--steps is {chosen.steps}; it must be at least 1")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device is cuda; this machine has no CUDA device, or this torch was built without CUDA"
        )
    if chosen.json and not chosen.json.parent.is_dir():
        parser.error(f"--json is {chosen.json}; {chosen.json.parent} is not a folder")
    return chosen


def main() -> int:
    chosen = arguments()
    try:
        where = (getattr(chosen, "data.root"), getattr(chosen, "data.cache"))
        batch = imdb_batch(*where) if chosen.imdb else grammar_batch()
    except (RunError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    dtype = getattr(torch, chosen.dtype)
    reference = NumpyRNN(V, H, 1)
    baseline = train_reference(reference, batch, chosen.steps, CLIP)
    rows, milliseconds = {}, {"NumPy": baseline.milliseconds}
    for backend in available(chosen.device):
        if backend == "triton" and chosen.device == "cpu":
            continue  # its interpreter is for tests
        rnn = RNN.from_numpy(reference, backend=backend, device=chosen.device, dtype=dtype)
        trained = train_rnn(rnn, batch, chosen.steps, CLIP)
        rows[backend] = compare_once(reference, rnn, batch)
        rows[backend] += compare_trained(baseline, trained, batch.x.shape[1], chosen.steps)
        milliseconds[backend] = trained.milliseconds
    found = {
        "text": "imdb" if chosen.imdb else "quickstart",
        "batch": {"B": B, "T": batch.x.shape[1], "V": V, "H": H},
        "device": chosen.device,
        "dtype": chosen.dtype,
        "differences": {backend: [as_json(row) for row in of] for backend, of in rows.items()},
        "milliseconds_per_step": milliseconds,
    }
    show(found, Console())
    if chosen.json:
        text = json.dumps(found, indent=2) + "\n"
        write_atomically(chosen.json, lambda part: part.write_text(text, encoding="utf-8"))
    return 0 if all(row.holds for of in rows.values() for row in of) else 1


def as_json(row: Comparison) -> dict[str, str | float | bool]:
    return row._asdict() | {"holds": row.holds}


def show(found: dict, console: Console) -> None:
    batch = ", ".join(f"{name} = {size}" for name, size in found["batch"].items())
    table = Table(title=f"{found['dtype']} on {found['device']} against NumPy: {batch}, {found['text']}")
    table.add_column("backend")
    table.add_column("tensor")
    for name in ("largest difference", "relative", "allowed"):
        table.add_column(name, justify="right")
    table.add_column("")
    for backend, rows in found["differences"].items():
        for row in rows:
            figures = (f"{row[name]:.1e}" for name in ("absolute", "relative", "tolerance"))
            table.add_row(backend, row["name"], *figures, "ok" if row["holds"] else "[bold red]OUT[/]")
        table.add_section()
    console.print(table)
    times = Table(title="a training step (median)")
    for name in ("", "milliseconds", "NumPy takes"):
        times.add_column(name, justify="right" if name else "left")
    numpy = found["milliseconds_per_step"]["NumPy"]
    for name, milliseconds in found["milliseconds_per_step"].items():
        times.add_row(name, f"{milliseconds:.1f}", f"{numpy / milliseconds:.1f} times as long")
    console.print(times)


if __name__ == "__main__":
    sys.exit(main())
