/* placement_test.c - both stores keep the same rules; the one in Redis also when Redis is poisoned, frozen, killed or
 * wiped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "redis_proxy.h"
#include "redis_server.h"
#include "router/placement.h"
#include "router/placement_cache.h"
#include "spin.h"

struct bench {
    struct loop *loop;
    bool redis;
    struct redis_server server;
    struct redis_link *links[3];
    struct placement *stores[3]; /* three routers; the same one thrice in memory */
};

struct answer {
    unsigned firsts, lates;
    struct placement_answer first, late;
    uint64_t sent_us, first_us;
};

static void on_answer(void *user, const struct placement_answer *got)
{
    struct answer *answer = user;
    if (got->late) {
        answer->lates++;
        answer->late = *got;
    } else {
        answer->firsts++;
        answer->first = *got;
        answer->first_us = clock_now_us();
    }
}

static struct placement_key key_of(const char *tenant, const char *conversation)
{
    struct placement_salt salt;
    struct placement_key key;
    placement_salt_make("salt", &salt);
    placement_key_make(&salt, wire_span_str(tenant), wire_span_str(conversation), &key);
    return key;
}

static struct placement_record record_of(const char *owner, uint64_t epoch)
{
    struct placement_record record = {.epoch = epoch};
    snprintf(record.owner, sizeof record.owner, "%s", owner);
    return record;
}

static void bench_start(struct bench *bench, bool redis)
{
    memset(bench, 0, sizeof *bench);
    bench->redis = redis;
    assert_int_equal(loop_create(&bench->loop), STATUS_OK);
    if (!redis) {
        assert_int_equal(placement_memory_create(bench->loop, 1000, &bench->stores[0]), STATUS_OK);
        bench->stores[2] = bench->stores[1] = bench->stores[0];
        return;
    }
    redis_server_start(&bench->server);
    for (unsigned i = 0; i < 3; i++) {
        struct redis_link_config config = {.address = bench->server.socket};
        assert_int_equal(redis_link_create(bench->loop, &config, &bench->links[i]), STATUS_OK);
        assert_int_equal(placement_redis_create(bench->links[i], &bench->stores[i]), STATUS_OK);
    }
    SPIN_UNTIL(bench->loop, 2000,
               redis_link_up(bench->links[0]) && redis_link_up(bench->links[1]) && redis_link_up(bench->links[2]));
}

static void bench_stop(struct bench *bench)
{
    for (unsigned i = 0; i < 3; i++)
        redis_link_destroy(&bench->links[i]);
    for (unsigned i = 0; i < (bench->redis ? 3 : 1); i++)
        placement_destroy(&bench->stores[i]);
    redis_server_destroy(&bench->server);
    loop_destroy(&bench->loop);
}

static enum status start_claim(struct bench *bench, unsigned store, const struct placement_key *key, const char *owner,
                               uint32_t budget_ms, struct answer *answer)
{
    struct placement_record proposal = record_of(owner, 0);
    memset(answer, 0, sizeof *answer);
    answer->sent_us = clock_now_us();
    struct placement *self = bench->stores[store];
    return self->ops->claim(self, key, &proposal, budget_ms, on_answer, answer);
}

static struct placement_answer claim(struct bench *bench, unsigned store, const struct placement_key *key,
                                     const char *owner)
{
    struct answer answer;
    assert_int_equal(start_claim(bench, store, key, owner, 2000, &answer), STATUS_OK);
    assert_int_equal(answer.firsts, 0); /* never from inside the call */
    SPIN_UNTIL(bench->loop, 3000, answer.firsts == 1);
    return answer.first;
}

static struct placement_answer replace(struct bench *bench, unsigned store, const struct placement_key *key,
                                       const struct placement_record *expected, const struct placement_record *desired)
{
    struct answer answer = {0};
    struct placement *self = bench->stores[store];
    assert_int_equal(self->ops->replace(self, key, expected, desired, 2000, on_answer, &answer), STATUS_OK);
    SPIN_UNTIL(bench->loop, 3000, answer.firsts == 1);
    return answer.first;
}

static struct placement_answer forget(struct bench *bench, const struct placement_key *key,
                                      const struct placement_record *expected)
{
    struct answer answer = {0};
    struct placement *self = bench->stores[0];
    assert_int_equal(self->ops->forget(self, key, expected, 2000, on_answer, &answer), STATUS_OK);
    SPIN_UNTIL(bench->loop, 3000, answer.firsts == 1);
    return answer.first;
}

static void rules(void **state)
{
    struct bench bench;
    bench_start(&bench, *state != NULL);
    struct placement_key key = key_of("acme", "chat-1"), other = key_of("acme", "chat-2");

    struct placement_answer won = claim(&bench, 0, &key, "worker-a");
    assert_int_equal(won.st, STATUS_OK);
    assert_true(won.ours && won.found);
    assert_string_equal(won.record.owner, "worker-a");
    assert_false(won.record.has_cache);
    assert_true(won.record.epoch > 1000000);
    struct placement_answer lost = claim(&bench, 1, &key, "worker-b");
    assert_false(lost.ours);
    assert_string_equal(lost.record.owner, "worker-a");
    assert_true(lost.record.epoch == won.record.epoch);
    assert_true(claim(&bench, 1, &other, "worker-b").ours);

    /* the same owner notes its cache: the epoch stays */
    struct placement_record desired = lost.record;
    desired.has_cache = true;
    memset(desired.cache_id, 0xab, sizeof desired.cache_id);
    struct placement_answer noted = replace(&bench, 0, &key, &won.record, &desired);
    assert_true(noted.ours);
    assert_true(noted.record.epoch == won.record.epoch);
    struct placement_answer seen = claim(&bench, 1, &key, "worker-c");
    assert_true(seen.record.has_cache);
    assert_memory_equal(seen.record.cache_id, desired.cache_id, sizeof desired.cache_id);

    /* another owner: compare-and-set, and epochs only grow */
    struct placement_record stale = record_of("worker-a", won.record.epoch - 1), next = record_of("worker-b", 0);
    struct placement_answer refused = replace(&bench, 0, &key, &stale, &next);
    assert_false(refused.ours);
    assert_string_equal(refused.record.owner, "worker-a");
    struct placement_record wrong_owner = record_of("worker-x", won.record.epoch);
    assert_false(replace(&bench, 0, &key, &wrong_owner, &next).ours);
    struct placement_answer moved = replace(&bench, 0, &key, &seen.record, &next);
    assert_true(moved.ours);
    assert_string_equal(moved.record.owner, "worker-b");
    assert_false(moved.record.has_cache);
    assert_true(moved.record.epoch > won.record.epoch);
    assert_false(replace(&bench, 1, &key, &seen.record, &next).ours); /* the second one is too late */

    /* an epoch from the future is kept ahead of, one over the limit is ignored */
    struct placement_record future = record_of("worker-c", moved.record.epoch + 5000000000);
    struct placement_answer jumped = replace(&bench, 0, &key, &moved.record, &future);
    assert_true(jumped.ours && jumped.record.epoch >= future.epoch);
    struct placement_record back = record_of("worker-a", 0);
    struct placement_answer after = replace(&bench, 1, &key, &jumped.record, &back);
    assert_true(after.ours && after.record.epoch > jumped.record.epoch);
    struct placement_record absurd = record_of("worker-b", UINT64_MAX);
    struct placement_answer sane = replace(&bench, 1, &key, &after.record, &absurd);
    assert_true(sane.ours && sane.record.epoch > after.record.epoch && sane.record.epoch < PLACEMENT_EPOCH_MAX);

    /* forget only what was meant */
    assert_false(forget(&bench, &key, &after.record).ours);
    struct placement_answer forgotten = forget(&bench, &key, &sane.record);
    assert_true(forgotten.ours && !forgotten.found);
    assert_false(forget(&bench, &key, &sane.record).ours);
    struct placement_answer anew = claim(&bench, 0, &key, "worker-d");
    assert_true(anew.ours);
    bench_stop(&bench);
}

/* Many conversations, both routers at the same instant with different proposals: one winner each, and both know it. */
static void claim_race(void **state)
{
    enum { RACES = 300 };
    struct bench bench;
    bench_start(&bench, *state != NULL);
    static struct answer answers[2][RACES];
    for (unsigned i = 0; i < RACES; i++) {
        char conversation[32];
        snprintf(conversation, sizeof conversation, "race-%u", i);
        struct placement_key key = key_of("acme", conversation);
        unsigned first = i % 2;
        assert_int_equal(start_claim(&bench, first, &key, first ? "worker-b" : "worker-a", 5000, &answers[first][i]),
                         STATUS_OK);
        assert_int_equal(start_claim(&bench, !first, &key, first ? "worker-a" : "worker-b", 5000, &answers[!first][i]),
                         STATUS_OK);
    }
    for (unsigned i = 0; i < RACES; i++) {
        SPIN_UNTIL(bench.loop, 5000, answers[0][i].firsts == 1 && answers[1][i].firsts == 1);
        const struct placement_answer *a = &answers[0][i].first, *b = &answers[1][i].first;
        assert_int_equal(a->st, STATUS_OK);
        assert_int_equal(a->ours + b->ours, 1);
        assert_string_equal(a->record.owner, b->record.owner);
        assert_true(a->record.epoch == b->record.epoch);
        assert_string_equal(a->record.owner, a->ours ? "worker-a" : "worker-b");
    }
    bench_stop(&bench);
}

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

static void keys(void **state)
{
    (void)state;
    struct placement_salt salt, other_salt;
    struct placement_key a, b;
    placement_salt_make("salt", &salt);
    placement_salt_make("pepper", &other_salt);
    placement_key_make(&salt, wire_span_str("ab"), wire_span_str("c"), &a);
    placement_key_make(&salt, wire_span_str("a"), wire_span_str("bc"), &b);
    assert_string_not_equal(a.hex, b.hex);
    placement_key_make(&other_salt, wire_span_str("ab"), wire_span_str("c"), &b);
    assert_string_not_equal(a.hex, b.hex);
    placement_key_make(&salt, wire_span_str("ab"), wire_span_str("c"), &b);
    assert_string_equal(a.hex, b.hex);
    assert_int_equal(strlen(a.hex), 32);
    /* BLAKE2b-256 keyed with BLAKE2b-256("salt") over 02000000 "ab" "c"; from Python: hashlib.blake2b(b"\2\0\0\0abc",
     * digest_size=32, key=hashlib.blake2b(b"salt", digest_size=32).digest()).hexdigest()[:32] */
    assert_string_equal(a.hex, "f24ba9a2b2e7f095322a9fe61b08eaab");
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

static void cache_is_bounded(void **state)
{
    (void)state;
    struct placement_cache *cache;
    assert_int_equal(placement_cache_create(100, &cache), STATUS_OK);
    struct placement_key keep = key_of("acme", "keep");
    struct placement_record record = record_of("worker-a", 7);
    placement_cache_put(cache, &keep, &record);
    for (unsigned i = 0; i < 10000; i++) {
        char conversation[32];
        snprintf(conversation, sizeof conversation, "c-%u", i);
        struct placement_key key = key_of("acme", conversation);
        record.epoch = i;
        placement_cache_put(cache, &key, &record);
        assert_true(placement_cache_find(cache, &key)->epoch == i);
        if (i % 50 == 0)
            assert_non_null(placement_cache_find(cache, &keep)); /* used often enough to stay */
        assert_true(placement_cache_count(cache) <= 100);
    }
    struct placement_key old = key_of("acme", "c-9000"), recent = key_of("acme", "c-9999");
    assert_null(placement_cache_find(cache, &old));
    placement_cache_remove(cache, &recent);
    placement_cache_remove(cache, &recent);
    assert_null(placement_cache_find(cache, &recent));
    assert_int_equal(placement_cache_count(cache), 99);
    placement_cache_destroy(&cache);
}

/* The memory store forgets its oldest, and answers what is open when it goes. */
static void memory_bounds(void **state)
{
    (void)state;
    struct loop *loop;
    struct placement *store;
    assert_int_equal(loop_create(&loop), STATUS_OK);
    assert_int_equal(placement_memory_create(loop, 2, &store), STATUS_OK);
    struct bench bench = {.loop = loop, .stores = {store, store, store}};
    struct placement_key keys_[3] = {key_of("a", "1"), key_of("a", "2"), key_of("a", "3")};
    for (unsigned i = 0; i < 3; i++)
        assert_true(claim(&bench, 0, &keys_[i], "worker-a").ours);
    assert_false(claim(&bench, 0, &keys_[2], "worker-b").ours);
    assert_true(claim(&bench, 0, &keys_[0], "worker-b").ours);
    struct answer open;
    assert_int_equal(start_claim(&bench, 0, &keys_[0], "worker-a", 2, &open), STATUS_OK);
    placement_destroy(&store);
    assert_int_equal(open.firsts, 1);
    assert_int_equal(open.first.st, STATUS_CLOSED);
    loop_destroy(&loop);
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

/* Anything that a server could answer is a record by the rules, no record, or refused. */
static void replies(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum status st;
        bool ours, found;
    } cases[] = {
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n:5\r\n", STATUS_OK, true, true},
        {"*7\r\n:0\r\n$1\r\na\r\n$32\r\n0123456789abcdefABCDEF0123456789\r\n$2\r\n17\r\n$4\r\n1000\r\n$4\r\nhost\r\n:-5"
         "\r\n",
         STATUS_OK, false, true},
        {"*7\r\n:1\r\n$0\r\n\r\n$0\r\n\r\n$1\r\n0\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", STATUS_OK, true, false},
        {"*7\r\n:2\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n:5\r\n", STATUS_OK, false, true},
        {"*7\r\n$1\r\n1\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n:5\r\n", STATUS_CORRUPT, false, false},
        {"*7\r\n:1\r\n$1\r\n/\r\n$0\r\n\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n:5\r\n", STATUS_CORRUPT, false, false},
        {"*7\r\n:1\r\n$1\r\na\r\n$1\r\n0\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n:5\r\n", STATUS_CORRUPT, false, false},
        {"*7\r\n:1\r\n$1\r\na\r\n$32\r\n0123456789abcdefABCDEF012345678x\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n:5\r\n",
         STATUS_CORRUPT, false, false},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$0\r\n\r\n$1\r\n0\r\n$0\r\n\r\n:5\r\n", STATUS_CORRUPT, false, false},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$16\r\n4503599627370496\r\n$1\r\n0\r\n$0\r\n\r\n:5\r\n", STATUS_CORRUPT,
         false, false},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n17\r\n$10\r\n9999999999\r\n$0\r\n\r\n:5\r\n", STATUS_CORRUPT, false,
         false},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n17\r\n$1\r\n0\r\n*0\r\n$1\r\n5\r\n", STATUS_CORRUPT, false, false},
        {"*7\r\n:1\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n:5\r\n", STATUS_CORRUPT, false, false},
        {"*3\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n", STATUS_CORRUPT, false, false},
        {"*0\r\n", STATUS_CORRUPT, false, false},
        {"$-1\r\n", STATUS_CORRUPT, false, false},
        {"-WRONGTYPE\r\n", STATUS_CORRUPT, false, false},
        {":7\r\n", STATUS_CORRUPT, false, false},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        redisReader *reader = redisReaderCreate();
        void *reply = NULL;
        struct placement_answer answer = {.late = true};
        assert_int_equal(redisReaderFeed(reader, cases[i].text, strlen(cases[i].text)), REDIS_OK);
        if (redisReaderGetReply(reader, &reply) != REDIS_OK || !reply)
            fail_msg("case %u is no reply: %s", i, reader->errstr);
        if (placement_redis_parse(reply, &answer) != cases[i].st)
            fail_msg("case %u", i);
        assert_true(answer.late);
        assert_int_equal(answer.ours, cases[i].ours);
        assert_int_equal(answer.found, cases[i].found);
        if (i == 1) {
            assert_int_equal(answer.record.cache_id[15], 0x89);
            assert_int_equal(answer.record.tokens, 1000);
            assert_int_equal(answer.age_ms, 0);
        }
        freeReplyObject(reply);
        redisReaderFree(reader);
    }
}

int main(void)
{
    static int redis = 1;
    const struct CMUnitTest memory_tests[] = {
        cmocka_unit_test(keys),
        cmocka_unit_test(replies),
        cmocka_unit_test(cache_is_bounded),
        cmocka_unit_test(memory_bounds),
        {"rules_memory", rules, NULL, NULL, NULL},
        {"claim_race_memory", claim_race, NULL, NULL, NULL},
    };
    const struct CMUnitTest redis_tests[] = {
        {"rules_redis", rules, NULL, NULL, &redis},
        {"claim_race_redis", claim_race, NULL, NULL, &redis},
        cmocka_unit_test(poisoned),
        cmocka_unit_test(what_is_written),
        cmocka_unit_test(frozen_and_late),
        cmocka_unit_test(killed_and_restarted),
        cmocka_unit_test(refusing_server),
        cmocka_unit_test(owners_fields),
        cmocka_unit_test(three_routers_after_a_wipe),
        cmocka_unit_test(slow_server),
    };
    log_setup(&(struct log_config){.program = "test", .level = LOG_LEVEL_ERROR, .fd = 2});
    if (hash_setup() != STATUS_OK)
        return 1;
    int failed = cmocka_run_group_tests(memory_tests, NULL, NULL);
    if (failed == 0 && !redis_server_available()) {
        fprintf(stderr, "redis-server is not installed: the tests with it are skipped\n");
        return 77;
    }
    return failed + cmocka_run_group_tests(redis_tests, NULL, NULL);
}
