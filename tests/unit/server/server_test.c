/* server_test - what routers see of a worker, in every order that can happen. The engine is the fake one, so that a
 * request can be held at any point; server_engine_test.c has the real one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/hash.h"
#include "fake_engine.h"
#include "fake_router.h"

static struct bench bench;
static struct router router, other;

static int setup(void **state)
{
    (void)state;
    fake_engine_reset();
    bench_setup(&bench);
    return 0;
}

/* The server with what the test put into bench.config, ready, and a router that said hello. */
static void start(void)
{
    assert_int_equal(bench_start(&bench), STATUS_OK);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_READY, NULL), WIRE_LIFE_READY);
    router_connect(&router, &bench, 1);
    router_hello(&router);
}

static void start_two(void)
{
    start();
    router_connect(&other, &bench, 2);
    router_hello(&other);
}

static void stop(void)
{
    fake_engine_stuck(false);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_close(&router);
    bench_stop(&bench);
}

static void stop_two(void)
{
    router_close(&other);
    stop();
}

static void expect_ack(struct router *from, uint32_t stream)
{
    struct incoming in;
    router_expect(from, CONTROL, WIRE_ACK, &in);
    assert_int_equal(in.message.stream_ref.stream, stream);
    incoming_free(&in);
}

static const struct wire_attempt first_attempt = {0, 0};

/* A whole request that must work: the connection and the worker are as good as new. */
static void works(struct router *from, uint8_t id)
{
    struct reply reply = {0};
    router_ask(from, &(struct ask){.id = id, .stream = 1000u + id, .sampling = {.tokens_max = 3}});
    router_collect(from, 1000u + id, first_attempt, &reply);
    if (!reply.done)
        fail_msg("%s: %s", wire_error_name(reply.error), reply.detail);
    assert_int_equal(reply.count, 3);
    reply_free(&reply);
}

static void expect_error(struct router *from, uint32_t stream, enum wire_error_code code, const char *word)
{
    struct reply reply = {0};
    router_collect(from, stream, first_attempt, &reply);
    if (reply.done || reply.error != code || !strstr(reply.detail, word))
        fail_msg("not '%s' with '%s', but '%s': %s", wire_error_name(code), word,
                 reply.done ? "done" : wire_error_name(reply.error), reply.detail);
    reply_free(&reply);
}

static void expect_connection_error(struct router *from, int link, enum wire_error_code code, const char *word)
{
    struct incoming in;
    router_expect(from, link, WIRE_ERROR, &in);
    assert_int_equal(in.message.error.request_id.size, 0);
    char detail[600];
    snprintf(detail, sizeof detail, "%.*s", (int)in.message.error.detail.size,
             (const char *)in.message.error.detail.data);
    if (in.message.error.code != code || !strstr(detail, word))
        fail_msg("not '%s' with '%s', but '%s': %s", wire_error_name(code), word,
                 wire_error_name(in.message.error.code), detail);
    incoming_free(&in);
}

/* Returns when the worker has read everything sent on control so far: an attach is answered, and order is kept. */
static void control_is_read(struct router *from)
{
    uint8_t id[16] = {5};
    struct incoming in;
    struct wire_message message = {.kind = WIRE_ATTACH};
    message.attach = (struct wire_attach){.request_id = wire_span_of(id, 16),
                                          .tenant = wire_span_str("acme"),
                                          .session = wire_span_of(from->session, 16)};
    router_send(from, CONTROL, &message);
    router_expect(from, CONTROL, WIRE_ERROR, &in);
    assert_int_equal(in.message.error.code, WIRE_ERROR_UNSUPPORTED);
    incoming_free(&in);
}

/* ---- hello, leases ---- */

static void hello_is_welcomed_on_both_connections(void **state)
{
    (void)state;
    assert_int_equal(bench_start(&bench), STATUS_OK);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_READY, NULL), WIRE_LIFE_READY);
    router_connect(&router, &bench, 1);
    for (int link = CONTROL; link <= DATA; link++) {
        struct incoming in;
        struct wire_message hello = {.kind = WIRE_HELLO};
        hello.hello = (struct wire_hello){.version_min = 1,
                                          .version_max = 3,
                                          .session = wire_span_of(router.session, 16),
                                          .role = WIRE_ROLE_ROUTER,
                                          .connection = (enum wire_connection)(link + 1),
                                          .name = wire_span_str("router-1")};
        router_send(&router, link, &hello);
        router_expect(&router, link, WIRE_WELCOME, &in);
        const struct wire_welcome *welcome = &in.message.welcome;
        assert_int_equal(welcome->version, 1);
        assert_true(wire_span_equal(welcome->session, wire_span_of(bench.incarnation, 16)));
        assert_true(wire_span_equal(welcome->name, wire_span_str("worker-a")));
        assert_true(wire_span_equal(welcome->model, wire_span_str("fake")));
        assert_int_equal(welcome->weights_digest.data[31], 0x11);
        assert_int_equal(welcome->numerics_id.data[31], 0x22);
        assert_int_equal(welcome->state, WIRE_LIFE_READY);
        assert_int_equal(welcome->limits.body_bytes_max, 1 << 20);
        assert_int_equal(welcome->limits.unacknowledged_bytes_max, 4 << 20);
        assert_int_equal(welcome->limits.prompt_tokens_max, FAKE_CONTEXT);
        assert_int_equal(welcome->limits.stream_credit_tokens, 0);
        assert_int_equal(welcome->kv_tokens_max, 65536);
        assert_memory_equal(welcome->data_endpoint.data, "tcp://*:", 8);
        assert_memory_equal(welcome->data_endpoint.data + 8, strrchr(bench.data, ':') + 1,
                            welcome->data_endpoint.size - 8);
        incoming_free(&in);
    }
    stop();
}

static void leases_carry_load_and_echo(void **state)
{
    (void)state;
    start();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .text = "12345"});
    router_ask(&router, &(struct ask){.id = 2, .stream = 2, .text = "1234567"});
    expect_ack(&router, 1);
    expect_ack(&router, 2);
    for (int link = CONTROL; link <= DATA; link++) {
        bool seen = false;
        uint64_t last = 0;
        router_lease(&router, link, 0);
        router_lease(&router, link, 0);
        for (unsigned i = 0; i < 1000 && !seen; i++) {
            struct incoming in;
            router_expect(&router, link, WIRE_LEASE, &in);
            const struct wire_lease *lease = &in.message.lease;
            assert_true(wire_span_equal(lease->session, wire_span_of(bench.incarnation, 16)));
            assert_true(lease->number > last);
            last = lease->number;
            assert_true(lease->has_load);
            assert_int_equal(lease->load.kv_tokens_max, 0); /* the fake engine says so */
            seen = lease->echo == 2 && lease->load.running_requests == 1 && lease->load.queued_requests == 1 &&
                   lease->load.queued_tokens == 7 && lease->load.steps > 0 && lease->acknowledged_bytes > 0;
            incoming_free(&in);
        }
        assert_true(seen);
    }
    stop();
}

static void a_hung_engine_shows_in_the_lease(void **state)
{
    (void)state;
    start();
    fake_engine_stuck(true);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    for (bool seen = false; !seen;) {
        struct incoming in;
        router_expect(&router, CONTROL, WIRE_LEASE, &in);
        seen = in.message.lease.load.step_age_ms >= 100;
        incoming_free(&in);
    }
    stop();
}

static void a_router_that_comes_while_the_model_loads_is_told(void **state)
{
    (void)state;
    struct incoming in;
    fake_engine_load(false, STATUS_OK);
    assert_int_equal(bench_start(&bench), STATUS_OK);
    router_connect(&router, &bench, 1);
    router_hello(&router);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    expect_error(&router, 1, WIRE_ERROR_OVER_CAPACITY, "starting");
    fake_engine_load(true, STATUS_OK);
    for (int link = CONTROL; link <= DATA; link++) {
        router_expect(&router, link, WIRE_WELCOME, &in);
        assert_int_equal(in.message.welcome.state, WIRE_LIFE_READY);
        assert_true(wire_span_equal(in.message.welcome.model, wire_span_str("fake")));
        incoming_free(&in);
    }
    works(&router, 2);
    stop();
}

static void a_model_that_cannot_be_loaded_ends_the_server(void **state)
{
    (void)state;
    enum status st = STATUS_OK;
    fake_engine_load(true, STATUS_CORRUPT);
    assert_int_equal(bench_start(&bench), STATUS_OK);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_GONE, &st), WIRE_LIFE_GONE);
    assert_int_equal(st, STATUS_CORRUPT);
    bench_stop(&bench);
}

static void a_port_in_use_is_an_error(void **state)
{
    (void)state;
    start();
    struct bench second;
    bench_setup(&second);
    second.config.listen_data = bench.data;
    assert_int_equal(bench_start(&second), STATUS_IO);
    bench_stop(&second);
    stop();
}

/* ---- requests ---- */

static void a_request_is_acknowledged_streamed_and_done(void **state)
{
    (void)state;
    struct reply reply = {0};
    struct incoming in;
    start();
    router_ask(&router, &(struct ask){.id = 7,
                                      .stream = 42,
                                      .text = "0123456789",
                                      .attempt = {3, 5},
                                      .model = "fake",
                                      .epoch = 77,
                                      .incarnation = bench.incarnation,
                                      .sampling = {.tokens_max = 50, .temperature = 0.5f}});
    router_expect(&router, CONTROL, WIRE_ACK, &in);
    assert_int_equal(in.message.stream_ref.stream, 42);
    assert_int_equal(in.message.stream_ref.attempt.client, 3);
    assert_int_equal(in.message.stream_ref.attempt.router, 5);
    assert_int_equal(in.message.stream_ref.request_id.data[0], 7);
    uint8_t cache_id[16];
    memcpy(cache_id, in.message.stream_ref.cache_id.data, 16);
    incoming_free(&in);
    router_collect(&router, 42, (struct wire_attempt){3, 5}, &reply);
    assert_true(reply.done);
    assert_int_equal(reply.count, 50);
    char text[2048] = "", word[16];
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(reply.ids[i], fake_engine_token(10, i));
        snprintf(word, sizeof word, "w%u ", reply.ids[i]);
        strcat(text, word);
    }
    assert_string_equal(reply.text, text);
    assert_string_equal(reply.worker, "worker-a");
    assert_int_equal(reply.finish, WIRE_FINISH_LENGTH);
    assert_int_equal(reply.numerics_id[0], 0x22);
    assert_memory_equal(reply.cache_id, cache_id, 16);
    assert_int_equal(reply.info.prompt_tokens, 10);
    assert_int_equal(reply.info.cached_tokens, 1);
    assert_int_equal(reply.info.reply_tokens, 50);
    assert_int_equal(reply.info.prefill_us, 20);
    assert_int_equal(reply.info.released, 50);
    assert_int_equal(reply.info.epoch, 77);
    assert_int_equal(bench_streams(&bench), 0);
    reply_free(&reply);
    stop();
}

static void what_the_engine_needs_arrives(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    struct engine_request last;
    struct reply reply = {0};
    start();
    struct ask ask = {
        .id = 3, .stream = 1, .priority = -7, .deadline_ms = 5000, .sampling = {.tokens_max = 1, .temperature = 0.25f}};
    ask_messages(&ask, &router, &head, &body, &chat, request_id);
    head.head.seed = 99;
    head.head.seed_given = true;
    body.body.messages = NULL;
    body.body.message_count = 0;
    uint32_t ids[3] = {5, 6, 7};
    body.body.prompt_ids = wire_span_of(ids, sizeof ids);
    size_t size = encode(&body, &data);
    router_ask_raw(&router, &head, data, size);
    free(data);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    fake_engine_last(&last);
    assert_int_equal(last.prompt_id_count, 3);
    assert_int_equal(last.message_count, 0);
    assert_int_equal(last.priority, -7);
    assert_int_equal(last.seed, 99);
    assert_true(last.seed_given);
    assert_int_equal(last.tokens_max, 1);
    assert_true(last.sampling.temperature == 0.25f);
    assert_int_equal(last.tenant_size, 4);
    assert_memory_equal(last.request_id, request_id, 16);
    uint64_t now = clock_now_ms();
    assert_true(last.deadline_ms > now && last.deadline_ms <= now + 5000);
    reply_free(&reply);
    stop();
}

static void many_streams_of_two_routers(void **state)
{
    (void)state;
    start_two();
    fake_engine_hold();
    for (uint8_t i = 0; i < 4; i++) {
        router_ask(&router, &(struct ask){.id = (uint8_t)(1 + i), .stream = i, .sampling = {.tokens_max = 20}});
        router_ask(&other, &(struct ask){.id = (uint8_t)(11 + i), .stream = i, .sampling = {.tokens_max = 20}});
    }
    for (uint8_t i = 0; i < 4; i++) {
        expect_ack(&router, i);
        expect_ack(&other, i);
    }
    fake_engine_permit(FAKE_PERMITS_ALL);
    for (int r = 0; r < 2; r++) {
        unsigned tokens = 0, done = 0;
        while (done < 4) {
            struct incoming in;
            struct wire_tokens_cursor cursor = {0};
            struct wire_tokens_row row;
            router_receive(r ? &other : &router, DATA, true, &in);
            if (in.message.kind == WIRE_TOKENS)
                while (wire_tokens_next(&in.message.tokens, &cursor, &row))
                    tokens += row.count;
            else
                done += in.message.kind == WIRE_DONE;
            incoming_free(&in);
        }
        assert_int_equal(tokens, 80);
    }
    stop_two();
}

static void tokens_are_split_at_256_kib(void **state)
{
    (void)state;
    struct reply reply = {0};
    start();
    fake_engine_text_bytes(60000);
    fake_engine_stuck(true); /* so that many steps are worked off in few turns */
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 40}});
    fake_engine_stuck(false);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    assert_int_equal(reply.count, 40);
    assert_int_equal(reply.text_size, 40 * 60000);
    assert_true(reply.frame_bytes_max <= 256u << 10);
    reply_free(&reply);
    stop();
}

/* ---- who is meant ---- */

static void another_incarnation_is_not_us(void **state)
{
    (void)state;
    struct incoming in;
    uint8_t wrong[16] = {1, 2, 3};
    start();
    router_ask(&router, &(struct ask){.id = 1, .stream = 9, .attempt = {1, 2}, .incarnation = wrong});
    router_expect(&router, DATA, WIRE_WRONG_OWNER, &in);
    assert_int_equal(in.message.stream_ref.stream, 9);
    assert_int_equal(in.message.stream_ref.attempt.router, 2);
    assert_true(wire_span_equal(in.message.stream_ref.owner, wire_span_str("worker-a")));
    incoming_free(&in);
    works(&router, 2);
    stop();
}

static void a_session_without_hello_is_refused(void **state)
{
    (void)state;
    start();
    router_connect(&other, &bench, 9);
    router_ask(&other, &(struct ask){.id = 1, .stream = 1});
    expect_error(&other, 1, WIRE_ERROR_INVALID, "HELLO");
    router_lease(&other, CONTROL, 0);
    expect_connection_error(&other, CONTROL, WIRE_ERROR_INVALID, "HELLO");
    router_hello(&other);
    works(&other, 3);
    stop_two();
}

static void another_model_is_unknown(void **state)
{
    (void)state;
    start();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .model = "gpt"});
    expect_error(&router, 1, WIRE_ERROR_UNKNOWN_MODEL, "fake");
    works(&router, 2);
    stop();
}

static void only_routers_are_served(void **state)
{
    (void)state;
    start();
    struct wire_message hello = {.kind = WIRE_HELLO};
    hello.hello = (struct wire_hello){.version_min = 1,
                                      .version_max = 1,
                                      .session = wire_span_of(router.session, 16),
                                      .role = WIRE_ROLE_CLIENT,
                                      .connection = WIRE_CONNECTION_CONTROL};
    router_send(&router, CONTROL, &hello);
    expect_connection_error(&router, CONTROL, WIRE_ERROR_UNSUPPORTED, "router");
    hello.hello.role = WIRE_ROLE_ROUTER;
    hello.hello.version_min = 2;
    hello.hello.version_max = 4;
    router_send(&router, CONTROL, &hello);
    expect_connection_error(&router, CONTROL, WIRE_ERROR_UNSUPPORTED, "2 to 4, this worker 1 to 1");
    hello.hello.version_min = 1;
    router_send(&router, DATA, &hello);
    expect_connection_error(&router, DATA, WIRE_ERROR_INVALID, "data endpoint");
    works(&router, 1);
    stop();
}

static void a_stream_number_in_use_is_refused(void **state)
{
    (void)state;
    start();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    expect_ack(&router, 1);
    router_ask(&router, &(struct ask){.id = 2, .stream = 1, .attempt = {4, 4}});
    struct reply reply = {0};
    router_collect(&router, 1, (struct wire_attempt){4, 4}, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_INVALID);
    reply_free(&reply);
    stop();
}

/* ---- malformed frames ---- */

static void malformed_frames_are_answered_and_the_connection_stays(void **state)
{
    (void)state;
    static const struct {
        int link;
        const char *bytes;
        size_t size;
        enum wire_error_code code;
    } cases[] = {
        {CONTROL, "", 0, WIRE_ERROR_INVALID},
        {DATA, "", 0, WIRE_ERROR_INVALID},
        {CONTROL, "R", 1, WIRE_ERROR_INVALID},
        {DATA, "GET / HTTP/1.1\r\n\r\n", 18, WIRE_ERROR_INVALID},
        {CONTROL, "R\x02\x01\x00", 4, WIRE_ERROR_UNSUPPORTED},
        {CONTROL, "R\x01\x7f\x00", 4, WIRE_ERROR_UNSUPPORTED},
        {CONTROL, "R\x01\x01\x00", 4, WIRE_ERROR_INVALID},                  /* HELLO without anything */
        {DATA, "R\x01\x03\x00\xff\xff\xff\xff\xff", 9, WIRE_ERROR_INVALID}, /* LEASE with a broken varint */
        {DATA, "R\x01\x04\x00", 4, WIRE_ERROR_INVALID},                     /* HEAD without a body frame */
        {CONTROL, "R\x01\x04\x00", 4, WIRE_ERROR_INVALID},
        {DATA, "R\x01\x06\x00", 4, WIRE_ERROR_INVALID},    /* TOKENS are ours to send */
        {DATA, "R\x01\x0d\x00", 4, WIRE_ERROR_INVALID},    /* CANCEL goes on control */
        {CONTROL, "R\x01\x02\x00", 4, WIRE_ERROR_INVALID}, /* WELCOME */
    };
    start();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        router_send_raw(&router, cases[i].link, cases[i].bytes, cases[i].size);
        expect_connection_error(&router, cases[i].link, cases[i].code, "");
    }
    works(&router, 1);
    stop();
}

static void wrong_frame_counts_are_answered(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    start();
    ask_messages(&(struct ask){.id = 1, .stream = 1}, &router, &head, &body, &chat, request_id);
    size_t size = encode(&head, &data);
    zmq_send(router.sockets[DATA], data, size, ZMQ_SNDMORE);
    zmq_send(router.sockets[DATA], data, size, ZMQ_SNDMORE);
    zmq_send(router.sockets[DATA], data, size, 0);
    expect_connection_error(&router, DATA, WIRE_ERROR_INVALID, "3 frames");
    zmq_send(router.sockets[CONTROL], data, size, ZMQ_SNDMORE);
    zmq_send(router.sockets[CONTROL], data, size, 0);
    expect_connection_error(&router, CONTROL, WIRE_ERROR_INVALID, "control");
    free(data);
    /* Over CHANNEL_FRAMES_MAX: dropped without a word. */
    for (int i = 0; i < 1000; i++)
        zmq_send(router.sockets[DATA], "x", 1, ZMQ_SNDMORE);
    zmq_send(router.sockets[DATA], "x", 1, 0);
    works(&router, 2);
    stop();
}

static void an_error_is_never_answered_with_an_error(void **state)
{
    (void)state;
    struct incoming in;
    struct wire_message error = {.kind = WIRE_ERROR};
    start();
    error.error.code = WIRE_ERROR_INVALID;
    router_send(&router, CONTROL, &error);
    router_send(&router, DATA, &error);
    works(&router, 1);
    expect_ack(&router, 1001);
    assert_false(router_try(&router, CONTROL, 50, &in));
    stop();
}

static void answers_to_malformed_frames_are_rate_limited(void **state)
{
    (void)state;
    unsigned answers = 0;
    struct incoming in;
    start();
    for (unsigned i = 0; i < 500; i++)
        router_send_raw(&router, CONTROL, "junk", 4);
    router_connect(&other, &bench, 2);
    router_hello(&other);
    for (; router_try(&router, CONTROL, 200, &in); answers++)
        incoming_free(&in);
    assert_true(answers >= 1 && answers <= 20);  /* two windows at most */
    router_send_raw(&other, CONTROL, "junk", 4); /* another connection has its own share */
    expect_connection_error(&other, CONTROL, WIRE_ERROR_INVALID, "");
    works(&router, 1);
    stop_two();
}

static void truncated_frames_never_hurt(void **state)
{
    (void)state;
    struct wire_message cancel = {.kind = WIRE_CANCEL};
    uint8_t id[16] = {1}, *data;
    start();
    cancel.cancel = (struct wire_cancel){.request_id = wire_span_of(id, 16),
                                         .tenant = wire_span_str("acme"),
                                         .session = wire_span_of(router.session, 16)};
    size_t size = encode(&cancel, &data);
    for (size_t cut = 0; cut < size; cut++) {
        router_send_raw(&router, CONTROL, data, cut);
        router_send_raw(&router, DATA, data, cut);
    }
    free(data);
    works(&router, 2);
    stop();
}

/* ---- bodies ---- */

static void each_truncated_body_ends_in_one_error(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    start();
    struct ask ask = {.stream = 1, .sampling = {.tokens_max = 1, .temperature = 0.5f}};
    ask_messages(&ask, &router, &head, &body, &chat, request_id);
    size_t size = encode(&body, &data);
    unsigned errors = 0;
    for (size_t cut = 0; cut <= size; cut++) {
        struct reply reply = {0};
        ask.id = (uint8_t)(1 + cut);
        ask.stream = (uint32_t)(1 + cut);
        struct wire_message cut_head, unused;
        ask_messages(&ask, &router, &cut_head, &unused, &chat, request_id);
        router_ask_raw(&router, &cut_head, data, cut);
        router_collect(&router, ask.stream, first_attempt, &reply);
        if (!reply.done) {
            assert_int_equal(reply.error, WIRE_ERROR_INVALID);
            assert_non_null(strstr(reply.detail, "body"));
            errors++;
        }
        reply_free(&reply);
    }
    /* Whole: done. Cut between fields: a shorter message, which may be valid. */
    assert_true(errors >= size - 4);
    free(data);
    stop();
}

static void bodies_that_break_a_rule(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    start();
    ask_messages(&(struct ask){.id = 1, .stream = 1}, &router, &head, &body, &chat, request_id);
    size_t size = encode(&body, &data);
    head.head.body_bytes = (uint32_t)size + 1;
    router_ask_raw(&router, &head, data, size);
    expect_error(&router, 1, WIRE_ERROR_INVALID, "bytes of body");
    head.head.body_bytes = 0;
    uint8_t *head_data;
    size_t head_size = encode(&head, &head_data);
    router_ask_raw(&router, &head, head_data, head_size);
    expect_error(&router, 1, WIRE_ERROR_INVALID, "second frame");
    free(head_data);
    free(data);
    size_t big = (1u << 20) + 64;
    data = calloc(1, big);
    memcpy(data, "R\x01\x05", 4);
    router_ask_raw(&router, &head, data, big);
    expect_error(&router, 1, WIRE_ERROR_TOO_LARGE, "body");
    free(data);
    chat.text = wire_span_str("\xff\xfe");
    size = encode(&body, &data);
    router_ask_raw(&router, &head, data, size);
    expect_error(&router, 1, WIRE_ERROR_INVALID, "UTF-8");
    free(data);
    works(&router, 2);
    stop();
}

static void unsupported_fields_are_named(void **state)
{
    (void)state;
    static const char *const names[] = {"history", "resume"};
    uint32_t one = 1;
    uint8_t digest[32] = {0};
    struct wire_span column = wire_span_of(&one, 4);
    start();
    for (uint8_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct wire_message head, body;
        struct wire_chat_message chat;
        uint8_t request_id[16], *data;
        struct ask ask = {.id = (uint8_t)(i + 1), .stream = i};
        ask_messages(&ask, &router, &head, &body, &chat, request_id);
        if (i == 0)
            body.body.history = wire_span_of(digest, 32);
        else
            head.head.resume.counts = head.head.resume.ids = column;
        size_t size = encode(&body, &data);
        router_ask_raw(&router, &head, data, size);
        free(data);
        expect_error(&router, i, WIRE_ERROR_UNSUPPORTED, names[i]);
    }
    works(&router, 200);
    stop();
}

static void attach_and_drain_frames_are_unsupported(void **state)
{
    (void)state;
    uint8_t id[16] = {5};
    struct incoming in;
    struct wire_message message = {.kind = WIRE_ATTACH};
    start();
    message.attach = (struct wire_attach){.request_id = wire_span_of(id, 16),
                                          .tenant = wire_span_str("acme"),
                                          .session = wire_span_of(router.session, 16),
                                          .stream = 6,
                                          .attempt = {1, 0}};
    router_send(&router, CONTROL, &message);
    router_expect(&router, CONTROL, WIRE_ERROR, &in);
    assert_int_equal(in.message.error.code, WIRE_ERROR_UNSUPPORTED);
    assert_int_equal(in.message.error.stream, 6);
    assert_int_equal(in.message.error.attempt.client, 1);
    incoming_free(&in);
    message = (struct wire_message){.kind = WIRE_DRAIN};
    message.drain.worker = wire_span_str("worker-a");
    router_send(&router, CONTROL, &message);
    expect_connection_error(&router, CONTROL, WIRE_ERROR_UNSUPPORTED, "drain");
    works(&router, 2);
    stop();
}

/* ---- refusals of the engine ---- */

static void a_prompt_over_the_context_is_too_large(void **state)
{
    (void)state;
    char text[FAKE_CONTEXT + 2];
    memset(text, 'a', sizeof text);
    text[FAKE_CONTEXT + 1] = '\0';
    start();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .text = text});
    expect_error(&router, 1, WIRE_ERROR_TOO_LARGE, "4097 tokens, the context 4096");
    works(&router, 2);
    stop();
}

static void a_full_queue_is_over_capacity_with_a_hint(void **state)
{
    (void)state;
    struct reply reply = {0};
    bench.config.engine.queue_requests_max = 1;
    start();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    for (bool running = false; !running;) {
        struct incoming in;
        router_expect(&router, CONTROL, WIRE_LEASE, &in);
        running = in.message.lease.load.running_requests == 1;
        incoming_free(&in);
    }
    router_ask(&router, &(struct ask){.id = 2, .stream = 2});
    router_ask(&router, &(struct ask){.id = 3, .stream = 3});
    router_collect(&router, 3, first_attempt, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_OVER_CAPACITY);
    assert_true(reply.retry_after_ms >= 50 && reply.retry_after_ms <= 30000);
    reply_free(&reply);
    stop();
}

static void refusals_do_not_wait_for_the_engine(void **state)
{
    (void)state;
    struct incoming in;
    bench.config.engine.queue_requests_max = 2;
    start();
    fake_engine_stuck(true);
    for (uint8_t i = 1; i <= 8; i++)
        router_ask(&router, &(struct ask){.id = i, .stream = i});
    for (unsigned refused = 0; refused < 4; refused++) {
        router_expect(&router, DATA, WIRE_ERROR, &in);
        assert_int_equal(in.message.error.code, WIRE_ERROR_OVER_CAPACITY);
        incoming_free(&in);
    }
    stop();
}

static void the_deadline_ends_a_request(void **state)
{
    (void)state;
    start();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .deadline_ms = 30});
    router_ask(&router, &(struct ask){.id = 2, .stream = 2, .deadline_ms = 40}); /* in the queue */
    expect_error(&router, 1, WIRE_ERROR_DEADLINE, "");
    expect_error(&router, 2, WIRE_ERROR_DEADLINE, "");
    stop();
}

static void failures_of_the_engine_are_translated(void **state)
{
    (void)state;
    static const struct {
        enum status st;
        enum wire_error_code code;
    } cases[] = {
        {STATUS_TIMEOUT, WIRE_ERROR_DEADLINE},    {STATUS_CANCELLED, WIRE_ERROR_CANCELLED},
        {STATUS_LIMIT, WIRE_ERROR_OVER_CAPACITY}, {STATUS_AGAIN, WIRE_ERROR_OVER_CAPACITY},
        {STATUS_INVALID, WIRE_ERROR_INVALID},     {STATUS_CORRUPT, WIRE_ERROR_INTERNAL},
        {STATUS_NO_MEMORY, WIRE_ERROR_INTERNAL},
    };
    start();
    for (uint8_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fake_engine_fail_next(cases[i].st);
        router_ask(&router, &(struct ask){.id = (uint8_t)(i + 1), .stream = i});
        expect_error(&router, i, cases[i].code, "as the test asked");
    }
    stop();
}

/* ---- cancels ---- */

static void cancel_ends_a_running_request(void **state)
{
    (void)state;
    struct reply reply = {0};
    start();
    fake_engine_hold();
    fake_engine_permit(3);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    router_collect_some(&router, 1, first_attempt, 3, &reply);
    router_cancel(&router, 1, "other"); /* another tenant's cancel is not ours */
    router_cancel(&router, 1, "acme");
    router_cancel(&router, 1, "acme");
    router_collect(&router, 1, first_attempt, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CANCELLED);
    assert_int_equal(reply.count, 3);
    assert_int_equal(fake_engine_cancels(), 1);
    reply_free(&reply);
    stop();
}

static void cancel_before_the_head_is_remembered_for_a_while(void **state)
{
    (void)state;
    struct reply reply = {0};
    bench.config.cancel_memory_ms = 400;
    start();
    router_cancel(&router, 1, "acme");
    control_is_read(&router);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    router_ask(&router, &(struct ask){.id = 1, .stream = 2, .tenant = "other", .sampling = {.tokens_max = 1}});
    expect_error(&router, 1, WIRE_ERROR_CANCELLED, "before");
    router_collect(&router, 2, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    for (uint32_t stream = 3; !reply.done; stream++) {
        reply_free(&reply);
        router_ask(&router, &(struct ask){.id = 1, .stream = stream, .sampling = {.tokens_max = 1}});
        router_collect(&router, stream, first_attempt, &reply);
        assert_true(stream < 100000);
    }
    reply_free(&reply);
    stop();
}

static void remembered_cancels_are_bounded(void **state)
{
    (void)state;
    uint8_t id[16] = {0};
    struct wire_message message = {.kind = WIRE_CANCEL};
    start();
    for (uint32_t i = 0; i < 5000; i++) { /* CANCELS_MAX is 4096 */
        memcpy(id, &i, sizeof i);
        message.cancel = (struct wire_cancel){.request_id = wire_span_of(id, 16), .tenant = wire_span_str("acme")};
        router_send(&router, CONTROL, &message);
    }
    control_is_read(&router);
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    struct ask ask = {.sampling = {.tokens_max = 1}};
    ask_messages(&ask, &router, &head, &body, &chat, request_id);
    size_t size = encode(&body, &data);
    for (uint32_t i = 0; i < 2; i++) { /* the oldest is forgotten, the newest known */
        struct reply reply = {0};
        uint32_t number = i ? 4999 : 0;
        memset(request_id, 0, sizeof request_id);
        memcpy(request_id, &number, sizeof number);
        head.head.stream = number;
        router_ask_raw(&router, &head, data, size);
        router_collect(&router, number, first_attempt, &reply);
        assert_int_equal(reply.done, i == 0);
        assert_int_equal(reply.error, i ? WIRE_ERROR_CANCELLED : WIRE_ERROR_UNKNOWN);
        reply_free(&reply);
    }
    free(data);
    stop();
}

/* ---- repeats ---- */

static void a_newer_attempt_gets_the_whole_stream(void **state)
{
    (void)state;
    struct reply old = {0}, new = {0};
    struct incoming in;
    const struct wire_attempt newer = {1, 0};
    start_two();
    fake_engine_hold();
    fake_engine_permit(5);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 9}});
    router_collect_some(&router, 1, first_attempt, 5, &old);
    expect_ack(&router, 1);
    router_ask(&other, &(struct ask){.id = 1, .stream = 77, .attempt = newer, .sampling = {.tokens_max = 9}});
    expect_ack(&other, 77);
    router_expect(&router, CONTROL, WIRE_SUPERSEDED, &in);
    assert_int_equal(in.message.stream_ref.attempt.client, 0);
    assert_int_equal(in.message.stream_ref.request_id.data[15], 1);
    incoming_free(&in);
    router_collect_some(&other, 77, newer, 5, &new);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&other, 77, newer, &new);
    assert_true(new.done);
    assert_int_equal(new.count, 9);
    assert_memory_equal(new.ids, old.ids, 5 * sizeof *old.ids);
    assert_memory_equal(new.text, old.text, old.text_size);
    assert_false(router_try(&router, DATA, 30, &in)); /* nothing more for the older one */
    assert_int_equal(fake_engine_cancels(), 0);       /* and it was generated once */
    reply_free(&old);
    reply_free(&new);
    stop_two();
}

static void repeats_that_are_not_newer(void **state)
{
    (void)state;
    struct incoming in;
    struct reply reply = {0};
    const struct wire_attempt current = {1, 1}, older = {1, 0};
    start_two();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .attempt = current, .sampling = {.tokens_max = 2}});
    expect_ack(&router, 1);
    /* the same again: ignored */
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .attempt = current, .sampling = {.tokens_max = 2}});
    /* an older one wakes up: told that it is over */
    router_ask(&other, &(struct ask){.id = 1, .stream = 5, .attempt = older, .sampling = {.tokens_max = 2}});
    router_expect(&other, CONTROL, WIRE_SUPERSEDED, &in);
    assert_int_equal(in.message.stream_ref.attempt.router, 0);
    incoming_free(&in);
    /* the same attempt from another router */
    router_ask(&other, &(struct ask){.id = 1, .stream = 6, .attempt = current, .sampling = {.tokens_max = 2}});
    router_collect(&other, 6, current, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CONFLICT);
    reply_free(&reply);
    /* other content under the same id, newer */
    router_ask(&router,
               &(struct ask){.id = 1, .stream = 7, .attempt = {9, 9}, .text = "other", .sampling = {.tokens_max = 2}});
    router_collect(&router, 7, (struct wire_attempt){9, 9}, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CONFLICT);
    reply_free(&reply);
    router_ask(
        &router,
        &(struct ask){.id = 1, .stream = 7, .attempt = {9, 9}, .conversation = "c", .sampling = {.tokens_max = 2}});
    router_collect(&router, 7, (struct wire_attempt){9, 9}, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CONFLICT);
    reply_free(&reply);
    /* the same id of another tenant: nobody else's business */
    router_ask(&router, &(struct ask){.id = 1, .stream = 8, .tenant = "other", .sampling = {.tokens_max = 2}});
    expect_ack(&router, 8);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, current, &reply);
    assert_true(reply.done);
    assert_int_equal(reply.count, 2);
    reply_free(&reply);
    router_collect(&router, 8, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    stop_two();
}

/* ---- connections ---- */

static void a_reconnect_loses_nothing(void **state)
{
    (void)state;
    struct reply before = {0}, after = {0};
    start();
    fake_engine_hold();
    fake_engine_permit(4);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 8}});
    router_collect_some(&router, 1, first_attempt, 4, &before);
    router_reconnect(&router, DATA);
    fake_engine_permit(FAKE_PERMITS_ALL); /* the rest comes while nobody is there */
    assert_true(bench_wait_streams(&bench, 0));
    router_lease(&router, DATA, 0); /* a lease alone re-binds */
    router_collect(&router, 1, first_attempt, &after);
    assert_true(after.done);
    assert_int_equal(after.count, 8);
    assert_memory_equal(after.ids, before.ids, 4 * sizeof *before.ids);
    reply_free(&before);
    reply_free(&after);
    /* and by HELLO, on both */
    fake_engine_hold();
    fake_engine_permit(1);
    router_ask(&router, &(struct ask){.id = 2, .stream = 2, .sampling = {.tokens_max = 2}});
    router_collect_some(&router, 2, first_attempt, 1, &before);
    router_reconnect(&router, CONTROL);
    router_reconnect(&router, DATA);
    router_hello(&router);
    expect_ack(&router, 2);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 2, first_attempt, &after);
    assert_true(after.done);
    assert_int_equal(after.count, 2);
    reply_free(&before);
    reply_free(&after);
    stop();
}

static void an_end_that_was_seen_is_not_sent_again(void **state)
{
    (void)state;
    struct incoming in;
    struct reply reply = {0};
    start();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 3}});
    router_collect(&router, 1, first_attempt, &reply);
    reply_free(&reply);
    router_ask(&router, &(struct ask){.id = 2, .stream = 2, .model = "gpt"});
    expect_error(&router, 2, WIRE_ERROR_UNKNOWN_MODEL, "");
    router_reconnect(&router, DATA); /* not echoed yet: both ends come again */
    router_lease(&router, DATA, 0);
    router_collect(&router, 1, first_attempt, &reply);
    assert_int_equal(reply.count, 3);
    reply_free(&reply);
    expect_error(&router, 2, WIRE_ERROR_UNKNOWN_MODEL, "");
    router_ask(&router, &(struct ask){.id = 3, .stream = 2, .model = "gpt"}); /* the number is free for the next */
    expect_error(&router, 2, WIRE_ERROR_UNKNOWN_MODEL, "");
    router_expect(&router, DATA, WIRE_LEASE, &in);
    router_lease(&router, DATA, in.message.lease.number);
    incoming_free(&in);
    router_lease(&router, CONTROL, 0);
    works(&router, 4);                     /* the echo was read: it came first */
    router_lease(&router, DATA, 1u << 20); /* an echo of what we never sent is no echo */
    router_reconnect(&router, DATA);
    router_lease(&router, DATA, 0);
    router_collect(&router, 1004, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    assert_false(router_try(&router, DATA, 50, &in));
    stop();
}

static void silence_cancels_and_a_lease_brings_the_session_back(void **state)
{
    (void)state;
    struct reply reply = {0};
    bench.config.lease_expiry_ms = 300;
    start();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    expect_ack(&router, 1);
    for (uint64_t end = clock_now_ms() + 600; clock_now_ms() < end;) { /* leases keep it, on either connection */
        struct incoming in;
        router_lease(&router, CONTROL, 0);
        router_expect(&router, CONTROL, WIRE_LEASE, &in);
        incoming_free(&in);
    }
    assert_int_equal(bench_streams(&bench), 1);
    assert_int_equal(fake_engine_cancels(), 0);
    assert_true(bench_wait_streams(&bench, 0));
    while (fake_engine_cancels() == 0)
        bench_streams(&bench);
    router_lease(&router, DATA, 0);
    router_lease(&router, CONTROL, 0);
    router_collect(&router, 1, first_attempt, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CANCELLED);
    assert_non_null(strstr(reply.detail, "lease"));
    reply_free(&reply);
    fake_engine_permit(FAKE_PERMITS_ALL);
    works(&router, 1); /* the same id again: a new stream */
    stop();
}

static void old_leases_do_not_keep_a_session(void **state)
{
    (void)state;
    bench.config.lease_expiry_ms = 200;
    start();
    fake_engine_hold();
    router_lease(&router, CONTROL, 0);
    router_lease(&router, CONTROL, 0);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    expect_ack(&router, 1);
    bool cancelled = false;
    for (uint64_t end = clock_now_ms() + WAIT_MS; clock_now_ms() < end && !cancelled;) {
        router.number[CONTROL] = 0; /* replays number 1 */
        router_lease(&router, CONTROL, 0);
        cancelled = bench_streams(&bench) == 0;
    }
    assert_true(cancelled);
    stop();
}

static void a_router_that_does_not_read_is_cut_off(void **state)
{
    (void)state;
    struct reply reply = {0};
    bench.config.slow_reader_ms = 200;
    start_two();
    fake_engine_text_bytes(50000);
    fake_engine_hold();
    fake_engine_permit(1000); /* 50 MB: more than all buffers on the way hold */
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 4000}});
    expect_ack(&router, 1);
    assert_true(bench_wait_streams(&bench, 0));
    fake_engine_text_bytes(0);
    fake_engine_permit(FAKE_PERMITS_ALL);
    works(&other, 2); /* others are served */
    router_collect(&router, 1, first_attempt, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_SLOW_READER);
    assert_true(reply.count > 0 && reply.count < 1000);
    reply_free(&reply);
    works(&router, 3);
    stop_two();
}

/* ---- drain ---- */

static void a_drain_finishes_what_runs(void **state)
{
    (void)state;
    struct incoming in;
    struct reply reply = {0};
    enum status st = STATUS_INTERNAL;
    start();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 5}});
    expect_ack(&router, 1);
    bench_drain(&bench);
    router_expect(&router, CONTROL, WIRE_GOAWAY, &in);
    assert_true(wire_span_equal(in.message.goaway.session, wire_span_of(bench.incarnation, 16)));
    incoming_free(&in);
    router_expect(&router, CONTROL, WIRE_LEASE, &in);
    assert_int_equal(in.message.lease.state, WIRE_LIFE_DRAINING);
    incoming_free(&in);
    router_ask(&router, &(struct ask){.id = 2, .stream = 2});
    router_collect(&router, 2, first_attempt, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_OVER_CAPACITY);
    assert_non_null(strstr(reply.detail, "draining"));
    assert_true(reply.retry_after_ms > 0);
    reply_free(&reply);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    assert_int_equal(reply.count, 5);
    reply_free(&reply);
    uint64_t begin = clock_now_ms();
    do { /* echo what comes, as a router does */
        router_expect(&router, DATA, WIRE_LEASE, &in);
        router_lease(&router, DATA, in.message.lease.number);
        incoming_free(&in);
    } while (bench_wait_state(&bench, WIRE_LIFE_DRAINING, NULL) == WIRE_LIFE_DRAINING && clock_now_ms() - begin < 5000);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_GONE, &st), WIRE_LIFE_GONE);
    assert_int_equal(st, STATUS_OK);
    assert_true(clock_now_ms() - begin < 900); /* by the echo, not by FLUSH_MS_MAX */
    stop();
}

static void a_drain_has_a_deadline(void **state)
{
    (void)state;
    bench.config.drain_deadline_ms = 100;
    start();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    expect_ack(&router, 1);
    bench_drain(&bench);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_GONE, NULL), WIRE_LIFE_GONE);
    assert_int_equal(bench_streams(&bench), 1);
    stop();
}

static void a_stop_with_open_streams_is_clean(void **state)
{
    (void)state;
    start();
    fake_engine_hold();
    for (uint8_t i = 1; i <= 8; i++)
        router_ask(&router, &(struct ask){.id = i, .stream = i});
    expect_ack(&router, 1);
    router_cancel(&router, 200, "acme");
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(hello_is_welcomed_on_both_connections, setup),
        cmocka_unit_test_setup(leases_carry_load_and_echo, setup),
        cmocka_unit_test_setup(a_hung_engine_shows_in_the_lease, setup),
        cmocka_unit_test_setup(a_router_that_comes_while_the_model_loads_is_told, setup),
        cmocka_unit_test_setup(a_model_that_cannot_be_loaded_ends_the_server, setup),
        cmocka_unit_test_setup(a_port_in_use_is_an_error, setup),
        cmocka_unit_test_setup(a_request_is_acknowledged_streamed_and_done, setup),
        cmocka_unit_test_setup(what_the_engine_needs_arrives, setup),
        cmocka_unit_test_setup(many_streams_of_two_routers, setup),
        cmocka_unit_test_setup(tokens_are_split_at_256_kib, setup),
        cmocka_unit_test_setup(another_incarnation_is_not_us, setup),
        cmocka_unit_test_setup(a_session_without_hello_is_refused, setup),
        cmocka_unit_test_setup(another_model_is_unknown, setup),
        cmocka_unit_test_setup(only_routers_are_served, setup),
        cmocka_unit_test_setup(a_stream_number_in_use_is_refused, setup),
        cmocka_unit_test_setup(malformed_frames_are_answered_and_the_connection_stays, setup),
        cmocka_unit_test_setup(wrong_frame_counts_are_answered, setup),
        cmocka_unit_test_setup(an_error_is_never_answered_with_an_error, setup),
        cmocka_unit_test_setup(answers_to_malformed_frames_are_rate_limited, setup),
        cmocka_unit_test_setup(truncated_frames_never_hurt, setup),
        cmocka_unit_test_setup(each_truncated_body_ends_in_one_error, setup),
        cmocka_unit_test_setup(bodies_that_break_a_rule, setup),
        cmocka_unit_test_setup(unsupported_fields_are_named, setup),
        cmocka_unit_test_setup(attach_and_drain_frames_are_unsupported, setup),
        cmocka_unit_test_setup(a_prompt_over_the_context_is_too_large, setup),
        cmocka_unit_test_setup(a_full_queue_is_over_capacity_with_a_hint, setup),
        cmocka_unit_test_setup(refusals_do_not_wait_for_the_engine, setup),
        cmocka_unit_test_setup(the_deadline_ends_a_request, setup),
        cmocka_unit_test_setup(failures_of_the_engine_are_translated, setup),
        cmocka_unit_test_setup(cancel_ends_a_running_request, setup),
        cmocka_unit_test_setup(cancel_before_the_head_is_remembered_for_a_while, setup),
        cmocka_unit_test_setup(remembered_cancels_are_bounded, setup),
        cmocka_unit_test_setup(a_newer_attempt_gets_the_whole_stream, setup),
        cmocka_unit_test_setup(repeats_that_are_not_newer, setup),
        cmocka_unit_test_setup(a_reconnect_loses_nothing, setup),
        cmocka_unit_test_setup(an_end_that_was_seen_is_not_sent_again, setup),
        cmocka_unit_test_setup(silence_cancels_and_a_lease_brings_the_session_back, setup),
        cmocka_unit_test_setup(old_leases_do_not_keep_a_session, setup),
        cmocka_unit_test_setup(a_router_that_does_not_read_is_cut_off, setup),
        cmocka_unit_test_setup(a_drain_finishes_what_runs, setup),
        cmocka_unit_test_setup(a_drain_has_a_deadline, setup),
        cmocka_unit_test_setup(a_stop_with_open_streams_is_clean, setup),
    };
    if (hash_setup() != STATUS_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
