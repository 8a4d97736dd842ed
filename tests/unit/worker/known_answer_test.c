/* A model's known answer: written, checked, refused when a bit differs; that of the model in the tree holds. */
#include <unistd.h>
#include "backend_fixture.h"
#include "unit.h"
#include "worker/engine/model/known_answer.h"

static enum status check(const char *dir, const struct model *model, uint32_t threads, uint32_t chunk)
{
    struct backend *backend = backend_make(&backend_cpu_ops, model, NULL, (struct backend_config){.rows_max = chunk, .threads = threads});
    const struct known_answer_run run = {.model = model, .ops = &backend_cpu_ops, .backend = backend, .chunk_tokens = chunk};
    enum status st = known_answer_check(dir, &run);
    backend_cpu_ops.destroy(&backend);
    return st;
}

static void folio_gives_its_answer(void **state)
{
    (void)state;
    char dir[512];
    struct model *model = NULL;
    source_path("deploy/models/folio", dir, sizeof dir);
    assert_ok(model_load(dir, &model));
    assert_ok(check(dir, model, 1, 64));
    assert_ok(check(dir, model, 2, 17));
    assert_ok(check(dir, model, 1, 1));
    model_destroy(&model);
}

static void answers_are_written_and_compared(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    shape.recipe = RANDOM_RECIPE_MIXED;
    char dir[RANDOM_MODEL_PATH_MAX];
    struct model *model = NULL;
    assert_ok(random_model_create(&shape, dir));
    assert_ok(model_load(dir, &model));
    assert_int_equal(check(dir, model, 1, 64), STATUS_NOT_FOUND);
    struct backend *backend = backend_make(&backend_cpu_ops, model, NULL, (struct backend_config){.rows_max = 64, .threads = 1});
    const struct known_answer_run run = {.model = model, .ops = &backend_cpu_ops, .backend = backend, .chunk_tokens = 64};
    assert_ok(known_answer_write(dir, &run));
    backend_cpu_ops.destroy(&backend);
    assert_ok(check(dir, model, 2, 33));
    float *scalar = (float *)&model->layers[5].layer_scalar, before = *scalar;
    *scalar = before * 1.0001f;
    assert_int_equal(check(dir, model, 1, 64), STATUS_CORRUPT);
    assert_non_null(strstr(status_detail(), "known answer"));
    *scalar = before;
    assert_ok(check(dir, model, 1, 64));
    model_destroy(&model);
    random_model_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folio_gives_its_answer),
        cmocka_unit_test(answers_are_written_and_compared),
    };
    return unit_run(tests, NULL, NULL);
}
