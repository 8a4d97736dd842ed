#include "random_model.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TENSORS_MAX 4096u

enum fill { FILL_MATRIX, FILL_SCALE, FILL_NORM };

struct tensor {
    char name[128];
    enum fill fill;
    uint32_t rows, columns;   /* columns 0: one dimension */
    double spread;            /* FILL_SCALE: the scale; FILL_NORM: the middle */
};

struct plan {
    unsigned count;
    struct tensor tensors[TENSORS_MAX];
};

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
        .seed = 1,
        .vocab_size = 512, .hidden_size = 96, .intermediate_size = 160,
        .head_count = 4, .kv_head_count = 1, .head_dim = 32,
        .context_tokens = 2048, .window = 24,
        .layers = "LLGLLG", .kv_producer = producer, .activation = "silu",
    };
}

static void plan_add(struct plan *plan, const char *prefix, int layer, const char *leaf, enum fill fill, uint32_t rows,
                     uint32_t columns, double spread)
{
    struct tensor *tensor = &plan->tensors[plan->count++];
    if (layer >= 0)
        snprintf(tensor->name, sizeof tensor->name, "model.layers.%d.%s", layer, leaf);
    else
        snprintf(tensor->name, sizeof tensor->name, "%s%s", prefix, leaf);
    tensor->fill = fill;
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->spread = spread;
}

static void plan_add_matrix(struct plan *plan, const char *prefix, int layer, const char *leaf, uint32_t rows,
                            uint32_t columns, double gain)
{
    char name[80];
    snprintf(name, sizeof name, "%s.weight", leaf);
    plan_add(plan, prefix, layer, name, FILL_MATRIX, rows, columns, 0);
    snprintf(name, sizeof name, "%s.weight_scale", leaf);
    plan_add(plan, prefix, layer, name, FILL_SCALE, rows, 0, gain / (73.3 * sqrt((double)columns)));
}

static void plan_model(const struct random_model *shape, struct plan *plan)
{
    uint32_t hidden = shape->hidden_size, inner = shape->intermediate_size, dim = shape->head_dim;
    uint32_t q_width = shape->head_count * dim, kv_width = shape->kv_head_count * dim;
    int layers = (int)strlen(shape->layers);

    plan_add_matrix(plan, "model.", -1, "embed_tokens", shape->vocab_size, hidden, 4.0);
    for (int layer = 0; layer < layers; layer++) {
        plan_add_matrix(plan, "", layer, "self_attn.q_proj", q_width, hidden, 1.0);
        if (!shape->kv_producer || shape->kv_producer[layer] == (unsigned)layer) {
            plan_add_matrix(plan, "", layer, "self_attn.k_proj", kv_width, hidden, 1.0);
            plan_add_matrix(plan, "", layer, "self_attn.v_proj", kv_width, hidden, 1.0);
            plan_add(plan, "", layer, "self_attn.k_norm.weight", FILL_NORM, dim, 0, 1.7);
        }
        plan_add_matrix(plan, "", layer, "self_attn.o_proj", hidden, q_width, 0.6);
        plan_add(plan, "", layer, "self_attn.q_norm.weight", FILL_NORM, dim, 0, 1.7);
        plan_add_matrix(plan, "", layer, "mlp.gate_proj", inner, hidden, 1.0);
        plan_add_matrix(plan, "", layer, "mlp.up_proj", inner, hidden, 1.0);
        plan_add_matrix(plan, "", layer, "mlp.down_proj", hidden, inner, 1.0);
        plan_add(plan, "", layer, "input_layernorm.weight", FILL_NORM, hidden, 0, 1.0);
        plan_add(plan, "", layer, "post_attention_layernorm.weight", FILL_NORM, hidden, 0, 1.0);
    }
    plan_add(plan, "model.", -1, "norm.weight", FILL_NORM, hidden, 0, 1.0);
}

static uint64_t tensor_bytes(const struct tensor *tensor)
{
    return tensor->fill == FILL_MATRIX ? (uint64_t)tensor->rows * tensor->columns : 4u * (uint64_t)tensor->rows;
}

static void write_header(const struct plan *plan, FILE *file)
{
    char *text = NULL;
    size_t size = 0;
    FILE *header = open_memstream(&text, &size);
    uint64_t at = 0;
    fprintf(header, "{\"__metadata__\":{\"format\":\"roost-int8\",\"activation_scheme\":\"dynamic\"}");
    for (unsigned i = 0; i < plan->count; i++) {
        const struct tensor *tensor = &plan->tensors[i];
        uint64_t end = at + tensor_bytes(tensor);
        fprintf(header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", tensor->name, tensor->columns ? "I8" : "F32", tensor->rows);
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

static void write_tensor(const struct tensor *tensor, uint64_t *state, FILE *file)
{
    if (tensor->fill == FILL_MATRIX) {
        for (uint64_t i = 0; i < tensor_bytes(tensor); i++)
            fputc((uint8_t)(int8_t)((int)(random_next(state) % 255) - 127), file);
        return;
    }
    for (uint32_t i = 0; i < tensor->rows; i++) {
        float value = (float)(tensor->spread * (0.75 + 0.5 * random_unit(state)));
        fwrite(&value, sizeof value, 1, file);   /* little-endian hosts only, as the engine */
    }
}

static void write_config(const struct random_model *shape, FILE *file)
{
    fprintf(file,
            "{\"architectures\":[\"RoostForCausalLM\"],\"model_type\":\"roost\",\"name\":\"random\","
            "\"vocab_size\":%u,\"hidden_size\":%u,\"intermediate_size\":%u,\"num_hidden_layers\":%zu,"
            "\"num_attention_heads\":%u,\"num_key_value_heads\":%u,\"head_dim\":%u,\"hidden_activation\":\"%s\","
            "\"max_position_embeddings\":%u,\"rms_norm_eps\":1e-06,\"rope_theta\":100000.0,"
            "\"rope_local_base_freq\":10000.0,\"sliding_window\":%u,",
            shape->vocab_size, shape->hidden_size, shape->intermediate_size, strlen(shape->layers), shape->head_count,
            shape->kv_head_count, shape->head_dim, shape->activation, shape->context_tokens, shape->window);
    fprintf(file, "\"layer_types\":[");
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
        write_tensor(&plan->tensors[i], &state, file);
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
