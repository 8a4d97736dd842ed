/* norm.h - RMSNorm with the pinned sum (docs/numerics.md, section 4). */
#ifndef ROOST_KERNELS_NORM_H
#define ROOST_KERNELS_NORM_H
#include <stdbool.h>
#include <stddef.h>

struct rmsnorm {
    const float *x;         /* (rows, columns) */
    const float *weight;    /* (columns); NULL: all ones (no product) */
    float epsilon;
    size_t rows, columns;
    float *out;             /* (rows, columns); may be x */
};

/* False if a row's mean square is not finite. */
typedef bool rmsnorm_rows_fn(const struct rmsnorm *norm);

#endif
