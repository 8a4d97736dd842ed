/* gemm_finish.h - from exact sums to what a job wants of them (docs/numerics.md, section 3): scales, residual, bias, a look for NaN and infinity,
 * soft cap, row maximum; or the sums as they are. By quads: four neighbouring outputs of a row, from a multiple of 4 on. */
#ifndef ROOST_KERNELS_CUDA_GEMM_FINISH_H
#define ROOST_KERNELS_CUDA_GEMM_FINISH_H
#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_tiles.h"

#define GEMM_NOT_FINITE 0x7f800000u          /* the bits of |x| from here on are infinity and NaN */

struct gemm_sums {
    int32_t v[4];
};

struct gemm_quad {
    float v[4];
};

DEVICE gemm_quad gemm_narrow(const gemm_sums &sum)
{
    gemm_quad r;
    for (uint32_t k = 0; k < 4; k++)
        r.v[k] = static_cast<float>(sum.v[k]);
    return r;
}

/* Of a wide row: at most 40 bits, rounded once. */
DEVICE float gemm_wide(int32_t high, int32_t low)
{
    return static_cast<float>(int64_t(high) * 256 + low);
}

DEVICE gemm_quad gemm_wide(const gemm_sums &high, const gemm_sums &low)
{
    gemm_quad r;
    for (uint32_t k = 0; k < 4; k++)
        r.v[k] = gemm_wide(high.v[k], low.v[k]);
    return r;
}

/* Floats that stand in the place of sums. */
DEVICE gemm_quad gemm_as_floats(const gemm_sums &sum)
{
    gemm_quad r;
    for (uint32_t k = 0; k < 4; k++)
        r.v[k] = float_from_bits(static_cast<uint32_t>(sum.v[k]));
    return r;
}

/* Four of a row of the outputs' own floats: scales or bias. NULL and what lies beyond: zeros. */
DEVICE gemm_quad gemm_of_outputs(const gemm_work &work, const float *x, uint32_t output)
{
    gemm_quad r = {};
    if (x)
        for (uint32_t k = 0; k < 4; k++)
            if (output + k < work.job.outputs)
                r.v[k] = x[output + k];
    return r;
}

DEVICE bool gemm_whole(const gemm_work &work, uint32_t output)
{
    return work.quads && output + 4 <= work.job.outputs;
}

DEVICE void gemm_store_raw(const gemm_work &work, uint32_t row, uint32_t output, const gemm_sums &sum)
{
    int32_t *to = work.job.raw + size_t(row) * work.job.outputs + output;
    if (gemm_whole(work, output)) {
        u32x4 words;
        for (uint32_t k = 0; k < 4; k++)
            words.v[k] = static_cast<uint32_t>(sum.v[k]);
        store_16(to, words);
    } else {
        for (uint32_t k = 0; k < 4; k++)
            if (output + k < work.job.outputs)
                to[k] = sum.v[k];
    }
}

/* Returns the largest |out| of the quad, as bits. */
DEVICE uint32_t gemm_store(const gemm_work &work, uint32_t row, uint32_t output, const gemm_quad &acc, const gemm_quad &w_scale, const gemm_quad &bias)
{
    const cuda_gemm &job = work.job;
    float *to = job.out + size_t(row) * job.out_stride + output;
    const float a_scale = job.a_scale[row];
    const bool whole = gemm_whole(work, output);
    gemm_quad out;
    for (uint32_t k = 0; k < 4; k++)
        out.v[k] = (acc.v[k] * a_scale) * w_scale.v[k];
    if (job.accumulate) {
        if (whole) {
            const u32x4 words = load_16_plain(to);
            for (uint32_t k = 0; k < 4; k++)
                out.v[k] = float_from_bits(words.v[k]) + out.v[k];
        } else {
            for (uint32_t k = 0; k < 4; k++)
                if (output + k < job.outputs)
                    out.v[k] = to[k] + out.v[k];
        }
    }
    uint32_t top = 0;
    for (uint32_t k = 0; k < 4; k++) {
        float v = job.bias ? out.v[k] + bias.v[k] : out.v[k];
        if (job.bad_row && (float_bits(v) & 0x7fffffffu) >= GEMM_NOT_FINITE && output + k < job.outputs)
            atomic_min(job.bad_row, row);
        if (job.logit_cap > 0.0f)
            v = job.logit_cap * inline_tanh(v / job.logit_cap);
        const uint32_t bits = float_bits(v) & 0x7fffffffu;
        top = output + k < job.outputs && bits > top ? bits : top;
        out.v[k] = v;
    }
    if (whole) {
        u32x4 words;
        for (uint32_t k = 0; k < 4; k++)
            words.v[k] = float_bits(out.v[k]);
        store_16(to, words);
    } else {
        for (uint32_t k = 0; k < 4; k++)
            if (output + k < job.outputs)
                to[k] = out.v[k];
    }
    return top;
}

/* The maximum over `lanes` neighbouring lanes, a power of two, goes to the row's; by whole warps. Rows beyond: valid is false. */
DEVICE void gemm_row_max(const gemm_work &work, uint32_t row, bool valid, uint32_t top, uint32_t lanes)
{
    for (uint32_t distance = lanes / 2; distance > 0; distance /= 2) {
        const uint32_t other = shuffle_xor(top, distance);
        top = other > top ? other : top;
    }
    if (valid && lane_index() % lanes == 0)
        atomic_max(work.job.row_max + row, top);
}

#endif
