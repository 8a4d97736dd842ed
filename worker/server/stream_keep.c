/* stream_keep.c - owns the finished streams without a session and the memory of cancelled ids; decides on streams whose
 * router is gone. Questions about a request (ATTACH) and cancels end here. I/O thread only.
 *
 *   told --seen--> kept, oldest first --keep_finished_ms, or over keep_finished_bytes--> freed
 *                    | a repeat
 *                    +--> move (stream_take.c)
 *
 *   lease ended: session_orphan --the session comes back: everything again-->  as before
 *                    | orphan_ms       | a repeat: move
 *                    v
 *               session_give_up: open ones are cancelled (RESEND), those that ended well are kept */
#include "worker/server/server_internal.h"
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/loop.h"

/* ---- finished ones ---- */

static uint64_t kept_bytes(const struct stream *stream)
{
    return sizeof *stream + stream_row_bytes(stream);
}

/* Gives back what doubling took too much. */
static void shrink(struct stream *stream)
{
    uint32_t bytes = stream->row_count ? stream->rows[stream->row_count - 1].end : 0;
    void *smaller = bytes ? realloc(stream->bytes, bytes) : NULL;
    if (smaller) {
        stream->bytes = smaller;
        stream->bytes_capacity = bytes;
    }
    smaller = stream->row_count ? realloc(stream->rows, stream->row_count * sizeof *stream->rows) : NULL;
    if (smaller) {
        stream->rows = smaller;
        stream->rows_capacity = stream->row_count;
    }
}

static void keep(struct server *server, struct stream *stream)
{
    stream_rewind(stream);
    stream_detach(server, stream);
    stream_set_aside(server, stream, 0);
    shrink(stream);
    stream->kept_ms = loop_now_ms(server->config.loop);
    stream->set_aside = kept_bytes(stream);
    server->stats.kept_bytes += stream->set_aside;
    server->stats.kept++;
    DL_APPEND(server->kept, stream);
    while (server->stats.kept_bytes > server->config.keep_finished_bytes)
        stream_free(server, server->kept);
}

void stream_unkeep(struct server *server, struct stream *stream)
{
    DL_DELETE(server->kept, stream);
    server->stats.kept--;
    server->stats.kept_bytes -= stream->set_aside;
    stream->set_aside = 0;
}

void stream_release(struct server *server, struct stream *stream)
{
    if (stream->known)
        keep(server, stream);
    else
        stream_free(server, stream);
}

void kept_expire(struct server *server, uint64_t now_ms, bool all)
{
    while (server->kept && (all || now_ms - server->kept->kept_ms >= server->config.keep_finished_ms))
        stream_free(server, server->kept);
}

void session_free_seen(struct server *server, struct session *session)
{
    struct stream *stream, *next;
    uint64_t seen = session->links[LINK_DATA].echo_in;
    DL_FOREACH_SAFE(session->streams, stream, next)
    if (stream->told_number && (stream->told_number <= seen || session->told_count > TOLD_MAX))
        stream_release(server, stream);
}

/* ---- orphans ---- */

void session_orphan(struct server *server, struct session *session)
{
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        stream_rewind(stream); /* what went out last may be lost with the connections */
        stream->ack_due = stream->open && stream->accepted;
        server->stats.orphaned += stream->open;
    }
    session->orphans = session->streams != NULL;
}

void session_give_up(struct server *server, struct session *session)
{
    struct stream *stream, *next;
    DL_FOREACH_SAFE(session->streams, stream, next)
    {
        if (stream->open)
            stream_give_up(server, stream);
        else if (stream->known)
            stream_release(server, stream);
    }
    session->orphans = false;
}

/* ---- questions ---- */

void stream_on_attach(struct server *server, const struct channel_peer *peer, const struct wire_attach *attach)
{
    struct stream_key key;
    uint32_t released[WIRE_CHOICES_MAX];
    struct wire_message message = {.kind = WIRE_ATTACH_REPLY};
    stream_key_set(&key, attach->request_id, attach->tenant);
    const struct stream *stream = stream_find(server, &key);
    message.attach_reply.request_id = attach->request_id;
    message.attach_reply.tenant = attach->tenant;
    if (stream) {
        memcpy(released, stream->due, stream->choices * sizeof *released);
        message.attach_reply.known = true;
        message.attach_reply.running = stream->open;
        message.attach_reply.released = wire_span_of(released, stream->choices * sizeof *released);
        server->stats.attached++;
    }
    (void)server_send(server, LINK_CONTROL, peer, &message); /* who hears nothing goes on without it */
}

/* ---- cancels ---- */

/* A cancel of so many attempts is about this one. */
static bool cancel_covers(struct wire_attempt cancel, struct wire_attempt attempt)
{
    return (cancel.client == 0 && cancel.router == 0) || attempt_compare(attempt, cancel) <= 0;
}

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

bool cancelled_before(struct server *server, const struct stream_key *key, struct wire_attempt attempt)
{
    struct cancel_memory *cancel = NULL;
    HASH_FIND(hh, server->cancels, key, sizeof *key, cancel);
    return cancel && cancel->until_ms > loop_now_ms(server->config.loop) && cancel_covers(cancel->attempt, attempt);
}

/* Remembers what nobody has sent yet: a cancel on the control connection may overtake its head on the data connection,
 * and one that comes by another router an attempt of the router that has the request. */
static void remember_cancel(struct server *server, const struct stream_key *key, struct wire_attempt attempt)
{
    struct cancel_memory *cancel = NULL;
    HASH_FIND(hh, server->cancels, key, sizeof *key, cancel);
    if (cancel) {
        if (cancel_covers(cancel->attempt, attempt))
            attempt = cancel->attempt;
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
    cancel->attempt = attempt;
    cancel->until_ms = loop_now_ms(server->config.loop) + server->config.cancel_memory_ms;
    HASH_ADD(hh, server->cancels, key, sizeof cancel->key, cancel);
    if (!cancel->hh.tbl)
        free(cancel);
}

void stream_on_cancel(struct server *server, const struct wire_cancel *cancel)
{
    struct stream_key key;
    stream_key_set(&key, cancel->request_id, cancel->tenant);
    struct stream *stream = stream_find(server, &key);
    if (stream && !cancel_covers(cancel->attempt, stream->attempt)) {
        server->stats.stale++; /* a router that was frozen: what it gave up goes on elsewhere */
        return;
    }
    if (!stream || attempt_compare(cancel->attempt, stream->attempt) > 0)
        remember_cancel(server, &key, cancel->attempt); /* attempts that it covers may still come */
    if (stream && stream->open && stream_cancel(server, stream))
        stream_forget(server, stream); /* a newer attempt starts anew */
}
