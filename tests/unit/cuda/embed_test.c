/* cuda_embed_rows and cuda_per_layer_rows against kernels/ref, bit for bit. */
#include <math.h>
#include <string.h>
#include "on_device.h"
#include "kernels/kernels.h"
#include "tests/unit/kernels/reference.h"

#define VOCAB 37u
#define ROWS 6u
#define LAYERS 5u
#define WIDTH_MAX 1152u

static const uint32_t widths[] = {1, 2, 3, 4, 31, 64, 127, 128, 129, 200, 256, 640, 1152};
#define WIDTHS (sizeof widths / sizeof *widths)

static void embed(struct random *random, uint32_t columns)
{
    static int8_t weight[VOCAB * WIDTH_MAX];
    static float out[ROWS * WIDTH_MAX], want[WIDTH_MAX];
    float scale[VOCAB];
    uint32_t tokens[ROWS] = {0, VOCAB - 1};
    for (size_t i = 0; i < VOCAB * columns; i++)
        weight[i] = random_int8(random);
    random_row(random, 0, scale, VOCAB);
    scale[0] = 0x1p-120f;                                              /* denormal products */
    for (uint32_t row = 2; row < ROWS; row++)
        tokens[row] = random_below(random, VOCAB);
    struct cuda_embed job = {.tokens = device_put(tokens, sizeof tokens), .weight = device_put(weight, VOCAB * columns),
                             .scale = device_put(scale, sizeof scale), .factor = 0x1.8p-10f, .rows = ROWS, .columns = columns,
                             .out = device_new(ROWS * columns * sizeof(float))};
    launched(cuda_embed_rows(&job, NULL));
    device_get(out, job.out, ROWS * columns * sizeof *out);
    for (uint32_t row = 0; row < ROWS; row++) {
        kernels_at(0)->dequantize_row(weight + tokens[row] * columns, scale[tokens[row]], columns, want);
        for (uint32_t i = 0; i < columns; i++)
            want[i] = want[i] * 0x1.8p-10f;
        assert_memory_equal(out + row * columns, want, columns * sizeof *want);
    }
    device_drop(job.tokens);
    device_drop(job.weight);
    device_drop(job.scale);
    device_drop(job.out);
}

static bool per_layer_by_ref(float *f, const int8_t *looked_up, float scale, const float *weight, uint32_t width)
{
    static float e[WIDTH_MAX];
    for (uint32_t i = 0; i < width; i++)
        f[i] = f[i] * 0.0221f;
    struct rmsnorm norm = {.x = f, .weight = weight, .epsilon = 1e-6f, .rows = 1, .columns = width, .out = f};
    if (!kernels_at(0)->rmsnorm_rows(&norm))
        return false;
    kernels_at(0)->dequantize_row(looked_up, scale, width, e);
    for (uint32_t i = 0; i < width; i++) {
        e[i] = e[i] * 16.0f;
        f[i] = (f[i] + e[i]) * 0x1.6a09e6p-1f;
    }
    return true;
}

static void per_layer(struct random *random, uint32_t width, unsigned kind, int bad_at)
{
    static float f[ROWS * LAYERS * WIDTH_MAX], got[ROWS * LAYERS * WIDTH_MAX], weight[WIDTH_MAX];
    static int8_t looked_up[ROWS * LAYERS * WIDTH_MAX];
    float scale[ROWS * LAYERS];
    const size_t count = (size_t)ROWS * LAYERS * width;
    uint32_t want_bad = CUDA_NO_BAD_ROW, *bad_row = bad_row_new();
    for (uint32_t task = 0; task < ROWS * LAYERS; task++)
        random_row(random, (kind + task) % RANDOM_KINDS, f + task * width, width);
    random_row(random, 0, weight, width);
    random_row(random, 0, scale, ROWS * LAYERS);
    for (size_t i = 0; i < count; i++)
        looked_up[i] = random_int8(random);
    if (bad_at >= 0)
        f[(size_t)bad_at % count] = bad_at % 2 ? NAN : INFINITY;
    struct cuda_per_layer job = {.f = device_put(f, count * sizeof *f), .looked_up = device_put(looked_up, count),
                                 .looked_up_scale = device_put(scale, sizeof scale), .norm_weight = device_put(weight, width * sizeof *weight),
                                 .epsilon = 1e-6f, .factor_in = 0.0221f, .factor_embed = 16.0f, .factor_sum = 0x1.6a09e6p-1f, .rows = ROWS,
                                 .layers = LAYERS, .width = width, .bad_row = bad_row};
    launched(cuda_per_layer_rows(&job, NULL));
    device_get(got, job.f, count * sizeof *got);
    for (uint32_t task = 0; task < ROWS * LAYERS; task++) {
        if (per_layer_by_ref(f + task * width, looked_up + task * width, scale[task], weight, width))
            assert_memory_equal(got + task * width, f + task * width, width * sizeof *f);
        else if (want_bad == CUDA_NO_BAD_ROW)
            want_bad = task / LAYERS;
    }
    assert_int_equal(bad_row_take(bad_row), want_bad);
    assert_true(bad_at < 0 || want_bad != CUDA_NO_BAD_ROW);
    device_drop(job.f);
    device_drop(job.looked_up);
    device_drop(job.looked_up_scale);
    device_drop(job.norm_weight);
}

static void embeddings_equal_the_reference(void **state)
{
    (void)state;
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = {test_seed(schedule)};
        emulation_set_seed(test_seed(schedule));
        for (size_t w = 0; w < WIDTHS; w++)
            embed(&random, widths[w]);
    }
}

static void per_layer_inputs_equal_the_reference(void **state)
{
    (void)state;
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = {test_seed(schedule)};
        emulation_set_seed(test_seed(schedule));
        for (size_t w = 0; w < WIDTHS; w++)
            per_layer(&random, widths[w], schedule, -1);
        per_layer(&random, 256, 0, 256 * 7 + 3);
        per_layer(&random, 129, 0, 129 * 22);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embeddings_equal_the_reference),
        cmocka_unit_test(per_layer_inputs_equal_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
