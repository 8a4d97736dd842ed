/* collective_nccl.h - collectives of GPUs, one rank a process, over NCCL: the same table as collective_shared.c for data in device
 * memory. In a library of its own (roost_nccl), which a CUDA backend links; built where nccl.h and the library are.
 *
 * The bootstrap: rank 0 makes a ncclUniqueId and publishes it in the rendezvous, the others wait for it; every rank then makes its
 * communicator without blocking and asks until it is there. NCCL's own sockets do the rest.
 *
 * Order is the stream's: a call of the table puts its work on the stream and returns when NCCL has taken it; collective_nccl_wait waits
 * for what the stream has. Both look at the group between questions: when a rank has died, when the deadline passes or when
 * NCCL reports an error, the communicator is aborted (ncclCommAbort ends its kernels, so the stream comes free) and the group
 * with it. Rank 0's messages to its followers and copies of pages go over the shared memory of the rendezvous, as without a GPU. */
#ifndef ROOST_WORKER_ENGINE_COLLECTIVE_NCCL_H
#define ROOST_WORKER_ENGINE_COLLECTIVE_NCCL_H
#include <nccl.h>
#include <stdint.h>
#include "worker/engine/collective/collective.h"

struct rendezvous;

/* The same id on every rank. Needs no GPU. */
enum status collective_nccl_exchange_id(struct rendezvous *rendezvous, ncclUniqueId *id, uint64_t deadline_ms);

/* After cudaSetDevice. The stream is borrowed. In place of collective_ops.create. */
enum status collective_nccl_create(struct rendezvous *rendezvous, cudaStream_t stream, uint64_t deadline_ms, struct collective **out);
enum status collective_nccl_wait(struct collective *self, uint64_t deadline_ms);

extern const struct collective_ops collective_nccl_ops;   /* without create and shared_bytes */

#endif
