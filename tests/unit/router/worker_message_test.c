/* worker_message_test.c - what a pool and a worker say to each other while links come and go: cancels, leases, channels
 * that cannot be created. Over real sockets. */
#include <sys/resource.h>
#include "common/clock.h"
#include "pool_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

static void cancel(struct worker *worker, uint32_t router_attempt)
{
    static const uint8_t id[WIRE_ID_BYTES] = {5};
    worker_send_cancel(worker, &(struct wire_cancel){.request_id = wire_span_of(id, WIRE_ID_BYTES),
                                                     .tenant = wire_span_str("t"),
                                                     .conversation = wire_span_str("chat"),
                                                     .attempt = {1, router_attempt}});
}

/* Its request has ended here, so nobody says it again: the next link does, once. */
static void a_cancel_survives_its_link(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    struct pool_peer *peer = &f->peers[0];
    relay_cut(&peer->control_relay);
    SPIN_UNTIL(f->loop, 1000, worker_suspect(worker, NULL));
    cancel(worker, 7); /* the link is down */
    SPIN_UNTIL(f->loop, 2000, peer->cancels == 1);
    assert_int_equal(peer->cancel_attempt.router, 7);
    pool_bench_let(f, 5 * LEASE_MS);
    peer->control_relay.swallow_up = true;
    pool_bench_let(f, 20);
    cancel(worker, 8); /* it is taken, and gone with the link */
    pool_bench_let(f, 50);
    relay_cut(&peer->control_relay);
    peer->control_relay.swallow_up = false;
    SPIN_UNTIL(f->loop, 2000, peer->cancels == 2);
    assert_int_equal(peer->cancel_attempt.router, 8);
    pool_bench_let(f, 5 * LEASE_MS);
    relay_cut(&peer->control_relay);
    SPIN_UNTIL(f->loop, 2000, f->relinked == 3);
    pool_bench_let(f, 100);
    assert_int_equal(peer->cancels, 2); /* it has echoed a lease from behind them */
    assert_int_equal(f->lost, 0);
    pool_bench_stop(f);
}

static void a_cancel_is_for_its_process(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    pool_peer_kill(&f->peers[0]);
    SPIN_UNTIL(f->loop, 1000, f->lost == 1);
    cancel(worker, 1);
    pool_peer_restart(&f->peers[0], f->context);
    SPIN_UNTIL(f->loop, 3000, worker_ready(worker));
    pool_bench_let(f, 100);
    assert_int_equal(f->peers[0].cancels, 0);
    pool_bench_stop(f);
}

static void send_lease(struct pool_peer *peer, uint64_t number, uint64_t echo)
{
    struct wire_message lease = {.kind = WIRE_LEASE,
                                 .lease = {.session = wire_span_of(peer->incarnation, WIRE_ID_BYTES),
                                           .number = number,
                                           .echo = echo,
                                           .state = WIRE_LIFE_DRAINING}};
    pool_peer_send(peer, false, &lease);
}

static uint64_t dropped(const struct worker *worker)
{
    struct worker_info info;
    worker_info(worker, &info);
    return info.leases_dropped;
}

static void a_lease_that_is_not_of_now_is_dropped(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    struct pool_peer *peer = &f->peers[0];
    SPIN_UNTIL(f->loop, 1000, peer->number[0] >= 2);
    uint64_t before = dropped(worker);
    send_lease(peer, 1, peer->heard[0]);
    SPIN_UNTIL(f->loop, 1000, dropped(worker) == before + 1);
    send_lease(peer, ++peer->number[0], peer->heard[0] + 1000);
    SPIN_UNTIL(f->loop, 1000, dropped(worker) == before + 2);
    assert_false(worker_draining(worker));
    pool_bench_let(f, 5 * LEASE_MS);
    assert_int_equal(dropped(worker), before + 2);
    assert_true(worker_ready(worker));
    pool_bench_stop(f);
}

/* No descriptor is left when its data endpoint changes: tried again until there is one. */
static void a_channel_that_cannot_be_created_is_tried_again(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    struct pool_peer *peer = &f->peers[0];
    struct rlimit limit, none;
    relay_close(&peer->data_relay);
    peer->data_relay.links = NULL; /* that connection stays until the pool closes it */
    peer->data_relay.port = 0;
    relay_open(&peer->data_relay);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = 4; /* those are open */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    pool_peer_welcome(peer, false);
    SPIN_UNTIL(f->loop, 1000, f->lost == 1); /* its data endpoint changed */
    pool_bench_let(f, 300);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_false(worker_up(worker));
    SPIN_UNTIL(f->loop, 4000, worker_ready(worker));
    pool_bench_stop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cancel_survives_its_link),
        cmocka_unit_test(a_cancel_is_for_its_process),
        cmocka_unit_test(a_lease_that_is_not_of_now_is_dropped),
        cmocka_unit_test(a_channel_that_cannot_be_created_is_tried_again),
    };
    return unit_run(tests, NULL, NULL);
}
