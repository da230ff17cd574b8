/* What cpu.py passes to the kernels of cpu.c, and what one thread of them works on. */

#ifndef TORCH_RNN_CPU_H
#define TORCH_RNN_CPU_H

#include <stdint.h>

enum { TANH, RELU, LINEAR };
enum { DONE, NO_MEMORY, BAD_LENGTH, BAD_ID }; /* what a kernel returns */

/* Arrays are dense, in C order. Pointers are to float or double, as the kernel is. */
typedef struct {
    int64_t B, T, H;
    int64_t nonlinearity, threads;
    const int64_t *lengths; /* (B,), each in 0..T, or NULL: all T */
    const int64_t *ids;     /* (B, T), or NULL: xw is given */
    const void *xw;         /* (B, T, H): Wxh x + bh; not with ids */
    const void *columns;    /* (D, H): the columns of Wxh; with ids, each in 0..D-1 */
    const void *bh;         /* (H,); with ids */
    const void *Whh;        /* (H, H) */
    const void *h0;         /* (B, H) */
    void *h;                /* (B, T, H): written by forward, read by backward */
    void *hT;               /* (B, H) */
    const void *dh;         /* (B, T, H) or NULL: zeros */
    const void *dhT;        /* (B, H) or NULL: zeros */
    void *dxw;              /* (B, T, H); with ids only its real steps are written */
    void *dcolumns;         /* (D, H), zeros on entry; with ids */
    void *dbh;              /* (H,); with ids */
    void *dWhh;             /* (H, H) */
    void *dh0;              /* (B, H) */
    int64_t D;
} Recurrence;

#endif
