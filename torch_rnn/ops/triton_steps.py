"""The recurrence for a Whh that no multiprocessor can hold: a product and one fused kernel a step.

A thousand small launches a pass would cost more than what they do, so CHUNK steps at a time are one CUDA
graph; where one is being captured already, they become part of that. A rest of T goes in powers of two, so
that a few graphs serve every T.
"""

import importlib
import importlib.util
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from torch_rnn.ops.graphs import in_a_graph

CHUNK = 64
"""Steps in the largest graph."""


@cache
def kernels() -> ModuleType | None:
    """triton_kernels; None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("torch_rnn.ops.triton_kernels")


def step_by_step(
    xw: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
    precision: str,
    hs: Tensor,
) -> Tensor:
    """Fills hs (T, B, H) and returns hT."""
    left, h = _left(lengths, xw), h0
    for chunk in _chunks(len(xw)):
        (hs[chunk],) = in_a_graph(
            _forward_chunk,
            xw[chunk],
            Whh,
            h,
            left - chunk.start,
            nonlinearity=nonlinearity,
            precision=precision,
        )
        h = hs[chunk][-1]
    return h.clone()


def _forward_chunk(
    xw: Tensor, Whh: Tensor, h: Tensor, left: Tensor, *, nonlinearity: str, precision: str
) -> tuple[Tensor]:
    hs, W = torch.empty_like(xw), _rounded(Whh.t(), precision)
    for t in range(len(xw)):
        _each(
            kernels().step_forward_kernel, h,
            xw[t], _product(h, W, precision), h, left, hs[t], t, NONLINEARITY=nonlinearity,
        )  # fmt: skip
        h = hs[t]
    return (hs,)


def back_step_by_step(
    dhs: Tensor | None,
    dhT: Tensor | None,
    hs: Tensor,
    Whh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    nonlinearity: str,
    precision: str,
    das: Tensor,
) -> Tensor:
    """Fills das (T, B, H) and returns dh0."""
    left = _left(lengths, hs)
    dh = torch.zeros_like(h0) if dhT is None else dhT
    for chunk in reversed(_chunks(len(hs))):
        up = [] if dhs is None else [dhs[chunk]]
        das[chunk], dh = in_a_graph(
            _backward_chunk,
            hs[chunk],
            Whh,
            dh,
            left - chunk.start,
            *up,
            nonlinearity=nonlinearity,
            precision=precision,
        )
    return dh.clone()


def _backward_chunk(
    hs: Tensor, Whh: Tensor, dh: Tensor, left: Tensor, *up: Tensor, nonlinearity: str, precision: str
) -> tuple[Tensor, Tensor]:
    das, W = torch.empty_like(hs), _rounded(Whh, precision)
    passed, Wda = dh, torch.zeros_like(dh)
    for t in reversed(range(len(hs))):
        passed_next = torch.empty_like(dh)
        _each(
            kernels().step_backward_kernel, dh,
            up[0][t] if up else None, passed, Wda, hs[t], left, das[t], passed_next, t,
            NONLINEARITY=nonlinearity,
        )  # fmt: skip
        passed, Wda = passed_next, _product(das[t], W, precision)
    return das, passed + Wda


def _chunks(T: int) -> list[slice]:
    """0..T-1 in pieces of CHUNK, then of ever smaller powers of two."""
    found, start, size = [], 0, CHUNK
    while start < T:
        if start + size <= T:
            found.append(slice(start, start + size))
            start += size
        else:
            size //= 2
    return found


def _left(lengths: Tensor | None, xs: Tensor) -> Tensor:
    """How many steps each row still has, at the first one. xs is (T, B, H)."""
    T, B = xs.shape[:2]
    if lengths is None:
        return torch.full((B,), T, device=xs.device)
    return lengths


def _each(kernel, like: Tensor, *arguments: Tensor | int | None, **constants: str) -> None:
    """Launches a kernel of one step over all numbers of a state."""
    N, H = like.numel(), like.shape[1]
    kernel[(-(-N // 256),)](*arguments, N, H=H, SIZE=256, **constants)


def _rounded(W: Tensor, precision: str) -> Tensor:
    return W.to(torch.bfloat16) if precision == "bf16" else W


def _product(a: Tensor, W: Tensor, precision: str) -> Tensor:
    if precision == "ieee":
        return a @ W
    a = a.to(torch.bfloat16)
    if a.device.type == "cpu":  # where float32 is exact for such factors
        return a.float() @ W.float()
    return torch.mm(a, W, out_dtype=torch.float32)
