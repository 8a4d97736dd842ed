/* router.c - a router as a whole: what it is made of, the turn of its loop, draining, the end. Owns struct router and
 * all that hangs off it. Requests live in five files beside this one:
 *
 *   client -> frontend -> router_request.c: begins -> router_route.c: asks the store, chooses
 *                         router_attach.c: does a worker have it? <-> router_dispatch.c: sends it, waits ----> worker
 *   client <- frontend <- router_request.c: ends <--- router_reply.c: tokens, terminals, losses <------ worker
 *
 *   on_turn_end:  tick_due -> tick: workers, clients, requests expire; a new router opens for clients
 *                 worker_pool_turn -> router_retry_waiting -> frontend_flush -> check_drained
 *
 * Loop thread only. Always true:
 *   1. after a stall of our own deadlines wait for one lease and silence is judged after two: what came in is read
 * first;
 *   2. work of a tick is done at the end of a turn, when sockets have been read;
 *   3. it is open for clients once it knows what its decisions need: Redis answered and everybody it names is up, or
 *      the time for that is over. A router that is restarted under load would send conversations anywhere before;
 *   4. on_drained is called once, when nothing is in flight and clients have seen their terminals. That ZeroMQ or the
 *      network took them is not enough: what is still in a socket is lost with it, once its peer sends us anything. */
#include "router/router.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "router/decision_log.h"
#include "router/router_internal.h"

enum {
    TICK_MS = 25,            /* 8,192 requests looked at 40 times a second: 0.3 M looks, about 1% of a core */
    SILENCE_STALLS_MAX = 10, /* in a row: one that stalls in every turn finds out who is gone 20 leases late */
    DEADLINE_STALLS_MAX = 1, /* and keeps deadlines one lease late */
    DRAIN_SETTLE_MS = 200,   /* after the last terminal: who asked before GOAWAY came is refused, not left alone */
    REDIS_ABSENT_MS = 1500,  /* after start: then say so; a first connection and its probe need less */
    MEET_MS = 500,           /* for workers, from when Redis answers or is given up: a connection, HELLO and a lease of
                                200 ms on each link; who is named there and gone needs not be waited for longer */
    PATIENT_MS = 1000,       /* clients try again after 0.1 to 2 s, and most had a link that was only waiting */
    REDIS_SAY_MS = 5000,     /* between two lines about it: a link that flaps fills no log */
};

const double router_placement_bounds[ROUTER_PLACEMENT_BOUNDS] = {0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.01, 0.1, 1};
const double router_cancel_bounds[ROUTER_CANCEL_BOUNDS] = {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3};

/* ---- time ---- */

static void on_tick(void *user)
{
    ((struct router *)user)->tick_due = true; /* the work is done at the end of a turn, when sockets have been read */
}

/* One line for each change that lasts; a link that comes and goes says so every REDIS_SAY_MS at most. */
static void say_redis_state(struct router *router, uint64_t now)
{
    bool up = redis_link_up(router->redis);
    if (router->redis_said ? up == router->redis_said_up || now < router->redis_say_ms
                           : !up && now - router->created_ms < REDIS_ABSENT_MS)
        return;
    router->redis_said = true;
    router->redis_said_up = up;
    router->redis_say_ms = now + REDIS_SAY_MS;
    if (up)
        LOG_INFO("redis answers: placements are shared");
    else
        LOG_WARN("redis does not answer: serving without it, placements are not shared%s%s",
                 router->redis_why[0] ? "; " : "", router->redis_why);
}

/* Silence is judged again after two leases: one of ours goes out, one of theirs echoes it. */
static bool may_expire(struct router_catch_up *catch_up, bool stalled, unsigned stalls_max, uint64_t now,
                       uint32_t wait_ms)
{
    if (stalled && catch_up->stalls < stalls_max) {
        catch_up->stalls++;
        catch_up->until_ms = now + wait_ms;
    }
    if (now < catch_up->until_ms)
        return false;
    catch_up->stalls = 0;
    return true;
}

/* Where records are not shared there is nothing to be learnt: requests wait for workers themselves. */
static void open_when_met(struct router *router, uint64_t now)
{
    bool told = redis_link_up(router->redis) || now - router->created_ms >= REDIS_ABSENT_MS;
    if (told && router->redis_told_ms == 0)
        router->redis_told_ms = now;
    if (!told || (!worker_pool_met(router->pool) && now - router->redis_told_ms < MEET_MS))
        return;
    router->open = true;
    router->patient_until_ms = now + PATIENT_MS;
    frontend_open(router->frontend);
    LOG_INFO("open for clients after %" PRIu64 " ms, %u workers are ready", now - router->created_ms,
             router_workers_ready(router));
}

static void tick(struct router *router)
{
    uint64_t now = router_now_ms(router);
    uint64_t since = now - router->last_tick_ms;
    router->tick_due = false;
    router->last_tick_ms = now;
    /* We stood still ourselves: silence of others means nothing until what they sent has been read. */
    bool stalled = since > TICK_MS + router->lease_ms / 2 || loop_stall_ms(router->loop) > router->lease_ms / 2;
    if (may_expire(&router->workers_catch_up, stalled, SILENCE_STALLS_MAX, now, 2 * router->lease_ms))
        worker_pool_expire(router->pool, now);
    if (may_expire(&router->requests_catch_up, stalled, DEADLINE_STALLS_MAX, now, router->lease_ms))
        router_expire_requests(router, now);
    if (may_expire(&router->clients_catch_up, stalled, SILENCE_STALLS_MAX, now, 2 * router->client_lease_ms))
        frontend_expire(router->frontend, now);
    if (router->redis)
        say_redis_state(router, now);
    if (!router->open)
        open_when_met(router, now);
}

static void check_drained(struct router *router)
{
    uint64_t now = router_now_ms(router);
    if (inflight_count(router->inflight) > 0 || frontend_pending(router->frontend) > 0) {
        router->drain_quiet_ms = 0;
    } else if (router->drain_quiet_ms == 0) {
        router->drain_quiet_ms = now;
        frontend_ask_seen(router->frontend);
    } else if (now - router->drain_quiet_ms >= DRAIN_SETTLE_MS && frontend_seen(router->frontend) &&
               router->on_drained) {
        void (*fn)(void *user) = router->on_drained;
        router->on_drained = NULL;
        fn(router->drained_user);
    }
}

static void on_turn_end(void *user)
{
    struct router *router = user;
    if (router->tick_due)
        tick(router);
    worker_pool_turn(router->pool);
    if (router->retry_waiting)
        router_retry_waiting(router);
    frontend_flush(router->frontend);
    if (router->draining)
        check_drained(router);
}

/* ---- life ---- */

static void on_redis_state(void *user, bool up)
{
    struct router *router = user;
    if (!up)
        snprintf(router->redis_why, sizeof router->redis_why, "%s", status_detail());
    else if (router->directory)
        worker_directory_read(router->directory);
}

static enum status create_placement(struct router *router, const struct router_settings *settings,
                                    const char *redis_password)
{
    placement_salt_make(settings->placement_salt, &router->salt);
    if (strcmp(settings->placement, "memory") == 0)
        return placement_memory_create(router->loop, PLACEMENT_CACHE_ENTRIES, &router->placement);
    struct redis_link_config config = {.address = settings->redis_address,
                                       .sentinels = (const char *const *)settings->redis_sentinels.items,
                                       .sentinel_count = (unsigned)settings->redis_sentinels.count,
                                       .sentinel_master = settings->redis_sentinel_master,
                                       .user = settings->redis_user,
                                       .password = redis_password,
                                       .database = (uint32_t)settings->redis_database,
                                       .on_state = on_redis_state,
                                       .user_data = router};
    TRY(redis_link_create(router->loop, &config, &router->redis));
    TRY(placement_redis_create(router->redis, &router->placement));
    return worker_directory_create(router->loop, router->redis, worker_pool_directory, router->pool,
                                   &router->directory);
}

static enum status create_pool(struct router *router, void *zmq_context, const struct router_settings *settings)
{
    struct worker_pool_events events = router_worker_events(router);
    struct worker_pool_config config = {.endpoints = (const char *const *)settings->workers.items,
                                        .endpoint_count = settings->workers.count,
                                        .name = settings->name,
                                        .session = router->session,
                                        .lease_ms = router->lease_ms,
                                        .has_directory = strcmp(settings->placement, "redis") == 0};
    return worker_pool_create(router->loop, zmq_context, &config, &events, &router->pool);
}

static enum status create_frontend(struct router *router, void *zmq_context, const struct router_settings *settings)
{
    struct frontend_events events = router_client_events(router);
    struct frontend_config config = {.listen_control = settings->listen_control,
                                     .listen_data = settings->listen_data,
                                     .name = settings->name,
                                     .session = router->session,
                                     .lease_ms = (uint32_t)settings->client_lease_ms,
                                     .lease_expiry_ms = (uint32_t)settings->client_lease_expiry_ms};
    return frontend_create(router->loop, zmq_context, &config, &events, &router->frontend);
}

enum status router_create(struct loop *loop, void *zmq_context, const struct router_settings *settings,
                          const char *redis_password, struct router **out)
{
    struct router *router = calloc(1, sizeof *router);
    if (!router)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the router");
    router->loop = loop;
    router->lease_ms = (uint32_t)settings->lease_ms;
    router->client_lease_ms = (uint32_t)settings->client_lease_ms;
    router->new_choices = (uint32_t)settings->new_choices;
    router->retry_budget = ROUTER_RETRY_BUDGET_MAX / 10;
    router->created_ms = router->last_tick_ms = router_now_ms(router);
    hash_random(router->session, sizeof router->session);
    struct inflight_config limits = {.requests_max = (uint32_t)settings->in_flight_max,
                                     .bytes_max = settings->in_flight_bytes_max};
    enum status st;
    router->table = calloc(WORKER_POOL_MAX, sizeof *router->table);
    if (!router->table) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "the policy table");
        goto fail;
    }
    if (settings->decision_log && settings->decision_log[0])
        TRY_GOTO(decision_log_create(settings->decision_log, settings->decision_sample, &router->decisions), st, fail);
    TRY_GOTO(inflight_create(&limits, &router->inflight), st, fail);
    TRY_GOTO(placement_cache_create(PLACEMENT_CACHE_ENTRIES, &router->recent), st, fail);
    TRY_GOTO(create_frontend(router, zmq_context, settings), st, fail);
    TRY_GOTO(create_pool(router, zmq_context, settings), st, fail);
    TRY_GOTO(create_placement(router, settings, redis_password), st, fail);
    TRY_GOTO(loop_timer_create(loop, TICK_MS, true, on_tick, router, &router->tick_timer), st, fail);
    TRY_GOTO(loop_hook_create(loop, on_turn_end, router, &router->hook), st, fail);
    if (!router->redis) {
        router->open = true;
        frontend_open(router->frontend);
    }
    *out = router;
    return STATUS_OK;
fail:
    router_destroy(&router);
    return st;
}

void router_destroy(struct router **router)
{
    struct router *gone = *router;
    if (!gone)
        return;
    *router = NULL;
    loop_hook_destroy(&gone->hook);
    loop_timer_destroy(&gone->tick_timer);
    /* Open questions are answered now; they must find no request. */
    for (unsigned state = 0; gone->inflight && state < REQUEST_STATE_COUNT; state++)
        for (struct request *request = inflight_first(gone->inflight, state); request; request = inflight_next(request))
            if (request->call)
                request->call->request = NULL;
    redis_link_destroy(&gone->redis);
    worker_directory_destroy(&gone->directory);
    placement_destroy(&gone->placement);
    worker_pool_destroy(&gone->pool);
    inflight_destroy(&gone->inflight);
    frontend_destroy(&gone->frontend);
    placement_cache_destroy(&gone->recent);
    decision_log_destroy(&gone->decisions);
    free(gone->table);
    free(gone);
}

void router_drain(struct router *router, uint32_t deadline_ms, void (*on_drained)(void *user), void *user)
{
    router->draining = true;
    router->on_drained = on_drained;
    router->drained_user = user;
    frontend_drain(router->frontend, deadline_ms);
}

const char *router_control_endpoint(const struct router *router)
{
    return frontend_control_endpoint(router->frontend);
}

const char *router_data_endpoint(const struct router *router)
{
    return frontend_data_endpoint(router->frontend);
}

void router_stats_read(const struct router *router, struct router_stats *out)
{
    *out = router->stats;
    out->malformed = frontend_malformed(router->frontend);
    out->refusals_dropped = frontend_refusals_dropped(router->frontend);
    out->shed = inflight_shed_count(router->inflight);
    out->decisions_dropped = decision_log_dropped(router->decisions);
    out->in_flight_bytes = inflight_bytes(router->inflight);
}

unsigned router_in_flight(const struct router *router)
{
    return inflight_count(router->inflight);
}

unsigned router_workers_ready(const struct router *router)
{
    unsigned ready = 0;
    for (unsigned i = 0; i < worker_pool_count(router->pool); i++)
        ready += worker_ready(worker_pool_at(router->pool, i));
    return ready;
}
