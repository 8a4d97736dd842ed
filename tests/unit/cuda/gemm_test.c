/* cuda_gemm_* against kernels/ref, bit for bit: every way of cutting the work over shapes around the tiles' edges, the finish's options, the
 * worst sums, the sums themselves, and what is refused. */
#include "gemm_job.h"
#include <math.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

struct shape {
    uint32_t rows, outputs, depth;
};

static struct random begin(unsigned schedule)
{
    emulation_set_seed(test_seed(schedule));
    return (struct random){test_seed(100 + schedule)};
}

static void weights_lie_as_gemm_tiles_says(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{0, 1, 16}, {0, 16, 64}, {0, 17, 80}, {0, 100, 208}, {0, 33, 128}};
    struct random random = begin(0);
    for (size_t n = 0; n < COUNT(shapes); n++) {
        const uint32_t outputs = shapes[n].outputs, depth = shapes[n].depth, steps = (depth + 63) / 64, strips = (outputs + 15) / 16;
        const size_t bytes = cuda_gemm_tiled_bytes(outputs, depth);
        assert_int_equal(bytes, (size_t)strips * 16 * steps * 64);
        int8_t *w = malloc((size_t)outputs * depth), *got = malloc(bytes);
        assert_true(w && got);
        for (size_t i = 0; i < (size_t)outputs * depth; i++)
            w[i] = random_int8(&random);
        int8_t *device = device_put(w, (size_t)outputs * depth), *tiled = device_new(bytes);
        launched(cuda_gemm_tile(device, outputs, depth, tiled, NULL));
        device_get(got, tiled, bytes);
        for (size_t i = 0; i < bytes; i++) {
            const uint32_t piece = (uint32_t)(i / 1024), half = i / 512 % 2, lane = i / 16 % 32, r = i / 4 % 4, b = i % 4;
            const uint32_t output = piece / steps * 16 + lane / 8 * 4 + lane / 4 % 2 + r % 2 * 2;
            const uint32_t k = piece % steps * 64 + half * 32 + r / 2 * 16 + lane % 4 * 4 + b;
            assert_int_equal(got[i], output < outputs && k < depth ? w[(size_t)output * depth + k] : 0);
        }
        device_drop(device);
        device_drop(tiled);
        free(w);
        free(got);
    }
}

static void few_rows_equal_the_reference(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{1, 1, 16},    {1, 16, 64},   {1, 40, 4608},  {2, 17, 1040},  {7, 15, 2112}, {8, 33, 2064},  {9, 100, 336},
                                          {15, 64, 512}, {16, 31, 528}, {17, 65, 1088}, {31, 130, 784}, {32, 16, 80},  {33, 129, 576}, {63, 20, 272},
                                          {64, 140, 640}};
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = begin(schedule);
        for (size_t n = schedule % 2; n < COUNT(shapes); n += 1 + schedule % 2) {
            for (unsigned wide = 0; wide < 2; wide++) {
                struct gemm_case *c = gemm_case_new(&random, shapes[n].rows, shapes[n].outputs, shapes[n].depth, wide ? GEMM_WIDE : 0);
                gemm_case_check_small(c);
                gemm_case_drop(c);
            }
        }
    }
}

static void many_rows_equal_the_reference(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{1, 5, 16},     {33, 130, 64},  {63, 129, 80},   {64, 256, 128}, {65, 127, 192},
                                          {127, 20, 272}, {128, 257, 96}, {129, 300, 336}, {200, 64, 1040}, {190, 17, 48}};
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = begin(schedule);
        for (size_t n = schedule % 2; n < COUNT(shapes); n += 1 + schedule % 2) {
            for (unsigned wide = 0; wide < 2; wide++) {
                struct gemm_case *c = gemm_case_new(&random, shapes[n].rows, shapes[n].outputs, shapes[n].depth, wide ? GEMM_WIDE : 0);
                gemm_case_check_large(c);
                gemm_case_drop(c);
            }
        }
    }
}

/* Many tiles of rows and outputs: each has its place, also where groups of tiles end. */
static void many_tiles_equal_the_reference(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{1200, 270, 16}, {64 * 9 + 1, 513, 16}};
    for (size_t n = 0; n < COUNT(shapes); n++) {
        struct random random = begin((unsigned)n);
        struct gemm_case *c = gemm_case_new(&random, shapes[n].rows, shapes[n].outputs, shapes[n].depth, GEMM_ROW_MAX);
        gemm_case_check_large(c);
        gemm_case_drop(c);
    }
}

static void the_finish_equals_the_reference(void **state)
{
    (void)state;
    static const unsigned options[] = {
        GEMM_ACCUMULATE, GEMM_BIAS, GEMM_CAP, GEMM_ROW_MAX, GEMM_STRIDE, GEMM_ODD_STRIDE, GEMM_UNALIGNED, GEMM_BAD_ROW, GEMM_ACCUMULATE | GEMM_STRIDE,
        GEMM_ACCUMULATE | GEMM_ODD_STRIDE | GEMM_BIAS, GEMM_CAP | GEMM_ROW_MAX | GEMM_BAD_ROW | GEMM_BIAS,
        GEMM_WIDE | GEMM_ROW_MAX | GEMM_BIAS | GEMM_ACCUMULATE | GEMM_STRIDE, GEMM_WIDE | GEMM_CAP | GEMM_ROW_MAX | GEMM_UNALIGNED | GEMM_BAD_ROW};
    static const struct shape shapes[] = {{3, 20, 304}, {37, 66, 176}, {70, 140, 80}};
    for (size_t n = 0; n < COUNT(options); n++) {
        struct random random = begin((unsigned)n);
        for (size_t s = 0; s < COUNT(shapes); s++) {
            struct gemm_case *c = gemm_case_new(&random, shapes[s].rows, shapes[s].outputs, shapes[s].depth, options[n]);
            gemm_case_check_all(c);
            gemm_case_drop(c);
        }
    }
}

static void the_sums_themselves(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{1, 48, 4096}, {5, 19, 1040}, {20, 70, 576}, {64, 132, 272}, {130, 260, 144}};
    struct random random = begin(0);
    for (size_t n = 0; n < COUNT(shapes); n++) {
        struct gemm_case *c = gemm_case_new(&random, shapes[n].rows, shapes[n].outputs, shapes[n].depth, GEMM_RAW);
        gemm_case_check_all(c);
        gemm_case_drop(c);
    }
}

static bool run_small(const struct cuda_gemm *job, const void *how)
{
    (void)how;
    return cuda_gemm_small(job, NULL);
}

static bool run_large(const struct cuda_gemm *job, const void *how)
{
    (void)how;
    return cuda_gemm_large(job, NULL);
}

/* The widest row, all products as large as they get and of one sign. */
static void the_worst_sums_are_exact(void **state)
{
    (void)state;
    enum { ROWS = 3, OUTPUTS = 18, DEPTH = 65536 };
    static const unsigned options[] = {GEMM_RAW, 0, GEMM_WIDE};
    for (size_t n = 0; n < COUNT(options); n++) {
        struct random random = begin((unsigned)n);
        struct gemm_case *c = gemm_case_new(&random, ROWS, OUTPUTS, DEPTH, options[n]);
        memset(c->a, 127, (size_t)ROWS * DEPTH);
        memset(c->a + DEPTH, -127, DEPTH);
        memset(c->w, 127, (size_t)OUTPUTS * DEPTH);
        memset(c->w + DEPTH, -127, DEPTH);
        if (c->a_low) {
            memset(c->a_low, 127, (size_t)ROWS * DEPTH);
            memset(c->a_low + DEPTH, -128, DEPTH);
        }
        for (size_t o = 2; o < OUTPUTS; o++)                 /* and sums of all bits, which are rounded */
            for (size_t k = 0; k < 100; k++)
                c->w[o * DEPTH + random_below(&random, DEPTH)] = random_int8(&random);
        gemm_case_expect(c);
        gemm_case_check(c, run_small, NULL, "small");
        gemm_case_check(c, run_large, NULL, "large");
        gemm_case_drop(c);
    }
}

static void what_is_not_finite_is_reported(void **state)
{
    (void)state;
    enum { OUTPUTS = 37, DEPTH = 96 };
    static const uint32_t rows[] = {6, 50, 140};
    for (size_t n = 0; n < COUNT(rows); n++)
        for (unsigned what = 0; what < 5; what++) {
            struct random random = begin(what);
            const uint32_t at = rows[n] / 2 + 1;
            struct gemm_case *c = gemm_case_new(&random, rows[n], OUTPUTS, DEPTH, GEMM_BAD_ROW | GEMM_ACCUMULATE | (what == 3 ? GEMM_CAP : GEMM_BIAS));
            switch (what) {
            case 0:
                c->a_scale[at] = NAN;
                c->a_scale[rows[n] - 1] = NAN;
                break;
            case 1: c->a_scale[at] = INFINITY; break;
            case 2: c->out[at * OUTPUTS + OUTPUTS - 1] = -INFINITY; break;
            case 3: c->out[at * OUTPUTS + 5] = INFINITY; break;                /* the soft cap makes it finite */
            default: c->bias[OUTPUTS - 2] = NAN; break;
            }
            gemm_case_expect(c);
            assert_int_equal(c->bad_row, what == 4 ? 0 : at);
            gemm_case_check_all(c);
            gemm_case_drop(c);
        }
}

/* Whatever a processor's number: the choice is of the shape alone, a cut that holds the rows, no more splits than the scratch memory takes. */
static void choices_fit(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{1, 4096, 4096},  {1, 256, 4096},    {1, 128256, 8192},  {8, 1024, 14336}, {9, 14336, 4096},
                                          {33, 8192, 8192}, {64, 2048, 28672}, {65, 4096, 4096},   {512, 4096, 4096}, {4096, 28672, 8192},
                                          {1, 1, 16},       {64, 16, 65536},   {100, 128256, 2048}};
    static const unsigned large[COUNT(shapes)] = {[7] = 0, [8] = 1, [9] = 2, [12] = 2};
    for (size_t n = 0; n < COUNT(shapes); n++)
        for (unsigned wide = 0; wide < 2; wide++) {
            const int8_t *some = (const int8_t *)(uintptr_t)256;
            const struct cuda_gemm job = {.a = some, .a_low = wide ? some : NULL, .w_tiled = some, .rows = shapes[n].rows, .outputs = shapes[n].outputs,
                                          .depth = shapes[n].depth, .out_stride = shapes[n].outputs, .scratch = (uint32_t *)(uintptr_t)256};
            struct gemm_work work;
            assert_true(gemm_prepare(&job, &work));
            if (job.rows > CUDA_GEMM_ROWS_SMALL) {
                if (!wide)
                    assert_int_equal(gemm_large_choose(&work, 132), large[n]);
                continue;
            }
            const struct gemm_small_cut cut = gemm_small_choose(&work, 132);
            const uint32_t columns = job.rows << wide, outputs[GEMM_SMALL_CUTS] = {16, 32, 64, 128, 128};
            assert_true(columns <= 8u << cut.cut && (cut.cut == 0 || columns > 4u << cut.cut));
            const uint64_t blocks = (job.outputs + outputs[cut.cut] - 1) / outputs[cut.cut];
            assert_true(cut.splits == 1 || (blocks * cut.splits <= 2 * 132 && blocks * outputs[cut.cut] * columns <= (1 << 20) - 1024));
            if (job.outputs <= 2048 && job.depth >= 4096 && columns <= 8)
                assert_true(blocks * cut.splits >= 132 || cut.splits == job.depth / 64 / 32);     /* all stream, or each warp has but one round */
            work.job.scratch = NULL;
            assert_int_equal(gemm_small_choose(&work, 132).splits, 1);
        }
}

static void what_is_refused(void **state)
{
    (void)state;
    struct random random = begin(0);
    struct gemm_case *c = gemm_case_new(&random, 2, 16, 2048, 0);
    struct cuda_gemm job = {.a = device_put(c->a, 4096), .a_low = device_put(c->a, 4096), .rows = 2, .outputs = 16, .depth = 2048,
                            .w_tiled = device_new(cuda_gemm_tiled_bytes(16, 2048)), .raw = device_new(128)};
    assert_false(cuda_gemm_int8(&job, NULL));
    assert_non_null(strstr(cuda_launch_error(), "wide"));
    device_drop(job.a_low);
    job.a_low = NULL;
    struct gemm_work work;
    assert_true(gemm_prepare(&job, &work));
    assert_false(gemm_small_run(&work, (struct gemm_small_cut){0, 2}, NULL));          /* no scratch memory */
    assert_non_null(strstr(cuda_launch_error(), "scratch"));
    if (emulation_present()) {
        emulation_refuse_at(1);
        assert_false(cuda_gemm_large(&job, NULL));
        emulation_refuse_at(1);
        assert_false(cuda_gemm_small(&job, NULL));
    }
    job.rows = 0;
    assert_true(cuda_gemm_int8(&job, NULL) && cuda_gemm_large(&job, NULL));            /* nothing to do */
    device_drop(job.a);
    device_drop(job.w_tiled);
    device_drop(job.raw);
    gemm_case_drop(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_lie_as_gemm_tiles_says),
        cmocka_unit_test(few_rows_equal_the_reference),
        cmocka_unit_test(many_rows_equal_the_reference),
        cmocka_unit_test(many_tiles_equal_the_reference),
        cmocka_unit_test(the_finish_equals_the_reference),
        cmocka_unit_test(the_sums_themselves),
        cmocka_unit_test(the_worst_sums_are_exact),
        cmocka_unit_test(what_is_not_finite_is_reported),
        cmocka_unit_test(choices_fit),
        cmocka_unit_test(what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
