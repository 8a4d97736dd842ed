/* cuda_norm_rows against kernels/ref, bit for bit: with and without weight, residual, integers by each scheme and by four at once. */
#include "row_integers.h"
#include <math.h>

struct wanted {
    bool weight, out, in_place, residual;
    float scalar;
    unsigned schemes;                    /* bits */
};

static void run(const float *x, uint32_t columns, const struct wanted *wanted, struct random *random, const char *what)
{
    static float weight[ROW_WIDTH_MAX], normed[ROWS * ROW_WIDTH_MAX], residual[ROWS * ROW_WIDTH_MAX], got[ROWS * ROW_WIDTH_MAX];
    const size_t bytes = ROWS * columns * sizeof(float);
    bool bad[ROWS] = {false};
    uint32_t into_count = 0, *bad_row = bad_row_new();
    struct cuda_rows_int8 into[SCHEMES];
    random_row(random, 0, weight, columns);
    random_row(random, 0, residual, ROWS * columns);
    for (unsigned scheme = 0; scheme < SCHEMES; scheme++)
        if (wanted->schemes >> scheme & 1u && (scheme != CUDA_SCHEME_ROTATED || columns % 128 == 0))
            into[into_count++] = rows_int8_new((enum cuda_scheme)scheme, 0.0078f, columns);
    float *device_x = device_put(x, bytes), *device_weight = device_put(wanted->weight ? weight : NULL, columns * sizeof(float));
    float *device_out = !wanted->out ? NULL : wanted->in_place ? device_x : device_new(bytes);
    float *device_residual = device_put(wanted->residual ? residual : NULL, bytes);
    struct cuda_norm job = {.x = device_x, .weight = device_weight, .epsilon = 1e-6f, .rows = ROWS, .columns = columns, .out = device_out,
                            .residual = device_residual, .residual_scalar = wanted->scalar, .into = into, .into_count = into_count,
                            .bad_row = bad_row};
    launched(cuda_norm_rows(&job, NULL));

    for (uint32_t row = 0; row < ROWS; row++) {
        struct rmsnorm norm = {.x = x + row * columns, .weight = wanted->weight ? weight : NULL, .epsilon = 1e-6f, .rows = 1, .columns = columns,
                               .out = normed + row * columns};
        bad[row] = !kernels_at(0)->rmsnorm_rows(&norm);
    }
    const bool not_normed[ROWS] = {bad[0], bad[1], bad[2]};
    for (uint32_t n = 0; n < into_count; n++)
        check_rows_int8(&into[n], normed, columns, bad, what);
    if (wanted->out) {
        device_get(got, device_out, bytes);
        check_floats(got, normed, columns, not_normed, what);
    }
    if (wanted->residual) {
        for (uint32_t i = 0; i < ROWS * columns; i++) {
            residual[i] = residual[i] + normed[i];
            residual[i] = residual[i] * wanted->scalar;
        }
        device_get(got, device_residual, bytes);
        check_floats(got, residual, columns, not_normed, "residual");
    }
    assert_int_equal(bad_row_take(bad_row), first_bad(bad));
    device_drop(device_x);
    device_drop(device_weight);
    if (!wanted->in_place)
        device_drop(device_out);
    device_drop(device_residual);
}

static const struct wanted cases[] = {
    {.weight = true, .schemes = 1u << CUDA_SCHEME_DYNAMIC},
    {.weight = true, .schemes = 1u << CUDA_SCHEME_ROTATED, .out = true},
    {.schemes = 1u << CUDA_SCHEME_WIDE},
    {.weight = true, .schemes = 1u << CUDA_SCHEME_STATIC, .out = true, .in_place = true},
    {.weight = true, .schemes = 15u, .out = true, .in_place = true, .residual = true, .scalar = 0.37f},
    {.weight = true, .residual = true, .scalar = 1.0f},
    {.out = true},
};

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
                for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
                    run(x, row_widths[w], &cases[c], &random, "random");
            }
    }
}

static void what_is_not_finite_is_reported(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY, 0x1p+100f};
    enum { COLUMNS = 256 };
    float x[ROWS * COLUMNS];
    for (uint32_t at = 0; at < ROWS * COLUMNS; at += 51) {
        struct random random = {at + 1};
        random_row(&random, 0, x, ROWS * COLUMNS);
        x[at] = values[at % 4];
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            run(x, COLUMNS, &cases[c], &random, "not finite");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_the_reference),
        cmocka_unit_test(what_is_not_finite_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
