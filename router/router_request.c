/* router_request.c - the life of a request on the client's side: how it begins, and every way in which it ends.
 *
 *   on_request -> refusal --why--> refuse: ERROR
 *        `-> request_begin --the id or the stream is in use--> on_repeat -> rebind, or refuse: CONFLICT
 *                `-> request_place (router_route.c), which asks workers first if it was sent before (router_attach.c)
 *   on_credit -> request_grant: what its client takes, passed on to its worker
 *
 *   on_cancel --not in flight here--> router_cancel_elsewhere (router_attach.c)
 *        `-----> request_cancel --a worker has it--> CANCELLING; its answer (router_reply.c) ends it
 *                      `--nobody has it--.
 *   on_session_lost --------------------> request_fail -> request_end: one terminal, freed
 *   router_expire_requests ---------------^
 *
 * Borrows everything from struct router (router_internal.h); owns nothing. Loop thread only. Always true:
 *   1. request_end is the only caller of inflight_remove; it queues one terminal and then the request is gone;
 *   2. who calls request_end or request_fail does not touch the request afterwards;
 *   3. what is refused is in no table: its terminal and its bytes are settled at once. */
#include "router/router_internal.h"
#include <string.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/probe.h"

enum {
    DRAIN_HINT_MS = 1000,    /* the library has gone to another router by then */
    CANCEL_ANSWER_MS = 1000, /* a worker answers within one of its steps; after this nobody waits for it */
    DEADLINE_GRACE_MS = 250, /* the worker's own answer is better: it has the usage */
    GRANT_AGAIN_MS = 1000,   /* 8,192 requests a second, 12 bytes each: 98 KB/s over all workers */
};
#define NO_CREDIT   (UINT64_MAX / 2) /* the grant of a client that knows no credit: no limit */
#define RETRY_SHARE 0.1              /* retries after refusals, as a share of the requests */

/* ---- the end of a request ---- */

void request_acknowledge_body(struct request *request)
{
    if (!request->body_acknowledged) {
        request->body_acknowledged = true;
        frontend_body_acknowledged(request->session, request->body_bytes);
    }
}

static void count_cancel(struct router *router, const struct request *request)
{
    double seconds = (double)(clock_now_us() - request->cancelled_us) / 1e6;
    unsigned bucket = 0;
    while (bucket < ROUTER_CANCEL_BOUNDS && seconds > router_cancel_bounds[bucket])
        bucket++;
    router->stats.cancel_counts[bucket]++;
    router->stats.cancel_seconds += seconds;
}

void request_end(struct router *router, struct request *request, const struct wire_message *terminal)
{
    frontend_terminal(request->session, terminal);
    request_acknowledge_body(request);
    frontend_stream_close(request->session);
    request_leave_worker(router, request);
    if (request->cancelled_us > 0)
        count_cancel(router, request);
    if (request->call)
        request->call->request = NULL;
    inflight_remove(router->inflight, request);
}

void request_cancel_at_worker(const struct request *request)
{
    if (request->worker)
        worker_send_cancel(request->worker, &(struct wire_cancel){.request_id = request_id_span(request),
                                                                  .tenant = request->head.head.tenant,
                                                                  .conversation = request->head.head.conversation,
                                                                  .attempt = request->sent});
}

void request_fail(struct router *router, struct request *request, enum wire_error_code code, const char *detail,
                  uint32_t retry_after_ms)
{
    request_cancel_at_worker(request);
    router->stats.errors[code]++;
    struct wire_message error = {.kind = WIRE_ERROR,
                                 .error = {.request_id = request_id_span(request),
                                           .stream = request->stream_key.stream,
                                           .attempt = request_client_attempt(request),
                                           .code = code,
                                           .detail = wire_span_str(detail),
                                           .retry_after_ms = retry_after_ms}};
    LOG_DEBUG("ends: %s (%s)", wire_error_name(code), detail);
    request_end(router, request, &error);
}

void request_resend(struct router *router, struct request *request)
{
    struct wire_message resend = {.kind = WIRE_RESEND,
                                  .stream_ref = {.request_id = request_id_span(request),
                                                 .stream = request->stream_key.stream,
                                                 .attempt = request_client_attempt(request)}};
    router->stats.resends++;
    inflight_keep_losses(router->inflight, request);
    LOG_DEBUG("its client is asked to send it again");
    request_end(router, request, &resend);
}

static void request_cancel(struct router *router, struct request *request)
{
    if (request->cancelled_us == 0) {
        request->cancelled_us = clock_now_us();
        router->stats.cancels++;
    }
    if (!request->worker) {
        request_fail(router, request, WIRE_ERROR_CANCELLED, "cancelled", 0);
    } else if (request->state != REQUEST_CANCELLING) {
        request_cancel_at_worker(request);
        request->cancel_until_ms = router_now_ms(router) + CANCEL_ANSWER_MS;
        inflight_move(router->inflight, request, REQUEST_CANCELLING);
    }
}

/* ---- from clients ---- */

static void refuse(struct router *router, struct session *session, const struct wire_head *head, size_t body_bytes,
                   enum wire_error_code code, const char *detail, uint32_t retry_after_ms)
{
    router->stats.errors[code]++;
    struct wire_message error = {.kind = WIRE_ERROR,
                                 .error = {.request_id = head->request_id,
                                           .stream = head->stream,
                                           .attempt = head->attempt,
                                           .code = code,
                                           .detail = wire_span_str(detail),
                                           .retry_after_ms = retry_after_ms}};
    frontend_refusal(session, &error);
    frontend_body_acknowledged(session, body_bytes);
}

/* Passes on what its client takes. Totals: an older one says nothing. */
static void request_grant(struct request *request, uint64_t tokens_total)
{
    if (tokens_total <= request->granted)
        return;
    request->granted = tokens_total;
    if (request->worker)
        worker_grant(request->worker, request->backend_stream, request->granted, true);
}

/* Before its client has said anything: the first window, behind the tokens that it has. */
static uint64_t first_grant(const struct session *session, const struct request *request)
{
    return frontend_session_has_credit(session) ? request->released + FRONTEND_STREAM_TOKENS : NO_CREDIT;
}

/* The client sends a request of its own again, counted up: it has lost what came before, or the tokens of its resume
 * are what it has. */
static enum status rebind(struct router *router, struct request *request, zmq_msg_t *head_frame,
                          struct wire_message *message, zmq_msg_t *body_frame)
{
    struct worker *worker = request->worker;
    enum policy_reason reason = request->sent_unacknowledged ? request->reason : POLICY_ATTACHED;
    uint64_t body_bytes = request->body_bytes;
    TRY(inflight_replace(router->inflight, request, head_frame, message, body_frame));
    if (!request->body_acknowledged)
        frontend_body_acknowledged(request->session, body_bytes);
    request->body_acknowledged = false;
    request->deadline_ms = router_now_ms(router) + request->head.head.deadline_ms;
    request->granted = first_grant(request->session, request);
    if (worker && request->sent_unacknowledged)
        worker_body_acknowledged(worker, body_bytes);
    request->sent_unacknowledged = false;
    if (!worker || request->state == REQUEST_CANCELLING)
        return STATUS_OK;
    /* The worker knows the id: a newer attempt takes its stream over and sees it from the first token. */
    request_leave_worker(router, request);
    if (request_dispatch(router, request, worker, reason) != STATUS_OK)
        request_wait(router, request);
    return STATUS_OK;
}

/* The id, or the stream, is in flight. */
static void on_repeat(struct router *router, struct session *session, zmq_msg_t *head_frame,
                      struct wire_message *message, zmq_msg_t *body_frame)
{
    const struct wire_head *head = &message->head;
    size_t body_bytes = zmq_msg_size(body_frame);
    struct request *request = inflight_find_id(router->inflight, head->tenant, head->request_id);
    bool own = request && request->session == session;
    bool newer = own && head->attempt.client > request->client_attempt.client;
    if (own && !newer && head->stream == request->stream_key.stream) {
        router->stats.stale++; /* the same again: its terminal will come */
        frontend_body_acknowledged(session, body_bytes);
        return;
    }
    enum status st = newer ? rebind(router, request, head_frame, message, body_frame) : STATUS_EXISTS;
    if (st == STATUS_EXISTS)
        refuse(router, session, head, body_bytes, WIRE_ERROR_CONFLICT,
               request ? "this request id is in flight already" : "this stream number is in use", 0);
    else if (st != STATUS_OK)
        refuse(router, session, head, body_bytes, WIRE_ERROR_OVER_CAPACITY,
               "this router has as many requests as it can take", ROUTER_BUSY_HINT_MS);
}

/* Why a well-formed request is not taken at all; NULL: it is. What is in flight already has its place: a repeat of it
 * adds nothing. */
static const char *refusal(const struct router *router, const struct session *session, const struct wire_head *head,
                           enum wire_error_code *code, uint32_t *retry_after_ms)
{
    if (head->resume.ids.size / 4 > REQUEST_RESUME_IDS_MAX) {
        *code = WIRE_ERROR_TOO_LARGE;
        return "more tokens to resume behind than a router can send on: 65536 over all choices";
    }
    if (inflight_find_id(router->inflight, head->tenant, head->request_id))
        return NULL;
    *code = WIRE_ERROR_OVER_CAPACITY;
    if (router->draining) {
        *retry_after_ms = DRAIN_HINT_MS;
        return "draining: use another router";
    }
    *retry_after_ms = ROUTER_BUSY_HINT_MS;
    if (frontend_session_full(session))
        return "this session has too much open: streams, unacknowledged bodies or replies that it has not read";
    return NULL;
}

/* Takes the frames of a request that is not refused. */
static void request_begin(struct router *router, struct session *session, zmq_msg_t *head_frame,
                          struct wire_message *message, zmq_msg_t *body_frame)
{
    const struct wire_head *head = &message->head;
    size_t body_bytes = zmq_msg_size(body_frame);
    struct request *request;
    enum status st = inflight_add(router->inflight, session, head_frame, message, body_frame, &request);
    if (st == STATUS_EXISTS) {
        on_repeat(router, session, head_frame, message, body_frame);
        return;
    }
    if (st != STATUS_OK) {
        refuse(router, session, head, body_bytes, WIRE_ERROR_OVER_CAPACITY,
               "this router has as many requests as it can take", ROUTER_BUSY_HINT_MS);
        return;
    }
    frontend_stream_open(session);
    head = &request->head.head;
    request->arrived_us = clock_now_us();
    request->deadline_ms = router_now_ms(router) + head->deadline_ms;
    request->granted = first_grant(session, request);
    request->ask_first = head->attempt.client > 1 || request->released > 0;
    router->stats.resumes_taken += request->released > 0;
    if (head->conversation.size > 0) {
        placement_key_make(&router->salt, head->tenant, head->conversation, &request->key);
        request->policy_key = hash_fast(request->key.id, sizeof request->key.id, 0);
    }
    request_place(router, request);
}

static void on_request(void *user, struct session *session, zmq_msg_t *head_frame, struct wire_message *message,
                       zmq_msg_t *body_frame)
{
    struct router *router = user;
    enum wire_error_code code;
    uint32_t retry_after_ms = 0;
    log_request_scope(message->head.request_id.data);
    (void)PROBE("router.request");
    router->stats.requests++;
    if (router->retry_budget < ROUTER_RETRY_BUDGET_MAX)
        router->retry_budget += RETRY_SHARE;
    const char *why = refusal(router, session, &message->head, &code, &retry_after_ms);
    if (why)
        refuse(router, session, &message->head, zmq_msg_size(body_frame), code, why, retry_after_ms);
    else
        request_begin(router, session, head_frame, message, body_frame);
    log_request_scope(NULL);
}

static void on_cancel(void *user, struct session *session, const struct wire_cancel *cancel)
{
    struct router *router = user;
    struct request *request = inflight_find_id(router->inflight, cancel->tenant, cancel->request_id);
    bool older = request && cancel->attempt.client > 0 && cancel->attempt.client < request->client_attempt.client;
    if (!request)
        router_cancel_elsewhere(router, cancel); /* it has ended, or came by another router */
    else if (request->session == session && !older)
        request_cancel(router, request);
}

static void on_credit(void *user, struct session *session, uint32_t stream, uint64_t tokens_total)
{
    struct router *router = user;
    struct wire_span id = wire_span_of(frontend_session_id(session), WIRE_ID_BYTES);
    struct request *request = inflight_find_stream(router->inflight, id, stream);
    if (request)
        request_grant(request, tokens_total);
}

static void on_session_lost(void *user, struct session *session, enum wire_error_code code)
{
    struct router *router = user;
    for (unsigned state = 0; state < REQUEST_STATE_COUNT; state++) {
        struct request *request = inflight_first(router->inflight, state);
        while (request) {
            struct request *next = inflight_next(request);
            if (request->session == session)
                request_fail(router, request, code,
                             code == WIRE_ERROR_SLOW_READER ? "the reply was not read in time"
                                                            : "the client's lease expired",
                             0);
            request = next;
        }
    }
}

struct frontend_events router_client_events(struct router *router)
{
    return (struct frontend_events){.on_request = on_request,
                                    .on_cancel = on_cancel,
                                    .on_credit = on_credit,
                                    .on_session_lost = on_session_lost,
                                    .user = router};
}

/* ---- time ---- */

/* Whatever became of the lease that told it. */
static void grant_again(struct request *request, uint64_t now)
{
    worker_grant(request->worker, request->backend_stream, request->granted, false);
    request->grant_again_ms = now + GRANT_AGAIN_MS;
}

static void expire_request(struct router *router, struct request *request, uint64_t now)
{
    uint64_t grace_ms = request->worker ? DEADLINE_GRACE_MS : 0;
    if (request->state == REQUEST_CANCELLING && now >= request->cancel_until_ms)
        request_fail(router, request, WIRE_ERROR_CANCELLED, "cancelled; the worker has not answered", 0);
    else if (now >= request->deadline_ms + grace_ms)
        request_fail(router, request, WIRE_ERROR_DEADLINE, "the deadline has passed", 0);
    else if (request->state == REQUEST_ASKING && now >= request->ask_until_ms)
        request_ask_over(router, request);
    else if (request->state == REQUEST_WAITING && now >= request->wait_until_ms)
        request_wait_over(router, request);
    else if (request->state == REQUEST_WAITING && request->not_before_ms && now >= request->not_before_ms)
        router->retry_waiting = true;
    else if (request->worker && now >= request->grant_again_ms)
        grant_again(request, now);
}

void router_expire_requests(struct router *router, uint64_t now)
{
    for (unsigned state = 0; state < REQUEST_STATE_COUNT; state++) {
        struct request *request = inflight_first(router->inflight, state);
        while (request) {
            struct request *next = inflight_next(request);
            expire_request(router, request, now);
            request = next;
        }
    }
}
