#include "kernels/cuda/gemm_tiles.h"
#include <assert.h>
#include "kernels/cuda/launch_error.h"
#include "kernels/cuda/runtime.h"

size_t cuda_gemm_tiled_bytes(uint32_t outputs, uint32_t depth)
{
    size_t strips = ((size_t)outputs + GEMM_STRIP - 1) / GEMM_STRIP, steps = ((size_t)depth + GEMM_STEP - 1) / GEMM_STEP;
    return strips * steps * GEMM_PIECE_BYTES;
}

bool gemm_prepare(const struct cuda_gemm *job, struct gemm_work *work)
{
    assert(job->depth > 0 && job->depth % 16 == 0 && (uintptr_t)job->a % 16 == 0 && (uintptr_t)job->a_low % 16 == 0);
    assert((uintptr_t)job->w_tiled % 16 == 0 && (job->raw || job->out_stride >= job->outputs));
    if (job->raw && job->a_low)
        return launch_refused("gemm", 0, "raw sums of wide rows have no type", 0, 0, 0);
    uintptr_t to = job->raw ? (uintptr_t)job->raw : (uintptr_t)job->out;
    uint32_t stride = job->raw ? job->outputs : job->out_stride;
    *work = (struct gemm_work){.job = *job,
                               .strips = (job->outputs + GEMM_STRIP - 1) / GEMM_STRIP,
                               .steps = (job->depth + GEMM_STEP - 1) / GEMM_STEP,
                               .quads = to % 16 == 0 && stride % 4 == 0};
    return true;
}

/* Of the current device. It costs a look at a table of the runtime. */
static uint32_t multiprocessors(void)
{
    int device, count;
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return 1;                              /* the launch will say what is wrong */
    return (uint32_t)count;
}

bool cuda_gemm_small(const struct cuda_gemm *job, cuda_stream stream)
{
    struct gemm_work work;
    if (job->rows == 0 || job->outputs == 0)
        return true;
    return gemm_prepare(job, &work) && gemm_small_run(&work, gemm_small_choose(&work, multiprocessors()), stream);
}

bool cuda_gemm_large(const struct cuda_gemm *job, cuda_stream stream)
{
    struct gemm_work work;
    if (job->rows == 0 || job->outputs == 0)
        return true;
    return gemm_prepare(job, &work) && gemm_large_run(&work, gemm_large_choose(&work, multiprocessors()), stream);
}

bool cuda_gemm_int8(const struct cuda_gemm *job, cuda_stream stream)
{
    return job->rows <= CUDA_GEMM_ROWS_SMALL ? cuda_gemm_small(job, stream) : cuda_gemm_large(job, stream);
}
