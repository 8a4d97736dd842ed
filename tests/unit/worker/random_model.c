#include "random_model.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "worker/engine/model/model.h"

#define TENSORS_MAX 4096u
#define REPEATED_BYTES ((size_t)1 << 20)
#define INT8_SPREAD 73.3      /* standard deviation of integers drawn evenly from [-127, 127] */

enum fill { FILL_MATRIX, FILL_FLOATS };

struct tensor {
    char name[128];
    enum fill fill;
    uint32_t rows, columns;   /* columns 0: one dimension */
    double middle;            /* FILL_FLOATS: values lie evenly around it; FILL_MATRIX of a float format: of the scales */
    enum random_recipe scheme;   /* FILL_MATRIX of int8 */
    void *data;               /* in memory: (rows, columns) */
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
    struct tensor *tensor = &plan->tensors[plan->count - 2];
    tensor->scheme = scheme;
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

static void put_real(const struct plan *plan, float real, size_t index, void *out)
{
    if (plan->shape->format == RANDOM_FORMAT_FLOAT) {
        ((float *)out)[index] = real;
    } else {
        uint32_t bits;
        memcpy(&bits, &real, sizeof bits);
        ((uint16_t *)out)[index] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);      /* half to even */
    }
}

static void fill_real_matrix(const struct plan *plan, const struct tensor *tensor, uint64_t *state, void *out)
{
    /* The scales come from a stream of their own behind the integers, where they would lie in the int8 file. */
    uint64_t scales = *state + element_count(tensor) * 0x9e3779b97f4a7c15u;
    bool per_layer = strstr(tensor->name, "embed_tokens_per_layer") != NULL;
    uint32_t group = per_layer ? plan->shape->per_layer_input : tensor->columns;
    float scale = 0;
    for (uint64_t i = 0; i < element_count(tensor); i++) {
        if (i % group == 0)
            scale = (float)(tensor->middle * (0.75 + 0.5 * random_unit(&scales)));
        put_real(plan, (float)((int)(random_next(state) % 255) - 127) * scale, i, out);
    }
    *state = scales;
}

static void fill_int8_matrix(const struct plan *plan, const struct tensor *tensor, uint64_t *state, int8_t *out)
{
    const uint64_t count = element_count(tensor), drawn = plan->shape->repeated && count > REPEATED_BYTES ? REPEATED_BYTES : count;
    for (uint64_t i = 0; i < drawn; i++)
        out[i] = (int8_t)((int)(random_next(state) % 255) - 127);
    for (uint64_t i = drawn; i < count; i += drawn)
        memcpy(out + i, out, count - i < drawn ? count - i : drawn);
}

/* Little-endian hosts only, as the engine. */
static void fill_tensor(const struct plan *plan, const struct tensor *tensor, uint64_t *state, void *out)
{
    if (tensor->fill == FILL_FLOATS) {
        for (uint64_t i = 0; i < element_count(tensor); i++)
            ((float *)out)[i] = (float)(tensor->middle * (0.75 + 0.5 * random_unit(state)));
    } else if (plan->shape->format == RANDOM_FORMAT_INT8) {
        fill_int8_matrix(plan, tensor, state, out);
    } else {
        fill_real_matrix(plan, tensor, state, out);
    }
}

/* In small pieces: written at once it would lie in large pages of the page cache, and mapping a part of the file would map them whole
 * (parallel_test looks at what a rank has mapped). */
static bool write_pieces(const char *data, size_t bytes, FILE *file)
{
    enum { PIECE = 2048 };
    for (size_t at = 0; at < bytes; at += PIECE)
        if (fwrite(data + at, 1, bytes - at < PIECE ? bytes - at : PIECE, file) != (bytes - at < PIECE ? bytes - at : PIECE))
            return false;
    return true;
}

static bool write_tensor(const struct plan *plan, const struct tensor *tensor, uint64_t *state, FILE *file)
{
    const size_t bytes = element_count(tensor) * element_bytes(plan, tensor);
    void *data = malloc(bytes);
    if (!data)
        return false;
    fill_tensor(plan, tensor, state, data);
    const bool written = write_pieces(data, bytes, file);
    free(data);
    return written;
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
    bool written = true;
    for (unsigned i = 0; i < plan->count && written; i++)
        written = write_tensor(plan, &plan->tensors[i], &state, file);
    free(plan);
    if (fclose(file) != 0 || !written)
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

/* ---- in memory ---- */

static const struct tensor *find_tensor(const struct plan *plan, int layer, const char *leaf)
{
    char name[128];
    if (layer >= 0)
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, leaf);
    else
        snprintf(name, sizeof name, "model.%s", leaf);
    for (unsigned i = 0; i < plan->count; i++)
        if (strcmp(plan->tensors[i].name, name) == 0)
            return &plan->tensors[i];
    return NULL;
}

/* NULL where the model has none. */
static const float *bind_floats(const struct plan *plan, int layer, const char *leaf)
{
    const struct tensor *tensor = find_tensor(plan, layer, leaf);
    return tensor ? tensor->data : NULL;
}

static const float *bind_norm(const struct plan *plan, int layer, const char *leaf)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", leaf);
    return bind_floats(plan, layer, name);
}

static void bind_matrix(const struct plan *plan, int layer, const char *leaf, struct model_matrix *out)
{
    static const enum model_element elements[] = {
        [RANDOM_FORMAT_INT8] = MODEL_ELEMENT_I8, [RANDOM_FORMAT_FLOAT] = MODEL_ELEMENT_F32, [RANDOM_FORMAT_BF16] = MODEL_ELEMENT_BF16};
    static const enum model_scheme schemes[] = {[RANDOM_RECIPE_DYNAMIC] = MODEL_SCHEME_DYNAMIC, [RANDOM_RECIPE_STATIC] = MODEL_SCHEME_STATIC,
                                                [RANDOM_RECIPE_ROTATED] = MODEL_SCHEME_ROTATED, [RANDOM_RECIPE_WIDE] = MODEL_SCHEME_WIDE};
    char name[96];
    snprintf(name, sizeof name, "%s.weight", leaf);
    const struct tensor *tensor = find_tensor(plan, layer, name);
    if (!tensor)
        return;
    snprintf(name, sizeof name, "%s.weight_scale", leaf);
    *out = (struct model_matrix){.element = elements[plan->shape->format], .scheme = schemes[tensor->scheme], .weight = tensor->data,
                                 .scale = bind_floats(plan, layer, name), .rows = tensor->rows, .columns = tensor->columns};
    snprintf(name, sizeof name, "%s.weight_input_scale", leaf);
    const float *input_scale = bind_floats(plan, layer, name);
    out->input_scale = input_scale ? *input_scale : 0.0f;
}

static void bind_layer(const struct plan *plan, int index, struct model_layer *layer)
{
    const struct {
        const char *leaf;
        struct model_matrix *matrix;
    } matrices[] = {
        {"self_attn.q_proj", &layer->q_proj}, {"self_attn.k_proj", &layer->k_proj}, {"self_attn.v_proj", &layer->v_proj},
        {"self_attn.o_proj", &layer->o_proj}, {"mlp.gate_proj", &layer->gate_proj}, {"mlp.up_proj", &layer->up_proj},
        {"mlp.down_proj", &layer->down_proj}, {"per_layer_input_gate", &layer->per_layer_gate},
        {"per_layer_projection", &layer->per_layer_proj},
    };
    const bool sandwich = plan->shape->sandwich_norm;
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        bind_matrix(plan, index, matrices[i].leaf, matrices[i].matrix);
    const float *behind_attention = bind_norm(plan, index, "post_attention_layernorm"), *scalar = bind_floats(plan, index, "layer_scalar");
    layer->input_norm = bind_norm(plan, index, "input_layernorm");
    layer->attention_norm = sandwich ? behind_attention : NULL;
    layer->mlp_norm = sandwich ? bind_norm(plan, index, "pre_feedforward_layernorm") : behind_attention;
    layer->mlp_result_norm = bind_norm(plan, index, "post_feedforward_layernorm");
    layer->q_norm = bind_norm(plan, index, "self_attn.q_norm");
    layer->k_norm = bind_norm(plan, index, "self_attn.k_norm");
    layer->per_layer_norm = bind_norm(plan, index, "post_per_layer_input_norm");
    layer->layer_scalar = scalar ? *scalar : 1.0f;
}

static void make_attention(const struct random_model *shape, bool global, struct model_attention *out)
{
    *out = (struct model_attention){.kv_head_count = shape->kv_head_count, .head_dim = shape->head_dim, .rope_base = global ? 1e5 : 1e4, .rope_scale = 1};
    if (global && shape->global_kv_head_count)
        out->kv_head_count = shape->global_kv_head_count;
    if (global && shape->global_head_dim)
        out->head_dim = shape->global_head_dim;
    if (global && shape->rope_global_scale > 0)
        out->rope_scale = shape->rope_global_scale;
    out->rope_pairs = global && shape->global_rope_pairs ? shape->global_rope_pairs : out->head_dim / 2;
    out->window = global ? 0 : shape->window;
    out->sinks = global ? 0 : shape->sinks;
}

/* As model_config.c reads what write_config writes. */
static void make_config(const struct random_model *shape, struct model_config *out)
{
    *out = (struct model_config){
        .family = "roost", .vocab_size = shape->vocab_size, .hidden_size = shape->hidden_size, .layer_count = (uint32_t)strlen(shape->layers),
        .head_count = shape->head_count, .context_tokens_max = shape->context_tokens, .norm_epsilon = (float)1e-6,
        .attention_scale = (float)(shape->attention_scale > 0 ? shape->attention_scale : 1 / sqrt((double)shape->head_dim)),
        .embedding_scale = shape->embedding_scale > 0 ? (float)shape->embedding_scale : 1.0f, .logit_cap = (float)shape->logit_cap,
        .qk_norm = !shape->no_qk_norm, .v_norm = shape->v_norm, .sandwich_norm = shape->sandwich_norm,
        .activation = strcmp(shape->activation, "silu") == 0 ? MODEL_ACTIVATION_SILU : MODEL_ACTIVATION_GELU_TANH,
        .per_layer_input = shape->per_layer_input, .bos_id = 1, .end_ids = {2}, .end_id_count = 1, .turn_id = 3, .text_id = 4,
    };
    snprintf(out->name, sizeof out->name, "random-%s", shape->name);
    make_attention(shape, true, &out->attention[MODEL_LAYER_GLOBAL]);
    make_attention(shape, false, &out->attention[MODEL_LAYER_LOCAL]);
    for (uint32_t i = 0; i < out->layer_count; i++) {
        out->layer_types[i] = shape->layers[i] == 'G' ? MODEL_LAYER_GLOBAL : MODEL_LAYER_LOCAL;
        out->intermediate_size[i] = inner_width(shape, (int)i);
        out->kv_producer[i] = (uint16_t)(shape->kv_producer ? shape->kv_producer[i] : i);
        if (out->kv_producer[i] == i) {
            out->producer_slot[i] = out->producer_count[out->layer_types[i]]++;
            out->last_producer = (uint16_t)i;
        }
    }
}

struct model *random_model_make(const struct random_model *shape)
{
    struct plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return NULL;
    plan_model(shape, plan);
    size_t bytes = (sizeof(struct model) + 63) / 64 * 64;
    for (unsigned i = 0; i < plan->count; i++)
        bytes += (element_count(&plan->tensors[i]) * element_bytes(plan, &plan->tensors[i]) + 63) / 64 * 64;
    struct model *model = aligned_alloc(64, bytes);           /* one piece, as model_destroy gives back one */
    if (model) {
        char *at = (char *)model + (sizeof *model + 63) / 64 * 64;
        uint64_t state = shape->seed;
        memset(model, 0, sizeof *model);
        for (unsigned i = 0; i < plan->count; i++) {
            struct tensor *tensor = &plan->tensors[i];
            tensor->data = at;
            fill_tensor(plan, tensor, &state, at);
            at += (element_count(tensor) * element_bytes(plan, tensor) + 63) / 64 * 64;
        }
        model->format = shape->format == RANDOM_FORMAT_INT8 ? MODEL_FORMAT_INT8 : MODEL_FORMAT_FLOAT;
        make_config(shape, &model->config);
        bind_matrix(plan, -1, "embed_tokens", &model->embedding);
        bind_matrix(plan, -1, "embed_tokens_per_layer", &model->per_layer_embedding);
        bind_matrix(plan, -1, "per_layer_model_projection", &model->per_layer_model_proj);
        model->final_norm = bind_norm(plan, -1, "norm");
        model->per_layer_proj_norm = bind_norm(plan, -1, "per_layer_projection_norm");
        for (uint32_t i = 0; i < model->config.layer_count; i++)
            bind_layer(plan, (int)i, &model->layers[i]);
    }
    free(plan);
    return model;
}
