/* backend_cuda_memory.c - memory of the device and pinned memory, errors as words. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include "worker/engine/backend/cuda/backend_cuda_internal.h"

#define MEBIBYTE ((size_t)1 << 20)

enum status gpu_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return STATUS_OK;
    (void)cudaGetLastError();                 /* unless the context is lost, the next call starts clean */
    return STATUS_FAIL(STATUS_IO, "CUDA: %s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

enum status gpu_no_memory(size_t bytes, const char *what)
{
    size_t left = 0, all = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&left, &all);
    return STATUS_FAIL(STATUS_NO_MEMORY, "%s: %zu MiB wanted, and the GPU has %zu of %zu MiB left: lower kv_mebibytes or batch_tokens, or take a "
                       "larger GPU", what, (bytes + MEBIBYTE - 1) / MEBIBYTE, left / MEBIBYTE, all / MEBIBYTE);
}

enum status gpu_no_pinned_memory(size_t bytes, const char *what)
{
    (void)cudaGetLastError();
    return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no %zu MiB of the host's memory can be pinned: lower kv_host_mebibytes or batch_tokens, or give this "
                       "machine more memory", what, (bytes + MEBIBYTE - 1) / MEBIBYTE);
}

static enum status keep(struct backend *self, void *pointer, bool pinned)
{
    struct gpu_memory *memory = malloc(sizeof *memory);
    if (!memory) {
        (void)(pinned ? cudaFreeHost(pointer) : cudaFree(pointer));
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a backend");
    }
    *memory = (struct gpu_memory){.next = self->memory, .pointer = pointer, .pinned = pinned};
    self->memory = memory;
    return STATUS_OK;
}

enum status gpu_clear(struct backend *self, void *memory, size_t bytes, const char *what)
{
    TRY(gpu_check(cudaMemsetAsync(memory, 0, bytes, self->stream), what));
    return gpu_check(cudaStreamSynchronize(self->stream), what);
}

enum status gpu_alloc(struct backend *self, size_t bytes, const char *what, void **out)
{
    void *pointer = NULL;
    const size_t size = bytes ? bytes : 1;
    const cudaError_t error = cudaMalloc(&pointer, size);
    if (error == cudaErrorMemoryAllocation)
        return gpu_no_memory(size, what);
    TRY(gpu_check(error, what));
    TRY(keep(self, pointer, false));
    *out = pointer;
    return gpu_clear(self, pointer, size, what);
}

enum status gpu_alloc_pinned(struct backend *self, size_t bytes, void **out)
{
    void *pointer = NULL;
    if (cudaMallocHost(&pointer, bytes ? bytes : 1) != cudaSuccess)
        return gpu_no_pinned_memory(bytes, "a batch");
    TRY(keep(self, pointer, true));
    *out = pointer;
    return STATUS_OK;
}

enum status gpu_upload_floats(struct backend *self, const float *from, size_t count, const float **out)
{
    void *pointer;
    *out = NULL;
    if (!from)
        return STATUS_OK;
    TRY(gpu_alloc(self, count * sizeof *from, "the weights", &pointer));
    *out = pointer;
    return gpu_check(cudaMemcpy(pointer, from, count * sizeof *from, cudaMemcpyHostToDevice), "copying weights");
}

void gpu_free_all(struct backend *self)
{
    while (self->memory) {
        struct gpu_memory *memory = self->memory;
        self->memory = memory->next;
        (void)(memory->pinned ? cudaFreeHost(memory->pointer) : cudaFree(memory->pointer));
        free(memory);
    }
}

bool gpu_lose(struct backend *self, const char *why)
{
    if (atomic_exchange(&self->losing, true)) {
        while (!self->lost)                   /* the other thread (copies) is writing why */
            (void)sched_yield();
        return false;
    }
    snprintf(self->why, sizeof self->why, "the GPU is lost: %s", why);
    self->lost = true;
    return false;
}

bool gpu_did(struct backend *self, cudaError_t error, const char *what)
{
    char why[192];
    if (error == cudaSuccess)
        return true;
    snprintf(why, sizeof why, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
    return gpu_lose(self, why);
}

bool gpu_launched(struct backend *self, bool accepted)
{
    return accepted || gpu_lose(self, cuda_launch_error());
}
