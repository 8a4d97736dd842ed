/* server_sampling_test - what a request asks of the sampler arrives in the engine, and what the engine makes of several
 * choices, with log probabilities, alternatives and those of the prompt, arrives at the router: rows, ends, repeats,
 * bounds of memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fake_engine.h"
#include "server_fixture.h"

/* ---- what came of one stream ---- */

struct received {
    uint32_t stream, prompt_tokens, alternatives;
    struct wire_attempt attempt;
    bool logprobs, ended;
    uint32_t tokens[WIRE_SEQUENCES_MAX];
    char text[WIRE_CHOICES_MAX][2048];
    size_t frame_bytes_max;
    uint8_t finish[WIRE_CHOICES_MAX];
    unsigned choices;
    struct wire_done done; /* its spans are not valid any more */
};

static void take_row(struct received *received, const struct wire_tokens_row *row)
{
    bool prompt = row->choice == WIRE_CHOICE_PROMPT, logprobs = received->logprobs || prompt;
    assert_int_equal(row->first, received->tokens[row->choice]);
    assert_int_equal(row->logprobs.size, logprobs ? row->ids.size : 0);
    assert_int_equal(row->alternatives, logprobs && row->count ? received->alternatives : 0);
    for (uint32_t i = 0; i < row->count; i++) {
        uint32_t id = wire_u32_at(row->ids, i), at = row->first + i;
        assert_int_equal(id, prompt ? at + 1 : fake_engine_token(received->prompt_tokens + row->choice, at));
        if (logprobs)
            assert_true(wire_f32_at(row->logprobs, i) == fake_engine_logprob(id, 0));
        for (uint32_t j = 0; j < row->alternatives; j++) {
            assert_int_equal(wire_u32_at(row->alternative_ids, i * row->alternatives + j), id + j);
            assert_true(wire_f32_at(row->alternative_logprobs, i * row->alternatives + j) ==
                        fake_engine_logprob(id, j));
        }
    }
    if (prompt)
        assert_int_equal(received->tokens[0], 0); /* comes before the reply */
    else
        strncat(received->text[row->choice], (const char *)row->text.data, row->text.size);
    received->tokens[row->choice] += row->count;
}

/* Reads until choice 0 has `tokens`, or with 0 until the stream has ended. */
static void collect(struct received *received, uint32_t tokens)
{
    while (tokens ? received->tokens[0] < tokens : !received->ended) {
        struct incoming in;
        struct wire_tokens_cursor cursor = {0};
        struct wire_tokens_row row;
        router_receive(&router, DATA, true, &in);
        const struct wire_message *m = &in.message;
        if (zmq_msg_size(&in.frame) > received->frame_bytes_max)
            received->frame_bytes_max = zmq_msg_size(&in.frame);
        while (m->kind == WIRE_TOKENS && wire_tokens_next(&m->tokens, &cursor, &row))
            if (row.stream == received->stream && row.attempt.client == received->attempt.client)
                take_row(received, &row);
        if (m->kind == WIRE_ERROR && m->error.stream == received->stream)
            fail_msg("%s: %.*s", wire_error_name(m->error.code), (int)m->error.detail.size,
                     (const char *)m->error.detail.data);
        if (m->kind == WIRE_DONE && m->done.stream == received->stream) {
            received->ended = true;
            received->done = m->done;
            received->choices = (unsigned)m->done.finish.size;
            memcpy(received->finish, m->done.finish.data, m->done.finish.size);
        }
        incoming_free(&in);
    }
}

/* choice c has tokens_max - c tokens and FAKE_FINISH(c). */
static void check_end(const struct received *received, unsigned choices, uint32_t tokens_max)
{
    uint32_t all = 0;
    assert_int_equal(received->choices, choices);
    for (unsigned c = 0; c < choices; c++) {
        assert_int_equal(received->tokens[c], tokens_max - c);
        assert_int_equal(received->finish[c], FAKE_FINISH(c));
        const char *end = strchr(received->text[c], '~');
        assert_int_equal(end != NULL, FAKE_FINISH(c) == ENGINE_FINISH_STOP_STRING);
        assert_true(!end || end[1] == '\0'); /* once, and last */
        all += tokens_max - c;
    }
    assert_int_equal(received->done.released, all);
    assert_int_equal(received->done.reply_tokens, all);
    assert_int_equal(received->done.dropped_messages, 4);
}

/* ---- tests ---- */

static void all_of_sampling_arrives_in_the_engine(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    struct engine_request last;
    struct fake_lists lists;
    struct reply reply = {0};
    const uint32_t stop_ids[3] = {7, 8, 9}, bias_ids[2] = {10, 11};
    const float bias_values[2] = {-100, 2.5f};
    struct wire_span stops[2] = {wire_span_str("stop here"), wire_span_str("Wer da? \xc3\xa4")};
    start();
    ask_messages(&(struct ask){.id = 1, .stream = 1}, &router, &head, &body, &chat, request_id);
    body.body.truncate = true;
    body.body.sampling = (struct wire_sampling){
        .temperature = 0.5f,
        .top_p = 0.9f,
        .min_p = 0.05f,
        .top_k = 40,
        .repetition_penalty = 1.25f,
        .presence_penalty = -0.5f,
        .frequency_penalty = 0.75f,
        .tokens_max = 3,
        .tokens_min = 2,
        .stops = stops,
        .stop_count = 2,
        .stop_ids = wire_span_of(stop_ids, sizeof stop_ids),
        .bias_ids = wire_span_of(bias_ids, sizeof bias_ids),
        .bias_values = wire_span_of(bias_values, sizeof bias_values),
    };
    size_t size = encode(&body, &data);
    router_ask_raw(&router, &head, data, size);
    free(data);
    router_collect(&router, 1, first_attempt, &reply);
    assert_true(reply.done);
    fake_engine_last(&last);
    fake_engine_last_lists(&lists);
    const struct sampler_options *sampling = &last.sampling;
    assert_true(sampling->temperature == 0.5f && sampling->top_p == 0.9f && sampling->min_p == 0.05f);
    assert_int_equal(sampling->top_k, 40);
    assert_true(sampling->repetition_penalty == 1.25f && sampling->presence_penalty == -0.5f);
    assert_true(sampling->frequency_penalty == 0.75f);
    assert_int_equal(sampling->tokens_min, 2);
    assert_int_equal(last.tokens_max, 3);
    assert_int_equal(last.choices, 1);
    assert_int_equal(last.stop_id_count, 3);
    assert_memory_equal(lists.stop_ids, stop_ids, sizeof stop_ids);
    assert_int_equal(sampling->bias_count, 2);
    assert_memory_equal(lists.bias_ids, bias_ids, sizeof bias_ids);
    assert_memory_equal(lists.bias_values, bias_values, sizeof bias_values);
    assert_int_equal(last.stop_count, 2);
    assert_string_equal(lists.stops[0], "stop here");
    assert_string_equal(lists.stops[1], "Wer da? \xc3\xa4");
    assert_true(last.truncate);
    assert_false(last.logprobs || last.prompt_logprobs);
    assert_int_equal(last.alternatives, 0);
    reply_free(&reply);
    stop();
}

static void asking_for_log_probabilities(void **state)
{
    (void)state;
    static const struct {
        uint32_t alternatives;
        bool token, prompt;
    } cases[] = {{0, true, false}, {5, false, false}, {5, true, false}, {0, false, true}, {20, false, true}};
    start();
    for (uint8_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine_request last;
        struct received received = {.stream = i,
                                    .prompt_tokens = SERVER_PROMPT_TOKENS,
                                    .alternatives = cases[i].alternatives,
                                    .logprobs = cases[i].token || cases[i].alternatives};
        router_ask(&router, &(struct ask){.id = (uint8_t)(i + 1),
                                          .stream = i,
                                          .sampling = {.tokens_max = 6,
                                                       .logprobs = cases[i].alternatives,
                                                       .token_logprobs = cases[i].token,
                                                       .prompt_logprobs = cases[i].prompt}});
        collect(&received, 0);
        check_end(&received, 1, 6);
        assert_int_equal(received.tokens[WIRE_CHOICE_PROMPT], cases[i].prompt ? SERVER_PROMPT_TOKENS - 1 : 0);
        fake_engine_last(&last);
        assert_int_equal(last.alternatives, cases[i].alternatives);
        assert_int_equal(last.logprobs, cases[i].token || cases[i].alternatives);
        assert_int_equal(last.prompt_logprobs, cases[i].prompt);
    }
    stop();
}

static void choices_have_rows_and_ends_of_their_own(void **state)
{
    (void)state;
    start();
    for (uint8_t choices = 1; choices <= 16; choices++) {
        struct received received = {.stream = choices, .prompt_tokens = SERVER_PROMPT_TOKENS};
        router_ask(&router,
                   &(struct ask){.id = choices, .stream = choices, .sampling = {.tokens_max = 20, .choices = choices}});
        collect(&received, 0);
        check_end(&received, choices, 20);
        for (unsigned c = 0; c < choices; c++) {
            char text[2048] = "", word[16];
            for (uint32_t i = 0; i < 20 - c; i++) {
                snprintf(word, sizeof word, "w%u ", fake_engine_token(SERVER_PROMPT_TOKENS + c, i));
                strcat(text, word);
            }
            strcat(text, FAKE_FINISH(c) == ENGINE_FINISH_STOP_STRING ? "~" : "");
            assert_string_equal(received.text[c], text);
        }
    }
    stop();
}

/* A prompt of 4,000 tokens with 20 alternatives is 672 KB: many rows, and frames of at most 256 KiB. */
static void the_log_probabilities_of_a_long_prompt_are_split(void **state)
{
    (void)state;
    static char text[4001];
    memset(text, 'a', 4000);
    start();
    struct received received = {.stream = 1, .prompt_tokens = 4000, .alternatives = 20, .logprobs = true};
    router_ask(&router, &(struct ask){.id = 1,
                                      .stream = 1,
                                      .text = text,
                                      .sampling = {.tokens_max = 3, .logprobs = 20, .prompt_logprobs = true}});
    collect(&received, 0);
    check_end(&received, 1, 3);
    assert_int_equal(received.tokens[WIRE_CHOICE_PROMPT], 3999);
    assert_in_range(received.frame_bytes_max, 200u << 10, 256u << 10);
    stop();
}

/* Everything again from 0 in the same rows, on the new connection: of the choices and of the prompt. */
static void a_reconnect_repeats_every_choice(void **state)
{
    (void)state;
    start();
    fake_engine_hold();
    fake_engine_permit(4);
    const struct wire_sampling sampling = {.tokens_max = 9, .choices = 3, .logprobs = 2, .prompt_logprobs = true};
    struct received before = {.stream = 1, .prompt_tokens = SERVER_PROMPT_TOKENS, .alternatives = 2, .logprobs = true};
    struct received after = before;
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = sampling});
    collect(&before, 4);
    assert_int_equal(before.tokens[2], 4);
    router_reconnect(&router, DATA);
    fake_engine_permit(FAKE_PERMITS_ALL);
    assert_true(bench_wait_streams(&bench, 0));
    router_lease(&router, DATA, 0);
    collect(&after, 0);
    check_end(&after, 3, 9);
    assert_int_equal(after.tokens[WIRE_CHOICE_PROMPT], SERVER_PROMPT_TOKENS - 1);
    assert_memory_equal(after.text[2], before.text[2], strlen(before.text[2]));
    stop();
}

static void a_newer_attempt_gets_every_choice(void **state)
{
    (void)state;
    start();
    fake_engine_hold();
    fake_engine_permit(4);
    const struct wire_sampling sampling = {.tokens_max = 9, .choices = 3, .token_logprobs = true};
    struct received old = {.stream = 1, .prompt_tokens = SERVER_PROMPT_TOKENS, .logprobs = true};
    struct received new = {.stream = 2, .prompt_tokens = SERVER_PROMPT_TOKENS, .logprobs = true, .attempt = {1, 0}};
    router_ask(&router, &(struct ask){.id = 1, .stream = 1, .sampling = sampling});
    collect(&old, 4);
    router_ask(&router, &(struct ask){.id = 1, .stream = 2, .attempt = new.attempt, .sampling = sampling});
    fake_engine_permit(FAKE_PERMITS_ALL);
    collect(&new, 0);
    check_end(&new, 3, 9);
    stop();
}

static void the_engines_wait_hint_is_passed_on(void **state)
{
    (void)state;
    start();
    fake_engine_refuse_next(STATUS_AGAIN, 777);
    router_ask(&router, &(struct ask){.id = 1, .stream = 1});
    expect_error_after(&router, 1, WIRE_ERROR_OVER_CAPACITY, "as the test asked", 777);
    fake_engine_refuse_next(STATUS_INVALID, 777);
    router_ask(&router, &(struct ask){.id = 2, .stream = 2});
    expect_error(&router, 2, WIRE_ERROR_INVALID, "as the test asked");
    fake_engine_refuse_next(STATUS_LIMIT, 0);
    router_ask(&router, &(struct ask){.id = 3, .stream = 3});
    expect_error(&router, 3, WIRE_ERROR_TOO_LARGE, "as the test asked");
    stop();
}

/* One token of one choice sets 88 bytes aside, with 20 alternatives 408. */
static void replies_have_a_bound(void **state)
{
    (void)state;
    bench.config.reply_bytes_max = 16 * 100 * 408;
    start();
    fake_engine_hold();
    router_ask(&router,
               &(struct ask){.id = 1, .stream = 1, .sampling = {.tokens_max = 101, .choices = 16, .logprobs = 20}});
    expect_error(&router, 1, WIRE_ERROR_TOO_LARGE, "fewer choices");
    router_ask(&router,
               &(struct ask){.id = 2, .stream = 2, .sampling = {.tokens_max = 100, .choices = 16, .logprobs = 20}});
    assert_true(bench_wait_streams(&bench, 1));
    router_ask(&router, &(struct ask){.id = 3, .stream = 3, .sampling = {.tokens_max = 1}});
    expect_error(&router, 3, WIRE_ERROR_OVER_CAPACITY, "no memory is left");
    router_cancel(&router, 2, "acme");
    expect_error(&router, 2, WIRE_ERROR_CANCELLED, "");
    for (uint8_t i = 4; i < 8; i++) { /* each sets aside half of it, and keeps little of that when it has ended */
        fake_engine_permit(2);
        struct received received = {.stream = i, .prompt_tokens = SERVER_PROMPT_TOKENS};
        router_ask(&router, &(struct ask){.id = i, .stream = i, .sampling = {.tokens_max = 3700}});
        collect(&received, 2);
        router_cancel(&router, i, "acme");
        assert_true(bench_wait_streams(&bench, 0));
    }
    stop();
}

static void a_body_has_a_size(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data, *head_data;
    start();
    ask_messages(&(struct ask){.id = 1, .stream = 1}, &router, &head, &body, &chat, request_id);
    size_t size = encode(&body, &data), head_size = encode(&head, &head_data);
    assert_int_equal(zmq_send(router.sockets[DATA], head_data, head_size, ZMQ_SNDMORE), head_size);
    assert_int_equal(zmq_send(router.sockets[DATA], data, size, 0), size);
    free(data);
    free(head_data);
    expect_error(&router, 1, WIRE_ERROR_INVALID, "the head says 0 bytes of body");
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(all_of_sampling_arrives_in_the_engine, server_setup),
        cmocka_unit_test_setup(asking_for_log_probabilities, server_setup),
        cmocka_unit_test_setup(choices_have_rows_and_ends_of_their_own, server_setup),
        cmocka_unit_test_setup(the_log_probabilities_of_a_long_prompt_are_split, server_setup),
        cmocka_unit_test_setup(a_reconnect_repeats_every_choice, server_setup),
        cmocka_unit_test_setup(a_newer_attempt_gets_every_choice, server_setup),
        cmocka_unit_test_setup(the_engines_wait_hint_is_passed_on, server_setup),
        cmocka_unit_test_setup(replies_have_a_bound, server_setup),
        cmocka_unit_test_setup(a_body_has_a_size, server_setup),
    };
    return server_run(tests, sizeof tests / sizeof *tests);
}
