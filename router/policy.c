/* policy.c - see policy.h. The few best of an order are found in one pass: nobody sorts a thousand workers for one
 * request. */
#include "router/policy.h"
#include <math.h>
#include <stdlib.h>
#include "common/hash.h"

enum { CHOICES_MAX = 16 }; /* largest new_choices of the settings; a list on the stack, kept by insertion */

const char *policy_reason_name(enum policy_reason reason)
{
    static const char *const names[POLICY_REASON_COUNT] = {"none",       "new",        "owner", "spill",
                                                           "owner-dead", "redis-down", "load"};
    return (unsigned)reason < POLICY_REASON_COUNT ? names[reason] : "none";
}

static double score(const struct policy_worker *worker, uint64_t key)
{
    /* 53 bits, moved by half a step so that u is neither 0 nor 1 */
    double u = ((double)(hash_mix(key, worker->name_hash) >> 11) + 0.5) * 0x1p-53;
    double weight = worker->weight ? (double)worker->weight : 1.0;
    return -weight / log(u);
}

struct ranked {
    double score;
    uint64_t name_hash; /* decides ties, so that the order does not depend on the table's */
    unsigned worker;
};

static bool ranked_before(const struct ranked *a, const struct ranked *b)
{
    return a->score > b->score || (a->score == b->score && a->name_hash < b->name_hash);
}

static struct ranked rank(const struct policy_table *table, unsigned worker, uint64_t key)
{
    const struct policy_worker *w = &table->workers[worker];
    return (struct ranked){.score = score(w, key), .name_hash = w->name_hash, .worker = worker};
}

static int ranked_compare(const void *a, const void *b)
{
    return ranked_before(a, b) ? -1 : ranked_before(b, a) ? 1 : 0;
}

void policy_order(const struct policy_table *table, uint64_t key, unsigned *order)
{
    struct ranked *all = malloc((table->count ? table->count : 1) * sizeof *all);
    for (unsigned i = 0; i < table->count; i++) {
        order[i] = i;
        if (all)
            all[i] = rank(table, i, key);
    }
    if (!all)
        return;
    qsort(all, table->count, sizeof *all, ranked_compare);
    for (unsigned i = 0; i < table->count; i++)
        order[i] = all[i].worker;
    free(all);
}

/* The first `max` ready workers of the order, best first, without `except`. */
static unsigned first_ready(const struct policy_table *table, uint64_t key, int except, struct ranked *best,
                            unsigned max)
{
    unsigned count = 0;
    for (unsigned i = 0; i < table->count; i++) {
        if (!table->workers[i].ready || (int)i == except)
            continue;
        struct ranked candidate = rank(table, i, key);
        unsigned at = count;
        while (at > 0 && ranked_before(&candidate, &best[at - 1]))
            at--;
        if (at == max)
            continue;
        unsigned last = count < max ? count++ : max - 1;
        for (unsigned j = last; j > at; j--)
            best[j] = best[j - 1];
        best[at] = candidate;
    }
    return count;
}

/* Load per capacity, compared without dividing; capacities and loads are clamped to 2^40 by whoever fills the table. */
static bool less_loaded(const struct policy_worker *a, const struct policy_worker *b)
{
    double wa = a->weight ? (double)a->weight : 1.0, wb = b->weight ? (double)b->weight : 1.0;
    return (double)a->load_tokens * wb < (double)b->load_tokens * wa;
}

static int choose_new(const struct policy_table *table, const struct policy_query *query, int except)
{
    struct ranked best[CHOICES_MAX];
    unsigned max = query->new_choices < 1 ? 1 : query->new_choices > CHOICES_MAX ? CHOICES_MAX : query->new_choices;
    unsigned count = first_ready(table, query->key, except, best, max);
    int chosen = POLICY_NO_WORKER;
    for (unsigned i = 0; i < count; i++)
        if (chosen < 0 || less_loaded(&table->workers[best[i].worker], &table->workers[chosen]))
            chosen = (int)best[i].worker;
    return chosen;
}

static int choose_next(const struct policy_table *table, const struct policy_query *query, int except)
{
    struct ranked best;
    return first_ready(table, query->key, except, &best, 1) ? (int)best.worker : POLICY_NO_WORKER;
}

static int choose_least_loaded(const struct policy_table *table)
{
    int chosen = POLICY_NO_WORKER;
    for (unsigned i = 0; i < table->count; i++)
        if (table->workers[i].ready && (chosen < 0 || less_loaded(&table->workers[i], &table->workers[chosen])))
            chosen = (int)i;
    return chosen;
}

static struct policy_choice choice(int worker, enum policy_reason reason, bool take_over)
{
    if (worker < 0)
        return (struct policy_choice){.worker = POLICY_NO_WORKER, .reason = POLICY_NONE};
    return (struct policy_choice){.worker = worker, .reason = reason, .take_over = take_over};
}

struct policy_choice policy_choose(const struct policy_table *table, const struct policy_query *query)
{
    if (!query->conversation)
        return choice(choose_least_loaded(table), POLICY_LOAD, false);
    if (query->record == POLICY_RECORD_UNKNOWN)
        return choice(choose_new(table, query, POLICY_NO_WORKER), POLICY_NEW, false);

    int owner = query->owner >= 0 && (unsigned)query->owner < table->count ? query->owner : POLICY_NO_WORKER;
    bool owner_ready = owner >= 0 && table->workers[owner].ready;
    if (query->record == POLICY_RECORD_DOWN)
        return choice(owner_ready ? owner : choose_next(table, query, owner), POLICY_REDIS_DOWN, false);
    if (owner_ready)
        return choice(owner, query->record == POLICY_RECORD_OURS ? POLICY_NEW : POLICY_OWNER, false);
    if (query->owner_lost)
        return choice(choose_new(table, query, owner), POLICY_OWNER_DEAD, true);
    return choice(choose_next(table, query, owner), POLICY_SPILL, false);
}
