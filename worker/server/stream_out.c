/* stream_out.c - the rows of a stream: kept as they were released, sent within credit, and what comes after them. I/O
 * thread only.
 *
 * Credit: a router that can grants totals. stream->granted bounds tokens_batched, which counts from what the stream was
 * resumed with; session->credit_bytes bounds sent_bytes. Rows go whole, as whole characters do, so the last one may
 * pass the grant: by less than what an engine holds back at most, 272 tokens (CHOICE_HELD_MAX, less the one granted).
 * The bytes of a connection are never passed. Ends and acknowledgements need no credit; but DONE goes out behind the
 * last token, so it waits with it. An ERROR does not. */
#include "worker/server/server_internal.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/loop.h"
#include "common/probe.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ids are kept as the wire's columns");
static_assert(sizeof(struct stream_row) <= 20, "KEPT_TOKEN_BYTES counts 20");

#define FRAME_OVERHEAD_BYTES 64u /* of a frame of tokens, and of each row in it: wire_batch.c */
#define FRAME_ROW_BYTES      25u

/* ---- rows in ---- */

void stream_drop_rows(struct stream *stream)
{
    free(stream->bytes);
    free(stream->rows);
    stream->bytes = NULL;
    stream->rows = NULL;
    stream->bytes_capacity = stream->rows_capacity = 0;
    stream->row_count = stream->rows_sent = stream->rows_batched = 0;
    stream->tokens_sent = stream->tokens_batched = stream->resumed_tokens;
    stream->starved_ms = 0;
}

uint64_t stream_row_bytes(const struct stream *stream)
{
    return stream->bytes_capacity + (uint64_t)stream->rows_capacity * sizeof *stream->rows;
}

/* Room for `more` items after `count`; doubles. */
static bool grow(void **items, uint32_t *capacity, uint64_t count, uint64_t more, size_t item_size)
{
    uint64_t wanted = *capacity ? *capacity : 64;
    if (count + more <= *capacity)
        return true;
    while (wanted < count + more)
        wanted *= 2;
    void *grown = wanted <= UINT32_MAX ? realloc(*items, wanted * item_size) : NULL;
    if (!grown)
        return false;
    *items = grown;
    *capacity = (uint32_t)wanted;
    return true;
}

static uint8_t *put_part(uint8_t *at, const void *from, size_t size)
{
    if (size)
        memcpy(at, from, size);
    return at + size;
}

/* Keeps `count` tokens of an event, from number `at` of them on, as one row. */
static bool append_row(struct stream *stream, const struct engine_event *event, uint16_t choice, uint32_t at,
                       uint32_t count)
{
    uint32_t start = stream->row_count ? stream->rows[stream->row_count - 1].end : 0;
    uint32_t alternatives = event->alternative_ids ? event->alternatives : 0;
    size_t column = count * sizeof(uint32_t), values = column * alternatives, all = at * (size_t)alternatives;
    size_t size = column * (event->logprobs ? 2 : 1) + 2 * values + event->text_size;
    if (event->first + at != stream->due[choice] || alternatives > WIRE_ALTERNATIVES_MAX ||
        size > WIRE_TOKENS_BYTES_MAX - WIRE_BATCH_RESERVE_BYTES)
        return false;
    if (!grow((void **)&stream->bytes, &stream->bytes_capacity, start, size, 1) ||
        !grow((void **)&stream->rows, &stream->rows_capacity, stream->row_count, 1, sizeof *stream->rows))
        return false;
    uint8_t *to = put_part(stream->bytes + start, event->ids + at, column);
    if (event->logprobs)
        to = put_part(to, event->logprobs + at, column);
    if (alternatives) {
        to = put_part(to, event->alternative_ids + all, values);
        to = put_part(to, event->alternative_logprobs + all, values);
    }
    (void)put_part(to, event->text, event->text_size);
    stream->rows[stream->row_count++] = (struct stream_row){
        .end = start + (uint32_t)size,
        .first = event->first + at,
        .text_bytes = (uint32_t)event->text_size,
        .count = (uint16_t)count,
        .choice = (uint8_t)choice,
        .alternatives = (uint8_t)alternatives,
        .logprobs = event->logprobs != NULL,
    };
    stream->due[choice] += count;
    stream->session->dirty = true;
    return true;
}

bool stream_take_tokens(struct stream *stream, const struct engine_event *event)
{
    if (event->count == 0 && event->text_size == 0)
        return true;
    if (event->choice >= stream->choices || event->count > UINT16_MAX ||
        !append_row(stream, event, (uint16_t)event->choice, 0, event->count))
        return false;
    stream->released += event->count;
    return true;
}

/* In rows of one size, so that a request that ran twice repeats the same ones. */
bool stream_take_prompt(struct stream *stream, const struct engine_event *event)
{
    if (!event->logprobs || event->text_size)
        return event->count == 0;
    for (uint32_t at = 0; at < event->count; at += PROMPT_ROW_TOKENS) {
        uint32_t left = event->count - at;
        if (!append_row(stream, event, WIRE_CHOICE_PROMPT, at, left < PROMPT_ROW_TOKENS ? left : PROMPT_ROW_TOKENS))
            return false;
    }
    return true;
}

/* ---- credit ---- */

void stream_first_grant(struct stream *stream, uint64_t total)
{
    struct session *session = stream->session;
    if (!(session->capabilities & WIRE_CAN_CREDIT)) {
        stream->granted = UINT64_MAX;
        return;
    }
    stream->granted = total + STREAM_WINDOW_TOKENS;
    for (unsigned i = 0; session->early && i < EARLY_GRANTS_MAX; i++) {
        struct early_grant *early = &session->early[i];
        if (early->stream != stream->number)
            continue;
        if (early->tokens > stream->granted)
            stream->granted = early->tokens;
        early->tokens = 0;
    }
}

/* A grant on control may overtake its head on data, and is not repeated. */
static void remember_grant(struct session *session, uint32_t stream, uint64_t tokens)
{
    if (!session->early)
        session->early = calloc(EARLY_GRANTS_MAX, sizeof *session->early);
    if (!session->early)
        return;
    session->early[session->early_next++ % EARLY_GRANTS_MAX] = (struct early_grant){.stream = stream, .tokens = tokens};
}

void session_credit(struct session *session, const struct wire_lease *lease)
{
    if (!(session->capabilities & WIRE_CAN_CREDIT))
        return;
    if (lease->credit_connection_bytes != session->credit_bytes)
        session->dirty = true;
    session->credit_bytes = lease->credit_connection_bytes;
    for (size_t i = 0; i < lease->credit_streams.size / 4; i++) {
        struct stream *stream = NULL;
        uint32_t number = wire_u32_at(lease->credit_streams, i);
        uint64_t tokens = wire_u64_at(lease->credit_tokens, i);
        HASH_FIND(by_number, session->by_number, &number, sizeof number, stream);
        if (!stream)
            remember_grant(session, number, tokens);
        else if (tokens > stream->granted) {
            stream->granted = tokens;
            session->dirty = true;
        }
    }
}

/* ---- tokens out ---- */

void stream_rewind(struct stream *stream)
{
    stream->rows_sent = stream->rows_batched = 0;
    stream->tokens_sent = stream->tokens_batched = stream->resumed_tokens;
    stream->starved_ms = 0;
    if (stream->told_number)
        stream->session->told_count--;
    stream->told_number = 0;
}

static struct wire_span span_next(const uint8_t **at, size_t size)
{
    struct wire_span span = wire_span_of(*at, size);
    *at += size;
    return span;
}

static struct wire_tokens_row row_at(const struct stream *stream, uint32_t index)
{
    const struct stream_row *row = &stream->rows[index];
    const uint8_t *at = stream->bytes + (index ? stream->rows[index - 1].end : 0);
    size_t column = row->count * sizeof(uint32_t), values = column * row->alternatives;
    struct wire_tokens_row out = {
        .stream = stream->number,
        .choice = row->choice,
        .attempt = stream->attempt,
        .first = row->first,
        .count = row->count,
        .alternatives = row->alternatives,
    };
    out.ids = span_next(&at, column);
    out.logprobs = span_next(&at, row->logprobs ? column : 0);
    out.alternative_ids = span_next(&at, values);
    out.alternative_logprobs = span_next(&at, values);
    out.text = span_next(&at, row->text_bytes);
    return out;
}

/* Sends what is in the batch; on failure its rows count as not sent. */
static enum status send_batch(struct server *server, struct session *session)
{
    enum status st = STATUS_OK;
    if (!wire_batch_empty(server->batch)) {
        struct wire_span frame = wire_batch_take(server->batch);
        struct session_link *data = &session->links[LINK_DATA];
        st = frame.size ? STATUS_OK : STATUS_NO_MEMORY;
        if (PROBE("worker.tokens"))
            st = STATUS_IO;
        if (st == STATUS_OK)
            st = channel_send_bytes(server->channels[LINK_DATA], &data->peer, frame.data, frame.size);
        if (st == STATUS_CLOSED)
            session_unbind(server, session, LINK_DATA);
        if (st == STATUS_OK) {
            session->blocked_ms = 0;
            session->sent_bytes += frame.size;
        }
    }
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        if (st == STATUS_OK) {
            stream->rows_sent = stream->rows_batched;
            stream->tokens_sent = stream->tokens_batched;
        } else {
            stream->rows_batched = stream->rows_sent;
            stream->tokens_batched = stream->tokens_sent;
        }
    }
    return st;
}

/* Bytes that may still go out by this connection, in this and later frames. */
static uint64_t connection_credit(const struct session *session)
{
    if (!session->credit_bytes)
        return UINT64_MAX;
    return session->credit_bytes > session->sent_bytes ? session->credit_bytes - session->sent_bytes : 0;
}

/* At most what the row adds to a frame: a row without log probabilities has a place for them in a frame with some. */
static uint64_t row_bytes_max(const struct wire_tokens_row *row)
{
    return FRAME_ROW_BYTES + 2 * (row->ids.size + row->alternative_ids.size) + row->text.size;
}

/* Tokens that a row takes of its stream's credit. */
static uint32_t row_tokens(const struct stream *stream, uint32_t index)
{
    const struct stream_row *row = &stream->rows[index];
    return row->choice == WIRE_CHOICE_PROMPT ? 0 : row->count;
}

/* Whether its stream's credit lets the next row out: a token of it is granted. */
static bool row_granted(const struct stream *stream)
{
    return row_tokens(stream, stream->rows_batched) == 0 || stream->tokens_batched < stream->granted;
}

/* What send_rows has to go on with: bytes that are left on the connection, of which the batch holds some already. */
struct allowance {
    uint64_t bytes, held;
};

static bool row_fits(const struct allowance *allowance, uint64_t bytes)
{
    return allowance->bytes == UINT64_MAX || FRAME_OVERHEAD_BYTES + allowance->held + bytes <= allowance->bytes;
}

static enum status send_held(struct server *server, struct session *session, struct allowance *allowance)
{
    TRY(send_batch(server, session));
    *allowance = (struct allowance){.bytes = connection_credit(session)};
    return STATUS_OK;
}

/* The rows of one stream, as far as credit goes. *starved: some are left for want of it. */
static enum status batch_rows(struct server *server, struct session *session, struct stream *stream,
                              struct allowance *allowance, bool *starved)
{
    while (stream->rows_batched < stream->row_count) {
        struct wire_tokens_row row = row_at(stream, stream->rows_batched);
        uint64_t bytes = row_bytes_max(&row);
        *starved = !row_granted(stream) || !row_fits(allowance, bytes);
        if (*starved)
            return STATUS_OK;
        enum status st = wire_batch_add(server->batch, &row);
        if (st == STATUS_AGAIN) {
            TRY(send_held(server, session, allowance));
            continue;
        }
        if (st != STATUS_OK) {
            TRY(send_batch(server, session));
            return st;
        }
        allowance->held += bytes;
        stream->tokens_batched += row_tokens(stream, stream->rows_batched++);
    }
    *starved = false;
    return STATUS_OK;
}

/* Where a connection's bytes are short, each stream gets its turn at them. */
static void turn_to(struct session *session, const struct stream *first)
{
    while (session->streams != first) {
        struct stream *moved = session->streams;
        DL_DELETE(session->streams, moved);
        DL_APPEND(session->streams, moved);
    }
}

static enum status send_rows(struct server *server, struct session *session)
{
    uint64_t now = loop_now_ms(server->config.loop);
    struct allowance allowance = {.bytes = connection_credit(session)};
    const struct stream *first = NULL; /* the next time */
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        bool starved;
        uint32_t before = stream->rows_batched;
        TRY(batch_rows(server, session, stream, &allowance, &starved));
        server->stats.credit_stalls += starved && !stream->starved_ms;
        if (!starved)
            stream->starved_ms = 0;
        else if (!stream->starved_ms || stream->rows_batched > before)
            stream->starved_ms = now;
        if (starved && row_granted(stream) && !first) /* for want of the connection's bytes */
            first = stream->rows_batched > before ? stream->next : stream;
    }
    TRY(send_batch(server, session));
    if (first)
        turn_to(session, first);
    return STATUS_OK;
}

uint64_t session_unsent_bytes(const struct session *session)
{
    uint64_t bytes = 0;
    for (const struct stream *stream = session->streams; stream; stream = stream->next)
        if (stream->row_count)
            bytes += stream->rows[stream->row_count - 1].end -
                     (stream->rows_sent ? stream->rows[stream->rows_sent - 1].end : 0);
    return bytes;
}

/* ---- ends out ---- */

/* As much as an ERROR may carry; a cut never splits a character. */
static struct wire_span detail_span(const char *detail)
{
    struct wire_span span = wire_span_str(detail ? detail : "");
    if (span.size > WIRE_DETAIL_MAX)
        span.size = WIRE_DETAIL_MAX;
    for (unsigned cut = 0; cut < 3 && !wire_utf8_valid(span); cut++)
        span.size--;
    return wire_utf8_valid(span) ? span : wire_span_str("");
}

struct wire_message stream_error_message(const struct stream_key *key, uint32_t number, struct wire_attempt attempt,
                                         enum wire_error_code code, const char *detail, uint32_t retry_ms)
{
    struct wire_message message = {.kind = WIRE_ERROR};
    message.error = (struct wire_error){
        .request_id = wire_span_of(key->request_id, sizeof key->request_id),
        .stream = number,
        .attempt = attempt,
        .code = code,
        .retry_after_ms = retry_ms,
        .detail = detail_span(detail),
    };
    return message;
}

static enum status send_terminal(struct server *server, struct session *session, struct stream *stream)
{
    const struct stream_terminal *end = &stream->terminal;
    if (end->given_up) {
        struct wire_message resend = {.kind = WIRE_RESEND};
        resend.stream_ref.request_id = wire_span_of(stream->key.request_id, sizeof stream->key.request_id);
        resend.stream_ref.stream = stream->number;
        resend.stream_ref.attempt = stream->attempt;
        return session_send(server, session, LINK_DATA, &resend);
    }
    if (end->code != WIRE_ERROR_UNKNOWN) {
        struct wire_message error = stream_error_message(&stream->key, stream->number, stream->attempt, end->code,
                                                         end->detail, end->retry_after_ms);
        return session_send(server, session, LINK_DATA, &error);
    }
    struct wire_message message = {.kind = WIRE_DONE};
    message.done = (struct wire_done){
        .request_id = wire_span_of(stream->key.request_id, sizeof stream->key.request_id),
        .stream = stream->number,
        .attempt = stream->attempt,
        .finish = wire_span_of(end->finish, end->choices),
        .prompt_tokens = end->prompt_tokens,
        .cached_tokens = end->cached_tokens,
        .reply_tokens = end->reply_tokens,
        .dropped_messages = end->dropped_messages,
        .queue_us = end->queue_us,
        .prefill_us = end->prefill_us,
        .decode_us = end->decode_us,
        .worker = wire_span_str(server->name),
        .numerics_id = wire_span_of(server->info->numerics_id, sizeof server->info->numerics_id),
        .cache_id = wire_span_of(server->cache_id, sizeof server->cache_id),
        .inexact = stream->inexact,
        .epoch = stream->epoch,
        .released = stream->released,
    };
    if (PROBE("worker.done"))
        return STATUS_FAIL(STATUS_IO, "a probe");
    return session_send(server, session, LINK_DATA, &message);
}

static enum status send_acks(struct server *server, struct session *session)
{
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        if (!stream->ack_due)
            continue;
        struct wire_message message = {.kind = WIRE_ACK};
        message.stream_ref.request_id = wire_span_of(stream->key.request_id, sizeof stream->key.request_id);
        message.stream_ref.stream = stream->number;
        message.stream_ref.attempt = stream->attempt;
        message.stream_ref.cache_id = wire_span_of(server->cache_id, sizeof server->cache_id);
        message.stream_ref.numerics_id = wire_span_of(server->info->numerics_id, sizeof server->info->numerics_id);
        message.stream_ref.started = stream->started;
        if (PROBE("worker.accepted"))
            return STATUS_FAIL(STATUS_IO, "a probe");
        TRY(session_send(server, session, LINK_CONTROL, &message));
        stream->ack_due = false;
    }
    return STATUS_OK;
}

/* Its rows are out, or it is an error that does not wait for credit. */
static bool may_end(const struct stream *stream)
{
    return stream->rows_sent == stream->row_count ||
           (stream->starved_ms && stream->terminal.code != WIRE_ERROR_UNKNOWN);
}

static enum status send_terminals(struct server *server, struct session *session)
{
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        if (stream->open || stream->told_number || !may_end(stream))
            continue;
        stream->row_count = stream->rows_sent; /* what an error did not wait for never goes out */
        TRY(send_terminal(server, session, stream));
        stream->told_number = session->links[LINK_DATA].number_out + 1;
        session->told_count++;
    }
    if (session->told_count > TOLD_MAX) /* a router that does not echo */
        session_free_seen(server, session);
    return STATUS_OK;
}

/* Sends what there is for one router: acknowledgements, then tokens, then ends. What does not go out stays, and the
 * session dirty; what waits for credit stays too, and a lease makes it dirty. */
void session_flush(struct server *server, struct session *session)
{
    bool acked = send_acks(server, session) == STATUS_OK;
    enum status st = STATUS_CLOSED;
    if (session->links[LINK_DATA].bound) {
        st = send_rows(server, session);
        if (st == STATUS_OK)
            st = send_terminals(server, session);
    }
    session->tried_ms = loop_now_ms(server->config.loop);
    if (st == STATUS_OK)
        session->blocked_ms = 0;
    else if (st == STATUS_LIMIT && !session->blocked_ms)
        session->blocked_ms = session->tried_ms;
    session->dirty = !acked || st != STATUS_OK;
}
