/* pinned_math.c - the scalar functions, the double ones behind rotary angles, and the signs of the rotation. */
#include "kernels/pinned_math.h"
#include "kernels/quantize.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/rope_inline.h"
#include "kernels/ref/rotate_inline.h"
#include "kernels/rope.h"

float pinned_exp2(float x)
{
    return inline_exp2(x);
}

float pinned_tanh(float x)
{
    return inline_tanh(x);
}

float pinned_sigmoid(float x)
{
    return inline_logistic(1.0f, x);
}

float pinned_log(float x)
{
    return inline_log(x);
}

#define LN_2 0x1.62e42fefa39efp-1
#define LOG2_E 0x1.71547652b82fep+0

/* log2 of x >= 1: x = 2^n m with m in [1, 2); ln m = 2 artanh(t), t = (m - 1) / (m + 1) < 1/3, as a series. */
static double double_log2(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    double n = (double)((int)(bits >> 52 & 0x7ffu) - 1023);
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    double m;
    memcpy(&m, &bits, sizeof m);
    double t = (m - 1.0) / (m + 1.0), z = t * t, sum = 0.0;
    for (int k = 20; k >= 0; k--)
        sum = sum * z + 1.0 / (double)(2 * k + 1);
    return n + (2.0 * t * sum) * LOG2_E;
}

/* 2^x for x in [-1000, 0]. */
static double double_exp2(double x)
{
    double shifted = x + ROPE_ROUND_MAGIC;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    double g = (x - (shifted - ROPE_ROUND_MAGIC)) * LN_2, sum = 1.0;
    for (int k = 16; k >= 1; k--)
        sum = 1.0 + (sum * g) / (double)k;
    uint64_t scale_bits = (bits + 1023u) << 52;    /* the low bits of shifted are the rounded x, in two's complement */
    double scale;
    memcpy(&scale, &scale_bits, sizeof scale);
    return sum * scale;
}

static double frequency_of(double log2_base, unsigned pair, unsigned dim)
{
    return double_exp2(-(2.0 * (double)pair / (double)dim) * log2_base);
}

void rope_frequencies(const struct rope *rope, double *frequency)
{
    double log2_base = double_log2(rope->base);
    for (unsigned pair = 0; pair < rope->dim / 2; pair++)
        frequency[pair] = pair < rope->pairs ? frequency_of(log2_base, pair, rope->dim) / rope->scale : 0.0;
}

void pinned_rope_angle(double base, unsigned pair, unsigned dim, unsigned position, float *cosine, float *sine)
{
    rope_cos_sin((double)position * frequency_of(double_log2(base), pair, dim), cosine, sine);
}

float quantize_rotate_sign(unsigned i)
{
    return rotate_sign(i % QUANTIZE_ROTATE_BLOCK);
}
