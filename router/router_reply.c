/* router_reply.c - what comes from workers, and what it does to the request that it is about.
 *
 *   on_worker_message -> find_request --of an older attempt, or unknown--> dropped and counted
 *        |-- on_ack --------> accept: the client gets its ACK and its bytes back, and another ACK where the numerics are
 *        |                    others; started: it may be blamed
 *        |-- on_tokens -----> pass_row: the next in sequence, under the client's number --> frontend_tokens
 *        |-- on_done -------> request_end (router_request.c): DONE with route and epoch
 *        |-- on_error ------> over capacity: try_next -> request_route (router_route.c); else request_end
 *        |-- on_stream_ref -> WRONG_OWNER: try_next; RESEND: request_given_up; NEED_HISTORY: request_end
 *        |-- on_superseded -> a newer attempt has it, through another router: request_end
 *        `-- router_attach_reply (router_attach.c)
 *   on_worker_lost -> request_lost --blamed twice, too many, or its body is gone--> the end of the request
 *                          `--else, with the tokens that its client has--> request_wait (router_dispatch.c)
 *   on_worker_relinked -> grants again, and what was not acknowledged; request_ask_again for the rest
 *
 * Borrows everything from struct router (router_internal.h); owns nothing. Loop thread only. Always true:
 *   1. a message changes a request only if it names the worker, stream and attempt that the request was last sent by;
 *   2. tokens of a choice, and of the prompt, reach the client in sequence, each once, whichever workers they come
 * from; a gap ends the request;
 *   3. a worker that refuses a request is left only if it has released none of its tokens. */
#include "router/router_internal.h"
#include <inttypes.h>
#include <string.h>
#include "common/log.h"
#include "common/probe.h"

enum {
    REFUSED_AGAIN_MS_MIN =
        50, /* a moved request that everybody refuses: tried again after what they say, in these bounds */
    REFUSED_AGAIN_MS_MAX = 500,
};

/* Those that a worker has. */
static const enum request_state with_worker[] = {REQUEST_SENT, REQUEST_ACCEPTED, REQUEST_STREAMING, REQUEST_CANCELLING};
enum { WITH_WORKER = sizeof with_worker / sizeof with_worker[0] };

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

/* Since its client was told what a resume has to ask for: it moved to a worker with others. */
static bool numerics_changed(const struct request *request)
{
    struct wire_span numerics = worker_numerics_id(request->worker);
    return request->state == REQUEST_SENT && numerics.size == REQUEST_NUMERICS_BYTES &&
           memcmp(request->numerics_told, numerics.data, REQUEST_NUMERICS_BYTES) != 0;
}

/* Its worker answers for it. */
static void accept(struct router *router, struct request *request)
{
    if (request->sent_unacknowledged) {
        request->sent_unacknowledged = false;
        worker_body_acknowledged(request->worker, request->body_bytes);
        inflight_acknowledged(router->inflight, request);
        router->retry_waiting = true;
    }
    if (!request->body_acknowledged || numerics_changed(request)) {
        struct wire_span numerics = worker_numerics_id(request->worker);
        frontend_ack(request->session, &(struct wire_stream_ref){.request_id = request_id_span(request),
                                                                 .stream = request->stream_key.stream,
                                                                 .attempt = request_client_attempt(request),
                                                                 .numerics_id = numerics});
        if (numerics.size == REQUEST_NUMERICS_BYTES)
            memcpy(request->numerics_told, numerics.data, REQUEST_NUMERICS_BYTES);
    }
    if (!request->body_acknowledged)
        request_acknowledge_body(request);
    if (request->state == REQUEST_SENT)
        inflight_move(router->inflight, request, REQUEST_ACCEPTED);
}

static void on_ack(struct router *router, struct worker *worker, const struct wire_stream_ref *ack)
{
    struct request *request = find_request(router, worker, ack->stream, ack->attempt, ack->request_id);
    if (!request)
        return;
    accept(router, request);
    request->started |= ack->started;
    request_note_cache(router, request, ack->cache_id);
}

/* Tokens that the worker has computed are about to be its client's. */
static void note_progress(struct router *router, struct request *request, const struct wire_tokens_row *row)
{
    struct wire_span numerics = worker_numerics_id(request->worker);
    if ((!request->has_numerics || request->inexact) && numerics.size == REQUEST_NUMERICS_BYTES) {
        memcpy(request->numerics_id, numerics.data, REQUEST_NUMERICS_BYTES);
        request->has_numerics = true;
    }
    request->released += row->count;
    inflight_keep_ids(router->inflight, request, row->choice, row->ids);
    if (request->state == REQUEST_ACCEPTED)
        inflight_move(router->inflight, request, REQUEST_STREAMING);
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
    if (row->choice < WIRE_CHOICES_MAX &&
        row->count > 0) /* what is known of the prompt can be computed again anywhere */
        note_progress(router, request, row);
    row->stream = request->stream_key.stream;
    row->attempt = request_client_attempt(request);
    frontend_tokens(request->session, row);
    return true;
}

static void on_tokens(struct router *router, struct worker *worker, const struct wire_tokens *tokens)
{
    struct wire_tokens_cursor cursor = {0};
    struct wire_tokens_row row;
    (void)PROBE("router.tokens");
    while (wire_tokens_next(tokens, &cursor, &row)) {
        struct request *request = find_request(router, worker, row.stream, row.attempt, wire_span_of(NULL, 0));
        if (!request || request->state == REQUEST_CANCELLING || pass_row(router, request, &row))
            continue;
        LOG_WARN("worker %s skipped tokens of a stream", worker_name(worker));
        worker_fault(worker, request->backend_stream, "it skipped tokens of a stream");
        request_fail(router, request, WIRE_ERROR_INTERNAL, "the worker skipped tokens", 0);
    }
}

/* What its record promised beside what its worker found. */
static void count_done(struct router *router, const struct request *request, const struct wire_done *done)
{
    bool home = request->has_record && strcmp(request->record.owner, worker_name(request->worker)) == 0;
    uint64_t held = home ? request->record.tokens : 0;
    router->stats.done++;
    router->stats.prompt_tokens += done->prompt_tokens;
    router->stats.cached_tokens += done->cached_tokens;
    router->stats.expected_tokens += held < done->prompt_tokens ? held : done->prompt_tokens;
}

static void on_done(struct router *router, struct worker *worker, struct wire_done *done)
{
    struct request *request = find_request(router, worker, done->stream, done->attempt, done->request_id);
    if (!request)
        return;
    if (done->released != request->released && request->state != REQUEST_CANCELLING) {
        LOG_WARN("worker %s released %" PRIu32 " tokens, %" PRIu64 " came", worker_name(worker), done->released,
                 request->released);
        worker_fault(worker, request->backend_stream, "its tokens did not all come");
        request_fail(router, request, WIRE_ERROR_INTERNAL, "tokens of the reply were lost between worker and router",
                     0);
        return;
    }
    if (request->state == REQUEST_CANCELLING) { /* it ended first; its last tokens were not passed on */
        request_fail(router, request, WIRE_ERROR_CANCELLED, "cancelled", 0);
        return;
    }
    (void)PROBE("router.done");
    worker_success(worker, request->backend_stream);
    request_note_cache(router, request, done->cache_id);
    count_done(router, request, done);
    struct wire_message message = {.kind = WIRE_DONE, .done = *done};
    message.done.request_id = request_id_span(request);
    message.done.stream = request->stream_key.stream;
    message.done.attempt = request_client_attempt(request);
    message.done.worker = wire_span_str(worker_name(worker));
    message.done.route = wire_span_str(policy_reason_name(request->reason));
    message.done.route_us = request->route_us;
    message.done.epoch = request->has_record ? request->record.epoch : 0;
    message.done.inexact = done->inexact || request->inexact;
    request_end(router, request, &message);
}

/* It has released nothing here, so another worker may have it: is there one, and budget? Then it goes there. */
static bool try_next(struct router *router, struct request *request)
{
    if (request->released > request->released_before || request->state == REQUEST_CANCELLING || request->shed ||
        request->refusals >= REQUEST_REFUSALS_MAX || router->retry_budget < 1)
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

/* Who lost its worker, or its router and has tokens, is not turned away as long as its deadline. */
static bool wait_refused(struct router *router, struct request *request, uint32_t retry_after_ms)
{
    if ((request->moves == 0 && request->released == 0) || request->released > request->released_before ||
        request->shed || request->state == REQUEST_CANCELLING)
        return false;
    request->refusals = 0;
    request_leave_worker(router, request);
    request_wait_for(router, request,
                     retry_after_ms < REFUSED_AGAIN_MS_MIN   ? REFUSED_AGAIN_MS_MIN
                     : retry_after_ms > REFUSED_AGAIN_MS_MAX ? REFUSED_AGAIN_MS_MAX
                                                             : retry_after_ms);
    return true;
}

/* A worker of the first release ends with CANCELLED what it ran when no lease of ours reached it for long: no cancel
 * comes to it by another router. Later ones say RESEND, and CANCELLED only if somebody asked for it: the client,
 * through whichever router. */
static bool gave_up(const struct request *request, const struct wire_error *error)
{
    return error->code == WIRE_ERROR_CANCELLED && !(worker_capabilities(request->worker) & WIRE_CAN_ATTACH) &&
           (request->state == REQUEST_ACCEPTED || request->state == REQUEST_STREAMING);
}

static void on_error(struct router *router, struct worker *worker, const struct wire_error *error)
{
    struct request *request = find_request(router, worker, error->stream, error->attempt, error->request_id);
    if (!request)
        return;
    if (error->code == WIRE_ERROR_OVER_CAPACITY &&
        (try_next(router, request) || wait_refused(router, request, error->retry_after_ms)))
        return;
    if (error->code == WIRE_ERROR_NOT_EXACT && try_next(router, request))
        return;
    if (gave_up(request, error)) {
        request_given_up(router, request);
        return;
    }
    if (error->code == WIRE_ERROR_INTERNAL)
        worker_fault(worker, request->backend_stream, "it answered with an internal error");
    router->stats.not_exact += error->code == WIRE_ERROR_NOT_EXACT;
    router->stats.errors[error->code]++;
    struct wire_message message = {.kind = WIRE_ERROR, .error = *error};
    message.error.request_id = request_id_span(request);
    message.error.stream = request->stream_key.stream;
    message.error.attempt = request_client_attempt(request);
    request_end(router, request, &message);
}

/* WRONG_OWNER says that the process there is not the one we meant, RESEND that it has given the request up because no
 * lease of ours reached it. NEED_HISTORY is for the client library. */
static void on_stream_ref(struct router *router, struct worker *worker, enum wire_kind kind,
                          const struct wire_stream_ref *ref)
{
    struct request *request = find_request(router, worker, ref->stream, ref->attempt, ref->request_id);
    if (!request)
        return;
    if (kind == WIRE_WRONG_OWNER) {
        if (!try_next(router, request) && !wait_refused(router, request, ROUTER_BUSY_HINT_MS))
            request_fail(router, request, WIRE_ERROR_OVER_CAPACITY, "the worker was started again meanwhile",
                         ROUTER_BUSY_HINT_MS);
        return;
    }
    if (kind == WIRE_RESEND) {
        request_given_up(router, request);
        return;
    }
    struct wire_message message = {.kind = kind, .stream_ref = *ref};
    message.stream_ref.request_id = request_id_span(request);
    message.stream_ref.stream = request->stream_key.stream;
    message.stream_ref.attempt = request_client_attempt(request);
    request_end(router, request, &message);
}

/* The client went on with it through another router: this copy ends. Its client knows newer attempts by now, and drops
 * what it hears of this one. */
static void on_superseded(struct router *router, struct worker *worker, const struct wire_stream_ref *ref)
{
    for (unsigned i = 0; i < WITH_WORKER; i++) {
        struct request *request = inflight_first(router->inflight, with_worker[i]);
        while (request) {
            struct request *next = inflight_next(request);
            if (request->worker == worker && attempt_equal(request->sent, ref->attempt) &&
                wire_span_equal(request_id_span(request), ref->request_id)) {
                router->stats.superseded++;
                request_leave_worker(router, request); /* it is not ours to cancel there */
                request_fail(router, request, WIRE_ERROR_CONFLICT, "it goes on through another router", 0);
                return;
            }
            request = next;
        }
    }
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
    case WIRE_SUPERSEDED: on_superseded(router, worker, &message->stream_ref); break;
    case WIRE_ATTACH_REPLY: router_attach_reply(router, worker, &message->attach_reply); break;
    case WIRE_NEED_HISTORY:
    case WIRE_RESEND:
    case WIRE_WRONG_OWNER: on_stream_ref(router, worker, message->kind, &message->stream_ref); break;
    default: break;
    }
}

/* ---- losses ---- */

/* Did the worker die of it? Not of one that it had not begun, nor of one that made progress. Workers of the first
 * release do not tell what they have begun. */
static bool is_to_blame(const struct request *request)
{
    bool told = worker_capabilities(request->worker) & WIRE_CAN_TELL_START;
    return request->released == request->released_before && (request->started || !told);
}

/* Whoever had it has it no more: it goes on elsewhere, or ends. */
static void move_on(struct router *router, struct request *request)
{
    bool cancelling = request->state == REQUEST_CANCELLING;
    request->moves++;
    request->refusals = 0;
    request_leave_worker(router, request);
    if (cancelling) {
        request_fail(router, request, WIRE_ERROR_CANCELLED, "cancelled", 0);
    } else if (request->loss_count >= REQUEST_LOSSES_MAX) {
        router->stats.poisoned++;
        LOG_WARN("%u workers were lost while they ran this request: it is not tried again", request->loss_count);
        request_fail(router, request, WIRE_ERROR_WORKER_LOST, "two workers were lost while they ran this request", 0);
    } else if (request->moves > REQUEST_MOVES_MAX) {
        request_fail(router, request, WIRE_ERROR_WORKER_LOST, "its worker was lost more often than a request may move",
                     0);
    } else if (request->shed) {
        request_resend(router, request);
    } else {
        request_wait(router, request); /* routed at the end of this turn, when every loss of it is known */
    }
    router->retry_waiting = true;
}

/* The worker is gone, and with it what it had not released. */
static void request_lost(struct router *router, struct request *request)
{
    router->stats.losses++;
    if (is_to_blame(request))
        request->loss_count++;
    request_cancel_at_worker(request); /* if it is only silent: nobody waits for this any more */
    move_on(router, request);
}

void request_given_up(struct router *router, struct request *request)
{
    router->stats.given_up++;
    LOG_DEBUG("worker %s has given it up", worker_name(request->worker));
    move_on(router, request);
}

/* What it had not acknowledged may never have come: sent again, as a newer attempt. Is the rest still there? The link
 * may have been down, or this process frozen, for longer than a worker keeps what nobody asks for. */
static void request_relinked(struct router *router, struct request *request)
{
    struct worker *worker = request->worker;
    if (request->state == REQUEST_CANCELLING) {
        return; /* its cancel is sent again, like those of requests that have ended */
    } else if (request->state == REQUEST_SENT) {
        request_leave_worker(router, request);
        if (request_dispatch(router, request, worker, request->reason) != STATUS_OK)
            request_wait(router, request);
    } else {
        worker_grant(worker, request->backend_stream, request->granted, true);
        request_ask_again(request);
    }
}

static void each_of_worker(struct router *router, const struct worker *worker,
                           void (*fn)(struct router *router, struct request *request))
{
    for (unsigned i = 0; i < WITH_WORKER; i++) {
        struct request *request = inflight_first(router->inflight, with_worker[i]);
        unsigned left = inflight_count_in(router->inflight, with_worker[i]); /* who comes back goes to the end */
        while (request && left-- > 0) {
            struct request *next = inflight_next(request);
            if (request->worker == worker) {
                log_request_scope(request->id_key.id);
                fn(router, request);
            }
            request = next;
        }
    }
    log_request_scope(NULL);
}

static void on_worker_lost(void *user, struct worker *worker)
{
    each_of_worker(user, worker, request_lost);
}

static void on_worker_relinked(void *user, struct worker *worker)
{
    each_of_worker(user, worker, request_relinked);
}

struct worker_pool_events router_worker_events(struct router *router)
{
    return (struct worker_pool_events){.on_ready = on_worker_ready,
                                       .on_lost = on_worker_lost,
                                       .on_relinked = on_worker_relinked,
                                       .on_message = on_worker_message,
                                       .user = router};
}
