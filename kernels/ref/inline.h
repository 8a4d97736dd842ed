/* inline.h - the pinned scalar functions and what every kernel source needs; included by kernels/ref and, for the same bits on a GPU, by
 * kernels/cuda/device.h. KERNEL(name) appends the level's name, so that one source can be linked several times. No libm call is made here. */
#ifndef ROOST_KERNELS_REF_INLINE_H
#define ROOST_KERNELS_REF_INLINE_H
#include <stdint.h>
#include <string.h>

#ifndef KERNELS_ISA
#define KERNELS_ISA baseline
#endif
#define KERNEL_PASTE(name, isa) name##_##isa
#define KERNEL_EXPAND(name, isa) KERNEL_PASTE(name, isa)
#define KERNEL(name) KERNEL_EXPAND(name, KERNELS_ISA)

#ifdef __CUDACC__
#define KERNEL_INLINE static __host__ __device__ __forceinline__
#else
#define KERNEL_INLINE static inline
#endif

#define KERNEL_LOG2_E 0x1.715476p+0f       /* log2(e) rounded to float32 */
#define KERNEL_ROUND_MAGIC 0x1.8p+23f      /* adding it rounds |x| <= 2^22 to an integer, half to even */
#define KERNEL_ROUND_MAGIC_BITS 0x4b400000u

KERNEL_INLINE uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

KERNEL_INLINE float float_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

KERNEL_INLINE float float_abs(float x)
{
    return float_from_bits(float_bits(x) & 0x7fffffffu);
}

/* Nearest integer, half to even, as two's complement; |x| <= 2^22. */
KERNEL_INLINE uint32_t float_round_bits(float x)
{
    return float_bits(x + KERNEL_ROUND_MAGIC) - KERNEL_ROUND_MAGIC_BITS;
}

/* a * b + c rounded once. Without a fused instruction: the product is exact in double, the sum is rounded to odd (Boldo and
 * Melquiond, "Emulation of FMA and correctly rounded sums", 2008), so that the last rounding to float is the only one. */
KERNEL_INLINE float float_fma(float a, float b, float c)
{
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#elif defined(__FP_FAST_FMAF) || defined(__FMA__)
    return __builtin_fmaf(a, b, c);
#else
    double product = (double)a * (double)b, addend = (double)c;
    double sum = product + addend;
    double part = sum - product;
    double error = (product - (sum - part)) + (addend - part);
    error = error == error ? error : 0.0;        /* not finite: leave it alone */
    uint64_t sum_bits, error_bits;
    memcpy(&sum_bits, &sum, sizeof sum_bits);
    memcpy(&error_bits, &error, sizeof error_bits);
    uint64_t magnitude = error_bits << 1;
    uint64_t step = ((magnitude | (0 - magnitude)) >> 63) & ~sum_bits & 1u;    /* inexact and even: make it odd, */
    uint64_t inward = (error_bits ^ sum_bits) >> 63;                          /* towards where the exact sum lies */
    sum_bits += step - ((step & inward) << 1);
    memcpy(&sum, &sum_bits, sizeof sum);
    return (float)sum;
#endif
}

/* 2^x. Cephes exp2f's polynomial on [-1/2, 1/2]; the power of two in two exact steps, so that one rounding makes denormals. */
KERNEL_INLINE float inline_exp2(float x)
{
    x = x < -152.0f ? -152.0f : x;
    x = x > 129.0f ? 129.0f : x;
    float shifted = x + KERNEL_ROUND_MAGIC;
    uint32_t n = float_bits(shifted) - KERNEL_ROUND_MAGIC_BITS;
    float f = x - (shifted - KERNEL_ROUND_MAGIC);
    float p = 1.535336188319500e-4f;
    p = float_fma(p, f, 1.339887440266574e-3f);
    p = float_fma(p, f, 9.618437357674640e-3f);
    p = float_fma(p, f, 5.550332471162809e-2f);
    p = float_fma(p, f, 2.402264791363012e-1f);
    p = float_fma(p, f, 6.931472028550421e-1f);
    p = float_fma(p, f, 1.0f);
    uint32_t half = (n >> 1) | (n & 0x80000000u);
    float first = float_from_bits((half + 127u) << 23);
    float second = float_from_bits((n - half + 127u) << 23);
    return (p * first) * second;
}

/* x / (1 + exp(-x)) with x = 1 above the line: the logistic function. */
KERNEL_INLINE float inline_logistic(float numerator, float x)
{
    return numerator / (1.0f + inline_exp2(x * -KERNEL_LOG2_E));
}

/* Cephes tanhf: an odd polynomial below 0.625, 1 - 2 / (exp(2x) + 1) from there. */
KERNEL_INLINE float inline_tanh(float x)
{
    float magnitude = float_abs(x);
    float z = x * x;
    float p = -5.70498872745e-3f;
    p = float_fma(p, z, 2.06390887954e-2f);
    p = float_fma(p, z, -5.37397155531e-2f);
    p = float_fma(p, z, 1.33314422036e-1f);
    p = float_fma(p, z, -3.33332819422e-1f);
    float small = float_fma(p * z, x, x);
    float large = 1.0f - 2.0f / (inline_exp2(magnitude * (2.0f * KERNEL_LOG2_E)) + 1.0f);
    large = float_from_bits(float_bits(large) | (float_bits(x) & 0x80000000u));
    return magnitude < 0.625f ? small : large;
}

/* Cephes logf; x > 0, denormals included. */
KERNEL_INLINE float inline_log(float x)
{
    int exponent = 0;
    if (x < 0x1p-126f) {
        if (!(x > 0.0f))
            return float_from_bits(x == 0.0f ? 0xff800000u : 0x7fc00000u);      /* -infinity, NaN */
        x *= 0x1p+24f;
        exponent = -24;
    }
    uint32_t bits = float_bits(x);
    if (bits >= 0x7f800000u)
        return x;                                        /* infinity, NaN */
    uint32_t offset = bits - 0x3f3504f3u;                /* sqrt(1/2): the mantissa comes out in [sqrt(1/2), sqrt(2)) */
    int power = (int)(offset >> 23) - (offset >> 31 ? 512 : 0);
    float m = float_from_bits(bits - ((uint32_t)power << 23));
    float e = (float)(exponent + power);
    float f = m - 1.0f;
    float z = f * f;
    float p = 7.0376836292e-2f;
    p = float_fma(p, f, -1.1514610310e-1f);
    p = float_fma(p, f, 1.1676998740e-1f);
    p = float_fma(p, f, -1.2420140846e-1f);
    p = float_fma(p, f, 1.4249322787e-1f);
    p = float_fma(p, f, -1.6668057665e-1f);
    p = float_fma(p, f, 2.0000714765e-1f);
    p = float_fma(p, f, -2.4999993993e-1f);
    p = float_fma(p, f, 3.3333331174e-1f);
    float y = (f * z) * p;
    y = float_fma(e, -2.12194440e-4f, y);
    y = float_fma(z, -0.5f, y);
    return float_fma(e, 0.693359375f, f + y);
}

#endif
