/* backend_cpu_linear.c - linear layers: the input rows made integers by the matrix's scheme, then outputs split over the threads.
 * A row's numbers depend on that row alone, so neither the batch nor the number of threads reaches them. */
#include <string.h>
#include "worker/engine/backend/backend_cpu_internal.h"

/* Work below this stays on the caller. A fork costs some 5 us while the other threads still look for work, ten times that when they sleep
 * or have to share their processor; this is some 10 to 30 us of one thread's work. */
#define SPLIT_ELEMENTS 32768u      /* of rows */
#define SPLIT_PRODUCTS 1048576u    /* of matrices and attention */
#define SLICE_OUTPUTS 32u          /* least for one thread */
#define SLICE_STEP 16u             /* slices begin at multiples of this, for whole tiles */

bool cpu_splits(const struct backend *self, uint64_t products)
{
    return self->config.threads > 1 && products > SPLIT_PRODUCTS;
}

void cpu_share(struct backend *self, uint64_t products, uint32_t count, thread_pool_fn *work, void *context)
{
    if (cpu_splits(self, products)) {
        thread_pool_run(self->pool, count, work, context);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        work(context, i, 0);
}

void cpu_note_bad_row(struct backend *self, uint32_t row)
{
    unsigned seen = atomic_load(&self->bad_row);
    while (row < seen && !atomic_compare_exchange_weak(&self->bad_row, &seen, row))
        ;
}

enum status cpu_check_rows(struct backend *self, const char *what, uint32_t layer)
{
    uint32_t row = atomic_load(&self->bad_row);
    if (row == UINT32_MAX)
        return STATUS_OK;
    self->failed_run = batch_run_of_row(self->spans, self->span_count, row);
    return STATUS_FAIL(STATUS_CORRUPT, "a NaN or infinity appeared in %s of layer %u, run %u", what, layer, self->failed_run);
}

struct row_job {
    struct backend *self;
    cpu_row_fn *work;
    const void *job;
    uint32_t first, count, blocks;
};

static void row_block(void *context, uint32_t index, uint32_t thread)
{
    const struct row_job *job = context;
    struct backend *self = job->self;
    uint32_t end = job->first + (uint32_t)((uint64_t)job->count * (index + 1) / job->blocks);
    for (uint32_t row = job->first + (uint32_t)((uint64_t)job->count * index / job->blocks); row < end; row++)
        if (!job->work(self, job->job, row, thread))
            cpu_note_bad_row(self, row);
}

void cpu_work_rows(struct backend *self, struct cpu_range range, cpu_row_fn *work, const void *job, size_t cost)
{
    struct row_job rows = {.self = self, .work = work, .job = job, .first = range.first, .count = range.count, .blocks = 1};
    if (self->config.threads > 1 && range.count * cost > SPLIT_ELEMENTS)
        rows.blocks = range.count < 4 * self->config.threads ? range.count : 4 * self->config.threads;
    thread_pool_run(self->pool, rows.blocks, row_block, &rows);
}

enum status cpu_each_row(struct backend *self, cpu_row_fn *work, const void *job, size_t cost, const char *what, uint32_t layer)
{
    cpu_work_rows(self, (struct cpu_range){0, self->rows}, work, job, cost);
    return cpu_check_rows(self, what, layer);
}

void cpu_set_input(struct backend *self, const float *input, size_t columns)
{
    self->input = input;
    self->input_columns = columns;
    for (unsigned i = 0; i < MODEL_SCHEMES; i++)
        self->inputs[i].ready = false;
}

static bool quantize_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    const struct model_matrix *matrix = job;
    const struct kernels *kernels = self->kernels;
    struct cpu_input *input = &self->inputs[matrix->scheme];
    size_t columns = self->input_columns;
    const float *x = self->input + row * columns;
    int8_t *a = input->a + row * columns;
    switch (matrix->scheme) {
    case MODEL_SCHEME_STATIC:
        input->scale[row] = matrix->input_scale;
        return kernels->quantize_static_rows(x, 1, columns, 1.0f / matrix->input_scale, a);
    case MODEL_SCHEME_ROTATED:
        kernels->rotate_rows(x, 1, columns, self->scratch[thread].row);
        return kernels->quantize_rows(self->scratch[thread].row, 1, columns, a, input->scale + row);
    case MODEL_SCHEME_WIDE:
        return kernels->quantize_wide_rows(x, 1, columns, a, input->a_low + row * columns, input->scale + row);
    default:
        return kernels->quantize_rows(x, 1, columns, a, input->scale + row);
    }
}

enum status cpu_prepare_input(struct backend *self, const struct model_matrix *matrix, const char *what, uint32_t layer)
{
    struct cpu_input *input = &self->inputs[matrix->scheme];
    if (input->ready && (matrix->scheme != MODEL_SCHEME_STATIC || input->static_scale == matrix->input_scale))
        return STATUS_OK;
    TRY(cpu_each_row(self, quantize_row, matrix, self->input_columns, what, layer));
    input->ready = true;
    input->static_scale = matrix->input_scale;
    return STATUS_OK;
}

static void multiply(struct backend *self, const struct model_matrix *matrix, const struct cpu_block *block, uint32_t thread)
{
    const struct cpu_input *input = &self->inputs[matrix->scheme];
    const size_t at = block->row_first * (size_t)matrix->columns;
    struct gemm_int8 gemm = {
        .a = input->a + at, .a_low = matrix->scheme == MODEL_SCHEME_WIDE ? input->a_low + at : NULL, .a_scale = input->scale + block->row_first,
        .w = (const int8_t *)matrix->weight + block->first * matrix->columns, .w_scale = matrix->scale + block->first,
        .rows = block->row_count, .outputs = block->count, .depth = matrix->columns, .out = block->out, .out_stride = block->out_stride,
        .accumulate = block->accumulate, .scratch = self->scratch[thread].gemm};
    self->kernels->gemm_int8(&gemm);
}

struct multiply_job {
    struct backend *self;
    const struct model_matrix *matrix;
    const struct cpu_block *block;
    uint32_t slices;
};

static void multiply_slice(void *context, uint32_t index, uint32_t thread)
{
    const struct multiply_job *job = context;
    struct cpu_block block = *job->block;
    size_t first = block.count * index / job->slices / SLICE_STEP * SLICE_STEP;
    size_t end = index + 1 == job->slices ? block.count : block.count * (index + 1) / job->slices / SLICE_STEP * SLICE_STEP;
    block.out += first;
    block.first += first;
    block.count = end - first;
    multiply(job->self, job->matrix, &block, thread);
}

void cpu_multiply(struct backend *self, const struct model_matrix *matrix, const struct cpu_block *block)
{
    struct multiply_job job = {.self = self, .matrix = matrix, .block = block, .slices = 1};
    if (cpu_splits(self, (uint64_t)block->row_count * block->count * matrix->columns)) {
        uint32_t most = (uint32_t)((block->count + SLICE_OUTPUTS - 1) / SLICE_OUTPUTS);
        job.slices = most < 2 * self->config.threads ? most : 2 * self->config.threads;
    }
    if (block->row_count > 0 && block->count > 0)
        thread_pool_run(self->pool, job.slices, multiply_slice, &job);
}

enum status cpu_project(struct backend *self, const struct model_matrix *matrix, bool accumulate, float *out, const char *what,
                        uint32_t layer)
{
    if (self->ranks)
        return cpu_ranks_project(self, matrix, accumulate, out, what, layer);
    TRY(cpu_prepare_input(self, matrix, what, layer));
    cpu_multiply(self, matrix, &(struct cpu_block){.row_count = self->rows, .count = matrix->rows, .accumulate = accumulate, .out = out,
                                                   .out_stride = matrix->rows});
    return STATUS_OK;
}

static void logits_slice(void *context, uint32_t index, uint32_t thread)
{
    struct backend *self = context;
    const struct model_config *config = &self->model->config;
    size_t first = (size_t)index * CPU_HEAD_SLICE, left = config->vocab_size - first;
    size_t count = left < CPU_HEAD_SLICE ? left : CPU_HEAD_SLICE;
    float *out = self->scratch[thread].head;
    const struct cpu_block block = {.row_count = self->rows, .first = first, .count = count, .out = out, .out_stride = count};
    multiply(self, &self->model->embedding, &block, thread);
    for (uint32_t s = 0; s < self->span_count; s++)
        for (uint32_t i = 0; i < self->spans[s].count; i++, out += count) {
            if (!self->kernels->all_finite(out, count))
                cpu_note_bad_row(self, self->spans[s].row + i);
            if (config->logit_cap > 0)
                self->kernels->softcap(out, count, config->logit_cap);
            memcpy(self->spans[s].run->logits + i * (size_t)config->vocab_size + first, out, count * sizeof *out);
        }
}

enum status cpu_project_logits(struct backend *self)
{
    const struct model_config *config = &self->model->config;
    if (self->ranks)
        return cpu_ranks_logits(self);
    uint32_t last = config->layer_count - 1, slices = (config->vocab_size + CPU_HEAD_SLICE - 1) / CPU_HEAD_SLICE;
    TRY(cpu_prepare_input(self, &self->model->embedding, "the output", last));
    cpu_share(self, (uint64_t)self->rows * config->vocab_size * config->hidden_size, slices, logits_slice, self);
    return cpu_check_rows(self, "the logits", last);
}
