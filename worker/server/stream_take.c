/* stream_take.c - heads: a new request, one that goes on behind tokens released elsewhere, or one that is here already.
 * I/O thread only.
 *
 *   head, body --> another incarnation is meant ----------------------------------> WRONG_OWNER
 *        |-------> its tokens are of another numerics id, and that matters -------> NOT_EXACT
 *        |-------> the id is known, open or ended well:
 *        |             other content ---------------------------------------------> CONFLICT
 *        |             an older attempt ------------------------------------------> SUPERSEDED
 *        |             a newer one, which has all that was resumed here ----------> move: the stream goes there
 *        |             a newer one, which lacks some of that ---------------------> the old one is cancelled, it is new
 *        |-------> cancelled before, no room, a bad body, draining ---------------> refuse: an ended stream
 *        +-------> new ---------------------------------------------------------> open, submitted */
#include "worker/server/server_internal.h"
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/probe.h"

/* Streams of a session that still need something sent. */
static unsigned live_count(const struct session *session)
{
    return session->stream_count - session->told_count;
}

unsigned streams_max(const struct server *server)
{
    return server->config.engine.queue_requests_max + server->config.engine.sequences_max + STREAMS_SPARE;
}

/* The most that the stream of a request keeps (server_internal.h has the arithmetic). */
static uint64_t kept_bytes_max(const struct server *server, const struct engine_request *request)
{
    uint64_t context = server->info->context_tokens_max;
    uint64_t reply = request->tokens_max && request->tokens_max < context ? request->tokens_max : context;
    uint64_t tokens = request->prompt_logprobs ? context : 0;
    for (uint32_t i = 0; i < (request->choices ? request->choices : 1); i++) {
        uint64_t had = request->resume_counts ? request->resume_counts[i] : 0;
        tokens += reply > had ? reply - had : 0;
    }
    return 2 * tokens * (KEPT_TOKEN_BYTES + 8ull * request->alternatives);
}

/* How many tokens of a choice, or of all, the sender of a head has already. */
static uint32_t resumed_of(const struct wire_head *head, uint32_t choice)
{
    return choice < head->resume.counts.size / 4 ? wire_u32_at(head->resume.counts, choice) : 0;
}

static uint64_t resumed_total(const struct wire_head *head)
{
    return head->resume.ids.size / 4;
}

/* The released tokens are of another numerics id than this worker's. */
static bool is_inexact(const struct server *server, const struct wire_head *head)
{
    return server->info && resumed_total(head) > 0 && head->numerics_id.size > 0 &&
           memcmp(head->numerics_id.data, server->info->numerics_id, sizeof server->info->numerics_id) != 0;
}

/* ---- answers that are not streams ---- */

/* session is NULL for a stranger. For a session the answer is an ended stream, so that it survives a reconnect. */
static void refuse(struct server *server, struct session *session, const struct channel_peer *peer,
                   const struct wire_head *head, size_t body_size, const struct refusal *refusal)
{
    struct stream_key key;
    struct stream *stream = NULL;
    stream_key_set(&key, head->request_id, head->tenant);
    LOG_DEBUG("refused: %s", wire_error_name(refusal->code));
    server->stats.errors[refusal->code]++;
    if (session) {
        session->consumed_bytes += body_size;
        if (live_count(session) < 2 * streams_max(server))
            stream = calloc(1, sizeof *stream);
    }
    if (!stream) {
        struct wire_message message = stream_error_message(&key, head->stream, head->attempt, refusal->code,
                                                           refusal->detail, refusal->retry_after_ms);
        (void)server_send(server, LINK_DATA, peer, &message);
        return;
    }
    stream->key = key;
    stream_attach(stream, session, head);
    stream->terminal.code = refusal->code;
    stream->terminal.detail = strdup(refusal->detail); /* without memory: without words */
    stream->terminal.retry_after_ms = refusal->retry_after_ms;
    session->dirty = true;
}

/* A hint; the attempt in every reply is what decides. */
static void answer_superseded(struct server *server, struct session *session, const struct stream_key *key,
                              uint32_t number, struct wire_attempt attempt)
{
    struct wire_message message = {.kind = WIRE_SUPERSEDED};
    message.stream_ref.request_id = wire_span_of(key->request_id, sizeof key->request_id);
    message.stream_ref.stream = number;
    message.stream_ref.attempt = attempt;
    (void)session_send(server, session, LINK_CONTROL, &message);
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

/* ---- repeats ---- */

static struct stream *find_number(const struct session *session, uint32_t number)
{
    struct stream *stream = NULL;
    HASH_FIND(by_number, session->by_number, &number, sizeof number, stream);
    return stream;
}

/* A router that uses a number again has seen the end of the stream that had it. */
static void release_told_number(struct server *server, struct session *session, uint32_t number)
{
    struct stream *stream = find_number(session, number);
    if (stream && stream->told_number)
        stream_release(server, stream);
}

static bool number_taken(const struct session *session, uint32_t number, const struct stream *except)
{
    const struct stream *stream = find_number(session, number);
    return stream && stream != except;
}

/* Nobody owes its present session anything more. */
static bool is_settled(const struct stream *stream)
{
    return !stream->session || stream->told_number;
}

/* Whoever sent this head may have what the stream releases. */
static bool may_take_over(const struct wire_head *head, const struct stream *stream)
{
    int newer = attempt_compare(head->attempt, stream->attempt);
    return newer > 0 || (newer == 0 && is_settled(stream));
}

/* What this stream was resumed with was never sent by it: only a receiver that has all of that can take it over. */
static bool covers(const struct wire_head *head, const struct stream *stream)
{
    for (uint32_t i = 0; i < stream->choices; i++)
        if (resumed_of(head, i) < stream->resumed[i])
            return false;
    return true;
}

static void tell_superseded(struct server *server, const struct stream *stream)
{
    server->stats.superseded++;
    if (!is_settled(stream))
        answer_superseded(server, stream->session, &stream->key, stream->number, stream->attempt);
}

/* A newer attempt takes the stream over and sees it from its start. */
static void move(struct server *server, struct stream *stream, struct session *session, const struct wire_head *head)
{
    tell_superseded(server, stream);
    stream_settle_body(stream);
    stream_rewind(stream);
    stream_detach(server, stream);
    stream_attach(stream, session, head);
    if (!stream->open) /* it was kept perhaps */
        stream_set_aside(server, stream, stream_row_bytes(stream));
    stream_first_grant(stream, resumed_total(head));
    stream->inexact |= is_inexact(server, head);
    stream->ack_due = stream->accepted;
    session->dirty = true;
}

/* The id is here, open or ended well. False: *refusal says why it is not taken. */
static bool take_repeat(struct server *server, struct stream *stream, struct session *session,
                        const struct wire_head *head, struct refusal *refusal)
{
    if (!may_take_over(head, stream)) {
        server->stats.stale++;
        if (attempt_compare(head->attempt, stream->attempt) < 0)
            answer_superseded(server, session, &stream->key, head->stream, head->attempt);
        else if (stream->session != session)
            goto conflict;
        return true;
    }
    if (number_taken(session, head->stream, stream)) {
        refusal_set(refusal, WIRE_ERROR_INVALID, "stream %u is open already", head->stream);
        return false;
    }
    move(server, stream, session, head);
    return true;
conflict:
    refusal_set(refusal, WIRE_ERROR_CONFLICT,
                "this attempt is running for another router: count the attempt up to take it over");
    return false;
}

/* ---- new ones ---- */

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
        refusal_set(
            refusal, WIRE_ERROR_TOO_LARGE,
            "the reply may take %llu bytes, this worker keeps at most %llu: ask for fewer choices, alternatives "
            "or tokens",
            (unsigned long long)bytes, (unsigned long long)max);
        return false;
    }
    if (server->set_aside > max || bytes > max - server->set_aside) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "no memory is left to keep the reply of this request");
        refusal->retry_after_ms = retry_after_ms(server);
        return false;
    }
    return true;
}

static void start_stream(struct stream *stream, const struct engine_request *request)
{
    stream->choices = request->choices ? request->choices : 1;
    for (uint32_t i = 0; i < stream->choices && request->resume_counts; i++) {
        stream->resumed[i] = stream->due[i] = request->resume_counts[i];
        stream->resumed_tokens += request->resume_counts[i];
    }
    stream->released = stream->resumed_tokens;
    stream->tokens_sent = stream->tokens_batched = stream->resumed_tokens;
}

/* Makes the stream and hands the request to the engine thread. False: *refusal says why not. */
static bool open_stream(struct server *server, struct session *session, const struct wire_head *head,
                        const struct stream_key *key, const uint8_t content[HASH_DIGEST_BYTES], size_t body_size,
                        struct request **request, struct refusal *refusal)
{
    uint64_t kept = kept_bytes_max(server, &(*request)->engine);
    if (!has_reply_room(server, kept, refusal))
        return false;
    struct stream *stream = stream_create(server, key);
    if (!stream) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "no memory for the request");
        refusal->retry_after_ms = RETRY_MS_MAX;
        return false;
    }
    memcpy(stream->content, content, sizeof stream->content);
    start_stream(stream, &(*request)->engine);
    stream->inexact = is_inexact(server, head);
    stream_attach(stream, session, head);
    stream_first_grant(stream, resumed_total(head));
    stream_set_aside(server, stream, kept);
    (*request)->engine.job = stream->job;
    (*request)->engine.tell_fate = stream->placed;
    memcpy((*request)->engine.conversation, stream->placement, sizeof stream->placement);
    enum status st = engine_thread_submit(server->engine, request);
    if (st != STATUS_OK) {
        stream_free(server, stream);
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "%s", status_detail());
        refusal->retry_after_ms = retry_after_ms(server);
        return false;
    }
    server->stats.resumed += stream->resumed_tokens > 0;
    stream->waiting_bytes = body_size;
    session->waiting_bytes += body_size;
    return true;
}

/* replaced: a stream of this key, which the new one takes the place of; NULL: none. False: *refusal says why. */
static bool take_new(struct server *server, struct stream *replaced, struct session *session,
                     const struct wire_head *head, zmq_msg_t *body, const struct stream_key *key,
                     const uint8_t content[HASH_DIGEST_BYTES], struct refusal *refusal)
{
    size_t body_size = zmq_msg_size(body);
    struct request *request = NULL;
    if (!has_room(server, session, head, body_size, refusal) ||
        request_create(head, body, clock_now_ms(), &request, refusal) != STATUS_OK)
        return false;
    if (replaced) {
        tell_superseded(server, replaced);
        (void)stream_cancel(server, replaced); /* without memory it runs to its end, unheard */
        stream_free(server, replaced);
    }
    bool taken = open_stream(server, session, head, key, content, body_size, &request, refusal);
    request_destroy(&request);
    return taken;
}

/* False: *refusal says why. */
static bool take_request(struct server *server, struct session *session, const struct wire_head *head, zmq_msg_t *body,
                         struct refusal *refusal)
{
    size_t body_size = zmq_msg_size(body);
    uint8_t content[HASH_DIGEST_BYTES];
    struct stream_key key;
    if (is_inexact(server, head) && !head->inexact_allowed) {
        refusal_set(refusal, WIRE_ERROR_NOT_EXACT,
                    "the tokens released so far are of another numerics id than this worker's: allow an inexact "
                    "continuation, or send it to a worker with that id");
        return false;
    }
    stream_key_set(&key, head->request_id, head->tenant);
    request_content(head, zmq_msg_data(body), body_size, content);
    struct stream *known = stream_find(server, &key);
    if (known && memcmp(content, known->content, sizeof content) != 0) {
        refusal_set(refusal, WIRE_ERROR_CONFLICT, "this request id is %s with other content",
                    known->open ? "running" : "known");
        return false;
    }
    if (known && (covers(head, known) || !may_take_over(head, known))) {
        if (!take_repeat(server, known, session, head, refusal))
            return false;
        session->consumed_bytes += body_size;
        return true;
    }
    if (cancelled_before(server, &key, head->attempt)) {
        refusal_set(refusal, WIRE_ERROR_CANCELLED, "cancelled before it came");
        return false;
    }
    return take_new(server, known, session, head, body, &key, content, refusal);
}

void stream_on_request(struct server *server, const struct channel_peer *peer, const struct wire_head *head,
                       zmq_msg_t *body)
{
    struct session *session = session_find(server, head->session);
    size_t body_size = zmq_msg_size(body);
    server->stats.requests++;
    (void)PROBE("worker.request");
    if (session) {
        session_heard(server, session);
        if (!session->links[LINK_DATA].bound)
            session_bind(server, session, LINK_DATA, peer);
        release_told_number(server, session, head->stream);
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
