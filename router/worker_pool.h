/* worker_pool.h - the workers that a router knows, and the state of the link to each.
 *
 * Owns two client channels per worker, control and data. Workers come from the settings, which stay, and from the
 * directory in Redis, which adds and says whose lease has expired; a worker from there alone is forgotten when it is
 * gone from there and its link has been down for WORKER_FORGET_MS.
 *
 *   DOWN --both links up, WELCOME on both, a lease echoes a number of ours--> UP
 *   UP   --a link drops, another incarnation answers, or no new echo for WORKER_DEAD_MS--> DOWN: on_lost
 *
 * Always true:
 *   1. on_lost is called once for each time UP ends, and names every request there as lost;
 *   2. a worker that is ready (may take new work) is UP, echoed within WORKER_SUSPECT_MS and says that it is ready;
 *   3. two links never count as one worker: the first to answer under a name has it while it is up.
 * Loop thread only. Callbacks come from channel messages and from worker_pool_expire; they must not destroy it. */
#ifndef ROOST_ROUTER_WORKER_POOL_H
#define ROOST_ROUTER_WORKER_POOL_H
#include <stdbool.h>
#include <stdint.h>
#include <zmq.h>
#include "common/status.h"
#include "proto/wire.h"
#include "router/worker_directory.h"

struct loop;
struct worker;
struct worker_pool;

#define WORKER_SUSPECT_MS      600   /* three leases of 200 ms missed */
#define WORKER_DEAD_MS         2000  /* ten leases missed */
#define WORKER_DATA_STALLED_MS 5000  /* nothing came by the data link, although leases do */
#define WORKER_FORGET_MS       10000 /* ten readings of the directory */
#define WORKER_TAKE_OVER_MS    10000 /* a link down for so long gives its conversations away, whatever its lease says */
#define WORKER_POOL_MAX        1024  /* 1.5 KB each; two links, some 8 descriptors: 8,192 */

struct worker_pool_events {
    void (*on_ready)(void *user, struct worker *worker); /* may have become able to take work, or more work */
    void (*on_lost)(void *user, struct worker *worker);
    /* TOKENS, DONE, ERROR, NEED_HISTORY, RESEND, WRONG_OWNER, ACK. Borrowed. */
    void (*on_message)(void *user, struct worker *worker, const struct wire_message *message);
    void *user;
};

struct worker_pool_config {
    const char *const *endpoints; /* control endpoints from the settings; borrowed during create */
    unsigned endpoint_count;
    const char *name;       /* of this router; borrowed */
    const uint8_t *session; /* 16 bytes; borrowed */
    uint32_t lease_ms;
    bool has_directory; /* leases in Redis count for worker_owner_lost */
};

enum status worker_pool_create(struct loop *loop, void *zmq_context, const struct worker_pool_config *config,
                               const struct worker_pool_events *events, struct worker_pool **out);
void worker_pool_destroy(struct worker_pool **pool);

/* A worker_directory_fn. */
void worker_pool_directory(void *pool, const struct worker_directory_entry *entries, unsigned count, uint64_t begun_ms);
/* Time passes: leases expire. Not after a stall of this loop. */
void worker_pool_expire(struct worker_pool *pool, uint64_t now_ms);
/* End of a turn: what must not happen inside a channel's callback. */
void worker_pool_turn(struct worker_pool *pool);

/* Workers in a fixed order until the next worker_pool_turn. */
unsigned worker_pool_count(const struct worker_pool *pool);
struct worker *worker_pool_at(const struct worker_pool *pool, unsigned index);
int worker_pool_find(const struct worker_pool *pool, const char *name); /* index, or -1 */
/* May the owner of a record be replaced? index -1: a name that nobody here has. */
bool worker_pool_owner_lost(const struct worker_pool *pool, int index);

const char *worker_name(const struct worker *worker); /* "" before its first WELCOME */
uint64_t worker_name_hash(const struct worker *worker);
uint64_t worker_weight(const struct worker *worker);      /* kv_tokens_max, at least 1, at most 2^40 */
uint64_t worker_load_tokens(const struct worker *worker); /* reported, and what we sent since; at most 2^40 */
bool worker_ready(const struct worker *worker);
const uint8_t *worker_incarnation(const struct worker *worker);

/* head and body are taken in every case. STATUS_AGAIN: no room now (its grant, its streams, the channel's queue).
 * STATUS_CLOSED: not ready. On success the stream and its body count until worker_stream_close and
 * worker_body_acknowledged. */
enum status worker_send_request(struct worker *worker, zmq_msg_t *head, zmq_msg_t *body);
void worker_send_cancel(struct worker *worker, const struct wire_cancel *cancel); /* session is filled in here */
void worker_body_acknowledged(struct worker *worker, uint64_t bytes);
void worker_stream_close(struct worker *worker);

#endif
