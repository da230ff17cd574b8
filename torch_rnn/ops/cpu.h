/* The arguments that cpu.py passes to the kernels of cpu.c. */

#ifndef TORCH_RNN_CPU_H
#define TORCH_RNN_CPU_H

#include <stdint.h>

enum { TANH, RELU, LINEAR };
enum { DONE, NO_MEMORY, BAD_LENGTH, BAD_ID }; /* what a kernel returns */

/* Arrays are contiguous, in C order. A void pointer is to floats or doubles, depending on the kernel. */
typedef struct {
    int64_t B, T, H;
    int64_t nonlinearity, threads;
    const int64_t *lengths; /* (B,), each in 0..T; if NULL, all are T */
    const int64_t *ids;     /* (B, T); if NULL, xw is used */
    const void *xw;         /* (B, T, H): Wxh x + bh; without ids */
    const void *columns;    /* (D, H): the columns of Wxh; with ids, which are in 0..D-1 */
    const void *bh;         /* (H,); with ids */
    const void *Whh;        /* (H, H) */
    const void *h0;         /* (B, H) */
    void *h;                /* (B, T, H): written by forward, read by backward */
    void *hT;               /* (B, H) */
    const void *dh;         /* (B, T, H); if NULL, zeros */
    const void *dhT;        /* (B, H); if NULL, zeros */
    void *dxw;              /* (B, T, H); with ids, only real steps are written */
    void *dcolumns;         /* (D, H), must be zeros before the call; with ids */
    void *dbh;              /* (H,); with ids */
    void *dWhh;             /* (H, H) */
    void *dh0;              /* (B, H) */
    int64_t D;
} Recurrence;

#endif
