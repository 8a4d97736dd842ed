#include "fake_worker.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/loop.h"

static struct wire_span id_of(const uint8_t *id)
{
    return wire_span_of(id, WIRE_ID_BYTES);
}

static void send_message(struct channel *channel, const struct channel_peer *peer, const struct wire_message *message)
{
    size_t size = wire_encoded_size(message);
    uint8_t *bytes = malloc(size);
    if (channel && bytes)
        (void)channel_send_bytes(channel, peer, bytes, wire_encode(message, bytes));
    free(bytes);
}

static void send_lease(struct fake_worker *worker, bool data)
{
    struct wire_message lease = {.kind = WIRE_LEASE,
                                 .lease = {.session = id_of(worker->incarnation),
                                           .number = data ? ++worker->data_number : ++worker->number,
                                           .echo = data ? worker->data_heard : worker->heard,
                                           .state = worker->life,
                                           .has_load = !data,
                                           .load = {.queued_tokens = worker->queued_tokens,
                                                    .kv_tokens_max = worker->kv_tokens_max,
                                                    .token_ns = worker->token_ns}}};
    if (data && worker->has_data_peer)
        send_message(worker->data, &worker->data_peer, &lease);
    else if (!data && worker->has_control_peer)
        send_message(worker->control, &worker->control_peer, &lease);
}

static void on_timer(void *user)
{
    struct fake_worker *worker = user;
    if (worker->mute)
        return;
    send_lease(worker, false);
    send_lease(worker, true);
}

static void send_welcome(struct fake_worker *worker, bool data)
{
    char endpoint[128];
    snprintf(endpoint, sizeof endpoint, "tcp://*%s", strrchr(channel_endpoint(worker->data), ':'));
    struct wire_message welcome = {
        .kind = WIRE_WELCOME,
        .welcome = {.version = WIRE_VERSION,
                    .session = id_of(worker->incarnation),
                    .name = wire_span_str(worker->name),
                    .data_endpoint = wire_span_str(endpoint),
                    .numerics_id = wire_span_of(worker->numerics_id, sizeof worker->numerics_id),
                    .lease_ms = 50,
                    .lease_expiry_ms = 2000,
                    .limits = {.unacknowledged_bytes_max = worker->grant_bytes,
                               .streams_max = worker->streams_max,
                               .stream_credit_tokens = worker->stream_window},
                    .state = worker->life,
                    .kv_tokens_max = worker->kv_tokens_max,
                    .capabilities = worker->capabilities}};
    send_message(data ? worker->data : worker->control, data ? &worker->data_peer : &worker->control_peer, &welcome);
}

void fake_worker_welcome(struct fake_worker *worker)
{
    send_welcome(worker, false);
    send_welcome(worker, true);
}

static void on_hello(struct fake_worker *worker, bool data, const struct channel_peer *peer,
                     const struct wire_hello *hello)
{
    memcpy(worker->router_session, hello->session.data, WIRE_ID_BYTES);
    if (data)
        worker->data_peer = *peer, worker->has_data_peer = true, worker->data_heard = 0;
    else
        worker->control_peer = *peer, worker->has_control_peer = true, worker->heard = 0;
    send_welcome(worker, data);
}

static void copy_text(char *out, struct wire_span span)
{
    memcpy(out, span.data ? span.data : (const uint8_t *)"", span.size);
    out[span.size] = 0;
}

static void on_request(struct fake_worker *worker, const struct channel_peer *peer, const struct wire_head *head,
                       zmq_msg_t *body)
{
    if (worker->request_count == FAKE_REQUESTS_MAX)
        return;
    struct fake_request *request = &worker->requests[worker->request_count++];
    memset(request, 0, sizeof *request);
    memcpy(request->id, head->request_id.data, WIRE_ID_BYTES);
    memcpy(request->session, head->session.data, WIRE_ID_BYTES);
    if (head->incarnation.size)
        memcpy(request->incarnation, head->incarnation.data, WIRE_ID_BYTES);
    request->has_cache_id = head->cache_id.size == WIRE_ID_BYTES;
    if (request->has_cache_id)
        memcpy(request->cache_id, head->cache_id.data, WIRE_ID_BYTES);
    copy_text(request->tenant, head->tenant);
    copy_text(request->conversation, head->conversation);
    request->stream = head->stream;
    request->deadline_ms = head->deadline_ms;
    request->loss_count = head->loss_count;
    request->body_bytes = head->body_bytes;
    request->epoch = head->epoch;
    request->attempt = head->attempt;
    request->resume_choices = (unsigned)(head->resume.counts.size / 4);
    request->resume_total = (uint32_t)(head->resume.ids.size / 4);
    for (unsigned i = 0; i < request->resume_choices; i++)
        request->resume_counts[i] = wire_u32_at(head->resume.counts, i);
    for (unsigned i = 0; i < request->resume_total && i < FAKE_IDS_MAX; i++)
        request->resume_ids[i] = wire_u32_at(head->resume.ids, i);
    request->inexact_allowed = head->inexact_allowed;
    request->has_placement = head->placement.size > 0;
    request->has_numerics_id = head->numerics_id.size == sizeof request->numerics_id;
    if (request->has_numerics_id)
        memcpy(request->numerics_id, head->numerics_id.data, sizeof request->numerics_id);
    request->body_size = zmq_msg_size(body);
    request->body_last = ((const uint8_t *)zmq_msg_data(body))[request->body_size - 1];
    request->peer = *peer;
    if (worker->auto_tokens) {
        fake_worker_ack(worker, request);
        if (request->resume_counts[0] < worker->auto_tokens) /* of one choice */
            fake_worker_tokens(worker, request, request->resume_counts[0],
                               (uint16_t)(worker->auto_tokens - request->resume_counts[0]));
        fake_worker_done(worker, request, worker->auto_tokens);
    }
}

static void on_attach(struct fake_worker *worker, const struct wire_attach *attach)
{
    worker->attach_count++;
    if (worker->never_answers)
        return;
    bool known = worker->knows && wire_span_equal(attach->request_id, id_of(worker->known));
    struct wire_message reply = {
        .kind = WIRE_ATTACH_REPLY,
        .attach_reply = {.request_id = attach->request_id, .tenant = attach->tenant, .known = known, .running = known}};
    send_message(worker->control, &worker->control_peer, &reply);
}

static void on_lease(struct fake_worker *worker, bool data, const struct wire_lease *lease)
{
    /* numbers of another router would be echoed to the wrong one */
    if (!worker->deaf && wire_span_equal(lease->session, id_of(worker->router_session)))
        *(data ? &worker->data_heard : &worker->heard) = lease->number;
    for (unsigned i = 0; i < lease->credit_streams.size / 4; i++) {
        uint32_t stream = wire_u32_at(lease->credit_streams, i);
        uint64_t tokens = wire_u64_at(lease->credit_tokens, i);
        if (stream < FAKE_GRANTS_MAX && tokens > worker->granted[stream])
            worker->granted[stream] = tokens;
    }
}

static void on_frames(struct fake_worker *worker, bool data, const struct channel_peer *peer, zmq_msg_t *frames,
                      unsigned count)
{
    struct wire_message message;
    if (worker->mute)
        return;
    if (wire_decode(zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), &message) != STATUS_OK) {
        worker->malformed++;
        return;
    }
    if (message.kind == WIRE_HELLO) {
        on_hello(worker, data, peer, &message.hello);
    } else if (message.kind == WIRE_LEASE) {
        on_lease(worker, data, &message.lease);
    } else if (message.kind == WIRE_ATTACH) {
        on_attach(worker, &message.attach);
    } else if (message.kind == WIRE_HEAD && count == 2) {
        on_request(worker, peer, &message.head, &frames[1]);
    } else if (message.kind == WIRE_CANCEL) {
        worker->cancel_count++;
        memcpy(worker->last_cancel, message.cancel.request_id.data, WIRE_ID_BYTES);
        worker->last_cancel_attempt = message.cancel.attempt;
    }
    wire_message_free(&message);
}

static void on_control(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    on_frames(user, false, peer, frames, count);
}

static void on_data(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    on_frames(user, true, peer, frames, count);
}

void fake_worker_start_at(struct fake_worker *worker, struct loop *loop, void *zmq_context, const char *name,
                          const char *control, const char *data)
{
    memset(worker, 0, sizeof *worker);
    worker->loop = loop;
    snprintf(worker->name, sizeof worker->name, "%s", name);
    hash_random(worker->incarnation, WIRE_ID_BYTES);
    hash_random(worker->cache_id, WIRE_ID_BYTES);
    worker->kv_tokens_max = 100000;
    worker->capabilities = WIRE_CAN_RESUME | WIRE_CAN_ATTACH | WIRE_CAN_CREDIT | WIRE_CAN_DRAIN;
    memset(worker->numerics_id, 0x5a, sizeof worker->numerics_id);
    worker->life = WIRE_LIFE_READY;
    struct channel_config config = {.frame_bytes_max = WIRE_FRAME_BYTES_MAX,
                                    .receive_messages_max = 1000,
                                    .send_messages_max = 1000,
                                    .queue_bytes_max = 1 << 20,
                                    .on_message = on_control,
                                    .user = worker};
    if (channel_create_server(loop, zmq_context, &config, control, &worker->control) != STATUS_OK)
        abort();
    config.on_message = on_data;
    if (channel_create_server(loop, zmq_context, &config, data, &worker->data) != STATUS_OK)
        abort();
    if (loop_timer_create(loop, 50, true, on_timer, worker, &worker->timer) != STATUS_OK)
        abort();
}

void fake_worker_start(struct fake_worker *worker, struct loop *loop, void *zmq_context, const char *name)
{
    fake_worker_start_at(worker, loop, zmq_context, name, "tcp://127.0.0.1:*", "tcp://127.0.0.1:*");
}

void fake_worker_kill(struct fake_worker *worker)
{
    loop_timer_destroy(&worker->timer);
    if (worker->control)
        channel_destroy(&worker->control);
    if (worker->data)
        channel_destroy(&worker->data);
}

const char *fake_worker_endpoint(const struct fake_worker *worker)
{
    return channel_endpoint(worker->control);
}

struct fake_request *fake_worker_request(struct fake_worker *worker, unsigned index)
{
    return index < worker->request_count ? &worker->requests[index] : NULL;
}

static void send_ack(struct fake_worker *worker, const struct fake_request *request, bool started)
{
    struct wire_message ack = {.kind = WIRE_ACK,
                               .stream_ref = {.request_id = id_of(request->id),
                                              .stream = request->stream,
                                              .attempt = request->attempt,
                                              .cache_id = id_of(worker->cache_id),
                                              .numerics_id = wire_span_of(worker->numerics_id, 32),
                                              .started = started}};
    send_message(worker->control, &worker->control_peer, &ack);
}

void fake_worker_ack(struct fake_worker *worker, const struct fake_request *request)
{
    send_ack(worker, request, false);
}

void fake_worker_ack_started(struct fake_worker *worker, const struct fake_request *request)
{
    send_ack(worker, request, true);
}

static void send_row(struct fake_worker *worker, const struct wire_tokens_row *row)
{
    struct wire_batch *batch;
    if (wire_batch_create(&batch) != STATUS_OK || wire_batch_add(batch, row) != STATUS_OK)
        abort();
    struct wire_span frame = wire_batch_take(batch);
    (void)channel_send_bytes(worker->data, &worker->data_peer, frame.data, frame.size);
    wire_batch_destroy(&batch);
}

void fake_worker_tokens(struct fake_worker *worker, const struct fake_request *request, uint32_t first, uint16_t count)
{
    fake_worker_row(worker, request, 0, first, count, 0);
}

void fake_worker_row(struct fake_worker *worker, const struct fake_request *request, unsigned choice, uint32_t first,
                     uint16_t count, unsigned alternatives)
{
    uint32_t ids[1024], others[1024]; /* little-endian, as every machine we test on */
    float logprobs[1024], values[1024] = {0};
    uint8_t text[1024];
    for (unsigned i = 0; i < count; i++) {
        ids[i] = first + i;
        logprobs[i] = -(float)ids[i] / 2;
        text[i] = (uint8_t)('a' + ids[i] % 26);
        for (unsigned j = 0; j < alternatives; j++)
            others[i * alternatives + j] = ids[i] + j;
    }
    size_t column = 4 * (size_t)count, table = column * alternatives;
    struct wire_tokens_row row = {.stream = request->stream,
                                  .attempt = request->attempt,
                                  .choice = (uint16_t)choice,
                                  .first = first,
                                  .count = count,
                                  .ids = wire_span_of(ids, column),
                                  .text = wire_span_of(text, choice == WIRE_CHOICE_PROMPT ? 0 : count),
                                  .logprobs = wire_span_of(logprobs, alternatives ? column : 0),
                                  .alternatives = (uint8_t)alternatives,
                                  .alternative_ids = wire_span_of(others, table),
                                  .alternative_logprobs = wire_span_of(values, table)};
    send_row(worker, &row);
}

void fake_worker_last(struct fake_worker *worker, const struct fake_request *request, unsigned choice, uint32_t first)
{
    struct wire_tokens_row row = {.stream = request->stream,
                                  .attempt = request->attempt,
                                  .choice = (uint16_t)choice,
                                  .first = first,
                                  .text = wire_span_str("the end")};
    send_row(worker, &row);
}

void fake_worker_done(struct fake_worker *worker, const struct fake_request *request, uint32_t released)
{
    fake_worker_done_of(worker, request, 1, released);
}

void fake_worker_done_of(struct fake_worker *worker, const struct fake_request *request, unsigned choices,
                         uint32_t released)
{
    static const uint8_t finish[WIRE_CHOICES_MAX] = {WIRE_FINISH_STOP, WIRE_FINISH_LENGTH};
    struct wire_message done = {.kind = WIRE_DONE,
                                .done = {.request_id = id_of(request->id),
                                         .stream = request->stream,
                                         .attempt = request->attempt,
                                         .finish = wire_span_of(finish, choices),
                                         .dropped_messages = 3,
                                         .prompt_tokens = 7,
                                         .reply_tokens = released,
                                         .cache_id = id_of(worker->cache_id),
                                         .released = released}};
    send_message(worker->data, &worker->data_peer, &done);
}

void fake_worker_error(struct fake_worker *worker, const struct fake_request *request, enum wire_error_code code)
{
    struct wire_message error = {.kind = WIRE_ERROR,
                                 .error = {.request_id = id_of(request->id),
                                           .stream = request->stream,
                                           .attempt = request->attempt,
                                           .code = code,
                                           .detail = wire_span_str("as the test said"),
                                           .retry_after_ms = 70}};
    send_message(worker->data, &worker->data_peer, &error);
}

void fake_worker_resend(struct fake_worker *worker, const struct fake_request *request)
{
    struct wire_message message = {
        .kind = WIRE_RESEND,
        .stream_ref = {.request_id = id_of(request->id), .stream = request->stream, .attempt = request->attempt}};
    send_message(worker->data, &worker->data_peer, &message);
}

void fake_worker_wrong_owner(struct fake_worker *worker, const struct fake_request *request)
{
    struct wire_message message = {.kind = WIRE_WRONG_OWNER,
                                   .stream_ref = {.request_id = id_of(request->id),
                                                  .stream = request->stream,
                                                  .attempt = request->attempt,
                                                  .owner = wire_span_str(worker->name)}};
    send_message(worker->data, &worker->data_peer, &message);
}

void fake_worker_superseded(struct fake_worker *worker, const struct fake_request *request)
{
    struct wire_message message = {.kind = WIRE_SUPERSEDED,
                                   .stream_ref = {.request_id = id_of(request->id), .attempt = request->attempt}};
    send_message(worker->control, &worker->control_peer, &message);
}

void fake_worker_send_bytes(struct fake_worker *worker, bool data, const void *bytes, size_t size)
{
    (void)channel_send_bytes(data ? worker->data : worker->control, data ? &worker->data_peer : &worker->control_peer,
                             bytes, size);
}
