"""The fused CPU kernels: every instruction set, edges of tiles and vectors, threads, forks, seeded faults."""

import ctypes
import importlib
import multiprocessing
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from ladder import SHAPES, Shape, rung_3, states_and_gradients

from torch_rnn.ops import recurrence, which
from torch_rnn.ops.cpu import INSTRUCTIONS

cpu = importlib.import_module("torch_rnn.ops.cpu")
SOURCES = Path(cpu.__file__).parent
pytestmark = pytest.mark.skipif(cpu.library() is None, reason="the kernels were not built: no C compiler")

EDGES = [
    Shape(B, T=5, D=4, H=H, ids=ids, lengths=lengths)
    for B, H, lengths in (
        (1, 31, None),
        (7, 33, (5, 5, 4, 1, 0, 2, 3)),
        (8, 64, (0,) * 7 + (5,)),
        (9, 65, (1, 2, 3, 4, 5, 0, 5, 4, 3)),
        (17, 7, None),
        (40, 16, tuple(range(6)) * 6 + (5, 5, 0, 1)),
    )
    for ids in (True, False)
]
MANY_WORDS = Shape(19, 12, 500, 20, ids=True, lengths=(*range(13), 12, 3, 3, 5, 9, 1))
"""More ids than steps, so that threads sum dxw and have no tables of their own."""
EDGES += [
    Shape(B, T=4, D=3, H=H, ids=H < 100, lengths=lengths)
    for B, H, lengths in (
        (1, 130, None),
        (2, 70, (4, 2)),
        (3, 150, None),
        (4, 20, (1, 4, 3, 2)),
        (5, 97, None),
    )
]
"""Tiles of fewer rows, with as many blocks at once as there are, and one more."""
LONG = Shape(19, 90, 50, 40, ids=True, lengths=(*range(1, 91, 5), 90))


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request, monkeypatch):
    """Runs the test with each instruction set that this processor has."""
    number = INSTRUCTIONS.index(request.param)
    if number < cpu.instructions():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(cpu, "instructions", lambda: number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *EDGES, MANY_WORDS, LONG], ids=str)
def test_every_instruction_set_agrees_with_eager(instructions, shape, dtype):
    rung_3("cpu", shape, dtype)


@pytest.mark.parametrize("nonlinearity", ["relu", "linear"])
def test_every_instruction_set_has_every_nonlinearity(instructions, nonlinearity):
    rung_3("cpu", LONG._replace(T=20, lengths=None), torch.float32, nonlinearity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tanh_is_accurate_and_never_exceeds_1(instructions, dtype):
    a = torch.cat(
        [torch.linspace(-25, 25, 200_001), torch.logspace(-30, 0, 10_000), torch.tensor([0.0, 1e30])]
    )
    a = a.to(dtype)[:, None, None]
    zero = torch.zeros(1, 1, dtype=dtype)
    h = recurrence(a, zero + 1, zero[0], zero, backend="cpu")
    error = (h.double() - a.double().tanh()).abs() / a.double().tanh().abs().clamp(min=1e-300)
    assert error.max() < 4 * torch.finfo(dtype).eps
    assert h.abs().max() <= 1
    assert recurrence(zero[None] * 0, zero + 1, zero[0], zero, backend="cpu").item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "linear"])
def test_infinity_and_nan_are_those_of_eager(instructions, nonlinearity, dtype):
    """An input is infinity, or becomes it; NaN is an overflow of products, since x and h0 must have none."""
    x = torch.tensor([0, torch.inf, -torch.inf, 3, 1e38, -1e38], dtype=dtype)[:, None, None].expand(-1, 3, -1)
    Wxh, Whh = torch.tensor([[1.0], [1e30], [0.0]], dtype=dtype), torch.eye(3, dtype=dtype) / 2
    results = []
    for backend in ("eager", "cpu"):
        weights = [tensor.clone().requires_grad_() for tensor in (Wxh, torch.zeros(3, dtype=dtype), Whh)]
        h = recurrence(x, *weights, nonlinearity=nonlinearity, backend=backend)
        results.append([h, *torch.autograd.grad(h[3].sum(), weights)])
    assert results[0][0].isnan().any()
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_any_number_of_threads_gives_right_and_repeatable_results(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rung_3("cpu", LONG, torch.float32)
        first, second = (states_and_gradients("cpu", LONG, torch.float32, "tanh", "cpu") for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("H", [12, 37, 150])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(instructions, H, dtype):
    g = torch.Generator().manual_seed(0)
    eye, bh, Whh = torch.eye(H, dtype=dtype), torch.zeros(H, dtype=dtype), torch.randn(H, H, generator=g) / 4
    x = torch.randn(24, 9, H, generator=g).to(dtype).requires_grad_()
    lengths = torch.tensor([9, 4, 8, 3, 2, 5] * 4)

    def pass_of(rows):
        h = recurrence(x[rows], eye, bh, Whh.to(dtype), None, lengths[rows], backend="cpu")
        return h, torch.autograd.grad(h.square().sum(), x)[0][rows]

    whole = pass_of(slice(None))
    for first, n in ((8, 8), (3, 1), (0, 2), (5, 3), (2, 4), (16, 5), (7, 7)):
        rows = slice(first, first + n)
        for part, of_whole in zip(pass_of(rows), whole, strict=True):
            assert torch.equal(part, of_whole[rows])


def test_many_python_threads_at_once():
    want = states_and_gradients("cpu", LONG, torch.float32, "tanh", "cpu")
    results = []

    def work():
        for _ in range(5):
            results.append(states_and_gradients("cpu", LONG, torch.float32, "tanh", "cpu"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(torch.equal(got[name], want[name]) for got in results for name in want)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_after_a_fork():
    _one_pass()
    torch.randn(300, 300).mm(torch.randn(300, 300))  # starts PyTorch's threads, which the child does not have
    child = multiprocessing.get_context("fork").Process(target=_one_pass_without_torch_threads)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _one_pass():
    rung_3("cpu", LONG._replace(T=20, lengths=None), torch.float32)


def _one_pass_without_torch_threads():
    torch.set_num_threads(1)  # as PyTorch's DataLoader does after a fork
    cpu.torch.get_num_threads = lambda: 4  # the kernels use more
    _one_pass()


def test_opcheck():
    weights = [torch.randn(*s, requires_grad=True) for s in ((9, 5), (5,), (5, 5), (3, 5))]
    ids, lengths = torch.randint(9, (3, 7)), torch.tensor([7, 0, 3])
    columns, bh, Whh, h0 = weights
    xw = torch.randn(3, 7, 5, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for inputs in (
        (None, ids, columns, bh, Whh, h0, lengths, "tanh"),
        (xw, None, None, None, Whh, h0, None, "relu"),
    ):
        torch.library.opcheck(torch.ops.torch_rnn.cpu_forward, inputs, test_utils=tests)


def test_the_kernels_refuse_invalid_ids_and_lengths():
    """`recurrence` checks them first, but not under torch.compile or for direct calls of the operation."""
    columns, bh, Whh, h0 = torch.randn(9, 5), torch.zeros(5), torch.zeros(5, 5), torch.zeros(3, 5)
    ids = torch.zeros(3, 7, dtype=torch.long)
    for bad_ids, lengths, message in (
        (ids + 9, None, r"x has ids at real steps that are not in 0\.\.8"),
        (ids - 1, None, "x has ids"),
        (ids, torch.tensor([7, 8, 0]), r"lengths are not all in 0\.\.7"),
        (ids, torch.tensor([7, -1, 0]), "lengths are not all"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.torch_rnn.cpu_forward(None, bad_ids, columns, bh, Whh, h0, lengths, "tanh")
    h, _ = torch.ops.torch_rnn.cpu_forward(
        None, ids + 9, columns, bh, Whh, h0, torch.tensor([0, 0, 0]), "tanh"
    )
    assert not h.any()


def test_a_library_of_another_version_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "Recurrence", type("Recurrence", (ctypes.Structure,), {"_fields_": []}))
    cpu.library.cache_clear()
    try:
        assert cpu.library() is None
        assert "is of another version" in caplog.text
    finally:
        cpu.library.cache_clear()


def test_without_the_library_auto_uses_bptt_and_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(cpu.importlib.machinery, "EXTENSION_SUFFIXES", [".missing"])
    cpu.library.cache_clear()
    try:
        assert which("auto") == which("auto") == "bptt"
        with pytest.raises(ValueError, match="backend is 'cpu', which was not built here"):
            which("cpu")
        assert caplog.text.count("the fused CPU backend was not built") == 1
    finally:
        cpu.library.cache_clear()
        monkeypatch.undo()
    assert which("auto") == "cpu"


def test_it_runs_only_on_the_cpu():
    with pytest.raises(ValueError, match="backend is 'cpu'; on cuda it must be one of auto, eager, bptt"):
        which("cpu", "cuda")


FAULTS = [
    ("transposed ? W[i * H + k] : W[k * H + i]", "transposed ? W[k * H + i] : W[i * H + k]"),
    ("(const REAL *)r->h0 + row[i] * H", "(const REAL *)r->h0 + i * H"),
    ("for (int64_t i = live; i < n; i++) memcpy(next", "for (int64_t i = n; i < n; i++) memcpy(next"),
    ("+ v] += in[i * stride + k] * w[v]", "+ v] = in[i * stride + k] * w[v]"),
    ("live > 4 ? 8 : live > 2 ? 4 : live;", "live > 5 ? 8 : live > 2 ? 4 : live;"),
    ("panel + (block * K + k) * BLOCK", "panel + k * BLOCK"),
    ("i < rows && i < live; i++)", "i < 1; i++)"),
    ("if (r->ids) NAME(add)(bias, r->bh, NULL, H);", ""),
    ("t = length_of(r, row[i]); t < T; t++) NAME(add)(h", "t = T; t < T; t++) NAME(add)(h"),
    ("t ? h + (step - 1) * H : h0 + row[i] * H", "h + (t ? step - 1 : step) * H"),
    ("h + (row[live] * T + t) * H", "h + row[live] * T * H"),
    ("if (++held == steps || t == 0)", "if (++held == steps)"),
    ("if (first <= ids[t] && ids[t] < end)", "if (ids[t] < end)"),
    ("table + r->ids[step] * H;", "table + r->ids[step - (t > 0)] * H;"),
    ("return one - h * h;", "return one - h;"),
    ("sum += *(V *)(da", "sum = *(V *)(da"),
    ("carried, carried, dh + (row[i] * T + t) * H", "carried, carried, dh + row[i] * T * H"),
    ("for (int64_t i = 1; i < n; i++) NAME(add)(y", "for (int64_t i = 2; i < n; i++) NAME(add)(y"),
]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the faulty kernels with")
@pytest.mark.parametrize(("right", "wrong"), FAULTS, ids=range(len(FAULTS)))
def test_rung_3_catches_faults(monkeypatch, tmp_path, right, wrong):
    """Each fault is one wrong line in a copy of the kernels, which rung_3 must find."""
    for name in ("cpu.c", "cpu.h", "cpu_kernel.h"):
        shutil.copy(SOURCES / name, tmp_path)
    source = (tmp_path / "cpu_kernel.h").read_text()
    assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times in cpu_kernel.h"
    (tmp_path / "cpu_kernel.h").write_text(source.replace(right, wrong))
    command = ["cc", "-O0", "-std=gnu11", "-w", "-fPIC", "-shared", "-pthread", "cpu.c", "-o", "faulty.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    faulty = ctypes.CDLL(str(tmp_path / "faulty.so"))
    monkeypatch.setattr(cpu, "library", lambda: faulty)
    monkeypatch.setattr(cpu.torch, "get_num_threads", lambda: 2)  # some faults need more than one thread

    def compare_with_eager():
        for shape in (LONG, MANY_WORDS, EDGES[6], EDGES[7]):
            rung_3("cpu", shape, torch.float64)

    with pytest.raises(AssertionError):
        compare_with_eager()
