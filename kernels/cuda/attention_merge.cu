/* attention_merge.cu - cuda_attention_run: the tasks' kernels, then the units of pairs that several tasks share, folded in their order. */
#include <assert.h>
#include "kernels/cuda/attention_run.h"
#include "kernels/cuda/attention_tile.h"

#define THREADS 128u
#define AT_A_TIME 128u                       /* units whose factors are prepared side by side */

/* Shared memory: the tops so far of AT_A_TIME units and the one before them, their factors, their sums. */
struct merge_memory {
    float *tops, *keep, *join, *sums;
};
#define SHARED_BYTES (4 * AT_A_TIME * 4)

/* One pair a block of threads: x the merge, y the pair. The highest top so far is a maximum, the same in any order; so each thread finds it
 * for one unit, and only the sums follow one another. */
ENTRY(THREADS) attention_merge(cuda_attention job)
{
    const cuda_attention_merge merge = job.merges[block_index()];
    const uint32_t pair = block_index_y(), dim = job.geometry.dim, stride = job.pairs_max, thread = thread_index();
    if (pair >= merge.rows * merge.heads)
        return;
    const merge_memory m = {shared<float>(0), shared<float>(AT_A_TIME * 4), shared<float>(2 * AT_A_TIME * 4), shared<float>(3 * AT_A_TIME * 4)};
    const size_t unit_floats = size_t(stride) * (dim + 2), row = job.spans[merge.span].row + merge.row + pair / merge.heads;
    const float *partial = static_cast<const float *>(job.partials) + merge.partial * unit_floats + pair;
    float *out = job.out + (row * job.geometry.heads + merge.head + pair % merge.heads) * dim;

    float top = ATTENTION_NOTHING, sum = 0.0f, o[ATTENTION_DIM_MAX / THREADS];
    UNROLL
    for (uint32_t i = 0; i < ATTENTION_DIM_MAX / THREADS; i++)
        o[i] = -0.0f;
    for (uint32_t begin = 0; begin < merge.units; begin += AT_A_TIME) {
        const uint32_t count = merge.units - begin < AT_A_TIME ? merge.units - begin : AT_A_TIME;
        float own = ATTENTION_NOTHING;
        if (thread < count) {
            own = partial[(begin + thread) * unit_floats];
            m.tops[thread] = own;
            m.sums[thread] = partial[(begin + thread) * unit_floats + stride];
        }
        sync_block();
        if (thread < count) {
            float before = top, none = 0.0f;
            for (uint32_t u = 0; u < thread; u++)
                before = before > m.tops[u] ? before : m.tops[u];
            const attention_fold fold = attention_join(before, none, own, 0.0f, own != ATTENTION_NOTHING);
            m.keep[thread] = fold.keep;
            m.join[thread] = fold.join;
        }
        for (uint32_t u = 0; u < count; u++)
            top = top > m.tops[u] ? top : m.tops[u];
        sync_block();
        const float *from = partial + begin * unit_floats + 2 * stride - pair + size_t(pair) * dim;
        for (uint32_t u = 0; u < count; u++) {
            sum = float_fma(m.sums[u], m.join[u], sum * m.keep[u]);
            UNROLL
            for (uint32_t i = 0; i < ATTENTION_DIM_MAX / THREADS; i++)
                if (i * THREADS + thread < dim)
                    o[i] = float_fma(from[u * unit_floats + i * THREADS + thread], m.join[u], o[i] * m.keep[u]);
        }
        sync_block();
    }
    const float inverse = 1.0f / sum;
    UNROLL
    for (uint32_t i = 0; i < ATTENTION_DIM_MAX / THREADS; i++)
        if (i * THREADS + thread < dim)
            out[i * THREADS + thread] = o[i] * inverse;
}

bool cuda_attention_run(const struct cuda_attention *job, cuda_stream stream)
{
    assert(job->geometry.dim > 0 && job->geometry.dim <= ATTENTION_DIM_MAX && job->geometry.heads % job->geometry.kv_heads == 0);
    assert(job->layout.kv_heads == job->geometry.kv_heads && job->layout.dim == job->geometry.dim && job->slot < job->layout.slots);
    assert(job->large_count <= job->task_count && job->pairs_max <= attention_pairs_most(job->geometry.dim));
    assert(job->large_count > 0 || job->pairs_max <= ATTENTION_PAIRS_SMALL);
    struct cuda_attention part = *job;
    part.task_count = job->large_count;
    if (part.task_count > 0 && !attention_run_prefill(&part, stream))
        return false;
    part.tasks = job->tasks + job->large_count;
    part.task_count = job->task_count - job->large_count;
    if (part.task_count > 0 && !attention_run_decode(&part, stream))
        return false;
    return job->merge_count == 0 || LAUNCH(attention_merge, grid_size(job->merge_count, job->pairs_max), THREADS, SHARED_BYTES, stream, *job);
}
