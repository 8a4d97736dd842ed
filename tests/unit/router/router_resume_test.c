/* router_resume_test.c - a reply that its client sends on behind the tokens that it has: the real router with fake
 * workers. Its client waits in the middle of it, so it is not turned away for want of room. */
#include "common/clock.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

static struct fake_ask resume_of(const struct fake_worker *worker, uint32_t stream)
{
    static const uint32_t three[1] = {3};
    struct fake_ask ask = ask_of(stream, NULL);
    ask.resume_choices = 1;
    ask.resume_counts = three;
    ask.numerics_id = worker->numerics_id;
    return ask;
}

static void a_refused_one_is_tried_again(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0];
    struct fake_ask ask = resume_of(worker, 1);
    fake_client_ask(client, &ask);
    for (unsigned i = 0; i < 3; i++) {
        SPIN_UNTIL(bench->loop, 2000, worker->request_count == i + 1);
        fake_worker_error(worker, &worker->requests[i], WIRE_ERROR_OVER_CAPACITY);
    }
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 4);
    fake_worker_tokens(worker, &worker->requests[3], 3, 2);
    fake_worker_done(worker, &worker->requests[3], 5);
    SPIN_UNTIL(bench->loop, 2000, fake_stream_ends(&client->streams[1]) == 1);
    assert_int_equal(client->streams[1].errors, 0);
    assert_false(client->streams[1].inexact);
    bench_stop(&bench);
}

/* Longer than it would wait for a worker of its numerics to appear. */
static void one_waits_for_room_at_its_own_numerics(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0], *other = &bench->workers[1];
    other->numerics_id[0] ^= 1;
    worker->streams_max = 1;
    fake_worker_welcome(worker);
    fake_worker_welcome(other);
    let(bench, 100);
    struct fake_ask first = resume_of(worker, 1), second = resume_of(worker, 2);
    second.inexact_allowed = true;
    fake_client_ask(client, &first);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    fake_client_ask(client, &second);
    let(bench, 2500);
    assert_int_equal(fake_stream_ends(&client->streams[2]), 0);
    assert_int_equal(worker->request_count, 1);
    assert_int_equal(other->request_count, 0);
    fake_worker_done(worker, &worker->requests[0], 3);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);
    assert_int_equal(stats_of(bench).inexact, 0);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refused_one_is_tried_again),
        cmocka_unit_test(one_waits_for_room_at_its_own_numerics),
    };
    return unit_run(tests, NULL, NULL);
}
