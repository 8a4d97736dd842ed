/* engine.c - create, destroy, submit, cancel, and the step:
 *   1. copies that have finished take effect;
 *   2. jobs that are cancelled or late end;
 *   3. the scheduler plans; what it says is carried out; one forward computes the batch (engine_plan.c);
 *   4. each choice whose ids are all computed draws a token; text and ends go out (engine_output.c);
 *   5. ended jobs are freed, progress is published. */
#include "worker/engine/engine.h"
#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "worker/engine/backend/backend_parallel.h"
#include "worker/engine/backend/backend_simulate.h"
#include "worker/engine/engine_internal.h"
#include "worker/engine/model/known_answer.h"
#include "worker/engine/model/model.h"
#include "worker/engine/text/sampler.h"
#include "worker/engine/text/tokenizer.h"

#define CHUNK_TOKENS_MAX      4096u
#define BATCH_TOKENS_MAX      16384u
#define SEQUENCES_DEFAULT     64u
#define STEP_MS_DEFAULT       250u
#define STEP_MS_MAX           3600000u
#define QUEUE_REQUESTS_MAX    65536u
#define REWIND_TOKENS_DEFAULT 1024u
#define SNAPSHOTS_DEFAULT     8u
#define LOGITS_BYTES_MAX                                                                                               \
    ((uint64_t)2 << 30) /* 1,024 sequences of 262,144 ids are 1 GiB; touched only as far as sequences run */

/* ---- create and destroy ---- */

static uint32_t or_default(uint32_t value, uint32_t none, uint32_t standard)
{
    return value != none ? value : standard;
}

static enum status check_range(const char *name, uint32_t value, uint32_t least, uint32_t most)
{
    if (value < least || value > most)
        return STATUS_FAIL(STATUS_INVALID, "%s is %u, not %u to %u", name, value, least, most);
    return STATUS_OK;
}

static enum status check_config(const struct engine_config *config)
{
    if (config->model_dir == NULL)
        return STATUS_FAIL(STATUS_INVALID, "no model directory is given");
    TRY(check_range("chunk_tokens", config->chunk_tokens, 1, CHUNK_TOKENS_MAX));
    if (config->batch_tokens != 0)
        TRY(check_range("batch_tokens", config->batch_tokens, config->chunk_tokens, BATCH_TOKENS_MAX));
    if (config->sequences_max != 0)
        TRY(check_range("sequences_max", config->sequences_max, 1, SCHEDULER_SEQUENCES_MAX));
    if (config->step_ms_max != 0)
        TRY(check_range("step_ms_max", config->step_ms_max, 1, STEP_MS_MAX));
    TRY(check_range("queue_requests_max", config->queue_requests_max, 1, QUEUE_REQUESTS_MAX));
    if (config->threads != 0)
        TRY(check_range("threads", config->threads, 1, BACKEND_THREADS_MAX));
    return STATUS_OK;
}

static enum status load_model(const struct engine_config *config, struct model **out)
{
    uint8_t identity[SIMULATE_IDENTITY_BYTES];
    if (config->simulate == NULL)
        return model_load(config->model_dir, out);
    simulate_profile_identity(config->simulate, identity);
    TRY(model_load_shape(config->model_dir, identity, sizeof identity, out));
    if (config->simulate->context > 0)
        (*out)->config.context_tokens_max = (uint32_t)config->simulate->context;
    return STATUS_OK;
}

static enum status open_tokenizer(const char *dir, const struct model_config *config, struct tokenizer **out)
{
    const struct tokenizer_config wanted = {
        .vocab_size = config->vocab_size,
        .bos_id = config->bos_id,
        .turn_id = config->turn_id,
        .text_id = config->text_id,
        .end_ids = config->end_ids,
        .end_id_count = config->end_id_count,
    };
    char path[4096];
    const int length = snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    if (length < 0 || (size_t)length >= sizeof path)
        return STATUS_FAIL(STATUS_INVALID, "the path of the model directory is too long");
    return tokenizer_open(path, &wanted, out);
}

static bool is_end_id(const struct model_config *config, uint32_t id)
{
    for (uint32_t i = 0; i < config->end_id_count; i++)
        if (config->end_ids[i] == id)
            return true;
    return false;
}

static enum status build_mask(struct engine *engine)
{
    const struct model_config *config = &engine->model->config;
    engine->masked = calloc(config->vocab_size, sizeof *engine->masked);
    if (engine->masked == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a mask of %u ids", config->vocab_size);
    for (uint32_t id = 0; id < config->vocab_size; id++) {
        size_t size;
        (void)tokenizer_piece(engine->tokenizer, id, &size);
        if (size == 0 && !is_end_id(config, id))
            engine->masked[engine->masked_count++] = id;
    }
    return STATUS_OK;
}

/* Sequences: those that run, as many suspended ones, the choices of one more job, and background work. */
static enum status make_tables(struct engine *engine)
{
    const uint32_t sequences = engine->sequences_max, vocab_size = engine->model->config.vocab_size;
    const uint64_t logits_bytes = (uint64_t)sequences * vocab_size * sizeof(float);
    if (logits_bytes > LOGITS_BYTES_MAX)
        return STATUS_FAIL(
            STATUS_LIMIT,
            "the logits of %u sequences of %u ids are %llu bytes, at most %llu are taken: lower sequences_max",
            sequences, vocab_size, (unsigned long long)logits_bytes, (unsigned long long)LOGITS_BYTES_MAX);
    engine->slots_max = 2 * sequences + ENGINE_CHOICES_MAX + 1;
    engine->slots = calloc(engine->slots_max, sizeof *engine->slots);
    engine->free_slots = calloc(engine->slots_max, sizeof *engine->free_slots);
    engine->entries = calloc(engine->slots_max + SCHEDULER_WAITING_MAX, sizeof *engine->entries);
    engine->runs = calloc(sequences, sizeof *engine->runs);
    engine->batch = calloc(sequences, sizeof *engine->batch);
    engine->logits = malloc(logits_bytes);
    if (engine->slots == NULL || engine->free_slots == NULL || engine->entries == NULL || engine->runs == NULL ||
        engine->batch == NULL || engine->logits == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u sequences", sequences);
    for (uint32_t i = 0; i < engine->slots_max; i++)
        engine->free_slots[engine->free_count++] = engine->slots_max - 1 - i;
    return STATUS_OK;
}

static enum status make_backend(struct engine *engine, const struct engine_config *config)
{
    const struct backend_config backend = {
        .rows_max = engine->rows_max,
        .threads = or_default(config->threads, 0, 1),
        .full_depth = config->full_depth,
        .masked = engine->masked,
        .masked_count = engine->masked_count,
        .group = config->group,
        .simulate = config->simulate,
    };
    return engine->ops->create(engine->model, &backend, &engine->backend);
}

/* Of conversations at full context. */
static uint64_t simulated_bytes(const struct kv_cache_config *cache, uint64_t tokens)
{
    uint64_t bytes[BACKEND_GROUPS_MAX];
    const uint64_t one = kv_cache_formula(cache, cache->sequence_tokens_max, NULL, 0, bytes);
    return (uint64_t)((double)tokens / cache->sequence_tokens_max * (double)one);
}

void engine_tell_fate(struct engine *engine, const uint8_t *conversation, enum engine_event_kind kind)
{
    struct engine_event event = {.kind = kind};
    memcpy(event.conversation, conversation, sizeof event.conversation);
    if (engine->sink != NULL) /* else somebody forgets the whole cache between two steps */
        engine_send(engine, &event);
}

static void on_fate(void *user, const uint8_t *label, enum kv_fate fate)
{
    static_assert(ENGINE_CONVERSATION_BYTES == KV_CACHE_LABEL_BYTES, "a label is a conversation's name");
    engine_tell_fate(user, label,
                     fate == KV_FATE_HOST     ? ENGINE_DEMOTED
                     : fate == KV_FATE_DEVICE ? ENGINE_PROMOTED
                                              : ENGINE_EVICTED);
}

static enum status make_cache(struct engine *engine, const struct engine_config *config)
{
    const struct model_config *model = &engine->model->config;
    struct kv_cache_config *cache = &engine->cache_config;
    *cache = (struct kv_cache_config){
        .ops = engine->ops,
        .backend = engine->backend,
        .device_bytes = config->kv_bytes,
        .host_bytes = config->kv_host_bytes,
        .sequence_tokens_max = model->context_tokens_max,
        .open_max = engine->slots_max,
        .chunk_tokens_max = engine->chunk_tokens,
        .rewind_tokens = or_default(config->rewind_tokens, UINT32_MAX, REWIND_TOKENS_DEFAULT),
        .snapshots_max = or_default(config->snapshots_max, UINT32_MAX, SNAPSHOTS_DEFAULT),
        .on_fate = on_fate,
        .fate_user = engine,
    };
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
        cache->groups[group] = (struct kv_group_config){
            .page_bytes = engine->ops->page_bytes(engine->backend, group),
            .window = model->attention[group].window,
            .sinks = model->attention[group].sinks,
        };
        engine->page_bytes += cache->groups[group].page_bytes;
    }
    if (config->simulate == NULL || config->simulate->kv_tokens == 0)
        return kv_homes_create(cache, &engine->homes);
    cache->device_bytes = simulated_bytes(cache, config->simulate->kv_tokens);
    const enum status st = kv_homes_create(cache, &engine->homes);
    if (st != STATUS_LIMIT)
        return st;
    return STATUS_FAIL(st,
                       "simulate: kv_tokens=%llu is not enough for a conversation of %u tokens: raise it to twice the "
                       "context, or lower context",
                       (unsigned long long)config->simulate->kv_tokens, model->context_tokens_max);
}

static void build_info(struct engine *engine)
{
    struct {
        uint8_t weights_digest[HASH_DIGEST_BYTES];
        uint8_t revision[4];
        char backend[32];
    } input = {0};
    struct engine_info *info = &engine->info;
    uint64_t bytes[BACKEND_GROUPS_MAX];
    memcpy(input.weights_digest, engine->model->weights_digest, sizeof input.weights_digest);
    for (unsigned i = 0; i < 4; i++)
        input.revision[i] = (uint8_t)(MODEL_NUMERICS_REVISION >> (8 * i));
    snprintf(input.backend, sizeof input.backend, "%s", engine->ops->bits);
    hash_digest(&input, sizeof input, NULL, 0, info->numerics_id);
    info->model_name = engine->model->config.name;
    memcpy(info->weights_digest, engine->model->weights_digest, sizeof info->weights_digest);
    info->context_tokens_max = engine->model->config.context_tokens_max;
    const uint64_t one = kv_cache_formula(&engine->cache_config, info->context_tokens_max, NULL, 0, bytes);
    const double conversations =
        (double)(engine->cache_config.device_bytes + engine->cache_config.host_bytes) / (double)one;
    info->kv_tokens_max = (uint64_t)(conversations * info->context_tokens_max);
    info->kv_bytes_per_token = (uint32_t)(engine->page_bytes / BACKEND_PAGE_TOKENS);
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

static void take_sizes(struct engine *engine, const struct engine_config *config)
{
    const struct backend_ops *standard = config->simulate != NULL ? &backend_simulate_ops
                                         : config->group != NULL  ? &backend_parallel_ops
                                                                  : &backend_cpu_ops;
    engine->ops = config->backend != NULL ? config->backend : standard;
    engine->chunk_tokens = config->chunk_tokens;
    engine->sequences_max = or_default(config->sequences_max, 0, SEQUENCES_DEFAULT);
    engine->rows_max = or_default(config->batch_tokens, 0, config->chunk_tokens + engine->sequences_max);
    if (engine->rows_max < engine->sequences_max + 1) /* all decode, and prefill goes on */
        engine->rows_max = engine->sequences_max + 1;
    step_pace_init(&engine->pace, or_default(config->step_ms_max, 0, STEP_MS_DEFAULT));
}

enum status engine_create(const struct engine_config *config, struct engine **out)
{
    enum status st;
    TRY(check_config(config));
    struct engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for an engine");
    take_sizes(engine, config);
    TRY_GOTO(load_model(config, &engine->model), st, fail);
    TRY_GOTO(open_tokenizer(config->model_dir, &engine->model->config, &engine->tokenizer), st, fail);
    TRY_GOTO(build_mask(engine), st, fail);
    TRY_GOTO(make_tables(engine), st, fail);
    TRY_GOTO(sampler_create(engine->model->config.vocab_size, &engine->sampler), st, fail);
    TRY_GOTO(make_backend(engine, config), st, fail);
    TRY_GOTO(make_cache(engine, config), st, fail);
    TRY_GOTO(job_queue_create(&engine->queue, config->queue_requests_max), st, fail);
    if (!config->skip_known_answer && config->simulate == NULL)
        TRY_GOTO(check_known_answer(config->model_dir, engine), st, fail);
    build_info(engine);
    *out = engine;
    return STATUS_OK;
fail:
    engine_destroy(&engine);
    return st;
}

static void free_jobs(struct job **list)
{
    struct job *job, *next;
    DL_FOREACH_SAFE(*list, job, next)
    {
        DL_DELETE(*list, job);
        job_destroy(&job);
    }
}

void engine_destroy(struct engine **pointer)
{
    struct engine *engine = *pointer;
    if (engine == NULL)
        return;
    HASH_CLEAR(hh, engine->open);
    kv_homes_destroy(&engine->homes); /* and the open sequences */
    free_jobs(&engine->active);
    free_jobs(&engine->ended);
    engine_idle_forget(engine);
    job_queue_destroy(&engine->queue);
    if (engine->backend != NULL)
        engine->ops->destroy(&engine->backend);
    sampler_destroy(&engine->sampler);
    tokenizer_close(&engine->tokenizer);
    model_destroy(&engine->model);
    free(engine->slots);
    free(engine->free_slots);
    free(engine->entries);
    free(engine->runs);
    free(engine->batch);
    free(engine->logits);
    free(engine->score_logits);
    free(engine->masked);
    free(engine);
    *pointer = NULL;
}

const struct engine_info *engine_info(const struct engine *engine)
{
    return &engine->info;
}

enum status engine_seal(const char *model_dir)
{
    const struct backend_config config = {.rows_max = KNOWN_ANSWER_PROMPT_IDS, .threads = 1};
    struct known_answer_run run = {.ops = &backend_cpu_ops, .chunk_tokens = KNOWN_ANSWER_PROMPT_IDS};
    struct model *model = NULL;
    enum status st;
    TRY(model_load(model_dir, &model));
    run.model = model;
    TRY_GOTO(run.ops->create(model, &config, &run.backend), st, done);
    st = known_answer_write(model_dir, &run);
    run.ops->destroy(&run.backend);
done:
    model_destroy(&model);
    return st;
}

/* ---- progress ---- */

static void publish_queue(struct engine *engine)
{
    struct shared_progress *progress = &engine->progress;
    atomic_store_explicit(&progress->queued_requests, engine->queue.count, memory_order_relaxed);
    atomic_store_explicit(&progress->queued_tokens, engine->queue.prompt_tokens, memory_order_relaxed);
}

static void publish_cache(struct engine *engine)
{
    struct kv_cache_counts counts;
    double total = 0, used = 0;
    kv_homes_counts(engine->homes, &counts);
    for (int tier = 0; tier < (int)BACKEND_TIERS; tier++) {
        total += (double)counts.tiers[tier].total;
        used += (double)(counts.tiers[tier].total - counts.tiers[tier].free);
    }
    const uint64_t tokens = (uint64_t)(used / total * (double)engine->info.kv_tokens_max);
    atomic_store_explicit(&engine->progress.kv_tokens_used, tokens, memory_order_relaxed);
}

static void publish(struct engine *engine)
{
    struct shared_progress *progress = &engine->progress;
    const struct job *job;
    uint64_t tokens = 0;
    uint32_t jobs = 0;
    DL_FOREACH(engine->active, job)
    jobs++;
    for (uint32_t i = 0; i < engine->slot_end; i++) {
        const struct choice *choice = engine->slots[i];
        if (choice == NULL || choice->job->idle)
            continue;
        const uint32_t computed = choice->sequence != NULL ? kv_sequence_tokens(choice->sequence) : 0;
        const uint32_t prompt = choice->job->prompt.count;
        tokens += (computed < prompt ? prompt - computed : 0) + choice_reply_count(choice);
    }
    publish_queue(engine);
    publish_cache(engine);
    atomic_store_explicit(&progress->running_requests, jobs, memory_order_relaxed);
    atomic_store_explicit(&progress->running_tokens, tokens, memory_order_relaxed);
}

static int compare_times(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void record_step(struct engine *engine, uint64_t started_us)
{
    uint32_t sorted[ENGINE_STEP_TIMES];
    const uint64_t steps = atomic_load_explicit(&engine->progress.steps, memory_order_relaxed);
    const uint64_t took = clock_now_us() - started_us;
    const uint32_t count = steps + 1 < ENGINE_STEP_TIMES ? (uint32_t)steps + 1 : ENGINE_STEP_TIMES;
    engine->step_times[steps % ENGINE_STEP_TIMES] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    memcpy(sorted, engine->step_times, sizeof sorted);
    qsort(sorted, count, sizeof sorted[0], compare_times);
    atomic_store_explicit(&engine->progress.step_median_us, sorted[count / 2], memory_order_relaxed);
    atomic_store_explicit(&engine->progress.steps, steps + 1, memory_order_relaxed);
}

bool engine_health(const struct engine *engine, struct backend_health *out)
{
    return engine->ops->health != NULL && engine->ops->health(engine->backend, out);
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

void engine_pressure(const struct engine *engine, struct engine_pressure *out)
{
    struct kv_cache_counts counts;
    kv_homes_counts(engine->homes, &counts);
    *out = (struct engine_pressure){
        .suspended = engine->suspensions,
        .demoted = counts.demoted,
        .promoted = counts.promoted,
        .evicted = counts.evicted_snapshots + counts.evicted_rewinds + counts.evicted_leaves,
    };
}

void engine_trace_plans(struct engine *engine, FILE *out)
{
    engine->trace = out;
}

void engine_observe_logits(struct engine *engine, engine_logits_fn *fn, void *user)
{
    engine->observer = fn;
    engine->observer_user = user;
}

/* ---- submit and cancel ---- */

static struct job *find_job(const struct engine *engine, uint64_t id)
{
    struct job *job;
    HASH_FIND(hh, engine->open, &id, sizeof id, job);
    return job;
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

enum status engine_submit(struct engine *engine, const struct engine_request *request, uint32_t *retry_after_ms)
{
    const struct job_limits limits = {
        .config = &engine->model->config,
        .tokenizer = engine->tokenizer,
        .masked = engine->masked,
        .masked_count = engine->masked_count,
    };
    struct job *job = NULL;
    if (find_job(engine, request->job) != NULL)
        return STATUS_FAIL(STATUS_EXISTS, "a job with the number %llu is open", (unsigned long long)request->job);
    if (job_queue_full(&engine->queue)) {
        const uint32_t wait_ms = step_pace_refused(&engine->pace, clock_now_ms());
        if (retry_after_ms != NULL)
            *retry_after_ms = wait_ms;
        return STATUS_FAIL(STATUS_AGAIN, "%u requests are waiting, no more are taken; try again in %u ms",
                           engine->queue.count, wait_ms);
    }
    TRY(job_create(&limits, request, &job));
    build_root(engine, request, job->root);
    HASH_ADD(hh, engine->open, id, sizeof job->id, job);
    if (job->hh.tbl == NULL) { /* how uthash says that it had no memory */
        job_destroy(&job);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for another job");
    }
    job->arrival = engine->arrivals++;
    job_queue_add(&engine->queue, &job);
    publish_queue(engine);
    return STATUS_OK;
}

void engine_cancel(struct engine *engine, uint64_t job_id)
{
    struct job *job = find_job(engine, job_id);
    if (job != NULL && job->rank_place != JOB_NOT_QUEUED)
        job_queue_cancel(&engine->queue, job);
    else if (job != NULL)
        job->cancelled = true;
}

void engine_forget_cache(struct engine *engine)
{
    kv_homes_forget(engine->homes);
    publish_cache(engine);
}

enum status engine_check(const struct engine *engine)
{
    return kv_homes_check(engine->homes);
}

/* ---- the step ---- */

void engine_send(struct engine *engine, const struct engine_event *event)
{
    engine->sink(engine->sink_user, event);
}

static bool end_jobs(struct engine *engine)
{
    const uint64_t now_ms = clock_now_ms();
    static const char cancelled[] = "the request was cancelled", late[] = "the deadline of the request has passed";
    bool ended = false;
    struct job *job, *next;
    /* What the sink submits meanwhile has its turn in the next step, late or not. */
    for (uint32_t left = engine->queue.count; left > 0; left--) {
        if ((job = job_queue_take_ended(&engine->queue, now_ms)) == NULL)
            break;
        engine_fail_waiting(engine, job, job->cancelled ? STATUS_CANCELLED : STATUS_TIMEOUT,
                            job->cancelled ? cancelled : late);
        ended = true;
    }
    DL_FOREACH_SAFE(engine->active, job, next)
    {
        if (!job->cancelled && job->deadline_ms > now_ms)
            continue;
        engine_fail_job(engine, job, job->cancelled ? STATUS_CANCELLED : STATUS_TIMEOUT,
                        job->cancelled ? cancelled : late);
        ended = true;
    }
    return ended;
}

enum status engine_lost(const struct engine *engine)
{
    return engine->lost ? STATUS_FAIL(STATUS_CLOSED, "%s", engine->lost_detail) : STATUS_OK;
}

bool engine_step(struct engine *engine, engine_event_fn *fn, void *user)
{
    const uint64_t started_us = clock_now_us();
    engine->sink = fn;
    engine->sink_user = user;
    (void)kv_homes_poll(engine->homes);
    bool worked = end_jobs(engine);
    atomic_store_explicit(&engine->progress.step_started_ms, clock_now_ms(), memory_order_relaxed);
    if (engine_plan_step(engine)) {
        worked = true;
        if (engine->run_count > 0)
            record_step(engine, started_us);
        else
            (void)sched_yield(); /* only copies are under way: let them have the processor */
    }
    free_jobs(&engine->ended);
    publish(engine);
    engine->sink = NULL;
    atomic_store_explicit(&engine->progress.step_started_ms, 0, memory_order_relaxed);
    return worked;
}
