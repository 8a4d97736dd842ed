/* convert_test.c - what is written: values, scales, schemes, smoothing, and that the engine's loader takes it. */
#include "tests/unit/worker/unit.h"
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/hash.h"
#include "kernels/quantize.h"
#include "tests/unit/convert/checkpoint_fixture.h"
#include "worker/convert/convert.h"
#include "worker/convert/random_weights.h"
#include "worker/convert/rows.h"
#include "worker/engine/model/model.h"
#include "worker/engine/model/safetensors.h"
#include "worker/engine/text/tokenizer.h"

static char scratch[256];
static struct fixture fixture;

static int setup(void **state)
{
    (void)state;
    fixture_scratch(scratch);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fixture_free(&fixture);
    fixture_remove(scratch);
    return 0;
}

static const char *at(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    return path;
}

static struct model *run(const char *source, enum model_format format, const char *recipe, uint32_t threads)
{
    struct model *model = NULL;
    char destination[512];
    snprintf(destination, sizeof destination, "%s/out", scratch);
    fixture_remove(destination);
    if (recipe)
        fixture_write_text(scratch, "recipe.json", recipe);
    char recipe_path[512];
    snprintf(recipe_path, sizeof recipe_path, "%s/recipe.json", scratch);
    const struct convert_options options = { .source = source, .destination = destination, .format = format, .no_tokenizer = true,
                                             .threads = threads, .recipe_path = recipe ? recipe_path : NULL };
    assert_ok(convert(&options));
    assert_ok(model_load(destination, &model));
    return model;
}

static float weight_at(const struct model_matrix *matrix, size_t index)
{
    if (matrix->element == MODEL_ELEMENT_F32)
        return ((const float *)matrix->weight)[index];
    assert_int_equal(matrix->element, MODEL_ELEMENT_BF16);
    const uint32_t bits = (uint32_t)((const uint16_t *)matrix->weight)[index] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void check_matrix(const struct model_matrix *matrix, const char *name, const char *dtype)
{
    const struct fixture_tensor *tensor = fixture_find(&fixture, name);
    assert_int_equal(matrix->rows, tensor->rows);
    assert_int_equal(matrix->columns, tensor->columns);
    assert_int_equal(matrix->element, strcmp(dtype, "BF16") == 0 ? MODEL_ELEMENT_BF16 : MODEL_ELEMENT_F32);
    for (size_t i = 0; i < (size_t)tensor->rows * tensor->columns; i++)
        if (weight_at(matrix, i) != tensor->values[i])
            fail_msg("%s[%zu]: %g became %g", name, i, (double)tensor->values[i], (double)weight_at(matrix, i));
}

static void check_norm(const float *values, const char *name, float plus)
{
    const struct fixture_tensor *tensor = fixture_find(&fixture, name);
    for (size_t i = 0; i < tensor->rows; i++)
        if (values[i] != tensor->values[i] + plus)
            fail_msg("%s[%zu]: %g became %g", name, i, (double)tensor->values[i], (double)values[i]);
}

static void test_gemma3_float(void **state)
{
    (void)state;
    static const char *const dtypes[] = { "F32", "BF16", "F16" };
    for (unsigned d = 0; d < 3; d++) {
        fixture_gemma3(&fixture, scratch, dtypes[d], false);
        fixture_write(&fixture, 1);
        struct model *model = run(fixture.dir, MODEL_FORMAT_FLOAT, NULL, 2);
        const struct model_config *config = &model->config;
        assert_string_equal(config->family, "gemma3");
        assert_int_equal(config->chat_template, MODEL_TEMPLATE_GEMMA);
        assert_true(config->attention_scale == 0.125f && config->embedding_scale == 8 && config->sandwich_norm && config->qk_norm);
        assert_false(config->v_norm);
        assert_true(config->attention[MODEL_LAYER_GLOBAL].rope_scale == 8 && config->attention[MODEL_LAYER_LOCAL].rope_scale == 1);
        assert_true(config->attention[MODEL_LAYER_GLOBAL].rope_base == 1e6 && config->attention[MODEL_LAYER_LOCAL].rope_base == 1e4);
        assert_int_equal(config->attention[MODEL_LAYER_LOCAL].window, 32);
        for (unsigned i = 0; i < 6; i++)
            assert_int_equal(config->layer_types[i], i == 5 ? MODEL_LAYER_GLOBAL : MODEL_LAYER_LOCAL);
        assert_int_equal(config->end_id_count, 2);
        assert_int_equal(config->end_ids[1], 106);
        check_matrix(&model->embedding, "model.embed_tokens.weight", dtypes[d]);
        check_matrix(&model->layers[3].down_proj, "model.layers.3.mlp.down_proj.weight", dtypes[d]);
        check_matrix(&model->layers[5].k_proj, "model.layers.5.self_attn.k_proj.weight", dtypes[d]);
        check_norm(model->final_norm, "model.norm.weight", 1);
        check_norm(model->layers[0].input_norm, "model.layers.0.input_layernorm.weight", 1);
        check_norm(model->layers[2].mlp_norm, "model.layers.2.pre_feedforward_layernorm.weight", 1);
        check_norm(model->layers[2].mlp_result_norm, "model.layers.2.post_feedforward_layernorm.weight", 1);
        check_norm(model->layers[4].k_norm, "model.layers.4.self_attn.k_norm.weight", 1);
        model_destroy(&model);
        fixture_remove(fixture.dir);
        fixture_free(&fixture);
    }
}

static void test_gemma3_conditional(void **state)
{
    (void)state;
    fixture_gemma3(&fixture, scratch, "BF16", true);
    fixture_write(&fixture, 3);
    struct model *model = run(fixture.dir, MODEL_FORMAT_FLOAT, NULL, 1);
    check_matrix(&model->layers[1].q_proj, "language_model.model.layers.1.self_attn.q_proj.weight", "BF16");
    check_norm(model->layers[1].q_norm, "language_model.model.layers.1.self_attn.q_norm.weight", 1);
    model_destroy(&model);
}

static void test_gemma4_float(void **state)
{
    (void)state;
    static const uint16_t producers[10] = { 0, 1, 2, 3, 4, 5, 5, 5, 5, 4 };
    for (unsigned conditional = 0; conditional < 2; conditional++) {
        const char *dtype = conditional ? "BF16" : "F32", *prefix = conditional ? "model.language_model." : "model.";
        char name[128];
        fixture_gemma4(&fixture, scratch, dtype, conditional);
        snprintf(name, sizeof name, "%slayers.7.self_attn.k_proj.weight", prefix);   /* of a consumer: in files, read by nobody */
        fixture_add(&fixture, dtype, 16, 128, name);
        fixture_write(&fixture, conditional ? 2 : 1);
        struct model *model = run(fixture.dir, MODEL_FORMAT_FLOAT, NULL, 2);
        const struct model_config *config = &model->config;
        assert_string_equal(config->family, "gemma4");
        for (unsigned i = 0; i < 10; i++) {
            assert_int_equal(config->kv_producer[i], producers[i]);
            assert_int_equal(config->intermediate_size[i], i < 6 ? 128 : 256);
        }
        assert_int_equal(config->attention[MODEL_LAYER_GLOBAL].head_dim, 32);
        assert_int_equal(config->attention[MODEL_LAYER_GLOBAL].rope_pairs, 4);
        assert_int_equal(config->attention[MODEL_LAYER_LOCAL].rope_pairs, 8);
        assert_true(config->attention_scale == 1 && config->v_norm && config->logit_cap == 30 && config->per_layer_input == 32);
        snprintf(name, sizeof name, "%sembed_tokens_per_layer.weight", prefix);
        check_matrix(&model->per_layer_embedding, name, dtype);
        snprintf(name, sizeof name, "%slayers.9.per_layer_projection.weight", prefix);
        check_matrix(&model->layers[9].per_layer_proj, name, dtype);
        snprintf(name, sizeof name, "%slayers.6.post_per_layer_input_norm.weight", prefix);
        check_norm(model->layers[6].per_layer_norm, name, 0);
        snprintf(name, sizeof name, "%slayers.6.layer_scalar", prefix);
        assert_true(model->layers[6].layer_scalar == fixture_find(&fixture, name)->values[0]);
        assert_null(model->layers[7].k_proj.weight);
        model_destroy(&model);
        fixture_free(&fixture);
    }
}

/* ---- int8 ---- */

/* Rows of an unrotated matrix: within half a step of the source, and the step is the row's largest over 127. */
static void check_rounding(const struct model_matrix *matrix, const float *source)
{
    for (size_t r = 0; r < matrix->rows; r++) {
        const float *row = source + r * matrix->columns;
        float most = 0;
        for (size_t i = 0; i < matrix->columns; i++)
            most = fmaxf(most, fabsf(row[i]));
        assert_true(fabsf(matrix->scale[r] * 127 - most) <= most * 1e-6f);
        for (size_t i = 0; i < matrix->columns; i++) {
            const float back = (float)((const int8_t *)matrix->weight)[r * matrix->columns + i] * matrix->scale[r];
            assert_true(fabsf(back - row[i]) <= matrix->scale[r] * 0.5001f);
        }
    }
}

static void rotate_input(double *x, unsigned columns)
{
    for (unsigned base = 0; base < columns; base += 128) {
        for (unsigned i = 0; i < 128; i++)
            x[base + i] *= (double)quantize_rotate_sign(i);
        for (unsigned d = 1; d < 128; d *= 2)
            for (unsigned i = 0; i < 128; i++)
                if (!(i & d)) {
                    const double a = x[base + i], b = x[base + i + d];
                    x[base + i] = a + b;
                    x[base + i + d] = a - b;
                }
    }
}

static void test_rotation_keeps_products(void **state)
{
    (void)state;
    enum { COLUMNS = 384 };
    float row[COLUMNS];
    double x[COLUMNS], plain = 0, rotated = 0, size = 0;
    uint64_t seed = test_seed(3);
    for (unsigned i = 0; i < COLUMNS; i++) {
        row[i] = (float)rng_below(&seed, 2001) / 1000 - 1;
        x[i] = (double)rng_below(&seed, 2001) / 1000 - 1;
        plain += (double)row[i] * x[i];
        size += fabs((double)row[i] * x[i]);
    }
    rows_rotate(row, COLUMNS);
    rotate_input(x, COLUMNS);
    for (unsigned i = 0; i < COLUMNS; i++)
        rotated += (double)row[i] * x[i];
    assert_true(fabs(plain - rotated) < 1e-6 * size);
}

static void test_int8_schemes(void **state)
{
    (void)state;
    fixture_gemma4(&fixture, scratch, "F32", false);
    fixture_write(&fixture, 1);
    struct model *model = run(fixture.dir, MODEL_FORMAT_INT8, "{\"smooth\": false}", 2);
    assert_int_equal(model->embedding.scheme, MODEL_SCHEME_WIDE);
    assert_int_equal(model->layers[0].q_proj.scheme, MODEL_SCHEME_ROTATED);
    assert_int_equal(model->layers[0].o_proj.scheme, MODEL_SCHEME_DYNAMIC);      /* 64 columns */
    assert_int_equal(model->layers[4].o_proj.scheme, MODEL_SCHEME_ROTATED);      /* 128 */
    assert_int_equal(model->layers[3].down_proj.scheme, MODEL_SCHEME_WIDE);
    assert_int_equal(model->layers[3].per_layer_gate.scheme, MODEL_SCHEME_WIDE);
    assert_int_equal(model->layers[3].per_layer_proj.scheme, MODEL_SCHEME_DYNAMIC);
    assert_int_equal(model->per_layer_model_proj.scheme, MODEL_SCHEME_ROTATED);
    check_rounding(&model->embedding, fixture_find(&fixture, "model.embed_tokens.weight")->values);
    check_rounding(&model->layers[8].down_proj, fixture_find(&fixture, "model.layers.8.mlp.down_proj.weight")->values);
    check_rounding(&model->layers[0].o_proj, fixture_find(&fixture, "model.layers.0.self_attn.o_proj.weight")->values);

    const struct fixture_tensor *q = fixture_find(&fixture, "model.layers.0.self_attn.q_proj.weight");
    float *rotated = malloc((size_t)q->rows * q->columns * sizeof *rotated);
    assert_non_null(rotated);
    memcpy(rotated, q->values, (size_t)q->rows * q->columns * sizeof *rotated);
    for (unsigned r = 0; r < q->rows; r++)
        rows_rotate(rotated + (size_t)r * q->columns, q->columns);
    check_rounding(&model->layers[0].q_proj, rotated);
    free(rotated);

    /* The per-layer table has a scale for each token and layer. */
    const struct model_matrix *table = &model->per_layer_embedding;
    struct model_matrix pieces = *table;
    pieces.rows = table->rows * 10;
    pieces.columns = table->columns / 10;
    check_rounding(&pieces, fixture_find(&fixture, "model.embed_tokens_per_layer.weight")->values);
    model_destroy(&model);
}

static void test_recipe_in_force(void **state)
{
    (void)state;
    fixture_gemma3(&fixture, scratch, "F32", false);
    fixture_write(&fixture, 1);
    struct model *model = run(fixture.dir, MODEL_FORMAT_INT8,
                              "{\"default\": \"wide\", \"tensors\": [{\"match\": \"*.1.mlp.up_proj.weight\", \"scheme\": \"static\", "
                              "\"input_scale\": 0.05}, {\"match\": \"*.up_proj.weight\", \"scheme\": \"dynamic\"}]}", 1);
    assert_int_equal(model->layers[0].gate_proj.scheme, MODEL_SCHEME_WIDE);
    assert_int_equal(model->layers[1].up_proj.scheme, MODEL_SCHEME_STATIC);
    assert_true(model->layers[1].up_proj.input_scale == 0.05f);
    assert_int_equal(model->layers[2].up_proj.scheme, MODEL_SCHEME_DYNAMIC);
    model_destroy(&model);
}

/* Norm weight times column stays what it was, to the last bit, and an outlier of a channel is evened out. */
static void test_smoothing(void **state)
{
    (void)state;
    enum { CHANNEL = 9 };
    fixture_gemma4(&fixture, scratch, "F32", false);
    static const char *const consumers[] = { "q_proj", "k_proj", "v_proj" };
    fixture_find(&fixture, "model.layers.2.input_layernorm.weight")->values[CHANNEL] = 100;
    for (unsigned c = 0; c < 3; c++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.2.self_attn.%s.weight", consumers[c]);
        struct fixture_tensor *tensor = fixture_find(&fixture, name);
        for (unsigned r = 0; r < tensor->rows; r++)
            tensor->values[r * tensor->columns + CHANNEL] /= 100;
    }
    fixture_write(&fixture, 1);
    struct model *model = run(fixture.dir, MODEL_FORMAT_FLOAT, "{\"smooth\": true}", 2);
    const struct model_matrix *matrices[] = { &model->layers[2].q_proj, &model->layers[2].k_proj, &model->layers[2].v_proj };
    const float *norm = model->layers[2].input_norm;
    const float *before = fixture_find(&fixture, "model.layers.2.input_layernorm.weight")->values;
    bool changed = false;
    for (unsigned c = 0; c < 3; c++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.2.self_attn.%s.weight", consumers[c]);
        const struct fixture_tensor *tensor = fixture_find(&fixture, name);
        for (size_t i = 0; i < (size_t)tensor->rows * tensor->columns; i++) {
            const size_t j = i % tensor->columns;
            assert_true((double)norm[j] * (double)weight_at(matrices[c], i) == (double)before[j] * (double)tensor->values[i]);
            changed = changed || norm[j] != before[j];
        }
    }
    assert_true(changed);
    assert_true(fabsf(norm[CHANNEL]) < 3);             /* the others are below 0.5 */
    check_norm(model->layers[2].attention_norm, "model.layers.2.post_attention_layernorm.weight", 0);   /* feeds no matrix */
    check_norm(model->final_norm, "model.norm.weight", 0);
    model_destroy(&model);

    model = run(fixture.dir, MODEL_FORMAT_FLOAT, "{\"default\": \"dynamic\"}", 2);   /* off unless asked for */
    check_norm(model->layers[2].input_norm, "model.layers.2.input_layernorm.weight", 0);
    model_destroy(&model);
}

static void digest_file(const char *dir, const char *name, uint8_t out[HASH_DIGEST_BYTES])
{
    char path[600], *bytes;
    size_t size;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_ok(model_file_read(path, 1u << 30, &bytes, &size));
    hash_digest(bytes, size, NULL, 0, out);
    free(bytes);
}

static void test_same_input_same_files(void **state)
{
    (void)state;
    uint8_t first[2][HASH_DIGEST_BYTES], second[2][HASH_DIGEST_BYTES];
    fixture_gemma4(&fixture, scratch, "BF16", false);
    fixture_write(&fixture, 2);
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        struct model *model = run(fixture.dir, MODEL_FORMAT_INT8, NULL, threads);
        model_destroy(&model);
        digest_file(at("out"), "model.safetensors", threads == 1 ? first[0] : second[0]);
        digest_file(at("out"), "config.json", threads == 1 ? first[1] : second[1]);
    }
    assert_memory_equal(first, second, sizeof first);
}

/* The input of layer 0's projections, by hand: the embedding's rows, normed. */
static float largest_input(const uint32_t *ids, unsigned count)
{
    const struct fixture_tensor *embedding = fixture_find(&fixture, "model.embed_tokens.weight");
    const struct fixture_tensor *norm = fixture_find(&fixture, "model.layers.0.input_layernorm.weight");
    double most = 0;
    for (unsigned t = 0; t < count; t++) {
        double squares = 0;
        for (unsigned j = 0; j < 64; j++)
            squares += pow(8.0 * (double)embedding->values[ids[t] * 64 + j], 2);
        for (unsigned j = 0; j < 64; j++)
            most = fmax(most, fabs(8.0 * (double)embedding->values[ids[t] * 64 + j] / sqrt(squares / 64 + 1e-6) * (1 + (double)norm->values[j])));
    }
    return (float)most;
}

static void test_calibration(void **state)
{
    (void)state;
    static const uint32_t ids[] = { 5, 17, 300, 41, 8, 99 };
    fixture_gemma3(&fixture, scratch, "F32", false);
    fixture_write(&fixture, 1);
    fixture_write_text(scratch, "sample.txt", "5 17 300\n41 8 99\n");
    fixture_write_text(scratch, "recipe.json", "{\"default\": \"static\", \"smooth\": false, \"tensors\": []}");
    char paths[3][512];
    snprintf(paths[0], sizeof paths[0], "%s/out", scratch);
    snprintf(paths[1], sizeof paths[1], "%s/sample.txt", scratch);
    snprintf(paths[2], sizeof paths[2], "%s/recipe.json", scratch);
    struct convert_options options = { .source = fixture.dir, .destination = paths[0], .recipe_path = paths[2], .calibrate_path = paths[1],
                                       .no_tokenizer = true, .threads = 2 };
    struct model *model = NULL;
    assert_ok(convert(&options));
    assert_ok(model_load(paths[0], &model));
    assert_true(fabsf(model->layers[0].q_proj.input_scale * 127 / largest_input(ids, 6) - 1) < 1e-4f);
    assert_true(model->layers[0].q_proj.input_scale == model->layers[0].v_proj.input_scale);
    for (unsigned i = 0; i < 6; i++)
        assert_true(model->layers[i].down_proj.input_scale > 0 && model->layers[i].o_proj.input_scale > 0);
    model_destroy(&model);
    struct stat info;
    assert_int_equal(stat(at("out.float"), &info), -1);                  /* the float copy is gone */

    fixture_remove(paths[0]);
    fixture_write_text(scratch, "sample.txt", "5 320");
    assert_int_equal(convert(&options), STATUS_INVALID);
    assert_non_null(strstr(status_detail(), "id 320 is outside"));
    fixture_write_text(scratch, "sample.txt", " \n");
    assert_int_equal(convert(&options), STATUS_INVALID);
    assert_int_equal(stat(at("out.float"), &info), -1);
    assert_int_equal(stat(at("out.partial"), &info), -1);
    assert_int_equal(stat(at("out"), &info), -1);
}

/* ---- roost's own ---- */

/* The shipped model to float and back to int8 is the shipped model: its weights lie on their grid. */
static void test_roost_there_and_back(void **state)
{
    (void)state;
    char folio[512], as_float[512];
    source_path("deploy/models/folio", folio, sizeof folio);
    struct model *shipped = NULL;
    struct model *model = run(folio, MODEL_FORMAT_FLOAT, NULL, 2);
    model_destroy(&model);
    snprintf(as_float, sizeof as_float, "%s/float", scratch);
    assert_int_equal(rename(at("out"), as_float), 0);
    model = run(as_float, MODEL_FORMAT_INT8, "{\"smooth\": false}", 2);
    assert_ok(model_load(folio, &shipped));
    for (unsigned i = 0; i < shipped->config.layer_count; i++) {
        const struct model_matrix *a = &shipped->layers[i].down_proj, *b = &model->layers[i].down_proj;
        assert_memory_equal(a->weight, b->weight, (size_t)a->rows * a->columns);
        assert_memory_equal(shipped->layers[i].input_norm, model->layers[i].input_norm, shipped->config.hidden_size * sizeof(float));
        for (unsigned r = 0; r < a->rows; r++)
            assert_true(fabsf(a->scale[r] - b->scale[r]) <= a->scale[r] * 1e-6f);
    }
    model_destroy(&shipped);
    model_destroy(&model);
}

static void test_tokenizer_is_copied(void **state)
{
    (void)state;
    char folio[512];
    uint8_t before[HASH_DIGEST_BYTES], after[HASH_DIGEST_BYTES];
    source_path("deploy/models/folio", folio, sizeof folio);
    char destination[512];
    snprintf(destination, sizeof destination, "%s/out", scratch);
    const struct convert_options options = { .source = folio, .destination = destination, .threads = 1 };
    assert_ok(convert(&options));
    digest_file(folio, "tokenizer.model", before);
    digest_file(destination, "tokenizer.model", after);
    assert_memory_equal(before, after, sizeof before);
}

/* ---- random weights ---- */

static void test_random_shapes(void **state)
{
    (void)state;
    static const char *const shapes[] = { "gemma3-270m", "gemma3-4b", "gemma4-e2b", "roost-13b-like", "roost-small" };
    for (unsigned i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct model *model = NULL;
        char destination[512];
        snprintf(destination, sizeof destination, "%s/%s", scratch, shapes[i]);
        const struct random_options options = { .shape = shapes[i], .destination = destination, .vocab_size = 1024, .layers = i < 4 ? 1 : 12,
                                                .seed = 5, .threads = 2 };
        assert_ok(random_weights(&options));
        assert_ok(model_load(destination, &model));
        struct tokenizer *tokenizer = NULL;
        char path[600];
        snprintf(path, sizeof path, "%s/tokenizer.model", destination);
        const struct tokenizer_config config = { .vocab_size = 1024, .bos_id = model->config.bos_id, .turn_id = model->config.turn_id,
                                                 .text_id = model->config.text_id, .end_ids = model->config.end_ids,
                                                 .end_id_count = model->config.end_id_count };
        assert_ok(tokenizer_open(path, &config, &tokenizer));
        tokenizer_close(&tokenizer);
        model_destroy(&model);
        fixture_remove(destination);
    }
}

static void test_random_is_reproducible(void **state)
{
    (void)state;
    uint8_t digests[3][HASH_DIGEST_BYTES];
    for (unsigned i = 0; i < 3; i++) {
        char destination[512];
        snprintf(destination, sizeof destination, "%s/%u", scratch, i);
        const struct random_options options = { .shape = "roost-small", .destination = destination, .layers = 2, .vocab_size = 512,
                                                .seed = i == 2 ? 8 : 7, .threads = i + 1 };
        assert_ok(random_weights(&options));
        digest_file(destination, "model.safetensors", digests[i]);
    }
    assert_memory_equal(digests[0], digests[1], HASH_DIGEST_BYTES);
    assert_memory_not_equal(digests[0], digests[2], HASH_DIGEST_BYTES);
}

int main(void)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_gemma3_float), CASE(test_gemma3_conditional), CASE(test_gemma4_float), CASE(test_rotation_keeps_products),
        CASE(test_int8_schemes), CASE(test_recipe_in_force), CASE(test_smoothing), CASE(test_calibration), CASE(test_same_input_same_files),
        CASE(test_roost_there_and_back), CASE(test_tokenizer_is_copied), CASE(test_random_shapes), CASE(test_random_is_reproducible),
    };
    return unit_run(tests, NULL, NULL);
}
