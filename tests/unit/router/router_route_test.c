/* router_route_test.c - where turns go when their owner drains, is slow, or is silent for a moment, and the log of it:
 * the real router with fake workers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/loop.h"
#include "common/probe.h"
#include "router/decision_log.h"
#include "router/worker_pool.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

/* The worker that runs this turn, which comes to it in this way; NULL: in any. */
static struct fake_worker *turn(struct bench *bench, uint32_t stream, const char *conversation, const char *route)
{
    const struct fake_stream *took = take_turn(bench, stream, conversation);
    if (route)
        assert_string_equal(took->route, route);
    return worker_named(bench, took->worker);
}

static struct bench *start(unsigned workers, const struct router_settings *settings)
{
    struct bench *bench = bench_start(workers, settings);
    answer_at_once(bench, 2);
    return bench;
}

/* At its next turn, once; a drain that is called off brings nothing back. */
static void draining_owner_gives_its_conversations_away(void **state)
{
    (void)state;
    struct bench *bench = start(3, NULL);
    struct fake_worker *owner = turn(bench, 1, "chat", "new");
    assert_ptr_equal(turn(bench, 2, "chat", "owner"), owner);
    owner->life = WIRE_LIFE_DRAINING;
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 2);
    struct fake_worker *next = turn(bench, 3, "chat", "moved");
    assert_ptr_not_equal(next, owner);
    uint64_t epoch = bench->clients[0].streams[3].epoch;
    assert_true(epoch > bench->clients[0].streams[2].epoch);
    owner->life = WIRE_LIFE_READY;
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 3);
    assert_ptr_equal(turn(bench, 4, "chat", "owner"), next);
    assert_true(bench->clients[0].streams[4].epoch == epoch);
    bench_stop(&bench);
}

/* A queue of 2 s at home, nothing elsewhere: left after a second of it, and only with budget; the record stays. */
static void overloaded_owner_is_left_within_the_budget(void **state)
{
    (void)state;
    struct bench *bench = start(2, NULL);
    for (unsigned i = 0; i < 2; i++)
        bench->workers[i].token_ns = 100000;
    struct fake_worker *owner = turn(bench, 1, "chat", "new");
    owner->queued_tokens = 20000;
    let(bench, 400);
    for (uint32_t stream = 10; stream < 30; stream++) /* 20 requests: one may leave */
        assert_ptr_not_equal(turn(bench, stream, "", "load"), owner);
    assert_ptr_equal(turn(bench, 2, "chat", "owner"), owner); /* not for a second yet */
    let(bench, 1200);
    struct fake_worker *other = turn(bench, 3, "chat", "overload");
    assert_ptr_not_equal(other, owner);
    assert_ptr_equal(turn(bench, 4, "chat", "owner"), owner); /* the budget is spent */
    assert_true(bench->clients[0].streams[4].epoch == bench->clients[0].streams[2].epoch);
    assert_ptr_equal(turn(bench, 5, "another", NULL), other); /* new ones avoid it */
    bench_stop(&bench);
}

/* A worker is suspect 600 ms after its last echo, at most 200 ms before it went deaf, and waited for 600 ms more. */
enum { WAITED_AT_LEAST_MS = WORKER_SUSPECT_MS - 200 + POLICY_SUSPECT_WAIT_MS };

/* Its echoes are missing, and then come again: the turn waits and goes home, at most 600 + 150 + 200 ms after they
 * stopped. False: this machine stood still for longer than the router waits, and the turn went elsewhere. */
static bool waits_and_goes_home(struct bench *bench, struct fake_worker *owner, uint32_t stream)
{
    struct fake_client *client = &bench->clients[0];
    uint64_t deaf_ms = clock_now_ms();
    owner->deaf = true;
    SPIN_UNTIL(bench->loop, 1500, router_workers_ready(bench->router) == 1);
    unsigned before = requests_total(bench);
    struct fake_ask ask = ask_of(stream, "chat");
    fake_client_ask(client, &ask);
    let(bench, 150);
    bool waits = requests_total(bench) == before;
    uint64_t passed_ms = clock_now_ms() - deaf_ms;
    owner->deaf = false;
    SPIN_UNTIL(bench->loop, 1000, client->streams[stream].dones == 1);
    bool home = !strcmp(client->streams[stream].worker, owner->name);
    assert_string_equal(client->streams[stream].route, home ? "owner" : "spill");
    assert_true(waits || passed_ms >= WAITED_AT_LEAST_MS);
    assert_true(home || clock_now_ms() - deaf_ms >= WAITED_AT_LEAST_MS);
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 2);
    return waits && home;
}

static void silent_owner_is_waited_for(void **state)
{
    (void)state;
    struct bench *bench = start(2, NULL);
    struct fake_worker *owner = turn(bench, 1, "chat", "new");
    bool home = false;
    for (uint32_t stream = 10; stream < 20 && !home; stream++)
        home = waits_and_goes_home(bench, owner, stream);
    assert_true(home);

    uint64_t deaf_ms = clock_now_ms();
    owner->deaf = true; /* it does not come back: not for ever */
    SPIN_UNTIL(bench->loop, 1500, router_workers_ready(bench->router) == 1);
    assert_ptr_not_equal(turn(bench, 3, "chat", "spill"), owner);
    printf("waited %u ms for a silent owner\n", (unsigned)(clock_now_ms() - deaf_ms));
    assert_true(clock_now_ms() - deaf_ms >= WAITED_AT_LEAST_MS);
    owner->deaf = false;
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 2);
    assert_ptr_equal(turn(bench, 4, "chat", "owner"), owner);
    bench_stop(&bench);
}

static void decisions_are_written_and_replay(void **state)
{
    (void)state;
    static struct policy_worker workers[WORKER_POOL_MAX];
    char path[64], line[4096];
    snprintf(path, sizeof path, "/tmp/roost-route-%d", (int)getpid());
    (void)unlink(path);
    struct router_settings settings = default_settings();
    settings.decision_log = path;
    settings.decision_sample = 1;
    struct bench *bench = start(3, &settings);
    (void)turn(bench, 1, "chat", "new");
    struct fake_worker *owner = turn(bench, 2, "chat", "owner");
    (void)turn(bench, 3, "", "load");
    owner->life = WIRE_LIFE_DRAINING;
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 2);
    (void)turn(bench, 4, "chat", "moved");
    assert_int_equal(stats_of(bench).decisions_dropped, 0);
    bench_stop(&bench);

    static const enum policy_reason expected[] = {POLICY_NEW, POLICY_OWNER, POLICY_LOAD, POLICY_MOVED};
    unsigned lines = 0;
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        struct policy_table table;
        struct policy_query query;
        struct policy_choice logged;
        assert_int_equal(decision_log_parse(line, workers, WORKER_POOL_MAX, &table, &query, &logged), STATUS_OK);
        struct policy_choice again = policy_choose(&table, &query);
        assert_true(lines < 4);
        assert_int_equal(logged.reason, expected[lines]);
        assert_int_equal(again.reason, logged.reason);
        assert_int_equal(again.worker, logged.worker);
        assert_int_equal(again.take_over, logged.take_over);
        assert_null(strstr(line, "chat"));
        lines++;
    }
    assert_int_equal(lines, 4);
    fclose(file);
    (void)unlink(path);
}

/* The store fails at the moment it would be asked: served all the same. */
static void failing_claim_is_served_without_it(void **state)
{
    (void)state;
    if (probe_arm("router.claim=fail@2") != STATUS_OK)
        skip();
    struct bench *bench = start(2, NULL);
    struct fake_worker *owner = turn(bench, 1, "chat", "new");
    assert_ptr_equal(turn(bench, 2, "chat", "redis-down"), owner); /* remembered */
    assert_ptr_equal(turn(bench, 3, "chat", "owner"), owner);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draining_owner_gives_its_conversations_away),
        cmocka_unit_test(overloaded_owner_is_left_within_the_budget),
        cmocka_unit_test(silent_owner_is_waited_for),
        cmocka_unit_test(decisions_are_written_and_replay),
        cmocka_unit_test(failing_claim_is_served_without_it),
    };
    return unit_run(tests, NULL, NULL);
}
