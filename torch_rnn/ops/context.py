"""What a call happens in: a tracer, a transform, autocast, or a caller that has checked its input."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

_TRUSTED = ContextVar("trusted", default=False)
_PLAIN = (Tensor, torch.nn.Parameter)
_LOWER = (torch.bfloat16, torch.float16, torch.float32)
"""What layers return under autocast."""


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
    if not isinstance(weights, Tensor) or not isinstance(value, Tensor) or value.dtype not in _LOWER:
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
