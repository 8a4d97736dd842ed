/* engine.c
 *
 *   engine_submit --> queue --take_best--> running: prefill chunks, then tokens --> ENGINE_DONE
 *                       \--cancelled, late--> ENGINE_FAILED <--cancelled, late, failed--/
 *
 * A step, in this order:
 *   1. waiting jobs that are cancelled or late end;
 *   2. the running job ends if it is cancelled or late;
 *   3. without a running job the best waiting one starts: its KV sequence is opened;
 *   4. the running job computes one chunk of its prompt, or one token; the chunk that ends the prompt draws one too. */
#include "worker/engine/engine.h"
#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "worker/engine/backend.h"
#include "worker/engine/job_queue.h"
#include "worker/engine/known_answer.h"
#include "worker/engine/kv_cache.h"
#include "worker/engine/model.h"
#include "worker/engine/prompt.h"
#include "worker/engine/sampler.h"
#include "worker/engine/tokenizer.h"
#include "worker/engine/utf8_stream.h"

#define CHUNK_TOKENS_MAX   1024u
#define QUEUE_REQUESTS_MAX 65536u
#define STEP_TIMES         64u

struct shared_progress { /* written by the engine thread, read by any; each value is its own */
    _Atomic uint64_t steps, step_started_ms, queued_tokens, running_tokens, kv_tokens_used;
    _Atomic uint32_t step_median_us, queued_requests, running_requests;
};

struct running {                  /* the job that computes; job NULL: none */
    struct job *job;              /* owned */
    struct kv_sequence *sequence; /* owned by the cache; open */
    uint32_t cached;              /* prompt tokens found in the cache */
    uint32_t reply_count;         /* tokens drawn, <eos> not counted */
    uint32_t released;
    uint32_t last; /* drawn, its KV not yet computed; if reply_count > 0 */
    uint32_t held_ids[UTF8_STREAM_TOKENS_MAX + 1];
    struct utf8_stream text;
    uint64_t started_us, decode_us; /* when it left the queue; when its prompt was done */
};

struct engine {
    struct model *model;           /* owned */
    struct tokenizer *tokenizer;   /* owned */
    const struct backend_ops *ops; /* ref */
    struct backend *backend;       /* owned */
    struct kv_cache *cache;        /* owned */
    struct job_queue queue;
    struct running running;
    uint32_t chunk_tokens;
    float *logits;    /* (vocab) */
    uint32_t *masked; /* ids never drawn, ascending */
    uint32_t masked_count;
    struct engine_info info;
    struct shared_progress progress;
    uint32_t step_times[STEP_TIMES];
    char text[UTF8_STREAM_TEXT_MAX]; /* of one event */
};

/* ---- create and destroy ---- */

static enum status check_config(const struct engine_config *config)
{
    if (config->model_dir == NULL)
        return STATUS_FAIL(STATUS_INVALID, "no model directory is given");
    if (config->chunk_tokens < 1 || config->chunk_tokens > CHUNK_TOKENS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "chunk_tokens is %u, not 1 to %u", config->chunk_tokens, CHUNK_TOKENS_MAX);
    if (config->queue_requests_max < 1 || config->queue_requests_max > QUEUE_REQUESTS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "queue_requests_max is %u, not 1 to %u", config->queue_requests_max,
                           QUEUE_REQUESTS_MAX);
    return STATUS_OK;
}

static enum status open_tokenizer(const char *dir, const struct model_config *config, struct tokenizer **out)
{
    const struct tokenizer_config wanted = {
        .vocab_size = config->vocab_size,
        .bos_id = config->bos_id,
        .eos_id = config->eos_id,
        .turn_id = config->turn_id,
        .text_id = config->text_id,
    };
    char path[4096];
    const int length = snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    if (length < 0 || (size_t)length >= sizeof path)
        return STATUS_FAIL(STATUS_INVALID, "the path of the model directory is too long");
    return tokenizer_open(path, &wanted, out);
}

static enum status build_mask(struct engine *engine)
{
    const struct model_config *config = &engine->model->config;
    engine->masked = calloc(config->vocab_size, sizeof *engine->masked);
    engine->logits = calloc(config->vocab_size, sizeof *engine->logits);
    if (engine->masked == NULL || engine->logits == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u logits", config->vocab_size);
    for (uint32_t id = 0; id < config->vocab_size; id++) {
        size_t size;
        (void)tokenizer_piece(engine->tokenizer, id, &size);
        if (size == 0 && id != config->eos_id)
            engine->masked[engine->masked_count++] = id;
    }
    return STATUS_OK;
}

static void build_info(struct engine *engine)
{
    struct {
        uint8_t weights_digest[HASH_DIGEST_BYTES];
        uint8_t revision[4];
        char backend[32];
    } input = {0};
    struct engine_info *info = &engine->info;
    memcpy(input.weights_digest, engine->model->weights_digest, sizeof input.weights_digest);
    for (unsigned i = 0; i < 4; i++)
        input.revision[i] = (uint8_t)(MODEL_NUMERICS_REVISION >> (8 * i));
    snprintf(input.backend, sizeof input.backend, "%s", engine->ops->name);
    hash_digest(&input, sizeof input, NULL, 0, info->numerics_id);
    info->model_name = engine->model->config.name;
    memcpy(info->weights_digest, engine->model->weights_digest, sizeof info->weights_digest);
    info->context_tokens_max = engine->model->config.context_tokens_max;
    info->kv_tokens_max = (uint64_t)kv_cache_page_count(engine->cache) * BACKEND_PAGE_TOKENS;
    info->kv_bytes_per_token = kv_cache_page_stride(engine->cache) / BACKEND_PAGE_TOKENS;
}

static enum status check_known_answer(const char *dir, const struct engine *engine)
{
    const struct known_answer_run run = {
        .model = engine->model,
        .ops = engine->ops,
        .backend = engine->backend,
        .chunk_tokens = engine->chunk_tokens,
    };
    const enum status st = known_answer_check(dir, &run);
    if (st != STATUS_NOT_FOUND)
        return st;
    LOG_WARN("the model %s has no " KNOWN_ANSWER_FILE
             ": nothing shows that this machine computes it right; see roost model seal",
             engine->model->config.name);
    return STATUS_OK;
}

enum status engine_create(const struct engine_config *config, struct engine **out)
{
    enum status st;
    TRY(check_config(config));
    struct engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for an engine");
    engine->ops = config->backend != NULL ? config->backend : &backend_cpu_ops;
    engine->chunk_tokens = config->chunk_tokens;
    TRY_GOTO(model_load(config->model_dir, &engine->model), st, fail);
    TRY_GOTO(open_tokenizer(config->model_dir, &engine->model->config, &engine->tokenizer), st, fail);
    TRY_GOTO(build_mask(engine), st, fail);
    TRY_GOTO(engine->ops->create(engine->model, engine->chunk_tokens, &engine->backend), st, fail);
    const struct kv_cache_config cache_config = {
        .ops = engine->ops,
        .backend = engine->backend,
        .arena_bytes = config->kv_bytes,
        .sequence_tokens_max = engine->model->config.context_tokens_max,
        .open_max = 1,
    };
    TRY_GOTO(kv_cache_create(&cache_config, &engine->cache), st, fail);
    TRY_GOTO(job_queue_create(&engine->queue, config->queue_requests_max), st, fail);
    if (!config->skip_known_answer)
        TRY_GOTO(check_known_answer(config->model_dir, engine), st, fail);
    build_info(engine);
    *out = engine;
    return STATUS_OK;
fail:
    engine_destroy(&engine);
    return st;
}

void engine_destroy(struct engine **pointer)
{
    struct engine *engine = *pointer;
    if (engine == NULL)
        return;
    job_destroy(&engine->running.job);
    job_queue_destroy(&engine->queue);
    kv_cache_destroy(&engine->cache);
    if (engine->backend != NULL)
        engine->ops->destroy(&engine->backend);
    tokenizer_close(&engine->tokenizer);
    model_destroy(&engine->model);
    free(engine->masked);
    free(engine->logits);
    free(engine);
    *pointer = NULL;
}

const struct engine_info *engine_info(const struct engine *engine)
{
    return &engine->info;
}

enum status engine_seal(const char *model_dir)
{
    struct known_answer_run run = {.ops = &backend_cpu_ops, .chunk_tokens = KNOWN_ANSWER_PROMPT_IDS};
    struct model *model = NULL;
    enum status st;
    TRY(model_load(model_dir, &model));
    run.model = model;
    TRY_GOTO(run.ops->create(model, run.chunk_tokens, &run.backend), st, done);
    st = known_answer_write(model_dir, &run);
    run.ops->destroy(&run.backend);
done:
    model_destroy(&model);
    return st;
}

/* ---- progress ---- */

static void publish(struct engine *engine)
{
    const struct running *running = &engine->running;
    struct shared_progress *progress = &engine->progress;
    struct kv_cache_counts counts;
    uint64_t tokens = 0;
    if (running->job != NULL) {
        const uint32_t computed = kv_sequence_tokens(running->sequence), prompt = running->job->prompt_count;
        tokens = (computed < prompt ? prompt - computed : 0) + running->reply_count;
    }
    kv_cache_counts(engine->cache, &counts);
    atomic_store_explicit(&progress->queued_requests, engine->queue.count, memory_order_relaxed);
    atomic_store_explicit(&progress->queued_tokens, engine->queue.prompt_tokens, memory_order_relaxed);
    atomic_store_explicit(&progress->running_requests, running->job != NULL, memory_order_relaxed);
    atomic_store_explicit(&progress->running_tokens, tokens, memory_order_relaxed);
    atomic_store_explicit(&progress->kv_tokens_used, (uint64_t)counts.page_used * BACKEND_PAGE_TOKENS,
                          memory_order_relaxed);
}

static int compare_times(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void record_step(struct engine *engine, uint64_t started_us)
{
    uint32_t sorted[STEP_TIMES];
    const uint64_t steps = atomic_load_explicit(&engine->progress.steps, memory_order_relaxed);
    const uint64_t took = clock_now_us() - started_us;
    const uint32_t count = steps + 1 < STEP_TIMES ? (uint32_t)steps + 1 : STEP_TIMES;
    engine->step_times[steps % STEP_TIMES] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    memcpy(sorted, engine->step_times, sizeof sorted);
    qsort(sorted, count, sizeof sorted[0], compare_times);
    atomic_store_explicit(&engine->progress.step_median_us, sorted[count / 2], memory_order_relaxed);
    atomic_store_explicit(&engine->progress.steps, steps + 1, memory_order_relaxed);
}

void engine_progress(const struct engine *engine, struct engine_progress *out)
{
    const struct shared_progress *progress = &engine->progress;
    *out = (struct engine_progress){
        .steps = atomic_load_explicit(&progress->steps, memory_order_relaxed),
        .step_started_ms = atomic_load_explicit(&progress->step_started_ms, memory_order_relaxed),
        .step_median_us = atomic_load_explicit(&progress->step_median_us, memory_order_relaxed),
        .queued_requests = atomic_load_explicit(&progress->queued_requests, memory_order_relaxed),
        .running_requests = atomic_load_explicit(&progress->running_requests, memory_order_relaxed),
        .queued_tokens = atomic_load_explicit(&progress->queued_tokens, memory_order_relaxed),
        .running_tokens = atomic_load_explicit(&progress->running_tokens, memory_order_relaxed),
        .kv_tokens_used = atomic_load_explicit(&progress->kv_tokens_used, memory_order_relaxed),
        .kv_tokens_max = engine->info.kv_tokens_max,
    };
}

/* ---- submit and cancel ---- */

static struct job *find_job(const struct engine *engine, uint64_t id)
{
    if (engine->running.job != NULL && engine->running.job->id == id)
        return engine->running.job;
    return job_queue_find(&engine->queue, id);
}

static enum status check_request(const struct engine *engine, const struct engine_request *request)
{
    if (!isfinite(request->temperature) || request->temperature < 0 || request->temperature > SAMPLER_TEMPERATURE_MAX)
        return STATUS_FAIL(STATUS_INVALID, "temperature is %g, not 0 to %g", (double)request->temperature,
                           (double)SAMPLER_TEMPERATURE_MAX);
    if (request->message_count > 0 && request->prompt_id_count > 0)
        return STATUS_FAIL(STATUS_INVALID, "a request has messages or prompt ids, not both");
    if (find_job(engine, request->job) != NULL)
        return STATUS_FAIL(STATUS_EXISTS, "a job with the number %llu is open", (unsigned long long)request->job);
    if (job_queue_full(&engine->queue))
        return STATUS_FAIL(STATUS_AGAIN, "%u requests are waiting, no more are taken", engine->queue.count);
    return STATUS_OK;
}

static enum status copy_ids(const struct model_config *config, const struct engine_request *request, struct job *job)
{
    const unsigned count = request->prompt_id_count;
    if (count >= config->context_tokens_max)
        return STATUS_FAIL(STATUS_LIMIT, "the prompt has %u tokens, at most %u are possible", count,
                           config->context_tokens_max - 1);
    for (unsigned i = 0; i < count; i++)
        if (request->prompt_ids[i] >= config->vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "prompt id %u is %u, not below %u", i, request->prompt_ids[i],
                               config->vocab_size);
    job->prompt_ids = malloc(count * sizeof *job->prompt_ids);
    if (job->prompt_ids == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u prompt ids", count);
    memcpy(job->prompt_ids, request->prompt_ids, count * sizeof *job->prompt_ids);
    job->prompt_count = count;
    return STATUS_OK;
}

/* The cache's root: nothing is shared between tenants, or between sets of weights. */
static void build_root(const struct engine *engine, const struct engine_request *request,
                       uint8_t root[KV_CACHE_ROOT_BYTES])
{
    uint8_t input[2 * HASH_DIGEST_BYTES];
    static_assert(KV_CACHE_ROOT_BYTES == HASH_DIGEST_BYTES, "a root is a digest");
    hash_digest(request->tenant, request->tenant_size, NULL, 0, input);
    memcpy(input + HASH_DIGEST_BYTES, engine->model->weights_digest, HASH_DIGEST_BYTES);
    hash_digest(input, sizeof input, NULL, 0, root);
}

enum status engine_submit(struct engine *engine, const struct engine_request *request)
{
    const struct model_config *config = &engine->model->config;
    const struct prompt_source source = {
        .messages = request->messages,
        .message_count = request->message_count,
        .reply_name = request->reply_name,
        .reply_name_size = request->reply_name_size,
    };
    enum status st;
    TRY(check_request(engine, request));
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a job");
    if (request->prompt_id_count > 0)
        TRY_GOTO(copy_ids(config, request, job), st, fail);
    else
        TRY_GOTO(prompt_build(engine->tokenizer, config, &source, config->context_tokens_max - 1, &job->prompt_ids,
                              &job->prompt_count),
                 st, fail);
    const uint32_t room = config->context_tokens_max - job->prompt_count;
    job->reply_max = request->tokens_max != 0 && request->tokens_max < room ? request->tokens_max : room;
    job->id = request->job;
    job->priority = request->priority;
    job->deadline_ms = request->deadline_ms;
    job->submitted_us = clock_now_us();
    build_root(engine, request, job->root);
    job->sampler = (struct sampler){
        .temperature = request->temperature,
        .seed = request->seed_given
                    ? request->seed
                    : sampler_default_seed(request->tenant, request->tenant_size, request->request_id, 0),
        .masked = engine->masked,
        .masked_count = engine->masked_count,
    };
    job_queue_add(&engine->queue, &job);
    publish(engine);
    return STATUS_OK;
fail:
    job_destroy(&job);
    return st;
}

void engine_cancel(struct engine *engine, uint64_t job_id)
{
    struct job *job = find_job(engine, job_id);
    if (job != NULL)
        job->cancelled = true;
}

void engine_forget_cache(struct engine *engine)
{
    kv_cache_forget(engine->cache);
    publish(engine);
}

enum status engine_check(const struct engine *engine)
{
    return kv_cache_check(engine->cache);
}

/* ---- ends ---- */

struct sink {
    engine_event_fn *fn;
    void *user;
};

static void send_failed(const struct sink *sink, uint64_t job, enum status st, const char *detail)
{
    const struct engine_event event = {.kind = ENGINE_FAILED, .job = job, .status = st, .detail = detail};
    sink->fn(sink->user, &event);
}

/* Why a job that waits or runs has to end now; STATUS_OK if it has not. */
static enum status job_ended(const struct job *job, uint64_t now_ms)
{
    if (job->cancelled)
        return STATUS_CANCELLED;
    return job_is_late(job, now_ms) ? STATUS_TIMEOUT : STATUS_OK;
}

static const char *ended_detail(enum status st)
{
    return st == STATUS_CANCELLED ? "the request was cancelled" : "the deadline of the request has passed";
}

static uint32_t span_us(uint64_t from, uint64_t to)
{
    const uint64_t span = to > from ? to - from : 0;
    return span < UINT32_MAX ? (uint32_t)span : UINT32_MAX;
}

/* Empties engine->running, so that a sink may already submit the next request. */
static void running_end(struct engine *engine, bool keep)
{
    struct running *running = &engine->running;
    if (keep)
        kv_cache_keep(engine->cache, &running->sequence);
    else
        kv_cache_drop(engine->cache, &running->sequence);
    job_destroy(&running->job);
    publish(engine);
}

static void fail_running(struct engine *engine, enum status st, const char *detail, const struct sink *sink)
{
    const uint64_t job = engine->running.job->id;
    char words[512];
    snprintf(words, sizeof words, "%s", detail); /* may be status_detail() */
    running_end(engine, st != STATUS_CORRUPT);
    send_failed(sink, job, st, words);
}

static void send_tokens(struct engine *engine, unsigned count, size_t text_size, const struct sink *sink)
{
    struct running *running = &engine->running;
    if (count == 0)
        return;
    const struct engine_event event = {
        .kind = ENGINE_TOKENS,
        .job = running->job->id,
        .first = running->released,
        .ids = running->held_ids,
        .count = count,
        .text = engine->text,
        .text_size = text_size,
    };
    running->released += count;
    sink->fn(sink->user, &event);
    memmove(running->held_ids, running->held_ids + count, running->text.token_count * sizeof running->held_ids[0]);
}

static void finish_running(struct engine *engine, enum engine_finish finish, const struct sink *sink)
{
    struct running *running = &engine->running;
    size_t text_size;
    const unsigned count = utf8_stream_finish(&running->text, engine->text, &text_size);
    send_tokens(engine, count, text_size, sink);
    const uint64_t now_us = clock_now_us();
    const struct engine_event event = {
        .kind = ENGINE_DONE,
        .job = running->job->id,
        .finish = finish,
        .prompt_tokens = running->job->prompt_count,
        .cached_tokens = running->cached,
        .reply_tokens = running->released,
        .queue_us = span_us(running->job->submitted_us, running->started_us),
        .prefill_us = span_us(running->started_us, running->decode_us),
        .decode_us = span_us(running->decode_us, now_us),
    };
    running_end(engine, true);
    sink->fn(sink->user, &event);
}

/* ---- steps ---- */

static bool start_next(struct engine *engine, const struct sink *sink)
{
    struct running *running = &engine->running;
    struct job *job = job_queue_take_best(&engine->queue);
    if (job == NULL)
        return false;
    *running = (struct running){.job = job, .started_us = clock_now_us()};
    const enum status st =
        kv_cache_open(engine->cache, job->root, job->prompt_ids, job->prompt_count, &running->sequence);
    if (st != STATUS_OK) {
        fail_running(engine, st, status_detail(), sink);
        return true;
    }
    running->cached = kv_sequence_matched(running->sequence);
    return true;
}

/* Computes the KV of the next tokens: a chunk of the prompt, or the token drawn last. want_logits is set when they end
 * in the sequence's last known token. */
static enum status compute(struct engine *engine, bool *want_logits)
{
    struct running *running = &engine->running;
    const struct job *job = running->job;
    const uint32_t start = kv_sequence_tokens(running->sequence);
    struct backend_run run = {.tokens = &running->last, .count = 1, .start = start, .logits = engine->logits};
    if (start < job->prompt_count) {
        const uint32_t left = job->prompt_count - start;
        run.tokens = job->prompt_ids + start;
        run.count = left < engine->chunk_tokens ? left : engine->chunk_tokens;
    }
    *want_logits = start + run.count >= job->prompt_count;
    run.logit_rows = *want_logits ? 1 : 0;
    TRY(kv_cache_reserve(engine->cache, running->sequence, start + run.count));
    run.pages = kv_sequence_pages(running->sequence);
    TRY(engine->ops->forward(engine->backend, &run));
    kv_cache_append(engine->cache, running->sequence, run.tokens, run.count);
    return STATUS_OK;
}

static void take_token(struct engine *engine, uint32_t id, const struct sink *sink)
{
    struct running *running = &engine->running;
    size_t size, text_size;
    if (id == engine->model->config.eos_id) {
        finish_running(engine, ENGINE_FINISH_STOP, sink);
        return;
    }
    running->last = id;
    running->reply_count++;
    running->held_ids[running->text.token_count] = id;
    const void *bytes = tokenizer_piece(engine->tokenizer, id, &size);
    const unsigned count = utf8_stream_push(&running->text, bytes, size, engine->text, &text_size);
    send_tokens(engine, count, text_size, sink);
    if (running->reply_count == running->job->reply_max)
        finish_running(engine, ENGINE_FINISH_LENGTH, sink);
}

static void advance(struct engine *engine, const struct sink *sink)
{
    struct running *running = &engine->running;
    bool want_logits;
    uint32_t id;
    enum status st = compute(engine, &want_logits);
    if (st == STATUS_OK && want_logits) {
        if (running->decode_us == 0)
            running->decode_us = clock_now_us();
        st = sampler_pick(&running->job->sampler, engine->logits, engine->model->config.vocab_size,
                          kv_sequence_tokens(running->sequence), &id);
        if (st == STATUS_OK) {
            take_token(engine, id, sink);
            return;
        }
    }
    if (st != STATUS_OK)
        fail_running(engine, st, status_detail(), sink);
}

static bool end_jobs(struct engine *engine, const struct sink *sink)
{
    const uint64_t now_ms = clock_now_ms();
    bool ended = false;
    struct job *job;
    while ((job = job_queue_take_ended(&engine->queue, now_ms)) != NULL) {
        const uint64_t id = job->id;
        const enum status st = job_ended(job, now_ms);
        job_destroy(&job);
        publish(engine);
        send_failed(sink, id, st, ended_detail(st));
        ended = true;
    }
    if (engine->running.job != NULL) {
        const enum status st = job_ended(engine->running.job, now_ms);
        if (st != STATUS_OK) {
            fail_running(engine, st, ended_detail(st), sink);
            ended = true;
        }
    }
    return ended;
}

bool engine_step(struct engine *engine, engine_event_fn *fn, void *user)
{
    const struct sink sink = {fn, user};
    const uint64_t started_us = clock_now_us();
    bool worked = end_jobs(engine, &sink);
    if (engine->running.job == NULL && start_next(engine, &sink))
        worked = true;
    if (engine->running.job == NULL)
        return worked;
    atomic_store_explicit(&engine->progress.step_started_ms, clock_now_ms(), memory_order_relaxed);
    publish(engine);
    advance(engine, &sink);
    publish(engine);
    record_step(engine, started_us);
    atomic_store_explicit(&engine->progress.step_started_ms, 0, memory_order_relaxed);
    return true;
}
