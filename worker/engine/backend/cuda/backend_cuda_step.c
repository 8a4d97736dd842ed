/* backend_cuda_step.c - what a batch is, for kernels: tables in pinned memory, copied to the device in one go.
 *
 * Steps of one shape have their tables at the same addresses, so counts that differ from token to token (pages, tasks of attention) are rounded
 * up to powers of two; the places left are tasks of no rows. */
#include <stdlib.h>
#include <string.h>
#include "worker/engine/backend/cuda/backend_cuda_internal.h"

#define ALIGNMENT 64u

_Static_assert(GPU_PHASES == 2, "all rows; those whose logits are wanted");

struct layout {
    char *host, *device;           /* NULL: only counts */
    size_t used;
};

/* The host's place of a table whose device address goes to *device. */
static void *place(struct layout *layout, size_t bytes, void **device)
{
    const size_t at = layout->used;
    layout->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    *device = layout->device ? layout->device + at : NULL;
    return layout->host ? layout->host + at : NULL;
}

static uint32_t power_of_two(uint32_t count)
{
    uint32_t power = 16;
    while (power < count)
        power *= 2;
    return count == 0 ? 0 : power;
}

static uint32_t run_pages(const struct batch_span *span)
{
    return (span->start + span->count + BACKEND_PAGE_TOKENS - 1) / BACKEND_PAGE_TOKENS;
}

/* ---- counting ---- */

/* Phase 1: of each run the rows whose logits are wanted. */
static void find_wanted(struct gpu_step *step)
{
    const struct gpu_phase *all = &step->phases[0];
    struct gpu_phase *wanted = &step->phases[1];
    struct gpu_shape *shape = &step->shape;
    wanted->span_count = wanted->rows = 0;
    shape->logits_first = UINT32_MAX;
    for (uint32_t s = 0; s < all->span_count; s++) {
        const struct batch_span *span = &all->runs[s];
        const uint32_t count = span->run->logit_rows;
        if (count == 0)
            continue;
        wanted->runs[wanted->span_count++] =
            (struct batch_span){span->run, span->run_index, wanted->rows, count, span->start + span->count - count};
        if (span->run->sample) {
            shape->samples = 1;
        } else {
            shape->logits_first = shape->logits_first < wanted->rows ? shape->logits_first : wanted->rows;
            shape->logits_end = wanted->rows + count;
        }
        wanted->rows += count;
    }
    shape->logits_first = shape->logits_first < shape->logits_end ? shape->logits_first : shape->logits_end;
    shape->wanted = wanted->rows;
    step->leave = wanted->rows < all->rows;
}

/* Rows whose pages are here (one range), and where their runs' pages begin in the tables. */
static void find_own(const struct backend *self, struct gpu_phase *phase)
{
    const struct gpu_step *step = &self->step;
    uint32_t page = 0, next = 0;
    phase->own_span_count = 0;
    phase->own_first = 0;
    phase->own_rows = 0;
    for (uint32_t s = 0; s < phase->span_count; s++) {
        const struct batch_span *span = &phase->runs[s];
        for (; next < span->run_index; next++)
            page += gpu_is_own(self, next) ? run_pages(&step->phases[0].runs[next]) : 0;
        if (!gpu_is_own(self, span->run_index))
            continue;
        phase->own_first = phase->own_rows == 0 ? span->row : phase->own_first;
        phase->own_rows += span->count;
        phase->own_spans[phase->own_span_count++] = (struct cuda_attention_span){span->row, span->count, span->start, page};
    }
}

static enum status plan_attention(struct backend *self, uint32_t p)
{
    struct gpu_phase *phase = &self->step.phases[p];
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        struct cuda_attention_plan *plan = &phase->attention[type].plan;
        struct gpu_tasks *tasks = &self->step.shape.attention[p][type];
        if (!self->groups[type].present)
            continue;
        if (!cuda_attention_plan_make(phase->own_spans, phase->own_span_count, &self->groups[type].geometry, self->workers, plan))
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the tasks of %u rows", phase->rows);
        *tasks = (struct gpu_tasks){.large = power_of_two(plan->large_count), .merges = power_of_two(plan->merge_count),
                                    .pairs_max = plan->pairs_max};
        tasks->tasks = tasks->large + power_of_two(plan->task_count - plan->large_count);
    }
    return STATUS_OK;
}

/* ---- filling ---- */

static void fill_rows(struct backend *self, struct layout *layout)
{
    struct gpu_step *step = &self->step;
    const struct model_config *config = &self->model->config;
    const struct gpu_phase *all = &step->phases[0], *wanted = &step->phases[1];
    uint32_t *tokens = place(layout, all->rows * sizeof *tokens, (void **)&step->tokens);
    uint32_t *indices = place(layout, wanted->rows * sizeof *indices, (void **)&step->wanted);
    for (uint32_t s = 0; tokens && s < all->span_count; s++)
        memcpy(tokens + all->runs[s].row, all->runs[s].run->tokens, all->runs[s].count * sizeof *tokens);
    for (uint32_t s = 0; indices && s < wanted->span_count; s++) {
        const struct batch_span *kept = &wanted->runs[s], *whole = &all->runs[kept->run_index];
        for (uint32_t i = 0; i < kept->count; i++)
            indices[kept->row + i] = whole->row + whole->count - kept->count + i;
    }
    const size_t layers = config->layer_count, width = config->per_layer_input;
    int8_t *looked_up = place(layout, all->rows * layers * width, (void **)&step->looked_up);
    float *scale = place(layout, width ? all->rows * layers * sizeof *scale : 0, (void **)&step->looked_up_scale);
    const struct model_matrix *embedding = &self->model->per_layer_embedding;
    for (size_t row = 0; tokens && width && row < all->rows; row++) {
        memcpy(looked_up + row * layers * width, (const int8_t *)embedding->weight + tokens[row] * layers * width, layers * width);
        memcpy(scale + row * layers, embedding->scale + tokens[row] * layers, layers * sizeof *scale);
    }
}

static void fill_options(struct backend *self, struct layout *layout)
{
    struct gpu_step *step = &self->step;
    const struct gpu_phase *wanted = &step->phases[1];
    struct cuda_sample_options *options = place(layout, step->shape.samples ? wanted->rows * sizeof *options : 0, (void **)&step->options);
    for (uint32_t s = 0; options && step->shape.samples && s < wanted->span_count; s++) {
        const struct backend_sample *sample = wanted->runs[s].run->sample;
        for (uint32_t i = 0; i < wanted->runs[s].count; i++)                    /* of rows that are not drawn: the first token will do */
            options[wanted->runs[s].row + i] =
                sample ? (struct cuda_sample_options){.temperature = sample->temperature, .top_p = sample->top_p, .min_p = sample->min_p,
                                                      .top_k = sample->top_k, .seed = sample->seed, .choice = sample->choice,
                                                      .position = sample->position}
                       : (struct cuda_sample_options){.top_p = 1};
    }
}

static void fill_pages(struct backend *self, struct layout *layout, unsigned type)
{
    struct gpu_step *step = &self->step;
    const struct gpu_phase *all = &step->phases[0];
    void **row_page = place(layout, all->rows * sizeof *row_page, (void **)&step->row_page[type]);
    void **pages = place(layout, step->shape.pages * sizeof *pages, (void **)&step->pages[type]);
    for (uint32_t s = 0; pages && s < all->span_count; s++) {
        const struct batch_span *span = &all->runs[s];
        const uint32_t count = run_pages(span);
        if (!gpu_is_own(self, span->run_index))
            continue;
        memcpy(pages, span->run->pages[type], count * sizeof *pages);
        for (uint32_t i = 0; i < span->count; i++)
            row_page[span->row + i] = pages[(span->start + i) / BACKEND_PAGE_TOKENS];
        pages += count;
    }
}

static void fill_phase(struct backend *self, struct layout *layout, uint32_t p)
{
    struct gpu_phase *phase = &self->step.phases[p];
    uint32_t *position = place(layout, phase->rows * sizeof *position, (void **)&phase->position);
    for (uint32_t s = 0; position && s < phase->span_count; s++)
        for (uint32_t i = 0; i < phase->runs[s].count; i++)
            position[phase->runs[s].row + i] = phase->runs[s].start + i;
    struct cuda_attention_span *spans = place(layout, phase->own_span_count * sizeof *spans, (void **)&phase->spans);
    if (spans)
        memcpy(spans, phase->own_spans, phase->own_span_count * sizeof *spans);
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const struct gpu_tasks *count = &self->step.shape.attention[p][type];
        struct gpu_attention *attention = &phase->attention[type];
        const struct cuda_attention_plan *plan = &attention->plan;
        struct cuda_attention_task *tasks = place(layout, count->tasks * sizeof *tasks, (void **)&attention->tasks);
        struct cuda_attention_merge *merges = place(layout, count->merges * sizeof *merges, (void **)&attention->merges);
        if (!tasks || count->tasks == 0)
            continue;
        const uint32_t small = plan->task_count - plan->large_count;
        memset(tasks, 0, count->tasks * sizeof *tasks);
        memset(merges, 0, count->merges * sizeof *merges);
        memcpy(tasks, plan->tasks, plan->large_count * sizeof *tasks);
        memcpy(tasks + count->large, plan->tasks + plan->large_count, small * sizeof *tasks);
        if (plan->merge_count > 0)
            memcpy(merges, plan->merges, plan->merge_count * sizeof *merges);
    }
}

static size_t lay_out(struct backend *self, char *host, char *device)
{
    struct layout layout = {host, device, 0};
    fill_rows(self, &layout);
    fill_options(self, &layout);
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++)
        if (self->groups[type].present)
            fill_pages(self, &layout, type);
    for (uint32_t p = 0; p < GPU_PHASES; p++)
        fill_phase(self, &layout, p);
    return layout.used;
}

/* ---- memory that grows ---- */

static enum status grow_tables(struct backend *self, size_t bytes)
{
    struct gpu_step *step = &self->step;
    const size_t capacity = 2 * bytes;
    void *host = NULL, *device = NULL;
    if (bytes <= step->capacity)
        return STATUS_OK;
    gpu_graph_forget(self);
    (void)cudaFreeHost(step->host);
    (void)cudaFree(step->device);
    step->host = step->device = NULL;
    step->capacity = 0;
    if (cudaMallocHost(&host, capacity) != cudaSuccess)
        return gpu_no_pinned_memory(capacity, "the tables of a batch");
    if (cudaMalloc(&device, capacity) != cudaSuccess) {
        (void)cudaFreeHost(host);
        return gpu_no_memory(capacity, "the tables of a batch");
    }
    step->host = host;
    step->device = device;
    step->capacity = capacity;
    return STATUS_OK;
}

static enum status grow_partials(struct backend *self)
{
    size_t bytes = 0;
    void *partials = NULL;
    for (uint32_t p = 0; p < GPU_PHASES; p++)
        for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
            const size_t wanted = cuda_attention_partial_bytes(&self->step.phases[p].attention[type].plan, &self->groups[type].geometry);
            bytes = wanted > bytes ? wanted : bytes;
        }
    if (bytes <= self->partials_capacity)
        return STATUS_OK;
    gpu_graph_forget(self);
    (void)cudaFree(self->partials);
    self->partials = NULL;
    self->partials_capacity = 0;
    if (cudaMalloc(&partials, 2 * bytes) != cudaSuccess)
        return gpu_no_memory(2 * bytes, "attention over long contexts");
    self->partials = partials;
    self->partials_capacity = 2 * bytes;
    return STATUS_OK;
}

/* ---- a step ---- */

enum status gpu_step_make(struct backend *self, const struct backend_batch *batch)
{
    struct gpu_step *step = &self->step;
    struct gpu_phase *all = &step->phases[0];
    uint32_t pages = 0;
    step->shape = (struct gpu_shape){0};
    all->span_count = batch->run_count;
    all->rows = batch_spans(batch, all->runs);
    for (uint32_t s = 0; s < all->span_count; s++)
        pages += gpu_is_own(self, all->runs[s].run_index) ? run_pages(&all->runs[s]) : 0;
    find_wanted(step);
    step->shape.rows = all->rows;
    step->shape.span_count = all->span_count;
    step->shape.pages = power_of_two(pages);
    for (uint32_t p = 0; p < GPU_PHASES; p++) {
        find_own(self, &step->phases[p]);
        TRY(plan_attention(self, p));
    }
    TRY(grow_partials(self));
    TRY(grow_tables(self, lay_out(self, NULL, NULL)));
    const size_t bytes = lay_out(self, step->host, step->device);
    if (!gpu_did(self, cudaMemcpyAsync(step->device, step->host, bytes, cudaMemcpyHostToDevice, self->stream), "copying the tables of a batch"))
        return STATUS_FAIL(STATUS_CLOSED, "%s", self->why);
    return STATUS_OK;
}

enum status gpu_step_create(struct backend *self)
{
    for (uint32_t p = 0; p < GPU_PHASES; p++) {
        struct gpu_phase *phase = &self->step.phases[p];
        phase->runs = calloc(self->config.rows_max, sizeof *phase->runs);
        phase->own_spans = calloc(self->config.rows_max, sizeof *phase->own_spans);
        if (!phase->runs || !phase->own_spans)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for batches of %u rows", self->config.rows_max);
        phase->bad_row = self->bad_rows + p;
        phase->bad_own_row = self->bad_rows + GPU_PHASES + p;
    }
    return STATUS_OK;
}

void gpu_step_destroy(struct backend *self)
{
    for (uint32_t p = 0; p < GPU_PHASES; p++) {
        struct gpu_phase *phase = &self->step.phases[p];
        for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++)
            cuda_attention_plan_free(&phase->attention[type].plan);
        free(phase->runs);
        free(phase->own_spans);
    }
    (void)cudaFreeHost(self->step.host);
    (void)cudaFree(self->step.device);
    (void)cudaFree(self->partials);
}
