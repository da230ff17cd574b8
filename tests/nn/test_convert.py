"""Weights from and to torch.nn and Keras give the same logits."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from torch_rnn import RNN

B, T, D, H, C = 3, 6, 5, 4, 2
KINDS = [(1, False, True), (1, True, True), (2, False, False), (3, True, True)]


def theirs(num_layers, bidirectional, bias, nonlinearity="tanh"):
    rnn = nn.RNN(
        D, H, num_layers, bidirectional=bidirectional, bias=bias, nonlinearity=nonlinearity, batch_first=True
    )
    return rnn.double(), nn.Linear(H * (2 if bidirectional else 1), C, bias=bias).double()


def logits(rnn, linear, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    h, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=T)
    return linear(h)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), KINDS)
def test_from_torch_and_back(num_layers, bidirectional, bias, nonlinearity):
    torch.manual_seed(0)
    rnn, linear = theirs(num_layers, bidirectional, bias, nonlinearity)
    x, lengths = torch.randn(B, T, D).double(), torch.tensor([6, 1, 4])
    ours = RNN.from_torch(rnn, linear, readout="every")
    real = torch.arange(T) < lengths[:, None]
    want = logits(rnn, linear, x, lengths)[real]
    torch.testing.assert_close(ours(x, lengths)[real], want, rtol=0, atol=1e-12)
    back = ours.to_torch()
    torch.testing.assert_close(logits(*back, x, lengths)[real], want, rtol=0, atol=1e-12)
    last = RNN.from_torch(rnn, linear)
    _, hT = rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    top = torch.cat([hT[-2], hT[-1]], dim=1) if bidirectional else hT[-1]
    torch.testing.assert_close(last(x, lengths), linear(top), rtol=0, atol=1e-12)
    assert last.Wxh.data_ptr() != rnn.weight_ih_l0.data_ptr()


def test_from_torch_gives_a_bias_where_one_of_the_two_has_none():
    rnn, linear = nn.RNN(D, H, bias=False, batch_first=True), nn.Linear(H, C)
    x = torch.randn(B, T, D)
    torch.testing.assert_close(RNN.from_torch(rnn, linear)(x), linear(rnn(x)[1][0]))
    rnn, linear = nn.RNN(D, H, batch_first=True), nn.Linear(H, C, bias=False)
    torch.testing.assert_close(RNN.from_torch(rnn, linear)(x), linear(rnn(x)[1][0]))


def test_refuses_what_torch_cannot_represent():
    with pytest.raises(ValueError, match=r"linear takes 5 features; this rnn gives 8"):
        RNN.from_torch(nn.RNN(D, H, bidirectional=True), nn.Linear(5, C))
    with pytest.raises(TypeError, match=r"rnn is of the type LSTM; it must be an nn\.RNN"):
        RNN.from_torch(nn.LSTM(D, H), nn.Linear(H, C))
    with pytest.raises(ValueError, match=r"nonlinearity is 'linear'; torch\.nn\.RNN has tanh and relu"):
        RNN(D, H, C, nonlinearity="linear").to_torch()


def keras_model(weights, x, bidirectional, bias):
    """Computes a Keras model on a sequence x (T, D): SimpleRNN layers that return sequences, then a Dense."""
    weights = list(weights)

    def simple_rnn(x):
        kernel, recurrent, b = weights.pop(0), weights.pop(0), weights.pop(0) if bias else 0
        h, states = np.zeros(H), []
        for step in x:
            h = np.tanh(step @ kernel + h @ recurrent + b)
            states.append(h)
        return np.stack(states)

    while len(weights) > 2:
        forward = simple_rnn(x)
        x = np.concatenate([forward, simple_rnn(x[::-1])[::-1]], axis=1) if bidirectional else forward
    return x @ weights[0] + (weights[1] if bias else 0)


@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), KINDS)
def test_from_keras_and_back(num_layers, bidirectional, bias):
    rng, weights, width = np.random.default_rng(0), [], D
    for _ in range(num_layers):
        for _ in range(2 if bidirectional else 1):
            weights += [rng.normal(size=(width, H)) / 2, rng.normal(size=(H, H)) / 2]
            weights += [rng.normal(size=H)] if bias else []
        width = H * (2 if bidirectional else 1)
    weights += [rng.normal(size=(width, C))] + ([rng.normal(size=C)] if bias else [])
    ours = RNN.from_keras(weights, bidirectional=bidirectional, readout="every")
    x = rng.normal(size=(T, D))
    want = keras_model(weights, x, bidirectional, bias)
    np.testing.assert_allclose(ours(torch.from_numpy(x)).detach().numpy(), want, atol=1e-12)
    back = ours.to_keras()
    assert len(back) == len(weights)
    assert all(np.array_equal(actual, expected) for actual, expected in zip(back, weights, strict=True))
    rounded = ours.bfloat16().to_keras()
    assert all(array.dtype == np.float32 for array in rounded)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(5, 4), (4, 4), (4,)], r"weights have the shapes \(5, 4\), \(4, 4\), \(4,\); they must be kernel"),
        ([(5, 4), (4, 3), (4,), (4, 2), (2,)], r"the Whh of layer 0 has shape \(4, 3\); it must be \(4, 4\)"),
        ([(5, 4), (4, 4), (4,), (3, 2), (2,)], r"the Dense layer's kernel has shape \(3, 2\)"),
        ([(5, 4), (4, 4), (4,), (4, 2), (3,)], r"the Dense layer's bias has shape \(3,\)"),
        ([(5, 4)], "they must be kernel, recurrent_kernel of each direction"),
    ],
)
def test_from_keras_refuses_other_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        RNN.from_keras([np.zeros(shape) for shape in shapes])


def test_saved_and_loaded_with_every_setting(tmp_path):
    rnn = RNN(
        D,
        H,
        C,
        num_layers=2,
        bidirectional=True,
        nonlinearity="relu",
        bias=False,
        dropout=0.1,
        recurrent_dropout=0.2,
    )
    rnn.save(tmp_path / "rnn.safetensors")
    loaded = RNN.load(tmp_path / "rnn.safetensors")
    assert loaded.settings == rnn.settings
    x = torch.randn(B, T, D)
    assert torch.equal(loaded.eval()(x), rnn.eval()(x))
