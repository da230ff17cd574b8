/* The kernels of cpu.c for one REAL (float or double) and one instruction set.
 *
 * A vector has LANES numbers, VECTORS vectors are BLOCK columns of a matrix, and a tile has ROWS sequences. The
 * innermost loop keeps a (ROWS, BLOCK) product in registers. In buffers, states are padded to P columns with zeros.
 */

#define LANES ((int64_t)(BYTES / sizeof(REAL)))
#define BLOCK (VECTORS * LANES)
#define IS_FLOAT (sizeof(REAL) == 4)
#define STRIDE (P + LANES) /* from row to row of a buffer; with a power of two, all rows would share a few cache sets */

typedef REAL NAME(V) __attribute__((vector_size(BYTES)));
typedef REAL NAME(U) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)))); /* for unaligned addresses */
#define V NAME(V)
#define U NAME(U)

/* Rounds H up to a multiple of BLOCK and of ROWS. */
static inline int64_t NAME(padded)(int64_t H) {
    const int64_t multiple = BLOCK > ROWS ? BLOCK : ROWS;
    return (H + multiple - 1) / multiple * multiple;
}

/* Computes tanh to 3 units in the last place.
 * float: x p(x^2) / q(x^2), a minimax fit with relative error 2.2e-8 on |x| <= 9.02; beyond, tanh is 1 in float.
 * double: Lambert's continued fraction x/(1 + x^2/(3 + x^2/(5 + ...))) at x/8, then three times
 * tanh(2x) = 2 tanh(x) / (1 + tanh(x)^2). All terms are positive, so that nothing cancels.
 * NaN stays NaN, because min and max return their second argument where one of them is NaN. */
static inline V NAME(tanh)(V x) {
    const V zero = {0}, one = zero + 1;
    if (IS_FLOAT) {
        const V limit = zero + (REAL)9.02;
        x = NAME(max)(-limit, NAME(min)(limit, x));
        V u = x * x;
        V p = u * (REAL)1.33266064998e-8 + (REAL)2.05897750219e-5;
        p = p * u + (REAL)0.00349445536477;
        p = p * u + (REAL)0.133800854105;
        p = p * u + (REAL)0.999999979829;
        V q = u * (REAL)7.76535413705e-7 + (REAL)0.000328375379692;
        q = q * u + (REAL)0.0258727147282;
        q = q * u + (REAL)0.467134012286;
        q = q * u + one;
        V r = NAME(rcp)(q);
        r = r * (2 - q * r); /* a Newton step doubles the correct bits */
        return NAME(max)(-one, NAME(min)(one, x * p * r));
    }
    const V limit = zero + 20;
    x = NAME(max)(-limit, NAME(min)(limit, x)) * (REAL)0.125;
    V u = x * x, tail = zero + 27;
    for (int odd = 25; odd >= 1; odd -= 2) tail = (REAL)odd + u / tail;
    V y = x / tail;
    for (int i = 0; i < 3; i++) y = (y + y) / (y * y + one);
    return y;
}

static inline V NAME(apply)(V a, int64_t nonlinearity) {
    if (nonlinearity == TANH) return NAME(tanh)(a);
    const V zero = {0};
    if (nonlinearity == RELU) a = NAME(max)(zero, a);
    return a;
}

/* Returns f'(a) as a function of h = f(a). */
static inline V NAME(derivative)(V h, int64_t nonlinearity) {
    const V zero = {0}, one = zero + 1;
    if (nonlinearity == TANH) return one - h * h;
    return nonlinearity == RELU ? SELECT(h > zero, one, zero) : one;
}

/* Returns how many rows are computed where `live` have not ended: 1, 2, 4 or 8. */
static inline int64_t NAME(rows)(int64_t live) { return live > 4 ? 8 : live > 2 ? 4 : live; }

/* Calls `function(..., rows, blocks)` for all blocks of P columns. Fewer rows take more blocks at once, because the
 * processor needs about eight independent sums. The order of each sum is the same for any number of rows. */
#define FOR_EACH_BLOCK(function, rows, ...)                                                                   \
    switch (rows) {                                                                                           \
    case 1: BLOCKS(function, 1, 4, __VA_ARGS__) break;                                                        \
    case 2: BLOCKS(function, 2, 4, __VA_ARGS__) break;                                                        \
    case 4: BLOCKS(function, 4, 2, __VA_ARGS__) break;                                                        \
    default: BLOCKS(function, 8, 1, __VA_ARGS__)                                                              \
    }
#define BLOCKS(function, rows, blocks, ...)                                                                   \
    {                                                                                                         \
        int64_t j = 0;                                                                                        \
        for (; j + (blocks) * BLOCK <= P; j += (blocks) * BLOCK) NAME(function)(__VA_ARGS__, j, rows, blocks); \
        for (; j < P; j += BLOCK) NAME(function)(__VA_ARGS__, j, rows, 1);                                    \
    }

/* sum (rows, blocks * VECTORS) += in (rows, K) times `blocks` panels (K, BLOCK). Rows of in are `stride` apart. */
INLINE void NAME(multiply)(V *sum, const REAL *in, int64_t stride, const REAL *panel, int64_t K, int rows, int blocks) {
    for (int64_t k = 0; k < K; k++) {
#pragma GCC unroll 4
        for (int block = 0; block < blocks; block++) {
            const V *w = (const V *)(panel + (block * K + k) * BLOCK);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) sum[(i * blocks + block) * VECTORS + v] += in[i * stride + k] * w[v];
        }
    }
}

/* out[j/BLOCK][k][j%BLOCK] = W[k][j], or W[j][k] if transposed, so that `multiply` reads memory in order. */
static void NAME(pack)(REAL *out, const REAL *W, int64_t H, int transposed) {
    const int64_t P = NAME(padded)(H), full = H / BLOCK * BLOCK;
    memset(out + full * H, 0, (size_t)((P - full) * H) * sizeof(REAL));
    for (int64_t j = 0; j < H; j += BLOCK)
        for (int64_t first = 0; first < H; first += LANES) { /* a cache line of W at a time */
            const int64_t columns = H - j < BLOCK ? H - j : BLOCK, end = first + LANES < H ? first + LANES : H;
            for (int64_t i = j; i < j + columns; i++)
                for (int64_t k = first; k < end; k++)
                    out[j * H + k * BLOCK + i - j] = transposed ? W[i * H + k] : W[k * H + i];
        }
}

/* y[:n] = a + b, or a if b is NULL. */
static inline void NAME(add)(REAL *y, const REAL *a, const REAL *b, int64_t n) {
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) *(U *)(y + j) = b ? *(const U *)(a + j) + *(const U *)(b + j) : *(const U *)(a + j);
    for (; j < n; j++) y[j] = b ? a[j] + b[j] : a[j];
}

static inline void NAME(prefetch)(const REAL *a, int64_t n) {
    for (int64_t j = 0; j < n; j += 64 / (int64_t)sizeof(REAL)) __builtin_prefetch(a + j);
}

/* Computes columns j : j + blocks * BLOCK of the next state of some rows. */
INLINE void NAME(forward_block)(const Call *call, const REAL *const *input, const REAL *bias, const REAL *now, REAL *next,
                                int64_t j, int rows, int blocks) {
    const int64_t H = call->r->H, P = NAME(padded)(H), n = blocks * VECTORS;
    V sum[ROWS * VECTORS];
    for (int i = 0; i < rows; i++)
        for (int64_t v = 0; v < n; v++)
            sum[i * n + v] = *(const U *)(input[i] + j + v * LANES) + *(const V *)(bias + j + v * LANES);
    NAME(multiply)(sum, now, STRIDE, (const REAL *)call->packed + j * H, H, rows, blocks);
    for (int i = 0; i < rows; i++)
        for (int64_t v = 0; v < n; v++)
            *(V *)(next + i * STRIDE + j + v * LANES) = NAME(apply)(sum[i * n + v], call->r->nonlinearity);
}

/* Computes all steps of a tile forward. buffer has 4 parts of (ROWS, STRIDE). */
static void NAME(forward_tile)(Call *call, int64_t tile, REAL *buffer) {
    const Recurrence *r = call->r;
    const int64_t B = r->B, T = r->T, H = r->H, P = NAME(padded)(H);
    const int64_t n = B - ROWS * tile < ROWS ? B - ROWS * tile : ROWS, *row = call->order + ROWS * tile;
    REAL *now = buffer, *next = buffer + ROWS * STRIDE, *x = buffer + 2 * ROWS * STRIDE, *h = r->h;
    REAL *bias = buffer + 3 * ROWS * STRIDE; /* (P,): bh, or zeros if xw already includes it */
    memset(buffer, 0, (size_t)(4 * ROWS * STRIDE) * sizeof(REAL));
    if (r->ids) NAME(add)(bias, r->bh, NULL, H);
    for (int64_t i = 0; i < n; i++) memcpy(now + i * STRIDE, (const REAL *)r->h0 + row[i] * H, (size_t)H * sizeof(REAL));

    const int64_t longest = length_of(r, row[0]);
    int64_t live = n; /* rows that have not ended; they come first, because rows are sorted longest first */
    for (int64_t t = 0; t < longest; t++) {
        while (length_of(r, row[live - 1]) <= t) live--;
        const REAL *input[ROWS]; /* the input of each row; a padded copy unless H == P */
        for (int64_t i = 0; i < ROWS; i++) input[i] = x + i * STRIDE;
        for (int64_t i = 0; i < live; i++) {
            const int64_t step = row[i] * T + t;
            const REAL *columns = r->columns, *from = (const REAL *)r->xw + step * H;
            if (r->ids) {
                if (r->ids[step] < 0 || r->ids[step] >= r->D) {
                    call->status = BAD_ID;
                    return;
                }
                from = columns + r->ids[step] * H;
                if (t + 2 < length_of(r, row[i])) NAME(prefetch)(columns + r->ids[step + 2] * H, H);
            }
            if (H == P)
                input[i] = from;
            else
                NAME(add)(x + i * STRIDE, from, NULL, H);
        }
        FOR_EACH_BLOCK(forward_block, NAME(rows)(live), call, input, bias, now, next)
        for (int64_t i = 0; i < live; i++) NAME(add)(h + (row[i] * T + t) * H, next + i * STRIDE, NULL, H);
        for (int64_t i = live; i < n; i++) memcpy(next + i * STRIDE, now + i * STRIDE, (size_t)P * sizeof(REAL));
        REAL *swap = now;
        now = next, next = swap;
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t t = length_of(r, row[i]); t < T; t++) NAME(add)(h + (row[i] * T + t) * H, now + i * STRIDE, NULL, H);
        NAME(add)((REAL *)r->hT + row[i] * H, now + i * STRIDE, NULL, H);
    }
}

/* dW (P, P) += da^T h for a chunk of `pairs` rows of da and h. The chunk is summed separately first, because one
 * long sum would lose more precision than several short ones. */
APART void NAME(add_outer)(REAL *dW, const REAL *da, const REAL *h, int64_t pairs, int64_t H, int64_t P) {
    for (int64_t k = 0; k < P; k += BLOCK)
        for (int64_t j = 0; j < H; j += ROWS) {
            V acc[ROWS][VECTORS];
            memset(acc, 0, sizeof acc);
            for (int64_t p = 0; p < pairs; p++) {
                const V *w = (const V *)(h + p * STRIDE + k);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; v++) acc[i][v] += da[p * STRIDE + j + i] * w[v];
            }
            for (int i = 0; i < ROWS; i++)
                for (int v = 0; v < VECTORS; v++) *(V *)(dW + (j + i) * P + k + v * LANES) += acc[i][v];
        }
}

/* Returns how many rows of da and of h are collected before `add_outer`: as many as fit into the cache. */
static inline int64_t NAME(chunk)(int64_t P) {
    const int64_t tiles = (1 << 17) / (2 * ROWS * P * (int64_t)sizeof(REAL));
    return ROWS * (tiles < 2 ? 2 : tiles > 32 ? 32 : tiles);
}

/* Computes columns j : j + blocks * BLOCK of the gradient that the live rows pass to the step before. */
INLINE void NAME(backward_block)(const Call *call, const REAL *da, REAL *carry, int64_t live, int64_t j, int rows,
                                 int blocks) {
    const int64_t H = call->r->H, P = NAME(padded)(H), n = blocks * VECTORS;
    V sum[ROWS * VECTORS];
    for (int i = 0; i < rows * n; i++) sum[i] = (V){0};
    NAME(multiply)(sum, da, STRIDE, (const REAL *)call->packed + j * H, H, rows, blocks);
    for (int64_t i = 0; i < rows && i < live; i++)
        for (int64_t v = 0; v < n; v++) *(V *)(carry + i * STRIDE + j + v * LANES) = sum[i * n + v];
}

/* Computes all steps of a tile backward. buffer has 3 parts of (rows, STRIDE), then two chunks of rows. */
static void NAME(backward_tile)(Call *call, int64_t tile, int64_t thread, REAL *buffer) {
    const Recurrence *r = call->r;
    const int64_t B = r->B, T = r->T, H = r->H, P = NAME(padded)(H);
    const int64_t n = B - ROWS * tile < ROWS ? B - ROWS * tile : ROWS, *row = call->order + ROWS * tile;
    const int64_t rows = NAME(rows)(n), size = rows * STRIDE, steps = NAME(chunk)(P) / rows; /* in a chunk */
    REAL *carry = buffer, *state = buffer + size, *bias = buffer + 2 * size; /* bias: dbh of the chunk, (P,) */
    REAL *das = buffer + 3 * size, *befores = das + steps * size;
    REAL *dWhh = (REAL *)call->dWhh + thread * P * P, *dbh = (REAL *)call->dbh + thread * P, *dxw = r->dxw;
    const REAL *h = r->h, *dh = r->dh, *h0 = r->h0;
    REAL *table = thread ? (REAL *)call->tables + (thread - 1) * r->D * H : r->dcolumns;
    memset(buffer, 0, (size_t)((3 + 2 * steps) * size) * sizeof(REAL));

    /* Past its length, a row passes dh on unchanged, and dxw is zero (with ids, it is not read there). */
    for (int64_t i = 0; i < n; i++) {
        const int64_t length = length_of(r, row[i]);
        REAL *carried = carry + i * STRIDE;
        if (r->dhT) NAME(add)(carried, (const REAL *)r->dhT + row[i] * H, NULL, H);
        for (int64_t t = length; dh && t < T; t++) NAME(add)(carried, carried, dh + (row[i] * T + t) * H, H);
        if (!r->ids) memset(dxw + (row[i] * T + length) * H, 0, (size_t)((T - length) * H) * sizeof(REAL));
    }

    int64_t live = 0, held = 0; /* live: rows that have reached their last step; held: steps in the chunk */
    for (int64_t t = length_of(r, row[0]) - 1; t >= 0; t--) {
        for (; live < n && length_of(r, row[live]) > t; live++)
            NAME(add)(state + live * STRIDE, h + (row[live] * T + t) * H, NULL, H);
        REAL *da = das + held * size, *before = befores + held * size;
        for (int64_t i = 0; i < live; i++) {
            const int64_t step = row[i] * T + t;
            NAME(add)(before + i * STRIDE, t ? h + (step - 1) * H : h0 + row[i] * H, NULL, H);
            if (dh) NAME(add)(carry + i * STRIDE, carry + i * STRIDE, dh + step * H, H);
        }
        for (int64_t j = 0; j < P; j += LANES) {
            V sum = {0}; /* over the rows of a step; then over the steps of a chunk, then over chunks */
            for (int64_t i = 0; i < live; i++) {
                const V derivative = NAME(derivative)(*(V *)(state + i * STRIDE + j), r->nonlinearity);
                sum += *(V *)(da + i * STRIDE + j) = derivative * *(V *)(carry + i * STRIDE + j);
            }
            *(V *)(bias + j) += sum;
        }
        for (int64_t i = 0; i < live; i++) {
            const int64_t step = row[i] * T + t;
            if (call->tables) {
                REAL *column = table + r->ids[step] * H;
                NAME(add)(column, column, da + i * STRIDE, H);
                if (t > 1) NAME(prefetch)(table + r->ids[step - 2] * H, H);
            } else {
                NAME(add)(dxw + step * H, da + i * STRIDE, NULL, H);
            }
        }
        state = before; /* h[t-1]; rows that are not live yet have da = 0 and so add nothing */
        FOR_EACH_BLOCK(backward_block, NAME(rows)(live), call, da, carry, live)
        if (++held == steps || t == 0) {
            NAME(add_outer)(dWhh, das, befores, held * rows, H, P);
            NAME(add)(dbh, dbh, bias, P);
            memset(bias, 0, (size_t)P * sizeof(REAL));
            held = 0;
        }
    }
    for (int64_t i = 0; i < n; i++) NAME(add)((REAL *)r->dh0 + row[i] * H, carry + i * STRIDE, NULL, H);
}

/* Sums this thread's share of the columns of dWxh, from the threads' tables or from the rows of dxw. */
static void NAME(sum_columns)(Call *call, int64_t thread) {
    const Recurrence *r = call->r;
    const int64_t H = r->H, first = r->D * thread / r->threads, end = r->D * (thread + 1) / r->threads;
    REAL *dcolumns = r->dcolumns;
    if (call->tables) {
        for (int64_t i = 0; i < r->threads - 1; i++)
            NAME(add)(dcolumns + first * H, dcolumns + first * H, (REAL *)call->tables + (i * r->D + first) * H,
                      (end - first) * H);
        return;
    }
    for (int64_t b = 0; b < r->B; b++) {
        const int64_t *ids = r->ids + b * r->T, length = length_of(r, b);
        for (int64_t t = 0; t < length; t++)
            if (first <= ids[t] && ids[t] < end) {
                REAL *column = dcolumns + ids[t] * H;
                NAME(add)(column, column, (const REAL *)r->dxw + (b * r->T + t) * H, H);
            }
    }
}

static void NAME(forward_work)(Call *call, int64_t thread) {
    const int64_t P = NAME(padded)(call->r->H);
    REAL *buffer = aligned((size_t)(4 * ROWS * STRIDE) * sizeof(REAL));
    if (!buffer) { call->status = NO_MEMORY; return; }
    for (int64_t tile = 0; tile < call->tiles; tile++)
        if (call->owner[tile] == thread) NAME(forward_tile)(call, tile, buffer);
    free(buffer);
}

static void NAME(backward_work)(Call *call, int64_t thread) {
    const int64_t P = NAME(padded)(call->r->H);
    REAL *buffer = aligned((size_t)((3 * ROWS + 2 * NAME(chunk)(P)) * STRIDE) * sizeof(REAL));
    if (!buffer) { call->status = NO_MEMORY; return; }
    for (int64_t tile = 0; tile < call->tiles; tile++)
        if (call->owner[tile] == thread) NAME(backward_tile)(call, tile, thread, buffer);
    free(buffer);
}

/* y[j] = sum of rows[i][j] over i, in the order of i. */
static void NAME(reduce)(REAL *y, const REAL *rows, int64_t n, int64_t stride, int64_t columns) {
    NAME(add)(y, rows, NULL, columns);
    for (int64_t i = 1; i < n; i++) NAME(add)(y, y, rows + i * stride, columns);
}

static int NAME(run)(const Recurrence *given, int backward) {
    Recurrence r = *given;
    const int64_t all = r.threads;
    const int64_t P = NAME(padded)(r.H);
    Call call = {.r = &r, .tiles = (r.B + ROWS - 1) / ROWS};
    const int64_t most = call.tiles < MAX_THREADS ? call.tiles : MAX_THREADS;
    r.threads = r.threads < 1 ? 1 : r.threads > most && !(backward && r.ids) ? (most ? most : 1) : r.threads;
    if (r.threads > MAX_THREADS) r.threads = MAX_THREADS;
    /* Tables are zeroed, filled and added up; otherwise rows of dxw are written and read. Takes the cheaper way. */
    const int64_t others = (r.threads - 1) * r.D;
    if (backward && r.ids && 3 * others <= 2 * r.B * r.T) call.tables = calloc((size_t)(others * r.H) + 1, sizeof(REAL));
    const int64_t sums = backward ? r.threads * (P * P + P) : 0;
    call.order = aligned((size_t)(r.B + call.tiles) * sizeof(int64_t));
    call.packed = aligned((size_t)(P * r.H) * sizeof(REAL));
    call.dWhh = aligned((size_t)sums * sizeof(REAL));
    call.status = NO_MEMORY;
    if (call.order && call.packed && call.dWhh) call.status = sort_rows(&r, call.order);
    if (call.status == DONE) {
        call.owner = call.order + r.B;
        call.dbh = (REAL *)call.dWhh + r.threads * P * P;
        memset(call.dWhh, 0, (size_t)sums * sizeof(REAL));
        share_tiles(&r, call.order, call.tiles, r.threads, call.owner);
        NAME(pack)(call.packed, r.Whh, r.H, !backward);
        huge_pages(backward ? r.dxw : r.h, (size_t)(r.B * r.T * r.H) * sizeof(REAL));
        run_threads(&call, r.threads, all, backward ? NAME(backward_work) : NAME(forward_work));
    }
    if (backward && call.status == DONE) {
        for (int64_t j = 0; j < r.H; j++)
            NAME(reduce)((REAL *)r.dWhh + j * r.H, (REAL *)call.dWhh + j * P, r.threads, P * P, r.H);
        if (r.ids) {
            NAME(reduce)(r.dbh, call.dbh, r.threads, P, r.H);
            run_threads(&call, r.threads, all, NAME(sum_columns));
        }
    }
    free(call.order), free(call.packed), free(call.dWhh), free(call.tables);
    return call.status;
}

static int NAME(forward)(const Recurrence *r) { return NAME(run)(r, 0); }
static int NAME(backward)(const Recurrence *r) { return NAME(run)(r, 1); }

#undef STRIDE
#undef V
#undef U
#undef LANES
#undef BLOCK
#undef IS_FLOAT
#undef FOR_EACH_BLOCK
#undef BLOCKS
