"""The settings of an RNN that its weights file repeats, and what each may be."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch

from torch_rnn.nn.initial import INITS
from torch_rnn.nn.readout import READOUTS
from torch_rnn.ops.checks import DTYPES
from torch_rnn.ops.nonlinearities import NONLINEARITIES

SETTINGS = (
    "input_size", "hidden_size", "output_size", "num_layers", "bidirectional", "nonlinearity", "bias",
    "dropout", "recurrent_dropout", "readout", "init", "input_scale", "recurrent_scale",
)  # fmt: skip


def check_settings(settings: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Raises TypeError or ValueError, which names the first setting that an RNN cannot have."""
    for name in ("input_size", "hidden_size", "output_size", "num_layers"):
        size = settings[name]
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"{name} is {size!r}; it must be a whole number")
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    for name in ("bidirectional", "bias"):
        if not isinstance(settings[name], bool):
            raise TypeError(f"{name} is {settings[name]!r}; it must be True or False")
    for name in ("dropout", "recurrent_dropout"):
        if isinstance(settings[name], bool) or not isinstance(settings[name], Real):
            raise TypeError(f"{name} is {settings[name]!r}; it must be a number")
        if not 0 <= settings[name] < 1:
            raise ValueError(f"{name} is {settings[name]}; it must be at least 0 and below 1")
    for name in ("input_scale", "recurrent_scale"):
        if isinstance(settings[name], bool) or not isinstance(settings[name], Real):
            raise TypeError(f"{name} is {settings[name]!r}; it must be a number")
        if not 0 < settings[name] < math.inf:
            raise ValueError(f"{name} is {settings[name]}; it must be above 0 and finite")
    if settings["init"] == "integrator" and settings["nonlinearity"] == "relu":
        raise ValueError(
            "init is 'integrator'; it needs the nonlinearity tanh or linear, since sums may fall"
        )
    if settings["init"] == "integrator" and settings["hidden_size"] < 4:
        raise ValueError(
            f"hidden_size is {settings['hidden_size']}; with init 'integrator' it must be at least 4"
        )
    if settings["dropout"] and settings["num_layers"] == 1:
        raise ValueError(
            f"dropout is {settings['dropout']}; it acts between layers, so with one layer it must be 0"
        )
    for name, allowed in (("nonlinearity", NONLINEARITIES), ("readout", READOUTS), ("init", INITS)):
        if not isinstance(settings[name], str) or settings[name] not in allowed:
            raise ValueError(f"{name} is {settings[name]!r}; it must be one of {', '.join(allowed)}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype is {dtype}; it must be one of {', '.join(map(str, DTYPES))}")
