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
    void **seen;               /* the pages of the last job: NULL where no row of it sees anything */
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
    scene->seen = calloc(scene->page_count, sizeof *scene->seen);
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
    free(scene->pages), free(scene->seen), free(scene->q), free(scene->q_scale), free(scene->out), free(scene->want), free(scene->scratch);
}

static bool sees(uint32_t position, uint32_t key, uint32_t window, uint32_t sinks)
{
    return key <= position && (window == 0 || position - key < window || key < sinks);
}

/* Rows [start, start + rows) of the scene's queries, into the same rows of out. Pages that they do not see are not given. */
static struct attention scene_job(const struct scene *scene, uint32_t start, uint32_t rows, uint32_t window, uint32_t sinks, float *out)
{
    for (unsigned p = 0; p < scene->page_count; p++) {
        scene->seen[p] = NULL;
        for (uint32_t row = start; row < start + rows; row++)
            for (uint32_t key = p * 64; key < p * 64 + 64; key++)
                if (sees(row, key, window, sinks))
                    scene->seen[p] = scene->pages[p];
    }
    struct attention job = scene->job;
    job.q = scene->q + (size_t)start * scene->heads * scene->dim;
    job.q_scale = scene->q_scale + (size_t)start * scene->heads;
    job.rows = rows;
    job.start = start;
    job.window = window;
    job.sinks = sinks;
    job.pages = scene->seen;
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
                            uint32_t window, uint32_t sinks)
{
    struct scene scene;
    scene_create(&scene, random, heads, kv_heads, dim, start + rows);
    struct attention job = scene_job(&scene, start, rows, window, sinks, scene.want);
    reference_attention(&job);
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
        job = scene_job(&scene, start, rows, window, sinks, scene.out);
        kernels->attention(&job);
        assert_rows_equal(&scene, start, rows, kernels->isa, "attention");
    }
    scene_destroy(&scene);
}

static void equals_the_reference(void **state)
{
    (void)state;
    struct random random = {11};
    check_reference(&random, 4, 1, 64, 0, 130, 0, 0);
    check_reference(&random, 4, 1, 64, 0, 130, 24, 0);
    check_reference(&random, 1, 1, 2, 0, 70, 0, 0);
    check_reference(&random, 6, 2, 36, 40, 60, 33, 0);
    check_reference(&random, 6, 6, 20, 100, 9, 0, 0);
    check_reference(&random, 40, 1, 16, 60, 10, 0, 0);       /* more heads than a tile holds */
    check_reference(&random, 80, 2, 16, 60, 3, 0, 0);
    check_reference(&random, 3, 1, 512, 63, 3, 64, 0);
    check_reference(&random, 4, 1, 32, 1000, 60, 0, 0);      /* over the end of a unit */
    check_reference(&random, 4, 1, 32, 3070, 10, 0, 0);      /* three units */
    check_reference(&random, 4, 1, 32, 2040, 20, 1024, 0);   /* a window over a unit's end */
    check_reference(&random, 4, 1, 32, 1, 1, 1, 0);
    for (uint32_t window = 62; window <= 67; window++)
        check_reference(&random, 2, 1, 8, 120, 16, window, 0);
}

/* MQA, GQA and MHA at the head sizes models have, and odd ones. */
static void every_shape_of_heads_equals_the_reference(void **state)
{
    (void)state;
    static const size_t dims[] = {64, 80, 96, 128, 256, 512, 66, 130};
    static const size_t heads[][2] = {{8, 1}, {8, 2}, {8, 8}, {4, 4}, {5, 1}, {9, 3}, {7, 7}};
    struct random random = {17};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (size_t h = 0; h < sizeof heads / sizeof *heads; h++) {
            check_reference(&random, heads[h][0], heads[h][1], dims[d], 50, 21, 0, 0);
            check_reference(&random, heads[h][0], heads[h][1], dims[d], 190, 5, 70, 2);
        }
}

static void sinks_equal_the_reference(void **state)
{
    (void)state;
    static const uint32_t sinks[] = {1, 4, 63, 64, 65, 130, 1023, 1024, 1100, 5000};
    static const uint32_t starts[] = {0, 60, 300, 1020, 1090, 2200};
    struct random random = {18};
    for (size_t s = 0; s < sizeof sinks / sizeof *sinks; s++)
        for (size_t at = 0; at < sizeof starts / sizeof *starts; at++) {
            check_reference(&random, 2, 1, 24, starts[at], 9, 50, sinks[s]);
            check_reference(&random, 4, 2, 8, starts[at], 70, 1 + random_below(&random, 140), sinks[s]);
        }
    check_reference(&random, 3, 1, 16, 40, 30, 0, 7);        /* without a window they mean nothing */
}

/* Scales from the smallest a row can have to huge ones, beside each other; integers at their ends. */
static void extremes_equal_the_reference(void **state)
{
    (void)state;
    static const float scales[] = {0x1p-100f / 127.0f, 0x1p-60f, 1e-4f, 3.0f, 1e6f, 1e30f};
    struct random random = {19};
    const struct kernels *kernels;
    for (unsigned kind = 0; kind < 12; kind++) {
        struct scene scene;
        scene_create(&scene, &random, 4, 2, 40, 150);
        for (unsigned p = 0; p < scene.page_count; p++) {
            int8_t *page = scene.pages[p];
            float *scale = (float *)(page + scene.job.k_scale_offset);      /* K's, then V's */
            for (size_t i = 0; i < 4 * 64; i++)
                scale[i] = kind % 2 ? scales[random_below(&random, 6)] : i < 2 * 64 ? 0.01f : scales[kind / 2];
            if (kind >= 6)
                for (size_t i = 0; i < scene.job.k_scale_offset; i++)
                    page[i] = random_below(&random, 2) ? 127 : -127;
        }
        struct attention job = scene_job(&scene, 100, 50, kind % 3 ? 0 : 40, 0, scene.want);
        reference_attention(&job);
        for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
            job = scene_job(&scene, 100, 50, kind % 3 ? 0 : 40, 0, scene.out);
            kernels->attention(&job);
            assert_rows_equal(&scene, 100, 50, kernels->isa, "extremes");
        }
        scene_destroy(&scene);
    }
}

/* Any split of rows and heads gives the bits of the whole, and writes nothing beside its own. */
static void slices_agree_with_the_whole(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{8, 1}, {12, 3}, {7, 7}, {40, 1}, {50, 2}, {23, 1}};
    struct random random = {20};
    const struct kernels *kernels;
    for (size_t n = 0; n < sizeof shapes / sizeof *shapes; n++)
        for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
            struct scene scene;
            size_t heads = shapes[n][0];
            scene_create(&scene, &random, heads, shapes[n][1], 32, 200);
            uint32_t start = 160, window = n % 2 ? 70 : 0, sinks = n % 2 ? 3 : 0;
            struct attention job = scene_job(&scene, start, 40, window, sinks, scene.want);
            kernels_at(0)->attention(&job);
            memset(scene.out, 0x7f, 200 * heads * 32 * sizeof(float));
            size_t skip = random_below(&random, 3);
            for (uint32_t row = 0; row < 40;) {
                uint32_t count = 1 + random_below(&random, 12), rows = count < 40 - row ? count : 40 - row;
                for (size_t head = skip; head < heads;) {
                    job = scene_job(&scene, start + row, rows, window, sinks, scene.out);
                    size_t left = heads - head, some = 1 + random_below(&random, (uint32_t)heads);
                    job.head_first = head;
                    job.head_count = some < left ? some : left;
                    kernels->attention(&job);
                    head += job.head_count;
                }
                row += rows;
            }
            for (uint32_t row = start; row < start + 40; row++) {
                float *out = scene.out + row * heads * 32;
                for (size_t at = 0; at < skip * 32; at++) {
                    uint32_t bits;
                    memcpy(&bits, &out[at], sizeof bits);
                    assert_int_equal(bits, 0x7f7f7f7f);                /* left alone */
                }
                memcpy(out, scene.want + row * heads * 32, skip * 32 * sizeof(float));
            }
            assert_rows_equal(&scene, start, 40, kernels->isa, "a slice");
            scene_destroy(&scene);
        }
}

static void decode_chunks_and_prefill_agree(void **state)
{
    (void)state;
    struct random random = {12};
    static const uint32_t chunks[] = {1, 3, 8, 17, 64, 100, 1 << 20};
    for (unsigned way = 0; way < 4; way++) {
        uint32_t window = way * 70 % 210, sinks = way == 3 ? 0 : way * 5;
        struct scene scene;
        scene_create(&scene, &random, 4, 1, 32, 1100);
        uint32_t from = 900, rows = 200;
        struct attention whole = scene_job(&scene, from, rows, window, sinks, scene.want);
        kernels_at(0)->attention(&whole);
        const struct kernels *kernels;
        for (unsigned i = 0; (kernels = kernels_at(i)); i++)
            for (unsigned c = 0; c < sizeof chunks / sizeof *chunks; c++) {
                for (uint32_t at = from; at < from + rows;) {
                    uint32_t left = from + rows - at, count = chunks[c] < left ? chunks[c] : left;
                    struct attention job = scene_job(&scene, at, count, window, sinks, scene.out);
                    kernels->attention(&job);
                    at += count;
                }
                assert_rows_equal(&scene, from, rows, kernels->isa, "a chunk");
            }
        scene_destroy(&scene);
    }
}

static void check_close(struct random *random, size_t dim, uint32_t window, uint32_t sinks)
{
    struct scene scene;
    scene_create(&scene, random, 4, 1, dim, 1300);
    uint32_t from = 1200, rows = 100;
    size_t row = scene.heads * scene.dim;
    double *exact = calloc(rows * row, sizeof *exact), error = 0, size = 0;
    struct attention job = scene_job(&scene, from, rows, window, sinks, scene.out);
    kernels_at(0)->attention(&job);
    reference_attention_exact(&job, exact);
    for (size_t i = 0; i < rows * row; i++) {
        double difference = scene.out[from * row + i] - exact[i];
        error += difference * difference;
        size += exact[i] * exact[i];
    }
    print_message("head of %zu, window %u, sinks %u: relative error %.4f%%\n", dim, window, sinks, 100 * sqrt(error / size));
    assert_true(sqrt(error / size) < 0.01);
    free(exact);
    scene_destroy(&scene);
}

static void is_close_to_a_softmax_in_double(void **state)
{
    (void)state;
    struct random random = {13};
    check_close(&random, 64, 0, 0);
    check_close(&random, 64, 300, 0);
    check_close(&random, 64, 300, 4);
    check_close(&random, 256, 0, 0);
    check_close(&random, 256, 512, 0);
    check_close(&random, 512, 0, 0);
}

/* Bytes of pages that a row may not see: the future, and what the window has left behind. NaN scales would spread at once. */
static void check_hidden(const struct kernels *kernels, struct random *random, uint32_t window, uint32_t sinks)
{
    struct scene scene;
    scene_create(&scene, random, 4, 2, 24, 256);
    uint32_t position = 150;
    struct attention job = scene_job(&scene, position, 1, window, sinks, scene.want);
    kernels->attention(&job);
    for (uint32_t t = 0; t < 256; t++) {
        if (sees(position, t, window, sinks))
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
    job = scene_job(&scene, position, 1, window, sinks, scene.out);
    kernels->attention(&job);
    assert_rows_equal(&scene, position, 1, kernels->isa, "hidden keys");
    scene_destroy(&scene);
}

static void hidden_keys_change_nothing(void **state)
{
    (void)state;
    struct random random = {14};
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++)
        for (uint32_t window = 0; window <= 90; window += 45)
            for (uint32_t sinks = 0; sinks <= 10; sinks += 5)
                check_hidden(kernels, &random, window, sinks);
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
                struct attention job = scene_job(&scene, position, 1, 0, 0, scene.out);
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
            struct attention job = scene_job(&scene, position, 1, window, 0, scene.want);
            kernels->attention(&job);
            memcpy((int8_t *)scene.pages[key / 64] + (key % 64) * 16, job.q, 16);   /* the query itself: a high score */
            job = scene_job(&scene, position, 1, window, 0, scene.out);
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
        cmocka_unit_test(every_shape_of_heads_equals_the_reference),
        cmocka_unit_test(sinks_equal_the_reference),
        cmocka_unit_test(extremes_equal_the_reference),
        cmocka_unit_test(slices_agree_with_the_whole),
        cmocka_unit_test(decode_chunks_and_prefill_agree),
        cmocka_unit_test(is_close_to_a_softmax_in_double),
        cmocka_unit_test(hidden_keys_change_nothing),
        cmocka_unit_test(overflow_shows),
        cmocka_unit_test(window_ends_where_it_should),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
