/* thread_pool.h - threads that work through an index range together with the caller (fork and join).
 *
 *     thread_pool_run(pool, count, work, &job);    // work(&job, index, thread) once for each index below count, in any order
 *
 * Owned and called by one thread. Nothing is allocated by a run, and a run does not wait for threads that came too late to take part.
 * The pool's own threads have the float environment of docs/numerics.md and block every signal. */
#ifndef ROOST_WORKER_ENGINE_THREAD_POOL_H
#define ROOST_WORKER_ENGINE_THREAD_POOL_H
#include <stdint.h>
#include "common/status.h"

struct thread_pool;                /* opaque */

/* thread: 0 is the caller, the others count up; two calls at one time never have the same, so it may index scratch memory. */
typedef void thread_pool_fn(void *context, uint32_t index, uint32_t thread);

/* threads counts the caller: 1 starts none. */
enum status thread_pool_create(uint32_t threads, struct thread_pool **out);
void thread_pool_destroy(struct thread_pool **pool);   /* accepts NULL; the threads are joined */

void thread_pool_run(struct thread_pool *pool, uint32_t count, thread_pool_fn *work, void *context);

#endif
