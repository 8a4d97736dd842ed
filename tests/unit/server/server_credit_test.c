/* server_credit_test - tokens go out as far as a router granted them, and no further. */
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

#define WINDOW       512u
#define QUIET_LEASES 4 /* so many of the worker's in a row, of a turn each: what could have come has come */

static const struct wire_sampling long_reply = {.tokens_max = 2000};

static void start_credit(void)
{
    start_with(WIRE_CAN_CREDIT);
}

/* The next frame on data; false: none comes. Judged by the leases among which it would come, so a machine that stands
 * still for a while changes nothing. */
static bool next_frame(struct router *from, struct incoming *in)
{
    control_is_read(from);
    for (unsigned leases = 0; leases < QUIET_LEASES;) {
        router_lease(from, DATA, 0); /* it is there as long as it reads */
        bool waiting = zmq_poll(&(zmq_pollitem_t){.socket = from->sockets[DATA], .events = ZMQ_POLLIN}, 1, 0) > 0;
        router_receive(from, DATA, false, in);
        if (in->message.kind != WIRE_LEASE)
            return true;
        leases += !waiting; /* one that lay there may be older than what was just read */
        incoming_free(in);
    }
    return false;
}

/* Nothing comes on data for a while. */
static void quiet(struct router *from)
{
    struct incoming in;
    if (next_frame(from, &in))
        fail_msg("a %s came without credit", wire_kind_name(in.message.kind));
}

/* Exactly so many tokens have come, and no end. */
static void exactly(struct router *from, uint32_t stream, struct wire_attempt attempt, struct reply *reply,
                    unsigned tokens)
{
    router_collect_some(from, stream, attempt, tokens, reply);
    assert_int_equal(reply->count, tokens);
    quiet(from);
}

static void tokens_wait_for_grants(void **state)
{
    (void)state;
    struct reply reply = {0};
    start_credit();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = long_reply});
    exactly(&router, 1, first_attempt, &reply, WINDOW);
    assert_true(bench_wait_streams(&bench, 0)); /* it was made to its end, but DONE goes behind the last token */
    router_grant(&router, 1, 600, 0);
    exactly(&router, 1, first_attempt, &reply, 600);
    router_grant(&router, 1, 700, 0);
    router_grant(&router, 1, 100, 0); /* a grant never shrinks */
    exactly(&router, 1, first_attempt, &reply, 700);
    router_reconnect(&router, DATA); /* also for what comes again */
    reply_free(&reply);
    router_lease(&router, DATA, 0);
    exactly(&router, 1, first_attempt, &reply, 700);
    router_grant(&router, 1, 1999, 0);
    exactly(&router, 1, first_attempt, &reply, 1999);
    router_grant(&router, 2, UINT64_MAX, 0); /* no such stream */
    quiet(&router);
    router_grant(&router, 1, UINT64_MAX / 2, 0);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 0, 2000);
    reply_free(&reply);
    stop_two();
}

static void a_grant_may_overtake_its_head(void **state)
{
    (void)state;
    struct reply reply = {0};
    start_credit();
    router_grant(&router, 1, 1500, 0);
    router_grant(&router, 1, 1400, 0);
    for (uint32_t i = 100; i < 200; i++) /* and others too */
        router_grant(&router, i, 5, 0);
    control_is_read(&router);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = long_reply});
    exactly(&router, 1, first_attempt, &reply, 1500);
    router_grant(&router, 1, 2000, 0);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    router_grant(&router, 1, 3000, 0); /* too late: ended */
    router_ask(&router, &(struct ask){.id = 2, .stream = 150, .sampling = long_reply});
    exactly(&router, 150, first_attempt, &reply, WINDOW); /* 5 is less than the window */
    reply_free(&reply);
    stop_two();
}

static void a_router_of_the_release_before_has_no_limit(void **state)
{
    (void)state;
    struct reply reply = {0};
    start();
    router_grant(&router, 1, 5, 1); /* means nothing */
    control_is_read(&router);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = long_reply});
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    check_tokens(&reply, 0, 2000);
    reply_free(&reply);
    stop();
}

static void an_error_does_not_wait_for_credit(void **state)
{
    (void)state;
    struct reply reply = {0}, again = {0};
    start_credit();
    fake_engine_hold();
    fake_engine_permit(1000);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = long_reply});
    exactly(&router, 1, first_attempt, &reply, WINDOW);
    router_cancel(&router, 1, "acme");
    router_collect(&router, 1, first_attempt, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_CANCELLED);
    assert_int_equal(reply.count, WINDOW);
    router_grant(&router, 1, 900, 0);
    quiet(&router); /* nothing comes behind an end */
    router_reconnect(&router, DATA);
    router_lease(&router, DATA, 0);
    router_collect(&router, 1, first_attempt, &again);
    assert_int_equal(again.error, WIRE_ERROR_CANCELLED);
    assert_int_equal(again.count, WINDOW);
    reply_free(&reply);
    reply_free(&again);
    stop_two();
}

static void a_stream_that_nobody_grants_anything_ends(void **state)
{
    (void)state;
    bench.config.credit_wait_ms = 1000; /* ten times what a round of the loop below takes */
    start_credit();
    for (uint8_t i = 1; i <= 2; i++) { /* one that runs, one that has ended */
        struct reply reply = {0}, again = {0};
        fake_engine_hold();
        fake_engine_permit(i == 1 ? 600 : FAKE_PERMITS_ALL);
        router_ask(&router, &(struct ask){.id = i, .stream = i, .sampling = long_reply});
        exactly(&router, i, first_attempt, &reply, WINDOW);
        if (i == 1) { /* what comes in time starts the wait anew */
            uint64_t begin = clock_now_ms();
            for (unsigned more = 1; clock_now_ms() - begin < 2000; more++) {
                router_grant(&router, i, WINDOW + more, 0);
                exactly(&router, i, first_attempt, &reply, WINDOW + more);
            }
        }
        router_collect(&router, i, first_attempt, &reply);
        assert_int_equal(reply.error, WIRE_ERROR_SLOW_READER);
        assert_true(bench_wait_streams(&bench, 0));
        assert_false(attach(&router, i, "acme").known);
        reply_free(&reply);
        reply_free(&again);
        fake_engine_permit(FAKE_PERMITS_ALL);
        works(&other, (uint8_t)(10 + i));
    }
    stop_two();
}

static void waiting_for_tokens_is_not_waiting_for_credit(void **state)
{
    (void)state;
    struct reply reply = {0};
    bench.config.credit_wait_ms = 100;
    start_credit();
    fake_engine_hold();
    fake_engine_permit((int)WINDOW);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = WINDOW + 1}});
    router_collect_some(&router, 1, first_attempt, WINDOW, &reply); /* all that was granted, all that there is */
    for (uint64_t end = clock_now_ms() + 300; clock_now_ms() < end;)
        assert_int_equal(bench_streams(&bench), 1);
    router_grant(&router, 1, WINDOW + 1, 0);
    control_is_read(&router);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    reply_free(&reply);
    stop_two();
}

static void a_reconnect_repeats_what_was_granted(void **state)
{
    (void)state;
    struct reply before = {0}, after = {0};
    start_credit();
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = long_reply});
    router_grant(&router, 1, 600, 0);
    exactly(&router, 1, first_attempt, &before, 600);
    router_reconnect(&router, DATA);
    router_lease(&router, DATA, 0);
    exactly(&router, 1, first_attempt, &after, 600);
    reply_free(&before);
    reply_free(&after);
    stop_two();
}

/* Grants are totals: what was resumed counts, and so it does in the first window of whoever takes a stream over. */
static void totals_count_what_was_resumed(void **state)
{
    (void)state;
    static uint32_t ids[200];
    struct reply reply = {.first = 100}, moved = {.first = 100};
    uint32_t counts = 100, newer = 200;
    for (uint32_t i = 0; i < 200; i++)
        ids[i] = fake_engine_token(SERVER_PROMPT_TOKENS, i);
    start_credit();
    struct ask ask = {.id = 1, .stream = 1, .sampling = long_reply, .resume_counts = &counts, .resume_ids = ids};
    router_ask(&router, &ask);
    exactly(&router, 1, first_attempt, &reply, WINDOW);
    router_grant(&router, 1, 700, 0);
    exactly(&router, 1, first_attempt, &reply, 600); /* with the 100 before */
    ask.attempt = (struct wire_attempt){1, 0};
    ask.resume_counts = &newer;
    router_ask(&other, &ask); /* its grants are its own */
    exactly(&other, 1, ask.attempt, &moved, 200 + WINDOW - 100);
    quiet(&router);
    router_grant(&other, 1, 2000, 0);
    router_collect(&other, 1, ask.attempt, &moved);
    assert_true(moved.done);
    check_tokens(&moved, 100, 1900);
    reply_free(&reply);
    reply_free(&moved);
    stop_two();
}

/* Tokens of stream 1 and 2, and bytes, of the frames that come until it is quiet. */
static void drain_frames(struct router *from, unsigned tokens[3], uint64_t *bytes, unsigned *done)
{
    struct incoming in;
    while (next_frame(from, &in)) {
        struct wire_tokens_cursor cursor = {0};
        struct wire_tokens_row row;
        *bytes += in.message.kind == WIRE_TOKENS ? zmq_msg_size(&in.frame) : 0;
        *done += in.message.kind == WIRE_DONE;
        while (in.message.kind == WIRE_TOKENS && wire_tokens_next(&in.message.tokens, &cursor, &row))
            tokens[row.stream] += row.count;
        incoming_free(&in);
    }
}

static void choices_share_a_grant(void **state)
{
    (void)state;
    unsigned tokens[3] = {0}, done = 0;
    uint64_t bytes = 0;
    start_credit();
    struct wire_sampling sampling = {.tokens_max = 1000, .choices = 3, .prompt_logprobs = true, .token_logprobs = true};
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = sampling});
    expect_ack(&router, 1);
    assert_true(bench_wait_streams(&bench, 0)); /* the engine is done with it */
    drain_frames(&router, tokens, &bytes, &done);
    assert_int_equal(tokens[1], WINDOW + SERVER_PROMPT_TOKENS - 1); /* rows of the prompt take none */
    router_grant(&router, 1, 2997, 0);
    drain_frames(&router, tokens, &bytes, &done);
    assert_int_equal(tokens[1], 2997 + SERVER_PROMPT_TOKENS - 1);
    assert_int_equal(done, 1);
    stop_two();
}

static void a_connection_has_a_limit_of_bytes(void **state)
{
    (void)state;
    unsigned tokens[3] = {0}, done = 0;
    uint64_t bytes = 0, granted = 0;
    start_credit();
    fake_engine_text_bytes(1000);
    router_grant(&router, 1, 400, 10000);
    router_grant(&router, 2, 400, 10000);
    control_is_read(&router);
    for (uint8_t i = 1; i <= 2; i++)
        router_ask(&router, &(struct ask){.id = i, .stream = i, .sampling = {.tokens_max = 200}});
    expect_ack(&router, 1);
    expect_ack(&router, 2);
    assert_true(bench_wait_streams(&bench, 0)); /* the engine is done with both */
    for (granted = 10000; done < 2; granted += 10000) {
        router_grant(&router, 3, 0, granted);
        drain_frames(&router, tokens, &bytes, &done);
        assert_true(bytes <= granted);
        assert_true(done == 2 || bytes + 2000 > granted); /* and not far from it */
        unsigned least = tokens[1] < tokens[2] ? tokens[1] : tokens[2];
        assert_true(granted < 100000 || least > 10); /* both have their turns */
        assert_true(granted < 1000000);
    }
    assert_int_equal(tokens[1], 200);
    assert_int_equal(tokens[2], 200);
    router_grant(&router, 3, 0, 0); /* no limit */
    fake_engine_text_bytes(0);
    works(&router, 3);
    stop_two();
}

/* Tokens that are released together cannot be parted: who is granted one of them gets them all, and no more. */
static void a_row_larger_than_its_credit_goes_out_whole(void **state)
{
    (void)state;
    struct reply reply = {0};
    bench.config.credit_wait_ms = 20000;
    start_credit();
    fake_engine_row_tokens(200);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = long_reply});
    exactly(&router, 1, first_attempt, &reply, 600); /* 400, and 112 are granted */
    router_grant(&router, 1, 600, 0);
    exactly(&router, 1, first_attempt, &reply, 600);
    router_grant(&router, 1, 601, 0);
    exactly(&router, 1, first_attempt, &reply, 800);
    for (unsigned granted = 801; !reply.done; granted += 200) { /* one at a time is enough */
        router_grant(&router, 1, granted, 0);
        if (granted < 1801)
            exactly(&router, 1, first_attempt, &reply, granted + 199);
        else
            router_collect(&router, 1, first_attempt, &reply);
    }
    assert_int_equal(reply.count, 2000);
    assert_int_equal(reply.rows, 10);
    reply_free(&reply);
    stop_two();
}

/* What is queued for a router that falls silent arrives when it reads on, so that both sides count the same bytes. */
static void silence_costs_no_credit_of_the_connection(void **state)
{
    (void)state;
    unsigned tokens[3] = {0}, done = 0;
    uint64_t bytes = 0;
    struct server_stats stats = {0};
    bench.config.lease_expiry_ms = 400;
    bench.config.orphan_ms = 20000;
    bench.config.slow_reader_ms = 20000;
    start_credit();
    fake_engine_text_bytes(50000);
    fake_engine_hold();
    fake_engine_permit(1000); /* 50 MB: more than all buffers on the way hold */
    router_grant(&router, 1, 1001, 1u << 30);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 1001}});
    for (uint64_t end = clock_now_ms() + WAIT_MS; stats.orphans == 0; bench_stats(&bench, &stats)) {
        if (stats.tokens < 1000) /* silent from then on */
            router_lease(&router, CONTROL, 0);
        assert_true(clock_now_ms() < end);
    }
    router_lease(&router, DATA, 0); /* it comes back, by the same connections */
    fake_engine_text_bytes(1000);
    fake_engine_permit(FAKE_PERMITS_ALL);
    while (done == 0)
        drain_frames(&router, tokens, &bytes, &done);
    assert_true(tokens[1] > 1001); /* with repeats */
    router_grant(&router, 2, 1, bytes + 2000);
    router_ask(&router, &(struct ask){.id = 2, .stream = 2, .sampling = {.tokens_max = 1}});
    drain_frames(&router, tokens, &bytes, &done);
    assert_int_equal(tokens[2], 1);
    assert_int_equal(done, 2);
    stop_two();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(tokens_wait_for_grants, server_setup),
        cmocka_unit_test_setup(a_grant_may_overtake_its_head, server_setup),
        cmocka_unit_test_setup(a_router_of_the_release_before_has_no_limit, server_setup),
        cmocka_unit_test_setup(an_error_does_not_wait_for_credit, server_setup),
        cmocka_unit_test_setup(a_stream_that_nobody_grants_anything_ends, server_setup),
        cmocka_unit_test_setup(waiting_for_tokens_is_not_waiting_for_credit, server_setup),
        cmocka_unit_test_setup(a_reconnect_repeats_what_was_granted, server_setup),
        cmocka_unit_test_setup(totals_count_what_was_resumed, server_setup),
        cmocka_unit_test_setup(choices_share_a_grant, server_setup),
        cmocka_unit_test_setup(a_connection_has_a_limit_of_bytes, server_setup),
        cmocka_unit_test_setup(a_row_larger_than_its_credit_goes_out_whole, server_setup),
        cmocka_unit_test_setup(silence_costs_no_credit_of_the_connection, server_setup),
    };
    return server_run(tests, sizeof tests / sizeof *tests);
}
