/* server_internal.h - what the files of the server share; nobody else includes it. I/O thread only.
 *
 *   server.c       channels, frames in, leases out, states
 *   drain.c        the two drains: to leave, and to stay until told otherwise
 *   session.c      who is there: routers, their two connections, malformed frames per connection
 *   stream.c       what they asked for: the life of a stream, and what the engine says about it
 *   stream_take.c  heads: new requests, resumes, repeats
 *   stream_out.c   the rows of a stream: kept, sent within credit, and what comes after them
 *   stream_keep.c  streams without a router: orphans, finished ones; questions about them; cancels
 *
 * Bounds: SESSIONS_MAX routers; streams per session; one engine job per open stream: queue_requests_max waiting and sequences_max running
 * in the engine, queue_requests_max + 1 on their way; CANCELS_MAX remembered ids; what streams keep of their replies: reply_bytes_max, and keep_finished_bytes
 * of finished ones whose end was seen.
 *
 * A stream keeps all it released until the router has seen its end, so room for the most that it can release is set aside when it
 * comes: for each token of each choice that is still to come, and of the prompt if its log probabilities were asked for, KEPT_TOKEN_BYTES, and 8
 * for each alternative, twice, as buffers double. One choice over 4,096 tokens: 360 KB; 16 with 20 alternatives, and the prompt's: 28 MB;
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
#define CANCELS_MAX 4096u            /* remembered unknown cancelled ids, 210 bytes each */
#define TOLD_MAX 256u                /* answered streams per session that wait for the echo of a lease */
#define GRANT_BYTES (4u << 20)       /* unacknowledged bodies per session */
#define STREAMS_SPARE 16u            /* over those in the engine: on their way, and refused ones that wait to be told */
#define REPLY_BYTES_MAX (2ull << 30)
#define KEPT_TOKEN_BYTES 44u         /* a row of 20 bytes, the id, its log probability, and 16 of text: pieces have about 4, and few have 16 */
#define PROMPT_ROW_TOKENS 256u       /* of the prompt's log probabilities in a row: 43 KB with 20 alternatives, 6 rows to a frame */
#define STREAM_WINDOW_TOKENS 512u    /* of a stream before its first grant: over 3 usual replies of 140; about 10 KB */
#define EARLY_GRANTS_MAX 256u        /* per session: grants on control that overtake their heads on data; 16 bytes each, a ring */
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
    uint32_t capabilities;           /* bits of enum wire_capability, as its HELLO said */
    uint64_t heard_ms;
    uint64_t expired_ms;             /* since when it has been silent for too long; 0: it is not. It may come back */
    bool orphans;                    /* expired, and its streams run on for a while */
    bool drain_asked;                /* DRAIN came from it: it is told how that goes */
    uint64_t blocked_ms;             /* since when the data channel takes nothing; 0: it does */
    uint64_t tried_ms;               /* when that was last tried */
    uint64_t waiting_bytes;          /* bodies handed to the engine thread and not accepted yet; at most GRANT_BYTES */
    uint64_t consumed_bytes;         /* of all bodies that were accepted or refused: our acknowledged_bytes */
    uint64_t credit_bytes;           /* of TOKENS frames that it takes by this data connection; 0: no limit */
    uint64_t sent_bytes;             /* of them, since its HELLO there */
    struct early_grant *early;       /* owned; (EARLY_GRANTS_MAX); NULL: none came yet */
    unsigned early_next;
    struct stream *streams;          /* of this session; in turns, where credit is short */
    struct stream *by_number;        /* the same; but not a refused one whose number another has */
    unsigned stream_count, told_count;   /* all; those that are only kept until their terminal was seen */
    bool dirty;                      /* something may be sendable */
    uint64_t flush_number;           /* drain: everything was seen when the data echo reaches it */
    UT_hash_handle hh;               /* by id */
};

struct early_grant {
    uint32_t stream;
    uint64_t tokens;                 /* 0: none */
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
    bool given_up;                   /* with an error: RESEND instead of it */
    char *detail;                    /* owned; NULL: none */
    uint32_t retry_after_ms;
    uint8_t finish[WIRE_CHOICES_MAX];
    uint32_t choices;
    uint32_t prompt_tokens, cached_tokens, reply_tokens, dropped_messages, queue_us, prefill_us, decode_us;
};

/* The life of a stream (stream.c draws it): open until it has a terminal, ended until that is sent, then told until the router
 * has echoed a later lease on the same connection: "sent" is not "seen", and a reconnect sends it all again. One that ended well is then
 * kept for a while, without a session, for whoever repeats the request. */
struct stream {
    struct stream_key key;
    uint64_t job;                    /* in the engine */
    struct session *session;         /* ref: the newest attempt's; NULL: kept */
    struct stream *prev, *next;      /* in session->streams or server->kept */
    uint32_t number;                 /* chosen by the router */
    struct wire_attempt attempt;
    uint64_t epoch;
    uint8_t placement[WIRE_ID_BYTES];
    bool placed;                     /* it has a placement */
    uint8_t content[HASH_DIGEST_BYTES];
    uint64_t waiting_bytes;          /* of its body, until accepted */
    bool open;                       /* in by_job */
    bool known;                      /* in by_key: a repeat takes it over */
    uint64_t told_number;            /* of the first data lease after its terminal; 0: not sent */
    bool accepted, ack_due, inexact;
    bool started;                    /* the engine computes it; ACK says so */
    uint64_t cancel_us;              /* when the engine was asked to stop it; 0: was not */
    uint64_t kept_ms;                /* since when it has been kept */
    uint8_t *bytes;                  /* owned; of the rows */
    struct stream_row *rows;         /* owned */
    uint32_t bytes_capacity, rows_capacity;
    uint32_t row_count, rows_sent, rows_batched;   /* sent <= batched <= count */
    uint32_t choices;                /* asked for */
    uint32_t resumed[WIRE_CHOICES_MAX];  /* tokens of each choice that were released before it came */
    uint32_t due[WIRE_SEQUENCES_MAX];    /* sequence number of each choice's next token, and of the prompt's */
    uint32_t resumed_tokens, released;   /* tokens, over all choices; those resumed are released ones */
    uint64_t tokens_sent, tokens_batched;   /* of the released ones, up to rows_sent and rows_batched */
    uint64_t granted;                /* what tokens_batched may reach; UINT64_MAX: no limit */
    uint64_t starved_ms;             /* since when rows wait for credit; 0: none do */
    uint64_t set_aside;              /* its part of server->set_aside; of a kept one, of server->kept_bytes */
    struct stream_terminal terminal;
    UT_hash_handle by_key, by_job, by_number;
};

struct cancel_memory {
    struct stream_key key;
    struct wire_attempt attempt;     /* up to this one; {0, 0}: all */
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
    bool leaving;                    /* the drain ends in GONE */
    bool flushing;                   /* leaving: all streams answered, waiting for the echoes */
    bool gone;
    uint32_t abandoned;              /* streams that ran at the deadline of a drain to stay */

    struct session *sessions;
    struct stream *by_key;           /* open streams, and those that ended well: what a repeat finds */
    struct stream *by_job;           /* open streams */
    struct stream *kept;             /* without a session, the oldest first */
    uint64_t next_job;
    struct cancel_memory *cancels;
    struct peer_errors *peers;
    struct wire_batch *batch;
    uint64_t set_aside;              /* bytes for what streams release; at most reply_bytes_max */
    double token_us;                 /* measured time of a computed token, of prompts and replies; 0: none yet */
    double prompt_us, prompt_tokens; /* time and number of computed tokens of prompts, the older the less */
    struct server_stats stats;       /* counters, and what is kept now; server_stats_read adds the rest */
};

/* ---- server.c ---- */
enum status server_send(struct server *server, enum link link, const struct channel_peer *peer, const struct wire_message *message);
void server_fail(struct server *server, enum status st);
void server_set_state(struct server *server, enum wire_life state, enum status st);
void server_gone(struct server *server, enum status st);
void server_send_leases(struct server *server, struct session *session);
void server_welcome_all(struct server *server);       /* what is served here, or whether, has changed */
/* An ERROR without a request id. */
void server_send_error(struct server *server, enum link link, const struct channel_peer *peer, enum wire_error_code code, const char *detail);

/* ---- drain.c ---- */
void drain_on_request(struct server *server, const struct channel_peer *peer, const struct wire_drain *drain);
void drain_report(struct server *server, struct session *session);   /* DRAIN_STATUS, if it asked */
void drain_step(struct server *server);               /* at the end of a turn */

/* ---- session.c ---- */
struct session *session_find(struct server *server, struct wire_span id);
struct session *session_of_peer(struct server *server, enum link link, const struct channel_peer *peer);   /* NULL: said no HELLO */
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
void stream_key_set(struct stream_key *key, struct wire_span request_id, struct wire_span tenant);
struct stream *stream_find(struct server *server, const struct stream_key *key);
/* NULL: no memory. In the tables, and in no session yet. */
struct stream *stream_create(struct server *server, const struct stream_key *key);
void stream_attach(struct stream *stream, struct session *session, const struct wire_head *head);
void stream_detach(struct server *server, struct stream *stream);   /* from its session, or from the kept ones */
void stream_forget(struct server *server, struct stream *stream);   /* no repeat finds it any more */
void stream_set_aside(struct server *server, struct stream *stream, uint64_t bytes);   /* instead of what it had */
void stream_settle_body(struct stream *stream);       /* the body is off our hands: accepted, refused or given up */
void stream_free(struct server *server, struct stream *stream);
void stream_on_engine(struct server *server, const struct engine_thread_event *event);
/* Asks the engine to stop it, once; its end comes from there. False: no memory to ask. */
bool stream_cancel(struct server *server, struct stream *stream);
/* Ends a stream from this side. Its tokens are dropped, and what the engine still says about the job too. */
void stream_abort(struct server *server, struct stream *stream, enum wire_error_code code, const char *detail);
/* The same for an open one that nobody asked to end: its router, if it comes back, sends it again wherever it likes. */
void stream_give_up(struct server *server, struct stream *stream);
void streams_destroy(struct server *server, struct session *session);
uint32_t retry_after_ms(struct server *server);
int attempt_compare(struct wire_attempt a, struct wire_attempt b);

/* ---- stream_take.c ---- */
void stream_on_request(struct server *server, const struct channel_peer *peer, const struct wire_head *head, zmq_msg_t *body);
unsigned streams_max(const struct server *server);    /* per session */

/* ---- stream_out.c ---- */
bool stream_take_tokens(struct stream *stream, const struct engine_event *event);   /* false: no memory, or a gap */
bool stream_take_prompt(struct stream *stream, const struct engine_event *event);
void stream_drop_rows(struct stream *stream);
uint64_t stream_row_bytes(const struct stream *stream);   /* of memory */
void stream_rewind(struct stream *stream);            /* a new receiver or connection: everything again */
/* The first grant of a stream that goes to this session; `total` tokens the receiver has already. */
void stream_first_grant(struct stream *stream, uint64_t total);
void session_credit(struct session *session, const struct wire_lease *lease);
void session_flush(struct server *server, struct session *session);
uint64_t session_unsent_bytes(const struct session *session);
struct wire_message stream_error_message(const struct stream_key *key, uint32_t number, struct wire_attempt attempt,
                                         enum wire_error_code code, const char *detail, uint32_t retry_ms);

/* ---- stream_keep.c ---- */
void stream_on_cancel(struct server *server, const struct wire_cancel *cancel);
void stream_on_attach(struct server *server, const struct channel_peer *peer, const struct wire_attach *attach);
bool cancelled_before(struct server *server, const struct stream_key *key, struct wire_attempt attempt);
void cancels_expire(struct server *server, uint64_t now_ms, bool all);
void stream_release(struct server *server, struct stream *stream);   /* its end was seen: kept, or freed */
void stream_unkeep(struct server *server, struct stream *stream);
void kept_expire(struct server *server, uint64_t now_ms, bool all);
void session_free_seen(struct server *server, struct session *session);   /* told streams whose terminal was seen */
void session_orphan(struct server *server, struct session *session);      /* its lease ended */
void session_give_up(struct server *server, struct session *session);     /* nobody took its orphans over */

#endif
