/* Tasks of more pairs: a warp has 16 pairs and all keys; above 256 dimensions, whose sums no warp can hold, as in attention_decode.cu. */
#include "kernels/cuda/attention_run.h"
#include "kernels/cuda/attention_tile.h"

bool attention_run_prefill(const struct cuda_attention *job, cuda_stream stream)
{
    const uint32_t dim = job->geometry.dim;
    return dim <= 64    ? attention_launch<attention_shape<4, 1, 64>>(job, stream)
           : dim <= 128 ? attention_launch<attention_shape<4, 1, 128>>(job, stream)
           : dim <= 256 ? attention_launch<attention_shape<4, 2, 256>>(job, stream)
                        : attention_launch<attention_shape<2, 4, 512>>(job, stream);
}
