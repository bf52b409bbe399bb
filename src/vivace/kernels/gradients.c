/* Weight gradients of 3×3 convolutions, stride 1 and padding 1, of bf16 maps, with the matrix unit of a CPU (AMX).

   Maps lie channels last: value (n, h, w, c) at ((n H + h) W + w) C + c. The gradient for a tap (i, j) is the sum over
   all pixels of x[n, h + i - 1, w + j - 1] g[n, h, w]: for each pixel a matrix product with 32 images n inside. So it
   needs no long rows, a tap is only another address, and products with the border are left out rather than multiplied by
   zero. Sums are taken in float. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* arch_prctl's request for the permission to use tiles */
#define REQUEST_PERMISSION 0x1023
#define TILE_DATA 18

/* channels of a tile, images of a tile, values of one and of a tile of sums */
#define ROWS 16
#define IMAGES 32
#define TILE (ROWS * IMAGES)
#define SUM (ROWS * ROWS)
/* tiles that are summed at once: three columns of taps, twice 16 channels of x */
#define SUMS 6
/* pixels between which sums are kept in tiles: fewer, and sums are loaded too often; more, and packed values leave the
   L2 cache */
#ifndef PIXELS
#define PIXELS 60
#endif

/* 1 if the system lets this process use the tiles; the other functions need them. */
int usable(void) { return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0; }

/* What all threads share. C and K: channels of x and of the gradient; blocks of 32 and of 16 of them. */
struct job {
    const bf16 *x, *gradient, *zeros;
    int64_t N, H, W, C, K, c_blocks, k_blocks, band, bands, ring;
};

/* What a thread packs, and its sums [k_blocks, c_blocks, 3, SUMS, ROWS, ROWS].
   across [ring, c_blocks, W, 2, ROWS, IMAGES]: rows of x, row h at h % ring.
   pairs [k_blocks, band, W, IMAGES / 2, ROWS, 2]: rows of the gradient. */
struct scratch {
    bf16 *across, *pairs;
    float *sums;
};

/* 16 rows of 16 pairs, transposed. */
static inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* The first (or second) 16 of 32 channels of two positions, as pairs. */
static inline __m512i paired(__m512i first, __m512i second, int half) {
    __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                   36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    __m512i from = half ? _mm512_add_epi16(low, _mm512_set1_epi16(16)) : low;
    return _mm512_permutex2var_epi16(first, from, second);
}

static inline __mmask32 channels_left(int64_t channels, int64_t block) {
    int64_t left = channels - 32 * block;
    return left >= 32 ? 0xffffffffu : ((__mmask32)1 << left) - 1;
}

/* Addresses of the pixels (h, 0) of 32 images from `first` on; zeros beyond the last image. steps: from a pixel
   to the next one, 0 for zeros. */
static void image_pointers(const struct job *job, const bf16 *map, int64_t channels, int64_t first, int64_t h,
                   const bf16 *at[IMAGES], int64_t steps[IMAGES]) {
    for (int64_t n = 0; n < IMAGES; n++) {
        int there = first + n < job->N;
        at[n] = there ? map + ((first + n) * job->H + h) * job->W * channels : job->zeros;
        steps[n] = there ? channels : 0;
    }
}

/* Row h of x into its place in `across`. */
static void pack_across(const struct job *job, int64_t first, int64_t h, bf16 *across) {
    const bf16 *at[IMAGES];
    int64_t steps[IMAGES];
    image_pointers(job, job->x, job->C, first, h, at, steps);
    bf16 *row = across + h % job->ring * job->c_blocks * job->W * 2 * TILE;
    for (int64_t w = 0; w < job->W; w++) {
        for (int64_t block = 0; block < job->c_blocks; block++) {
            __mmask32 left = channels_left(job->C, block);
            __m512i low[16], high[16];
            for (int i = 0; i < 16; i++) {
                __m512i one = _mm512_maskz_loadu_epi16(left, at[2 * i] + 32 * block);
                __m512i two = _mm512_maskz_loadu_epi16(left, at[2 * i + 1] + 32 * block);
                low[i] = paired(one, two, 0), high[i] = paired(one, two, 1);
            }
            transpose16(low), transpose16(high);
            bf16 *to = row + (block * job->W + w) * 2 * TILE;
            for (int i = 0; i < 16; i++) {
                _mm512_store_si512(to + i * IMAGES, low[i]);
                _mm512_store_si512(to + TILE + i * IMAGES, high[i]);
            }
        }
        for (int n = 0; n < IMAGES; n++) at[n] += steps[n];
    }
}

/* Row h of the gradient into row `place` of `pairs`. */
static void pack_pairs(const struct job *job, int64_t first, int64_t h, int64_t place, bf16 *pairs) {
    const bf16 *at[IMAGES];
    int64_t steps[IMAGES], whole = job->band * job->W * TILE;
    image_pointers(job, job->gradient, job->K, first, h, at, steps);
    for (int64_t w = 0; w < job->W; w++) {
        for (int64_t block = 0; 2 * block < job->k_blocks; block++) {
            __mmask32 left = channels_left(job->K, block);
            bf16 *low = pairs + 2 * block * whole + (place * job->W + w) * TILE, *high = low + whole;
            int both = 2 * block + 1 < job->k_blocks;
            for (int i = 0; i < 16; i++) {
                __m512i one = _mm512_maskz_loadu_epi16(left, at[2 * i] + 32 * block);
                __m512i two = _mm512_maskz_loadu_epi16(left, at[2 * i + 1] + 32 * block);
                _mm512_store_si512(low + i * IMAGES, paired(one, two, 0));
                if (both) _mm512_store_si512(high + i * IMAGES, paired(one, two, 1));
            }
        }
        for (int n = 0; n < IMAGES; n++) at[n] += steps[n];
    }
}

/* The compiler does not know that the tile instructions read and write memory. */
#define MEMORY_IS_TOUCHED() __asm__ volatile("" ::: "memory")
#define EACH_SUM(what)                                                                    \
    what(0, sums, 64); what(1, sums + SUM, 64); what(2, sums + 2 * SUM, 64);               \
    what(3, sums + 3 * SUM, 64); what(4, sums + 4 * SUM, 64); what(5, sums + 5 * SUM, 64)
#define MULTIPLY(left, right, from)         \
    _tile_loadd(7, from, 64);                \
    _tile_dpbf16ps(left, 7, 6);              \
    _tile_loadd(7, (from) + TILE, 64);       \
    _tile_dpbf16ps(right, 7, 6)

/* Adds the products of the rows [h, end) of the gradient, which begin at `pairs`, for row i of the taps. Tiles 0 to 5 are
   sums, 6 is the gradient, 7 is x. */
static void add_products(const struct job *job, const bf16 *across, const bf16 *pairs, float *sums, int64_t i,
                         int64_t h, int64_t end) {
    int64_t W = job->W;
    MEMORY_IS_TOUCHED();
    EACH_SUM(_tile_loadd);
    for (; h < end; h++, pairs += W * TILE) {
        int64_t from = h + i - 1;
        if (from < 0 || from >= job->H) continue;
        const bf16 *x = across + from % job->ring * job->c_blocks * W * 2 * TILE, *g = pairs;
        for (int64_t w = 0; w < W; w++, x += 2 * TILE, g += TILE) {
            _tile_loadd(6, g, 64);
            if (w > 0) { MULTIPLY(0, 3, x - 2 * TILE); }
            MULTIPLY(1, 4, x);
            if (w < W - 1) { MULTIPLY(2, 5, x + 2 * TILE); }
        }
    }
    EACH_SUM(_tile_stored);
    MEMORY_IS_TOUCHED();
}

/* Adds the products of the bands [from, to): bands of the first 32 images, of the next 32, … */
static void add_bands(const struct job *job, const struct scratch *scratch, int64_t from, int64_t to) {
    int64_t packed = 0;
    for (int64_t at = from; at < to; at++) {
        int64_t first = at / job->bands * IMAGES, h = at % job->bands * job->band;
        int64_t end = h + job->band < job->H ? h + job->band : job->H;
        /* the last two rows of the band before this one are still packed */
        if (h == 0) packed = 0;
        else if (at == from) packed = h - 1;
        for (; packed <= end && packed < job->H; packed++) pack_across(job, first, packed, scratch->across);
        for (int64_t row = h; row < end; row++) pack_pairs(job, first, row, row - h, scratch->pairs);
        for (int64_t k = 0; k < job->k_blocks; k++)
            for (int64_t c = 0; c < job->c_blocks; c++)
                for (int64_t i = 0; i < 3; i++)
                    add_products(job, scratch->across + c * job->W * 2 * TILE, scratch->pairs + k * job->band * job->W * TILE,
                                 scratch->sums + ((k * job->c_blocks + c) * 3 + i) * SUMS * SUM, i, h, end);
    }
}

/* Writes the sums of all threads to out [K, 3, 3, C]. */
static void collect(const struct job *job, const struct scratch *scratches, int64_t threads, float *out) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < job->K; k++)
        for (int64_t c = 0; c < job->C; c++)
            for (int64_t tap = 0; tap < 9; tap++) {
                int64_t tile = ((k / 16 * job->c_blocks + c / 32) * 3 + tap / 3) * SUMS + 3 * (c / 16 % 2) + tap % 3;
                int64_t at = tile * SUM + c % 16 * ROWS + k % 16;
                float sum = 0;
                for (int64_t t = 0; t < threads; t++) sum += scratches[t].sums[at];
                out[(k * 9 + tap) * job->C + c] = sum;
            }
}

static void *alloc_aligned(int64_t bytes) { return aligned_alloc(64, (size_t)((bytes + 63) / 64 * 64)); }

/* out [K, 3, 3, C], float: the gradient of the weights for x [N, H, W, C] and g [N, H, W, K]. gradients.py has the same
   fields in the same order. */
struct gradient {
    const bf16 *x, *g;
    float *out;
    int64_t N, H, W, C, K, threads;
};

/* Returns 1 if there is no memory. */
int weight_gradient(const struct gradient *of) {
    int64_t N = of->N, H = of->H, W = of->W, C = of->C, K = of->K, threads = of->threads;
    int64_t band = (PIXELS + W - 1) / W;
    if (band > H) band = H;
    int64_t bands = (H + band - 1) / band, work = (N + IMAGES - 1) / IMAGES * bands;
    if (threads > work) threads = work;
    struct job job = {.x = of->x, .gradient = of->g, .N = N, .H = H, .W = W, .C = C, .K = K, .c_blocks = (C + 31) / 32,
                      .k_blocks = (K + 15) / 16, .band = band, .bands = bands, .ring = band + 2};
    int64_t num_sums = job.k_blocks * job.c_blocks * 3 * SUMS * SUM;
    struct scratch *scratches = calloc((size_t)threads, sizeof(struct scratch));
    bf16 *zeros = calloc((size_t)(C + K + 32), sizeof(bf16));
    int failed = !scratches || !zeros;
    job.zeros = zeros;
    for (int64_t t = 0; t < threads && !failed; t++) {
        scratches[t].across = alloc_aligned(2 * job.ring * job.c_blocks * W * 2 * TILE);
        scratches[t].pairs = alloc_aligned(2 * job.k_blocks * band * W * TILE);
        scratches[t].sums = alloc_aligned(4 * num_sums);
        failed = !scratches[t].across || !scratches[t].pairs || !scratches[t].sums;
    }
    if (!failed) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t t = 0; t < threads; t++) {
            struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
            _Alignas(64) uint8_t before[64];
            for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = ROWS;
            /* other users of tiles in this thread may rely on the shapes that they configured */
            _tile_storeconfig(before);
            _tile_loadconfig(&shape);
            memset(scratches[t].sums, 0, (size_t)(4 * num_sums));
            add_bands(&job, &scratches[t], work * t / threads, work * (t + 1) / threads);
            _tile_release();
            if (before[0]) _tile_loadconfig(before);
        }
        collect(&job, scratches, threads, of->out);
    }
    for (int64_t t = 0; scratches && t < threads; t++) free(scratches[t].across), free(scratches[t].pairs), free(scratches[t].sums);
    free(scratches), free(zeros);
    return failed;
}

#else

int usable(void) { return 0; }

#endif
