/* Every operation but attention, on every level, against the reference: equal bits on random and on edge inputs. */
#include <float.h>
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

/* Random floats of a kind: plain, wide exponents, ties after scaling, denormals, one outlier, zeros. */
static void fill(struct random *random, unsigned kind, float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        switch (kind) {
        case 0: x[i] = random_float(random, 3.0f); break;
        case 1: x[i] = ldexpf(random_float(random, 1.0f), (int)random_below(random, 60) - 30); break;
        case 2: x[i] = (float)((int)random_below(random, 509) - 254) * 0.5f; break;
        case 3: x[i] = random_float(random, 0x1p-127f); break;
        case 4: x[i] = i == count / 2 ? 1e6f : random_float(random, 1.0f); break;
        case 5: x[i] = i % 2 ? -0.0f : 0.0f; break;
        case 6: x[i] = random_float(random, 0x1p-98f); break;
        default: x[i] = random_float(random, 1e17f); break;
        }
    if (kind == 2 && count > 1)
        x[count - 1] = 127.0f;     /* the scale becomes 1: halves are ties */
}
#define KINDS 8

static void assert_same(const void *got, const void *want, size_t bytes, const char *isa, const char *what, size_t columns, unsigned kind)
{
    if (memcmp(got, want, bytes) != 0)
        fail_msg("%s on %s: other bits, %zu columns, kind %u", what, isa, columns, kind);
}

static void quantize_equals_the_reference(void **state)
{
    (void)state;
    static float x[2 * WIDTH_MAX], scale[2], want_scale[2];
    static int8_t q[2 * WIDTH_MAX], want[2 * WIDTH_MAX];
    struct random random = {1};
    for (unsigned kind = 0; kind < KINDS; kind++)
        for (size_t w = 0; w < WIDTH_COUNT; w++) {
            size_t columns = widths_[w];
            fill(&random, kind, x, 2 * columns);
            for (size_t row = 0; row < 2; row++)
                assert_true(reference_quantize_row(x + row * columns, columns, want + row * columns, &want_scale[row]));
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
                assert_true(kernels->quantize_rows(x, 2, columns, q, scale));
                assert_same(q, want, 2 * columns, kernels->isa, "quantize", columns, kind);
                assert_same(scale, want_scale, sizeof scale, kernels->isa, "scale", columns, kind);
            }
        }
}

static void quantize_knows_its_edges(void **state)
{
    (void)state;
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
        float x[40], scale;
        int8_t q[40];
        for (int at = 0; at < 40; at++) {
            for (int bad = 0; bad < 3; bad++) {
                memset(x, 0, sizeof x);
                x[at] = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
                assert_false(kernels->quantize_rows(x, 1, 40, q, &scale));
                assert_false(kernels->all_finite(x, 40));
            }
        }
        memset(x, 0, sizeof x);
        assert_true(kernels->quantize_rows(x, 1, 40, q, &scale));
        assert_true(scale == 1.0f && q[0] == 0);
        assert_true(kernels->all_finite(x, 40));
        float halves[] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -127.0f};
        static const int8_t even[] = {127, 0, 2, 2, 0, -2, -2, 126, -127};
        assert_true(kernels->quantize_rows(halves, 1, 9, q, &scale));
        assert_memory_equal(q, even, sizeof even);
        float largest[] = {FLT_MAX, -FLT_MAX, FLT_MAX / 2};
        assert_true(kernels->quantize_rows(largest, 1, 3, q, &scale));
        assert_int_equal(q[0], 127);
        assert_int_equal(q[1], -127);
    }
}

static void norm_equals_the_reference(void **state)
{
    (void)state;
    static float x[2 * WIDTH_MAX], weight[WIDTH_MAX], out[2 * WIDTH_MAX], want[2 * WIDTH_MAX];
    struct random random = {2};
    for (unsigned kind = 0; kind < KINDS; kind++)
        for (size_t w = 0; w < WIDTH_COUNT; w++) {
            size_t columns = widths_[w];
            fill(&random, kind, x, 2 * columns);
            fill(&random, 0, weight, columns);
            for (size_t row = 0; row < 2; row++)
                reference_rmsnorm_row(x + row * columns, weight, 1e-6f, columns, want + row * columns);
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
                struct rmsnorm norm = {.x = x, .weight = weight, .epsilon = 1e-6f, .rows = 2, .columns = columns, .out = out};
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
    for (unsigned kind = 0; kind < KINDS; kind++)
        for (int gelu = 0; gelu < 2; gelu++) {
            fill(&random, kind, x, WIDTH_MAX);
            fill(&random, 0, up, WIDTH_MAX);
            if (kind == 0)
                for (size_t i = 0; i < WIDTH_MAX; i++)
                    x[i] *= 30.0f;
            if (kind == KINDS - 1)
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

static void rotation_equals_the_reference(void **state)
{
    (void)state;
    static const size_t dims[] = {2, 6, 36, 64, 128};
    static float x[4 * 3 * 128], want[4 * 3 * 128], out[4 * 3 * 128], cosine[4 * 64], sine[4 * 64];
    struct random random = {4};
    for (size_t n = 0; n < 5; n++) {
        size_t dim = dims[n], pairs = dim / 2;
        uint32_t start = random_below(&random, 1000000);
        double frequency[64];
        rope_frequencies(10000.0, (unsigned)dim, frequency);
        fill(&random, 0, x, 4 * 3 * dim);
        for (size_t row = 0; row < 4; row++)
            for (size_t head = 0; head < 3; head++)
                for (size_t i = 0; i < pairs; i++) {
                    float c, s, a = x[(row * 3 + head) * dim + i], b = x[(row * 3 + head) * dim + pairs + i];
                    pinned_rope_angle(10000.0, (unsigned)i, (unsigned)dim, start + (unsigned)row, &c, &s);
                    float ac = a * c, bs = b * s, bc = b * c, as = a * s;
                    want[(row * 3 + head) * dim + i] = ac - bs;
                    want[(row * 3 + head) * dim + pairs + i] = bc + as;
                }
        const struct kernels *kernels;
        for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
            memcpy(out, x, sizeof out);
            kernels->rope_table(frequency, pairs, start, 4, cosine, sine);
            kernels->rope_rows(out, 4, 3, dim, cosine, sine);
            assert_same(out, want, 4 * 3 * dim * sizeof *out, kernels->isa, "rotation", dim, 0);
        }
    }
}

static void check_gemm(struct random *random, size_t rows, size_t outputs, size_t depth, int extreme)
{
    int8_t *a = malloc(rows * depth), *w = malloc(outputs * depth);
    float *a_scale = malloc(rows * sizeof *a_scale), *w_scale = malloc(outputs * sizeof *w_scale);
    float *out = malloc(rows * outputs * sizeof *out), *want = malloc(rows * outputs * sizeof *want);
    void *scratch = aligned_alloc(64, (GEMM_SCRATCH_BYTES(depth) + 63) / 64 * 64);
    for (size_t i = 0; i < rows * depth; i++)
        a[i] = extreme ? (extreme > 1 && random_below(random, 2) ? -127 : 127) : random_int8(random);
    for (size_t i = 0; i < outputs * depth; i++)
        w[i] = extreme ? (extreme > 1 && random_below(random, 2) ? -127 : 127) : random_int8(random);
    for (size_t i = 0; i < rows; i++)
        a_scale[i] = 0.01f + random_float(random, 0.009f);
    for (size_t i = 0; i < outputs; i++)
        w_scale[i] = 0.01f + random_float(random, 0.009f);
    struct gemm_int8 gemm = {.a = a, .a_scale = a_scale, .w = w, .w_scale = w_scale, .rows = rows, .outputs = outputs, .depth = depth,
                             .scratch = scratch};
    const struct kernels *kernels;
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        gemm.accumulate = accumulate;
        for (size_t i = 0; i < rows * outputs; i++)
            want[i] = (float)i;
        gemm.out = want;
        reference_gemm(&gemm);
        for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
            for (size_t k = 0; k < rows * outputs; k++)
                out[k] = (float)k;
            gemm.out = out;
            kernels->gemm_int8(&gemm);
            assert_same(out, want, rows * outputs * sizeof *out, kernels->isa, "gemm", depth, (unsigned)rows);
        }
    }
    free(a), free(w), free(a_scale), free(w_scale), free(out), free(want), free(scratch);
}

static void gemm_equals_the_triple_loop(void **state)
{
    (void)state;
    struct random random = {5};
    for (int i = 0; i < 60; i++)
        check_gemm(&random, 1 + random_below(&random, 20), 1 + random_below(&random, 21), 1 + random_below(&random, 300), i % 3);
    check_gemm(&random, 64, 8, 64, 0);
    check_gemm(&random, 65, 7, 65, 0);
    check_gemm(&random, 131, 5, 96, 0);
    check_gemm(&random, 1, 130, 256, 0);
    for (int extreme = 1; extreme <= 2; extreme++)
        check_gemm(&random, 5, 5, GEMM_DEPTH_MAX, extreme);     /* the largest sums */
}

static void dequantize_multiplies_once(void **state)
{
    (void)state;
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
        int8_t q[255];
        float out[255];
        for (int v = -127; v <= 127; v++)
            q[v + 127] = (int8_t)v;
        kernels->dequantize_row(q, 0.0123f, 255, out);
        for (int v = -127; v <= 127; v++)
            assert_true(out[v + 127] == (float)v * 0.0123f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantize_equals_the_reference),
        cmocka_unit_test(quantize_knows_its_edges),
        cmocka_unit_test(norm_equals_the_reference),
        cmocka_unit_test(norm_refuses_what_overflows),
        cmocka_unit_test(gates_equal_the_reference),
        cmocka_unit_test(activations_are_close),
        cmocka_unit_test(rotation_equals_the_reference),
        cmocka_unit_test(gemm_equals_the_triple_loop),
        cmocka_unit_test(dequantize_multiplies_once),
    };
    return cmocka_run_group_tests_name("operations", tests, NULL, NULL);
}
