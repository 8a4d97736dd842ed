/* model.h - a model directory in memory: config, weights (mapped from model.safetensors), digest. Immutable after loading.
 * The tokenizer is its own object (tokenizer.h).
 *
 * Tensors of model.safetensors, by name (outputs first; L the layer, n the number of layers, p per_layer_input):
 *   model.embed_tokens.weight (vocab, hidden)                   lookup and tied output head
 *   model.norm.weight (hidden)
 *   model.layers.L.input_layernorm.weight (hidden)
 *   model.layers.L.self_attn.{q,k,v,o}_proj.weight              k and v of producers only
 *   model.layers.L.self_attn.{q,k}_norm.weight (head_dim)       with qk_norm; k of producers only
 *   model.layers.L.mlp.{gate,up,down}_proj.weight
 *   norm placement "pre":      model.layers.L.post_attention_layernorm.weight: before the MLP
 *   norm placement "sandwich": model.layers.L.post_attention_layernorm.weight: on the attention's result before it is added;
 *                              pre_feedforward_layernorm: before the MLP; post_feedforward_layernorm: on its result
 *   with per_layer_input p:    model.embed_tokens_per_layer.weight (vocab, n * p), model.per_layer_model_projection.weight
 *                              (n * p, hidden), model.per_layer_projection_norm.weight (p), and per layer
 *                              per_layer_input_gate.weight (p, hidden), per_layer_projection.weight (hidden, p),
 *                              post_per_layer_input_norm.weight (hidden), layer_scalar (1)
 * Norm weights are float32 and multiply as they are (roost-convert has added Gemma 3's 1).
 * Format "roost-int8": matrices are I8 in [-127, 127] with F32 NAME_scale (outputs); embed_tokens_per_layer's is (vocab, n);
 * scheme static also has F32 NAME_input_scale (1). __metadata__ has format, activation_scheme (the default) and
 * activation_scheme.NAME for others. Weights of scheme rotated are stored rotated (docs/numerics.md).
 * embed_tokens cannot be rotated (its rows are looked up as well); embed_tokens_per_layer has no scheme.
 * Format "roost-float": matrices are F32 or BF16 without scales; only the float backend runs it. */
#ifndef ROOST_WORKER_ENGINE_MODEL_H
#define ROOST_WORKER_ENGINE_MODEL_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/model/model_config.h"

#define MODEL_NUMERICS_REVISION 1u    /* docs/numerics.md; part of the digest */
#define MODEL_KV_LAYOUT 2u            /* of backend.h's pages; part of the digest */

enum model_format { MODEL_FORMAT_INT8, MODEL_FORMAT_FLOAT };
enum model_element { MODEL_ELEMENT_I8, MODEL_ELEMENT_F32, MODEL_ELEMENT_BF16 };
enum model_scheme {                   /* how the input rows of an int8 linear layer are quantised; docs/numerics.md, section 3 */
    MODEL_SCHEME_DYNAMIC,             /* "dynamic" */
    MODEL_SCHEME_STATIC,              /* "static" */
    MODEL_SCHEME_ROTATED,             /* "rotated": columns a multiple of 128 */
    MODEL_SCHEME_WIDE,                /* "wide" */
};
#define MODEL_SCHEMES 4u

struct model_matrix {                 /* weights of one linear layer */
    enum model_element element;
    enum model_scheme scheme;         /* int8 only */
    const void *weight;               /* (rows = outputs, columns = inputs) */
    const float *scale;               /* (rows); int8 only */
    float input_scale;                /* static only; positive */
    uint32_t rows, columns;
};

struct model_layer {
    const float *input_norm;          /* (hidden): before attention */
    const float *attention_norm;      /* (hidden): on the attention's result; NULL unless sandwich */
    const float *mlp_norm;            /* (hidden): before the MLP */
    const float *mlp_result_norm;     /* (hidden): on the MLP's result; NULL unless sandwich */
    const float *q_norm, *k_norm;     /* (head_dim); NULL without qk_norm, k_norm also for consumers */
    struct model_matrix q_proj, k_proj, v_proj, o_proj;   /* k_proj, v_proj zeroed for consumers of another layer's KV */
    struct model_matrix gate_proj, up_proj, down_proj;
    struct model_matrix per_layer_gate, per_layer_proj;   /* zeroed without per_layer_input */
    const float *per_layer_norm;      /* (hidden); NULL without per_layer_input */
    float layer_scalar;               /* the layer's result times this; 1 without per_layer_input */
};

struct model {
    struct model_config config;
    enum model_format format;
    struct model_matrix embedding;    /* (vocab, hidden); its scheme is the output head's */
    const float *final_norm;          /* (hidden) */
    struct model_matrix per_layer_embedding;   /* (vocab, n * p); int8: scale is (vocab, n). Zeroed without per_layer_input */
    struct model_matrix per_layer_model_proj;  /* (n * p, hidden) */
    const float *per_layer_proj_norm; /* (p) */
    struct model_layer layers[MODEL_LAYERS_MAX];
    uint8_t weights_digest[32];       /* BLAKE2b-256 over config.json, model.safetensors, tokenizer.model, numerics revision, KV layout */
    void *mapping;                    /* owned: the safetensors file */
};

/* Loads DIR/config.json and DIR/model.safetensors, refusing anything that does not fit before allocating. Weights are mapped, not
 * copied; the whole file is read once, in order, for the digest and the checks of values (a weight of -128, a NaN). */
enum status model_load(const char *dir, struct model **out);
/* Without weights, for a backend that computes none (backend_simulate.h): config.json alone is read, matrices and norms stay
 * NULL. The digest is the same with `identity` in place of model.safetensors. */
enum status model_load_shape(const char *dir, const void *identity, size_t identity_size, struct model **out);
void model_destroy(struct model **model);   /* accepts NULL */

const char *model_scheme_name(enum model_scheme scheme);
/* By name as above, "model.layers.3.mlp.down_proj.weight"; NULL if the model has no such matrix. */
const struct model_matrix *model_find_matrix(const struct model *model, const char *name);

#endif
