/* The subject is a roost router, or the bare forwarder: clients and workers speak roost's frames to it. Towards the forwarder there are no control
 * connections, no hello and no leases; workers connect to it, and where a router's worker sees the router's routing id they see the client's. */
#include "tests/bench/router/subjects.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>
#include "proto/wire.h"
#include "tests/bench/router/process.h"

#define LEASE_NS 200000000u
#define WELCOME_NS 20000000000u
#define PEER_BYTES 5u /* a routing id that ZeroMQ gives */

enum { CONTROL, DATA, LINKS };

struct peer { /* the router, as a worker sees it by one connection */
    uint8_t id[PEER_BYTES];
    size_t size;
    uint64_t number, heard;
};

struct roost_worker {
    void *sockets[LINKS];
    char endpoints[LINKS][64], name[16];
    uint8_t incarnation[16];
    struct peer peers[LINKS];
    bool ready;
};

struct roost_session {
    void *sockets[LINKS];
    uint8_t id[16];
    uint64_t numbers[LINKS], heard[LINKS];
    bool welcome[LINKS];
};

struct roost {
    const struct roost_options *options;
    void *zmq;
    struct roost_worker workers[LOAD_WORKERS_MAX];
    struct roost_session sessions[64];
    unsigned worker_count, session_count;
    int pid;
    char folder[64];
    uint8_t *body;
    size_t body_size;
    uint64_t lease_ns;
    struct wire_batch *batch;
    uint8_t buffer[8192];
};

/* ---- frames ---- */

static void send_part(void *socket, const void *data, size_t size, bool more)
{
    if (zmq_send(socket, data, size, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) < 0) {
        fprintf(stderr, "bench-router: a send failed: %s\n", zmq_strerror(zmq_errno()));
        exit(1);
    }
}

static void send_message(struct roost *roost, void *socket, const struct peer *peer, const struct wire_message *message)
{
    const size_t size = wire_encode(message, roost->buffer);
    if (peer)
        send_part(socket, peer->id, peer->size, true);
    send_part(socket, roost->buffer, size, false);
}

/* All parts of one message; 0: there is none. Parts are closed by the caller. */
static unsigned receive(void *socket, zmq_msg_t parts[5])
{
    unsigned count = 0;
    do {
        zmq_msg_init(&parts[count]);
        if (zmq_msg_recv(&parts[count], socket, ZMQ_DONTWAIT) < 0)
            return 0;
        count++;
    } while (count < 5 && zmq_msg_more(&parts[count - 1]));
    return count;
}

static bool decode(zmq_msg_t *part, struct wire_message *message)
{
    return wire_decode(zmq_msg_data(part), zmq_msg_size(part), message) == STATUS_OK;
}

static void close_parts(zmq_msg_t *parts, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        zmq_msg_close(&parts[i]);
}

/* ---- workers ---- */

static void worker_welcome(struct roost *roost, struct roost_worker *worker, unsigned link)
{
    struct wire_message message = {.kind = WIRE_WELCOME};
    message.welcome = (struct wire_welcome){
        .version = WIRE_VERSION,
        .session = wire_span_of(worker->incarnation, sizeof worker->incarnation),
        .name = wire_span_str(worker->name),
        .build = wire_span_str("bench"),
        .data_endpoint = wire_span_str(worker->endpoints[DATA]),
        .numerics_id = wire_span_of("all simulated workers are alike.", 32),
        .lease_ms = 200,
        .lease_expiry_ms = 5000,
        .limits = {.unacknowledged_bytes_max = 64u << 20, .streams_max = LOAD_STREAMS_MAX},
        .state = WIRE_LIFE_READY,
        .kv_tokens_max = 1000000,
        .capabilities = WIRE_CAN_RESUME | WIRE_CAN_ATTACH,
    };
    send_message(roost, worker->sockets[link], &worker->peers[link], &message);
}

static void worker_lease(struct roost *roost, struct load *load, unsigned index, unsigned link)
{
    struct roost_worker *worker = &roost->workers[index];
    struct wire_message message = {.kind = WIRE_LEASE};
    if (worker->peers[link].size == 0)
        return;
    message.lease = (struct wire_lease){
        .session = wire_span_of(worker->incarnation, sizeof worker->incarnation),
        .number = ++worker->peers[link].number,
        .echo = worker->peers[link].heard,
        .state = WIRE_LIFE_READY,
        .has_load = link == CONTROL,
        .load = {.running_requests = load->workers[index].count,
                 .running_tokens = 100ull * load->workers[index].count,
                 .kv_tokens_max = 1000000,
                 .steps = worker->peers[link].number,
                 .step_median_us = 1000},
    };
    send_message(roost, worker->sockets[link], &worker->peers[link], &message);
}

static void worker_request(struct roost *roost, struct load *load, unsigned index, const struct wire_head *head,
                           zmq_msg_t *identity)
{
    uint32_t at;
    memcpy(&at, head->request_id.data, sizeof at);
    if (at >= load->config.streams || load->streams[at].at_worker)
        return;
    struct stream *stream = &load->streams[at];
    stream->worker_stream = head->stream;
    stream->attempt_client = head->attempt.client;
    stream->attempt_router = head->attempt.router;
    memcpy(stream->peer, zmq_msg_data(identity), PEER_BYTES);
    load_at_worker(load, stream, index);
    if (roost->options->forwarder)
        return;
    struct wire_message ack = {.kind = WIRE_ACK};
    ack.stream_ref.request_id = head->request_id;
    ack.stream_ref.stream = head->stream;
    ack.stream_ref.attempt = head->attempt;
    ack.stream_ref.cache_id = wire_span_of(roost->workers[index].incarnation, 16);
    send_message(roost, roost->workers[index].sockets[CONTROL], &roost->workers[index].peers[CONTROL], &ack);
}

static bool worker_poll(struct roost *roost, struct load *load, unsigned index, unsigned link)
{
    struct roost_worker *worker = &roost->workers[index];
    zmq_msg_t parts[5];
    bool any = false;
    for (unsigned count; (count = receive(worker->sockets[link], parts)) > 0; any = true) {
        struct wire_message message;
        if (count >= 2 && decode(&parts[1], &message)) {
            struct peer *peer = &worker->peers[link];
            if (message.kind == WIRE_HELLO) {
                peer->size = PEER_BYTES;
                memcpy(peer->id, zmq_msg_data(&parts[0]), PEER_BYTES);
            }
            if (message.kind == WIRE_HELLO) {
                peer->number = peer->heard = 0;
                worker_welcome(roost, worker, link);
            } else if (message.kind == WIRE_LEASE) {
                peer->heard = message.lease.number;
                worker->ready = worker->ready || link == DATA;
            } else if (message.kind == WIRE_HEAD) {
                worker_request(roost, load, index, &message.head, &parts[0]);
            }
            wire_message_free(&message);
        }
        close_parts(parts, count);
    }
    return any;
}

static void send_answer(struct roost_worker *worker, const struct stream *stream, const void *frame, size_t size)
{
    send_part(worker->sockets[DATA], stream->peer, PEER_BYTES, true);
    send_part(worker->sockets[DATA], frame, size, false);
}

static void send_batch(struct roost *roost, struct roost_worker *worker, const struct stream *stream)
{
    const struct wire_span frame = wire_batch_take(roost->batch);
    send_answer(worker, stream, frame.data, frame.size);
}

static void worker_done(struct roost *roost, struct roost_worker *worker, const struct stream *stream)
{
    static const uint8_t finish[] = {WIRE_FINISH_LENGTH};
    struct wire_message message = {.kind = WIRE_DONE};
    message.done = (struct wire_done){
        .request_id = wire_span_of(stream->request_id, 16),
        .stream = roost->options->forwarder ? stream->number : stream->worker_stream,
        .attempt = {stream->attempt_client, stream->attempt_router},
        .finish = wire_span_of(finish, 1),
        .prompt_tokens = 5600,
        .cached_tokens = 5500,
        .reply_tokens = stream->sent,
        .worker = wire_span_str(worker->name),
        .cache_id = wire_span_of(worker->incarnation, 16),
        .released = stream->sent,
    };
    send_answer(worker, stream, roost->buffer, wire_encode(&message, roost->buffer));
}

/* One token of each stream; the forwarder gets one frame for each client, as it cannot take a frame apart. */
static void step(struct load *load, void *subject, unsigned index)
{
    struct roost *roost = subject;
    struct roost_worker *worker = &roost->workers[index];
    const unsigned passes = roost->options->forwarder ? roost->session_count : 1;
    for (unsigned pass = 0; pass < passes; pass++) {
        const struct stream *last = NULL;
        for (struct stream *stream = load->workers[index].streams; stream; stream = stream->next) {
            if (passes > 1 && stream->session != pass)
                continue;
            const uint8_t id[4] = {(uint8_t)(stream->sent % 250), 3, 0, 0};
            const struct wire_tokens_row row = {
                .stream = roost->options->forwarder ? stream->number : stream->worker_stream,
                .attempt = {stream->attempt_client, stream->attempt_router},
                .first = stream->sent,
                .count = 1,
                .ids = wire_span_of(id, 4),
                .text = wire_span_str(" word"),
            };
            if (wire_batch_add(roost->batch, &row) == STATUS_AGAIN) {
                send_batch(roost, worker, last);
                (void)wire_batch_add(roost->batch, &row);
            }
            load_row_sent(load, stream);
            last = stream;
        }
        if (last)
            send_batch(roost, worker, last);
    }
    for (struct stream *stream = load->workers[index].streams, *next; stream; stream = next) {
        next = stream->next;
        if (stream->sent == load->config.tokens) {
            worker_done(roost, worker, stream);
            load_left_worker(load, stream);
        }
    }
}

/* ---- clients ---- */

static void session_hello(struct roost *roost, struct roost_session *session, unsigned link)
{
    struct wire_message message = {.kind = WIRE_HELLO};
    message.hello = (struct wire_hello){
        .version_min = WIRE_VERSION,
        .version_max = WIRE_VERSION,
        .session = wire_span_of(session->id, sizeof session->id),
        .role = WIRE_ROLE_CLIENT,
        .connection = link == CONTROL ? WIRE_CONNECTION_CONTROL : WIRE_CONNECTION_DATA,
        .name = wire_span_str("bench"),
        .lease_ms = 200,
    };
    send_message(roost, session->sockets[link], NULL, &message);
}

static void session_lease(struct roost *roost, struct roost_session *session, unsigned link)
{
    struct wire_message message = {.kind = WIRE_LEASE};
    message.lease = (struct wire_lease){
        .session = wire_span_of(session->id, sizeof session->id),
        .number = ++session->numbers[link],
        .echo = session->heard[link],
        .state = WIRE_LIFE_READY,
    };
    send_message(roost, session->sockets[link], NULL, &message);
}

static void ask(struct load *load, void *subject, struct stream *stream)
{
    struct roost *roost = subject;
    struct roost_session *session = &roost->sessions[stream->session];
    const uint32_t at = stream->number - 1;
    char conversation[16];
    for (unsigned i = 0; i < 16; i++)
        stream->request_id[i] = (uint8_t)load_random(load, 256);
    memcpy(stream->request_id, &at, sizeof at);
    snprintf(conversation, sizeof conversation, "c%u", load_random(load, load->config.conversations));
    struct wire_message head = {.kind = WIRE_HEAD};
    head.head = (struct wire_head){
        .request_id = wire_span_of(stream->request_id, 16),
        .session = wire_span_of(session->id, 16),
        .stream = stream->number,
        .tenant = wire_span_str("bench"),
        .conversation = wire_span_str(conversation),
        .deadline_ms = 120000,
        .attempt = {.client = 1},
        .seed = 1,
        .seed_given = true,
        .body_bytes = (uint32_t)roost->body_size,
    };
    const size_t size = wire_encode(&head, roost->buffer);
    send_part(session->sockets[DATA], roost->buffer, size, true);
    send_part(session->sockets[DATA], roost->body, roost->body_size, false);
}

static void session_message(struct load *load, struct roost_session *session, unsigned link, const struct wire_message *message)
{
    if (message->kind == WIRE_WELCOME) {
        session->welcome[link] = true;
    } else if (message->kind == WIRE_LEASE) {
        session->heard[link] = message->lease.number;
    } else if (message->kind == WIRE_TOKENS) {
        struct wire_tokens_cursor cursor = {0};
        struct wire_tokens_row row;
        while (wire_tokens_next(&message->tokens, &cursor, &row))
            if (row.stream - 1 < load->config.streams)
                load_row_received(load, &load->streams[row.stream - 1], row.count);
    } else if (message->kind == WIRE_DONE || message->kind == WIRE_ERROR) {
        const bool well = message->kind == WIRE_DONE;
        const uint32_t number = well ? message->done.stream : message->error.stream;
        if (number - 1 < load->config.streams && load->streams[number - 1].open)
            load_ended(load, &load->streams[number - 1], well);
        if (!well)
            fprintf(stderr, "bench-router: %s: %.*s\n", wire_error_name(message->error.code),
                    (int)message->error.detail.size, (const char *)message->error.detail.data);
    }
}

static bool session_poll(struct roost *roost, struct load *load, unsigned index, unsigned link)
{
    struct roost_session *session = &roost->sessions[index];
    zmq_msg_t parts[5];
    bool any = false;
    for (unsigned count; (count = receive(session->sockets[link], parts)) > 0; any = true) {
        struct wire_message message;
        if (decode(&parts[0], &message)) {
            session_message(load, session, link, &message);
            wire_message_free(&message);
        }
        close_parts(parts, count);
    }
    return any;
}

/* ---- all ---- */

static bool poll_all(struct load *load, void *subject)
{
    struct roost *roost = subject;
    const uint64_t now = load_now_ns();
    const bool leases = !roost->options->forwarder && now - roost->lease_ns > LEASE_NS;
    bool any = false;
    if (leases)
        roost->lease_ns = now;
    for (unsigned link = roost->options->forwarder ? DATA : CONTROL; link < LINKS; link++) {
        for (unsigned i = 0; i < roost->session_count; i++) {
            any = session_poll(roost, load, i, link) || any;
            if (leases && roost->sessions[i].welcome[link])
                session_lease(roost, &roost->sessions[i], link);
        }
        for (unsigned i = 0; i < roost->worker_count; i++) {
            any = worker_poll(roost, load, i, link) || any;
            if (leases)
                worker_lease(roost, load, i, link);
        }
    }
    return any;
}

static void *new_socket(struct roost *roost, int type)
{
    void *socket = zmq_socket(roost->zmq, type);
    const int none = 0;
    zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(socket, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &none, sizeof none);
    return socket;
}

static enum status make_body(struct roost *roost, uint32_t size)
{
    char *text = malloc(size + 1);
    roost->body = malloc(size + 256u);
    if (!text || !roost->body)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a body of %u bytes", size);
    memset(text, 'a', size);
    struct wire_chat_message chat = {.role = WIRE_MESSAGE_USER, .text = wire_span_of(text, size)};
    struct wire_message body = {.kind = WIRE_BODY, .body = {.messages = &chat, .message_count = 1, .sampling.choices = 1}};
    roost->body_size = wire_encode(&body, roost->body);
    free(text);
    return STATUS_OK;
}

static enum status start_workers(struct roost *roost, unsigned count)
{
    roost->worker_count = count;
    for (unsigned i = 0; i < count; i++) {
        struct roost_worker *worker = &roost->workers[i];
        snprintf(worker->name, sizeof worker->name, "w%03u", i);
        memset(worker->incarnation, (int)i + 1, sizeof worker->incarnation);
        for (unsigned link = CONTROL; link < LINKS; link++) {
            size_t size = sizeof worker->endpoints[link];
            worker->sockets[link] = new_socket(roost, ZMQ_ROUTER);
            if (zmq_bind(worker->sockets[link], "tcp://127.0.0.1:*") != 0)
                return STATUS_FAIL(STATUS_IO, "a worker cannot listen: %s", zmq_strerror(zmq_errno()));
            zmq_getsockopt(worker->sockets[link], ZMQ_LAST_ENDPOINT, worker->endpoints[link], &size);
        }
    }
    return STATUS_OK;
}

static enum status write_config(struct roost *roost, const int ports[LINKS])
{
    char path[96];
    snprintf(roost->folder, sizeof roost->folder, "/tmp/bench-router-XXXXXX");
    if (!mkdtemp(roost->folder))
        return STATUS_FAIL(STATUS_IO, "no folder for the router's configuration");
    snprintf(path, sizeof path, "%s/router.yaml", roost->folder);
    FILE *file = fopen(path, "w");
    if (!file)
        return STATUS_FAIL(STATUS_IO, "%s cannot be written", path);
    fprintf(file, "listen_control: tcp://127.0.0.1:%d\nlisten_data: tcp://127.0.0.1:%d\n", ports[CONTROL], ports[DATA]);
    fprintf(file, "placement: %s\nlog_level: warn\n", roost->options->redis_port ? "redis" : "memory");
    fprintf(file, "in_flight_max: 16384\nin_flight_bytes_max: 4294967296\n");
    if (roost->options->redis_port)
        fprintf(file, "redis_address: 127.0.0.1:%d\n", roost->options->redis_port);
    fprintf(file, "workers:\n");
    for (unsigned i = 0; i < roost->worker_count; i++)
        fprintf(file, "  - %s\n", roost->workers[i].endpoints[CONTROL]);
    fclose(file);
    return STATUS_OK;
}

static enum status start_process(struct roost *roost, struct load_subject *self, int ports[LINKS])
{
    char first[96], second[64];
    ports[CONTROL] = process_free_port();
    ports[DATA] = process_free_port();
    if (roost->options->forwarder) {
        snprintf(first, sizeof first, "%d", ports[CONTROL]);
        snprintf(second, sizeof second, "%d", ports[DATA]);
        const char *const argv[] = {roost->options->program, "--forward", first, second, NULL};
        TRY(process_start(argv, roost->options->core, &roost->pid));
    } else {
        TRY(write_config(roost, ports));
        snprintf(first, sizeof first, "%s/router.yaml", roost->folder);
        const char *const argv[] = {roost->options->program, "--config", first, NULL};
        TRY(process_start(argv, roost->options->core, &roost->pid));
    }
    self->pid = roost->pid;
    return process_wait_port(ports[DATA], 10000);
}

static enum status start_sessions(struct roost *roost, unsigned count, const int ports[LINKS])
{
    roost->session_count = count;
    for (unsigned i = 0; i < count; i++) {
        struct roost_session *session = &roost->sessions[i];
        memset(session->id, (int)i + 1, sizeof session->id);
        for (unsigned link = CONTROL; link < LINKS; link++) {
            char endpoint[64];
            session->sockets[link] = new_socket(roost, ZMQ_DEALER);
            snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", ports[roost->options->forwarder ? CONTROL : link]);
            if (zmq_connect(session->sockets[link], endpoint) != 0)
                return STATUS_FAIL(STATUS_IO, "%s cannot be connected to", endpoint);
            if (!roost->options->forwarder)
                session_hello(roost, session, link);
        }
    }
    return STATUS_OK;
}

/* Workers announce themselves to the forwarder with an empty message each, so that it knows them. */
static enum status join_forwarder(struct roost *roost, int port)
{
    for (unsigned i = 0; i < roost->worker_count; i++) {
        struct roost_worker *worker = &roost->workers[i];
        char endpoint[64];
        zmq_close(worker->sockets[DATA]);
        worker->sockets[DATA] = new_socket(roost, ZMQ_DEALER);
        snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port);
        if (zmq_connect(worker->sockets[DATA], endpoint) != 0)
            return STATUS_FAIL(STATUS_IO, "%s cannot be connected to", endpoint);
        send_part(worker->sockets[DATA], "", 0, false);
    }
    usleep(500000);
    return STATUS_OK;
}

static bool all_ready(const struct roost *roost)
{
    for (unsigned i = 0; i < roost->worker_count; i++)
        if (!roost->workers[i].ready)
            return false;
    for (unsigned i = 0; i < roost->session_count; i++)
        if (!roost->sessions[i].welcome[CONTROL] || !roost->sessions[i].welcome[DATA])
            return false;
    return true;
}

static enum status start(struct load *load, struct load_subject *self)
{
    struct roost *roost = self->subject;
    int ports[LINKS];
    roost->zmq = zmq_ctx_new();
    zmq_ctx_set(roost->zmq, ZMQ_MAX_SOCKETS, 1000);
    TRY(wire_batch_create(&roost->batch));
    TRY(make_body(roost, load->config.body_bytes));
    TRY(start_workers(roost, load->config.workers));
    TRY(start_process(roost, self, ports));
    if (roost->options->forwarder)
        TRY(join_forwarder(roost, ports[DATA]));
    TRY(start_sessions(roost, load->config.sessions, ports));
    const uint64_t begun = load_now_ns();
    while (!roost->options->forwarder && !all_ready(roost)) {
        poll_all(load, roost);
        usleep(1000);
        if (load_now_ns() - begun > WELCOME_NS)
            return STATUS_FAIL(STATUS_TIMEOUT, "the router does not know all workers after 20 s");
    }
    for (const uint64_t ready = load_now_ns(); load_now_ns() - ready < 1000000000u; usleep(1000))
        poll_all(load, roost); /* a lease of each has been echoed */
    return STATUS_OK;
}

static void stop(struct load *load, void *subject)
{
    struct roost *roost = subject;
    (void)load;
    process_stop(&roost->pid);
    for (unsigned link = CONTROL; link < LINKS; link++) {
        for (unsigned i = 0; i < roost->session_count; i++)
            zmq_close(roost->sessions[i].sockets[link]);
        for (unsigned i = 0; i < roost->worker_count; i++)
            zmq_close(roost->workers[i].sockets[link]);
    }
    zmq_ctx_term(roost->zmq);
    wire_batch_destroy(&roost->batch);
    if (roost->folder[0]) {
        char path[96];
        snprintf(path, sizeof path, "%s/router.yaml", roost->folder);
        unlink(path);
        rmdir(roost->folder);
    }
    free(roost->body);
    free(roost);
}

struct load_subject subject_roost(const struct roost_options *options)
{
    struct roost *roost = calloc(1, sizeof *roost);
    if (!roost)
        abort();
    roost->options = options;
    return (struct load_subject){.start = start, .ask = ask, .poll = poll_all, .step = step, .stop = stop, .subject = roost};
}
