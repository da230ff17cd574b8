"""A training step as two CUDA graphs, passes and update: one launch in place of one for each kernel."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 16
"""The steps of a padded batch are rounded up to a multiple of this, so that few graphs are needed."""
MAX_GRAPHS = 128
"""Graphs to keep. Beyond this, the least recently used one is dropped."""
WARM_UPS = 3
"""Calls before a capture. They compile kernels, load libraries and choose the backend."""
Arguments = tuple[Tensor | int | None, ...]
Record = Callable[[Callable[[], Arguments]], tuple[Callable[[], object], Arguments]]
"""Takes a function; returns its replay and the outputs that a replay overwrites."""


class Graph(NamedTuple):
    inputs: Arguments
    """Tensors that the graph reads, and constants."""
    replay: Callable[[], object]
    outputs: Arguments


class GraphedPasses:
    """Runs passes(*arguments) and the gradient of its first result, as one CUDA graph for each set of shapes.

    Shapes, dtypes and constants alone may decide which kernels `passes` launches, and it may not make the
    host wait. Gradients go to the same memory in every step. The parameters must keep their memory.

    Args:
        passes: takes tensors and constants, and returns the loss, a scalar, and other tensors without a
            gradient, or constants.
        record: as `record_graph`.
    """

    def __init__(
        self,
        passes: Callable[..., Arguments],
        parameters: Sequence[nn.Parameter],
        record: Record | None = None,
    ):
        self.passes, self.parameters = passes, list(parameters)
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        self.record = record or _recorder()
        self.graphs: OrderedDict[tuple, Graph] = OrderedDict()

    def __call__(self, *arguments: Tensor | int | None) -> Arguments:
        """Returns what passes(*arguments) returns, without a gradient."""
        key = tuple((a.shape, a.dtype) if isinstance(a, Tensor) else a for a in arguments)
        if key not in self.graphs:
            inputs = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
            self.graphs[key] = Graph(inputs, *self.record(functools.partial(self._both_passes, inputs)))
            if len(self.graphs) > MAX_GRAPHS:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        graph = self.graphs[key]
        for buffer, argument in zip(graph.inputs, arguments, strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(argument)
        graph.replay()
        # The next replay overwrites them.
        return tuple(output.clone() if isinstance(output, Tensor) else output for output in graph.outputs)

    def assign_gradients(self) -> None:
        """Gives the parameters the gradients of the latest call."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def _both_passes(self, inputs: Arguments) -> Arguments:
        loss, *others = self.passes(*inputs)
        with torch.no_grad(), torch.autocast(loss.device.type, enabled=False):  # as Lightning's backward pass
            torch._foreach_copy_(self.gradients, torch.autograd.grad(loss, self.parameters))
        return loss.detach(), *others


class GraphedUpdate:
    """Runs clip() and optimizer.step() as one CUDA graph, which reads the learning rates anew in each step.

    The optimiser must have made a step, since the first one creates its state. From then on parameters,
    gradients and state must keep their memory, and all settings but the learning rates their values.

    Args:
        clip: changes the gradients in place, without making the host wait.
        record: as `record_graph`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip: Callable[[], None],
        record: Record | None = None,
    ):
        self.optimizer, self.clip = optimizer, clip
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        device = parameters[0].device
        if device.type == "cuda":  # fused kernels alone read the rate from memory, and only in float32
            settings, dtype = {"fused": True, "capturable": True}, torch.float32
        else:  # where tests call the function in place of a replay
            settings, dtype = {}, torch.float64
        self.rates = [torch.empty((), dtype=dtype, device=device) for _ in optimizer.param_groups]
        self.groups = [
            group | settings | {"lr": rate}
            for group, rate in zip(optimizer.param_groups, self.rates, strict=True)
        ]
        for state in optimizer.state.values():
            if "step" in state:  # which an optimiser that is not fused keeps on the CPU
                state["step"] = state["step"].to(device)
        states = [value for state in optimizer.state.values() for value in state.values()]
        with torch.no_grad():
            changed = [*parameters, *(parameter.grad for parameter in parameters), *states]
            before = [tensor.clone() for tensor in changed]
            self.replay, _ = (record or _recorder())(self._clip_and_step)
            torch._foreach_copy_(changed, before)  # the warm-ups were steps

    def __call__(self) -> None:
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.replay()

    def _clip_and_step(self) -> Arguments:
        self.clip()
        # Elsewhere the optimiser keeps its own groups: schedules and checkpoints see rates that are numbers.
        groups, self.optimizer.param_groups = self.optimizer.param_groups, self.groups
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        return ()


def record_graph(
    function: Callable[[], Arguments], pool: tuple[int, int], stream: torch.cuda.Stream
) -> tuple[Callable[[], object], Arguments]:
    """Captures function() as a CUDA graph on the current device; returns its replay and its outputs.

    Graphs with the same pool and stream share memory and must not run at the same time. The stream is not
    the current one. The state of the generator is what it was before, so that a step draws the same numbers
    whether or not its graph existed.
    """
    current, generator = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    stream.wait_stream(current)
    with torch.cuda.stream(stream), _uncached_casts():
        for _ in range(WARM_UPS):
            function()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Threads that pin memory or draw the progress bar may call CUDA meanwhile.
    recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
    with _uncached_casts(), recording:
        outputs = function()
    torch.cuda.set_rng_state(generator)
    return graph.replay, outputs


def _recorder() -> Record:
    """Returns `record_graph` with memory and a stream that its graphs share."""
    return functools.partial(record_graph, pool=torch.cuda.graph_pool_handle(), stream=torch.cuda.Stream())


def _uncached_casts() -> torch.autocast:
    """Returns autocast as it is, without its cache: a cast of a weight must be part of every graph."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False)


def widened(x: Tensor) -> Tensor:
    """Returns x (B, T, ...) with T rounded up to a multiple of WIDTH by steps of zeros."""
    more = -x.shape[1] % WIDTH
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, more)) if more else x
