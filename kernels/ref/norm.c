/* norm.c - RMSNorm. The sum of squares: lane l of 128 adds the elements l, l + 128, l + 256, ... in that order with fma;
 * then lanes meet their partners at distance 64, 32, ... 1. */
#include "kernels/norm.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/levels.h"

#define LANES 128

static float sum_of_squares(const float *x, size_t count)
{
    float lane[LANES] = {0};
    size_t at = 0;
    for (; at + LANES <= count; at += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] = float_fma(x[at + l], x[at + l], lane[l]);
    for (size_t l = 0; at + l < count; l++)
        lane[l] = float_fma(x[at + l], x[at + l], lane[l]);
    for (size_t distance = LANES / 2; distance > 0; distance /= 2)
        for (size_t l = 0; l < distance; l++)
            lane[l] = lane[l] + lane[l + distance];
    return lane[0];
}

bool KERNEL(rmsnorm_rows)(const struct rmsnorm *norm)
{
    const float *weight = norm->weight;
    size_t columns = norm->columns;
    for (size_t row = 0; row < norm->rows; row++) {
        const float *x = norm->x + row * columns;
        float *out = norm->out + row * columns;
        float mean = sum_of_squares(x, columns) / (float)columns;
        if (!(mean <= 0x1.fffffep+127f))
            return false;
        float inverse = 1.0f / __builtin_sqrtf(mean + norm->epsilon);
        if (!weight) {
            for (size_t i = 0; i < columns; i++)
                out[i] = x[i] * inverse;
            continue;
        }
        for (size_t i = 0; i < columns; i++)
            out[i] = (x[i] * inverse) * weight[i];
    }
    return true;
}
