/* What routers say about calls: tokens, terminals, acknowledgements. An answer of an older attempt finds no call. */
#include "proto/client_internal.h"
#include <stdio.h>
#include <string.h>
#include "proto/client_link.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "columns of the wire are little-endian and are handed out without conversion"
#endif

#define RESENDS_MAX 8u /* requests for the body of one call, before it ends */

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
    call->losses = 0;
    call->choices_ended |= last ? 1u << row->choice : 0;
    if (!prompt)
        call_keep_ids(call, row->choice, row->ids);
    *released += row->count;
    call->released_total += prompt ? 0 : row->count;
    call_hand_out(call, row);
    call_grant(call);
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
        .inexact = done->inexact || call->inexact,
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

/* Its GOAWAY goes by the other connection and may come later; the detail is part of the protocol. */
static bool refused_while_draining(const struct client_call *call, const struct wire_error *error)
{
    static const char word[] = "draining";
    return error->code == WIRE_ERROR_OVER_CAPACITY && !call->acknowledged &&
           (call->router->draining ||
            (error->detail.size >= sizeof word - 1 && memcmp(error->detail.data, word, sizeof word - 1) == 0));
}

static void on_error(struct client *client, struct router *router, const struct wire_error *error)
{
    char detail[WIRE_DETAIL_MAX + 1];
    struct client_call *call = find_call(client, router, error->stream, error->attempt, error->request_id);
    if (!call)
        return;
    if (refused_while_draining(call, error)) {
        calls_on_goaway(client, router);
        call_move(call, "every router is draining");
        return;
    }
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
    if (!call)
        return;
    call_keep_numerics(call, ref->numerics_id);
    call_acknowledge(call);
    if (call->released_total > 0)
        call_grant_anew(call); /* what was granted when it was sent may have come before it */
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
    else if (++call->resends > RESENDS_MAX)
        call_end_error(call, WIRE_ERROR_INTERNAL, "the router asked for the request again and again");
    else
        call_resend(call);
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

struct router *router_of(struct client *client, const struct client_link *link)
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
    case WIRE_GOAWAY: calls_on_goaway(client, router); break;
    default: calls_on_dropped(client); break;
    }
}
