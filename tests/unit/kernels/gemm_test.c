/* The integer product on every level against a triple loop in int64: equal bits, also of wide rows, extremes and slices. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "reference.h"

enum fill { RANDOM, HIGHEST, LOWEST, EXTREMES, LARGE };   /* of the integers: EXTREMES mixes both, LARGE is near the highest */

struct scene {
    size_t rows, outputs, depth;
    int8_t *a, *a_low, *w;
    float *a_scale, *w_scale, *out, *want;
    void *scratch;
};

static int8_t integer(struct random *random, enum fill fill, int lowest)
{
    if (fill == RANDOM)
        return lowest == -128 ? (int8_t)((int)random_below(random, 256) - 128) : random_int8(random);
    if (fill == LARGE)
        return (int8_t)(127 - (int)random_below(random, 28));
    bool low = fill == LOWEST || (fill == EXTREMES && random_below(random, 2));
    return (int8_t)(low ? lowest : 127);
}

static void scene_create(struct scene *scene, struct random *random, size_t rows, size_t outputs, size_t depth, enum fill fill)
{
    *scene = (struct scene){.rows = rows, .outputs = outputs, .depth = depth, .a = malloc(rows * depth), .a_low = malloc(rows * depth),
                            .w = malloc(outputs * depth), .a_scale = malloc(rows * sizeof(float)),
                            .w_scale = malloc(outputs * sizeof(float)), .out = malloc(rows * outputs * sizeof(float)),
                            .want = malloc(rows * outputs * sizeof(float)),
                            .scratch = aligned_alloc(64, (GEMM_SCRATCH_BYTES(depth) + 63) / 64 * 64)};
    for (size_t i = 0; i < rows * depth; i++) {
        scene->a[i] = integer(random, fill, -127);
        scene->a_low[i] = integer(random, fill, -128);
    }
    for (size_t i = 0; i < outputs * depth; i++)
        scene->w[i] = integer(random, fill == LOWEST ? (i / depth % 2 ? LOWEST : HIGHEST) : fill, -127);
    for (size_t i = 0; i < rows; i++)
        scene->a_scale[i] = 0.01f + random_float(random, 0.009f);
    for (size_t i = 0; i < outputs; i++)
        scene->w_scale[i] = 0.01f + random_float(random, 0.009f);
}

static void scene_destroy(struct scene *scene)
{
    free(scene->a), free(scene->a_low), free(scene->w), free(scene->a_scale), free(scene->w_scale);
    free(scene->out), free(scene->want), free(scene->scratch);
}

static struct gemm_int8 scene_job(const struct scene *scene, bool wide, bool accumulate, float *out)
{
    for (size_t i = 0; i < scene->rows * scene->outputs; i++)
        out[i] = (float)i;
    return (struct gemm_int8){.a = scene->a, .a_low = wide ? scene->a_low : NULL, .a_scale = scene->a_scale, .w = scene->w,
                              .w_scale = scene->w_scale, .rows = scene->rows, .outputs = scene->outputs, .depth = scene->depth,
                              .out = out, .accumulate = accumulate, .scratch = scene->scratch};
}

static void assert_same(const struct scene *scene, const char *isa, const char *what, bool wide)
{
    if (memcmp(scene->out, scene->want, scene->rows * scene->outputs * sizeof(float)) != 0)
        fail_msg("%s%s on %s: other bits, %zu x %zu x %zu", wide ? "wide " : "", what, isa, scene->rows, scene->outputs, scene->depth);
}

static void check(struct random *random, size_t rows, size_t outputs, size_t depth, enum fill fill)
{
    struct scene scene;
    scene_create(&scene, random, rows, outputs, depth, fill);
    for (int way = 0; way < 4; way++) {
        bool wide = way & 1, accumulate = way & 2;
        struct gemm_int8 job = scene_job(&scene, wide, accumulate, scene.want);
        reference_gemm(&job);
        const struct kernels *kernels;
        for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
            job = scene_job(&scene, wide, accumulate, scene.out);
            kernels->gemm_int8(&job);
            assert_same(&scene, kernels->isa, "gemm", wide);
        }
    }
    scene_destroy(&scene);
}

static void equals_the_triple_loop(void **state)
{
    (void)state;
    struct random random = {5};
    for (int i = 0; i < 60; i++)
        check(&random, 1 + random_below(&random, 20), 1 + random_below(&random, 21), 1 + random_below(&random, 300), (enum fill)(i % 4));
    for (size_t rows = 31; rows <= 34; rows++)           /* around a block of wide rows */
        check(&random, rows, 6, 70, RANDOM);
    check(&random, 64, 8, 64, RANDOM);
    check(&random, 65, 7, 65, RANDOM);
    check(&random, 131, 5, 96, RANDOM);
    check(&random, 1, 130, 256, RANDOM);
    check(&random, 3, 9, 2048 + 5, RANDOM);
}

static void largest_sums_fit(void **state)
{
    (void)state;
    struct random random = {7};
    for (enum fill fill = HIGHEST; fill <= EXTREMES; fill++)
        check(&random, 5, 5, GEMM_DEPTH_MAX, fill);
    check(&random, 6, 9, 5001, LARGE);                   /* sums that a float cannot hold */
    check(&random, 3, 5, GEMM_DEPTH_MAX - 1, LARGE);
}

/* A wide sum that lies halfway between two floats, and those beside it: joined exactly, rounded once, to even. */
static void wide_sums_round_once(void **state)
{
    (void)state;
    enum { DEPTH = 42 };
    int8_t a[DEPTH] = {0}, a_low[DEPTH] = {0}, w[DEPTH];
    static char scratch[GEMM_SCRATCH_BYTES(DEPTH)] __attribute__((aligned(64)));
    float one = 1.0f, out;
    memset(w, 127, sizeof w);
    memset(a, 127, 8);                                    /* 8 * 256 * 127^2 */
    memset(a_low + 8, 127, 33);                           /* + 32 * 127^2 + 127 * 48 */
    w[40] = 48;
    w[41] = 1;
    for (int extra = -2; extra <= 2; extra++) {
        a_low[41] = (int8_t)(18 + extra);
        int64_t want = ((int64_t)1 << 25) + 2 + extra;    /* floats are 4 apart there: 2 is a tie */
        struct gemm_int8 job = {.a = a, .a_low = a_low, .a_scale = &one, .w = w, .w_scale = &one, .rows = 1, .outputs = 1, .depth = DEPTH,
                                .out = &out, .scratch = scratch};
        const struct kernels *kernels;
        for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
            kernels->gemm_int8(&job);
            assert_true(out == (float)want);
        }
        reference_gemm(&job);
        assert_true(out == (float)want);
    }
}

/* Any split of the outputs gives the bits of the whole, and writes nothing beside its own. */
static void slices_agree_with_the_whole(void **state)
{
    (void)state;
    struct random random = {8};
    for (int trial = 0; trial < 12; trial++) {
        struct scene scene;
        scene_create(&scene, &random, 1 + random_below(&random, 70), 5 + random_below(&random, 40), 1 + random_below(&random, 200), RANDOM);
        bool wide = trial & 1, accumulate = trial & 2;
        struct gemm_int8 whole = scene_job(&scene, wide, accumulate, scene.want);
        kernels_at(0)->gemm_int8(&whole);
        const struct kernels *kernels;
        for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
            struct gemm_int8 job = scene_job(&scene, wide, accumulate, scene.out), slice = job;
            slice.out_stride = job.outputs;
            size_t skip = random_below(&random, 4);
            for (size_t at = skip; at < job.outputs; at += slice.outputs) {
                size_t left = job.outputs - at, count = 1 + random_below(&random, 9);
                slice.outputs = count < left ? count : left;
                slice.w = job.w + at * job.depth;
                slice.w_scale = job.w_scale + at;
                slice.out = job.out + at;
                kernels->gemm_int8(&slice);
            }
            for (size_t row = 0; row < job.rows; row++)
                for (size_t o = 0; o < skip; o++) {
                    float *out = &job.out[row * job.outputs + o];
                    assert_true(*out == (float)(row * job.outputs + o));      /* left alone */
                    *out = scene.want[row * job.outputs + o];
                }
            assert_same(&scene, kernels->isa, "slices", wide);
        }
        scene_destroy(&scene);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_triple_loop),
        cmocka_unit_test(largest_sums_fit),
        cmocka_unit_test(wide_sums_round_once),
        cmocka_unit_test(slices_agree_with_the_whole),
    };
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
