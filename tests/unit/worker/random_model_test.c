/* A random model made in memory is the one that model_load makes of its files: every family, scheme and format. */
#include "random_model.h"
#include "tests/unit/worker/unit.h"
#include "worker/engine/model/model.h"

static void check_floats(const char *what, const float *got, const float *want, size_t count)
{
    assert_int_equal(got != NULL, want != NULL);
    if (want != NULL && memcmp(got, want, count * sizeof *want) != 0)
        fail_msg("%s differs", what);
}

static void check_matrix(const char *what, const struct model_matrix *got, const struct model_matrix *want, uint32_t scales)
{
    static const unsigned bytes[] = {[MODEL_ELEMENT_I8] = 1, [MODEL_ELEMENT_F32] = 4, [MODEL_ELEMENT_BF16] = 2};
    assert_int_equal(got->weight != NULL, want->weight != NULL);
    if (!want->weight)
        return;
    if (got->element != want->element || got->scheme != want->scheme || got->rows != want->rows || got->columns != want->columns ||
        memcmp(&got->input_scale, &want->input_scale, sizeof got->input_scale) != 0)
        fail_msg("%s has another form", what);
    if (memcmp(got->weight, want->weight, (size_t)want->rows * want->columns * bytes[want->element]) != 0)
        fail_msg("%s has other weights", what);
    check_floats(what, got->scale, want->scale, (size_t)want->rows * scales);
}

static void check_layer(const struct model *got_model, const struct model *want_model, uint32_t i)
{
    const struct model_config *config = &want_model->config;
    const struct model_layer *got = &got_model->layers[i], *want = &want_model->layers[i];
    const size_t hidden = config->hidden_size, dim = config->attention[config->layer_types[i]].head_dim;
    check_floats("input_norm", got->input_norm, want->input_norm, hidden);
    check_floats("attention_norm", got->attention_norm, want->attention_norm, hidden);
    check_floats("mlp_norm", got->mlp_norm, want->mlp_norm, hidden);
    check_floats("mlp_result_norm", got->mlp_result_norm, want->mlp_result_norm, hidden);
    check_floats("q_norm", got->q_norm, want->q_norm, dim);
    check_floats("k_norm", got->k_norm, want->k_norm, dim);
    check_floats("per_layer_norm", got->per_layer_norm, want->per_layer_norm, hidden);
    check_floats("layer_scalar", &got->layer_scalar, &want->layer_scalar, 1);
    check_matrix("q_proj", &got->q_proj, &want->q_proj, 1);
    check_matrix("k_proj", &got->k_proj, &want->k_proj, 1);
    check_matrix("v_proj", &got->v_proj, &want->v_proj, 1);
    check_matrix("o_proj", &got->o_proj, &want->o_proj, 1);
    check_matrix("gate_proj", &got->gate_proj, &want->gate_proj, 1);
    check_matrix("up_proj", &got->up_proj, &want->up_proj, 1);
    check_matrix("down_proj", &got->down_proj, &want->down_proj, 1);
    check_matrix("per_layer_gate", &got->per_layer_gate, &want->per_layer_gate, 1);
    check_matrix("per_layer_proj", &got->per_layer_proj, &want->per_layer_proj, 1);
}

static void check_model(const struct random_model *shape)
{
    char dir[RANDOM_MODEL_PATH_MAX];
    struct model *want = NULL, *got = random_model_make(shape);
    assert_non_null(got);
    assert_ok(random_model_create(shape, dir));
    const enum status st = model_load(dir, &want);
    random_model_remove(dir);
    assert_ok(st);
    assert_int_equal(got->format, want->format);
    if (memcmp(&got->config, &want->config, sizeof want->config) != 0)
        fail_msg("%s: the configuration differs", shape->name);
    check_matrix("embedding", &got->embedding, &want->embedding, 1);
    check_matrix("per_layer_embedding", &got->per_layer_embedding, &want->per_layer_embedding, want->config.layer_count);
    check_matrix("per_layer_model_proj", &got->per_layer_model_proj, &want->per_layer_model_proj, 1);
    check_floats("final_norm", got->final_norm, want->final_norm, want->config.hidden_size);
    check_floats("per_layer_proj_norm", got->per_layer_proj_norm, want->per_layer_proj_norm, want->config.per_layer_input);
    for (uint32_t i = 0; i < want->config.layer_count; i++)
        check_layer(got, want, i);
    model_destroy(&want), model_destroy(&got);
}

static void families_and_schemes(void **state)
{
    (void)state;
    const struct random_model *shape;
    for (unsigned i = 0; (shape = random_model_at(i)); i++)
        for (unsigned recipe = 0; recipe < RANDOM_RECIPES; recipe++) {
            struct random_model one = *shape;
            one.recipe = (enum random_recipe)recipe;
            check_model(&one);
        }
}

static void formats(void **state)
{
    (void)state;
    const enum random_format all[] = {RANDOM_FORMAT_FLOAT, RANDOM_FORMAT_BF16};
    for (unsigned i = 0; i < 2; i++) {
        struct random_model shape = random_model_gemma4();
        shape.format = all[i];
        check_model(&shape);
    }
    struct random_model large = random_model_small();
    large.hidden_size = 640, large.intermediate_size = 3000;
    large.repeated = true;
    check_model(&large);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(families_and_schemes), cmocka_unit_test(formats)};
    return unit_run(tests, NULL, NULL);
}
