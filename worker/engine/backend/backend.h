/* backend.h - the one narrow table of operations between the engine and what computes. The CPU backend is always built and is
 * the reference; the float backend computes the same models in float32 (parity, evaluation); others are plugins. Called by the
 * engine thread only; no caller has an #ifdef. A backend may use threads of its own inside a call, and for copies.
 *
 * Producing layers form at most two *groups*, by layer type: MODEL_LAYER_GLOBAL and MODEL_LAYER_LOCAL (model_config.h). A KV page
 * of a group is one block of page_bytes(group) bytes holding BACKEND_PAGE_TOKENS positions of every producing layer of
 * that group: for each producer slot in order K plane (kv_heads, 64, head_dim), V plane of the same size in a layout private
 * to the backend, K scales (kv_heads, 64) float32, V scales (kv_heads, 64) float32 (CPU; others choose). Position p of a sequence
 * lives in page p / 64 of each group, row p % 64. The engine copies, shares, moves and keeps pages without looking inside,
 * except through page_copy_prefix. A page's bytes mean the same at any address and in any arena. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_H
#define ROOST_WORKER_ENGINE_BACKEND_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define BACKEND_PAGE_TOKENS 64u
#define BACKEND_GROUPS_MAX 2u       /* indexed by enum model_layer_type */
#define BACKEND_THREADS_MAX 64u
#define BACKEND_RANKS_MAX 8u        /* slices of fewer than 100 outputs are not worth a round */

struct model;                       /* worker/engine/model/model.h: config and weights, loaded, immutable */
struct backend;                     /* opaque: the backend's own state (scratch memory, tables, threads) */
struct parallel_group;              /* worker/engine/backend/parallel_group.h */
struct simulate_profile;            /* worker/engine/backend/backend_simulate.h */

struct backend_config {
    uint32_t rows_max;              /* tokens of a whole batch; sizes the scratch memory */
    uint32_t threads;               /* that compute, the caller among them; 1 .. BACKEND_THREADS_MAX */
    bool full_depth;                /* every row runs through all layers, wanted or not (early exit off); same bits */
    const uint32_t *masked;         /* (masked_count) ascending, copied: ids that backend_run.sample never draws */
    uint32_t masked_count;
    uint32_t rank, ranks;           /* of a group that computes together (rank.h): only this rank's slices are kept; ranks 0 or 1: alone */
    struct parallel_group *group;   /* ref; of the parallel backend alone (backend_parallel.h) */
    const struct simulate_profile *simulate;   /* of the simulated backend alone; copied */
};

struct backend_sample {             /* how to draw a token: docs/numerics.md, section 9, without penalties and bias */
    float temperature, top_p, min_p;
    uint32_t top_k;
    uint64_t seed;
    uint32_t choice, position;
    uint32_t token;                 /* out */
};

/* A run of consecutive new tokens of one sequence. */
struct backend_run {
    const uint32_t *tokens;         /* (count) */
    uint32_t count;                 /* at least 1 */
    uint32_t start;                 /* absolute position of tokens[0]; KV that [start, start + count) sees is in the pages */
    /* Per group: at least ceil((start + count) / 64) page pointers; those from start / 64 on are written. NULL for an absent
     * group. Of a group with a window, entries that no row of the run sees may be NULL. */
    void *const *pages[BACKEND_GROUPS_MAX];
    float *logits;                  /* (logit_rows, vocab): of the last logit_rows tokens of the run; NULL with 0 rows */
    struct backend_sample *sample;  /* NULL, or the token behind the last row is drawn by the backend: logits NULL, logit_rows 1 */
    uint64_t after;                 /* the load (load_start) that its pages may still wait for, layer by layer; 0: none */
    uint32_t logit_rows;            /* 0: a chunk in the middle of a prompt; 1: its last, or decode; count: evaluation */
};

struct backend_batch {              /* runs of different sequences; no page that one writes is in another */
    const struct backend_run *runs;
    uint32_t run_count;             /* at least 1; the counts sum to at most rows_max */
};

/* A page that a load brings to the device, from whichever tier. */
struct backend_page_copy {
    uint32_t group;
    uint32_t tokens;                /* 64: the page as it is; fewer: its first so many positions, zeros behind them (page_copy_prefix) */
    void *dst;
    const void *src;                /* no other copy's dst */
};

struct backend_device_health {      /* as of now; zeros where it does not say */
    char device[96];                /* its name and its address */
    uint64_t memory_bytes, memory_used_bytes;       /* all of the device's, whoever uses it */
    bool nvml;                      /* the driver was asked; false: what follows is not known */
    uint32_t sm_mhz, memory_mhz, celsius, milliwatts, busy_percent;
    uint64_t ecc_corrected, ecc_uncorrected;        /* since the driver was loaded */
    uint64_t throttle_reasons;      /* nvmlClocksThrottleReasons: bits; 0: none */
};

struct backend_health {             /* of all devices that this backend computes on, by rank */
    uint32_t device_count;          /* at least 1 */
    struct backend_device_health devices[BACKEND_RANKS_MAX];
};

enum backend_tier { BACKEND_TIER_DEVICE, BACKEND_TIER_HOST };
#define BACKEND_TIERS 2u

struct backend_ops {
    const char *name;               /* "cpu", "cuda", "parallel", "float", "simulate" */
    const char *bits;               /* backends with one word here compute the same bits, so a reply may go on from one to the other */
    /* model is borrowed and outlives the backend. STATUS_UNSUPPORTED: not a model for this backend. */
    enum status (*create)(const struct model *model, const struct backend_config *config, struct backend **out);
    void (*destroy)(struct backend **backend);                /* accepts NULL; copies under way are finished first */
    size_t (*page_bytes)(const struct backend *backend, uint32_t group);      /* a multiple of 64; 0: the model has no such group */
    /* Writes K and V of every run into its pages and computes the logits asked for. STATUS_CORRUPT: a NaN or infinity
     * appeared, *failed_run (if not NULL) says in which run; KV written by this call is then not to be used. A run's results are
     * the same bits whatever else is in the batch. STATUS_CLOSED: the backend is lost for good (a rank has died, a device is poisoned);
     * the process has to end, and nothing may be said about the requests: others compute them. */
    enum status (*forward)(struct backend *backend, const struct backend_batch *batch, uint32_t *failed_run);
    /* dst gets the first `tokens` (1 .. 64) positions of src, the rest of dst is zeroed (so that checksums are defined).
     * Both in the device tier. Done on return. */
    void (*page_copy_prefix)(struct backend *backend, uint32_t group, void *dst, const void *src, uint32_t tokens);
    /* Arenas: the memory pages live in. bytes is a multiple of 64; the base is 64-byte aligned. */
    enum status (*arena_create)(struct backend *backend, enum backend_tier tier, size_t bytes, void **base);
    void (*arena_destroy)(struct backend *backend, enum backend_tier tier, void **base);      /* accepts NULL */
    /* Starts copying a page image between arenas (or inside one), beside the compute. Source and destination must stay untouched
     * until copy_done says so. Returns a ticket that counts up from 1; copies end in the order of their tickets. */
    uint64_t (*copy_start)(struct backend *backend, void *dst, const void *src, size_t bytes);
    bool (*copy_done)(struct backend *backend, uint64_t ticket);              /* never blocks */
    void (*copy_wait)(struct backend *backend, uint64_t ticket);              /* returns when it is done */
    /* Optional. Starts all of them, of one sequence, behind the copies started before and layer by layer: its first layers can compute while
     * the pages of later ones arrive (backend_run.after). It takes some of the device from whoever computes. count: 1 .. the pages of a
     * sequence of the model's context, and one more a group; copies is read during the call only. Returns the ticket of the whole. May wait
     * for a load that was started before. */
    uint64_t (*load_start)(struct backend *backend, const struct backend_page_copy *copies, uint32_t count);
    /* Optional, both or neither: device memory in several places that are computed with side by side (ranks), numbered from 0. All pages of
     * a run are of one place, copies between two places are not made. arena_create makes device arenas in place 0. */
    uint32_t (*homes)(const struct backend *backend);
    enum status (*arena_create_at)(struct backend *backend, uint32_t home, size_t bytes, void **base);
    bool (*samples)(const struct backend *backend);           /* Optional: it can do backend_run.sample */
    /* Optional; one thread at a time, any. May take milliseconds. False: nothing is known, nor will be. */
    bool (*health)(struct backend *backend, struct backend_health *out);
};

extern const struct backend_ops backend_cpu_ops;
extern const struct backend_ops backend_float_ops;

#endif
