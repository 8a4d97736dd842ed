/* runtime.h - the CUDA runtime's interface for host code: NVIDIA's, or with ROOST_CUDA_EMULATION the one of tests/cuda_emulation with the same
 * names. Usable from C and C++. */
#ifndef ROOST_KERNELS_CUDA_RUNTIME_H
#define ROOST_KERNELS_CUDA_RUNTIME_H

#ifdef ROOST_CUDA_EMULATION
#include "tests/cuda_emulation/runtime_emulated.h"
#else
#include <cuda_runtime_api.h>
#endif

#endif
