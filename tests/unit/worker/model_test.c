/* A model directory: what is bound where, and every way of being refused. */
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/hash.h"
#include "random_model.h"
#include "unit.h"
#include "worker/engine/model/model.h"
#include "worker/engine/model/safetensors.h"

static char dir_[] = "/tmp/roost-model-test-XXXXXX";
static char path_[256];

static int setup(void **state)
{
    (void)state;
    if (hash_setup() != STATUS_OK || !mkdtemp(dir_))
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

static void assert_refused(enum status got, enum status want, const char *word, const char *what)
{
    if (got != want || !strstr(status_detail(), word))
        fail_msg("%.200s: %s, %s", what, status_name(got), status_detail());
}

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

/* Replaces the first occurrence of `from` in the header by `to`; the header keeps its size, which ends in spaces. */
static void patch_file(const char *from, const char *to)
{
    static char bytes[1 << 20];
    FILE *file = fopen(path_, "rb+");
    size_t size = fread(bytes, 1, sizeof bytes, file), length;
    memcpy(&length, bytes, 8);
    char *at = memmem(bytes + 8, length, from, strlen(from)), *end = bytes + 8 + length;
    assert_non_null(at);
    long grow = (long)strlen(to) - (long)strlen(from);
    for (long i = 1; i <= grow; i++)
        assert_int_equal(end[-i], ' ');
    memmove(at + strlen(to), at + strlen(from), (size_t)(end - at) - strlen(from) - (size_t)(grow > 0 ? grow : 0));
    for (long i = grow; i < 0; i++)
        end[i] = ' ';
    memcpy(at, to, strlen(to));
    rewind(file);
    fwrite(bytes, 1, size, file);
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

    int8_t other = ((const int8_t *)model->layers[0].q_proj.weight)[5] == 1 ? 2 : 1;
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
        {"\"format\":\"roost-int8\"", "\"format\":\"roost-float\"", STATUS_INVALID, "is I8, want F32 or BF16"},
        {"\"activation_scheme\":\"dynamic\"", "\"activation_scheme\":\"rotated\"", STATUS_INVALID, "multiples of 128"},
        {"\"activation_scheme\":\"dynamic\"", "\"activation_scheme\":\"dynamit\"", STATUS_INVALID, "dynamit"},
        {"\"activation_scheme\":\"dynamic\"", "\"activation_scheme\":\"static\" ", STATUS_INVALID, "weight_input_scale is missing"},
        {"\"activation_scheme\"", "\"activation_schema\"", STATUS_INVALID, "lacks activation_scheme"},
        {"\"format\"", "\"farmat\"", STATUS_INVALID, "lacks format"},
        {"model.norm.weight", "model.norn.weight", STATUS_INVALID, "model.norm.weight is missing"},
        {"\"model.embed_tokens.weight\"", "\"model.embed_tokemz.weight\"", STATUS_INVALID, "model.embed_tokens.weight is missing"},
        {"q_proj.weight_scale", "q_proj.weight_scaly", STATUS_INVALID, "q_proj.weight_scale is missing"},
        {"\"shape\":[32,16]", "\"shape\":[16,32]", STATUS_INVALID, "shape"},
        {"\"shape\":[16,16]", "\"shape\":[8,32] ", STATUS_INVALID, "shape"},
        {"\"dtype\":\"F32\",\"shape\":[16]", "\"dtype\":\"I8\", \"shape\":[64]", STATUS_INVALID, "wants shape (16)"},
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

static void surplus_tensors_are_refused(void **state)
{
    (void)state;
    struct random_model shape = tiny();
    struct model *model = NULL;
    char path[300], text[4096], other[] = "/tmp/roost-other-XXXXXX";
    shape.layers = "LG";                        /* the configuration of two layers over the tensors of three */
    assert_non_null(mkdtemp(other));
    assert_ok(random_model_write(&shape, other));
    snprintf(path, sizeof path, "%s/config.json", other);
    FILE *file = fopen(path, "r");
    size_t size = fread(text, 1, sizeof text, file);
    fclose(file);
    random_model_remove(other);
    shape.layers = "LGL";
    assert_ok(random_model_write(&shape, dir_));
    snprintf(path, sizeof path, "%s/config.json", dir_);
    file = fopen(path, "w");
    fwrite(text, 1, size, file);
    fclose(file);
    assert_refused(model_load(dir_, &model), STATUS_INVALID, "model.layers.2.", "unknown tensor");
}

static void schemes_are_bound_by_name(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    struct model *model = NULL;
    shape.recipe = RANDOM_RECIPE_MIXED;
    assert_ok(random_model_write(&shape, dir_));
    assert_ok(model_load(dir_, &model));
    unsigned seen[MODEL_SCHEMES] = {0};
    static const char *const leaves[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                                         "mlp.up_proj", "mlp.down_proj", "per_layer_input_gate", "per_layer_projection"};
    for (uint32_t layer = 0; layer < model->config.layer_count; layer++)
        for (unsigned i = 0; i < sizeof leaves / sizeof *leaves; i++) {
            char name[128];
            snprintf(name, sizeof name, "model.layers.%u.%s.weight", layer, leaves[i]);
            const struct model_matrix *matrix = model_find_matrix(model, name);
            bool produces = model->config.kv_producer[layer] == layer;
            assert_int_equal(matrix != NULL, produces || (i != 1 && i != 2));
            if (!matrix)
                continue;
            seen[matrix->scheme]++;
            assert_int_equal(matrix->input_scale > 0, matrix->scheme == MODEL_SCHEME_STATIC);
            if (matrix->scheme == MODEL_SCHEME_ROTATED)
                assert_int_equal(matrix->columns % 128, 0);
        }
    for (unsigned i = 0; i < MODEL_SCHEMES; i++)
        assert_true(seen[i] > 3);
    assert_ptr_equal(model_find_matrix(model, "model.layers.3.mlp.down_proj.weight"), &model->layers[3].down_proj);
    assert_ptr_equal(model_find_matrix(model, "model.embed_tokens.weight"), &model->embedding);
    assert_ptr_equal(model_find_matrix(model, "model.per_layer_model_projection.weight"), &model->per_layer_model_proj);
    static const char *const absent[] = {"", "model.layers.7.mlp.down_proj.weight", "model.layers.-1.mlp.down_proj.weight",
                                         "model.layers.03.mlp.down_proj.weight", "model.layers.3.mlp.down_proj", "model.layers.3.mlp.down_proj.weightx",
                                         "model.layers.99999999999999999999.mlp.down_proj.weight", "model.norm.weight"};
    for (unsigned i = 0; i < sizeof absent / sizeof *absent; i++)
        assert_null(model_find_matrix(model, absent[i]));
    assert_string_equal(model_scheme_name(MODEL_SCHEME_STATIC), "static");
    assert_string_equal(model_scheme_name(MODEL_SCHEME_WIDE), "wide");
    model_destroy(&model);
}

static void gemma_tensors_are_bound(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    struct model *model = NULL;
    assert_ok(random_model_write(&shape, dir_));
    assert_ok(model_load(dir_, &model));
    assert_int_equal(model->layers[3].q_proj.rows, 4 * 64);                 /* a global layer's heads are wider */
    assert_int_equal(model->layers[3].k_proj.rows, 64);
    assert_int_equal(model->layers[0].k_proj.rows, 2 * 32);
    assert_int_equal(model->layers[0].up_proj.rows, 128);
    assert_int_equal(model->layers[4].up_proj.rows, 256);                   /* a consumer's MLP, too */
    assert_int_equal(model->per_layer_embedding.columns, 7 * 24);
    assert_int_equal(model->per_layer_model_proj.rows, 7 * 24);
    assert_non_null(model->layers[6].mlp_result_norm);
    assert_non_null(model->layers[6].attention_norm);
    assert_true(model->layers[6].layer_scalar > 0.5f && model->layers[6].layer_scalar < 1.5f);
    model_destroy(&model);
    shape = random_model_small();
    assert_ok(random_model_write(&shape, dir_));
    assert_ok(model_load(dir_, &model));
    assert_null(model->layers[0].attention_norm);
    assert_non_null(model->layers[0].mlp_norm);
    assert_true(model->layers[0].layer_scalar == 1.0f);
    assert_null(model_find_matrix(model, "model.embed_tokens_per_layer.weight"));
    model_destroy(&model);
}

static void bad_schemes_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *word;
    } cases[] = {
        {"\"activation_scheme.model.embed_tokens.weight\":\"wide\"", "\"activation_scheme.model.embed_tokens.weight\":\"rotated\"", "looked up"},
        {"\"activation_scheme.model.embed_tokens.weight\"", "\"activation_scheme.model.embed_tokenz.weight\"", "names no int8 matrix"},
        {"\"activation_scheme.model.embed_tokens.weight\"", "\"activation_scheme.model.embed_tokens_per_layer.weight\"", "names no int8 matrix"},
        {"\"activation_scheme.model.embed_tokens.weight\"", "\"activation_scheme.\"", "names no int8 matrix"},
        {"mlp.up_proj.weight\":\"wide\"", "mlp.up_proj.weight\":\"wild\"", "unknown activation scheme wild"},
        {"per_layer_projection.weight\":\"wide\"", "per_layer_projection.weight\":\"rotated\"", "multiples of 128, not 24"},
        {"mlp.up_proj.weight\":\"wide\"", "mlp.up_proj.weight\":\"static\"", "up_proj.weight_input_scale is missing"},
        {"layer_scalar\"", "layer_skalar\"", "layer_scalar is missing"},
        {"\"model.embed_tokens_per_layer.weight_scale\"", "\"model.embed_tokens_per_layer.weight_skale\"", "weight_scale is missing"},
    };
    struct random_model shape = random_model_gemma4();
    shape.recipe = RANDOM_RECIPE_WIDE;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model *model = NULL;
        assert_ok(random_model_write(&shape, dir_));
        patch_file(cases[i].from, cases[i].to);
        assert_refused(model_load(dir_, &model), i ? STATUS_INVALID : STATUS_UNSUPPORTED, cases[i].word, cases[i].to);
    }
    shape.recipe = RANDOM_RECIPE_STATIC;
    static const float scales[] = {0.0f, -1.0f, NAN, INFINITY, 1e-40f, 1e38f};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        struct model *model = NULL;
        assert_ok(random_model_write(&shape, dir_));
        patch_tensor("model.layers.2.mlp.gate_proj.weight_input_scale", 0, &scales[i], sizeof(float));
        assert_refused(model_load(dir_, &model), STATUS_INVALID, "model.layers.2.mlp.gate_proj.weight_input_scale", "input scale");
    }
}

static void float_models_are_bound(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    struct model *model = NULL;
    shape.format = RANDOM_FORMAT_BF16;
    assert_ok(random_model_write(&shape, dir_));
    assert_ok(model_load(dir_, &model));
    assert_int_equal(model->format, MODEL_FORMAT_FLOAT);
    assert_int_equal(model->layers[2].q_proj.element, MODEL_ELEMENT_BF16);
    assert_null(model->layers[2].q_proj.scale);
    model_destroy(&model);
    patch_tensor("model.layers.2.self_attn.o_proj.weight", 2, "\x80\x7f", 2);       /* infinity */
    assert_refused(model_load(dir_, &model), STATUS_INVALID, "o_proj.weight has a value that is not finite", "bfloat16");
    assert_ok(random_model_write(&shape, dir_));
    patch_file("\"dtype\":\"BF16\"", "\"dtype\":\"F16\"");
    assert_refused(model_load(dir_, &model), STATUS_INVALID, "is F16, want F32 or BF16", "float16");
    shape.format = RANDOM_FORMAT_FLOAT;
    assert_ok(random_model_write(&shape, dir_));
    assert_ok(model_load(dir_, &model));
    assert_int_equal(model->embedding.element, MODEL_ELEMENT_F32);
    model_destroy(&model);
    patch_tensor("model.embed_tokens_per_layer.weight", 8, "\0\0\xc0\x7f", 4);      /* NaN */
    assert_refused(model_load(dir_, &model), STATUS_INVALID, "embed_tokens_per_layer.weight has a value that is not finite", "float32");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_loads_and_has_a_digest),
        cmocka_unit_test(consumers_have_no_kv_weights),
        cmocka_unit_test(gemma_tensors_are_bound),
        cmocka_unit_test(schemes_are_bound_by_name),
        cmocka_unit_test(float_models_are_bound),
        cmocka_unit_test(bad_models_are_refused),
        cmocka_unit_test(bad_values_are_refused),
        cmocka_unit_test(bad_schemes_are_refused),
        cmocka_unit_test(surplus_tensors_are_refused),
    };
    return cmocka_run_group_tests_name("model", tests, setup, teardown);
}
