/* levels.h - the functions and the table of the level being compiled (KERNELS_ISA); included by kernels/ref only. */
#ifndef ROOST_KERNELS_REF_LEVELS_H
#define ROOST_KERNELS_REF_LEVELS_H
#include "kernels/kernels.h"
#include "kernels/ref/inline.h"

extern const struct kernels KERNEL(kernels);

quantize_rows_fn KERNEL(quantize_rows);
quantize_static_rows_fn KERNEL(quantize_static_rows);
quantize_wide_rows_fn KERNEL(quantize_wide_rows);
rotate_rows_fn KERNEL(rotate_rows);
dequantize_row_fn KERNEL(dequantize_row);
all_finite_fn KERNEL(all_finite);
rmsnorm_rows_fn KERNEL(rmsnorm_rows);
rope_table_fn KERNEL(rope_table);
rope_rows_fn KERNEL(rope_rows);
activation_gate_fn KERNEL(silu_gate);
activation_gate_fn KERNEL(gelu_tanh_gate);
softcap_fn KERNEL(softcap);
gemm_int8_fn KERNEL(gemm_int8);
attention_fn KERNEL(attention);

#endif
