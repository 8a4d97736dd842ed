/* worker_internal.h - one worker as the files of the pool share it; nobody else includes it. worker_pool.h has the
 * states and who does what. Loop thread only. */
#ifndef ROOST_ROUTER_WORKER_INTERNAL_H
#define ROOST_ROUTER_WORKER_INTERNAL_H
#include "common/channel.h"
#include "common/loop.h"
#include "router/link_probe.h"
#include "router/worker_pool.h"

#define WORKER_LOAD_MAX (UINT64_C(1) << 40) /* what a worker may claim: products of two fit a double well enough */

enum {
    WORKER_SENT_SLOTS = 32,    /* leases of ours whose echo is awaited: 32 of 200 ms are more than WORKER_DEAD_MS */
    WORKER_BREAKER_FAULTS = 3, /* within WORKER_BREAKER_WINDOW_MS */
};

struct worker_sent { /* tokens sent to it, until it has heard our lease that followed */
    uint64_t number; /* of that lease; UINT64_MAX: not sent yet */
    uint64_t tokens;
};

/* One that has been told, or was to be while the link was down. It is gone once the worker has heard a lease of ours
 * behind it, and sent again when the link is another one. */
struct worker_cancel {
    uint64_t number; /* of that lease; UINT64_MAX: not sent by this link */
    struct wire_attempt attempt;
    uint8_t request_id[WIRE_ID_BYTES];
    char tenant[WIRE_NAME_MAX + 1], conversation[WIRE_NAME_MAX + 1];
};

struct worker_grant {
    uint32_t stream;
    uint64_t tokens;
};

struct worker {
    struct worker_pool *pool; /* ref */
    char endpoint[WORKER_ENDPOINT_MAX], data_endpoint[WORKER_ENDPOINT_MAX];
    char next_endpoint[WORKER_ENDPOINT_MAX]; /* the directory says it moved; "" otherwise */
    char name[WIRE_NAME_MAX + 1];
    uint64_t name_hash;
    bool configured, listed;

    /* worker_link.c */
    struct channel *control, *data;
    bool control_up, data_up;           /* the ZeroMQ links */
    bool welcome_control, welcome_data; /* since the link came up */
    bool data_renew;                    /* another data endpoint: at the end of the turn */
    bool refused_name;                  /* somebody else has it and is up */
    uint64_t hello_ms;
    uint64_t connect_ms; /* a channel could not be created: not again before */
    uint8_t incarnation[WIRE_ID_BYTES], numerics_id[32];
    bool has_incarnation, has_numerics_id;
    uint32_t capabilities, stream_window;
    bool up;
    uint64_t since_ms;   /* of up, or of not up */
    bool link_dropped;   /* while up; until both are back */
    uint64_t dropped_ms; /* when */
    uint64_t suspect_ms; /* since when silence makes it suspect, as worker_pool_expire saw it; 0: does not */
    struct link_probe *probe;
    uint64_t probe_ms; /* the next one not before */

    /* worker_lease.c */
    uint64_t number, data_number; /* of our last lease on each connection */
    uint64_t heard_number, data_heard_number;
    uint64_t echoed, data_echoed;     /* highest of our numbers that came back */
    uint64_t alive_ms, data_alive_ms; /* when it did */
    uint64_t data_heard_ms;
    uint64_t leases_dropped; /* with an old number, or an echo of nothing that we sent */
    enum wire_life life;
    bool goaway, hung;
    struct worker_drain drain;
    struct wire_load load; /* of its last lease; values as it said */
    uint64_t weight, load_tokens, queued_tokens;
    uint64_t overload_since_ms; /* 0: is not */
    uint64_t busy_ms;           /* its queue was long enough for that last */
    struct worker_sent sent[WORKER_SENT_SLOTS];
    unsigned sent_at;
    uint64_t sent_tokens;                     /* over all slots */
    uint64_t tokens_bytes, tokens_bytes_told; /* of TOKENS frames by this data link; as of our last lease */
    struct worker_grant *grants;              /* owned; not sent yet, in order of the calls */
    unsigned grant_count, grant_room;
    bool grant_now;

    /* worker_health.c */
    uint64_t born_ms; /* this incarnation came up first */
    uint64_t fault_ms[WORKER_BREAKER_FAULTS];
    unsigned fault_at;
    uint64_t faults, losses, relinks;
    enum worker_breaker breaker;
    uint64_t open_until_ms, closed_ms;
    uint32_t open_ms; /* how long it is open the next time */
    bool probing;     /* half-open: its one request is there */
    uint32_t probe_stream;

    /* worker_send.c */
    struct worker_cancel *cancels; /* owned; oldest first */
    unsigned cancel_count, cancel_room;
    uint64_t body_bytes_open, body_bytes_max;
    uint32_t streams, streams_max;
};

struct worker_pool {
    struct loop *loop; /* ref */
    void *zmq_context; /* ref */
    struct worker_pool_events events;
    char name[WIRE_NAME_MAX + 1];
    uint8_t session[WIRE_ID_BYTES];
    uint32_t lease_ms;
    bool has_directory;
    struct loop_timer *lease_timer;
    uint64_t created_ms, directory_begun_ms; /* of the last complete reading; 0: none */
    uint64_t complained_ms;
    bool due;                   /* something is to be done at the end of this turn */
    uint64_t turn_ms;           /* the last time that all were looked at */
    struct worker *last_resort; /* ref; breakers alone leave nobody: ready all the same */
    uint64_t oldest_born_ms;    /* of those that are up; 0: nobody is */
    unsigned count;
    struct worker *workers[WORKER_POOL_MAX];
};

static inline uint64_t worker_now_ms(const struct worker *worker)
{
    return loop_now_ms(worker->pool->loop);
}

static inline uint64_t worker_clamp(uint64_t value, uint64_t low, uint64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Its name, or where it is asked for one. */
static inline const char *worker_label(const struct worker *worker)
{
    return worker->name[0] ? worker->name : worker->endpoint;
}

/* ---- worker_pool.c ---- */

/* One line a second over all workers, so that a broken one cannot fill the log. */
bool worker_pool_may_log(struct worker_pool *pool);
void worker_call_ready(struct worker *worker);
/* False: the name is taken by another process that is up. */
bool worker_take_name(struct worker *worker, struct wire_span name);

/* ---- worker_link.c ---- */

enum status worker_connect(struct worker *worker); /* control; data follows from WELCOME */
void worker_disconnect(struct worker *worker, bool control);
void worker_link_expire(struct worker *worker, uint64_t now_ms);
void worker_link_turn(struct worker *worker, uint64_t now_ms);
/* Is what it needs to come up, or to be whole again, there by now? */
void worker_maybe_up(struct worker *worker);
void worker_down(struct worker *worker, const char *why); /* no-op if it is */

/* ---- worker_lease.c ---- */

void worker_lease_send(struct worker *worker, bool data);
void worker_lease_take(struct worker *worker, bool data, const struct wire_lease *lease);
void worker_lease_reset(struct worker *worker, bool data); /* that link begins anew */
void worker_load_reset(struct worker *worker);             /* it is down */
void worker_grants_flush(struct worker *worker);           /* those that are due at once */
void worker_tokens_received(struct worker *worker, size_t bytes);
void worker_sent_add(struct worker *worker, uint64_t tokens);

/* ---- worker_send.c ---- */

void worker_cancels_arrived(struct worker *worker, uint64_t echo);
void worker_cancels_unsent(struct worker *worker); /* the link is another one */
void worker_cancels_send(struct worker *worker);   /* those */
void worker_cancels_drop(struct worker *worker);   /* another process is there */

/* ---- worker_health.c ---- */

void worker_health_up(struct worker *worker, uint64_t now_ms);
void worker_health_lost(struct worker *worker, uint64_t now_ms, bool leaving);
void worker_health_sent(struct worker *worker, uint32_t stream);   /* a half-open one: that is its one request */
void worker_health_closed(struct worker *worker, uint32_t stream); /* without a verdict: the next may try */
/* Over all: open breakers become half-open; the last resort, and the oldest. */
void worker_health_turn(struct worker_pool *pool);
bool worker_could_work(const struct worker *worker); /* ready, whatever the breaker says */

#endif
