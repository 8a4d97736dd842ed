/* random_model.h - writes a model directory with random weights, for tests. The same description gives the same bytes on
 * every machine (integers and IEEE operations only). Scores are spread so that attention is neither flat nor one-hot.
 *
 *     struct random_model shape = random_model_gemma4();
 *     shape.recipe = RANDOM_RECIPE_MIXED;
 *     char dir[RANDOM_MODEL_PATH_MAX];
 *     assert_int_equal(random_model_create(&shape, dir), STATUS_OK);   // a fresh folder under $TMPDIR or /tmp
 *     ...
 *     random_model_remove(dir);
 *
 *     const struct random_model *shape;
 *     for (unsigned i = 0; (shape = random_model_at(i)); i++) ...      // every family in turn */
#ifndef ROOST_TESTS_RANDOM_MODEL_H
#define ROOST_TESTS_RANDOM_MODEL_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

struct model;                      /* worker/engine/model/model.h */

#define RANDOM_MODEL_PATH_MAX 512

/* Activation schemes. Where a matrix cannot have one (rotated: columns not a multiple of 128, or the embedding), it is dynamic. */
enum random_recipe {
    RANDOM_RECIPE_DYNAMIC,
    RANDOM_RECIPE_STATIC,
    RANDOM_RECIPE_ROTATED,
    RANDOM_RECIPE_WIDE,
    RANDOM_RECIPE_MIXED,           /* all four in turn */
};
#define RANDOM_RECIPES 5u

/* FLOAT, BF16: format roost-float with the weights that the dynamic recipe has (rounded to bfloat16 in the second case). */
enum random_format { RANDOM_FORMAT_INT8, RANDOM_FORMAT_FLOAT, RANDOM_FORMAT_BF16 };

struct random_model {
    const char *name;              /* of the family; letters, digits, '-' */
    uint64_t seed;
    uint32_t vocab_size, hidden_size, intermediate_size;
    uint32_t head_count, kv_head_count, head_dim;
    uint32_t context_tokens, window;
    const char *layers;            /* one letter a layer: L sliding_attention, G full_attention */
    const unsigned *kv_producer;   /* (layers), or NULL: every layer its own */
    const char *activation;        /* "silu" or "gelu_pytorch_tanh" */
    bool tokenizer;                /* also copies deploy/models/folio/tokenizer.model (vocab_size must be 4096 then) */

    /* Options; 0 is the default of model_config.h. */
    enum random_recipe recipe;
    enum random_format format;
    uint32_t global_kv_head_count, global_head_dim, global_rope_pairs;
    double rope_global_scale, attention_scale, embedding_scale, logit_cap;
    uint32_t sinks;
    uint32_t per_layer_input;
    bool no_qk_norm, v_norm, sandwich_norm;
    bool consumers_double;         /* layers without K and V of their own have twice the intermediate_size */
    bool repeated;                 /* a matrix is its first MiB again and again: gigabytes are there at once */
};

/* MQA, 4 heads of 32, LLGLLG, shared KV (0,0,2,3,3,2), window 24, vocabulary 512, context 2048, silu. */
struct random_model random_model_small(void);
/* GQA, 6 over 2 heads of 20, widths that are multiples of nothing, LGLG, window 100, context 2048, gelu. */
struct random_model random_model_gqa(void);
/* Every head its own K and V, full attention only, no q and k norm, context 4096. */
struct random_model random_model_mha(void);
/* Sliding attention only, window 40 and 4 sinks, context 4096. */
struct random_model random_model_sinks(void);
/* Five local layers to one global, sandwich norms, scaled global rotation, embedding times sqrt(hidden), context 4096. */
struct random_model random_model_gemma3(void);
/* Wider global heads with partial rotation, a tail of layers that share KV and have wider MLPs, per-layer inputs, soft cap, norm on V,
 * attention scale 1, context 4096. */
struct random_model random_model_gemma4(void);

/* The shapes above by number; NULL behind the last. */
const struct random_model *random_model_at(unsigned index);
const char *random_recipe_name(enum random_recipe recipe);

/* Writes config.json, model.safetensors and perhaps tokenizer.model into dir, which exists. */
enum status random_model_write(const struct random_model *shape, const char *dir);

/* The model that model_load makes of these files, without files and without a digest; model_destroy takes it. NULL: no memory. */
struct model *random_model_make(const struct random_model *shape);

/* Makes a fresh folder, writes into it and puts its path into dir. */
enum status random_model_create(const struct random_model *shape, char dir[RANDOM_MODEL_PATH_MAX]);
void random_model_remove(const char *dir);   /* the three files, known_answer.json and the folder */

#endif
