/* Cropping and resizing of uint8 images to Pillow's pixels, to the last bit, many pixels at a time.

   Two passes of weighted sums, across rows and down columns: weights are computed in double precision and rounded to 22
   bits, sums are int32, and the values between the passes are rounded to uint8. Pillow computes one value after the
   other; here 16 columns are summed at once, and for the pass across rows 16 rows are transposed. Built
   with -ffp-contract=off: differently rounded weights would change pixels. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BITS 22
#define LANES 16

typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* as resize.py numbers them */
enum { BILINEAR, BICUBIC };

typedef struct {
    int32_t *first, *count, *taps;
    int32_t side, stride;
} Weights;

static double triangle(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys (1981), a = -1/2 */
static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static void free_weights(Weights *w) {
    free(w->first);
    free(w->count);
    free(w->taps);
}

/* Of `side` values along an axis of `size` pixels, of which [from, to) are kept: the pixels of each, and their weights.
   Pixels outside of it still contribute. Returns 0, or -1 without memory. */
static int make_weights(int32_t size, int32_t from, int32_t to, int32_t side, int kind, Weights *w) {
    double scale = (double)(to - from) / side, widened = scale < 1.0 ? 1.0 : scale;
    double support = (kind == BICUBIC ? 2.0 : 1.0) * widened;
    w->side = side;
    w->stride = (int32_t)ceil(support) * 2 + 1;
    w->first = malloc(sizeof(int32_t) * side);
    w->count = malloc(sizeof(int32_t) * side);
    w->taps = malloc(sizeof(int32_t) * side * (int64_t)w->stride);
    double *exact = malloc(sizeof(double) * w->stride);
    if (!w->first || !w->count || !w->taps || !exact) {
        free(exact);
        return -1;
    }
    for (int32_t i = 0; i < side; i++) {
        double centre = from + (i + 0.5) * scale, sum = 0.0, inverse = 1.0 / widened;
        int32_t first = (int32_t)(centre - support + 0.5), end = (int32_t)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (end > size) end = size;
        for (int32_t k = 0; k < end - first; k++) {
            double x = (k + first - centre + 0.5) * inverse;
            exact[k] = kind == BICUBIC ? cubic(x) : triangle(x);
            sum += exact[k];
        }
        for (int32_t k = 0; k < end - first; k++) {
            double weight = sum != 0.0 ? exact[k] / sum : exact[k];
            w->taps[(int64_t)i * w->stride + k] = (int32_t)((weight < 0 ? -0.5 : 0.5) + weight * (1 << BITS));
        }
        w->first[i] = first;
        w->count[i] = end - first;
    }
    free(exact);
    return 0;
}

static inline bytes load(const uint8_t *from) {
    bytes value;
    memcpy(&value, from, LANES);
    return value;
}

static inline ints load_ints(const int32_t *from) {
    ints value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* in two steps: for one, GCC 12 moves each byte by itself */
static inline void bytes_to_ints(bytes value, int32_t *to) {
    ints wide = __builtin_convertvector(__builtin_convertvector(value, shorts), ints);
    memcpy(to, &wide, sizeof wide);
}

static inline bytes rounded(ints sum) {
    ints value = sum >> BITS;
    value &= ~(value >> 31);
    ints over = value > 255;
    return __builtin_convertvector((value & ~over) | (over & 255), bytes);
}

/* one builtin for GCC before 12, which has no other, and one for Clang, which has only this */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (bytes){__VA_ARGS__})
#endif

/* 16 × 16 bytes in place: interleaving halves four times is a transposition. */
static inline void transpose(bytes a[LANES]) {
    bytes b[LANES];
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = SHUFFLE(
                a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            b[2 * i + 1] = SHUFFLE(
                a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(a, b, sizeof b);
    }
}

/* Rounded sums of `count` rows, `stride` values apart, of n × LANES values; n is known where it is called. */
static inline __attribute__((always_inline)) void sum_rows(
    const int32_t *rows, int64_t stride, const int32_t *taps, int32_t count, uint8_t *out, const int n) {
    ints sums[4];
    for (int j = 0; j < n; j++) sums[j] = (ints){0} + (1 << (BITS - 1));
    for (int32_t k = 0; k < count; k++, rows += stride)
        for (int j = 0; j < n; j++) sums[j] += load_ints(rows + j * LANES) * taps[k];
    for (int j = 0; j < n; j++) {
        bytes value = rounded(sums[j]);
        memcpy(out + j * LANES, &value, LANES);
    }
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

static int32_t first_of(const Weights *w) { return w->first[0]; }

static int32_t end_of(const Weights *w) { return w->first[w->side - 1] + w->count[w->side - 1]; }

/* 16 bytes at `from`, of which `left` may be read: the others are 0. */
static inline bytes load_some(const uint8_t *from, int64_t left) {
    uint8_t end[LANES] = {0};
    if (left >= LANES) return load(from);
    memcpy(end, from, left);
    return load(end);
}

/* out [rows, side, channels] of in [rows, …, channels], whose first pixels are those with the first weight. scratch: of
   padded(used * channels) + padded(side * channels) columns of LANES int32. */
static void pass_across(
    const uint8_t *in, int64_t in_stride, int64_t rows, int channels, const Weights *w, uint8_t *out,
    int64_t out_stride, int32_t *scratch) {
    int64_t used = (int64_t)(end_of(w) - first_of(w)) * channels, made = (int64_t)w->side * channels;
    int32_t *columns = scratch;
    uint8_t *turned = (uint8_t *)(scratch + padded(used) * LANES);
    bytes a[LANES];
    for (int64_t y = 0; y < rows; y += LANES) {
        int64_t here = least(LANES, rows - y);
        /* columns: [used][16 rows] */
        for (int64_t x = 0; x < used; x += LANES) {
            for (int r = 0; r < LANES; r++) a[r] = load_some(in + least(y + r, rows - 1) * in_stride + x, used - x);
            transpose(a);
            for (int r = 0; r < LANES; r++) bytes_to_ints(a[r], columns + (x + r) * LANES);
        }
        /* transposed: [made][16 rows] */
        for (int32_t i = 0; i < w->side; i++) {
            const int32_t *from = columns + (int64_t)(w->first[i] - first_of(w)) * channels * LANES;
            const int32_t *taps = w->taps + (int64_t)i * w->stride;
            uint8_t *to = turned + (int64_t)i * channels * LANES;
            if (channels == 3)
                sum_rows(from, 3 * LANES, taps, w->count[i], to, 3);
            else
                sum_rows(from, LANES, taps, w->count[i], to, 1);
        }
        for (int64_t x = 0; x < made; x += LANES) {
            for (int r = 0; r < LANES; r++) a[r] = load(turned + least(x + r, made - 1) * LANES);
            transpose(a);
            for (int r = 0; r < here; r++) memcpy(out + (y + r) * out_stride + x, &a[r], least(LANES, made - x));
        }
    }
}

/* out [side, width] of in [used, width], whose first row is that with the first weight. scratch: of used + 1 rows of
   4 * LANES int32. */
static void pass_down(
    const uint8_t *in, int64_t in_stride, int64_t width, const Weights *w, uint8_t *out, int64_t out_stride,
    int32_t *scratch) {
    int64_t used = end_of(w) - first_of(w);
    uint8_t line[4 * LANES];
    for (int64_t x = 0; x < width; x += 4 * LANES) {
        int64_t here = least(4 * LANES, width - x);
        for (int64_t y = 0; y < used; y++)
            /* columns after the last one are summed too, but not kept: 0, so that no sum overflows */
            for (int64_t j = 0; j < 4 * LANES; j += LANES)
                bytes_to_ints(
                    j < here ? load_some(in + y * in_stride + x + j, here - j) : (bytes){0},
                    scratch + y * 4 * LANES + j);
        for (int32_t i = 0; i < w->side; i++) {
            const int32_t *from = scratch + (int64_t)(w->first[i] - first_of(w)) * 4 * LANES;
            sum_rows(from, 4 * LANES, w->taps + (int64_t)i * w->stride, w->count[i], line, 4);
            memcpy(out + i * out_stride + x, line, here);
        }
    }
}

/* in uint8 [height, width, channels], of which the box {left, top, right, bottom} is kept; out uint8 [side, side,
   channels]. channels: 1 or 3. down_first: which pass comes first. Returns 0, or -1 without memory. */
int resize(
    const uint8_t *in, int32_t height, int32_t width, int32_t channels, const int32_t *box, uint8_t *out, int32_t side,
    int32_t kind, int32_t down_first) {
    Weights across = {0}, down = {0};
    uint8_t *between = NULL;
    int32_t *scratch = NULL;
    int failed = make_weights(width, box[0], box[2], side, kind, &across)
                 || make_weights(height, box[1], box[3], side, kind, &down);
    if (!failed) {
        int64_t rows = end_of(&down) - first_of(&down), used = (int64_t)(end_of(&across) - first_of(&across)) * channels;
        int64_t made = (int64_t)side * channels, stride = (int64_t)width * channels;
        const uint8_t *from = in + first_of(&down) * stride + (int64_t)first_of(&across) * channels;
        between = malloc(down_first ? side * used : rows * made);
        scratch = calloc((padded(used) + padded(made)) * LANES + rows * 4 * LANES, sizeof(int32_t));
        failed = !between || !scratch;
        if (!failed && down_first) {
            pass_down(from, stride, used, &down, between, used, scratch);
            pass_across(between, used, side, channels, &across, out, made, scratch);
        } else if (!failed) {
            pass_across(from, stride, rows, channels, &across, between, made, scratch);
            pass_down(between, made, made, &down, out, made, scratch);
        }
    }
    free(between);
    free(scratch);
    free_weights(&across);
    free_weights(&down);
    return failed ? -1 : 0;
}
