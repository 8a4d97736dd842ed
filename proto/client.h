/* client.h - the C client library: what applications link to talk to a roost cluster.
 *
 *     struct client *client;
 *     const char *routers[] = { "tcp://127.0.0.1:7400" };
 *     client_create(&(struct client_config){ .routers = routers, .router_count = 1, .tenant = "acme" }, &client);
 *     struct client_call *call;
 *     client_generate(client, &request, &callbacks, user, &call);
 *     client_wait(call, NULL);           // callbacks have run
 *     client_call_release(&call);
 *     client_destroy(&client);
 *
 * Owns one background thread with a loop and all ZeroMQ sockets. Every function may be called from any thread except
 * that callbacks run on the background thread and must not call client_wait or client_destroy. Always true: each accepted call
 * ends in exactly one on_end; tokens of each choice arrive gapless and in order, and before the first of them the prompt's log
 * probabilities, if they were asked for; limits are checked before anything is sent.
 * A call whose router is lost goes on through another one, or through the same one once it is back, within its deadline: the
 * library keeps the ids of the tokens that it has handed out and lets them be continued. The application sees one stream.
 * Endpoints are tcp or ipc; names in them are resolved each time a connection is made. The library sets no signal handler,
 * blocks signals on its thread and logs at level debug only. It does not survive fork. */
#ifndef ROOST_PROTO_CLIENT_H
#define ROOST_PROTO_CLIENT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "proto/wire.h"

struct client;
struct client_call;

struct client_config {
    const char *const *routers;       /* control endpoints; borrowed during create */
    unsigned router_count;
    bool keep_order;                  /* calls go to the first router that is ready, in the order given; false: in that order from a
                                         random one on, so that many clients spread over the routers */
    const char *tenant;               /* name rules of wire.h; NULL: "default" */
    const char *name;                 /* for the routers' logs; NULL: "client" */
};

struct client_message {
    enum wire_message_role role;
    const char *name;                 /* may be NULL */
    const char *text;                 /* UTF-8 without NUL */
    size_t text_size;
};

struct client_request {               /* everything is borrowed during client_generate */
    const char *conversation;         /* NULL: none */
    const char *model;                /* NULL: whatever is served */
    const struct client_message *messages;
    unsigned message_count;
    const uint32_t *prompt_ids;       /* instead of messages */
    unsigned prompt_id_count;
    const char *reply_name;           /* NULL: the template's assistant */
    struct wire_sampling sampling;    /* zeroed: greedy to the end of turn */
    bool truncate;                    /* drop the oldest messages of a prompt that is too long, instead of an error */
    uint32_t deadline_ms;             /* 0: 120 s */
    int32_t priority;
    uint64_t seed;
    bool seed_given;
    const uint8_t *request_id;        /* 16 bytes; NULL: random */
    bool inexact_allowed;             /* a call that has to move may go on with other numerics; client_end.inexact then says so */
    uint32_t credit_tokens;           /* at most so many tokens, of all choices, are under way or handed out and not consumed
                                         (client_consumed), or the router's first window (512) if that is more, which each router that
                                         goes on may use anew; a stream that is held back for 30 s ends with SLOW_READER. 0: consumed is
                                         what a callback returned from */
};

struct client_tokens {                /* a batch of one choice of one call, or of its prompt */
    unsigned choice;
    uint32_t first;                   /* sequence number of ids[0] within the choice; of the prompt: 0 is its second token */
    const uint32_t *ids;
    unsigned count;
    const char *text;                 /* not NUL-terminated; whole characters; "" for the prompt */
    size_t text_size;
    const float *logprobs;            /* (count), natural; NULL: not asked for */
    unsigned alternatives;            /* most likely ids of each token; 0: none */
    const uint32_t *alternative_ids;  /* (count, alternatives), likeliest first */
    const float *alternative_logprobs;
};

struct client_end {
    enum wire_error_code error;       /* WIRE_ERROR_UNKNOWN (0): it went well */
    const char *detail;               /* of the error; "" otherwise */
    uint32_t retry_after_ms;
    enum wire_finish finish;          /* of choice 0 */
    enum wire_finish finishes[WIRE_CHOICES_MAX];
    unsigned choices;                 /* with a finish; 0 after an error */
    uint32_t prompt_tokens, cached_tokens, reply_tokens;   /* reply_tokens: of all choices */
    uint32_t dropped_messages;        /* by truncation */
    uint32_t queue_us, prefill_us, decode_us, route_us;
    const char *worker;               /* name of the worker that answered */
    const char *route;                /* the router's reason code */
    bool inexact;
    uint32_t moves;                   /* times that the request was sent again */
};

struct client_stats {
    uint64_t dropped;                 /* frames and token rows: malformed, of an older attempt, repeated, forged */
    uint64_t moves;                   /* requests sent again because their router was lost or drained */
    uint64_t resends;                 /* requests sent again because the router asked for it */
    uint64_t resumed;                 /* of both, those that had tokens already */
    unsigned routers_ready;           /* connected and taking requests */
    unsigned routers;
};

struct client_callbacks {             /* arguments are borrowed for the call; NULL members are skipped */
    void (*on_tokens)(void *user, struct client_call *call, const struct client_tokens *tokens);
    void (*on_end)(void *user, struct client_call *call, const struct client_end *end);
    void (*on_prompt)(void *user, struct client_call *call, const struct client_tokens *tokens);   /* log probabilities of the prompt */
};

enum status client_create(const struct client_config *config, struct client **out);
void client_destroy(struct client **client);        /* cancels what is open; each open call gets its on_end (cancelled) */

/* Fails at once (nothing sent, no callback) on bad input: STATUS_INVALID, STATUS_LIMIT with a detail. On success the caller
 * holds a reference to *out until client_call_release. */
enum status client_generate(struct client *client, const struct client_request *request, const struct client_callbacks *callbacks,
                            void *user, struct client_call **out);
void client_cancel(struct client_call *call);       /* asks; on_end still comes */
/* So many more tokens of a call with credit_tokens have been used; any thread. Cheap: the routers hear of it by the half credit. */
void client_consumed(struct client_call *call, uint32_t tokens);
/* Blocks until on_end has returned. *error (may be NULL) gets its code. */
enum status client_wait(struct client_call *call, enum wire_error_code *error);
void client_call_release(struct client_call **call);
const uint8_t *client_call_request_id(const struct client_call *call);

void client_stats(struct client *client, struct client_stats *out);
uint64_t client_dropped(const struct client *client);   /* client_stats.dropped */

#endif
