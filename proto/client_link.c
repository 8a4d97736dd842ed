#include "proto/client_link.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>
#include "common/channel.h"
#include "common/loop.h"

#define HANDSHAKE_MS                 5000u
#define LEASE_MS_DEFAULT             1000u
#define LEASE_MS_MIN                 20u
#define EXPIRY_MS_DEFAULT            5000u
#define BUSY_FACTOR                  4u /* 4 MiB of bodies within 4 times 5 s: 1.7 Mbit/s */
#define BACKOFF_MS_MIN               100u
#define BACKOFF_MS_MAX               2000u
#define SEND_MESSAGES_MAX            64
#define RECEIVE_MESSAGES_MAX         64         /* token batches of at most 256 KiB: 16 MiB a router */
#define DATA_QUEUE_BYTES_MAX         (8u << 20) /* the grant is 4 MiB */
#define CONTROL_QUEUE_BYTES_MAX      (1u << 20)
#define UNACKNOWLEDGED_BYTES_DEFAULT (4u << 20)
#define CREDIT_BYTES                 (4u << 20) /* of token frames under way: a second of 32 Mbit/s */
#define ENDPOINT_MAX                 300

enum link_state { LINK_DOWN, LINK_GREETED, LINK_WELCOMED, LINK_READY };

struct side {                                             /* one of the two connections */
    struct channel *channel;                              /* owned; NULL when closed */
    uint64_t sent_number, received_number, echoed_number; /* of leases */
    uint64_t alive_ms; /* when both directions were last seen to move: a new echo of ours came */
};

struct client_link {
    struct client_link_config config;
    char endpoint[ENDPOINT_MAX], data_endpoint[ENDPOINT_MAX], name[WIRE_NAME_MAX + 1];
    uint8_t session[WIRE_ID_BYTES];
    enum link_state state;
    bool control_up, busy, lease_wanted;
    struct side control, data;
    uint8_t peer_session[WIRE_ID_BYTES];
    struct wire_limits limits;
    uint32_t capabilities;
    uint64_t token_bytes, token_bytes_told; /* of TOKENS frames since the HELLO of the data connection */
    uint32_t lease_ms, expiry_ms;
    uint64_t state_since_ms, lease_due_ms;
    uint64_t retry_at_ms; /* 0: the control channel exists */
    uint32_t backoff_ms;
    char trouble[ENDPOINT_MAX + 200];
};

static void fail(struct client_link *link, const char *why);

static enum status send_message(struct side *side, const struct wire_message *message)
{
    zmq_msg_t frame;
    if (!side->channel)
        return STATUS_FAIL(STATUS_CLOSED, "no connection");
    if (zmq_msg_init_size(&frame, wire_encoded_size(message)) != 0)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a %s", wire_kind_name(message->kind));
    wire_encode(message, zmq_msg_data(&frame));
    return channel_send(side->channel, NULL, &frame, 1);
}

static enum status send_hello(struct client_link *link, enum wire_connection connection)
{
    struct side *side = connection == WIRE_CONNECTION_CONTROL ? &link->control : &link->data;
    struct wire_message hello = {.kind = WIRE_HELLO};
    hello.hello = (struct wire_hello){
        .version_min = WIRE_VERSION,
        .version_max = WIRE_VERSION,
        .session = wire_span_of(link->session, sizeof link->session),
        .role = WIRE_ROLE_CLIENT,
        .connection = connection,
        .name = wire_span_str(link->name),
        .build = wire_span_str(ROOST_VERSION),
        .lease_ms = LEASE_MS_DEFAULT,
        .capabilities = WIRE_CAN_RESUME | WIRE_CAN_CREDIT,
    };
    if (connection == WIRE_CONNECTION_DATA)
        link->token_bytes = link->token_bytes_told = 0;
    side->sent_number = side->received_number = side->echoed_number = 0;
    side->alive_ms = loop_now_ms(link->config.loop);
    return send_message(side, &hello);
}

static void send_lease(struct client_link *link, struct side *side, bool all)
{
    struct wire_message lease = {.kind = WIRE_LEASE};
    lease.lease = (struct wire_lease){
        .session = wire_span_of(link->session, sizeof link->session),
        .number = side->sent_number + 1,
        .echo = side->received_number,
        .state = WIRE_LIFE_READY,
    };
    if (side == &link->control && client_link_can(link, WIRE_CAN_CREDIT)) {
        link->lease_wanted = false;
        link->token_bytes_told = link->token_bytes;
        lease.lease.credit_connection_bytes = link->token_bytes + CREDIT_BYTES;
        link->config.on_lease(link->config.user, link, all, &lease.lease);
    }
    if (send_message(side, &lease) == STATUS_OK)
        side->sent_number++;
}

static void set_state(struct client_link *link, enum link_state state)
{
    link->state = state;
    link->state_since_ms = loop_now_ms(link->config.loop);
}

/* "tcp://" "*:7401" with the host of "tcp://10.0.0.5:7400" gives "tcp://10.0.0.5:7401". */
static enum status resolve_data_endpoint(struct client_link *link, struct wire_span given)
{
    char text[ENDPOINT_MAX];
    const char *star, *host, *port;
    if (given.size == 0 || given.size >= sizeof text)
        return STATUS_FAIL(STATUS_INVALID, "the WELCOME names no data endpoint that can be used");
    memcpy(text, given.data, given.size);
    text[given.size] = '\0';
    star = strstr(text, "://*:");
    host = strstr(link->endpoint, "://");
    port = strrchr(link->endpoint, ':');
    int written;
    if (!star)
        written = snprintf(link->data_endpoint, sizeof link->data_endpoint, "%s", text);
    else if (host && port > host)
        written = snprintf(link->data_endpoint, sizeof link->data_endpoint, "%.*s://%.*s%s", (int)(star - text), text,
                           (int)(port - host - 3), host + 3, star + 4);
    else
        return STATUS_FAIL(STATUS_INVALID, "data endpoint %s needs the host of %s, which has none", text,
                           link->endpoint);
    if (written < 0 || (size_t)written >= sizeof link->data_endpoint)
        return STATUS_FAIL(STATUS_LIMIT, "data endpoint %s is too long", text);
    return STATUS_OK;
}

static void on_data_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count);
static void on_data_link(void *user, bool up);

static void on_welcome(struct client_link *link, const struct wire_welcome *welcome)
{
    struct channel_config config = {
        .frame_bytes_max = WIRE_FRAME_BYTES_MAX,
        .receive_messages_max = RECEIVE_MESSAGES_MAX,
        .send_messages_max = SEND_MESSAGES_MAX,
        .queue_bytes_max = DATA_QUEUE_BYTES_MAX,
        .on_message = on_data_message,
        .on_link = on_data_link,
        .user = link,
    };
    if (welcome->version != WIRE_VERSION) {
        fail(link, "the router speaks another version of the protocol");
        return;
    }
    memcpy(link->peer_session, welcome->session.data, sizeof link->peer_session);
    link->capabilities = welcome->capabilities;
    link->limits = welcome->limits;
    struct wire_limits *limits = &link->limits;
    if (limits->body_bytes_max == 0 || limits->body_bytes_max > WIRE_BODY_BYTES_MAX)
        limits->body_bytes_max = WIRE_BODY_BYTES_MAX;
    if (limits->head_bytes_max == 0 || limits->head_bytes_max > WIRE_HEAD_BYTES_MAX)
        limits->head_bytes_max = WIRE_HEAD_BYTES_MAX;
    if (limits->unacknowledged_bytes_max == 0 || limits->unacknowledged_bytes_max > UNACKNOWLEDGED_BYTES_DEFAULT)
        limits->unacknowledged_bytes_max = UNACKNOWLEDGED_BYTES_DEFAULT;
    if (limits->streams_max == 0)
        limits->streams_max = UINT32_MAX;
    if (limits->prompt_tokens_max == 0)
        limits->prompt_tokens_max = UINT32_MAX;
    if (limits->messages_max == 0 || limits->messages_max > WIRE_MESSAGES_MAX)
        limits->messages_max = WIRE_MESSAGES_MAX;
    link->lease_ms = welcome->lease_ms ? welcome->lease_ms : LEASE_MS_DEFAULT;
    if (link->lease_ms < LEASE_MS_MIN)
        link->lease_ms = LEASE_MS_MIN;
    link->expiry_ms = welcome->lease_expiry_ms ? welcome->lease_expiry_ms : EXPIRY_MS_DEFAULT;
    if (link->expiry_ms < 3 * link->lease_ms) /* an echo takes up to our interval and theirs */
        link->expiry_ms = 3 * link->lease_ms;
    if (resolve_data_endpoint(link, welcome->data_endpoint) != STATUS_OK ||
        channel_create_client(link->config.loop, link->config.zmq_context, &config, link->data_endpoint,
                              &link->data.channel) != STATUS_OK) {
        fail(link, status_detail());
        return;
    }
    set_state(link, LINK_WELCOMED);
}

static void on_lease(struct client_link *link, struct side *side, const struct wire_lease *lease)
{
    bool ours = lease->session.size == sizeof link->peer_session &&
                memcmp(lease->session.data, link->peer_session, lease->session.size) == 0;
    if (link->state < LINK_WELCOMED || !ours || lease->number <= side->received_number ||
        lease->echo > side->sent_number) {
        link->config.on_dropped(link->config.user);
        return;
    }
    side->received_number = lease->number;
    if (lease->echo > side->echoed_number) {
        side->echoed_number = lease->echo;
        side->alive_ms = loop_now_ms(link->config.loop);
    }
}

static void on_frames(struct client_link *link, struct side *side, zmq_msg_t *frames, unsigned count)
{
    struct wire_message message;
    if (count != 1 || wire_decode(zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), &message) != STATUS_OK) {
        link->config.on_dropped(link->config.user);
        return;
    }
    if (message.kind == WIRE_LEASE) {
        on_lease(link, side, &message.lease);
    } else if (message.kind == WIRE_WELCOME) {
        if (side == &link->control && link->state == LINK_GREETED)
            on_welcome(link, &message.welcome);
    } else if (message.kind == WIRE_ERROR && message.error.request_id.size == 0) {
        char why[160];
        snprintf(why, sizeof why, "refused: %s: %.*s", wire_error_name(message.error.code),
                 (int)(message.error.detail.size < 100 ? message.error.detail.size : 100),
                 (const char *)message.error.detail.data);
        fail(link, why);
    } else if (link->state == LINK_READY && message.kind != WIRE_HELLO) {
        if (message.kind == WIRE_TOKENS) {
            link->token_bytes += zmq_msg_size(&frames[0]);
            link->lease_wanted |= link->token_bytes - link->token_bytes_told >= CREDIT_BYTES / 2;
        }
        link->config.on_message(link->config.user, link, &message);
    } else {
        link->config.on_dropped(link->config.user);
    }
    wire_message_free(&message);
}

static void on_control_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    struct client_link *link = user;
    (void)peer;
    on_frames(link, &link->control, frames, count);
}

static void on_data_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    struct client_link *link = user;
    (void)peer;
    on_frames(link, &link->data, frames, count);
}

static void on_control_link(void *user, bool up)
{
    struct client_link *link = user;
    link->control_up = up;
    if (!up)
        fail(link, "the control connection was lost");
    else if (send_hello(link, WIRE_CONNECTION_CONTROL) == STATUS_OK)
        set_state(link, LINK_GREETED);
    else
        fail(link, status_detail());
}

static void on_data_link(void *user, bool up)
{
    struct client_link *link = user;
    if (!up) {
        fail(link, "the data connection was lost");
        return;
    }
    if (send_hello(link, WIRE_CONNECTION_DATA) != STATUS_OK) {
        fail(link, status_detail());
        return;
    }
    /* What follows on the data connection comes after its HELLO, so there is no need to wait for the answer. */
    link->control.alive_ms = link->data.alive_ms;
    link->backoff_ms = BACKOFF_MS_MIN;
    link->lease_due_ms = loop_now_ms(link->config.loop) + link->lease_ms;
    set_state(link, LINK_READY);
    send_lease(link, &link->control, true);
    send_lease(link, &link->data, true);
    link->config.on_ready(link->config.user, link);
}

static enum status open_control(struct client_link *link)
{
    struct channel_config config = {
        .heartbeat = true,
        .frame_bytes_max = WIRE_FRAME_BYTES_MAX,
        .receive_messages_max = RECEIVE_MESSAGES_MAX,
        .send_messages_max = SEND_MESSAGES_MAX,
        .queue_bytes_max = CONTROL_QUEUE_BYTES_MAX,
        .on_message = on_control_message,
        .on_link = on_control_link,
        .user = link,
    };
    return channel_create_client(link->config.loop, link->config.zmq_context, &config, link->endpoint,
                                 &link->control.channel);
}

/* The router is lost. Afterwards the link is DOWN; a control channel that still has its link is made anew later. */
static void fail(struct client_link *link, const char *why)
{
    bool was_ready = link->state == LINK_READY;
    snprintf(link->trouble, sizeof link->trouble, "%s: %.180s", link->endpoint, why);
    channel_destroy(&link->data.channel);
    set_state(link, LINK_DOWN);
    if (link->control_up) {
        channel_destroy(&link->control.channel);
        link->control_up = false;
        link->retry_at_ms = link->state_since_ms + link->backoff_ms;
        link->backoff_ms = 2 * link->backoff_ms < BACKOFF_MS_MAX ? 2 * link->backoff_ms : BACKOFF_MS_MAX;
    }
    if (was_ready)
        link->config.on_lost(link->config.user, link);
}

void client_link_tick(struct client_link *link, uint64_t now_ms, bool expire)
{
    if (link->retry_at_ms != 0 && now_ms >= link->retry_at_ms) {
        link->retry_at_ms = 0;
        if (open_control(link) != STATUS_OK) { /* it worked once: no memory or no descriptors */
            snprintf(link->trouble, sizeof link->trouble, "%s: %.180s", link->endpoint, status_detail());
            link->retry_at_ms = now_ms + BACKOFF_MS_MAX;
        }
        return;
    }
    if (link->state == LINK_DOWN)
        return;
    if (link->state != LINK_READY) {
        if (expire && now_ms - link->state_since_ms > HANDSHAKE_MS)
            fail(link, link->state == LINK_GREETED ? "no WELCOME within 5 s" : "no data connection within 5 s");
        return;
    }
    /* Leases go first: silence may be our own. */
    if (now_ms >= link->lease_due_ms) {
        link->lease_due_ms = now_ms + link->lease_ms;
        send_lease(link, &link->control, true);
        send_lease(link, &link->data, true);
    }
    uint64_t data_expiry_ms = (uint64_t)link->expiry_ms * (link->busy ? BUSY_FACTOR : 1);
    if (expire && now_ms > link->control.alive_ms + link->expiry_ms)
        fail(link, "no lease was answered on the control connection");
    else if (expire && now_ms > link->data.alive_ms + data_expiry_ms)
        fail(link, "no lease was answered on the data connection");
}

enum status client_link_create(const struct client_link_config *config, struct client_link **out)
{
    if (strlen(config->endpoint) >= ENDPOINT_MAX || strlen(config->name) > WIRE_NAME_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "the endpoint or the name is too long");
    struct client_link *link = calloc(1, sizeof *link);
    if (!link)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a router");
    link->config = *config;
    snprintf(link->endpoint, sizeof link->endpoint, "%s", config->endpoint);
    snprintf(link->name, sizeof link->name, "%s", config->name);
    memcpy(link->session, config->session, sizeof link->session);
    link->config.endpoint = link->endpoint;
    link->config.name = link->name;
    link->config.session = link->session;
    link->backoff_ms = BACKOFF_MS_MIN;
    enum status st = open_control(link);
    if (st != STATUS_OK) {
        free(link);
        return st;
    }
    *out = link;
    return STATUS_OK;
}

void client_link_destroy(struct client_link **link)
{
    if (!*link)
        return;
    channel_destroy(&(*link)->data.channel);
    channel_destroy(&(*link)->control.channel);
    free(*link);
    *link = NULL;
}

bool client_link_ready(const struct client_link *link)
{
    return link->state == LINK_READY;
}

bool client_link_can(const struct client_link *link, enum wire_capability capability)
{
    return link->capabilities & capability;
}

void client_link_want_lease(struct client_link *link)
{
    link->lease_wanted = true;
}

void client_link_flush(struct client_link *link)
{
    if (link->lease_wanted && link->state == LINK_READY && client_link_can(link, WIRE_CAN_CREDIT))
        send_lease(link, &link->control, false);
}

const struct wire_limits *client_link_limits(const struct client_link *link)
{
    return &link->limits;
}

const char *client_link_trouble(const struct client_link *link)
{
    return link->trouble;
}

void client_link_set_busy(struct client_link *link, bool busy)
{
    if (link->busy && !busy)
        link->data.alive_ms = loop_now_ms(link->config.loop); /* the patience ends now, not in the past */
    link->busy = busy;
}

enum status client_link_send_request(struct client_link *link, const struct wire_message *head, const void *body,
                                     size_t body_size)
{
    zmq_msg_t frames[2];
    if (link->state != LINK_READY)
        return STATUS_FAIL(STATUS_CLOSED, "%s is not connected", link->endpoint);
    if (zmq_msg_init_size(&frames[0], wire_encoded_size(head)) != 0)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a head");
    if (zmq_msg_init_size(&frames[1], body_size) != 0) {
        zmq_msg_close(&frames[0]);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a body of %zu bytes", body_size);
    }
    wire_encode(head, zmq_msg_data(&frames[0]));
    memcpy(zmq_msg_data(&frames[1]), body, body_size);
    enum status st = channel_send(link->data.channel, NULL, frames, 2);
    zmq_msg_close(&frames[0]);
    zmq_msg_close(&frames[1]);
    return st;
}

void client_link_say_goodbye(struct client_link *link)
{
    struct wire_message message = {.kind = WIRE_GOAWAY};
    message.goaway.session = wire_span_of(link->session, sizeof link->session);
    if (link->state >= LINK_WELCOMED)
        (void)send_message(&link->control, &message);
}

enum status client_link_send_control(struct client_link *link, const struct wire_message *message)
{
    return send_message(&link->control, message);
}
