/* frontend.h - the client side of a router: two server channels, the sessions of clients, what they are owed.
 *
 * Owns both channels, each session and the frames on their way to it. What a session gets on its data connection leaves
 * once per turn of the loop (frontend_flush): one TOKENS frame with the new tokens of all its streams, then the
 * terminals.
 *
 * Always true:
 *   1. a session's frames leave in order; while its connection is away they wait, and go to the connection that its
 *      next HELLO or LEASE comes by; a HELLO takes them all before a request behind it is looked at;
 *   2. a session that does not read loses its pending tokens and gets a SLOW_READER terminal for each stream instead,
 *      as soon as it reads again; nobody else waits for it. Without credit: when ZeroMQ's queue to it, or
 *      FRONTEND_HELD_BYTES_MAX, is full. With credit what it granted may wait, up to FRONTEND_CREDIT_BYTES_MAX: full
 *      windows of all its streams;
 *   3. a session silent for client_lease_expiry_ms is reported lost once, and forgotten a minute later, or when a new
 *      one needs its place: whoever was lost first goes first;
 *   4. a session that grants bytes (credit_connection_bytes) gets no TOKENS frame beyond them; what waits counts as not
 *      read;
 *   5. nobody is told WELCOME before frontend_open, and who has not heard it sends nothing but HELLO;
 *   6. at most FRONTEND_STREAMS_MAX requests of a session are open or have a terminal that waits for it, and at most
 *      FRONTEND_TERMINALS_MAX terminals wait: further refusals are dropped and counted; their deadlines end those;
 *   7. no frame from outside ends in more than one ERROR without a request id, at most 10 a second for each connection.
 * Loop thread only. Callbacks come from channel messages, or from frontend_flush and frontend_expire. */
#ifndef ROOST_ROUTER_FRONTEND_H
#define ROOST_ROUTER_FRONTEND_H
#include <stdbool.h>
#include <stdint.h>
#include <zmq.h>
#include "common/status.h"
#include "proto/wire.h"

struct loop;
struct frontend;
struct session; /* a client process */

#define FRONTEND_SESSIONS_MAX   8192       /* 2 KB each with its peers: 16 MB */
#define FRONTEND_STREAMS_MAX    4096       /* open requests of one session */
#define FRONTEND_GRANT_BYTES    (4u << 20) /* bodies of one session that no worker has acknowledged */
#define FRONTEND_STREAM_TOKENS  512u       /* first grant of a stream: 3.5 s of one that makes 140 tokens a second */
#define FRONTEND_HELD_BYTES_MAX (1u << 20) /* 140 tokens of 10 bytes are 1.4 KB: 700 finished replies */
/* 4,096 streams of 512 tokens that wait, each 176 bytes: id, log probability, 8 of text, 20 alternatives of 8. 16 MiB
 * without log probabilities. Who has granted more, and does not read, is a slow reader then. */
#define FRONTEND_CREDIT_BYTES_MAX 369098752u
/* As many refusals as requests that end: 0.5 KB each with its words, 4 MiB. */
#define FRONTEND_TERMINALS_MAX 8192

struct frontend_events {
    /* A well-formed head with its body. May take both frames (zmq_msg_move) and the head (copy and zero it). */
    void (*on_request)(void *user, struct session *session, zmq_msg_t *head_frame, struct wire_message *head,
                       zmq_msg_t *body_frame);
    void (*on_cancel)(void *user, struct session *session, const struct wire_cancel *cancel);
    /* The client takes so many tokens of its stream, over all choices. */
    void (*on_credit)(void *user, struct session *session, uint32_t stream, uint64_t tokens_total);
    /* Every stream of the session ends with this code (CANCELLED or SLOW_READER), now. */
    void (*on_session_lost)(void *user, struct session *session, enum wire_error_code code);
    void *user;
};

struct frontend_config {
    const char *listen_control, *listen_data;
    const char *name;
    const uint8_t *session; /* of this router process, 16 bytes; borrowed */
    uint32_t lease_ms, lease_expiry_ms;
};

enum status frontend_create(struct loop *loop, void *zmq_context, const struct frontend_config *config,
                            const struct frontend_events *events, struct frontend **out);
void frontend_destroy(struct frontend **frontend);
/* Until then nobody is told WELCOME, so clients use other routers; who said HELLO is told now. Once. */
void frontend_open(struct frontend *frontend);
const char *frontend_control_endpoint(const struct frontend *frontend);
const char *frontend_data_endpoint(const struct frontend *frontend);

const uint8_t *frontend_session_id(const struct session *session); /* 16 bytes */
bool frontend_session_has_credit(const struct session *session);   /* it grants what it takes */

/* To a client. terminal: DONE, ERROR, NEED_HISTORY or RESEND with the client's own stream and attempt. */
void frontend_tokens(struct session *session, const struct wire_tokens_row *row);
void frontend_terminal(struct session *session, const struct wire_message *terminal);
/* The same for a request that was not taken: dropped where too many wait already. */
void frontend_refusal(struct session *session, const struct wire_message *error);
void frontend_ack(struct session *session, const struct wire_stream_ref *ack);

/* What a session has open. A body counts from on_request until it is acknowledged (accepted, or its request ended). */
void frontend_stream_open(struct session *session);
void frontend_stream_close(struct session *session);
void frontend_body_acknowledged(struct session *session, uint64_t bytes);
bool frontend_session_full(const struct session *session); /* over its streams, its grant, or not reading */

void frontend_flush(struct frontend *frontend);                       /* at the end of a turn */
void frontend_expire(struct frontend *frontend, uint64_t now_ms);     /* leases; not after a stall of this loop */
void frontend_drain(struct frontend *frontend, uint32_t deadline_ms); /* GOAWAY to everyone, and to who comes later */
size_t frontend_pending(const struct frontend *frontend);             /* bytes that ZeroMQ has not taken yet */
/* Has every client seen its last terminal, as the echo of a later data lease shows? One that has not within its lease
 * is not waited for. */
bool frontend_seen(const struct frontend *frontend);
void frontend_ask_seen(struct frontend *frontend); /* by a lease, at once */
uint64_t frontend_malformed(const struct frontend *frontend);
uint64_t frontend_refusals_dropped(const struct frontend *frontend); /* nobody read what was before them */
unsigned frontend_session_count(const struct frontend *frontend);    /* silent ones too, until they are forgotten */

#endif
