"""Checks the arguments of the recurrence before anything is computed.

Shapes, dtypes and devices are always checked. Values (ids, lengths, NaN) are checked only on the CPU,
because on a GPU the host would have to wait for the device.
"""

import torch
from torch import Tensor

from torch_rnn.ops.context import readable
from torch_rnn.ops.inputs import real_steps

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
IDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check(x: Tensor, Wxh: Tensor, bh: Tensor, Whh: Tensor, h0: Tensor | None, lengths: Tensor | None) -> None:
    """Raises TypeError for a wrong dtype or a non-tensor, ValueError for a wrong shape, device or value."""
    check_weights(Wxh, bh, Whh)
    H, D = Wxh.shape
    check_x(x, D, Wxh)
    B, T = x.shape[:2]
    if h0 is not None:
        check_tensor("h0", h0, (B, H), Wxh)
    if lengths is not None:
        check_lengths(lengths, B, T)
    check_values(x, D, h0, lengths)


def check_weights(Wxh: Tensor, bh: Tensor, Whh: Tensor) -> None:
    _check_is_tensor("Wxh", Wxh)
    if Wxh.dtype not in DTYPES:
        raise TypeError(
            f"Wxh is {Wxh.dtype}; it must be {_either(DTYPES)}: convert an RNN by .float() or .bfloat16()"
        )
    if Wxh.dim() != 2:
        raise ValueError(f"Wxh has shape {tuple(Wxh.shape)}; it must be (H, D)")
    H = Wxh.shape[0]
    check_tensor("bh", bh, (H,), Wxh)
    check_tensor("Whh", Whh, (H, H), Wxh)


def check_x(x: Tensor, D: int, Wxh: Tensor) -> None:
    _check_is_tensor("x", x)
    if x.is_floating_point():
        if x.dim() != 3 or x.shape[2] != D:
            raise ValueError(f"x has shape {tuple(x.shape)}; floats must be (B, T, {D})")
        _check_matches("x", x, Wxh)
    elif x.dtype in IDS:
        if x.dim() != 2:
            raise ValueError(f"x has shape {tuple(x.shape)}; ids must be (B, T)")
        _check_device("x", x, Wxh.device)
    else:
        raise TypeError(f"x is {x.dtype}; it must be {Wxh.dtype} like Wxh, or integer ids")


def check_tensor(name: str, value: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    _check_is_tensor(name, value)
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be {shape}")
    _check_matches(name, value, like)


def check_lengths(lengths: Tensor, B: int, T: int) -> None:
    _check_is_tensor("lengths", lengths)
    if lengths.dtype not in IDS:
        raise TypeError(f"lengths is {lengths.dtype}; it must be integers")
    if tuple(lengths.shape) != (B,):
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)}; it must be ({B},), one for each row of x"
        )
    if readable(lengths) and not _within(lengths, T + 1):
        raise ValueError(
            f"lengths are in {lengths.min()}..{lengths.max()}; they must be in 0..{T}, the steps of x"
        )


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    _check_is_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}; it must be torch.bool, True at real steps")
    if tuple(mask.shape) != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must be {shape}, as the steps of x")


def check_values(x: Tensor, D: int | None, h0: Tensor | None, lengths: Tensor | None) -> None:
    """Checks h0, and x at its real steps. If D is None, ids have no upper bound."""
    if h0 is not None:
        check_h0(h0)
    if not readable(x) or x.numel() == 0:
        return
    if x.is_floating_point():
        if x.isnan().any() and x[_real_index(x, lengths)].isnan().any():
            raise ValueError("x has NaN at a real step; every entry must be a number")
    elif not _within(x, D) and not _within(real := x[_real_index(x, lengths)], D):
        allowed = "at least 0" if D is None else f"in 0..{D - 1}"
        raise ValueError(f"x has ids in {real.min()}..{real.max()}; they must be {allowed}")


def check_h0(h0: Tensor) -> None:
    if readable(h0) and h0.isnan().any():
        raise ValueError("h0 has NaN; every entry must be a number")


def _real_index(x: Tensor, lengths: Tensor | None) -> Tensor | slice:
    return slice(None) if lengths is None else real_steps(lengths.to(x.device), x.shape[1])


def _within(ids: Tensor, D: int | None) -> bool:
    if ids.numel() == 0:
        return True
    low, high = (int(end) for end in torch.aminmax(ids))
    return low >= 0 and (D is None or high < D)


def kind(value: object) -> str:
    """Returns what an error calls an argument of a wrong type: a tensor's dtype, otherwise the class."""
    return str(value.dtype) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a torch.Tensor")


def _check_matches(name: str, value: Tensor, like: Tensor) -> None:
    if value.dtype != like.dtype:
        raise TypeError(f"{name} is {value.dtype}; it must be {like.dtype} like Wxh")
    _check_device(name, value, like.device)


def _check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; it must be on {device} like Wxh")


def _either(options: tuple[object, ...]) -> str:
    return ", ".join(map(str, options[:-1])) + f" or {options[-1]}"
