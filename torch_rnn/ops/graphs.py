"""Many small launches as one: a function of tensors, captured once as a CUDA graph and then replayed."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

MOST = 64
"""How many graphs are kept; the one that was used longest ago goes first."""
_GRAPHS: OrderedDict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]] = OrderedDict()
_LOCK = threading.Lock()


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to this device, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def capturing(device: torch.device) -> bool:
    """Whether launches on the device go into a graph at this moment, instead of being run."""
    with on_device(device):
        return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def in_a_graph(
    function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor, **constants
) -> tuple[Tensor, ...]:
    """function(*tensors, **constants), whose launches must depend on shapes, dtypes and constants alone.

    What it returns is overwritten by the next call. On the CPU, and where a graph is being captured already,
    the function is simply called.
    """
    device = tensors[0].device
    if device.type != "cuda":
        return function(*tensors, **constants)
    if capturing(
        device
    ):  # with the alignment of the warm-up, so that no kernel is compiled for another one now
        aligned = [tensor if tensor.data_ptr() % 16 == 0 else tensor.clone() for tensor in tensors]
        return function(*aligned, **constants)
    thread, stream = threading.get_ident(), torch.cuda.current_stream(device).cuda_stream
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
    tf32 = torch.backends.cuda.matmul.fp32_precision
    key = (function, device, thread, stream, tf32, shapes, *sorted(constants.items()))
    with _LOCK:
        held = _GRAPHS.get(key) or _captured(function, tensors, constants, device)
        _GRAPHS[key] = held
        _GRAPHS.move_to_end(key)
        if len(_GRAPHS) > MOST:
            _GRAPHS.popitem(last=False)
    graph, inputs, outputs = held
    for place, given in zip(inputs, tensors, strict=True):
        place.copy_(given)
    graph.replay()
    return outputs


@cache
def _side(device: torch.device, thread: int) -> tuple[torch.cuda.Stream, tuple[int, int]]:
    """The stream on which a thread captures, and the memory that its graphs share."""
    return torch.cuda.Stream(device), torch.cuda.graph_pool_handle()


@torch.inference_mode(False)  # buffers that are made while evaluating serve in training as well
@torch.no_grad()
def _captured(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    constants: dict,
    device: torch.device,
) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]:
    inputs = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(tensor) for tensor in tensors
    ]
    side, pool = _side(device, threading.get_ident())
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        function(*inputs, **constants)  # kernels are compiled and libraries loaded before the capture
    torch.cuda.current_stream(device).wait_stream(side)
    torch._C._cuda_clearCublasWorkspaces()  # that of the capture shall lie in the graph's own memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
        outputs = function(*inputs, **constants)
    torch._C._cuda_clearCublasWorkspaces()
    return graph, inputs, outputs
