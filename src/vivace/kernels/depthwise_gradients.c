/* Gradients of the weights of depthwise convolutions of bf16 or float maps.

   For each tap the sum over all pixels of x[n, h stride - top + i, w stride - left + j] g[n, h, w], in float for groups of
   images, whose sums are added in double. */

#include "depthwise.h"

/* groups of images whose sums are kept apart: as many whatever the number of threads */
#define GROUPS 16

/* Adds to sums[taps], over `columns` outputs, gradient times what each tap saw. */
ALWAYS void add_taps(const int taps, const int step, const vec *x, const vec *g, int64_t columns, vec *sums) {
    /* several sums for each tap: an addition waits for the one before it */
    enum { SETS = 4 };
    const int sets = taps > 3 ? 2 : SETS;
    vec s[SETS][MAX_TAPS] = {{{0}}};
    for (int64_t w = 0, many; w < columns; w += many, x += many * step, g += many) {
        many = columns - w >= 4 ? 4 : 1;
#define TAPS(n)                                                                  \
    if (many == n) {                                                             \
        _Pragma("GCC unroll 4") for (int o = 0; o < n; o++)                      \
            _Pragma("GCC unroll 7") for (int j = 0; j < taps; j++)               \
                s[o % sets][j] += x[o * step + j] * g[o];                        \
    }
        TAPS(4) TAPS(1)
    }
#pragma GCC unroll 7
    for (int j = 0; j < taps; j++)
        sums[j] += sets == 2 ? s[0][j] + s[1][j] : (s[0][j] + s[1][j]) + (s[2][j] + s[3][j]);
}

static void add_row_of_taps(int64_t taps, int64_t step, const vec *x, const vec *g, int64_t columns, vec *sums) {
#define ROW_OF_TAPS(n, by) if (taps == n && step == by) add_taps(n, by, x, g, columns, sums);
    EACH_TAPS(ROW_OF_TAPS, 1) EACH_TAPS(ROW_OF_TAPS, 2)
}

/* out [kernel_h, kernel_w, C], float: the gradient of the weights. */
struct weight_gradient {
    const void *x, *g;
    float *out;
    int64_t N, H, W, C, out_h, out_w, kernel_h, kernel_w, stride, top, left, is_bf16, threads;
};

/* Adds to total [kernel_h, kernel_w, C] what one block of the channels of one image gives. */
static void add_block(const struct weight_gradient *of, const struct ring *ring, const struct ring *gradient, int64_t n,
                      int64_t block, float *total) {
    vec sums[VECTORS][MAX_TAPS * MAX_TAPS] = {{{0}}};
    int64_t c = block * BLOCK, packed = 0, C = of->C, taps = of->kernel_h * of->kernel_w;
    for (int64_t h = 0; h < of->out_h; h++) {
        int64_t first = h * of->stride - of->top, end = at_most(first + of->kernel_h, of->H);
        for (; packed < end; packed++)
            pack(ring, packed, of->x, (n * of->H + packed) * of->W * C, of->W, c, C, of->is_bf16);
        pack(gradient, 0, of->g, (n * of->out_h + h) * of->out_w * C, of->out_w, c, C, of->is_bf16);
        for (int64_t v = 0; v < VECTORS && c + v * LANES < C; v++)
            for (int64_t row = at_least(first, 0); row < end; row++)
                add_row_of_taps(of->kernel_w, of->stride, ring_row(ring, v, row) - of->left, ring_row(gradient, v, 0),
                                of->out_w, sums[v] + (row - first) * of->kernel_w);
    }
    for (int64_t v = 0; v < VECTORS && c + v * LANES < C; v++)
        for (int64_t tap = 0; tap < taps; tap++) {
            int64_t at = tap * C + c + v * LANES, left = C - c - v * LANES;
            store(total, at, left, 0, load(total, at, left, 0) + sums[v][tap]);
        }
}

/* Returns 1 if there is no memory. */
int weight_gradient(const struct weight_gradient *of) {
    int64_t groups = at_most(of->N, GROUPS), size = of->kernel_h * of->kernel_w * of->C;
    int64_t width = of->left + at_least(of->W, (of->out_w - 1) * of->stride - of->left + of->kernel_w);
    struct share share = share_work(groups, of->C, of->threads);
    int64_t threads = at_most(of->threads, share.items);
    float *totals = alloc_zeros(groups * size * (int64_t)sizeof(float));
    int failed = !totals;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
    for (int64_t t = 0; t < threads; t++) {
        struct ring ring, gradient;
        int ready = open_ring(&ring, of->kernel_h, width, of->left) & open_ring(&gradient, 1, of->out_w, 0);
        ready = ready && totals;
        for (int64_t item = share.items * t / threads; ready && item < share.items * (t + 1) / threads; item++) {
            int64_t group = item / share.chunks;
            for (int64_t n = of->N * group / groups; n < of->N * (group + 1) / groups; n++)
                for (int64_t block = FIRST_BLOCK(share, item); block < END_BLOCK(share, item); block++)
                    add_block(of, &ring, &gradient, n, block, totals + group * size);
        }
        failed |= !ready;
        free(ring.values), free(gradient.values);
    }
    for (int64_t at = 0; !failed && at < size; at++) {
        double sum = 0;
        for (int64_t group = 0; group < groups; group++) sum += totals[group * size + at];
        of->out[at] = (float)sum;
    }
    free(totals);
    return failed;
}
