#include "worker/engine/model/model.h"
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "kernels/quantize.h"
#include "worker/engine/model/safetensors.h"

#define TOKENIZER_BYTES_MAX (64u << 20)
#define SCHEME_KEY "activation_scheme"
#define PIECE_BYTES (1u << 20)     /* read, checked and hashed at a time */

struct binder {                    /* binds names to tensors and remembers which were taken */
    const char *path;
    const struct safetensors *file;
    enum model_format format;
    enum model_scheme scheme;      /* of matrices that name none */
    bool *taken;                   /* owned: (tensor count) */
};

static const char *const scheme_names[MODEL_SCHEMES] = {
    [MODEL_SCHEME_DYNAMIC] = "dynamic", [MODEL_SCHEME_STATIC] = "static", [MODEL_SCHEME_ROTATED] = "rotated", [MODEL_SCHEME_WIDE] = "wide"};

static const struct layer_matrix {
    const char *leaf;              /* model.layers.L.LEAF.weight */
    size_t offset;                 /* in struct model_layer */
} layer_matrices[] = {
    {"self_attn.q_proj", offsetof(struct model_layer, q_proj)},
    {"self_attn.k_proj", offsetof(struct model_layer, k_proj)},
    {"self_attn.v_proj", offsetof(struct model_layer, v_proj)},
    {"self_attn.o_proj", offsetof(struct model_layer, o_proj)},
    {"mlp.gate_proj", offsetof(struct model_layer, gate_proj)},
    {"mlp.up_proj", offsetof(struct model_layer, up_proj)},
    {"mlp.down_proj", offsetof(struct model_layer, down_proj)},
    {"per_layer_input_gate", offsetof(struct model_layer, per_layer_gate)},
    {"per_layer_projection", offsetof(struct model_layer, per_layer_proj)},
};

const char *model_scheme_name(enum model_scheme scheme)
{
    return scheme_names[scheme];
}

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

static const struct model_matrix *present(const struct model_matrix *matrix)
{
    return matrix->weight ? matrix : NULL;
}

const struct model_matrix *model_find_matrix(const struct model *model, const char *name)
{
    unsigned layer;
    int used = 0;
    if (strcmp(name, "model.embed_tokens.weight") == 0)
        return &model->embedding;
    if (strcmp(name, "model.embed_tokens_per_layer.weight") == 0)
        return present(&model->per_layer_embedding);
    if (strcmp(name, "model.per_layer_model_projection.weight") == 0)
        return present(&model->per_layer_model_proj);
    if (sscanf(name, "model.layers.%u.%n", &layer, &used) != 1 || used == 0 || layer >= model->config.layer_count)
        return NULL;
    for (unsigned i = 0; i < sizeof layer_matrices / sizeof *layer_matrices; i++) {
        char canonical[128];
        snprintf(canonical, sizeof canonical, "model.layers.%u.%s.weight", layer, layer_matrices[i].leaf);
        if (strcmp(name, canonical) == 0)
            return present((const struct model_matrix *)((const char *)&model->layers[layer] + layer_matrices[i].offset));
    }
    return NULL;
}

static enum status parse_scheme(const char *path, const char *of, const char *text, enum model_scheme *out)
{
    for (unsigned i = 0; i < MODEL_SCHEMES; i++)
        if (strcmp(text, scheme_names[i]) == 0) {
            *out = (enum model_scheme)i;
            return STATUS_OK;
        }
    return STATUS_FAIL(STATUS_INVALID, "%s: %.128s: unknown activation scheme %.32s, want dynamic, static, rotated or wide", path, of, text);
}

static enum status read_format(struct binder *binder)
{
    const char *format = safetensors_metadata(binder->file, "format"), *scheme = safetensors_metadata(binder->file, SCHEME_KEY);
    if (!format)
        return STATUS_FAIL(STATUS_INVALID, "%s: __metadata__ lacks format", binder->path);
    if (strcmp(format, "roost-float") == 0) {
        binder->format = MODEL_FORMAT_FLOAT;
        return STATUS_OK;
    }
    if (strcmp(format, "roost-int8") != 0)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: format %.32s is not supported, only roost-int8 and roost-float; roost-convert makes them",
                           binder->path, format);
    binder->format = MODEL_FORMAT_INT8;
    if (!scheme)
        return STATUS_FAIL(STATUS_INVALID, "%s: __metadata__ lacks " SCHEME_KEY, binder->path);
    return parse_scheme(binder->path, SCHEME_KEY, scheme, &binder->scheme);
}

/* columns 0: one dimension. */
static enum status bind(struct binder *binder, const char *name, uint32_t rows, uint32_t columns, const struct safetensors_tensor **out)
{
    const struct safetensors_tensor *tensor = safetensors_find(binder->file, name);
    if (!tensor)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s is missing", binder->path, name);
    unsigned rank = columns ? 2 : 1;
    if (tensor->rank != rank || tensor->shape[0] != rows || (columns && tensor->shape[1] != columns)) {
        char want[32];
        snprintf(want, sizeof want, columns ? "(%u, %u)" : "(%u)", rows, columns);
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s: the configuration wants shape %s", binder->path, name, want);
    }
    binder->taken[tensor - safetensors_at(binder->file, 0)] = true;
    *out = tensor;
    return STATUS_OK;
}

static enum status bind_floats(struct binder *binder, const char *name, uint32_t rows, uint32_t columns, const float **out)
{
    const struct safetensors_tensor *tensor;
    TRY(bind(binder, name, rows, columns, &tensor));
    if (tensor->dtype != SAFETENSORS_F32)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s is %s, want F32", binder->path, name, safetensors_dtype_name(tensor->dtype));
    *out = tensor->data;
    return STATUS_OK;
}

static enum status bind_scales(struct binder *binder, const char *name, uint32_t rows, uint32_t columns, const float **out)
{
    TRY(bind_floats(binder, name, rows, columns, out));
    size_t count = (size_t)rows * (columns ? columns : 1);
    for (size_t i = 0; i < count; i++)
        if ((*out)[i] < 0)
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s: element %zu is negative", binder->path, name, i);
    return STATUS_OK;
}

static void tensor_name(char name[96], int layer, const char *leaf)
{
    if (layer < 0)
        snprintf(name, 96, "model.%s.weight", leaf);
    else
        snprintf(name, 96, "model.layers.%d.%s.weight", layer, leaf);
}

static enum status bind_norm(struct binder *binder, int layer, const char *leaf, uint32_t count, const float **out)
{
    char name[96];
    tensor_name(name, layer, leaf);
    return bind_floats(binder, name, count, 0, out);
}

static enum status bind_scheme(struct binder *binder, const char *name, struct model_matrix *matrix)
{
    char key[128];
    snprintf(key, sizeof key, SCHEME_KEY ".%s", name);
    const char *text = safetensors_metadata(binder->file, key);
    matrix->scheme = binder->scheme;
    if (text)
        TRY(parse_scheme(binder->path, name, text, &matrix->scheme));
    if (matrix->scheme == MODEL_SCHEME_ROTATED && matrix->columns % QUANTIZE_ROTATE_BLOCK != 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s: scheme rotated wants columns in multiples of %u, not %u", binder->path, name,
                           QUANTIZE_ROTATE_BLOCK, matrix->columns);
    if (matrix->scheme != MODEL_SCHEME_STATIC)
        return STATUS_OK;
    const float *scale;
    snprintf(key, sizeof key, "%s_input_scale", name);
    TRY(bind_scales(binder, key, 1, 0, &scale));
    if (!(*scale >= QUANTIZE_ABSMAX_MIN && *scale <= 0x1p100f))
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s: %g, want a scale from 2^-100 to 2^100", binder->path, key, (double)*scale);
    matrix->input_scale = *scale;
    return STATUS_OK;
}

/* scale_columns 0: one scale a row. */
static enum status bind_weights(struct binder *binder, const char *name, uint32_t rows, uint32_t columns, uint32_t scale_columns,
                                struct model_matrix *out)
{
    static const enum model_element elements[] = {
        [SAFETENSORS_I8] = MODEL_ELEMENT_I8, [SAFETENSORS_BF16] = MODEL_ELEMENT_BF16, [SAFETENSORS_F32] = MODEL_ELEMENT_F32};
    const struct safetensors_tensor *tensor;
    TRY(bind(binder, name, rows, columns, &tensor));
    bool int8 = binder->format == MODEL_FORMAT_INT8;
    if (tensor->dtype == SAFETENSORS_F16 || (tensor->dtype == SAFETENSORS_I8) != int8)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s is %s, want %s", binder->path, name, safetensors_dtype_name(tensor->dtype),
                           int8 ? "I8" : "F32 or BF16");
    *out = (struct model_matrix){.element = elements[tensor->dtype], .weight = tensor->data, .rows = rows, .columns = columns};
    if (!int8)
        return STATUS_OK;
    char scale_name[112];
    snprintf(scale_name, sizeof scale_name, "%s_scale", name);
    return bind_scales(binder, scale_name, rows, scale_columns, &out->scale);
}

static enum status bind_matrix(struct binder *binder, int layer, const char *leaf, uint32_t rows, uint32_t columns,
                               struct model_matrix *out)
{
    char name[96];
    tensor_name(name, layer, leaf);
    TRY(bind_weights(binder, name, rows, columns, 0, out));
    return binder->format == MODEL_FORMAT_INT8 ? bind_scheme(binder, name, out) : STATUS_OK;
}

static enum status bind_attention(struct binder *binder, const struct model_config *config, int index, struct model_layer *layer)
{
    const struct model_attention *attention = &config->attention[config->layer_types[index]];
    uint32_t hidden = config->hidden_size, dim = attention->head_dim;
    uint32_t q_width = config->head_count * dim, kv_width = attention->kv_head_count * dim;
    TRY(bind_matrix(binder, index, "self_attn.q_proj", q_width, hidden, &layer->q_proj));
    TRY(bind_matrix(binder, index, "self_attn.o_proj", hidden, q_width, &layer->o_proj));
    if (config->qk_norm)
        TRY(bind_norm(binder, index, "self_attn.q_norm", dim, &layer->q_norm));
    if (config->kv_producer[index] != index)
        return STATUS_OK;
    TRY(bind_matrix(binder, index, "self_attn.k_proj", kv_width, hidden, &layer->k_proj));
    TRY(bind_matrix(binder, index, "self_attn.v_proj", kv_width, hidden, &layer->v_proj));
    return config->qk_norm ? bind_norm(binder, index, "self_attn.k_norm", dim, &layer->k_norm) : STATUS_OK;
}

static enum status bind_per_layer(struct binder *binder, const struct model_config *config, int index, struct model_layer *layer)
{
    const float *scalar;
    char name[96];
    layer->layer_scalar = 1.0f;
    if (!config->per_layer_input)
        return STATUS_OK;
    TRY(bind_matrix(binder, index, "per_layer_input_gate", config->per_layer_input, config->hidden_size, &layer->per_layer_gate));
    TRY(bind_matrix(binder, index, "per_layer_projection", config->hidden_size, config->per_layer_input, &layer->per_layer_proj));
    TRY(bind_norm(binder, index, "post_per_layer_input_norm", config->hidden_size, &layer->per_layer_norm));
    snprintf(name, sizeof name, "model.layers.%d.layer_scalar", index);
    TRY(bind_floats(binder, name, 1, 0, &scalar));
    layer->layer_scalar = *scalar;
    return STATUS_OK;
}

static enum status bind_layer(struct binder *binder, const struct model_config *config, int index, struct model_layer *layer)
{
    uint32_t hidden = config->hidden_size, inner = config->intermediate_size[index];
    TRY(bind_norm(binder, index, "input_layernorm", hidden, &layer->input_norm));
    if (config->sandwich_norm) {
        TRY(bind_norm(binder, index, "post_attention_layernorm", hidden, &layer->attention_norm));
        TRY(bind_norm(binder, index, "pre_feedforward_layernorm", hidden, &layer->mlp_norm));
        TRY(bind_norm(binder, index, "post_feedforward_layernorm", hidden, &layer->mlp_result_norm));
    } else {
        TRY(bind_norm(binder, index, "post_attention_layernorm", hidden, &layer->mlp_norm));
    }
    TRY(bind_attention(binder, config, index, layer));
    TRY(bind_matrix(binder, index, "mlp.gate_proj", inner, hidden, &layer->gate_proj));
    TRY(bind_matrix(binder, index, "mlp.up_proj", inner, hidden, &layer->up_proj));
    TRY(bind_matrix(binder, index, "mlp.down_proj", hidden, inner, &layer->down_proj));
    return bind_per_layer(binder, config, index, layer);
}

static enum status bind_model(struct binder *binder, struct model *model)
{
    const struct model_config *config = &model->config;
    uint32_t layers = config->layer_count, width = layers * config->per_layer_input;
    TRY(bind_matrix(binder, -1, "embed_tokens", config->vocab_size, config->hidden_size, &model->embedding));
    if (binder->format == MODEL_FORMAT_INT8 && model->embedding.scheme == MODEL_SCHEME_ROTATED)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: tensor model.embed_tokens.weight: scheme rotated is not supported, its rows are looked "
                           "up as well; wide is the accurate one", binder->path);
    TRY(bind_norm(binder, -1, "norm", config->hidden_size, &model->final_norm));
    for (uint32_t i = 0; i < layers; i++)
        TRY(bind_layer(binder, config, (int)i, &model->layers[i]));
    if (!config->per_layer_input)
        return STATUS_OK;
    TRY(bind_weights(binder, "model.embed_tokens_per_layer.weight", config->vocab_size, width, layers, &model->per_layer_embedding));
    TRY(bind_matrix(binder, -1, "per_layer_model_projection", width, config->hidden_size, &model->per_layer_model_proj));
    return bind_norm(binder, -1, "per_layer_projection_norm", config->per_layer_input, &model->per_layer_proj_norm);
}

/* Nothing in the file that the configuration has no use for. */
static enum status refuse_surplus(const struct binder *binder, const struct model *model)
{
    for (unsigned i = 0; i < safetensors_count(binder->file); i++)
        if (!binder->taken[i])
            return STATUS_FAIL(STATUS_INVALID, "%s: tensor %.128s has no place in this configuration", binder->path,
                               safetensors_at(binder->file, i)->name);
    for (unsigned i = 0; i < safetensors_metadata_count(binder->file); i++) {
        const char *key, *value, *prefix = SCHEME_KEY ".";
        safetensors_metadata_at(binder->file, i, &key, &value);
        if (strncmp(key, prefix, strlen(prefix)) != 0)
            continue;
        const struct model_matrix *matrix = model_find_matrix(model, key + strlen(prefix));
        if (!matrix || matrix->element != MODEL_ELEMENT_I8 || matrix == &model->per_layer_embedding)
            return STATUS_FAIL(STATUS_INVALID, "%s: %.160s names no int8 matrix with inputs", binder->path, key);
    }
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

static bool values_are_good(enum safetensors_dtype dtype, const void *data, size_t bytes)
{
    unsigned bad = 0;
    if (dtype == SAFETENSORS_I8) {
        const int8_t *values = data;
        for (size_t i = 0; i < bytes; i++)
            bad |= values[i] == INT8_MIN;
    } else if (dtype == SAFETENSORS_F32) {
        const uint32_t *bits = data;
        for (size_t i = 0; i < bytes / sizeof *bits; i++)
            bad |= (bits[i] & 0x7f800000u) == 0x7f800000u;
    } else {                       /* BF16; F16 was refused */
        const uint16_t *bits = data;
        for (size_t i = 0; i < bytes / sizeof *bits; i++)
            bad |= (bits[i] & 0x7f80u) == 0x7f80u;
    }
    return !bad;
}

static int compare_place(const void *a, const void *b)
{
    const struct safetensors_tensor *left = *(const struct safetensors_tensor *const *)a, *right = *(const struct safetensors_tensor *const *)b;
    return left->data < right->data ? -1 : left->data > right->data;
}

/* The only pass over the whole file: every piece is checked and hashed while it is there. Tensors fill the file without gaps
 * (safetensors.h), so in order of place they are all that follows the header. */
static enum status digest_tensors(const struct binder *binder, struct hash_stream *stream)
{
    size_t size;
    const uint8_t *at = safetensors_bytes(binder->file, &size);
    unsigned count = safetensors_count(binder->file);
    const struct safetensors_tensor **order = calloc(count + 1, sizeof *order);
    if (!order)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %u tensors", binder->path, count);
    for (unsigned i = 0; i < count; i++)
        order[i] = safetensors_at(binder->file, i);
    qsort(order, count, sizeof *order, compare_place);
    hash_stream_update(stream, at, count ? (size_t)((const uint8_t *)order[0]->data - at) : size);
    enum status st = STATUS_OK;
    for (unsigned i = 0; i < count && st == STATUS_OK; i++)
        for (uint64_t done = 0; done < order[i]->bytes && st == STATUS_OK; done += PIECE_BYTES) {
            const uint8_t *piece = (const uint8_t *)order[i]->data + done;
            size_t bytes = order[i]->bytes - done < PIECE_BYTES ? (size_t)(order[i]->bytes - done) : PIECE_BYTES;
            if (!values_are_good(order[i]->dtype, piece, bytes))
                st = STATUS_FAIL(STATUS_INVALID, "%s: tensor %s has a %s", binder->path, order[i]->name,
                                 order[i]->dtype == SAFETENSORS_I8 ? "weight of -128, want -127 to 127" : "value that is not finite");
            hash_stream_update(stream, piece, bytes);
        }
    free(order);
    return st;
}

struct text {                        /* a file's bytes, or what stands for them */
    const void *bytes;
    size_t size;
};

/* Each file as a little-endian u64 size and its bytes, then revision and layout as u64. A missing tokenizer counts as empty. Without
 * a binder `identity` takes the place of the weights. */
static enum status digest(const char *dir, struct text config, const struct binder *binder, struct text identity, struct model *model)
{
    char path[PATH_MAX], *tokenizer = NULL;
    size_t tokenizer_size = 0, file_size;
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    enum status st = model_file_read(path, TOKENIZER_BYTES_MAX, &tokenizer, &tokenizer_size);
    if (st != STATUS_OK && st != STATUS_NOT_FOUND)
        return st;
    struct hash_stream *stream = NULL;
    TRY_GOTO(hash_stream_create(NULL, 0, &stream), st, done);
    digest_piece(stream, config.bytes, config.size);
    if (binder) {
        (void)safetensors_bytes(binder->file, &file_size);
        digest_number(stream, file_size);
        TRY_GOTO(digest_tensors(binder, stream), st, done);
    } else {
        digest_piece(stream, identity.bytes, identity.size);
    }
    digest_piece(stream, tokenizer, tokenizer_size);
    digest_number(stream, MODEL_NUMERICS_REVISION);
    digest_number(stream, MODEL_KV_LAYOUT);
    hash_stream_final(stream, model->weights_digest);
done:
    hash_stream_destroy(&stream);
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
    binder.file = file;
    TRY_GOTO(read_format(&binder), st, done);
    model->format = binder.format;
    binder.taken = calloc(safetensors_count(file) + 1, sizeof *binder.taken);
    if (!binder.taken) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %u tensors", path, safetensors_count(file));
        goto done;
    }
    TRY_GOTO(bind_model(&binder, model), st, done);
    TRY_GOTO(refuse_surplus(&binder, model), st, done);
    TRY_GOTO(digest(dir, (struct text){config_text, config_size}, &binder, (struct text){0}, model), st, done);
    *out = model;
    model = NULL;
done:
    free(binder.taken);
    free(config_text);
    model_destroy(&model);
    return st;
}

enum status model_load_shape(const char *dir, const void *identity, size_t identity_size, struct model **out)
{
    char path[PATH_MAX], *config_text = NULL;
    size_t config_size = 0;
    enum status st;
    struct model *model = calloc(1, sizeof *model);
    if (!model)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for a model", dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    TRY_GOTO(model_file_read(path, MODEL_CONFIG_BYTES_MAX, &config_text, &config_size), st, done);
    TRY_GOTO(model_config_parse(dir, config_text, config_size, &model->config), st, done);
    TRY_GOTO(digest(dir, (struct text){config_text, config_size}, NULL, (struct text){identity, identity_size}, model), st, done);
    *out = model;
    model = NULL;
done:
    free(config_text);
    model_destroy(&model);
    return st;
}
