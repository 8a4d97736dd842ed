#include "kernels/cuda/row.h"
#include <assert.h>

#define THREADS 256u
#define KEPT_COLUMNS_MAX 40960u              /* 160 KiB of shared memory; sm_80 has 163 for a block */
#define GELU_C0 0x1.988454p-1f               /* as kernels/ref/activation.c */
#define GELU_C1 0x1.24434p-5f

struct row_gated {
    row_plain gate, up;
    enum cuda_activation activation;
};

DEVICE row_quad row_four(const row_gated &row, uint32_t i)
{
    row_quad x = row_four(row.gate, i);
    const row_quad up = row_four(row.up, i);
    for (uint32_t k = 0; k < 4; k++) {
        const float v = x.v[k];
        const float active = row.activation == CUDA_ACTIVATION_SILU
                                 ? inline_logistic(v, v)
                                 : (0.5f * v) * (1.0f + inline_tanh(v * float_fma(v * v, GELU_C1, GELU_C0)));
        x.v[k] = active * up.v[k];
    }
    return x;
}

DEVICE row_plain strided_row(const float *x, uint32_t stride, uint32_t number, uint32_t columns)
{
    x += size_t(number) * stride;
    return row_plain{x, columns, row_aligned(x, stride * 4, 16) && columns % 4 == 0};
}

template <typename R> DEVICE void finish(const cuda_gate &job, const R &row, uint32_t number)
{
    if (job.into.q) {
        row_quantize(row, job.columns, number, job.into, nullptr, job.bad_row);
    } else if (row_absmax(row, job.columns) >= ROW_NOT_FINITE && thread_index() == 0) {
        atomic_min(job.bad_row, number);
    }
}

/* One row a block. An activation costs more than a turn through shared memory: it is computed once and kept there, each thread reading back
 * its own quads only, unless the row is too wide. gate, which may be out, is read before out is written. */
ENTRY(THREADS) gate_rows(cuda_gate job, bool keeps)
{
    const uint32_t number = block_index(), columns = job.columns;
    const row_gated gated = {strided_row(job.gate, job.gate_stride, number, columns), strided_row(job.up, job.up_stride, number, columns),
                             job.activation};
    float *out = job.out ? job.out + size_t(number) * columns : nullptr;
    const row_kept kept = {shared<float>(ROW_SHARED_BYTES)};
    const bool whole = row_aligned(out, columns * 4, 16);
    if (!keeps)
        finish(job, gated, number);
    if (keeps || out)
        for (uint32_t i = 4 * thread_index(); i < columns; i += 4 * THREADS) {
            const row_quad quad = row_four(gated, i);
            if (keeps)
                row_keep(kept, i, quad);
            if (out)
                row_store_floats(out, columns, whole, i, quad);
        }
    if (keeps)
        finish(job, kept, number);
}

bool cuda_gate_rows(const struct cuda_gate *job, cuda_stream stream)
{
    assert(!job->into.q || job->into.scheme != CUDA_SCHEME_ROTATED || job->columns % 128 == 0);
    assert(job->out != job->gate || job->gate_stride == job->columns);
    const bool keeps = job->columns <= KEPT_COLUMNS_MAX;
    const size_t bytes = ROW_SHARED_BYTES + (keeps ? (job->columns + 3) / 4 * 16 : 0);
    return job->rows == 0 || LAUNCH(gate_rows, job->rows, THREADS, bytes, stream, *job, keeps);
}
