"""The kernels of the backend "triton": h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh).

A program computes all steps of ROWS sequences and keeps Whh, so that it never waits for another program. Time
comes first: h is (T, B, H). P is H rounded up to a power of two; states are padded to P with zeros. Memory is
slower than a step, so the inputs of a step are loaded two steps ahead.

ids and lengths are clamped to valid values, so that kernels never access memory out of bounds and the host
need not check them.
"""

import triton
import triton.language as tl


@triton.jit
def clamp(x, low, high):
    """Returns x limited to low..high. NaN stays NaN, unlike with a GPU's own minimum."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def tanh(x):
    """Computes tanh to 3 units in the last place. cpu_kernel.h explains the two formulas."""
    if x.dtype == tl.float64:
        x = clamp(x, -20.0, 20.0) * 0.125
        u = x * x
        tail = tl.full(x.shape, 27.0, tl.float64)
        for i in tl.static_range(13):
            tail = (25.0 - 2 * i) + u / tail
        y = x / tail
        for _ in tl.static_range(3):
            y = (y + y) / (y * y + 1.0)
    else:
        x = clamp(x, -9.02, 9.02)
        u = x * x
        p = u * 1.33266064998e-8 + 2.05897750219e-5
        p = p * u + 0.00349445536477
        p = p * u + 0.133800854105
        p = p * u + 0.999999979829
        q = u * 7.76535413705e-7 + 0.000328375379692
        q = q * u + 0.0258727147282
        q = q * u + 0.467134012286
        q = q * u + 1.0
        y = clamp(tl.div_rn(x * p, q), -1.0, 1.0)
    return y


@triton.jit
def apply(a, NONLINEARITY: tl.constexpr):
    if NONLINEARITY == "tanh":
        a = tanh(a)
    elif NONLINEARITY == "relu":
        a = tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return a


@triton.jit
def derivative(h, NONLINEARITY: tl.constexpr):
    """Returns f'(a) as a function of h = f(a)."""
    if NONLINEARITY == "tanh":
        d = 1.0 - h * h
    elif NONLINEARITY == "relu":
        d = tl.where(h > 0.0, 1.0, 0.0).to(h.dtype)
    else:
        d = tl.full(h.shape, 1.0, h.dtype)
    return d


@triton.jit
def rounded(a):
    """Rounds float32 to bfloat16's 8 bits (Dekker, 1971). Triton's interpreter cannot multiply bfloat16."""
    large = a * 65537.0
    return large - (large - a)


@triton.jit
def product(a, W, PRECISION: tl.constexpr):
    """Returns a (ROWS, P) times W (P, P), summed in a's dtype. With "bf16", the factors are rounded first."""
    if PRECISION == "bf16":
        y = tl.dot(a.to(tl.bfloat16), W)
    elif PRECISION == "bf16, interpreted":
        y = tl.dot(rounded(a), W)
    else:
        y = tl.dot(a, W, input_precision=PRECISION, out_dtype=a.dtype)
    return y


@triton.jit
def load_matrix(W, k, j, H: tl.constexpr, PRECISION: tl.constexpr):
    """Loads W[k, j], with zeros in the padding."""
    tile = tl.load(W, mask=(k < H) & (j < H), other=0.0)
    if PRECISION == "bf16":
        tile = tile.to(tl.bfloat16)
    elif PRECISION == "bf16, interpreted":
        tile = rounded(tile)
    return tile


@triton.jit
def clamped_lengths(lengths, row, B, T):
    """Loads the number of steps of each row; 0 for rows past B."""
    if lengths is None:
        n = tl.full(row.shape, T, tl.int32)
    else:
        n = tl.load(lengths + row, mask=row < B, other=0)
        n = tl.minimum(tl.maximum(n, 0), T).to(tl.int32)
    return tl.where(row < B, n, 0)


@triton.jit
def read_ids(ids, row, t, n, T, D):
    """Loads the ids of step t, clamped to 0..D-1."""
    if ids is None:
        ids_t = row
    else:
        ids_t = tl.load(ids + row * T + t, mask=t < n, other=0)
        ids_t = tl.minimum(tl.maximum(ids_t, 0), D - 1)
    return ids_t


@triton.jit
def read_input(xw, columns, ids_t, row, t, n, B, j, H: tl.constexpr):
    """Loads xw[t]; with ids, the columns of Wxh."""
    mask = (t < n)[:, None] & (j < H)
    if columns is None:
        x = tl.load(xw + (t * B + row)[:, None] * H + j, mask=mask, other=0.0)
    else:
        x = tl.load(columns + ids_t[:, None] * H + j, mask=mask, other=0.0)
    return x


@triton.jit
def forward_kernel(
    xw, ids, columns, bh, WhhT, h0, lengths, hs, hT, B, T, D,
    H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, NONLINEARITY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    j, k = tl.arange(0, P)[None, :], tl.arange(0, P)[:, None]
    inside = (row < B)[:, None] & (j < H)  # (ROWS, P)
    n = clamped_lengths(lengths, row, B, T)
    steps = tl.max(n, 0)

    W = load_matrix(WhhT + k * H + j, k, j, H, PRECISION)
    h = tl.load(h0 + row[:, None] * H + j, mask=inside, other=0.0)
    bias = tl.zeros([1, P], h.dtype)
    if bh is not None:
        bias += tl.load(bh + j, mask=j < H, other=0.0)
    x = read_input(xw, columns, read_ids(ids, row, 0, n, T, D), row, 0, n, B, j, H)
    x_next = read_input(xw, columns, read_ids(ids, row, 1, n, T, D), row, 1, n, B, j, H)
    ids_after = read_ids(ids, row, 2, n, T, D)
    for t in range(steps):
        x_after = read_input(xw, columns, ids_after, row, t + 2, n, B, j, H)
        ids_after = read_ids(ids, row, t + 3, n, T, D)
        h_next = apply(product(h, W, PRECISION) + (x + bias), NONLINEARITY)
        h = tl.where((t < n)[:, None], h_next, h)
        tl.store(hs + (t * B + row)[:, None] * H + j, h, mask=inside)
        x, x_next = x_next, x_after
    for t in range(steps, T):
        tl.store(hs + (t * B + row)[:, None] * H + j, h, mask=inside)
    tl.store(hT + row[:, None] * H + j, h, mask=inside)


@triton.jit
def backward_kernel(
    dhs, dhT, hs, Whh, lengths, das, dh0, B, T,
    H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, NONLINEARITY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j, k = tl.arange(0, P)[None, :], tl.arange(0, P)[:, None]
    inside = (row < B)[:, None] & (j < H)
    n = clamped_lengths(lengths, row, B, T)
    steps = tl.max(n, 0)
    at = row[:, None] * H + j  # offsets in (B, H), and in step 0 of (T, B, H)
    step = tl.cast(B, tl.int64) * H  # offset from one step to the next

    W = load_matrix(Whh + k * H + j, k, j, H, PRECISION)
    dh = tl.zeros([ROWS, P], hs.dtype.element_ty)
    if dhT is not None:
        dh += tl.load(dhT + at, mask=inside, other=0.0)
    for i in range(T - steps):
        t = T - 1 - i
        if dhs is not None:
            dh += tl.load(dhs + t * step + at, mask=inside, other=0.0)
        tl.store(das + t * step + at, tl.zeros_like(dh), mask=inside)

    h = tl.load(hs + (steps - 1) * step + at, mask=inside & (steps > 0), other=0.0)
    h_next = tl.load(hs + (steps - 2) * step + at, mask=inside & (steps > 1), other=0.0)
    if dhs is not None:
        up = tl.load(dhs + (steps - 1) * step + at, mask=inside & (steps > 0), other=0.0)
        up_next = tl.load(dhs + (steps - 2) * step + at, mask=inside & (steps > 1), other=0.0)
    for i in range(steps):
        t = steps - 1 - i
        h_after = tl.load(hs + (t - 2) * step + at, mask=inside & (t > 1), other=0.0)
        if dhs is not None:
            up_after = tl.load(dhs + (t - 2) * step + at, mask=inside & (t > 1), other=0.0)
            dh += up
            up, up_next = up_next, up_after
        real = (t < n)[:, None]
        da = tl.where(real, derivative(h, NONLINEARITY) * dh, 0.0)
        tl.store(das + t * step + at, da, mask=inside)
        dh = tl.where(real, product(da, W, PRECISION), dh)
        h, h_next = h_next, h_after
    tl.store(dh0 + at, dh, mask=inside)


@triton.jit
def sum_by_id_kernel(das, order, starts, dcolumns, H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr):
    """Program d sums the rows of das (N, H) that belong to id d: order[starts[d] : starts[d + 1]].

    The order of the sum is always that of the steps. Atomic additions would not be deterministic.
    """
    d = tl.program_id(0).to(tl.int64)
    j, i = tl.arange(0, P)[None, :], tl.arange(0, ROWS)
    first, end = tl.load(starts + d), tl.load(starts + d + 1)
    total = tl.zeros([ROWS, P], das.dtype.element_ty)
    for at in range(first, end, ROWS):
        rows = tl.load(order + at + i, mask=at + i < end, other=0)
        total += tl.load(das + rows[:, None] * H + j, mask=(at + i < end)[:, None] & (j < H), other=0.0)
    tl.store(dcolumns + d * H + j, tl.sum(total, 0)[None, :], mask=j < H)


@triton.jit(do_not_specialize=["t"])
def step_forward_kernel(
    xw, Wh, h, lengths, h_next, t, N, H: tl.constexpr, SIZE: tl.constexpr, NONLINEARITY: tl.constexpr
):
    """Computes h_next = f(xw + Wh), or h_next = h where a row has ended. All are (B, H), with N entries."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    n = tl.load(lengths + at // H, mask=at < N, other=0)
    h_active = apply(
        tl.load(xw + at, mask=at < N, other=0.0) + tl.load(Wh + at, mask=at < N, other=0.0), NONLINEARITY
    )
    before = tl.load(h + at, mask=at < N, other=0.0)
    tl.store(h_next + at, tl.where(t < n, h_active, before), mask=at < N)


@triton.jit(do_not_specialize=["t"])
def step_backward_kernel(
    up, passed, Wda, h, lengths, da, passed_next, t, N,
    H: tl.constexpr, SIZE: tl.constexpr, NONLINEARITY: tl.constexpr,
):  # fmt: skip
    """Computes da of step t from dh = up + passed + Wda. Where a row has ended, passed_next = dh."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    real = t < tl.load(lengths + at // H, mask=at < N, other=0)
    dh = tl.load(passed + at, mask=at < N, other=0.0) + tl.load(Wda + at, mask=at < N, other=0.0)
    if up is not None:
        dh += tl.load(up + at, mask=at < N, other=0.0)
    state = tl.load(h + at, mask=at < N, other=0.0)
    tl.store(da + at, tl.where(real, derivative(state, NONLINEARITY) * dh, 0.0), mask=at < N)
    tl.store(passed_next + at, tl.where(real, 0.0, dh), mask=at < N)
