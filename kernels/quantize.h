/* quantize.h - between float32 and int8 (docs/numerics.md, section 3). */
#ifndef ROOST_KERNELS_QUANTIZE_H
#define ROOST_KERNELS_QUANTIZE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows whose absolute maximum is below this become zeros with scale 1. */
#define QUANTIZE_ABSMAX_MIN 0x1p-100f

/* x (rows, columns) -> q (rows, columns) in [-127, 127], scale (rows). False if a NaN or infinity was met; the outputs
 * are then not to be used. */
typedef bool quantize_rows_fn(const float *x, size_t rows, size_t columns, int8_t *q, float *scale);

/* The static scheme: q = clamp(rint(x * inverse_scale), -127, 127); inverse_scale is finite. False as above. */
typedef bool quantize_static_rows_fn(const float *x, size_t rows, size_t columns, float inverse_scale, int8_t *q);

/* The wide scheme: int16 rows, rint(x * (32512 / absmax)), as high and low halves (256 * high + low, high in [-127, 127], low in
 * [-128, 127]); scale = absmax / 32512. Small rows and false as above. */
#define QUANTIZE_WIDE_MAX 32512.0f      /* 127 * 256 */
typedef bool quantize_wide_rows_fn(const float *x, size_t rows, size_t columns, int8_t *high, int8_t *low, float *scale);

/* The rotated scheme, before quantising: each block of QUANTIZE_ROTATE_BLOCK columns is multiplied by the fixed signs and goes
 * through the Hadamard butterfly (distances 1, 2, 4 .. 64), unnormalised; the weights carry the 1/128. columns is a multiple of
 * QUANTIZE_ROTATE_BLOCK. out may be x. */
#define QUANTIZE_ROTATE_BLOCK 128u
typedef void rotate_rows_fn(const float *x, size_t rows, size_t columns, float *out);
/* The signs, for roost-convert: +1 or -1 of column i within its block; the first 128 binary places of pi, 1 for -1. */
float quantize_rotate_sign(unsigned i);

/* out[i] = (float)q[i] * scale */
typedef void dequantize_row_fn(const int8_t *q, float scale, size_t columns, float *out);

typedef bool all_finite_fn(const float *x, size_t count);

#endif
