/* Many rows: a block computes a tile of rows x outputs, a step of the depth at a time. Copies run GEMM_STAGES - 1 steps ahead into a ring in
 * shared memory; each warp takes 64 of the tile's rows times 32 or 64 outputs, the rows by ldmatrix, the weights as they lie (gemm_tiles.h).
 *
 * Rows of the ring are 64 bytes, their four units of 16 swapped by the row (unit u lies at u ^ (row / 2) % 4), so that the eight rows of a matrix of
 * ldmatrix lie in different banks.
 *
 * Wide rows: each 64 rows of the ring are 32 rows of the job, in turns 16 high halves and the 16 low halves that belong to them, so that a lane
 * has both sums of its outputs. Nothing else differs. */
#include <assert.h>
#include "kernels/cuda/gemm_finish.h"

#define GEMM_STAGES 4u
#define GEMM_WARP_ROWS 64u
#define GEMM_GROUP 8u                         /* tiles of rows that take the same tile of outputs one after the other */

template <uint32_t WARPS_M, uint32_t WARPS_N, uint32_t WARP_OUTPUTS> struct gemm_cut {
    static constexpr uint32_t threads = WARPS_M * WARPS_N * WARP_THREADS, ring_rows = WARPS_M * GEMM_WARP_ROWS;
    static constexpr uint32_t outputs = WARPS_N * WARP_OUTPUTS, strips = outputs / GEMM_STRIP, warp_strips = WARP_OUTPUTS / GEMM_STRIP;
    static constexpr uint32_t rows_bytes = ring_rows * GEMM_STEP, stage_bytes = rows_bytes + strips * GEMM_PIECE_BYTES;
    static constexpr uint32_t row_copies = rows_bytes / 16 / threads, weight_copies = strips * GEMM_PIECE_BYTES / 16 / threads;
    static constexpr uint32_t row_step = threads / 4;      /* a thread's copies of rows are so many rows apart */
    static_assert(rows_bytes % (16 * threads) == 0 && strips * GEMM_PIECE_BYTES % (16 * threads) == 0, "every thread copies the same");
};

/* The tile's row that a row of the ring belongs to. */
template <bool WIDE> DEVICE uint32_t gemm_row_of(uint32_t ring_row)
{
    return WIDE ? ring_row / 64 * 32 + ring_row % 64 / 32 * 16 + ring_row % 16 : ring_row;
}

DEVICE bool gemm_is_low(uint32_t ring_row)
{
    return ring_row / 16 % 2 != 0;
}

template <typename CUT, bool WIDE> struct gemm_source {      /* what a thread copies */
    const int8_t *rows[CUT::row_copies];                     /* NULL: beyond the job's rows */
    const int8_t *weights;                                   /* of strip 0 of this tile */
    uint32_t strips_left;                                    /* of this tile that exist */
};

template <typename CUT, bool WIDE> DEVICE gemm_source<CUT, WIDE> gemm_source_at(const gemm_work &work, uint32_t row, uint32_t strip)
{
    gemm_source<CUT, WIDE> s;
    const uint32_t unit = thread_index() % 4;
    UNROLL
    for (uint32_t i = 0; i < CUT::row_copies; i++) {
        const uint32_t ring_row = thread_index() / 4 + i * CUT::row_step, r = row + gemm_row_of<WIDE>(ring_row);
        const int8_t *a = WIDE && gemm_is_low(ring_row) ? work.job.a_low : work.job.a;
        s.rows[i] = r < work.job.rows ? a + size_t(r) * work.job.depth + unit * 16 : nullptr;
    }
    s.weights = work.job.w_tiled + size_t(strip) * work.steps * GEMM_PIECE_BYTES;
    s.strips_left = work.strips - strip;
    return s;
}

template <typename CUT, bool WIDE> DEVICE void gemm_copy_step(const gemm_work &work, const gemm_source<CUT, WIDE> &s, uint32_t step)
{
    unsigned char *stage = shared_bytes() + step % GEMM_STAGES * CUT::stage_bytes, *weights = stage + CUT::rows_bytes;
    const uint32_t unit = thread_index() % 4, depth = step * GEMM_STEP;
    const bool inside = depth + unit * 16 < work.job.depth;
    UNROLL
    for (uint32_t i = 0; i < CUT::row_copies; i++) {
        const uint32_t ring_row = thread_index() / 4 + i * CUT::row_step;
        const bool valid = inside && s.rows[i] != nullptr;
        cp_async_16(stage + ring_row * GEMM_STEP + (unit ^ ring_row / 2 % 4) * 16, valid ? s.rows[i] + depth : work.job.a, valid);
    }
    UNROLL
    for (uint32_t i = 0; i < CUT::weight_copies; i++) {
        const uint32_t at = (thread_index() + i * CUT::threads) * 16, strip = at / GEMM_PIECE_BYTES;
        const bool valid = strip < s.strips_left;
        const int8_t *from = s.weights + (size_t(strip) * work.steps + step) * GEMM_PIECE_BYTES + at % GEMM_PIECE_BYTES;
        cp_async_16(weights + at, valid ? from : work.job.w_tiled, valid);
    }
}

template <typename CUT> struct gemm_fragments {              /* of one half step */
    uint32_t a[4][4];
    u32x4 w[CUT::warp_strips];
};

template <typename CUT> DEVICE void gemm_load(gemm_fragments<CUT> &f, uint32_t step, uint32_t half, uint32_t warp_m, uint32_t warp_n)
{
    const unsigned char *stage = shared_bytes() + step % GEMM_STAGES * CUT::stage_bytes;
    const uint32_t lane = lane_index(), row = lane % 16, unit = (2 * half + lane / 16) ^ (row / 2 % 4);
    const unsigned char *a = stage + (warp_m * GEMM_WARP_ROWS + row) * GEMM_STEP + unit * 16;
    const unsigned char *w = stage + CUT::rows_bytes + warp_n * CUT::warp_strips * GEMM_PIECE_BYTES + half * GEMM_HALF_BYTES + lane * 16;
    UNROLL
    for (uint32_t m = 0; m < 4; m++)
        ldmatrix_x4(f.a[m], a + m * 16 * GEMM_STEP);
    UNROLL
    for (uint32_t s = 0; s < CUT::warp_strips; s++)
        f.w[s] = load_shared_16(w + s * GEMM_PIECE_BYTES);
}

template <typename CUT> DEVICE void gemm_multiply(int32_t (&acc)[4][2 * CUT::warp_strips][4], const gemm_fragments<CUT> &f)
{
    UNROLL
    for (uint32_t s = 0; s < CUT::warp_strips; s++) {
        const uint32_t first[2] = {f.w[s].v[0], f.w[s].v[2]}, second[2] = {f.w[s].v[1], f.w[s].v[3]};
        UNROLL
        for (uint32_t m = 0; m < 4; m++) {
            mma_s8(acc[m][2 * s], f.a[m], first);
            mma_s8(acc[m][2 * s + 1], f.a[m], second);
        }
    }
}

/* The quad of row `lower * 8 + g` of 16 rows of the ring, outputs 4t .. of strip s. */
template <typename CUT> DEVICE gemm_sums gemm_sums_of(const int32_t (&acc)[4][2 * CUT::warp_strips][4], uint32_t m, uint32_t s, uint32_t lower)
{
    return gemm_sums{{acc[m][2 * s][2 * lower], acc[m][2 * s][2 * lower + 1], acc[m][2 * s + 1][2 * lower], acc[m][2 * s + 1][2 * lower + 1]}};
}

/* Of wide rows: their joined sums as floats, in the place of the high ones. */
template <typename CUT> DEVICE void gemm_join_wide(int32_t (&acc)[4][2 * CUT::warp_strips][4])
{
    UNROLL
    for (uint32_t m = 0; m < 4; m += 2) {
        UNROLL
        for (uint32_t n = 0; n < 2 * CUT::warp_strips; n++) {
            UNROLL
            for (uint32_t k = 0; k < 4; k++)
                acc[m][n][k] = static_cast<int32_t>(float_bits(gemm_wide(acc[m][n][k], acc[m + 1][n][k])));
        }
    }
}

template <typename CUT, bool WIDE>
DEVICE void gemm_finish(const gemm_work &work, const int32_t (&acc)[4][2 * CUT::warp_strips][4], uint32_t row, uint32_t output)
{
    constexpr uint32_t tiles = WIDE ? 2 : 4;                 /* of 16 rows */
    const uint32_t g = lane_index() / 4, t = lane_index() % 4;
    uint32_t top[tiles][2] = {};
    UNROLL
    for (uint32_t s = 0; s < CUT::warp_strips; s++) {
        const uint32_t at = output + s * GEMM_STRIP + 4 * t;
        if (at >= work.job.outputs)
            continue;
        const gemm_quad w_scale = gemm_of_outputs(work, work.job.w_scale, at), bias = gemm_of_outputs(work, work.job.bias, at);
        UNROLL
        for (uint32_t m = 0; m < tiles; m++) {
            UNROLL
            for (uint32_t lower = 0; lower < 2; lower++) {
                const uint32_t r = row + 16 * m + 8 * lower + g;
                if (r >= work.job.rows)
                    continue;
                const gemm_sums sum = gemm_sums_of<CUT>(acc, WIDE ? 2 * m : m, s, lower);
                if (!WIDE && work.job.raw) {
                    gemm_store_raw(work, r, at, sum);
                    continue;
                }
                const uint32_t bits = gemm_store(work, r, at, WIDE ? gemm_as_floats(sum) : gemm_narrow(sum), w_scale, bias);
                top[m][lower] = bits > top[m][lower] ? bits : top[m][lower];
            }
        }
    }
    if (!work.job.row_max || work.job.raw)
        return;
    UNROLL
    for (uint32_t m = 0; m < tiles; m++) {
        UNROLL
        for (uint32_t lower = 0; lower < 2; lower++) {
            const uint32_t r = row + 16 * m + 8 * lower + g;
            gemm_row_max(work, r, r < work.job.rows, top[m][lower], 4);
        }
    }
}

/* Tiles in groups of GEMM_GROUP tiles of rows, so that the tiles that run at a time are near to a square and meet in the L2 cache. */
template <typename CUT, bool WIDE, uint32_t BLOCKS>
ENTRY_BLOCKS(CUT::threads, BLOCKS) gemm_large(gemm_work work, uint32_t tiles_m, uint32_t tiles_n)
{
    const uint32_t in_group = GEMM_GROUP * tiles_n, group = block_index() / in_group, within = block_index() % in_group;
    const uint32_t height = tiles_m - group * GEMM_GROUP < GEMM_GROUP ? tiles_m - group * GEMM_GROUP : GEMM_GROUP;
    const uint32_t rows_tile = WIDE ? CUT::ring_rows / 2 : CUT::ring_rows;
    const uint32_t row = (group * GEMM_GROUP + within % height) * rows_tile, output = within / height * CUT::outputs;
    const uint32_t warp_m = warp_index() % (CUT::ring_rows / GEMM_WARP_ROWS), warp_n = warp_index() / (CUT::ring_rows / GEMM_WARP_ROWS);
    const gemm_source<CUT, WIDE> source = gemm_source_at<CUT, WIDE>(work, row, output / GEMM_STRIP);
    int32_t acc[4][2 * CUT::warp_strips][4] = {};
    gemm_fragments<CUT> even, odd;

    for (uint32_t step = 0; step < GEMM_STAGES - 1; step++) {
        if (step < work.steps)
            gemm_copy_step<CUT, WIDE>(work, source, step);
        cp_async_commit();
    }
    cp_async_wait<GEMM_STAGES - 2>();
    sync_block();
    gemm_load<CUT>(even, 0, 0, warp_m, warp_n);
    for (uint32_t step = 0; step < work.steps; step++) {
        gemm_load<CUT>(odd, step, 1, warp_m, warp_n);
        if (step + GEMM_STAGES - 1 < work.steps)             /* into the place of the last step, which all have read: they met since */
            gemm_copy_step<CUT, WIDE>(work, source, step + GEMM_STAGES - 1);
        cp_async_commit();
        gemm_multiply<CUT>(acc, even);
        cp_async_wait<GEMM_STAGES - 2>();                    /* the next step is there */
        sync_block();
        if (step + 1 < work.steps)
            gemm_load<CUT>(even, step + 1, 0, warp_m, warp_n);
        gemm_multiply<CUT>(acc, odd);
    }
    if (WIDE)
        gemm_join_wide<CUT>(acc);
    gemm_finish<CUT, WIDE>(work, acc, row + warp_m * (WIDE ? GEMM_WARP_ROWS / 2 : GEMM_WARP_ROWS), output + warp_n * CUT::warp_strips * GEMM_STRIP);
}

typedef gemm_cut<1, 4, 32> gemm_cut_64_128;
typedef gemm_cut<2, 2, 64> gemm_cut_128_128;
typedef gemm_cut<2, 4, 64> gemm_cut_128_256;

template <typename CUT, bool WIDE, uint32_t BLOCKS> static bool launch_large(const struct gemm_work &work, cuda_stream stream)
{
    const uint32_t rows_tile = WIDE ? CUT::ring_rows / 2 : CUT::ring_rows;
    const uint32_t tiles_m = (work.job.rows + rows_tile - 1) / rows_tile, tiles_n = (work.job.outputs + CUT::outputs - 1) / CUT::outputs;
    assert(uint64_t(tiles_m) * tiles_n < 1u << 31);
    return LAUNCH((gemm_large<CUT, WIDE, BLOCKS>), tiles_m * tiles_n, CUT::threads, GEMM_STAGES * CUT::stage_bytes, stream, work, tiles_m, tiles_n);
}

bool gemm_large_run(const struct gemm_work *work, unsigned cut, cuda_stream stream)
{
    const bool wide = work->job.a_low != nullptr;
    switch (cut) {
    case 0: return wide ? launch_large<gemm_cut_64_128, true, 3>(*work, stream) : launch_large<gemm_cut_64_128, false, 3>(*work, stream);
    case 1: return wide ? launch_large<gemm_cut_128_128, true, 2>(*work, stream) : launch_large<gemm_cut_128_128, false, 2>(*work, stream);
    default: return wide ? launch_large<gemm_cut_128_256, true, 1>(*work, stream) : launch_large<gemm_cut_128_256, false, 1>(*work, stream);
    }
}

/* The tiles of a multiprocessor take turns, whatever the number that share it. What a step of a tile costs in cycles is the most of its products
 * at the rate of mma.sync, of its bytes through shared memory at 128 a cycle, and of those it reads from the L2 cache at 24
 * (docs/performance/gpu.md has the three): the last. */
unsigned gemm_large_choose(const struct gemm_work *work, uint32_t multiprocessors)
{
    static const struct {
        uint32_t rows, outputs, cycles;
    } cuts[GEMM_LARGE_CUTS] = {{64, 128, 512}, {128, 128, 683}, {128, 256, 1024}};
    unsigned best = 0;
    uint64_t least = UINT64_MAX;
    for (unsigned cut = 0; cut < GEMM_LARGE_CUTS; cut++) {
        const uint32_t rows = cuts[cut].rows / (work->job.a_low ? 2 : 1);
        const uint64_t tiles = uint64_t((work->job.rows + rows - 1) / rows) * ((work->job.outputs + cuts[cut].outputs - 1) / cuts[cut].outputs);
        const uint64_t cost = (tiles + multiprocessors - 1) / multiprocessors * cuts[cut].cycles;
        if (cost <= least) {                                 /* of equals the largest: it reads the least */
            least = cost;
            best = cut;
        }
    }
    return best;
}
