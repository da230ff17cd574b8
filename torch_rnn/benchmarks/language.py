"""A training step of a language model, beside nn.Embedding, nn.RNN and nn.Linear with the same weights."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_rnn.benchmarks.peers import Candidate
from torch_rnn.negatives import draw_negatives, inclusion_probabilities, log_uniform
from torch_rnn.nn.module import RNN
from torch_rnn.softmax import linear_cross_entropy, sampled_cross_entropy
from torch_rnn.testing import compare, twice_the_error

OURS, SAMPLED, PEER = "torch_rnn", "torch_rnn, sampled", "nn.Embedding, nn.RNN, nn.Linear"


class Sizes(NamedTuple):
    """B rows of T steps; K negatives of the sampled softmax, which is timed where V is at least K."""

    B: int
    T: int
    H: int
    V: int
    K: int


class Model(NamedTuple):
    """A function that computes the mean loss, and its parameters: Wxh, Whh, Why, bh, by, and any others.

    by_id: whether the first parameter is (V, H), as nn.Embedding's, and not (H, V).
    """

    loss: Callable[[], Tensor]
    parameters: list[nn.Parameter]
    by_id: bool = False


def language_models(sizes: Sizes, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Model]:
    """Returns the models by name. They have the same weights and read the same ids."""
    B, T, H, V, K = sizes
    g = torch.Generator().manual_seed(0)
    stream = torch.randint(V, (B, T + 1), generator=g).to(device)
    ids, targets = stream[:, :-1], stream[:, 1:].reshape(-1)
    columns, Why = torch.randn(V, H, generator=g) / 10, torch.randn(V, H, generator=g) / 20
    Whh = nn.init.orthogonal_(torch.empty(H, H), generator=g) / 2
    ours = RNN(V, H, V, readout="every", device=device, dtype=dtype)
    with torch.no_grad():
        for name, value in (("Wxh", columns.t()), ("Whh", Whh), ("Why", Why)):
            getattr(ours, name).copy_(value)
    parameters = [ours.Wxh, ours.Whh, ours.Why, ours.bh, ours.by]

    def loss() -> Tensor:
        h = ours.states(ids).flatten(0, 1)
        return linear_cross_entropy(h, ours.Why, ours.by, targets) / len(targets)

    models = {OURS: Model(loss, parameters)}
    if V >= K:
        p = inclusion_probabilities(K, log_uniform(V)).to(device)

        def sampled_loss() -> Tensor:
            h, (negatives, log_q) = ours.states(ids).flatten(0, 1), draw_negatives(p)
            return sampled_cross_entropy(h, ours.Why, ours.by, targets, negatives, log_q) / len(targets)

        models[SAMPLED] = Model(sampled_loss, parameters)
    models[PEER] = _peer(ours, ids, targets)
    return models


def _peer(ours: RNN, ids: Tensor, targets: Tensor) -> Model:
    like = {"device": ours.Why.device, "dtype": ours.Why.dtype}
    H, V = ours.hidden_size, ours.output_size
    embedding, rnn = nn.Embedding(V, H, **like), nn.RNN(H, H, batch_first=True, **like)
    linear = nn.Linear(H, V, **like)
    with torch.no_grad():
        embedding.weight.copy_(ours.Wxh.t())
        rnn.weight_ih_l0.copy_(torch.eye(H))
        rnn.weight_hh_l0.copy_(ours.Whh)
        linear.weight.copy_(ours.Why)
        for bias in (rnn.bias_ih_l0, rnn.bias_hh_l0, linear.bias):
            bias.zero_()

    def loss() -> Tensor:
        return F.cross_entropy(linear(rnn(embedding(ids))[0]).flatten(0, 1), targets)

    parameters = [embedding.weight, rnn.weight_hh_l0, linear.weight, rnn.bias_ih_l0, linear.bias]
    return Model(loss, [*parameters, rnn.weight_ih_l0, rnn.bias_hh_l0], by_id=True)


def language_candidates(sizes: Sizes, device: str) -> dict[str, Candidate]:
    """Returns what to time: the loss, and the loss with the gradient of every parameter."""
    return {name: _candidate(model) for name, model in language_models(sizes, device).items()}


def _candidate(model: Model) -> Candidate:
    @torch.no_grad()
    def forward() -> None:
        model.loss()

    def training() -> None:
        for parameter in model.parameters:
            parameter.grad = None
        model.loss().backward()

    return Candidate(forward, training)


def wrong_language_models(sizes: Sizes, device: str) -> list[str]:
    """Returns the names of our losses that are off by more than twice the error of torch.nn's modules.

    Compares the loss and its gradients with those modules in float64. The sampled loss is compared with every
    word as a negative, where it is the loss itself.
    """
    sizes = sizes._replace(K=sizes.V)
    found = {PEER: _values(language_models(sizes, device)[PEER])}
    truth = _values(language_models(sizes, device, torch.float64)[PEER])
    for name in (OURS, SAMPLED):
        found[name] = _values(language_models(sizes, device)[name])
    return [
        name
        for name in (OURS, SAMPLED)
        for got, peer, want in zip(found[name], found[PEER], truth, strict=True)
        if not compare(name, got, want, torch.float32, twice_the_error(peer, want)).holds
    ]


def _values(model: Model) -> list[Tensor]:
    """Returns the loss and the gradients of Wxh, as (V, H), Whh, Why, bh and by."""
    loss = model.loss()
    Wxh, *rest = torch.autograd.grad(loss, model.parameters[:5])
    return [loss.detach(), Wxh if model.by_id else Wxh.t(), *rest]
