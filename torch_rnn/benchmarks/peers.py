"""The functions that scripts/benchmark.py times: the recurrence, its peers, and a whole training step."""

import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from torch_rnn.losses import cross_entropy
from torch_rnn.nn.module import RNN
from torch_rnn.ops import recurrence


class Candidate(NamedTuple):
    """Two functions to time: ids -> last state, and the same with the gradient of every weight."""

    forward: Callable[[], object]
    training: Callable[[], object]


def ours(backend: str, ids: Tensor, V: int, H: int, lengths: Tensor | None) -> Candidate:
    """Returns the recurrence on a backend."""
    Wxh = nn.Parameter((torch.randn(V, H, device=ids.device) / 10).t())
    Whh = nn.Parameter(nn.init.orthogonal_(torch.empty(H, H, device=ids.device)))
    bh = nn.Parameter(torch.zeros(H, device=ids.device))

    def forward() -> Tensor:
        return recurrence(ids, Wxh, bh, Whh, None, lengths, backend=backend, final=True)[1]

    return _candidate(forward, [Wxh, Whh, bh])


def torch_rnn_module(ids: Tensor, V: int, H: int, lengths: Tensor | None) -> Candidate:
    """Returns nn.Embedding with nn.RNN; with lengths, the sequences are packed."""
    embedding, rnn = nn.Embedding(V, H).to(ids.device), nn.RNN(H, H, batch_first=True).to(ids.device)

    def forward() -> Tensor:
        x = embedding(ids)
        if lengths is not None:
            x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return rnn(x)[1]

    return _candidate(forward, [*embedding.parameters(), *rnn.parameters()])


def keras_is_installed() -> bool:
    """Returns whether Keras and JAX can be imported."""
    return all(importlib.util.find_spec(name) for name in ("keras", "jax"))


def keras_simple_rnn(ids: Tensor, V: int, H: int) -> Candidate:
    """Returns Keras's Embedding with SimpleRNN on its JAX backend, compiled by jax.jit."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    model = keras.Sequential([keras.layers.Embedding(V, H), keras.layers.SimpleRNN(H)])
    x = jax.numpy.asarray(ids.numpy(), dtype="int32")
    model.build(x.shape)
    weights = [variable.value for variable in model.trainable_variables]
    constants = [variable.value for variable in model.non_trainable_variables]

    def last_state(weights):
        return model.stateless_call(weights, constants, x)[0].sum()

    forward, training = jax.jit(last_state), jax.jit(jax.value_and_grad(last_state))
    return Candidate(
        lambda: jax.block_until_ready(forward(weights)), lambda: jax.block_until_ready(training(weights))
    )


def training_step(ids: Tensor, lengths: Tensor, labels: Tensor, V: int, H: int) -> Callable[[], object]:
    """Returns a training step on one batch: forward, backward, clipping by norm, fused Adam."""
    rnn = RNN(V, H, 1, device=ids.device)
    on_gpu = ids.device.type == "cuda"
    optimizer = torch.optim.Adam(rnn.parameters(), fused=True, capturable=on_gpu)

    def step() -> None:
        optimizer.zero_grad(set_to_none=not on_gpu)  # a CUDA graph writes to the same tensors at each replay
        cross_entropy(rnn(ids, lengths), labels).mean().backward()
        nn.utils.clip_grad_norm_(rnn.parameters(), 0.05)
        optimizer.step()

    return step


def as_one_graph(step: Callable[[], object]) -> Callable[[], object]:
    """Captures the step as one CUDA graph and returns a function that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> None:
        graph.replay()
        _ = step  # keeps the model and the optimizer alive, whose memory the graph uses

    return replay


def _candidate(last_state: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Candidate:
    @torch.no_grad()
    def forward() -> None:
        last_state()

    def training() -> None:
        for parameter in parameters:
            parameter.grad = None
        last_state().sum().backward()

    return Candidate(forward, training)
