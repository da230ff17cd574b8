"""The negatives of a sampled softmax: distributions, inclusion probabilities, draws."""

import math

import pytest
import torch

from torch_rnn.negatives import draw_negatives, inclusion_probabilities, log_uniform


def test_log_uniform_is_a_distribution():
    for V in (1, 2, 1000):
        q = log_uniform(V)
        assert q.dtype == torch.float64
        assert q.sum().item() == pytest.approx(1, rel=1e-12)
        assert (q.diff() < 0).all()
    assert q[9].item() == pytest.approx(math.log(11 / 10) / math.log(1001), rel=1e-12)


@pytest.mark.parametrize("K", [1, 2, 17, 99, 100])
@pytest.mark.parametrize("q", [log_uniform(100), torch.ones(100), 0.5 ** torch.arange(100.0).double()])
def test_inclusion_probabilities_are_proportional_to_q_up_to_1(q, K):
    q = q[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    p = inclusion_probabilities(K, q)
    assert p.dtype == torch.float64
    assert p.sum().item() == pytest.approx(K, rel=1e-12)
    assert p.min() > 0
    assert p.max() <= 1
    c = p / q.double()
    free = p < 1
    if free.any():
        torch.testing.assert_close(c[free], c[free].max().expand(int(free.sum())), rtol=1e-9, atol=0)
        assert (c[~free] <= c[free].max() * (1 + 1e-9)).all()


def test_negatives_are_different_words_drawn_as_often_as_p_says():
    V, K, draws = 40, 12, 4000
    p, g = inclusion_probabilities(K, log_uniform(V)), torch.Generator().manual_seed(3)
    counts = torch.zeros(V, dtype=torch.float64)
    for _ in range(draws):
        negatives, log_q = draw_negatives(p, g)
        assert len(set(negatives.tolist())) == K
        assert torch.equal(log_q, p[negatives].log())
        counts[negatives] += 1
    assert (counts[p == 1] == draws).all()
    free = p < 1
    errors = (counts / draws - p)[free] / (p * (1 - p) / draws).sqrt()[free]
    assert errors.abs().max() < 5
    again = draw_negatives(p, torch.Generator().manual_seed(3))[0]
    assert torch.equal(again, draw_negatives(p, torch.Generator().manual_seed(3))[0])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: log_uniform(0), ValueError, "V is 0; it must be at least 1"),
        (lambda: log_uniform(2.0), TypeError, "V is 2.0; it must be a whole number"),
        (lambda: inclusion_probabilities(6, torch.ones(5)), ValueError, r"K is 6; it must be in 1\.\.5"),
        (lambda: inclusion_probabilities(0, torch.ones(5)), ValueError, "K is 0"),
        (lambda: inclusion_probabilities(1.0, torch.ones(5)), TypeError, "K is 1.0; it must be"),
        (lambda: inclusion_probabilities(1, torch.tensor([0.0, 1.0])), ValueError, r"q is in 0\.0\.\."),
        (lambda: inclusion_probabilities(1, torch.tensor([torch.nan])), ValueError, "q is in nan"),
        (lambda: inclusion_probabilities(1, torch.ones(5, 1)), ValueError, r"q has shape \(5, 1\)"),
        (lambda: draw_negatives([0.5, 0.5]), TypeError, "p is a list; it must be a tensor of floats"),
        (lambda: draw_negatives(torch.ones(0)), ValueError, r"p has shape \(0,\); it must be \(V,\)"),
        (lambda: draw_negatives(torch.tensor([0.5, 0.7])), ValueError, "p has the sum 1.2; it must be"),
        (lambda: inclusion_probabilities(1, [1.0]), TypeError, "q is a list; it must be a tensor of floats"),
    ],
)  # fmt: skip
def test_bad_probabilities_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
