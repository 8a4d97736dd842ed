#include "policy_simulation.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "router/policy.h"

enum {
    TICK_MS = 5,
    LEASE_MS = 200,
    QUEUE_MAX = 4096,
    OVERLOAD_MS = 500, /* WORKER_OVERLOAD_MS */
    OVERLOAD_OVER_MS = 5000,
    RAMP_MS = 30000,
    RAMP_MAX = 4,
    WAITS_MAX = 1 << 18,
};

struct turn {
    unsigned conversation;
    uint64_t arrived_ms, left; /* tokens to compute */
    uint64_t prompt;
};

struct machine {
    struct turn queue[QUEUE_MAX];
    unsigned first, count;
    double credit_ns; /* computing time not used yet */
    uint64_t computed, queued_tokens;
    /* as the router knows it */
    uint64_t told_queued, sent_tokens, overload_since_ms, busy_ms;
    uint64_t cached[SIMULATION_CONVERSATIONS_MAX];
    bool up;
};

struct conversation {
    uint64_t key, next_ms, tokens, generation;
    int owner; /* -1: no record */
    uint64_t record_tokens, changed_ms, moved_ms;
    bool waiting, has_moved;
};

struct world {
    const struct simulation *settings;
    struct simulation_result *out;
    struct machine *machines;
    struct conversation *conversations;
    struct policy_worker table[SIMULATION_WORKERS_MAX];
    double budget;
    uint64_t random, now_ms;
    double *waits;
    unsigned wait_count;
};

static uint64_t draw(struct world *world)
{
    return world->random = hash_mix(world->random, 0x5eed);
}

static double exponential(struct world *world, double mean)
{
    double u = ((double)(draw(world) >> 11) + 0.5) * 0x1p-53;
    return -mean * log(u);
}

static bool is_hot(const struct world *world, unsigned conversation)
{
    return conversation < world->settings->hot &&
           (world->settings->hot_until_ms == 0 || world->now_ms < world->settings->hot_until_ms);
}

static void think(struct world *world, unsigned index)
{
    double mean = (double)world->settings->think_ms;
    if (is_hot(world, index))
        mean /= world->settings->hot_factor;
    world->conversations[index].next_ms = world->now_ms + (uint64_t)exponential(world, mean) + 1;
}

static double ramp_at(uint64_t age_ms)
{
    return age_ms >= RAMP_MS ? 1 : RAMP_MAX - (double)(RAMP_MAX - 1) * (double)age_ms / RAMP_MS;
}

static void fill_table(struct world *world)
{
    const struct simulation *s = world->settings;
    for (unsigned i = 0; i < s->workers; i++) {
        const struct machine *machine = &world->machines[i];
        char name[16];
        int size = snprintf(name, sizeof name, "worker-%u", i);
        uint64_t queued = machine->told_queued + machine->sent_tokens;
        world->table[i] = (struct policy_worker){
            .name_hash = hash_fast(name, (size_t)size, 0),
            .weight = UINT64_C(100000000000) / s->token_ns[i],
            .load_tokens = queued,
            .queued_tokens = queued,
            .overloaded_ms = machine->overload_since_ms ? world->now_ms - machine->overload_since_ms + 1 : 0,
            .token_ns = s->token_ns[i],
            .ramp = machine->up ? (float)(ramp_at(world->now_ms - s->late_ms[i]) / ramp_at(world->now_ms)) : 1,
            .ready = machine->up};
    }
}

static void leases(struct world *world)
{
    for (unsigned i = 0; i < world->settings->workers; i++) {
        struct machine *machine = &world->machines[i];
        machine->up = world->now_ms >= world->settings->late_ms[i];
        machine->told_queued = machine->queued_tokens;
        machine->sent_tokens = 0;
        double wait_ms = (double)machine->told_queued * world->settings->token_ns[i] / 1e6;
        if (wait_ms > OVERLOAD_MS && machine->overload_since_ms == 0)
            machine->overload_since_ms = world->now_ms;
        if (wait_ms >= (double)OVERLOAD_MS / 2)
            machine->busy_ms = world->now_ms;
        else if (world->now_ms - machine->busy_ms > OVERLOAD_OVER_MS)
            machine->overload_since_ms = 0;
    }
}

static void count_choice(struct world *world, struct conversation *c, const struct policy_choice *choice, bool first)
{
    struct simulation_result *out = world->out;
    out->turns++;
    if (first)
        out->new_turns++;
    else
        out->follow_ups++, out->home += choice->worker == c->owner;
    if (first && world->now_ms < world->settings->late_ms[choice->worker] + 1000)
        out->late_turns_first_s[choice->worker]++;
    out->overload += choice->reason == POLICY_OVERLOAD;
    out->moved += choice->reason == POLICY_MOVED;
    world->budget -= choice->by_choice;
    if (choice->reason == POLICY_MOVED) {
        if (c->has_moved && world->now_ms - c->moved_ms < out->settle_ms_min)
            out->settle_ms_min = world->now_ms - c->moved_ms;
        c->has_moved = true;
        c->moved_ms = world->now_ms;
    }
}

static void take_turn(struct world *world, unsigned index)
{
    const struct simulation *s = world->settings;
    struct conversation *c = &world->conversations[index];
    uint64_t prompt = c->tokens + (uint64_t)exponential(world, s->turn_tokens) + 16;
    bool first = c->owner < 0;
    int owner = c->owner;
    world->budget = world->budget + 0.05 > 20 ? 20 : world->budget + 0.05;
    fill_table(world);
    struct policy_table table = {world->table, s->workers};
    struct policy_query query = {.conversation = true,
                                 .key = hash_mix(c->key, c->generation),
                                 .record = first ? POLICY_RECORD_UNKNOWN : POLICY_RECORD_OTHER,
                                 .owner = c->owner,
                                 .may_take_over = true,
                                 .may_choose = !s->stay && world->budget >= 1,
                                 .new_choices = 3,
                                 .prompt_tokens = prompt,
                                 .cached_tokens = c->record_tokens,
                                 .record_age_ms = world->now_ms - c->changed_ms};
    struct policy_choice choice = policy_choose(&table, &query);
    if (first && s->hot_together && index < s->hot && c->generation == 0)
        choice = (struct policy_choice){.worker = 0, .reason = POLICY_NEW};
    count_choice(world, c, &choice, first);
    if (first || choice.take_over)
        c->owner = choice.worker, c->changed_ms = world->now_ms;
    struct machine *machine = &world->machines[choice.worker];
    uint64_t cached = machine->cached[index] < prompt ? machine->cached[index] : prompt;
    if (machine->count == QUEUE_MAX)
        abort(); /* the settings ask for more than can ever be computed */
    machine->queue[(machine->first + machine->count++) % QUEUE_MAX] = (struct turn){
        .conversation = index, .arrived_ms = world->now_ms, .left = prompt - cached + 1, .prompt = prompt};
    machine->queued_tokens += prompt - cached + 1;
    uint64_t known = !first && choice.worker == owner && c->record_tokens < prompt ? c->record_tokens : 0;
    machine->sent_tokens += prompt - known; /* as request_tokens_at */
    world->out->cached += cached;
    world->out->computed += prompt - cached;
    c->waiting = true;
}

static void finish_turn(struct world *world, unsigned worker, const struct turn *turn)
{
    struct conversation *c = &world->conversations[turn->conversation];
    struct machine *machine = &world->machines[worker];
    if (world->wait_count < WAITS_MAX)
        world->waits[world->wait_count++] = (double)(world->now_ms - turn->arrived_ms);
    machine->cached[turn->conversation] = turn->prompt;
    if (c->owner == (int)worker)
        c->record_tokens = turn->prompt;
    c->tokens = turn->prompt;
    c->waiting = false;
    if (c->tokens > world->settings->context_tokens) { /* another one begins */
        for (unsigned i = 0; i < world->settings->workers; i++)
            world->machines[i].cached[turn->conversation] = 0;
        c->generation++;
        c->owner = -1;
        c->tokens = c->record_tokens = 0;
        c->has_moved = false;
    }
    think(world, turn->conversation);
}

static void compute(struct world *world, unsigned worker)
{
    struct machine *machine = &world->machines[worker];
    machine->credit_ns = machine->count ? machine->credit_ns + TICK_MS * 1e6 : 0;
    while (machine->count > 0) {
        struct turn *turn = &machine->queue[machine->first];
        uint64_t can = (uint64_t)(machine->credit_ns / world->settings->token_ns[worker]);
        uint64_t done = can < turn->left ? can : turn->left;
        if (done == 0)
            return;
        turn->left -= done;
        machine->queued_tokens -= done;
        machine->computed += done;
        machine->credit_ns -= (double)done * world->settings->token_ns[worker];
        if (turn->left > 0)
            return;
        struct turn ended = *turn;
        machine->first = (machine->first + 1) % QUEUE_MAX;
        machine->count--;
        finish_turn(world, worker, &ended);
    }
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void sum_up(struct world *world)
{
    const struct simulation *s = world->settings;
    double max = 0, sum = 0;
    for (unsigned i = 0; i < s->workers; i++) {
        double busy = (double)world->machines[i].computed * s->token_ns[i];
        max = busy > max ? busy : max;
        sum += busy;
    }
    world->out->max_over_mean = sum > 0 ? max / (sum / s->workers) : 1;
    qsort(world->waits, world->wait_count, sizeof *world->waits, compare_doubles);
    if (world->wait_count > 0) {
        world->out->wait_ms_p50 = world->waits[world->wait_count / 2];
        world->out->wait_ms_p99 = world->waits[world->wait_count * 99 / 100];
    }
}

void simulate(const struct simulation *settings, struct simulation_result *out)
{
    struct world world = {.settings = settings, .out = out, .random = settings->seed};
    memset(out, 0, sizeof *out);
    out->settle_ms_min = UINT64_MAX;
    world.machines = calloc(settings->workers, sizeof *world.machines);
    world.conversations = calloc(settings->conversations, sizeof *world.conversations);
    world.waits = calloc(WAITS_MAX, sizeof *world.waits);
    if (!world.machines || !world.conversations || !world.waits)
        abort();
    for (unsigned i = 0; i < settings->conversations; i++) {
        world.conversations[i] = (struct conversation){.key = draw(&world), .owner = -1};
        think(&world, i);
    }
    for (; world.now_ms < settings->run_ms; world.now_ms += TICK_MS) {
        if (world.now_ms % LEASE_MS == 0)
            leases(&world);
        for (unsigned i = 0; i < settings->conversations; i++)
            if (!world.conversations[i].waiting && world.now_ms >= world.conversations[i].next_ms)
                take_turn(&world, i);
        for (unsigned i = 0; i < settings->workers; i++)
            compute(&world, i);
    }
    sum_up(&world);
    free(world.machines);
    free(world.conversations);
    free(world.waits);
}
