"""A long recurrence in segments of time: the backward pass keeps their ends alone (Chen et al., 2016)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_segments(
    run: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """h (B, T, H) and hT (B, H), as `run`, a backend, gives them; about sqrt(T) segments of sqrt(T) steps."""
    T = x.shape[1]
    size = math.isqrt(max(T - 1, 0)) + 1
    hs, h = [], h0
    for start in range(0, T, size):
        part = x[:, start : start + size]
        left = None if lengths is None else (lengths - start).clamp(0, part.shape[1])
        arguments = (part, Wxh, bh, Whh, h, left, nonlinearity)
        states, h = checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
        hs.append(states)
    return torch.cat(hs, dim=1) if hs else h0.new_empty(len(h0), 0, h0.shape[1]), h
