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
    uint32_t prompt_tokens, tokens_max, choices, alternatives;
    uint32_t made[ENGINE_CHOICES_MAX]; /* of each choice */
    bool started, cancelled, running, logprobs, prompt_logprobs;
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
    bool may_load, stuck, tell_starts, stuck_at_start;
    enum status load, fail_next, refuse_next;
    uint32_t retry_after_ms;
    size_t text_bytes;
    uint32_t row_tokens;
    unsigned cancels;
    struct engine_request last;
    struct fake_lists lists;
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
    control.row_tokens = 1;
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

void fake_engine_row_tokens(uint32_t tokens)
{
    lock();
    control.row_tokens = tokens;
    unlock();
}

void fake_engine_fail_next(enum status st)
{
    lock();
    control.fail_next = st;
    unlock();
}

void fake_engine_refuse_next(enum status st, uint32_t retry_after_ms)
{
    lock();
    control.refuse_next = st;
    control.retry_after_ms = retry_after_ms;
    unlock();
}

void fake_engine_stuck(bool stuck)
{
    lock();
    control.stuck = stuck;
    unlock();
}

void fake_engine_tell_starts(void)
{
    lock();
    control.tell_starts = true;
    unlock();
}

void fake_engine_stuck_at_start(bool stuck)
{
    lock();
    control.stuck_at_start = stuck;
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

void fake_engine_last_lists(struct fake_lists *out)
{
    lock();
    *out = control.lists;
    unlock();
}

float fake_engine_logprob(uint32_t id, uint32_t alternative)
{
    return -(float)(id % 97) / 8 - (float)alternative;
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

static void note_lists(const struct engine_request *request, struct fake_lists *out)
{
    memset(out, 0, sizeof *out);
    for (unsigned i = 0; i < 4 && i < request->stop_id_count; i++)
        out->stop_ids[i] = request->stop_ids[i];
    for (unsigned i = 0; i < 4 && i < request->sampling.bias_count; i++) {
        out->bias_ids[i] = request->sampling.bias_ids[i];
        out->bias_values[i] = request->sampling.bias_values[i];
    }
    for (unsigned i = 0; i < 4 && i < request->stop_count; i++)
        snprintf(out->stops[i], sizeof out->stops[i], "%.*s", (int)request->stop_sizes[i], request->stops[i]);
}

static enum status refused(uint32_t *retry_after_ms)
{
    lock();
    enum status st = control.refuse_next;
    *retry_after_ms = control.retry_after_ms;
    control.refuse_next = STATUS_OK;
    unlock();
    return st == STATUS_OK ? STATUS_OK : STATUS_FAIL(st, "refused as the test asked");
}

static uint32_t length_of(const struct job *job, uint32_t choice)
{
    return job->tokens_max > choice ? job->tokens_max - choice : 1;
}

static enum status take_resume(struct job *job, const struct engine_request *request)
{
    const uint32_t *id = request->resume_ids;
    for (uint32_t choice = 0; choice < job->choices && request->resume_counts; choice++) {
        job->made[choice] = request->resume_counts[choice];
        for (uint32_t i = 0; i < job->made[choice]; i++)
            if (*id++ != fake_engine_token(job->prompt_tokens + choice, i))
                return STATUS_FAIL(STATUS_INVALID, "resume: token %u of choice %u was never drawn", i, choice);
    }
    return STATUS_OK;
}

enum status engine_submit(struct engine *engine, const struct engine_request *request, uint32_t *retry_after_ms)
{
    TRY(refused(retry_after_ms));
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
                        .choices = request->choices ? request->choices : 1,
                        .alternatives = request->alternatives,
                        .logprobs = request->logprobs,
                        .prompt_logprobs = request->prompt_logprobs,
                        .tokens_max = request->tokens_max ? request->tokens_max : FAKE_CONTEXT - (uint32_t)tokens};
    enum status st = take_resume(job, request);
    if (st != STATUS_OK) {
        free(job);
        return st;
    }
    struct job **last = &engine->jobs;
    while (*last)
        last = &(*last)->next;
    *last = job;
    lock();
    control.last = *request;
    note_lists(request, &control.lists);
    control.last.stop_ids = NULL;
    control.last.stops = NULL;
    control.last.stop_sizes = NULL;
    control.last.sampling.bias_ids = NULL;
    control.last.sampling.bias_values = NULL;
    control.last.messages = NULL;
    control.last.prompt_ids = NULL;
    control.last.resume_counts = control.last.resume_ids = NULL;
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

/* The columns of `count` ids, into the event. */
static void send_event(struct engine_event *event, bool logprobs, uint32_t alternatives, engine_event_fn *sink,
                       void *user)
{
    size_t values = (size_t)event->count * alternatives;
    float *own = malloc(event->count * sizeof *own + 1), *others = malloc(values * sizeof *others + 1);
    uint32_t *ids = malloc(values * sizeof *ids + 1);
    for (size_t i = 0; i < event->count; i++)
        own[i] = fake_engine_logprob(event->ids[i], 0);
    for (size_t i = 0; i < values; i++) {
        ids[i] = event->ids[i / alternatives] + (uint32_t)(i % alternatives);
        others[i] = fake_engine_logprob(event->ids[i / alternatives], (uint32_t)(i % alternatives));
    }
    if (logprobs)
        event->logprobs = own;
    if (logprobs && alternatives) {
        event->alternatives = alternatives;
        event->alternative_ids = ids;
        event->alternative_logprobs = others;
    }
    sink(user, event);
    free(own);
    free(others);
    free(ids);
}

static void send_prompt(struct job *job, engine_event_fn *sink, void *user)
{
    uint32_t *ids = malloc(job->prompt_tokens * sizeof *ids + 1);
    for (uint32_t i = 1; i < job->prompt_tokens; i++)
        ids[i - 1] = i;
    struct engine_event event = {.kind = ENGINE_PROMPT, .job = job->id, .ids = ids, .count = job->prompt_tokens - 1};
    send_event(&event, true, job->alternatives, sink, user);
    free(ids);
}

static void decode_choice(struct job *job, uint32_t choice, engine_event_fn *sink, void *user)
{
    uint32_t at = job->made[choice], left = length_of(job, choice) - at, ids[FAKE_ROW_TOKENS_MAX];
    char word[16];
    lock();
    size_t size = control.text_bytes;
    uint32_t count = control.row_tokens < left ? control.row_tokens : left;
    unlock();
    for (uint32_t i = 0; i < count; i++)
        ids[i] = fake_engine_token(job->prompt_tokens + choice, at + i);
    job->made[choice] += count;
    char *text = size ? malloc(size) : word;
    if (size)
        memset(text, 'x', size);
    else
        size = (size_t)snprintf(word, sizeof word, "w%u ", ids[0]);
    struct engine_event event = {.kind = ENGINE_TOKENS,
                                 .job = job->id,
                                 .choice = choice,
                                 .first = at,
                                 .ids = ids,
                                 .count = count,
                                 .text = text,
                                 .text_size = size};
    send_event(&event, job->logprobs, job->alternatives, sink, user);
    if (text != word)
        free(text);
    if (FAKE_FINISH(choice) == ENGINE_FINISH_STOP_STRING && count == left)
        sink(
            user,
            &(struct engine_event){
                .kind = ENGINE_TOKENS, .job = job->id, .choice = choice, .first = at + count, .text = "~", .text_size = 1});
}

static void decode(struct engine *engine, struct job *job, engine_event_fn *sink, void *user)
{
    bool more = false;
    if (!job->started && job->prompt_logprobs)
        send_prompt(job, sink, user);
    job->started = true;
    for (uint32_t choice = job->choices; choice-- > 0;) {
        if (job->made[choice] < length_of(job, choice))
            decode_choice(job, choice, sink, user);
        more = more || job->made[choice] < length_of(job, choice);
    }
    if (more)
        return;
    struct engine_event done = {.kind = ENGINE_DONE,
                                .job = job->id,
                                .choices = job->choices,
                                .prompt_tokens = job->prompt_tokens,
                                .cached_tokens = 1,
                                .dropped_messages = 4,
                                .queue_us = 10,
                                .prefill_us = 20,
                                .decode_us = 30};
    for (uint32_t choice = 0; choice < job->choices; choice++) {
        done.finish[choice] = FAKE_FINISH(choice);
        done.reply_tokens += length_of(job, choice);
    }
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
        const bool tell = control.tell_starts;
        unlock();
        if (tell)
            sink(user, &(struct engine_event){.kind = ENGINE_STARTED, .job = job->id});
        lock();
        while (control.stuck_at_start)
            pthread_cond_wait(&changed, &mutex);
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

bool engine_health(const struct engine *engine, struct backend_health *out)
{
    (void)engine;
    (void)out;
    return false;
}

void engine_progress(const struct engine *engine, struct engine_progress *out)
{
    lock();
    *out = engine->progress;
    unlock();
}

enum status engine_lost(const struct engine *engine)
{
    (void)engine;
    return STATUS_OK;
}

void engine_forget_cache(struct engine *engine)
{
    (void)engine;
}

void engine_pressure(const struct engine *fake, struct engine_pressure *out)
{
    (void)fake;
    *out = (struct engine_pressure){0};
}
