"""The part of the recurrence that is parallel in time: xw[t] = Wxh x[t] + bh for all t at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

_TRUSTED = ContextVar("values have been looked at", default=False)


def real_steps(lengths: Tensor, T: int) -> Tensor:
    """A (B, T) mask: True where t < lengths[b]. Example: lengths [1, 2], T = 2 gives [[1, 0], [1, 1]]."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def readable(value: Tensor) -> bool:
    """Whether values are to be looked at: on a GPU the host would wait, under a transform there are none."""
    return (
        value.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
        and not _TRUSTED.get()
    )


@contextmanager
def trusted() -> Iterator[None]:
    """Within, ids, lengths and labels are not looked at; for a caller that has seen all of them before."""
    token = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def add_at_ids(dxw: Tensor, ids: Tensor, lengths: Tensor | None, D: int) -> Tensor:
    """The gradient of the look-up, as columns (D, H): dxw (B, T, H) summed by id, padded steps left out."""
    if lengths is not None:
        ids = ids.masked_fill(~real_steps(lengths, ids.shape[1]), 0)  # where dxw is zero
    return dxw.new_zeros(D, dxw.shape[2]).index_add(0, ids.flatten(), dxw.flatten(0, 1))


def project(x: Tensor, Wxh: Tensor, bh: Tensor, lengths: Tensor | None) -> Tensor:
    """xw (B, T, H) for floats x (B, T, D) or ids x (B, T).

    Padded steps are overwritten with zeros first: whatever stands there, NaN or an id that does not exist,
    reaches neither xw nor a gradient. The result is stored time first, so that each step is one block.
    """
    if lengths is not None:
        padded = ~real_steps(lengths, x.shape[1])
        x = x.masked_fill(padded if x.dim() == 2 else padded[..., None], 0)
    x = x.transpose(0, 1)  # (T, B) or (T, B, D)
    with torch.autocast(x.device.type, enabled=False):
        xw = F.linear(x, Wxh, bh) if x.is_floating_point() else F.embedding(x, Wxh.t()) + bh
    return xw.transpose(0, 1)
