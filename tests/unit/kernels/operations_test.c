/* Norms, rotary positions and activations on every level against the reference: equal bits on random and on edge inputs. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/pinned_math.h"
#include "reference.h"

static const size_t widths_[] = {1, 2, 3, 31, 64, 127, 128, 129, 200, 256, 640, 1000};
#define WIDTH_COUNT (sizeof widths_ / sizeof *widths_)
#define WIDTH_MAX 1000

static void assert_same(const void *got, const void *want, size_t bytes, const char *isa, const char *what, size_t columns, unsigned kind)
{
    if (memcmp(got, want, bytes) != 0)
        fail_msg("%s on %s: other bits, %zu columns, kind %u", what, isa, columns, kind);
}

static void norm_equals_the_reference(void **state)
{
    (void)state;
    static float x[2 * WIDTH_MAX], weight[WIDTH_MAX], out[2 * WIDTH_MAX], want[2 * WIDTH_MAX];
    struct random random = {2};
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++)
        for (size_t w = 0; w < 2 * WIDTH_COUNT; w++) {
            size_t columns = widths_[w / 2];
            const float *with = w % 2 ? NULL : weight;
            random_row(&random, kind, x, 2 * columns);
            random_row(&random, 0, weight, columns);
            for (size_t row = 0; row < 2; row++)
                reference_rmsnorm_row(x + row * columns, with, 1e-6f, columns, want + row * columns);
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
                struct rmsnorm norm = {.x = x, .weight = with, .epsilon = 1e-6f, .rows = 2, .columns = columns, .out = out};
                assert_true(kernels->rmsnorm_rows(&norm));
                assert_same(out, want, 2 * columns * sizeof *out, kernels->isa, "norm", columns, kind);
                memcpy(out, x, 2 * columns * sizeof *out);
                norm.x = out;
                assert_true(kernels->rmsnorm_rows(&norm));
                assert_same(out, want, 2 * columns * sizeof *out, kernels->isa, "norm in place", columns, kind);
            }
        }
}

static void norm_refuses_what_overflows(void **state)
{
    (void)state;
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
        float x[3] = {1, 1e20f, 1}, weight[3] = {1, 1, 1}, out[3];
        struct rmsnorm norm = {.x = x, .weight = weight, .epsilon = 1e-6f, .rows = 1, .columns = 3, .out = out};
        assert_false(kernels->rmsnorm_rows(&norm));
        x[1] = NAN;
        assert_false(kernels->rmsnorm_rows(&norm));
        x[1] = -INFINITY;
        assert_false(kernels->rmsnorm_rows(&norm));
    }
}

static void gates_equal_the_reference(void **state)
{
    (void)state;
    static float x[WIDTH_MAX], up[WIDTH_MAX], out[WIDTH_MAX], want[WIDTH_MAX];
    struct random random = {3};
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++)
        for (int gelu = 0; gelu < 2; gelu++) {
            random_row(&random, kind, x, WIDTH_MAX);
            random_row(&random, 0, up, WIDTH_MAX);
            if (kind == 0)
                for (size_t i = 0; i < WIDTH_MAX; i++)
                    x[i] *= 30.0f;
            if (kind == RANDOM_KINDS - 1)
                for (size_t i = 0; i < WIDTH_MAX; i++)
                    x[i] = fmaxf(-1000.0f, fminf(1000.0f, x[i]));
            for (size_t i = 0; i < WIDTH_MAX; i++)
                want[i] = (gelu ? reference_gelu_tanh(x[i]) : reference_silu(x[i])) * up[i];
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
                memcpy(out, x, sizeof out);
                (gelu ? kernels->gelu_tanh_gate : kernels->silu_gate)(out, up, WIDTH_MAX);
                assert_same(out, want, sizeof out, kernels->isa, gelu ? "gelu" : "silu", WIDTH_MAX, kind);
            }
        }
}

static void activations_are_close(void **state)
{
    (void)state;
    for (float x = -20.0f; x <= 20.0f; x += 0.01f) {
        double silu = x / (1.0 + exp(-(double)x));
        double gelu = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * (double)x * x * x)));
        assert_true(fabs(reference_silu(x) - silu) <= 2e-6 * fabs(silu) + 1e-7);
        assert_true(fabs(reference_gelu_tanh(x) - gelu) <= 2e-6 * fabs(gelu) + 1e-6);
    }
}

static void softcap_equals_the_reference(void **state)
{
    (void)state;
    static float x[WIDTH_MAX], out[WIDTH_MAX], want[WIDTH_MAX];
    static const float caps[] = {30.0f, 1.0f, 0.3f, 1e4f};
    struct random random = {6};
    double worst = 0;
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++)
        for (size_t c = 0; c < 4; c++) {
            random_row(&random, kind, x, WIDTH_MAX);
            for (size_t i = 0; i < WIDTH_MAX; i++) {
                x[i] *= kind == 0 ? 30.0f : 1.0f;
                want[i] = reference_softcap(x[i], caps[c]);
                double exact = caps[c] * tanh((double)x[i] / caps[c]);
                if (fabs(exact) > 0x1p-100)
                    worst = fmax(worst, fabs(want[i] - exact) / fabs(exact));
                assert_true(fabsf(want[i]) <= caps[c]);
            }
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++)
                for (size_t count = WIDTH_MAX - 3; count <= WIDTH_MAX; count++) {
                    memcpy(out, x, sizeof out);
                    kernels->softcap(out, count, caps[c]);
                    assert_same(out, want, count * sizeof *out, kernels->isa, "softcap", count, kind);
                    assert_same(out + count, x + count, (WIDTH_MAX - count) * sizeof *out, kernels->isa, "softcap's end", count, kind);
                }
        }
    print_message("softcap: relative error 2^%.1f\n", log2(worst));
    assert_true(worst < 0x1p-20);
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
        float bad[] = {NAN, INFINITY, -INFINITY};
        kernels->softcap(bad, 3, 30.0f);
        assert_true(isnan(bad[0]) && bad[1] == 30.0f && bad[2] == -30.0f);
    }
}

static void rotate_pair(float *vector, size_t i, size_t pairs, float c, float s)
{
    float a = vector[i], b = vector[pairs + i];
    float ac = a * c, bs = b * s, bc = b * c, as = a * s;
    vector[i] = ac - bs;
    vector[pairs + i] = bc + as;
}

static void check_rotation(struct random *random, const struct rope *rope, uint32_t start)
{
    enum { ROWS = 4, HEADS = 3, COUNT = ROWS * HEADS * 512 };
    static float x[COUNT], want[COUNT], out[COUNT], cosine[ROWS * 256], sine[ROWS * 256];
    static double frequency[256];
    size_t dim = rope->dim, half = dim / 2;
    random_row(random, 0, x, ROWS * HEADS * dim);
    for (size_t i = 0; i < ROWS * HEADS * dim; i += 3)
        x[i] = i % 2 ? -0.0f : 0x1p-140f;               /* bits that a product with 0 or 1 might lose */
    memcpy(want, x, sizeof want);
    for (size_t row = 0; row < ROWS; row++)
        for (size_t head = 0; head < HEADS; head++)
            for (size_t i = 0; i < rope->pairs && start + row; i++) {
                float c, s;
                pinned_rope_angle(rope->base, (unsigned)i, rope->dim, start + (unsigned)row, &c, &s);
                rotate_pair(want + (row * HEADS + head) * dim, i, half, c, s);
            }
    rope_frequencies(rope, frequency);
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
        memcpy(out, x, sizeof out);
        kernels->rope_table(frequency, half, start, ROWS, cosine, sine);
        kernels->rope_rows(out, ROWS, HEADS, dim, cosine, sine);
        assert_same(out, want, ROWS * HEADS * dim * sizeof *out, kernels->isa, "rotation", dim, rope->pairs);
    }
}

static void rotation_equals_the_reference(void **state)
{
    (void)state;
    static const unsigned dims[] = {2, 6, 36, 64, 128, 256, 512};
    struct random random = {4};
    for (size_t n = 0; n < sizeof dims / sizeof *dims; n++)
        for (unsigned part = 0; part < 4; part++) {      /* all pairs turn, a quarter, one, none */
            unsigned half = dims[n] / 2;
            struct rope rope = {.base = 10000.0, .scale = 1.0, .dim = dims[n], .pairs = part == 0 ? half : part == 1 ? half / 4 : 3 - part};
            check_rotation(&random, &rope, 0);
            check_rotation(&random, &rope, random_below(&random, 1000000));
        }
}

static void scaled_positions_turn_slower(void **state)
{
    (void)state;
    static const double scales[] = {3.0, 10.7, 8.0};
    struct rope rope = {.base = 1e6, .scale = 1.0, .dim = 64, .pairs = 32};
    double scaled[32], plain[32];
    rope_frequencies(&rope, plain);
    rope.pairs = 20;
    for (unsigned n = 0; n < 3; n++) {
        rope.scale = scales[n];
        rope_frequencies(&rope, scaled);
        for (unsigned i = 0; i < 32; i++) {
            assert_true(scaled[i] == (i < 20 ? plain[i] / scales[n] : 0.0));
            assert_true(fabs(plain[i] - pow(1e6, -(double)i / 32)) < 1e-14);
        }
    }
    float slow_cosine[32], slow_sine[32], cosine[32], sine[32];
    kernels_at(0)->rope_table(scaled, 32, 8 * 1234, 1, slow_cosine, slow_sine);
    kernels_at(0)->rope_table(plain, 32, 1234, 1, cosine, sine);      /* a scale of eight is exact: the same angles */
    assert_memory_equal(slow_cosine, cosine, 20 * sizeof *cosine);
    assert_memory_equal(slow_sine, sine, 20 * sizeof *sine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm_equals_the_reference),
        cmocka_unit_test(norm_refuses_what_overflows),
        cmocka_unit_test(gates_equal_the_reference),
        cmocka_unit_test(activations_are_close),
        cmocka_unit_test(softcap_equals_the_reference),
        cmocka_unit_test(rotation_equals_the_reference),
        cmocka_unit_test(scaled_positions_turn_slower),
    };
    return cmocka_run_group_tests_name("operations", tests, NULL, NULL);
}
