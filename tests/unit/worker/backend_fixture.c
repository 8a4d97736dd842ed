#include "backend_fixture.h"
#include <math.h>
#include <string.h>
#include "common/hash.h"
#include "unit.h"
#include "worker/engine/backend/backend_cpu.h"

struct model *model_make(const struct random_model *shape)
{
    struct model *model = random_model_make(shape);
    assert_non_null(model);
    return model;
}

struct model *model_make_with(const struct random_model *shape, enum random_recipe recipe)
{
    struct random_model other = *shape;
    other.recipe = recipe;
    return model_make(&other);
}

struct backend *backend_make(const struct backend_ops *ops, const struct model *model, const char *isa, struct backend_config config)
{
    struct backend *backend = NULL;
    if (isa)
        setenv("ROOST_ISA", isa, 1);
    assert_ok(ops->create(model, &config, &backend));
    unsetenv("ROOST_ISA");
    if (isa && ops == &backend_cpu_ops)
        assert_string_equal(backend_cpu_isa(backend), isa);
    return backend;
}

void session_open(struct session *session, const struct backend_ops *ops, const struct model *model, struct backend *backend,
                  const uint32_t *tokens)
{
    *session = (struct session){.model = model, .ops = ops, .backend = backend, .tokens = tokens};
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        size_t bytes = ops->page_bytes(backend, group);
        assert_int_equal(bytes % 64, 0);
        for (unsigned i = 0; bytes > 0 && i < PAGES_MAX; i++) {
            session->pages[group][i] = aligned_alloc(64, bytes);
            memset(session->pages[group][i], 0xff, bytes);
        }
    }
}

void session_open_on_device(struct session *session, const struct backend_ops *ops, const struct model *model, struct backend *backend,
                            const uint32_t *tokens)
{
    *session = (struct session){.model = model, .ops = ops, .backend = backend, .tokens = tokens};
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const size_t bytes = ops->page_bytes(backend, group);
        if (bytes == 0)
            continue;
        char *image = malloc(bytes);
        assert_non_null(image);
        memset(image, 0xff, bytes);
        assert_ok(ops->arena_create(backend, BACKEND_TIER_DEVICE, bytes * PAGES_MAX, &session->arenas[group]));
        for (unsigned i = 0; i < PAGES_MAX; i++) {
            session->pages[group][i] = (char *)session->arenas[group] + i * bytes;
            session_page_put(session, group, i, image);
        }
        free(image);
    }
}

/* Through the host tier, as every copy of a page. */
static void *bounce(const struct session *session, size_t bytes)
{
    void *base = NULL;
    assert_ok(session->ops->arena_create(session->backend, BACKEND_TIER_HOST, bytes, &base));
    return base;
}

static void copy(const struct session *session, void *dst, const void *src, size_t bytes)
{
    session->ops->copy_wait(session->backend, session->ops->copy_start(session->backend, dst, src, bytes));
}

void *session_page(const struct session *session, unsigned group, unsigned page)
{
    const size_t bytes = session->ops->page_bytes(session->backend, group);
    void *base = bounce(session, bytes), *image = malloc(bytes);
    assert_non_null(image);
    copy(session, base, session->pages[group][page], bytes);
    memcpy(image, base, bytes);
    session->ops->arena_destroy(session->backend, BACKEND_TIER_HOST, &base);
    return image;
}

void session_page_put(struct session *session, unsigned group, unsigned page, const void *image)
{
    const size_t bytes = session->ops->page_bytes(session->backend, group);
    void *base = bounce(session, bytes);
    memcpy(base, image, bytes);
    copy(session, session->pages[group][page], base, bytes);
    session->ops->arena_destroy(session->backend, BACKEND_TIER_HOST, &base);
}

void session_close(struct session *session)
{
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        for (unsigned i = 0; i < PAGES_MAX && session->arenas[group] == NULL; i++)
            free(session->pages[group][i]);
        if (session->arenas[group] != NULL)
            session->ops->arena_destroy(session->backend, BACKEND_TIER_DEVICE, &session->arenas[group]);
    }
}

void tokens_fill(const struct model *model, uint64_t salt, uint32_t *tokens, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = (uint32_t)(hash_mix(i, 99 + salt) % model->config.vocab_size);
}

struct backend_run session_run(struct session *session, uint32_t start, uint32_t count, float *logits, uint32_t rows)
{
    struct backend_run run = {.tokens = session->tokens + start, .count = count, .start = start, .logits = logits, .logit_rows = rows};
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        run.pages[group] = session->model->config.producer_count[group] ? session->pages[group] : NULL;
    return run;
}

void forward_batch(struct session *session, const struct backend_run *runs, uint32_t count)
{
    const struct backend_batch batch = {.runs = runs, .run_count = count};
    if (session->ops->forward(session->backend, &batch, NULL) != STATUS_OK)
        fail_msg("%s", status_detail());
}

void forward(struct session *session, uint32_t start, uint32_t count, float *logits, uint32_t rows)
{
    const struct backend_run run = session_run(session, start, count, logits, rows);
    forward_batch(session, &run, 1);
}

void forward_all(struct session *session, uint32_t start, uint32_t end, uint32_t chunk, float *logits)
{
    size_t vocab = session->model->config.vocab_size;
    for (uint32_t at = start; at < end;) {
        uint32_t count = end - at < chunk ? end - at : chunk;
        forward(session, at, count, logits + (size_t)(at - start) * vocab, count);
        at += count;
    }
}

float *logits_new(const struct model *model, uint32_t rows)
{
    float *logits = calloc((size_t)rows * model->config.vocab_size, sizeof *logits);
    assert_non_null(logits);
    return logits;
}

double distance(const float *a, const float *b, size_t count)
{
    double error = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return sqrt(error / size);
}
