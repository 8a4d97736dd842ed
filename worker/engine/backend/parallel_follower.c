/* parallel_follower.c - the life of a follower: told a model, it loads it; told arenas, it has or shares their memory; told a batch, it
 * computes its part of it. It decides nothing. A second thread copies pages. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/log.h"
#include "worker/engine/backend/backend_batch.h"
#include "worker/engine/backend/backend_load.h"
#include "worker/engine/backend/backend_plugin.h"
#include "worker/engine/backend/parallel_group.h"
#include "worker/engine/backend/parallel_wire.h"
#include "worker/engine/backend/rank.h"
#include "worker/engine/model/model.h"
#include "worker/engine/model/safetensors.h"

#define ARENAS_MAX 64u
#define JOIN_MS    30000u
#define LATER_MS   500u            /* than rank 0 a follower gives up, for rank 0 to be the one that says so */

struct arena {
    uint64_t base, bytes;          /* rank 0's; bytes 0: free */
    uint8_t *memory;               /* here; NULL: another rank's alone */
    bool shared;
};

struct follower {
    struct rendezvous *rendezvous;
    struct collective *collective;
    struct model *model;
    const struct rank_ops *ranks;
    struct backend *backend;
    int host_fd;
    uint32_t rank;
    pthread_mutex_t lock;          /* of arenas: the copy thread looks there */
    struct arena arenas[ARENAS_MAX];
    pthread_t copier;               /* the only thread that copies with the backend */
    bool copies;
    uint8_t *message;
    size_t message_capacity;
    struct backend_run *runs;      /* (rows_max) */
    uint32_t *homes;
};

/* ---- memory ---- */

/* NULL: no address of this rank's. */
static void *translate(struct follower *self, uint64_t address)
{
    void *found = NULL;
    pthread_mutex_lock(&self->lock);
    for (uint32_t i = 0; i < ARENAS_MAX && found == NULL; i++) {
        const struct arena *arena = &self->arenas[i];
        if (arena->memory != NULL && address >= arena->base && address - arena->base < arena->bytes)
            found = arena->memory + (address - arena->base);
    }
    pthread_mutex_unlock(&self->lock);
    return found;
}

static struct arena *find_arena(struct follower *self, uint64_t bytes, uint64_t base)
{
    for (uint32_t i = 0; i < ARENAS_MAX; i++)
        if (self->arenas[i].bytes == bytes && (bytes == 0 || self->arenas[i].base == base))
            return &self->arenas[i];
    return NULL;
}

static enum status add_arena(struct follower *self, const struct parallel_arena *told)
{
    struct arena *arena = find_arena(self, 0, 0), made = {.base = told->base, .bytes = told->bytes, .shared = told->home == 0};
    if (arena == NULL)
        return STATUS_FAIL(STATUS_LIMIT, "more than %u arenas", ARENAS_MAX);
    if (told->home == self->rank) {
        void *memory = NULL;
        TRY(self->ranks->ops->arena_create(self->backend, BACKEND_TIER_DEVICE, told->bytes, &memory));
        made.memory = memory;
    } else if (told->home == 0) {
        void *memory = mmap(NULL, told->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, self->host_fd, (off_t)told->host_offset);
        if (memory == MAP_FAILED)
            return STATUS_FAIL(STATUS_NO_MEMORY, "%llu bytes of the host tier: %s", (unsigned long long)told->bytes, strerror(errno));
        made.memory = memory;
        if (self->ranks->host_memory_use != NULL)
            TRY(self->ranks->host_memory_use(self->backend, memory, told->bytes));
    }
    pthread_mutex_lock(&self->lock);
    *arena = made;
    pthread_mutex_unlock(&self->lock);
    return STATUS_OK;
}

static void remove_arena(struct follower *self, const struct parallel_arena *told)
{
    struct arena *arena = find_arena(self, told->bytes, told->base), gone;
    if (arena == NULL)
        return;
    pthread_mutex_lock(&self->lock);
    gone = *arena;
    *arena = (struct arena){0};
    pthread_mutex_unlock(&self->lock);
    void *memory = gone.memory;
    if (!gone.shared) {
        self->ranks->ops->arena_destroy(self->backend, BACKEND_TIER_DEVICE, &memory);
        return;
    }
    if (self->ranks->host_memory_forget != NULL)
        self->ranks->host_memory_forget(self->backend, memory);
    munmap(memory, gone.bytes);
}

/* ---- copies ---- */

static bool carry_out(struct follower *self, const struct parallel_copy *copy)
{
    const struct backend_ops *ops = self->ranks->ops;
    void *dst = translate(self, copy->dst), *src = translate(self, copy->src);
    if (dst == NULL || src == NULL)
        return false;
    if (copy->tokens > 0)
        ops->page_copy_prefix(self->backend, copy->group, dst, src, copy->tokens);
    else
        ops->copy_wait(self->backend, ops->copy_start(self->backend, dst, src, copy->bytes));
    return true;
}

static void *copy_main(void *argument)
{
    struct follower *self = argument;
    const struct parallel_copy *ring = parallel_ring(self->rendezvous, self->rank);
    atomic_uint *posted = rendezvous_word(self->rendezvous, self->rank, PARALLEL_WORD_POSTED);
    atomic_uint *done = rendezvous_word(self->rendezvous, self->rank, PARALLEL_WORD_DONE);
    for (uint32_t number = 0; rendezvous_wait(self->rendezvous, posted, RENDEZVOUS_COUNT(number + 1), 0) == STATUS_OK; number++) {
        const struct parallel_copy copy = ring[number % PARALLEL_COPIES];
        if (copy.bytes == 0 && copy.tokens == 0)
            break;
        if (!carry_out(self, &copy))
            rendezvous_abort(self->rendezvous, "rank %u was told to copy a page that is not its own", self->rank);
        rendezvous_advance(self->rendezvous, done);
    }
    return NULL;
}

static enum status start_copier(struct follower *self)
{
    const int error = pthread_create(&self->copier, NULL, copy_main, self);
    if (error != 0)
        return STATUS_FAIL(STATUS_IO, "cannot start the copy thread: %s", strerror(error));
    self->copies = true;
    return STATUS_OK;
}

/* ---- messages ---- */

/* What the check of the file has read is let go: only the slices that are computed with come back. */
static void forget_weights(const struct model *model)
{
    size_t bytes;
    const uint8_t *weights = safetensors_bytes(model->mapping, &bytes);
    const uintptr_t from = ((uintptr_t)weights + 4095) & ~(uintptr_t)4095, end = ((uintptr_t)weights + bytes) & ~(uintptr_t)4095;
    if (end > from)
        (void)madvise((void *)from, end - from, MADV_DONTNEED);
}

static enum status take_start(struct follower *self, const struct parallel_start *start, uint64_t deadline_ms)
{
    const char *model_dir = start->words, *path = start->words + start->model_dir_size;
    const struct backend_config config = {.rows_max = start->rows_max, .threads = start->threads, .full_depth = start->full_depth,
                                          .rank = self->rank, .ranks = rendezvous_size(self->rendezvous)};
    const struct rank_place place = {.rendezvous = self->rendezvous, .ops = &collective_shared_ops, .collective = self->collective,
                                     .rank = self->rank, .size = config.ranks, .deadline_ms = deadline_ms};
    const struct backend_plugin *plugin = NULL;
    TRY(model_load(model_dir, &self->model));
    if (memcmp(self->model->weights_digest, start->weights_digest, sizeof start->weights_digest) != 0)
        return STATUS_FAIL(STATUS_CORRUPT, "%s is not the model that rank 0 has read", model_dir);
    forget_weights(self->model);
    if (*path != '\0')
        TRY(backend_load(path, &plugin));
    self->ranks = plugin != NULL ? plugin->ranks : &rank_cpu_ops;
    TRY(self->ranks->ops->create(self->model, &config, &self->backend));
    TRY(self->ranks->join(self->backend, &place));
    self->runs = calloc(start->rows_max, sizeof *self->runs);
    self->homes = calloc(start->rows_max, sizeof *self->homes);
    if (self->runs == NULL || self->homes == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for batches of %u rows", start->rows_max);
    LOG_INFO("rank %u of %u has its part of %s", self->rank, rendezvous_size(self->rendezvous), self->model->config.name);
    return start_copier(self);
}

/* Addresses become this rank's, in place. */
static enum status take_pages(struct follower *self, uint64_t *pages, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        void *page = pages[i] != 0 ? translate(self, pages[i]) : NULL;
        if (page == NULL && pages[i] != 0)
            return STATUS_FAIL(STATUS_INTERNAL, "rank %u was told to use a page that is not its own", self->rank);
        memcpy(&pages[i], &page, sizeof page);
    }
    return STATUS_OK;
}

static enum status take_forward(struct follower *self, uint64_t deadline_ms)
{
    uint32_t run_count;
    memcpy(&run_count, self->message, sizeof run_count);
    const struct parallel_run *told = (const struct parallel_run *)(self->message + sizeof(uint64_t));
    const uint32_t *tokens = (const uint32_t *)(told + run_count);
    uint64_t rows = 0;
    for (uint32_t i = 0; i < run_count; i++)
        rows += told[i].count;
    uint64_t *pages = (uint64_t *)(self->message + parallel_align((uint64_t)((const uint8_t *)(tokens + rows) - self->message)));
    static float nowhere;          /* logits are rank 0's */
    for (uint32_t i = 0; i < run_count; i++) {
        self->homes[i] = told[i].home;
        self->runs[i] = (struct backend_run){.tokens = tokens, .count = told[i].count, .start = told[i].start,
                                             .logits = &nowhere, .logit_rows = told[i].logit_rows};
        tokens += told[i].count;
        for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
            if (told[i].home == self->rank)
                TRY(take_pages(self, pages, told[i].pages[group]));
            self->runs[i].pages[group] = (void *const *)pages;
            pages += told[i].pages[group];
        }
    }
    const struct backend_batch batch = {.runs = self->runs, .run_count = run_count};
    const enum status st = self->ranks->forward_rank(self->backend, &batch, self->homes, deadline_ms + LATER_MS, NULL);
    return rendezvous_aborted(self->rendezvous) ? rendezvous_status(self->rendezvous)
           : st == STATUS_CORRUPT || st == STATUS_LIMIT ? STATUS_OK /* rank 0 knows it too, and says so */ : st;
}

static enum status take_message(struct follower *self, struct parallel_message *head)
{
    const struct collective_ops *ops = &collective_shared_ops;
    TRY(ops->broadcast(self->collective, 0, head, sizeof *head, 0));
    if (head->bytes > self->message_capacity) {
        free(self->message);
        self->message_capacity = head->bytes * (size_t)2;
        self->message = malloc(self->message_capacity);
        if (self->message == NULL)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a message of %u bytes", head->bytes);
    }
    return head->bytes > 0 ? ops->broadcast(self->collective, 0, self->message, head->bytes, head->deadline_ms + LATER_MS) : STATUS_OK;
}

static enum status follow(struct follower *self)
{
    const struct collective_ops *ops = &collective_shared_ops;
    for (;;) {
        struct parallel_message head;
        TRY(take_message(self, &head));
        switch (head.kind) {
        case PARALLEL_START:
            TRY(take_start(self, (const struct parallel_start *)self->message, head.deadline_ms));
            TRY(ops->barrier(self->collective, head.deadline_ms + LATER_MS));
            break;
        case PARALLEL_ARENA:
            TRY(add_arena(self, (const struct parallel_arena *)self->message));
            TRY(ops->barrier(self->collective, head.deadline_ms + LATER_MS));
            break;
        case PARALLEL_ARENA_GONE: remove_arena(self, (const struct parallel_arena *)self->message); break;
        case PARALLEL_FORWARD: TRY(take_forward(self, head.deadline_ms)); break;
        case PARALLEL_END: return STATUS_OK;
        default: return STATUS_FAIL(STATUS_INTERNAL, "message %u is none", head.kind);
        }
    }
}

/* ---- life ---- */

static enum status join_group(struct follower *self, const char *argument)
{
    int fd, host_fd;
    unsigned rank;
    if (sscanf(strchr(argument, '=') + 1, "%d,%d,%u", &fd, &host_fd, &rank) != 3)
        return STATUS_FAIL(STATUS_INVALID, "%s: a worker starts its followers itself", argument);
    (void)fcntl(host_fd, F_SETFD, FD_CLOEXEC);
    self->host_fd = host_fd;
    self->rank = rank;
    TRY(rendezvous_join(fd, rank, &self->rendezvous));
    TRY(rendezvous_meet(self->rendezvous, clock_now_ms() + JOIN_MS));
    return collective_shared_ops.create(self->rendezvous, &self->collective);
}

static void end(struct follower *self)
{
    if (self->copies)
        pthread_join(self->copier, NULL);
    for (uint32_t i = 0; i < ARENAS_MAX; i++)
        if (self->arenas[i].bytes > 0)
            remove_arena(self, &(struct parallel_arena){.base = self->arenas[i].base, .bytes = self->arenas[i].bytes});
    if (self->backend != NULL)
        self->ranks->ops->destroy(&self->backend);
    model_destroy(&self->model);
    collective_shared_ops.destroy(&self->collective);
    rendezvous_destroy(&self->rendezvous);
    free(self->message);
    free(self->runs);
    free(self->homes);
    pthread_mutex_destroy(&self->lock);
}

int parallel_follower_main(const char *argument, const struct log_config *log)
{
    struct follower self = {.host_fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER};
    log_setup(log);
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    enum status st = join_group(&self, argument);
    if (st == STATUS_OK)
        st = follow(&self);
    if (st != STATUS_OK) {
        LOG_ERROR("rank %u ends: %s", self.rank, status_detail());
        if (self.rendezvous != NULL)
            rendezvous_abort(self.rendezvous, "rank %u: %.200s", self.rank, status_detail());
    }
    end(&self);
    return st == STATUS_OK ? 0 : 1;
}
