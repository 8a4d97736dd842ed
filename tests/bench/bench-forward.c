/* bench-forward.c - how fast a model is computed: prefill of one sequence in chunks and decode of a batch, on every instruction-set level.
 *
 *     bench-forward MODEL_DIR [--context N] [--threads N] [--batch N]
 *
 * Wall time, the best and the median of REPEATS. GOPS counts a multiplication and an addition as two, over the weights that a token meets
 * (in prefill those up to the last K and V; attention not counted). Decoding sequences behind the first have KV of zeros, which costs
 * the same. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "bench.h"
#include "kernels/kernels.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/model/model.h"

#define REPEATS 7
#define CHUNK 256u
#define DECODE 32u

static const struct backend_ops *const ops_ = &backend_cpu_ops;

struct bench {
    const struct model *model;
    struct backend *backend;
    uint32_t context, threads, batch;
    uint32_t *tokens;             /* (context + DECODE) */
    void *memory;                 /* arena: of every sequence every group's pages */
    void **pages[BACKEND_GROUPS_MAX];   /* (batch, pages of a sequence) */
    float *logits;                /* (batch, vocab) */
    struct backend_run *runs;     /* (batch) */
};

struct figure {
    double best, median;          /* seconds */
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static uint32_t page_count(const struct bench *bench)
{
    return (bench->context + DECODE + BACKEND_PAGE_TOKENS - 1) / BACKEND_PAGE_TOKENS;
}

static enum status step(const struct bench *bench, uint32_t runs, uint32_t start, uint32_t count, uint32_t rows)
{
    for (uint32_t i = 0; i < runs; i++) {
        bench->runs[i] = (struct backend_run){.tokens = bench->tokens + start, .count = count, .start = start, .logit_rows = rows,
                                              .logits = bench->logits + (size_t)i * bench->model->config.vocab_size};
        for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
            bench->runs[i].pages[group] = bench->pages[group] + (size_t)i * page_count(bench);
    }
    return ops_->forward(bench->backend, &(struct backend_batch){.runs = bench->runs, .run_count = runs}, NULL);
}

static enum status prefill(const struct bench *bench)
{
    for (uint32_t at = 0; at < bench->context; at += CHUNK) {
        uint32_t left = bench->context - at, count = left < CHUNK ? left : CHUNK;
        TRY(step(bench, 1, at, count, count == left));
    }
    return STATUS_OK;
}

static enum status decode(const struct bench *bench)
{
    for (uint32_t i = 0; i < DECODE; i++)
        TRY(step(bench, bench->batch, bench->context + i, 1, 1));
    return STATUS_OK;
}

static enum status measure(const struct bench *bench, enum status (*work)(const struct bench *), struct figure *out)
{
    double times[REPEATS];
    TRY(work(bench));              /* warm */
    for (int i = 0; i < REPEATS; i++) {
        double begin = now();
        TRY(work(bench));
        times[i] = now() - begin;
    }
    out->median = bench_median(times, REPEATS);
    out->best = times[0];
    return STATUS_OK;
}

static double size_of(const struct model_matrix *matrix)
{
    return (double)matrix->rows * matrix->columns;
}

/* Of the layers; for prefill without what rows skip after the last producing layer has stored their K and V. */
static double layer_weights(const struct model *model, bool early_exit)
{
    double sum = size_of(&model->per_layer_model_proj);
    for (uint32_t i = 0; i < model->config.layer_count; i++) {
        const struct model_layer *layer = &model->layers[i];
        sum += size_of(&layer->k_proj) + size_of(&layer->v_proj);
        if (early_exit && i == model->config.last_producer)
            break;
        sum += size_of(&layer->q_proj) + size_of(&layer->o_proj) + size_of(&layer->gate_proj) + size_of(&layer->up_proj) +
               size_of(&layer->down_proj) + size_of(&layer->per_layer_gate) + size_of(&layer->per_layer_proj);
    }
    return sum;
}

static enum status open_pages(struct bench *bench)
{
    size_t bytes[BACKEND_GROUPS_MAX], whole = 0, at = 0, count = (size_t)page_count(bench) * bench->batch;
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        bytes[group] = ops_->page_bytes(bench->backend, group);
        whole += bytes[group] * count;
    }
    TRY(ops_->arena_create(bench->backend, BACKEND_TIER_DEVICE, whole, &bench->memory));
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        for (size_t i = 0; i < count; i++, at += bytes[group])
            bench->pages[group][i] = (char *)bench->memory + at;
    return STATUS_OK;
}

static enum status bench_level(struct bench *bench, const char *isa, FILE *json)
{
    const struct backend_config config = {.rows_max = bench->batch > CHUNK ? bench->batch : CHUNK, .threads = bench->threads};
    struct figure first = {0}, next = {0};
    enum status st;
    setenv("ROOST_ISA", isa, 1);
    TRY(ops_->create(bench->model, &config, &bench->backend));
    TRY_GOTO(open_pages(bench), st, done);
    TRY_GOTO(measure(bench, prefill, &first), st, done);
    TRY_GOTO(measure(bench, decode, &next), st, done);
    double few = layer_weights(bench->model, true), all = layer_weights(bench->model, false) + size_of(&bench->model->embedding);
    double decoded = (double)DECODE * bench->batch, prefill_rate = bench->context / first.best, decode_rate = decoded / next.best;
    printf("%-12s %12.0f %10.1f %12.0f %10.1f %10.1f\n", isa, prefill_rate, 2e-9 * few * prefill_rate, decode_rate,
           2e-9 * all * decode_rate, 1e6 * next.best / DECODE);
    fprintf(json, "%s{\"isa\":\"%s\",\"prefill_tokens_per_s\":%.0f,\"prefill_tokens_per_s_median\":%.0f,\"decode_tokens_per_s\":%.0f,"
            "\"decode_tokens_per_s_median\":%.0f}", strcmp(isa, "baseline") == 0 ? "" : ",", isa, prefill_rate, bench->context / first.median,
            decode_rate, decoded / next.median);
done:
    ops_->arena_destroy(bench->backend, BACKEND_TIER_DEVICE, &bench->memory);
    ops_->destroy(&bench->backend);
    return st;
}

static enum status run(struct bench *bench, FILE *json)
{
    const struct model_config *config = &bench->model->config;
    if (bench->context + DECODE > config->context_tokens_max)
        return STATUS_FAIL(STATUS_LIMIT, "a context of %u and %u decoded tokens: the model's has %u", bench->context, DECODE,
                           config->context_tokens_max);
    bench->tokens = calloc(bench->context + DECODE, sizeof *bench->tokens);
    bench->logits = calloc((size_t)bench->batch * config->vocab_size, sizeof *bench->logits);
    bench->runs = calloc(bench->batch, sizeof *bench->runs);
    bool enough = bench->tokens && bench->logits && bench->runs;
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        bench->pages[group] = calloc((size_t)bench->batch * page_count(bench), sizeof *bench->pages[group]);
        enough = enough && bench->pages[group];
    }
    if (!enough)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u sequences", bench->batch);
    for (uint32_t i = 0; i < bench->context + DECODE; i++)
        bench->tokens[i] = ((i * 2654435761u) >> 8) % config->vocab_size;
    printf("%s, context %u, threads %u, batch %u, ", config->name, bench->context, bench->threads, bench->batch);
    bench_print_processor(stdout);
    printf("\n%-12s %12s %10s %12s %10s %10s\n", "level", "prefill t/s", "GOPS", "decode t/s", "GOPS", "us/step");
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++)
        TRY(bench_level(bench, kernels->isa, json));
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    struct bench bench = {.context = 2048, .threads = 1, .batch = 1};
    const struct bench_options options = {.name = "bench-forward", .usage = "MODEL_DIR [--context N] [--threads N] [--batch N]"};
    const struct bench_flag flags[] = {{"--context", &bench.context, 1, MODEL_CONTEXT_MAX}, {"--threads", &bench.threads, 1, BACKEND_THREADS_MAX},
                                       {"--batch", &bench.batch, 1, 1024}, {0}};
    const char *dir = bench_arguments(&options, argc, argv, flags);
    struct model *model = NULL;
    char *text = NULL;
    size_t size;
    FILE *json = open_memstream(&text, &size);
    enum status st = model_load(dir, &model);
    if (st == STATUS_OK) {
        bench.model = model;
        st = run(&bench, json);
    }
    fclose(json);
    if (st == STATUS_OK) {
        bench_json_begin(stdout, &options, argc, argv);
        printf(",\"model\":\"%s\",\"threads\":%u,\"batch\":%u,\"context\":%u,\"repeats\":%d,\"levels\":[%s]}\n", model->config.name, bench.threads,
               bench.batch, bench.context, REPEATS, text);
    } else {
        fprintf(stderr, "bench-forward: %s\n", status_detail());
    }
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        free(bench.pages[group]);
    free(bench.tokens), free(bench.logits), free(bench.runs), free(text);
    model_destroy(&model);
    return st == STATUS_OK ? 0 : 1;
}
