#include "kernels/cuda/launch_error.h"
#include <inttypes.h>
#include <stdio.h>
#include "kernels/cuda/kernels_cuda.h"
#include "kernels/cuda/runtime.h"

static _Thread_local char last_error[256];

bool launch_refused(const char *kernel, int error, const char *text, uint32_t grid, uint32_t block, uint64_t shared_size)
{
    snprintf(last_error, sizeof last_error, "%s, %" PRIu32 " blocks of %" PRIu32 " threads with %" PRIu64 " bytes shared: %s", kernel, grid, block,
             shared_size, error == 0 ? text : cudaGetErrorString((cudaError_t)error));
    return false;
}

const char *cuda_launch_error(void)
{
    return last_error;
}
