"""Imports point one way, and `import torch_rnn` is light."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "torch_rnn"
FLOORS = (  # each room imports from floors below its own, or from its own
    {"errors", "exchange", "files", "reference", "loss", "signals"}
    | {f"recurrence.{name}" for name in ("graphs", "inputs", "nonlinearities", "scan", "segments")},
    {"weights", "parity"}
    | {f"recurrence.{name}" for name in ("checks", "eager", "bptt", "cpu")}
    | {f"recurrence.triton_{name}" for name in ("backend", "kernels", "steps")},
    {"recurrence", "cache", "download", "text"},
    {"documents", "layers", "reviews", "verbs"},
    {"rnn", "compat", "tokens"},
    {"batches"},
    {"baseline", "classifier", "datamodule", "metrics", "peers", "speed", "timing"},
    {"corpus", "grammar", "addition", "checkpoint", "report"},
    {"imdb", "textfiles"},
    {"cli"},
)


def rooms() -> dict[str, set[str]]:
    """Each room of the package and the rooms that it imports."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name == "__init__":
            continue
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch_rnn"):
                module = node.module.removeprefix("torch_rnn").lstrip(".")
                imported |= {module} if module else {alias.name for alias in node.names}
        found[name] = imported
    return found


def test_every_room_has_a_floor_and_imports_from_below():
    floor = {room: number for number, on_it in enumerate(FLOORS) for room in on_it}
    assert set(rooms()) == set(floor)
    for room, imported in rooms().items():
        for other in imported - {"RNN", "NumpyRNN"}:
            assert floor[other] <= floor[room], f"{room} imports {other}, which stands above it"


def test_import_is_light():
    code = (
        "import sys, torch_rnn; "
        "assert torch_rnn.__all__ == ['RNN', 'NumpyRNN', 'recurrence'], torch_rnn.__all__; "
        "assert callable(torch_rnn.recurrence); "
        "heavy = {'lightning', 'torchtext', 'matplotlib', 'rich', 'jsonargparse'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
