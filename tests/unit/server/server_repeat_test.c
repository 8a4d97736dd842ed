/* server_repeat_test - cancels, repeats of what runs or has ended, and questions about it. */
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
    router_ask(&other, &(struct ask){.id = 1, .stream = 8, .tenant = "other", .sampling = {.tokens_max = 2}});
    expect_ack(&other, 8);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, current, &reply);
    assert_true(reply.done);
    assert_int_equal(reply.count, 2);
    reply_free(&reply);
    router_collect(&other, 8, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    stop_two();
}

/* ---- a router that was frozen ---- */

static void a_late_cancel_is_not_for_a_newer_attempt(void **state)
{
    (void)state;
    struct reply reply = {0};
    const struct wire_attempt old = {1, 3}, newer = {2, 0};
    start_two();
    fake_engine_hold();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .attempt = old});
    expect_ack(&router, 1);
    router_ask(&other, &(struct ask){.id = 1, .stream = 1, .attempt = newer});
    expect_ack(&other, 1);
    router_cancel_attempt(&router, 1, old); /* it wakes up and gives its client up */
    assert_true(attach(&router, 1, "acme").running);
    assert_int_equal(fake_engine_cancels(), 0);
    router_cancel_attempt(&other, 1, newer);
    router_collect(&other, 1, newer, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CANCELLED);
    assert_int_equal(fake_engine_cancels(), 1);
    reply_free(&reply);
    stop_two();
}

static void a_remembered_cancel_is_for_its_attempts(void **state)
{
    (void)state;
    const struct {
        struct wire_attempt cancel, ask;
        bool refused;
    } cases[] = {
        {{0, 0}, {7, 7}, true},  {{2, 5}, {2, 5}, true},  {{2, 5}, {1, 9}, true},
        {{2, 5}, {2, 6}, false}, {{2, 5}, {3, 0}, false},
    };
    start();
    for (uint8_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct reply reply = {0};
        router_cancel_attempt(&router, i, cases[i].cancel);
        router_cancel_attempt(&router, i, (struct wire_attempt){1, 0}); /* an older one takes nothing back */
        control_is_read(&router);
        router_ask(&router,
                   &(struct ask){.id = i, .stream = i, .attempt = cases[i].ask, .sampling = {.tokens_max = 1}});
        router_collect(&router, i, cases[i].ask, &reply);
        assert_int_equal(reply.error, cases[i].refused ? WIRE_ERROR_CANCELLED : WIRE_ERROR_UNKNOWN);
        reply_free(&reply);
        struct incoming in;
        while (router_try(&router, CONTROL, 0, &in))
            incoming_free(&in);
    }
    stop();
}

/* Of a client that gave its router up, through another one: what that router has here ends, and what it sends later. */
static void a_cancel_by_another_router_is_for_good(void **state)
{
    (void)state;
    struct reply reply = {0};
    const struct wire_attempt first = {1, 3}, again = {1, 4}, newer = {2, 0};
    start_two();
    fake_engine_hold();
    fake_engine_permit(2);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .attempt = first});
    router_collect_some(&router, 1, first, 2, &reply);
    router_cancel_attempt(&other, 1, (struct wire_attempt){1, UINT32_MAX});
    router_collect(&router, 1, first, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CANCELLED);
    reply_free(&reply);
    router_ask(&router, &(struct ask){.id = 1, .stream = 2, .attempt = again});
    router_collect(&router, 2, again, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CANCELLED);
    assert_non_null(strstr(reply.detail, "before"));
    reply_free(&reply);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_ask(&other, &(struct ask){.id = 1, .stream = 1, .attempt = newer, .sampling = {.tokens_max = 1}});
    router_collect(&other, 1, newer, &reply);
    assert_true(reply.done);
    assert_int_equal(fake_engine_cancels(), 1);
    reply_free(&reply);
    stop_two();
}

/* Until the engine has stopped a cancelled request, its end is still due, but nobody can take it over. */
static void a_cancelled_request_may_come_again(void **state)
{
    (void)state;
    struct reply reply = {0};
    const struct wire_attempt first = {1, 0}, second = {2, 0};
    start_two();
    fake_engine_stuck(true);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .attempt = first, .sampling = {.tokens_max = 3}});
    assert_true(bench_wait_streams(&bench, 1));
    router_cancel_attempt(&router, 1, first);
    assert_false(attach(&router, 1, "acme").known);
    router_ask(&other, &(struct ask){.id = 1, .stream = 1, .attempt = second, .sampling = {.tokens_max = 3}});
    assert_true(bench_wait_streams(&bench, 2));
    fake_engine_stuck(false);
    router_collect(&router, 1, first, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CANCELLED);
    reply_free(&reply);
    router_collect(&other, 1, second, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    stop_two();
}

/* ---- attach ---- */

static void attach_tells_what_is_here(void **state)
{
    (void)state;
    struct server_stats stats;
    struct wire_sampling two = {.tokens_max = 9, .choices = 2};
    start_two();
    assert_false(attach(&router, 1, "acme").known);
    fake_engine_hold();
    fake_engine_permit(4);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = two});
    struct attach_answer answer;
    until((answer = attach(&other, 1, "acme"), answer.known && answer.released[0] == 4));
    assert_true(answer.running);
    assert_int_equal(answer.choices, 2);
    assert_int_equal(answer.released[1], 4);
    assert_false(attach(&other, 1, "other").known);
    fake_engine_permit(FAKE_PERMITS_ALL);
    assert_true(bench_wait_streams(&bench, 0));
    answer = attach(&other, 1, "acme");
    assert_true(answer.known);
    assert_false(answer.running);
    assert_int_equal(answer.released[0], 9);
    assert_int_equal(answer.released[1], 8);
    assert_int_equal(bench_streams(&bench), 0); /* a question changes nothing */
    router_close(&other);
    router_connect(&other, &bench, 9); /* a stranger may ask too */
    assert_true(attach(&other, 1, "acme").known);
    bench_stats(&bench, &stats);
    assert_true(stats.attached >= 3);
    stop_two();
}

/* ---- what has ended ---- */

static void generate(struct router *from, uint8_t id, uint32_t stream, struct wire_attempt attempt, unsigned tokens)
{
    struct reply reply = {0};
    router_ask(from, &(struct ask){.id = id, .stream = stream, .attempt = attempt, .sampling = {.tokens_max = tokens}});
    router_collect(from, stream, attempt, &reply);
    if (!reply.done)
        fail_msg("%s: %s", wire_error_name(reply.error), reply.detail);
    check_tokens(&reply, 0, tokens);
    assert_int_equal(reply.info.released, tokens);
    assert_int_equal(reply.info.prompt_tokens, SERVER_PROMPT_TOKENS);
    reply_free(&reply);
}

static void a_finished_request_is_not_generated_again(void **state)
{
    (void)state;
    struct reply reply = {0};
    struct incoming in;
    struct server_stats stats;
    start_two();
    generate(&router, 1, 1, first_attempt, 20);
    generate(&other, 1, 5, (struct wire_attempt){1, 0}, 20); /* not echoed yet */
    router_echo(&other);
    until((bench_stats(&bench, &stats), stats.kept == 1));
    assert_true(stats.kept_bytes > 0);
    generate(&router, 1, 2, (struct wire_attempt){1, 1}, 20); /* seen by everybody, and kept */
    bench_stats(&bench, &stats);
    assert_int_equal(stats.kept, 0); /* owed to a router again */
    assert_int_equal(stats.kept_bytes, 0);
    router_echo(&router);
    until((bench_stats(&bench, &stats), stats.kept == 1));
    generate(&router, 1, 3, (struct wire_attempt){1, 1}, 20); /* the same attempt, when all is settled */
    router_ask(&other, &(struct ask){.id = 1, .stream = 6, .attempt = {1, 0}, .sampling = {.tokens_max = 20}});
    do {
        router_receive(&other, CONTROL, true, &in);
        bool superseded = in.message.kind == WIRE_SUPERSEDED;
        incoming_free(&in);
        if (superseded)
            break;
    } while (true);
    router_ask(&other, &(struct ask){.id = 1, .stream = 7, .attempt = {2, 0}, .sampling = {.tokens_max = 21}});
    router_collect(&other, 7, (struct wire_attempt){2, 0}, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CONFLICT);
    bench_stats(&bench, &stats);
    assert_int_equal(stats.done, 1); /* once */
    assert_int_equal(stats.tokens, 20);
    assert_int_equal(stats.superseded, 3);
    reply_free(&reply);
    stop_two();
}

static void what_has_failed_is_generated_again(void **state)
{
    (void)state;
    struct server_stats stats;
    start_two();
    fake_engine_fail_next(STATUS_CORRUPT);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 4}});
    expect_error(&router, 1, WIRE_ERROR_INTERNAL, "");
    assert_false(attach(&other, 1, "acme").known);
    generate(&other, 1, 1, (struct wire_attempt){1, 0}, 4);
    bench_stats(&bench, &stats);
    assert_int_equal(stats.done, 1);
    assert_int_equal(stats.errors[WIRE_ERROR_INTERNAL], 1);
    stop_two();
}

static void finished_requests_are_kept_for_a_while(void **state)
{
    (void)state;
    struct server_stats stats;
    bench.config.keep_finished_ms = 150;
    start_two();
    generate(&router, 1, 1, first_attempt, 4);
    router_echo(&router);
    until((bench_stats(&bench, &stats), stats.kept == 1));
    uint64_t begin = clock_now_ms();
    until((bench_stats(&bench, &stats), stats.kept == 0));
    assert_in_range(clock_now_ms() - begin, 100, 15000);
    assert_false(attach(&other, 1, "acme").known);
    generate(&other, 1, 1, (struct wire_attempt){1, 0}, 4);
    bench_stats(&bench, &stats);
    assert_int_equal(stats.done, 2);
    stop_two();
}

/* Each reply of 100 tokens of 200 bytes takes 20 KB and some. */
static void what_is_kept_is_bounded(void **state)
{
    (void)state;
    struct server_stats stats;
    bench.config.keep_finished_bytes = 100000;
    start_two();
    fake_engine_text_bytes(200);
    for (uint8_t i = 1; i <= 12; i++) {
        generate(&router, i, i, first_attempt, 100);
        router_echo(&router);
        until((bench_stats(&bench, &stats),
               stats.reply_bytes == 0 && attach(&router, i, "acme").known && stats.kept == (i < 4 ? i : 4u)));
        assert_true(stats.kept_bytes <= 100000);
    }
    assert_true(stats.kept_bytes > 80000);
    assert_int_equal(stats.reply_bytes, 0); /* takes nothing from those that run */
    for (uint8_t i = 1; i <= 12; i++)
        assert_int_equal(attach(&router, i, "acme").known, i > 8); /* the oldest went first */
    stop_two();
}

static void a_router_that_never_echoes_is_bounded_too(void **state)
{
    (void)state;
    struct server_stats stats;
    start();
    for (uint32_t i = 0; i < 300; i++) { /* TOLD_MAX is 256 */
        struct reply reply = {0};
        router_ask(&router, &(struct ask){.id = (uint8_t)(i % 250),
                                          .stream = i,
                                          .tenant = i < 250 ? "acme" : "more",
                                          .sampling = {.tokens_max = 1}});
        router_collect(&router, i, first_attempt, &reply);
        assert_true(reply.done);
        reply_free(&reply);
    }
    bench_stats(&bench, &stats);
    assert_true(stats.kept >= 44);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(cancel_ends_a_running_request, server_setup),
        cmocka_unit_test_setup(cancel_before_the_head_is_remembered_for_a_while, server_setup),
        cmocka_unit_test_setup(remembered_cancels_are_bounded, server_setup),
        cmocka_unit_test_setup(a_newer_attempt_gets_the_whole_stream, server_setup),
        cmocka_unit_test_setup(repeats_that_are_not_newer, server_setup),
        cmocka_unit_test_setup(a_late_cancel_is_not_for_a_newer_attempt, server_setup),
        cmocka_unit_test_setup(a_remembered_cancel_is_for_its_attempts, server_setup),
        cmocka_unit_test_setup(a_cancel_by_another_router_is_for_good, server_setup),
        cmocka_unit_test_setup(a_cancelled_request_may_come_again, server_setup),
        cmocka_unit_test_setup(attach_tells_what_is_here, server_setup),
        cmocka_unit_test_setup(a_finished_request_is_not_generated_again, server_setup),
        cmocka_unit_test_setup(what_has_failed_is_generated_again, server_setup),
        cmocka_unit_test_setup(finished_requests_are_kept_for_a_while, server_setup),
        cmocka_unit_test_setup(what_is_kept_is_bounded, server_setup),
        cmocka_unit_test_setup(a_router_that_never_echoes_is_bounded_too, server_setup),
    };
    return server_run(tests, sizeof tests / sizeof *tests);
}
