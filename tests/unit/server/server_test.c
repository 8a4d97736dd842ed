/* server_test - what routers see of a worker: hello and leases, requests, who is meant, what the engine refuses. The
 * engine is the fake one, so that a request can be held at any point; server_engine_test.c has the real one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "fake_engine.h"
#include "fake_router.h"
#include "server_fixture.h"

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

/* ACK of a stream, once more if need be, until it says `started`. */
static void expect_started(uint32_t stream)
{
    for (bool started = false; !started;) {
        struct incoming in;
        router_expect(&router, CONTROL, WIRE_ACK, &in);
        assert_int_equal(in.message.stream_ref.stream, stream);
        started = in.message.stream_ref.started;
        incoming_free(&in);
    }
}

/* The word that a request is computed is out before the step that computes it goes on; who waits is not said to be. */
static void a_start_is_told_before_the_step(void **state)
{
    (void)state;
    struct incoming in;
    struct reply reply = {0};
    start();
    fake_engine_tell_starts();
    fake_engine_stuck_at_start(true);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 3}});
    expect_started(1); /* while the step stands still */
    router_reconnect(&router, CONTROL);
    router_reconnect(&router, DATA);
    router_hello(&router);
    router_expect(&router, CONTROL, WIRE_ACK, &in); /* it may have been lost with the link: once more */
    assert_true(in.message.stream_ref.started);
    incoming_free(&in);
    fake_engine_hold();
    fake_engine_stuck_at_start(false);
    router_ask(&router, &(struct ask){.id = 2, .stream = 2, .sampling = {.tokens_max = 3}, .loss_count = 1});
    router_expect(&router, CONTROL, WIRE_ACK, &in);
    assert_int_equal(in.message.stream_ref.stream, 2);
    assert_false(in.message.stream_ref.started);
    incoming_free(&in);
    assert_false(router_try(&router, CONTROL, 100, &in));
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    expect_started(2);
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
    struct ask ask = {.id = 3,
                      .stream = 1,
                      .priority = -7,
                      .loss_count = 1,
                      .deadline_ms = 5000,
                      .sampling = {.tokens_max = 1, .temperature = 0.25f}};
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
    assert_true(last.apart);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(hello_is_welcomed_on_both_connections, server_setup),
        cmocka_unit_test_setup(leases_carry_load_and_echo, server_setup),
        cmocka_unit_test_setup(a_hung_engine_shows_in_the_lease, server_setup),
        cmocka_unit_test_setup(a_router_that_comes_while_the_model_loads_is_told, server_setup),
        cmocka_unit_test_setup(a_model_that_cannot_be_loaded_ends_the_server, server_setup),
        cmocka_unit_test_setup(a_port_in_use_is_an_error, server_setup),
        cmocka_unit_test_setup(a_request_is_acknowledged_streamed_and_done, server_setup),
        cmocka_unit_test_setup(a_start_is_told_before_the_step, server_setup),
        cmocka_unit_test_setup(what_the_engine_needs_arrives, server_setup),
        cmocka_unit_test_setup(many_streams_of_two_routers, server_setup),
        cmocka_unit_test_setup(tokens_are_split_at_256_kib, server_setup),
        cmocka_unit_test_setup(another_incarnation_is_not_us, server_setup),
        cmocka_unit_test_setup(a_session_without_hello_is_refused, server_setup),
        cmocka_unit_test_setup(another_model_is_unknown, server_setup),
        cmocka_unit_test_setup(only_routers_are_served, server_setup),
        cmocka_unit_test_setup(a_stream_number_in_use_is_refused, server_setup),
        cmocka_unit_test_setup(a_prompt_over_the_context_is_too_large, server_setup),
        cmocka_unit_test_setup(a_full_queue_is_over_capacity_with_a_hint, server_setup),
        cmocka_unit_test_setup(refusals_do_not_wait_for_the_engine, server_setup),
        cmocka_unit_test_setup(the_deadline_ends_a_request, server_setup),
        cmocka_unit_test_setup(failures_of_the_engine_are_translated, server_setup),
    };
    return server_run(tests, sizeof tests / sizeof *tests);
}
