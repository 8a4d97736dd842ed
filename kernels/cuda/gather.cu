#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"

/* One block a row. */
ENTRY(256) gather_rows(const uint32_t *in, const uint32_t *index, uint32_t columns, uint32_t *out)
{
    const uint32_t *from = in + size_t(index[block_index()]) * columns;
    uint32_t *to = out + size_t(block_index()) * columns;
    for (uint32_t i = thread_index(); i < columns; i += block_threads())
        to[i] = from[i];
}

bool cuda_gather_rows(const uint32_t *in, const uint32_t *index, uint32_t rows, uint32_t columns, uint32_t *out, cuda_stream stream)
{
    return rows == 0 || LAUNCH(gather_rows, rows, 256, 0, stream, in, index, columns, out);
}
