/* placement_memory.c - placement records in this process. The same rules as in Redis, answered at the end of a turn. */
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "common/clock.h"
#include "common/loop.h"
#include "router/placement.h"
#include "router/placement_cache.h"

struct open_answer {
    TAILQ_ENTRY(open_answer) next;
    placement_answer_fn *fn;
    void *user;
    struct placement_answer answer;
};

TAILQ_HEAD(open_list, open_answer);

struct memory {
    struct placement base;
    struct loop *loop; /* ref */
    struct placement_cache *records;
    struct open_list open;
    struct loop_hook *hook; /* delivers */
};

static struct memory *memory_of(const struct placement *self)
{
    return (struct memory *)self;
}

static void deliver(struct memory *memory, bool closed)
{
    /* only what was open when this began: a callback may ask again */
    struct open_answer *last = TAILQ_LAST(&memory->open, open_list), *open;
    while (last && (open = TAILQ_FIRST(&memory->open))) {
        TAILQ_REMOVE(&memory->open, open, next);
        bool end = open == last;
        if (closed)
            open->answer = (struct placement_answer){.st = STATUS_CLOSED};
        open->fn(open->user, &open->answer);
        free(open);
        if (end)
            break;
    }
}

static void on_post(void *user)
{
    (void)user; /* only wakes the loop */
}

static void on_turn_end(void *user)
{
    deliver(user, false);
}

static enum status answer_later(struct memory *memory, const struct placement_answer *answer, placement_answer_fn *fn,
                                void *user)
{
    if (!fn)
        return STATUS_OK;
    struct open_answer *open = calloc(1, sizeof *open);
    if (!open)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement answer");
    open->fn = fn;
    open->user = user;
    open->answer = *answer;
    enum status st = loop_post(memory->loop, on_post, NULL);
    if (st != STATUS_OK) {
        free(open);
        return st;
    }
    TAILQ_INSERT_TAIL(&memory->open, open, next);
    return STATUS_OK;
}

static uint64_t epoch_next(uint64_t stored, uint64_t given)
{
    uint64_t epoch = clock_now_us();
    if (stored + 1 > epoch)
        epoch = stored + 1;
    if (given > epoch && given < PLACEMENT_EPOCH_MAX)
        epoch = given;
    return epoch;
}

static struct placement_answer answer_of(bool ours, const struct placement_record *record)
{
    uint64_t now = clock_now_us();
    return (struct placement_answer){.ours = ours,
                                     .found = true,
                                     .record = *record,
                                     .age_ms = now > record->epoch ? (now - record->epoch) / 1000 : 0};
}

static bool stands(const struct placement_record *record, const struct placement_record *expected)
{
    return record && record->epoch == expected->epoch && strcmp(record->owner, expected->owner) == 0;
}

static enum status memory_claim(struct placement *self, const struct placement_key *key,
                                const struct placement_record *proposal, uint32_t budget_ms, placement_answer_fn *fn,
                                void *user)
{
    (void)budget_ms;
    struct memory *memory = memory_of(self);
    struct placement_record *record = placement_cache_find(memory->records, key);
    bool ours = !record;
    if (ours) {
        struct placement_record fresh = *proposal;
        fresh.epoch = epoch_next(0, proposal->epoch);
        fresh.tokens = 0;
        fresh.tier = PLACEMENT_TIER_UNKNOWN;
        record = placement_cache_put(memory->records, key, &fresh);
    }
    struct placement_answer answer = answer_of(ours, record);
    return answer_later(memory, &answer, fn, user);
}

static enum status memory_replace(struct placement *self, const struct placement_key *key,
                                  const struct placement_record *expected, const struct placement_record *desired,
                                  uint32_t budget_ms, placement_answer_fn *fn, void *user)
{
    (void)budget_ms;
    struct memory *memory = memory_of(self);
    struct placement_record *record = placement_cache_find(memory->records, key);
    bool ours = !record || stands(record, expected);
    if (ours) {
        struct placement_record fresh = *desired;
        bool same_owner = record && strcmp(record->owner, desired->owner) == 0;
        fresh.epoch = same_owner ? record->epoch : epoch_next(record ? record->epoch : expected->epoch, desired->epoch);
        fresh.tokens = same_owner ? record->tokens : 0;
        fresh.tier = same_owner ? record->tier : PLACEMENT_TIER_UNKNOWN;
        record = placement_cache_put(memory->records, key, &fresh);
    }
    struct placement_answer answer = answer_of(ours, record);
    return answer_later(memory, &answer, fn, user);
}

static bool memory_up(const struct placement *self)
{
    (void)self;
    return true;
}

static void memory_destroy(struct placement *self)
{
    struct memory *memory = memory_of(self);
    deliver(memory, true);
    loop_hook_destroy(&memory->hook);
    placement_cache_destroy(&memory->records);
    free(memory);
}

static const struct placement_ops memory_ops = {
    .name = "memory",
    .claim = memory_claim,
    .replace = memory_replace,
    .up = memory_up,
    .destroy = memory_destroy,
};

enum status placement_memory_create(struct loop *loop, uint32_t entries_max, struct placement **out)
{
    struct memory *memory = calloc(1, sizeof *memory);
    if (!memory)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement store");
    memory->base.ops = &memory_ops;
    memory->loop = loop;
    TAILQ_INIT(&memory->open);
    enum status st;
    TRY_GOTO(placement_cache_create(entries_max, &memory->records), st, fail);
    TRY_GOTO(loop_hook_create(loop, on_turn_end, memory, &memory->hook), st, fail);
    *out = &memory->base;
    return STATUS_OK;
fail:
    memory_destroy(&memory->base);
    return st;
}
