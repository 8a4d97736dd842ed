/* rank.h - what a backend offers that can be one of several ranks (docs/decisions/0005-tensor-parallelism.md): for backend_parallel.c (rank 0) and
 * parallel_follower.c (the others), which drive it. A rank's backend is made by ops->create with backend_config.rank and ranks, and joins once. */
#ifndef ROOST_WORKER_ENGINE_RANK_H
#define ROOST_WORKER_ENGINE_RANK_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/backend/backend.h"

struct collective;                 /* worker/engine/collective/collective.h */
struct collective_ops;
struct rendezvous;                 /* worker/engine/collective/rendezvous.h */

struct rank_place {                /* everything borrowed, and outlives the backend */
    struct rendezvous *rendezvous; /* all ranks have met */
    const struct collective_ops *ops;        /* collectives of the host's memory */
    struct collective *collective;
    uint32_t rank, size;
    uint64_t deadline_ms;          /* for joining */
};

struct rank_ops {
    const struct backend_ops *ops; /* forward excepted: a rank that has joined computes by forward_rank */
    enum status (*join)(struct backend *backend, const struct rank_place *place);
    /* As forward; every rank calls it with the same runs in the same order. homes: the rank each run's pages live on, ascending; pages are
     * looked at on that rank alone; logits and tokens are given on rank 0 alone. The batch has been checked (backend_batch.h). */
    enum status (*forward_rank)(struct backend *backend, const struct backend_batch *batch, const uint32_t *homes, uint64_t deadline_ms,
                                uint32_t *failed_run);
    /* Optional, both or neither: memory of the host tier that was not made by arena_create begins and ceases to be copied from and to. */
    enum status (*host_memory_use)(struct backend *backend, void *base, size_t bytes);
    void (*host_memory_forget)(struct backend *backend, void *base);
};

extern const struct rank_ops rank_cpu_ops;

#endif
