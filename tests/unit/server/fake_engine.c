/* fake_engine.c - see the header. Test thread and engine thread share the controls under one mutex. */
#include "fake_engine.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "common/clock.h"

struct job {
    struct job *next;
    uint64_t id, deadline_ms;
    uint32_t prompt_tokens, tokens_max, made;
    bool cancelled, running;
};

struct engine {
    struct engine_config config;
    struct engine_info info;
    struct job *jobs; /* the first one runs */
    struct engine_progress progress;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct {
    int permits;
    bool may_load, stuck;
    enum status load, fail_next;
    size_t text_bytes;
    unsigned cancels;
    struct engine_request last;
} control;

static void lock(void)
{
    pthread_mutex_lock(&mutex);
}

static void unlock(void)
{
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

void fake_engine_reset(void)
{
    lock();
    memset(&control, 0, sizeof control);
    control.permits = FAKE_PERMITS_ALL;
    control.may_load = true;
    unlock();
}

void fake_engine_permit(int tokens)
{
    lock();
    control.permits = tokens < 0 ? tokens : (control.permits < 0 ? 0 : control.permits) + tokens;
    unlock();
}

void fake_engine_hold(void)
{
    lock();
    control.permits = 0;
    unlock();
}

void fake_engine_load(bool may_finish, enum status st)
{
    lock();
    control.may_load = may_finish;
    control.load = st;
    unlock();
}

void fake_engine_text_bytes(size_t bytes)
{
    lock();
    control.text_bytes = bytes;
    unlock();
}

void fake_engine_fail_next(enum status st)
{
    lock();
    control.fail_next = st;
    unlock();
}

void fake_engine_stuck(bool stuck)
{
    lock();
    control.stuck = stuck;
    unlock();
}

unsigned fake_engine_cancels(void)
{
    lock();
    unsigned cancels = control.cancels;
    unlock();
    return cancels;
}

void fake_engine_last(struct engine_request *out)
{
    lock();
    *out = control.last;
    unlock();
}

uint32_t fake_engine_token(uint32_t prompt_tokens, uint32_t index)
{
    return (prompt_tokens * 2654435761u + index * 40503u) % 4093u;
}

enum status engine_create(const struct engine_config *config, struct engine **out)
{
    lock();
    while (!control.may_load)
        pthread_cond_wait(&changed, &mutex);
    enum status st = control.load;
    unlock();
    if (st != STATUS_OK)
        return STATUS_FAIL(st, "no known answer in %s", config->model_dir);
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory");
    engine->config = *config;
    engine->info = (struct engine_info){
        .model_name = "fake", .context_tokens_max = FAKE_CONTEXT, .kv_tokens_max = 65536, .kv_bytes_per_token = 64};
    memset(engine->info.weights_digest, 0x11, sizeof engine->info.weights_digest);
    memset(engine->info.numerics_id, 0x22, sizeof engine->info.numerics_id);
    *out = engine;
    return STATUS_OK;
}

static void pop(struct engine *engine, struct job **at)
{
    struct job *job = *at;
    *at = job->next;
    lock();
    if (job->running)
        engine->progress.running_requests--;
    else
        engine->progress.queued_requests--, engine->progress.queued_tokens -= job->prompt_tokens;
    unlock();
    free(job);
}

void engine_destroy(struct engine **engine)
{
    if (!engine || !*engine)
        return;
    while ((*engine)->jobs)
        pop(*engine, &(*engine)->jobs);
    free(*engine);
    *engine = NULL;
}

const struct engine_info *engine_info(const struct engine *engine)
{
    return &engine->info;
}

enum status engine_submit(struct engine *engine, const struct engine_request *request)
{
    uint64_t tokens = request->prompt_id_count;
    for (unsigned i = 0; i < request->message_count; i++)
        tokens += request->messages[i].text_size;
    if (tokens >= FAKE_CONTEXT)
        return STATUS_FAIL(STATUS_LIMIT, "the prompt has %llu tokens, the context %u", (unsigned long long)tokens,
                           FAKE_CONTEXT);
    if (request->prompt_id_count && request->prompt_ids[0] >= 4096)
        return STATUS_FAIL(STATUS_INVALID, "prompt id %u is not in the vocabulary", request->prompt_ids[0]);
    if (engine->progress.queued_requests >= engine->config.queue_requests_max)
        return STATUS_FAIL(STATUS_AGAIN, "%u requests wait already", engine->progress.queued_requests);
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory");
    *job = (struct job){.id = request->job,
                        .deadline_ms = request->deadline_ms,
                        .prompt_tokens = (uint32_t)tokens,
                        .tokens_max = request->tokens_max ? request->tokens_max : FAKE_CONTEXT - (uint32_t)tokens};
    struct job **last = &engine->jobs;
    while (*last)
        last = &(*last)->next;
    *last = job;
    lock();
    control.last = *request;
    control.last.messages = NULL;
    control.last.prompt_ids = NULL;
    control.last.tenant = control.last.reply_name = NULL;
    engine->progress.queued_requests++;
    engine->progress.queued_tokens += tokens;
    unlock();
    return STATUS_OK;
}

void engine_cancel(struct engine *engine, uint64_t id)
{
    for (struct job *job = engine->jobs; job; job = job->next) {
        if (job->id != id || job->cancelled)
            continue;
        job->cancelled = true;
        lock();
        control.cancels++;
        unlock();
    }
}

static void fail_job(struct engine *engine, struct job **at, enum status st, engine_event_fn *sink, void *user)
{
    struct engine_event event = {.kind = ENGINE_FAILED, .job = (*at)->id, .status = st, .detail = "as the test asked"};
    pop(engine, at);
    sink(user, &event);
}

/* False: none left. Waits a moment for one. */
static bool take_permit(void)
{
    bool taken = false;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    lock();
    if (control.permits == 0)
        pthread_cond_timedwait(&changed, &mutex, &until);
    taken = control.permits != 0;
    if (control.permits > 0)
        control.permits--;
    unlock();
    return taken;
}

static void decode(struct engine *engine, struct job *job, engine_event_fn *sink, void *user)
{
    uint32_t id = fake_engine_token(job->prompt_tokens, job->made);
    char word[16];
    lock();
    size_t size = control.text_bytes;
    unlock();
    char *text = size ? malloc(size) : word;
    if (size)
        memset(text, 'x', size);
    else
        size = (size_t)snprintf(word, sizeof word, "w%u ", id);
    sink(user, &(struct engine_event){.kind = ENGINE_TOKENS,
                                      .job = job->id,
                                      .first = job->made,
                                      .ids = &id,
                                      .count = 1,
                                      .text = text,
                                      .text_size = size});
    if (text != word)
        free(text);
    if (++job->made < job->tokens_max)
        return;
    struct engine_event done = {.kind = ENGINE_DONE,
                                .job = job->id,
                                .finish = ENGINE_FINISH_LENGTH,
                                .prompt_tokens = job->prompt_tokens,
                                .cached_tokens = 1,
                                .reply_tokens = job->made,
                                .queue_us = 10,
                                .prefill_us = 20,
                                .decode_us = 30};
    pop(engine, &engine->jobs);
    sink(user, &done);
}

bool engine_step(struct engine *engine, engine_event_fn *sink, void *user)
{
    lock();
    engine->progress.step_started_ms = clock_now_ms();
    while (control.stuck)
        pthread_cond_wait(&changed, &mutex);
    unlock();
    uint64_t now = clock_now_ms();
    for (struct job **at = &engine->jobs; *at;) {
        if ((*at)->cancelled)
            fail_job(engine, at, STATUS_CANCELLED, sink, user);
        else if ((*at)->deadline_ms && (*at)->deadline_ms <= now)
            fail_job(engine, at, STATUS_TIMEOUT, sink, user);
        else
            at = &(*at)->next;
    }
    struct job *job = engine->jobs;
    if (job && !job->running) {
        job->running = true;
        lock();
        engine->progress.running_requests++;
        engine->progress.queued_requests--;
        engine->progress.queued_tokens -= job->prompt_tokens;
        unlock();
    }
    if (job && take_permit()) {
        lock();
        enum status st = control.fail_next;
        control.fail_next = STATUS_OK;
        unlock();
        if (st != STATUS_OK)
            fail_job(engine, &engine->jobs, st, sink, user);
        else
            decode(engine, job, sink, user);
    }
    lock();
    engine->progress.steps++;
    engine->progress.step_started_ms = 0;
    unlock();
    return job != NULL;
}

void engine_progress(const struct engine *engine, struct engine_progress *out)
{
    lock();
    *out = engine->progress;
    unlock();
}

void engine_forget_cache(struct engine *engine)
{
    (void)engine;
}
