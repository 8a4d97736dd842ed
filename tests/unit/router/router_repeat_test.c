/* router_repeat_test.c - a request that its client sends again: what the router knows of it already counts. */
#include "common/clock.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

/* It has its place: a router that is full, or that drains, takes a newer attempt of it. */
static void a_full_router_takes_a_repeat(void **state)
{
    struct router_settings settings = default_settings();
    bool draining = *state != NULL;
    settings.in_flight_max = 1;
    struct bench *bench = bench_start(1, &settings);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0];
    struct fake_ask ask = ask_of(1, NULL), other = ask_of(2, NULL);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    if (draining)
        router_drain(bench->router, 10000, NULL, NULL);
    fake_client_ask(client, &other);
    SPIN_UNTIL(bench->loop, 2000, client->streams[2].errors == 1);
    ask.attempt_client = 2;
    ask.stream = 3;
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);
    fake_worker_tokens(worker, &worker->requests[1], 0, 2);
    fake_worker_done(worker, &worker->requests[1], 2);
    SPIN_UNTIL(bench->loop, 2000, client->streams[3].dones == 1);
    assert_int_equal(client->streams[3].errors, 0);
    bench_stop(&bench);
}

/* It may have killed its worker, and its body is gone: its client does not know that, the router does. */
static void a_loss_outlives_the_body(void **state)
{
    (void)state;
    struct router_settings settings = default_settings();
    settings.in_flight_bytes_max = 8 << 20; /* 2 MiB for each tenant: the third body sheds the first */
    struct bench *bench = bench_start(2, &settings);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0], *other = &bench->workers[1];
    struct fake_ask ask;
    other->life = WIRE_LIFE_DRAINING;
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 1);
    for (uint32_t stream = 3; stream >= 1; stream--) {
        ask = ask_of(stream, NULL);
        ask.body_size = 900000;
        fake_client_ask(client, &ask);
        SPIN_UNTIL(bench->loop, 2000, worker->request_count == 4 - stream);
        fake_worker_ack(worker, &worker->requests[3 - stream]);
        SPIN_UNTIL(bench->loop, 2000, client->streams[stream].acks == 1);
    }
    assert_int_equal(stats_of(bench).shed, 1);
    fake_worker_kill(worker); /* it does not tell what it had begun: all of them are blamed */
    SPIN_UNTIL(bench->loop, 2000, client->streams[3].resends == 1);
    other->life = WIRE_LIFE_READY;
    SPIN_UNTIL(bench->loop, 2000, other->request_count == 2);
    ask = ask_of(3, NULL);
    ask.attempt_client = 2;
    ask.stream = 4;
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, other->request_count == 3);
    assert_int_equal(other->requests[2].loss_count, 1);
    fake_worker_kill(other); /* and that was the second one */
    SPIN_UNTIL(bench->loop, 2000, client->streams[4].errors == 1);
    assert_int_equal(client->streams[4].error, WIRE_ERROR_WORKER_LOST);
    bench_stop(&bench);
}

int main(void)
{
    static int draining;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_router_takes_a_repeat),
        {"a_draining_router_takes_a_repeat", a_full_router_takes_a_repeat, NULL, NULL, &draining},
        cmocka_unit_test(a_loss_outlives_the_body),
    };
    return unit_run(tests, NULL, NULL);
}
