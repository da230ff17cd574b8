"""Seeded faults: each is one wrong line in a copy of the source, which a check of ladder.py must find."""

import importlib.util
import inspect
import sys

import language_checks
import pytest
import torch
from ladder import Shape, rung_1, rung_2, rung_3, rung_4

from torch_rnn import negatives, reference, softmax
from torch_rnn.nn import generation, module
from torch_rnn.ops import BACKENDS, bptt, eager, inputs

LENGTHS = Shape(4, 9, 6, 5, ids=True, lengths=(1, 9, 0, 5))
FLOATS = Shape(4, 9, 6, 5, ids=False, lengths=(9, 1, 4, 0))
FULL = Shape(3, 7, 5, 4, ids=False)
"""Rows of different lengths, with ids and with floats, and rows without padding."""


def mutant(module, right: str, wrong: str):
    """Returns a copy of the module with one wrong line. Fails where the right one is not there once."""
    source = inspect.getsource(module)
    if source.count(right) != 1:  # not with an AssertionError, which would pass for a fault that is found
        pytest.fail(f"{right!r} occurs {source.count(right)} times in {module.__name__}")
    spec = importlib.util.spec_from_loader("mutant", loader=None)
    twin = importlib.util.module_from_spec(spec)
    sys.modules["mutant"] = twin
    source = source.replace(right, wrong).replace('"torch_rnn::', '"mutant::')  # custom operations of its own
    exec(compile(source, "mutant", "exec"), twin.__dict__)
    return twin


@pytest.fixture
def fails(monkeypatch):
    """fails(rung, *arguments) checks that the rung raises AssertionError, but not without the fault."""

    def check(rung, *arguments):
        with pytest.raises(AssertionError):
            rung(*arguments)
        monkeypatch.undo()
        rung(*arguments)

    return check


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("dh = self.Whh.T @ da + dhs[t]", "dh = self.Whh @ da + dhs[t]"),
        ("dh = self.Whh.T @ da + dhs[t]", "dh = self.Whh.T @ da"),
        ("da = (1 - hs[t + 1] ** 2) * dh", "da = (1 - hs[t] ** 2) * dh"),
        ("dWhh += np.outer(da, hs[t])", "dWhh += np.outer(da, hs[t + 1])"),
        ("dWxh[:, x[t]] += da", "dWxh[:, x[t]] = da"),
        ("for t in reversed(range(T))", "for t in reversed(range(1, T))"),
        ("dhs[T] = self.Why.T @ dy", "dhs[T] = self.Why.T @ np.abs(dy)"),
        ("dWhy, dby = dy.T @ hs[1:], dy.sum(axis=0)", "dWhy, dby = dy.T @ hs[:-1], dy.sum(axis=0)"),
        ("np.exp(-np.logaddexp(0, -y))", "np.exp(-np.logaddexp(0, y))"),
    ],
)
def test_rung_1_catches_faults(right, wrong):
    twin = mutant(reference, right, wrong).NumpyRNN
    cases = [(shape, r, C) for shape in (LENGTHS, FLOATS) for r in ("last", "every") for C in (1, 3)]
    caught = 0
    for case in cases:
        try:
            rung_1(twin, *case)
        except AssertionError:
            caught += 1
    assert caught > 0


@pytest.mark.parametrize(
    ("module", "right", "wrong", "shape"),
    [
        (eager, "h @ Whh.t()", "h @ Whh", FULL),
        (eager, "h, hs = h0, []", "h, hs = torch.zeros_like(h0), []", FULL),
        (eager, "if lengths is None else", "if True else", LENGTHS),
        (eager, "(t < lengths)", "(t <= lengths)", LENGTHS),
        (eager, "(t < lengths)", "(t + 1 < lengths)", LENGTHS),
        (eager, "h @ Whh.t()", "h.detach() @ Whh.t()", FULL),
    ],
)
def test_rung_2_catches_faults(monkeypatch, fails, module, right, wrong, shape):
    monkeypatch.setitem(BACKENDS, "eager", mutant(sys.modules[module.__module__], right, wrong).eager)
    fails(rung_2, "eager", shape, "last", 1, torch.float64)


@pytest.mark.parametrize(
    ("right", "wrong", "shape"),
    [
        ("            dh_next = da @ Whh\n", "            dh_next = da @ Whh.t()\n", FULL),
        ("WhhT, unmasked = Whh.t()", "WhhT, unmasked = Whh", FULL),
        ("h, hs = h0, xw", "h, hs = torch.zeros_like(h0), xw", FULL),
        ("sum_of_products(dxw, before), dh_next", "sum_of_products(dxw, before), 0 * dh_next", FULL),
        ("torch.cat([h0[None], hs])[:-1]", "hs", FULL),
        ("torch.cat([h0[None], hs])[:-1]", "torch.cat([torch.zeros_like(h0[None]), hs])[:-1]", FULL),
        (".sum(dim=0) + rest", ".sum(dim=0)", FULL),
        (".derivative(hs)", ".derivative(hs.roll(1, 0))", FULL),
        ("else dhs[t] + dh_next", "else dhs[t]", FULL),
        ("torch.stack(das[::-1])", "torch.stack(das)", FULL),
        ("da = torch.where(real, da, 0)", "pass", LENGTHS),
        ("torch.where(real, da @ Whh, dh_t)", "da @ Whh", LENGTHS),
        ("h_next if t < unmasked else", "h_next if t <= unmasked else", FLOATS),
        ("return int(lengths.min())", "return int(lengths.max())", LENGTHS),
    ],
)
def test_rung_3_catches_faults(monkeypatch, fails, right, wrong, shape):
    monkeypatch.setitem(BACKENDS, "bptt", mutant(sys.modules[bptt.__module__], right, wrong).bptt)
    fails(rung_3, "bptt", shape, torch.float64)


def test_rung_2_catches_padding_that_is_read(monkeypatch, fails):
    twin = mutant(inputs, "x = x.masked_fill(padded if x.dim() == 2 else padded[..., None], 0)", "pass")
    monkeypatch.setattr(sys.modules[eager.__module__], "project", twin.project)
    fails(rung_2, "eager", FLOATS, "last", 1, torch.float64)


@pytest.mark.parametrize(
    ("source", "right", "wrong"),
    [
        (module, "gradient.clamp(-CLIP, CLIP)", "gradient"),
        (module, "gradient.clamp(-CLIP, CLIP)", "gradient.clamp(max=CLIP)"),
        (reference, 'np.clip(gradients["d" + name], -clip, clip)', 'gradients["d" + name]'),
    ],
)
def test_rung_4_catches_faults(monkeypatch, fails, source, right, wrong):
    twin = mutant(source, right, wrong)
    if source is module:
        monkeypatch.setattr(module.RNN, "fit", twin.RNN.fit)
    else:
        monkeypatch.setattr(reference.NumpyRNN, "update", twin.NumpyRNN.update)
    fails(rung_4, "bptt", "last", 1)


def chunks(module):
    language_checks.linear_cross_entropy(module, 7, 11, 5, True, 3)


def one_chunk(module):
    language_checks.linear_cross_entropy(module, 7, 11, 5, True, 7)


def sampled(module):
    language_checks.sampled_cross_entropy(module, True)


def sampled_from_all(module):
    language_checks.sampled_from_all(module, True)


def partition_function(module):
    language_checks.sampled_partition_function(module, negatives)


def drawing(module):
    language_checks.sampled_partition_function(softmax, module)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (chunks, "targets[start:end, None]", "targets[:rows, None]"),
        (chunks, "losses[start:end] = log_p[:, 0]", "losses[:rows] = log_p[:, 0]"),
        (chunks, "else dh[start:end]", "else dh[:rows]"),
        (chunks, "N // count + (i < N % count) for i", "N // count for i"),
        (chunks, "scatter_(1, target, log_p.expm1_())", "scatter_(1, target, log_p.exp_())"),
        (chunks, "dby += dy.sum(dim=0)", "dby = dy.sum(dim=0)"),
        (chunks, "total.addmm_(a, b)", "torch.mm(a, b, out=total)"),
        (chunks, "gradient.mul_(dloss)", "gradient"),
        (one_chunk, "dy *= dloss", "pass"),
        (sampled, "shift, y_target = -log_q.to(sums)", "shift, y_target = 0 * log_q.to(sums)"),
        (sampled, "y.masked_fill_(negatives == targets[:, None], -torch.inf)", "pass"),
        (sampled, "shift += by[negatives]", "pass"),
        (sampled, "y_target += by[targets]", "pass"),
        (sampled, "dWhy.index_add_(0, negatives,", "dWhy.index_copy_(0, negatives,"),
        (sampled, "dWhy.index_add_(0, targets,", "dWhy.index_copy_(0, targets,"),
        (sampled, ".index_add_(0, targets, dy_target)", ""),
        (sampled, "(-losses).expm1_()", "(-losses).exp_()"),
        (sampled_from_all, "y.masked_fill_(negatives == targets[:, None], -torch.inf)", "pass"),
        (drawing, "return negatives, p[negatives].log()",
         "return negatives, torch.zeros_like(p[negatives])"),
        (partition_function, "-log_q.to(sums)", "-log_q.to(sums) - log_q[0]"),
        (drawing, "ends = p[order].cumsum(0)", "ends = p.cumsum(0)"),
    ],
)  # fmt: skip
def test_faults_of_the_losses_of_language_models_are_caught(check, right, wrong):
    source = negatives if check is drawing else softmax
    with pytest.raises(AssertionError):
        check(mutant(source, right, wrong))
    check(source)


@pytest.mark.parametrize(
    ("right", "wrong", "drawing"),
    [
        ("if self._next is not None:", "if False:", (1.0,)),
        ("self._states[layer] = self._f(", "self._f(", (1.0,)),
        ("bottom.Wxh.t() + bottom.bh", "bottom.Wxh.t()", (1.0,)),
        ("torch.addmm(xw, h, WhhT)", "torch.addmm(xw, h, WhhT.t())", (1.0,)),
        ("torch.addmm(self._by, h, self._WhyT)", "h @ self._WhyT", (1.0,)),
        ("[[layer] for layer in weights], h0,", "[[layer] for layer in weights], None,", (1.0,)),
        ("layered(ids,", "layered(ids[:, :-1],", (1.0,)),
        ("y.double().div_(self.temperature)", "y.double().mul_(self.temperature)", (0.5,)),
        ("y.argmax(dim=1)", "y.argmin(dim=1)", (0,)),
        ("(1 - u)", "u", (1.0,)),
        ("torch.rand(len(y), 1,", "torch.rand(1, 1,", (1.0,)),
        ("p.topk(top_k, dim=1)", "p.topk(top_k + 1, dim=1)", (1.0, 4)),
        (".sub_(ordered)", "", (1.0, None, 0.6)),
        ("top_p * ordered.sum(dim=1, keepdim=True)", "top_p", (1.7, 3, 0.5)),
        ("cumulative[:, -1:]", "1", (1.0, 4)),
    ],
)
def test_faults_of_drawing_ids_are_caught(right, wrong, drawing):
    drawing = language_checks.Drawing(*drawing)
    with pytest.raises((AssertionError, IndexError)):
        language_checks.generation(mutant(generation, right, wrong), "every", drawing)
    language_checks.generation(generation, "every", drawing)


@pytest.mark.parametrize(
    ("right", "wrong", "temperature"),
    [
        ("h0 = self.hs[-1]\n            ids", "ids", 1.0),
        ("(y - y.max()) / temperature", "(y - y.max())", 0.5),
        ("(1 - rng.random())", "rng.random()", 1.0),
        ("x = [y.argmax()]", "x = [y.argmin()]", 0),
        (".reshape(-1, self.output_size)[-1]", ".reshape(-1, self.output_size)[0]", 1.0),
    ],
)
def test_faults_of_the_references_sample_are_caught(right, wrong, temperature):
    with pytest.raises(AssertionError):
        language_checks.numpy_sample(mutant(reference, right, wrong), "every", temperature)
    language_checks.numpy_sample(reference, "every", temperature)
