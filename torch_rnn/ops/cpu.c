/* h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh) for all t, fused: the backend "cpu".
 *
 * Eight sequences of similar length form a tile. One thread computes all steps of a tile, up to the end of its
 * longest sequence, so that no step waits for another thread. The kernels of cpu_kernel.h are compiled here for
 * float and double and for each instruction set, of which one is chosen at run time.
 *
 * This is plain C, without Python or PyTorch. Several threads may call it at once, also after a fork.
 */

#include "cpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ROWS 8 /* sequences in a tile */
#define MAX_THREADS 256
#define INLINE static inline __attribute__((always_inline)) /* for arguments that are constants */
#define APART static __attribute__((noinline))              /* for a loop that needs all registers */

/* What all threads of a call share: the tiles, and which thread computes which tile. */
typedef struct {
    const Recurrence *r;
    int64_t *order;    /* (B,) the rows, longest first */
    int64_t tiles;     /* tile i is order[8 i : 8 i + 8] */
    int64_t *owner;    /* (tiles,) the thread that computes the tile */
    void *packed;      /* Whh or its transpose, in the kernel's layout */
    void *dWhh, *dbh;  /* (threads, ...) the sums of each thread */
    void *tables;      /* (threads - 1, D, H) dcolumns of all threads but the first; if NULL, dxw is stored */
    _Atomic int status;
} Call;

/* Work to be done once for each number below `threads`. Any system thread may take the next number. */
typedef struct {
    Call *call;
    void (*work)(Call *, int64_t);
    int64_t threads;
    _Atomic int64_t next;
} Team;

static int64_t length_of(const Recurrence *r, int64_t row) { return r->lengths ? r->lengths[row] : r->T; }

static void *aligned(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, bytes ? bytes : 64) ? NULL : memory;
}

/* Asks for 2 MiB pages. New memory has 4 KiB pages, and the first access to each page is slow. */
static void huge_pages(void *memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)2 << 20;
    uintptr_t start = ((uintptr_t)memory + page - 1) & ~(page - 1), end = ((uintptr_t)memory + bytes) & ~(page - 1);
    if (memory && start < end) madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

/* Sorts rows by length, longest first; rows of equal length keep their order (counting sort). */
static int sort_rows(const Recurrence *r, int64_t *order) {
    for (int64_t b = 0; b < r->B; b++)
        if (length_of(r, b) < 0 || length_of(r, b) > r->T) return BAD_LENGTH;
    int64_t *start = calloc((size_t)r->T + 2, sizeof *start);
    if (!start) return NO_MEMORY;
    for (int64_t b = 0; b < r->B; b++) start[r->T - length_of(r, b) + 1]++;
    for (int64_t i = 0; i <= r->T; i++) start[i + 1] += start[i];
    for (int64_t b = 0; b < r->B; b++) order[start[r->T - length_of(r, b)]++] = b;
    free(start);
    return DONE;
}

/* Gives each tile, longest first, to the thread with the least work. The result is the same at each call. */
static void share_tiles(const Recurrence *r, const int64_t *order, int64_t tiles, int64_t threads, int64_t *owner) {
    int64_t load[MAX_THREADS] = {0};
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t least = 0;
        for (int64_t thread = 1; thread < threads; thread++)
            if (load[thread] < load[least]) least = thread;
        owner[tile] = least;
        load[least] += length_of(r, order[ROWS * tile]) + 1;
    }
}

static void join_team(void *argument) {
    Team *team = argument;
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();
    _mm_setcsr(saved | 0x8040); /* flushes denormal numbers to zero: vanishing gradients would make them slow */
#endif
    for (int64_t i; (i = atomic_fetch_add(&team->next, 1)) < team->threads;) team->work(team->call, i);
#if defined(__x86_64__)
    _mm_setcsr(saved);
#endif
}

static void *join_team_of_threads(void *argument) { return join_team(argument), NULL; }

/* GOMP_parallel of the OpenMP runtime that PyTorch has loaded, or NULL, and the process that may use it (after a
 * fork, its threads no longer exist). After each PyTorch operation, OpenMP threads spin for some milliseconds
 * before they sleep; threads of our own would compete with them for the cores. */
static void (*openmp)(void (*)(void *), void *, unsigned, unsigned);
static pid_t process;

void torch_rnn_use_openmp(void *gomp_parallel) {
    memcpy(&openmp, &gomp_parallel, sizeof openmp);
    process = getpid();
}

/* Runs work(call, i) for each i below `threads`. The OpenMP team always has PyTorch's size, `all`, because
 * a change of size would stop and start threads. */
static void run_threads(Call *call, int64_t threads, int64_t all, void (*work)(Call *, int64_t)) {
    Team team = {.call = call, .work = work, .threads = threads};
    if (threads > 1 && openmp && process == getpid()) {
        openmp(join_team, &team, (unsigned)all, 0);
        return;
    }
    pthread_t handles[MAX_THREADS];
    int64_t made = 0;
    while (made < threads - 1 && pthread_create(&handles[made], NULL, join_team_of_threads, &team) == 0) made++;
    join_team(&team);
    while (made > 0) pthread_join(handles[--made], NULL);
}

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(name) JOIN(name, REAL, ISA)

/* Vector operations that C lacks: minimum and maximum, which are the second argument where one of them is NaN, and
 * 1/x of floats to at least 12 bits. */
#define min_float_avx512 _mm512_min_ps
#define max_float_avx512 _mm512_max_ps
#define min_double_avx512 _mm512_min_pd
#define max_double_avx512 _mm512_max_pd
#define rcp_float_avx512 _mm512_rcp14_ps
#define rcp_double_avx512(x) (x) /* not used */
#define min_float_avx2 _mm256_min_ps
#define max_float_avx2 _mm256_max_ps
#define min_double_avx2 _mm256_min_pd
#define max_double_avx2 _mm256_max_pd
#define rcp_float_avx2 _mm256_rcp_ps
#define rcp_double_avx2(x) (x)
#define SELECT(condition, a, b)                                                                               \
    ((__typeof__(a))(((condition) & (__typeof__(condition))(a)) | (~(condition) & (__typeof__(condition))(b))))
#define min_float_generic(a, b) SELECT((a) < (b), a, b)
#define max_float_generic(a, b) SELECT((a) > (b), a, b)
#define min_double_generic min_float_generic
#define max_double_generic max_float_generic
#define rcp_float_generic(x) (1 / (x))
#define rcp_double_generic(x) (x)

#if defined(__x86_64__) && defined(__GNUC__)

#define ISA avx512
#define BYTES 64
#define VECTORS 2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif
#define REAL float
#include "cpu_kernel.h"
#undef REAL
#define REAL double
#include "cpu_kernel.h"
#undef REAL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef ISA
#undef BYTES
#undef VECTORS

#define ISA avx2
#define BYTES 32
#define VECTORS 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define REAL float
#include "cpu_kernel.h"
#undef REAL
#define REAL double
#include "cpu_kernel.h"
#undef REAL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef ISA
#undef BYTES
#undef VECTORS

#endif

#define ISA generic
#define BYTES 16
#define VECTORS 1
#define REAL float
#include "cpu_kernel.h"
#undef REAL
#define REAL double
#include "cpu_kernel.h"
#undef REAL

/* Returns the fastest instruction set that the processor has: 0 AVX-512, 1 AVX2, 2 generic. */
int torch_rnn_best(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 0;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 2;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define DISPATCH(name, real)                                                                                  \
    (isa == 0 ? name##_##real##_avx512(r) : isa == 1 ? name##_##real##_avx2(r) : name##_##real##_generic(r))
#else
#define DISPATCH(name, real) ((void)isa, name##_##real##_generic(r))
#endif

/* The size of the struct, which cpu.py compares with its own definition. */
int64_t torch_rnn_size(void) { return sizeof(Recurrence); }

/* Each returns DONE or the reason for its failure. */
int torch_rnn_forward_float(const Recurrence *r, int isa) { return DISPATCH(forward, float); }
int torch_rnn_forward_double(const Recurrence *r, int isa) { return DISPATCH(forward, double); }
int torch_rnn_backward_float(const Recurrence *r, int isa) { return DISPATCH(backward, float); }
int torch_rnn_backward_double(const Recurrence *r, int isa) { return DISPATCH(backward, double); }
