"""Seeded faults in the Triton kernels and their launches: each is one wrong line, which rung_3 must find."""

import importlib.util
from pathlib import Path

import pytest
import torch
from ladder import SHAPES, rung_3
from test_triton import DEVICE, TILES, backend, rung_3_in_bf16, step_by_step, steps

pytestmark = pytest.mark.skipif(not backend.runs_on(DEVICE), reason="Triton is not installed")
__all__ = ["step_by_step"]  # a fixture, which tests request by name

KERNEL_FAULTS = [
    ("WhhT + k * H + j", "WhhT + j * H + k"),
    ("h = tl.where((t < n)[:, None], h_next, h)", "h = h_next"),
    ("x, x_next = x_next, x_after", "x, x_next = x_after, x_next"),
    ("ids_after = read_ids(ids, row, t + 3, n, T, D)", "ids_after = read_ids(ids, row, t + 2, n, T, D)"),
    ("apply(product(h, W, PRECISION) + (x + bias)", "apply(product(h, W, PRECISION) + x"),
    (
        "h = tl.load(h0 + row[:, None] * H + j, mask=inside, other=0.0)",
        "h = tl.zeros([ROWS, P], h0.dtype.element_ty)",
    ),
    ("    for t in range(steps, T):\n", "    for t in range(steps + 1, T):\n"),
    ("tl.store(das + t * step + at, tl.zeros_like(dh)", "tl.store(das + t * step + at, dh"),
    ("dh = tl.where(real, product(da, W, PRECISION), dh)", "dh = product(da, W, PRECISION)"),
    ("da = tl.where(real, derivative(h, NONLINEARITY) * dh, 0.0)", "da = derivative(h, NONLINEARITY) * dh"),
    ("h, h_next = h_next, h_after", "h, h_next = h_after, h_next"),
    ("d = 1.0 - h * h", "d = 1.0 - h"),
    ("            dh += up\n", ""),
    ("        dh += tl.load(dhT + at, mask=inside, other=0.0)", "        dh = dh"),
    ("for at in range(first, end, ROWS)", "for at in range(first, end - 1, ROWS)"),
    ("mask=(at + i < end)[:, None]", "mask=(at + i <= end)[:, None]"),
]
STEP_FAULTS = [
    ("h = hs[chunk][-1]", "h = hs[chunk][0]"),
    ("_rounded(Whh.t(), precision)", "_rounded(Whh, precision)"),
    (
        "hs[chunk],\n            Whh,\n            dh,\n            remaining - chunk.start",
        "hs[chunk],\n            Whh,\n            dh,\n            remaining",
    ),
    ("return das, passed + Wda", "return das, passed"),
    ("passed, Wda = dh, torch.zeros_like(dh)", "passed, Wda = torch.zeros_like(dh), torch.zeros_like(dh)"),
]


def faulty(module, right: str, wrong: str, folder: Path):
    """Returns a copy of the module with one wrong line, as a file, because Triton reads source files."""
    source = Path(module.__file__).read_text()
    assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times in {module.__name__}"
    path = folder / "faulty.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("faulty", path)
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    return twin


def is_caught() -> bool:
    shapes = (SHAPES[5], TILES._replace(B=3, lengths=None), TILES._replace(B=5, lengths=(6, 1, 0, 6, 3)))
    try:
        for shape in shapes:
            rung_3("triton", shape, torch.float64, device=DEVICE)
        rung_3_in_bf16(TILES)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(("right", "wrong"), KERNEL_FAULTS, ids=range(len(KERNEL_FAULTS)))
def test_rung_3_catches_faults_in_the_kernels(monkeypatch, tmp_path, right, wrong):
    twin = faulty(backend.kernels(), right, wrong, tmp_path)
    monkeypatch.setattr(backend, "kernels", lambda: twin)
    assert is_caught()


@pytest.mark.parametrize(("right", "wrong"), STEP_FAULTS, ids=range(len(STEP_FAULTS)))
def test_rung_3_catches_faults_step_by_step(step_by_step, monkeypatch, tmp_path, right, wrong):
    twin = faulty(steps, right, wrong, tmp_path)
    twin.CHUNK = 4
    for name in ("step_by_step", "back_step_by_step"):
        monkeypatch.setattr(backend, name, getattr(twin, name))
    assert is_caught()
