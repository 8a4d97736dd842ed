/* server_link_test - connections that are lost, routers that fall silent or do not read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/probe.h"
#include "fake_engine.h"
#include "fake_router.h"
#include "server_fixture.h"

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

/* Nobody cancelled it: its router may send it on. What it released before may come first. */
static void expect_resend(struct router *from, uint32_t stream)
{
    struct incoming in;
    bool found;
    do {
        router_receive(from, DATA, true, &in);
        found = in.message.kind == WIRE_RESEND;
        assert_true(found || in.message.kind == WIRE_TOKENS || in.message.kind == WIRE_DONE);
        if (found)
            assert_int_equal(in.message.stream_ref.stream, stream);
        incoming_free(&in);
    } while (!found);
}

static void silence_cancels_and_a_lease_brings_the_session_back(void **state)
{
    (void)state;
    bench.config.lease_expiry_ms = 300;
    bench.config.orphan_ms = 1;
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
    expect_resend(&router, 1);
    fake_engine_permit(FAKE_PERMITS_ALL);
    works(&router, 1); /* the same id again: a new stream */
    stop();
}

static void old_leases_do_not_keep_a_session(void **state)
{
    (void)state;
    bench.config.lease_expiry_ms = 200;
    bench.config.orphan_ms = 1;
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

/* What a probe keeps from going out once goes out later: acknowledgement, tokens, the end, a lease. */
static void a_send_that_fails_is_tried_again(void **state)
{
    (void)state;
    struct reply reply = {0};
    if (probe_arm(
            "worker.accepted=fail,worker.tokens=fail,worker.tokens=fail@3,worker.done=fail,worker.lease=fail@5") ==
        STATUS_UNSUPPORTED)
        skip(); /* built without probes */
    start();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 50}});
    expect_ack(&router, 1);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 0, 50);
    works(&router, 2);
    reply_free(&reply);
    stop();
}

/* ---- orphans ---- */

/* Keeps one router's session while the other one is silent. */
static bool expired(struct router *alive, unsigned orphans)
{
    struct server_stats stats;
    router_lease(alive, CONTROL, 0);
    bench_stats(&bench, &stats);
    return stats.orphans == orphans;
}

static void an_orphan_runs_on_and_is_taken_over(void **state)
{
    (void)state;
    struct reply reply = {0};
    struct server_stats stats;
    const struct wire_attempt newer = {1, 0};
    bench.config.lease_expiry_ms = 300;
    bench.config.orphan_ms = 20000;
    start_two();
    fake_engine_hold();
    fake_engine_permit(3);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 9}});
    until(expired(&other, 1));
    fake_engine_permit(2);
    until(attach(&other, 1, "acme").released[0] == 5); /* nobody is there, and it runs */
    router_ask(&other, &(struct ask){.id = 1, .stream = 4, .attempt = newer, .sampling = {.tokens_max = 9}});
    router_collect_some(&other, 4, newer, 5, &reply);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&other, 4, newer, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 0, 9);
    assert_int_equal(fake_engine_cancels(), 0);
    bench_stats(&bench, &stats);
    assert_int_equal(stats.orphaned, 1);
    assert_int_equal(stats.orphans, 0);
    reply_free(&reply);
    stop_two();
}

static void an_orphan_goes_back_to_its_router(void **state)
{
    (void)state;
    struct reply before = {0}, after = {0};
    bench.config.lease_expiry_ms = 300;
    bench.config.orphan_ms = 20000;
    start_two();
    fake_engine_hold();
    fake_engine_permit(3);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 9}});
    router_collect_some(&router, 1, first_attempt, 3, &before);
    until(expired(&other, 1));
    router_lease(&router, DATA, 0); /* the same connection: what was on its way may have been dropped */
    router_lease(&router, CONTROL, 0);
    for (uint64_t end = clock_now_ms() + 100; clock_now_ms() < end;)
        assert_int_equal(bench_streams(&bench), 1);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, first_attempt, &after);
    assert_true(after.done);
    check_tokens(&after, 0, 9);
    assert_int_equal(fake_engine_cancels(), 0);
    reply_free(&before);
    reply_free(&after);
    stop_two();
}

/* When nobody came: those that run are cancelled, the finished ones are kept. */
static void orphans_are_given_up(void **state)
{
    (void)state;
    struct reply reply = {0};
    struct server_stats stats;
    bench.config.lease_expiry_ms = 200;
    bench.config.orphan_ms = 400;
    start_two();
    fake_engine_hold();
    fake_engine_permit(3);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 3}});
    router_ask(&router, &(struct ask){.id = 2, .stream = 2, .sampling = {.tokens_max = 3}});
    until(expired(&other, 1)); /* one has ended */
    uint64_t begin = clock_now_ms();
    until(expired(&other, 0));
    assert_in_range(clock_now_ms() - begin, 200, 15000);
    assert_int_equal(bench_streams(&bench), 0);
    until(fake_engine_cancels() == 1);
    bench_stats(&bench, &stats);
    assert_int_equal(stats.kept, 1);
    assert_int_equal(stats.cancelled, 1);
    assert_int_equal(stats.errors[WIRE_ERROR_CANCELLED], 1);
    struct attach_answer answer = attach(&other, 1, "acme");
    assert_true(answer.known && !answer.running && answer.released[0] == 3);
    assert_false(attach(&other, 2, "acme").known);
    router_lease(&router, DATA, 0); /* it comes back: what it had is not cancelled, it may go on elsewhere */
    expect_resend(&router, 2);
    const struct wire_attempt newer = {1, 0};
    router_ask(&other, &(struct ask){.id = 1, .stream = 4, .attempt = newer, .sampling = {.tokens_max = 3}});
    router_collect(&other, 4, newer, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 0, 3);
    reply_free(&reply);
    stop_two();
}

/* From the cancel to the engine's word that the work has stopped. */
static void cancels_are_timed(void **state)
{
    (void)state;
    struct server_stats stats;
    uint64_t counted = 0;
    start();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    expect_ack(&router, 1);
    fake_engine_stuck(true);
    uint64_t begin = clock_now_ms();
    router_cancel(&router, 1, "acme");
    until((bench_stats(&bench, &stats), stats.cancelled == 1));
    while (clock_now_ms() - begin < 60)
        (void)bench_streams(&bench);
    fake_engine_stuck(false);
    expect_error(&router, 1, WIRE_ERROR_CANCELLED, "");
    bench_stats(&bench, &stats);
    for (unsigned i = 0; i <= SERVER_CANCEL_BOUNDS; i++)
        counted += i < SERVER_CANCEL_BOUNDS && server_cancel_bounds[i] <= 0.025 ? 0 : stats.cancel_counts[i];
    assert_int_equal(counted, 1); /* over 25 ms */
    assert_true(stats.cancel_seconds > 0.025 && stats.cancel_seconds < 20);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_reconnect_loses_nothing, server_setup),
        cmocka_unit_test_setup(an_end_that_was_seen_is_not_sent_again, server_setup),
        cmocka_unit_test_setup(silence_cancels_and_a_lease_brings_the_session_back, server_setup),
        cmocka_unit_test_setup(old_leases_do_not_keep_a_session, server_setup),
        cmocka_unit_test_setup(a_router_that_does_not_read_is_cut_off, server_setup),
        cmocka_unit_test_setup(a_send_that_fails_is_tried_again, server_setup),
        cmocka_unit_test_setup(an_orphan_runs_on_and_is_taken_over, server_setup),
        cmocka_unit_test_setup(an_orphan_goes_back_to_its_router, server_setup),
        cmocka_unit_test_setup(orphans_are_given_up, server_setup),
        cmocka_unit_test_setup(cancels_are_timed, server_setup),
    };
    return server_run(tests, sizeof tests / sizeof *tests);
}
