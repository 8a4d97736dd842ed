/* The simulated worker's engine: what a profile may be, that tokens are a function of prompt and seed alone, and the
 * time of a step as a pure function. */
#include "tests/unit/worker/unit.h"
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/unit/worker/engine_fixture.h"
#include "worker/engine/backend/backend_simulate.h"

enum { PROMPT = 300, TOKENS = 60 };

static struct engine *make_engine(const char *text, uint32_t chunk_tokens)
{
    struct simulate_profile profile;
    struct engine *engine = NULL;
    struct engine_config config = {.model_dir = fixture_model_dir(),
                                   .chunk_tokens = chunk_tokens,
                                   .batch_tokens = 512,
                                   .sequences_max = 64,
                                   .queue_requests_max = 256,
                                   .rewind_tokens = 64,
                                   .snapshots_max = 4,
                                   .simulate = &profile};
    assert_ok(simulate_profile_parse(text, &profile));
    assert_ok(engine_create(&config, &engine));
    return engine;
}

static struct engine_request ask(uint64_t prompt, uint64_t seed)
{
    struct engine_request request = fixture_request(fixture_ids(prompt, PROMPT), PROMPT, TOKENS);
    request.sampling = (struct sampler_options){.temperature = 0.8f, .tokens_min = TOKENS};
    request.seed_given = true;
    request.seed = seed;
    return request;
}

/* ---- profiles ---- */

static void profiles_are_parsed(void **state)
{
    (void)state;
    struct simulate_profile profile;
    assert_ok(simulate_profile_parse("fast", &profile));
    assert_true(profile.step_us == 500 && profile.prefill_us == 2 && profile.decode_us == 10 && profile.reply == 200);
    assert_true(profile.context == 0 && profile.kv_tokens == 262144 && profile.seed == 1);
    assert_true(profile.poison == SIMULATE_NO_POISON);
    assert_ok(simulate_profile_parse("gpu,seed=18446744073709551615", &profile));
    assert_true(profile.step_us == 8000 && profile.prefill_us == 40 && profile.decode_us == 100 &&
                profile.seed == UINT64_MAX);
    assert_ok(simulate_profile_parse(
        "fast,step_us=2000,prefill_us=20,decode_us=50,context=8192,seed=7,poison=4000,kv_tokens=0,reply=0", &profile));
    assert_true(profile.step_us == 2000 && profile.prefill_us == 20 && profile.decode_us == 50 && profile.reply == 0);
    assert_true(profile.context == 8192 && profile.seed == 7 && profile.poison == 4000 && profile.kv_tokens == 0);
}

static void bad_profiles_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } bad[] = {
        {"", "'' is not a profile; fast and gpu are"},
        {"slow", "'slow' is not a profile"},
        {"fas", "'fas' is not a profile"},
        {"step_us=3", "'step_us=3' is not a profile"},
        {"fast,", "'' is not an override"},
        {"fast,,seed=1", "'' is not an override"},
        {"fast,speed=1", "'speed=1' is not an override; write NAME=NUMBER with step_us"},
        {"fast,seed", "'seed' is not an override"},
        {"fast,seed=", "seed= is not a whole number from 0"},
        {"fast,seed=-1", "seed=-1 is not"},
        {"fast,seed=1 ", "seed=1  is not"},
        {"fast,seed=18446744073709551616", "seed=18446744073709551616 is not"},
        {"fast,seed=00000000000000000000001", "is not a whole number"},
        {"fast,step_us=60000001", "from 0 to 60000000"},
        {"fast,context=63", "from 64 to 1048576, or 0"},
        {"fast,poison=1048576", "from 0 to 1048575"},
    };
    struct simulate_profile profile;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(simulate_profile_parse(bad[i].text, &profile), STATUS_INVALID);
        if (strstr(status_detail(), bad[i].words) == NULL)
            fail_msg("%s: %s", bad[i].text, status_detail());
    }
}

static void engines_refuse_what_does_not_fit(void **state)
{
    (void)state;
    struct simulate_profile profile;
    struct engine *engine = NULL;
    const struct engine_config config = {
        .model_dir = fixture_model_dir(), .chunk_tokens = 64, .queue_requests_max = 1, .simulate = &profile};
    assert_ok(simulate_profile_parse("fast,poison=4096", &profile));
    assert_int_equal(engine_create(&config, &engine), STATUS_INVALID);
    assert_non_null(strstr(status_detail(), "poison=4096 is not an id"));
    assert_ok(simulate_profile_parse("fast,context=8192,kv_tokens=4096", &profile));
    assert_int_equal(engine_create(&config, &engine), STATUS_LIMIT);
    assert_non_null(strstr(status_detail(), "kv_tokens=4096 is not enough for a conversation of 8192 tokens"));
}

/* No weights are needed; context and memory are the profile's. */
static void a_profile_shapes_the_engine(void **state)
{
    (void)state;
    struct engine *engine = make_engine("fast,context=8192,kv_tokens=100000", 64);
    assert_int_equal(engine_info(engine)->context_tokens_max, 8192);
    assert_in_range(engine_info(engine)->kv_tokens_max, 99000, 100000);
    engine_destroy(&engine);
    engine = make_engine("fast", 64);
    assert_int_equal(engine_info(engine)->context_tokens_max, FIXTURE_CONTEXT);
    engine_destroy(&engine);
}

/* ---- time ---- */

static void the_time_of_a_step(void **state)
{
    (void)state;
    struct simulate_profile profile;
    const struct backend_run runs[] = {{.count = 1, .logit_rows = 1},
                                       {.count = 1, .logit_rows = 1},
                                       {.count = 1, .logit_rows = 0},
                                       {.count = 100, .logit_rows = 1}};
    const struct backend_batch all = {.runs = runs, .run_count = 4}, one = {.runs = runs, .run_count = 1};
    assert_ok(simulate_profile_parse("fast,step_us=1000,prefill_us=3,decode_us=70", &profile));
    assert_int_equal(simulate_step_us(&profile, &one), 1000 + 70);
    assert_int_equal(simulate_step_us(&profile, &all), 1000 + 2 * 70 + 101 * 3);
}

static void the_factor_is_checked(void **state)
{
    (void)state;
    assert_true(backend_simulate_factor() == 1);
    assert_int_equal(backend_simulate_slow(-1), STATUS_INVALID);
    assert_int_equal(backend_simulate_slow(1e7), STATUS_INVALID);
    assert_int_equal(backend_simulate_slow(0.0 / 0.0), STATUS_INVALID);
    assert_true(backend_simulate_factor() == 1);
    assert_ok(backend_simulate_slow(2.5));
    assert_true(backend_simulate_factor() == 2.5);
    assert_ok(backend_simulate_slow(1));
}

/* Sleeping is never less than asked: 10 steps of 3 ms, 2 times as long. */
static void steps_take_their_time(void **state)
{
    (void)state;
    struct client client;
    client_setup(&client, make_engine("fast,step_us=3000,prefill_us=0,decode_us=0", 256));
    struct engine_request request = ask(1, 1);
    request.prompt_id_count = 10;
    request.tokens_max = 10;
    assert_ok(backend_simulate_slow(2));
    const uint64_t started_us = clock_now_us();
    client_ask(&client, &request);
    assert_true(clock_now_us() - started_us >= 10 * 2 * 3000);
    assert_ok(backend_simulate_slow(1));
    engine_destroy(&client.engine);
    client_free(&client);
}

static void *let_go(void *unused)
{
    const struct timespec wait = {.tv_nsec = 200000000};
    (void)nanosleep(&wait, NULL);
    assert_ok(backend_simulate_slow(0));
    return unused;
}

/* A step that would take 3,000 seconds ends when the factor is taken back. */
static void a_hung_step_goes_on(void **state)
{
    (void)state;
    struct client client;
    pthread_t thread;
    client_setup(&client, make_engine("fast,step_us=3000", 64));
    struct engine_request request = ask(1, 1);
    request.tokens_max = 1;
    assert_ok(backend_simulate_slow(SIMULATE_FACTOR_MAX));
    assert_int_equal(pthread_create(&thread, NULL, let_go, NULL), 0);
    const uint64_t started_us = clock_now_us();
    client_ask(&client, &request);
    assert_in_range(clock_now_us() - started_us, 150000, 60000000);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_ok(backend_simulate_slow(1));
    engine_destroy(&client.engine);
    client_free(&client);
}

/* ---- tokens ---- */

static void tokens_are_a_function_of_prompt_and_seed(void **state)
{
    (void)state;
    enum { JOBS = 64 };
    struct client alone, together;
    struct client_job *jobs[JOBS], *job;
    struct engine_request requests[JOBS];
    assert_ok(backend_simulate_slow(0));
    client_setup(&alone, make_engine("fast", 256));
    client_setup(&together, make_engine("gpu,kv_tokens=5000", 17)); /* times, memory and chunks do not matter */
    assert_memory_equal(engine_info(alone.engine)->numerics_id, engine_info(together.engine)->numerics_id, 32);
    for (unsigned i = 0; i < JOBS; i++) {
        requests[i] = ask(i / 4, i % 4);
        if (i % 4 == 3)
            requests[i].sampling.temperature = 0;
        assert_ok(client_submit(&together, &requests[i], &jobs[i]));
    }
    client_run(&together);
    for (unsigned i = 0; i < JOBS; i++) {
        if (i % 4 == 0)
            engine_forget_cache(alone.engine);
        job = client_ask(&alone, &requests[i]);
        assert_true((job->end.cached_tokens > 0) == (i % 4 > 0));
        assert_same_reply(job, jobs[i]);
        for (unsigned k = 0; k < i; k++) /* nothing is said twice */
            assert_true(client_digest(jobs[i]) != client_digest(jobs[k]) &&
                        memcmp(jobs[i]->replies[0].ids, jobs[k]->replies[0].ids, TOKENS * sizeof(uint32_t)) != 0);
        for (unsigned k = 0; k < TOKENS; k++)
            assert_in_range(job->replies[0].ids[k], 512, 4096 - 128 - 1);
    }
    assert_ok(engine_check(together.engine));
    engine_destroy(&alone.engine);
    engine_destroy(&together.engine);
    client_free(&alone);
    client_free(&together);
    assert_ok(backend_simulate_slow(1));
}

static void the_first_token_matters_to_the_last(void **state)
{
    (void)state;
    struct client client;
    uint32_t ids[PROMPT];
    struct engine_request request = ask(1, 1);
    client_setup(&client, make_engine("fast", 64));
    const struct client_job *first = client_ask(&client, &request);
    memcpy(ids, request.prompt_ids, sizeof ids);
    ids[0] = ids[0] == 300 ? 301 : 300;
    request.prompt_ids = ids;
    const struct client_job *second = client_ask(&client, &request);
    assert_int_equal(second->end.cached_tokens, 0);
    assert_int_not_equal(second->replies[0].ids[0], first->replies[0].ids[0]);
    assert_memory_not_equal(second->replies[0].ids + TOKENS / 2, first->replies[0].ids + TOKENS / 2,
                            TOKENS / 2 * sizeof *ids);
    engine_destroy(&client.engine);
    client_free(&client);
}

static void seeds_are_different_models(void **state)
{
    (void)state;
    static const char *const profiles[] = {"fast", "fast,seed=2", "fast,reply=300"};
    struct client clients[3];
    struct client_job *jobs[3];
    for (int i = 0; i < 3; i++) {
        struct engine_request request = ask(1, 1);
        client_setup(&clients[i], make_engine(profiles[i], 64));
        jobs[i] = client_ask(&clients[i], &request);
        for (int k = 0; k < i; k++)
            assert_memory_not_equal(engine_info(clients[i].engine)->numerics_id,
                                    engine_info(clients[k].engine)->numerics_id, 32);
    }
    assert_memory_not_equal(jobs[0]->replies[0].ids, jobs[1]->replies[0].ids, TOKENS * sizeof(uint32_t));
    for (int i = 0; i < 3; i++) {
        engine_destroy(&clients[i].engine);
        client_free(&clients[i]);
    }
}

static void replies_end_by_themselves(void **state)
{
    (void)state;
    enum { JOBS = 200, MEAN = 50 };
    struct client client;
    uint64_t total = 0;
    unsigned stopped = 0;
    assert_ok(backend_simulate_slow(0));
    client_setup(&client, make_engine("fast,reply=50", 64));
    for (unsigned i = 0; i < JOBS; i++) {
        struct engine_request request = ask(i, i);
        request.prompt_id_count = 10;
        request.tokens_max = 0;
        request.sampling.tokens_min = 0;
        const struct client_job *job = client_ask(&client, &request);
        total += job->end.reply_tokens;
        stopped += job->end.finish[0] == ENGINE_FINISH_STOP;
    }
    assert_int_equal(stopped, JOBS);
    assert_in_range(total, JOBS * MEAN * 7 / 10,
                    JOBS * MEAN * 13 / 10); /* four deviations of the mean: 50 / sqrt(200) each */
    engine_destroy(&client.engine);
    client_free(&client);
    assert_ok(backend_simulate_slow(1));
}

static int started_pipe = -1;

static void note_start(struct client *client, const struct engine_event *event)
{
    (void)client;
    const uint64_t now_us = clock_now_us();
    if (event->kind == ENGINE_STARTED)
        assert_int_equal(write(started_pipe, &now_us, sizeof now_us), sizeof now_us);
}

/* In a child: the process ends by SIGABRT at the end of the step that computes the id, and not before: the word that
 * the request is begun is out by then. */
static void poison_aborts(void **state)
{
    (void)state;
    for (int poisoned = 0; poisoned < 2; poisoned++) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        fflush(NULL);
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            struct client client;
            uint32_t ids[] = {300, 301, poisoned ? 4000 : 4001, 302};
            struct engine_request request = fixture_request(ids, 4, 5);
            (void)signal(SIGABRT, SIG_DFL);
            (void)freopen("/dev/null", "w", stderr);
            client_setup(&client, make_engine("fast,step_us=150000,poison=4000", 64));
            started_pipe = ends[1];
            client.on_event = note_start;
            client_ask(&client, &request);
            _exit(0);
        }
        int ended;
        uint64_t started_us;
        assert_int_equal(waitpid(child, &ended, 0), child);
        const uint64_t now_us = clock_now_us();
        assert_int_equal(read(ends[0], &started_us, sizeof started_us), sizeof started_us);
        assert_true(now_us - started_us >= 150000);
        close(ends[0]);
        close(ends[1]);
        if (poisoned)
            assert_true(WIFSIGNALED(ended) && WTERMSIG(ended) == SIGABRT);
        else
            assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    }
}

/* What 64 sequences cost beside sleeping; printed, not judged. */
static void the_cost_of_a_step(void **state)
{
    (void)state;
    enum { JOBS = 64, STEPS = 200 };
    struct client client;
    struct client_job *job;
    assert_ok(backend_simulate_slow(0));
    client_setup(&client, make_engine("fast", 64));
    client.digest_logits = false;
    for (unsigned i = 0; i < JOBS; i++) {
        struct engine_request request = ask(i, i);
        request.tokens_max = request.sampling.tokens_min = STEPS;
        assert_ok(client_submit(&client, &request, &job));
    }
    client_run_jobs(&client);
    struct engine_progress progress;
    engine_progress(client.engine, &progress);
    print_message("a step of %u sequences costs %u us\n", JOBS, progress.step_median_us);
    engine_destroy(&client.engine);
    client_free(&client);
    assert_ok(backend_simulate_slow(1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(profiles_are_parsed),
        cmocka_unit_test(bad_profiles_are_refused),
        cmocka_unit_test(engines_refuse_what_does_not_fit),
        cmocka_unit_test(a_profile_shapes_the_engine),
        cmocka_unit_test(the_time_of_a_step),
        cmocka_unit_test(the_factor_is_checked),
        cmocka_unit_test(steps_take_their_time),
        cmocka_unit_test(a_hung_step_goes_on),
        cmocka_unit_test(tokens_are_a_function_of_prompt_and_seed),
        cmocka_unit_test(the_first_token_matters_to_the_last),
        cmocka_unit_test(seeds_are_different_models),
        cmocka_unit_test(replies_end_by_themselves),
        cmocka_unit_test(poison_aborts),
        cmocka_unit_test(the_cost_of_a_step),
    };
    return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
