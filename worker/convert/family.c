#include "worker/convert/family.h"
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/convert/input_file.h"
#include "worker/convert/roost_config.h"

const char *const family_text_prefixes[] = { "model.language_model.", "language_model.model.", "model.", NULL };
const char *const family_other_prefixes[] = {
    "vision_tower.", "multi_modal_projector.", "audio_tower.", "embed_vision.", "embed_audio.", "model.vision_tower.",
    "model.multi_modal_projector.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.", NULL,
};

/* Keys that say nothing about the text model's forward pass. */
static const char *const harmless_keys[] = {
    "_name_or_path", "architectures", "attention_dropout", "audio_config", "audio_token_id", "boa_token_id", "boi_token_id",
    "boi_token_index", "cache_implementation", "dtype", "eoa_token_id", "eoa_token_index", "eoi_token_id", "eoi_token_index",
    "image_token_id", "image_token_index", "initializer_range", "mm_tokens_per_image", "model_type", "pad_token_id", "torch_dtype",
    "transformers_version", "use_cache", "video_token_id", "vision_config", "vision_soft_tokens_per_image", NULL,
};

struct reader {                        /* one JSON object; notes the keys that were used, so that the rest can be refused */
    const char *path;
    const json_t *object;
    const char *seen[96];
    unsigned seen_count;
};

static const json_t *get(struct reader *reader, const char *key)
{
    const json_t *value = json_object_get(reader->object, key);
    if (value && reader->seen_count < sizeof reader->seen / sizeof reader->seen[0])
        reader->seen[reader->seen_count++] = key;
    return json_is_null(value) ? NULL : value;           /* null is the same as absent */
}

static enum status read_uint(struct reader *reader, const char *key, uint32_t fallback, uint32_t *out)
{
    const json_t *value = get(reader, key);
    *out = fallback;
    if (!value)
        return STATUS_OK;
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || number > (json_int_t)INT32_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: want an integer from 0 to %d", reader->path, key, INT32_MAX);
    *out = (uint32_t)number;
    return STATUS_OK;
}

static enum status read_number(struct reader *reader, const char *key, double fallback, double *out)
{
    const json_t *value = get(reader, key);
    *out = fallback;
    if (!value)
        return STATUS_OK;
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number > 0 && number <= 1e12))
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: want a number above 0 up to 1e12", reader->path, key);
    *out = number;
    return STATUS_OK;
}

static enum status read_bool(struct reader *reader, const char *key, bool fallback, bool *out)
{
    const json_t *value = get(reader, key);
    *out = fallback;
    if (!value)
        return STATUS_OK;
    if (!json_is_boolean(value))
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: want true or false", reader->path, key);
    *out = json_is_true(value);
    return STATUS_OK;
}

/* Anything but null and false is refused, for the reason given. */
static enum status refuse_set(struct reader *reader, const char *key, const char *reason)
{
    const json_t *value = get(reader, key);
    if (!value || json_is_false(value))
        return STATUS_OK;
    return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: %s is set: %s", reader->path, key, reason);
}

static enum status refuse_unknown_keys(const struct reader *reader, const char *const *ignored, unsigned ignored_count)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)reader->object, key, value) {
        bool known = json_is_null(value) || json_is_false(value);
        for (unsigned i = 0; i < reader->seen_count && !known; i++)
            known = strcmp(key, reader->seen[i]) == 0;
        for (unsigned i = 0; harmless_keys[i] && !known; i++)
            known = strcmp(key, harmless_keys[i]) == 0;
        for (unsigned i = 0; i < ignored_count && !known; i++)
            known = strcmp(key, ignored[i]) == 0;
        if (!known)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: %.64s is not known and may change what the model computes; if it does not, "
                               "say --ignore-key %.64s", reader->path, key, key);
    }
    return STATUS_OK;
}

/* ---- layers ---- */

static enum status read_layer_types(struct reader *reader, struct model_config *config)
{
    const json_t *list = get(reader, "layer_types");
    uint32_t pattern, other;
    TRY(read_uint(reader, "_sliding_window_pattern", 6, &other));
    TRY(read_uint(reader, "sliding_window_pattern", other, &pattern));
    if (pattern == 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: sliding_window_pattern is 0", reader->path);
    if (list && (!json_is_array(list) || json_array_size(list) != config->layer_count))
        return STATUS_FAIL(STATUS_INVALID, "%s: layer_types: want a list of %u names", reader->path, config->layer_count);
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const char *type = list ? json_string_value(json_array_get(list, i)) : (i + 1) % pattern ? "sliding_attention" : "full_attention";
        if (type && strcmp(type, "full_attention") == 0)
            config->layer_types[i] = MODEL_LAYER_GLOBAL;
        else if (type && strcmp(type, "sliding_attention") == 0)
            config->layer_types[i] = MODEL_LAYER_LOCAL;
        else
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: layer_types[%u] \"%.64s\" is not built, only full_attention and sliding_attention",
                               reader->path, i, type ? type : "(not a string)");
    }
    return STATUS_OK;
}

/* Each layer has its own K and V, except the last `shared` ones, which read those of the last layer of their type before them. */
static enum status set_producers(const struct reader *reader, struct model_config *config, uint32_t shared)
{
    if (shared >= config->layer_count)
        return STATUS_FAIL(STATUS_INVALID, "%s: num_kv_shared_layers %u of %u layers: none is left to produce", reader->path, shared,
                           config->layer_count);
    const uint32_t first_shared = config->layer_count - shared;
    int last[MODEL_LAYER_TYPES] = { -1, -1 };
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const enum model_layer_type type = config->layer_types[i];
        if (i < first_shared)
            last[type] = (int)i;
        if (last[type] < 0)
            return STATUS_FAIL(STATUS_INVALID, "%s: layer %u shares K and V, but no earlier layer of its type has its own", reader->path, i);
        config->kv_producer[i] = (uint16_t)(i < first_shared ? i : (uint32_t)last[type]);
    }
    roost_config_set_slots(config);
    return STATUS_OK;
}

/* ---- rotary positions ---- */

static enum status read_rope(const char *path, const json_t *object, double base, bool partial_only_proportional,
                             struct model_attention *attention)
{
    struct reader reader = { .path = path, .object = object };
    const json_t *type_value = get(&reader, "rope_type");
    double factor, proportion;
    if (!type_value)
        type_value = get(&reader, "type");
    const char *type = type_value ? json_string_value(type_value) : "default";
    TRY(read_number(&reader, "rope_theta", base, &attention->rope_base));
    TRY(read_number(&reader, "factor", 1, &factor));
    TRY(read_number(&reader, "partial_rotary_factor", 1, &proportion));
    attention->rope_scale = 1;
    attention->rope_pairs = attention->head_dim / 2;
    if (type && strcmp(type, "default") == 0) {
        if (factor != 1)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: rope_type default with a factor", path);
    } else if (type && (strcmp(type, "linear") == 0 || strcmp(type, "proportional") == 0)) {
        attention->rope_scale = factor;
    } else {
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: rope_type \"%.32s\" is not built, only default, linear and proportional", path,
                           type ? type : "(not a string)");
    }
    if (proportion != 1) {
        if (!partial_only_proportional || strcmp(type, "proportional") != 0 || proportion > 1)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: partial_rotary_factor %g with rope_type %.32s is not built", path, proportion, type);
        attention->rope_pairs = (uint32_t)(proportion * attention->head_dim / 2);
        if (attention->rope_pairs == 0)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: partial_rotary_factor %g leaves no pair to turn", path, proportion);
    }
    return refuse_unknown_keys(&reader, NULL, 0);
}

static enum status read_ropes(struct reader *reader, bool gemma4, struct model_config *config)
{
    struct model_attention *local = &config->attention[MODEL_LAYER_LOCAL], *global = &config->attention[MODEL_LAYER_GLOBAL];
    const json_t *both = get(reader, "rope_parameters"), *scaling = get(reader, "rope_scaling");
    const json_t *local_rope = json_object_get(both, "sliding_attention"), *global_rope = json_object_get(both, "full_attention");
    double local_base, global_base;
    TRY(read_number(reader, "rope_local_base_freq", 1e4, &local_base));
    TRY(read_number(reader, "rope_theta", 1e6, &global_base));
    if (both && (!json_is_object(local_rope) || !json_is_object(global_rope) || json_object_size(both) != 2))
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: rope_parameters: want an object for full_attention and one for sliding_attention",
                           reader->path);
    if (gemma4 && (scaling || json_object_get(reader->object, "rope_theta")))
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: rope_scaling and rope_theta are not keys of Gemma 4; want rope_parameters", reader->path);
    json_t *none = json_object(), *quarter = json_pack("{s:s,s:f}", "rope_type", "proportional", "partial_rotary_factor", 0.25);
    enum status st = none && quarter ? STATUS_OK : STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory", reader->path);
    if (st == STATUS_OK)
        st = read_rope(reader->path, local_rope ? local_rope : none, local_base, gemma4, local);
    if (st == STATUS_OK)
        st = read_rope(reader->path, global_rope ? global_rope : scaling ? scaling : gemma4 ? quarter : none, global_base, gemma4, global);
    json_decref(none);
    json_decref(quarter);
    return st;
}

/* ---- what both Gemmas have ---- */

struct defaults {
    uint32_t vocab_size, hidden_size, intermediate_size, layers, window;
};

static enum status read_ids(struct reader *reader, const json_t *ends, struct model_config *config)
{
    TRY(read_uint(reader, "bos_token_id", 2, &config->bos_id));
    config->end_id_count = 0;
    const size_t count = json_is_array(ends) ? json_array_size(ends) : 1;
    for (size_t i = 0; ends && i < count; i++) {
        const json_t *value = json_is_array(ends) ? json_array_get(ends, i) : ends;
        if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= (json_int_t)config->vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "%s: eos_token_id: want ids of the vocabulary", reader->path);
        if (config->end_id_count == MODEL_END_IDS_MAX)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: eos_token_id: over %u ids", reader->path, MODEL_END_IDS_MAX);
        config->end_ids[config->end_id_count++] = (uint32_t)json_integer_value(value);
    }
    if (config->end_id_count == 0)
        config->end_ids[config->end_id_count++] = 1;
    return STATUS_OK;
}

static enum status read_activation(struct reader *reader, struct model_config *config)
{
    const json_t *value = get(reader, "hidden_activation");
    const char *word = value ? json_string_value(value) : "gelu_pytorch_tanh";
    if (word && strcmp(word, "gelu_pytorch_tanh") == 0)
        config->activation = MODEL_ACTIVATION_GELU_TANH;
    else if (word && strcmp(word, "silu") == 0)
        config->activation = MODEL_ACTIVATION_SILU;
    else
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: hidden_activation \"%.64s\" is not built, only gelu_pytorch_tanh and silu", reader->path,
                           word ? word : "(not a string)");
    return STATUS_OK;
}

static enum status read_common(struct reader *reader, const struct defaults *defaults, const json_t *ends, struct model_config *config)
{
    double epsilon, cap;
    bool tied;                         /* of the text part; the whole model's rules */
    uint32_t inner, kv_heads, head_dim, window;
    struct model_attention *local = &config->attention[MODEL_LAYER_LOCAL], *global = &config->attention[MODEL_LAYER_GLOBAL];
    TRY(read_uint(reader, "vocab_size", defaults->vocab_size, &config->vocab_size));
    TRY(read_uint(reader, "hidden_size", defaults->hidden_size, &config->hidden_size));
    TRY(read_uint(reader, "intermediate_size", defaults->intermediate_size, &inner));
    TRY(read_uint(reader, "num_hidden_layers", defaults->layers, &config->layer_count));
    TRY(read_uint(reader, "num_attention_heads", 8, &config->head_count));
    TRY(read_uint(reader, "num_key_value_heads", 4, &kv_heads));
    TRY(read_uint(reader, "head_dim", 256, &head_dim));
    TRY(read_uint(reader, "max_position_embeddings", 131072, &config->context_tokens_max));
    TRY(read_uint(reader, "sliding_window", defaults->window, &window));
    TRY(read_number(reader, "rms_norm_eps", 1e-6, &epsilon));
    TRY(read_number(reader, "final_logit_softcapping", 0, &cap));
    TRY(read_bool(reader, "tie_word_embeddings", true, &tied));
    TRY(refuse_set(reader, "attention_bias", "biases in attention are not built"));
    TRY(refuse_set(reader, "attn_logit_softcapping", "soft-capped attention scores are not built"));
    TRY(refuse_set(reader, "quantization_config", "an already quantised checkpoint; convert the original in bfloat16 or float32"));
    TRY(read_activation(reader, config));
    if (config->layer_count < 1 || config->layer_count > MODEL_LAYERS_MAX)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: num_hidden_layers %u, want 1 to %u", reader->path, config->layer_count, MODEL_LAYERS_MAX);
    for (uint32_t i = 0; i < config->layer_count; i++)
        config->intermediate_size[i] = inner;
    *local = (struct model_attention){ .kv_head_count = kv_heads, .head_dim = head_dim, .window = window };
    *global = (struct model_attention){ .kv_head_count = kv_heads, .head_dim = head_dim };
    config->norm_epsilon = (float)epsilon;
    config->logit_cap = (float)cap;
    config->embedding_scale = (float)sqrt(config->hidden_size);
    config->qk_norm = true;
    config->sandwich_norm = true;
    TRY(read_layer_types(reader, config));
    return read_ids(reader, ends, config);
}

static enum status check_window(const struct reader *reader, const struct model_config *config)
{
    bool local = false;
    for (uint32_t i = 0; i < config->layer_count; i++)
        local = local || config->layer_types[i] == MODEL_LAYER_LOCAL;
    const uint32_t window = config->attention[MODEL_LAYER_LOCAL].window;
    if (local && (window < 1 || window > MODEL_CONTEXT_MAX))
        return STATUS_FAIL(STATUS_INVALID, "%s: sliding_window %u, want 1 to %u", reader->path, window, MODEL_CONTEXT_MAX);
    return STATUS_OK;
}

/* ---- Gemma 3 ---- */

static enum status read_gemma3(struct reader *reader, const json_t *ends, struct family_config *out)
{
    static const struct defaults defaults = { 262208, 2304, 9216, 26, 4096 };
    struct model_config *config = &out->config;
    double scalar;
    TRY(read_common(reader, &defaults, ends, config));
    TRY(refuse_set(reader, "use_bidirectional_attention", "attention that sees later tokens cannot be cached"));
    TRY(read_number(reader, "query_pre_attn_scalar", 256, &scalar));
    config->attention_scale = (float)(1 / sqrt(scalar));
    TRY(read_ropes(reader, false, config));
    TRY(set_producers(reader, config, 0));
    config->chat_template = MODEL_TEMPLATE_GEMMA;
    strcpy(config->family, "gemma3");
    out->norm_plus_one = true;
    out->opening = "<start_of_turn>";
    out->closing = "<end_of_turn>";
    return check_window(reader, config);
}

/* ---- Gemma 4 ---- */

/* per_layer_config: {"4": {"head_dim": 512}, ...}, the layers that differ; here all layers of a type must be alike. */
static enum status read_per_layer_config(struct reader *reader, const json_t *layers, struct model_config *config)
{
    bool seen[MODEL_LAYER_TYPES] = { false };
    for (uint32_t i = 0; i < config->layer_count; i++) {
        struct model_attention *attention = &config->attention[config->layer_types[i]];
        uint32_t head_dim, kv_heads;
        char key[16];
        snprintf(key, sizeof key, "%u", i);
        struct reader entry = { .path = reader->path, .object = json_object_get(layers, key) };
        TRY(read_uint(&entry, "head_dim", config->attention[MODEL_LAYER_LOCAL].head_dim, &head_dim));
        TRY(read_uint(&entry, "num_key_value_heads", config->attention[MODEL_LAYER_LOCAL].kv_head_count, &kv_heads));
        if (entry.object)
            TRY(refuse_unknown_keys(&entry, NULL, 0));
        const bool local = config->layer_types[i] == MODEL_LAYER_LOCAL;
        if ((seen[config->layer_types[i]] || local) && (head_dim != attention->head_dim || kv_heads != attention->kv_head_count))
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: per_layer_config: layer %u differs from others of its type", reader->path, i);
        attention->head_dim = head_dim;
        attention->kv_head_count = kv_heads;
        seen[config->layer_types[i]] = true;
    }
    return STATUS_OK;
}

static enum status read_gemma4_attention(struct reader *reader, struct model_config *config)
{
    struct model_attention *global = &config->attention[MODEL_LAYER_GLOBAL];
    bool k_is_v;
    const json_t *bidirectional = get(reader, "use_bidirectional_attention"), *per_layer = get(reader, "per_layer_config");
    const char *word = json_string_value(bidirectional);
    if (bidirectional && !json_is_false(bidirectional) && !(word && strcmp(word, "vision") == 0))   /* "vision": image tokens only */
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: use_bidirectional_attention is set: attention that sees later tokens cannot be cached",
                           reader->path);
    TRY(read_bool(reader, "attention_k_eq_v", false, &k_is_v));
    if (k_is_v)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: attention_k_eq_v: global layers whose V is their K (the 31B) are not built",
                           reader->path);
    (void)get(reader, "num_global_key_value_heads");      /* has an effect with attention_k_eq_v only */
    TRY(read_uint(reader, "global_head_dim", per_layer ? global->head_dim : 512, &global->head_dim));
    if (per_layer)
        TRY(read_per_layer_config(reader, per_layer, config));
    return STATUS_OK;
}

static enum status read_gemma4(struct reader *reader, const json_t *ends, struct family_config *out)
{
    static const struct defaults defaults = { 262144, 2304, 9216, 30, 512 };
    struct model_config *config = &out->config;
    uint32_t shared, per_layer_vocab;
    bool moe, double_wide;
    TRY(read_bool(reader, "enable_moe_block", false, &moe));
    if (moe)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: enable_moe_block: mixtures of experts (the 26B-A4B) are not built", reader->path);
    (void)get(reader, "num_experts");                     /* without enable_moe_block these have no effect */
    (void)get(reader, "top_k_experts");
    (void)get(reader, "moe_intermediate_size");
    TRY(read_common(reader, &defaults, ends, config));
    config->layer_types[config->layer_count - 1] = MODEL_LAYER_GLOBAL;   /* transformers' rule, whatever the list says */
    TRY(read_gemma4_attention(reader, config));
    config->attention_scale = 1;
    config->v_norm = true;
    TRY(read_ropes(reader, true, config));
    TRY(read_uint(reader, "num_kv_shared_layers", 0, &shared));
    TRY(set_producers(reader, config, shared));
    TRY(read_bool(reader, "use_double_wide_mlp", false, &double_wide));
    for (uint32_t i = 0; double_wide && i < config->layer_count; i++)
        if (config->kv_producer[i] != i)
            config->intermediate_size[i] *= 2;
    TRY(read_uint(reader, "hidden_size_per_layer_input", 256, &config->per_layer_input));
    TRY(read_uint(reader, "vocab_size_per_layer_input", 262144, &per_layer_vocab));
    if (config->per_layer_input && per_layer_vocab != config->vocab_size)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: vocab_size_per_layer_input %u differs from vocab_size %u", reader->path, per_layer_vocab,
                           config->vocab_size);
    config->chat_template = MODEL_TEMPLATE_GEMMA4;
    strcpy(config->family, "gemma4");
    out->opening = "<|turn>";
    out->closing = "<turn|>";
    return check_window(reader, config);
}

/* ---- the choice ---- */

static const struct {
    const char *architecture;
    enum family family;
    bool text_config;                  /* the text model is described in an object of its own */
} architectures[] = {
    { "RoostForCausalLM", FAMILY_ROOST, false },
    { "Gemma3ForCausalLM", FAMILY_GEMMA3, false },
    { "Gemma3ForConditionalGeneration", FAMILY_GEMMA3, true },
    { "Gemma4ForCausalLM", FAMILY_GEMMA4, false },
    { "Gemma4ForConditionalGeneration", FAMILY_GEMMA4, true },
};
#define ARCHITECTURES (sizeof architectures / sizeof architectures[0])

static enum status find_architecture(const char *path, const json_t *root, size_t *out)
{
    const json_t *list = json_object_get(root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name || json_array_size(list) != 1)
        return STATUS_FAIL(STATUS_INVALID, "%s: architectures: want a list of one name", path);
    for (*out = 0; *out < ARCHITECTURES; (*out)++)
        if (strcmp(name, architectures[*out].architecture) == 0)
            return STATUS_OK;
    return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: architecture %.64s is not built; built are Gemma 3 and Gemma 4 (E2B, E4B) text and roost's own",
                       path, name);
}

/* The folder's name, with other characters than letters, digits, '.', '_' and '-' replaced: model_config.h wants printable ASCII. */
static void set_name(const char *path, char *name, size_t size)
{
    char copy[PATH_MAX], resolved[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", realpath(path, resolved) ? resolved : path);
    const char *folder = basename(dirname(copy));
    size_t i = 0;
    for (; folder[i] && i + 1 < size; i++) {
        const char c = folder[i];
        const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || strchr("._-", c);
        name[i] = plain ? c : '-';
    }
    name[i] = '\0';
    if (i == 0 || name[0] == '.')
        snprintf(name, size, "model");
}

static enum status read_gemma(const char *path, const json_t *root, const json_t *ends, size_t which, const char *const *ignored,
                              unsigned ignored_count, struct family_config *out)
{
    struct reader top = { .path = path, .object = root };
    struct reader text = top;
    TRY(read_bool(&top, "tie_word_embeddings", true, &out->tied));
    if (architectures[which].text_config) {
        text.object = get(&top, "text_config");
        if (!json_is_object(text.object))
            return STATUS_FAIL(STATUS_INVALID, "%s: text_config is missing", path);
        (void)get(&top, "bos_token_id");
        if (!ends)
            ends = get(&top, "eos_token_id");
        (void)get(&top, "eos_token_id");
        TRY(refuse_set(&top, "quantization_config", "an already quantised checkpoint; convert the original in bfloat16 or float32"));
        TRY(refuse_unknown_keys(&top, ignored, ignored_count));
    }
    const json_t *own_ends = get(&text, "eos_token_id");
    if (!ends)
        ends = own_ends;
    out->family = architectures[which].family;
    if (out->family == FAMILY_GEMMA3)
        TRY(read_gemma3(&text, ends, out));
    else
        TRY(read_gemma4(&text, ends, out));
    TRY(refuse_unknown_keys(&text, ignored, ignored_count));
    set_name(path, out->config.name, sizeof out->config.name);
    return roost_config_check(&out->config);
}

static enum status read_roost(const char *path, struct family_config *out)
{
    char copy[PATH_MAX], *text;
    size_t size;
    snprintf(copy, sizeof copy, "%s", path);
    TRY(input_file_read(path, MODEL_CONFIG_BYTES_MAX, &text, &size));
    enum status st = model_config_parse(dirname(copy), text, size, &out->config);
    free(text);
    out->family = FAMILY_ROOST;
    out->tied = true;                  /* model_config_parse wants it */
    if (st == STATUS_OK && out->config.family[0] == '\0')
        strcpy(out->config.family, "roost");
    return st;
}

static enum status read_root(const char *path, const json_t *generation, const char *const *ignored, unsigned ignored_count,
                             struct family_config *out)
{
    json_t *root;
    size_t which;
    *out = (struct family_config){ 0 };
    TRY(input_file_read_json(path, &root));
    enum status st = find_architecture(path, root, &which);
    if (st == STATUS_OK && architectures[which].family == FAMILY_ROOST)
        st = read_roost(path, out);
    else if (st == STATUS_OK)
        st = read_gemma(path, root, json_object_get(generation, "eos_token_id"), which, ignored, ignored_count, out);
    json_decref(root);
    return st;
}

enum status family_read_file(const char *path, const char *const *ignored_keys, unsigned ignored_key_count, struct family_config *out)
{
    return read_root(path, NULL, ignored_keys, ignored_key_count, out);
}

enum status family_read(const char *dir, const char *const *ignored_keys, unsigned ignored_key_count, struct family_config *out)
{
    char path[PATH_MAX], generation_path[PATH_MAX];
    json_t *generation = NULL;
    TRY(input_file_path(dir, "config.json", path));
    TRY(input_file_path(dir, "generation_config.json", generation_path));
    enum status st = input_file_read_json(generation_path, &generation);
    if (st != STATUS_OK && st != STATUS_NOT_FOUND)
        return st;
    st = read_root(path, generation, ignored_keys, ignored_key_count, out);
    json_decref(generation);
    return st;
}

enum family family_origin(const struct family_config *family)
{
    if (strcmp(family->config.family, "gemma3") == 0)
        return FAMILY_GEMMA3;
    return strcmp(family->config.family, "gemma4") == 0 ? FAMILY_GEMMA4 : family->family;
}
