/* dot.h - tiles of integer dot products; included by kernels/ref only.
 *
 * Written so that gcc's vectoriser finds the machine's dot-product instruction:
 *   avx512vnni  vpdpbusd wants unsigned times signed bytes. Signed rows times signed weights: the weights are made unsigned by
 *               adding 128 (one exclusive or per vector), and 128 * (sum of the row) is taken off at the end.
 *   others      pmaddwd wants 16-bit pairs: the left side is widened once per row (dot_operand), the weights on the way.
 * All sums are exact in int32 (128 * 255 * 65536 < 2^31), so the bits are those of a plain loop. */
#ifndef ROOST_KERNELS_REF_DOT_H
#define ROOST_KERNELS_REF_DOT_H
#include <stddef.h>
#include <stdint.h>

#ifdef __AVX512VNNI__
typedef int8_t dot_operand;            /* left side, values in [-128, 127] */
typedef uint8_t dot_weight;            /* left side, values in [0, 255] */
#define DOT_SHIFT 128
#define DOT_RIGHT(x) ((uint8_t)((uint8_t)(x) ^ 0x80u))
#else
typedef int16_t dot_operand;
typedef int16_t dot_weight;
#define DOT_SHIFT 0
#define DOT_RIGHT(x) (x)
#endif
#define DOT_INLINE static inline __attribute__((always_inline))
#define DOT_ROWS 4
#define DOT_COLUMNS 4

/* Prepares `count` left-side values: returns where they are (source itself where nothing is to be done) and their sum. */
static inline const dot_operand *dot_prepare(const int8_t *source, size_t count, dot_operand *scratch, int32_t *sum)
{
#if DOT_SHIFT
    int32_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += source[i];
    *sum = total * DOT_SHIFT;
    (void)scratch;
    return source;
#else
    for (size_t i = 0; i < count; i++)
        scratch[i] = source[i];
    *sum = 0;
    return scratch;
#endif
}

/* out[r * out_stride + c] = sum_k left[r * left_stride + k] * right[c * right_stride + k] - offset[r] */
#define DOT_TILE(NAME, LEFT, RIGHT, ROWS, COLUMNS)                                                                        \
    DOT_INLINE void NAME(const LEFT *restrict left, size_t left_stride, const int8_t *restrict right, size_t right_stride, \
                         size_t depth, const int32_t *restrict offset, int32_t *restrict out, size_t out_stride)           \
    {                                                                                                                      \
        int32_t sum[ROWS][COLUMNS] = {{0}};                                                                                \
        for (size_t k = 0; k < depth; k++) {                                                                               \
            _Pragma("GCC unroll 4") for (int r = 0; r < (ROWS); r++) {                                                     \
                _Pragma("GCC unroll 4") for (int c = 0; c < (COLUMNS); c++)                                                \
                    sum[r][c] += (int32_t)left[(size_t)r * left_stride + k] * (int32_t)RIGHT(right[(size_t)c * right_stride + k]); \
            }                                                                                                              \
        }                                                                                                                  \
        for (int r = 0; r < (ROWS); r++)                                                                                   \
            for (int c = 0; c < (COLUMNS); c++)                                                                            \
                out[(size_t)r * out_stride + (size_t)c] = sum[r][c] - (offset ? offset[r] : 0);                            \
    }

#define DOT_PLAIN(x) (x)

#endif
