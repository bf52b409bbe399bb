/* 3×3 convolutions, stride 1 and padding 1, of bf16 maps with 2.25 or 4 products for 9: winograd.h, by the bf16 dot
   products of AVX-512. */

#include <stdint.h>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "winograd.h"

/* tiles that are multiplied at once with at most half of VECTORS vectors of filters */
#define MORE_ROWS 12
/* tiles whose points are kept at once: their data stays in the L2 cache */
#define BLOCK(mh, mw) ((mh) * (mw) == 4 ? 48 : 24)

int usable(void) { return 1; }

/* G w Gt into [block of filters, point, pairs of channels, vectors of the block, LANES, 2]; weight (k, c, i, j) lies at
   weights[k sk + c sc + i si + j sj]. */
static void transform_weights(int mh, int mw, const float *weights, int64_t sk, int64_t sc, int64_t si, int64_t sj, int64_t C,
                        int64_t K, int64_t v, bf16 *out) {
    const int points = (mh + 2) * (mw + 2);
    int64_t pairs = (C + 1) / 2, first = v / VECTORS * VECTORS;
    int64_t vectors = at_most(VECTORS, (K + LANES - 1) / LANES - first);
    bf16 *block = out + first * points * pairs * LANES * 2 + (v - first) * LANES * 2;
    for (int64_t c = 0; c < 2 * pairs; c++) {
        float w[9][LANES];
        for (int l = 0; l < LANES; l++) {
            int64_t k = v * LANES + l;
            const float *from = weights + k * sk + c * sc;
            for (int tap = 0; tap < 9; tap++) w[tap][l] = k < K && c < C ? from[tap / 3 * si + tap % 3 * sj] : 0.0f;
        }
        __m512 p[MAX_POINTS];
#define IN(i, j) _mm512_loadu_ps(w[3 * (i) + (j)])
        BOTH_WAYS(weight_points, mh, mw, 3, 3, mh + 2, mw + 2, IN, p);
#undef IN
        for (int i = 0; i < points; i++) {
            bf16 *to = block + (i * pairs + c / 2) * vectors * LANES * 2 + c % 2, values[LANES];
            _mm256_storeu_si256((__m256i *)values, rounded(p[i]));
            for (int l = 0; l < LANES; l++) to[2 * l] = values[l];
        }
    }
}

/* points [rows, stride] times filters [pairs, vectors, LANES, 2] into sums [rows, vectors, LANES]. */
ALWAYS void multiply(const int rows, const int vectors, const bf16 *points, int64_t stride, const bf16 *filters,
                     int64_t pairs, float *sums) {
    __m512 s[MORE_ROWS][VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) s[r][v] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, filters += vectors * LANES * 2) {
        __m512bh f[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) f[v] = (__m512bh)_mm512_load_si512(filters + v * LANES * 2);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            int two;
            memcpy(&two, points + r * stride + 2 * pair, 4);
            __m512bh p = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) s[r][v] = _mm512_dpbf16_ps(s[r][v], p, f[v]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) _mm512_store_ps(sums + (r * vectors + v) * LANES, s[r][v]);
}

static void multiply_block(int64_t vectors, const bf16 *points, int64_t stride, int64_t tiles, const bf16 *filters,
                           int64_t pairs, float *sums) {
    int64_t step = vectors > VECTORS / 2 ? ROWS : MORE_ROWS;
    for (int64_t t = 0; t < tiles; t += step, points += step * stride, sums += step * vectors * LANES) {
        if (vectors == 4) multiply(ROWS, 4, points, stride, filters, pairs, sums);
        else if (vectors == 3) multiply(ROWS, 3, points, stride, filters, pairs, sums);
        else if (vectors == 2) multiply(MORE_ROWS, 2, points, stride, filters, pairs, sums);
        else multiply(MORE_ROWS, 1, points, stride, filters, pairs, sums);
    }
}

/* A thread's scratch for a block: points, and sums [point, tile, vector, LANES]. */
struct scratch {
    bf16 *points;
    float *sums;
};

/* Inputs and outputs of a convolution: maps, or 2×2 maxima with their argmax. */
struct ends {
    const bf16 *x;
    const uint8_t *x_argmax;
    bf16 *out;
    uint8_t *out_argmax;
    int64_t C, K;
};

/* Points of `tiles` tiles from `first` on, channels of a tile side by side. */
ALWAYS void transform_block(const int mh, const int mw, const int maxima, const struct maps *maps, const struct ends *ends,
                      int64_t first, int64_t tiles, bf16 *to) {
    const int wide = mw + 2, points = (mh + 2) * wide;
    int64_t C = ends->C, stride = round_up(C, LANES), apart = BLOCK(mh, mw) * stride + POINT_PAD;
    for (int64_t t = 0; t < tiles; t++) {
        const bf16 *at[MAX_POINTS];
        const uint8_t *argmax[MAX_POINTS];
        tile_pointers(mh, mw, 1, maxima, maps, ends->x, C, first + t, maps->zeros, at);
        if (maxima) argmax_pointers(points, maps, ends->x, ends->x_argmax, at, argmax);
        fetch(mh, mw, 1, maxima, maps, at, C);
        for (int64_t c = 0; c < C; c += LANES) {
            __mmask16 left = lanes_left(C, c);
            __m512 p[MAX_POINTS];
#define IN(i, j)                                                                                                      \
    (maxima ? floats_of_maxima(at[wide * (i) + (j)] + c, argmax[wide * (i) + (j)] + c, CORNER(1, i, j), left)           \
            : floats(at[wide * (i) + (j)] + c, left))
            BOTH_WAYS(input_points, mh, mw, mh + 2, mw + 2, mh + 2, mw + 2, IN, p);
#undef IN
            for (int i = 0; i < points; i++)
                _mm256_store_si256((__m256i *)(to + i * apart + t * stride + c), rounded(p[i]));
        }
    }
}

ALWAYS void put(bf16 *to, __mmask16 left, __m512 value) {
    if (left == 0xffff) _mm256_storeu_si256((__m256i *)to, rounded(value));
    else _mm256_mask_storeu_epi16(to, left, rounded(value));
}

/* The largest of y[0], y[1], y[mw] and y[mw + 1], the first of equal ones, and its argmax. NaN is larger than all. */
ALWAYS __m512 largest(const int mw, const __m512 *y, __m128i *argmax) {
    __m512 best = y[0];
    *argmax = _mm_setzero_si128();
#pragma GCC unroll 3
    for (int i = 1; i < 4; i++) {
        __m512 value = y[i / 2 * mw + i % 2];
        __mmask16 better = _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        best = _mm512_mask_mov_ps(best, better, value);
        *argmax = _mm_mask_mov_epi8(*argmax, better, _mm_set1_epi8((char)i));
    }
    return best;
}

/* Outputs of these tiles from sums [point, tile, vector, LANES] of the filters of `vectors` vectors from the v-th on. */
ALWAYS void write_block(const int mh, const int mw, const int maxima, const struct maps *maps, const struct ends *ends,
                        int64_t first, int64_t tiles, int64_t v, int64_t vectors, const float *all_sums) {
    const int wide = mw + 2;
    int64_t apart = BLOCK(mh, mw) * vectors * LANES + POINT_PAD;
    for (int64_t t = 0; t < tiles; t++) {
        const bf16 *at[16];
        tile_pointers(mh, mw, 0, maxima, maps, ends->out, ends->K, first + t, 0, at);
        for (int64_t u = 0; u < vectors; u++) {
            const float *sums = all_sums + (t * vectors + u) * LANES;
            int64_t k = (v + u) * LANES;
            __mmask16 left = lanes_left(ends->K, k);
            __m512 y[16];
#define IN(i, j) _mm512_load_ps(sums + (wide * (i) + (j)) * apart)
            BOTH_WAYS(outputs, mh, mw, mh + 2, mw + 2, mh, mw, IN, y);
#undef IN
#pragma GCC unroll 4
            for (int i = 0; i < mh; i += maxima ? 2 : 1)
#pragma GCC unroll 4
                for (int j = 0; j < mw; j += maxima ? 2 : 1) {
                    bf16 *to = (bf16 *)at[mw * i + j];
                    if (!to) continue;
                    if (!maxima) put(to + k, left, y[mw * i + j]);
                    else {
                        __m128i argmax;
                        put(to + k, left, largest(mw, y + mw * i + j, &argmax));
                        _mm_mask_storeu_epi8(ends->out_argmax + (to - ends->out) + k, left, argmax);
                    }
                }
        }
    }
}

/* Separate functions: inlined with the products, the compiler keeps fewer values in registers. */
static __attribute__((noinline)) void transform_tiles(int64_t mh, int64_t mw, const struct maps *maps, const struct ends *ends,
                                                 int64_t first, int64_t tiles, bf16 *to) {
    if (ends->x_argmax) FOR_TILES(transform_block, mh, mw, 1, maps, ends, first, tiles, to);
    else FOR_TILES(transform_block, mh, mw, 0, maps, ends, first, tiles, to);
}

static __attribute__((noinline)) void write_outputs(int64_t mh, int64_t mw, const struct maps *maps,
                                                    const struct ends *ends, int64_t first, int64_t tiles, int64_t v,
                                                    int64_t vectors, const float *sums) {
    if (ends->out_argmax) FOR_TILES(write_block, mh, mw, 1, maps, ends, first, tiles, v, vectors, sums);
    else FOR_TILES(write_block, mh, mw, 0, maps, ends, first, tiles, v, vectors, sums);
}

static void convolve_block(int64_t mh, int64_t mw, const struct maps *maps, const struct ends *ends, const bf16 *filters,
                           int64_t first, const struct scratch *scratch) {
    int64_t points = (mh + 2) * (mw + 2), pairs = (ends->C + 1) / 2, stride = round_up(ends->C, LANES);
    int64_t tiles = at_most(BLOCK(mh, mw), tiles_of(maps) - first), all = (ends->K + LANES - 1) / LANES;
    transform_tiles(mh, mw, maps, ends, first, tiles, scratch->points);
    for (int64_t v = 0; v < all; v += VECTORS) {
        int64_t vectors = at_most(VECTORS, all - v);
        for (int64_t i = 0; i < points; i++)
            multiply_block(vectors, scratch->points + i * (BLOCK(mh, mw) * stride + POINT_PAD), stride, tiles,
                           filters + (v * points + i * vectors) * pairs * LANES * 2, pairs,
                           scratch->sums + i * (BLOCK(mh, mw) * vectors * LANES + POINT_PAD));
        write_outputs(mh, mw, maps, ends, first, tiles, v, vectors, scratch->sums);
    }
}

/* The outputs of `down` by `across` tiles of tile_h×tile_w, each 2 or 4, from (top, left) on, into out [N, H, W, K]; x
   [N, H, W, C], weight (k, c, i, j) at weights[k sk + c sc + i si + j sj]. With x_argmax x is [N, H / 2, W / 2, C], maxima
   of a map that is zero elsewhere; with out_argmax so is out. winograd.py has the same fields in the same order. */
struct convolution {
    const bf16 *x;
    const uint8_t *x_argmax;
    const float *weights;
    bf16 *out;
    uint8_t *out_argmax;
    int64_t tile_h, tile_w, top, left, down, across, N, H, W, C, K, sk, sc, si, sj, threads;
};

/* Returns 1 if there is no memory. */
int convolve(const struct convolution *of) {
    int64_t mh = of->tile_h, mw = of->tile_w, C = of->C, K = of->K, threads = of->threads;
    int64_t points = (mh + 2) * (mw + 2), pairs = (C + 1) / 2, vectors = (K + LANES - 1) / LANES, tiles = BLOCK(mh, mw);
    int64_t num_points = points * (tiles * round_up(C, LANES) + POINT_PAD), num_sums = points * (tiles * VECTORS * LANES + POINT_PAD);
    bf16 *filters = alloc_aligned(2 * points * pairs * vectors * LANES * 2), *zeros = calloc((size_t)round_up(C, LANES), sizeof(bf16));
    /* zero: missing tiles are multiplied too */
    char *memory = calloc((size_t)threads, (size_t)(2 * num_points + 4 * num_sums) + 64);
    int failed = !filters || !zeros || !memory;
    if (!failed) {
        struct maps maps = {.N = of->N, .H = of->H, .W = of->W, .top = of->top, .left = of->left, .down = of->down,
                            .across = of->across, .zeros = zeros};
        struct ends ends = {.x = of->x, .x_argmax = of->x_argmax, .out = of->out, .out_argmax = of->out_argmax, .C = C,
                            .K = K};
        int64_t next = 0;
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t v = 0; v < vectors; v++)
                transform_weights((int)mh, (int)mw, of->weights, of->sk, of->sc, of->si, of->sj, C, K, v, filters);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < threads; t++) {
                struct scratch scratch;
                scratch.points = (bf16 *)round_up((int64_t)(memory + t * (2 * num_points + 4 * num_sums)), 64);
                scratch.sums = (float *)(scratch.points + num_points);
                for (;;) {
                    int64_t block;
#pragma omp atomic capture
                    block = next++;
                    if (block * tiles >= tiles_of(&maps)) break;
                    convolve_block(mh, mw, &maps, &ends, filters, block * tiles, &scratch);
                }
            }
        }
    }
    free(filters), free(zeros), free(memory);
    return failed;
}

#else

int usable(void) { return 0; }

#endif
