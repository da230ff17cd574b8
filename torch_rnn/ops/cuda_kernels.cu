/* The kernels of cuda_backend.py: h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh).
 *
 * A block computes all steps of a sequence, then those of the next one, and keeps Whh in registers. Time comes first:
 * h is (T, B, H). P is H rounded up to 32, 64 or 128; the padding of Whh and of vectors is zero. Memory is slower than
 * a step, so the inputs of a step are loaded AHEAD steps before. ids and lengths are clamped to valid values.
 * The tests compile this file for the CPU too. */

enum { TANH, RELU, LINEAR };
constexpr int AHEAD = 8; /* even, because steps alternate between two buffers */
constexpr int RUN = 64;  /* rows that one thread adds up in sum_runs */

struct Call { /* FIELDS in cuda_backend.py */
  long long B, T, H, D;
  const float *xw, *columns, *bh, *Whh, *h0;
  const long long *ids, *lengths;
  float *hs, *hT;
  const float *dhs, *dhT;
  long long dhs_step, dhs_row; /* distance from step to step and from row to row of dhs */
  float *das, *dh0, *partials;
  void *keys;
  const long long *order;
  float *dcolumns, *borders;
};

/* The share of a thread in a product with a (P, P) matrix: R outputs, and C of the P inputs. S lanes of a warp have the
 * same outputs and different inputs. After the product, a thread has the sum of output `mine`. */
template <int P, bool BACKWARD> struct Share {
  static constexpr int R = P == 32 ? 1 : P == 64 ? 2 : BACKWARD ? 4 : 2;
  static constexpr int S = P == 32 ? 1 : P == 64 ? 4 : BACKWARD ? 8 : 2;
  static constexpr int C = P / S, THREADS = P / R * S, GROUP = 32 / S;
  int part, group, first, mine;
  bool first_copy, owner; /* first_copy: no earlier lane has the same sum; owner: it is not padding either */
  __device__ explicit Share(int H) {
    const int lane = threadIdx.x % 32;
    part = lane / GROUP, group = lane % GROUP;
    first = (threadIdx.x / 32 * GROUP + group) * R;
    mine = first + part % R;
    first_copy = part < R;
    owner = first_copy && mine < H;
  }
  /* The number of input c. Neighbouring parts read neighbouring groups of four, which shared memory does at once. */
  __device__ int input(int c) const { return (c / 4 * S + part) * 4 + c % 4; }
  __device__ void sync() const {
    if (THREADS == 32) __syncwarp(); else __syncthreads();
  }
};

#ifndef EMULATED
__device__ __forceinline__ float reciprocal(float q) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(q));
  return r;
}
#endif

/* Computes tanh to 3 units in the last place. cpu_kernel.h explains the formula; Estrin's scheme shortens it. */
__device__ __forceinline__ float tanh_of(float x) {
  const float u = x * x, v = u * u;
  float p = fmaf(fmaf(0.00349445536477f, u, 0.133800854105f), u, 0.999999979829f);
  p = fmaf(fmaf(1.33266064998e-8f, u, 2.05897750219e-5f), u * v, p);
  const float high = fmaf(fmaf(7.76535413705e-7f, u, 0.000328375379692f), u, 0.0258727147282f);
  const float q = fmaf(high, v, fmaf(0.467134012286f, u, 1.0f));
  const float r = reciprocal(q), n = x * p;
  float y = n * r;
  y = fmaf(fmaf(-q, y, n), r, y); /* corrects the approximate reciprocal */
  return fabsf(x) > 9.02f || fabsf(y) > 1.0f ? copysignf(1.0f, x) : y; /* NaN stays NaN */
}

template <int F> __device__ __forceinline__ float apply(float a) {
  return F == TANH ? tanh_of(a) : F == RELU && a < 0 ? 0 : a;
}

/* Returns f'(a) as a function of h = f(a). */
template <int F> __device__ __forceinline__ float derivative(float h) {
  return F == TANH ? fmaf(-h, h, 1.0f) : F == RELU ? (h > 0 ? 1.0f : 0.0f) : 1.0f;
}

__device__ __forceinline__ long long clamp(long long i, long long end) { return i < 0 ? 0 : i < end ? i : end - 1; }

/* The same for 0 < end < 2^31, with fewer instructions. */
__device__ __forceinline__ int clamp_id(long long id, int end) {
  const int high = id >> 32;
  const unsigned low = id, last = end - 1;
  return high == 0 ? (low < last ? low : last) : high < 0 ? 0 : last;
}

__device__ __forceinline__ int length(const Call &call, long long b) {
  return call.lengths ? clamp(call.lengths[b], call.T + 1) : call.T;
}

/* Loads the weights of a thread: w[r][c] = W[first + r][input(c)], or W[input(c)][first + r] if BACKWARD. */
template <int P, bool BACKWARD, int R, int C>
__device__ __forceinline__ void load_weights(float (&w)[R][C], const float *W, int H, const Share<P, BACKWARD> &share) {
  if (!BACKWARD && H % 4 == 0 && (long long)W % 16 == 0) { /* four at once, because lanes read different rows */
#pragma unroll
    for (int i = 0; i < R * C; i += 4) {
      const int r = i / C, c = i % C, row = share.first + r, column = share.input(c);
      const bool inside = row < H && column < H;
      const float4 four = inside ? __ldg((const float4 *)(W + row * H + column)) : float4{0, 0, 0, 0};
      w[r][c] = four.x, w[r][c + 1] = four.y, w[r][c + 2] = four.z, w[r][c + 3] = four.w;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < R * C; i++) {
    const int r = i / C, c = i % C, output = share.first + r, input = share.input(c);
    w[r][c] = output < H && input < H ? __ldg(W + (BACKWARD ? input * H + output : output * H + input)) : 0;
  }
}

template <int P, bool BACKWARD, int C>
__device__ __forceinline__ void read(float (&v)[C], const float *vector, const Share<P, BACKWARD> &share) {
#pragma unroll
  for (int c = 0; c < C; c += 4) {
    const float4 four = *(const float4 *)(vector + share.input(c));
    v[c] = four.x, v[c + 1] = four.y, v[c + 2] = four.z, v[c + 3] = four.w;
  }
}

/* Returns the sum over all inputs of w v for output `mine`, plus `start`. */
template <int P, bool BACKWARD, int R, int C>
__device__ __forceinline__ float product(
    const float (&w)[R][C], const float (&v)[C], float start, const Share<P, BACKWARD> &share) {
  constexpr int S = Share<P, BACKWARD>::S, GROUP = Share<P, BACKWARD>::GROUP;
  constexpr int CHAINS = R == 4 ? 2 : 4; /* sums of an output that do not wait for each other */
  float sum[R];
#pragma unroll
  for (int r = 0; r < R; r++) {
    float chain[CHAINS] = {S == 1 ? start : 0};
#pragma unroll
    for (int c = 0; c < C; c++) chain[c % CHAINS] = fmaf(w[r][c], v[c], chain[c % CHAINS]);
    sum[r] = chain[0] + chain[1];
    if (CHAINS == 4) sum[r] += chain[CHAINS - 2] + chain[CHAINS - 1];
  }
  /* Each lane keeps half of its outputs and sends the other half, until it has one. */
#pragma unroll
  for (int d = R / 2; d > 0; d /= 2)
#pragma unroll
    for (int r = 0; r < d; r++) {
      const bool upper = share.part & d;
      const float kept = upper ? sum[r + d] : sum[r], sent = upper ? sum[r] : sum[r + d];
      sum[r] = kept + __shfl_xor_sync(~0u, sent, d * GROUP);
    }
#pragma unroll
  for (int d = R; d < S; d *= 2) sum[0] += __shfl_xor_sync(~0u, sum[0], d * GROUP);
  return S == 1 ? sum[0] : sum[0] + start;
}

template <int P, int F, bool IDS>
__global__ void __launch_bounds__(Share<P, false>::THREADS, 1) forward(Call call) {
  extern __shared__ __align__(16) float shared[]; /* two vectors of P */
  constexpr int R = Share<P, false>::R, C = Share<P, false>::C;
  const Share<P, false> share(call.H);
  const int j = share.mine;
  const long long step = call.B * call.H;
  float w[R][C];
  load_weights<P, false>(w, call.Whh, call.H, share);
  const int D = call.D, column_bytes = call.H * sizeof(float);
  const char *columns = (const char *)(call.columns + j);
  const float bias = IDS && share.owner ? call.bh[j] : 0;
  for (long long b = blockIdx.x; b < call.B; b += gridDim.x) {
    const int n = length(call, b);
    const long long *ids = call.ids + (IDS ? b * call.T : 0);
    const float *xw = IDS ? 0 : call.xw + b * call.H + j;
    auto load_id = [&](bool real, const long long *id) { return IDS && real ? __ldg(id) : 0; };
    auto load_x = [&](bool real, long long id, const float *x) {
      if (IDS) x = (const float *)(columns + (long long)clamp_id(id, D) * column_bytes);
      return share.owner && real ? __ldg(x) : 0;
    };
    float *hs = call.hs + b * call.H + j;
    float h = share.owner ? call.h0[b * call.H + j] : 0;
    if (share.first_copy) shared[j] = shared[P + j] = h; /* the padding stays zero */
    float x[AHEAD];
    long long id[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) id[i] = load_id(i < n, ids + i);
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      x[i] = load_x(i < n, id[i], xw + i * step);
      id[i] = load_id(i + AHEAD < n, ids + i + AHEAD);
    }
    share.sync();

    /* Computes step t from x_t. The last state is in `now`, the next one goes to `next`. */
    auto compute = [&](float x_t, const float *now, float *next) {
      float v[C];
      read(v, now, share);
      h = apply<F>(product(w, v, x_t + bias, share));
      if (share.owner) next[j] = h;
      share.sync();
      if (share.owner) *hs = h;
      hs += step;
    };
    int t = 0;
    const float *x_next = xw + AHEAD * step;
    const long long *ids_next = ids + 2 * AHEAD;
    for (; t + AHEAD <= n; t += AHEAD, ids_next += AHEAD)
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const float x_t = x[i];
        x[i] = load_x(t + i + AHEAD < n, id[i], x_next);
        id[i] = load_id(t + i + 2 * AHEAD < n, ids_next + i);
        x_next += step;
        compute(x_t, shared + i % 2 * P, shared + (i + 1) % 2 * P);
      }
#pragma unroll 1
    for (; t < n; t++)
      compute(load_x(true, load_id(true, ids + t), xw + t * step), shared + t % 2 * P, shared + (t + 1) % 2 * P);
    for (; t < call.T; t++, hs += step)
      if (share.owner) *hs = h;
    if (share.owner) call.hT[b * call.H + j] = h;
  }
}

/* Computes das, dh0, and one partial (H + 1, H) of a block: its share of dWhh, and dbh as the last row. */
template <int P, int F, bool DHS>
__global__ void __launch_bounds__(Share<P, true>::THREADS, 1) backward(Call call) {
  extern __shared__ __align__(16) float shared[]; /* two vectors of P */
  constexpr int R = Share<P, true>::R, C = Share<P, true>::C;
  const Share<P, true> share(call.H);
  const int k = share.mine;
  const long long step = call.B * call.H;
  float w[R][C], dw[R][C];
  load_weights<P, true>(w, call.Whh, call.H, share);
  if (share.first_copy) shared[k] = shared[P + k] = 0; /* the padding stays zero */
  for (long long b = blockIdx.x; b < call.B; b += gridDim.x) {
    const int n = length(call, b);
    const float *hs = call.hs + b * call.H + k, *dhs = DHS ? call.dhs + b * call.dhs_row + k : 0;
    const float h_first = share.owner ? call.h0[b * call.H + k] : 0;
    float *das = call.das + b * call.H + k;
    auto state = [&](int t) { return share.owner && t >= 0 ? __ldg(hs + t * step) : 0; };
    auto upstream = [&](int t) { return DHS && share.owner && t >= 0 ? __ldg(dhs + t * call.dhs_step) : 0; };
    float dh = call.dhT && share.owner ? call.dhT[b * call.H + k] : 0, dbh = 0;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int c = 0; c < C; c++) dw[r][c] = 0;
#pragma unroll 4
    for (int t = call.T - 1; t >= n; t--) {
      dh += upstream(t);
      if (share.owner) das[t * step] = 0;
    }
    das += (n - 1) * step;
    float h[AHEAD], up[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) h[i] = state(n - 1 - i), up[i] = upstream(n - 1 - i);

    /* Computes step t from h[t], its gradient from above, and h[t-1]. Threads exchange da through `vector`. */
    auto compute = [&](float h_t, float up_t, float h_before, float *vector) {
      const float da = derivative<F>(h_t) * (dh + up_t);
      if (share.owner) vector[k] = da;
      share.sync();
      if (share.owner) *das = da;
      das -= step;
      dbh += da;
      float v[C];
      read(v, vector, share);
      dh = product(w, v, 0, share);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const float h_r = R == 1 ? h_before : __shfl_sync(~0u, h_before, share.group + r * Share<P, true>::GROUP);
#pragma unroll
        for (int c = 0; c < C; c++) dw[r][c] = fmaf(v[c], h_r, dw[r][c]);
      }
    };
    int t = n - 1;
    const float *h_next = hs + (t - AHEAD) * step, *up_next = dhs + (t - AHEAD) * call.dhs_step;
    for (; t >= AHEAD - 1; t -= AHEAD)
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const float h_t = h[i], up_t = up[i];
        const bool more = share.owner && t - i >= AHEAD;
        h[i] = more ? __ldg(h_next) : 0;
        up[i] = DHS && more ? __ldg(up_next) : 0;
        h_next -= step, up_next -= call.dhs_step;
        const float h_before = i < AHEAD - 1 ? h[i + 1] : t > i ? h[0] : h_first;
        compute(h_t, up_t, h_before, shared + i % 2 * P);
      }
#pragma unroll 1
    for (int i = 0; t >= 0; t--, i++) {
      const float h_before = t > 0 ? state(t - 1) : h_first;
      compute(state(t), upstream(t), h_before, shared + i % 2 * P);
    }
    share.sync(); /* before the next sequence writes to `shared` */

    if (share.owner) call.dh0[b * call.H + k] = dh;
    int H = call.H;
    asm volatile("" : "+r"(H)); /* otherwise the compiler keeps all addresses below in registers during the steps */
    float *partial = call.partials + blockIdx.x * (H + 1LL) * H;
    /* One thread adds to an address, in the order of its sequences, so that the sum is always the same. An atomic
     * addition needs no register for the old value. */
    auto store = [&](float *sum, float value) {
      if (b < gridDim.x) *sum = value; else atomicAdd(sum, value);
    };
#pragma unroll
    for (int i = 0; i < R * C; i++) {
      const int row = share.input(i / R), column = share.first + i % R;
      if (row < H && column < H) store(partial + row * H + column, dw[i % R][i / R]);
    }
    if (share.owner) store(partial + H * H + k, dbh);
  }
}

/* Fills keys (T, B) with the ids, and D for padding. */
template <class Key> __global__ void make_keys(Call call) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x, t = i / call.B, b = i % call.B;
  if (i < call.T * call.B)
    ((Key *)call.keys)[i] = t < length(call, b) ? clamp(call.ids[b * call.T + t], call.D) : call.D;
}

/* Adds up the rows of das (T B, H) that have the same key. Keys are sorted, and order has their rows. A block has RUN
 * keys. If other blocks have the same key, its sum goes to borders (blocks, 2, H): to entry 1 in the block where the
 * key begins, to entry 0 in the others. */
template <class Key> __global__ void sum_runs(Call call) {
  const Key *keys = (const Key *)call.keys;
  const long long N = call.T * call.B, begin = (long long)blockIdx.x * RUN, end = begin + RUN < N ? begin + RUN : N;
  const int j = threadIdx.x;
  float *borders = call.borders + blockIdx.x * 2 * call.H + j, sum = 0;
  long long key = keys[begin];
  bool began_before = begin > 0 && keys[begin - 1] == key;
  auto store = [&](bool goes_on) {
    if (key >= call.D || j >= call.H) return;
    *(began_before ? borders : goes_on ? borders + call.H : call.dcolumns + key * call.H + j) = sum;
  };
  for (long long i = begin; i < end; i += 8) {
    long long next[8];
    float da[8];
#pragma unroll
    for (int u = 0; u < 8; u++) {
      next[u] = i + u < end ? keys[i + u] : call.D;
      da[u] = next[u] < call.D && j < call.H ? call.das[call.order[i + u] * call.H + j] : 0;
    }
#pragma unroll
    for (int u = 0; u < 8; u++)
      if (i + u < end) {
        if (next[u] != key) {
          store(false);
          key = next[u], sum = 0, began_before = false;
        }
        sum += da[u];
      }
  }
  store(end < N && keys[end] == key);
}

/* Adds up the borders of a key that begins in this block of sum_runs and goes on in the next one. The threads are
 * groups of P, which take the blocks in turn; shared memory has one vector for each group. */
template <class Key, int P> __global__ void sum_borders(Call call) {
  extern __shared__ __align__(16) float shared[];
  const Key *keys = (const Key *)call.keys;
  const long long N = call.T * call.B, begin = (long long)blockIdx.x * RUN, end = begin + RUN;
  if (end >= N) return;
  const long long key = keys[end - 1];
  const bool begins = keys[begin] != key || begin == 0 || keys[begin - 1] != key;
  if (key >= call.D || keys[end] != key || !begins) return;
  const int j = threadIdx.x % P, group = threadIdx.x / P, groups = blockDim.x / P;
  float sum = 0;
  for (long long block = blockIdx.x + 1 + group; block * RUN < N && keys[block * RUN] == key; block += groups)
    if (j < call.H) sum += call.borders[block * 2 * call.H + j];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (group > 0 || j >= call.H) return;
  sum = call.borders[(blockIdx.x * 2 + 1) * call.H + j];
  for (int g = 0; g < groups; g++) sum += shared[g * P + j];
  call.dcolumns[key * call.H + j] = sum;
}
