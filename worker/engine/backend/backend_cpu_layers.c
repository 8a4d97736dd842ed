/* backend_cpu_layers.c - the forward pass of docs/numerics.md, section 8, over the rows of a whole batch.
 *
 *   tokens -> x -> [ norm -> k, v -> pages;  q -> attention over pages -> o -> (norm) -> x +=
 *                    norm -> gate, up -> activation -> down -> (norm) -> x +=
 *                    (per-layer input: gate of x -> activation -> projection -> norm -> x +=, x *= scalar) ] * layers -> norm -> head
 *
 * Rows whose logits nobody wants leave once the last producing layer has stored their K and V; the rows behind them move up. */
#include <string.h>
#include "worker/engine/backend/backend_cpu_internal.h"

#define GATE_COST 8u                      /* an activation beside a plain element */

static bool norm(const struct backend *self, const float *x, const float *weight, size_t rows, size_t columns, float *out)
{
    struct rmsnorm job = {.x = x, .weight = weight, .epsilon = self->model->config.norm_epsilon, .rows = rows, .columns = columns, .out = out};
    return self->kernels->rmsnorm_rows(&job);
}

/* ---- rows: one row's share of a step ---- */

static bool embed_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    const struct model_matrix *embedding = &self->model->embedding;
    const uint32_t *tokens = job;
    size_t hidden = embedding->columns;
    float *x = self->x + row * hidden, scale = self->model->config.embedding_scale;
    self->kernels->dequantize_row((const int8_t *)embedding->weight + tokens[row] * hidden, embedding->scale[tokens[row]], hidden, x);
    for (size_t i = 0; i < hidden; i++)
        x[i] = x[i] * scale;
    return true;
}

/* f = per_layer holds the projection of x; becomes the inputs of all layers. */
static bool per_layer_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    const struct model *model = self->model;
    const struct model_matrix *embedding = &model->per_layer_embedding;
    const uint32_t *tokens = job;
    size_t width = model->config.per_layer_input, layers = model->config.layer_count;
    float *looked_up = self->scratch[thread].row;
    for (size_t layer = 0; layer < layers; layer++) {
        float *f = self->per_layer + (row * layers + layer) * width;
        for (size_t i = 0; i < width; i++)
            f[i] = f[i] * self->constants.per_layer_in;
        if (!norm(self, f, model->per_layer_proj_norm, 1, width, f))
            return false;
        self->kernels->dequantize_row((const int8_t *)embedding->weight + (tokens[row] * layers + layer) * width,
                                      embedding->scale[tokens[row] * layers + layer], width, looked_up);
        for (size_t i = 0; i < width; i++)
            f[i] = (f[i] + looked_up[i] * self->constants.per_layer_embed) * BATCH_PER_LAYER_SUM;
    }
    return true;
}

static bool norm_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    size_t hidden = self->model->config.hidden_size;
    return norm(self, self->x + row * hidden, job, 1, hidden, self->h + row * hidden);
}

/* x = x + norm(h) */
static bool add_normed_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    size_t hidden = self->model->config.hidden_size;
    float *x = self->x + row * hidden, *h = self->h + row * hidden;
    if (!norm(self, h, job, 1, hidden, h))
        return false;
    for (size_t i = 0; i < hidden; i++)
        x[i] = x[i] + h[i];
    return true;
}

static void rotate(const struct backend *self, enum model_layer_type type, float *x, uint32_t row, size_t heads)
{
    const struct cpu_group *group = &self->groups[type];
    size_t dim = self->model->config.attention[type].head_dim, at = row * (dim / 2);
    self->kernels->rope_rows(x, 1, heads, dim, group->cosine + at, group->sine + at);
}

struct kv_job {
    uint32_t layer;
    bool value;
};

static bool kv_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    const struct kv_job *kv = job;
    const struct model_config *config = &self->model->config;
    enum model_layer_type type = config->layer_types[kv->layer];
    size_t dim = config->attention[type].head_dim, heads = config->attention[type].kv_head_count;
    const float *weight = kv->value ? NULL : self->model->layers[kv->layer].k_norm;
    float *x = self->kv + row * heads * dim;
    if ((kv->value ? config->v_norm : weight != NULL) && !norm(self, x, weight, heads, dim, x))
        return false;
    if (!kv->value)
        rotate(self, type, x, row, heads);
    return cpu_store_kv(self, kv->layer, kv->value, row, thread);
}

static bool q_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    const uint32_t *index = job;
    const struct model_config *config = &self->model->config;
    const float *weight = self->model->layers[*index].q_norm;
    enum model_layer_type type = config->layer_types[*index];
    size_t dim = config->attention[type].head_dim, heads = config->head_count;
    float *x = self->q + row * heads * dim;
    if (weight && !norm(self, x, weight, heads, dim, x))
        return false;
    rotate(self, type, x, row, heads);
    return self->kernels->quantize_rows(x, heads, dim, self->q_int8 + row * heads * dim, self->q_scale + row * heads);
}

static void gate(const struct backend *self, float *x, const float *with, size_t count)
{
    if (self->model->config.activation == MODEL_ACTIVATION_SILU)
        self->kernels->silu_gate(x, with, count);
    else
        self->kernels->gelu_tanh_gate(x, with, count);
}

static bool gate_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    const uint32_t *index = job;
    size_t inner = self->model->config.intermediate_size[*index];
    gate(self, self->gate + row * inner, self->up + row * inner, inner);
    return true;
}

static bool per_layer_gate_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    const uint32_t *index = job;
    size_t width = self->model->config.per_layer_input, layers = self->model->config.layer_count;
    gate(self, self->gate + row * width, self->per_layer + (row * layers + *index) * width, width);
    return true;
}

static bool finish_per_layer_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    const struct model_layer *layer = job;
    size_t hidden = self->model->config.hidden_size;
    float *x = self->x + row * hidden;
    if (!add_normed_row(self, layer->per_layer_norm, row, thread))
        return false;
    for (size_t i = 0; i < hidden; i++)
        x[i] = x[i] * layer->layer_scalar;
    return true;
}

/* ---- steps: all rows ---- */

static void rope_tables(struct backend *self)
{
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        struct cpu_group *group = &self->groups[type];
        size_t pairs = self->model->config.attention[type].head_dim / 2;
        for (uint32_t s = 0; s < self->span_count; s++) {
            size_t at = self->spans[s].row * pairs;
            self->kernels->rope_table(group->frequency, pairs, self->spans[s].start, self->spans[s].count, group->cosine + at, group->sine + at);
        }
    }
}

static enum status start(struct backend *self, const uint32_t *tokens)
{
    const struct model *model = self->model;
    size_t hidden = model->config.hidden_size, widths = (size_t)model->config.layer_count * model->config.per_layer_input;
    TRY(cpu_each_row(self, embed_row, tokens, hidden, "the embedding", 0));
    rope_tables(self);
    if (widths == 0)
        return STATUS_OK;
    cpu_set_input(self, self->x, hidden);
    TRY(cpu_project(self, &model->per_layer_model_proj, false, self->per_layer, "the per-layer inputs", 0));
    return cpu_each_row(self, per_layer_row, tokens, widths, "the per-layer inputs", 0);
}

static enum status produce_kv(struct backend *self, uint32_t index)
{
    const struct model_layer *layer = &self->model->layers[index];
    TRY(cpu_project_own(self, &layer->k_proj, self->kv, "the input", index));
    TRY(cpu_each_own_row(self, kv_row, &(struct kv_job){index, false}, 2 * layer->k_proj.rows, "K", index));
    TRY(cpu_project_own(self, &layer->v_proj, self->kv, "the input", index));
    return cpu_each_own_row(self, kv_row, &(struct kv_job){index, true}, 2 * layer->v_proj.rows, "V", index);
}

static void move_rows(float *rows, size_t columns, uint32_t to, uint32_t from, uint32_t count)
{
    if (rows && to != from)
        memmove(rows + to * columns, rows + from * columns, count * columns * sizeof *rows);
}

/* Leaves only rows whose logits are wanted, in their order. */
static void keep_wanted(struct backend *self)
{
    const struct model_config *config = &self->model->config;
    uint32_t rows = 0, kept = 0;
    for (uint32_t s = 0; s < self->span_count; s++) {
        struct batch_span span = self->spans[s];
        uint32_t skip = span.count - (span.run->logit_rows < span.count ? span.run->logit_rows : span.count);
        uint32_t from = span.row + skip, count = span.count - skip;
        if (count == 0)
            continue;
        move_rows(self->x, config->hidden_size, rows, from, count);
        move_rows(self->h, config->hidden_size, rows, from, count);
        move_rows(self->per_layer, (size_t)config->layer_count * config->per_layer_input, rows, from, count);
        for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
            move_rows(self->groups[type].cosine, config->attention[type].head_dim / 2, rows, from, count);
            move_rows(self->groups[type].sine, config->attention[type].head_dim / 2, rows, from, count);
        }
        self->spans[kept++] = (struct batch_span){span.run, span.run_index, rows, count, span.start + skip};
        rows += count;
    }
    self->span_count = kept;
    self->rows = rows;
    cpu_plan_attention(self);
}

static enum status attend(struct backend *self, uint32_t index)
{
    const struct model_layer *layer = &self->model->layers[index];
    size_t width = layer->q_proj.rows;
    TRY(cpu_project_home(self, &layer->q_proj, self->q, "the input", index));
    TRY(cpu_each_own_row(self, q_row, &index, 2 * width, "Q", index));
    cpu_attend(self, index);
    TRY(cpu_gather_attended(self, width));
    cpu_set_input(self, self->attended, width);
    if (!layer->attention_norm)
        return cpu_project(self, &layer->o_proj, true, self->x, "the attention", index);
    TRY(cpu_project(self, &layer->o_proj, false, self->h, "the attention", index));
    return cpu_each_row(self, add_normed_row, layer->attention_norm, 2 * layer->o_proj.rows, "the attention's output", index);
}

static enum status feed_forward(struct backend *self, uint32_t index)
{
    const struct model_layer *layer = &self->model->layers[index];
    size_t hidden = self->model->config.hidden_size, inner = layer->gate_proj.rows;
    TRY(cpu_each_row(self, norm_row, layer->mlp_norm, hidden, "the attention's output", index));
    cpu_set_input(self, self->h, hidden);
    if (self->ranks) {
        TRY(cpu_ranks_gate(self, layer, gate, index));
    } else {
        TRY(cpu_project(self, &layer->gate_proj, false, self->gate, "the attention's output", index));
        TRY(cpu_project(self, &layer->up_proj, false, self->up, "the attention's output", index));
        TRY(cpu_each_row(self, gate_row, &index, GATE_COST * inner, "the activation", index));
    }
    cpu_set_input(self, self->gate, inner);
    if (!layer->mlp_result_norm)
        return cpu_project(self, &layer->down_proj, true, self->x, "the activation", index);
    TRY(cpu_project(self, &layer->down_proj, false, self->h, "the activation", index));
    return cpu_each_row(self, add_normed_row, layer->mlp_result_norm, 2 * hidden, "the feed-forward output", index);
}

static enum status add_per_layer(struct backend *self, uint32_t index)
{
    const struct model_layer *layer = &self->model->layers[index];
    size_t hidden = self->model->config.hidden_size, width = self->model->config.per_layer_input;
    cpu_set_input(self, self->x, hidden);
    TRY(cpu_project(self, &layer->per_layer_gate, false, self->gate, "the feed-forward output", index));
    TRY(cpu_each_row(self, per_layer_gate_row, &index, GATE_COST * width, "the per-layer input", index));
    cpu_set_input(self, self->gate, width);
    TRY(cpu_project(self, &layer->per_layer_proj, false, self->h, "the per-layer input", index));
    return cpu_each_row(self, finish_per_layer_row, layer, 2 * hidden, "the per-layer input", index);
}

static enum status run_layer(struct backend *self, uint32_t index)
{
    const struct model_config *config = &self->model->config;
    const struct model_layer *layer = &self->model->layers[index];
    TRY(cpu_each_row(self, norm_row, layer->input_norm, config->hidden_size, "the input", index));
    cpu_set_input(self, self->h, config->hidden_size);
    if (config->kv_producer[index] == index)
        TRY(produce_kv(self, index));
    if (index == config->last_producer && !self->config.full_depth) {
        keep_wanted(self);
        if (self->rows == 0)
            return STATUS_OK;
        cpu_set_input(self, self->h, config->hidden_size);
    }
    TRY(attend(self, index));
    TRY(feed_forward(self, index));
    return config->per_layer_input ? add_per_layer(self, index) : STATUS_OK;
}

enum status cpu_run_layers(struct backend *self, const uint32_t *tokens)
{
    const struct model *model = self->model;
    TRY(start(self, tokens));
    cpu_plan_attention(self);
    for (uint32_t i = 0; i < model->config.layer_count && self->rows > 0; i++)
        TRY(run_layer(self, i));
    keep_wanted(self);
    if (self->rows == 0)
        return STATUS_OK;
    TRY(cpu_each_row(self, norm_row, model->final_norm, model->config.hidden_size, "the output", model->config.layer_count - 1));
    cpu_set_input(self, self->h, model->config.hidden_size);
    return cpu_project_logits(self);
}
