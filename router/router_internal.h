/* router_internal.h - what router.c and router_route.c share; nobody else includes it.
 *
 *   router.c        what comes in: requests, cancels, tokens, terminals, losses, time; wiring and life
 *   router_route.c  where a request goes: placement, policy, dispatch, waiting */
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

struct placement_call {      /* an open question to the store; outlives its request */
    struct router *router;   /* ref */
    struct request *request; /* ref; NULL: it has ended */
    struct placement_key key;
    char proposed[WIRE_NAME_MAX + 1];
    char ran_on[WIRE_NAME_MAX + 1]; /* the worker it was dispatched to before the answer came */
};

struct router {
    struct loop *loop; /* ref */
    uint8_t session[WIRE_ID_BYTES];
    uint32_t lease_ms, new_choices;

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

    struct policy_worker *table; /* WORKER_POOL_MAX; filled for each decision */
    bool retry_waiting;
    bool tick_due;
    uint64_t last_tick_ms, expire_after_ms;
    bool catching_up; /* after a stall, until expire_after_ms */
    double retry_budget;
    uint64_t created_ms;
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

/* ---- router_route.c ---- */

/* A new request, or one that waited: asks the store, naming the worker that a new conversation would go to, then
 * routes. */
void request_place(struct router *router, struct request *request);
/* Sends it where the policy says, with what is known about its conversation by now; or it waits. */
void request_route(struct router *router, struct request *request);
/* Until a worker can take it, or the limit of waiting. */
void request_wait(struct router *router, struct request *request);
/* STATUS_AGAIN: no room there now. The request has no worker. */
enum status request_dispatch(struct router *router, struct request *request, struct worker *worker,
                             enum policy_reason reason);
/* Takes it away from its worker, whatever happens next. */
void request_leave_worker(struct router *router, struct request *request);
void router_retry_waiting(struct router *router);
/* Is anybody else ready for it? */
bool request_has_other_worker(struct router *router, const struct request *request);
/* Its worker told the cache that it holds the conversation in: into the record, if the worker is its owner. */
void request_note_cache(struct router *router, struct request *request, struct wire_span cache_id);

#endif
