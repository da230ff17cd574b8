"""Many small launches as one: a function of tensors, captured once as a CUDA graph and then replayed."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

MOST = 64
"""How many graphs are kept; the one that was used longest ago goes first."""
_GRAPHS: OrderedDict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]] = OrderedDict()


def capturing(device: torch.device) -> bool:
    """Whether launches on the device go into a graph at this moment, instead of being run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def in_a_graph(
    function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor, **constants
) -> tuple[Tensor, ...]:
    """function(*tensors, **constants), whose launches must depend on shapes, dtypes and constants alone.

    What it returns is overwritten by the next call. On the CPU, and where a graph is being captured already,
    the function is simply called.
    """
    device = tensors[0].device
    if device.type != "cuda" or capturing(device):
        return function(*tensors, **constants)
    stream = torch.cuda.current_stream(device)
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
    key = (function, device, stream.cuda_stream, shapes, *sorted(constants.items()))
    if key not in _GRAPHS:
        _GRAPHS[key] = _captured(function, tensors, constants, device)
        if len(_GRAPHS) > MOST:
            _GRAPHS.popitem(last=False)
    _GRAPHS.move_to_end(key)
    graph, inputs, outputs = _GRAPHS[key]
    for held, given in zip(inputs, tensors, strict=True):
        held.copy_(given)
    graph.replay()
    return outputs


def _captured(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    constants: dict,
    device: torch.device,
) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]:
    inputs = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        function(*inputs, **constants)  # kernels are compiled and libraries loaded before the capture
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        outputs = function(*inputs, **constants)
    return graph, inputs, outputs
