/* router_redis_test.c - the router with a real Redis: shared placements, the directory, leases there, and Redis going
 * away. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/loop.h"
#include "redis_server.h"
#include "router/placement.h"
#include "router/worker_pool.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

static struct redis_server server;

static struct router_settings redis_settings(void)
{
    static char placement[] = "redis";
    struct router_settings settings = default_settings();
    settings.placement = placement;
    settings.redis_address = server.socket;
    return settings;
}

static int start_server(void **state)
{
    (void)state;
    redis_server_start(&server);
    return 0;
}

static int stop_server(void **state)
{
    (void)state;
    redis_server_destroy(&server);
    return 0;
}

/* As the worker registers itself. */
static void register_worker(const struct fake_worker *worker, unsigned ttl_ms)
{
    redis_server_ask(&server, "SADD roost:workers %s", worker->name);
    redis_server_ask(&server, "HSET roost:worker:%s endpoint %s incarnation 00 state ready", worker->name,
                     fake_worker_endpoint(worker));
    redis_server_ask(&server, "PEXPIRE roost:worker:%s %u", worker->name, ttl_ms);
}

static struct placement_key key_of(const char *conversation)
{
    struct placement_salt salt;
    struct placement_key key;
    placement_salt_make("salt", &salt);
    placement_key_make(&salt, wire_span_str("default"), wire_span_str(conversation), &key);
    return key;
}

static const char *field(const char *conversation, const char *name)
{
    struct placement_key key = key_of(conversation);
    return redis_server_ask(&server, "HGET roost:{%s}:place %s", key.hex, name);
}

static void wait_for_redis(struct bench *bench)
{
    let(bench, 1300); /* it connects within one probe, and who comes in its first second may wait for Redis longer */
}

/* Workers that answer each request with so many tokens, and a router with Redis that may be waited for. */
static struct bench *start(unsigned workers, unsigned tokens, bool wait)
{
    struct router_settings settings = redis_settings();
    struct bench *bench = bench_start(workers, &settings);
    if (wait)
        wait_for_redis(bench);
    answer_at_once(bench, tokens);
    return bench;
}

static void register_all(struct bench *bench)
{
    for (unsigned i = 0; i < bench->worker_count; i++)
        register_worker(&bench->workers[i], 600000);
}

/* Turns until the claim was answered within its 2 ms: this machine has other things to do as well. */
static struct fake_stream *placed_turn(struct bench *bench, uint32_t *stream, const char *conversation)
{
    for (uint64_t end = clock_now_ms() + 5000; clock_now_ms() < end && *stream < FAKE_STREAMS_MAX; let(bench, 20)) {
        struct fake_stream *got = take_turn(bench, (*stream)++, conversation);
        if (strcmp(got->route, "redis-down") != 0)
            return got;
    }
    fail_msg("no claim was answered in time");
    return NULL;
}

static void placed_and_shared(void **state)
{
    (void)state;
    struct bench *bench = start(3, 3, true);
    uint32_t stream = 1;
    struct fake_stream *first = placed_turn(bench, &stream, "chat-1");
    char owner[WIRE_NAME_MAX + 1], cache[HASH_HEX_SIZE(16)];
    snprintf(owner, sizeof owner, "%s", first->worker);
    assert_string_equal(field("chat-1", "owner"), owner);
    hash_hex(worker_named(bench, owner)->cache_id, 16, cache);
    SPIN_UNTIL(bench->loop, 1000, strcmp(field("chat-1", "cache"), cache) == 0);
    assert_true(strtoull(field("chat-1", "epoch"), NULL, 10) == first->epoch || first->epoch == 0);

    /* another router, started later, knows nothing and goes to the same worker */
    struct second other;
    second_start(&other, bench, NULL);
    SPIN_UNTIL(bench->loop, 3000, fake_client_ready(&other.client) && router_workers_ready(other.router) == 3);
    wait_for_redis(bench);
    bool home = false;
    for (uint32_t i = 100; i < FAKE_STREAMS_MAX && !home; i++) {
        struct fake_ask ask = ask_of(i, "chat-1");
        fake_client_ask(&other.client, &ask);
        SPIN_UNTIL(bench->loop, 3000, other.client.streams[i].dones == 1);
        home = strcmp(other.client.streams[i].route, "owner") == 0;
        let(bench, home ? 0 : 20);
        if (home)
            assert_string_equal(other.client.streams[i].worker, owner);
    }
    assert_true(home);
    second_stop(&other);
    bench_stop(&bench);
}

/* A dead owner keeps its conversations while its lease in Redis lives: until then they spill, and the record stays. */
static void lease_in_redis_counts(void **state)
{
    (void)state;
    struct bench *bench = start(2, 1, true);
    register_all(bench);
    uint32_t stream = 1;
    struct fake_stream *first = placed_turn(bench, &stream, "chat-2");
    char owner[WIRE_NAME_MAX + 1];
    snprintf(owner, sizeof owner, "%s", first->worker);
    let(bench, 1200); /* the directory was read */
    fake_worker_kill(worker_named(bench, owner));
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 1);
    let(bench, 1200);
    struct fake_stream *spilled = placed_turn(bench, &stream, "chat-2");
    assert_string_equal(spilled->route, "spill");
    assert_string_not_equal(spilled->worker, owner);
    assert_string_equal(field("chat-2", "owner"), owner);
    redis_server_ask(&server, "DEL roost:worker:%s", owner); /* now it has expired */
    let(bench, 1300);
    struct fake_stream *taken = NULL;
    struct placement_key key = key_of("chat-2");
    for (unsigned i = 0; i < 20 && !(taken && strcmp(taken->route, "owner-dead") == 0); i++) {
        /* as it was: a take-over that was answered late moves the record all the same, and its turn spills */
        redis_server_ask(&server, "HSET roost:{%s}:place owner %s", key.hex, owner);
        taken = placed_turn(bench, &stream, "chat-2");
    }
    assert_non_null(taken);
    assert_string_equal(taken->route, "owner-dead");
    assert_string_equal(field("chat-2", "owner"), taken->worker);
    assert_true(taken->epoch > first->epoch);
    assert_string_equal(placed_turn(bench, &stream, "chat-2")->route, "owner");
    bench_stop(&bench);
}

/* Its lease in Redis lives on and on, but nobody here reaches it: after WORKER_TAKE_OVER_MS its conversations move. */
static void link_down_for_long(void **state)
{
    (void)state;
    struct bench *bench = start(2, 1, false);
    register_all(bench);
    uint32_t stream = 1;
    char owner[WIRE_NAME_MAX + 1];
    snprintf(owner, sizeof owner, "%s", placed_turn(bench, &stream, "chat-11")->worker);
    uint64_t killed = clock_now_ms();
    fake_worker_kill(worker_named(bench, owner));
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 1);
    struct fake_stream *got = NULL;
    struct placement_key key = key_of("chat-11");
    for (unsigned i = 0; !got || strcmp(got->route, "owner-dead") != 0; i++) {
        assert_true(clock_now_ms() - killed < WORKER_TAKE_OVER_MS + 5000);
        let(bench, 200);
        /* as it was: the worker that runs a turn while the owner's link is down may have taken its cache into it */
        redis_server_ask(&server, "HSET roost:{%s}:place owner %s epoch %u", key.hex, owner, 1000 + i);
        got = take_turn(bench, stream++, "chat-11");
        assert_string_not_equal(got->worker, owner);
    }
    assert_true(clock_now_ms() - killed >= WORKER_TAKE_OVER_MS);
    bench_stop(&bench);
}

/* Workers that only the directory knows: found, followed when they move, forgotten when gone. */
static void directory(void **state)
{
    (void)state;
    struct router_settings settings = redis_settings();
    struct bench *bench = bench_start_unlisted(2, &settings);
    wait_for_redis(bench);
    assert_int_equal(router_workers_ready(bench->router), 0);
    redis_server_ask(&server, "SADD roost:workers no/name");
    redis_server_ask(&server, "SADD roost:workers ghost"); /* its entry has expired */
    redis_server_ask(&server, "SADD roost:workers poison");
    redis_server_ask(&server, "SET roost:worker:poison x");
    redis_server_ask(&server, "SADD roost:workers strange");
    redis_server_ask(&server, "HSET roost:worker:strange endpoint nonsense://");
    answer_at_once(bench, 1);
    register_all(bench);
    SPIN_UNTIL(bench->loop, 4000, router_workers_ready(bench->router) == 2);
    uint32_t stream = 1;
    (void)placed_turn(bench, &stream, "chat-3");
    /* it starts again elsewhere */
    fake_worker_kill(&bench->workers[0]);
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 1);
    fake_worker_start(&bench->workers[0], bench->loop, bench->zmq, "worker-a");
    bench->workers[0].auto_tokens = 1;
    register_worker(&bench->workers[0], 600000);
    SPIN_UNTIL(bench->loop, 4000, router_workers_ready(bench->router) == 2);
    /* it hangs, its old address still accepts connections, and another process has its name elsewhere */
    bench->workers[0].mute = true;
    SPIN_UNTIL(bench->loop, 4000, router_workers_ready(bench->router) == 1);
    fake_worker_start(&bench->workers[2], bench->loop, bench->zmq, "worker-a");
    register_worker(&bench->workers[2], 600000);
    SPIN_UNTIL(bench->loop, 8000, router_workers_ready(bench->router) == 2);
    /* Redis loses everything: nobody is removed */
    redis_server_ask(&server, "FLUSHALL");
    let(bench, 2500);
    assert_int_equal(router_workers_ready(bench->router), 2);
    redis_server_ask(&server, "SET roost:workers x"); /* wrong type: no reading */
    let(bench, 1500);
    assert_int_equal(router_workers_ready(bench->router), 2);
    bench_stop(&bench);
}

/* Frozen, killed, back: every request is answered, quickly; the conversation stays where it was as long as we remember.
 */
static void redis_goes_away(void **state)
{
    (void)state;
    struct bench *bench = start(3, 1, true);
    uint32_t stream = 1;
    char owner[WIRE_NAME_MAX + 1];
    snprintf(owner, sizeof owner, "%s", placed_turn(bench, &stream, "chat-4")->worker);
    redis_server_freeze(&server);
    uint32_t best_us = UINT32_MAX,
             open_us = UINT32_MAX; /* the best, so that other load on this machine does not count */
    for (unsigned i = 0; i < 12; i++) {
        struct fake_stream *got = take_turn(bench, stream++, "chat-4");
        assert_string_equal(got->route, "redis-down");
        assert_string_equal(got->worker, owner);
        best_us = i < 5 && got->route_us < best_us ? got->route_us : best_us;
        open_us = i >= 5 && got->route_us < open_us ? got->route_us : open_us;
    }
    assert_in_range(best_us, 1900, 5000);
    assert_true(open_us < 1500); /* the breaker is open: nothing is waited for */
    assert_in_range(stats_of(bench).placement_late, 5, 6);
    redis_server_kill(&server);
    char fresh[WIRE_NAME_MAX + 1];
    snprintf(fresh, sizeof fresh, "%s", take_turn(bench, stream++, "chat-5")->worker); /* unknown: the order alone */
    assert_string_equal(take_turn(bench, stream++, "chat-5")->worker, fresh);
    redis_server_start(&server);
    bool placed = false;
    for (unsigned i = 0; i < 60 && !placed; i++) {
        placed = strcmp(take_turn(bench, stream++, "chat-4")->route, "redis-down") != 0;
        let(bench, 50);
    }
    assert_true(placed);
    assert_int_equal(stats_of(bench).errors[WIRE_ERROR_INTERNAL], 0);
    bench_stop(&bench);
}

/* An answer that comes after the request went its way, to another worker than the owner: the owner is there and keeps
 * the conversation, and the next turn goes home. */
static void late_answer(void **state)
{
    (void)state;
    struct bench *bench = start(2, 1, true);
    uint32_t stream = 1;
    char first[WIRE_NAME_MAX + 1];
    snprintf(first, sizeof first, "%s", placed_turn(bench, &stream, "chat-6")->worker);
    const char *second = strcmp(first, "worker-a") == 0 ? "worker-b" : "worker-a";
    /* somebody else moved it, and we do not know yet */
    struct placement_key key = key_of("chat-6");
    let(bench, 50);
    redis_server_ask(&server, "HSET roost:{%s}:place owner %s", key.hex, second);
    redis_server_freeze(&server);
    assert_string_equal(take_turn(bench, stream, "chat-6")->worker, first); /* what we remember */
    assert_string_equal(bench->clients[0].streams[stream].route, "redis-down");
    redis_server_thaw(&server);
    let(bench, 100);
    assert_string_equal(field("chat-6", "owner"), second);
    assert_string_equal(take_turn(bench, stream + 1, "chat-6")->worker, second);
    assert_string_equal(field("chat-6", "owner"), second);
    bench_stop(&bench);
}

/* Its router was lost: it has waited longer than Redis takes for all who come with it. */
static void a_repeat_waits_for_its_record(void **state)
{
    (void)state;
    struct bench *bench = start(3, 1, true);
    uint32_t stream = 1;
    (void)placed_turn(bench, &stream, "chat-14"); /* the link is up */
    for (unsigned i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "chat-15-%u", i);
        struct placement_key key = key_of(name);
        redis_server_ask(&server, "HSET roost:{%s}:place owner %s epoch 4444", key.hex, bench->workers[i].name);
        for (unsigned first = 0; first < 2; first++) {
            struct fake_ask ask = ask_of(100 + 2 * i + first, name);
            struct fake_stream *got = &bench->clients[0].streams[ask.stream];
            ask.attempt_client = first ? 1 : 2;
            redis_server_freeze(&server);
            fake_client_ask(&bench->clients[0], &ask);
            if (first) {
                SPIN_UNTIL(bench->loop, 1000, got->dones == 1); /* while Redis stands still */
            } else {
                SPIN_UNTIL(bench->loop, 1000, router_in_flight(bench->router) == 1);
                let(bench, 15);
                assert_int_equal(router_in_flight(bench->router), 1);
            }
            redis_server_thaw(&server);
            SPIN_UNTIL(bench->loop, 1000, got->dones == 1);
            assert_string_equal(got->route, first ? "redis-down" : "owner");
            assert_string_equal(got->worker, bench->workers[i].name);
            let(bench, 50);
        }
    }
    bench_stop(&bench);
}

/* The record of a new conversation is made by a claim that is answered late: whoever ran the first turn has it. */
static void late_answer_to_a_new_one(void **state)
{
    (void)state;
    enum { TALKS = 16 };
    struct bench *bench = start(3, 1, true);
    struct fake_client *client = &bench->clients[0];
    uint32_t stream = 1;
    (void)placed_turn(bench, &stream, "chat-12"); /* the link is up */
    bench->workers[0].queued_tokens = 1 << 20;    /* never proposed, and first in the order of a third of them */
    answer_at_once(bench, 0);
    let(bench, 300);
    uint64_t late = stats_of(bench).placement_late;
    unsigned before = requests_total(bench);
    redis_server_freeze(&server);
    for (unsigned i = 0; i < TALKS; i++) {
        char name[16];
        snprintf(name, sizeof name, "late-%u", i);
        struct fake_ask ask = ask_of(200 + i, name);
        fake_client_ask(client, &ask);
    }
    SPIN_UNTIL(bench->loop, 1000, stats_of(bench).placement_late == late + TALKS);
    SPIN_UNTIL(bench->loop, 1000, requests_total(bench) >= before + TALKS);
    redis_server_thaw(&server);
    assert_true(bench->workers[0].request_count > 0);
    for (unsigned i = 0; i < 3; i++)
        for (unsigned k = 0; k < bench->workers[i].request_count; k++)
            if (memcmp(bench->workers[i].requests[k].conversation, "late-", 5) == 0)
                fake_worker_done(&bench->workers[i], &bench->workers[i].requests[k], 0);
    for (unsigned i = 0; i < TALKS; i++) {
        char name[16];
        snprintf(name, sizeof name, "late-%u", i);
        SPIN_UNTIL(bench->loop, 1000, client->streams[200 + i].dones == 1);
        assert_string_equal(client->streams[200 + i].route, "redis-down");
        SPIN_UNTIL(bench->loop, 1000, strcmp(field(name, "owner"), client->streams[200 + i].worker) == 0);
    }
    bench_stop(&bench);
}

/* Nobody is told WELCOME before the router knows where conversations are: the first turn through it goes home. */
static void open_when_redis_has_answered(void **state)
{
    (void)state;
    struct bench *bench = start(3, 1, false);
    register_all(bench);
    uint32_t stream = 1;
    (void)placed_turn(bench, &stream, "chat-13");
    struct placement_key key = key_of("chat-13");
    for (unsigned i = 0; i < 3; i++) { /* the owner is each of them once, so that no luck decides */
        redis_server_ask(&server, "HSET roost:{%s}:place owner %s", key.hex, bench->workers[i].name);
        redis_server_freeze(&server);
        struct second other;
        second_start(&other, bench, NULL);
        SPIN_UNTIL(bench->loop, 3000, router_workers_ready(other.router) == 3);
        let(bench, 300);
        assert_false(fake_client_ready(&other.client));
        redis_server_thaw(&server);
        SPIN_UNTIL(bench->loop, 1000, fake_client_ready(&other.client));
        struct fake_ask ask = ask_of(100, "chat-13");
        fake_client_ask(&other.client, &ask);
        SPIN_UNTIL(bench->loop, 1000, other.client.streams[100].dones == 1);
        assert_string_equal(other.client.streams[100].route, "owner");
        assert_string_equal(other.client.streams[100].worker, bench->workers[i].name);
        second_stop(&other);
    }
    bench_stop(&bench);
}

/* The record as somebody else wrote it, found by a claim whose answer comes late: Redis is frozen until the router has
 * given up waiting. */
static void ask_late(struct bench *bench, struct fake_client *client, struct fake_ask *ask, const char *owner)
{
    struct placement_key key = key_of(ask->conversation);
    redis_server_ask(&server, "HSET roost:{%s}:place owner %s epoch 4444", key.hex, owner);
    uint64_t late = stats_of(bench).placement_late;
    redis_server_freeze(&server);
    fake_client_ask(client, ask);
    SPIN_UNTIL(bench->loop, 1000, stats_of(bench).placement_late == late + 1);
}

/* It runs somewhere already: the late record does not become its own, and the worker that runs it is written. */
static void late_answer_while_it_runs(void **state)
{
    (void)state;
    struct bench *bench = start(1, 1, true);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    uint32_t stream = 1;
    (void)placed_turn(bench, &stream, "chat-8"); /* the link is up */
    worker->auto_tokens = 0;
    unsigned before = worker->request_count;
    struct fake_ask ask = ask_of(stream, "chat-9");
    ask_late(bench, client, &ask, "worker-z");
    SPIN_UNTIL(bench->loop, 1000, worker->request_count == before + 1);
    redis_server_thaw(&server);
    SPIN_UNTIL(bench->loop, 1000, strcmp(field("chat-9", "owner"), worker->name) == 0);
    fake_worker_done(worker, &worker->requests[before], 0);
    SPIN_UNTIL(bench->loop, 1000, client->streams[stream].dones == 1);
    assert_string_equal(client->streams[stream].route, "redis-down");
    assert_int_equal(client->streams[stream].epoch, 0);
    bench_stop(&bench);
}

/* The only worker has no room, so it waits: the late record is what it is routed by. */
static void late_answer_while_it_waits(void **state)
{
    (void)state;
    struct bench *bench = start(1, 1, true);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[1];
    uint32_t stream = 1;
    (void)placed_turn(bench, &stream, "chat-8");
    worker->auto_tokens = 0;
    unsigned before = worker->request_count;
    for (unsigned i = 0; i < 4; i++) { /* 4 bodies of 1 MiB that nobody acknowledges: the grant of the worker */
        struct fake_ask big = ask_of(FAKE_STREAMS_MAX - 1 - i, NULL);
        big.body_size = WIRE_BODY_BYTES_MAX;
        fake_client_ask(&bench->clients[0], &big);
        SPIN_UNTIL(bench->loop, 2000, worker->request_count == before + i + 1);
    }
    struct fake_ask ask = ask_of(stream, "chat-10");
    ask_late(bench, client, &ask, worker->name);
    redis_server_thaw(&server);
    let(bench, 100);
    assert_int_equal(worker->request_count, before + 4);
    fake_worker_done(worker, &worker->requests[before], 0);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == before + 5);
    assert_int_equal(worker->requests[before + 4].epoch, 4444);
    fake_worker_done(worker, &worker->requests[before + 4], 0);
    SPIN_UNTIL(bench->loop, 1000, client->streams[stream].dones == 1);
    assert_string_equal(client->streams[stream].route, "owner");
    assert_int_equal(client->streams[stream].epoch, 4444);
    bench_stop(&bench);
}

static void absent_at_start(void **state)
{
    (void)state;
    redis_server_kill(&server);
    struct bench *bench = start(2, 1, false);
    uint32_t stream = 1;
    assert_string_equal(take_turn(bench, stream++, "chat-7")->route, "redis-down");
    redis_server_start(&server);
    SPIN_UNTIL(bench->loop, 3000, strcmp(take_turn(bench, stream++, "chat-7")->route, "redis-down") != 0);
    assert_string_equal(redis_server_ask(&server, "DBSIZE"), "1");
    bench_stop(&bench);
}

/* Each test has an empty server of its own: workers that an earlier one registered would be looked for at their old
 * ports, which others may have by now. */
#define with_server(test) cmocka_unit_test_setup_teardown(test, start_server, stop_server)

int main(void)
{
    const struct CMUnitTest tests[] = {
        with_server(placed_and_shared),
        with_server(lease_in_redis_counts),
        with_server(link_down_for_long),
        with_server(directory),
        with_server(redis_goes_away),
        with_server(late_answer),
        with_server(a_repeat_waits_for_its_record),
        with_server(late_answer_to_a_new_one),
        with_server(open_when_redis_has_answered),
        with_server(late_answer_while_it_runs),
        with_server(late_answer_while_it_waits),
        with_server(absent_at_start),
    };
    return unit_begin() ? redis_run(tests, NULL, NULL) : 1;
}
