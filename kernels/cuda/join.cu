/* join.cu - slices of outputs that several ranks have computed, put side by side (docs/decisions/0005-tensor-parallelism.md). */
#include <assert.h>
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"

#define THREADS 256u

/* Rank r's part begins where the parts of those before it end: row-major, as wide as its slice. */
ENTRY(THREADS) join_rows(cuda_join job)
{
    const uint32_t row = block_index(), rank = block_index_y();
    const uint32_t first = cuda_slice_first(rank, job.ranks, job.outputs), count = cuda_slice_first(rank + 1, job.ranks, job.outputs) - first;
    const float *from = job.parts + size_t(first) * job.rows + size_t(row) * count;
    float *to = job.out + size_t(row) * job.outputs + first;
    for (uint32_t i = thread_index(); i < count; i += THREADS)
        to[i] = job.accumulate ? to[i] + from[i] : from[i];
}

bool cuda_join_rows(const struct cuda_join *job, cuda_stream stream)
{
    return job->rows == 0 || LAUNCH(join_rows, grid_size(job->rows, job->ranks), THREADS, 0, stream, *job);
}
