/* rope.c - tables of cosine and sine for a chunk, and the rotation. */
#include "kernels/rope.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/levels.h"
#include "kernels/ref/rope_inline.h"

void KERNEL(rope_table)(const double *frequency, size_t pairs, uint32_t start, size_t count, float *restrict cosine,
                        float *restrict sine)
{
    for (size_t row = 0; row < count; row++) {
        double position = (double)(start + (uint32_t)row);
        for (size_t i = 0; i < pairs; i++)
            rope_cos_sin(position * frequency[i], &cosine[row * pairs + i], &sine[row * pairs + i]);
    }
}

static void rotate(float *restrict low, float *restrict high, const float *restrict cosine, const float *restrict sine,
                   size_t pairs)
{
    for (size_t i = 0; i < pairs; i++) {
        float a = low[i], b = high[i];
        float turned_a = a * cosine[i] - b * sine[i];
        float turned_b = b * cosine[i] + a * sine[i];
        low[i] = sine[i] == 0.0f ? a : turned_a;      /* the product with 0 could turn -0 into 0 */
        high[i] = sine[i] == 0.0f ? b : turned_b;
    }
}

void KERNEL(rope_rows)(float *x, size_t rows, size_t heads, size_t dim, const float *cosine, const float *sine)
{
    size_t pairs = dim / 2;
    for (size_t row = 0; row < rows; row++)
        for (size_t head = 0; head < heads; head++) {
            float *vector = x + (row * heads + head) * dim;
            rotate(vector, vector + pairs, cosine + row * pairs, sine + row * pairs, pairs);
        }
}
