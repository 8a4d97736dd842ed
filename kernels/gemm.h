/* gemm.h - int8 or int16 rows times int8 weights, exact in integers, to float32 (docs/numerics.md, section 3).
 * Callers may split the outputs over threads, each with its own scratch memory: w, w_scale and out moved to the first output of a
 * slice, out_stride the whole width. The results do not depend on it. */
#ifndef ROOST_KERNELS_GEMM_H
#define ROOST_KERNELS_GEMM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GEMM_DEPTH_MAX 65536u    /* the vector levels add 128 to one side inside: 65536 * 255 * 128 < 2^31 */
#define GEMM_ROWS_BLOCK 64u

struct gemm_int8 {
    const int8_t *a;             /* (rows, depth), in [-127, 127]; of a wide row the high halves */
    const int8_t *a_low;         /* (rows, depth) low halves of wide rows, in [-128, 127]: the row is 256 * a + a_low; NULL: not wide */
    const float *a_scale;        /* (rows) */
    const int8_t *w;             /* (outputs, depth), in [-127, 127] */
    const float *w_scale;        /* (outputs) */
    size_t rows, outputs, depth;
    float *out;                  /* (rows, outputs), rows out_stride apart */
    size_t out_stride;           /* floats between rows of out; 0: outputs */
    bool accumulate;             /* out += instead of out = */
    void *scratch;               /* GEMM_SCRATCH_BYTES(depth), 64-byte aligned */
};

#define GEMM_SCRATCH_BYTES(depth) ((size_t)GEMM_ROWS_BLOCK * ((depth) * sizeof(int16_t) + sizeof(int32_t)))

/* out[r][o] = ((float)sum_k row[r][k] * w[o][k] * a_scale[r]) * w_scale[o], products grouped from the left; the sum of a wide row is
 * 256 * (sum of a) + (sum of a_low), both exact in int32, joined exactly and rounded to float once. */
typedef void gemm_int8_fn(const struct gemm_int8 *gemm);

#endif
