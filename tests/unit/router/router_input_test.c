/* router_input_test.c - the real router and what it must not believe or must refuse: repeats, older attempts, skipped
 * tokens, refusals, limits, malformed frames. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/loop.h"
#include "router/inflight.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

/* ---- repeats and lies ---- */

static void duplicate_id(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0], *other = &bench->clients[1];
    struct fake_ask ask = ask_of(1, NULL);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);

    struct fake_ask copy = ask; /* another session */
    copy.stream = 9;
    fake_client_ask(other, &copy);
    SPIN_UNTIL(bench->loop, 2000, other->streams[9].errors == 1);
    assert_int_equal(other->streams[9].error, WIRE_ERROR_CONFLICT);
    copy.stream = 10; /* the same session, not counted up */
    fake_client_ask(client, &copy);
    SPIN_UNTIL(bench->loop, 2000, client->streams[10].errors == 1);
    assert_int_equal(client->streams[10].error, WIRE_ERROR_CONFLICT);
    struct fake_ask same_stream = ask_of(11, NULL);
    same_stream.stream = 1;
    fake_client_ask(client, &same_stream);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].errors == 1); /* about the other id; the stream itself goes on */
    assert_int_equal(client->streams[1].error, WIRE_ERROR_CONFLICT);
    client->streams[1].errors = 0;
    uint64_t stale = stats_of(bench).stale;
    fake_client_ask(client, &ask); /* the very same frame again: dropped */
    SPIN_UNTIL(bench->loop, 2000, stats_of(bench).stale == stale + 1);
    copy.tenant = "somebody-else"; /* another tenant: another request */
    copy.stream = 12;
    fake_client_ask(client, &copy);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);

    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].tokens == 2);
    struct fake_ask newer = ask; /* counted up, on another stream: it is re-bound and seen from its start */
    newer.attempt_client = 2;
    newer.stream = 13;
    fake_client_ask(client, &newer);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 3);
    assert_memory_equal(worker->requests[2].id, ask.id, WIRE_ID_BYTES);
    assert_int_equal(worker->requests[2].attempt.client, 2);
    fake_worker_tokens(worker, &worker->requests[0], 2, 2); /* of the older attempt */
    fake_worker_tokens(worker, &worker->requests[2], 0, 3);
    fake_worker_done(worker, &worker->requests[2], 3);
    SPIN_UNTIL(bench->loop, 2000, client->streams[13].dones == 1);
    assert_int_equal(client->streams[13].tokens, 3);
    assert_int_equal(client->streams[13].attempt.client, 2);
    assert_false(client->streams[13].gap);
    assert_int_equal(client->streams[1].tokens, 2);
    assert_int_equal(fake_stream_ends(&client->streams[1]), 0);
    bench_stop(&bench);
}

static void stale_and_skipping_worker(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    ask_each(bench, 1, 3);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 3);
    struct fake_request forged = worker->requests[0];
    forged.attempt.router += 1;
    fake_worker_tokens(worker, &forged, 0, 4);
    fake_worker_done(worker, &forged, 4);
    forged = worker->requests[0];
    forged.stream += 1000;
    fake_worker_done(worker, &forged, 4);
    forged = worker->requests[0];
    forged.id[0] ^= 1;
    fake_worker_done(worker, &forged, 0);
    SPIN_UNTIL(bench->loop, 2000, stats_of(bench).stale == 4);
    assert_int_equal(client->streams[1].tokens, 0);

    fake_worker_tokens(worker, &worker->requests[0], 0, 4);
    fake_worker_tokens(worker, &worker->requests[0], 0, 4); /* sent again after a reconnect: dropped */
    fake_worker_tokens(worker, &worker->requests[0], 4, 1);
    fake_worker_done(worker, &worker->requests[0], 5);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1);
    assert_false(client->streams[1].gap);
    assert_int_equal(client->streams[1].tokens, 5);

    fake_worker_tokens(worker, &worker->requests[1], 3, 1); /* jumps */
    SPIN_UNTIL(bench->loop, 2000, client->streams[2].errors == 1);
    assert_int_equal(client->streams[2].error, WIRE_ERROR_INTERNAL);
    fake_worker_tokens(worker, &worker->requests[2], 0, 1);
    fake_worker_done(worker, &worker->requests[2], 2); /* counts one that never came */
    SPIN_UNTIL(bench->loop, 2000, client->streams[3].errors == 1);
    assert_int_equal(client->streams[3].error, WIRE_ERROR_INTERNAL);
    bench_stop(&bench);
}

static void refusals_try_the_next(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    struct fake_worker *first = ask_first(bench, &ask);
    struct fake_worker *second = other_than(bench, first);
    fake_worker_error(first, &first->requests[0], WIRE_ERROR_OVER_CAPACITY);
    SPIN_UNTIL(bench->loop, 2000, second->request_count == 1);
    assert_int_equal(second->requests[0].loss_count, 0);
    fake_worker_wrong_owner(second, &second->requests[0]); /* nobody is left: the client hears of it */
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].errors == 1);
    assert_int_equal(client->streams[1].error, WIRE_ERROR_OVER_CAPACITY);
    assert_int_equal(stats_of(bench).retries, 1);

    ask = ask_of(2, NULL); /* other errors are passed on at once */
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 3);
    for (unsigned i = 0; i < 2; i++) {
        struct fake_worker *worker = &bench->workers[i];
        if (worker->request_count == 2)
            fake_worker_error(worker, &worker->requests[1], WIRE_ERROR_INVALID);
    }
    SPIN_UNTIL(bench->loop, 2000, client->streams[2].errors == 1);
    assert_int_equal(client->streams[2].error, WIRE_ERROR_INVALID);
    assert_string_equal(client->streams[2].detail, "as the test said");
    assert_int_equal(client->streams[2].retry_after_ms, 70);

    ask = ask_of(3, "chat-3"); /* tokens are out: another worker would begin again, so the client hears of it */
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 4);
    for (unsigned i = 0; i < 2; i++) {
        struct fake_worker *worker = &bench->workers[i];
        struct fake_request *last = &worker->requests[worker->request_count - 1];
        if (memcmp(last->id, ask.id, WIRE_ID_BYTES) == 0) {
            fake_worker_tokens(worker, last, 0, 2);
            fake_worker_error(worker, last, WIRE_ERROR_OVER_CAPACITY);
        }
    }
    SPIN_UNTIL(bench->loop, 2000, client->streams[3].errors == 1);
    assert_int_equal(client->streams[3].error, WIRE_ERROR_OVER_CAPACITY);
    assert_int_equal(client->streams[3].tokens, 2);
    assert_int_equal(requests_total(bench), 4);
    assert_int_equal(stats_of(bench).retries, 1);
    bench_stop(&bench);
}

/* Refusals of everything must not multiply the load: 10% of the traffic, and 10 to begin with. */
static void retry_budget(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    ask_each(bench, 1, 60);
    unsigned seen[2] = {0, 0};
    unsigned turns = 0;
    while (router_in_flight(bench->router) > 0 || seen[0] + seen[1] < 60) {
        for (unsigned i = 0; i < 2; i++)
            while (seen[i] < bench->workers[i].request_count)
                fake_worker_error(&bench->workers[i], &bench->workers[i].requests[seen[i]++], WIRE_ERROR_OVER_CAPACITY);
        let(bench, 1);
        assert_true(turns++ < 3000);
    }
    assert_in_range(stats_of(bench).retries, 5, 17);
    assert_int_equal(stats_of(bench).errors[WIRE_ERROR_OVER_CAPACITY], 60);
    bench_stop(&bench);
}

/* The worker's grant of unacknowledged bodies: what does not fit waits until one is acknowledged. */
static void worker_grant(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    for (uint32_t stream = 1; stream <= 8; stream++) { /* 9 x 500 KB: the default grant of 4 MiB takes 8 */
        struct fake_ask ask = ask_of(stream, NULL);
        ask.body_size = 500000;
        fake_client_ask(&bench->clients[stream % 2], &ask); /* one client's own grant does not take 9 */
    }
    SPIN_UNTIL(bench->loop, 3000, worker->request_count == 8);
    struct fake_ask last = ask_of(9, NULL);
    last.body_size = 500000;
    fake_client_ask(client, &last);
    SPIN_UNTIL(bench->loop, 2000, router_in_flight(bench->router) == 9);
    let(bench, 100);
    assert_int_equal(worker->request_count, 8);
    fake_worker_ack(worker, &worker->requests[0]);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 9);
    assert_int_equal(fake_stream_ends(&client->streams[9]), 0);
    bench_stop(&bench);
}

/* And of open streams. */
static void worker_streams(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    fake_worker_kill(worker);
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 0);
    fake_worker_start_at(worker, bench->loop, bench->zmq, "worker-a", bench->worker_control[0], bench->worker_data[0]);
    worker->streams_max = 2;
    SPIN_UNTIL(bench->loop, 3000, router_workers_ready(bench->router) == 1);
    ask_each(bench, 1, 3);
    SPIN_UNTIL(bench->loop, 2000, router_in_flight(bench->router) == 3 && worker->request_count == 2);
    let(bench, 100);
    assert_int_equal(worker->request_count, 2);
    fake_worker_done(worker, &worker->requests[0], 0);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 3);
    bench_stop(&bench);
}

/* A client's own grant: what comes over it is refused, not kept. */
static void client_grant(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    for (uint32_t stream = 1; stream <= 5; stream++) { /* FRONTEND_GRANT_BYTES is four of them */
        struct fake_ask ask = ask_of(stream, NULL);
        ask.body_size = WIRE_BODY_BYTES_MAX;
        fake_client_ask(client, &ask);
    }
    SPIN_UNTIL(bench->loop, 5000, client->streams[5].errors == 1);
    assert_int_equal(client->streams[5].error, WIRE_ERROR_OVER_CAPACITY);
    assert_non_null(strstr(client->streams[5].detail, "this session"));
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 4);
    struct fake_ask other = ask_of(6, NULL); /* nobody else is refused */
    fake_client_ask(&bench->clients[1], &other);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 5);
    bench_stop(&bench);
}

static void limits(void **state)
{
    (void)state;
    struct router_settings settings = default_settings();
    settings.in_flight_max = 3;
    struct bench *bench = bench_start(1, &settings);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    ask_each(bench, 1, 4);
    SPIN_UNTIL(bench->loop, 2000, client->streams[4].errors == 1);
    assert_int_equal(client->streams[4].error, WIRE_ERROR_OVER_CAPACITY);
    assert_true(client->streams[4].retry_after_ms > 0);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 3);
    fake_worker_done(worker, &worker->requests[0], 0);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1);
    struct fake_ask ask = ask_of(5, NULL);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 4);
    SPIN_UNTIL(bench->loop, 2000, client->acknowledged_bytes >= 400); /* the refused one and the finished one */
    bench_stop(&bench);
}

/* ---- bad input ---- */

static void bad_requests(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, NULL);
    ask.body_size = WIRE_BODY_BYTES_MAX + 100;
    fake_client_ask(client, &ask);
    ask = ask_of(2, NULL);
    ask.body_bytes_off = 1;
    fake_client_ask(client, &ask);
    ask = ask_of(3, NULL);
    ask.no_body = true;
    fake_client_ask(client, &ask);
    static const uint32_t too_many = REQUEST_RESUME_IDS_MAX + 1;
    ask = ask_of(4, NULL);
    ask.resume_choices = 1;
    ask.resume_counts = &too_many;
    fake_client_ask(client, &ask);
    static const enum wire_error_code expected[] = {0, WIRE_ERROR_TOO_LARGE, WIRE_ERROR_INVALID, WIRE_ERROR_INVALID,
                                                    WIRE_ERROR_TOO_LARGE};
    for (uint32_t stream = 1; stream <= 4; stream++) {
        SPIN_UNTIL(bench->loop, 2000, client->streams[stream].errors == 1);
        assert_int_equal(client->streams[stream].error, expected[stream]);
    }
    assert_non_null(strstr(client->streams[4].detail, "resume"));
    assert_int_equal(worker->request_count, 0);

    /* not its session */
    struct fake_client stranger = *client;
    hash_random(stranger.session, WIRE_ID_BYTES);
    ask = ask_of(5, NULL);
    fake_client_ask(&stranger, &ask); /* over the first one's connection, with another session */
    SPIN_UNTIL(bench->loop, 2000, client->streams[5].errors == 1);
    assert_int_equal(client->streams[5].error, WIRE_ERROR_INVALID);
    struct fake_client thief = bench->clients[1];
    memcpy(thief.session, client->session, WIRE_ID_BYTES); /* the first one's session over the second's connection */
    ask = ask_of(6, NULL);
    fake_client_ask(&thief, &ask);
    SPIN_UNTIL(bench->loop, 2000, bench->clients[1].streams[6].errors == 1);

    worker->auto_tokens = 2;
    ask = ask_of(7, NULL);
    ask.body_size = WIRE_BODY_BYTES_MAX;
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 3000, client->streams[7].dones == 1);
    bench_stop(&bench);
}

static void malformed_everywhere(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    static const uint8_t samples[][12] = {{0},
                                          {'R'},
                                          {'R', 1, 3},
                                          {'R', 1, 3, 0},
                                          {'R', 1, 4, 0, 0xff, 0xff, 0xff},
                                          {'R', 1, 99, 0},
                                          {'R', 9, 1, 0},
                                          {'G', 'E', 'T', ' ', '/'},
                                          {'R', 1, 1, 0, 0x0a, 0x7f},
                                          {'R', 1, 6, 0, 0x0a, 0x04, 1, 0, 0, 0},
                                          {'R', 1, 2, 0},
                                          {'R', 1, 13, 0}};
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < sizeof samples / sizeof samples[0]; i++) {
            for (unsigned size = 0; size <= 12; size += 3) {
                for (unsigned data = 0; data < 2; data++) {
                    fake_client_send_bytes(client, data, samples[i], size);
                    fake_worker_send_bytes(worker, data, samples[i], size);
                }
            }
        }
        let(bench, 20);
    }
    let(bench, 100);
    assert_true(stats_of(bench).malformed > 100);
    assert_in_range(client->connection_errors, 1, 80); /* 10 a second and connection */
    struct wire_message unsupported[] = {{.kind = WIRE_DRAIN, .drain = {.worker = wire_span_str("worker-a")}},
                                         {.kind = WIRE_ATTACH,
                                          .attach = {.request_id = wire_span_of(client->session, 16),
                                                     .tenant = wire_span_str("default"),
                                                     .session = wire_span_of(client->session, 16)}}};
    let(bench, 1100);
    for (unsigned i = 0; i < 2; i++) {
        client->connection_errors = 0;
        fake_client_send(client, false, &unsupported[i]);
        SPIN_UNTIL(bench->loop, 1000, client->connection_errors == 1);
        assert_int_equal(client->connection_error, WIRE_ERROR_UNSUPPORTED);
    }
    /* the connections stayed, and everything still works */
    worker->auto_tokens = 2;
    struct fake_ask ask = ask_of(1, "chat");
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1);
    assert_int_equal(router_workers_ready(bench->router), 1);
    bench_stop(&bench);
}

static void wrong_hello(void **state)
{
    (void)state;
    struct bench *bench = bench_start(0, NULL);
    const char *control = router_control_endpoint(bench->router), *data = router_data_endpoint(bench->router);
    static const enum wire_role roles[] = {WIRE_ROLE_ROUTER, WIRE_ROLE_WORKER, WIRE_ROLE_OPERATOR, WIRE_ROLE_CLIENT};
    for (unsigned i = 0; i < 4; i++) {
        struct fake_client client = {.role = roles[i], .version = roles[i] == WIRE_ROLE_CLIENT ? 7 : 1};
        fake_client_start(&client, bench->loop, bench->zmq, control, data);
        SPIN_UNTIL(bench->loop, 2000, client.connection_errors == 2);
        assert_int_equal(client.connection_error, WIRE_ERROR_UNSUPPORTED);
        assert_false(fake_client_ready(&client));
        fake_client_stop(&client);
    }
    struct fake_client crossed = {.role = WIRE_ROLE_CLIENT};
    fake_client_start(&crossed, bench->loop, bench->zmq, data, control);
    SPIN_UNTIL(bench->loop, 2000, crossed.connection_errors == 2);
    assert_int_equal(crossed.connection_error, WIRE_ERROR_INVALID);
    fake_client_stop(&crossed);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(duplicate_id),          cmocka_unit_test(stale_and_skipping_worker),
        cmocka_unit_test(refusals_try_the_next), cmocka_unit_test(retry_budget),
        cmocka_unit_test(worker_grant),          cmocka_unit_test(worker_streams),
        cmocka_unit_test(client_grant),          cmocka_unit_test(limits),
        cmocka_unit_test(bad_requests),          cmocka_unit_test(malformed_everywhere),
        cmocka_unit_test(wrong_hello),
    };
    return unit_run(tests, NULL, NULL);
}
