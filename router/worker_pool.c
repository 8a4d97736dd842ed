/* worker_pool.c - the list of workers, from the settings and the directory; time and the end of a turn for all of them.
 * See worker_pool.h for who does what. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/log.h"
#include "router/worker_internal.h"

enum { LOOK_MS = 5 }; /* 1,024 workers take some 20 us: 0.4% of a core, and not at every turn */

bool worker_pool_may_log(struct worker_pool *pool)
{
    uint64_t now = loop_now_ms(pool->loop);
    if (pool->complained_ms && now - pool->complained_ms < 1000)
        return false;
    pool->complained_ms = now;
    return true;
}

void worker_call_ready(struct worker *worker)
{
    worker->pool->events.on_ready(worker->pool->events.user, worker);
}

static void set_name(struct worker *worker, const void *name, size_t size)
{
    memcpy(worker->name, name, size);
    worker->name[size] = 0;
    worker->name_hash = hash_fast(name, size, 0);
}

bool worker_take_name(struct worker *worker, struct wire_span name)
{
    struct worker_pool *pool = worker->pool;
    for (unsigned i = 0; i < pool->count; i++) {
        const struct worker *other = pool->workers[i];
        if (other != worker && other->up && wire_span_equal(wire_span_str(other->name), name))
            return false;
    }
    set_name(worker, name.data, name.size);
    return true;
}

static void on_lease_timer(void *user)
{
    struct worker_pool *pool = user;
    for (unsigned i = 0; i < pool->count; i++) {
        worker_lease_send(pool->workers[i], false);
        worker_lease_send(pool->workers[i], true);
    }
}

/* ---- members ---- */

static enum status add_worker(struct worker_pool *pool, const char *endpoint, struct worker **out)
{
    if (pool->count >= WORKER_POOL_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%d workers are known already", WORKER_POOL_MAX);
    struct worker *worker = calloc(1, sizeof *worker);
    if (!worker)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a worker");
    worker->pool = pool;
    worker->weight = 1;
    worker_load_reset(worker);
    worker->since_ms = loop_now_ms(pool->loop);
    snprintf(worker->endpoint, sizeof worker->endpoint, "%s", endpoint);
    enum status st = worker_connect(worker);
    if (st != STATUS_OK) {
        free(worker);
        return st;
    }
    pool->workers[pool->count++] = worker;
    *out = worker;
    return STATUS_OK;
}

static void worker_free(struct worker *worker)
{
    link_probe_destroy(&worker->probe);
    worker_disconnect(worker, true);
    worker_cancels_drop(worker);
    free(worker->grants);
    free(worker);
}

static struct worker *find_listed(struct worker_pool *pool, const struct worker_directory_entry *entry)
{
    int index = worker_pool_find(pool, entry->name);
    if (index >= 0)
        return pool->workers[index];
    for (unsigned i = 0; i < pool->count; i++)
        if (!pool->workers[i]->name[0] && strcmp(pool->workers[i]->endpoint, entry->endpoint) == 0)
            return pool->workers[i];
    return NULL;
}

void worker_pool_directory(void *user, const struct worker_directory_entry *entries, unsigned count, uint64_t begun_ms)
{
    struct worker_pool *pool = user;
    pool->directory_begun_ms = begun_ms;
    for (unsigned i = 0; i < pool->count; i++)
        pool->workers[i]->listed = false;
    for (unsigned i = 0; i < count; i++) {
        struct worker *worker = find_listed(pool, &entries[i]);
        if (!worker && add_worker(pool, entries[i].endpoint, &worker) != STATUS_OK) {
            if (worker_pool_may_log(pool))
                LOG_WARN("worker %s from the directory is not used: %s", entries[i].name, status_detail());
            continue;
        }
        worker->listed = true;
        if (!worker->name[0])
            set_name(worker, entries[i].name, strlen(entries[i].name));
        /* It moved. An old address that still accepts connections but serves nobody must not hold it there. */
        bool given_up = !worker->control_up || loop_now_ms(pool->loop) - worker->since_ms > WORKER_DEAD_MS;
        if (!worker->up && given_up && strcmp(worker->endpoint, entries[i].endpoint) != 0)
            snprintf(worker->next_endpoint, sizeof worker->next_endpoint, "%s", entries[i].endpoint);
    }
}

void worker_pool_expire(struct worker_pool *pool, uint64_t now_ms)
{
    for (unsigned i = 0; i < pool->count; i++)
        worker_link_expire(pool->workers[i], now_ms);
}

/* Before anything that calls out: a callback may look at the whole list. */
static void forget_gone(struct worker_pool *pool, uint64_t now_ms)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < pool->count; i++) {
        struct worker *worker = pool->workers[i];
        if (!worker->configured && !worker->listed && !worker->up && now_ms - worker->since_ms > WORKER_FORGET_MS) {
            LOG_INFO("worker %s is forgotten", worker_label(worker));
            worker_free(worker);
        } else {
            pool->workers[kept++] = worker;
        }
    }
    pool->count = kept;
}

void worker_pool_turn(struct worker_pool *pool)
{
    uint64_t now = loop_now_ms(pool->loop);
    if (!pool->due && now - pool->turn_ms < LOOK_MS)
        return;
    pool->due = false;
    pool->turn_ms = now;
    forget_gone(pool, now);
    for (unsigned i = 0; i < pool->count; i++) {
        worker_link_turn(pool->workers[i], now);
        worker_grants_flush(pool->workers[i]);
    }
    worker_health_turn(pool);
}

unsigned worker_pool_count(const struct worker_pool *pool)
{
    return pool->count;
}

struct worker *worker_pool_at(const struct worker_pool *pool, unsigned index)
{
    return pool->workers[index];
}

/* One that is up comes before an old link under the same name. */
int worker_pool_find(const struct worker_pool *pool, const char *name)
{
    int found = -1;
    for (unsigned i = 0; i < pool->count && name[0]; i++)
        if (strcmp(pool->workers[i]->name, name) == 0 && !pool->workers[i]->refused_name &&
            (found < 0 || pool->workers[i]->up))
            found = (int)i;
    return found;
}

bool worker_pool_met(const struct worker_pool *pool)
{
    if (pool->has_directory && pool->directory_begun_ms == 0)
        return false;
    for (unsigned i = 0; i < pool->count; i++)
        if (!pool->workers[i]->up)
            return false;
    return true;
}

bool worker_pool_owner_lost(const struct worker_pool *pool, int index)
{
    uint64_t now = loop_now_ms(pool->loop);
    if (index < 0) {
        /* Nobody here has that name: it counts as down since we began, and as expired when a reading did not list it.
         * A worker of the settings that has not answered yet may turn out to be the one. */
        bool unnamed = false;
        for (unsigned i = 0; i < pool->count; i++)
            unnamed = unnamed || !pool->workers[i]->name[0];
        bool read = !pool->has_directory || pool->directory_begun_ms > 0;
        return now - pool->created_ms > WORKER_TAKE_OVER_MS || (read && !unnamed);
    }
    const struct worker *worker = pool->workers[index];
    if (worker->up)
        return false;
    if (now - worker->since_ms > WORKER_TAKE_OVER_MS)
        return true;
    return !pool->has_directory || (pool->directory_begun_ms > worker->since_ms && !worker->listed);
}

/* ---- life ---- */

enum status worker_pool_create(struct loop *loop, void *zmq_context, const struct worker_pool_config *config,
                               const struct worker_pool_events *events, struct worker_pool **out)
{
    struct worker_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the worker pool");
    pool->loop = loop;
    pool->zmq_context = zmq_context;
    pool->events = *events;
    snprintf(pool->name, sizeof pool->name, "%s", config->name);
    memcpy(pool->session, config->session, WIRE_ID_BYTES);
    pool->lease_ms = config->lease_ms;
    pool->has_directory = config->has_directory;
    pool->created_ms = loop_now_ms(loop);
    enum status st;
    for (unsigned i = 0; i < config->endpoint_count; i++) {
        struct worker *worker;
        if (strlen(config->endpoints[i]) >= WORKER_ENDPOINT_MAX) {
            st = STATUS_FAIL(STATUS_INVALID, "workers: an endpoint is longer than %d characters",
                             WORKER_ENDPOINT_MAX - 1);
            goto fail;
        }
        TRY_GOTO(add_worker(pool, config->endpoints[i], &worker), st, fail);
        worker->configured = true;
    }
    TRY_GOTO(loop_timer_create(loop, config->lease_ms, true, on_lease_timer, pool, &pool->lease_timer), st, fail);
    *out = pool;
    return STATUS_OK;
fail:
    worker_pool_destroy(&pool);
    return st;
}

void worker_pool_destroy(struct worker_pool **pool)
{
    struct worker_pool *gone = *pool;
    if (!gone)
        return;
    *pool = NULL;
    loop_timer_destroy(&gone->lease_timer);
    for (unsigned i = 0; i < gone->count; i++)
        worker_free(gone->workers[i]);
    free(gone);
}
