"""Compiles the Triton kernels for GPUs that need not be here, and prints one JSON line for each variant.

    python triton_compiler.py VARIANTS FOLDER

VARIANTS is a JSON list of [capability, "forward" or "backward", H, dtype, precision, absent arguments].
The last line lists the arguments that Triton would specialize on. It is a process of its own, because Triton
decides at its import whether kernels are interpreted.
"""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torch_rnn.ops import triton_kernels as kernels

backend = importlib.import_module("torch_rnn.ops.triton_backend")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TYPES = dict.fromkeys(("B", "T", "D", "N", "t", "k_stride", "j_stride", "j_sums", "k_sums"), "i32")
TYPES |= dict.fromkeys(("ids", "lengths", "order", "starts"), "*i64") | {"keys": "*i16"}
OTHERS = (
    kernels.keys_kernel,
    kernels.sum_chunks_kernel,
    kernels.sum_by_id_kernel,
    kernels.step_forward_kernel,
    kernels.step_backward_kernel,
)
SIZES = {"H": 37, "P": 64, "ROWS": 16, "CHUNK": 64, "SIZE": 256}


def compiled(kernel, capability: int, real: str, constants: dict, options: dict):
    """Compiles a kernel for pointers to `real`, where all arguments that are not constants may vary."""
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature = {n: "constexpr" if n in constants else TYPES.get(n, real) for n in kernel.arg_names}
    return triton.compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", capability, 32), options)


def describe(variant: list, folder: Path) -> dict:
    """Compiles a kernel of all steps; returns its resources and the instructions of its loop over steps."""
    capability, name, H, dtype, precision, absent = variant
    plan = backend.plan(H, getattr(torch, dtype), precision, torch.device("cuda"))
    constants = dict(getattr(plan, name))
    options = {key: constants.pop(key) for key in ("num_warps", "maxnreg") if key in constants}
    none = dict.fromkeys([*absent, *(() if plan.sums else ("sums",))])
    kernel, real = getattr(kernels, f"{name}_kernel"), "*fp" + dtype.removeprefix("float")
    built = compiled(kernel, capability, real, {**constants, "NONLINEARITY": "tanh", **none}, options)
    stack, lines = disassemble(built.asm["cubin"], folder)
    return {
        "stack": stack,
        "shared": built.metadata.shared,
        "warps": options["num_warps"],
        "plan": [plan.rows, plan.sums],
        "constants": constants,
        "narrow": re.findall(r"arith.muli (?!.*%c1_i32).*: i32\b", built.asm["ttir"]),
        "loop": longest_inner_loop(lines),
    }


def disassemble(binary: bytes, folder: Path) -> tuple[int, list[tuple[str, str]]]:
    """Returns the bytes of spilled registers, and the lines as pairs of a label or an instruction."""
    path = folder / "kernel.cubin"
    path.write_bytes(binary)

    def run(*command: str | Path) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage, code = run(TOOLS / "cuobjdump", "-res-usage", path), run(TOOLS / "nvdisasm", "-c", path)
    lines = re.findall(r"(?m)^ *(\.L_\w+):|^ *[/][*][0-9a-f]+[*][/] +(.*?);", code)
    return int(re.search(r"STACK:(\d+)", usage)[1]), lines


def longest_inner_loop(lines: list[tuple[str, str]]) -> list[str]:
    """Returns the instructions of the longest loop without another loop inside, the one over the steps."""
    labels, instructions, loops = {}, [], []
    for label, text in lines:
        if label:
            labels[label] = len(instructions)
            continue
        target = re.search(r"BRA.*?(\.L_\w+)", text)
        if target and target[1] in labels:
            loops.append((labels[target[1]], len(instructions) + 1))
        instructions.append(re.sub(r"^@!?U?P\w+ +", "", text).split()[0].split(".")[0])
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    first, end = max(inner, key=lambda loop: loop[1] - loop[0])
    return instructions[first:end]


def specialized_arguments() -> list[list[str]]:
    """Returns the kernels' arguments for which Triton compiles anew where they are 1 or divisible by 16."""
    return [
        [kernel.__name__, parameter.name]
        for name, kernel in vars(kernels).items()
        if name.endswith("_kernel")
        for parameter in kernel.params
        if not (parameter.is_constexpr or parameter.do_not_specialize)
    ]


def main() -> None:
    backend._shared_memory = lambda device: 227 * 1024
    for variant in json.loads(sys.argv[1]):
        print(json.dumps(describe(variant, Path(sys.argv[2]))))
    for kernel in OTHERS:
        compiled(kernel, 90, "*fp32", {**SIZES, "NONLINEARITY": "tanh"}, {"num_warps": 4})
    print(json.dumps(specialized_arguments()))


if __name__ == "__main__":
    main()
