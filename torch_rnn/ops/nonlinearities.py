"""The functions that may stand where the equation has tanh, each with its derivative.

The derivative is written in terms of the output h = f(a), so that a is never kept.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Nonlinearity(NamedTuple):
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    """of the output: f'(a) as a function of h = f(a)."""


NONLINEARITIES = {
    "tanh": Nonlinearity(torch.tanh, lambda h: 1 - h * h),
    "relu": Nonlinearity(torch.relu, lambda h: (h > 0).to(h.dtype)),
    "linear": Nonlinearity(lambda a: a, torch.ones_like),
}
