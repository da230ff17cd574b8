"""The Triton kernels as compiled for GPUs of three generations. No GPU is needed."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch

from torch_rnn.ops.triton_steps import kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="Triton is not installed")

TANH = 15
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
    (90, "backward", 128, "float64", "ieee", ("dhs",)),
]

COMPILE = """
import json, re, subprocess, sys
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import torch_rnn.ops
from torch_rnn.ops import triton_kernels as kernels

backend = sys.modules["torch_rnn.ops.triton_backend"]
backend._shared_memory = lambda device: 227 * 1024
variants, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
tools = Path(triton.__file__).parent / "backends/nvidia/bin"
INTEGERS = ("B", "T", "D", "N", "t", "k_stride", "j_stride", "j_sums", "k_sums")


def compile(name, kernel, capability, real, constants, absent):
    constants = constants | {"NONLINEARITY": "tanh"} | dict.fromkeys(absent)
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    types = dict.fromkeys(INTEGERS, "i32") | dict.fromkeys(("ids", "lengths", "order", "starts"), "*i64")
    types["keys"] = "*i16"
    signature = {n: "constexpr" if n in constants else types.get(n, real) for n in kernel.arg_names}
    return triton.compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", capability, 32), options)


def disassemble(binary):
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    run = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout
    usage = run(tools / "cuobjdump", "-res-usage", path)
    code = run(tools / "nvdisasm", "-c", path)
    lines = re.findall(r"(?m)^ *(\\.L_\\w+):|^ *[/][*][0-9a-f]+[*][/] +(.*?);", code)
    return int(re.search(r"STACK:(\\d+)", usage)[1]), lines


def longest_inner_loop(lines):
    # The unrolled loop over the steps: the longest of those without another loop inside.
    labels, instructions, loops = {}, [], []
    for label, text in lines:
        if label:
            labels[label] = len(instructions)
        else:
            target = re.search(r"BRA.*?(\\.L_\\w+)", text)
            if target and target[1] in labels:
                loops.append((labels[target[1]], len(instructions) + 1))
            instructions.append(re.sub(r"^@!?U?P\\w+ +", "", text).split()[0].split(".")[0])
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    first, end = max(inner, key=lambda loop: loop[1] - loop[0])
    return instructions[first:end]


for capability, name, H, dtype, precision, absent in variants:
    kernel = getattr(kernels, name + "_kernel")
    plan = backend.plan(H, getattr(torch, dtype), precision, torch.device("cuda"))
    constants = dict(getattr(plan, name))
    options = {key: constants.pop(key) for key in ("num_warps", "maxnreg") if key in constants}
    absent = [*absent, *(() if plan.sums else ("sums",))]
    built = compile(name, kernel, capability, "*fp" + dtype[5:], constants, absent)
    stack, lines = disassemble(built.asm["cubin"])
    print(json.dumps({"stack": stack, "shared": built.metadata.shared, "warps": options["num_warps"],
                      "plan": [plan.rows, plan.sums], "constants": constants,
                      "narrow": re.findall(r"arith.muli (?!.*%c1_i32).*: i32\\b", built.asm["ttir"]),
                      "loop": longest_inner_loop(lines)}))
sizes = {"H": 37, "P": 64, "ROWS": 16, "CHUNK": 64, "SIZE": 256}
for kernel in (kernels.keys_kernel, kernels.sum_chunks_kernel, kernels.sum_by_id_kernel,
               kernels.step_forward_kernel, kernels.step_backward_kernel):
    options = {"num_warps": 4}
    compile("other", kernel, 90, "*fp32", sizes, ())
specialized = [[kernel.__name__, p.name] for kernel in vars(kernels).values() if hasattr(kernel, "params")
               for p in kernel.params if kernel.__name__.endswith("_kernel")
               and not (p.is_constexpr or p.do_not_specialize)]
print(json.dumps(specialized))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Returns what was compiled for each of VARIANTS, and the arguments that kernels are specialized on."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(folder / "cache")}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # takes less time
    command = [sys.executable, "-c", COMPILE, json.dumps(VARIANTS), str(folder)]
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
    if size == 4:
        multiply_adds = count["FFMA"] + 2 * count.get("FFMA2", 0) - (TANH if name == "forward" else 0)
    else:
        multiply_adds = count["DFMA"]
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
