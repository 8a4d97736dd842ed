/* fake_client.h - the client's side of the protocol, driven by a test: two client channels on the test's own loop. */
#ifndef ROOST_TESTS_ROUTER_FAKE_CLIENT_H
#define ROOST_TESTS_ROUTER_FAKE_CLIENT_H
#include <stdbool.h>
#include <stdint.h>
#include "common/channel.h"
#include "proto/wire.h"

#define FAKE_STREAMS_MAX 300

struct loop;

struct fake_stream {                                    /* what came for one stream number */
    unsigned acks, token_frames, dones, errors, others; /* others: NEED_HISTORY */
    unsigned resends;
    uint32_t tokens;                        /* over all choices */
    uint32_t by_choice[WIRE_SEQUENCES_MAX]; /* gapless so far; the last one is the prompt */
    uint32_t logprobs, alternatives;        /* values that came, of ids -id / 2 and id + 1 */
    unsigned finishes, lasts;               /* lasts: rows of text alone */
    uint32_t dropped_messages;
    bool gap, inexact;
    bool has_numerics_id; /* in its ACK */
    uint8_t numerics_id[32];
    struct wire_attempt attempt; /* of the last message */
    enum wire_error_code error;
    char detail[WIRE_DETAIL_MAX + 1];
    uint32_t retry_after_ms;
    char route[32], worker[WIRE_NAME_MAX + 1];
    uint32_t route_us;
    uint64_t epoch;
};

struct fake_ask;
struct fake_client {
    struct loop *loop;
    struct channel *control, *data;
    struct loop_timer *timer;
    uint8_t session[WIRE_ID_BYTES];
    bool control_up, data_up, welcomed_control, welcomed_data;
    bool silent; /* no leases */
    enum wire_role role;
    uint32_t version, capabilities;
    uint64_t number[2], heard[2];
    uint64_t acknowledged_bytes;
    unsigned goaways;
    unsigned connection_errors; /* without a request id */
    enum wire_error_code connection_error;
    unsigned token_frames; /* over all streams */
    char data_endpoint[128];
    uint32_t router_capabilities;
    const struct fake_ask *ask_with_hello; /* sent right behind the HELLO of its next data link; NULL: nothing is */
    struct fake_stream streams[FAKE_STREAMS_MAX];
};

void fake_client_start(struct fake_client *client, struct loop *loop, void *zmq_context, const char *control,
                       const char *data);
/* Says HELLO again, with its capabilities as they are now. */
void fake_client_hello(struct fake_client *client);
void fake_client_stop(struct fake_client *client);
/* Another data connection, in place of one that the test has destroyed. */
void fake_client_connect_data(struct fake_client *client, void *zmq_context, const char *endpoint);
bool fake_client_ready(const struct fake_client *client);

struct fake_ask {
    uint8_t id[WIRE_ID_BYTES];
    const char *tenant, *conversation; /* NULL: "default", none */
    uint32_t stream, deadline_ms;
    uint32_t attempt_client;
    size_t body_size;              /* 0: 200 bytes */
    int32_t body_bytes_off;        /* added to what the head says */
    unsigned resume_choices;       /* it has tokens already: ids 0, 1, ... of each choice */
    const uint32_t *resume_counts; /* (resume_choices) */
    const uint8_t *numerics_id;    /* 32 bytes; NULL: not given */
    bool inexact_allowed;
    unsigned body_choices; /* > 0: a real body, of so many choices */
    bool no_body;
    uint32_t loss_count;
};
void fake_client_ask(struct fake_client *client, const struct fake_ask *ask);
void fake_client_cancel(struct fake_client *client, const struct fake_ask *ask);
void fake_client_cancel_attempt(struct fake_client *client, const struct fake_ask *ask, struct wire_attempt attempt);
/* A lease with a grant: for the stream, and, unless 0, for the connection. */
void fake_client_grant(struct fake_client *client, uint32_t stream, uint64_t tokens, uint64_t connection_bytes);
void fake_client_send(struct fake_client *client, bool data, const struct wire_message *message);
void fake_client_send_bytes(struct fake_client *client, bool data, const void *bytes, size_t size);
unsigned fake_stream_ends(const struct fake_stream *stream); /* terminals */

#endif
