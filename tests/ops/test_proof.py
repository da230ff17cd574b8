"""The comparison with eager that a backend has to pass before "auto" uses it on a GPU."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from torch_rnn.ops import proof
from torch_rnn.ops.bptt import bptt

CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture(autouse=True)
def nothing_compared(monkeypatch):
    monkeypatch.setattr(proof, "_AGREES", {})


def agrees(run=bptt, dtype=FLOAT, H=40, nonlinearity="tanh"):
    return proof.agrees_with_eager("made", run, CPU, dtype, H, nonlinearity)


def fails(*args):
    raise RuntimeError("compared again")


def test_each_case_is_compared_once():
    assert agrees()
    assert agrees(fails)
    assert not agrees(fails, H=41)
    assert not agrees(fails, dtype=torch.float64)
    assert not agrees(fails, nonlinearity="relu")
    with torch.autocast("cpu", torch.bfloat16):  # then other kernels run
        assert not agrees(fails)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_backend_agrees(dtype, nonlinearity):
    assert proof.difference(bptt, CPU, dtype, 128, nonlinearity) == ""


def test_a_backend_that_differs_is_named_with_what_differs(caplog):
    def wrong(x, Wxh, bh, *rest):
        return bptt(x, Wxh, 1.001 * bh, *rest)

    assert not agrees(wrong)
    assert not agrees(wrong)
    message = "made is not used on cpu for torch.float32, H = 40 and tanh: h differs from eager by"
    assert caplog.text.count(message) == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")],
    ids=str,
)
def test_a_failure_is_remembered_and_a_lack_of_memory_is_not(caplog, error):
    def lacks_memory(*args):
        raise error

    assert not agrees(lacks_memory)
    assert agrees()
    assert not agrees(fails, H=41)
    assert not agrees(H=41)
    assert "compared again" in caplog.text


def test_during_a_capture_nothing_is_compared_and_nothing_remembered(monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(proof, "capturing", lambda device: True)
        assert not agrees(fails)
    assert "run a step before you capture a CUDA graph" in caplog.text
    assert agrees()
    monkeypatch.setattr(proof, "capturing", lambda device: True)
    assert agrees()


def test_the_modes_of_the_caller_change_nothing():
    x = torch.ones(2, requires_grad=True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            assert agrees(H=1)
        with torch.no_grad():
            assert agrees(H=2)
        with torch._subclasses.FakeTensorMode():
            assert agrees(H=3)
    finally:
        torch.set_default_dtype(before)

    def scaled(x):
        assert agrees(H=4)
        return (x * x).sin()

    checkpoint(scaled, x, use_reentrant=False).sum().backward()
    assert x.grad is not None
