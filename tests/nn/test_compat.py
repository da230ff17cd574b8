"""compat.RNN equals torch.nn.RNN on PyTorch's own test samples and in common uses."""

import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from torch_rnn.nn import compat
from torch_rnn.testing import assert_parity

with (
    pytest.MonkeyPatch.context() as patch
):  # otherwise the import would disable cuDNN's flags for the whole process
    patch.setattr(torch.backends, "disable_global_flags", lambda: None)
    common = pytest.importorskip("torch.testing._internal.common_modules", reason="needs expecttest")
SAMPLES = {
    f"{'packed' if packed else 'padded'}, {'train' if training else 'eval'}": (packed, training)
    for packed in (False, True)
    for training in (False, True)
}


@pytest.fixture
def ours_computes(monkeypatch):
    """Fails if our module falls back to torch.nn.RNN."""
    original = nn.RNN.forward

    def forward(self, *args, **kwargs):
        assert type(self) is nn.RNN, "torch.nn.RNN computed in our place"
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.RNN, "forward", forward)


def twins(*args, **kwargs):
    theirs = nn.RNN(*args, **kwargs)
    ours = compat.RNN(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(output):
    """Returns the tensors of (output, h_n), where output may be packed."""
    first, h_n = output
    return [*first, h_n] if isinstance(first, PackedSequence) else [first, h_n]


def outputs_and_gradients(module, given):
    leaves = [t.data if isinstance(t, PackedSequence) else t for t in given]
    leaves = [leaf for leaf in leaves if leaf.requires_grad and leaf.is_leaf]
    out = tensors(module(*given))
    real = [t for t in out if t is not None and t.is_floating_point()]
    g = torch.Generator().manual_seed(0)
    loss = sum((t * torch.randn(t.shape, generator=g, dtype=torch.float64).to(t)).sum() for t in real)
    rest = [t for t in out if t is None or not t.is_floating_point()]
    return [t.detach() for t in real], torch.autograd.grad(loss, [*module.parameters(), *leaves]), rest


def assert_same(theirs, ours, *given):
    """Uses our tolerance in float64, and in float32 the one that PyTorch uses for these samples."""
    got, want = outputs_and_gradients(ours, given), outputs_and_gradients(theirs, given)
    for part in (0, 1):
        for actual, expected in zip(got[part], want[part], strict=True):
            if expected.dtype == torch.float64:
                assert_parity("output" if part == 0 else "gradient", actual, expected, torch.float64)
            else:
                torch.testing.assert_close(actual, expected)
    for actual, expected in zip(got[2], want[2], strict=True):
        assert actual is expected or torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("packed", "training"), SAMPLES.values(), ids=SAMPLES)
def test_pytorchs_own_samples(ours_computes, packed, training, dtype):
    torch.manual_seed(0)  # the samples are drawn at random
    samples = common.module_inputs_torch_nn_RNN_GRU(
        None, "cpu", dtype, True, training, with_packed_sequence=packed, is_rnn=True
    )
    assert len(samples) >= 32
    for sample in samples:
        constructor = sample.constructor_input
        theirs, ours = (m.to(dtype).train(training) for m in twins(*constructor.args, **constructor.kwargs))
        assert_same(theirs, ours, *sample.forward_input.args)


def test_pytorchs_own_errors():
    samples = common.module_error_inputs_torch_nn_RNN_GRU(None, "cpu", torch.float32, False, True)
    samples += common.get_module_error_inputs(None) if hasattr(common, "get_module_error_inputs") else []
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    assert len(samples) >= (8 if version >= (2, 11) else 2)
    for sample in samples:
        constructor, given = (
            sample.module_error_input.constructor_input,
            sample.module_error_input.forward_input,
        )
        with pytest.raises(sample.error_type, match=sample.error_regex):
            compat.RNN(*constructor.args, **constructor.kwargs)(*given.args, **given.kwargs)


CASES = list(itertools.product((1, 3), (False, True), (False, True), (False, True)))


@pytest.mark.parametrize(("layers", "bidirectional", "bias", "batch_first"), CASES)
def test_padded_packed_and_unbatched(ours_computes, layers, bidirectional, bias, batch_first):
    torch.manual_seed(0)
    B, T, D, H = 4, 7, 3, 5
    settings = {"bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    theirs, ours = (m.double() for m in twins(D, H, layers, **settings))
    x = torch.randn(*((B, T) if batch_first else (T, B)), D, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(layers * (1 + bidirectional), B, H, dtype=torch.float64, requires_grad=True)
    assert_same(theirs, ours, x)
    assert_same(theirs, ours, x, hx)
    assert_same(theirs, ours, x[:, 0].detach() if batch_first else x[0].detach())
    assert_same(theirs, ours, x[0].detach(), hx[:, 0].detach())
    for lengths, is_sorted in (([7, 5, 5, 1], True), ([1, 7, 5, 5], False)):
        packed = pack_padded_sequence(
            x.detach(), torch.tensor(lengths), batch_first, enforce_sorted=is_sorted
        )
        assert_same(theirs, ours, packed)
        assert_same(theirs, ours, packed, hx)
    assert_same(
        theirs, ours, pack_sequence([torch.randn(t, D).double() for t in (2, 4)], enforce_sorted=False)
    )


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_draws_what_torch_draws(ours_computes, packed):
    theirs, ours = twins(3, 5, 3, dropout=0.5, bidirectional=True)
    x = torch.randn(7, 4, 3)
    given = pack_padded_sequence(x, torch.tensor([3, 7, 1, 5]), enforce_sorted=False) if packed else x
    results = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        results.append(tensors(module(given)))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][-1], results[1][-1])
    theirs, ours = theirs.eval(), ours.eval()
    torch.testing.assert_close(tensors(ours(given))[0], tensors(theirs(given))[0])


def test_it_is_an_nn_RNN():
    theirs, ours = twins(3, 5, 2, nonlinearity="relu", batch_first=True)
    assert isinstance(ours, nn.RNN)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    x = torch.randn(2, 4, 3)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x)[0], ours(x)[0])
    out = compat.RNN(3, 5)(torch.randn(4, 2, 3))[0]
    assert out.view(-1, 5).shape == (8, 5)
    doubled = torch.func.functional_call(ours, {n: 2 * p for n, p in ours.named_parameters()}, (x,))[0]
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(ours(x)[0], doubled)


@pytest.mark.parametrize("settings", [{"batch_first": True}, {"batch_first": False}, {"bidirectional": True}])
@pytest.mark.parametrize("shape", [(4, 3, 3), (1, 3, 3), (4, 1, 3), (4, 3)], ids=str)
def test_the_output_can_be_changed_in_place(ours_computes, settings, shape):
    theirs, ours = twins(3, 5, **settings)
    x, gradients = torch.randn(shape), []
    if len(shape) == 3 and shape[int(settings.get("batch_first", False))] == 1:
        x = torch.cat([x, x], dim=int(settings.get("batch_first", False)))  # one step goes to torch.nn.RNN
    for module in (theirs, ours):
        output, h_n = module(x)
        output.mul_(2).add_(1)
        (output.sum() + h_n.sum()).backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_a_single_step_goes_to_torch(monkeypatch):
    theirs, ours = twins(3, 5, num_layers=2)
    x, seen = torch.randn(1, 2, 3), []
    original = nn.RNN.forward
    monkeypatch.setattr(nn.RNN, "forward", lambda *given: seen.append(given) or original(*given))
    assert torch.equal(ours(x)[0], theirs(x)[0])
    assert len(seen) == 2


def test_unsupported_input_goes_to_torch():
    theirs, ours = twins(3, 5)
    x = torch.randn(4, 2, 3)
    x[1, 0, 0] = torch.nan
    assert torch.equal(ours(x)[0].isnan(), theirs(x)[0].isnan())
    assert ours.bfloat16()(x.bfloat16())[0].dtype == torch.bfloat16
    theirs, ours = twins(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x)[0].dtype == theirs(x)[0].dtype
    packed = pack_padded_sequence(torch.randn(4, 2, 3), torch.tensor([1, 4]), enforce_sorted=False)
    larger = torch.randn(1, 3, 5)  # nn.RNN uses only the rows that it needs
    assert torch.equal(ours(packed, larger)[1], theirs(packed, larger)[1])
    for given in (
        (torch.randn(0, 2, 3),),
        (torch.randn(2, 3, 4),),
        (torch.randn(3),),
        (x, torch.randn(2, 2, 5)),
        (x, torch.tensor(0.0)),
        (x, (torch.randn(1, 2, 5), torch.randn(1, 2, 5))),
        (x[:, 0], torch.randn(5)),
        (x[:, 0], torch.tensor(0.0)),
        (x, torch.randn(1, 2, 5).double()),
        (packed, torch.randn(5)),
        (None,),
    ):
        with pytest.raises(Exception, match=r".") as want:
            theirs(*given)
        with pytest.raises(type(want.value)) as got:
            ours(*given)
        assert str(got.value) == str(want.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["input_scale", "recurrent_scale"])
def test_settings_that_torch_lacks_are_refused(name):
    with pytest.raises(TypeError, match=name):
        compat.RNN(3, 4, **{name: 2.0})
