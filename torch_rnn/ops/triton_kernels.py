"""The kernels of the backend "triton": h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh).

A program computes all steps of ROWS sequences and keeps Whh, so that it never waits for another program. It
keeps Whh in registers for one sequence, or in shared memory for 16 sequences. Time comes first: h is
(T, B, H). P is H rounded up to a power of two; states are padded to P with zeros. Memory is slower than a
step, so the inputs of a step are loaded AHEAD steps earlier, and its ids another AHEAD steps earlier.

ids and lengths are clamped to valid values, so that kernels never access memory out of bounds and the host
need not check them.
"""

# ruff: noqa: RUF005 (Triton cannot unpack a tuple)

import inspect

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
total = tl.sum.fn if INTERPRETED else tl.sum  # see `inlined`


def inlined(function):
    """Makes a function that kernels call; in the interpreter a plain one, whose calls take far less time."""
    return function if INTERPRETED else triton.jit(function)


def kernel(function):
    """Makes a kernel that compiles once for all values and alignments of its arguments.

    A new batch then never compiles or loads anything, which a CUDA graph's capture does not allow.
    """
    parameters = inspect.signature(function).parameters.values()
    arguments = tuple(p.name for p in parameters if p.annotation is not tl.constexpr)
    return triton.jit(function, do_not_specialize=arguments)


@inlined
def clamp(x, low, high):
    """Returns x limited to low..high. NaN stays NaN, unlike with a GPU's own minimum."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@inlined
def tanh(x):
    """Computes tanh to 4 units in the last place. cpu_kernel.h explains the two formulas."""
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
        x = tl.where(tl.abs(x) > 8.0, tl.where(x > 0.0, 8.0, -8.0), x)  # tanh(8) is 1 - 2 eps; NaN stays
        u = x * x
        v = u * u
        p = (u * 0.00349445536477 + 0.133800854105) * u + 0.999999979829
        p = (u * 1.33266064998e-8 + 2.05897750219e-5) * (v * u) + p
        q = (u * 7.76535413705e-7 + 0.000328375379692) * u + 0.0258727147282
        q = q * v + (u * 0.467134012286 + 1.0)
        # 1 / q, faster than by division: 12% off at first, then a cubic and a quadratic step.
        r = (0x7EF311C7 - q.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
        e = 1.0 - q * r
        r += r * (e * e + e)
        r += r * (1.0 - q * r)
        y = x * p * r
        y += (x * p - q * y) * r
    return y


@inlined
def apply(a, NONLINEARITY: tl.constexpr):
    if NONLINEARITY == "tanh":
        a = tanh(a)
    elif NONLINEARITY == "relu":
        a = tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return a


@inlined
def derivative(h, NONLINEARITY: tl.constexpr):
    """Returns f'(a) as a function of h = f(a)."""
    if NONLINEARITY == "tanh":
        d = 1.0 - h * h
    elif NONLINEARITY == "relu":
        d = tl.where(h > 0.0, 1.0, 0.0).to(h.dtype)
    else:
        d = tl.full(h.shape, 1.0, h.dtype)
    return d


@inlined
def rounded(a):
    """Rounds float32 to bfloat16's 8 bits (Dekker, 1971), except values whose product would overflow."""
    fits = tl.abs(a) < 1e33
    small = tl.where(fits, a, 0.0)
    large = small * 65537.0
    return tl.where(fits, large - (large - small), a)


@inlined
def spread(a, P: tl.constexpr, PRECISION: tl.constexpr):
    """Returns a (P,) as a factor of products with the rows of a matrix in registers."""
    if PRECISION != "ieee":
        a = rounded(a)
    return tl.reshape(a, (P // 4, 4))[:, :, None]


@inlined
def product(a, W, P: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """Returns a times W, summed in W's dtype: a (ROWS, P), or spread with Whh in registers."""
    if ROWS == 1:
        y = total(total(W * a, 0), 0)  # four sums, each in its own register
    elif PRECISION == "bf16":
        y = tl.dot(a.to(tl.bfloat16), W)
    else:  # Triton's interpreter cannot multiply bfloat16
        y = tl.dot(rounded(a), W)
    return y


@inlined
def rows_and_columns(block, P: tl.constexpr, ROWS: tl.constexpr):
    """Returns the indices of a block of states: a scalar and (P,), or (ROWS, 1) and (1, P)."""
    if ROWS == 1:
        row, j = tl.cast(block, tl.int64), tl.arange(0, P)
    else:
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        j = tl.arange(0, P)[None, :]
    return row, j


@inlined
def matrix_indices(P: tl.constexpr, ROWS: tl.constexpr):
    """Returns the indices of a (P, P) matrix. In registers it is (P / 4, 4, P): a thread keeps columns."""
    if ROWS == 1:
        i = tl.arange(0, P // 4)[:, None, None] * 4 + tl.arange(0, 4)[None, :, None]
        j = tl.arange(0, P)[None, None, :]
    else:
        i, j = tl.arange(0, P)[:, None], tl.arange(0, P)[None, :]
    return i, j


@inlined
def load_matrix(
    W, i_stride, j_stride, H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr
):
    """Loads W[i, j], with zeros in the padding.

    With Whh in registers, a thread is to keep whole columns. So the compiler does not know the strides, and a
    hint orders the axes for it: by default it begins with the last one, but with the first one in Triton 3.6.
    As it knows no alignment, it still loads the entries one by one.
    """
    i, j = matrix_indices(P, ROWS)
    if ROWS > 1:
        i_stride, j_stride = H, 1
    at = W + i * i_stride + j * j_stride
    if ROWS == 1:
        at = tl.max_contiguous(at, [1, 4, P])
    tile = tl.load(at, mask=(i < H) & (j < H), other=0.0)
    if PRECISION != "ieee":
        tile = tile.to(tl.bfloat16) if ROWS > 1 and PRECISION == "bf16" else rounded(tile)
    return tile


@inlined
def clamped_lengths(lengths, row, B, T):
    """Loads the number of steps of each row; 0 for rows past B."""
    if lengths is None:
        n = tl.where(row < B, T, 0)
    else:
        n = tl.load(lengths + row, mask=row < B, other=0)
        n = tl.minimum(tl.maximum(n, 0), T).to(tl.int32)
    return n


@inlined
def read_ids(ids, row, t, n, T, D):
    """Loads the ids of step t, clamped to 0..D-1."""
    ids_t = tl.load(ids + row * T + t, mask=t < n, other=0)
    return tl.minimum(tl.maximum(ids_t, 0), D - 1).to(tl.int32)


@inlined
def read_columns(columns, ids_t, mask, H: tl.constexpr):
    """Loads the columns of Wxh for the ids of a step. `columns` points to each thread's entry of column 0."""
    return tl.load(columns + ids_t.to(tl.int64) * H, mask=mask, other=0.0)


@kernel
def forward_kernel(
    xw, ids, columns, bh, Whh, h0, lengths, hs, hT, B, T, D, k_stride, j_stride,
    H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr, UNROLL: tl.constexpr,
    NONLINEARITY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    W = load_matrix(Whh, k_stride, j_stride, H, P, ROWS, PRECISION)
    row, j = rows_and_columns(tl.program_id(0), P, ROWS)
    inside = (row < B) & (j < H)
    n = clamped_lengths(lengths, row, B, T)
    steps = n if ROWS == 1 else tl.max(n)
    at = row * H + j  # offsets in (B, H), and in step 0 of (T, B, H)
    step = tl.cast(B, tl.int64) * H  # offset from one step to the next

    h = tl.load(h0 + at, mask=inside, other=0.0)
    bias = 0.0 if bh is None else tl.load(bh + j, mask=j < H, other=0.0)
    xs, ids_ahead = (), ()
    for t in tl.static_range(AHEAD):
        if ids is None:
            xs = xs + (tl.load(xw + at, mask=inside & (t < n), other=0.0),)
            xw += step
        else:
            xs = xs + (read_columns(columns + j, read_ids(ids, row, t, n, T, D), inside & (t < n), H),)
            ids_ahead = ids_ahead + (read_ids(ids, row, t + AHEAD, n, T, D),)
    for t in tl.range(0, steps, loop_unroll_factor=UNROLL):
        x, mask_ahead = xs[0], inside & (t + AHEAD < n)
        if ids is None:
            x_ahead = tl.load(xw + at, mask=mask_ahead, other=0.0)
            xw += step
        else:
            x_ahead = read_columns(columns + j, ids_ahead[0], mask_ahead, H)
            ids_ahead = ids_ahead[1:] + (read_ids(ids, row, t + 2 * AHEAD, n, T, D),)
        xs = xs[1:] + (x_ahead,)
        factor = spread(h, P, PRECISION) if ROWS == 1 else h
        h_next = apply(product(factor, W, P, ROWS, PRECISION) + (x + bias), NONLINEARITY)
        h = h_next if ROWS == 1 else tl.where(t < n, h_next, h)
        tl.store(hs + at, h, mask=inside)
        hs += step
    for _ in range(steps, T):
        tl.store(hs + at, h, mask=inside)
        hs += step
    tl.store(hT + at, h, mask=inside)


@kernel
def backward_kernel(
    dhs, dhT, hs, h0, Whh, lengths, das, dh0, sums, B, T, j_stride, k_stride, j_sums, k_sums,
    H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr, UNROLL: tl.constexpr,
    NONLINEARITY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes das and dh0.

    With `sums`, also sums the program's share of dWhh and, as the last row, of dbh: `sums` is
    (programs, H + 1, H).
    """
    W = load_matrix(Whh, j_stride, k_stride, H, P, ROWS, PRECISION)
    step = tl.cast(B, tl.int64) * H  # offset from one step to the next
    if sums is not None:
        dWhh = tl.zeros([P // 4, 4, P], W.dtype)
        dbh, rest = tl.zeros([P], W.dtype), tl.zeros([P], W.dtype)
    for block in range(tl.program_id(0), tl.cdiv(B, ROWS), tl.num_programs(0)):
        row, k = rows_and_columns(block, P, ROWS)
        inside = (row < B) & (k < H)
        n = clamped_lengths(lengths, row, B, T)
        steps = n if ROWS == 1 else tl.max(n)
        at = row * H + k  # offsets in (B, H), and in step 0 of (T, B, H)
        start = (T - 1) * step  # of the last step
        h_start = tl.load(h0 + at, mask=inside, other=0.0)
        nothing = tl.zeros_like(h_start)
        dh = nothing
        if dhT is not None:
            dh += tl.load(dhT + at, mask=inside, other=0.0)
        for _ in range(steps, T):
            if dhs is not None:
                dh += tl.load(dhs + start + at, mask=inside, other=0.0)
            tl.store(das + start + at, nothing, mask=inside)
            start -= step
        before, ups = (), ()  # h[t], h[t-1], ... and the gradients from above
        ahead = start
        for i in tl.static_range(AHEAD):
            before = before + (tl.load(hs + ahead + at, mask=inside & (i < steps), other=h_start),)
            if dhs is not None:
                ups = ups + (tl.load(dhs + ahead + at, mask=inside & (i < steps), other=0.0),)
            ahead -= step
        for i in tl.range(0, steps, loop_unroll_factor=UNROLL):
            mask_ahead = inside & (i + AHEAD < steps)
            h, h_ahead = before[0], tl.load(hs + ahead + at, mask=mask_ahead, other=h_start)
            before = before[1:] + (h_ahead,)
            if dhs is not None:
                dh += ups[0]
                ups = ups[1:] + (tl.load(dhs + ahead + at, mask=mask_ahead, other=0.0),)
            ahead -= step
            da = derivative(h, NONLINEARITY) * dh
            if ROWS == 1:
                factor = spread(da, P, PRECISION)
                dh = product(factor, W, P, ROWS, PRECISION)
            else:
                real = steps - 1 - i < n
                da = tl.where(real, da, 0.0)
                dh = tl.where(real, product(da, W, P, ROWS, PRECISION), dh)
            if sums is not None:
                dWhh += factor * before[0][None, None, :]
                term = da - rest  # Kahan's sum (1965)
                dbh_next = dbh + term
                rest = (dbh_next - dbh) - term
                dbh = dbh_next
            tl.store(das + start + at, da, mask=inside)
            start -= step
        tl.store(dh0 + at, dh, mask=inside)
    if sums is not None:
        j, k = matrix_indices(P, ROWS)
        own = sums + tl.program_id(0).to(tl.int64) * (H * (H + 1))
        # j_sums is H and k_sums is 1, but the compiler must not know: it would rearrange dWhh at every step.
        at = tl.max_contiguous(own + j * j_sums + k * k_sums, [1, 4, P])  # see load_matrix
        tl.store(at, dWhh, mask=(j < H) & (k < H))
        tl.store(own + H * H + tl.arange(0, P), dbh, mask=tl.arange(0, P) < H)


@kernel
def keys_kernel(ids, lengths, keys, T, B, D, SIZE: tl.constexpr):
    """Writes the clamped ids (B, T) as keys (T, B); in the padding D, which belongs to no column of Wxh."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    t, row = at // B, at % B
    key = tl.load(ids + row * T + t, mask=t < T, other=0)
    key = tl.minimum(tl.maximum(key, 0), D - 1)
    if lengths is not None:
        key = tl.where(t < tl.load(lengths + row), key, D)
    tl.store(keys + at, key.to(keys.dtype.element_ty), mask=t < T)


@inlined
def sum_of_rows(rows, order, first, end, j, H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr):
    """Returns the sum of rows[order[first:end]]; without `order`, of rows[first:end]."""
    i = tl.arange(0, ROWS)[:, None]
    sums = tl.zeros([ROWS, P], rows.dtype.element_ty)
    for at in range(first, end, ROWS):
        row = at + i if order is None else tl.load(order + at + i, mask=at + i < end, other=0)
        sums += tl.load(rows + row * H + j, mask=(at + i < end) & (j < H), other=0.0)
    return total(sums, 0)[None, :]


@kernel
def sum_chunks_kernel(
    das, ids, order, chunks, D, H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """Program c sums chunk c of the rows of das, sorted by id, if all its rows have the same id."""
    first = tl.program_id(0).to(tl.int64) * CHUNK
    j = tl.arange(0, P)[None, :]
    first_id = tl.load(ids + first)
    if (first_id < D) & (first_id == tl.load(ids + first + CHUNK - 1)):
        chunk = sum_of_rows(das, order, first, first + CHUNK, j, H, P, ROWS)
        tl.store(chunks + tl.program_id(0).to(tl.int64) * H + j, chunk, mask=j < H)


@kernel
def sum_by_id_kernel(
    das, order, starts, chunks, dcolumns,
    H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Program d sums the rows of das (N, H) that belong to id d: order[starts[d] : starts[d + 1]].

    It takes whole chunks from sum_chunks_kernel, so that a frequent id does not take long. The order of the
    sum is always the same. Atomic additions would not be deterministic.
    """
    d = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, P)[None, :]
    first, end = tl.load(starts + d), tl.load(starts + d + 1)
    first_chunk, end_chunk = tl.cdiv(first, CHUNK), end // CHUNK
    head_end = tl.minimum(first_chunk * CHUNK, end)
    dcolumn = sum_of_rows(das, order, first, head_end, j, H, P, ROWS)
    dcolumn += sum_of_rows(chunks, None, first_chunk, end_chunk, j, H, P, ROWS)
    dcolumn += sum_of_rows(das, order, tl.maximum(end_chunk * CHUNK, head_end), end, j, H, P, ROWS)
    tl.store(dcolumns + d * H + j, dcolumn, mask=j < H)


@kernel
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


@kernel
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
