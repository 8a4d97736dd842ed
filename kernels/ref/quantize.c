/* quantize.c - dynamic int8 rows: scale = absmax / 127, q = rint(x * (127 / absmax)). */
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

void KERNEL(dequantize_row)(const int8_t *q, float scale, size_t columns, float *restrict out)
{
    for (size_t i = 0; i < columns; i++)
        out[i] = (float)q[i] * scale;
}
