/* bench-forward.c - how fast one core computes: prefill and decode of a model on every instruction-set level.
 *
 *     bench-forward MODEL_DIR [context tokens, default 2048]
 *
 * Times are processor time of the thread, the best and the median of REPEATS. GOPS counts a multiplication and an addition as
 * two, over the weights that a token meets (in prefill those up to the last K and V; attention not counted). The last line is
 * JSON with the same figures. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kernels/kernels.h"
#include "worker/engine/backend.h"
#include "worker/engine/model.h"

#define REPEATS 7
#define CHUNK 256u
#define DECODE 64u

struct bench {
    const struct model *model;
    struct backend *backend;
    uint32_t context;
    uint32_t *tokens;       /* (context + DECODE) */
    void **pages;
    float *logits;
};

struct figure {
    double best, median;    /* seconds */
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return left < right ? -1 : left > right;
}

static enum status run(const struct bench *bench, uint32_t start, uint32_t end, uint32_t chunk, uint32_t rows)
{
    for (uint32_t at = start; at < end;) {
        uint32_t count = end - at < chunk ? end - at : chunk;
        struct backend_run job = {.tokens = bench->tokens + at, .count = count, .start = at, .pages = bench->pages,
                                  .logits = bench->logits, .logit_rows = rows || at + count == end};
        TRY(backend_cpu_ops.forward(bench->backend, &job));
        at += count;
    }
    return STATUS_OK;
}

static enum status measure(const struct bench *bench, uint32_t start, uint32_t end, uint32_t chunk, uint32_t rows, struct figure *out)
{
    double times[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        double begin = now();
        TRY(run(bench, start, end, chunk, rows));
        times[i] = now() - begin;
    }
    qsort(times, REPEATS, sizeof *times, compare);
    *out = (struct figure){times[0], times[REPEATS / 2]};
    return STATUS_OK;
}

static double size_of(const struct model_matrix *matrix)
{
    return (double)matrix->rows * matrix->columns;
}

/* Of the layers; for prefill without what rows skip after the last producing layer has stored their K and V. */
static double layer_weights(const struct model *model, bool prefill)
{
    uint32_t last = 0;
    for (uint32_t i = 0; i < model->config.layer_count; i++)
        if (model->config.kv_producer[i] == i)
            last = i;
    double sum = 0;
    for (uint32_t i = 0; i < model->config.layer_count; i++) {
        const struct model_layer *layer = &model->layers[i];
        if (prefill && i > last)
            break;
        sum += size_of(&layer->k_proj) + size_of(&layer->v_proj);
        if (prefill && i == last)
            break;
        sum += size_of(&layer->q_proj) + size_of(&layer->o_proj) + size_of(&layer->gate_proj) + size_of(&layer->up_proj) +
               size_of(&layer->down_proj);
    }
    return sum;
}

static void print_processor(FILE *out)
{
    char line[256] = "";
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file) && strncmp(line, "model name", 10) != 0)
        line[0] = '\0';
    if (file)
        fclose(file);
    char *name = strchr(line, ':');
    line[strcspn(line, "\n")] = '\0';
    fprintf(out, "%s", name ? name + 2 : "unknown");
}

static enum status bench_level(struct bench *bench, const char *isa, FILE *json)
{
    setenv("ROOST_ISA", isa, 1);
    TRY(backend_cpu_ops.create(bench->model, CHUNK, &bench->backend));
    for (uint32_t p = 0; p < (bench->context + DECODE + 63) / 64; p++)
        bench->pages[p] = realloc(bench->pages[p], backend_cpu_ops.page_bytes(bench->backend));
    struct figure prefill, decode;
    enum status st = measure(bench, 0, bench->context, CHUNK, 0, &prefill);
    if (st == STATUS_OK)
        st = measure(bench, bench->context, bench->context + DECODE, 1, 1, &decode);
    backend_cpu_ops.destroy(&bench->backend);
    TRY(st);
    double first = layer_weights(bench->model, true), all = layer_weights(bench->model, false) + size_of(&bench->model->embedding);
    double prefill_rate = bench->context / prefill.best, decode_rate = DECODE / decode.best;
    printf("%-12s %12.0f %10.1f %12.0f %10.1f %10.1f\n", isa, prefill_rate, 2e-9 * first * prefill_rate, decode_rate,
           2e-9 * all * decode_rate, 1e6 / decode_rate);
    fprintf(json, "%s{\"isa\":\"%s\",\"prefill_tokens_per_s\":%.0f,\"prefill_tokens_per_s_median\":%.0f,\"decode_tokens_per_s\":%.0f,"
            "\"decode_tokens_per_s_median\":%.0f}", strcmp(isa, "baseline") == 0 ? "" : ",", isa, prefill_rate, bench->context / prefill.median,
            decode_rate, DECODE / decode.median);
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    struct model *model = NULL;
    struct bench bench = {.context = argc > 2 ? (uint32_t)atoi(argv[2]) : 2048};
    const bool help = argc == 2 && strcmp(argv[1], "--help") == 0;
    if (help || argc < 2 || argc > 3 || bench.context == 0) {
        fprintf(help ? stdout : stderr, "usage: %s MODEL_DIR [context tokens]\n", argv[0]);
        return help ? 0 : 2;
    }
    enum status st = model_load(argv[1], &model);
    if (st == STATUS_OK && bench.context + DECODE > model->config.context_tokens_max)
        st = STATUS_FAIL(STATUS_LIMIT, "the model's context has %u tokens", model->config.context_tokens_max);
    char *text = NULL;
    size_t size;
    FILE *json = open_memstream(&text, &size);
    if (st == STATUS_OK) {
        bench.model = model;
        bench.tokens = calloc(bench.context + DECODE, sizeof *bench.tokens);
        bench.pages = calloc((bench.context + DECODE + 63) / 64, sizeof *bench.pages);
        bench.logits = calloc(model->config.vocab_size, sizeof *bench.logits);
        for (uint32_t i = 0; i < bench.context + DECODE; i++)
            bench.tokens[i] = (uint32_t)((i * 2654435761u) >> 8) % model->config.vocab_size;
        printf("%s, context %u, one thread, ", model->config.name, bench.context);
        print_processor(stdout);
        printf("\n%-12s %12s %10s %12s %10s %10s\n", "level", "prefill t/s", "GOPS", "decode t/s", "GOPS", "us/token");
        const struct kernels *kernels;
        for (unsigned i = 0; st == STATUS_OK && (kernels = kernels_at(i)); i++)
            st = bench_level(&bench, kernels->isa, json);
    }
    fclose(json);
    if (st == STATUS_OK) {
        printf("{\"command\":\"bench-forward %s %u\",\"model\":\"%s\",\"processor\":\"", argv[1], bench.context, model->config.name);
        print_processor(stdout);
        printf("\",\"repeats\":%d,\"levels\":[%s]}\n", REPEATS, text);
    } else {
        fprintf(stderr, "bench-forward: %s\n", status_detail());
    }
    for (uint32_t p = 0; bench.pages && p < (bench.context + DECODE + 63) / 64; p++)
        free(bench.pages[p]);
    free(bench.pages), free(bench.tokens), free(bench.logits), free(text);
    model_destroy(&model);
    return st == STATUS_OK ? 0 : 1;
}
