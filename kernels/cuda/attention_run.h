/* attention_run.h - what the sources of attention share: how large tasks are, and who launches what. */
#ifndef ROOST_KERNELS_CUDA_ATTENTION_RUN_H
#define ROOST_KERNELS_CUDA_ATTENTION_RUN_H
#include "kernels/cuda/kernels_cuda.h"

#define ATTENTION_PAIRS_WIDE 32u             /* of a task with more than 256 dimensions: two warps' rows (attention_tile.h) */
#define ATTENTION_PAIRS_SMALL 16u            /* tasks up to here are attention_decode.cu's */
#define ATTENTION_DIM_NARROW 256u
#define ATTENTION_DIM_MAX 512u

#ifdef __cplusplus
extern "C" {
#endif

static inline uint32_t attention_pairs_most(uint32_t dim)
{
    return dim > ATTENTION_DIM_NARROW ? ATTENTION_PAIRS_WIDE : CUDA_ATTENTION_PAIRS;
}

/* All of job->tasks, which are of the size the kernel is for. */
bool attention_run_decode(const struct cuda_attention *job, cuda_stream stream);
bool attention_run_prefill(const struct cuda_attention *job, cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
