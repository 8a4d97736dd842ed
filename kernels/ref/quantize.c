/* quantize.c - float rows to integers: dynamic (scale = absmax / 127, q = rint(x * (127 / absmax))), static and wide. */
#include "kernels/quantize.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/levels.h"

#define INFINITY_BITS 0x7f800000u

/* The largest |x| as bits: integers compare like the floats, in any order; NaN and infinity come out on top. */
static uint32_t absmax_bits(const float *x, size_t count)
{
    int32_t top = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t bits = (int32_t)(float_bits(x[i]) & 0x7fffffffu);
        top = bits > top ? bits : top;
    }
    return (uint32_t)top;
}

bool KERNEL(all_finite)(const float *x, size_t count)
{
    return absmax_bits(x, count) < INFINITY_BITS;
}

bool KERNEL(quantize_rows)(const float *x, size_t rows, size_t columns, int8_t *restrict q, float *restrict scale)
{
    for (size_t row = 0; row < rows; row++) {
        const float *in = x + row * columns;
        int8_t *out = q + row * columns;
        uint32_t bits = absmax_bits(in, columns);
        if (bits >= INFINITY_BITS)
            return false;
        float absmax = float_from_bits(bits);
        if (absmax < QUANTIZE_ABSMAX_MIN) {
            memset(out, 0, columns);
            scale[row] = 1.0f;
            continue;
        }
        float inverse = 127.0f / absmax;
        scale[row] = absmax / 127.0f;
        for (size_t i = 0; i < columns; i++)
            out[i] = (int8_t)(uint8_t)float_round_bits(in[i] * inverse);
    }
    return true;
}

bool KERNEL(quantize_static_rows)(const float *x, size_t rows, size_t columns, float inverse_scale, int8_t *restrict q)
{
    if (!KERNEL(all_finite)(x, rows * columns))
        return false;
    for (size_t i = 0; i < rows * columns; i++) {
        float value = x[i] * inverse_scale;       /* clamped first: it may be infinite; the bounds are integers, so no bit differs */
        value = value > 127.0f ? 127.0f : value;
        value = value < -127.0f ? -127.0f : value;
        q[i] = (int8_t)(uint8_t)float_round_bits(value);
    }
    return true;
}

bool KERNEL(quantize_wide_rows)(const float *x, size_t rows, size_t columns, int8_t *restrict high, int8_t *restrict low,
                                float *restrict scale)
{
    for (size_t row = 0; row < rows; row++) {
        const float *in = x + row * columns;
        int8_t *out_high = high + row * columns, *out_low = low + row * columns;
        uint32_t bits = absmax_bits(in, columns);
        if (bits >= INFINITY_BITS)
            return false;
        float absmax = float_from_bits(bits);
        if (absmax < QUANTIZE_ABSMAX_MIN) {
            memset(out_high, 0, columns);
            memset(out_low, 0, columns);
            scale[row] = 1.0f;
            continue;
        }
        float inverse = QUANTIZE_WIDE_MAX / absmax;
        scale[row] = absmax / QUANTIZE_WIDE_MAX;
        for (size_t i = 0; i < columns; i++) {
            uint32_t n = float_round_bits(in[i] * inverse);
            out_high[i] = (int8_t)(uint8_t)((n + 128u) >> 8);
            out_low[i] = (int8_t)(uint8_t)n;      /* what is left lies in [-128, 127]: the low byte as it stands */
        }
    }
    return true;
}

void KERNEL(dequantize_row)(const int8_t *q, float scale, size_t columns, float *restrict out)
{
    for (size_t i = 0; i < columns; i++)
        out[i] = (float)q[i] * scale;
}
