/* backend_cpu_internal.h - the CPU backend's own state, shared by its files:
 *   backend_cpu.c          life, scratch memory, entry
 *   backend_cpu_layers.c   the order of docs/numerics.md, section 8
 *   backend_cpu_linear.c   work over rows, input rows as integers, matrices
 *   backend_cpu_kv.c       pages: layout, storing, attention, prefixes
 *   backend_cpu_ranks.c    one of several ranks: slices of matrices, rows of the own conversations, and what is told to the others
 * Everything runs on the caller's thread and the pool's; between two operations all of them have stopped. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_CPU_INTERNAL_H
#define ROOST_WORKER_ENGINE_BACKEND_CPU_INTERNAL_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "kernels/kernels.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_batch.h"
#include "worker/engine/backend/thread_pool.h"
#include "worker/engine/model/model.h"

struct copy_queue;
struct cpu_ranks;                  /* backend_cpu_ranks.c */

#define CPU_HEAD_SLICE 256u        /* outputs of the head that one thread computes at a time */
#define CPU_ATTENTION_ROWS 32u     /* rows of one piece of attention */

struct cpu_group {                 /* by layer type; of a page, one producing layer's part is a slot */
    size_t plane_bytes;            /* K or V */
    size_t scale_bytes;            /* of K or of V */
    size_t slot_bytes;             /* K plane, V plane, K scales, V scales */
    double *frequency;             /* (head_dim / 2) */
    float *cosine, *sine;          /* (rows, head_dim / 2) */
};

struct cpu_input {                 /* the current input rows as integers, by one scheme */
    bool ready;
    float static_scale;            /* scheme static: what it was made with */
    int8_t *a, *a_low;             /* (rows, columns); a_low: scheme wide */
    float *scale;                  /* (rows) */
};

struct cpu_scratch {               /* of one thread */
    void *gemm, *attention;
    float *row;                    /* (widest) */
    float *head;                   /* (rows, CPU_HEAD_SLICE) */
    int8_t *kv;                    /* (widest K or V row) */
    float *kv_scale;               /* (KV heads) */
};

struct cpu_piece {                 /* of attention: rows of one span */
    uint32_t span, first, count;   /* rows [first, first + count) of the span */
};

struct backend {
    const struct model *model;     /* ref, owned by the caller */
    const struct kernels *kernels;
    struct backend_config config;
    struct thread_pool *pool;      /* owned */
    struct copy_queue *copies;     /* owned */
    struct cpu_group groups[MODEL_LAYER_TYPES];
    size_t widest;                 /* row that any matrix reads */
    struct batch_constants constants;

    void *memory;                  /* owned: all of the following */
    float *x, *h;                  /* (rows, hidden) */
    float *q, *attended;           /* (rows, heads, head_dim) */
    float *kv;                     /* (rows, kv_heads, head_dim) */
    float *gate, *up;              /* (rows, intermediate) */
    float *per_layer;              /* (rows, layers, per_layer_input) */
    int8_t *q_int8;                /* as q */
    float *q_scale;                /* (rows, heads) */
    struct cpu_input inputs[MODEL_SCHEMES];
    const float *input;            /* what they are made of */
    size_t input_columns;
    struct cpu_scratch *scratch;   /* (threads) */
    uint32_t *tokens;              /* (rows) */
    struct batch_span *spans;      /* the batch at work */
    struct cpu_piece *pieces;      /* its attention */
    uint32_t span_count, rows, piece_count;

    struct cpu_ranks *ranks;       /* owned; NULL: alone */
    atomic_uint bad_row;           /* the first that met a NaN or infinity; UINT32_MAX: none */
    uint32_t failed_run;
};

/* ---- backend_cpu.c ---- */

enum status cpu_compute(struct backend *self, const struct backend_batch *batch, uint32_t *failed_run);    /* a checked batch */

/* ---- backend_cpu_linear.c ---- */

/* One row's work; false: a NaN or infinity. */
typedef bool cpu_row_fn(struct backend *self, const void *job, uint32_t row, uint32_t thread);
/* Whether so many int8 products are worth a fork. */
bool cpu_splits(const struct backend *self, uint64_t products);
/* work for every index below count, on all threads where the products of all of them are worth it. */
void cpu_share(struct backend *self, uint64_t products, uint32_t count, thread_pool_fn *work, void *context);
struct cpu_range { uint32_t first, count; };   /* of rows */
void cpu_work_rows(struct backend *self, struct cpu_range range, cpu_row_fn *work, const void *job, size_t cost);
/* work for every row, split over the threads if rows times cost (in elements) is worth it. STATUS_CORRUPT names what and layer. */
enum status cpu_each_row(struct backend *self, cpu_row_fn *work, const void *job, size_t cost, const char *what, uint32_t layer);
void cpu_note_bad_row(struct backend *self, uint32_t row);
enum status cpu_check_rows(struct backend *self, const char *what, uint32_t layer);

/* The rows that the next matrices read; they are made integers once per scheme, when a matrix asks. */
void cpu_set_input(struct backend *self, const float *input, size_t columns);
/* out (rows, matrix outputs) = or += the matrix times the input rows. */
enum status cpu_project(struct backend *self, const struct model_matrix *matrix, bool accumulate, float *out, const char *what,
                        uint32_t layer);
/* The output head into the runs' logits. */
enum status cpu_project_logits(struct backend *self);
enum status cpu_prepare_input(struct backend *self, const struct model_matrix *matrix, const char *what, uint32_t layer);
struct cpu_block {                 /* of a matrix product: rows of the input and outputs of the matrix */
    uint32_t row_first, row_count;
    size_t first, count;
    bool accumulate;
    float *out;                    /* (row_count, count) of it, out_stride apart */
    size_t out_stride;
};
void cpu_multiply(struct backend *self, const struct model_matrix *matrix, const struct cpu_block *block);   /* shared by the threads */

/* ---- backend_cpu_ranks.c; alone each is what its name says without "own", "home" or "slice" ---- */

/* Rows whose conversations live here. */
struct cpu_range cpu_own_rows(const struct backend *self);
bool cpu_is_own(const struct backend *self, uint32_t run_index);
/* work for every own row. A bad row is told to the others at the end of the pass. */
enum status cpu_each_own_row(struct backend *self, cpu_row_fn *work, const void *job, size_t cost, const char *what, uint32_t layer);
/* Whole outputs of the own rows: K and V. */
enum status cpu_project_own(struct backend *self, const struct model_matrix *matrix, float *out, const char *what, uint32_t layer);
/* Every rank its outputs of all rows; each rank gets whole outputs of its own rows: Q. */
enum status cpu_project_home(struct backend *self, const struct model_matrix *matrix, float *out, const char *what, uint32_t layer);
/* cpu_project, and the logits, with several ranks. */
enum status cpu_ranks_project(struct backend *self, const struct model_matrix *matrix, bool accumulate, float *out, const char *what,
                              uint32_t layer);
enum status cpu_ranks_logits(struct backend *self);
/* gate = activation(gate_proj) * up_proj: every rank its outputs, told once they are multiplied. */
typedef void cpu_gate_fn(const struct backend *self, float *gate, const float *up, size_t count);
enum status cpu_ranks_gate(struct backend *self, const struct model_layer *layer, cpu_gate_fn *gate, uint32_t index);
/* The rows of self->attended from the ranks that own them. */
enum status cpu_gather_attended(struct backend *self, size_t width);
void cpu_ranks_destroy(struct cpu_ranks **ranks);            /* accepts NULL */

/* ---- backend_cpu_kv.c ---- */

void cpu_group_layout(struct cpu_group *group, const struct model_attention *attention);
size_t cpu_page_bytes(const struct backend *self, uint32_t group);
void cpu_page_copy_prefix(struct backend *self, uint32_t group, void *dst, const void *src, uint32_t tokens);
/* Dynamic int8 of the row's K or V (kv_heads, head_dim) into its page. */
bool cpu_store_kv(struct backend *self, uint32_t layer, bool value, uint32_t row, uint32_t thread);
void cpu_plan_attention(struct backend *self);
/* q_int8, q_scale -> attended. */
void cpu_attend(struct backend *self, uint32_t layer);

/* ---- backend_cpu_layers.c ---- */

/* tokens: (rows), those of all runs. */
enum status cpu_run_layers(struct backend *self, const uint32_t *tokens);

#endif
