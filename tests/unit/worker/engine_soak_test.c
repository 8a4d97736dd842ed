/* Random clients, everything at once, over the fake backend: turns, retries, edits, branches, several choices,
 * penalties, stop strings and ids, log probabilities, priorities, deadlines, cancels, tenants, two memory tiers of
 * every size. Each finished reply must be, to the bit of its logits, what the same request gets alone in an engine that
 * knows nothing; each job ends once; nothing is left behind. */
#include "tests/unit/worker/unit.h"
#include "common/clock.h"
#include "tests/unit/worker/engine_fixture.h"

enum { TALKS = 10, STOPS_MAX = 3 };

static const char *const stop_words[] = {"the ", "a", "\n", "king of", " no", "\xC3\xA9"};

/* A request with everything it points at, so that it can be asked again elsewhere. */
struct asked {
    struct engine_request request;
    struct talk talk;
    uint32_t ids[FIXTURE_CONTEXT];
    uint32_t stop_ids[2];
    const char *stops[STOPS_MAX];
    size_t stop_sizes[STOPS_MAX];
    uint32_t bias_ids[2];
    float bias_values[2];
    struct client_job *job;
    unsigned talk_index;
    uint32_t cancel_in; /* steps; 0: not */
};

struct soak {
    struct client client, cold;
    struct engine_config config;
    struct talk talks[TALKS];
    bool busy[TALKS]; /* a request for its next turn is open */
    uint64_t rng;
    uint64_t cached, prompt, compared, cancelled, refused;
};

static void start_talk(struct soak *soak, unsigned t)
{
    soak->talks[t].count = 0;
    talk_say(&soak->talks[t], ENGINE_ROLE_SYSTEM, "Elsinore. A platform before the Castle.", 39);
    fixture_say_random(&soak->talks[t], ENGINE_ROLE_USER, &soak->rng);
}

/* One step of a user's life: next turn, retry, edit, branch back. */
static void change_talk(struct soak *soak, unsigned t, const struct client_job *job)
{
    struct talk *talk = &soak->talks[t];
    const uint32_t what = rng_below(&soak->rng, 10);
    if (what < 6 && job->end.kind == ENGINE_DONE && talk->count + 2 < TALK_MESSAGES) {
        const struct client_reply *reply = &job->replies[rng_below(&soak->rng, job->choices)];
        talk_say(talk, ENGINE_ROLE_ASSISTANT, reply->text, reply->text_size);
        fixture_say_random(talk, ENGINE_ROLE_USER, &soak->rng);
    } else if (what == 6) {
        const unsigned edited = rng_below(&soak->rng, talk->count), count = talk->count;
        talk->count = edited;
        fixture_say_random(talk, talk->messages[edited].role, &soak->rng);
        talk->count = count;
    } else if (what == 7 && talk->count > 1) {
        talk->count = 1 + rng_below(&soak->rng, talk->count - 1);
    } /* else a retry */
}

static void choose_sampling(struct soak *soak, struct asked *asked)
{
    struct engine_request *request = &asked->request;
    struct sampler_options *sampling = &request->sampling;
    uint64_t *rng = &soak->rng;
    if (rng_below(rng, 3) > 0)
        sampling->temperature = 1.5f;
    if (rng_below(rng, 4) == 0)
        sampling->top_k = 1 + rng_below(rng, 50);
    if (rng_below(rng, 4) == 0)
        sampling->top_p = 0.5f;
    if (rng_below(rng, 4) == 0)
        sampling->min_p = 0.01f;
    if (rng_below(rng, 4) == 0)
        sampling->repetition_penalty = 1.3f;
    if (rng_below(rng, 4) == 0) {
        sampling->presence_penalty = 0.5f;
        sampling->frequency_penalty = 0.25f;
    }
    if (rng_below(rng, 5) == 0) {
        for (int i = 0; i < 2; i++) {
            asked->bias_ids[i] = 10 + 1000 * (uint32_t)i + rng_below(rng, 1000);
            asked->bias_values[i] = 3;
        }
        sampling->bias_ids = asked->bias_ids;
        sampling->bias_values = asked->bias_values;
        sampling->bias_count = 2;
    }
    sampling->tokens_min = rng_below(rng, 3) == 0 ? rng_below(rng, 30) : 0;
}

static void choose_ends(struct soak *soak, struct asked *asked)
{
    struct engine_request *request = &asked->request;
    uint64_t *rng = &soak->rng;
    request->tokens_max = 1 + rng_below(rng, 60);
    if (rng_below(rng, 3) == 0) {
        request->stop_count = 1 + rng_below(rng, STOPS_MAX);
        for (unsigned i = 0; i < request->stop_count; i++) {
            asked->stops[i] = stop_words[rng_below(rng, 6)];
            asked->stop_sizes[i] = strlen(asked->stops[i]);
        }
        request->stops = asked->stops;
        request->stop_sizes = asked->stop_sizes;
    }
    if (rng_below(rng, 4) == 0) {
        asked->stop_ids[0] = 5 + rng_below(rng, 250);
        asked->stop_ids[1] = 5 + rng_below(rng, 4000);
        request->stop_ids = asked->stop_ids;
        request->stop_id_count = 2;
    }
}

static void choose_request(struct soak *soak, unsigned t, struct asked *asked)
{
    struct engine_request *request = &asked->request;
    uint64_t *rng = &soak->rng;
    *request = (struct engine_request){.seed = rng_next(rng), .seed_given = true};
    asked->talk_index = t;
    if (rng_below(rng, 6) == 0) { /* raw ids: as long as the context allows, or like others */
        request->prompt_id_count = 1 + rng_below(rng, rng_below(rng, 3) == 0 ? FIXTURE_CONTEXT - 1 : 200);
        memcpy(asked->ids, fixture_ids(rng_below(rng, 4), request->prompt_id_count),
               request->prompt_id_count * sizeof asked->ids[0]);
        request->prompt_ids = asked->ids;
    } else {
        asked->talk = soak->talks[t];
        talk_request(&asked->talk, request);
        request->truncate = rng_below(rng, 8) == 0;
    }
    request->tenant = t % 3 == 0 ? "one" : "two";
    request->tenant_size = 3;
    request->priority = (int32_t)rng_below(rng, 3);
    request->choices = rng_below(rng, 4) == 0 ? 1 + rng_below(rng, 6) : 1;
    request->logprobs = rng_below(rng, 4) == 0;
    request->alternatives = rng_below(rng, 4);
    request->prompt_logprobs = rng_below(rng, 10) == 0;
    if (rng_below(rng, 10) == 0)
        request->deadline_ms = clock_now_ms() + rng_below(rng, 3);
    asked->cancel_in = rng_below(rng, 6) == 0 ? 1 + rng_below(rng, 80) : 0;
    choose_sampling(soak, asked);
    choose_ends(soak, asked);
}

static bool ask(struct soak *soak, unsigned t, struct asked *asked)
{
    choose_request(soak, t, asked);
    const enum status st = client_submit(&soak->client, &asked->request, &asked->job);
    if (st == STATUS_OK) {
        soak->busy[t] = true;
        return true;
    }
    assert_true(st == STATUS_LIMIT || st == STATUS_AGAIN);
    soak->refused += st == STATUS_AGAIN;
    if (st == STATUS_LIMIT)
        start_talk(soak, t);
    return false;
}

/* What the same request gets alone, from an engine that remembers nothing. */
static void compare(struct soak *soak, struct asked *asked)
{
    struct engine_request again = asked->request;
    again.deadline_ms = 0;
    engine_forget_cache(soak->cold.engine);
    assert_same_reply(asked->job, client_ask(&soak->cold, &again));
    client_reset(&soak->cold);
    soak->compared++;
}

static void end(struct soak *soak, struct asked *asked)
{
    const struct client_job *job = asked->job;
    if (job->end.kind == ENGINE_DONE) {
        soak->cached += job->end.cached_tokens;
        soak->prompt += job->end.prompt_tokens;
        compare(soak, asked);
    } else {
        assert_true(job->end.status == STATUS_CANCELLED || job->end.status == STATUS_TIMEOUT);
        assert_true(job->end.status != STATUS_TIMEOUT || asked->request.deadline_ms != 0);
        soak->cancelled++;
    }
    if (asked->request.message_count > 0)
        change_talk(soak, asked->talk_index, job);
    soak->busy[asked->talk_index] = false;
    free(asked);
}

static void run(struct soak *soak, unsigned requests)
{
    struct asked *open[TALKS];
    unsigned open_count = 0, asked_count = 0;
    while (asked_count < requests || open_count > 0) {
        const unsigned t = rng_below(&soak->rng, TALKS);
        if (asked_count < requests && !soak->busy[t] && rng_below(&soak->rng, 3) == 0) {
            struct asked *asked = calloc(1, sizeof *asked);
            assert_non_null(asked);
            if (ask(soak, t, asked))
                open[open_count++] = asked;
            else
                free(asked);
            asked_count++;
        }
        (void)client_step(&soak->client);
        for (unsigned i = 0; i < open_count; i++) {
            if (open[i]->cancel_in > 0 && --open[i]->cancel_in == 0)
                engine_cancel(soak->client.engine, open[i]->job->job);
            if (!open[i]->job->ended)
                continue;
            end(soak, open[i]);
            open[i--] = open[--open_count];
        }
    }
    client_run(&soak->client); /* and the background work */
}

static struct soak *make_soak(const struct engine_config *config, uint64_t seed)
{
    struct engine_config cold = fixture_config();
    struct soak *soak = calloc(1, sizeof *soak);
    assert_non_null(soak);
    soak->rng = test_seed(seed);
    struct engine *engine = fixture_engine(config), *other = NULL;
    cold.chunk_tokens = 500;
    cold.kv_bytes = 2 * FIXTURE_CONVERSATION;
    assert_ok(engine_create(&cold, &other));
    client_setup(&soak->client, engine);
    client_setup(&soak->cold, other);
    soak->client.check = true;
    for (unsigned t = 0; t < TALKS; t++)
        start_talk(soak, t);
    return soak;
}

static void check_nothing_is_left(struct client *client)
{
    struct engine *engine = client->engine;
    struct engine_progress progress;
    engine_forget_cache(engine);
    for (int i = 0; i < 1000; i++) /* copies under way land */
        assert_false(client_step(client));
    assert_ok(engine_check(engine));
    engine_progress(engine, &progress);
    assert_true(progress.queued_requests == 0 && progress.running_requests == 0 && progress.running_tokens == 0);
    assert_int_equal(progress.kv_tokens_used, 0);
}

static const struct backend_ops *backend_ops = &fake_backend_ops;

static void soak(uint64_t seed, uint32_t conversations, uint32_t host, uint32_t chunk, uint32_t sequences,
                 uint32_t byte_ids_only, unsigned requests)
{
    struct engine_config config = fixture_config();
    config.kv_bytes = (uint64_t)conversations * FIXTURE_CONVERSATION;
    config.kv_host_bytes = (uint64_t)host * FIXTURE_CONVERSATION;
    config.chunk_tokens = chunk;
    config.batch_tokens = chunk > 100 ? chunk : 100;
    config.sequences_max = sequences;
    config.queue_requests_max = 8;
    config.backend = backend_ops;
    struct soak *soak = make_soak(&config, seed);
    fake_backend.byte_ids_only = byte_ids_only;
    fake_backend.eos_bonus = byte_ids_only ? 20 : 3;
    fake_backend.late_polls_max = (uint32_t)(seed % 4);
    run(soak, requests);
    assert_true(soak->compared > requests / 2 && soak->cancelled > 0);
    assert_true(soak->cached > 0 && soak->cached < soak->prompt);
    check_nothing_is_left(&soak->client);
    printf("%u conversations of memory, %u on the host, chunks of %u, %u at a time: %llu replies compared, %llu ended "
           "early, "
           "%.0f%% of prompts cached\n",
           conversations, host, chunk, sequences, (unsigned long long)soak->compared,
           (unsigned long long)soak->cancelled, 100.0 * (double)soak->cached / (double)soak->prompt);
    engine_destroy(&soak->client.engine);
    engine_destroy(&soak->cold.engine);
    client_free(&soak->client);
    client_free(&soak->cold);
    free(soak);
}

static void with_room(void **state)
{
    (void)state;
    soak(1, 16, 16, 64, 8, 0, 400);
    soak(2, 16, 0, 17, 8, 261, 300); /* byte pieces: half characters everywhere */
}

static void in_little_memory(void **state)
{
    (void)state;
    soak(3, 2, 8, 64, 8, 0, 400);
    soak(4, 2, 1, 100, 8, 0, 300);
    soak(5, 1, 4, 64, 4, 0, 300);
}

static void without_a_host_tier(void **state)
{
    (void)state;
    soak(6, 2, 0, 64, 8, 0, 400);
    soak(7, 1, 0, 500, 3, 0, 300);
}

static void one_at_a_time(void **state)
{
    (void)state;
    soak(8, 2, 2, 64, 1, 0, 200);
    soak(9, 3, 2, 1, 2, 0, 60);
}

/* Those that come back compute while their pages come, where nobody else does. */
static void behind_loads(void **state)
{
    (void)state;
    backend_ops = &fake_backend_loading_ops;
    soak(11, 2, 8, 64, 1, 0, 200);
    assert_true(fake_backend.followed > 20);
    soak(14, 2, 4, 64, 3, 0, 300);
    soak(15, 1, 4, 64, 8, 0, 300);
    backend_ops = &fake_backend_ops;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_room),
        cmocka_unit_test(in_little_memory),
        cmocka_unit_test(without_a_host_tier),
        cmocka_unit_test(one_at_a_time),
        cmocka_unit_test(behind_loads),
    };
    return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
