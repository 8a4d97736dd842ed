/* frontend_internal.h - what the files of the frontend share; nobody else includes it.
 *
 *   frontend.c      connections, sessions, what clients send
 *   frontend_out.c  what leaves for them
 *
 * Loop thread only. */
#ifndef ROOST_ROUTER_FRONTEND_INTERNAL_H
#define ROOST_ROUTER_FRONTEND_INTERNAL_H
#include <sys/queue.h>
#include "common/channel.h"
#include "common/loop.h"
#include "router/frontend.h"

enum {
    COMPLAINT_SLOTS = 1024, /* 16 KB; peers share a slot by chance; then they share the rate */
    SESSION_BUCKETS = 4096,
};

enum side { CONTROL, DATA, SIDE_COUNT };

/* A frame on its way to a client, or held until it has a connection. */
struct outgoing {
    TAILQ_ENTRY(outgoing) next;
    zmq_msg_t frame;
    bool terminal; /* else TOKENS */
    uint8_t request_id[WIRE_ID_BYTES];
    uint32_t stream;
    struct wire_attempt attempt;
};
TAILQ_HEAD(outgoing_list, outgoing);

struct session {
    struct frontend *frontend; /* ref */
    struct session *chain;     /* of the bucket */
    TAILQ_ENTRY(session) in_all;
    TAILQ_ENTRY(session) in_dirty;
    TAILQ_ENTRY(session) in_lost;
    uint8_t id[WIRE_ID_BYTES];
    char name[WIRE_NAME_MAX + 1];
    struct channel_peer peers[SIDE_COUNT];
    bool bound[SIDE_COUNT];
    bool welcome_due[SIDE_COUNT];                          /* said HELLO before the frontend was open */
    uint64_t number[SIDE_COUNT], heard_number[SIDE_COUNT]; /* leases */
    uint64_t heard_ms;                                     /* last lease or hello on control */
    uint64_t told_number, told_ms; /* of the first data lease behind its last terminal; 0: the client has seen that */
    uint32_t capabilities;
    uint64_t tokens_bytes, tokens_bytes_max; /* TOKENS frames by this data connection: sent, granted (0: no limit) */
    bool lost;                               /* reported, or it said GOAWAY: in that list */

    struct wire_batch *batch;    /* tokens of this turn */
    struct outgoing_list staged; /* terminals of this turn */
    struct outgoing_list queue;  /* in order; what could not leave yet */
    uint64_t queue_bytes;        /* of TOKENS frames there */
    unsigned terminals;          /* in both */
    bool dirty;
    bool slow;   /* told so; until its queue is empty again */
    bool broken; /* tokens of this turn could not be kept: becomes slow at its end */
    uint32_t streams;
    uint64_t body_bytes_open, body_bytes_acknowledged;
};
TAILQ_HEAD(session_list, session);

struct complaint {
    uint64_t second;
    unsigned count;
};

struct frontend {
    struct loop *loop; /* ref */
    struct frontend_events events;
    char name[WIRE_NAME_MAX + 1];
    uint8_t session[WIRE_ID_BYTES];
    uint32_t lease_ms, lease_expiry_ms;
    struct channel *channels[SIDE_COUNT];
    struct loop_timer *lease_timer;
    struct session_list sessions, dirty;
    struct session_list lost; /* longest lost first */
    struct session *buckets[SESSION_BUCKETS];
    unsigned session_count;
    uint64_t malformed, refusals_dropped;
    bool open, draining;
    uint32_t drain_deadline_ms;
    struct complaint complaints[COMPLAINT_SLOTS];
};

/* ---- frontend_out.c ---- */

void session_mark_dirty(struct session *session);                      /* frontend_flush looks at it */
void session_flush(struct session *session);                           /* now; it may become slow */
void session_drop_outgoing(struct session *session);                   /* before it is freed */
void session_lost(struct session *session, enum wire_error_code code); /* tells whoever listens */

#endif
