/* rotate.c - the signed Hadamard rotation of blocks of 128 columns.
 *
 * A step at distance 2^s pairs the elements whose numbers differ in bit s. Each step here also turns the numbers by one bit: it reads
 * pairs of neighbours, puts sums into the first half and differences into the second. So every step is the same loop, which
 * vectorises, and after seven steps all elements are back in their places (Pease, 1968). */
#include "kernels/quantize.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/levels.h"
#include "kernels/ref/rotate_inline.h"

#define BLOCK QUANTIZE_ROTATE_BLOCK

static void step(const float *restrict from, float *restrict to)
{
    for (size_t i = 0; i < BLOCK / 2; i++) {
        float a = from[2 * i], b = from[2 * i + 1];
        to[i] = a + b;
        to[BLOCK / 2 + i] = a - b;
    }
}

void KERNEL(rotate_rows)(const float *x, size_t rows, size_t columns, float *out)
{
    float sign[BLOCK], even[BLOCK], odd[BLOCK];
    for (unsigned i = 0; i < BLOCK; i++)
        sign[i] = rotate_sign(i);
    for (size_t at = 0; at < rows * columns; at += BLOCK) {
        for (size_t i = 0; i < BLOCK; i++)
            even[i] = x[at + i] * sign[i];
        step(even, odd);
        step(odd, even);
        step(even, odd);
        step(odd, even);
        step(even, odd);
        step(odd, even);
        step(even, odd);
        memcpy(out + at, odd, sizeof odd);
    }
}
