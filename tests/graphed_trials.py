"""Trainings whose steps are replayed. Without a GPU, a stand-in records and replays."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from torch_rnn.data.batches import Batch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def record(function):
    """Replays by calling the function again. Like a graph, it reads and writes the same memory each time."""
    generator = torch.get_rng_state()
    outputs = function()
    torch.set_rng_state(generator)

    def replay():
        for buffer, value in zip(outputs, function(), strict=True):
            if isinstance(buffer, torch.Tensor):
                buffer.copy_(value)
            else:
                assert buffer == value

    return replay, outputs


def record_step(optimizer):
    """Returns `record` for one function that makes steps: each must use the same memory and settings."""
    used = []

    def note(optimizer, args, kwargs):
        groups = optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        tensors = [group["lr"] for group in groups] + parameters + [p.grad for p in parameters]
        tensors += [value for p in parameters for value in optimizer.state.get(p, {}).values()]
        settings = [(name, group[name]) for group in groups for name in group.keys() - {"params", "lr"}]
        used.append(([tensor.data_ptr() for tensor in tensors], settings))
        assert used[-1] == used[0]

    def record_once(function):
        def noted():
            with optimizer.register_step_pre_hook(note):
                return function()

        assert not used
        return record(noted)

    return record_once


class Data(LightningDataModule):
    def __init__(self, batches, sampler=None):
        super().__init__()
        self.batches, self.sampler = batches, sampler

    def counts(self):
        return torch.ones(9, dtype=torch.int64).numpy()

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None, sampler=self.sampler)


def reviews(lengths, readout):
    """Batches (B, T) of ids as a training makes them; one for each tuple of lengths."""
    g, batches = torch.Generator().manual_seed(0), []
    for row_lengths in lengths:
        B, T = len(row_lengths), max(row_lengths)
        labels = torch.randint(2, (B, T) if readout == "every" else (B,), generator=g)
        x, scored = torch.randint(9, (B, T), generator=g), sum(row_lengths) if readout == "every" else B
        batches.append(Batch(x, torch.tensor(row_lengths), labels, scored, sum(row_lengths)))
    return batches


def trained(model, data, device, tmp_path, **settings):
    """Returns the weights after two epochs, and the sums' metrics."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator=device, devices=1, max_epochs=2, default_root_dir=tmp_path, enable_model_summary=False,
        log_every_n_steps=1, **quiet, **{"gradient_clip_val": 0.5} | settings,
    )  # fmt: skip
    trainer.fit(model, data)
    return dict(model.rnn.named_parameters()), trainer.callback_metrics


def assert_same(found, expected, device):
    (weights, metrics), (wanted, wanted_metrics) = found, expected
    for name, parameter in wanted.items():
        if device == "cpu":
            assert torch.equal(weights[name], parameter), name
        else:  # cuBLAS may choose another algorithm in a graph
            torch.testing.assert_close(weights[name], parameter, rtol=1e-4, atol=1e-6)
    assert metrics.keys() == wanted_metrics.keys()
    for name, value in wanted_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-6 if device == "cpu" else 1e-3), (
            name
        )
