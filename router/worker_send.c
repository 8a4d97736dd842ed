/* worker_send.c - requests and messages to one worker, within what it takes: ready, its grant of body bytes, its
 * streams.
 *
 * A cancel is kept until the worker has echoed a lease from behind it, for its request may have ended here meanwhile,
 * and then nothing else would tell the worker: a new link to the same process gets it again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/log.h"
#include "router/frame.h"
#include "router/worker_internal.h"

/* A worker whose link is down gets nothing new, so what it can be owed is what it had: all streams of one client that
 * is lost with it, 176 bytes each, 704 KiB. What is over it runs on to its own deadline. */
enum { CANCELS_MAX = 4096 };

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
    worker_sent_add(worker, tokens);
    return STATUS_OK;
}

enum status worker_send_request(struct worker *worker, uint32_t stream, zmq_msg_t *head, zmq_msg_t *body,
                                uint64_t tokens)
{
    TRY(send_request(worker, worker_ready(worker), head, body, tokens));
    worker_health_sent(worker, stream);
    return STATUS_OK;
}

enum status worker_send_known(struct worker *worker, zmq_msg_t *head, zmq_msg_t *body)
{
    return send_request(worker, worker_connected(worker) && worker->data_up && worker->welcome_data, head, body, 0);
}

void worker_body_acknowledged(struct worker *worker, uint64_t bytes)
{
    worker->body_bytes_open -= bytes < worker->body_bytes_open ? bytes : worker->body_bytes_open;
}

void worker_stream_close(struct worker *worker, uint32_t stream)
{
    worker->streams -= worker->streams > 0;
    worker_health_closed(worker, stream);
}

/* ---- cancels ---- */

static struct worker_cancel *keep_cancel(struct worker *worker, const struct wire_cancel *cancel)
{
    if (worker->cancel_count == worker->cancel_room) {
        unsigned room = worker->cancel_room ? 2 * worker->cancel_room : 16;
        struct worker_cancel *cancels = room <= CANCELS_MAX ? realloc(worker->cancels, room * sizeof *cancels) : NULL;
        if (!cancels)
            return NULL;
        worker->cancels = cancels;
        worker->cancel_room = room;
    }
    struct worker_cancel *kept = &worker->cancels[worker->cancel_count++];
    *kept = (struct worker_cancel){.number = UINT64_MAX, .attempt = cancel->attempt};
    memcpy(kept->request_id, cancel->request_id.data, WIRE_ID_BYTES);
    memcpy(kept->tenant, cancel->tenant.data, cancel->tenant.size); /* names: checked by the codec */
    if (cancel->conversation.size)
        memcpy(kept->conversation, cancel->conversation.data, cancel->conversation.size);
    return kept;
}

static bool send_cancel(struct worker *worker, const struct wire_cancel *cancel)
{
    if (!worker->control_up || !worker->welcome_control)
        return false;
    struct wire_message message = {.kind = WIRE_CANCEL, .cancel = *cancel};
    message.cancel.session = wire_span_of(worker->pool->session, WIRE_ID_BYTES);
    return frame_send(worker->control, NULL, &message) == STATUS_OK;
}

void worker_send_cancel(struct worker *worker, const struct wire_cancel *cancel)
{
    bool sent = send_cancel(worker, cancel);
    struct worker_cancel *kept = keep_cancel(worker, cancel);
    if (kept && sent)
        kept->number = worker->number + 1;
    else if (!kept && !sent && worker_pool_may_log(worker->pool))
        LOG_WARN("worker %s cannot be told of a cancel: what was cancelled runs on there", worker_label(worker));
}

void worker_cancels_arrived(struct worker *worker, uint64_t echo)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < worker->cancel_count; i++)
        if (worker->cancels[i].number > echo)
            worker->cancels[kept++] = worker->cancels[i];
    worker->cancel_count = kept;
}

void worker_cancels_unsent(struct worker *worker)
{
    for (unsigned i = 0; i < worker->cancel_count; i++)
        worker->cancels[i].number = UINT64_MAX;
}

void worker_cancels_send(struct worker *worker)
{
    for (unsigned i = 0; i < worker->cancel_count; i++) {
        struct worker_cancel *kept = &worker->cancels[i];
        struct wire_cancel cancel = {.request_id = wire_span_of(kept->request_id, WIRE_ID_BYTES),
                                     .tenant = wire_span_str(kept->tenant),
                                     .conversation = wire_span_str(kept->conversation),
                                     .attempt = kept->attempt};
        if (kept->number == UINT64_MAX && send_cancel(worker, &cancel))
            kept->number = worker->number + 1;
    }
}

void worker_cancels_drop(struct worker *worker)
{
    free(worker->cancels);
    worker->cancels = NULL;
    worker->cancel_count = worker->cancel_room = 0;
}

/* ---- messages ---- */

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
