/* fake_router.c - see the header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "fake_router.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "common/clock.h"
#include "common/loop.h"
#include "common/status.h"

struct bench_private {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct loop *loop;
    struct server *server;
    bool started, answered;
    enum status start_status, gone_status;
    enum wire_life state;
    unsigned streams;
    struct server_stats stats;
    char detail[256];
};

/* ---- the server's thread ---- */

static void on_state(void *user, enum wire_life state, enum status st)
{
    struct bench_private *p = ((struct bench *)user)->private;
    pthread_mutex_lock(&p->mutex);
    p->state = state;
    p->gone_status = st;
    snprintf(p->detail, sizeof p->detail, "%s", status_detail());
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

static void *bench_run(void *arg)
{
    struct bench *bench = arg;
    struct bench_private *p = bench->private;
    enum status st = loop_create(&p->loop);
    if (st == STATUS_OK) {
        bench->config.loop = p->loop;
        bench->config.zmq_context = bench->zmq_context;
        static const uint8_t cache_id[16] = {0xca, 0xc4, 0xe0};
        bench->config.cache_id = cache_id;
        bench->config.on_state = on_state;
        bench->config.user = bench;
        st = server_create(&bench->config, &p->server);
    }
    if (st == STATUS_OK) {
        snprintf(bench->control, sizeof bench->control, "%s", server_control_endpoint(p->server));
        snprintf(bench->data, sizeof bench->data, "%s", server_data_endpoint(p->server));
        memcpy(bench->incarnation, server_incarnation(p->server), 16);
    }
    pthread_mutex_lock(&p->mutex);
    p->started = true;
    p->start_status = st;
    snprintf(p->detail, sizeof p->detail, "%s", status_detail());
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
    if (st == STATUS_OK)
        loop_run(p->loop);
    server_destroy(&p->server);
    if (p->loop)
        loop_destroy(&p->loop);
    return NULL;
}

void bench_setup(struct bench *bench)
{
    memset(bench, 0, sizeof *bench);
    bench->config = (struct server_config){
        .name = "worker-a",
        .listen_control = "tcp://127.0.0.1:*",
        .listen_data = "tcp://127.0.0.1:*",
        .engine = {.model_dir = "none", .kv_bytes = 64u << 20, .chunk_tokens = 64, .queue_requests_max = 8},
        .lease_ms = 20,
        .lease_expiry_ms = 60000,
        .slow_reader_ms = 60000,
        .cancel_memory_ms = 30000,
        .drain_deadline_ms = 20000,
    };
}

enum status bench_start(struct bench *bench)
{
    struct bench_private *p = calloc(1, sizeof *p);
    assert_non_null(p);
    bench->private = p;
    bench->zmq_context = zmq_ctx_new();
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    assert_int_equal(pthread_create(&p->thread, NULL, bench_run, bench), 0);
    pthread_mutex_lock(&p->mutex);
    while (!p->started)
        pthread_cond_wait(&p->changed, &p->mutex);
    enum status st = p->start_status;
    pthread_mutex_unlock(&p->mutex);
    return st;
}

static bool wait_changed(struct bench_private *p)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_MS / 1000;
    return pthread_cond_timedwait(&p->changed, &p->mutex, &until) == 0;
}

enum wire_life bench_wait_state(struct bench *bench, enum wire_life state, enum status *st)
{
    struct bench_private *p = bench->private;
    pthread_mutex_lock(&p->mutex);
    while (p->state != state && p->state != WIRE_LIFE_GONE)
        if (!wait_changed(p))
            break;
    enum wire_life now = p->state;
    if (st)
        *st = p->gone_status;
    pthread_mutex_unlock(&p->mutex);
    return now;
}

static void do_drain(void *user)
{
    server_drain(((struct bench *)user)->private->server);
}

void bench_drain(struct bench *bench)
{
    assert_int_equal(loop_post(bench->private->loop, do_drain, bench), STATUS_OK);
}

static void do_count(void *user)
{
    struct bench_private *p = ((struct bench *)user)->private;
    pthread_mutex_lock(&p->mutex);
    p->streams = server_stream_count(p->server);
    server_stats_read(p->server, &p->stats);
    p->answered = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

unsigned bench_streams(struct bench *bench)
{
    struct bench_private *p = bench->private;
    pthread_mutex_lock(&p->mutex);
    p->answered = false;
    assert_int_equal(loop_post(p->loop, do_count, bench), STATUS_OK);
    while (!p->answered)
        if (!wait_changed(p))
            break;
    unsigned streams = p->streams;
    pthread_mutex_unlock(&p->mutex);
    return streams;
}

void bench_stats(struct bench *bench, struct server_stats *out)
{
    (void)bench_streams(bench);
    *out = bench->private->stats; /* written by the other thread only when asked */
}

bool bench_wait_streams(struct bench *bench, unsigned count)
{
    for (uint64_t end = clock_now_ms() + WAIT_MS; clock_now_ms() < end;)
        if (bench_streams(bench) == count)
            return true;
    return false;
}

void bench_stop(struct bench *bench)
{
    struct bench_private *p = bench->private;
    if (p->start_status == STATUS_OK)
        loop_stop(p->loop);
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mutex);
    zmq_ctx_term(bench->zmq_context);
    free(p);
}

/* ---- a router ---- */

void incoming_free(struct incoming *in)
{
    wire_message_free(&in->message);
    zmq_msg_close(&in->frame);
}

static void open_socket(struct router *router, int link)
{
    int zero = 0, few = 8; /* messages: what a router takes before it reads */
    void *socket = zmq_socket(router->bench->zmq_context, ZMQ_DEALER);
    assert_non_null(socket);
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    if (link == DATA)
        zmq_setsockopt(socket, ZMQ_RCVHWM, &few, sizeof few);
    assert_int_equal(zmq_connect(socket, link == CONTROL ? router->bench->control : router->bench->data), 0);
    router->sockets[link] = socket;
}

void router_connect(struct router *router, struct bench *bench, uint8_t id)
{
    memset(router, 0, sizeof *router);
    memset(router->session, id, sizeof router->session);
    router->bench = bench;
    open_socket(router, CONTROL);
    open_socket(router, DATA);
}

void router_close(struct router *router)
{
    zmq_close(router->sockets[CONTROL]);
    zmq_close(router->sockets[DATA]);
}

void router_reconnect(struct router *router, int link)
{
    zmq_close(router->sockets[link]);
    open_socket(router, link);
}

void router_hello(struct router *router)
{
    for (int link = CONTROL; link <= DATA; link++) {
        struct wire_message hello = {.kind = WIRE_HELLO};
        struct incoming in;
        hello.hello =
            (struct wire_hello){.version_min = 1,
                                .version_max = 1,
                                .session = wire_span_of(router->session, sizeof router->session),
                                .role = WIRE_ROLE_ROUTER,
                                .connection = link == CONTROL ? WIRE_CONNECTION_CONTROL : WIRE_CONNECTION_DATA,
                                .name = wire_span_str("router-1"),
                                .build = wire_span_str("test"),
                                .lease_ms = 200,
                                .capabilities = router->capabilities};
        router_send(router, link, &hello);
        router_expect(router, link, WIRE_WELCOME, &in);
        incoming_free(&in);
    }
}

size_t encode(const struct wire_message *message, uint8_t **out)
{
    size_t size = wire_encoded_size(message);
    *out = malloc(size ? size : 1);
    assert_non_null(*out);
    assert_int_equal(wire_encode(message, *out), size);
    return size;
}

void router_send(struct router *router, int link, const struct wire_message *message)
{
    uint8_t *data;
    size_t size = encode(message, &data);
    router_send_raw(router, link, data, size);
    free(data);
}

void router_send_raw(struct router *router, int link, const void *data, size_t size)
{
    assert_int_equal(zmq_send(router->sockets[link], data, size, 0), size);
}

void router_lease(struct router *router, int link, uint64_t echo)
{
    struct wire_message lease = {.kind = WIRE_LEASE};
    lease.lease.session = wire_span_of(router->session, sizeof router->session);
    lease.lease.number = ++router->number[link];
    lease.lease.echo = echo;
    router_send(router, link, &lease);
}

void router_grant(struct router *router, uint32_t stream, uint64_t tokens, uint64_t connection_bytes)
{
    struct wire_message lease = {.kind = WIRE_LEASE};
    lease.lease.session = wire_span_of(router->session, sizeof router->session);
    lease.lease.number = ++router->number[CONTROL];
    lease.lease.credit_streams = wire_span_of(&stream, sizeof stream);
    lease.lease.credit_tokens = wire_span_of(&tokens, sizeof tokens);
    lease.lease.credit_connection_bytes = connection_bytes;
    router_send(router, CONTROL, &lease);
}

void router_echo(struct router *router)
{
    struct incoming in;
    for (unsigned i = 0; i < 2; i++) { /* the first may have been on its way already */
        router_expect(router, DATA, WIRE_LEASE, &in);
        while (i == 0 &&
               zmq_poll(&(zmq_pollitem_t){.socket = router->sockets[DATA], .events = ZMQ_POLLIN}, 1, 0) == 1) {
            incoming_free(&in);
            router_expect(router, DATA, WIRE_LEASE, &in);
        }
        if (i == 1)
            router_lease(router, DATA, in.message.lease.number);
        incoming_free(&in);
    }
}

static bool receive(struct router *router, int link, int wait_ms, struct incoming *in)
{
    zmq_pollitem_t item = {.socket = router->sockets[link], .events = ZMQ_POLLIN};
    if (zmq_poll(&item, 1, wait_ms) != 1)
        return false;
    zmq_msg_init(&in->frame);
    assert_true(zmq_msg_recv(&in->frame, router->sockets[link], 0) >= 0);
    assert_false(zmq_msg_more(&in->frame));
    memset(&in->message, 0, sizeof in->message);
    if (wire_decode(zmq_msg_data(&in->frame), zmq_msg_size(&in->frame), &in->message) != STATUS_OK)
        fail_msg("the worker sent a bad frame: %s", status_detail());
    return true;
}

bool router_try(struct router *router, int link, int wait_ms, struct incoming *in)
{
    uint64_t end = clock_now_ms() + (uint64_t)wait_ms;
    for (uint64_t now = clock_now_ms(); now <= end; now = clock_now_ms()) {
        if (!receive(router, link, (int)(end - now), in))
            return false;
        if (in->message.kind != WIRE_LEASE)
            return true;
        incoming_free(in);
    }
    return false;
}

void router_receive(struct router *router, int link, bool skip_leases, struct incoming *in)
{
    if (skip_leases ? router_try(router, link, WAIT_MS, in) : receive(router, link, WAIT_MS, in))
        return;
    fail_msg("nothing came on %s", link == CONTROL ? "control" : "data");
}

void router_expect(struct router *router, int link, enum wire_kind kind, struct incoming *in)
{
    router_receive(router, link, kind != WIRE_LEASE, in);
    while (kind == WIRE_LEASE && in->message.kind != WIRE_LEASE) {
        incoming_free(in);
        router_receive(router, link, false, in);
    }
    if (in->message.kind != kind)
        fail_msg("a %s came, not a %s%s%.*s", wire_kind_name(in->message.kind), wire_kind_name(kind),
                 in->message.kind == WIRE_ERROR ? ": " : "",
                 in->message.kind == WIRE_ERROR ? (int)in->message.error.detail.size : 0,
                 in->message.kind == WIRE_ERROR ? (const char *)in->message.error.detail.data : "");
}

/* ---- requests ---- */

void ask_messages(const struct ask *ask, const struct router *router, struct wire_message *head,
                  struct wire_message *body, struct wire_chat_message *chat, uint8_t request_id[16])
{
    memset(request_id, ask->id, 16);
    *chat =
        (struct wire_chat_message){.role = WIRE_MESSAGE_USER, .text = wire_span_str(ask->text ? ask->text : "hello")};
    memset(body, 0, sizeof *body);
    body->kind = WIRE_BODY;
    body->body.messages = chat;
    body->body.message_count = 1;
    body->body.sampling = ask->sampling;
    memset(head, 0, sizeof *head);
    head->kind = WIRE_HEAD;
    head->head = (struct wire_head){
        .request_id = wire_span_of(request_id, 16),
        .session = wire_span_of(router->session, 16),
        .stream = ask->stream,
        .tenant = wire_span_str(ask->tenant ? ask->tenant : "acme"),
        .conversation = wire_span_str(ask->conversation ? ask->conversation : ""),
        .loss_count = ask->loss_count,
        .model = wire_span_str(ask->model ? ask->model : ""),
        .deadline_ms = ask->deadline_ms,
        .priority = ask->priority,
        .attempt = ask->attempt,
        .epoch = ask->epoch,
        .incarnation = wire_span_of(ask->incarnation, ask->incarnation ? 16 : 0),
        .numerics_id = wire_span_of(ask->numerics_id, ask->numerics_id ? 32 : 0),
        .placement = wire_span_of(ask->placement, ask->placement ? 16 : 0),
        .inexact_allowed = ask->inexact_allowed,
    };
    if (ask->resume_counts) {
        uint32_t choices = ask->sampling.choices ? ask->sampling.choices : 1, ids = 0;
        for (uint32_t i = 0; i < choices; i++)
            ids += ask->resume_counts[i];
        head->head.resume.counts = wire_span_of(ask->resume_counts, choices * sizeof *ask->resume_counts);
        head->head.resume.ids = wire_span_of(ask->resume_ids, ids * sizeof *ask->resume_ids);
    }
}

void router_ask_raw(struct router *router, const struct wire_message *head, const void *body, size_t body_size)
{
    uint8_t *data;
    struct wire_message sized = *head;
    if (sized.head.body_bytes == 0)
        sized.head.body_bytes = (uint32_t)body_size;
    size_t size = encode(&sized, &data);
    assert_int_equal(zmq_send(router->sockets[DATA], data, size, ZMQ_SNDMORE), size);
    assert_int_equal(zmq_send(router->sockets[DATA], body, body_size, 0), body_size);
    free(data);
}

void router_ask(struct router *router, const struct ask *ask)
{
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    ask_messages(ask, router, &head, &body, &chat, request_id);
    size_t size = encode(&body, &data);
    head.head.body_bytes = (uint32_t)size;
    router_ask_raw(router, &head, data, size);
    free(data);
}

void router_cancel(struct router *router, uint8_t id, const char *tenant)
{
    uint8_t request_id[16];
    struct wire_message message = {.kind = WIRE_CANCEL};
    memset(request_id, id, sizeof request_id);
    message.cancel = (struct wire_cancel){.request_id = wire_span_of(request_id, 16),
                                          .tenant = wire_span_str(tenant),
                                          .session = wire_span_of(router->session, 16)};
    router_send(router, CONTROL, &message);
}

void router_cancel_attempt(struct router *router, uint8_t id, struct wire_attempt attempt)
{
    uint8_t request_id[16];
    struct wire_message message = {.kind = WIRE_CANCEL};
    memset(request_id, id, sizeof request_id);
    message.cancel = (struct wire_cancel){.request_id = wire_span_of(request_id, 16),
                                          .tenant = wire_span_str("acme"),
                                          .session = wire_span_of(router->session, 16),
                                          .attempt = attempt};
    router_send(router, CONTROL, &message);
}

static void take_row(struct reply *reply, const struct wire_tokens_row *row)
{
    assert_int_equal(row->first, reply->first + reply->count);
    assert_int_equal(row->ids.size, row->count * 4u);
    reply->ids = realloc(reply->ids, (reply->count + row->count) * sizeof *reply->ids + 1);
    for (unsigned i = 0; i < row->count; i++)
        reply->ids[reply->count++] = wire_u32_at(row->ids, i);
    reply->text = realloc(reply->text, reply->text_size + row->text.size + 1);
    memcpy(reply->text + reply->text_size, row->text.data, row->text.size);
    reply->text_size += row->text.size;
    reply->text[reply->text_size] = '\0';
    reply->rows++;
}

static void take_tokens(struct incoming *in, uint32_t stream, struct wire_attempt attempt, struct reply *reply)
{
    struct wire_tokens_cursor cursor = {0};
    struct wire_tokens_row row;
    bool any = false;
    while (wire_tokens_next(&in->message.tokens, &cursor, &row)) {
        if (row.stream != stream || row.attempt.client != attempt.client || row.attempt.router != attempt.router)
            continue;
        take_row(reply, &row);
        any = true;
    }
    reply->frames += any;
    if (zmq_msg_size(&in->frame) > reply->frame_bytes_max)
        reply->frame_bytes_max = zmq_msg_size(&in->frame);
}

static bool take_end(struct incoming *in, uint32_t stream, struct wire_attempt attempt, struct reply *reply)
{
    const struct wire_message *m = &in->message;
    if (m->kind == WIRE_DONE && m->done.stream == stream) {
        reply->done = true;
        reply->info = m->done;
        reply->attempt = m->done.attempt;
        snprintf(reply->worker, sizeof reply->worker, "%.*s", (int)m->done.worker.size,
                 (const char *)m->done.worker.data);
        assert_int_equal(m->done.numerics_id.size, 32);
        assert_int_equal(m->done.cache_id.size, 16);
        assert_int_equal(m->done.finish.size, 1);
        memcpy(reply->numerics_id, m->done.numerics_id.data, 32);
        memcpy(reply->cache_id, m->done.cache_id.data, 16);
        reply->finish = m->done.finish.data[0];
    } else if (m->kind == WIRE_ERROR && m->error.request_id.size && m->error.stream == stream) {
        reply->error = m->error.code;
        reply->retry_after_ms = m->error.retry_after_ms;
        reply->attempt = m->error.attempt;
        snprintf(reply->detail, sizeof reply->detail, "%.*s", (int)m->error.detail.size,
                 (const char *)m->error.detail.data);
    } else {
        return false;
    }
    return reply->attempt.client == attempt.client && reply->attempt.router == attempt.router;
}

void router_collect(struct router *router, uint32_t stream, struct wire_attempt attempt, struct reply *reply)
{
    for (bool ended = false; !ended;) {
        struct incoming in;
        router_receive(router, DATA, true, &in);
        if (in.message.kind == WIRE_TOKENS)
            take_tokens(&in, stream, attempt, reply);
        else
            ended = take_end(&in, stream, attempt, reply);
        incoming_free(&in);
    }
}

void router_collect_some(struct router *router, uint32_t stream, struct wire_attempt attempt, unsigned tokens,
                         struct reply *reply)
{
    while (reply->count < tokens) {
        struct incoming in;
        router_expect(router, DATA, WIRE_TOKENS, &in);
        take_tokens(&in, stream, attempt, reply);
        incoming_free(&in);
    }
}

void reply_free(struct reply *reply)
{
    free(reply->ids);
    free(reply->text);
    memset(reply, 0, sizeof *reply);
}
