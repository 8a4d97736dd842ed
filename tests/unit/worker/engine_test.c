/* The engine's life of a request over the fake backend: what the cache saves, order, deadlines, cancel, refusals,
 * limits, progress. Batches, memory and several choices are in engine_batch_test.c, text in engine_reply_test.c. */
#include "tests/unit/worker/unit.h"
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/unit/worker/engine_fixture.h"

enum { CONTEXT = FIXTURE_CONTEXT };

static struct engine *make_engine(uint32_t sequences, uint32_t chunk_tokens)
{
    struct engine_config config = fixture_config();
    config.sequences_max = sequences;
    config.chunk_tokens = chunk_tokens;
    return fixture_engine(&config);
}

/* ---- the cache ---- */

static void the_next_turn_computes_only_new_tokens(void **state)
{
    (void)state;
    struct engine *engine = make_engine(8, 64);
    struct client client;
    uint32_t ids[CONTEXT];
    client_setup(&client, engine);
    client.check = true;
    memcpy(ids, fixture_ids(1, 300), 300 * sizeof ids[0]);
    struct engine_request request = fixture_request(ids, 100, 20);
    struct client_job *job = client_ask(&client, &request);
    assert_int_equal(job->end.cached_tokens, 0);
    assert_int_equal(job->end.prompt_tokens, 100);
    assert_int_equal(job->replies[0].count, 20);
    assert_int_equal(job->end.finish[0], ENGINE_FINISH_LENGTH);
    assert_int_equal(fake_backend.tokens_computed, 100 + 19); /* the last drawn token needs no KV */
    memcpy(ids + 100, job->replies[0].ids, 20 * sizeof ids[0]);
    fake_backend.tokens_computed = 0;
    request = fixture_request(ids, 150, 1);
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 119);
    assert_int_equal(fake_backend.tokens_computed, 150 - 119);
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 149); /* the same again: all but the last */
    request.tenant = "other";
    request.tenant_size = 5;
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 0); /* tenants share nothing */
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 149);
    request.tenant_size = 0;
    engine_forget_cache(engine);
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 0);
    client_free(&client);
    engine_destroy(&engine);
}

static void cancelled_and_failed_jobs_leave_their_kv(void **state)
{
    (void)state;
    struct engine *engine = make_engine(8, 64);
    struct client client;
    uint32_t ids[CONTEXT];
    struct client_job *job = NULL;
    client_setup(&client, engine);
    client.check = true;
    memcpy(ids, fixture_ids(2, 330), 330 * sizeof ids[0]);
    struct engine_request request = fixture_request(ids, 300, 100);

    assert_ok(client_submit(&client, &request, &job)); /* cancelled while waiting */
    engine_cancel(engine, request.job);
    assert_true(client_step(&client));
    assert_int_equal(job->end.status, STATUS_CANCELLED);
    assert_int_equal(fake_backend.forwards, 0);
    engine_cancel(engine, request.job); /* unknown by now: ignored */
    assert_false(client_step(&client));

    assert_ok(client_submit(&client, &request, &job)); /* in the second chunk of prefill */
    client_step(&client);
    client_step(&client);
    engine_cancel(engine, request.job);
    client_step(&client);
    assert_true(job->ended && job->end.status == STATUS_CANCELLED);
    assert_int_equal(fake_backend.tokens_computed, 128);

    assert_ok(client_submit(&client, &request, &job)); /* in decode */
    for (int i = 0; i < 3 + 10; i++)
        client_step(&client);
    assert_int_equal(fake_backend.tokens_computed, 300 + 10);
    assert_int_equal(job->replies[0].count, 11);
    engine_cancel(engine, request.job);
    client_step(&client);
    assert_true(job->ended && job->end.status == STATUS_CANCELLED);

    memcpy(ids + 300, job->replies[0].ids, 11 * sizeof ids[0]);
    fake_backend.fail = STATUS_IO; /* fails in decode, not corrupt */
    fake_backend.fail_in = 3;
    request = fixture_request(ids, 320, 50);
    assert_ok(client_submit(&client, &request, &job));
    client_run(&client);
    assert_int_equal(job->end.status, STATUS_IO);
    assert_string_equal(job->detail, "the fake backend was told to fail");
    fake_backend.fail = STATUS_OK;
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 319);
    client_free(&client);
    engine_destroy(&engine);
}

/* ---- limits and order ---- */

static void deadlines(void **state)
{
    (void)state;
    struct engine *engine = make_engine(1, 1);
    struct client client;
    struct client_job *waiting = NULL, *running = NULL, *fine = NULL;
    client_setup(&client, engine);
    struct engine_request request = fixture_request(fixture_ids(4, 300), 300, 300);
    request.deadline_ms = clock_now_ms() + 30;
    assert_ok(client_submit(&client, &request, &running));
    request.deadline_ms = clock_now_ms() + 10;
    assert_ok(client_submit(&client, &request, &waiting));
    request.deadline_ms = clock_now_ms() + 600000;
    request.tokens_max = 1;
    assert_ok(client_submit(&client, &request, &fine));
    assert_true(client_step(&client));
    while (clock_now_ms() < request.deadline_ms - 600000 + 35)
        usleep(1000);
    client_run(&client);
    assert_int_equal(running->end.status, STATUS_TIMEOUT);
    assert_int_equal(waiting->end.status, STATUS_TIMEOUT);
    assert_int_equal(fine->end.kind, ENGINE_DONE);
    assert_true(waiting->replies[0].count == 0 && fake_backend.tokens_computed <= 301);
    client_free(&client);
    engine_destroy(&engine);
}

static void the_queue_is_bounded_and_ordered(void **state)
{
    (void)state;
    enum { JOBS = 8 };
    struct engine_config config = fixture_config();
    config.sequences_max = 1;
    config.queue_requests_max = JOBS;
    struct engine *engine = fixture_engine(&config);
    struct client client;
    struct client_job *jobs[JOBS] = {NULL};
    static const int32_t priorities[JOBS] = {0, 0, 5, -100, 5, 100, 0, -100};
    static const unsigned order[JOBS] = {4, 5, 2, 7, 3, 1, 6, 8};
    struct engine_progress progress;
    client_setup(&client, engine);
    struct engine_request request = fixture_request(fixture_ids(5, 100), 100, 3);
    for (int i = 0; i < JOBS; i++) {
        request.priority = priorities[i];
        assert_ok(client_submit(&client, &request, &jobs[i]));
    }
    engine_progress(engine, &progress);
    assert_int_equal(progress.queued_requests, JOBS);
    assert_int_equal(progress.queued_tokens, 100 * JOBS);
    request.job = 1000;
    uint32_t wait_ms[3] = {0};
    for (int i = 0; i < 3; i++)
        assert_int_equal(engine_submit(engine, &request, &wait_ms[i]), STATUS_AGAIN);
    assert_true(wait_ms[0] > 0 && wait_ms[1] > wait_ms[0] &&
                wait_ms[2] > wait_ms[1]); /* they do not all come back at once */
    assert_int_equal(engine_submit(engine, &request, NULL), STATUS_AGAIN);
    client_run(&client);
    for (int i = 0; i < JOBS; i++)
        assert_int_equal(jobs[i]->end_order, order[i]);
    engine_progress(engine, &progress);
    assert_true(progress.queued_requests == 0 && progress.running_requests == 0 && progress.queued_tokens == 0 &&
                progress.running_tokens == 0);
    assert_true(progress.step_started_ms == 0 && progress.steps > 0 &&
                progress.kv_tokens_max == engine_info(engine)->kv_tokens_max);
    assert_true(progress.kv_tokens_used > 0 && progress.kv_tokens_used <= progress.kv_tokens_max);
    client_free(&client);
    engine_destroy(&engine);
}

/* Many wait: heaps, cancels in any order, deadlines. Whatever the order of arrival, the best goes first. */
static void a_long_queue(void **state)
{
    (void)state;
    enum { JOBS = 3000 };
    struct engine_config config = fixture_config();
    config.sequences_max = 1;
    config.queue_requests_max = JOBS;
    struct engine *engine = fixture_engine(&config);
    struct client client;
    static struct client_job *jobs[JOBS];
    static int32_t priorities[JOBS];
    uint64_t rng = test_seed(1);
    unsigned cancelled = 0;
    client_setup(&client, engine);
    struct engine_request request = fixture_request(fixture_ids(6, 3), 3, 1);
    const uint64_t now_ms = clock_now_ms();
    for (int i = 0; i < JOBS; i++) {
        request.priority = priorities[i] = (int32_t)rng_below(&rng, 5);
        request.deadline_ms = rng_below(&rng, 3) == 0 ? now_ms + 3600000 + rng_below(&rng, 1000) : 0;
        assert_ok(client_submit(&client, &request, &jobs[i]));
        if (rng_below(&rng, 4) == 0) {
            engine_cancel(engine, jobs[rng_below(&rng, (uint32_t)i + 1)]->job);
            cancelled++;
        }
    }
    client_run(&client);
    const struct client_job *last[5] = {NULL};
    unsigned done[5] = {0}, failed = 0;
    for (int i = 0; i < JOBS; i++) {
        if (jobs[i]->end.kind == ENGINE_FAILED) {
            assert_int_equal(jobs[i]->end.status, STATUS_CANCELLED);
            failed++;
            continue;
        }
        const int32_t p = priorities[i];
        assert_true(last[p] == NULL || last[p]->end_order < jobs[i]->end_order); /* arrival within a priority */
        last[p] = jobs[i];
        done[p]++;
    }
    assert_true(failed > 0 && failed <= cancelled && done[0] + done[1] + done[2] + done[3] + done[4] + failed == JOBS);
    unsigned order = failed;
    for (int p = 4; p >= 0; p--) {
        order += done[p];
        assert_int_equal(last[p]->end_order, order);
    }
    client_free(&client);
    engine_destroy(&engine);
}

static void bad_requests_are_refused(void **state)
{
    (void)state;
    struct engine *engine = make_engine(8, 64);
    struct client client;
    struct client_job *job = NULL;
    client_setup(&client, engine);
    uint32_t ids[CONTEXT + 1];
    memcpy(ids, fixture_ids(6, CONTEXT + 1), sizeof ids);
    struct engine_request good = fixture_request(ids, 10, 1), bad;
    const uint32_t outside = 4096;
    const float value = 1;
#define REFUSED(want, ...)                                                                                             \
    do {                                                                                                               \
        bad = good;                                                                                                    \
        __VA_ARGS__;                                                                                                   \
        assert_int_equal(client_submit(&client, &bad, &job), want);                                                    \
    } while (0)
    REFUSED(STATUS_INVALID, bad.sampling.temperature = -0.5f);
    REFUSED(STATUS_INVALID, bad.sampling.temperature = NAN);
    REFUSED(STATUS_INVALID, bad.sampling.temperature = INFINITY);
    REFUSED(STATUS_INVALID, bad.sampling.top_p = 1.5f);
    REFUSED(STATUS_INVALID, bad.sampling.bias_ids = &outside, bad.sampling.bias_values = &value,
            bad.sampling.bias_count = 1);
    REFUSED(STATUS_INVALID, bad.stop_ids = &outside, bad.stop_id_count = 1);
    REFUSED(STATUS_INVALID, bad.stop_ids = ids, bad.stop_id_count = SAMPLER_STOP_IDS_MAX + 1);
    REFUSED(STATUS_INVALID, bad.choices = ENGINE_CHOICES_MAX + 1);
    REFUSED(STATUS_INVALID, bad.logprobs = true, bad.alternatives = SAMPLER_LOGPROBS_MAX + 1);
    const char *empty = "";
    const size_t none = 0;
    REFUSED(STATUS_INVALID, bad.stops = &empty, bad.stop_sizes = &none, bad.stop_count = 1);
    REFUSED(STATUS_LIMIT, bad.prompt_id_count = CONTEXT);
    assert_non_null(strstr(status_detail(), "has 640 tokens, at most 639"));
    REFUSED(STATUS_INVALID, bad = (struct engine_request){0});
    const struct engine_message message = {.text = "a\xFF", .text_size = 2};
    REFUSED(STATUS_INVALID, bad = (struct engine_request){.messages = &message, .message_count = 1});
    REFUSED(STATUS_INVALID, bad.messages = &message, bad.message_count = 1);
    ids[9] = 4096;
    REFUSED(STATUS_INVALID, (void)0);
    ids[9] = 4095;
    assert_ok(client_submit(&client, &good, &job));
    good.job = job->job;
    assert_int_equal(engine_submit(engine, &good, NULL), STATUS_EXISTS);
    assert_false(client.ended);
    client_run(&client);
    client_free(&client);
    engine_destroy(&engine);
}

static void bad_configurations_are_refused(void **state)
{
    (void)state;
    struct engine *engine = NULL;
    const struct engine_config good = fixture_config();
    struct engine_config bad;
#define NO_ENGINE(want, change)                                                                                        \
    do {                                                                                                               \
        bad = good;                                                                                                    \
        change;                                                                                                        \
        assert_int_equal(engine_create(&bad, &engine), want);                                                          \
        assert_null(engine);                                                                                           \
    } while (0)
    NO_ENGINE(STATUS_INVALID, bad.chunk_tokens = 0);
    NO_ENGINE(STATUS_INVALID, bad.chunk_tokens = 4097);
    NO_ENGINE(STATUS_INVALID, bad.batch_tokens = 63);
    NO_ENGINE(STATUS_INVALID, bad.batch_tokens = 16385);
    NO_ENGINE(STATUS_INVALID, bad.sequences_max = 1025);
    NO_ENGINE(STATUS_INVALID, bad.step_ms_max = 3600001);
    NO_ENGINE(STATUS_INVALID, bad.queue_requests_max = 0);
    NO_ENGINE(STATUS_INVALID, bad.queue_requests_max = 65537);
    NO_ENGINE(STATUS_INVALID, bad.threads = 65);
    NO_ENGINE(STATUS_INVALID, bad.model_dir = NULL);
    NO_ENGINE(STATUS_LIMIT, bad.kv_bytes = FIXTURE_CONVERSATION / 2);
    bad = good;
    bad.model_dir = "/nonexistent";
    assert_int_not_equal(engine_create(&bad, &engine), STATUS_OK);
    assert_null(engine);
    assert_ok(engine_create(&good, &engine));
    const struct engine_info *info = engine_info(engine);
    assert_int_equal(info->context_tokens_max, CONTEXT);
    assert_true(info->kv_tokens_max >= CONTEXT);
    assert_int_equal(info->kv_bytes_per_token, FIXTURE_PAGE / 64);
    assert_int_not_equal(memcmp(info->weights_digest, info->numerics_id, 32), 0);
    engine_destroy(&engine);
    engine_destroy(&engine);
}

/* ---- sinks and threads ---- */

static const uint32_t *chain_ids;
static unsigned chain_left;

static void submit_in_sink(struct client *client, const struct engine_event *event)
{
    struct client_job *job = NULL;
    if (event->kind == ENGINE_TOKENS || chain_left == 0)
        return;
    chain_left--;
    struct engine_request request = fixture_request(chain_ids, 20, 2);
    assert_ok(client_submit(client, &request, &job));
    if (chain_left % 3 == 0)
        engine_cancel(client->engine, job->job);
}

static void a_sink_may_submit_and_cancel(void **state)
{
    (void)state;
    struct engine *engine = make_engine(8, 64);
    struct client client;
    client_setup(&client, engine);
    client.on_event = submit_in_sink;
    client.check = true;
    chain_ids = fixture_ids(9, 20);
    chain_left = 30;
    struct engine_request request = fixture_request(chain_ids, 20, 2);
    client_ask(&client, &request);
    assert_int_equal(client.ended, 31);
    client_free(&client);
    engine_destroy(&engine);
}

/* The number of a job is free again when its end is told. */
static void resubmit(void *user, const struct engine_event *event)
{
    struct engine *engine = user;
    if (event->kind != ENGINE_DONE || chain_left == 0)
        return;
    chain_left--;
    struct engine_request request = fixture_request(chain_ids, 20, 2);
    request.job = event->job;
    assert_ok(engine_submit(engine, &request, NULL));
}

static void a_number_is_free_again_at_the_end(void **state)
{
    (void)state;
    struct engine *engine = make_engine(8, 64);
    chain_ids = fixture_ids(10, 20);
    chain_left = 5;
    struct engine_request request = fixture_request(chain_ids, 20, 2);
    request.job = 77;
    assert_ok(engine_submit(engine, &request, NULL));
    while (engine_step(engine, resubmit, engine))
        ;
    assert_int_equal(chain_left, 0);
    engine_destroy(&engine);
}

/* Whoever submits again at once what is late already gets an answer a step, and the step an end. */
static void resubmit_late(void *user, const struct engine_event *event)
{
    struct engine *engine = user;
    struct engine_request request = fixture_request(chain_ids, 20, 2);
    if (event->kind != ENGINE_FAILED)
        return; /* it was let in; the next step finds it late */
    assert_int_equal(event->status, STATUS_TIMEOUT);
    chain_left++;
    request.job = event->job;
    request.deadline_ms = 1;
    assert_ok(engine_submit(engine, &request, NULL));
}

static void a_sink_cannot_hold_a_step(void **state)
{
    (void)state;
    struct engine *engine = make_engine(8, 64);
    chain_ids = fixture_ids(11, 20);
    chain_left = 0;
    struct engine_request request = fixture_request(chain_ids, 20, 2);
    request.job = 7;
    request.deadline_ms = 1;
    assert_ok(engine_submit(engine, &request, NULL));
    for (unsigned step = 1; step <= 5; step++) {
        assert_true(engine_step(engine, resubmit_late, engine));
        assert_int_equal(chain_left, step);
    }
    engine_destroy(&engine);
}

struct watch {
    const struct engine *engine;
    atomic_bool stop;
    _Atomic uint64_t looks;
    bool sane;
};

static void *watch_progress(void *user)
{
    struct watch *watch = user;
    uint64_t steps = 0;
    while (!atomic_load(&watch->stop)) {
        struct engine_progress progress;
        engine_progress(watch->engine, &progress);
        watch->sane = watch->sane && progress.steps >= steps && progress.kv_tokens_used <= progress.kv_tokens_max &&
                      progress.queued_requests <= 8;
        steps = progress.steps;
        watch->looks++;
    }
    return NULL;
}

static void progress_is_readable_from_another_thread(void **state)
{
    (void)state;
    struct engine *engine = make_engine(8, 7);
    struct client client;
    struct watch watch = {.engine = engine, .sane = true};
    pthread_t thread;
    client_setup(&client, engine);
    assert_int_equal(pthread_create(&thread, NULL, watch_progress, &watch), 0);
    while (atomic_load(&watch.looks) == 0) /* it has begun */
        usleep(100);
    for (int round = 0; round < 20; round++) {
        struct engine_request request = fixture_request(fixture_ids((uint64_t)round, 200), 200, 50);
        client_ask(&client, &request);
        client_reset(&client);
    }
    atomic_store(&watch.stop, true);
    pthread_join(thread, NULL);
    assert_true(watch.sane);
    struct engine_progress progress;
    engine_progress(engine, &progress);
    assert_true(progress.steps >= 20 * (200 / 7 + 50 - 1) && progress.step_median_us < 1000000);
    client_free(&client);
    engine_destroy(&engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_turn_computes_only_new_tokens),
        cmocka_unit_test(cancelled_and_failed_jobs_leave_their_kv),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(the_queue_is_bounded_and_ordered),
        cmocka_unit_test(a_long_queue),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(bad_configurations_are_refused),
        cmocka_unit_test(a_sink_may_submit_and_cancel),
        cmocka_unit_test(a_number_is_free_again_at_the_end),
        cmocka_unit_test(a_sink_cannot_hold_a_step),
        cmocka_unit_test(progress_is_readable_from_another_thread),
    };
    return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
