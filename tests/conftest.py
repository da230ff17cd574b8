"""Shared by all tests: memory that nobody wrote is NaN, and what a test needs of the machine is asked for."""

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

# Products as small as these take longer with more threads. All processes of a test need the same bits, too.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits leaves its core to others

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms need it on CUDA

import torch  # reads the number of threads when it is imported


def interpreter_runs() -> bool:
    """Returns whether Triton's interpreter runs on this machine's CPU; before 3.7 it fails with NumPy 2.4."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        return tuple(map(int, version("triton").split(".")[:2])) >= (3, 7)
    except PackageNotFoundError:  # a build of another name, such as pytorch-triton
        return True


if not torch.cuda.is_available() and interpreter_runs():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported


SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Under deterministic algorithms, torch.empty is filled with NaN (or the largest integer)."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # a run of the command line has turned it off
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def two_threads_for_the_cpu_kernels(request):
    """Gives the tests of the fused CPU kernels two threads: some faults show only where sums are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if request.path.name == "test_cpu.py" else before)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch):
    """run(script, *arguments, NAME=value): its main() in this process, and its exit status."""

    def module(name):
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        script = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, script)
        spec.loader.exec_module(script)
        return script

    def run(name, *arguments, **changes):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        script = module(name)
        for changed, value in changes.items():
            setattr(script, changed, value)
        return script.main()

    run.module = module
    return run


def pytest_collection_modifyitems(items):
    root = os.environ.get("TORCH_RNN_DATA")
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
        if "imdb" in item.keywords and not (root and list(Path(root).glob("aclImdb*"))):
            item.add_marker(pytest.mark.skip(reason="TORCH_RNN_DATA names no folder with the IMDB reviews"))
