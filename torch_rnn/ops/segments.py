"""Runs the recurrence in segments of time and stores only their last states (Chen et al., 2016)."""

import math
import operator
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
    """Returns what the backend `run` returns. The backward pass recomputes about sqrt(T) states at a time."""
    T = x.shape[1]
    size = math.isqrt(max(operator.index(T) - 1, 0)) + 1  # index: torch.compile compiles anew for another T
    hs, h = [], h0
    for start in range(0, T, size):
        segment = x[:, start : start + size]
        rest = None if lengths is None else (lengths - start).clamp(0, segment.shape[1])
        arguments = (segment, Wxh, bh, Whh, h, rest, nonlinearity)
        states, h = checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
        hs.append(states)
    return torch.cat(hs, dim=1) if hs else h0.new_empty(len(h0), 0, h0.shape[1]), h
