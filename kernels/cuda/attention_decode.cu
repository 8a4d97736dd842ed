/* Tasks of up to 16 pairs: one row of warps, the 64 keys and the dimensions split over four. */
#include "kernels/cuda/attention_run.h"
#include "kernels/cuda/attention_tile.h"

bool attention_run_decode(const struct cuda_attention *job, cuda_stream stream)
{
    const uint32_t dim = job->geometry.dim;
    return dim <= 64    ? attention_launch<attention_shape<1, 4, 64>>(job, stream)
           : dim <= 128 ? attention_launch<attention_shape<1, 4, 128>>(job, stream)
           : dim <= 256 ? attention_launch<attention_shape<1, 4, 256>>(job, stream)
                        : attention_launch<attention_shape<1, 4, 512>>(job, stream);
}
