#include "fake_client.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/loop.h"

void fake_client_send_bytes(struct fake_client *client, bool data, const void *bytes, size_t size)
{
    (void)channel_send_bytes(data ? client->data : client->control, NULL, bytes, size);
}

void fake_client_send(struct fake_client *client, bool data, const struct wire_message *message)
{
    size_t size = wire_encoded_size(message);
    uint8_t *bytes = malloc(size);
    if (bytes)
        fake_client_send_bytes(client, data, bytes, wire_encode(message, bytes));
    free(bytes);
}

static void say_hello(struct fake_client *client, bool data)
{
    client->number[data] = client->heard[data] = 0;
    struct wire_message hello = {.kind = WIRE_HELLO,
                                 .hello = {.version_min = client->version,
                                           .version_max = client->version,
                                           .session = wire_span_of(client->session, WIRE_ID_BYTES),
                                           .role = client->role,
                                           .connection = data ? WIRE_CONNECTION_DATA : WIRE_CONNECTION_CONTROL,
                                           .name = wire_span_str("fake"),
                                           .lease_ms = 100,
                                           .capabilities = client->capabilities}};
    fake_client_send(client, data, &hello);
}

void fake_client_hello(struct fake_client *client)
{
    say_hello(client, false);
    say_hello(client, true);
}

void fake_client_grant(struct fake_client *client, uint32_t stream, uint64_t tokens, uint64_t connection_bytes)
{
    struct wire_message lease = {.kind = WIRE_LEASE,
                                 .lease = {.session = wire_span_of(client->session, WIRE_ID_BYTES),
                                           .number = ++client->number[0],
                                           .echo = client->heard[0],
                                           .credit_streams = wire_span_of(&stream, sizeof stream),
                                           .credit_tokens = wire_span_of(&tokens, sizeof tokens),
                                           .credit_connection_bytes = connection_bytes}};
    fake_client_send(client, false, &lease);
}

static void on_ack(struct fake_stream *stream, const struct wire_stream_ref *ack)
{
    stream->acks++;
    stream->has_numerics_id = ack->numerics_id.size == sizeof stream->numerics_id;
    if (stream->has_numerics_id)
        memcpy(stream->numerics_id, ack->numerics_id.data, sizeof stream->numerics_id);
}

static void on_timer(void *user)
{
    struct fake_client *client = user;
    for (unsigned data = 0; data < 2 && !client->silent; data++) {
        if (!(data ? client->welcomed_data : client->welcomed_control))
            continue;
        struct wire_message lease = {.kind = WIRE_LEASE,
                                     .lease = {.session = wire_span_of(client->session, WIRE_ID_BYTES),
                                               .number = ++client->number[data],
                                               .echo = client->heard[data]}};
        fake_client_send(client, data, &lease);
    }
}

static struct fake_stream *stream_of(struct fake_client *client, uint32_t stream)
{
    return &client->streams[stream < FAKE_STREAMS_MAX ? stream : 0];
}

static void copy_text(char *out, size_t size, struct wire_span span)
{
    size_t used = span.size < size ? span.size : size - 1;
    memcpy(out, span.data ? span.data : (const uint8_t *)"", used);
    out[used] = 0;
}

static void on_tokens(struct fake_client *client, const struct wire_tokens *tokens)
{
    struct wire_tokens_cursor cursor = {0};
    struct wire_tokens_row row;
    client->token_frames++;
    while (wire_tokens_next(tokens, &cursor, &row)) {
        struct fake_stream *stream = stream_of(client, row.stream);
        stream->token_frames++;
        stream->attempt = row.attempt;
        for (unsigned i = 0; i < row.count; i++)
            if (row.first != stream->by_choice[row.choice] || wire_u32_at(row.ids, i) != row.first + i)
                stream->gap = true;
        if (fake_stream_ends(stream) > 0)
            stream->gap = true;
        for (unsigned i = 0; i < row.logprobs.size / 4; i++)
            stream->logprobs += wire_f32_at(row.logprobs, i) == -(float)wire_u32_at(row.ids, i) / 2;
        for (unsigned i = 0; i < row.alternative_ids.size / 4; i++)
            stream->alternatives += wire_u32_at(row.alternative_ids, i) ==
                                    wire_u32_at(row.ids, i / row.alternatives) + i % row.alternatives;
        stream->lasts += row.count == 0 && row.text.size > 0;
        stream->by_choice[row.choice] += row.count;
        if (row.choice != WIRE_CHOICE_PROMPT)
            stream->tokens += row.count;
    }
}

static void on_error(struct fake_client *client, const struct wire_error *error)
{
    if (error->request_id.size == 0) {
        client->connection_errors++;
        client->connection_error = error->code;
        return;
    }
    struct fake_stream *stream = stream_of(client, error->stream);
    stream->errors++;
    stream->error = error->code;
    stream->attempt = error->attempt;
    stream->retry_after_ms = error->retry_after_ms;
    copy_text(stream->detail, sizeof stream->detail, error->detail);
}

static void on_done(struct fake_client *client, const struct wire_done *done)
{
    struct fake_stream *stream = stream_of(client, done->stream);
    stream->dones++;
    stream->attempt = done->attempt;
    stream->route_us = done->route_us;
    stream->epoch = done->epoch;
    stream->inexact = done->inexact;
    stream->finishes = (unsigned)done->finish.size;
    stream->dropped_messages = done->dropped_messages;
    copy_text(stream->route, sizeof stream->route, done->route);
    copy_text(stream->worker, sizeof stream->worker, done->worker);
    if (done->released != stream->tokens)
        stream->gap = true;
}

static void on_frames(struct fake_client *client, bool data, zmq_msg_t *frames)
{
    struct wire_message message;
    if (wire_decode(zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), &message) != STATUS_OK)
        abort();
    switch (message.kind) {
    case WIRE_WELCOME:
        *(data ? &client->welcomed_data : &client->welcomed_control) = true;
        copy_text(client->data_endpoint, sizeof client->data_endpoint, message.welcome.data_endpoint);
        client->router_capabilities = message.welcome.capabilities;
        break;
    case WIRE_LEASE:
        client->heard[data] = message.lease.number;
        client->acknowledged_bytes = message.lease.acknowledged_bytes;
        break;
    case WIRE_TOKENS: on_tokens(client, &message.tokens); break;
    case WIRE_DONE: on_done(client, &message.done); break;
    case WIRE_ERROR: on_error(client, &message.error); break;
    case WIRE_ACK: on_ack(stream_of(client, message.stream_ref.stream), &message.stream_ref); break;
    case WIRE_RESEND: stream_of(client, message.stream_ref.stream)->resends++; break;
    case WIRE_GOAWAY: client->goaways++; break;
    default: stream_of(client, message.stream_ref.stream)->others++; break;
    }
    wire_message_free(&message);
}

static void on_control(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    (void)peer, (void)count;
    on_frames(user, false, frames);
}

static void on_data(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    (void)peer, (void)count;
    on_frames(user, true, frames);
}

static void on_control_link(void *user, bool up)
{
    struct fake_client *client = user;
    client->control_up = up;
    if (up)
        say_hello(client, false);
}

static void on_data_link(void *user, bool up)
{
    struct fake_client *client = user;
    client->data_up = up;
    if (up)
        say_hello(client, true);
    if (up && client->ask_with_hello)
        fake_client_ask(client, client->ask_with_hello);
}

void fake_client_connect_data(struct fake_client *client, void *zmq_context, const char *endpoint)
{
    struct channel_config config = {.frame_bytes_max = WIRE_FRAME_BYTES_MAX,
                                    .receive_messages_max = 1000,
                                    .send_messages_max = 1000,
                                    .queue_bytes_max = 64 << 20,
                                    .on_message = on_data,
                                    .on_link = on_data_link,
                                    .user = client};
    client->data_up = client->welcomed_data = false;
    if (channel_create_client(client->loop, zmq_context, &config, endpoint, &client->data) != STATUS_OK)
        abort();
}

void fake_client_start(struct fake_client *client, struct loop *loop, void *zmq_context, const char *control,
                       const char *data)
{
    struct fake_client fresh = {.loop = loop,
                                .role = client->role ? client->role : WIRE_ROLE_CLIENT,
                                .version = client->version ? client->version : WIRE_VERSION,
                                .capabilities = client->capabilities};
    *client = fresh;
    hash_random(client->session, WIRE_ID_BYTES);
    struct channel_config config = {.frame_bytes_max = WIRE_FRAME_BYTES_MAX,
                                    .receive_messages_max = 1000,
                                    .send_messages_max = 1000,
                                    .queue_bytes_max = 64 << 20,
                                    .on_message = on_control,
                                    .on_link = on_control_link,
                                    .user = client};
    if (channel_create_client(loop, zmq_context, &config, control, &client->control) != STATUS_OK)
        abort();
    fake_client_connect_data(client, zmq_context, data);
    if (loop_timer_create(loop, 100, true, on_timer, client, &client->timer) != STATUS_OK)
        abort();
}

void fake_client_stop(struct fake_client *client)
{
    loop_timer_destroy(&client->timer);
    if (client->control)
        channel_destroy(&client->control);
    if (client->data)
        channel_destroy(&client->data);
}

bool fake_client_ready(const struct fake_client *client)
{
    return client->welcomed_control && client->welcomed_data;
}

static void make_body(const struct fake_ask *ask, zmq_msg_t *frame)
{
    size_t size = ask->body_size ? ask->body_size : 200;
    static const uint8_t prompt[4] = {1, 0, 0, 0};
    if (ask->body_choices) {
        struct wire_message body = {
            .kind = WIRE_BODY,
            .body = {.prompt_ids = wire_span_of(prompt, sizeof prompt), .sampling = {.choices = ask->body_choices}}};
        zmq_msg_init_size(frame, wire_encoded_size(&body));
        wire_encode(&body, zmq_msg_data(frame));
        return;
    }
    zmq_msg_init_size(frame, size);
    memset(zmq_msg_data(frame), (int)(ask->stream & 0x7f), size);
    memcpy(zmq_msg_data(frame), (const uint8_t[]){'R', WIRE_VERSION, WIRE_BODY, 0}, 4);
}

void fake_client_ask(struct fake_client *client, const struct fake_ask *ask)
{
    uint32_t *ids = NULL, total = 0;
    for (unsigned i = 0; i < ask->resume_choices; i++)
        total += ask->resume_counts[i];
    if (total > 0 && !(ids = malloc(4 * (size_t)total)))
        abort();
    for (unsigned i = 0, at = 0; i < ask->resume_choices; i++)
        for (uint32_t id = 0; id < ask->resume_counts[i]; id++)
            ids[at++] = id; /* little-endian, as every machine we test on */
    zmq_msg_t frames[2];
    make_body(ask, &frames[1]);
    struct wire_message head = {
        .kind = WIRE_HEAD,
        .head = {.request_id = wire_span_of(ask->id, WIRE_ID_BYTES),
                 .session = wire_span_of(client->session, WIRE_ID_BYTES),
                 .stream = ask->stream,
                 .tenant = wire_span_str(ask->tenant ? ask->tenant : "default"),
                 .conversation = wire_span_str(ask->conversation ? ask->conversation : ""),
                 .deadline_ms = ask->deadline_ms,
                 .resume = {.counts = wire_span_of(ask->resume_counts, 4 * (size_t)ask->resume_choices),
                            .ids = wire_span_of(ids, 4 * (size_t)total)},
                 .attempt = {.client = ask->attempt_client},
                 .loss_count = ask->loss_count,
                 .numerics_id = wire_span_of(ask->numerics_id, ask->numerics_id ? 32 : 0),
                 .inexact_allowed = ask->inexact_allowed,
                 .body_bytes = (uint32_t)((int32_t)zmq_msg_size(&frames[1]) + ask->body_bytes_off)}};
    zmq_msg_init_size(&frames[0], wire_encoded_size(&head));
    wire_encode(&head, zmq_msg_data(&frames[0]));
    free(ids);
    (void)channel_send(client->data, NULL, frames, ask->no_body ? 1 : 2);
    if (ask->no_body)
        zmq_msg_close(&frames[1]);
}

void fake_client_cancel_attempt(struct fake_client *client, const struct fake_ask *ask, struct wire_attempt attempt)
{
    struct wire_message cancel = {.kind = WIRE_CANCEL,
                                  .cancel = {.request_id = wire_span_of(ask->id, WIRE_ID_BYTES),
                                             .tenant = wire_span_str(ask->tenant ? ask->tenant : "default"),
                                             .conversation = wire_span_str(ask->conversation ? ask->conversation : ""),
                                             .session = wire_span_of(client->session, WIRE_ID_BYTES),
                                             .attempt = attempt}};
    fake_client_send(client, false, &cancel);
}

void fake_client_cancel(struct fake_client *client, const struct fake_ask *ask)
{
    fake_client_cancel_attempt(client, ask, (struct wire_attempt){0, 0});
}

unsigned fake_stream_ends(const struct fake_stream *stream)
{
    return stream->dones + stream->errors + stream->others + stream->resends;
}
