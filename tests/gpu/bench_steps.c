/* bench_steps.c - whole steps of a model of random weights through the CUDA backend's table: decode at batch 1 and 64, a prompt on a miss and on a hit,
 * on the device and in the host's memory. By the host's clock around forward, so all of the host's part is in: checks, tables, plans, copies of logits. */
#include <stdlib.h>
#include <string.h>
#include "bench.h"
#include "common/status.h"
#include "tests/unit/worker/random_model.h"
#include "worker/engine/backend/cuda/backend_cuda.h"
#include "worker/engine/model/model.h"

#define BATCH_MAX 64u
#define PAGES_MAX 160u
#define KERNELS_A_LAYER 14u            /* of a sandwich layer: four products, attention (its merge counts there), nine others */

struct plan {
    struct random_model shape;
    uint32_t prompt, chunk, fresh;     /* of the miss, of a chunk, of the hit's own tokens */
    uint32_t batch, context;           /* of the large decode batch */
    uint32_t steps;
};

struct talk {
    void *pages[BACKEND_GROUPS_MAX][PAGES_MAX];
};

struct scene {
    struct bench *bench;
    struct plan plan;
    struct model *model;
    struct backend *backend;
    void *arenas[BACKEND_GROUPS_MAX], *on_host[BACKEND_GROUPS_MAX];    /* the second: pages of the prompt */
    struct talk talks[BATCH_MAX + 1];  /* 0: the one of the prompt */
    uint32_t *tokens;
};

static const struct backend_ops *const ops_ = &backend_cuda_ops;

static struct plan plan_real(void)
{
    return (struct plan){
        .shape = {.name = "4b-like", .seed = 1, .vocab_size = 262144, .hidden_size = 2560, .intermediate_size = 10240, .head_count = 8,
                  .kv_head_count = 4, .head_dim = 256, .context_tokens = 16384, .window = 1024, .layers = "LLLLLGLLLLLGLLLLLGLLLLLGLLLLLGLLLL",
                  .activation = "gelu_pytorch_tanh", .rope_global_scale = 8, .embedding_scale = 50.59644256269407, .sandwich_norm = true,
                  .repeated = true},
        .prompt = 8192, .chunk = 2048, .fresh = 32, .batch = 64, .context = 4096, .steps = 40};
}

static struct plan plan_tiny(void)
{
    struct plan plan = {.shape = random_model_small(), .prompt = 150, .chunk = 64, .fresh = 5, .batch = 3, .context = 66, .steps = 3};
    plan.shape.repeated = true;
    return plan;
}

static bool note(struct scene *scene, enum status st)
{
    if (st != STATUS_OK)
        bench_fail(scene->bench, "%s", status_detail());
    return st == STATUS_OK;
}

/* ---- what is expected ---- */


static double expect_step(const struct bench_rates *rates, const struct plan *plan, const struct cuda_attention_span *spans, uint32_t span_count,
                          uint32_t rows, uint32_t wanted)
{
    const struct random_model *shape = &plan->shape;
    const uint32_t width = shape->head_count * shape->head_dim, kv = shape->kv_head_count * shape->head_dim;
    double time = 0;
    for (const char *layer = shape->layers; *layer; layer++) {
        const struct cuda_attention_geometry geometry = {shape->head_count, shape->kv_head_count, shape->head_dim, *layer == 'L' ? shape->window : 0, 0};
        time += bench_expect_matrix(rates, rows, width + 2 * kv, shape->hidden_size) + bench_expect_matrix(rates, rows, shape->hidden_size, width) +
                bench_expect_matrix(rates, rows, 2 * shape->intermediate_size, shape->hidden_size) +
                bench_expect_matrix(rates, rows, shape->hidden_size, shape->intermediate_size) +
                bench_expect_attention(rates, &geometry, spans, span_count);
        time += (KERNELS_A_LAYER - 5) * bench_expect_bytes(rates, rows * (3.0 * shape->hidden_size + shape->intermediate_size) * 4 / 3);
    }
    if (wanted > 0)
        time += bench_expect_matrix(rates, wanted, shape->vocab_size, shape->hidden_size) + 34;      /* a token's draw: bench_rows.c */
    return time + 30;                                        /* tables, their copy, waiting for the end */
}

static double expect_prompt(const struct bench_rates *rates, const struct plan *plan, uint32_t start, uint32_t end)
{
    double time = 0;
    for (uint32_t at = start; at < end; at += plan->chunk) {
        const uint32_t count = end - at < plan->chunk ? end - at : plan->chunk;
        const struct cuda_attention_span span = {.count = count, .start = at};
        time += expect_step(rates, plan, &span, 1, count, at + count == end);
    }
    return time;
}

static double expect_decode(const struct bench_rates *rates, const struct plan *plan, uint32_t batch, uint32_t context)
{
    struct cuda_attention_span spans[BATCH_MAX];
    for (uint32_t i = 0; i < batch; i++)
        spans[i] = (struct cuda_attention_span){.row = i, .count = 1, .start = context, .page_first = 0};
    return expect_step(rates, plan, spans, batch, batch, batch);
}

/* Weights of all layers and, where tokens are drawn, of the head. */
static double weight_bytes(const struct plan *plan, bool head)
{
    const struct random_model *shape = &plan->shape;
    const double width = shape->head_count * shape->head_dim, kv = shape->kv_head_count * shape->head_dim, hidden = shape->hidden_size;
    return (double)strlen(shape->layers) * hidden * (2 * width + 2 * kv + 3.0 * shape->intermediate_size) + (head ? hidden * shape->vocab_size : 0);
}

static double kv_bytes(const struct plan *plan, uint32_t batch, uint32_t context)
{
    double bytes = 0;
    for (const char *layer = plan->shape.layers; *layer; layer++) {
        const struct cuda_attention_geometry geometry = {plan->shape.head_count, plan->shape.kv_head_count, plan->shape.head_dim,
                                                         *layer == 'L' ? plan->shape.window : 0, 0};
        bytes += batch * bench_attention_bytes(&geometry, &(struct cuda_attention_span){.count = 1, .start = context}, 1);
    }
    return bytes;
}

/* ---- the scene ---- */

/* The first page that a decode step at this context sees, of a group. */
static uint32_t first_page(const struct plan *plan, uint32_t group, uint32_t context)
{
    return group == MODEL_LAYER_LOCAL && context > plan->shape.window ? (context - plan->shape.window) / 64 : 0;
}

static bool make_pages(struct scene *scene)
{
    const struct plan *plan = &scene->plan;
    const uint32_t whole = (plan->prompt + plan->steps + 64 + 63) / 64, end = (plan->context + plan->steps + 64 + 63) / 64;
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const size_t bytes = ops_->page_bytes(scene->backend, group), first = first_page(plan, group, plan->context);
        if (bytes == 0)
            continue;
        if (!note(scene, ops_->arena_create(scene->backend, BACKEND_TIER_DEVICE, bytes * (whole + plan->batch * (end - first)), &scene->arenas[group])))
            return false;
        char *at = scene->arenas[group];
        for (uint32_t t = 0; t <= plan->batch; t++)
            for (uint32_t page = t == 0 ? 0 : (uint32_t)first; page < (t == 0 ? whole : end); page++, at += bytes)
                scene->talks[t].pages[group][page] = at;
    }
    return true;
}

static void scene_close(struct scene *scene)
{
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX && scene->backend; group++) {
        ops_->arena_destroy(scene->backend, BACKEND_TIER_DEVICE, &scene->arenas[group]);
        ops_->arena_destroy(scene->backend, BACKEND_TIER_HOST, &scene->on_host[group]);
    }
    ops_->destroy(&scene->backend);
    model_destroy(&scene->model);
    free(scene->tokens);
}

static bool scene_open(struct scene *scene)
{
    const struct plan *plan = &scene->plan;
    const struct backend_config config = {.rows_max = plan->chunk > plan->batch ? plan->chunk : plan->batch, .threads = 1};
    const uint32_t count = plan->prompt + plan->steps + 64;
    scene->model = random_model_make(&plan->shape);
    scene->tokens = malloc(count * sizeof *scene->tokens);
    if (!scene->model || !scene->tokens) {
        bench_fail(scene->bench, "no memory for the model");
        return false;
    }
    for (uint32_t i = 0; i < count; i++)
        scene->tokens[i] = (uint32_t)(i * 2654435761u % plan->shape.vocab_size);
    return note(scene, ops_->create(scene->model, &config, &scene->backend)) && make_pages(scene);
}

static struct backend_run run_of(const struct scene *scene, const struct talk *talk, uint32_t start, uint32_t count, struct backend_sample *sample)
{
    struct backend_run run = {.tokens = scene->tokens + start, .count = count, .start = start, .sample = sample, .logit_rows = sample ? 1 : 0};
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        run.pages[group] = scene->arenas[group] ? talk->pages[group] : NULL;
    return run;
}

/* Microseconds from the call to the token that follows [start, end). */
static double prompt(struct scene *scene, uint32_t start, uint32_t end)
{
    struct backend_sample sample = {.temperature = 0.8f, .top_p = 0.95f, .seed = 1};
    const double begin = bench_clock();
    for (uint32_t at = start; at < end; at += scene->plan.chunk) {
        const uint32_t count = end - at < scene->plan.chunk ? end - at : scene->plan.chunk;
        const struct backend_run run = run_of(scene, &scene->talks[0], at, count, at + count == end ? &sample : NULL);
        if (!note(scene, ops_->forward(scene->backend, &(struct backend_batch){.runs = &run, .run_count = 1}, NULL)))
            return NAN;
    }
    return bench_clock() - begin;
}

static double prompts(struct scene *scene, uint32_t start, uint32_t end, uint32_t times)
{
    double values[16];
    for (uint32_t i = 0; i < times; i++)
        values[i] = prompt(scene, start, end);
    return bench_median(values, times);
}

static double decode(struct scene *scene, uint32_t first_talk, uint32_t batch, uint32_t context)
{
    double values[64];
    struct backend_run runs[BATCH_MAX];
    struct backend_sample samples[BATCH_MAX];
    const uint32_t steps = scene->plan.steps, warm = scene->bench->tiny ? 0 : 5;
    for (uint32_t step = 0; step < steps; step++) {
        for (uint32_t i = 0; i < batch; i++) {
            samples[i] = (struct backend_sample){.temperature = 0.8f, .top_p = 0.95f, .seed = i, .position = step};
            runs[i] = run_of(scene, &scene->talks[first_talk + i], context + step, 1, &samples[i]);
        }
        const double begin = bench_clock();
        if (!note(scene, ops_->forward(scene->backend, &(struct backend_batch){.runs = runs, .run_count = batch}, NULL)))
            return NAN;
        values[step] = bench_clock() - begin;
    }
    return bench_median(values + warm, steps - warm);
}

/* The batch's talks begin as the prompt's, in pages of their own. */
static void copy_talks(struct scene *scene)
{
    uint64_t ticket = 0;
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
        for (uint32_t t = 1; t <= scene->plan.batch && scene->arenas[group]; t++)
            for (uint32_t page = first_page(&scene->plan, group, scene->plan.context); page <= scene->plan.context / 64; page++) {
                ticket = ops_->copy_start(scene->backend, scene->talks[t].pages[group][page], scene->talks[0].pages[group][page],
                                          ops_->page_bytes(scene->backend, group));
                if (page % 16 == 0)
                    ops_->copy_wait(scene->backend, ticket);
            }
    if (ticket > 0)
        ops_->copy_wait(scene->backend, ticket);
}

/* ---- a hit in the host's memory ---- */

/* The prompt's pages that going on at `tokens` needs, all but the last as they are; out NULL: only counted. */
static uint32_t copies_of(const struct scene *scene, uint32_t tokens, struct backend_page_copy *out)
{
    uint32_t count = 0;
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
        for (uint32_t page = first_page(&scene->plan, group, tokens); page < (tokens + 63) / 64 && scene->arenas[group]; page++, count++)
            if (out)
                out[count] = (struct backend_page_copy){
                    .group = group, .tokens = tokens - page * 64 < 64 ? tokens - page * 64 : 64, .dst = scene->talks[0].pages[group][page],
                    .src = (char *)scene->on_host[group] + page * ops_->page_bytes(scene->backend, group)};
    return count;
}

static double load_bytes(const struct plan *plan, uint32_t tokens)
{
    double bytes = 0;
    for (const char *layer = plan->shape.layers; *layer; layer++)
        bytes += ((tokens + 63) / 64 - first_page(plan, *layer == 'L' ? MODEL_LAYER_LOCAL : MODEL_LAYER_GLOBAL, tokens)) * 64.0 *
                 plan->shape.kv_head_count * (2.0 * plan->shape.head_dim + 8);
    return bytes;
}

static void to_host(struct scene *scene, const struct backend_page_copy *copies, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        ops_->copy_wait(scene->backend, ops_->copy_start(scene->backend, (void *)(uintptr_t)copies[i].src, copies[i].dst,
                                                         ops_->page_bytes(scene->backend, copies[i].group)));
}

static bool make_host(struct scene *scene, uint32_t tokens)
{
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
        if (scene->arenas[group] &&
            !note(scene, ops_->arena_create(scene->backend, BACKEND_TIER_HOST, ops_->page_bytes(scene->backend, group) * ((tokens + 63) / 64),
                                            &scene->on_host[group])))
            return false;
    return true;
}

/* Microseconds until the pages are there; with `end`, until the token that follows [start, end) is. */
static double load(struct scene *scene, const struct backend_page_copy *copies, uint32_t count, bool by_layers, uint32_t start, uint32_t end)
{
    struct backend_sample sample = {.temperature = 0.8f, .top_p = 0.95f, .seed = 1};
    uint64_t ticket = 0;
    const double begin = bench_clock();
    if (by_layers)
        ticket = ops_->load_start(scene->backend, copies, count);
    for (uint32_t i = 0; i < count && !by_layers; i++)
        ticket = ops_->copy_start(scene->backend, copies[i].dst, copies[i].src, ops_->page_bytes(scene->backend, copies[i].group));
    if (!by_layers || end == 0)
        ops_->copy_wait(scene->backend, ticket);
    if (end > 0) {
        struct backend_run run = run_of(scene, &scene->talks[0], start, end - start, &sample);
        run.after = by_layers ? ticket : 0;
        if (!note(scene, ops_->forward(scene->backend, &(struct backend_batch){.runs = &run, .run_count = 1}, NULL)))
            return NAN;
    }
    const double time = bench_clock() - begin;
    ops_->copy_wait(scene->backend, ticket);
    return time;
}

static double loads(struct scene *scene, const struct backend_page_copy *copies, uint32_t count, bool by_layers, uint32_t start, uint32_t end,
                    uint32_t times)
{
    double values[16];
    for (uint32_t i = 0; i < times; i++)
        values[i] = load(scene, copies, count, by_layers, start, end);
    return bench_median(values, times);
}

static void from_host(struct bench *bench, struct scene *scene, bool open, uint32_t times)
{
    const struct plan *plan = &scene->plan;
    const uint32_t hit = plan->prompt - plan->fresh, layers = (uint32_t)strlen(plan->shape.layers);
    const double bytes = load_bytes(plan, hit), bus = bytes / 55e3, step = expect_prompt(&bench->rates, plan, hit, plan->prompt);
    struct backend_page_copy *copies = open ? calloc(copies_of(scene, hit, NULL), sizeof *copies) : NULL;
    const bool ready = copies && make_host(scene, hit);
    const uint32_t count = ready ? copies_of(scene, hit, copies) : 0;
    if (ready)
        to_host(scene, copies, count);
    for (unsigned step_too = 0; step_too < 2; step_too++) {
        /* The longer of the two, and what the first layer waits for. */
        struct bench_result *result =
            step_too ? bench_add(bench, "tiers", 0, 0, fmax(bus, step) + fmin(bus, step) / layers, "first token on a hit on the host, %u of %u tokens new",
                                 plan->fresh, plan->prompt)
                     : bench_add(bench, "tiers", bytes, 0, bus + 2.0 * layers, "pages of %u tokens from the host, by layers", hit);
        result->peer = "whole pages";
        if (!ready)
            continue;
        result->microseconds = loads(scene, copies, count, true, hit, step_too ? plan->prompt : 0, times);
        result->peer_microseconds = loads(scene, copies, count, false, hit, step_too ? plan->prompt : 0, times);
    }
    free(copies);
}

void bench_steps(struct bench *bench)
{
    struct scene *scene = calloc(1, sizeof *scene);
    if (!scene)
        return;
    scene->bench = bench;
    scene->plan = bench->tiny ? plan_tiny() : plan_real();
    const struct plan *plan = &scene->plan;
    const struct bench_rates *rates = &bench->rates;
    const uint32_t hit = plan->prompt - plan->fresh, times = bench->tiny ? 1 : 3;
    const double layers = weight_bytes(plan, false), all = weight_bytes(plan, true);
    const bool open = !bench->dry && scene_open(scene);
    struct bench_result *result = bench_add(bench, "steps", 0, 2 * layers * plan->prompt, expect_prompt(rates, plan, 0, plan->prompt),
                                            "first token on a miss, %u tokens", plan->prompt);
    if (open) {
        (void)prompt(scene, 0, plan->prompt);
        result->microseconds = prompts(scene, 0, plan->prompt, times);
    }
    result = bench_add(bench, "steps", all + kv_bytes(plan, 1, hit), 2 * layers * plan->fresh, expect_prompt(rates, plan, hit, plan->prompt),
                       "first token on a hit, %u of %u tokens new", plan->fresh, plan->prompt);
    if (open)
        result->microseconds = prompts(scene, hit, plan->prompt, 2 * times + 1);
    result = bench_add(bench, "steps", all + kv_bytes(plan, 1, plan->prompt), 2 * all, expect_decode(rates, plan, 1, plan->prompt),
                       "decode step, 1 of %u", plan->prompt);
    if (open)
        result->microseconds = decode(scene, 0, 1, plan->prompt);
    result = bench_add(bench, "steps", all + kv_bytes(plan, plan->batch, plan->context), 2 * all * plan->batch,
                       expect_decode(rates, plan, plan->batch, plan->context), "decode step, %u of %u", plan->batch, plan->context);
    if (open) {
        copy_talks(scene);
        result->microseconds = decode(scene, 1, plan->batch, plan->context);
    }
    from_host(bench, scene, open, 2 * times + 1);
    scene_close(scene);
    free(scene);
}
