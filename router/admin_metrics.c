/* admin_metrics.c - a router's metrics: what it was asked, what came of it, why requests went where they went, how each
 * worker stands. docs/operations.md has the table, and a test compares the two. */
#include <string.h>
#include "common/redis_link.h"
#include "router/admin_internal.h"

static const char *const states_[REQUEST_STATE_COUNT] = {
    [REQUEST_PLACING] = "placing",      [REQUEST_ASKING] = "asking",
    [REQUEST_WAITING] = "waiting",      [REQUEST_SENT] = "sent",
    [REQUEST_ACCEPTED] = "accepted",    [REQUEST_STREAMING] = "streaming",
    [REQUEST_CANCELLING] = "cancelling"};

static void write_requests(const struct router *router, const struct router_stats *stats, struct metrics *metrics)
{
    metrics_counter(metrics, "roost_router_requests_total", "Requests that came, well-formed", stats->requests);
    metrics_counter(metrics, "roost_router_done_total", "Requests answered with DONE", stats->done);
    metrics_family(metrics, "roost_router_errors_total", METRICS_COUNTER, "Requests answered with an error, by code");
    for (unsigned code = 1; code < WIRE_ERROR_COUNT; code++)
        metrics_value(metrics, "code", wire_error_name(code), (double)stats->errors[code]);
    metrics_family(metrics, "roost_router_in_flight", METRICS_GAUGE, "Requests in flight, by state");
    for (unsigned state = 0; state < REQUEST_STATE_COUNT; state++)
        metrics_value(metrics, "state", states_[state], inflight_count_in(router->inflight, state));
    metrics_gauge(metrics, "roost_router_in_flight_bytes", "Bytes held of them: frames, and ids of released tokens",
                  (double)stats->in_flight_bytes);
    metrics_counter(metrics, "roost_router_bodies_shed_total", "Bodies dropped early, to keep within those bytes",
                    stats->shed);
    metrics_counter(metrics, "roost_router_malformed_total",
                    "Frames of clients that broke a rule; leases with an old number or a false echo too", stats->malformed);
    metrics_counter(metrics, "roost_router_refusals_dropped_total",
                    "Refusals of clients that do not read their answers", stats->refusals_dropped);
    metrics_counter(metrics, "roost_router_paced_turns_total", "Turns that waited for more messages, because many came",
                    loop_paced_turns(router->loop));
    metrics_counter(metrics, "roost_router_stale_total", "Rows and answers of older attempts, or repeated: dropped",
                    stats->stale);
    metrics_gauge(metrics, "roost_router_sessions", "Clients, for a minute after they fell silent too",
                  frontend_session_count(router->frontend));
    metrics_gauge(metrics, "roost_router_pending_bytes", "Bytes that clients have not taken yet",
                  (double)frontend_pending(router->frontend));
    metrics_counter(metrics, "roost_router_cancels_total", "Cancels of requests in flight here", stats->cancels);
    metrics_counter(metrics, "roost_router_cancels_passed_total",
                    "Cancels of others, told to workers that may run them", stats->cancels_passed);
    metrics_histogram(metrics, "roost_router_cancel_seconds", "From a cancel to the end of the request here",
                      router_cancel_bounds, stats->cancel_counts, ROUTER_CANCEL_BOUNDS, stats->cancel_seconds);
}

static void write_failures(const struct router_stats *stats, struct metrics *metrics)
{
    metrics_counter(metrics, "roost_router_losses_total", "Requests whose worker was lost while they ran",
                    stats->losses);
    metrics_counter(metrics, "roost_router_given_up_total",
                    "Requests that a worker had given up while this router was silent", stats->given_up);
    metrics_counter(metrics, "roost_router_moves_total", "Requests that went on elsewhere with their tokens",
                    stats->moves);
    metrics_counter(metrics, "roost_router_retries_total", "Requests tried elsewhere after a worker refused",
                    stats->retries);
    metrics_counter(metrics, "roost_router_resumes_taken_total", "Requests that came from a client with tokens",
                    stats->resumes_taken);
    metrics_counter(metrics, "roost_router_asked_total",
                    "Requests for which workers were asked whether they run already", stats->asked);
    metrics_counter(metrics, "roost_router_attached_total", "Of these, found: not generated twice", stats->attached);
    metrics_counter(metrics, "roost_router_superseded_total", "Requests that went on through another router",
                    stats->superseded);
    metrics_counter(metrics, "roost_router_resends_total", "Clients asked to send a body again", stats->resends);
    metrics_counter(metrics, "roost_router_poisoned_total", "Requests ended because two workers were lost with them",
                    stats->poisoned);
    metrics_counter(metrics, "roost_router_not_exact_total", "Requests ended because no worker computes as theirs did",
                    stats->not_exact);
    metrics_counter(metrics, "roost_router_inexact_total",
                    "Requests that went on where numerics differ, as they allowed", stats->inexact);
}

static void write_placement(const struct router *router, const struct router_stats *stats, struct metrics *metrics)
{
    metrics_family(metrics, "roost_router_dispatches_total", METRICS_COUNTER, "Requests sent to a worker, by reason");
    for (unsigned reason = POLICY_NONE + 1; reason < POLICY_REASON_COUNT; reason++)
        metrics_value(metrics, "reason", policy_reason_name(reason), (double)stats->reasons[reason]);
    metrics_counter(metrics, "roost_router_prompt_tokens_total", "Prompt tokens of the requests that were done",
                    stats->prompt_tokens);
    metrics_counter(metrics, "roost_router_cached_tokens_total", "Of these, not computed again", stats->cached_tokens);
    metrics_counter(
        metrics, "roost_router_expected_tokens_total",
        "Of these, held by the worker as its placement record said: far over the line above, records are wrong",
        stats->expected_tokens);
    metrics_gauge(metrics, "roost_router_placements_remembered", "Placement records remembered here",
                  placement_cache_count(router->recent));
    metrics_gauge(metrics, "roost_router_store_up", "1: the placement store serves",
                  router->placement->ops->up(router->placement));
    metrics_counter(metrics, "roost_router_placements_late_total", "Questions to the store that took longer than 2 ms",
                    stats->placement_late);
    metrics_histogram(metrics, "roost_router_placement_seconds",
                      "From a question to the store to its answer, late ones too", router_placement_bounds,
                      stats->placement_counts, ROUTER_PLACEMENT_BOUNDS, stats->placement_seconds);
    metrics_counter(metrics, "roost_router_decisions_dropped_total", "Lines of the decision log that were dropped",
                    stats->decisions_dropped);
    struct redis_link_stats redis = {0};
    if (router->redis)
        redis_link_stats(router->redis, &redis);
    metrics_counter(metrics, "roost_router_redis_commands_total", "Commands sent to Redis", redis.commands);
    metrics_counter(metrics, "roost_router_redis_timeouts_total", "Of these, not answered in time", redis.timeouts);
    metrics_counter(metrics, "roost_router_redis_refused_total", "Not sent: no connection, or too many unanswered",
                    redis.refused);
    metrics_counter(metrics, "roost_router_redis_losses_total", "Connections to Redis that were lost", redis.losses);
    metrics_counter(metrics, "roost_router_redis_masters_total", "Changes of the master, as sentinels told",
                    redis.masters);
    metrics_gauge(metrics, "roost_router_redis_pending", "Commands that Redis has not answered", redis.pending);
}

/* Families of one sample for each worker; those without a name have never answered. */
struct worker_family {
    const char *name, *help;
    enum metrics_type type;
    double (*value)(const struct worker_info *info);
};

static double value_ready(const struct worker_info *info)
{
    return info->ready;
}
static double value_breaker(const struct worker_info *info)
{
    return info->breaker != WORKER_BREAKER_CLOSED;
}
static double value_draining(const struct worker_info *info)
{
    return info->draining;
}
static double value_streams(const struct worker_info *info)
{
    return info->streams;
}
static double value_load(const struct worker_info *info)
{
    return (double)info->load_tokens;
}
static double value_queued(const struct worker_info *info)
{
    return (double)info->queued_tokens;
}
static double value_overloaded(const struct worker_info *info)
{
    return 1e-3 * (double)info->overloaded_ms;
}
static double value_kv_used(const struct worker_info *info)
{
    return (double)info->load.kv_tokens_used;
}
static double value_kv_max(const struct worker_info *info)
{
    return (double)info->load.kv_tokens_max;
}
static double value_faults(const struct worker_info *info)
{
    return (double)info->faults;
}
static double value_losses(const struct worker_info *info)
{
    return (double)info->losses;
}
static double value_leases_dropped(const struct worker_info *info)
{
    return (double)info->leases_dropped;
}

static double value_relinks(const struct worker_info *info)
{
    return (double)info->relinks;
}
static double value_bytes(const struct worker_info *info)
{
    return (double)info->tokens_bytes;
}

static const struct worker_family families_[] = {
    {"roost_router_worker_ready", "1: the worker may take new requests", METRICS_GAUGE, value_ready},
    {"roost_router_worker_draining", "1: it takes nothing new any more", METRICS_GAUGE, value_draining},
    {"roost_router_worker_breaker_open", "1: it failed again and again and is left alone for a while", METRICS_GAUGE,
     value_breaker},
    {"roost_router_worker_streams", "Requests of this router there", METRICS_GAUGE, value_streams},
    {"roost_router_worker_load_tokens", "Tokens running and queued there, with what was sent since", METRICS_GAUGE,
     value_load},
    {"roost_router_worker_queued_tokens", "Tokens to compute there before what comes next", METRICS_GAUGE,
     value_queued},
    {"roost_router_worker_overloaded_seconds", "For how long its queue has been too long", METRICS_GAUGE,
     value_overloaded},
    {"roost_router_worker_kv_used_tokens", "Tokens that its KV cache holds", METRICS_GAUGE, value_kv_used},
    {"roost_router_worker_kv_max_tokens", "Tokens that it has room for", METRICS_GAUGE, value_kv_max},
    {"roost_router_worker_faults_total", "Times that it failed: lost, or an internal error", METRICS_COUNTER,
     value_faults},
    {"roost_router_worker_losses_total", "Times that it was lost", METRICS_COUNTER, value_losses},
    {"roost_router_worker_relinks_total", "Times that a connection dropped and the same process was there again",
     METRICS_COUNTER, value_relinks},
    {"roost_router_worker_leases_dropped_total", "Its leases with an old number or an echo of nothing that was sent",
     METRICS_COUNTER, value_leases_dropped},
    {"roost_router_worker_tokens_bytes_total", "Bytes of tokens received from it", METRICS_COUNTER, value_bytes},
};

static const char *const worker_states_[] = {"ready",    "busy",     "suspect",        "broken",
                                             "starting", "draining", "safe to delete", "down"};
enum { WORKER_STATES = sizeof worker_states_ / sizeof worker_states_[0] };

static void write_workers(const struct router *router, struct metrics *metrics)
{
    unsigned counts[WORKER_STATES] = {0}, count = worker_pool_count(router->pool);
    struct worker_info info;
    for (unsigned i = 0; i < count; i++) {
        worker_info(worker_pool_at(router->pool, i), &info);
        const char *state = admin_worker_state(&info);
        for (unsigned k = 0; k < WORKER_STATES; k++)
            counts[k] += strcmp(worker_states_[k], state) == 0;
    }
    metrics_family(metrics, "roost_router_workers", METRICS_GAUGE, "Workers known here, by state");
    for (unsigned k = 0; k < WORKER_STATES; k++)
        metrics_value(metrics, "state", worker_states_[k], counts[k]);
    for (unsigned k = 0; k < sizeof families_ / sizeof families_[0]; k++) {
        metrics_family(metrics, families_[k].name, families_[k].type, families_[k].help);
        for (unsigned i = 0; i < count; i++) {
            worker_info(worker_pool_at(router->pool, i), &info);
            if (info.name[0])
                metrics_value(metrics, "worker", info.name, families_[k].value(&info));
        }
    }
}

void admin_write_metrics(const struct admin *admin, struct metrics *metrics)
{
    const struct router *router = admin->router;
    struct router_stats stats;
    router_stats_read(router, &stats);
    metrics_family(metrics, "roost_router_info", METRICS_GAUGE, "1, with the version of the program");
    metrics_value(metrics, "version", ROOST_VERSION, 1);
    metrics_gauge(metrics, "roost_router_draining", "1: SIGTERM came, nothing new is taken", router->draining);
    write_requests(router, &stats, metrics);
    write_failures(&stats, metrics);
    write_placement(router, &stats, metrics);
    write_workers(router, metrics);
    metrics_process(metrics);
}
