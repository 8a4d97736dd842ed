/* rows.h - weights of one output row to int8 (docs/numerics.md, section 12). Pure functions; any thread. */
#ifndef ROOST_WORKER_CONVERT_ROWS_H
#define ROOST_WORKER_CONVERT_ROWS_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

/* Blocks of QUANTIZE_ROTATE_BLOCK columns of w times diag(sign) and the Hadamard matrix over 128: the row whose product with a rotated
 * input is that of the row before with the input before. In double, rounded once. columns: a multiple of the block. */
void rows_rotate(float *row, uint32_t columns);

/* q = rint(row / scale) in [-127, 127], scale = absmax / 127; a row of zeros, or of numbers too small to have a scale, has scale 0 and q
 * 0. False: a NaN or infinity. */
bool rows_quantize(const float *row, uint32_t columns, int8_t *q, float *scale);

#endif
