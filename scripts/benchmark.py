"""Times the recurrence against nn.Embedding with nn.RNN, and against Keras's SimpleRNN on JAX if installed.

Also times a step of language models against nn.Embedding, nn.RNN and nn.Linear. First checks each backend
against eager, and the language models against those modules. If one is wrong, nothing is timed and the exit
status is 1. Writes benchmark.json, benchmark.png and the tables benchmark.md. --readme also puts them into
the READMEs. On a GPU, forward and backward are also timed as replayed CUDA graphs, without the host's part.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from torch_rnn.benchmarks.language import Sizes, language_candidates, wrong_language_models
from torch_rnn.benchmarks.peers import (
    Candidate,
    as_one_graph,
    keras_is_installed,
    keras_simple_rnn,
    ours,
    torch_rnn_module,
    training_step,
)
from torch_rnn.benchmarks.tables import PEER, draw, replace_section, report, table
from torch_rnn.benchmarks.timing import Timing, in_turns
from torch_rnn.devices import device_name
from torch_rnn.files import write_atomically
from torch_rnn.nn.module import RNN
from torch_rnn.ops import available, recurrence
from torch_rnn.testing import compare, twice_the_error

V, T = 10_000, 500
GRIDS = {
    "cpu": {
        "small": [(1, 128), (32, 32), (128, 32), (32, 128), (128, 128), (128, 256)],
        "full": [(B, H) for B in (1, 8, 32, 128, 256) for H in (8, 32, 64, 128, 256)],
    },
    "cuda": {
        "small": [(32, 32), (128, 32), (128, 64), (128, 128), (128, 512)],
        "full": [(B, H) for B in (32, 128, 256) for H in (32, 64, 128, 256, 512, 1024)],
    },
}
TIMES = (10, 30, 100, 300, 1000, 3000, 10_000)
LANGUAGE = (Sizes(B=32, T=64, H=512, V=65, K=1024), Sizes(B=32, T=64, H=512, V=10_000, K=1024))
REPLAYS = 10
"""Replays of a CUDA graph between two waits for the device. A wait would hide times of about 0.1 ms."""
ROOT = Path(__file__).parents[1]
PACKED = f"{PEER}, packed"


def backends(device: str, H: int) -> list[str]:
    """Returns the backends to time; Triton on the CPU is only an interpreter for tests."""
    names = available(device, torch.float32, H)
    return [name for name in names if device == "cuda" or name not in ("eager", "triton")]


def is_right(backend: str, B: int, H: int, device: str) -> bool:
    """Returns whether a backend's error against float64 is at most twice eager's error, for this shape.

    Under autocast, both errors include the rounding of products to bfloat16.
    """
    tensors = {}
    for name, dtype in (("truth", torch.float64), ("eager", torch.float32), (backend, torch.float32)):
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(V, (B, T), generator=g).to(device)
        Wxh, Whh = (
            torch.randn(V, H, generator=g) / 10,
            torch.nn.init.orthogonal_(torch.empty(H, H), generator=g),
        )
        weights = [w.to(device, dtype).requires_grad_() for w in (Wxh.t(), torch.zeros(H), Whh)]
        _, hT = recurrence(ids, *weights, backend="eager" if name == "truth" else name, final=True)
        tensors[name] = [hT.detach(), *torch.autograd.grad(hT.sum(), weights)]
    for got, eager, truth in zip(tensors[backend], tensors["eager"], tensors["truth"], strict=True):
        if not compare(backend, got, truth, torch.float32, twice_the_error(eager.float(), truth)).holds:
            return False
    return True


def candidates(
    B: int, H: int, T: int, device: str, lengths: torch.Tensor | None = None
) -> dict[str, Candidate]:
    ids = torch.randint(V, (B, T), device=device)
    by_name = {backend: ours(backend, ids, V, H, lengths) for backend in backends(device, H)}
    by_name[PEER] = torch_rnn_module(ids, V, H, None)
    if lengths is not None:
        by_name[PACKED] = torch_rnn_module(ids, V, H, lengths)
    elif device == "cpu" and keras_is_installed():
        by_name["Keras on JAX"] = keras_simple_rnn(ids, V, H)
    return by_name


def time_candidates(by_name: dict[str, Candidate], turns: int) -> dict[str, dict[str, Timing]]:
    """Returns each candidate's timings of "forward" and of "training", which is forward and backward."""
    passes = {
        kind: in_turns({name: getattr(candidate, kind) for name, candidate in by_name.items()}, turns)
        for kind in Candidate._fields
    }
    return {name: {kind: passes[kind][name] for kind in passes} for name in by_name}


def time_replays(by_name: dict[str, Candidate], turns: int) -> dict[str, Timing]:
    """Returns the timings of forward and backward as CUDA graphs. Packing cannot be captured."""
    graphs = {}
    for name, candidate in by_name.items():
        if name != PACKED:
            try:
                graphs[name] = as_one_graph(candidate.training)
            except RuntimeError as error:
                print(f"{name} is not timed as a CUDA graph: {error}", file=sys.stderr)
    return in_turns(graphs, turns, repeats=REPLAYS)


def row(
    B: int,
    H: int,
    T: int,
    device: str,
    turns: int,
    lengths: torch.Tensor | None = None,
    replays: bool = False,
) -> dict:
    tokens = B * T if lengths is None else int(lengths.sum())
    by_name = candidates(B, H, T, device, lengths)
    timings = time_candidates(by_name, turns)
    if replays:
        for name, timing in time_replays(by_name, turns).items():
            timings[name]["replay"] = timing
    return {
        "B": B,
        "H": H,
        "T": T,
        "tokens": tokens,
        "milliseconds": {
            name: {kind: timing._asdict() for kind, timing in kinds.items()}
            for name, kinds in timings.items()
        },
        "tokens_per_second": {
            name: round(1000 * tokens / kinds["training"].median) for name, kinds in timings.items()
        },
    }


def training_steps(B: int, H: int, device: str, turns: int) -> dict:
    """Times a whole training step: launch by launch, and on a GPU also as one CUDA graph."""
    ids, lengths = torch.randint(V, (B, T), device=device), torch.randint(1, T + 1, (B,), device=device)
    labels = torch.randint(2, (B,), device=device)
    step = training_step(ids, lengths, labels, V, H)
    calls = {"launch by launch": step}
    if device == "cuda":
        calls["one CUDA graph"] = as_one_graph(step)
    timings = in_turns(calls, turns)
    return {"B": B, "H": H, "milliseconds": {name: timing._asdict() for name, timing in timings.items()}}


def imdb_lengths(B: int, root: str | None) -> torch.Tensor:
    """Returns the lengths of the IMDB training batch whose number of tokens is the median."""
    from torch_rnn.data.imdb import IMDB

    data = IMDB(root=root, batch_size=B)
    data.setup()
    batches = [data.splits["train"][0].lengths[draw.rows] for draw in data.train_dataloader().sampler]
    full = [lengths for lengths in batches if len(lengths) == B]
    return torch.from_numpy(sorted(full, key=lambda lengths: lengths.sum())[len(full) // 2].copy())


def language_model(sizes: Sizes, device: str, turns: int) -> dict:
    """Times a step of language models, and measures the memory that it takes."""
    timings = time_candidates(language_candidates(sizes, device), turns)
    milliseconds = {
        name: {kind: timing._asdict() for kind, timing in kinds.items()} for name, kinds in timings.items()
    }
    peak = memory(list(timings), language_candidates, sizes, device)
    return {**sizes._asdict(), "milliseconds": milliseconds, "bytes": peak}


def peak_memory(name: str, make: Callable[..., dict[str, Candidate]], *arguments: object) -> int:
    """Returns the peak memory in bytes that one training pass of make(*arguments)[name] adds.

    Needs a process of its own. The last argument is the device.
    """
    torch.manual_seed(0)
    candidate = make(*arguments)[name]
    if arguments[-1] == "cuda":
        candidate.training()  # leaves out what is compiled, captured or cached once
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        candidate.training()
        return torch.cuda.max_memory_allocated() - before
    RNN(2, 2, 2)(torch.zeros(1, 2, dtype=torch.int64)).sum().backward()  # imports what a first pass imports
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _peak_resident()
    candidate.training()
    return _peak_resident() - before


def _peak_resident() -> int:
    """Returns the process's largest resident size so far, in bytes (Linux only)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def memory(names: list[str], make: Callable[..., dict[str, Candidate]], *arguments: object) -> dict[str, int]:
    """Returns the peak memory of each candidate of make(*arguments); nothing where it cannot be measured."""
    sizes = {}
    if arguments[-1] == "cpu" and sys.platform != "linux":
        return sizes
    for name in names:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            sizes[name] = process.submit(peak_memory, name, make, *arguments).result()
    return sizes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", choices=GRIDS, default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of products")
    parser.add_argument("--grid", choices=("small", "full"), default="small")
    parser.add_argument("--turns", type=int, default=5, help="number of turns of 3 calls each (default: 5)")
    parser.add_argument("--imdb", action="store_true", help="also time batches with IMDB's lengths")
    parser.add_argument(
        "--brief",
        action="store_true",
        help="leave out other T, whole steps, memory, language models, picture",
    )
    parser.add_argument("--data.root", help="the folder with IMDB (default: $TORCH_RNN_DATA, else data/)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="default: runs/benchmark")
    parser.add_argument("--readme", action="store_true", help="also put tables and picture into the READMEs")
    args = parser.parse_args()
    if args.brief and args.readme:
        parser.error("--readme needs all figures; leave out --brief")
    if args.turns < 1:
        parser.error(f"--turns is {args.turns}; it must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device is cuda; this machine has no CUDA device, or this torch was built without CUDA"
        )
    return args


def measure(args: argparse.Namespace, shapes: list[tuple[int, int]]) -> dict:
    """Returns the contents of benchmark.json."""
    device, turns = args.device, args.turns
    results = {
        "device": device,
        "machine": device_name(torch.device(device)),
        "torch": torch.__version__,
        "dtype": args.dtype,
        "T": T,
        "V": V,
    }
    replays = device == "cuda"
    results["shapes"] = [row(B, H, T, device, turns, replays=replays) for B, H in shapes]
    if args.imdb:
        root = getattr(args, "data.root")
        lengths = {B: imdb_lengths(B, root).to(device) for B in {B for B, _ in shapes if B >= 32}}
        results["imdb_lengths"] = [
            row(B, H, int(lengths[B].max()), device, turns, lengths[B], replays)
            for B, H in shapes
            if B in lengths
        ]
    if args.brief:
        return results
    results["times"] = [row(32, 32, steps, device, max(1, turns // 2)) for steps in TIMES]
    results["training_step"] = [training_steps(B, H, device, turns) for B, H in shapes]
    B, H = shapes[-2]
    peak = memory([*backends(device, H), PEER], candidates, B, H, T, device)
    results["peak_memory"] = {"B": B, "H": H, "bytes": peak}
    results["language"] = [language_model(sizes, device, turns) for sizes in LANGUAGE]
    return results


def main() -> int:
    args = arguments()
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # otherwise nn.RNN would multiply with 10-bit precision
    shapes, device = GRIDS[args.device][args.grid], args.device
    with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
        for B, H in shapes:
            if wrong := [backend for backend in backends(device, H) if not is_right(backend, B, H, device)]:
                print(
                    f"error: {', '.join(wrong)} differs from eager at B = {B}, H = {H}; not timed",
                    file=sys.stderr,
                )
                return 1
        for sizes in () if args.brief else LANGUAGE:
            if wrong := wrong_language_models(sizes, device):
                print(
                    f"error: {', '.join(wrong)} differs from torch.nn at V = {sizes.V}; not timed",
                    file=sys.stderr,
                )
                return 1
        print("every backend agrees with eager on every shape; timing")
        results = measure(args, shapes)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in (("json", json.dumps(results, indent=2) + "\n"), ("md", report(results))):
        write_atomically(
            args.out / f"benchmark.{name}", lambda part, text=text: part.write_text(text, encoding="utf-8")
        )
    if not args.brief:
        draw(results, args.out / "benchmark.png")
    if args.readme:
        replace_section(table(results), ROOT / "README.md", "benchmark")
        replace_section(report(results), ROOT / "scripts" / "README.md", "benchmark")
        draw(results, ROOT / "scripts" / "benchmark.png")
    print(report(results))
    print(args.out / "benchmark.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
