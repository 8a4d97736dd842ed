/* wire_values_test.c - the codec and values that break a rule: names, text, numbers, columns that disagree. */
#include <math.h>
#include <string.h>
#include "tests/unit/unit.h"
#include "wire_bytes.h"
#include "wire_samples.h"

static void test_names(void **state)
{
    (void)state;
    static char long_name[1 << 20];
    memset(long_name, 'n', sizeof long_name);
    const struct {
        struct wire_span name;
        bool valid;
    } cases[] = {
        {wire_span_str("a"), true},
        {wire_span_str("A-z_0.9:b"), true},
        {wire_span_of(long_name, 64), true},
        {wire_span_of(long_name, 65), false},
        {wire_span_of(long_name, 200000), false},
        {wire_span_of("a\0b", 3), false},
        {wire_span_of("\0", 1), false},
        {wire_span_str("a b"), false},
        {wire_span_str("a/b"), false},
        {wire_span_str("a\nb"), false},
        {wire_span_str("*"), false},
        {wire_span_str("{a}"), false},
        {wire_span_str("\xc3\xa4"), false},
        {wire_span_str("a\xe2\x80\xae"
                       "b"),
         false}, /* right-to-left override */
        {wire_span_str("\xff"), false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct wire_span name = cases[i].name;
        assert_int_equal(wire_name_valid(name), cases[i].valid);
        for (unsigned field = 0; field < 3; field++) {
            struct wire_message head = wire_sample(WIRE_HEAD);
            *(field == 0 ? &head.head.tenant : field == 1 ? &head.head.conversation : &head.head.model) = name;
            assert_int_equal(decode_message(&head), cases[i].valid ? STATUS_OK : STATUS_INVALID);
            assert_int_equal(wire_validate(&head), cases[i].valid ? STATUS_OK : STATUS_INVALID);
        }
    }
    assert_false(wire_name_valid(wire_span_str("")));
    struct wire_message head = wire_sample(WIRE_HEAD);
    head.head.conversation = head.head.model = wire_span_str("");
    assert_int_equal(decode_message(&head), STATUS_OK);
    head.head.tenant = wire_span_str("");
    assert_int_equal(decode_message(&head), STATUS_INVALID);
    for (size_t size = 0; size <= 33; size++) { /* ids have one size */
        head = wire_sample(WIRE_HEAD);
        head.head.request_id = wire_span_of(long_name, size);
        assert_int_equal(decode_message(&head), size == 16 ? STATUS_OK : STATUS_INVALID);
        head = wire_sample(WIRE_HEAD);
        head.head.incarnation = wire_span_of(long_name, size);
        assert_int_equal(decode_message(&head), size == 16 || size == 0 ? STATUS_OK : STATUS_INVALID);
        head = wire_sample(WIRE_HEAD);
        head.head.numerics_id = wire_span_of(long_name, size);
        assert_int_equal(decode_message(&head), size == 32 || size == 0 ? STATUS_OK : STATUS_INVALID);
    }
    head = wire_sample(WIRE_HEAD);
    head.head.links = wire_span_of(long_name, 32 * 32);
    assert_int_equal(decode_message(&head), STATUS_OK);
    head.head.links = wire_span_of(long_name, 33 * 32);
    assert_int_equal(decode_message(&head), STATUS_LIMIT);
    head.head.links = wire_span_of(long_name, 31);
    assert_int_equal(decode_message(&head), STATUS_INVALID);
}

static void test_utf8(void **state)
{
    (void)state;
    const struct {
        struct wire_span text;
        bool valid;
    } cases[] = {
        {wire_span_str("plain ascii of more than eight bytes"), true},
        {wire_span_str(
             "\xc2\x80 \xdf\xbf \xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xef\xbf\xbf \xf0\x90\x80\x80 \xf4\x8f\xbf\xbf"),
         true},
        {wire_span_str("\xe2\x80\xae bidi is text"), true},
        {wire_span_of("a\0b", 3), false},
        {wire_span_of("12345678\0abcdefgh", 17), false},
        {wire_span_of("1234567\0", 8), false},
        {wire_span_str("\xc0\x80"), false}, /* overlong NUL */
        {wire_span_str("\xc1\xbf"), false},
        {wire_span_str("\xe0\x9f\xbf"), false},
        {wire_span_str("\xf0\x8f\xbf\xbf"), false},
        {wire_span_str("\xed\xa0\x80"), false}, /* surrogates */
        {wire_span_str("\xed\xbf\xbf"), false},
        {wire_span_str("\xf4\x90\x80\x80"), false}, /* above U+10FFFF */
        {wire_span_str("\xf5\x80\x80\x80"), false},
        {wire_span_str("\x80"), false},
        {wire_span_str("\xff"), false},
        {wire_span_str("abc\xe2\x82"), false}, /* cut */
        {wire_span_str("\xe2\x28\xa1"), false},
        {wire_span_str("12345678\xf0\x9f\x90"), false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct wire_chat_message message = {WIRE_MESSAGE_USER, {NULL, 0}, cases[i].text};
        struct wire_message body = wire_sample(WIRE_BODY);
        if (wire_utf8_valid(cases[i].text) != cases[i].valid)
            fail_msg("case %zu", i);
        body.body.messages = &message;
        body.body.message_count = 1;
        assert_int_equal(decode_message(&body), cases[i].valid ? STATUS_OK : STATUS_INVALID);
        message = (struct wire_chat_message){WIRE_MESSAGE_USER, cases[i].text, wire_span_str("x")};
        assert_int_equal(decode_message(&body), cases[i].valid ? STATUS_OK : STATUS_INVALID);
        message.name = wire_span_str("");
        body.body.reply_name = cases[i].text;
        assert_int_equal(decode_message(&body), cases[i].valid ? STATUS_OK : STATUS_INVALID);
        body.body.reply_name = wire_span_str("");
        body.body.sampling.stops = &(struct wire_span){cases[i].text.data, cases[i].text.size};
        body.body.sampling.stop_count = 1;
        assert_int_equal(decode_message(&body), cases[i].valid ? STATUS_OK : STATUS_INVALID);
    }
}

static void test_numbers(void **state)
{
    (void)state;
    struct range {
        size_t offset;
        float low_ok, high_ok, low_bad, high_bad;
    } ranges[] = {
        {offsetof(struct wire_sampling, temperature), 0, 100, -0.001f, 100.1f},
        {offsetof(struct wire_sampling, top_p), 0, 1, -0.1f, 2},
        {offsetof(struct wire_sampling, min_p), 0, 1, -0.1f, 1.1f},
        {offsetof(struct wire_sampling, repetition_penalty), 0.01f, 10, 0.001f, 10.1f},
        {offsetof(struct wire_sampling, presence_penalty), -10, 10, -10.1f, 10.1f},
        {offsetof(struct wire_sampling, frequency_penalty), -10, 10, -10.1f, 10.1f},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const float values[] = {
            ranges[i].low_ok, ranges[i].high_ok, 0, ranges[i].low_bad, ranges[i].high_bad, NAN, -NAN,
            INFINITY,         -INFINITY};
        for (size_t j = 0; j < sizeof values / sizeof *values; j++) {
            struct wire_message body = wire_sample(WIRE_BODY);
            memcpy((uint8_t *)&body.body.sampling + ranges[i].offset, &values[j], sizeof values[j]);
            enum status expected = j < 3 ? STATUS_OK : STATUS_INVALID;
            if (decode_message(&body) != expected || wire_validate(&body) != expected)
                fail_msg("range %zu, value %g", i, (double)values[j]);
        }
    }
    const struct {
        size_t offset;
        uint32_t good, bad;
    } counts[] = {
        {offsetof(struct wire_sampling, tokens_max), 1u << 24, (1u << 24) + 1},
        {offsetof(struct wire_sampling, tokens_max), 0, UINT32_MAX},
        {offsetof(struct wire_sampling, tokens_min), 140, 141}, /* tokens_max is 140 */
        {offsetof(struct wire_sampling, choices), 16, 17},
        {offsetof(struct wire_sampling, choices), 0, UINT32_MAX},
        {offsetof(struct wire_sampling, logprobs), 20, 21},
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        for (unsigned bad = 0; bad < 2; bad++) {
            struct wire_message body = wire_sample(WIRE_BODY);
            memcpy((uint8_t *)&body.body.sampling + counts[i].offset, bad ? &counts[i].bad : &counts[i].good, 4);
            if (decode_message(&body) != (bad ? STATUS_INVALID : STATUS_OK))
                fail_msg("count %zu, bad %u", i, bad);
        }
    }
    struct wire_message body = wire_sample(WIRE_BODY);
    static const uint8_t bias_nan[12] = {0, 0, 0xc0, 0x7f};
    body.body.sampling.bias_values = wire_span_of(bias_nan, 12);
    assert_int_equal(decode_message(&body), STATUS_INVALID);

    struct wire_message head = wire_sample(WIRE_HEAD);
    const int32_t priorities[] = {-100, 100, 0, -101, 101, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof priorities / sizeof *priorities; i++) {
        head.head.priority = priorities[i];
        assert_int_equal(decode_message(&head), i < 3 ? STATUS_OK : STATUS_INVALID);
    }
    head = wire_sample(WIRE_HEAD);
    const uint64_t seeds[] = {0, 1, INT64_MAX, UINT64_MAX};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        struct wire_message back;
        head.head.seed = seeds[i];
        struct buffer b = encoded(&head);
        assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
        assert_true(back.head.seed == seeds[i]);
        wire_message_free(&back);
        free(b.data);
    }
    head.head.deadline_ms = WIRE_DEADLINE_MS_MAX;
    assert_int_equal(decode_message(&head), STATUS_OK);
    head.head.deadline_ms++;
    assert_int_equal(decode_message(&head), STATUS_INVALID);

    struct wire_message hello = wire_sample(WIRE_HELLO);
    hello.hello.version_min = 4;
    assert_int_equal(decode_message(&hello), STATUS_INVALID);
    hello = wire_sample(WIRE_HELLO);
    hello.hello.version_min = 0;
    assert_int_equal(decode_message(&hello), STATUS_INVALID);
    hello = wire_sample(WIRE_HELLO);
    hello.hello.role = (enum wire_role)7;
    assert_int_equal(decode_message(&hello), STATUS_INVALID);
    hello.hello.role = WIRE_ROLE_UNKNOWN;
    assert_int_equal(decode_message(&hello), STATUS_INVALID);
    hello = wire_sample(WIRE_HELLO);
    hello.hello.connection = (enum wire_connection)3;
    assert_int_equal(decode_message(&hello), STATUS_INVALID);
    struct wire_message lease = wire_sample(WIRE_LEASE);
    lease.lease.number = 0;
    assert_int_equal(decode_message(&lease), STATUS_INVALID);
    lease = wire_sample(WIRE_LEASE);
    lease.lease.state = (enum wire_life)77; /* younger than this side: read as unknown */
    assert_int_equal(decode_message(&lease), STATUS_OK);
    struct wire_message welcome = wire_sample(WIRE_WELCOME);
    welcome.welcome.lease_expiry_ms = 10;
    assert_int_equal(decode_message(&welcome), STATUS_INVALID);
}

static void test_columns_that_disagree(void **state)
{
    (void)state;
    struct wire_message m = wire_sample(WIRE_TOKENS);
    struct wire_span *columns[] = {&m.tokens.stream,
                                   &m.tokens.choice,
                                   &m.tokens.attempt_client,
                                   &m.tokens.attempt_router,
                                   &m.tokens.first,
                                   &m.tokens.count,
                                   &m.tokens.ids,
                                   &m.tokens.text_bytes,
                                   &m.tokens.text,
                                   &m.tokens.logprobs,
                                   &m.tokens.alternatives,
                                   &m.tokens.alternative_ids,
                                   &m.tokens.alternative_logprobs};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        size_t whole = columns[i]->size;
        for (size_t size = 0; size < whole; size++) {
            columns[i]->size = size;
            enum status st = decode_message(&m);
            if (st != STATUS_INVALID)
                fail_msg("column %zu of %zu instead of %zu bytes: %s", i, size, whole, status_name(st));
        }
        columns[i]->size = whole;
    }
    assert_int_equal(decode_message(&m), STATUS_OK);
    static const uint8_t split[] = {6, 0, 0, 0, 2, 0, 0, 0}; /* the euro sign over two rows */
    m.tokens.text_bytes = wire_span_of(split, 8);
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    m = wire_sample(WIRE_TOKENS);
    static const uint8_t less[] = {5, 0, 0, 0, 0, 0, 0, 0}; /* text of nobody is left over */
    m.tokens.text_bytes = wire_span_of(less, 8);
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    m = wire_sample(WIRE_TOKENS);
    static const uint8_t huge[] = {0xff, 0xff, 0xff, 0xff, 9, 0, 0, 0}; /* wraps round to 8 in 32 bits */
    m.tokens.text_bytes = wire_span_of(huge, 8);
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    m = wire_sample(WIRE_TOKENS);
    static const uint8_t last[] = {0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0}; /* sequence numbers past 2^32 */
    m.tokens.first = wire_span_of(last, 8);
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    m = wire_sample(WIRE_TOKENS);
    static const uint8_t none[] = {3, 0, 0,
                                   0}; /* three tokens in the first row, only text in the second: the end of a choice */
    m = wire_sample_first(WIRE_TOKENS);
    m.tokens.count = wire_span_of(none, 4);
    assert_int_equal(decode_message(&m), STATUS_OK);
    m = wire_sample(WIRE_TOKENS);
    static const uint8_t choice[] = {0, 0, 17, 0};
    m.tokens.choice = wire_span_of(choice, 4);
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    m = wire_sample_first(WIRE_TOKENS); /* log probabilities may be left out altogether */
    m.tokens.logprobs.size = 0;
    assert_int_equal(decode_message(&m), STATUS_OK);

    struct wire_message lease = wire_sample(WIRE_LEASE);
    lease.lease.credit_streams.size -= 4;
    assert_int_equal(decode_message(&lease), STATUS_INVALID);
    struct wire_message head = wire_sample(WIRE_HEAD);
    head.head.resume.ids.size -= 4;
    assert_int_equal(decode_message(&head), STATUS_INVALID);
    head.head.resume.ids.size--;
    assert_int_equal(decode_message(&head), STATUS_INVALID);
    struct wire_message body = wire_sample(WIRE_BODY);
    body.body.sampling.bias_ids.size -= 4;
    assert_int_equal(decode_message(&body), STATUS_INVALID);
    body = wire_sample(WIRE_BODY);
    static const uint8_t ids[8];
    body.body.prompt_ids = wire_span_of(ids, 8); /* both */
    assert_int_equal(decode_message(&body), STATUS_INVALID);
    body.body.message_count = 0;
    assert_int_equal(decode_message(&body), STATUS_OK);
    body.body.prompt_ids.size = 7;
    assert_int_equal(decode_message(&body), STATUS_INVALID);
    body.body.prompt_ids.size = 0; /* neither */
    assert_int_equal(decode_message(&body), STATUS_INVALID);
}

static void test_alternatives_that_disagree(void **state)
{
    (void)state;
    struct wire_message m = wire_sample(WIRE_TOKENS);
    assert_int_equal(decode_message(&m), STATUS_OK);
    static const uint8_t many[] = {0, 21}, other[] = {1, 2}, twenty[] = {0, 20};
    static uint8_t zeros[80];
    m.tokens.alternatives = wire_span_of(many, 2);
    m.tokens.alternative_ids = m.tokens.alternative_logprobs = wire_span_of(zeros, 80);
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    m.tokens.alternatives = wire_span_of(twenty, 2);
    assert_int_equal(decode_message(&m), STATUS_OK);
    m = wire_sample(WIRE_TOKENS);
    m.tokens.alternatives = wire_span_of(other, 2); /* 2 * 1 + 1 * 2 are four, not five */
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    m = wire_sample(WIRE_TOKENS);
    static const uint8_t not_a_number[20] = {0, 0, 0xc0, 0x7f};
    m.tokens.alternative_logprobs = wire_span_of(not_a_number, 20);
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    m = wire_sample(WIRE_TOKENS); /* values and no rows that have them */
    m.tokens.alternatives.size = 0;
    assert_int_equal(decode_message(&m), STATUS_INVALID);
}

/* NaN is for rows that did not ask: for all tokens of a row or none, and never beside alternatives. */
static void test_logprobs_of_part_of_a_row(void **state)
{
    (void)state;
    static const struct {
        uint8_t nan[3]; /* rows of two tokens and of one */
        enum status plain, with_alternatives;
    } cases[] = {
        {{0, 0, 0}, STATUS_OK, STATUS_OK},           {{1, 1, 0}, STATUS_OK, STATUS_INVALID},
        {{0, 0, 1}, STATUS_OK, STATUS_INVALID},      {{1, 0, 0}, STATUS_INVALID, STATUS_INVALID},
        {{0, 1, 0}, STATUS_INVALID, STATUS_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t column[12] = {0};
        for (unsigned token = 0; token < 3; token++)
            if (cases[i].nan[token])
                memcpy(column + 4 * token, "\0\0\xc0\x7f", 4);
        struct wire_message plain = wire_sample_first(WIRE_TOKENS), m = wire_sample(WIRE_TOKENS);
        plain.tokens.logprobs = m.tokens.logprobs = wire_span_of(column, sizeof column);
        assert_int_equal(decode_message(&plain), cases[i].plain);
        assert_int_equal(decode_message(&m), cases[i].with_alternatives);
    }
}

static void test_rows_of_the_prompt(void **state)
{
    (void)state;
    static const uint8_t choice[] = {0, 0, 16, 0}, less[] = {8, 0, 0, 0, 0, 0, 0, 0};
    struct wire_message m = wire_sample(WIRE_TOKENS);
    m.tokens.choice = wire_span_of(choice, 4);
    assert_int_equal(decode_message(&m), STATUS_INVALID); /* it has text */
    m.tokens.text_bytes = wire_span_of(less, 8);
    assert_int_equal(decode_message(&m), STATUS_OK);
    m = wire_sample_first(WIRE_TOKENS);
    m.tokens.choice = wire_span_of(choice, 4);
    m.tokens.text_bytes = wire_span_of(less, 8);
    assert_int_equal(decode_message(&m), STATUS_OK);
    m.tokens.logprobs.size = 0; /* nothing to tell */
    assert_int_equal(decode_message(&m), STATUS_INVALID);
    static const uint8_t of_others[12] = {0, 0, 0, 0x80, 0, 0, 0, 0x80, 0, 0, 0xc0, 0x7f}; /* -0, -0, NaN */
    m.tokens.logprobs = wire_span_of(of_others, 12);
    assert_int_equal(decode_message(&m), STATUS_INVALID);
}

static void test_column_reading(void **state)
{
    (void)state;
    const uint8_t bytes[] = {9, 0x01, 0x02, 0x03, 0x84, 0x05, 0x06, 0x07, 0x88};
    struct wire_span column = wire_span_of(bytes + 1, 8); /* not aligned */
    assert_int_equal(wire_u16_at(column, 1), 0x8403);
    assert_true(wire_u32_at(column, 1) == 0x88070605u);
    assert_true(wire_u64_at(column, 0) == 0x8807060584030201u);
    assert_true(wire_span_equal(wire_span_of(NULL, 0), wire_span_str("")));
    assert_false(wire_span_equal(wire_span_str("a"), wire_span_str("b")));
    assert_string_equal(wire_error_name(WIRE_ERROR_OVER_CAPACITY), "over capacity");
    for (int code = -1; code <= WIRE_ERROR_COUNT; code++)
        assert_non_null(wire_error_name((enum wire_error_code)code));
    assert_string_equal(wire_life_name(WIRE_LIFE_READY), "ready");
    assert_string_equal(wire_finish_name(WIRE_FINISH_LENGTH), "length");
    assert_string_equal(wire_kind_name((enum wire_kind)99), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_columns_that_disagree),
        cmocka_unit_test(test_alternatives_that_disagree),
        cmocka_unit_test(test_logprobs_of_part_of_a_row),
        cmocka_unit_test(test_rows_of_the_prompt),
        cmocka_unit_test(test_column_reading),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
