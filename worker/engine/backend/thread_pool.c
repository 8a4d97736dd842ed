#include "worker/engine/backend/thread_pool.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kernels/kernels.h"

/* How long a thread looks before it sleeps: the length of a small operation, so that the many short runs of a decode step do not each pay
 * for a wake-up. By the clock: a pause takes 10 to 50 ns, by the processor. */
#define SPIN_NS 20000u

struct member {                    /* one thread of the pool */
    struct thread_pool *pool;      /* ref */
    pthread_t thread;
    uint32_t number;               /* 1 .. */
};

struct thread_pool {
    pthread_mutex_t lock;          /* of open, stopping, work, context, count */
    pthread_cond_t begun, left;
    thread_pool_fn *work;
    void *context;
    uint32_t count;
    bool open;                     /* a run takes members in */
    bool stopping;
    atomic_uint generation;        /* counts the runs */
    atomic_uint next;              /* index to take */
    atomic_uint inside;            /* members at work */
    uint32_t member_count;
    struct member members[];       /* owned */
};

static uint64_t now_ns(void)
{
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* False: it is time to sleep. */
static bool spin(uint64_t until)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    return now_ns() < until;
}

static void take_indices(struct thread_pool *pool, thread_pool_fn *work, void *context, uint32_t count, uint32_t thread)
{
    for (uint32_t index; (index = atomic_fetch_add(&pool->next, 1)) < count;)
        work(context, index, thread);
}

static void *member_main(void *argument)
{
    struct member *member = argument;
    struct thread_pool *pool = member->pool;
    unsigned seen = 0;
    fenv_t saved;
    kernels_float_enter(&saved);
    for (;;) {
        for (const uint64_t until = now_ns() + SPIN_NS; atomic_load(&pool->generation) == seen && spin(until);)
            ;
        pthread_mutex_lock(&pool->lock);
        while (!pool->stopping && atomic_load(&pool->generation) == seen)
            pthread_cond_wait(&pool->begun, &pool->lock);
        seen = atomic_load(&pool->generation);
        const bool stop = pool->stopping, open = pool->open;
        thread_pool_fn *const work = pool->work;
        void *const context = pool->context;
        const uint32_t count = pool->count;
        if (open)
            atomic_fetch_add(&pool->inside, 1);
        pthread_mutex_unlock(&pool->lock);
        if (stop)
            return NULL;
        if (!open)
            continue;
        take_indices(pool, work, context, count, member->number);
        if (atomic_fetch_sub(&pool->inside, 1) == 1) {
            pthread_mutex_lock(&pool->lock);       /* so that the caller is either before its check or asleep */
            pthread_cond_signal(&pool->left);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

enum status thread_pool_create(uint32_t threads, struct thread_pool **out)
{
    struct thread_pool *pool = calloc(1, sizeof *pool + (threads - 1) * sizeof *pool->members);
    if (!pool)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u threads", threads);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->begun, NULL);
    pthread_cond_init(&pool->left, NULL);
    sigset_t every, before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);     /* inherited: signals go to the process's own threads */
    int error = 0;
    while (error == 0 && pool->member_count + 1 < threads) {
        struct member *member = &pool->members[pool->member_count];
        *member = (struct member){.pool = pool, .number = pool->member_count + 1};
        error = pthread_create(&member->thread, NULL, member_main, member);
        pool->member_count += error == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        thread_pool_destroy(&pool);
        return STATUS_FAIL(STATUS_IO, "cannot start %u threads: %s", threads, strerror(error));
    }
    *out = pool;
    return STATUS_OK;
}

void thread_pool_destroy(struct thread_pool **pool)
{
    struct thread_pool *self = *pool;
    if (!self)
        return;
    pthread_mutex_lock(&self->lock);
    self->stopping = true;
    pthread_cond_broadcast(&self->begun);
    pthread_mutex_unlock(&self->lock);
    for (uint32_t i = 0; i < self->member_count; i++)
        pthread_join(self->members[i].thread, NULL);
    pthread_cond_destroy(&self->left);
    pthread_cond_destroy(&self->begun);
    pthread_mutex_destroy(&self->lock);
    free(self);
    *pool = NULL;
}

void thread_pool_run(struct thread_pool *pool, uint32_t count, thread_pool_fn *work, void *context)
{
    if (pool->member_count == 0 || count < 2) {
        for (uint32_t i = 0; i < count; i++)
            work(context, i, 0);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->work = work;
    pool->context = context;
    pool->count = count;
    pool->open = true;
    atomic_store(&pool->next, 0);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->begun);
    pthread_mutex_unlock(&pool->lock);

    take_indices(pool, work, context, count, 0);

    pthread_mutex_lock(&pool->lock);
    pool->open = false;                                /* who comes now finds nothing left */
    pthread_mutex_unlock(&pool->lock);
    for (const uint64_t until = now_ns() + SPIN_NS; atomic_load(&pool->inside) != 0 && spin(until);)
        ;
    if (atomic_load(&pool->inside) == 0)
        return;
    pthread_mutex_lock(&pool->lock);
    while (atomic_load(&pool->inside) != 0)
        pthread_cond_wait(&pool->left, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}
