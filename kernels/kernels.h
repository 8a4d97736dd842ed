/* kernels.h - the operations of the numerics specification (docs/numerics.md), as one table per instruction set.
 *
 * Every level is the same C source compiled for a wider machine; all give the same bits, so the choice is only speed.
 * Levels: baseline (the architecture's minimum), avx2 (x86-64-v3), avx512 (x86-64-v4), avx512vnni. Other architectures
 * have the baseline only. Tables are constant data; the operations are pure and may run on any thread, each with its own
 * scratch memory. They expect the default floating-point environment (kernels_float_enter). */
#ifndef ROOST_KERNELS_KERNELS_H
#define ROOST_KERNELS_KERNELS_H
#include <fenv.h>
#include "common/status.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/quantize.h"
#include "kernels/rope.h"

struct kernels {
    const char *isa;                    /* "baseline", "avx2", "avx512", "avx512vnni" */
    quantize_rows_fn *quantize_rows;
    quantize_static_rows_fn *quantize_static_rows;
    quantize_wide_rows_fn *quantize_wide_rows;
    rotate_rows_fn *rotate_rows;
    dequantize_row_fn *dequantize_row;
    all_finite_fn *all_finite;
    rmsnorm_rows_fn *rmsnorm_rows;
    rope_table_fn *rope_table;
    rope_rows_fn *rope_rows;
    activation_gate_fn *silu_gate;
    activation_gate_fn *gelu_tanh_gate;
    softcap_fn *softcap;
    gemm_int8_fn *gemm_int8;
    attention_fn *attention;
};

/* The fastest level this machine runs, or the one named by the environment variable ROOST_ISA. The level is run on a
 * known-answer vector first: one that answers wrongly is logged and the baseline taken; a baseline that answers wrongly is
 * STATUS_CORRUPT. STATUS_INVALID: ROOST_ISA names no level. STATUS_UNSUPPORTED: it names one this machine cannot run. */
enum status kernels_select(const struct kernels **out);

/* The same for a name; NULL or "": the fastest. */
enum status kernels_select_isa(const char *isa, const struct kernels **out);

/* The i-th level this machine runs, from the baseline up; NULL after the last. For tests and benchmarks. */
const struct kernels *kernels_at(unsigned index);

/* Runs the known-answer vector: STATUS_CORRUPT if the bits differ from the specification's. */
enum status kernels_check(const struct kernels *kernels);

/* Round to nearest, denormals kept, for the calling thread; leave restores what was there. */
void kernels_float_enter(fenv_t *saved);
void kernels_float_leave(const fenv_t *saved);

#endif
