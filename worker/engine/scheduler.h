/* scheduler.h - what the next step does, as data. A pure function of a table: no clock, no pointers into the engine, so that a plan can be
 * printed, replayed and tested. The engine fills the table, asks for a plan, carries it out.
 *
 * Policy, in this order:
 *   1. every sequence that decodes gets its one token (decode is never starved), highest priority first, as long as memory allows; if it
 *      does not, the lowest-ranked running sequence is preempted (suspended) until it does. Rank: priority, then arrival;
 *   2. what is left of the token budget goes to prefill, by rank: those that run already first within a priority; a chunk ends at a page
 *      border where it can. At most one sequence a step gets the odd rest;
 *   3. suspended sequences come back before anything waiting of the same priority is admitted;
 *   4. waiting ones are admitted by rank while sequences_max and memory allow (their prompt's need, less what is cached, plus
 *      reserve_bytes for what runs already). A waiting one of higher priority preempts running ones of strictly lower priority;
 *   5. background work (idle_only) runs only in a step without any other, and is dropped when other work comes;
 *   6. a suspect (apart) comes, or comes back, only when nobody in memory is in prefill, loading or fresh, and nobody comes with it; as
 *      long as it is in memory as one, nobody else comes or comes back. What decodes goes on. If a step kills the process, it is known
 *      who did it.
 * Memory: what a waiting or suspended sequence needs is counted whole, cached pages too: those are part of the room until somebody uses them.
 * A sequence that cannot get memory for one token preempts whoever ranks below it; if nobody does, it goes (decode) or waits (prefill).
 * If the first suspended or waiting one does not fit, or has to wait to be alone, nothing behind it comes (large prompts and suspects are
 * not overtaken for ever). Priorities are strict:
 * as long as higher ones keep all places or memory, lower ones wait until their deadline. Within a priority the first to arrive prefills first.
 * A sequence that is loading (copies under way) takes no tokens, but where nobody else would take any: then the first by rank that can computes
 * behind its copies (follows), which nobody waits for. The budget is in tokens; the engine derives it from the measured time per
 * token so that a step stays under its limit; decode comes before it and is not
 * limited by it (the engine makes it at least the number that decode, plus one). Progress: when nothing else runs the first by rank always gets at least one token. */
#ifndef ROOST_WORKER_ENGINE_SCHEDULER_H
#define ROOST_WORKER_ENGINE_SCHEDULER_H
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define SCHEDULER_SEQUENCES_MAX 1024u    /* that run at a time */
#define SCHEDULER_WAITING_MAX 16u        /* waiting requests that a table shows: the first by rank */
#define SCHEDULER_ENTRIES_MAX (2 * SCHEDULER_SEQUENCES_MAX + 64)   /* as many suspended as run, choices not begun, waiting */

enum scheduler_state { SCHEDULER_WAITING, SCHEDULER_PREFILL, SCHEDULER_DECODE, SCHEDULER_LOADING, SCHEDULER_SUSPENDED };

struct scheduler_entry {             /* one sequence: a choice of a request, or a waiting request */
    uint32_t id;                     /* the engine's index; names it in the plan */
    enum scheduler_state state;
    int32_t priority;                /* higher first */
    uint64_t arrival;                /* lower first */
    bool idle_only;
    bool follows;                    /* LOADING: it can compute while its copies are under way */
    bool fresh;                      /* nothing of its reply is released here yet: it would share the blame */
    bool apart;                      /* fresh, and a worker was lost with it before; never with idle_only */
    uint32_t tokens_left;            /* PREFILL, LOADING, SUSPENDED: known tokens still to compute; WAITING: of the prompt, less what is cached */
    uint32_t tokens;                 /* counted so far, or cached (a chunk aims to end at a multiple of 64) */
    uint64_t bytes_held;             /* device bytes that suspending it would free */
    uint64_t bytes_next_token;       /* PREFILL, LOADING, DECODE: device bytes its next token needs (0 inside a page) */
    uint64_t bytes_total;            /* WAITING, SUSPENDED: device bytes it needs to run to the end of the tokens it knows */
    uint64_t bytes_per_page;         /* PREFILL, LOADING: device bytes for each further block of 64 */
};

struct scheduler_limits {
    uint32_t tokens_budget;          /* of one step, at least 1 */
    uint32_t chunk_tokens_max;       /* of one sequence in one step */
    uint32_t sequences_max;          /* that run (prefill, decode, loading) */
    uint64_t bytes_room;             /* kv_cache_room */
    uint64_t bytes_reserve;          /* kept free at admission and return for what runs already */
};

enum scheduler_action_kind { SCHEDULER_RUN, SCHEDULER_ADMIT, SCHEDULER_RESUME, SCHEDULER_SUSPEND, SCHEDULER_DROP };

struct scheduler_action {
    enum scheduler_action_kind kind;
    uint32_t id;
    uint32_t tokens;                 /* RUN: how many */
};

struct scheduler_plan {              /* in the order to be carried out: SUSPEND and DROP, then RESUME and ADMIT, then RUN */
    struct scheduler_action actions[2 * SCHEDULER_ENTRIES_MAX];
    uint32_t count;
    uint32_t tokens;                 /* sum over RUN */
};

/* At most SCHEDULER_ENTRIES_MAX entries, in any order; of waiting requests the engine passes the first by rank. */
void scheduler_plan(const struct scheduler_entry *entries, uint32_t count, const struct scheduler_limits *limits,
                    struct scheduler_plan *plan);

/* One line an action, for logs and tests: "run 3 64", "admit 7", "suspend 2". */
void scheduler_plan_print(const struct scheduler_plan *plan, FILE *out);

#endif
