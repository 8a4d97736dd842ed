/* attention.h - causal attention over pages of quantised K and V (docs/numerics.md, section 7).
 *
 * A query row sees itself and what lies before it, on local layers the last `window` positions and the sinks. Its result depends on
 * those keys and on nothing else: not on the other rows, the chunk, or bytes of a page beyond the row. So callers may split a job by
 * rows (q, q_scale, start and out moved) or by heads (head_first, head_count), each part with its own scratch memory. */
#ifndef ROOST_KERNELS_ATTENTION_H
#define ROOST_KERNELS_ATTENTION_H
#include <stddef.h>
#include <stdint.h>

#define ATTENTION_BLOCK 64u            /* tokens of a block, which is a page */
#define ATTENTION_UNIT_BLOCKS 16u      /* blocks of a unit: 1,024 tokens */
#define ATTENTION_PAIRS 32u            /* (row, head) pairs worked on at a time, or one row's heads if those are more */

struct attention {
    const int8_t *q;                   /* (rows, heads, dim) */
    const float *q_scale;              /* (rows, heads) */
    size_t rows, heads, kv_heads, dim; /* heads is a multiple of kv_heads; head h reads KV head h / (heads / kv_heads) */
    size_t head_first, head_count;     /* only these heads are computed, the others' out is left alone; head_count 0: all */
    uint32_t start;                    /* absolute position of row 0 */
    uint32_t window;                   /* 0: sees everything before it */
    uint32_t sinks;                    /* with a window: the first `sinks` positions are visible too (up to the row itself) */
    float score_scale;                 /* attention scale times log2(e), rounded to float32 */
    void *const *pages;                /* page b holds positions [64b, 64b + 64); those that no row sees may be NULL */
    size_t k_offset;                   /* in a page: int8 (kv_heads, 64, dim) */
    size_t v_offset;                   /* int8 (kv_heads, dim, 64): transposed */
    size_t k_scale_offset;             /* float32 (kv_heads, 64) */
    size_t v_scale_offset;             /* float32 (kv_heads, 64) */
    float *out;                        /* (rows, heads, dim) */
    void *scratch;                     /* attention_scratch_bytes, 64-byte aligned */
};

/* Enough for any slice of rows and heads. */
size_t attention_scratch_bytes(size_t heads, size_t kv_heads, size_t dim);

typedef void attention_fn(const struct attention *attention);

#endif
