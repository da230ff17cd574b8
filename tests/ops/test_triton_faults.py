"""Seeded faults in the Triton kernels and their launches: each is one wrong line, which rung_3 must find."""

import importlib.util
from pathlib import Path

import pytest
import torch
from ladder import rung_3
from test_triton import DEVICE, LONG, TILES, backend, keep_whh, rung_3_in_bf16, step_by_step, steps

pytestmark = pytest.mark.skipif(not backend.runs_on(DEVICE), reason="Triton does not run on this machine")
__all__ = ["step_by_step"]  # a fixture, which tests request by name

KERNEL_FAULTS = [
    ("W + i * i_stride + j * j_stride", "W + j * i_stride + i * j_stride"),
    ("h = h_next if ROWS == 1 else tl.where(t < n, h_next, h)", "h = h_next"),
    ("xs = xs[1:] + (x_ahead,)", "xs = (x_ahead,) + xs[1:]"),
    ("read_ids(ids, row, t + 2 * AHEAD, n, T, D)", "read_ids(ids, row, t + 2 * AHEAD - 1, n, T, D)"),
    ("PRECISION) + (x + bias)", "PRECISION) + x"),
    ("h = tl.load(h0 + at, mask=inside, other=0.0)", "h = 0.0 * tl.load(h0 + at, mask=inside, other=0.0)"),
    (
        "    for _ in range(steps, T):\n        tl.store",
        "    for _ in range(steps + 1, T):\n        tl.store",
    ),
    ("tl.store(das + start + at, nothing", "tl.store(das + start + at, dh"),
    (
        "dh = tl.where(real, product(da, W, P, ROWS, PRECISION), dh)",
        "dh = product(da, W, P, ROWS, PRECISION)",
    ),
    ("da = tl.where(real, da, 0.0)", "da = da + 0.0"),
    ("before = before[1:] + (h_ahead,)", "before = before[1:] + (before[0],)"),
    ("d = 1.0 - h * h", "d = 1.0 - h"),
    ("                dh += ups[0]\n", ""),
    ("            dh += tl.load(dhT + at, mask=inside, other=0.0)", "            dh = dh"),
    ("for at in range(first, end, ROWS)", "for at in range(first, end - 1, ROWS)"),
    ("mask=(at + i < end) & (j < H)", "mask=(at + i <= end) & (j < H)"),
    ("mask=mask_ahead, other=h_start", "mask=mask_ahead, other=0.0"),
    ("mask=inside & (i < steps), other=h_start", "mask=inside & (i < steps), other=0.0"),
    ("dWhh += factor * before[0]", "dWhh += factor * h"),
    ("dbh_next = dbh + term", "dbh_next = term"),
    ("rest = (dbh_next - dbh) - term", "rest = (dbh_next - dbh) + term"),
    ("own = sums + tl.program_id(0)", "own = sums + 0 * tl.program_id(0)"),
    ("tl.cdiv(B, ROWS), tl.num_programs(0))", "tl.cdiv(B, ROWS), tl.cdiv(B, ROWS))"),
    ("tl.cdiv(first, CHUNK), end // CHUNK", "first // CHUNK, end // CHUNK"),
    ("(first_id < D) & (first_id == tl.load(ids + first + CHUNK - 1))", "first_id < 0"),
    ("tl.minimum(first_chunk * CHUNK, end)", "first"),
    ("tl.maximum(end_chunk * CHUNK, head_end)", "end_chunk * CHUNK"),
    ("tl.load(ids + row * T + t, mask=t < T", "tl.load(ids + row * T + T - 1 - t, mask=t < T"),
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
    short = LONG._replace(T=7, lengths=(7, 0, 1))  # in the interpreter, two steps are loaded ahead
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "SUMS", 1)
            patch.setattr(backend, "CHUNK", 2)
            rung_3("triton", short, torch.float64, device=DEVICE)
        rung_3("triton", short._replace(ids=False), torch.float64, device=DEVICE)
        with pytest.MonkeyPatch.context() as patch:
            keep_whh("in shared memory", patch)
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
