/* wire_batch_test.c - rows of tokens put together into frames: where they are split, what they are limited to. */
#include <math.h>
#include <string.h>
#include "tests/unit/unit.h"
#include "wire_bytes.h"

static struct wire_tokens_row make_row(unsigned i, const uint8_t *ids, unsigned count, const char *text,
                                       size_t text_size)
{
    return (struct wire_tokens_row){.stream = i,
                                    .choice = (uint16_t)(i % 16),
                                    .attempt = {i + 1, i + 2},
                                    .first = i * 3,
                                    .count = (uint16_t)count,
                                    .ids = wire_span_of(ids, 4 * (size_t)count),
                                    .text = wire_span_of(text, text_size)};
}

static unsigned read_back(struct wire_span frame, unsigned at, const uint8_t *ids, const char *text)
{
    struct wire_message message;
    struct wire_tokens_cursor cursor = {0};
    struct wire_tokens_row row;
    assert_true(frame.size <= WIRE_TOKENS_BYTES_MAX);
    assert_int_equal(wire_decode(frame.data, frame.size, &message), STATUS_OK);
    assert_int_equal(message.kind, WIRE_TOKENS);
    while (wire_tokens_next(&message.tokens, &cursor, &row)) {
        unsigned count = at % 3, text_size = count ? at % 50 : 0;
        assert_int_equal(row.stream, at);
        assert_int_equal(row.choice, at % 16);
        assert_int_equal(row.attempt.client, at + 1);
        assert_int_equal(row.attempt.router, at + 2);
        assert_int_equal(row.first, at * 3);
        assert_int_equal(row.count, count);
        assert_true(wire_span_equal(row.ids, wire_span_of(ids, 4 * (size_t)count)));
        assert_true(wire_span_equal(row.text, wire_span_of(text, text_size)));
        assert_int_equal(row.logprobs.size, 0);
        at++;
    }
    wire_message_free(&message);
    return at;
}

static void test_batch_splits(void **state)
{
    (void)state;
    const uint8_t ids[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    const char *text = "0123456789012345678901234567890123456789012345678901234567890";
    struct wire_batch *batch = NULL;
    unsigned frames = 0, read = 0, total = 30000;
    assert_int_equal(wire_batch_create(&batch), STATUS_OK);
    assert_true(wire_batch_empty(batch));
    assert_false(wire_batch_full(batch));
    assert_int_equal(wire_batch_take(batch).size, 0);
    for (unsigned i = 0; i < total; i++) {
        struct wire_tokens_row row = make_row(i, ids, i % 3, text, i % 3 ? i % 50 : 0);
        assert_int_equal(wire_batch_add(batch, &row), STATUS_OK);
        if (wire_batch_full(batch)) {
            struct wire_span frame = wire_batch_take(batch);
            assert_true(frame.size > WIRE_TOKENS_BYTES_MAX - 2 * WIRE_BATCH_RESERVE_BYTES);
            read = read_back(frame, read, ids, text);
            frames++;
            assert_true(wire_batch_empty(batch));
            assert_false(wire_batch_full(batch));
        }
    }
    read = read_back(wire_batch_take(batch), read, ids, text);
    assert_int_equal(read, total);
    assert_in_range(frames, 5, 8);

    /* Without asking whether it is full: the row that does not fit is refused and nothing of it stays. */
    unsigned taken = 0, added = 0;
    read = 0;
    while (added < total) {
        struct wire_tokens_row row = make_row(added, ids, added % 3, text, added % 3 ? added % 50 : 0);
        enum status st = wire_batch_add(batch, &row);
        if (st == STATUS_AGAIN) {
            read = read_back(wire_batch_take(batch), read, ids, text);
            assert_int_equal(read, added);
            taken++;
            continue;
        }
        assert_int_equal(st, STATUS_OK);
        added++;
    }
    assert_int_equal(read_back(wire_batch_take(batch), read, ids, text), total);
    assert_in_range(taken, 5, 8);
    wire_batch_destroy(&batch);
    assert_null(batch);
    wire_batch_destroy(&batch);
}

static void test_batch_limits(void **state)
{
    (void)state;
    static uint8_t ids[4 * 65535];
    static char text[WIRE_TOKENS_BYTES_MAX];
    struct wire_batch *batch = NULL;
    memset(text, 'x', sizeof text);
    assert_int_equal(wire_batch_create(&batch), STATUS_OK);
    struct wire_tokens_row row = make_row(0, ids, 1, text, WIRE_TOKENS_BYTES_MAX - 100);
    assert_int_equal(wire_batch_add(batch, &row), STATUS_OK);
    assert_true(wire_batch_full(batch));
    struct wire_tokens_row small = make_row(1, ids, 1, text, 1000);
    assert_int_equal(wire_batch_add(batch, &small), STATUS_AGAIN);
    struct wire_span frame = wire_batch_take(batch);
    assert_in_range(frame.size, WIRE_TOKENS_BYTES_MAX - 100, WIRE_TOKENS_BYTES_MAX);
    assert_int_equal(decode_exact(frame.data, frame.size), STATUS_OK);
    row.text.size = WIRE_TOKENS_BYTES_MAX - 50;
    assert_int_equal(wire_batch_add(batch, &row), STATUS_LIMIT);
    row = make_row(0, ids, 65535, text, 1000);
    assert_int_equal(wire_batch_add(batch, &row), STATUS_LIMIT);
    row = make_row(0, ids, 2, text, 10);
    row.ids.size = 4;
    assert_int_equal(wire_batch_add(batch, &row), STATUS_INVALID);
    assert_true(wire_batch_empty(batch));
    row = make_row(0, ids, 0, text, 10); /* text after the last token */
    assert_int_equal(wire_batch_add(batch, &row), STATUS_OK);
    frame = wire_batch_take(batch);
    assert_int_equal(decode_exact(frame.data, frame.size), STATUS_OK);
    wire_batch_destroy(&batch);
}

static void test_batch_logprobs(void **state)
{
    (void)state;
    const uint8_t ids[8] = {1, 0, 0, 0, 2, 0, 0, 0};
    const uint8_t values[8] = {0, 0, 0x80, 0xbf, 0, 0, 0, 0xc0}; /* -1, -2 */
    struct wire_batch *batch = NULL;
    assert_int_equal(wire_batch_create(&batch), STATUS_OK);
    for (unsigned i = 0; i < 3; i++) { /* none, two, none */
        struct wire_tokens_row row = make_row(i, ids, 2, "ab", 2);
        if (i == 1)
            row.logprobs = wire_span_of(values, 8);
        assert_int_equal(wire_batch_add(batch, &row), STATUS_OK);
    }
    struct wire_span frame = wire_batch_take(batch);
    struct wire_message message;
    struct wire_tokens_cursor cursor = {0};
    struct wire_tokens_row row;
    assert_int_equal(wire_decode(frame.data, frame.size, &message), STATUS_OK);
    for (unsigned i = 0; wire_tokens_next(&message.tokens, &cursor, &row); i++) {
        assert_true(isnan(wire_f32_at(message.tokens.logprobs, 2 * i)) == (i != 1));
        assert_int_equal(row.logprobs.size, i == 1 ? 8 : 0); /* NaN: it did not ask */
        if (i == 1)
            assert_true(wire_f32_at(row.logprobs, 1) == -2);
    }
    assert_int_equal(cursor.row, 3);
    wire_message_free(&message);
    struct wire_tokens_row plain = make_row(0, ids, 2, "ab", 2); /* the next frame starts without */
    assert_int_equal(wire_batch_add(batch, &plain), STATUS_OK);
    frame = wire_batch_take(batch);
    assert_int_equal(wire_decode(frame.data, frame.size, &message), STATUS_OK);
    assert_int_equal(message.tokens.logprobs.size, 0);
    wire_message_free(&message);
    wire_batch_destroy(&batch);
}

/* Rows with and without alternatives in one frame; the split counts their bytes. */
static void test_batch_alternatives(void **state)
{
    (void)state;
    static uint8_t values[4 * 300 * 20];
    struct wire_batch *batch = NULL;
    uint32_t added = 0, seen = 0, frames = 0;
    for (size_t i = 0; i < sizeof values; i += 4)
        values[i] = (uint8_t)(i / 4), values[i + 3] = 0x40;
    assert_int_equal(wire_batch_create(&batch), STATUS_OK);
    while (seen < 40) {
        unsigned alternatives = added % 3 ? 20 : 0, count = added % 5 ? 300 : 0;
        struct wire_tokens_row row = make_row(added, values, count, "", 0);
        row.choice = added % 2 ? WIRE_CHOICE_PROMPT : 3;
        row.logprobs = wire_span_of(values, 4 * (size_t)count);
        row.alternatives = (uint8_t)alternatives;
        row.alternative_ids = row.alternative_logprobs = wire_span_of(values, 4 * (size_t)count * alternatives);
        enum status st = added < 40 ? wire_batch_add(batch, &row) : STATUS_AGAIN;
        added += st == STATUS_OK;
        if (st == STATUS_OK)
            continue;
        assert_int_equal(st, STATUS_AGAIN);
        struct wire_span frame = wire_batch_take(batch);
        struct wire_message message;
        struct wire_tokens_cursor cursor = {0};
        assert_in_range(frame.size, 1, WIRE_TOKENS_BYTES_MAX);
        assert_int_equal(wire_decode(frame.data, frame.size, &message), STATUS_OK);
        for (; wire_tokens_next(&message.tokens, &cursor, &row); seen++) {
            count = seen % 5 ? 300 : 0;
            alternatives = seen % 3 && count ? 20 : 0;
            assert_int_equal(row.stream, seen);
            assert_int_equal(row.choice, seen % 2 ? WIRE_CHOICE_PROMPT : 3);
            assert_int_equal(row.count, count);
            assert_true(wire_span_equal(row.logprobs, wire_span_of(values, 4 * (size_t)count)));
            assert_int_equal(count ? row.alternatives : 0, alternatives);
            assert_true(wire_span_equal(row.alternative_ids, wire_span_of(values, 4 * (size_t)count * alternatives)));
            assert_true(wire_span_equal(row.alternative_logprobs, row.alternative_ids));
        }
        wire_message_free(&message);
        frames++;
    }
    assert_int_equal(added, 40);
    assert_in_range(frames, 5, 12); /* 22 rows of 300 tokens with 20: 50 KB each */
    struct wire_tokens_row row =
        make_row(0, values, 3, "abc", 3); /* alternatives need logprobs, and all their columns */
    row.alternatives = 2;
    row.alternative_ids = row.alternative_logprobs = wire_span_of(values, 24);
    assert_int_equal(wire_batch_add(batch, &row), STATUS_INVALID);
    row.logprobs = wire_span_of(values, 12);
    row.alternative_logprobs.size = 20;
    assert_int_equal(wire_batch_add(batch, &row), STATUS_INVALID);
    row.alternative_logprobs.size = 24;
    assert_int_equal(wire_batch_add(batch, &row), STATUS_OK);
    wire_batch_destroy(&batch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_splits),
        cmocka_unit_test(test_batch_limits),
        cmocka_unit_test(test_batch_logprobs),
        cmocka_unit_test(test_batch_alternatives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
