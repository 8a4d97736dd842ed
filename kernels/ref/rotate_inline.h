/* rotate_inline.h - the signs of the rotation: the first 128 binary places of pi, a 1 for -1; included by kernels/ref and
 * kernels/cuda. */
#ifndef ROOST_KERNELS_REF_ROTATE_INLINE_H
#define ROOST_KERNELS_REF_ROTATE_INLINE_H
#include <stdint.h>
#include "kernels/ref/inline.h"

/* -1 or +1 of column i of a block, i < 128. */
KERNEL_INLINE float rotate_sign(unsigned i)
{
    static const uint32_t places[4] = {0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u};
    return places[i / 32] >> (31 - i % 32) & 1u ? -1.0f : 1.0f;
}

#endif
