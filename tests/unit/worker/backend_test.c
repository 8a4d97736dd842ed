/* The CPU backend: one set of bits whatever the batch, the chunks, the pages, the threads and the instruction set; those of a forward pass
 * written one number after the other; equal to the committed digests. */
#include <fenv.h>
#include <math.h>
#include "backend_fixture.h"
#include "common/hash.h"
#include "kernels/kernels.h"
#include "reference_forward.h"
#include "unit.h"
#include "worker/engine/backend/backend_cpu.h"

static const struct backend_ops *const ops_ = &backend_cpu_ops;

#define ROWS_MAX 1024

/* The sanitizers make the kernels some twenty times slower: there, one way in so many, coprime with the lists below, and fewer of the long
 * cases of each kind. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#define STRIDE 7u
#else
#define SANITIZED 0
#define STRIDE 1u
#endif
#define CONFIG(threads_, full) ((struct backend_config){.rows_max = ROWS_MAX, .threads = (threads_), .full_depth = (full)})

static const char *fastest(void)
{
    const char *isa = NULL;
    for (unsigned i = 0; kernels_at(i); i++)
        isa = kernels_at(i)->isa;
    return isa;
}

static void levels_give_the_bits_of_the_reference(void **state)
{
    (void)state;
    enum { COUNT = SANITIZED ? 80 : 140 };
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++)
        for (unsigned recipe = 0; recipe < RANDOM_RECIPES; recipe++) {
            if (s < 4 && recipe != RANDOM_RECIPE_MIXED && recipe != RANDOM_RECIPE_DYNAMIC)
                continue;                       /* every recipe alone for the Gemma shapes, */
            if (SANITIZED && s < 5 && recipe != RANDOM_RECIPE_MIXED)
                continue;                       /* with sanitizers for the last */
            struct model *model = model_make_with(shape, (enum random_recipe)recipe);
            size_t bytes = COUNT * (size_t)model->config.vocab_size * sizeof(float);
            uint32_t tokens[COUNT];
            tokens_fill(model, 0, tokens, COUNT);
            float *want = logits_new(model, COUNT), *got = logits_new(model, COUNT);
            reference_forward(model, tokens, COUNT, want);
            const struct kernels *kernels;
            for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
                if ((s + recipe + i) % STRIDE % 3)
                    continue;
                struct backend *backend = backend_make(ops_, model, kernels->isa, CONFIG(1, true));
                struct session session;
                session_open(&session, ops_, model, backend, tokens);
                forward_all(&session, 0, COUNT, COUNT, got);
                if (memcmp(want, got, bytes) != 0)
                    fail_msg("%s, %s on %s: not the reference's logits", shape->name, random_recipe_name((enum random_recipe)recipe),
                             kernels->isa);
                session_close(&session);
                ops_->destroy(&backend);
            }
            free(want), free(got);
            model_destroy(&model);
        }
}

/* ---- batches, chunks, threads, depth ---- */

enum { STRANGERS = 6, ALONE_TOKENS = 150, STRANGER_TOKENS = 90 };

/* The subject in chunks, each beside a chunk of every stranger, who stand at other places of their texts. */
static void forward_among(struct session *subject, struct session *strangers, uint32_t stranger_count, uint32_t chunk, float *logits)
{
    size_t vocab = subject->model->config.vocab_size;
    float *theirs = logits_new(subject->model, STRANGER_TOKENS);
    uint32_t at[STRANGERS];
    for (uint32_t i = 0; i < stranger_count; i++)
        at[i] = 0;
    for (uint32_t position = 0; position < ALONE_TOKENS;) {
        struct backend_run runs[STRANGERS + 1];
        uint32_t count = 0, mine = ALONE_TOKENS - position < chunk ? ALONE_TOKENS - position : chunk, place = position % (stranger_count + 1);
        for (uint32_t i = 0; i <= stranger_count; i++) {
            if (i == place)
                runs[count++] = session_run(subject, position, mine, logits + position * vocab, mine);
            if (i == stranger_count || at[i] == STRANGER_TOKENS)
                continue;
            uint32_t left = STRANGER_TOKENS - at[i], step = 1 + (7 * i + position) % 29;
            step = step < left ? step : left;
            runs[count++] = session_run(&strangers[i], at[i], step, theirs, i % 3 < step ? i % 3 : step);
            at[i] += step;
        }
        forward_batch(subject, runs, count);
        position += mine;
    }
    free(theirs);
}

struct way {                    /* how to compute the same */
    uint32_t chunk, threads, batch;
    bool full_depth;
};

static void check_way(const struct model *model, const char *isa, const struct way *way, const uint32_t *tokens, const float *want)
{
    struct backend *backend = backend_make(ops_, model, isa, CONFIG(way->threads, way->full_depth));
    struct session subject, strangers[STRANGERS];
    uint32_t other[STRANGERS][STRANGER_TOKENS];
    float *got = logits_new(model, ALONE_TOKENS);
    session_open(&subject, ops_, model, backend, tokens);
    for (uint32_t i = 0; i + 1 < way->batch; i++) {
        tokens_fill(model, 1 + i, other[i], STRANGER_TOKENS);
        session_open(&strangers[i], ops_, model, backend, other[i]);
    }
    forward_among(&subject, strangers, way->batch - 1, way->chunk, got);
    if (memcmp(want, got, ALONE_TOKENS * (size_t)model->config.vocab_size * sizeof *got) != 0)
        fail_msg("%s on %s: chunks of %u, %u threads, batch of %u, full depth %d: other logits", model->config.name, isa, way->chunk,
                 way->threads, way->batch, way->full_depth);
    for (uint32_t i = 0; i + 1 < way->batch; i++)
        session_close(&strangers[i]);
    session_close(&subject);
    free(got);
    ops_->destroy(&backend);
}

/* On every level each chunk size, with threads, batch and depth turning beside it. */
static void batches_chunks_threads_and_depth_agree(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {1, 17, 64, 100, ALONE_TOKENS}, batches[] = {1, 2, 7};
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++) {
        struct model *model = model_make_with(shape, RANDOM_RECIPE_MIXED);
        uint32_t tokens[ALONE_TOKENS];
        tokens_fill(model, 0, tokens, ALONE_TOKENS);
        float *want = logits_new(model, ALONE_TOKENS);
        struct backend *backend = backend_make(ops_, model, kernels_at(0)->isa, CONFIG(1, true));
        struct session session;
        session_open(&session, ops_, model, backend, tokens);
        forward_all(&session, 0, ALONE_TOKENS, ALONE_TOKENS, want);
        session_close(&session);
        ops_->destroy(&backend);
        unsigned turn = s;
        for (unsigned i = 0; kernels_at(i); i++)
            for (unsigned c = 0; c < sizeof chunks / sizeof *chunks; c++, turn++) {
                if (turn % STRIDE)
                    continue;
                struct way way = {.chunk = chunks[c], .threads = 1 + turn % 3, .batch = batches[(turn / 3 + c) % 3], .full_depth = turn % 2};
                check_way(model, kernels_at(i)->isa, &way, tokens, want);
            }
        free(want);
        model_destroy(&model);
    }
}

/* The full product for one model. */
static void every_way_agrees_for_one_model(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {1, 17, 64, ALONE_TOKENS}, batches[] = {1, 2, 7};
    struct random_model shape = random_model_gemma4();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_MIXED);
    uint32_t tokens[ALONE_TOKENS];
    tokens_fill(model, 0, tokens, ALONE_TOKENS);
    float *want = logits_new(model, ALONE_TOKENS);
    reference_forward(model, tokens, ALONE_TOKENS, want);
    unsigned turn = 0;
    for (unsigned c = 0; c < 4; c++)
        for (unsigned b = 0; b < 3; b++)
            for (uint32_t threads = 1; threads <= 3; threads++)
                for (int full = 0; full < 2; full++)
                    if (turn++ % STRIDE == 0)
                        check_way(model, fastest(), &(struct way){chunks[c], threads, batches[b], full}, tokens, want);
    free(want);
    model_destroy(&model);
}

/* Rows whose logits are not asked for stop early: the wanted ones and all K and V stay the same, in batches too. */
static void fewer_logits_are_the_same_logits(void **state)
{
    (void)state;
    enum { COUNT = 150 };
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++) {
        struct model *model = model_make_with(shape, RANDOM_RECIPE_MIXED);
        size_t vocab = model->config.vocab_size;
        uint32_t tokens[COUNT], other[COUNT];
        tokens_fill(model, 0, tokens, COUNT);
        tokens_fill(model, 1, other, COUNT);
        float *want = logits_new(model, COUNT), *want_other = logits_new(model, COUNT), *got = logits_new(model, 8);
        struct backend *whole = backend_make(ops_, model, fastest(), CONFIG(2, true)), *early = backend_make(ops_, model, fastest(), CONFIG(2, false));
        struct session full, full_other, part, part_other;
        session_open(&full, ops_, model, whole, tokens);
        session_open(&full_other, ops_, model, whole, other);
        session_open(&part, ops_, model, early, tokens);
        session_open(&part_other, ops_, model, early, other);
        forward(&full, 0, COUNT, want, COUNT);
        forward(&full_other, 0, COUNT, want_other, COUNT);

        struct backend_run runs[2] = {session_run(&part, 0, 70, NULL, 0), session_run(&part_other, 0, 33, got, 2)};
        forward_batch(&part, runs, 2);
        assert_memory_equal(got, want_other + 31 * vocab, 2 * vocab * sizeof *got);
        runs[0] = session_run(&part, 70, 60, got, 3);
        runs[1] = session_run(&part_other, 33, 66, got + 3 * vocab, 1);
        forward_batch(&part, runs, 2);
        assert_memory_equal(got, want + (70 + 57) * vocab, 3 * vocab * sizeof *got);
        assert_memory_equal(got + 3 * vocab, want_other + 98 * vocab, vocab * sizeof *got);
        runs[0] = session_run(&part_other, 99, 51, NULL, 0);
        runs[1] = session_run(&part, 130, 20, got, 1);
        forward_batch(&part, runs, 2);
        assert_memory_equal(got, want + (COUNT - 1) * vocab, vocab * sizeof *got);
        for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
            for (unsigned p = 0; p < 2 && ops_->page_bytes(whole, group); p++) {
                assert_memory_equal(full.pages[group][p], part.pages[group][p], ops_->page_bytes(whole, group));
                assert_memory_equal(full_other.pages[group][p], part_other.pages[group][p], ops_->page_bytes(whole, group));
            }
        session_close(&full), session_close(&full_other), session_close(&part), session_close(&part_other);
        ops_->destroy(&whole);
        ops_->destroy(&early);
        free(want), free(want_other), free(got);
        model_destroy(&model);
    }
}

/* Past two units of 1,024 tokens, where partial results fold twice; prefill in other chunks, then decode. */
static void decode_equals_prefill_over_units(void **state)
{
    (void)state;
    static struct random_model (*const shapes[])(void) = {random_model_mha, random_model_sinks, random_model_gemma4};
    enum { COUNT = 2100, FROM = 2040 };
    static uint32_t tokens[COUNT];
    for (unsigned s = SANITIZED ? 2 : 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct random_model shape = shapes[s]();
        struct model *model = model_make_with(&shape, RANDOM_RECIPE_MIXED);
        size_t bytes = (COUNT - FROM) * (size_t)model->config.vocab_size * sizeof(float);
        tokens_fill(model, 0, tokens, COUNT);
        float *want = logits_new(model, COUNT - FROM), *got = logits_new(model, COUNT - FROM);
        struct backend *backend = backend_make(ops_, model, fastest(), CONFIG(2, false));
        struct session first, second;
        session_open(&first, ops_, model, backend, tokens);
        session_open(&second, ops_, model, backend, tokens);
        for (uint32_t at = 0; at < FROM; at += 680)
            forward(&first, at, 680, NULL, 0);
        forward(&first, FROM, COUNT - FROM, want, COUNT - FROM);
        for (uint32_t at = 0; at < FROM; at += 255)
            forward(&second, at, 255, NULL, 0);
        forward_all(&second, FROM, COUNT, 1, got);
        if (memcmp(got, want, bytes) != 0)
            fail_msg("%s: decode differs from prefill", shape.name);
        session_close(&first);
        session_close(&second);
        ops_->destroy(&backend);
        free(want), free(got);
        model_destroy(&model);
    }
}

/* ---- pages ---- */

/* Pages of local layers that lie before every row's window may be missing; those with sinks may not. */
static void pages_out_of_the_window_may_be_missing(void **state)
{
    (void)state;
    static struct random_model (*const shapes[])(void) = {random_model_small, random_model_sinks, random_model_gemma3, random_model_gemma4};
    enum { COUNT = 330, FROM = 300 };
    for (unsigned s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct random_model shape = shapes[s]();
        struct model *model = model_make_with(&shape, RANDOM_RECIPE_ROTATED);
        uint32_t tokens[COUNT];
        tokens_fill(model, 0, tokens, COUNT);
        float *want = logits_new(model, COUNT - FROM), *got = logits_new(model, COUNT - FROM);
        struct backend *backend = backend_make(ops_, model, fastest(), CONFIG(1, false));
        struct session session;
        session_open(&session, ops_, model, backend, tokens);
        forward(&session, 0, FROM, NULL, 0);
        forward(&session, FROM, COUNT - FROM, want, COUNT - FROM);
        uint32_t visible = (FROM - shape.window + 1) / 64, sink_pages = (shape.sinks + 63) / 64;
        void *kept[PAGES_MAX];
        memcpy(kept, session.pages[MODEL_LAYER_LOCAL], sizeof kept);
        for (uint32_t i = sink_pages; i < visible; i++)
            session.pages[MODEL_LAYER_LOCAL][i] = NULL;
        forward(&session, FROM, COUNT - FROM, got, COUNT - FROM);
        assert_memory_equal(got, want, (COUNT - FROM) * (size_t)model->config.vocab_size * sizeof *got);
        memcpy(session.pages[MODEL_LAYER_LOCAL], kept, sizeof kept);
        session_close(&session);
        ops_->destroy(&backend);
        free(want), free(got);
        model_destroy(&model);
    }
}

static void assert_prefix_copies(struct backend *backend, struct session *first, struct session *fresh, uint32_t cut)
{
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        size_t bytes = ops_->page_bytes(backend, group);
        if (bytes == 0)
            continue;
        /* What lies behind the prefix does not show in a copy. */
        char *one = malloc(bytes), *two = malloc(bytes);
        ops_->page_copy_prefix(backend, group, one, first->pages[group][cut / 64], cut % 64);
        ops_->page_copy_prefix(backend, group, two, fresh->pages[group][cut / 64], cut % 64);
        assert_memory_equal(one, two, bytes);
        ops_->page_copy_prefix(backend, group, one, first->pages[group][1], 64);
        assert_memory_equal(one, first->pages[group][1], bytes);
        free(one), free(two);
    }
}

/* A branch: whole pages shared, the page with the branch point copied up to it. */
static void copied_prefixes_continue_alike(void **state)
{
    (void)state;
    enum { COUNT = 200, CUT = 150 };
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++) {
        struct model *model = model_make_with(shape, RANDOM_RECIPE_MIXED);
        size_t vocab = model->config.vocab_size;
        uint32_t tokens[COUNT], other[COUNT];
        tokens_fill(model, 0, tokens, COUNT);
        memcpy(other, tokens, sizeof other);
        for (uint32_t i = CUT; i < COUNT; i++)
            other[i] = (tokens[i] + 7) % model->config.vocab_size;
        float *want = logits_new(model, COUNT), *got = logits_new(model, COUNT);
        struct backend *backend = backend_make(ops_, model, fastest(), CONFIG(1, false));
        struct session first, branch, fresh;
        session_open(&first, ops_, model, backend, tokens);
        session_open(&branch, ops_, model, backend, other);
        session_open(&fresh, ops_, model, backend, other);
        forward(&first, 0, COUNT, got, 1);
        forward_all(&fresh, 0, COUNT, 64, want);
        void *own[BACKEND_GROUPS_MAX][PAGES_MAX];
        memcpy(own, branch.pages, sizeof own);
        char *before[BACKEND_GROUPS_MAX][3];
        for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
            size_t bytes = ops_->page_bytes(backend, group);
            for (unsigned p = 0; p < 3 && bytes; p++) {
                before[group][p] = malloc(bytes);
                memcpy(before[group][p], first.pages[group][p], bytes);
                if (p < 2)
                    branch.pages[group][p] = first.pages[group][p];
            }
            if (bytes)
                ops_->page_copy_prefix(backend, group, branch.pages[group][CUT / 64], first.pages[group][CUT / 64], CUT % 64);
        }
        forward_all(&branch, CUT, COUNT, 13, got);
        if (memcmp(got, want + CUT * vocab, (COUNT - CUT) * vocab * sizeof *got) != 0)
            fail_msg("%s: a branch has other logits", shape->name);
        for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
            for (unsigned p = 0; p < 3 && ops_->page_bytes(backend, group); p++) {
                assert_memory_equal(before[group][p], first.pages[group][p], ops_->page_bytes(backend, group));   /* never rewritten */
                free(before[group][p]);
            }
        assert_prefix_copies(backend, &first, &fresh, CUT);
        memcpy(branch.pages, own, sizeof own);
        session_close(&first), session_close(&branch), session_close(&fresh);
        ops_->destroy(&backend);
        free(want), free(got);
        model_destroy(&model);
    }
}

/* ---- errors and surroundings ---- */

static void infinities_are_an_error_of_their_run(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_MIXED);
    uint32_t good[4] = {5, 6, 7, 8}, bad[4] = {5, 9, 7, 8};
    float *huge = calloc(1024, sizeof *huge), *logits = logits_new(model, 4);
    for (size_t i = 0; i < 1024; i++)
        huge[i] = 3e38f;
    for (uint32_t threads = 1; threads <= 2; threads++) {
        struct backend *backend = backend_make(ops_, model, fastest(), CONFIG(threads, false));
        struct session one, two;
        session_open(&one, ops_, model, backend, good);
        session_open(&two, ops_, model, backend, bad);
        /* In a weight: every run is bad, the first is named. */
        const float **scales[] = {&model->layers[1].q_proj.scale, &model->layers[2].k_proj.scale, &model->layers[3].v_proj.scale,
                                  &model->layers[4].o_proj.scale, &model->layers[0].gate_proj.scale, &model->layers[5].up_proj.scale,
                                  &model->layers[5].down_proj.scale, &model->layers[6].per_layer_gate.scale, &model->layers[6].per_layer_proj.scale,
                                  &model->per_layer_model_proj.scale};
        for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
            const float *before = *scales[i];
            const struct backend_run runs[] = {session_run(&one, 0, 4, logits, 1), session_run(&two, 0, 4, logits, 1)};
            const struct backend_batch batch = {.runs = runs, .run_count = 2};
            uint32_t failed = 99;
            *scales[i] = huge;
            if (ops_->forward(backend, &batch, &failed) != STATUS_CORRUPT || failed != 0)
                fail_msg("scale %zu: %s, run %u", i, status_detail(), failed);
            assert_non_null(strstr(status_detail(), "NaN or infinity"));
            *scales[i] = before;
            failed = 99;
            assert_int_equal(ops_->forward(backend, &batch, &failed), STATUS_OK);     /* and nothing stays behind */
            assert_int_equal(failed, 99);
        }
        /* In what one token looks up: only its run, wherever it stands, and also when no logits are wanted. */
        float *embedding = malloc(model->config.vocab_size * sizeof *embedding);
        memcpy(embedding, model->embedding.scale, model->config.vocab_size * sizeof *embedding);
        const float *before = model->embedding.scale;
        embedding[9] = 1e38f;
        model->embedding.scale = embedding;
        for (uint32_t place = 0; place < 3; place++)
            for (uint32_t rows = 0; rows < 2; rows++) {
                uint32_t third[2] = {1, 2}, failed = 99;
                struct session three;
                session_open(&three, ops_, model, backend, third);
                struct backend_run runs[3] = {session_run(&one, 0, 4, NULL, 0), session_run(&three, 0, 2, NULL, 0), session_run(&one, 0, 4, NULL, 0)};
                runs[2].pages[0] = two.pages[0];
                runs[2].pages[1] = two.pages[1];
                runs[place].tokens = bad;
                runs[place].logits = logits;
                runs[place].logit_rows = rows;
                const struct backend_batch batch = {.runs = runs, .run_count = 3};
                assert_int_equal(ops_->forward(backend, &batch, &failed), STATUS_CORRUPT);
                assert_int_equal(failed, place);
                session_close(&three);
            }
        model->embedding.scale = before;
        free(embedding);
        session_close(&one), session_close(&two);
        ops_->destroy(&backend);
    }
    free(huge), free(logits);
    model_destroy(&model);
}

/* Infinite logits do not hide behind the soft cap. */
static void infinite_logits_are_an_error(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    struct model *model = model_make(&shape);
    uint32_t tokens[2] = {5, 6}, failed = 99;
    float *logits = logits_new(model, 1), *scale = malloc(model->config.vocab_size * sizeof *scale);
    memcpy(scale, model->embedding.scale, model->config.vocab_size * sizeof *scale);
    scale[77] = 3e38f;                                /* a token that is not looked up */
    const float *before = model->embedding.scale;
    model->embedding.scale = scale;
    struct backend *backend = backend_make(ops_, model, fastest(), CONFIG(1, false));
    struct session session;
    session_open(&session, ops_, model, backend, tokens);
    const struct backend_run run = session_run(&session, 0, 2, logits, 1);
    const struct backend_batch batch = {.runs = &run, .run_count = 1};
    assert_int_equal(ops_->forward(backend, &batch, &failed), STATUS_CORRUPT);
    assert_int_equal(failed, 0);
    model->embedding.scale = before;
    session_close(&session);
    ops_->destroy(&backend);
    free(logits), free(scale);
    model_destroy(&model);
}

static void wrong_configurations_are_refused(void **state)
{
    (void)state;
    struct random_model shape = random_model_small();
    struct model *model = model_make(&shape);
    struct backend *backend = NULL;
    assert_int_equal(ops_->create(model, &(struct backend_config){.rows_max = 0, .threads = 1}, &backend), STATUS_INVALID);
    assert_int_equal(ops_->create(model, &(struct backend_config){.rows_max = 1u << 20, .threads = 1}, &backend), STATUS_INVALID);
    assert_int_equal(ops_->create(model, &(struct backend_config){.rows_max = 8, .threads = 0}, &backend), STATUS_INVALID);
    assert_int_equal(ops_->create(model, &(struct backend_config){.rows_max = 8, .threads = 65}, &backend), STATUS_INVALID);
    assert_int_equal(setenv("ROOST_ISA", "mmx", 1), 0);
    assert_int_equal(ops_->create(model, &(struct backend_config){.rows_max = 8, .threads = 1}, &backend), STATUS_INVALID);
    unsetenv("ROOST_ISA");
    model_destroy(&model);
    shape.format = RANDOM_FORMAT_FLOAT;
    model = model_make(&shape);
    assert_int_equal(ops_->create(model, &(struct backend_config){.rows_max = 8, .threads = 1}, &backend), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_detail(), "roost-float"));
    model_destroy(&model);
    assert_null(backend);
}

static void wrong_batches_are_refused(void **state)
{
    (void)state;
    struct random_model shape = random_model_small();
    struct model *model = model_make(&shape);
    struct backend *backend = backend_make(ops_, model, "baseline", (struct backend_config){.rows_max = 16, .threads = 1});
    struct session session;
    uint32_t tokens[32] = {0};
    float *logits = logits_new(model, 16);
    session_open(&session, ops_, model, backend, tokens);
    const struct backend_run good = session_run(&session, 0, 2, logits, 1);
    struct backend_run runs[2] = {good, good};
    struct backend_batch batch = {.runs = runs, .run_count = 1};
#define REFUSED(status_, change) \
    do { \
        runs[0] = good; \
        change; \
        assert_int_equal(ops_->forward(backend, &batch, NULL), status_); \
    } while (0)
    REFUSED(STATUS_OK, (void)0);
    REFUSED(STATUS_INVALID, runs[0].count = 0);
    REFUSED(STATUS_INVALID, runs[0].count = 17);
    REFUSED(STATUS_INVALID, runs[0].logit_rows = 3);
    REFUSED(STATUS_INVALID, runs[0].logits = NULL);
    struct backend_sample sample = {.temperature = 1};
    REFUSED(STATUS_INVALID, runs[0].sample = &sample);           /* and logits */
    REFUSED(STATUS_INVALID, (runs[0].sample = &sample, runs[0].logits = NULL, runs[0].logit_rows = 2));
    REFUSED(STATUS_INVALID, (runs[0].sample = &sample, runs[0].logits = NULL, runs[0].logit_rows = 0));
    REFUSED(STATUS_LIMIT, runs[0].start = 2047);
    REFUSED(STATUS_LIMIT, runs[0].start = UINT32_MAX);
    REFUSED(STATUS_INVALID, runs[0].pages[MODEL_LAYER_LOCAL] = NULL);
    void *missing[] = {NULL};
    REFUSED(STATUS_INVALID, runs[0].pages[MODEL_LAYER_GLOBAL] = missing);
    REFUSED(STATUS_INVALID, batch.run_count = 0);
    batch.run_count = 2;
    REFUSED(STATUS_INVALID, runs[0].count = 15);
    batch.run_count = 1;
    tokens[1] = 512;
    REFUSED(STATUS_INVALID, (void)0);
#undef REFUSED
    session_close(&session);
    ops_->destroy(&backend);
    free(logits);
    model_destroy(&model);
}

/* Rounding and denormal flags of the calling thread do not reach the bits, and are given back. */
static void float_environment_does_not_matter(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma3();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_MIXED);
    uint32_t tokens[40];
    tokens_fill(model, 0, tokens, 40);
    float *want = logits_new(model, 1), *got = logits_new(model, 1);
    assert_int_equal(fesetround(FE_UPWARD), 0);
#if defined(__x86_64__)
    unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040u);       /* flush to zero, denormals are zero */
#endif
    /* Made here, so that the threads of the pool are born with it, too. */
    struct backend *backend = backend_make(ops_, model, fastest(), CONFIG(2, false));
    struct session session;
    session_open(&session, ops_, model, backend, tokens);
    forward(&session, 0, 40, got, 1);
#if defined(__x86_64__)
    assert_int_equal(__builtin_ia32_stmxcsr() & 0x8040u, 0x8040u);
    __builtin_ia32_ldmxcsr(before);
#endif
    assert_int_equal(fegetround(), FE_UPWARD);
    fesetround(FE_TONEAREST);
    session_close(&session);
    ops_->destroy(&backend);
    backend = backend_make(ops_, model, fastest(), CONFIG(1, false));
    session_open(&session, ops_, model, backend, tokens);
    forward(&session, 0, 40, want, 1);
    assert_memory_equal(got, want, model->config.vocab_size * sizeof *want);
    session_close(&session);
    ops_->destroy(&backend);
    free(want), free(got);
    model_destroy(&model);
}

/* ---- digests ---- */

static const struct golden {
    const char *name;
    struct random_model (*shape)(void);
    enum random_recipe recipe;
    uint32_t count;
} goldens_[] = {
    {"small-silu-mqa-300", random_model_small, RANDOM_RECIPE_DYNAMIC, 300},
    {"gelu-gqa-1100", random_model_gqa, RANDOM_RECIPE_DYNAMIC, 1100},
    {"mha-mixed-2100", random_model_mha, RANDOM_RECIPE_MIXED, 2100},
    {"sinks-wide-300", random_model_sinks, RANDOM_RECIPE_WIDE, 300},
    {"gemma3-rotated-1100", random_model_gemma3, RANDOM_RECIPE_ROTATED, 1100},
    {"gemma3-static-300", random_model_gemma3, RANDOM_RECIPE_STATIC, 300},
    {"gemma4-mixed-2100", random_model_gemma4, RANDOM_RECIPE_MIXED, 2100},
    {"gemma4-rotated-300", random_model_gemma4, RANDOM_RECIPE_ROTATED, 300},
};
#define GOLDENS (sizeof goldens_ / sizeof *goldens_)

static void golden_digest(const struct golden *golden, const char *isa, char hex[HASH_HEX_SIZE(HASH_DIGEST_BYTES)])
{
    struct random_model shape = golden->shape();
    struct model *model = model_make_with(&shape, golden->recipe);
    uint32_t *tokens = malloc(golden->count * sizeof *tokens);
    float *logits = logits_new(model, golden->count);
    tokens_fill(model, 0, tokens, golden->count);
    struct backend *backend = backend_make(ops_, model, isa, CONFIG(2, false));
    struct session session;
    session_open(&session, ops_, model, backend, tokens);
    forward_all(&session, 0, golden->count, 512, logits);
    uint8_t digest[HASH_DIGEST_BYTES];
    hash_digest(logits, golden->count * (size_t)model->config.vocab_size * sizeof *logits, NULL, 0, digest);
    hash_hex(digest, sizeof digest, hex);
    session_close(&session);
    ops_->destroy(&backend);
    free(tokens), free(logits);
    model_destroy(&model);
}

static void logits_have_the_committed_digest(void **state)
{
    (void)state;
    const char *write = getenv("ROOST_GOLDEN_WRITE");
    char path[600], want[GOLDENS][128] = {""}, name[128], value[128];
    source_path("tests/golden/random_model_logits.txt", path, sizeof path);
    FILE *file = fopen(path, write ? "w" : "r");
    if (!file)
        fail_msg("cannot open %s", path);
    while (!write && fscanf(file, "%127s %127s", name, value) == 2)
        for (unsigned s = 0; s < GOLDENS; s++)
            if (strcmp(name, goldens_[s].name) == 0)
                snprintf(want[s], sizeof want[s], "%s", value);
    const struct kernels *kernels;
    for (unsigned s = 0; s < GOLDENS; s++)
        for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
            if ((2 * s + i) % STRIDE % 4 || (SANITIZED && goldens_[s].count > 1100))
                continue;
            char got[HASH_HEX_SIZE(HASH_DIGEST_BYTES)];
            golden_digest(&goldens_[s], kernels->isa, got);
            if (write && i == 0)
                fprintf(file, "%s %s\n", goldens_[s].name, got);
            if (!write && strcmp(got, want[s]) != 0)
                fail_msg("%s on %s: digest %s, committed %s", goldens_[s].name, kernels->isa, got, want[s]);
        }
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_give_the_bits_of_the_reference),
        cmocka_unit_test(batches_chunks_threads_and_depth_agree),
        cmocka_unit_test(every_way_agrees_for_one_model),
        cmocka_unit_test(fewer_logits_are_the_same_logits),
        cmocka_unit_test(decode_equals_prefill_over_units),
        cmocka_unit_test(pages_out_of_the_window_may_be_missing),
        cmocka_unit_test(copied_prefixes_continue_alike),
        cmocka_unit_test(infinities_are_an_error_of_their_run),
        cmocka_unit_test(infinite_logits_are_an_error),
        cmocka_unit_test(wrong_configurations_are_refused),
        cmocka_unit_test(wrong_batches_are_refused),
        cmocka_unit_test(float_environment_does_not_matter),
        cmocka_unit_test(logits_have_the_committed_digest),
    };
    return unit_run(tests, NULL, NULL);
}
