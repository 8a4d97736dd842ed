/* worker_health_test.c - the breaker of a worker, its ramp, its overload, over real sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include "common/clock.h"
#include "pool_bench.h"
#include "spin.h"

static void breaker_opens_and_one_answer_closes_it(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(2);
    struct worker *worker = pool_bench_worker(f, 0);
    struct worker_info info;
    worker_fault(worker, 1, "test");
    worker_fault(worker, 1, "test");
    pool_bench_let(f, 5);
    assert_true(worker_ready(worker));
    worker_fault(worker, 1, "test");
    pool_bench_let(f, 5);
    assert_false(worker_ready(worker));
    uint64_t open_ms = clock_now_ms();
    SPIN_UNTIL(f->loop, 6000, worker_ready(worker)); /* half-open */
    assert_true(clock_now_ms() - open_ms >= 950);
    assert_int_equal(pool_bench_request(worker, 5, 1), STATUS_OK);
    assert_false(worker_ready(worker)); /* its one request */
    assert_int_equal(pool_bench_request(worker, 6, 1), STATUS_CLOSED);
    worker_stream_close(worker, 5); /* cancelled, say: no verdict */
    assert_true(worker_ready(worker));
    assert_int_equal(pool_bench_request(worker, 7, 1), STATUS_OK);
    worker_stream_close(worker, 3); /* those that were there before decide nothing */
    worker_success(worker, 4);
    worker_fault(worker, 4, "test");
    assert_false(worker_ready(worker));
    worker_info(worker, &info);
    assert_int_equal(info.breaker, WORKER_BREAKER_HALF_OPEN);
    worker_fault(worker, 7, "test");
    pool_bench_let(f, 1200);
    assert_false(worker_ready(worker)); /* 2 s this time */
    worker_info(worker, &info);
    assert_int_equal(info.breaker, WORKER_BREAKER_OPEN);
    SPIN_UNTIL(f->loop, 2000, worker_ready(worker));
    worker_success(worker, 7); /* of before */
    worker_info(worker, &info);
    assert_int_equal(info.breaker, WORKER_BREAKER_HALF_OPEN);
    assert_int_equal(pool_bench_request(worker, 8, 1), STATUS_OK);
    worker_success(worker, 8);
    worker_info(worker, &info);
    assert_int_equal(info.breaker, WORKER_BREAKER_CLOSED);
    assert_int_equal(info.faults, 5);
    worker_fault(worker, 8, "test"); /* the old ones are forgotten */
    pool_bench_let(f, 5);
    assert_true(worker_ready(worker));
    pool_bench_stop(f);
}

static void breakers_never_close_everybody_out(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(2);
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned fault = 0; fault < 3; fault++)
            worker_fault(pool_bench_worker(f, i), 1, "test");
        pool_bench_let(f, 20);
    }
    assert_true(worker_ready(pool_bench_worker(f, 0))); /* its faults are the older ones */
    assert_false(worker_ready(pool_bench_worker(f, 1)));
    pool_peer_kill(&f->peers[0]);
    SPIN_UNTIL(f->loop, 500, worker_ready(pool_bench_worker(f, 1)));
    pool_bench_stop(f);
}

/* Lost within 5 s of coming up, twice: closed out, and for longer each time, while others work. */
static void crash_loop_is_quarantined(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(2);
    struct worker_info info;
    for (unsigned round = 0; round < 2; round++) {
        SPIN_UNTIL(f->loop, 3000, worker_up(pool_bench_worker(f, 0)));
        pool_peer_kill(&f->peers[0]);
        SPIN_UNTIL(f->loop, 1000, !worker_up(pool_bench_worker(f, 0)));
        pool_peer_restart(&f->peers[0], f->context);
    }
    SPIN_UNTIL(f->loop, 3000, worker_up(pool_bench_worker(f, 0)));
    worker_info(pool_bench_worker(f, 0), &info);
    assert_int_equal(info.faults, 4);
    assert_int_equal(info.breaker, WORKER_BREAKER_OPEN);
    assert_false(info.ready);
    assert_true(worker_ready(pool_bench_worker(f, 1)));
    pool_bench_stop(f);
}

static void restart_second(struct pool_bench *f)
{
    unsigned lost = f->lost;
    pool_peer_restart(&f->peers[1], f->context);
    SPIN_UNTIL(f->loop, 5000, f->lost == lost + 1);
    SPIN_UNTIL(f->loop, 5000, worker_up(pool_bench_worker(f, 1)));
    pool_bench_let(f, 5);
}

static void late_worker_ramps_up(void **state)
{
    (void)state;
    uint64_t begun = clock_now_ms();
    struct pool_bench *f = pool_bench_start_up(2);
    restart_second(f);
    if (clock_now_ms() - begun < WORKER_RAMP_TOGETHER_MS) /* they began together, but for some milliseconds */
        assert_true(worker_ramp(pool_bench_worker(f, 1)) == 1.0);
    pool_bench_let(f, 1500);
    restart_second(f);
    assert_true(worker_ramp(pool_bench_worker(f, 0)) == 1.0);
    double ramp = worker_ramp(pool_bench_worker(f, 1)); /* (4 - 3 * 0) / (4 - 3 * 1.5 / 30) */
    printf("ramp %.3f\n", ramp);
    assert_true(ramp > 1.02 && ramp < 1.3);
    relay_cut(&f->peers[0].control_relay); /* a link that comes back is no new incarnation */
    SPIN_UNTIL(f->loop, 2000, f->relinked == 1);
    pool_bench_let(f, 5);
    assert_true(worker_ramp(pool_bench_worker(f, 0)) == 1.0);
    pool_bench_stop(f);
}

static void overload_has_hysteresis(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    struct pool_peer *peer = &f->peers[0];
    peer->load = (struct wire_load){.queued_tokens = 4000, .token_ns = 100000}; /* 0.4 s */
    pool_bench_let(f, 4 * LEASE_MS);
    assert_int_equal(worker_overloaded_ms(worker), 0);
    peer->load.queued_tokens = 5100;
    SPIN_UNTIL(f->loop, 1000, worker_overloaded_ms(worker) > 0);
    peer->load.queued_tokens = 2000;
    pool_bench_let(f, 300);
    assert_true(worker_overloaded_ms(worker) > 200); /* not over yet */
    SPIN_UNTIL(f->loop, WORKER_OVERLOAD_OVER_MS + 1000, worker_overloaded_ms(worker) == 0);
    pool_bench_stop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(breaker_opens_and_one_answer_closes_it),
        cmocka_unit_test(breakers_never_close_everybody_out),
        cmocka_unit_test(crash_loop_is_quarantined),
        cmocka_unit_test(late_worker_ramps_up),
        cmocka_unit_test(overload_has_hysteresis),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
