"""Cross-entropy with a distribution over the classes, against NumPy and against the classes themselves."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from torch_rnn.losses import cross_entropy, most_probable_label


def made(C, n=50, dtype=torch.float32):
    g = torch.Generator().manual_seed(C)
    logits = 5 * torch.randn(n, C, generator=g, dtype=dtype)
    p = torch.rand(n, max(C, 2), generator=g, dtype=dtype)
    return logits.requires_grad_(), p / p.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("C", [1, 2, 5])
def test_it_is_the_cross_entropy_of_numpy(C):
    logits, p = made(C, dtype=torch.float64)
    y, target = logits.detach().numpy(), p.numpy()
    scores = np.concatenate([np.zeros_like(y), y], axis=1) if C == 1 else y  # softmax(0, y) is sigmoid(y)
    log_q = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    losses = cross_entropy(logits, p)
    np.testing.assert_allclose(losses.detach().numpy(), -(target * log_q).sum(axis=1), rtol=1e-12)
    losses.sum().backward()
    d = np.exp(log_q) - target
    np.testing.assert_allclose(logits.grad.numpy(), d[:, 1:] if C == 1 else d, atol=1e-14)
    assert gradcheck(lambda y: cross_entropy(y, p), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("C", [1, 2, 5])
def test_a_one_hot_distribution_gives_the_bits_of_its_class(C, dtype):
    logits, p = made(C, dtype=dtype)
    classes = most_probable_label(p)
    assert torch.equal(most_probable_label(classes), classes)
    one_hot = torch.eye(max(C, 2))[classes]
    hard, soft = cross_entropy(logits, classes), cross_entropy(logits, one_hot)
    assert torch.equal(hard, soft)
    (from_hard,), (from_soft,) = (torch.autograd.grad(losses.sum(), logits) for losses in (hard, soft))
    assert torch.equal(from_hard, from_soft)


@pytest.mark.parametrize("C", [1, 3])
def test_the_sum_of_a_label_is_its_weight(C):
    logits, p = made(C, dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(logits, 0.25 * p), 0.25 * cross_entropy(logits, p))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0.5, 0.5]], r"labels have shape \(1, 2\); distributions for these logits need \(2, 2\)"),
        ([[0.5, 0.5, 0.0]] * 2, r"labels have shape \(2, 3\); distributions for these logits need \(2, 2\)"),
        ([[0.5, 0.5], [1.5, -0.5]], "a distribution with a negative number, NaN, infinity or the sum 0"),
        ([[0.5, 0.5], [float("nan"), 0.5]], "a distribution with a negative number, NaN"),
        ([[0.5, 0.5], [float("inf"), 0.5]], "a distribution with a negative number, NaN"),
        ([[0.5, 0.5], [0.0, 0.0]], "a distribution with a negative number, NaN"),
    ],
)
def test_what_is_no_distribution_is_refused(labels, message):
    for C in (1, 2):
        with pytest.raises(ValueError, match=message):
            cross_entropy(torch.zeros(2, C), torch.tensor(labels))
