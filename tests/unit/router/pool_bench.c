#include "pool_bench.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>
#include "common/clock.h"
#include "common/loop.h"
#include "spin.h"

static void on_ready(void *user, struct worker *worker)
{
    (void)worker;
    ((struct pool_bench *)user)->ready++;
}

static void on_lost(void *user, struct worker *worker)
{
    struct pool_bench *f = user;
    assert_false(worker_ready(worker));
    f->lost++;
    f->lost_ms = clock_now_ms();
}

static void on_relinked(void *user, struct worker *worker)
{
    (void)worker;
    ((struct pool_bench *)user)->relinked++;
}

static void on_message(void *user, struct worker *worker, const struct wire_message *message)
{
    struct pool_bench *f = user;
    (void)worker;
    f->messages++;
    f->last_kind = message->kind;
}

static void on_tick(void *user)
{
    struct pool_bench *f = user;
    if (!f->stalled && f->pool)
        worker_pool_expire(f->pool, loop_now_ms(f->loop));
}

static void on_turn(void *user)
{
    struct pool_bench *f = user;
    if (f->pool)
        worker_pool_turn(f->pool);
}

struct pool_bench *pool_bench_start(unsigned peers)
{
    static const char *const names[PEERS_MAX] = {"w0", "w1", "w2"};
    static const uint8_t session[WIRE_ID_BYTES] = {7};
    char texts[PEERS_MAX][64];
    const char *endpoints[PEERS_MAX];
    struct pool_bench *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->context = zmq_ctx_new();
    f->peer_count = peers;
    assert_int_equal(loop_create(&f->loop), STATUS_OK);
    for (unsigned i = 0; i < peers; i++) {
        pool_peer_start(&f->peers[i], f->loop, f->context, names[i]);
        pool_peer_endpoint(&f->peers[i], texts[i], sizeof texts[i]);
        endpoints[i] = texts[i];
    }
    struct worker_pool_config config = {
        .endpoints = endpoints, .endpoint_count = peers, .name = "router", .session = session, .lease_ms = LEASE_MS};
    struct worker_pool_events events = {
        .on_ready = on_ready, .on_lost = on_lost, .on_relinked = on_relinked, .on_message = on_message, .user = f};
    assert_int_equal(worker_pool_create(f->loop, f->context, &config, &events, &f->pool), STATUS_OK);
    assert_int_equal(loop_timer_create(f->loop, TICK_MS, true, on_tick, f, &f->tick), STATUS_OK);
    assert_int_equal(loop_hook_create(f->loop, on_turn, f, &f->hook), STATUS_OK);
    return f;
}

void pool_bench_stop(struct pool_bench *f)
{
    loop_hook_destroy(&f->hook);
    loop_timer_destroy(&f->tick);
    worker_pool_destroy(&f->pool);
    for (unsigned i = 0; i < f->peer_count; i++) {
        assert_int_equal(f->peers[i].malformed, 0);
        pool_peer_stop(&f->peers[i]);
    }
    loop_destroy(&f->loop);
    zmq_ctx_term(f->context);
    free(f);
}

struct worker *pool_bench_worker(struct pool_bench *f, unsigned index)
{
    return worker_pool_at(f->pool, index);
}

struct pool_bench *pool_bench_start_up(unsigned peers)
{
    struct pool_bench *f = pool_bench_start(peers);
    for (unsigned i = 0; i < peers; i++)
        SPIN_UNTIL(f->loop, 5000, worker_ready(pool_bench_worker(f, i)));
    return f;
}

void pool_bench_let(struct pool_bench *f, uint64_t ms)
{
    (void)spin(f->loop, ms, NULL, NULL);
}

enum status pool_bench_request(struct worker *worker, uint32_t stream, uint64_t tokens)
{
    static const uint8_t id[WIRE_ID_BYTES] = {1};
    zmq_msg_t frames[2];
    struct wire_message head = {.kind = WIRE_HEAD,
                                .head = {.request_id = wire_span_of(id, WIRE_ID_BYTES),
                                         .session = wire_span_of(id, WIRE_ID_BYTES),
                                         .tenant = wire_span_str("t"),
                                         .body_bytes = 100}};
    zmq_msg_init_size(&frames[0], wire_encoded_size(&head));
    wire_encode(&head, zmq_msg_data(&frames[0]));
    zmq_msg_init_size(&frames[1], 100);
    memset(zmq_msg_data(&frames[1]), 0, 100);
    return worker_send_request(worker, stream, &frames[0], &frames[1], tokens);
}
