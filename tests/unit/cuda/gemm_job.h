/* gemm_job.h - a matrix product in host memory, what kernels/ref says of it, and the same on the device, compared bit for bit. */
#ifndef ROOST_TESTS_CUDA_GEMM_JOB_H
#define ROOST_TESTS_CUDA_GEMM_JOB_H
#include <stdbool.h>
#include "kernels/cuda/gemm_tiles.h"
#include "on_device.h"
#include "tests/unit/kernels/reference.h"

enum gemm_option {                   /* what a case asks for, or-ed */
    GEMM_WIDE = 1, GEMM_ACCUMULATE = 2, GEMM_BIAS = 4, GEMM_CAP = 8, GEMM_ROW_MAX = 16, GEMM_BAD_ROW = 32, GEMM_RAW = 64, GEMM_STRIDE = 128,
    GEMM_ODD_STRIDE = 256, GEMM_UNALIGNED = 512              /* out is 4 bytes behind an aligned address */
};

struct gemm_case {
    uint32_t rows, outputs, depth, stride, shift;            /* shift: floats before out */
    unsigned options;
    int8_t *a, *a_low, *w;
    float *a_scale, *w_scale, *bias, *out;                   /* out: (shift + (rows - 1) * stride + outputs), what is there before */
    float logit_cap;
    /* what it has to be */
    float *expected;
    uint32_t *row_max, bad_row;
    int32_t *raw;
    /* on the device */
    struct cuda_gemm job;
};

struct gemm_case *gemm_case_new(struct random *random, uint32_t rows, uint32_t outputs, uint32_t depth, unsigned options);
void gemm_case_expect(struct gemm_case *c);                  /* anew, after a change of the inputs */
void gemm_case_drop(struct gemm_case *c);

/* Puts the inputs on the device and zeroed outputs beside them, runs, and compares. */
typedef bool gemm_run_fn(const struct cuda_gemm *job, const void *how);
void gemm_case_check(struct gemm_case *c, gemm_run_fn *run, const void *how, const char *what);

/* Through the ways of cutting the work: the large cuts, the small ones that fit with 1, 2, 3 and 7 splits, and the chosen one. */
void gemm_case_check_all(struct gemm_case *c);
void gemm_case_check_small(struct gemm_case *c);
void gemm_case_check_large(struct gemm_case *c);

#endif
