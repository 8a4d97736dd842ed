/* server_drain_test - draining to leave, draining to stay, and stopping. */
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

/* ---- draining to stay ---- */

static void send_drain(struct router *from, const char *worker, uint32_t deadline_ms, bool cancel)
{
    struct wire_message message = {.kind = WIRE_DRAIN};
    message.drain = (struct wire_drain){.worker = wire_span_str(worker), .deadline_ms = deadline_ms, .cancel = cancel};
    router_send(from, CONTROL, &message);
}

/* The next DRAIN_STATUS in this state; what comes before it is dropped. */
static struct wire_drain_status expect_status(struct router *from, enum wire_life state)
{
    for (unsigned i = 0; i < 1000; i++) {
        struct incoming in;
        router_receive(from, CONTROL, true, &in);
        bool is_status = in.message.kind == WIRE_DRAIN_STATUS;
        struct wire_drain_status status = in.message.drain_status;
        if (is_status)
            assert_true(wire_span_equal(status.worker, wire_span_str("worker-a")));
        incoming_free(&in);
        if (is_status && status.state == state)
            return status;
    }
    fail_msg("never %s", wire_life_name(state));
    return (struct wire_drain_status){.streams = 0};
}

static void an_operators_drain_ends_in_safe_to_delete_and_can_be_taken_back(void **state)
{
    (void)state;
    struct incoming in;
    struct reply reply = {0};
    start_two();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 5}});
    expect_ack(&router, 1);
    send_drain(&other, "worker-a", 0, false);
    router_expect(&other, CONTROL, WIRE_GOAWAY, &in);
    incoming_free(&in);
    assert_int_equal(expect_status(&other, WIRE_LIFE_DRAINING).streams, 1);
    assert_int_equal(expect_status(&other, WIRE_LIFE_DRAINING).streams, 1); /* with each lease */
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_DRAINING, NULL), WIRE_LIFE_DRAINING);
    router_ask(&other, &(struct ask){.id = 2, .stream = 2});
    expect_error(&other, 2, WIRE_ERROR_OVER_CAPACITY, "draining");
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    struct wire_drain_status status = expect_status(&other, WIRE_LIFE_SAFE_TO_DELETE);
    assert_int_equal(status.streams, 0);
    assert_int_equal(status.bytes_left, 0);
    assert_int_equal(status.abandoned, 0);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_SAFE_TO_DELETE, NULL), WIRE_LIFE_SAFE_TO_DELETE);
    router_ask(&other, &(struct ask){.id = 3, .stream = 3});
    expect_error(&other, 3, WIRE_ERROR_OVER_CAPACITY, "draining");
    router_expect(&router, CONTROL, WIRE_GOAWAY, &in); /* and it was never told how it goes, as it did not ask */
    incoming_free(&in);
    assert_false(router_try(&router, CONTROL, 60, &in));
    send_drain(&other, "worker-a", 0, true);
    for (struct router *one = &router; one; one = one == &router ? &other : NULL) {
        router_expect(one, DATA, WIRE_WELCOME, &in);
        assert_int_equal(in.message.welcome.state, WIRE_LIFE_READY);
        incoming_free(&in);
    }
    (void)expect_status(&other, WIRE_LIFE_READY);
    works(&other, 4);
    do { /* an acknowledgement, and no status any more */
        assert_true(router_try(&other, CONTROL, WAIT_MS, &in));
        assert_int_equal(in.message.kind, WIRE_ACK);
        incoming_free(&in);
    } while (router_try(&other, CONTROL, 60, &in));
    stop_two();
}

static void while_draining_what_is_here_is_served(void **state)
{
    (void)state;
    struct reply reply = {0};
    const uint32_t two = 2,
                   ids[2] = {fake_engine_token(SERVER_PROMPT_TOKENS, 0), fake_engine_token(SERVER_PROMPT_TOKENS, 1)};
    const struct wire_attempt newer = {1, 0};
    start_two();
    works(&router, 1);
    fake_engine_hold();
    fake_engine_permit(3);
    struct ask ask = {.id = 2, .stream = 2, .sampling = {.tokens_max = 5}};
    router_ask(&router, &ask);
    until(attach(&router, 2, "acme").released[0] == 3);
    send_drain(&other, "worker-a", 0, false);
    (void)expect_status(&other, WIRE_LIFE_DRAINING);
    ask.attempt = newer; /* a resume of what runs */
    ask.resume_counts = &two;
    ask.resume_ids = ids;
    router_ask(&other, &ask);
    router_collect_some(&other, 2, newer, 3, &reply);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&other, 2, newer, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 0, 5);
    reply_free(&reply);
    (void)expect_status(&other, WIRE_LIFE_SAFE_TO_DELETE);
    assert_true(attach(&other, 1, "acme").known); /* a repeat of what has ended */
    router_ask(&other, &(struct ask){.id = 1, .stream = 3, .attempt = newer, .sampling = {.tokens_max = 3}});
    router_collect(&other, 3, newer, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    ask.id = 9; /* a resume of what is not here is new */
    ask.stream = 9;
    ask.attempt = first_attempt;
    router_ask(&other, &ask);
    expect_error(&other, 9, WIRE_ERROR_OVER_CAPACITY, "draining");
    stop_two();
}

static void what_runs_at_the_deadline_runs_on(void **state)
{
    (void)state;
    struct reply reply = {0};
    start_two();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 5}});
    expect_ack(&router, 1);
    send_drain(&other, "worker-a", 100, false);
    assert_int_equal(expect_status(&other, WIRE_LIFE_SAFE_TO_DELETE).abandoned, 1);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 0, 5);
    reply_free(&reply);
    stop_two();
}

static void leaving_after_an_operators_drain(void **state)
{
    (void)state;
    start_two();
    send_drain(&other, "worker-a", 0, false);
    (void)expect_status(&other, WIRE_LIFE_SAFE_TO_DELETE);
    router_close(&other); /* whoever drained it need not stay */
    router_connect(&other, &bench, 3);
    bench_drain(&bench);
    send_drain(&other, "worker-a", 0, true); /* too late, and from a stranger */
    enum status st = STATUS_INTERNAL;
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_GONE, &st), WIRE_LIFE_GONE);
    assert_int_equal(st, STATUS_OK);
    stop_two();
}

static void leaving_is_not_taken_back(void **state)
{
    (void)state;
    struct reply reply = {0};
    start_two();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 5}});
    expect_ack(&router, 1);
    bench_drain(&bench);
    send_drain(&router, "worker-a", 0, true);
    for (unsigned i = 0; i < 3; i++)
        (void)expect_status(&router, WIRE_LIFE_DRAINING);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_GONE, NULL), WIRE_LIFE_GONE);
    stop_two();
}

static void who_may_drain_whom(void **state)
{
    (void)state;
    start();
    send_drain(&router, "worker-b", 0, false);
    expect_connection_error(&router, CONTROL, WIRE_ERROR_INVALID, "this worker is worker-a");
    router_connect(&other, &bench, 9);
    send_drain(&other, "worker-a", 0, false);
    expect_connection_error(&other, CONTROL, WIRE_ERROR_INVALID, "HELLO");
    works(&router, 1);
    stop_two();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_drain_finishes_what_runs, server_setup),
        cmocka_unit_test_setup(a_drain_has_a_deadline, server_setup),
        cmocka_unit_test_setup(a_stop_with_open_streams_is_clean, server_setup),
        cmocka_unit_test_setup(an_operators_drain_ends_in_safe_to_delete_and_can_be_taken_back, server_setup),
        cmocka_unit_test_setup(while_draining_what_is_here_is_served, server_setup),
        cmocka_unit_test_setup(what_runs_at_the_deadline_runs_on, server_setup),
        cmocka_unit_test_setup(leaving_after_an_operators_drain, server_setup),
        cmocka_unit_test_setup(leaving_is_not_taken_back, server_setup),
        cmocka_unit_test_setup(who_may_drain_whom, server_setup),
    };
    return server_run(tests, sizeof tests / sizeof *tests);
}
