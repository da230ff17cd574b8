"""Every backend under torch.func, forward mode, torch.compile, autocast and recomputation."""

import gc
import logging
import sys

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from functorch.compile import make_boxed_func
from ladder import skip_unless_it_runs
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from torch_rnn import RNN, compat, recurrence
from torch_rnn.losses import cross_entropy
from torch_rnn.ops import available

pytestmark = [  # warnings of PyTorch in jvp
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
B, T, D, H = 3, 6, 5, 4
LENGTHS = torch.tensor([6, 2, 4])
BACKENDS = available("cpu")
ids = torch.tensor([[0, 4, 1, 1, 3, 2], [2, 2, -9, 7, 0, 0], [3, 1, 0, 4, 0, 0]])


def build(backend, **settings):
    torch.manual_seed(0)
    return RNN(D, H, 2, backend=backend, dtype=torch.float64, **settings)


def floats():
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, T, D, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_ids", [True, False])
def test_per_sample_gradients(backend, is_ids):
    rnn, x, labels = (
        build(backend, num_layers=2, bidirectional=True),
        ids if is_ids else floats(),
        torch.tensor([0, 1, 1]),
    )
    parameters = dict(rnn.named_parameters())

    def loss(parameters, x, length, label):
        logits = functional_call(rnn, parameters, (x[None], length[None]))
        return cross_entropy(logits, label[None]).sum()

    got = vmap(grad(loss), (None, 0, 0, 0))(parameters, x, LENGTHS, labels)
    for b in range(B):
        loss_b = cross_entropy(rnn(x[b : b + 1], LENGTHS[b : b + 1]), labels[b : b + 1]).sum()
        for name, want in zip(
            parameters, torch.autograd.grad(loss_b, list(parameters.values())), strict=True
        ):
            torch.testing.assert_close(got[name][b], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_ensemble_by_vmap_over_weights(backend):
    members = [RNN(D, H, 2, backend=backend, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    got = vmap(lambda p, b: functional_call(members[0], (p, b), (ids, LENGTHS)))(parameters, buffers)
    for member, logits in zip(members, got, strict=True):
        torch.testing.assert_close(logits, member(ids, LENGTHS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode_is_never_zero_in_silence(backend):
    rnn, x = build(backend), floats()
    direction = torch.randn(B, T, D, dtype=torch.float64)

    def f(x):
        return rnn(x, LENGTHS)

    step = 1e-6
    want = (f(x + step * direction) - f(x - step * direction)) / (2 * step)
    assert want.abs().min() > 1e-3
    _, got = jvp(f, (x,), (direction,))
    torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-8)
    _, got = torch.compile(lambda x, d: jvp(f, (x,), (d,)), backend="eager")(x, direction)
    torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jacobians_and_hessians(backend):
    rnn = build(backend)
    parameters = dict(rnn.named_parameters())

    def f(Whh):
        return functional_call(rnn, parameters | {"Whh": Whh}, (ids, LENGTHS))

    torch.testing.assert_close(jacfwd(f)(rnn.Whh), jacrev(f)(rnn.Whh), rtol=0, atol=1e-12)
    got = hessian(lambda W: f(W).sum())(rnn.Whh)
    want = torch.autograd.functional.hessian(lambda W: f(W).sum(), rnn.Whh)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_fallback_to_eager_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["torch_rnn.ops"], "_LOGGED", set())
    rnn = build("auto")
    with caplog.at_level(logging.INFO, logger="torch_rnn"):
        for _ in range(2):
            jvp(lambda x: rnn(x), (floats(),), (floats(),))
    assert caplog.text.count("backend under torch.func and forward-mode differentiation: eager") == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_in_eval(backend):
    rnn = build(backend, num_layers=2, dropout=0.5).eval()
    rnn(ids, LENGTHS).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in rnn.parameters())
    assert rnn.Whh.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs(backend):
    rnn, x = build(backend), floats()
    h0 = torch.randn(H, B, dtype=torch.float64).t()
    strided = torch.empty(T, D, 2 * B, dtype=torch.float64)[..., ::2].permute(2, 0, 1).copy_(x)
    assert not strided.is_contiguous()
    assert torch.equal(rnn(strided, LENGTHS, h0), rnn(x, LENGTHS, h0.contiguous()))
    assert torch.equal(rnn(ids.t().contiguous().t(), LENGTHS), rnn(ids, LENGTHS))
    assert torch.equal(rnn(x, torch.stack([LENGTHS, LENGTHS], 1)[:, 0]), rnn(x, LENGTHS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_ids", [True, False])
def test_autocast(backend, is_ids):
    """Gradients differ by no more than the rounding of products to bfloat16 explains."""
    rnn = build(backend).float()
    x = ids if is_ids else floats().float()
    want = torch.autograd.grad(rnn(x, LENGTHS).sum(), list(rnn.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = rnn(x, LENGTHS).float().sum()
    for actual, expected in zip(torch.autograd.grad(loss, list(rnn.parameters())), want, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_under_autocast_it_takes_what_other_layers_return():
    rnn, below = build("auto").float(), nn.Linear(D, D + H)
    x = torch.randn(B, T, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, h0 = below(x).split([D, H], dim=2)
        assert rounded.dtype == torch.bfloat16
        for given, start in ((rounded, h0[:, 0]), (rounded[0], h0[0, 0])):
            torch.testing.assert_close(rnn(given, h0=start), rnn(given.float(), h0=start.float()))
        with pytest.raises(TypeError, match=r"x is torch\.float64; it must be torch\.float32 like Wxh"):
            rnn(rounded.double())
        with pytest.raises(TypeError, match=r"h0 is torch\.int64"):
            rnn(rounded, h0=h0[:, 0].long())
    with pytest.raises(TypeError, match=r"x is torch\.bfloat16; it must be torch\.float32 like Wxh"):
        rnn(rounded)


@pytest.mark.parametrize("recompute", [False, True])
def test_on_the_meta_device_and_for_tracers_there_are_shapes(recompute):
    # At the top of this file, their import would change the order of Union[int, float] for Lightning's.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    settings = {"readout": "mean", "recompute": recompute}
    with FakeTensorMode():
        assert RNN(D, H, 2, **settings)(torch.randn(B, T, D), torch.full((B,), T)).shape == (B, 2)
        assert compat.RNN(D, H)(torch.randn(T, B, D))[0].shape == (T, B, H)
    for x in (torch.randn(B, T, D, device="meta"), torch.zeros(B, T, dtype=torch.long, device="meta")):
        logits = RNN(D, H, 2, device="meta", **settings)(x, torch.full((B,), T, device="meta"))
        assert logits.shape == (B, 2)
        logits.sum().backward()
    rnn, x = build("auto", readout="mean"), floats()
    traced = make_fx(lambda x: rnn(x, LENGTHS))(x)
    torch.testing.assert_close(traced(x + 1), rnn(x + 1, LENGTHS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_in_bfloat16(backend):
    rnn = build(backend, num_layers=2).float()
    want = torch.autograd.grad(rnn(floats().float(), LENGTHS).sum(), list(rnn.parameters()))
    rnn = rnn.bfloat16()
    logits = rnn(floats().bfloat16(), LENGTHS)
    assert logits.dtype == torch.bfloat16
    for actual, expected in zip(torch.autograd.grad(logits.sum(), list(rnn.parameters())), want, strict=True):
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    assert RNN(D, H, 2, dtype=torch.bfloat16)(ids, LENGTHS).dtype == torch.bfloat16


def graph_sizes(rnn, *given):
    """Returns the number of nodes of both compiled graphs; checks what they compute."""
    sizes = []

    def compiler(graph, example):
        sizes.append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    compiled = torch.compile(
        rnn, fullgraph=True, backend=aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    )
    got, want = compiled(*given), rnn(*given)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    parameters = list(rnn.parameters())
    for actual, expected in zip(
        torch.autograd.grad(got.sum(), parameters), torch.autograd.grad(want.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert len(sizes) == 2
    return sizes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_ids", [True, False])
def test_compiles_into_one_graph(backend, is_ids):
    graph_sizes(build(backend), ids.clamp(0, D - 1) if is_ids else floats(), LENGTHS)
    graph_sizes(
        build(backend, num_layers=2, bidirectional=True),
        floats(),
        LENGTHS,
        None,
        LENGTHS[:, None] > torch.arange(T),
    )


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("eager", "triton")])
def test_the_graph_does_not_grow_with_time(backend):
    short, long = (graph_sizes(build(backend), torch.randint(D, (2, steps)), None) for steps in (64, 1024))
    assert short == long


def test_the_graph_does_not_grow_with_time_on_triton():
    """Uses few steps, because the interpreter is slow."""
    skip_unless_it_runs("triton", "cpu")
    short, long = (graph_sizes(build("triton"), torch.randint(D, (2, steps)), None) for steps in (4, 16))
    assert short == long


def test_compiles_with_recomputation_of_any_number_of_steps():
    rnn = build("auto", recompute=True)
    compiled = torch.compile(rnn, fullgraph=True, dynamic=True, backend="eager")
    for steps in (4, 7):
        x = torch.randn(2, steps, D, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), rnn(x))


def test_compiles_with_weights_of_any_size():
    compiled = torch.compile(recurrence, fullgraph=True, dynamic=True, backend="eager")
    for n in (3, 5):
        x, weights = torch.randn(2, 4, n), [torch.randn(n, n), torch.randn(n), torch.randn(n, n)]
        torch.testing.assert_close(compiled(x, *weights), recurrence(x, *weights))


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputation_changes_nothing(backend):
    x, h0 = floats(), torch.randn(4, B, H, dtype=torch.float64, requires_grad=True)
    results = []
    for recompute in (False, True):
        rnn = build(backend, num_layers=2, bidirectional=True, recompute=recompute, readout="mean")
        logits = rnn(x, LENGTHS, h0)
        results.append([logits, *torch.autograd.grad(logits.square().sum(), [*rnn.parameters(), h0])])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        want = grad(lambda x: build(backend)(x).sum())(x)
        assert torch.equal(grad(lambda x: build(backend, recompute=True)(x).sum())(x), want)
    empty = recurrence(x[:, :0], rnn.Wxh, rnn.bh, rnn.Whh, recompute=True)
    assert empty.shape == (B, 0, H)


def kept_bytes(rnn: nn.Module, x: torch.Tensor) -> int:
    """Returns the bytes stored between forward and backward, without parameters and input."""
    excluded, sizes = {t.untyped_storage().data_ptr() for t in (x, *rnn.parameters())}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    gc.collect()
    before = {id(item) for item in gc.get_objects()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = rnn(x)
    for item in gc.get_objects():  # tensors that Python keeps, such as arguments of the recomputation
        if id(item) not in before and isinstance(item, torch.Tensor) and item is not y:
            note(item)
    return sum(sizes.values())


@pytest.mark.parametrize("backend", ["eager", "bptt", "cpu"])
def test_with_recomputation_what_is_kept_grows_as_the_square_root_of_time(backend):
    skip_unless_it_runs(backend, "cpu")
    short, long = (
        kept_bytes(build(backend, recompute=True), torch.randn(2, n, D).double()) for n in (25, 400)
    )
    assert 3 < long / short < 5
    short, long = (kept_bytes(build(backend), torch.randn(2, n, D).double()) for n in (25, 400))
    assert 14 < long / short < 18


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["eager", "bptt", "triton", "cudnn", "auto"])
def test_transforms_on_cuda(backend):
    """Second derivatives, backward in eval() and vmap(grad), which cuDNN refuses, and forward mode."""
    if backend != "auto":
        skip_unless_it_runs(backend, "cuda")
    rnn, x, lengths = build(backend).cuda().eval(), floats().cuda().requires_grad_(), LENGTHS.cuda()
    plain = build("eager").eval()
    twin = floats().requires_grad_()
    results = []
    for model, given, n in ((rnn, x, lengths), (plain, twin, LENGTHS)):
        (first,) = torch.autograd.grad(model(given, n).square().sum(), given, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), [given, model.Whh])
        parameters = dict(model.named_parameters())
        each = vmap(
            grad(lambda p, s, m, model=model: functional_call(model, p, (s[None], m[None])).square().sum()),
            (None, 0, 0),
        )(parameters, given.detach(), n)
        _, tangent = jvp(
            lambda s, model=model, n=n: model(s, n), (given.detach(),), (torch.ones_like(given),)
        )
        results.append([first, *second, *each.values(), tangent])
    for actual, expected in zip(*results, strict=True):
        assert actual.any()
        torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-10)
