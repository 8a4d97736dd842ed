/* client_internal.h - what the files of the client library share; nobody else includes it.
 *
 *   client.c          the thread, and what applications call
 *   client_calls.c    the life of a call: sent, moved, ended; which router takes it
 *   client_answers.c  what routers say about calls
 *   client_resume.c   the released ids of a call, kept for the next router
 *   client_credit.c   how much a router may send
 *   client_link.c     one router: connections, leases, loss
 *
 *   application threads                       background thread
 *   client_generate --queue--> on_commands --> WAITING --dispatch--> SENT --terminal, deadline, cancel--> ENDED
 *   client_cancel   --queue--> on_commands        ^                   |
 *   client_consumed --queue--> on_commands        +-- call_move: router lost, RESEND, refused because it drains
 *
 * Always true:
 *   1. a call is in exactly one of: the queue of new calls, the waiting list, the table of sent calls, ended;
 *   2. call_end is the only function that ends a call, and it calls on_end once;
 *   3. a stream number is used for one attempt only, so what belongs to an older attempt finds no call;
 *   4. router->unacknowledged is the sum of body sizes of its sent calls without an acknowledgement;
 *   5. released[] never goes down: what was handed out stays handed out, whichever router goes on.
 * client->lock guards the queues and the limits shown to application threads; call->lock guards ended, error and
 * the right to queue the call (a call that has not ended keeps its client alive). Order: call->lock, then client->lock.
 */
#ifndef ROOST_PROTO_CLIENT_INTERNAL_H
#define ROOST_PROTO_CLIENT_INTERNAL_H
#include <pthread.h>
#include <stdatomic.h>
#define HASH_NONFATAL_OOM 1 /* a failed add leaves hh.tbl NULL */
#include <uthash.h>
#include "proto/client.h"

struct client_link;
struct loop;
struct loop_hook;
struct loop_timer;

enum call_state { CALL_NEW, CALL_WAITING, CALL_SENT, CALL_ENDED };

struct router {
    struct client_link *link; /* owned */
    size_t unacknowledged;    /* invariant 4 */
    unsigned stream_count;    /* sent calls */
    bool draining;            /* GOAWAY: nothing new goes there until it is back */
    bool full;                /* within calls_dispatch: a call waits for its grant, and so do those behind it */
};

struct client_call {
    struct client *client; /* ref; not touched once ended */
    atomic_uint refs;
    pthread_mutex_t lock;
    pthread_cond_t ended_signal;
    bool ended; /* on_end has returned */
    bool cancel_queued, consumed_queued;
    enum wire_error_code error;

    /* fixed by client_generate */
    uint8_t request_id[WIRE_ID_BYTES];
    char conversation[WIRE_NAME_MAX + 1], model[WIRE_NAME_MAX + 1];
    uint32_t deadline_ms;
    int32_t priority;
    uint64_t seed;
    bool seed_given;
    unsigned message_count;
    size_t prompt_ids;
    unsigned choices;     /* asked for */
    bool prompt_logprobs; /* asked for */
    bool inexact_allowed;
    uint32_t credit_tokens; /* 0: what was handed out is consumed */
    uint8_t *body;          /* owned: the encoded frame */
    size_t body_size;
    struct client_callbacks callbacks;
    void *user;

    atomic_ullong consumed;      /* tokens, by client_consumed */
    atomic_ullong consumed_told; /* of these, those that the background thread knows of */

    /* the background thread's */
    enum call_state state;
    uint64_t start_ms;
    uint32_t stream, attempt_client, attempt_router;
    struct router *router; /* ref, while sent */
    struct router *home;   /* ref: who had it last; NULL before it was sent */
    bool acknowledged, cancelled;
    uint64_t cancel_at_ms; /* the cancelled call ends here at the latest */
    uint32_t released[WIRE_SEQUENCES_MAX]; /* per choice, and of the prompt */
    uint32_t choices_ended;                /* a bit for each choice whose text after its last token came */
    uint64_t released_total;               /* of the choices */
    struct call_ids *ids;                  /* (choices), owned: what was released; NULL: nothing, or not kept any more */
    bool ids_lost;                         /* they were too many, or there was no memory: it cannot go on elsewhere */
    bool numerics_known;
    uint8_t numerics_id[32];               /* of who makes the tokens now: the last one that an ACK named */
    bool inexact;                          /* for good: that one changed behind released tokens, as it may */
    uint64_t granted;                      /* tokens that its router may send, as far as it was told */
    unsigned resends;                      /* in all */
    unsigned losses;                       /* routers lost since the last token came */
    struct client_call *prev, *next;               /* new or waiting list */
    struct client_call *cancel_prev, *cancel_next; /* list of cancels */
    struct client_call *consumers_prev, *consumers_next;
    UT_hash_handle hh;                             /* sent calls, by stream */
};

struct client {
    char tenant[WIRE_NAME_MAX + 1], name[WIRE_NAME_MAX + 1];
    uint8_t session[WIRE_ID_BYTES];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t started_signal;
    bool started;
    enum status start_status;
    char start_detail[256];
    struct client_call *new_calls, *cancels, *consumers; /* guarded by lock; each holds a reference */
    struct wire_limits limits;               /* guarded by lock: of the last WELCOME */
    bool stopping;                           /* guarded by lock: no new calls */
    atomic_ullong dropped, moves, resends, resumed;
    atomic_uint routers_ready;

    /* the background thread's */
    struct loop *loop;
    void *zmq_context;
    struct loop_timer *tick_timer, *farewell_timer;
    struct loop_hook *hook;
    char **endpoints;       /* owned */
    struct router *routers; /* owned */
    unsigned router_count;
    unsigned first_router;       /* where the search for a router begins */
    struct client_call *waiting; /* in order of arrival; re-sent ones go in front */
    struct client_call *sent;    /* by stream */
    uint32_t last_stream;
    bool dispatch_wanted;
    uint64_t last_tick_ms;
    uint32_t *columns; /* WIRE_TOKENS_BYTES_MAX: aligned copies of the columns of one row, which come out of one frame, and the ids of a
                          resume; owned */
    uint32_t *credit_streams; /* CREDIT_ROWS_MAX: columns of a lease; owned */
    uint64_t *credit_tokens;
};

/* The application's clock may be a moment ahead of the loop's, which is read once a turn. */
static inline uint64_t call_age_ms(const struct client_call *call, uint64_t now_ms)
{
    return now_ms > call->start_ms ? now_ms - call->start_ms : 0;
}

struct call_ids {
    uint32_t *ids; /* owned; as many as released[] of the choice says */
    uint32_t size;
};

/* All but call_unref on the background thread. */

/* client_calls.c */
void call_unref(struct client_call *call);
void call_acknowledge(struct client_call *call); /* its router answers for it */
void call_end(struct client_call *call, struct client_end *end);
void call_end_error(struct client_call *call, enum wire_error_code code, const char *detail);
void call_abandon(struct client_call *call, const char *detail); /* its tokens cannot be used: cancels it and ends it here */
void call_cancel(struct client_call *call);
/* Its router has it no more: it waits for the next one, unless it cannot go on; why ends it then. */
void call_move(struct client_call *call, const char *why);
void call_resend(struct client_call *call); /* the same, because the router asked for it */
/* CANCEL to the router that has a call, or if none has it any more to any that can pass it on. False: nobody to tell, or it was
 * never sent. */
bool call_send_cancel(struct client_call *call);
void calls_dispatch(struct client *client); /* sends what waits, as far as there is room */
void calls_on_ready(void *user, struct client_link *link);
void calls_on_lost(void *user, struct client_link *link);
void calls_on_goaway(struct client *client, struct router *router);

/* client_answers.c */
void calls_on_message(void *user, struct client_link *link, const struct wire_message *message);
void calls_on_dropped(void *user);
struct router *router_of(struct client *client, const struct client_link *link);

/* client_resume.c */
void call_keep_ids(struct client_call *call, unsigned choice, struct wire_span ids); /* before released[] counts them */
void call_free_ids(struct client_call *call);
void call_keep_numerics(struct client_call *call, struct wire_span numerics_id);
/* Why it cannot be continued by another router; NULL: it can. */
const char *call_resume_trouble(const struct client_call *call);
void call_fill_resume(struct client_call *call, struct wire_head *head); /* points into the call and client->columns */

/* client_credit.c */
#define CREDIT_ROWS_MAX 20000u /* 12 bytes each: 240 KB of the 256 KiB of a lease */
static inline uint64_t credit_step(uint32_t tokens) /* new credit worth a lease of its own */
{
    return tokens > 1 ? tokens / 2 : 1;
}
void call_grant(struct client_call *call);         /* something was consumed or handed out: tells the router in time */
void call_grant_anew(struct client_call *call);    /* the router knows nothing of this call's credit */
void calls_on_lease(void *user, struct client_link *link, bool all, struct wire_lease *lease); /* fills in the columns */

#endif
