"""The reference: its gradient against central differences, its training, and the input that it refuses."""

import language_checks
import numpy as np
import pytest
from ladder import READOUTS, SHAPES, rung_1

from torch_rnn import NumpyRNN, reference

XOR = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.T < 100], ids=str)
def test_gradient_agrees_with_central_differences(shape, readout, C):
    rung_1(NumpyRNN, shape, readout, C)


def test_forward_is_the_equation():
    rnn = NumpyRNN(2, 3, 2)
    x = np.array([[0.5, -1.0], [2.0, 0.25]])
    h1 = np.tanh(rnn.Wxh @ x[0] + rnn.bh)
    h2 = np.tanh(rnn.Wxh @ x[1] + rnn.Whh @ h1 + rnn.bh)
    np.testing.assert_allclose(rnn.forward(x), rnn.Why @ h2 + rnn.by, rtol=1e-14)


def test_ids_equal_one_hot_vectors():
    rnn = NumpyRNN(5, 4, 3, readout="every")
    ids = np.array([3, 0, 4, 4])
    labels = np.array([0, 1, 2, 0])
    y = rnn.forward(ids)
    short = rnn.backward(ids, labels, y)
    one_hot = np.eye(5)[ids]
    np.testing.assert_allclose(rnn.forward(one_hot), y, rtol=1e-14)
    for name, gradient in rnn.backward(one_hot, labels, y).items():
        np.testing.assert_allclose(gradient, short[name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("seed", range(10))
def test_learns_the_articles_xor_from_orthogonal_weights(seed):
    rnn = NumpyRNN(2, 16, 1, seed=seed)
    losses = rnn.train(*XOR, epochs=1000)
    assert [rnn.predict(x) for x in XOR[0]] == XOR[1]
    assert losses[-1] < 0.05
    assert rnn.evaluate(*XOR) == (pytest.approx(losses[-1] / 4, rel=0.2), 1.0)


def test_never_learns_xor_from_the_articles_initial_weights():
    for seed in range(10):
        rnn = NumpyRNN(2, 16, 1, init="seed", seed=seed)
        rnn.train(*XOR, epochs=1000)
        assert [rnn.predict(x) for x in XOR[0]] != XOR[1]


def test_update_clips_each_entry_at_5():
    rnn = NumpyRNN(2, 2, 1)
    before = rnn.Whh.copy()
    zeros = {f"d{name}": np.zeros_like(getattr(rnn, name)) for name in ("Wxh", "Why", "bh", "by")}
    rnn.update({**zeros, "dWhh": np.array([[100.0, -100.0], [4.0, 0.0]])}, learning_rate=0.1)
    np.testing.assert_allclose(before - rnn.Whh, [[0.5, -0.5], [0.4, 0.0]], atol=1e-15)


def test_loss_is_the_cross_entropy_of_the_logits():
    softmax, sigmoid = NumpyRNN(1, 1, 3), NumpyRNN(1, 1, 1)
    y = np.array([1.0, 2.0, -1.0])
    assert softmax.loss(2, y) == pytest.approx(-np.log(np.exp(-1) / np.exp(y).sum()))
    assert sigmoid.loss(1, np.array([0.3])) == pytest.approx(np.log(1 + np.exp(-0.3)))
    assert sigmoid.loss(0, np.array([0.3])) == pytest.approx(np.log(1 + np.exp(0.3)))
    assert softmax.loss(0, np.array([1e4, 0, 0])) == 0.0
    assert sigmoid.loss(1, np.array([-1e4])) == pytest.approx(1e4)


def test_evaluate_weighs_every_step_equally():
    rnn = NumpyRNN(3, 4, 2, readout="every")
    x, y = [[0], [1, 2, 0]], [[1], [0, 1, 1]]
    loss, accuracy = rnn.evaluate(x, y)
    assert loss == pytest.approx(sum(rnn.loss(t, rnn.forward(s)) for s, t in zip(x, y, strict=True)) / 4)
    hits = np.concatenate([rnn.predict(s) == np.array(t) for s, t in zip(x, y, strict=True)])
    assert accuracy == hits.mean()


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0])
@pytest.mark.parametrize("readout", READOUTS)
def test_sample_draws_what_a_loop_over_forward_draws(readout, temperature):
    language_checks.numpy_sample(reference, readout, temperature)


def test_sample_is_a_function_of_its_seed():
    rnn = NumpyRNN(5, 4, 5, readout="every")
    first, same, other = (rnn.sample([1, 2], 30, seed=seed) for seed in (0, 0, 1))
    assert first.dtype == int
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert rnn.sample([1, 2], 0).shape == (0,)


def test_initial_weights():
    rnn = NumpyRNN(50, 8, 3, seed=2)
    for matrix in (rnn.Wxh, rnn.Whh, rnn.Why):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)
    small = NumpyRNN(50, 8, 3, init="seed", seed=2)
    assert 0.008 < small.Wxh.std() < 0.012
    assert not np.any([rnn.bh, small.bh])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_size": 0}, "input_size is 0"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"readout": "mean"}, "readout is 'mean'; it must be 'last' or 'every'"),
        ({"init": "zeros"}, "init is 'zeros'"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        NumpyRNN(**{"input_size": 2, "hidden_size": 2, "output_size": 1, **settings})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([0, 2], ValueError, r"ids in 0\.\.2; they must be in 0\.\.1"),
        ([-1], ValueError, r"ids in -1\.\.-1"),
        ([[1.0, 2.0, 3.0]], ValueError, r"shape \(1, 3\)"),
        ([[0.5, np.nan]], ValueError, "x has NaN"),
        ([0.5, 0.5], ValueError, r"float64 of shape \(2,\)"),
        (["a"], TypeError, "it must be"),
    ],
)
def test_refuses_bad_sequences(x, error, message):
    with pytest.raises(error, match=message):
        NumpyRNN(2, 3, 1).forward(x)


@pytest.mark.bad_input
def test_refuses_bad_labels_and_a_stale_x():
    rnn = NumpyRNN(2, 3, 1)
    y = rnn.forward([0, 1])
    with pytest.raises(ValueError, match=r"y_true is 2; each label must be a whole number in 0\.\.1"):
        rnn.loss(2, y)
    with pytest.raises(ValueError, match="y_true has shape"):
        rnn.loss([0, 1], y)
    with pytest.raises(ValueError, match="not the latest input of forward"):
        rnn.backward([0, 0], 1, y)
    with pytest.raises(ValueError, match="call forward"):
        NumpyRNN(2, 3, 1).backward([0, 0], 1, y)
    with pytest.raises(ValueError, match=r"h0 has shape \(2,\); it must be \(3,\)"):
        rnn.forward([0], [0.0, 0.0])
    with pytest.raises(ValueError, match="x_test is empty"):
        rnn.evaluate([], [])
    with pytest.raises(ValueError, match=r"x has shape \(0,\), output_size 1, input_size 2; sample needs"):
        rnn.sample([], 3)
    with pytest.raises(ValueError, match="sample needs"):
        NumpyRNN(2, 3, 2).sample([[0.5, 1.0]], 3)
