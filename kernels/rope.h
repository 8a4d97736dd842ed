/* rope.h - rotary positions, half-split pairs (i, i + dim/2), with pinned angles (docs/numerics.md, section 5). */
#ifndef ROOST_KERNELS_ROPE_H
#define ROOST_KERNELS_ROPE_H
#include <stddef.h>
#include <stdint.h>

struct rope {
    double base;         /* (1, 1e12] */
    double scale;        /* positions are divided by it: frequency[i] / scale; >= 1 */
    unsigned dim;
    unsigned pairs;      /* the first `pairs` of dim/2 turn; the others have frequency 0 and stay exactly as they are */
};

/* frequency (dim/2): base^(-2i/dim) / scale for i < pairs, else 0. */
void rope_frequencies(const struct rope *rope, double *frequency);

/* cosine, sine (count, pairs) of (start + row) * frequency[pair]; positions below 2^20. */
typedef void rope_table_fn(const double *frequency, size_t pairs, uint32_t start, size_t count, float *cosine, float *sine);

/* Rotates x (rows, heads, dim) in place; cosine, sine (rows, dim/2). A pair whose sine is 0 keeps its bits. */
typedef void rope_rows_fn(float *x, size_t rows, size_t heads, size_t dim, const float *cosine, const float *sine);

#endif
