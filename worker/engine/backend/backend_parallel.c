/* backend_parallel.c - rank 0: tells the followers what to do, does its own part, and has the results.
 *
 * Tickets of copies: those of pages in this process are the local backend's, those of other ranks count in their rings; a list of tickets
 * under way keeps them in one order. */
#include "worker/engine/backend/backend_parallel.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/log.h"
#include "worker/engine/backend/backend_batch.h"
#include "worker/engine/backend/parallel_group.h"
#include "worker/engine/backend/parallel_wire.h"
#include "worker/engine/backend/rank.h"
#include "worker/engine/backend/step_patience.h"
#include "worker/engine/model/model.h"

#define ARENAS_MAX   64u
#define TICKETS      4096u         /* copies under way, at most */
#define LOAD_MS      600000u       /* for every rank to read its model, or to have an arena */
#define END_MS       2000u
#define PAGE         4096u

struct arena {
    uint8_t *base;                 /* NULL: free */
    size_t bytes;
    enum backend_tier tier;
    uint32_t home;                 /* device tier */
};

struct ticket {
    uint32_t rank;
    uint64_t number;               /* rank 0: the local backend's; others: of the ring */
};

struct backend {
    struct parallel_group *group;  /* ref */
    const struct model *model;     /* ref */
    struct backend_config config;
    const struct rank_ops *ranks;  /* ref: the group's */
    const struct backend_ops *ops; /* ref: theirs */
    struct backend *local;         /* owned: the backend that is rank 0 */
    struct collective *collective; /* owned */
    uint32_t size;
    struct arena arenas[ARENAS_MAX];
    uint64_t host_bytes;           /* of the host memory's descriptor */
    struct ticket tickets[TICKETS];
    uint64_t ticket_last, ticket_done;
    uint64_t posted[RENDEZVOUS_RANKS_MAX];
    struct backend_run *runs;      /* (rows_max) by home */
    uint32_t *homes, *order;       /* (rows_max) order: the batch's index */
    uint8_t *message;
    size_t message_bytes, message_capacity;
    struct step_patience patience;
    struct backend_parallel_counts counts;
};

static struct rendezvous *meeting(const struct backend *self)
{
    return self->group->rendezvous;
}

/* ---- telling ---- */

static enum status tell(struct backend *self, enum parallel_message_kind kind, const void *data, size_t bytes, uint64_t deadline_ms)
{
    struct parallel_message head = {.kind = (uint32_t)kind, .bytes = (uint32_t)bytes, .deadline_ms = deadline_ms};
    if (bytes > UINT32_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "a message of %zu bytes to the ranks", bytes);
    self->counts.control_bytes += sizeof head + bytes;
    TRY(collective_shared_ops.broadcast(self->collective, 0, &head, sizeof head, deadline_ms));
    return bytes > 0 ? collective_shared_ops.broadcast(self->collective, 0, (void *)data, bytes, deadline_ms) : STATUS_OK;
}

/* Room for more of the message that is put together. */
static enum status extend(struct backend *self, size_t bytes, void **at)
{
    const size_t start = parallel_align(self->message_bytes), wanted = start + bytes;
    if (wanted > self->message_capacity) {
        uint8_t *more = realloc(self->message, wanted * 2);
        if (more == NULL)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a message of %zu bytes", wanted);
        self->message = more;
        self->message_capacity = wanted * 2;
    }
    memset(self->message + self->message_bytes, 0, wanted - self->message_bytes);
    self->message_bytes = wanted;
    *at = self->message + start;
    return STATUS_OK;
}

/* ---- arenas ---- */

static const struct arena *arena_of(const struct backend *self, const void *address)
{
    for (uint32_t i = 0; i < ARENAS_MAX; i++) {
        const struct arena *arena = &self->arenas[i];
        if (arena->base != NULL && (const uint8_t *)address >= arena->base && (const uint8_t *)address < arena->base + arena->bytes)
            return arena;
    }
    return NULL;
}

/* Memory that nobody told of is this process's. */
static uint32_t home_of(const struct backend *self, const void *address)
{
    const struct arena *arena = arena_of(self, address);
    return arena != NULL ? arena->home : 0;
}

static enum status announce(struct backend *self, const struct arena *arena, uint64_t host_offset)
{
    const struct parallel_arena told = {
        .base = (uintptr_t)arena->base, .bytes = arena->bytes, .home = arena->home, .host_offset = host_offset};
    const uint64_t deadline_ms = clock_now_ms() + LOAD_MS;   /* pinning or clearing many GiB is no step */
    TRY(tell(self, PARALLEL_ARENA, &told, sizeof told, deadline_ms));
    return collective_shared_ops.barrier(self->collective, deadline_ms);
}

static enum status host_tier(struct backend *self, size_t bytes, uint8_t **base)
{
    const size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
    if (ftruncate(self->group->host_fd, (off_t)(self->host_bytes + whole)) != 0)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no shared memory for a host tier of %zu bytes: %s", bytes, strerror(errno));
    void *memory = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_SHARED, self->group->host_fd, (off_t)self->host_bytes);
    if (memory == MAP_FAILED)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a host tier of %zu bytes: %s", bytes, strerror(errno));
    self->host_bytes += whole;
    *base = memory;
    return STATUS_OK;
}

/* Addresses for another rank's memory: any use of them here is a fault. */
static enum status addresses(size_t bytes, uint8_t **base)
{
    void *memory = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no addresses for %zu bytes: %s", bytes, strerror(errno));
    *base = memory;
    return STATUS_OK;
}

static void release(struct backend *self, const struct arena *arena)
{
    void *base = arena->base;
    if (arena->tier == BACKEND_TIER_DEVICE && arena->home == 0) {
        self->ops->arena_destroy(self->local, BACKEND_TIER_DEVICE, &base);
        return;
    }
    if (arena->tier == BACKEND_TIER_HOST && self->ranks->host_memory_forget != NULL)
        self->ranks->host_memory_forget(self->local, base);
    munmap(base, arena->bytes);
}

static enum status make_arena(struct backend *self, enum backend_tier tier, uint32_t home, size_t bytes, void **base)
{
    struct arena made = {.tier = tier, .home = home, .bytes = bytes}, *place = NULL;
    const uint64_t host_offset = self->host_bytes;
    void *local = NULL;
    for (uint32_t i = 0; i < ARENAS_MAX && place == NULL; i++)
        place = self->arenas[i].base == NULL ? &self->arenas[i] : NULL;
    if (place == NULL || home >= self->size)
        return STATUS_FAIL(STATUS_LIMIT, "more than %u arenas, or of more than %u ranks", ARENAS_MAX, self->size);
    if (tier == BACKEND_TIER_HOST) {
        TRY(host_tier(self, bytes, &made.base));
        if (self->ranks->host_memory_use != NULL) {
            const enum status st = self->ranks->host_memory_use(self->local, made.base, bytes);
            if (st != STATUS_OK) {
                munmap(made.base, bytes);
                return st;
            }
        }
    } else if (home > 0) {
        TRY(addresses(bytes, &made.base));
    } else {
        TRY(self->ops->arena_create(self->local, BACKEND_TIER_DEVICE, bytes, &local));
        made.base = local;
    }
    if (tier == BACKEND_TIER_HOST || home > 0) {
        const enum status st = announce(self, &made, host_offset);
        if (st != STATUS_OK) {
            release(self, &made);
            return st;
        }
    }
    *place = made;
    *base = made.base;
    return STATUS_OK;
}

static enum status parallel_arena_create(struct backend *self, enum backend_tier tier, size_t bytes, void **base)
{
    return make_arena(self, tier, 0, bytes, base);
}

static enum status parallel_arena_create_at(struct backend *self, uint32_t home, size_t bytes, void **base)
{
    return make_arena(self, BACKEND_TIER_DEVICE, home, bytes, base);
}

static void parallel_arena_destroy(struct backend *self, enum backend_tier tier, void **base)
{
    (void)tier;
    struct arena *arena = *base != NULL ? (struct arena *)arena_of(self, *base) : NULL;
    if (arena == NULL)
        return;
    const struct parallel_arena told = {.base = (uintptr_t)arena->base, .bytes = arena->bytes};
    if (arena->tier == BACKEND_TIER_HOST || arena->home > 0)
        (void)tell(self, PARALLEL_ARENA_GONE, &told, sizeof told,     /* a lost group has lost it anyhow */
                   clock_now_ms() + step_patience_any_ms(&self->patience));
    release(self, arena);
    *arena = (struct arena){0};
    *base = NULL;
}

static uint32_t parallel_homes(const struct backend *self)
{
    return self->size;
}

/* ---- copies ---- */

static bool ticket_is_done(struct backend *self, const struct ticket *ticket)
{
    if (ticket->rank == 0)
        return self->ops->copy_done(self->local, ticket->number);
    const uint32_t done = atomic_load(rendezvous_word(meeting(self), ticket->rank, PARALLEL_WORD_DONE));
    return RENDEZVOUS_COUNT(done - (uint32_t)ticket->number) < 1u << 30 || rendezvous_aborted(meeting(self));
}

/* A lost group makes no copies; forward says so. */
static void wait_ticket(struct backend *self, const struct ticket *ticket)
{
    if (ticket->rank == 0) {
        self->ops->copy_wait(self->local, ticket->number);
        return;
    }
    atomic_uint *word = rendezvous_word(meeting(self), ticket->rank, PARALLEL_WORD_DONE);
    const uint64_t deadline_ms = clock_now_ms() + step_patience_any_ms(&self->patience);
    if (rendezvous_wait(meeting(self), word, RENDEZVOUS_COUNT((uint32_t)ticket->number), deadline_ms) == STATUS_TIMEOUT)
        rendezvous_abort(meeting(self), "rank %u is late with a copy", ticket->rank);
}

static bool parallel_copy_done(struct backend *self, uint64_t ticket)
{
    while (self->ticket_done < self->ticket_last && ticket_is_done(self, &self->tickets[(self->ticket_done + 1) % TICKETS]))
        self->ticket_done++;
    return self->ticket_done >= ticket;
}

static void parallel_copy_wait(struct backend *self, uint64_t ticket)
{
    while (self->ticket_done < ticket) {
        wait_ticket(self, &self->tickets[(self->ticket_done + 1) % TICKETS]);
        self->ticket_done++;
    }
}

/* The ring's number of it. */
static uint64_t post(struct backend *self, uint32_t rank, const struct parallel_copy *copy)
{
    const uint64_t number = self->posted[rank]++;
    if (number >= PARALLEL_COPIES)  /* its place in the ring is free when the one before in it is done */
        wait_ticket(self, &(struct ticket){rank, number - PARALLEL_COPIES + 1});
    parallel_ring(meeting(self), rank)[number % PARALLEL_COPIES] = *copy;
    rendezvous_advance(meeting(self), rendezvous_word(meeting(self), rank, PARALLEL_WORD_POSTED));
    return number + 1;
}

static uint64_t parallel_copy_start(struct backend *self, void *dst, const void *src, size_t bytes)
{
    const struct parallel_copy copy = {.dst = (uintptr_t)dst, .src = (uintptr_t)src, .bytes = bytes};
    uint32_t rank = home_of(self, dst);
    rank = rank != 0 ? rank : home_of(self, src);
    if (self->ticket_last - self->ticket_done == TICKETS)
        parallel_copy_wait(self, self->ticket_done + 1);
    struct ticket *ticket = &self->tickets[++self->ticket_last % TICKETS];
    ticket->rank = rank;
    ticket->number = rank == 0 ? self->ops->copy_start(self->local, dst, src, bytes) : post(self, rank, &copy);
    return self->ticket_last;
}

static void parallel_page_copy_prefix(struct backend *self, uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    const struct parallel_copy copy = {.dst = (uintptr_t)dst, .src = (uintptr_t)src, .group = group, .tokens = tokens};
    const uint32_t rank = home_of(self, dst);
    if (rank == 0)
        self->ops->page_copy_prefix(self->local, group, dst, src, tokens);
    else
        wait_ticket(self, &(struct ticket){rank, post(self, rank, &copy)});
}

/* ---- batches ---- */

static uint32_t page_count(const struct backend_run *run)
{
    return (run->start + run->count + BACKEND_PAGE_TOKENS - 1) / BACKEND_PAGE_TOKENS;
}

static uint32_t home_of_run(const struct backend *self, const struct backend_run *run)
{
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
        if (self->model->config.producer_count[group] > 0)
            return home_of(self, run->pages[group][run->start / BACKEND_PAGE_TOKENS]);
    return 0;
}

/* The batch in the order of its homes, as forward_rank wants it. */
static void sort_runs(struct backend *self, const struct backend_batch *batch)
{
    uint32_t sorted = 0;
    for (uint32_t i = 0; i < batch->run_count; i++)
        self->order[i] = home_of_run(self, &batch->runs[i]);   /* for the moment */
    for (uint32_t home = 0; home < self->size; home++)
        for (uint32_t i = 0; i < batch->run_count; i++)
            if (self->order[i] == home) {
                self->homes[sorted] = home;
                self->runs[sorted++] = batch->runs[i];
            }
    uint32_t next[RENDEZVOUS_RANKS_MAX] = {0};
    for (uint32_t i = 0; i < sorted; i++)
        for (uint32_t home = self->homes[i] + 1; home < self->size; home++)
            next[home]++;
    for (uint32_t i = 0; i < batch->run_count; i++)
        self->order[i] = next[self->order[i]]++;
}

static enum status put_pages(struct backend *self, const struct backend_run *run, uint32_t home, uint32_t group)
{
    void *at;
    const uint32_t count = page_count(run);
    TRY(extend(self, count * sizeof(uint64_t), &at));
    uint64_t *pages = at;
    const struct arena *arena = NULL;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *page = run->pages[group][i];
        if (page == NULL)
            continue;
        if (arena == NULL || page < arena->base || page >= arena->base + arena->bytes)
            arena = arena_of(self, page);
        if (arena == NULL || arena->home != home)
            return STATUS_FAIL(STATUS_INTERNAL, "the pages of a run lie on several ranks");
        pages[i] = (uintptr_t)page;
    }
    return STATUS_OK;
}

/* As parallel_wire.h has it. */
static enum status put_batch(struct backend *self, uint32_t run_count, uint32_t rows)
{
    void *at;
    self->message_bytes = 0;
    TRY(extend(self, sizeof(uint64_t), &at));
    memcpy(at, &run_count, sizeof run_count);
    TRY(extend(self, run_count * sizeof(struct parallel_run), &at));
    struct parallel_run *told = at;
    for (uint32_t i = 0; i < run_count; i++) {
        const struct backend_run *run = &self->runs[i];
        told[i] = (struct parallel_run){.count = run->count, .start = run->start, .logit_rows = run->logit_rows, .home = self->homes[i]};
        for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
            told[i].pages[group] = self->homes[i] > 0 && self->model->config.producer_count[group] > 0 ? page_count(run) : 0;
    }
    TRY(extend(self, rows * sizeof(uint32_t), &at));
    uint32_t *tokens = at;
    for (uint32_t i = 0; i < run_count; tokens += self->runs[i++].count)
        memcpy(tokens, self->runs[i].tokens, self->runs[i].count * sizeof *tokens);
    for (uint32_t i = 0; i < run_count; i++)
        for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
            if (self->homes[i] > 0 && self->model->config.producer_count[group] > 0)
                TRY(put_pages(self, &self->runs[i], self->homes[i], group));
    return STATUS_OK;
}

static uint32_t rows_of(const struct backend_batch *batch)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < batch->run_count; i++)
        rows += batch->runs[i].count;
    return rows;
}

static enum status parallel_forward(struct backend *self, const struct backend_batch *batch, uint32_t *failed_run)
{
    uint32_t failed = UINT32_MAX;
    TRY(batch_check(&self->model->config, &self->config, batch));
    const uint32_t rows = rows_of(batch);
    const uint64_t started_ms = clock_now_ms(), deadline_ms = started_ms + step_patience_ms(&self->patience, rows);
    TRY(rendezvous_status(meeting(self)));
    sort_runs(self, batch);
    TRY(put_batch(self, batch->run_count, rows));
    enum status st = tell(self, PARALLEL_FORWARD, self->message, self->message_bytes, deadline_ms);
    const struct backend_batch sorted = {.runs = self->runs, .run_count = batch->run_count};
    if (st == STATUS_OK)
        st = self->ranks->forward_rank(self->local, &sorted, self->homes, deadline_ms, &failed);
    if (st != STATUS_OK && st != STATUS_CORRUPT && st != STATUS_LIMIT)   /* those are every rank's; the others wait in the middle of the pass */
        rendezvous_abort(meeting(self), "rank 0: %.200s", status_detail());
    if (rendezvous_aborted(meeting(self)))
        return rendezvous_status(meeting(self));
    for (uint32_t i = 0; i < batch->run_count && failed_run != NULL && st == STATUS_CORRUPT; i++)
        if (self->order[i] == failed)
            *failed_run = i;
    step_patience_record(&self->patience, rows, (uint32_t)(clock_now_ms() - started_ms));
    self->counts.steps++;
    self->counts.step_rows += rows;
    return st;
}

/* ---- life ---- */

static void parallel_destroy(struct backend **backend)
{
    struct backend *self = *backend;
    if (self == NULL)
        return;
    self->group->closing = true;
    parallel_copy_wait(self, self->ticket_last);
    for (uint32_t rank = 1; rank < self->size && self->collective != NULL; rank++)
        (void)post(self, rank, &(struct parallel_copy){0});
    if (self->collective != NULL)
        (void)tell(self, PARALLEL_END, NULL, 0, clock_now_ms() + END_MS);
    for (uint32_t i = 0; i < ARENAS_MAX; i++)
        if (self->arenas[i].base != NULL)
            release(self, &self->arenas[i]);
    if (self->local != NULL)
        self->ops->destroy(&self->local);
    collective_shared_ops.destroy(&self->collective);
    free(self->runs);
    free(self->homes);
    free(self->order);
    free(self->message);
    free(self);
    *backend = NULL;
}

/* Every rank loads its model and joins, and so does this one. */
static enum status start_ranks(struct backend *self)
{
    const char *plugin = self->group->plugin != NULL ? self->group->plugin : "";
    const size_t model_size = strlen(self->group->model_dir) + 1, plugin_size = strlen(plugin) + 1;
    const uint64_t deadline_ms = clock_now_ms() + LOAD_MS;
    const struct rank_place place = {.rendezvous = meeting(self), .ops = &collective_shared_ops, .collective = self->collective,
                                     .rank = 0, .size = self->size, .deadline_ms = deadline_ms};
    struct parallel_start *start = calloc(1, sizeof *start + model_size + plugin_size);
    if (start == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a message");
    start->rows_max = self->config.rows_max;
    start->threads = self->config.threads;
    start->full_depth = self->config.full_depth;
    start->model_dir_size = (uint32_t)model_size;
    memcpy(start->weights_digest, self->model->weights_digest, sizeof start->weights_digest);
    memcpy(start->words, self->group->model_dir, model_size);
    memcpy(start->words + model_size, plugin, plugin_size);
    const enum status st = tell(self, PARALLEL_START, start, sizeof *start + model_size + plugin_size, deadline_ms);
    free(start);
    TRY(st);
    TRY(self->ranks->join(self->local, &place));
    return collective_shared_ops.barrier(self->collective, deadline_ms);
}

static enum status parallel_create(const struct model *model, const struct backend_config *config, struct backend **out)
{
    enum status st;
    TRY(batch_check_config(config));
    if (config->group == NULL || config->group->taken)
        return STATUS_FAIL(STATUS_INVALID, "the parallel backend wants a group of its own");
    struct backend *self = calloc(1, sizeof *self);
    if (self == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    self->group = config->group;
    self->ranks = config->group->ranks;
    self->ops = self->ranks->ops;
    self->model = model;
    self->config = *config;
    self->size = parallel_group_size(config->group);
    step_patience_init(&self->patience, config->group->step_ms_min);
    self->runs = calloc(config->rows_max, sizeof *self->runs);
    self->homes = calloc(config->rows_max, sizeof *self->homes);
    self->order = calloc(config->rows_max, sizeof *self->order);
    if (self->runs == NULL || self->homes == NULL || self->order == NULL) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for batches of %u rows", config->rows_max);
        goto fail;
    }
    struct backend_config local = *config;
    local.group = NULL;
    local.rank = 0;
    local.ranks = self->size;
    TRY_GOTO(self->ops->create(model, &local, &self->local), st, fail);
    TRY_GOTO(collective_shared_ops.create(meeting(self), &self->collective), st, fail);
    config->group->taken = true;
    TRY_GOTO(start_ranks(self), st, fail);
    *out = self;
    return STATUS_OK;
fail:
    parallel_destroy(&self);
    return st;
}

static size_t parallel_page_bytes(const struct backend *self, uint32_t group)
{
    return self->ops->page_bytes(self->local, group);
}

static bool parallel_samples(const struct backend *self)
{
    return self->ops->samples != NULL && self->ops->samples(self->local);
}

static bool parallel_health(struct backend *self, struct backend_health *out)
{
    return self->ops->health != NULL && self->ops->health(self->local, out);
}

void backend_parallel_counts(const struct backend *self, struct backend_parallel_counts *out)
{
    struct collective_counts shared;
    collective_shared_ops.counts(self->collective, &shared);
    *out = self->counts;
    out->collective_calls = shared.calls;
    out->collective_bytes = shared.bytes_received;
}

const struct backend_ops backend_parallel_ops = {
    .name = "parallel",
    .bits = "cpu",
    .create = parallel_create,
    .destroy = parallel_destroy,
    .page_bytes = parallel_page_bytes,
    .forward = parallel_forward,
    .page_copy_prefix = parallel_page_copy_prefix,
    .arena_create = parallel_arena_create,
    .arena_destroy = parallel_arena_destroy,
    .copy_start = parallel_copy_start,
    .copy_done = parallel_copy_done,
    .copy_wait = parallel_copy_wait,
    .homes = parallel_homes,
    .arena_create_at = parallel_arena_create_at,
    .samples = parallel_samples,
    .health = parallel_health,
};
