#include "deploy/roost/model_figures.h"
#include <string.h>

#define PLAIN_KV_HEADS 8u
#define PLAIN_ELEMENT_BYTES 2.0

const char *model_part_name(enum model_part part)
{
    static const char *const names[MODEL_PARTS] = { "embedding and output head", "per-layer inputs", "attention", "MLP", "norms" };
    return names[part];
}

enum model_part model_part_of(const char *tensor_name)
{
    if (strstr(tensor_name, "embed_tokens.weight"))
        return MODEL_PART_EMBEDDING;
    if (strstr(tensor_name, "norm"))
        return MODEL_PART_NORMS;
    if (strstr(tensor_name, ".self_attn."))
        return MODEL_PART_ATTENTION;
    if (strstr(tensor_name, ".mlp."))
        return MODEL_PART_MLP;
    return MODEL_PART_PER_LAYER;
}

static uint32_t seen_tokens(const struct model_attention *attention, uint32_t tokens)
{
    return attention->window && attention->window < tokens ? attention->window : tokens;
}

void kv_figures(const struct model_config *config, uint32_t tokens, struct kv_figures *out)
{
    uint64_t heads = 0, horizon = 0, bytes = 0;
    *out = (struct kv_figures){ .tokens = tokens };
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const struct model_attention *attention = &config->attention[config->layer_types[i]];
        const uint64_t vectors = 2 * (uint64_t)attention->kv_head_count, seen = seen_tokens(attention, tokens);
        out->plain_elements += 2 * (uint64_t)PLAIN_KV_HEADS * attention->head_dim * tokens;
        heads += vectors * attention->head_dim * tokens;
        horizon += vectors * attention->head_dim * seen;
        if (config->kv_producer[i] != i)
            continue;
        out->elements += vectors * attention->head_dim * seen;
        bytes += vectors * (attention->head_dim + sizeof(float)) * seen;
    }
    out->bytes = bytes;
    out->heads = (double)out->plain_elements / (double)heads;
    out->horizon = (double)heads / (double)horizon;
    out->sharing = (double)horizon / (double)out->elements;
    out->int8 = PLAIN_ELEMENT_BYTES * (double)out->elements / (double)bytes;
}

/* K and V of one token in all producing layers of a type. */
static uint64_t type_token_bytes(const struct model_config *config, enum model_layer_type type)
{
    const struct model_attention *attention = &config->attention[type];
    return 2 * (uint64_t)config->producer_count[type] * attention->kv_head_count * (attention->head_dim + sizeof(float));
}

uint64_t kv_token_bytes(const struct model_config *config, int beyond_windows)
{
    return type_token_bytes(config, MODEL_LAYER_GLOBAL) + (beyond_windows ? 0 : type_token_bytes(config, MODEL_LAYER_LOCAL));
}

void kv_page_bytes(const struct model_config *config, size_t out[BACKEND_GROUPS_MAX])
{
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++)
        out[type] = (size_t)(BACKEND_PAGE_TOKENS * type_token_bytes(config, (enum model_layer_type)type));
}
