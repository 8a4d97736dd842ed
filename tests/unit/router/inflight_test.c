/* inflight_test.c - the table of requests: keys, states, limits, frames. */
#include <stdlib.h>
#include <string.h>
#include "router/inflight.h"
#include "tests/unit/unit.h"

static struct session *const client = (struct session *)0x10;
static struct worker *const worker_a = (struct worker *)0x20, *const worker_b = (struct worker *)0x30;

struct sample {
    uint8_t id[WIRE_ID_BYTES], session[WIRE_ID_BYTES];
    const char *tenant;
    uint32_t stream;
    size_t body;
    const uint32_t *resume; /* of two choices, or NULL */
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

/* As a frontend does: encodes, decodes, adds (or, with `again`, replaces); whatever was not taken is freed here. */
static enum status bring(struct inflight *inflight, const struct sample *sample, struct request *again,
                         struct request **out)
{
    uint32_t ids[100];
    for (uint32_t i = 0; i < 100; i++)
        ids[i] = 1000 + i; /* little-endian, as every machine we test on */
    size_t total = sample->resume ? sample->resume[0] + sample->resume[1] : 0;
    struct wire_message head = {.kind = WIRE_HEAD,
                                .head = {.request_id = wire_span_of(sample->id, WIRE_ID_BYTES),
                                         .session = wire_span_of(sample->session, WIRE_ID_BYTES),
                                         .stream = sample->stream,
                                         .tenant = wire_span_str(sample->tenant),
                                         .deadline_ms = 1000,
                                         .body_bytes = (uint32_t)sample->body,
                                         .resume = {.counts = wire_span_of(sample->resume, sample->resume ? 8 : 0),
                                                    .ids = wire_span_of(ids, 4 * total)},
                                         .attempt = {.client = again ? 4 : 3}}};
    zmq_msg_t head_frame, body_frame;
    struct wire_message decoded;
    assert_int_equal(zmq_msg_init_size(&head_frame, wire_encoded_size(&head)), 0);
    wire_encode(&head, zmq_msg_data(&head_frame));
    assert_int_equal(zmq_msg_init_data(&body_frame, calloc(1, sample->body), sample->body, free_body, NULL), 0);
    assert_int_equal(wire_decode(zmq_msg_data(&head_frame), zmq_msg_size(&head_frame), &decoded), STATUS_OK);
    enum status st = again ? inflight_replace(inflight, again, &head_frame, &decoded, &body_frame)
                           : inflight_add(inflight, client, &head_frame, &decoded, &body_frame, out);
    assert_int_equal(zmq_msg_size(&body_frame), st == STATUS_OK ? 0 : sample->body); /* taken only on success */
    wire_message_free(&decoded);
    zmq_msg_close(&head_frame);
    zmq_msg_close(&body_frame);
    return st;
}

static enum status add(struct inflight *inflight, const struct sample *sample, struct request **out)
{
    return bring(inflight, sample, NULL, out);
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
        inflight_bind(inflight, requests[i], i % 2 ? worker_a : worker_b);
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
    inflight_bind(inflight, requests[0], worker_a);
    assert_int_not_equal(requests[0]->backend_stream, before); /* never the number of an older dispatch */
    inflight_destroy(&inflight);
    inflight_destroy(&inflight);
}

/* Few places, so numbers of long streams are in the way again and again. */
static void numbers_go_round(void **state)
{
    (void)state;
    struct inflight *inflight = create(3, 1 << 20);
    struct request *longs[2], *other;
    for (uint32_t i = 0; i < 2; i++) {
        struct sample sample = sample_of(i);
        assert_int_equal(add(inflight, &sample, &longs[i]), STATUS_OK);
        inflight_bind(inflight, longs[i], worker_a);
    }
    struct sample sample = sample_of(2);
    assert_int_equal(add(inflight, &sample, &other), STATUS_OK);
    uint32_t before = longs[1]->backend_stream;
    for (unsigned i = 0; i < 100; i++) {
        inflight_bind(inflight, other, worker_a);
        assert_true(other->backend_stream > before);
        assert_ptr_equal(inflight_find_backend(inflight, worker_a, other->backend_stream), other);
        for (unsigned k = 0; k < 2; k++)
            assert_ptr_equal(inflight_find_backend(inflight, worker_a, longs[k]->backend_stream), longs[k]);
        for (uint32_t number = before; number < other->backend_stream; number++) /* of dispatches that are over */
            if (number != longs[0]->backend_stream && number != longs[1]->backend_stream)
                assert_null(inflight_find_backend(inflight, worker_a, number));
        before = other->backend_stream;
        inflight_unbind(inflight, other);
    }
    for (uint32_t number = before; number < before + 1000; number++) /* of dispatches that never were */
        assert_null(inflight_find_backend(inflight, worker_a, number));
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
    struct sample again = sample_of(1);
    assert_int_equal(bring(inflight, &again, first, NULL), STATUS_OK);
    again.stream = 50;
    assert_int_equal(bring(inflight, &again, first, NULL), STATUS_OK);
    again.stream = 2;
    assert_int_equal(bring(inflight, &again, first, NULL), STATUS_EXISTS);
    again.stream = 1;
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
    struct request *requests[REQUEST_STATE_COUNT];
    for (uint32_t i = 0; i < REQUEST_STATE_COUNT; i++) {
        struct sample sample = sample_of(i);
        assert_int_equal(add(inflight, &sample, &requests[i]), STATUS_OK);
    }
    assert_int_equal(inflight_count_in(inflight, REQUEST_PLACING), REQUEST_STATE_COUNT);
    for (uint32_t i = 0; i < REQUEST_STATE_COUNT; i++)
        inflight_move(inflight, requests[i], (enum request_state)i);
    for (unsigned i = 0; i < REQUEST_STATE_COUNT; i++) {
        assert_int_equal(inflight_count_in(inflight, (enum request_state)i), 1);
        assert_ptr_equal(inflight_first(inflight, (enum request_state)i), requests[i]);
        assert_null(inflight_next(requests[i]));
    }
    struct request *waiting = requests[REQUEST_WAITING];
    inflight_move(inflight, requests[0], REQUEST_WAITING); /* behind who waits already */
    assert_ptr_equal(inflight_first(inflight, REQUEST_WAITING), waiting);
    assert_ptr_equal(inflight_next(waiting), requests[0]);
    inflight_move(inflight, waiting, REQUEST_WAITING);
    assert_ptr_equal(inflight_first(inflight, REQUEST_WAITING), requests[0]);
    inflight_remove(inflight, requests[0]);
    assert_int_equal(inflight_count_in(inflight, REQUEST_WAITING), 1);
    assert_int_equal(inflight_count(inflight), REQUEST_STATE_COUNT - 1);
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

static uint32_t id_at(const struct request *request, unsigned choice, unsigned index)
{
    return wire_u32_at(wire_span_of(request->replies[choice].ids, request->replies[choice].size), index);
}

/* What a client has: from its resume on, of each choice, and gone with the request. */
static void ids_are_kept(void **state)
{
    (void)state;
    struct inflight *inflight = create(10, 1 << 20);
    static const uint32_t counts[2] = {3, 60}, ids[3] = {7, 8, 9};
    struct sample sample = sample_of(1), plain = sample_of(2);
    struct request *request, *other;
    assert_int_equal(add(inflight, &plain, &other), STATUS_OK);
    uint64_t before = inflight_bytes(inflight);
    sample.resume = counts;
    assert_int_equal(add(inflight, &sample, &request), STATUS_OK);
    assert_int_equal(request->choices, 2);
    assert_int_equal(request->next[0], 3);
    assert_int_equal(request->next[1], 60);
    assert_int_equal(request->released, 63);
    for (unsigned i = 0; i < 100; i++)
        inflight_keep_ids(inflight, request, i % 2, wire_span_of(ids, sizeof ids));
    inflight_keep_ids(inflight, request, 9, wire_span_of(ids, 4));
    assert_int_equal(request->replies[0].size, 4 * (3 + 150));
    assert_int_equal(request->replies[1].size, 4 * (60 + 150));
    assert_int_equal(request->replies[9].size, 4);
    for (unsigned i = 0; i < 153; i++)
        assert_int_equal(id_at(request, 0, i), i < 3 ? 1000 + i : 7 + i % 3);
    assert_int_equal(id_at(request, 1, 59), 1062); /* behind those of choice 0 */
    assert_true(inflight_bytes(inflight) - before > 1000 + 4 * 364);
    /* sent again by its client: what that has counts */
    sample.resume = NULL;
    assert_int_equal(bring(inflight, &sample, request, NULL), STATUS_OK);
    assert_int_equal(request->released, 0);
    assert_int_equal(request->next[1], 0);
    assert_int_equal(request->client_attempt.client, 4);
    assert_int_equal(inflight_bytes(inflight) - before, before); /* as the plain one */
    inflight_remove(inflight, request);
    assert_int_equal(inflight_bytes(inflight), before);
    inflight_remove(inflight, other);
    assert_int_equal(inflight_bytes(inflight), 0);
    inflight_destroy(&inflight);
}

/* Over the budget those go that a worker has, the oldest acknowledged first. */
static void the_oldest_acknowledged_are_shed(void **state)
{
    (void)state;
    bodies_freed = 0;
    struct inflight *inflight = create(20, 10000); /* 9 of them */
    struct request *requests[10], *more;
    for (uint32_t i = 0; i < 9; i++) {
        struct sample sample = sample_of(i);
        assert_int_equal(add(inflight, &sample, &requests[i]), STATUS_OK);
        inflight_bind(inflight, requests[i], worker_a);
    }
    struct sample next = sample_of(10);
    assert_int_equal(add(inflight, &next, &more), STATUS_LIMIT); /* none is acknowledged */
    bodies_freed = 0;
    inflight_acknowledged(inflight, requests[4]);
    inflight_acknowledged(inflight, requests[2]);
    inflight_acknowledged(inflight, requests[7]);
    inflight_unbind(inflight, requests[2]); /* lost: it needs its body now */
    assert_int_equal(add(inflight, &next, &more), STATUS_OK);
    assert_true(requests[4]->shed);
    assert_int_equal(bodies_freed, 1);
    assert_int_equal(requests[4]->body_bytes, 1000);
    assert_int_equal(zmq_msg_size(&requests[4]->body_frame), 0);
    assert_int_equal(inflight_shed_count(inflight), 1);
    next = sample_of(11);
    assert_int_equal(add(inflight, &next, &more), STATUS_OK);
    assert_true(requests[7]->shed && !requests[2]->shed);
    next = sample_of(12);
    assert_int_equal(add(inflight, &next, &more), STATUS_LIMIT);
    assert_true(inflight_bytes(inflight) <= 10000);
    /* its client sends one again: then it is whole */
    inflight_remove(inflight, more);
    struct sample again = sample_of(4);
    assert_int_equal(bring(inflight, &again, requests[4], NULL), STATUS_OK);
    assert_false(requests[4]->shed);
    /* tokens that have no room shed their own request too */
    inflight_acknowledged(inflight, requests[4]);
    static const uint32_t ids[2000];
    inflight_keep_ids(inflight, requests[4], 0, wire_span_of(ids, sizeof ids));
    assert_true(requests[4]->shed);
    inflight_keep_ids(inflight, requests[4], 0, wire_span_of(ids, sizeof ids));
    assert_null(requests[4]->replies[0].ids);
    inflight_destroy(&inflight);
}

/* One tenant has a quarter at most, and sheds only its own. */
static void a_tenant_has_its_share(void **state)
{
    (void)state;
    struct inflight *inflight = create(1000, 16 << 20);
    struct request *first, *other, *more;
    struct sample sample = sample_of(1000);
    sample.tenant = "quiet";
    assert_int_equal(add(inflight, &sample, &other), STATUS_OK);
    inflight_bind(inflight, other, worker_a);
    inflight_acknowledged(inflight, other); /* older than anything of the other tenant */
    sample = sample_of(0);
    sample.body = 100000;
    assert_int_equal(add(inflight, &sample, &first), STATUS_OK);
    inflight_bind(inflight, first, worker_a);
    inflight_acknowledged(inflight, first);
    uint32_t taken = 1;
    for (uint32_t i = 1; i < 100; i++) {
        sample = sample_of(i);
        sample.body = 100000;
        taken += add(inflight, &sample, &more) == STATUS_OK;
    }
    assert_int_equal(taken, 42); /* 41 within 4 MiB, and the one that was shed */
    assert_true(first->shed);
    assert_false(other->shed);
    sample = sample_of(2000);
    sample.tenant = "late";
    sample.body = 1 << 20;
    assert_int_equal(add(inflight, &sample, &more), STATUS_OK); /* others have room */
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
            inflight_bind(inflight, requests[i], worker_a);
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
        cmocka_unit_test(found_by_every_key),
        cmocka_unit_test(numbers_go_round),
        cmocka_unit_test(no_two_of_a_kind),
        cmocka_unit_test(a_state_is_a_list),
        cmocka_unit_test(limits_and_frames),
        cmocka_unit_test(many_come_and_go),
        cmocka_unit_test(ids_are_kept),
        cmocka_unit_test(the_oldest_acknowledged_are_shed),
        cmocka_unit_test(a_tenant_has_its_share),
    };
    return unit_run(tests, NULL, NULL);
}
