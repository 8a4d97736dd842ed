/* inflight.h - the requests that a router answers for, from their head to their terminal.
 *
 * Owns each struct request with its frames and the ids of the tokens that its client has; found by (client session,
 * stream), by (tenant, request id) and by the stream number on the worker's side. A state is membership of a list, and
 * inflight_move is the only function that moves a request:
 *
 *   PLACING --placement answered--> SENT --ACK--> ACCEPTED --first token out--> STREAMING
 *    |  ^ ^                          ^ ^             |                             |
 *    |  | `---- worker found ---- WAITING <----------+---- worker lost or refused -+
 *    |  |                          | |               |                             |
 *    |  `-- ASKING: does a worker  | |               |                             |
 *    |      have it already? ------|-'               |                             |
 *    `--------- CANCEL: ends ------'      CANCEL from SENT on: CANCELLING <--------'
 *
 * Bodies and ids are what another worker needs to go on with a request. They are kept to its end within bytes_max, and
 * within a share of that for each tenant; over it those of acknowledged requests are shed, the oldest acknowledged
 * first: such a request runs on, but only its client can send it anywhere again.
 *
 * Always true:
 *   1. at most requests_max requests and bytes_max bytes of frames and ids are held, at most INFLIGHT_TENANT_SHARE of
 *      them for one tenant;
 *   2. a request is in exactly one list; it has a worker exactly in SENT, ACCEPTED, STREAMING and CANCELLING;
 *   3. inflight_remove is called once per request, by the function that queues its terminal;
 *   4. unless it is shed, replies[i] holds exactly the next[i] ids of choice i that its client has.
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
struct inflight_tenant; /* inflight.c */

#define REQUEST_NUMERICS_BYTES 32
#define REQUEST_REFUSALS_MAX   3 /* workers that one request may be refused by before its client hears of it */
#define REQUEST_LOSSES_MAX     2 /* workers lost while they began on it: it may be what kills them */
#define REQUEST_MOVES_MAX      8 /* times that it may lose its worker at all */
/* Ids of a resume, over all choices: 256 KiB of the 320 that a head may have. Longer replies are shed. */
#define REQUEST_RESUME_IDS_MAX 65536u

/* A quarter of bytes_max for one tenant, and always room for one of the largest requests. */
#define INFLIGHT_TENANT_SHARE      4
#define INFLIGHT_REQUEST_BYTES_MAX (WIRE_BODY_BYTES_MAX + WIRE_HEAD_BYTES_MAX + 4 * REQUEST_RESUME_IDS_MAX)

/* Loss counts that outlive their request: of those that clients are asked for again after a loss that they are blamed
 * for. Only what a lost worker had begun is blamed, and only shed ones are asked for: 16 workers that take 16 of them
 * each. 86 bytes each: 22 KB. */
#define INFLIGHT_LOSSES_KEPT 256

enum request_state {
    REQUEST_PLACING,    /* the placement store was asked */
    REQUEST_ASKING,     /* workers were asked whether they have it */
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

struct request_reply { /* the ids of one choice, as the wire has them: column u32 */
    uint8_t *ids;      /* owned */
    size_t size, room; /* bytes */
};

struct request {
    /* fixed by inflight_add and inflight_replace */
    struct request_id_key id_key;
    struct request_stream_key stream_key; /* the client's side */
    struct session *session;              /* ref; ends its requests before it goes */
    zmq_msg_t head_frame, body_frame;     /* owned */
    struct wire_message head;             /* decoded; points into head_frame */
    size_t body_bytes;                    /* also when it is shed */
    size_t bytes;                         /* held: frames and ids */
    bool shed;                            /* body and ids are gone */
    struct request_reply replies[WIRE_CHOICES_MAX];
    uint64_t ids_count; /* over all choices */
    unsigned choices;   /* 0: not known; its body says */
    uint64_t arrived_us;
    uint64_t deadline_ms; /* on the loop's clock */

    struct wire_attempt client_attempt; /* newest from the client */
    bool body_acknowledged;             /* the client's grant has its bytes back */

    /* where it goes */
    struct placement_key key;
    uint64_t policy_key;
    struct placement_call *call;    /* open question to the store, or NULL */
    struct placement_record record; /* valid if has_record */
    uint64_t record_age_ms;         /* when it was told: since its owner became it */
    bool has_record, record_ours, store_failed, take_over_tried;
    enum policy_reason reason;
    uint64_t refused_by[REQUEST_REFUSALS_MAX]; /* name hashes */
    unsigned refusals;
    uint32_t loss_count; /* workers that it may have killed */
    unsigned moves;      /* times that it lost its worker here */
    bool ask_first;      /* a worker may have it already: router_attach.c */
    unsigned asked;      /* ASKING: workers that have not answered */
    uint64_t ask_until_ms;
    bool has_numerics, inexact;                  /* inexact: it goes on, or went on, where its numerics are not those */
    uint8_t numerics_id[REQUEST_NUMERICS_BYTES]; /* of what its tokens were computed with */
    uint8_t numerics_told[REQUEST_NUMERICS_BYTES]; /* to its client, by the last ACK; zero: none */
    uint64_t not_before_ms;                        /* WAITING: refused everywhere; tried again then */
    uint64_t wait_until_ms;                        /* WAITING: then it is judged. 0: not waited yet */
    uint64_t cancel_until_ms;                      /* CANCELLING */
    uint64_t cancelled_us;                         /* by its client; 0: not */
    uint64_t granted;                              /* tokens that its client takes, over all choices */
    uint32_t route_us;                             /* residence here before the first dispatch */

    /* at the worker; valid while worker is set */
    struct worker *worker; /* ref, owned by worker_pool */
    uint32_t backend_stream;
    struct wire_attempt sent; /* of this dispatch */
    bool dispatched;          /* at least once */
    bool sent_unacknowledged; /* counts against the worker's grant */
    bool asked_again;         /* whether it is still there, after a link was lost */
    bool started;             /* the worker said that it computes it */
    uint64_t released_before; /* when it was sent there; more is progress */
    uint64_t grant_again_ms;  /* its worker is told the total again */

    /* what its client has */
    uint32_t next[WIRE_SEQUENCES_MAX]; /* numbers expected: of each choice, and of the prompt's log probabilities */
    uint32_t ended;                    /* a bit for each choice whose text after its last token came */
    uint64_t released;                 /* tokens over all choices */

    /* of inflight.c */
    enum request_state state;
    TAILQ_ENTRY(request) in_state;
    struct inflight_tenant *tenant;
    bool kept; /* acknowledged, may be shed: in both of these lists */
    TAILQ_ENTRY(request) in_kept, in_tenant;
    UT_hash_handle by_id, by_stream;
};

struct inflight_config {
    uint32_t requests_max;
    uint64_t bytes_max;
};

enum status inflight_create(const struct inflight_config *config, struct inflight **out);
void inflight_destroy(struct inflight **inflight); /* accepts NULL; frees what is left */

/* Takes the frames (they are empty afterwards) and the decoded head (its arena) on success only; the request starts
 * PLACING, behind the tokens of its resume. STATUS_LIMIT: too many or too large. STATUS_EXISTS: the id (of that tenant)
 * or the stream is in flight. */
enum status inflight_add(struct inflight *inflight, struct session *session, zmq_msg_t *head_frame,
                         struct wire_message *head, zmq_msg_t *body_frame, struct request **out);
void inflight_remove(struct inflight *inflight, struct request *request); /* frees */
void inflight_move(struct inflight *inflight, struct request *request, enum request_state state);

/* Before its client is asked to send it again: the new one has its loss count. */
void inflight_keep_losses(struct inflight *inflight, const struct request *request);

/* Its client sent it again: it goes on with these frames, under that stream and attempt, behind that resume. Takes them
 * as inflight_add. STATUS_EXISTS: the stream is in use. STATUS_LIMIT: too large. */
enum status inflight_replace(struct inflight *inflight, struct request *request, zmq_msg_t *head_frame,
                             struct wire_message *head, zmq_msg_t *body_frame);

/* Its worker has it: from now on it may be shed. */
void inflight_acknowledged(struct inflight *inflight, struct request *request);
/* Tokens of a choice went to the client: remembers them, or sheds the request if there is no room. */
void inflight_keep_ids(struct inflight *inflight, struct request *request, unsigned choice, struct wire_span ids);
void inflight_shed(struct inflight *inflight, struct request *request); /* once; later calls do nothing */

/* Gives it to a worker under a stream number of ours that no other request has. */
void inflight_bind(struct inflight *inflight, struct request *request, struct worker *worker);
/* No-op without a worker. It is not shed while it has none. */
void inflight_unbind(struct inflight *inflight, struct request *request);

struct request *inflight_find_id(const struct inflight *inflight, struct wire_span tenant, struct wire_span id);
struct request *inflight_find_stream(const struct inflight *inflight, struct wire_span session, uint32_t stream);
struct request *inflight_find_backend(const struct inflight *inflight, const struct worker *worker,
                                      uint32_t backend_stream);

struct request *inflight_first(const struct inflight *inflight, enum request_state state);
struct request *inflight_next(const struct request *request); /* in the same list: take it before moving this one */
unsigned inflight_count(const struct inflight *inflight);
unsigned inflight_count_in(const struct inflight *inflight, enum request_state state);
uint64_t inflight_bytes(const struct inflight *inflight);
uint64_t inflight_shed_count(const struct inflight *inflight); /* requests, since the start */

#endif
