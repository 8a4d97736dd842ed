/* router_internal.h - what the files of the router share; nobody else includes it.
 *
 *   router.c          wiring and life, the turn of the loop
 *   router_request.c  what clients start and end: requests, repeats, cancels, deadlines, terminals
 *   router_route.c    where a request goes: placement, policy
 *   router_dispatch.c a request and its worker: who may have it, sending, taking away, waiting
 *   router_attach.c   does a worker have this request already?
 *   router_reply.c    what workers send: acks, tokens, terminals, refusals, losses
 *
 * struct router belongs to router.c; the others change a request, its place in inflight, the statistics and
 * retry_waiting, and the fields that say so. Functions are request_* when they move or end one request (struct request
 * is inflight.h), router_* when they look at all of them. Loop thread only. */
#ifndef ROOST_ROUTER_ROUTER_INTERNAL_H
#define ROOST_ROUTER_ROUTER_INTERNAL_H
#include "common/loop.h"
#include "router/frontend.h"
#include "router/inflight.h"
#include "router/placement.h"
#include "router/placement_cache.h"
#include "router/router.h"
#include "router/worker_pool.h"

struct redis_link;

enum {
    ROUTER_BUSY_HINT_MS = 200,     /* one lease: by then routers know the new load */
    ROUTER_RETRY_BUDGET_MAX = 100, /* retries saved up in quiet times; a tenth of them at start */
};

struct placement_call {      /* an open question to the store; outlives its request */
    struct router *router;   /* ref */
    struct request *request; /* ref; NULL: it has ended */
    struct placement_key key;
    uint64_t asked_us;
    char ran_on[WIRE_NAME_MAX + 1]; /* the worker it was dispatched to before the answer came */
    enum policy_reason reason;      /* of a takeover */
};

/* After a stall of our own what came in meanwhile is read first, before anything expires. */
struct router_catch_up {
    unsigned stalls; /* in a row, each before the last one was caught up with */
    uint64_t until_ms;
};

struct router {
    struct loop *loop; /* ref */
    uint8_t session[WIRE_ID_BYTES];
    uint32_t lease_ms, client_lease_ms, new_choices;

    struct redis_link *redis;
    struct worker_directory *directory;
    struct placement *placement;
    struct placement_cache *recent; /* records as last seen, for when the store does not answer */
    struct placement_salt salt;
    struct worker_pool *pool;
    struct frontend *frontend;
    struct inflight *inflight;
    struct loop_timer *tick_timer;
    struct loop_hook *hook;

    struct policy_worker *table;    /* WORKER_POOL_MAX; filled for each decision */
    struct decision_log *decisions; /* NULL: not wanted */
    double leave_budget;            /* requests that may leave an owner by choice; filled and spent by router_route.c */
    uint64_t leave_seen;            /* requests that it was filled for */
    bool retry_waiting;             /* a waiting request may find a worker: set by router_reply.c and router_route.c */
    bool tick_due;
    uint64_t last_tick_ms;
    struct router_catch_up workers_catch_up, clients_catch_up, requests_catch_up;
    double retry_budget; /* filled by router_request.c, spent by router_reply.c */
    uint64_t created_ms;
    bool open;                      /* clients are told WELCOME */
    uint64_t patient_until_ms;      /* all who waited for that come at once: Redis has longer to answer */
    uint64_t redis_told_ms;         /* since when Redis answers, or is not waited for; 0: neither yet */
    bool redis_said, redis_said_up; /* its state as logged */
    uint64_t redis_say_ms;          /* not again before */
    char redis_why[96];             /* it went away last */

    bool draining;
    uint64_t drain_quiet_ms; /* since when nothing was in flight; 0: something is */
    void (*on_drained)(void *user);
    void *drained_user;

    struct router_stats stats;
};

static inline uint64_t router_now_ms(const struct router *router)
{
    return loop_now_ms(router->loop);
}

/* ---- what a request is called ---- */

static inline struct wire_span request_id_span(const struct request *request)
{
    return wire_span_of(request->id_key.id, WIRE_ID_BYTES);
}

/* The attempt as its client sees it: its own number, and ours of the last dispatch. */
static inline struct wire_attempt request_client_attempt(const struct request *request)
{
    struct wire_attempt attempt = request->client_attempt;
    attempt.router = request->dispatched ? request->sent.router : attempt.router;
    return attempt;
}

/* ---- router_request.c ---- */

struct frontend_events router_client_events(struct router *router);
/* Passes the terminal on. The request is gone afterwards. */
void request_end(struct router *router, struct request *request, const struct wire_message *terminal);
/* Ends it with an error of our own; a worker that has it is told to stop. The request is gone afterwards. */
void request_fail(struct router *router, struct request *request, enum wire_error_code code, const char *detail,
                  uint32_t retry_after_ms);
/* Its body is not here any more: its client sends it again. The request is gone afterwards. */
void request_resend(struct router *router, struct request *request);
void request_cancel_at_worker(const struct request *request); /* no-op without a worker */
void request_acknowledge_body(struct request *request);       /* once: its client's grant has the bytes back */
void router_expire_requests(struct router *router, uint64_t now);

/* ---- router_reply.c ---- */

struct worker_pool_events router_worker_events(struct router *router);
/* Its worker lives and does not have it any more; nobody is to blame. It goes on behind the tokens that its client has;
 * it may be gone afterwards. */
void request_given_up(struct router *router, struct request *request);

/* ---- router_route.c ---- */

/* A new request, or one that waited: asks the store, naming the worker that a new conversation would go to, then
 * routes. */
void request_place(struct router *router, struct request *request);
/* Sends it where the policy says, with what is known about its conversation by now; or it waits. */
void request_route(struct router *router, struct request *request);
void router_retry_waiting(struct router *router);
/* Its worker told the cache that it holds the conversation in: into the record, if the worker is its owner; or if the
 * owner is lost by now, and this one has the conversation. */
void request_note_cache(struct router *router, struct request *request, struct wire_span cache_id);

/* Prompt tokens that this worker would have to compute for it, about: what its record does not say it holds. */
uint64_t request_tokens_at(const struct request *request, const struct worker *worker);
/* For people: where the next turn of a conversation would go, with this answer of the store (st not OK, or not found:
 * none). Changes nothing. worker: index in the pool. */
struct policy_choice router_would_choose(struct router *router, const struct placement_key *key,
                                         const struct placement_answer *answer);

/* ---- router_dispatch.c ---- */

/* May this worker have it, ready or not? Not if it refused it, or if the reply would not go on exactly there. */
bool request_may_use(struct router *router, const struct request *request, const struct worker *worker);
/* Is anybody ready who may have it? */
bool request_has_other_worker(struct router *router, const struct request *request);
/* STATUS_AGAIN: no room there now. The request has no worker. */
enum status request_dispatch(struct router *router, struct request *request, struct worker *worker,
                             enum policy_reason reason);
/* worker: index in the pool, or POLICY_NO_WORKER. One that may run already is asked for first. */
void request_dispatch_or_wait(struct router *router, struct request *request, int worker, enum policy_reason reason);
/* Until a worker can take it, or the limit of waiting. */
void request_wait(struct router *router, struct request *request);
/* The same, and not tried again before ms have passed. */
void request_wait_for(struct router *router, struct request *request, uint32_t ms);
/* The limit has passed: waits on, or ends with an error, and is gone. */
void request_wait_over(struct router *router, struct request *request);
/* Takes it away from its worker, whatever happens next. */
void request_leave_worker(struct router *router, struct request *request);

/* ---- router_attach.c ---- */

/* Asks a few workers whether they have it; once. False: there is nobody to ask now. */
bool request_ask(struct router *router, struct request *request);
/* Nobody has it: goes on as a new one. */
void request_ask_over(struct router *router, struct request *request);
/* Does its worker have it still? If it does not: request_given_up. */
void request_ask_again(struct request *request);
void router_attach_reply(struct router *router, struct worker *worker, const struct wire_attach_reply *reply);
/* A cancel of a request that is not in flight here: to those that may run it. */
void router_cancel_elsewhere(struct router *router, const struct wire_cancel *cancel);

#endif
