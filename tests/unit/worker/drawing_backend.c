#include "tests/unit/worker/drawing_backend.h"
#include <math.h>
#include <stdlib.h>
#include "tests/unit/worker/unit.h"
#include "worker/engine/model/model.h"
#include "worker/engine/text/sampler.h"

struct backend {
    const struct backend_ops *ops;      /* ref */
    struct backend *base;               /* owned; theirs, not this struct */
    struct sampler *sampler;            /* owned */
    uint32_t vocab_size, rows_max;
    uint32_t *masked, masked_count;     /* owned */
    struct backend_run *runs;           /* (rows_max), owned */
    float *logits;                      /* (rows_max, vocab), owned */
};

struct drawing_backend_state drawing_backend;

static void destroy(struct backend **pointer)
{
    struct backend *self = *pointer;
    if (self == NULL)
        return;
    self->ops->destroy(&self->base);
    sampler_destroy(&self->sampler);
    free(self->masked);
    free(self->runs);
    free(self->logits);
    free(self);
    *pointer = NULL;
}

static enum status create(const struct model *model, const struct backend_config *config, struct backend **out)
{
    struct backend *self = calloc(1, sizeof *self);
    assert_non_null(self);
    self->ops = drawing_backend.base;
    self->vocab_size = model->config.vocab_size;
    self->rows_max = config->rows_max;
    self->masked_count = config->masked_count;
    self->masked = malloc((config->masked_count + 1) * sizeof *self->masked);
    self->runs = calloc(config->rows_max, sizeof *self->runs);
    self->logits = malloc((size_t)config->rows_max * self->vocab_size * sizeof *self->logits);
    assert_true(self->masked != NULL && self->runs != NULL && self->logits != NULL);
    for (uint32_t i = 0; i < config->masked_count; i++)
        self->masked[i] = config->masked[i];
    assert_ok(sampler_create(self->vocab_size, &self->sampler));
    const enum status st = self->ops->create(model, config, &self->base);
    if (st != STATUS_OK)
        destroy(&self);
    *out = self;
    return st;
}

static enum status draw(struct backend *self, struct backend_sample *sample, float *logits)
{
    const struct sampler_options options = {.temperature = sample->temperature,
                                            .top_p = sample->top_p,
                                            .top_k = sample->top_k,
                                            .min_p = sample->min_p,
                                            .seed = sample->seed,
                                            .masked = self->masked,
                                            .masked_count = self->masked_count};
    const struct sampler_history history = {.count = sample->position, .choice = sample->choice};
    drawing_backend.drawn++;
    if (drawing_backend.spoil_in > 0 && --drawing_backend.spoil_in == 0)
        logits[self->vocab_size - 1] = NAN;
    return sampler_pick(self->sampler, &options, &history, logits, &sample->token);
}

static enum status forward(struct backend *self, const struct backend_batch *batch, uint32_t *failed_run)
{
    assert_true(batch->run_count <= self->rows_max);
    for (uint32_t i = 0; i < batch->run_count; i++) {
        const struct backend_run *run = &batch->runs[i];
        self->runs[i] = *run;
        drawing_backend.shown += run->sample == NULL ? run->logit_rows : 0;
        if (run->sample == NULL)
            continue;
        assert_true(run->logits == NULL && run->logit_rows == 1);
        self->runs[i].logits = self->logits + (size_t)i * self->vocab_size;
        self->runs[i].sample = NULL;
    }
    TRY(self->ops->forward(self->base, &(struct backend_batch){self->runs, batch->run_count}, failed_run));
    for (uint32_t i = 0; i < batch->run_count; i++) {
        if (batch->runs[i].sample == NULL)
            continue;
        *failed_run = i;
        TRY(draw(self, batch->runs[i].sample, self->runs[i].logits));
    }
    return STATUS_OK;
}

static bool samples(const struct backend *self)
{
    (void)self;
    return true;
}

/* ---- the rest is the other's ---- */

static size_t page_bytes(const struct backend *self, uint32_t group)
{
    return self->ops->page_bytes(self->base, group);
}

static void page_copy_prefix(struct backend *self, uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    self->ops->page_copy_prefix(self->base, group, dst, src, tokens);
}

static enum status arena_create(struct backend *self, enum backend_tier tier, size_t bytes, void **base)
{
    return self->ops->arena_create(self->base, tier, bytes, base);
}

static void arena_destroy(struct backend *self, enum backend_tier tier, void **base)
{
    self->ops->arena_destroy(self->base, tier, base);
}

static uint64_t copy_start(struct backend *self, void *dst, const void *src, size_t bytes)
{
    return self->ops->copy_start(self->base, dst, src, bytes);
}

static bool copy_done(struct backend *self, uint64_t ticket)
{
    return self->ops->copy_done(self->base, ticket);
}

static void copy_wait(struct backend *self, uint64_t ticket)
{
    self->ops->copy_wait(self->base, ticket);
}

const struct backend_ops drawing_backend_ops = {
    .name = "drawing",
    .bits = "cpu",
    .create = create,
    .destroy = destroy,
    .page_bytes = page_bytes,
    .forward = forward,
    .page_copy_prefix = page_copy_prefix,
    .arena_create = arena_create,
    .arena_destroy = arena_destroy,
    .copy_start = copy_start,
    .copy_done = copy_done,
    .copy_wait = copy_wait,
    .samples = samples,
};
