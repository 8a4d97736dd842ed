/* parallel_wire.h - what rank 0 tells its followers; for backend_parallel.c, parallel_group.c and parallel_follower.c only.
 *
 * Messages are broadcasts: a head, then its bytes. Copies of pages do not wait for their turn among the messages: each follower has
 * a ring of them and a thread that works it off, beside the compute. Addresses are rank 0's; a follower finds its own by the
 * arenas it was told. All of one machine and one program: plain structures. */
#ifndef ROOST_WORKER_ENGINE_PARALLEL_WIRE_H
#define ROOST_WORKER_ENGINE_PARALLEL_WIRE_H
#include <stdint.h>
#include "common/hash.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/collective/collective.h"
#include "worker/engine/collective/rendezvous.h"

enum parallel_message_kind { PARALLEL_START = 1, PARALLEL_ARENA, PARALLEL_ARENA_GONE, PARALLEL_FORWARD, PARALLEL_END };

struct parallel_message {
    uint32_t kind;
    uint32_t bytes;                /* that follow in a broadcast of their own */
    uint64_t deadline_ms;          /* for carrying it out */
};

struct parallel_start {            /* then a barrier: every rank has its model */
    uint32_t rows_max, threads, full_depth, model_dir_size;
    uint8_t weights_digest[HASH_DIGEST_BYTES];
    char words[];                  /* the model's folder, then the plugin's path or nothing, each with its NUL */
};

struct parallel_arena {            /* then a barrier: every rank has it. GONE: base and bytes alone */
    uint64_t base, bytes;
    uint32_t home;                 /* the rank that has the memory; 0: all share it, from host_offset of host_fd on */
    uint64_t host_offset;
};

/* Of a FORWARD; behind all of them the tokens, then the page tables of runs with home > 0, all 8-byte aligned. */
struct parallel_run {
    uint32_t count, start, logit_rows, home;
    uint32_t pages[BACKEND_GROUPS_MAX];   /* entries of each group's table; 0 for home 0 */
};

#define PARALLEL_WORD_POSTED 1u    /* of rendezvous_word: copies told to the rank */
#define PARALLEL_WORD_DONE   2u    /* copies that it has made */
#define PARALLEL_COPIES      1024u /* in a ring */

struct parallel_copy {
    uint64_t dst, src;
    uint64_t bytes;                /* 0 with tokens 0: no more copies come */
    uint32_t group, tokens;        /* tokens > 0: page_copy_prefix */
};

/* The rendezvous' extra memory: collective's, then a ring a rank. */
static inline size_t parallel_extra_bytes(uint32_t size)
{
    return collective_shared_ops.shared_bytes(size) + (size_t)size * PARALLEL_COPIES * sizeof(struct parallel_copy);
}

static inline struct parallel_copy *parallel_ring(const struct rendezvous *rendezvous, uint32_t rank)
{
    uint8_t *extra = (uint8_t *)rendezvous_extra(rendezvous) + collective_shared_ops.shared_bytes(rendezvous_size(rendezvous));
    return (struct parallel_copy *)extra + (size_t)rank * PARALLEL_COPIES;
}

static inline uint64_t parallel_align(uint64_t bytes)
{
    return (bytes + 7) / 8 * 8;
}

struct rank_ops;

struct parallel_group {            /* parallel_group.c */
    struct rendezvous *rendezvous; /* owned */
    int host_fd;                   /* owned: memory of the host tier, grown by arena_create */
    char *model_dir, *plugin;      /* owned; plugin NULL: the CPU backend */
    const struct rank_ops *ranks;  /* ref */
    uint32_t step_ms_min;
    pid_t pids[RENDEZVOUS_RANKS_MAX];
    void (*on_death)(void *user);
    void *user;
    _Atomic bool closing;          /* followers end because they were told to */
    bool taken;                    /* a backend has been made */
};

#endif
