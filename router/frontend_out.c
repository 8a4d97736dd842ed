/* frontend_out.c - what leaves for a client: one TOKENS frame a turn, terminals behind it, and what becomes of a client
 * that does not take them.
 *
 *   frontend_tokens ----> batch --.
 *   frontend_terminal --> staged -+--session_flush--> queue --the connection and the grant of bytes allow--> sent
 *                                                       `--no room, or over what may be held--> become_slow
 *
 * Works on struct session of frontend_internal.h; owns its batch and its two lists. Loop thread only. */
#include "router/frontend_internal.h"
#include <stdlib.h>
#include <string.h>
#include "common/log.h"
#include "router/frame.h"

void session_mark_dirty(struct session *session)
{
    if (!session->dirty) {
        session->dirty = true;
        TAILQ_INSERT_TAIL(&session->frontend->dirty, session, in_dirty);
    }
}

static void outgoing_free(struct session *session, struct outgoing_list *list, struct outgoing *out)
{
    session->terminals -= out->terminal;
    TAILQ_REMOVE(list, out, next);
    zmq_msg_close(&out->frame);
    free(out);
}

void session_drop_outgoing(struct session *session)
{
    while (!TAILQ_EMPTY(&session->staged))
        outgoing_free(session, &session->staged, TAILQ_FIRST(&session->staged));
    while (!TAILQ_EMPTY(&session->queue))
        outgoing_free(session, &session->queue, TAILQ_FIRST(&session->queue));
    if (session->batch)
        wire_batch_destroy(&session->batch);
}

void session_lost(struct session *session, enum wire_error_code code)
{
    session->frontend->events.on_session_lost(session->frontend->events.user, session, code);
}

static bool queue_frame(struct outgoing_list *list, zmq_msg_t *frame, struct outgoing **out)
{
    struct outgoing *outgoing = calloc(1, sizeof *outgoing);
    if (!outgoing) {
        zmq_msg_close(frame);
        return false;
    }
    zmq_msg_init(&outgoing->frame);
    zmq_msg_move(&outgoing->frame, frame);
    TAILQ_INSERT_TAIL(list, outgoing, next);
    if (out)
        *out = outgoing;
    return true;
}

/* Tokens of the turn so far, into the queue. */
static bool take_batch(struct session *session)
{
    zmq_msg_t frame;
    struct wire_span bytes = wire_batch_take(session->batch);
    if (bytes.size == 0)
        return true;
    if (zmq_msg_init_size(&frame, bytes.size) != 0)
        return false;
    memcpy(zmq_msg_data(&frame), bytes.data, bytes.size);
    session->queue_bytes += bytes.size;
    return queue_frame(&session->queue, &frame, NULL);
}

/* Its tokens have a hole from here on: nothing but terminals that say so may follow. */
static void become_slow(struct session *session)
{
    if (session->slow)
        return;
    session->slow = true;
    LOG_WARN("client %s does not read: its streams are cancelled", session->name[0] ? session->name : "-");
    struct outgoing_list *lists[] = {&session->queue, &session->staged};
    for (unsigned i = 0; i < 2; i++) {
        struct outgoing *outgoing = TAILQ_FIRST(lists[i]);
        while (outgoing) {
            struct outgoing *next = TAILQ_NEXT(outgoing, next);
            zmq_msg_t frame;
            struct wire_message error = {.kind = WIRE_ERROR,
                                         .error = {.request_id = wire_span_of(outgoing->request_id, WIRE_ID_BYTES),
                                                   .stream = outgoing->stream,
                                                   .attempt = outgoing->attempt,
                                                   .code = WIRE_ERROR_SLOW_READER,
                                                   .detail = wire_span_str("the reply was not read in time")}};
            if (outgoing->terminal && frame_make(&error, &frame) == STATUS_OK)
                zmq_msg_move(&outgoing->frame, &frame), zmq_msg_close(&frame);
            else if (!outgoing->terminal)
                outgoing_free(session, lists[i], outgoing);
            outgoing = next;
        }
    }
    session->queue_bytes = 0;
    if (session->batch)
        (void)wire_batch_take(session->batch);
    session_mark_dirty(session);
    session_lost(session, WIRE_ERROR_SLOW_READER);
}

void frontend_tokens(struct session *session, const struct wire_tokens_row *row)
{
    if (session->slow || session->broken)
        return;
    session_mark_dirty(session);
    if (!session->batch && wire_batch_create(&session->batch) != STATUS_OK)
        session->batch = NULL;
    enum status st = session->batch ? wire_batch_add(session->batch, row) : STATUS_NO_MEMORY;
    if (st == STATUS_AGAIN && take_batch(session))
        st = wire_batch_add(session->batch, row);
    if (st != STATUS_OK)
        session->broken = true; /* the caller is in the middle of its requests: nothing ends here */
}

void frontend_terminal(struct session *session, const struct wire_message *terminal)
{
    zmq_msg_t frame;
    struct outgoing *outgoing;
    if (frame_make(terminal, &frame) != STATUS_OK || !queue_frame(&session->staged, &frame, &outgoing)) {
        LOG_ERROR("a terminal is lost: %s", status_detail());
        return;
    }
    const struct wire_span *id = NULL;
    outgoing->terminal = true;
    session->terminals++;
    if (terminal->kind == WIRE_DONE) {
        id = &terminal->done.request_id;
        outgoing->stream = terminal->done.stream;
        outgoing->attempt = terminal->done.attempt;
    } else if (terminal->kind == WIRE_ERROR) {
        id = &terminal->error.request_id;
        outgoing->stream = terminal->error.stream;
        outgoing->attempt = terminal->error.attempt;
    } else {
        id = &terminal->stream_ref.request_id;
        outgoing->stream = terminal->stream_ref.stream;
        outgoing->attempt = terminal->stream_ref.attempt;
    }
    if (id->size == WIRE_ID_BYTES)
        memcpy(outgoing->request_id, id->data, WIRE_ID_BYTES);
    session_mark_dirty(session);
}

void frontend_refusal(struct session *session, const struct wire_message *error)
{
    if (session->terminals < FRONTEND_TERMINALS_MAX)
        frontend_terminal(session, error);
    else
        session->frontend->refusals_dropped++;
}

void frontend_ack(struct session *session, const struct wire_stream_ref *ack)
{
    if (!session->bound[CONTROL])
        return;
    struct wire_message message = {.kind = WIRE_ACK, .stream_ref = *ack};
    if (frame_send(session->frontend->channels[CONTROL], &session->peers[CONTROL], &message) == STATUS_CLOSED)
        session->bound[CONTROL] = false;
}

/* Its grant of bytes does not cover this frame yet. */
static bool over_credit(const struct session *session, const struct outgoing *outgoing, size_t size)
{
    return !outgoing->terminal && session->tokens_bytes_max > 0 &&
           session->tokens_bytes + size > session->tokens_bytes_max;
}

/* One that grants credit has asked for all of it: its windows bound it. */
static uint64_t held_bytes_max(const struct session *session)
{
    return frontend_session_has_credit(session) ? FRONTEND_CREDIT_BYTES_MAX : FRONTEND_HELD_BYTES_MAX;
}

void session_flush(struct session *session)
{
    struct frontend *frontend = session->frontend;
    if (session->broken || (session->batch && !wire_batch_empty(session->batch) && !take_batch(session)))
        become_slow(session);
    session->broken = false;
    TAILQ_CONCAT(&session->queue, &session->staged, next);
    struct outgoing *outgoing;
    while (session->bound[DATA] && (outgoing = TAILQ_FIRST(&session->queue))) {
        size_t size = zmq_msg_size(&outgoing->frame);
        if (over_credit(session, outgoing, size))
            break;      /* take_credit goes on */
        zmq_msg_t copy; /* shares the bytes; the channel takes it even when it fails */
        zmq_msg_init(&copy);
        zmq_msg_copy(&copy, &outgoing->frame);
        enum status st = channel_send(frontend->channels[DATA], &session->peers[DATA], &copy, 1);
        if (st == STATUS_CLOSED) {
            session->bound[DATA] = false;
        } else if (st != STATUS_OK) { /* tried again by frontend_expire */
            if (!frontend_session_has_credit(session))
                become_slow(session);
            break;
        } else {
            if (!outgoing->terminal) {
                session->queue_bytes -= size;
                session->tokens_bytes += size;
            } else {
                session->told_number = session->number[DATA] + 1;
                session->told_ms = loop_now_ms(frontend->loop);
            }
            outgoing_free(session, &session->queue, outgoing);
        }
    }
    if (TAILQ_EMPTY(&session->queue))
        session->slow = false;
    else if (session->queue_bytes > held_bytes_max(session))
        become_slow(session);
}

void frontend_flush(struct frontend *frontend)
{
    struct session *session, *last = TAILQ_LAST(&frontend->dirty, session_list);
    while (last && (session = TAILQ_FIRST(&frontend->dirty))) {
        bool end = session == last;
        TAILQ_REMOVE(&frontend->dirty, session, in_dirty);
        session->dirty = false;
        session_flush(session);
        if (end)
            break;
    }
}
