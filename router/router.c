/* router.c - the life of a request: what comes in, and the end. Where it goes is router_route.c; states are those of
 * inflight.h.
 *
 *   client -> frontend -> on_request -> request_begin -> request_place: asks the store, chooses, sends to a worker
 *   worker -> on_worker_message -> on_ack, on_tokens -> frontend -> client
 *                               -> on_done, on_error -> request_end -> frontend -> client
 *   on_worker_lost -> request_lost -> request_wait, or request_fail
 *   on_cancel, expire_requests, on_session_lost -> request_cancel or request_fail
 *
 * Always true:
 *   1. request_end is the only caller of inflight_remove; it queues one terminal and then the request is gone;
 *   2. nothing expires within a lease after a stall of our own: what came in meanwhile is read first;
 *   3. who calls request_end or request_fail does not touch the request afterwards. */
#include "router/router.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "router/router_internal.h"

enum {
    TICK_MS = 25, /* 8,192 requests looked at 40 times a second: 0.3 M looks, about 1% of a core */
    WAIT_HINT_MS = 1000,
    BUSY_HINT_MS = 200,
    CANCEL_ANSWER_MS = 1000,
    DEADLINE_GRACE_MS = 250, /* the worker's own answer is better: it has the usage */
    DRAIN_SETTLE_MS = 200,   /* after the last terminal: LINGER is 0 */
    REDIS_ABSENT_MS = 1500,  /* after start: then say so */
    REDIS_SAY_MS = 5000,
    RETRY_BUDGET_MAX = 100,
};
#define RETRY_SHARE 0.1 /* retries after refusals, as a share of the requests */

static struct wire_span id_span(const struct request *request)
{
    return wire_span_of(request->id_key.id, WIRE_ID_BYTES);
}

static struct wire_attempt attempt_for_client(const struct request *request)
{
    struct wire_attempt attempt = request->client_attempt;
    attempt.router = request->dispatched ? request->sent.router : attempt.router;
    return attempt;
}

/* ---- the end of a request ---- */

static void acknowledge_body(struct request *request)
{
    if (!request->body_acknowledged) {
        request->body_acknowledged = true;
        frontend_body_acknowledged(request->session, zmq_msg_size(&request->body_frame));
    }
}

static void request_end(struct router *router, struct request *request, const struct wire_message *terminal)
{
    frontend_terminal(request->session, terminal);
    acknowledge_body(request);
    frontend_stream_close(request->session);
    request_leave_worker(router, request);
    if (request->call)
        request->call->request = NULL;
    inflight_remove(router->inflight, request);
}

static void tell_worker_cancel(const struct request *request)
{
    if (request->worker)
        worker_send_cancel(request->worker, &(struct wire_cancel){.request_id = id_span(request),
                                                                  .tenant = request->head.head.tenant,
                                                                  .conversation = request->head.head.conversation});
}

/* Ends it with an error of our own; a worker that has it is told to stop. */
static void request_fail(struct router *router, struct request *request, enum wire_error_code code, const char *detail,
                         uint32_t retry_after_ms)
{
    tell_worker_cancel(request);
    router->stats.errors[code]++;
    struct wire_message error = {.kind = WIRE_ERROR,
                                 .error = {.request_id = id_span(request),
                                           .stream = request->stream_key.stream,
                                           .attempt = attempt_for_client(request),
                                           .code = code,
                                           .detail = wire_span_str(detail),
                                           .retry_after_ms = retry_after_ms}};
    LOG_DEBUG("ends: %s (%s)", wire_error_name(code), detail);
    request_end(router, request, &error);
}

static void request_cancel(struct router *router, struct request *request)
{
    if (!request->worker) {
        request_fail(router, request, WIRE_ERROR_CANCELLED, "cancelled", 0);
    } else if (request->state != REQUEST_CANCELLING) {
        tell_worker_cancel(request);
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
    frontend_terminal(session, &error);
    frontend_body_acknowledged(session, body_bytes);
}

/* The client sends a request of its own again, counted up: it has lost what came before. */
static bool rebind(struct router *router, struct request *request, const struct wire_head *head)
{
    struct worker *worker = request->worker;
    bool again = worker && request->state != REQUEST_CANCELLING;
    if (inflight_rename(router->inflight, request, head->stream) != STATUS_OK)
        return false;
    request->client_attempt.client = head->attempt.client;
    if (!again)
        return true;
    /* The worker knows the id: a newer attempt takes its stream over and sees it from the first token. */
    request_leave_worker(router, request);
    if (request_dispatch(router, request, worker, request->reason) != STATUS_OK)
        request_wait(router, request);
    return true;
}

static void on_repeat(struct router *router, struct session *session, struct request *request,
                      const struct wire_head *head, size_t body_bytes)
{
    bool own = request && request->session == session;
    if (own && head->attempt.client > request->client_attempt.client && rebind(router, request, head)) {
        frontend_body_acknowledged(session, body_bytes);
    } else if (own && head->stream == request->stream_key.stream &&
               head->attempt.client <= request->client_attempt.client) {
        router->stats.stale++; /* the same again: its terminal will come */
        frontend_body_acknowledged(session, body_bytes);
    } else {
        refuse(router, session, head, body_bytes, WIRE_ERROR_CONFLICT,
               request ? "this request id is in flight already" : "this stream number is in use", 0);
    }
}

/* Why a well-formed request is not taken at all; NULL: it is. */
static const char *refusal(const struct router *router, const struct session *session, const struct wire_head *head,
                           enum wire_error_code *code, uint32_t *retry_after_ms)
{
    if (head->resume.counts.size > 0 || head->resume.ids.size > 0) {
        *code = WIRE_ERROR_UNSUPPORTED;
        return "resume is not built yet: send the request from its start";
    }
    *code = WIRE_ERROR_OVER_CAPACITY;
    if (router->draining) {
        *retry_after_ms = WAIT_HINT_MS;
        return "draining: use another router";
    }
    *retry_after_ms = BUSY_HINT_MS;
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
        on_repeat(router, session, inflight_find_id(router->inflight, head->tenant, head->request_id), head,
                  body_bytes);
        return;
    }
    if (st != STATUS_OK) {
        refuse(router, session, head, body_bytes, WIRE_ERROR_OVER_CAPACITY,
               "this router has as many requests as it can take", BUSY_HINT_MS);
        return;
    }
    frontend_stream_open(session);
    head = &request->head.head;
    request->arrived_us = clock_now_us();
    request->deadline_ms = router_now_ms(router) + head->deadline_ms;
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
    router->stats.requests++;
    if (router->retry_budget < RETRY_BUDGET_MAX)
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
    if (request && request->session == session) /* else it has ended: its terminal is on the way */
        request_cancel(router, request);
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

/* ---- from workers ---- */

static void on_worker_ready(void *user, struct worker *worker)
{
    (void)worker;
    ((struct router *)user)->retry_waiting = true;
}

static bool attempt_equal(struct wire_attempt a, struct wire_attempt b)
{
    return a.client == b.client && a.router == b.router;
}

/* The request that a message of a worker is about; NULL (and counted) if it is of an older attempt or unknown.
 * Rows of tokens carry no id. */
static struct request *find_request(struct router *router, const struct worker *worker, uint32_t stream,
                                    struct wire_attempt attempt, struct wire_span id)
{
    struct request *request = inflight_find_backend(router->inflight, worker, stream);
    if (request && attempt_equal(request->sent, attempt) && (id.size == 0 || wire_span_equal(id, id_span(request))))
        return request;
    router->stats.stale++;
    return NULL;
}

/* Its worker answers for it. */
static void accept(struct router *router, struct request *request)
{
    if (request->sent_unacknowledged) {
        request->sent_unacknowledged = false;
        worker_body_acknowledged(request->worker, zmq_msg_size(&request->body_frame));
        router->retry_waiting = true;
    }
    if (!request->body_acknowledged) {
        acknowledge_body(request);
        frontend_ack(request->session, &(struct wire_stream_ref){.request_id = id_span(request),
                                                                 .stream = request->stream_key.stream,
                                                                 .attempt = attempt_for_client(request)});
    }
    if (request->state == REQUEST_SENT)
        inflight_move(router->inflight, request, REQUEST_ACCEPTED);
}

static void on_ack(struct router *router, struct worker *worker, const struct wire_stream_ref *ack)
{
    struct request *request = find_request(router, worker, ack->stream, ack->attempt, ack->request_id);
    if (!request)
        return;
    accept(router, request);
    request_note_cache(router, request, ack->cache_id);
}

/* One row of a batch, under the client's number. False: it does not continue what came before. */
static bool pass_row(struct router *router, struct request *request, struct wire_tokens_row *row)
{
    if (row->choice >= WIRE_CHOICES_MAX)
        return false;
    uint32_t *next = &request->next[row->choice];
    if (row->first < *next && row->count <= *next - row->first) {
        router->stats.stale++; /* a repeat */
        return true;
    }
    if (row->first != *next || row->count > UINT32_MAX - *next)
        return false;
    if (row->count == 0 && row->text.size == 0)
        return true;
    *next += row->count;
    request->released += row->count;
    accept(router, request);
    if (request->state == REQUEST_ACCEPTED)
        inflight_move(router->inflight, request, REQUEST_STREAMING);
    row->stream = request->stream_key.stream;
    row->attempt = attempt_for_client(request);
    frontend_tokens(request->session, row);
    return true;
}

static void on_tokens(struct router *router, struct worker *worker, const struct wire_tokens *tokens)
{
    struct wire_tokens_cursor cursor = {0};
    struct wire_tokens_row row;
    while (wire_tokens_next(tokens, &cursor, &row)) {
        struct request *request = find_request(router, worker, row.stream, row.attempt, wire_span_of(NULL, 0));
        if (!request || request->state == REQUEST_CANCELLING)
            continue;
        if (!pass_row(router, request, &row)) {
            LOG_WARN("worker %s skipped tokens of a stream", worker_name(worker));
            request_fail(router, request, WIRE_ERROR_INTERNAL, "the worker skipped tokens", 0);
        }
    }
}

static void on_done(struct router *router, struct worker *worker, struct wire_done *done)
{
    struct request *request = find_request(router, worker, done->stream, done->attempt, done->request_id);
    if (!request)
        return;
    if (done->released != request->released && request->state != REQUEST_CANCELLING) {
        LOG_WARN("worker %s released %" PRIu32 " tokens, %" PRIu64 " came", worker_name(worker), done->released,
                 request->released);
        request_fail(router, request, WIRE_ERROR_INTERNAL, "tokens of the reply were lost between worker and router",
                     0);
        return;
    }
    if (request->state == REQUEST_CANCELLING) { /* it ended first; its last tokens were not passed on */
        request_fail(router, request, WIRE_ERROR_CANCELLED, "cancelled", 0);
        return;
    }
    request_note_cache(router, request, done->cache_id);
    router->stats.done++;
    struct wire_message message = {.kind = WIRE_DONE, .done = *done};
    message.done.request_id = id_span(request);
    message.done.stream = request->stream_key.stream;
    message.done.attempt = attempt_for_client(request);
    message.done.worker = wire_span_str(worker_name(worker));
    message.done.route = wire_span_str(policy_reason_name(request->reason));
    message.done.route_us = request->route_us;
    message.done.epoch = request->has_record ? request->record.epoch : 0;
    request_end(router, request, &message);
}

/* A worker refused it, and nothing was released: is there another one, and budget? */
static bool try_next(struct router *router, struct request *request)
{
    if (request->released > 0 || request->state == REQUEST_CANCELLING || request->refusals >= REQUEST_REFUSALS_MAX ||
        router->retry_budget < 1)
        return false;
    request->refused_by[request->refusals++] = worker_name_hash(request->worker);
    if (!request_has_other_worker(router, request))
        return false;
    router->retry_budget -= 1;
    router->stats.retries++;
    request_leave_worker(router, request);
    request_route(router, request);
    return true;
}

static void on_error(struct router *router, struct worker *worker, const struct wire_error *error)
{
    struct request *request = find_request(router, worker, error->stream, error->attempt, error->request_id);
    if (!request || (error->code == WIRE_ERROR_OVER_CAPACITY && try_next(router, request)))
        return;
    router->stats.errors[error->code]++;
    struct wire_message message = {.kind = WIRE_ERROR, .error = *error};
    message.error.request_id = id_span(request);
    message.error.stream = request->stream_key.stream;
    message.error.attempt = attempt_for_client(request);
    request_end(router, request, &message);
}

/* NEED_HISTORY and RESEND are for the client library; WRONG_OWNER says that the process there is not the one we meant.
 */
static void on_stream_ref(struct router *router, struct worker *worker, enum wire_kind kind,
                          const struct wire_stream_ref *ref)
{
    struct request *request = find_request(router, worker, ref->stream, ref->attempt, ref->request_id);
    if (!request)
        return;
    if (kind == WIRE_WRONG_OWNER) {
        if (!try_next(router, request))
            request_fail(router, request, WIRE_ERROR_OVER_CAPACITY, "the worker was started again meanwhile",
                         BUSY_HINT_MS);
        return;
    }
    struct wire_message message = {.kind = kind, .stream_ref = *ref};
    message.stream_ref.request_id = id_span(request);
    message.stream_ref.stream = request->stream_key.stream;
    message.stream_ref.attempt = attempt_for_client(request);
    request_end(router, request, &message);
}

static void on_worker_message(void *user, struct worker *worker, const struct wire_message *message)
{
    struct router *router = user;
    struct wire_done done;
    switch (message->kind) {
    case WIRE_TOKENS: on_tokens(router, worker, &message->tokens); break;
    case WIRE_DONE:
        done = message->done;
        on_done(router, worker, &done);
        break;
    case WIRE_ERROR: on_error(router, worker, &message->error); break;
    case WIRE_ACK: on_ack(router, worker, &message->stream_ref); break;
    default: on_stream_ref(router, worker, message->kind, &message->stream_ref); break;
    }
}

/* The worker is gone, and with it what it had not released. */
static void request_lost(struct router *router, struct request *request)
{
    bool cancelling = request->state == REQUEST_CANCELLING;
    router->stats.losses++;
    request->loss_count++;
    tell_worker_cancel(request); /* if it is only silent: nobody waits for this any more */
    uint64_t released = request->released;
    request_leave_worker(router, request);
    if (cancelling)
        request_fail(router, request, WIRE_ERROR_CANCELLED, "cancelled", 0);
    else if (released > 0)
        request_fail(router, request, WIRE_ERROR_WORKER_LOST, "the worker was lost in the middle of the reply", 0);
    else if (request->loss_count >= REQUEST_LOSSES_MAX)
        request_fail(router, request, WIRE_ERROR_WORKER_LOST, "two workers were lost while they ran this request", 0);
    else
        request_wait(router, request); /* routed at the end of this turn, when every loss of it is known */
    router->retry_waiting = true;
}

static void on_worker_lost(void *user, struct worker *worker)
{
    struct router *router = user;
    static const enum request_state with_worker[] = {REQUEST_SENT, REQUEST_ACCEPTED, REQUEST_STREAMING,
                                                     REQUEST_CANCELLING};
    for (unsigned i = 0; i < sizeof with_worker / sizeof with_worker[0]; i++) {
        struct request *request = inflight_first(router->inflight, with_worker[i]);
        while (request) {
            struct request *next = inflight_next(request);
            if (request->worker == worker) {
                log_request_scope(request->id_key.id);
                request_lost(router, request);
            }
            request = next;
        }
    }
    log_request_scope(NULL);
}

/* ---- time ---- */

static void expire_request(struct router *router, struct request *request, uint64_t now)
{
    uint64_t grace_ms = request->worker ? DEADLINE_GRACE_MS : 0;
    if (request->state == REQUEST_CANCELLING && now >= request->cancel_until_ms)
        request_fail(router, request, WIRE_ERROR_CANCELLED, "cancelled; the worker has not answered", 0);
    else if (now >= request->deadline_ms + grace_ms)
        request_fail(router, request, WIRE_ERROR_DEADLINE, "the deadline has passed", 0);
    else if (request->state == REQUEST_WAITING && now >= request->wait_until_ms)
        request_fail(router, request, WIRE_ERROR_OVER_CAPACITY, "no worker is ready", WAIT_HINT_MS);
}

static void expire_requests(struct router *router, uint64_t now)
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

static void tick(struct router *router)
{
    uint64_t now = router_now_ms(router);
    uint64_t since = now - router->last_tick_ms;
    router->tick_due = false;
    router->last_tick_ms = now;
    /* We stood still ourselves: silence of others means nothing until what they sent has been read. */
    bool stalled = since > TICK_MS + router->lease_ms / 2 || loop_stall_ms(router->loop) > router->lease_ms / 2;
    if (stalled && !router->catching_up) {
        router->catching_up = true; /* once: a loop that stalls in every turn must still keep deadlines */
        router->expire_after_ms = now + router->lease_ms;
    }
    if (now >= router->expire_after_ms) {
        router->catching_up = false;
        worker_pool_expire(router->pool, now);
        frontend_expire(router->frontend, now);
        expire_requests(router, now);
    }
    if (router->redis)
        say_redis_state(router, now);
}

static void check_drained(struct router *router)
{
    uint64_t now = router_now_ms(router);
    if (inflight_count(router->inflight) > 0 || frontend_pending(router->frontend) > 0) {
        router->drain_quiet_ms = 0;
    } else if (router->drain_quiet_ms == 0) {
        router->drain_quiet_ms = now;
    } else if (now - router->drain_quiet_ms >= DRAIN_SETTLE_MS && router->on_drained) {
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
    struct worker_pool_events events = {
        .on_ready = on_worker_ready, .on_lost = on_worker_lost, .on_message = on_worker_message, .user = router};
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
    struct frontend_events events = {
        .on_request = on_request, .on_cancel = on_cancel, .on_session_lost = on_session_lost, .user = router};
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
    router->new_choices = (uint32_t)settings->new_choices;
    router->retry_budget = RETRY_BUDGET_MAX / 10;
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
    TRY_GOTO(inflight_create(&limits, &router->inflight), st, fail);
    TRY_GOTO(placement_cache_create(PLACEMENT_CACHE_ENTRIES, &router->recent), st, fail);
    TRY_GOTO(create_frontend(router, zmq_context, settings), st, fail);
    TRY_GOTO(create_pool(router, zmq_context, settings), st, fail);
    TRY_GOTO(create_placement(router, settings, redis_password), st, fail);
    TRY_GOTO(loop_timer_create(loop, TICK_MS, true, on_tick, router, &router->tick_timer), st, fail);
    TRY_GOTO(loop_hook_create(loop, on_turn_end, router, &router->hook), st, fail);
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
