"""The backends against the reference and against each other, and the input that `recurrence` refuses."""

import logging
import sys

import pytest
import torch
from ladder import READOUTS, SHAPES, affordable, rung_2, rung_3, skip_unless_it_runs, states_and_gradients

from torch_rnn.ops import BACKENDS, FUSED_NONLINEARITIES, available, recurrence, which
from torch_rnn.ops.nonlinearities import NONLINEARITIES, Nonlinearity
from torch_rnn.testing import assert_parity, twice_the_error

DTYPES = (torch.float64, torch.float32)
ON_CPU = available("cpu")
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))


def test_unwritten_memory_is_nan():
    assert torch.empty(3).isnan().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eager_agrees_with_the_reference(shape, readout, C, dtype, device):
    rung_2("eager", shape, readout, C, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
def test_backend_agrees_with_eager(backend, shape, dtype, nonlinearity, device):
    skip_unless_it_runs(backend, device, dtype)
    fused = FUSED_NONLINEARITIES.get(backend, NONLINEARITIES)
    if nonlinearity not in {"tanh", "relu", "linear", *fused}:  # those three every backend must have
        pytest.skip(f"{backend} has no kernel for {nonlinearity}")
    rung_3(backend, shape, dtype, nonlinearity, device)


def test_auto_uses_bptt_for_a_nonlinearity_without_a_fused_kernel(monkeypatch, caplog):
    sigmoid = Nonlinearity(torch.sigmoid, lambda h: h * (1 - h))
    monkeypatch.setitem(NONLINEARITIES, "sigmoid", sigmoid)
    monkeypatch.setattr(sys.modules["torch_rnn.ops"], "_LOGGED", set())
    with caplog.at_level(logging.INFO, logger="torch_rnn"):
        for _ in range(2):
            rung_3("auto", SHAPES[4], torch.float64, "sigmoid")
    assert caplog.text.count("backend for the nonlinearity 'sigmoid': bptt") == (which() != "bptt")
    for backend in set(ON_CPU) - {"eager", "bptt"}:
        with pytest.raises(ValueError, match=f"nonlinearity is 'sigmoid'; backend '{backend}' lacks it"):
            recurrence(**GOOD, nonlinearity="sigmoid", backend=backend)


@pytest.mark.parametrize(("B", "H"), [(8, 32), (256, 8)])
@pytest.mark.parametrize("backend", ["bptt", "cpu"])
def test_sums_over_many_steps_are_precise(backend, B, H):
    """dbh and dWhh are sums of B T terms. With an orthogonal Whh, none of the terms vanishes."""
    results = {}
    for name, dtype in (("truth", torch.float64), ("eager", torch.float32), (backend, torch.float32)):
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(10_000, (B, 500), generator=g)
        Wxh, Whh = torch.randn(10_000, H, generator=g) / 10, torch.empty(H, H)
        torch.nn.init.orthogonal_(Whh, generator=g)
        weights = [w.to(dtype).requires_grad_() for w in (Wxh.t(), torch.zeros(H), Whh)]
        _, hT = recurrence(ids, *weights, backend="eager" if name == "truth" else name, final=True)
        results[name] = torch.autograd.grad(hT.sum(), weights)
    for name, got, eager, truth in zip(
        ("dWxh", "dbh", "dWhh"), results[backend], results["eager"], results["truth"], strict=True
    ):
        assert_parity(name, got, truth, torch.float32, twice_the_error(eager, truth))


@pytest.mark.parametrize("backend", ON_CPU)
def test_first_and_second_derivatives(backend):
    g = torch.Generator().manual_seed(0)
    x, Wxh, bh, Whh, h0 = (
        torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 4, 3), (5, 3), (5,), (5, 5), (2, 5))
    )
    for lengths in (None, torch.tensor([1, 4])):

        def run(*tensors, lengths=lengths):
            return recurrence(*tensors, lengths, backend=backend)

        fast = backend == "triton"  # its interpreter is slow: test random projections of the Jacobian
        assert torch.autograd.gradcheck(run, (x, Wxh, bh, Whh, h0), fast_mode=fast)
        assert torch.autograd.gradgradcheck(run, (x, Wxh, bh, Whh, h0), fast_mode=fast)


def by_columns(tensor):
    """As torch.linalg returns matrices."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def every_second(tensor):
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arrange", [by_columns, every_second])
@pytest.mark.parametrize("is_ids", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_change_nothing(backend, is_ids, arrange, device):
    skip_unless_it_runs(backend, device, torch.float32)
    g = torch.Generator().manual_seed(0)
    B, T, D, H = 3, 4, 5, 6
    x = torch.randint(D, (B, T), generator=g) if is_ids else torch.randn(B, T, D, generator=g)
    weights = [torch.randn(*shape, generator=g) / 2 for shape in ((H, D), (H, H), (B, H))]
    tensors = [tensor.to(device) for tensor in (x, *weights)]
    bh, upstream = torch.randn(H, generator=g).to(device), torch.randn(B, T, H, generator=g).to(device)
    results = []
    for layout in (torch.Tensor.contiguous, arrange):
        x, Wxh, Whh, h0 = (layout(tensor) for tensor in tensors)
        wanted = [tensor.requires_grad_() for tensor in (Wxh, Whh, h0, *([] if is_ids else [x]))]
        h = recurrence(x, Wxh, bh, Whh, h0, backend=backend)
        results.append([h, *torch.autograd.grad(h, wanted, layout(upstream))])
        h, hT = recurrence(x[:, :0], Wxh, bh, Whh, h0, backend=backend, final=True)
        assert torch.equal(hT, h0)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ON_CPU)
def test_past_its_length_a_row_keeps_its_state(backend):
    x, Wxh, bh, Whh = torch.randn(3, 5, 2), torch.randn(4, 2), torch.randn(4), torch.randn(4, 4)
    h0 = torch.randn(3, 4)
    h = recurrence(x, Wxh, bh, Whh, h0, torch.tensor([0, 2, 5]), backend=backend)
    assert torch.equal(h[0], h0[0].expand(5, 4))
    assert torch.equal(h[1, 1:], h[1, 1].expand(4, 4))
    assert not torch.equal(h[2, 3], h[2, 4])


@pytest.mark.parametrize("backend", ON_CPU)
def test_empty_batch_and_no_steps(backend):
    Wxh, bh, Whh = torch.randn(4, 2, requires_grad=True), torch.randn(4), torch.randn(4, 4)
    for B, T in ((0, 5), (3, 0), (0, 0)):
        lengths = torch.zeros(B, dtype=torch.long)
        for x in (torch.randn(B, T, 2), torch.zeros(B, T, dtype=torch.long)):
            h = recurrence(x, Wxh, bh, Whh, None, lengths, backend=backend)
            assert h.shape == (B, T, 4)
            (dWxh,) = torch.autograd.grad(h.sum(), Wxh)
            assert not dWxh.any()


@pytest.mark.parametrize("backend", ON_CPU)
def test_only_what_needs_a_gradient_gets_one(backend):
    x, Wxh, bh, Whh = torch.randn(2, 3, 2), torch.randn(4, 2), torch.randn(4), torch.randn(4, 4)
    assert not recurrence(x, Wxh, bh, Whh, backend=backend).requires_grad
    for wanted in (x, Wxh, bh, Whh):
        wanted.requires_grad_()
        recurrence(x, Wxh, bh, Whh, backend=backend).sum().backward()
        assert [tensor.grad is not None for tensor in (x, Wxh, bh, Whh)] == [
            tensor is wanted for tensor in (x, Wxh, bh, Whh)
        ]
        wanted.requires_grad_(False).grad = None


@pytest.mark.parametrize("backend", ON_CPU)
def test_same_input_same_bits(backend):
    shape = affordable(SHAPES[-1], backend, "cpu")
    first, second = (states_and_gradients(backend, shape, torch.float32, "tanh", "cpu") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", ON_CPU)
def test_neither_the_rest_of_the_batch_nor_padding_counts(backend):
    g = torch.Generator().manual_seed(0)
    ids, lengths = torch.randint(9, (11, 20), generator=g), torch.randint(21, (11,), generator=g)
    weights = [torch.randn(s, generator=g) / 3 for s in ((16, 9), (16,), (16, 16))]

    def run(rows, width):
        x = torch.nn.functional.pad(ids, (0, width - 20), value=-1)[rows]
        return recurrence(x, *weights, None, lengths[rows], backend=backend)[:, :20]

    whole = run(slice(None), 20).double()
    for rows, width in ((slice(0, 5), 20), (slice(5, None), 20), (slice(3, 4), 20), (slice(None), 31)):
        assert_parity("h", run(rows, width), whole[rows], torch.float32)


def test_eager_unbinds_its_input_once():
    """With a slice for each step, each step's gradient would be as large as xw: quadratic in T."""
    x, weights = torch.randn(1, 9, 2), [torch.randn(*s, requires_grad=True) for s in ((4, 2), (4,), (4, 4))]
    visited, waiting = set(), [recurrence(x, *weights, backend="eager").grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in visited:
            visited.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    names = [node.name() for node in visited]
    assert names.count("UnbindBackward0") == 1
    assert not {"SelectBackward0", "SliceBackward0"} & set(names)


def test_which_names_the_backend():
    assert which("auto") in BACKENDS
    assert which("eager") == "eager"
    with pytest.raises(ValueError, match="backend is 'numpy'; it must be one of auto, eager, bptt"):
        which("numpy")
    with pytest.raises(ValueError, match="backend is 'cudnn'; on cpu it must be one of auto, eager, bptt"):
        which("cudnn")


GOOD = {
    "x": torch.zeros(2, 3, 5),
    "Wxh": torch.zeros(4, 5),
    "bh": torch.zeros(4),
    "Whh": torch.zeros(4, 4),
    "h0": torch.zeros(2, 4),
    "lengths": torch.tensor([3, 1]),
}
BAD = [
    ("x", torch.zeros(2, 3), ValueError, r"x has shape \(2, 3\); floats must be \(B, T, 5\)"),
    ("x", torch.zeros(2, 3, 4), ValueError, r"x has shape \(2, 3, 4\)"),
    ("x", torch.zeros(2, 3, 5).double(), TypeError, r"x is torch.float64; it must be torch.float32"),
    ("x", torch.zeros(2, 3).bool(), TypeError, "x is torch.bool"),
    ("x", torch.zeros(2, 3, 5).cfloat(), TypeError, "x is torch.complex64"),
    ("x", torch.zeros(2, 3, 5).long(), ValueError, r"ids must be \(B, T\)"),
    ("x", torch.full((2, 3), 5), ValueError, r"x has ids in 5\.\.5; they must be in 0\.\.4"),
    ("x", torch.full((2, 3), -1), ValueError, r"x has ids in -1\.\.-1"),
    ("x", torch.full((2, 3, 5), torch.nan), ValueError, "x has NaN"),
    ("x", [[0, 1]], TypeError, "x is a list; it must be a torch.Tensor"),
    ("x", torch.zeros(2, 3, 5, device="meta"), ValueError, "x is on meta; it must be on cpu"),
    ("Wxh", torch.zeros(4), ValueError, r"Wxh has shape \(4,\)"),
    ("Wxh", torch.zeros(4, 5).half(), TypeError, "Wxh is torch.float16; it must be torch.float32, torch"),
    ("bh", torch.zeros(4, 1), ValueError, r"bh has shape \(4, 1\); it must be \(4,\)"),
    ("bh", None, TypeError, "bh is a NoneType"),
    ("Whh", torch.zeros(4, 5), ValueError, r"Whh has shape \(4, 5\); it must be \(4, 4\)"),
    ("Whh", torch.zeros(4, 4).double(), TypeError, "Whh is torch.float64"),
    ("h0", torch.zeros(1, 4), ValueError, r"h0 has shape \(1, 4\); it must be \(2, 4\)"),
    ("h0", torch.full((2, 4), torch.nan), ValueError, "h0 has NaN"),
    ("lengths", torch.tensor([3.0, 1.0]), TypeError, "lengths is torch.float32"),
    ("lengths", torch.tensor([3]), ValueError, r"lengths has shape \(1,\); it must be \(2,\)"),
    ("lengths", torch.tensor([4, 1]), ValueError, r"lengths are in 1\.\.4; they must be in 0\.\.3"),
    ("lengths", torch.tensor([-1, 1]), ValueError, r"lengths are in -1\.\.1"),
    (
        "nonlinearity",
        "sigmoid",
        ValueError,
        "nonlinearity is 'sigmoid'; it must be one of tanh, relu, linear",
    ),
    ("backend", "fast", ValueError, "backend is 'fast'"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "value", "error", "message"), BAD, ids=lambda v: None)
def test_refuses_bad_input(name, value, error, message):
    recurrence(**GOOD)
    with pytest.raises(error, match=message):
        recurrence(**{**GOOD, name: value})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8], ids=str)
def test_takes_ids_and_lengths_of_any_integer_type(dtype):
    x = torch.tensor([[0, 4, 2], [1, 0, 0]])
    want = recurrence(**{**GOOD, "x": x})
    got = recurrence(**{**GOOD, "x": x.to(dtype), "lengths": GOOD["lengths"].to(dtype)})
    assert torch.equal(got, want)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_cuda_the_host_never_waits(backend):
    skip_unless_it_runs(backend, "cuda", torch.float32)
    lengths = torch.tensor((1, 9, 0, 5), device="cuda")
    x, weights = (
        torch.randint(6, (4, 9), device="cuda"),
        [torch.randn(*s, device="cuda", requires_grad=True) for s in ((37, 6), (37,), (37, 37))],
    )
    recurrence(x, *weights, None, lengths, backend=backend).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        recurrence(x, *weights, None, lengths, backend=backend).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
