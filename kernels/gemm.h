/* gemm.h - int8 rows times int8 weights, exact in int32, to float32 (docs/numerics.md, section 3). */
#ifndef ROOST_KERNELS_GEMM_H
#define ROOST_KERNELS_GEMM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GEMM_DEPTH_MAX 65536u    /* the vector levels add 128 to one side inside: 65536 * 255 * 127 < 2^31 */
#define GEMM_ROWS_BLOCK 64u

struct gemm_int8 {
    const int8_t *a;             /* (rows, depth), in [-127, 127] */
    const float *a_scale;        /* (rows) */
    const int8_t *w;             /* (outputs, depth), in [-127, 127] */
    const float *w_scale;        /* (outputs) */
    size_t rows, outputs, depth;
    float *out;                  /* (rows, outputs) */
    bool accumulate;             /* out += instead of out = */
    void *scratch;               /* GEMM_SCRATCH_BYTES(depth), 64-byte aligned */
};

#define GEMM_SCRATCH_BYTES(depth) ((size_t)GEMM_ROWS_BLOCK * ((depth) * sizeof(int16_t) + sizeof(int32_t)))

/* out[r][o] = ((float)sum_k a[r][k] * w[o][k] * a_scale[r]) * w_scale[o], products grouped from the left */
typedef void gemm_int8_fn(const struct gemm_int8 *gemm);

#endif
