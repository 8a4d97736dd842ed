/* The CUDA backend under emulation: the CPU backend's logits and pages, bit for bit, for every family and scheme, whatever the batch, the
 * chunks, the depth, the memory that pages have been in, and whether a step runs as a graph; and what it says when it cannot. */
#include <math.h>
#include "both.h"
#include "worker/engine/text/sampler.h"

/* The same run on both; logits of the last rows, and the pages, are compared. */
static void both_forward(struct both *both, uint32_t start, uint32_t count, uint32_t rows, const char *what)
{
    float *want = logits_new(both->model, rows + 1), *got = logits_new(both->model, rows + 1);
    forward(&both->on_cpu, start, count, rows ? want : NULL, rows);
    forward(&both->on_cuda, start, count, rows ? got : NULL, rows);
    check_logits(both, want, got, rows, what);
    check_pages(both, start + count, what);
    free(want), free(got);
}

/* ---- the same bits ---- */

static void families_and_schemes_agree(void **state)
{
    (void)state;
    const struct random_model *shape;
    for (unsigned s = 0; (shape = random_model_at(s)); s++)
        for (unsigned recipe = 0; recipe < RANDOM_RECIPES; recipe++) {
            if (recipe != RANDOM_RECIPE_MIXED && recipe != s % 4)
                continue;
            struct model *model = model_make_with(shape, (enum random_recipe)recipe);
            struct backend *cpu = backend_make(cpu_, model, NULL, CONFIG(true)), *cuda = backend_make(cuda_, model, NULL, CONFIG(true));
            struct both both;
            both_open(&both, model, cpu, cuda, s);
            both_forward(&both, 0, 75, 75, random_recipe_name((enum random_recipe)recipe));      /* more rows than the head takes at a time */
            both_forward(&both, 75, 1, 1, "decode");
            both_forward(&both, 76, 9, 3, "a second chunk");
            both_close(&both);
            cpu_->destroy(&cpu), cuda_->destroy(&cuda);
            model_destroy(&model);
        }
}

enum { TALKS = 3 };

/* One row of each of the sequences, `step` behind their lengths. */
static void both_decode(struct both *talks, unsigned count, const uint32_t *lengths, uint32_t step)
{
    const size_t vocab = talks[0].model->config.vocab_size;
    struct backend_run on_cpu[TALKS], on_cuda[TALKS];
    float *want = logits_new(talks[0].model, count), *got = logits_new(talks[0].model, count);
    for (unsigned i = 0; i < count; i++) {
        on_cpu[i] = session_run(&talks[i].on_cpu, lengths[i] + step, 1, want + i * vocab, 1);
        on_cuda[i] = session_run(&talks[i].on_cuda, lengths[i] + step, 1, got + i * vocab, 1);
    }
    forward_batch(&talks[0].on_cpu, on_cpu, count);
    forward_batch(&talks[0].on_cuda, on_cuda, count);
    check_logits(&talks[0], want, got, count, "a row of each");
    free(want), free(got);
}

/* Decode steps of several sequences of different lengths, many of one shape: the later ones are graphs. */
static void batches_and_graphs_agree(void **state)
{
    (void)state;
    static const uint32_t lengths[TALKS] = {5, 62, 90};
    const struct random_model shapes[] = {random_model_small(), random_model_gemma4()};
    for (unsigned s = 0; s < 2; s++) {
        struct model *model = model_make_with(&shapes[s], RANDOM_RECIPE_MIXED);
        struct backend *cpu = backend_make(cpu_, model, NULL, CONFIG(false)), *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
        struct both talks[TALKS];
        for (unsigned i = 0; i < TALKS; i++) {
            both_open(&talks[i], model, cpu, cuda, i);
            both_forward(&talks[i], 0, lengths[i], 0, "a prompt");
        }
        for (uint32_t step = 0; step < 6; step++) {
            if (step == 4) {                    /* tables that this needs are larger: graphs with the old ones are not used again */
                struct both other;
                both_open(&other, model, cpu, cuda, 50);
                both_forward(&other, 0, ROWS_MAX, 0, "a large prompt");
                both_close(&other);
            }
            both_decode(talks, TALKS, lengths, step);
        }
        struct backend_cuda_counts counts;
        backend_cuda_counts(cuda, &counts);
        assert_int_equal(counts.graphs_captured, 2);      /* of steps 1 and 5: one more page is the same shape */
        assert_int_equal(counts.graph_launches, 4);
        for (unsigned i = 0; i < TALKS; i++) {
            check_pages(&talks[i], lengths[i] + 6, "a batch");
            both_close(&talks[i]);
        }
        cpu_->destroy(&cpu), cuda_->destroy(&cuda);
        model_destroy(&model);
    }
}

/* More shapes of steps than graphs are kept: the one not used for longest goes, and is made anew. */
static void as_many_graphs_as_are_kept(void **state)
{
    (void)state;
    enum { KEPT = 64, SHAPES = KEPT + TALKS - 1 };            /* 1 .. KEPT rows of one sequence; one row of 2 .. TALKS */
    struct random_model shape = random_model_small();
    shape.layers = "LG";
    shape.kv_producer = NULL;
    struct model *model = model_make(&shape);
    struct backend *cpu = backend_make(cpu_, model, NULL, CONFIG(true)), *cuda = backend_make(cuda_, model, NULL, CONFIG(true));
    struct both talks[TALKS];
    struct emulation_counts counts;
    struct backend_cuda_counts graphs;
    for (unsigned i = 0; i < TALKS; i++)
        both_open(&talks[i], model, cpu, cuda, i);
    both_forward(&talks[0], 0, ROWS_MAX, 0, "the largest tables");
    for (uint32_t step = 0; step < 2 * KEPT; step++)          /* each twice: the second is a graph */
        both_forward(&talks[0], 0, 1 + step / 2, 1 + step / 2, "rows of one");
    for (uint32_t step = 0; step < 2 * (TALKS - 1); step++)
        both_decode(talks, 2 + step / 2, (const uint32_t[TALKS]){0}, 0);
    both_forward(&talks[0], 0, 1, 1, "the first shape again");
    both_forward(&talks[0], 0, KEPT, KEPT, "one that was kept");
    backend_cuda_counts(cuda, &graphs);
    assert_int_equal(graphs.graphs_captured, SHAPES);
    assert_int_equal(graphs.graph_launches, SHAPES + 1);
    emulation_get_counts(&counts);
    if (emulation_present())
        assert_int_equal(counts.graphs, KEPT - 1);            /* the first shape was seen once since it went */
    for (unsigned i = 0; i < TALKS; i++)
        both_close(&talks[i]);
    cpu_->destroy(&cpu), cuda_->destroy(&cuda);
    model_destroy(&model);
}

/* Prompt chunks beside decode; rows that leave early. */
static void mixed_batches_agree(void **state)
{
    (void)state;
    const struct random_model shape = random_model_gemma4();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_MIXED);
    const size_t vocab = model->config.vocab_size;
    struct backend *cpu = backend_make(cpu_, model, NULL, CONFIG(true));
    for (int full = 0; full < 2; full++) {
        struct backend *cuda = backend_make(cuda_, model, NULL, CONFIG(full));
        struct both talks[TALKS];
        float *want = logits_new(model, 8), *got = logits_new(model, 8);
        for (unsigned i = 0; i < TALKS; i++)
            both_open(&talks[i], model, cpu, cuda, 10 + i);
        both_forward(&talks[0], 0, 66, 0, "a prompt");
        const uint32_t starts[TALKS] = {66, 0, 0}, counts[TALKS] = {1, 40, 70}, rows[TALKS] = {1, 0, 2};
        struct backend_run on_cpu[TALKS], on_cuda[TALKS];
        for (unsigned i = 0; i < TALKS; i++) {
            on_cpu[i] = session_run(&talks[i].on_cpu, starts[i], counts[i], rows[i] ? want + i * vocab : NULL, rows[i]);
            on_cuda[i] = session_run(&talks[i].on_cuda, starts[i], counts[i], rows[i] ? got + i * vocab : NULL, rows[i]);
        }
        forward_batch(&talks[0].on_cpu, on_cpu, TALKS);
        forward_batch(&talks[0].on_cuda, on_cuda, TALKS);
        check_logits(&talks[0], want, got, 4, full ? "full depth" : "early exit");
        for (unsigned i = 0; i < TALKS; i++) {
            check_pages(&talks[i], starts[i] + counts[i], "a mixed batch");
            both_close(&talks[i]);
        }
        free(want), free(got);
        cuda_->destroy(&cuda);
    }
    cpu_->destroy(&cpu);
    model_destroy(&model);
}

/* A long context computed on the CPU goes on here: units and windows of attention, on the CPU's pages. */
static void pages_of_the_cpu_go_on(void **state)
{
    (void)state;
    enum { LONG = 2200 };
    const struct random_model shapes[] = {random_model_small(), random_model_sinks()};
    for (unsigned s = 0; s < 2; s++) {
        struct random_model shape = shapes[s];
        shape.context_tokens = 4096;
        struct model *model = model_make_with(&shape, RANDOM_RECIPE_DYNAMIC);
        struct backend *cpu = backend_make(cpu_, model, NULL, (struct backend_config){.rows_max = LONG, .threads = 2});
        struct backend *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
        struct both both;
        both_open(&both, model, cpu, cuda, 0);
        uint32_t *tokens = malloc((LONG + 10) * sizeof *tokens);
        tokens_fill(model, 3, tokens, LONG + 10);
        both.on_cpu.tokens = both.on_cuda.tokens = tokens;
        forward(&both.on_cpu, 0, LONG, NULL, 0);
        for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
            for (unsigned page = 0; model->config.producer_count[group] > 0 && page <= LONG / 64; page++)
                session_page_put(&both.on_cuda, group, page, both.on_cpu.pages[group][page]);
        both_forward(&both, LONG, 1, 1, "decode behind a long context");
        both_forward(&both, LONG + 1, 1, 1, "a graph behind a long context");
        both_forward(&both, LONG + 2, 7, 2, "a chunk behind a long context");      /* its partial results are more, and move */
        both_forward(&both, LONG + 9, 1, 1, "decode behind a chunk");
        both_close(&both);
        free(tokens);
        cpu_->destroy(&cpu), cuda_->destroy(&cuda);
        model_destroy(&model);
    }
}

static void prefixes_agree(void **state)
{
    (void)state;
    const struct random_model shape = random_model_gemma4();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_DYNAMIC);
    struct backend *cpu = backend_make(cpu_, model, NULL, CONFIG(false)), *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
    struct both both;
    both_open(&both, model, cpu, cuda, 0);
    both_forward(&both, 0, 64, 0, "a page");
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        for (uint32_t tokens = 1; tokens <= 64; tokens += 21) {
            cpu_->page_copy_prefix(cpu, group, both.on_cpu.pages[group][1], both.on_cpu.pages[group][0], tokens);
            cuda_->page_copy_prefix(cuda, group, both.on_cuda.pages[group][1], both.on_cuda.pages[group][0], tokens);
            check_pages(&both, 128, "a prefix");
        }
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {          /* a forward may follow at once */
        cpu_->page_copy_prefix(cpu, group, both.on_cpu.pages[group][1], both.on_cpu.pages[group][0], 36);
        cuda_->page_copy_prefix(cuda, group, both.on_cuda.pages[group][1], both.on_cuda.pages[group][0], 36);
    }
    both_forward(&both, 100, 3, 1, "behind a prefix");
    both_close(&both);
    cpu_->destroy(&cpu), cuda_->destroy(&cuda);
    model_destroy(&model);
}

enum { TIER_PAGES = 4 };                            /* of the 150 tokens below, and one more */

/* The session's pages in host memory, as they are now. */
static void *pages_on_host(struct session *session, unsigned group, uint32_t pages)
{
    const size_t bytes = cuda_->page_bytes(session->backend, group);
    void *host = NULL;
    assert_ok(cuda_->arena_create(session->backend, BACKEND_TIER_HOST, TIER_PAGES * bytes, &host));
    for (uint32_t page = 0; page < pages; page++)
        cuda_->copy_wait(session->backend, cuda_->copy_start(session->backend, (char *)host + page * bytes, session->pages[group][page], bytes));
    return host;
}

/* The first `tokens` tokens that are in the host's memory, into pages that hold something else. */
static uint64_t load(struct session *session, void *const *host, uint32_t tokens)
{
    struct backend_page_copy copies[BACKEND_GROUPS_MAX * TIER_PAGES];
    uint32_t count = 0;
    for (uint32_t page = 0; page < (tokens + 63) / 64; page++)      /* groups in turn: the backend sorts them */
        for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
            if (host[group])
                copies[count++] = (struct backend_page_copy){.group = group, .tokens = tokens - page * 64 < 64 ? tokens - page * 64 : 64,
                                                             .dst = session->pages[group][page],
                                                             .src = (char *)host[group] + page * cuda_->page_bytes(session->backend, group)};
    return cuda_->load_start(session->backend, copies, count);
}

/* What the loaded session must hold behind its step of [KEPT, end): the CPU's pages, but nothing of what stood behind `end`. */
static void check_loaded(struct both *talk, const struct session *loaded, uint32_t end)
{
    const uint32_t last = (end - 1) / 64;
    struct both cut = *talk;
    cut.on_cuda = *loaded;
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        if (talk->model->config.producer_count[group] > 0) {
            cut.on_cpu.pages[group][last] = talk->on_cpu.pages[group][last + 1];
            cpu_->page_copy_prefix(talk->cpu, group, cut.on_cpu.pages[group][last], talk->on_cpu.pages[group][last], end - last * 64);
        }
    check_pages(&cut, end, "behind a load");
}

enum { THERE = 150, KEPT = 140 };                   /* tokens; the last page comes as far as KEPT says */

static void step_behind_a_load(struct both *talks, unsigned round)
{
    const bool second_too = round / 2 % 2 == 1;     /* loaded, behind the first */
    const uint32_t rows = round % 3 == 0 ? 1 : 9, runs_of = 1 + (round % 4 > 0);
    const size_t vocab = talks[0].model->config.vocab_size;
    struct session loaded[2];
    void *host[2][BACKEND_GROUPS_MAX] = {0};
    float *want = logits_new(talks[0].model, 2), *got = logits_new(talks[0].model, 2);
    for (unsigned i = 0; i < 2; i++) {
        both_forward(&talks[i], 0, THERE, 0, "a prompt");
        session_open_on_device(&loaded[i], cuda_, talks[i].model, talks[i].cuda, talks[i].tokens);
        for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
            if (talks[i].model->config.producer_count[group] > 0)
                host[i][group] = pages_on_host(&talks[i].on_cuda, group, 3);
    }
    for (unsigned i = 0; i < 2; i++)                /* a step of one row is a graph from now on */
        forward(&talks[1].on_cuda, THERE, 1, got, 1);
    forward(&talks[0].on_cpu, KEPT, rows, want, 1);
    forward(&talks[1].on_cpu, THERE, 1, want + vocab, 1);
    emulation_set_seed(emulation_seed() + round);
    emulation_set_eagerness(round % 2 ? 0 : 64);
    uint64_t ticket = load(&loaded[0], host[0], KEPT);
    if (second_too)
        ticket = load(&loaded[1], host[1], THERE);
    struct backend_run runs[2] = {session_run(&loaded[0], KEPT, rows, got, 1),
                                  session_run(second_too ? &loaded[1] : &talks[1].on_cuda, THERE, 1, got + vocab, 1)};
    runs[0].after = ticket;
    forward_batch(&loaded[0], runs, runs_of);
    emulation_set_eagerness(64);
    check_logits(&talks[0], want, got, runs_of, "behind a load");
    cuda_->copy_wait(talks[0].cuda, ticket);
    check_loaded(&talks[0], &loaded[0], KEPT + rows);
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
            cuda_->arena_destroy(talks[i].cuda, BACKEND_TIER_HOST, &host[i][group]);
        session_close(&loaded[i]);
    }
    free(want), free(got);
}

/* Steps that begin before their pages have come; of one row and of some, of a shape that is a graph, beside a sequence that waits for nothing and
 * one that was loaded, too. */
static void steps_behind_loads_agree(void **state)
{
    (void)state;
    const struct random_model shapes[] = {random_model_small(), random_model_gemma4()};
    for (unsigned round = 0; round < 12; round++) {
        struct model *model = model_make_with(&shapes[round % 2], RANDOM_RECIPE_MIXED);
        struct backend *cpu = backend_make(cpu_, model, NULL, CONFIG(false)), *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
        struct both talks[2];
        for (unsigned i = 0; i < 2; i++)
            both_open(&talks[i], model, cpu, cuda, 40 + i);
        step_behind_a_load(talks, round);
        for (unsigned i = 0; i < 2; i++)
            both_close(&talks[i]);
        cpu_->destroy(&cpu), cuda_->destroy(&cuda);
        model_destroy(&model);
    }
}

/* What copy_done says is true: from then on the source may change. More copies are under way than there are events. */
static void copies_end_when_they_say(void **state)
{
    (void)state;
    enum { COPIES = 1500, BYTES = 256 };
    const struct random_model shape = random_model_small();
    struct model *model = model_make(&shape);
    struct backend *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
    void *from = NULL, *there = NULL, *back = NULL;
    uint64_t tickets[COPIES];
    emulation_set_eagerness(0);
    assert_ok(cuda_->arena_create(cuda, BACKEND_TIER_HOST, COPIES * BYTES, &from));
    assert_ok(cuda_->arena_create(cuda, BACKEND_TIER_HOST, COPIES * BYTES, &back));
    assert_ok(cuda_->arena_create(cuda, BACKEND_TIER_DEVICE, COPIES * BYTES, &there));
    for (unsigned i = 0; i < COPIES; i++)
        memset((char *)from + i * BYTES, (int)(i * 7 + i / 256), BYTES);
    for (unsigned i = 0; i < COPIES; i++) {
        tickets[i] = cuda_->copy_start(cuda, (char *)there + i * BYTES, (char *)from + i * BYTES, BYTES);
        assert_int_equal(tickets[i], 1 + i);
    }
    for (unsigned i = 0; i < COPIES; i++) {
        while (!cuda_->copy_done(cuda, tickets[i]))
            ;
        memset((char *)from + i * BYTES, 0xee, BYTES);
    }
    cuda_->copy_wait(cuda, cuda_->copy_start(cuda, back, there, COPIES * BYTES));
    for (unsigned i = 0; i < COPIES; i++)
        assert_int_equal(((unsigned char *)back)[i * BYTES + i % BYTES], (unsigned char)(i * 7 + i / 256));
    emulation_set_eagerness(64);
    cuda_->arena_destroy(cuda, BACKEND_TIER_HOST, &from), cuda_->arena_destroy(cuda, BACKEND_TIER_HOST, &back);
    cuda_->arena_destroy(cuda, BACKEND_TIER_DEVICE, &there);
    cuda_->destroy(&cuda);
    model_destroy(&model);
}

/* Tokens drawn on the device beside a run that wants its logits. */
static void drawn_tokens_are_the_samplers(void **state)
{
    (void)state;
    const struct random_model shape = random_model_small();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_DYNAMIC);
    const size_t vocab = model->config.vocab_size;
    struct backend *cpu = backend_make(cpu_, model, NULL, CONFIG(false)), *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
    struct both talks[TALKS];
    float *want = logits_new(model, TALKS), *got = logits_new(model, TALKS);
    struct sampler *sampler = NULL;
    assert_ok(sampler_create((uint32_t)vocab, &sampler));
    for (unsigned i = 0; i < TALKS; i++)
        both_open(&talks[i], model, cpu, cuda, 20 + i);
    for (uint32_t step = 0; step < 8; step++) {
        struct backend_run on_cpu[TALKS], on_cuda[TALKS];
        struct backend_sample samples[TALKS];
        for (unsigned i = 0; i < TALKS; i++) {
            samples[i] = (struct backend_sample){.temperature = i == 2 ? 0.0f : 0.9f, .top_p = 0.95f, .top_k = i == 0 ? 40 : 0, .seed = 7 + i,
                                                 .position = step};
            on_cpu[i] = session_run(&talks[i].on_cpu, step, 1, want + i * vocab, 1);
            on_cuda[i] = session_run(&talks[i].on_cuda, step, 1, got + i * vocab, 1);
            if (i != 1 || step % 2 == 0) {
                on_cuda[i].logits = NULL;
                on_cuda[i].sample = &samples[i];
            }
        }
        forward_batch(&talks[0].on_cpu, on_cpu, TALKS);
        forward_batch(&talks[0].on_cuda, on_cuda, TALKS);
        for (unsigned i = 0; i < TALKS; i++) {
            const struct sampler_options options = {.temperature = samples[i].temperature, .top_p = samples[i].top_p, .top_k = samples[i].top_k,
                                                    .seed = samples[i].seed};
            const struct sampler_history history = {.ids = talks[i].tokens, .prompt_count = step, .count = step};
            uint32_t id;
            if (on_cuda[i].sample == NULL) {
                check_logits(&talks[0], want + i * vocab, got + i * vocab, 1, "beside drawn ones");
                continue;
            }
            assert_ok(sampler_pick(sampler, &options, &history, want + i * vocab, &id));
            assert_int_equal(samples[i].token, id);
        }
    }
    sampler_destroy(&sampler);
    for (unsigned i = 0; i < TALKS; i++)
        both_close(&talks[i]);
    free(want), free(got);
    cpu_->destroy(&cpu), cuda_->destroy(&cuda);
    model_destroy(&model);
}

/* ---- what goes wrong ---- */

static void infinities_are_an_error_of_their_run(void **state)
{
    (void)state;
    const struct random_model shape = random_model_gemma4();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_MIXED);
    uint32_t tokens[3][4] = {{5, 6, 7, 8}, {1, 2, 3, 4}, {5, 6, 8, 8}};
    float *embedding = malloc(model->config.vocab_size * sizeof *embedding), *logits = logits_new(model, 3);
    memcpy(embedding, model->embedding.scale, model->config.vocab_size * sizeof *embedding);
    embedding[9] = 1e38f;                                   /* what this token looks up is no number after a norm */
    model->embedding.scale = embedding;
    struct backend *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
    struct session sessions[3];
    for (unsigned i = 0; i < 3; i++)
        session_open_on_device(&sessions[i], cuda_, model, cuda, tokens[i]);
    for (uint32_t place = 0; place < 3; place++)
        for (uint32_t rows = 0; rows < 2; rows++) {
            struct backend_run runs[3];
            uint32_t failed = 99;
            for (unsigned i = 0; i < 3; i++)
                runs[i] = session_run(&sessions[i], 0, 4, rows ? logits + i * model->config.vocab_size : NULL, rows);
            const struct backend_batch batch = {.runs = runs, .run_count = 3};
            tokens[place][1] = 9;
            assert_int_equal(cuda_->forward(cuda, &batch, &failed), STATUS_CORRUPT);
            assert_int_equal(failed, place);
            tokens[place][1] = 2;
            failed = 99;                                              /* nothing stays behind; the token's own logit is infinite, in every run */
            assert_int_equal(cuda_->forward(cuda, &batch, &failed), rows ? STATUS_CORRUPT : STATUS_OK);
            assert_int_equal(failed, rows ? 0 : 99);
        }
    for (unsigned i = 0; i < 3; i++)
        session_close(&sessions[i]);
    cuda_->destroy(&cuda);
    free(embedding), free(logits);
    model_destroy(&model);
}

/* Wherever in a layer it appears. */
static void infinities_inside_are_found(void **state)
{
    (void)state;
    const struct random_model shape = random_model_gemma4();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_MIXED);
    const float **scales[] = {&model->layers[1].q_proj.scale, &model->layers[2].k_proj.scale, &model->layers[3].v_proj.scale,
                              &model->layers[4].o_proj.scale, &model->layers[0].gate_proj.scale, &model->layers[5].up_proj.scale,
                              &model->layers[5].down_proj.scale, &model->layers[6].per_layer_gate.scale, &model->layers[6].per_layer_proj.scale,
                              &model->per_layer_model_proj.scale};
    float *huge = calloc(1024, sizeof *huge), *logits = logits_new(model, 1);
    uint32_t tokens[4] = {5, 6, 7, 8};
    for (size_t i = 0; i < 1024; i++)
        huge[i] = 3e38f;
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        const float *before = *scales[i];
        *scales[i] = huge;
        struct backend *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
        *scales[i] = before;
        struct session session;
        session_open_on_device(&session, cuda_, model, cuda, tokens);
        const struct backend_run run = session_run(&session, 0, 4, logits, 1);
        const struct backend_batch batch = {.runs = &run, .run_count = 1};
        uint32_t failed = 99;
        if (cuda_->forward(cuda, &batch, &failed) != STATUS_CORRUPT || failed != 0)
            fail_msg("scale %zu: run %u", i, failed);
        session_close(&session);
        cuda_->destroy(&cuda);
    }
    free(huge), free(logits);
    model_destroy(&model);
}

static void expect_refusal(const struct model *model, enum status st, const char *words)
{
    struct backend *backend = NULL;
    const struct backend_config config = CONFIG(false);
    assert_int_equal(cuda_->create(model, &config, &backend), st);
    assert_null(backend);
    if (strstr(status_detail(), words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", status_detail(), words);
}

static void a_lost_device_is_lost_for_good(void **state)
{
    (void)state;
    if (!emulation_present())
        skip();
    const struct random_model shape = random_model_small();
    struct model *model = model_make_with(&shape, RANDOM_RECIPE_DYNAMIC);
    for (uint64_t at = 1; at < 60; at += 19) {
        struct backend *cuda = backend_make(cuda_, model, NULL, CONFIG(false));
        uint32_t tokens[8];
        struct session session;
        tokens_fill(model, 0, tokens, 8);
        session_open_on_device(&session, cuda_, model, cuda, tokens);
        forward(&session, 0, 7, NULL, 0);
        float *logits = logits_new(model, 1);
        const struct backend_run run = session_run(&session, 7, 1, logits, 1);
        const struct backend_batch batch = {.runs = &run, .run_count = 1};
        emulation_poison_at(at, 700);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(cuda_->forward(cuda, &batch, NULL), STATUS_CLOSED);
            assert_non_null(strstr(status_detail(), "the GPU is lost"));
        }
        uint64_t ticket = 0;
        for (int i = 0; i < 1200; i++)                       /* more than the ring holds; they count as done */
            ticket = cuda_->copy_start(cuda, session.pages[0][1], session.pages[0][0], 64);
        assert_true(cuda_->copy_done(cuda, ticket));
        cuda_->copy_wait(cuda, ticket);
        free(logits);
        session_close(&session);
        cuda_->destroy(&cuda);
        emulation_heal();
    }
    model_destroy(&model);
}

static void refusals_say_what_to_do(void **state)
{
    (void)state;
    if (!emulation_present())
        skip();
    const struct random_model shape = random_model_small();
    struct random_model floats = shape;
    floats.format = RANDOM_FORMAT_FLOAT;
    struct model *model = model_make(&shape), *other = model_make(&floats);
    expect_refusal(other, STATUS_UNSUPPORTED, "roost-convert");
    emulation_set_memory(1 << 20);
    expect_refusal(model, STATUS_NO_MEMORY, "lower kv_mebibytes");
    emulation_set_memory((size_t)4 << 30);
    const struct backend_config second = {.rows_max = 8, .threads = 1, .rank = 1, .ranks = 2};
    struct backend *backend = NULL;
    assert_int_equal(cuda_->create(model, &second, &backend), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_detail(), "lower tp"));
    setenv("ROOST_EMULATION_CAPABILITY", "7.5", 1);
    expect_refusal(model, STATUS_UNSUPPORTED, "take a newer GPU");
    unsetenv("ROOST_EMULATION_CAPABILITY");
    setenv("ROOST_EMULATION_DEVICES", "0", 1);
    expect_refusal(model, STATUS_UNSUPPORTED, "install it");
    unsetenv("ROOST_EMULATION_DEVICES");
    model_destroy(&model), model_destroy(&other);
}

static int nothing_is_left(void **state)
{
    (void)state;
    struct emulation_counts counts = {0};
    emulation_get_counts(&counts);
    if (counts.graphs == 0 && counts.memory_used == 0 && counts.pinned_used == 0)
        return 0;
    print_error("left behind: %llu graphs, %zu bytes on the device, %zu pinned\n", (unsigned long long)counts.graphs, counts.memory_used,
                counts.pinned_used);
    return -1;
}

#define leaves_nothing(test) cmocka_unit_test_teardown(test, nothing_is_left)

int main(void)
{
    const struct CMUnitTest tests[] = {
        leaves_nothing(families_and_schemes_agree), leaves_nothing(batches_and_graphs_agree),
        leaves_nothing(as_many_graphs_as_are_kept),
        leaves_nothing(mixed_batches_agree), leaves_nothing(pages_of_the_cpu_go_on),
        leaves_nothing(prefixes_agree), leaves_nothing(steps_behind_loads_agree), leaves_nothing(copies_end_when_they_say), leaves_nothing(drawn_tokens_are_the_samplers),
        leaves_nothing(infinities_are_an_error_of_their_run), leaves_nothing(infinities_inside_are_found),
        leaves_nothing(refusals_say_what_to_do), cmocka_unit_test(a_lost_device_is_lost_for_good),      /* its memory, too */
    };
    return unit_run(tests, NULL, NULL);
}
