/* inflight_test.c - the table of requests: keys, states, limits, frames. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "router/inflight.h"

static struct session *const client = (struct session *)0x10;
static struct worker *const worker_a = (struct worker *)0x20, *const worker_b = (struct worker *)0x30;

struct sample {
    uint8_t id[WIRE_ID_BYTES], session[WIRE_ID_BYTES];
    const char *tenant;
    uint32_t stream;
    size_t body;
};

static unsigned bodies_freed;

static void free_body(void *data, void *hint)
{
    (void)hint;
    bodies_freed++;
    free(data);
}

static struct sample sample_of(uint32_t stream)
{
    struct sample sample = {.tenant = "acme", .stream = stream, .body = 1000};
    memcpy(sample.id, &stream, sizeof stream);
    memset(sample.session, 7, sizeof sample.session);
    return sample;
}

/* As a frontend does: encodes, decodes, adds; whatever was not taken is freed here. */
static enum status add(struct inflight *inflight, const struct sample *sample, struct request **out)
{
    struct wire_message head = {.kind = WIRE_HEAD,
                                .head = {.request_id = wire_span_of(sample->id, WIRE_ID_BYTES),
                                         .session = wire_span_of(sample->session, WIRE_ID_BYTES),
                                         .stream = sample->stream,
                                         .tenant = wire_span_str(sample->tenant),
                                         .deadline_ms = 1000,
                                         .body_bytes = (uint32_t)sample->body,
                                         .attempt = {.client = 3}}};
    zmq_msg_t head_frame, body_frame;
    struct wire_message decoded;
    assert_int_equal(zmq_msg_init_size(&head_frame, wire_encoded_size(&head)), 0);
    wire_encode(&head, zmq_msg_data(&head_frame));
    assert_int_equal(zmq_msg_init_data(&body_frame, calloc(1, sample->body), sample->body, free_body, NULL), 0);
    assert_int_equal(wire_decode(zmq_msg_data(&head_frame), zmq_msg_size(&head_frame), &decoded), STATUS_OK);
    enum status st = inflight_add(inflight, client, &head_frame, &decoded, &body_frame, out);
    assert_int_equal(zmq_msg_size(&body_frame), st == STATUS_OK ? 0 : sample->body); /* taken only on success */
    wire_message_free(&decoded);
    zmq_msg_close(&head_frame);
    zmq_msg_close(&body_frame);
    return st;
}

static struct inflight *create(uint32_t requests_max, uint64_t bytes_max)
{
    struct inflight *inflight;
    assert_int_equal(inflight_create(&(struct inflight_config){requests_max, bytes_max}, &inflight), STATUS_OK);
    return inflight;
}

static void found_by_every_key(void **state)
{
    (void)state;
    struct inflight *inflight = create(100, 1 << 20);
    struct request *requests[20];
    for (uint32_t i = 0; i < 20; i++) {
        struct sample sample = sample_of(i);
        assert_int_equal(add(inflight, &sample, &requests[i]), STATUS_OK);
        assert_int_equal(requests[i]->state, REQUEST_PLACING);
        assert_int_equal(requests[i]->client_attempt.client, 3);
        assert_int_equal(inflight_bind(inflight, requests[i], i % 2 ? worker_a : worker_b), STATUS_OK);
    }
    for (uint32_t i = 0; i < 20; i++) {
        struct sample sample = sample_of(i);
        struct wire_span id = wire_span_of(sample.id, WIRE_ID_BYTES),
                         session = wire_span_of(sample.session, WIRE_ID_BYTES);
        assert_ptr_equal(inflight_find_id(inflight, wire_span_str("acme"), id), requests[i]);
        assert_null(inflight_find_id(inflight, wire_span_str("acme2"), id));
        assert_null(inflight_find_id(inflight, wire_span_str("acme"), session));
        assert_ptr_equal(inflight_find_stream(inflight, session, i), requests[i]);
        assert_null(inflight_find_stream(inflight, session, i + 20));
        assert_null(inflight_find_stream(inflight, id, i));
        assert_ptr_equal(inflight_find_backend(inflight, i % 2 ? worker_a : worker_b, requests[i]->backend_stream),
                         requests[i]);
        assert_null(inflight_find_backend(inflight, i % 2 ? worker_b : worker_a, requests[i]->backend_stream));
        assert_true(wire_span_equal(requests[i]->head.head.tenant, wire_span_str("acme")));
    }
    uint32_t before = requests[0]->backend_stream;
    inflight_unbind(inflight, requests[0]);
    inflight_unbind(inflight, requests[0]);
    assert_null(inflight_find_backend(inflight, worker_b, before));
    assert_int_equal(inflight_bind(inflight, requests[0], worker_a), STATUS_OK);
    assert_int_not_equal(requests[0]->backend_stream, before); /* never the number of an older dispatch */
    inflight_destroy(&inflight);
    inflight_destroy(&inflight);
}

static void no_two_of_a_kind(void **state)
{
    (void)state;
    struct inflight *inflight = create(100, 1 << 20);
    struct request *first, *other;
    struct sample sample = sample_of(1);
    assert_int_equal(add(inflight, &sample, &first), STATUS_OK);
    assert_int_equal(add(inflight, &sample, &other), STATUS_EXISTS);
    sample.stream = 2; /* the same id */
    assert_int_equal(add(inflight, &sample, &other), STATUS_EXISTS);
    sample.tenant = "other"; /* of another tenant: another request */
    assert_int_equal(add(inflight, &sample, &other), STATUS_OK);
    sample = sample_of(3);
    sample.stream = 1; /* another id on a stream in use */
    assert_int_equal(add(inflight, &sample, &other), STATUS_EXISTS);
    sample.session[0]++; /* of another session: another stream */
    assert_int_equal(add(inflight, &sample, &other), STATUS_OK);
    assert_int_equal(inflight_count(inflight), 3);
    assert_int_equal(inflight_rename(inflight, first, 2), STATUS_EXISTS);
    assert_int_equal(inflight_rename(inflight, first, 1), STATUS_OK);
    assert_int_equal(inflight_rename(inflight, first, 50), STATUS_OK);
    struct sample again = sample_of(1);
    struct wire_span session = wire_span_of(again.session, WIRE_ID_BYTES);
    assert_ptr_equal(inflight_find_stream(inflight, session, 50), first);
    assert_null(inflight_find_stream(inflight, session, 1));
    inflight_remove(inflight, first);
    assert_null(inflight_find_stream(inflight, session, 50));
    assert_int_equal(add(inflight, &again, &first), STATUS_OK);
    inflight_destroy(&inflight);
}

static void a_state_is_a_list(void **state)
{
    (void)state;
    struct inflight *inflight = create(100, 1 << 20);
    struct request *requests[6];
    for (uint32_t i = 0; i < 6; i++) {
        struct sample sample = sample_of(i);
        assert_int_equal(add(inflight, &sample, &requests[i]), STATUS_OK);
    }
    assert_int_equal(inflight_count_in(inflight, REQUEST_PLACING), 6);
    for (uint32_t i = 0; i < 6; i++)
        inflight_move(inflight, requests[i], (enum request_state)i);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(inflight_count_in(inflight, (enum request_state)i), 1);
        assert_ptr_equal(inflight_first(inflight, (enum request_state)i), requests[i]);
        assert_null(inflight_next(requests[i]));
    }
    inflight_move(inflight, requests[0], REQUEST_WAITING); /* behind who waits already */
    assert_ptr_equal(inflight_first(inflight, REQUEST_WAITING), requests[1]);
    assert_ptr_equal(inflight_next(requests[1]), requests[0]);
    inflight_move(inflight, requests[1], REQUEST_WAITING);
    assert_ptr_equal(inflight_first(inflight, REQUEST_WAITING), requests[0]);
    inflight_remove(inflight, requests[0]);
    assert_int_equal(inflight_count_in(inflight, REQUEST_WAITING), 1);
    assert_int_equal(inflight_count(inflight), 5);
    inflight_destroy(&inflight);
}

static void limits_and_frames(void **state)
{
    (void)state;
    bodies_freed = 0;
    struct inflight *inflight = create(10, 5000);
    struct request *requests[10], *more;
    for (uint32_t i = 0; i < 4; i++) {
        struct sample sample = sample_of(i);
        assert_int_equal(add(inflight, &sample, &requests[i]), STATUS_OK);
    }
    struct sample fifth = sample_of(5);
    assert_int_equal(add(inflight, &fifth, &more), STATUS_LIMIT); /* 4 heads and 5,000 bytes */
    assert_int_equal(bodies_freed, 1);
    fifth.body = 100;
    assert_int_equal(add(inflight, &fifth, &more), STATUS_OK);
    assert_true(inflight_bytes(inflight) > 4100 && inflight_bytes(inflight) <= 5000);
    /* a copy that is under way keeps the bytes alive; nothing is copied */
    zmq_msg_t copy;
    zmq_msg_init(&copy);
    zmq_msg_copy(&copy, &requests[0]->body_frame);
    assert_ptr_equal(zmq_msg_data(&copy), zmq_msg_data(&requests[0]->body_frame));
    inflight_remove(inflight, requests[0]);
    assert_int_equal(bodies_freed, 1);
    zmq_msg_close(&copy);
    assert_int_equal(bodies_freed, 2);
    inflight_remove(inflight, requests[1]);
    assert_int_equal(bodies_freed, 3);
    for (uint32_t i = 10; i < 17; i++) {
        struct sample small = sample_of(i);
        small.body = 10;
        assert_int_equal(add(inflight, &small, &more), STATUS_OK);
    }
    struct sample small = sample_of(20);
    small.body = 10;
    assert_int_equal(add(inflight, &small, &more), STATUS_LIMIT);
    inflight_destroy(&inflight);
}

static void many_come_and_go(void **state)
{
    (void)state;
    struct inflight *inflight = create(100000, UINT64_C(1) << 30);
    static struct request *requests[5000];
    for (unsigned round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 5000; i++) {
            struct sample sample = sample_of(i);
            sample.body = 64;
            assert_int_equal(add(inflight, &sample, &requests[i]), STATUS_OK);
            assert_int_equal(inflight_bind(inflight, requests[i], worker_a), STATUS_OK);
            inflight_move(inflight, requests[i], REQUEST_SENT);
        }
        for (uint32_t i = 0; i < 5000; i++)
            assert_ptr_equal(inflight_find_backend(inflight, worker_a, requests[i]->backend_stream), requests[i]);
        for (uint32_t i = 0; i < 5000; i++)
            inflight_remove(inflight, requests[(i * 7919) % 5000]);
        assert_int_equal(inflight_count(inflight), 0);
        assert_int_equal(inflight_bytes(inflight), 0);
    }
    inflight_destroy(&inflight);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(found_by_every_key), cmocka_unit_test(no_two_of_a_kind), cmocka_unit_test(a_state_is_a_list),
        cmocka_unit_test(limits_and_frames),  cmocka_unit_test(many_come_and_go),
    };
    if (hash_setup() != STATUS_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
