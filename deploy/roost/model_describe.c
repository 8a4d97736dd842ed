#include "deploy/roost/model_describe.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "deploy/roost/command.h"
#include "deploy/roost/model_figures.h"
#include "worker/convert/tensor_list.h"
#include "worker/engine/kv/kv_cache.h"
#include "worker/engine/model/model.h"

static const char usage[] =
    "usage: roost model describe DIR [--config-only] [--json]\n"
    "\n"
    "Layers, parameters and bytes of a model directory, and what its conversations cost in KV.\n"
    "\n"
    "  --config-only   DIR needs only config.json; weights are taken to be int8\n"
    "  --json          one JSON object instead of tables\n";

#define MESSAGE_TOKENS 31u            /* the standard workload: 5,600 tokens in 180 messages */
#define REWIND_TOKENS 1024u           /* the engine's defaults (engine.h) */
#define SNAPSHOTS 8u

static const uint32_t lengths[] = { 1024, 2048, 4096, 5740, 8192, 16384, 32768 };   /* 5,740: the standard workload with its reply */
#define LENGTHS (sizeof lengths / sizeof lengths[0])

struct scheme_bytes { uint64_t tensors, bytes; };
enum { SCHEME_LOOKUP = MODEL_SCHEMES, SCHEME_FLOAT, SCHEME_ROWS };

struct part_figures {
    uint64_t parameters, bytes;
};

struct description {
    struct model_config config;
    struct model *model;              /* owned; NULL: configuration only */
    struct part_figures parts[MODEL_PARTS];
    struct scheme_bytes schemes[SCHEME_ROWS];
    uint64_t parameters, bytes;
    struct kv_figures kv[LENGTHS];
    uint64_t kept[LENGTHS];           /* bytes in pages, resume points included; 0: over the context */
};

static const char *scheme_row_name(unsigned row)
{
    return row == SCHEME_LOOKUP ? "looked up" : row == SCHEME_FLOAT ? "float" : model_scheme_name((enum model_scheme)row);
}

/* ---- figures ---- */

static unsigned element_bytes(enum model_element element)
{
    return element == MODEL_ELEMENT_F32 ? 4 : element == MODEL_ELEMENT_BF16 ? 2 : 1;
}

static void add_tensor(struct description *self, const struct tensor *tensor)
{
    const uint64_t count = (uint64_t)tensor->rows * (tensor->columns ? tensor->columns : 1);
    const struct model_matrix *matrix = self->model && tensor->columns ? model_find_matrix(self->model, tensor->name) : NULL;
    const bool int8 = tensor->columns && (!self->model || self->model->format == MODEL_FORMAT_INT8);
    uint64_t bytes = 4 * count;
    unsigned row = SCHEME_FLOAT;
    if (int8) {
        bytes = count + sizeof(float) * (uint64_t)tensor->rows * tensor->scale_columns;
        row = tensor->kind == TENSOR_LOOKUP ? SCHEME_LOOKUP : matrix ? (unsigned)matrix->scheme : MODEL_SCHEME_DYNAMIC;
    } else if (matrix) {
        bytes = element_bytes(matrix->element) * count;
    }
    struct part_figures *part = &self->parts[model_part_of(tensor->name)];
    part->parameters += count;
    part->bytes += bytes;
    self->schemes[row].tensors++;
    self->schemes[row].bytes += bytes;
    self->parameters += count;
    self->bytes += bytes;
}

static enum status count_tensors(struct description *self)
{
    struct tensor_list list;
    TRY(tensor_list_create(&self->config, &list));
    for (uint32_t i = 0; i < list.count; i++)
        add_tensor(self, &list.tensors[i]);
    tensor_list_free(&list);
    return STATUS_OK;
}

/* What the cache keeps of a conversation of messages of the usual length. */
static uint64_t kept_bytes(const struct model_config *config, uint32_t tokens)
{
    struct kv_cache_config cache = { .sequence_tokens_max = tokens, .rewind_tokens = REWIND_TOKENS, .snapshots_max = SNAPSHOTS };
    uint32_t ends[32768 / MESSAGE_TOKENS + 1], end_count = 0;
    uint64_t bytes[BACKEND_GROUPS_MAX];
    size_t page_bytes[BACKEND_GROUPS_MAX];
    kv_page_bytes(config, page_bytes);
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        cache.groups[group] = (struct kv_group_config){ page_bytes[group], config->attention[group].window, config->attention[group].sinks };
    for (uint32_t end = MESSAGE_TOKENS; end <= tokens; end += MESSAGE_TOKENS)
        ends[end_count++] = end;
    return kv_cache_formula(&cache, tokens, ends, end_count, bytes);
}

static enum status fill(const char *dir, bool config_only, struct description *self)
{
    if (config_only) {
        TRY(model_config_load(dir, &self->config));
    } else {
        TRY(model_load(dir, &self->model));
        self->config = self->model->config;
    }
    TRY(count_tensors(self));
    for (size_t i = 0; i < LENGTHS; i++) {
        kv_figures(&self->config, lengths[i], &self->kv[i]);
        if (lengths[i] <= self->config.context_tokens_max)
            self->kept[i] = kept_bytes(&self->config, lengths[i]);
    }
    return STATUS_OK;
}

/* ---- for people ---- */

static void print_attention(const struct model_config *config, enum model_layer_type type, const char *name)
{
    const struct model_attention *attention = &config->attention[type];
    uint32_t count = 0;
    for (uint32_t i = 0; i < config->layer_count; i++)
        count += config->layer_types[i] == type;
    if (count == 0)
        return;
    printf("%-20s%u layers, %u keep KV; %u heads of %u, %u for KV (%s)", name, count, config->producer_count[type], config->head_count,
           attention->head_dim, attention->kv_head_count,
           attention->kv_head_count == 1 ? "MQA" : attention->kv_head_count == config->head_count ? "MHA" : "GQA");
    if (attention->window)
        printf("; window %u", attention->window);
    if (attention->sinks)
        printf("; %u sinks", attention->sinks);
    printf("\n");
}

/* One character a layer: G and L keep KV, g and l read an earlier layer's. */
static void print_layers(const struct model_config *config)
{
    printf("%-20s", "order");
    for (uint32_t i = 0; i < config->layer_count; i++)
        putchar(config->layer_types[i] == MODEL_LAYER_GLOBAL ? (config->kv_producer[i] == i ? 'G' : 'g')
                                                             : (config->kv_producer[i] == i ? 'L' : 'l'));
    printf("   (G, L: keep KV; g, l: read that of an earlier layer)\n");
    bool any = false;
    for (uint32_t i = 0; i < config->layer_count; i++)
        if (config->kv_producer[i] != i) {
            printf("%s%u<-%u", any ? " " : "readers             ", i, config->kv_producer[i]);
            any = true;
        }
    printf("%slast producer       %u\n", any ? "\n" : "", config->last_producer);
}

static void print_bytes(const struct description *self)
{
    printf("\n%-27s%16s%16s\n", "part", "parameters", "bytes");
    for (unsigned part = 0; part < MODEL_PARTS; part++)
        if (self->parts[part].parameters)
            printf("%-27s%16llu%16llu\n", model_part_name((enum model_part)part), (unsigned long long)self->parts[part].parameters,
                   (unsigned long long)self->parts[part].bytes);
    printf("%-27s%16llu%16llu\n", "all", (unsigned long long)self->parameters, (unsigned long long)self->bytes);
    printf("\n%-27s%16s%16s\n", "scheme", "tensors", "bytes");
    for (unsigned row = 0; row < SCHEME_ROWS; row++)
        if (self->schemes[row].tensors)
            printf("%-27s%16llu%16llu\n", scheme_row_name(row), (unsigned long long)self->schemes[row].tensors,
                   (unsigned long long)self->schemes[row].bytes);
}

static void print_kv(const struct description *self)
{
    printf("\nKV bytes per token  %llu in all layers that keep it, %llu beyond the windows\n",
           (unsigned long long)kv_token_bytes(&self->config, 0), (unsigned long long)kv_token_bytes(&self->config, 1));
    printf("\nKV of one conversation, against GQA-8 in bfloat16 at the same depth:\n");
    printf("%8s%14s%14s%14s%7s%9s%9s%7s%10s%8s%8s\n", "tokens", "elements", "bytes", "kept bytes", "heads", "horizon", "sharing", "int8",
           "elements", "bytes", "kept");
    for (size_t i = 0; i < LENGTHS; i++) {
        const struct kv_figures *kv = &self->kv[i];
        const double elements = kv->heads * kv->horizon * kv->sharing;
        char kept[24] = "-", kept_factor[24] = "-";
        if (self->kept[i]) {
            snprintf(kept, sizeof kept, "%llu", (unsigned long long)self->kept[i]);
            snprintf(kept_factor, sizeof kept_factor, "%.1fx", 2 * (double)kv->plain_elements / (double)self->kept[i]);
        }
        printf("%8u%14llu%14llu%14s%6.2fx%8.2fx%8.2fx%6.2fx%9.1fx%7.1fx%8s\n", kv->tokens, (unsigned long long)kv->elements,
               (unsigned long long)kv->bytes, kept, kv->heads, kv->horizon, kv->sharing, kv->int8, elements, elements * kv->int8, kept_factor);
    }
    printf("bytes: int8 and scales, windows alone. kept bytes: pages of %u tokens, the last %u tokens and the usual resume points included\n"
           "(messages of %u tokens); '-': longer than the context of %u.\n", BACKEND_PAGE_TOKENS, REWIND_TOKENS, MESSAGE_TOKENS,
           self->config.context_tokens_max);
}

static void print_text(const struct description *self)
{
    const struct model_config *config = &self->config;
    uint32_t least = config->intermediate_size[0], most = least;
    for (uint32_t i = 1; i < config->layer_count; i++) {
        least = config->intermediate_size[i] < least ? config->intermediate_size[i] : least;
        most = config->intermediate_size[i] > most ? config->intermediate_size[i] : most;
    }
    printf("%-20s%s (%s)\n", "name", config->name, config->family);
    printf("%-20s%u, gated MLP of %u", "hidden", config->hidden_size, least);
    printf(most != least ? " to %u\n" : "\n", most);
    printf("%-20s%u, context %u tokens\n", "vocabulary", config->vocab_size, config->context_tokens_max);
    if (config->per_layer_input)
        printf("%-20s%u a layer\n", "per-layer inputs", config->per_layer_input);
    print_attention(config, MODEL_LAYER_GLOBAL, "global");
    print_attention(config, MODEL_LAYER_LOCAL, "local");
    print_layers(config);
    if (self->model) {
        char digest[HASH_HEX_SIZE(sizeof self->model->weights_digest)];
        hash_hex(self->model->weights_digest, sizeof self->model->weights_digest, digest);
        printf("%-20s%s\n", "weights digest", digest);
    }
    print_bytes(self);
    print_kv(self);
}

/* ---- for programs ---- */

static json_t *layers_json(const struct model_config *config)
{
    json_t *layers = json_array();
    for (uint32_t i = 0; i < config->layer_count; i++)
        json_array_append_new(layers, json_pack("{s:s,s:i,s:i}", "type", config->layer_types[i] == MODEL_LAYER_LOCAL ? "local" : "global",
                                                "kv_producer", (int)config->kv_producer[i], "intermediate_size",
                                                (int)config->intermediate_size[i]));
    return layers;
}

static json_t *kv_json(const struct description *self)
{
    json_t *list = json_array();
    for (size_t i = 0; i < LENGTHS; i++) {
        const struct kv_figures *kv = &self->kv[i];
        const double elements = kv->heads * kv->horizon * kv->sharing;
        json_t *kept = self->kept[i] ? json_integer((json_int_t)self->kept[i]) : json_null();
        json_array_append_new(list, json_pack("{s:i,s:I,s:I,s:I,s:o,s:f,s:f,s:f,s:f,s:f,s:f}", "tokens", (int)kv->tokens, "elements",
                                              (json_int_t)kv->elements, "bytes", (json_int_t)kv->bytes, "plain_bytes",
                                              (json_int_t)(2 * kv->plain_elements), "kept_bytes", kept, "factor_heads", kv->heads,
                                              "factor_horizon", kv->horizon, "factor_sharing", kv->sharing, "factor_int8", kv->int8,
                                              "factor_elements", elements, "factor_bytes", elements * kv->int8));
    }
    return list;
}

static void print_json(const struct description *self)
{
    const struct model_config *config = &self->config;
    json_t *parts = json_object(), *schemes = json_object();
    for (unsigned part = 0; part < MODEL_PARTS; part++)
        json_object_set_new(parts, model_part_name((enum model_part)part),
                            json_pack("{s:I,s:I}", "parameters", (json_int_t)self->parts[part].parameters, "bytes",
                                      (json_int_t)self->parts[part].bytes));
    for (unsigned row = 0; row < SCHEME_ROWS; row++)
        json_object_set_new(schemes, scheme_row_name(row), json_pack("{s:I,s:I}", "tensors", (json_int_t)self->schemes[row].tensors,
                                                                     "bytes", (json_int_t)self->schemes[row].bytes));
    json_t *root = json_pack("{s:s,s:s,s:I,s:I,s:o,s:o,s:o,s:I,s:I,s:o}", "name", config->name, "family", config->family, "parameters",
                             (json_int_t)self->parameters, "bytes", (json_int_t)self->bytes, "layers", layers_json(config), "parts", parts,
                             "schemes", schemes, "kv_bytes_per_token", (json_int_t)kv_token_bytes(config, 0),
                             "kv_bytes_per_token_beyond_windows", (json_int_t)kv_token_bytes(config, 1), "kv", kv_json(self));
    if (self->model) {
        char digest[HASH_HEX_SIZE(sizeof self->model->weights_digest)];
        hash_hex(self->model->weights_digest, sizeof self->model->weights_digest, digest);
        json_object_set_new(root, "weights_digest", json_string(digest));
    }
    (void)json_dumpf(root, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(root);
}

int model_describe(int argc, char **argv)
{
    const char *dir = NULL;
    bool config_only = false, json = false, wrong = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return COMMAND_EXIT_OK;
        }
        if (strcmp(argv[i], "--config-only") == 0)
            config_only = true;
        else if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (argv[i][0] == '-' || dir)
            wrong = true;
        else
            dir = argv[i];
    }
    if (wrong || !dir) {
        fputs(usage, stderr);
        return COMMAND_EXIT_USAGE;
    }
    struct description *self = calloc(1, sizeof *self);
    enum status st = self ? fill(dir, config_only, self) : STATUS_FAIL(STATUS_NO_MEMORY, "no memory");
    if (st == STATUS_OK && json)
        print_json(self);
    else if (st == STATUS_OK)
        print_text(self);
    else
        fprintf(stderr, "roost model describe: %s\n", status_detail());
    if (self)
        model_destroy(&self->model);
    free(self);
    return st == STATUS_OK ? COMMAND_EXIT_OK : COMMAND_EXIT_FAILED;
}
