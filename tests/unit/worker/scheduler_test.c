/* The plan of a step, from tables: what runs, who comes, who goes, in print; then random tables against the rules. And
 * how many tokens a step gets. */
#include "tests/unit/worker/unit.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/step_pace.h"

enum { PAGE = 100, FIELDS_MAX = SCHEDULER_ENTRIES_MAX };

static struct scheduler_entry entries[FIELDS_MAX];
static uint32_t entry_count;
static struct scheduler_plan plan;

/* Ids and arrivals count up with each call of one table. */
static struct scheduler_entry *add(enum scheduler_state state, int32_t priority)
{
    struct scheduler_entry *entry = &entries[entry_count];
    *entry = (struct scheduler_entry){
        .id = entry_count, .state = state, .priority = priority, .arrival = entry_count, .bytes_per_page = PAGE};
    entry_count++;
    return entry;
}

static struct scheduler_entry *add_decode(int32_t priority, uint64_t held, uint64_t next)
{
    struct scheduler_entry *entry = add(SCHEDULER_DECODE, priority);
    entry->tokens = 640;
    entry->tokens_left = 1;
    entry->bytes_held = held;
    entry->bytes_next_token = next;
    return entry;
}

static struct scheduler_entry *add_prefill(int32_t priority, uint32_t tokens, uint32_t left)
{
    struct scheduler_entry *entry = add(SCHEDULER_PREFILL, priority);
    entry->tokens = tokens;
    entry->tokens_left = left;
    entry->bytes_held = PAGE * ((tokens + 63) / 64);
    entry->bytes_next_token = tokens % 64 == 0 ? PAGE : 0;
    return entry;
}

static struct scheduler_entry *add_loading(int32_t priority, uint32_t tokens, uint32_t left)
{
    struct scheduler_entry *entry = add_prefill(priority, tokens, left);
    entry->state = SCHEDULER_LOADING;
    entry->follows = true;
    return entry;
}

static struct scheduler_entry *add_outside(enum scheduler_state state, int32_t priority, uint32_t tokens, uint32_t left)
{
    struct scheduler_entry *entry = add(state, priority);
    entry->tokens = tokens;
    entry->tokens_left = left;
    entry->bytes_total = PAGE * ((tokens + left + 63) / 64);
    return entry;
}

static struct scheduler_limits limits(uint32_t budget, uint64_t room)
{
    return (struct scheduler_limits){
        .tokens_budget = budget, .chunk_tokens_max = 256, .sequences_max = 8, .bytes_room = room};
}

static void expect(const struct scheduler_limits *with, const char *wanted)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    scheduler_plan(entries, entry_count, with, &plan);
    scheduler_plan_print(&plan, out);
    fclose(out);
    assert_string_equal(text, wanted);
    free(text);
    entry_count = 0;
}

#define EXPECT(budget, room, wanted)                                                                                   \
    do {                                                                                                               \
        const struct scheduler_limits with_ = limits(budget, room);                                                    \
        expect(&with_, wanted);                                                                                        \
    } while (0)

static void decode_comes_first(void **state)
{
    (void)state;
    add_prefill(0, 0, 1000);
    add_decode(0, 10 * PAGE, 0);
    add_decode(-5, 10 * PAGE, 0);
    EXPECT(66, 100 * PAGE, "run 0 64\nrun 1 1\nrun 2 1\n");
    add_prefill(9, 0, 1000); /* a budget that decode uses up leaves nothing, and does not cut decode */
    add_decode(0, 10 * PAGE, 0);
    add_decode(0, 10 * PAGE, PAGE);
    EXPECT(2, 100 * PAGE, "run 1 1\nrun 2 1\n");
    EXPECT(2, 100 * PAGE, ""); /* nothing to do */
}

static void chunks_end_at_page_borders(void **state)
{
    (void)state;
    add_prefill(0, 10, 1000);
    EXPECT(1000, 100 * PAGE, "run 0 246\n"); /* 256 at most: to 256 */
    add_prefill(0, 10, 30);
    EXPECT(1000, 100 * PAGE, "run 0 30\n"); /* the end of the prompt is where it is */
    add_prefill(0, 0, 1000);
    add_prefill(0, 0, 1000);
    EXPECT(100, 100 * PAGE, "run 0 64\nrun 1 36\n"); /* one odd rest ... */
    add_prefill(0, 0, 1000);
    add_prefill(0, 20, 1000);
    add_prefill(0, 20, 1000);
    EXPECT(64 + 20, 100 * PAGE, "run 0 64\nrun 1 20\n"); /* ... and only one */
    add_prefill(0, 0, 1000);
    EXPECT(100, 100 * PAGE, "run 0 100\n"); /* nobody else: it gets the rest itself */
    struct scheduler_limits small = limits(100, 100 * PAGE);
    small.chunk_tokens_max = 17; /* the chunk's own limit is not an odd rest */
    add_prefill(0, 0, 1000);
    add_prefill(0, 60, 1000);
    add_prefill(0, 64, 1000);
    expect(&small, "run 0 17\nrun 1 4\nrun 2 17\n");
}

static void ranks(void **state)
{
    (void)state;
    add_prefill(0, 0, 100);
    add_prefill(5, 0, 100);
    add_outside(SCHEDULER_WAITING, 5, 0, 100);
    add_outside(SCHEDULER_SUSPENDED, 5, 64, 36);
    EXPECT(10000, 100 * PAGE, "resume 3\nadmit 2\nrun 1 100\nrun 3 36\nrun 2 100\nrun 0 100\n");
    add_prefill(0, 0, 100); /* running before waiting within a priority, and by arrival */
    entries[0].arrival = 7;
    add_prefill(0, 0, 100);
    add_outside(SCHEDULER_WAITING, 0, 0, 100);
    entries[2].arrival = 0;
    EXPECT(164, 100 * PAGE, "admit 2\nrun 1 100\nrun 0 64\n");
    add(SCHEDULER_LOADING, 3); /* loads: no tokens, but its place */
    add_prefill(0, 0, 10);
    struct scheduler_limits two = limits(100, 100 * PAGE);
    two.sequences_max = 2;
    add_outside(SCHEDULER_WAITING, 0, 0, 10);
    expect(&two, "run 1 10\n");
}

static void one_computes_behind_its_copies(void **state)
{
    (void)state;
    add_loading(0, 640, 100);
    EXPECT(1000, 100 * PAGE, "run 0 100\n");
    add_loading(0, 640, 100)->follows = false;
    add_loading(0, 640, 100);
    add_loading(1, 640, 50);
    add_loading(1, 640, 50);
    EXPECT(1000, 100 * PAGE, "run 2 50\n"); /* one, the first by rank */
    add_loading(0, 640, 1000);
    EXPECT(100, 100 * PAGE, "run 0 64\n"); /* a chunk like any other */
    add_loading(1, 640, 100);
    add_decode(0, 10 * PAGE, 0);
    EXPECT(1000, 100 * PAGE, "run 1 1\n"); /* others do not wait for its copies */
    add_loading(1, 640, 100);
    add_outside(SCHEDULER_WAITING, 0, 0, 10);
    EXPECT(1000, 100 * PAGE, "admit 1\nrun 1 10\n");
    add_loading(0, 640, 100)->idle_only = true;
    add_decode(0, 10 * PAGE, 0);
    EXPECT(1000, 100 * PAGE, "drop 0\nrun 1 1\n");
}

static void memory_suspends_the_lowest(void **state)
{
    (void)state;
    add_decode(0, 10 * PAGE, PAGE);
    add_decode(0, 10 * PAGE, PAGE);
    add_decode(0, 10 * PAGE, PAGE);
    EXPECT(100, 2 * PAGE, "suspend 2\nrun 0 1\nrun 1 1\n"); /* there was room for two */
    add_decode(0, 10 * PAGE, 0);
    add_decode(0, PAGE, PAGE);
    add_decode(1, 10 * PAGE, 0);
    EXPECT(100, 0, "suspend 1\nrun 2 1\nrun 0 1\n"); /* nobody ranks below it: it goes itself */
    add_decode(0, 10 * PAGE, PAGE);
    EXPECT(100, 0, "run 0 1\n"); /* alone: the engine finds room */
    add_prefill(1, 64, 500);
    add_decode(0, 3 * PAGE, 0);
    EXPECT(1000, 0, "suspend 1\nrun 0 192\n"); /* three pages came free */
    add_prefill(0, 64, 500);
    add_prefill(1, 64, 500);
    add_decode(2, 3 * PAGE, 0);
    EXPECT(1000, 2 * PAGE,
           "run 2 1\nrun 1 128\n"); /* the first prefill takes the room; the second waits: it is the lowest */
    add_prefill(1, 0, 500);         /* what room there is decides the chunk */
    add_decode(2, 3 * PAGE, 0);
    EXPECT(1000, 2 * PAGE, "run 1 1\nrun 0 128\n");
}

static void who_comes_and_who_waits(void **state)
{
    (void)state;
    add_outside(SCHEDULER_WAITING, 0, 0, 640);
    EXPECT(300, 0, "admit 0\nrun 0 256\n"); /* nothing runs: always */
    add_decode(0, PAGE, 0);
    add_outside(SCHEDULER_WAITING, 0, 0, 640);
    add_outside(SCHEDULER_WAITING, 0, 0, 64); /* would fit, but does not overtake */
    EXPECT(300, 9 * PAGE, "run 0 1\n");
    add_decode(0, PAGE, 0);
    add_outside(SCHEDULER_WAITING, 0, 0, 640);
    add_outside(SCHEDULER_WAITING, 0, 0, 64);
    EXPECT(300, 11 * PAGE, "admit 1\nadmit 2\nrun 0 1\nrun 1 256\nrun 2 43\n");
    add_decode(0, PAGE, 0);
    add_outside(SCHEDULER_WAITING, 0, 0, 640);
    struct scheduler_limits reserving = limits(300, 11 * PAGE);
    reserving.bytes_reserve = 2 * PAGE;
    expect(&reserving, "run 0 1\n");
    add_decode(0, PAGE, 0);
    add_outside(SCHEDULER_WAITING, 0, 0, 10);
    add_outside(SCHEDULER_SUSPENDED, 0, 600,
                40); /* comes first, and does not fit: nothing else of its priority comes */
    EXPECT(300, 9 * PAGE, "run 0 1\n");
    add_decode(0, PAGE, 0);
    add_outside(SCHEDULER_WAITING, 1, 0, 10);
    add_outside(SCHEDULER_SUSPENDED, 0, 600, 40);
    EXPECT(300, 9 * PAGE, "admit 1\nrun 1 10\nrun 0 1\n");
}

static void higher_priorities_take_places(void **state)
{
    (void)state;
    struct scheduler_limits two = limits(300, PAGE);
    two.sequences_max = 2;
    add_decode(0, PAGE, 0);
    add_decode(0, PAGE, 0);
    add_outside(SCHEDULER_WAITING, 1, 0, 64);
    expect(&two, "suspend 1\nadmit 2\nrun 2 64\nrun 0 1\n");
    add_decode(0, PAGE, 0);
    add_decode(0, PAGE, 0);
    add_outside(SCHEDULER_WAITING, 0, 0, 64); /* not of the same priority */
    expect(&two, "run 0 1\nrun 1 1\n");
    add_decode(1, 10 * PAGE, 0);
    add_decode(0, 3 * PAGE, 0);
    add_prefill(0, 64, 64);
    add_outside(SCHEDULER_WAITING, 2, 0, 640); /* ten pages: everybody else has to go */
    EXPECT(300, PAGE, "suspend 0\nsuspend 1\nsuspend 2\nadmit 3\nrun 3 256\n");
    add_decode(2, 10 * PAGE, 0);
    add_decode(0, 3 * PAGE, 0);
    add_outside(SCHEDULER_WAITING, 2, 0, 640); /* all that may go is not enough: nobody goes */
    EXPECT(300, PAGE, "run 0 1\nrun 1 1\n");
    two.bytes_room = 0;
    add_decode(1, PAGE, 0);
    add_prefill(0, 100, 20);
    add_outside(SCHEDULER_WAITING, 1, 0, 64);
    expect(&two, "suspend 1\nadmit 2\nrun 0 1\nrun 2 64\n");
    add_decode(1, PAGE, 0); /* one that comes back may do the same */
    add_prefill(0, 100, 20);
    add_outside(SCHEDULER_SUSPENDED, 1, 64, 64);
    expect(&two, "suspend 1\nresume 2\nrun 0 1\nrun 2 64\n");
    two.bytes_room = 0; /* one alone got a page that nobody has: its place has what it held, and no more */
    add_decode(1, 7 * PAGE, PAGE);
    add_outside(SCHEDULER_SUSPENDED, 2, 64, 64);
    add_outside(SCHEDULER_WAITING, 2, 0, 384);
    expect(&two, "suspend 0\nresume 1\nrun 1 64\n");
}

static void idle_work_waits_for_nobody(void **state)
{
    (void)state;
    add_outside(SCHEDULER_WAITING, INT32_MIN, 0, 100)->idle_only = true;
    EXPECT(300, 10 * PAGE, "admit 0\nrun 0 100\n");
    add_prefill(INT32_MIN, 0, 100)->idle_only = true;
    EXPECT(300, 10 * PAGE, "run 0 100\n");
    add_prefill(INT32_MIN, 0, 100)->idle_only = true;
    add_outside(SCHEDULER_WAITING, 0, 0, 100);
    EXPECT(300, 10 * PAGE, "drop 0\nadmit 1\nrun 1 100\n");
    add_outside(SCHEDULER_WAITING, INT32_MIN, 0, 100)->idle_only = true;
    add(SCHEDULER_LOADING, 0);
    EXPECT(300, 10 * PAGE, "");
}

/* One that may kill the process computes its prompt with nobody else's. */
static void suspects_come_alone(void **state)
{
    (void)state;
    add_outside(SCHEDULER_WAITING, 0, 0, 100)->apart = true; /* nobody is there: alone, and nobody behind it */
    add_outside(SCHEDULER_WAITING, 0, 0, 100);
    EXPECT(1000, 100 * PAGE, "admit 0\nrun 0 100\n");
    add_outside(SCHEDULER_WAITING, 0, 0, 100); /* one that comes before it: in the next step */
    add_outside(SCHEDULER_WAITING, 0, 0, 100)->apart = true;
    add_outside(SCHEDULER_WAITING, 0, 0, 100);
    EXPECT(1000, 100 * PAGE, "admit 0\nrun 0 100\n");
    add_prefill(0, 64, 100); /* somebody is in prefill: it waits, and so does who comes behind it */
    add_outside(SCHEDULER_WAITING, 0, 0, 100)->apart = true;
    add_outside(SCHEDULER_WAITING, 0, 0, 100);
    EXPECT(1000, 100 * PAGE, "run 0 100\n");
    add_outside(SCHEDULER_WAITING, 1, 0, 100)->apart = true; /* also one of a higher priority, which takes no place */
    add_prefill(0, 64, 100);
    struct scheduler_limits one = limits(1000, 100 * PAGE);
    one.sequences_max = 1;
    expect(&one, "run 1 100\n");
    add(SCHEDULER_LOADING, 0);
    add_outside(SCHEDULER_WAITING, 0, 0, 100)->apart = true;
    EXPECT(1000, 100 * PAGE, "");
    add_decode(0, PAGE, 0); /* what decodes is no obstacle, and goes on */
    add_outside(SCHEDULER_WAITING, 0, 0, 100)->apart = true;
    add_outside(SCHEDULER_SUSPENDED, -1, 64, 36);
    EXPECT(1000, 100 * PAGE, "admit 1\nrun 0 1\nrun 1 100\n");
    add_decode(0, PAGE, 0); /* while it prefills nobody comes, or comes back */
    add_prefill(0, 0, 1000)->apart = true;
    add_outside(SCHEDULER_SUSPENDED, 0, 64, 36);
    add_outside(SCHEDULER_WAITING, 5, 0, 100);
    EXPECT(1000, 100 * PAGE, "run 0 1\nrun 1 256\n");
    add_decode(0, PAGE, 0)->fresh = true; /* it would share the blame: the suspect waits, others do not */
    add_outside(SCHEDULER_WAITING, 1, 0, 100);
    add_outside(SCHEDULER_WAITING, 0, 0, 100)->apart = true;
    EXPECT(1000, 100 * PAGE, "admit 1\nrun 1 100\nrun 0 1\n");
    add_decode(0, PAGE, 0)->apart = true; /* or while it has released nothing */
    add_outside(SCHEDULER_WAITING, 5, 0, 100);
    EXPECT(1000, 100 * PAGE, "run 0 1\n");
    add_outside(SCHEDULER_SUSPENDED, 0, 64, 100)->apart = true; /* two of them: one after the other */
    add_outside(SCHEDULER_WAITING, 0, 0, 100)->apart = true;
    EXPECT(1000, 100 * PAGE, "resume 0\nrun 0 100\n");
}

/* ---- random tables ---- */

static void fill(uint64_t *rng)
{
    const uint32_t count = 1 + rng_below(rng, 60);
    const bool background = rng_below(rng, 4) == 0, suspects = rng_below(rng, 2) == 0;
    entry_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const int32_t priority = (int32_t)rng_below(rng, 3);
        struct scheduler_entry *entry;
        switch (rng_below(rng, 5)) {
        case 0: entry = add_decode(priority, PAGE * (1 + rng_below(rng, 20)), rng_below(rng, 3) == 0 ? PAGE : 0); break;
        case 1: entry = add_prefill(priority, rng_below(rng, 500), 1 + rng_below(rng, 1000)); break;
        case 2: entry = add_outside(SCHEDULER_WAITING, priority, rng_below(rng, 200), 1 + rng_below(rng, 1000)); break;
        case 3:
            entry = add_outside(SCHEDULER_SUSPENDED, priority, rng_below(rng, 200), 1 + rng_below(rng, 1000));
            break;
        default:
            entry = add_loading(priority, rng_below(rng, 500), 1 + rng_below(rng, 1000));
            entry->follows = rng_below(rng, 2) == 0;
        }
        entry->arrival = rng_below(rng, 1000) * 64 + i;
        entry->idle_only = background && rng_below(rng, 3) == 0;
        entry->fresh = suspects && !entry->idle_only && rng_below(rng, 4) == 0;
        entry->apart = entry->fresh && rng_below(rng, 2) == 0;
    }
}

static bool in_memory(const struct scheduler_entry *entry)
{
    return entry->state == SCHEDULER_PREFILL || entry->state == SCHEDULER_DECODE || entry->state == SCHEDULER_LOADING;
}

static uint64_t bytes_of_run(const struct scheduler_entry *entry, uint32_t tokens)
{
    const uint32_t pages = (entry->tokens + tokens + 63) / 64 - (entry->tokens + 63) / 64;
    return pages == 0 ? 0 : entry->tokens % 64 == 0 ? entry->bytes_next_token + (pages - 1) * PAGE : pages * PAGE;
}

struct outcome { /* of one entry */
    uint32_t tokens;
    bool suspended, dropped, came;
};

/* The actions, each checked against its entry's state, in their order. */
static void read_plan(struct outcome *outcomes)
{
    static const int order[] = {[SCHEDULER_SUSPEND] = 0,
                                [SCHEDULER_DROP] = 0,
                                [SCHEDULER_RESUME] = 1,
                                [SCHEDULER_ADMIT] = 1,
                                [SCHEDULER_RUN] = 2};
    int last = 0;
    uint32_t tokens = 0;
    memset(outcomes, 0, entry_count * sizeof *outcomes);
    for (uint32_t i = 0; i < plan.count; i++) {
        const struct scheduler_action *action = &plan.actions[i];
        assert_true(action->id < entry_count);
        const struct scheduler_entry *entry = &entries[action->id];
        struct outcome *outcome = &outcomes[action->id];
        assert_true(order[action->kind] >= last);
        last = order[action->kind];
        switch (action->kind) {
        case SCHEDULER_SUSPEND:
            assert_true(in_memory(entry) && !outcome->suspended);
            outcome->suspended = true;
            break;
        case SCHEDULER_DROP:
            assert_true(in_memory(entry) && entry->idle_only && !outcome->dropped);
            outcome->dropped = true;
            break;
        case SCHEDULER_RESUME:
        case SCHEDULER_ADMIT:
            assert_int_equal(entry->state, action->kind == SCHEDULER_RESUME ? SCHEDULER_SUSPENDED : SCHEDULER_WAITING);
            assert_false(outcome->came);
            outcome->came = true;
            break;
        case SCHEDULER_RUN:
            assert_true(in_memory(entry) || outcome->came);
            assert_true(entry->state != SCHEDULER_LOADING || (entry->follows && action->tokens == plan.tokens)); /* alone */
            assert_true(!outcome->suspended && !outcome->dropped && outcome->tokens == 0);
            assert_true(action->tokens >= 1 && action->tokens <= entry->tokens_left);
            outcome->tokens = action->tokens;
            tokens += action->tokens;
        }
    }
    assert_int_equal(tokens, plan.tokens);
}

static void check_rules(const struct scheduler_limits *with)
{
    static struct outcome outcomes[FIELDS_MAX];
    uint32_t running = 0, before = 0, decoding = 0, prefilled = 0, odd = 0;
    uint64_t needed = 0, freed = 0;
    bool others = false, came = false, worked = false, ready = false;
    uint32_t comers = 0, fresh = 0, apart_inside = 0, apart_comers = 0;
    read_plan(outcomes);
    for (uint32_t i = 0; i < entry_count; i++)
        others = others || !entries[i].idle_only;
    for (uint32_t i = 0; i < entry_count; i++) {
        const struct scheduler_entry *entry = &entries[i];
        const struct outcome *outcome = &outcomes[i];
        const bool gone = outcome->suspended || outcome->dropped;
        if (others && entry->idle_only) {
            assert_true(outcome->tokens == 0 && !outcome->came && !outcome->suspended &&
                        outcome->dropped == in_memory(entry));
            freed += in_memory(entry) ? entry->bytes_held : 0;
            continue;
        }
        before += in_memory(entry);
        running += (in_memory(entry) && !gone) || outcome->came;
        came = came || outcome->came;
        comers += outcome->came;
        apart_comers += outcome->came && entry->apart;
        apart_inside += in_memory(entry) && !gone && entry->apart;
        fresh += in_memory(entry) && !gone && (entry->state != SCHEDULER_DECODE || entry->fresh);
        worked = worked || outcome->tokens > 0;
        ready = ready || entry->state == SCHEDULER_PREFILL || entry->state == SCHEDULER_DECODE || !in_memory(entry) || entry->follows;
        freed += gone ? entry->bytes_held : 0;
        if (entry->state == SCHEDULER_DECODE) {
            assert_true(outcome->tokens == 1 || outcome->suspended); /* never starved */
            decoding += outcome->tokens;
        } else {
            const uint32_t end = entry->tokens + outcome->tokens;
            assert_true(outcome->tokens <= with->chunk_tokens_max);
            prefilled += outcome->tokens;
            odd += outcome->tokens > 0 && outcome->tokens < entry->tokens_left && end % 64 != 0 &&
                   outcome->tokens < with->chunk_tokens_max;
        }
        needed += outcome->came ? entry->bytes_total : bytes_of_run(entry, outcome->tokens);
    }
    assert_true(decoding + prefilled <= with->tokens_budget || prefilled == 0 || decoding > with->tokens_budget);
    assert_true(odd <= 1);
    assert_true(running <= with->sequences_max || running <= before);
    assert_true(needed <= with->bytes_room + freed || running == 1); /* one alone is always tried */
    if (apart_comers > 0)
        assert_true(comers == 1 && fresh == 0); /* alone, but for those that have spoken */
    if (apart_inside > 0)
        assert_int_equal(comers, 0);
    if (came && running > 1)
        assert_true(running <= with->sequences_max);
    if (ready && running == 0)
        assert_true(before > 0); /* somebody who waits alone is let in */
    if (before == 0 && ready)
        assert_true(worked);
}

static void random_tables_keep_the_rules(void **state)
{
    (void)state;
    uint64_t rng = test_seed(1);
    for (int round = 0; round < 200000; round++) {
        static struct scheduler_plan again;
        fill(&rng);
        struct scheduler_limits with = limits(1 + rng_below(&rng, 600), PAGE * rng_below(&rng, 80));
        with.chunk_tokens_max = rng_below(&rng, 2) ? 64 * (1 + rng_below(&rng, 8)) : 1 + rng_below(&rng, 300);
        with.sequences_max = 1 + rng_below(&rng, 40);
        with.bytes_reserve = rng_below(&rng, 2) ? PAGE * rng_below(&rng, 20) : 0;
        scheduler_plan(entries, entry_count, &with, &again);
        scheduler_plan(entries, entry_count, &with, &plan);
        assert_int_equal(plan.count, again.count); /* the same table, the same plan */
        assert_memory_equal(plan.actions, again.actions, plan.count * sizeof plan.actions[0]);
        check_rules(&with);
    }
}

/* A toy engine over plans: every request is computed, none is suspended for ever. */
static void every_request_gets_done(void **state)
{
    (void)state;
    uint64_t rng = test_seed(2);
    for (int round = 0; round < 50; round++) {
        const uint64_t total = PAGE * 12; /* the largest alone needs ten pages */
        const uint32_t count = 20;
        uint32_t length[20], steps = 0, done = 0;
        entry_count = 0;
        for (uint32_t i = 0; i < count; i++) {
            length[i] = 1 + rng_below(&rng, 300);
            add_outside(SCHEDULER_WAITING, (int32_t)rng_below(&rng, 2), 0, length[i]);
            length[i] += rng_below(&rng, 340);
            entries[i].apart = rng_below(&rng, 4) == 0;
        }
        bool over[20] = {false};
        while (done < count) {
            struct scheduler_entry table[20];
            uint32_t index[20], rows = 0;
            uint64_t held = 0;
            assert_true(++steps < 100000);
            for (uint32_t i = 0; i < count; i++) {
                struct scheduler_entry *entry = &entries[i];
                const uint64_t pages = PAGE * (uint64_t)((entry->tokens + 63) / 64);
                if (over[i])
                    continue;
                if (in_memory(entry)) {
                    entry->state = entry->tokens_left == 1 ? SCHEDULER_DECODE : SCHEDULER_PREFILL;
                    entry->bytes_held = pages;
                    entry->bytes_next_token = entry->tokens % 64 == 0 ? PAGE : 0;
                    held += pages;
                } else {
                    entry->bytes_total = PAGE * ((entry->tokens + entry->tokens_left + 63) / 64);
                }
                index[rows] = i;
                table[rows] = *entry;
                table[rows].id = rows;
                rows++;
            }
            struct scheduler_limits with = limits(100, total - held);
            with.sequences_max = 4;
            scheduler_plan(table, rows, &with, &plan);
            for (uint32_t a = 0; a < plan.count; a++) {
                struct scheduler_entry *entry = &entries[index[plan.actions[a].id]];
                switch (plan.actions[a].kind) {
                case SCHEDULER_SUSPEND: entry->state = SCHEDULER_SUSPENDED; break;
                case SCHEDULER_RUN:
                    entry->tokens += plan.actions[a].tokens;
                    entry->tokens_left -= plan.actions[a].tokens;
                    entry->apart = entry->apart && entry->tokens_left > 0;
                    if (entry->tokens_left == 0 && entry->tokens >= length[entry->id]) {
                        over[entry->id] = true;
                        entry->state = SCHEDULER_WAITING;
                        done++;
                    } else if (entry->tokens_left == 0) {
                        entry->tokens_left = 1;
                    }
                    break;
                default: entry->state = SCHEDULER_PREFILL;
                }
            }
        }
    }
    entry_count = 0;
}

/* ---- the pace ---- */

struct machine { double decode_us, prefill_us, attend_us; }; /* attend: 1,024 tokens that one looks back on */

/* One step at the full budget; returns what it took. */
static double paced_step(struct step_pace *pace, const struct machine *machine, uint32_t decoding, uint32_t position)
{
    const uint32_t budget = step_pace_budget(pace, decoding, position + 32, 2000);
    assert_true(budget > decoding && budget <= 2000); /* never nothing */
    const uint32_t chunk = budget - decoding < 64 ? budget - decoding : 64;
    const struct step_work work = {decoding, budget - decoding, (uint64_t)(budget - decoding) * (position + chunk / 2)};
    const double us = decoding * machine->decode_us + work.prefilled * machine->prefill_us +
                      (double)work.positions / 1024 * machine->attend_us;
    step_pace_record(pace, &work, (uint64_t)us);
    return budget == decoding + 1 ? 0 : us; /* no step can be shorter */
}

static void a_step_stays_below_its_limit(void **state)
{
    (void)state;
    for (double decode_us = 10; decode_us < 20000; decode_us *= 3)
        for (double prefill_us = 10; prefill_us < 20000; prefill_us *= 3)
            for (double attend = 0.03; attend < 3; attend *= 3) { /* of prefill_us, 1,024 keys */
                const struct machine machine = {decode_us, prefill_us, attend * prefill_us};
                struct step_pace pace;
                double us = 0;
                step_pace_init(&pace, 250);
                for (uint32_t step = 0; step < 300; step++) {
                    const uint32_t decoding = step < 3 || decode_us > 10000 ? 0 : step % 3 * 8;
                    us = paced_step(&pace, &machine, decoding, step * 64);
                    if (us > 250000)
                        fail_msg("step %u: %.0f ms; %g %g %g", step, us / 1000, decode_us, prefill_us, machine.attend_us);
                }
                for (uint32_t step = 0; step < 20; step++) { /* short prompts again, then back to a long one */
                    us = paced_step(&pace, &machine, 0, step * 64 % 256);
                    assert_true(us < 250000);
                }
                if (us < 100000 && step_pace_budget(&pace, 0, 192 + 32, 2000) < 2000)
                    fail_msg("%.0f ms: most of a step is not used; %g %g", us / 1000, prefill_us, attend);
                assert_true(paced_step(&pace, &machine, 0, 16000) < 250000);
            }
}

/* A processor that was away for a while is no reason to crawl, nor is a batch that decodes. */
static void the_pace_recovers(void **state)
{
    (void)state;
    const struct machine machine = {100, 100, 10};
    struct step_pace pace;
    step_pace_init(&pace, 250);
    for (int step = 0; step < 30; step++)
        (void)paced_step(&pace, &machine, 0, 0);
    const uint32_t before = step_pace_budget(&pace, 0, 0, 2000);
    step_pace_record(&pace, &(struct step_work){.prefilled = before}, 20000000);
    assert_in_range(step_pace_budget(&pace, 0, 0, 2000), before / 2 - 1, before / 2 + 1);
    for (int step = 0; step < 5; step++)
        (void)paced_step(&pace, &machine, 0, 0);
    assert_true(step_pace_budget(&pace, 0, 0, 2000) > before * 9 / 10);
    for (int step = 0; step < 100; step++)
        step_pace_record(&pace, &(struct step_work){.decoded = 64}, 240000);
    assert_in_range(step_pace_budget(&pace, 64, 0, 2000), 64 + 200, 64 + 260); /* a tenth of the limit */
}

static void refused_requests_are_told_when_to_return(void **state)
{
    (void)state;
    struct step_pace pace;
    step_pace_init(&pace, 250);
    assert_int_equal(step_pace_refused(&pace, 5), PACE_RETRY_MS_FIRST);
    for (uint64_t now = 1000; now <= 3000; now += 100)
        step_pace_admitted(&pace, now);
    assert_int_equal(step_pace_refused(&pace, 3000), 100); /* one leaves every 100 ms: the third waits for three */
    assert_int_equal(step_pace_refused(&pace, 3000), 200);
    assert_int_equal(step_pace_refused(&pace, 3000), 300);
    assert_int_equal(step_pace_refused(&pace, 3500), 2000); /* it has become slower */
    step_pace_admitted(&pace, 3500);
    assert_in_range(step_pace_refused(&pace, 3500), 101, 300);
    for (int i = 0; i < 10000; i++)
        assert_in_range(step_pace_refused(&pace, 3500), PACE_RETRY_MS_MIN, PACE_RETRY_MS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_comes_first),
        cmocka_unit_test(chunks_end_at_page_borders),
        cmocka_unit_test(ranks), cmocka_unit_test(one_computes_behind_its_copies),
        cmocka_unit_test(memory_suspends_the_lowest),
        cmocka_unit_test(who_comes_and_who_waits),
        cmocka_unit_test(higher_priorities_take_places),
        cmocka_unit_test(idle_work_waits_for_nobody),
        cmocka_unit_test(suspects_come_alone),
        cmocka_unit_test(random_tables_keep_the_rules),
        cmocka_unit_test(every_request_gets_done),
        cmocka_unit_test(a_step_stays_below_its_limit),
        cmocka_unit_test(the_pace_recovers),
        cmocka_unit_test(refused_requests_are_told_when_to_return),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
