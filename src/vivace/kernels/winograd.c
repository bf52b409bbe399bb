/* 3×3 convolutions, stride 1 and padding 1, of bf16 maps with 2.25 or 4 products for 9 (Winograd's minimal filtering,
   arXiv:1509.09308), by the bf16 dot products of AVX-512.

   Maps lie channels last: value (n, h, w, c) at ((n H + h) W + w) C + c. A tile is m×m outputs, m 2 or 4, which come from
   n×n inputs d, n = m + 2: Y = At [(G w Gt) . (Bt d B)] A, a sum over channels for each of n×n points by itself, so
   that these are matrix products. The gradient of the weights is Gt [sum over tiles of (Bt d B) . (A g At)] G. Both
   sides of a product are rounded to bf16, sums are taken in float.

   The matrices evaluate polynomials at 0, 1, -1 and infinity (m = 2), or at 0, 3/4, -3/4, 3/2, -3/2 and infinity (m = 4):
   of the points that were tried those with the least error, half of that of 0, 1, -1, 2, -2. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include <immintrin.h>

#define LANES 16
/* of a side, and points in all, for m = 4 */
#define MAX_SIDE 6
#define MAX_POINTS 36
/* vectors of filters that are multiplied at once, and tiles with so many of them, or with half of them and fewer */
#define VECTORS 4
#define TILES 6
#define MORE_TILES 12
/* tiles whose points are kept at once, for m = 2 and 4: what belongs to them stays in the second cache */
#ifndef BLOCK
#define BLOCK(m) ((m) == 2 ? 48 : 24)
#endif
/* bytes of the points of both sides for a gradient */
#ifndef GRADIENT_BYTES
#define GRADIENT_BYTES (2 << 20)
#endif
/* bytes up to which each thread has sums of its own */
#ifndef SUM_BYTES
#define SUM_BYTES (6 << 20)
#endif
/* channels up to which pixels are asked for ahead */
#define FETCHED_CHANNELS 128
/* between the points, so that the same place in each of them does not meet in one set of the cache */
#define APART 32

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

int usable(void) { return 1; }

/* What all threads share; zeros: a pixel outside. */
struct maps {
    int64_t N, H, W, down, across, tiles;
    const bf16 *zeros;
};

static int64_t up_to(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static void *room(int64_t bytes) { return aligned_alloc(64, (size_t)up_to(bytes, 64)); }

static struct maps maps_of(int m, int64_t N, int64_t H, int64_t W, const bf16 *zeros) {
    int64_t down = (H + m - 1) / m, across = (W + m - 1) / m;
    return (struct maps){.N = N, .H = H, .W = W, .down = down, .across = across, .tiles = N * down * across, .zeros = zeros};
}

static inline __mmask16 lanes_left(int64_t channels, int64_t from) {
    int64_t left = channels - from;
    return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
}

/* 16 channels of a pixel as floats. */
ALWAYS __m512 floats(const bf16 *at, __mmask16 left) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(left, at)), 16));
}

ALWAYS __m256i rounded(__m512 value) { return (__m256i)_mm512_cvtneps_pbh(value); }

/* Where the side×side pixels from (m i - border, m j - border) on begin, for tile t; `outside` for those that are not
   there. */
ALWAYS void locate(const int m, const int side, const int border, const struct maps *maps, const bf16 *map,
                   int64_t channels, int64_t t, const bf16 *outside, const bf16 *at[]) {
    int64_t n = t / (maps->down * maps->across), place = t % (maps->down * maps->across);
    int64_t h = m * (place / maps->across) - border, w = m * (place % maps->across) - border;
    const bf16 *image = map + n * maps->H * maps->W * channels;
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) {
            int there = t < maps->tiles && h + i >= 0 && h + i < maps->H && w + j >= 0 && w + j < maps->W;
            at[side * i + j] = there ? image + ((h + i) * maps->W + w + j) * channels : outside;
        }
}

/* Asks for the pixels that belong to the tile `tiles` further on in each row of this one, m of them each: rows are too
   many, and what is taken from each too short, for the hardware to see it coming. Of many channels it sees them, and
   they would fill the first cache. */
ALWAYS void fetch(const int m, const int side, const int border, const struct maps *maps, const bf16 *const at[],
                  int64_t channels, int tiles) {
    if (channels > FETCHED_CHANNELS) return;
    for (int i = 0; i < side; i++) {
        const bf16 *row = at[side * i + border];
        if (row == maps->zeros) continue;
        for (int64_t c = 0; c < m * channels; c += 2 * LANES)
            _mm_prefetch((const char *)(row + tiles * m * channels + c), _MM_HINT_T0);
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

/* A transform of columns, then of rows: from `from`×`from` values to `to`×`to`. */
#define BOTH_WAYS(transform, m, from, to, in, out)                                      \
    do {                                                                                \
        __m512 line_[MAX_SIDE], half_[MAX_POINTS];                                      \
        for (int j_ = 0; j_ < (from); j_++) {                                           \
            __m512 got_[MAX_SIDE];                                                      \
            for (int i_ = 0; i_ < (from); i_++) line_[i_] = in(i_, j_);                 \
            transform(m, line_, got_);                                                  \
            for (int i_ = 0; i_ < (to); i_++) half_[(from) * i_ + j_] = got_[i_];       \
        }                                                                               \
        for (int i_ = 0; i_ < (to); i_++) transform(m, half_ + (from) * i_, (out) + (to) * i_); \
    } while (0)

/* ---- convolutions ---- */

/* G w Gt into [block of filters, point, pairs of channels, vectors of the block, LANES, 2]; weight (k, c, i, j) lies at
   weights[k sk + c sc + i si + j sj]. */
ALWAYS void lay_weights(const int m, const float *weights, int64_t sk, int64_t sc, int64_t si, int64_t sj, int64_t C,
                        int64_t K, int64_t v, bf16 *out) {
    const int side = m + 2, points = side * side;
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
        BOTH_WAYS(weight_points, m, 3, side, IN, p);
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
    __m512 s[MORE_TILES][VECTORS];
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
    int64_t step = vectors > VECTORS / 2 ? TILES : MORE_TILES;
    for (int64_t t = 0; t < tiles; t += step, points += step * stride, sums += step * vectors * LANES) {
        if (vectors == 4) multiply(TILES, 4, points, stride, filters, pairs, sums);
        else if (vectors == 3) multiply(TILES, 3, points, stride, filters, pairs, sums);
        else if (vectors == 2) multiply(MORE_TILES, 2, points, stride, filters, pairs, sums);
        else multiply(MORE_TILES, 1, points, stride, filters, pairs, sums);
    }
}

/* What a thread keeps of a block: points, and sums [point, tile, vector, LANES]. */
struct bench {
    bf16 *points;
    float *sums;
};

ALWAYS void convolve_block(const int m, const struct maps *maps, const bf16 *x, const bf16 *filters, bf16 *out, int64_t C,
                           int64_t K, int64_t first, const struct bench *bench) {
    const int side = m + 2, points = side * side;
    int64_t pairs = (C + 1) / 2, stride = up_to(C, LANES), apart = BLOCK(m) * stride + APART;
    int64_t tiles = at_most(BLOCK(m), maps->tiles - first), all = (K + LANES - 1) / LANES;
    for (int64_t t = 0; t < tiles; t++) {
        const bf16 *at[MAX_POINTS];
        locate(m, side, 1, maps, x, C, first + t, maps->zeros, at);
        fetch(m, side, 1, maps, at, C, 2);
        for (int64_t c = 0; c < C; c += LANES) {
            __mmask16 left = lanes_left(C, c);
            __m512 p[MAX_POINTS];
#define IN(i, j) floats(at[side * (i) + (j)] + c, left)
            BOTH_WAYS(input_points, m, side, side, IN, p);
#undef IN
            for (int i = 0; i < points; i++)
                _mm256_store_si256((__m256i *)(bench->points + i * apart + t * stride + c), rounded(p[i]));
        }
    }
    for (int64_t v = 0; v < all; v += VECTORS) {
        int64_t vectors = at_most(VECTORS, all - v), sums_apart = BLOCK(m) * vectors * LANES + APART;
        for (int64_t i = 0; i < points; i++)
            multiply_block(vectors, bench->points + i * apart, stride, tiles,
                           filters + (v * points + i * vectors) * pairs * LANES * 2, pairs, bench->sums + i * sums_apart);
        for (int64_t t = 0; t < tiles; t++) {
            const bf16 *at[16];
            locate(m, m, 0, maps, out, K, first + t, 0, at);
            for (int64_t u = 0; u < vectors; u++) {
                const float *sums = bench->sums + (t * vectors + u) * LANES;
                int64_t k = (v + u) * LANES;
                __mmask16 left = lanes_left(K, k);
                __m512 y[16];
#define IN(i, j) _mm512_load_ps(sums + (side * (i) + (j)) * sums_apart)
                BOTH_WAYS(outputs, m, side, m, IN, y);
#undef IN
                for (int i = 0; i < m * m; i++) {
                    if (!at[i]) continue;
                    bf16 *to = (bf16 *)at[i] + k;
                    if (left == 0xffff) _mm256_storeu_si256((__m256i *)to, rounded(y[i]));
                    else _mm256_mask_storeu_epi16(to, left, rounded(y[i]));
                }
            }
        }
    }
}

/* out [N, H, W, K] of x [N, H, W, C]; weight (k, c, i, j) lies at weights[k sk + c sc + i si + j sj]. m: 2 or 4. Returns 1
   if there is no memory. */
int convolve(const bf16 *x, const float *weights, bf16 *out, int64_t m, int64_t N, int64_t H, int64_t W, int64_t C,
             int64_t K, int64_t sk, int64_t sc, int64_t si, int64_t sj, int64_t threads) {
    int64_t points = (m + 2) * (m + 2), pairs = (C + 1) / 2, vectors = (K + LANES - 1) / LANES, tiles = BLOCK(m);
    int64_t num_points = points * (tiles * up_to(C, LANES) + APART), num_sums = points * (tiles * VECTORS * LANES + APART);
    bf16 *filters = room(2 * points * pairs * vectors * LANES * 2), *zeros = calloc((size_t)up_to(C, LANES), sizeof(bf16));
    /* zero: tiles that there are not are multiplied too */
    char *memory = calloc((size_t)threads, (size_t)(2 * num_points + 4 * num_sums) + 64);
    int failed = !filters || !zeros || !memory;
    if (!failed) {
        struct maps maps = maps_of((int)m, N, H, W, zeros);
        int64_t next = 0;
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t v = 0; v < vectors; v++) {
                if (m == 2) lay_weights(2, weights, sk, sc, si, sj, C, K, v, filters);
                else lay_weights(4, weights, sk, sc, si, sj, C, K, v, filters);
            }
#pragma omp for schedule(static)
            for (int64_t t = 0; t < threads; t++) {
                struct bench bench;
                bench.points = (bf16 *)up_to((int64_t)(memory + t * (2 * num_points + 4 * num_sums)), 64);
                bench.sums = (float *)(bench.points + num_points);
                for (;;) {
                    int64_t block;
#pragma omp atomic capture
                    block = next++;
                    if (block * tiles >= maps.tiles) break;
                    if (m == 2) convolve_block(2, &maps, x, filters, out, C, K, block * tiles, &bench);
                    else convolve_block(4, &maps, x, filters, out, C, K, block * tiles, &bench);
                }
            }
        }
    }
    free(filters), free(zeros), free(memory);
    return failed;
}

/* ---- gradients of weights ---- */

/* Two tiles side by side: [LANES, 2]. */
ALWAYS __m512i paired(__m256i first, __m512 second) {
    __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                     19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(first), rounded(second), 1));
}

/* Points of the tiles t and t + 1 of x, or of the gradient, into out [point, channels / LANES, pairs, LANES, 2] at pair
   `place`; apart: from point to point. */
ALWAYS void lay_points(const int m, const int of_x, const struct maps *maps, const bf16 *map, int64_t channels, int64_t t,
                       int64_t place, int64_t pairs, int64_t apart, bf16 *out) {
    const int side = m + 2, points = side * side;
    const bf16 *both[2][MAX_POINTS];
    for (int i = 0; i < 2; i++) {
        if (of_x) locate(m, side, 1, maps, map, channels, t + i, maps->zeros, both[i]);
        else locate(m, m, 0, maps, map, channels, t + i, maps->zeros, both[i]);
        if (of_x) fetch(m, side, 1, maps, both[i], channels, 2);
        else fetch(m, m, 0, maps, both[i], channels, 2);
    }
    for (int64_t c = 0; c < channels; c += LANES) {
        __mmask16 left = lanes_left(channels, c);
        bf16 *to = out + (c * pairs + place * LANES) * 2;
        __m512 p[MAX_POINTS];
        __m256i one[MAX_POINTS];
        for (int i = 0; i < 2; i++) {
            const bf16 *const *at = both[i];
#define IN(i, j) floats(at[(of_x ? side : m) * (i) + (j)] + c, left)
            if (of_x) BOTH_WAYS(input_points, m, side, side, IN, p);
            else BOTH_WAYS(gradient_points, m, m, side, IN, p);
#undef IN
            for (int q = 0; q < points; q++) {
                if (i == 0) one[q] = rounded(p[q]);
                else _mm512_store_si512(to + q * apart, paired(one[q], p[q]));
            }
        }
    }
}

/* Adds x [pairs, LANES, 2] turned, `rows` of it, times g [vectors, all_pairs, LANES, 2] to sums [rows, stride]. */
ALWAYS void add_products(const int rows, const int vectors, const bf16 *x, const bf16 *g, int64_t pairs, int64_t all_pairs,
                         float *sums, int64_t stride) {
    __m512 s[TILES][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) s[r][v] = _mm512_load_ps(sums + r * stride + v * LANES);
    for (int64_t pair = 0; pair < pairs; pair++, x += LANES * 2, g += LANES * 2) {
        __m512bh f[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) f[v] = (__m512bh)_mm512_load_si512(g + v * all_pairs * LANES * 2);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int two;
            memcpy(&two, x + 2 * r, 4);
            __m512bh p = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) s[r][v] = _mm512_dpbf16_ps(s[r][v], p, f[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) _mm512_store_ps(sums + r * stride + v * LANES, s[r][v]);
}

/* … 16 rows of it: 6, 6 and 4. */
ALWAYS void add_rows(const int vectors, const bf16 *x, const bf16 *g, int64_t pairs, int64_t all_pairs, float *sums,
                     int64_t stride) {
    add_products(TILES, vectors, x, g, pairs, all_pairs, sums, stride);
    add_products(TILES, vectors, x + 2 * TILES, g, pairs, all_pairs, sums + TILES * stride, stride);
    add_products(LANES - 2 * TILES, vectors, x + 4 * TILES, g, pairs, all_pairs, sums + 2 * TILES * stride, stride);
}

/* What `pairs` pairs of tiles give at one point: of_x and of_g as lay_points leaves them, sums [C, K], each up to LANES. */
static void add_point(const bf16 *of_x, int64_t C, const bf16 *of_g, int64_t K, int64_t pairs, int64_t all_pairs, float *sums) {
    int64_t stride = up_to(K, LANES);
    for (int64_t k = 0; k < K; k += VECTORS * LANES) {
        int64_t vectors = at_most(VECTORS, (K - k + LANES - 1) / LANES);
        const bf16 *g = of_g + 2 * k * all_pairs;
        for (int64_t c = 0; c < C; c += LANES) {
            const bf16 *x = of_x + 2 * c * all_pairs;
            float *to = sums + c * stride + k;
            if (vectors == 4) add_rows(4, x, g, pairs, all_pairs, to, stride);
            else if (vectors == 3) add_rows(3, x, g, pairs, all_pairs, to, stride);
            else if (vectors == 2) add_rows(2, x, g, pairs, all_pairs, to, stride);
            else add_rows(1, x, g, pairs, all_pairs, to, stride);
        }
    }
}

/* Gt s G of the sums of all teams [teams, point, C up to LANES, K up to LANES] into out [K, 3, 3, C], for channel c. */
ALWAYS void collect(const int m, const float *sums, int64_t teams, int64_t c, int64_t C, int64_t K, float *out) {
    const int side = m + 2, points = side * side;
    int64_t wide = up_to(K, LANES), apart = up_to(C, LANES) * wide;
    for (int64_t k = 0; k < K; k += LANES) {
        __m512 s[MAX_POINTS], w[9];
        for (int i = 0; i < points; i++) {
            const float *at = sums + i * apart + c * wide + k;
            s[i] = _mm512_load_ps(at);
            for (int64_t t = 1; t < teams; t++) s[i] = ADD(s[i], _mm512_load_ps(at + t * points * apart));
        }
#define IN(i, j) s[side * (i) + (j)]
        BOTH_WAYS(weights_of, m, side, 3, IN, w);
#undef IN
        for (int tap = 0; tap < 9; tap++) {
            float values[LANES];
            _mm512_storeu_ps(values, w[tap]);
            for (int64_t l = 0; l < at_most(LANES, K - k); l++) out[((k + l) * 9 + tap) * C + c] = values[l];
        }
    }
}

/* What a team works on: a block of pairs of tiles at a time, their points and its sums. */
struct team {
    int64_t pairs, x_apart, g_apart;
    bf16 *of_x, *of_g;
    float *sums;
};

ALWAYS void lay_pair(const int m, const struct maps *maps, const bf16 *x, const bf16 *gradient, int64_t C, int64_t K,
                     const struct team *team, int64_t first, int64_t place) {
    lay_points(m, 1, maps, x, C, first + 2 * place, place, team->pairs, team->x_apart, team->of_x);
    lay_points(m, 0, maps, gradient, K, first + 2 * place, place, team->pairs, team->g_apart, team->of_g);
}

ALWAYS void add_at(const struct team *team, int64_t C, int64_t K, int64_t point, int64_t there) {
    add_point(team->of_x + point * team->x_apart, C, team->of_g + point * team->g_apart, K, there, team->pairs,
              team->sums + point * up_to(C, LANES) * up_to(K, LANES));
}

/* Adds what the tiles [begin, end) give, begin even. together: all threads are one team, whose sums there are once, each
   of them some thread's; else the caller is a team of its own, and waits for nobody. */
ALWAYS void add_tiles(const int m, const int together, const struct maps *maps, const bf16 *x, const bf16 *gradient,
                      int64_t C, int64_t K, const struct team *team, int64_t begin, int64_t end) {
    const int points = (m + 2) * (m + 2);
    for (int64_t first = begin; first < end; first += 2 * team->pairs) {
        int64_t there = at_most(team->pairs, (end - first + 1) / 2);
        if (together) {
#pragma omp for schedule(dynamic, 8)
            for (int64_t i = 0; i < there; i++) lay_pair(m, maps, x, gradient, C, K, team, first, i);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < points; i++) add_at(team, C, K, i, there);
        } else {
            for (int64_t i = 0; i < there; i++) lay_pair(m, maps, x, gradient, C, K, team, first, i);
            for (int64_t i = 0; i < points; i++) add_at(team, C, K, i, there);
        }
    }
}

/* out [K, 3, 3, C], float: the gradient of the weights for x [N, H, W, C] and gradient [N, H, W, K]. m: 2 or 4. Returns
   1 if there is no memory. */
int weight_gradient(const bf16 *x, const bf16 *gradient, float *out, int64_t m, int64_t N, int64_t H, int64_t W,
                    int64_t C, int64_t K, int64_t threads) {
    int64_t points = (m + 2) * (m + 2), x_wide = up_to(C, LANES), g_wide = up_to(K, LANES), num_sums = points * x_wide * g_wide;
    int together = 4 * num_sums * threads > SUM_BYTES, teams = together ? 1 : (int)threads;
    int64_t pairs = GRADIENT_BYTES / (4 * points * (x_wide + g_wide));
    pairs = pairs < 64 ? 64 : at_most(pairs, 256);
    int64_t x_apart = 2 * pairs * x_wide + APART, g_apart = 2 * pairs * g_wide + APART;
    bf16 *zeros = calloc((size_t)(x_wide + g_wide), sizeof(bf16)), *memory = room(2 * points * (x_apart + g_apart) * teams);
    float *sums = room(4 * num_sums * teams);
    int failed = !zeros || !memory || !sums;
    if (!failed) {
        struct maps maps = maps_of((int)m, N, H, W, zeros);
        memset(sums, 0, (size_t)(4 * num_sums * teams));
#pragma omp parallel num_threads(threads)
        {
            struct team team = {.pairs = pairs, .x_apart = x_apart, .g_apart = g_apart, .of_x = memory,
                                .of_g = memory + points * x_apart, .sums = sums};
            if (together && m == 2) add_tiles(2, 1, &maps, x, gradient, C, K, &team, 0, maps.tiles);
            else if (together) add_tiles(4, 1, &maps, x, gradient, C, K, &team, 0, maps.tiles);
            else {
#pragma omp for schedule(static)
                for (int64_t t = 0; t < threads; t++) {
                    int64_t begin = maps.tiles * t / threads / 2 * 2;
                    int64_t end = t + 1 == threads ? maps.tiles : maps.tiles * (t + 1) / threads / 2 * 2;
                    team.of_x = memory + t * points * (x_apart + g_apart), team.of_g = team.of_x + points * x_apart;
                    team.sums = sums + t * num_sums;
                    if (m == 2) add_tiles(2, 0, &maps, x, gradient, C, K, &team, begin, end);
                    else add_tiles(4, 0, &maps, x, gradient, C, K, &team, begin, end);
                }
            }
#pragma omp for schedule(static)
            for (int64_t c = 0; c < C; c++) {
                if (m == 2) collect(2, sums, teams, c, C, K, out);
                else collect(4, sums, teams, c, C, K, out);
            }
        }
    }
    free(zeros), free(memory), free(sums);
    return failed;
}

#else

int usable(void) { return 0; }

#endif
