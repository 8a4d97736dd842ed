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

/* out[i] = (float)q[i] * scale */
typedef void dequantize_row_fn(const int8_t *q, float scale, size_t columns, float *out);

typedef bool all_finite_fn(const float *x, size_t count);

#endif
