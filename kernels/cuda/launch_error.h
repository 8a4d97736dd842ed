/* launch_error.h - why a launch was refused, kept for the calling thread. */
#ifndef ROOST_KERNELS_CUDA_LAUNCH_ERROR_H
#define ROOST_KERNELS_CUDA_LAUNCH_ERROR_H
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Notes the reason, a cudaError_t or (error 0) a text of ours, with what was launched. Always false, for `return launch_refused(...)`. */
bool launch_refused(const char *kernel, int error, const char *text, uint32_t grid, uint32_t block, uint64_t shared_size);

#ifdef __cplusplus
}
#endif
#endif
