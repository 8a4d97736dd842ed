/* The life of a call on the background thread: sent, answered, sent again, ended. The drawing and the invariants are in
 * client_internal.h. */
#include "proto/client_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/log.h"
#include "common/loop.h"
#include "proto/client_link.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "columns of the wire are little-endian and are handed out without conversion"
#endif

#define RESENDS_MAX 8u /* requests for the body of one call, before it ends */

/* ---- calls ---- */

void call_unref(struct client_call *call)
{
    if (atomic_fetch_sub(&call->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&call->lock);
    pthread_cond_destroy(&call->ended_signal);
    free(call->body);
    free(call);
}

static void call_acknowledge(struct client_call *call)
{
    if (call->state != CALL_SENT || call->acknowledged)
        return;
    call->acknowledged = true;
    call->router->unacknowledged -= call->body_size;
    client_link_set_busy(call->router->link, call->router->unacknowledged > 0);
    call->client->dispatch_wanted = true;
}

/* Takes the call out of the list or table that its state names. */
static void call_detach(struct client_call *call)
{
    struct client *client = call->client;
    if (call->state == CALL_WAITING) {
        DL_DELETE(client->waiting, call);
    } else if (call->state == CALL_SENT) {
        call_acknowledge(call);
        call->router->stream_count--;
        call->router = NULL;
        HASH_DEL(client->sent, call);
        client->dispatch_wanted = true;
    }
    call->state = CALL_NEW;
}

static void call_end(struct client_call *call, const struct client_end *end)
{
    call_detach(call);
    call->state = CALL_ENDED;
    if (call->callbacks.on_end)
        call->callbacks.on_end(call->user, call, end);
    pthread_mutex_lock(&call->lock);
    call->ended = true;
    call->error = end->error;
    pthread_cond_broadcast(&call->ended_signal);
    pthread_mutex_unlock(&call->lock);
    call_unref(call);
}

void call_end_error(struct client_call *call, enum wire_error_code code, const char *detail)
{
    struct client_end end = {.error = code, .detail = detail, .worker = "", .route = ""};
    call_end(call, &end);
}

static void call_wait_again(struct client_call *call)
{
    struct client *client = call->client;
    call_detach(call);
    call->state = CALL_WAITING;
    DL_PREPEND(client->waiting, call);
    client->dispatch_wanted = true;
}

void call_send_cancel(struct client_call *call)
{
    struct wire_message message = {.kind = WIRE_CANCEL};
    if (call->state != CALL_SENT)
        return;
    message.cancel = (struct wire_cancel){
        .request_id = wire_span_of(call->request_id, WIRE_ID_BYTES),
        .tenant = wire_span_str(call->client->tenant),
        .conversation = wire_span_str(call->conversation),
        .session = wire_span_of(call->client->session, WIRE_ID_BYTES),
    };
    (void)client_link_send_control(call->router->link, &message); /* lost with the link: then the lease ends the work */
}

/* The router's tokens cannot be used (any more): stop the work there and end the call here. */
static void call_abandon(struct client_call *call, const char *detail)
{
    call_send_cancel(call);
    call_end_error(call, WIRE_ERROR_INTERNAL, detail);
}

/* ---- sending ---- */

/* False: it has to wait. The call may have ended. */
static bool call_send(struct client_call *call, struct router *router, uint64_t now_ms)
{
    struct client *client = call->client;
    const struct wire_limits *limits = client_link_limits(router->link);
    if (call->body_size > limits->body_bytes_max || call->message_count > limits->messages_max ||
        call->prompt_ids > limits->prompt_tokens_max) {
        char detail[160];
        snprintf(detail, sizeof detail, "%zu bytes, %u messages, %zu prompt ids; the router takes %llu, %u, %u",
                 call->body_size, call->message_count, call->prompt_ids, (unsigned long long)limits->body_bytes_max,
                 limits->messages_max, limits->prompt_tokens_max);
        call_end_error(call, WIRE_ERROR_TOO_LARGE, detail);
        return true;
    }
    bool room =
        router->unacknowledged == 0 || router->unacknowledged + call->body_size <= limits->unacknowledged_bytes_max;
    if (!room || router->stream_count >= limits->streams_max)
        return false;
    if (++client->last_stream == 0)
        client->last_stream = 1;
    struct client_call *taken;
    HASH_FIND(hh, client->sent, &client->last_stream, sizeof client->last_stream, taken);
    if (taken) /* after 2^32 attempts, and still open: the next one is free soon */
        return false;
    uint64_t spent_ms = call_age_ms(call, now_ms);
    struct wire_message head = {.kind = WIRE_HEAD};
    head.head = (struct wire_head){
        .request_id = wire_span_of(call->request_id, WIRE_ID_BYTES),
        .session = wire_span_of(client->session, WIRE_ID_BYTES),
        .stream = client->last_stream,
        .tenant = wire_span_str(client->tenant),
        .conversation = wire_span_str(call->conversation),
        .model = wire_span_str(call->model),
        .deadline_ms = spent_ms < call->deadline_ms ? (uint32_t)(call->deadline_ms - spent_ms) : 1,
        .priority = call->priority,
        .attempt = {call->attempt_client + 1, 0},
        .seed = call->seed,
        .seed_given = call->seed_given,
        .body_bytes = (uint32_t)call->body_size,
    };
    call->stream = client->last_stream;
    HASH_ADD(hh, client->sent, stream, sizeof call->stream, call);
    if (!call->hh.tbl) /* no memory */
        return false;
    if (client_link_send_request(router->link, &head, call->body, call->body_size) != STATUS_OK) {
        HASH_DEL(client->sent, call);
        return false;
    }
    DL_DELETE(client->waiting, call);
    call->state = CALL_SENT;
    call->attempt_client++;
    call->attempt_router = 0;
    call->acknowledged = false;
    call->router = router;
    router->stream_count++;
    router->unacknowledged += call->body_size;
    client_link_set_busy(router->link, true);
    return true;
}

static struct router *choose_router(struct client *client)
{
    for (unsigned i = 0; i < client->router_count; i++)
        if (client_link_ready(client->routers[i].link) && !client->routers[i].draining)
            return &client->routers[i];
    return NULL;
}

/* In order of arrival: a call that has to wait for the grant is not passed by a smaller one. */
void calls_dispatch(struct client *client)
{
    client->dispatch_wanted = false;
    while (client->waiting) {
        struct router *router = choose_router(client);
        if (!router || !call_send(client->waiting, router, loop_now_ms(client->loop)))
            return;
    }
}

/* ---- what routers say ---- */

void calls_on_dropped(void *user)
{
    struct client *client = user;
    atomic_fetch_add(&client->dropped, 1);
}

/* The call that a message is about; NULL if it is stale, forged or from another router. */
static struct client_call *find_call_quietly(struct client *client, const struct router *router, uint32_t stream,
                                             struct wire_attempt attempt, struct wire_span request_id)
{
    struct client_call *call;
    HASH_FIND(hh, client->sent, &stream, sizeof stream, call);
    bool good = call && call->router == router && attempt.client == call->attempt_client &&
                (!request_id.data ||
                 (request_id.size == WIRE_ID_BYTES && memcmp(request_id.data, call->request_id, WIRE_ID_BYTES) == 0));
    return good ? call : NULL;
}

/* The same, and counted: what is sent in order on the data connection has a call, unless something is wrong. */
static struct client_call *find_call(struct client *client, const struct router *router, uint32_t stream,
                                     struct wire_attempt attempt, struct wire_span request_id)
{
    struct client_call *call = find_call_quietly(client, router, stream, attempt, request_id);
    if (!call)
        calls_on_dropped(client);
    return call;
}

/* Copies a column of 4-byte values to *at and moves that on. */
static const uint32_t *copy_column(struct wire_span column, uint32_t **at)
{
    uint32_t *copy = *at;
    if (column.size > 0)
        memcpy(copy, column.data, column.size);
    *at += column.size / 4;
    return copy;
}

static void call_hand_out(struct client_call *call, const struct wire_tokens_row *row)
{
    uint32_t *at = call->client->columns;
    struct client_tokens tokens = {
        .choice = row->choice,
        .first = row->first,
        .ids = copy_column(row->ids, &at),
        .count = row->count,
        .text = row->text.size ? (const char *)row->text.data : "",
        .text_size = row->text.size,
    };
    if (row->logprobs.size > 0)
        tokens.logprobs = (const float *)copy_column(row->logprobs, &at);
    if (row->alternative_ids.size > 0) {
        tokens.alternatives = row->alternatives;
        tokens.alternative_ids = copy_column(row->alternative_ids, &at);
        tokens.alternative_logprobs = (const float *)copy_column(row->alternative_logprobs, &at);
    }
    if (row->choice == WIRE_CHOICE_PROMPT) {
        tokens.choice = 0;
        if (call->callbacks.on_prompt)
            call->callbacks.on_prompt(call->user, call, &tokens);
    } else if (call->callbacks.on_tokens) {
        call->callbacks.on_tokens(call->user, call, &tokens);
    }
}

static void on_row(struct client *client, struct router *router, const struct wire_tokens_row *row)
{
    struct client_call *call = find_call(client, router, row->stream, row->attempt, wire_span_of(NULL, 0));
    if (!call)
        return;
    if (row->attempt.router < call->attempt_router || row->first + row->count < row->first) {
        calls_on_dropped(client);
        return;
    }
    call->attempt_router = row->attempt.router;
    bool prompt = row->choice == WIRE_CHOICE_PROMPT;
    if (prompt ? !call->prompt_logprobs : row->choice >= call->choices) {
        call_abandon(call, "tokens came of a choice that was not asked for");
        return;
    }
    uint32_t *released = &call->released[row->choice];
    bool last = row->count == 0 && row->text.size > 0, ended = call->choices_ended & 1u << row->choice;
    if ((row->first < *released && row->first + row->count <= *released) ||
        (row->first == *released && last && ended)) {
        calls_on_dropped(client); /* a repeat */
        return;
    }
    if (row->first != *released || (ended && row->count > 0)) {
        char detail[128];
        snprintf(detail, sizeof detail, "%s %u: tokens from %u came, from %u were due", prompt ? "prompt" : "choice",
                 prompt ? 0u : row->choice, row->first, *released);
        call_abandon(call, detail);
        return;
    }
    call_acknowledge(call); /* who answers has it */
    if (row->count == 0 && !last)
        return;
    call->choices_ended |= last ? 1u << row->choice : 0;
    *released += row->count;
    call->released_total += prompt ? 0 : row->count;
    call_hand_out(call, row);
}

/* Copies a span of at most size - 1 bytes as a C string. */
static const char *text_of(struct wire_span span, char *buffer, size_t size)
{
    size_t used = span.size < size ? span.size : size - 1;
    if (used > 0)
        memcpy(buffer, span.data, used);
    buffer[used] = '\0';
    return buffer;
}

/* Whether everything that DONE speaks of has arrived. False: *detail says what is missing. */
static bool call_is_complete(const struct client_call *call, const struct wire_done *done, char *detail, size_t size)
{
    uint32_t prompt = call->released[WIRE_CHOICE_PROMPT];
    if (done->released != call->released_total)
        snprintf(detail, size, "%u tokens were released and %llu arrived", done->released,
                 (unsigned long long)call->released_total);
    else if (done->finish.size != call->choices)
        snprintf(detail, size, "%zu choices ended, %u were asked for", done->finish.size, call->choices);
    else if (call->prompt_logprobs && prompt + (done->prompt_tokens > 0) != done->prompt_tokens)
        snprintf(detail, size, "the prompt has %u tokens and log probabilities of %u arrived", done->prompt_tokens,
                 prompt);
    else
        return true;
    return false;
}

static void on_done(struct client *client, struct router *router, const struct wire_done *done)
{
    char worker[WIRE_NAME_MAX + 1], route[WIRE_NAME_MAX + 1], detail[128];
    struct client_call *call = find_call(client, router, done->stream, done->attempt, done->request_id);
    if (!call)
        return;
    struct client_end end = {
        .detail = "",
        .prompt_tokens = done->prompt_tokens,
        .cached_tokens = done->cached_tokens,
        .reply_tokens = done->reply_tokens,
        .dropped_messages = done->dropped_messages,
        .queue_us = done->queue_us,
        .prefill_us = done->prefill_us,
        .decode_us = done->decode_us,
        .route_us = done->route_us,
        .worker = text_of(done->worker, worker, sizeof worker),
        .route = text_of(done->route, route, sizeof route),
        .inexact = done->inexact,
    };
    if (!call_is_complete(call, done, detail, sizeof detail)) {
        end.error = WIRE_ERROR_INTERNAL;
        end.detail = detail;
    } else {
        end.choices = call->choices;
        for (unsigned i = 0; i < end.choices; i++)
            if (done->finish.data[i] <= WIRE_FINISH_STOP_STRING) /* a younger one reads as unknown */
                end.finishes[i] = (enum wire_finish)done->finish.data[i];
        end.finish = end.finishes[0];
    }
    call_end(call, &end);
}

static void on_error(struct client *client, struct router *router, const struct wire_error *error)
{
    char detail[WIRE_DETAIL_MAX + 1];
    struct client_call *call = find_call(client, router, error->stream, error->attempt, error->request_id);
    if (!call)
        return;
    struct client_end end = {
        .error = error->code,
        .detail = text_of(error->detail, detail, sizeof detail),
        .retry_after_ms = error->retry_after_ms,
        .worker = "",
        .route = "",
    };
    call_end(call, &end);
}

/* Comes by the control connection, so a short reply may have ended before it. */
static void on_ack(struct client *client, struct router *router, const struct wire_stream_ref *ref)
{
    struct client_call *call = find_call_quietly(client, router, ref->stream, ref->attempt, ref->request_id);
    if (call)
        call_acknowledge(call);
}

static void on_stream_ref(struct client *client, struct router *router, enum wire_kind kind,
                          const struct wire_stream_ref *ref)
{
    struct client_call *call = find_call(client, router, ref->stream, ref->attempt, ref->request_id);
    if (!call)
        return;
    if (kind != WIRE_RESEND)
        call_abandon(call, "the router answered with something that this version of the client does not handle");
    else if (call->cancelled)
        call_end_error(call, WIRE_ERROR_CANCELLED, "cancelled");
    else if (call->released_total > 0)
        call_end_error(call, WIRE_ERROR_WORKER_LOST, "the worker was lost after tokens were released");
    else if (++call->resends > RESENDS_MAX)
        call_end_error(call, WIRE_ERROR_INTERNAL, "the router asked for the request again and again");
    else
        call_wait_again(call);
}

/* SUPERSEDED names no stream. */
static void on_superseded(struct client *client, struct router *router, const struct wire_stream_ref *ref)
{
    struct client_call *call, *next;
    HASH_ITER(hh, client->sent, call, next)
    {
        if (call->router == router && memcmp(call->request_id, ref->request_id.data, WIRE_ID_BYTES) == 0 &&
            ref->attempt.client == call->attempt_client) {
            call_end_error(call, WIRE_ERROR_CONFLICT, "another connection took the request over");
            return;
        }
    }
    calls_on_dropped(client);
}

static struct router *router_of(struct client *client, const struct client_link *link)
{
    for (unsigned i = 0; i < client->router_count; i++)
        if (client->routers[i].link == link)
            return &client->routers[i];
    return NULL;
}

void calls_on_message(void *user, struct client_link *link, const struct wire_message *message)
{
    struct client *client = user;
    struct router *router = router_of(client, link);
    switch (message->kind) {
    case WIRE_TOKENS: {
        struct wire_tokens_cursor cursor = {0};
        struct wire_tokens_row row;
        while (wire_tokens_next(&message->tokens, &cursor, &row))
            on_row(client, router, &row);
        break;
    }
    case WIRE_DONE: on_done(client, router, &message->done); break;
    case WIRE_ERROR: on_error(client, router, &message->error); break;
    case WIRE_ACK: on_ack(client, router, &message->stream_ref); break;
    case WIRE_RESEND:
    case WIRE_NEED_HISTORY:
    case WIRE_WRONG_OWNER: on_stream_ref(client, router, message->kind, &message->stream_ref); break;
    case WIRE_SUPERSEDED: on_superseded(client, router, &message->stream_ref); break;
    case WIRE_GOAWAY: router->draining = true; break;
    default: calls_on_dropped(client); break;
    }
}

void calls_on_ready(void *user, struct client_link *link)
{
    struct client *client = user;
    router_of(client, link)->draining = false;
    pthread_mutex_lock(&client->lock);
    client->limits = *client_link_limits(link);
    pthread_mutex_unlock(&client->lock);
    client->dispatch_wanted = true;
}

void calls_on_lost(void *user, struct client_link *link)
{
    struct client *client = user;
    struct router *router = router_of(client, link);
    struct client_call *call, *next;
    LOG_DEBUG("router lost: %s", client_link_trouble(link));
    HASH_ITER(hh, client->sent, call, next)
    {
        if (call->router != router)
            continue;
        if (call->cancelled)
            call_end_error(call, WIRE_ERROR_CANCELLED, "cancelled");
        else if (call->released_total > 0)
            call_end_error(call, WIRE_ERROR_WORKER_LOST, client_link_trouble(link));
        else
            call_wait_again(call);
    }
    client->dispatch_wanted = true;
}
