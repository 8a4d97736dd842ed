/* train_kernels.h - the operations of docs/numerics.md on whole sequences, for the trainer: a shared library, so that the forward pass
 * that a model is trained with is the one that the engine serves. worker/train/kernels.py calls it.
 *
 * Thin: every number comes from kernels/. All memory is the caller's, rows are contiguous, nothing is kept between calls. Calls are
 * pure and may run on any thread at the same time, after train_kernels_open. Functions that return bool give false where a NaN or
 * infinity was met (or, attention, where memory is missing); their outputs are then not to be used. */
#ifndef ROOST_WORKER_TRAIN_KERNELS_H
#define ROOST_WORKER_TRAIN_KERNELS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The instruction-set level in use (ROOST_ISA chooses), or NULL: none works, standard error says why. Call it first, once. */
const char *train_kernels_open(void);

/* x (rows, columns) -> q (rows, columns), scale (rows): dynamic rows. */
bool train_quantize_rows(const float *x, size_t rows, size_t columns, int8_t *q, float *scale);

/* out (rows, columns) = float(q) * scale */
void train_dequantize_rows(const int8_t *q, const float *scale, size_t rows, size_t columns, float *out);

/* weight (columns), or NULL: all ones; out may be x. */
bool train_rmsnorm(const float *x, const float *weight, float epsilon, size_t rows, size_t columns, float *out);

/* out (rows, outputs) = q (rows, depth) times w (outputs, depth), scaled. False: memory is missing. */
bool train_linear(const int8_t *q, const float *q_scale, const int8_t *w, const float *w_scale, size_t rows, size_t outputs,
                  size_t depth, float *out);

/* cosine, sine (count, dim / 2) of positions 0 .. count - 1; base in (1, 1e12], dim at most TRAIN_DIM_MAX. */
#define TRAIN_DIM_MAX 512u
void train_rope_table(double base, size_t dim, size_t count, float *cosine, float *sine);

/* Rotates x (rows, heads, dim) in place. */
void train_rope_rows(float *x, size_t rows, size_t heads, size_t dim, const float *cosine, const float *sine);

/* gate[i] = silu(gate[i]) * up[i] */
void train_silu_gate(float *gate, const float *up, size_t count);

/* Causal attention of one sequence over its own keys, all positions at once. */
struct train_attention {
    const int8_t *q;              /* (length, heads, dim) */
    const float *q_scale;         /* (length, heads) */
    const int8_t *k, *v;          /* (length, kv_heads, dim) */
    const float *k_scale, *v_scale;    /* (length, kv_heads) */
    size_t length, heads, kv_heads, dim;
    size_t window;                /* 0: sees everything before it */
    double attention_scale;       /* as in config.json */
    float *out;                   /* (length, heads, dim) */
};
bool train_attention(const struct train_attention *attention);

#endif
