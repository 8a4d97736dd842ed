/* server.c - owns the two channels, the timers and the engine thread; takes frames apart and hands them on. I/O thread
 * only.
 *
 *   on_control, on_data --> on_frames --> on_hello, on_lease        session.c
 *                               |-------> stream_on_cancel, _attach stream_keep.c
 *                               |-------> drain_on_request          drain.c
 *                               +-------> on_request -------------> stream_on_request, stream_take.c
 *   on_engine (posted work) --> stream_on_engine
 *   on_turn_end (hook) -------> session_flush for each dirty session, then the progress of a drain
 *   on_lease_timer -----------> leases out, expiry
 *
 *   STARTING --READY--> READY <--> DRAINING, SAFE_TO_DELETE (drain.c) --> GONE (on_state)
 *       +------------------- engine failed ---------------------------------^ */
#include "worker/server/server_internal.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/probe.h"
#include "worker/engine/backend/backend.h"
#include "worker/server/server.h"

#define LEASE_EXPIRY_MS          5000u
#define ORPHAN_MS                10000u
#define KEEP_FINISHED_MS         60000u
#define KEEP_FINISHED_BYTES      (64ull << 20)
#define SLOW_READER_MS           5000u
#define CREDIT_WAIT_MS           30000u
#define CANCEL_MEMORY_MS         30000u
#define CAPABILITIES             (WIRE_CAN_RESUME | WIRE_CAN_ATTACH | WIRE_CAN_CREDIT | WIRE_CAN_DRAIN | WIRE_CAN_TELL_START)
#define SEQUENCES_MAX            64u          /* the engine's own default */
#define CONTROL_FRAME_BYTES      (512u << 10) /* leases reach 256 KiB */
#define CONTROL_RECEIVE_MESSAGES 1000
#define DATA_RECEIVE_MESSAGES    8          /* times 2 MiB: what may wait in ZeroMQ for one router */
#define SEND_MESSAGES            64         /* times 256 KiB of tokens at most, per router */
#define QUEUE_BYTES              (4u << 20) /* per router and channel, after ZeroMQ's own */

/* ---- out ---- */

enum status server_send(struct server *server, enum link link, const struct channel_peer *peer,
                        const struct wire_message *message)
{
    zmq_msg_t frame;
    size_t size = wire_encoded_size(message);
    if (size == 0 || zmq_msg_init_size(&frame, size) != 0)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a %s frame", wire_kind_name(message->kind));
    wire_encode(message, zmq_msg_data(&frame));
    enum status st = channel_send(server->channels[link], peer, &frame, 1);
    zmq_msg_close(&frame);
    return st;
}

void server_send_error(struct server *server, enum link link, const struct channel_peer *peer,
                       enum wire_error_code code, const char *detail)
{
    struct refusal refusal;
    struct wire_message message = {.kind = WIRE_ERROR};
    refusal_set(&refusal, code, "%s", detail);
    message.error.code = code;
    message.error.detail = wire_span_str(refusal.detail);
    if (!wire_utf8_valid(message.error.detail))
        message.error.detail = wire_span_str("");
    (void)server_send(server, link, peer, &message);
}

/* A frame that breaks a rule: answered, at a bounded rate; the connection stays. An ERROR is never answered with one.
 */
static void malformed(struct server *server, enum link link, const struct channel_peer *peer, enum status st,
                      enum wire_kind kind)
{
    server->stats.malformed++;
    if (kind == WIRE_ERROR || !peer_may_be_told(server, link, peer))
        return;
    LOG_WARN("malformed frame on the %s connection (%llu so far): %s", link == LINK_CONTROL ? "control" : "data",
             (unsigned long long)server->stats.malformed, status_detail());
    enum wire_error_code code = st == STATUS_UNSUPPORTED ? WIRE_ERROR_UNSUPPORTED
                                : st == STATUS_LIMIT     ? WIRE_ERROR_TOO_LARGE
                                                         : WIRE_ERROR_INVALID;
    server_send_error(server, link, peer, code, status_detail());
}

static void send_welcome(struct server *server, const struct session *session, enum link link,
                         const struct channel_peer *peer)
{
    struct wire_message message = {.kind = WIRE_WELCOME};
    struct wire_welcome *welcome = &message.welcome;
    welcome->version = WIRE_VERSION;
    welcome->session = wire_span_of(server->incarnation, sizeof server->incarnation);
    welcome->name = wire_span_str(server->name);
    welcome->build = wire_span_str(ROOST_VERSION);
    welcome->data_endpoint = wire_span_str(server->data_endpoint);
    welcome->lease_ms = server->config.lease_ms;
    welcome->lease_expiry_ms = server->config.lease_expiry_ms;
    welcome->limits = (struct wire_limits){
        .body_bytes_max = WIRE_BODY_BYTES_MAX,
        .head_bytes_max = WIRE_HEAD_BYTES_MAX,
        .unacknowledged_bytes_max = GRANT_BYTES,
        .streams_max = streams_max(server),
        .stream_credit_tokens = session->capabilities & WIRE_CAN_CREDIT ? STREAM_WINDOW_TOKENS : 0,
        .messages_max = WIRE_MESSAGES_MAX,
    };
    welcome->state = server->state;
    welcome->capabilities = CAPABILITIES;
    if (server->info) {
        welcome->limits.prompt_tokens_max = server->info->context_tokens_max;
        welcome->model = wire_span_str(server->info->model_name);
        welcome->weights_digest = wire_span_of(server->info->weights_digest, sizeof server->info->weights_digest);
        welcome->numerics_id = wire_span_of(server->info->numerics_id, sizeof server->info->numerics_id);
        welcome->kv_tokens_max = server->info->kv_tokens_max;
    }
    (void)server_send(server, link, peer, &message); /* a router that hears nothing says HELLO again */
}

/* Of a computed token of a prompt; 0: not measured yet. */
static uint32_t token_ns(const struct server *server)
{
    double ns = server->prompt_tokens >= 1 ? 1000 * server->prompt_us / server->prompt_tokens : 0;
    return ns >= UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static uint32_t slowest(uint32_t known_mhz, uint32_t mhz)
{
    return known_mhz == 0 || (mhz != 0 && mhz < known_mhz) ? mhz : known_mhz;
}

/* Several make one: memory and errors of all, clocks of the slowest, for which the others wait. */
static struct wire_device device_of(const struct backend_health *health)
{
    struct wire_device all = {0};
    for (uint32_t i = 0; i < health->device_count; i++) {
        const struct backend_device_health *one = &health->devices[i];
        all.memory_bytes += one->memory_bytes;
        all.memory_used_bytes += one->memory_used_bytes;
        all.ecc_uncorrected += one->ecc_uncorrected;
        all.sm_mhz = slowest(all.sm_mhz, one->sm_mhz);
        all.memory_mhz = slowest(all.memory_mhz, one->memory_mhz);
        all.throttle_reasons |= one->throttle_reasons;
    }
    return all;
}

void server_load_read(const struct server *server, struct wire_load *out)
{
    struct engine_progress progress;
    engine_thread_progress(server->engine, &progress);
    uint64_t now = clock_now_ms();
    uint64_t age = progress.step_started_ms && now > progress.step_started_ms ? now - progress.step_started_ms : 0;
    *out = (struct wire_load){
        .queued_requests = progress.queued_requests + engine_thread_submits(server->engine),
        .running_requests = progress.running_requests,
        .queued_tokens = progress.queued_tokens,
        .running_tokens = progress.running_tokens,
        .kv_tokens_used = progress.kv_tokens_used,
        .kv_tokens_max = progress.kv_tokens_max,
        .steps = progress.steps,
        .step_age_ms = age > UINT32_MAX ? UINT32_MAX : (uint32_t)age,
        .step_median_us = progress.step_median_us,
        .token_ns = token_ns(server),
    };
    struct backend_health health;
    out->has_device = engine_thread_health(server->engine, &health);
    if (out->has_device)
        out->device = device_of(&health);
}

static void send_lease(struct server *server, struct session *session, enum link link)
{
    struct session_link *to = &session->links[link];
    struct wire_message message = {.kind = WIRE_LEASE};
    if (!to->bound || PROBE("worker.lease"))
        return;
    message.lease = (struct wire_lease){
        .session = wire_span_of(server->incarnation, sizeof server->incarnation),
        .number = ++to->number_out,
        .echo = to->number_in,
        .state = server->state,
        .has_load = true,
        .acknowledged_bytes = session->consumed_bytes,
    };
    server_load_read(server, &message.lease.load);
    (void)session_send(server, session, link, &message); /* the next one says it again */
}

void server_send_leases(struct server *server, struct session *session)
{
    send_lease(server, session, LINK_CONTROL);
    send_lease(server, session, LINK_DATA);
}

void server_welcome_all(struct server *server)
{
    struct session *session, *next;
    HASH_ITER(hh, server->sessions, session, next)
    {
        for (unsigned link = 0; link < LINK_COUNT; link++)
            if (session->links[link].bound)
                send_welcome(server, session, (enum link)link, &session->links[link].peer);
        server_send_leases(server, session);
    }
}

/* ---- in ---- */

static void on_hello(struct server *server, enum link link, const struct channel_peer *peer,
                     const struct wire_hello *hello)
{
    char detail[160];
    struct session *session;
    if (hello->version_min > WIRE_VERSION || hello->version_max < WIRE_VERSION) {
        snprintf(detail, sizeof detail, "no common version: you speak %u to %u, this worker %u to %u",
                 hello->version_min, hello->version_max, WIRE_VERSION, WIRE_VERSION);
        server_send_error(server, link, peer, WIRE_ERROR_UNSUPPORTED, detail);
    } else if (hello->role != WIRE_ROLE_ROUTER) {
        server_send_error(server, link, peer, WIRE_ERROR_UNSUPPORTED,
                          "a worker talks to routers: connect to a router instead");
    } else if (hello->connection != (link == LINK_CONTROL ? WIRE_CONNECTION_CONTROL : WIRE_CONNECTION_DATA)) {
        server_send_error(server, link, peer, WIRE_ERROR_INVALID,
                          link == LINK_CONTROL ? "hello.connection: this is the control endpoint"
                                               : "hello.connection: this is the data endpoint");
    } else if (session_hello(server, hello, &session) != STATUS_OK) {
        server_send_error(server, link, peer, WIRE_ERROR_OVER_CAPACITY, status_detail());
    } else {
        bool fresh = !session->heard_ms;
        session_heard(server, session);
        session_bind(server, session, link, peer);
        session->links[link].number_in = 0;
        if (fresh)
            LOG_INFO("router %s said hello", session->name);
        send_welcome(server, session, link, peer);
        send_lease(server, session, link);
    }
}

static void on_lease(struct server *server, enum link link, const struct channel_peer *peer,
                     const struct wire_lease *lease)
{
    struct session *session = session_find(server, lease->session);
    if (!session) {
        if (peer_may_be_told(server, link, peer))
            server_send_error(server, link, peer, WIRE_ERROR_INVALID, "unknown session: say HELLO first");
        return;
    }
    struct session_link *from = &session->links[link];
    if (from->peer.size == peer->size && memcmp(from->peer.id, peer->id, peer->size) == 0 &&
        lease->number <= from->number_in) {
        server->stats.stale++;
        return;
    }
    session_heard(server, session);
    session_bind(server, session, link, peer);
    if (link == LINK_CONTROL)
        session_credit(session, lease);
    from->number_in = lease->number;
    if (lease->echo > from->echo_in && lease->echo <= from->number_out)
        from->echo_in = lease->echo;
    if (link == LINK_DATA)
        session_free_seen(server, session);
}

static void on_request(struct server *server, const struct channel_peer *peer, zmq_msg_t *frames)
{
    struct wire_message head;
    enum status st = wire_decode(zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), &head);
    if (st != STATUS_OK) {
        malformed(server, LINK_DATA, peer, st, WIRE_HEAD);
        return;
    }
    stream_on_request(server, peer, &head.head, &frames[1]);
    wire_message_free(&head);
}

static void dispatch(struct server *server, enum link link, const struct channel_peer *peer,
                     const struct wire_message *message)
{
    switch (message->kind) {
    case WIRE_HELLO: on_hello(server, link, peer, &message->hello); break;
    case WIRE_LEASE: on_lease(server, link, peer, &message->lease); break;
    case WIRE_CANCEL: stream_on_cancel(server, &message->cancel); break;
    case WIRE_ATTACH: stream_on_attach(server, peer, &message->attach); break;
    case WIRE_DRAIN: drain_on_request(server, peer, &message->drain); break;
    case WIRE_GOAWAY:
        LOG_DEBUG("a router is draining"); /* its session ends with its lease */
        break;
    default: break;
    }
}

/* What may come by which connection. HEAD is apart: it has two frames. */
static bool belongs(enum link link, enum wire_kind kind)
{
    switch (kind) {
    case WIRE_HELLO:
    case WIRE_LEASE: return true;
    case WIRE_CANCEL:
    case WIRE_ATTACH:
    case WIRE_DRAIN:
    case WIRE_GOAWAY: return link == LINK_CONTROL;
    default: return false;
    }
}

static void on_frames(struct server *server, enum link link, const struct channel_peer *peer, zmq_msg_t *frames,
                      unsigned count)
{
    const void *data = zmq_msg_data(&frames[0]);
    size_t size = zmq_msg_size(&frames[0]);
    enum wire_kind kind = (enum wire_kind)0;
    uint8_t version = WIRE_VERSION;
    struct wire_message message;
    enum status st = wire_peek(data, size, &kind, &version);
    if (st == STATUS_UNSUPPORTED && version != WIRE_VERSION)
        st = STATUS_FAIL(STATUS_UNSUPPORTED, "no common version: the frame has version %u, this worker speaks %u to %u",
                         version, WIRE_VERSION, WIRE_VERSION);
    if (st == STATUS_OK && kind == WIRE_HEAD && link == LINK_DATA && count == 2) {
        on_request(server, peer, frames);
        return;
    }
    if (st == STATUS_OK && count != (kind == WIRE_HEAD ? 2 : 1))
        st = STATUS_FAIL(STATUS_INVALID, "a %s in a message of %u frames", wire_kind_name(kind), count);
    if (st == STATUS_OK && !belongs(link, kind))
        st = STATUS_FAIL(STATUS_INVALID, "a %s does not belong on the %s connection of a worker", wire_kind_name(kind),
                         link == LINK_CONTROL ? "control" : "data");
    if (st == STATUS_OK)
        st = wire_decode(data, size, &message);
    if (st != STATUS_OK) {
        malformed(server, link, peer, st, kind);
        return;
    }
    dispatch(server, link, peer, &message);
    wire_message_free(&message);
}

static void on_control(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    on_frames(user, LINK_CONTROL, peer, frames, count);
}

static void on_data(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    on_frames(user, LINK_DATA, peer, frames, count);
}

/* ---- states ---- */

void server_set_state(struct server *server, enum wire_life state, enum status st)
{
    server->state = state;
    if (server->config.on_state)
        server->config.on_state(server->config.user, state, st);
}

void server_gone(struct server *server, enum status st)
{
    if (server->gone)
        return;
    server->gone = true;
    server_set_state(server, WIRE_LIFE_GONE, st);
}

void server_fail(struct server *server, enum status st)
{
    server_gone(server, st);
}

static void become_ready(struct server *server)
{
    const struct engine_info *info = engine_thread_info(server->engine);
    if (!wire_name_valid(wire_span_str(info->model_name))) {
        server_fail(server,
                    STATUS_FAIL(STATUS_INVALID, "the model's name '%s' is not 1 to %u characters A-Z a-z 0-9 . _ : -",
                                info->model_name, WIRE_NAME_MAX));
        return;
    }
    server->info = info;
    if (server->state != WIRE_LIFE_STARTING)
        return; /* drained before it was ready */
    server_set_state(server, WIRE_LIFE_READY, STATUS_OK);
    server_welcome_all(server); /* those who came while the model was loading do not know yet what is served here */
}

static void on_engine(void *user, const struct engine_thread_event *event)
{
    struct server *server = user;
    switch (event->kind) {
    case ENGINE_THREAD_READY: become_ready(server); break;
    case ENGINE_THREAD_FAILED: server_fail(server, STATUS_FAIL(event->status, "%s", event->detail)); break;
    default: stream_on_engine(server, event); break;
    }
}

/* ---- turns and time ---- */

static void on_turn_end(void *user)
{
    struct server *server = user;
    struct session *session, *next;
    uint64_t now = loop_now_ms(server->config.loop);
    HASH_ITER(hh, server->sessions, session, next)
    {
        if (!session->dirty || (session->blocked_ms && now - session->tried_ms < BLOCKED_RETRY_MS))
            continue;
        session_flush(server, session);
    }
    drain_step(server);
}

static void on_lease_timer(void *user)
{
    struct server *server = user;
    struct session *session, *next;
    uint64_t now = loop_now_ms(server->config.loop);
    engine_thread_poll(server->engine);
    HASH_ITER(hh, server->sessions, session, next)
    {
        server_send_leases(server, session);
        drain_report(server, session);
    }
    cancels_expire(server, now, false);
    kept_expire(server, now, false);
    /* After a stall of our own the sockets are read first: their leases may have come in time. */
    if (loop_stall_ms(server->config.loop) <= server->config.lease_ms / 2)
        sessions_expire(server, now);
}

/* ---- life ---- */

static enum status open_channels(struct server *server)
{
    const struct server_config *config = &server->config;
    struct channel_config control = {
        .heartbeat = true,
        .frame_bytes_max = CONTROL_FRAME_BYTES,
        .receive_messages_max = CONTROL_RECEIVE_MESSAGES,
        .send_messages_max = CONTROL_RECEIVE_MESSAGES,
        .queue_bytes_max = QUEUE_BYTES,
        .on_message = on_control,
        .user = server,
    };
    struct channel_config data = {
        .heartbeat = false,
        .frame_bytes_max = WIRE_FRAME_BYTES_MAX,
        .receive_messages_max = DATA_RECEIVE_MESSAGES,
        .send_messages_max = SEND_MESSAGES,
        .queue_bytes_max = QUEUE_BYTES,
        .on_message = on_data,
        .user = server,
    };
    TRY(channel_create_server(config->loop, config->zmq_context, &control, config->listen_control,
                              &server->channels[LINK_CONTROL]));
    TRY(channel_create_server(config->loop, config->zmq_context, &data, config->listen_data,
                              &server->channels[LINK_DATA]));
    const char *bound = channel_endpoint(server->channels[LINK_DATA]);
    const char *port = strrchr(bound, ':');
    bool tcp = strncmp(bound, "tcp://", 6) == 0 && port;
    snprintf(server->data_endpoint, sizeof server->data_endpoint, "%s%s", tcp ? "tcp://*" : "", tcp ? port : bound);
    return STATUS_OK;
}

enum status server_create(const struct server_config *config, struct server **out)
{
    enum status st;
    struct server *server = NULL;
    if (!wire_name_valid(wire_span_str(config->name ? config->name : "")))
        return STATUS_FAIL(STATUS_INVALID, "name: 1 to %u characters A-Z a-z 0-9 . _ : - are needed", WIRE_NAME_MAX);
    server = calloc(1, sizeof *server);
    if (!server)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the server");
    server->config = *config;
    if (!config->lease_ms)
        server->config.lease_ms = 200;
    if (!config->lease_expiry_ms)
        server->config.lease_expiry_ms = LEASE_EXPIRY_MS;
    if (!config->orphan_ms)
        server->config.orphan_ms = ORPHAN_MS;
    if (!config->keep_finished_ms)
        server->config.keep_finished_ms = KEEP_FINISHED_MS;
    if (!config->keep_finished_bytes)
        server->config.keep_finished_bytes = KEEP_FINISHED_BYTES;
    if (!config->slow_reader_ms)
        server->config.slow_reader_ms = SLOW_READER_MS;
    if (!config->credit_wait_ms)
        server->config.credit_wait_ms = CREDIT_WAIT_MS;
    if (!config->reply_bytes_max)
        server->config.reply_bytes_max = REPLY_BYTES_MAX;
    if (!config->engine.sequences_max)
        server->config.engine.sequences_max = SEQUENCES_MAX;
    if (!config->cancel_memory_ms)
        server->config.cancel_memory_ms = CANCEL_MEMORY_MS;
    snprintf(server->name, sizeof server->name, "%s", config->name);
    hash_random(server->incarnation, sizeof server->incarnation);
    memcpy(server->cache_id, config->cache_id, sizeof server->cache_id);
    server->state = WIRE_LIFE_STARTING;
    TRY_GOTO(wire_batch_create(&server->batch), st, fail);
    TRY_GOTO(open_channels(server), st, fail);
    TRY_GOTO(loop_hook_create(config->loop, on_turn_end, server, &server->hook), st, fail);
    TRY_GOTO(
        loop_timer_create(config->loop, server->config.lease_ms, true, on_lease_timer, server, &server->lease_timer),
        st, fail);
    TRY_GOTO(engine_thread_start(&(struct engine_thread_config){.engine = config->engine,
                                                                .submits_max = config->engine.queue_requests_max + 1,
                                                                .loop = config->loop,
                                                                .on_event = on_engine,
                                                                .user = server},
                                 &server->engine),
             st, fail);
    *out = server;
    return STATUS_OK;
fail:
    server_destroy(&server);
    return st;
}

void server_destroy(struct server **server_pointer)
{
    struct server *server = server_pointer ? *server_pointer : NULL;
    if (!server)
        return;
    engine_thread_stop(&server->engine);
    loop_timer_destroy(&server->lease_timer);
    loop_timer_destroy(&server->drain_timer);
    loop_hook_destroy(&server->hook);
    sessions_destroy(server);
    kept_expire(server, 0, true);
    cancels_expire(server, 0, true);
    channel_destroy(&server->channels[LINK_CONTROL]);
    channel_destroy(&server->channels[LINK_DATA]);
    wire_batch_destroy(&server->batch);
    free(server);
    *server_pointer = NULL;
}

enum wire_life server_state(const struct server *server)
{
    return server->state;
}

const uint8_t *server_incarnation(const struct server *server)
{
    return server->incarnation;
}

const char *server_control_endpoint(const struct server *server)
{
    return channel_endpoint(server->channels[LINK_CONTROL]);
}

const char *server_data_endpoint(const struct server *server)
{
    return channel_endpoint(server->channels[LINK_DATA]);
}

const char *server_model_name(const struct server *server)
{
    return server->info ? server->info->model_name : "";
}

const struct engine_info *server_engine_info(const struct server *server)
{
    return server->info;
}

bool server_device_health(const struct server *server, struct backend_health *out)
{
    return engine_thread_health(server->engine, out);
}

bool server_has_placement(const struct server *server, const uint8_t *placement)
{
    for (const struct stream *stream = server->by_job; stream; stream = stream->by_job.next)
        if (stream->placed && memcmp(stream->placement, placement, sizeof stream->placement) == 0)
            return true;
    return false;
}

unsigned server_stream_count(const struct server *server)
{
    return (unsigned)HASH_CNT(by_job, server->by_job);
}

void server_stats_read(const struct server *server, struct server_stats *out)
{
    *out = server->stats;
    out->reply_bytes = server->set_aside;
    out->streams = server_stream_count(server);
    engine_thread_pressure(server->engine, &out->pressure);
    for (const struct session *session = server->sessions; session; session = session->hh.next)
        for (const struct stream *stream = session->streams; stream; stream = stream->next) {
            out->orphans += session->expired_ms && stream->open;
            out->starved += stream->starved_ms != 0;
        }
}
