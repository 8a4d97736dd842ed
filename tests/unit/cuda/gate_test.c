/* cuda_gate_rows against kernels/ref, bit for bit: both activations, strides, in place, every scheme, and a row too wide to be kept. */
#include "row_integers.h"
#include <math.h>

struct wanted {
    enum cuda_activation activation;
    bool out, in_place, integers;
    enum cuda_scheme scheme;
    uint32_t gate_more, up_more;         /* strides beyond the columns */
};

static float *spread(const float *x, uint32_t columns, uint32_t stride)      /* on the device, rows `stride` apart */
{
    float *host = calloc((size_t)ROWS * stride, sizeof *host);
    assert_non_null(host);
    for (uint32_t row = 0; row < ROWS; row++)
        memcpy(host + row * stride, x + row * columns, columns * sizeof *x);
    float *device = device_put(host, ROWS * stride * sizeof *host);
    free(host);
    return device;
}

static void run(const float *gate, const float *up, uint32_t columns, const struct wanted *wanted, const char *what)
{
    static float want[ROWS * ROW_WIDTH_MAX], got[ROWS * ROW_WIDTH_MAX];
    const uint32_t gate_stride = columns + wanted->gate_more, up_stride = columns + wanted->up_more;
    bool bad[ROWS] = {false};
    const bool none[ROWS] = {false};
    uint32_t *bad_row = bad_row_new();
    float *device_gate = spread(gate, columns, gate_stride);
    struct cuda_gate job = {.gate = device_gate, .up = spread(up, columns, up_stride), .gate_stride = gate_stride, .up_stride = up_stride,
                            .activation = wanted->activation, .rows = ROWS, .columns = columns, .bad_row = bad_row,
                            .out = !wanted->out ? NULL : wanted->in_place ? device_gate : device_new(ROWS * columns * sizeof(float))};
    if (wanted->integers)
        job.into = rows_int8_new(wanted->scheme, 0.02f, columns);
    launched(cuda_gate_rows(&job, NULL));

    memcpy(want, gate, ROWS * columns * sizeof *want);
    (wanted->activation == CUDA_ACTIVATION_SILU ? kernels_at(0)->silu_gate : kernels_at(0)->gelu_tanh_gate)(want, up, ROWS * columns);
    if (job.out) {
        for (uint32_t row = 0; row < ROWS; row++)
            bad[row] = !kernels_at(0)->all_finite(want + row * columns, columns);
        device_get(got, job.out, ROWS * columns * sizeof *got);
        check_floats(got, want, columns, bad, what);
        memcpy(bad, none, sizeof bad);
    }
    for (uint32_t row = 0; row < ROWS; row++)
        bad[row] = !wanted->integers && !kernels_at(0)->all_finite(want + row * columns, columns);
    if (wanted->integers)
        check_rows_int8(&job.into, want, columns, bad, what);
    assert_int_equal(bad_row_take(bad_row), first_bad(bad));
    device_drop(device_gate);
    device_drop(job.up);
    if (!wanted->in_place)
        device_drop(job.out);
}

static const struct wanted cases[] = {
    {.integers = true, .scheme = CUDA_SCHEME_DYNAMIC},
    {.activation = CUDA_ACTIVATION_GELU_TANH, .integers = true, .scheme = CUDA_SCHEME_WIDE, .out = true, .in_place = true},
    {.integers = true, .scheme = CUDA_SCHEME_STATIC, .gate_more = 5, .up_more = 128},
    {.activation = CUDA_ACTIVATION_GELU_TANH, .integers = true, .scheme = CUDA_SCHEME_ROTATED, .gate_more = 4, .out = true},
    {.out = true, .up_more = 3},
    {.activation = CUDA_ACTIVATION_GELU_TANH, .out = true, .in_place = true},
};

static void run_cases(const float *gate, const float *up, uint32_t columns, const char *what)
{
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        if (!cases[c].integers || cases[c].scheme != CUDA_SCHEME_ROTATED || columns % 128 == 0)
            run(gate, up, columns, &cases[c], what);
}

static float gate[ROWS * ROW_WIDTH_MAX], up[ROWS * ROW_WIDTH_MAX];

static void rows_equal_the_reference(void **state)
{
    (void)state;
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = {test_seed(schedule)};
        emulation_set_seed(test_seed(schedule));
        for (size_t w = 0; w < ROW_WIDTHS; w++)
            for (unsigned kind = 0; kind < RANDOM_KINDS; kind++) {
                random_row(&random, kind, gate, ROWS * row_widths[w]);
                random_row(&random, (kind + w) % RANDOM_KINDS, up, ROWS * row_widths[w]);
                run_cases(gate, up, row_widths[w], "random");
            }
    }
}

static void activations_are_exact_at_their_seams(void **state)
{
    (void)state;
    enum { COLUMNS = 1000 };
    static const float seams[] = {0.0f, -0.0f, 0.625f, -0.625f, 0.7071f, 100.0f, -100.0f, 0x1p-149f, 88.7f, -88.7f, 104.0f, -104.0f, 1e20f, -1e20f};
    for (uint32_t i = 0; i < ROWS * COLUMNS; i++) {
        float x = seams[i % 14];
        for (uint32_t step = i / 14 % 60; step > 0; step--)
            x = nextafterf(x, i / 840 % 2 ? INFINITY : -INFINITY);
        gate[i] = x;
        up[i] = i % 3 ? 1.0f : -3.7f;
    }
    run_cases(gate, up, COLUMNS, "seams");
}

static void wide_rows_are_computed_again(void **state)
{
    (void)state;
    static const struct wanted wide[] = {
        {.integers = true, .scheme = CUDA_SCHEME_ROTATED},
        {.activation = CUDA_ACTIVATION_GELU_TANH, .integers = true, .scheme = CUDA_SCHEME_WIDE, .out = true, .in_place = true},
    };
    struct random random = {3};
    random_row(&random, 0, gate, ROWS * ROW_WIDTH_MAX);
    random_row(&random, 0, up, ROWS * ROW_WIDTH_MAX);
    run(gate, up, ROW_WIDTH_MAX, &wide[0], "41,088 columns");
    run(gate, up, ROW_WIDTH_MAX, &wide[1], "41,088 columns in place");
    run(gate, up, 40960, &wide[0], "the widest that is kept");
}

static void what_is_not_finite_is_reported(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY, 1e38f};
    enum { COLUMNS = 256 };
    for (uint32_t at = 0; at < ROWS * COLUMNS; at += 51) {
        struct random random = {at + 1};
        random_row(&random, 0, gate, ROWS * COLUMNS);
        random_row(&random, 0, up, ROWS * COLUMNS);
        (at % 2 ? gate : up)[at] = values[at % 4];
        (at % 2 ? up : gate)[at] = 50.0f;                              /* 1e38 becomes infinite */
        run_cases(gate, up, COLUMNS, "not finite");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_the_reference),
        cmocka_unit_test(activations_are_exact_at_their_seams),
        cmocka_unit_test(wide_rows_are_computed_again),
        cmocka_unit_test(what_is_not_finite_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
