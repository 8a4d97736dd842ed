/* backend_float.c - a model in float32: sums in double, plain loops, the C library's functions. What the integers of
 * docs/numerics.md approximate; measured against, never served. Every row runs through all layers (full_depth or not: same numbers).
 *
 * A page of a group: for each producer slot K (kv_heads, 64, head_dim) float32, then V of the same shape. A row's numbers depend on
 * that row and the K and V it sees, so batches, chunks and threads do not change them. */
#include "worker/engine/backend/backend_float.h"
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kernels.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_batch.h"
#include "worker/engine/backend/host_memory.h"
#include "worker/engine/model/model.h"
#include "worker/engine/backend/thread_pool.h"

#define PAGE BACKEND_PAGE_TOKENS
#define SLICE 64u                  /* outputs of a matrix that one thread computes at a time */
#define LANES 8                    /* partial sums of a dot product */

struct scratch {                   /* of one thread */
    double *weight;                /* (widest): one row of a matrix */
    double *score;                 /* (context) */
    double *sum;                   /* (head_dim) */
    float *row;                    /* (widest) */
    float *tile;                   /* (rows, SLICE): integer products */
    int8_t *head;                  /* (head_dim) */
    void *gemm;
};

struct backend {
    const struct model *model;     /* ref, owned by the caller */
    const struct kernels *kernels; /* for what is emulated */
    struct backend_config config;
    struct thread_pool *pool;      /* owned */
    struct copy_queue *copies;     /* owned */
    const struct model *int8_model;          /* ref: what is emulated; NULL: nothing */
    const struct model_matrix *int8_only;    /* in model: only this one; NULL: all */
    bool int8_kv;
    backend_float_observer *observer;        /* NULL: nobody looks */
    void *observer_user;

    void *memory;                  /* owned: all of the following */
    double *frequency[MODEL_LAYER_TYPES];    /* (head_dim / 2) */
    float *x, *h;                  /* (rows, hidden) */
    float *q, *attended;           /* (rows, heads, head_dim) */
    float *k, *v;                  /* (rows, kv_heads, head_dim) */
    float *gate, *up;              /* (rows, intermediate) */
    float *per_layer;              /* (rows, layers, per_layer_input) */
    double *input;                 /* (rows, widest): what a matrix reads */
    int8_t *a, *a_low;             /* (rows, widest): the same as integers */
    float *a_scale;                /* (rows) */
    float **out;                   /* (rows): where the outputs of a matrix go */
    uint32_t *tokens;              /* (rows) */
    const struct batch_span **span_of;       /* (rows) */
    struct batch_span *spans;
    struct scratch *scratch;       /* (threads) */
    uint32_t span_count, rows;
    atomic_uint bad_row;           /* the first that met a NaN or infinity; UINT32_MAX: none */
};

/* ---- rows ---- */

typedef bool row_fn(struct backend *self, const void *job, uint32_t row, uint32_t thread);

struct row_job {
    struct backend *self;
    row_fn *work;
    const void *job;
};

static void one_row(void *context, uint32_t row, uint32_t thread)
{
    const struct row_job *job = context;
    if (job->work(job->self, job->job, row, thread))
        return;
    unsigned seen = atomic_load(&job->self->bad_row);
    while (row < seen && !atomic_compare_exchange_weak(&job->self->bad_row, &seen, row))
        ;
}

static enum status each_row(struct backend *self, row_fn *work, const void *job, const char *what, uint32_t layer)
{
    struct row_job rows = {.self = self, .work = work, .job = job};
    thread_pool_run(self->pool, self->rows, one_row, &rows);
    if (atomic_load(&self->bad_row) == UINT32_MAX)
        return STATUS_OK;
    return STATUS_FAIL(STATUS_CORRUPT, "a NaN or infinity appeared in %s of layer %u", what, layer);
}

static bool all_finite(const float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

/* weight NULL: all ones. */
static void norm(const float *x, const float *weight, size_t count, double epsilon, float *out)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)x[i] * x[i];
    double inverse = 1 / sqrt(sum / (double)count + epsilon);
    for (size_t i = 0; i < count; i++)
        out[i] = (float)(x[i] * inverse * (weight ? weight[i] : 1.0f));
}

/* ---- matrices ---- */

/* Elements [first, first + count) of a matrix's storage, without scales. */
static void read_elements(const struct model_matrix *matrix, size_t first, size_t count, double *out)
{
    const int8_t *i8 = matrix->weight;
    const float *f32 = matrix->weight;
    const uint16_t *bf16 = matrix->weight;
    for (size_t i = 0; i < count; i++) {
        if (matrix->element == MODEL_ELEMENT_I8) {
            out[i] = i8[first + i];
        } else if (matrix->element == MODEL_ELEMENT_F32) {
            out[i] = f32[first + i];
        } else {
            uint32_t bits = (uint32_t)bf16[first + i] << 16;
            float value;
            memcpy(&value, &bits, sizeof value);
            out[i] = value;
        }
    }
}

/* What stands for a matrix of the model: itself, or the same one of the int8 model, which is the same struct and so has it at the
 * same place. */
static const struct model_matrix *stand_in(const struct backend *self, const struct model_matrix *matrix, bool *integers)
{
    *integers = self->int8_model && (!self->int8_only || self->int8_only == matrix);
    if (!*integers)
        return matrix;
    return (const struct model_matrix *)((const char *)self->int8_model + ((const char *)matrix - (const char *)self->model));
}

static double dot(const double *restrict a, const double *restrict b, size_t count)
{
    double lane[LANES] = {0}, sum = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] += a[i + l] * b[i + l];
    for (; i < count; i++)
        sum += a[i] * b[i];
    for (size_t l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

struct linear_job {
    struct backend *self;
    const struct model_matrix *matrix;
    const float *x;                /* (rows, columns) */
    bool integers;
};

/* The input as doubles (rotated where the weights are), or as integers by the matrix's scheme. */
static bool prepare_row(struct backend *self, const void *context, uint32_t row, uint32_t thread)
{
    const struct linear_job *job = context;
    const struct kernels *kernels = self->kernels;
    size_t columns = job->matrix->columns;
    const float *x = job->x + row * columns;
    if (job->matrix->element == MODEL_ELEMENT_I8 && job->matrix->scheme == MODEL_SCHEME_ROTATED) {
        kernels->rotate_rows(x, 1, columns, self->scratch[thread].row);
        x = self->scratch[thread].row;
    }
    if (!job->integers) {
        for (size_t i = 0; i < columns; i++)
            self->input[row * columns + i] = x[i];
        return true;
    }
    int8_t *a = self->a + row * columns;
    if (job->matrix->scheme == MODEL_SCHEME_WIDE)
        return kernels->quantize_wide_rows(x, 1, columns, a, self->a_low + row * columns, self->a_scale + row);
    if (job->matrix->scheme == MODEL_SCHEME_STATIC) {
        self->a_scale[row] = job->matrix->input_scale;
        return kernels->quantize_static_rows(x, 1, columns, 1.0f / job->matrix->input_scale, a);
    }
    return kernels->quantize_rows(x, 1, columns, a, self->a_scale + row);
}

static void integer_slice(const struct linear_job *job, size_t first, size_t count, uint32_t thread)
{
    struct backend *self = job->self;
    const struct model_matrix *matrix = job->matrix;
    float *tile = self->scratch[thread].tile;
    struct gemm_int8 gemm = {
        .a = self->a, .a_low = matrix->scheme == MODEL_SCHEME_WIDE ? self->a_low : NULL, .a_scale = self->a_scale,
        .w = (const int8_t *)matrix->weight + first * matrix->columns, .w_scale = matrix->scale + first, .rows = self->rows,
        .outputs = count, .depth = matrix->columns, .out = tile, .scratch = self->scratch[thread].gemm};
    self->kernels->gemm_int8(&gemm);
    for (uint32_t row = 0; row < self->rows; row++)
        memcpy(self->out[row] + first, tile + row * count, count * sizeof *tile);
}

static void linear_slice(void *context, uint32_t index, uint32_t thread)
{
    const struct linear_job *job = context;
    struct backend *self = job->self;
    const struct model_matrix *matrix = job->matrix;
    size_t columns = matrix->columns, first = (size_t)index * SLICE, end = first + SLICE < matrix->rows ? first + SLICE : matrix->rows;
    if (job->integers) {
        integer_slice(job, first, end - first, thread);
        return;
    }
    double *weight = self->scratch[thread].weight;
    for (size_t o = first; o < end; o++) {
        read_elements(matrix, o * columns, columns, weight);
        double scale = matrix->scale ? matrix->scale[o] : 1.0;
        for (uint32_t row = 0; row < self->rows; row++)
            self->out[row][o] = (float)(dot(weight, self->input + row * columns, columns) * scale);
    }
}

/* Into self->out[row]. */
static enum status linear_out(struct backend *self, const struct model_matrix *matrix, const float *x, uint32_t layer)
{
    struct linear_job job = {.self = self, .x = x};
    if (self->observer)
        self->observer(self->observer_user, matrix, x, self->rows);
    job.matrix = stand_in(self, matrix, &job.integers);
    TRY(each_row(self, prepare_row, &job, "an input", layer));
    thread_pool_run(self->pool, (matrix->rows + SLICE - 1) / SLICE, linear_slice, &job);
    return STATUS_OK;
}

/* out (rows, matrix outputs) */
static enum status linear(struct backend *self, const struct model_matrix *matrix, const float *x, float *out, uint32_t layer)
{
    for (uint32_t row = 0; row < self->rows; row++)
        self->out[row] = out + (size_t)row * matrix->rows;
    return linear_out(self, matrix, x, layer);
}

/* Elements [first, first + count) of row `token` of an embedding with scale_count scales a row, times factor. */
static void look_up(struct backend *self, const struct model_matrix *embedding, uint32_t token, size_t first, size_t count, size_t scale_at,
                    float factor, double *elements, float *out)
{
    bool integers;
    const struct model_matrix *matrix = stand_in(self, embedding, &integers);
    read_elements(matrix, token * (size_t)matrix->columns + first, count, elements);
    float scale = matrix->scale ? matrix->scale[scale_at] : 1.0f;
    for (size_t i = 0; i < count; i++)
        out[i] = (float)elements[i] * scale * factor;
}

/* ---- steps ---- */

static bool embed_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)job;
    const struct model *model = self->model;
    size_t hidden = model->config.hidden_size;
    look_up(self, &model->embedding, self->tokens[row], 0, hidden, self->tokens[row], model->config.embedding_scale,
            self->scratch[thread].weight, self->x + row * hidden);
    return true;
}

static bool per_layer_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)job;
    const struct model *model = self->model;
    size_t width = model->config.per_layer_input, layers = model->config.layer_count;
    const struct scratch *scratch = &self->scratch[thread];
    double in = 1 / sqrt((double)model->config.hidden_size);
    for (size_t layer = 0; layer < layers; layer++) {
        float *f = self->per_layer + (row * layers + layer) * width;
        for (size_t i = 0; i < width; i++)
            f[i] = (float)(f[i] * in);
        norm(f, model->per_layer_proj_norm, width, model->config.norm_epsilon, f);
        look_up(self, &model->per_layer_embedding, self->tokens[row], layer * width, width, self->tokens[row] * layers + layer,
                (float)sqrt((double)width), scratch->weight, scratch->row);
        for (size_t i = 0; i < width; i++)
            f[i] = (float)((f[i] + scratch->row[i]) * M_SQRT1_2);
    }
    return true;
}

static bool norm_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    size_t hidden = self->model->config.hidden_size;
    norm(self->x + row * hidden, job, hidden, self->model->config.norm_epsilon, self->h + row * hidden);
    return true;
}

/* x = x + h, with job (a weight) x + norm(h). */
static bool add_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    size_t hidden = self->model->config.hidden_size;
    float *x = self->x + row * hidden, *h = self->h + row * hidden;
    if (job)
        norm(h, job, hidden, self->model->config.norm_epsilon, h);
    for (size_t i = 0; i < hidden; i++)
        x[i] += h[i];
    return all_finite(x, hidden);
}

static void rotate(const struct backend *self, enum model_layer_type type, float *x, size_t heads, uint32_t position)
{
    size_t dim = self->model->config.attention[type].head_dim;
    for (size_t i = 0; i < dim / 2; i++) {
        double angle = position * self->frequency[type][i], cosine = cos(angle), sine = sin(angle);
        for (size_t head = 0; head < heads; head++) {
            float *low = x + head * dim + i, *high = low + dim / 2, a = *low, b = *high;
            *low = (float)(a * cosine - b * sine);
            *high = (float)(b * cosine + a * sine);
        }
    }
}

/* Each head to int8 and back. */
static bool through_int8(const struct backend *self, float *x, size_t heads, size_t dim, uint32_t thread)
{
    int8_t *head = self->scratch[thread].head;
    for (size_t i = 0; i < heads; i++) {
        float scale;
        if (!self->kernels->quantize_rows(x + i * dim, 1, dim, head, &scale))
            return false;
        self->kernels->dequantize_row(head, scale, dim, x + i * dim);
    }
    return true;
}

static uint32_t position_of(const struct backend *self, uint32_t row)
{
    return self->span_of[row]->start + (row - self->span_of[row]->row);
}

/* (kv_heads, 64, dim) of the layer's K (V: the next plane) in the page that holds position. */
static float *plane(const struct backend *self, const struct backend_run *run, uint32_t layer, uint32_t position, bool value)
{
    const struct model_config *config = &self->model->config;
    enum model_layer_type type = config->layer_types[layer];
    size_t elements = (size_t)config->attention[type].kv_head_count * PAGE * config->attention[type].head_dim;
    float *page = run->pages[type][position / PAGE];
    return page + (2 * (size_t)config->producer_slot[config->kv_producer[layer]] + value) * elements;
}

static void store(const struct backend *self, uint32_t row, uint32_t layer, bool value, const float *x)
{
    const struct model_attention *attention = &self->model->config.attention[self->model->config.layer_types[layer]];
    uint32_t position = position_of(self, row);
    float *to = plane(self, self->span_of[row]->run, layer, position, value);
    size_t dim = attention->head_dim;
    for (size_t head = 0; head < attention->kv_head_count; head++)
        memcpy(to + (head * PAGE + position % PAGE) * dim, x + head * dim, dim * sizeof *x);
}

static bool kv_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    uint32_t layer = *(const uint32_t *)job;
    const struct model_config *config = &self->model->config;
    enum model_layer_type type = config->layer_types[layer];
    size_t dim = config->attention[type].head_dim, heads = config->attention[type].kv_head_count;
    float *k = self->k + row * heads * dim, *v = self->v + row * heads * dim;
    for (size_t head = 0; head < heads; head++) {
        if (config->qk_norm)
            norm(k + head * dim, self->model->layers[layer].k_norm, dim, config->norm_epsilon, k + head * dim);
        if (config->v_norm)
            norm(v + head * dim, NULL, dim, config->norm_epsilon, v + head * dim);
    }
    rotate(self, type, k, heads, position_of(self, row));
    if (self->int8_kv && !(through_int8(self, k, heads, dim, thread) && through_int8(self, v, heads, dim, thread)))
        return false;
    store(self, row, layer, false, k);
    store(self, row, layer, true, v);
    return all_finite(k, heads * dim) && all_finite(v, heads * dim);
}

/* One query head over what it sees; the keys [0, sinks) and [first, position]. */
static void attend_head(const struct backend *self, uint32_t row, uint32_t layer, size_t head, const struct scratch *scratch)
{
    const struct model_config *config = &self->model->config;
    enum model_layer_type type = config->layer_types[layer];
    const struct model_attention *attention = &config->attention[type];
    const struct backend_run *run = self->span_of[row]->run;
    size_t dim = attention->head_dim, kv_head = head / (config->head_count / attention->kv_head_count);
    uint32_t position = position_of(self, row), first = 0, sinks = 0;
    if (type == MODEL_LAYER_LOCAL && position >= attention->window) {
        first = position - attention->window + 1;
        sinks = attention->sinks < first ? attention->sinks : first;
    }
    const float *q = self->q + (row * config->head_count + head) * dim;
    double top = -INFINITY, total = 0;
    memset(scratch->sum, 0, dim * sizeof *scratch->sum);
    for (uint32_t j = 0; j <= position; j++) {
        if (j >= sinks && j < first)
            j = first;
        const float *k = plane(self, run, layer, j, false) + (kv_head * PAGE + j % PAGE) * dim;
        double score = 0;
        for (size_t d = 0; d < dim; d++)
            score += (double)q[d] * k[d];
        scratch->score[j] = score * config->attention_scale;
        top = fmax(top, scratch->score[j]);
    }
    for (uint32_t j = 0; j <= position; j++) {
        if (j >= sinks && j < first)
            j = first;
        const float *v = plane(self, run, layer, j, true) + (kv_head * PAGE + j % PAGE) * dim;
        double weight = exp(scratch->score[j] - top);
        total += weight;
        for (size_t d = 0; d < dim; d++)
            scratch->sum[d] += weight * v[d];
    }
    for (size_t d = 0; d < dim; d++)
        self->attended[(row * config->head_count + head) * dim + d] = (float)(scratch->sum[d] / total);
}

static bool attend_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    uint32_t layer = *(const uint32_t *)job;
    const struct model_config *config = &self->model->config;
    enum model_layer_type type = config->layer_types[layer];
    size_t dim = config->attention[type].head_dim, heads = config->head_count;
    float *q = self->q + row * heads * dim;
    for (size_t head = 0; head < heads && config->qk_norm; head++)
        norm(q + head * dim, self->model->layers[layer].q_norm, dim, config->norm_epsilon, q + head * dim);
    rotate(self, type, q, heads, position_of(self, row));
    if (self->int8_kv && !through_int8(self, q, heads, dim, thread))
        return false;
    for (size_t head = 0; head < heads; head++)
        attend_head(self, row, layer, head, &self->scratch[thread]);
    return true;
}

static void gate(enum model_activation activation, float *x, const float *with, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double g = x[i];
        double value = activation == MODEL_ACTIVATION_SILU ? g / (1 + exp(-g))
                                                           : 0.5 * g * (1 + tanh(0.79788456080286536 * (g + 0.044715 * g * g * g)));
        x[i] = (float)(value * with[i]);
    }
}

static bool gate_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    size_t inner = self->model->config.intermediate_size[*(const uint32_t *)job];
    gate(self->model->config.activation, self->gate + row * inner, self->up + row * inner, inner);
    return true;
}

static bool per_layer_gate_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    size_t width = self->model->config.per_layer_input, layers = self->model->config.layer_count;
    gate(self->model->config.activation, self->gate + row * width, self->per_layer + (row * layers + *(const uint32_t *)job) * width, width);
    return true;
}

static bool scale_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)thread;
    size_t hidden = self->model->config.hidden_size;
    for (size_t i = 0; i < hidden; i++)
        self->x[row * hidden + i] *= *(const float *)job;
    return true;
}

static enum status run_layer(struct backend *self, uint32_t index)
{
    const struct model_config *config = &self->model->config;
    const struct model_layer *layer = &self->model->layers[index];
    TRY(each_row(self, norm_row, layer->input_norm, "the input", index));
    if (config->kv_producer[index] == index) {
        TRY(linear(self, &layer->k_proj, self->h, self->k, index));
        TRY(linear(self, &layer->v_proj, self->h, self->v, index));
        TRY(each_row(self, kv_row, &index, "K and V", index));
    }
    TRY(linear(self, &layer->q_proj, self->h, self->q, index));
    TRY(each_row(self, attend_row, &index, "Q", index));
    TRY(linear(self, &layer->o_proj, self->attended, self->h, index));
    TRY(each_row(self, add_row, layer->attention_norm, "the attention's output", index));

    TRY(each_row(self, norm_row, layer->mlp_norm, "the attention's output", index));
    TRY(linear(self, &layer->gate_proj, self->h, self->gate, index));
    TRY(linear(self, &layer->up_proj, self->h, self->up, index));
    TRY(each_row(self, gate_row, &index, "the activation", index));
    TRY(linear(self, &layer->down_proj, self->gate, self->h, index));
    TRY(each_row(self, add_row, layer->mlp_result_norm, "the feed-forward output", index));

    if (!config->per_layer_input)
        return STATUS_OK;
    TRY(linear(self, &layer->per_layer_gate, self->x, self->gate, index));
    TRY(each_row(self, per_layer_gate_row, &index, "the per-layer input", index));
    TRY(linear(self, &layer->per_layer_proj, self->gate, self->h, index));
    TRY(each_row(self, add_row, layer->per_layer_norm, "the per-layer input", index));
    return each_row(self, scale_row, &layer->layer_scalar, "the per-layer input", index);
}

static bool logits_row(struct backend *self, const void *job, uint32_t row, uint32_t thread)
{
    (void)job, (void)thread;
    const struct model_config *config = &self->model->config;
    for (uint32_t v = 0; config->logit_cap > 0 && v < config->vocab_size; v++)
        self->out[row][v] = (float)(config->logit_cap * tanh((double)self->out[row][v] / config->logit_cap));
    return all_finite(self->out[row], config->vocab_size);
}

/* Of the wanted rows, which move to the front. */
static enum status compute_logits(struct backend *self)
{
    const struct model *model = self->model;
    size_t hidden = model->config.hidden_size;
    uint32_t wanted = 0;
    TRY(each_row(self, norm_row, model->final_norm, "the output", model->config.layer_count - 1));
    for (uint32_t s = 0; s < self->span_count; s++) {
        const struct batch_span *span = &self->spans[s];
        for (uint32_t i = 0; i < span->run->logit_rows; i++, wanted++) {
            uint32_t row = span->row + span->count - span->run->logit_rows + i;
            memmove(self->h + wanted * hidden, self->h + row * hidden, hidden * sizeof *self->h);
            self->out[wanted] = span->run->logits + (size_t)i * model->config.vocab_size;
            self->span_of[wanted] = span;
        }
    }
    self->rows = wanted;
    if (wanted == 0)
        return STATUS_OK;
    TRY(linear_out(self, &model->embedding, self->h, model->config.layer_count - 1));
    return each_row(self, logits_row, NULL, "the logits", model->config.layer_count - 1);
}

static enum status run_all(struct backend *self)
{
    const struct model *model = self->model;
    TRY(each_row(self, embed_row, NULL, "the embedding", 0));
    if (model->config.per_layer_input) {
        TRY(linear(self, &model->per_layer_model_proj, self->x, self->per_layer, 0));
        TRY(each_row(self, per_layer_row, NULL, "the per-layer inputs", 0));
    }
    for (uint32_t i = 0; i < model->config.layer_count; i++)
        TRY(run_layer(self, i));
    return compute_logits(self);
}

static enum status float_forward(struct backend *self, const struct backend_batch *batch, uint32_t *failed_run)
{
    TRY(batch_check(&self->model->config, &self->config, batch));
    self->span_count = batch->run_count;
    self->rows = batch_spans(batch, self->spans);
    for (uint32_t s = 0; s < batch->run_count; s++)
        for (uint32_t i = 0; i < self->spans[s].count; i++) {
            self->span_of[self->spans[s].row + i] = &self->spans[s];
            self->tokens[self->spans[s].row + i] = batch->runs[s].tokens[i];
        }
    atomic_store(&self->bad_row, UINT32_MAX);
    fenv_t saved;
    kernels_float_enter(&saved);
    enum status st = run_all(self);
    kernels_float_leave(&saved);
    if (st == STATUS_CORRUPT && failed_run)
        *failed_run = self->span_of[atomic_load(&self->bad_row)]->run_index;
    return st;
}

/* ---- life ---- */

static void *carve(char *base, size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return base ? base + at : NULL;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* With base NULL only counts. */
static size_t lay_out(struct backend *self, char *base)
{
    const struct model_config *config = &self->model->config;
    const struct model_attention *local = &config->attention[MODEL_LAYER_LOCAL], *global = &config->attention[MODEL_LAYER_GLOBAL];
    size_t rows = self->config.rows_max, used = 0, inner = config->per_layer_input, dim = larger(local->head_dim, global->head_dim);
    size_t kv = larger((size_t)local->kv_head_count * local->head_dim, (size_t)global->kv_head_count * global->head_dim);
    for (uint32_t i = 0; i < config->layer_count; i++)
        inner = larger(inner, config->intermediate_size[i]);
    size_t widest = larger(larger(inner, config->head_count * dim), config->hidden_size);
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++)
        self->frequency[type] = carve(base, &used, dim / 2 * sizeof(double));
    self->x = carve(base, &used, rows * config->hidden_size * sizeof(float));
    self->h = carve(base, &used, rows * config->hidden_size * sizeof(float));
    self->q = carve(base, &used, rows * config->head_count * dim * sizeof(float));
    self->attended = carve(base, &used, rows * config->head_count * dim * sizeof(float));
    self->k = carve(base, &used, rows * kv * sizeof(float));
    self->v = carve(base, &used, rows * kv * sizeof(float));
    self->gate = carve(base, &used, rows * inner * sizeof(float));
    self->up = carve(base, &used, rows * inner * sizeof(float));
    self->per_layer = carve(base, &used, rows * config->layer_count * config->per_layer_input * sizeof(float));
    self->input = carve(base, &used, rows * widest * sizeof(double));
    self->a = carve(base, &used, rows * widest);
    self->a_low = carve(base, &used, rows * widest);
    self->a_scale = carve(base, &used, rows * sizeof(float));
    self->out = carve(base, &used, rows * sizeof *self->out);
    self->tokens = carve(base, &used, rows * sizeof *self->tokens);
    self->span_of = carve(base, &used, rows * sizeof *self->span_of);
    self->spans = carve(base, &used, rows * sizeof *self->spans);
    self->scratch = carve(base, &used, self->config.threads * sizeof *self->scratch);
    for (uint32_t thread = 0; thread < self->config.threads; thread++) {
        struct scratch scratch;
        scratch.weight = carve(base, &used, widest * sizeof(double));
        scratch.score = carve(base, &used, config->context_tokens_max * sizeof(double));
        scratch.sum = carve(base, &used, dim * sizeof(double));
        scratch.row = carve(base, &used, widest * sizeof(float));
        scratch.tile = carve(base, &used, rows * SLICE * sizeof(float));
        scratch.head = carve(base, &used, dim);
        scratch.gemm = carve(base, &used, GEMM_SCRATCH_BYTES(widest));
        if (base)
            self->scratch[thread] = scratch;
    }
    return used;
}

static void float_destroy(struct backend **backend)
{
    struct backend *self = *backend;
    if (!self)
        return;
    copy_queue_destroy(&self->copies);
    thread_pool_destroy(&self->pool);
    host_arena_destroy(&self->memory);
    free(self);
    *backend = NULL;
}

static enum status float_create(const struct model *model, const struct backend_config *config, struct backend **out)
{
    TRY(batch_check_config(config));
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
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const struct model_attention *attention = &model->config.attention[type];
        for (uint32_t i = 0; i < attention->head_dim / 2; i++)
            self->frequency[type][i] =
                i < attention->rope_pairs ? pow(attention->rope_base, -2.0 * i / attention->head_dim) / attention->rope_scale : 0.0;
    }
    *out = self;
    self = NULL;
done:
    kernels_float_leave(&saved);
    float_destroy(&self);
    return st;
}

static bool same_shape(const struct model_config *a, const struct model_config *b)
{
    return a->vocab_size == b->vocab_size && a->hidden_size == b->hidden_size && a->layer_count == b->layer_count &&
           a->head_count == b->head_count && a->per_layer_input == b->per_layer_input && a->sandwich_norm == b->sandwich_norm &&
           a->attention[0].kv_head_count == b->attention[0].kv_head_count && a->attention[0].head_dim == b->attention[0].head_dim &&
           a->attention[1].kv_head_count == b->attention[1].kv_head_count && a->attention[1].head_dim == b->attention[1].head_dim &&
           memcmp(a->layer_types, b->layer_types, sizeof a->layer_types) == 0 &&
           memcmp(a->intermediate_size, b->intermediate_size, sizeof a->intermediate_size) == 0 &&
           memcmp(a->kv_producer, b->kv_producer, sizeof a->kv_producer) == 0;
}

enum status backend_float_emulate(struct backend *self, const struct model *int8_model, const char *matrix_name, bool kv)
{
    if (int8_model && int8_model->format != MODEL_FORMAT_INT8)
        return STATUS_FAIL(STATUS_INVALID, "%s is not a roost-int8 model", int8_model->config.name);
    if (int8_model && !same_shape(&int8_model->config, &self->model->config))
        return STATUS_FAIL(STATUS_INVALID, "%s and %s have different shapes", int8_model->config.name, self->model->config.name);
    const struct model_matrix *only = matrix_name ? model_find_matrix(self->model, matrix_name) : NULL;
    if (matrix_name && !only)
        return STATUS_FAIL(STATUS_NOT_FOUND, "%s has no matrix %s", self->model->config.name, matrix_name);
    self->int8_model = int8_model;
    self->int8_only = only;
    self->int8_kv = kv;
    return STATUS_OK;
}

void backend_float_observe(struct backend *self, backend_float_observer *fn, void *user)
{
    self->observer = fn;
    self->observer_user = user;
}

static size_t float_page_bytes(const struct backend *self, uint32_t group)
{
    const struct model_attention *attention = &self->model->config.attention[group];
    return 2 * sizeof(float) * attention->kv_head_count * PAGE * attention->head_dim * self->model->config.producer_count[group];
}

static void float_page_copy_prefix(struct backend *self, uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    const struct model_attention *attention = &self->model->config.attention[group];
    size_t block = PAGE * attention->head_dim, blocks = 2 * (size_t)attention->kv_head_count * self->model->config.producer_count[group];
    memset(dst, 0, float_page_bytes(self, group));
    for (size_t i = 0; i < blocks; i++)
        memcpy((float *)dst + i * block, (const float *)src + i * block, tokens * (size_t)attention->head_dim * sizeof(float));
}

static enum status float_arena_create(struct backend *self, enum backend_tier tier, size_t bytes, void **base)
{
    (void)self, (void)tier;                 /* both tiers are the host's memory */
    return host_arena_create(bytes, base);
}

static void float_arena_destroy(struct backend *self, enum backend_tier tier, void **base)
{
    (void)self, (void)tier;
    host_arena_destroy(base);
}

static uint64_t float_copy_start(struct backend *self, void *dst, const void *src, size_t bytes)
{
    return copy_queue_start(self->copies, dst, src, bytes);
}

static bool float_copy_done(struct backend *self, uint64_t ticket)
{
    return copy_queue_done(self->copies, ticket);
}

static void float_copy_wait(struct backend *self, uint64_t ticket)
{
    copy_queue_wait(self->copies, ticket);
}

const struct backend_ops backend_float_ops = {
    .name = "float",
    .bits = "float",
    .create = float_create,
    .destroy = float_destroy,
    .page_bytes = float_page_bytes,
    .forward = float_forward,
    .page_copy_prefix = float_page_copy_prefix,
    .arena_create = float_arena_create,
    .arena_destroy = float_arena_destroy,
    .copy_start = float_copy_start,
    .copy_done = float_copy_done,
    .copy_wait = float_copy_wait,
};
