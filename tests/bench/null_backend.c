#include "tests/bench/null_backend.h"
#include <sys/mman.h>

static enum status arena_create(struct backend *backend, enum backend_tier tier, size_t bytes, void **base)
{
    (void)backend;
    (void)tier;
    *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return *base != MAP_FAILED ? STATUS_OK : STATUS_FAIL(STATUS_NO_MEMORY, "no address space for %zu bytes", bytes);
}

static void arena_destroy(struct backend *backend, enum backend_tier tier, void **base)
{
    (void)backend;
    (void)tier;
    *base = NULL; /* the program ends */
}

static void page_copy_prefix(struct backend *backend, uint32_t group, void *dst, const void *src, uint32_t count)
{
    (void)backend;
    (void)group;
    (void)dst;
    (void)src;
    (void)count;
}

static uint64_t copy_start(struct backend *backend, void *dst, const void *src, size_t bytes)
{
    (void)backend;
    (void)dst;
    (void)src;
    (void)bytes;
    return 1;
}

static bool copy_done(struct backend *backend, uint64_t ticket)
{
    (void)backend;
    (void)ticket;
    return true;
}

static void copy_wait(struct backend *backend, uint64_t ticket)
{
    (void)backend;
    (void)ticket;
}

const struct backend_ops null_backend_ops = {.name = "nothing",
                                             .bits = "nothing",
                                             .page_copy_prefix = page_copy_prefix,
                                             .arena_create = arena_create,
                                             .arena_destroy = arena_destroy,
                                             .copy_start = copy_start,
                                             .copy_done = copy_done,
                                             .copy_wait = copy_wait};
