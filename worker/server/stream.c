/* stream.c - owns the streams: their tables, their life, and what the engine says about them. I/O thread only.
 *
 *   stream_on_request            stream_on_engine ACCEPTED            stream_on_engine TOKENS
 *   head, body --> open, submitted ----------------------> accepted --------+----> rows --+
 *        |            |    REFUSED                          |  DONE, FAILED |             | session_flush
 *        |            +----------------------> ended <------+---------------+             v
 *        | refuse          stream_abort        terminal, not in by_job      TOKENS within credit, one frame
 *        +-------------> (orphan, slow) ----->  |                           per session and turn
 *                                               | session_flush, when all rows are out: DONE or ERROR
 *                                               v                new data connection: stream_rewind
 *                                             told ---------------------------------------> ended
 *                                               | stream_release: the echo of a lease shows that it was seen,
 *                                               | or the router uses the number again
 *                               it ended well   v   it did not
 *        ended <-- a repeat: move -- kept <-----+-----> freed
 *
 * A newer attempt (move, stream_take.c) changes session, number and attempt of a stream and sends all rows again. The
 * lease of its router ends: it stays in that session, as an orphan, for orphan_ms (stream_keep.c).
 * Always true: 1. a stream is in by_job exactly while it is open, that is while it has no terminal; in by_key while a
 *                 repeat may take it over: open and not cancelled, or ended well;
 *              2. rows_sent <= rows_batched <= row_count; rows between sent and batched are in server->batch now;
 *                 rows of different choices lie in the order in which the engine released them; tokens_sent and
 *                 tokens_batched are resumed_tokens and what those rows hold, and tokens_batched <= granted;
 *              3. a job whose stream is not open is unknown here: its late events are dropped;
 *              4. server->set_aside is the sum of the set_aside of streams with a session: the most they can keep while
 *                 open, then what they do; server->stats.kept_bytes is the sum of the kept ones. */
#include "worker/server/server_internal.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/clock.h"
#include "common/log.h"

static_assert(ENGINE_CHOICES_MAX == WIRE_CHOICES_MAX, "one finish for each choice");

#define PROMPT_TOKENS_REMEMBERED 65536.0 /* over which the time of a computed token of a prompt is averaged */

const double server_cancel_bounds[SERVER_CANCEL_BOUNDS] = {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1};

/* ---- keys and tables ---- */

void stream_key_set(struct stream_key *key, struct wire_span request_id, struct wire_span tenant)
{
    memset(key, 0, sizeof *key);
    memcpy(key->request_id, request_id.data, sizeof key->request_id);
    memcpy(key->tenant, tenant.data, tenant.size);
}

struct stream *stream_find(struct server *server, const struct stream_key *key)
{
    struct stream *stream = NULL;
    HASH_FIND(by_key, server->by_key, key, sizeof *key, stream);
    return stream;
}

struct stream *stream_create(struct server *server, const struct stream_key *key)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return NULL;
    stream->key = *key;
    stream->job = ++server->next_job;
    HASH_ADD(by_key, server->by_key, key, sizeof stream->key, stream);
    if (!stream->by_key.tbl)
        goto fail;
    stream->known = true;
    HASH_ADD(by_job, server->by_job, job, sizeof stream->job, stream);
    if (!stream->by_job.tbl)
        goto fail;
    stream->open = true;
    return stream;
fail:
    stream_forget(server, stream);
    free(stream);
    return NULL;
}

void stream_forget(struct server *server, struct stream *stream)
{
    if (stream->known)
        HASH_DELETE(by_key, server->by_key, stream);
    stream->known = false;
}

static void close_job(struct server *server, struct stream *stream)
{
    if (stream->open)
        HASH_DELETE(by_job, server->by_job, stream);
    stream->open = false;
}

void stream_attach(struct stream *stream, struct session *session, const struct wire_head *head)
{
    struct stream *other = NULL;
    stream->session = session;
    stream->number = head->stream;
    stream->attempt = head->attempt;
    stream->epoch = head->epoch;
    stream->placed = head->placement.size == sizeof stream->placement;
    if (stream->placed)
        memcpy(stream->placement, head->placement.data, sizeof stream->placement);
    DL_APPEND(session->streams, stream);
    session->stream_count++;
    HASH_FIND(by_number, session->by_number, &stream->number, sizeof stream->number, other);
    if (!other)
        HASH_ADD(by_number, session->by_number, number, sizeof stream->number, stream);
}

void stream_detach(struct server *server, struct stream *stream)
{
    struct session *session = stream->session;
    if (!session) {
        stream_unkeep(server, stream);
        return;
    }
    DL_DELETE(session->streams, stream);
    session->stream_count--;
    if (stream->told_number)
        session->told_count--;
    if (stream->by_number.tbl)
        HASH_DELETE(by_number, session->by_number, stream);
    memset(&stream->by_number, 0, sizeof stream->by_number);
    stream->session = NULL;
}

void stream_set_aside(struct server *server, struct stream *stream, uint64_t bytes)
{
    server->set_aside += bytes - stream->set_aside;
    stream->set_aside = bytes;
}

void stream_settle_body(struct stream *stream)
{
    if (!stream->waiting_bytes)
        return;
    stream->session->waiting_bytes -= stream->waiting_bytes;
    stream->session->consumed_bytes += stream->waiting_bytes;
    stream->waiting_bytes = 0;
}

void stream_free(struct server *server, struct stream *stream)
{
    stream_forget(server, stream);
    close_job(server, stream);
    stream_settle_body(stream);
    stream_detach(server, stream);
    stream_set_aside(server, stream, 0);
    stream_drop_rows(stream);
    free(stream->terminal.detail);
    free(stream);
}

void streams_destroy(struct server *server, struct session *session)
{
    while (session->streams)
        stream_free(server, session->streams);
}

int attempt_compare(struct wire_attempt a, struct wire_attempt b)
{
    if (a.client != b.client)
        return a.client < b.client ? -1 : 1;
    return a.router == b.router ? 0 : a.router < b.router ? -1 : 1;
}

/* ---- ends ---- */

static void end(struct server *server, struct stream *stream)
{
    close_job(server, stream);
    stream_settle_body(stream);
    stream_set_aside(server, stream, stream->bytes_capacity + (uint64_t)stream->rows_capacity * sizeof *stream->rows);
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
    server->stats.errors[code]++;
    stream_forget(server, stream); /* a repeat starts anew */
    end(server, stream);
}

/* What the owner of a conversation tells about it: its next prompt begins with these tokens. */
static void note_turn(struct server *server, const struct stream *stream)
{
    if (stream->placed && server->config.on_turn)
        server->config.on_turn(server->config.user, stream->placement, stream->epoch,
                               stream->terminal.prompt_tokens + stream->due[0]);
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
    server->stats.done++;
    server->stats.prompt_tokens += event->prompt_tokens;
    server->stats.cached_tokens += event->cached_tokens;
    note_turn(server, stream);
    end(server, stream);
}

bool stream_cancel(struct server *server, struct stream *stream)
{
    if (stream->cancel_us || !stream->open)
        return true;
    if (engine_thread_cancel(server->engine, stream->job) != STATUS_OK)
        return false;
    stream->cancel_us = clock_now_us();
    server->stats.cancelled++;
    return true;
}

void stream_abort(struct server *server, struct stream *stream, enum wire_error_code code, const char *detail)
{
    if (stream->told_number || stream->terminal.code != WIRE_ERROR_UNKNOWN)
        return;
    (void)stream_cancel(server, stream); /* without memory it runs to its end, unheard */
    stream_drop_rows(stream);
    end_with_error(server, stream, code, detail, 0);
}

void stream_give_up(struct server *server, struct stream *stream)
{
    stream->terminal.given_up = true;
    stream_abort(server, stream, WIRE_ERROR_CANCELLED, NULL);
}

/* From the cancel to the engine's word that the work has stopped. */
static void measure_cancel(struct server *server, const struct stream *stream)
{
    unsigned at = 0;
    if (!stream->cancel_us)
        return;
    double seconds = (double)(clock_now_us() - stream->cancel_us) / 1e6;
    while (at < SERVER_CANCEL_BOUNDS && seconds > server_cancel_bounds[at])
        at++;
    server->stats.cancel_counts[at]++;
    server->stats.cancel_seconds += seconds;
}

/* ---- rates ---- */

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

/* Not from resumed streams: their prefill has the resumed tokens too. */
static void measure_rate(struct server *server, const struct stream *stream, const struct engine_event *done)
{
    if (stream->resumed_tokens || done->cached_tokens > done->prompt_tokens)
        return;
    uint32_t prompt = done->prompt_tokens - done->cached_tokens, computed = prompt + done->reply_tokens;
    if (computed == 0)
        return;
    double token_us = ((double)done->prefill_us + done->decode_us) / computed;
    server->token_us = server->token_us > 0 ? 0.8 * server->token_us + 0.2 * token_us : token_us;
    double keep = prompt >= PROMPT_TOKENS_REMEMBERED ? 0 : 1 - prompt / PROMPT_TOKENS_REMEMBERED;
    server->prompt_us = keep * server->prompt_us + done->prefill_us;
    server->prompt_tokens = keep * server->prompt_tokens + prompt;
}

/* ---- what the engine says ---- */

static void on_job(struct server *server, struct stream *stream, const struct engine_event *event)
{
    switch (event->kind) {
    case ENGINE_STARTED:
        stream->started = stream->ack_due = true;
        stream->session->dirty = true;
        break;
    case ENGINE_PROMPT:
        if (!stream_take_prompt(stream, event))
            stream_abort(server, stream, WIRE_ERROR_INTERNAL, "log probabilities of the prompt could not be kept");
        break;
    case ENGINE_TOKENS:
        if (stream_take_tokens(stream, event))
            server->stats.tokens += event->count;
        else
            stream_abort(server, stream, WIRE_ERROR_INTERNAL, "released tokens could not be kept");
        break;
    case ENGINE_DONE:
        measure_cancel(server, stream);
        measure_rate(server, stream, event);
        end_with_done(server, stream, event);
        break;
    case ENGINE_FAILED:
        measure_cancel(server, stream);
        end_with_error(server, stream, refusal_code(event->status, WIRE_ERROR_OVER_CAPACITY), event->detail, 0);
        break;
    case ENGINE_DEMOTED:
    case ENGINE_PROMOTED:
    case ENGINE_EVICTED: break;        /* not about a stream */
    }
}

static bool tell_fate(struct server *server, const struct engine_thread_event *event)
{
    enum engine_event_kind kind = event->event.kind;
    if (event->kind != ENGINE_THREAD_JOB ||
        !(kind == ENGINE_DEMOTED || kind == ENGINE_PROMOTED || kind == ENGINE_EVICTED))
        return false;
    if (server->config.on_fate)
        server->config.on_fate(server->config.user, event->event.conversation, kind);
    return true;
}

void stream_on_engine(struct server *server, const struct engine_thread_event *event)
{
    struct stream *stream = NULL;
    if (tell_fate(server, event))
        return;
    HASH_FIND(by_job, server->by_job, &event->job, sizeof event->job, stream);
    if (!stream)
        return;
    log_request_scope(stream->key.request_id);
    switch (event->kind) {
    case ENGINE_THREAD_ACCEPTED:
        stream->accepted = stream->ack_due = true;
        stream->session->dirty = true;
        stream_settle_body(stream);
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
