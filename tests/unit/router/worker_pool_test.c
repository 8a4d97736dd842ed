/* worker_pool_test.c - workers as the pool sees them, over real sockets: up, suspect, there again, lost; leases and
 * credit; what the probe of a link says. Times that are measured are printed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>
#include "common/clock.h"
#include "common/loop.h"
#include "pool_bench.h"
#include "router/link_probe.h"
#include "spin.h"

/* ---- up and down ---- */

static void comes_up_and_is_known(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start(1);
    struct worker_info info;
    f->peers[0].window = 512;
    f->peers[0].has_numerics = true;
    f->peers[0].numerics_id[31] = 9;
    worker_info(pool_bench_worker(f, 0), &info);
    assert_false(info.up || info.ready || info.suspect);
    assert_null(info.incarnation);
    SPIN_UNTIL(f->loop, 5000, worker_ready(pool_bench_worker(f, 0)));
    struct worker *worker = pool_bench_worker(f, 0);
    assert_string_equal(worker_name(worker), "w0");
    assert_int_equal(worker_pool_find(f->pool, "w0"), 0);
    assert_int_equal(worker_capabilities(worker), 15);
    assert_int_equal(worker_stream_window(worker), 512);
    assert_int_equal(worker_numerics_id(worker).size, 32);
    assert_int_equal(worker_numerics_id(worker).data[31], 9);
    assert_int_equal(f->peers[0].hello_capabilities, WIRE_CAN_RESUME | WIRE_CAN_ATTACH | WIRE_CAN_CREDIT);
    assert_true(worker_connected(worker) && worker_up(worker));
    assert_false(worker_suspect(worker, NULL) || worker_draining(worker));
    worker_info(worker, &info);
    assert_true(info.up && info.ready && info.configured && info.up_ms > 0);
    assert_memory_equal(info.incarnation, f->peers[0].incarnation, WIRE_ID_BYTES);
    assert_string_equal(worker_breaker_name(info.breaker), "closed");
    pool_bench_stop(f);
}

/* A link that drops is asked after, and its worker goes on; nothing new goes there meanwhile. */
static void dropped_link_is_suspect_and_comes_back(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    for (unsigned data = 0; data < 2; data++) {
        uint64_t cut_ms = clock_now_ms(), for_ms;
        relay_cut(data ? &f->peers[0].data_relay : &f->peers[0].control_relay);
        SPIN_UNTIL(f->loop, 1000, worker_suspect(worker, &for_ms));
        assert_false(worker_ready(worker));
        assert_true(worker_up(worker));
        assert_int_equal(worker_connected(worker), data);
        SPIN_UNTIL(f->loop, 1000, worker_ready(worker));
        printf("%s link cut: ready again after %u ms\n", data ? "data" : "control",
               (unsigned)(clock_now_ms() - cut_ms));
        assert_int_equal(f->relinked, data + 1);
        assert_int_equal(f->lost, 0);
    }
    assert_false(worker_pool_owner_lost(f->pool, 0));
    pool_bench_stop(f);
}

static void killed_worker_is_lost_at_once(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    for (unsigned round = 0; round < 5; round++) {
        uint64_t killed_ms = clock_now_ms();
        pool_peer_kill(&f->peers[0]);
        SPIN_UNTIL(f->loop, 1000, f->lost == round + 1);
        printf("killed: lost after %u ms\n", (unsigned)(f->lost_ms - killed_ms));
        assert_in_range(f->lost_ms - killed_ms, 0, WORKER_DEAD_MS - 2 * LEASE_MS); /* some ms, and not by its silence */
        assert_false(worker_up(pool_bench_worker(f, 0)));
        pool_peer_restart(&f->peers[0], f->context);
        SPIN_UNTIL(f->loop, 5000, worker_up(pool_bench_worker(f, 0)));
    }
    assert_int_equal(f->relinked, 0);
    pool_bench_stop(f);
}

static void another_incarnation_is_a_loss(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    uint8_t before[WIRE_ID_BYTES];
    memcpy(before, worker_incarnation(pool_bench_worker(f, 0)), sizeof before);
    pool_peer_restart(&f->peers[0], f->context);
    SPIN_UNTIL(f->loop, 2000, f->lost == 1);
    SPIN_UNTIL(f->loop, 2000, worker_up(pool_bench_worker(f, 0)));
    assert_memory_not_equal(before, worker_incarnation(pool_bench_worker(f, 0)), sizeof before);
    assert_int_equal(f->relinked, 0);
    pool_bench_stop(f);
}

/* Echoes stop, whichever way is cut: suspect after 0.6 s, lost after 2 s, up again when they are back. */
static void one_way_cuts_are_noticed(void **state)
{
    (void)state;
    for (unsigned way = 0; way < 2; way++) {
        struct pool_bench *f = pool_bench_start_up(1);
        struct worker *worker = pool_bench_worker(f, 0);
        uint64_t cut_ms = clock_now_ms();
        if (way == 0)
            f->peers[0].deaf = true; /* its leases go on, and echo nothing new */
        else
            f->peers[0].control_relay.swallow_down = true;
        SPIN_UNTIL(f->loop, 1500, worker_suspect(worker, NULL));
        unsigned suspect_ms = (unsigned)(clock_now_ms() - cut_ms);
        assert_false(worker_ready(worker));
        SPIN_UNTIL(f->loop, 3000, f->lost == 1);
        printf("one way cut: suspect after %u ms, lost after %u ms\n", suspect_ms, (unsigned)(f->lost_ms - cut_ms));
        assert_in_range(suspect_ms, WORKER_SUSPECT_MS - 2 * LEASE_MS, WORKER_DEAD_MS);
        assert_in_range(f->lost_ms - cut_ms, WORKER_DEAD_MS - 2 * LEASE_MS, 3 * WORKER_DEAD_MS);
        f->peers[0].deaf = f->peers[0].control_relay.swallow_down = false;
        uint64_t healed_ms = clock_now_ms();
        SPIN_UNTIL(f->loop, 3000, worker_ready(worker));
        printf("healed: ready again after %u ms\n", (unsigned)(clock_now_ms() - healed_ms));
        pool_bench_stop(f);
    }
}

/* Its kernel accepts for it, but it says nothing: it may be back, for 2 s. */
static void stopped_worker_gets_its_two_seconds(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    uint64_t cut_ms = clock_now_ms();
    f->peers[0].control_relay.mute_accept = f->peers[0].data_relay.mute_accept = true;
    relay_cut(&f->peers[0].control_relay);
    relay_cut(&f->peers[0].data_relay);
    SPIN_UNTIL(f->loop, 4000, f->lost == 1);
    printf("stopped: lost after %u ms\n", (unsigned)(f->lost_ms - cut_ms));
    assert_in_range(f->lost_ms - cut_ms, WORKER_DEAD_MS - 2 * LEASE_MS, 3 * WORKER_DEAD_MS);
    pool_bench_stop(f);
}

static void hung_step_is_a_loss(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    f->peers[0].load = (struct wire_load){.step_age_ms = 2100, .step_median_us = 200000};
    pool_bench_let(f, 200);
    assert_int_equal(f->lost, 0); /* 20 of its steps are 4 s */
    f->peers[0].load.step_age_ms = 4100;
    SPIN_UNTIL(f->loop, 1000, f->lost == 1);
    pool_bench_let(f, 200);
    assert_false(worker_up(worker)); /* its leases alone do not bring it back */
    f->peers[0].load.step_age_ms = 3;
    SPIN_UNTIL(f->loop, 1000, worker_ready(worker));
    f->peers[0].load = (struct wire_load){.step_age_ms = WORKER_STEP_MS, .step_median_us = 100};
    pool_bench_let(f, 200);
    assert_int_equal(f->lost, 1);
    f->peers[0].load.step_age_ms++;
    SPIN_UNTIL(f->loop, 1000, f->lost == 2);
    pool_bench_stop(f);
}

/* The router stood still: silence of that time is not the worker's. */
static void own_stall_loses_nobody(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    f->stalled = true;
    f->peers[0].deaf = true;
    pool_bench_let(f, WORKER_DEAD_MS + 500);
    uint64_t for_ms;
    assert_true(worker_suspect(worker, &for_ms));
    assert_int_equal(for_ms, 0); /* nobody has judged it: nothing spills */
    f->stalled = false;
    pool_bench_let(f, 300);
    assert_true(worker_suspect(worker, &for_ms));
    assert_in_range(for_ms, 1, 1000);
    f->peers[0].deaf = false;
    SPIN_UNTIL(f->loop, 500, worker_ready(worker));
    assert_int_equal(f->lost, 0);
    pool_bench_stop(f);
}

static void leaving_is_no_fault(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    struct worker_info info;
    f->peers[0].life = WIRE_LIFE_DRAINING;
    SPIN_UNTIL(f->loop, 1000, worker_draining(worker));
    assert_false(worker_ready(worker));
    assert_false(worker_pool_owner_lost(f->pool, 0));
    f->peers[0].life = WIRE_LIFE_READY; /* called off */
    SPIN_UNTIL(f->loop, 1000, worker_ready(worker));
    struct wire_message goaway = {.kind = WIRE_GOAWAY,
                                  .goaway = {.session = wire_span_of(f->peers[0].incarnation, WIRE_ID_BYTES)}};
    f->peers[0].life = WIRE_LIFE_DRAINING;
    pool_peer_send(&f->peers[0], false, &goaway);
    SPIN_UNTIL(f->loop, 1000, worker_draining(worker));
    pool_peer_kill(&f->peers[0]);
    SPIN_UNTIL(f->loop, 1000, f->lost == 1);
    worker_info(worker, &info);
    assert_int_equal(info.faults, 0);
    assert_int_equal(info.losses, 1);
    assert_true(worker_pool_owner_lost(f->pool, 0)); /* no directory here: its link alone says so */
    pool_bench_stop(f);
}

/* ---- leases, credit, messages ---- */

static void sent_tokens_count_until_it_tells(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    assert_int_equal(pool_bench_request(worker, 1, 5000), STATUS_OK);
    assert_int_equal(worker_load_tokens(worker), 5000);
    assert_int_equal(worker_queued_tokens(worker), 5000);
    for (unsigned i = 0; i < 100; i++) { /* early leases do not push it out */
        worker_grant(worker, 3, 10 + i, true);
        pool_bench_let(f, 1);
        if (f->peers[0].requests == 0)
            assert_int_equal(worker_load_tokens(worker), 5000);
    }
    SPIN_UNTIL(f->loop, 1000, worker_load_tokens(worker) == 0);
    f->peers[0].load = (struct wire_load){.queued_tokens = 40, .running_tokens = 2, .token_ns = 1000};
    SPIN_UNTIL(f->loop, 1000, worker_load_tokens(worker) == 42);
    assert_int_equal(worker_queued_tokens(worker), 40);
    assert_int_equal(worker_token_ns(worker), 1000);
    pool_bench_stop(f);
}

static void grants_go_out_once_with_the_highest_total(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    struct pool_peer *peer = &f->peers[0];
    worker_grant(worker, 9, 600, false);
    worker_grant(worker, 4, 700, false);
    worker_grant(worker, 9, 512, false);
    SPIN_UNTIL(f->loop, 1000, peer->grant_rows >= 2);
    assert_int_equal(peer->grant_rows, 2);
    assert_int_equal(peer->granted[9], 600);
    assert_int_equal(peer->granted[4], 700);
    assert_true(peer->connection_bytes == WORKER_CONNECTION_CREDIT_BYTES);
    unsigned leases = peer->leases;
    uint64_t asked_us = clock_now_us();
    worker_grant(worker, 9, 900, true);
    SPIN_UNTIL(f->loop, 1000, peer->granted[9] == 900);
    printf("a grant that is due took %u us, %u leases\n", (unsigned)(clock_now_us() - asked_us), peer->leases - leases);

    assert_true(peer->leases - leases <= 2); /* at once, not with the one of the timer */
    leases = peer->grant_leases;             /* 45,000 streams: three leases that the peer accepts */
    for (unsigned i = 0; i < 45000; i++)
        worker_grant(worker, 45000 - i, i + 1, false);
    SPIN_UNTIL(f->loop, 2000, peer->granted[45000] == 1);
    assert_int_equal(peer->grant_leases - leases, 3);
    assert_in_range(peer->frame_bytes_max, 200000, WIRE_LEASE_BYTES_MAX);
    assert_int_equal(peer->granted[1], 45000);
    pool_bench_stop(f);
}

/* 8 MiB from what was read, and told early when half of that has come. */
static void tokens_renew_the_connections_credit(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct pool_peer *peer = &f->peers[0];
    uint8_t text[60000];
    memset(text, 'x', sizeof text);
    struct wire_batch *batch;
    struct wire_tokens_row row = {
        .stream = 1, .count = 1, .ids = wire_span_of(text, 4), .text = wire_span_of(text, sizeof text)};
    assert_int_equal(wire_batch_create(&batch), STATUS_OK);
    assert_int_equal(wire_batch_add(batch, &row), STATUS_OK);
    struct wire_span frame = wire_batch_take(batch);
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(channel_send_bytes(peer->data, &peer->data_peer, frame.data, frame.size), STATUS_OK);
    SPIN_UNTIL(f->loop, 3000, peer->connection_bytes == WORKER_CONNECTION_CREDIT_BYTES + 100 * frame.size);
    assert_int_equal(f->messages, 100);
    relay_cut(&peer->data_relay); /* counted from its HELLO */
    SPIN_UNTIL(f->loop, 1000, f->relinked == 1);
    SPIN_UNTIL(f->loop, 1000, peer->connection_bytes == WORKER_CONNECTION_CREDIT_BYTES);
    wire_batch_destroy(&batch);
    pool_bench_stop(f);
}

static void first_release_is_asked_for_nothing_new(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start(1);
    f->peers[0].capabilities = 0;
    f->peers[0].window = 512;
    SPIN_UNTIL(f->loop, 5000, worker_ready(pool_bench_worker(f, 0)));
    struct worker *worker = pool_bench_worker(f, 0);
    struct wire_attach attach = {.tenant = wire_span_str("t")};
    assert_int_equal(worker_stream_window(worker), 0);
    assert_int_equal(worker_numerics_id(worker).size, 0);
    worker_grant(worker, 1, 100, true);
    assert_int_equal(worker_send_attach(worker, &attach), STATUS_UNSUPPORTED);
    assert_int_equal(worker_send_drain(worker, &(struct wire_drain){.deadline_ms = 1}), STATUS_UNSUPPORTED);
    pool_bench_let(f, 3 * LEASE_MS);
    assert_int_equal(f->peers[0].grant_rows, 0);
    assert_int_equal(f->peers[0].connection_bytes, 0);
    assert_int_equal(f->peers[0].attaches + f->peers[0].drains, 0);
    pool_bench_stop(f);
}

static void questions_and_answers_pass(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    struct worker *worker = pool_bench_worker(f, 0);
    struct pool_peer *peer = &f->peers[0];
    static const uint8_t id[WIRE_ID_BYTES] = {5};
    struct wire_span span = wire_span_of(id, WIRE_ID_BYTES);
    assert_int_equal(
        worker_send_attach(worker, &(struct wire_attach){.request_id = span, .tenant = wire_span_str("t")}), STATUS_OK);
    assert_int_equal(worker_send_drain(worker, &(struct wire_drain){.worker = wire_span_str("w0"), .cancel = true}),
                     STATUS_OK);
    worker_send_cancel(
        worker,
        &(struct wire_cancel){.request_id = span, .tenant = wire_span_str("t"), .attempt = {.client = 2, .router = 3}});
    SPIN_UNTIL(f->loop, 1000, peer->attaches == 1 && peer->drains == 1 && peer->cancels == 1);
    assert_true(peer->drain_cancel);
    assert_int_equal(peer->cancel_attempt.router, 3);
    struct wire_message answers[] = {{.kind = WIRE_ATTACH_REPLY, .attach_reply = {.request_id = span, .known = true}},
                                     {.kind = WIRE_SUPERSEDED, .stream_ref = {.request_id = span, .stream = 1}}};
    for (unsigned i = 0; i < 2; i++) {
        pool_peer_send(peer, false, &answers[i]);
        SPIN_UNTIL(f->loop, 1000, f->messages == i + 1);
        assert_int_equal(f->last_kind, answers[i].kind);
    }
    struct wire_message status = {
        .kind = WIRE_DRAIN_STATUS,
        .drain_status = {.worker = wire_span_str("w0"), .state = WIRE_LIFE_DRAINING, .streams = 7, .bytes_left = 9}};
    struct worker_info info = {0};
    peer->life = WIRE_LIFE_DRAINING;
    pool_peer_send(peer, false, &status);
    SPIN_UNTIL(f->loop, 1000, (worker_info(worker, &info), info.drain.streams == 7));
    assert_int_equal(info.drain.bytes_left, 9);
    assert_int_equal(f->messages, 2);
    pool_peer_kill(peer);
    SPIN_UNTIL(f->loop, 1000, f->lost == 1);
    assert_int_equal(worker_send_attach(worker, &(struct wire_attach){.request_id = span}), STATUS_CLOSED);
    pool_bench_stop(f);
}

/* ---- the probe alone ---- */

struct probed {
    bool told;
    enum link_probe_result result;
};

static void on_probed(void *user, enum link_probe_result result)
{
    struct probed *probed = user;
    assert_false(probed->told);
    *probed = (struct probed){.told = true, .result = result};
}

static enum link_probe_result probe(struct loop *loop, const char *endpoint)
{
    struct probed probed = {0};
    struct link_probe *probe;
    assert_int_equal(link_probe_create(loop, endpoint, on_probed, &probed, &probe), STATUS_OK);
    assert_false(probed.told);
    SPIN_UNTIL(loop, 1000, probed.told);
    link_probe_destroy(&probe);
    return probed.result;
}

static void probe_tells_who_is_there(void **state)
{
    (void)state;
    struct pool_bench *f = pool_bench_start_up(1);
    char tcp[64], ipc[64], path[48];
    pool_peer_endpoint(&f->peers[0], tcp, sizeof tcp);
    assert_int_equal(probe(f->loop, tcp), LINK_PROBE_ANSWERED);
    f->peers[0].control_relay.mute_accept = true;
    struct probed silent = {0};
    struct link_probe *probe_silent;
    assert_int_equal(link_probe_create(f->loop, tcp, on_probed, &silent, &probe_silent), STATUS_OK);
    pool_bench_let(f, 100);
    assert_false(silent.told);
    relay_cut(&f->peers[0].control_relay);
    SPIN_UNTIL(f->loop, 1000, silent.told);
    assert_int_equal(silent.result, LINK_PROBE_UNCLEAR);
    link_probe_destroy(&probe_silent);
    pool_peer_kill(&f->peers[0]);
    assert_int_equal(probe(f->loop, tcp), LINK_PROBE_REFUSED);

    snprintf(path, sizeof path, "/tmp/roost-probe-%d", (int)getpid());
    snprintf(ipc, sizeof ipc, "ipc://%s", path);
    assert_int_equal(probe(f->loop, ipc), LINK_PROBE_REFUSED); /* no such file */
    void *server = zmq_socket(f->context, ZMQ_ROUTER);
    assert_int_equal(zmq_bind(server, ipc), 0);
    assert_int_equal(probe(f->loop, ipc), LINK_PROBE_ANSWERED);
    zmq_close(server);
    (void)unlink(path);

    struct link_probe *none = NULL;
    const char *const strange[] = {"tcp://worker.example:1", "tcp://127.0.0.1", "inproc://x", "ipc://",
                                   "tcp://[::1]:x"};
    for (unsigned i = 0; i < sizeof strange / sizeof strange[0]; i++)
        assert_int_equal(link_probe_create(f->loop, strange[i], on_probed, NULL, &none), STATUS_UNSUPPORTED);
    assert_null(none);
    pool_bench_stop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_up_and_is_known),
        cmocka_unit_test(dropped_link_is_suspect_and_comes_back),
        cmocka_unit_test(killed_worker_is_lost_at_once),
        cmocka_unit_test(another_incarnation_is_a_loss),
        cmocka_unit_test(one_way_cuts_are_noticed),
        cmocka_unit_test(stopped_worker_gets_its_two_seconds),
        cmocka_unit_test(hung_step_is_a_loss),
        cmocka_unit_test(own_stall_loses_nobody),
        cmocka_unit_test(leaving_is_no_fault),
        cmocka_unit_test(sent_tokens_count_until_it_tells),
        cmocka_unit_test(grants_go_out_once_with_the_highest_total),
        cmocka_unit_test(tokens_renew_the_connections_credit),
        cmocka_unit_test(first_release_is_asked_for_nothing_new),
        cmocka_unit_test(questions_and_answers_pass),
        cmocka_unit_test(probe_tells_who_is_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
