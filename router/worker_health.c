/* worker_health.c - what is known of a worker beyond its links: a breaker that its faults open, the ramp of one that
 * came up late, and all of it for people.
 *
 *   CLOSED --3 faults within 30 s--> OPEN --1 s, doubled each time up to 30 s--> HALF_OPEN: one request at a time
 *      ^                              ^                                            |
 *      |                              `------- its fault, or the worker is lost ---+
 *      `--------------------------------- its success -----------------------------'
 *
 * A fault is a loss (two if it had come up less than 5 s before: a crash loop) or INTERNAL. A worker that leaves after
 * it said so has no fault. The answer to that one request closes the breaker: others that were there before tell
 * nothing of now. The doubling is forgotten after a minute without opening. */
#include <string.h>
#include "common/log.h"
#include "router/worker_internal.h"

enum {
    FAULT_WINDOW_MS = 30000,
    CRASH_LOOP_MS = 5000, /* lost so soon after it came up: two faults, so the second such crash opens the breaker */
    OPEN_MIN_MS = 1000,
    OPEN_MAX_MS = 30000,
    OPEN_FORGET_MS = 60000,
};

const char *worker_breaker_name(enum worker_breaker state)
{
    static const char *const names[] = {"closed", "open", "half-open"};
    return (unsigned)state < sizeof names / sizeof names[0] ? names[state] : "closed";
}

/* ---- the breaker ---- */

static void breaker_open(struct worker *worker, uint64_t now_ms, const char *why)
{
    if (worker->breaker == WORKER_BREAKER_CLOSED && now_ms - worker->closed_ms > OPEN_FORGET_MS)
        worker->open_ms = 0;
    worker->open_ms =
        worker->open_ms ? (uint32_t)worker_clamp(2 * worker->open_ms, OPEN_MIN_MS, OPEN_MAX_MS) : OPEN_MIN_MS;
    worker->breaker = WORKER_BREAKER_OPEN;
    worker->open_until_ms = now_ms + worker->open_ms;
    LOG_WARN("worker %s fails again and again (%s): nothing goes there for %u ms", worker->name, why, worker->open_ms);
}

static bool is_probe(const struct worker *worker, uint32_t stream)
{
    return worker->breaker == WORKER_BREAKER_HALF_OPEN && worker->probing && worker->probe_stream == stream;
}

void worker_health_sent(struct worker *worker, uint32_t stream)
{
    if (worker->breaker != WORKER_BREAKER_HALF_OPEN || worker->probing)
        return;
    worker->probing = true;
    worker->probe_stream = stream;
}

void worker_health_closed(struct worker *worker, uint32_t stream)
{
    if (worker->probe_stream == stream)
        worker->probing = false;
}

/* decides: a half-open one is judged by these. */
static void take_faults(struct worker *worker, uint64_t now_ms, unsigned count, bool decides, const char *why)
{
    worker->faults += count;
    worker->pool->due = true;
    for (unsigned i = 0; i < count; i++) {
        worker->fault_ms[worker->fault_at] = now_ms;
        worker->fault_at = (worker->fault_at + 1) % WORKER_BREAKER_FAULTS;
    }
    uint64_t third_ms =
        worker->fault_ms[worker->fault_at]; /* the oldest of the last three; 0: there were not so many */
    bool many = third_ms > 0 && now_ms - third_ms <= FAULT_WINDOW_MS;
    if (worker->breaker == WORKER_BREAKER_HALF_OPEN ? decides : worker->breaker == WORKER_BREAKER_CLOSED && many)
        breaker_open(worker, now_ms, why);
}

void worker_fault(struct worker *worker, uint32_t stream, const char *why)
{
    take_faults(worker, worker_now_ms(worker), 1, is_probe(worker, stream), why);
}

void worker_success(struct worker *worker, uint32_t stream)
{
    if (!is_probe(worker, stream))
        return;
    worker->breaker = WORKER_BREAKER_CLOSED;
    worker->closed_ms = worker_now_ms(worker);
    memset(worker->fault_ms, 0, sizeof worker->fault_ms);
    LOG_INFO("worker %s answers again", worker->name);
    worker_call_ready(worker);
}

void worker_health_up(struct worker *worker, uint64_t now_ms)
{
    if (worker->born_ms == 0)
        worker->born_ms = now_ms;
}

void worker_health_lost(struct worker *worker, uint64_t now_ms, bool leaving)
{
    worker->losses++;
    if (worker->pool->last_resort == worker)
        worker->pool->last_resort = NULL;
    if (!leaving)
        take_faults(worker, now_ms, now_ms - worker->since_ms < CRASH_LOOP_MS ? 2 : 1, true, "it was lost");
}

static bool breaker_lets(const struct worker *worker)
{
    return worker->breaker == WORKER_BREAKER_CLOSED ||
           (worker->breaker == WORKER_BREAKER_HALF_OPEN && !worker->probing);
}

static uint64_t last_fault_ms(const struct worker *worker)
{
    return worker->fault_ms[(worker->fault_at + WORKER_BREAKER_FAULTS - 1) % WORKER_BREAKER_FAULTS];
}

void worker_health_turn(struct worker_pool *pool)
{
    uint64_t now = loop_now_ms(pool->loop);
    bool somebody = false;
    struct worker *last_resort = NULL;
    pool->oldest_born_ms = 0;
    for (unsigned i = 0; i < pool->count; i++) {
        struct worker *worker = pool->workers[i];
        if (worker->breaker == WORKER_BREAKER_OPEN && now >= worker->open_until_ms) {
            worker->breaker = WORKER_BREAKER_HALF_OPEN;
            worker->probing = false;
            worker_call_ready(worker);
        }
        if (!worker->up)
            continue;
        if (pool->oldest_born_ms == 0 || worker->born_ms < pool->oldest_born_ms)
            pool->oldest_born_ms = worker->born_ms;
        bool could = worker_could_work(worker);
        somebody = somebody || (could && breaker_lets(worker));
        if (could && (!last_resort || last_fault_ms(worker) < last_fault_ms(last_resort)))
            last_resort = worker;
    }
    struct worker *before = pool->last_resort;
    pool->last_resort = somebody ? NULL : last_resort;
    if (pool->last_resort && pool->last_resort != before)
        worker_call_ready(pool->last_resort);
}

/* ---- what others ask ---- */

bool worker_ready(const struct worker *worker)
{
    return worker_could_work(worker) && (breaker_lets(worker) || worker->pool->last_resort == worker);
}

static double ramp_at(uint64_t age_ms)
{
    return age_ms >= WORKER_RAMP_MS ? 1.0
                                    : WORKER_RAMP_MAX - (double)(WORKER_RAMP_MAX - 1) * (double)age_ms / WORKER_RAMP_MS;
}

/* Against the oldest: those that started together, or that this router met together, share alike. Milliseconds between
 * them would send each new conversation to the first, as long as all are idle. */
double worker_ramp(const struct worker *worker)
{
    uint64_t now = worker_now_ms(worker), oldest = worker->pool->oldest_born_ms;
    if (!worker->up || oldest == 0 || worker->born_ms <= oldest + WORKER_RAMP_TOGETHER_MS)
        return 1.0;
    return ramp_at(now - worker->born_ms) / ramp_at(now - oldest);
}

void worker_info(const struct worker *worker, struct worker_info *out)
{
    *out = (struct worker_info){
        .name = worker->name,
        .endpoint = worker->endpoint,
        .incarnation = worker->has_incarnation ? worker->incarnation : NULL,
        .numerics_id = worker_numerics_id(worker),
        .life = worker->life,
        .up = worker->up,
        .ready = worker_ready(worker),
        .suspect = worker_suspect(worker, NULL),
        .draining = worker_draining(worker),
        .drain = worker_draining(worker) ? worker->drain : (struct worker_drain){0},
        .configured = worker->configured,
        .listed = worker->listed,
        .breaker = worker->breaker,
        .weight = worker->weight,
        .load_tokens = worker_load_tokens(worker),
        .queued_tokens = worker_queued_tokens(worker),
        .load = worker->load,
        .overloaded_ms = worker_overloaded_ms(worker),
        .ramp = worker_ramp(worker),
        .streams = worker->streams,
        .faults = worker->faults,
        .losses = worker->losses,
        .relinks = worker->relinks,
        .leases_dropped = worker->leases_dropped,
        .up_ms = worker->up ? worker_now_ms(worker) - worker->since_ms + 1 : 0,
        .tokens_bytes = worker->tokens_bytes,
    };
}
