/* session.c - owns the sessions of routers and the counts of malformed frames. I/O thread only.
 *
 *              HELLO           silent for lease_expiry_ms
 *   (unknown) -------> alive -----------------------------> expired: connections unbound, streams are orphans
 *                      |   ^                                  |    |  orphan_ms: session_give_up
 *                      |   +----- HELLO, LEASE, HEAD ---------+    |
 *                      |          (bound to the connection)        v  longest silent, when SESSIONS_MAX are there
 *                      +---- a send finds a connection gone:     freed
 *                            unbound
 * A lost connection alone cancels nothing: the streams wait for the next HELLO or LEASE and are sent again from their
 * start. What is queued for a data connection goes out on it, or is dropped when the connection is gone or another one
 * takes its place: sent_bytes counts it, and nothing but a HELLO counts anew. Of an expired session that is 4 MiB at
 * most (QUEUE_BYTES), until its router reads or its connection ends. */
#include "worker/server/server_internal.h"
#include <stdlib.h>
#include <string.h>
#include "common/log.h"
#include "common/loop.h"

static bool peer_equal(const struct channel_peer *a, const struct channel_peer *b)
{
    return a->size == b->size && memcmp(a->id, b->id, a->size) == 0;
}

struct session *session_find(struct server *server, struct wire_span id)
{
    struct session *session = NULL;
    if (id.size == WIRE_ID_BYTES)
        HASH_FIND(hh, server->sessions, id.data, WIRE_ID_BYTES, session);
    return session;
}

struct session *session_of_peer(struct server *server, enum link link, const struct channel_peer *peer)
{
    for (struct session *session = server->sessions; session; session = session->hh.next)
        if (session->links[link].bound && peer_equal(&session->links[link].peer, peer))
            return session;
    return NULL;
}

static void session_free(struct server *server, struct session *session)
{
    for (int link = 0; link < LINK_COUNT; link++)
        if (session->links[link].peer.size)
            channel_forget_peer(server->channels[link], &session->links[link].peer);
    streams_destroy(server, session);
    HASH_DELETE(hh, server->sessions, session);
    free(session->early);
    free(session);
}

/* Makes room for one more by forgetting the one that has been silent longest. */
static bool make_room(struct server *server)
{
    struct session *session, *next, *oldest = NULL;
    if (HASH_COUNT(server->sessions) < SESSIONS_MAX)
        return true;
    HASH_ITER(hh, server->sessions, session, next)
    if (session->expired_ms && (!oldest || session->heard_ms < oldest->heard_ms))
        oldest = session;
    if (!oldest)
        return false;
    session_give_up(server, oldest);
    session_free(server, oldest);
    return true;
}

enum status session_hello(struct server *server, const struct wire_hello *hello, struct session **out)
{
    struct session *session = session_find(server, hello->session);
    if (!session) {
        if (!make_room(server))
            return STATUS_FAIL(STATUS_LIMIT, "%u routers are connected already", SESSIONS_MAX);
        session = calloc(1, sizeof *session);
        if (!session)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a session");
        memcpy(session->id, hello->session.data, sizeof session->id);
        HASH_ADD(hh, server->sessions, id, sizeof session->id, session);
        if (!session->hh.tbl) {
            free(session);
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a session");
        }
    }
    memset(session->name, 0, sizeof session->name);
    if (hello->name.size <= WIRE_NAME_MAX && hello->name.size > 0)
        memcpy(session->name, hello->name.data, hello->name.size);
    session->capabilities = hello->capabilities;
    if (hello->connection == WIRE_CONNECTION_DATA)
        session->sent_bytes = 0;
    *out = session;
    return STATUS_OK;
}

void session_bind(struct server *server, struct session *session, enum link link, const struct channel_peer *peer)
{
    struct session_link *bound = &session->links[link];
    bool same = peer_equal(&bound->peer, peer);
    if (bound->bound && same)
        return;
    if (!same) {
        if (bound->peer.size)
            channel_forget_peer(server->channels[link], &bound->peer);
        /* What went to the old connection may be lost: it is all sent again. */
        for (struct stream *stream = session->streams; stream; stream = stream->next) {
            if (link == LINK_DATA)
                stream_rewind(stream);
            else
                stream->ack_due = stream->open && stream->accepted;
        }
        bound->peer = *peer;
        bound->number_in = bound->echo_in = 0;
        if (link == LINK_DATA)
            session->blocked_ms = 0;
    }
    bound->bound = true;
    session->dirty = true;
}

void session_unbind(struct server *server, struct session *session, enum link link)
{
    if (!session->links[link].bound)
        return;
    session->links[link].bound = false;
    channel_forget_peer(server->channels[link], &session->links[link].peer);
}

void session_heard(struct server *server, struct session *session)
{
    session->heard_ms = loop_now_ms(server->config.loop);
    if (session->expired_ms)
        LOG_INFO("router %s is back", session->name);
    session->expired_ms = 0;
    session->orphans = false;
}

enum status session_send(struct server *server, struct session *session, enum link link,
                         const struct wire_message *message)
{
    struct session_link *to = &session->links[link];
    if (!to->bound)
        return STATUS_CLOSED;
    enum status st = server_send(server, link, &to->peer, message);
    if (st == STATUS_CLOSED)
        session_unbind(server, session, link);
    return st;
}

static void expire(struct server *server, struct session *session, uint64_t now_ms)
{
    LOG_WARN("router %s was silent for %u ms: its %u streams run on for %u ms", session->name,
             server->config.lease_expiry_ms, session->stream_count - session->told_count, server->config.orphan_ms);
    session->expired_ms = now_ms;
    session_orphan(server, session);
    session_unbind(server, session, LINK_CONTROL);
    session->links[LINK_DATA].bound = false; /* what is queued there is counted: it is not dropped */
    session->blocked_ms = 0;
}

/* Those that do not take their tokens although they are alive. */
static void cut_slow_reader(struct server *server, struct session *session)
{
    unsigned cut = 0;
    for (struct stream *stream = session->streams; stream; stream = stream->next) {
        if (!stream->open)
            continue;
        stream_abort(server, stream, WIRE_ERROR_SLOW_READER, "the router does not take its tokens");
        cut++;
    }
    if (cut)
        LOG_WARN("router %s did not read for %u ms: %u streams are cancelled", session->name,
                 server->config.slow_reader_ms, cut);
}

/* Those whose tokens nobody granted for too long. */
static void cut_starved(struct server *server, struct session *session, uint64_t now_ms)
{
    for (struct stream *stream = session->streams; stream; stream = stream->next)
        if (stream->starved_ms && now_ms - stream->starved_ms >= server->config.credit_wait_ms)
            stream_abort(server, stream, WIRE_ERROR_SLOW_READER, "nobody takes the tokens: no credit came for them");
}

void sessions_expire(struct server *server, uint64_t now_ms)
{
    struct session *session, *next;
    HASH_ITER(hh, server->sessions, session, next)
    {
        if (session->orphans && now_ms - session->expired_ms >= server->config.orphan_ms)
            session_give_up(server, session);
        if (session->expired_ms)
            continue;
        if (now_ms - session->heard_ms >= server->config.lease_expiry_ms)
            expire(server, session, now_ms);
        else if (session->blocked_ms && now_ms - session->blocked_ms >= server->config.slow_reader_ms)
            cut_slow_reader(server, session);
        else
            cut_starved(server, session, now_ms);
    }
}

void sessions_destroy(struct server *server)
{
    struct session *session, *next;
    HASH_ITER(hh, server->sessions, session, next)
    session_free(server, session);
    struct peer_errors *peer, *next_peer;
    HASH_ITER(hh, server->peers, peer, next_peer)
    {
        HASH_DELETE(hh, server->peers, peer);
        free(peer);
    }
}

bool peer_may_be_told(struct server *server, enum link link, const struct channel_peer *peer)
{
    struct peer_key key;
    memset(&key, 0, sizeof key);
    key.link = (uint8_t)link;
    key.peer.size = peer->size;
    memcpy(key.peer.id, peer->id, peer->size);
    struct peer_errors *errors = NULL;
    HASH_FIND(hh, server->peers, &key, sizeof key, errors);
    if (!errors) {
        if (HASH_COUNT(server->peers) >= PEERS_MAX) { /* the table keeps the order of adding: the first is the oldest */
            struct peer_errors *oldest = server->peers;
            HASH_DELETE(hh, server->peers, oldest);
            free(oldest);
        }
        errors = calloc(1, sizeof *errors);
        if (!errors)
            return false;
        errors->key = key;
        HASH_ADD(hh, server->peers, key, sizeof errors->key, errors);
        if (!errors->hh.tbl) {
            free(errors);
            return false;
        }
    }
    uint64_t now = loop_now_ms(server->config.loop);
    if (now - errors->window_ms >= 1000) {
        errors->window_ms = now;
        errors->count = 0;
    }
    return errors->count++ < PEER_ERRORS_PER_SECOND;
}
