"""Layers, directions and masks against a plain loop over rows and steps."""

import copy
import itertools

import pytest
import torch
from torch import Tensor

from torch_rnn import RNN
from torch_rnn.ops import available
from torch_rnn.testing import assert_parity

B, T, D, H, C = 5, 7, 6, 4, 3
F = {"tanh": torch.tanh, "relu": torch.relu, "linear": lambda a: a}
LENGTHS = torch.tensor([7, 0, 3, 1, 6])
HOLES = torch.tensor(
    [
        [1, 0, 1, 1, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 1, 0, 0, 0, 0, 0],
    ]
).bool()


def by_definition(rnn: RNN, x: Tensor, h0: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the top layer's states (B, T, directions * H) and all last states (n, B, H)."""
    parameters, last, number = dict(rnn.named_parameters()), [], 0
    rows = x if x.is_floating_point() else torch.eye(D, dtype=torch.float64)[x]
    for layer in range(rnn.num_layers):
        out = []
        for direction in range(2 if rnn.bidirectional else 1):
            name = (f"_l{layer}" if layer else "") + ("_reverse" if direction else "")
            Wxh, Whh = parameters["Wxh" + name], parameters["Whh" + name]
            bh = parameters.get("bh" + name, 0)
            states = torch.zeros(B, T, H, dtype=Wxh.dtype)
            finals = torch.zeros(B, H, dtype=Wxh.dtype)
            for b in range(B):
                h = h0[number, b]
                for t in reversed(range(T)) if direction else range(T):
                    if real[b, t]:
                        h = F[rnn.nonlinearity](Wxh @ rows[b, t] + Whh @ h + bh)
                    states[b, t] = h
                finals[b] = h
            out.append(states)
            last.append(finals)
            number += 1
        rows = torch.cat(out, dim=2)
    return rows, torch.stack(last)


@pytest.mark.parametrize("real", ["all", "lengths", "mask", "both"])
@pytest.mark.parametrize("is_ids", [True, False])
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias"), [(1, True, True), (2, False, False), (3, True, True)]
)
def test_layers_directions_and_masks(num_layers, bidirectional, bias, is_ids, real):
    torch.manual_seed(0)
    rnn = RNN(D, H, C, num_layers=num_layers, bidirectional=bidirectional, bias=bias, dtype=torch.float64)
    for parameter in rnn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    n = num_layers * (2 if bidirectional else 1)
    h0 = torch.randn(n, B, H, dtype=torch.float64, requires_grad=True)
    x = torch.randint(D, (B, T)) if is_ids else torch.randn(B, T, D, dtype=torch.float64)
    lengths = LENGTHS if real in ("lengths", "both") else None
    mask = HOLES if real in ("mask", "both") else None
    is_real = torch.ones(B, T, dtype=torch.bool)
    if lengths is not None:
        is_real = is_real & (torch.arange(T) < lengths[:, None])
    if mask is not None:
        is_real = is_real & mask
    want = by_definition(rnn, x, h0, is_real)
    x = x.clone()
    x[~is_real] = -5 if is_ids else torch.nan
    start = h0 if n > 1 else h0[0]
    got = rnn.states(x, lengths, start, mask, final=True)
    for name, actual, expected in zip(("h", "hT"), got, want, strict=True):
        assert_parity(name, actual, expected, torch.float64)
    given = [*rnn.parameters(), h0]
    random = [torch.randn_like(tensor) for tensor in want]
    gradients = torch.autograd.grad(got, given, random, materialize_grads=True)
    for actual, expected in zip(
        gradients, torch.autograd.grad(want, given, random, materialize_grads=True), strict=True
    ):
        assert_parity("gradient", actual, expected, torch.float64)


@pytest.mark.parametrize("backend", available("cpu"))
@pytest.mark.parametrize("nonlinearity", F)
def test_every_backend_has_layers_and_nonlinearities(backend, nonlinearity):
    torch.manual_seed(0)
    settings = {"num_layers": 2, "bidirectional": True, "nonlinearity": nonlinearity, "dtype": torch.float64}
    rnn = RNN(D, H, C, backend=backend, **settings)
    x, h0 = torch.randint(D, (B, T)), torch.randn(4, B, H, dtype=torch.float64)
    for actual, expected in zip(
        rnn.states(x, None, h0, HOLES, final=True), by_definition(rnn, x, h0, HOLES), strict=True
    ):
        assert_parity("states", actual, expected, torch.float64)


@pytest.mark.parametrize("readout", ["last", "mean", "max", "every"])
def test_readouts_of_a_mask(readout):
    rnn = RNN(D, H, C, bidirectional=True, readout=readout, dtype=torch.float64)
    x = torch.randint(D, (B, T))
    h, hT = rnn.states(x, mask=HOLES, final=True)
    for b, t in itertools.product(range(B), range(T)):
        last = torch.cat([hT[0, b], hT[1, b]])
        if readout == "every":
            got, want = rnn(x, mask=HOLES)[b, t], h[b, t]
        else:
            real = h[b, HOLES[b]]
            pooled = {"last": last, "mean": real.mean(0), "max": real.max(0).values if len(real) else last}
            got, want = rnn(x, mask=HOLES)[b], pooled[readout] if len(real) else last
        torch.testing.assert_close(got, rnn.Why @ want + rnn.by, rtol=0, atol=1e-12)


def test_a_prefix_mask_equals_lengths_and_padding_in_front_is_ignored():
    rnn = RNN(D, H, C, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randint(D, (B, T))
    mask = torch.arange(T) < LENGTHS[:, None]
    for actual, expected in zip(
        rnn.states(x, LENGTHS, final=True), rnn.states(x, mask=mask, final=True), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    front = torch.nn.functional.pad(x, (3, 0))
    mask = torch.nn.functional.pad(torch.ones(B, T, dtype=torch.bool), (3, 0))
    torch.testing.assert_close(rnn(front, mask=mask), rnn(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_steps_give_h0(bidirectional):
    rnn = RNN(D, H, C, num_layers=2, bidirectional=bidirectional)
    h0 = torch.randn(4 if bidirectional else 2, B, H)
    h, hT = rnn.states(torch.zeros(B, 0, dtype=torch.long), None, h0, final=True)
    assert h.shape == (B, 0, H * (2 if bidirectional else 1))
    assert torch.equal(hT, h0)
    top = h0[-2:].transpose(0, 1).flatten(1) if bidirectional else h0[-1]
    torch.testing.assert_close(rnn(torch.zeros(B, 0, D), None, h0), top @ rnn.Why.t() + rnn.by)


def test_the_next_call_continues_from_hT():
    for num_layers in (1, 3):
        rnn = RNN(D, H, C, num_layers=num_layers, dtype=torch.float64)
        x = torch.randint(D, (B, T))
        whole, end = rnn.states(x, final=True)
        first, h = rnn.states(x[:, :3], final=True)
        assert h.shape == ((B, H) if num_layers == 1 else (3, B, H))
        second, h = rnn.states(x[:, 3:], None, h, final=True)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        torch.testing.assert_close(h, end)
        single, h = rnn.states(x[0], final=True)
        torch.testing.assert_close(h, end[0] if num_layers == 1 else end[:, 0])
        torch.testing.assert_close(single, whole[0])


def test_dropout_acts_only_between_layers_and_in_training():
    rnn = RNN(D, H, C, num_layers=2, dropout=0.5)
    x = torch.randint(D, (B, T))
    assert not torch.equal(rnn(x), rnn(x))
    torch.manual_seed(1)
    first = rnn(x)
    torch.manual_seed(1)
    assert torch.equal(first, rnn(x))
    _, hT = rnn.states(x, final=True)
    _, again = rnn.states(x, final=True)
    assert torch.equal(hT[0], again[0])
    assert not torch.equal(hT[1], again[1])
    rnn.eval()
    assert torch.equal(rnn(x), rnn(x))


def test_recurrent_dropout_thins_Whh_in_training():
    rnn = RNN(D, 50, C, recurrent_dropout=0.4, dtype=torch.float64)
    h0 = torch.eye(50, dtype=torch.float64)
    ids = torch.zeros(50, 1, dtype=torch.long)
    linear = RNN(D, 50, C, recurrent_dropout=0.4, nonlinearity="linear", bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(linear.Wxh)
    Whh = linear.states(ids, None, h0)[:, 0].t()  # after dropout
    kept = Whh != 0
    assert 0.5 < kept.double().mean() < 0.7
    torch.testing.assert_close(Whh[kept], linear.Whh[kept] / 0.6)
    torch.testing.assert_close(linear.eval().states(ids, None, h0)[:, 0].t(), linear.Whh)
    assert not torch.equal(rnn(ids, None, h0), rnn(ids, None, h0))


def test_predict_and_evaluate_turn_dropout_off():
    rnn = RNN(D, 20, C, num_layers=2, dropout=0.5, recurrent_dropout=0.5)
    x = torch.randint(D, (40, T))
    logits = copy.deepcopy(rnn).eval()(x)
    y = logits.argmax(1)
    assert torch.equal(rnn.predict(x), y)
    loss, accuracy = rnn.evaluate(x, y)
    assert accuracy == 1.0
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert rnn.training
    with pytest.raises(ValueError, match="x has ids in"):
        rnn.predict(x + D)
    assert rnn.training


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "num_layers is 0; it must be at least 1"),
        ({"bidirectional": "yes"}, TypeError, "bidirectional is 'yes'; it must be True or False"),
        ({"bias": None}, TypeError, "bias is None; it must be True or False"),
        (
            {"nonlinearity": "sigmoid"},
            ValueError,
            "nonlinearity is 'sigmoid'; it must be one of tanh, relu, linear",
        ),
        (
            {"dropout": 0.5},
            ValueError,
            "dropout is 0.5; it acts between layers, so with one layer it must be 0",
        ),
        ({"dropout": 1.0, "num_layers": 2}, ValueError, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout is -0.1"),
        ({"recurrent_dropout": "0.1"}, TypeError, "recurrent_dropout is '0.1'; it must be a number"),
    ],
)
def test_refuses_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        RNN(**{"input_size": 2, "hidden_size": 2, "output_size": 1, **settings})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": [[True] * T] * B}, TypeError, "mask is a list"),
        ({"mask": torch.ones(B, T)}, TypeError, "mask is torch.float32; it must be torch.bool"),
        (
            {"mask": HOLES[:, 1:]},
            ValueError,
            r"mask has shape \(5, 6\); it must be \(5, 7\), as the steps of x",
        ),
        (
            {"mask": HOLES, "lengths": LENGTHS + 1},
            ValueError,
            r"lengths are in 1\.\.8; they must be in 0\.\.7",
        ),
        ({"h0": torch.tensor([0, 0, 0, torch.nan])[:, None, None].expand(4, B, H)}, ValueError, "h0 has NaN"),
        ({"h0": torch.zeros(B, H)}, ValueError, r"h0 has shape \(5, 4\); it must be \(4, 5, 4\)"),
    ],
)
def test_refuses_bad_input(arguments, error, message):
    rnn = RNN(D, H, C, num_layers=2, bidirectional=True)
    with pytest.raises(error, match=message):
        rnn(torch.zeros(B, T, dtype=torch.long), **arguments)
