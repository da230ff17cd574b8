"""Converts weights from and to other libraries. An RNN is given by its settings and its tensors by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn


def names(num_layers: int, bidirectional: bool) -> list[list[str]]:
    """Returns the suffixes of Wxh, Whh and bh for each layer and direction: "", "_reverse", "_l1", ..."""
    directions = ("", "_reverse") if bidirectional else ("",)
    return [
        [(f"_l{layer}" if layer else "") + direction for direction in directions]
        for layer in range(num_layers)
    ]


def _torch_names(num_layers: int, bidirectional: bool) -> list[tuple[str, str]]:
    """Returns pairs of our suffix and torch.nn.RNN's: ("", "_l0"), ("_reverse", "_l0_reverse"), ..."""
    suffixes = [suffix for layer in names(num_layers, bidirectional) for suffix in layer]
    return [(suffix, suffix if suffix.startswith("_l") else "_l0" + suffix) for suffix in suffixes]


def from_torch(rnn: nn.RNN, linear: nn.Linear) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the settings and tensors of torch.nn's modules. The two biases of nn.RNN are summed.

    Raises TypeError for other modules, such as nn.LSTM, and ValueError if their sizes do not match.
    """
    for name, module, kind in (("rnn", rnn, nn.RNN), ("linear", linear, nn.Linear)):
        if not isinstance(module, kind):
            raise TypeError(
                f"{name} is of the type {type(module).__name__}; it must be an nn.{kind.__name__}"
            )
    width = rnn.hidden_size * (2 if rnn.bidirectional else 1)
    if linear.in_features != width:
        raise ValueError(f"linear takes {linear.in_features} features; this rnn gives {width}")
    settings = {
        "input_size": rnn.input_size,
        "hidden_size": rnn.hidden_size,
        "output_size": linear.out_features,
        "num_layers": rnn.num_layers,
        "bidirectional": rnn.bidirectional,
        "nonlinearity": rnn.nonlinearity,
        "bias": rnn.bias or linear.bias is not None,
        "dropout": rnn.dropout if rnn.num_layers > 1 else 0.0,
    }
    tensors = {"Why": linear.weight}
    if settings["bias"]:
        tensors["by"] = (
            linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
        )
    for name, theirs in _torch_names(rnn.num_layers, rnn.bidirectional):
        tensors["Wxh" + name] = getattr(rnn, "weight_ih" + theirs)
        tensors["Whh" + name] = Whh = getattr(rnn, "weight_hh" + theirs)
        if rnn.bias:
            tensors["bh" + name] = getattr(rnn, "bias_ih" + theirs) + getattr(rnn, "bias_hh" + theirs)
        elif settings["bias"]:
            tensors["bh" + name] = Whh.new_zeros(rnn.hidden_size)
    return settings, {name: tensor.detach() for name, tensor in tensors.items()}


def to_torch(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[nn.RNN, nn.Linear]:
    """Returns nn.RNN (batch first, bias_hh zero) and nn.Linear. Raises ValueError for "linear"."""
    if settings["nonlinearity"] == "linear":
        raise ValueError("nonlinearity is 'linear'; torch.nn.RNN has tanh and relu")
    bidirectional, bias = settings["bidirectional"], settings["bias"]
    like = {"dtype": tensors["Why"].dtype, "device": tensors["Why"].device}
    rnn = nn.RNN(
        settings["input_size"],
        settings["hidden_size"],
        settings["num_layers"],
        nonlinearity=settings["nonlinearity"],
        bias=bias,
        batch_first=True,
        dropout=settings["dropout"],
        bidirectional=bidirectional,
        **like,
    )
    C, width = tensors["Why"].shape
    linear = nn.Linear(width, C, bias=bias, **like)
    with torch.no_grad():
        linear.weight.copy_(tensors["Why"])
        if bias:
            linear.bias.copy_(tensors["by"])
        for name, theirs in _torch_names(settings["num_layers"], bidirectional):
            getattr(rnn, "weight_ih" + theirs).copy_(tensors["Wxh" + name])
            getattr(rnn, "weight_hh" + theirs).copy_(tensors["Whh" + name])
            if bias:
                getattr(rnn, "bias_ih" + theirs).copy_(tensors["bh" + name])
                getattr(rnn, "bias_hh" + theirs).zero_()
    return rnn, linear


def from_keras(weights: Sequence[ArrayLike], bidirectional: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the settings and tensors of a Keras model of SimpleRNN layers and a Dense layer.

    Args:
        weights: the model's `get_weights()`: for each direction of each layer kernel (D, H), recurrent_kernel
            (H, H) and, with use_bias, bias (H,); then the Dense layer's kernel and bias.
        bidirectional: whether each SimpleRNN is in a Bidirectional layer.

    Raises:
        ValueError: The weights have other shapes.
    """
    arrays = [np.asarray(array) for array in weights]
    bias = len(arrays) > 2 and arrays[2].ndim == 1
    directions = 2 if bidirectional else 1
    per_direction, dense = (3, 2) if bias else (2, 1)  # numbers of arrays
    if len(arrays) < per_direction + dense or (len(arrays) - dense) % (per_direction * directions):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(
            f"weights have the shapes {shapes}; they must be kernel, recurrent_kernel{', bias' * bias} "
            f"of each direction of each layer, then the Dense layer's kernel{' and bias' * bias}"
        )
    num_layers = (len(arrays) - dense) // (per_direction * directions)
    D, H = arrays[0].shape
    tensors = {}
    for layer, suffixes in enumerate(names(num_layers, bidirectional)):
        width = directions * H if layer else D
        for i, name in enumerate(suffixes):
            group = arrays[(layer * directions + i) * per_direction :][:per_direction]
            kinds = ("Wxh", (width, H)), ("Whh", (H, H)), ("bh", (H,))
            for (kind, shape), array in zip(kinds, group, strict=False):
                _check(f"the {kind} of layer {layer}", array, shape)
                tensors[kind + name] = torch.from_numpy(array.T.copy())
    dense_arrays = arrays[-dense:]
    C = dense_arrays[0].shape[-1]
    _check("the Dense layer's kernel", dense_arrays[0], (directions * H, C))
    tensors["Why"] = torch.from_numpy(dense_arrays[0].T.copy())
    if bias:
        _check("the Dense layer's bias", dense_arrays[1], (C,))
        tensors["by"] = torch.from_numpy(dense_arrays[1].copy())
    settings = {"input_size": D, "hidden_size": H, "output_size": C, "bias": bias}
    return settings | {"num_layers": num_layers, "bidirectional": bidirectional}, tensors


def to_keras(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Returns the weights for `set_weights` of a Keras model as in `from_keras`; bfloat16 becomes float32."""
    kinds = ("Wxh", "Whh", "bh") if settings["bias"] else ("Wxh", "Whh")
    layers = names(settings["num_layers"], settings["bidirectional"])
    order = [kind + suffix for suffixes in layers for suffix in suffixes for kind in kinds]
    order += ["Why", "by"] if settings["bias"] else ["Why"]
    arrays = (tensors[name].detach().cpu() for name in order)
    arrays = (array.float() if array.dtype is torch.bfloat16 else array for array in arrays)  # NumPy has none
    return [np.ascontiguousarray(array.numpy().T) for array in arrays]


def _check(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; it must be {shape}")
