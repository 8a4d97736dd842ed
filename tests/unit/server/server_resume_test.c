/* server_resume_test - requests that go on behind tokens released elsewhere, and what a worker says about its numbers.
 */
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

#define IDS_MAX 2000

static uint8_t same_numbers[32], other_numbers[32];

static int setup(void **state)
{
    memset(same_numbers, 0x22, sizeof same_numbers); /* as the fake engine has them */
    memset(other_numbers, 0x23, sizeof other_numbers);
    return server_setup(state);
}

/* The first counts[c] tokens of each choice of the reply to "hello", one choice after the other. */
static const uint32_t *ids_of(const uint32_t *counts, unsigned choices)
{
    static uint32_t ids[IDS_MAX];
    unsigned at = 0;
    for (unsigned c = 0; c < choices; c++)
        for (uint32_t i = 0; i < counts[c]; i++)
            ids[at++] = fake_engine_token(SERVER_PROMPT_TOKENS + c, i);
    return ids;
}

/* Reads until the stream has ended well. next: of each choice, what is expected and then what it came to. */
static struct wire_done collect_choices(struct router *from, uint32_t stream, uint32_t *next)
{
    struct wire_done done = {.stream = 0};
    for (bool ended = false; !ended;) {
        struct incoming in;
        struct wire_tokens_cursor cursor = {0};
        struct wire_tokens_row row;
        router_receive(from, DATA, true, &in);
        while (in.message.kind == WIRE_TOKENS && wire_tokens_next(&in.message.tokens, &cursor, &row)) {
            if (row.stream != stream)
                continue;
            assert_int_equal(row.first, next[row.choice]);
            for (uint32_t i = 0; i < row.count; i++)
                assert_int_equal(wire_u32_at(row.ids, i),
                                 fake_engine_token(SERVER_PROMPT_TOKENS + row.choice, next[row.choice]++));
        }
        if (in.message.kind == WIRE_ERROR)
            fail_msg("%.*s", (int)in.message.error.detail.size, (const char *)in.message.error.detail.data);
        ended = in.message.kind == WIRE_DONE && in.message.done.stream == stream;
        if (ended)
            done = in.message.done;
        incoming_free(&in);
    }
    return done; /* its spans are not valid any more */
}

static void a_worker_says_what_it_can(void **state)
{
    (void)state;
    start();
    for (uint32_t capabilities = 0; capabilities <= 15; capabilities += 15) {
        struct incoming in;
        struct wire_message hello = {.kind = WIRE_HELLO};
        hello.hello = (struct wire_hello){.version_min = 1,
                                          .version_max = 1,
                                          .session = wire_span_of(router.session, 16),
                                          .role = WIRE_ROLE_ROUTER,
                                          .connection = WIRE_CONNECTION_CONTROL,
                                          .capabilities = capabilities};
        router_send(&router, CONTROL, &hello);
        router_expect(&router, CONTROL, WIRE_WELCOME, &in);
        assert_int_equal(in.message.welcome.capabilities, 31);
        assert_int_equal(in.message.welcome.limits.stream_credit_tokens, capabilities ? 512 : 0);
        incoming_free(&in);
    }
    stop();
}

static void a_resume_goes_on_behind_what_was_released(void **state)
{
    (void)state;
    struct reply reply = {.first = 4};
    struct incoming in;
    struct server_stats stats;
    const uint32_t four = 4;
    start();
    router_ask(&router, &(struct ask){.id = 1,
                                      .stream = 1,
                                      .resume_counts = &four,
                                      .resume_ids = ids_of(&four, 1),
                                      .numerics_id = same_numbers,
                                      .sampling = {.tokens_max = 9}});
    router_expect(&router, CONTROL, WIRE_ACK, &in);
    assert_true(wire_span_equal(in.message.stream_ref.numerics_id, wire_span_of(same_numbers, 32)));
    incoming_free(&in);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 4, 5);
    assert_int_equal(reply.info.released, 9); /* totals have what was resumed */
    assert_int_equal(reply.info.reply_tokens, 9);
    assert_false(reply.info.inexact);
    bench_stats(&bench, &stats);
    assert_int_equal(stats.resumed, 1);
    assert_int_equal(stats.tokens, 5);
    assert_int_equal(stats.done, 1);
    reply_free(&reply);
    stop();
}

static void each_choice_goes_on_from_its_own_place(void **state)
{
    (void)state;
    const uint32_t cases[][2] = {{3, 1}, {0, 5}, {8, 0}, {0, 0}, {9, 8}};
    start();
    for (uint8_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t next[2] = {cases[i][0], cases[i][1]};
        router_ask(&router, &(struct ask){.id = (uint8_t)(i + 1),
                                          .stream = i,
                                          .resume_counts = cases[i],
                                          .resume_ids = ids_of(cases[i], 2),
                                          .numerics_id = same_numbers,
                                          .sampling = {.tokens_max = 9, .choices = 2}});
        struct wire_done done = collect_choices(&router, i, next);
        assert_int_equal(next[0], 9);
        assert_int_equal(next[1], 8);
        assert_int_equal(done.released, 17);
        assert_int_equal(done.reply_tokens, 17);
    }
    stop();
}

static void a_resume_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    const uint32_t counts[3] = {1, 1, 1}, wrong[1] = {4095};
    start();
    struct ask ask = {.id = 1, .stream = 1, .resume_counts = counts, .resume_ids = ids_of(counts, 3)};
    ask.sampling = (struct wire_sampling){.tokens_max = 9, .choices = 3};
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    ask_messages(&ask, &router, &head, &body, &chat, request_id);
    body.body.sampling.choices = 2;
    size_t size = encode(&body, &data);
    router_ask_raw(&router, &head, data, size);
    free(data);
    expect_error(&router, 1, WIRE_ERROR_INVALID, "3 counts for 2 choices");
    ask = (struct ask){.id = 2, .stream = 2, .resume_counts = counts, .resume_ids = wrong};
    router_ask(&router, &ask);
    expect_error(&router, 2, WIRE_ERROR_INVALID, "token 0 of choice 0");
    works(&router, 3);
    stop();
}

static void other_numbers_are_not_exact(void **state)
{
    (void)state;
    const uint32_t two = 2, none = 0;
    static const struct {
        bool other, allowed, resumed, refused, inexact;
    } cases[] = {
        {true, false, true, true, false},  {true, true, true, false, true},    {false, false, true, false, false},
        {false, true, true, false, false}, {true, false, false, false, false},
    };
    start();
    for (uint8_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct reply reply = {.first = cases[i].resumed ? 2 : 0};
        router_ask(&router, &(struct ask){.id = (uint8_t)(i + 1),
                                          .stream = i,
                                          .resume_counts = cases[i].resumed ? &two : &none,
                                          .resume_ids = ids_of(&two, 1),
                                          .numerics_id = cases[i].other ? other_numbers : same_numbers,
                                          .inexact_allowed = cases[i].allowed,
                                          .sampling = {.tokens_max = 4}});
        router_collect(&router, i, first_attempt, &reply);
        assert_int_equal(reply.error, cases[i].refused ? WIRE_ERROR_NOT_EXACT : WIRE_ERROR_UNKNOWN);
        assert_int_equal(reply.done && reply.info.inexact, cases[i].inexact);
        if (reply.done)
            check_tokens(&reply, reply.first, 4 - reply.first);
        reply_free(&reply);
    }
    stop();
}

/* A token sets 88 bytes aside. */
static void room_is_set_aside_for_what_still_comes(void **state)
{
    (void)state;
    struct reply reply = {.first = 950};
    const uint32_t counts = 950;
    bench.config.reply_bytes_max = 100 * 88;
    start();
    struct ask ask = {.id = 1, .stream = 1, .sampling = {.tokens_max = 1000}};
    router_ask(&router, &ask);
    expect_error(&router, 1, WIRE_ERROR_TOO_LARGE, "ask for fewer");
    ask.resume_counts = &counts;
    ask.resume_ids = ids_of(&counts, 1);
    router_ask(&router, &ask);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 950, 50);
    reply_free(&reply);
    stop();
}

/* A stream that was resumed never had the text of what came before: who has all of that takes it over, who lacks some
 * starts a new one from where it stands. */
static void a_repeat_of_a_resumed_stream(void **state)
{
    (void)state;
    struct reply reply = {.first = 5}, again = {.first = 5}, less = {.first = 3};
    struct incoming in;
    const uint32_t five = 5, six = 6, three = 3;
    start_two();
    fake_engine_hold();
    fake_engine_permit(2);
    struct ask ask = {.id = 1, .stream = 1, .resume_counts = &five, .resume_ids = ids_of(&five, 1)};
    ask.sampling.tokens_max = 12;
    router_ask(&router, &ask);
    router_collect_some(&router, 1, first_attempt, 2, &reply);
    expect_ack(&router, 1);
    ask.attempt = (struct wire_attempt){1, 0}; /* has 6 of them */
    ask.resume_counts = &six;
    ask.resume_ids = ids_of(&six, 1);
    router_ask(&other, &ask);
    router_collect_some(&other, 1, ask.attempt, 2, &again);
    check_tokens(&again, 5, 2);
    assert_int_equal(fake_engine_cancels(), 0);
    router_expect(&router, CONTROL, WIRE_SUPERSEDED, &in);
    incoming_free(&in);
    expect_ack(&other, 1);
    ask.attempt = (struct wire_attempt){2, 0}; /* has 3 of them */
    ask.stream = 9;
    ask.resume_counts = &three;
    ask.resume_ids = ids_of(&three, 1);
    router_ask(&router, &ask);
    router_expect(&other, CONTROL, WIRE_SUPERSEDED, &in);
    incoming_free(&in);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 9, ask.attempt, &less);
    assert_true(less.done);
    check_tokens(&less, 3, 9);
    assert_int_equal(fake_engine_cancels(), 1); /* the one that it took the place of */
    assert_int_equal(less.info.released, 12);
    reply_free(&reply);
    reply_free(&again);
    reply_free(&less);
    stop_two();
}

/* ---- the owner's note ---- */

static struct {
    unsigned calls;
    uint8_t placement[16];
    uint64_t epoch;
    uint32_t tokens;
} turn;

static void on_turn(void *user, const uint8_t *placement, uint64_t epoch, uint32_t tokens)
{
    (void)user;
    turn.calls++;
    memcpy(turn.placement, placement, sizeof turn.placement);
    turn.epoch = epoch;
    turn.tokens = tokens;
}

static void the_end_of_a_placed_turn_is_noted(void **state)
{
    (void)state;
    struct reply reply = {0};
    uint8_t placement[16] = "placement record";
    memset(&turn, 0, sizeof turn);
    bench.config.on_turn = on_turn;
    start();
    works(&router, 1); /* has no placement */
    fake_engine_fail_next(STATUS_CORRUPT);
    router_ask(&router, &(struct ask){.id = 2, .stream = 2, .placement = placement});
    expect_error(&router, 2, WIRE_ERROR_INTERNAL, "");
    struct ask ask = {.id = 3, .stream = 3, .epoch = 77, .placement = placement, .sampling = {.tokens_max = 6}};
    router_ask(&router, &ask);
    router_collect(&router, 3, first_attempt, &reply);
    assert_true(reply.done);
    (void)bench_streams(&bench); /* the server's thread has written it before it answers */
    assert_int_equal(turn.calls, 1);
    assert_memory_equal(turn.placement, placement, sizeof placement);
    assert_int_equal(turn.epoch, 77);
    assert_int_equal(turn.tokens, SERVER_PROMPT_TOKENS + 6);
    reply_free(&reply);
    stop();
}

static void leases_tell_the_time_of_a_prompt_token(void **state)
{
    (void)state;
    struct incoming in;
    start();
    works(&router, 1); /* 20 us for 4 computed tokens: the fifth was cached */
    for (bool seen = false; !seen; incoming_free(&in)) {
        router_expect(&router, CONTROL, WIRE_LEASE, &in);
        seen = in.message.lease.load.token_ns == 5000;
        assert_true(seen || in.message.lease.load.token_ns == 0);
    }
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_worker_says_what_it_can, setup),
        cmocka_unit_test_setup(a_resume_goes_on_behind_what_was_released, setup),
        cmocka_unit_test_setup(each_choice_goes_on_from_its_own_place, setup),
        cmocka_unit_test_setup(a_resume_that_does_not_fit_is_refused, setup),
        cmocka_unit_test_setup(other_numbers_are_not_exact, setup),
        cmocka_unit_test_setup(room_is_set_aside_for_what_still_comes, setup),
        cmocka_unit_test_setup(a_repeat_of_a_resumed_stream, setup),
        cmocka_unit_test_setup(the_end_of_a_placed_turn_is_noted, setup),
        cmocka_unit_test_setup(leases_tell_the_time_of_a_prompt_token, setup),
    };
    return server_run(tests, sizeof tests / sizeof *tests);
}
