/* rope.h - rotary positions, half-split pairs (i, i + dim/2), with pinned angles (docs/numerics.md, section 5). */
#ifndef ROOST_KERNELS_ROPE_H
#define ROOST_KERNELS_ROPE_H
#include <stddef.h>
#include <stdint.h>

/* frequency[i] = base^(-2i/dim) for i < dim/2; base in (1, 1e12]. */
void rope_frequencies(double base, unsigned dim, double *frequency);

/* cosine, sine (count, pairs) of (start + row) * frequency[pair]; positions below 2^20. */
typedef void rope_table_fn(const double *frequency, size_t pairs, uint32_t start, size_t count, float *cosine, float *sine);

/* Rotates x (rows, heads, dim) in place; cosine, sine (rows, dim/2). */
typedef void rope_rows_fn(float *x, size_t rows, size_t heads, size_t dim, const float *cosine, const float *sine);

#endif
