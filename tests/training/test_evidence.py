"""The disagreement with a teacher's evidence: against its definition, and what it leads a training to."""

import numpy as np
import pytest
import torch

from torch_rnn.training.evidence import disagreement

B, T, C = 4, 5, 2
LENGTHS = [5, 3, 1, 0]


def made(directions=2):
    g = torch.Generator().manual_seed(0)
    added = [torch.randn(B, T, C, generator=g, dtype=torch.float64) for _ in range(directions)]
    return added, torch.randn(B, T, 2, C, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("directions", [1, 2])
def test_it_is_the_angle_between_what_is_added_and_evidence(directions):
    added, evidence = made(directions)
    found = disagreement(added, evidence, torch.tensor(LENGTHS))
    for b, length in enumerate(LENGTHS):
        y, e = [], []
        for d in range(directions):
            steps = range(length) if d == 0 else reversed(range(length))
            said = np.array([evidence[b, t, d].numpy() for t in steps]).reshape(-1, C)
            e.append(said)
            y.append(added[d][b, :length].numpy())
        y, e = np.concatenate(y).ravel(), np.concatenate(e).ravel()
        cos = y @ e / np.sqrt((y @ y) * (e @ e)) if length else 0
        assert found[b].item() == pytest.approx(1 - cos, abs=1e-12)


def test_scale_and_padding_do_not_count():
    added, evidence = made()
    lengths = torch.tensor(LENGTHS)
    expected = disagreement(added, evidence, lengths)
    for b, length in enumerate(LENGTHS):
        for padded in (*added, evidence):
            padded[b, length:] = 7
    scaled = [7 * y for y in added]
    torch.testing.assert_close(disagreement(scaled, evidence, lengths), expected)


@pytest.mark.parametrize(("of_added", "of_evidence"), [(1, 0), (0, 1)])
def test_a_row_without_evidence_or_without_outputs_has_no_gradient(of_added, of_evidence):
    added, evidence = made(1)
    added = [(of_added * added[0]).requires_grad_()]
    found = disagreement(added, of_evidence * evidence, torch.tensor(LENGTHS))
    assert found.tolist() == [1] * B
    found.sum().backward()
    assert not added[0].grad.any()


def test_sums_over_many_steps_are_not_rounded_to_bfloat16():
    g = torch.Generator().manual_seed(0)
    y, noise = torch.randn(2, B, 400, C, generator=g).bfloat16()
    evidence = torch.stack([y + noise, noise], dim=2)
    lengths = torch.tensor([400, 399, 300, 200])
    exact = disagreement([y.double()], evidence.double(), lengths)
    torch.testing.assert_close(disagreement([y], evidence, lengths), exact.float(), rtol=0, atol=1e-5)
