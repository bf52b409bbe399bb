/* What winograd.c and winograd_gradients.c share: tiles, and the transforms of Winograd's minimal filtering
   (arXiv:1509.09308) for 3×3 filters, by AVX-512.

   Maps lie channels last: value (n, h, w, c) at ((n H + h) W + w) C + c. A tile is m×m outputs, m 2 or 4, which come from
   n×n inputs d, n = m + 2: Y = At [(G w Gt) . (Bt d B)] A, a sum over channels for each of n×n points by itself, so
   that these are matrix products. Its height and width may differ. The gradient of the weights is Gt [sum over tiles of
   (Bt d B) . (A g At)] G. Both sides of a product are rounded to bf16, sums are taken in float.

   If 2×2 maxima of the outputs are requested, only they and their argmax are written: 0, 1, 2, 3, row by row. Their
   gradient is read in place of that of the outputs, which is zero elsewhere. An odd last row or column is left out.

   The matrices evaluate polynomials at 0, 1, -1 and infinity (m = 2), or at 0, 3/4, -3/4, 3/2, -3/2 and infinity (m = 4):
   of the points that were tried those with the least error; 0, 1, -1, 2, -2 have a larger one. */

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

#define LANES 16
/* points of a side, and in all, for m = 4 */
#define MAX_SIDE 6
#define MAX_POINTS 36
/* vectors of filters that are multiplied at once, by this many tiles (or channels) */
#define VECTORS 4
#define ROWS 6
/* number of channels up to which pixels are prefetched */
#define FETCHED_CHANNELS 128
/* padding between points, so that the same position in each does not map to one set of the cache */
#define POINT_PAD 32

/* the points of m = 4 are 0, P, -P, Q, -Q, infinity */
#define P 0.75f
#define Q 1.5f
#define PP (P * P)
#define QQ (Q * Q)

#define ALWAYS static inline __attribute__((always_inline))
#define SPLAT(value) _mm512_set1_ps(value)
#define ADD _mm512_add_ps
#define SUB _mm512_sub_ps
#define MUL _mm512_mul_ps
/* a b + c and c - a b */
#define MULADD _mm512_fmadd_ps
#define MULSUB _mm512_fnmadd_ps

/* N maps of H×W, and which of their outputs are computed: `down` by `across` tiles from (top, left) on. zeros: a pixel
   outside of the map. */
struct maps {
    int64_t N, H, W, top, left, down, across;
    const bf16 *zeros;
};

static int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static void *alloc_aligned(int64_t bytes) { return aligned_alloc(64, (size_t)round_up(bytes, 64)); }

static inline int64_t tiles_of(const struct maps *maps) { return maps->N * maps->down * maps->across; }

static inline __mmask16 lanes_left(int64_t channels, int64_t from) {
    int64_t left = channels - from;
    return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
}

/* 16 channels of a pixel as floats. */
ALWAYS __m512 floats(const bf16 *at, __mmask16 left) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(left, at)), 16));
}

ALWAYS __m256i rounded(__m512 value) { return (__m256i)_mm512_cvtneps_pbh(value); }

/* Addresses of the pixels of tile t, mh×mw of them and `border` more on each side; `outside` beyond the map.
   maxima: address of the maximum of a pixel's 2×2 block, in a map of half the sides. */
ALWAYS void tile_pointers(const int mh, const int mw, const int border, const int maxima, const struct maps *maps,
                   const bf16 *map, int64_t channels, int64_t t, const bf16 *outside, const bf16 *at[]) {
    const int high = mh + 2 * border, wide = mw + 2 * border, of = maxima ? 2 : 1;
    int64_t n = t / (maps->down * maps->across), place = t % (maps->down * maps->across);
    int64_t h = maps->top + mh * (place / maps->across) - border, w = maps->left + mw * (place % maps->across) - border;
    int64_t rows = maps->H / of, columns = maps->W / of;
    const bf16 *image = map + n * rows * columns * channels;
    for (int i = 0; i < high; i++)
        for (int j = 0; j < wide; j++) {
            int there = n < maps->N && h + i >= 0 && h + i < of * rows && w + j >= 0 && w + j < of * columns;
            at[wide * i + j] = there ? image + ((h + i) / of * columns + (w + j) / of) * channels : outside;
        }
}

/* Position of pixel (i, j) of a tile with `border` in its 2×2 block: tiles begin at even pixels. */
#define CORNER(border, i, j) (2 * (((i) + (border)) % 2) + ((j) + (border)) % 2)

/* The channels of a pixel of a map that is given by its 2×2 maxima: zero where another pixel was the maximum. */
ALWAYS __m512 floats_of_maxima(const bf16 *at, const uint8_t *argmax, int corner, __mmask16 left) {
    __m128i winners = _mm_maskz_loadu_epi8(left, argmax);
    return floats(at, _mm_mask_cmpeq_epi8_mask(left, winners, _mm_set1_epi8((char)corner)));
}

/* The argmax of the maxima at these addresses of `map`. */
ALWAYS void argmax_pointers(const int count, const struct maps *maps, const bf16 *map, const uint8_t *argmax,
                            const bf16 *const at[], const uint8_t *argmax_at[]) {
    for (int i = 0; i < count; i++)
        argmax_at[i] = at[i] == maps->zeros ? (const uint8_t *)maps->zeros : argmax + (at[i] - map);
}

/* Prefetches the pixels of the tile after the next one, mw in each row: there are too many rows, and too little is read
   from each, for the hardware's prefetcher. With many channels it does see them, and they would fill the L1 cache. */
ALWAYS void fetch(const int mh, const int mw, const int border, const int maxima, const struct maps *maps,
                  const bf16 *const at[], int64_t channels) {
    const int high = mh + 2 * border, wide = mw + 2 * border, ahead = maxima ? mw / 2 : mw;
    if (channels > FETCHED_CHANNELS) return;
    for (int i = 0; i < high; i++) {
        const bf16 *row = at[wide * i + border];
        if (row == maps->zeros || (maxima && (i + border) % 2)) continue;
        for (int64_t c = 0; c < ahead * channels; c += 2 * LANES)
            _mm_prefetch((const char *)(row + 2 * ahead * channels + c), _MM_HINT_T0);
    }
}

/* Bt d: n values to n points. */
ALWAYS void input_points(const int m, const __m512 *d, __m512 *p) {
    if (m == 2) {
        p[0] = SUB(d[0], d[2]), p[1] = ADD(d[1], d[2]), p[2] = SUB(d[2], d[1]), p[3] = SUB(d[1], d[3]);
        return;
    }
    __m512 even_p = MULSUB(SPLAT(QQ), d[2], d[4]), odd_p = MULSUB(SPLAT(QQ), d[1], d[3]);
    __m512 even_q = MULSUB(SPLAT(PP), d[2], d[4]), odd_q = MULSUB(SPLAT(PP), d[1], d[3]);
    p[0] = MULADD(SPLAT(PP * QQ), d[0], MULSUB(SPLAT(PP + QQ), d[2], d[4]));
    p[1] = MULADD(SPLAT(P), odd_p, even_p), p[2] = MULSUB(SPLAT(P), odd_p, even_p);
    p[3] = MULADD(SPLAT(Q), odd_q, even_q), p[4] = MULSUB(SPLAT(Q), odd_q, even_q);
    p[5] = MULADD(SPLAT(PP * QQ), d[1], MULSUB(SPLAT(PP + QQ), d[3], d[5]));
}

/* A g: m values to n points. */
ALWAYS void gradient_points(const int m, const __m512 *g, __m512 *p) {
    if (m == 2) {
        p[0] = g[0], p[1] = ADD(g[0], g[1]), p[2] = SUB(g[0], g[1]), p[3] = SUB(_mm512_setzero_ps(), g[1]);
        return;
    }
    __m512 even_p = MULADD(SPLAT(PP), g[2], g[0]), odd_p = MULADD(SPLAT(PP), g[3], g[1]);
    __m512 even_q = MULADD(SPLAT(QQ), g[2], g[0]), odd_q = MULADD(SPLAT(QQ), g[3], g[1]);
    p[0] = g[0];
    p[1] = MULADD(SPLAT(P), odd_p, even_p), p[2] = MULSUB(SPLAT(P), odd_p, even_p);
    p[3] = MULADD(SPLAT(Q), odd_q, even_q), p[4] = MULSUB(SPLAT(Q), odd_q, even_q);
    p[5] = g[3];
}

/* At s: n points to m values. */
ALWAYS void outputs(const int m, const __m512 *s, __m512 *y) {
    __m512 sum = ADD(s[1], s[2]), difference = SUB(s[1], s[2]);
    if (m == 2) {
        y[0] = ADD(s[0], sum), y[1] = SUB(difference, s[3]);
        return;
    }
    __m512 sum_q = ADD(s[3], s[4]), difference_q = SUB(s[3], s[4]);
    y[0] = ADD(ADD(s[0], sum), sum_q);
    y[1] = MULADD(SPLAT(P), difference, MUL(SPLAT(Q), difference_q));
    y[2] = MULADD(SPLAT(PP), sum, MUL(SPLAT(QQ), sum_q));
    y[3] = MULADD(SPLAT(P * PP), difference, MULADD(SPLAT(Q * QQ), difference_q, s[5]));
}

/* G w: 3 weights to n points. */
ALWAYS void weight_points(const int m, const __m512 *w, __m512 *p) {
    __m512 outer = ADD(w[0], w[2]);
    if (m == 2) {
        p[0] = w[0], p[3] = w[2];
        p[1] = MUL(SPLAT(0.5f), ADD(outer, w[1])), p[2] = MUL(SPLAT(0.5f), SUB(outer, w[1]));
        return;
    }
    __m512 even_p = MULADD(SPLAT(PP), w[2], w[0]), even_q = MULADD(SPLAT(QQ), w[2], w[0]);
    __m512 scale_p = SPLAT(1 / (2 * PP * (PP - QQ))), scale_q = SPLAT(1 / (2 * QQ * (QQ - PP)));
    p[0] = MUL(SPLAT(1 / (PP * QQ)), w[0]), p[5] = w[2];
    p[1] = MUL(scale_p, MULADD(SPLAT(P), w[1], even_p)), p[2] = MUL(scale_p, MULSUB(SPLAT(P), w[1], even_p));
    p[3] = MUL(scale_q, MULADD(SPLAT(Q), w[1], even_q)), p[4] = MUL(scale_q, MULSUB(SPLAT(Q), w[1], even_q));
}

/* Gt s: n points to 3 weights. */
ALWAYS void weights_of(const int m, const __m512 *s, __m512 *w) {
    __m512 sum = ADD(s[1], s[2]), difference = SUB(s[1], s[2]);
    if (m == 2) {
        sum = MUL(SPLAT(0.5f), sum);
        w[0] = ADD(s[0], sum), w[1] = MUL(SPLAT(0.5f), difference), w[2] = ADD(sum, s[3]);
        return;
    }
    __m512 scale_p = SPLAT(1 / (2 * PP * (PP - QQ))), scale_q = SPLAT(1 / (2 * QQ * (QQ - PP)));
    __m512 sum_q = MUL(scale_q, ADD(s[3], s[4])), difference_q = MUL(scale_q, SUB(s[3], s[4]));
    sum = MUL(scale_p, sum), difference = MUL(scale_p, difference);
    w[0] = MULADD(SPLAT(1 / (PP * QQ)), s[0], ADD(sum, sum_q));
    w[1] = MULADD(SPLAT(P), difference, MUL(SPLAT(Q), difference_q));
    w[2] = MULADD(SPLAT(PP), sum, MULADD(SPLAT(QQ), sum_q, s[5]));
}

/* A transform of columns of tiles mh high, then of rows of tiles mw wide: from from_h×from_w values to to_h×to_w. */
#define BOTH_WAYS(transform, mh, mw, from_h, from_w, to_h, to_w, in, out)                             \
    do {                                                                                              \
        __m512 line_[MAX_SIDE], half_[MAX_POINTS], got_[MAX_SIDE];                                    \
        for (int j_ = 0; j_ < (from_w); j_++) {                                                       \
            for (int i_ = 0; i_ < (from_h); i_++) line_[i_] = in(i_, j_);                             \
            transform(mh, line_, got_);                                                               \
            for (int i_ = 0; i_ < (to_h); i_++) half_[(from_w) * i_ + j_] = got_[i_];                 \
        }                                                                                             \
        for (int i_ = 0; i_ < (to_h); i_++) transform(mw, half_ + (from_w) * i_, (out) + (to_w) * i_); \
    } while (0)

/* A function for tiles of (mh, mw), each 2 or 4, known when it is compiled. */
#define FOR_TILES(function, mh, mw, ...)                                                      \
    ((mh) == 4 ? (mw) == 4 ? function(4, 4, __VA_ARGS__) : function(4, 2, __VA_ARGS__)        \
               : (mw) == 4 ? function(2, 4, __VA_ARGS__) : function(2, 2, __VA_ARGS__))
