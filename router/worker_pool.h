/* worker_pool.h - the workers that a router knows, and the state of the link to each.
 *
 * Owns two client channels per worker, control and data. Workers come from the settings, which stay, and from the
 * directory in Redis, which adds and says whose lease has expired; a worker from there alone is forgotten when it is
 * gone from there and its link has been down for WORKER_FORGET_MS.
 *
 *   DOWN --both links up, WELCOME on both, a lease echoes a number of ours--> UP
 *   UP   --a link drops--> UP and suspect: nothing new goes there, and a TCP connect of our own asks (link_probe.h)
 *          --it is refused, or another incarnation answers--> DOWN: on_lost
 *          --the same incarnation answers on both links--> UP: on_relinked
 *   UP   --no new echo for WORKER_SUSPECT_MS--> suspect  --for WORKER_DEAD_MS--> DOWN: on_lost
 *   UP   --leases come, but its step takes too long, or the data link is stalled--> DOWN: on_lost
 *
 * A worker that keeps failing is kept closed by a breaker for a while (worker_health.c), then tried with one request.
 *
 * Files: worker_pool.c (the list, the directory, time), worker_link.c (one worker's links), worker_lease.c (leases,
 * load, credit), worker_health.c (breaker, ramp, what operators see), worker_send.c (requests and messages to it).
 *
 * Always true:
 *   1. on_lost is called once for each time UP ends, and names every request there as lost;
 *   2. a worker that is ready (may take new work) is UP, has both links, echoed within WORKER_SUSPECT_MS, says that it
 * is ready, and its breaker lets it; if breakers alone leave nobody, the one whose last fault is oldest is ready all
 *      the same;
 *   3. two links never count as one worker: the first to answer under a name has it while it is up;
 *   4. silence counts only in worker_pool_expire: not calling it (after a stall of our own loop) loses nobody, makes
 *      nobody suspect for longer, and opens no breaker.
 * Loop thread only. Callbacks come from channel messages, probes and worker_pool_expire; they must not destroy it. */
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

#define WORKER_SUSPECT_MS       600   /* three leases of 200 ms missed */
#define WORKER_DEAD_MS          2000  /* ten leases missed */
#define WORKER_DATA_STALLED_MS  5000  /* nothing came by the data link, although leases do */
#define WORKER_DATA_ECHO_MS     20000 /* nothing of ours arrived by the data link: 4 MiB of bodies at 1.7 Mbit/s */
#define WORKER_STEP_MS          1700 /* of one step, or WORKER_STEP_MEDIANS times the median one: it hangs; see below */
#define WORKER_STEP_MEDIANS     20
#define WORKER_FORGET_MS        10000 /* ten readings of the directory */
#define WORKER_TAKE_OVER_MS     10000 /* a link down for so long gives its conversations away, whatever its lease says */
#define WORKER_RAMP_MS          30000 /* after a new incarnation came up, its load counts more than it is */
#define WORKER_RAMP_MAX         4
#define WORKER_RAMP_TOGETHER_MS 1000 /* up so soon after the first: one start of a fleet, nobody is new among others */
#define WORKER_OVERLOAD_MS      500 /* a queue that takes longer is overload; it is over when it was below half of that */
#define WORKER_OVERLOAD_OVER_MS 5000 /* for so long: what a spill relieves for a second is the same overload still */
#define WORKER_POOL_MAX         1024 /* 2.5 KB each; two links, some 8 descriptors: 8,192 */

/* WORKER_STEP_MS: the age of a step comes with a lease, so it is known to be over the limit by the next one, 200 ms
 * later: 1,900 ms, and 100 ms for the turns of two loops, are within 2 s. */

/* Bytes of TOKENS frames that a worker may send ahead of what we have read: the queue of one data link. */
#define WORKER_CONNECTION_CREDIT_BYTES (UINT64_C(8) << 20)

struct worker_pool_events {
    void (*on_ready)(void *user, struct worker *worker); /* may have become able to take work, or more work; or what
                                                            waits for it may have waited long enough */
    void (*on_lost)(void *user, struct worker *worker);
    /* A link had dropped and the same incarnation is there again: streams go on, and it sends again what it owes. What
     * we sent by the old link may be gone: requests that it has not acknowledged, grants (worker_grant has forgotten
     * them). May be NULL. */
    void (*on_relinked)(void *user, struct worker *worker);
    /* TOKENS, DONE, ERROR, NEED_HISTORY, RESEND, WRONG_OWNER, ACK, SUPERSEDED, ATTACH_REPLY. Borrowed. */
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
/* End of a turn: what must not happen inside a channel's callback, and grants that are due at once. */
void worker_pool_turn(struct worker_pool *pool);

/* Workers in a fixed order until the next worker_pool_turn. */
unsigned worker_pool_count(const struct worker_pool *pool);
struct worker *worker_pool_at(const struct worker_pool *pool, unsigned index);
int worker_pool_find(const struct worker_pool *pool, const char *name); /* index, or -1 */
/* Is everybody up whom the settings and the directory name? Not before the directory was read. */
bool worker_pool_met(const struct worker_pool *pool);
/* May the owner of a record be replaced because it is gone? index -1: a name that nobody here has. */
bool worker_pool_owner_lost(const struct worker_pool *pool, int index);

/* ---- one worker: what it is ---- */

const char *worker_name(const struct worker *worker); /* "" before its first WELCOME */
uint64_t worker_name_hash(const struct worker *worker);
const uint8_t *worker_incarnation(const struct worker *worker);
/* 32 bytes, or empty: not told (its model is not loaded yet). Borrowed. */
struct wire_span worker_numerics_id(const struct worker *worker);
uint32_t worker_capabilities(const struct worker *worker); /* bits of enum wire_capability; 0: of the first release */
/* Tokens it sends on a new stream before the first grant; 0: it knows no credit, or sets no limit. */
uint32_t worker_stream_window(const struct worker *worker);

/* ---- its state ---- */

bool worker_ready(const struct worker *worker);
bool worker_up(const struct worker *worker);        /* between UP and on_lost */
bool worker_connected(const struct worker *worker); /* UP, and its control link works: it can be asked and told */
bool worker_draining(const struct worker *worker);  /* UP and takes nothing new any more */
/* UP, but a link is down or echoes are missing. *for_ms (may be NULL): for how long, as far as it was judged. */
bool worker_suspect(const struct worker *worker, uint64_t *for_ms);

uint64_t worker_weight(const struct worker *worker);        /* kv_tokens_max, at least 1, at most 2^40 */
uint64_t worker_load_tokens(const struct worker *worker);   /* reported, and what we sent since; at most 2^40 */
uint64_t worker_queued_tokens(const struct worker *worker); /* to compute before what comes next; likewise */
uint32_t worker_token_ns(const struct worker *worker);      /* of a computed prompt token; 0: not known */
uint64_t worker_overloaded_ms(const struct worker *worker); /* for how long already; 0: is not */
/* What its load counts times, 1 to WORKER_RAMP_MAX: it came up later than others and holds little yet. */
double worker_ramp(const struct worker *worker);

/* ---- faults: a loss counts by itself. stream: the number that the request was sent by ---- */

void worker_fault(struct worker *worker, uint32_t stream, const char *why); /* it answered INTERNAL */
void worker_success(struct worker *worker, uint32_t stream);                /* DONE */

/* ---- to it ---- */

/* head and body are taken in every case. tokens: to compute, about; they count as its load until it tells its own.
 * STATUS_AGAIN: no room now (its grant, its streams, the channel's queue). STATUS_CLOSED: not ready. On success the
 * stream and its body count until worker_stream_close and worker_body_acknowledged. */
enum status worker_send_request(struct worker *worker, uint32_t stream, zmq_msg_t *head, zmq_msg_t *body,
                                uint64_t tokens);
/* One that it has already, as it said: also when it takes nothing new. STATUS_CLOSED: a link is down. */
enum status worker_send_known(struct worker *worker, zmq_msg_t *head, zmq_msg_t *body);
void worker_body_acknowledged(struct worker *worker, uint64_t bytes);
void worker_stream_close(struct worker *worker, uint32_t stream);
/* Session is filled in by this and the next two. It is heard if the process lives: what may not have arrived is sent
 * again by the next link to it. */
void worker_send_cancel(struct worker *worker, const struct wire_cancel *cancel);
/* STATUS_CLOSED: not connected. STATUS_UNSUPPORTED: it does not know the message. */
enum status worker_send_attach(struct worker *worker, const struct wire_attach *attach);
enum status worker_send_drain(struct worker *worker, const struct wire_drain *drain);
/* It may send this many tokens (absolute, over all choices) on this stream. Goes out with the next lease, or, now, at
 * the end of this turn with all that are pending. No-op for a worker without WIRE_CAN_CREDIT. */
void worker_grant(struct worker *worker, uint32_t stream, uint64_t tokens_total, bool now);

/* ---- for people ---- */

enum worker_breaker { WORKER_BREAKER_CLOSED, WORKER_BREAKER_OPEN, WORKER_BREAKER_HALF_OPEN };
const char *worker_breaker_name(enum worker_breaker state); /* "half-open" */

struct worker_drain {            /* as it said last while it drained */
    uint32_t streams, abandoned; /* still to end; running at its deadline */
    uint64_t bytes_left;         /* of replies, not sent yet */
};

struct worker_info {
    const char *name, *endpoint; /* borrowed until the next turn */
    const uint8_t *incarnation;  /* 16 bytes; NULL: has never answered */
    struct wire_span numerics_id;
    enum wire_life life; /* as it says */
    bool up, ready, suspect, draining;
    struct worker_drain drain; /* zeros: does not drain, or has not said */
    bool configured, listed;   /* from the settings; in the directory when that was read last */
    enum worker_breaker breaker;
    uint64_t weight, load_tokens, queued_tokens;
    struct wire_load load; /* of its last lease */
    uint64_t overloaded_ms;
    double ramp;
    uint32_t streams;                 /* ours there */
    uint64_t faults, losses, relinks; /* since we know it */
    uint64_t leases_dropped;          /* with an old number, or an echo of nothing that was sent */
    uint64_t up_ms;                   /* 0: is not */
    uint64_t tokens_bytes;            /* of TOKENS frames received by this data link */
};
void worker_info(const struct worker *worker, struct worker_info *out);

#endif
