#include "worker/convert/tensor_list.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define LAYER_TENSORS_MAX 18u

/* Appends a tensor and returns its index. The list has room: see tensor_list_create. */
__attribute__((format(printf, 5, 6)))
static uint32_t add(struct tensor_list *list, enum tensor_kind kind, uint32_t rows, uint32_t columns, const char *format, ...)
{
    struct tensor *tensor = &list->tensors[list->count];
    *tensor = (struct tensor){ .kind = kind, .rows = rows, .columns = columns, .scale_columns = 1, .input_norm = TENSOR_NONE };
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(tensor->name, sizeof tensor->name, format, arguments);
    va_end(arguments);
    return list->count++;
}

static uint32_t add_norm(struct tensor_list *list, uint32_t layer, const char *leaf, uint32_t count)
{
    return add(list, TENSOR_NORM, count, 0, "model.layers.%u.%s.weight", layer, leaf);
}

static void add_matrix(struct tensor_list *list, uint32_t layer, const char *leaf, uint32_t rows, uint32_t columns, uint32_t input_norm)
{
    const uint32_t index = add(list, TENSOR_MATRIX, rows, columns, "model.layers.%u.%s.weight", layer, leaf);
    list->tensors[index].input_norm = input_norm;
}

static void add_attention(struct tensor_list *list, const struct model_config *config, uint32_t layer)
{
    const struct model_attention *attention = &config->attention[config->layer_types[layer]];
    const uint32_t hidden = config->hidden_size, width = config->head_count * attention->head_dim;
    const uint32_t kv_width = attention->kv_head_count * attention->head_dim;
    const bool producer = config->kv_producer[layer] == layer;
    const uint32_t norm = add_norm(list, layer, "input_layernorm", hidden);
    add_matrix(list, layer, "self_attn.q_proj", width, hidden, norm);
    if (config->qk_norm)
        add_norm(list, layer, "self_attn.q_norm", attention->head_dim);
    if (producer) {
        add_matrix(list, layer, "self_attn.k_proj", kv_width, hidden, norm);
        add_matrix(list, layer, "self_attn.v_proj", kv_width, hidden, norm);
        if (config->qk_norm)
            add_norm(list, layer, "self_attn.k_norm", attention->head_dim);
    }
    add_matrix(list, layer, "self_attn.o_proj", hidden, width, TENSOR_NONE);
}

static void add_mlp(struct tensor_list *list, const struct model_config *config, uint32_t layer)
{
    const uint32_t hidden = config->hidden_size, inner = config->intermediate_size[layer];
    uint32_t norm = add_norm(list, layer, "post_attention_layernorm", hidden);
    if (config->sandwich_norm) {
        norm = add_norm(list, layer, "pre_feedforward_layernorm", hidden);
        add_norm(list, layer, "post_feedforward_layernorm", hidden);
    }
    add_matrix(list, layer, "mlp.gate_proj", inner, hidden, norm);
    add_matrix(list, layer, "mlp.up_proj", inner, hidden, norm);
    add_matrix(list, layer, "mlp.down_proj", hidden, inner, TENSOR_NONE);
}

static void add_per_layer(struct tensor_list *list, const struct model_config *config, uint32_t layer)
{
    const uint32_t hidden = config->hidden_size, width = config->per_layer_input;
    add_matrix(list, layer, "per_layer_input_gate", width, hidden, TENSOR_NONE);
    add_matrix(list, layer, "per_layer_projection", hidden, width, TENSOR_NONE);
    add_norm(list, layer, "post_per_layer_input_norm", hidden);
    add(list, TENSOR_SCALAR, 1, 0, "model.layers.%u.layer_scalar", layer);
}

enum status tensor_list_create(const struct model_config *config, struct tensor_list *out)
{
    struct tensor_list list = { .tensors = calloc(config->layer_count * LAYER_TENSORS_MAX + 8, sizeof *list.tensors) };
    if (!list.tensors)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a list of tensors");
    const uint32_t hidden = config->hidden_size, width = config->per_layer_input, n = config->layer_count;
    add(&list, TENSOR_EMBEDDING, config->vocab_size, hidden, "model.embed_tokens.weight");
    add(&list, TENSOR_NORM, hidden, 0, "model.norm.weight");
    if (width) {
        const uint32_t lookup = add(&list, TENSOR_LOOKUP, config->vocab_size, n * width, "model.embed_tokens_per_layer.weight");
        list.tensors[lookup].scale_columns = n;
        add(&list, TENSOR_MATRIX, n * width, hidden, "model.per_layer_model_projection.weight");
        add(&list, TENSOR_NORM, width, 0, "model.per_layer_projection_norm.weight");
    }
    for (uint32_t layer = 0; layer < n; layer++) {
        add_attention(&list, config, layer);
        add_mlp(&list, config, layer);
        if (width)
            add_per_layer(&list, config, layer);
    }
    *out = list;
    return STATUS_OK;
}

void tensor_list_free(struct tensor_list *list)
{
    free(list->tensors);
    *list = (struct tensor_list){ 0 };
}
