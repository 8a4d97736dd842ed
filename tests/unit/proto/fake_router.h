/* fake_router.h - a router made of two ROUTER channels on a thread of its own, for tests of clients.
 * It answers HELLO with WELCOME and LEASE with LEASE; what it does with a request is the test's callback, which runs on
 * the router's thread, as do the fake_send functions. */
#ifndef FAKE_ROUTER_H
#define FAKE_ROUTER_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "common/channel.h"
#include "proto/wire.h"

struct fake_router;

#define FAKE_RESUME_MAX 256u

struct fake_request {
    uint8_t id[WIRE_ID_BYTES];
    uint32_t stream, deadline_ms, body_bytes;
    struct wire_attempt attempt;
    char conversation[WIRE_NAME_MAX + 1], tenant[WIRE_NAME_MAX + 1];
    struct channel_peer data, control; /* the client's two connections */
    uint8_t session[WIRE_ID_BYTES];
    bool inexact_allowed;
    unsigned resume_choices; /* 0: from the start */
    uint32_t resume_counts[WIRE_CHOICES_MAX];
    uint32_t resume_ids[FAKE_RESUME_MAX]; /* the first of them */
    uint32_t resume_total;
    uint8_t numerics_id[32]; /* zeroes: none */
};

struct fake_router_config {
    uint32_t lease_ms, lease_expiry_ms;
    struct wire_limits limits;
    const char *control_endpoint;           /* NULL: any port */
    bool mute;                              /* never answers HELLO */
    bool no_leases;                         /* never answers LEASE */
    bool no_control_leases, no_data_leases; /* the same on one connection */
    bool own_number;                        /* the replies to leases all carry number 1: replayed */
    bool no_echo;                           /* its leases show that ours do not arrive */
    uint32_t capabilities;                  /* of its WELCOME */
    uint8_t numerics;                       /* every byte of the numerics id in its ACK; 0: none */
    const char *refuse;                     /* HELLO is answered with an ERROR about the connection */
    void (*on_request)(void *user, struct fake_router *router, const struct fake_request *request);
    void (*on_cancel)(void *user, struct fake_router *router, const struct wire_cancel *cancel);
    void (*on_lease)(void *user, struct fake_router *router, const struct wire_lease *lease); /* of the control connection */
    void *user;
};

struct fake_counts { /* read by any thread */
    atomic_uint hellos_control, hellos_data, leases_control, leases_data, requests, cancels, goodbyes, malformed;
};

void fake_router_start(const struct fake_router_config *config, struct fake_router **out);
void fake_router_stop(struct fake_router **router);             /* closes its sockets: the links go down */
void fake_router_freeze(struct fake_router *router);            /* says nothing more, keeps its sockets open */
void fake_router_thaw(struct fake_router *router);              /* goes on; what came meanwhile is lost */
void fake_router_cut(struct fake_router *router, bool control); /* closes one of its two sockets */
const char *fake_router_endpoint(const struct fake_router *router);
struct fake_counts *fake_router_counts(struct fake_router *router);
void *fake_router_user(struct fake_router *router);

/* In the router's thread. */
void fake_send(struct fake_router *router, const struct fake_request *request, bool control,
               const struct wire_message *message);
void fake_send_raw(struct fake_router *router, const struct fake_request *request, const void *data, size_t size);
void fake_send_ack(struct fake_router *router, const struct fake_request *request);
void fake_send_tokens(struct fake_router *router, const struct fake_request *request, uint32_t first, unsigned count,
                      const char *text);
/* A row whose stream and attempt are the request's. */
void fake_send_row(struct fake_router *router, const struct fake_request *request, struct wire_tokens_row row);
void fake_send_done(struct fake_router *router, const struct fake_request *request, uint32_t released);
/* Of several choices, one finish each. The prompt has 11 tokens. */
void fake_send_done_of(struct fake_router *router, const struct fake_request *request, struct wire_span finish,
                       uint32_t released);
void fake_send_error(struct fake_router *router, const struct fake_request *request, enum wire_error_code code,
                     uint32_t retry_after_ms);
void fake_send_ref(struct fake_router *router, const struct fake_request *request, enum wire_kind kind);
/* What the client has granted to the request's stream; 0: nothing yet. */
uint64_t fake_credit(struct fake_router *router, const struct fake_request *request);
void fake_send_goaway(struct fake_router *router, const struct fake_request *request);
void fake_later(struct fake_router *router, uint64_t delay_ms,
                void (*fn)(struct fake_router *, const struct fake_request *), const struct fake_request *request);

#endif
