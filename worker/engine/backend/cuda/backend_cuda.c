/* backend_cuda.c - the CUDA backend: its device, its memory (all but tables and partials taken at create), arenas, its table. */
#include "worker/engine/backend/cuda/backend_cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kernels.h"
#include "kernels/rope.h"
#include "worker/engine/backend/cuda/backend_cuda_internal.h"
#include "worker/engine/backend/cuda/cuda_health.h"

#define CAPABILITY_MIN 8           /* int8 mma with 32-bit sums of 16x8x32, cp.async */
#define ATTENTION_BLOCKS 2u        /* of threads that a multiprocessor runs at a time */

/* ---- the device ---- */

static enum status find_device(const struct backend_config *config, int *device)
{
    int count = 0, driver = 0, runtime = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorInsufficientDriver || (error != cudaSuccess && driver == 0))
        return STATUS_FAIL(STATUS_UNSUPPORTED, "no NVIDIA driver, or one for CUDA %d.%d where %d.%d is wanted: install it (nvidia-smi shows it), or set "
                           "backend: cpu", driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
        return STATUS_FAIL(STATUS_UNSUPPORTED, "no GPU is to be seen (nvidia-smi -L lists them, CUDA_VISIBLE_DEVICES hides them): set backend: cpu, "
                           "or give this process a GPU");
    TRY(gpu_check(error, "looking for GPUs"));
    if (config->rank >= (uint32_t)count)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%u ranks want a GPU each, and %d can be seen: lower tp, or show more (CUDA_VISIBLE_DEVICES)",
                           config->ranks, count);
    *device = (int)config->rank;
    return STATUS_OK;
}

static enum status open_device(struct backend *self)
{
    int major = 0, minor = 0, multiprocessors = 0;
    char name[256] = "?";
    struct cudaDeviceProp properties;
    TRY(find_device(&self->config, &self->device));
    TRY(gpu_check(cudaSetDevice(self->device), "opening the GPU"));
    if (cudaGetDeviceProperties(&properties, self->device) == cudaSuccess)
        snprintf(name, sizeof name, "%s", properties.name);
    TRY(gpu_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, self->device), "looking at the GPU"));
    TRY(gpu_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, self->device), "looking at the GPU"));
    TRY(gpu_check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, self->device), "looking at the GPU"));
    if (major < CAPABILITY_MIN)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s has compute capability %d.%d, and %d.0 is wanted (A100 and later): take a newer GPU, or set "
                           "backend: cpu", name, major, minor, CAPABILITY_MIN);
    self->workers = ATTENTION_BLOCKS * (uint32_t)multiprocessors;
    TRY(gpu_check(cudaStreamCreateWithFlags(&self->stream, cudaStreamNonBlocking), "making a stream"));
    for (uint32_t rank = 0; rank < self->size && self->rank == 0; rank++)      /* they show the same devices to all */
        self->health[rank] = cuda_health_open((int)rank);
    return STATUS_OK;
}

/* ---- the model ---- */

static enum status make_attention(struct backend *self, uint32_t index)
{
    const struct model_config *config = &self->model->config;
    const struct model_layer *from = &self->model->layers[index];
    struct gpu_layer *layer = &self->layers[index];
    const struct model_matrix *together[] = {&from->k_proj, &from->v_proj, &from->q_proj}, *q[] = {&from->q_proj}, *o[] = {&from->o_proj};
    const bool produces = config->kv_producer[index] == index;
    layer->apart = produces && (self->size > 1 || (index == config->last_producer && !self->config.full_depth));
    if (!produces)
        TRY(gpu_linear_make(self, q, 1, true, &layer->in));
    else
        TRY(gpu_linear_make(self, together, layer->apart ? 2 : 3, false, &layer->in));
    if (layer->apart)
        TRY(gpu_linear_make(self, q, 1, true, &layer->late_q));
    return gpu_linear_make(self, o, 1, true, &layer->o);
}

static enum status make_layer(struct backend *self, uint32_t index)
{
    const struct model_config *config = &self->model->config;
    const struct model_layer *from = &self->model->layers[index];
    struct gpu_layer *layer = &self->layers[index];
    const size_t hidden = config->hidden_size, dim = config->attention[config->layer_types[index]].head_dim;
    const struct model_matrix *gate_up[] = {&from->gate_proj, &from->up_proj}, *down[] = {&from->down_proj};
    const struct model_matrix *gate[] = {&from->per_layer_gate}, *proj[] = {&from->per_layer_proj};
    TRY(make_attention(self, index));
    TRY(gpu_linear_make(self, gate_up, 2, true, &layer->gate_up));
    TRY(gpu_linear_make(self, down, 1, true, &layer->down));
    TRY(gpu_upload_floats(self, from->input_norm, hidden, &layer->input_norm));
    TRY(gpu_upload_floats(self, from->attention_norm, hidden, &layer->attention_norm));
    TRY(gpu_upload_floats(self, from->mlp_norm, hidden, &layer->mlp_norm));
    TRY(gpu_upload_floats(self, from->mlp_result_norm, hidden, &layer->mlp_result_norm));
    TRY(gpu_upload_floats(self, from->q_norm, dim, &layer->q_norm));
    TRY(gpu_upload_floats(self, from->k_norm, dim, &layer->k_norm));
    if (config->per_layer_input == 0)
        return STATUS_OK;
    TRY(gpu_linear_make(self, gate, 1, true, &layer->per_layer_gate));
    TRY(gpu_linear_make(self, proj, 1, true, &layer->per_layer_proj));
    return gpu_upload_floats(self, from->per_layer_norm, hidden, &layer->per_layer_norm);
}

static enum status make_model(struct backend *self)
{
    const struct model *model = self->model;
    const struct model_config *config = &model->config;
    const struct model_matrix *head[] = {&model->embedding}, *per_layer[] = {&model->per_layer_model_proj};
    const size_t embedding_bytes = (size_t)config->vocab_size * config->hidden_size;
    void *embedding;
    self->layers = calloc(config->layer_count, sizeof *self->layers);
    if (!self->layers)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    TRY(gpu_alloc(self, embedding_bytes, "the embedding", &embedding));
    self->embedding = embedding;
    TRY(gpu_check(cudaMemcpy(embedding, model->embedding.weight, embedding_bytes, cudaMemcpyHostToDevice), "copying the embedding"));
    TRY(gpu_upload_floats(self, model->embedding.scale, config->vocab_size, &self->embedding_scale));
    TRY(gpu_upload_floats(self, model->final_norm, config->hidden_size, &self->final_norm));
    TRY(gpu_upload_floats(self, model->per_layer_proj_norm, config->per_layer_input, &self->per_layer_proj_norm));
    TRY(gpu_linear_make(self, head, 1, true, &self->head));
    if (config->per_layer_input)
        TRY(gpu_linear_make(self, per_layer, 1, true, &self->per_layer_model_proj));
    for (uint32_t i = 0; i < config->layer_count; i++)
        TRY(make_layer(self, i));
    return STATUS_OK;
}

static enum status make_groups(struct backend *self)
{
    const struct model_config *config = &self->model->config;
    const size_t rows = self->config.rows_max;
    double frequency[MODEL_HEAD_DIM_MAX / 2];
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const struct model_attention *attention = &config->attention[type];
        struct gpu_group *group = &self->groups[type];
        const size_t pairs = attention->head_dim / 2, plane = (size_t)attention->kv_head_count * BACKEND_PAGE_TOKENS * attention->head_dim;
        const bool local = type == MODEL_LAYER_LOCAL;
        void *memory;
        group->present = config->producer_count[type] > 0;
        if (!group->present)
            continue;
        group->layout = (struct cuda_page_layout){
            .kv_heads = attention->kv_head_count, .dim = attention->head_dim, .slots = config->producer_count[type],
            .slot_bytes = 2 * plane + 2 * (size_t)attention->kv_head_count * BACKEND_PAGE_TOKENS * sizeof(float)};
        group->geometry = (struct cuda_attention_geometry){.heads = config->head_count, .kv_heads = attention->kv_head_count,
                                                           .dim = attention->head_dim, .window = local ? attention->window : 0,
                                                           .sinks = local ? attention->sinks : 0};
        const struct rope rope = {.base = attention->rope_base, .scale = attention->rope_scale, .dim = attention->head_dim,
                                  .pairs = attention->rope_pairs};
        rope_frequencies(&rope, frequency);
        TRY(gpu_alloc(self, pairs * sizeof(double), "tables", &memory));
        group->frequency = memory;
        TRY(gpu_check(cudaMemcpy(memory, frequency, pairs * sizeof(double), cudaMemcpyHostToDevice), "copying tables"));
        TRY(gpu_alloc(self, rows * pairs * 2 * sizeof(float), "a batch", &memory));
        group->cosine = memory;
        group->sine = group->cosine + rows * pairs;
    }
    return STATUS_OK;
}

/* ---- memory of a batch ---- */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Columns of self->wide: what stands side by side inside a layer. */
static size_t widest(const struct backend *self)
{
    size_t most = 0;
    for (uint32_t i = 0; i < self->model->config.layer_count; i++) {
        const struct gpu_layer *layer = &self->layers[i];
        const struct gpu_linear *linears[] = {&layer->in, &layer->late_q, &layer->gate_up, &layer->per_layer_gate};
        for (size_t n = 0; n < sizeof linears / sizeof *linears; n++) {
            size_t whole = 0;                  /* ranks put their slices together here */
            for (uint32_t m = 0; m < linears[n]->matrix_count; m++)
                whole += linears[n]->whole[m];
            most = larger(most, whole);
        }
    }
    return most;
}

static enum status alloc_floats(struct backend *self, size_t count, float **out)
{
    void *memory;
    *out = NULL;
    if (count == 0)
        return STATUS_OK;
    TRY(gpu_alloc(self, count * sizeof **out, "a batch", &memory));
    *out = memory;
    return STATUS_OK;
}

static enum status make_mask(struct backend *self)
{
    const size_t words = (self->model->config.vocab_size + 31) / 32;
    void *memory;
    if (self->config.masked_count == 0)
        return STATUS_OK;
    uint32_t *bits = calloc(words, sizeof *bits);
    if (!bits)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    for (uint32_t i = 0; i < self->config.masked_count; i++)
        bits[self->config.masked[i] / 32] |= 1u << self->config.masked[i] % 32;
    enum status st;
    TRY_GOTO(gpu_alloc(self, words * sizeof *bits, "a batch", &memory), st, done);
    self->masked = memory;
    st = gpu_check(cudaMemcpy(memory, bits, words * sizeof *bits, cudaMemcpyHostToDevice), "copying tables");
done:
    free(bits);
    return st;
}

static enum status make_batch(struct backend *self)
{
    const struct model_config *config = &self->model->config;
    const size_t rows = self->config.rows_max, widths = (size_t)config->layer_count * config->per_layer_input;
    size_t heads = 0;
    void *memory;
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++)
        heads = larger(heads, (size_t)config->head_count * config->attention[type].head_dim);
    self->logit_rows = rows < GPU_LOGIT_ROWS ? (uint32_t)rows : GPU_LOGIT_ROWS;
    TRY(gpu_inputs_make(self));
    TRY(make_mask(self));
    TRY(alloc_floats(self, rows * config->hidden_size, &self->x));
    TRY(alloc_floats(self, rows * config->hidden_size, &self->x_spare));
    TRY(alloc_floats(self, rows * config->hidden_size, &self->h));
    TRY(alloc_floats(self, rows * widest(self), &self->wide));
    TRY(alloc_floats(self, rows * heads, &self->attended));
    TRY(alloc_floats(self, rows * config->head_count, &self->q_scale));
    TRY(alloc_floats(self, rows * widths, &self->per_layer));
    TRY(alloc_floats(self, rows * widths, &self->per_layer_spare));
    TRY(alloc_floats(self, self->logit_rows * (size_t)config->vocab_size, &self->logits));
    TRY(gpu_alloc(self, rows * heads, "a batch", &memory));
    self->q_int8 = memory;
    TRY(gpu_alloc(self, self->logit_rows * sizeof *self->drawn, "a batch", &memory));
    self->drawn = memory;
    TRY(gpu_alloc(self, GPU_BAD_ROWS * sizeof *self->bad_rows, "a batch", &memory));
    self->bad_rows = memory;
    TRY(gpu_alloc(self, CUDA_GEMM_SCRATCH_BYTES, "a batch", &memory));
    self->gemm_scratch = memory;
    TRY(gpu_alloc_pinned(self, self->logit_rows * (size_t)config->vocab_size * sizeof(float), &memory));
    self->host_logits = memory;
    TRY(gpu_alloc_pinned(self, self->logit_rows * sizeof *self->host_drawn, &memory));
    self->host_drawn = memory;
    TRY(gpu_alloc_pinned(self, GPU_BAD_ROWS * sizeof *self->host_bad_rows, &memory));
    self->host_bad_rows = memory;
    return gpu_step_create(self);
}

/* ---- life ---- */

static void cuda_destroy(struct backend **backend)
{
    struct backend *self = *backend;
    if (!self)
        return;
    (void)cudaSetDevice(self->device);
    gpu_copies_finish(self);
    for (uint32_t rank = 0; rank < BACKEND_RANKS_MAX; rank++)
        cuda_health_close(&self->health[rank]);
    gpu_ranks_destroy(self);
    if (self->stream)                          /* a pass that another rank's death has ended may have left work there */
        (void)cudaStreamSynchronize(self->stream);
    gpu_graph_forget(self);
    gpu_step_destroy(self);
    gpu_copies_destroy(self);
    if (self->stream)
        (void)cudaStreamDestroy(self->stream);
    gpu_free_all(self);
    free(self->layers);
    free(self);
    *backend = NULL;
}

static enum status cuda_create(const struct model *model, const struct backend_config *config, struct backend **out)
{
    TRY(batch_check_config(config));
    if (model->format != MODEL_FORMAT_INT8)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s is a roost-float model: the cuda backend wants roost-int8 (roost-convert), or use the float "
                           "backend", model->config.name);
    struct backend *self = calloc(1, sizeof *self);
    if (!self)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    self->model = model;
    self->config = *config;
    self->rank = config->rank;
    self->size = config->ranks > 1 ? config->ranks : 1;
    enum status st;
    fenv_t saved;
    kernels_float_enter(&saved);
    self->constants = batch_constants(&model->config);
    TRY_GOTO(open_device(self), st, done);
    TRY_GOTO(make_groups(self), st, done);
    TRY_GOTO(make_model(self), st, done);
    TRY_GOTO(make_batch(self), st, done);
    TRY_GOTO(gpu_copies_create(self), st, done);
    TRY_GOTO(gpu_check(cudaDeviceSynchronize(), "starting"), st, done);
    *out = self;
    self = NULL;
done:
    kernels_float_leave(&saved);
    cuda_destroy(&self);
    return st;
}

/* ---- a batch ---- */

/* The first run with a NaN or infinity, by where it was met; UINT32_MAX: none. */
static uint32_t find_bad_run(const struct backend *self)
{
    const struct gpu_phase *phases = self->step.phases;
    const uint32_t *bad = self->host_bad_rows;
    for (uint32_t p = 0; p < GPU_PHASES; p++) {
        const uint32_t own = bad[GPU_PHASES + p] == CUDA_NO_BAD_ROW ? CUDA_NO_BAD_ROW : phases[p].own_first + bad[GPU_PHASES + p];
        const uint32_t row = bad[p] < own ? bad[p] : own;
        if (row != CUDA_NO_BAD_ROW)
            return batch_run_of_row(phases[p].runs, phases[p].span_count, row);
    }
    const uint32_t row = self->step.shape.wanted > 0 ? bad[2 * GPU_PHASES] : CUDA_NO_BAD_ROW;
    return row == CUDA_NO_BAD_ROW ? UINT32_MAX : batch_run_of_row(phases[1].runs, phases[1].span_count, row);
}

enum status gpu_compute(struct backend *self, const struct backend_batch *batch, uint32_t *bad)
{
    if (self->lost)
        return STATUS_FAIL(STATUS_CLOSED, "%s", self->why);
    if (!gpu_did(self, cudaSetDevice(self->device), "choosing the GPU"))
        return STATUS_FAIL(STATUS_CLOSED, "%s", self->why);
    TRY(gpu_step_make(self, batch));
    self->step.follows = gpu_load_lacks(self, batch);
    if (!gpu_run_layers(self))
        return STATUS_FAIL(STATUS_CLOSED, "%s", self->why);
    *bad = find_bad_run(self);
    return STATUS_OK;
}

enum status gpu_verdict(uint32_t bad, uint32_t *failed_run)
{
    if (bad == UINT32_MAX)
        return STATUS_OK;
    if (failed_run)
        *failed_run = bad;
    return STATUS_FAIL(STATUS_CORRUPT, "a NaN or infinity appeared in run %u", bad);
}

static enum status cuda_forward(struct backend *self, const struct backend_batch *batch, uint32_t *failed_run)
{
    uint32_t bad = UINT32_MAX;
    TRY(batch_check(&self->model->config, &self->config, batch));
    TRY(gpu_compute(self, batch, &bad));
    return gpu_verdict(bad, failed_run);
}

void backend_cuda_counts(const struct backend *self, struct backend_cuda_counts *out)
{
    *out = (struct backend_cuda_counts){.graphs_captured = self->graphs.captured, .graph_launches = self->graphs.launches};
}

/* ---- pages ---- */

static size_t cuda_page_bytes(const struct backend *self, uint32_t group)
{
    return self->groups[group].layout.slot_bytes * self->groups[group].layout.slots;
}

static enum status cuda_arena_create(struct backend *self, enum backend_tier tier, size_t bytes, void **base)
{
    void *memory = NULL;
    TRY(gpu_check(cudaSetDevice(self->device), "choosing the GPU"));
    if (tier == BACKEND_TIER_HOST) {
        if (cudaMallocHost(&memory, bytes) != cudaSuccess)
            return gpu_no_pinned_memory(bytes, "the host tier");
        *base = memory;
        return STATUS_OK;
    }
    if (cudaMalloc(&memory, bytes) != cudaSuccess)
        return gpu_no_memory(bytes, "the KV cache");
    *base = memory;
    return gpu_clear(self, memory, bytes, "clearing the KV cache");
}

static void cuda_arena_destroy(struct backend *self, enum backend_tier tier, void **base)
{
    (void)cudaSetDevice(self->device);
    if (*base)
        (void)(tier == BACKEND_TIER_HOST ? cudaFreeHost(*base) : cudaFree(*base));
    *base = NULL;
}

static bool cuda_samples(const struct backend *self)
{
    (void)self;
    return true;
}

/* ---- health ---- */

static bool cuda_read_health(struct backend *self, struct backend_health *out)
{
    out->device_count = 0;
    for (uint32_t rank = 0; rank < self->size; rank++)
        if (cuda_health_read(self->health[rank], &out->devices[out->device_count]))
            out->device_count++;
    return out->device_count > 0;
}

const struct backend_ops backend_cuda_ops = {
    .name = "cuda",
    .bits = "cpu",
    .create = cuda_create,
    .destroy = cuda_destroy,
    .page_bytes = cuda_page_bytes,
    .forward = cuda_forward,
    .page_copy_prefix = gpu_copy_prefix,
    .arena_create = cuda_arena_create,
    .arena_destroy = cuda_arena_destroy,
    .copy_start = gpu_copy_start,
    .copy_done = gpu_copy_done,
    .copy_wait = gpu_copy_wait,
    .load_start = gpu_load_start,
    .samples = cuda_samples,
    .health = cuda_read_health,
};
