/* Few rows: the weights pass once, from memory to registers, 16 bytes a lane and load, several steps ahead; their reading is the time. So weights
 * are the left side of mma, 16 outputs high, and the rows, from here on *columns* (of wide rows first all high halves, then all low ones), the
 * right side in tiles of 8: a single row wastes 7 of 8 products, which cost nothing.
 *
 * A block of 8 warps takes some strips and its part of the depth. Its warps are GROUPS groups, each with STRIPS strips; the members of a group
 * take the steps in turn, so that together they read in a row. The columns lie in shared memory, a panel of the depth at a time, the next one on
 * its way. At the end the members' sums, exact, meet in shared memory. Where blocks share a strip's depth (blockIdx.y), theirs meet in the
 * scratch memory, and the block that comes last finishes: which that is changes no bit.
 *
 * Columns in shared memory are PANEL * 64 + 16 bytes apart: an odd number of 16s, so the eight rows of a matrix of ldmatrix lie in different banks. */
#include <assert.h>
#include "kernels/cuda/gemm_finish.h"

#define GEMM_WARPS 8u
#define GEMM_THREADS (GEMM_WARPS * WARP_THREADS)
#define GEMM_COUNTERS 1024u                  /* words of scratch before the sums: one a block of outputs */
#define GEMM_SCRATCH_SUMS (CUDA_GEMM_SCRATCH_BYTES / 4 - GEMM_COUNTERS)

/* TILES: of 8 columns. AHEAD: steps a warp has under way; AHEAD * STRIPS KiB. */
template <uint32_t TILES, uint32_t STRIPS, uint32_t GROUPS, uint32_t AHEAD, uint32_t BLOCKS> struct gemm_cut {
    static constexpr uint32_t tiles = TILES, strips = STRIPS, groups = GROUPS, ahead = AHEAD, blocks = BLOCKS;
    static constexpr uint32_t columns = 8 * TILES, members = GEMM_WARPS / GROUPS, outputs = GROUPS * STRIPS * GEMM_STRIP;
    static constexpr uint32_t panel = 64 / TILES, stride = panel * GEMM_STEP + 16;     /* in steps, in bytes: 4 KiB over the tiles */
    static constexpr uint32_t sums_stride = outputs + 4;                               /* words between columns: spreads them over the banks */
    static constexpr uint32_t sums_bytes = members * columns * sums_stride * 4;
    static_assert(panel % (members * AHEAD) == 0, "a warp's turns are whole in every panel");
};

template <typename CUT>
DEVICE void gemm_copy_panel(const gemm_work &work, uint32_t stored, uint32_t panel_number, uint32_t step_first, uint32_t step_end)
{
    unsigned char *panel = shared_bytes() + panel_number % 2 * (stored * CUT::stride);
    const uint32_t step = step_first + panel_number * CUT::panel;
    const uint32_t units = (step_end - step < CUT::panel ? step_end - step : CUT::panel) * (GEMM_STEP / 16);
    for (uint32_t i = thread_index(); i < stored * units; i += GEMM_THREADS) {
        const uint32_t column = i / units, unit = i % units, depth = step * GEMM_STEP + unit * 16;
        const bool is_low = work.job.a_low && column >= work.job.rows;
        const uint32_t row = is_low ? column - work.job.rows : column;
        const bool valid = row < work.job.rows && depth < work.job.depth;
        const int8_t *a = is_low ? work.job.a_low : work.job.a;
        cp_async_16(panel + column * CUT::stride + unit * 16, valid ? a + size_t(row) * work.job.depth + depth : a, valid);
    }
}

template <typename CUT> struct gemm_stream {                 /* a warp's weights */
    const int8_t *strip[CUT::strips];                        /* step 0 of each, this lane's bytes; NULL: beyond the outputs */
    u32x4 ring[CUT::ahead][CUT::strips][2];
};

template <typename CUT> DEVICE void gemm_fetch(gemm_stream<CUT> &s, uint32_t slot, uint32_t step)
{
    UNROLL
    for (uint32_t i = 0; i < CUT::strips; i++)
        if (s.strip[i]) {
            s.ring[slot][i][0] = load_16_once(s.strip[i] + size_t(step) * GEMM_PIECE_BYTES);
            s.ring[slot][i][1] = load_16_once(s.strip[i] + size_t(step) * GEMM_PIECE_BYTES + GEMM_HALF_BYTES);
        }
}

/* column: what the lane gives to ldmatrix for the first tile. */
template <typename CUT>
DEVICE void gemm_multiply(int32_t (&acc)[CUT::strips][CUT::tiles][4], const u32x4 (&w)[CUT::strips][2], const unsigned char *column)
{
    UNROLL
    for (uint32_t j = 0; j < CUT::tiles; j++) {
        uint32_t b[4];
        ldmatrix_x4(b, column + 8 * j * CUT::stride);
        UNROLL
        for (uint32_t i = 0; i < CUT::strips; i++) {
            mma_s8(acc[i][j], w[i][0].v, b);
            mma_s8(acc[i][j], w[i][1].v, b + 2);
        }
    }
}

/* The members' sums of `column`, outputs 4 q .. of the block. */
template <typename CUT> DEVICE gemm_sums gemm_members_sum(uint32_t column, uint32_t quad)
{
    const int32_t *sums = shared<int32_t>(0) + column * CUT::sums_stride + 4 * quad;
    gemm_sums r = {};
    for (uint32_t member = 0; member < CUT::members; member++) {
        const u32x4 words = load_shared_16(sums + member * CUT::columns * CUT::sums_stride);
        for (uint32_t k = 0; k < 4; k++)
            r.v[k] += static_cast<int32_t>(words.v[k]);
    }
    return r;
}

/* Adds the block's sums to the others'. True in the block that comes last: there all sums are in the scratch memory. */
template <typename CUT> DEVICE bool gemm_join(const gemm_work &work, uint32_t columns, uint32_t *scratch_sums)
{
    for (uint32_t i = thread_index(); i < columns * (CUT::outputs / 4); i += GEMM_THREADS) {
        const gemm_sums sum = gemm_members_sum<CUT>(i / (CUT::outputs / 4), i % (CUT::outputs / 4));
        for (uint32_t k = 0; k < 4; k++)
            atomic_add(scratch_sums + 4 * i + k, static_cast<uint32_t>(sum.v[k]));
    }
    fence_device();                                          /* the sums before the count */
    sync_block();
    bool last = false;
    if (thread_index() == 0) {
        last = atomic_add(work.job.scratch + block_index(), 1u) == grid_blocks_y() - 1;
        if (last)
            atomic_exchange(work.job.scratch + block_index(), 0u);
    }
    last = sync_block_any(last);
    fence_device();                                          /* the count before the others' sums */
    return last;
}

/* Takes a quad and leaves zeros. */
DEVICE gemm_sums gemm_take(uint32_t *sums)
{
    gemm_sums r;
    for (uint32_t k = 0; k < 4; k++)
        r.v[k] = static_cast<int32_t>(atomic_exchange(sums + k, 0u));
    return r;
}

template <typename CUT> DEVICE void gemm_finish(const gemm_work &work, uint32_t *scratch_sums)
{
    constexpr uint32_t quads = CUT::outputs / 4;             /* of a row: 4 to 32, so a row's are neighbours in one warp */
    const uint32_t rows = work.job.rows, output_first = block_index() * CUT::outputs;
    for (uint32_t first = thread_index() - lane_index(); first < rows * quads; first += GEMM_THREADS) {
        const uint32_t i = first + lane_index(), row = i / quads, output = output_first + 4 * (i % quads);
        uint32_t top = 0;
        if (row < rows && output < work.job.outputs) {
            const gemm_sums sum = scratch_sums ? gemm_take(scratch_sums + 4 * i) : gemm_members_sum<CUT>(row, i % quads);
            if (work.job.raw) {
                gemm_store_raw(work, row, output, sum);
            } else {
                gemm_quad value;
                if (work.job.a_low)
                    value = gemm_wide(sum, scratch_sums ? gemm_take(scratch_sums + 4 * (i + rows * quads)) : gemm_members_sum<CUT>(rows + row, i % quads));
                else
                    value = gemm_narrow(sum);
                const gemm_quad w_scale = gemm_of_outputs(work, work.job.w_scale, output), bias = gemm_of_outputs(work, work.job.bias, output);
                top = gemm_store(work, row, output, value, w_scale, bias);
            }
        }
        if (work.job.row_max && !work.job.raw)
            gemm_row_max(work, row, row < rows, top, quads);
    }
}

/* stored: columns that a panel holds. Of a single tile those that are there, the others' places in it read any; of more all, zeros where there are
 * none, as that takes the fewest registers. */
template <typename CUT> ENTRY_BLOCKS(GEMM_THREADS, CUT::blocks) gemm_small(gemm_work work, uint32_t columns, uint32_t stored, uint32_t split_steps)
{
    const uint32_t lane = lane_index(), group = warp_index() / CUT::members, member = warp_index() % CUT::members;
    const uint32_t step_first = block_index_y() * split_steps;
    const uint32_t step_end = work.steps - step_first < split_steps ? work.steps : step_first + split_steps;
    const uint32_t panels = (step_end - step_first + CUT::panel - 1) / CUT::panel;
    const uint32_t matrix_row = lane % 8 < stored ? lane % 8 : stored - 1;
    const uint32_t lane_place = matrix_row * CUT::stride + lane / 8 * 16;      /* lane 8 i + j: bytes 16 i of column j */

    gemm_copy_panel<CUT>(work, stored, 0, step_first, step_end);
    cp_async_commit();
    gemm_stream<CUT> stream = {};
    UNROLL
    for (uint32_t i = 0; i < CUT::strips; i++) {
        const uint32_t strip = (block_index() * CUT::groups + group) * CUT::strips + i;
        stream.strip[i] = strip < work.strips ? work.job.w_tiled + size_t(strip) * work.steps * GEMM_PIECE_BYTES + lane * 16 : nullptr;
    }
    UNROLL
    for (uint32_t slot = 0; slot < CUT::ahead; slot++) {
        const uint32_t step = step_first + slot * CUT::members + member;
        if (step < step_end)
            gemm_fetch(stream, slot, step);
    }

    int32_t acc[CUT::strips][CUT::tiles][4] = {};
    for (uint32_t p = 0; p < panels; p++) {
        if (p + 1 < panels)
            gemm_copy_panel<CUT>(work, stored, p + 1, step_first, step_end);
        cp_async_commit();
        cp_async_wait<1>();
        sync_block();
        const uint32_t panel_step = step_first + p * CUT::panel;
        const unsigned char *panel = shared_bytes() + p % 2 * (stored * CUT::stride) + lane_place;
        for (uint32_t turn = 0; turn < CUT::panel; turn += CUT::ahead * CUT::members) {
            UNROLL
            for (uint32_t slot = 0; slot < CUT::ahead; slot++) {
                const uint32_t local = turn + slot * CUT::members + member, step = panel_step + local;
                if (step < step_end)                         /* the same in all lanes */
                    gemm_multiply<CUT>(acc, stream.ring[slot], panel + local * GEMM_STEP);
                if (step_end - step_first > step - step_first + CUT::ahead * CUT::members)
                    gemm_fetch(stream, slot, step + CUT::ahead * CUT::members);
            }
        }
        sync_block();                                        /* all have read the panel: its place is free */
    }

    const uint32_t g = lane / 4, t = lane % 4;
    int32_t *sums = shared<int32_t>(0) + (member * CUT::columns + 2 * t) * CUT::sums_stride + group * CUT::strips * GEMM_STRIP + 4 * (g / 2) + g % 2;
    UNROLL
    for (uint32_t i = 0; i < CUT::strips; i++) {
        UNROLL
        for (uint32_t j = 0; j < CUT::tiles; j++) {
            int32_t *to = sums + 8 * j * CUT::sums_stride + i * GEMM_STRIP;
            to[0] = acc[i][j][0];
            to[CUT::sums_stride] = acc[i][j][1];
            to[2] = acc[i][j][2];
            to[CUT::sums_stride + 2] = acc[i][j][3];
        }
    }
    sync_block();
    uint32_t *scratch_sums = nullptr;
    if (grid_blocks_y() > 1) {
        scratch_sums = work.job.scratch + GEMM_COUNTERS + size_t(block_index()) * (columns * CUT::outputs);
        if (!gemm_join<CUT>(work, columns, scratch_sums))
            return;
    }
    gemm_finish<CUT>(work, scratch_sums);
}

typedef gemm_cut<1, 1, 1, 4, 3> gemm_cut_8;
typedef gemm_cut<2, 1, 2, 4, 3> gemm_cut_16;
typedef gemm_cut<4, 2, 2, 2, 2> gemm_cut_32;
typedef gemm_cut<8, 2, 4, 4, 1> gemm_cut_64;
typedef gemm_cut<16, 1, 8, 4, 1> gemm_cut_128;

static uint32_t columns_of(const struct gemm_work &work)
{
    return work.job.a_low ? 2 * work.job.rows : work.job.rows;
}

template <typename CUT> static bool launch_small(const struct gemm_work &work, uint32_t splits, cuda_stream stream)
{
    const uint32_t columns = columns_of(work), groups = (work.job.outputs + CUT::outputs - 1) / CUT::outputs;
    assert(columns <= CUT::columns && splits > 0);
    const uint32_t split_steps = ((work.steps + splits - 1) / splits + CUT::members - 1) / CUT::members * CUT::members;
    splits = (work.steps + split_steps - 1) / split_steps;   /* none is empty */
    if (splits > 1 && (!work.job.scratch || groups > GEMM_COUNTERS || size_t(groups) * columns * CUT::outputs > GEMM_SCRATCH_SUMS))
        return launch_refused("gemm_small", 0, "the scratch memory does not hold so many sums", groups * splits, GEMM_THREADS, 0);
    const uint32_t stored = CUT::tiles == 1 ? columns : CUT::columns;
    const uint32_t panels_bytes = (split_steps > CUT::panel ? 2 : 1) * stored * CUT::stride;
    const uint32_t bytes = panels_bytes > CUT::sums_bytes ? panels_bytes : CUT::sums_bytes;
    return LAUNCH((gemm_small<CUT>), grid_size(groups, splits), GEMM_THREADS, bytes, stream, work, columns, stored, split_steps);
}

bool gemm_small_run(const struct gemm_work *work, struct gemm_small_cut cut, cuda_stream stream)
{
    switch (cut.cut) {
    case 0: return launch_small<gemm_cut_8>(*work, cut.splits, stream);
    case 1: return launch_small<gemm_cut_16>(*work, cut.splits, stream);
    case 2: return launch_small<gemm_cut_32>(*work, cut.splits, stream);
    case 3: return launch_small<gemm_cut_64>(*work, cut.splits, stream);
    default: return launch_small<gemm_cut_128>(*work, cut.splits, stream);
    }
}

/* As many parts of the depth as let every multiprocessor hold two blocks, each warp having at least as many steps as it reads ahead. */
struct gemm_small_cut gemm_small_choose(const struct gemm_work *work, uint32_t multiprocessors)
{
    static const struct {
        uint32_t columns, outputs, round;                    /* round: steps that the warps of a block take with one reading ahead each */
    } cuts[GEMM_SMALL_CUTS] = {
        {gemm_cut_8::columns, gemm_cut_8::outputs, gemm_cut_8::members * gemm_cut_8::ahead},
        {gemm_cut_16::columns, gemm_cut_16::outputs, gemm_cut_16::members * gemm_cut_16::ahead},
        {gemm_cut_32::columns, gemm_cut_32::outputs, gemm_cut_32::members * gemm_cut_32::ahead},
        {gemm_cut_64::columns, gemm_cut_64::outputs, gemm_cut_64::members * gemm_cut_64::ahead},
        {gemm_cut_128::columns, gemm_cut_128::outputs, gemm_cut_128::members * gemm_cut_128::ahead},
    };
    const uint32_t columns = columns_of(*work);
    assert(columns <= cuts[GEMM_SMALL_CUTS - 1].columns);
    unsigned cut = 0;
    while (cuts[cut].columns < columns)
        cut++;
    const uint32_t groups = (work->job.outputs + cuts[cut].outputs - 1) / cuts[cut].outputs;
    uint32_t splits = 2 * multiprocessors / groups, most = work->steps / cuts[cut].round;
    splits = splits < most ? splits : most;
    const bool fits = work->job.scratch && groups <= GEMM_COUNTERS && size_t(groups) * columns * cuts[cut].outputs <= GEMM_SCRATCH_SUMS;
    return gemm_small_cut{cut, fits && splits > 1 ? splits : 1};
}
