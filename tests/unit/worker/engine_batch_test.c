/* Many sequences in one engine over the fake backend: batches, memory and preemption, several choices, failing runs,
 * background work. */
#include "tests/unit/worker/unit.h"
#include "tests/unit/worker/engine_fixture.h"

enum { CONTEXT = FIXTURE_CONTEXT };

static struct client alone; /* of an engine that computes one request at a time and forgets it */

static int setup(void **state)
{
    struct engine_config config = fixture_config();
    (void)fixture_setup(state);
    config.chunk_tokens = 100;
    client_setup(&alone, fixture_engine(&config));
    return 0;
}

static int teardown(void **state)
{
    engine_destroy(&alone.engine);
    return fixture_teardown(state);
}

static void assert_same_alone(const struct client_job *job, const struct engine_request *request)
{
    const struct fake_backend_state state = fake_backend;
    struct engine_request again = *request;
    fake_backend.fail = STATUS_OK;
    assert_int_equal(job->end.kind, ENGINE_DONE);
    engine_forget_cache(alone.engine);
    assert_same_reply(job, client_ask(&alone, &again));
    client_reset(&alone);
    fake_backend = state;
}

/* ---- batches ---- */

static void sequences_run_together(void **state)
{
    (void)state;
    enum { JOBS = 8 };
    struct engine *engine = fixture_engine(NULL);
    struct client client;
    struct client_job *jobs[JOBS];
    struct engine_request requests[JOBS];
    client_setup(&client, engine);
    client.check = true;
    for (int i = 0; i < JOBS; i++) {
        requests[i] = fixture_request(fixture_ids((uint64_t)i, 60), 60, 20);
        requests[i].sampling.temperature = i % 2 ? 1.5f : 0;
        assert_ok(client_submit(&client, &requests[i], &jobs[i]));
    }
    client_run(&client);
    assert_int_equal(fake_backend.forwards, 20); /* 480 prompt tokens are one step's; then all decode together */
    assert_int_equal(fake_backend.runs, 20 * JOBS);
    for (int i = 0; i < JOBS; i++)
        assert_same_alone(jobs[i], &requests[i]);
    client_free(&client);
    engine_destroy(&engine);
}

static void a_long_prompt_does_not_stop_the_others(void **state)
{
    (void)state;
    struct engine_config config = fixture_config();
    config.chunk_tokens = 16;
    struct engine *engine = fixture_engine(&config);
    struct client client;
    struct client_job *speaking = NULL, *reading = NULL;
    client_setup(&client, engine);
    struct engine_request request = fixture_request(fixture_ids(1, 10), 10, 100);
    assert_ok(client_submit(&client, &request, &speaking));
    client_step(&client);
    request = fixture_request(fixture_ids(2, 600), 600, 5);
    assert_ok(client_submit(&client, &request, &reading));
    for (uint32_t said = 1; said < 30; said++) {
        assert_int_equal(speaking->replies[0].draws, said);
        client_step(&client);
    }
    assert_int_equal(reading->replies[0].draws, 0);
    client_run(&client);
    client_free(&client);
    engine_destroy(&engine);
}

static void plans_can_be_read(void **state)
{
    (void)state;
    struct engine *engine = fixture_engine(NULL);
    struct client client;
    char *text = NULL;
    size_t size;
    FILE *trace = open_memstream(&text, &size);
    client_setup(&client, engine);
    engine_trace_plans(engine, trace);
    struct engine_request request = fixture_request(fixture_ids(1, 70), 70, 2);
    client_ask(&client, &request);
    engine_trace_plans(engine, NULL);
    client_ask(&client, &request);
    fclose(trace);
    assert_non_null(strstr(text, "admit 0\nrun 0 64\n"));
    assert_non_null(strstr(text, "run 0 6\n"));
    assert_non_null(strstr(text, "run 0 1\n"));
    unsigned steps = 0;
    for (const char *at = text; (at = strstr(at, "step ")) != NULL; at++)
        steps++;
    assert_int_equal(steps, 3);
    free(text);
    client_free(&client);
    engine_destroy(&engine);
}

/* ---- suspects ---- */

enum { SUSPECTS_JOBS = 24 };

static bool suspect[SUSPECTS_JOBS];
static uint64_t begun_at[SUSPECTS_JOBS]; /* forwards before it */

/* From its start to its first token nobody else's prompt is computed with a suspect's: nobody is suspended here. */
static void check_company(struct client *client, const struct engine_event *event)
{
    if (event->kind != ENGINE_STARTED)
        return;
    const unsigned begun = (unsigned)(event->job - 1);
    begun_at[begun] = fake_backend.forwards;
    for (unsigned i = 0; i < client->count; i++) {
        const struct client_job *job = client->jobs[i];
        uint32_t tokens = 0;
        for (uint32_t c = 0; c < job->choices; c++)
            tokens += job->replies[c].count;
        if (i == begun || !job->started || job->ended)
            continue;
        assert_false((suspect[i] || suspect[begun]) && tokens == 0);
    }
}

static void suspects_compute_their_prompts_alone(void **state)
{
    (void)state;
    enum { JOBS = SUSPECTS_JOBS };
    uint64_t rng = test_seed(7);
    for (int round = 0; round < 6; round++) {
        struct engine_config config = fixture_config();
        struct client client;
        struct client_job *jobs[JOBS];
        struct engine_request requests[JOBS];
        config.kv_bytes = 64 * FIXTURE_CONVERSATION;
        config.sequences_max = 1 + rng_below(&rng, 8);
        struct engine *engine = fixture_engine(&config);
        client_setup(&client, engine);
        client.check = true;
        client.on_event = check_company;
        for (uint32_t i = 0; i < JOBS; i++) {
            const uint32_t count = 1 + rng_below(&rng, 200);
            requests[i] = fixture_request(fixture_ids(rng_next(&rng), count), count, 1 + rng_below(&rng, 40));
            requests[i].sampling.temperature = 1.5f;
            requests[i].choices = rng_below(&rng, 4) == 0 ? 3 : 1;
            requests[i].apart = suspect[i] = rng_below(&rng, 3) == 0;
            assert_ok(client_submit(&client, &requests[i], &jobs[i]));
            for (uint32_t steps = rng_below(&rng, 4); steps > 0; steps--)
                client_step(&client);
        }
        client_run(&client);
        for (int i = 0; i < JOBS; i++) {
            assert_true(jobs[i]->started);
            assert_same_alone(jobs[i], &requests[i]);
        }
        client_free(&client);
        engine_destroy(&engine);
    }
}

/* The start of a job is told before anything of it is computed, and not while it waits. */
static void starts_are_told_in_time(void **state)
{
    (void)state;
    struct engine_config config = fixture_config();
    struct client client;
    struct client_job *first = NULL, *second = NULL;
    config.sequences_max = 1;
    struct engine *engine = fixture_engine(&config);
    client_setup(&client, engine);
    client.on_event = check_company;
    memset(suspect, 0, sizeof suspect);
    struct engine_request request = fixture_request(fixture_ids(1, 100), 100, 3);
    assert_ok(client_submit(&client, &request, &first));
    request = fixture_request(fixture_ids(2, 100), 100, 3);
    assert_ok(client_submit(&client, &request, &second));
    client_step(&client);
    assert_true(first->started && begun_at[0] == 0 && fake_backend.forwards == 1);
    while (!first->ended) {
        assert_false(second->started);
        client_step(&client);
    }
    const uint64_t forwards = fake_backend.forwards;
    client_step(&client);
    assert_true(second->started && begun_at[1] == forwards);
    client_run(&client);
    client_free(&client);
    engine_destroy(&engine);
}

/* ---- memory ---- */

static void run_in_little_memory(uint64_t device, uint64_t host, uint32_t late)
{
    enum { JOBS = 12 };
    struct engine_config config = fixture_config();
    struct client client;
    struct client_job *jobs[JOBS];
    struct engine_request requests[JOBS];
    char *trace = NULL;
    size_t size;
    config.kv_bytes = device;
    config.kv_host_bytes = host;
    FILE *out = open_memstream(&trace, &size);
    struct engine *engine = fixture_engine(&config);
    fake_backend.late_polls_max = late;
    client_setup(&client, engine);
    client.check = true;
    engine_trace_plans(engine, out);
    for (int i = 0; i < JOBS; i++) { /* short prompts that grow: each is let in, not all can stay */
        requests[i] = fixture_request(fixture_ids((uint64_t)i + 50, 40), 40, 400);
        requests[i].sampling.temperature = 1.5f;
        requests[i].priority = i % 3;
        assert_ok(client_submit(&client, &requests[i], &jobs[i]));
    }
    client_run(&client);
    fclose(out);
    assert_non_null(strstr(trace, "suspend "));
    assert_non_null(strstr(trace, "resume "));
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(jobs[i]->replies[0].count, 400);
        assert_same_alone(jobs[i], &requests[i]);
    }
    free(trace);
    client_free(&client);
    engine_destroy(&engine);
}

static void preempted_with_a_host_tier(void **state)
{
    (void)state;
    run_in_little_memory(2 * FIXTURE_CONVERSATION, 16 * FIXTURE_CONVERSATION, 0);
    run_in_little_memory(2 * FIXTURE_CONVERSATION, 16 * FIXTURE_CONVERSATION, 5);
    run_in_little_memory(2 * FIXTURE_CONVERSATION, FIXTURE_CONVERSATION, 3); /* not enough for all */
}

static void preempted_without_a_host_tier(void **state)
{
    (void)state;
    run_in_little_memory(2 * FIXTURE_CONVERSATION, 0, 0);
    run_in_little_memory(FIXTURE_CONVERSATION, 0, 0);
}

static void a_higher_priority_takes_the_only_place(void **state)
{
    (void)state;
    struct engine_config config = fixture_config();
    config.sequences_max = 1;
    struct engine *engine = fixture_engine(&config);
    struct client client;
    struct client_job *low = NULL, *high = NULL;
    client_setup(&client, engine);
    client.check = true;
    struct engine_request first = fixture_request(fixture_ids(1, 100), 100, 50),
                          second = fixture_request(fixture_ids(2, 100), 100, 20);
    assert_ok(client_submit(&client, &first, &low));
    for (int i = 0; i < 10; i++)
        client_step(&client);
    second.priority = 1;
    assert_ok(client_submit(&client, &second, &high));
    client_run(&client);
    assert_true(high->end_order == 1 && low->end_order == 2);
    assert_same_alone(low, &first);
    assert_same_alone(high, &second);
    client_free(&client);
    engine_destroy(&engine);
}

static void suspended_ones_can_be_cancelled(void **state)
{
    (void)state;
    for (int host = 0; host < 2; host++) {
        struct engine_config config = fixture_config();
        config.sequences_max = 1;
        config.kv_host_bytes = host ? 4 * FIXTURE_CONVERSATION : 0;
        struct engine *engine = fixture_engine(&config);
        struct client client;
        struct client_job *low = NULL, *high = NULL;
        client_setup(&client, engine);
        client.check = true;
        struct engine_request request = fixture_request(fixture_ids(1, 100), 100, 50);
        assert_ok(client_submit(&client, &request, &low));
        for (int i = 0; i < 10; i++)
            client_step(&client);
        request = fixture_request(fixture_ids(2, 100), 100, 20);
        request.priority = 1;
        assert_ok(client_submit(&client, &request, &high));
        client_step(&client);
        engine_cancel(engine, low->job);
        client_step(&client);
        assert_true(low->ended && low->end.status == STATUS_CANCELLED && !high->ended);
        client_run(&client);
        assert_int_equal(high->end.kind, ENGINE_DONE);
        client_free(&client);
        engine_destroy(&engine);
    }
}

/* Kept, suspended and loading alike: what is forgotten is computed again. */
static void the_cache_can_be_forgotten_at_any_time(void **state)
{
    (void)state;
    enum { JOBS = 6 };
    for (int host = 0; host < 2; host++) {
        struct engine_config config = fixture_config();
        struct client client;
        struct client_job *jobs[JOBS];
        struct engine_request requests[JOBS];
        struct engine_pressure pressure;
        config.kv_bytes = 2 * FIXTURE_CONVERSATION;
        config.kv_host_bytes = host ? 2 * FIXTURE_CONVERSATION : 0;
        struct engine *engine = fixture_engine(&config);
        fake_backend.late_polls_max = 4;
        client_setup(&client, engine);
        client.check = true;
        for (int i = 0; i < JOBS; i++) {
            requests[i] = fixture_request(fixture_ids((uint64_t)i, 100), 100, 300);
            requests[i].choices = 1 + (uint32_t)i % 2;
            assert_ok(client_submit(&client, &requests[i], &jobs[i]));
        }
        while (client.ended < JOBS) {
            client_step(&client);
            if (client.steps % 7 == 0)
                engine_forget_cache(engine);
        }
        engine_pressure(engine, &pressure);
        assert_true(pressure.suspended > 0);
        for (int i = 0; i < JOBS; i++)
            assert_same_alone(jobs[i], &requests[i]);
        client_free(&client);
        engine_destroy(&engine);
    }
}

/* Suspended in the middle of its prompt, its KV lost: what is computed again is not scored again. */
static void a_scored_prompt_is_scored_once(void **state)
{
    (void)state;
    struct engine_config config = fixture_config();
    config.kv_bytes = FIXTURE_CONVERSATION;
    struct engine *engine = fixture_engine(&config);
    struct client client;
    struct client_job *low = NULL, *high = NULL;
    client_setup(&client, engine);
    client.check = true;
    struct engine_request first = fixture_request(fixture_ids(1, 600), 600, 10), second;
    first.prompt_logprobs = true;
    first.alternatives = 2;
    assert_ok(client_submit(&client, &first, &low));
    for (int i = 0; i < 5; i++)
        client_step(&client);
    for (uint64_t i = 0; i < 4; i++) {
        second = fixture_request(fixture_ids(2 + i, 600), 600, 20);
        second.priority = 1;
        assert_ok(client_submit(&client, &second, &high));
    }
    client_run(&client);
    assert_int_equal(low->end_order, 5);
    assert_true(fake_backend.tokens_computed > 4 * 619 + 609 + 64); /* it was lost */
    assert_same_alone(low, &first);
    assert_same_alone(high, &second);
    client_free(&client);
    engine_destroy(&engine);
}

/* ---- several choices ---- */

static void choices_share_the_prompt(void **state)
{
    (void)state;
    struct engine *engine = fixture_engine(NULL);
    struct client client;
    client_setup(&client, engine);
    client.check = true;
    struct engine_request request = fixture_request(fixture_ids(3, 150), 150, 30);
    request.sampling.temperature = 1.5f;
    request.choices = 4;
    struct client_job *job = client_ask(&client, &request);
    assert_int_equal(fake_backend.tokens_computed, 150 + 4 * 29);
    assert_int_equal(job->end.prompt_tokens, 150); /* counted once */
    assert_int_equal(job->end.reply_tokens, 4 * 30);
    for (int i = 1; i < 4; i++)
        assert_int_not_equal(memcmp(job->replies[i].ids, job->replies[0].ids, 30 * sizeof(uint32_t)), 0);
    struct engine_request single = request;
    single.choices = 1;
    engine_forget_cache(engine);
    const struct client_job *first =
        client_ask(&client, &single); /* the first choice is what it would be without the others */
    assert_memory_equal(first->replies[0].ids, job->replies[0].ids, 30 * sizeof(uint32_t));
    single.sampling.temperature = request.sampling.temperature = 0; /* greedy: all the same */
    job = client_ask(&client, &request);
    for (int i = 1; i < 4; i++)
        assert_memory_equal(job->replies[i].ids, job->replies[0].ids, 30 * sizeof(uint32_t));
    client_free(&client);
    engine_destroy(&engine);
}

static void more_choices_than_places(void **state)
{
    (void)state;
    for (uint32_t sequences = 1; sequences <= 5; sequences += 2) {
        struct engine_config config = fixture_config();
        struct client client;
        struct client_job *jobs[3];
        struct engine_request requests[3];
        config.sequences_max = sequences;
        config.kv_bytes = 2 * FIXTURE_CONVERSATION;
        struct engine *engine = fixture_engine(&config);
        client_setup(&client, engine);
        client.check = true;
        fake_backend.eos_bonus = 2;
        for (int i = 0; i < 3; i++) {
            requests[i] = fixture_request(fixture_ids((uint64_t)i, 200), 200, 60);
            requests[i].sampling = (struct sampler_options){.temperature = 1.5f};
            requests[i].choices = i == 1 ? 2 : ENGINE_CHOICES_MAX;
            assert_ok(client_submit(&client, &requests[i], &jobs[i]));
        }
        client_run(&client);
        for (int i = 0; i < 3; i++)
            assert_same_alone(jobs[i], &requests[i]);
        client_free(&client);
        engine_destroy(&engine);
    }
}

static void cancel_at_the_fifth(struct client *client, const struct engine_event *event)
{
    if (event->kind == ENGINE_TOKENS && event->choice == 2 && event->first == 4)
        engine_cancel(client->engine, event->job);
}

static void choices_are_cancelled_together(void **state)
{
    (void)state;
    struct engine_config config = fixture_config();
    config.sequences_max = 3; /* one of four waits suspended */
    struct engine *engine = fixture_engine(&config);
    struct client client;
    struct client_job *job = NULL;
    client_setup(&client, engine);
    client.check = true;
    client.on_event = cancel_at_the_fifth;
    struct engine_request request = fixture_request(fixture_ids(3, 150), 150, 30);
    request.choices = 4;
    assert_ok(client_submit(&client, &request, &job));
    client_run(&client);
    assert_int_equal(job->end.status, STATUS_CANCELLED);
    assert_in_range(job->replies[2].count, 5, 6); /* within a step */
    assert_int_equal(job->replies[3].count, 1);
    client.on_event = NULL;
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 149);
    client_free(&client);
    engine_destroy(&engine);
}

/* ---- failing runs ---- */

static void a_corrupt_run_ends_only_its_job(void **state)
{
    (void)state;
    enum { JOBS = 5 };
    for (uint32_t culprit = 0; culprit < JOBS; culprit++)
        for (int late = 0; late < 2; late++) { /* in prefill, in decode */
            struct engine *engine = fixture_engine(NULL);
            struct client client;
            struct client_job *jobs[JOBS];
            struct engine_request requests[JOBS];
            client_setup(&client, engine);
            client.check = true;
            for (int i = 0; i < JOBS; i++) {
                requests[i] = fixture_request(fixture_ids((uint64_t)i, 100), 100, 20);
                requests[i].choices = i == 1 ? 2 : 1;
                assert_ok(client_submit(&client, &requests[i], &jobs[i]));
            }
            fake_backend.fail = STATUS_CORRUPT;
            fake_backend.fail_in = late ? 7 : 1;
            fake_backend.fail_run = culprit;
            while (client.ended == 0)
                client_step(&client);
            fake_backend.fail = STATUS_OK;
            client_run(&client);
            unsigned failed = 0;
            for (int i = 0; i < JOBS; i++) {
                if (jobs[i]->end.kind == ENGINE_FAILED) {
                    assert_int_equal(jobs[i]->end.status, STATUS_CORRUPT);
                    failed++;
                    requests[i].choices = 1; /* what it computed is not found again */
                    if (late)
                        continue;
                    assert_int_equal(client_ask(&client, &requests[i])->end.cached_tokens, 0);
                } else {
                    assert_same_alone(jobs[i], &requests[i]);
                }
            }
            assert_int_equal(failed, 1);
            client_free(&client);
            engine_destroy(&engine);
        }
}

static void another_failure_ends_the_batch_and_no_more(void **state)
{
    (void)state;
    struct engine *engine = fixture_engine(NULL);
    struct client client;
    struct client_job *jobs[3], *next = NULL;
    client_setup(&client, engine);
    client.check = true;
    struct engine_request request = fixture_request(fixture_ids(1, 100), 100, 20);
    for (int i = 0; i < 3; i++)
        assert_ok(client_submit(&client, &request, &jobs[i]));
    fake_backend.fail = STATUS_IO;
    fake_backend.fail_in = 4;
    for (int i = 0; i < 5; i++)
        client_step(&client);
    fake_backend.fail = STATUS_OK;
    for (int i = 0; i < 3; i++)
        assert_true(jobs[i]->ended && jobs[i]->end.status == STATUS_IO);
    assert_ok(client_submit(&client, &request, &next));
    client_run(&client);
    assert_same_alone(next, &request);
    client_free(&client);
    engine_destroy(&engine);
}

/* ---- background work ---- */

static const struct client_job *next_turn(struct client *client, struct talk *talk, uint64_t seed, bool idle)
{
    struct engine_request request = {
        .seed = seed, .seed_given = true, .tokens_max = 40, .sampling = {.temperature = 1.5f, .tokens_min = 20}};
    struct client_job *job = NULL;
    talk_request(talk, &request);
    assert_ok(client_submit(client, &request, &job));
    if (idle)
        client_run(client);
    else
        client_run_jobs(client);
    assert_int_equal(job->end.kind, ENGINE_DONE);
    return job;
}

/* Byte pieces are drawn where the tokenizer would write words: the reply's KV is of no use to the next turn, but for
 * idle time. */
static void idle_time_computes_the_reply_as_it_will_be_read(void **state)
{
    (void)state;
    uint32_t cached[2] = {0}, prompt[2] = {0}, first[2] = {0};
    for (int idle = 0; idle < 2; idle++) {
        static struct talk talk;
        struct engine *engine = fixture_engine(NULL);
        struct client client;
        client_setup(&client, engine);
        client.check = true;
        fake_backend.byte_ids_only = 261;
        talk.count = 0;
        talk_say(&talk, ENGINE_ROLE_USER, "Who's there?", 12);
        const struct client_job *job = next_turn(&client, &talk, 1, idle);
        first[idle] = job->end.prompt_tokens;
        talk_say(&talk, ENGINE_ROLE_ASSISTANT, job->replies[0].text, job->replies[0].text_size);
        talk_say(&talk, ENGINE_ROLE_USER, "Nay, answer me.", 15);
        if (!idle) { /* background work of the last step is not counted */
            job = next_turn(&client, &talk, 2, idle);
        } else {
            assert_false(client_step(&client));
            job = next_turn(&client, &talk, 2, idle);
        }
        cached[idle] = job->end.cached_tokens;
        prompt[idle] = job->end.prompt_tokens;
        client_free(&client);
        engine_destroy(&engine);
    }
    assert_int_equal(prompt[0], prompt[1]);
    assert_true(cached[0] < first[0] + 20 && cached[1] > cached[0] + 5);
    assert_true(cached[1] + 17 > prompt[1]); /* all but the new message: the reply and its end were there */
}

static void idle_work_gives_way(void **state)
{
    (void)state;
    static struct talk talk;
    struct engine_config config = fixture_config();
    config.chunk_tokens = 4;
    struct engine *engine = fixture_engine(&config);
    struct client client;
    struct client_job *job = NULL;
    char *text = NULL;
    size_t size;
    FILE *trace = open_memstream(&text, &size);
    client_setup(&client, engine);
    client.check = true;
    fake_backend.byte_ids_only = 261;
    talk.count = 0;
    talk_say(&talk, ENGINE_ROLE_USER, "Long live the king!", 19);
    (void)next_turn(&client, &talk, 1, false);
    client_step(&client); /* background work begins */
    engine_trace_plans(engine, trace);
    struct engine_request request = fixture_request(fixture_ids(1, 100), 100, 1);
    assert_ok(client_submit(&client, &request, &job));
    client_step(&client);
    fflush(trace);
    assert_non_null(strstr(text, "drop 0\nadmit "));
    client_run(&client);
    assert_same_alone(job, &request);
    fclose(trace);
    free(text);
    client_free(&client);
    engine_destroy(&engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequences_run_together),
        cmocka_unit_test(a_long_prompt_does_not_stop_the_others),
        cmocka_unit_test(plans_can_be_read),
        cmocka_unit_test(suspects_compute_their_prompts_alone),
        cmocka_unit_test(starts_are_told_in_time),
        cmocka_unit_test(preempted_with_a_host_tier),
        cmocka_unit_test(preempted_without_a_host_tier),
        cmocka_unit_test(a_higher_priority_takes_the_only_place),
        cmocka_unit_test(suspended_ones_can_be_cancelled),
        cmocka_unit_test(the_cache_can_be_forgotten_at_any_time),
        cmocka_unit_test(a_scored_prompt_is_scored_once),
        cmocka_unit_test(choices_share_the_prompt),
        cmocka_unit_test(more_choices_than_places),
        cmocka_unit_test(choices_are_cancelled_together),
        cmocka_unit_test(a_corrupt_run_ends_only_its_job),
        cmocka_unit_test(another_failure_ends_the_batch_and_no_more),
        cmocka_unit_test(idle_time_computes_the_reply_as_it_will_be_read),
        cmocka_unit_test(idle_work_gives_way),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
