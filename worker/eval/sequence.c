#include "worker/eval/sequence.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "worker/engine/backend/backend.h"
#include "worker/engine/model/model.h"

struct sequence {
    const struct model *model;            /* borrowed */
    const struct backend_ops *ops;
    struct backend *backend;
    void *arena;                          /* pages of one group behind those of the other */
    void **pages[BACKEND_GROUPS_MAX];     /* (page_count) into the arena; NULL: the model has no such group */
    uint32_t page_count;
    uint32_t tokens_max;
    uint32_t count;
};

static enum status pages_create(struct sequence *sequence)
{
    size_t page_bytes[BACKEND_GROUPS_MAX], bytes = 0;
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
        page_bytes[group] = sequence->ops->page_bytes(sequence->backend, group);
        bytes += page_bytes[group] * sequence->page_count;
    }
    TRY(sequence->ops->arena_create(sequence->backend, BACKEND_TIER_DEVICE, bytes, &sequence->arena));
    uint8_t *at = sequence->arena;
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
        if (page_bytes[group] == 0)
            continue;
        sequence->pages[group] = calloc(sequence->page_count, sizeof *sequence->pages[group]);
        if (sequence->pages[group] == NULL)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a table of %u pages", sequence->page_count);
        for (uint32_t page = 0; page < sequence->page_count; page++, at += page_bytes[group])
            sequence->pages[group][page] = at;
    }
    return STATUS_OK;
}

enum status sequence_create(const struct model *model, uint32_t tokens_max, uint32_t threads, struct sequence **out)
{
    enum status st;
    assert(tokens_max > 0);
    struct sequence *sequence = calloc(1, sizeof *sequence);
    if (sequence == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a sequence");
    sequence->model = model;
    sequence->ops = model->format == MODEL_FORMAT_FLOAT ? &backend_float_ops : &backend_cpu_ops;
    sequence->tokens_max = tokens_max;
    sequence->page_count = (tokens_max + BACKEND_PAGE_TOKENS - 1) / BACKEND_PAGE_TOKENS;
    const struct backend_config config = { .rows_max = SEQUENCE_CHUNK_TOKENS, .threads = threads };
    TRY_GOTO(sequence->ops->create(model, &config, &sequence->backend), st, fail);
    TRY_GOTO(pages_create(sequence), st, fail);
    *out = sequence;
    return STATUS_OK;
fail:
    sequence_destroy(&sequence);
    return st;
}

void sequence_destroy(struct sequence **sequence)
{
    struct sequence *gone = *sequence;
    if (gone == NULL)
        return;
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
        free(gone->pages[group]);
    if (gone->backend != NULL)
        gone->ops->arena_destroy(gone->backend, BACKEND_TIER_DEVICE, &gone->arena);
    gone->ops->destroy(&gone->backend);
    free(gone);
    *sequence = NULL;
}

struct backend *sequence_backend(struct sequence *sequence)
{
    return sequence->backend;
}

uint32_t sequence_count(const struct sequence *sequence)
{
    return sequence->count;
}

void sequence_restart(struct sequence *sequence)
{
    sequence->count = 0;
}

static enum status run_chunk(struct sequence *sequence, const uint32_t *tokens, uint32_t count, float *logits)
{
    const struct backend_run run = {
        .tokens = tokens,
        .count = count,
        .start = sequence->count,
        .pages = { sequence->pages[0], sequence->pages[1] },
        .logits = logits,
        .logit_rows = logits != NULL ? count : 0,
    };
    const struct backend_batch batch = { .runs = &run, .run_count = 1 };
    TRY(sequence->ops->forward(sequence->backend, &batch, NULL));
    sequence->count += count;
    return STATUS_OK;
}

enum status sequence_run(struct sequence *sequence, const uint32_t *tokens, uint32_t count, float *logits)
{
    if (count > sequence->tokens_max - sequence->count)
        return STATUS_FAIL(STATUS_LIMIT, "%u tokens behind %u do not fit a window of %u", count, sequence->count, sequence->tokens_max);
    for (uint32_t done = 0; done < count; ) {
        const uint32_t left = count - done, chunk = left < SEQUENCE_CHUNK_TOKENS ? left : SEQUENCE_CHUNK_TOKENS;
        TRY(run_chunk(sequence, tokens + done, chunk,
                      logits != NULL ? logits + (size_t)done * sequence->model->config.vocab_size : NULL));
        done += chunk;
    }
    return STATUS_OK;
}
