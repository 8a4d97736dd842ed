/* backend_cpu_ranks.c - the CPU backend as one of several ranks (docs/decisions/0005-tensor-parallelism.md).
 *
 * Every rank has all rows of x and does what is done row by row itself. Of a matrix it computes a slice of the outputs, whole sums over the
 * inputs, and is told the other slices: no sum is ever split, so the bits are those of one rank by construction.
 *
 *   all rows: norm, integers         own rows: K, V -> pages       slices: Q -- all_to_all --> own rows: norm, attention
 *   attended -- all_gather --> all rows     slices: o, gate * up, down, per-layer, head -- all_gather --> all rows
 *
 * Rows are in the order of their homes, so the rows of one rank are one range. What goes wrong in own rows is known to their rank alone:
 * it is noted, the pass goes on, and a maximum over the ranks ends it with one verdict. Everything else goes wrong on every rank alike. */
#include <stdlib.h>
#include <string.h>
#include "worker/engine/backend/backend_cpu.h"
#include "worker/engine/backend/backend_cpu_internal.h"
#include "worker/engine/backend/host_memory.h"
#include "worker/engine/backend/rank.h"
#include "worker/engine/collective/collective.h"
#include "worker/engine/collective/rendezvous.h"

#define SLICE_STEP       16u               /* slices begin at multiples of this, for whole tiles */
#define LOGITS_BYTES_MAX ((size_t)2 << 30) /* of one pass; as engine.c */

struct cpu_ranks {
    const struct collective_ops *ops;      /* ref */
    struct collective *collective;         /* ref */
    uint32_t rank, size;
    uint64_t deadline_ms;                  /* of the pass */
    const uint32_t *homes;                 /* ref, of the pass; (runs) ascending */
    uint32_t bad_run;                      /* the first with a NaN or infinity in an own row; UINT32_MAX: none */
    void *memory, *logits;                 /* owned arenas; touched only as far as rows come */
    float *part, *all;                     /* (rows, slice), (rows, widest) */
    float *logits_part, *logits_all;       /* (logits_rows, slice), (logits_rows, vocab) */
    uint32_t logits_rows;
};

static size_t slice_first(const struct cpu_ranks *ranks, uint32_t rank, size_t outputs)
{
    return rank == ranks->size ? outputs : outputs * rank / ranks->size / SLICE_STEP * SLICE_STEP;
}

static size_t slice_count(const struct cpu_ranks *ranks, uint32_t rank, size_t outputs)
{
    return slice_first(ranks, rank + 1, outputs) - slice_first(ranks, rank, outputs);
}

/* ---- who has which rows ---- */

static struct cpu_range rows_of(const struct backend *self, uint32_t rank)
{
    struct cpu_range range = {0};
    for (uint32_t s = 0; s < self->span_count; s++) {
        const struct batch_span *span = &self->spans[s];
        if (self->ranks->homes[span->run_index] < rank)
            range.first = span->row + span->count;
        else if (self->ranks->homes[span->run_index] == rank)
            range.count += span->count;
    }
    return range;
}

struct cpu_range cpu_own_rows(const struct backend *self)
{
    return self->ranks ? rows_of(self, self->ranks->rank) : (struct cpu_range){0, self->rows};
}

bool cpu_is_own(const struct backend *self, uint32_t run_index)
{
    return !self->ranks || self->ranks->homes[run_index] == self->ranks->rank;
}

/* ---- own rows ---- */

static void note_bad_rows(struct backend *self)
{
    const uint32_t row = atomic_exchange(&self->bad_row, UINT32_MAX);
    if (row == UINT32_MAX)
        return;
    const uint32_t run = batch_run_of_row(self->spans, self->span_count, row);
    self->ranks->bad_run = run < self->ranks->bad_run ? run : self->ranks->bad_run;
}

enum status cpu_each_own_row(struct backend *self, cpu_row_fn *work, const void *job, size_t cost, const char *what, uint32_t layer)
{
    const struct cpu_range own = cpu_own_rows(self);
    if (own.count > 0)
        cpu_work_rows(self, own, work, job, cost);
    if (!self->ranks)
        return cpu_check_rows(self, what, layer);
    note_bad_rows(self);
    return STATUS_OK;
}

enum status cpu_project_own(struct backend *self, const struct model_matrix *matrix, float *out, const char *what, uint32_t layer)
{
    const struct cpu_range own = cpu_own_rows(self);
    TRY(cpu_prepare_input(self, matrix, what, layer));
    cpu_multiply(self, matrix, &(struct cpu_block){.row_first = own.first, .row_count = own.count, .count = matrix->rows,
                                                   .out = out + own.first * (size_t)matrix->rows, .out_stride = matrix->rows});
    return STATUS_OK;
}

/* ---- slices, and putting them together ---- */

static void multiply_slice(struct backend *self, const struct model_matrix *matrix, float *part)
{
    const struct cpu_ranks *ranks = self->ranks;
    const size_t count = slice_count(ranks, ranks->rank, matrix->rows);
    cpu_multiply(self, matrix, &(struct cpu_block){.row_count = self->rows, .first = slice_first(ranks, ranks->rank, matrix->rows),
                                                   .count = count, .out = part, .out_stride = count});
}

struct join_job {
    const float *all;              /* (ranks) of (range.count, slice) */
    float *out;                    /* (rows, outputs) */
    struct cpu_range range;
    size_t outputs;
    bool accumulate;
};

static bool join_row(struct backend *self, const void *user, uint32_t row, uint32_t thread)
{
    (void)thread;
    const struct join_job *job = user;
    for (uint32_t rank = 0; rank < self->ranks->size; rank++) {
        const size_t first = slice_first(self->ranks, rank, job->outputs), count = slice_count(self->ranks, rank, job->outputs);
        const float *from = job->all + first * job->range.count + (row - job->range.first) * count;
        float *to = job->out + row * job->outputs + first;
        if (job->accumulate)
            for (size_t i = 0; i < count; i++)
                to[i] = to[i] + from[i];
        else
            memcpy(to, from, count * sizeof *to);
    }
    return true;
}

static void join_rows(struct backend *self, const struct join_job *job)
{
    if (job->range.count > 0)
        cpu_work_rows(self, job->range, join_row, job, job->outputs);
}

/* part (rows, slice) of every rank -> out (rows, outputs) on every rank. */
static enum status gather(struct backend *self, size_t outputs, const float *part, bool accumulate, float *out)
{
    struct cpu_ranks *ranks = self->ranks;
    size_t bytes[RENDEZVOUS_RANKS_MAX];
    for (uint32_t rank = 0; rank < ranks->size; rank++)
        bytes[rank] = self->rows * slice_count(ranks, rank, outputs) * sizeof *part;
    TRY(ranks->ops->all_gather(ranks->collective, part, bytes, ranks->all, ranks->deadline_ms));
    join_rows(self, &(struct join_job){ranks->all, out, {0, self->rows}, outputs, accumulate});
    return STATUS_OK;
}

enum status cpu_ranks_project(struct backend *self, const struct model_matrix *matrix, bool accumulate, float *out, const char *what,
                              uint32_t layer)
{
    TRY(cpu_prepare_input(self, matrix, what, layer));
    multiply_slice(self, matrix, self->ranks->part);
    return gather(self, matrix->rows, self->ranks->part, accumulate, out);
}

enum status cpu_project_home(struct backend *self, const struct model_matrix *matrix, float *out, const char *what, uint32_t layer)
{
    struct cpu_ranks *ranks = self->ranks;
    if (!ranks)
        return cpu_project(self, matrix, false, out, what, layer);
    const struct cpu_range own = cpu_own_rows(self);
    const size_t count = slice_count(ranks, ranks->rank, matrix->rows);
    size_t send[RENDEZVOUS_RANKS_MAX], receive[RENDEZVOUS_RANKS_MAX];
    for (uint32_t rank = 0; rank < ranks->size; rank++) {
        send[rank] = rows_of(self, rank).count * count * sizeof *out;
        receive[rank] = own.count * slice_count(ranks, rank, matrix->rows) * sizeof *out;
    }
    TRY(cpu_prepare_input(self, matrix, what, layer));
    multiply_slice(self, matrix, ranks->part);
    TRY(ranks->ops->all_to_all(ranks->collective, ranks->part, send, ranks->all, receive, ranks->deadline_ms));
    join_rows(self, &(struct join_job){ranks->all, out, own, matrix->rows, false});
    return STATUS_OK;
}

struct gate_job {
    cpu_gate_fn *gate;
    size_t count;                  /* of the slice */
};

static bool gate_row(struct backend *self, const void *user, uint32_t row, uint32_t thread)
{
    (void)thread;
    const struct gate_job *job = user;
    job->gate(self, self->gate + row * job->count, self->up + row * job->count, job->count);
    return true;
}

enum status cpu_ranks_gate(struct backend *self, const struct model_layer *layer, cpu_gate_fn *gate, uint32_t index)
{
    const size_t inner = layer->gate_proj.rows;
    const struct gate_job job = {gate, slice_count(self->ranks, self->ranks->rank, inner)};
    TRY(cpu_prepare_input(self, &layer->gate_proj, "the attention's output", index));
    multiply_slice(self, &layer->gate_proj, self->gate);
    TRY(cpu_prepare_input(self, &layer->up_proj, "the attention's output", index));
    multiply_slice(self, &layer->up_proj, self->up);
    cpu_work_rows(self, (struct cpu_range){0, self->rows}, gate_row, &job, job.count);
    return gather(self, inner, self->gate, false, self->gate);
}

enum status cpu_gather_attended(struct backend *self, size_t width)
{
    struct cpu_ranks *ranks = self->ranks;
    size_t bytes[RENDEZVOUS_RANKS_MAX];
    if (!ranks)
        return STATUS_OK;
    for (uint32_t rank = 0; rank < ranks->size; rank++)
        bytes[rank] = rows_of(self, rank).count * width * sizeof *self->attended;
    return ranks->ops->all_gather(ranks->collective, self->attended + cpu_own_rows(self).first * width, bytes, self->attended,
                                  ranks->deadline_ms);
}

/* ---- the head ---- */

static bool finish_logits_row(struct backend *self, const void *user, uint32_t row, uint32_t thread)
{
    (void)thread;
    const size_t count = *(const size_t *)user;
    float *logits = self->ranks->logits_part + row * count;
    const bool good = self->kernels->all_finite(logits, count);
    if (self->model->config.logit_cap > 0)
        self->kernels->softcap(logits, count, self->model->config.logit_cap);
    return good;
}

enum status cpu_ranks_logits(struct backend *self)
{
    struct cpu_ranks *ranks = self->ranks;
    const size_t vocab = self->model->config.vocab_size, count = slice_count(ranks, ranks->rank, vocab);
    size_t send[RENDEZVOUS_RANKS_MAX] = {self->rows * count * sizeof(float)}, receive[RENDEZVOUS_RANKS_MAX] = {0};
    if (self->rows > ranks->logits_rows)
        return STATUS_FAIL(STATUS_LIMIT, "%u rows of logits in one pass, at most %u with several ranks", self->rows, ranks->logits_rows);
    TRY(cpu_prepare_input(self, &self->model->embedding, "the output", self->model->config.layer_count - 1));
    multiply_slice(self, &self->model->embedding, ranks->logits_part);
    cpu_work_rows(self, (struct cpu_range){0, self->rows}, finish_logits_row, &count, count);
    note_bad_rows(self);
    for (uint32_t rank = 0; rank < ranks->size && ranks->rank == 0; rank++)
        receive[rank] = self->rows * slice_count(ranks, rank, vocab) * sizeof(float);
    TRY(ranks->ops->all_to_all(ranks->collective, ranks->logits_part, send, ranks->logits_all, receive, ranks->deadline_ms));
    for (uint32_t s = 0; s < self->span_count && ranks->rank == 0; s++) {
        const struct batch_span *span = &self->spans[s];
        for (uint32_t rank = 0; rank < ranks->size; rank++) {
            const size_t first = slice_first(ranks, rank, vocab), width = slice_count(ranks, rank, vocab);
            for (uint32_t i = 0; i < span->count; i++)
                memcpy(span->run->logits + i * vocab + first, ranks->logits_all + first * self->rows + (span->row + i) * width,
                       width * sizeof(float));
        }
    }
    return STATUS_OK;
}

/* ---- the pass ---- */

static enum status forward_rank(struct backend *self, const struct backend_batch *batch, const uint32_t *homes, uint64_t deadline_ms,
                                uint32_t *failed_run)
{
    struct cpu_ranks *ranks = self->ranks;
    ranks->homes = homes;
    ranks->deadline_ms = deadline_ms;
    ranks->bad_run = UINT32_MAX;
    const enum status st = cpu_compute(self, batch, failed_run);
    if (st != STATUS_OK && st != STATUS_CORRUPT)
        return st;
    uint32_t verdict = UINT32_MAX - ranks->bad_run;          /* the first run is the largest; 0: none */
    TRY(ranks->ops->maximum_bits(ranks->collective, &verdict, 1, deadline_ms));
    if (st != STATUS_OK || verdict == 0)
        return st;
    if (failed_run)
        *failed_run = UINT32_MAX - verdict;
    return STATUS_FAIL(STATUS_CORRUPT, "a NaN or infinity appeared in Q, K, V or the logits of run %u", UINT32_MAX - verdict);
}

/* ---- life ---- */

static size_t widest_output(const struct model_config *config)
{
    size_t widest = (size_t)config->layer_count * config->per_layer_input;
    widest = config->hidden_size > widest ? config->hidden_size : widest;
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const size_t q = (size_t)config->head_count * config->attention[type].head_dim;
        widest = q > widest ? q : widest;
    }
    for (uint32_t i = 0; i < config->layer_count; i++)
        widest = config->intermediate_size[i] > widest ? config->intermediate_size[i] : widest;
    return widest;
}

static enum status join(struct backend *self, const struct rank_place *place)
{
    const struct model_config *config = &self->model->config;
    const uint32_t rank = place->rank, size = place->size;
    struct cpu_ranks *ranks = calloc(1, sizeof *ranks);
    if (!ranks)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a rank");
    ranks->ops = place->ops;
    ranks->collective = place->collective;
    ranks->rank = rank;
    ranks->size = size;
    const size_t rows = self->config.rows_max, widest = widest_output(config);
    const size_t part = rows * (widest / size + 2 * SLICE_STEP), logits_most = LOGITS_BYTES_MAX / (config->vocab_size * sizeof(float));
    ranks->logits_rows = (uint32_t)(rows < logits_most ? rows : logits_most);
    const size_t logits_part = ranks->logits_rows * (size_t)(config->vocab_size / size + 2 * SLICE_STEP);
    enum status st;
    TRY_GOTO(host_arena_create((part + rows * widest) * sizeof(float), &ranks->memory), st, fail);
    TRY_GOTO(host_arena_create((logits_part + (rank == 0 ? (size_t)ranks->logits_rows * config->vocab_size : 0)) * sizeof(float),
                               &ranks->logits), st, fail);
    ranks->part = ranks->memory;
    ranks->all = ranks->part + part;
    ranks->logits_part = ranks->logits;
    ranks->logits_all = ranks->logits_part + logits_part;
    self->ranks = ranks;
    return STATUS_OK;
fail:
    cpu_ranks_destroy(&ranks);
    return st;
}

void cpu_ranks_destroy(struct cpu_ranks **pointer)
{
    struct cpu_ranks *ranks = *pointer;
    if (!ranks)
        return;
    host_arena_destroy(&ranks->logits);
    host_arena_destroy(&ranks->memory);
    free(ranks);
    *pointer = NULL;
}

const struct rank_ops rank_cpu_ops = {.ops = &backend_cpu_ops, .join = join, .forward_rank = forward_rank};
