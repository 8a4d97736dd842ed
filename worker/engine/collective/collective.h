/* collective.h - what the ranks of a group do together: one table, over shared memory (collective_shared.c, CPUs) or NCCL
 * (collective_nccl.h, GPUs). The same calls in the same order on every rank; a rank that calls something else, or with other
 * sizes, ends the group (STATUS_INTERNAL there, STATUS_CLOSED at the others).
 *
 * Every call has a deadline (absolute, on clock_now_ms; 0: none). A call that fails has ended the group: one group is one failure unit
 * (rendezvous.h), nothing is tried twice. STATUS_TIMEOUT: this rank found another one late; STATUS_CLOSED: a rank has died, or
 * another one has ended the group. `abort` ends it, from any thread, and every call that is under way anywhere with it.
 * A collective belongs to one thread. */
#ifndef ROOST_WORKER_ENGINE_COLLECTIVE_H
#define ROOST_WORKER_ENGINE_COLLECTIVE_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

struct rendezvous;                       /* worker/engine/collective/rendezvous.h */
struct collective;                       /* opaque */

struct collective_counts {               /* since create, of this rank */
    uint64_t calls, bytes_received;      /* received: what other ranks wrote and this one read */
};

struct collective_ops {
    const char *name;                    /* "shared", "nccl" */
    size_t (*shared_bytes)(uint32_t size);   /* of the rendezvous' extra memory that create wants, from its beginning on */
    /* The rendezvous is borrowed and outlives it; its ranks have met. */
    enum status (*create)(struct rendezvous *rendezvous, struct collective **out);
    void (*destroy)(struct collective **collective);                         /* accepts NULL */
    /* all = the parts of all ranks in order; bytes (size): of each part. part may lie in all, where it belongs. */
    enum status (*all_gather)(struct collective *self, const void *part, const size_t *bytes, void *all, uint64_t deadline_ms);
    /* send: for each rank in order send_bytes[rank]; receive: from each rank in order receive_bytes[rank]. */
    enum status (*all_to_all)(struct collective *self, const void *send, const size_t *send_bytes, void *receive,
                              const size_t *receive_bytes, uint64_t deadline_ms);
    enum status (*sum_int32)(struct collective *self, int32_t *values, size_t count, uint64_t deadline_ms);     /* in place; exact */
    /* The largest of each, in place. Floats that are not negative (maxima of absolute values) order as their bits do. */
    enum status (*maximum_bits)(struct collective *self, uint32_t *values, size_t count, uint64_t deadline_ms);
    enum status (*broadcast)(struct collective *self, uint32_t root, void *data, size_t bytes, uint64_t deadline_ms);
    enum status (*barrier)(struct collective *self, uint64_t deadline_ms);
    void (*abort)(struct collective *self, const char *reason);
    void (*counts)(const struct collective *self, struct collective_counts *out);
};

extern const struct collective_ops collective_shared_ops;

#endif
