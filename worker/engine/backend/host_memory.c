#include "worker/engine/backend/host_memory.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA_HEAD 4096u           /* in front of the base; remembers the size */

struct copy {
    void *dst;
    const void *src;
    size_t bytes;
};

struct copy_queue {
    pthread_mutex_t lock;          /* of started, stopping; finished changes under it, too */
    pthread_cond_t begun, ended;
    pthread_t thread;
    uint64_t started;              /* tickets given out */
    atomic_ullong finished;        /* tickets done, all of them up to here */
    bool stopping;
    struct copy ring[COPY_QUEUE_DEPTH];   /* ticket t in ring[t % COPY_QUEUE_DEPTH] */
};

enum status host_arena_create(size_t bytes, void **base)
{
    size_t whole;
    if (__builtin_add_overflow(bytes, ARENA_HEAD, &whole))
        return STATUS_FAIL(STATUS_LIMIT, "an arena of %zu bytes", bytes);
    char *map = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for an arena of %zu bytes: %s", bytes, strerror(errno));
    memcpy(map, &whole, sizeof whole);
    *base = map + ARENA_HEAD;
    return STATUS_OK;
}

void host_arena_destroy(void **base)
{
    if (!*base)
        return;
    char *map = (char *)*base - ARENA_HEAD;
    size_t whole;
    memcpy(&whole, map, sizeof whole);
    (void)munmap(map, whole);
    *base = NULL;
}

static void *copy_main(void *argument)
{
    struct copy_queue *queue = argument;
    pthread_mutex_lock(&queue->lock);
    for (;;) {
        const uint64_t ticket = atomic_load(&queue->finished) + 1;
        while (ticket > queue->started && !queue->stopping)
            pthread_cond_wait(&queue->begun, &queue->lock);
        if (ticket > queue->started)
            break;
        const struct copy copy = queue->ring[ticket % COPY_QUEUE_DEPTH];
        pthread_mutex_unlock(&queue->lock);
        memcpy(copy.dst, copy.src, copy.bytes);
        pthread_mutex_lock(&queue->lock);
        atomic_store(&queue->finished, ticket);
        pthread_cond_signal(&queue->ended);
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

enum status copy_queue_create(struct copy_queue **out)
{
    struct copy_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a copy queue");
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->begun, NULL);
    pthread_cond_init(&queue->ended, NULL);
    sigset_t every, before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    const int error = pthread_create(&queue->thread, NULL, copy_main, queue);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        free(queue);
        return STATUS_FAIL(STATUS_IO, "cannot start the copy thread: %s", strerror(error));
    }
    *out = queue;
    return STATUS_OK;
}

void copy_queue_destroy(struct copy_queue **queue)
{
    struct copy_queue *self = *queue;
    if (!self)
        return;
    pthread_mutex_lock(&self->lock);
    self->stopping = true;
    pthread_cond_signal(&self->begun);
    pthread_mutex_unlock(&self->lock);
    pthread_join(self->thread, NULL);
    pthread_cond_destroy(&self->ended);
    pthread_cond_destroy(&self->begun);
    pthread_mutex_destroy(&self->lock);
    free(self);
    *queue = NULL;
}

uint64_t copy_queue_start(struct copy_queue *queue, void *dst, const void *src, size_t bytes)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->started - atomic_load(&queue->finished) == COPY_QUEUE_DEPTH)
        pthread_cond_wait(&queue->ended, &queue->lock);
    const uint64_t ticket = ++queue->started;
    queue->ring[ticket % COPY_QUEUE_DEPTH] = (struct copy){dst, src, bytes};
    pthread_cond_signal(&queue->begun);
    pthread_mutex_unlock(&queue->lock);
    return ticket;
}

bool copy_queue_done(const struct copy_queue *queue, uint64_t ticket)
{
    return atomic_load(&queue->finished) >= ticket;
}

void copy_queue_wait(struct copy_queue *queue, uint64_t ticket)
{
    pthread_mutex_lock(&queue->lock);
    while (atomic_load(&queue->finished) < ticket)
        pthread_cond_wait(&queue->ended, &queue->lock);
    pthread_mutex_unlock(&queue->lock);
}
