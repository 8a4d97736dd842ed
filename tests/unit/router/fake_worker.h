/* fake_worker.h - the worker's side of the protocol, driven by a test: two server channels on the test's own loop. */
#ifndef ROOST_TESTS_ROUTER_FAKE_WORKER_H
#define ROOST_TESTS_ROUTER_FAKE_WORKER_H
#include <stdbool.h>
#include <stdint.h>
#include "common/channel.h"
#include "proto/wire.h"

#define FAKE_REQUESTS_MAX 256
#define FAKE_IDS_MAX      64  /* of a resume, that are kept */
#define FAKE_GRANTS_MAX   300 /* streams */

struct loop;

struct fake_request { /* as it came */
    uint8_t id[WIRE_ID_BYTES], session[WIRE_ID_BYTES], incarnation[WIRE_ID_BYTES], cache_id[WIRE_ID_BYTES];
    bool has_cache_id;
    char tenant[WIRE_NAME_MAX + 1], conversation[WIRE_NAME_MAX + 1];
    uint32_t stream, deadline_ms, loss_count, body_bytes;
    uint64_t epoch;
    struct wire_attempt attempt;
    unsigned resume_choices; /* 0: no resume */
    uint32_t resume_counts[WIRE_CHOICES_MAX], resume_ids[FAKE_IDS_MAX], resume_total;
    bool has_numerics_id, inexact_allowed, has_placement;
    uint8_t numerics_id[32];
    size_t body_size;
    uint8_t body_last; /* its last byte */
    struct channel_peer peer;
};

struct fake_worker {
    struct loop *loop;
    struct channel *control, *data; /* NULL after fake_worker_kill */
    struct loop_timer *timer;
    char name[WIRE_NAME_MAX + 1];
    uint8_t incarnation[WIRE_ID_BYTES], cache_id[WIRE_ID_BYTES];
    uint64_t kv_tokens_max, queued_tokens;
    uint32_t token_ns;
    uint64_t grant_bytes; /* 0: not told */
    uint32_t streams_max;
    enum wire_life life;
    uint32_t capabilities;   /* all; fake_worker_welcome tells another value */
    uint8_t numerics_id[32]; /* the same for all of them */
    uint32_t stream_window;
    bool mute;            /* answers nothing more, links stay */
    bool deaf;            /* leases go out, but echo nothing new */
    unsigned auto_tokens; /* > 0: each request is acknowledged and answered at once with so many tokens */
    struct channel_peer control_peer, data_peer; /* of the router that said HELLO last; others get nothing */
    uint8_t router_session[WIRE_ID_BYTES];
    bool has_control_peer, has_data_peer;
    uint64_t number, heard, data_number, data_heard;

    unsigned request_count;
    struct fake_request requests[FAKE_REQUESTS_MAX];
    unsigned cancel_count;
    uint8_t last_cancel[WIRE_ID_BYTES];
    struct wire_attempt last_cancel_attempt;
    unsigned attach_count;        /* questions */
    uint8_t known[WIRE_ID_BYTES]; /* answered "known" */
    bool knows, never_answers;
    uint64_t granted[FAKE_GRANTS_MAX]; /* by stream */
    unsigned malformed;
};

void fake_worker_start(struct fake_worker *worker, struct loop *loop, void *zmq_context, const char *name);
/* At the endpoints of one that was killed, as another process. */
void fake_worker_start_at(struct fake_worker *worker, struct loop *loop, void *zmq_context, const char *name,
                          const char *control, const char *data);
void fake_worker_kill(struct fake_worker *worker); /* its sockets close; also the end of a test */
const char *fake_worker_endpoint(const struct fake_worker *worker);

/* Says WELCOME again, with its capabilities and numerics as they are now. */
void fake_worker_welcome(struct fake_worker *worker);
/* A newer attempt of it came from another router. */
void fake_worker_superseded(struct fake_worker *worker, const struct fake_request *request);
struct fake_request *fake_worker_request(struct fake_worker *worker, unsigned index);
void fake_worker_ack(struct fake_worker *worker, const struct fake_request *request);
void fake_worker_ack_started(struct fake_worker *worker, const struct fake_request *request); /* it computes it */
/* Token ids are first, first + 1, ...; the text is one letter each. */
void fake_worker_tokens(struct fake_worker *worker, const struct fake_request *request, uint32_t first, uint16_t count);
/* Of any choice, or WIRE_CHOICE_PROMPT; with so many alternatives, and then log probabilities. */
void fake_worker_row(struct fake_worker *worker, const struct fake_request *request, unsigned choice, uint32_t first,
                     uint16_t count, unsigned alternatives);
/* Text after the last token of a choice. */
void fake_worker_last(struct fake_worker *worker, const struct fake_request *request, unsigned choice, uint32_t first);
void fake_worker_done(struct fake_worker *worker, const struct fake_request *request, uint32_t released);
void fake_worker_done_of(struct fake_worker *worker, const struct fake_request *request, unsigned choices,
                         uint32_t released);
void fake_worker_error(struct fake_worker *worker, const struct fake_request *request, enum wire_error_code code);
void fake_worker_resend(struct fake_worker *worker, const struct fake_request *request); /* it has given it up */
void fake_worker_wrong_owner(struct fake_worker *worker, const struct fake_request *request);
void fake_worker_send_bytes(struct fake_worker *worker, bool data, const void *bytes, size_t size);

#endif
