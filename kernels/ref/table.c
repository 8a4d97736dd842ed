/* table.c - one level's table. */
#include "kernels/ref/levels.h"

#define KERNEL_TEXT_(isa) #isa
#define KERNEL_TEXT(isa) KERNEL_TEXT_(isa)

const struct kernels KERNEL(kernels) = {
    .isa = KERNEL_TEXT(KERNELS_ISA),
    .quantize_rows = KERNEL(quantize_rows),
    .quantize_static_rows = KERNEL(quantize_static_rows),
    .quantize_wide_rows = KERNEL(quantize_wide_rows),
    .rotate_rows = KERNEL(rotate_rows),
    .dequantize_row = KERNEL(dequantize_row),
    .all_finite = KERNEL(all_finite),
    .rmsnorm_rows = KERNEL(rmsnorm_rows),
    .rope_table = KERNEL(rope_table),
    .rope_rows = KERNEL(rope_rows),
    .silu_gate = KERNEL(silu_gate),
    .gelu_tanh_gate = KERNEL(gelu_tanh_gate),
    .softcap = KERNEL(softcap),
    .gemm_int8 = KERNEL(gemm_int8),
    .attention = KERNEL(attention),
};
