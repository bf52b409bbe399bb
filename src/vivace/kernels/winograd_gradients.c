/* Gradients of the weights of 3×3 convolutions, stride 1 and padding 1, of bf16 maps with 2.25 or 4 products for 9:
   winograd.h, by the bf16 dot products of AVX-512. */

#include <stdint.h>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "winograd.h"

/* bytes of the points of both sides that a team keeps at once, and up to which each thread has its own sums */
#define POINT_BYTES (2 << 20)
#define SUM_BYTES (6 << 20)

/* Two tiles side by side: [LANES, 2]. */
ALWAYS __m512i paired(__m256i first, __m512 second) {
    __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                     19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(first), rounded(second), 1));
}

/* Points of the tiles t and t + 1 of x, or of the gradient, into out [point, channels / LANES, pairs, LANES, 2] at pair
   `place`; apart: distance between points. maxima: of the gradient, whose `argmax` is given. */
ALWAYS void transform_tiles(const int mh, const int mw, const int of_x, const int maxima, const struct maps *maps,
                       const bf16 *map, const uint8_t *argmax, int64_t channels, int64_t t, int64_t place, int64_t pairs,
                       int64_t apart, bf16 *out) {
    const int border = of_x ? 1 : 0, wide = mw + 2 * border, points = (mh + 2) * (mw + 2);
    const bf16 *both[2][MAX_POINTS];
    const uint8_t *both_argmax[2][MAX_POINTS];
    for (int i = 0; i < 2; i++) {
        tile_pointers(mh, mw, border, maxima, maps, map, channels, t + i, maps->zeros, both[i]);
        if (maxima) argmax_pointers(mh * mw, maps, map, argmax, both[i], both_argmax[i]);
        fetch(mh, mw, border, maxima, maps, both[i], channels);
    }
    for (int64_t c = 0; c < channels; c += LANES) {
        __mmask16 left = lanes_left(channels, c);
        bf16 *to = out + (c * pairs + place * LANES) * 2;
        __m512 p[MAX_POINTS];
        __m256i one[MAX_POINTS];
        for (int i = 0; i < 2; i++) {
            const bf16 *const *at = both[i];
            const uint8_t *const *argmax_at = both_argmax[i];
#define IN(i, j)                                                                                                      \
    (maxima ? floats_of_maxima(at[wide * (i) + (j)] + c, argmax_at[wide * (i) + (j)] + c, CORNER(0, i, j), left)        \
            : floats(at[wide * (i) + (j)] + c, left))
            if (of_x) BOTH_WAYS(input_points, mh, mw, mh + 2, mw + 2, mh + 2, mw + 2, IN, p);
            else BOTH_WAYS(gradient_points, mh, mw, mh, mw, mh + 2, mw + 2, IN, p);
#undef IN
            for (int q = 0; q < points; q++) {
                if (i == 0) one[q] = rounded(p[q]);
                else _mm512_store_si512(to + q * apart, paired(one[q], p[q]));
            }
        }
    }
}

/* Adds x [pairs, LANES, 2] transposed, `rows` of it, times g [vectors, all_pairs, LANES, 2] to sums [rows, stride]. */
ALWAYS void add_products(const int rows, const int vectors, const bf16 *x, const bf16 *g, int64_t pairs, int64_t all_pairs,
                         float *sums, int64_t stride) {
    __m512 s[ROWS][VECTORS];
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
    add_products(ROWS, vectors, x, g, pairs, all_pairs, sums, stride);
    add_products(ROWS, vectors, x + 2 * ROWS, g, pairs, all_pairs, sums + ROWS * stride, stride);
    add_products(LANES - 2 * ROWS, vectors, x + 4 * ROWS, g, pairs, all_pairs, sums + 2 * ROWS * stride, stride);
}

/* Products of `pairs` pairs of tiles at one point: of_x and of_g from transform_tiles, sums [C, K], each up to LANES. */
static void add_point(const bf16 *of_x, int64_t C, const bf16 *of_g, int64_t K, int64_t pairs, int64_t all_pairs, float *sums) {
    int64_t stride = round_up(K, LANES);
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

/* Adds Gt s G of the sums of all teams [teams, point, C up to LANES, K up to LANES] to out [K, 3, 3, C], for channel c. */
static void collect(int mh, int mw, const float *sums, int64_t teams, int64_t c, int64_t C, int64_t K,
                    float *out) {
    const int points = (mh + 2) * (mw + 2);
    int64_t wide = round_up(K, LANES), apart = round_up(C, LANES) * wide;
    for (int64_t k = 0; k < K; k += LANES) {
        __m512 s[MAX_POINTS], w[9];
        for (int i = 0; i < points; i++) {
            const float *at = sums + i * apart + c * wide + k;
            s[i] = _mm512_load_ps(at);
            for (int64_t t = 1; t < teams; t++) s[i] = ADD(s[i], _mm512_load_ps(at + t * points * apart));
        }
#define IN(i, j) s[(mw + 2) * (i) + (j)]
        BOTH_WAYS(weights_of, mh, mw, mh + 2, mw + 2, 3, 3, IN, w);
#undef IN
        for (int tap = 0; tap < 9; tap++) {
            float values[LANES];
            _mm512_storeu_ps(values, w[tap]);
            for (int64_t l = 0; l < at_most(LANES, K - k); l++) out[((k + l) * 9 + tap) * C + c] += values[l];
        }
    }
}

/* A team's scratch: the points of a block of pairs of tiles, and its sums. */
struct team {
    int64_t pairs, x_apart, g_apart;
    bf16 *of_x, *of_g;
    float *sums;
};

/* The input, and the gradient of the outputs, or of their 2×2 maxima with their argmax. */
struct sides {
    const bf16 *x, *gradient;
    const uint8_t *argmax;
    int64_t C, K;
};

static void transform_pair(int64_t mh, int64_t mw, const struct maps *maps, const struct sides *of, const struct team *team,
                     int64_t first, int64_t place) {
    int64_t t = first + 2 * place;
    FOR_TILES(transform_tiles, mh, mw, 1, 0, maps, of->x, 0, of->C, t, place, team->pairs, team->x_apart, team->of_x);
    if (of->argmax)
        FOR_TILES(transform_tiles, mh, mw, 0, 1, maps, of->gradient, of->argmax, of->K, t, place, team->pairs, team->g_apart, team->of_g);
    else
        FOR_TILES(transform_tiles, mh, mw, 0, 0, maps, of->gradient, 0, of->K, t, place, team->pairs, team->g_apart, team->of_g);
}

static void add_at(const struct team *team, int64_t C, int64_t K, int64_t point, int64_t there) {
    add_point(team->of_x + point * team->x_apart, C, team->of_g + point * team->g_apart, K, there, team->pairs,
              team->sums + point * round_up(C, LANES) * round_up(K, LANES));
}

/* Adds the products of the tiles [begin, end), begin even. together: all threads are one team with one set of sums,
   divided among the threads; otherwise the caller is its own team and waits for nobody. */
static void add_tiles(int64_t mh, int64_t mw, int together, const struct maps *maps, const struct sides *of,
                      const struct team *team, int64_t begin, int64_t end) {
    int64_t points = (mh + 2) * (mw + 2), C = of->C, K = of->K;
    for (int64_t first = begin; first < end; first += 2 * team->pairs) {
        int64_t there = at_most(team->pairs, (end - first + 1) / 2);
        if (together) {
#pragma omp for schedule(dynamic, 8)
            for (int64_t i = 0; i < there; i++) transform_pair(mh, mw, maps, of, team, first, i);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < points; i++) add_at(team, C, K, i, there);
        } else {
            for (int64_t i = 0; i < there; i++) transform_pair(mh, mw, maps, of, team, first, i);
            for (int64_t i = 0; i < points; i++) add_at(team, C, K, i, there);
        }
    }
}

/* Adds to out [K, 3, 3, C], float, the gradient of the weights for x [N, H, W, C] and the part of g [N, H, W, K] that `down`
   by `across` tiles of tile_h×tile_w, each 2 or 4, cover from (top, left) on. With g_argmax the gradient is [N, H / 2,
   W / 2, K], that of 2×2 maxima. winograd.py has the same fields in the same order. */
struct gradient {
    const bf16 *x, *g;
    const uint8_t *g_argmax;
    float *out;
    int64_t tile_h, tile_w, top, left, down, across, N, H, W, C, K, threads;
};

/* Returns 1 if there is no memory. */
int weight_gradient(const struct gradient *given) {
    int64_t mh = given->tile_h, mw = given->tile_w, C = given->C, K = given->K, threads = given->threads;
    int64_t points = (mh + 2) * (mw + 2), x_wide = round_up(C, LANES), g_wide = round_up(K, LANES), num_sums = points * x_wide * g_wide;
    int together = 4 * num_sums * threads > SUM_BYTES, teams = together ? 1 : (int)threads;
    int64_t pairs = POINT_BYTES / (4 * points * (x_wide + g_wide));
    pairs = pairs < 64 ? 64 : at_most(pairs, 256);
    int64_t x_apart = 2 * pairs * x_wide + POINT_PAD, g_apart = 2 * pairs * g_wide + POINT_PAD;
    bf16 *zeros = calloc((size_t)(x_wide + g_wide), sizeof(bf16)), *memory = alloc_aligned(2 * points * (x_apart + g_apart) * teams);
    float *sums = alloc_aligned(4 * num_sums * teams);
    int failed = !zeros || !memory || !sums;
    if (!failed) {
        struct maps maps = {.N = given->N, .H = given->H, .W = given->W, .top = given->top, .left = given->left,
                            .down = given->down, .across = given->across, .zeros = zeros};
        struct sides of = {.x = given->x, .gradient = given->g, .argmax = given->g_argmax, .C = C, .K = K};
        int64_t tiles = tiles_of(&maps);
        memset(sums, 0, (size_t)(4 * num_sums * teams));
#pragma omp parallel num_threads(threads)
        {
            struct team team = {.pairs = pairs, .x_apart = x_apart, .g_apart = g_apart, .of_x = memory,
                                .of_g = memory + points * x_apart, .sums = sums};
            if (together) add_tiles(mh, mw, 1, &maps, &of, &team, 0, tiles);
            else {
#pragma omp for schedule(static)
                for (int64_t t = 0; t < threads; t++) {
                    int64_t begin = tiles * t / threads / 2 * 2;
                    int64_t end = t + 1 == threads ? tiles : tiles * (t + 1) / threads / 2 * 2;
                    team.of_x = memory + t * points * (x_apart + g_apart), team.of_g = team.of_x + points * x_apart;
                    team.sums = sums + t * num_sums;
                    add_tiles(mh, mw, 0, &maps, &of, &team, begin, end);
                }
            }
#pragma omp for schedule(static)
            for (int64_t c = 0; c < C; c++) collect((int)mh, (int)mw, sums, teams, c, C, K, given->out);
        }
    }
    free(zeros), free(memory), free(sums);
    return failed;
}

#endif
