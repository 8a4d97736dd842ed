#include "kernels/cuda/row.h"
#include <assert.h>

#define THREADS 256u

/* One row a block. */
ENTRY(THREADS) quantize_rows(cuda_quantize job)
{
    const uint32_t number = block_index();
    const row_plain row = row_plain_at(job.x + size_t(number) * job.columns, job.columns);
    row_quantize(row, job.columns, number, job.into, job.row_max ? job.row_max + number : nullptr, job.bad_row);
}

bool cuda_quantize_rows(const struct cuda_quantize *job, cuda_stream stream)
{
    assert(job->into.scheme != CUDA_SCHEME_ROTATED || job->columns % 128 == 0);
    return job->rows == 0 || LAUNCH(quantize_rows, job->rows, THREADS, ROW_SHARED_BYTES, stream, *job);
}
