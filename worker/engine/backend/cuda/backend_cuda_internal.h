/* backend_cuda_internal.h - the CUDA backend's own state, shared by its files:
 *   backend_cuda.c          the device, life, arenas, the table
 *   backend_cuda_copies.c   pages between the tiers, and steps that begin before they have landed
 *   backend_cuda_memory.c   memory of the device and pinned memory, errors as words
 *   backend_cuda_linear.c   matrices: tiled at create, multiplied
 *   backend_cuda_step.c     what a batch is, for kernels: tokens, positions, tables of pages, tasks of attention; copied in one go
 *   backend_cuda_layers.c   the order of docs/numerics.md, section 8
 *   backend_cuda_graph.c    steps that look alike as CUDA graphs
 *   backend_cuda_ranks.c    one of several ranks: slices of matrices, rows of the own conversations, and what is told to the others
 * Everything runs on the caller's thread; copies may have a thread of their own (a follower's). Functions that put work on the stream return
 * false once the device refuses; lost says so, and why the words. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_CUDA_INTERNAL_H
#define ROOST_WORKER_ENGINE_BACKEND_CUDA_INTERNAL_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "kernels/cuda/kernels_cuda.h"
#include "kernels/cuda/runtime.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_batch.h"
#include "worker/engine/model/model.h"

#define GPU_PARTS_MAX 3u           /* matrices that read the same rows: K, V and Q */
#define GPU_LOGIT_ROWS 64u         /* of the head at a time: 64 MiB of logits with a vocabulary of 262,144 */
#define GPU_COPY_EVENTS 1024u
#define GPU_GRAPH_ROWS GPU_LOGIT_ROWS   /* steps of more rows compute longer than they take to start */
#define GPU_GRAPHS_MAX 64u
#define GPU_PHASES 2u              /* all rows; those whose logits are wanted */
#define GPU_BAD_ROWS (2 * GPU_PHASES + 1)    /* of each phase, of each phase's own rows, of the head's rows at work */

struct cuda_health;                /* cuda_health.h */
struct gpu_ranks;                  /* backend_cuda_ranks.c */

struct gpu_memory {                /* what is to be given back, newest first */
    struct gpu_memory *next;       /* owned */
    void *pointer;
    bool pinned;
};

struct gpu_form {                  /* how a matrix wants its rows as integers */
    enum cuda_scheme scheme;
    float input_scale;             /* static; else 0 */
};

struct gpu_part {                  /* outputs [first, first + outputs) of a linear layer */
    uint32_t form, first, outputs;
    int8_t *tiled;
};

struct gpu_linear {                /* matrices that read the same rows, their outputs side by side; neighbours of one form are one part */
    uint32_t columns, depth;       /* depth: columns rounded up to 16 */
    uint32_t outputs, form_count, part_count;    /* with several ranks and sliced: of the own slices */
    uint32_t matrix_count, whole[GPU_PARTS_MAX]; /* outputs of each matrix on all ranks together */
    struct gpu_form forms[GPU_PARTS_MAX];
    struct gpu_part parts[GPU_PARTS_MAX];
    float *scale;                  /* (outputs) */
};

struct gpu_layer {
    const float *input_norm, *attention_norm, *mlp_norm, *mlp_result_norm, *q_norm, *k_norm, *per_layer_norm;    /* NULL as in model_layer */
    struct gpu_linear in;          /* of a producer K, V and Q, of others Q alone; where `apart`, K and V */
    struct gpu_linear late_q;      /* where `apart`, else zeroed */
    bool apart;                    /* a producer where rows leave between K and Q, or whose K and V are of own rows only (ranks) */
    struct gpu_linear o, gate_up, down, per_layer_gate, per_layer_proj;
};

struct gpu_group {                 /* by layer type */
    bool present;
    struct cuda_page_layout layout;
    struct cuda_attention_geometry geometry;
    double *frequency;             /* (dim / 2) */
    float *cosine, *sine;          /* (rows, dim / 2): of the phase at work */
};

struct gpu_input {                 /* rows as integers, by one form */
    int8_t *q, *q_low;             /* (rows, depth) */
    int8_t *narrow, *narrow_low;   /* (rows, columns) before they get depth; NULL: no matrix needs it */
    float *scale;                  /* (rows) */
};

struct gpu_attention {             /* of a phase and a group */
    struct cuda_attention_plan plan;
    struct cuda_attention_task *tasks;       /* device, as all of the following */
    struct cuda_attention_merge *merges;
};

struct gpu_phase {
    uint32_t rows, span_count;
    uint32_t own_first, own_rows;            /* rows whose pages are here: alone, all */
    struct batch_span *runs;                 /* owned; (rows_max), span_count of them */
    struct cuda_attention_span *own_spans;   /* owned; (rows_max), of own rows */
    uint32_t own_span_count;
    uint32_t *position;                      /* (rows), device, as all of the following */
    struct cuda_attention_span *spans;
    struct gpu_attention attention[MODEL_LAYER_TYPES];
    uint32_t *bad_row, *bad_own_row;         /* the second counts from own_first */
};

struct gpu_shape {                 /* of a step: steps of one shape put the same work on the stream, at the same addresses */
    uint32_t rows, wanted, span_count, pages;
    struct gpu_tasks {
        uint32_t tasks, large, merges, pairs_max;
    } attention[GPU_PHASES][MODEL_LAYER_TYPES];
    uint32_t logits_first, logits_end;       /* wanted rows whose logits go to the host */
    uint32_t samples;                        /* some row's token is drawn here */
};

struct gpu_step {                  /* the batch at work */
    struct gpu_shape shape;
    struct gpu_phase phases[GPU_PHASES];
    bool follows;                  /* the newest load is still on its way */
    bool leave;                    /* phase 1 has fewer rows than phase 0: `wanted` says which */
    uint32_t *tokens, *wanted;
    void **row_page[MODEL_LAYER_TYPES];
    void **pages[MODEL_LAYER_TYPES];
    int8_t *looked_up;             /* (rows, layers, per_layer_input) */
    float *looked_up_scale;        /* (rows, layers) */
    struct cuda_sample_options *options;     /* (wanted) */
    char *host, *device;           /* owned: all tables, pinned and their copy */
    size_t capacity;
};

struct gpu_graph {
    struct gpu_shape shape;
    cudaGraphExec_t exec;          /* owned; NULL: the shape was seen once */
    uint64_t used;                 /* step */
};

struct gpu_graphs {
    struct gpu_graph entries[GPU_GRAPHS_MAX];
    uint32_t count;
    uint64_t step, captured, launches;
    bool off;                      /* for good: the runtime makes none */
};

struct gpu_load {                  /* the newest */
    uint64_t ticket;               /* 0: there was none */
    cudaEvent_t *landed;           /* owned; (layer_count): of producing layers, their part of all pages */
    struct cuda_page_copy *host_table, *table;   /* (capacity), by group; the first pinned */
    uint32_t capacity;
};

struct gpu_copies {
    cudaStream_t stream;
    cudaEvent_t ended[GPU_COPY_EVENTS];      /* of ticket t at t % GPU_COPY_EVENTS; copies end in their order, so a later one's tells as well */
    uint64_t started, finished;    /* tickets; finished as far as known */
    struct gpu_load load;
};

struct backend {
    const struct model *model;     /* ref, owned by the caller */
    struct backend_config config;
    struct gpu_memory *memory;     /* owned */
    cudaStream_t stream;
    struct gpu_copies copies;
    struct gpu_graphs graphs;
    struct gpu_ranks *ranks;       /* owned; NULL: alone */
    struct cuda_health *health[BACKEND_RANKS_MAX];   /* owned, in rank 0: of every rank's device; NULL: not known */
    int device;
    uint32_t rank, size;           /* of how many ranks; alone 0 of 1 */
    uint32_t workers;              /* blocks of attention that run at a time */
    struct gpu_group groups[MODEL_LAYER_TYPES];
    struct gpu_layer *layers;      /* owned; (layer_count) */
    struct gpu_linear head, per_layer_model_proj;
    int8_t *embedding;             /* (vocab, hidden): for the look-up */
    const float *embedding_scale;  /* (vocab) */
    const float *final_norm, *per_layer_proj_norm;
    struct batch_constants constants;

    float *x, *x_spare, *h;        /* (rows, hidden) */
    float *wide;                   /* (rows, widest outputs inside a layer) */
    float *attended;               /* (rows, heads, head_dim) */
    int8_t *q_int8;                /* as attended */
    float *q_scale;                /* (rows, heads) */
    float *per_layer, *per_layer_spare;    /* (rows, layers, per_layer_input) */
    struct gpu_input inputs[GPU_PARTS_MAX];
    struct gpu_input_size {
        size_t wide, narrow;       /* columns that some matrix wants; narrow: 0 where none does */
        bool low;
    } input_sizes[GPU_PARTS_MAX];
    float *logits, *host_logits;   /* (logit_rows, vocab); the second pinned */
    uint32_t *drawn, *host_drawn;  /* (logit_rows): tokens; the second pinned */
    uint32_t *masked;              /* bits of ids that are not drawn; NULL: none */
    uint32_t logit_rows;           /* GPU_LOGIT_ROWS, or rows_max where that is less */
    uint32_t *bad_rows, *host_bad_rows;    /* (GPU_BAD_ROWS); the second pinned */
    uint32_t *gemm_scratch;
    void *partials;                /* owned: of attention */
    size_t partials_capacity;
    struct gpu_step step;
    atomic_bool losing, lost;      /* for good; why is there once lost is */
    char why[256];
};

/* ---- backend_cuda_memory.c ---- */

/* An error of the runtime as a status; what: what was tried. */
enum status gpu_check(cudaError_t error, const char *what);
/* Kept until destroy, zeroed. what: whose memory, for the words when there is none. */
enum status gpu_alloc(struct backend *self, size_t bytes, const char *what, void **out);
enum status gpu_clear(struct backend *self, void *memory, size_t bytes, const char *what);     /* done on return */
enum status gpu_alloc_pinned(struct backend *self, size_t bytes, void **out);
/* Device memory with a copy of count floats of the host's; NULL stays NULL. */
enum status gpu_upload_floats(struct backend *self, const float *from, size_t count, const float **out);
void gpu_free_all(struct backend *self);
enum status gpu_no_memory(size_t bytes, const char *what);
enum status gpu_no_pinned_memory(size_t bytes, const char *what);
/* Notes that the device is lost, with the words; always false. */
bool gpu_lose(struct backend *self, const char *why);
bool gpu_did(struct backend *self, cudaError_t error, const char *what);
bool gpu_launched(struct backend *self, bool accepted);

/* ---- backend_cuda_linear.c ---- */

/* Outputs [first, first of the next rank) of a matrix that is cut among ranks. */
uint32_t gpu_slice_first(const struct backend *self, uint32_t rank, uint32_t outputs);
uint32_t gpu_slice_count(const struct backend *self, uint32_t rank, uint32_t outputs);
/* sliced: only this rank's outputs of each matrix; alone the same as whole. */
enum status gpu_linear_make(struct backend *self, const struct model_matrix *const *matrices, uint32_t count, bool sliced, struct gpu_linear *out);
/* The memory of self->inputs, once all linear layers are made. */
enum status gpu_inputs_make(struct backend *self);
/* The targets of the linear layer's integers, one a form, for the kernel that makes them. */
void gpu_forms(const struct backend *self, const struct gpu_linear *linear, struct cuda_rows_int8 *into);
/* Behind that kernel: rows become as wide as the matrix is deep. */
bool gpu_widen(struct backend *self, const struct gpu_linear *linear, uint32_t rows);
bool gpu_quantize(struct backend *self, const struct gpu_linear *linear, const float *x, const struct gpu_phase *phase);
/* Rows [first, first + rows) of the integers times the matrices: out (rows, outputs) = or += . */
bool gpu_multiply(struct backend *self, const struct gpu_linear *linear, uint32_t first, uint32_t rows, bool accumulate, float *out);
bool gpu_multiply_head(struct backend *self, uint32_t first, uint32_t rows, float *out, uint32_t *bad_row);

/* ---- backend_cuda_step.c ---- */

enum status gpu_step_create(struct backend *self);
void gpu_step_destroy(struct backend *self);
/* Makes and copies the tables of a checked batch. */
enum status gpu_step_make(struct backend *self, const struct backend_batch *batch);

/* ---- backend_cuda_layers.c ---- */

/* Tables are in place -> the logits and tokens that are wanted are in their runs, bad rows in host_bad_rows; false: lost. */
bool gpu_run_layers(struct backend *self);

/* ---- backend_cuda.c ---- */

/* A checked batch. STATUS_OK: *bad is the first run with a NaN or infinity, as far as this rank has seen, or UINT32_MAX. */
enum status gpu_compute(struct backend *self, const struct backend_batch *batch, uint32_t *bad);
/* What that means. */
enum status gpu_verdict(uint32_t bad, uint32_t *failed_run);

/* ---- backend_cuda_copies.c ---- */

enum status gpu_copies_create(struct backend *self);
void gpu_copies_finish(struct backend *self);              /* waits for those under way */
void gpu_copies_destroy(struct backend *self);
/* As in backend_ops. */
void gpu_copy_prefix(struct backend *self, uint32_t group, void *dst, const void *src, uint32_t tokens);
uint64_t gpu_copy_start(struct backend *self, void *dst, const void *src, size_t bytes);
bool gpu_copy_done(struct backend *self, uint64_t ticket);
void gpu_copy_wait(struct backend *self, uint64_t ticket);
uint64_t gpu_load_start(struct backend *self, const struct backend_page_copy *copies, uint32_t count);
/* Whether pages of the batch are still on their way. */
bool gpu_load_lacks(struct backend *self, const struct backend_batch *batch);
/* Where step.follows, the stream waits for a producing layer's part of them, before its keys and values are touched. */
bool gpu_load_wait(struct backend *self, uint32_t index);

/* ---- backend_cuda_ranks.c: with self->ranks ---- */

bool gpu_is_own(const struct backend *self, uint32_t run_index);               /* alone, too */
/* Slices of a sliced linear layer, put together on every rank; of Q the own rows whole, on their rank. */
bool gpu_ranks_project(struct backend *self, const struct gpu_linear *linear, const struct gpu_phase *phase, bool accumulate, float *out);
bool gpu_ranks_project_home(struct backend *self, const struct gpu_linear *linear, const struct gpu_phase *phase, float *out);
/* The gate's slice (columns: its width), put together: out (rows, outputs). */
bool gpu_ranks_gate(struct backend *self, const struct cuda_gate *gate, uint32_t outputs, float *out);
bool gpu_ranks_gather_attended(struct backend *self, const struct gpu_phase *phase, uint32_t width);
float *gpu_ranks_part(struct backend *self);       /* where the head's slice goes, (rows, slice) */
bool gpu_ranks_logits(struct backend *self, uint32_t rows);
bool gpu_ranks_wait(struct backend *self);         /* for the stream */
void gpu_ranks_destroy(struct backend *self);

/* ---- backend_cuda_graph.c ---- */

/* What gpu_run_layers does, by a graph if a step of the same shape has been here before. work puts the whole step on the stream. */
bool gpu_graph_run(struct backend *self, bool (*work)(struct backend *self));
void gpu_graph_forget(struct backend *self);       /* memory that graphs use has moved */

#endif
