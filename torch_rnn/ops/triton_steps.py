"""The recurrence for a Whh too large for one multiprocessor: each step is a product and one fused kernel.

Launching a thousand small kernels takes longer than running them, so CHUNK steps become one CUDA graph, or
part of the graph that is already being captured. The remaining steps are split into powers of two, so that
every T needs only a few different graphs.
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
    """Returns the module triton_kernels; None if Triton is not installed."""
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
    remaining, h = _remaining_steps(lengths, xw), h0
    for chunk in _chunks(len(xw)):
        (hs[chunk],) = in_a_graph(
            _forward_chunk,
            xw[chunk],
            Whh,
            h,
            remaining - chunk.start,
            nonlinearity=nonlinearity,
            precision=precision,
        )
        h = hs[chunk][-1]
    return h.clone()


def _forward_chunk(
    xw: Tensor, Whh: Tensor, h: Tensor, remaining: Tensor, *, nonlinearity: str, precision: str
) -> tuple[Tensor]:
    hs, W = torch.empty_like(xw), _rounded(Whh.t(), precision)
    for t in range(len(xw)):
        _launch(
            kernels().step_forward_kernel, h,
            xw[t], _product(h, W, precision), h, remaining, hs[t], t, NONLINEARITY=nonlinearity,
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
    remaining = _remaining_steps(lengths, hs)
    dh = torch.zeros_like(h0) if dhT is None else dhT
    for chunk in reversed(_chunks(len(hs))):
        up = [] if dhs is None else [dhs[chunk]]
        das[chunk], dh = in_a_graph(
            _backward_chunk,
            hs[chunk],
            Whh,
            dh,
            remaining - chunk.start,
            *up,
            nonlinearity=nonlinearity,
            precision=precision,
        )
    return dh.clone()


def _backward_chunk(
    hs: Tensor, Whh: Tensor, dh: Tensor, remaining: Tensor, *up: Tensor, nonlinearity: str, precision: str
) -> tuple[Tensor, Tensor]:
    das, W = torch.empty_like(hs), _rounded(Whh, precision)
    passed, Wda = dh, torch.zeros_like(dh)
    for t in reversed(range(len(hs))):
        passed_next = torch.empty_like(dh)
        _launch(
            kernels().step_backward_kernel, dh,
            up[0][t] if up else None, passed, Wda, hs[t], remaining, das[t], passed_next, t,
            NONLINEARITY=nonlinearity,
        )  # fmt: skip
        passed, Wda = passed_next, _product(das[t], W, precision)
    return das, passed + Wda


def _chunks(T: int) -> list[slice]:
    """Splits 0..T-1 into slices of CHUNK steps and then of smaller powers of two."""
    slices, start, size = [], 0, CHUNK
    while start < T:
        if start + size <= T:
            slices.append(slice(start, start + size))
            start += size
        else:
            size //= 2
    return slices


def _remaining_steps(lengths: Tensor | None, xs: Tensor) -> Tensor:
    """Returns the number of steps of each row, (B,), for xs (T, B, H)."""
    T, B = xs.shape[:2]
    if lengths is None:
        return torch.full((B,), T, device=xs.device)
    return lengths


def _launch(kernel, like: Tensor, *arguments: Tensor | int | None, **constants: str) -> None:
    """Launches a kernel for all entries of a state shaped `like`, (B, H)."""
    N, H = like.numel(), like.shape[1]
    kernel[(-(-N // 256),)](*arguments, N, H=H, SIZE=256, **constants)


def _rounded(W: Tensor, precision: str) -> Tensor:
    return W.to(torch.bfloat16) if precision == "bf16" else W


def _product(a: Tensor, W: Tensor, precision: str) -> Tensor:
    if precision == "ieee":
        return a @ W
    a = a.to(torch.bfloat16)
    if a.device.type == "cpu":  # float32 products of bfloat16 factors are exact
        return a.float() @ W.float()
    return torch.mm(a, W, out_dtype=torch.float32)
