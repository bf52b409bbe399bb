/* Depthwise convolutions of bf16 or float maps, and the gradients of their inputs: each channel has a filter of its own.

   An output is a sum over rows of the input. The gradient of the input is a convolution too, its taps turned round; with
   stride 2, every second column has taps of its own. */

#include "depthwise.h"

/* Every `apart`-th column of an output row from `first` on, `columns` of them: each is the sum over `taps` columns of
   the input, from column `from` on for the first, `step` further for the next. Of a filter's row, its taps are those
   from place `place` on. */
struct phase {
    int64_t first, apart, columns, from, step, taps, place;
};

/* What all threads share. Output row h sums rows of the input: of tap row i, row (h across - top + i) / down where that
   is whole; weights [block, VECTORS, kernel_h, kernel_w], taps in the order of the phases. */
struct job {
    const void *x;
    const float *bias;
    const vec *weights;
    void *out;
    int64_t H, W, C, out_h, out_w, kernel_h, kernel_w, stride, top, is_gradient, is_bf16, num_phases;
    struct phase phases[2];
};

/* `many` outputs from column w of the phase on. */
#define EACH_COLUMNS(what) what(8) what(7) what(4) what(1)
ALWAYS void add_columns(const int many, const int taps, const int step, const vec *const *rows, const vec *const *weights,
                        int64_t count, int64_t at, vec start, vec *out) {
    vec sums[8];
#pragma GCC unroll 8
    for (int o = 0; o < many; o++) sums[o] = start;
    for (int64_t r = 0; r < count; r++) {
        const vec *x = rows[r] + at;
#pragma GCC unroll 7
        for (int j = 0; j < taps; j++) {
            vec weight = weights[r][j];
#pragma GCC unroll 8
            for (int o = 0; o < many; o++) sums[o] += x[o * step + j] * weight;
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < many; o++) out[o] = sums[o];
}

ALWAYS int64_t run_length(int64_t left) { return left % 7 == 0 ? 7 : left >= 8 ? 8 : left >= 4 ? 4 : 1; }

ALWAYS void add_row(const int taps, const int step, const vec *const *rows, const vec *const *weights, int64_t count,
                    int64_t columns, vec start, vec *out) {
    for (int64_t w = 0, many; w < columns; w += many) {
        many = run_length(columns - w);
#define COLUMNS(n) if (many == n) add_columns(n, taps, step, rows, weights, count, w * step, start, out + w);
        EACH_COLUMNS(COLUMNS)
    }
}

/* The columns of a phase into out, by sums over `count` rows that begin at the phase's first column. */
static void add_phase(const struct phase *phase, const vec *const *rows, const vec *const *weights, int64_t count, vec start,
                      vec *out) {
#define ROW(n, by) if (phase->taps == n && phase->step == by) add_row(n, by, rows, weights, count, phase->columns, start, out);
    EACH_TAPS(ROW, 1) EACH_TAPS(ROW, 2)
    if (!phase->taps)
        for (int64_t w = 0; w < phase->columns; w++) out[w] = start;
}

/* Row h of the output in memory: vector v of the block at c, for the columns of a phase. */
static void write_phase(const struct job *job, const struct phase *phase, int64_t row, int64_t c, const vec *values) {
    int64_t at = (row * job->out_w + phase->first) * job->C + c, apart = phase->apart * job->C, left = job->C - c;
    if (job->is_bf16 && left >= LANES)
        for (int64_t w = 0; w < phase->columns; w++) store(job->out, at + w * apart, LANES, 1, values[w]);
    else
        for (int64_t w = 0; w < phase->columns; w++)
            if (job->is_bf16) store(job->out, at + w * apart, left, 1, values[w]);
            else store(job->out, at + w * apart, left, 0, values[w]);
}

/* Which row of the input tap row i of output row h is; -1: none. */
static inline int64_t input_row(const struct job *job, int64_t h, int64_t i) {
    int64_t row = job->is_gradient ? h + job->top - i : h * job->stride - job->top + i;
    if (job->is_gradient) row = row < 0 || row % job->stride ? -1 : row / job->stride;
    return row < job->H ? row : -1;
}

/* One block of the channels of one image. */
static void convolve_block(const struct job *job, const struct ring *ring, vec *values, int64_t n, int64_t block) {
    int64_t c = block * BLOCK, packed = 0, taps = job->kernel_h * job->kernel_w;
    for (int64_t h = 0; h < job->out_h; h++) {
        int64_t numbers[MAX_TAPS], of_tap[MAX_TAPS], count = 0;
        for (int64_t i = 0; i < job->kernel_h; i++) {
            int64_t row = input_row(job, h, i);
            if (row < 0) continue;
            for (; packed <= row; packed++)
                pack(ring, packed, job->x, (n * job->H + packed) * job->W * job->C, job->W, c, job->C, job->is_bf16);
            numbers[count] = row, of_tap[count++] = i;
        }
        for (int64_t v = 0; v < VECTORS && c + v * LANES < job->C; v++) {
            vec start = {0};
            if (job->bias) start = load(job->bias, c + v * LANES, job->C - c - v * LANES, 0);
            for (int64_t p = 0; p < job->num_phases; p++) {
                const struct phase *phase = &job->phases[p];
                const vec *rows[MAX_TAPS], *weights[MAX_TAPS];
                for (int64_t r = 0; r < count; r++) {
                    rows[r] = ring_row(ring, v, numbers[r]) + phase->from;
                    weights[r] = job->weights + (block * VECTORS + v) * taps + of_tap[r] * job->kernel_w + phase->place;
                }
                add_phase(phase, rows, weights, count, start, values);
                write_phase(job, phase, n * job->out_h + h, c + v * LANES, values);
            }
        }
    }
}

/* weights [kernel_h, kernel_w, C], whose tap columns come in the order of `columns`, as vectors; NULL without memory. */
static vec *pack_weights(const float *weights, int64_t kernel_h, int64_t kernel_w, int64_t C, const int64_t *columns) {
    int64_t vectors = (C + BLOCK - 1) / BLOCK * VECTORS, taps = kernel_h * kernel_w;
    vec *packed = alloc_zeros(vectors * taps * (int64_t)sizeof(vec));
    for (int64_t v = 0; packed && v * LANES < C; v++)
        for (int64_t tap = 0; tap < taps; tap++) {
            int64_t from = tap / kernel_w * kernel_w + columns[tap % kernel_w];
            packed[v * taps + tap] = load(weights, from * C + v * LANES, C - v * LANES, 0);
        }
    return packed;
}

/* All of N images; the phases' columns of taps are `columns`. Returns 1 if there is no memory. */
static int run(struct job *job, int64_t N, const float *weights, const int64_t *columns, int64_t threads) {
    int64_t margin = 0, end = job->W;
    for (int64_t p = 0; p < job->num_phases; p++) {
        const struct phase *phase = &job->phases[p];
        margin = at_least(margin, -phase->from);
        end = at_least(end, phase->from + (phase->columns - 1) * phase->step + phase->taps);
    }
    struct share share = share_work(N, job->C, threads);
    vec *packed = pack_weights(weights, job->kernel_h, job->kernel_w, job->C, columns);
    job->weights = packed;
    threads = at_most(threads, share.items);
    int failed = !packed;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
    for (int64_t t = 0; t < threads; t++) {
        struct ring ring;
        vec *values = alloc_zeros(job->out_w * (int64_t)sizeof(vec));
        int ready = open_ring(&ring, job->kernel_h, margin + end, margin) && values && packed;
        for (int64_t item = share.items * t / threads; ready && item < share.items * (t + 1) / threads; item++)
            for (int64_t block = FIRST_BLOCK(share, item); block < END_BLOCK(share, item); block++)
                convolve_block(job, &ring, values, item / share.chunks, block);
        failed |= !ready;
        free(ring.values), free(values);
    }
    free(packed);
    return failed;
}

/* The convolution of x [N, H, W, C] into out [N, out_h, out_w, C]; weights [kernel_h, kernel_w, C]; bias may be null.
   `top` and `left`: zeros above and left of x; as many below and right of it as out needs. */
struct convolution {
    const void *x;
    const float *weights, *bias;
    void *out;
    int64_t N, H, W, C, out_h, out_w, kernel_h, kernel_w, stride, top, left, is_bf16, threads;
};

int convolve(const struct convolution *of) {
    static const int64_t columns[MAX_TAPS] = {0, 1, 2, 3, 4, 5, 6};
    struct job job = {.x = of->x, .bias = of->bias, .out = of->out, .H = of->H, .W = of->W, .C = of->C, .out_h = of->out_h,
                      .out_w = of->out_w, .kernel_h = of->kernel_h, .kernel_w = of->kernel_w, .stride = of->stride,
                      .top = of->top, .is_bf16 = of->is_bf16, .num_phases = 1};
    job.phases[0] = (struct phase){.apart = 1, .columns = of->out_w, .from = -of->left, .step = of->stride, .taps = of->kernel_w};
    return run(&job, of->N, of->weights, columns, of->threads);
}

/* The gradient of x, out [N, H, W, C], for the gradient g [N, out_h, out_w, C] of the output. */
struct input_gradient {
    const void *g;
    const float *weights;
    void *out;
    int64_t N, H, W, C, out_h, out_w, kernel_h, kernel_w, stride, top, left, is_bf16, threads;
};

int input_gradient(const struct input_gradient *of) {
    struct job job = {.x = of->g, .out = of->out, .H = of->out_h, .W = of->out_w, .C = of->C, .out_h = of->H, .out_w = of->W,
                      .kernel_h = of->kernel_h, .kernel_w = of->kernel_w, .stride = of->stride, .top = of->top,
                      .is_gradient = 1, .is_bf16 = of->is_bf16, .num_phases = of->stride};
    int64_t columns[MAX_TAPS], place = 0, stride = of->stride;
    /* with stride 2, odd and even columns get their sums from taps of their own */
    for (int64_t b = 0; b < stride; b++) {
        int64_t j = (b + of->left) % stride, taps = j < of->kernel_w ? (of->kernel_w - 1 - j) / stride + 1 : 0;
        job.phases[b] = (struct phase){.first = b, .apart = stride, .columns = (of->W - b + stride - 1) / stride,
                                       .from = (b + of->left - j) / stride - (taps - 1), .step = 1, .taps = taps, .place = place};
        for (int64_t t = 0; t < taps; t++) columns[place++] = j + stride * (taps - 1 - t);
    }
    return run(&job, of->N, of->weights, columns, of->threads);
}
