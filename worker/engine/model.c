#include "worker/engine/model.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "worker/engine/safetensors.h"

#define TOKENIZER_BYTES_MAX (64u << 20)
#define SCHEME_PREFIX "activation_scheme."

struct binder {                    /* binds names to tensors and remembers which were taken */
    const char *path;
    const struct safetensors *file;
    bool *taken;                   /* owned: (tensor count) */
};

static const char *const schemes_not_built[] = {"static", "rotated", "wide"};

void model_destroy(struct model **model)
{
    struct model *self = *model;
    if (!self)
        return;
    struct safetensors *file = self->mapping;
    safetensors_close(&file);
    free(self);
    *model = NULL;
}

static enum status check_scheme(const char *path, const char *of, const char *scheme)
{
    if (strcmp(scheme, "dynamic") == 0)
        return STATUS_OK;
    for (unsigned i = 0; i < sizeof schemes_not_built / sizeof *schemes_not_built; i++)
        if (strcmp(scheme, schemes_not_built[i]) == 0)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: %.128s: activation scheme %s is not supported, only dynamic", path, of, scheme);
    return STATUS_FAIL(STATUS_INVALID, "%s: %.128s: unknown activation scheme %.32s", path, of, scheme);
}

static enum status check_metadata(const char *path, const struct safetensors *file)
{
    const char *format = safetensors_metadata(file, "format"), *scheme = safetensors_metadata(file, "activation_scheme");
    if (!format || !scheme)
        return STATUS_FAIL(STATUS_INVALID, "%s: __metadata__ lacks %s", path, format ? "activation_scheme" : "format");
    if (strcmp(format, "roost-int8") != 0)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: format %.32s is not supported, only roost-int8", path, format);
    TRY(check_scheme(path, "activation_scheme", scheme));
    for (unsigned i = 0; i < safetensors_metadata_count(file); i++) {
        const char *key, *value;
        safetensors_metadata_at(file, i, &key, &value);
        if (strncmp(key, SCHEME_PREFIX, strlen(SCHEME_PREFIX)) != 0)
            continue;
        const char *name = key + strlen(SCHEME_PREFIX);
        const struct safetensors_tensor *tensor = safetensors_find(file, name);
        if (!tensor || tensor->dtype != SAFETENSORS_I8)
            return STATUS_FAIL(STATUS_INVALID, "%s: %.160s names no int8 tensor", path, key);
        TRY(check_scheme(path, name, value));
    }
    return STATUS_OK;
}

static enum status bind(struct binder *binder, const char *name, enum safetensors_dtype dtype, uint32_t rows, uint32_t columns,
                        const void **out)
{
    const struct safetensors_tensor *tensor = safetensors_find(binder->file, name);
    if (!tensor)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s is missing", binder->path, name);
    unsigned rank = columns ? 2 : 1;
    if (tensor->dtype != dtype)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s is not %s", binder->path, name, dtype == SAFETENSORS_I8 ? "I8" : "F32");
    if (tensor->rank != rank || tensor->shape[0] != rows || (columns && tensor->shape[1] != columns)) {
        char want[32];
        snprintf(want, sizeof want, columns ? "(%u, %u)" : "(%u)", rows, columns);
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s: the configuration wants shape %s", binder->path, name, want);
    }
    binder->taken[tensor - safetensors_at(binder->file, 0)] = true;
    *out = tensor->data;
    return STATUS_OK;
}

/* Finite, and not negative where that is asked. */
static enum status check_floats(const struct binder *binder, const char *name, const float *values, uint32_t count, bool negative)
{
    for (uint32_t i = 0; i < count; i++)
        if (!__builtin_isfinite(values[i]) || (!negative && values[i] < 0))
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s: element %u is %s", binder->path, name, i,
                               __builtin_isfinite(values[i]) ? "negative" : "not finite");
    return STATUS_OK;
}

static enum status bind_norm(struct binder *binder, int layer, const char *leaf, uint32_t count, const float **out)
{
    char name[96];
    const void *data;
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, leaf);
    if (layer < 0)
        snprintf(name, sizeof name, "model.%s.weight", leaf);
    TRY(bind(binder, name, SAFETENSORS_F32, count, 0, &data));
    *out = data;
    return check_floats(binder, name, data, count, true);
}

static enum status bind_matrix(struct binder *binder, int layer, const char *leaf, uint32_t rows, uint32_t columns,
                               struct model_matrix *out)
{
    char name[96], scale_name[112];
    const void *weight, *scale;
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, leaf);
    if (layer < 0)
        snprintf(name, sizeof name, "model.%s.weight", leaf);
    snprintf(scale_name, sizeof scale_name, "%s_scale", name);
    TRY(bind(binder, name, SAFETENSORS_I8, rows, columns, &weight));
    TRY(bind(binder, scale_name, SAFETENSORS_F32, rows, 0, &scale));
    TRY(check_floats(binder, scale_name, scale, rows, false));
    size_t bytes = (size_t)rows * columns;
    const int8_t *values = weight;
    uint8_t found = 0;
    for (size_t i = 0; i < bytes; i++)
        found |= values[i] == INT8_MIN;
    if (found)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s has a weight of -128, want -127 to 127", binder->path, name);
    *out = (struct model_matrix){.weight = weight, .scale = scale, .rows = rows, .columns = columns};
    return STATUS_OK;
}

static enum status bind_layer(struct binder *binder, const struct model_config *config, int index, struct model_layer *layer)
{
    uint32_t hidden = config->hidden_size, inner = config->intermediate_size;
    uint32_t q_width = config->head_count * config->head_dim, kv_width = config->kv_head_count * config->head_dim;
    TRY(bind_norm(binder, index, "input_layernorm", hidden, &layer->input_norm));
    TRY(bind_norm(binder, index, "post_attention_layernorm", hidden, &layer->post_attention_norm));
    TRY(bind_matrix(binder, index, "self_attn.q_proj", q_width, hidden, &layer->q_proj));
    TRY(bind_matrix(binder, index, "self_attn.o_proj", hidden, q_width, &layer->o_proj));
    if (config->qk_norm)
        TRY(bind_norm(binder, index, "self_attn.q_norm", config->head_dim, &layer->q_norm));
    if (config->kv_producer[index] == index) {
        TRY(bind_matrix(binder, index, "self_attn.k_proj", kv_width, hidden, &layer->k_proj));
        TRY(bind_matrix(binder, index, "self_attn.v_proj", kv_width, hidden, &layer->v_proj));
        if (config->qk_norm)
            TRY(bind_norm(binder, index, "self_attn.k_norm", config->head_dim, &layer->k_norm));
    }
    TRY(bind_matrix(binder, index, "mlp.gate_proj", inner, hidden, &layer->gate_proj));
    TRY(bind_matrix(binder, index, "mlp.up_proj", inner, hidden, &layer->up_proj));
    return bind_matrix(binder, index, "mlp.down_proj", hidden, inner, &layer->down_proj);
}

static enum status bind_all(struct binder *binder, struct model *model)
{
    const struct model_config *config = &model->config;
    TRY(bind_matrix(binder, -1, "embed_tokens", config->vocab_size, config->hidden_size, &model->embedding));
    TRY(bind_norm(binder, -1, "norm", config->hidden_size, &model->final_norm));
    for (uint32_t i = 0; i < config->layer_count; i++)
        TRY(bind_layer(binder, config, (int)i, &model->layers[i]));
    for (unsigned i = 0; i < safetensors_count(binder->file); i++)
        if (!binder->taken[i])
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s has no place in this configuration", binder->path,
                               safetensors_at(binder->file, i)->name);
    return STATUS_OK;
}

static void digest_number(struct hash_stream *stream, uint64_t number)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(number >> 8 * i);
    hash_stream_update(stream, bytes, sizeof bytes);
}

static void digest_piece(struct hash_stream *stream, const void *data, size_t size)
{
    digest_number(stream, size);
    hash_stream_update(stream, data, size);
}

/* Each file as a little-endian u64 size and its bytes, then revision and layout as u64. A missing tokenizer counts as empty. */
static enum status digest(const char *dir, const char *config_text, size_t config_size, struct model *model)
{
    char path[PATH_MAX], *tokenizer = NULL;
    size_t tokenizer_size = 0, file_size;
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    enum status st = model_file_read(path, TOKENIZER_BYTES_MAX, &tokenizer, &tokenizer_size);
    if (st != STATUS_OK && st != STATUS_NOT_FOUND)
        return st;
    struct hash_stream *stream;
    st = hash_stream_create(NULL, 0, &stream);
    if (st == STATUS_OK) {
        const void *file = safetensors_bytes(model->mapping, &file_size);
        digest_piece(stream, config_text, config_size);
        digest_piece(stream, file, file_size);
        digest_piece(stream, tokenizer, tokenizer_size);
        digest_number(stream, MODEL_NUMERICS_REVISION);
        digest_number(stream, MODEL_KV_LAYOUT);
        hash_stream_final(stream, model->weights_digest);
        hash_stream_destroy(&stream);
    }
    free(tokenizer);
    return st;
}

enum status model_load(const char *dir, struct model **out)
{
    char path[PATH_MAX], *config_text = NULL;
    size_t config_size = 0;
    struct binder binder = {.path = path};
    struct safetensors *file = NULL;
    enum status st;

    struct model *model = calloc(1, sizeof *model);
    if (!model)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for a model", dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    TRY_GOTO(model_file_read(path, MODEL_CONFIG_BYTES_MAX, &config_text, &config_size), st, done);
    TRY_GOTO(model_config_parse(dir, config_text, config_size, &model->config), st, done);

    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    TRY_GOTO(safetensors_open(path, &file), st, done);
    model->mapping = file;
    TRY_GOTO(check_metadata(path, file), st, done);
    binder.file = file;
    binder.taken = calloc(safetensors_count(file) + 1, sizeof *binder.taken);
    if (!binder.taken) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %u tensors", path, safetensors_count(file));
        goto done;
    }
    TRY_GOTO(bind_all(&binder, model), st, done);
    TRY_GOTO(digest(dir, config_text, config_size, model), st, done);
    *out = model;
    model = NULL;
done:
    free(binder.taken);
    free(config_text);
    model_destroy(&model);
    return st;
}
