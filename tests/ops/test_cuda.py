"""The CUDA C++ kernels, on a GPU if there is one, and in an emulator on the CPU.

The emulator also replaces the CUDA driver, so that all of the backend runs except NVRTC.
"""

import pytest
import torch
from cuda_emulator import COMPILER, KERNELS, SOURCE, compile_for_cpu, cuda, emulate, set_order
from ladder import READOUTS, SHAPES, Shape, rung_3, rung_4, states_and_gradients
from torch.testing._internal.two_tensor import TwoTensor

from torch_rnn.ops import nvrtc, recurrence
from torch_rnn.testing import assert_parity, tolerance

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))

LONG = Shape(5, T=27, D=6, H=40, ids=True, lengths=(27, 1, 16, 0, 8))
"""Steps in groups and single steps; more rows than the emulator's 3 blocks; a multiple of 4."""
UNEVEN = Shape(5, T=17, D=3, H=37, ids=False, lengths=(17, 9, 4, 0, 15))
WIDE = Shape(5, T=18, D=9, H=128, ids=True, lengths=(18, 1, 0, 5, 17))
EDGES = (
    LONG,
    UNEVEN,
    WIDE,
    Shape(1, T=1, D=1, H=100, ids=False),
    Shape(4, T=16, D=6, H=128, ids=False),
    Shape(4, T=9, D=6, H=32, ids=True, lengths=(8, 1, 0, 9)),
    Shape(4, T=9, D=6, H=33, ids=False, lengths=(8, 1, 0, 9)),
    Shape(3, T=10, D=4, H=65, ids=True),
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The kernels and the driver on the CPU."""
    if COMPILER is None:
        pytest.skip("no C++ compiler to build the emulator with")
    return compile_for_cpu([(SOURCE, KERNELS)], tmp_path_factory.mktemp("cuda"))


@pytest.fixture(autouse=True)
def backend(request, monkeypatch):
    """Adds the backend "cuda"; for tests on the CPU, with the emulator."""
    if request.node.get_closest_marker("cuda") is None:
        emulate(monkeypatch, request.getfixturevalue("driver"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [*SHAPES, *EDGES], ids=str)
def test_the_kernels_agree_with_eager(shape, device):
    rung_3("cuda", shape, torch.float32, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nonlinearity", ["relu", "linear"])
@pytest.mark.parametrize("shape", SHAPES[3:6], ids=str)
def test_the_kernels_have_every_nonlinearity(shape, nonlinearity, device):
    rung_3("cuda", shape._replace(H=min(shape.H, 32)), torch.float32, nonlinearity, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("readout", READOUTS)
def test_ten_training_steps(readout, device):
    rung_4("cuda", readout, 3, torch.float32, device)


@pytest.mark.parametrize("shape", [LONG, UNEVEN, WIDE], ids=str)
def test_the_order_of_threads_changes_no_bit(driver, shape):
    results = []
    for order in (0, 1, 2, 3):
        set_order(driver, order)
        results.append(states_and_gradients("cuda", shape, torch.float32, "tanh", "cpu"))
    assert all(torch.equal(result[name], results[0][name]) for result in results for name in result)


def test_the_number_of_blocks_changes_no_states(monkeypatch):
    first = states_and_gradients("cuda", LONG, torch.float32, "tanh", "cpu")
    monkeypatch.setattr(cuda, "min", lambda B, resident: 1, raising=False)
    second = states_and_gradients("cuda", LONG, torch.float32, "tanh", "cpu")
    for name in ("h", "hT", "dh0"):
        assert torch.equal(first[name], second[name])
    rung_3("cuda", LONG, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_neither_the_rest_of_the_batch_nor_padding_changes_a_bit(device):
    ids, lengths = torch.randint(9, (11, 20), device=device), torch.randint(21, (11,), device=device)
    weights = [torch.randn(s, device=device) / 3 for s in ((40, 9), (40,), (40, 40))]
    whole = recurrence(ids, *weights, None, lengths, backend="cuda")
    for rows in (slice(0, 5), slice(5, None), slice(3, 4)):
        assert torch.equal(recurrence(ids[rows], *weights, None, lengths[rows], backend="cuda"), whole[rows])
    longer = recurrence(torch.nn.functional.pad(ids, (0, 11)), *weights, None, lengths, backend="cuda")
    assert torch.equal(longer[:, :20], whole)


@pytest.mark.parametrize("device", DEVICES)
def test_tanh_is_accurate_and_never_exceeds_1(device):
    a = torch.cat([torch.linspace(-25, 25, 5001), torch.logspace(-30, 0, 117), torch.tensor([0.0, 1e30])])
    a = a.to(device).view(-1, 1, 128)
    H = a.shape[2]
    h = recurrence(a, torch.eye(H).to(a), a.new_zeros(H), a.new_zeros(H, H), backend="cuda")
    want = a.double().tanh()
    assert ((h.double() - want).abs() / want.abs().clamp(min=1e-300)).max() < 4 * torch.finfo(h.dtype).eps
    assert h.abs().max() <= 1
    assert not h[a == 0].any()


@pytest.mark.parametrize("device", DEVICES)
def test_invalid_ids_and_lengths_are_clamped(device):
    """Their values are not checked on a GPU."""
    columns, bh, Whh, h0 = (torch.randn(s, device=device) for s in ((9, 5), (5,), (5, 5), (3, 5)))
    ids = torch.tensor([[0, -7, 3, 99], [8, 9, 10**12, -(10**12)], [5, 2**32 + 3, 5, 5]], device=device)
    lengths = torch.tensor([99, 4, -4], device=device)
    results = []
    for i, n in ((ids, lengths), (ids.clamp(0, 8), lengths.clamp(0, 4))):
        hs, hT = torch.ops.torch_rnn.cuda_forward(None, i, columns, bh, Whh, h0, n, "tanh")
        das, dWhh, dh0 = torch.ops.torch_rnn.cuda_backward(hs, hT, hs, Whh, h0, n, "tanh")
        results.append([hs, hT, das, dWhh, dh0, torch.ops.torch_rnn.cuda_sum_by_id(das, i, n, 9)])
    assert all(torch.equal(actual, expected) for actual, expected in zip(*results, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "linear"])
def test_nan_and_infinity_stay(nonlinearity, device):
    x, W = torch.randint(9, (2, 3), device=device), torch.randn(5, 9, device=device)
    W[0] = torch.nan
    weights = (W, W[:, 1], torch.ones(5, 5, device=device))
    h = recurrence(x, *weights, nonlinearity=nonlinearity, backend="cuda")
    assert torch.equal(h.isnan(), recurrence(x, *weights, nonlinearity=nonlinearity, backend="eager").isnan())
    assert h[:, 0, 0].isnan().all()
    W[0] = torch.inf
    h = recurrence(x, W, W[:, 1], weights[2], nonlinearity=nonlinearity, backend="cuda")
    assert torch.equal(
        h, recurrence(x, W, W[:, 1], weights[2], nonlinearity=nonlinearity, backend="eager")
    ) or (nonlinearity == "tanh")
    assert not h.isnan().any()  # the padding from 5 to 32 does not multiply infinity by 0


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_tensors(device):
    x, W = torch.randint(9, (7, 3), device=device).t(), torch.randn(5, 9, device=device)
    Whh = torch.randn(5, 10, device=device)
    want = recurrence(x.contiguous(), W, Whh[:, 1].contiguous(), Whh[:, ::2].contiguous(), backend="cuda")
    Whh.requires_grad_()
    h = recurrence(x, W, Whh[:, 1], Whh[:, ::2], backend="cuda")
    assert torch.equal(h, want)
    dh = torch.randn(3, 7, 5, device=device)
    twice = torch.stack([dh, dh], dim=-1)
    results = [
        torch.autograd.grad(h, Whh, upstream, retain_graph=True)[0]
        for upstream in (dh, dh.transpose(0, 1).contiguous().transpose(0, 1), twice[..., 1])
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    (same,) = torch.autograd.grad(h.sum(), Whh, retain_graph=True)
    assert torch.equal(same, torch.autograd.grad(h, Whh, torch.ones_like(h))[0])


def assert_sums_by_id_are_right(device: str) -> None:
    g = torch.Generator().manual_seed(0)
    for T, D, H, share in (
        (60, 40_000, 3, 0.0),
        (130, 7, 33, 0.0),
        (130, 7, 5, 0.8),
        (130, 3, 8, 1.0),
        (16, 9, 4, 0.3),
    ):
        ids = torch.randint(D, (4, T), generator=g)
        ids[torch.rand(4, T, generator=g) < share] = 2
        lengths = torch.tensor([T, T // 2, 0, T - 1])
        das = torch.randn(T, 4, H, generator=g)
        das[torch.arange(T)[:, None] >= lengths] = torch.nan
        want = torch.zeros(D + 1, H, dtype=torch.float64)
        kept = ids.masked_fill(torch.arange(T) >= lengths[:, None], D)
        want.index_add_(0, kept.t().flatten(), das.flatten(0, 1).nan_to_num().double())
        got = cuda._sum_by_id(das.to(device), ids.to(device), lengths.to(device), D)
        assert_parity("dWxh", got, want[:D], torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_sums_by_id_with_rare_and_frequent_ids(device):
    assert_sums_by_id_are_right(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5]], ids=str)
def test_second_derivatives(shape, device):
    results = []
    for name, dtype in (("eager", torch.float64), ("cuda", torch.float32)):
        g = torch.Generator().manual_seed(0)
        sizes = ((shape.H, shape.D), (shape.H,), (shape.H, shape.H), (shape.B, shape.H))
        tensors = [torch.randn(size, generator=g) / size[-1] ** 0.5 for size in sizes]
        tensors = [tensor.to(device, dtype).requires_grad_() for tensor in tensors]
        x = torch.randint(shape.D, (shape.B, shape.T), generator=g).to(device)
        if not shape.ids:
            x = torch.randn(shape.B, shape.T, shape.D, generator=g).to(device, dtype)
        lengths = None if shape.lengths is None else torch.tensor(shape.lengths, device=device)
        h, hT = recurrence(x, *tensors, lengths, backend=name, final=True)
        first = torch.autograd.grad(h.square().sum() + hT.sum(), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors))
    for name, want, got in zip(("Wxh", "bh", "Whh", "h0"), *results, strict=True):
        assert_parity(name, got, want, torch.float32, tolerance(torch.float32, shape.T, passes=4))


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch_and_no_steps(device):
    Wxh, bh, Whh = (torch.randn(s, device=device, requires_grad=True) for s in ((4, 2), (4,), (4, 4)))
    for B, T in ((0, 5), (3, 0), (0, 0)):
        for x in (torch.randn(B, T, 2, device=device), torch.zeros(B, T, dtype=torch.long, device=device)):
            h, hT = recurrence(x, Wxh, bh, Whh, None, final=True, backend="cuda")
            assert h.shape == (B, T, 4)
            assert not any(dW.any() for dW in torch.autograd.grad(h.sum() + hT.sum(), (Wxh, bh, Whh)))


def test_only_what_needs_a_gradient_gets_one(monkeypatch):
    monkeypatch.setattr(cuda, "_sum_by_id", None)  # not called if Wxh needs no gradient
    Wxh, bh, Whh, h0 = torch.randn(4, 2), torch.randn(4), torch.randn(4, 4), torch.randn(3, 4)
    ids = torch.randint(2, (3, 5))
    assert not recurrence(ids, Wxh, bh, Whh, h0, backend="cuda").requires_grad
    for wanted in (bh, Whh, h0):
        wanted.requires_grad_()
        recurrence(ids, Wxh, bh, Whh, h0, backend="cuda").sum().backward()
        assert [tensor.grad is not None for tensor in (Wxh, bh, Whh, h0)] == [
            tensor is wanted for tensor in (Wxh, bh, Whh, h0)
        ]
        wanted.requires_grad_(False).grad = None


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    weights = [torch.randn(*s, device=device, requires_grad=True) for s in ((9, 5), (5,), (5, 5), (3, 5))]
    ids, lengths = torch.randint(9, (3, 7), device=device), torch.tensor([7, 0, 3], device=device)
    columns, bh, Whh, h0 = weights
    xw = torch.randn(7, 3, 5, device=device, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for given in (
        (None, ids, columns, bh, Whh, h0, lengths, "tanh"),
        (xw, None, None, None, Whh, h0, None, "relu"),
    ):
        torch.library.opcheck(torch.ops.torch_rnn.cuda_forward, given, test_utils=tests)
        tests = tests[:3]  # the last one takes seconds
    detached = [xw.detach(), None, xw.detach(), Whh.detach(), h0.detach(), lengths, "tanh"]
    torch.library.opcheck(torch.ops.torch_rnn.cuda_backward, detached)
    torch.library.opcheck(torch.ops.torch_rnn.cuda_sum_by_id, (xw.detach(), ids, lengths, 9))


def random_weights(device: str) -> list[torch.Tensor]:
    return [torch.randn(s, device=device, requires_grad=True) for s in ((5, 9), (5,), (5, 5))]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("device", DEVICES)
def test_several_gradients_in_one_call(device):
    """As in torch.autograd.functional.jacobian(vectorize=True)."""
    weights, lengths = random_weights(device), torch.tensor([7, 0, 3], device=device)
    for x in (torch.randint(9, (3, 7), device=device), torch.randn(3, 7, 9, device=device)):
        h = recurrence(x, *weights, None, lengths, backend="cuda")
        upstream = torch.randn(2, *h.shape, device=device)
        got = torch.autograd.grad(h, weights, upstream, is_grads_batched=True, retain_graph=True)
        want = [torch.autograd.grad(h, weights, dh, retain_graph=True) for dh in upstream]
        mapped = torch.func.vmap(lambda dh, h=h: torch.autograd.grad(h, weights, dh, retain_graph=True))(
            upstream
        )
        for results in (got, mapped):
            for actual, *expected in zip(results, *want, strict=True):
                assert_parity("gradient", actual, torch.stack(expected).double(), torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_tensor_subclasses(device):
    """A TwoTensor has no memory of its own."""
    weights, ids = random_weights(device), torch.randint(9, (3, 7), device=device)
    h = recurrence(ids, *weights, backend="cuda")
    want = [h, *torch.autograd.grad(h.sum(), weights)]
    pairs = [TwoTensor(w.detach(), w.detach().clone()).requires_grad_() for w in weights]
    h = recurrence(ids, *pairs, backend="cuda")
    got = [h, *torch.autograd.grad(h.sum(), pairs)]
    for actual, expected in zip(got, want, strict=True):
        assert torch.equal(actual.a, expected)
        assert torch.equal(actual.b, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_code_computes_the_same_bits(device):
    weights, ids = random_weights(device), torch.randint(9, (3, 7), device=device)

    def run(*weights):
        return recurrence(ids, *weights, backend="cuda")

    torch._dynamo.reset()
    results = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        h = function(*weights)
        results.append([h, *torch.autograd.grad(h.square().sum(), weights)])
    assert all(torch.equal(actual, expected) for actual, expected in zip(*results, strict=True))


def test_other_dtypes_and_larger_sizes_are_refused():
    for H, dtype in ((129, torch.float32), (4, torch.float64)):
        weights = [torch.zeros(s, dtype=dtype) for s in ((H, 2), (H,), (H, H))]
        with pytest.raises(ValueError, match="backend 'cuda' allows float32 and H up to 128"):
            recurrence(torch.zeros(1, 1, 2, dtype=dtype), *weights, backend="cuda")
    with pytest.raises(ValueError, match="x has ids; Wxh has no columns"):
        cuda._forward(None, torch.zeros(2, 3), torch.zeros(0, 4), None, None, torch.zeros(2, 4), None, "tanh")


def test_why_the_kernels_do_not_run(monkeypatch):
    monkeypatch.undo()
    assert "cpu is not a CUDA GPU" in cuda.why_not(torch.device("cpu"))
    assert not cuda.runs_on("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = cuda._why_not.__wrapped__
    capability, gpu = (6, 1), torch.device("cuda")
    assert reason(gpu) == "cuda has compute capability (6, 1); it must be at least (7, 0)"
    capability = (7, 0)
    monkeypatch.setattr(nvrtc, "nvrtc", lambda: None)
    assert "NVRTC was not found" in reason(gpu)
    monkeypatch.setattr(nvrtc, "nvrtc", lambda: True)
    monkeypatch.setattr(nvrtc, "driver", lambda: None)
    assert "the CUDA driver" in reason(gpu)
    monkeypatch.setattr(nvrtc, "driver", lambda: True)
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 80, 90))
    assert "no longer supports" in reason(gpu)
    capability = (8, 9)
    assert reason(gpu) == ""
    assert nvrtc.architecture((8, 9)) == "compute_80"
    assert nvrtc.architecture((9, 0)) == "sm_90"


def test_cuda_without_an_index_is_the_current_device(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "_why_not", {torch.device("cuda:0"): "too old", torch.device("cuda:1"): ""}.get)
    for current, runs in ((0, False), (1, True)):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        assert cuda.runs_on("cuda") == runs


def test_autocast_changes_no_bit():
    first = states_and_gradients("cuda", LONG, torch.float32, "tanh", "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        second = states_and_gradients("cuda", LONG, torch.float32, "tanh", "cpu")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_error_of_the_driver_has_its_name(driver):
    with pytest.raises(RuntimeError, match=r"cuModuleGetFunction failed with EMULATED_ERROR \(500\)"):
        nvrtc.Kernel(b"0", "backward<16>", 0, 32, 0)


def test_a_lack_of_memory_is_an_error_of_its_own():
    def function():
        return nvrtc.OUT_OF_MEMORY

    function.__name__ = "cuModuleLoadData"
    with pytest.raises(torch.OutOfMemoryError, match="cuModuleLoadData failed"):
        nvrtc._call(function)
    function.__name__ = "nvrtcCreateProgram"
    with pytest.raises(RuntimeError, match="nvrtcCreateProgram failed") as raised:
        nvrtc._call(function)
    assert raised.type is RuntimeError
