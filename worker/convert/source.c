#include "worker/convert/source.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SOURCE_NAME_BYTES (TENSOR_NAME_BYTES + 64)

struct binder {
    const struct family_config *family;
    const struct tensor_list *list;
    const char *dir;
    uint32_t vocab_size;
    const char *prefix;            /* of the text model's tensors in the checkpoint */
    bool *taken;                   /* (tensors of the checkpoint) */
    struct source *source;
};

void source_close(struct source *source)
{
    checkpoint_close(&source->checkpoint);
    free(source->tensors);
    *source = (struct source){ 0 };
}

static const struct checkpoint_tensor *take(struct binder *binder, const char *name)
{
    const struct checkpoint_tensor *tensor = checkpoint_find(binder->source->checkpoint, name);
    if (tensor)
        binder->taken[tensor - checkpoint_at(binder->source->checkpoint, 0)] = true;
    return tensor;
}

static bool has_prefix(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static enum status find_prefix(struct binder *binder)
{
    char name[SOURCE_NAME_BYTES];
    if (binder->family->family == FAMILY_ROOST) {
        binder->prefix = "model.";
        return STATUS_OK;
    }
    for (unsigned i = 0; family_text_prefixes[i]; i++) {
        snprintf(name, sizeof name, "%sembed_tokens.weight", family_text_prefixes[i]);
        if (checkpoint_find(binder->source->checkpoint, name)) {
            binder->prefix = family_text_prefixes[i];
            return STATUS_OK;
        }
    }
    return STATUS_FAIL(STATUS_INVALID, "%s: tensor model.embed_tokens.weight is missing: no text model in this checkpoint", binder->dir);
}

static void source_name(const struct binder *binder, const char *name, char out[SOURCE_NAME_BYTES])
{
    snprintf(out, SOURCE_NAME_BYTES, "%s%s", binder->prefix, name + strlen("model."));
}

static enum status check_shape(const struct binder *binder, const struct checkpoint_tensor *tensor, uint64_t rows, uint64_t columns)
{
    const unsigned rank = columns ? 2 : 1;
    if (tensor->rank == rank && tensor->shape[0] == rows && (!columns || tensor->shape[1] == columns))
        return STATUS_OK;
    char have[128] = "";
    for (unsigned i = 0, at = 0; i < tensor->rank && at < sizeof have; i++)
        at += (unsigned)snprintf(have + at, sizeof have - at, "%s%llu", i ? ", " : "", (unsigned long long)tensor->shape[i]);
    if (columns)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s has shape (%s), the configuration wants (%llu, %llu)", binder->dir, tensor->name,
                           have, (unsigned long long)rows, (unsigned long long)columns);
    return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s has shape (%s), the configuration wants (%llu)", binder->dir, tensor->name, have,
                       (unsigned long long)rows);
}

/* An int8 matrix of a roost directory: its scale stands beside it. Rotated ones would have to be rotated back. */
static enum status bind_scale(struct binder *binder, const struct tensor *tensor, struct source_tensor *out)
{
    char name[SOURCE_NAME_BYTES + 32];
    snprintf(name, sizeof name, "activation_scheme.%s", tensor->name);
    const char *scheme = checkpoint_metadata(binder->source->checkpoint, name);
    if (!scheme)
        scheme = checkpoint_metadata(binder->source->checkpoint, "activation_scheme");
    if (tensor_is_matrix(tensor) && (!scheme || strcmp(scheme, "rotated") == 0))
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: tensor %s is %s already: convert the checkpoint it was made from", binder->dir,
                           tensor->name, scheme ? "rotated" : "int8 of an unknown scheme");
    snprintf(name, sizeof name, "%s_input_scale", tensor->name);
    (void)take(binder, name);                    /* of scheme static: chosen anew */
    snprintf(name, sizeof name, "%s_scale", tensor->name);
    out->scale = take(binder, name);
    if (!out->scale)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s is missing", binder->dir, name);
    if (out->scale->dtype != CHECKPOINT_F32)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s is %s, want F32", binder->dir, name, out->scale->dtype_name);
    return check_shape(binder, out->scale, out->data->shape[0], tensor->kind == TENSOR_LOOKUP ? tensor->scale_columns : 0);
}

static enum status bind_tensor(struct binder *binder, uint32_t index)
{
    const struct tensor *tensor = &binder->list->tensors[index];
    struct source_tensor *out = &binder->source->tensors[index];
    char name[SOURCE_NAME_BYTES];
    source_name(binder, tensor->name, name);
    out->data = take(binder, name);
    if (!out->data)
        return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s is missing", binder->dir, name);
    const bool by_token = tensor->kind == TENSOR_EMBEDDING || tensor->kind == TENSOR_LOOKUP;
    TRY(check_shape(binder, out->data, by_token ? binder->vocab_size : tensor->rows, tensor->columns));
    if (out->data->dtype == CHECKPOINT_I8 && binder->family->family == FAMILY_ROOST && tensor->columns)
        return bind_scale(binder, tensor, out);
    if (out->data->dtype == CHECKPOINT_OTHER || out->data->dtype == CHECKPOINT_I8)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: tensor %s is %s, only F32, BF16 and F16 are built: convert the original checkpoint",
                           binder->dir, name, out->data->dtype_name);
    return STATUS_OK;
}

/* The output head, where it is stored: it must be the embedding. */
static enum status check_head(struct binder *binder)
{
    static const char *const names[] = { "lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight" };
    const struct checkpoint_tensor *embedding = binder->source->tensors[0].data;
    bool found = binder->family->tied;
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct checkpoint_tensor *head = take(binder, names[i]);
        if (!head)
            continue;
        found = true;
        if (head->dtype != embedding->dtype || head->bytes != embedding->bytes || memcmp(head->data, embedding->data, head->bytes) != 0)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: tensor %s differs from the embedding: untied output heads are not built", binder->dir,
                               names[i]);
    }
    if (!found)
        return STATUS_FAIL(STATUS_INVALID, "%s: tie_word_embeddings is false, but tensor lm_head.weight is missing", binder->dir);
    return STATUS_OK;
}

static bool all_ones(const struct checkpoint_tensor *tensor)
{
    float value = 0;
    if (tensor->dtype == CHECKPOINT_OTHER || tensor->rank > 1 || (tensor->rank == 1 && tensor->shape[0] != 1))
        return false;
    checkpoint_read(tensor, 0, 1, &value);
    return value == 1;
}

/* Tensors that checkpoints carry and nothing reads: K and V of layers that read another layer's, and rotary tables. */
static bool is_unread(const struct binder *binder, const struct checkpoint_tensor *tensor)
{
    const struct model_config *config = &binder->family->config;
    unsigned layer;
    int used = 0;
    if (!has_prefix(tensor->name, binder->prefix))
        return false;
    const char *name = tensor->name + strlen(binder->prefix);
    if (has_prefix(name, "rotary_emb"))
        return true;
    if (sscanf(name, "layers.%u.%n", &layer, &used) != 1 || used == 0 || layer >= config->layer_count)
        return false;
    name += used;
    if (strcmp(name, "layer_scalar") == 0 && config->per_layer_input == 0)
        return all_ones(tensor);
    if (strstr(name, "rotary_emb."))
        return true;
    return config->kv_producer[layer] != layer &&
           (strcmp(name, "self_attn.k_proj.weight") == 0 || strcmp(name, "self_attn.v_proj.weight") == 0 ||
            strcmp(name, "self_attn.k_norm.weight") == 0);
}

static void note_skipped(struct source *source, const char *prefix, const struct checkpoint_tensor *tensor)
{
    source->skipped_count++;
    source->skipped_bytes += tensor->bytes;
    if (strstr(source->skipped_names, prefix))
        return;
    const size_t at = strlen(source->skipped_names);
    snprintf(source->skipped_names + at, sizeof source->skipped_names - at, "%s%s*", at ? ", " : "", prefix);
}

static enum status check_rest(struct binder *binder)
{
    for (unsigned i = 0; i < checkpoint_count(binder->source->checkpoint); i++) {
        const struct checkpoint_tensor *tensor = checkpoint_at(binder->source->checkpoint, i);
        if (binder->taken[i] || is_unread(binder, tensor))
            continue;
        const char *other = NULL;
        for (unsigned p = 0; family_other_prefixes[p] && !other && binder->family->family != FAMILY_ROOST; p++)
            if (has_prefix(tensor->name, family_other_prefixes[p]))
                other = family_other_prefixes[p];
        if (!other)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "%s: tensor %.128s has no place in this model", binder->dir, tensor->name);
        note_skipped(binder->source, other, tensor);
    }
    return STATUS_OK;
}

enum status source_open(const char *dir, const struct family_config *family, uint32_t vocab_size, const struct tensor_list *list,
                        struct source *out)
{
    struct source source = { .norm_plus_one = family->norm_plus_one };
    struct binder binder = { .family = family, .list = list, .dir = dir, .vocab_size = vocab_size, .source = &source };
    enum status st;
    TRY(checkpoint_open(dir, &source.checkpoint));
    source.tensors = calloc(list->count, sizeof *source.tensors);
    binder.taken = calloc(checkpoint_count(source.checkpoint) + 1, sizeof *binder.taken);
    if (!source.tensors || !binder.taken) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %u tensors", dir, list->count);
        goto done;
    }
    TRY_GOTO(find_prefix(&binder), st, done);
    for (uint32_t i = 0; i < list->count; i++)
        TRY_GOTO(bind_tensor(&binder, i), st, done);
    TRY_GOTO(check_head(&binder), st, done);
    TRY_GOTO(check_rest(&binder), st, done);
    *out = source;
    source = (struct source){ 0 };
done:
    free(binder.taken);
    source_close(&source);
    return st;
}

void source_read_row(const struct source *source, const struct tensor_list *list, uint32_t index, uint32_t row, float *out)
{
    const struct tensor *tensor = &list->tensors[index];
    const struct source_tensor *from = &source->tensors[index];
    const uint32_t width = tensor->columns ? tensor->columns : tensor->rows;
    checkpoint_read(from->data, (uint64_t)row * width, width, out);
    if (tensor->kind == TENSOR_NORM && source->norm_plus_one)
        for (uint32_t i = 0; i < width; i++)
            out[i] += 1;
    if (!from->scale)
        return;
    const uint32_t piece = width / tensor->scale_columns;
    for (uint32_t s = 0; s < tensor->scale_columns; s++) {
        float scale;
        checkpoint_read(from->scale, (uint64_t)row * tensor->scale_columns + s, 1, &scale);
        for (uint32_t i = s * piece; i < (s + 1) * piece; i++)
            out[i] *= scale;
    }
}
