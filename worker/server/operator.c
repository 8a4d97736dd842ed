/* operator.c - owns the operator port of a worker; answers from what the I/O thread holds at that moment. */
#include "worker/server/operator.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/metrics.h"
#include "common/operator_port.h"
#include "common/redis_link.h"
#include "proto/wire.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_simulate.h"
#include "worker/server/conversations.h"
#include "worker/server/server.h"

enum { DEADLINE_MS_MAX = 3600000 }; /* of a drain, as in the settings */

struct operator
{
    struct operator_config config; /* refs */
    struct operator_port *port;
};

static void answer_text(struct operator_request *request, int code, const char *text)
{
    operator_answer(request, code, OPERATOR_JSON, text, strlen(text));
}

static void on_ready(void *user, struct operator_request *request)
{
    const struct operator* operator= user;
    enum wire_life state = server_state(operator->config.server);
    char text[96];
    if (state == WIRE_LIFE_READY) {
        answer_text(request, 200, "{\"status\": \"ready\"}\n");
        return;
    }
    snprintf(text, sizeof text, "this worker is %s", wire_life_name(state));
    operator_answer_error(request, 503, text);
}

/* ---- what may be changed ---- */

/* text NULL: 0. */
static bool parse_ms(const char *text, uint32_t *out)
{
    unsigned long value = 0;
    *out = 0;
    for (const char *at = text; at && *at; at++) {
        if (*at < '0' || *at > '9' || (value = 10 * value + (unsigned long)(*at - '0')) > DEADLINE_MS_MAX)
            return false;
    }
    *out = (uint32_t)value;
    return !text || *text;
}

static void on_drain(void *user, struct operator_request *request)
{
    const struct operator* operator= user;
    const char *cancel = operator_query(request, "cancel");
    uint32_t deadline_ms;
    char text[160];
    if (cancel && strcmp(cancel, "1") != 0) {
        operator_answer_error(request, 400, "cancel: 1, or leave it out");
        return;
    }
    if (!parse_ms(operator_query(request, "deadline_ms"), &deadline_ms)) {
        operator_answer_error(request, 400, "deadline_ms: a whole number to 3600000");
        return;
    }
    if (cancel)
        server_drain_cancel(operator->config.server);
    else
        server_drain_stay(operator->config.server, deadline_ms);
    snprintf(text, sizeof text, "{\"state\": \"%s\", \"streams\": %u}\n",
             wire_life_name(server_state(operator->config.server)), server_stream_count(operator->config.server));
    answer_text(request, 202, text);
}

static void on_simulate(void *user, struct operator_request *request)
{
    const struct operator* operator= user;
    const char *text = operator_query(request, "factor");
    char *end = NULL;
    double factor = text ? strtod(text, &end) : 0;
    if (!operator->config.simulated)
        operator_answer_error(request, 404, "this worker computes: only one with the setting simulate can be slowed");
    else if (!text || end == text || *end)
        operator_answer_error(request, 400, "how much? POST /simulate?factor=F, 1 as at start, 1000000 hangs");
    else if (backend_simulate_slow(factor) != STATUS_OK)
        operator_answer_error(request, 400, status_detail());
    else
        answer_text(request, 200, "{\"status\": \"set\"}\n");
}

/* ---- metrics ---- */

static void write_info(const struct server *server, struct metrics *metrics)
{
    static const enum wire_life states[] = {WIRE_LIFE_STARTING, WIRE_LIFE_READY, WIRE_LIFE_DRAINING,
                                            WIRE_LIFE_SAFE_TO_DELETE};
    const struct engine_info *info = server_engine_info(server);
    char numerics[HASH_HEX_SIZE(32)] = "";
    metrics_family(metrics, "roost_worker_info", METRICS_GAUGE, "1, with the version of the program");
    metrics_value(metrics, "version", ROOST_VERSION, 1);
    metrics_family(metrics, "roost_worker_numerics_info", METRICS_GAUGE,
                   "1, with the numerics id: replies go on exactly between workers of the same one");
    if (info) {
        hash_hex(info->numerics_id, sizeof info->numerics_id, numerics);
        metrics_value(metrics, "numerics_id", numerics, 1);
    }
    metrics_family(metrics, "roost_worker_state", METRICS_GAUGE, "1 for the state that it is in");
    for (unsigned i = 0; i < sizeof states / sizeof states[0]; i++)
        metrics_value(metrics, "state", wire_life_name(states[i]), server_state(server) == states[i]);
}

static void write_requests(const struct server_stats *stats, struct metrics *metrics)
{
    metrics_counter(metrics, "roost_worker_requests_total", "Requests that came", stats->requests);
    metrics_counter(metrics, "roost_worker_done_total", "Requests answered with DONE", stats->done);
    metrics_family(metrics, "roost_worker_errors_total", METRICS_COUNTER,
                   "Requests refused or ended with an error, by code");
    for (unsigned code = 1; code < WIRE_ERROR_COUNT; code++)
        metrics_value(metrics, "code", wire_error_name(code), (double)stats->errors[code]);
    metrics_counter(metrics, "roost_worker_resumed_total", "Requests taken with tokens that were released before",
                    stats->resumed);
    metrics_counter(metrics, "roost_worker_attached_total", "Questions of routers for a request that is here",
                    stats->attached);
    metrics_counter(metrics, "roost_worker_superseded_total", "Streams that a newer attempt took over",
                    stats->superseded);
    metrics_counter(metrics, "roost_worker_orphaned_total", "Streams whose router fell silent while they ran",
                    stats->orphaned);
    metrics_counter(metrics, "roost_worker_cancelled_total", "Running streams that were cancelled", stats->cancelled);
    metrics_histogram(metrics, "roost_worker_cancel_seconds",
                      "From a cancel to the engine's word that the work has stopped", server_cancel_bounds,
                      stats->cancel_counts, SERVER_CANCEL_BOUNDS, stats->cancel_seconds);
    metrics_counter(metrics, "roost_worker_tokens_total", "Tokens released", stats->tokens);
    metrics_counter(metrics, "roost_worker_malformed_total", "Frames of routers that broke a rule", stats->malformed);
    metrics_counter(metrics, "roost_worker_stale_total", "Repeats and older attempts: dropped", stats->stale);
    metrics_counter(metrics, "roost_worker_prompt_tokens_total", "Prompt tokens of the requests that were done",
                    stats->prompt_tokens);
    metrics_counter(metrics, "roost_worker_cached_tokens_total", "Of these, not computed again", stats->cached_tokens);
    metrics_counter(metrics, "roost_worker_credit_stalls_total", "Times that tokens began to wait for a reader",
                    stats->credit_stalls);
    metrics_gauge(metrics, "roost_worker_starved_streams", "Streams whose tokens wait for a reader now",
                  stats->starved);
    metrics_gauge(metrics, "roost_worker_streams", "Streams that are open", stats->streams);
    metrics_gauge(metrics, "roost_worker_orphans", "Of these, without a router now", stats->orphans);
    metrics_gauge(metrics, "roost_worker_kept_streams", "Finished replies kept for a repeat", stats->kept);
    metrics_gauge(metrics, "roost_worker_kept_bytes", "Bytes of these", (double)stats->kept_bytes);
    metrics_gauge(metrics, "roost_worker_reply_bytes", "Bytes set aside for what open streams release",
                  (double)stats->reply_bytes);
}

static void write_pressure(const struct engine_pressure *pressure, struct metrics *metrics)
{
    metrics_counter(metrics, "roost_worker_suspended_total",
                    "Sequences that were preempted for want of KV memory or places", pressure->suspended);
    metrics_counter(metrics, "roost_worker_demoted_pages_total", "KV pages that went to the host tier",
                    pressure->demoted);
    metrics_counter(metrics, "roost_worker_promoted_pages_total", "KV pages that came back from there",
                    pressure->promoted);
    metrics_counter(metrics, "roost_worker_evicted_total", "Kept conversations that lost resume points, or everything",
                    pressure->evicted);
}

static void write_load(const struct server *server, struct metrics *metrics)
{
    struct wire_load load = {0};
    server_load_read(server, &load);
    metrics_gauge(metrics, "roost_worker_queued_requests", "Requests that wait", load.queued_requests);
    metrics_gauge(metrics, "roost_worker_running_requests", "Requests that run", load.running_requests);
    metrics_gauge(metrics, "roost_worker_queued_tokens", "Prompt tokens to compute of those that wait",
                  (double)load.queued_tokens);
    metrics_gauge(metrics, "roost_worker_running_tokens",
                  "Tokens of those that run: left of prompts, and replies so far", (double)load.running_tokens);
    metrics_gauge(metrics, "roost_worker_kv_used_tokens", "Tokens in the KV cache, kept conversations included",
                  (double)load.kv_tokens_used);
    metrics_gauge(metrics, "roost_worker_kv_max_tokens", "Tokens that it has room for", (double)load.kv_tokens_max);
    metrics_counter(metrics, "roost_worker_steps_total", "Steps of the engine", load.steps);
    metrics_gauge(metrics, "roost_worker_step_age_seconds", "Age of the step that runs; 0: idle",
                  1e-3 * load.step_age_ms);
    metrics_gauge(metrics, "roost_worker_step_median_seconds", "Median of the last 64 steps",
                  1e-6 * load.step_median_us);
    metrics_gauge(metrics, "roost_worker_token_seconds", "Measured time of a computed prompt token",
                  1e-9 * load.token_ns);
}

/* One sample a device, by its name and address. */
struct gpu_family {
    const char *name, *help;
    enum metrics_type type;
    bool nvml; /* known only if the driver was asked */
    double (*value)(const struct backend_device_health *health);
};

static double gpu_memory(const struct backend_device_health *health)
{
    return (double)health->memory_bytes;
}
static double gpu_memory_used(const struct backend_device_health *health)
{
    return (double)health->memory_used_bytes;
}
static double gpu_sm_clock(const struct backend_device_health *health)
{
    return 1e6 * health->sm_mhz;
}
static double gpu_memory_clock(const struct backend_device_health *health)
{
    return 1e6 * health->memory_mhz;
}
static double gpu_busy(const struct backend_device_health *health)
{
    return 0.01 * health->busy_percent;
}
static double gpu_temperature(const struct backend_device_health *health)
{
    return health->celsius;
}
static double gpu_power(const struct backend_device_health *health)
{
    return 1e-3 * health->milliwatts;
}
static double gpu_throttle(const struct backend_device_health *health)
{
    return (double)health->throttle_reasons;
}
static double gpu_corrected(const struct backend_device_health *health)
{
    return (double)health->ecc_corrected;
}
static double gpu_uncorrected(const struct backend_device_health *health)
{
    return (double)health->ecc_uncorrected;
}

static const struct gpu_family gpu_families[] = {
    {"roost_worker_gpu_memory_bytes", "Memory of the GPU; no sample: there is none", METRICS_GAUGE, false, gpu_memory},
    {"roost_worker_gpu_memory_used_bytes", "Memory of the GPU in use, by whoever", METRICS_GAUGE, true, gpu_memory_used},
    {"roost_worker_gpu_sm_clock_hertz", "Clock of its processors now", METRICS_GAUGE, true, gpu_sm_clock},
    {"roost_worker_gpu_memory_clock_hertz", "Clock of its memory now", METRICS_GAUGE, true, gpu_memory_clock},
    {"roost_worker_gpu_busy_ratio", "Part of the time in which some kernel ran", METRICS_GAUGE, true, gpu_busy},
    {"roost_worker_gpu_temperature_celsius", "Its temperature", METRICS_GAUGE, true, gpu_temperature},
    {"roost_worker_gpu_power_watts", "What it draws", METRICS_GAUGE, true, gpu_power},
    {"roost_worker_gpu_throttle_reasons", "Why its clocks are lowered, as NVML's bits; 0: they are not", METRICS_GAUGE,
     true, gpu_throttle},
    {"roost_worker_gpu_ecc_corrected_total", "Errors of its memory that were corrected, since its driver was loaded",
     METRICS_COUNTER, true, gpu_corrected},
    {"roost_worker_gpu_ecc_uncorrected_total",
     "Errors of its memory that could not be corrected, since its driver was loaded", METRICS_COUNTER, true,
     gpu_uncorrected},
};

static void write_gpus(const struct server *server, struct metrics *metrics)
{
    struct backend_health health;
    if (!server_device_health(server, &health))
        health.device_count = 0;
    for (size_t i = 0; i < sizeof gpu_families / sizeof *gpu_families; i++) {
        const struct gpu_family *family = &gpu_families[i];
        metrics_family(metrics, family->name, family->type, family->help);
        for (uint32_t d = 0; d < health.device_count; d++)
            if (health.devices[d].nvml || !family->nvml)
                metrics_value(metrics, "device", health.devices[d].device, family->value(&health.devices[d]));
    }
}

static void write_redis(const struct operator* operator, struct metrics * metrics)
{
    struct redis_link_stats redis = {0};
    struct conversations_stats held = {0};
    if (operator->config.redis)
        redis_link_stats(operator->config.redis, &redis);
    if (operator->config.conversations)
        conversations_stats(operator->config.conversations, &held);
    metrics_gauge(metrics, "roost_worker_redis_up",
                  "1: Redis answers", operator->config.redis && redis_link_up(operator->config.redis));
    metrics_counter(metrics, "roost_worker_redis_commands_total", "Commands sent to Redis", redis.commands);
    metrics_counter(metrics, "roost_worker_redis_timeouts_total", "Of these, not answered in time", redis.timeouts);
    metrics_counter(metrics, "roost_worker_redis_losses_total", "Connections to Redis that were lost", redis.losses);
    metrics_gauge(metrics, "roost_worker_conversations", "Conversations that it owns, as far as it knows", held.held);
    metrics_gauge(metrics, "roost_worker_conversations_due", "Of these, to be announced again", held.due);
    metrics_counter(metrics, "roost_worker_records_written_total", "Placement records that Redis took", held.written);
    metrics_counter(metrics, "roost_worker_records_failed_total", "Not taken: no connection, or refused", held.failed);
    metrics_counter(metrics, "roost_worker_records_lost_total", "Conversations that another worker owns now",
                    held.lost);
    metrics_counter(metrics, "roost_worker_records_announced_total",
                    "Records written again after a wipe, a failure, or a move between the tiers", held.announced);
    metrics_counter(metrics, "roost_worker_records_evicted_total", "Conversations whose KV was evicted, and their record",
                    held.evicted);
    metrics_counter(metrics, "roost_worker_redis_wipes_total", "Times that Redis had lost everything", held.wipes);
}

static void on_metrics(void *user, struct operator_request *request)
{
    const struct operator* operator= user;
    struct metrics *metrics = NULL;
    struct server_stats stats = {0};
    const char *text = NULL;
    if (metrics_create(&metrics) == STATUS_OK) {
        server_stats_read(operator->config.server, &stats);
        write_info(operator->config.server, metrics);
        write_requests(&stats, metrics);
        write_load(operator->config.server, metrics);
        write_pressure(&stats.pressure, metrics);
        write_gpus(operator->config.server, metrics);
        write_redis(operator, metrics);
        metrics_process(metrics);
        text = metrics_text(metrics);
    }
    if (text)
        operator_answer(request, 200, OPERATOR_METRICS, text, strlen(text));
    else
        operator_answer_error(request, 503, "no memory for the metrics");
    metrics_destroy(&metrics);
}

/* ---- life ---- */

static enum status add_routes(struct operator* operator)
{
    struct operator_port *port = operator->port;
    TRY(operator_port_add(port, "GET", "/readyz", on_ready, operator));
    TRY(operator_port_add(port, "GET", "/metrics", on_metrics, operator));
    TRY(operator_port_add(port, "POST", "/drain", on_drain, operator));
    return operator_port_add(port, "POST", "/simulate", on_simulate, operator);
}

enum status operator_create(const struct operator_config *config, struct operator** out)
{
    struct operator* operator= calloc(1, sizeof *operator);
    if (!operator)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the operator port");
    operator->config = * config;
    operator->config.address = NULL;
    enum status st = operator_port_create(config->loop, config->address, &operator->port);
    if (st == STATUS_OK)
        st = add_routes(operator);
    if (st != STATUS_OK) {
        operator_destroy(&operator);
        return st;
    }
    *out = operator;
    return STATUS_OK;
}

void operator_destroy(struct operator** operator)
{
    if (!*operator)
        return;
    operator_port_destroy(&(*operator)->port);
    free(*operator);
    *operator= NULL;
}

const char *operator_address(const struct operator* operator)
{
    return operator_port_address(operator->port);
}
