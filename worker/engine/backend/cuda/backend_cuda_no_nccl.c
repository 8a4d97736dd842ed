#include "common/log.h"
#include "worker/engine/backend/cuda/backend_cuda_nccl.h"
#include "worker/engine/collective/rendezvous.h"

enum status gpu_nccl_create(struct rendezvous *rendezvous, cudaStream_t stream, uint64_t deadline_ms, struct collective **out)
{
    (void)stream, (void)deadline_ms;
    if (rendezvous_rank(rendezvous) == 0)
        LOG_INFO("built without NCCL: ranks exchange over the host's memory");
    *out = NULL;
    return STATUS_OK;
}

const struct collective_ops *gpu_nccl_ops(void)
{
    return NULL;
}

enum status gpu_nccl_wait(struct collective *self, uint64_t deadline_ms)
{
    (void)self, (void)deadline_ms;
    return STATUS_FAIL(STATUS_INTERNAL, "built without NCCL");
}
