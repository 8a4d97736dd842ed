/* Attention on every level: equal bits to the reference, close to a softmax in double, blind to what a row may not see. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "reference.h"

struct scene {                 /* one cache and one run of queries over it */
    size_t heads, kv_heads, dim, page_bytes;
    uint32_t tokens;           /* positions in the cache */
    unsigned page_count;
    void **pages;
    int8_t *q;                 /* (tokens, heads, dim) */
    float *q_scale;            /* (tokens, heads) */
    float *out, *want;
    void *scratch;
    struct attention job;
};

static void scene_create(struct scene *scene, struct random *random, size_t heads, size_t kv_heads, size_t dim, uint32_t tokens)
{
    *scene = (struct scene){.heads = heads, .kv_heads = kv_heads, .dim = dim, .tokens = tokens, .page_count = (tokens + 63) / 64};
    size_t plane = kv_heads * 64 * dim, scales = kv_heads * 64 * sizeof(float);
    scene->page_bytes = 2 * plane + 2 * scales;
    scene->pages = calloc(scene->page_count, sizeof *scene->pages);
    for (unsigned p = 0; p < scene->page_count; p++) {
        int8_t *page = malloc(scene->page_bytes);
        for (size_t i = 0; i < 2 * plane; i++)
            page[i] = random_int8(random);
        float *scale = (float *)(page + 2 * plane);
        for (size_t i = 0; i < 2 * kv_heads * 64; i++)
            scale[i] = 0.02f + random_float(random, 0.015f);
        scene->pages[p] = page;
    }
    size_t count = (size_t)tokens * heads * dim;
    scene->q = malloc(count);
    scene->q_scale = malloc(tokens * heads * sizeof(float));
    scene->out = malloc(count * sizeof(float));
    scene->want = malloc(count * sizeof(float));
    for (size_t i = 0; i < count; i++)
        scene->q[i] = random_int8(random);
    for (size_t i = 0; i < tokens * heads; i++)
        scene->q_scale[i] = 0.02f + random_float(random, 0.015f);
    size_t bytes = attention_scratch_bytes(heads, kv_heads, dim);
    scene->scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
    scene->job = (struct attention){
        .heads = heads, .kv_heads = kv_heads, .dim = dim, .score_scale = 1.5f / (1.0f + sqrtf((float)dim)), .pages = scene->pages,
        .k_offset = 0, .v_offset = plane, .k_scale_offset = 2 * plane, .v_scale_offset = 2 * plane + scales,
        .scratch = scene->scratch};
}

static void scene_destroy(struct scene *scene)
{
    for (unsigned p = 0; p < scene->page_count; p++)
        free(scene->pages[p]);
    free(scene->pages), free(scene->q), free(scene->q_scale), free(scene->out), free(scene->want), free(scene->scratch);
}

/* Rows [start, start + rows) of the scene's queries, into the same rows of out. */
static struct attention scene_job(const struct scene *scene, uint32_t start, uint32_t rows, uint32_t window, float *out)
{
    struct attention job = scene->job;
    job.q = scene->q + (size_t)start * scene->heads * scene->dim;
    job.q_scale = scene->q_scale + (size_t)start * scene->heads;
    job.rows = rows;
    job.start = start;
    job.window = window;
    job.out = out + (size_t)start * scene->heads * scene->dim;
    return job;
}

static void assert_rows_equal(const struct scene *scene, uint32_t start, uint32_t rows, const char *isa, const char *what)
{
    size_t row = scene->heads * scene->dim;
    for (uint32_t i = start; i < start + rows; i++)
        if (memcmp(scene->out + i * row, scene->want + i * row, row * sizeof(float)) != 0)
            fail_msg("%s on %s: row %u has other bits", what, isa, i);
}

static void check_reference(struct random *random, size_t heads, size_t kv_heads, size_t dim, uint32_t start, uint32_t rows,
                            uint32_t window)
{
    struct scene scene;
    scene_create(&scene, random, heads, kv_heads, dim, start + rows);
    struct attention job = scene_job(&scene, start, rows, window, scene.want);
    reference_attention(&job);
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
        job = scene_job(&scene, start, rows, window, scene.out);
        kernels->attention(&job);
        assert_rows_equal(&scene, start, rows, kernels->isa, "attention");
    }
    scene_destroy(&scene);
}

static void equals_the_reference(void **state)
{
    (void)state;
    struct random random = {11};
    check_reference(&random, 4, 1, 64, 0, 130, 0);
    check_reference(&random, 4, 1, 64, 0, 130, 24);
    check_reference(&random, 1, 1, 2, 0, 70, 0);
    check_reference(&random, 6, 2, 36, 40, 60, 33);
    check_reference(&random, 6, 6, 20, 100, 9, 0);
    check_reference(&random, 40, 1, 16, 60, 10, 0);       /* more heads than a tile holds */
    check_reference(&random, 3, 1, 512, 63, 3, 64);
    check_reference(&random, 4, 1, 32, 1000, 60, 0);      /* over the end of a unit */
    check_reference(&random, 4, 1, 32, 3070, 10, 0);      /* three units */
    check_reference(&random, 4, 1, 32, 2040, 20, 1024);   /* a window over a unit's end */
    check_reference(&random, 4, 1, 32, 1, 1, 1);
    for (uint32_t window = 62; window <= 67; window++)
        check_reference(&random, 2, 1, 8, 120, 16, window);
}

static void decode_chunks_and_prefill_agree(void **state)
{
    (void)state;
    struct random random = {12};
    static const uint32_t chunks[] = {1, 3, 8, 17, 64, 100, 1 << 20};
    for (uint32_t window = 0; window < 200; window += 70) {
        struct scene scene;
        scene_create(&scene, &random, 4, 1, 32, 1100);
        uint32_t from = 900, rows = 200;
        struct attention whole = scene_job(&scene, from, rows, window, scene.want);
        kernels_at(0)->attention(&whole);
        const struct kernels *kernels;
        for (unsigned i = 0; (kernels = kernels_at(i)); i++)
            for (unsigned c = 0; c < sizeof chunks / sizeof *chunks; c++) {
                for (uint32_t at = from; at < from + rows;) {
                    uint32_t left = from + rows - at, count = chunks[c] < left ? chunks[c] : left;
                    struct attention job = scene_job(&scene, at, count, window, scene.out);
                    kernels->attention(&job);
                    at += count;
                }
                assert_rows_equal(&scene, from, rows, kernels->isa, "a chunk");
            }
        scene_destroy(&scene);
    }
}

static void is_close_to_a_softmax_in_double(void **state)
{
    (void)state;
    struct random random = {13};
    for (uint32_t window = 0; window <= 300; window += 300) {
        struct scene scene;
        scene_create(&scene, &random, 4, 1, 64, 1300);
        uint32_t from = 1200, rows = 100;
        size_t row = scene.heads * scene.dim;
        double *exact = calloc(rows * row, sizeof *exact), error = 0, size = 0;
        struct attention job = scene_job(&scene, from, rows, window, scene.out);
        kernels_at(0)->attention(&job);
        reference_attention_exact(&job, exact);
        for (size_t i = 0; i < rows * row; i++) {
            double difference = scene.out[from * row + i] - exact[i];
            error += difference * difference;
            size += exact[i] * exact[i];
        }
        print_message("window %u: relative error %.4f%%\n", window, 100 * sqrt(error / size));
        assert_true(sqrt(error / size) < 0.01);
        free(exact);
        scene_destroy(&scene);
    }
}

/* Bytes of pages that a row may not see: the future, and what the window has left behind. NaN scales would spread at once. */
static void hidden_keys_change_nothing(void **state)
{
    (void)state;
    struct random random = {14};
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++)
        for (uint32_t window = 0; window <= 90; window += 45) {
            struct scene scene;
            scene_create(&scene, &random, 4, 2, 24, 256);
            uint32_t position = 150;
            struct attention job = scene_job(&scene, position, 1, window, scene.want);
            kernels->attention(&job);
            uint32_t first = window ? position + 1 - window : 0;
            for (uint32_t t = 0; t < 256; t++) {
                if (t >= first && t <= position)
                    continue;
                char *page = scene.pages[t / 64];
                for (size_t head = 0; head < 2; head++) {
                    memset(page + job.k_offset + (head * 64 + t % 64) * 24, 0x80, 24);
                    for (size_t d = 0; d < 24; d++)
                        page[job.v_offset + (head * 24 + d) * 64 + t % 64] = (char)0x80;
                    ((float *)(page + job.k_scale_offset))[head * 64 + t % 64] = t % 2 ? NAN : INFINITY;
                    ((float *)(page + job.v_scale_offset))[head * 64 + t % 64] = t % 2 ? NAN : INFINITY;
                }
            }
            job = scene_job(&scene, position, 1, window, scene.out);
            kernels->attention(&job);
            assert_rows_equal(&scene, position, 1, kernels->isa, "hidden keys");
            scene_destroy(&scene);
        }
}

/* Scales that overflow the scores: the result must not look like a number. */
static void overflow_shows(void **state)
{
    (void)state;
    struct random random = {16};
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++)
        for (int sign = -1; sign <= 1; sign += 2) {
            struct scene scene;
            scene_create(&scene, &random, 1, 1, 16, 70);
            memset(scene.q, sign * 100, 70 * 16);
            for (unsigned p = 0; p < 2; p++) {
                memset(scene.pages[p], 100, 64 * 16);
                for (unsigned j = 0; j < 64; j++)
                    ((float *)((char *)scene.pages[p] + scene.job.k_scale_offset))[j] = 1e38f;
            }
            for (uint32_t position = 0; position < 70; position++) {
                struct attention job = scene_job(&scene, position, 1, 0, scene.out);
                kernels->attention(&job);
                assert_false(kernels->all_finite(scene.out + position * 16, 16));
            }
            scene_destroy(&scene);
        }
}

/* A key just inside the window counts, the one before it does not. */
static void window_ends_where_it_should(void **state)
{
    (void)state;
    struct random random = {15};
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++)
        for (int inside = 0; inside < 2; inside++) {
            struct scene scene;
            scene_create(&scene, &random, 1, 1, 16, 128);
            uint32_t position = 100, window = 50, key = position - window + (inside ? 1 : 0);
            struct attention job = scene_job(&scene, position, 1, window, scene.want);
            kernels->attention(&job);
            memcpy((int8_t *)scene.pages[key / 64] + (key % 64) * 16, job.q, 16);   /* the query itself: a high score */
            job = scene_job(&scene, position, 1, window, scene.out);
            kernels->attention(&job);
            bool same = memcmp(scene.out + position * 16, scene.want + position * 16, 16 * sizeof(float)) == 0;
            assert_int_equal(same, !inside);
            scene_destroy(&scene);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_reference),
        cmocka_unit_test(decode_chunks_and_prefill_agree),
        cmocka_unit_test(is_close_to_a_softmax_in_double),
        cmocka_unit_test(hidden_keys_change_nothing),
        cmocka_unit_test(overflow_shows),
        cmocka_unit_test(window_ends_where_it_should),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
