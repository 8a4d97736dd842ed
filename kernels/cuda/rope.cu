#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"
#include "kernels/ref/rope_inline.h"

#define THREADS 128u

/* One row a block. */
ENTRY(THREADS) rope_table(const double *frequency, uint32_t pairs, const uint32_t *position, float *cosine, float *sine)
{
    const size_t at = size_t(block_index()) * pairs;
    const double angle = static_cast<double>(position[block_index()]);
    for (uint32_t i = thread_index(); i < pairs; i += THREADS)
        rope_cos_sin(angle * frequency[i], cosine + at + i, sine + at + i);
}

bool cuda_rope_table(const double *frequency, uint32_t pairs, const uint32_t *position, uint32_t rows, float *cosine, float *sine,
                     cuda_stream stream)
{
    return rows == 0 || LAUNCH(rope_table, rows, THREADS, 0, stream, frequency, pairs, position, cosine, sine);
}
