"""The Triton kernels as compiled for GPUs of three generations. No GPU is needed."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from torch_rnn.ops.triton_steps import kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="Triton is not installed")

TANH = {"float32": 15, "float64": 118}
"""Multiply-adds of one tanh."""
VARIANTS = [
    # capability, kernel, H, dtype, precision, arguments that are None
    (90, "forward", 20, "float32", "ieee", ("xw",)),
    (100, "forward", 64, "float32", "ieee", ("ids", "columns", "bh", "lengths")),
    (80, "forward", 128, "float32", "ieee", ("xw",)),
    (90, "forward", 256, "float32", "bf16", ("ids", "columns", "bh", "lengths")),
    (90, "backward", 32, "float32", "ieee", ("dhs",)),
    (90, "backward", 64, "float32", "ieee", ()),
    (80, "backward", 100, "float32", "bf16", ("dhT", "lengths")),
    (100, "backward", 128, "float32", "ieee", ("dhs",)),
    (80, "backward", 256, "float32", "bf16", ("dhs",)),
    (90, "forward", 128, "float64", "ieee", ("xw",)),
    (90, "backward", 128, "float64", "ieee", ("dhs",)),
]

COMPILER = Path(__file__).with_name("triton_compiler.py")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Returns what was compiled for each of VARIANTS, and the arguments that kernels are specialized on."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(folder / "cache")}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # takes less time
    command = [sys.executable, COMPILER, json.dumps(VARIANTS), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *built, specialized = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(built) == len(VARIANTS)
    return dict(zip(VARIANTS, built, strict=True)), specialized


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant[:5])))
def test_a_step_keeps_whh_in_registers_and_wastes_nothing(compiled, variant):
    """The counts are those of one thread in one step."""
    _, name, _, dtype, _, _ = variant
    built = compiled[0][variant]
    (rows, sums), constants = built["plan"], built["constants"]
    P, size = constants["P"], getattr(torch, dtype).itemsize
    counts = Counter(built["loop"])
    count = {key: number / constants["UNROLL"] for key, number in counts.items()}
    assert built["stack"] <= 32, "spilled bytes"
    assert not {"LDL", "STL"} & set(counts), "the loop spills"
    if rows == 16:  # Whh is in shared memory
        assert built["shared"] <= 2 * P * P + 24 * 1024
        return
    own = P * P // (32 * built["warps"])  # entries of Whh of a thread
    needed = own * (2 if sums and name == "backward" else 1)
    multiply_adds = count["DFMA"] if size == 8 else count["FFMA"] + 2 * count.get("FFMA2", 0)
    multiply_adds -= TANH[dtype] if name == "forward" else 0
    assert 0.8 * needed <= multiply_adds <= 1.3 * needed
    # Shared memory gives h to each thread, in pieces of 16 bytes, and sums over warps.
    assert count["LDS"] <= P * size / 16 + 6
    assert count["LDG"] <= 5
    assert count["BAR"] <= (2 if built["warps"] * 32 <= P else 5)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant[:5])))
def test_offsets_have_64_bits(compiled, variant):
    """B T may exceed 2^31. No product of B, T or t has 32 bits.

    Products within Whh are tensors. The compiler multiplies the counter of an unrolled loop by 1.
    """
    assert not compiled[0][variant]["narrow"]


def test_kernels_compile_once_for_all_values_and_alignments(compiled):
    """So nothing is specialized on an argument that is 1 or divisible by 16."""
    assert compiled[1] == []
