/* job_queue.h - requests of one engine that wait, best first: higher priority, then earlier arrival.
 * Owns the jobs in it. Bounded: capacity is fixed at start. Searching is linear; the bound keeps it cheap beside a step.
 * Called only by the engine thread. */
#ifndef ROOST_WORKER_ENGINE_JOB_QUEUE_H
#define ROOST_WORKER_ENGINE_JOB_QUEUE_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/kv_cache.h"
#include "worker/engine/sampler.h"

struct job {                         /* one accepted request */
    uint64_t id;                     /* engine_request.job */
    uint64_t arrival;                /* counts up; set by the queue */
    int32_t priority;
    uint64_t deadline_ms;            /* 0: none */
    uint64_t submitted_us;
    bool cancelled;
    uint8_t root[KV_CACHE_ROOT_BYTES];
    struct sampler sampler;
    uint32_t *prompt_ids;            /* (prompt_count), owned */
    uint32_t prompt_count;
    uint32_t reply_max;              /* at least 1 */
};

struct job_queue {
    struct job **jobs;               /* (capacity), the first count are in arrival order */
    uint32_t count, capacity;
    uint64_t arrivals;
    uint64_t prompt_tokens;          /* of all waiting jobs */
};

enum status job_queue_create(struct job_queue *queue, uint32_t capacity);
void job_queue_destroy(struct job_queue *queue);     /* accepts a zeroed one; frees the jobs */

bool job_queue_full(const struct job_queue *queue);
void job_queue_add(struct job_queue *queue, struct job **job);        /* not when full; takes *job */
struct job *job_queue_find(const struct job_queue *queue, uint64_t id);   /* ref, or NULL */
struct job *job_queue_take_best(struct job_queue *queue);             /* the caller owns it; NULL when empty */
struct job *job_queue_take_ended(struct job_queue *queue, uint64_t now_ms);   /* one that is cancelled or late, or NULL */

bool job_is_late(const struct job *job, uint64_t now_ms);
void job_destroy(struct job **job);                  /* accepts NULL */

#endif
