"""What "auto" stands for: the table for GPUs, and the comparison with eager that a backend has to pass."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from torch_rnn.ops import auto
from torch_rnn.ops.bptt import bptt

CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture
def made(monkeypatch):
    """Registers the backend "made", which is bptt, and forgets all earlier comparisons."""
    monkeypatch.setattr(auto, "_AGREES", {})
    monkeypatch.setitem(auto.ON_GPU, "made", (bptt, lambda device: True))
    return lambda run: monkeypatch.setitem(auto.ON_GPU, "made", (run, lambda device: True))


def test_the_table_for_gpus():
    capabilities = [(5, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
    sizes, kinds = (1, 32, 128, 129, 256, 257, 384, 385, 4096), ("float32", "float64", "bf16")
    for capability, H, kind in itertools.product(capabilities, sizes, kinds):
        runs = {
            "cuda": capability >= (7, 0) and H <= 128 and kind == "float32",
            "triton": capability >= (8, 0) and H <= (256 if kind == "bf16" else 128),
            "cudnn": True,
        }
        assert auto.candidates(capability, H, kind) == [name for name in runs if runs[name]]


def test_a_backend_that_agrees_is_used_and_compared_once(made, monkeypatch):
    assert auto.agrees_with_eager("made", CPU, FLOAT, 40)
    monkeypatch.setattr(auto, "difference", lambda *args: "compared again")
    assert auto.agrees_with_eager("made", CPU, FLOAT, 40)
    assert not auto.agrees_with_eager("made", CPU, FLOAT, 41)
    assert not auto.agrees_with_eager("made", CPU, torch.float64, 40)
    with torch.autocast("cpu", torch.bfloat16):  # then other kernels run
        assert not auto.agrees_with_eager("made", CPU, FLOAT, 40)


def test_a_backend_that_differs_is_named_with_what_differs(made, caplog):
    def wrong(x, Wxh, bh, *rest):
        return bptt(x, Wxh, 1.001 * bh, *rest)

    made(wrong)
    assert not auto.agrees_with_eager("made", CPU, FLOAT, 40)
    assert not auto.agrees_with_eager("made", CPU, FLOAT, 40)
    message = "made is not used on cpu for torch.float32 and H = 40: h differs from eager by"
    assert caplog.text.count(message) == 1


def test_a_backend_that_fails_is_not_tried_again_but_one_that_lacked_memory_is(made, caplog):
    made(lambda *args: 1 / 0)
    assert not auto.agrees_with_eager("made", CPU, FLOAT, 40)
    assert "division by zero" in caplog.text

    def lacks_memory(*args):
        raise torch.OutOfMemoryError("out of memory")

    made(lacks_memory)
    assert not auto.agrees_with_eager("made", CPU, FLOAT, 41)
    made(bptt)
    assert not auto.agrees_with_eager("made", CPU, FLOAT, 40)
    assert auto.agrees_with_eager("made", CPU, FLOAT, 41)


def test_during_a_capture_nothing_is_compared_and_nothing_remembered(made, monkeypatch, caplog):
    monkeypatch.setattr(auto, "capturing", lambda device: True)
    assert not auto.agrees_with_eager("made", CPU, FLOAT, 40)
    assert "run a step before you capture a CUDA graph" in caplog.text
    monkeypatch.setattr(auto, "capturing", lambda device: False)
    assert auto.agrees_with_eager("made", CPU, FLOAT, 40)
    monkeypatch.setattr(auto, "capturing", lambda device: True)
    assert auto.agrees_with_eager("made", CPU, FLOAT, 40)


def test_the_comparison_ignores_the_default_device_and_the_default_dtype(made):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert auto.agrees_with_eager("made", CPU, FLOAT, 40)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("works", ["cuda", "triton", "cudnn"])
def test_on_a_gpu_auto_takes_the_first_candidate_that_agrees(monkeypatch, works):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(auto, "agrees_with_eager", lambda name, *args: name == works)
    for name in ("cuda", "triton", "cudnn"):
        monkeypatch.setitem(auto.ON_GPU, name, (bptt, lambda device: True))
    gpu, rows = torch.device("cuda"), [1]
    monkeypatch.setattr(auto, "plan", lambda *args: SimpleNamespace(rows=rows[0]))
    assert auto.fastest(gpu, torch.float32, 32) == works
    assert auto.fastest(gpu, torch.float64, 32) == ("bptt" if works == "cuda" else works)
    assert auto.fastest(gpu, torch.float32, 300) == ("cudnn" if works == "cudnn" else "bptt")
    rows[0] = 0
    assert auto.fastest(gpu, torch.float64, 32) == ("cudnn" if works == "cudnn" else "bptt")
    monkeypatch.setitem(auto.ON_GPU, works, (bptt, lambda device: False))
    assert auto.fastest(gpu, torch.float32, 32) == "bptt"
