/* router_choices_test - rows of several choices, of log probabilities and of the prompt through the real router: each choice is counted
 * apart, repeats are dropped, a gap or a missing token in any of them ends the request. */
#include "common/clock.h"
#include "common/loop.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

static struct setting start(unsigned workers)
{
    struct fake_ask ask = ask_of(1, "chat-1");
    return setting_start(workers, &ask);
}

static void choices_are_passed_in_order(void **state)
{
    (void)state;
    struct setting s = start(1);
    for (unsigned c = 16; c-- > 0;)
        fake_worker_row(s.worker, s.request, c, 0, (uint16_t)(1 + c), 0);
    fake_worker_row(s.worker, s.request, 3, 0, 4, 0); /* repeats */
    fake_worker_row(s.worker, s.request, 3, 2, 1, 0);
    fake_worker_row(s.worker, s.request, 15, 16, 2, 0);
    fake_worker_last(s.worker, s.request, 4, 5);
    fake_worker_last(s.worker, s.request, 4, 5);
    fake_worker_done_of(s.worker, s.request, 16, 138); /* 1 + 2 ... + 16, and 2 */
    SPIN_UNTIL(s.bench->loop, 2000, fake_stream_ends(s.stream) == 1);
    assert_int_equal(s.stream->dones, 1);
    assert_false(s.stream->gap);
    for (unsigned c = 0; c < 15; c++)
        assert_int_equal(s.stream->by_choice[c], 1 + c);
    assert_int_equal(s.stream->by_choice[15], 18);
    assert_int_equal(s.stream->lasts, 1);
    assert_int_equal(s.stream->finishes, 16);
    assert_int_equal(s.stream->dropped_messages, 3);
    bench_stop(&s.bench);
}

static void log_probabilities_and_alternatives_are_passed(void **state)
{
    (void)state;
    struct setting s = start(1);
    fake_worker_row(s.worker, s.request, WIRE_CHOICE_PROMPT, 0, 50, 20);
    fake_worker_row(s.worker, s.request, WIRE_CHOICE_PROMPT, 50, 10, 20);
    fake_worker_row(s.worker, s.request, 0, 0, 5, 3);
    fake_worker_row(s.worker, s.request, 1, 0, 5, 0);
    fake_worker_done_of(s.worker, s.request, 2, 10); /* the prompt is not counted */
    SPIN_UNTIL(s.bench->loop, 2000, fake_stream_ends(s.stream) == 1);
    assert_int_equal(s.stream->dones, 1);
    assert_false(s.stream->gap);
    assert_int_equal(s.stream->by_choice[WIRE_CHOICE_PROMPT], 60);
    assert_int_equal(s.stream->logprobs, 65);
    assert_int_equal(s.stream->alternatives, 60 * 20 + 5 * 3);
    bench_stop(&s.bench);
}

static void a_gap_in_any_choice_ends_the_request(void **state)
{
    (void)state;
    for (unsigned choice = 0; choice <= WIRE_CHOICE_PROMPT; choice += 8) {
        struct setting s = start(1);
        fake_worker_row(s.worker, s.request, choice, 0, 3, 1);
        fake_worker_row(s.worker, s.request, choice == 5 ? 4 : 5, 0, 7, 0);
        fake_worker_row(s.worker, s.request, choice, 4, 1, 1);
        SPIN_UNTIL(s.bench->loop, 2000, s.stream->errors == 1);
        assert_int_equal(s.stream->error, WIRE_ERROR_INTERNAL);
        assert_int_equal(s.stream->by_choice[choice], 3);
        assert_int_equal(s.stream->by_choice[5], 7);
        bench_stop(&s.bench);
    }
}

static void nothing_comes_after_the_last_text(void **state)
{
    (void)state;
    struct setting s = start(1);
    fake_worker_row(s.worker, s.request, 0, 0, 3, 0);
    fake_worker_last(s.worker, s.request, 0, 3);
    fake_worker_row(s.worker, s.request, 1, 0, 3, 0);
    fake_worker_row(s.worker, s.request, 0, 3, 1, 0);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->errors == 1);
    assert_int_equal(s.stream->error, WIRE_ERROR_INTERNAL);
    assert_int_equal(s.stream->tokens, 6);
    bench_stop(&s.bench);
}

static void a_total_that_is_wrong_ends_the_request(void **state)
{
    (void)state;
    struct setting s = start(1);
    fake_worker_row(s.worker, s.request, 0, 0, 3, 0);
    fake_worker_row(s.worker, s.request, 1, 0, 3, 0);
    fake_worker_done_of(s.worker, s.request, 2, 3); /* as if choices were counted together */
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->errors == 1);
    assert_int_equal(s.stream->error, WIRE_ERROR_INTERNAL);
    bench_stop(&s.bench);
}

/* What is known of the prompt is no part of the reply: the request moves, and the other worker's repeat is dropped. */
static void lost_after_the_prompt_it_moves(void **state)
{
    (void)state;
    struct setting s = start(2);
    fake_worker_row(s.worker, s.request, WIRE_CHOICE_PROMPT, 0, 20, 2);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->by_choice[WIRE_CHOICE_PROMPT] == 20);
    struct fake_worker *second = other_than(s.bench, s.worker);
    fake_worker_kill(s.worker);
    SPIN_UNTIL(s.bench->loop, 2000, second->request_count == 1);
    struct fake_request *again = fake_worker_request(second, 0);
    fake_worker_row(second, again, WIRE_CHOICE_PROMPT, 0, 20, 2);
    fake_worker_row(second, again, WIRE_CHOICE_PROMPT, 20, 5, 2);
    fake_worker_row(second, again, 1, 0, 2, 2);
    fake_worker_done_of(second, again, 2, 2);
    SPIN_UNTIL(s.bench->loop, 2000, fake_stream_ends(s.stream) == 1);
    assert_int_equal(s.stream->dones, 1);
    assert_false(s.stream->gap);
    assert_int_equal(s.stream->by_choice[WIRE_CHOICE_PROMPT], 25);
    assert_int_equal(s.stream->tokens, 2);
    bench_stop(&s.bench);
}

/* A client that counts its attempt up has lost what came: everything from 0, of each choice and of the prompt. */
static void asked_again_it_starts_anew(void **state)
{
    (void)state;
    struct setting s = start(1);
    fake_worker_row(s.worker, s.request, WIRE_CHOICE_PROMPT, 0, 20, 2);
    fake_worker_row(s.worker, s.request, 1, 0, 3, 2);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->tokens == 3);
    struct fake_ask ask = ask_of(1, "chat-1");
    ask.stream = 2;
    ask.attempt_client = 2;
    fake_client_ask(s.client, &ask);
    SPIN_UNTIL(s.bench->loop, 2000, s.worker->request_count == 2);
    struct fake_request *again = fake_worker_request(s.worker, 1);
    fake_worker_row(s.worker, again, WIRE_CHOICE_PROMPT, 0, 20, 2);
    fake_worker_row(s.worker, again, 1, 0, 3, 2);
    fake_worker_done_of(s.worker, again, 2, 3);
    struct fake_stream *stream = &s.client->streams[2];
    SPIN_UNTIL(s.bench->loop, 2000, fake_stream_ends(stream) == 1);
    assert_int_equal(stream->dones, 1);
    assert_false(stream->gap);
    assert_int_equal(stream->by_choice[WIRE_CHOICE_PROMPT], 20);
    assert_int_equal(stream->by_choice[1], 3);
    bench_stop(&s.bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_are_passed_in_order),
        cmocka_unit_test(log_probabilities_and_alternatives_are_passed),
        cmocka_unit_test(a_gap_in_any_choice_ends_the_request),
        cmocka_unit_test(nothing_comes_after_the_last_text),
        cmocka_unit_test(a_total_that_is_wrong_ends_the_request),
        cmocka_unit_test(lost_after_the_prompt_it_moves),
        cmocka_unit_test(asked_again_it_starts_anew),
    };
    return unit_run(tests, NULL, NULL);
}
