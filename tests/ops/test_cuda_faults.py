"""Seeded faults in the CUDA C++ kernels: each is one wrong line, which the tests must find."""

import pytest
import torch
from cuda_emulator import COMPILER, SOURCE, compile_for_cpu, cuda, emulate, loop_kernels, sum_kernels
from ladder import Shape, states_and_gradients
from test_cuda import LONG, UNEVEN, assert_sums_by_id_are_right

from torch_rnn.testing import assert_parity, twice_the_error

LOADS = "output < H && input < H ? __ldg(W + (BACKWARD ? input * H + output : output * H + input)) : 0"
FORWARD_FAULTS = [
    (LOADS, LOADS.replace("BACKWARD ?", "!BACKWARD ?")),
    ("w[r][c + 1] = four.y", "w[r][c + 1] = four.z"),
    ("float h = share.owner ? call.h0[b * call.H + j] : 0;", "float h = 0;"),
    ("for (; t < call.T; t++, hs += step)", "for (; t + 1 < call.T; t++, hs += step)"),
    ("return call.lengths ? clamp(call.lengths[b], call.T + 1) : call.T;", "return call.T;"),
    ("      share.sync();\n      if (share.owner) *hs = h;", "      if (share.owner) *hs = h;"),
    ("      share.sync();\n      if (share.owner) *hs = h;", "      if (share.owner) *hs = h, share.sync();"),
    ("shared + i % 2 * P, shared + (i + 1) % 2 * P", "shared, shared"),
    (
        "sum[r] = kept + __shfl_xor_sync(~0u, sent, d * GROUP)",
        "sum[r] = kept + __shfl_xor_sync(~0u, sent, d)",
    ),
    ("for (int d = R; d < S; d *= 2)", "for (int d = R; d < S / 2; d *= 2)"),
    ("mine = first + part % R;", "mine = first + (part + 1) % R;"),
    ("*x_next = xw + AHEAD * step", "*x_next = xw + (AHEAD - 1) * step"),
    ("*ids_next = ids + 2 * AHEAD", "*ids_next = ids + AHEAD"),
    ("load_id(true, ids + t), xw + t * step", "load_id(true, ids), xw"),
    ("product(w, v, x_t + bias, share)", "product(w, v, x_t, share)"),
]
BACKWARD_FAULTS = [
    (LOADS, LOADS.replace("BACKWARD ?", "!BACKWARD ?")),
    ("fmaf(-h, h, 1.0f)", "1 - h"),
    ("i < AHEAD - 1 ? h[i + 1] : t > i ? h[0] : h_first", "h[(i + 1) % AHEAD]"),
    ("t > 0 ? state(t - 1) : h_first", "state(t - 1)"),
    ("const float h_first = share.owner ? call.h0[b * call.H + k] : 0;", "const float h_first = 0;"),
    ("call.dh0[b * call.H + k] = dh;", "call.dh0[b * call.H + k] = 0;"),
    ("if (share.owner) das[t * step] = 0;", ""),
    ("      dh += upstream(t);\n", ""),
    ("float dh = call.dhT && share.owner ? call.dhT[b * call.H + k] : 0, dbh = 0;", "float dh = 0, dbh = 0;"),
    ("(dh + up_t)", "dh"),
    ("if (share.owner) vector[k] = da;\n      share.sync();", "if (share.owner) vector[k] = da;"),
    ("share.sync(); /* before the next sequence writes to `shared` */", ""),
    (
        "__shfl_sync(~0u, h_before, share.group + r * Share<P, true>::GROUP)",
        "__shfl_sync(~0u, h_before, share.group)",
    ),
    ("if (b < gridDim.x) *sum = value;", "if (true) *sum = value;"),
    ("if (b < gridDim.x) *sum = value;", "if (false) *sum = value;"),
    ("dbh += da;", "dbh = da;"),
]
SUM_FAULTS = [
    ("t < length(call, b) ? clamp(call.ids", "true ? clamp(call.ids"),
    ("bool began_before = begin > 0 && keys[begin - 1] == key;", "bool began_before = false;"),
    ("store(end < N && keys[end] == key);", "store(false);"),
    ("sum = 0, began_before = false;", "sum = 0;"),
    ("for (int g = 0; g < groups; g++)", "for (int g = 0; g < 1; g++)"),
    ("long long block = blockIdx.x + 1 + group", "long long block = blockIdx.x + group"),
    ("shared[threadIdx.x] = sum;\n  __syncthreads();", "shared[threadIdx.x] = sum;"),
]
FAULTS = [
    (right, wrong, tuple(kernels))
    for faults, kernels in (
        (FORWARD_FAULTS, loop_kernels("forward", (64,))),
        (BACKWARD_FAULTS, loop_kernels("backward", (64,))),
        (SUM_FAULTS, sum_kernels(("short",), (32, 64))),
    )
    for right, wrong in faults
]


def assert_all_is_right(expected: dict[Shape, tuple[dict, dict]]) -> None:
    """Does what rung_3 does, with results of eager in float64 and float32 that were computed before."""
    assert_sums_by_id_are_right("cpu")
    for shape, (truth, eager) in expected.items():
        got = states_and_gradients("cuda", shape, torch.float32, "tanh", "cpu")
        for name, want in truth.items():
            assert_parity(name, got[name], want, torch.float32, twice_the_error(eager[name], want))


def is_caught(expected: dict[Shape, tuple[dict, dict]]) -> bool:
    try:
        assert_all_is_right(expected)
    except (AssertionError, RuntimeError):  # the emulator's driver fails if threads wait at different lines
        return True
    return False


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to build the emulator with")
def test_each_seeded_fault_is_caught(monkeypatch, tmp_path):
    """Each fault is one wrong line in a copy of the kernels. One run of the compiler builds all copies."""
    kernels = {*loop_kernels("forward", (64,)), *loop_kernels("backward", (64,))}
    sources = [(SOURCE, [*kernels, *sum_kernels(("short", "int"), (32, 64))])]
    for right, wrong, kernels in FAULTS:
        assert SOURCE.count(right) == 1, f"{right!r} occurs {SOURCE.count(right)} times in {cuda.SOURCE.name}"
        sources.append((SOURCE.replace(right, wrong), kernels))
    driver = compile_for_cpu(sources, tmp_path, speed="-O0")
    dtypes = torch.float64, torch.float32
    expected = {
        shape: tuple(states_and_gradients("eager", shape, dtype, "tanh", "cpu") for dtype in dtypes)
        for shape in (UNEVEN, LONG)
    }
    emulate(monkeypatch, driver)
    assert_all_is_right(expected)
    missed = []
    for i, (right, wrong, kernels) in enumerate(FAULTS):
        emulate(monkeypatch, driver, str(i + 1), kernels)
        if not is_caught(expected):
            missed.append((right, wrong))
    assert not missed
