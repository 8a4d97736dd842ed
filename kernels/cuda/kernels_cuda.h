/* kernels_cuda.h - the operations of docs/numerics.md on an NVIDIA GPU: one launcher an operation, each in its own file
 * kernels/cuda/NAME.cu, named after the operation. Same bits as kernels/ref.
 *
 * All pointers are to device memory unless said otherwise; matrices are row-major. A launcher only puts work on `stream` and returns; it is
 * false if the launch was refused (cuda_launch_error() says why). Shapes are the caller's promise, asserted. Rows with a NaN or infinity are
 * reported by atomic minimum of the row's number into *bad_row (CUDA_NO_BAD_ROW before the first), their outputs are then not to be used.
 * The same sources compile for emulation (tests/cuda_emulation); kernels use kernels/cuda/device.h and nothing else of CUDA. */
#ifndef ROOST_KERNELS_CUDA_KERNELS_CUDA_H
#define ROOST_KERNELS_CUDA_KERNELS_CUDA_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of the host and of kernels. */
#ifdef __CUDACC__
#define CUDA_INLINE static inline __host__ __device__
#else
#define CUDA_INLINE static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *cuda_stream;      /* cudaStream_t */

#define CUDA_NO_BAD_ROW 0xffffffffu
#define CUDA_GEMM_ROWS_SMALL 64u              /* up to so many rows: gemm_small.cu, weights streamed once */
#define CUDA_ATTENTION_PAIRS 64u              /* (row, head) pairs of one tile of attention, at most */

const char *cuda_launch_error(void);          /* of the calling thread's last refused launch */

/* ---- rows in ---- embed.cu */

struct cuda_embed {                           /* x = (float(q[token]) * scale[token]) * factor */
    const uint32_t *tokens;                   /* (rows) */
    const int8_t *weight;                     /* (vocab, columns) */
    const float *scale;                       /* (vocab) */
    float factor;
    uint32_t rows, columns;
    float *out;                               /* (rows, columns) */
};
bool cuda_embed_rows(const struct cuda_embed *job, cuda_stream stream);

struct cuda_per_layer {                       /* numerics, section 8, "with per-layer inputs": f (rows, layers, width) in place */
    float *f;                                 /* the projection in, the inputs of all layers out */
    const int8_t *looked_up;                  /* (rows, layers, width): the tokens' embedding rows, gathered by the host */
    const float *looked_up_scale;             /* (rows, layers) */
    const float *norm_weight;                 /* (width) */
    float epsilon, factor_in, factor_embed, factor_sum;      /* r_c, r_p, r_2 */
    uint32_t rows, layers, width;
    uint32_t *bad_row;
};
bool cuda_per_layer_rows(const struct cuda_per_layer *job, cuda_stream stream);

/* out[i] = in[index[i]], rows of `columns` 4-byte words: the rows whose logits are wanted move up. in and out do not overlap. gather.cu */
bool cuda_gather_rows(const uint32_t *in, const uint32_t *index, uint32_t rows, uint32_t columns, uint32_t *out, cuda_stream stream);

/* ---- ranks ---- join.cu */

#define CUDA_SLICE_STEP 16u                   /* a rank's outputs begin at multiples of this */

/* Of `outputs` that are cut among `ranks`: the first of `rank`; of rank `ranks` the end. */
CUDA_INLINE uint32_t cuda_slice_first(uint32_t rank, uint32_t ranks, uint32_t outputs)
{
    return rank == ranks ? outputs : (uint32_t)((uint64_t)outputs * rank / ranks / CUDA_SLICE_STEP * CUDA_SLICE_STEP);
}

struct cuda_join {
    const float *parts;                       /* rank 0's (rows, slice), rank 1's (rows, slice), .. */
    uint32_t rows, outputs, ranks;
    bool accumulate;                          /* out += */
    float *out;                               /* (rows, outputs) */
};
bool cuda_join_rows(const struct cuda_join *job, cuda_stream stream);

/* ---- norm and integers ---- norm.cu, quantize.cu */

enum cuda_scheme { CUDA_SCHEME_DYNAMIC, CUDA_SCHEME_STATIC, CUDA_SCHEME_ROTATED, CUDA_SCHEME_WIDE };   /* as enum model_scheme */

struct cuda_rows_int8 {                       /* rows as integers, by one scheme */
    enum cuda_scheme scheme;
    float input_scale;                        /* static */
    int8_t *q;                                /* (rows, columns); wide: the high halves */
    int8_t *q_low;                            /* wide: the low halves; else NULL */
    float *scale;                             /* (rows) */
};

struct cuda_norm {                            /* RMSNorm of rows; then, if wanted, residual, scalar and integers in one pass */
    const float *x;                           /* (rows, columns) */
    const float *weight;                      /* (columns); NULL: none */
    float epsilon;
    uint32_t rows, columns;
    float *out;                               /* the normed rows; NULL: not wanted. May be x */
    float *residual;                          /* NULL, or: residual = (residual + normed) * residual_scalar (product left out where it is 1) */
    float residual_scalar;
    const struct cuda_rows_int8 *into;        /* (into_count): the normed rows as integers, one a scheme. Host memory */
    uint32_t into_count;                      /* 0 .. 4 */
    uint32_t *bad_row;
};
bool cuda_norm_rows(const struct cuda_norm *job, cuda_stream stream);

/* x (rows, columns) as integers. row_max: (rows) absmax as bits, if the producer's epilogue took it, else NULL; not used by the rotated
 * scheme. Columns of rotated rows are a multiple of 128. */
struct cuda_quantize {
    const float *x;
    const uint32_t *row_max;
    uint32_t rows, columns;
    struct cuda_rows_int8 into;
    uint32_t *bad_row;
};
bool cuda_quantize_rows(const struct cuda_quantize *job, cuda_stream stream);

/* gate[i] = activation(gate[i]) * up[i], gate's rows gate_stride and up's rows up_stride apart; then the rows as integers. gate.cu */
enum cuda_activation { CUDA_ACTIVATION_SILU, CUDA_ACTIVATION_GELU_TANH };
struct cuda_gate {
    const float *gate, *up;
    uint32_t gate_stride, up_stride;
    enum cuda_activation activation;
    uint32_t rows, columns;
    float *out;                               /* (rows, columns); NULL: only the integers are wanted. May be gate with gate_stride == columns */
    struct cuda_rows_int8 into;               /* q NULL: no integers */
    uint32_t *bad_row;
};
bool cuda_gate_rows(const struct cuda_gate *job, cuda_stream stream);

/* ---- matrices ---- gemm.c, gemm_small.cu, gemm_large.cu, gemm_tiles.cu */

/* Weights are tiled once, at load: (outputs, depth) int8 to the order the kernels read, both dimensions padded with zeros.
 * gemm_tiles.h in this folder says the order. */
size_t cuda_gemm_tiled_bytes(uint32_t outputs, uint32_t depth);
bool cuda_gemm_tile(const int8_t *weight, uint32_t outputs, uint32_t depth, int8_t *tiled, cuda_stream stream);

struct cuda_gemm {                            /* numerics, section 3: (float(acc) * a_scale) * w_scale */
    const int8_t *a, *a_low;                  /* (rows, depth), 16-byte aligned rows; a_low: wide rows, else NULL */
    const float *a_scale;                     /* (rows) */
    const int8_t *w_tiled;                    /* of cuda_gemm_tile */
    const float *w_scale;                     /* (outputs) */
    uint32_t rows, outputs, depth;            /* depth a multiple of 16 */
    float *out;                               /* (rows, outputs), rows out_stride apart; NULL with raw */
    uint32_t out_stride;
    const float *bias;                        /* (outputs); NULL: none. Added last */
    bool accumulate;                          /* out += (the residual) */
    float logit_cap;                          /* > 0: soft cap */
    uint32_t *row_max;                        /* NULL, or (rows), zeroed by the caller: the maximum of |out| as bits */
    uint32_t *bad_row;                        /* NULL, or checked for NaN and infinity (before the soft cap) */
    int32_t *raw;                             /* instead of all that: the int32 sums (rows, outputs); of wide rows refused. For tensor parallelism */
    uint32_t *scratch;                        /* NULL, or CUDA_GEMM_SCRATCH_BYTES, 16-byte aligned, for one stream: few outputs then split over */
};                                            /* their depth too. Zeroed once; each launch leaves zeros */
#define CUDA_GEMM_SCRATCH_BYTES ((size_t)4 << 20)
bool cuda_gemm_int8(const struct cuda_gemm *job, cuda_stream stream);         /* chooses by rows */
bool cuda_gemm_small(const struct cuda_gemm *job, cuda_stream stream);        /* rows <= CUDA_GEMM_ROWS_SMALL */
bool cuda_gemm_large(const struct cuda_gemm *job, cuda_stream stream);

/* ---- positions and KV ---- rope.cu, qkv.cu, page.cu, page_load.cu */

/* cosine, sine (rows, pairs) of position[row] * frequency[pair], in double inside. */
bool cuda_rope_table(const double *frequency, uint32_t pairs, const uint32_t *position, uint32_t rows, float *cosine, float *sine, cuda_stream stream);

struct cuda_page_layout {                     /* of one group, as backend.h: a slot is K plane, V plane, K scales, V scales */
    uint32_t kv_heads, dim;
    size_t slot_bytes;                        /* one producing layer's part of a page */
    uint32_t slots;
};

struct cuda_kv {                              /* K or V of new rows: norm, rotation (K), dynamic row, into their pages */
    const float *x;                           /* (rows, kv_heads, dim), rows x_stride apart */
    uint32_t x_stride, rows;
    bool value;                               /* V: no rotation, stored transposed */
    bool norm;                                /* weight NULL: norm without weight */
    const float *weight;                      /* (dim) */
    float epsilon;
    const float *cosine, *sine;               /* (rows, dim / 2) */
    struct cuda_page_layout layout;
    uint32_t slot;
    void *const *row_page;                    /* (rows): the page of this group that the row is written to */
    const uint32_t *position;                 /* (rows) */
    uint32_t *bad_row;
};
bool cuda_kv_rows(const struct cuda_kv *job, cuda_stream stream);

struct cuda_q {                               /* Q: norm, rotation, dynamic row a head */
    const float *x;                           /* (rows, heads, dim), rows x_stride apart */
    uint32_t x_stride, rows, heads, dim;
    const float *weight;                      /* (dim); NULL: no norm */
    float epsilon;
    const float *cosine, *sine;               /* (rows, dim / 2) */
    int8_t *q;                                /* (rows, heads, dim) */
    float *q_scale;                           /* (rows, heads) */
    uint32_t *bad_row;
};
bool cuda_q_rows(const struct cuda_q *job, cuda_stream stream);

/* backend_ops.page_copy_prefix: the first `tokens` positions of src, the rest of dst zeroed. */
bool cuda_page_copy_prefix(const struct cuda_page_layout *layout, void *dst, const void *src, uint32_t tokens, cuda_stream stream);

/* One producing layer's part of many pages, by a kernel that reads over the bus where src is pinned memory: as fast as one copy of all of
 * them, where a copy a page and layer would take longer to start than to run (docs/decisions/0006-cuda-backend.md). page_load.cu */
struct cuda_page_copy {
    void *dst;
    const void *src;                          /* device or pinned memory */
    uint32_t tokens;                          /* positions that are copied, zeros behind them; 64: all */
};
bool cuda_page_load_slot(const struct cuda_page_layout *layout, uint32_t slot, const struct cuda_page_copy *copies, uint32_t count, cuda_stream stream);

/* ---- attention ---- attention_plan.c (host), attention_decode.cu, attention_prefill.cu, attention_merge.cu */

/* One plan a step and geometry, reused by all layers of it (task map). A *task* is one tile of at most CUDA_ATTENTION_PAIRS (row, head) pairs
 * of one span and KV head, over the blocks of whole units (1,024 positions), so that partials are units and merge in unit order. Windows are
 * ranges of blocks, never masks alone; the only task of its pairs may span units between sinks and window, which it does not visit. Tasks are sorted so that the heaviest start first. */
struct cuda_attention_span {                  /* rows of one run, in order */
    uint32_t row, count;                      /* rows of q */
    uint32_t start;                           /* absolute position of the first */
    uint32_t page_first;                      /* of the table of pages */
};
struct cuda_attention_geometry {
    uint32_t heads, kv_heads, dim;            /* dim up to 512; of any other than 64, 128, 256 and 512 the next one's work is done */
    uint32_t window, sinks;                   /* window 0: all before */
};
struct cuda_attention_task {                  /* 32 bytes */
    uint32_t span, row, rows;                 /* rows [row, row + rows) of the span; rows 0: nothing to do (of merges too), so a graph has places left */
    uint32_t head, heads;                     /* query heads of one KV head */
    uint32_t unit, units;                     /* units [unit, unit + units), at least one of whose blocks a row sees */
    uint32_t partial;                         /* index of its first partial (one a unit), or UINT32_MAX: it is the only task of its pairs and writes out */
};
struct cuda_attention_merge {                 /* pairs whose tasks are several: partials [partial, partial + units), in unit order */
    uint32_t span, row, rows, head, heads, partial, units;
};
struct cuda_attention_plan {                  /* host memory */
    struct cuda_attention_task *tasks;        /* (task_count) owned by the plan */
    uint32_t task_count, task_capacity;
    uint32_t large_count;                     /* the first so many tasks have more than 16 pairs: another kernel's. Each part is sorted */
    uint32_t partial_count;                   /* units in all: sizes the partials */
    struct cuda_attention_merge *merges;
    uint32_t merge_count, merge_capacity;
    uint32_t pairs_max;                       /* of any task: the stride of a partial */
};
/* workers: how many blocks of threads the device runs at a time; long spans are split so that about 2 tasks a worker exist. Pure; false: no memory.
 * How it splits changes no bit. */
bool cuda_attention_plan_make(const struct cuda_attention_span *spans, uint32_t span_count, const struct cuda_attention_geometry *geometry,
                              uint32_t workers, struct cuda_attention_plan *plan);
void cuda_attention_plan_free(struct cuda_attention_plan *plan);              /* copes with a zeroed one */
size_t cuda_attention_partial_bytes(const struct cuda_attention_plan *plan, const struct cuda_attention_geometry *geometry);

struct cuda_attention {
    const int8_t *q;                          /* (rows, heads, dim), 16-byte aligned, as pages are */
    const float *q_scale;                     /* (rows, heads) */
    struct cuda_attention_geometry geometry;
    struct cuda_page_layout layout;
    uint32_t slot;                            /* the producing layer's */
    float score_scale;
    const struct cuda_attention_span *spans;  /* device copies of the plan's input and output */
    const struct cuda_attention_task *tasks;
    const struct cuda_attention_merge *merges;
    uint32_t task_count, large_count, merge_count, pairs_max;      /* as in the plan */
    const void *const *pages;                 /* table: page b of a span is pages[page_first + b] */
    void *partials;                           /* cuda_attention_partial_bytes */
    float *out;                               /* (rows, heads, dim) */
};
bool cuda_attention_run(const struct cuda_attention *job, cuda_stream stream);

/* ---- sampling ---- sample.cu */

/* docs/numerics.md, section 9, for rows without penalties and bias: step 1 with one mask for all rows, steps 4 to 6. */
struct cuda_sample_options {                  /* device memory, one a row */
    float temperature, top_p, min_p;
    uint32_t top_k;
    uint64_t seed;
    uint32_t choice, position;
};
struct cuda_sample {
    const float *logits;                      /* (rows, vocab) */
    const struct cuda_sample_options *options;
    const uint32_t *masked;                   /* (vocab / 32 words, rounded up) bit id % 32 of word id / 32: never drawn, whatever its logit is; not all.
                                                 NULL: none */
    uint32_t rows, vocab;                     /* vocab at most 2^20: sums of weights, each at most 2^32, stay below 2^53 */
    uint32_t *token;                          /* (rows) */
    uint32_t *bad_row;
};
bool cuda_sample_rows(const struct cuda_sample *job, cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
