/* The engine over the fake backend (fake_backend.h), whose tokens betray every wrong KV page; and the known answer over
 * the CPU backend. */
#include "tests/unit/worker/unit.h"
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/hash.h"
#include "tests/unit/worker/engine_client.h"
#include "tests/unit/worker/fake_backend.h"
#include "tests/unit/worker/random_model.h"
#include "worker/engine/model.h"

enum { CONTEXT = 640, PAGES = CONTEXT / BACKEND_PAGE_TOKENS, FAKE_PAGE = 512 };
static char model_dir[RANDOM_MODEL_PATH_MAX];

static int make_model(void **state)
{
    (void)state;
    struct random_model shape = random_model_small();
    shape.vocab_size = 4096;
    shape.hidden_size = 128;
    shape.context_tokens = CONTEXT;
    shape.tokenizer = true;
    assert_ok(random_model_create(&shape, model_dir));
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    random_model_remove(model_dir);
    return 0;
}

static struct engine *make_engine(uint32_t pages, uint32_t chunk_tokens)
{
    struct engine *engine = NULL;
    const struct engine_config config = {
        .model_dir = model_dir,
        .kv_bytes = (uint64_t)pages * FAKE_PAGE,
        .chunk_tokens = chunk_tokens,
        .queue_requests_max = 8,
        .skip_known_answer = true,
        .backend = &fake_backend_ops,
    };
    fake_backend = (struct fake_backend_state){0};
    assert_ok(engine_create(&config, &engine));
    return engine;
}

static struct engine_request ids_request(const uint32_t *ids, unsigned count, uint32_t tokens_max)
{
    return (struct engine_request){.prompt_ids = ids, .prompt_id_count = count, .tokens_max = tokens_max};
}

static uint32_t *some_ids(uint64_t seed, unsigned count)
{
    static uint32_t ids[2 * CONTEXT];
    for (unsigned i = 0; i < count; i++)
        ids[i] = 5 + rng_below(&seed, 4091);
    return ids;
}

/* ---- equality ---- */

static void say_random(struct talk *talk, enum engine_role role, uint64_t *rng)
{
    static const char *const words[] = {"the ",   "king ", "\n",           "Who's there? ", "\xC3\xA9\xF0\x9F\x99\x82 ",
                                        "<turn>", "no ",   "a long road. "};
    char text[400];
    size_t size = 0;
    for (uint32_t n = rng_below(rng, 12); n > 0; n--)
        size += (size_t)snprintf(text + size, sizeof text - size, "%s", words[rng_below(rng, 8)]);
    talk_say(talk, role, text, size);
}

/* One step of a user's life: next turn, retry, edit, branch back. */
static void change_talk(struct talk *talk, const struct client_job *reply, uint64_t *rng)
{
    const uint32_t what = rng_below(rng, 10);
    if (what < 6 && reply != NULL && talk->count + 2 < TALK_MESSAGES) {
        talk_say(talk, ENGINE_ROLE_ASSISTANT, reply->text, reply->text_size);
        say_random(talk, ENGINE_ROLE_USER, rng);
    } else if (what == 6) {
        const unsigned edited = rng_below(rng, talk->count), count = talk->count;
        talk->count = edited;
        say_random(talk, talk->messages[edited].role, rng);
        talk->count = count;
    } else if (what == 7 && talk->count > 1) {
        talk->count = 1 + rng_below(rng, talk->count - 1);
    } /* else a retry */
}

static void start_talk(struct talk *talk, uint64_t *rng)
{
    talk->count = 0;
    talk_say(talk, ENGINE_ROLE_SYSTEM, "Elsinore. A platform before the Castle.", 39);
    say_random(talk, ENGINE_ROLE_USER, rng);
}

/* Cold equals warm: several conversations of two tenants on a warm engine, each reply repeated on an engine that
 * forgets. */
static void equal(uint32_t warm_chunk, uint32_t cold_chunk, uint32_t warm_pages, uint32_t byte_ids_only,
                  unsigned rounds)
{
    enum { TALKS = 4 };
    static struct talk talks[TALKS];
    struct client warm, cold;
    uint64_t rng = test_seed(warm_chunk * 1000003 + cold_chunk), cached = 0;
    const struct client_job *replies[TALKS] = {NULL};
    static struct client_job last[TALKS];
    struct engine *warm_engine = make_engine(warm_pages, warm_chunk), *cold_engine = make_engine(PAGES, cold_chunk);
    client_setup(&warm, warm_engine);
    client_setup(&cold, cold_engine);
    warm.check = true;
    fake_backend.byte_ids_only = byte_ids_only;
    fake_backend.eos_bonus = byte_ids_only ? 20 : 3;
    for (int t = 0; t < TALKS; t++)
        start_talk(&talks[t], &rng);
    for (unsigned round = 0; round < rounds; round++) {
        const uint32_t t = rng_below(&rng, TALKS);
        struct engine_request request = {
            .temperature = round % 2 ? 1.5f : 0, .seed = rng_next(&rng), .seed_given = true};
        request.tenant = t < 2 ? "one" : "two";
        request.tenant_size = 3;
        request.tokens_max = 1 + rng_below(&rng, 60);
        change_talk(&talks[t], replies[t], &rng);
        talk_request(&talks[t], &request);
        struct client_job *job = NULL;
        const enum status st = client_submit(&warm, &request, &job);
        if (st == STATUS_LIMIT) {
            start_talk(&talks[t], &rng);
            replies[t] = NULL;
            continue;
        }
        assert_ok(st);
        client_run(&warm);
        engine_forget_cache(cold_engine);
        struct client_job *other = client_ask(&cold, &request);
        assert_int_equal(other->end.cached_tokens, 0);
        assert_same_reply(job, other);
        cached += job->end.cached_tokens;
        last[t] = *job;
        replies[t] = &last[t];
        client_reset(&warm);
        client_reset(&cold);
    }
    assert_true(cached > 20 * rounds);
    client_free(&warm);
    client_free(&cold);
    engine_destroy(&warm_engine);
    engine_destroy(&cold_engine);
}

static void cold_equals_warm(void **state)
{
    (void)state;
    static const uint32_t chunks[][2] = {{1, 64}, {17, 1}, {64, 17}, {1024, 64}, {100, 1024}};
    for (int c = 0; c < 5; c++)
        equal(chunks[c][0], chunks[c][1], 8 * PAGES, 0, 150);
    equal(64, 64, 4 * PAGES, 261, 100); /* byte pieces: half characters everywhere */
}

static void cold_equals_warm_in_a_tiny_arena(void **state)
{
    (void)state;
    equal(17, 1024, PAGES, 0, 300); /* one conversation at full context: evictions all the time */
    equal(64, 1024, PAGES + 3, 0, 300);
}

/* ---- the cache ---- */

static void the_next_turn_computes_only_new_tokens(void **state)
{
    (void)state;
    struct engine *engine = make_engine(4 * PAGES, 64);
    struct client client;
    uint32_t ids[CONTEXT];
    client_setup(&client, engine);
    memcpy(ids, some_ids(1, 300), sizeof ids);
    struct engine_request request = ids_request(ids, 100, 20);
    struct client_job *job = client_ask(&client, &request);
    assert_int_equal(job->end.cached_tokens, 0);
    assert_int_equal(job->end.prompt_tokens, 100);
    assert_int_equal(job->count, 20);
    assert_int_equal(job->end.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(fake_backend.tokens_computed, 100 + 19); /* the last drawn token needs no KV */
    memcpy(ids + 100, job->ids, 20 * sizeof ids[0]);
    fake_backend.tokens_computed = 0;
    request = ids_request(ids, 150, 1);
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
    struct engine *engine = make_engine(4 * PAGES, 50);
    struct client client;
    uint32_t ids[CONTEXT];
    struct client_job *job = NULL;
    client_setup(&client, engine);
    client.check = true;
    memcpy(ids, some_ids(2, 300), sizeof ids);
    struct engine_request request = ids_request(ids, 300, 100);

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
    assert_int_equal(fake_backend.tokens_computed, 100);

    assert_ok(client_submit(&client, &request, &job)); /* in decode */
    for (int i = 0; i < 4 + 10; i++)
        client_step(&client);
    assert_int_equal(fake_backend.tokens_computed, 300 + 10);
    assert_int_equal(job->count, 11);
    engine_cancel(engine, request.job);
    client_step(&client);
    assert_true(job->ended && job->end.status == STATUS_CANCELLED);

    memcpy(ids + 300, job->ids, 11 * sizeof ids[0]);
    fake_backend.fail = STATUS_IO; /* fails in decode, not corrupt */
    fake_backend.fail_in = 3;
    request = ids_request(ids, 320, 50);
    assert_ok(client_submit(&client, &request, &job));
    client_run(&client);
    assert_int_equal(job->end.status, STATUS_IO);
    assert_string_equal(job->detail, "the fake backend was told to fail");
    fake_backend.fail = STATUS_OK;
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 319);

    fake_backend.fail = STATUS_CORRUPT;
    fake_backend.fail_in = 1;
    const uint32_t *other = some_ids(3, 200);
    request = ids_request(other, 200, 5);
    assert_ok(client_submit(&client, &request, &job));
    client_run(&client);
    assert_int_equal(job->end.status, STATUS_CORRUPT);
    fake_backend.fail = STATUS_OK;
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 0);
    client_free(&client);
    engine_destroy(&engine);
}

/* ---- limits and order ---- */

static void deadlines(void **state)
{
    (void)state;
    struct engine *engine = make_engine(4 * PAGES, 1);
    struct client client;
    struct client_job *waiting = NULL, *running = NULL, *fine = NULL;
    client_setup(&client, engine);
    struct engine_request request = ids_request(some_ids(4, 300), 300, 300);
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
    assert_true(waiting->count == 0 && fake_backend.tokens_computed <= 301);
    client_free(&client);
    engine_destroy(&engine);
}

static void the_queue_is_bounded_and_ordered(void **state)
{
    (void)state;
    struct engine *engine = make_engine(4 * PAGES, 64);
    struct client client;
    struct client_job *jobs[9] = {NULL};
    static const int32_t priorities[8] = {0, 0, 5, -100, 5, 100, 0, -100};
    static const unsigned order[8] = {4, 5, 2, 7, 3, 1, 6, 8};
    struct engine_progress progress;
    client_setup(&client, engine);
    struct engine_request request = ids_request(some_ids(5, 100), 100, 3);
    for (int i = 0; i < 8; i++) {
        request.priority = priorities[i];
        assert_ok(client_submit(&client, &request, &jobs[i]));
    }
    engine_progress(engine, &progress);
    assert_int_equal(progress.queued_requests, 8);
    assert_int_equal(progress.queued_tokens, 800);
    assert_int_equal(client_submit(&client, &request, &jobs[8]), STATUS_AGAIN);
    client_run(&client);
    for (int i = 0; i < 8; i++)
        assert_int_equal(jobs[i]->end_order, order[i]);
    engine_progress(engine, &progress);
    assert_true(progress.queued_requests == 0 && progress.running_requests == 0 && progress.queued_tokens == 0 &&
                progress.running_tokens == 0);
    assert_true(progress.step_started_ms == 0 && progress.steps > 0 && progress.kv_tokens_max == 4 * CONTEXT);
    assert_true(progress.kv_tokens_used >= 100 && progress.kv_tokens_used <= progress.kv_tokens_max);
    client_free(&client);
    engine_destroy(&engine);
}

static void bad_requests_are_refused(void **state)
{
    (void)state;
    struct engine *engine = make_engine(PAGES, 64);
    struct client client;
    struct client_job *job = NULL;
    client_setup(&client, engine);
    uint32_t *ids = some_ids(6, CONTEXT + 1);
    struct engine_request good = ids_request(ids, 10, 1), bad;
    static const float temperatures[] = {-0.5f, 100.5f, 1.0f / 0.0f, -1.0f / 0.0f, 0.0f / 0.0f};
    for (int i = 0; i < 5; i++) {
        bad = good;
        bad.temperature = temperatures[i];
        assert_int_equal(client_submit(&client, &bad, &job), STATUS_INVALID);
    }
    bad = good;
    bad.prompt_id_count = CONTEXT;
    assert_int_equal(client_submit(&client, &bad, &job), STATUS_LIMIT);
    assert_non_null(strstr(status_detail(), "has 640 tokens, at most 639"));
    bad = (struct engine_request){0};
    assert_int_equal(client_submit(&client, &bad, &job), STATUS_INVALID);
    const struct engine_message message = {.text = "a\xFF", .text_size = 2};
    bad = (struct engine_request){.messages = &message, .message_count = 1};
    assert_int_equal(client_submit(&client, &bad, &job), STATUS_INVALID);
    bad.prompt_ids = ids;
    bad.prompt_id_count = 1;
    assert_int_equal(client_submit(&client, &bad, &job), STATUS_INVALID);
    ids[9] = 4096;
    assert_int_equal(client_submit(&client, &good, &job), STATUS_INVALID);
    ids[9] = 4095;
    assert_ok(client_submit(&client, &good, &job));
    good.job = job->job;
    assert_int_equal(engine_submit(engine, &good), STATUS_EXISTS);
    assert_false(client.ended);
    client_run(&client);
    client_free(&client);
    engine_destroy(&engine);
}

static void bad_configurations_are_refused(void **state)
{
    (void)state;
    struct engine *engine = NULL;
    const struct engine_config good = {.model_dir = model_dir,
                                       .kv_bytes = PAGES * FAKE_PAGE,
                                       .chunk_tokens = 1,
                                       .queue_requests_max = 1,
                                       .skip_known_answer = true,
                                       .backend = &fake_backend_ops};
    struct engine_config bad = good;
    bad.chunk_tokens = 0;
    assert_int_equal(engine_create(&bad, &engine), STATUS_INVALID);
    bad.chunk_tokens = 1025;
    assert_int_equal(engine_create(&bad, &engine), STATUS_INVALID);
    bad = good;
    bad.queue_requests_max = 0;
    assert_int_equal(engine_create(&bad, &engine), STATUS_INVALID);
    bad = good;
    bad.kv_bytes--;
    assert_int_equal(engine_create(&bad, &engine), STATUS_LIMIT);
    bad = good;
    bad.model_dir = "/nonexistent";
    assert_int_not_equal(engine_create(&bad, &engine), STATUS_OK);
    assert_null(engine);
    assert_ok(engine_create(&good, &engine));
    const struct engine_info *info = engine_info(engine);
    assert_int_equal(info->context_tokens_max, CONTEXT);
    assert_int_equal(info->kv_tokens_max, CONTEXT);
    assert_int_equal(info->kv_bytes_per_token, FAKE_PAGE / BACKEND_PAGE_TOKENS);
    assert_int_not_equal(memcmp(info->weights_digest, info->numerics_id, 32), 0);
    engine_destroy(&engine);
    engine_destroy(&engine);
}

/* ---- replies ---- */

static void replies_stop_or_fill_the_context(void **state)
{
    (void)state;
    struct engine *engine = make_engine(PAGES, 64);
    struct client client;
    client_setup(&client, engine);
    struct engine_request request = ids_request(some_ids(7, CONTEXT), 600, 0);
    struct client_job *job = client_ask(&client, &request);
    assert_int_equal(job->end.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(job->count, CONTEXT - 600);
    request.prompt_id_count = CONTEXT - 1;
    request.tokens_max = 1000;
    assert_int_equal(client_ask(&client, &request)->count, 1);
    fake_backend.eos_bonus = 1000;
    job = client_ask(&client, &request);
    assert_int_equal(job->end.finish, ENGINE_FINISH_STOP); /* <eos> is not released and not counted */
    assert_int_equal(job->count, 0);
    client_free(&client);
    engine_destroy(&engine);
}

static void control_ids_are_never_drawn(void **state)
{
    (void)state;
    struct engine *engine = make_engine(PAGES, 64);
    struct client client;
    client_setup(&client, engine);
    fake_backend.eos_bonus = -1000;
    for (int round = 0; round < 200; round++) { /* hot: each of 4,096 ids is about as likely */
        struct engine_request request = ids_request(some_ids((uint64_t)round, 5), 5, 100);
        request.temperature = 100;
        request.seed_given = true;
        request.seed = (uint64_t)round;
        const struct client_job *job = client_ask(&client, &request);
        for (uint32_t i = 0; i < job->count; i++)
            assert_true(job->ids[i] >= 5);
        client_reset(&client);
    }
    client_free(&client);
    engine_destroy(&engine);
}

static void the_default_seed_is_that_of_the_request(void **state)
{
    (void)state;
    struct engine *engine = make_engine(4 * PAGES, 64);
    struct client client;
    client_setup(&client, engine);
    struct engine_request request = ids_request(some_ids(8, 20), 20, 30);
    request.temperature = 1;
    request.request_id[0] = 1;
    struct client_job *first = client_ask(&client, &request), *second = client_ask(&client, &request);
    assert_same_reply(first, second);
    request.request_id[0] = 2;
    assert_int_not_equal(memcmp(client_ask(&client, &request)->ids, first->ids, 30 * sizeof(uint32_t)), 0);
    client_free(&client);
    engine_destroy(&engine);
}

/* Another worker can go on where a lost one stopped: the rest of a reply follows from its beginning and the seed. */
static void a_reply_continues_from_any_of_its_tokens(void **state)
{
    (void)state;
    struct engine *engine = make_engine(4 * PAGES, 64);
    struct client client;
    uint32_t ids[200];
    client_setup(&client, engine);
    memcpy(ids, some_ids(10, 100), sizeof ids / 2);
    struct engine_request request = ids_request(ids, 100, 50);
    request.temperature = 1.5f;
    request.seed = 77;
    request.seed_given = true;
    const struct client_job *whole = client_ask(&client, &request);
    assert_int_equal(whole->count, 50);
    for (uint32_t at = 1; at < 50; at += 7) {
        memcpy(ids + 100, whole->ids, at * sizeof ids[0]);
        request.prompt_id_count = 100 + at;
        request.tokens_max = 50 - at;
        engine_forget_cache(engine);
        const struct client_job *rest = client_ask(&client, &request);
        assert_int_equal(rest->count, 50 - at);
        assert_memory_equal(rest->ids, whole->ids + at, rest->count * sizeof ids[0]);
    }
    client_free(&client);
    engine_destroy(&engine);
}

static uint32_t chain_ids[20];
static unsigned chain_left;

static void submit_in_sink(struct client *client, const struct engine_event *event)
{
    struct client_job *job = NULL;
    if (event->kind == ENGINE_TOKENS || chain_left == 0)
        return;
    chain_left--;
    struct engine_request request = ids_request(chain_ids, 20, 2);
    assert_ok(client_submit(client, &request, &job));
    if (chain_left % 3 == 0)
        engine_cancel(client->engine, job->job);
}

static void a_sink_may_submit_and_cancel(void **state)
{
    (void)state;
    struct engine *engine = make_engine(PAGES, 64);
    struct client client;
    client_setup(&client, engine);
    client.on_event = submit_in_sink;
    client.check = true;
    memcpy(chain_ids, some_ids(9, 20), sizeof chain_ids);
    chain_left = 30;
    struct engine_request request = ids_request(chain_ids, 20, 2);
    client_ask(&client, &request);
    assert_int_equal(client.ended, 31);
    client_free(&client);
    engine_destroy(&engine);
}

struct watch {
    const struct engine *engine;
    atomic_bool stop;
    uint64_t looks;
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
    struct engine *engine = make_engine(PAGES, 7);
    struct client client;
    struct watch watch = {.engine = engine, .sane = true};
    pthread_t thread;
    client_setup(&client, engine);
    assert_int_equal(pthread_create(&thread, NULL, watch_progress, &watch), 0);
    for (int round = 0; round < 20; round++) {
        struct engine_request request = ids_request(some_ids((uint64_t)round, 200), 200, 50);
        client_ask(&client, &request);
        client_reset(&client);
    }
    atomic_store(&watch.stop, true);
    pthread_join(thread, NULL);
    assert_true(watch.sane && watch.looks > 0);
    struct engine_progress progress;
    engine_progress(engine, &progress);
    assert_true(progress.steps >= 20 * (200 / 7 + 50 - 1) && progress.step_median_us < 1000000);
    client_free(&client);
    engine_destroy(&engine);
}

/* ---- the known answer, over the CPU backend ---- */

static enum status create_for_real(void)
{
    struct engine *engine = NULL;
    const struct engine_config config = {
        .model_dir = model_dir, .kv_bytes = 64 << 20, .chunk_tokens = 16, .queue_requests_max = 1};
    const enum status st = engine_create(&config, &engine);
    assert_true((st == STATUS_OK) == (engine != NULL));
    engine_destroy(&engine);
    return st;
}

static void write_answer(const char *text)
{
    char path[RANDOM_MODEL_PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/known_answer.json", model_dir);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* The digest, computed here token by token. */
static void check_digest(json_t *answer)
{
    struct model *model = NULL;
    struct backend *backend = NULL;
    struct hash_stream *hash = NULL;
    uint8_t digest[HASH_DIGEST_BYTES];
    char hex[HASH_HEX_SIZE(HASH_DIGEST_BYTES)];
    const json_t *lists[2] = {json_object_get(answer, "prompt_ids"), json_object_get(answer, "reply_ids")};
    assert_ok(model_load(model_dir, &model));
    assert_ok(backend_cpu_ops.create(model, 1, &backend));
    assert_ok(hash_stream_create(NULL, 0, &hash));
    const size_t page_bytes = (backend_cpu_ops.page_bytes(backend) + 63) / 64 * 64;
    char *memory = aligned_alloc(64, 2 * page_bytes);
    void *pages[2] = {memory, memory + page_bytes};
    float *logits = calloc(4096, sizeof *logits);
    for (uint32_t i = 0; i < 64 + 8 - 1; i++) {
        const uint32_t id = (uint32_t)json_integer_value(json_array_get(lists[i >= 64], i % 64));
        const struct backend_run run = {
            .tokens = &id, .count = 1, .start = i, .pages = pages, .logits = logits, .logit_rows = 1};
        assert_ok(backend_cpu_ops.forward(backend, &run));
        if (i >= 63)
            hash_stream_update(hash, logits, 4096 * sizeof *logits);
    }
    hash_stream_final(hash, digest);
    hash_hex(digest, sizeof digest, hex);
    assert_string_equal(hex, json_string_value(json_object_get(answer, "logits_digest")));
    hash_stream_destroy(&hash);
    free(logits);
    free(memory);
    backend_cpu_ops.destroy(&backend);
    model_destroy(&model);
}

static void a_wrong_known_answer_is_refused(void **state)
{
    (void)state;
    char path[RANDOM_MODEL_PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/known_answer.json", model_dir);
    assert_ok(create_for_real()); /* absent: allowed */
    assert_ok(engine_seal(model_dir));
    assert_ok(create_for_real());
    json_error_t error;
    json_t *good = json_load_file(path, 0, &error);
    assert_non_null(good);
    assert_int_equal(json_array_size(json_object_get(good, "prompt_ids")), 64);
    assert_int_equal(json_array_size(json_object_get(good, "reply_ids")), 8);
    check_digest(good);

    json_t *bad = json_deep_copy(good);
    json_t *replies = json_object_get(bad, "reply_ids");
    json_array_set_new(replies, 7, json_integer((json_integer_value(json_array_get(replies, 7)) + 1) % 4096));
    json_dump_file(bad, path, 0);
    assert_int_equal(create_for_real(), STATUS_CORRUPT);
    assert_non_null(strstr(status_detail(), "known answer (the reply ids differ)"));
    json_decref(bad);

    bad = json_deep_copy(good);
    char digest[65];
    snprintf(digest, sizeof digest, "%s", json_string_value(json_object_get(bad, "logits_digest")));
    digest[0] = digest[0] == '0' ? '1' : '0';
    json_object_set_new(bad, "logits_digest", json_string(digest));
    json_dump_file(bad, path, 0);
    assert_int_equal(create_for_real(), STATUS_CORRUPT);
    assert_non_null(strstr(status_detail(), "(the logits differ)"));
    json_decref(bad);

    bad = json_deep_copy(good); /* another prompt: another answer */
    json_array_set_new(json_object_get(bad, "prompt_ids"), 5, json_integer(77));
    json_dump_file(bad, path, 0);
    assert_int_equal(create_for_real(), STATUS_CORRUPT);
    json_decref(bad);

    static const char *const invalid[] = {
        "",
        "{",
        "[]",
        "{}",
        "{\"prompt_ids\": [], \"reply_ids\": [1], \"logits_digest\": \"\"}",
        "{\"prompt_ids\": [4096], \"reply_ids\": [1], \"logits_digest\": "
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
        "{\"prompt_ids\": [-1], \"reply_ids\": [1], \"logits_digest\": "
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
        "{\"prompt_ids\": [1], \"reply_ids\": [1.5], \"logits_digest\": "
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
        "{\"prompt_ids\": [1], \"reply_ids\": \"x\", \"logits_digest\": "
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
        "{\"prompt_ids\": [1], \"reply_ids\": [1], \"logits_digest\": \"00\"}",
        "{\"prompt_ids\": [1], \"reply_ids\": [1], \"logits_digest\": 7}",
    };
    for (size_t i = 0; i < sizeof invalid / sizeof invalid[0]; i++) {
        write_answer(invalid[i]);
        assert_int_equal(create_for_real(), STATUS_INVALID);
    }
    assert_ok(engine_seal(model_dir)); /* sealing again replaces it */
    assert_ok(create_for_real());
    json_t *again = json_load_file(path, 0, &error);
    assert_true(json_equal(good, again));
    json_decref(again);
    json_decref(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cold_equals_warm),
        cmocka_unit_test(cold_equals_warm_in_a_tiny_arena),
        cmocka_unit_test(the_next_turn_computes_only_new_tokens),
        cmocka_unit_test(cancelled_and_failed_jobs_leave_their_kv),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(the_queue_is_bounded_and_ordered),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(bad_configurations_are_refused),
        cmocka_unit_test(replies_stop_or_fill_the_context),
        cmocka_unit_test(control_ids_are_never_drawn),
        cmocka_unit_test(the_default_seed_is_that_of_the_request),
        cmocka_unit_test(a_reply_continues_from_any_of_its_tokens),
        cmocka_unit_test(a_sink_may_submit_and_cancel),
        cmocka_unit_test(progress_is_readable_from_another_thread),
        cmocka_unit_test(a_wrong_known_answer_is_refused),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
