/* admin.c - owns the operator port of a router; answers from what the router holds at that moment. */
#include "router/admin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/redis_link.h"
#include "common/redis_record.h"
#include "common/redis_script.h"
#include "router/admin_internal.h"

enum { DEADLINE_MS_MAX = 3600000 }; /* of a drain, as in the settings */

/* ---- answers ---- */

static const char no_memory_[] = "{\"error\": \"no memory for the answer\"}\n";

/* One line; owned by the caller. */
static char *dump(const json_t *json)
{
    char *line = json ? json_dumps(json, JSON_COMPACT) : NULL, *text = NULL;
    if (line && asprintf(&text, "%s\n", line) < 0)
        text = NULL;
    free(line);
    return text;
}

void admin_answer_json(struct operator_request *request, int code, json_t *json)
{
    char *text = dump(json);
    if (text)
        operator_answer(request, code, OPERATOR_JSON, text, strlen(text));
    else
        operator_answer(request, 503, OPERATOR_JSON, no_memory_, sizeof no_memory_ - 1);
    free(text);
    json_decref(json);
}

void admin_answer_json_later(struct operator_later **later, json_t *json)
{
    char *text = dump(json);
    if (text)
        operator_answer_later(later, 200, OPERATOR_JSON, text, strlen(text));
    else
        operator_answer_later(later, 503, OPERATOR_JSON, no_memory_, sizeof no_memory_ - 1);
    free(text);
    json_decref(json);
}

/* ---- health ---- */

static void on_ready(void *user, struct operator_request *request)
{
    const struct admin *admin = user;
    unsigned ready = router_workers_ready(admin->router);
    if (admin->router->draining)
        operator_answer_error(request, 503, "this router is draining");
    else if (!admin->router->open)
        operator_answer_error(request, 503,
                              "this router has just started: it waits for Redis and the workers it names");
    else if (ready == 0)
        operator_answer_error(request, 503, "no worker is ready: GET /workers says what each one is");
    else
        admin_answer_json(request, 200, json_pack("{s:s, s:i}", "status", "ready", "workers_ready", (int)ready));
}

static void on_metrics(void *user, struct operator_request *request)
{
    const struct admin *admin = user;
    struct metrics *metrics = NULL;
    const char *text = NULL;
    if (metrics_create(&metrics) == STATUS_OK) {
        admin_write_metrics(admin, metrics);
        text = metrics_text(metrics);
    }
    if (text)
        operator_answer(request, 200, OPERATOR_METRICS, text, strlen(text));
    else
        operator_answer_error(request, 503, "no memory for the metrics");
    metrics_destroy(&metrics);
}

/* ---- workers ---- */

const char *admin_worker_state(const struct worker_info *info)
{
    if (!info->up)
        return "down";
    if (info->suspect)
        return "suspect";
    if (info->life != WIRE_LIFE_READY && info->life != WIRE_LIFE_UNKNOWN)
        return wire_life_name(info->life); /* starting, draining, safe to delete, gone */
    if (info->ready)
        return "ready";
    return info->breaker == WORKER_BREAKER_CLOSED ? "busy" : "broken";
}

static json_t *hex_json(const uint8_t *data, size_t size)
{
    char text[HASH_HEX_SIZE(HASH_DIGEST_BYTES)];
    if (!data || size == 0 || size > HASH_DIGEST_BYTES)
        return json_null();
    hash_hex(data, size, text);
    return json_string(text);
}

static json_t *device_json(const struct wire_load *load)
{
    const struct wire_device *device = &load->device;
    if (!load->has_device)
        return json_null();
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "memory_bytes", (json_int_t)device->memory_bytes,
                     "memory_used_bytes", (json_int_t)device->memory_used_bytes, "ecc_uncorrected",
                     (json_int_t)device->ecc_uncorrected, "sm_mhz", (json_int_t)device->sm_mhz, "memory_mhz",
                     (json_int_t)device->memory_mhz, "throttle_reasons", (json_int_t)device->throttle_reasons);
}

static json_t *load_json(const struct wire_load *load)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "queued_requests",
                     (json_int_t)load->queued_requests, "running_requests", (json_int_t)load->running_requests,
                     "queued_tokens", (json_int_t)load->queued_tokens, "running_tokens",
                     (json_int_t)load->running_tokens, "kv_tokens_used", (json_int_t)load->kv_tokens_used,
                     "kv_tokens_max", (json_int_t)load->kv_tokens_max, "steps", (json_int_t)load->steps, "step_age_ms",
                     (json_int_t)load->step_age_ms, "step_median_us", (json_int_t)load->step_median_us, "token_ns",
                     (json_int_t)load->token_ns, "device", device_json(load));
}

static json_t *drain_json(const struct worker_info *info)
{
    if (!info->draining)
        return json_null();
    return json_pack("{s:I, s:I, s:I}", "streams", (json_int_t)info->drain.streams, "bytes_left",
                     (json_int_t)info->drain.bytes_left, "abandoned", (json_int_t)info->drain.abandoned);
}

static json_t *worker_json(const struct worker_info *info)
{
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:b, s:b, s:b, s:b, s:b, s:b, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:I, "
                     "s:I, s:I, s:I, s:o, s:o}",
                     "name", info->name, "endpoint", info->endpoint, "state", admin_worker_state(info), "incarnation",
                     hex_json(info->incarnation, WIRE_ID_BYTES), "numerics_id",
                     hex_json(info->numerics_id.data, info->numerics_id.size), "up", info->up, "ready", info->ready,
                     "draining", info->draining, "safe_to_delete", info->up && info->life == WIRE_LIFE_SAFE_TO_DELETE,
                     "configured", info->configured, "listed", info->listed, "breaker",
                     worker_breaker_name(info->breaker), "up_ms", (json_int_t)info->up_ms, "weight",
                     (json_int_t)info->weight, "load_tokens", (json_int_t)info->load_tokens, "queued_tokens",
                     (json_int_t)info->queued_tokens, "overloaded_ms", (json_int_t)info->overloaded_ms, "ramp",
                     info->ramp, "streams", (json_int_t)info->streams, "faults", (json_int_t)info->faults, "losses",
                     (json_int_t)info->losses, "relinks", (json_int_t)info->relinks, "drain", drain_json(info), "load",
                     load_json(&info->load));
}

static void on_workers(void *user, struct operator_request *request)
{
    const struct admin *admin = user;
    const struct router *router = admin->router;
    json_t *list = json_array();
    for (unsigned i = 0; list && i < worker_pool_count(router->pool); i++) {
        struct worker_info info;
        worker_info(worker_pool_at(router->pool, i), &info);
        if (json_array_append_new(list, worker_json(&info)) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    admin_answer_json(request, 200,
                      list ? json_pack("{s:s, s:b, s:s, s:b, s:I, s:o}", "router", admin->settings->name, "draining",
                                       router->draining, "store", router->placement->ops->name, "store_up",
                                       router->placement->ops->up(router->placement), "in_flight",
                                       (json_int_t)inflight_count(router->inflight), "workers", list)
                           : NULL);
}

/* ---- draining ---- */

static bool parse_deadline(const char *text, uint32_t *out)
{
    unsigned long value = 0;
    *out = 0;
    if (!text)
        return true;
    for (const char *at = text; *at; at++) {
        if (*at < '0' || *at > '9')
            return false;
        value = 10 * value + (unsigned long)(*at - '0');
        if (value > DEADLINE_MS_MAX)
            return false;
    }
    *out = (uint32_t)value;
    return *text != 0;
}

static void on_drain(void *user, struct operator_request *request)
{
    const struct admin *admin = user;
    const char *name = operator_query(request, "worker"), *cancel = operator_query(request, "cancel");
    struct wire_drain drain = {.cancel = cancel && strcmp(cancel, "1") == 0};
    if (!name || !wire_name_valid(wire_span_str(name))) {
        operator_answer_error(request, 400, "which worker? POST /drain?worker=NAME[&deadline_ms=N][&cancel=1]");
        return;
    }
    if (cancel && !drain.cancel) {
        operator_answer_error(request, 400, "cancel: 1, or leave it out");
        return;
    }
    if (!parse_deadline(operator_query(request, "deadline_ms"), &drain.deadline_ms)) {
        operator_answer_error(request, 400, "deadline_ms: a whole number to 3600000");
        return;
    }
    int index = worker_pool_find(admin->router->pool, name);
    if (index < 0) {
        operator_answer_error(request, 404, "this router knows no worker of that name: GET /workers lists them");
        return;
    }
    drain.worker = wire_span_str(name);
    switch (worker_send_drain(worker_pool_at(admin->router->pool, (unsigned)index), &drain)) {
    case STATUS_OK:
        admin_answer_json(
            request, 202,
            json_pack("{s:s, s:s}", "worker", name, "asked", drain.cancel ? "to go on serving" : "to drain"));
        break;
    case STATUS_UNSUPPORTED: operator_answer_error(request, 501, status_detail()); break;
    default: operator_answer_error(request, 409, "there is no connection to that worker now: send it SIGTERM"); break;
    }
}

/* ---- life ---- */

static enum status add_routes(struct admin *admin)
{
    struct operator_port *port = admin->port;
    TRY(operator_port_add(port, "GET", "/readyz", on_ready, admin));
    TRY(operator_port_add(port, "GET", "/metrics", on_metrics, admin));
    TRY(operator_port_add(port, "GET", "/workers", on_workers, admin));
    TRY(operator_port_add(port, "GET", "/conversation", admin_on_conversation, admin));
    return operator_port_add(port, "POST", "/drain", on_drain, admin);
}

enum status admin_create(const struct admin_config *config, struct admin **out)
{
    struct admin *admin = calloc(1, sizeof *admin);
    if (!admin)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the operator port");
    enum status st;
    admin->router = config->router;
    admin->settings = config->settings;
    if (config->router->redis)
        TRY_GOTO(redis_script_create(config->router->redis, REDIS_RECORD_LUA "return answer(0, r)\n", &admin->look), st,
                 fail);
    TRY_GOTO(operator_port_create(config->loop, config->address, &admin->port), st, fail);
    TRY_GOTO(add_routes(admin), st, fail);
    *out = admin;
    return STATUS_OK;
fail:
    admin_destroy(&admin);
    return st;
}

void admin_destroy(struct admin **admin)
{
    if (!*admin)
        return;
    operator_port_destroy(&(*admin)->port);
    redis_script_destroy(&(*admin)->look);
    free(*admin);
    *admin = NULL;
}

const char *admin_address(const struct admin *admin)
{
    return operator_port_address(admin->port);
}
