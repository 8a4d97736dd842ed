/* backend_cuda_layers.c - the forward pass of docs/numerics.md, section 8, as work on the stream; the order is backend_cpu_layers.c's.
 *
 * Norms and activations write the integers that the next matrices read, one set a form (backend_cuda_linear.c). Nothing is looked at before
 * the end: a row with a NaN or infinity goes on, to no effect on others, and its number is found in bad_rows. */
#include <string.h>
#include "worker/engine/backend/cuda/backend_cuda_internal.h"

_Static_assert((int)CUDA_ACTIVATION_SILU == (int)MODEL_ACTIVATION_SILU && (int)CUDA_ACTIVATION_GELU_TANH == (int)MODEL_ACTIVATION_GELU_TANH,
               "one order of activations");

/* ---- steps ---- */

/* x normed, as the integers that the linear layer reads. */
static bool norm(struct backend *self, const float *x, const float *weight, const struct gpu_linear *linear, const struct gpu_phase *phase)
{
    struct cuda_rows_int8 into[GPU_PARTS_MAX];
    gpu_forms(self, linear, into);
    const struct cuda_norm job = {.x = x, .weight = weight, .epsilon = self->model->config.norm_epsilon, .rows = phase->rows,
                                  .columns = self->model->config.hidden_size, .into = into, .into_count = linear->form_count,
                                  .bad_row = phase->bad_row};
    return gpu_launched(self, cuda_norm_rows(&job, self->stream)) && gpu_widen(self, linear, phase->rows);
}

/* x = (x + norm(h)) * scalar */
static bool add_normed(struct backend *self, const float *weight, float scalar, const struct gpu_phase *phase)
{
    const struct cuda_norm job = {.x = self->h, .weight = weight, .epsilon = self->model->config.norm_epsilon, .rows = phase->rows,
                                  .columns = self->model->config.hidden_size, .residual = self->x, .residual_scalar = scalar,
                                  .bad_row = phase->bad_row};
    return gpu_launched(self, cuda_norm_rows(&job, self->stream));
}

static bool project(struct backend *self, const struct gpu_linear *linear, const struct gpu_phase *phase, bool accumulate, float *out)
{
    if (self->ranks)
        return gpu_ranks_project(self, linear, phase, accumulate, out);
    return gpu_multiply(self, linear, 0, phase->rows, accumulate, out);
}

/* Q of own rows. */
static bool project_home(struct backend *self, const struct gpu_linear *linear, const struct gpu_phase *phase, float *out)
{
    if (self->ranks)
        return gpu_ranks_project_home(self, linear, phase, out);
    return gpu_multiply(self, linear, 0, phase->rows, false, out);
}

/* The job's product as integers for the layer behind it. outputs: of all ranks; with several, scratch (rows, outputs) holds it as floats. */
static bool gate(struct backend *self, struct cuda_gate *job, uint32_t outputs, float *scratch, const struct gpu_linear *next,
                 const struct gpu_phase *phase)
{
    struct cuda_rows_int8 into[GPU_PARTS_MAX];
    if (self->ranks)
        return gpu_ranks_gate(self, job, outputs, scratch) && gpu_quantize(self, next, scratch, phase);
    gpu_forms(self, next, into);
    job->into = into[0];
    return gpu_launched(self, cuda_gate_rows(job, self->stream)) && gpu_widen(self, next, phase->rows);
}

/* The result of a layer's part into x: added as it is, or normed first. */
static bool project_into_x(struct backend *self, const struct gpu_linear *linear, const float *result_norm, const struct gpu_phase *phase)
{
    if (!result_norm)
        return project(self, linear, phase, true, self->x);
    return project(self, linear, phase, false, self->h) && add_normed(self, result_norm, 1, phase);
}

static bool rope_tables(struct backend *self, const struct gpu_phase *phase)
{
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const struct gpu_group *group = &self->groups[type];
        if (group->present && !gpu_launched(self, cuda_rope_table(group->frequency, group->geometry.dim / 2, phase->position, phase->rows,
                                                                  group->cosine, group->sine, self->stream)))
            return false;
    }
    return true;
}

static bool begin(struct backend *self)
{
    const struct model_config *config = &self->model->config;
    const struct gpu_phase *phase = &self->step.phases[0];
    const struct cuda_embed embed = {.tokens = self->step.tokens, .weight = self->embedding, .scale = self->embedding_scale,
                                     .factor = config->embedding_scale, .rows = phase->rows, .columns = config->hidden_size, .out = self->x};
    if (!gpu_did(self, cudaMemsetAsync(self->bad_rows, 0xff, GPU_BAD_ROWS * sizeof *self->bad_rows, self->stream), "a step") ||
        !gpu_launched(self, cuda_embed_rows(&embed, self->stream)) || !rope_tables(self, phase))
        return false;
    if (config->per_layer_input == 0)
        return true;
    const struct cuda_per_layer job = {.f = self->per_layer, .looked_up = self->step.looked_up, .looked_up_scale = self->step.looked_up_scale,
                                       .norm_weight = self->per_layer_proj_norm, .epsilon = config->norm_epsilon,
                                       .factor_in = self->constants.per_layer_in, .factor_embed = self->constants.per_layer_embed,
                                       .factor_sum = BATCH_PER_LAYER_SUM, .rows = phase->rows, .layers = config->layer_count,
                                       .width = config->per_layer_input, .bad_row = phase->bad_row};
    return gpu_quantize(self, &self->per_layer_model_proj, self->x, phase) &&
           project(self, &self->per_layer_model_proj, phase, false, self->per_layer) && gpu_launched(self, cuda_per_layer_rows(&job, self->stream));
}

/* Leaves the rows whose logits are wanted. */
static bool keep_wanted(struct backend *self)
{
    const struct model_config *config = &self->model->config;
    const struct gpu_phase *phase = &self->step.phases[1];
    const uint32_t widths = config->layer_count * config->per_layer_input;
    float *swapped = self->x;
    if (!gpu_launched(self, cuda_gather_rows((const uint32_t *)self->x, self->step.wanted, phase->rows, config->hidden_size,
                                             (uint32_t *)self->x_spare, self->stream)) || !rope_tables(self, phase))
        return false;
    self->x = self->x_spare;
    self->x_spare = swapped;
    if (widths == 0)
        return true;
    swapped = self->per_layer;
    if (!gpu_launched(self, cuda_gather_rows((const uint32_t *)self->per_layer, self->step.wanted, phase->rows, widths,
                                             (uint32_t *)self->per_layer_spare, self->stream)))
        return false;
    self->per_layer = self->per_layer_spare;
    self->per_layer_spare = swapped;
    return true;
}

/* ---- attention ---- */

/* K and V of own rows stand side by side in self->wide, rows x_stride apart. */
static bool store_kv(struct backend *self, uint32_t index, uint32_t x_stride, const struct gpu_phase *phase)
{
    const struct model_config *config = &self->model->config;
    const enum model_layer_type type = config->layer_types[index];
    const struct gpu_group *group = &self->groups[type];
    const size_t at = phase->own_first, pairs = at * (group->geometry.dim / 2);
    struct cuda_kv job = {.x = self->wide, .x_stride = x_stride, .rows = phase->own_rows, .norm = self->layers[index].k_norm != NULL,
                          .weight = self->layers[index].k_norm, .epsilon = config->norm_epsilon, .cosine = group->cosine + pairs,
                          .sine = group->sine + pairs, .layout = group->layout, .slot = config->producer_slot[index],
                          .row_page = self->step.row_page[type] + at, .position = phase->position + at, .bad_row = phase->bad_own_row};
    if (!gpu_launched(self, cuda_kv_rows(&job, self->stream)))
        return false;
    job.x += group->layout.kv_heads * group->layout.dim;
    job.value = true;
    job.norm = config->v_norm;
    job.weight = NULL;
    return gpu_launched(self, cuda_kv_rows(&job, self->stream));
}

/* Q of own rows at x -> attended. */
static bool attend(struct backend *self, uint32_t index, const float *x, uint32_t x_stride, const struct gpu_phase *phase, uint32_t p)
{
    const struct model_config *config = &self->model->config;
    const enum model_layer_type type = config->layer_types[index];
    const struct gpu_group *group = &self->groups[type];
    const struct gpu_attention *attention = &phase->attention[type];
    const struct gpu_tasks *tasks = &self->step.shape.attention[p][type];
    const size_t at = phase->own_first, heads = group->geometry.heads, dim = group->geometry.dim;
    const struct cuda_q q = {.x = x, .x_stride = x_stride, .rows = phase->own_rows, .heads = (uint32_t)heads, .dim = (uint32_t)dim,
                             .weight = self->layers[index].q_norm, .epsilon = config->norm_epsilon, .cosine = group->cosine + at * (dim / 2),
                             .sine = group->sine + at * (dim / 2), .q = self->q_int8 + at * heads * dim, .q_scale = self->q_scale + at * heads,
                             .bad_row = phase->bad_own_row};
    const struct cuda_attention job = {.q = self->q_int8, .q_scale = self->q_scale, .geometry = group->geometry, .layout = group->layout,
                                       .slot = config->producer_slot[config->kv_producer[index]], .score_scale = self->constants.score_scale,
                                       .spans = phase->spans, .tasks = attention->tasks, .merges = attention->merges,
                                       .task_count = tasks->tasks, .large_count = tasks->large, .merge_count = tasks->merges,
                                       .pairs_max = tasks->pairs_max, .pages = (const void *const *)self->step.pages[type],
                                       .partials = self->partials, .out = self->attended};
    if (phase->own_rows == 0)
        return true;
    return gpu_launched(self, cuda_q_rows(&q, self->stream)) && gpu_launched(self, cuda_attention_run(&job, self->stream));
}

/* ---- layers ---- */

static bool feed_forward(struct backend *self, const struct gpu_layer *layer, const struct gpu_phase *phase)
{
    const uint32_t inner = layer->gate_up.outputs / 2;
    struct cuda_gate job = {.gate = self->wide, .up = self->wide + inner, .gate_stride = 2 * inner, .up_stride = 2 * inner,
                            .activation = (enum cuda_activation)self->model->config.activation, .rows = phase->rows, .columns = inner,
                            .bad_row = phase->bad_row};
    return norm(self, self->x, layer->mlp_norm, &layer->gate_up, phase) &&
           gpu_multiply(self, &layer->gate_up, 0, phase->rows, false, self->wide) &&
           gate(self, &job, layer->gate_up.whole[0], self->wide, &layer->down, phase) &&
           project_into_x(self, &layer->down, layer->mlp_result_norm, phase);
}

static bool add_per_layer(struct backend *self, uint32_t index, const struct gpu_phase *phase)
{
    const struct model_config *config = &self->model->config;
    const struct gpu_layer *layer = &self->layers[index];
    const uint32_t width = config->per_layer_input, slice = layer->per_layer_gate.outputs;
    struct cuda_gate job = {.gate = self->wide,
                            .up = self->per_layer + (size_t)index * width + gpu_slice_first(self, self->rank, width),
                            .gate_stride = slice, .up_stride = config->layer_count * width,
                            .activation = (enum cuda_activation)config->activation, .rows = phase->rows, .columns = slice,
                            .bad_row = phase->bad_row};
    return gpu_quantize(self, &layer->per_layer_gate, self->x, phase) &&
           gpu_multiply(self, &layer->per_layer_gate, 0, phase->rows, false, self->wide) &&
           gate(self, &job, width, self->wide, &layer->per_layer_proj, phase) && project(self, &layer->per_layer_proj, phase, false, self->h) &&
           add_normed(self, layer->per_layer_norm, self->model->layers[index].layer_scalar, phase);
}

/* *p: the phase at work. */
static bool run_layer(struct backend *self, uint32_t index, uint32_t *p)
{
    const struct model_config *config = &self->model->config;
    const struct gpu_layer *layer = &self->layers[index];
    const struct gpu_phase *phase = &self->step.phases[*p];
    const struct cuda_page_layout *layout = &self->groups[config->layer_types[index]].layout;
    const bool produces = config->kv_producer[index] == index;
    const uint32_t q_width = config->head_count * layout->dim;
    const float *q = self->wide;
    if (!norm(self, self->x, layer->input_norm, &layer->in, phase) ||
        !(produces ? gpu_multiply(self, &layer->in, phase->own_first, phase->own_rows, false, self->wide)
                   : project_home(self, &layer->in, phase, self->wide)))
        return false;
    if (produces) {
        q += layer->apart ? 0 : 2 * layout->kv_heads * layout->dim;
        if (!gpu_load_wait(self, index) || (phase->own_rows > 0 && !store_kv(self, index, layer->in.outputs, phase)))
            return false;
    }
    if (index == config->last_producer && !self->config.full_depth && self->step.leave) {
        *p = 1;
        phase = &self->step.phases[1];
        if (phase->rows == 0)
            return true;
        if (!keep_wanted(self))
            return false;
    }
    if (layer->apart && (!norm(self, self->x, layer->input_norm, &layer->late_q, phase) ||
                         !project_home(self, &layer->late_q, phase, self->wide)))
        return false;
    return attend(self, index, q, produces && !layer->apart ? layer->in.outputs : q_width, phase, *p) &&
           (!self->ranks || gpu_ranks_gather_attended(self, phase, q_width)) && gpu_quantize(self, &layer->o, self->attended, phase) &&
           project_into_x(self, &layer->o, layer->attention_norm, phase) && feed_forward(self, layer, phase) &&
           (config->per_layer_input == 0 || add_per_layer(self, index, phase));
}

/* ---- the end ---- */

static bool copy_bad_rows(struct backend *self)
{
    return gpu_did(self, cudaMemcpyAsync(self->host_bad_rows, self->bad_rows, GPU_BAD_ROWS * sizeof *self->bad_rows, cudaMemcpyDeviceToHost,
                                         self->stream), "the end of a step");
}

/* Rows [first, first + count) of the wanted ones: logits and tokens to pinned memory. */
static bool head(struct backend *self, uint32_t first, uint32_t count)
{
    const struct gpu_shape *shape = &self->step.shape;
    const size_t vocab = self->model->config.vocab_size;
    uint32_t *bad_row = self->bad_rows + 2 * GPU_PHASES;
    const uint32_t begin = shape->logits_first > first ? shape->logits_first - first : 0;
    const uint32_t end = shape->logits_end < first + count ? shape->logits_end : first + count;
    if (!gpu_multiply_head(self, first, count, self->ranks ? gpu_ranks_part(self) : self->logits, bad_row) ||
        (self->ranks && !gpu_ranks_logits(self, count)))
        return false;
    if (self->rank > 0)
        return copy_bad_rows(self);
    if (shape->samples) {
        const struct cuda_sample job = {.logits = self->logits, .options = self->step.options + first, .masked = self->masked, .rows = count,
                                        .vocab = (uint32_t)vocab, .token = self->drawn, .bad_row = bad_row};
        if (!gpu_launched(self, cuda_sample_rows(&job, self->stream)) ||
            !gpu_did(self, cudaMemcpyAsync(self->host_drawn, self->drawn, count * sizeof *self->drawn, cudaMemcpyDeviceToHost, self->stream),
                     "copying tokens"))
            return false;
    }
    if (end > first + begin &&
        !gpu_did(self, cudaMemcpyAsync(self->host_logits + begin * vocab, self->logits + begin * vocab, (end - first - begin) * vocab * sizeof(float),
                                       cudaMemcpyDeviceToHost, self->stream), "copying logits"))
        return false;
    return copy_bad_rows(self);
}

static void deliver(struct backend *self, uint32_t first, uint32_t count)
{
    const struct gpu_phase *wanted = &self->step.phases[1];
    const size_t vocab = self->model->config.vocab_size;
    for (uint32_t s = 0; s < wanted->span_count && self->rank == 0; s++) {
        const struct batch_span *span = &wanted->runs[s];
        for (uint32_t i = 0; i < span->count; i++) {
            if (span->row + i < first || span->row + i >= first + count)
                continue;
            const size_t at = span->row + i - first;
            if (span->run->sample)
                span->run->sample->token = self->host_drawn[at];
            else
                memcpy(span->run->logits + i * vocab, self->host_logits + at * vocab, vocab * sizeof(float));
        }
    }
}

/* Up to the integers that the head reads. */
static bool trunk(struct backend *self)
{
    uint32_t p = 0;
    if (!begin(self))
        return false;
    for (uint32_t i = 0; i < self->model->config.layer_count && self->step.phases[p].rows > 0; i++)
        if (!run_layer(self, i, &p))
            return false;
    if (self->step.shape.wanted == 0)
        return copy_bad_rows(self);
    if (p == 0 && self->step.leave && !keep_wanted(self))
        return false;
    return norm(self, self->x, self->final_norm, &self->head, &self->step.phases[1]);
}

static bool whole(struct backend *self)
{
    return trunk(self) && head(self, 0, self->step.shape.wanted);
}

static bool wait(struct backend *self)
{
    return self->ranks ? gpu_ranks_wait(self) : gpu_did(self, cudaStreamSynchronize(self->stream), "a step");
}

bool gpu_run_layers(struct backend *self)
{
    const uint32_t wanted = self->step.shape.wanted;
    if (self->size == 1 && !self->step.follows && wanted == self->step.shape.rows && wanted <= GPU_GRAPH_ROWS && wanted <= self->logit_rows) {
        if (!gpu_graph_run(self, whole) || !wait(self))
            return false;
        deliver(self, 0, wanted);
        return true;
    }
    if (!trunk(self) || (wanted == 0 && !wait(self)))
        return false;
    uint32_t bad = CUDA_NO_BAD_ROW;
    for (uint32_t first = 0; first < wanted; first += self->logit_rows) {
        const uint32_t count = wanted - first < self->logit_rows ? wanted - first : self->logit_rows;
        uint32_t *bad_row = self->host_bad_rows + 2 * GPU_PHASES;
        if (!head(self, first, count) || !wait(self))
            return false;
        deliver(self, first, count);
        bad = bad == CUDA_NO_BAD_ROW && *bad_row != CUDA_NO_BAD_ROW ? first + *bad_row : bad;
        *bad_row = bad;
    }
    return true;
}
