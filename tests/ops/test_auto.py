"""What "auto" stands for on GPUs."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from torch_rnn.ops import auto
from torch_rnn.ops.bptt import bptt


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


@pytest.mark.parametrize("works", ["cuda", "triton", "cudnn"])
def test_on_a_gpu_auto_takes_the_first_candidate_that_agrees(monkeypatch, works):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(auto, "agrees_with_eager", lambda name, *args: name == works)
    for name in ("cuda", "triton", "cudnn"):
        monkeypatch.setitem(auto.ON_GPU, name, (bptt, lambda device: True))
    rows = [1]
    monkeypatch.setattr(auto, "plan", lambda *args: SimpleNamespace(rows=rows[0]))

    def fastest(dtype, H, nonlinearity="tanh"):
        return auto.fastest(torch.device("cuda"), dtype, H, nonlinearity)

    assert fastest(torch.float32, 32) == works
    assert fastest(torch.float32, 32, "sigmoid") == "bptt"
    assert fastest(torch.float64, 32) == ("bptt" if works == "cuda" else works)
    assert fastest(torch.float32, 300) == ("cudnn" if works == "cudnn" else "bptt")
    rows[0] = 0  # Triton's programs do not fit
    assert fastest(torch.float64, 32) == ("cudnn" if works == "cudnn" else "bptt")
    monkeypatch.setitem(auto.ON_GPU, works, (bptt, lambda device: False))
    assert fastest(torch.float32, 32) == "bptt"
