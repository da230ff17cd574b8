"""The trials of a GPU, on the CPU: what they report, and that a fault turns them red."""

import json
import logging
import sys

import gpu_trials
import torch

from torch_rnn.benchmarks.outputs import read_trial


def test_figures_of_the_ladder(monkeypatch):
    import ladder

    ops = sys.modules["torch_rnn.ops"]
    figures, problems = gpu_trials.ladder_trial("eager", "cpu", 3)
    assert (figures, problems) == (
        {"float32, comparisons": 3, "float64, comparisons": 3, "failed": 0}, [],
    )  # fmt: skip
    figures, problems = gpu_trials.ladder_trial("bptt", "cpu", 3)
    assert figures == {
        "float32, comparisons": 3 + 2 * 3 + 1, "bf16, comparisons": 2, "float64, comparisons": 3 + 2 * 3 + 1,
        "failed": 0,
    }, problems  # fmt: skip
    assert problems == []
    monkeypatch.setattr(ladder, "SHAPES", ladder.SHAPES[:1])
    assert gpu_trials.ladder_trial("cudnn", "cpu") == (
        {"note": "cudnn does not run on this cpu device", "failed": 0}, [],
    )  # fmt: skip
    right = ops.BACKENDS["bptt"]
    monkeypatch.setitem(ops.BACKENDS, "bptt", lambda *given: tuple(1.01 * part for part in right(*given)))
    figures, problems = gpu_trials.ladder_trial("bptt", "cpu")
    assert figures["failed"] == len(problems) > 8
    assert any(text.startswith("bptt, float64, rung 3 relu") for text in problems)
    assert read_trial("noise\n" + json.dumps({"figures": figures, "problems": problems}))[1]


def test_the_choice_of_auto(monkeypatch):
    ops = sys.modules["torch_rnn.ops"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fits = {32: "cuda", 64: "cuda", 128: "cuda", 300: "cudnn"}

    def choice(_, device, dtype, H):
        other = dtype is torch.float64 or torch.is_autocast_enabled(device)
        return "triton" if other and H <= 128 else fits[H]

    monkeypatch.setattr(ops, "which", choice)
    figures, problems = gpu_trials.auto_trial("cpu")
    assert problems == []
    assert figures["H = 128, float32"] == "cuda"
    assert figures["H = 128, float64"] == figures["H = 128, bf16"] == "triton"
    assert len(figures) == 9

    def wrong(_, device, dtype, H):
        if H == 64:
            logging.getLogger("torch_rnn.ops.proof").warning("cuda is not used: h differs")
        return "bptt" if H <= 64 else choice(_, device, dtype, H)

    monkeypatch.setattr(ops, "which", wrong)
    _, problems = gpu_trials.auto_trial("cpu")
    assert problems == [
        "H = 32, float32: auto is bptt, not cuda: cpu is not a CUDA GPU that this PyTorch can use",
        "H = 64, float32: auto is bptt, not cuda: cuda is not used: h differs",
        "H = 32, bf16: auto is bptt, not triton: triton does not run here",
        "H = 64, bf16: auto is bptt, not triton: cuda is not used: h differs",
    ]


def test_large_batches_and_the_reserve_space(monkeypatch):
    ops = sys.modules["torch_rnn.ops"]
    monkeypatch.setattr(ops, "available", lambda device: ["eager", "bptt"])
    assert gpu_trials.batches_trial("cpu", ((3, 4),))[1] == ["no fused backend runs here"]
    monkeypatch.setitem(ops.BACKENDS, "triton", ops.BACKENDS["bptt"])
    monkeypatch.setattr(ops, "available", lambda device: ["eager", "bptt", "triton"])
    figures, problems = gpu_trials.batches_trial("cpu", ((30, 4),))
    assert (figures, problems) == ({"backends": "triton", "batches": 1, "failed": 0}, [])
    monkeypatch.setattr(gpu_trials, "replayed", lambda function, x: function(x))
    assert gpu_trials.reserve_trial("bptt", "cpu") == ({"comparisons": 6, "failed": 0}, [])
    right = ops.BACKENDS["bptt"]
    monkeypatch.setitem(ops.BACKENDS, "triton", lambda *given: tuple(1.01 * part for part in right(*given)))
    _, problems = gpu_trials.batches_trial("cpu", ((30, 4),))
    assert [text.split(":")[0] for text in problems] == [
        "triton, B = 30, H = 4", "triton, B = 30, H = 4, bf16",
    ]  # fmt: skip
    monkeypatch.setattr(gpu_trials, "replayed", lambda function, x: function(x.flip(0)))
    assert len(gpu_trials.reserve_trial("bptt", "cpu")[1]) == 2


def test_trials_of_training_report_what_they_saw(monkeypatch):
    import trials

    class Process:
        exitcode = 0

        def join(self):
            pass

    monkeypatch.setattr(trials, "kills", lambda work, tries: trials.Found("", tries, ["run 1: it differs"]))
    assert gpu_trials.resume_trial() == ({"kills": 3}, ["run 1: it differs"])
    monkeypatch.setattr(trials, "train", lambda folder, settings: (0, ""))
    monkeypatch.setattr(trials, "start", lambda folder, settings, log: Process())
    monkeypatch.setattr(trials, "differences", lambda folder, other: [])
    assert gpu_trials.shared_trial() == ({"processes": 2}, [])
    monkeypatch.setattr(
        trials, "differences", lambda folder, other: ["metrics.csv differs"] * (folder.name == "second")
    )
    assert gpu_trials.shared_trial()[1] == ["second process: metrics.csv differs"]
