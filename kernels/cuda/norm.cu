#include "kernels/cuda/row.h"
#include <assert.h>

#define INTO_MAX 4u

struct norm_arguments {
    cuda_norm norm;                          /* its `into` is the host's: not read */
    cuda_rows_int8 into[INTO_MAX];
};

struct row_normed {
    row_plain x, weight;                     /* weight.x NULL: none */
    float inverse;
};

DEVICE row_quad row_four(const row_normed &row, uint32_t i)
{
    row_quad r = row_four(row.x, i);
    for (uint32_t k = 0; k < 4; k++)
        r.v[k] = r.v[k] * row.inverse;
    if (row.weight.x) {
        const row_quad w = row_four(row.weight, i);
        for (uint32_t k = 0; k < 4; k++)
            r.v[k] = r.v[k] * w.v[k];
    }
    return r;
}

/* One row a block. The normed row is computed anew from x, which stays in L1, by each pass; out, which may be x, comes last. */
ENTRY(ROW_LANES) norm_rows(norm_arguments a)
{
    const cuda_norm &norm = a.norm;
    const uint32_t number = block_index(), columns = norm.columns;
    const float *x = norm.x + size_t(number) * columns;
    float inverse;
    if (!row_inverse(row_block_squares(x, columns), columns, norm.epsilon, &inverse)) {
        if (thread_index() == 0)
            atomic_min(norm.bad_row, number);
        return;
    }
    const row_normed normed = {row_plain_at(x, columns), row_plain_at(norm.weight, columns), inverse};
    for (uint32_t n = 0; n < norm.into_count; n++)
        row_quantize(normed, columns, number, a.into[n], nullptr, norm.bad_row);
    if (!norm.out && !norm.residual)
        return;
    float *out = norm.out ? norm.out + size_t(number) * columns : nullptr;
    float *residual = norm.residual ? norm.residual + size_t(number) * columns : nullptr;
    const row_plain before = row_plain_at(residual, columns);
    const bool whole = row_aligned(out, columns * 4, 16);
    for (uint32_t i = 4 * thread_index(); i < columns; i += 4 * ROW_LANES) {
        const row_quad quad = row_four(normed, i);
        if (residual) {
            row_quad sum = row_four(before, i);
            for (uint32_t k = 0; k < 4; k++)
                sum.v[k] = (sum.v[k] + quad.v[k]) * norm.residual_scalar;    /* by 1: no bit changes */
            row_store_floats(residual, columns, before.whole, i, sum);
        }
        if (out)
            row_store_floats(out, columns, whole, i, quad);
    }
}

bool cuda_norm_rows(const struct cuda_norm *job, cuda_stream stream)
{
    assert(job->into_count <= INTO_MAX && job->columns > 0 && (!job->residual || job->residual != job->x));
    norm_arguments arguments = {*job, {}};
    for (uint32_t n = 0; n < job->into_count; n++) {
        assert(job->into[n].scheme != CUDA_SCHEME_ROTATED || job->columns % 128 == 0);
        arguments.into[n] = job->into[n];
    }
    return job->rows == 0 || LAUNCH(norm_rows, job->rows, ROW_LANES, ROW_SHARED_BYTES, stream, arguments);
}
