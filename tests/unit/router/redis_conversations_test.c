/* redis_conversations_test.c - what workers write about their conversations, against a real Redis that is wiped, full,
 * frozen and restarted; and that everybody agrees on one owner afterwards. */
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
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "redis_server.h"
#include "router/placement.h"
#include "spin.h"
#include "worker/server/conversations.h"

enum { WORKERS = 2 };
static const char *const names[WORKERS] = {"worker-a", "worker-b"};
static const uint8_t caches[WORKERS][CONVERSATIONS_KEY_BYTES] = {{0xca, 1}, {0xca, 2}};

struct bench {
    struct loop *loop;
    struct redis_server server;
    struct redis_link *links[WORKERS], *router_link;
    struct conversations *workers[WORKERS];
    struct placement *router;
    uint32_t running; /* bits of conversations */
};

static struct placement_key key_of(unsigned i)
{
    struct placement_salt salt;
    struct placement_key key;
    char conversation[32];
    snprintf(conversation, sizeof conversation, "chat-%u", i);
    placement_salt_make("salt", &salt);
    placement_key_make(&salt, wire_span_str("acme"), wire_span_str(conversation), &key);
    return key;
}

static bool is_running(void *user, const uint8_t *key)
{
    const struct bench *bench = user;
    for (unsigned i = 0; i < 32; i++) {
        struct placement_key one = key_of(i);
        if ((bench->running >> i & 1) != 0 && memcmp(one.id, key, sizeof one.id) == 0)
            return true;
    }
    return false;
}

static void bench_start(struct bench *bench)
{
    assert_int_equal(loop_create(&bench->loop), STATUS_OK);
    redis_server_start(&bench->server);
    struct redis_link_config config = {.address = bench->server.socket};
    for (unsigned i = 0; i < WORKERS; i++) {
        assert_int_equal(redis_link_create(bench->loop, &config, &bench->links[i]), STATUS_OK);
        struct conversations_config worker = {.loop = bench->loop,
                                              .link = bench->links[i],
                                              .owner = names[i],
                                              .cache_id = caches[i],
                                              .running = is_running,
                                              .user = bench};
        assert_int_equal(conversations_create(&worker, &bench->workers[i]), STATUS_OK);
    }
    assert_int_equal(redis_link_create(bench->loop, &config, &bench->router_link), STATUS_OK);
    assert_int_equal(placement_redis_create(bench->router_link, &bench->router), STATUS_OK);
    SPIN_UNTIL(bench->loop, 3000,
               redis_link_up(bench->links[0]) && redis_link_up(bench->links[1]) && redis_link_up(bench->router_link));
    (void)spin(bench->loop, 100, NULL, NULL); /* both have read the marker */
}

static void bench_stop(struct bench *bench)
{
    redis_link_destroy(&bench->router_link);
    placement_destroy(&bench->router);
    for (unsigned i = 0; i < WORKERS; i++) {
        redis_link_destroy(&bench->links[i]);
        conversations_destroy(&bench->workers[i]);
    }
    redis_server_destroy(&bench->server);
    loop_destroy(&bench->loop);
}

struct answer {
    unsigned count;
    struct placement_answer first;
};

static void on_answer(void *user, const struct placement_answer *got)
{
    struct answer *answer = user;
    if (answer->count++ == 0)
        answer->first = *got;
}

static struct placement_answer claim(struct bench *bench, unsigned i, const char *owner)
{
    struct answer answer = {0};
    struct placement_key key = key_of(i);
    struct placement_record proposal = {.epoch = 0};
    snprintf(proposal.owner, sizeof proposal.owner, "%s", owner);
    assert_int_equal(bench->router->ops->claim(bench->router, &key, &proposal, 3000, on_answer, &answer), STATUS_OK);
    SPIN_UNTIL(bench->loop, 4000, answer.count == 1);
    assert_int_equal(answer.first.st, STATUS_OK);
    return answer.first;
}

static void note(struct bench *bench, unsigned worker, unsigned i, uint64_t epoch, uint32_t tokens)
{
    struct placement_key key = key_of(i);
    conversations_note(bench->workers[worker], key.id, epoch, tokens);
}

static void evicted(struct bench *bench, unsigned i)
{
    struct placement_key key = key_of(i);
    conversations_evicted(bench->workers[0], key.id);
}

static void moved(struct bench *bench, unsigned i, bool to_host)
{
    struct placement_key key = key_of(i);
    conversations_moved(bench->workers[0], key.id, to_host);
}

static struct conversations_stats stats_of(struct bench *bench, unsigned worker)
{
    struct conversations_stats stats;
    conversations_stats(bench->workers[worker], &stats);
    return stats;
}

static const char *field(struct bench *bench, unsigned i, const char *name)
{
    struct placement_key key = key_of(i);
    return redis_server_ask(&bench->server, "HGET roost:{%s}:place %s", key.hex, name);
}

static void owners_write(void **state)
{
    (void)state;
    struct bench bench = {0};
    bench_start(&bench);
    struct placement_answer won = claim(&bench, 1, "worker-a");
    assert_true(won.ours && won.record.tokens == 0 && won.record.tier == PLACEMENT_TIER_UNKNOWN);
    struct placement_key key = key_of(1);
    redis_server_ask(&bench.server, "EXPIRE roost:{%s}:place 100", key.hex);
    note(&bench, 0, 1, won.record.epoch, 1234);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).written == 1);
    assert_true(atoi(redis_server_ask(&bench.server, "TTL roost:{%s}:place", key.hex)) > 86000);
    struct placement_answer seen = claim(&bench, 1, "worker-b");
    assert_true(!seen.ours && seen.record.tokens == 1234 && seen.record.tier == PLACEMENT_TIER_DEVICE);
    assert_true(seen.record.epoch == won.record.epoch);
    assert_true(seen.age_ms < 60000);

    /* not the owner: nothing is written, and it is forgotten */
    note(&bench, 1, 1, won.record.epoch, 9999);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 1).lost == 1);
    assert_int_equal(conversations_count(bench.workers[1]), 0);
    assert_string_equal(field(&bench, 1, "tokens"), "1234");

    /* a free record is written, with an epoch that no router has seen before */
    note(&bench, 0, 2, won.record.epoch, 50);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).written == 2);
    struct placement_answer second = claim(&bench, 2, "worker-b");
    assert_true(!second.ours && second.record.epoch > won.record.epoch && second.record.tokens == 50);
    assert_string_equal(second.record.owner, "worker-a");

    /* draining: kept up to date, not made */
    conversations_set_draining(bench.workers[0], true);
    note(&bench, 0, 1, 0, 1300);
    note(&bench, 0, 3, 0, 70);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).written == 3 && stats_of(&bench, 0).lost == 1);
    assert_string_equal(field(&bench, 1, "tokens"), "1300");
    assert_string_equal(field(&bench, 3, "owner"), "");
    conversations_note(NULL, key.id, 1, 1);
    conversations_evicted(NULL, key.id);
    conversations_moved(NULL, key.id, true);
    assert_int_equal(conversations_count(NULL), 0);
    bench_stop(&bench);
}

/* A record promises what the cache holds: it says when that is on the host, and goes when it is gone. */
static void fates(void **state)
{
    (void)state;
    struct bench bench = {0};
    bench_start(&bench);
    for (unsigned i = 1; i <= 7; i++)
        note(&bench, 0, i, claim(&bench, i, "worker-a").record.epoch, 100 + i);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).written == 7);
    moved(&bench, 1, true);
    moved(&bench, 2, true);
    SPIN_UNTIL(bench.loop, 1000, strcmp(field(&bench, 2, "tier"), "host") == 0);
    assert_string_equal(field(&bench, 1, "tier"), "host");
    assert_string_equal(field(&bench, 1, "tokens"), "101");
    note(&bench, 0, 1, 0, 150); /* a turn brings it back */
    moved(&bench, 2, false);    /* or one that came to nothing */
    SPIN_UNTIL(bench.loop, 1000, strcmp(field(&bench, 2, "tier"), "device") == 0);
    assert_string_equal(field(&bench, 1, "tier"), "device");

    evicted(&bench, 3);
    note(&bench, 0, 3, 0, 170); /* in the same moment it had another */
    struct placement_key key = key_of(4);
    redis_server_ask(&bench.server, "HSET roost:{%s}:place cache 00000000000000000000000000000001", key.hex);
    key = key_of(5);
    redis_server_ask(&bench.server, "HSET roost:{%s}:place epoch 4503599627370000", key.hex); /* it went and came back */
    key = key_of(6);
    redis_server_ask(&bench.server, "HSET roost:{%s}:place owner worker-x", key.hex);
    key = key_of(7);
    redis_server_ask(&bench.server, "HSET roost:{%s}:place cache ca010000000000000000000000000000", key.hex);
    for (unsigned i = 4; i <= 8; i++) /* nobody has heard of 8 */
        evicted(&bench, i);
    evicted(&bench, 1);
    SPIN_UNTIL(bench.loop, 2000, stats_of(&bench, 0).evicted == 5);
    assert_int_equal(conversations_count(bench.workers[0]), 2); /* 2, 3 */
    static const char *const owners[] = {NULL, "", "worker-a", "worker-a", "worker-a", "worker-a", "worker-x", ""};
    for (unsigned i = 1; i <= 7; i++)
        assert_string_equal(field(&bench, i, "owner"), owners[i]);
    assert_string_equal(field(&bench, 3, "tokens"), "170");
    assert_int_equal(stats_of(&bench, 0).due, 0);
    bench_stop(&bench);
}

/* Its next turn runs while it is evicted: nobody is told before that has ended, and only if it has not ended well. */
static void fates_while_running(void **state)
{
    (void)state;
    struct bench bench = {0};
    bench_start(&bench);
    for (unsigned i = 1; i <= 3; i++)
        note(&bench, 0, i, claim(&bench, i, "worker-a").record.epoch, 100);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).written == 3);
    bench.running = 1u << 1 | 1u << 2;
    evicted(&bench, 1);
    evicted(&bench, 2);
    moved(&bench, 1, true);
    evicted(&bench, 3);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).evicted == 1); /* the one that waits is in nobody's way */
    (void)spin(bench.loop, 300, NULL, NULL);
    assert_int_equal(stats_of(&bench, 0).due, 2);
    assert_string_equal(field(&bench, 1, "owner"), "worker-a");
    assert_string_equal(field(&bench, 2, "owner"), "worker-a");
    assert_string_equal(field(&bench, 3, "owner"), "");
    bench.running = 0;
    note(&bench, 0, 1, 0, 200);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).evicted == 2 && stats_of(&bench, 0).due == 0);
    assert_string_equal(field(&bench, 1, "tokens"), "200");
    assert_string_equal(field(&bench, 1, "tier"), "device");
    assert_string_equal(field(&bench, 2, "owner"), "");
    bench_stop(&bench);
}

/* Redis was away when it happened: told when it is back; and a wipe brings back nothing that is gone. */
static void fates_while_away(void **state)
{
    (void)state;
    struct bench bench = {0};
    static const char *const with_file[] = {"--appendonly", "yes", "--appendfsync", "always"};
    memcpy(bench.server.options, with_file, sizeof with_file);
    bench_start(&bench);
    for (unsigned i = 1; i <= 3; i++)
        note(&bench, 0, i, claim(&bench, i, "worker-a").record.epoch, 100);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).written == 3);
    redis_server_kill(&bench.server);
    SPIN_UNTIL(bench.loop, 1000, !redis_link_up(bench.links[0]));
    evicted(&bench, 1);
    moved(&bench, 2, true);
    (void)spin(bench.loop, 300, NULL, NULL);
    assert_int_equal(conversations_count(bench.workers[0]), 3);
    redis_server_start(&bench.server);
    SPIN_UNTIL(bench.loop, 5000, stats_of(&bench, 0).due == 0 && stats_of(&bench, 0).evicted == 1);
    assert_string_equal(field(&bench, 1, "owner"), "");
    assert_string_equal(field(&bench, 2, "tier"), "host");
    redis_server_ask(&bench.server, "FLUSHALL");
    redis_server_kill(&bench.server); /* so that the wipe is known before the eviction can be told */
    SPIN_UNTIL(bench.loop, 1000, !redis_link_up(bench.links[0]));
    evicted(&bench, 3);
    redis_server_start(&bench.server);
    SPIN_UNTIL(bench.loop, 5000,
               stats_of(&bench, 0).wipes == 1 && stats_of(&bench, 0).due == 0 && stats_of(&bench, 0).evicted == 2);
    SPIN_UNTIL(bench.loop, 1000, strcmp(field(&bench, 2, "tier"), "host") == 0);
    assert_string_equal(field(&bench, 3, "owner"), "");
    bench_stop(&bench);
}

/* Every record again, the hottest first, at no more than the stated rate. */
static void wiped(void **state)
{
    (void)state;
    enum { COUNT = 1500 };
    struct bench bench = {0};
    bench_start(&bench);
    for (unsigned i = 0; i < COUNT; i++)
        note(&bench, i % 2, i, 0, 100 + i);
    SPIN_UNTIL(bench.loop, 5000, stats_of(&bench, 0).written + stats_of(&bench, 1).written == COUNT);
    struct placement_answer before = claim(&bench, 7, "worker-x");
    note(&bench, 0, 0, 0, 5000); /* the hottest of worker-a */
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).written == COUNT / 2 + 1);
    redis_server_ask(&bench.server, "FLUSHALL");
    SPIN_UNTIL(bench.loop, 3000, stats_of(&bench, 0).wipes == 1 && stats_of(&bench, 0).announced > 0);
    assert_string_equal(field(&bench, 0, "tokens"), "5000");
    assert_string_equal(field(&bench, 2, "tokens"), ""); /* the coldest, still */
    uint64_t begun_ms = clock_now_ms();
    SPIN_UNTIL(bench.loop, 10000, stats_of(&bench, 0).announced + stats_of(&bench, 1).announced == COUNT);
    assert_true(clock_now_ms() - begun_ms >= 400); /* 750 each */
    for (unsigned i = 0; i < COUNT; i += 99) {
        struct placement_answer after = claim(&bench, i, "worker-x");
        assert_false(after.ours);
        assert_string_equal(after.record.owner, names[i % 2]);
        assert_int_equal(after.record.tokens, i == 0 ? 5000 : 100 + i);
    }
    assert_true(claim(&bench, 7, "worker-x").record.epoch >= before.record.epoch); /* over the wipe */
    (void)spin(bench.loop, 1500, NULL, NULL);
    assert_int_equal(stats_of(&bench, 0).wipes, 1); /* once */
    assert_int_equal(stats_of(&bench, 0).due, 0);
    assert_int_equal(stats_of(&bench, 0).lost + stats_of(&bench, 1).lost, 0);
    bench_stop(&bench);
}

/* After a wipe routers and workers write as they come: more tokens win, a tie stays, the loser forgets. */
static void conflicts(void **state)
{
    (void)state;
    struct bench bench = {0};
    bench_start(&bench);
    /* both hold conversation 1: it was spilled while Redis was away, so neither was told */
    redis_server_kill(&bench.server);
    SPIN_UNTIL(bench.loop, 1000, !redis_link_up(bench.links[0]) && !redis_link_up(bench.links[1]));
    note(&bench, 0, 1, 0, 900);
    note(&bench, 1, 1, 0, 1000);
    for (unsigned i = 2; i <= 4; i++)
        note(&bench, 0, i, 0, 500);
    assert_int_equal(stats_of(&bench, 0).due, 4);
    assert_int_equal(stats_of(&bench, 0).failed, 4);
    for (unsigned i = 0; i < WORKERS; i++)
        assert_int_equal(redis_link_set_address(bench.links[i], "127.0.0.1:1"), STATUS_OK); /* nobody is there */
    redis_server_start(&bench.server);
    /* and before they notice: 2 was given away with nothing computed, 3 with as much, 4 with more */
    for (unsigned i = 2; i <= 4; i++) {
        struct placement_key key = key_of(i);
        redis_server_ask(&bench.server, "HSET roost:{%s}:place owner worker-x cache %s epoch 17 tokens %u tier device",
                         key.hex, "",
                         i == 2   ? 0
                         : i == 3 ? 500
                                  : 501);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        assert_int_equal(redis_link_set_address(bench.links[i], bench.server.socket), STATUS_OK);
    SPIN_UNTIL(bench.loop, 5000,
               stats_of(&bench, 0).announced + stats_of(&bench, 0).lost == 4 && stats_of(&bench, 1).announced == 1);
    assert_int_equal(stats_of(&bench, 0).due + stats_of(&bench, 1).due, 0);
    SPIN_UNTIL(bench.loop, 3000, redis_link_up(bench.router_link));
    note(&bench, 0, 1, 0, 900); /* if it was first it does not know yet that it lost */
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).lost >= 3 && conversations_count(bench.workers[0]) == 1);
    assert_int_equal(conversations_count(bench.workers[1]), 1);
    assert_string_equal(claim(&bench, 1, "worker-x").record.owner, "worker-b");
    assert_int_equal(claim(&bench, 1, "worker-x").record.tokens, 1000);
    struct placement_answer taken = claim(&bench, 2, "worker-z");
    assert_string_equal(taken.record.owner, "worker-a");
    assert_int_equal(taken.record.tokens, 500);
    assert_true(taken.record.epoch > 17);
    assert_string_equal(claim(&bench, 3, "worker-z").record.owner, "worker-x");
    assert_string_equal(claim(&bench, 4, "worker-z").record.owner, "worker-x");
    bench_stop(&bench);
}

/* Not wiped, only away: what could not be written is written later, and nothing is taken from anybody. */
static void away(void **state)
{
    (void)state;
    struct bench bench = {0};
    bench_start(&bench);
    claim(&bench, 1, "worker-a");
    claim(&bench, 2, "worker-b");
    redis_server_freeze(&bench.server);
    note(&bench, 0, 1, 0, 800); /* on its way */
    note(&bench, 0, 2, 0, 700);
    struct conversations_stats before = stats_of(&bench, 0);
    SPIN_UNTIL(bench.loop, 10000,
               (note(&bench, 0, 1, 0, 801), spin(bench.loop, 50, NULL, NULL), !redis_link_up(bench.links[0])));
    assert_true(stats_of(&bench, 0).failed > before.failed);
    redis_server_thaw(&bench.server);
    SPIN_UNTIL(bench.loop, 5000, redis_link_up(bench.links[0]));
    SPIN_UNTIL(bench.loop, 5000, stats_of(&bench, 0).due == 0 && stats_of(&bench, 0).lost > 0);
    assert_int_equal(stats_of(&bench, 0).wipes, 0);
    SPIN_UNTIL(bench.loop, 2000, strcmp(field(&bench, 1, "tokens"), "801") == 0);
    assert_string_equal(field(&bench, 2, "owner"), "worker-b");
    assert_string_equal(field(&bench, 2, "tokens"), "");
    bench_stop(&bench);
}

/* Full: refused; with room again it is all written. A marker of another type is no marker. */
static void full(void **state)
{
    (void)state;
    struct bench bench = {0};
    bench_start(&bench);
    redis_server_ask(&bench.server, "CONFIG SET maxmemory 1");
    for (unsigned i = 0; i < 100; i++)
        note(&bench, 0, i, 0, 100);
    SPIN_UNTIL(bench.loop, 2000, stats_of(&bench, 0).due == 100);
    struct conversations_stats before = stats_of(&bench, 0);
    (void)spin(bench.loop, 2500, NULL, NULL);
    assert_true(stats_of(&bench, 0).failed - before.failed <= 400); /* it asks again, but not all the time */
    redis_server_ask(&bench.server, "CONFIG SET maxmemory 0");
    SPIN_UNTIL(bench.loop, 5000, stats_of(&bench, 0).due == 0);
    SPIN_UNTIL(bench.loop, 1000, stats_of(&bench, 0).announced == 100);
    redis_server_ask(&bench.server, "DEL roost:generation");
    redis_server_ask(&bench.server, "LPUSH roost:generation x");
    SPIN_UNTIL(bench.loop, 3000, stats_of(&bench, 0).wipes == 1 && stats_of(&bench, 1).wipes == 1);
    assert_string_equal(redis_server_ask(&bench.server, "TYPE roost:generation"), "string");
    SPIN_UNTIL(bench.loop, 3000, stats_of(&bench, 0).announced == 200);
    (void)spin(bench.loop, 1500, NULL, NULL);
    assert_int_equal(stats_of(&bench, 0).wipes, 1);
    bench_stop(&bench);
}

/* With AOF everysec nothing is lost by a kill but the last second, and that is written again. */
static void restarted(void **state)
{
    (void)state;
    enum { COUNT = 200 };
    static const char *const with_file[] = {"--appendonly", "yes", "--appendfsync", "everysec"};
    for (unsigned file = 0; file < 2; file++) {
        struct bench bench = {0};
        if (file)
            memcpy(bench.server.options, with_file, sizeof with_file);
        bench_start(&bench);
        for (unsigned i = 0; i < COUNT; i++) {
            claim(&bench, i, "worker-a");
            note(&bench, 0, i, 0, 100 + i);
        }
        SPIN_UNTIL(bench.loop, 5000, stats_of(&bench, 0).written == COUNT);
        redis_server_kill(&bench.server);
        SPIN_UNTIL(bench.loop, 1000, !redis_link_up(bench.links[0]));
        note(&bench, 0, 5, 0, 7777);
        redis_server_start(&bench.server);
        SPIN_UNTIL(bench.loop, 5000, redis_link_up(bench.links[0]) && redis_link_up(bench.router_link));
        SPIN_UNTIL(bench.loop, 5000,
                   stats_of(&bench, 0).due == 0 && stats_of(&bench, 0).announced >= (file ? COUNT / 4 : COUNT));
        assert_int_equal(stats_of(&bench, 0).wipes, file ? 0 : 1);
        for (unsigned i = 0; i < COUNT; i++) {
            struct placement_answer after = claim(&bench, i, "worker-b");
            assert_false(after.ours);
            assert_string_equal(after.record.owner, "worker-a");
            assert_int_equal(after.record.tokens, i == 5 ? 7777 : 100 + i);
        }
        bench_stop(&bench);
    }
}

static void bounded(void **state)
{
    (void)state;
    struct bench bench = {0};
    bench_start(&bench);
    redis_server_kill(&bench.server);
    SPIN_UNTIL(bench.loop, 1000, !redis_link_up(bench.links[0]));
    uint8_t key[16] = {0};
    for (uint32_t i = 0; i < CONVERSATIONS_MAX + 1000; i++) {
        memcpy(key, &i, sizeof i);
        conversations_note(bench.workers[0], key, 0, UINT32_MAX);
    }
    conversations_evicted(bench.workers[0], (const uint8_t[16]){0}); /* of one that made room */
    assert_int_equal(conversations_count(bench.workers[0]), CONVERSATIONS_MAX);
    struct conversations_stats stats = stats_of(&bench, 0);
    assert_int_equal(stats.held, CONVERSATIONS_MAX);
    assert_int_equal(stats.due, CONVERSATIONS_MAX);
    redis_server_start(&bench.server);
    SPIN_UNTIL(bench.loop, 8000, stats_of(&bench, 0).announced >= 1500);
    stats = stats_of(&bench, 0);
    assert_int_equal(stats.failed, CONVERSATIONS_MAX + 1000);
    assert_true(stats.due >= CONVERSATIONS_MAX - 8000);
    assert_int_equal(stats.lost, 0);
    bench_stop(&bench);
}

static void replies(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool good, ours;
        uint64_t epoch;
    } cases[] = {
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", true, true, 17},
        {"*7\r\n:0\r\n$0\r\n\r\n$0\r\n\r\n$1\r\n0\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", true, false, 0},
        {"*6\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n", false, false, 0},
        {"*7\r\n$1\r\n1\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n17\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", false, false, 0},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n:17\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", false, false, 0},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$0\r\n\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", false, false, 0},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n1e\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", false, false, 0},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$17\r\n00000000000000001\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", false, false, 0},
        {"*7\r\n:1\r\n$1\r\na\r\n$0\r\n\r\n$16\r\n9999999999999999\r\n$1\r\n0\r\n$0\r\n\r\n:0\r\n", false, false, 0},
        {"$-1\r\n", false, false, 0},
        {":1\r\n", false, false, 0},
        {"*0\r\n", false, false, 0},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        redisReader *reader = redisReaderCreate();
        void *reply = NULL;
        bool ours = false;
        uint64_t epoch = 0;
        assert_int_equal(redisReaderFeed(reader, cases[i].text, strlen(cases[i].text)), REDIS_OK);
        assert_int_equal(redisReaderGetReply(reader, &reply), REDIS_OK);
        if ((conversations_parse(reply, &ours, &epoch) == STATUS_OK) != cases[i].good)
            fail_msg("case %u", i);
        assert_int_equal(ours, cases[i].ours);
        assert_true(epoch == cases[i].epoch);
        freeReplyObject(reply);
        redisReaderFree(reader);
    }
}

int main(void)
{
    const struct CMUnitTest pure[] = {cmocka_unit_test(replies)};
    const struct CMUnitTest real[] = {
        cmocka_unit_test(owners_write), cmocka_unit_test(fates),     cmocka_unit_test(fates_while_away),
        cmocka_unit_test(fates_while_running),
        cmocka_unit_test(wiped),        cmocka_unit_test(conflicts), cmocka_unit_test(away),
        cmocka_unit_test(full),         cmocka_unit_test(restarted), cmocka_unit_test(bounded),
    };
    log_setup(&(struct log_config){.program = "test", .level = LOG_LEVEL_ERROR, .fd = 2});
    if (hash_setup() != STATUS_OK)
        return 1;
    int failed = cmocka_run_group_tests(pure, NULL, NULL);
    if (failed == 0 && !redis_server_available()) {
        fprintf(stderr, "redis-server is not installed: the tests with it are skipped\n");
        return 77;
    }
    return failed + cmocka_run_group_tests(real, NULL, NULL);
}
