"""RNNs in blocks: the logits are the mean of the members', the gradients those of RNNs of their own."""

import itertools

import pytest
import torch

from torch_rnn import RNN
from torch_rnn.nn.members import joined, member_logits

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
    direction = torch.randn(2, *rnns[0](ids(), LENGTHS).shape, dtype=torch.float64)
    logits = member_logits(whole, 2, ids(), LENGTHS)
    for found, rnn in zip(logits, rnns, strict=True):
        torch.testing.assert_close(found, rnn(ids(), LENGTHS), rtol=0, atol=1e-12)
    (torch.stack(logits) * direction).sum().backward()
    for rnn, weight in zip(rnns, direction, strict=True):
        (rnn(ids(), LENGTHS) * weight).sum().backward()
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


def test_dropout_is_that_of_the_rnn():
    whole = joined(members((3, 3), 2, dropout=0.5, recurrent_dropout=0.5))
    torch.manual_seed(1)
    first, second = (torch.stack(member_logits(whole, 2, ids())) for _ in range(2))
    assert not torch.equal(first, second)
    whole.eval()
    torch.testing.assert_close(torch.stack(member_logits(whole, 2, ids())).mean(0), whole(ids()))


@pytest.mark.bad_input
def test_refuses_what_differs():
    with pytest.raises(ValueError, match=r"'readout': 'max'.*they must be equal but for hidden_size"):
        joined([RNN(D, 2, C), RNN(D, 2, C, readout="max")])
