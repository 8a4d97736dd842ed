/* policy_test.c - the policy on tables: order, weights, each reason, never an unready worker. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "router/policy.h"

enum { WORKERS = 8, KEYS = 20000 };

static void fill(struct policy_worker *workers, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char name[16];
        int size = snprintf(name, sizeof name, "worker-%u", i);
        workers[i] =
            (struct policy_worker){.name_hash = hash_fast(name, (size_t)size, 0), .weight = 1000, .ready = true};
    }
}

static uint64_t key_of(unsigned i)
{
    return hash_mix(i, 0x1234);
}

static unsigned first_of(const struct policy_table *table, uint64_t key)
{
    unsigned order[WORKERS];
    policy_order(table, key, order);
    return order[0];
}

static void order_is_a_permutation(void **state)
{
    (void)state;
    struct policy_worker workers[WORKERS];
    fill(workers, WORKERS);
    struct policy_table table = {workers, WORKERS};
    for (unsigned i = 0; i < 1000; i++) {
        unsigned order[WORKERS], again[WORKERS], seen = 0;
        policy_order(&table, key_of(i), order);
        policy_order(&table, key_of(i), again);
        assert_memory_equal(order, again, sizeof order);
        for (unsigned j = 0; j < WORKERS; j++)
            seen |= 1u << order[j];
        assert_int_equal(seen, (1u << WORKERS) - 1);
    }
}

/* Only the conversations of the worker that leaves move, and they spread; the rest of each order is as it was. */
static void leaving_moves_only_its_own(void **state)
{
    (void)state;
    struct policy_worker workers[WORKERS], fewer[WORKERS];
    fill(workers, WORKERS);
    struct policy_table table = {workers, WORKERS}, left = {fewer, WORKERS - 1};
    unsigned gone = 3, moved[WORKERS] = {0};
    for (unsigned i = 0, j = 0; i < WORKERS; i++)
        if (i != gone)
            fewer[j++] = workers[i];
    for (unsigned i = 0; i < KEYS; i++) {
        unsigned before[WORKERS], after[WORKERS], kept = 0;
        policy_order(&table, key_of(i), before);
        policy_order(&left, key_of(i), after);
        for (unsigned j = 0; j < WORKERS; j++)
            if (before[j] != gone)
                assert_true(workers[before[j]].name_hash == fewer[after[kept++]].name_hash);
        if (before[0] == gone)
            moved[after[0]]++;
    }
    for (unsigned i = 0; i < WORKERS - 1; i++)
        assert_in_range(moved[i], KEYS / WORKERS / (WORKERS - 1) * 7 / 10, KEYS / WORKERS / (WORKERS - 1) * 13 / 10);
}

/* The order depends on names, not on places in the table. */
static void table_order_does_not_matter(void **state)
{
    (void)state;
    struct policy_worker workers[WORKERS], turned[WORKERS];
    fill(workers, WORKERS);
    for (unsigned i = 0; i < WORKERS; i++)
        turned[i] = workers[WORKERS - 1 - i];
    struct policy_table table = {workers, WORKERS}, other = {turned, WORKERS};
    for (unsigned i = 0; i < 1000; i++)
        assert_true(workers[first_of(&table, key_of(i))].name_hash == turned[first_of(&other, key_of(i))].name_hash);
}

static void shares_follow_weights(void **state)
{
    (void)state;
    struct policy_worker workers[4];
    fill(workers, 4);
    static const uint64_t weights[4] = {1000, 2000, 3000, 4000};
    unsigned count[4] = {0};
    for (unsigned i = 0; i < 4; i++)
        workers[i].weight = weights[i];
    struct policy_table table = {workers, 4};
    for (unsigned i = 0; i < KEYS; i++)
        count[first_of(&table, key_of(i))]++;
    for (unsigned i = 0; i < 4; i++)
        assert_in_range(count[i], KEYS * weights[i] / 10000 * 92 / 100, KEYS * weights[i] / 10000 * 108 / 100);
    workers[0].weight = 0; /* not told yet: not an error */
    workers[1].weight = UINT64_MAX;
    assert_in_range(first_of(&table, 1), 0, 3);
}

static struct policy_choice choose(struct policy_worker *workers, unsigned count, struct policy_query query)
{
    struct policy_table table = {workers, count};
    return policy_choose(&table, &query);
}

static void new_goes_to_the_least_loaded_of_the_first(void **state)
{
    (void)state;
    struct policy_worker workers[WORKERS];
    fill(workers, WORKERS);
    struct policy_table table = {workers, WORKERS};
    for (unsigned i = 0; i < 500; i++) {
        uint64_t key = key_of(i);
        unsigned order[WORKERS];
        policy_order(&table, key, order);
        for (unsigned j = 0; j < WORKERS; j++)
            workers[order[j]].load_tokens = j < 3 ? 300 - 100 * j : 0; /* the fourth is idle, and not asked */
        struct policy_query query = {.conversation = true, .key = key, .owner = POLICY_NO_WORKER, .new_choices = 3};
        struct policy_choice choice = choose(workers, WORKERS, query);
        assert_int_equal(choice.worker, order[2]);
        assert_int_equal(choice.reason, POLICY_NEW);
        assert_false(choice.take_over);
        query.new_choices = 1;
        assert_int_equal(choose(workers, WORKERS, query).worker, order[0]);
        query.new_choices = 0;
        assert_int_equal(choose(workers, WORKERS, query).worker, order[0]);
        query.new_choices = WORKERS;
        assert_int_equal(choose(workers, WORKERS, query).worker, order[3]); /* equal loads: the order decides */
        query.new_choices = 3;
        workers[order[2]].ready = false; /* the fourth moves up */
        assert_int_equal(choose(workers, WORKERS, query).worker, order[3]);
        workers[order[2]].ready = true;
        workers[order[0]].weight = 100000; /* load counts per capacity */
        policy_order(&table, key, order);
        workers[order[0]].load_tokens = 3000, workers[order[1]].load_tokens = 200, workers[order[2]].load_tokens = 200;
        if (workers[order[0]].weight == 100000)
            assert_int_equal(choose(workers, WORKERS, query).worker, order[0]);
        fill(workers, WORKERS);
    }
}

static void each_reason(void **state)
{
    (void)state;
    struct policy_worker workers[4];
    fill(workers, 4);
    struct policy_table table = {workers, 4};
    uint64_t key = key_of(7);
    unsigned order[4];
    policy_order(&table, key, order);
    int owner = (int)order[2];
    struct policy_query query = {
        .conversation = true, .key = key, .owner = owner, .new_choices = 3, .record = POLICY_RECORD_OTHER};

    struct policy_choice choice = choose(workers, 4, query);
    assert_int_equal(choice.worker, owner);
    assert_int_equal(choice.reason, POLICY_OWNER);
    workers[owner].load_tokens = 1000000; /* home all the same */
    assert_int_equal(choose(workers, 4, query).worker, owner);
    query.record = POLICY_RECORD_OURS;
    assert_int_equal(choose(workers, 4, query).reason, POLICY_NEW);
    query.record = POLICY_RECORD_OTHER;

    workers[owner].ready = false; /* suspect: spill to the next in order, the record stays */
    choice = choose(workers, 4, query);
    assert_int_equal(choice.worker, order[0]);
    assert_int_equal(choice.reason, POLICY_SPILL);
    assert_false(choice.take_over);
    workers[order[0]].ready = false;
    assert_int_equal(choose(workers, 4, query).worker, order[1]);
    workers[order[0]].ready = true;

    query.owner_lost = true; /* taken over, by load among the first few */
    workers[order[0]].load_tokens = 500;
    choice = choose(workers, 4, query);
    assert_int_equal(choice.reason, POLICY_OWNER_DEAD);
    assert_true(choice.take_over);
    assert_int_equal(choice.worker, order[1]);
    query.owner = POLICY_NO_WORKER; /* an owner that nobody knows */
    assert_int_equal(choose(workers, 4, query).reason, POLICY_OWNER_DEAD);
    query.owner_lost = false;
    assert_int_equal(choose(workers, 4, query).reason, POLICY_SPILL);
    query.owner = 99;
    assert_int_equal(choose(workers, 4, query).reason, POLICY_SPILL);

    workers[owner].ready = true;
    query.record = POLICY_RECORD_DOWN;
    query.owner = owner; /* remembered */
    choice = choose(workers, 4, query);
    assert_int_equal(choice.worker, owner);
    assert_int_equal(choice.reason, POLICY_REDIS_DOWN);
    query.owner = POLICY_NO_WORKER; /* the order alone: every router says the same */
    choice = choose(workers, 4, query);
    assert_int_equal(choice.worker, order[0]);
    assert_int_equal(choice.reason, POLICY_REDIS_DOWN);

    query.conversation = false;
    choice = choose(workers, 4, query);
    assert_int_equal(choice.reason, POLICY_LOAD);
    assert_int_equal(workers[choice.worker].load_tokens, 0);

    for (unsigned i = 0; i < 4; i++)
        workers[i].ready = false;
    for (unsigned conversation = 0; conversation < 2; conversation++) {
        for (unsigned record = 0; record < 4; record++) {
            struct policy_query any = {.conversation = conversation,
                                       .key = key,
                                       .owner = owner,
                                       .owner_lost = record & 1,
                                       .record = (enum policy_record)record,
                                       .new_choices = 3};
            choice = choose(workers, 4, any);
            assert_int_equal(choice.worker, POLICY_NO_WORKER);
            assert_int_equal(choice.reason, POLICY_NONE);
            assert_false(choice.take_over);
            assert_int_equal(choose(workers, 0, any).reason, POLICY_NONE);
        }
    }
    for (unsigned i = 0; i < POLICY_REASON_COUNT; i++)
        assert_true(strlen(policy_reason_name((enum policy_reason)i)) > 2);
    assert_string_equal(policy_reason_name((enum policy_reason)77), "none");
}

/* Random tables: what is chosen is ready, and exists if anything is. */
static void never_an_unready_worker(void **state)
{
    (void)state;
    struct policy_worker workers[WORKERS];
    uint64_t random = 1;
    for (unsigned round = 0; round < 20000; round++) {
        fill(workers, WORKERS);
        unsigned ready = 0;
        for (unsigned i = 0; i < WORKERS; i++) {
            random = hash_mix(random, i);
            workers[i].ready = (random & 3) == 0;
            workers[i].load_tokens = random >> 40;
            workers[i].weight = random >> 20 & 0xffff;
            ready += workers[i].ready;
        }
        struct policy_query query = {.conversation = random >> 5 & 1,
                                     .key = random,
                                     .record = (enum policy_record)(random >> 6 & 3),
                                     .owner = (int)(random >> 8 & 15) - 2,
                                     .owner_lost = random >> 12 & 1,
                                     .new_choices = (unsigned)(random >> 13 & 31)};
        struct policy_choice choice = choose(workers, WORKERS, query);
        assert_int_equal(choice.worker >= 0, ready > 0);
        assert_int_equal(choice.reason == POLICY_NONE, ready == 0);
        if (choice.worker >= 0)
            assert_true(workers[choice.worker].ready);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_is_a_permutation),
        cmocka_unit_test(leaving_moves_only_its_own),
        cmocka_unit_test(table_order_does_not_matter),
        cmocka_unit_test(shares_follow_weights),
        cmocka_unit_test(new_goes_to_the_least_loaded_of_the_first),
        cmocka_unit_test(each_reason),
        cmocka_unit_test(never_an_unready_worker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
