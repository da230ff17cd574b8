"""RNN: shapes, readouts, training steps, fit, predict and evaluate, saving, and the input that it refuses."""

import copy

import numpy as np
import pytest
import torch
from ladder import READOUTS, rung_4

from torch_rnn import RNN, NumpyRNN
from torch_rnn.losses import cross_entropy
from torch_rnn.nn.readout import READOUTS as ALL_READOUTS
from torch_rnn.nn.readout import read
from torch_rnn.ops import available

ids = torch.tensor([[3, 1, 4, 1], [5, 0, 2, 2]])


def test_parameter_names_and_shapes():
    rnn = RNN(6, 4, 3)
    shapes = {name: tuple(parameter.shape) for name, parameter in rnn.named_parameters()}
    assert shapes == {"Wxh": (4, 6), "Whh": (4, 4), "Why": (3, 4), "bh": (4,), "by": (3,)}


def test_a_column_of_Wxh_stays_contiguous():
    rnn = RNN(6, 4, 3)
    twin = copy.deepcopy(rnn)
    twin.load_state_dict({name: value.contiguous() for name, value in rnn.state_dict().items()})
    rnn(ids).sum().backward()
    adam = torch.optim.Adam(rnn.parameters())
    adam.step()
    for tensor in (rnn.Wxh, twin.Wxh, twin.double().Wxh, rnn.Wxh.grad, adam.state[rnn.Wxh]["exp_avg"]):
        assert tensor.shape == (4, 6)
        assert tensor.stride() == (1, 4)


@pytest.mark.parametrize("readout", ALL_READOUTS)
def test_shapes_of_logits_and_states(readout):
    rnn = RNN(6, 4, 3, readout=readout)
    for x in (ids, torch.randn(2, 4, 6)):
        assert rnn(x).shape == ((2, 4, 3) if readout == "every" else (2, 3))
        assert rnn.states(x).shape == (2, 4, 4)
        assert rnn(x[0]).shape == ((4, 3) if readout == "every" else (3,))
        assert rnn.states(x[0]).shape == (4, 4)
        torch.testing.assert_close(rnn(x[0]), rnn(x)[0], rtol=0, atol=1e-6)
    assert rnn(ids[:0]).shape == ((0, 4, 3) if readout == "every" else (0, 3))


@pytest.mark.parametrize("readout", ALL_READOUTS)
def test_padding_is_never_read(readout):
    rnn = RNN(6, 4, 3, readout=readout, dtype=torch.float64)
    lengths, h0 = torch.tensor([2, 4]), torch.randn(2, 4, dtype=torch.float64)
    for x, invalid in ((ids, -9), (torch.randn(2, 4, 6).double(), torch.nan)):
        x = x.clone()
        x[0, 2:] = invalid
        got = rnn(x, lengths, h0)
        alone = rnn(x[:1, :2], None, h0[:1])
        torch.testing.assert_close(got[0, :2] if readout == "every" else got[0], alone[0], rtol=0, atol=1e-12)
        gradients = torch.autograd.grad(got.sum(), list(rnn.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("readout", ["last", "mean", "max"])
def test_readouts_are_not_rounded_under_autocast(readout):
    h = torch.randn(3, 200, 5)
    lengths = torch.tensor([200, 111, 37])
    expected = read(readout, h, h[:, -1], lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(read(readout, h, h[:, -1], lengths), expected)


@pytest.mark.parametrize("readout", ["last", "mean", "max"])
def test_readout_of_the_states_at_real_steps(readout):
    rnn = RNN(6, 4, 3, readout=readout)
    lengths, h0 = torch.tensor([3, 0]), torch.randn(2, 4)
    h = rnn.states(ids, lengths, h0)
    pooled = {"last": h[0, 2], "mean": h[0, :3].mean(0), "max": h[0, :3].max(0).values}[readout]
    want = torch.stack([pooled, h0[1]]) @ rnn.Why.t() + rnn.by
    torch.testing.assert_close(rnn(ids, lengths, h0), want)
    no_steps = rnn(ids[:, :0], None, h0)
    torch.testing.assert_close(no_steps, h0 @ rnn.Why.t() + rnn.by)


@pytest.mark.parametrize("backend", available("cpu"))
@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ten_clipped_training_steps_equal_the_references(readout, C, backend, dtype):
    rung_4(backend, readout, C, dtype)


def test_fit_predict_and_evaluate_equal_the_references():
    x, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    reference = NumpyRNN(2, 16, 1)
    rnn = RNN.from_numpy(reference)
    np.testing.assert_allclose(
        rnn.fit(x, y, epochs=300, learning_rate=0.1), reference.train(x, y, 300, 0.1), rtol=1e-9
    )
    assert [int(rnn.predict(s)) for s in x] == [reference.predict(s) for s in x] == y
    assert rnn.predict(torch.tensor(x)).tolist() == y
    assert rnn.evaluate(x, y, batch_size=3) == pytest.approx(reference.evaluate(x, y), rel=1e-9)


def test_fit_and_evaluate_accept_the_references_input():
    reference = NumpyRNN(2, 4, 1)
    rnn = RNN.from_numpy(reference)
    x, y = [[], [[1, 0], [0, 1]], [[0.5, 2.0]], [1, 0]], [1, True, 0.0, 1]
    np.testing.assert_allclose(rnn.fit(x, y, 3), reference.train(x, y, 3), rtol=1e-12)
    for kind in (slice(0, 4, 3), slice(1, 3)):  # a batch has either ids or floats
        assert rnn.evaluate(x[kind], y[kind]) == pytest.approx(
            reference.evaluate(x[kind], y[kind]), rel=1e-12
        )


@pytest.mark.cuda
def test_on_cuda_bad_values_are_refused_before_they_reach_the_device():
    rnn = RNN(6, 4, 3, device="cuda")
    for call in (
        lambda: rnn.predict([[6]]),
        lambda: rnn.fit([[0]], [3], epochs=1),
        lambda: rnn.evaluate([[0]], [-1]),
        lambda: rnn(torch.zeros(1, 2, dtype=torch.long, device="cuda"), torch.tensor([3])),
    ):
        with pytest.raises(ValueError, match="must be in"):
            call()
        assert rnn.predict([[5]]).is_cuda


@pytest.mark.parametrize("readout", READOUTS)
def test_evaluate_takes_sequences_of_any_length(readout):
    reference = NumpyRNN(6, 4, 3, readout=readout)
    rnn = RNN.from_numpy(reference)
    rng = np.random.default_rng(0)
    x = [rng.integers(6, size=n) for n in (3, 1, 9, 4, 4)]
    y = [rng.integers(3, size=len(s)) if readout == "every" else int(rng.integers(3)) for s in x]
    for batch_size in (1, 2, 32):
        assert rnn.evaluate(x, y, batch_size) == pytest.approx(reference.evaluate(x, y), rel=1e-12)


def test_initial_weights():
    rnn = RNN(50, 8, 3)
    for matrix in (rnn.Wxh, rnn.Whh, rnn.Why):
        torch.testing.assert_close(matrix @ matrix.t(), torch.eye(len(matrix)), atol=1e-5, rtol=0)
    small = RNN(50, 8, 3, init="seed")
    assert 0.008 < small.Wxh.std() < 0.012
    assert not any(bias.any() for bias in (rnn.bh, rnn.by, small.bh, small.by))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("init", ["orthogonal", "seed"])
def test_scales_multiply_the_initial_weights_of_the_input_and_the_recurrence(init, dtype):
    settings = {"num_layers": 2, "bidirectional": True, "init": init, "dtype": dtype}
    torch.manual_seed(0)
    plain = RNN(6, 4, 3, **settings)
    torch.manual_seed(0)
    scaled = RNN(6, 4, 3, **settings, input_scale=8.0, recurrent_scale=0.5)
    for name, value in plain.named_parameters():
        bottom = name in ("Wxh", "Wxh_reverse")
        factor = 8.0 if bottom else 0.5 if name.startswith("Whh") else 1.0
        assert torch.equal(scaled.get_parameter(name), value * factor), name
    torch.manual_seed(0)
    scaled.reset_parameters()
    assert torch.equal(scaled.Wxh, plain.Wxh * 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_integrators_begin_as_sums_of_the_others(dtype):
    settings = {"num_layers": 2, "bidirectional": True, "recurrent_scale": 0.5, "dtype": dtype}
    torch.manual_seed(0)
    plain = RNN(6, 12, 1, **settings)
    torch.manual_seed(0)
    rnn = RNN(6, 12, 1, **settings, init="integrator")
    for name, value in plain.named_parameters():
        found = rnn.get_parameter(name)
        if name.startswith("Wx"):
            assert not found[:3].any()
            assert torch.equal(found[3:], value[3:])
        elif name.startswith("Whh"):
            assert torch.equal(found[:3, :3], torch.eye(3, dtype=dtype))
            assert not found[3:, :3].any()
            assert torch.equal(found[3:, 3:], value[3:, 3:])
            assert 0.3 < found[:3, 3:].norm(dim=1).mean() / 0.02 < 3
        else:
            assert torch.equal(found, value)


def test_an_integrator_is_the_sum_of_what_it_is_given():
    rnn = RNN(6, 8, 1, init="integrator", dtype=torch.float64)
    h = rnn.states(torch.randint(6, (40,), generator=torch.Generator().manual_seed(0)))
    added = (h[:, 2:] @ rnn.Whh[:2, 2:].t()).cumsum(0)[:-1]
    torch.testing.assert_close(h[1:, :2], added, atol=1e-3, rtol=0.05)


@pytest.mark.parametrize("hidden_size", [64, 256])
def test_what_an_integrator_adds_in_a_step_does_not_depend_on_the_size(hidden_size):
    torch.manual_seed(0)
    n = hidden_size // 4
    Whh = RNN(6, hidden_size, 1, init="integrator").Whh[:n, n:].detach()
    added = torch.randn(500, hidden_size - n) @ Whh.t()
    assert added.square().mean().sqrt() == pytest.approx(0.02, rel=0.1)
    assert Whh.mean().abs() < 0.1 * Whh.std()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_save_and_load(tmp_path, dtype):
    rnn = RNN(6, 4, 3, readout="max", init="seed", input_scale=3, recurrent_scale=0.5, dtype=dtype)
    rnn.save(tmp_path / "rnn.safetensors")
    loaded = RNN.load(tmp_path / "rnn.safetensors", backend="eager")
    assert loaded.settings == rnn.settings
    assert loaded.backend == "eager"
    assert loaded.Wxh.dtype == dtype
    assert loaded.Wxh.stride() == (1, 4)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in rnn.state_dict().items())


def test_repr_shows_the_settings():
    assert repr(RNN(6, 4, 3)) == "RNN(6, 4, 3)"
    assert repr(RNN(6, 4, 3, bias=False, readout="max")) == "RNN(6, 4, 3, bias=False, readout='max')"


def test_fit_leaves_frozen_parameters():
    rnn = RNN(6, 4, 3)
    rnn.Whh.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in rnn.named_parameters()}
    rnn.fit([[0, 1]], [1], epochs=1)
    changed = {name for name, parameter in rnn.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"Wxh", "bh", "Why", "by"}
    with pytest.raises(ValueError, match="no parameter of the RNN requires a gradient"):
        rnn.requires_grad_(False).fit([[0, 1]], [1], epochs=1)


def test_a_state_that_is_nan_is_no_fault_of_the_input():
    for layers in (1, 2):
        rnn = RNN(6, 4, 3, num_layers=layers)
        with torch.no_grad():
            rnn.Whh.fill_(torch.nan)
        assert rnn(ids).isnan().all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size is 0; it must be at least 1"),
        ({"hidden_size": 2.5}, TypeError, "hidden_size is 2.5; it must be a whole number"),
        ({"output_size": -3}, ValueError, "output_size is -3"),
        ({"readout": "first"}, ValueError, "readout is 'first'; it must be one of last, mean, max, every"),
        ({"init": "xavier"}, ValueError, "init is 'xavier'; it must be one of orthogonal, seed, integrator"),
        (
            {"init": "integrator", "nonlinearity": "relu"},
            ValueError,
            "it needs the nonlinearity tanh or linear",
        ),
        (
            {"init": "integrator", "hidden_size": 3},
            ValueError,
            "hidden_size is 3; with init 'integrator' it must",
        ),
        ({"input_scale": 0}, ValueError, "input_scale is 0; it must be above 0 and finite"),
        ({"input_scale": "10"}, TypeError, "input_scale is '10'; it must be a number"),
        ({"recurrent_scale": -1.0}, ValueError, "recurrent_scale is -1.0; it must be above 0"),
        ({"recurrent_scale": float("nan")}, ValueError, "recurrent_scale is nan"),
        ({"recurrent_scale": True}, TypeError, "recurrent_scale is True; it must be a number"),
        ({"backend": "numpy"}, ValueError, "backend is 'numpy'"),
        ({"dtype": torch.float16}, TypeError, "dtype is torch.float16"),
        ({"recompute": "no"}, TypeError, "recompute is 'no'; it must be True or False"),
        ({"nonlinearity": ["tanh"]}, ValueError, r"nonlinearity is \['tanh'\]; it must be one of tanh"),
        ({"device": "cuda:99"}, ValueError, "device is 'cuda:99'; th"),
    ],
)
def test_refuses_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        RNN(**{"input_size": 2, "hidden_size": 2, "output_size": 1, **settings})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.randn(4, 5),), ValueError, r"x has shape \(4, 5\); floats must be \(B, T, 6\) or \(T, 6\)"),
        ((torch.randn(6),), ValueError, r"x has shape \(6,\)"),
        ((torch.tensor([[6]]),), ValueError, r"x has ids in 6\.\.6; they must be in 0\.\.5"),
        ((torch.tensor(3),), ValueError, r"x has shape \(\)"),
        (("text",), TypeError, "x is a str"),
        ((ids[0], torch.tensor([4])), ValueError, "lengths is given for one sequence"),
        ((ids[0], None, torch.zeros(1, 4)), ValueError, r"h0 has shape \(1, 4\); it must be \(4,\)"),
        ((ids[0], None, [0.0] * 4), TypeError, "h0 is a list"),
        ((ids, torch.tensor([5, 1])), ValueError, r"lengths are in 1\.\.5; they must be in 0\.\.4"),
        ((ids, [4, 4]), TypeError, "lengths is a list"),
    ],
)
def test_refuses_bad_input_and_still_works_afterwards(arguments, error, message):
    rnn = RNN(6, 4, 3)
    with pytest.raises(error, match=message):
        rnn(*arguments)
    assert rnn(ids).shape == (2, 3)


@pytest.mark.bad_input
def test_fit_predict_and_evaluate_refuse_bad_input():
    rnn = RNN(6, 4, 3)
    with pytest.raises(ValueError, match=r"labels are in 3\.\.3; they must be in 0\.\.2"):
        rnn.fit([[0, 1]], [3], epochs=1)
    with pytest.raises(ValueError, match=r"x has ids in 6\.\.6; they must be in 0\.\.5"):
        rnn.predict([[6]])
    with pytest.raises(ValueError, match=r"labels have shape \(1,\); these logits need \(\)"):
        rnn.evaluate([[0, 1]], [[1]])
    with pytest.raises(ValueError, match=r"labels have shape \(1,\); these logits need \(2,\)"):
        RNN(6, 4, 3, readout="every").evaluate([[1, 2], [1]], [[0], [1, 2]])
    with pytest.raises(ValueError, match="data has sha256"):
        rnn.save("unused", sha256="")
    with pytest.raises(ValueError, match="x has 2 sequences and y 1 labels"):
        rnn.evaluate([[0], [1]], [0])
    with pytest.raises(ValueError, match="x_train has 2 sequences, y_train 1 labels"):
        rnn.fit([[0], [1]], [0])
    with pytest.raises(ValueError, match="x has rows of different lengths; pad them, and give lengths"):
        rnn.predict([[0, 1], [1]])
    with pytest.raises(TypeError, match=r"x is torch\.uint16; it must be floats, or ids in one of"):
        rnn.predict(np.zeros((1, 2), dtype=np.uint16))
    rnn.readout = "sum"
    with pytest.raises(ValueError, match="readout is 'sum'; it must be one of last, mean, max, every"):
        rnn(ids)
    rnn.readout = "last"
    with pytest.raises(ValueError, match="batch_size is 0"):
        rnn.evaluate([[0]], [0], batch_size=0)
    with pytest.raises(ValueError, match="x is empty"):
        rnn.evaluate([], [])
    with pytest.raises(TypeError, match=r"labels are torch\.float32"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="labels have shape"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(3).long())
