#include "tests/unit/convert/checkpoint_fixture.h"
#include <ftw.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/unit/worker/unit.h"

void fixture_scratch(char path[256])
{
    const char *base = getenv("TMPDIR");
    snprintf(path, 256, "%s/roost-convert-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info;
    (void)type;
    (void)walk;
    return remove(path);
}

void fixture_remove(const char *path)
{
    (void)nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- values ---- */

static float round_to(const char *dtype, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (strcmp(dtype, "BF16") == 0)
        bits &= 0xffff0000u;
    if (strcmp(dtype, "F16") == 0)
        bits &= 0xffffe000u;                     /* the values drawn are within half's exponents */
    memcpy(&value, &bits, sizeof bits);
    return value;
}

static void write_value(FILE *file, const char *dtype, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (strcmp(dtype, "F32") == 0) {
        fwrite(&bits, 4, 1, file);
    } else if (strcmp(dtype, "BF16") == 0) {
        const uint16_t half = (uint16_t)(bits >> 16);
        fwrite(&half, 2, 1, file);
    } else if (strcmp(dtype, "F16") == 0) {
        const uint32_t exponent = bits >> 23 & 255;
        uint16_t half = (uint16_t)(bits >> 16 & 0x8000u);
        if (exponent > 112)
            half = (uint16_t)(half | (exponent - 112) << 10 | (bits >> 13 & 1023));
        else if (exponent > 102)                 /* denormal: exact where the value has no more bits */
            half = (uint16_t)(half | (uint16_t)(fabsf(value) * 0x1p24f));
        fwrite(&half, 2, 1, file);
    } else {
        const uint64_t zero = 0;
        fwrite(&zero, strcmp(dtype, "I64") == 0 ? 8 : 1, 1, file);
    }
}

static unsigned dtype_size(const char *dtype)
{
    return strcmp(dtype, "I64") == 0 ? 8 : strcmp(dtype, "F32") == 0 ? 4 : dtype[0] == 'F' && dtype[1] == '8' ? 1 : 2;
}

struct fixture_tensor *fixture_add(struct fixture *fixture, const char *dtype, unsigned rows, unsigned columns, const char *name)
{
    assert_true(fixture->count < FIXTURE_TENSORS_MAX);
    struct fixture_tensor *tensor = &fixture->tensors[fixture->count++];
    const size_t count = (size_t)rows * (columns ? columns : 1);
    *tensor = (struct fixture_tensor){ .dtype = dtype, .rows = rows, .columns = columns, .values = calloc(count, sizeof(float)) };
    assert_non_null(tensor->values);
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    for (size_t i = 0; i < count; i++) {
        const float value = (float)((double)(rng_next(&fixture->seed) >> 11) * 0x1p-53 - 0.5);
        tensor->values[i] = round_to(dtype, fabsf(value) < 0x1p-9f ? 0.25f : value);
    }
    return tensor;
}

struct fixture_tensor *fixture_find(struct fixture *fixture, const char *name)
{
    for (unsigned i = 0; i < fixture->count; i++)
        if (strcmp(fixture->tensors[i].name, name) == 0)
            return &fixture->tensors[i];
    fail_msg("the fixture has no tensor %s", name);
    return NULL;
}

void fixture_drop(struct fixture *fixture, const char *name)
{
    struct fixture_tensor *tensor = fixture_find(fixture, name);
    free(tensor->values);
    *tensor = fixture->tensors[--fixture->count];
}

void fixture_edit(struct fixture *fixture, const char *from, const char *to)
{
    char *at = strstr(fixture->config, from), *edited;
    if (!at)
        fail_msg("the configuration has no %s", from);
    assert_true(asprintf(&edited, "%.*s%s%s", (int)(at - fixture->config), fixture->config, to, at + strlen(from)) > 0);
    free(fixture->config);
    fixture->config = edited;
}

void fixture_free(struct fixture *fixture)
{
    for (unsigned i = 0; i < fixture->count; i++)
        free(fixture->tensors[i].values);
    free(fixture->config);
    fixture->count = 0;
    fixture->config = NULL;
}

/* ---- families ---- */

static void start(struct fixture *fixture, const char *scratch, const char *name)
{
    memset(fixture, 0, sizeof *fixture);
    fixture->seed = test_seed(7);
    snprintf(fixture->dir, sizeof fixture->dir, "%.200s/%s", scratch, name);
    assert_int_equal(mkdir(fixture->dir, 0777), 0);
}

__attribute__((format(printf, 5, 6)))
static void add(struct fixture *fixture, const char *dtype, unsigned rows, unsigned columns, const char *format, ...)
{
    char name[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    fixture_add(fixture, dtype, rows, columns, name);
}

static void add_layer(struct fixture *fixture, const char *dtype, const char *prefix, unsigned layer, unsigned hidden, unsigned inner,
                      unsigned heads, unsigned head_dim, bool producer)
{
    static const char *const norms[] = { "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                                         "post_feedforward_layernorm" };
    for (unsigned i = 0; i < 4; i++)
        add(fixture, dtype, hidden, 0, "%slayers.%u.%s.weight", prefix, layer, norms[i]);
    add(fixture, dtype, heads * head_dim, hidden, "%slayers.%u.self_attn.q_proj.weight", prefix, layer);
    add(fixture, dtype, hidden, heads * head_dim, "%slayers.%u.self_attn.o_proj.weight", prefix, layer);
    add(fixture, dtype, head_dim, 0, "%slayers.%u.self_attn.q_norm.weight", prefix, layer);
    if (producer) {
        add(fixture, dtype, head_dim, hidden, "%slayers.%u.self_attn.k_proj.weight", prefix, layer);
        add(fixture, dtype, head_dim, hidden, "%slayers.%u.self_attn.v_proj.weight", prefix, layer);
        add(fixture, dtype, head_dim, 0, "%slayers.%u.self_attn.k_norm.weight", prefix, layer);
    }
    add(fixture, dtype, inner, hidden, "%slayers.%u.mlp.gate_proj.weight", prefix, layer);
    add(fixture, dtype, inner, hidden, "%slayers.%u.mlp.up_proj.weight", prefix, layer);
    add(fixture, dtype, hidden, inner, "%slayers.%u.mlp.down_proj.weight", prefix, layer);
}

void fixture_gemma3(struct fixture *fixture, const char *scratch, const char *dtype, bool conditional)
{
    static const char text[] =
        "\"model_type\": \"gemma3_text\", \"vocab_size\": 320, \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 6, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 16, \"sliding_window\": 32, \"query_pre_attn_scalar\": 64, "
        "\"max_position_embeddings\": 256, \"rope_theta\": 1000000.0, \"rope_local_base_freq\": 10000.0, "
        "\"rope_scaling\": {\"factor\": 8.0, \"rope_type\": \"linear\"}, \"attn_logit_softcapping\": null, "
        "\"hidden_activation\": \"gelu_pytorch_tanh\", \"eos_token_id\": [1, 106], \"torch_dtype\": \"bfloat16\"";
    const char *prefix = conditional ? "language_model.model." : "model.";
    start(fixture, scratch, conditional ? "gemma3-conditional" : "gemma3");
    assert_true(asprintf(&fixture->config,
                         conditional ? "{\"architectures\": [\"Gemma3ForConditionalGeneration\"], \"model_type\": \"gemma3\", "
                                       "\"text_config\": {%s}, \"vision_config\": {\"hidden_size\": 8}, \"mm_tokens_per_image\": 256}"
                                     : "{\"architectures\": [\"Gemma3ForCausalLM\"], %s}", text) > 0);
    add(fixture, dtype, 320, 64, "%sembed_tokens.weight", prefix);
    add(fixture, dtype, 64, 0, "%snorm.weight", prefix);
    for (unsigned layer = 0; layer < 6; layer++)
        add_layer(fixture, dtype, prefix, layer, 64, 128, 4, 16, true);
    if (conditional) {
        add(fixture, dtype, 8, 8, "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight");
        add(fixture, dtype, 8, 64, "multi_modal_projector.mm_input_projection_weight");
        add(fixture, "I64", 4, 0, "vision_tower.vision_model.embeddings.position_ids");
    }
}

void fixture_gemma4(struct fixture *fixture, const char *scratch, const char *dtype, bool conditional)
{
    static const char text[] =
        "\"model_type\": \"gemma4_text\", \"vocab_size\": 320, \"vocab_size_per_layer_input\": 320, \"hidden_size\": 128, "
        "\"intermediate_size\": 128, \"num_hidden_layers\": 10, \"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 16, "
        "\"global_head_dim\": 32, \"sliding_window\": 32, \"hidden_size_per_layer_input\": 32, \"num_kv_shared_layers\": 4, "
        "\"use_double_wide_mlp\": true, \"final_logit_softcapping\": 30.0, \"max_position_embeddings\": 256, "
        "\"enable_moe_block\": false, \"attention_k_eq_v\": false, \"use_bidirectional_attention\": null, \"layer_types\": ["
        "\"sliding_attention\", \"sliding_attention\", \"sliding_attention\", \"sliding_attention\", \"full_attention\", "
        "\"sliding_attention\", \"sliding_attention\", \"sliding_attention\", \"sliding_attention\", \"full_attention\"], "
        "\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"proportional\", \"partial_rotary_factor\": 0.25, "
        "\"rope_theta\": 1000000.0}, \"sliding_attention\": {\"rope_type\": \"default\", \"rope_theta\": 10000.0}}";
    const char *prefix = conditional ? "model.language_model." : "model.";
    start(fixture, scratch, conditional ? "gemma4-conditional" : "gemma4");
    assert_true(asprintf(&fixture->config,
                         conditional ? "{\"architectures\": [\"Gemma4ForConditionalGeneration\"], \"model_type\": \"gemma4\", "
                                       "\"text_config\": {%s}, \"audio_config\": null, \"vision_config\": null}"
                                     : "{\"architectures\": [\"Gemma4ForCausalLM\"], %s}", text) > 0);
    add(fixture, dtype, 320, 128, "%sembed_tokens.weight", prefix);
    add(fixture, dtype, 320, 320, "%sembed_tokens_per_layer.weight", prefix);
    add(fixture, dtype, 320, 128, "%sper_layer_model_projection.weight", prefix);
    add(fixture, dtype, 32, 0, "%sper_layer_projection_norm.weight", prefix);
    add(fixture, dtype, 128, 0, "%snorm.weight", prefix);
    for (unsigned layer = 0; layer < 10; layer++) {
        add_layer(fixture, dtype, prefix, layer, 128, layer < 6 ? 128 : 256, 4, layer % 5 == 4 ? 32 : 16, layer < 6);
        add(fixture, dtype, 32, 128, "%slayers.%u.per_layer_input_gate.weight", prefix, layer);
        add(fixture, dtype, 128, 32, "%slayers.%u.per_layer_projection.weight", prefix, layer);
        add(fixture, dtype, 128, 0, "%slayers.%u.post_per_layer_input_norm.weight", prefix, layer);
        add(fixture, dtype, 1, 0, "%slayers.%u.layer_scalar", prefix, layer);
    }
}

/* ---- files ---- */

void fixture_write_text(const char *dir, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

/* Tensors with index % shards == shard. */
static void write_shard(const struct fixture *fixture, const char *name, unsigned shard, unsigned shards)
{
    char path[512], *header = NULL;
    size_t size = 0, at = 0;
    FILE *text = open_memstream(&header, &size);
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", text);
    for (unsigned i = shard; i < fixture->count; i += shards) {
        const struct fixture_tensor *tensor = &fixture->tensors[i];
        const size_t bytes = (size_t)tensor->rows * (tensor->columns ? tensor->columns : 1) * dtype_size(tensor->dtype);
        fprintf(text, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", tensor->name, tensor->dtype, tensor->rows);
        if (tensor->columns)
            fprintf(text, ",%u", tensor->columns);
        fprintf(text, "],\"data_offsets\":[%zu,%zu]}", at, at + bytes);
        at += bytes;
    }
    fputs("}", text);
    assert_int_equal(fclose(text), 0);
    snprintf(path, sizeof path, "%s/%s", fixture->dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    const uint64_t length = size;
    fwrite(&length, sizeof length, 1, file);
    fwrite(header, size, 1, file);
    for (unsigned i = shard; i < fixture->count; i += shards) {
        const struct fixture_tensor *tensor = &fixture->tensors[i];
        const size_t count = (size_t)tensor->rows * (tensor->columns ? tensor->columns : 1);
        for (size_t v = 0; v < count; v++)
            write_value(file, tensor->dtype, tensor->values[v]);
    }
    assert_int_equal(fclose(file), 0);
    free(header);
}

void fixture_write(const struct fixture *fixture, unsigned shards)
{
    fixture_write_text(fixture->dir, "config.json", fixture->config);
    if (shards == 1) {
        write_shard(fixture, "model.safetensors", 0, 1);
        return;
    }
    char *index = NULL;
    size_t size = 0;
    FILE *text = open_memstream(&index, &size);
    fputs("{\"metadata\": {\"total_size\": 1}, \"weight_map\": {", text);
    for (unsigned i = 0; i < fixture->count; i++)
        fprintf(text, "%s\"%s\": \"model-%u.safetensors\"", i ? ", " : "", fixture->tensors[i].name, i % shards);
    fputs("}}", text);
    assert_int_equal(fclose(text), 0);
    fixture_write_text(fixture->dir, "model.safetensors.index.json", index);
    free(index);
    for (unsigned shard = 0; shard < shards; shard++) {
        char name[32];
        snprintf(name, sizeof name, "model-%u.safetensors", shard);
        write_shard(fixture, name, shard, shards);
    }
}
