"""The nonlinearities that can replace tanh in the equation, each with its derivative.

To add one, add it to NONLINEARITIES: "eager", "bptt" and torch.export read this table, and "auto" uses "bptt"
where the fused backend does not have it. To add it to the fused backend "cpu", extend NONLINEARITIES in
cpu.py, the enum in cpu.h, and `apply` and `derivative` in cpu_kernel.h. To add it to "triton" or "cuda",
extend NONLINEARITIES in triton_backend.py or cuda_backend.py, and `apply` and `derivative` in
triton_kernels.py or cuda_kernels.cu. cuDNN has tanh and relu only. To use it from a YAML file, add it to
`Classifier`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Nonlinearity(NamedTuple):
    """A function f of a, and its derivative f'(a) as a function of h = f(a), so that a need not be stored."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


NONLINEARITIES = {
    "tanh": Nonlinearity(torch.tanh, lambda h: 1 - h * h),
    "relu": Nonlinearity(torch.relu, lambda h: (h > 0).to(h.dtype)),
    "linear": Nonlinearity(lambda a: a, torch.ones_like),
}
