/* bench-scheduler.c - what a step costs beside its forward, with many sequences running.
 *
 *     bench-scheduler MODEL_DIR [--sequences N] [--steps N]
 *
 * First scheduler_plan alone, over tables of 256 and of 1,024 sequences that decode, prefill, wait and are suspended.
 * Then an engine with N sequences that all decode: the time of each step, the part of it inside the backend's forward
 * (the backend's table is wrapped to take the time), and the rest: table, plan, page bookkeeping, drawing tokens, text
 * and events; then the same with a full queue of QUEUED requests behind them, and what submit and cancel cost there. How much of the rest is drawing is measured by drawing as often from one row. The last line is JSON with
 * the same figures. */
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "tests/bench/bench.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/engine.h"
#include "worker/engine/scheduler.h"

#define PLANS         2000u
#define PROMPT_TOKENS 96u
#define PAGE_BYTES    4096u
#define QUEUED        65536u /* the most that may wait */

static struct backend_ops timed_ops;
static uint64_t forward_us;

static enum status timed_forward(struct backend *backend, const struct backend_batch *batch, uint32_t *failed_run)
{
    const uint64_t started_us = clock_now_us();
    const enum status st = backend_cpu_ops.forward(backend, batch, failed_run);
    forward_us += clock_now_us() - started_us;
    return st;
}

/* ---- the plan alone ---- */

static void fill(struct scheduler_entry *entries, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t tokens = 100 + i * 7919u % 4000u, kind = i % 16;
        struct scheduler_entry *entry = &entries[i];
        *entry = (struct scheduler_entry){
            .id = i,
            .state = kind < 13    ? SCHEDULER_DECODE
                     : kind == 13 ? SCHEDULER_PREFILL
                     : kind == 14 ? SCHEDULER_SUSPENDED
                                  : SCHEDULER_WAITING,
            .priority = (int32_t)(i * 31u % 3u),
            .arrival = i * 2654435761u % 65536u,
            .tokens_left = kind < 13 ? 1 : 500,
            .tokens = tokens,
            .bytes_held = (uint64_t)PAGE_BYTES * (tokens / 64 + 1),
            .bytes_next_token = tokens % 64 == 0 ? PAGE_BYTES : 0,
            .bytes_total = (uint64_t)PAGE_BYTES * (tokens / 64 + 9),
            .bytes_per_page = PAGE_BYTES,
        };
    }
}

static double plan_us(uint32_t count, uint64_t room)
{
    static struct scheduler_entry entries[SCHEDULER_ENTRIES_MAX];
    static struct scheduler_plan plan;
    const struct scheduler_limits limits = {.tokens_budget = 1024 + count,
                                            .chunk_tokens_max = 256,
                                            .sequences_max = count,
                                            .bytes_room = room,
                                            .bytes_reserve = 100 * PAGE_BYTES};
    static double times[PLANS];
    fill(entries, count);
    for (uint32_t i = 0; i < PLANS; i += 10) {
        const uint64_t started_us = clock_now_us();
        for (uint32_t n = 0; n < 10; n++)
            scheduler_plan(entries, count, &limits, &plan);
        times[i / 10] = (double)(clock_now_us() - started_us) / 10;
    }
    return bench_median(times, PLANS / 10);
}

/* ---- steps of an engine ---- */

struct talkers {
    uint32_t sequences, steps;
    uint32_t released, failed;
    double *step_us, *forward_us, *rest_us; /* (steps) */
    double queued_rest_us, submit_us, cancel_us; /* with a full queue */
};

static void on_event(void *user, const struct engine_event *event)
{
    struct talkers *talkers = user;
    talkers->released += event->kind == ENGINE_TOKENS ? event->count : 0;
    talkers->failed += event->kind == ENGINE_FAILED;
}

static enum status submit(struct engine *engine, uint32_t first, uint32_t count, uint32_t vocab_size)
{
    uint32_t ids[PROMPT_TOKENS];
    for (uint32_t job = first; job < first + count; job++) {
        for (uint32_t i = 0; i < PROMPT_TOKENS; i++)
            ids[i] = 5 + (job * 7919u + i * 104729u) % (vocab_size - 5);
        const struct engine_request request = {
            .job = job,
            .prompt_ids = ids,
            .prompt_id_count = PROMPT_TOKENS,
            .tokens_max = 1000000,
            .sampling = {.tokens_min = 1000000},
        };
        TRY(engine_submit(engine, &request, NULL));
    }
    return STATUS_OK;
}

static enum status time_steps(struct engine *engine, struct talkers *talkers)
{
    for (uint32_t i = 0; i < talkers->steps; i++) {
        const uint64_t started_us = clock_now_us();
        const uint32_t released = talkers->released;
        forward_us = 0;
        engine_step(engine, on_event, talkers);
        talkers->step_us[i] = (double)(clock_now_us() - started_us);
        talkers->forward_us[i] = (double)forward_us;
        talkers->rest_us[i] = talkers->step_us[i] - talkers->forward_us[i];
        if (talkers->failed > 0 || talkers->released - released > talkers->sequences)
            return STATUS_FAIL(STATUS_INTERNAL, "a step did something else than one token each");
    }
    return STATUS_OK;
}

/* All places are taken, so the queue stays as it is. Leaves the first times as they were. */
static enum status run_queued(struct engine *engine, struct talkers *talkers, uint32_t vocab_size)
{
    struct talkers behind = {.sequences = talkers->sequences, .steps = talkers->steps, .released = talkers->released};
    uint64_t started_us = clock_now_us();
    TRY(submit(engine, talkers->sequences, QUEUED, vocab_size));
    talkers->submit_us = (double)(clock_now_us() - started_us) / QUEUED;
    behind.step_us = calloc(3 * (size_t)behind.steps, sizeof(double));
    if (behind.step_us == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the times");
    behind.forward_us = behind.step_us + behind.steps;
    behind.rest_us = behind.forward_us + behind.steps;
    const enum status st = time_steps(engine, &behind);
    if (st == STATUS_OK)
        talkers->queued_rest_us = bench_median(behind.rest_us, behind.steps);
    free(behind.step_us);
    started_us = clock_now_us();
    for (uint32_t job = 0; job < QUEUED; job++) /* in another order than they came */
        engine_cancel(engine, talkers->sequences + job * 40503u % QUEUED);
    engine_step(engine, on_event, talkers);
    talkers->cancel_us = (double)(clock_now_us() - started_us) / QUEUED;
    return st;
}

/* Until every one has spoken; then the steps that count. */
static enum status run(struct engine *engine, struct talkers *talkers, uint32_t vocab_size)
{
    struct engine_progress progress;
    do {
        if (!engine_step(engine, on_event, talkers) || talkers->failed > 0)
            return STATUS_FAIL(STATUS_INTERNAL, "a request ended before its time");
        engine_progress(engine, &progress);
        bench_progress("%u of %u sequences run", progress.running_requests, talkers->sequences);
    } while (progress.queued_requests > 0 || progress.running_tokens > talkers->released);
    TRY(time_steps(engine, talkers));
    return run_queued(engine, talkers, vocab_size);
}

static enum status bench_engine(const char *dir, struct talkers *talkers, uint32_t vocab_size)
{
    struct engine *engine = NULL;
    struct engine_config config = {
        .model_dir = dir,
        .kv_bytes = (uint64_t)1 << 30,
        .chunk_tokens = 256,
        .batch_tokens = 1024 + talkers->sequences,
        .sequences_max = talkers->sequences,
        .step_ms_max = 3600000,
        .queue_requests_max = QUEUED,
        .rewind_tokens = UINT32_MAX,
        .snapshots_max = UINT32_MAX,
        .backend = &timed_ops,
    };
    timed_ops = backend_cpu_ops;
    timed_ops.forward = timed_forward;
    TRY(engine_create(&config, &engine));
    enum status st = submit(engine, 0, talkers->sequences, vocab_size);
    if (st == STATUS_OK)
        st = run(engine, talkers, vocab_size);
    engine_destroy(&engine);
    return st;
}

/* As often as sequences draw in a step, greedy. */
static enum status bench_draw(uint32_t sequences, uint32_t vocab_size, double *us)
{
    struct sampler *sampler = NULL;
    const struct sampler_options options = {0};
    const uint32_t ids[1] = {1};
    const struct sampler_history history = {.ids = ids, .prompt_count = 1, .count = 1};
    double times[32];
    float *logits = malloc(vocab_size * sizeof *logits);
    TRY(sampler_create(vocab_size, &sampler));
    for (uint32_t i = 0; i < vocab_size; i++)
        logits[i] = (float)(i * 2654435761u >> 8) * 1e-6f;
    for (uint32_t i = 0; i < 32; i++) {
        const uint64_t started_us = clock_now_us();
        uint32_t id;
        for (uint32_t n = 0; n < sequences; n++)
            TRY(sampler_pick(sampler, &options, &history, logits, &id));
        times[i] = (double)(clock_now_us() - started_us);
    }
    *us = bench_median(times, 32);
    sampler_destroy(&sampler);
    free(logits);
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    struct talkers talkers = {.sequences = 256, .steps = 32};
    const struct bench_options options = {"bench-scheduler", "MODEL_DIR [--sequences N] [--steps N]"};
    const struct bench_flag flags[] = {
        {"--sequences", &talkers.sequences, 1, SCHEDULER_SEQUENCES_MAX}, {"--steps", &talkers.steps, 1, 256}, {0}};
    const char *dir = bench_arguments(&options, argc, argv, flags);
    uint32_t vocab_size = 0;
    double draw_us = 0;
    talkers.step_us = calloc(talkers.steps, sizeof(double));
    talkers.forward_us = calloc(talkers.steps, sizeof(double));
    talkers.rest_us = calloc(talkers.steps, sizeof(double));
    const double plan256 = plan_us(256, (uint64_t)1 << 30), plan1024 = plan_us(1024, (uint64_t)1 << 30);
    const double tight1024 = plan_us(1024, 0);
    printf("scheduler_plan: %.1f us at 256 entries, %.1f us at 1,024, %.1f us at 1,024 without room\n", plan256,
           plan1024, tight1024);
    enum status st = bench_vocabulary(dir, &vocab_size);
    if (st == STATUS_OK)
        st = bench_engine(dir, &talkers, vocab_size);
    if (st == STATUS_OK)
        st = bench_draw(talkers.sequences, vocab_size, &draw_us);
    if (st == STATUS_OK) {
        const double step = bench_median(talkers.step_us, talkers.steps),
                     forward = bench_median(talkers.forward_us, talkers.steps);
        const double rest = bench_median(talkers.rest_us, talkers.steps);
        const double scheduling = rest > draw_us ? rest - draw_us : 0;
        printf("a step of %u sequences that decode: %.0f us; forward %.0f us; the rest %.0f us (%.1f%%), of it drawing "
               "%.0f us,\n"
               "scheduling, pages, text and events %.0f us (%.2f%% of the forward)\n",
               talkers.sequences, step, forward, rest, 100 * rest / step, draw_us, scheduling,
               100 * scheduling / forward);
        printf("with %u requests waiting: the rest %.0f us; submit %.1f us, cancel and its end %.1f us a request\n", QUEUED,
               talkers.queued_rest_us, talkers.submit_us, talkers.cancel_us);
        bench_json_begin(stdout, &options, argc, argv);
        printf(",\"plan_256_us\":%.1f,\"plan_1024_us\":%.1f,\"plan_1024_no_room_us\":%.1f,\"sequences\":%u,\"step_us\":"
               "%.0f,"
               "\"forward_us\":%.0f,\"rest_us\":%.0f,\"draw_us\":%.0f,\"queued_rest_us\":%.0f,\"submit_us\":%.2f,"
               "\"cancel_us\":%.2f}\n",
               plan256, plan1024, tight1024, talkers.sequences, step, forward, rest, draw_us, talkers.queued_rest_us,
               talkers.submit_us, talkers.cancel_us);
    } else {
        fprintf(stderr, "bench-scheduler: %s\n", status_detail());
    }
    free(talkers.step_us);
    free(talkers.forward_us);
    free(talkers.rest_us);
    return st == STATUS_OK ? 0 : 1;
}
