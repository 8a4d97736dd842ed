/* model.c - looks at a model directory, or writes its known answer into it. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "common/hash.h"
#include "deploy/roost/command.h"
#include "worker/engine/backend.h"
#include "worker/engine/engine.h"
#include "worker/engine/model.h"

static const char usage[] =
    "usage: roost model describe DIR    shape, parameters, bytes, KV bytes per token\n"
    "       roost model seal DIR        run the model once and write the answer to DIR/known_answer.json, which every\n"
    "                                   worker checks at start: do it on a machine that you trust\n";

static uint64_t matrix_parameters(const struct model_matrix *matrix)
{
    return (uint64_t)matrix->rows * matrix->columns;
}

static uint64_t model_parameters(const struct model *model)
{
    const struct model_config *config = &model->config;
    uint64_t count = matrix_parameters(&model->embedding) + config->hidden_size;
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const struct model_layer *layer = &model->layers[i];
        const struct model_matrix *matrices[] = { &layer->q_proj, &layer->k_proj, &layer->v_proj, &layer->o_proj,
                                                  &layer->gate_proj, &layer->up_proj, &layer->down_proj };
        for (size_t m = 0; m < sizeof matrices / sizeof matrices[0]; m++)
            count += matrix_parameters(matrices[m]);
        count += 2 * (uint64_t)config->hidden_size;
        count += (uint64_t)config->head_dim * ((layer->q_norm != NULL) + (layer->k_norm != NULL));
    }
    return count;
}

/* What one token of a conversation keeps, from the page as the backend lays it out. */
static enum status kv_bytes_per_token(const struct model *model, size_t *out)
{
    struct backend *backend = NULL;
    TRY(backend_cpu_ops.create(model, 1, &backend));
    *out = backend_cpu_ops.page_bytes(backend) / BACKEND_PAGE_TOKENS;
    backend_cpu_ops.destroy(&backend);
    return STATUS_OK;
}

static enum status file_bytes(const char *dir, const char *name, long long *out)
{
    char path[4096];
    struct stat info;
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return STATUS_FAIL(STATUS_INVALID, "the path %s is too long", dir);
    if (stat(path, &info) != 0)
        return STATUS_FAIL(STATUS_NOT_FOUND, "cannot read %s", path);
    *out = info.st_size;
    return STATUS_OK;
}

static void print_shape(const struct model_config *config)
{
    unsigned local = 0;
    for (uint32_t i = 0; i < config->layer_count; i++)
        local += config->layer_types[i] == MODEL_LAYER_LOCAL;
    printf("name                %s\n", config->name);
    printf("layers              %u (%u local with a window of %u tokens, %u global; %u keep KV)\n", config->layer_count, local,
           config->window, config->layer_count - local, config->producer_count);
    printf("hidden              %u, gated MLP of %u\n", config->hidden_size, config->intermediate_size);
    printf("heads               %u of %u, %u for KV\n", config->head_count, config->head_dim, config->kv_head_count);
    printf("vocabulary          %u\n", config->vocab_size);
    printf("context             %u tokens\n", config->context_tokens_max);
}

static enum status describe(const char *dir)
{
    enum status st;
    struct model *model = NULL;
    size_t kv_bytes;
    long long weights_bytes, tokenizer_bytes;
    char digest[HASH_HEX_SIZE(sizeof model->weights_digest)];
    TRY(model_load(dir, &model));
    TRY_GOTO(kv_bytes_per_token(model, &kv_bytes), st, done);
    TRY_GOTO(file_bytes(dir, "model.safetensors", &weights_bytes), st, done);
    TRY_GOTO(file_bytes(dir, "tokenizer.model", &tokenizer_bytes), st, done);
    hash_hex(model->weights_digest, sizeof model->weights_digest, digest);
    print_shape(&model->config);
    printf("parameters          %llu\n", (unsigned long long)model_parameters(model));
    printf("bytes               %lld of weights, %lld of tokenizer\n", weights_bytes, tokenizer_bytes);
    printf("KV bytes per token  %zu\n", kv_bytes);
    printf("weights digest      %s\n", digest);
done:
    model_destroy(&model);
    return st;
}

static enum status seal(const char *dir)
{
    TRY(engine_seal(dir));
    printf("sealed %s/known_answer.json\n", dir);
    return STATUS_OK;
}

int command_model(int argc, char **argv)
{
    static const struct {
        const char *name;
        enum status (*run)(const char *dir);
    } actions[] = { { "describe", describe }, { "seal", seal } };

    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage, stdout);
        return COMMAND_EXIT_OK;
    }
    for (size_t i = 0; argc == 3 && i < sizeof actions / sizeof actions[0]; i++) {
        if (strcmp(argv[1], actions[i].name) != 0)
            continue;
        if (actions[i].run(argv[2]) == STATUS_OK)
            return COMMAND_EXIT_OK;
        fprintf(stderr, "roost model %s: %s\n", argv[1], status_detail());
        return COMMAND_EXIT_FAILED;
    }
    fputs(usage, stderr);
    return COMMAND_EXIT_USAGE;
}
