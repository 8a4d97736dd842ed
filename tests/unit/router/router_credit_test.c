/* router_credit_test.c - what a router holds: grants of tokens and bytes that it passes on, bodies within a budget. */
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "router/frontend.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

static struct bench *start(unsigned workers, bool credit)
{
    struct bench *bench = bench_start(workers, NULL);
    if (credit) {
        bench->clients[0].capabilities = WIRE_CAN_CREDIT;
        fake_client_hello(&bench->clients[0]);
        let(bench, 50);
    }
    return bench;
}

static uint64_t granted(const struct fake_worker *worker, unsigned request)
{
    return worker->granted[worker->requests[request].stream];
}

/* ---- tokens ---- */

/* The client's grant is the worker's grant, and stays it when the request moves. */
static void a_grant_passes_through(void **state)
{
    (void)state;
    struct bench *bench = start(2, true);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    struct fake_worker *first = ask_first(bench, &ask);
    struct fake_worker *second = other_than(bench, first);
    SPIN_UNTIL(bench->loop, 2000, granted(first, 0) == FRONTEND_STREAM_TOKENS);
    fake_client_grant(client, 1, 700, 0);
    SPIN_UNTIL(bench->loop, 2000, granted(first, 0) == 700);
    fake_client_grant(client, 1, 600, 0);  /* totals never shrink */
    fake_client_grant(client, 2, 9000, 0); /* no stream of its own */
    let(bench, 150);
    assert_int_equal(granted(first, 0), 700);
    fake_worker_tokens(first, &first->requests[0], 0, 3);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].tokens == 3);
    fake_worker_kill(first);
    SPIN_UNTIL(bench->loop, 2000, second->request_count == 1);
    SPIN_UNTIL(bench->loop, 2000, granted(second, 0) == 700); /* absolute: the tokens before count too */
    fake_client_grant(client, 1, 800, 0);
    SPIN_UNTIL(bench->loop, 2000, granted(second, 0) == 800);
    bench_stop(&bench);
}

static void a_resume_has_a_window_behind_its_tokens(void **state)
{
    (void)state;
    static const uint32_t counts[2] = {600, 100};
    struct bench *bench = start(1, true);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_ask ask = ask_of(1, NULL);
    ask.resume_choices = 2;
    ask.resume_counts = counts;
    ask.numerics_id = worker->numerics_id;
    fake_client_ask(&bench->clients[0], &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    SPIN_UNTIL(bench->loop, 2000, granted(worker, 0) == 700 + FRONTEND_STREAM_TOKENS);
    bench_stop(&bench);
}

/* Clients and workers of the first release know no credit: no limit, and nothing is told. */
static void without_credit_there_is_no_limit(void **state)
{
    (void)state;
    struct bench *bench = start(2, false);
    struct fake_client *client = &bench->clients[0];
    bench->workers[1].capabilities = WIRE_CAN_RESUME;
    fake_worker_welcome(&bench->workers[1]);
    let(bench, 50);
    ask_each(bench, 1, 10);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 10);
    let(bench, 150);
    assert_true(bench->workers[0].request_count > 0 && bench->workers[1].request_count > 0);
    assert_true(granted(&bench->workers[0], 0) > UINT64_C(1) << 60);
    assert_int_equal(granted(&bench->workers[1], 0), 0);
    fake_client_grant(client, 1, 10, 0); /* it did not say that it would */
    let(bench, 150);
    assert_true(granted(&bench->workers[0], 0) > UINT64_C(1) << 60);
    bench_stop(&bench);
}

/* ---- bytes ---- */

static void tokens_wait_for_bytes(void **state)
{
    (void)state;
    struct bench *bench = start(1, true);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0];
    struct fake_ask ask = ask_of(1, NULL);
    fake_client_grant(client, 1, 0, 2000);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    struct fake_stream *stream = &client->streams[1];
    fake_worker_tokens(worker, &worker->requests[0], 0, 200); /* some 1,050 bytes: two such frames are over it */
    SPIN_UNTIL(bench->loop, 2000, stream->tokens == 200);
    fake_worker_tokens(worker, &worker->requests[0], 200, 200);
    fake_worker_done(worker, &worker->requests[0], 400);
    let(bench, 300);
    assert_int_equal(stream->tokens, 200);
    assert_int_equal(stream->dones, 0); /* behind its last token */
    assert_int_equal(router_in_flight(bench->router), 0);
    fake_client_grant(client, 1, 0, 1000); /* never shrinks */
    let(bench, 100);
    assert_int_equal(stream->tokens, 200);
    fake_client_grant(client, 1, 0, 4000);
    SPIN_UNTIL(bench->loop, 2000, stream->dones == 1);
    assert_int_equal(stream->tokens, 400);
    assert_false(stream->gap);
    bench_stop(&bench);
}

/* ---- bodies ---- */

/* Over a tenant's share the oldest acknowledged body goes. Its request runs on; when its worker is lost, its client
 * sends it again with the tokens that it has. */
static void a_body_that_is_gone_is_asked_for(void **state)
{
    (void)state;
    struct router_settings settings = default_settings();
    settings.in_flight_bytes_max = 8 << 20; /* 2 MiB for each tenant */
    struct bench *bench = bench_start(2, &settings);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0], *other = &bench->workers[1];
    other->life = WIRE_LIFE_DRAINING;
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 1);
    for (uint32_t stream = 1; stream <= 3; stream++) {
        struct fake_ask ask = ask_of(stream, NULL);
        ask.body_size = 900000;
        fake_client_ask(client, &ask);
        SPIN_UNTIL(bench->loop, 2000, worker->request_count == stream);
        fake_worker_ack(worker, &worker->requests[stream - 1]);
        SPIN_UNTIL(bench->loop, 2000, client->streams[stream].acks == 1);
        assert_true(stats_of(bench).in_flight_bytes <= 2 << 20);
    }
    assert_int_equal(stats_of(bench).shed, 1);
    fake_worker_tokens(worker, &worker->requests[0], 0, 2); /* it runs on */
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].tokens == 2);
    other->life = WIRE_LIFE_READY;
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 2);
    fake_worker_kill(worker);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].resends == 1);
    assert_int_equal(stats_of(bench).resends, 1);
    SPIN_UNTIL(bench->loop, 3000, other->request_count == 2); /* the others */
    static const uint32_t two = 2;
    struct fake_ask again = ask_of(1, NULL);
    again.stream = 4;
    again.attempt_client = 2;
    again.body_size = 100000;
    again.resume_choices = 1;
    again.resume_counts = &two;
    again.numerics_id = other->numerics_id;
    client->streams[4].tokens = client->streams[4].by_choice[0] = 2;
    fake_client_ask(client, &again);
    SPIN_UNTIL(bench->loop, 2000, other->request_count == 3);
    struct fake_request *request = &other->requests[2];
    assert_memory_equal(request->id, again.id, WIRE_ID_BYTES);
    assert_int_equal(request->resume_total, 2);
    fake_worker_tokens(other, request, 2, 1);
    fake_worker_done(other, request, 3);
    SPIN_UNTIL(bench->loop, 2000, client->streams[4].dones == 1);
    assert_false(client->streams[4].gap);
    assert_int_equal(fake_stream_ends(&client->streams[1]), 1);
    bench_stop(&bench);
}

/* None of a tenant's bodies is acknowledged: what is over its share is refused, with a hint. Others have room. */
static void a_tenant_over_its_share_waits(void **state)
{
    (void)state;
    struct router_settings settings = default_settings();
    settings.in_flight_bytes_max = 8 << 20;
    struct bench *bench = bench_start(1, &settings);
    struct fake_client *client = &bench->clients[0];
    for (uint32_t stream = 1; stream <= 4; stream++) {
        struct fake_ask ask = ask_of(stream, NULL);
        ask.body_size = 900000;
        ask.tenant = stream == 4 ? "other" : "greedy";
        fake_client_ask(client, &ask);
    }
    SPIN_UNTIL(bench->loop, 2000, bench->workers[0].request_count == 3);
    SPIN_UNTIL(bench->loop, 2000, client->streams[3].errors == 1);
    assert_int_equal(client->streams[3].error, WIRE_ERROR_OVER_CAPACITY);
    assert_true(client->streams[3].retry_after_ms > 0);
    assert_string_equal(bench->workers[0].requests[2].tenant, "other");
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_grant_passes_through),           cmocka_unit_test(a_resume_has_a_window_behind_its_tokens),
        cmocka_unit_test(without_credit_there_is_no_limit), cmocka_unit_test(tokens_wait_for_bytes),
        cmocka_unit_test(a_body_that_is_gone_is_asked_for), cmocka_unit_test(a_tenant_over_its_share_waits),
    };
    return unit_run(tests, NULL, NULL);
}
