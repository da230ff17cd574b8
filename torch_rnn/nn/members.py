"""Several RNNs as one. If its weights are in blocks, an RNN's logits are the mean of those of its members.

    h = [h_1; h_2]      Whh = [Whh_1 0; 0 Whh_2]      Wxh = [Wxh_1; Wxh_2]      y = mean of (Why_k h_k + by_k)

So an ensemble of plain RNNs is a plain RNN, with as many units as they have together.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_rnn.nn.layers import Weights, layered
from torch_rnn.nn.module import RNN
from torch_rnn.nn.readout import read


@torch.no_grad()
def joined(rnns: Sequence[RNN]) -> RNN:
    """Returns an RNN whose logits are the mean of those of the given ones, with copies of their weights.

    Its backend, and whether it recomputes, are those of the first. Raises TypeError for other modules, and
    ValueError where there is none, or where they differ in more than hidden_size and how they were
    initialised.
    """
    if isinstance(rnns, RNN) or not all(isinstance(rnn, RNN) for rnn in rnns):
        raise TypeError("rnns is not a sequence of torch_rnn.RNN")
    if not rnns:
        raise ValueError("rnns is empty; there must be at least one RNN")
    first, n = rnns[0], len(rnns)
    alike = [_alike(rnn) for rnn in rnns]
    if any(settings != alike[0] for settings in alike):
        raise ValueError(f"rnns have the settings {alike}; they must be equal but for hidden_size")
    like = {
        "backend": first.backend,
        "recompute": first.recompute,
        "device": first.Why.device,
        "dtype": first.Why.dtype,
    }
    whole = RNN(**{**first.settings, "hidden_size": sum(rnn.hidden_size for rnn in rnns)}, **like)
    directions = len(first.names[0])
    for layer, names in enumerate(first.names):
        for name in names:
            inputs, recurrent = ([getattr(rnn, kind + name) for rnn in rnns] for kind in ("Wxh", "Whh"))
            Wxh = _in_blocks(inputs, directions) if layer else torch.cat(inputs)
            getattr(whole, "Wxh" + name).copy_(Wxh)
            getattr(whole, "Whh" + name).copy_(torch.block_diag(*recurrent))
            if first.bias:
                getattr(whole, "bh" + name).copy_(torch.cat([getattr(rnn, "bh" + name) for rnn in rnns]))
    parts = [rnn.Why.unflatten(1, (directions, -1)) for rnn in rnns]
    whole.Why.copy_(torch.cat(parts, dim=2).flatten(1) / n)
    if first.bias:
        whole.by.copy_(torch.stack([rnn.by for rnn in rnns]).mean(dim=0))
    return whole


def rows_of_members(n: int, rank: int = 0, world: int = 1) -> list[slice]:
    """Returns which rows of a batch each of n members reads: member k the rows k, k + n, k + 2 n, and so on.

    With several processes, the slices are those of the process's own rows: rank, rank + world, ... of the
    whole batch.
    """
    rows = []
    for k in range(n):
        first = [j for j in range(n) if (rank + world * j) % n == k][:1]
        rows.append(slice(*first, None, n // math.gcd(world, n)) if first else slice(0, 0))
    return rows


def member_logits(
    rnn: RNN,
    rows: Sequence[slice],
    x: Tensor,
    lengths: Tensor | None = None,
    steps: list[list[Tensor]] | None = None,
) -> list[Tensor]:
    """Returns the logits of the members, of equal size, of an RNN that is in blocks: each for its own rows.

    On the same rows their mean is rnn(x, lengths). They share by. What is outside of the blocks is not read.

    Args:
        steps: if given, gets for each member what each step adds to the logits, (B, T, C) for each direction,
            which has the steps in the order in which it reads them. With the readout "mean" it is
            Why h[t] + by / directions, and the logits are the mean over the steps; with "last" it is
            Why (h[t] - h[t-1]), and the logits are by and the sum. With the others it means nothing.
    """
    n = len(rows)
    size, directions = rnn.hidden_size // n, len(rnn.names[0])
    weights: list[list[list[Weights]]] = [[] for _ in range(n)]  # of each member, layer and direction
    for layer, names in enumerate(rnn.names):
        blocks = [_blocks(rnn, name, n, directions if layer else 0) for name in names]
        for k, member in enumerate(weights):
            member.append([of_direction[k] for of_direction in blocks])
    Why = rnn.Why.unflatten(1, (directions, n, size)).unbind(2)
    dropout = partial(F.dropout, p=rnn.dropout) if rnn.training and rnn.dropout else None
    settings = {"nonlinearity": rnn.nonlinearity, "backend": rnn.backend, "recompute": rnn.recompute}
    logits = []
    for k, own in enumerate(rows):
        states: list[Tensor] = []
        reduce = None if rnn.readout == "every" else _keeping(states, rnn.readout)
        real = None if lengths is None else lengths[own]
        h, _ = layered(x[own], weights[k], None, real, dropout=dropout, reduce=reduce, **settings)
        own_Why = n * Why[k]  # (C, directions, size)
        by = torch.zeros_like(rnn.Why[:, 0]) if rnn.by is None else rnn.by
        if steps is not None:
            share = by / directions
            steps.append([_added(h, own_Why[:, d], share, rnn.readout) for d, h in enumerate(states)])
        logits.append(h @ own_Why.flatten(1).t() + by)
    return logits


def _added(h: Tensor, Why: Tensor, by: Tensor, readout: str) -> Tensor:
    """Returns what each step adds to the logits, (B, T, C), as in `member_logits`."""
    if readout == "mean":
        return h @ Why.t() + by
    # Autocast rounds products to bfloat16, which is too coarse for differences of them.
    return h.diff(dim=1, prepend=torch.zeros_like(h[:, :1])) @ Why.t()


@torch.no_grad()
def clip_members(rnn: RNN, n: int, limit: float) -> None:
    """Scales the gradient of the mean of n members' losses, so that each member's part has norm <= limit.

    A member's part is the gradient of its own loss in its own weights, as if it were alone. So a member with
    a huge gradient does not shorten the steps of the others. by, which they share, is scaled by the mean.
    """
    squares = torch.zeros(n, dtype=torch.float64, device=rnn.Why.device)
    by_units = []  # the gradients, with the units of the members in the first dimension
    for name, parameter in rnn.named_parameters():
        if parameter.grad is None or name == "by":
            continue
        # y = n Why_k h_k, and the loss has 1 / n
        own, grad = (1, parameter.grad.t()) if name == "Why" else (n, parameter.grad)
        by_units.append(grad)
        norms = torch.linalg.vector_norm(grad, dim=1) if grad.dim() == 2 else grad
        squares += (own * norms.double()).square().reshape(-1, n, rnn.hidden_size // n).sum(dim=(0, 2))
    factors = (limit / (squares.sqrt() + 1e-6)).clamp(max=1).to(rnn.Why.dtype)
    of_units = factors.repeat_interleave(rnn.hidden_size // n)
    for grad in by_units:
        grad *= of_units.repeat(len(grad) // len(of_units)).view(-1, *[1] * (grad.dim() - 1))
    if rnn.by is not None and rnn.by.grad is not None:
        rnn.by.grad *= factors.mean()


def clip_values_of_members(rnn: RNN, n: int, limit: float) -> None:
    """Clips each number of the gradient of the mean of n members' losses as if each member were alone."""
    for name, parameter in rnn.named_parameters():
        if parameter.grad is not None:
            own = 1 if name in ("Why", "by") else n  # the loss has 1 / n, and y = n Why_k h_k
            parameter.grad.clamp_(-limit / own, limit / own)


def _keeping(states: list[Tensor], readout: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Returns the `reduce` of a readout for `layered`, which also appends the states that it gets."""

    def reduce(h: Tensor, hT: Tensor, lengths: Tensor | None) -> Tensor:
        states.append(h)
        return read(readout, h, hT, lengths)

    return reduce


def _blocks(rnn: RNN, name: str, n: int, directions: int) -> list[Weights]:
    """Returns the weights of the members; directions is 0 for the first layer, which reads x."""
    Wxh, bh, Whh = (getattr(rnn, kind + name) for kind in ("Wxh", "bh", "Whh"))
    size = rnn.hidden_size // n
    inputs = Wxh.split(size)
    if directions:
        inputs = [
            part.unflatten(1, (directions, n, size))[:, :, k].flatten(1) for k, part in enumerate(inputs)
        ]
    recurrent = [part[:, k * size : (k + 1) * size] for k, part in enumerate(Whh.split(size))]
    biases = [None] * n if bh is None else bh.split(size)
    return [
        Weights(Wxh, bh, F.dropout(Whh, rnn.recurrent_dropout, rnn.training))
        for Wxh, bh, Whh in zip(inputs, biases, recurrent, strict=True)
    ]


def _in_blocks(inputs: Sequence[Tensor], directions: int) -> Tensor:
    """Returns the Wxh of an upper layer, whose input has the states of all members direction by direction."""
    parts = [Wxh.unflatten(1, (directions, -1)) for Wxh in inputs]
    return torch.cat([torch.block_diag(*(part[:, d] for part in parts)) for d in range(directions)], dim=1)


def _alike(rnn: RNN) -> dict:
    may_differ = ("hidden_size", "input_scale", "recurrent_scale", "init")
    settings = {name: value for name, value in rnn.settings.items() if name not in may_differ}
    return settings | {"dtype": rnn.Why.dtype, "device": rnn.Why.device}
