#include "worker/engine/job_queue.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum status job_queue_create(struct job_queue *queue, uint32_t capacity)
{
    *queue = (struct job_queue){.capacity = capacity};
    queue->jobs = calloc(capacity, sizeof *queue->jobs);
    if (queue->jobs == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a queue of %u requests", capacity);
    return STATUS_OK;
}

void job_queue_destroy(struct job_queue *queue)
{
    for (uint32_t i = 0; i < queue->count; i++)
        job_destroy(&queue->jobs[i]);
    free(queue->jobs);
    *queue = (struct job_queue){0};
}

bool job_queue_full(const struct job_queue *queue)
{
    return queue->count == queue->capacity;
}

void job_queue_add(struct job_queue *queue, struct job **job)
{
    assert(!job_queue_full(queue));
    (*job)->arrival = queue->arrivals++;
    queue->prompt_tokens += (*job)->prompt_count;
    queue->jobs[queue->count++] = *job;
    *job = NULL;
}

struct job *job_queue_find(const struct job_queue *queue, uint64_t id)
{
    for (uint32_t i = 0; i < queue->count; i++)
        if (queue->jobs[i]->id == id)
            return queue->jobs[i];
    return NULL;
}

static struct job *take(struct job_queue *queue, uint32_t index)
{
    struct job *job = queue->jobs[index];
    queue->count--;
    memmove(queue->jobs + index, queue->jobs + index + 1, (queue->count - index) * sizeof *queue->jobs);
    queue->prompt_tokens -= job->prompt_count;
    return job;
}

struct job *job_queue_take_best(struct job_queue *queue)
{
    uint32_t best = 0;
    if (queue->count == 0)
        return NULL;
    for (uint32_t i = 1; i < queue->count; i++) /* arrival order: the first of a priority came first */
        if (queue->jobs[i]->priority > queue->jobs[best]->priority)
            best = i;
    return take(queue, best);
}

bool job_is_late(const struct job *job, uint64_t now_ms)
{
    return job->deadline_ms != 0 && now_ms >= job->deadline_ms;
}

struct job *job_queue_take_ended(struct job_queue *queue, uint64_t now_ms)
{
    for (uint32_t i = 0; i < queue->count; i++)
        if (queue->jobs[i]->cancelled || job_is_late(queue->jobs[i], now_ms))
            return take(queue, i);
    return NULL;
}

void job_destroy(struct job **job)
{
    if (*job == NULL)
        return;
    free((*job)->prompt_ids);
    free(*job);
    *job = NULL;
}
