"""The disagreement with a teacher's evidence: against its definition, and what it leads a training to."""

import numpy as np
import pytest
import torch

from torch_rnn.training.evidence import disagreement

B, T, C = 4, 5, 2
LENGTHS = [5, 3, 1, 0]


def made(directions=2):
    g = torch.Generator().manual_seed(0)
    outputs = [torch.randn(B, T, C, generator=g, dtype=torch.float64) for _ in range(directions)]
    return outputs, torch.randn(B, T, 2, C, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("readout", ["mean", "last"])
def test_it_is_the_angle_between_outputs_and_evidence(readout, directions):
    outputs, evidence = made(directions)
    found = disagreement(outputs, evidence, torch.tensor(LENGTHS), readout)
    for b, length in enumerate(LENGTHS):
        y, e = [], []
        for d in range(directions):
            steps = range(length) if d == 0 else reversed(range(length))
            said = np.array([evidence[b, t, d].numpy() for t in steps]).reshape(-1, C)
            e.append(said.cumsum(axis=0) if readout == "last" else said)
            y.append(outputs[d][b, :length].numpy())
        y, e = np.concatenate(y).ravel(), np.concatenate(e).ravel()
        cos = y @ e / np.sqrt((y @ y) * (e @ e)) if length else 0
        assert found[b].item() == pytest.approx(1 - cos, abs=1e-6)


def test_scale_and_padding_do_not_count():
    outputs, evidence = made()
    lengths = torch.tensor(LENGTHS)
    expected = disagreement(outputs, evidence, lengths, "mean")
    for b, length in enumerate(LENGTHS):
        for padded in (*outputs, evidence):
            padded[b, length:] = 7
    scaled = [7 * output for output in outputs]
    torch.testing.assert_close(disagreement(scaled, evidence, lengths, "mean"), expected)


def test_a_row_without_evidence_has_no_gradient():
    outputs, evidence = made(1)
    outputs[0].requires_grad_()
    found = disagreement(outputs, 0 * evidence, torch.tensor(LENGTHS), "mean")
    assert found.tolist() == [1] * B
    found.sum().backward()
    assert not outputs[0].grad.any()
