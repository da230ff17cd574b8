"""Compiles the kernels of the backend "cuda" for the CPU. cuda_emulator.h replaces CUDA and its driver."""

import ctypes
import functools
import importlib
import itertools
import shutil
import subprocess
from pathlib import Path

import torch

from torch_rnn.ops import nvrtc

cuda = importlib.import_module("torch_rnn.ops.cuda_backend")
SOURCE = cuda.SOURCE.read_text()
COMPILER = shutil.which("g++")
HEADER = Path(__file__).with_name("cuda_emulator.h")
FLAGS = ["-march=native", "-ffp-contract=off", "-std=c++17", "-w", "-fPIC", "-shared"]
FLAGS += ["-fno-gnu-unique"]  # or libraries would share their variables


def compile_for_cpu(sources: list[tuple[str, list[str]]], folder: Path, speed: str = "-O1") -> ctypes.CDLL:
    """Compiles some kernels of some sources and returns the driver that runs them.

    The binary of source i is the text of the number i. A kernel has the name that its source gives it.
    """
    code, table = [f'#include "{HEADER}"'], []
    for i, (source, kernels) in enumerate(sources):
        code += [f"namespace source_{i} {{", "alignas(16) float shared[emulator::SHARED];", source]
        for k, kernel in enumerate(kernels):
            arguments = "call, shared, blocks, size"
            code.append(f"bool run_{k}(const void *call, int blocks, int size) {{")
            code.append(f"return emulator::run({kernel}, {arguments}); }}")
            table.append(f'{{"{i}", "{kernel}", source_{i}::run_{k}}},')
        code.append("}")
    code += ["const std::vector<emulator::Function> emulator::FUNCTIONS = {", *table, "};"]
    (folder / "kernels.cpp").write_text("\n".join(code))
    subprocess.run([COMPILER, speed, *FLAGS, "kernels.cpp", "-o", "driver.so"], cwd=folder, check=True)
    driver = ctypes.CDLL(str(folder / "driver.so"))
    driver.emulator_message.restype = ctypes.c_char_p
    return driver


def set_order(driver: ctypes.CDLL, order: int) -> None:
    """Sets the order of threads: 0 upwards, 1 downwards, others random."""
    ctypes.c_uint.in_dll(driver, "emulator_order").value = order


def loop_kernels(kernel: str, sizes: tuple[int, ...], nonlinearity: str = "TANH") -> list[str]:
    """Returns the names of variants of the kernels "forward" or "backward"."""
    variants = itertools.product(sizes, ("true", "false"))
    return [f"{kernel}<{P}, {nonlinearity}, {variant}>" for P, variant in variants]


def sum_kernels(keys: tuple[str, ...], sizes: tuple[int, ...]) -> list[str]:
    """Returns the names of the kernels of the gradient of Wxh."""
    borders = [f"sum_borders<{key}, {P}>" for key in keys for P in sizes]
    return [f"{kernel}<{key}>" for kernel in ("make_keys", "sum_runs") for key in keys] + borders


KERNELS = [name for kernel in ("forward", "backward") for name in loop_kernels(kernel, (32, 64, 128))]
KERNELS += [
    name
    for kernel in ("forward", "backward")
    for f in ("RELU", "LINEAR")
    for name in loop_kernels(kernel, (32,), f)
]
KERNELS += sum_kernels(("short", "int"), (32, 64, 128))


def emulate(monkeypatch, driver, source: str = "0", of_source: tuple[str, ...] = ()) -> None:
    """Runs the kernels on the CPU: those `of_source` from that source of the driver, all others from 0."""

    @functools.cache
    def kernel(_, name, threads, shared):
        binary = source if name in of_source else "0"
        return nvrtc.Kernel(binary.encode(), name, 0, threads, shared)

    monkeypatch.setattr(cuda, "_kernel", kernel)
    monkeypatch.setattr(cuda, "why_not", lambda device: "")
    monkeypatch.setattr(nvrtc, "driver", lambda: driver)
    monkeypatch.setattr(nvrtc, "_context", functools.cache(nvrtc._context.__wrapped__))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    set_order(driver, 0)
