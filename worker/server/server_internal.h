/* server_internal.h - what server.c, session.c and stream.c share; nobody else includes it. I/O thread only.
 *
 *   server.c   channels, frames in, leases out, states, drain
 *   session.c  who is there: routers, their two connections, malformed frames per connection
 *   stream.c   what they asked for: heads, engine events, tokens and terminals out
 *
 * Bounds: SESSIONS_MAX routers; streams per session; one engine job per open stream: queue_requests_max waiting and sequences_max running
 * in the engine, queue_requests_max + 1 on their way; CANCELS_MAX remembered ids; what streams keep of their replies: reply_bytes_max.
 *
 * A stream keeps all it released until the router has seen its end, so room for the most that it can release is set aside when it
 * comes: for each token of each choice, and of the prompt if its log probabilities were asked for, KEPT_TOKEN_BYTES, and 8 for each
 * alternative, twice, as buffers double. One choice over 4,096 tokens: 360 KB; 16 with 20 alternatives, and the prompt's: 28 MB;
 * what the default of 2 GiB has room for 5,900 and 74 times. */
#ifndef ROOST_WORKER_SERVER_SERVER_INTERNAL_H
#define ROOST_WORKER_SERVER_SERVER_INTERNAL_H
#include <stdbool.h>
#include <stdint.h>
#define HASH_NONFATAL_OOM 1          /* a failed add leaves hh.tbl NULL */
#include <uthash.h>
#include "common/channel.h"
#include "common/hash.h"
#include "common/status.h"
#include "proto/wire.h"
#include "worker/server/engine_thread.h"
#include "worker/server/request.h"
#include "worker/server/server.h"

#define SESSIONS_MAX 1024u           /* routers of this process's life; the longest silent one makes room */
#define PEERS_MAX 1024u              /* connections whose malformed frames are counted */
#define PEER_ERRORS_PER_SECOND 10u   /* answers to malformed frames, per connection */
#define CANCELS_MAX 4096u            /* remembered unknown cancelled ids, 200 bytes each */
#define TOLD_MAX 256u                /* answered streams per session that wait for the echo of a lease */
#define GRANT_BYTES (4u << 20)       /* unacknowledged bodies per session */
#define STREAMS_SPARE 16u            /* over those in the engine: on their way, and refused ones that wait to be told */
#define REPLY_BYTES_MAX (2ull << 30)
#define KEPT_TOKEN_BYTES 44u         /* a row of 20 bytes, the id, its log probability, and 16 of text: pieces have about 4, and few have 16 */
#define PROMPT_ROW_TOKENS 256u       /* of the prompt's log probabilities in a row: 43 KB with 20 alternatives, 6 rows to a frame */
#define BLOCKED_RETRY_MS 20u          /* between tries to send to a router that does not read */
#define RETRY_STARTING_MS 500u
#define RETRY_DRAINING_MS 1000u
#define RETRY_MS_MIN 50u
#define RETRY_MS_MAX 30000u

struct loop_timer;
struct loop_hook;
struct stream;

enum link { LINK_CONTROL, LINK_DATA, LINK_COUNT };

struct session_link {                /* a connection of a router, as last seen in HELLO or LEASE */
    bool bound;
    struct channel_peer peer;        /* the last one, also when not bound */
    uint64_t number_in;              /* of its last lease: our echo */
    uint64_t number_out;             /* of our last lease */
    uint64_t echo_in;                /* the last of ours that it has seen */
};

struct session {
    uint8_t id[WIRE_ID_BYTES];
    char name[WIRE_NAME_MAX + 1];    /* for the log */
    struct session_link links[LINK_COUNT];
    uint64_t heard_ms;
    bool expired;                    /* silent for too long; its streams were cancelled; it may come back */
    uint64_t blocked_ms;             /* since when the data channel takes nothing; 0: it does */
    uint64_t tried_ms;               /* when that was last tried */
    uint64_t waiting_bytes;          /* bodies handed to the engine thread and not accepted yet; at most GRANT_BYTES */
    uint64_t consumed_bytes;         /* of all bodies that were accepted or refused: our acknowledged_bytes */
    struct stream *streams;          /* of this session, in order of arrival */
    unsigned stream_count, told_count;   /* all; those that are only kept until their terminal was seen */
    bool dirty;                      /* something may be sendable */
    uint64_t flush_number;           /* drain: everything was seen when the data echo reaches it */
    UT_hash_handle hh;               /* by id */
};

struct stream_key {
    uint8_t request_id[WIRE_ID_BYTES];
    char tenant[WIRE_NAME_MAX];      /* padded with zeros */
};

/* Rows of released tokens are kept as they were first sent: a receiver that has row k drops it when it comes again. What a row holds lies
 * in stream->bytes: ids, logprobs, ids of alternatives, their logprobs, text; as the wire has them. */
struct stream_row {
    uint32_t end;                    /* offset into bytes; the row starts where the one before ends */
    uint32_t first;                  /* sequence number within its choice */
    uint32_t text_bytes;
    uint16_t count;
    uint8_t choice;                  /* or WIRE_CHOICE_PROMPT */
    uint8_t alternatives;
    bool logprobs;
};

struct stream_terminal {
    enum wire_error_code code;       /* WIRE_ERROR_UNKNOWN: DONE */
    char *detail;                    /* owned; NULL: none */
    uint32_t retry_after_ms;
    uint8_t finish[WIRE_CHOICES_MAX];
    uint32_t choices;
    uint32_t prompt_tokens, cached_tokens, reply_tokens, dropped_messages, queue_us, prefill_us, decode_us;
};

/* The life of a stream (stream.c draws it): open until it has a terminal, ended until that is sent, then told until the router
 * has echoed a later lease on the same connection: "sent" is not "seen", and a reconnect sends it all again. */
struct stream {
    struct stream_key key;
    uint64_t job;                    /* in the engine */
    struct session *session;         /* ref: the newest attempt's */
    struct stream *prev, *next;      /* in session->streams */
    uint32_t number;                 /* chosen by the router */
    struct wire_attempt attempt;
    uint64_t epoch;
    uint8_t content[HASH_DIGEST_BYTES];
    uint64_t waiting_bytes;          /* of its body, until accepted */
    bool open;                       /* in the two tables */
    uint64_t told_number;            /* of the first data lease after its terminal; 0: not sent */
    bool accepted, ack_due, cancel_asked;
    uint8_t *bytes;                  /* owned; of the rows */
    struct stream_row *rows;         /* owned */
    uint32_t bytes_capacity, rows_capacity;
    uint32_t row_count, rows_sent, rows_batched;   /* sent <= batched <= count */
    uint32_t choices;                /* asked for */
    uint32_t due[WIRE_SEQUENCES_MAX];    /* sequence number of each choice's next token, and of the prompt's */
    uint32_t released;               /* tokens, over all choices */
    uint64_t set_aside;              /* its part of server->set_aside */
    struct stream_terminal terminal;
    UT_hash_handle by_key, by_job;
};

struct cancel_memory {
    struct stream_key key;
    uint64_t until_ms;
    UT_hash_handle hh;               /* in order of arrival, which is the order of expiry */
};

struct peer_key {
    uint8_t link;
    struct channel_peer peer;        /* padded with zeros */
};

struct peer_errors {
    struct peer_key key;
    uint64_t window_ms;
    unsigned count;
    UT_hash_handle hh;
};

struct server {
    struct server_config config;
    char name[WIRE_NAME_MAX + 1];
    uint8_t incarnation[WIRE_ID_BYTES], cache_id[WIRE_ID_BYTES];
    enum wire_life state;
    struct channel *channels[LINK_COUNT];
    char data_endpoint[256];         /* as WELCOME says it */
    struct engine_thread *engine;
    const struct engine_info *info;  /* ref; NULL before READY */
    struct loop_timer *lease_timer, *drain_timer;
    struct loop_hook *hook;
    bool flushing;                   /* drain: all streams answered, waiting for the echoes */
    bool gone;

    struct session *sessions;
    struct stream *by_key, *by_job;  /* open streams */
    uint64_t next_job;
    struct cancel_memory *cancels;
    struct peer_errors *peers;
    struct wire_batch *batch;
    uint64_t set_aside;              /* bytes for what streams release; at most reply_bytes_max */
    double token_us;                 /* measured time of a computed token; 0: none yet */
    uint64_t malformed, stale;       /* frames dropped, counted for the log */
};

/* ---- server.c ---- */
enum status server_send(struct server *server, enum link link, const struct channel_peer *peer, const struct wire_message *message);
void server_fail(struct server *server, enum status st);

/* ---- session.c ---- */
struct session *session_find(struct server *server, struct wire_span id);
enum status session_hello(struct server *server, const struct wire_hello *hello, struct session **out);   /* finds or makes it */
void session_bind(struct server *server, struct session *session, enum link link, const struct channel_peer *peer);
void session_unbind(struct server *server, struct session *session, enum link link);   /* the connection is gone; streams stay */
void session_heard(struct server *server, struct session *session);
/* To a bound connection; one that turns out to be gone is unbound. STATUS_CLOSED: not bound. */
enum status session_send(struct server *server, struct session *session, enum link link, const struct wire_message *message);
void sessions_expire(struct server *server, uint64_t now_ms);
void sessions_destroy(struct server *server);
/* True if this connection may get another answer to a malformed frame in this second. */
bool peer_may_be_told(struct server *server, enum link link, const struct channel_peer *peer);

/* ---- stream.c ---- */
void stream_on_request(struct server *server, const struct channel_peer *peer, const struct wire_head *head, zmq_msg_t *body);
void stream_on_cancel(struct server *server, const struct wire_cancel *cancel);
void stream_on_engine(struct server *server, const struct engine_thread_event *event);
void stream_rewind(struct stream *stream);            /* a new data connection: everything again */
void session_free_seen(struct server *server, struct session *session);   /* told streams whose terminal was seen */
void stream_abort(struct server *server, struct stream *stream, enum wire_error_code code, const char *detail);
void session_flush(struct server *server, struct session *session);
void streams_destroy(struct server *server, struct session *session);
void cancels_expire(struct server *server, uint64_t now_ms, bool all);
uint32_t retry_after_ms(struct server *server);
unsigned streams_max(const struct server *server);    /* per session */

#endif
