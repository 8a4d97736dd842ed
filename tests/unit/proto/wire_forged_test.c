/* wire_forged_test.c - the codec against protobuf tricks: wire types, varints, fields given twice, unknown ones, too
 * many. */
#include <malloc.h>
#include <string.h>
#include "common/clock.h"
#include "tests/unit/unit.h"
#include "wire_bytes.h"
#include "wire_samples.h"

static void assert_refused(const struct buffer *b, enum status expected, const char *word)
{
    enum status st = decode_exact(b->data, b->size);
    if (st != expected || !strstr(status_detail(), word))
        fail_msg("%s (%s) instead of %s and a detail with '%s'", status_name(st), status_detail(),
                 status_name(expected), word);
}

static void small_head(struct buffer *b)
{
    header(b, WIRE_HEAD);
    append_bytes(b, 1, "request-id-aaaaa", 16);
    append_bytes(b, 2, "session-id-bbbbb", 16);
    append_bytes(b, 4, "acme", 4);
}

static void test_wire_types(void **state)
{
    (void)state;
    struct buffer b = {0};
    small_head(&b);
    assert_int_equal(decode_exact(b.data, b.size), STATUS_OK);
    small_head(&b);
    append_number(&b, 5, 7); /* conversation as a number */
    assert_refused(&b, STATUS_INVALID, "conversation");
    small_head(&b);
    append_bytes(&b, 3, "x", 1); /* stream as bytes */
    assert_refused(&b, STATUS_INVALID, "stream");
    small_head(&b);
    append_number(&b, 13, 7); /* the seed is a fixed64 */
    assert_refused(&b, STATUS_INVALID, "seed");
    small_head(&b);
    append_number(&b, 11, 7); /* a message as a number */
    assert_refused(&b, STATUS_INVALID, "attempt");
    for (unsigned type = 3; type <= 7; type++) {
        if (type == 5)
            continue;
        small_head(&b);
        append_varint(&b, 100u << 3 | type); /* groups and undefined types, of an unknown field */
        assert_refused(&b, STATUS_INVALID, "wire type");
    }
    small_head(&b);
    append_number(&b, 0, 1); /* field number 0 */
    assert_refused(&b, STATUS_INVALID, "tag");
    free(b.data);
}

static void test_varints(void **state)
{
    (void)state;
    struct buffer b = {0};
    const struct {
        const char *bytes;
        size_t size;
        enum status expected;
    } streams[] = {
        {"\x18\x00", 2, STATUS_OK},
        {"\x18\xff\xff\xff\xff\x0f", 6, STATUS_OK},      /* 2^32 - 1 */
        {"\x18\x80\x80\x80\x80\x10", 6, STATUS_INVALID}, /* 2^32 */
        {"\x18\x81\x00", 3, STATUS_INVALID},             /* 1, longer than needed */
        {"\x98\x00\x01", 3, STATUS_INVALID},             /* the tag longer than needed */
        {"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, STATUS_INVALID},
        {"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11, STATUS_INVALID}, /* 65 bits */
        {"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12, STATUS_INVALID},
        {"\x18\x80", 2, STATUS_INVALID},
        {"\x18", 1, STATUS_INVALID},
        {"\x48\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, STATUS_OK}, /* priority -1 */
        {"\x48\xff\xff\xff\xff\x0f", 6, STATUS_INVALID},                 /* priority as an unsigned 2^32 - 1 */
        {"\x70\x01", 2, STATUS_OK},                                      /* seed_given */
        {"\x70\x02", 2, STATUS_INVALID},
        {"\x2a\xff\xff\xff\xff\x0f", 6, STATUS_INVALID}, /* conversation of 4 GiB */
        {"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, STATUS_INVALID},
    };
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        small_head(&b);
        append(&b, streams[i].bytes, streams[i].size);
        enum status st = decode_exact(b.data, b.size);
        if (st != streams[i].expected)
            fail_msg("case %zu: %s", i, status_name(st));
    }
    free(b.data);
}

static void test_given_twice(void **state)
{
    (void)state;
    struct buffer b = {0};
    small_head(&b);
    append_number(&b, 3, 1);
    append_number(&b, 3, 2);
    assert_refused(&b, STATUS_INVALID, "stream: given twice");
    small_head(&b);
    append_bytes(&b, 4, "other", 5); /* a router and a worker must not see different tenants */
    assert_refused(&b, STATUS_INVALID, "tenant: given twice");
    small_head(&b);
    append_bytes(&b, 11, "", 0);
    append_bytes(&b, 11, "", 0);
    assert_refused(&b, STATUS_INVALID, "attempt: given twice");
    free(b.data);
}

static void test_unknown_fields(void **state)
{
    (void)state;
    struct buffer b = {0};
    for (unsigned count = 64; count <= 65; count++) {
        small_head(&b);
        for (unsigned i = 0; i < count; i++) {
            switch (i % 4) {
            case 0: append_number(&b, 1000, 1ull << 60); break;
            case 1: append_bytes(&b, 536870911, "younger", 7); break;
            case 2: append_varint(&b, 1001u << 3 | 1), append(&b, "12345678", 8); break;
            default: append_varint(&b, 1002u << 3 | 5), append(&b, "1234", 4); break;
            }
        }
        if (count == 64)
            assert_int_equal(decode_exact(b.data, b.size), STATUS_OK);
        else
            assert_refused(&b, STATUS_LIMIT, "unknown fields");
    }
    header(&b, WIRE_BODY); /* a megabyte of them: 24 times that in protobuf-c */
    append_bytes(&b, 1, "\x1a\x02hi", 4);
    while (b.size < WIRE_BODY_BYTES_MAX - 8)
        append_number(&b, 15, 0);
    assert_refused(&b, STATUS_LIMIT, "unknown fields");
    header(&b, WIRE_BODY); /* a younger client: a new field in each of 180 messages */
    for (unsigned i = 0; i < 180; i++)
        append_bytes(&b, 1, "\x1a\x02hi\x20\x01", 6);
    assert_int_equal(decode_exact(b.data, b.size), STATUS_OK);
    free(b.data);
}

static void test_too_many(void **state)
{
    (void)state;
    struct buffer b = {0};
    struct wire_message back;

    header(&b, WIRE_BODY); /* 56 times its size in protobuf-c */
    while (b.size < WIRE_BODY_BYTES_MAX - 1)
        append_bytes(&b, 1, "", 0);
    uint64_t start = clock_now_us();
    assert_refused(&b, STATUS_LIMIT, "messages: more than 4096");
    assert_true(clock_now_us() - start < 200000);

    header(&b, WIRE_BODY); /* as many as are allowed: the memory is what the header says */
    for (unsigned i = 0; i < WIRE_MESSAGES_MAX; i++)
        append_bytes(&b, 1, "", 0);
    assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
    assert_int_equal(back.body.message_count, WIRE_MESSAGES_MAX);
    assert_true(malloc_usable_size(back.arena) <=
                WIRE_ARENA_FACTOR * b.size + 4096 + WIRE_MESSAGES_MAX * WIRE_ARENA_ELEMENT_BYTES);
    wire_message_free(&back);
    append_bytes(&b, 1, "", 0);
    assert_refused(&b, STATUS_LIMIT, "messages: more than 4096");

    for (unsigned count = 16; count <= 100016; count += 100000 - 1) { /* 16, 100015 */
        struct buffer sampling = {0};
        for (unsigned i = 0; i < count; i++)
            append_bytes(&sampling, 11, "x", 1);
        header(&b, WIRE_BODY);
        append_bytes(&b, 1, "\x1a\x02hi", 4);
        append_bytes(&b, 3, sampling.data, sampling.size);
        if (count == 16)
            assert_int_equal(decode_exact(b.data, b.size), STATUS_OK);
        else
            assert_refused(&b, STATUS_LIMIT, "stop: more than 16");
        free(sampling.data);
    }

    FOR_EACH_KIND(kind)
    { /* one byte over the frame limit is refused unread */
        uint8_t *frame = calloc(1, wire_frame_bytes_max(kind) + 1);
        assert_non_null(frame);
        memcpy(frame, (uint8_t[]){'R', 1, (uint8_t)kind, 0}, 4);
        assert_int_equal(wire_decode(frame, wire_frame_bytes_max(kind) + 1, &back), STATUS_LIMIT);
        free(frame);
    }
    struct wire_message full = wire_sample(WIRE_BODY); /* a body of exactly the limit */
    struct wire_chat_message message = {WIRE_MESSAGE_USER, {NULL, 0}, {NULL, 0}};
    full.body.messages = &message;
    full.body.message_count = 1;
    message.text = wire_span_of(NULL, 0);
    size_t text =
        WIRE_BODY_BYTES_MAX - wire_encoded_size(&full) - 6; /* two lengths grow by 2 bytes, a tag and a length come */
    uint8_t *words = malloc(text);
    memset(words, 'a', text);
    message.text = wire_span_of(words, text);
    while (wire_encoded_size(&full) > WIRE_BODY_BYTES_MAX)
        message.text.size--;
    assert_int_equal(wire_encoded_size(&full), WIRE_BODY_BYTES_MAX);
    assert_int_equal(decode_message(&full), STATUS_OK);
    message.text.size++;
    if (message.text.size <= text)
        assert_int_equal(decode_message(&full), STATUS_LIMIT);
    free(words);
    free(b.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_types),     cmocka_unit_test(test_varints),  cmocka_unit_test(test_given_twice),
        cmocka_unit_test(test_unknown_fields), cmocka_unit_test(test_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
