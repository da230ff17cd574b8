"""Which thread, streams and memory pool a captured CUDA graph uses, with stand-ins and on a GPU."""

import contextlib
import itertools
import threading

import pytest
import torch

from torch_rnn.ops import graphs


class Stream:
    """A stream that notes which streams it waited for."""

    numbers = itertools.count(1)

    def __init__(self, device=None):
        self.cuda_stream, self.waited_for = next(self.numbers), []

    def wait_stream(self, other):
        self.waited_for.append(other)


class Graph:
    """A graph that counts its replays."""

    replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def captures(monkeypatch):
    """Returns a list of what each capture used: (thread, stream, pool)."""
    captures = []

    @contextlib.contextmanager
    def graph(graph, pool, stream, capture_error_mode):
        captures.append((threading.get_ident(), stream, pool))
        yield

    monkeypatch.setattr(graphs, "_GRAPHS", type(graphs._GRAPHS)())
    monkeypatch.setattr(graphs, "_RECORDERS", {})
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return captures


def double(x):
    return (2 * x,)


def replay(stream, size=3):
    """Runs `double` as a graph on a stream; returns its outputs and the graph."""
    x = torch.randn(size)
    outputs = graphs._replayed(double, (x,), {}, stream)
    graph, inputs, _ = next(reversed(graphs._GRAPHS.values()))
    assert torch.equal(inputs[0], x)  # the replay reads the new values
    return outputs, graph


def test_a_graph_is_captured_once_and_replayed_each_time(captures):
    stream = Stream()
    first, graph = replay(stream)
    again, same = replay(stream)
    assert len(captures) == 1
    assert graph is same
    assert graph.replays == 2
    assert first[0] is again[0]


def test_each_stream_has_its_own_graphs_and_memory_pool(captures):
    """Graphs with one pool share intermediate tensors, so they must not run at the same time."""
    left, right = Stream(), Stream()
    for stream, size in ((left, 3), (right, 3), (left, 4)):
        replay(stream, size)
    (_, _, pool), (_, _, other), (_, _, same) = captures
    assert pool is same
    assert pool is not other


def test_each_thread_has_its_own_memory_pool(captures):
    stream = Stream()
    replay(stream)
    thread = threading.Thread(target=replay, args=(stream,))
    thread.start()
    thread.join()
    assert len({id(pool) for _, _, pool in captures}) == 2


def test_captures_share_no_thread_with_other_code(captures, monkeypatch):
    """cuBLAS keeps a workspace for each thread and stream; memory pools are active for a thread."""
    threads = []
    real = torch.empty_like
    monkeypatch.setattr(
        torch, "empty_like", lambda *args, **kwargs: (threads.append(threading.get_ident()), real(*args))[1]
    )
    left, right = Stream(), Stream()
    for stream, size in ((left, 3), (left, 4), (right, 3)):
        replay(stream, size)
    used = [thread for thread, _, _ in captures]
    assert threads == used
    assert used[0] == used[1] != used[2]
    assert threading.get_ident() not in used


def test_a_capture_waits_for_the_callers_stream_and_the_caller_for_the_capture(captures):
    stream = Stream()
    replay(stream)
    (_, capture_stream, _) = captures[0]
    (recorder,) = graphs._RECORDERS.values()
    assert recorder.warm_up is not capture_stream  # so that the capture allocates its own workspace
    assert recorder.warm_up.waited_for == [stream]
    assert capture_stream.waited_for == [recorder.warm_up]
    assert stream.waited_for == [capture_stream]


def test_an_error_in_a_capture_reaches_the_caller(captures):
    with pytest.raises(ZeroDivisionError):
        graphs._replayed(lambda x: 1 / 0, (torch.zeros(3),), {}, Stream())
    assert not graphs._GRAPHS


@pytest.mark.cuda
def test_a_graph_is_captured_once_for_each_shape_and_replayed_on_new_values():
    calls = []

    def function(a, b, *, scale):
        calls.append(1)
        return (scale * a + b,)

    for shape in ((3, 4), (2, 4)):
        for _ in range(3):
            a, b = torch.randn(*shape, device="cuda"), torch.randn(4, device="cuda")
            (got,) = graphs.in_a_graph(function, a, b, scale=2)
            torch.testing.assert_close(got, 2 * a + b)
    assert len(calls) == 4  # one warm-up and one capture for each of two shapes
