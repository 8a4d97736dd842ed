#include "worker/convert/rows.h"
#include <math.h>
#include "kernels/quantize.h"

#define SCALE_MIN 0x1p-120f          /* products with row scales stay normal numbers */

void rows_rotate(float *row, uint32_t columns)
{
    double block[QUANTIZE_ROTATE_BLOCK];
    for (uint32_t base = 0; base < columns; base += QUANTIZE_ROTATE_BLOCK) {
        for (unsigned i = 0; i < QUANTIZE_ROTATE_BLOCK; i++)
            block[i] = (double)row[base + i] * (double)quantize_rotate_sign(i);
        for (unsigned distance = 1; distance < QUANTIZE_ROTATE_BLOCK; distance *= 2)
            for (unsigned i = 0; i < QUANTIZE_ROTATE_BLOCK; i++)
                if (!(i & distance)) {
                    const double a = block[i], b = block[i + distance];
                    block[i] = a + b;
                    block[i + distance] = a - b;
                }
        for (unsigned i = 0; i < QUANTIZE_ROTATE_BLOCK; i++)
            row[base + i] = (float)(block[i] / QUANTIZE_ROTATE_BLOCK);
    }
}

bool rows_quantize(const float *row, uint32_t columns, int8_t *q, float *scale)
{
    float absmax = 0;
    bool finite = true;
    for (uint32_t i = 0; i < columns; i++) {
        finite = finite && isfinite(row[i]);
        absmax = fmaxf(absmax, fabsf(row[i]));
    }
    if (!finite)
        return false;
    *scale = absmax / 127;
    if (!(*scale >= SCALE_MIN))
        *scale = 0;
    for (uint32_t i = 0; i < columns; i++) {
        const float value = *scale > 0 ? rintf(row[i] / *scale) : 0;
        q[i] = (int8_t)fminf(fmaxf(value, -127), 127);
    }
    return true;
}
