/* router_dispatch.c - a request and its worker: who may have it, sending it there with the tokens that its client has
 * already, taking it away, waiting for one.
 *
 * Borrows everything from struct router (router_internal.h); owns nothing. Loop thread only. Always true:
 *   1. a request that has tokens goes only to a worker that continues replies, on the numerics that computed them
 * unless it allows others and none of its own was to be had for WAIT_MS;
 *   2. a request in WAITING is looked at again when anything changes, and judged by request_wait_over. */
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/probe.h"
#include "router/frame.h"
#include "router/router_internal.h"

enum {
    WAIT_MS = 2000,      /* for a worker: as long as one takes to be declared dead */
    WAIT_HINT_MS = 1000, /* no worker is ready: once a second is no load */
};

/* ---- who may have it ---- */

static bool was_refused_by(const struct request *request, uint64_t name_hash)
{
    for (unsigned i = 0; i < request->refusals; i++)
        if (request->refused_by[i] == name_hash)
            return true;
    return false;
}

/* Can it go on there from the tokens that it has? A client whose router died before it learned whose numerics they are does not
 * say any: then only the worker that still has the request does (router_attach.c). */
static bool continues_at(const struct request *request, const struct worker *worker)
{
    if (request->released == 0)
        return true;
    if (!(worker_capabilities(worker) & WIRE_CAN_RESUME))
        return false;
    return request->inexact ||
           (request->has_numerics &&
            wire_span_equal(worker_numerics_id(worker), wire_span_of(request->numerics_id, REQUEST_NUMERICS_BYTES)));
}

bool request_may_use(struct router *router, const struct request *request, const struct worker *worker)
{
    (void)router;
    return !was_refused_by(request, worker_name_hash(worker)) && continues_at(request, worker);
}

bool request_has_other_worker(struct router *router, const struct request *request)
{
    for (unsigned i = 0; i < worker_pool_count(router->pool); i++) {
        struct worker *worker = worker_pool_at(router->pool, i);
        if (worker_ready(worker) && request_may_use(router, request, worker))
            return true;
    }
    return false;
}

/* ---- sending it ---- */

/* Its body tells; routers need it for nothing else, so it is read only when a reply goes on elsewhere. */
static unsigned choices_of(struct request *request)
{
    struct wire_message body;
    unsigned choices = 1;
    if (request->choices)
        return request->choices;
    for (unsigned i = 0; i < WIRE_CHOICES_MAX; i++)
        if (request->next[i] > 0)
            choices = i + 1;
    if (wire_decode(zmq_msg_data(&request->body_frame), zmq_msg_size(&request->body_frame), &body) == STATUS_OK) {
        if (body.body.sampling.choices > choices)
            choices = body.body.sampling.choices;
        wire_message_free(&body);
    }
    return request->choices = choices;
}

/* The tokens that its client has. columns: to be freed. */
static enum status fill_resume(struct request *request, struct wire_resume *resume, uint8_t **columns)
{
    *resume = (struct wire_resume){.counts = {NULL, 0}};
    if (request->released == 0)
        return STATUS_OK;
    unsigned choices = choices_of(request);
    size_t counts_bytes = 4 * (size_t)choices, at = counts_bytes;
    for (unsigned i = 0; i < choices; i++)
        at += request->replies[i].size;
    if (!(*columns = malloc(at)))
        return STATUS_FAIL(STATUS_NO_MEMORY, "a resume of %zu bytes", at);
    at = counts_bytes;
    for (unsigned i = 0; i < choices; i++) {
        const struct request_reply *reply = &request->replies[i];
        uint32_t count = htole32((uint32_t)(reply->size / 4));
        memcpy(*columns + 4 * (size_t)i, &count, sizeof count);
        if (reply->size)
            memcpy(*columns + at, reply->ids, reply->size);
        at += reply->size;
    }
    resume->counts = wire_span_of(*columns, counts_bytes);
    resume->ids = wire_span_of(*columns + counts_bytes, at - counts_bytes);
    return STATUS_OK;
}

static struct wire_attempt next_attempt(const struct request *request)
{
    struct wire_attempt attempt = request->client_attempt;
    attempt.router = request->dispatched ? request->sent.router + 1 : attempt.router;
    return attempt;
}

static enum status send_to(struct router *router, struct request *request, struct worker *worker,
                           struct wire_attempt attempt, bool known)
{
    struct wire_message head = {.kind = WIRE_HEAD, .head = request->head.head};
    uint64_t now = router_now_ms(router);
    uint8_t *columns = NULL;
    head.head.session = wire_span_of(router->session, WIRE_ID_BYTES);
    head.head.stream = request->backend_stream;
    head.head.deadline_ms = request->deadline_ms > now ? (uint32_t)(request->deadline_ms - now) : 1;
    head.head.attempt = attempt;
    head.head.loss_count = request->loss_count;
    head.head.incarnation = wire_span_of(worker_incarnation(worker), WIRE_ID_BYTES);
    bool home = request->has_record && strcmp(request->record.owner, worker_name(worker)) == 0;
    head.head.cache_id = wire_span_of(request->record.cache_id, home && request->record.has_cache ? WIRE_ID_BYTES : 0);
    head.head.epoch = request->has_record ? request->record.epoch : 0;
    bool conversation = request->head.head.conversation.size > 0;
    head.head.placement = wire_span_of(request->key.id, conversation ? sizeof request->key.id : 0);
    head.head.numerics_id = wire_span_of(request->numerics_id, request->has_numerics ? REQUEST_NUMERICS_BYTES : 0);
    zmq_msg_t head_frame, body_frame;
    enum status st = fill_resume(request, &head.head.resume, &columns);
    if (st == STATUS_OK)
        st = frame_make(&head, &head_frame);
    free(columns);
    TRY(st);
    zmq_msg_init(&body_frame);
    zmq_msg_copy(&body_frame, &request->body_frame); /* shares the bytes */
    if (known)
        return worker_send_known(worker, &head_frame, &body_frame);
    return worker_send_request(worker, request->backend_stream, &head_frame, &body_frame,
                               request_tokens_at(request, worker));
}

enum status request_dispatch(struct router *router, struct request *request, struct worker *worker,
                             enum policy_reason reason)
{
    if (PROBE("router.dispatch"))
        return STATUS_FAIL(STATUS_AGAIN, "a probe");
    inflight_bind(router->inflight, request, worker);
    struct wire_attempt attempt = next_attempt(request);
    enum status st = send_to(router, request, worker, attempt, reason == POLICY_ATTACHED);
    if (st != STATUS_OK) {
        inflight_unbind(router->inflight, request);
        return st;
    }
    if (!request->dispatched)
        request->route_us = (uint32_t)(clock_now_us() - request->arrived_us);
    if (request->moves > 0 && request->released > 0)
        router->stats.moves++;
    worker_grant(worker, request->backend_stream, request->granted, true);
    request->sent = attempt;
    request->started = false;
    request->dispatched = true;
    request->sent_unacknowledged = true;
    request->asked_again = false;
    request->reason = reason;
    request->released_before = request->released;
    request->wait_until_ms = request->not_before_ms = 0;
    if (request->call)
        snprintf(request->call->ran_on, sizeof request->call->ran_on, "%s", worker_name(worker));
    inflight_move(router->inflight, request, REQUEST_SENT);
    router->stats.reasons[reason]++;
    LOG_DEBUG("goes to %s: %s", worker_name(worker), policy_reason_name(reason));
    return STATUS_OK;
}

/* Takes it away from its worker, whatever happens next. */
void request_leave_worker(struct router *router, struct request *request)
{
    struct worker *worker = request->worker;
    if (!worker)
        return;
    if (request->sent_unacknowledged)
        worker_body_acknowledged(worker, request->body_bytes);
    request->sent_unacknowledged = false;
    worker_stream_close(worker, request->backend_stream);
    inflight_unbind(router->inflight, request);
    router->retry_waiting = true; /* there is room now */
}

void request_dispatch_or_wait(struct router *router, struct request *request, int worker, enum policy_reason reason)
{
    if (request->ask_first && request_ask(router, request))
        return;
    if (worker < 0 || request->not_before_ms > router_now_ms(router) ||
        request_dispatch(router, request, worker_pool_at(router->pool, (unsigned)worker), reason) != STATUS_OK)
        request_wait(router, request);
}

/* ---- waiting ---- */

void request_wait(struct router *router, struct request *request)
{
    if (request->ask_first && request_ask(router, request))
        return; /* also one that takes nothing new may have it */
    if (request->wait_until_ms == 0)
        request->wait_until_ms = router_now_ms(router) + WAIT_MS;
    inflight_move(router->inflight, request, REQUEST_WAITING);
}

void request_wait_for(struct router *router, struct request *request, uint32_t ms)
{
    request->not_before_ms = router_now_ms(router) + ms;
    request_wait(router, request);
}

/* Is there one that could take it once there is room? */
static bool may_still_go(struct router *router, const struct request *request, bool *any_ready)
{
    bool may = false;
    *any_ready = false;
    for (unsigned i = 0; i < worker_pool_count(router->pool); i++) {
        struct worker *worker = worker_pool_at(router->pool, i);
        if (!worker_ready(worker))
            continue;
        *any_ready = true;
        may = may || ((request->moves > 0 || request->released > 0) && continues_at(request, worker));
    }
    return may;
}

void request_wait_over(struct router *router, struct request *request)
{
    bool any_ready;
    if (may_still_go(router, request, &any_ready)) {
        request->wait_until_ms = router_now_ms(router) + WAIT_MS; /* its deadline ends it */
    } else if (request->released > 0 && any_ready && request->head.head.inexact_allowed && !request->inexact) {
        request->inexact = true;
        router->stats.inexact++;
        request->wait_until_ms = router_now_ms(router) + WAIT_MS;
        router->retry_waiting = true;
    } else if (request->released > 0 && any_ready) {
        router->stats.not_exact++;
        request_fail(
            router, request, WIRE_ERROR_NOT_EXACT,
            "no worker is left that continues this reply with the same numerics; inexact_allowed accepts another", 0);
    } else if (request->released > 0 && request->moves > 0) {
        request_fail(router, request, WIRE_ERROR_WORKER_LOST,
                     "the worker was lost in the middle of the reply, and no other is ready", WAIT_HINT_MS);
    } else {
        request_fail(router, request, WIRE_ERROR_OVER_CAPACITY, "no worker is ready", WAIT_HINT_MS);
    }
}
