/* Max-pooling, batch norm and activation of bf16 maps in as few passes over memory as they need.

   Maps lie channels last: value (n, h, w, c) at ((n H + h) W + w) C + c. `pooled` is the input of the norm: the map itself,
   or its 2×2 maxima. A pixel is `scale[c] pooled + shift[c]`, activated; sums are taken in float over some dozen pixels
   and in double over the rest. NaN stays NaN, as in torch. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

enum { RELU = 0, SILU = 1, GELU = 2, NONE = 3 };

/* pixels whose sums are taken in float */
#define BLOCK 64

static inline float bf16_to_float(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

static inline bf16 float_to_bf16(float wide) {
    uint32_t bits;
    memcpy(&bits, &wide, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    /* rounding must not carry a NaN into infinity */
    return (bf16)(wide == wide ? rounded : 0x7fc0);
}

/* e^x to 2 units in the last place of a float, so that loops over it become vector code without a vector libm;
   the polynomial is that of Cephes' expf */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float whole = rintf(x * 1.44269504f);
    float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float power = 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return power * scale;
}

/* the normal distribution below z: Abramowitz and Stegun 26.2.17, error under 1e-7 */
static inline float normal_below(float z, float density) {
    float size = fabsf(z);
    float t = 1.0f / (1.0f + 0.2316419f * size);
    float tail = density * t
        * (0.319381530f + t * (-0.356563782f + t * (1.781477937f + t * (-1.821255978f + t * 1.330274429f))));
    return z < 0 ? tail : 1.0f - tail;
}

static inline float normal_density(float z) { return 0.39894228f * exponential(-0.5f * z * z); }

static inline __attribute__((always_inline)) float activate(float z, int kind) {
    if (kind == NONE) return z;
    if (kind == RELU) return z < 0 ? 0 : z;
    if (kind == SILU) return z / (1.0f + exponential(-z));
    return z * normal_below(z, normal_density(z));
}

static inline __attribute__((always_inline)) float activation_grad(float z, int kind) {
    if (kind == NONE) return 1.0f;
    if (kind == RELU) return z <= 0 ? 0.0f : 1.0f;
    if (kind == SILU) {
        float share = 1.0f / (1.0f + exponential(-z));
        return share * (1.0f + z * (1.0f - share));
    }
    float density = normal_density(z);
    return normal_below(z, density) + z * density;
}

/* What the rows of one call share: x, the gradient, the output, the channels' factors, sizes. */
struct job {
    const bf16 *x, *gradient;
    bf16 *out;
    uint8_t *argmax;
    const float *scale, *shift, *by_value, *constant;
    int64_t H, W, C, rows, columns;
    int64_t kind;
};

/* Adds to one[C] and two[C] the two sums of a block. */
typedef void (*add_block)(const struct job *job, int64_t block, float *one, float *two);

/* sums [2, C] over all blocks. Returns 1 if there is no memory. */
static int sum_blocks(add_block add, const struct job *job, int64_t blocks, double *sums, int64_t threads) {
    int64_t width = 2 * job->C;
    double *totals = calloc((size_t)(width * threads), sizeof(double));
    float *parts = malloc(sizeof(float) * (size_t)(width * threads));
    if (!totals || !parts) {
        free(totals);
        free(parts);
        return 1;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t thread = 0; thread < threads; thread++) {
        double *mine = totals + width * thread;
        float *one = parts + width * thread;
        for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++) {
            memset(one, 0, sizeof(float) * (size_t)width);
            add(job, block, one, one + job->C);
            for (int64_t c = 0; c < width; c++) mine[c] += one[c];
        }
    }
    for (int64_t c = 0; c < width; c++) {
        sums[c] = 0;
        for (int64_t thread = 0; thread < threads; thread++) sums[c] += totals[width * thread + c];
    }
    free(totals);
    free(parts);
    return 0;
}

static void pool_block(const struct job *job, int64_t block, float *one, float *two) {
    int64_t C = job->C, row = (block / job->rows * job->H + 2 * (block % job->rows)) * job->W;
    for (int64_t w = 0; w < job->columns; w++) {
        const bf16 *a = job->x + (row + 2 * w) * C, *b = a + C, *d = a + job->W * C, *e = d + C;
        bf16 *restrict out = job->out + (block * job->columns + w) * C;
        uint8_t *restrict winner = job->argmax + (block * job->columns + w) * C;
#pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            float best = bf16_to_float(a[c]), value;
            uint32_t index = 0, better;
            value = bf16_to_float(b[c]), better = (value > best) | (value != value);
            best = better ? value : best, index = better ? 1 : index;
            value = bf16_to_float(d[c]), better = (value > best) | (value != value);
            best = better ? value : best, index = better ? 2 : index;
            value = bf16_to_float(e[c]), better = (value > best) | (value != value);
            best = better ? value : best, index = better ? 3 : index;
            out[c] = float_to_bf16(best), winner[c] = (uint8_t)index;
            one[c] += best, two[c] += best * best;
        }
    }
}

/* 2×2 maxima of x [N, H, W, C], which of the four each one is, and sums [2, C] of the maxima and of their squares.
   An odd last row or column is left out, as torch does. Returns 1 if there is no memory. Of every struct of arguments
   norms.py has the same fields in the same order. */
struct pooling {
    const bf16 *x;
    bf16 *pooled;
    uint8_t *argmax;
    double *sums;
    int64_t N, H, W, C, threads;
};

int pool_and_sum(const struct pooling *of) {
    struct job job = {.x = of->x, .out = of->pooled, .argmax = of->argmax, .H = of->H, .W = of->W, .C = of->C,
                      .rows = of->H / 2, .columns = of->W / 2};
    return sum_blocks(pool_block, &job, of->N * job.rows, of->sums, of->threads);
}

static void square_block(const struct job *job, int64_t block, float *one, float *two) {
    int64_t end = (block + 1) * BLOCK < job->rows ? (block + 1) * BLOCK : job->rows;
    for (int64_t r = block * BLOCK; r < end; r++) {
        const bf16 *x = job->x + r * job->C;
#pragma omp simd
        for (int64_t c = 0; c < job->C; c++) {
            float value = bf16_to_float(x[c]);
            one[c] += value, two[c] += value * value;
        }
    }
}

/* Sums [2, C] of x [rows, C] and of its squares. Returns 1 if there is no memory. */
struct summing {
    const bf16 *x;
    double *sums;
    int64_t rows, C, threads;
};

int sum_rows(const struct summing *of) {
    struct job job = {.x = of->x, .rows = of->rows, .C = of->C};
    return sum_blocks(square_block, &job, (of->rows + BLOCK - 1) / BLOCK, of->sums, of->threads);
}

/* One loop for each activation: `kind` is a constant in each, so that it is not tested for every value. */
#define FOR_KIND(kind, CALL)                  \
    switch (kind) {                           \
        case SILU: CALL(SILU); break;         \
        case GELU: CALL(GELU); break;         \
        case NONE: CALL(NONE); break;         \
        default: CALL(RELU);                  \
    }

/* out [rows, C] = activated(scale x + shift) */
struct applying {
    const bf16 *x;
    bf16 *out;
    const float *scale, *shift;
    int64_t rows, C, kind, threads;
};

int apply(const struct applying *of) {
    const bf16 *x = of->x;
    bf16 *out = of->out;
    const float *scale = of->scale, *shift = of->shift;
    int64_t rows = of->rows, C = of->C, kind = of->kind, threads = of->threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *from = x + r * C;
        bf16 *restrict to = out + r * C;
#define APPLY(KIND)                       \
    _Pragma("omp simd")                   \
    for (int64_t c = 0; c < C; c++) to[c] = float_to_bf16(activate(bf16_to_float(from[c]) * scale[c] + shift[c], KIND))
        FOR_KIND(kind, APPLY)
    }
    return 0;
}

static void gradient_block(const struct job *job, int64_t block, float *restrict one, float *restrict two) {
    int64_t C = job->C, end = (block + 1) * BLOCK < job->rows ? (block + 1) * BLOCK : job->rows;
    const float *scale = job->scale, *shift = job->shift;
    for (int64_t r = block * BLOCK; r < end; r++) {
        const bf16 *x = job->x + r * C, *g = job->gradient + r * C;
#define ADD(KIND)                                                              \
    _Pragma("omp simd")                                                        \
    for (int64_t c = 0; c < C; c++) {                                          \
        float value = bf16_to_float(x[c]);                                             \
        float d = bf16_to_float(g[c]) * activation_grad(value * scale[c] + shift[c], KIND);      \
        one[c] += d, two[c] += d * value;                                      \
    }
        FOR_KIND(job->kind, ADD)
    }
}

/* Sums [2, C] of d and of d x: d is the gradient g [rows, C] before the activation. Returns 1 if there is no memory. */
struct summing_gradient {
    const bf16 *g, *x;
    double *sums;
    const float *scale, *shift;
    int64_t rows, C, kind, threads;
};

int sum_gradient(const struct summing_gradient *of) {
    struct job job = {.x = of->x, .gradient = of->g, .scale = of->scale, .shift = of->shift, .rows = of->rows, .C = of->C,
                      .kind = of->kind};
    return sum_blocks(gradient_block, &job, (of->rows + BLOCK - 1) / BLOCK, of->sums, of->threads);
}

static inline __attribute__((always_inline)) float input_gradient(const struct job *job, const bf16 *g, const bf16 *x,
                                                                  int64_t c, int kind) {
    float value = bf16_to_float(x[c]);
    float d = bf16_to_float(g[c]) * activation_grad(value * job->scale[c] + job->shift[c], kind);
    return job->scale[c] * d + job->by_value[c] * value + job->constant[c];
}

static void spread_row(const struct job *job, int64_t block) {
    int64_t C = job->C, W = job->W, row = block % job->rows;
    bf16 *top = job->out + (block / job->rows * job->H + 2 * row) * W * C, *bottom = top + W * C;
    for (int64_t w = 0; w < job->columns; w++) {
        int64_t at = (block * job->columns + w) * C;
        const bf16 *g = job->gradient + at, *x = job->x + at;
        const uint8_t *argmax = job->argmax + at;
        bf16 *restrict a = top + 2 * w * C, *restrict b = a + C, *restrict d = bottom + 2 * w * C, *restrict e = d + C;
#define SPREAD(KIND)                                                                    \
    _Pragma("omp simd")                                                                 \
    for (int64_t c = 0; c < C; c++) {                                                   \
        bf16 result = float_to_bf16(input_gradient(job, g, x, c, KIND));                       \
        a[c] = argmax[c] == 0 ? result : 0, b[c] = argmax[c] == 1 ? result : 0;           \
        d[c] = argmax[c] == 2 ? result : 0, e[c] = argmax[c] == 3 ? result : 0;           \
    }
        FOR_KIND(job->kind, SPREAD)
    }
    if (W % 2) {
        memset(top + (W - 1) * C, 0, sizeof(bf16) * (size_t)C);
        memset(bottom + (W - 1) * C, 0, sizeof(bf16) * (size_t)C);
    }
    if (job->H % 2 && row == job->rows - 1) memset(bottom + W * C, 0, sizeof(bf16) * (size_t)(W * C));
}

/* out = scale d + by_value x + constant, all [rows, C] */
struct spreading {
    const bf16 *g, *x;
    bf16 *out;
    const float *scale, *shift, *by_value, *constant;
    int64_t rows, C, kind, threads;
};

int spread_rows(const struct spreading *of) {
    const bf16 *gradient = of->g, *x = of->x;
    bf16 *out = of->out;
    int64_t rows = of->rows, C = of->C, kind = of->kind, threads = of->threads;
    struct job job = {.scale = of->scale, .shift = of->shift, .by_value = of->by_value, .constant = of->constant};
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *g = gradient + r * C, *from = x + r * C;
        bf16 *restrict to = out + r * C;
#define WRITE(KIND)               \
    _Pragma("omp simd")           \
    for (int64_t c = 0; c < C; c++) to[c] = float_to_bf16(input_gradient(&job, g, from, c, KIND))
        FOR_KIND(kind, WRITE)
    }
    return 0;
}

/* The same through 2×2 max-pooling: out [N, H, W, C], from a gradient g and maxima x of half the sides. */
struct spreading_maxima {
    const bf16 *g, *x;
    uint8_t *argmax;
    bf16 *out;
    const float *scale, *shift, *by_value, *constant;
    int64_t N, H, W, C, kind, threads;
};

int spread_maxima(const struct spreading_maxima *of) {
    struct job job = {.x = of->x, .gradient = of->g, .out = of->out, .argmax = of->argmax, .scale = of->scale,
                      .shift = of->shift, .by_value = of->by_value, .constant = of->constant, .H = of->H, .W = of->W,
                      .C = of->C, .rows = of->H / 2, .columns = of->W / 2, .kind = of->kind};
    int64_t threads = of->threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t block = 0; block < of->N * job.rows; block++) spread_row(&job, block);
    return 0;
}
