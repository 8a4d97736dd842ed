/* model.h - a model directory in memory: config, weights (mapped from model.safetensors), digest. Immutable after loading.
 * The tokenizer is its own object (tokenizer.h). */
#ifndef ROOST_WORKER_ENGINE_MODEL_H
#define ROOST_WORKER_ENGINE_MODEL_H
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/model_config.h"

#define MODEL_NUMERICS_REVISION 0u    /* docs/numerics.md; part of the digest */
#define MODEL_KV_LAYOUT 1u            /* of backend.h's page; part of the digest */

struct model_matrix {                 /* int8 weights of one linear layer, dynamic activation scheme */
    const int8_t *weight;             /* (rows = outputs, columns = inputs), in [-127, 127] */
    const float *scale;               /* (rows) */
    uint32_t rows, columns;
};

struct model_layer {
    const float *input_norm;          /* (hidden) */
    const float *post_attention_norm; /* (hidden) */
    const float *q_norm, *k_norm;     /* (head_dim); NULL without qk_norm, k_norm also for consumers */
    struct model_matrix q_proj, k_proj, v_proj, o_proj;   /* k_proj, v_proj zeroed for consumers of another layer's KV */
    struct model_matrix gate_proj, up_proj, down_proj;
};

struct model {
    struct model_config config;
    struct model_matrix embedding;    /* (vocab, hidden): lookup and tied output head */
    const float *final_norm;          /* (hidden) */
    struct model_layer layers[MODEL_LAYERS_MAX];
    uint8_t weights_digest[32];       /* BLAKE2b-256 over config.json, model.safetensors, tokenizer.model, numerics revision, KV layout */
    void *mapping;                    /* owned: the safetensors file */
};

/* Loads DIR/config.json and DIR/model.safetensors, refusing anything that does not fit before allocating. */
enum status model_load(const char *dir, struct model **out);
void model_destroy(struct model **model);   /* accepts NULL */

#endif
