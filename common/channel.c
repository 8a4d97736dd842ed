/* channel.c - owns the ZeroMQ socket of a channel, for clients its monitor socket and its retries, and the queues.
 *
 *                  channel_send                               on_message
 *                       |                                         ^
 *     queue empty and the link up? --no--> queue per peer         |
 *                       | yes                 |                   |
 *                       |      +--------------+ flush: link up, POLLOUT (client), 5 ms timer (server)
 *                       v      v                                  |
 *                   ROUTER or DEALER (DONTWAIT) <----------- step 3 of the loop
 *                                                                 |
 *     monitor (PAIR): handshake done --> link_up_now      connect failed, link lost --> link_lost_now --> retry timer
 *
 * A client's socket serves one link. When that is lost the socket is read to its end and closed, and a retry makes a new one;
 * ZeroMQ's own reconnecting is put off for NEVER_MS. The alternatives lose or leak messages at a restart of the server:
 *   - ZeroMQ reconnects by itself: what its pipe holds for the dead server goes to the next one;
 *   - the same with ZMQ_IMMEDIATE: libzmq 4.3 then drops the pipe with what had arrived in it and was not read yet
 *     (socket_base_t::hiccuped), and the last messages before an orderly exit are just that.
 * tests/unit/common/channel_test.c has a case for each.
 *
 * Always true:
 *   1. messages to one peer leave in the order of channel_send: while a peer has a queue, nothing passes it;
 *   2. a client's messages are given to ZeroMQ only after on_link(true) for that socket, so none is in a socket without a link;
 *   3. on_message for what arrived on a link comes between its on_link(true) and its on_link(false);
 *   4. after a callback, `dead` is checked before anything else is touched. */
#include "common/channel.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "channel_queue.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"

enum {
    HANDSHAKE_MS = 2000,     /* a stranger that does not speak ZMTP is dropped after it */
    CONNECT_MS = 2000,       /* a host that is down does not answer at all; the kernel alone would try for two minutes */
    RETRY_MIN_MS = 50,       /* doubled up to the next with every failure; half as much again at random on top */
    RETRY_MAX_MS = 1000,
    NEVER_MS = 1 << 29,      /* 6 days; ZeroMQ adds up to as much again at random, in an int */
    HEARTBEAT_MS = 200,      /* finds a stopped process or a partition in 0.8 s (docs/protocol.md) */
    HEARTBEAT_TIMEOUT_MS = 600,
    FLUSH_MS = 5,            /* ZMQ_POLLOUT of a ROUTER says nothing about one peer, so it is tried again */
    ENDPOINT_BYTES = 512,
};

struct channel {
    struct loop *loop; /* ref */
    void *context;     /* ref */
    struct channel_config config;
    bool server;
    char endpoint[ENDPOINT_BYTES];
    void *socket; /* client: NULL between a failure and the retry */
    struct loop_socket *socket_watch;

    struct channel_queues queues;
    struct loop_timer *flush_timer; /* server: only while something is queued */
    uint64_t dropped;

    bool monitored; /* a client, not over inproc, which has no events */
    void *monitor;
    struct loop_socket *monitor_watch;
    struct loop_timer *retry_timer; /* while there is no socket */
    unsigned retry_ms;
    bool link_up; /* as on_link was told */
    bool losing;  /* in link_lost_now, until on_link(false) returned */

    unsigned depth; /* of callbacks we are in */
    bool dead;      /* destroyed in one of them: freed when the outermost returns */
};

/* ---- callbacks and their end ---- */

static void enter(struct channel *channel)
{
    channel->depth++;
}

/* False: the channel is gone. */
static bool leave(struct channel *channel)
{
    channel->depth--;
    if (!channel->dead)
        return true;
    if (channel->depth == 0)
        free(channel);
    return false;
}

/* ---- sending ---- */

static void discard(zmq_msg_t *frames, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        zmq_msg_close(&frames[i]);
        zmq_msg_init(&frames[i]);
    }
}

static int send_frame(struct channel *channel, zmq_msg_t *frame, bool more)
{
    int rc;
    do
        rc = zmq_msg_send(frame, channel->socket, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0));
    while (rc < 0 && errno == EINTR);
    return rc;
}

/* Offers one message to ZeroMQ. STATUS_AGAIN: nothing was taken. STATUS_CLOSED: the peer is gone, and so is the message. */
static enum status send_now(struct channel *channel, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    loop_socket_touch(channel->socket_watch);
    if (channel->server) {
        zmq_msg_t id;
        if (zmq_msg_init_size(&id, peer->size) != 0)
            return STATUS_AGAIN; /* never: ids fit inside a zmq_msg_t */
        memcpy(zmq_msg_data(&id), peer->id, peer->size);
        if (send_frame(channel, &id, true) < 0) {
            int error = errno;
            zmq_msg_close(&id);
            if (error == EAGAIN)
                return STATUS_AGAIN;
            discard(frames, count);
            return STATUS_FAIL(STATUS_CLOSED, "the peer is not connected (any more): %s", zmq_strerror(error));
        }
    }
    for (unsigned i = 0; i < count; i++) {
        if (send_frame(channel, &frames[i], i + 1 < count) >= 0)
            continue;
        if (i == 0 && !channel->server && errno == EAGAIN)
            return STATUS_AGAIN;
        /* Space for a whole message is checked with its first frame, so the link broke in between. ZeroMQ took back the
         * frames before and swallows those that follow a frame which was refused with ZMQ_SNDMORE: let it. */
        for (unsigned k = i + 1; k < count; k++)
            (void)send_frame(channel, &frames[k], k + 1 < count);
        discard(frames, count);
        return STATUS_FAIL(STATUS_CLOSED, "the link was lost while a message was sent");
    }
    return STATUS_OK;
}

static enum status send_queued(void *user, const struct channel_peer *peer, struct channel_message *message)
{
    return send_now(user, peer, message->frames, message->count);
}

static bool may_send(const struct channel *channel)
{
    return channel->server || !channel->monitored || channel->link_up;
}

static void on_flush_timer(void *user);
static void on_writable(void *user);

/* Something must try again as long as anything is queued, and nothing must when nothing is. */
static void update_retry(struct channel *channel)
{
    bool waiting = channel->queues.pending > 0;
    if (!channel->server) {
        if (channel->socket_watch)
            loop_socket_watch_writable(channel->socket_watch, waiting && may_send(channel) ? on_writable : NULL);
    } else if (!waiting) {
        loop_timer_destroy(&channel->flush_timer);
    } else if (!channel->flush_timer) {
        /* Without memory for a timer the next send tries again. */
        (void)loop_timer_create(channel->loop, FLUSH_MS, true, on_flush_timer, channel, &channel->flush_timer);
    }
}

static void flush(struct channel *channel)
{
    if (may_send(channel))
        channel_queues_flush(&channel->queues, send_queued, channel);
    update_retry(channel);
}

static void on_flush_timer(void *user)
{
    flush(user);
}

static void on_writable(void *user)
{
    flush(user);
}

static enum status send_or_queue(struct channel *channel, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    if (may_send(channel) && !channel_queues_has(&channel->queues, peer)) {
        enum status st = send_now(channel, peer, frames, count);
        if (st != STATUS_AGAIN)
            return st;
    }
    TRY(channel_queues_append(&channel->queues, peer, channel->config.queue_bytes_max, frames, count));
    update_retry(channel);
    return STATUS_OK;
}

enum status channel_send(struct channel *channel, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    enum status st = STATUS_OK;
    const struct channel_peer server = {.size = 0};
    if (!channel->server)
        peer = &server;
    if (count == 0 || count > CHANNEL_FRAMES_MAX)
        st = STATUS_FAIL(STATUS_INVALID, "a message of %u frames: 1 to %d can be sent", count, CHANNEL_FRAMES_MAX);
    if (st == STATUS_OK && channel->server && (peer->size == 0 || peer->size > CHANNEL_PEER_ID_MAX))
        st = STATUS_FAIL(STATUS_CLOSED, "no peer has an id of %u bytes", peer->size);
    if (st == STATUS_OK && channel->losing)
        st = STATUS_FAIL(STATUS_CLOSED, "the link to %s was lost", channel->endpoint);
    if (st == STATUS_OK)
        st = send_or_queue(channel, peer, frames, count);
    if (st != STATUS_OK)
        discard(frames, count);
    if (st == STATUS_CLOSED && channel->server) {
        channel_queues_drop(&channel->queues, peer);
        update_retry(channel);
    }
    return st;
}

enum status channel_send_bytes(struct channel *channel, const struct channel_peer *peer, const void *data, size_t size)
{
    zmq_msg_t frame;
    if (zmq_msg_init_size(&frame, size) != 0)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a frame of %zu bytes", size);
    if (size > 0)
        memcpy(zmq_msg_data(&frame), data, size);
    enum status st = channel_send(channel, peer, &frame, 1);
    zmq_msg_close(&frame);
    return st;
}

size_t channel_pending(const struct channel *channel)
{
    return channel->queues.pending;
}

void channel_forget_peer(struct channel *channel, const struct channel_peer *peer)
{
    channel_queues_drop(&channel->queues, channel->server ? peer : NULL);
    update_retry(channel);
}

uint64_t channel_dropped(const struct channel *channel)
{
    return channel->dropped;
}

/* ---- receiving ---- */

static bool receive_frame(void *socket, zmq_msg_t *frame)
{
    int rc;
    do
        rc = zmq_msg_recv(frame, socket, ZMQ_DONTWAIT);
    while (rc < 0 && errno == EINTR);
    return rc >= 0;
}

/* Receives one message and hands it on. False: there was none, or the channel is gone. */
static bool on_readable(void *user)
{
    struct channel *channel = user;
    struct channel_peer peer = {.size = 0};
    bool fits = true;
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    if (!receive_frame(channel->socket, &frame)) {
        zmq_msg_close(&frame);
        return false;
    }
    /* From here on the rest is there: ZeroMQ hands over whole messages. */
    bool received = true;
    if (channel->server) {
        size_t size = zmq_msg_size(&frame);
        fits = size <= CHANNEL_PEER_ID_MAX;
        if (fits) {
            peer.size = (uint8_t)size;
            memcpy(peer.id, zmq_msg_data(&frame), size);
        }
        received = zmq_msg_more(&frame) && receive_frame(channel->socket, &frame);
    }
    zmq_msg_t frames[CHANNEL_FRAMES_MAX];
    unsigned count = 0;
    while (received) {
        bool more = zmq_msg_more(&frame);
        if (fits && count < CHANNEL_FRAMES_MAX) {
            zmq_msg_init(&frames[count]);
            zmq_msg_move(&frames[count++], &frame);
        } else {
            fits = false;
        }
        received = more && receive_frame(channel->socket, &frame);
    }
    zmq_msg_close(&frame);
    if (!fits)
        channel->dropped++;

    bool alive = true;
    if (fits && count > 0) {
        enter(channel);
        channel->config.on_message(channel->config.user, &peer, frames, count);
        alive = leave(channel);
    }
    for (unsigned i = 0; i < count; i++)
        zmq_msg_close(&frames[i]);
    return alive;
}

/* ---- sockets ---- */

static enum status set_option(struct channel *channel, int option, int value, const char *name)
{
    if (zmq_setsockopt(channel->socket, option, &value, sizeof value) != 0)
        return STATUS_FAIL(STATUS_IO, "%s = %d: %s", name, value, zmq_strerror(errno));
    return STATUS_OK;
}

#define SET_OPTION(channel, option, value) TRY(set_option(channel, option, value, #option))

static enum status set_options(struct channel *channel)
{
    const struct channel_config *config = &channel->config;
    int64_t frame_bytes_max = (int64_t)config->frame_bytes_max;
    SET_OPTION(channel, ZMQ_LINGER, 0);
    SET_OPTION(channel, ZMQ_IPV6, 1);
    SET_OPTION(channel, ZMQ_SNDHWM, config->send_messages_max);
    SET_OPTION(channel, ZMQ_RCVHWM, config->receive_messages_max);
    SET_OPTION(channel, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS);
    if (zmq_setsockopt(channel->socket, ZMQ_MAXMSGSIZE, &frame_bytes_max, sizeof frame_bytes_max) != 0)
        return STATUS_FAIL(STATUS_IO, "ZMQ_MAXMSGSIZE = %zu: %s", config->frame_bytes_max, zmq_strerror(errno));
    if (config->heartbeat) {
        SET_OPTION(channel, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS);
        SET_OPTION(channel, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS);
        SET_OPTION(channel, ZMQ_HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS);
    }
    if (channel->server) {
        SET_OPTION(channel, ZMQ_ROUTER_MANDATORY, 1);
    } else {
        SET_OPTION(channel, ZMQ_RECONNECT_IVL, NEVER_MS);
        SET_OPTION(channel, ZMQ_CONNECT_TIMEOUT, CONNECT_MS);
    }
    return STATUS_OK;
}

static enum status fail_endpoint(const char *endpoint, const char *verb, int error)
{
    switch (error) {
    case EADDRINUSE:
        return STATUS_FAIL(STATUS_IO, "cannot %s %s: the address is in use; stop the process that has it or choose another port",
                           verb, endpoint);
    case EACCES:
        return STATUS_FAIL(STATUS_IO, "cannot %s %s: not permitted; choose a port of 1024 or more, or a folder that can be written",
                           verb, endpoint);
    case EADDRNOTAVAIL:
    case ENODEV:
        return STATUS_FAIL(STATUS_IO, "cannot %s %s: this host has no such address; use one that it has, or 0.0.0.0 or * for all",
                           verb, endpoint);
    case EINVAL:
    case EPROTONOSUPPORT:
    case ENOCOMPATPROTO:
        return STATUS_FAIL(STATUS_INVALID, "cannot %s %s: not an endpoint; write tcp://HOST:PORT or ipc://PATH", verb, endpoint);
    default:
        return STATUS_FAIL(STATUS_IO, "cannot %s %s: %s", verb, endpoint, zmq_strerror(error));
    }
}

/* ZeroMQ takes port 99999 for 99999 modulo 65536. */
static enum status check_port(const char *endpoint)
{
    if (strncmp(endpoint, "tcp://", 6) != 0)
        return STATUS_OK;
    const char *port = strrchr(endpoint, ':') + 1;
    size_t digits = strspn(port, "0123456789");
    bool number = digits > 0 && digits <= 5 && port[digits] == '\0' && strtoul(port, NULL, 10) <= 65535;
    if (!number && strcmp(port, "*") != 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: not an endpoint; write tcp://HOST:PORT with a port up to 65535 (* for a free one)", endpoint);
    return STATUS_OK;
}

/* With ZMQ_IPV6 an IPv4 address comes back as "tcp://[::ffff:127.0.0.1]:5555": write it the way people do. */
static void unmap_ipv4(char *endpoint)
{
    static const char mapped[] = "tcp://[::ffff:";
    char *address = endpoint + sizeof mapped - 1, *end = strchr(endpoint, ']');
    if (strncmp(endpoint, mapped, sizeof mapped - 1) != 0 || !end || !memchr(address, '.', (size_t)(end - address)))
        return;
    memmove(end, end + 1, strlen(end));
    memmove(endpoint + strlen("tcp://"), address, strlen(address) + 1);
}

static enum status open_server(struct channel *channel)
{
    size_t size = sizeof channel->endpoint;
    if (zmq_bind(channel->socket, channel->endpoint) != 0)
        return fail_endpoint(channel->endpoint, "listen on", errno);
    if (zmq_getsockopt(channel->socket, ZMQ_LAST_ENDPOINT, channel->endpoint, &size) != 0)
        return STATUS_FAIL(STATUS_IO, "the endpoint of a socket cannot be read: %s", zmq_strerror(errno));
    unmap_ipv4(channel->endpoint);
    return STATUS_OK;
}

static bool on_monitor_readable(void *user);

static enum status start_monitor(struct channel *channel)
{
    static atomic_uint_fast64_t next_number;
    const int events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CONNECT_RETRIED;
    const int zero = 0; /* at a high-water mark the I/O thread, which serves everyone, would wait for us */
    char name[64];
    snprintf(name, sizeof name, "inproc://channel-monitor-%llu", (unsigned long long)atomic_fetch_add(&next_number, 1));
    if (zmq_socket_monitor(channel->socket, name, events) != 0 ||
        !(channel->monitor = zmq_socket(channel->context, ZMQ_PAIR)) ||
        zmq_setsockopt(channel->monitor, ZMQ_RCVHWM, &zero, sizeof zero) != 0 ||
        zmq_setsockopt(channel->monitor, ZMQ_LINGER, &zero, sizeof zero) != 0 || zmq_connect(channel->monitor, name) != 0)
        return STATUS_FAIL(STATUS_IO, "the link to %s cannot be watched: %s", channel->endpoint, zmq_strerror(errno));
    return loop_socket_create(channel->loop, channel->monitor, on_monitor_readable, channel, &channel->monitor_watch);
}

static enum status open_client(struct channel *channel)
{
    if (channel->monitored)
        TRY(start_monitor(channel)); /* before connecting: no event is missed */
    if (zmq_connect(channel->socket, channel->endpoint) != 0)
        return fail_endpoint(channel->endpoint, "connect to", errno);
    return STATUS_OK;
}

static void close_sockets(struct channel *channel, int linger_ms)
{
    loop_socket_destroy(&channel->monitor_watch);
    loop_socket_destroy(&channel->socket_watch);
    if (channel->monitor) {
        (void)zmq_socket_monitor(channel->socket, NULL, 0);
        zmq_close(channel->monitor);
    }
    if (channel->socket) {
        (void)zmq_setsockopt(channel->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
        zmq_close(channel->socket);
    }
    channel->monitor = channel->socket = NULL;
}

static enum status open_sockets(struct channel *channel)
{
    enum status st = STATUS_OK;
    channel->socket = zmq_socket(channel->context, channel->server ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!channel->socket)
        return STATUS_FAIL(STATUS_IO, "no socket for %s: %s", channel->endpoint, zmq_strerror(errno));
    TRY_GOTO(set_options(channel), st, fail);
    TRY_GOTO(loop_socket_create(channel->loop, channel->socket, on_readable, channel, &channel->socket_watch), st, fail);
    TRY_GOTO(channel->server ? open_server(channel) : open_client(channel), st, fail);
    return STATUS_OK;
fail:
    close_sockets(channel, 0);
    return st;
}

/* ---- the link of a client ---- */

static bool tell_link(struct channel *channel, bool up)
{
    enter(channel);
    if (channel->config.on_link)
        channel->config.on_link(channel->config.user, up);
    return leave(channel);
}

static void schedule_retry(struct channel *channel);

static void on_retry_timer(void *user)
{
    struct channel *channel = user;
    loop_timer_destroy(&channel->retry_timer);
    if (open_sockets(channel) != STATUS_OK) /* out of descriptors, perhaps: they may come back */
        schedule_retry(channel);
}

static void schedule_retry(struct channel *channel)
{
    unsigned wait_ms = channel->retry_ms + (unsigned)(clock_now_us() % (channel->retry_ms / 2)); /* clients must not march in step */
    channel->retry_ms = 2 * channel->retry_ms < RETRY_MAX_MS ? 2 * channel->retry_ms : RETRY_MAX_MS;
    if (!channel->retry_timer &&
        loop_timer_create(channel->loop, wait_ms, false, on_retry_timer, channel, &channel->retry_timer) != STATUS_OK)
        LOG_ERROR("no retry for %s: %s", channel->endpoint, status_detail());
}

static void link_up_now(struct channel *channel)
{
    channel->link_up = true;
    channel->retry_ms = RETRY_MIN_MS;
    if (tell_link(channel, true))
        flush(channel);
}

/* False: the channel is gone. */
static bool tell_loss(struct channel *channel)
{
    channel->losing = true;
    enter(channel);
    while (!channel->dead && on_readable(channel)) /* invariant 3; bounded by what one link had delivered */
        ;
    if (!leave(channel) || !tell_link(channel, false))
        return false;
    channel_queues_drop_all(&channel->queues);
    channel->losing = channel->link_up = false;
    return true;
}

static void link_lost_now(struct channel *channel)
{
    if (channel->link_up && !tell_loss(channel))
        return;
    close_sockets(channel, 0);
    schedule_retry(channel);
}

/* Takes one event. False: there was none. zmq_socket_monitor(3): 16 bits of event and 32 of value, in host order; then the
 * endpoint. */
static bool read_event(struct channel *channel, uint16_t *event)
{
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    bool received = receive_frame(channel->monitor, &frame);
    *event = 0;
    if (received && zmq_msg_size(&frame) >= sizeof *event)
        memcpy(event, zmq_msg_data(&frame), sizeof *event);
    while (received && zmq_msg_more(&frame) && receive_frame(channel->monitor, &frame))
        ;
    zmq_msg_close(&frame);
    return received;
}

static bool on_monitor_readable(void *user)
{
    struct channel *channel = user;
    uint16_t event;
    if (!read_event(channel, &event))
        return false;
    if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
        link_up_now(channel);
    else if (event == ZMQ_EVENT_DISCONNECTED || event == ZMQ_EVENT_CONNECT_RETRIED)
        link_lost_now(channel); /* also a handshake that failed: DISCONNECTED without a link before */
    return true; /* do not touch channel: a callback may have destroyed it */
}

/* ---- life ---- */

static enum status check_config(const struct channel_config *config, const char *endpoint)
{
    if (config->frame_bytes_max == 0 || config->frame_bytes_max > INT64_MAX || config->receive_messages_max <= 0 ||
        config->send_messages_max <= 0 || !config->on_message)
        return STATUS_FAIL(STATUS_INVALID, "a channel needs on_message and limits above 0 for frames and messages");
    if (strlen(endpoint) >= ENDPOINT_BYTES)
        return STATUS_FAIL(STATUS_INVALID, "an endpoint of %zu bytes is longer than %d", strlen(endpoint), ENDPOINT_BYTES - 1);
    return STATUS_OK;
}

static enum status create(struct loop *loop, void *zmq_context, const struct channel_config *config, const char *endpoint,
                          bool server, struct channel **out)
{
    TRY(check_config(config, endpoint));
    TRY(check_port(endpoint));
    struct channel *channel = calloc(1, sizeof *channel);
    if (!channel)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a channel");
    channel->loop = loop;
    channel->context = zmq_context;
    channel->config = *config;
    channel->server = server;
    channel->monitored = !server && strncmp(endpoint, "inproc:", 7) != 0;
    channel->retry_ms = RETRY_MIN_MS;
    strcpy(channel->endpoint, endpoint);
    enum status st = open_sockets(channel);
    if (st != STATUS_OK)
        channel_destroy(&channel);
    else
        *out = channel;
    return st;
}

enum status channel_create_server(struct loop *loop, void *zmq_context, const struct channel_config *config,
                                  const char *endpoint, struct channel **out)
{
    return create(loop, zmq_context, config, endpoint, true, out);
}

enum status channel_create_client(struct loop *loop, void *zmq_context, const struct channel_config *config,
                                  const char *endpoint, struct channel **out)
{
    return create(loop, zmq_context, config, endpoint, false, out);
}

const char *channel_endpoint(const struct channel *channel)
{
    return channel->endpoint;
}

void channel_destroy_lingering(struct channel **channel_pointer, unsigned linger_ms)
{
    if (!channel_pointer || !*channel_pointer)
        return;
    struct channel *channel = *channel_pointer;
    *channel_pointer = NULL;
    channel_queues_drop_all(&channel->queues);
    loop_timer_destroy(&channel->flush_timer);
    loop_timer_destroy(&channel->retry_timer);
    close_sockets(channel, may_send(channel) ? (int)linger_ms : 0);
    channel->dead = true;
    if (channel->depth == 0)
        free(channel);
}

void channel_destroy(struct channel **channel)
{
    channel_destroy_lingering(channel, 0);
}
