/* backend_cuda_linear.c - linear layers: weights tiled at create, products on the device. */
#include <string.h>
#include "worker/engine/backend/cuda/backend_cuda_internal.h"

_Static_assert((int)CUDA_SCHEME_DYNAMIC == (int)MODEL_SCHEME_DYNAMIC && (int)CUDA_SCHEME_STATIC == (int)MODEL_SCHEME_STATIC &&
               (int)CUDA_SCHEME_ROTATED == (int)MODEL_SCHEME_ROTATED && (int)CUDA_SCHEME_WIDE == (int)MODEL_SCHEME_WIDE, "one order of schemes");

static uint32_t find_form(struct gpu_linear *linear, const struct model_matrix *matrix)
{
    const struct gpu_form form = {(enum cuda_scheme)matrix->scheme, matrix->scheme == MODEL_SCHEME_STATIC ? matrix->input_scale : 0};
    for (uint32_t i = 0; i < linear->form_count; i++)
        if (linear->forms[i].scheme == form.scheme && linear->forms[i].input_scale == form.input_scale)
            return i;
    linear->forms[linear->form_count] = form;
    return linear->form_count++;
}

uint32_t gpu_slice_first(const struct backend *self, uint32_t rank, uint32_t outputs)
{
    return cuda_slice_first(rank, self->size, outputs);
}

uint32_t gpu_slice_count(const struct backend *self, uint32_t rank, uint32_t outputs)
{
    return gpu_slice_first(self, rank + 1, outputs) - gpu_slice_first(self, rank, outputs);
}

struct slice {                     /* outputs of a matrix that are here */
    const struct model_matrix *matrix;
    uint32_t first, count;
};

static struct slice slice_of(const struct backend *self, const struct model_matrix *matrix, bool sliced)
{
    if (!sliced)
        return (struct slice){matrix, 0, matrix->rows};
    return (struct slice){matrix, gpu_slice_first(self, self->rank, matrix->rows), gpu_slice_count(self, self->rank, matrix->rows)};
}

/* The matrices of one part under one another, each row followed by zeros to the depth; then their tiles. */
static enum status tile(struct backend *self, const struct gpu_linear *linear, const struct slice *slices, uint32_t count,
                        struct gpu_part *part)
{
    const size_t plain_bytes = (size_t)part->outputs * linear->depth, tiled_bytes = cuda_gemm_tiled_bytes(part->outputs, linear->depth);
    void *plain = NULL, *tiled;
    enum status st;
    TRY(gpu_alloc(self, tiled_bytes, "the weights", &tiled));
    part->tiled = tiled;
    if (plain_bytes == 0)          /* more ranks than steps of a small matrix: nothing of it is here, and cudaMalloc may refuse 0 bytes */
        return STATUS_OK;
    if (cudaMalloc(&plain, plain_bytes) != cudaSuccess)
        return gpu_no_memory(plain_bytes, "tiling the weights");
    TRY_GOTO(gpu_check(cudaMemsetAsync(plain, 0, plain_bytes, self->stream), "tiling weights"), st, done);
    char *at = plain;
    for (uint32_t i = 0; i < count; i++) {
        if (slices[i].count == 0)
            continue;
        const char *from = (const char *)slices[i].matrix->weight + slices[i].first * (size_t)linear->columns;
        TRY_GOTO(gpu_check(cudaMemcpy2DAsync(at, linear->depth, from, linear->columns, linear->columns, slices[i].count, cudaMemcpyHostToDevice,
                                             self->stream), "copying weights"), st, done);
        at += (size_t)slices[i].count * linear->depth;
    }
    if (!cuda_gemm_tile(plain, part->outputs, linear->depth, part->tiled, self->stream))
        st = STATUS_FAIL(STATUS_IO, "tiling weights: %s", cuda_launch_error());
    else
        st = gpu_check(cudaStreamSynchronize(self->stream), "tiling weights");
done:
    (void)cudaStreamSynchronize(self->stream);
    (void)cudaFree(plain);
    return st;
}

/* What its input rows want of self->inputs. */
static void ask_for_inputs(struct backend *self, const struct gpu_linear *linear)
{
    for (uint32_t i = 0; i < linear->form_count; i++) {
        struct gpu_input_size *size = &self->input_sizes[i];
        size->wide = linear->depth > size->wide ? linear->depth : size->wide;
        if (linear->columns != linear->depth && linear->columns > size->narrow)
            size->narrow = linear->columns;
        size->low |= linear->forms[i].scheme == CUDA_SCHEME_WIDE;
    }
}

enum status gpu_linear_make(struct backend *self, const struct model_matrix *const *matrices, uint32_t count, bool sliced, struct gpu_linear *out)
{
    void *scale;
    struct slice slices[GPU_PARTS_MAX];
    uint32_t first[GPU_PARTS_MAX];                /* matrix of a part */
    *out = (struct gpu_linear){.columns = matrices[0]->columns, .depth = (matrices[0]->columns + 15) / 16 * 16, .matrix_count = count};
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t form = find_form(out, matrices[i]);
        slices[i] = slice_of(self, matrices[i], sliced);
        out->whole[i] = matrices[i]->rows;
        if (out->part_count == 0 || out->parts[out->part_count - 1].form != form) {
            first[out->part_count] = i;
            out->parts[out->part_count++] = (struct gpu_part){.form = form, .first = out->outputs};
        }
        out->parts[out->part_count - 1].outputs += slices[i].count;
        out->outputs += slices[i].count;
    }
    TRY(gpu_alloc(self, out->outputs * sizeof *out->scale, "the weights", &scale));
    out->scale = scale;
    for (uint32_t i = 0, at = 0; i < count; at += slices[i++].count)
        TRY(gpu_check(cudaMemcpy(out->scale + at, matrices[i]->scale + slices[i].first, slices[i].count * sizeof *out->scale,
                                 cudaMemcpyHostToDevice), "copying weights"));
    for (uint32_t p = 0; p < out->part_count; p++) {
        const uint32_t end = p + 1 < out->part_count ? first[p + 1] : count;
        TRY(tile(self, out, slices + first[p], end - first[p], &out->parts[p]));
    }
    ask_for_inputs(self, out);
    return STATUS_OK;
}

static enum status alloc_int8(struct backend *self, size_t columns, int8_t **out)
{
    void *pointer = NULL;
    if (columns > 0)
        TRY(gpu_alloc(self, self->config.rows_max * columns, "a batch", &pointer));
    *out = pointer;
    return STATUS_OK;
}

enum status gpu_inputs_make(struct backend *self)
{
    for (uint32_t i = 0; i < GPU_PARTS_MAX; i++) {
        const struct gpu_input_size *size = &self->input_sizes[i];
        struct gpu_input *input = &self->inputs[i];
        void *scale;
        TRY(alloc_int8(self, size->wide, &input->q));
        TRY(alloc_int8(self, size->low ? size->wide : 0, &input->q_low));
        TRY(alloc_int8(self, size->narrow, &input->narrow));
        TRY(alloc_int8(self, size->low ? size->narrow : 0, &input->narrow_low));
        TRY(gpu_alloc(self, self->config.rows_max * sizeof(float), "a batch", &scale));
        input->scale = scale;
    }
    return STATUS_OK;
}

void gpu_forms(const struct backend *self, const struct gpu_linear *linear, struct cuda_rows_int8 *into)
{
    const bool narrow = linear->columns != linear->depth;
    for (uint32_t i = 0; i < linear->form_count; i++) {
        const struct gpu_input *input = &self->inputs[i];
        const struct gpu_form *form = &linear->forms[i];
        into[i] = (struct cuda_rows_int8){.scheme = form->scheme, .input_scale = form->input_scale, .q = narrow ? input->narrow : input->q,
                                          .scale = input->scale};
        if (form->scheme == CUDA_SCHEME_WIDE)
            into[i].q_low = narrow ? input->narrow_low : input->q_low;
    }
}

static bool widen(struct backend *self, const struct gpu_linear *linear, int8_t *to, const int8_t *from, uint32_t rows)
{
    return gpu_did(self, cudaMemcpy2DAsync(to, linear->depth, from, linear->columns, linear->columns, rows, cudaMemcpyDeviceToDevice,
                                           self->stream), "widening rows");
}

/* What stands behind a row's columns is multiplied by weights that are 0. */
bool gpu_widen(struct backend *self, const struct gpu_linear *linear, uint32_t rows)
{
    if (linear->columns == linear->depth)
        return true;
    for (uint32_t i = 0; i < linear->form_count; i++) {
        const struct gpu_input *input = &self->inputs[i];
        if (!widen(self, linear, input->q, input->narrow, rows))
            return false;
        if (linear->forms[i].scheme == CUDA_SCHEME_WIDE && !widen(self, linear, input->q_low, input->narrow_low, rows))
            return false;
    }
    return true;
}

bool gpu_quantize(struct backend *self, const struct gpu_linear *linear, const float *x, const struct gpu_phase *phase)
{
    struct cuda_rows_int8 into[GPU_PARTS_MAX];
    gpu_forms(self, linear, into);
    for (uint32_t i = 0; i < linear->form_count; i++) {
        const struct cuda_quantize job = {.x = x, .rows = phase->rows, .columns = linear->columns, .into = into[i], .bad_row = phase->bad_row};
        if (!gpu_launched(self, cuda_quantize_rows(&job, self->stream)))
            return false;
    }
    return gpu_widen(self, linear, phase->rows);
}

static struct cuda_gemm product(const struct backend *self, const struct gpu_linear *linear, const struct gpu_part *part, uint32_t first,
                                uint32_t rows)
{
    const struct gpu_input *input = &self->inputs[part->form];
    const size_t at = (size_t)first * linear->depth;
    return (struct cuda_gemm){.a = input->q + at,
                              .a_low = linear->forms[part->form].scheme == CUDA_SCHEME_WIDE ? input->q_low + at : NULL,
                              .a_scale = input->scale + first,
                              .w_tiled = part->tiled,
                              .w_scale = linear->scale + part->first,
                              .rows = rows,
                              .outputs = part->outputs,
                              .depth = linear->depth,
                              .out_stride = linear->outputs,
                              .scratch = self->gemm_scratch};
}

bool gpu_multiply(struct backend *self, const struct gpu_linear *linear, uint32_t first, uint32_t rows, bool accumulate, float *out)
{
    for (uint32_t p = 0; p < linear->part_count; p++) {
        struct cuda_gemm job = product(self, linear, &linear->parts[p], first, rows);
        job.out = out + linear->parts[p].first;
        job.accumulate = accumulate;
        if (!gpu_launched(self, cuda_gemm_int8(&job, self->stream)))
            return false;
    }
    return true;
}

bool gpu_multiply_head(struct backend *self, uint32_t first, uint32_t rows, float *out, uint32_t *bad_row)
{
    struct cuda_gemm job = product(self, &self->head, &self->head.parts[0], first, rows);
    job.out = out;
    job.logit_cap = self->model->config.logit_cap;
    job.bad_row = bad_row;
    return gpu_launched(self, cuda_gemm_int8(&job, self->stream));
}
