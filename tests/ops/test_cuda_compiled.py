"""The CUDA C++ kernels as NVRTC compiles them for several GPUs. No GPU is needed."""

import importlib.util
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from cuda_emulator import KERNELS, SOURCE

from torch_rnn.ops import nvrtc


def assembly(name: str, architecture: str, folder: Path) -> tuple[str, list[str]]:
    """Compiles a kernel with NVRTC. Returns what cuobjdump says about its memory, and its instructions.

    The tools are those in Triton's wheel. They do not know sm_70, which has no instructions here.
    """
    tools = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin"
    binary = folder / "kernel.cubin"
    binary.write_bytes(nvrtc.build(SOURCE, name, architecture)[0])
    usage = subprocess.run([tools / "cuobjdump", "-res-usage", binary], capture_output=True, text=True)
    text = subprocess.run([tools / "nvdisasm", "-c", binary], capture_output=True, text=True).stdout
    return usage.stdout + usage.stderr, re.findall(
        r"^\s*(?:/\*\w+\*/\s+(.*?) ?;|(\.L_\w+):)", text, re.MULTILINE
    )


def unrolled_loop(lines: list[tuple[str, str]]) -> Counter:
    """Counts the instructions of the innermost loop with the most FFMA."""
    labels, loops = {label: i for i, (_, label) in enumerate(lines) if label}, []
    for end, (instruction, _) in enumerate(lines):
        target = re.search(r"\bBRA\b.*(\.L_\w+)", instruction)
        if target and labels[target[1]] < end:
            loops.append((labels[target[1]], end))
    inner = [(a, b) for a, b in loops if not any(a <= c and d < b for c, d in loops)]
    codes = [re.sub(r"^@!?U?P\w+ ", "", instruction).split(" ")[0].split(".")[0] for instruction, _ in lines]
    return max((Counter(codes[a:b]) for a, b in inner), key=lambda counts: counts["FFMA"])


@pytest.mark.skipif(nvrtc.nvrtc() is None, reason="NVRTC is not installed (nvidia-cuda-nvrtc)")
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton, which has the tools, is missing"
)
@pytest.mark.parametrize("architecture", ["sm_70", "sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
def test_the_compiler_keeps_everything_in_registers(tmp_path, architecture):
    """No spills; in the loop of steps, only the FFMA of the product and of tanh, and at most one barrier."""
    if int(architecture[3:]) not in nvrtc.architectures():
        pytest.skip(f"this version of NVRTC does not compile for {architecture}")
    names = ["forward<128, TANH, true>", "backward<64, TANH, true>", "backward<128, TANH, false>"]
    if architecture == "sm_90":
        names = [name for name in KERNELS if "TANH, true" in name]
    for name in names:
        usage, lines = assembly(name, architecture, tmp_path)
        assert "STACK:0 " in usage, f"{name} spills registers: {usage}"
        assert "LOCAL:0 " in usage
        if not lines:
            continue
        forward, P, with_more = name[0] == "f", int(re.search(r"\d+", name)[0]), "true" in name
        outputs, parts = {32: (1, 1), 64: (2, 4), 128: (2, 2) if forward else (4, 8)}[P]
        product = outputs * P // parts * (1 if forward else 2)  # with dWhh in the backward pass
        counts = {code: n / 8 for code, n in unrolled_loop(lines).items()}
        assert product < counts["FFMA"] <= product + (10 if forward else 1)
        # An id may be loaded in two halves. With Whh, there would be at least 16 more.
        assert counts["LDG"] <= 1 + with_more * (2 if forward else 1), "the loop loads more than the inputs"
        assert counts["LDS"] == P / parts / 4, "the loop may read only the state from shared memory"
        assert counts.get("BAR", 0) == (P > 32)
        assert not counts.keys() & {"LDL", "STL"}
        assert counts.get("CALL", 0) < 1, "tanh may not be a call; the end of the loop can be one"
