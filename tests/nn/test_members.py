"""RNNs in blocks: the logits are the mean of the members', the gradients those of RNNs of their own."""

import itertools

import pytest
import torch

from torch_rnn import RNN
from torch_rnn.nn.members import clip_members, clip_values_of_members, joined, member_logits, rows_of_members

D, C, B, T = 7, 3, 4, 6
LENGTHS = torch.tensor([6, 1, 0, 4])
SHAPES = [*itertools.product((1, 2), (False, True), ("last", "mean", "max", "every"))]


def members(sizes, layers=1, bidirectional=False, readout="last", **settings):
    torch.manual_seed(0)
    rnns = [
        RNN(D, H, C, num_layers=layers, bidirectional=bidirectional, readout=readout, dtype=torch.float64,
            **settings)
        for H in sizes
    ]  # fmt: skip
    for rnn in rnns:
        for parameter in rnn.parameters():
            torch.nn.init.normal_(parameter)
    return rnns


def ids():
    return torch.randint(D, (B, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("layers", "bidirectional", "readout"), SHAPES)
def test_logits_are_the_mean(layers, bidirectional, readout):
    rnns = members((2, 5, 3), layers, bidirectional, readout)
    whole = joined(rnns)
    expected = torch.stack([rnn(ids(), LENGTHS) for rnn in rnns]).mean(0)
    assert whole.hidden_size == 10
    torch.testing.assert_close(whole(ids(), LENGTHS), expected, rtol=0, atol=1e-12)
    floats = torch.randn(B, T, D, dtype=torch.float64)
    expected = torch.stack([rnn(floats) for rnn in rnns]).mean(0)
    torch.testing.assert_close(whole(floats), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("layers", "bidirectional", "readout"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_members_have_the_logits_and_gradients_of_rnns_of_their_own(layers, bidirectional, readout, bias):
    rnns = members((3, 3), layers, bidirectional, readout, bias=bias)
    if bias:
        rnns[1].by.data.copy_(rnns[0].by)  # members share it
    whole = joined(rnns)
    rows = [(ids()[k::2], LENGTHS[k::2]) for k in range(2)]
    logits = member_logits(whole, rows_of_members(2), ids(), LENGTHS)
    direction = torch.randn(2, *logits[0].shape, dtype=torch.float64)
    for found, own, rnn in zip(logits, rows, rnns, strict=True):
        torch.testing.assert_close(found, rnn(*own), rtol=0, atol=1e-12)
    (torch.stack(logits) * direction).sum().backward()
    for rnn, own, weight in zip(rnns, rows, direction, strict=True):
        (rnn(*own) * weight).sum().backward()
    # The gradient of a block is its member's. Why holds half of each member's, so its gradient is twice that.
    expected = joined([with_gradients_as_weights(rnn) for rnn in rnns])
    for name, parameter in whole.named_parameters():
        factor = {"Why": 4, "by": 2}.get(name, 1)
        wanted = factor * getattr(expected, name)
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-12, msg=name)


def with_gradients_as_weights(rnn):
    twin = RNN(**rnn.settings, dtype=torch.float64)
    twin.load_state_dict({name: parameter.grad for name, parameter in rnn.named_parameters()})
    return twin


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (2, False), (2, True)])
def test_each_members_gradient_is_clipped_as_if_it_were_alone(layers, bidirectional):
    rnns = members((3, 3), layers, bidirectional)
    rnns[1].by.data.copy_(rnns[0].by)
    whole = joined(rnns)
    weights = torch.tensor([0.01, 50.0], dtype=torch.float64)  # the second one is clipped
    logits = torch.stack(member_logits(whole, rows_of_members(2), ids(), LENGTHS)).square().sum(dim=(1, 2))
    (logits * weights).mean().backward()
    factors = []
    for k, (rnn, weight) in enumerate(zip(rnns, weights, strict=True)):
        (weight * rnn(ids()[k::2], LENGTHS[k::2]).square().sum()).backward()
        own = [parameter.grad for name, parameter in rnn.named_parameters() if name != "by"]
        factors.append(min(1, 3.0 / torch.nn.utils.get_total_norm(own).item()))
        for parameter in rnn.parameters():
            parameter.grad *= factors[-1]
    assert factors[0] == 1 > factors[1]
    by = torch.stack([rnn.by.grad / factor for rnn, factor in zip(rnns, factors, strict=True)]).mean(0)
    clip_members(whole, 2, 3.0)
    expected = joined([with_gradients_as_weights(rnn) for rnn in rnns])
    for name, parameter in whole.named_parameters():
        wanted = {"Why": 2, "by": 1}.get(name, 0.5) * getattr(expected, name)
        wanted = by * sum(factors) / 2 if name == "by" else wanted
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-6, atol=1e-12, msg=name)


def test_values_of_each_members_gradient_are_clipped_as_if_it_were_alone():
    rnns = members((3, 3), 2, bidirectional=True)
    whole = joined(rnns)
    torch.stack(member_logits(whole, rows_of_members(2), ids(), LENGTHS)).square().sum(
        dim=(1, 2)
    ).mean().backward()
    for k, rnn in enumerate(rnns):
        rnn.by.data.copy_(whole.by)  # members share it
        rnn(ids()[k::2], LENGTHS[k::2]).square().sum().backward()
        torch.nn.utils.clip_grad_value_(rnn.parameters(), 0.1)
    before = whole.by.grad.clone()
    clip_values_of_members(whole, 2, 0.1)
    assert torch.equal(whole.by.grad, before.clamp(-0.1, 0.1))
    expected = joined([with_gradients_as_weights(rnn) for rnn in rnns])
    for name, parameter in whole.named_parameters():
        if name != "by":
            wanted = (2 if name == "Why" else 0.5) * getattr(expected, name)
            assert (wanted.abs() == wanted.abs().max()).sum() > 1, name  # some are clipped
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_logits_are_what_the_steps_add(layers, bidirectional, readout):
    whole = joined(members((3, 3), layers, bidirectional, readout))
    by, steps = whole.by, []
    logits = member_logits(whole, rows_of_members(2), ids(), LENGTHS, steps)
    for k, (found, added) in enumerate(zip(logits, steps, strict=True)):
        assert len(added) == 1 + bidirectional
        for b, length in enumerate(LENGTHS[k::2].tolist()):
            if length:
                real = sum(y[b, :length] for y in added)
                read = real.mean(0) if readout == "mean" else by + real.sum(0)
                torch.testing.assert_close(found[b], read, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_a_step_adds_what_the_output_gains(bias):
    torch.manual_seed(0)
    rnn = RNN(D, 4, 2, readout="last", bias=bias, dtype=torch.float64)
    steps = []
    member_logits(rnn, rows_of_members(1), ids(), LENGTHS, steps)
    ((added,),) = steps
    h = rnn.states(ids(), LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        y = h[row, :length] @ rnn.Why.t()
        torch.testing.assert_close(added[row, :length].cumsum(0), y, rtol=0, atol=1e-12)


def test_what_a_step_adds_is_not_rounded_before_the_difference():
    torch.manual_seed(0)
    rnn = RNN(5, 8, 1, init="integrator", readout="last")
    x, (plain, rounded) = torch.randint(5, (1, 400)), ([], [])
    member_logits(rnn, rows_of_members(1), x, None, plain)
    with torch.autocast("cpu", torch.bfloat16):
        member_logits(rnn, rows_of_members(1), x, None, rounded)
    exact, found = (steps[0][0].float().flatten() for steps in (plain, rounded))
    assert torch.cosine_similarity(exact, found, dim=0) > 0.9999


def test_dropout_is_that_of_the_rnn():
    whole = joined(members((3, 3), 2, dropout=0.5, recurrent_dropout=0.5))
    torch.manual_seed(1)
    first, second = (torch.stack(member_logits(whole, rows_of_members(2), ids())) for _ in range(2))
    assert not torch.equal(first, second)
    whole.eval()
    twice = ids().repeat_interleave(2, dim=0)  # each member reads each row
    torch.testing.assert_close(
        torch.stack(member_logits(whole, rows_of_members(2), twice)).mean(0), whole(ids())
    )


def test_rows_of_members():
    rows = list(range(17))
    assert [rows[own] for own in rows_of_members(3)] == [rows[k::3] for k in range(3)]
    for n, world in ((3, 2), (2, 2), (4, 6), (3, 1), (2, 40)):
        found = [[] for _ in range(n)]
        for rank in range(world):
            for member, own in zip(found, rows_of_members(n, rank, world), strict=True):
                member += rows[rank::world][own]
        assert [sorted(member) for member in found] == [rows[k::n] for k in range(n)]
    whole = joined(members((2, 2, 2)))
    logits = member_logits(whole, rows_of_members(3), ids()[:2], LENGTHS[:2])
    assert [len(y) for y in logits] == [1, 1, 0]


@pytest.mark.bad_input
def test_refuses_what_differs():
    with pytest.raises(ValueError, match=r"'readout': 'max'.*they must be equal but for hidden_size"):
        joined([RNN(D, 2, C), RNN(D, 2, C, readout="max")])
    with pytest.raises(ValueError, match=r"torch.float64.*they must be equal but for hidden_size"):
        joined([RNN(D, 2, C), RNN(D, 3, C).double()])
    with pytest.raises(ValueError, match=r"^rnns is empty; there must be at least one RNN$"):
        joined([])
    for given in (RNN(D, 2, C), [torch.nn.RNN(D, 2)]):
        with pytest.raises(TypeError, match=r"^rnns is not a sequence of torch_rnn\.RNN$"):
            joined(given)


def test_how_it_is_computed_is_that_of_the_first():
    whole = joined([RNN(D, 2, C, backend="bptt", recompute=True), RNN(D, 3, C)])
    assert (whole.backend, whole.recompute) == ("bptt", True)
