#include "pool_peer.h"
#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/listener.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/loop.h"

enum { LEASE_MS = 30 };

/* ---- the relay ---- */

struct relay_link {
    struct relay *relay;
    struct bufferevent *ends[2]; /* the router's, the worker's */
    struct relay_link *next;
};

static void link_free(struct relay_link *link)
{
    for (struct relay_link **at = &link->relay->links; *at; at = &(*at)->next)
        if (*at == link) {
            *at = link->next;
            break;
        }
    for (unsigned i = 0; i < 2; i++)
        if (link->ends[i])
            bufferevent_free(link->ends[i]);
    free(link);
}

static void pass_on(struct bufferevent *from, void *user)
{
    struct relay_link *link = user;
    bool up = from == link->ends[0];
    struct evbuffer *bytes = bufferevent_get_input(from);
    if (up ? link->relay->swallow_up : link->relay->swallow_down)
        evbuffer_drain(bytes, evbuffer_get_length(bytes));
    else if (bufferevent_write_buffer(link->ends[up], bytes) != 0)
        abort();
}

static void on_event(struct bufferevent *end, short what, void *user)
{
    (void)end;
    if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR))
        link_free(user);
}

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* Or small frames wait 40 ms for each other's acknowledgement. */
static void no_delay(struct bufferevent *end)
{
    int one = 1;
    (void)setsockopt(bufferevent_getfd(end), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *from, int size, void *user)
{
    (void)from, (void)size;
    struct relay *relay = user;
    struct event_base *base = evconnlistener_get_base(listener);
    struct relay_link *link = calloc(1, sizeof *link);
    struct sockaddr_in target = loopback(relay->target);
    if (!link)
        abort();
    relay->accepted++;
    link->relay = relay;
    link->next = relay->links;
    relay->links = link;
    link->ends[0] = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    bufferevent_setcb(link->ends[0], relay->mute_accept ? NULL : pass_on, NULL, on_event, link);
    if (!relay->mute_accept) {
        link->ends[1] = bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);
        bufferevent_setcb(link->ends[1], pass_on, NULL, on_event, link);
        if (bufferevent_socket_connect(link->ends[1], (struct sockaddr *)&target, sizeof target) != 0) {
            link_free(link);
            return;
        }
        no_delay(link->ends[1]);
        bufferevent_enable(link->ends[1], EV_READ);
    }
    no_delay(link->ends[0]);
    bufferevent_enable(link->ends[0], EV_READ);
}

void relay_open(struct relay *relay)
{
    struct sockaddr_in address = loopback(relay->port);
    socklen_t size = sizeof address;
    relay->listener =
        evconnlistener_new_bind(loop_event_base(relay->loop), on_accept, relay,
                                LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, 64, (struct sockaddr *)&address, (int)size);
    if (!relay->listener ||
        getsockname(evconnlistener_get_fd(relay->listener), (struct sockaddr *)&address, &size) != 0)
        abort();
    relay->port = ntohs(address.sin_port);
}

void relay_cut(struct relay *relay)
{
    while (relay->links)
        link_free(relay->links);
}

void relay_close(struct relay *relay)
{
    if (relay->listener)
        evconnlistener_free(relay->listener);
    relay->listener = NULL;
}

/* ---- the worker ---- */

void pool_peer_send(struct pool_peer *peer, bool data, const struct wire_message *message)
{
    size_t size = wire_encoded_size(message);
    uint8_t *bytes = malloc(size);
    if (!bytes)
        abort();
    if (data ? peer->has_data_peer : peer->has_control_peer)
        (void)channel_send_bytes(data ? peer->data : peer->control, data ? &peer->data_peer : &peer->control_peer,
                                 bytes, wire_encode(message, bytes));
    free(bytes);
}

static void send_lease(struct pool_peer *peer, bool data)
{
    struct wire_message lease = {.kind = WIRE_LEASE,
                                 .lease = {.session = wire_span_of(peer->incarnation, WIRE_ID_BYTES),
                                           .number = ++peer->number[data],
                                           .echo = peer->heard[data],
                                           .state = peer->life,
                                           .has_load = !data,
                                           .load = peer->load}};
    pool_peer_send(peer, data, &lease);
}

void pool_peer_lease(struct pool_peer *peer)
{
    send_lease(peer, false);
    send_lease(peer, true);
}

static void on_timer(void *user)
{
    pool_peer_lease(user);
}

void pool_peer_welcome(struct pool_peer *peer, bool data)
{
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "tcp://*:%d", peer->data_relay.port);
    struct wire_message welcome = {
        .kind = WIRE_WELCOME,
        .welcome = {.version = WIRE_VERSION,
                    .session = wire_span_of(peer->incarnation, WIRE_ID_BYTES),
                    .name = wire_span_str(peer->name),
                    .data_endpoint = wire_span_str(endpoint),
                    .numerics_id = wire_span_of(peer->numerics_id, peer->has_numerics ? sizeof peer->numerics_id : 0),
                    .lease_ms = LEASE_MS,
                    .lease_expiry_ms = 5000,
                    .limits = {.stream_credit_tokens = peer->window},
                    .state = peer->life,
                    .kv_tokens_max = 100000,
                    .capabilities = peer->capabilities}};
    pool_peer_send(peer, data, &welcome);
}

static void on_hello(struct pool_peer *peer, bool data, const struct channel_peer *from, const struct wire_hello *hello)
{
    peer->hellos++;
    peer->hello_capabilities = hello->capabilities;
    *(data ? &peer->data_peer : &peer->control_peer) = *from;
    *(data ? &peer->has_data_peer : &peer->has_control_peer) = true;
    peer->heard[data] = peer->number[data] = 0;
    pool_peer_welcome(peer, data);
}

static void on_lease(struct pool_peer *peer, bool data, const struct wire_lease *lease, size_t frame_bytes)
{
    size_t rows = lease->credit_streams.size / 4;
    if (!peer->deaf && lease->number > peer->heard[data])
        peer->heard[data] = lease->number;
    if (data)
        return;
    peer->leases++;
    peer->connection_bytes = lease->credit_connection_bytes;
    peer->grant_rows += (unsigned)rows;
    peer->grant_leases += rows > 0;
    if (frame_bytes > peer->frame_bytes_max)
        peer->frame_bytes_max = (unsigned)frame_bytes;
    for (size_t i = 0; i < rows; i++)
        peer->granted[wire_u32_at(lease->credit_streams, i) % POOL_PEER_GRANTS_MAX] =
            wire_u64_at(lease->credit_tokens, i);
}

static void on_frames(struct pool_peer *peer, bool data, const struct channel_peer *from, zmq_msg_t *frames,
                      unsigned count)
{
    struct wire_message message;
    (void)count;
    if (wire_decode(zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), &message) != STATUS_OK) {
        peer->malformed++;
        return;
    }
    switch (message.kind) {
    case WIRE_HELLO: on_hello(peer, data, from, &message.hello); break;
    case WIRE_LEASE: on_lease(peer, data, &message.lease, zmq_msg_size(&frames[0])); break;
    case WIRE_HEAD: peer->requests++; break;
    case WIRE_CANCEL:
        peer->cancels++;
        peer->cancel_attempt = message.cancel.attempt;
        break;
    case WIRE_ATTACH: peer->attaches++; break;
    case WIRE_DRAIN:
        peer->drains++;
        peer->drain_cancel = message.drain.cancel;
        break;
    default: peer->malformed++; break;
    }
    wire_message_free(&message);
}

static void on_control(void *user, const struct channel_peer *from, zmq_msg_t *frames, unsigned count)
{
    on_frames(user, false, from, frames, count);
}

static void on_data(void *user, const struct channel_peer *from, zmq_msg_t *frames, unsigned count)
{
    on_frames(user, true, from, frames, count);
}

static int port_of(const struct channel *channel)
{
    return atoi(strrchr(channel_endpoint(channel), ':') + 1);
}

static void start_process(struct pool_peer *peer, void *zmq_context)
{
    struct channel_config config = {.frame_bytes_max = WIRE_FRAME_BYTES_MAX,
                                    .receive_messages_max = 1000,
                                    .send_messages_max = 1000,
                                    .queue_bytes_max = 1 << 20,
                                    .on_message = on_control,
                                    .user = peer};
    hash_random(peer->incarnation, WIRE_ID_BYTES);
    peer->has_control_peer = peer->has_data_peer = false;
    if (channel_create_server(peer->loop, zmq_context, &config, "tcp://127.0.0.1:*", &peer->control) != STATUS_OK)
        abort();
    config.on_message = on_data;
    if (channel_create_server(peer->loop, zmq_context, &config, "tcp://127.0.0.1:*", &peer->data) != STATUS_OK)
        abort();
    peer->control_relay.target = port_of(peer->control);
    peer->data_relay.target = port_of(peer->data);
}

void pool_peer_start(struct pool_peer *peer, struct loop *loop, void *zmq_context, const char *name)
{
    memset(peer, 0, sizeof *peer);
    peer->loop = peer->control_relay.loop = peer->data_relay.loop = loop;
    snprintf(peer->name, sizeof peer->name, "%s", name);
    peer->life = WIRE_LIFE_READY;
    peer->capabilities = WIRE_CAN_RESUME | WIRE_CAN_ATTACH | WIRE_CAN_CREDIT | WIRE_CAN_DRAIN;
    start_process(peer, zmq_context);
    relay_open(&peer->control_relay);
    relay_open(&peer->data_relay);
    if (loop_timer_create(loop, LEASE_MS, true, on_timer, peer, &peer->timer) != STATUS_OK)
        abort();
}

static void stop_process(struct pool_peer *peer)
{
    peer->has_control_peer = peer->has_data_peer = false;
    if (peer->control)
        channel_destroy(&peer->control);
    if (peer->data)
        channel_destroy(&peer->data);
}

void pool_peer_kill(struct pool_peer *peer)
{
    stop_process(peer);
    relay_close(&peer->control_relay);
    relay_close(&peer->data_relay);
    relay_cut(&peer->control_relay);
    relay_cut(&peer->data_relay);
}

void pool_peer_restart(struct pool_peer *peer, void *zmq_context)
{
    stop_process(peer);
    start_process(peer, zmq_context);
    relay_cut(&peer->control_relay);
    relay_cut(&peer->data_relay);
    if (!peer->control_relay.listener)
        relay_open(&peer->control_relay);
    if (!peer->data_relay.listener)
        relay_open(&peer->data_relay);
}

void pool_peer_stop(struct pool_peer *peer)
{
    loop_timer_destroy(&peer->timer);
    pool_peer_kill(peer);
}

void pool_peer_endpoint(const struct pool_peer *peer, char *out, size_t size)
{
    snprintf(out, size, "tcp://127.0.0.1:%d", peer->control_relay.port);
}
