#include "worker/engine/model/model_config.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROPE_BASE_MAX 1e12
#define ROPE_SCALE_MAX 1e6
#define SCALE_MAX 1e6                       /* of embedding_scale and final_logit_softcapping */
#define SINKS_MAX 1024u                     /* kept for ever beside the window; four are usual */
#define PER_LAYER_WIDTHS_MAX (1u << 24)     /* layers times hidden_size_per_layer_input */

/* Keys of Hugging Face configurations that say nothing about the forward pass. */
static const char *const ignored_keys[] = {"torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range",
                                           "attention_dropout", "_name_or_path", "pad_token_id"};

struct reader {               /* one config.json; marks the keys that were used, so that the rest can be refused */
    const char *path;         /* of the file, for messages */
    json_t *root;
    unsigned seen_count;
    const char *seen[64];
};

enum status model_file_read(const char *path, size_t size_max, char **text, size_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        if (errno == ELOOP)
            return STATUS_FAIL(STATUS_INVALID, "%s: a symbolic link, want a regular file", path);
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: %s", path, strerror(errno));
    }
    enum status st = STATUS_OK;
    char *buffer = NULL;
    size_t have = 0;
    struct stat info;
    if (fstat(fd, &info) != 0) {
        st = STATUS_FAIL(STATUS_IO, "%s: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        st = STATUS_FAIL(STATUS_INVALID, "%s: not a regular file", path);
        goto done;
    }
    if ((unsigned long long)info.st_size > size_max) {
        st = STATUS_FAIL(STATUS_LIMIT, "%s: %lld bytes, at most %zu are allowed", path, (long long)info.st_size, size_max);
        goto done;
    }
    size_t want = (size_t)info.st_size;
    buffer = malloc(want + 1);
    if (!buffer) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %zu bytes", path, want);
        goto done;
    }
    while (have < want) {
        ssize_t got = read(fd, buffer + have, want - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            st = STATUS_FAIL(STATUS_IO, "%s: %s", path, got < 0 ? strerror(errno) : "became shorter while being read");
            goto done;
        }
        have += (size_t)got;
    }
    buffer[have] = '\0';
    *text = buffer;
    *size = have;
    buffer = NULL;
done:
    free(buffer);
    (void)close(fd);
    return st;
}

static const json_t *get(struct reader *reader, const char *key)
{
    const json_t *value = json_object_get(reader->root, key);
    if (value && reader->seen_count < sizeof reader->seen / sizeof *reader->seen)
        reader->seen[reader->seen_count++] = key;
    return value;
}

static enum status get_required(struct reader *reader, const char *key, const json_t **out)
{
    *out = get(reader, key);
    return *out ? STATUS_OK : STATUS_FAIL(STATUS_INVALID, "%s: %s is missing", reader->path, key);
}

static enum status read_uint(struct reader *reader, const char *key, uint32_t min, uint32_t max, uint32_t *out)
{
    const json_t *value;
    TRY(get_required(reader, key, &value));
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < (json_int_t)min || number > (json_int_t)max)
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: want an integer from %u to %u", reader->path, key, min, max);
    *out = (uint32_t)number;
    return STATUS_OK;
}

/* Absent keys leave *out as it is. The range is (above, max]. */
static enum status read_number(struct reader *reader, const char *key, double above, double max, double *out)
{
    const json_t *value = get(reader, key);
    if (!value)
        return STATUS_OK;
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number > above && number <= max))
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: want a number above %g up to %g", reader->path, key, above, max);
    *out = number;
    return STATUS_OK;
}

/* Absent keys leave *out as it is. */
static enum status read_uint_optional(struct reader *reader, const char *key, uint32_t min, uint32_t max, uint32_t *out)
{
    return json_object_get(reader->root, key) ? read_uint(reader, key, min, max, out) : STATUS_OK;
}

struct word {
    const char *name;
    int value;
};

/* One of the words; the first is also what an absent key means, unless it is required. */
static enum status read_word(struct reader *reader, const char *key, bool required, const struct word *words, int *out)
{
    *out = words[0].value;
    const json_t *value = get(reader, key);
    if (!value && !required)
        return STATUS_OK;
    if (!value)
        return STATUS_FAIL(STATUS_INVALID, "%s: %s is missing", reader->path, key);
    const char *text = json_string_value(value);
    if (!text)
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: want a string", reader->path, key);
    char known[96] = "";
    for (size_t at = 0; words->name; words++) {
        if (strcmp(text, words->name) == 0) {
            *out = words->value;
            return STATUS_OK;
        }
        at += (size_t)snprintf(known + at, sizeof known - at, "%s\"%s\"", at ? ", " : "", words->name);
    }
    return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: %s \"%.64s\" is not supported, only %s", reader->path, key, text, known);
}

static enum status read_bool(struct reader *reader, const char *key, bool *out)
{
    const json_t *value = get(reader, key);
    if (!value)
        return STATUS_OK;
    if (!json_is_boolean(value))
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: want true or false", reader->path, key);
    *out = json_is_true(value);
    return STATUS_OK;
}

static enum status read_architecture(struct reader *reader)
{
    const json_t *list;
    TRY(get_required(reader, "architectures", &list));
    const char *name = json_string_value(json_array_get(list, 0));
    if (json_array_size(list) != 1 || !name)
        return STATUS_FAIL(STATUS_INVALID, "%s: architectures: want a list of one name", reader->path);
    if (strcmp(name, "RoostForCausalLM") != 0)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: architecture %.64s is not supported, only RoostForCausalLM", reader->path, name);
    int ignored;
    TRY(read_word(reader, "model_type", true, (const struct word[]){{"roost", 0}, {0}}, &ignored));
    const json_t *tied;
    TRY(get_required(reader, "tie_word_embeddings", &tied));
    if (!json_is_boolean(tied))
        return STATUS_FAIL(STATUS_INVALID, "%s: tie_word_embeddings: want true or false", reader->path);
    if (!json_is_true(tied))
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: tie_word_embeddings false is not supported", reader->path);
    return STATUS_OK;
}

static enum status read_name(struct reader *reader, const char *dir, struct model_config *config)
{
    const json_t *value = get(reader, "name");
    const char *name = json_string_value(value);
    char copy[PATH_MAX];
    if (!value) {
        char *resolved = realpath(dir, copy);
        const char *slash = resolved ? strrchr(resolved, '/') : NULL;
        name = slash && slash[1] ? slash + 1 : "model";
    }
    if (!name)
        return STATUS_FAIL(STATUS_INVALID, "%s: name: want a string", reader->path);
    size_t size = strlen(name);
    if (size == 0 || size >= sizeof config->name)
        return STATUS_FAIL(STATUS_INVALID, "%s: name: want 1 to %zu bytes", reader->path, sizeof config->name - 1);
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)name[i] <= ' ' || (unsigned char)name[i] >= 0x7f)
            return STATUS_FAIL(STATUS_INVALID, "%s: name: only printable ASCII without spaces is allowed", reader->path);
    memcpy(config->name, name, size + 1);
    return STATUS_OK;
}

static enum status read_family(struct reader *reader, struct model_config *config)
{
    static const char *const names[] = {"roost", "gemma3", "gemma4"};
    int family;
    TRY(read_word(reader, "family", false, (const struct word[]){{names[0], 0}, {names[1], 1}, {names[2], 2}, {0}}, &family));
    snprintf(config->family, sizeof config->family, "%s", names[family]);
    return STATUS_OK;
}

static enum status check_heads(const struct reader *reader, const struct model_config *config, bool global)
{
    const struct model_attention *attention = &config->attention[global ? MODEL_LAYER_GLOBAL : MODEL_LAYER_LOCAL];
    const char *prefix = global ? "global_" : "";
    if (attention->head_dim % 2 != 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: %shead_dim %u is odd", reader->path, prefix, attention->head_dim);
    if (config->head_count % attention->kv_head_count != 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: num_attention_heads %u is not a multiple of %s %u", reader->path, config->head_count,
                           global ? "global_num_key_value_heads" : "num_key_value_heads", attention->kv_head_count);
    if (config->head_count * attention->head_dim > MODEL_WIDTH_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%s: num_attention_heads %u times %shead_dim %u is over %u", reader->path, config->head_count,
                           prefix, attention->head_dim, MODEL_WIDTH_MAX);
    return STATUS_OK;
}

static enum status read_sizes(struct reader *reader, struct model_config *config)
{
    struct model_attention *local = &config->attention[MODEL_LAYER_LOCAL], *global = &config->attention[MODEL_LAYER_GLOBAL];
    TRY(read_uint(reader, "vocab_size", 8, MODEL_VOCAB_MAX, &config->vocab_size));
    TRY(read_uint(reader, "hidden_size", 1, MODEL_WIDTH_MAX, &config->hidden_size));
    TRY(read_uint(reader, "num_hidden_layers", 1, MODEL_LAYERS_MAX, &config->layer_count));
    TRY(read_uint(reader, "num_attention_heads", 1, MODEL_HEADS_MAX, &config->head_count));
    TRY(read_uint(reader, "num_key_value_heads", 1, MODEL_HEADS_MAX, &local->kv_head_count));
    TRY(read_uint(reader, "head_dim", 2, MODEL_HEAD_DIM_MAX, &local->head_dim));
    TRY(read_uint(reader, "max_position_embeddings", 2, MODEL_CONTEXT_MAX, &config->context_tokens_max));
    *global = *local;
    TRY(read_uint_optional(reader, "global_num_key_value_heads", 1, MODEL_HEADS_MAX, &global->kv_head_count));
    TRY(read_uint_optional(reader, "global_head_dim", 2, MODEL_HEAD_DIM_MAX, &global->head_dim));
    TRY(check_heads(reader, config, false));
    TRY(check_heads(reader, config, true));
    TRY(read_uint_optional(reader, "hidden_size_per_layer_input", 0, MODEL_WIDTH_MAX, &config->per_layer_input));
    if (config->per_layer_input * config->layer_count > PER_LAYER_WIDTHS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%s: hidden_size_per_layer_input %u times %u layers is over %u", reader->path,
                           config->per_layer_input, config->layer_count, PER_LAYER_WIDTHS_MAX);
    return STATUS_OK;
}

static enum status read_intermediate(struct reader *reader, struct model_config *config)
{
    const json_t *value;
    TRY(get_required(reader, "intermediate_size", &value));
    if (json_is_array(value) && json_array_size(value) != config->layer_count)
        return STATUS_FAIL(STATUS_INVALID, "%s: intermediate_size: want a number or a list of %u", reader->path, config->layer_count);
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const json_t *one = json_is_array(value) ? json_array_get(value, i) : value;
        json_int_t width = json_integer_value(one);
        if (!json_is_integer(one) || width < 1 || width > (json_int_t)MODEL_WIDTH_MAX)
            return STATUS_FAIL(STATUS_INVALID, "%s: intermediate_size: want integers from 1 to %u", reader->path, MODEL_WIDTH_MAX);
        config->intermediate_size[i] = (uint32_t)width;
    }
    return STATUS_OK;
}

static enum status read_layers(struct reader *reader, struct model_config *config)
{
    struct model_attention *local = &config->attention[MODEL_LAYER_LOCAL];
    const json_t *types;
    TRY(get_required(reader, "layer_types", &types));
    if (!json_is_array(types) || json_array_size(types) != config->layer_count)
        return STATUS_FAIL(STATUS_INVALID, "%s: layer_types: want a list of %u names", reader->path, config->layer_count);
    bool any_local = false;
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type)
            return STATUS_FAIL(STATUS_INVALID, "%s: layer_types[%u]: want a string", reader->path, i);
        if (strcmp(type, "full_attention") == 0)
            config->layer_types[i] = MODEL_LAYER_GLOBAL;
        else if (strcmp(type, "sliding_attention") == 0)
            config->layer_types[i] = MODEL_LAYER_LOCAL;
        else
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: layer_types[%u] \"%.64s\" is not supported", reader->path, i, type);
        any_local = any_local || config->layer_types[i] == MODEL_LAYER_LOCAL;
    }
    if (any_local || json_object_get(reader->root, "sliding_window"))
        TRY(read_uint(reader, "sliding_window", 1, MODEL_CONTEXT_MAX, &local->window));
    TRY(read_uint_optional(reader, "attention_sinks", 0, SINKS_MAX, &local->sinks));
    if (local->sinks && !any_local)
        return STATUS_FAIL(STATUS_INVALID, "%s: attention_sinks %u, but no layer is sliding_attention: sinks are what a window keeps",
                           reader->path, local->sinks);
    return STATUS_OK;
}

static enum status read_producers(struct reader *reader, struct model_config *config)
{
    const json_t *list = get(reader, "kv_producer");
    if (list && (!json_is_array(list) || json_array_size(list) != config->layer_count))
        return STATUS_FAIL(STATUS_INVALID, "%s: kv_producer: want a list of %u layers", reader->path, config->layer_count);
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const json_t *value = json_array_get(list, i);
        if (list && (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > (json_int_t)i))
            return STATUS_FAIL(STATUS_INVALID, "%s: kv_producer[%u]: want a layer from 0 to %u", reader->path, i, i);
        uint16_t producer = list ? (uint16_t)json_integer_value(value) : (uint16_t)i;
        config->kv_producer[i] = producer;
        if (producer == i) {
            config->producer_slot[i] = config->producer_count[config->layer_types[i]]++;
            config->last_producer = producer;
            continue;
        }
        if (config->kv_producer[producer] != producer)
            return STATUS_FAIL(STATUS_INVALID, "%s: kv_producer[%u]: layer %u produces no K and V itself", reader->path, i, producer);
        if (config->layer_types[producer] != config->layer_types[i])
            return STATUS_FAIL(STATUS_INVALID, "%s: kv_producer[%u]: layer %u is of the other layer type", reader->path, i, producer);
    }
    return STATUS_OK;
}

static enum status read_rope(struct reader *reader, enum model_layer_type type, struct model_attention *attention)
{
    bool local = type == MODEL_LAYER_LOCAL;
    attention->rope_base = 10000.0;
    attention->rope_scale = 1.0;
    attention->rope_pairs = attention->head_dim / 2;
    TRY(read_number(reader, local ? "rope_local_base_freq" : "rope_theta", 1.0, ROPE_BASE_MAX, &attention->rope_base));
    const char *key = local ? "rope_local_scale" : "rope_global_scale";
    TRY(read_number(reader, key, 0.0, ROPE_SCALE_MAX, &attention->rope_scale));
    if (attention->rope_scale < 1.0)
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: want a number from 1 to %g", reader->path, key, ROPE_SCALE_MAX);
    return read_uint_optional(reader, local ? "rope_local_pairs" : "rope_global_pairs", 1, attention->head_dim / 2,
                              &attention->rope_pairs);
}

static enum status read_scales(struct reader *reader, struct model_config *config)
{
    uint32_t local_dim = config->attention[MODEL_LAYER_LOCAL].head_dim, global_dim = config->attention[MODEL_LAYER_GLOBAL].head_dim;
    double epsilon = -1, embedding = 1, cap = 0, scale = 1.0 / __builtin_sqrt((double)local_dim);   /* IEEE square root */
    TRY(read_number(reader, "rms_norm_eps", 1e-12, 1.0, &epsilon));
    if (epsilon < 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: rms_norm_eps is missing", reader->path);
    if (local_dim != global_dim && !json_object_get(reader->root, "attention_scale"))
        return STATUS_FAIL(STATUS_INVALID, "%s: attention_scale is missing; it has no default when head_dim %u and global_head_dim %u differ",
                           reader->path, local_dim, global_dim);
    TRY(read_number(reader, "attention_scale", 1e-6, 1e3, &scale));
    TRY(read_number(reader, "embedding_scale", 1e-6, SCALE_MAX, &embedding));
    const json_t *cap_value = json_object_get(reader->root, "final_logit_softcapping");
    if (json_is_number(cap_value) && json_number_value(cap_value) == 0.0)
        (void)get(reader, "final_logit_softcapping");          /* 0: none */
    else
        TRY(read_number(reader, "final_logit_softcapping", 1e-3, SCALE_MAX, &cap));
    config->norm_epsilon = (float)epsilon;
    config->attention_scale = (float)scale;
    config->embedding_scale = (float)embedding;
    config->logit_cap = (float)cap;
    return STATUS_OK;
}

static enum status read_forward(struct reader *reader, struct model_config *config)
{
    static const struct word activations[] = {{"silu", MODEL_ACTIVATION_SILU}, {"gelu_pytorch_tanh", MODEL_ACTIVATION_GELU_TANH}, {0}};
    static const struct word placements[] = {{"pre", false}, {"sandwich", true}, {0}};
    int activation, sandwich;
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++)
        TRY(read_rope(reader, (enum model_layer_type)type, &config->attention[type]));
    TRY(read_scales(reader, config));
    TRY(read_word(reader, "hidden_activation", true, activations, &activation));
    TRY(read_word(reader, "norm_placement", false, placements, &sandwich));
    config->activation = (enum model_activation)activation;
    config->sandwich_norm = sandwich;
    config->qk_norm = true;
    TRY(read_bool(reader, "qk_norm", &config->qk_norm));
    return read_bool(reader, "v_norm", &config->v_norm);
}

static enum status read_end_ids(struct reader *reader, struct model_config *config)
{
    const json_t *value;
    TRY(get_required(reader, "eos_token_id", &value));
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    if (count < 1 || count > MODEL_END_IDS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%s: eos_token_id: want an id or a list of 1 to %u ids", reader->path, MODEL_END_IDS_MAX);
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(one) || json_integer_value(one) < 0 || json_integer_value(one) >= (json_int_t)config->vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "%s: eos_token_id: want an integer from 0 to %u, or a list of them", reader->path,
                               config->vocab_size - 1);
        config->end_ids[config->end_id_count++] = (uint32_t)json_integer_value(one);
    }
    return STATUS_OK;
}

/* The text token of the Gemma templates closes a turn, so it is usually one of those that end a reply, too. */
static enum status read_control_tokens(struct reader *reader, struct model_config *config)
{
    static const struct word templates[] = {
        {"speaker", MODEL_TEMPLATE_SPEAKER}, {"gemma", MODEL_TEMPLATE_GEMMA}, {"gemma4", MODEL_TEMPLATE_GEMMA4}, {0}};
    uint32_t max = config->vocab_size - 1;
    int chat_template;
    TRY(read_word(reader, "chat_template", true, templates, &chat_template));
    config->chat_template = (enum model_template)chat_template;
    TRY(read_uint(reader, "bos_token_id", 0, max, &config->bos_id));
    TRY(read_end_ids(reader, config));
    TRY(read_uint(reader, "turn_token_id", 0, max, &config->turn_id));
    TRY(read_uint(reader, "text_token_id", 0, max, &config->text_id));
    uint32_t ids[3 + MODEL_END_IDS_MAX] = {config->bos_id, config->turn_id, config->text_id};
    memcpy(ids + 3, config->end_ids, sizeof config->end_ids);
    for (unsigned i = 0; i < 3 + config->end_id_count; i++)
        for (unsigned j = i + 1; j < 3 + config->end_id_count; j++) {
            bool closes = i == 2 && config->chat_template != MODEL_TEMPLATE_SPEAKER;
            if (ids[i] == ids[j] && !closes)
                return STATUS_FAIL(STATUS_INVALID, "%s: two control tokens have the id %u", reader->path, ids[i]);
        }
    return STATUS_OK;
}

static enum status refuse_unknown_keys(const struct reader *reader)
{
    const char *key;
    json_t *value;
    json_object_foreach(reader->root, key, value) {
        bool known = false;
        for (unsigned i = 0; i < reader->seen_count && !known; i++)
            known = strcmp(key, reader->seen[i]) == 0;
        for (unsigned i = 0; i < sizeof ignored_keys / sizeof *ignored_keys && !known; i++)
            known = strcmp(key, ignored_keys[i]) == 0;
        if (!known)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: %.64s is not supported", reader->path, key);
    }
    return STATUS_OK;
}

static enum status read_all(struct reader *reader, const char *dir, struct model_config *config)
{
    TRY(read_architecture(reader));
    TRY(read_name(reader, dir, config));
    TRY(read_family(reader, config));
    TRY(read_sizes(reader, config));
    TRY(read_intermediate(reader, config));
    TRY(read_layers(reader, config));
    TRY(read_producers(reader, config));
    TRY(read_forward(reader, config));
    TRY(read_control_tokens(reader, config));
    return refuse_unknown_keys(reader);
}

enum status model_config_parse(const char *dir, const char *text, size_t size, struct model_config *out)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/config.json", dir);
    json_error_t error;
    struct reader reader = {.path = path, .root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error)};
    if (!reader.root)
        return STATUS_FAIL(STATUS_INVALID, "%s: line %d: %.120s", path, error.line, error.text);
    struct model_config *config = calloc(1, sizeof *config);
    enum status st = STATUS_OK;
    if (!config)
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory", path);
    else if (!json_is_object(reader.root))
        st = STATUS_FAIL(STATUS_INVALID, "%s: not a JSON object", path);
    else
        st = read_all(&reader, dir, config);
    if (st == STATUS_OK)
        *out = *config;
    free(config);
    json_decref(reader.root);
    return st;
}

enum status model_config_load(const char *dir, struct model_config *out)
{
    char path[PATH_MAX], *text;
    size_t size;
    snprintf(path, sizeof path, "%s/config.json", dir);
    TRY(model_file_read(path, MODEL_CONFIG_BYTES_MAX, &text, &size));
    enum status st = model_config_parse(dir, text, size, out);
    free(text);
    return st;
}
