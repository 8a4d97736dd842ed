#include "tests/equality/matrix_run.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "worker/engine/engine.h"

#define VOCABULARY    4096u
#define FIRST_PLAIN   300u            /* beyond control and byte pieces */
#define PROMPT_SHORT  203u
#define PROMPT_LONG   2151u
#define REPLY         12u
#define TARGET        1u              /* its number as a job */
#define STRANGER      100u            /* theirs start here */
#define FLOOD_PROMPT  1100u
#define URGENT_PROMPT 1500u
#define LOST_AFTER    5u              /* tokens drawn by choice 0 when the first worker of a resumed row is lost */

struct run {
    struct engine *engine;
    uint32_t ids[PROMPT_LONG + FLOOD_PROMPT];
    uint64_t next_job;
    struct hash_stream *streams[MATRIX_CHOICES_MAX];   /* NULL: not this choice */
    uint32_t next[MATRIX_CHOICES_MAX];                 /* position whose logits are hashed next: a resume draws again what was not released */
    uint32_t released[MATRIX_CHOICES_MAX];
    uint32_t replies[MATRIX_CHOICES_MAX][REPLY];       /* what was released */
    uint32_t resume_ids[MATRIX_CHOICES_MAX * REPLY];
    uint32_t drawn;                   /* by choice 0 of the target on this engine */
    uint64_t open;                    /* jobs that have not ended */
    enum status failed;
    char detail[256];
    struct matrix_outcome *out;
    char *plan;                       /* of the last steps */
    size_t plan_size;
};

static uint32_t mix(uint32_t seed, uint32_t i)
{
    return (uint32_t)(hash_mix(seed, i) % (VOCABULARY - FIRST_PLAIN)) + FIRST_PLAIN;
}

static void on_logits(void *user, uint64_t job, uint32_t choice, uint32_t position, const float *logits, uint32_t vocab_size)
{
    struct run *run = user;
    if (job != TARGET || choice >= MATRIX_CHOICES_MAX || run->streams[choice] == NULL)
        return;
    run->drawn += choice == 0;
    if (position < run->next[choice])
        return;
    run->next[choice] = position + 1;
    hash_stream_update(run->streams[choice], &position, sizeof position);
    hash_stream_update(run->streams[choice], logits, vocab_size * sizeof *logits);
}

static void on_tokens(struct run *run, const struct engine_event *event)
{
    uint32_t *released = &run->released[event->choice];
    if (event->first != *released || event->count > REPLY - *released) {
        run->failed = STATUS_INTERNAL;
        snprintf(run->detail, sizeof run->detail, "choice %u: %u tokens from %u on, want them from %u on", event->choice, event->count,
                 event->first, *released);
        return;
    }
    memcpy(run->replies[event->choice] + *released, event->ids, event->count * sizeof *event->ids);
    *released += event->count;
    hash_stream_update(run->streams[event->choice], event->ids, event->count * sizeof *event->ids);
}

static void on_event(void *user, const struct engine_event *event)
{
    struct run *run = user;
    if (event->kind == ENGINE_TOKENS && event->job == TARGET)
        on_tokens(run, event);
    if (event->kind == ENGINE_DONE || event->kind == ENGINE_FAILED)
        run->open--;
    if (event->kind == ENGINE_DONE && event->job == TARGET)
        run->out->cached_tokens = event->cached_tokens;
    if (event->kind == ENGINE_FAILED) {
        run->failed = event->status;
        snprintf(run->detail, sizeof run->detail, "job %llu: %s", (unsigned long long)event->job, event->detail);
    }
}

static enum status submit(struct run *run, struct engine_request *request)
{
    TRY(engine_submit(run->engine, request, NULL));
    run->open++;
    return STATUS_OK;
}

static enum status finish(struct run *run)
{
    while (run->open > 0 && run->failed == STATUS_OK)
        engine_step(run->engine, on_event, run);
    return run->failed == STATUS_OK ? STATUS_OK : STATUS_FAIL(run->failed, "%s", run->detail);
}

/* A request that others make: their own tenant, ids and sampling. */
static enum status submit_stranger(struct run *run, uint32_t prompt, uint32_t reply, int32_t priority)
{
    uint32_t ids[URGENT_PROMPT + FLOOD_PROMPT];
    const uint32_t number = (uint32_t)(run->next_job - STRANGER);
    for (uint32_t i = 0; i < prompt; i++)
        ids[i] = mix(77 + number, i);
    struct engine_request request = {
        .job = run->next_job++,
        .tenant = "strangers",
        .tenant_size = 9,
        .prompt_ids = ids,
        .prompt_id_count = prompt,
        .sampling = {.temperature = number % 2 ? 0.9f : 0.0f, .tokens_min = reply},
        .seed = number,
        .seed_given = true,
        .tokens_max = reply,
        .priority = priority,
    };
    return submit(run, &request);
}

static enum status submit_ours(struct run *run, const struct matrix_row *row, uint64_t job, uint32_t prompt)
{
    const bool target = job == TARGET;
    struct engine_request request = {
        .job = job,
        .tenant = "ours",
        .tenant_size = 4,
        .prompt_ids = run->ids,
        .prompt_id_count = prompt,
        .sampling = {.tokens_min = target ? REPLY : 1},
        .seed = 42,
        .seed_given = true,
        .tokens_max = target ? REPLY : 1,
        .choices = target ? matrix_choices(row) : 1,
    };
    if (target && run->released[0] > 0) {
        uint32_t count = 0;
        for (uint32_t choice = 0; choice < request.choices; choice++)
            for (uint32_t i = 0; i < run->released[choice]; i++)
                run->resume_ids[count++] = run->replies[choice][i];
        request.resume_counts = run->released;
        request.resume_ids = run->resume_ids;
    }
    if (row->value[MATRIX_SAMPLING]) {
        request.sampling.temperature = 1.1f;
        request.sampling.top_k = 400;
        request.sampling.top_p = 0.97f;
        request.sampling.min_p = 0.0001f;
        request.sampling.repetition_penalty = 1.1f;
        request.sampling.presence_penalty = 0.2f;
        request.sampling.frequency_penalty = 0.1f;
    }
    return submit(run, &request);
}

/* Others' long prompts, until what was kept before them has had to give way. */
static enum status flood(struct run *run)
{
    for (int i = 0; i < 5; i++) {
        TRY(submit_stranger(run, FLOOD_PROMPT, 1, 0));
        TRY(finish(run));
    }
    return STATUS_OK;
}

static enum status prepare(struct run *run, const struct matrix_row *row, uint32_t prompt)
{
    const enum matrix_state state = row->value[MATRIX_STATE];
    if (state == MATRIX_COLD || state == MATRIX_PREEMPTED || state == MATRIX_RECOMPUTED)
        return STATUS_OK;
    if (state == MATRIX_INSIDE) {
        uint32_t saved[PROMPT_LONG];
        const uint32_t cut = prompt / 2 / 64 * 64 + 29;
        memcpy(saved, run->ids, sizeof saved);
        for (uint32_t i = cut; i < prompt; i++)
            run->ids[i] = mix(5, i);
        TRY(submit_ours(run, row, run->next_job++, cut + 40));
        TRY(finish(run));
        memcpy(run->ids, saved, sizeof saved);
        return STATUS_OK;
    }
    TRY(submit_ours(run, row, run->next_job++, prompt));
    TRY(finish(run));
    return state == MATRIX_CACHED ? STATUS_OK : flood(run);
}

/* While the target decodes, others that come first want the memory. */
static enum status preempt(struct run *run)
{
    FILE *trace = open_memstream(&run->plan, &run->plan_size);
    if (trace == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a trace");
    while (run->drawn < 3 && run->open > 0)
        engine_step(run->engine, on_event, run);
    engine_trace_plans(run->engine, trace);
    enum status st = STATUS_OK;
    for (int i = 0; i < 2 && st == STATUS_OK; i++)
        st = submit_stranger(run, URGENT_PROMPT, 8, 5);
    if (st == STATUS_OK)
        st = finish(run);
    engine_trace_plans(run->engine, NULL);
    fclose(trace);
    run->out->suspended = strstr(run->plan, "suspend") != NULL;
    return st;
}

static enum status create(const char *dir, uint32_t kv_bytes_per_token, const struct matrix_row *row, struct engine **out)
{
    const enum matrix_state state = row->value[MATRIX_STATE];
    const uint64_t sequence = (uint64_t)kv_bytes_per_token * MATRIX_CONTEXT;
    const bool tight = state >= MATRIX_HOST, host = state == MATRIX_HOST || state == MATRIX_PREEMPTED;
    struct engine_config config = {
        .model_dir = dir,
        .kv_bytes = tight ? sequence + sequence / 4 : 24 * sequence,
        .kv_host_bytes = host ? 24 * sequence : 0,
        .chunk_tokens = matrix_chunk(row, MATRIX_CONTEXT),
        .sequences_max = 40,
        .queue_requests_max = 64,
        .rewind_tokens = 256,
        .snapshots_max = UINT32_MAX,
        .threads = row->value[MATRIX_THREADS] + 1,
        .full_depth = row->value[MATRIX_DEPTH],
        .skip_known_answer = true,
    };
    enum status st;
    while ((st = engine_create(&config, out)) == STATUS_LIMIT && config.kv_bytes < 8 * sequence)
        config.kv_bytes += sequence / 4;      /* extents want a little more than the pages */
    return st;
}

/* The first worker of a resumed row: alone and cold, and lost in the middle. */
static enum status lose_worker(struct run *run, const char *dir, uint32_t kv_bytes_per_token, const struct matrix_row *row)
{
    const uint32_t prompt = row->value[MATRIX_PROMPT] ? PROMPT_LONG : PROMPT_SHORT;
    TRY(create(dir, kv_bytes_per_token, row, &run->engine));
    engine_observe_logits(run->engine, on_logits, run);
    TRY(submit_ours(run, row, TARGET, prompt));
    while (run->drawn < LOST_AFTER && run->open > 0)
        engine_step(run->engine, on_event, run);
    engine_destroy(&run->engine);
    if (run->failed != STATUS_OK || run->open == 0 || run->released[0] == 0)
        return STATUS_FAIL(STATUS_INTERNAL, "the first worker released %u tokens: %s", run->released[0], run->detail);
    run->open = run->drawn = 0;
    return STATUS_OK;
}

static enum status run_row(struct run *run, const struct matrix_row *row)
{
    const uint32_t prompt = row->value[MATRIX_PROMPT] ? PROMPT_LONG : PROMPT_SHORT;
    const enum matrix_state state = row->value[MATRIX_STATE];
    TRY(prepare(run, row, prompt));
    engine_observe_logits(run->engine, on_logits, run);
    const uint32_t others = matrix_batch(row) - 1;
    for (uint32_t i = 0; i < others; i++) {                /* half of them before, half behind */
        if (i == others / 2)
            TRY(submit_ours(run, row, TARGET, prompt));
        TRY(submit_stranger(run, 20 + i * 37 % 100, 4 + i % 9, 0));
    }
    if (others == 0)
        TRY(submit_ours(run, row, TARGET, prompt));
    return state == MATRIX_PREEMPTED || state == MATRIX_RECOMPUTED ? preempt(run) : finish(run);
}

enum status matrix_run(const char *dir, uint32_t kv_bytes_per_token, const struct matrix_row *row, struct matrix_outcome *out)
{
    struct run *run = calloc(1, sizeof *run);
    if (run == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a run");
    *out = (struct matrix_outcome){0};
    run->out = out;
    run->next_job = STRANGER;
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < PROMPT_LONG; i++)
        run->ids[i] = mix(1, i);
    for (uint32_t choice = 0; st == STATUS_OK && choice < matrix_choices(row); choice++)
        st = hash_stream_create(NULL, 0, &run->streams[choice]);
    if (st == STATUS_OK && row->value[MATRIX_RESUME])
        st = lose_worker(run, dir, kv_bytes_per_token, row);
    if (st == STATUS_OK)
        st = create(dir, kv_bytes_per_token, row, &run->engine);
    if (st == STATUS_OK)
        st = run_row(run, row);
    if (st == STATUS_OK)
        st = engine_check(run->engine);
    for (uint32_t choice = 0; choice < MATRIX_CHOICES_MAX; choice++)
        if (run->streams[choice] != NULL) {
            hash_stream_final(run->streams[choice], out->choices[choice].bytes);
            hash_stream_destroy(&run->streams[choice]);
        }
    engine_destroy(&run->engine);
    free(run->plan);
    free(run);
    return st;
}

enum status matrix_kv_bytes(const char *dir, uint32_t *bytes)
{
    const struct engine_config config = {
        .model_dir = dir, .kv_bytes = 1ull << 30, .chunk_tokens = 64, .queue_requests_max = 1, .rewind_tokens = 256, .snapshots_max = 8,
        .skip_known_answer = true,
    };
    struct engine *engine = NULL;
    TRY(engine_create(&config, &engine));
    *bytes = engine_info(engine)->kv_bytes_per_token;
    engine_destroy(&engine);
    return STATUS_OK;
}
