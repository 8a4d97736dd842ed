/* backend_batch.h - the runs of a batch as rows of one matrix, for backends that compute them together. Plain data and checks. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_BATCH_H
#define ROOST_WORKER_ENGINE_BACKEND_BATCH_H
#include <stdint.h>
#include "common/status.h"

struct backend_batch;
struct backend_config;
struct backend_run;
struct model_config;

#define BACKEND_ROWS_MAX 65536u     /* of backend_config.rows_max */

struct batch_span {                 /* the rows of one run */
    const struct backend_run *run;  /* ref */
    uint32_t run_index;             /* in the batch */
    uint32_t row, count;            /* [row, row + count) of the matrices */
    uint32_t start;                 /* absolute position of the first */
};

struct batch_constants {            /* of docs/numerics.md, sections 7 and 8: computed in double, rounded once */
    float score_scale;              /* attention scale times log2(e) */
    float per_layer_in, per_layer_embed;   /* 1/sqrt(hidden), sqrt(per_layer_input) */
};
struct batch_constants batch_constants(const struct model_config *model);
#define BATCH_PER_LAYER_SUM 0x1.6a09e6p-1f /* 1/sqrt(2) rounded to float32 */

/* STATUS_INVALID: rows_max or threads out of range. */
enum status batch_check_config(const struct backend_config *config);

/* STATUS_INVALID, STATUS_LIMIT: what backend.h does not allow; nothing is computed then. */
enum status batch_check(const struct model_config *model, const struct backend_config *config, const struct backend_batch *batch);

/* Fills spans (run_count) and returns the sum of their counts. */
uint32_t batch_spans(const struct backend_batch *batch, struct batch_span *spans);

/* The run that row belongs to. */
uint32_t batch_run_of_row(const struct batch_span *spans, uint32_t span_count, uint32_t row);

#endif
