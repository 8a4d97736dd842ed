/* placement_test.c - both stores keep the same rules; keys, what is kept in memory, and what a server could answer. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/loop.h"
#include "placement_fixture.h"
#include "router/placement_cache.h"
#include "spin.h"
#include "tests/unit/unit.h"

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
    struct placement_key old = key_of("acme", "c-9000");
    assert_null(placement_cache_find(cache, &old));
    assert_int_equal(placement_cache_count(cache), 100);
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
    };
    if (!unit_begin())
        return 1;
    int failed = cmocka_run_group_tests(memory_tests, NULL, NULL);
    return failed + redis_run(redis_tests, NULL, NULL);
}
