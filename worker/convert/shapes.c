#include "worker/convert/shapes.h"
#include <math.h>
#include <string.h>
#include "worker/convert/random_tokenizer.h"
#include "worker/convert/roost_config.h"

/* Gemma's numbers: google-deepmind/gemma, configurations of the published checkpoints. The roost-13b-like one has the proportions that
 * Character.AI describes (research.character.ai/optimizing-inference), its sizes are ours. */
struct shape {
    const char *name;
    enum family family;
    uint32_t layers, hidden, heads, kv_heads, head_dim, global_head_dim, inner, window;
    uint32_t pattern;              /* each pattern-th layer is global */
    uint32_t shared_tail;          /* the last layers read the last producer of their type */
    uint32_t share;                /* neighbours of a type that have one KV; 1: each its own */
    uint32_t per_layer_input, vocab_size, context;
    bool double_wide;              /* MLPs of consumers are twice as wide */
    double rope_scale;             /* global layers */
    const char *words;
};

static const struct shape shapes[] = {
    { "gemma3-270m", FAMILY_GEMMA3, 18, 640, 4, 1, 256, 256, 2048, 512, 6, 0, 1, 0, 262144, 32768, false, 1, "MQA, window 512" },
    { "gemma3-1b", FAMILY_GEMMA3, 26, 1152, 4, 1, 256, 256, 6912, 512, 6, 0, 1, 0, 262144, 32768, false, 1, "MQA, window 512" },
    { "gemma3-4b", FAMILY_GEMMA3, 34, 2560, 8, 4, 256, 256, 10240, 1024, 6, 0, 1, 0, 262144, 131072, false, 8, "GQA, window 1,024" },
    { "gemma4-e2b", FAMILY_GEMMA4, 35, 1536, 8, 1, 256, 512, 6144, 512, 5, 20, 1, 256, 262144, 131072, true, 1,
      "MQA, layers 15 to 34 read KV of 13 and 14, per-layer inputs" },
    { "gemma4-e4b", FAMILY_GEMMA4, 42, 2560, 8, 2, 256, 512, 10240, 512, 6, 18, 1, 256, 262144, 131072, false, 1,
      "GQA, the last 18 layers read KV of 22 and 23, per-layer inputs" },
    { "roost-13b-like", FAMILY_ROOST, 48, 5120, 40, 1, 128, 128, 13696, 1024, 6, 0, 2, 0, 65536, 32768, false, 1,
      "MQA, 8 global layers, neighbours of a type share KV by 2" },
    { "roost-small", FAMILY_ROOST, 12, 512, 8, 1, 64, 64, 1024, 1024, 6, 0, 2, 0, 16384, 32768, false, 1, "30 M parameters, for quick runs" },
};
#define SHAPE_COUNT (sizeof shapes / sizeof shapes[0])

void shapes_list(FILE *out)
{
    for (size_t i = 0; i < SHAPE_COUNT; i++)
        fprintf(out, "%-16s %2u layers, hidden %4u, vocabulary %6u; %s\n", shapes[i].name, shapes[i].layers, shapes[i].hidden,
                shapes[i].vocab_size, shapes[i].words);
}

static void set_layers(const struct shape *shape, struct model_config *config)
{
    uint32_t count[MODEL_LAYER_TYPES] = { 0 }, producer[MODEL_LAYER_TYPES] = { 0 };
    for (uint32_t i = 0; i < shape->layers; i++) {
        const enum model_layer_type type = (i + 1) % shape->pattern ? MODEL_LAYER_LOCAL : MODEL_LAYER_GLOBAL;
        if (i < shape->layers - shape->shared_tail && count[type]++ % shape->share == 0)
            producer[type] = i;
        config->layer_types[i] = type;
        config->kv_producer[i] = (uint16_t)producer[type];
        config->intermediate_size[i] = shape->double_wide && producer[type] != i ? 2 * shape->inner : shape->inner;
    }
}

static void set_shape(const struct shape *shape, struct family_config *out)
{
    struct model_config *config = &out->config;
    const bool gemma = shape->family != FAMILY_ROOST, gemma4 = shape->family == FAMILY_GEMMA4;
    *out = (struct family_config){ .family = shape->family, .tied = true };
    snprintf(config->name, sizeof config->name, "random-%s", shape->name);
    strcpy(config->family, gemma4 ? "gemma4" : gemma ? "gemma3" : "roost");
    config->vocab_size = shape->vocab_size;
    config->hidden_size = shape->hidden;
    config->layer_count = shape->layers;
    config->head_count = shape->heads;
    config->context_tokens_max = shape->context;
    config->norm_epsilon = 1e-6f;
    config->attention_scale = gemma4 ? 1 : (float)(1 / sqrt(shape->head_dim));
    config->embedding_scale = gemma ? (float)sqrt(shape->hidden) : 1;
    config->logit_cap = gemma4 ? 30 : 0;
    config->qk_norm = true;
    config->v_norm = gemma4;
    config->sandwich_norm = gemma;
    config->activation = gemma ? MODEL_ACTIVATION_GELU_TANH : MODEL_ACTIVATION_SILU;
    config->per_layer_input = shape->per_layer_input;
    config->chat_template = gemma4 ? MODEL_TEMPLATE_GEMMA4 : gemma ? MODEL_TEMPLATE_GEMMA : MODEL_TEMPLATE_SPEAKER;
    config->attention[MODEL_LAYER_LOCAL] = (struct model_attention){ .kv_head_count = shape->kv_heads, .head_dim = shape->head_dim,
        .rope_base = 1e4, .rope_scale = 1, .rope_pairs = shape->head_dim / 2, .window = shape->window };
    config->attention[MODEL_LAYER_GLOBAL] = (struct model_attention){ .kv_head_count = shape->kv_heads, .head_dim = shape->global_head_dim,
        .rope_base = 1e6, .rope_scale = shape->rope_scale, .rope_pairs = gemma4 ? shape->global_head_dim / 8 : shape->global_head_dim / 2 };
    set_layers(shape, config);
}

static enum status find_shape(const char *name, struct family_config *out)
{
    const size_t length = strlen(name);
    if (length > 5 && strcmp(name + length - 5, ".json") == 0)
        return family_read_file(name, NULL, 0, out);
    for (size_t i = 0; i < SHAPE_COUNT; i++)
        if (strcmp(name, shapes[i].name) == 0) {
            set_shape(&shapes[i], out);
            return STATUS_OK;
        }
    return STATUS_FAIL(STATUS_NOT_FOUND, "there is no shape %.64s: --list-shapes has the names, a path to a configuration ends in .json", name);
}

enum status shapes_read(const char *name, uint32_t layers, uint32_t vocab_size, struct family_config *out)
{
    TRY(find_shape(name, out));
    struct model_config *config = &out->config;
    if (layers > config->layer_count)
        return STATUS_FAIL(STATUS_INVALID, "--layers %u: the shape has %u", layers, config->layer_count);
    if (layers)
        config->layer_count = layers;             /* producers come before their consumers: the first layers are a model of their own */
    if (vocab_size)
        config->vocab_size = vocab_size;
    if (config->vocab_size < RANDOM_TOKENIZER_PIECES_MIN)
        return STATUS_FAIL(STATUS_INVALID, "a vocabulary of %u: want at least %u", config->vocab_size, RANDOM_TOKENIZER_PIECES_MIN);
    config->bos_id = RANDOM_TOKENIZER_BOS;
    config->end_ids[0] = RANDOM_TOKENIZER_EOS;
    config->turn_id = RANDOM_TOKENIZER_TURN;
    config->text_id = RANDOM_TOKENIZER_TEXT;
    config->end_id_count = 1;
    if (config->chat_template != MODEL_TEMPLATE_SPEAKER)
        config->end_ids[config->end_id_count++] = config->text_id;
    roost_config_set_slots(config);
    return roost_config_check(config);
}
