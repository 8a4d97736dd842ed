/* host_memory.h - what backends in the host's memory share: arenas for pages, and one thread that copies between them.
 * A copy queue is owned and called by one thread (the engine's); its own thread only copies. Copies end in the order they started. */
#ifndef ROOST_WORKER_ENGINE_HOST_MEMORY_H
#define ROOST_WORKER_ENGINE_HOST_MEMORY_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

/* Zeroed memory, page-aligned; physical pages are taken when first touched. */
enum status host_arena_create(size_t bytes, void **base);
void host_arena_destroy(void **base);                      /* accepts NULL; sets *base to NULL */

struct copy_queue;                                         /* opaque */
enum status copy_queue_create(struct copy_queue **out);
void copy_queue_destroy(struct copy_queue **queue);        /* accepts NULL; copies under way are finished first */
/* The ticket; they count up from 1. Waits for room only when COPY_QUEUE_DEPTH copies are under way. */
uint64_t copy_queue_start(struct copy_queue *queue, void *dst, const void *src, size_t bytes);
bool copy_queue_done(const struct copy_queue *queue, uint64_t ticket);    /* never blocks */
void copy_queue_wait(struct copy_queue *queue, uint64_t ticket);

#define COPY_QUEUE_DEPTH 1024u

#endif
