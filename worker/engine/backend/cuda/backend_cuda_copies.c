/* backend_cuda_copies.c - pages between the tiers, on a stream of their own, beside the compute (docs/decisions/0006-cuda-backend.md).
 *
 * A page goes to the host whole. The pages of a sequence that comes back are a load: layer by layer, all pages' part of a layer by one kernel
 * that reads the pinned memory, an event behind each. A step that may not wait for the whole waits for each layer's event before it first touches
 * that layer's keys and values; one event on the stream of copies says that everything started before it has landed, too. One load is under way at a
 * time. */
#include <assert.h>
#include <stdlib.h>
#include "worker/engine/backend/cuda/backend_cuda_internal.h"

/* ---- life ---- */

static enum status make_event(cudaEvent_t *out)
{
    return gpu_check(cudaEventCreateWithFlags(out, cudaEventDisableTiming), "making events");
}

enum status gpu_copies_create(struct backend *self)
{
    const struct model_config *config = &self->model->config;
    struct gpu_copies *copies = &self->copies;
    struct gpu_load *load = &copies->load;
    void *memory;
    TRY(gpu_check(cudaStreamCreateWithFlags(&copies->stream, cudaStreamNonBlocking), "making a stream"));
    for (uint32_t i = 0; i < GPU_COPY_EVENTS; i++)
        TRY(make_event(&copies->ended[i]));
    load->landed = calloc(config->layer_count, sizeof *load->landed);
    if (!load->landed)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    for (uint32_t i = 0; i < config->layer_count; i++)
        if (config->kv_producer[i] == i)
            TRY(make_event(&load->landed[i]));
    load->capacity = MODEL_LAYER_TYPES * (config->context_tokens_max / BACKEND_PAGE_TOKENS + 2);
    TRY(gpu_alloc(self, load->capacity * sizeof *load->table, "the tables of copies", &memory));
    load->table = memory;
    TRY(gpu_alloc_pinned(self, load->capacity * sizeof *load->host_table, &memory));
    load->host_table = memory;
    return STATUS_OK;
}

void gpu_copies_finish(struct backend *self)
{
    if (self->copies.stream)
        (void)cudaStreamSynchronize(self->copies.stream);
}

void gpu_copies_destroy(struct backend *self)
{
    struct gpu_copies *copies = &self->copies;
    for (uint32_t i = 0; i < GPU_COPY_EVENTS; i++)
        if (copies->ended[i])
            (void)cudaEventDestroy(copies->ended[i]);
    for (uint32_t i = 0; copies->load.landed && i < self->model->config.layer_count; i++)
        if (copies->load.landed[i])
            (void)cudaEventDestroy(copies->load.landed[i]);
    free(copies->load.landed);
    if (copies->stream)
        (void)cudaStreamDestroy(copies->stream);
}

/* ---- whole pages ---- */

void gpu_copy_prefix(struct backend *self, uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    if (self->lost || !gpu_did(self, cudaSetDevice(self->device), "choosing the GPU"))
        return;
    if (gpu_launched(self, cuda_page_copy_prefix(&self->groups[group].layout, dst, src, tokens, self->copies.stream)))
        (void)gpu_did(self, cudaStreamSynchronize(self->copies.stream), "copying the beginning of a page");
}

/* What a ticket is the end of. */
static void put_end(struct backend *self, uint64_t ticket)
{
    (void)gpu_did(self, cudaEventRecord(self->copies.ended[ticket % GPU_COPY_EVENTS], self->copies.stream), "copying a page");
}

uint64_t gpu_copy_start(struct backend *self, void *dst, const void *src, size_t bytes)
{
    const uint64_t ticket = ++self->copies.started;
    if (!self->lost && gpu_did(self, cudaSetDevice(self->device), "choosing the GPU") &&
        gpu_did(self, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, self->copies.stream), "copying a page"))
        put_end(self, ticket);
    return ticket;
}

void gpu_copy_wait(struct backend *self, uint64_t ticket)
{
    struct gpu_copies *copies = &self->copies;
    if (copies->finished >= ticket)
        return;
    if (!self->lost)
        (void)gpu_did(self, cudaEventSynchronize(copies->ended[ticket % GPU_COPY_EVENTS]), "copying a page");
    copies->finished = ticket;
}

bool gpu_copy_done(struct backend *self, uint64_t ticket)
{
    struct gpu_copies *copies = &self->copies;
    while (copies->finished < ticket) {
        const uint64_t next = copies->finished + 1;
        const cudaError_t error = self->lost ? cudaSuccess : cudaEventQuery(copies->ended[next % GPU_COPY_EVENTS]);
        if (error == cudaErrorNotReady)
            return false;
        (void)gpu_did(self, error, "copying a page");
        copies->finished = next;
    }
    return true;
}

/* ---- loads ---- */

static bool put_load(struct backend *self, const struct backend_page_copy *copies, uint32_t count)
{
    const struct model_config *config = &self->model->config;
    const struct gpu_load *load = &self->copies.load;
    cudaStream_t stream = self->copies.stream;
    uint32_t first[MODEL_LAYER_TYPES + 1] = {0}, used = 0;   /* a group's places in the table */
    for (uint32_t group = 0; group < MODEL_LAYER_TYPES; group++) {
        for (uint32_t i = 0; i < count; i++)
            if (copies[i].group == group)
                load->host_table[used++] = (struct cuda_page_copy){copies[i].dst, copies[i].src, copies[i].tokens};
        first[group + 1] = used;
    }
    if (!gpu_did(self, cudaMemcpyAsync(load->table, load->host_table, count * sizeof *load->table, cudaMemcpyHostToDevice, stream),
                 "copying the tables of copies"))
        return false;
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const uint32_t group = config->layer_types[i], pages = first[group + 1] - first[group];
        if (config->kv_producer[i] == i &&
            (!gpu_launched(self, cuda_page_load_slot(&self->groups[group].layout, config->producer_slot[i], load->table + first[group], pages, stream)) ||
             !gpu_did(self, cudaEventRecord(load->landed[i], stream), "copying pages")))
            return false;
    }
    return true;
}

uint64_t gpu_load_start(struct backend *self, const struct backend_page_copy *copies, uint32_t count)
{
    struct gpu_load *load = &self->copies.load;
    assert(count <= load->capacity);
    if (load->ticket > 0)                      /* its table and events are free then */
        gpu_copy_wait(self, load->ticket);
    load->ticket = ++self->copies.started;
    if (!self->lost && gpu_did(self, cudaSetDevice(self->device), "choosing the GPU") && put_load(self, copies, count))
        put_end(self, load->ticket);
    return load->ticket;
}

/* ---- steps behind them ---- */

bool gpu_load_lacks(struct backend *self, const struct backend_batch *batch)
{
    uint64_t after = 0;
    for (uint32_t i = 0; i < batch->run_count; i++)
        after = batch->runs[i].after > after ? batch->runs[i].after : after;
    assert(after <= self->copies.load.ticket);               /* an older one has landed */
    return after > 0 && !gpu_copy_done(self, after);
}

bool gpu_load_wait(struct backend *self, uint32_t index)
{
    return !self->step.follows || gpu_did(self, cudaStreamWaitEvent(self->stream, self->copies.load.landed[index], 0), "waiting for pages");
}
