/* backend.h - the one narrow table of operations between the engine and what computes. The CPU backend is always built and is the
 * reference; others are plugins. Called by the engine thread only; no caller has an #ifdef.
 *
 * A KV page is one block of memory of page_bytes holding BACKEND_PAGE_TOKENS positions of every producing layer:
 * for each producer slot in order: K plane (kv_heads, 64, head_dim) int8, V plane of the same size in a layout private to the
 * backend, K scales (kv_heads, 64) float32, V scales (kv_heads, 64) float32. Position p of a sequence lives in its page p / 64,
 * row p % 64. The engine copies, shares and keeps pages without looking inside, except through page_copy_prefix. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_H
#define ROOST_WORKER_ENGINE_BACKEND_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define BACKEND_PAGE_TOKENS 64u

struct model;                       /* worker/engine/model.h: config and weights, loaded, immutable */
struct backend;                     /* opaque: the backend's own state (scratch memory, tables) */

/* A run of consecutive new tokens of one sequence. */
struct backend_run {
    const uint32_t *tokens;         /* (count) */
    uint32_t count;                 /* 1 .. chunk_tokens_max */
    uint32_t start;                 /* absolute position of tokens[0]; KV of [0, start) is in the pages */
    void *const *pages;             /* at least ceil((start + count) / 64) page pointers; those from start / 64 on are written */
    float *logits;                  /* (logit_rows, vocab): of the last logit_rows tokens of the run; NULL with 0 rows */
    uint32_t logit_rows;            /* 0: a chunk in the middle of a prompt; 1: its last; count: evaluation */
};

struct backend_ops {
    const char *name;               /* "cpu" */
    /* model is borrowed and outlives the backend. chunk_tokens_max bounds backend_run.count and sizes the scratch memory. */
    enum status (*create)(const struct model *model, uint32_t chunk_tokens_max, struct backend **out);
    void (*destroy)(struct backend **backend);
    size_t (*page_bytes)(const struct backend *backend);
    /* Writes K and V of the run into its pages and computes the logits asked for. STATUS_CORRUPT: a NaN or infinity appeared. */
    enum status (*forward)(struct backend *backend, const struct backend_run *run);
    /* dst gets the first `tokens` (1 .. 64) positions of src, the rest of dst is zeroed (so that checksums are defined). */
    void (*page_copy_prefix)(struct backend *backend, void *dst, const void *src, uint32_t tokens);
};

extern const struct backend_ops backend_cpu_ops;

#endif
