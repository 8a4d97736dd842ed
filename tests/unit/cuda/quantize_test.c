/* cuda_quantize_rows against kernels/ref, bit for bit: every scheme, odd widths, edge values, with and without the producer's maxima. */
#include "row_integers.h"
#include <float.h>
#include <math.h>

static void take_maxima(const float *x, uint32_t columns, uint32_t *row_max)
{
    for (uint32_t row = 0; row < ROWS; row++) {
        row_max[row] = 0;
        for (uint32_t i = 0; i < columns; i++) {
            uint32_t bits;
            memcpy(&bits, &x[row * columns + i], sizeof bits);
            bits &= 0x7fffffffu;
            row_max[row] = bits > row_max[row] ? bits : row_max[row];
        }
    }
}

static void run_scheme(enum cuda_scheme scheme, float input_scale, const float *x, uint32_t columns, bool with_max, const char *what)
{
    uint32_t row_max[ROWS], *bad_row = bad_row_new();
    bool bad[ROWS] = {false};
    take_maxima(x, columns, row_max);
    struct cuda_quantize job = {.x = device_put(x, ROWS * columns * sizeof *x),
                                .row_max = device_put(with_max ? row_max : NULL, sizeof row_max),
                                .rows = ROWS,
                                .columns = columns,
                                .into = rows_int8_new(scheme, input_scale, columns),
                                .bad_row = bad_row};
    launched(cuda_quantize_rows(&job, NULL));
    check_rows_int8(&job.into, x, columns, bad, what);
    assert_int_equal(bad_row_take(bad_row), first_bad(bad));
    device_drop(job.x);
    device_drop(job.row_max);
}

static void run_schemes(const float *x, uint32_t columns, const char *what)
{
    for (unsigned with_max = 0; with_max < 2; with_max++) {
        run_scheme(CUDA_SCHEME_DYNAMIC, 0, x, columns, with_max, what);
        run_scheme(CUDA_SCHEME_STATIC, 0.0312f, x, columns, with_max, what);
        run_scheme(CUDA_SCHEME_WIDE, 0, x, columns, with_max, what);
    }
    if (columns % 128 == 0)
        run_scheme(CUDA_SCHEME_ROTATED, 0, x, columns, false, what);
}

static void rows_equal_the_reference(void **state)
{
    (void)state;
    static float x[ROWS * ROW_WIDTH_MAX];
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = {test_seed(schedule)};
        emulation_set_seed(test_seed(schedule));
        for (size_t w = 0; w < ROW_WIDTHS; w++)
            for (unsigned kind = 0; kind < RANDOM_KINDS; kind++) {
                for (uint32_t row = 0; row < ROWS; row++)
                    random_row(&random, (kind + row) % RANDOM_KINDS, x + row * row_widths[w], row_widths[w]);
                run_schemes(x, row_widths[w], "random");
            }
    }
}

static void edges_equal_the_reference(void **state)
{
    (void)state;
    static const float edges[] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -127.0f, -0.0f, 0x1p-149f, -0x1p-149f};
    static const float smallest[] = {0x1p-100f, -0x1p-100f, 0x1.fffffep-101f, 0x1p-149f, 0x1p-126f, FLT_MAX, -FLT_MAX, 0.0f};
    enum { COLUMNS = 128 };
    float x[ROWS * COLUMNS];
    for (unsigned first = 0; first < sizeof smallest / sizeof *smallest; first++) {
        for (uint32_t i = 0; i < COLUMNS; i++) {
            x[i] = edges[i % 12];                                      /* ties */
            x[COLUMNS + i] = i == 77 ? smallest[first] : 0.0f;         /* at the bounds of what is zero, and the largest */
            x[2 * COLUMNS + i] = i % 2 ? smallest[first] : -smallest[first];
        }
        run_schemes(x, COLUMNS, "edges");
        run_schemes(x, 127, "edges");
        run_scheme(CUDA_SCHEME_STATIC, 0x1p-100f, x, COLUMNS, false, "products that are infinite");
        run_scheme(CUDA_SCHEME_STATIC, 0x1p+100f, x, COLUMNS, false, "products that vanish");
        run_scheme(CUDA_SCHEME_STATIC, 1.0f, x, COLUMNS, false, "ties");
    }
}

static void what_is_not_finite_is_reported(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY};
    enum { COLUMNS = 256 };
    float x[ROWS * COLUMNS];
    for (uint32_t at = 0; at < ROWS * COLUMNS; at += 51) {
        struct random random = {at + 1};
        random_row(&random, 0, x, ROWS * COLUMNS);
        x[at] = values[at / 51 % 3];
        x[ROWS * COLUMNS - 1] = NAN;                                   /* the first row counts */
        run_schemes(x, COLUMNS, "not finite");
    }
    for (uint32_t i = 0; i < ROWS * COLUMNS; i++)                      /* finite, but not when rotated */
        x[i] = i / COLUMNS == 1 ? FLT_MAX : 1.0f;
    run_schemes(x, COLUMNS, "large");
}

static void no_rows_are_no_launch(void **state)
{
    (void)state;
    assert_true(cuda_quantize_rows(&(struct cuda_quantize){.columns = 4}, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_the_reference),
        cmocka_unit_test(edges_equal_the_reference),
        cmocka_unit_test(what_is_not_finite_is_reported),
        cmocka_unit_test(no_rows_are_no_launch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
