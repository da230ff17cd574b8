"""The cross-entropy in chunks and from samples: against all logits, precision, memory, and bad input."""

import language_checks
import pytest
import torch
import torch.nn.functional as F
from language_checks import PeakMemory, gradients, readout

from torch_rnn import negatives, softmax
from torch_rnn.negatives import draw_negatives, inclusion_probabilities, log_uniform
from torch_rnn.softmax import linear_cross_entropy, sampled_cross_entropy
from torch_rnn.testing import assert_parity, twice_the_error

SHAPES = [(7, 11, 5), (1, 11, 5), (7, 1, 5), (7, 11, 1), (1, 1, 1), (64, 300, 37)]


@pytest.mark.parametrize("rows", [0.5, 1, 3, 1000])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("N", "V", "H"), SHAPES)
def test_chunks_give_the_loss_and_gradients_of_all_logits(N, V, H, bias, rows):
    language_checks.linear_cross_entropy(softmax, N, V, H, bias, rows)


@pytest.mark.parametrize("bias", [True, False])
def test_the_sampled_loss_is_its_equation(bias):
    language_checks.sampled_cross_entropy(softmax, bias)


@pytest.mark.parametrize("bias", [True, False])
def test_with_all_words_as_negatives_the_sampled_loss_is_the_full_one(bias):
    language_checks.sampled_from_all(softmax, bias)


def test_the_expectation_of_the_sampled_sum_is_the_full_sum():
    language_checks.sampled_partition_function(softmax, negatives)


def test_no_rows_and_no_negatives():
    h, Why, by, targets = readout(0, 4, 3)
    for loss in (
        linear_cross_entropy(h, Why, by, targets),
        sampled_cross_entropy(h, Why, by, targets, torch.tensor([1]), torch.zeros(1)),
    ):
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients(loss, h, Why, by).values())
    h, Why, by, targets = readout(5, 4, 3)
    loss = sampled_cross_entropy(h, Why, by, targets, torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients(loss, h, Why, by).values())


def test_large_logits_overflow_nowhere():
    h = torch.full((2, 1), 1e4, dtype=torch.float64, requires_grad=True)
    Why, by, targets = torch.tensor([[1.0], [-1.0], [0.5]]).double(), None, torch.tensor([0, 1])
    for loss in (
        linear_cross_entropy(h, Why, by, targets),
        sampled_cross_entropy(h, Why, by, targets, torch.arange(3), torch.zeros(3)),
    ):
        assert loss == 2e4
        (dh,) = torch.autograd.grad(loss, h)
        assert dh.tolist() == [[0.0], [2.0]]


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_needed_are_computed(wanted):
    h, Why, by, targets = readout(6, 5, 4)
    sample = torch.tensor([0, 4]), torch.zeros(2)
    for call, more in ((linear_cross_entropy, ()), (sampled_cross_entropy, sample)):
        everything = torch.autograd.grad(call(h, Why, by, targets, *more), [h, Why, by])
        some = [t.detach().requires_grad_(need) for t, need in zip((h, Why, by), wanted, strict=True)]
        leaves = [tensor for tensor in some if tensor.requires_grad]
        got = torch.autograd.grad(call(*some, targets, *more), leaves)
        want = [gradient for gradient, need in zip(everything, wanted, strict=True) if need]
        assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
        with torch.no_grad():
            assert not call(h, Why, by, targets, *more).requires_grad


def test_same_input_same_bits():
    h, Why, by, targets = readout(50, 70, 30, dtype=torch.float32)
    sample = draw_negatives(inclusion_probabilities(9, log_uniform(70)), torch.Generator().manual_seed(2))
    for call, more in ((linear_cross_entropy, ()), (sampled_cross_entropy, sample)):
        first, second = (call(h, Why, by, targets, *more) for _ in range(2))
        assert torch.equal(first, second)
        pairs = zip(*(gradients(loss, h, Why, by).values() for loss in (first, second)), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_a_second_derivative_and_a_second_backward_pass_are_refused():
    h, Why, by, targets = readout(6, 5, 4)
    sample = torch.tensor([0, 4]), torch.zeros(2)
    for call, more in ((linear_cross_entropy, ()), (sampled_cross_entropy, sample)):
        loss = call(h, Why, by, targets, *more)
        with pytest.raises(RuntimeError, match=f"{call.__name__} has no second derivative"):
            torch.autograd.grad(loss, h, create_graph=True)
        torch.autograd.grad(loss, h, retain_graph=True)
        with pytest.raises(RuntimeError, match=f"the gradient of {call.__name__} was computed already"):
            torch.autograd.grad(loss, h)


@pytest.mark.parametrize("rows", [2, 6])
def test_weights_that_change_before_the_backward_pass_are_noticed_or_do_not_count(rows):
    h, Why, by, targets = readout(6, 5, 4)
    want = gradients(linear_cross_entropy(h, Why, by, targets), h, Why, by)
    loss = linear_cross_entropy(h, Why, by, targets, chunk_bytes=8 * 5 * rows)
    with torch.no_grad():
        Why *= 2
    if rows == 6:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        for name, gradient in gradients(loss, h, Why, by).items():
            assert_parity(name, gradient, want[name], torch.float64)


@pytest.mark.parametrize("rows", [3, 100])
def test_float32_is_as_exact_as_all_logits_in_float32(rows):
    truth = readout(100, 400, 64)
    want = F.cross_entropy(F.linear(*truth[:3]), truth[3], reduction="sum")
    single = [tensor.detach().float().requires_grad_() for tensor in truth[:3]]
    plain = F.cross_entropy(F.linear(*single), truth[3], reduction="sum")
    got = linear_cross_entropy(*single, truth[3], chunk_bytes=4 * 400 * rows)
    assert_parity("loss", got, want.detach(), torch.float32, twice_the_error(plain, want.detach()))
    want, plain = gradients(want, *truth[:3]), gradients(plain, *single)
    for name, gradient in gradients(got, *single).items():
        assert_parity(name, gradient, want[name], torch.float32, twice_the_error(plain[name], want[name]))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_rounds_products_only(weights):
    """The loss is that of the rounded weights in float32; gradients are off by the rounding of dy."""
    h, Why, by, targets = readout(60, 40, 16, dtype=weights)
    rounded = [tensor.detach().bfloat16().float().requires_grad_() for tensor in (h, Why, by)]
    want = F.cross_entropy(F.linear(*rounded), targets, reduction="sum")
    sample = torch.arange(40), torch.zeros(40)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights is torch.float32):
        losses = [
            linear_cross_entropy(h, Why, by, targets, chunk_bytes=4 * 40 * 25),
            sampled_cross_entropy(h, Why, by, targets, *sample),
        ]
    expected = gradients(want, *rounded)
    for loss in losses:
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, want, rtol=2e-3, atol=0)
        for name, gradient in gradients(loss, h, Why, by).items():
            assert gradient.dtype == weights
            largest = expected[name].abs().max()
            assert (gradient.float() - expected[name]).abs().max() < 0.02 * largest, name


def test_memory_is_bounded_by_the_chunk():
    h, Why, by, targets = readout(600, 500, 4, dtype=torch.float32)
    chunk = 20_000
    with PeakMemory() as peak:
        linear_cross_entropy(h, Why, by, targets, chunk_bytes=chunk).backward()
    assert peak.largest <= chunk
    gradients_and_losses = 4 * (h.numel() + Why.numel() + by.numel() + len(h))
    assert peak.most <= chunk + 3 * gradients_and_losses
    with PeakMemory() as peak:
        F.cross_entropy(F.linear(h, Why, by), targets, reduction="sum").backward()
    assert peak.largest == 4 * 600 * 500  # the measure sees what it is meant to see


def test_sampled_gradients_are_zero_but_for_targets_and_negatives():
    h, Why, by, targets = readout(6, 50, 4)
    sample = draw_negatives(inclusion_probabilities(5, log_uniform(50)), torch.Generator().manual_seed(0))
    got = gradients(sampled_cross_entropy(h, Why, by, targets, *sample), h, Why, by)
    named = torch.zeros(50, dtype=torch.bool)
    named[targets] = named[sample[0]] = True
    assert torch.equal(got["dWhy"].any(dim=1), named)
    assert torch.equal(got["dby"] != 0, named)


GOOD = {
    "h": torch.zeros(2, 3),
    "Why": torch.zeros(5, 3),
    "by": torch.zeros(5),
    "targets": torch.tensor([0, 4]),
}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": torch.zeros(2, 4)}, ValueError, r"h has shape \(2, 4\); with Why .* it must be \(N, 3\)"),
        ({"h": torch.zeros(3)}, ValueError, r"h has shape \(3,\); it must be \(N, H\)"),
        ({"h": torch.zeros(2, 3).double()}, TypeError, "h is torch.float64; it must be torch.float32"),
        ({"h": [[0.0]]}, TypeError, "h is a list; it must be a tensor of torch.float32"),
        ({"h": torch.zeros(2, 3).long()}, TypeError, "h is torch.int64"),
        ({"Why": torch.zeros(0, 3)}, ValueError, r"Why has shape \(0, 3\); V and H must be at least 1"),
        ({"by": torch.zeros(4)}, ValueError, r"by has shape \(4,\); it must be \(5,\)"),
        ({"by": torch.zeros(5).double()}, TypeError, "by is torch.float64"),
        ({"targets": torch.tensor([0])}, ValueError, r"targets has shape \(1,\); it must be \(2,\)"),
        ({"targets": torch.tensor([0, 5])}, ValueError, r"targets are in 0\.\.5; they must be in 0\.\.4"),
        ({"targets": torch.tensor([-1, 0])}, ValueError, r"targets are in -1\.\.0"),
        ({"targets": torch.tensor([0, 1]).int()}, TypeError, "targets is torch.int32; it must be"),
        ({"targets": torch.zeros(2, device="meta").long()}, ValueError, "targets is on meta; it must"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        linear_cross_entropy(**GOOD | change)
    with pytest.raises(error, match=message):
        sampled_cross_entropy(**GOOD | change, negatives=torch.tensor([1]), log_q=torch.zeros(1))


@pytest.mark.bad_input
def test_derivatives_that_are_not_there_are_refused():
    rest = {name: value for name, value in GOOD.items() if name != "h"}
    sample = {"negatives": torch.tensor([1]), "log_q": torch.zeros(1)}
    for loss, more in ((linear_cross_entropy, {}), (sampled_cross_entropy, sample)):
        message = f"{loss.__name__} has derivatives by backward"
        for transform in (torch.func.grad, torch.func.jacrev):
            with pytest.raises(RuntimeError, match=message):
                transform(lambda h, loss=loss, more=more: loss(h, **rest, **more))(GOOD["h"])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("chunk_bytes", "error"), [(0, ValueError), (-5, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_bad_chunk_is_refused(chunk_bytes, error):
    with pytest.raises(error, match=f"chunk_bytes is {chunk_bytes}; it must be"):
        linear_cross_entropy(**GOOD, chunk_bytes=chunk_bytes)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("negatives", "log_q", "error", "message"),
    [
        (torch.tensor([[1]]), torch.zeros(1), ValueError, r"negatives has shape \(1, 1\); it must be \(K,\)"),
        ([1], torch.zeros(1), TypeError, "negatives is a list; it must be a tensor of torch.int64"),
        (torch.tensor([5]), torch.zeros(1), ValueError, r"negatives are in 5\.\.5; they must be in 0\.\.4"),
        (torch.tensor([1]), torch.zeros(5), ValueError, r"log_q has shape \(5,\); it must be \(1,\)"),
        (torch.tensor([1]), 0.0, TypeError, "log_q is a float; it must be a tensor of floats"),
    ],
)
def test_a_bad_sample_is_refused(negatives, log_q, error, message):
    with pytest.raises(error, match=message):
        sampled_cross_entropy(**GOOD, negatives=negatives, log_q=log_q)


@pytest.mark.cuda
def test_on_cuda_the_losses_are_those_of_the_cpu():
    h, Why, by, targets = readout(60, 40, 16)
    sample = draw_negatives(inclusion_probabilities(9, log_uniform(40)), torch.Generator().manual_seed(0))
    for call, more in ((linear_cross_entropy, ()), (sampled_cross_entropy, sample)):
        want = call(h, Why, by, targets, *more)
        on_gpu = [tensor.detach().cuda().requires_grad_() for tensor in (h, Why, by)]
        got = call(*on_gpu, targets.cuda(), *(tensor.cuda() for tensor in more))
        assert_parity("loss", got, want.detach(), torch.float64)
        want = gradients(want, h, Why, by)
        for name, gradient in gradients(got, *on_gpu).items():
            assert_parity(name, gradient, want[name], torch.float64)
