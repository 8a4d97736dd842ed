/* policy.c - see policy.h. The few best of an order are found in one pass: nobody sorts a thousand workers for one
 * request. */
#include "router/policy.h"
#include <math.h>
#include <stdlib.h>
#include "common/hash.h"

const char *policy_reason_name(enum policy_reason reason)
{
    static const char *const names[POLICY_REASON_COUNT] = {
        [POLICY_NONE] = "none",
        [POLICY_NEW] = "new",
        [POLICY_OWNER] = "owner",
        [POLICY_SPILL] = "spill",
        [POLICY_OVERLOAD] = "overload",
        [POLICY_MOVED] = "moved",
        [POLICY_OWNER_DEAD] = "owner-dead",
        [POLICY_REDIS_DOWN] = "redis-down",
        [POLICY_ATTACHED] = "attached",
        [POLICY_LOAD] = "load",
    };
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

/* Load per capacity with this request, a worker in overload after all others. Loads and capacities are clamped to 2^40
 * by whoever fills the table. */
static bool less_loaded(const struct policy_worker *a, const struct policy_worker *b, uint64_t tokens)
{
    if ((a->overloaded_ms > 0) != (b->overloaded_ms > 0))
        return b->overloaded_ms > 0;
    double wa = a->weight ? (double)a->weight : 1.0, wb = b->weight ? (double)b->weight : 1.0;
    double ra = a->ramp > 1 ? (double)a->ramp : 1.0, rb = b->ramp > 1 ? (double)b->ramp : 1.0;
    return (double)(a->load_tokens + tokens) * ra * wb < (double)(b->load_tokens + tokens) * rb * wa;
}

static int choose_least_loaded(const struct policy_table *table, const struct policy_query *query, int except)
{
    int chosen = POLICY_NO_WORKER;
    for (unsigned i = 0; i < table->count; i++)
        if (table->workers[i].ready && (int)i != except &&
            (chosen < 0 || less_loaded(&table->workers[i], &table->workers[chosen], query->prompt_tokens)))
            chosen = (int)i;
    return chosen;
}

static unsigned first_choices(const struct policy_table *table, const struct policy_query *query, int except,
                              struct ranked *best)
{
    unsigned max = query->new_choices < 1                    ? 1
                   : query->new_choices > POLICY_CHOICES_MAX ? POLICY_CHOICES_MAX
                                                             : query->new_choices;
    return first_ready(table, query->key, except, best, max);
}

static int choose_new(const struct policy_table *table, const struct policy_query *query, int except)
{
    struct ranked best[POLICY_CHOICES_MAX];
    unsigned count = first_choices(table, query, except, best);
    int chosen = POLICY_NO_WORKER;
    for (unsigned i = 0; i < count; i++)
        if (chosen < 0 || less_loaded(&table->workers[best[i].worker], &table->workers[chosen], query->prompt_tokens))
            chosen = (int)best[i].worker;
    if (chosen >= 0 &&
        table->workers[chosen].overloaded_ms > 0) /* all of its first few are: somebody else may not be */
        chosen = choose_least_loaded(table, query, except);
    return chosen;
}

static int choose_next(const struct policy_table *table, const struct policy_query *query, int except)
{
    struct ranked best;
    return first_ready(table, query->key, except, &best, 1) ? (int)best.worker : POLICY_NO_WORKER;
}

static struct policy_choice choice(int worker, enum policy_reason reason, bool take_over)
{
    if (worker < 0)
        return (struct policy_choice){.worker = POLICY_NO_WORKER, .reason = POLICY_NONE};
    return (struct policy_choice){.worker = worker, .reason = reason, .take_over = take_over};
}

static double cost_ms(const struct policy_worker *worker, uint64_t tokens)
{
    return (double)(worker->queued_tokens + tokens) * worker->token_ns / 1e6;
}

/* The cheapest of the first few in its order that are not in overload themselves, if that is worth leaving home. */
static int choose_elsewhere(const struct policy_table *table, const struct policy_query *query, int owner)
{
    const struct policy_worker *home = &table->workers[owner];
    struct ranked best[POLICY_CHOICES_MAX];
    unsigned count = first_choices(table, query, owner, best);
    int chosen = POLICY_NO_WORKER;
    for (unsigned i = 0; i < count; i++) {
        const struct policy_worker *other = &table->workers[best[i].worker];
        if (other->overloaded_ms == 0 && other->token_ns > 0 &&
            (chosen < 0 ||
             cost_ms(other, query->prompt_tokens) < cost_ms(&table->workers[chosen], query->prompt_tokens)))
            chosen = (int)best[i].worker;
    }
    if (chosen < 0)
        return POLICY_NO_WORKER;
    uint64_t cached = query->cached_tokens < query->prompt_tokens ? query->cached_tokens : query->prompt_tokens;
    double here = cost_ms(home, query->prompt_tokens - cached);
    double there = cost_ms(&table->workers[chosen], query->prompt_tokens);
    return here > POLICY_GAIN * there && here > there + POLICY_GAIN_MS ? chosen : POLICY_NO_WORKER;
}

static struct policy_choice choose_with_owner(const struct policy_table *table, const struct policy_query *query,
                                              int owner)
{
    const struct policy_worker *home = &table->workers[owner];
    enum policy_reason at_home = query->record == POLICY_RECORD_OURS ? POLICY_NEW : POLICY_OWNER;
    if (!query->may_choose || home->overloaded_ms < POLICY_OVERLOAD_MS || home->token_ns == 0)
        return choice(owner, at_home, false);
    int elsewhere = choose_elsewhere(table, query, owner);
    if (elsewhere < 0)
        return choice(owner, at_home, false);
    bool for_good =
        home->overloaded_ms >= POLICY_MOVE_MS && query->record_age_ms >= POLICY_SETTLED_MS && query->may_take_over;
    struct policy_choice left = choice(elsewhere, for_good ? POLICY_MOVED : POLICY_OVERLOAD, for_good);
    left.by_choice = true;
    return left;
}

struct policy_choice policy_choose(const struct policy_table *table, const struct policy_query *query)
{
    if (!query->conversation)
        return choice(choose_least_loaded(table, query, POLICY_NO_WORKER), POLICY_LOAD, false);
    if (query->record == POLICY_RECORD_UNKNOWN)
        return choice(choose_new(table, query, POLICY_NO_WORKER), POLICY_NEW, false);

    int owner = query->owner >= 0 && (unsigned)query->owner < table->count ? query->owner : POLICY_NO_WORKER;
    const struct policy_worker *home = owner >= 0 ? &table->workers[owner] : NULL;
    bool drains = home && home->draining;
    if (home && !home->ready && !drains && home->suspect && home->suspect_ms < POLICY_SUSPECT_WAIT_MS)
        return choice(POLICY_NO_WORKER, POLICY_NONE, false);
    if (query->record == POLICY_RECORD_DOWN)
        return choice(home && home->ready ? owner : choose_next(table, query, owner), POLICY_REDIS_DOWN, false);
    if (home && home->ready)
        return choose_with_owner(table, query, owner);
    if (query->may_take_over && (drains || query->owner_lost))
        return choice(choose_new(table, query, owner), drains ? POLICY_MOVED : POLICY_OWNER_DEAD, true);
    return choice(choose_next(table, query, owner), POLICY_SPILL, false);
}
