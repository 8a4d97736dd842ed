/* placement_redis_test.c - the store in Redis when Redis is poisoned, frozen, killed, wiped, slow or refuses. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "placement_fixture.h"
#include "redis_proxy.h"
#include "spin.h"
#include "tests/unit/unit.h"

/* What somebody else wrote over our keys is no record: the claim wins, and what it writes is clean. */
static void poisoned(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    static const char *const poisons[] = {
        "SET %s x",
        "LPUSH %s x",
        "SETRANGE %s 67108864 x",
        "HSET %s owner worker-a",
        "HSET %s owner worker-a epoch abc cache x",
        "HSET %s owner worker-a epoch -1",
        "HSET %s owner worker-a epoch 99999999999999999999999",
        "HSET %s owner worker-a epoch 9007199254740993",
        "HSET %s owner worker-a epoch 0012",
        "HSET %s owner worker-a epoch 1e9",
        "HSET %s owner wor/ker epoch 12",
        "HSET %s owner aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggg epoch 12",
        "HSET %s owner worker-a epoch 12 cache zz",
        "HSET %s owner worker-a epoch 12 cache zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        "EVAL return(redis.call('HSET',KEYS[1],'owner',string.rep('a',50000000),'epoch','1')) 1 %s",
        "EVAL return(redis.call('HSET',KEYS[1],'owner','\\000\\001','epoch','1')) 1 %s",
    };
    for (unsigned i = 0; i < sizeof poisons / sizeof poisons[0]; i++) {
        char conversation[32], name[64], command[256];
        snprintf(conversation, sizeof conversation, "poison-%u", i);
        struct placement_key key = key_of("acme", conversation);
        snprintf(name, sizeof name, "roost:{%s}:place", key.hex);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
        snprintf(command, sizeof command, poisons[i], name);
        redis_server_ask(&bench.server, command);
#pragma GCC diagnostic pop
        assert_string_equal(redis_server_ask(&bench.server, "EXISTS %s", name), "1");
        struct placement_answer answer = claim(&bench, 0, &key, "worker-b");
        assert_int_equal(answer.st, STATUS_OK);
        if (!answer.ours)
            fail_msg("poison %u was taken for a record of %s", i, answer.record.owner);
        answer = claim(&bench, 1, &key, "worker-c");
        assert_false(answer.ours);
        assert_string_equal(answer.record.owner, "worker-b");
        assert_string_equal(redis_server_ask(&bench.server, "TYPE %s", name), "hash");
        assert_string_equal(redis_server_ask(&bench.server, "HLEN %s", name), "3");
    }
    bench_stop(&bench);
}

static void what_is_written(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    struct placement_key key = key_of("acme", "chat-1");
    struct placement_answer won = claim(&bench, 0, &key, "worker-a");
    char epoch[32];
    snprintf(epoch, sizeof epoch, "%" PRIu64, won.record.epoch);
    assert_string_equal(redis_server_ask(&bench.server, "HGET roost:{%s}:place owner", key.hex), "worker-a");
    assert_string_equal(redis_server_ask(&bench.server, "HGET roost:{%s}:place epoch", key.hex), epoch);
    assert_string_equal(redis_server_ask(&bench.server, "HGET roost:{%s}:place cache", key.hex), "");
    redis_server_ask(&bench.server, "EXPIRE roost:{%s}:place 100", key.hex);
    (void)claim(&bench, 1, &key, "worker-b"); /* each turn renews it */
    assert_in_range(atoi(redis_server_ask(&bench.server, "TTL roost:{%s}:place", key.hex)), PLACEMENT_TTL_S - 5,
                    PLACEMENT_TTL_S);
    redis_server_ask(&bench.server, "SCRIPT FLUSH"); /* digests are gone: scripts are sent whole again */
    assert_false(claim(&bench, 0, &key, "worker-b").ours);
    redis_server_ask(&bench.server, "FLUSHALL");
    assert_true(claim(&bench, 1, &key, "worker-b").ours);
    bench_stop(&bench);
}

/* Frozen: an answer within the budget; thawed: what it was after all. */
static void frozen_and_late(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    struct placement_key warm = key_of("acme", "warm"), key = key_of("acme", "chat-1");
    (void)claim(&bench, 0, &warm, "worker-a");
    uint64_t best_us = UINT64_MAX;
    struct answer late;
    for (unsigned i = 0; i < 3; i++) {
        redis_server_freeze(&bench.server);
        assert_int_equal(start_claim(&bench, 0, &key, "worker-a", PLACEMENT_BUDGET_MS, &late), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, late.firsts == 1);
        assert_int_equal(late.first.st, STATUS_TIMEOUT);
        uint64_t took_us = late.first_us - late.sent_us;
        best_us = took_us < best_us ? took_us : best_us;
        redis_server_thaw(&bench.server);
        SPIN_UNTIL(bench.loop, 1000, late.lates == 1);
        assert_int_equal(late.late.st, STATUS_OK);
        assert_string_equal(late.late.record.owner, "worker-a");
        assert_int_equal(late.late.ours, i == 0);
    }
    assert_in_range(best_us, 2000, 5000);
    (void)claim(&bench, 0, &warm, "worker-a"); /* an answer in time: the count begins anew */
    /* the breaker: after five misses nothing is sent any more */
    redis_server_freeze(&bench.server);
    struct answer misses[REDIS_LINK_MISSES_MAX];
    for (unsigned i = 0; i < REDIS_LINK_MISSES_MAX; i++) {
        assert_int_equal(start_claim(&bench, 0, &key, "worker-a", PLACEMENT_BUDGET_MS, &misses[i]), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, misses[i].firsts == 1);
    }
    assert_int_equal(start_claim(&bench, 0, &key, "worker-a", PLACEMENT_BUDGET_MS, &late), STATUS_CLOSED);
    assert_false(bench.stores[0]->ops->up(bench.stores[0]));
    SPIN_UNTIL(bench.loop, 1000, misses[REDIS_LINK_MISSES_MAX - 1].lates == 1);
    for (unsigned i = 0; i < REDIS_LINK_MISSES_MAX; i++)
        assert_int_equal(misses[i].lates, 1); /* each has its last word */
    redis_server_thaw(&bench.server);
    SPIN_UNTIL(bench.loop, 2000, bench.stores[0]->ops->up(bench.stores[0]));
    assert_false(claim(&bench, 0, &key, "worker-b").ours);
    bench_stop(&bench);
}

static void killed_and_restarted(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    struct placement_key key = key_of("acme", "chat-1");
    struct placement_answer before = claim(&bench, 0, &key, "worker-a");
    redis_server_freeze(&bench.server);
    struct answer open;
    assert_int_equal(start_claim(&bench, 0, &key, "worker-b", 5000, &open), STATUS_OK);
    (void)spin(bench.loop, 5, NULL, NULL);
    redis_server_kill(&bench.server);
    SPIN_UNTIL(bench.loop, 1000, open.firsts == 1);
    assert_int_equal(open.first.st, STATUS_CLOSED);
    assert_int_equal(start_claim(&bench, 0, &key, "worker-b", 5, &open), STATUS_CLOSED);
    redis_server_start(&bench.server); /* empty: nothing was saved */
    SPIN_UNTIL(bench.loop, 2000, bench.stores[0]->ops->up(bench.stores[0]));
    struct placement_answer after = claim(&bench, 0, &key, "worker-b");
    assert_true(after.ours);
    assert_true(after.record.epoch > before.record.epoch); /* the clock keeps epochs growing over a wipe */
    bench_stop(&bench);
}

/* Full, or a replica: the answer is an error of the store, not a record. */
static void refusing_server(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    struct placement_key key = key_of("acme", "chat-1");
    redis_server_ask(&bench.server, "CONFIG SET maxmemory 1");
    assert_int_equal(claim(&bench, 0, &key, "worker-a").st, STATUS_IO);
    redis_server_ask(&bench.server, "CONFIG SET maxmemory 0");
    assert_true(claim(&bench, 0, &key, "worker-a").ours);
    redis_server_ask(&bench.server, "REPLICAOF 127.0.0.1 1");
    struct placement_answer answer = claim(&bench, 1, &key, "worker-b");
    assert_true(answer.st != STATUS_OK || (!answer.ours && strcmp(answer.record.owner, "worker-a") == 0));
    bench_stop(&bench);
}

/* What the owner wrote stands as long as it is the owner. */
static void owners_fields(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    struct placement_key key = key_of("acme", "chat-1");
    struct placement_answer won = claim(&bench, 0, &key, "worker-a");
    redis_server_ask(&bench.server, "HSET roost:{%s}:place tokens 4096 tier host more stuff", key.hex);
    struct placement_answer seen = claim(&bench, 1, &key, "worker-b");
    assert_int_equal(seen.record.tokens, 4096);
    assert_int_equal(seen.record.tier, PLACEMENT_TIER_HOST);
    (void)spin(bench.loop, 30, NULL, NULL);
    struct placement_answer later = claim(&bench, 1, &key, "worker-b");
    assert_true(later.age_ms >= 30 && later.age_ms < 60000 && won.age_ms < later.age_ms);

    /* noting its cache keeps what it wrote, and throws out what nobody of us wrote */
    struct placement_record with_cache = seen.record;
    with_cache.has_cache = true;
    memset(with_cache.cache_id, 0xab, sizeof with_cache.cache_id);
    with_cache.tokens = 1; /* not ours to write */
    struct placement_answer noted = replace(&bench, 0, &key, &seen.record, &with_cache);
    assert_true(noted.ours && noted.record.has_cache && noted.record.epoch == won.record.epoch);
    assert_int_equal(noted.record.tokens, 4096);
    assert_int_equal(noted.record.tier, PLACEMENT_TIER_HOST);
    assert_string_equal(redis_server_ask(&bench.server, "HLEN roost:{%s}:place", key.hex), "5");

    static const char *const nonsense[] = {"tokens x tier y", "tokens -1 tier device", "tokens 1e3 tier hos",
                                           "tokens 9999999999 tier 12", "tokens 0x10 tier DEVICE"};
    for (unsigned i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        char command[160];
        snprintf(command, sizeof command, "HSET roost:{%s}:place %s", key.hex, nonsense[i]);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
        redis_server_ask(&bench.server, command);
#pragma GCC diagnostic pop
        struct placement_answer answer = claim(&bench, 1, &key, "worker-b");
        assert_int_equal(answer.st, STATUS_OK);
        assert_string_equal(answer.record.owner, "worker-a");
        assert_int_equal(answer.record.tokens, 0);
        assert_int_equal(answer.record.tier, i == 1 ? PLACEMENT_TIER_DEVICE : PLACEMENT_TIER_UNKNOWN);
    }
    /* a new owner has none of it, and is young */
    struct placement_record next = record_of("worker-b", 0);
    struct placement_answer moved = replace(&bench, 0, &key, &noted.record, &next);
    assert_true(moved.ours && moved.record.tokens == 0 && moved.record.tier == PLACEMENT_TIER_UNKNOWN);
    assert_true(!moved.record.has_cache && moved.record.epoch > won.record.epoch);
    /* made in the future: no age */
    struct placement_record future = record_of("worker-c", moved.record.epoch + 5000000000);
    assert_int_equal(replace(&bench, 0, &key, &moved.record, &future).age_ms, 0);
    bench_stop(&bench);
}

/* Redis comes back empty, and three routers ask at once for the same conversation: those that remember its owner name
 * it, one that does not names somebody else. One winner, and all three know it, every time. */
static void three_routers_after_a_wipe(void **state)
{
    (void)state;
    enum { ROUNDS = 40, CONVERSATIONS = 8 };
    static const char *const others[3] = {"worker-b", "worker-c", "worker-d"};
    struct bench bench;
    bench_start(&bench, true);
    unsigned home = 0, decided = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        static struct answer answers[CONVERSATIONS][3];
        struct placement_record before[CONVERSATIONS];
        struct placement_key keys_[CONVERSATIONS];
        for (unsigned i = 0; i < CONVERSATIONS; i++) {
            char conversation[32];
            snprintf(conversation, sizeof conversation, "chat-%u-%u", round, i);
            keys_[i] = key_of("acme", conversation);
            before[i] = claim(&bench, i % 3, &keys_[i], "worker-a").record;
        }
        redis_server_ask(&bench.server, "FLUSHALL");
        for (unsigned i = 0; i < CONVERSATIONS; i++) {
            unsigned remember = i % 4; /* so many of the three know */
            for (unsigned k = 0; k < 3; k++) {
                unsigned router = (k + round + i) % 3;
                struct placement_record proposal = router < remember ? before[i] : record_of(others[router], 0);
                struct answer *answer = &answers[i][router];
                memset(answer, 0, sizeof *answer);
                struct placement *self = bench.stores[router];
                assert_int_equal(self->ops->claim(self, &keys_[i], &proposal, 5000, on_answer, answer), STATUS_OK);
            }
        }
        for (unsigned i = 0; i < CONVERSATIONS; i++) {
            SPIN_UNTIL(bench.loop, 5000, answers[i][0].firsts && answers[i][1].firsts && answers[i][2].firsts);
            unsigned winners = 0;
            for (unsigned router = 0; router < 3; router++) {
                const struct placement_answer *answer = &answers[i][router].first;
                assert_int_equal(answer->st, STATUS_OK);
                winners += answer->ours;
                assert_string_equal(answer->record.owner, answers[i][0].first.record.owner);
                assert_true(answer->record.epoch == answers[i][0].first.record.epoch);
            }
            assert_int_equal(winners, 1);
            bool is_home = strcmp(answers[i][0].first.record.owner, "worker-a") == 0;
            if (i % 4 == 3)
                assert_true(is_home && answers[i][0].first.record.epoch >= before[i].epoch);
            if (i % 4 == 0)
                assert_false(is_home);
            home += is_home;
            decided++;
        }
    }
    print_message("%u conversations, one owner each; %u went home\n", decided, home);
    bench_stop(&bench);
}

/* 200 ms on the way: each answer within its budget, and what comes late is right. */
static void slow_server(void **state)
{
    (void)state;
    struct bench bench;
    struct redis_proxy proxy;
    bench_start(&bench, true);
    redis_proxy_start(&proxy, &bench.server, 200);
    assert_int_equal(redis_link_set_address(bench.links[0], proxy.socket), STATUS_OK);
    SPIN_UNTIL(bench.loop, 2000, redis_link_up(bench.links[0]));
    enum { COUNT = 60 };
    static struct answer answers[COUNT];
    unsigned asked = 0, over = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        char conversation[32];
        snprintf(conversation, sizeof conversation, "chat-%u", i);
        struct placement_key key = key_of("acme", conversation);
        if (start_claim(&bench, 0, &key, "worker-a", PLACEMENT_BUDGET_MS, &answers[i]) != STATUS_OK) {
            (void)spin(bench.loop, 20, NULL, NULL);
            continue;
        }
        asked++;
        SPIN_UNTIL(bench.loop, 1000, answers[i].firsts == 1);
        assert_int_equal(answers[i].first.st, STATUS_TIMEOUT);
        over += answers[i].first_us - answers[i].sent_us > 20000;
    }
    assert_true(asked >= REDIS_LINK_MISSES_MAX && asked < COUNT);
    assert_true(over <= asked / 4); /* other processes share this machine */
    SPIN_UNTIL(bench.loop, 2000, redis_link_up(bench.links[0]));
    (void)spin(bench.loop, 300, NULL, NULL);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(answers[i].lates, answers[i].firsts);
        if (answers[i].lates && answers[i].late.st == STATUS_OK)
            assert_string_equal(answers[i].late.record.owner, "worker-a");
    }
    redis_link_destroy(&bench.links[0]);
    redis_proxy_stop(&proxy);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(poisoned),
        cmocka_unit_test(what_is_written),
        cmocka_unit_test(frozen_and_late),
        cmocka_unit_test(killed_and_restarted),
        cmocka_unit_test(refusing_server),
        cmocka_unit_test(owners_fields),
        cmocka_unit_test(three_routers_after_a_wipe),
        cmocka_unit_test(slow_server),
    };
    return unit_begin() ? redis_run(tests, NULL, NULL) : 1;
}
