/* policy_test.c - the policy on tables: order, weights, each reason, never an unready worker; and in a closed loop
 * under hot, tight and skewed loads (policy_simulation.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../seed.h"
#include "common/hash.h"
#include "policy_simulation.h"
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

/* One that came up late, and one in overload, are as loaded as they look or worse. */
static void new_ones_avoid_the_cold_and_the_overloaded(void **state)
{
    (void)state;
    struct policy_worker workers[4];
    fill(workers, 4);
    struct policy_table table = {workers, 4};
    uint64_t key = key_of(3);
    unsigned order[4];
    policy_order(&table, key, order);
    struct policy_query query = {
        .conversation = true, .key = key, .owner = POLICY_NO_WORKER, .new_choices = 3, .prompt_tokens = 100};
    workers[order[0]].ramp = 4; /* idle, but cold: 100 tokens count as 400 */
    workers[order[1]].load_tokens = 200, workers[order[2]].load_tokens = 500;
    assert_int_equal(choose(workers, 4, query).worker, order[1]);
    workers[order[1]].load_tokens = 400;
    assert_int_equal(choose(workers, 4, query).worker, order[0]);
    workers[order[0]].ramp = 0; /* not filled in: as 1 */
    workers[order[1]].load_tokens = 0;
    assert_int_equal(choose(workers, 4, query).worker, order[0]);

    workers[order[0]].overloaded_ms = 1;
    workers[order[1]].load_tokens = 300, workers[order[2]].load_tokens = 200;
    assert_int_equal(choose(workers, 4, query).worker, order[2]);
    workers[order[1]].overloaded_ms = workers[order[2]].overloaded_ms = 1;
    workers[order[3]].load_tokens = 1000000; /* never asked otherwise, and busy, but not in overload */
    assert_int_equal(choose(workers, 4, query).worker, order[3]);
    workers[order[3]].overloaded_ms = 1; /* all are: by load among the first few again */
    workers[order[0]].load_tokens = 1000;
    assert_int_equal(choose(workers, 4, query).worker, order[2]);
    query.conversation = false;
    workers[order[3]].overloaded_ms = 0;
    assert_int_equal(choose(workers, 4, query).worker, order[3]);
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
    struct policy_query query = {.conversation = true,
                                 .key = key,
                                 .owner = owner,
                                 .new_choices = 3,
                                 .record = POLICY_RECORD_OTHER,
                                 .may_take_over = true};

    struct policy_choice choice = choose(workers, 4, query);
    assert_int_equal(choice.worker, owner);
    assert_int_equal(choice.reason, POLICY_OWNER);
    workers[owner].load_tokens = 1000000; /* home all the same */
    assert_int_equal(choose(workers, 4, query).worker, owner);
    query.record = POLICY_RECORD_OURS;
    assert_int_equal(choose(workers, 4, query).reason, POLICY_NEW);
    query.record = POLICY_RECORD_OTHER;

    workers[owner].ready = false; /* down, or full: spill to the next in order, the record stays */
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
    query.may_take_over = false; /* it was tried before */
    assert_int_equal(choose(workers, 4, query).reason, POLICY_SPILL);
    query.may_take_over = true;
    query.owner_lost = false;
    workers[owner].draining = true; /* the same, by another name */
    choice = choose(workers, 4, query);
    assert_int_equal(choice.reason, POLICY_MOVED);
    assert_true(choice.take_over);
    assert_false(choice.by_choice);
    assert_int_equal(choice.worker, order[1]);
    workers[owner].draining = false;
    query.owner_lost = true;
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

/* Its link flaps: waited for, but not for ever; new and foreign conversations do not wait. */
static void suspect_owner_is_waited_for(void **state)
{
    (void)state;
    struct policy_worker workers[4];
    fill(workers, 4);
    struct policy_table table = {workers, 4};
    unsigned order[4];
    policy_order(&table, key_of(9), order);
    int owner = (int)order[1];
    struct policy_query query = {.conversation = true,
                                 .key = key_of(9),
                                 .owner = owner,
                                 .new_choices = 3,
                                 .record = POLICY_RECORD_OTHER,
                                 .may_take_over = true};
    workers[owner].ready = false;
    workers[owner].suspect = true;
    workers[owner].suspect_ms = POLICY_SUSPECT_WAIT_MS - 1;
    for (unsigned down = 0; down < 2; down++) {
        query.record = down ? POLICY_RECORD_DOWN : POLICY_RECORD_OTHER;
        struct policy_choice choice = choose(workers, 4, query);
        assert_int_equal(choice.worker, POLICY_NO_WORKER);
        assert_int_equal(choice.reason, POLICY_NONE);
    }
    query.record = POLICY_RECORD_OTHER;
    workers[owner].suspect_ms = POLICY_SUSPECT_WAIT_MS;
    assert_int_equal(choose(workers, 4, query).reason, POLICY_SPILL);
    assert_int_equal(choose(workers, 4, query).worker, order[0]);
    workers[owner].suspect_ms = 0;
    query.record = POLICY_RECORD_UNKNOWN;
    assert_true(choose(workers, 4, query).worker >= 0);
    workers[owner].draining = true; /* it will not be back */
    query.record = POLICY_RECORD_OTHER;
    assert_int_equal(choose(workers, 4, query).reason, POLICY_MOVED);
}

/* Each condition of leaving an owner that could take it, one at a time. 0.1 ms a token: 20,000 queued are 2 s. */
static void overload_is_left_only_if_it_pays(void **state)
{
    (void)state;
    struct policy_worker workers[4], before[4];
    fill(workers, 4);
    for (unsigned i = 0; i < 4; i++)
        workers[i].token_ns = 100000;
    struct policy_table table = {workers, 4};
    unsigned order[4];
    policy_order(&table, key_of(5), order);
    int owner = (int)order[0];
    workers[owner].queued_tokens = workers[owner].load_tokens = 20000;
    workers[owner].overloaded_ms = POLICY_OVERLOAD_MS;
    workers[order[2]].queued_tokens = 1000; /* 0.1 s behind the first choice */
    workers[order[3]].queued_tokens = 3000;
    const struct policy_query lasting = {.conversation = true,
                                         .key = key_of(5),
                                         .owner = owner,
                                         .new_choices = 3,
                                         .record = POLICY_RECORD_OTHER,
                                         .may_take_over = true,
                                         .may_choose = true,
                                         .prompt_tokens = 5000,
                                         .cached_tokens = 4500,
                                         .record_age_ms = POLICY_SETTLED_MS};
    memcpy(before, workers, sizeof before);
    struct policy_query query = lasting;
    struct policy_choice choice = choose(workers, 4, query); /* 2.05 s here, 0.5 s there */
    assert_int_equal(choice.reason, POLICY_OVERLOAD);
    assert_int_equal(choice.worker, order[1]);
    assert_true(choice.by_choice);
    assert_false(choice.take_over);
    workers[order[1]].queued_tokens = 2000;
    assert_int_equal(choose(workers, 4, query).worker, order[2]); /* the cheapest of those it may go to */

    memcpy(workers, before, sizeof before);
    workers[owner].overloaded_ms = POLICY_MOVE_MS; /* for good */
    choice = choose(workers, 4, query);
    assert_int_equal(choice.reason, POLICY_MOVED);
    assert_true(choice.take_over && choice.by_choice);
    query.record_age_ms = POLICY_SETTLED_MS - 1; /* it has just come */
    assert_int_equal(choose(workers, 4, query).reason, POLICY_OVERLOAD);
    query = lasting;
    query.may_take_over = false;
    assert_int_equal(choose(workers, 4, query).reason, POLICY_OVERLOAD);

    query = lasting;
    query.may_choose = false; /* no budget */
    assert_int_equal(choose(workers, 4, query).reason, POLICY_OWNER);
    query = lasting;
    workers[owner].overloaded_ms = POLICY_OVERLOAD_MS - 1;
    assert_int_equal(choose(workers, 4, query).worker, owner);
    memcpy(workers, before, sizeof before);
    query.prompt_tokens = 10000, query.cached_tokens = 9500;
    workers[owner].queued_tokens = 17000; /* 1.75 s here: not twice 1 s */
    assert_int_equal(choose(workers, 4, query).worker, owner);
    workers[owner].queued_tokens = 20000;
    assert_int_equal(choose(workers, 4, query).reason, POLICY_OVERLOAD);
    memcpy(workers, before, sizeof before);
    query.prompt_tokens = 500, query.cached_tokens = 0; /* 0.54 s here, 0.05 s there: no half second */
    workers[owner].queued_tokens = 4900;
    assert_int_equal(choose(workers, 4, query).worker, owner);
    query = lasting;
    memcpy(workers, before, sizeof before);
    for (unsigned i = 1; i < 4; i++)
        workers[order[i]].overloaded_ms = 1; /* everybody is: nobody leaves */
    assert_int_equal(choose(workers, 4, query).worker, owner);
    memcpy(workers, before, sizeof before);
    workers[owner].token_ns = 0; /* one of the first release, which does not measure */
    assert_int_equal(choose(workers, 4, query).worker, owner);
    memcpy(workers, before, sizeof before);
    for (unsigned i = 1; i < 4; i++)
        workers[order[i]].token_ns = 0;
    assert_int_equal(choose(workers, 4, query).worker, owner);
}

/* ---- closed loops ---- */

static void print_result(const char *name, const struct simulation *settings, const struct simulation_result *result)
{
    double computed = (double)result->computed + (double)result->cached;
    printf("%-22s seed %" PRIu64 ": %" PRIu64
           " turns, %.2f%% at home, max/mean %.3f, cached %.1f%%, wait p50 %.0f ms p99 "
           "%.0f ms, overload %" PRIu64 ", moved %" PRIu64 "\n",
           name, settings->seed, result->turns, 100.0 * (double)result->home / (double)result->follow_ups,
           result->max_over_mean, 100.0 * (double)result->cached / computed, result->wait_ms_p50, result->wait_ms_p99,
           result->overload, result->moved);
    fflush(stdout);
}

static double share_home(const struct simulation_result *result)
{
    return (double)result->home / (double)result->follow_ups;
}

/* What no load may do: more than 5% leave by choice (and the start of the budget), or a conversation moves back and
 * forth. */
static void assert_promises(const struct simulation_result *result)
{
    assert_true((double)(result->overload + result->moved) <= 0.05 * (double)result->turns + 20);
    assert_true(result->settle_ms_min >= POLICY_SETTLED_MS);
}

/* 8 workers of 10,000 tokens a second; 400 conversations of 250 new tokens each 3 s: 42% of that. */
static struct simulation usual_load(uint64_t which)
{
    struct simulation settings = {.seed = test_seed(which),
                                  .workers = 8,
                                  .conversations = 400,
                                  .think_ms = 3000,
                                  .turn_tokens = 250,
                                  .context_tokens = 8000,
                                  .run_ms = 300000};
    for (unsigned i = 0; i < SIMULATION_WORKERS_MAX; i++)
        settings.token_ns[i] = 100000;
    return settings;
}

static void simulate_and_print(const char *name, const struct simulation *settings, struct simulation_result *result)
{
    simulate(settings, result);
    print_result(name, settings, result);
}

static void usual_load_stays_home(void **state)
{
    (void)state;
    struct simulation settings = usual_load(21);
    struct simulation_result result;
    simulate_and_print("usual", &settings, &result);
    assert_promises(&result);
    assert_true(share_home(&result) > 0.995);
    assert_true(result.max_over_mean < 1.25);
}

/* Two thirds of the conversations began at one worker and are three times as busy as the others: four times what it can
 * do. Enough of them leave it, each once. */
static void hot_worker_is_relieved(void **state)
{
    (void)state;
    struct simulation settings = usual_load(22);
    struct simulation_result stay, leave;
    settings.hot = 400;
    settings.hot_factor = 3;
    settings.conversations = 600;
    settings.turn_tokens = 100;
    settings.hot_together = true;
    settings.stay = true;
    simulate_and_print("hot, nobody may leave", &settings, &stay);
    settings.stay = false;
    simulate_and_print("hot", &settings, &leave);
    assert_promises(&leave);
    assert_true(leave.moved > 0);
    assert_true(share_home(&leave) > 0.95);
    assert_true(leave.wait_ms_p50 < stay.wait_ms_p50 / 10); /* the first minute, of settled records, is in the p99 */
    assert_true(leave.turns > 2 * stay.turns);
    assert_true(leave.max_over_mean < 1.6 && stay.max_over_mean > 3);
}

/* All workers have about as much as they can do, or more: copying contexts around would make it worse. */
static void tight_load_stays_home(void **state)
{
    (void)state;
    for (unsigned percent = 90; percent <= 130; percent += 20) {
        struct simulation settings = usual_load(23);
        struct simulation_result stay, leave;
        settings.conversations = 400 * percent / 42;
        settings.run_ms = 120000;
        settings.stay = true;
        simulate_and_print("tight, nobody leaves", &settings, &stay);
        settings.stay = false;
        simulate_and_print("tight", &settings, &leave);
        assert_promises(&leave);
        assert_true(share_home(&leave) > 0.95);
        assert_true((double)leave.turns > 0.97 * (double)stay.turns);
    }
}

/* Workers of 1, 2 and 4 times the speed: each has its share of the work, counted in time. */
static void skewed_workers_share_by_capacity(void **state)
{
    (void)state;
    struct simulation settings = usual_load(24);
    struct simulation_result result;
    for (unsigned i = 0; i < settings.workers; i++)
        settings.token_ns[i] = 200000 >> i % 3;
    simulate_and_print("skewed", &settings, &result);
    assert_promises(&result);
    assert_true(share_home(&result) > 0.99);
    assert_true(result.max_over_mean < 1.35);
}

/* One that comes up late is idle. Without the ramp each new conversation that has it among its three would go there. */
static void late_worker_fills_slowly(void **state)
{
    (void)state;
    struct simulation settings = usual_load(25);
    struct simulation_result result;
    settings.late_ms[7] = 60000;
    settings.context_tokens = 1500; /* many new ones */
    simulate_and_print("late", &settings, &result);
    assert_promises(&result);
    assert_true(share_home(&result) > 0.99);
    assert_true(result.max_over_mean < 1.4);
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
            workers[i].queued_tokens = random >> 44;
            workers[i].token_ns = random >> 9 & 0xffff;
            workers[i].overloaded_ms = random >> 11 & 0x7fff;
            workers[i].suspect = random >> 7 & 1;
            workers[i].suspect_ms = POLICY_SUSPECT_WAIT_MS; /* none is waited for */
            workers[i].draining = !workers[i].ready && (random >> 13 & 1);
            workers[i].weight = random >> 20 & 0xffff;
            ready += workers[i].ready;
        }
        struct policy_query query = {.conversation = random >> 5 & 1,
                                     .key = random,
                                     .record = (enum policy_record)(random >> 6 & 3),
                                     .owner = (int)(random >> 8 & 15) - 2,
                                     .owner_lost = random >> 12 & 1,
                                     .may_take_over = random >> 14 & 1,
                                     .may_choose = random >> 15 & 1,
                                     .prompt_tokens = random >> 50,
                                     .cached_tokens = random >> 51,
                                     .record_age_ms = random >> 30 & 0x1ffff,
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
        cmocka_unit_test(new_ones_avoid_the_cold_and_the_overloaded),
        cmocka_unit_test(each_reason),
        cmocka_unit_test(suspect_owner_is_waited_for),
        cmocka_unit_test(overload_is_left_only_if_it_pays),
        cmocka_unit_test(usual_load_stays_home),
        cmocka_unit_test(hot_worker_is_relieved),
        cmocka_unit_test(tight_load_stays_home),
        cmocka_unit_test(skewed_workers_share_by_capacity),
        cmocka_unit_test(late_worker_fills_slowly),
        cmocka_unit_test(never_an_unready_worker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
