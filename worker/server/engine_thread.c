/* engine_thread.c - owns the engine and the queue pair (drawn in the header).
 * Threads: functions named run_* are the engine thread's, the others the I/O thread's. Everything under "shared" is
 * guarded by mutex; the engine pointer itself is set once, before READY is published, and then constant. */
#include "worker/server/engine_thread.h"
#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/probe.h"
#include "worker/engine/backend/backend.h"
#include "worker/server/device_watch.h"
#include "worker/server/request.h"

#define HEALTH_INTERVAL_MS 1000u

struct command {
    struct command *next;
    struct request *request; /* owned; NULL: cancel */
    uint64_t job;
};

struct event_node { /* followed by ids, logprobs, alternatives, text and detail */
    struct event_node *next;
    struct engine_thread_event event;
};

struct event_list {
    struct event_node *first, **last;
    size_t bytes;
};

struct engine_thread {
    struct engine_thread_config config;
    char *model_dir; /* owned copy for config.engine */
    pthread_t thread;
    const struct engine_info *info; /* I/O thread's; ref, owned by the engine */
    struct device_watch *watch;     /* I/O thread's; NULL: nothing to watch */
    struct event_list step;         /* engine thread's: events of the running step */
    bool memory_out;                /* engine thread's: an event could not be copied */
    /* Of the engine thread's turn with commands and a step; 0: it waits. Any thread reads it. */
    _Atomic uint64_t turn_started_ms;

    /* shared */
    pthread_mutex_t mutex;
    pthread_cond_t wake;   /* commands came, outbox drained, or stop */
    struct engine *engine; /* NULL until loaded */
    struct command *commands, **commands_last;
    uint32_t submits;
    struct event_list outbox;
    struct engine_pressure pressure;
    bool posted;        /* a loop_post is on its way */
    bool failed_unsent; /* FAILED has to be made on the I/O side, for want of memory here */
    bool stop;
};

static void event_list_reset(struct event_list *list)
{
    list->first = NULL;
    list->last = &list->first;
    list->bytes = 0;
}

static void event_list_free(struct event_list *list)
{
    while (list->first) {
        struct event_node *node = list->first;
        list->first = node->next;
        free(node);
    }
    event_list_reset(list);
}

/* ---- engine thread ---- */

/* Copies size bytes to *at, which moves on. NULL stays NULL. */
static void *copy_part(const void *from, size_t size, uint8_t **at)
{
    uint8_t *copy = *at;
    if (!from || size == 0)
        return NULL;
    memcpy(copy, from, size);
    *at += size;
    return copy;
}

/* Copies an event with what it points to onto the list of this step. */
static void run_collect(struct engine_thread *thread, const struct engine_thread_event *event)
{
    const struct engine_event *job = &event->event;
    bool tokens = event->kind == ENGINE_THREAD_JOB && (job->kind == ENGINE_TOKENS || job->kind == ENGINE_PROMPT);
    const char *detail = event->kind == ENGINE_THREAD_JOB ? job->detail : event->detail;
    size_t column = tokens ? job->count * sizeof(uint32_t) : 0, alternatives = column * job->alternatives;
    size_t text_size = tokens ? job->text_size : 0, detail_size = detail ? strlen(detail) : 0;
    size_t size = sizeof(struct event_node) + 2 * column + 2 * alternatives + text_size + detail_size + 1;
    struct event_node *node = malloc(size);
    if (!node) {
        thread->memory_out = true;
        return;
    }
    node->next = NULL;
    node->event = *event;
    struct engine_event *copy = &node->event.event;
    uint8_t *at = (uint8_t *)(node + 1);
    copy->ids = copy_part(job->ids, column, &at); /* 4-byte values first: they stay aligned */
    copy->logprobs = copy_part(job->logprobs, column, &at);
    copy->alternative_ids = copy_part(job->alternative_ids, alternatives, &at);
    copy->alternative_logprobs = copy_part(job->alternative_logprobs, alternatives, &at);
    copy->text = copy_part(job->text, text_size, &at);
    copy->text_size = text_size;
    char *words = (char *)at;
    (void)copy_part(detail, detail_size, &at);
    *at = '\0';
    copy->detail = node->event.detail = words;
    *thread->step.last = node;
    thread->step.last = &node->next;
    thread->step.bytes += size;
}

static void run_collect_own(struct engine_thread *thread, enum engine_thread_event_kind kind, uint64_t job,
                            enum status st, uint32_t retry_after_ms)
{
    run_collect(thread, &(struct engine_thread_event){.kind = kind,
                                                      .job = job,
                                                      .status = st,
                                                      .detail = st == STATUS_OK ? "" : status_detail(),
                                                      .retry_after_ms = retry_after_ms});
}

static void drain_outbox(void *user);

/* Moves the events of this step so far to the outbox: one lock and at most one post. */
static void run_publish(struct engine_thread *thread)
{
    if (!thread->step.first && !thread->memory_out)
        return;
    pthread_mutex_lock(&thread->mutex);
    if (thread->engine)
        engine_pressure(thread->engine, &thread->pressure);
    if (thread->step.first) {
        *thread->outbox.last = thread->step.first;
        thread->outbox.last = thread->step.last;
        thread->outbox.bytes += thread->step.bytes;
    }
    event_list_reset(&thread->step);
    if (thread->memory_out)
        thread->failed_unsent = true;
    /* Without memory for the post, the I/O thread finds the events in its next engine_thread_poll. */
    if (!thread->posted)
        thread->posted = loop_post(thread->config.loop, drain_outbox, thread) == STATUS_OK;
    pthread_mutex_unlock(&thread->mutex);
}

static void run_collect_job(void *user, const struct engine_event *event)
{
    run_collect(user, &(struct engine_thread_event){.kind = ENGINE_THREAD_JOB, .job = event->job, .event = *event});
    if (event->kind == ENGINE_STARTED)
        run_publish(user); /* what the forward behind it does to this process, it does to this job's blame */
}

static void run_command(struct engine_thread *thread, struct command *command)
{
    if (command->request) {
        pthread_mutex_lock(&thread->mutex);
        thread->submits--; /* before the engine counts it: never counted twice */
        pthread_mutex_unlock(&thread->mutex);
        uint32_t retry_after_ms = 0;
        enum status st = engine_submit(thread->engine, &command->request->engine, &retry_after_ms);
        run_collect_own(thread, st == STATUS_OK ? ENGINE_THREAD_ACCEPTED : ENGINE_THREAD_REFUSED, command->job, st,
                        st == STATUS_AGAIN ? retry_after_ms : 0);
        request_destroy(&command->request);
    } else {
        engine_cancel(thread->engine, command->job);
    }
    free(command);
}

/* The commands there are; waits for some when idle, and while the outbox is full. False: stop. */
static bool run_take(struct engine_thread *thread, bool idle, struct command **out)
{
    pthread_mutex_lock(&thread->mutex);
    while (!thread->stop && ((idle && !thread->commands) || thread->outbox.bytes >= ENGINE_THREAD_OUTBOX_BYTES))
        pthread_cond_wait(&thread->wake, &thread->mutex);
    *out = thread->commands;
    thread->commands = NULL;
    thread->commands_last = &thread->commands;
    bool go_on = !thread->stop;
    pthread_mutex_unlock(&thread->mutex);
    return go_on;
}

/* Places for test drivers: a step that has work, and one that takes up prompts from the queue. */
static void run_probes(struct engine_thread *thread)
{
#ifdef ROOST_PROBES
    struct engine_progress progress;
    engine_progress(thread->engine, &progress);
    if (progress.queued_requests + progress.running_requests > 0)
        (void)PROBE("worker.step");
    if (progress.queued_requests > 0)
        (void)PROBE("worker.prefill");
#else
    (void)thread;
#endif
}

static void free_commands(struct command *commands)
{
    while (commands) {
        struct command *next = commands->next;
        request_destroy(&commands->request);
        free(commands);
        commands = next;
    }
}

static void run_serve(struct engine_thread *thread)
{
    struct command *commands;
    bool idle = false;
    while (run_take(thread, idle, &commands)) {
        atomic_store_explicit(&thread->turn_started_ms, clock_now_ms(), memory_order_relaxed);
        while (commands) {
            struct command *command = commands;
            commands = command->next;
            run_command(thread, command);
        }
        run_publish(thread); /* accepted or refused: known before the step, which may be long */
        run_probes(thread);
        idle = !engine_step(thread->engine, run_collect_job, thread);
        enum status lost = engine_lost(thread->engine);
        if (lost != STATUS_OK)
            run_collect_own(thread, ENGINE_THREAD_FAILED, 0, lost, 0);
        run_publish(thread);
        if (lost != STATUS_OK || thread->memory_out)
            return; /* an event is lost: jobs would hang, so the process has to end */
        atomic_store_explicit(&thread->turn_started_ms, 0, memory_order_relaxed);
    }
    free_commands(commands);
}

static void log_pressure(const struct engine *engine)
{
    struct engine_pressure pressure;
    engine_pressure(engine, &pressure);
    LOG_INFO("KV cache: %" PRIu64 " sequences suspended, %" PRIu64 " pages demoted, %" PRIu64 " promoted, %" PRIu64
             " conversations evicted in part or whole",
             pressure.suspended, pressure.demoted, pressure.promoted, pressure.evicted);
}

static void *run(void *arg)
{
    struct engine_thread *thread = arg;
    struct engine *engine = NULL;
    enum status st = engine_create(&thread->config.engine, &engine);
    pthread_mutex_lock(&thread->mutex);
    thread->engine = engine;
    pthread_mutex_unlock(&thread->mutex);
    run_collect_own(thread, st == STATUS_OK ? ENGINE_THREAD_READY : ENGINE_THREAD_FAILED, 0, st, 0);
    run_publish(thread);
    if (st == STATUS_OK && !thread->memory_out) {
        run_serve(thread);
        log_pressure(engine);
    }
    return NULL;
}

/* ---- I/O thread ---- */

static bool ask_health(void *user, struct backend_health *out)
{
    return engine_health(user, out);
}

static void deliver(struct engine_thread *thread, const struct engine_thread_event *event)
{
    if (event->kind == ENGINE_THREAD_READY) {
        thread->info = engine_info(thread->engine);
        if (device_watch_start(HEALTH_INTERVAL_MS, ask_health, thread->engine, &thread->watch) != STATUS_OK)
            LOG_WARN("the device is not watched: %s", status_detail());
    }
    thread->config.on_event(thread->config.user, event);
}

static void hand_out(struct engine_thread *thread, bool by_post)
{
    pthread_mutex_lock(&thread->mutex);
    struct event_node *first = thread->outbox.first;
    bool was_full = thread->outbox.bytes >= ENGINE_THREAD_OUTBOX_BYTES;
    event_list_reset(&thread->outbox);
    if (by_post)
        thread->posted = false;
    bool failed = thread->failed_unsent;
    thread->failed_unsent = false;
    if (was_full)
        pthread_cond_signal(&thread->wake);
    pthread_mutex_unlock(&thread->mutex);
    while (first) {
        struct event_node *node = first;
        first = node->next;
        deliver(thread, &node->event);
        free(node);
    }
    if (failed)
        deliver(thread, &(struct engine_thread_event){.kind = ENGINE_THREAD_FAILED,
                                                      .status = STATUS_NO_MEMORY,
                                                      .detail = "no memory for the engine's events"});
}

static void drain_outbox(void *user)
{
    hand_out(user, true);
}

void engine_thread_poll(struct engine_thread *thread)
{
    hand_out(thread, false);
}

static enum status start_thread(struct engine_thread *thread)
{
    sigset_t all, before; /* signals are the loop's business */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread->thread, NULL, run, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc == 0 ? STATUS_OK : STATUS_FAIL(STATUS_IO, "cannot start the engine thread: %s", strerror(rc));
}

enum status engine_thread_start(const struct engine_thread_config *config, struct engine_thread **out)
{
    struct engine_thread *thread = calloc(1, sizeof *thread);
    if (!thread)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the engine thread");
    thread->config = *config;
    thread->model_dir = strdup(config->engine.model_dir ? config->engine.model_dir : "");
    thread->config.engine.model_dir = thread->model_dir;
    thread->commands_last = &thread->commands;
    event_list_reset(&thread->step);
    event_list_reset(&thread->outbox);
    pthread_mutex_init(&thread->mutex, NULL); /* default attributes: cannot fail on Linux */
    pthread_cond_init(&thread->wake, NULL);
    enum status st =
        thread->model_dir ? start_thread(thread) : STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the engine thread");
    if (st != STATUS_OK) {
        pthread_cond_destroy(&thread->wake);
        pthread_mutex_destroy(&thread->mutex);
        free(thread->model_dir);
        free(thread);
        return st;
    }
    *out = thread;
    return STATUS_OK;
}

void engine_thread_stop(struct engine_thread **thread_pointer)
{
    struct engine_thread *thread = *thread_pointer;
    if (!thread)
        return;
    pthread_mutex_lock(&thread->mutex);
    thread->stop = true;
    pthread_cond_signal(&thread->wake);
    pthread_mutex_unlock(&thread->mutex);
    pthread_join(thread->thread, NULL);
    device_watch_stop(&thread->watch); /* it asks the engine */
    free_commands(thread->commands);
    event_list_free(&thread->outbox);
    event_list_free(&thread->step);
    engine_destroy(&thread->engine); /* the thread is gone: this one may touch the engine now */
    pthread_cond_destroy(&thread->wake);
    pthread_mutex_destroy(&thread->mutex);
    free(thread->model_dir);
    free(thread);
    *thread_pointer = NULL;
}

static void append(struct engine_thread *thread, struct command *command)
{
    *thread->commands_last = command;
    thread->commands_last = &command->next;
    pthread_cond_signal(&thread->wake);
}

enum status engine_thread_submit(struct engine_thread *thread, struct request **request)
{
    struct command *command = calloc(1, sizeof *command);
    if (!command) {
        request_destroy(request);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a request");
    }
    command->request = *request;
    command->job = (*request)->engine.job;
    *request = NULL;
    pthread_mutex_lock(&thread->mutex);
    bool full = thread->submits >= thread->config.submits_max;
    if (!full) {
        thread->submits++;
        append(thread, command);
    }
    pthread_mutex_unlock(&thread->mutex);
    if (!full)
        return STATUS_OK;
    free_commands(command);
    return STATUS_FAIL(STATUS_AGAIN, "%u requests wait for the engine already", thread->config.submits_max);
}

enum status engine_thread_cancel(struct engine_thread *thread, uint64_t job)
{
    struct command *command = calloc(1, sizeof *command);
    if (!command)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a cancel");
    command->job = job;
    pthread_mutex_lock(&thread->mutex);
    append(thread, command);
    pthread_mutex_unlock(&thread->mutex);
    return STATUS_OK;
}

const struct engine_info *engine_thread_info(const struct engine_thread *thread)
{
    return thread->info;
}

void engine_thread_pressure(struct engine_thread *thread, struct engine_pressure *out)
{
    pthread_mutex_lock(&thread->mutex);
    *out = thread->pressure;
    pthread_mutex_unlock(&thread->mutex);
}

void engine_thread_progress(struct engine_thread *thread, struct engine_progress *out)
{
    memset(out, 0, sizeof *out);
    if (!thread->info)
        return;
    engine_progress(thread->engine, out);
    /* A thread that hangs between two steps is as hung as one that hangs within. */
    uint64_t turn_ms = atomic_load_explicit(&thread->turn_started_ms, memory_order_relaxed);
    if (turn_ms > 0)
        out->step_started_ms = turn_ms;
}

bool engine_thread_health(const struct engine_thread *thread, struct backend_health *out)
{
    return thread->watch && device_watch_read(thread->watch, out);
}

uint32_t engine_thread_submits(struct engine_thread *thread)
{
    pthread_mutex_lock(&thread->mutex);
    uint32_t submits = thread->submits;
    pthread_mutex_unlock(&thread->mutex);
    return submits;
}
