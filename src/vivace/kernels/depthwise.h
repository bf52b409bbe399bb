/* What depthwise convolutions and the gradients of their weights share.

   Maps lie channels last: value (n, h, w, c) at ((n H + h) W + w) C + c. So neighbouring channels fill a vector. Rows of
   a few channels at a time are kept as floats in a ring, with zeros on both sides: what lies beyond the border needs no
   case of its own, and each value is converted once. Sums are taken in float, in an order that does not depend on the
   number of threads. */

#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
/* vectors side by side: channels of a block, a cache line of bf16 where vectors are widest */
#define VECTORS 2
#define BLOCK (VECTORS * LANES)
#define MAX_TAPS 7
#define ALWAYS static inline __attribute__((always_inline))

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits_vec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES)));

static inline int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
static inline int64_t at_least(int64_t value, int64_t limit) { return value > limit ? value : limit; }

/* `left` of the lanes from `map` + at on, zeros in the others. */
ALWAYS vec load(const void *map, int64_t at, int64_t left, const int is_bf16) {
    if (is_bf16) {
        half_vec halves = {0};
        if (left >= LANES) memcpy(&halves, (const bf16 *)map + at, sizeof halves);
        else memcpy(&halves, (const bf16 *)map + at, (size_t)left * sizeof(bf16));
        return (vec)(__builtin_convertvector(halves, bits_vec) << 16);
    }
    vec values = {0};
    if (left >= LANES) memcpy(&values, (const float *)map + at, sizeof values);
    else memcpy(&values, (const float *)map + at, (size_t)left * sizeof(float));
    return values;
}

ALWAYS void store(void *map, int64_t at, int64_t left, const int is_bf16, vec values) {
    size_t lanes = (size_t)at_most(left, LANES);
    if (is_bf16) {
        bits_vec bits = (bits_vec)values, number = (bits_vec)(values == values);
        bits_vec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        /* rounding must not carry a NaN into infinity */
        half_vec halves = __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), half_vec);
        if (lanes == LANES) memcpy((bf16 *)map + at, &halves, sizeof halves);
        else memcpy((bf16 *)map + at, &halves, lanes * sizeof(bf16));
    } else if (lanes == LANES) {
        memcpy((float *)map + at, &values, sizeof values);
    } else {
        memcpy((float *)map + at, &values, lanes * sizeof(float));
    }
}

/* Rows of a block of channels as vectors, zeros around them: row r of vector v begins at
   values + (v rows + r % rows) width, its column 0 lies `margin` further on. */
struct ring {
    vec *values;
    int64_t rows, width, margin;
};

static vec *ring_row(const struct ring *ring, int64_t v, int64_t r) {
    return ring->values + (v * ring->rows + r % ring->rows) * ring->width + ring->margin;
}

/* `columns` pixels from `map` on, channels [c, C), into row r. */
ALWAYS void pack_typed(const struct ring *ring, int64_t r, const void *map, int64_t columns, int64_t c, int64_t C,
                       const int is_bf16) {
    vec *to = ring_row(ring, 0, r);
    if (c + BLOCK <= C) {
        for (int64_t w = 0; w < columns; w++)
            for (int64_t v = 0; v < VECTORS; v++)
                to[v * ring->rows * ring->width + w] = load(map, w * C + c + v * LANES, LANES, is_bf16);
    } else {
        for (int64_t v = 0; c + v * LANES < C; v++)
            for (int64_t w = 0; w < columns; w++)
                to[v * ring->rows * ring->width + w] = load(map, w * C + c + v * LANES, C - c - v * LANES, is_bf16);
    }
}

static void pack(const struct ring *ring, int64_t r, const void *map, int64_t at, int64_t columns, int64_t c, int64_t C,
                 int64_t is_bf16) {
    if (is_bf16) pack_typed(ring, r, (const bf16 *)map + at, columns, c, C, 1);
    else pack_typed(ring, r, (const float *)map + at, columns, c, C, 0);
}

static void *alloc_zeros(int64_t bytes) {
    size_t size = (size_t)(bytes + 63) / 64 * 64;
    void *found = aligned_alloc(64, size);
    return found ? memset(found, 0, size) : NULL;
}

static int open_ring(struct ring *ring, int64_t rows, int64_t width, int64_t margin) {
    *ring = (struct ring){.rows = rows, .width = width, .margin = margin};
    ring->values = alloc_zeros(VECTORS * rows * width * (int64_t)sizeof(vec));
    return ring->values != NULL;
}

/* A run of work: `all` images times chunks of blocks of channels, as many as keep all threads busy. */
struct share {
    int64_t blocks, chunks, items;
};

static struct share share_work(int64_t all, int64_t C, int64_t threads) {
    int64_t blocks = (C + BLOCK - 1) / BLOCK, wanted = threads > 1 ? (4 * threads + all - 1) / all : 1;
    int64_t chunks = at_most(at_least(wanted, 1), blocks);
    return (struct share){.blocks = blocks, .chunks = chunks, .items = all * chunks};
}

#define FIRST_BLOCK(share, item) ((share).blocks * ((item) % (share).chunks) / (share).chunks)
#define END_BLOCK(share, item) ((share).blocks * ((item) % (share).chunks + 1) / (share).chunks)

/* Rows of filters, by taps: for each the loops are unrolled. */
#define EACH_TAPS(what, step) what(1, step) what(2, step) what(3, step) what(4, step) what(5, step) what(6, step) what(7, step)
