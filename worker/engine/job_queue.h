/* job_queue.h - requests of one engine that wait. Two heaps over the same jobs: by rank (higher priority, then earlier arrival) and by
 * deadline (a cancelled job's has passed), so that a step looks at a few jobs, not at all that wait.
 * Owns the jobs in it. Bounded: capacity is fixed at start. Called only by the engine thread. */
#ifndef ROOST_WORKER_ENGINE_JOB_QUEUE_H
#define ROOST_WORKER_ENGINE_JOB_QUEUE_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

struct job;                          /* worker/engine/job.h */

struct job_queue {
    struct job **by_rank;            /* (capacity) binary heap */
    struct job **by_deadline;        /* (capacity) binary heap */
    uint32_t count, capacity;
    uint64_t prompt_tokens;          /* of all waiting jobs */
};

enum status job_queue_create(struct job_queue *queue, uint32_t capacity);
void job_queue_destroy(struct job_queue *queue);     /* accepts a zeroed one; frees the jobs */

bool job_queue_full(const struct job_queue *queue);
void job_queue_add(struct job_queue *queue, struct job **job);        /* not when full; takes *job */
struct job *job_queue_take(struct job_queue *queue, struct job *job); /* the caller owns it */
void job_queue_cancel(struct job_queue *queue, struct job *job);      /* take_ended gives it next */
struct job *job_queue_take_ended(struct job_queue *queue, uint64_t now_ms);   /* one that is cancelled or late, or NULL */

/* The first `capacity` by rank, in order; returns how many there are. */
uint32_t job_queue_first(const struct job_queue *queue, struct job **jobs, uint32_t capacity);

#define JOB_QUEUE_FIRST_MAX 64u      /* of job_queue_first's capacity */

#endif
