/* client_internal.h - what client.c (the thread, what applications call) and client_calls.c (the life of a call) share.
 * Nobody else includes it.
 *
 *   application threads                       background thread
 *   client_generate --queue--> on_commands --> WAITING --dispatch--> SENT --terminal, deadline, cancel--> ENDED
 *   client_cancel   --queue--> on_commands        ^                   |
 *                                                 +-- RESEND, router lost and no token released
 *
 * Always true:
 *   1. a call is in exactly one of: the queue of new calls, the waiting list, the table of sent calls, ended;
 *   2. call_end is the only function that ends a call, and it calls on_end once;
 *   3. a stream number is used for one attempt only, so what belongs to an older attempt finds no call;
 *   4. router->unacknowledged is the sum of body sizes of its sent calls without an acknowledgement.
 * client->lock guards the two queues and the limits shown to application threads; call->lock guards ended, error and
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
    struct client *client;    /* ref */
    struct client_link *link; /* owned */
    size_t unacknowledged;    /* invariant 4 */
    unsigned stream_count;    /* sent calls */
    bool draining;            /* GOAWAY: nothing new goes there until it is back */
};

struct client_call {
    struct client *client; /* ref; not touched once ended */
    atomic_uint refs;
    pthread_mutex_t lock;
    pthread_cond_t ended_signal;
    bool ended; /* on_end has returned */
    bool cancel_queued;
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
    uint8_t *body; /* owned: the encoded frame */
    size_t body_size;
    struct client_callbacks callbacks;
    void *user;

    /* the background thread's */
    enum call_state state;
    uint64_t start_ms;
    uint32_t stream, attempt_client, attempt_router;
    struct router *router; /* ref, while sent */
    bool acknowledged, cancelled;
    uint64_t cancel_at_ms; /* the cancelled call ends here at the latest */
    uint32_t released[WIRE_SEQUENCES_MAX]; /* per choice, and of the prompt */
    uint32_t choices_ended;                /* a bit for each choice whose text after its last token came */
    uint64_t released_total;               /* of the choices */
    unsigned resends;
    struct client_call *prev, *next;               /* new or waiting list */
    struct client_call *cancel_prev, *cancel_next; /* list of cancels */
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
    struct client_call *new_calls, *cancels; /* guarded by lock; each holds a reference */
    struct wire_limits limits;               /* guarded by lock: of the last WELCOME */
    bool stopping;                           /* guarded by lock: no new calls */
    atomic_ullong dropped;

    /* the background thread's */
    struct loop *loop;
    void *zmq_context;
    struct loop_timer *tick_timer, *farewell_timer;
    struct loop_hook *hook;
    char **endpoints;       /* owned */
    struct router *routers; /* owned */
    unsigned router_count;
    struct client_call *waiting; /* in order of arrival; re-sent ones go in front */
    struct client_call *sent;    /* by stream */
    uint32_t last_stream;
    bool dispatch_wanted;
    uint64_t last_tick_ms;
    uint32_t *columns; /* WIRE_TOKENS_BYTES_MAX: aligned copies of the columns of one row, which come out of one frame; owned */
};

/* The application's clock may be a moment ahead of the loop's, which is read once a turn. */
static inline uint64_t call_age_ms(const struct client_call *call, uint64_t now_ms)
{
    return now_ms > call->start_ms ? now_ms - call->start_ms : 0;
}

/* All but call_unref on the background thread. */
void call_unref(struct client_call *call);
void call_end_error(struct client_call *call, enum wire_error_code code, const char *detail);
void call_send_cancel(struct client_call *call); /* no-op unless it is sent */
void calls_dispatch(struct client *client);      /* sends what waits, as far as there is room */

/* What a client_link calls; user is the client. */
void calls_on_ready(void *user, struct client_link *link);
void calls_on_lost(void *user, struct client_link *link);
void calls_on_message(void *user, struct client_link *link, const struct wire_message *message);
void calls_on_dropped(void *user);

#endif
