"""The backend "cudnn". PyTorch's own RNN stands in for cuDNN on the CPU, behind the same three operators."""

import importlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ladder import SHAPES, Shape, rung_2, rung_3, rung_4, states_and_gradients
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from torch_rnn import RNN, recurrence
from torch_rnn.ops import BACKENDS
from torch_rnn.testing import assert_parity

backend = importlib.import_module("torch_rnn.ops.cudnn")
ops = sys.modules["torch_rnn.ops"]
DTYPES = (torch.float64, torch.float32)
GAP = 3
"""Entries between two weights in the stand-in's buffer. The backend must ask where each weight starts."""


class StandIn:
    """The three cuDNN operators on the CPU, as strict as those on CUDA about what they are given.

    Weights are only read from the buffer, and the backward pass destroys the reserve space.
    """

    functions = (torch._VF.rnn_relu, torch._VF.rnn_tanh)  # in the order of cudnnRNNMode_t

    def __init__(self):
        self.seen: list[tuple[str, str]] = []

    def flatten_weight(self, weights, stride, D, mode, H, proj_size, layers, batch_first, bidirectional):
        assert (stride, proj_size, layers, batch_first, bidirectional) == (4, 0, 1, False, False)
        assert [tuple(weight.shape) for weight in weights] == [(H, D), (H, H), (H,), (H,)]
        buffer = weights[0].new_zeros(sum(weight.numel() + GAP for weight in weights))
        for weight, view in zip(weights, self.views(buffer, D, H), strict=True):
            weight.set_(view.copy_(weight))
        return buffer

    def views(self, buffer, D, H):
        start, views = 0, []
        for shape in ((H, D), (H, H), (H,), (H,)):
            size = torch.Size(shape).numel()
            views.append(buffer[start : start + size].view(shape))
            start += size + GAP
        assert buffer.shape == (start,)
        return views

    def check(self, x, weights, stride, buffer, hx, cx, settings, dropout_state):
        H, D = weights[0].shape
        assert [tuple(weight.shape) for weight in weights] == [(H, D), (H, H), (H,), (H,)]
        assert {tensor.dtype for tensor in (x, *weights, buffer, hx)} == {x.dtype}
        assert hx.is_contiguous()
        assert hx.shape == (1, x.shape[1], H)
        mode, *rest, train, bidirectional, batch_sizes = settings
        assert rest == [H, 0, 1, False, 0.0]
        assert (stride, cx, bidirectional, [*batch_sizes], dropout_state) == (4, None, False, [], None)
        assert min(x.shape) > 0
        return mode, train, self.views(buffer, D, H)

    def rnn(self, x, weights, stride, buffer, hx, cx, *settings):
        mode, train, parameters = self.check(x, weights, stride, buffer, hx, cx, settings[:-1], settings[-1])
        self.seen.append(("forward", torch.backends.cudnn.rnn.fp32_precision))
        hs, hy = self.functions[mode](x, hx, parameters, True, 1, 0.0, train, False, False)
        return hs, hy, x.new_empty(0), torch.ones(7 * train, dtype=torch.uint8), buffer

    def rnn_backward(self, x, weights, stride, buffer, hx, cx, hs, dhs, dhy, dcy, *settings):
        *settings, dropout_state, reserve, wanted = settings
        mode, train, parameters = self.check(x, weights, stride, buffer, hx, cx, settings, dropout_state)
        assert train
        assert reserve.tolist() == [1] * 7
        assert hs.is_contiguous()
        assert dcy is None
        assert [*wanted] == [True, True, False, True]
        reserve.zero_()
        self.seen.append(("backward", torch.backends.cudnn.rnn.fp32_precision))

        def differentiate():
            inputs = [tensor.detach().requires_grad_() for tensor in (x, hx, *parameters)]
            outputs = self.functions[mode](*inputs[:2], inputs[2:], True, 1, 0.0, True, False, False)
            pairs = [pair for pair in zip(outputs, (dhs, dhy), strict=True) if pair[1] is not None]
            outputs, gradients = zip(*pairs, strict=True)
            return torch.autograd.grad(outputs, inputs, gradients, materialize_grads=True)

        with ThreadPoolExecutor(1) as thread:  # autograd is off inside an operator, but not in a new thread
            dx, dhx, *gradients = thread.submit(differentiate).result()
        shared = self.flatten_weight(gradients, 4, x.shape[2], mode, hx.shape[2], 0, 1, False, False)
        assert gradients[0].untyped_storage().data_ptr() == shared.untyped_storage().data_ptr()
        return dx, dhx, x.new_empty(0), gradients


@pytest.fixture(scope="module")
def operators():
    library, stand_in = torch.library.Library("aten", "IMPL"), StandIn()
    library.impl("_cudnn_rnn", stand_in.rnn, "CPU")
    library.impl("_cudnn_rnn_backward", stand_in.rnn_backward, "CPU")
    library.impl("_cudnn_rnn_flatten_weight", stand_in.flatten_weight, "CPU")
    backend._layout.cache_clear()
    yield stand_in
    library._destroy()
    backend._layout.cache_clear()


@pytest.fixture
def stand_in(operators, monkeypatch):
    """Lets backend="cudnn" run on the CPU."""
    monkeypatch.setitem(BACKENDS, "cudnn", backend.cudnn)
    monkeypatch.setattr(ops, "available", lambda device: list(BACKENDS))
    operators.seen.clear()
    return operators


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", backend.NONLINEARITIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_eager(stand_in, shape, nonlinearity, dtype):
    rung_3("cudnn", shape, dtype, nonlinearity)
    passes = {name for name, _ in stand_in.seen}
    assert passes == (set() if nonlinearity == "linear" else {"forward", "backward"})


@pytest.mark.parametrize("readout", ["last", "every"])
def test_agrees_with_the_reference_in_one_pass_and_ten_training_steps(stand_in, readout):
    for shape in SHAPES[4:6]:
        rung_2("cudnn", shape, readout, 3, torch.float64)
    rung_4("cudnn", readout, 3)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_agrees_with_bptt_in_float64(stand_in, nonlinearity):
    for shape in SHAPES:
        got = states_and_gradients("cudnn", shape, torch.float64, nonlinearity, "cpu")
        want = states_and_gradients("bptt", shape, torch.float64, nonlinearity, "cpu")
        for name in want:
            assert_parity(name, got[name], want[name], torch.float64)


@pytest.mark.parametrize("is_ids", [True, False])
def test_padding_neither_overflows_nor_reaches_a_gradient(stand_in, is_ids):
    """With this Whh, states grow by a factor of 20 a step, so those of the padding would overflow."""
    shape, results = Shape(3, 60, 4, 5, is_ids, lengths=(2, 60, 0)), []
    x, lengths = torch.zeros(shape[:2], dtype=torch.long), torch.tensor(shape.lengths)
    if not is_ids:
        x = torch.ones(*shape[:3])
        x[1] = -1.0
        x[0, 2:], x[2] = torch.inf, torch.nan
    else:
        x[1], x[0, 2:] = 1, -7
    for name in ("bptt", "cudnn"):
        W = torch.ones(5, 4)
        if is_ids:
            W[:, 1] = -1.0
        tensors = [W, torch.full((5,), 0.25), torch.full((5, 5), 4.0), torch.zeros(3, 5)]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        h, hT = recurrence(x, *tensors, lengths, nonlinearity="relu", backend=name, final=True)
        gradients = torch.autograd.grad(h.sum() + hT.sum(), tensors)
        results.append([h, hT, *gradients])
    for got, want in zip(results[1], results[0], strict=True):
        assert want.isfinite().all()
        assert torch.equal(got, want)


def test_first_and_second_derivatives(stand_in):
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 2), (3, 2), (3,), (3, 3), (2, 3))
    x, *weights = (torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes)
    for given, lengths in ((x, None), (x, torch.tensor([1, 3])), (torch.tensor([[0, 1, 1]]), None)):
        tensors = (x, *weights) if given is x else (*weights[:3], weights[3][:1].detach().requires_grad_())

        def run(*tensors, given=given, lengths=lengths):
            tensors = tensors if given is x else (given, *tensors)
            return recurrence(*tensors, lengths, backend="cudnn", final=True)

        assert torch.autograd.gradcheck(run, tensors)
        assert torch.autograd.gradgradcheck(run, tensors)
        plain, formula = (
            torch.autograd.grad(run(*tensors)[0].square().sum(), tensors, create_graph=create_graph)
            for create_graph in (False, True)
        )
        for got, want in zip(plain, formula, strict=True):
            assert_parity("gradient by the formula", got, want.detach(), torch.float64)


def test_a_graph_is_differentiated_twice_and_weights_are_left_alone(stand_in):
    """The ladder retains its graphs too, but with other gradients each time."""
    rnn = RNN(5, 4, 2, backend="cudnn")
    before = {name: (value.data_ptr(), value.clone()) for name, value in rnn.named_parameters()}
    x, lengths = torch.randint(5, (3, 7)), torch.tensor([7, 1, 0])
    loss = rnn(x, lengths).square().sum()
    first, second = (torch.autograd.grad(loss, list(rnn.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for name, value in rnn.named_parameters():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
    rnn.recompute = True
    for one, other in zip(
        first, torch.autograd.grad(rnn(x, lengths).square().sum(), list(rnn.parameters())), strict=True
    ):
        assert_parity("gradient with recomputation", one, other.double(), torch.float32)


def test_without_gradients_cudnn_keeps_nothing(stand_in):
    x, weights = torch.randn(3, 2, 5), [torch.randn(s) for s in ((4, 5), (4,), (4, 4), (2, 4))]
    assert backend.forward(x, *weights, "tanh", False)[2].shape == (0,)
    assert backend.forward(x, *weights, "tanh", True)[2].shape == (7,)
    rnn, trains = RNN(5, 4, 2, backend="cudnn"), []
    right = torch._VF.rnn_tanh
    stand_in.functions = (None, lambda *given: trains.append(given[6]) or right(*given))
    try:
        rnn(x)
        rnn.requires_grad_(False)(x)
        with torch.no_grad():
            rnn.requires_grad_()(x)
    finally:
        del stand_in.functions
    assert trains == [True, False, False]


@pytest.mark.parametrize("recompute", [False, True])
def test_nan_stays_nan(stand_in, recompute):
    x, W = torch.randint(9, (2, 3)), torch.randn(5, 9, requires_grad=True)
    with torch.no_grad():
        W[0] = torch.nan
    for given in (x, torch.randn(2, 3, 9)):
        h = recurrence(given, W, torch.zeros(5), torch.eye(5), backend="cudnn", recompute=recompute)
        assert h[..., 0].isnan().all()


@pytest.mark.parametrize("before", ["tf32", "ieee", "none"])
def test_tf32_is_off_in_both_passes_and_the_setting_is_restored(stand_in, before):
    settings = torch.backends.cudnn.rnn
    default = settings.fp32_precision
    settings.fp32_precision = before
    try:
        RNN(5, 4, 2, backend="cudnn")(torch.randn(2, 3, 5)).sum().backward()
        assert settings.fp32_precision == before
        with pytest.raises(AssertionError):
            backend.forward(
                *(torch.zeros(s) for s in ((3, 2, 5), (4, 5), (4,), (4, 4), (9, 4))), "tanh", True
            )
        assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = default
    expected = "none" if before == "none" else "ieee"
    assert {precision for _, precision in stand_in.seen} == {expected}
    assert {name for name, _ in stand_in.seen} == {"forward", "backward"}


def test_settings_that_are_inherited_stay_inherited():
    """In a new process, because the first setting of a process cannot be restored."""
    code = """
import importlib, itertools, torch
backend, b = importlib.import_module("torch_rnn.ops.cudnn"), torch.backends
def settings():
    return b.fp32_precision, b.cudnn.fp32_precision, b.cudnn.rnn.fp32_precision, b.cudnn.conv.fp32_precision
def twice(use):
    b.fp32_precision = b.cudnn.fp32_precision = "none"
    seen = []
    for outer, inner in (("none", "none"), *itertools.product(("ieee", "tf32"), ("none", "ieee", "tf32"))):
        b.fp32_precision, b.cudnn.fp32_precision = outer, inner
        before = settings()
        if use:
            with backend._without_tf32():
                assert b.cudnn.rnn.fp32_precision != "tf32", before
        assert settings() == before
        for change in ("ieee", "tf32", "none"):
            b.fp32_precision = change
            seen.append(settings())
    return seen
assert b.cudnn.rnn.fp32_precision == "tf32"
for own in (None, "none", "tf32", "ieee"):
    if own is not None:
        b.cudnn.rnn.fp32_precision = own
    assert twice(False) == twice(True) == twice(False), own
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("is_ids", [True, False])
def test_compiles_into_one_graph(stand_in, is_ids):
    rnn, lengths = RNN(5, 4, 2, backend="cudnn", dtype=torch.float64), torch.tensor([6, 2, 0])
    x = torch.randint(5, (3, 6)) if is_ids else torch.randn(3, 6, 5, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    got, want = compiled(x, lengths), rnn(x, lengths)
    assert_parity("logits", got, want, torch.float64)
    parameters = list(rnn.parameters())
    for one, other in zip(
        *(torch.autograd.grad(y.square().sum(), parameters) for y in (got, want)), strict=True
    ):
        assert_parity("gradient", one, other, torch.float64)


def test_opcheck(stand_in):
    shapes = ((3, 2, 5), (4, 5), (4,), (4, 4), (2, 4))
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.torch_rnn.cudnn_forward, (*tensors, "tanh", True), test_utils=tests)
    tensors = [tensor.detach() for tensor in tensors]
    hs, hT, *saved = backend.forward(*tensors, "relu", True)
    for given in ((hs, hT), (None, hT), (hs, None)):
        torch.library.opcheck(torch.ops.torch_rnn.cudnn_backward, (*given, *tensors, hs, *saved, "relu"))


def test_cudas_own_operator_accepts_the_arguments(monkeypatch):
    """Runs the forward pass on fake CUDA tensors, whose shapes PyTorch computes without a GPU."""
    monkeypatch.setattr(backend, "_layout", lambda *_: (4 * 11, (0, 20, 36, 40)))
    with FakeTensorMode(shape_env=ShapeEnv()):
        x, W, b, Whh, h0 = (torch.empty(s, device="cuda") for s in ((3, 2, 5), (4, 5), (4,), (4, 4), (2, 4)))
        hs, hT, *_ = backend.forward._init_fn(x, W, b, Whh, h0, "tanh", True)
        assert (hs.shape, hT.shape, hs.device.type) == ((3, 2, 4), (2, 4), "cuda")
        hs, hT = backend.cudnn(x.transpose(0, 1), W, b, Whh, h0, None, "relu")
        assert (hs.shape, hT.shape) == ((2, 3, 4), (2, 4))
        assert {hs.device.type, hT.device.type} == {"cuda"}


def test_which_devices_it_runs_on(monkeypatch):
    assert not backend.runs_on("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cudnn = type("cudnn", (), {"enabled": True, "version": staticmethod(lambda: 91100)})
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    assert backend.runs_on("cuda")
    assert backend.runs_on(torch.device("cuda", 1))
    assert not backend.runs_on("cpu")
    cudnn.version = staticmethod(lambda: None)
    assert not backend.runs_on("cuda")

    def version():
        raise RuntimeError("cuDNN version 91100 is not compatible with devices with SM < 7.5")

    cudnn.version = staticmethod(version)
    assert not backend.runs_on("cuda")
    cudnn.version, cudnn.enabled = staticmethod(lambda: 91100), False
    assert not backend.runs_on("cuda")
    cudnn.enabled = True
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not backend.runs_on("cuda")
