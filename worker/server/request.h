/* request.h - a head and a body turned into what the engine takes, or a refusal that says what was wrong.
 * Pure functions: no server, no sockets. A request owns the body's frame, which its spans point into. */
#ifndef ROOST_WORKER_SERVER_REQUEST_H
#define ROOST_WORKER_SERVER_REQUEST_H
#include <stdint.h>
#include <zmq.h>
#include "common/status.h"
#include "proto/wire.h"
#include "worker/engine/engine.h"

struct request {
    struct engine_request engine;        /* job is filled in by the caller; the rest points into the members below */
    zmq_msg_t frame;                     /* owned: the body's bytes */
    struct wire_message body;            /* owned: points into frame */
    struct engine_message *messages;     /* owned; NULL with prompt ids */
    uint32_t *ids;                       /* owned: prompt ids, stop ids, ids with a bias, counts and ids of a resume, one after the
                                            other; NULL: none */
    float *bias_values;                  /* owned; NULL: none */
    const char *stops[WIRE_STOPS_MAX];   /* into body */
    size_t stop_sizes[WIRE_STOPS_MAX];
    char tenant[WIRE_NAME_MAX + 1];
};

struct refusal {                         /* becomes an ERROR */
    enum wire_error_code code;
    char detail[WIRE_DETAIL_MAX + 1];
    uint32_t retry_after_ms;             /* OVER_CAPACITY */
};

void refusal_set(struct refusal *refusal, enum wire_error_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The error code of a status: TIMEOUT deadline, CANCELLED cancelled, AGAIN over capacity, INVALID invalid, UNSUPPORTED unsupported,
 * LIMIT what the caller says (too large for a prompt, over capacity for KV), anything else internal. */
enum wire_error_code refusal_code(enum status st, enum wire_error_code limit);

/* Decodes and checks the body and what the head asks of the engine; names the first thing that is wrong or not built. What depends on
 * the model (ids, lengths) engine_submit checks. A resume has a count for each choice; one without ids is none.
 * Moves the content of body_frame into *out on success (which the caller then owns); leaves it alone on a refusal.
 * now_ms is clock_now_ms: the deadline counts from it. */
enum status request_create(const struct wire_head *head, zmq_msg_t *body_frame, uint64_t now_ms,
                           struct request **out, struct refusal *refusal);
void request_destroy(struct request **request);      /* accepts NULL; sets *request to NULL */

/* What makes two requests the same: body, conversation, model, seed. */
void request_content(const struct wire_head *head, const void *body, size_t body_size, uint8_t out[32]);

#endif
