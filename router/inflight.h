/* inflight.h - the requests that a router answers for, from their head to their terminal.
 *
 * Owns each struct request with its frames; found by (client session, stream), by (tenant, request id) and by the
 * stream number on the worker's side. A state is membership of a list, and inflight_move is the only function that
 * moves a request:
 *
 *   PLACING --placement answered--> SENT --ACK--> ACCEPTED --first token out--> STREAMING
 *      |  ^                          | ^             |                             |
 *      |  `---- worker found ----- WAITING <---------' worker lost or refused      |
 *      |                             |                                            |
 *      `--------- CANCEL: ends ------'      CANCEL from SENT on: CANCELLING <------'
 *
 * Always true:
 *   1. at most requests_max requests and bytes_max bytes of frames are held;
 *   2. a request is in exactly one list; it has a worker exactly in SENT, ACCEPTED, STREAMING and CANCELLING;
 *   3. inflight_remove is called once per request, by the function that queues its terminal.
 * Loop thread only. */
#ifndef ROOST_ROUTER_INFLIGHT_H
#define ROOST_ROUTER_INFLIGHT_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uthash.h>
#include <zmq.h>
#include "common/status.h"
#include "proto/wire.h"
#include "router/placement.h"
#include "router/policy.h"

struct session;        /* frontend.h */
struct worker;         /* worker_pool.h */
struct placement_call; /* router_internal.h */
struct inflight;

#define REQUEST_REFUSALS_MAX 3 /* workers that one request may be refused by before its client hears of it */
#define REQUEST_LOSSES_MAX   2 /* workers that may be lost while they run it: it may be what kills them */

enum request_state {
    REQUEST_PLACING,    /* the placement store was asked */
    REQUEST_WAITING,    /* no worker can take it yet */
    REQUEST_SENT,       /* to a worker, which has not acknowledged it */
    REQUEST_ACCEPTED,   /* the worker answers for it; nothing released to the client */
    REQUEST_STREAMING,  /* tokens have been released to the client */
    REQUEST_CANCELLING, /* the worker was told; its answer, or a second, ends it */
    REQUEST_STATE_COUNT
};

struct request_id_key {
    uint8_t id[WIRE_ID_BYTES];
    uint8_t tenant[WIRE_NAME_MAX + 1]; /* zero padded */
};
struct request_stream_key {
    uint8_t session[WIRE_ID_BYTES];
    uint32_t stream;
};

struct request {
    /* fixed by inflight_add */
    struct request_id_key id_key;
    struct request_stream_key stream_key; /* the client's side */
    struct session *session;              /* ref; ends its requests before it goes */
    zmq_msg_t head_frame, body_frame;     /* owned */
    struct wire_message head;             /* decoded; points into head_frame */
    size_t bytes;                         /* of both frames */
    uint64_t arrived_us;
    uint64_t deadline_ms; /* on the loop's clock */

    struct wire_attempt client_attempt; /* newest from the client */
    bool body_acknowledged;             /* the client's grant has its bytes back */

    /* where it goes */
    struct placement_key key;
    uint64_t policy_key;
    struct placement_call *call;    /* open question to the store, or NULL */
    struct placement_record record; /* valid if has_record */
    bool has_record, record_ours, store_failed, take_over_tried;
    enum policy_reason reason;
    uint64_t refused_by[REQUEST_REFUSALS_MAX]; /* name hashes */
    unsigned refusals;
    uint32_t loss_count;
    uint64_t wait_until_ms;   /* WAITING: then OVER_CAPACITY. 0: not waited yet */
    uint64_t cancel_until_ms; /* CANCELLING */
    uint32_t route_us;        /* residence here before the first dispatch */

    /* at the worker; valid while worker is set */
    struct worker *worker; /* ref, owned by worker_pool */
    uint32_t backend_stream;
    struct wire_attempt sent;        /* of this dispatch */
    bool dispatched;                 /* at least once */
    bool sent_unacknowledged;        /* counts against the worker's grant */
    uint32_t next[WIRE_SEQUENCES_MAX]; /* sequence numbers expected: of each choice, and of the prompt's log probabilities */
    uint32_t ended;                    /* a bit for each choice whose text after its last token came */
    uint64_t released;                 /* tokens passed on, over all choices */

    /* of inflight.c */
    enum request_state state;
    TAILQ_ENTRY(request) in_state;
    UT_hash_handle by_id, by_stream, by_backend;
};

struct inflight_config {
    uint32_t requests_max;
    uint64_t bytes_max;
};

enum status inflight_create(const struct inflight_config *config, struct inflight **out);
void inflight_destroy(struct inflight **inflight); /* accepts NULL; frees what is left */

/* Takes the frames (they are empty afterwards) and the decoded head (its arena) on success only; the request starts
 * PLACING. STATUS_LIMIT: too many or too large. STATUS_EXISTS: the id (of that tenant) or the stream is in flight. */
enum status inflight_add(struct inflight *inflight, struct session *session, zmq_msg_t *head_frame,
                         struct wire_message *head, zmq_msg_t *body_frame, struct request **out);
void inflight_remove(struct inflight *inflight, struct request *request); /* frees */
void inflight_move(struct inflight *inflight, struct request *request, enum request_state state);

/* The client goes on with it under another stream number. STATUS_EXISTS: that one is in use. */
enum status inflight_rename(struct inflight *inflight, struct request *request, uint32_t stream);

/* Gives it to a worker under a stream number of ours that no other request has. */
enum status inflight_bind(struct inflight *inflight, struct request *request, struct worker *worker);
void inflight_unbind(struct inflight *inflight, struct request *request); /* no-op without a worker */

struct request *inflight_find_id(const struct inflight *inflight, struct wire_span tenant, struct wire_span id);
struct request *inflight_find_stream(const struct inflight *inflight, struct wire_span session, uint32_t stream);
struct request *inflight_find_backend(const struct inflight *inflight, const struct worker *worker,
                                      uint32_t backend_stream);

struct request *inflight_first(const struct inflight *inflight, enum request_state state);
struct request *inflight_next(const struct request *request); /* in the same list: take it before moving this one */
unsigned inflight_count(const struct inflight *inflight);
unsigned inflight_count_in(const struct inflight *inflight, enum request_state state);
uint64_t inflight_bytes(const struct inflight *inflight);

#endif
