/* backend_cuda_ranks.c - the CUDA backend as one of several ranks: what is cut and what is told is backend_cpu_ranks.c's, so are the bits.
 *
 * What ranks tell one another is in device memory. With NCCL it goes over the stream; without it is staged: copied to pinned memory, told over the
 * shared memory of the group, copied back. A rank's verdict on its rows is told at the end of the pass, over shared memory always. */
#include <stdlib.h>
#include <time.h>
#include "common/clock.h"
#include "worker/engine/backend/cuda/backend_cuda.h"
#include "worker/engine/backend/cuda/backend_cuda_internal.h"
#include "worker/engine/backend/cuda/backend_cuda_nccl.h"
#include "worker/engine/backend/rank.h"
#include "worker/engine/collective/collective.h"
#include "worker/engine/collective/rendezvous.h"

#define ASK_US 20u                 /* between two questions */

struct gpu_ranks {
    struct rank_place place;
    struct collective *nccl;       /* owned; NULL: staged */
    const uint32_t *homes;         /* ref, of the pass; (runs) ascending */
    uint64_t deadline_ms;          /* of the pass */
    float *part, *all;             /* this rank's slices; those of all */
    void *host_part, *host_all;    /* pinned; NULL with NCCL */
};

/* ---- who has which rows ---- */

bool gpu_is_own(const struct backend *self, uint32_t run_index)
{
    return !self->ranks || self->ranks->homes[run_index] == self->rank;
}

static uint32_t rows_of(const struct backend *self, const struct gpu_phase *phase, uint32_t rank)
{
    uint32_t rows = 0;
    for (uint32_t s = 0; s < phase->span_count; s++)
        if (self->ranks->homes[phase->runs[s].run_index] == rank)
            rows += phase->runs[s].count;
    return rows;
}

/* ---- telling ---- */

/* A failure has ended the group. */
static bool told(struct backend *self, enum status st)
{
    return st == STATUS_OK || gpu_lose(self, status_detail());
}

/* For the stream, without NCCL: no longer than the others wait, and no longer than the group lives. */
static bool wait_stream(struct backend *self)
{
    struct rendezvous *rendezvous = self->ranks->place.rendezvous;
    for (;;) {
        const cudaError_t error = cudaStreamQuery(self->stream);
        if (error != cudaErrorNotReady)
            return gpu_did(self, error, "a step");
        if (self->ranks->deadline_ms != 0 && clock_now_ms() >= self->ranks->deadline_ms)
            rendezvous_abort(rendezvous, "rank %u: the GPU is late", self->rank);
        if (rendezvous_aborted(rendezvous))
            return told(self, rendezvous_status(rendezvous));
        (void)nanosleep(&(struct timespec){.tv_nsec = ASK_US * 1000}, NULL);
    }
}

static bool stage(struct backend *self, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    return bytes == 0 || gpu_did(self, cudaMemcpyAsync(to, from, bytes, kind, self->stream), "staging");
}

static bool unstage(struct backend *self, size_t sent, const void *from)
{
    return stage(self, self->ranks->host_part, from, sent, cudaMemcpyDeviceToHost) && wait_stream(self);
}

static size_t sum(const struct backend *self, const size_t *bytes)
{
    size_t all = 0;
    for (uint32_t rank = 0; rank < self->size; rank++)
        all += bytes[rank];
    return all;
}

/* part may lie in all, where it belongs. */
static bool all_gather(struct backend *self, const void *part, const size_t *bytes, void *all)
{
    struct gpu_ranks *ranks = self->ranks;
    const struct rank_place *place = &ranks->place;
    if (ranks->nccl)
        return told(self, gpu_nccl_ops()->all_gather(ranks->nccl, part, bytes, all, ranks->deadline_ms));
    return unstage(self, bytes[self->rank], part) &&
           told(self, place->ops->all_gather(place->collective, ranks->host_part, bytes, ranks->host_all, ranks->deadline_ms)) &&
           stage(self, all, ranks->host_all, sum(self, bytes), cudaMemcpyHostToDevice);
}

static bool all_to_all(struct backend *self, const void *send, const size_t *send_bytes, void *receive, const size_t *receive_bytes)
{
    struct gpu_ranks *ranks = self->ranks;
    const struct rank_place *place = &ranks->place;
    if (ranks->nccl)
        return told(self, gpu_nccl_ops()->all_to_all(ranks->nccl, send, send_bytes, receive, receive_bytes, ranks->deadline_ms));
    return unstage(self, sum(self, send_bytes), send) &&
           told(self, place->ops->all_to_all(place->collective, ranks->host_part, send_bytes, ranks->host_all, receive_bytes,
                                             ranks->deadline_ms)) &&
           stage(self, receive, ranks->host_all, sum(self, receive_bytes), cudaMemcpyHostToDevice);
}

static bool join(struct backend *self, uint32_t rows, uint32_t outputs, bool accumulate, float *out)
{
    const struct cuda_join job = {.parts = self->ranks->all, .rows = rows, .outputs = outputs, .ranks = self->size, .accumulate = accumulate,
                                  .out = out};
    return gpu_launched(self, cuda_join_rows(&job, self->stream));
}

/* self->ranks->part (rows, slice) of every rank -> out (rows, outputs) on every rank. */
static bool gather(struct backend *self, uint32_t rows, uint32_t outputs, bool accumulate, float *out)
{
    size_t bytes[RENDEZVOUS_RANKS_MAX];
    for (uint32_t rank = 0; rank < self->size; rank++)
        bytes[rank] = (size_t)rows * gpu_slice_count(self, rank, outputs) * sizeof *out;
    return all_gather(self, self->ranks->part, bytes, self->ranks->all) && join(self, rows, outputs, accumulate, out);
}

/* ---- matrices ---- */

bool gpu_ranks_project(struct backend *self, const struct gpu_linear *linear, const struct gpu_phase *phase, bool accumulate, float *out)
{
    return gpu_multiply(self, linear, 0, phase->rows, false, self->ranks->part) && gather(self, phase->rows, linear->whole[0], accumulate, out);
}

bool gpu_ranks_project_home(struct backend *self, const struct gpu_linear *linear, const struct gpu_phase *phase, float *out)
{
    const uint32_t outputs = linear->whole[0];
    size_t send[RENDEZVOUS_RANKS_MAX], receive[RENDEZVOUS_RANKS_MAX];
    for (uint32_t rank = 0; rank < self->size; rank++) {
        send[rank] = (size_t)rows_of(self, phase, rank) * linear->outputs * sizeof *out;
        receive[rank] = (size_t)phase->own_rows * gpu_slice_count(self, rank, outputs) * sizeof *out;
    }
    return gpu_multiply(self, linear, 0, phase->rows, false, self->ranks->part) &&
           all_to_all(self, self->ranks->part, send, self->ranks->all, receive) && join(self, phase->own_rows, outputs, false, out);
}

bool gpu_ranks_gate(struct backend *self, const struct cuda_gate *gate, uint32_t outputs, float *out)
{
    struct cuda_gate job = *gate;
    job.out = self->ranks->part;
    job.into = (struct cuda_rows_int8){0};
    return (job.columns == 0 || gpu_launched(self, cuda_gate_rows(&job, self->stream))) && gather(self, job.rows, outputs, false, out);
}

bool gpu_ranks_gather_attended(struct backend *self, const struct gpu_phase *phase, uint32_t width)
{
    size_t bytes[RENDEZVOUS_RANKS_MAX];
    for (uint32_t rank = 0; rank < self->size; rank++)
        bytes[rank] = (size_t)rows_of(self, phase, rank) * width * sizeof *self->attended;
    return all_gather(self, self->attended + (size_t)phase->own_first * width, bytes, self->attended);
}

/* The slices stand in self->ranks->part; on rank 0 they become self->logits. */
bool gpu_ranks_logits(struct backend *self, uint32_t rows)
{
    const uint32_t vocab = self->model->config.vocab_size;
    size_t send[RENDEZVOUS_RANKS_MAX] = {(size_t)rows * self->head.outputs * sizeof(float)}, receive[RENDEZVOUS_RANKS_MAX] = {0};
    for (uint32_t rank = 0; rank < self->size && self->rank == 0; rank++)
        receive[rank] = (size_t)rows * gpu_slice_count(self, rank, vocab) * sizeof(float);
    return all_to_all(self, self->ranks->part, send, self->ranks->all, receive) &&
           (self->rank > 0 || join(self, rows, vocab, false, self->logits));
}

float *gpu_ranks_part(struct backend *self)
{
    return self->ranks->part;
}

/* ---- the pass ---- */

bool gpu_ranks_wait(struct backend *self)
{
    if (!self->ranks->nccl)
        return wait_stream(self);
    return told(self, gpu_nccl_wait(self->ranks->nccl, self->ranks->deadline_ms));
}

static enum status forward_rank(struct backend *self, const struct backend_batch *batch, const uint32_t *homes, uint64_t deadline_ms,
                                uint32_t *failed_run)
{
    struct gpu_ranks *ranks = self->ranks;
    uint32_t bad = UINT32_MAX;
    if (ranks) {
        ranks->homes = homes;
        ranks->deadline_ms = deadline_ms;
    }
    TRY(gpu_compute(self, batch, &bad));
    if (!ranks)                                              /* a group of one */
        return gpu_verdict(bad, failed_run);
    uint32_t verdict = UINT32_MAX - bad;                     /* the first run is the largest; 0: none */
    TRY(ranks->place.ops->maximum_bits(ranks->place.collective, &verdict, 1, deadline_ms));
    return gpu_verdict(UINT32_MAX - verdict, failed_run);
}

/* ---- life ---- */

/* Columns of what the ranks put together; sliced: of the own part of it. */
static size_t most(const struct backend *self, bool sliced)
{
    const struct model_config *config = &self->model->config;
    size_t most = self->per_layer_model_proj.outputs, whole = (size_t)config->layer_count * config->per_layer_input;
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const struct gpu_layer *layer = &self->layers[i];
        const struct gpu_linear *linears[] = {&layer->in, &layer->late_q, &layer->o, &layer->gate_up, &layer->down, &layer->per_layer_gate,
                                              &layer->per_layer_proj};
        for (size_t n = 0; n < sizeof linears / sizeof *linears; n++) {
            most = linears[n]->outputs > most ? linears[n]->outputs : most;
            whole = linears[n]->whole[0] > whole ? linears[n]->whole[0] : whole;
        }
    }
    return sliced ? most : whole;
}

static enum status alloc_staging(struct backend *self, size_t part, size_t all)
{
    size_t attended = 0;
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const size_t width = (size_t)self->model->config.head_count * self->model->config.attention[type].head_dim;
        attended = width > attended ? width : attended;
    }
    attended *= self->config.rows_max;
    part = part > attended ? part : attended;
    all = all > attended ? all : attended;
    TRY(gpu_alloc_pinned(self, part * sizeof(float), &self->ranks->host_part));
    return gpu_alloc_pinned(self, all * sizeof(float), &self->ranks->host_all);
}

static enum status join_group(struct backend *self, const struct rank_place *place)
{
    const size_t rows = self->config.rows_max, logits = self->logit_rows;
    const size_t head_part = logits * self->head.outputs, head_all = self->rank == 0 ? logits * self->model->config.vocab_size : 0;
    size_t part = rows * most(self, true), all = rows * most(self, false);
    void *memory;
    if (place->rank != self->rank || place->size != self->size)
        return STATUS_FAIL(STATUS_INTERNAL, "a backend made as rank %u of %u joins as rank %u of %u", self->rank, self->size, place->rank,
                           place->size);
    if (place->size == 1)
        return STATUS_OK;
    part = part > head_part ? part : head_part;
    all = all > head_all ? all : head_all;
    self->ranks = calloc(1, sizeof *self->ranks);
    if (!self->ranks)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a rank");
    self->ranks->place = *place;
    TRY(gpu_check(cudaSetDevice(self->device), "choosing the GPU"));
    TRY(gpu_alloc(self, part * sizeof(float), "a batch", &memory));
    self->ranks->part = memory;
    TRY(gpu_alloc(self, all * sizeof(float), "a batch", &memory));
    self->ranks->all = memory;
    TRY(gpu_nccl_create(place->rendezvous, self->stream, place->deadline_ms, &self->ranks->nccl));
    return self->ranks->nccl ? STATUS_OK : alloc_staging(self, part, all);
}

void gpu_ranks_destroy(struct backend *self)
{
    if (!self->ranks)
        return;
    if (self->ranks->nccl)
        gpu_nccl_ops()->destroy(&self->ranks->nccl);
    free(self->ranks);
    self->ranks = NULL;
}

/* ---- the host tier that all ranks share ---- */

static enum status host_memory_use(struct backend *self, void *base, size_t bytes)
{
    TRY(gpu_check(cudaSetDevice(self->device), "choosing the GPU"));
    return gpu_check(cudaHostRegister(base, bytes, cudaHostRegisterPortable), "pinning the host tier: lower kv_host_mebibytes, or raise ulimit -l");
}

static void host_memory_forget(struct backend *self, void *base)
{
    (void)cudaSetDevice(self->device);
    (void)cudaHostUnregister(base);
}

const struct rank_ops rank_cuda_ops = {.ops = &backend_cuda_ops, .join = join_group, .forward_rank = forward_rank,
                                       .host_memory_use = host_memory_use, .host_memory_forget = host_memory_forget};
