/* The equality matrix: on every family and scheme, with early exit and without, four sequences on both backends take the same drawn walk of batches
 * and chunks of all sizes, decode steps that become graphs, prefixes copied from one another, and pages that went to the host and back. Logits
 * are compared at every step, pages at the end. Under emulation a part of it, by ROOST_TEST_SEED; on a GPU (tests/gpu) all. */
#include "both.h"

enum { TALKS = 4, LOGIT_ROWS = 4 };

struct walk {
    struct model *model;
    struct backend *cpu, *cuda;
    struct both talks[TALKS];
    uint32_t lengths[TALKS];           /* tokens computed */
    uint64_t random;
    unsigned copies, trips, batches;
};

/* A batch of some talks: one token each (a decode step), or chunks of any size, with some rows' logits. */
static void compute(struct walk *walk)
{
    const bool decode = rng_below(&walk->random, 5) < 3;
    const uint32_t some = decode && rng_below(&walk->random, 2) ? (1u << TALKS) - 1 : 1 + rng_below(&walk->random, (1u << TALKS) - 1);
    const size_t vocab = walk->model->config.vocab_size;
    struct backend_run on_cpu[TALKS], on_cuda[TALKS];
    uint32_t count = 0, logits = 0;
    float *want = logits_new(walk->model, TALKS * LOGIT_ROWS), *got = logits_new(walk->model, TALKS * LOGIT_ROWS);
    for (uint32_t i = 0; i < TALKS; i++) {
        struct both *talk = &walk->talks[i];
        const uint32_t start = walk->lengths[i], room = ROWS_MAX - start;
        if (!(some >> i & 1) || room == 0)
            continue;
        uint32_t rows = decode ? 1 : 1 + rng_below(&walk->random, rng_below(&walk->random, 2) ? 70 : 8);
        rows = rows < room ? rows : room;
        rows = rows < ROWS_MAX / TALKS ? rows : ROWS_MAX / TALKS;
        uint32_t wanted = decode ? 1 : rng_below(&walk->random, LOGIT_ROWS + 1);
        wanted = wanted < rows ? wanted : rows;
        on_cpu[count] = session_run(&talk->on_cpu, start, rows, wanted ? want + logits * vocab : NULL, wanted);
        on_cuda[count++] = session_run(&talk->on_cuda, start, rows, wanted ? got + logits * vocab : NULL, wanted);
        logits += wanted;
        walk->lengths[i] += rows;
    }
    if (count > 0) {
        forward_batch(&walk->talks[0].on_cpu, on_cpu, count);
        forward_batch(&walk->talks[0].on_cuda, on_cuda, count);
        check_logits(&walk->talks[0], want, got, logits, decode ? "a decode step" : "a batch of chunks");
        walk->batches++;
    }
    free(want), free(got);
}

/* The first pages of one become another's: whole ones copied, the last one in part. */
static void copy_prefix(struct session *to, const struct session *from, const struct backend_ops *ops, uint32_t tokens)
{
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const size_t bytes = ops->page_bytes(to->backend, group);
        for (uint32_t page = 0; bytes > 0 && page < tokens / 64; page++)
            ops->copy_wait(to->backend, ops->copy_start(to->backend, to->pages[group][page], from->pages[group][page], bytes));
        if (bytes > 0 && tokens % 64 > 0)
            ops->page_copy_prefix(to->backend, group, to->pages[group][tokens / 64], from->pages[group][tokens / 64], tokens % 64);
    }
}

static void branch(struct walk *walk)
{
    const uint32_t from = rng_below(&walk->random, TALKS), to = (from + 1 + rng_below(&walk->random, TALKS - 1)) % TALKS;
    if (walk->lengths[from] < 2)
        return;
    const uint32_t tokens = 1 + rng_below(&walk->random, walk->lengths[from]);
    copy_prefix(&walk->talks[to].on_cpu, &walk->talks[from].on_cpu, cpu_, tokens);
    copy_prefix(&walk->talks[to].on_cuda, &walk->talks[from].on_cuda, cuda_, tokens);
    memcpy(walk->talks[to].tokens, walk->talks[from].tokens, tokens * sizeof(uint32_t));
    for (uint32_t i = tokens; i < ROWS_MAX; i++)
        walk->talks[to].tokens[i] = rng_below(&walk->random, walk->model->config.vocab_size);
    walk->lengths[to] = tokens;
    walk->copies++;
}

/* Every page of a talk to the host, its place spoilt, and back. */
static void round_trip(struct walk *walk)
{
    const uint32_t i = rng_below(&walk->random, TALKS);
    struct session *session = &walk->talks[i].on_cuda;
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const size_t bytes = cuda_->page_bytes(walk->cuda, group);
        unsigned char *spoilt = bytes > 0 ? malloc(bytes) : NULL;
        for (uint32_t page = 0; spoilt && page < (walk->lengths[i] + 63) / 64; page++) {
            void *image = session_page(session, group, page);
            memset(spoilt, 0xff, bytes);
            session_page_put(session, group, page, spoilt);
            session_page_put(session, group, page, image);
            free(image);
        }
        free(spoilt);
    }
    walk->trips++;
}

static void walk_one(const struct random_model *shape, enum random_recipe recipe, bool full_depth, uint64_t seed, unsigned steps)
{
    struct walk *walk = calloc(1, sizeof *walk);
    assert_non_null(walk);
    walk->random = seed;
    walk->model = model_make_with(shape, recipe);
    walk->cpu = backend_make(cpu_, walk->model, NULL, CONFIG(full_depth)), walk->cuda = backend_make(cuda_, walk->model, NULL, CONFIG(full_depth));
    for (unsigned i = 0; i < TALKS; i++)
        both_open(&walk->talks[i], walk->model, walk->cpu, walk->cuda, seed + i);
    for (unsigned step = 0; step < steps; step++)
        switch (rng_below(&walk->random, 6)) {
        case 0: branch(walk); break;
        case 1: round_trip(walk); break;
        default: compute(walk);
        }
    for (unsigned i = 0; i < TALKS; i++) {
        check_pages(&walk->talks[i], walk->lengths[i], "the end of a walk");
        both_close(&walk->talks[i]);
    }
    struct backend_cuda_counts counts;
    backend_cuda_counts(walk->cuda, &counts);
    printf("%s, %s, %s: %u batches, %llu by graphs, %u prefixes, %u round trips\n", shape->name, random_recipe_name(recipe),
           full_depth ? "full depth" : "early exit", walk->batches, (unsigned long long)counts.graph_launches, walk->copies, walk->trips);
    cpu_->destroy(&walk->cpu), cuda_->destroy(&walk->cuda);
    model_destroy(&walk->model);
    free(walk);
}

static void walks_agree(void **state)
{
    (void)state;
    const bool emulated = emulation_present();
    const uint64_t seed = test_seed(31);
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++)
        for (unsigned recipe = 0; recipe < RANDOM_RECIPES; recipe++)
            for (unsigned full = 0; full < 2; full++)        /* under emulation one scheme a family */
                if (!emulated || ((s + recipe + seed) % RANDOM_RECIPES == 0 && full == (s + seed) % 2))
                    walk_one(shape, (enum random_recipe)recipe, full, seed + 100 * s + 10 * recipe + full, emulated ? 10 : 60);
}

/* The same decode batch again and again: the first by launches, all later ones by a graph. */
static void graphs_agree(void **state)
{
    (void)state;
    const struct random_model shape = random_model_gemma4();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_MIXED);
    struct backend *cpu = backend_make(cpu_, model, NULL, CONFIG(false)), *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
    struct both *talk = calloc(1, sizeof *talk);
    float *want = logits_new(model, 1), *got = logits_new(model, 1);
    assert_non_null(talk);
    both_open(talk, model, cpu, cuda, 5);
    const uint32_t steps = emulation_present() ? 5 : 60;
    for (uint32_t step = 0; step < steps; step++) {
        forward(&talk->on_cpu, step, 1, want, 1);
        forward(&talk->on_cuda, step, 1, got, 1);
        check_logits(talk, want, got, 1, "a decode step");
    }
    struct backend_cuda_counts counts;
    backend_cuda_counts(cuda, &counts);
    assert_int_equal(counts.graph_launches, steps - 1);
    check_pages(talk, steps, "decode steps");
    both_close(talk);
    free(talk), free(want), free(got);
    cpu_->destroy(&cpu), cuda_->destroy(&cuda);
    model_destroy(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(walks_agree), cmocka_unit_test(graphs_agree)};
    return unit_run(tests, NULL, NULL);
}
