/* backend_cpu.c - the backend on the kernels of docs/numerics.md: its life, its memory (all taken at create) and its table. */
#include "worker/engine/backend/backend_cpu.h"
#include <stdlib.h>
#include <string.h>
#include "worker/engine/backend/backend_cpu_internal.h"
#include "worker/engine/backend/host_memory.h"

/* With base NULL only counts. */
static void *carve(char *base, size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return base ? base + at : NULL;
}

struct widths {                   /* floats of a row */
    size_t q, kv, inner, widest, kv_heads, head_dim;
};

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static struct widths find_widths(const struct model_config *config)
{
    struct widths widths = {.inner = config->per_layer_input};
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const struct model_attention *attention = &config->attention[type];
        widths.q = larger(widths.q, (size_t)config->head_count * attention->head_dim);
        widths.kv = larger(widths.kv, (size_t)attention->kv_head_count * attention->head_dim);
        widths.kv_heads = larger(widths.kv_heads, attention->kv_head_count);
    }
    for (uint32_t i = 0; i < config->layer_count; i++)
        widths.inner = larger(widths.inner, config->intermediate_size[i]);
    widths.widest = larger(larger(widths.inner, widths.q), config->hidden_size);
    return widths;
}

static size_t attention_bytes(const struct model_config *config)
{
    size_t most = 0;
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++)
        most = larger(most, attention_scratch_bytes(config->head_count, config->attention[type].kv_head_count, config->attention[type].head_dim));
    return most;
}

static void lay_out_rows(struct backend *self, char *base, size_t *used, const struct widths *widths)
{
    const struct model_config *config = &self->model->config;
    size_t rows = self->config.rows_max;
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        size_t pairs = config->attention[type].head_dim / 2;
        self->groups[type].frequency = carve(base, used, pairs * sizeof(double));
        self->groups[type].cosine = carve(base, used, rows * pairs * sizeof(float));
        self->groups[type].sine = carve(base, used, rows * pairs * sizeof(float));
    }
    self->x = carve(base, used, rows * config->hidden_size * sizeof(float));
    self->h = carve(base, used, rows * config->hidden_size * sizeof(float));
    self->q = carve(base, used, rows * widths->q * sizeof(float));
    self->attended = carve(base, used, rows * widths->q * sizeof(float));
    self->kv = carve(base, used, rows * widths->kv * sizeof(float));
    self->gate = carve(base, used, rows * widths->inner * sizeof(float));
    self->up = carve(base, used, rows * widths->inner * sizeof(float));
    if (config->per_layer_input)
        self->per_layer = carve(base, used, rows * config->layer_count * config->per_layer_input * sizeof(float));
    self->q_int8 = carve(base, used, rows * widths->q);
    self->q_scale = carve(base, used, rows * config->head_count * sizeof(float));
    for (unsigned scheme = 0; scheme < MODEL_SCHEMES; scheme++) {
        self->inputs[scheme].a = carve(base, used, rows * widths->widest);
        self->inputs[scheme].scale = carve(base, used, rows * sizeof(float));
    }
    self->inputs[MODEL_SCHEME_WIDE].a_low = carve(base, used, rows * widths->widest);
    self->tokens = carve(base, used, rows * sizeof *self->tokens);
    self->spans = carve(base, used, rows * sizeof *self->spans);
    self->pieces = carve(base, used, rows * sizeof *self->pieces);
}

static size_t lay_out(struct backend *self, char *base)
{
    const struct model_config *config = &self->model->config;
    const struct widths widths = find_widths(config);
    size_t used = 0;
    lay_out_rows(self, base, &used, &widths);
    self->scratch = carve(base, &used, self->config.threads * sizeof *self->scratch);
    for (uint32_t thread = 0; thread < self->config.threads; thread++) {
        struct cpu_scratch scratch;
        scratch.gemm = carve(base, &used, GEMM_SCRATCH_BYTES(widths.widest));
        scratch.attention = carve(base, &used, attention_bytes(config));
        scratch.row = carve(base, &used, widths.widest * sizeof(float));
        scratch.head = carve(base, &used, (size_t)self->config.rows_max * CPU_HEAD_SLICE * sizeof(float));
        scratch.kv = carve(base, &used, widths.kv);
        scratch.kv_scale = carve(base, &used, widths.kv_heads * sizeof(float));
        if (base)
            self->scratch[thread] = scratch;
    }
    return used;
}

static void cpu_destroy(struct backend **backend)
{
    struct backend *self = *backend;
    if (!self)
        return;
    cpu_ranks_destroy(&self->ranks);
    copy_queue_destroy(&self->copies);
    thread_pool_destroy(&self->pool);
    host_arena_destroy(&self->memory);
    free(self);
    *backend = NULL;
}

/* Inside kernels_float_enter. */
static void make_constants(struct backend *self)
{
    const struct model_config *config = &self->model->config;
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const struct model_attention *attention = &config->attention[type];
        const struct rope rope = {.base = attention->rope_base, .scale = attention->rope_scale, .dim = attention->head_dim,
                                  .pairs = attention->rope_pairs};
        rope_frequencies(&rope, self->groups[type].frequency);
        cpu_group_layout(&self->groups[type], attention);
    }
    self->constants = batch_constants(config);
}

static enum status cpu_create(const struct model *model, const struct backend_config *config, struct backend **out)
{
    TRY(batch_check_config(config));
    if (model->format != MODEL_FORMAT_INT8)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s is a roost-float model: the cpu backend wants roost-int8 (roost-convert), or use the float "
                           "backend", model->config.name);
    struct backend *self = calloc(1, sizeof *self);
    if (!self)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    self->model = model;
    self->config = *config;
    enum status st;
    fenv_t saved;
    kernels_float_enter(&saved);           /* the choice of a level runs a known answer */
    TRY_GOTO(kernels_select(&self->kernels), st, done);
    TRY_GOTO(host_arena_create(lay_out(self, NULL), &self->memory), st, done);
    (void)lay_out(self, self->memory);
    TRY_GOTO(thread_pool_create(config->threads, &self->pool), st, done);
    TRY_GOTO(copy_queue_create(&self->copies), st, done);
    make_constants(self);
    *out = self;
    self = NULL;
done:
    kernels_float_leave(&saved);
    cpu_destroy(&self);
    return st;
}

const char *backend_cpu_isa(const struct backend *backend)
{
    return backend->kernels->isa;
}

enum status cpu_compute(struct backend *self, const struct backend_batch *batch, uint32_t *failed_run)
{
    self->span_count = batch->run_count;
    self->rows = batch_spans(batch, self->spans);
    for (uint32_t i = 0; i < batch->run_count; i++)
        memcpy(self->tokens + self->spans[i].row, batch->runs[i].tokens, batch->runs[i].count * sizeof *self->tokens);
    atomic_store(&self->bad_row, UINT32_MAX);
    fenv_t saved;
    kernels_float_enter(&saved);
    enum status st = cpu_run_layers(self, self->tokens);
    kernels_float_leave(&saved);
    if (st == STATUS_CORRUPT && failed_run)
        *failed_run = self->failed_run;
    return st;
}

static enum status cpu_forward(struct backend *self, const struct backend_batch *batch, uint32_t *failed_run)
{
    TRY(batch_check(&self->model->config, &self->config, batch));
    return cpu_compute(self, batch, failed_run);
}

static enum status cpu_arena_create(struct backend *self, enum backend_tier tier, size_t bytes, void **base)
{
    (void)self, (void)tier;                 /* both tiers are the host's memory */
    return host_arena_create(bytes, base);
}

static void cpu_arena_destroy(struct backend *self, enum backend_tier tier, void **base)
{
    (void)self, (void)tier;
    host_arena_destroy(base);
}

static uint64_t cpu_copy_start(struct backend *self, void *dst, const void *src, size_t bytes)
{
    return copy_queue_start(self->copies, dst, src, bytes);
}

static bool cpu_copy_done(struct backend *self, uint64_t ticket)
{
    return copy_queue_done(self->copies, ticket);
}

static void cpu_copy_wait(struct backend *self, uint64_t ticket)
{
    copy_queue_wait(self->copies, ticket);
}

const struct backend_ops backend_cpu_ops = {
    .name = "cpu",
    .bits = "cpu",
    .create = cpu_create,
    .destroy = cpu_destroy,
    .page_bytes = cpu_page_bytes,
    .forward = cpu_forward,
    .page_copy_prefix = cpu_page_copy_prefix,
    .arena_create = cpu_arena_create,
    .arena_destroy = cpu_arena_destroy,
    .copy_start = cpu_copy_start,
    .copy_done = cpu_copy_done,
    .copy_wait = cpu_copy_wait,
};
