/* fake_router.h - the server under test on a thread of its own, and routers made of two DEALER sockets that do exactly what a test says.
 * Every wait ends: a receive that takes longer than WAIT_MS fails the test. */
#ifndef ROOST_TESTS_FAKE_ROUTER_H
#define ROOST_TESTS_FAKE_ROUTER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zmq.h>
#include "common/status.h"
#include "proto/wire.h"
#include "worker/server/server.h"

#define WAIT_MS 20000

enum { CONTROL, DATA };

struct bench {                      /* the server and its thread */
    void *zmq_context;
    struct server_config config;    /* fill in before bench_start what differs from the defaults */
    char control[128], data[128];   /* as bound */
    uint8_t incarnation[16];
    struct bench_private *private;
};

void bench_setup(struct bench *bench);                        /* defaults: fake engine's sizes, long leases */
enum status bench_start(struct bench *bench);                 /* returns when bound; does not wait for READY */
enum wire_life bench_wait_state(struct bench *bench, enum wire_life state, enum status *st);   /* until it is that, or GONE */
void bench_drain(struct bench *bench);
void bench_stats(struct bench *bench, struct server_stats *out);   /* asked on its thread */
unsigned bench_streams(struct bench *bench);                  /* open ones, asked on its thread */
bool bench_wait_streams(struct bench *bench, unsigned count); /* false: not within WAIT_MS */
void bench_stop(struct bench *bench);

struct router {
    void *sockets[2];
    uint8_t session[16];
    uint64_t number[2];             /* of our leases */
    uint32_t capabilities;          /* said in HELLO; 0 unless a test sets it before */
    struct bench *bench;            /* ref */
};

struct incoming {
    zmq_msg_t frame;
    struct wire_message message;
};
void incoming_free(struct incoming *in);

void router_connect(struct router *router, struct bench *bench, uint8_t id);   /* sockets only; the session is 16 times id */
void router_hello(struct router *router);                     /* on both, and takes both WELCOMEs */
void router_close(struct router *router);
void router_reconnect(struct router *router, int link);       /* a new socket, nothing said on it yet */

void router_send(struct router *router, int link, const struct wire_message *message);
void router_send_raw(struct router *router, int link, const void *data, size_t size);
void router_lease(struct router *router, int link, uint64_t echo);
/* A control lease that grants `tokens` on a stream; connection_bytes 0: no limit. */
void router_grant(struct router *router, uint32_t stream, uint64_t tokens, uint64_t connection_bytes);
void router_echo(struct router *router);   /* a data lease that echoes a new one of the worker's: all before it was seen */
/* The next frame that is not a lease (skip_leases), or any. Fails the test after WAIT_MS. */
void router_receive(struct router *router, int link, bool skip_leases, struct incoming *in);
/* Fails if it is not of this kind; leases are skipped, and everything else when a lease is expected. */
void router_expect(struct router *router, int link, enum wire_kind kind, struct incoming *in);
/* False if nothing but leases comes within wait_ms. */
bool router_try(struct router *router, int link, int wait_ms, struct incoming *in);

struct ask {                        /* a request; zeroed fields have defaults */
    uint8_t id;                     /* request id is 16 times it */
    uint32_t stream;
    const char *tenant;             /* "acme" */
    const char *conversation, *model, *text;   /* text: "hello" */
    struct wire_attempt attempt;
    uint32_t deadline_ms;
    int32_t priority;
    const uint8_t *incarnation;     /* NULL: none */
    struct wire_sampling sampling;
    uint32_t epoch, loss_count;
    const uint32_t *resume_counts;  /* (choices); NULL: no resume */
    const uint32_t *resume_ids;     /* of all choices */
    const uint8_t *numerics_id, *placement;   /* 32 and 16 bytes; NULL: none */
    bool inexact_allowed;
};
void ask_messages(const struct ask *ask, const struct router *router, struct wire_message *head, struct wire_message *body,
                  struct wire_chat_message *chat, uint8_t request_id[16]);
size_t encode(const struct wire_message *message, uint8_t **out);   /* free(*out) */
void router_ask(struct router *router, const struct ask *ask);
/* body_bytes 0 in the head: filled in. */
void router_ask_raw(struct router *router, const struct wire_message *head, const void *body, size_t body_size);
void router_cancel(struct router *router, uint8_t id, const char *tenant);
void router_cancel_attempt(struct router *router, uint8_t id, struct wire_attempt attempt);   /* of tenant acme */

struct reply {                      /* of one stream */
    uint32_t first;                 /* set by the test: what the stream was resumed with */
    uint32_t *ids;
    unsigned count;
    char *text;
    size_t text_size;
    unsigned frames, rows;
    size_t frame_bytes_max;
    bool done;
    struct wire_done info;          /* its spans are not valid any more; those of interest follow */
    char worker[65];
    uint8_t numerics_id[32], cache_id[16], finish;
    enum wire_error_code error;
    char detail[600];
    uint32_t retry_after_ms;
    struct wire_attempt attempt;
};
/* Reads data frames until the stream ends; rows of other streams are dropped, rows must be gapless from reply->first on. */
void router_collect(struct router *router, uint32_t stream, struct wire_attempt attempt, struct reply *reply);
/* Reads until the stream has `tokens`. */
void router_collect_some(struct router *router, uint32_t stream, struct wire_attempt attempt, unsigned tokens, struct reply *reply);
void reply_free(struct reply *reply);

#endif
