"""Captures a function of tensors once as a CUDA graph and then replays it, which saves kernel launches."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

MAX_GRAPHS = 64
"""Graphs to keep. Beyond this, the least recently used one is dropped."""
_GRAPHS: OrderedDict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]] = OrderedDict()
_RECORDERS: dict[tuple, "_Recorder"] = {}
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
    if device.type != "cuda" or capturing(device):
        return function(*tensors, **constants)
    return _replayed(function, tensors, constants, torch.cuda.current_stream(device))


def _replayed(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    constants: dict,
    stream: torch.cuda.Stream,
) -> tuple[Tensor, ...]:
    """Returns what `in_a_graph` does for a stream of a GPU."""
    device = tensors[0].device
    place = (device, threading.get_ident(), stream.cuda_stream)
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
    tf32 = torch.backends.cuda.matmul.fp32_precision
    key = (function, place, tf32, shapes, *sorted(constants.items()))
    with _LOCK:
        captured = _GRAPHS.get(key)
        if captured is None:
            if place not in _RECORDERS:
                _RECORDERS[place] = _Recorder(device)
            captured = _RECORDERS[place].capture(function, tensors, constants, stream)
        _GRAPHS[key] = captured
        _GRAPHS.move_to_end(key)
        if len(_GRAPHS) > MAX_GRAPHS:
            _GRAPHS.popitem(last=False)
    graph, inputs, outputs = captured
    for buffer, tensor in zip(inputs, tensors, strict=True):
        buffer.copy_(tensor)
    graph.replay()
    return outputs


class _Recorder:
    """Captures the graphs of one thread on one stream, which never run at the same time and so share a pool.

    It captures in a thread of its own, for two reasons. cuBLAS keeps one workspace for each thread and
    stream, so the first capture allocates a workspace in the pool, and no other code uses it. A memory pool
    that is active in the caller's thread is not used, as in the warm-up of
    torch.compile(mode="reduce-overhead").
    """

    def __init__(self, device: torch.device):
        self.thread = ThreadPoolExecutor(1, "torch_rnn_capture")
        self.warm_up, self.stream = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, function, tensors, constants, stream):
        """Returns the graph of function(*tensors, **constants), and its inputs and outputs."""
        return self.thread.submit(self._capture, function, tensors, constants, stream).result()

    @torch.inference_mode(False)  # so that buffers made under inference_mode can be used in training
    @torch.no_grad()
    def _capture(self, function, tensors, constants, stream):
        with on_device(tensors[0].device):
            self.warm_up.wait_stream(stream)
            with torch.cuda.stream(self.warm_up):
                inputs = [
                    torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors
                ]
                for buffer, tensor in zip(inputs, tensors, strict=True):
                    buffer.copy_(tensor)
                function(*inputs, **constants)  # compiles kernels and loads libraries before the capture
            self.stream.wait_stream(self.warm_up)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                outputs = function(*inputs, **constants)
            stream.wait_stream(self.stream)
        return graph, inputs, outputs
