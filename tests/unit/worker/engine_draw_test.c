/* Tokens drawn by the backend are those that the engine draws: with all options, in batches where others' are drawn by the engine, over
 * little memory and resumes; and the engine asks the backend where it can, and only there. */
#include "tests/unit/worker/unit.h"
#include "tests/unit/worker/drawing_backend.h"
#include "tests/unit/worker/engine_fixture.h"

enum { TOKENS = 16, KINDS = 16, CHOICES = 3 };

/* Reset, so both engines' copies land alike. drawing: over the same backend as the other. */
static void open_client(struct client *client, const struct engine_config *config, bool drawing)
{
    struct engine_config own = *config;
    drawing_backend = (struct drawing_backend_state){.base = own.backend != NULL ? own.backend : &backend_cpu_ops};
    if (drawing)
        own.backend = &drawing_backend_ops;
    client_setup(client, fixture_engine(&own));
    if (drawing)
        engine_observe_logits(client->engine, NULL, NULL);
}

static void close_client(struct client *client)
{
    assert_ok(engine_check(client->engine));
    engine_destroy(&client->engine);
    client_free(client);
}

static struct engine_request plain(unsigned kind)
{
    struct engine_request request = {.tokens_max = TOKENS, .seed = 100 + kind, .seed_given = true};
    request.prompt_id_count = 10 + 23 * kind;
    request.prompt_ids = fixture_ids(kind, request.prompt_id_count);
    request.sampling.temperature = 1;
    return request;
}

/* By the backend: kinds 0 to 6, and 7 but for the first token of all choices, 8 from the sixth token on. */
static struct engine_request request_of(unsigned kind)
{
    static const uint32_t ids[2] = {17, 300};
    static const float values[2] = {3, -4};
    struct engine_request request = plain(kind);
    struct sampler_options *sampling = &request.sampling;
    switch (kind) {
    case 0: sampling->temperature = 0; break;
    case 1: break;
    case 2: sampling->top_p = 0.8f; break;
    case 3: sampling->top_k = 7; break;
    case 4: sampling->min_p = 0.3f; sampling->repetition_penalty = 1; break;
    case 5: sampling->temperature = 1.7f; sampling->top_p = 0.95f; sampling->top_k = 900; sampling->min_p = 0.01f; break;
    case 6: request.stop_ids = ids; request.stop_id_count = 2; break;
    case 7: request.choices = CHOICES; break;
    case 8: sampling->tokens_min = 5; break;
    case 9: request.logprobs = true; request.alternatives = 3; break;
    case 10: sampling->repetition_penalty = 1.3f; break;
    case 11: sampling->presence_penalty = 0.5f; break;
    case 12: sampling->frequency_penalty = -0.5f; break;
    case 13: sampling->bias_ids = ids; sampling->bias_values = values; sampling->bias_count = 2; break;
    case 14: request.prompt_logprobs = true; break;
    default: sampling->tokens_min = TOKENS; break;
    }
    return request;
}

/* Later ones go first, so that earlier ones have to make room. */
static void submit_all(struct client *client, struct client_job **jobs)
{
    for (unsigned kind = 0; kind < KINDS; kind++) {
        struct engine_request request = request_of(kind);
        request.priority = (int32_t)kind;
        assert_ok(client_submit(client, &request, &jobs[kind]));
        client_step(client);
        client_step(client);
    }
    client_run(client);
}

static void all_kinds_together(struct engine_config config, bool crowded)
{
    struct client by_engine, by_backend;
    struct client_job *a[KINDS], *b[KINDS];
    struct engine_pressure pressure;
    open_client(&by_engine, &config, false);
    submit_all(&by_engine, a);
    open_client(&by_backend, &config, true);
    submit_all(&by_backend, b);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        assert_int_equal(a[kind]->end.kind, ENGINE_DONE);
        assert_same_tokens(a[kind], b[kind]);
    }
    assert_true(drawing_backend.drawn > 7 * 2 && drawing_backend.shown > 6 * 2);
    engine_pressure(by_backend.engine, &pressure);
    assert_true(!crowded || pressure.suspended > 0);
    close_client(&by_engine);
    close_client(&by_backend);
}

static void real_arithmetic(void **state)
{
    (void)state;
    struct engine_config config = fixture_config();
    config.backend = NULL;
    config.kv_bytes = 64 << 20;
    all_kinds_together(config, false);
}

/* Whoever is suspended, moved to the host and computed again. */
static void little_memory(void **state)
{
    (void)state;
    struct engine_config config = fixture_config();
    config.kv_bytes = FIXTURE_CONVERSATION + 4 * FIXTURE_PAGE;
    all_kinds_together(config, true);
    config.kv_host_bytes = FIXTURE_CONVERSATION;
    all_kinds_together(config, true);
}

/* How many tokens of a reply the backend draws, and what is still given. */
static void who_draws(void **state)
{
    (void)state;
    struct client client;
    const struct engine_config config = fixture_config();
    open_client(&client, &config, true);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        struct engine_request request = request_of(kind);
        drawing_backend.drawn = drawing_backend.shown = 0;
        const struct client_job *job = client_ask(&client, &request);
        uint64_t draws = 0, shown = 0;
        for (unsigned i = 0; i < job->choices; i++)
            draws += job->replies[i].count + (job->end.finish[i] == ENGINE_FINISH_STOP);
        assert_true(draws >= 8);
        if (kind == 7) { /* one row for all */
            draws -= CHOICES - 1;
            shown = 1;
        } else if (kind == 8) {
            shown = 5;
        } else if (kind == 14) { /* one for each token of the prompt */
            shown = draws + request.prompt_id_count - 1;
        } else if (kind > 8) {
            shown = draws;
        }
        assert_int_equal(drawing_backend.shown, shown);
        assert_int_equal(drawing_backend.drawn, kind > 8 ? 0 : draws - shown);
    }
    struct engine_request request = request_of(1); /* somebody looks */
    client_ask(&client, &request);
    client_free(&client);
    client_setup(&client, client.engine);
    drawing_backend.drawn = 0;
    assert_int_equal(client_ask(&client, &request)->replies[0].draws, TOKENS);
    assert_int_equal(drawing_backend.drawn, 0);
    close_client(&client);
}

/* A reply of the engine's own drawing goes on behind any of its tokens. */
static void resumes(void **state)
{
    (void)state;
    static const unsigned kinds[] = {0, 5, 7, 8};
    const struct engine_config config = fixture_config();
    for (unsigned k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        struct client by_engine, by_backend;
        struct engine_request request = request_of(kinds[k]);
        open_client(&by_engine, &config, false);
        const struct client_job *whole = client_ask(&by_engine, &request);
        open_client(&by_backend, &config, true);
        for (uint32_t from = 0; from < TOKENS; from++) {
            uint32_t counts[CHOICES], ids[CHOICES * TOKENS], used = 0;
            for (unsigned i = 0; i < whole->choices; i++) {
                const struct client_reply *reply = &whole->replies[i];
                counts[i] = i == 1 ? from / 2 : from;
                counts[i] = counts[i] < reply->count ? counts[i] : reply->count;
                for (uint32_t n = 0; n < counts[i]; n++)
                    ids[used++] = reply->ids[n];
            }
            request.resume_counts = counts;
            request.resume_ids = ids;
            const struct client_job *rest = client_ask(&by_backend, &request);
            for (unsigned i = 0; i < whole->choices; i++) {
                assert_int_equal(rest->replies[i].count, whole->replies[i].count - counts[i]);
                if (rest->replies[i].count > 0)
                    assert_memory_equal(rest->replies[i].ids, whole->replies[i].ids + counts[i], rest->replies[i].count * sizeof ids[0]);
            }
        }
        assert_true(drawing_backend.drawn > TOKENS);
        close_client(&by_engine);
        close_client(&by_backend);
    }
}

/* A NaN ends the job whose row has it; its neighbours' tokens, drawn in the same step, are drawn again. */
static void a_nan_ends_one_job(void **state)
{
    (void)state;
    enum { JOBS = 4 };
    const struct engine_config config = fixture_config();
    struct client by_engine, by_backend;
    struct client_job *a[JOBS], *b[JOBS];
    open_client(&by_engine, &config, false);
    for (unsigned kind = 0; kind < JOBS; kind++) {
        struct engine_request request = request_of(kind);
        assert_ok(client_submit(&by_engine, &request, &a[kind]));
    }
    client_run(&by_engine);
    for (unsigned spoil = 1; spoil <= 2 * JOBS; spoil++) {
        unsigned failed = 0;
        open_client(&by_backend, &config, true);
        drawing_backend.spoil_in = spoil;
        for (unsigned kind = 0; kind < JOBS; kind++) {
            struct engine_request request = request_of(kind);
            assert_ok(client_submit(&by_backend, &request, &b[kind]));
        }
        client_run(&by_backend);
        for (unsigned kind = 0; kind < JOBS; kind++) {
            if (b[kind]->end.kind == ENGINE_FAILED) {
                assert_int_equal(b[kind]->end.status, STATUS_CORRUPT);
                failed++;
            } else {
                assert_same_tokens(a[kind], b[kind]);
            }
        }
        assert_int_equal(failed, 1);
        close_client(&by_backend);
    }
    close_client(&by_engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_arithmetic), cmocka_unit_test(little_memory),      cmocka_unit_test(who_draws),
        cmocka_unit_test(resumes),         cmocka_unit_test(a_nan_ends_one_job),
    };
    return unit_run(tests, fixture_setup, fixture_teardown);
}
