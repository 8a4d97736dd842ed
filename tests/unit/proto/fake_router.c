#include "fake_router.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include <cmocka.h>
#include "common/hash.h"
#include "common/loop.h"

struct credit {
    uint32_t stream;
    uint64_t tokens;
    struct credit *next;
};

struct session {
    struct credit *credits;
    uint8_t id[WIRE_ID_BYTES];
    struct channel_peer control, data;
    uint64_t control_leases, data_leases;
    struct session *next;
};

struct later {
    struct fake_router *router;
    struct loop_timer *timer;
    void (*fn)(struct fake_router *, const struct fake_request *);
    struct fake_request request;
    struct later *next;
};

struct fake_router {
    struct fake_router_config config;
    struct fake_counts counts;
    atomic_bool frozen;
    uint8_t id[WIRE_ID_BYTES];
    char endpoint[128];
    pthread_t thread;
    void *zmq_context;
    struct loop *loop;
    struct channel *control, *data;
    struct session *sessions;
    struct later *laters;
};

static void send_to(struct channel *channel, const struct channel_peer *peer, const struct wire_message *message)
{
    size_t size = wire_encoded_size(message);
    uint8_t *frame = malloc(size);
    wire_encode(message, frame);
    if (channel) /* else cut */
        (void)channel_send_bytes(channel, peer, frame, size);
    free(frame);
}

static struct session *find_session(struct fake_router *router, struct wire_span id)
{
    struct session *session;
    LL_FOREACH(router->sessions, session)
    if (memcmp(session->id, id.data, WIRE_ID_BYTES) == 0)
        return session;
    session = calloc(1, sizeof *session);
    memcpy(session->id, id.data, WIRE_ID_BYTES);
    LL_PREPEND(router->sessions, session);
    return session;
}

static void on_hello(struct fake_router *router, bool control, const struct channel_peer *peer,
                     const struct wire_hello *hello)
{
    if (!router->data)
        return;
    struct session *session = find_session(router, hello->session);
    struct channel *channel = control ? router->control : router->data;
    atomic_fetch_add(control ? &router->counts.hellos_control : &router->counts.hellos_data, 1);
    *(control ? &session->control : &session->data) = *peer;
    *(control ? &session->control_leases : &session->data_leases) = 0;
    if (router->config.refuse) {
        struct wire_message error = {.kind = WIRE_ERROR};
        error.error.code = WIRE_ERROR_UNSUPPORTED;
        error.error.detail = wire_span_str(router->config.refuse);
        send_to(channel, peer, &error);
        return;
    }
    char data_endpoint[64];
    snprintf(data_endpoint, sizeof data_endpoint, "tcp://*%s", strrchr(channel_endpoint(router->data), ':'));
    struct wire_message welcome = {.kind = WIRE_WELCOME};
    welcome.welcome = (struct wire_welcome){
        .version = WIRE_VERSION,
        .session = wire_span_of(router->id, sizeof router->id),
        .name = wire_span_str("fake"),
        .data_endpoint = wire_span_str(data_endpoint),
        .lease_ms = router->config.lease_ms,
        .lease_expiry_ms = router->config.lease_expiry_ms,
        .limits = router->config.limits,
        .state = WIRE_LIFE_READY,
        .capabilities = router->config.capabilities,
    };
    send_to(channel, peer, &welcome);
}

static struct credit *find_credit(struct session *session, uint32_t stream)
{
    struct credit *credit;
    LL_FOREACH(session->credits, credit)
    if (credit->stream == stream)
        return credit;
    credit = calloc(1, sizeof *credit);
    credit->stream = stream;
    LL_PREPEND(session->credits, credit);
    return credit;
}

/* Cumulative: a grant never shrinks. */
static void note_credit(struct session *session, const struct wire_lease *lease)
{
    for (size_t i = 0; i < lease->credit_streams.size / 4; i++) {
        struct credit *credit = find_credit(session, wire_u32_at(lease->credit_streams, i));
        if (wire_u64_at(lease->credit_tokens, i) < credit->tokens)
            fail_msg("the grant of stream %u shrank", credit->stream);
        credit->tokens = wire_u64_at(lease->credit_tokens, i);
    }
}

uint64_t fake_credit(struct fake_router *router, const struct fake_request *request)
{
    return find_credit(find_session(router, wire_span_of(request->session, WIRE_ID_BYTES)), request->stream)->tokens;
}

static void on_lease(struct fake_router *router, bool control, const struct channel_peer *peer,
                     const struct wire_lease *lease)
{
    struct session *session = find_session(router, lease->session);
    uint64_t *number = control ? &session->control_leases : &session->data_leases;
    atomic_fetch_add(control ? &router->counts.leases_control : &router->counts.leases_data, 1);
    if (control) {
        note_credit(session, lease);
        if (router->config.on_lease)
            router->config.on_lease(router->config.user, router, lease);
    }
    if (router->config.no_leases || (control ? router->config.no_control_leases : router->config.no_data_leases))
        return;
    struct wire_message answer = {.kind = WIRE_LEASE};
    answer.lease = (struct wire_lease){.session = wire_span_of(router->id, sizeof router->id),
                                       .number = ++*number,
                                       .echo = lease->number,
                                       .state = WIRE_LIFE_READY};
    if (router->config.own_number)
        answer.lease.number = 1;
    if (router->config.no_echo)
        answer.lease.echo = 0;
    send_to(control ? router->control : router->data, peer, &answer);
}

static void on_request(struct fake_router *router, const struct channel_peer *peer, const struct wire_head *head,
                       zmq_msg_t *body)
{
    struct fake_request request = {.stream = head->stream,
                                   .attempt = head->attempt,
                                   .deadline_ms = head->deadline_ms,
                                   .body_bytes = head->body_bytes};
    struct session *session = find_session(router, head->session);
    struct wire_message decoded;
    if (wire_decode(zmq_msg_data(body), zmq_msg_size(body), &decoded) != STATUS_OK || decoded.kind != WIRE_BODY ||
        zmq_msg_size(body) != head->body_bytes) {
        atomic_fetch_add(&router->counts.malformed, 1);
        return;
    }
    wire_message_free(&decoded);
    atomic_fetch_add(&router->counts.requests, 1);
    memcpy(request.id, head->request_id.data, WIRE_ID_BYTES);
    snprintf(request.conversation, sizeof request.conversation, "%.*s", (int)head->conversation.size,
             (const char *)head->conversation.data);
    snprintf(request.tenant, sizeof request.tenant, "%.*s", (int)head->tenant.size, (const char *)head->tenant.data);
    memcpy(request.session, head->session.data, WIRE_ID_BYTES);
    request.inexact_allowed = head->inexact_allowed;
    request.resume_choices = (unsigned)(head->resume.counts.size / 4);
    for (unsigned i = 0; i < request.resume_choices; i++)
        request.resume_counts[i] = wire_u32_at(head->resume.counts, i);
    request.resume_total = (uint32_t)(head->resume.ids.size / 4);
    for (unsigned i = 0; i < request.resume_total && i < FAKE_RESUME_MAX; i++)
        request.resume_ids[i] = wire_u32_at(head->resume.ids, i);
    if (head->numerics_id.size > 0)
        memcpy(request.numerics_id, head->numerics_id.data, sizeof request.numerics_id);
    request.data = *peer;
    request.control = session->control;
    if (router->config.on_request)
        router->config.on_request(router->config.user, router, &request);
}

static void on_message(struct fake_router *router, bool control, const struct channel_peer *peer, zmq_msg_t *frames,
                       unsigned count)
{
    struct wire_message message;
    if (atomic_load(&router->frozen) || router->config.mute)
        return;
    if (wire_decode(zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), &message) != STATUS_OK) {
        atomic_fetch_add(&router->counts.malformed, 1);
        return;
    }
    if (message.kind == WIRE_HELLO && count == 1)
        on_hello(router, control, peer, &message.hello);
    else if (message.kind == WIRE_LEASE && count == 1)
        on_lease(router, control, peer, &message.lease);
    else if (message.kind == WIRE_HEAD && count == 2 && !control)
        on_request(router, peer, &message.head, &frames[1]);
    else if (message.kind == WIRE_CANCEL && count == 1 && control) {
        atomic_fetch_add(&router->counts.cancels, 1);
        if (router->config.on_cancel)
            router->config.on_cancel(router->config.user, router, &message.cancel);
    } else if (message.kind == WIRE_GOAWAY && count == 1 && control) {
        atomic_fetch_add(&router->counts.goodbyes, 1);
    } else {
        atomic_fetch_add(&router->counts.malformed, 1);
    }
    wire_message_free(&message);
}

static void on_control(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    on_message(user, true, peer, frames, count);
}

static void on_data(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    on_message(user, false, peer, frames, count);
}

static void on_stop(void *user)
{
    struct fake_router *router = user;
    loop_stop(router->loop);
}

static void *thread_main(void *user)
{
    struct fake_router *router = user;
    (void)loop_run(router->loop);
    struct later *later, *next;
    LL_FOREACH_SAFE(router->laters, later, next)
    {
        loop_timer_destroy(&later->timer);
        free(later);
    }
    channel_destroy(&router->control);
    channel_destroy(&router->data);
    return NULL;
}

void fake_router_start(const struct fake_router_config *config, struct fake_router **out)
{
    struct fake_router *router = calloc(1, sizeof *router);
    assert_non_null(router);
    assert_int_equal(hash_setup(), STATUS_OK);
    router->config = *config;
    if (router->config.lease_ms == 0)
        router->config.lease_ms = 100;
    if (router->config.lease_expiry_ms == 0)
        router->config.lease_expiry_ms = 600;
    hash_random(router->id, sizeof router->id);
    router->zmq_context = zmq_ctx_new();
    assert_int_equal(loop_create(&router->loop), STATUS_OK);
    struct channel_config channel = {.heartbeat = true,
                                     .frame_bytes_max = WIRE_FRAME_BYTES_MAX,
                                     .receive_messages_max = 64,
                                     .send_messages_max = 64,
                                     .queue_bytes_max = 16 << 20,
                                     .on_message = on_control,
                                     .user = router};
    const char *endpoint = config->control_endpoint ? config->control_endpoint : "tcp://127.0.0.1:*";
    if (channel_create_server(router->loop, router->zmq_context, &channel, endpoint, &router->control) != STATUS_OK)
        fail_msg("%s", status_detail());
    channel.heartbeat = false;
    channel.on_message = on_data;
    if (channel_create_server(router->loop, router->zmq_context, &channel, "tcp://127.0.0.1:*", &router->data) !=
        STATUS_OK)
        fail_msg("%s", status_detail());
    snprintf(router->endpoint, sizeof router->endpoint, "%s", channel_endpoint(router->control));
    assert_int_equal(pthread_create(&router->thread, NULL, thread_main, router), 0);
    *out = router;
}

void fake_router_stop(struct fake_router **router_pointer)
{
    struct fake_router *router = *router_pointer;
    if (!router)
        return;
    assert_int_equal(loop_post(router->loop, on_stop, router), STATUS_OK);
    pthread_join(router->thread, NULL);
    loop_destroy(&router->loop);
    zmq_ctx_term(router->zmq_context);
    struct session *session, *next;
    LL_FOREACH_SAFE(router->sessions, session, next)
    {
        struct credit *credit, *next_credit;
        LL_FOREACH_SAFE(session->credits, credit, next_credit)
        free(credit);
        free(session);
    }
    free(router);
    *router_pointer = NULL;
}

void fake_router_freeze(struct fake_router *router)
{
    atomic_store(&router->frozen, true);
}

void fake_router_thaw(struct fake_router *router)
{
    atomic_store(&router->frozen, false);
}

static void cut_control(void *user)
{
    struct fake_router *router = user;
    channel_destroy(&router->control);
}

static void cut_data(void *user)
{
    struct fake_router *router = user;
    channel_destroy(&router->data);
}

void fake_router_cut(struct fake_router *router, bool control)
{
    assert_int_equal(loop_post(router->loop, control ? cut_control : cut_data, router), STATUS_OK);
}

const char *fake_router_endpoint(const struct fake_router *router)
{
    return router->endpoint;
}

struct fake_counts *fake_router_counts(struct fake_router *router)
{
    return &router->counts;
}

void *fake_router_user(struct fake_router *router)
{
    return router->config.user;
}

void fake_send(struct fake_router *router, const struct fake_request *request, bool control,
               const struct wire_message *message)
{
    send_to(control ? router->control : router->data, control ? &request->control : &request->data, message);
}

void fake_send_raw(struct fake_router *router, const struct fake_request *request, const void *data, size_t size)
{
    if (router->data)
        (void)channel_send_bytes(router->data, &request->data, data, size);
}

void fake_send_ref(struct fake_router *router, const struct fake_request *request, enum wire_kind kind)
{
    struct wire_message message = {.kind = kind};
    message.stream_ref = (struct wire_stream_ref){
        .request_id = wire_span_of(request->id, WIRE_ID_BYTES), .stream = request->stream, .attempt = request->attempt};
    fake_send(router, request, kind == WIRE_SUPERSEDED, &message);
}

void fake_send_ack(struct fake_router *router, const struct fake_request *request)
{
    uint8_t numerics_id[32];
    struct wire_message message = {.kind = WIRE_ACK};
    memset(numerics_id, router->config.numerics, sizeof numerics_id);
    message.stream_ref = (struct wire_stream_ref){
        .request_id = wire_span_of(request->id, WIRE_ID_BYTES),
        .stream = request->stream,
        .attempt = request->attempt,
        .numerics_id = wire_span_of(numerics_id, router->config.numerics ? sizeof numerics_id : 0)};
    fake_send(router, request, true, &message);
}

void fake_send_row(struct fake_router *router, const struct fake_request *request, struct wire_tokens_row row)
{
    struct wire_batch *batch;
    assert_int_equal(wire_batch_create(&batch), STATUS_OK);
    row.stream = request->stream;
    row.attempt = request->attempt;
    assert_int_equal(wire_batch_add(batch, &row), STATUS_OK);
    struct wire_span frame = wire_batch_take(batch);
    fake_send_raw(router, request, frame.data, frame.size);
    wire_batch_destroy(&batch);
}

void fake_send_tokens(struct fake_router *router, const struct fake_request *request, uint32_t first, unsigned count,
                      const char *text)
{
    uint8_t ids[4 * 64] = {0};
    for (unsigned i = 0; i < count; i++)
        ids[4 * i] = (uint8_t)(first + i); /* token ids are their sequence numbers */
    fake_send_row(router, request,
                  (struct wire_tokens_row){.first = first,
                                           .count = (uint16_t)count,
                                           .ids = wire_span_of(ids, 4 * (size_t)count),
                                           .text = wire_span_str(text)});
}

void fake_send_done(struct fake_router *router, const struct fake_request *request, uint32_t released)
{
    static const uint8_t finish[] = {WIRE_FINISH_LENGTH};
    fake_send_done_of(router, request, wire_span_of(finish, 1), released);
}

void fake_send_done_of(struct fake_router *router, const struct fake_request *request, struct wire_span finish,
                       uint32_t released)
{
    struct wire_message message = {.kind = WIRE_DONE};
    message.done = (struct wire_done){.request_id = wire_span_of(request->id, WIRE_ID_BYTES),
                                      .stream = request->stream,
                                      .attempt = request->attempt,
                                      .finish = finish,
                                      .prompt_tokens = 11,
                                      .cached_tokens = 7,
                                      .reply_tokens = released,
                                      .queue_us = 1,
                                      .prefill_us = 2,
                                      .decode_us = 3,
                                      .route_us = 4,
                                      .worker = wire_span_str("worker-9"),
                                      .route = wire_span_str("owner"),
                                      .released = released,
                                      .dropped_messages = 2};
    fake_send(router, request, false, &message);
}

void fake_send_error(struct fake_router *router, const struct fake_request *request, enum wire_error_code code,
                     uint32_t retry_after_ms)
{
    struct wire_message message = {.kind = WIRE_ERROR};
    message.error = (struct wire_error){.request_id = wire_span_of(request->id, WIRE_ID_BYTES),
                                        .stream = request->stream,
                                        .attempt = request->attempt,
                                        .code = code,
                                        .detail = wire_span_str("said so"),
                                        .retry_after_ms = retry_after_ms};
    fake_send(router, request, false, &message);
}

void fake_send_goaway(struct fake_router *router, const struct fake_request *request)
{
    struct wire_message message = {.kind = WIRE_GOAWAY};
    message.goaway = (struct wire_goaway){.session = wire_span_of(router->id, sizeof router->id), .deadline_ms = 1000};
    fake_send(router, request, true, &message);
}

static void on_later(void *user)
{
    struct later *later = user;
    later->fn(later->router, &later->request);
}

void fake_later(struct fake_router *router, uint64_t delay_ms,
                void (*fn)(struct fake_router *, const struct fake_request *), const struct fake_request *request)
{
    struct later *later = calloc(1, sizeof *later);
    assert_non_null(later);
    later->router = router;
    later->fn = fn;
    later->request = *request;
    LL_PREPEND(router->laters, later);
    assert_int_equal(loop_timer_create(router->loop, delay_ms, false, on_later, later, &later->timer), STATUS_OK);
}
