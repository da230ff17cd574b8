"""Captures a function of tensors once as a CUDA graph and then replays it, which saves kernel launches."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

MAX_GRAPHS = 64
"""Graphs to keep. Beyond this, the least recently used one is dropped."""
_GRAPHS: OrderedDict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]] = OrderedDict()
_LOCK = threading.Lock()


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes the device of some tensors the current CUDA device; does nothing on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def capturing(device: torch.device) -> bool:
    """Returns whether a CUDA graph is being captured on the device's current stream."""
    with on_device(device):
        return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def in_a_graph(
    function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor, **constants
) -> tuple[Tensor, ...]:
    """Returns function(*tensors, **constants), run as a CUDA graph.

    The function's kernel launches may depend only on shapes, dtypes and constants. The next call overwrites
    the returned tensors. On the CPU, or while another graph is being captured, calls the function directly.
    """
    device = tensors[0].device
    if device.type != "cuda":
        return function(*tensors, **constants)
    if capturing(device):
        # Triton compiles a new kernel for another alignment, which must not happen during a capture.
        aligned = [tensor if tensor.data_ptr() % 16 == 0 else tensor.clone() for tensor in tensors]
        return function(*aligned, **constants)
    thread, stream = threading.get_ident(), torch.cuda.current_stream(device).cuda_stream
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
    tf32 = torch.backends.cuda.matmul.fp32_precision
    key = (function, device, thread, stream, tf32, shapes, *sorted(constants.items()))
    with _LOCK:
        captured = _GRAPHS.get(key) or _capture(function, tensors, constants, device)
        _GRAPHS[key] = captured
        _GRAPHS.move_to_end(key)
        if len(_GRAPHS) > MAX_GRAPHS:
            _GRAPHS.popitem(last=False)
    graph, inputs, outputs = captured
    for buffer, tensor in zip(inputs, tensors, strict=True):
        buffer.copy_(tensor)
    graph.replay()
    return outputs


@cache
def _capture_stream(device: torch.device, thread: int) -> tuple[torch.cuda.Stream, tuple[int, int]]:
    """Returns the stream on which a thread captures, and the memory pool that its graphs share."""
    return torch.cuda.Stream(device), torch.cuda.graph_pool_handle()


@torch.inference_mode(False)  # so that buffers made under inference_mode can be used in training
@torch.no_grad()
def _capture(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    constants: dict,
    device: torch.device,
) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]:
    inputs = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(tensor) for tensor in tensors
    ]
    side, pool = _capture_stream(device, threading.get_ident())
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        function(*inputs, **constants)  # compiles kernels and loads libraries before the capture
    torch.cuda.current_stream(device).wait_stream(side)
    torch._C._cuda_clearCublasWorkspaces()  # so that the capture allocates its workspace in the graph's pool
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
        outputs = function(*inputs, **constants)
    torch._C._cuda_clearCublasWorkspaces()
    return graph, inputs, outputs
