/* bench_attention.c - attention over pages, keys and values cold; beside it PyTorch's, whose times torch_attention.py has written down. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench.h"

#define SPANS_MAX 64u

struct shape {
    const char *name;
    struct cuda_attention_geometry geometry;
};

struct scene {
    struct cuda_attention_span spans[SPANS_MAX];
    uint32_t span_count, rows, pages;
};

struct work {
    struct cuda_attention job;
    const void *const *tables[128];        /* one a copy of the pages */
    uint32_t copies;
};

static bool launch(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *work = user;
    struct cuda_attention job = work->job;
    job.pages = work->tables[turn % work->copies];
    return cuda_attention_run(&job, stream);
}

static void add_span(struct scene *scene, uint32_t context, uint32_t count)    /* the last `count` positions of a context */
{
    scene->spans[scene->span_count++] =
        (struct cuda_attention_span){.row = scene->rows, .count = count, .start = context - count, .page_first = scene->pages};
    scene->rows += count;
    scene->pages += (context + 63) / 64;
}

static double peer_time(const struct bench *bench, const char *name)
{
    char line[256];
    double found = NAN;
    FILE *file = bench->torch_file ? fopen(bench->torch_file, "r") : NULL;
    while (file && fgets(line, sizeof line, file)) {
        char *tab = strchr(line, '\t');
        if (tab && strlen(name) == (size_t)(tab - line) && strncmp(line, name, (size_t)(tab - line)) == 0)
            found = strtod(tab + 1, NULL);
    }
    if (file)
        fclose(file);
    return found;
}

/* All pages are alike: the device does not know. */
static unsigned char *page_image(const struct bench *bench, const struct cuda_page_layout *layout)
{
    const size_t planes = 2 * (size_t)layout->kv_heads * 64 * layout->dim;
    unsigned char *page = malloc(layout->slot_bytes);
    for (size_t i = 0; page && i < planes; i++)
        page[i] = bench->pattern[i % BENCH_PATTERN];
    for (size_t i = planes; page && i < layout->slot_bytes; i += sizeof(float)) {
        const float scale = 0.01f + 1e-5f * (float)(i % 97);
        memcpy(page + i, &scale, sizeof scale);
    }
    return page;
}

static bool make_tables(struct bench *bench, struct work *work, const struct scene *scene)
{
    const struct cuda_page_layout *layout = &work->job.layout;
    const size_t bytes = scene->pages * layout->slot_bytes;
    unsigned char *page = page_image(bench, layout);
    const void **table = calloc(scene->pages, sizeof *table);
    bool made = page && table;
    work->copies = bench_copies(bench, bytes);
    for (uint32_t copy = 0; copy < work->copies && made; copy++) {
        const char *base = bench_repeat(bench, page, layout->slot_bytes, scene->pages);
        for (uint32_t i = 0; i < scene->pages && base; i++)
            table[i] = base + i * layout->slot_bytes;
        work->tables[copy] = base ? bench_put(bench, table, scene->pages * sizeof *table) : NULL;
        made = work->tables[copy] != NULL;
    }
    free(page), free(table);
    return made;
}

static double measure(struct bench *bench, const struct shape *shape, const struct scene *scene)
{
    const struct cuda_attention_geometry *g = &shape->geometry;
    struct cuda_attention_plan plan = {0};
    struct work work = {.job = {
        .geometry = *g, .score_scale = 1.0f / sqrtf((float)g->dim),
        .layout = {.kv_heads = g->kv_heads, .dim = g->dim, .slots = 1, .slot_bytes = (size_t)g->kv_heads * 64 * (2 * g->dim + 2 * sizeof(float))}}};
    double time = NAN;
    if (make_tables(bench, &work, scene) && cuda_attention_plan_make(scene->spans, scene->span_count, g, 2 * bench->multiprocessors, &plan)) {
        struct cuda_attention *job = &work.job;
        job->q = bench_bytes(bench, (size_t)scene->rows * g->heads * g->dim);
        job->q_scale = bench_floats(bench, (size_t)scene->rows * g->heads, 0.01f, 0.02f);
        job->spans = bench_put(bench, scene->spans, scene->span_count * sizeof *scene->spans);
        job->tasks = bench_put(bench, plan.tasks, plan.task_count * sizeof *plan.tasks);
        job->merges = bench_put(bench, plan.merges, plan.merge_count * sizeof *plan.merges);
        job->task_count = plan.task_count, job->large_count = plan.large_count, job->merge_count = plan.merge_count;
        job->pairs_max = plan.pairs_max;
        job->partials = bench_new(bench, cuda_attention_partial_bytes(&plan, g));
        job->out = bench_new(bench, (size_t)scene->rows * g->heads * g->dim * sizeof(float));
        if (job->out)
            time = bench_time(bench, launch, &work);
    }
    cuda_attention_plan_free(&plan);
    bench_release(bench);
    return time;
}

static void one(struct bench *bench, const struct shape *shape, const struct scene *scene, const char *what)
{
    const struct cuda_attention_geometry *g = &shape->geometry;
    struct bench_result *result = bench_add(bench, "attention", bench_attention_bytes(g, scene->spans, scene->span_count),
                                            4.0 * g->dim * bench_attention_scores(g, scene->spans, scene->span_count),
                                            bench_expect_attention(&bench->rates, g, scene->spans, scene->span_count), "%s, %s", what, shape->name);
    result->peer = "PyTorch, bf16";
    result->peer_microseconds = bench->dry ? NAN : peer_time(bench, result->name);
    if (!bench->dry)
        result->microseconds = measure(bench, shape, scene);
}

static void decode(struct bench *bench, const struct shape *shape)
{
    static const uint32_t contexts[] = {4096, 65536, 262144}, tiny_contexts[] = {70, 130, 1100}, skewed[] = {4641, 45118, 1730, 1696};
    for (uint32_t i = 0; i < 3; i++) {
        struct scene scene = {0};
        char what[48];
        const uint32_t context = bench->tiny ? tiny_contexts[i] : contexts[i];
        add_span(&scene, context, 1);
        snprintf(what, sizeof what, bench->tiny ? "decode, 1 of %u" : "decode, 1 of %uk", bench->tiny ? context : context / 1024);
        one(bench, shape, &scene, what);
    }
    struct scene uniform = {0};
    for (uint32_t i = 0; i < (bench->tiny ? 4 : 64); i++)
        add_span(&uniform, bench->tiny ? 100 : 4096, 1);
    one(bench, shape, &uniform, bench->tiny ? "decode, 4 of 100" : "decode, 64 of 4k");
    for (uint32_t rows = 1; rows <= 4; rows += 3) {
        struct scene scene = {0};
        for (uint32_t i = 0; i < 4; i++)
            add_span(&scene, bench->tiny ? skewed[i] / 64 + 4 : skewed[i], rows);
        one(bench, shape, &scene, rows == 1 ? "decode, skewed" : "decode, skewed, 4 rows each");
    }
}

void bench_attention(struct bench *bench)
{
    static const struct shape real[] = {{"16 over 1 of 128", {16, 1, 128, 0, 0}}, {"32 over 4 of 128", {32, 4, 128, 0, 0}},
                                        {"8 over 4 of 256, window 1,024", {8, 4, 256, 1024, 0}}};
    static const struct shape tiny[] = {{"4 over 1 of 32", {4, 1, 32, 0, 0}}, {"4 over 2 of 64", {4, 2, 64, 0, 0}},
                                        {"2 over 1 of 32, window 40", {2, 1, 32, 40, 0}}};
    const struct shape *shapes = bench->tiny ? tiny : real;
    const uint32_t fresh = bench->tiny ? 40 : 8192, behind = bench->tiny ? 100 : 8192, chunk = bench->tiny ? 17 : 512;
    for (uint32_t s = 0; s < 3; s++) {
        struct scene prompt = {0}, tail = {0}, local = {0};
        if (s < 2)
            decode(bench, &shapes[s]);
        for (uint32_t i = 0; i < (bench->tiny ? 3 : 64) && s == 2; i++)
            add_span(&local, behind, 1);
        if (s == 2)
            one(bench, &shapes[s], &local, bench->tiny ? "decode, 3 of 100" : "decode, 64 of 8k");
        add_span(&prompt, fresh, fresh);
        add_span(&tail, behind, chunk);
        one(bench, &shapes[s], &prompt, bench->tiny ? "prompt of 40" : "prompt of 8k");
        one(bench, &shapes[s], &tail, bench->tiny ? "last 17 of 100" : "last 512 of 8k");
    }
}
