#include "kernels/cuda/row.h"
#include <assert.h>

#define THREADS 256u
#define WARPS 4u

/* One row a block. */
ENTRY(THREADS) embed_rows(cuda_embed job)
{
    const uint32_t token = job.tokens[block_index()], columns = job.columns;
    const int8_t *q = job.weight + size_t(token) * columns;
    const float scale = job.scale[token];
    float *out = job.out + size_t(block_index()) * columns;
    const bool whole = row_aligned(out, columns * 4, 16) && row_aligned(q, columns, 4);
    for (uint32_t i = 4 * thread_index(); i < columns; i += 4 * THREADS) {
        uint32_t bytes = 0;
        if (whole)
            bytes = *reinterpret_cast<const uint32_t *>(q + i);
        else
            for (uint32_t k = 0; k < 4; k++)
                bytes |= i + k < columns ? (static_cast<uint32_t>(q[i + k]) & 0xffu) << (8 * k) : 0u;
        row_quad quad;
        for (uint32_t k = 0; k < 4; k++)
            quad.v[k] = (static_cast<float>(static_cast<int8_t>(bytes >> (8 * k) & 0xffu)) * scale) * job.factor;
        row_store_floats(out, columns, whole, i, quad);
    }
}

bool cuda_embed_rows(const struct cuda_embed *job, cuda_stream stream)
{
    return job->rows == 0 || LAUNCH(embed_rows, job->rows, THREADS, 0, stream, *job);
}

/* One (row, layer) a warp. */
ENTRY(WARPS *WARP_THREADS) per_layer_rows(cuda_per_layer job)
{
    const uint32_t task = block_index() * WARPS + warp_index(), width = job.width;
    if (task >= job.rows * job.layers)
        return;
    float *f = job.f + size_t(task) * width, inverse;
    const int8_t *looked_up = job.looked_up + size_t(task) * width;
    const float scale = job.looked_up_scale[task];
    if (!row_inverse(row_warp_squares(f, width, job.factor_in), width, job.epsilon, &inverse)) {
        if (lane_index() == 0)
            atomic_min(job.bad_row, task / job.layers);
        return;
    }
    for (uint32_t i = lane_index(); i < width; i += WARP_THREADS) {
        const float u = ((f[i] * job.factor_in) * inverse) * job.norm_weight[i];
        const float e = (static_cast<float>(looked_up[i]) * scale) * job.factor_embed;
        f[i] = (u + e) * job.factor_sum;
    }
}

bool cuda_per_layer_rows(const struct cuda_per_layer *job, cuda_stream stream)
{
    const uint32_t tasks = job->rows * job->layers;
    return tasks == 0 || LAUNCH(per_layer_rows, (tasks + WARPS - 1) / WARPS, WARPS * WARP_THREADS, 0, stream, *job);
}
