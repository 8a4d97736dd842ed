/* router_reply.c - what comes from workers, and what it does to the request that it is about.
 *
 *   on_worker_message -> find_request --of an older attempt, or unknown--> dropped and counted
 *        |-- on_ack --------> accept: the client gets its ACK and its bytes back
 *        |-- on_tokens -----> pass_row: the next in sequence, under the client's number --> frontend_tokens
 *        |-- on_done -------> request_end (router_request.c): DONE with route and epoch
 *        |-- on_error ------> over capacity: try_next -> request_route (router_route.c); else request_end
 *        `-- on_stream_ref -> WRONG_OWNER: try_next; NEED_HISTORY, RESEND: request_end
 *   on_worker_lost -> request_lost --tokens are out, or two losses--> request_fail (router_request.c)
 *                          `--nothing is out--> request_wait (router_route.c)
 *
 * Borrows everything from struct router (router_internal.h); owns nothing. Loop thread only. Always true:
 *   1. a message changes a request only if it names the worker, stream and attempt that the request was last sent by;
 *   2. tokens of a choice, and of the prompt, reach the client in sequence, each once; a gap ends the request;
 *   3. a request goes to another worker only while none of its tokens has been released (what is known of its prompt may have been). */
#include "router/router_internal.h"
#include <inttypes.h>
#include "common/log.h"

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
    if (request && attempt_equal(request->sent, attempt) &&
        (id.size == 0 || wire_span_equal(id, request_id_span(request))))
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
        request_acknowledge_body(request);
        frontend_ack(request->session, &(struct wire_stream_ref){.request_id = request_id_span(request),
                                                                 .stream = request->stream_key.stream,
                                                                 .attempt = request_client_attempt(request)});
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
    uint32_t *next = &request->next[row->choice];
    bool last = row->count == 0 && row->text.size > 0, ended = request->ended & 1u << row->choice;
    if ((row->first < *next && row->count <= *next - row->first) || (row->first == *next && last && ended)) {
        router->stats.stale++; /* a repeat */
        return true;
    }
    if (row->first != *next || row->count > UINT32_MAX - *next || ended)
        return false;
    if (row->count == 0 && !last)
        return true;
    request->ended |= last ? 1u << row->choice : 0;
    *next += row->count;
    accept(router, request);
    if (row->choice < WIRE_CHOICES_MAX) /* what is known of the prompt can be computed again anywhere */
        request->released += row->count;
    if (request->released > 0 && request->state == REQUEST_ACCEPTED)
        inflight_move(router->inflight, request, REQUEST_STREAMING);
    row->stream = request->stream_key.stream;
    row->attempt = request_client_attempt(request);
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
    message.done.request_id = request_id_span(request);
    message.done.stream = request->stream_key.stream;
    message.done.attempt = request_client_attempt(request);
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
    message.error.request_id = request_id_span(request);
    message.error.stream = request->stream_key.stream;
    message.error.attempt = request_client_attempt(request);
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
                         ROUTER_BUSY_HINT_MS);
        return;
    }
    struct wire_message message = {.kind = kind, .stream_ref = *ref};
    message.stream_ref.request_id = request_id_span(request);
    message.stream_ref.stream = request->stream_key.stream;
    message.stream_ref.attempt = request_client_attempt(request);
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
    request_cancel_at_worker(request); /* if it is only silent: nobody waits for this any more */
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

struct worker_pool_events router_worker_events(struct router *router)
{
    return (struct worker_pool_events){
        .on_ready = on_worker_ready, .on_lost = on_worker_lost, .on_message = on_worker_message, .user = router};
}
