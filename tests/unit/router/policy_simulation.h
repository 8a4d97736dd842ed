/* policy_simulation.h - a closed loop over the policy alone: conversations that think and take turns, workers that
 * compute prompts one after the other, routers' knowledge as old as leases make it. Everything that the policy is told
 * follows the rules of worker_lease.c and router_route.c; nothing else of the router runs. A function of its settings
 * and seed. */
#ifndef ROOST_TESTS_POLICY_SIMULATION_H
#define ROOST_TESTS_POLICY_SIMULATION_H
#include <stdbool.h>
#include <stdint.h>

#define SIMULATION_WORKERS_MAX       16
#define SIMULATION_CONVERSATIONS_MAX 2048

struct simulation {
    uint64_t seed;
    unsigned workers, conversations;
    uint32_t token_ns[SIMULATION_WORKERS_MAX]; /* of a computed prompt token; weight is the inverse */
    uint64_t late_ms[SIMULATION_WORKERS_MAX];  /* it comes up then */
    uint64_t think_ms;                         /* mean time between the end of a turn and the next one */
    uint32_t turn_tokens;                      /* mean of what a turn adds, with its reply */
    uint32_t context_tokens;                   /* a conversation ends there, and a new one begins */
    unsigned hot; /* of the conversations, the first few: they think hot_factor times less */
    unsigned hot_factor;
    bool hot_together;     /* those begin at one worker */
    uint64_t hot_until_ms; /* afterwards they are as the others; 0: to the end */
    bool stay;             /* nobody may leave a worker by choice: to compare */
    uint64_t run_ms;
};

struct simulation_result {
    uint64_t turns, home;                /* of turns after the first: run where the record said before */
    uint64_t overload, moved, new_turns; /* by reason */
    uint64_t follow_ups;                 /* turns after the first */
    uint64_t computed, cached;           /* tokens */
    uint64_t settle_ms_min; /* shortest time between two moves by choice of one conversation; UINT64_MAX: none twice */
    double max_over_mean;   /* computed time per worker */
    double wait_ms_p50, wait_ms_p99;                     /* from a turn's arrival to the end of its prompt */
    uint64_t late_turns_first_s[SIMULATION_WORKERS_MAX]; /* first turns that a worker got in its first second */
};

void simulate(const struct simulation *settings, struct simulation_result *out);

#endif
