#include "tests/unit/worker/fake_backend.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "worker/engine/model.h"

struct backend {
    const struct model *model;
    uint32_t chunk_tokens_max;
};

struct fake_backend_state fake_backend;

static enum status create(const struct model *model, uint32_t chunk_tokens_max, struct backend **out)
{
    *out = calloc(1, sizeof **out);
    if (*out == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory");
    (*out)->model = model;
    (*out)->chunk_tokens_max = chunk_tokens_max;
    return STATUS_OK;
}

static void destroy(struct backend **backend)
{
    free(*backend);
    *backend = NULL;
}

static size_t page_bytes(const struct backend *backend)
{
    (void)backend;
    return BACKEND_PAGE_TOKENS * sizeof(uint64_t);
}

static uint64_t *row(const struct backend_run *run, uint32_t position)
{
    return (uint64_t *)run->pages[position / BACKEND_PAGE_TOKENS] + position % BACKEND_PAGE_TOKENS;
}

static enum status forward(struct backend *backend, const struct backend_run *run)
{
    const struct model_config *config = &backend->model->config;
    assert(run->count >= 1 && run->count <= backend->chunk_tokens_max && run->logit_rows <= 1);
    assert(run->start + run->count <= config->context_tokens_max);
    fake_backend.forwards++;
    if (fake_backend.fail != STATUS_OK && fake_backend.fail_in-- == 0)
        return STATUS_FAIL(fake_backend.fail, "the fake backend was told to fail");
    uint64_t hash = run->start == 0 ? 1 : *row(run, run->start - 1);
    for (uint32_t i = 0; i < run->count; i++) {
        hash = hash_mix(hash, run->tokens[i]);
        *row(run, run->start + i) = hash;
    }
    fake_backend.tokens_computed += run->count;
    /* Attention reads all of it: fold every position in. */
    uint64_t all = 0;
    for (uint32_t i = 0; i < run->start + run->count; i++)
        all = all * 31 + *row(run, i);
    if (run->logit_rows == 1)
        for (uint32_t id = 0; id < config->vocab_size; id++) {
            run->logits[id] = (float)(hash_mix(all, id) >> 44) / (1 << 18);
            if (id == config->eos_id)
                run->logits[id] += fake_backend.eos_bonus;
            if (id > 4 && id < fake_backend.byte_ids_only)
                run->logits[id] += 20;
        }
    return STATUS_OK;
}

static void page_copy_prefix(struct backend *backend, void *dst, const void *src, uint32_t tokens)
{
    (void)backend;
    assert(tokens >= 1 && tokens <= BACKEND_PAGE_TOKENS && dst != src);
    memcpy(dst, src, tokens * sizeof(uint64_t));
    memset((uint64_t *)dst + tokens, 0, (BACKEND_PAGE_TOKENS - tokens) * sizeof(uint64_t));
}

const struct backend_ops fake_backend_ops = {
    .name = "fake",
    .create = create,
    .destroy = destroy,
    .page_bytes = page_bytes,
    .forward = forward,
    .page_copy_prefix = page_copy_prefix,
};
