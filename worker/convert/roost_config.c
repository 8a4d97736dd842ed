#include "worker/convert/roost_config.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *layer_type_name(enum model_layer_type type)
{
    return type == MODEL_LAYER_LOCAL ? "sliding_attention" : "full_attention";
}

static void write_string(FILE *out, const char *key, const char *value)
{
    fprintf(out, "  \"%s\": \"", key);
    for (const char *at = value; *at; at++)                /* printable ASCII, by model_config_parse's rule */
        fprintf(out, *at == '"' || *at == '\\' ? "\\%c" : "%c", *at);
    fputs("\",\n", out);
}

static void write_uint(FILE *out, const char *key, uint32_t value)
{
    fprintf(out, "  \"%s\": %u,\n", key, value);
}

static void write_bool(FILE *out, const char *key, bool value)
{
    fprintf(out, "  \"%s\": %s,\n", key, value ? "true" : "false");
}

static void write_double(FILE *out, const char *key, double value)
{
    char text[40];
    for (int digits = 7; digits <= 17; digits++) {         /* as few digits as give the number back */
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    fprintf(out, "  \"%s\": %s%s,\n", key, text, strpbrk(text, ".e") ? "" : ".0");
}

static void write_float(FILE *out, const char *key, float value)
{
    char text[40];
    for (int digits = 7; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if ((float)strtod(text, NULL) == value)
            break;
    }
    fprintf(out, "  \"%s\": %s%s,\n", key, text, strpbrk(text, ".e") ? "" : ".0");
}

static void write_shape(FILE *out, const struct model_config *config)
{
    const struct model_attention *local = &config->attention[MODEL_LAYER_LOCAL], *global = &config->attention[MODEL_LAYER_GLOBAL];
    write_uint(out, "vocab_size", config->vocab_size);
    write_uint(out, "hidden_size", config->hidden_size);
    bool equal = true;
    for (uint32_t i = 1; i < config->layer_count; i++)
        equal = equal && config->intermediate_size[i] == config->intermediate_size[0];
    if (equal) {
        write_uint(out, "intermediate_size", config->intermediate_size[0]);
    } else {
        fputs("  \"intermediate_size\": [", out);
        for (uint32_t i = 0; i < config->layer_count; i++)
            fprintf(out, "%s%u", i ? ", " : "", config->intermediate_size[i]);
        fputs("],\n", out);
    }
    write_uint(out, "num_hidden_layers", config->layer_count);
    write_uint(out, "num_attention_heads", config->head_count);
    write_uint(out, "num_key_value_heads", local->kv_head_count);
    if (global->kv_head_count != local->kv_head_count)
        write_uint(out, "global_num_key_value_heads", global->kv_head_count);
    write_uint(out, "head_dim", local->head_dim);
    if (global->head_dim != local->head_dim)
        write_uint(out, "global_head_dim", global->head_dim);
    write_uint(out, "max_position_embeddings", config->context_tokens_max);
    if (local->window)
        write_uint(out, "sliding_window", local->window);
    if (local->sinks)
        write_uint(out, "attention_sinks", local->sinks);
    if (config->per_layer_input)
        write_uint(out, "hidden_size_per_layer_input", config->per_layer_input);
}

static void write_rope(FILE *out, const char *name, const char *base_key, const struct model_attention *attention)
{
    char key[32];
    write_double(out, base_key, attention->rope_base);
    if (attention->rope_scale != 1) {
        snprintf(key, sizeof key, "rope_%s_scale", name);
        write_double(out, key, attention->rope_scale);
    }
    if (attention->rope_pairs != attention->head_dim / 2) {
        snprintf(key, sizeof key, "rope_%s_pairs", name);
        write_uint(out, key, attention->rope_pairs);
    }
}

static void write_numbers(FILE *out, const struct model_config *config)
{
    write_string(out, "hidden_activation", config->activation == MODEL_ACTIVATION_SILU ? "silu" : "gelu_pytorch_tanh");
    write_string(out, "norm_placement", config->sandwich_norm ? "sandwich" : "pre");
    write_bool(out, "qk_norm", config->qk_norm);
    write_bool(out, "v_norm", config->v_norm);
    write_float(out, "rms_norm_eps", config->norm_epsilon);
    write_float(out, "attention_scale", config->attention_scale);
    write_float(out, "embedding_scale", config->embedding_scale);
    if (config->logit_cap > 0)
        write_float(out, "final_logit_softcapping", config->logit_cap);
    write_rope(out, "global", "rope_theta", &config->attention[MODEL_LAYER_GLOBAL]);
    write_rope(out, "local", "rope_local_base_freq", &config->attention[MODEL_LAYER_LOCAL]);
}

static void write_layers(FILE *out, const struct model_config *config)
{
    fputs("  \"layer_types\": [", out);
    for (uint32_t i = 0; i < config->layer_count; i++)
        fprintf(out, "%s\n    \"%s\"", i ? "," : "", layer_type_name(config->layer_types[i]));
    fputs("\n  ],\n  \"kv_producer\": [", out);
    for (uint32_t i = 0; i < config->layer_count; i++)
        fprintf(out, "%s%u", i ? ", " : "", config->kv_producer[i]);
    fputs("],\n", out);
}

static void write_ids(FILE *out, const struct model_config *config)
{
    static const char *const templates[] = { "speaker", "gemma", "gemma4" };
    write_string(out, "chat_template", templates[config->chat_template]);
    write_uint(out, "bos_token_id", config->bos_id);
    if (config->end_id_count == 1) {
        write_uint(out, "eos_token_id", config->end_ids[0]);
    } else {
        fputs("  \"eos_token_id\": [", out);
        for (uint32_t i = 0; i < config->end_id_count; i++)
            fprintf(out, "%s%u", i ? ", " : "", config->end_ids[i]);
        fputs("],\n", out);
    }
    write_uint(out, "turn_token_id", config->turn_id);
    write_uint(out, "text_token_id", config->text_id);
}

enum status roost_config_write(const struct model_config *config, char **text, size_t *size)
{
    char *buffer = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&buffer, &length);
    if (!out)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for config.json");
    fputs("{\n  \"architectures\": [\"RoostForCausalLM\"],\n", out);
    write_string(out, "model_type", "roost");
    write_string(out, "name", config->name);
    write_string(out, "family", config->family);
    write_shape(out, config);
    write_numbers(out, config);
    write_layers(out, config);
    write_ids(out, config);
    fputs("  \"tie_word_embeddings\": true\n}\n", out);
    const int bad = ferror(out);
    if (fclose(out) != 0 || bad) {
        free(buffer);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for config.json");
    }
    *text = buffer;
    *size = length;
    return STATUS_OK;
}

void roost_config_set_slots(struct model_config *config)
{
    memset(config->producer_count, 0, sizeof config->producer_count);
    for (uint32_t i = 0; i < config->layer_count; i++)
        if (config->kv_producer[i] == i) {
            config->producer_slot[i] = config->producer_count[config->layer_types[i]]++;
            config->last_producer = (uint16_t)i;
        }
}

enum status roost_config_check(const struct model_config *config)
{
    const struct {
        const char *key;
        uint64_t value, min, max;
    } sizes[] = {
        { "vocab_size", config->vocab_size, 8, MODEL_VOCAB_MAX },
        { "hidden_size", config->hidden_size, 1, MODEL_WIDTH_MAX },
        { "num_hidden_layers", config->layer_count, 1, MODEL_LAYERS_MAX },
        { "num_attention_heads", config->head_count, 1, MODEL_HEADS_MAX },
        { "max_position_embeddings", config->context_tokens_max, 2, MODEL_CONTEXT_MAX },
        { "hidden_size_per_layer_input times layers", (uint64_t)config->per_layer_input * config->layer_count, 0, MODEL_WIDTH_MAX },
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].value < sizes[i].min || sizes[i].value > sizes[i].max)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s is %llu, the engine takes %llu to %llu", sizes[i].key,
                               (unsigned long long)sizes[i].value, (unsigned long long)sizes[i].min, (unsigned long long)sizes[i].max);
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        const struct model_attention *attention = &config->attention[type];
        if (attention->head_dim < 2 || attention->head_dim > MODEL_HEAD_DIM_MAX || attention->head_dim % 2 != 0)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "head_dim %u: the engine takes even numbers from 2 to %u", attention->head_dim,
                               MODEL_HEAD_DIM_MAX);
        if (attention->kv_head_count == 0 || config->head_count % attention->kv_head_count != 0)
            return STATUS_FAIL(STATUS_INVALID, "num_attention_heads %u is not a multiple of num_key_value_heads %u", config->head_count,
                               attention->kv_head_count);
        if ((uint64_t)config->head_count * attention->head_dim > MODEL_WIDTH_MAX)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%u heads of %u are over %u", config->head_count, attention->head_dim, MODEL_WIDTH_MAX);
    }
    for (uint32_t i = 0; i < config->layer_count; i++)
        if (config->intermediate_size[i] < 1 || config->intermediate_size[i] > MODEL_WIDTH_MAX)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "intermediate_size %u of layer %u: the engine takes 1 to %u",
                               config->intermediate_size[i], i, MODEL_WIDTH_MAX);
    return STATUS_OK;
}
