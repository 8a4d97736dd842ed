/* router_cancel_test.c - requests that others have cancelled at their worker: the real router with fake workers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"
#include "router_bench.h"
#include "spin.h"

/* All requests go to one of the two. */
static struct fake_worker *home(struct bench *bench)
{
    return &bench->workers[bench->workers[0].request_count == 0];
}

static void check_ended(struct bench *bench, uint32_t stream)
{
    SPIN_UNTIL(bench->loop, 2000, bench->clients[0].streams[stream].errors == 1);
    assert_int_equal(bench->clients[0].streams[stream].error, WIRE_ERROR_CANCELLED);
    assert_int_equal(router_in_flight(bench->router), 0);
}

/* Its client went to another router, which passed the CANCEL on: whatever the request had come to here, it ends, is
 * sent to nobody again, and is no fault of its worker. */
static void cancelled_through_another_router(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    for (uint32_t stream = 1; stream <= 3; stream++) {
        struct fake_ask ask = ask_of(stream, "chat-1");
        fake_client_ask(client, &ask);
        SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == stream);
        struct fake_worker *worker = home(bench);
        struct fake_request *request = &worker->requests[stream - 1];
        if (stream > 1) {
            fake_worker_ack(worker, request);
            SPIN_UNTIL(bench->loop, 2000, client->streams[stream].acks == 1);
        }
        if (stream > 2) {
            fake_worker_tokens(worker, request, 0, 3);
            SPIN_UNTIL(bench->loop, 2000, client->streams[stream].tokens == 3);
        }
        fake_worker_error(worker, request, WIRE_ERROR_CANCELLED);
        check_ended(bench, stream);
    }
    let(bench, 200);
    struct router_stats stats = stats_of(bench);
    assert_int_equal(requests_total(bench), 3);
    assert_int_equal(stats.given_up + stats.retries + stats.losses, 0);
    assert_int_equal(stats.errors[WIRE_ERROR_CANCELLED], 3);
    assert_int_equal(router_workers_ready(bench->router), 2);
    bench_stop(&bench);
}

/* A cancel only comes to it from this router: what it ends by itself nobody has asked to end. */
static void a_worker_of_the_first_release_gives_up(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0];
    struct fake_ask ask = ask_of(1, "chat-1"), cancelled = ask_of(2, "chat-1");
    worker->capabilities = 0;
    fake_worker_welcome(worker);
    let(bench, 50);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    fake_worker_ack(worker, &worker->requests[0]);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].acks == 1);
    fake_worker_error(worker, &worker->requests[0], WIRE_ERROR_CANCELLED);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);
    assert_int_equal(worker->requests[1].loss_count, 0);
    fake_worker_tokens(worker, &worker->requests[1], 0, 2);
    fake_worker_done(worker, &worker->requests[1], 2);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1);
    assert_int_equal(stats_of(bench).given_up, 1);

    fake_client_ask(client, &cancelled);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 3);
    fake_client_cancel(client, &cancelled);
    SPIN_UNTIL(bench->loop, 2000, worker->cancel_count == 1);
    fake_worker_error(worker, &worker->requests[2], WIRE_ERROR_CANCELLED);
    check_ended(bench, 2);
    assert_int_equal(requests_total(bench), 3);
    bench_stop(&bench);
}

/* The client cancelled, and its worker had given it up meanwhile. */
static void given_up_while_it_is_cancelled(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    fake_worker_ack(worker, &worker->requests[0]);
    fake_client_cancel(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->cancel_count == 1);
    fake_worker_resend(worker, &worker->requests[0]);
    check_ended(bench, 1);
    let(bench, 100);
    assert_int_equal(requests_total(bench), 1);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cancelled_through_another_router),
        cmocka_unit_test(a_worker_of_the_first_release_gives_up),
        cmocka_unit_test(given_up_while_it_is_cancelled),
    };
    log_setup(&(struct log_config){.program = "test", .level = LOG_LEVEL_ERROR, .fd = 2});
    return cmocka_run_group_tests(tests, NULL, NULL);
}
