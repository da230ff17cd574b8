"""The Triton kernels, on a GPU if there is one, otherwise in Triton's interpreter on CPU tensors."""

import contextlib
import importlib
import importlib.util
import subprocess
import sys

import pytest
import torch
from ladder import SHAPES, Shape, rung_3, states_and_gradients
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from torch_rnn import RNN
from torch_rnn.ops import recurrence, which
from torch_rnn.ops.proof import difference
from torch_rnn.testing import assert_parity, twice_the_error

backend = importlib.import_module("torch_rnn.ops.triton_backend")
steps = importlib.import_module("torch_rnn.ops.triton_steps")
FORWARD = torch.ops.torch_rnn.triton_forward
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(not backend.runs_on(DEVICE), reason="Triton does not run on this machine")

TILES = Shape(19, T=6, D=7, H=37, ids=True, lengths=(*range(7), *range(6, -1, -1), 6, 1, 5, 2, 6))
"""More rows than the 16 of one program."""
LONG = Shape(3, T=21, D=3, H=5, ids=True, lengths=(21, 3, 18))
"""More steps than are loaded ahead."""


def keep_whh(place: str, monkeypatch) -> None:
    """Makes the kernels keep Whh where they keep a larger one; outside, each step is a kernel."""
    if place == "in shared memory":
        plan = backend.plan.__wrapped__
        monkeypatch.setattr(backend, "IN_REGISTERS", 0)
        monkeypatch.setattr(backend, "plan", plan)
    if place == "outside":
        monkeypatch.setattr(backend, "plan", lambda *_: backend.Plan(0, False, {}, {}))


@pytest.fixture
def step_by_step(monkeypatch):
    """Runs the kernels of single steps, as for a large Whh, in chunks of 4, 2 and 1 steps."""
    keep_whh("outside", monkeypatch)
    monkeypatch.setattr(steps, "CHUNK", 4)


@pytest.fixture
def small_shares(monkeypatch):
    """Makes one program sum dWhh of all sequences, and others the rows of a frequent id in chunks."""
    monkeypatch.setattr(backend, "SUMS", 1)
    monkeypatch.setattr(backend, "CHUNK", 4)


@contextlib.contextmanager
def bf16():
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        yield


def rung_3_in_bf16(shape: Shape) -> None:
    """Checks that the error against float64 is at most twice that of eager under autocast, plus a margin."""
    truth = states_and_gradients("eager", shape, torch.float64, "tanh", "cpu")
    with bf16():
        eager = states_and_gradients("eager", shape, torch.float32, "tanh", DEVICE)
        got = states_and_gradients("triton", shape, torch.float32, "tanh", DEVICE)
    for name, want in truth.items():
        assert_parity(name, got[name], want, torch.float32, twice_the_error(eager[name].float(), want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, TILES], ids=str)
def test_step_by_step_agrees_with_eager(step_by_step, shape, dtype):
    rung_3("triton", shape, dtype, device=DEVICE)


@pytest.mark.parametrize("nonlinearity", ["relu", "linear"])
def test_step_by_step_has_every_nonlinearity(step_by_step, nonlinearity):
    rung_3("triton", TILES, torch.float32, nonlinearity, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tanh_is_accurate_and_never_exceeds_1(step_by_step, dtype):
    a = torch.cat([torch.linspace(-25, 25, 2001), torch.logspace(-30, 0, 100), torch.tensor([0.0, 1e30])])
    a = a.to(DEVICE, dtype)[None, None]
    H = a.shape[2]
    h = recurrence(a, torch.eye(H).to(a), a.new_zeros(H), a.new_zeros(H, H), backend="triton")
    want = a.double().tanh()
    assert ((h.double() - want).abs() / want.abs().clamp(min=1e-300)).max() < 4 * torch.finfo(dtype).eps
    assert h.abs().max() <= 1
    assert not h[a == 0].any()


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        *(("in registers", shape) for shape in (SHAPES[4], SHAPES[5], LONG)),
        *(("in shared memory", shape) for shape in (SHAPES[4], SHAPES[5], SHAPES[-1], TILES)),
        *(("outside", shape) for shape in (SHAPES[4], SHAPES[5], SHAPES[-1], TILES)),
    ],
    ids=str,
)
def test_the_error_of_bf16_is_at_most_twice_that_of_eager_under_autocast(monkeypatch, shape, place):
    keep_whh(place, monkeypatch)
    rung_3_in_bf16(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [LONG, LONG._replace(ids=False)], ids=str)
def test_programs_with_several_sequences_and_chunks_of_a_frequent_id(small_shares, monkeypatch, shape, dtype):
    real, ahead = backend.plan, {"AHEAD": 8}  # as on a GPU

    def plan(*args):
        plan = real(*args)
        return plan._replace(forward=plan.forward | ahead, backward=plan.backward | ahead)

    monkeypatch.setattr(backend, "plan", plan)
    rung_3("triton", shape, dtype, device=DEVICE)


def test_a_large_whh_in_float64_leaves_no_registers_for_its_gradient():
    rung_3("triton", Shape(2, T=5, D=3, H=65, ids=True), torch.float64, device=DEVICE)


def test_sums_over_many_steps_are_precise():
    """With an orthogonal Whh, none of the terms of dbh and dWhh vanishes."""
    results = {}
    for name, run, dtype in (
        ("truth", "eager", torch.float64),
        ("eager", "eager", torch.float32),
        ("got", "triton", torch.float32),
    ):
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(100, (1, 300), generator=g).to(DEVICE)
        Wxh, Whh = torch.randn(100, 16, generator=g) / 10, torch.empty(16, 16)
        torch.nn.init.orthogonal_(Whh, generator=g)
        weights = [w.to(DEVICE, dtype).requires_grad_() for w in (Wxh.t(), torch.zeros(16), Whh)]
        _, hT = recurrence(ids, *weights, backend=run, final=True)
        results[name] = torch.autograd.grad(hT.sum(), weights)
    for name, *gradients in zip(("dWxh", "dbh", "dWhh"), *results.values(), strict=True):
        truth, eager, got = gradients
        assert_parity(name, got, truth, torch.float32, twice_the_error(eager, truth))


def test_the_backward_pass_has_the_precision_of_the_forward_pass():
    def run(forward, backward):
        g = torch.Generator().manual_seed(0)
        weights = [torch.randn(s, generator=g).to(DEVICE).requires_grad_() for s in ((5, 3), (5,), (5, 5))]
        with forward:
            h = recurrence(torch.tensor([[0, 2, 1, 1]], device=DEVICE), *weights, backend="triton")
        with backward:
            return [h, *torch.autograd.grad(h.square().sum(), weights)]

    off = contextlib.nullcontext()
    rounded, exact = run(bf16(), off), run(off, off)
    assert all(
        torch.equal(actual, expected) for actual, expected in zip(rounded, run(bf16(), bf16()), strict=True)
    )
    assert all(
        torch.equal(actual, expected) for actual, expected in zip(exact, run(off, bf16()), strict=True)
    )
    assert not any(torch.equal(actual, expected) for actual, expected in zip(rounded, exact, strict=True))
    assert {tensor.dtype for tensor in rounded} == {torch.float32}


def test_precision_follows_pytorchs_settings():
    device = torch.device(DEVICE)
    assert backend.precision(torch.float32, device) == "ieee"
    with bf16():
        assert backend.precision(torch.float32, device) == "bf16"
        assert backend.precision(torch.float64, device) == "ieee"
    for name, precision in (("medium", "bf16"), ("high", "ieee"), ("highest", "ieee")):
        torch.set_float32_matmul_precision(name)
        assert backend.precision(torch.float32, device) == precision


def test_invalid_ids_and_lengths_are_clamped():
    """Their values are not checked on a GPU."""
    columns, bh, Whh, h0 = (torch.randn(s, device=DEVICE) for s in ((9, 5), (5,), (5, 5), (3, 5)))
    ids = torch.tensor([[0, -7, 3, 99], [8, 9, 10**12, 1], [5, 5, 5, 5]], device=DEVICE)
    lengths = torch.tensor([99, 3, -4], device=DEVICE)
    results = []
    for i, n in ((ids, lengths), (ids.clamp(0, 8), lengths.clamp(0, 4))):
        hs, hT = torch.ops.torch_rnn.triton_forward(None, i, columns, bh, Whh, h0, n, "tanh", "ieee")
        results.append([hs, hT, torch.ops.torch_rnn.triton_sum_by_id(hs, i, n, 9)])
    assert torch.equal(results[0][0][:, :2], results[1][0][:, :2])
    assert all(torch.equal(actual, expected) for actual, expected in zip(*results, strict=True))


def test_non_contiguous_weights():
    x, W = torch.randint(9, (3, 7), device=DEVICE), torch.randn(5, 9, device=DEVICE)
    Whh = torch.randn(5, 10, device=DEVICE)
    want = recurrence(x, W, Whh[:, 1].contiguous(), Whh[:, ::2].contiguous(), backend="triton")
    assert torch.equal(recurrence(x, W, Whh[:, 1], Whh[:, ::2], backend="triton"), want)


@pytest.mark.parametrize("place", ["in registers", "outside"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "linear"])
def test_nan_stays_nan(monkeypatch, nonlinearity, place):
    keep_whh(place, monkeypatch)
    x, W = torch.randint(9, (2, 3), device=DEVICE), torch.randn(5, 9, device=DEVICE)
    W[0] = torch.nan
    h = recurrence(x, W, W[:, 1], torch.eye(5, device=DEVICE), nonlinearity=nonlinearity, backend="triton")
    assert h[..., 0].isnan().all()


def test_ids_without_columns_are_refused():
    ids, nothing, Whh = torch.zeros(2, 3, dtype=torch.long), torch.zeros(0, 5), torch.zeros(5, 5)
    given = [ids, nothing, torch.zeros(5), Whh, torch.zeros(2, 5)]
    given = [tensor.to(DEVICE) for tensor in given]
    with pytest.raises(ValueError, match="x has ids; Wxh has no columns"):
        torch.ops.torch_rnn.triton_forward(None, *given, None, "tanh", "ieee")


def test_pytorchs_newer_precision_settings_are_supported():
    code = (
        "import torch; torch.backends.cuda.matmul.fp32_precision = 'tf32'; import importlib;"
        "backend = importlib.import_module('torch_rnn.ops.triton_backend');"
        "assert backend.matmul_precision() in ('high', 'highest'), backend.matmul_precision();"
        "assert backend.precision(torch.float32, torch.device('cpu')) == 'ieee'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opcheck():
    weights = [torch.randn(*s, device=DEVICE, requires_grad=True) for s in ((9, 5), (5,), (5, 5), (3, 5))]
    ids, lengths = torch.randint(9, (3, 7), device=DEVICE), torch.tensor([7, 0, 3], device=DEVICE)
    columns, bh, Whh, h0 = weights
    xw = torch.randn(7, 3, 5, device=DEVICE, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for given in (
        (None, ids, columns, bh, Whh, h0, lengths, "tanh", "ieee"),
        (xw, None, None, None, Whh, h0, None, "relu", "bf16"),
    ):
        torch.library.opcheck(torch.ops.torch_rnn.triton_forward, given, test_utils=tests)
    detached = [xw.detach(), None, xw.detach(), Whh.detach(), h0.detach(), lengths, "tanh", "ieee"]
    torch.library.opcheck(torch.ops.torch_rnn.triton_backward, detached)
    torch.library.opcheck(torch.ops.torch_rnn.triton_sum_by_id, (xw.detach(), ids, lengths, 9))


def random_weights() -> list[torch.Tensor]:
    return [torch.randn(s, device=DEVICE, requires_grad=True) for s in ((5, 9), (5,), (5, 5))]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_several_gradients_in_one_call():
    """As in torch.autograd.functional.jacobian(vectorize=True)."""
    weights, lengths = random_weights(), torch.tensor([7, 0, 3], device=DEVICE)
    for x in (torch.randint(9, (3, 7), device=DEVICE), torch.randn(3, 7, 9, device=DEVICE)):
        h = recurrence(x, *weights, None, lengths, backend="triton")
        upstream = torch.randn(2, *h.shape, device=DEVICE)
        got = torch.autograd.grad(h, weights, upstream, is_grads_batched=True, retain_graph=True)
        want = [torch.autograd.grad(h, weights, dh, retain_graph=True) for dh in upstream]
        mapped = torch.func.vmap(lambda dh, h=h: torch.autograd.grad(h, weights, dh, retain_graph=True))(
            upstream
        )
        for results in (got, mapped):
            for actual, *expected in zip(results, *want, strict=True):
                assert_parity("gradient", actual, torch.stack(expected).double(), torch.float32)


def test_tensor_subclasses_and_dispatch_modes():
    """A TwoTensor has no memory of its own, and a mode must see an operator."""
    weights, ids = random_weights(), torch.randint(9, (3, 7), device=DEVICE)
    h = recurrence(ids, *weights, backend="triton")
    want = [h, *torch.autograd.grad(h.sum(), weights)]
    pairs = [TwoTensor(w.detach(), w.detach().clone()).requires_grad_() for w in weights]
    h = recurrence(ids, *pairs, backend="triton")
    got = [h, *torch.autograd.grad(h.sum(), pairs)]
    for actual, expected in zip(got, want, strict=True):
        assert torch.equal(actual.a, expected)
        assert torch.equal(actual.b, expected)
    with FlopCounterMode(display=False, custom_mapping={FORWARD: lambda *_, **__: 11}) as counter:
        recurrence(ids, *weights, backend="triton")
    assert counter.get_total_flops() == 11


def test_rounding_to_bfloat16_keeps_large_values_finite():
    eye, zeros = torch.eye(3, device=DEVICE), torch.zeros(1, 2, 3, device=DEVICE)
    h0 = torch.tensor([[3e38, 1.0, 0.0]], device=DEVICE)
    with bf16():
        h = recurrence(zeros, eye, zeros[0, 0], eye, h0, nonlinearity="relu", backend="triton")
    assert torch.equal(h[0, 1], h0[0])


def test_which_sizes_fit_into_a_multiprocessor(monkeypatch):
    monkeypatch.setattr(backend, "_shared_memory", lambda device: 227 * 1024)
    for H, dtype, precision, fits in (
        (128, torch.float32, "ieee", True),
        (129, torch.float32, "ieee", False),
        (128, torch.float64, "ieee", True),
        (256, torch.float32, "bf16", True),
        (257, torch.float32, "bf16", False),
    ):
        assert (backend.plan(H, dtype, precision, torch.device("cuda")).rows > 0) == fits


def test_the_comparison_of_auto_passes_and_finds_a_wrong_kernel(monkeypatch):
    given = (backend.triton_backend, torch.device(DEVICE), torch.float32, 40, "tanh")
    assert not difference(*given)
    with bf16():
        assert not difference(*given)
    right = backend.sum_by_id
    monkeypatch.setattr(backend, "sum_by_id", lambda *args: 1.001 * right(*args))
    assert difference(*given) == "dWxh differs from eager by 1.0e-03 of its largest entry"


def test_the_comparison_of_auto_goes_step_by_step_too(step_by_step, monkeypatch):
    given = (backend.triton_backend, torch.device(DEVICE), torch.float32, 40, "tanh")
    assert not difference(*given)
    right = backend.step_by_step
    monkeypatch.setattr(backend, "step_by_step", lambda *args: 1.001 * right(*args))
    assert "differs from eager" in difference(*given)


def test_runs_on_nvidias_gpus_only(monkeypatch):
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert backend.runs_on("cuda")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not backend.runs_on("cuda")


def test_without_triton_auto_does_not_use_the_kernels(monkeypatch):
    monkeypatch.setattr(backend, "kernels", lambda: None)
    backend.interpreted.cache_clear()
    try:
        assert not backend.runs_on(DEVICE)
        with pytest.raises(
            ValueError, match=f"backend is 'triton'; on {DEVICE} it must be one of auto, eager"
        ):
            which("triton", DEVICE)
    finally:
        backend.interpreted.cache_clear()


@pytest.mark.cuda
@pytest.mark.parametrize("place", ["in registers", "outside"])
def test_a_whole_training_step_is_one_cuda_graph(monkeypatch, place):
    """Replayed on new batches, the graph of forward, backward, clipping and Adam equals plain steps."""
    keep_whh(place, monkeypatch)
    B, T, D = 6, 20, 50
    batches = [
        (torch.randint(D, (B, T)), torch.randint(1, T + 1, (B,)), torch.randint(2, (B,)).float())
        for _ in range(8)
    ]
    batches = [tuple(tensor.cuda() for tensor in batch) for batch in batches]

    def build():
        torch.manual_seed(0)
        rnn = RNN(D, 40, 1, backend="triton", device="cuda")
        return rnn, torch.optim.Adam(rnn.parameters(), lr=0.01, fused=True, capturable=True)

    def step(rnn, optimizer, ids, lengths, labels):
        optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(rnn(ids, lengths)[:, 0], labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rnn.parameters(), 0.05)
        optimizer.step()
        return loss

    plain, optimizer = build()
    want = [step(plain, optimizer, *batch).item() for batch in batches]

    rnn, optimizer = build()
    buffers = [tensor.clone() for tensor in batches[0]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = [step(rnn, optimizer, *batch).item() for batch in batches[:3]]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(rnn, optimizer, *buffers)
    for batch in batches[3:]:
        for buffer, tensor in zip(buffers, batch, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        got.append(loss.item())
    assert got == pytest.approx(want, rel=1e-5)
    for actual, expected in zip(rnn.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.cuda
def test_training_works_after_evaluation(monkeypatch):
    keep_whh("outside", monkeypatch)
    rnn = RNN(9, 37, 1, backend="triton", device="cuda")
    x = torch.randint(9, (3, 7), device="cuda")
    with torch.inference_mode():
        rnn(x)
    rnn(x).sum().backward()
    assert rnn.Whh.grad.isfinite().all()
