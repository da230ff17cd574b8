"""The one operation of this package: h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh) for all t.

A backend is a file with one function of one signature, and stands in the table BACKENDS.
"""

import torch
from torch import Tensor

from torch_rnn.recurrence.bptt import bptt
from torch_rnn.recurrence.checks import check
from torch_rnn.recurrence.eager import eager
from torch_rnn.recurrence.nonlinearities import NONLINEARITIES

BACKENDS = {"eager": eager, "bptt": bptt}


def recurrence(
    x: Tensor,
    Wxh: Tensor,
    bh: Tensor,
    Whh: Tensor,
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    backend: str = "auto",
) -> Tensor:
    """All states h (B, T, H) of a batch of sequences.

    x        (B, T, D) floats, or (B, T) integer ids, where `Wxh x[t]` is the column Wxh[:, x[t]].
    Wxh      (H, D), float32 or float64; fastest for ids when it is the transpose of a (D, H) buffer.
    bh, Whh  (H,), (H, H), of Wxh's dtype and device.
    h0       (B, H), the state before the first step; zeros if None.
    lengths  (B,) integers in 0..T; T for every row if None. Past its length a row leaves h unchanged, so
             that h[:, -1] is each row's last state; what stands in the padding of x is never read.
    nonlinearity  "tanh", "relu" or "linear".
    backend  "auto", or one of BACKENDS; `which` tells what "auto" is.

    Raises TypeError or ValueError naming the argument, its value and what is allowed. On CUDA the values of
    ids and lengths are not read, so that the host never waits: check them where they are made.
    """
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity is {nonlinearity!r}; it must be one of {', '.join(NONLINEARITIES)}")
    run = BACKENDS[which(backend)]
    check(x, Wxh, bh, Whh, h0, lengths)
    if not x.is_floating_point():
        x = x.long()
    if h0 is None:
        h0 = Wxh.new_zeros(x.shape[0], Wxh.shape[0])
    if lengths is not None:
        lengths = lengths.to(x.device, torch.int64, non_blocking=True)
    return run(x, Wxh, bh, Whh, h0, lengths, nonlinearity)


def which(backend: str = "auto") -> str:
    """The name of the backend that `backend` stands for. Raises ValueError for one that does not exist."""
    if backend == "auto":
        return "bptt"
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of auto, {', '.join(BACKENDS)}")
    return backend
