/* stream.c - owns the streams, from head to terminal, and the memory of cancelled ids. I/O thread only.
 *
 *   stream_on_request            stream_on_engine ACCEPTED            stream_on_engine TOKENS
 *   head, body --> open, submitted ----------------------> accepted --------+----> rows --+
 *        |            |    REFUSED                          |  DONE, FAILED |             | session_flush
 *        |            +----------------------> ended <------+---------------+             v
 *        | refuse          stream_abort        terminal, not in the tables        TOKENS, one frame per
 *        +-------------> (lease, slow reader) --->  |                             session and turn
 *                                                   | session_flush, when all rows are out: DONE or ERROR
 *                                                   v                new data connection: stream_rewind
 *                                                 told ---------------------------------------> ended
 *                                                   | on_lease: the echo shows that it was seen,
 *                                                   | or the router uses the number again
 *                                                   v
 *                                                 freed
 *
 * A newer attempt (move) changes session, number and attempt of an open stream and sends all rows again.
 * Always true: 1. a stream is in by_key and by_job exactly while it is open, that is while it has no terminal;
 *              2. rows_sent <= rows_batched <= row_count; rows between sent and batched are in server->batch now;
 *                 rows of different choices lie in the order in which the engine released them;
 *              3. a job whose stream is not open is unknown here: its late events are dropped;
 *              4. server->set_aside is the sum of the streams' set_aside: the most they can keep while open, then what they do. */
#include "worker/server/server_internal.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ids are kept as the wire's columns");
static_assert(ENGINE_CHOICES_MAX == WIRE_CHOICES_MAX, "one finish for each choice");
static_assert(sizeof(struct stream_row) <= 20, "KEPT_TOKEN_BYTES counts 20");

/* ---- keys and tables ---- */

static void key_set(struct stream_key *key, struct wire_span request_id, struct wire_span tenant)
{
    memset(key, 0, sizeof *key);
    memcpy(key->request_id, request_id.data, sizeof key->request_id);
    memcpy(key->tenant, tenant.data, tenant.size);
}

static struct stream *find_by_key(struct server *server, const struct stream_key *key)
{
    struct stream *stream = NULL;
    HASH_FIND(by_key, server->by_key, key, sizeof *key, stream);
    return stream;
}

static bool table_add(struct server *server, struct stream *stream)
{
    HASH_ADD(by_key, server->by_key, key, sizeof stream->key, stream);
    if (!stream->by_key.tbl)
        return false;
    HASH_ADD(by_job, server->by_job, job, sizeof stream->job, stream);
    if (!stream->by_job.tbl) {
        HASH_DELETE(by_key, server->by_key, stream);
        return false;
    }
    stream->open = true;
    return true;
}

static void table_remove(struct server *server, struct stream *stream)
{
    if (!stream->open)
        return;
    HASH_DELETE(by_key, server->by_key, stream);
    HASH_DELETE(by_job, server->by_job, stream);
    stream->open = false;
}

static void attach(struct stream *stream, struct session *session, const struct wire_head *head)
{
    stream->session = session;
    stream->number = head->stream;
    stream->attempt = head->attempt;
    stream->epoch = head->epoch;
    DL_APPEND(session->streams, stream);
    session->stream_count++;
}

static void detach(struct stream *stream)
{
    DL_DELETE(stream->session->streams, stream);
    stream->session->stream_count--;
    if (stream->told_number)
        stream->session->told_count--;
}

/* Streams of a session that still need something sent. */
static unsigned live_count(const struct session *session)
{
    return session->stream_count - session->told_count;
}

static void drop_rows(struct stream *stream)
{
    free(stream->bytes);
    free(stream->rows);
    stream->bytes = NULL;
    stream->rows = NULL;
    stream->bytes_capacity = stream->rows_capacity = 0;
    stream->row_count = stream->rows_sent = stream->rows_batched = 0;
}

/* Instead of what it had set aside. */
static void set_aside(struct server *server, struct stream *stream, uint64_t bytes)
{
    server->set_aside += bytes - stream->set_aside;
    stream->set_aside = bytes;
}

/* The most that the stream of a request keeps (server_internal.h has the arithmetic). */
static uint64_t kept_bytes_max(const struct server *server, const struct engine_request *request)
{
    uint64_t context = server->info->context_tokens_max;
    uint64_t reply = request->tokens_max && request->tokens_max < context ? request->tokens_max : context;
    uint64_t tokens = (request->choices ? request->choices : 1) * reply + (request->prompt_logprobs ? context : 0);
    return 2 * tokens * (KEPT_TOKEN_BYTES + 8ull * request->alternatives);
}

/* The body is off our hands: accepted, refused or given up. */
static void settle_body(struct stream *stream)
{
    stream->session->waiting_bytes -= stream->waiting_bytes;
    stream->session->consumed_bytes += stream->waiting_bytes;
    stream->waiting_bytes = 0;
}

static void stream_free(struct server *server, struct stream *stream)
{
    table_remove(server, stream);
    settle_body(stream);
    detach(stream);
    set_aside(server, stream, 0);
    drop_rows(stream);
    free(stream->terminal.detail);
    free(stream);
}

void streams_destroy(struct server *server, struct session *session)
{
    while (session->streams)
        stream_free(server, session->streams);
}

/* ---- ends ---- */

static void end(struct server *server, struct stream *stream)
{
    table_remove(server, stream);
    settle_body(stream);
    set_aside(server, stream, stream->bytes_capacity + (uint64_t)stream->rows_capacity * sizeof *stream->rows);
    stream->session->dirty = true;
}

/* retry_ms 0: as long as the queue takes, when waiting helps. */
static void end_with_error(struct server *server, struct stream *stream, enum wire_error_code code, const char *detail,
                           uint32_t retry_ms)
{
    stream->terminal.code = code;
    stream->terminal.detail = detail && *detail ? strdup(detail) : NULL; /* without memory: without words */
    if (code == WIRE_ERROR_OVER_CAPACITY)
        stream->terminal.retry_after_ms = retry_ms ? retry_ms : retry_after_ms(server);
    end(server, stream);
}

static void end_with_done(struct server *server, struct stream *stream, const struct engine_event *event)
{
    stream->terminal = (struct stream_terminal){
        .code = WIRE_ERROR_UNKNOWN,
        .choices = stream->choices,
        .dropped_messages = event->dropped_messages,
        .prompt_tokens = event->prompt_tokens,
        .cached_tokens = event->cached_tokens,
        .reply_tokens = event->reply_tokens,
        .queue_us = event->queue_us,
        .prefill_us = event->prefill_us,
        .decode_us = event->decode_us,
    };
    for (uint32_t i = 0; i < stream->choices; i++)
        stream->terminal.finish[i] = (uint8_t)event->finish[i];
    end(server, stream);
}

/* Ends a stream from this side. Its tokens are dropped, and what the engine still says about the job too. */
void stream_abort(struct server *server, struct stream *stream, enum wire_error_code code, const char *detail)
{
    if (!stream->open)
        return;
    if (!stream->cancel_asked)
        (void)engine_thread_cancel(server->engine, stream->job); /* without memory it runs to its end, unheard */
    drop_rows(stream);
    end_with_error(server, stream, code, detail, 0);
}

/* Time until the queue is worked off, from what is queued and what a token took lately. */
uint32_t retry_after_ms(struct server *server)
{
    struct engine_progress progress;
    engine_thread_progress(server->engine, &progress);
    double token_us = server->token_us > 0 ? server->token_us : (double)progress.step_median_us;
    double ms = (double)progress.queued_tokens * token_us / 1000;
    if (ms < RETRY_MS_MIN)
        return RETRY_MS_MIN;
    return ms > RETRY_MS_MAX ? RETRY_MS_MAX : (uint32_t)ms;
}

static void measure_rate(struct server *server, const struct engine_event *done)
{
    uint32_t computed = done->prompt_tokens - done->cached_tokens + done->reply_tokens;
    if (computed == 0 || done->cached_tokens > done->prompt_tokens)
        return;
    double token_us = ((double)done->prefill_us + done->decode_us) / computed;
    server->token_us = server->token_us > 0 ? 0.8 * server->token_us + 0.2 * token_us : token_us;
}

/* ---- heads ---- */

unsigned streams_max(const struct server *server)
{
    return server->config.engine.queue_requests_max + server->config.engine.sequences_max + STREAMS_SPARE;
}

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

static struct wire_message error_message(const struct stream_key *key, uint32_t number, struct wire_attempt attempt,
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

/* session is NULL for a stranger. For a session the answer is an ended stream, so that it survives a reconnect. */
static void refuse(struct server *server, struct session *session, const struct channel_peer *peer,
                   const struct wire_head *head, size_t body_size, const struct refusal *refusal)
{
    struct stream_key key;
    struct stream *stream = NULL;
    key_set(&key, head->request_id, head->tenant);
    LOG_DEBUG("refused: %s", wire_error_name(refusal->code));
    if (session) {
        session->consumed_bytes += body_size;
        if (live_count(session) < 2 * streams_max(server))
            stream = calloc(1, sizeof *stream);
    }
    if (!stream) {
        struct wire_message message =
            error_message(&key, head->stream, head->attempt, refusal->code, refusal->detail, refusal->retry_after_ms);
        (void)server_send(server, LINK_DATA, peer, &message);
        return;
    }
    stream->key = key;
    attach(stream, session, head);
    stream->terminal.code = refusal->code;
    stream->terminal.detail = strdup(refusal->detail); /* without memory: without words */
    stream->terminal.retry_after_ms = refusal->retry_after_ms;
    session->dirty = true;
}

static void answer_stream_ref(struct server *server, struct session *session, enum link link, enum wire_kind kind,
                              const struct stream_key *key, uint32_t number, struct wire_attempt attempt)
{
    struct wire_message message = {.kind = kind};
    message.stream_ref.request_id = wire_span_of(key->request_id, sizeof key->request_id);
    message.stream_ref.stream = number;
    message.stream_ref.attempt = attempt;
    (void)session_send(server, session, link, &message); /* a hint; the attempt in every reply is what decides */
}

static void answer_wrong_owner(struct server *server, const struct channel_peer *peer, const struct wire_head *head)
{
    struct wire_message message = {.kind = WIRE_WRONG_OWNER};
    message.stream_ref.request_id = head->request_id;
    message.stream_ref.stream = head->stream;
    message.stream_ref.attempt = head->attempt;
    message.stream_ref.owner = wire_span_str(server->name);
    message.stream_ref.epoch = head->epoch;
    (void)server_send(server, LINK_DATA, peer, &message);
}

/* A router that uses a number again has seen the end of the stream that had it. */
static void free_told_number(struct server *server, struct session *session, uint32_t number)
{
    struct stream *stream, *next;
    DL_FOREACH_SAFE(session->streams, stream, next)
    if (stream->told_number && stream->number == number)
        stream_free(server, stream);
}

static bool number_taken(const struct session *session, uint32_t number, const struct stream *except)
{
    for (const struct stream *stream = session->streams; stream; stream = stream->next)
        if (stream != except && !stream->told_number && stream->number == number)
            return true;
    return false;
}

static int attempt_compare(struct wire_attempt a, struct wire_attempt b)
{
    if (a.client != b.client)
        return a.client < b.client ? -1 : 1;
    return a.router == b.router ? 0 : a.router < b.router ? -1 : 1;
}

/* A newer attempt takes the stream over and sees it from its start. */
static void move(struct server *server, struct stream *stream, struct session *session, const struct wire_head *head)
{
    answer_stream_ref(server, stream->session, LINK_CONTROL, WIRE_SUPERSEDED, &stream->key, stream->number,
                      stream->attempt);
    settle_body(stream);
    detach(stream);
    attach(stream, session, head);
    stream_rewind(stream);
    stream->ack_due = stream->accepted;
    session->dirty = true;
}

/* The id is open already. False: *refusal says why it is not taken. */
static bool take_repeat(struct server *server, struct stream *stream, struct session *session,
                        const struct wire_head *head, const uint8_t content[HASH_DIGEST_BYTES], struct refusal *refusal)
{
    int newer = attempt_compare(head->attempt, stream->attempt);
    if (memcmp(content, stream->content, sizeof stream->content) != 0) {
        refusal_set(refusal, WIRE_ERROR_CONFLICT, "this request id is running with other content");
        return false;
    }
    if (newer == 0 && stream->session != session) {
        refusal_set(refusal, WIRE_ERROR_CONFLICT,
                    "this attempt is running for another router: count the attempt up to take it over");
        return false;
    }
    if (newer > 0 && number_taken(session, head->stream, stream)) {
        refusal_set(refusal, WIRE_ERROR_INVALID, "stream %u is open already", head->stream);
        return false;
    }
    if (newer > 0) {
        move(server, stream, session, head);
    } else {
        server->stale++;
        if (newer < 0)
            answer_stream_ref(server, session, LINK_CONTROL, WIRE_SUPERSEDED, &stream->key, head->stream,
                              head->attempt);
    }
    return true;
}

static bool cancelled_before(struct server *server, const struct stream_key *key)
{
    struct cancel_memory *cancel = NULL;
    HASH_FIND(hh, server->cancels, key, sizeof *key, cancel);
    return cancel && cancel->until_ms > loop_now_ms(server->config.loop);
}

/* False: a new request cannot be taken now, and *refusal says why. Cheap: the body was not looked at yet. */
static bool has_room(struct server *server, struct session *session, const struct wire_head *head, size_t body_size,
                     struct refusal *refusal)
{
    if (server->state == WIRE_LIFE_STARTING || !server->info) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "starting: the model is being loaded");
        refusal->retry_after_ms = RETRY_STARTING_MS;
        return false;
    }
    if (server->state != WIRE_LIFE_READY) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "draining: this worker takes no new requests");
        refusal->retry_after_ms = RETRY_DRAINING_MS;
        return false;
    }
    if (head->model.size && !wire_span_equal(head->model, wire_span_str(server->info->model_name))) {
        refusal_set(refusal, WIRE_ERROR_UNKNOWN_MODEL, "this worker serves %s", server->info->model_name);
        return false;
    }
    if (number_taken(session, head->stream, NULL)) {
        refusal_set(refusal, WIRE_ERROR_INVALID, "stream %u is open already", head->stream);
        return false;
    }
    struct engine_progress progress;
    engine_thread_progress(server->engine, &progress);
    uint64_t waiting = (uint64_t)progress.queued_requests + engine_thread_submits(server->engine);
    uint32_t queue_max = server->config.engine.queue_requests_max;
    if (waiting > queue_max || (waiting == queue_max && progress.running_requests > 0) ||
        live_count(session) >= streams_max(server)) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "%llu requests wait already", (unsigned long long)waiting);
        refusal->retry_after_ms = retry_after_ms(server);
        return false;
    }
    if (session->waiting_bytes + body_size > GRANT_BYTES) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "over the grant of %u unacknowledged bytes", GRANT_BYTES);
        refusal->retry_after_ms = RETRY_MS_MIN;
        return false;
    }
    return true;
}

/* False: what the request may release has no room beside what others may, and *refusal says so. */
static bool has_reply_room(struct server *server, uint64_t bytes, struct refusal *refusal)
{
    uint64_t max = server->config.reply_bytes_max;
    if (bytes > max) {
        refusal_set(refusal, WIRE_ERROR_TOO_LARGE,
                    "the reply may take %llu bytes, this worker keeps at most %llu: ask for fewer choices, alternatives "
                    "or tokens",
                    (unsigned long long)bytes, (unsigned long long)max);
        return false;
    }
    if (bytes > max - server->set_aside) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "no memory is left to keep the reply of this request");
        refusal->retry_after_ms = retry_after_ms(server);
        return false;
    }
    return true;
}

/* Makes the stream and hands the request to the engine thread. False: *refusal says why not. */
static bool open_stream(struct server *server, struct session *session, const struct wire_head *head,
                        const struct stream_key *key, const uint8_t content[HASH_DIGEST_BYTES], size_t body_size,
                        struct request **request, struct refusal *refusal)
{
    uint64_t kept = kept_bytes_max(server, &(*request)->engine);
    if (!has_reply_room(server, kept, refusal))
        return false;
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream) {
        stream->key = *key;
        stream->job = ++server->next_job;
        stream->choices = (*request)->engine.choices ? (*request)->engine.choices : 1;
        memcpy(stream->content, content, sizeof stream->content);
    }
    if (!stream || !table_add(server, stream)) {
        free(stream);
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "no memory for the request");
        refusal->retry_after_ms = RETRY_MS_MAX;
        return false;
    }
    attach(stream, session, head);
    set_aside(server, stream, kept);
    (*request)->engine.job = stream->job;
    enum status st = engine_thread_submit(server->engine, request);
    if (st != STATUS_OK) {
        stream_free(server, stream);
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "%s", status_detail());
        refusal->retry_after_ms = retry_after_ms(server);
        return false;
    }
    stream->waiting_bytes = body_size;
    session->waiting_bytes += body_size;
    return true;
}

/* False: *refusal says why. */
static bool take_request(struct server *server, struct session *session, const struct wire_head *head, zmq_msg_t *body,
                         struct refusal *refusal)
{
    size_t body_size = zmq_msg_size(body);
    uint8_t content[HASH_DIGEST_BYTES];
    struct stream_key key;
    key_set(&key, head->request_id, head->tenant);
    request_content(head, zmq_msg_data(body), body_size, content);
    struct stream *open = find_by_key(server, &key);
    if (open) {
        if (!take_repeat(server, open, session, head, content, refusal))
            return false;
        session->consumed_bytes += body_size;
        return true;
    }
    if (cancelled_before(server, &key)) {
        refusal_set(refusal, WIRE_ERROR_CANCELLED, "cancelled before it came");
        return false;
    }
    if (!has_room(server, session, head, body_size, refusal))
        return false;
    struct request *request = NULL;
    if (request_create(head, body, clock_now_ms(), &request, refusal) != STATUS_OK)
        return false;
    bool taken = open_stream(server, session, head, &key, content, body_size, &request, refusal);
    request_destroy(&request);
    return taken;
}

void stream_on_request(struct server *server, const struct channel_peer *peer, const struct wire_head *head,
                       zmq_msg_t *body)
{
    struct session *session = session_find(server, head->session);
    size_t body_size = zmq_msg_size(body);
    if (session) {
        session_heard(server, session);
        if (!session->links[LINK_DATA].bound)
            session_bind(server, session, LINK_DATA, peer);
        free_told_number(server, session, head->stream);
    }
    log_request_scope(head->request_id.data);
    if (head->incarnation.size && memcmp(head->incarnation.data, server->incarnation, WIRE_ID_BYTES) != 0) {
        if (session)
            session->consumed_bytes += body_size;
        answer_wrong_owner(server, peer, head);
    } else {
        struct refusal refusal = {.retry_after_ms = 0};
        bool taken = false;
        if (!session)
            refusal_set(&refusal, WIRE_ERROR_INVALID, "unknown session: a router says HELLO on both connections first");
        else
            taken = take_request(server, session, head, body, &refusal);
        if (!taken)
            refuse(server, session, peer, head, body_size, &refusal);
    }
    log_request_scope(NULL);
}

/* ---- cancels ---- */

void cancels_expire(struct server *server, uint64_t now_ms, bool all)
{
    struct cancel_memory *cancel, *next;
    HASH_ITER(hh, server->cancels, cancel, next)
    {
        if (!all && cancel->until_ms > now_ms)
            return;
        HASH_DELETE(hh, server->cancels, cancel);
        free(cancel);
    }
}

/* Remembers an id nobody has sent yet: a cancel on the control connection may overtake its head on the data connection.
 */
static void remember_cancel(struct server *server, const struct stream_key *key)
{
    struct cancel_memory *cancel = NULL;
    HASH_FIND(hh, server->cancels, key, sizeof *key, cancel);
    if (cancel) {
        HASH_DELETE(hh, server->cancels, cancel);
        free(cancel);
    } else if (HASH_COUNT(server->cancels) >= CANCELS_MAX) {
        struct cancel_memory *oldest = server->cancels;
        HASH_DELETE(hh, server->cancels, oldest);
        free(oldest);
    }
    cancel = calloc(1, sizeof *cancel);
    if (!cancel)
        return;
    cancel->key = *key;
    cancel->until_ms = loop_now_ms(server->config.loop) + server->config.cancel_memory_ms;
    HASH_ADD(hh, server->cancels, key, sizeof cancel->key, cancel);
    if (!cancel->hh.tbl)
        free(cancel);
}

void stream_on_cancel(struct server *server, const struct wire_cancel *cancel)
{
    struct stream_key key;
    key_set(&key, cancel->request_id, cancel->tenant);
    struct stream *stream = find_by_key(server, &key);
    if (!stream)
        remember_cancel(server, &key);
    else if (!stream->cancel_asked)
        stream->cancel_asked = engine_thread_cancel(server->engine, stream->job) == STATUS_OK;
}

/* ---- what the engine says ---- */

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

static bool take_tokens(struct stream *stream, const struct engine_event *event)
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
static bool take_prompt(struct stream *stream, const struct engine_event *event)
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

static void on_job(struct server *server, struct stream *stream, const struct engine_event *event)
{
    switch (event->kind) {
    case ENGINE_PROMPT:
        if (!take_prompt(stream, event))
            stream_abort(server, stream, WIRE_ERROR_INTERNAL, "log probabilities of the prompt could not be kept");
        break;
    case ENGINE_TOKENS:
        if (!take_tokens(stream, event))
            stream_abort(server, stream, WIRE_ERROR_INTERNAL, "released tokens could not be kept");
        break;
    case ENGINE_DONE:
        measure_rate(server, event);
        end_with_done(server, stream, event);
        break;
    case ENGINE_FAILED:
        end_with_error(server, stream, refusal_code(event->status, WIRE_ERROR_OVER_CAPACITY), event->detail, 0);
        break;
    }
}

void stream_on_engine(struct server *server, const struct engine_thread_event *event)
{
    struct stream *stream = NULL;
    HASH_FIND(by_job, server->by_job, &event->job, sizeof event->job, stream);
    if (!stream)
        return;
    log_request_scope(stream->key.request_id);
    switch (event->kind) {
    case ENGINE_THREAD_ACCEPTED:
        stream->accepted = stream->ack_due = true;
        stream->session->dirty = true;
        settle_body(stream);
        break;
    case ENGINE_THREAD_REFUSED:
        end_with_error(server, stream, refusal_code(event->status, WIRE_ERROR_TOO_LARGE), event->detail,
                       event->retry_after_ms);
        break;
    case ENGINE_THREAD_JOB: on_job(server, stream, &event->event); break;
    default: break;
    }
    log_request_scope(NULL);
}

/* ---- out ---- */

void stream_rewind(struct stream *stream)
{
    stream->rows_sent = stream->rows_batched = 0;
    if (stream->told_number)
        stream->session->told_count--;
    stream->told_number = 0;
}

void session_free_seen(struct server *server, struct session *session)
{
    struct stream *stream, *next;
    uint64_t seen = session->links[LINK_DATA].echo_in;
    DL_FOREACH_SAFE(session->streams, stream, next)
    if (stream->told_number && (stream->told_number <= seen || session->told_count > TOLD_MAX))
        stream_free(server, stream);
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
        st = frame.size ? channel_send_bytes(server->channels[LINK_DATA], &data->peer, frame.data, frame.size)
                        : STATUS_NO_MEMORY;
        if (st == STATUS_CLOSED)
            session_unbind(server, session, LINK_DATA);
        if (st == STATUS_OK)
            session->blocked_ms = 0;
    }
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        if (st == STATUS_OK)
            stream->rows_sent = stream->rows_batched;
        else
            stream->rows_batched = stream->rows_sent;
    }
    return st;
}

static enum status send_rows(struct server *server, struct session *session)
{
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        while (stream->rows_batched < stream->row_count) {
            struct wire_tokens_row row = row_at(stream, stream->rows_batched);
            enum status st = wire_batch_add(server->batch, &row);
            if (st == STATUS_AGAIN) {
                TRY(send_batch(server, session));
                st = wire_batch_add(server->batch, &row);
            }
            if (st != STATUS_OK) {
                TRY(send_batch(server, session));
                return st;
            }
            stream->rows_batched++;
        }
    }
    return send_batch(server, session);
}

static enum status send_terminal(struct server *server, struct session *session, struct stream *stream)
{
    const struct stream_terminal *end = &stream->terminal;
    if (end->code != WIRE_ERROR_UNKNOWN) {
        struct wire_message error =
            error_message(&stream->key, stream->number, stream->attempt, end->code, end->detail, end->retry_after_ms);
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
        .epoch = stream->epoch,
        .released = stream->released,
    };
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
        TRY(session_send(server, session, LINK_CONTROL, &message));
        stream->ack_due = false;
    }
    return STATUS_OK;
}

static enum status send_terminals(struct server *server, struct session *session)
{
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        if (stream->open || stream->told_number || stream->rows_sent < stream->row_count)
            continue;
        TRY(send_terminal(server, session, stream));
        stream->told_number = session->links[LINK_DATA].number_out + 1;
        session->told_count++;
    }
    if (session->told_count > TOLD_MAX) /* a router that does not echo */
        session_free_seen(server, session);
    return STATUS_OK;
}

/* Sends what there is for one router: acknowledgements, then tokens, then ends. What does not go out stays, and the
 * session dirty. */
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
