/* Heads of Q, K and V: norm, rotation, dynamic row. One head of one row a warp, in shared memory of the warp's own, so that no block waits. */
#include "kernels/cuda/row.h"
#include <assert.h>

#define WARPS 4u
#define PAGE 64u

struct head {
    const float *x;                          /* (dim) */
    uint32_t dim;
    bool norm;
    const float *weight;                     /* (dim) or NULL */
    float epsilon;
    const float *cosine, *sine;              /* (dim / 2); NULL: no rotation */
};

static size_t head_bytes(uint32_t dim)
{
    return (size_t(dim) + 3) / 4 * 16;
}

DEVICE float *own_row(uint32_t dim)
{
    return shared<float>(warp_index() * ((dim + 3) / 4 * 16));
}

/* A sine of 0 (with a cosine of 1) is no case of its own here: only the sign of a zero could change, and integers have none. */
DEVICE void turn(float &low, float &high, float cosine, float sine)
{
    const float a = low, b = high;
    low = a * cosine - b * sine;
    high = b * cosine + a * sine;
}

/* Normed and rotated into `row`, readable by the whole warp. The largest |x| as bits; of a mean that is not finite, NaN's. */
DEVICE uint32_t head_prepare(const head &h, float *row)
{
    const uint32_t dim = h.dim, half = dim / 2;
    float inverse = 1.0f;
    if (h.norm && !row_inverse(row_warp_squares(h.x, dim, 1.0f), dim, h.epsilon, &inverse))
        return 0x7fffffffu;
    for (uint32_t i = lane_index(); i < (dim + 3) / 4 * 4; i += WARP_THREADS) {
        float v = i < dim ? h.x[i] : 0.0f;
        if (h.norm)
            v = v * inverse;
        if (h.weight && i < dim)
            v = v * h.weight[i];
        row[i] = v;
    }
    sync_warp();
    if (h.cosine) {
        for (uint32_t i = lane_index(); i < half; i += WARP_THREADS)
            turn(row[i], row[half + i], h.cosine[i], h.sine[i]);
        sync_warp();
    }
    uint32_t top = 0;
    for (uint32_t i = 4 * lane_index(); i < dim; i += 4 * WARP_THREADS)
        top = row_magnitude(row_four(row_kept{row}, i), top);
    return warp_max(top);
}

DEVICE void head_store(const float *row, uint32_t dim, const row_scale &s, int8_t *out)
{
    const row_kept kept = {const_cast<float *>(row)};
    const bool whole = row_aligned(out, dim, 4);
    for (uint32_t i = 4 * lane_index(); i < dim; i += 4 * WARP_THREADS)
        row_store_bytes(out, dim, whole, i, row_integers(row_four(kept, i), s));
}

ENTRY(WARPS *WARP_THREADS) q_rows(cuda_q job)
{
    const uint32_t task = block_index() * WARPS + warp_index(), dim = job.dim;
    if (task >= job.rows * job.heads)
        return;
    const uint32_t number = task / job.heads, at = task % job.heads;
    const size_t angles = size_t(number) * (dim / 2);
    float *row = own_row(dim);
    const uint32_t absmax = head_prepare(head{job.x + size_t(number) * job.x_stride + size_t(at) * dim, dim, job.weight != nullptr, job.weight,
                                              job.epsilon, job.cosine + angles, job.sine + angles}, row);
    if (absmax >= ROW_NOT_FINITE) {
        if (lane_index() == 0)
            atomic_min(job.bad_row, number);
        return;
    }
    const row_scale s = row_scale_of(CUDA_SCHEME_DYNAMIC, 0.0f, absmax);
    head_store(row, dim, s, job.q + size_t(task) * dim);
    if (lane_index() == 0)
        job.q_scale[task] = s.scale;
}

ENTRY(WARPS *WARP_THREADS) kv_rows(cuda_kv job)
{
    const uint32_t dim = job.layout.dim, heads = job.layout.kv_heads, task = block_index() * WARPS + warp_index();
    if (task >= job.rows * heads)
        return;
    const uint32_t number = task / heads, at = task % heads;
    const size_t angles = size_t(number) * (dim / 2), plane_bytes = size_t(heads) * PAGE * dim;
    float *row = own_row(dim);
    const uint32_t absmax = head_prepare(head{job.x + size_t(number) * job.x_stride + size_t(at) * dim, dim, job.norm, job.weight, job.epsilon,
                                              job.value ? nullptr : job.cosine + angles, job.value ? nullptr : job.sine + angles}, row);
    if (absmax >= ROW_NOT_FINITE) {
        if (lane_index() == 0)
            atomic_min(job.bad_row, number);
        return;
    }
    const row_scale s = row_scale_of(CUDA_SCHEME_DYNAMIC, 0.0f, absmax);
    const uint32_t token = job.position[number] % PAGE;
    unsigned char *slot = static_cast<unsigned char *>(job.row_page[number]) + job.slot * job.layout.slot_bytes;
    int8_t *plane = reinterpret_cast<int8_t *>(slot + (job.value ? plane_bytes : 0)) + size_t(at) * PAGE * dim;
    float *scale = reinterpret_cast<float *>(slot + 2 * plane_bytes) + (job.value ? size_t(heads) * PAGE : 0) + size_t(at) * PAGE;
    if (job.value) {
        for (uint32_t d = lane_index(); d < dim; d += WARP_THREADS)
            plane[d * PAGE + token] = static_cast<int8_t>(row_integer(row[d], s) & 0xffu);
    } else {
        head_store(row, dim, s, plane + size_t(token) * dim);
    }
    if (lane_index() == 0)
        scale[token] = s.scale;
}

bool cuda_q_rows(const struct cuda_q *job, cuda_stream stream)
{
    assert(job->dim % 2 == 0);
    const uint32_t tasks = job->rows * job->heads;
    return tasks == 0 || LAUNCH(q_rows, (tasks + WARPS - 1) / WARPS, WARPS * WARP_THREADS, WARPS * head_bytes(job->dim), stream, *job);
}

bool cuda_kv_rows(const struct cuda_kv *job, cuda_stream stream)
{
    assert(job->layout.dim % 2 == 0);
    const uint32_t tasks = job->rows * job->layout.kv_heads;
    return tasks == 0 || LAUNCH(kv_rows, (tasks + WARPS - 1) / WARPS, WARPS * WARP_THREADS, WARPS * head_bytes(job->layout.dim), stream, *job);
}
