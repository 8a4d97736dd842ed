/* Rows to integers and back, on every level against the reference: equal bits on random and on edge inputs. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "reference.h"

static const size_t widths_[] = {1, 2, 3, 31, 64, 127, 128, 129, 200, 256, 640, 1000};
#define WIDTH_COUNT (sizeof widths_ / sizeof *widths_)
#define WIDTH_MAX 1024

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
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++)
        for (size_t w = 0; w < WIDTH_COUNT; w++) {
            size_t columns = widths_[w];
            random_row(&random, kind, x, 2 * columns);
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
        int8_t q[40], low[40];
        for (int at = 0; at < 40; at++) {
            for (int bad = 0; bad < 3; bad++) {
                memset(x, 0, sizeof x);
                x[at] = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
                assert_false(kernels->quantize_rows(x, 1, 40, q, &scale));
                assert_false(kernels->quantize_static_rows(x, 1, 40, 1.0f, q));
                assert_false(kernels->quantize_wide_rows(x, 1, 40, q, low, &scale));
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
        assert_true(kernels->quantize_static_rows(largest, 1, 3, 1e30f, q));      /* the products are infinite */
        assert_true(q[0] == 127 && q[1] == -127 && q[2] == 127);
        float clamped[] = {126.5f, 127.5f, -127.49f, 1e9f, -1e9f, -128.0f, 0x1p-149f};
        static const int8_t inside[] = {126, 127, -127, 127, -127, -127, 0};
        assert_true(kernels->quantize_static_rows(clamped, 1, 7, 1.0f, q));
        assert_memory_equal(q, inside, sizeof inside);
    }
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

static void static_rows_equal_the_reference(void **state)
{
    (void)state;
    static float x[3 * WIDTH_MAX];
    static int8_t q[3 * WIDTH_MAX], want[3 * WIDTH_MAX];
    static const float inverses[] = {1.0f, 42.3f, 2.0f, 1e-3f, 0x1p100f, 0x1p-100f};
    struct random random = {21};
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++)
        for (size_t w = 0; w < WIDTH_COUNT; w++) {
            size_t columns = widths_[w];
            float inverse = inverses[(w + kind) % 6];
            random_row(&random, kind, x, 3 * columns);
            for (size_t row = 0; row < 3; row++)
                assert_true(reference_quantize_static_row(x + row * columns, columns, inverse, want + row * columns));
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
                assert_true(kernels->quantize_static_rows(x, 3, columns, inverse, q));
                assert_same(q, want, 3 * columns, kernels->isa, "static", columns, kind);
            }
        }
}

static void wide_rows_equal_the_reference(void **state)
{
    (void)state;
    static float x[2 * WIDTH_MAX], scale[2], want_scale[2];
    static int8_t high[2 * WIDTH_MAX], low[2 * WIDTH_MAX], want_high[2 * WIDTH_MAX], want_low[2 * WIDTH_MAX];
    struct random random = {22};
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++)
        for (size_t w = 0; w < WIDTH_COUNT; w++) {
            size_t columns = widths_[w];
            random_row(&random, kind, x, 2 * columns);
            for (size_t row = 0; row < 2; row++)
                assert_true(reference_quantize_wide_row(x + row * columns, columns, want_high + row * columns, want_low + row * columns,
                                                        &want_scale[row]));
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
                assert_true(kernels->quantize_wide_rows(x, 2, columns, high, low, scale));
                assert_same(high, want_high, 2 * columns, kernels->isa, "wide, high", columns, kind);
                assert_same(low, want_low, 2 * columns, kernels->isa, "wide, low", columns, kind);
                assert_same(scale, want_scale, sizeof scale, kernels->isa, "wide, scale", columns, kind);
            }
        }
}

/* Every integer a wide row can hold, in its two halves. */
static void wide_halves_hold_every_integer(void **state)
{
    (void)state;
    enum { COUNT = 2 * 32512 + 1 };
    float *x = malloc(COUNT * sizeof *x), scale;
    int8_t *high = malloc(COUNT), *low = malloc(COUNT);
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(i - 32512);
    const struct kernels *kernels;
    for (unsigned k = 0; (kernels = kernels_at(k)); k++) {
        assert_true(kernels->quantize_wide_rows(x, 1, COUNT, high, low, &scale));
        assert_true(scale == 1.0f);
        for (int i = 0; i < COUNT; i++)
            if (high[i] < -127 || 256 * high[i] + low[i] != i - 32512)
                fail_msg("%s: %d is %d and %d", kernels->isa, i - 32512, high[i], low[i]);
    }
    free(x), free(high), free(low);
}

static void rotation_equals_the_reference(void **state)
{
    (void)state;
    static float x[2 * WIDTH_MAX], out[2 * WIDTH_MAX], want[2 * WIDTH_MAX];
    struct random random = {23};
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++)
        for (size_t columns = 128; columns <= WIDTH_MAX; columns += 128) {
            random_row(&random, kind, x, 2 * columns);
            memcpy(want, x, sizeof want);
            reference_rotate_row(want, columns);
            reference_rotate_row(want + columns, columns);
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
                kernels->rotate_rows(x, 2, columns, out);
                assert_same(out, want, 2 * columns * sizeof *out, kernels->isa, "rotation", columns, kind);
                memcpy(out, x, sizeof out);
                kernels->rotate_rows(out, 2, columns, out);
                assert_same(out, want, 2 * columns * sizeof *out, kernels->isa, "rotation in place", columns, kind);
            }
        }
}

/* The signs are the binary places of pi; the rotation's square, with the signs once more, is 128; a sum that overflows shows. */
static void rotation_is_what_it_says(void **state)
{
    (void)state;
    unsigned negative = 0;
    for (unsigned i = 0; i < 128; i++) {
        assert_true(fabsf(quantize_rotate_sign(i)) == 1.0f);
        negative += quantize_rotate_sign(i) < 0;
    }
    assert_int_equal(negative, 52);
    double place = 0x1.921fb54442d18p+1 - 3.0;           /* 51 places of it are in a double */
    for (unsigned i = 0; i < 50; i++) {
        place *= 2.0;
        assert_true((quantize_rotate_sign(i) < 0) == (place >= 1.0));
        place -= place >= 1.0 ? 1.0 : 0.0;
    }
    const struct kernels *kernels;
    for (unsigned k = 0; (kernels = kernels_at(k)); k++) {
        float x[128], once[128], twice[128], scale;
        int8_t q[128];
        for (int i = 0; i < 128; i++)
            x[i] = (float)(i * i % 97 - 48);             /* integers: exact */
        kernels->rotate_rows(x, 1, 128, once);
        for (unsigned i = 0; i < 128; i++)
            once[i] *= quantize_rotate_sign(i);          /* so that the second turn begins with H alone */
        kernels->rotate_rows(once, 1, 128, twice);
        for (unsigned i = 0; i < 128; i++)
            assert_true(twice[i] == 128.0f * x[i] * quantize_rotate_sign(i));
        for (unsigned i = 0; i < 128; i++)
            x[i] = FLT_MAX / 2 * quantize_rotate_sign(i);
        kernels->rotate_rows(x, 1, 128, once);
        assert_false(kernels->quantize_rows(once, 1, 128, q, &scale));
    }
}

/* What is lost on the way to integers and back, root mean square over the row's: of a plain row and of one with outliers. */
static double lost(unsigned scheme, bool outliers, struct random *random)
{
    enum { COUNT = 1024 };
    static float x[COUNT], rotated[COUNT], back[COUNT];
    static int8_t q[COUNT], low[COUNT];
    const struct kernels *kernels = kernels_at(0);
    double error = 0, size = 0;
    for (int trial = 0; trial < 20; trial++) {
        float scale;
        for (int i = 0; i < COUNT; i++)
            x[i] = random_float(random, 1.0f) + random_float(random, 1.0f) + random_float(random, 1.0f);
        if (outliers)
            x[trial * 7] = 100.0f;
        if (scheme == 2)
            assert_true(kernels->quantize_wide_rows(x, 1, COUNT, q, low, &scale));
        else if (scheme == 1)
            kernels->rotate_rows(x, 1, COUNT, rotated);
        if (scheme < 2)
            assert_true(kernels->quantize_rows(scheme ? rotated : x, 1, COUNT, q, &scale));
        for (int i = 0; i < COUNT; i++)
            back[i] = (float)((scheme == 2 ? 256 * q[i] + low[i] : q[i])) * scale;
        if (scheme == 1) {                               /* transposed: H, then the signs, over 128 */
            for (unsigned i = 0; i < COUNT; i++)
                back[i] *= quantize_rotate_sign(i % 128);
            kernels->rotate_rows(back, 1, COUNT, back);
            for (unsigned i = 0; i < COUNT; i++)
                back[i] *= quantize_rotate_sign(i % 128) / 128.0f;
        }
        for (int i = 0; i < COUNT; i++) {
            if (fabsf(x[i]) >= 100.0f)
                continue;                                /* the others must survive beside it */
            error += ((double)back[i] - x[i]) * ((double)back[i] - x[i]);
            size += (double)x[i] * x[i];
        }
    }
    return sqrt(error / size);
}

static void schemes_keep_what_they_promise(void **state)
{
    (void)state;
    static const char *const names[] = {"dynamic", "rotated", "wide"};
    static const double most[3][2] = {{0.01, 0.5}, {0.01, 0.1}, {0.0001, 0.002}};
    struct random random = {24};
    for (unsigned scheme = 0; scheme < 3; scheme++)
        for (int outliers = 0; outliers < 2; outliers++) {
            double share = lost(scheme, outliers, &random);
            print_message("%s%s: %.4f%% lost\n", names[scheme], outliers ? ", an outlier of 100 deviations" : "", 100 * share);
            assert_true(share < most[scheme][outliers]);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantize_equals_the_reference),
        cmocka_unit_test(quantize_knows_its_edges),
        cmocka_unit_test(static_rows_equal_the_reference),
        cmocka_unit_test(wide_rows_equal_the_reference),
        cmocka_unit_test(wide_halves_hold_every_integer),
        cmocka_unit_test(rotation_equals_the_reference),
        cmocka_unit_test(rotation_is_what_it_says),
        cmocka_unit_test(schemes_keep_what_they_promise),
        cmocka_unit_test(dequantize_multiplies_once),
    };
    return cmocka_run_group_tests_name("quantize", tests, NULL, NULL);
}
