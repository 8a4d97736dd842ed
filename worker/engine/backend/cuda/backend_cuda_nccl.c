#include "worker/engine/backend/cuda/backend_cuda_nccl.h"
#include "worker/engine/collective/collective_nccl.h"

enum status gpu_nccl_create(struct rendezvous *rendezvous, cudaStream_t stream, uint64_t deadline_ms, struct collective **out)
{
    return collective_nccl_create(rendezvous, stream, deadline_ms, out);
}

const struct collective_ops *gpu_nccl_ops(void)
{
    return &collective_nccl_ops;
}

enum status gpu_nccl_wait(struct collective *self, uint64_t deadline_ms)
{
    return collective_nccl_wait(self, deadline_ms);
}
