"""Contributions of words: they sum to the logits for every readout, and a step that is not real has none."""

import pytest
import torch

from torch_rnn.nn.module import RNN
from torch_rnn.page.contributions import contributions, running_logits

KINDS = [
    {"readout": readout, "num_layers": layers, "bidirectional": two}
    for readout in ("last", "mean", "max")
    for layers in (1, 2)
    for two in (False, True)
]
V, T = 30, 25


def made(C=1, dtype=torch.float32, **settings):
    torch.manual_seed(3)
    rnn = RNN(V, 9, C, dtype=dtype, **settings).eval()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    x, lengths = torch.randint(V, (5, T)), torch.tensor([T, 1, 0, 13, T])
    return rnn, x, lengths


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
@torch.no_grad()
def test_contributions_and_the_bias_sum_to_the_logits(kind, C):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        rnn, x, lengths = made(C, dtype, **kind)
        parts = contributions(rnn, x, lengths)
        assert parts.shape == (5, T, C)
        assert (parts.sum(dim=1) + rnn.by - rnn(x, lengths)).abs().max() < tolerance
        for b, n in enumerate(lengths.tolist()):
            assert (parts[b, n:] == 0).all()


@pytest.mark.parametrize(
    "settings", [{"nonlinearity": "relu"}, {"bias": False}, {"readout": "every"}], ids=str
)
@torch.no_grad()
def test_other_settings_sum_to_the_logits_of_the_last_step(settings):
    rnn, x, _ = made(2, torch.float64, **settings)
    logits = rnn(x)[:, -1] if rnn.readout == "every" else rnn(x)
    by = 0 if rnn.by is None else rnn.by
    parts = contributions(rnn, x, torch.full((5,), T)).sum(dim=1) + by
    assert (parts - logits).abs().max() < 1e-9 * logits.abs().max()


@pytest.mark.parametrize("readout", ["last", "mean", "max"])
@torch.no_grad()
def test_the_running_logits_are_those_of_the_text_so_far(readout):
    rnn, x, _ = made(3, torch.float64, readout=readout)
    h, parts = rnn.states(x[:1])[0], contributions(rnn, x[:1], torch.tensor([T]))[0]
    expected = torch.stack([rnn(x[0, : t + 1]) for t in range(T)])
    assert (running_logits(rnn, h, parts) - expected).abs().max() < 1e-12


@torch.no_grad()
def test_the_running_logits_of_two_directions_end_in_the_logits():
    rnn, x, _ = made(1, torch.float64, readout="mean", bidirectional=True)
    h, parts = rnn.states(x[:1])[0], contributions(rnn, x[:1], torch.tensor([T]))[0]
    assert (running_logits(rnn, h, parts)[-1] - rnn(x[0])).abs().max() < 1e-12
