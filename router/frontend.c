/* frontend.c - see frontend.h. What leaves for clients is in frontend_out.c.
 *
 *   control: HELLO LEASE CANCEL GOAWAY -->  session  <-- HELLO LEASE HEAD+BODY :data
 *   control: WELCOME LEASE ACK GOAWAY  <--           --> WELCOME LEASE TOKENS DONE ERROR :data */
#include "router/frontend_internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/log.h"
#include "router/frame.h"

enum {
    COMPLAINTS_PER_SECOND = 10,
    FORGET_MS = 60000, /* after its lease: it may still come back for its terminals, 16 MB of sessions at most */
    PEER_QUEUE_BYTES_MAX = 4 << 20, /* behind ZeroMQ's own 64 frames; four times FRONTEND_HELD_BYTES_MAX */
};
_Static_assert(FRONTEND_CREDIT_BYTES_MAX == FRONTEND_STREAMS_MAX * FRONTEND_STREAM_TOKENS * 176u, "full windows");

/* ---- sessions ---- */

static struct session **bucket_of(struct frontend *frontend, const uint8_t *id)
{
    return &frontend->buckets[hash_fast(id, WIRE_ID_BYTES, (uint64_t)(uintptr_t)frontend) % SESSION_BUCKETS];
}

static struct session *session_find(struct frontend *frontend, struct wire_span id)
{
    if (id.size != WIRE_ID_BYTES)
        return NULL;
    struct session *session = *bucket_of(frontend, id.data);
    while (session && memcmp(session->id, id.data, WIRE_ID_BYTES) != 0)
        session = session->chain;
    return session;
}

static void session_set_lost(struct session *session, bool lost)
{
    if (session->lost == lost)
        return;
    session->lost = lost;
    if (lost)
        TAILQ_INSERT_TAIL(&session->frontend->lost, session, in_lost);
    else
        TAILQ_REMOVE(&session->frontend->lost, session, in_lost);
}

static void session_free(struct session *session)
{
    struct frontend *frontend = session->frontend;
    struct session **at = bucket_of(frontend, session->id);
    while (*at != session)
        at = &(*at)->chain;
    *at = session->chain;
    TAILQ_REMOVE(&frontend->sessions, session, in_all);
    session_set_lost(session, false);
    if (session->dirty)
        TAILQ_REMOVE(&frontend->dirty, session, in_dirty);
    frontend->session_count--;
    session_drop_outgoing(session);
    for (unsigned side = 0; side < SIDE_COUNT; side++)
        if (session->bound[side] && frontend->channels[side])
            channel_forget_peer(frontend->channels[side], &session->peers[side]);
    free(session);
}

/* Who said GOAWAY, or is silent for long, gives its place to one that is there. */
static bool make_room(struct frontend *frontend)
{
    struct session *oldest = TAILQ_FIRST(&frontend->lost);
    if (frontend->session_count < FRONTEND_SESSIONS_MAX)
        return true;
    while (oldest && oldest->streams > 0) /* a request overtook its GOAWAY or its lease */
        oldest = TAILQ_NEXT(oldest, in_lost);
    if (oldest)
        session_free(oldest);
    return oldest != NULL;
}

static struct session *session_create(struct frontend *frontend, struct wire_span id)
{
    if (!make_room(frontend))
        return NULL;
    struct session *session = calloc(1, sizeof *session);
    if (!session)
        return NULL;
    session->frontend = frontend;
    memcpy(session->id, id.data, WIRE_ID_BYTES);
    TAILQ_INIT(&session->staged);
    TAILQ_INIT(&session->queue);
    struct session **bucket = bucket_of(frontend, session->id);
    session->chain = *bucket;
    *bucket = session;
    TAILQ_INSERT_TAIL(&frontend->sessions, session, in_all);
    frontend->session_count++;
    return session;
}

static bool peer_equal(const struct channel_peer *a, const struct channel_peer *b)
{
    return a->size == b->size && memcmp(a->id, b->id, a->size) == 0;
}

static void session_bind(struct session *session, enum side side, const struct channel_peer *peer)
{
    if (session->bound[side] && peer_equal(&session->peers[side], peer))
        return;
    session->peers[side] = *peer;
    session->bound[side] = true;
    if (side == DATA && !TAILQ_EMPTY(&session->queue))
        session_mark_dirty(session);
}

/* ---- answers about a connection ---- */

static bool may_complain(struct frontend *frontend, enum side side, const struct channel_peer *peer)
{
    uint64_t second = loop_now_ms(frontend->loop) / 1000;
    struct complaint *slot = &frontend->complaints[hash_fast(peer->id, peer->size, (uint64_t)side) % COMPLAINT_SLOTS];
    if (slot->second != second)
        *slot = (struct complaint){.second = second};
    return ++slot->count <= COMPLAINTS_PER_SECOND;
}

static void complain(struct frontend *frontend, enum side side, const struct channel_peer *peer,
                     enum wire_error_code code, const char *detail)
{
    frontend->malformed++;
    if (!may_complain(frontend, side, peer))
        return;
    struct wire_message error = {.kind = WIRE_ERROR, .error = {.code = code, .detail = wire_span_str(detail)}};
    if (error.error.detail.size > WIRE_DETAIL_MAX)
        error.error.detail.size = WIRE_DETAIL_MAX;
    (void)frame_send(frontend->channels[side], peer, &error);
}

/* A request that never got as far as a session: its answer goes where it came from. */
static void refuse_request(struct frontend *frontend, const struct channel_peer *peer, const struct wire_head *head,
                           enum wire_error_code code, const char *detail)
{
    frontend->malformed++;
    struct wire_message error = {.kind = WIRE_ERROR,
                                 .error = {.request_id = head->request_id,
                                           .stream = head->stream,
                                           .attempt = head->attempt,
                                           .code = code,
                                           .detail = wire_span_str(detail)}};
    (void)frame_send(frontend->channels[DATA], peer, &error);
}

/* ---- hello, leases ---- */

static enum wire_life life(const struct frontend *frontend)
{
    return frontend->draining ? WIRE_LIFE_DRAINING : WIRE_LIFE_READY;
}

static void send_goaway(struct session *session)
{
    struct frontend *frontend = session->frontend;
    if (!session->bound[CONTROL])
        return;
    struct wire_message goaway = {.kind = WIRE_GOAWAY,
                                  .goaway = {.session = wire_span_of(frontend->session, WIRE_ID_BYTES),
                                             .deadline_ms = frontend->drain_deadline_ms,
                                             .detail = wire_span_str("draining")}};
    (void)frame_send(frontend->channels[CONTROL], &session->peers[CONTROL], &goaway);
}

/* A client reaches the data port by the host that it knows: "*" and the port are all it needs. */
static void public_endpoint(const char *bound, char *out, size_t size)
{
    const char *port = strrchr(bound, ':');
    if (strncmp(bound, "tcp://", 6) == 0 && port)
        snprintf(out, size, "tcp://*%s", port);
    else
        snprintf(out, size, "%s", bound);
}

static void send_welcome(struct session *session, enum side side)
{
    struct frontend *frontend = session->frontend;
    char endpoint[256];
    public_endpoint(channel_endpoint(frontend->channels[DATA]), endpoint, sizeof endpoint);
    struct wire_message welcome = {.kind = WIRE_WELCOME,
                                   .welcome = {.version = WIRE_VERSION,
                                               .session = wire_span_of(frontend->session, WIRE_ID_BYTES),
                                               .name = wire_span_str(frontend->name),
                                               .build = wire_span_str(ROOST_VERSION),
                                               .data_endpoint = wire_span_str(endpoint),
                                               .lease_ms = frontend->lease_ms,
                                               .lease_expiry_ms = frontend->lease_expiry_ms,
                                               .limits = {.body_bytes_max = WIRE_BODY_BYTES_MAX,
                                                          .head_bytes_max = WIRE_HEAD_BYTES_MAX,
                                                          .unacknowledged_bytes_max = FRONTEND_GRANT_BYTES,
                                                          .streams_max = FRONTEND_STREAMS_MAX,
                                                          .stream_credit_tokens = FRONTEND_STREAM_TOKENS,
                                                          .messages_max = WIRE_MESSAGES_MAX},
                                               .state = life(frontend),
                                               .capabilities = WIRE_CAN_RESUME | WIRE_CAN_CREDIT}};
    (void)frame_send(frontend->channels[side], &session->peers[side], &welcome);
}

static void welcome(struct session *session, enum side side)
{
    session->welcome_due[side] = false;
    session->heard_ms = loop_now_ms(session->frontend->loop); /* it could say nothing but HELLO until now */
    send_welcome(session, side);
    if (session->frontend->draining && side == CONTROL)
        send_goaway(session);
    if (side == DATA)
        session_flush(session); /* what it was owed goes out before its next request is judged */
}

static void on_hello(struct frontend *frontend, enum side side, const struct channel_peer *peer,
                     const struct wire_hello *hello)
{
    static const enum wire_connection expected[SIDE_COUNT] = {WIRE_CONNECTION_CONTROL, WIRE_CONNECTION_DATA};
    char detail[160];
    if (hello->version_min > WIRE_VERSION || hello->version_max < WIRE_VERSION) {
        snprintf(detail, sizeof detail, "no common version: you speak %" PRIu32 " to %" PRIu32 ", this router %d to %d",
                 hello->version_min, hello->version_max, WIRE_VERSION, WIRE_VERSION);
        complain(frontend, side, peer, WIRE_ERROR_UNSUPPORTED, detail);
        return;
    }
    if (hello->role != WIRE_ROLE_CLIENT) {
        complain(frontend, side, peer, WIRE_ERROR_UNSUPPORTED,
                 "only clients connect here; other roles are not built yet");
        return;
    }
    if (hello->connection != expected[side]) {
        complain(frontend, side, peer, WIRE_ERROR_INVALID,
                 side == CONTROL ? "this is the control endpoint" : "this is the data endpoint");
        return;
    }
    struct session *session = session_find(frontend, hello->session);
    if (!session && !(session = session_create(frontend, hello->session))) {
        complain(frontend, side, peer, WIRE_ERROR_OVER_CAPACITY, "this router has as many clients as it can take");
        return;
    }
    if (hello->name.size && hello->name.size < sizeof session->name) {
        memcpy(session->name, hello->name.data, hello->name.size);
        session->name[hello->name.size] = 0;
    }
    session->heard_ms = loop_now_ms(frontend->loop);
    session_set_lost(session, false);
    session->capabilities = hello->capabilities;
    if (side == DATA)
        session->tokens_bytes = session->tokens_bytes_max = session->told_number = 0;
    session->number[side] = session->heard_number[side] = 0;
    session_bind(session, side, peer);
    session->welcome_due[side] = true;
    if (frontend->open)
        welcome(session, side);
}

void frontend_open(struct frontend *frontend)
{
    struct session *session;
    frontend->open = true;
    TAILQ_FOREACH(session, &frontend->sessions, in_all)
    for (unsigned side = 0; side < SIDE_COUNT; side++)
        if (session->welcome_due[side])
            welcome(session, side);
}

static void send_lease(struct session *session, enum side side)
{
    struct frontend *frontend = session->frontend;
    if (!session->bound[side] || session->welcome_due[side])
        return;
    struct wire_message lease = {.kind = WIRE_LEASE,
                                 .lease = {.session = wire_span_of(frontend->session, WIRE_ID_BYTES),
                                           .number = ++session->number[side],
                                           .echo = session->heard_number[side],
                                           .state = life(frontend),
                                           .acknowledged_bytes = session->body_bytes_acknowledged}};
    if (frame_send(frontend->channels[side], &session->peers[side], &lease) == STATUS_CLOSED)
        session->bound[side] = false;
}

static void on_lease_timer(void *user)
{
    struct frontend *frontend = user;
    struct session *session;
    TAILQ_FOREACH(session, &frontend->sessions, in_all)
    for (unsigned side = 0; side < SIDE_COUNT; side++)
        send_lease(session, side);
}

/* Grants of a lease on control. They are totals, so one that comes late or twice says nothing new. */
static void take_credit(struct session *session, const struct wire_lease *lease)
{
    struct frontend *frontend = session->frontend;
    if (!frontend_session_has_credit(session))
        return;
    if (lease->credit_connection_bytes > session->tokens_bytes_max) {
        session->tokens_bytes_max = lease->credit_connection_bytes;
        if (!TAILQ_EMPTY(&session->queue))
            session_mark_dirty(session);
    }
    for (size_t i = 0; i < lease->credit_streams.size / 4; i++)
        frontend->events.on_credit(frontend->events.user, session, wire_u32_at(lease->credit_streams, i),
                                   wire_u64_at(lease->credit_tokens, i));
}

static void on_lease(struct frontend *frontend, enum side side, const struct channel_peer *peer,
                     const struct wire_lease *lease)
{
    struct session *session = session_find(frontend, lease->session);
    if (!session) {
        complain(frontend, side, peer, WIRE_ERROR_INVALID, "a lease of an unknown session: say HELLO first");
        return;
    }
    if (lease->number <= session->heard_number[side] || lease->echo > session->number[side]) {
        frontend->malformed++; /* late, or of another connection: its grants and its word are not of now */
        return;
    }
    session->heard_number[side] = lease->number;
    if (side == CONTROL) {
        session->heard_ms = loop_now_ms(frontend->loop);
        session_set_lost(session, false);
    } else if (lease->echo >= session->told_number) {
        session->told_number = 0;
    }
    session_bind(session, side, peer);
    if (side == CONTROL)
        take_credit(session, lease);
}

/* ---- requests ---- */

/* Why the frames are no request; NULL: they are one. */
static const char *head_fault(const struct wire_head *head, zmq_msg_t *frames, unsigned count,
                              enum wire_error_code *code)
{
    *code = WIRE_ERROR_INVALID;
    if (count != 2)
        return "a request is two frames: head and body";
    struct wire_span body = frame_span(&frames[1]);
    enum wire_kind kind;
    if (body.size > wire_frame_bytes_max(WIRE_BODY)) {
        *code = WIRE_ERROR_TOO_LARGE;
        return "the body is larger than 1 MiB";
    }
    if (wire_peek(body.data, body.size, &kind, NULL) != STATUS_OK || kind != WIRE_BODY)
        return "the second frame is not a body";
    if (body.size != head->body_bytes)
        return "body_bytes is not the size of the body frame";
    return NULL;
}

static void on_head(struct frontend *frontend, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count,
                    struct wire_message *message)
{
    const struct wire_head *head = &message->head;
    struct session *session = session_find(frontend, head->session);
    if (!session || !session->bound[DATA] || !peer_equal(&session->peers[DATA], peer)) {
        refuse_request(frontend, peer, head, WIRE_ERROR_INVALID,
                       "no such session on this connection: say HELLO on it first");
        return;
    }
    size_t body_bytes = count > 1 ? zmq_msg_size(&frames[1]) : 0;
    enum wire_error_code code;
    const char *fault = head_fault(head, frames, count, &code);
    session->body_bytes_open += body_bytes;
    if (fault) {
        refuse_request(frontend, peer, head, code, fault);
        frontend_body_acknowledged(session, body_bytes);
        return;
    }
    frontend->events.on_request(frontend->events.user, session, &frames[0], message, &frames[1]);
}

static void on_cancel(struct frontend *frontend, const struct channel_peer *peer, const struct wire_cancel *cancel)
{
    struct session *session = session_find(frontend, cancel->session);
    if (!session || !session->bound[CONTROL] || !peer_equal(&session->peers[CONTROL], peer)) {
        complain(frontend, CONTROL, peer, WIRE_ERROR_INVALID, "a cancel of an unknown session: say HELLO first");
        return;
    }
    frontend->events.on_cancel(frontend->events.user, session, cancel);
}

static void on_client_goaway(struct frontend *frontend, const struct channel_peer *peer,
                             const struct wire_goaway *goaway)
{
    struct session *session = session_find(frontend, goaway->session);
    if (!session || !session->bound[CONTROL] || !peer_equal(&session->peers[CONTROL], peer))
        return;
    session_set_lost(session, true);
    session_lost(session, WIRE_ERROR_CANCELLED);
}

static void on_frame(struct frontend *frontend, enum side side, const struct channel_peer *peer, zmq_msg_t *frames,
                     unsigned count)
{
    struct wire_message message;
    enum wire_kind kind = 0;
    struct wire_span frame = frame_span(&frames[0]);
    enum status st = wire_peek(frame.data, frame.size, &kind, NULL);
    if (st == STATUS_OK)
        st = wire_decode(frame.data, frame.size, &message);
    if (st != STATUS_OK) {
        enum wire_error_code code = st == STATUS_UNSUPPORTED ? WIRE_ERROR_UNSUPPORTED
                                    : st == STATUS_LIMIT     ? WIRE_ERROR_TOO_LARGE
                                    : st == STATUS_NO_MEMORY ? WIRE_ERROR_OVER_CAPACITY
                                                             : WIRE_ERROR_INVALID;
        complain(frontend, side, peer, code, status_detail());
        return;
    }
    if (count != 1 && kind != WIRE_HEAD)
        complain(frontend, side, peer, WIRE_ERROR_INVALID, "too many frames for this kind of message");
    else if (kind == WIRE_HELLO)
        on_hello(frontend, side, peer, &message.hello);
    else if (kind == WIRE_LEASE)
        on_lease(frontend, side, peer, &message.lease);
    else if (kind == WIRE_HEAD && side == DATA)
        on_head(frontend, peer, frames, count, &message);
    else if (kind == WIRE_CANCEL && side == CONTROL)
        on_cancel(frontend, peer, &message.cancel);
    else if (kind == WIRE_GOAWAY && side == CONTROL)
        on_client_goaway(frontend, peer, &message.goaway);
    else if (kind == WIRE_ATTACH || kind == WIRE_DRAIN)
        complain(frontend, side, peer, WIRE_ERROR_UNSUPPORTED,
                 kind == WIRE_DRAIN ? "a router drains its workers by its operator port: POST /drain"
                                    : "send the request again, with a newer attempt: the router attaches it");
    else {
        char detail[96];
        snprintf(detail, sizeof detail, "%s does not belong on the %s connection of a client", wire_kind_name(kind),
                 side == CONTROL ? "control" : "data");
        complain(frontend, side, peer, WIRE_ERROR_INVALID, detail);
    }
    wire_message_free(&message);
}

static void on_control_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    on_frame(user, CONTROL, peer, frames, count);
}

static void on_data_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    on_frame(user, DATA, peer, frames, count);
}

const uint8_t *frontend_session_id(const struct session *session)
{
    return session->id;
}

bool frontend_session_has_credit(const struct session *session)
{
    return session->capabilities & WIRE_CAN_CREDIT;
}

void frontend_stream_open(struct session *session)
{
    session->streams++;
}

void frontend_stream_close(struct session *session)
{
    session->streams--;
}

void frontend_body_acknowledged(struct session *session, uint64_t bytes)
{
    session->body_bytes_open -= bytes < session->body_bytes_open ? bytes : session->body_bytes_open;
    session->body_bytes_acknowledged += bytes;
}

bool frontend_session_full(const struct session *session)
{
    return session->slow || session->streams + session->terminals >= FRONTEND_STREAMS_MAX ||
           session->body_bytes_open > FRONTEND_GRANT_BYTES;
}

void frontend_expire(struct frontend *frontend, uint64_t now_ms)
{
    struct session *session = TAILQ_FIRST(&frontend->sessions);
    while (session) {
        struct session *next = TAILQ_NEXT(session, in_all);
        uint64_t silent_ms = now_ms > session->heard_ms ? now_ms - session->heard_ms : 0;
        if (session->bound[DATA] && !TAILQ_EMPTY(&session->queue))
            session_mark_dirty(session);
        if (!session->lost && silent_ms > frontend->lease_expiry_ms) {
            session_set_lost(session, true);
            LOG_INFO("client %s is silent for %" PRIu64 " ms: its streams are cancelled",
                     session->name[0] ? session->name : "-", silent_ms);
            session_lost(session, WIRE_ERROR_CANCELLED);
        }
        if (session->lost && session->streams == 0 && silent_ms > frontend->lease_expiry_ms + FORGET_MS)
            session_free(session);
        session = next;
    }
}

void frontend_drain(struct frontend *frontend, uint32_t deadline_ms)
{
    frontend->draining = true;
    frontend->drain_deadline_ms = deadline_ms;
    struct session *session;
    TAILQ_FOREACH(session, &frontend->sessions, in_all)
    send_goaway(session);
}

size_t frontend_pending(const struct frontend *frontend)
{
    size_t bytes = channel_pending(frontend->channels[CONTROL]) + channel_pending(frontend->channels[DATA]);
    const struct session *session;
    TAILQ_FOREACH(session, &frontend->sessions, in_all)
    {
        const struct outgoing *outgoing;
        if (session->bound[DATA])
            TAILQ_FOREACH(outgoing, &session->queue, next)
        bytes += zmq_msg_size((zmq_msg_t *)&outgoing->frame);
    }
    return bytes;
}

static bool has_seen(const struct session *session)
{
    const struct frontend *frontend = session->frontend;
    return session->told_number == 0 || !session->bound[DATA] ||
           loop_now_ms(frontend->loop) - session->told_ms > frontend->lease_expiry_ms;
}

bool frontend_seen(const struct frontend *frontend)
{
    const struct session *session;
    TAILQ_FOREACH(session, &frontend->sessions, in_all)
    if (!has_seen(session))
        return false;
    return true;
}

void frontend_ask_seen(struct frontend *frontend)
{
    struct session *session;
    TAILQ_FOREACH(session, &frontend->sessions, in_all)
    if (!has_seen(session))
        send_lease(session, DATA);
}

unsigned frontend_session_count(const struct frontend *frontend)
{
    return frontend->session_count;
}

uint64_t frontend_malformed(const struct frontend *frontend)
{
    return frontend->malformed;
}

uint64_t frontend_refusals_dropped(const struct frontend *frontend)
{
    return frontend->refusals_dropped;
}

const char *frontend_control_endpoint(const struct frontend *frontend)
{
    return channel_endpoint(frontend->channels[CONTROL]);
}

const char *frontend_data_endpoint(const struct frontend *frontend)
{
    return channel_endpoint(frontend->channels[DATA]);
}

/* ---- life ---- */

enum status frontend_create(struct loop *loop, void *zmq_context, const struct frontend_config *config,
                            const struct frontend_events *events, struct frontend **out)
{
    struct frontend *frontend = calloc(1, sizeof *frontend);
    if (!frontend)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the frontend");
    frontend->loop = loop;
    frontend->events = *events;
    snprintf(frontend->name, sizeof frontend->name, "%s", config->name);
    memcpy(frontend->session, config->session, WIRE_ID_BYTES);
    frontend->lease_ms = config->lease_ms;
    frontend->lease_expiry_ms = config->lease_expiry_ms;
    TAILQ_INIT(&frontend->sessions);
    TAILQ_INIT(&frontend->dirty);
    TAILQ_INIT(&frontend->lost);
    struct channel_config control = {.heartbeat = true,
                                     .frame_bytes_max = WIRE_LEASE_BYTES_MAX,
                                     .receive_messages_max = 1000,
                                     .send_messages_max = 1000,
                                     .queue_bytes_max = 1 << 20,
                                     .on_message = on_control_message,
                                     .user = frontend};
    /* 8 bodies of 1 MiB a peer wait in memory at most; 64 replies: a turn sends one batch and some terminals */
    struct channel_config data = {.heartbeat = false,
                                  .frame_bytes_max = WIRE_FRAME_BYTES_MAX,
                                  .receive_messages_max = 8,
                                  .send_messages_max = 64,
                                  .queue_bytes_max = PEER_QUEUE_BYTES_MAX,
                                  .on_message = on_data_message,
                                  .user = frontend};
    enum status st;
    TRY_GOTO(channel_create_server(loop, zmq_context, &control, config->listen_control, &frontend->channels[CONTROL]),
             st, fail);
    TRY_GOTO(channel_create_server(loop, zmq_context, &data, config->listen_data, &frontend->channels[DATA]), st, fail);
    TRY_GOTO(loop_timer_create(loop, config->lease_ms, true, on_lease_timer, frontend, &frontend->lease_timer), st,
             fail);
    *out = frontend;
    return STATUS_OK;
fail:
    frontend_destroy(&frontend);
    return st;
}

void frontend_destroy(struct frontend **frontend)
{
    struct frontend *gone = *frontend;
    if (!gone)
        return;
    *frontend = NULL;
    loop_timer_destroy(&gone->lease_timer);
    while (!TAILQ_EMPTY(&gone->sessions))
        session_free(TAILQ_FIRST(&gone->sessions));
    for (unsigned side = 0; side < SIDE_COUNT; side++)
        channel_destroy(&gone->channels[side]);
    free(gone);
}
