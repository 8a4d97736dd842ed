/* The float backend: the same numbers whatever the batch, chunks and threads; int8 and float files of the same weights agree; how far int8
 * is from float per scheme; what is emulated lands near the CPU backend. */
#include <math.h>
#include <time.h>
#include "backend_fixture.h"
#include "kernels/kernels.h"
#include "unit.h"
#include "worker/engine/backend/backend_float.h"

static const struct backend_ops *const float_ = &backend_float_ops, *const cpu_ = &backend_cpu_ops;

#define CONFIG(threads_) ((struct backend_config){.rows_max = 512, .threads = (threads_)})

enum { COUNT = 130 };

/* All logits of one sequence. */
static void compute(const struct backend_ops *ops, const struct model *model, struct backend *backend, float *logits)
{
    uint32_t tokens[COUNT];
    struct session session;
    tokens_fill(model, 0, tokens, COUNT);
    session_open(&session, ops, model, backend, tokens);
    forward_all(&session, 0, COUNT, COUNT, logits);
    session_close(&session);
}

static void compute_alone(const struct backend_ops *ops, const struct model *model, float *logits)
{
    struct backend *backend = backend_make(ops, model, NULL, CONFIG(1));
    compute(ops, model, backend, logits);
    ops->destroy(&backend);
}

static void batches_chunks_and_threads_agree(void **state)
{
    (void)state;
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++) {
        struct model *model = model_make_with(shape, RANDOM_RECIPE_MIXED);
        size_t vocab = model->config.vocab_size;
        uint32_t tokens[COUNT], other[COUNT];
        tokens_fill(model, 0, tokens, COUNT);
        tokens_fill(model, 1, other, COUNT);
        float *want = logits_new(model, COUNT), *got = logits_new(model, COUNT), *theirs = logits_new(model, 3);
        compute_alone(float_, model, want);
        struct backend *backend = backend_make(float_, model, NULL, CONFIG(2));
        struct session one, two;
        session_open(&one, float_, model, backend, tokens);
        session_open(&two, float_, model, backend, other);
        for (uint32_t at = 0; at < COUNT; at += 13) {
            const struct backend_run runs[] = {session_run(&two, at, 13, theirs, at % 3), session_run(&one, at, 13, got, 13)};
            forward_batch(&one, runs, 2);
            if (memcmp(got, want + at * vocab, 13 * vocab * sizeof *got) != 0)
                fail_msg("%s: other logits at %u", shape->name, at);
        }
        forward(&one, 64, 40, NULL, 0);                  /* no logits wanted */
        forward(&one, 104, COUNT - 104, got, 1);
        assert_memory_equal(got, want + (COUNT - 1) * vocab, vocab * sizeof *got);
        session_close(&one), session_close(&two);
        float_->destroy(&backend);
        free(want), free(got), free(theirs);
        model_destroy(&model);
    }
}

static void formats_agree(void **state)
{
    (void)state;
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++) {
        struct random_model other = *shape;
        struct model *int8 = model_make(&other);
        other.format = RANDOM_FORMAT_FLOAT;
        struct model *real = model_make(&other);
        other.format = RANDOM_FORMAT_BF16;
        struct model *bf16 = model_make(&other);
        assert_int_equal(real->format, MODEL_FORMAT_FLOAT);
        assert_int_equal(bf16->embedding.element, MODEL_ELEMENT_BF16);
        size_t count = COUNT * (size_t)int8->config.vocab_size;
        float *a = logits_new(int8, COUNT), *b = logits_new(int8, COUNT), *c = logits_new(int8, COUNT);
        compute_alone(float_, int8, a);
        compute_alone(float_, real, b);
        compute_alone(float_, bf16, c);
        print_message("%s: int8 file against float file %.1e, bfloat16 %.1e\n", shape->name, distance(a, b, count), distance(c, b, count));
        assert_true(distance(a, b, count) < 1e-4);
        assert_true(distance(c, b, count) < 0.05);
        free(a), free(b), free(c);
        model_destroy(&int8), model_destroy(&real), model_destroy(&bf16);
    }
}

/* Random layers amplify every rounding; a model that was trained does not (tests/parity). */
static void int8_is_close_to_float(void **state)
{
    (void)state;
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++)
        for (unsigned recipe = 0; recipe < RANDOM_RECIPES; recipe++) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
            if ((s + recipe) % 3)
                continue;                    /* the kernels are some twenty times slower there */
#endif
            struct model *model = model_make_with(shape, (enum random_recipe)recipe);
            size_t vocab = model->config.vocab_size, count = COUNT * vocab;
            float *real = logits_new(model, COUNT), *int8 = logits_new(model, COUNT), *emulated = logits_new(model, COUNT);
            compute_alone(cpu_, model, int8);
            struct backend *backend = backend_make(float_, model, NULL, CONFIG(1));
            compute(float_, model, backend, real);
            assert_ok(backend_float_emulate(backend, model, NULL, true));
            compute(float_, model, backend, emulated);
            float_->destroy(&backend);
            double apart = distance(int8, real, count), left = distance(int8, emulated, count);
            print_message("%s, %s: int8 against float %.2f%% (first token %.2f%%); against float with its integers %.2f%%\n", shape->name,
                          random_recipe_name((enum random_recipe)recipe), 100 * apart, 100 * distance(int8, real, vocab), 100 * left);
            if (distance(int8, real, vocab) > (recipe == RANDOM_RECIPE_STATIC ? 0.10 : 0.05) || apart > 0.20 || left > 0.20)
                fail_msg("too far");
            free(real), free(int8), free(emulated);
            model_destroy(&model);
        }
}

static void single_matrices_are_emulated(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    struct model *int8 = model_make(&shape);
    shape.format = RANDOM_FORMAT_FLOAT;
    struct model *real = model_make(&shape);
    size_t count = COUNT * (size_t)real->config.vocab_size;
    float *plain = logits_new(real, COUNT), *got = logits_new(real, COUNT), *all = logits_new(real, COUNT);
    struct backend *backend = backend_make(float_, real, NULL, CONFIG(1));
    compute(float_, real, backend, plain);
    assert_ok(backend_float_emulate(backend, int8, NULL, false));
    compute(float_, real, backend, all);
    static const char *const names[] = {"model.layers.0.self_attn.q_proj.weight", "model.layers.6.mlp.down_proj.weight", "model.embed_tokens.weight",
                                        "model.layers.3.per_layer_input_gate.weight", "model.per_layer_model_projection.weight"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        assert_ok(backend_float_emulate(backend, int8, names[i], false));
        compute(float_, real, backend, got);
        double apart = distance(got, plain, count);
        print_message("%s alone: %.2f%% of all's %.2f%%\n", names[i], 100 * apart, 100 * distance(all, plain, count));
        assert_true(apart > 1e-5 && apart < 2 * distance(all, plain, count));
    }
    assert_ok(backend_float_emulate(backend, NULL, NULL, true));
    compute(float_, real, backend, got);
    assert_true(distance(got, plain, count) > 1e-5);
    assert_ok(backend_float_emulate(backend, NULL, NULL, false));
    compute(float_, real, backend, got);
    assert_memory_equal(got, plain, count * sizeof *got);

    assert_int_equal(backend_float_emulate(backend, int8, "model.layers.4.self_attn.k_proj.weight", false), STATUS_NOT_FOUND);   /* a consumer */
    assert_int_equal(backend_float_emulate(backend, int8, "model.layers.99.self_attn.q_proj.weight", false), STATUS_NOT_FOUND);
    assert_int_equal(backend_float_emulate(backend, real, NULL, false), STATUS_INVALID);
    struct random_model small = random_model_small();
    struct model *stranger = model_make(&small);
    assert_int_equal(backend_float_emulate(backend, stranger, NULL, false), STATUS_INVALID);
    model_destroy(&stranger);
    float_->destroy(&backend);
    free(plain), free(got), free(all);
    model_destroy(&int8), model_destroy(&real);
}

static void prefixes_and_missing_pages_do_not_show(void **state)
{
    (void)state;
    enum { CUT = 95 };
    struct random_model shape = random_model_gemma4();
    shape.format = RANDOM_FORMAT_FLOAT;
    struct model *model = model_make(&shape);
    size_t vocab = model->config.vocab_size;
    uint32_t tokens[COUNT];
    tokens_fill(model, 0, tokens, COUNT);
    float *want = logits_new(model, COUNT), *got = logits_new(model, COUNT);
    compute_alone(float_, model, want);
    struct backend *backend = backend_make(float_, model, NULL, CONFIG(1));
    struct session first, branch;
    session_open(&first, float_, model, backend, tokens);
    session_open(&branch, float_, model, backend, tokens);
    forward(&first, 0, COUNT, got, 1);
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        float_->page_copy_prefix(backend, group, branch.pages[group][1], first.pages[group][1], CUT - 64);
    void *global = branch.pages[MODEL_LAYER_GLOBAL][0], *local = branch.pages[MODEL_LAYER_LOCAL][0];
    branch.pages[MODEL_LAYER_GLOBAL][0] = first.pages[MODEL_LAYER_GLOBAL][0];
    branch.pages[MODEL_LAYER_LOCAL][0] = NULL;                       /* window 32: the first row sees from 64 on */
    forward_all(&branch, CUT, COUNT, 9, got);
    assert_memory_equal(got, want + CUT * vocab, (COUNT - CUT) * vocab * sizeof *got);
    const float *tail = (const float *)branch.pages[MODEL_LAYER_LOCAL][1];
    assert_true(tail[0] != 0);
    float_->page_copy_prefix(backend, MODEL_LAYER_LOCAL, branch.pages[MODEL_LAYER_LOCAL][1], first.pages[MODEL_LAYER_LOCAL][1], 1);
    for (unsigned i = 32; i < 64 * 32; i++)
        assert_true(tail[i] == 0);
    branch.pages[MODEL_LAYER_GLOBAL][0] = global;
    branch.pages[MODEL_LAYER_LOCAL][0] = local;
    session_close(&first), session_close(&branch);
    float_->destroy(&backend);
    free(want), free(got);
    model_destroy(&model);
}

static void infinities_are_an_error_of_their_run(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    struct model *model = model_make(&shape);
    uint32_t good[3] = {5, 6, 7}, bad[3] = {5, 9, 7}, failed = 99;
    float *scale = malloc(model->config.vocab_size * sizeof *scale), *logits = logits_new(model, 1);
    memcpy(scale, model->embedding.scale, model->config.vocab_size * sizeof *scale);
    const float *before = model->embedding.scale;
    scale[9] = 1e38f;
    model->embedding.scale = scale;
    struct backend *backend = backend_make(float_, model, NULL, CONFIG(2));
    struct session one, two;
    session_open(&one, float_, model, backend, good);
    session_open(&two, float_, model, backend, bad);
    for (uint32_t rows = 0; rows < 2; rows++) {
        const struct backend_run runs[] = {session_run(&one, 0, 3, NULL, 0), session_run(&two, 0, 3, logits, rows)};
        const struct backend_batch batch = {.runs = runs, .run_count = 2};
        assert_int_equal(float_->forward(backend, &batch, &failed), STATUS_CORRUPT);
        assert_int_equal(failed, 1);
    }
    model->embedding.scale = before;
    session_close(&one), session_close(&two);
    float_->destroy(&backend);
    free(scale), free(logits);
    model_destroy(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_chunks_and_threads_agree),
        cmocka_unit_test(formats_agree),
        cmocka_unit_test(int8_is_close_to_float),
        cmocka_unit_test(single_matrices_are_emulated),
        cmocka_unit_test(prefixes_and_missing_pages_do_not_show),
        cmocka_unit_test(infinities_are_an_error_of_their_run),
    };
    return unit_run(tests, NULL, NULL);
}
