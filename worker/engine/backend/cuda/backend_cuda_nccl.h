/* backend_cuda_nccl.h - NCCL where the build has it (backend_cuda_nccl.c), nothing where it has not (backend_cuda_no_nccl.c). */
#ifndef ROOST_WORKER_ENGINE_BACKEND_CUDA_NCCL_H
#define ROOST_WORKER_ENGINE_BACKEND_CUDA_NCCL_H
#include <stdint.h>
#include "common/status.h"
#include "kernels/cuda/runtime.h"

struct collective;
struct collective_ops;
struct rendezvous;

/* *out NULL with STATUS_OK: there is none. Otherwise as collective_nccl.h. */
enum status gpu_nccl_create(struct rendezvous *rendezvous, cudaStream_t stream, uint64_t deadline_ms, struct collective **out);
const struct collective_ops *gpu_nccl_ops(void);
enum status gpu_nccl_wait(struct collective *self, uint64_t deadline_ms);

#endif
