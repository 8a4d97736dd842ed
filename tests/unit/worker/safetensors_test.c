/* model.safetensors as hostile input, and the model's own checks on names, shapes and values. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "random_model.h"
#include "worker/engine/model.h"
#include "worker/engine/safetensors.h"

static char dir_[] = "/tmp/roost-safetensors-XXXXXX";
static char path_[256];

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(dir_))
        return -1;
    snprintf(path_, sizeof path_, "%s/model.safetensors", dir_);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    random_model_remove(dir_);
    return 0;
}

static void write_file(uint64_t length, const char *header, size_t header_size, size_t data_size)
{
    FILE *file = fopen(path_, "wb");
    assert_non_null(file);
    for (int i = 0; i < 8; i++)
        fputc((int)(length >> 8 * i & 0xff), file);
    fwrite(header, 1, header_size, file);
    for (size_t i = 0; i < data_size; i++)
        fputc((int)(i % 100), file);
    assert_int_equal(fclose(file), 0);
}

/* The header padded with spaces to a multiple of 8, then data_size bytes. */
static enum status open_text(const char *header, size_t data_size, struct safetensors **out)
{
    size_t size = strlen(header), padded = (size + 7) / 8 * 8;
    char *text = malloc(padded + 1);
    memset(text, ' ', padded);
    memcpy(text, header, size);
    write_file(padded, text, padded, data_size);
    free(text);
    return safetensors_open(path_, out);
}

static void assert_refused(enum status got, enum status want, const char *word, const char *what)
{
    if (got != want || !strstr(status_detail(), word))
        fail_msg("%.200s: %s, %s", what, status_name(got), status_detail());
}

static void good_file_is_read(void **state)
{
    (void)state;
    struct safetensors *file = NULL;
    enum status st = open_text("{\"__metadata__\":{\"format\":\"x\",\"k\":\"v\"},"
                               "\"b\":{\"dtype\":\"I8\",\"shape\":[2,3],\"data_offsets\":[8,14]},"
                               "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 14, &file);
    if (st != STATUS_OK)
        fail_msg("%s", status_detail());
    assert_int_equal(safetensors_count(file), 2);
    assert_string_equal(safetensors_at(file, 0)->name, "a");
    const struct safetensors_tensor *b = safetensors_find(file, "b");
    assert_non_null(b);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->bytes, 6);
    assert_int_equal(((const int8_t *)b->data)[0], 8);
    assert_null(safetensors_find(file, "c"));
    assert_string_equal(safetensors_metadata(file, "k"), "v");
    assert_null(safetensors_metadata(file, "l"));
    size_t size;
    assert_non_null(safetensors_bytes(file, &size));
    assert_true(size > 14);
    safetensors_close(&file);
    assert_null(file);
    safetensors_close(&file);
}

#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static const struct refusal {
    const char *header;
    size_t data_size;
    enum status status;
    const char *word;
} refusals_[] = {
    {"", 0, STATUS_INVALID, "header"},
    {"not json", 0, STATUS_INVALID, "'{'"},
    {"[]", 0, STATUS_INVALID, "'{'"},
    {" {}", 0, STATUS_INVALID, "'{'"},
    {"{\"a\":", 0, STATUS_INVALID, "header"},
    {"{}x", 0, STATUS_INVALID, "header"},
    {"{}", 4, STATUS_INVALID, "after the last"},
    {"{\"a\":1}", 0, STATUS_INVALID, "want an object"},
    {"{\"a\":{}}", 0, STATUS_INVALID, "want an object"},
    {"{" T("a", "I8", "[4]", "0", "4") "," T("a", "I8", "[4]", "0", "4") "}", 4, STATUS_INVALID, "duplicate"},
    {"{\"a\":{\"dtype\":\"I8\",\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, STATUS_INVALID, "duplicate"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4],\"more\":1}}", 4, STATUS_INVALID, "want an object"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"offsets\":[0,4]}}", 4, STATUS_INVALID, "data_offsets"},
    {"{\"a\":{\"type\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, STATUS_INVALID, "dtype"},
    {"{\"a\":{\"dtype\":8,\"shape\":[4],\"data_offsets\":[0,4]}}", 4, STATUS_INVALID, "dtype"},
    {"{" T("a", "BF16", "[2]", "0", "4") "}", 4, STATUS_UNSUPPORTED, "BF16"},
    {"{" T("a", "F16", "[2]", "0", "4") "}", 4, STATUS_UNSUPPORTED, "F16"},
    {"{" T("a", "Q4", "[2]", "0", "4") "}", 4, STATUS_INVALID, "unknown dtype"},
    {"{" T("a", "i8", "[4]", "0", "4") "}", 4, STATUS_INVALID, "unknown dtype"},
    {"{" T("a", "I8", "4", "0", "4") "}", 4, STATUS_INVALID, "shape"},
    {"{" T("a", "I8", "[]", "0", "1") "}", 1, STATUS_INVALID, "shape"},
    {"{" T("a", "I8", "[1,1,1,1,4]", "0", "4") "}", 4, STATUS_INVALID, "shape"},
    {"{" T("a", "I8", "[-4]", "0", "4") "}", 4, STATUS_INVALID, "positive"},
    {"{" T("a", "I8", "[4.0]", "0", "4") "}", 4, STATUS_INVALID, "positive"},
    {"{" T("a", "I8", "[\"4\"]", "0", "4") "}", 4, STATUS_INVALID, "positive"},
    {"{" T("a", "I8", "[0]", "0", "0") "}", 0, STATUS_INVALID, "positive"},
    {"{" T("a", "F32", "[4611686018427387905]", "0", "4") "}", 4, STATUS_INVALID, "overflows"},
    {"{" T("a", "I8", "[4294967296,4294967296]", "0", "0") "}", 0, STATUS_INVALID, "overflows"},
    {"{" T("a", "I8", "[65536,65536,65536,65536]", "0", "0") "}", 0, STATUS_INVALID, "overflows"},
    {"{" T("a", "I8", "[9223372036854775808]", "0", "4") "}", 4, STATUS_INVALID, "header"},
    {"{" T("a", "F32", "[2]", "0", "4") "}", 4, STATUS_INVALID, "its shape needs 8"},
    {"{" T("a", "I8", "[3]", "0", "4") "}", 4, STATUS_INVALID, "its shape needs 3"},
    {"{" T("a", "I8", "[8]", "0", "8") "}", 4, STATUS_INVALID, "bytes 0 to 8 of 4"},
    {"{" T("a", "I8", "[4]", "4", "0") "}", 4, STATUS_INVALID, "bytes 4 to 0"},
    {"{" T("a", "I8", "[4]", "-4", "0") "}", 4, STATUS_INVALID, "data_offsets"},
    {"{" T("a", "I8", "[4]", "0", "4.0") "}", 4, STATUS_INVALID, "data_offsets"},
    {"{" T("a", "I8", "[4]", "9223372036854775804", "9223372036854775807") "}", 4, STATUS_INVALID, "bytes"},
    {"{" T("a", "I8", "[4]", "18446744073709551612", "18446744073709551615") "}", 4, STATUS_INVALID, "header"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0]}}", 4, STATUS_INVALID, "data_offsets"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4,4]}}", 4, STATUS_INVALID, "data_offsets"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":{\"0\":0,\"1\":4}}}", 4, STATUS_INVALID, "data_offsets"},
    {"{" T("a", "I8", "[4]", "0", "4") "," T("b", "I8", "[4]", "2", "6") "}", 6, STATUS_INVALID, "overlaps"},
    {"{" T("a", "I8", "[4]", "0", "4") "," T("b", "I8", "[4]", "0", "4") "}", 4, STATUS_INVALID, "overlaps"},
    {"{" T("a", "I8", "[4]", "0", "4") "," T("b", "I8", "[4]", "5", "9") "}", 9, STATUS_INVALID, "gap"},
    {"{" T("a", "I8", "[4]", "1", "5") "}", 5, STATUS_INVALID, "gap"},
    {"{" T("a", "I8", "[4]", "0", "4") "}", 5, STATUS_INVALID, "1 bytes after"},
    {"{" T("a", "I8", "[1]", "0", "1") "," T("b", "F32", "[1]", "1", "5") "}", 5, STATUS_INVALID, "multiple of 4"},
    {"{" T("", "I8", "[4]", "0", "4") "}", 4, STATUS_INVALID, "name"},
    {"{\"__metadata__\":[]}", 0, STATUS_INVALID, "__metadata__"},
    {"{\"__metadata__\":{\"a\":1}}", 0, STATUS_INVALID, "not a string"},
    {"{\"a\\u0000b\":{}}", 0, STATUS_INVALID, "header"},
    {"{\"\xff\":{}}", 0, STATUS_INVALID, "header"},
};

static void bad_headers_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals_ / sizeof *refusals_; i++) {
        struct safetensors *file = NULL;
        enum status st = open_text(refusals_[i].header, refusals_[i].data_size, &file);
        assert_refused(st, refusals_[i].status, refusals_[i].word, refusals_[i].header);
        assert_null(file);
    }
}

static void bad_lengths_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint64_t length;
        enum status status;
    } cases[] = {{0, STATUS_INVALID}, {1, STATUS_INVALID}, {3, STATUS_INVALID}, {100, STATUS_INVALID}, {(16u << 20) + 1, STATUS_LIMIT},
                 {1ull << 63, STATUS_LIMIT}, {UINT64_MAX, STATUS_LIMIT}, {UINT64_MAX - 7, STATUS_LIMIT}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct safetensors *file = NULL;
        write_file(cases[i].length, "{}", 2, 0);
        assert_refused(safetensors_open(path_, &file), cases[i].status, "header", "length");
    }
}

static void deep_headers_are_refused(void **state)
{
    (void)state;
    size_t size = 1 << 20;
    char *text = malloc(size);
    struct safetensors *file = NULL;
    memset(text, '[', size);
    memcpy(text, "{\"a\":", 5);
    write_file(size, text, size, 0);
    assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "header", "depth");
    free(text);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    struct safetensors *file = NULL;
    char other[300];
    snprintf(other, sizeof other, "%s/other", dir_);
    unlink(path_);
    assert_int_equal(safetensors_open(path_, &file), STATUS_NOT_FOUND);
    assert_int_equal(mkfifo(path_, 0600), 0);
    assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "regular", "fifo");
    unlink(path_);
    assert_int_equal(mkdir(path_, 0700), 0);
    assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "regular", "directory");
    rmdir(path_);
    write_file(2, "{}", 2, 0);
    assert_int_equal(safetensors_open(path_, &file), STATUS_OK);
    safetensors_close(&file);
    assert_int_equal(rename(path_, other), 0);
    assert_int_equal(symlink(other, path_), 0);
    assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "link", "symlink");
    unlink(path_);
    unlink(other);
    for (size_t size = 0; size < 8; size++) {
        FILE *out = fopen(path_, "wb");
        fwrite("\2\0\0\0\0\0\0\0", 1, size, out);
        fclose(out);
        assert_refused(safetensors_open(path_, &file), STATUS_INVALID, "too short", "tiny");
    }
}

static void every_truncation_and_flip_ends_well(void **state)
{
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"x\"}," T("a", "F32", "[2]", "0", "8") "," T("b", "I8", "[2,3]", "8", "14") "}  ";
    size_t size = sizeof header - 1;
    struct safetensors *file = NULL;
    for (size_t data = 0; data < 14; data++) {
        write_file(size, header, size, data);
        assert_int_not_equal(safetensors_open(path_, &file), STATUS_OK);
    }
    for (size_t keep = 0; keep < size; keep++) {
        write_file(size, header, keep, 0);
        assert_int_not_equal(safetensors_open(path_, &file), STATUS_OK);
    }
    char *copy = malloc(size);
    for (size_t at = 0; at < size; at++)
        for (int bit = 0; bit < 8; bit++) {      /* whatever the flip means, nothing may break */
            memcpy(copy, header, size);
            copy[at] = (char)(copy[at] ^ (1 << bit));
            write_file(size, copy, size, 14);
            if (safetensors_open(path_, &file) == STATUS_OK)
                safetensors_close(&file);
        }
    free(copy);
}

/* ---- the model on top ---- */

static struct random_model tiny(void)
{
    struct random_model shape = random_model_small();
    shape.vocab_size = 32;
    shape.hidden_size = 16;
    shape.intermediate_size = 16;
    shape.head_dim = 8;
    shape.layers = "LG";
    shape.kv_producer = NULL;
    return shape;
}

/* Replaces the first occurrence of `from` in the file by `to`, of the same size. */
static void patch_file(const char *from, const char *to)
{
    FILE *file = fopen(path_, "rb+");
    static char bytes[1 << 18];
    size_t size = fread(bytes, 1, sizeof bytes, file), word = strlen(from);
    assert_int_equal(word, strlen(to));
    char *at = memmem(bytes, size, from, word);
    assert_non_null(at);
    fseek(file, at - bytes, SEEK_SET);
    fwrite(to, 1, word, file);
    assert_int_equal(fclose(file), 0);
}

/* Overwrites bytes of a tensor's data. */
static void patch_tensor(const char *name, size_t offset, const void *bytes, size_t size)
{
    struct safetensors *file;
    assert_int_equal(safetensors_open(path_, &file), STATUS_OK);
    const struct safetensors_tensor *tensor = safetensors_find(file, name);
    assert_non_null(tensor);
    size_t whole;
    long at = (long)((const char *)tensor->data - (const char *)safetensors_bytes(file, &whole)) + (long)offset;
    safetensors_close(&file);
    FILE *out = fopen(path_, "rb+");
    fseek(out, at, SEEK_SET);
    fwrite(bytes, 1, size, out);
    assert_int_equal(fclose(out), 0);
}

static void model_loads_and_has_a_digest(void **state)
{
    (void)state;
    struct random_model shape = tiny();
    struct model *model, *again;
    assert_int_equal(random_model_write(&shape, dir_), STATUS_OK);
    if (model_load(dir_, &model) != STATUS_OK)
        fail_msg("%s", status_detail());
    assert_int_equal(model->embedding.rows, 32);
    assert_int_equal(model->layers[1].down_proj.columns, 16);
    assert_non_null(model->layers[1].k_norm);
    assert_int_equal(model_load(dir_, &again), STATUS_OK);
    assert_memory_equal(model->weights_digest, again->weights_digest, 32);
    model_destroy(&again);

    int8_t other = model->layers[0].q_proj.weight[5] == 1 ? 2 : 1;
    patch_tensor("model.layers.0.self_attn.q_proj.weight", 5, &other, 1);
    assert_int_equal(model_load(dir_, &again), STATUS_OK);
    assert_memory_not_equal(model->weights_digest, again->weights_digest, 32);
    model_destroy(&again);
    model_destroy(&model);
    assert_null(model);
    model_destroy(&model);

    char path[300];                             /* a tokenizer is part of the digest */
    uint8_t before[32];
    assert_int_equal(model_load(dir_, &model), STATUS_OK);
    memcpy(before, model->weights_digest, 32);
    model_destroy(&model);
    snprintf(path, sizeof path, "%s/tokenizer.model", dir_);
    FILE *tokenizer = fopen(path, "w");
    fputs("x", tokenizer);
    fclose(tokenizer);
    assert_int_equal(model_load(dir_, &model), STATUS_OK);
    assert_memory_not_equal(model->weights_digest, before, 32);
    model_destroy(&model);
    unlink(path);
}

static void consumers_have_no_kv_weights(void **state)
{
    (void)state;
    struct random_model shape = random_model_small();
    struct model *model;
    assert_int_equal(random_model_write(&shape, dir_), STATUS_OK);
    assert_int_equal(model_load(dir_, &model), STATUS_OK);
    assert_null(model->layers[1].k_proj.weight);
    assert_null(model->layers[1].k_norm);
    assert_non_null(model->layers[2].v_proj.weight);
    model_destroy(&model);
    patch_file("model.layers.2.self_attn.v_proj.weight\"", "model.layers.1.self_attn.v_proj.weight\"");
    assert_refused(model_load(dir_, &model), STATUS_INVALID, "layers.2.self_attn.v_proj.weight is missing", "consumer");
}

static void bad_models_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
        enum status status;
        const char *word;
    } cases[] = {
        {"roost-int8", "roost-int4", STATUS_UNSUPPORTED, "roost-int4"},
        {"\"activation_scheme\":\"dynamic\"", "\"activation_scheme\":\"rotated\"", STATUS_UNSUPPORTED, "rotated"},
        {"\"activation_scheme\":\"dynamic\"", "\"activation_scheme\":\"dynamit\"", STATUS_INVALID, "dynamit"},
        {"\"activation_scheme\":\"dynamic\"", "\"activation_scheme\":\"static\" ", STATUS_UNSUPPORTED, "static"},
        {"\"activation_scheme\":\"dynamic\"", "\"activation_scheme\":\"wide\"   ", STATUS_UNSUPPORTED, "wide"},
        {"\"activation_scheme\"", "\"activation_schema\"", STATUS_INVALID, "lacks activation_scheme"},
        {"\"format\"", "\"farmat\"", STATUS_INVALID, "lacks format"},
        {"model.norm.weight", "model.norn.weight", STATUS_INVALID, "model.norm.weight is missing"},
        {"\"model.embed_tokens.weight\"", "\"model.embed_tokemz.weight\"", STATUS_INVALID, "model.embed_tokens.weight is missing"},
        {"q_proj.weight_scale", "q_proj.weight_scaly", STATUS_INVALID, "q_proj.weight_scale is missing"},
        {"\"shape\":[32,16]", "\"shape\":[16,32]", STATUS_INVALID, "shape"},
        {"\"shape\":[16,16]", "\"shape\":[8,32] ", STATUS_INVALID, "shape"},
        {"\"dtype\":\"F32\",\"shape\":[16]", "\"dtype\":\"I8\", \"shape\":[64]", STATUS_INVALID, "is not F32"},
    };
    struct random_model shape = tiny();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model *model = NULL;
        assert_int_equal(random_model_write(&shape, dir_), STATUS_OK);
        patch_file(cases[i].from, cases[i].to);
        assert_refused(model_load(dir_, &model), cases[i].status, cases[i].word, cases[i].to);
        assert_null(model);
    }
}

static void bad_values_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *tensor;
        float value;
        const char *word;
    } cases[] = {
        {"model.layers.0.mlp.up_proj.weight_scale", NAN, "not finite"},
        {"model.layers.1.mlp.down_proj.weight_scale", INFINITY, "not finite"},
        {"model.embed_tokens.weight_scale", -1.0f, "negative"},
        {"model.layers.0.input_layernorm.weight", NAN, "not finite"},
        {"model.layers.1.self_attn.k_norm.weight", -INFINITY, "not finite"},
        {"model.norm.weight", INFINITY, "not finite"},
    };
    struct random_model shape = tiny();
    struct model *model = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(random_model_write(&shape, dir_), STATUS_OK);
        patch_tensor(cases[i].tensor, 4, &cases[i].value, sizeof(float));
        assert_refused(model_load(dir_, &model), STATUS_INVALID, cases[i].word, cases[i].tensor);
        assert_non_null(strstr(status_detail(), cases[i].tensor));
    }
    assert_int_equal(random_model_write(&shape, dir_), STATUS_OK);
    patch_tensor("model.layers.1.self_attn.o_proj.weight", 77, "\x80", 1);
    assert_refused(model_load(dir_, &model), STATUS_INVALID, "-128", "weight");
}

static void unknown_tensors_and_schemes_are_named(void **state)
{
    (void)state;
    struct random_model shape = tiny();
    struct model *model = NULL;
    shape.layers = "LGL";
    assert_int_equal(random_model_write(&shape, dir_), STATUS_OK);
    char path[300], text[4096];
    snprintf(path, sizeof path, "%s/config.json", dir_);
    shape.layers = "LG";                        /* the configuration of two layers over the tensors of three */
    char other[] = "/tmp/roost-other-XXXXXX";
    assert_non_null(mkdtemp(other));
    assert_int_equal(random_model_write(&shape, other), STATUS_OK);
    char from[300];
    snprintf(from, sizeof from, "%s/config.json", other);
    FILE *in = fopen(from, "r");
    size_t size = fread(text, 1, sizeof text, in);
    fclose(in);
    FILE *out = fopen(path, "w");
    fwrite(text, 1, size, out);
    fclose(out);
    random_model_remove(other);
    assert_refused(model_load(dir_, &model), STATUS_INVALID, "model.layers.2.", "unknown tensor");

    static const struct {
        const char *metadata;
        enum status status;
        const char *word;
    } cases[] = {
        {"\"activation_scheme.a.weight\":\"static\"", STATUS_UNSUPPORTED, "static"},
        {"\"activation_scheme.a.weight\":\"rotated\"", STATUS_UNSUPPORTED, "rotated"},
        {"\"activation_scheme.z.weight\":\"dynamic\"", STATUS_INVALID, "names no int8 tensor"},
        {"\"activation_scheme.\":\"dynamic\"", STATUS_INVALID, "names no int8 tensor"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char header[600];
        struct safetensors *file = NULL;
        snprintf(header, sizeof header, "{\"__metadata__\":{\"format\":\"roost-int8\",\"activation_scheme\":\"dynamic\",%s},%s}",
                 cases[i].metadata, T("a.weight", "I8", "[4]", "0", "4"));
        assert_int_equal(open_text(header, 4, &file), STATUS_OK);
        safetensors_close(&file);
        assert_refused(model_load(dir_, &model), cases[i].status, cases[i].word, cases[i].metadata);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_file_is_read),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(bad_lengths_are_refused),
        cmocka_unit_test(deep_headers_are_refused),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(every_truncation_and_flip_ends_well),
        cmocka_unit_test(model_loads_and_has_a_digest),
        cmocka_unit_test(consumers_have_no_kv_weights),
        cmocka_unit_test(bad_models_are_refused),
        cmocka_unit_test(bad_values_are_refused),
        cmocka_unit_test(unknown_tensors_and_schemes_are_named),
    };
    return cmocka_run_group_tests_name("safetensors", tests, setup, teardown);
}
