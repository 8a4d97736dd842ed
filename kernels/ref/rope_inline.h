/* rope_inline.h - cosine and sine in double from additions and multiplications alone; included by kernels/ref and kernels/cuda. */
#ifndef ROOST_KERNELS_REF_ROPE_INLINE_H
#define ROOST_KERNELS_REF_ROPE_INLINE_H
#include <stdint.h>
#include <string.h>
#include "kernels/ref/inline.h"

/* pi/2 in three parts; the first two have 33 bits, so that their products with k < 2^20 are exact (Cody and Waite). */
#define ROPE_PI_2_A 0x1.921fb54400000p+0
#define ROPE_PI_2_B 0x1.0b4611a600000p-34
#define ROPE_PI_2_C 0x1.3198a2e037073p-69
#define ROPE_2_PI 0x1.45f306dc9c883p-1      /* 2 / pi */
#define ROPE_ROUND_MAGIC 0x1.8p+52

KERNEL_INLINE void rope_cos_sin(double angle, float *cosine, float *sine)
{
    double shifted = angle * ROPE_2_PI + ROPE_ROUND_MAGIC;
    double k = shifted - ROPE_ROUND_MAGIC;
    uint64_t quadrant;
    memcpy(&quadrant, &shifted, sizeof quadrant);
    double x = ((angle - k * ROPE_PI_2_A) - k * ROPE_PI_2_B) - k * ROPE_PI_2_C;
    double z = x * x;
    double c = 1.0, s = 1.0;      /* nested Taylor series: 20! and 21! are the last denominators */
    c = 1.0 - (c * z) * (1.0 / (19.0 * 20.0));
    c = 1.0 - (c * z) * (1.0 / (17.0 * 18.0));
    c = 1.0 - (c * z) * (1.0 / (15.0 * 16.0));
    c = 1.0 - (c * z) * (1.0 / (13.0 * 14.0));
    c = 1.0 - (c * z) * (1.0 / (11.0 * 12.0));
    c = 1.0 - (c * z) * (1.0 / (9.0 * 10.0));
    c = 1.0 - (c * z) * (1.0 / (7.0 * 8.0));
    c = 1.0 - (c * z) * (1.0 / (5.0 * 6.0));
    c = 1.0 - (c * z) * (1.0 / (3.0 * 4.0));
    c = 1.0 - (c * z) * (1.0 / (1.0 * 2.0));
    s = 1.0 - (s * z) * (1.0 / (20.0 * 21.0));
    s = 1.0 - (s * z) * (1.0 / (18.0 * 19.0));
    s = 1.0 - (s * z) * (1.0 / (16.0 * 17.0));
    s = 1.0 - (s * z) * (1.0 / (14.0 * 15.0));
    s = 1.0 - (s * z) * (1.0 / (12.0 * 13.0));
    s = 1.0 - (s * z) * (1.0 / (10.0 * 11.0));
    s = 1.0 - (s * z) * (1.0 / (8.0 * 9.0));
    s = 1.0 - (s * z) * (1.0 / (6.0 * 7.0));
    s = 1.0 - (s * z) * (1.0 / (4.0 * 5.0));
    s = x * (1.0 - (s * z) * (1.0 / (2.0 * 3.0)));
    double swapped_c = quadrant & 1u ? s : c;
    double swapped_s = quadrant & 1u ? c : s;
    *cosine = (float)((quadrant + 1u) & 2u ? -swapped_c : swapped_c);
    *sine = (float)(quadrant & 2u ? -swapped_s : swapped_s);
}

#endif
