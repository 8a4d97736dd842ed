/* worker_lease.c - leases of one worker in both directions: whether it lives, what it has to do, and what it may send.
 *
 *   every lease_ms, and at the end of a turn with grants that are due: worker_lease_send --number, grants--> worker
 *   worker_lease_take <--echo, life, load-- worker
 *
 * Grants wait in order of the calls and are sorted when they go out: a stream once, with its highest total. What the
 * channel does not take waits for the next lease.
 *
 * A lease from the worker with a number that is not new, or an echo of something never sent, is dropped and counted. */
#include <stdlib.h>
#include <string.h>
#include "common/log.h"
#include "router/frame.h"
#include "router/worker_internal.h"

enum {
    GRANT_ROWS_MAX = 20000, /* of one lease: 12 bytes each, 240,000 of WIRE_LEASE_BYTES_MAX */
    GRANTS_DUE = 1 << 16,   /* then they go out at once: 1 MiB */
    GRANTS_MAX = 2 << 16,   /* kept when nothing goes out; further ones come again (router_request.c) */
};
_Static_assert(GRANT_ROWS_MAX * 12 + 4096 <= WIRE_LEASE_BYTES_MAX, "a lease frame");

/* ---- tokens sent and not reported yet ---- */

void worker_sent_add(struct worker *worker, uint64_t tokens)
{
    worker->sent[worker->sent_at].tokens += tokens;
    worker->sent_tokens += tokens;
}

static void sent_empty(struct worker *worker, unsigned slot)
{
    worker->sent_tokens -= worker->sent[slot].tokens;
    worker->sent[slot] = (struct worker_sent){.number = UINT64_MAX};
}

/* A lease of the timer goes out: what was sent before is in its figures when it echoes that. Early leases close no
 * slot, or the slots would run out before an echo comes. */
static void sent_close(struct worker *worker)
{
    worker->sent[worker->sent_at].number = worker->number;
    worker->sent_at = (worker->sent_at + 1) % WORKER_SENT_SLOTS;
    sent_empty(worker, worker->sent_at);
}

static void sent_forget(struct worker *worker, uint64_t echo)
{
    for (unsigned i = 0; i < WORKER_SENT_SLOTS; i++)
        if (worker->sent[i].number <= echo)
            sent_empty(worker, i);
}

static void sent_reset(struct worker *worker)
{
    worker->sent_at = 0;
    for (unsigned i = 0; i < WORKER_SENT_SLOTS; i++)
        sent_empty(worker, i);
}

/* ---- grants ---- */

void worker_grant(struct worker *worker, uint32_t stream, uint64_t tokens_total, bool now)
{
    if (!worker_connected(worker) || !(worker->capabilities & WIRE_CAN_CREDIT) || worker->grant_count >= GRANTS_MAX)
        return;
    if (worker->grant_count == worker->grant_room) {
        unsigned room = worker->grant_room ? 2 * worker->grant_room : 64;
        struct worker_grant *grants = realloc(worker->grants, room * sizeof *grants);
        if (!grants) {
            LOG_ERROR("no memory for a grant to worker %s: its stream stands still", worker->name);
            return;
        }
        worker->grants = grants;
        worker->grant_room = room;
    }
    worker->grants[worker->grant_count++] = (struct worker_grant){.stream = stream, .tokens = tokens_total};
    worker->grant_now = worker->grant_now || now || worker->grant_count >= GRANTS_DUE;
    worker->pool->due = worker->pool->due || worker->grant_now;
}

static int compare_grants(const void *a, const void *b)
{
    const struct worker_grant *x = a, *y = b;
    if (x->stream != y->stream)
        return x->stream < y->stream ? -1 : 1;
    return x->tokens < y->tokens ? -1 : x->tokens > y->tokens;
}

/* A stream once, with its highest total. */
static void sort_grants(struct worker *worker)
{
    unsigned kept = 0;
    if (worker->grant_count == 0)
        return;
    qsort(worker->grants, worker->grant_count, sizeof *worker->grants, compare_grants);
    for (unsigned i = 1; i < worker->grant_count; i++) {
        if (worker->grants[i].stream != worker->grants[kept].stream)
            kept++;
        worker->grants[kept] = worker->grants[i];
    }
    worker->grant_count = kept + 1;
}

static void put_bytes(uint8_t *out, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> 8 * i);
}

/* Did the grants leave? */
static bool send_control_lease(struct worker *worker, const struct worker_grant *grants, unsigned count)
{
    uint8_t *columns = count ? malloc((size_t)count * 12) : NULL;
    bool all = count == 0 || columns;
    if (!all)
        count = 0; /* the lease goes without them */
    for (unsigned i = 0; i < count; i++) {
        put_bytes(columns + 4 * i, grants[i].stream, 4);
        put_bytes(columns + 4 * (size_t)count + 8 * i, grants[i].tokens, 8);
    }
    bool credit = worker->capabilities & WIRE_CAN_CREDIT;
    struct wire_message lease = {
        .kind = WIRE_LEASE,
        .lease = {.session = wire_span_of(worker->pool->session, WIRE_ID_BYTES),
                  .number = ++worker->number,
                  .echo = worker->heard_number,
                  .state = WIRE_LIFE_READY,
                  .credit_streams = wire_span_of(columns, 4 * (size_t)count),
                  .credit_tokens = wire_span_of(columns ? columns + 4 * (size_t)count : NULL, 8 * (size_t)count),
                  .credit_connection_bytes = credit ? worker->tokens_bytes + WORKER_CONNECTION_CREDIT_BYTES : 0}};
    bool sent = frame_send(worker->control, NULL, &lease) == STATUS_OK;
    if (sent)
        worker->tokens_bytes_told = worker->tokens_bytes;
    free(columns);
    return sent && all;
}

static void send_grants_and_lease(struct worker *worker)
{
    unsigned sent = 0;
    bool left;
    sort_grants(worker);
    do {
        unsigned rows = worker->grant_count - sent < GRANT_ROWS_MAX ? worker->grant_count - sent : GRANT_ROWS_MAX;
        left = send_control_lease(worker, worker->grants ? worker->grants + sent : NULL, rows);
        sent += left ? rows : 0;
    } while (left && sent < worker->grant_count);
    worker->grant_count -= sent;
    if (sent && worker->grant_count)
        memmove(worker->grants, worker->grants + sent, worker->grant_count * sizeof *worker->grants);
    worker->grant_now = false; /* what is left goes with the next one of the timer */
}

/* Of the connection: when half of what it may send ahead has come, it is told at once. */
void worker_tokens_received(struct worker *worker, size_t bytes)
{
    worker->tokens_bytes += bytes;
    if (worker->capabilities & WIRE_CAN_CREDIT &&
        worker->tokens_bytes - worker->tokens_bytes_told > WORKER_CONNECTION_CREDIT_BYTES / 2)
        worker->grant_now = worker->pool->due = true;
}

void worker_grants_flush(struct worker *worker)
{
    if (worker->grant_now && worker_connected(worker))
        send_grants_and_lease(worker);
}

/* ---- leases ---- */

void worker_lease_send(struct worker *worker, bool data)
{
    if (data && worker->data_up && worker->welcome_data) {
        struct wire_message lease = {.kind = WIRE_LEASE,
                                     .lease = {.session = wire_span_of(worker->pool->session, WIRE_ID_BYTES),
                                               .number = ++worker->data_number,
                                               .echo = worker->data_heard_number,
                                               .state = WIRE_LIFE_READY}};
        (void)frame_send(worker->data, NULL, &lease);
    } else if (!data && worker->control_up && worker->welcome_control) {
        send_grants_and_lease(worker);
        sent_close(worker);
    }
}

static void take_load(struct worker *worker, const struct wire_load *load)
{
    uint64_t queued = worker_clamp(load->queued_tokens, 0, WORKER_LOAD_MAX);
    worker->load = *load;
    worker->queued_tokens = queued;
    worker->load_tokens =
        worker_clamp(queued + worker_clamp(load->running_tokens, 0, WORKER_LOAD_MAX), 0, WORKER_LOAD_MAX);
    if (load->kv_tokens_max)
        worker->weight = worker_clamp(load->kv_tokens_max, 1, WORKER_LOAD_MAX);
    uint64_t limit_ms = (uint64_t)load->step_median_us * WORKER_STEP_MEDIANS / 1000;
    worker->hung = load->step_age_ms > (limit_ms > WORKER_STEP_MS ? limit_ms : WORKER_STEP_MS);
}

static void judge_overload(struct worker *worker, uint64_t now_ms)
{
    double wait_ms = (double)worker_queued_tokens(worker) * worker->load.token_ns / 1e6;
    if (wait_ms > WORKER_OVERLOAD_MS && worker->overload_since_ms == 0)
        worker->overload_since_ms = now_ms;
    if (wait_ms >= WORKER_OVERLOAD_MS / 2.0)
        worker->busy_ms = now_ms;
    else if (now_ms - worker->busy_ms > WORKER_OVERLOAD_OVER_MS)
        worker->overload_since_ms = 0;
}

static void take_data_lease(struct worker *worker, const struct wire_lease *lease)
{
    worker->data_heard_number = lease->number;
    if (lease->echo > worker->data_echoed) {
        worker->data_echoed = lease->echo;
        worker->data_alive_ms = worker_now_ms(worker);
    }
}

void worker_lease_take(struct worker *worker, bool data, const struct wire_lease *lease)
{
    if (!worker->has_incarnation || lease->session.size != WIRE_ID_BYTES ||
        memcmp(lease->session.data, worker->incarnation, WIRE_ID_BYTES) != 0)
        return; /* of a process that we do not speak to: its WELCOME is on the way */
    if (lease->number <= (data ? worker->data_heard_number : worker->heard_number) ||
        lease->echo > (data ? worker->data_number : worker->number)) {
        worker->leases_dropped++;
        return;
    }
    if (data) {
        take_data_lease(worker, lease);
        return;
    }
    worker->heard_number = lease->number;
    worker->life = lease->state;
    if (lease->state == WIRE_LIFE_READY)
        worker->goaway = false; /* its drain was called off: it says draining from its GOAWAY on */
    if (lease->echo > worker->echoed) {
        sent_forget(worker, lease->echo);
        worker_cancels_arrived(worker, lease->echo);
        worker->echoed = lease->echo;
        worker->alive_ms = worker_now_ms(worker);
        worker->suspect_ms = 0;
    }
    if (lease->has_load) {
        take_load(worker, &lease->load);
        judge_overload(worker, worker_now_ms(worker));
    }
    if (worker->hung)
        worker_down(worker, "its step takes too long");
    worker_maybe_up(worker);
    if (worker->up)
        worker_call_ready(worker);
}

void worker_lease_reset(struct worker *worker, bool data)
{
    if (data) {
        worker->data_number = worker->data_heard_number = worker->data_echoed = 0;
        worker->tokens_bytes = worker->tokens_bytes_told = 0;
        return;
    }
    worker->number = worker->echoed = worker->heard_number = 0;
    worker->grant_count = 0;
    worker->grant_now = false;
    worker_cancels_unsent(worker);
    sent_reset(worker);
}

void worker_load_reset(struct worker *worker)
{
    uint32_t token_ns = worker->load.token_ns;
    worker->load = (struct wire_load){.kv_tokens_max = worker->load.kv_tokens_max, .token_ns = token_ns};
    worker->load_tokens = worker->queued_tokens = worker->overload_since_ms = 0;
    sent_reset(worker);
}

/* ---- what others ask ---- */

uint64_t worker_load_tokens(const struct worker *worker)
{
    return worker_clamp(worker->load_tokens + worker->sent_tokens, 0, WORKER_LOAD_MAX);
}

uint64_t worker_queued_tokens(const struct worker *worker)
{
    return worker_clamp(worker->queued_tokens + worker->sent_tokens, 0, WORKER_LOAD_MAX);
}

uint32_t worker_token_ns(const struct worker *worker)
{
    return worker->load.token_ns;
}

uint64_t worker_overloaded_ms(const struct worker *worker)
{
    return worker->overload_since_ms ? worker_now_ms(worker) - worker->overload_since_ms + 1 : 0;
}
