#include "worker/engine/job_queue.h"
#include <assert.h>
#include <stdlib.h>
#include "worker/engine/job.h"

/* One of the two heaps: who comes first, and where a job keeps its place. */
struct heap {
    struct job **jobs;
    uint32_t count;
    bool (*before)(const struct job *a, const struct job *b);
    uint32_t *(*place)(struct job *job);
};

static bool ranks_before(const struct job *a, const struct job *b)
{
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
}

static uint32_t *rank_place(struct job *job)
{
    return &job->rank_place;
}

static uint64_t ends_at(const struct job *job)
{
    return job->cancelled ? 0 : job->deadline_ms;
}

static bool ends_before(const struct job *a, const struct job *b)
{
    return ends_at(a) != ends_at(b) ? ends_at(a) < ends_at(b) : a->arrival < b->arrival;
}

static uint32_t *deadline_place(struct job *job)
{
    return &job->deadline_place;
}

static struct heap rank_heap(const struct job_queue *queue)
{
    return (struct heap){queue->by_rank, queue->count, ranks_before, rank_place};
}

static struct heap deadline_heap(const struct job_queue *queue)
{
    return (struct heap){queue->by_deadline, queue->count, ends_before, deadline_place};
}

static void put(const struct heap *heap, uint32_t place, struct job *job)
{
    heap->jobs[place] = job;
    *heap->place(job) = place;
}

static void sift_up(const struct heap *heap, uint32_t place, struct job *job)
{
    for (; place > 0 && heap->before(job, heap->jobs[(place - 1) / 2]); place = (place - 1) / 2)
        put(heap, place, heap->jobs[(place - 1) / 2]);
    put(heap, place, job);
}

static void sift_down(const struct heap *heap, uint32_t place, struct job *job)
{
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child + 1 < heap->count && heap->before(heap->jobs[child + 1], heap->jobs[child]))
            child++;
        if (child >= heap->count || !heap->before(heap->jobs[child], job))
            break;
        put(heap, place, heap->jobs[child]);
        place = child;
    }
    put(heap, place, job);
}

/* heap->count counts what is left. */
static void remove_at(const struct heap *heap, uint32_t place)
{
    struct job *last = heap->jobs[heap->count];
    if (place == heap->count)
        return;
    if (place > 0 && heap->before(last, heap->jobs[(place - 1) / 2]))
        sift_up(heap, place, last);
    else
        sift_down(heap, place, last);
}

enum status job_queue_create(struct job_queue *queue, uint32_t capacity)
{
    *queue = (struct job_queue){.capacity = capacity};
    queue->by_rank = calloc(capacity, sizeof *queue->by_rank);
    queue->by_deadline = calloc(capacity, sizeof *queue->by_deadline);
    if (queue->by_rank != NULL && queue->by_deadline != NULL)
        return STATUS_OK;
    job_queue_destroy(queue);
    return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a queue of %u requests", capacity);
}

void job_queue_destroy(struct job_queue *queue)
{
    for (uint32_t i = 0; i < queue->count; i++)
        job_destroy(&queue->by_rank[i]);
    free(queue->by_rank);
    free(queue->by_deadline);
    *queue = (struct job_queue){0};
}

bool job_queue_full(const struct job_queue *queue)
{
    return queue->count == queue->capacity;
}

void job_queue_add(struct job_queue *queue, struct job **job)
{
    assert(!job_queue_full(queue));
    const struct heap rank = rank_heap(queue), deadline = deadline_heap(queue);
    queue->prompt_tokens += (*job)->prompt.count;
    sift_up(&rank, queue->count, *job);
    sift_up(&deadline, queue->count, *job);
    queue->count++;
    *job = NULL;
}

struct job *job_queue_take(struct job_queue *queue, struct job *job)
{
    queue->count--;
    const struct heap rank = rank_heap(queue), deadline = deadline_heap(queue);
    remove_at(&rank, job->rank_place);
    remove_at(&deadline, job->deadline_place);
    queue->prompt_tokens -= job->prompt.count;
    job->rank_place = job->deadline_place = JOB_NOT_QUEUED;
    return job;
}

void job_queue_cancel(struct job_queue *queue, struct job *job)
{
    const struct heap deadline = deadline_heap(queue);
    job->cancelled = true;
    sift_up(&deadline, job->deadline_place, job);
}

struct job *job_queue_take_ended(struct job_queue *queue, uint64_t now_ms)
{
    if (queue->count == 0 || ends_at(queue->by_deadline[0]) > now_ms)
        return NULL;
    return job_queue_take(queue, queue->by_deadline[0]);
}

/* Walks the heap from its top: the next by rank is always a child of one that was taken. */
uint32_t job_queue_first(const struct job_queue *queue, struct job **jobs, uint32_t capacity)
{
    uint32_t open[JOB_QUEUE_FIRST_MAX + 1] = {0}, open_count = queue->count > 0, count = 0;
    assert(capacity <= JOB_QUEUE_FIRST_MAX);
    while (count < capacity && open_count > 0) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < open_count; i++)
            if (ranks_before(queue->by_rank[open[i]], queue->by_rank[open[best]]))
                best = i;
        const uint32_t place = open[best];
        jobs[count++] = queue->by_rank[place];
        open[best] = open[--open_count];
        for (uint32_t child = 2 * place + 1; child <= 2 * place + 2 && child < queue->count; child++)
            open[open_count++] = child;
    }
    return count;
}
