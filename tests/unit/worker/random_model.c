#include "random_model.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TENSORS_MAX 4096u
#define INT8_SPREAD 73.3      /* standard deviation of integers drawn evenly from [-127, 127] */

enum fill { FILL_MATRIX, FILL_FLOATS };

struct tensor {
    char name[128];
    enum fill fill;
    uint32_t rows, columns;   /* columns 0: one dimension */
    double middle;            /* FILL_FLOATS: values lie evenly around it; FILL_MATRIX of a float format: of the scales */
};

struct plan {
    const struct random_model *shape;
    unsigned matrix_count;
    unsigned count;
    struct tensor tensors[TENSORS_MAX];
    char schemes[TENSORS_MAX * 64];      /* the entries of __metadata__ */
    size_t schemes_size;
};

static const char *const recipe_names[RANDOM_RECIPES] = {"dynamic", "static", "rotated", "wide", "mixed"};

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);   /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double random_unit(uint64_t *state)   /* [0, 1) */
{
    return (double)(random_next(state) >> 11) * 0x1p-53;
}

struct random_model random_model_small(void)
{
    static const unsigned producer[] = {0, 0, 2, 3, 3, 2};
    return (struct random_model){
        .name = "small", .seed = 1,
        .vocab_size = 512, .hidden_size = 96, .intermediate_size = 160,
        .head_count = 4, .kv_head_count = 1, .head_dim = 32,
        .context_tokens = 2048, .window = 24,
        .layers = "LLGLLG", .kv_producer = producer, .activation = "silu",
    };
}

struct random_model random_model_gqa(void)
{
    static const unsigned producer[] = {0, 1, 0, 3};
    return (struct random_model){
        .name = "gqa", .seed = 2,
        .vocab_size = 203, .hidden_size = 100, .intermediate_size = 132,
        .head_count = 6, .kv_head_count = 2, .head_dim = 20,
        .context_tokens = 2048, .window = 100,
        .layers = "LGLG", .kv_producer = producer, .activation = "gelu_pytorch_tanh",
    };
}

struct random_model random_model_mha(void)
{
    return (struct random_model){
        .name = "mha", .seed = 3,
        .vocab_size = 301, .hidden_size = 128, .intermediate_size = 256,
        .head_count = 4, .kv_head_count = 4, .head_dim = 32,
        .context_tokens = 4096,
        .layers = "GGG", .activation = "silu", .no_qk_norm = true,
    };
}

struct random_model random_model_sinks(void)
{
    return (struct random_model){
        .name = "sinks", .seed = 4,
        .vocab_size = 300, .hidden_size = 128, .intermediate_size = 128,
        .head_count = 8, .kv_head_count = 2, .head_dim = 16,
        .context_tokens = 4096, .window = 40, .sinks = 4,
        .layers = "LLL", .activation = "silu",
    };
}

struct random_model random_model_gemma3(void)
{
    return (struct random_model){
        .name = "gemma3", .seed = 5,
        .vocab_size = 384, .hidden_size = 128, .intermediate_size = 256,
        .head_count = 4, .kv_head_count = 1, .head_dim = 32,
        .context_tokens = 4096, .window = 48,
        .layers = "LLLLLGL", .activation = "gelu_pytorch_tanh",
        .sandwich_norm = true, .rope_global_scale = 8, .embedding_scale = 11.313708498984761,
    };
}

struct random_model random_model_gemma4(void)
{
    static const unsigned producer[] = {0, 1, 2, 3, 2, 2, 3};
    return (struct random_model){
        .name = "gemma4", .seed = 6,
        .vocab_size = 320, .hidden_size = 128, .intermediate_size = 128,
        .head_count = 4, .kv_head_count = 2, .head_dim = 32,
        .global_kv_head_count = 1, .global_head_dim = 64, .global_rope_pairs = 8,
        .context_tokens = 4096, .window = 32,
        .layers = "LLLGLLG", .kv_producer = producer, .activation = "gelu_pytorch_tanh",
        .sandwich_norm = true, .v_norm = true, .attention_scale = 1, .embedding_scale = 11.313708498984761,
        .logit_cap = 6, .per_layer_input = 24, .consumers_double = true,
    };
}

const struct random_model *random_model_at(unsigned index)
{
    static struct random_model (*const shapes[])(void) = {random_model_small, random_model_gqa, random_model_mha, random_model_sinks,
                                                          random_model_gemma3, random_model_gemma4};
    static struct random_model shape[sizeof shapes / sizeof *shapes];
    if (index >= sizeof shapes / sizeof *shapes)
        return NULL;
    shape[index] = shapes[index]();
    return &shape[index];
}

const char *random_recipe_name(enum random_recipe recipe)
{
    return recipe_names[recipe];
}

static void plan_add(struct plan *plan, int layer, const char *leaf, enum fill fill, uint32_t rows, uint32_t columns, double middle)
{
    struct tensor *tensor = &plan->tensors[plan->count++];
    if (layer >= 0)
        snprintf(tensor->name, sizeof tensor->name, "model.layers.%d.%s", layer, leaf);
    else
        snprintf(tensor->name, sizeof tensor->name, "model.%s", leaf);
    tensor->fill = fill;
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->middle = middle;
}

static void plan_add_norm(struct plan *plan, int layer, const char *leaf, uint32_t columns, double middle)
{
    char name[80];
    snprintf(name, sizeof name, "%s.weight", leaf);
    plan_add(plan, layer, name, FILL_FLOATS, columns, 0, middle);
}

static enum random_recipe choose_scheme(struct plan *plan, uint32_t columns, bool embedding)
{
    enum random_recipe scheme = plan->shape->recipe;
    if (scheme == RANDOM_RECIPE_MIXED)
        scheme = (enum random_recipe)(plan->matrix_count % 4);
    plan->matrix_count++;
    return scheme == RANDOM_RECIPE_ROTATED && (columns % 128 != 0 || embedding) ? RANDOM_RECIPE_DYNAMIC : scheme;
}

/* scale_columns 0: one scale a row. */
static void plan_add_weights(struct plan *plan, int layer, const char *leaf, uint32_t rows, uint32_t columns, uint32_t scale_columns,
                             double scale)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", leaf);
    plan_add(plan, layer, name, FILL_MATRIX, rows, columns, scale);
    snprintf(name, sizeof name, "%s.weight_scale", leaf);
    if (plan->shape->format == RANDOM_FORMAT_INT8)
        plan_add(plan, layer, name, FILL_FLOATS, rows, scale_columns, scale);
}

/* Outputs are about gain times as large as inputs; scheme static takes the size of inputs to be input_spread. */
static void plan_add_matrix(struct plan *plan, int layer, const char *leaf, uint32_t rows, uint32_t columns, double gain,
                            double input_spread)
{
    double scale = gain / (INT8_SPREAD * sqrt((double)columns));
    enum random_recipe scheme = choose_scheme(plan, columns, strcmp(leaf, "embed_tokens") == 0);
    char name[96];
    if (scheme == RANDOM_RECIPE_ROTATED && plan->shape->format == RANDOM_FORMAT_INT8)
        scale /= sqrt(128.0);            /* the butterfly's gain */
    plan_add_weights(plan, layer, leaf, rows, columns, 0, scale);
    if (plan->shape->format != RANDOM_FORMAT_INT8 || scheme == RANDOM_RECIPE_DYNAMIC)
        return;
    const struct tensor *tensor = &plan->tensors[plan->count - 2];
    plan->schemes_size += (size_t)snprintf(plan->schemes + plan->schemes_size, sizeof plan->schemes - plan->schemes_size,
                                           ",\"activation_scheme.%s\":\"%s\"", tensor->name, recipe_names[scheme]);
    snprintf(name, sizeof name, "%s.weight_input_scale", leaf);
    if (scheme == RANDOM_RECIPE_STATIC)
        plan_add(plan, layer, name, FILL_FLOATS, 1, 0, 6 * input_spread / 127);
}

static bool is_producer(const struct random_model *shape, int layer)
{
    return !shape->kv_producer || shape->kv_producer[layer] == (unsigned)layer;
}

static uint32_t inner_width(const struct random_model *shape, int layer)
{
    return shape->consumers_double && !is_producer(shape, layer) ? 2 * shape->intermediate_size : shape->intermediate_size;
}

static void plan_attention(const struct random_model *shape, struct plan *plan, int layer)
{
    bool global = shape->layers[layer] == 'G';
    uint32_t hidden = shape->hidden_size;
    uint32_t dim = global && shape->global_head_dim ? shape->global_head_dim : shape->head_dim;
    uint32_t kv_heads = global && shape->global_kv_head_count ? shape->global_kv_head_count : shape->kv_head_count;
    /* Scores of two random directions spread by 3. */
    double qk = shape->attention_scale > 0 ? sqrt(3.0 / (shape->attention_scale * sqrt((double)dim))) : 1.7;
    plan_add_matrix(plan, layer, "self_attn.q_proj", shape->head_count * dim, hidden, shape->no_qk_norm ? 1.7 : 1.0, 1.0);
    if (is_producer(shape, layer)) {
        plan_add_matrix(plan, layer, "self_attn.k_proj", kv_heads * dim, hidden, shape->no_qk_norm ? 1.7 : 1.0, 1.0);
        plan_add_matrix(plan, layer, "self_attn.v_proj", kv_heads * dim, hidden, 1.0, 1.0);
        if (!shape->no_qk_norm)
            plan_add_norm(plan, layer, "self_attn.k_norm", dim, qk);
    }
    plan_add_matrix(plan, layer, "self_attn.o_proj", hidden, shape->head_count * dim, 0.6, 0.9);
    if (!shape->no_qk_norm)
        plan_add_norm(plan, layer, "self_attn.q_norm", dim, qk);
}

static void plan_layer(const struct random_model *shape, struct plan *plan, int layer)
{
    uint32_t hidden = shape->hidden_size, inner = inner_width(shape, layer), width = shape->per_layer_input;
    plan_attention(shape, plan, layer);
    plan_add_matrix(plan, layer, "mlp.gate_proj", inner, hidden, 1.0, 1.0);
    plan_add_matrix(plan, layer, "mlp.up_proj", inner, hidden, 1.0, 1.0);
    plan_add_matrix(plan, layer, "mlp.down_proj", hidden, inner, 1.0, 1.6);
    plan_add_norm(plan, layer, "input_layernorm", hidden, 1.0);
    plan_add_norm(plan, layer, "post_attention_layernorm", hidden, 1.0);
    if (shape->sandwich_norm) {
        plan_add_norm(plan, layer, "pre_feedforward_layernorm", hidden, 1.0);
        plan_add_norm(plan, layer, "post_feedforward_layernorm", hidden, 1.0);
    }
    if (!width)
        return;
    plan_add_matrix(plan, layer, "per_layer_input_gate", width, hidden, 0.4, 4.0);
    plan_add_matrix(plan, layer, "per_layer_projection", hidden, width, 1.0, 1.2);
    plan_add_norm(plan, layer, "post_per_layer_input_norm", hidden, 0.5);
    plan_add(plan, layer, "layer_scalar", FILL_FLOATS, 1, 0, 0.9);
}

static void plan_model(const struct random_model *shape, struct plan *plan)
{
    uint32_t layers = (uint32_t)strlen(shape->layers), width = shape->per_layer_input;
    plan->shape = shape;
    plan_add_matrix(plan, -1, "embed_tokens", shape->vocab_size, shape->hidden_size, 4.0, 1.0);
    for (uint32_t layer = 0; layer < layers; layer++)
        plan_layer(shape, plan, (int)layer);
    plan_add_norm(plan, -1, "norm", shape->hidden_size, 1.0);
    if (!width)
        return;
    plan_add_weights(plan, -1, "embed_tokens_per_layer", shape->vocab_size, layers * width, layers, 1.0 / (INT8_SPREAD * sqrt((double)width)));
    plan_add_matrix(plan, -1, "per_layer_model_projection", layers * width, shape->hidden_size, 1.0, 4.0);
    plan_add_norm(plan, -1, "per_layer_projection_norm", width, 1.0);
}

static unsigned element_bytes(const struct plan *plan, const struct tensor *tensor)
{
    static const unsigned bytes[] = {[RANDOM_FORMAT_INT8] = 1, [RANDOM_FORMAT_FLOAT] = 4, [RANDOM_FORMAT_BF16] = 2};
    return tensor->fill == FILL_MATRIX ? bytes[plan->shape->format] : 4;
}

static uint64_t element_count(const struct tensor *tensor)
{
    return (uint64_t)tensor->rows * (tensor->columns ? tensor->columns : 1);
}

static void write_header(const struct plan *plan, FILE *file)
{
    static const char *const dtypes[] = {[1] = "I8", [2] = "BF16", [4] = "F32"};
    char *text = NULL;
    size_t size = 0;
    FILE *header = open_memstream(&text, &size);
    uint64_t at = 0;
    fprintf(header, "{\"__metadata__\":{%s%s}", plan->shape->format == RANDOM_FORMAT_INT8
            ? "\"format\":\"roost-int8\",\"activation_scheme\":\"dynamic\"" : "\"format\":\"roost-float\"", plan->schemes);
    for (unsigned i = 0; i < plan->count; i++) {
        const struct tensor *tensor = &plan->tensors[i];
        uint64_t end = at + element_count(tensor) * element_bytes(plan, tensor);
        fprintf(header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", tensor->name, dtypes[element_bytes(plan, tensor)], tensor->rows);
        if (tensor->columns)
            fprintf(header, ",%u", tensor->columns);
        fprintf(header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at, (unsigned long long)end);
        at = end;
    }
    fprintf(header, "}");
    fflush(header);
    while ((size + 8) % 64) {
        fputc(' ', header);
        fflush(header);
    }
    fclose(header);
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)size >> 8 * i);
    fwrite(length, 1, sizeof length, file);
    fwrite(text, 1, size, file);
    free(text);
}

/* Little-endian hosts only, as the engine. */
static void write_element(const struct plan *plan, int value, float scale, FILE *file)
{
    float real = (float)value * scale;
    if (plan->shape->format == RANDOM_FORMAT_INT8) {
        fputc((uint8_t)(int8_t)value, file);
    } else if (plan->shape->format == RANDOM_FORMAT_FLOAT) {
        fwrite(&real, sizeof real, 1, file);
    } else {
        uint32_t bits;
        memcpy(&bits, &real, sizeof bits);
        uint16_t half = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);      /* half to even */
        fwrite(&half, sizeof half, 1, file);
    }
}

static void write_matrix(const struct plan *plan, const struct tensor *tensor, uint64_t *state, FILE *file)
{
    /* The scales of a float format come from a stream of their own behind the integers, where they would lie in the int8 file. */
    uint64_t scales = *state + element_count(tensor) * 0x9e3779b97f4a7c15u;
    bool per_layer = strstr(tensor->name, "embed_tokens_per_layer") != NULL;
    uint32_t group = per_layer ? plan->shape->per_layer_input : tensor->columns;
    float scale = 0;
    for (uint64_t i = 0; i < element_count(tensor); i++) {
        if (plan->shape->format != RANDOM_FORMAT_INT8 && i % group == 0)
            scale = (float)(tensor->middle * (0.75 + 0.5 * random_unit(&scales)));
        write_element(plan, (int)(random_next(state) % 255) - 127, scale, file);
    }
    if (plan->shape->format != RANDOM_FORMAT_INT8)
        *state = scales;
}

static void write_tensor(const struct plan *plan, const struct tensor *tensor, uint64_t *state, FILE *file)
{
    if (tensor->fill == FILL_MATRIX) {
        write_matrix(plan, tensor, state, file);
        return;
    }
    for (uint64_t i = 0; i < element_count(tensor); i++) {
        float value = (float)(tensor->middle * (0.75 + 0.5 * random_unit(state)));
        fwrite(&value, sizeof value, 1, file);
    }
}

static void write_option(FILE *file, const char *key, double value)
{
    if (value != 0)
        fprintf(file, "\"%s\":%.17g,", key, value);
}

static void write_options(const struct random_model *shape, FILE *file)
{
    write_option(file, "sliding_window", shape->window);
    write_option(file, "global_num_key_value_heads", shape->global_kv_head_count);
    write_option(file, "global_head_dim", shape->global_head_dim);
    write_option(file, "rope_global_pairs", shape->global_rope_pairs);
    write_option(file, "rope_global_scale", shape->rope_global_scale);
    write_option(file, "attention_scale", shape->attention_scale);
    write_option(file, "embedding_scale", shape->embedding_scale);
    write_option(file, "final_logit_softcapping", shape->logit_cap);
    write_option(file, "attention_sinks", shape->sinks);
    write_option(file, "hidden_size_per_layer_input", shape->per_layer_input);
    fprintf(file, "\"qk_norm\":%s,\"v_norm\":%s,\"norm_placement\":\"%s\",", shape->no_qk_norm ? "false" : "true",
            shape->v_norm ? "true" : "false", shape->sandwich_norm ? "sandwich" : "pre");
}

static void write_config(const struct random_model *shape, FILE *file)
{
    fprintf(file,
            "{\"architectures\":[\"RoostForCausalLM\"],\"model_type\":\"roost\",\"name\":\"random-%s\","
            "\"vocab_size\":%u,\"hidden_size\":%u,\"num_hidden_layers\":%zu,"
            "\"num_attention_heads\":%u,\"num_key_value_heads\":%u,\"head_dim\":%u,\"hidden_activation\":\"%s\","
            "\"max_position_embeddings\":%u,\"rms_norm_eps\":1e-06,\"rope_theta\":100000.0,"
            "\"rope_local_base_freq\":10000.0,",
            shape->name, shape->vocab_size, shape->hidden_size, strlen(shape->layers), shape->head_count, shape->kv_head_count,
            shape->head_dim, shape->activation, shape->context_tokens);
    write_options(shape, file);
    fprintf(file, "\"intermediate_size\":[");
    for (size_t i = 0; shape->layers[i]; i++)
        fprintf(file, "%s%u", i ? "," : "", inner_width(shape, (int)i));
    fprintf(file, "],\"layer_types\":[");
    for (size_t i = 0; shape->layers[i]; i++)
        fprintf(file, "%s\"%s\"", i ? "," : "", shape->layers[i] == 'L' ? "sliding_attention" : "full_attention");
    fprintf(file, "],\"kv_producer\":[");
    for (size_t i = 0; shape->layers[i]; i++)
        fprintf(file, "%s%u", i ? "," : "", shape->kv_producer ? shape->kv_producer[i] : (unsigned)i);
    fprintf(file, "],\"tie_word_embeddings\":true,\"chat_template\":\"speaker\",\"bos_token_id\":1,\"eos_token_id\":2,"
                  "\"turn_token_id\":3,\"text_token_id\":4}\n");
}

static enum status copy_tokenizer(const char *dir)
{
    const char *root = getenv("ROOST_SOURCE_DIR");
    char path[2 * RANDOM_MODEL_PATH_MAX];
    snprintf(path, sizeof path, "%s/deploy/models/folio/tokenizer.model", root ? root : ".");
    FILE *in = fopen(path, "rb");
    if (!in)
        return STATUS_FAIL(STATUS_NOT_FOUND, "cannot open %s", path);
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    FILE *out = fopen(path, "wb");
    char piece[4096];
    size_t size;
    while (out && (size = fread(piece, 1, sizeof piece, in)) > 0)
        fwrite(piece, 1, size, out);
    fclose(in);
    return out && fclose(out) == 0 ? STATUS_OK : STATUS_FAIL(STATUS_IO, "cannot write %s", path);
}

enum status random_model_write(const struct random_model *shape, const char *dir)
{
    char path[2 * RANDOM_MODEL_PATH_MAX];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *file = fopen(path, "w");
    if (!file)
        return STATUS_FAIL(STATUS_IO, "cannot write %s", path);
    write_config(shape, file);
    if (fclose(file) != 0)
        return STATUS_FAIL(STATUS_IO, "cannot write %s", path);

    struct plan *plan = calloc(1, sizeof *plan);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    file = fopen(path, "wb");
    if (!file || !plan) {
        free(plan);
        return STATUS_FAIL(STATUS_IO, "cannot write %s", path);
    }
    plan_model(shape, plan);
    write_header(plan, file);
    uint64_t state = shape->seed;
    for (unsigned i = 0; i < plan->count; i++)
        write_tensor(plan, &plan->tensors[i], &state, file);
    free(plan);
    if (fclose(file) != 0)
        return STATUS_FAIL(STATUS_IO, "cannot write %s", path);
    return shape->tokenizer ? copy_tokenizer(dir) : STATUS_OK;
}

enum status random_model_create(const struct random_model *shape, char dir[RANDOM_MODEL_PATH_MAX])
{
    const char *base = getenv("TMPDIR");
    snprintf(dir, RANDOM_MODEL_PATH_MAX, "%s/roost-model-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(dir))
        return STATUS_FAIL(STATUS_IO, "cannot make a folder like %s", dir);
    return random_model_write(shape, dir);
}

void random_model_remove(const char *dir)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.model", "known_answer.json"};
    char path[2 * RANDOM_MODEL_PATH_MAX];
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        (void)unlink(path);
    }
    (void)rmdir(dir);
}
