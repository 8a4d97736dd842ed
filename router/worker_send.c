/* worker_send.c - requests and messages to one worker, within what it takes: ready, its grant of body bytes, its
 * streams. */
#include <string.h>
#include "router/frame.h"
#include "router/worker_internal.h"

static enum status send_request(struct worker *worker, bool may_take, zmq_msg_t *head, zmq_msg_t *body, uint64_t tokens)
{
    zmq_msg_t frames[2];
    size_t bytes = zmq_msg_size(body);
    enum status st = STATUS_OK;
    if (!may_take)
        st = STATUS_FAIL(STATUS_CLOSED, "worker %s is not ready", worker->name);
    else if (worker->streams >= worker->streams_max ||
             (worker->body_bytes_open > 0 && worker->body_bytes_open + bytes > worker->body_bytes_max))
        st = STATUS_FAIL(STATUS_AGAIN, "worker %s has as much as it can take now", worker->name);
    if (st != STATUS_OK) {
        zmq_msg_close(head);
        zmq_msg_close(body);
        return st;
    }
    zmq_msg_init(&frames[0]);
    zmq_msg_init(&frames[1]);
    zmq_msg_move(&frames[0], head);
    zmq_msg_move(&frames[1], body);
    st = channel_send(worker->data, NULL, frames, 2);
    if (st != STATUS_OK)
        return st == STATUS_LIMIT ? STATUS_AGAIN : st;
    worker->streams++;
    worker->body_bytes_open += bytes;
    worker->probing = worker->breaker == WORKER_BREAKER_HALF_OPEN;
    worker_sent_add(worker, tokens);
    return STATUS_OK;
}

enum status worker_send_request(struct worker *worker, zmq_msg_t *head, zmq_msg_t *body, uint64_t tokens)
{
    return send_request(worker, worker_ready(worker), head, body, tokens);
}

enum status worker_send_known(struct worker *worker, zmq_msg_t *head, zmq_msg_t *body)
{
    return send_request(worker, worker_connected(worker) && worker->data_up && worker->welcome_data, head, body, 0);
}

void worker_body_acknowledged(struct worker *worker, uint64_t bytes)
{
    worker->body_bytes_open -= bytes < worker->body_bytes_open ? bytes : worker->body_bytes_open;
}

void worker_stream_close(struct worker *worker)
{
    worker->streams -= worker->streams > 0;
    worker->probing = false; /* a half-open one that ended without a verdict: the next may try */
}

void worker_send_cancel(struct worker *worker, const struct wire_cancel *cancel)
{
    if (!worker->control_up || !worker->welcome_control)
        return; /* its session ends with our lease there, or on_relinked comes */
    struct wire_message message = {.kind = WIRE_CANCEL, .cancel = *cancel};
    message.cancel.session = wire_span_of(worker->pool->session, WIRE_ID_BYTES);
    (void)frame_send(worker->control, NULL, &message);
}

enum status worker_send_attach(struct worker *worker, const struct wire_attach *attach)
{
    if (!worker_connected(worker))
        return STATUS_FAIL(STATUS_CLOSED, "worker %s is not connected", worker->name);
    if (!(worker->capabilities & WIRE_CAN_ATTACH))
        return STATUS_FAIL(STATUS_UNSUPPORTED, "worker %s does not know ATTACH", worker->name);
    struct wire_message message = {.kind = WIRE_ATTACH, .attach = *attach};
    message.attach.session = wire_span_of(worker->pool->session, WIRE_ID_BYTES);
    return frame_send(worker->control, NULL, &message);
}

enum status worker_send_drain(struct worker *worker, const struct wire_drain *drain)
{
    if (!worker_connected(worker))
        return STATUS_FAIL(STATUS_CLOSED, "worker %s is not connected", worker->name);
    if (!(worker->capabilities & WIRE_CAN_DRAIN))
        return STATUS_FAIL(STATUS_UNSUPPORTED, "worker %s does not know DRAIN: send it SIGTERM", worker->name);
    struct wire_message message = {.kind = WIRE_DRAIN, .drain = *drain};
    return frame_send(worker->control, NULL, &message);
}

/* ---- what it is ---- */

const char *worker_name(const struct worker *worker)
{
    return worker->name;
}

uint64_t worker_name_hash(const struct worker *worker)
{
    return worker->name_hash;
}

uint64_t worker_weight(const struct worker *worker)
{
    return worker->weight;
}

const uint8_t *worker_incarnation(const struct worker *worker)
{
    return worker->incarnation;
}

struct wire_span worker_numerics_id(const struct worker *worker)
{
    return wire_span_of(worker->numerics_id, worker->has_numerics_id ? sizeof worker->numerics_id : 0);
}

uint32_t worker_capabilities(const struct worker *worker)
{
    return worker->capabilities;
}

uint32_t worker_stream_window(const struct worker *worker)
{
    return worker->stream_window;
}
