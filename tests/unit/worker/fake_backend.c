/* fake_backend.c - a page of group 0 is 64 values; one of group 1 is 64 values and 64 check words. */
#include "tests/unit/worker/fake_backend.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "worker/engine/model/model.h"

enum { COPIES_MAX = 1 << 16, POISON = 0xDB };
static const uint64_t salts[BACKEND_GROUPS_MAX] = {0x5851F42D4C957F2Du, 0x14057B7EF767814Fu};

struct copy {
    uint32_t group, tokens; /* tokens > 0: a prefix, read when it lands */
    uint8_t *dst;
    const uint8_t *src;
    size_t bytes;
    uint64_t digest;
    uint32_t polls; /* questions still to be answered with no */
};

struct backend {
    const struct model *model; /* ref or NULL */
    struct fake_backend_shape shape;
    uint32_t rows_max;
    struct copy *copies;       /* ring; tickets first + 1 .. last are under way */
    uint64_t first, last, rng;
};

struct fake_backend_state fake_backend;

static void require(bool condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "fake backend: %s\n", what);
    abort();
}

/* ---- rows ---- */

uint64_t fake_backend_hash(uint64_t previous, uint32_t token)
{
    uint64_t z = (previous + 0x9E3779B97F4A7C15u) ^ token; /* one round of splitmix64: cheap, and enough to tell tokens apart */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (z ^ (z >> 31)) | 1;
}

static uint32_t check_word(uint64_t value)
{
    return (uint32_t)(value >> 32) ^ (uint32_t)value ^ 0xA5A5A5A5u;
}

uint64_t fake_backend_row(uint32_t group, const void *page, uint32_t row)
{
    require(page != NULL, "a page that attention reads is missing");
    uint64_t poison;
    const uint64_t value = ((const uint64_t *)page)[row];
    memset(&poison, POISON, sizeof poison);
    require(value != 0 && value != poison, "attention reads a row that was never written");
    if (group == 1)
        require(((const uint32_t *)((const uint64_t *)page + BACKEND_PAGE_TOKENS))[row] == check_word(value),
                "a row of group 1 is not what was written");
    return value ^ salts[group];
}

static void row_write(uint32_t group, void *page, uint32_t row, uint64_t hash)
{
    require(page != NULL, "a page to be written is missing");
    ((uint64_t *)page)[row] = hash ^ salts[group];
    if (group == 1)
        ((uint32_t *)((uint64_t *)page + BACKEND_PAGE_TOKENS))[row] = check_word(hash ^ salts[group]);
}

static void write_prefix(uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    memset(dst, 0, group == 0 ? FAKE_BACKEND_PAGE_GLOBAL : FAKE_BACKEND_PAGE_LOCAL);
    for (uint32_t i = 0; i < tokens; i++)
        row_write(group, dst, i, fake_backend_row(group, src, i));
    fake_backend.prefix_copies++;
}

static uint64_t row_at(const struct backend_run *run, uint32_t group, uint32_t position)
{
    return fake_backend_row(group, run->pages[group][position / BACKEND_PAGE_TOKENS], position % BACKEND_PAGE_TOKENS);
}

/* ---- life ---- */

static enum status create(const struct model *model, const struct backend_config *config, struct backend **out)
{
    struct backend *backend = calloc(1, sizeof *backend);
    if (backend != NULL)
        backend->copies = calloc(COPIES_MAX, sizeof *backend->copies);
    if (backend == NULL || backend->copies == NULL) {
        free(backend);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory");
    }
    backend->model = model;
    backend->rows_max = config->rows_max;
    backend->shape = fake_backend.shape;
    backend->rng = fake_backend.late_seed;
    if (model != NULL) {
        const struct model_config *shape = &model->config;
        backend->shape = (struct fake_backend_shape){.global = shape->producer_count[MODEL_LAYER_GLOBAL] > 0,
                                                     .local = shape->producer_count[MODEL_LAYER_LOCAL] > 0,
                                                     .window = shape->attention[MODEL_LAYER_LOCAL].window,
                                                     .sinks = shape->attention[MODEL_LAYER_LOCAL].sinks};
    }
    *out = backend;
    return STATUS_OK;
}

static void copy_land(struct backend *backend)
{
    struct copy *copy = &backend->copies[backend->first++ % COPIES_MAX];
    for (size_t i = 0; i < copy->bytes; i++)
        require(copy->dst[i] == POISON, "the destination of a copy was written under way");
    if (copy->tokens > 0) {
        write_prefix(copy->group, copy->dst, copy->src, copy->tokens);
        return;
    }
    require(hash_fast(copy->src, copy->bytes, 0) == copy->digest, "the source of a copy was written under way");
    memcpy(copy->dst, copy->src, copy->bytes);
}

static void destroy(struct backend **pointer)
{
    struct backend *backend = *pointer;
    if (backend == NULL)
        return;
    while (backend->first < backend->last)
        copy_land(backend);
    free(backend->copies);
    free(backend);
    *pointer = NULL;
}

static size_t page_bytes(const struct backend *backend, uint32_t group)
{
    if (group == 0)
        return backend->shape.global ? FAKE_BACKEND_PAGE_GLOBAL : 0;
    return backend->shape.local ? FAKE_BACKEND_PAGE_LOCAL : 0;
}

/* ---- forward ---- */

static bool has_group(const struct backend *backend, uint32_t group)
{
    return group == 0 ? backend->shape.global : backend->shape.local;
}

/* Folds what the token at `position` sees, itself included. */
static uint64_t attend(const struct backend *backend, const struct backend_run *run, uint32_t position)
{
    const struct fake_backend_shape *shape = &backend->shape;
    uint64_t all = 0;
    if (shape->global)
        for (uint32_t i = 0; i <= position; i++)
            all = all * 31 + row_at(run, 0, i);
    if (shape->local) {
        const uint32_t first = position + 1 > shape->window ? position + 1 - shape->window : 0;
        for (uint32_t i = 0; i < shape->sinks && i < first; i++)
            all = all * 31 + row_at(run, 1, i);
        for (uint32_t i = first; i <= position; i++)
            all = all * 31 + row_at(run, 1, i);
    }
    return all;
}

static void write_run(const struct backend *backend, const struct backend_run *run)
{
    uint64_t hash = run->start == 0 ? 1 : row_at(run, has_group(backend, 0) ? 0 : 1, run->start - 1);
    for (uint32_t i = 0; i < run->count; i++) {
        const uint32_t position = run->start + i;
        hash = fake_backend_hash(hash, run->tokens[i]);
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
            if (has_group(backend, g))
                row_write(g, run->pages[g][position / BACKEND_PAGE_TOKENS], position % BACKEND_PAGE_TOKENS, hash);
    }
}

static void write_logits(const struct backend *backend, const struct backend_run *run)
{
    const uint32_t last = run->start + run->count - 1;
    (void)attend(backend, run, run->start);      /* aborts on what is missing, wanted or not */
    if (run->logit_rows == 0)
        (void)attend(backend, run, last);
    for (uint32_t row = 0; row < run->logit_rows; row++) {
        const struct model_config *config = &backend->model->config;
        float *logits = run->logits + (size_t)row * config->vocab_size;
        const uint64_t all = attend(backend, run, last + 1 - run->logit_rows + row);
        for (uint32_t id = 0; id < config->vocab_size; id++) {
            logits[id] = (float)(hash_mix(all, id) >> 44) / (1 << 18);
            if (id > 4 && id < fake_backend.byte_ids_only)
                logits[id] += 20;
        }
        for (uint32_t e = 0; e < config->end_id_count; e++)
            logits[config->end_ids[e]] += fake_backend.eos_bonus;
    }
}

static void copy_wait(struct backend *backend, uint64_t ticket);

static enum status forward(struct backend *backend, const struct backend_batch *batch, uint32_t *failed_run)
{
    uint32_t rows = 0;
    for (uint32_t r = 0; r < batch->run_count; r++) {
        const struct backend_run *run = &batch->runs[r];
        require(run->count >= 1 && run->logit_rows <= run->count, "a run without tokens, or with more rows than tokens");
        require((run->logit_rows == 0) == (run->logits == NULL), "logits and logit_rows do not agree");
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
            require((run->pages[g] != NULL) == has_group(backend, g), "pages of a group that is absent, or none of one that is there");
        if (run->after > 0) {
            fake_backend.followed += backend->first < run->after;
            copy_wait(backend, run->after);
        }
        rows += run->count;
    }
    require(batch->run_count >= 1 && rows <= backend->rows_max, "a batch without runs, or with too many rows");
    fake_backend.forwards++;
    if (fake_backend.fail != STATUS_OK && fake_backend.fail_in-- == 0) {
        if (failed_run != NULL)
            *failed_run = fake_backend.fail_run < batch->run_count ? fake_backend.fail_run : batch->run_count - 1;
        return STATUS_FAIL(fake_backend.fail, "the fake backend was told to fail");
    }
    for (uint32_t r = 0; r < batch->run_count; r++)
        write_run(backend, &batch->runs[r]);
    for (uint32_t r = 0; r < batch->run_count; r++)
        write_logits(backend, &batch->runs[r]);
    fake_backend.tokens_computed += rows;
    fake_backend.runs += batch->run_count;
    return STATUS_OK;
}

static void page_copy_prefix(struct backend *backend, uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    require(has_group(backend, group) && tokens >= 1 && tokens <= BACKEND_PAGE_TOKENS && dst != src, "a wrong prefix copy");
    write_prefix(group, dst, src, tokens);
}

/* ---- arenas and copies ---- */

static enum status arena_create(struct backend *backend, enum backend_tier tier, size_t bytes, void **base)
{
    (void)backend;
    (void)tier;
    require(bytes > 0 && bytes % 64 == 0, "an arena of an odd size");
    *base = aligned_alloc(64, bytes);
    if (*base == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for an arena of %zu bytes", bytes);
    memset(*base, POISON, bytes);
    return STATUS_OK;
}

static void arena_destroy(struct backend *backend, enum backend_tier tier, void **base)
{
    (void)tier;
    require(*base == NULL || backend->first == backend->last, "an arena was destroyed under a copy");
    free(*base);
    *base = NULL;
}

static uint64_t put_copy(struct backend *backend, struct copy copy)
{
    require(copy.bytes > 0 && copy.dst != copy.src && backend->last - backend->first < COPIES_MAX, "a wrong copy, or too many");
    struct copy *place = &backend->copies[backend->last++ % COPIES_MAX];
    backend->rng = hash_mix(backend->rng, backend->last);
    copy.digest = copy.tokens > 0 ? 0 : hash_fast(copy.src, copy.bytes, 0);
    copy.polls = (uint32_t)(backend->rng % (fake_backend.late_polls_max + 1u));
    *place = copy;
    memset(copy.dst, POISON, copy.bytes);
    fake_backend.copies++;
    return backend->last;
}

static uint64_t copy_start(struct backend *backend, void *dst, const void *src, size_t bytes)
{
    return put_copy(backend, (struct copy){.dst = dst, .src = src, .bytes = bytes});
}

/* A copy after the other; the last one's ticket. */
static uint64_t load_start(struct backend *backend, const struct backend_page_copy *copies, uint32_t count)
{
    uint64_t ticket = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct backend_page_copy *copy = &copies[i];
        for (uint32_t k = 0; k < count; k++)
            require(copy->src != copies[k].dst, "a load that reads what it writes");
        ticket = put_copy(backend, (struct copy){.group = copy->group, .tokens = copy->tokens < BACKEND_PAGE_TOKENS ? copy->tokens : 0,
                                                 .dst = copy->dst, .src = copy->src, .bytes = page_bytes(backend, copy->group)});
    }
    require(ticket > 0, "an empty load");
    fake_backend.loads++;
    return ticket;
}

static bool copy_done(struct backend *backend, uint64_t ticket)
{
    require(ticket >= 1 && ticket <= backend->last, "an unknown ticket");
    while (backend->first < ticket && backend->copies[backend->first % COPIES_MAX].polls == 0)
        copy_land(backend);
    if (backend->first >= ticket)
        return true;
    backend->copies[backend->first % COPIES_MAX].polls--;
    return false;
}

static void copy_wait(struct backend *backend, uint64_t ticket)
{
    require(ticket >= 1 && ticket <= backend->last, "an unknown ticket");
    while (backend->first < ticket)
        copy_land(backend);
}

#define OPS \
    .name = "fake", .bits = "fake", .create = create, .destroy = destroy, .page_bytes = page_bytes, .forward = forward, \
    .page_copy_prefix = page_copy_prefix, .arena_create = arena_create, .arena_destroy = arena_destroy, .copy_start = copy_start, \
    .copy_done = copy_done, .copy_wait = copy_wait

const struct backend_ops fake_backend_ops = {OPS};
const struct backend_ops fake_backend_loading_ops = {OPS, .load_start = load_start};
