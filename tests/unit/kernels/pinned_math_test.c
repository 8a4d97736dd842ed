/* The pinned functions against the C library in long double, and the emulated fused multiply-add against the real one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "kernels/pinned_math.h"
#include "kernels/ref/inline.h"
#include "kernels/rope.h"

#define STEPS 200000

static uint64_t state_ = 7;

static uint32_t next(void)
{
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state_ >> 32);
}

static double error_of(float got, long double want)
{
    return (double)fabsl(((long double)got - want) / want);
}

static void exp2_is_close(void **state)
{
    (void)state;
    double worst = 0;
    for (int i = 0; i < STEPS; i++) {
        float x = (float)(-125.0 + 252.9 * ((double)next() * 0x1p-32));
        worst = fmax(worst, error_of(pinned_exp2(x), exp2l((long double)x)));
        x = (float)(-1.0 + 2.0 * ((double)next() * 0x1p-32));
        worst = fmax(worst, error_of(pinned_exp2(x), exp2l((long double)x)));
    }
    print_message("exp2: relative error below 2^%.2f\n", log2(worst));
    assert_true(worst < 0x1p-22);
}

static void exp2_has_exact_powers_and_ends(void **state)
{
    (void)state;
    for (int n = -149; n < 128; n++)
        assert_true(pinned_exp2((float)n) == ldexpf(1.0f, n));
    assert_true(pinned_exp2(-150.0f) == 0.0f);
    assert_true(pinned_exp2(-INFINITY) == 0.0f);
    assert_true(pinned_exp2(-1e30f) == 0.0f);
    assert_true(pinned_exp2(128.0f) == INFINITY);
    assert_true(pinned_exp2(INFINITY) == INFINITY);
    assert_true(isfinite(pinned_exp2(127.99999f)));
    assert_true(pinned_exp2(-148.6f) == 0x1p-149f);          /* rounded to a denormal once */
    assert_true(isnan(pinned_exp2(NAN)));
}

static void log_is_close(void **state)
{
    (void)state;
    double worst = 0;
    for (int i = 0; i < STEPS; i++) {
        float x = float_from_bits(next() % 0x7f7fffffu + 1u);
        long double want = logl((long double)x);
        worst = fmax(worst, (double)(fabsl((long double)pinned_log(x) - want) / fmaxl(fabsl(want), 0.1L)));
    }
    print_message("log: relative error below 2^%.2f\n", log2(worst));
    assert_true(worst < 0x1p-22);
    assert_true(pinned_log(1.0f) == 0.0f);
    assert_true(pinned_log(0.0f) == -INFINITY);
    assert_true(isnan(pinned_log(-1.0f)));
    assert_true(pinned_log(INFINITY) == INFINITY);
    assert_true(error_of(pinned_log(0x1p-149f), logl(0x1p-149L)) < 0x1p-22);
}

static void tanh_and_sigmoid_are_close(void **state)
{
    (void)state;
    double worst_tanh = 0, worst_sigmoid = 0;
    for (int i = 0; i < STEPS; i++) {
        float x = (float)(-12.0 + 24.0 * ((double)next() * 0x1p-32));
        worst_tanh = fmax(worst_tanh, error_of(pinned_tanh(x), tanhl((long double)x)));
        worst_sigmoid = fmax(worst_sigmoid, error_of(pinned_sigmoid(x), 1.0L / (1.0L + expl(-(long double)x))));
    }
    print_message("tanh: 2^%.2f, sigmoid: 2^%.2f\n", log2(worst_tanh), log2(worst_sigmoid));
    assert_true(worst_tanh < 0x1p-21);
    assert_true(worst_sigmoid < 0x1p-19);      /* the exponent is rounded once before 2^x: 17 * 2^-24 at its largest here */
    assert_true(pinned_tanh(0.0f) == 0.0f);
    assert_true(pinned_tanh(50.0f) == 1.0f);
    assert_true(pinned_tanh(-50.0f) == -1.0f);
    assert_true(pinned_sigmoid(0.0f) == 0.5f);
    assert_true(pinned_sigmoid(-200.0f) == 0.0f);
    assert_true(isnan(pinned_tanh(NAN)) && isnan(pinned_sigmoid(NAN)));
}

static void rope_angles_are_close(void **state)
{
    (void)state;
    static const double bases[] = {10000.0, 100000.0, 1000000.0, 1.5, 1e12};
    double worst = 0;
    for (int i = 0; i < 20000; i++) {
        double base = bases[next() % 5];
        unsigned dim = 2u * (1u + next() % 256u), pair = next() % (dim / 2), position = next() % 1048576u;
        if (i % 2)
            position %= 5000;
        float cosine, sine;
        pinned_rope_angle(base, pair, dim, position, &cosine, &sine);
        long double angle = position * powl(base, -2.0L * pair / dim);
        worst = fmax(worst, fmax((double)fabsl(cosine - cosl(angle)), (double)fabsl(sine - sinl(angle))));
    }
    print_message("rotary angles: error below 2^%.2f\n", log2(worst));
    assert_true(worst < 0x1p-24);
}

static void rope_frequencies_agree_with_angles(void **state)
{
    (void)state;
    double frequency[32];
    float cosine[32], sine[32], one_cosine, one_sine;
    rope_frequencies(&(struct rope){.base = 10000.0, .scale = 1.0, .dim = 64, .pairs = 32}, frequency);
    assert_true(frequency[0] == 1.0);
    for (unsigned pair = 0; pair < 32; pair++) {
        pinned_rope_angle(10000.0, pair, 64, 1, &one_cosine, &one_sine);
        cosine[pair] = (float)cos(frequency[pair]);
        sine[pair] = (float)sin(frequency[pair]);
        assert_true(fabsf(one_cosine - cosine[pair]) < 1e-7f && fabsf(one_sine - sine[pair]) < 1e-7f);
    }
}

static void fma_is_fused(void **state)
{
    (void)state;
    for (int i = 0; i < 2000000; i++) {
        float a = float_from_bits(next()), b = float_from_bits(next()), c = float_from_bits(next());
        if (i % 4 == 1) {                       /* near cancellation */
            c = -a * b;
            c = float_from_bits(float_bits(c) + next() % 5u - 2u);
        } else if (i % 4 == 2) {                /* similar sizes */
            a = 1.0f + (float)(next() >> 9) * 0x1p-23f;
            b = 1.0f + (float)(next() >> 9) * 0x1p-23f;
            c = (1.0f + (float)(next() >> 9) * 0x1p-23f) * ldexpf(1.0f, (int)(next() % 60u) - 30);
        } else if (i % 4 == 3) {                /* denormal results */
            a = ldexpf(1.0f + (float)(next() >> 9) * 0x1p-23f, -70);
            b = ldexpf(1.0f + (float)(next() >> 9) * 0x1p-23f, -(int)(next() % 20u) - 60);
            c = float_from_bits(next() % 0x00ffffffu);
        }
        float got = float_fma(a, b, c), want = fmaf(a, b, c);
        if (isnan(want))
            assert_true(isnan(got));
        else
            assert_int_equal(float_bits(got), float_bits(want));
    }
}

/* Sums so close to the middle between two floats that double takes them for the middle: rounding twice goes wrong. */
static void fma_rounds_once(void **state)
{
    (void)state;
    float a = 1.0f + 0x1p-23f, b = (1.0f - 0x1p-23f) * 0x1p-24f;       /* a * b = 2^-24 (1 - 2^-46) */
    for (int i = 0; i < 2000; i++) {
        float c = float_from_bits(0x3f800001u | (next() & 0x7ffffeu));  /* odd, in [1, 2) */
        float scale = ldexpf(1.0f, (int)(next() % 40u) - 20);
        for (int sign = 0; sign < 4; sign++) {
            float left = sign & 1 ? -b : b, right = sign & 2 ? -c : c;
            assert_int_equal(float_bits(float_fma(a * scale, left, right * scale)), float_bits(fmaf(a * scale, left, right * scale)));
        }
    }
}

static void fma_passes_infinity_on(void **state)
{
    (void)state;
    assert_true(float_fma(INFINITY, 2.0f, 1.0f) == INFINITY);
    assert_true(float_fma(INFINITY, -2.0f, 1.0f) == -INFINITY);
    assert_true(float_fma(1.0f, 2.0f, -INFINITY) == -INFINITY);
    assert_true(float_fma(3e38f, 3e38f, 0.0f) == INFINITY);
    assert_true(isnan(float_fma(INFINITY, 0.0f, 1.0f)));
    assert_true(isnan(float_fma(NAN, 1.0f, 1.0f)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp2_is_close),
        cmocka_unit_test(exp2_has_exact_powers_and_ends),
        cmocka_unit_test(log_is_close),
        cmocka_unit_test(tanh_and_sigmoid_are_close),
        cmocka_unit_test(rope_angles_are_close),
        cmocka_unit_test(rope_frequencies_agree_with_angles),
        cmocka_unit_test(fma_is_fused),
        cmocka_unit_test(fma_rounds_once),
        cmocka_unit_test(fma_passes_infinity_on),
    };
    return cmocka_run_group_tests_name("pinned_math", tests, NULL, NULL);
}
