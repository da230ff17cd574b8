"""The part of the recurrence that needs no loop: xw[t] = Wxh x[t] + bh for all t at once."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor

_TRUSTED = ContextVar("trusted", default=False)
_PLAIN = (Tensor, torch.nn.Parameter)


def real_steps(lengths: Tensor, T: int) -> Tensor:
    """Returns the (B, T) mask t < lengths[b]. Example: lengths [1, 2] and T = 2 give [[1, 0], [1, 1]]."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def readable(value: Tensor) -> bool:
    """Returns whether to check a tensor's values. On a GPU the host would wait; a tracer's have none."""
    return (
        value.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and type(value) in _PLAIN
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
        and not _TRUSTED.get()
    )


def needs_operators(*tensors: Tensor | None) -> bool:
    """Returns whether kernels must be called as PyTorch's operators instead of directly, which is faster.

    torch.compile, dispatch modes, vmap and tensor subclasses handle operators; kernels need real addresses.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or any(tensor is not None and _has_no_address(tensor) for tensor in tensors)
    )


def is_transforming() -> bool:
    """Returns whether torch.func or forward-mode differentiation is active."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def _has_no_address(tensor: Tensor) -> bool:
    """Returns whether a tensor may have no memory of its own. In is_grads_batched, its type is Tensor too."""
    return type(tensor) not in _PLAIN or torch._C._functorch.is_legacy_batchedtensor(tensor)


def autocast_off(kind: str) -> AbstractContextManager:
    """Turns autocast off on a kind of device, where there is such a thing."""
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def in_dtype_of(weights: Tensor, value: Tensor) -> Tensor:
    """Returns floats in the weights' dtype where autocast is on: other layers return lower precision then."""
    if not isinstance(weights, Tensor) or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    kind = weights.device.type
    return value if kind == "meta" or not torch.is_autocast_enabled(kind) else value.to(weights.dtype)


@contextmanager
def trusted() -> Iterator[None]:
    """Skips the checks of values in this context, for a caller that has already checked them."""
    token = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def add_at_ids(dxw: Tensor, ids: Tensor, lengths: Tensor | None, D: int) -> Tensor:
    """Returns the gradient of the look-up, (D, H): the sum of dxw (B, T, H) for each id, without padding."""
    if lengths is not None:
        ids = ids.masked_fill(~real_steps(lengths, ids.shape[1]), 0)  # dxw is zero there
    return dxw.new_zeros(D, dxw.shape[2]).index_add(0, ids.flatten(), dxw.flatten(0, 1))


def project(x: Tensor, Wxh: Tensor, bh: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns xw (B, T, H) for floats x (B, T, D) or ids x (B, T).

    Replaces the padding of x with zeros first, so that NaN or invalid ids there reach neither xw nor a
    gradient. In memory, time comes first, so that each step is one block.
    """
    if lengths is not None:
        padded = ~real_steps(lengths, x.shape[1])
        x = x.masked_fill(padded if x.dim() == 2 else padded[..., None], 0)
    x = x.transpose(0, 1)  # (T, B) or (T, B, D)
    with autocast_off(x.device.type):
        xw = F.linear(x, Wxh, bh) if x.is_floating_point() else F.embedding(x, Wxh.t()) + bh
    return xw.transpose(0, 1)
