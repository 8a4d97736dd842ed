/* cuda_attention_run against kernels/ref's attention, bit for bit: shapes, positions, windows, splits and schedules. Pages that no row sees are
 * not there, and bytes of keys that no row sees are poisoned. */
#include <math.h>
#include <string.h>
#include "on_device.h"
#include "kernels/kernels.h"
#include "tests/unit/kernels/reference.h"

#define SPANS_MAX 8u
#define SLOTS 2u
#define SLOT 1u

struct scene {
    struct cuda_attention_geometry geometry;
    struct cuda_page_layout layout;
    uint32_t span_count, rows, page_count;
    struct cuda_attention_span spans[SPANS_MAX];
    unsigned char **pages;                    /* (page_count) host; NULL: no row sees it */
    void **device_pages;
    int8_t *q;
    float *q_scale, *out, *want;
    float score_scale;
};

struct shape {
    uint32_t heads, kv_heads, dim, window, sinks;
};

enum scales { SCALES_PLAIN, SCALES_WIDE, SCALES_ZERO };

static bool sees(const struct shape *shape, uint32_t position, uint32_t key)
{
    return key <= position && (shape->window == 0 || position - key < shape->window || key < shape->sinks);
}

/* Is a key seen by a row of the span? The first row behind the key sees it, if any does. */
static bool span_sees(const struct shape *shape, const struct cuda_attention_span *span, uint32_t key)
{
    const uint32_t nearest = key > span->start ? key : span->start;
    return nearest < span->start + span->count && sees(shape, nearest, key);
}

static void *must(void *p)
{
    assert_non_null(p);
    return p;
}

static float draw_scale(struct random *random, enum scales kind)
{
    static const float wide[] = {0x1p-100f / 127.0f, 0x1p-60f, 1e-4f, 3.0f, 1e6f};
    if (kind == SCALES_WIDE)
        return wide[random_below(random, 5)];
    if (kind == SCALES_ZERO)
        return random_below(random, 3) ? 0.0f : 0x1p-130f;
    return 0.02f + random_float(random, 0.015f);
}

static unsigned char *make_page(const struct scene *scene, struct random *random, const struct shape *shape, const struct cuda_attention_span *span,
                                uint32_t begin, enum scales kind)
{
    static const float poison[] = {NAN, INFINITY, -INFINITY, 3e38f};
    const size_t heads = shape->kv_heads, dim = shape->dim, plane = heads * 64 * dim;
    unsigned char *page = must(malloc(SLOTS * scene->layout.slot_bytes)), *slot = page + SLOT * scene->layout.slot_bytes;
    memset(page, 0x5a, SLOTS * scene->layout.slot_bytes);
    float *scales = (float *)(slot + 2 * plane);
    for (size_t head = 0; head < heads; head++)
        for (uint32_t key = 0; key < 64; key++) {
            const bool seen = span_sees(shape, span, begin + key);
            for (size_t d = 0; d < dim; d++) {
                slot[(head * 64 + key) * dim + d] = (unsigned char)(seen ? random_int8(random) : -128);
                slot[plane + (head * dim + d) * 64 + key] = (unsigned char)(seen ? random_int8(random) : random_below(random, 2) ? 127 : -128);
            }
            scales[head * 64 + key] = seen ? draw_scale(random, kind == SCALES_ZERO ? SCALES_PLAIN : kind) : poison[random_below(random, 4)];
            scales[(heads + head) * 64 + key] = seen ? draw_scale(random, kind) : poison[random_below(random, 4)];
        }
    return page;
}

static void scene_create(struct scene *scene, struct random *random, const struct shape *shape, const struct cuda_attention_span *spans,
                         uint32_t span_count, enum scales kind)
{
    *scene = (struct scene){
        .geometry = {.heads = shape->heads, .kv_heads = shape->kv_heads, .dim = shape->dim, .window = shape->window, .sinks = shape->sinks},
        .layout = {.kv_heads = shape->kv_heads, .dim = shape->dim, .slots = SLOTS,
                   .slot_bytes = 2 * (size_t)shape->kv_heads * 64 * shape->dim + 2 * (size_t)shape->kv_heads * 64 * sizeof(float)},
        .span_count = span_count, .score_scale = 1.5f / (1.0f + sqrtf((float)shape->dim))};
    uint32_t row = 1;                          /* rows of others stand before, between and behind the spans' */
    for (uint32_t s = 0; s < span_count; s++) {
        scene->spans[s] = spans[s];
        scene->spans[s].row = row;
        scene->spans[s].page_first = scene->page_count;
        row += spans[s].count + s % 2;
        scene->page_count += (spans[s].start + spans[s].count + 63) / 64;
    }
    scene->rows = row + 1;
    scene->pages = must(calloc(scene->page_count, sizeof *scene->pages));
    scene->device_pages = must(calloc(scene->page_count, sizeof *scene->device_pages));
    for (uint32_t s = 0; s < span_count; s++)
        for (uint32_t begin = 0; begin < spans[s].start + spans[s].count; begin += 64) {
            const uint32_t p = scene->spans[s].page_first + begin / 64;
            bool seen = false;
            for (uint32_t key = begin; key < begin + 64 && !seen; key++)
                seen = span_sees(shape, &spans[s], key);
            if (seen) {
                scene->pages[p] = make_page(scene, random, shape, &spans[s], begin, kind);
                scene->device_pages[p] = device_put(scene->pages[p], SLOTS * scene->layout.slot_bytes);
            }
        }
    const size_t values = (size_t)scene->rows * shape->heads * shape->dim;
    scene->q = must(malloc(values));
    scene->q_scale = must(malloc(scene->rows * shape->heads * sizeof(float)));
    scene->out = must(malloc(values * sizeof(float)));
    scene->want = must(malloc(values * sizeof(float)));
    for (size_t i = 0; i < values; i++)
        scene->q[i] = random_int8(random);
    for (size_t i = 0; i < scene->rows * shape->heads; i++)
        scene->q_scale[i] = draw_scale(random, SCALES_PLAIN);
}

static void scene_destroy(struct scene *scene)
{
    for (uint32_t p = 0; p < scene->page_count; p++)
        if (scene->pages[p]) {
            device_drop(scene->device_pages[p]);
            free(scene->pages[p]);
        }
    free(scene->pages), free(scene->device_pages), free(scene->q), free(scene->q_scale), free(scene->out), free(scene->want);
}

static void run_ref(struct scene *scene)
{
    const struct cuda_attention_geometry *g = &scene->geometry;
    const size_t plane = (size_t)g->kv_heads * 64 * g->dim, slot = SLOT * scene->layout.slot_bytes;
    const size_t bytes = attention_scratch_bytes(g->heads, g->kv_heads, g->dim);
    void *scratch = must(aligned_alloc(64, (bytes + 63) / 64 * 64));
    memset(scene->want, 0x7f, (size_t)scene->rows * g->heads * g->dim * sizeof(float));
    for (uint32_t s = 0; s < scene->span_count; s++) {
        const struct cuda_attention_span *span = &scene->spans[s];
        const size_t at = (size_t)span->row * g->heads;
        struct attention job = {
            .q = scene->q + at * g->dim, .q_scale = scene->q_scale + at, .rows = span->count, .heads = g->heads, .kv_heads = g->kv_heads,
            .dim = g->dim, .start = span->start, .window = g->window, .sinks = g->sinks, .score_scale = scene->score_scale,
            .pages = (void *const *)scene->pages + span->page_first, .k_offset = slot, .v_offset = slot + plane, .k_scale_offset = slot + 2 * plane,
            .v_scale_offset = slot + 2 * plane + (size_t)g->kv_heads * 64 * sizeof(float), .out = scene->want + at * g->dim, .scratch = scratch};
        kernels_at(0)->attention(&job);
    }
    free(scratch);
}

/* On the device, with a plan for so many workers; all rows of out, also those beside the spans, are compared. */
static void check_device(struct scene *scene, uint32_t workers, const char *what)
{
    const struct cuda_attention_geometry *g = &scene->geometry;
    const size_t values = (size_t)scene->rows * g->heads * g->dim;
    struct cuda_attention_plan plan = {0};
    assert_true(cuda_attention_plan_make(scene->spans, scene->span_count, g, workers, &plan));
    const size_t partial_bytes = cuda_attention_partial_bytes(&plan, g);
    memset(scene->out, 0x7f, values * sizeof(float));
    struct cuda_attention job = {
        .q = device_put(scene->q, values), .q_scale = device_put(scene->q_scale, scene->rows * g->heads * sizeof(float)), .geometry = *g,
        .layout = scene->layout, .slot = SLOT, .score_scale = scene->score_scale,
        .spans = device_put(scene->spans, scene->span_count * sizeof *scene->spans),
        .tasks = device_put(plan.tasks, plan.task_count * sizeof *plan.tasks),
        .merges = plan.merge_count ? device_put(plan.merges, plan.merge_count * sizeof *plan.merges) : NULL, .task_count = plan.task_count,
        .large_count = plan.large_count, .merge_count = plan.merge_count, .pairs_max = plan.pairs_max,
        .pages = device_put(scene->device_pages, scene->page_count * sizeof *scene->device_pages),
        .partials = partial_bytes ? device_new(partial_bytes) : NULL, .out = device_put(scene->out, values * sizeof(float))};
    launched(cuda_attention_run(&job, NULL));
    device_get(scene->out, job.out, values * sizeof(float));
    const size_t width = (size_t)g->heads * g->dim;
    for (uint32_t row = 0; row < scene->rows; row++)
        for (size_t i = 0; i < width; i++)
            if (memcmp(&scene->out[row * width + i], &scene->want[row * width + i], sizeof(float)) != 0)
                fail_msg("%s, %u workers, %u heads, %u KV heads, dim %u, window %u, sinks %u: row %u head %zu dim %zu is %a, not %a", what, workers,
                         g->heads, g->kv_heads, g->dim, g->window, g->sinks, row, i / g->dim, i % g->dim, (double)scene->out[row * width + i],
                         (double)scene->want[row * width + i]);
    const void *const all[] = {job.q, job.q_scale, job.spans, job.tasks, job.merges, job.pages, job.partials, job.out};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i])
            device_drop(all[i]);
    cuda_attention_plan_free(&plan);
}

static void check(struct random *random, const struct shape *shape, const struct cuda_attention_span *spans, uint32_t span_count, enum scales kind,
                  uint32_t workers, const char *what)
{
    struct scene scene;
    scene_create(&scene, random, shape, spans, span_count, kind);
    run_ref(&scene);
    check_device(&scene, workers, what);
    scene_destroy(&scene);
}

#define SPAN(from, rows) {.start = (from), .count = (rows)}

/* Pairs from one row of one head to several tiles. */
static void rows_and_heads(void **state)
{
    (void)state;
    static const struct {
        struct shape shape;
        struct cuda_attention_span span;
    } cases[] = {
        {{1, 1, 32, 0, 0}, SPAN(0, 1)},    {{4, 1, 64, 0, 0}, SPAN(0, 130)},  {{8, 1, 128, 0, 0}, SPAN(70, 1)},  {{16, 1, 64, 0, 0}, SPAN(127, 1)},
        {{16, 1, 64, 0, 0}, SPAN(63, 2)},  {{16, 4, 32, 0, 0}, SPAN(64, 5)},  {{8, 2, 128, 0, 0}, SPAN(61, 9)},  {{2, 2, 256, 0, 0}, SPAN(130, 7)},
        {{12, 4, 64, 0, 0}, SPAN(0, 65)},  {{8, 1, 256, 0, 0}, SPAN(100, 3)}, {{3, 1, 512, 0, 0}, SPAN(63, 3)},  {{5, 1, 512, 0, 0}, SPAN(10, 9)},
        {{40, 1, 512, 0, 0}, SPAN(64, 2)}, {{80, 1, 32, 0, 0}, SPAN(5, 2)},   {{7, 7, 64, 0, 0}, SPAN(60, 10)},  {{9, 3, 64, 0, 0}, SPAN(65, 33)},
    };
    struct random random = {test_seed(1)};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(&random, &cases[i].shape, &cases[i].span, 1, SCALES_PLAIN, 4, "rows and heads");
}

/* Any even size of a head: whole chunks of 16 bytes, words, single bytes; padded to the next kernel's size. */
static void head_sizes(void **state)
{
    (void)state;
    static const uint32_t dims[] = {2, 6, 16, 20, 32, 48, 66, 80, 96, 130, 192, 260, 320, 510};
    struct random random = {test_seed(2)};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        const struct cuda_attention_span one = SPAN(66, 1), several = SPAN(60, 9);
        check(&random, &(struct shape){4, 2, dims[i], 0, 0}, &one, 1, SCALES_PLAIN, 4, "head sizes");
        check(&random, &(struct shape){4, 1, dims[i], 40, 3}, &several, 1, SCALES_PLAIN, 4, "head sizes");
    }
}

static void edges_of_blocks_and_units(void **state)
{
    (void)state;
    static const uint32_t starts[] = {1, 62, 63, 64, 1022, 1023, 1024, 2047, 2049};
    struct random random = {test_seed(3)};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        const struct cuda_attention_span one = SPAN(starts[i], 1), several = SPAN(starts[i], 5);
        check(&random, &(struct shape){2, 1, 32, 0, 0}, &one, 1, SCALES_PLAIN, i % 2 ? 1 : 32, "edges");
        check(&random, &(struct shape){4, 1, 32, 0, 0}, &several, 1, SCALES_PLAIN, i % 2 ? 32 : 1, "edges");
    }
}

static void windows_and_sinks(void **state)
{
    (void)state;
    static const uint32_t windows[] = {1, 24, 63, 64, 65, 128, 1000}, sinks[] = {0, 1, 4, 64, 65, 1100, 5000};
    static const uint32_t starts[] = {0, 60, 190, 1020, 1090, 2200};
    struct random random = {test_seed(4)};
    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++)
        for (size_t at = 0; at < sizeof starts / sizeof *starts; at++) {
            const uint32_t sunk = sinks[(w + at) % (sizeof sinks / sizeof *sinks)];
            const struct cuda_attention_span several = SPAN(starts[at], 20), one = SPAN(starts[at] + 7, 1);
            check(&random, &(struct shape){2, 1, 32, windows[w], sunk}, &several, 1, SCALES_PLAIN, 1 + 63 * (at % 2), "windows");
            check(&random, &(struct shape){4, 2, 32, windows[w], sunk}, &one, 1, SCALES_PLAIN, 1 + 63 * (w % 2), "windows");
        }
    const struct cuda_attention_span across = SPAN(2040, 70);      /* rows of one tile whose windows begin in different units */
    check(&random, &(struct shape){1, 1, 32, 1024, 0}, &across, 1, SCALES_PLAIN, 64, "windows");
    check(&random, &(struct shape){1, 1, 32, 1000, 2}, &across, 1, SCALES_PLAIN, 1, "windows");
    const struct cuda_attention_span split = SPAN(5040, 20);       /* the later rows see nothing of the first task's unit */
    check(&random, &(struct shape){1, 1, 32, 3000, 0}, &split, 1, SCALES_PLAIN, 64, "windows");
    check(&random, &(struct shape){1, 1, 32, 3000, 2}, &split, 1, SCALES_PLAIN, 64, "windows");
}

/* Scales from the smallest to huge ones beside each other; values of which all or nearly all scales are zero. */
static void extremes(void **state)
{
    (void)state;
    const struct cuda_attention_span spans[] = {SPAN(1010, 30), SPAN(70, 1)};
    struct random random = {test_seed(5)};
    for (uint32_t kind = SCALES_WIDE; kind <= SCALES_ZERO; kind++)
        for (uint32_t i = 0; i < 3; i++)
            check(&random, &(struct shape){4, 2, i ? 32 : 256, i == 1 ? 40 : 0, 0}, spans, 2, (enum scales)kind, 1 + 31 * (i % 2), "extremes");
}

/* How a plan splits and in which order blocks run changes no bit. */
static void splits_and_schedules(void **state)
{
    (void)state;
    static const uint32_t workers[] = {1, 2, 3, 5, 8, 16, 400};
    const struct cuda_attention_span spans[] = {SPAN(3000, 1), SPAN(0, 20), SPAN(2100, 3), SPAN(64, 1), SPAN(1500, 17)};
    struct random random = {test_seed(6)};
    for (uint32_t i = 0; i < 2; i++) {
        const struct shape shape = {4, 1, 64, i ? 1500 : 0, i ? 10 : 0};
        struct scene scene;
        scene_create(&scene, &random, &shape, spans, sizeof spans / sizeof *spans, SCALES_PLAIN);
        run_ref(&scene);
        for (size_t w = 0; w < sizeof workers / sizeof *workers; w++) {
            emulation_set_seed(test_seed(7 + w));
            check_device(&scene, workers[w], "splits");
        }
        scene_destroy(&scene);
    }
    const struct shape wide = {4, 1, 512, 0, 0};
    struct scene scene;
    scene_create(&scene, &random, &wide, (const struct cuda_attention_span[]){SPAN(1100, 1), SPAN(80, 5)}, 2, SCALES_PLAIN);
    run_ref(&scene);
    for (uint32_t s = 0; s < SCHEDULES; s++) {
        emulation_set_seed(test_seed(20 + s));
        check_device(&scene, s ? 64 : 1, "schedules");
    }
    scene_destroy(&scene);
}

/* 129 units, one more than attention_merge.cu prepares side by side. */
static void many_units(void **state)
{
    (void)state;
    const struct cuda_attention_span span = SPAN(132000, 1);
    struct random random = {test_seed(8)};
    check(&random, &(struct shape){1, 1, 2, 0, 0}, &span, 1, SCALES_PLAIN, 100, "many units");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_and_heads), cmocka_unit_test(head_sizes), cmocka_unit_test(edges_of_blocks_and_units),
        cmocka_unit_test(windows_and_sinks), cmocka_unit_test(extremes), cmocka_unit_test(splits_and_schedules), cmocka_unit_test(many_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
