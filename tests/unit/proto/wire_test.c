/* wire_test.c - the codec: round trips, kept frames, and frames that are cut or damaged. */
#include <string.h>
#include "tests/unit/seed.h"
#include "tests/unit/unit.h"
#include "wire_bytes.h"
#include "wire_samples.h"

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

/* frames/v1_<kind>.bin, and frames/v1b_, v1c_, v1d_ and v1e_<kind>.bin of kinds that have grown since: written once by this
 * program with ROOST_WRITE_FRAMES=1, never changed afterwards. */
static void test_kept_frames(void **state)
{
    (void)state;
    static const enum wire_kind grown[] = {WIRE_BODY, WIRE_TOKENS, WIRE_DONE};
    for (size_t i = 0; i < sizeof grown / sizeof *grown; i++) {
        struct wire_message sample = wire_sample(grown[i]);
        check_kept_frame(&sample, "v1b");
    }
    static const enum wire_kind grown_again[] = {WIRE_HELLO, WIRE_WELCOME, WIRE_LEASE,       WIRE_HEAD,
                                                 WIRE_ACK,   WIRE_CANCEL,  WIRE_ATTACH_REPLY};
    for (size_t i = 0; i < sizeof grown_again / sizeof *grown_again; i++) {
        struct wire_message sample = wire_sample_failover(grown_again[i]);
        check_kept_frame(&sample, "v1c");
    }
    struct wire_message ack = wire_sample(WIRE_ACK);
    check_kept_frame(&ack, "v1d");
    struct wire_message lease = wire_sample(WIRE_LEASE);
    check_kept_frame(&lease, "v1e");
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
