/* scheduler.c - each entry gets a seat; seats are in order of (priority, running before suspended before waiting,
 * arrival), so everything behind a seat ranks below it. Passes over the seats decide a fate and a number of tokens for
 * each; the plan is written at the end, so that a seat which loses its place after it was given tokens never shows
 * both. */
#include "worker/engine/scheduler.h"
#include <assert.h>
#include <stdlib.h>

#define PAGE_TOKENS 64u /* BACKEND_PAGE_TOKENS */

enum fate { FATE_STAY, FATE_SUSPEND, FATE_DROP, FATE_RESUME, FATE_ADMIT };

struct seat {
    const struct scheduler_entry *entry;
    enum fate fate;
    uint32_t tokens; /* given in this step */
    uint64_t paid;   /* what was taken from the room for them: one alone may get more than there is */
    bool prepaid;    /* memory for all its tokens was taken when it came (back) */
    bool cut;        /* the budget ended its chunk */
};

struct planner {
    const struct scheduler_limits *limits;
    struct seat seats[SCHEDULER_ENTRIES_MAX];
    uint32_t count;
    uint32_t running; /* seats that run after this plan */
    uint32_t budget;  /* tokens left for prefill */
    uint64_t room;    /* device bytes left */
    bool odd_given;
    bool fresh; /* somebody computes a prompt, is about to, or has just done it */
    bool apart; /* a suspect is in memory */
};

static bool in_memory(const struct scheduler_entry *entry)
{
    return entry->state == SCHEDULER_PREFILL || entry->state == SCHEDULER_DECODE || entry->state == SCHEDULER_LOADING;
}

static bool stays(const struct seat *seat)
{
    return seat->fate == FATE_STAY && in_memory(seat->entry);
}

static int state_class(const struct scheduler_entry *entry)
{
    return in_memory(entry) ? 0 : entry->state == SCHEDULER_SUSPENDED ? 1 : 2;
}

static int compare_seats(const void *left, const void *right)
{
    const struct scheduler_entry *a = ((const struct seat *)left)->entry, *b = ((const struct seat *)right)->entry;
    if (a->priority != b->priority)
        return a->priority > b->priority ? -1 : 1;
    if (state_class(a) != state_class(b))
        return state_class(a) - state_class(b);
    if (a->arrival != b->arrival)
        return a->arrival < b->arrival ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

/* Background entries have no seat beside others; those that run are dropped. */
static void take_seats(struct planner *planner, const struct scheduler_entry *entries, uint32_t count)
{
    bool others = false, sorted = true;
    for (uint32_t i = 0; i < count; i++)
        others = others || !entries[i].idle_only;
    for (uint32_t i = 0; i < count; i++) {
        const struct scheduler_entry *entry = &entries[i];
        const bool drop = others && entry->idle_only;
        if (drop && !in_memory(entry))
            continue;
        struct seat *seat = &planner->seats[planner->count++];
        *seat = (struct seat){.entry = entry, .fate = drop ? FATE_DROP : FATE_STAY};
        if (drop)
            planner->room += entry->bytes_held;
        else if (in_memory(entry))
            planner->running++;
        sorted = sorted && (planner->count == 1 || compare_seats(seat - 1, seat) < 0);
    }
    if (!sorted)
        qsort(planner->seats, planner->count, sizeof planner->seats[0], compare_seats);
}

/* ---- memory ---- */

/* The first token pays for the rest of its page. */
static uint64_t bytes_for(const struct scheduler_entry *entry, uint32_t tokens)
{
    const uint32_t first = PAGE_TOKENS - entry->tokens % PAGE_TOKENS;
    if (tokens == 0)
        return 0;
    const uint32_t pages = tokens > first ? (tokens - first + PAGE_TOKENS - 1) / PAGE_TOKENS : 0;
    return entry->bytes_next_token + pages * entry->bytes_per_page;
}

static void pay(struct planner *planner, struct seat *seat, uint64_t bytes)
{
    const uint64_t taken = bytes < planner->room ? bytes : planner->room;
    planner->room -= taken;
    seat->paid += taken;
}

/* What suspending the seat gives back. */
static uint64_t refund(const struct seat *seat)
{
    return seat->entry->bytes_held + seat->paid;
}

static void suspend(struct planner *planner, struct seat *seat)
{
    planner->room += refund(seat);
    if (seat->entry->state == SCHEDULER_PREFILL)
        planner->budget += seat->tokens;
    planner->running--;
    seat->fate = FATE_SUSPEND;
    seat->tokens = 0;
    seat->paid = 0;
}

/* Suspends whoever ranks lowest of those behind `index`. */
static bool suspend_one_behind(struct planner *planner, uint32_t index)
{
    for (uint32_t i = planner->count; i-- > index + 1;)
        if (stays(&planner->seats[i])) {
            suspend(planner, &planner->seats[i]);
            return true;
        }
    return false;
}

static bool make_room(struct planner *planner, uint32_t index, uint64_t bytes)
{
    while (bytes > planner->room)
        if (!suspend_one_behind(planner, index))
            return false;
    return true;
}

/* ---- decode ---- */

static void decode(struct planner *planner)
{
    for (uint32_t i = 0; i < planner->count; i++) {
        struct seat *seat = &planner->seats[i];
        const uint64_t bytes = seat->entry->bytes_next_token;
        if (seat->entry->state != SCHEDULER_DECODE || !stays(seat))
            continue;
        if (!make_room(planner, i, bytes) && planner->running > 1) {
            suspend(planner, seat);
            continue;
        }
        seat->tokens = 1;
        pay(planner, seat, bytes);
        planner->budget -= planner->budget > 0;
    }
}

/* ---- prefill ---- */

static uint32_t chunk_cap(const struct planner *planner, const struct seat *seat)
{
    const uint32_t left = seat->entry->tokens_left, most = planner->limits->chunk_tokens_max;
    return left < most ? left : most;
}

/* At most how many of `tokens` there is memory for. */
static uint32_t fit_memory(struct planner *planner, uint32_t index, uint32_t tokens)
{
    const struct scheduler_entry *entry = planner->seats[index].entry;
    const uint32_t first = PAGE_TOKENS - entry->tokens % PAGE_TOKENS;
    if (!make_room(planner, index, entry->bytes_next_token))
        return planner->running > 1 ? 0
               : tokens < first     ? tokens
                                    : first; /* alone: the engine finds room, or nobody can */
    if (bytes_for(entry, tokens) <= planner->room)
        return tokens;
    const uint64_t pages =
        (planner->room - entry->bytes_next_token) / entry->bytes_per_page; /* per page > 0, or all would fit */
    return first + (uint32_t)pages * PAGE_TOKENS;
}

static void give_chunk(struct planner *planner, uint32_t index)
{
    struct seat *seat = &planner->seats[index];
    const struct scheduler_entry *entry = seat->entry;
    const uint32_t cap = chunk_cap(planner, seat);
    uint32_t tokens = cap < planner->budget ? cap : planner->budget;
    if (tokens == 0)
        return;
    const bool cut = tokens < cap;
    if (!seat->prepaid)
        tokens = fit_memory(planner, index, tokens);
    if (tokens > 0 && tokens < entry->tokens_left) {
        const uint32_t border = (entry->tokens + tokens) / PAGE_TOKENS * PAGE_TOKENS;
        if (border > entry->tokens)
            tokens = border - entry->tokens;
        else if (cut && planner->odd_given)
            return;
        else
            planner->odd_given = planner->odd_given || cut;
    }
    seat->tokens = tokens;
    seat->cut = cut;
    planner->budget -= tokens;
    if (!seat->prepaid)
        pay(planner, seat, bytes_for(entry, tokens));
}

/* What page borders left over goes to the first whose chunk the budget cut. */
static void give_odd_rest(struct planner *planner)
{
    for (uint32_t i = 0; i < planner->count && planner->budget > 0 && !planner->odd_given; i++) {
        struct seat *seat = &planner->seats[i];
        const struct scheduler_entry *entry = seat->entry;
        const uint32_t more = chunk_cap(planner, seat) - seat->tokens;
        if (!seat->cut || seat->tokens == 0)
            continue;
        const uint32_t tokens = seat->tokens + (more < planner->budget ? more : planner->budget);
        const uint64_t bytes = seat->prepaid ? 0 : bytes_for(entry, tokens) - bytes_for(entry, seat->tokens);
        if (bytes > planner->room)
            continue;
        pay(planner, seat, bytes);
        planner->budget -= tokens - seat->tokens;
        seat->tokens = tokens;
        planner->odd_given = true;
    }
}

/* ---- those that come, or come back ---- */

static bool fits(const struct planner *planner, const struct scheduler_entry *entry, uint32_t running, uint64_t room)
{
    const uint64_t reserve = planner->limits->bytes_reserve;
    if (running >= planner->limits->sequences_max)
        return false;
    return running == 0 || (room >= reserve && entry->bytes_total <= room - reserve);
}

/* A place for seat `index`, if need be that of running ones of strictly lower priority; nobody is suspended for
 * nothing. */
static bool make_place(struct planner *planner, uint32_t index)
{
    const struct scheduler_entry *entry = planner->seats[index].entry;
    uint32_t running = planner->running, victims = 0;
    uint64_t room = planner->room;
    for (uint32_t i = planner->count; !fits(planner, entry, running, room);) {
        while (i-- > index + 1 && !(stays(&planner->seats[i]) && planner->seats[i].entry->priority < entry->priority))
            ;
        if (i == index)
            return false;
        room += refund(&planner->seats[i]);
        running--;
        victims++;
    }
    while (victims-- > 0)
        (void)suspend_one_behind(planner, index);
    return true;
}

/* A suspect computes its prompt alone. */
static bool company_allows(const struct planner *planner, const struct scheduler_entry *entry)
{
    return !planner->apart && !(entry->apart && planner->fresh);
}

static void note_company(struct planner *planner, const struct scheduler_entry *entry)
{
    planner->fresh = planner->fresh || entry->fresh || entry->state != SCHEDULER_DECODE;
    planner->apart = planner->apart || entry->apart;
}

static bool bring(struct planner *planner, uint32_t index)
{
    struct seat *seat = &planner->seats[index];
    if (!company_allows(planner, seat->entry) || !make_place(planner, index))
        return false;
    note_company(planner, seat->entry);
    seat->fate = seat->entry->state == SCHEDULER_SUSPENDED ? FATE_RESUME : FATE_ADMIT;
    seat->prepaid = true;
    planner->running++;
    pay(planner, seat, seat->entry->bytes_total);
    give_chunk(planner, index);
    return true;
}

static void prefill(struct planner *planner)
{
    bool blocked = false;
    for (uint32_t i = 0; i < planner->count; i++)
        if (stays(&planner->seats[i]))
            note_company(planner, planner->seats[i].entry);
    for (uint32_t i = 0; i < planner->count; i++) {
        const struct seat *seat = &planner->seats[i];
        if (seat->entry->state == SCHEDULER_PREFILL && stays(seat))
            give_chunk(planner, i);
        else if (!in_memory(seat->entry) && !blocked)
            blocked = !bring(planner, i);
    }
    give_odd_rest(planner);
}

/* Where everybody waits for copies: the first computes behind its own. */
static void follow(struct planner *planner)
{
    for (uint32_t i = 0; i < planner->count; i++)
        if (planner->seats[i].tokens > 0)
            return;
    for (uint32_t i = 0; i < planner->count; i++) {
        const struct seat *seat = &planner->seats[i];
        if (seat->entry->state != SCHEDULER_LOADING || !seat->entry->follows || !stays(seat))
            continue;
        give_chunk(planner, i);
        return;
    }
}

/* ---- the plan ---- */

static void add(struct scheduler_plan *plan, enum scheduler_action_kind kind, uint32_t id, uint32_t tokens)
{
    assert(plan->count < sizeof plan->actions / sizeof plan->actions[0]);
    plan->actions[plan->count++] = (struct scheduler_action){.kind = kind, .id = id, .tokens = tokens};
    plan->tokens += tokens;
}

static void add_fate(struct scheduler_plan *plan, const struct planner *planner, enum fate fate,
                     enum scheduler_action_kind kind)
{
    for (uint32_t i = 0; i < planner->count; i++)
        if (planner->seats[i].fate == fate)
            add(plan, kind, planner->seats[i].entry->id, 0);
}

void scheduler_plan(const struct scheduler_entry *entries, uint32_t count, const struct scheduler_limits *limits,
                    struct scheduler_plan *plan)
{
    struct planner planner;
    assert(count <= SCHEDULER_ENTRIES_MAX && limits->tokens_budget > 0 && limits->chunk_tokens_max > 0 &&
           limits->sequences_max > 0);
    planner.limits = limits;
    planner.count = planner.running = 0;
    planner.budget = limits->tokens_budget;
    planner.room = limits->bytes_room;
    planner.odd_given = planner.fresh = planner.apart = false;
    take_seats(&planner, entries, count);
    decode(&planner);
    prefill(&planner);
    follow(&planner);
    plan->count = plan->tokens = 0;
    add_fate(plan, &planner, FATE_SUSPEND, SCHEDULER_SUSPEND);
    add_fate(plan, &planner, FATE_DROP, SCHEDULER_DROP);
    add_fate(plan, &planner, FATE_RESUME, SCHEDULER_RESUME);
    add_fate(plan, &planner, FATE_ADMIT, SCHEDULER_ADMIT);
    for (uint32_t i = 0; i < planner.count; i++)
        if (planner.seats[i].tokens > 0)
            add(plan, SCHEDULER_RUN, planner.seats[i].entry->id, planner.seats[i].tokens);
}

void scheduler_plan_print(const struct scheduler_plan *plan, FILE *out)
{
    static const char *const words[] = {"run", "admit", "resume", "suspend", "drop"};
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct scheduler_action *action = &plan->actions[i];
        if (action->kind == SCHEDULER_RUN)
            fprintf(out, "%s %u %u\n", words[action->kind], action->id, action->tokens);
        else
            fprintf(out, "%s %u\n", words[action->kind], action->id);
    }
}
