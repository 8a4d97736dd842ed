/* backend_cpu.c - the forward pass on the kernels of docs/numerics.md; one thread, all memory taken at create.
 *
 * A run goes through the layers as a whole:
 *
 *   tokens -> x -> [ norm -> q, k, v -> norms, rotation -> int8 -> k, v into the pages -> attention over pages -> o: x +=
 *                    norm -> gate, up -> activation -> down: x += ] * layers -> norm -> head -> logits
 *
 * Rows whose logits nobody wants stop after the last producing layer has stored their K and V. */
#include "worker/engine/backend_cpu.h"
#include <stdlib.h>
#include <string.h>
#include "kernels/kernels.h"
#include "worker/engine/backend.h"
#include "worker/engine/model.h"

#define LOG2_E 0x1.715476p+0f     /* log2(e) rounded to float32 */

struct backend {
    const struct model *model;    /* ref, owned by the caller */
    const struct kernels *kernels;
    uint32_t chunk_tokens_max;
    uint32_t last_producer;       /* layer */
    size_t slot_bytes;            /* of one producing layer in a page */
    void *memory;                 /* owned: all of the following */
    double *frequency[2];         /* by layer type: (head_dim / 2) */
    float *cosine[2], *sine[2];   /* (chunk, head_dim / 2) */
    float *x, *h;                 /* (chunk, hidden) */
    float *q, *attended;          /* (chunk, heads, head_dim) */
    float *k, *v;                 /* (chunk, kv_heads, head_dim) */
    float *gate, *up;             /* (chunk, intermediate) */
    int8_t *input;                /* (chunk, widest input of a projection) */
    float *input_scale;           /* (chunk) */
    int8_t *q_int8, *kv_int8;     /* as q and k */
    float *q_scale, *kv_scale;    /* (chunk, heads), (chunk, kv_heads) */
    void *gemm_scratch, *attention_scratch;
};

static size_t plane_bytes(const struct model_config *config)
{
    return (size_t)config->kv_head_count * BACKEND_PAGE_TOKENS * config->head_dim;
}

static size_t scale_bytes(const struct model_config *config)
{
    return (size_t)config->kv_head_count * BACKEND_PAGE_TOKENS * sizeof(float);
}

static void cpu_destroy(struct backend **backend)
{
    if (!*backend)
        return;
    free((*backend)->memory);
    free(*backend);
    *backend = NULL;
}

/* With base NULL only counts. */
static void *carve(char *base, size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return base ? base + at : NULL;
}

static size_t lay_out(struct backend *self, char *base)
{
    const struct model_config *config = &self->model->config;
    size_t chunk = self->chunk_tokens_max, hidden = config->hidden_size, inner = config->intermediate_size;
    size_t q_width = (size_t)config->head_count * config->head_dim, kv_width = (size_t)config->kv_head_count * config->head_dim;
    size_t pairs = config->head_dim / 2, widest = hidden > inner ? hidden : inner, used = 0;
    widest = widest > q_width ? widest : q_width;
    for (int type = 0; type < 2; type++) {
        self->frequency[type] = carve(base, &used, pairs * sizeof(double));
        self->cosine[type] = carve(base, &used, chunk * pairs * sizeof(float));
        self->sine[type] = carve(base, &used, chunk * pairs * sizeof(float));
    }
    self->x = carve(base, &used, chunk * hidden * sizeof(float));
    self->h = carve(base, &used, chunk * hidden * sizeof(float));
    self->q = carve(base, &used, chunk * q_width * sizeof(float));
    self->attended = carve(base, &used, chunk * q_width * sizeof(float));
    self->k = carve(base, &used, chunk * kv_width * sizeof(float));
    self->v = carve(base, &used, chunk * kv_width * sizeof(float));
    self->gate = carve(base, &used, chunk * inner * sizeof(float));
    self->up = carve(base, &used, chunk * inner * sizeof(float));
    self->input = carve(base, &used, chunk * widest);
    self->input_scale = carve(base, &used, chunk * sizeof(float));
    self->q_int8 = carve(base, &used, chunk * q_width);
    self->q_scale = carve(base, &used, chunk * config->head_count * sizeof(float));
    self->kv_int8 = carve(base, &used, chunk * kv_width);
    self->kv_scale = carve(base, &used, chunk * config->kv_head_count * sizeof(float));
    self->gemm_scratch = carve(base, &used, GEMM_SCRATCH_BYTES(widest));
    self->attention_scratch = carve(base, &used, attention_scratch_bytes(config->head_count, config->kv_head_count, config->head_dim));
    return used;
}

static enum status cpu_create(const struct model *model, uint32_t chunk_tokens_max, struct backend **out)
{
    const struct model_config *config = &model->config;
    if (chunk_tokens_max == 0 || chunk_tokens_max > config->context_tokens_max)
        return STATUS_FAIL(STATUS_INVALID, "a chunk of %u tokens, want 1 to the context of %u", chunk_tokens_max,
                           config->context_tokens_max);
    const struct kernels *kernels;
    TRY(kernels_select(&kernels));
    struct backend *self = calloc(1, sizeof *self);
    if (!self)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    self->model = model;
    self->kernels = kernels;
    self->chunk_tokens_max = chunk_tokens_max;
    self->slot_bytes = 2 * plane_bytes(config) + 2 * scale_bytes(config);
    size_t bytes = lay_out(self, NULL);
    self->memory = aligned_alloc(64, bytes);
    if (!self->memory) {
        cpu_destroy(&self);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %zu bytes of scratch", bytes);
    }
    memset(self->memory, 0, bytes);
    (void)lay_out(self, self->memory);
    for (uint32_t i = 0; i < config->layer_count; i++)
        if (config->kv_producer[i] == i)
            self->last_producer = i;
    fenv_t saved;
    kernels_float_enter(&saved);
    rope_frequencies(config->rope_base_global, config->head_dim, self->frequency[MODEL_LAYER_GLOBAL]);
    rope_frequencies(config->rope_base_local, config->head_dim, self->frequency[MODEL_LAYER_LOCAL]);
    kernels_float_leave(&saved);
    *out = self;
    return STATUS_OK;
}

static size_t cpu_page_bytes(const struct backend *backend)
{
    return backend->slot_bytes * backend->model->config.producer_count;
}

const char *backend_cpu_isa(const struct backend *backend)
{
    return backend->kernels->isa;
}

static enum status not_finite(const char *what, uint32_t layer)
{
    return STATUS_FAIL(STATUS_CORRUPT, "a NaN or infinity appeared in %s of layer %u", what, layer);
}

static bool norm_rows(const struct backend *self, const float *x, const float *weight, size_t rows, size_t columns, float *out)
{
    struct rmsnorm norm = {.x = x, .weight = weight, .epsilon = self->model->config.norm_epsilon, .rows = rows, .columns = columns, .out = out};
    return self->kernels->rmsnorm_rows(&norm);
}

/* out (rows, matrix outputs) from the quantised rows in self->input. */
static void project(const struct backend *self, const struct model_matrix *matrix, size_t rows, bool accumulate, float *out)
{
    struct gemm_int8 gemm = {.a = self->input, .a_scale = self->input_scale, .w = matrix->weight, .w_scale = matrix->scale,
                             .rows = rows, .outputs = matrix->rows, .depth = matrix->columns, .out = out,
                             .accumulate = accumulate, .scratch = self->gemm_scratch};
    self->kernels->gemm_int8(&gemm);
}

static void *page_of(const struct backend *self, const struct backend_run *run, uint32_t layer, uint32_t position)
{
    char *page = run->pages[position / BACKEND_PAGE_TOKENS];
    return page + self->model->config.producer_slot[layer] * self->slot_bytes;
}

/* self->kv_int8 into the K plane, one row a token, or into the V plane, one column a token. */
static void store_plane(const struct backend *self, const struct backend_run *run, uint32_t layer, bool value)
{
    const struct model_config *config = &self->model->config;
    size_t dim = config->head_dim, heads = config->kv_head_count;
    for (uint32_t row = 0; row < run->count; row++) {
        uint32_t position = run->start + row;
        size_t token = position % BACKEND_PAGE_TOKENS;
        char *slot = page_of(self, run, layer, position);
        int8_t *plane = (int8_t *)(slot + (value ? plane_bytes(config) : 0));
        float *scale = (float *)(slot + 2 * plane_bytes(config) + (value ? scale_bytes(config) : 0));
        for (size_t head = 0; head < heads; head++) {
            const int8_t *from = self->kv_int8 + (row * heads + head) * dim;
            int8_t *to = plane + head * BACKEND_PAGE_TOKENS * dim;
            if (value)
                for (size_t d = 0; d < dim; d++)
                    to[d * BACKEND_PAGE_TOKENS + token] = from[d];
            else
                memcpy(to + token * dim, from, dim);
            scale[head * BACKEND_PAGE_TOKENS + token] = self->kv_scale[row * heads + head];
        }
    }
}

static enum status produce_kv(const struct backend *self, const struct backend_run *run, uint32_t index)
{
    const struct model_config *config = &self->model->config;
    const struct model_layer *layer = &self->model->layers[index];
    const struct kernels *kernels = self->kernels;
    enum model_layer_type type = config->layer_types[index];
    size_t dim = config->head_dim, heads = config->kv_head_count, vectors = run->count * heads;

    project(self, &layer->k_proj, run->count, false, self->k);
    if (layer->k_norm && !norm_rows(self, self->k, layer->k_norm, vectors, dim, self->k))
        return not_finite("K", index);
    kernels->rope_rows(self->k, run->count, heads, dim, self->cosine[type], self->sine[type]);
    if (!kernels->quantize_rows(self->k, vectors, dim, self->kv_int8, self->kv_scale))
        return not_finite("K", index);
    store_plane(self, run, index, false);

    project(self, &layer->v_proj, run->count, false, self->v);
    if (!kernels->quantize_rows(self->v, vectors, dim, self->kv_int8, self->kv_scale))
        return not_finite("V", index);
    store_plane(self, run, index, true);
    return STATUS_OK;
}

/* Of the run's rows from `first` on; self->input holds their quantised, normed inputs. Leaves o_proj's input in self->input. */
static enum status attend(const struct backend *self, const struct backend_run *run, uint32_t index, uint32_t first)
{
    const struct model_config *config = &self->model->config;
    const struct model_layer *layer = &self->model->layers[index];
    const struct kernels *kernels = self->kernels;
    enum model_layer_type type = config->layer_types[index];
    size_t dim = config->head_dim, heads = config->head_count, rows = run->count - first, pairs = dim / 2;

    project(self, &layer->q_proj, rows, false, self->q);
    if (layer->q_norm && !norm_rows(self, self->q, layer->q_norm, rows * heads, dim, self->q))
        return not_finite("Q", index);
    kernels->rope_rows(self->q, rows, heads, dim, self->cosine[type] + first * pairs, self->sine[type] + first * pairs);
    if (!kernels->quantize_rows(self->q, rows * heads, dim, self->q_int8, self->q_scale))
        return not_finite("Q", index);

    size_t slot = config->producer_slot[config->kv_producer[index]] * self->slot_bytes;
    struct attention attention = {
        .q = self->q_int8, .q_scale = self->q_scale, .rows = rows, .heads = heads, .kv_heads = config->kv_head_count, .dim = dim,
        .start = run->start + first, .window = type == MODEL_LAYER_LOCAL ? config->window : 0,
        .score_scale = config->attention_scale * LOG2_E, .pages = run->pages, .k_offset = slot,
        .v_offset = slot + plane_bytes(config), .k_scale_offset = slot + 2 * plane_bytes(config),
        .v_scale_offset = slot + 2 * plane_bytes(config) + scale_bytes(config), .out = self->attended,
        .scratch = self->attention_scratch};
    kernels->attention(&attention);
    if (!kernels->quantize_rows(self->attended, rows, heads * dim, self->input, self->input_scale))
        return not_finite("the attention", index);
    return STATUS_OK;
}

static enum status feed_forward(const struct backend *self, uint32_t index, size_t rows, float *x)
{
    const struct model_config *config = &self->model->config;
    const struct model_layer *layer = &self->model->layers[index];
    const struct kernels *kernels = self->kernels;
    if (!norm_rows(self, x, layer->post_attention_norm, rows, config->hidden_size, self->h) ||
        !kernels->quantize_rows(self->h, rows, config->hidden_size, self->input, self->input_scale))
        return not_finite("the attention's output", index);
    project(self, &layer->gate_proj, rows, false, self->gate);
    project(self, &layer->up_proj, rows, false, self->up);
    activation_gate_fn *gate = config->activation == MODEL_ACTIVATION_SILU ? kernels->silu_gate : kernels->gelu_tanh_gate;
    gate(self->gate, self->up, rows * config->intermediate_size);
    if (!kernels->quantize_rows(self->gate, rows, config->intermediate_size, self->input, self->input_scale))
        return not_finite("the feed-forward part", index);
    project(self, &layer->down_proj, rows, true, x);
    return STATUS_OK;
}

static enum status run_layers(const struct backend *self, const struct backend_run *run)
{
    const struct model_config *config = &self->model->config;
    const struct kernels *kernels = self->kernels;
    uint32_t first = 0;                       /* rows below it have stopped */
    for (uint32_t index = 0; index < config->layer_count; index++) {
        const struct model_layer *layer = &self->model->layers[index];
        float *x = self->x + (size_t)first * config->hidden_size;
        if (!norm_rows(self, x, layer->input_norm, run->count - first, config->hidden_size, self->h) ||
            !kernels->quantize_rows(self->h, run->count - first, config->hidden_size, self->input, self->input_scale))
            return not_finite("the input", index);
        if (config->kv_producer[index] == index)
            TRY(produce_kv(self, run, index));
        if (index == self->last_producer) {
            if (run->logit_rows == 0)
                return STATUS_OK;
            first = run->count - run->logit_rows;
            x = self->x + (size_t)first * config->hidden_size;
            memmove(self->input, self->input + (size_t)first * config->hidden_size, (size_t)run->logit_rows * config->hidden_size);
            memmove(self->input_scale, self->input_scale + first, run->logit_rows * sizeof *self->input_scale);
        }
        TRY(attend(self, run, index, first));
        project(self, &layer->o_proj, run->count - first, true, x);
        TRY(feed_forward(self, index, run->count - first, x));
    }
    return STATUS_OK;
}

static enum status compute_logits(const struct backend *self, const struct backend_run *run)
{
    const struct model *model = self->model;
    const struct model_config *config = &model->config;
    const float *x = self->x + (size_t)(run->count - run->logit_rows) * config->hidden_size;
    if (!norm_rows(self, x, model->final_norm, run->logit_rows, config->hidden_size, self->h) ||
        !self->kernels->quantize_rows(self->h, run->logit_rows, config->hidden_size, self->input, self->input_scale))
        return not_finite("the output", config->layer_count - 1);
    project(self, &model->embedding, run->logit_rows, false, run->logits);
    if (!self->kernels->all_finite(run->logits, (size_t)run->logit_rows * config->vocab_size))
        return STATUS_FAIL(STATUS_CORRUPT, "a NaN or infinity appeared in the logits");
    return STATUS_OK;
}

static enum status check_run(const struct backend *self, const struct backend_run *run)
{
    const struct model_config *config = &self->model->config;
    if (run->count == 0 || run->count > self->chunk_tokens_max)
        return STATUS_FAIL(STATUS_INVALID, "a run of %u tokens, want 1 to %u", run->count, self->chunk_tokens_max);
    if (run->start > config->context_tokens_max || run->count > config->context_tokens_max - run->start)
        return STATUS_FAIL(STATUS_LIMIT, "tokens %u to %u are beyond the context of %u", run->start, run->start + run->count,
                           config->context_tokens_max);
    if (run->logit_rows > run->count || (run->logit_rows && !run->logits))
        return STATUS_FAIL(STATUS_INVALID, "%u rows of logits from %u tokens", run->logit_rows, run->count);
    for (uint32_t i = 0; i < run->count; i++)
        if (run->tokens[i] >= config->vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "token %u is not below the vocabulary's %u", run->tokens[i], config->vocab_size);
    return STATUS_OK;
}

static enum status cpu_forward(struct backend *self, const struct backend_run *run)
{
    const struct model *model = self->model;
    const struct model_config *config = &model->config;
    TRY(check_run(self, run));
    fenv_t saved;
    kernels_float_enter(&saved);
    for (uint32_t i = 0; i < run->count; i++)
        self->kernels->dequantize_row(model->embedding.weight + (size_t)run->tokens[i] * config->hidden_size,
                                      model->embedding.scale[run->tokens[i]], config->hidden_size,
                                      self->x + (size_t)i * config->hidden_size);
    for (int type = 0; type < 2; type++)
        self->kernels->rope_table(self->frequency[type], config->head_dim / 2, run->start, run->count, self->cosine[type],
                                  self->sine[type]);
    enum status st = run_layers(self, run);
    if (st == STATUS_OK && run->logit_rows)
        st = compute_logits(self, run);
    kernels_float_leave(&saved);
    return st;
}

static void cpu_page_copy_prefix(struct backend *self, void *dst, const void *src, uint32_t tokens)
{
    const struct model_config *config = &self->model->config;
    size_t dim = config->head_dim, heads = config->kv_head_count;
    memset(dst, 0, cpu_page_bytes(self));
    for (uint16_t slot = 0; slot < config->producer_count; slot++) {
        char *to = (char *)dst + slot * self->slot_bytes;
        const char *from = (const char *)src + slot * self->slot_bytes;
        for (size_t head = 0; head < heads; head++) {
            size_t at = head * BACKEND_PAGE_TOKENS * dim;
            memcpy(to + at, from + at, tokens * dim);                             /* K rows */
        }
        to += plane_bytes(config);
        from += plane_bytes(config);
        for (size_t line = 0; line < heads * dim; line++)
            memcpy(to + line * BACKEND_PAGE_TOKENS, from + line * BACKEND_PAGE_TOKENS, tokens);   /* V columns */
        to += plane_bytes(config);
        from += plane_bytes(config);
        for (size_t line = 0; line < 2 * heads; line++) {
            size_t at = line * BACKEND_PAGE_TOKENS * sizeof(float);
            memcpy(to + at, from + at, tokens * sizeof(float));                   /* both planes of scales */
        }
    }
}

const struct backend_ops backend_cpu_ops = {
    .name = "cpu",
    .create = cpu_create,
    .destroy = cpu_destroy,
    .page_bytes = cpu_page_bytes,
    .forward = cpu_forward,
    .page_copy_prefix = cpu_page_copy_prefix,
};
