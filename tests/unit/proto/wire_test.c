/* The codec: round trips, kept frames, and input that is cut, damaged, forged or too much. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <malloc.h>
#include <math.h>
#include <cmocka.h>

#include "common/clock.h"
#include "proto/wire.h"
#include "tests/unit/seed.h"
#include "wire_samples.h"

struct buffer {
    uint8_t *data;
    size_t size, room;
};

static void append(struct buffer *b, const void *data, size_t size)
{
    if (b->size + size > b->room) {
        b->room = 2 * (b->size + size) + 64;
        b->data = realloc(b->data, b->room);
        assert_non_null(b->data);
    }
    if (size > 0)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void append_byte(struct buffer *b, unsigned byte)
{
    uint8_t c = (uint8_t)byte;
    append(b, &c, 1);
}

static void append_varint(struct buffer *b, uint64_t value)
{
    for (; value > 0x7f; value >>= 7)
        append_byte(b, (unsigned)(value & 0x7f) | 0x80);
    append_byte(b, (unsigned)value);
}

static void append_number(struct buffer *b, unsigned field, uint64_t value)
{
    append_varint(b, field << 3);
    append_varint(b, value);
}

static void append_bytes(struct buffer *b, unsigned field, const void *data, size_t size)
{
    append_varint(b, field << 3 | 2);
    append_varint(b, size);
    append(b, data, size);
}

static void header(struct buffer *b, enum wire_kind kind)
{
    b->size = 0;
    append_byte(b, 'R');
    append_byte(b, WIRE_VERSION);
    append_byte(b, kind);
    append_byte(b, 0);
}

static struct buffer encoded(const struct wire_message *message)
{
    struct buffer b = {0};
    b.size = b.room = wire_encoded_size(message);
    b.data = malloc(b.size);
    assert_non_null(b.data);
    assert_int_equal(wire_encode(message, b.data), b.size);
    return b;
}

/* Decodes a copy in a block of exactly its size, so that a sanitizer sees the first byte too far; reads all that came
 * out. */
static enum status decode_exact(const void *data, size_t size)
{
    struct wire_message message;
    uint8_t *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    if (size > 0)
        memcpy(copy, data, size);
    memset(&message, 0x5a, sizeof message);
    enum status st = wire_decode(copy, size, &message);
    if (st == STATUS_OK) {
        struct buffer again = encoded(&message);
        if (message.kind == WIRE_TOKENS) {
            struct wire_tokens_cursor cursor = {0};
            struct wire_tokens_row row;
            unsigned rows = 0;
            while (wire_tokens_next(&message.tokens, &cursor, &row))
                rows++;
            assert_int_equal(rows, message.tokens.row_count);
        }
        free(again.data);
        wire_message_free(&message);
    } else {
        uint8_t untouched[sizeof message];
        memset(untouched, 0x5a, sizeof untouched);
        assert_memory_equal(&message, untouched, sizeof message);
        assert_string_not_equal(status_detail(), "");
    }
    free(copy);
    return st;
}

static enum status decode_message(const struct wire_message *message)
{
    struct buffer b = encoded(message);
    enum status st = decode_exact(b.data, b.size);
    free(b.data);
    return st;
}

#define FOR_EACH_KIND(kind) for (enum wire_kind kind = WIRE_HELLO; kind < WIRE_KIND_COUNT; kind++)

/* ---- what is right ---- */

static void test_round_trip(void **state)
{
    (void)state;
    FOR_EACH_KIND(kind)
    {
        struct wire_message sample = wire_sample(kind), back;
        struct buffer b = encoded(&sample);
        assert_int_equal(wire_validate(&sample), STATUS_OK);
        assert_true(b.size <= wire_frame_bytes_max(kind));
        enum wire_kind peeked;
        uint8_t version;
        assert_int_equal(wire_peek(b.data, b.size, &peeked, &version), STATUS_OK);
        assert_int_equal(peeked, kind);
        assert_int_equal(version, WIRE_VERSION);
        assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
        assert_int_equal(back.kind, kind);
        struct buffer again = encoded(&back);
        assert_int_equal(again.size, b.size);
        assert_memory_equal(again.data, b.data, b.size);
        wire_message_free(&back);
        assert_null(back.arena);
        wire_message_free(&back);
        free(b.data);
        free(again.data);
        assert_string_not_equal(wire_kind_name(kind), "unknown");
    }
}

/* Encoding and decoding could forget the same field, so the fields are also compared one by one where they matter most.
 */
static void test_fields_of_head_and_body(void **state)
{
    (void)state;
    struct wire_message sample = wire_sample(WIRE_HEAD), back;
    struct buffer b = encoded(&sample);
    assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
    const struct wire_head *x = &sample.head, *y = &back.head;
    assert_true(wire_span_equal(x->request_id, y->request_id));
    assert_true(wire_span_equal(x->session, y->session));
    assert_true(wire_span_equal(x->tenant, y->tenant));
    assert_true(wire_span_equal(x->conversation, y->conversation));
    assert_true(wire_span_equal(x->model, y->model));
    assert_true(wire_span_equal(x->links, y->links));
    assert_true(wire_span_equal(x->resume.counts, y->resume.counts));
    assert_true(wire_span_equal(x->resume.ids, y->resume.ids));
    assert_true(wire_span_equal(x->incarnation, y->incarnation));
    assert_true(wire_span_equal(x->cache_id, y->cache_id));
    assert_true(wire_span_equal(x->numerics_id, y->numerics_id));
    assert_int_equal(x->stream, y->stream);
    assert_int_equal(x->deadline_ms, y->deadline_ms);
    assert_int_equal(x->priority, y->priority);
    assert_int_equal(x->attempt.client, y->attempt.client);
    assert_int_equal(x->attempt.router, y->attempt.router);
    assert_int_equal(x->loss_count, y->loss_count);
    assert_true(x->seed == y->seed && x->epoch == y->epoch);
    assert_true(y->seed_given && y->inexact_allowed);
    assert_int_equal(x->body_bytes, y->body_bytes);
    wire_message_free(&back);
    free(b.data);

    sample = wire_sample(WIRE_BODY);
    b = encoded(&sample);
    assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
    const struct wire_body *p = &sample.body, *q = &back.body;
    assert_int_equal(q->message_count, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(p->messages[i].role, q->messages[i].role);
        assert_true(wire_span_equal(p->messages[i].name, q->messages[i].name));
        assert_true(wire_span_equal(p->messages[i].text, q->messages[i].text));
    }
    assert_true(p->sampling.temperature == q->sampling.temperature && p->sampling.top_p == q->sampling.top_p);
    assert_true(p->sampling.min_p == q->sampling.min_p &&
                p->sampling.repetition_penalty == q->sampling.repetition_penalty);
    assert_true(p->sampling.presence_penalty == q->sampling.presence_penalty);
    assert_true(p->sampling.frequency_penalty == q->sampling.frequency_penalty);
    assert_int_equal(p->sampling.top_k, q->sampling.top_k);
    assert_int_equal(p->sampling.tokens_max, q->sampling.tokens_max);
    assert_int_equal(p->sampling.tokens_min, q->sampling.tokens_min);
    assert_int_equal(p->sampling.choices, q->sampling.choices);
    assert_int_equal(q->sampling.stop_count, 2);
    assert_true(wire_span_equal(p->sampling.stops[1], q->sampling.stops[1]));
    assert_true(wire_span_equal(p->sampling.bias_values, q->sampling.bias_values));
    assert_int_equal(p->sampling.logprobs, q->sampling.logprobs);
    assert_true(q->sampling.token_logprobs && q->sampling.prompt_logprobs && q->truncate);
    assert_true(wire_span_equal(p->reply_name, q->reply_name));
    assert_true(wire_span_equal(p->history, q->history));
    wire_message_free(&back);
    free(b.data);
}

static void test_defaults(void **state)
{
    (void)state;
    struct wire_message head = wire_sample(WIRE_HEAD), back;
    head.head.deadline_ms = 0;
    struct buffer b = encoded(&head);
    assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
    assert_int_equal(back.head.deadline_ms, WIRE_DEADLINE_MS_DEFAULT);
    wire_message_free(&back);

    header(&b, WIRE_BODY); /* one message, no sampling at all */
    append_bytes(&b, 1, "\x1a\x02hi", 4);
    assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
    assert_int_equal(back.body.sampling.choices, 1);
    assert_int_equal(back.body.message_count, 1);
    assert_true(wire_span_equal(back.body.messages[0].text, wire_span_str("hi")));
    wire_message_free(&back);

    header(&b, WIRE_ERROR); /* a terminal stays one, whatever its code */
    append_number(&b, 4, 4711);
    assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
    assert_int_equal(back.error.code, WIRE_ERROR_INTERNAL);
    wire_message_free(&back);
    header(&b, WIRE_ERROR);
    assert_int_equal(wire_decode(b.data, b.size, &back), STATUS_OK);
    assert_int_equal(back.error.code, WIRE_ERROR_INTERNAL);
    wire_message_free(&back);
    free(b.data);
}

static void check_kept_frame(const struct wire_message *sample, const char *prefix)
{
    const char *source = getenv("ROOST_SOURCE_DIR");
    char path[4096];
    struct wire_message kept;
    struct buffer b = encoded(sample);
    assert_non_null(source);
    snprintf(path, sizeof path, "%s/tests/unit/proto/frames/%s_%s.bin", source, prefix, wire_kind_name(sample->kind));
    FILE *out = getenv("ROOST_WRITE_FRAMES") ? fopen(path, "wbx") : NULL; /* those that are there stay */
    if (out) {
        assert_int_equal(fwrite(b.data, 1, b.size, out), b.size);
        assert_int_equal(fclose(out), 0);
    }
    uint8_t frame[65536];
    FILE *in = fopen(path, "rb");
    if (!in)
        fail_msg("%s is missing", path);
    size_t size = fread(frame, 1, sizeof frame, in);
    assert_int_equal(fclose(in), 0);
    if (wire_decode(frame, size, &kept) != STATUS_OK)
        fail_msg("%s: %s", path, status_detail());
    assert_int_equal(kept.kind, sample->kind);
    struct buffer again = encoded(&kept);
    assert_int_equal(again.size, b.size);
    assert_memory_equal(again.data, b.data, b.size);
    wire_message_free(&kept);
    free(again.data);
    free(b.data);
}

/* frames/v1_<kind>.bin, and frames/v1b_, v1c_ and v1d_<kind>.bin of kinds that have grown since: written once by this program with
 * ROOST_WRITE_FRAMES=1, never changed afterwards. */
static void test_kept_frames(void **state)
{
    (void)state;
    static const enum wire_kind grown[] = {WIRE_BODY, WIRE_TOKENS, WIRE_DONE};
    for (size_t i = 0; i < sizeof grown / sizeof *grown; i++) {
        struct wire_message sample = wire_sample(grown[i]);
        check_kept_frame(&sample, "v1b");
    }
    static const enum wire_kind grown_again[] = {WIRE_HELLO, WIRE_WELCOME, WIRE_LEASE,        WIRE_HEAD,
                                                 WIRE_ACK,   WIRE_CANCEL,  WIRE_ATTACH_REPLY};
    for (size_t i = 0; i < sizeof grown_again / sizeof *grown_again; i++) {
        struct wire_message sample = wire_sample_failover(grown_again[i]);
        check_kept_frame(&sample, "v1c");
    }
    struct wire_message ack = wire_sample(WIRE_ACK);
    check_kept_frame(&ack, "v1d");
    FOR_EACH_KIND(kind)
    {
        struct wire_message sample = wire_sample_first(kind);
        check_kept_frame(&sample, "v1");
    }
}

/* ---- damage ---- */

static void test_header(void **state)
{
    (void)state;
    enum wire_kind kind;
    uint8_t version = 0;
    const uint8_t good[] = {'R', 1, WIRE_HELLO, 0};
    for (size_t size = 0; size < 4; size++)
        assert_int_equal(decode_exact(good, size), STATUS_INVALID);
    assert_int_equal(wire_peek("r\1\1\0", 4, &kind, &version), STATUS_INVALID);
    assert_int_equal(wire_peek("R\1\1\1", 4, &kind, &version), STATUS_INVALID);
    assert_int_equal(version, 0);
    assert_int_equal(wire_peek("R\2\1\0", 4, &kind, &version), STATUS_UNSUPPORTED);
    assert_int_equal(version, 2);
    assert_int_equal(wire_peek("R\1\0\0", 4, &kind, &version), STATUS_UNSUPPORTED);
    assert_int_equal(version, 1);
    const uint8_t beyond[] = {'R', 1, WIRE_KIND_COUNT, 0};
    assert_int_equal(wire_peek(beyond, 4, &kind, NULL), STATUS_UNSUPPORTED);
    assert_int_equal(wire_peek("GET / HTTP/1.1\r\n", 16, &kind, NULL), STATUS_INVALID);
}

static void test_cut_at_every_byte(void **state)
{
    (void)state;
    FOR_EACH_KIND(kind)
    {
        struct wire_message sample = wire_sample(kind);
        struct buffer b = encoded(&sample);
        for (size_t size = 0; size < b.size; size++) {
            enum status st = decode_exact(b.data, size);
            assert_true(st == STATUS_OK || st == STATUS_INVALID);
            if (size + 1 == b.size) /* the last field is cut */
                assert_int_equal(st, STATUS_INVALID);
        }
        free(b.data);
    }
}

static void test_every_bit_flipped(void **state)
{
    (void)state;
    unsigned refused = 0, total = 0;
    FOR_EACH_KIND(kind)
    {
        struct wire_message sample = wire_sample(kind);
        struct buffer b = encoded(&sample);
        for (size_t bit = 0; bit < 8 * b.size; bit++) {
            b.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            refused += decode_exact(b.data, b.size) != STATUS_OK;
            total++;
            b.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        assert_int_equal(decode_exact(b.data, b.size), STATUS_OK);
        free(b.data);
    }
    assert_true(refused > total / 10);
}

static uint64_t random_state;
static uint32_t random_u32(void) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)(random_state * 2685821657736338717u >> 32);
}

static void test_random_damage(void **state)
{
    (void)state;
    random_state = test_seed(0);
    for (unsigned round = 0; round < 60000; round++) {
        enum wire_kind kind = (enum wire_kind)(1 + random_u32() % (WIRE_KIND_COUNT - 1));
        struct wire_message sample = wire_sample(kind);
        struct buffer b = encoded(&sample);
        unsigned changes = 1 + random_u32() % 8;
        for (unsigned i = 0; i < changes; i++) {
            size_t at = 4 + random_u32() % (b.size - 4);
            switch (random_u32() % 3) {
            case 0: b.data[at] = (uint8_t)random_u32(); break;
            case 1: { /* copy a piece over another place: repeated fields, nested in the wrong message */
                size_t from = 4 + random_u32() % (b.size - 4), most = b.size - (at > from ? at : from);
                memmove(b.data + at, b.data + from, random_u32() % (most + 1));
                break;
            }
            default: b.size = at > 5 ? at : 5; break;
            }
            if (b.size < 6)
                break;
        }
        (void)decode_exact(b.data, b.size);
        free(b.data);
    }
}

/* ---- protobuf tricks ---- */

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

/* ---- names, text, numbers, columns ---- */

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
    struct wire_span *columns[] = {
        &m.tokens.stream, &m.tokens.choice, &m.tokens.attempt_client, &m.tokens.attempt_router, &m.tokens.first,
        &m.tokens.count,  &m.tokens.ids,    &m.tokens.text_bytes,     &m.tokens.text,           &m.tokens.logprobs,
        &m.tokens.alternatives, &m.tokens.alternative_ids, &m.tokens.alternative_logprobs};
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
    static const uint8_t none[] = {3, 0, 0, 0}; /* three tokens in the first row, only text in the second: the end of a choice */
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
        {{0, 0, 0}, STATUS_OK, STATUS_OK},
        {{1, 1, 0}, STATUS_OK, STATUS_INVALID},
        {{0, 0, 1}, STATUS_OK, STATUS_INVALID},
        {{1, 0, 0}, STATUS_INVALID, STATUS_INVALID},
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

/* ---- token batches ---- */

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
    struct wire_tokens_row row = make_row(0, values, 3, "abc", 3); /* alternatives need logprobs, and all their columns */
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
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_fields_of_head_and_body),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_kept_frames),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_cut_at_every_byte),
        cmocka_unit_test(test_every_bit_flipped),
        cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_wire_types),
        cmocka_unit_test(test_varints),
        cmocka_unit_test(test_given_twice),
        cmocka_unit_test(test_unknown_fields),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_columns_that_disagree),
        cmocka_unit_test(test_alternatives_that_disagree),
        cmocka_unit_test(test_logprobs_of_part_of_a_row),
        cmocka_unit_test(test_rows_of_the_prompt),
        cmocka_unit_test(test_column_reading),
        cmocka_unit_test(test_batch_splits),
        cmocka_unit_test(test_batch_limits),
        cmocka_unit_test(test_batch_logprobs),
        cmocka_unit_test(test_batch_alternatives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
