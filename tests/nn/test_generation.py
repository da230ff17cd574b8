"""Drawing ids: against a loop over the reference, by row, streamed, and what is refused."""

import itertools

import language_checks
import numpy as np
import pytest
import torch
from ladder import READOUTS
from language_checks import DRAWINGS, Drawing

from torch_rnn import RNN
from torch_rnn.nn import generation
from torch_rnn.nn.generation import keep_most_probable
from torch_rnn.ops.nonlinearities import NONLINEARITIES


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def lively(V=9, H=16, **settings):
    """Returns an RNN whose predictions are neither sure nor even."""
    torch.manual_seed(4)
    rnn = RNN(V, H, V, **{"readout": "every", **settings})
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return rnn


@pytest.mark.parametrize("drawing", DRAWINGS, ids=str)
@pytest.mark.parametrize("readout", READOUTS)
def test_ids_are_those_of_a_loop_over_the_reference(readout, drawing):
    language_checks.generation(generation, readout, drawing)


@pytest.mark.parametrize("drawing", [Drawing(), Drawing(0.7, 4, 0.9), Drawing(0)], ids=str)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_layers_biases_and_nonlinearities_equal_reading_the_text_again(
    num_layers, bias, nonlinearity, drawing
):
    """Each id is what the next draw from the whole text so far gives."""
    rnn = lively(num_layers=num_layers, bias=bias, nonlinearity=nonlinearity, dtype=torch.float64)
    with torch.no_grad():
        for name in (name for (name,) in rnn.names):
            getattr(rnn, "Whh" + name).mul_(0.2)  # relu and linear states stay small
    text = torch.tensor([[1, 5, 2], [8, 0, 3]])
    got = rnn.generate(text, 12, **drawing._asdict(), generator=seeded())
    again = seeded()
    for t in range(12):
        text = torch.cat([text, rnn.generate(text, 1, **drawing._asdict(), generator=again)], dim=1)
        assert torch.equal(text[:, -1], got[:, t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_dtypes_shapes_and_one_sequence(dtype):
    rnn = lively(dtype=dtype, num_layers=2)
    for prompt in (torch.tensor([[3, 1], [4, 1]]), torch.tensor([[3, 1], [4, 1]]).int(), [[3, 1], [4, 1]]):
        text = rnn.generate(prompt, 5, generator=seeded())
        assert text.shape == (2, 5)
        assert text.dtype == torch.int64
        assert not text.requires_grad
        assert text.min() >= 0
        assert text.max() < 9
    assert rnn.generate([3, 1], 5, generator=seeded()).shape == (5,)
    assert rnn.generate([3, 1], 0).shape == (0,)
    assert rnn.generate(torch.empty(0, 2, dtype=torch.int64), 4).shape == (0, 4)


def test_a_row_does_not_depend_on_the_other_rows():
    rnn, prompt = lively(), torch.tensor([[3, 1], [4, 1], [5, 7]])
    text = rnn.generate(prompt, 30, generator=seeded())
    others = rnn.generate(torch.tensor([[0, 0], [4, 1], [8, 8]]), 30, generator=seeded())
    assert torch.equal(text[1], others[1])
    assert not torch.equal(text[0], others[0])
    assert torch.equal(text, rnn.generate(prompt, 30, generator=seeded()))
    torch.manual_seed(0)
    first = rnn.generate(prompt, 30)
    torch.manual_seed(0)
    assert torch.equal(first, rnn.generate(prompt, 30))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_steps_are_those_of_generate_and_can_be_continued(num_layers):
    rnn, prompt = lively(num_layers=num_layers), torch.tensor([[3, 1], [4, 1]])
    want = rnn.generate(prompt, 20, generator=seeded())
    g = seeded()
    steps = rnn.generate_steps(prompt, generator=g)
    text = list(itertools.islice(steps, 8)) + [next(steps) for _ in range(4)]
    assert torch.equal(torch.stack(text, dim=1), want[:, :12])
    h0 = steps.h[0] if num_layers == 1 else steps.h
    assert torch.equal(rnn.generate(text[-1][:, None], 8, h0=h0, generator=g), want[:, 12:])


def test_h0_is_the_state_before_the_prompt():
    rnn = lively(num_layers=2)
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    _, h = rnn.states(prompt[:, :3], final=True)
    for h0, part, x in ((h, prompt[:, 3:], prompt), (h[:, 0], prompt[0, 3:], prompt[0])):
        got = rnn.generate(part, 9, generator=seeded(), h0=h0.detach())
        assert torch.equal(got, rnn.generate(x, 9, generator=seeded()))


def test_dropout_is_off_in_training_too_and_weights_keep_their_gradients():
    rnn = lively(num_layers=2, dropout=0.5, recurrent_dropout=0.5)
    text = rnn.train().generate([[1, 2]], 20, generator=seeded())
    assert rnn.training
    assert torch.equal(text, rnn.eval().generate([[1, 2]], 20, generator=seeded()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in rnn.parameters())


def test_training_meanwhile_changes_nothing():
    for settings in ({"num_layers": 2}, {"bias": False}):
        rnn = lively(**settings)
        want = rnn.generate([[1, 2]], 20, generator=seeded())
        steps = rnn.generate_steps([[1, 2]], generator=seeded())
        with torch.no_grad():
            for parameter in rnn.parameters():
                parameter.zero_()
        assert torch.equal(torch.cat([next(steps) for _ in range(20)]), want[0])


def test_autocast_changes_nothing():
    rnn = lively()
    want = rnn.generate([[1, 2]], 20, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        steps = rnn.generate_steps([[1, 2]], generator=seeded())
        assert torch.equal(torch.cat([next(steps) for _ in range(20)]), want[0])
        assert steps.h.dtype == torch.float32


def test_draws_are_as_frequent_as_the_probabilities():
    rnn = lively()
    prompt = torch.tensor([[2, 7]])
    p = rnn(prompt)[0, -1].double().softmax(0)
    n = 20_000
    counts = torch.bincount(rnn.generate(prompt.expand(n, -1), 1, generator=seeded())[:, 0], minlength=9)
    assert ((counts / n - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_equals_are_kept_together_and_the_first_is_the_most_probable():
    p = torch.tensor([[0.1, 0.3, 0.3, 0.2, 0.1]], dtype=torch.float64)
    for top_k, top_p, kept in (
        (1, None, [1, 2]),
        (2, None, [1, 2]),
        (3, None, [1, 2, 3]),
        (4, None, [0, 1, 2, 3, 4]),
        (None, 0.1, [1, 2]),
        (None, 0.61, [1, 2, 3]),
        (None, 0.79, [1, 2, 3]),
        (None, 0.81, [0, 1, 2, 3, 4]),
        (3, 0.74, [1, 2]),  # of 0.8, the two make 0.75
        (3, 0.76, [1, 2, 3]),
    ):
        got = keep_most_probable(p, top_k, top_p)
        assert got[0].nonzero()[:, 0].tolist() == kept, (top_k, top_p)
        assert torch.equal(got[got > 0], p[got > 0])
    rnn = RNN(4, 2, 4)
    with torch.no_grad():
        rnn.Why.zero_()
        rnn.by.copy_(torch.tensor([0.0, 1.0, 1.0, 0.5]))
    assert rnn.generate([0], 3, temperature=0).tolist() == [1, 1, 1]
    assert set(rnn.generate([0], 60, top_k=1, generator=seeded()).tolist()) == {1, 2}


def test_an_id_without_probability_is_never_drawn(monkeypatch):
    rnn = RNN(4, 2, 4)
    with torch.no_grad():
        rnn.Why.zero_()
        rnn.by.copy_(torch.tensor([-torch.inf, 1.0, 1.0, -torch.inf]))
    for u, drawn in ((0.0, 2), (1 - 2**-53, 1)):
        with monkeypatch.context() as patched:
            patched.setattr(torch, "rand", lambda *shape, u=u, **_: torch.full(shape, u, dtype=torch.float64))
            assert rnn.generate([1], 2).tolist() == [drawn] * 2


def test_a_vocabulary_of_one_word():
    for drawing in DRAWINGS:
        assert RNN(1, 3, 1).generate([0], 3, **drawing._asdict()).tolist() == [0, 0, 0]


def test_the_lowest_temperature_is_the_most_probable_id():
    rnn = lively()
    want = rnn.generate([1, 2], 20, temperature=0)
    assert torch.equal(rnn.generate([1, 2], 20, temperature=1e-6), want)
    for number, kind in ((0.5, np.float64), (0.5, np.float32)):
        assert rnn.generate([1, 2], 20, temperature=kind(number), top_k=np.int64(2)).shape == (20,)


@pytest.mark.parametrize(
    "drawing", [{"temperature": 0}, {"temperature": 0.5}, {}, {"top_k": 2}, {"top_p": 0.5}], ids=str
)
def test_logits_that_are_no_numbers_are_refused(drawing):
    for value in (torch.nan, torch.inf):
        rnn = lively()
        with torch.no_grad():
            rnn.Why[3] = value
        with pytest.raises(ValueError, match="the logits have NaN or infinity"):
            rnn.generate([1, 2], 20, **drawing)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": -0.1}, ValueError, "temperature is -0.1; it must be 0, or 1e-06 or more"),
        ({"temperature": 1e-9}, ValueError, "temperature is 1e-09"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan"),
        ({"temperature": float("inf")}, ValueError, "temperature is inf"),
        ({"temperature": "hot"}, TypeError, "temperature is 'hot'; it must be a number"),
        ({"temperature": None}, TypeError, "temperature is None; it must be a number"),
        ({"top_k": 0}, ValueError, "top_k is 0; it must be at least 1"),
        ({"top_k": 2.0}, TypeError, "top_k is 2.0; it must be a whole number"),
        ({"top_p": 0.0}, ValueError, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, ValueError, "top_p is 1.5"),
        ({"top_p": True}, TypeError, "top_p is True; it must be a number"),
        ({"generator": 3}, TypeError, r"generator is 3; it must be a torch\.Generator"),
        ({"steps": -1}, ValueError, "steps is -1; it must be at least 0"),
        ({"steps": 1.5}, TypeError, "steps is 1.5; it must be a whole number"),
        ({"ids": [[]]}, ValueError, r"ids has shape \(1, 0\); the prompt needs at least one step"),
        ({"ids": []}, ValueError, r"ids has shape \(1, 0\)"),
        ({"ids": [[9]]}, ValueError, r"ids in 9\.\.9; they must be in 0\.\.8"),
        ({"ids": torch.zeros(1, 2, 9)}, ValueError, r"ids is torch\.float32 of shape \(1, 2, 9\)"),
        ({"ids": [[[1]]]}, ValueError, r"ids is torch\.int64 of shape \(1, 1, 1\); it must be \(B, T\)"),
        ({"ids": "text"}, TypeError, "x is text; it must be ids or numbers"),
        ({"h0": torch.zeros(2, 16)}, ValueError, r"h0 has shape \(2, 16\); it must be \(1, 16\)"),
    ],
)
def test_refuses_bad_arguments(arguments, error, message):
    rnn = lively()
    with pytest.raises(error, match=message):
        rnn.generate(**{"ids": [[1, 2]], "steps": 2, **arguments})
    if "steps" not in arguments:
        with pytest.raises(error, match=message):
            rnn.generate_steps(**{"ids": [[1, 2]], **arguments})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readout": "mean"}, "readout is 'mean'; to generate, it must be 'last' or 'every'"),
        ({"output_size": 5}, "output_size is 5; to generate, it must be input_size, 6"),
        ({"bidirectional": True}, "bidirectional is True; only one direction"),
    ],
)
def test_refuses_an_rnn_that_cannot_generate(settings, message):
    rnn = RNN(**{"input_size": 6, "hidden_size": 3, "output_size": 6, "readout": "every", **settings})
    with pytest.raises(ValueError, match=message):
        rnn.generate([[1, 2]], 2)
    with pytest.raises(ValueError, match=message):
        rnn.generate_steps([[1, 2]])


@pytest.mark.cuda
def test_on_cuda_the_text_is_that_of_the_cpu():
    rnn, prompt = lively(dtype=torch.float64), torch.tensor([[3, 1], [4, 1]])
    for drawing in DRAWINGS:
        want = rnn.cpu().generate(prompt, 20, **drawing._asdict(), generator=seeded())
        got = rnn.cuda().generate(prompt.cuda(), 20, **drawing._asdict(), generator=seeded())
        assert got.is_cuda
        assert torch.equal(got.cpu(), want)
