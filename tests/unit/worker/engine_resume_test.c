/* A reply that is resumed goes on as if nothing had happened. Each case runs undisturbed once; then it is asked for
 * again as if its worker had been lost after every possible number of released tokens, and what comes must be exactly
 * the rest: ids, text, log probabilities, finishes, totals. With real arithmetic and with the simulated backend; with
 * everything in the cache, with nothing in it, and all of the resumes at once among strangers in an engine with little
 * memory. */
#include "tests/unit/worker/unit.h"
#include "common/utf8.h"
#include "tests/unit/worker/engine_fixture.h"
#include "tests/unit/worker/random_model.h"
#include "worker/engine/backend/backend_simulate.h"

enum { TOKENS = 20, PROMPT = 75, CHOICES = 3, BYTE_FIRST = 5, BYTES = 256, NO_BORDER = -1 };

static const struct simulate_profile *simulated; /* NULL: real arithmetic */

static struct engine *make_engine(uint64_t kv_bytes, uint64_t host_bytes)
{
    struct engine *engine = NULL;
    const struct engine_config config = {.model_dir = fixture_model_dir(),
                                         .kv_bytes = kv_bytes,
                                         .kv_host_bytes = host_bytes,
                                         .chunk_tokens = 48,
                                         .batch_tokens = 100,
                                         .sequences_max = 5,
                                         .queue_requests_max = 256,
                                         .rewind_tokens = 64,
                                         .snapshots_max = 4,
                                         .skip_known_answer = true,
                                         .simulate = simulated};
    assert_ok(engine_create(&config, &engine));
    return engine;
}

/* ---- a run, with the borders of its releases ---- */

struct whole {
    struct client_job *job;
    int text_at[CHOICES]
               [TOKENS + 1]; /* bytes of text with so many tokens; NO_BORDER: they never were all that was released */
};

static struct whole *recorded; /* by the hook below */
static const struct whole
    *plain_run; /* the same tokens without stop strings: where the texts of those end that came out together */

static void record_borders(struct client *client, const struct engine_event *event)
{
    if (recorded == NULL || event->kind != ENGINE_TOKENS || event->count == 0)
        return;
    const struct client_reply *reply = &client->jobs[event->job - client->first_job]->replies[event->choice];
    recorded->text_at[event->choice][reply->count] = (int)reply->text_size;
}

static void run_whole(struct client *client, struct engine_request *request, struct whole *out)
{
    for (unsigned i = 0; i < CHOICES; i++)
        for (unsigned k = 0; k <= TOKENS; k++)
            out->text_at[i][k] = k == 0 ? 0 : NO_BORDER;
    recorded = out;
    client->on_event = record_borders;
    out->job = client_ask(client, request);
    recorded = NULL;
    client->on_event = NULL;
}

static void assert_rest(const struct whole *whole, const struct client_job *rest)
{
    const struct client_job *job = whole->job;
    assert_int_equal(rest->end.kind, ENGINE_DONE);
    assert_int_equal(rest->end.reply_tokens, job->end.reply_tokens);
    assert_int_equal(rest->end.prompt_tokens, job->end.prompt_tokens);
    assert_int_equal(rest->prompt.count, job->prompt.count);
    if (job->prompt_logprobs)
        assert_memory_equal(rest->prompt.logprobs, job->prompt.logprobs, job->prompt.count * sizeof(float));
    for (unsigned i = 0; i < job->choices; i++) {
        const struct client_reply *all = &job->replies[i], *some = &rest->replies[i];
        const uint32_t from = some->resumed, n = job->alternatives;
        assert_int_equal(some->count, all->count - from);
        assert_int_equal(rest->end.finish[i], job->end.finish[i]);
        if (some->count > 0)
            assert_memory_equal(some->ids, all->ids + from, some->count * sizeof some->ids[0]);
        if (some->count > 0 && job->logprobs)
            assert_memory_equal(some->logprobs, all->logprobs + from, some->count * sizeof(float));
        if (some->count > 0 && job->logprobs && n > 0) {
            assert_memory_equal(some->alternative_ids, all->alternative_ids + from * n,
                                some->count * n * sizeof(uint32_t));
            assert_memory_equal(some->alternative_logprobs, all->alternative_logprobs + from * n,
                                some->count * n * sizeof(float));
        }
        assert_true(some->text_size <= all->text_size);
        if (some->text_size > 0)
            assert_memory_equal(some->text, all->text + all->text_size - some->text_size, some->text_size);
        if (whole->text_at[i][from] != NO_BORDER)
            assert_int_equal(some->text_size, all->text_size - (size_t)whole->text_at[i][from]);
        else if (plain_run != NULL && plain_run->text_at[i][from] != NO_BORDER)
            assert_int_equal(some->text_size, all->text_size - (size_t)plain_run->text_at[i][from]);
    }
}

/* ---- resumes ---- */

struct resume {
    uint32_t counts[CHOICES];
    uint32_t ids[CHOICES * TOKENS];
};

static void resume_at(struct engine_request *request, const struct client_job *job, struct resume *resume)
{
    uint32_t *at = resume->ids;
    for (unsigned i = 0; i < job->choices; i++)
        for (unsigned k = 0; k < resume->counts[i]; k++)
            *at++ = job->replies[i].ids[k];
    request->resume_counts = resume->counts;
    request->resume_ids = resume->ids;
}

/* One choice: each number of tokens. More: each number at once for all, as far as they have so many, then unlike ones.
 */
static unsigned make_resumes(const struct client_job *job, struct resume *out)
{
    unsigned count = 0;
    uint32_t most = 0;
    for (unsigned i = 0; i < job->choices; i++)
        most = job->replies[i].count > most ? job->replies[i].count : most;
    for (uint32_t k = 0; k <= most; k++, count++)
        for (unsigned i = 0; i < job->choices; i++)
            out[count].counts[i] = k < job->replies[i].count ? k : job->replies[i].count;
    for (unsigned left_out = 0; job->choices > 1 && left_out < job->choices; left_out++, count++)
        for (unsigned i = 0; i < job->choices; i++)
            out[count].counts[i] = i == left_out ? 0 : job->replies[i].count - (i + left_out) % 2;
    return count;
}

static void submit_stranger(struct client *client, uint64_t seed)
{
    struct engine_request request =
        fixture_request(fixture_ids(seed, 150), 20 + (unsigned)seed * 13 % 130, 5 + seed % 9);
    struct client_job *job;
    request.sampling.temperature = 1;
    request.choices = 1 + seed % 2;
    request.priority = (int32_t)(seed % 3) - 1;
    assert_ok(client_submit(client, &request, &job));
}

static void check_together(const struct engine_request *request, const struct whole *whole, struct resume *resumes,
                           unsigned count)
{
    struct client client;
    struct client_job *jobs[TOKENS + 1 + CHOICES];
    struct engine *probe = make_engine(64 << 20, 0);
    const uint64_t page_bytes = (uint64_t)engine_info(probe)->kv_bytes_per_token * BACKEND_PAGE_TOKENS;
    engine_destroy(&probe);
    client_setup(&client, make_engine(16 * page_bytes, 20 * page_bytes));
    for (unsigned i = 0; i < count; i++) {
        struct engine_request again = *request;
        submit_stranger(&client, i);
        resume_at(&again, whole->job, &resumes[i]);
        assert_ok(client_submit(&client, &again, &jobs[i]));
    }
    client_run(&client);
    for (unsigned i = 0; i < count; i++)
        assert_rest(whole, jobs[i]);
    assert_ok(engine_check(client.engine));
    engine_destroy(&client.engine);
    client_free(&client);
}

static void check_case(struct engine_request *request)
{
    struct client client;
    struct whole whole;
    static struct resume resumes[TOKENS + 1 + CHOICES];
    client_setup(&client, make_engine(64 << 20, 0));
    run_whole(&client, request, &whole);
    assert_true(whole.job->end.reply_tokens >= 2);
    const unsigned count = make_resumes(whole.job, resumes);
    for (unsigned warm = 0; warm < 2; warm++)
        for (unsigned i = 0; i < count; i++) {
            struct engine_request again = *request;
            if (!warm)
                engine_forget_cache(client.engine);
            resume_at(&again, whole.job, &resumes[i]);
            assert_rest(&whole, client_ask(&client, &again));
        }
    check_together(request, &whole, resumes, count);
    engine_destroy(&client.engine);
    client_free(&client);
}

static void on_both(void (*body)(void))
{
    struct simulate_profile profile;
    simulated = NULL;
    body();
    assert_ok(simulate_profile_parse("fast,reply=0", &profile));
    assert_ok(backend_simulate_slow(0));
    simulated = &profile;
    body();
    assert_ok(backend_simulate_slow(1));
    simulated = NULL;
}

static struct engine_request plain(void)
{
    struct engine_request request = fixture_request(fixture_ids(11, PROMPT), PROMPT, TOKENS);
    request.seed_given = true;
    request.seed = 5;
    return request;
}

/* ---- cases ---- */

static void greedy(void)
{
    struct engine_request request = plain();
    check_case(&request);
}

static void sampled(void)
{
    struct engine_request request = plain();
    request.sampling.temperature = 1.5f;
    request.sampling.top_p = 0.95f;
    check_case(&request);
}

static void penalised(void)
{
    struct engine_request request = plain();
    request.sampling.temperature = 0.7f;
    request.sampling.repetition_penalty = 1.3f;
    request.sampling.presence_penalty = 0.5f;
    request.sampling.frequency_penalty = 0.7f;
    check_case(&request);
}

static void with_logprobs(void)
{
    struct engine_request request = plain();
    request.sampling.temperature = 1;
    request.logprobs = true;
    request.alternatives = 4;
    check_case(&request);
    request.prompt_logprobs = true;
    check_case(&request);
}

/* The second half of one token and the first of the next, and one that is only ever begun. */
static void stop_strings(void)
{
    struct engine_request request = plain();
    struct client client;
    struct whole whole;
    char stop[64], begun[128];
    const char *stops[] = {begun, stop};
    size_t sizes[2];
    request.sampling.temperature = 1;
    client_setup(&client, make_engine(64 << 20, 0));
    run_whole(&client, &request, &whole);
    const char *text = whole.job->replies[0].text;
    int border = 12, start;
    while (whole.text_at[0][border] == NO_BORDER)
        border++;
    for (start = whole.text_at[0][border] - 1; ((unsigned char)text[start] & 0xC0) == 0x80;)
        start--;
    sizes[1] = (size_t)whole.text_at[0][border] - (size_t)start + 1;
    while (((unsigned char)text[(size_t)start + sizes[1]] & 0xC0) == 0x80)
        sizes[1]++;
    memcpy(stop, text + start, sizes[1]);
    sizes[0] = (size_t)start / 2 > 100 ? 100 : (size_t)start / 2; /* of the text: held back until it cannot be */
    while (sizes[0] > 0 && !utf8_valid(text, sizes[0]))
        sizes[0]--;
    memcpy(begun, text, sizes[0]);
    begun[sizes[0]++] = '\x01';
    client_free(&client);
    engine_destroy(&client.engine);
    request.stops = stops;
    request.stop_sizes = sizes;
    request.stop_count = 2;
    request.logprobs = true;
    plain_run = &whole;
    check_case(&request);
    plain_run = NULL;
}

/* Only byte pieces, and of them those that begin and go on in characters of several bytes: most tokens are held back,
 * many are no text. */
static void half_characters(void)
{
    static uint32_t ids[BYTES];
    static float values[BYTES];
    struct engine_request request = plain();
    for (uint32_t i = 0; i < BYTES; i++) {
        ids[i] = BYTE_FIRST + i;
        values[i] = i >= 0x80 && i < 0xC0 ? 1000 : i >= 0xE0 && i < 0xF5 ? 999 : i == 0xC3 ? 999 : 0;
    }
    request.sampling.temperature = 100; /* what the model says hardly matters: 1 of 100 */
    request.sampling.bias_ids = ids;
    request.sampling.bias_values = values;
    request.sampling.bias_count = BYTES;
    request.logprobs = true;
    request.alternatives = 2;
    for (request.seed = 0; request.seed < 3; request.seed++)
        check_case(&request);
}

/* The end id is the likeliest by far, and may be drawn from the seventh token on. */
static void least_lengths(void)
{
    static const uint32_t end_id = 2;
    static const float value = 1000;
    struct engine_request request = plain();
    request.sampling.temperature = 1;
    request.sampling.tokens_min = 7;
    request.sampling.bias_ids = &end_id;
    request.sampling.bias_values = &value;
    request.sampling.bias_count = 1;
    check_case(&request);
}

/* Three choices; in the second round two of them have ended before, by a stop id. */
static void several_choices(void)
{
    struct engine_request request = plain();
    request.sampling.temperature = 1.5f;
    request.choices = CHOICES;
    check_case(&request);
    request.prompt_logprobs = request.logprobs = true;
    request.alternatives = 1;
    check_case(&request);

    struct client client;
    struct whole whole;
    client_setup(&client, make_engine(64 << 20, 0));
    run_whole(&client, &request, &whole);
    const uint32_t stop_ids[] = {whole.job->replies[0].ids[6], whole.job->replies[1].ids[13]};
    client_free(&client);
    engine_destroy(&client.engine);
    request.stop_ids = stop_ids;
    request.stop_id_count = 2;
    request.sampling.tokens_min = 0;
    request.prompt_logprobs = request.logprobs = false;
    check_case(&request);
}

static void chat(void)
{
    static struct talk talk;
    struct engine_request request = {.tokens_max = TOKENS,
                                     .sampling = {.temperature = 1, .tokens_min = TOKENS},
                                     .reply_name = "HAMLET",
                                     .reply_name_size = 6};
    talk.count = 0;
    talk_say(&talk, ENGINE_ROLE_SYSTEM, "Elsinore. A platform before the castle.", 39);
    talk_say(&talk, ENGINE_ROLE_USER, "Who's there? Nay, answer me: stand, and unfold yourself.", 56);
    talk_request(&talk, &request);
    check_case(&request);
}

#define ON_BOTH(name)                                                                                                  \
    static void name##_resume(void **state)                                                                            \
    {                                                                                                                  \
        (void)state;                                                                                                   \
        on_both(name);                                                                                                 \
    }
ON_BOTH(greedy)
ON_BOTH(sampled)
ON_BOTH(penalised)
ON_BOTH(with_logprobs)
ON_BOTH(stop_strings)
ON_BOTH(half_characters)
ON_BOTH(least_lengths)
ON_BOTH(several_choices)
ON_BOTH(chat)

/* ---- over the fake backend: what is computed ---- */

static void the_prompt_is_computed_once(void **state)
{
    (void)state;
    struct client client;
    struct whole whole;
    struct resume resume = {.counts = {9, 0, TOKENS - 1}};
    struct engine_request request = plain();
    client_setup(&client, fixture_engine(NULL));
    request.sampling.temperature = 1.5f;
    request.choices = CHOICES;
    run_whole(&client, &request, &whole);
    resume_at(&request, whole.job, &resume);
    engine_forget_cache(client.engine);
    fake_backend.tokens_computed = 0;
    assert_rest(&whole, client_ask(&client, &request));
    /* The last token of each reply is drawn and not computed. */
    assert_int_equal(fake_backend.tokens_computed, PROMPT + CHOICES * (TOKENS - 1));
    engine_destroy(&client.engine);
    client_free(&client);
}

static void cached_tokens_are_not_computed_again(void **state)
{
    (void)state;
    struct client client;
    struct whole whole;
    struct resume resume = {.counts = {TOKENS - 2}};
    struct engine_request request = plain();
    client_setup(&client, fixture_engine(NULL));
    run_whole(&client, &request, &whole);
    resume_at(&request, whole.job, &resume);
    fake_backend.tokens_computed = 0;
    const struct client_job *rest = client_ask(&client, &request);
    assert_rest(&whole, rest);
    assert_int_equal(rest->end.cached_tokens, PROMPT); /* and of the resume, all but the last */
    assert_int_equal(fake_backend.tokens_computed, 2);
    engine_destroy(&client.engine);
    client_free(&client);
}

static void what_has_ended_is_not_computed(void **state)
{
    (void)state;
    struct client client;
    struct whole whole;
    struct resume resume = {.counts = {TOKENS, TOKENS, TOKENS}};
    struct engine_request request = plain();
    char stop[TOKENS * 20];
    const char *stops[] = {stop};
    size_t size;
    client_setup(&client, fixture_engine(NULL));
    request.sampling.temperature = 1.5f;
    request.choices = CHOICES;
    fake_backend.byte_ids_only = 512; /* short pieces; some of them ASCII letters */
    run_whole(&client, &request, &whole);
    resume_at(&request, whole.job, &resume);
    engine_forget_cache(client.engine);
    fake_backend.tokens_computed = 0;
    const struct client_job *rest = client_ask(&client, &request);
    assert_rest(&whole, rest);
    assert_int_equal(fake_backend.tokens_computed, 0);
    assert_int_equal(rest->end.cached_tokens, 0);

    size =
        (size_t)
            whole.text_at[0][TOKENS]; /* ids that complete a stop string, which no worker with it would have released */
    memcpy(stop, whole.job->replies[0].text, size);
    request.stops = stops;
    request.stop_sizes = &size;
    request.stop_count = 1;
    if (size > 200)
        size = 200;
    while (!utf8_valid(stop, size))
        size--;
    rest = client_ask(&client, &request);
    assert_int_equal(rest->end.finish[0], ENGINE_FINISH_STOP_STRING);
    assert_int_equal(rest->end.finish[1], ENGINE_FINISH_LENGTH);
    assert_int_equal(rest->end.reply_tokens, CHOICES * TOKENS);
    assert_int_equal(rest->replies[0].count + rest->replies[0].text_size, 0);
    assert_int_equal(fake_backend.tokens_computed, 0);
    engine_destroy(&client.engine);
    client_free(&client);
}

#define REFUSED(words, ...)                                                                                            \
    do {                                                                                                               \
        struct engine_request bad = request;                                                                           \
        __VA_ARGS__;                                                                                                   \
        assert_int_equal(engine_submit(engine, &bad, NULL), STATUS_INVALID);                                           \
        assert_non_null(strstr(status_detail(), words));                                                               \
    } while (0)

static void bad_resumes_are_refused(void **state)
{
    (void)state;
    struct engine *engine = fixture_engine(NULL);
    struct engine_request request = plain();
    const uint32_t counts[] = {2, 1}, ids[] = {300, 301, 302}, high[] = {300, 4096, 302}, masked[] = {300, 301, 1},
                   end[] = {2, 301, 302};
    uint32_t many[TOKENS + 1], too_many[] = {TOKENS + 1, 0}, stop_id = 301;
    for (unsigned i = 0; i <= TOKENS; i++)
        many[i] = 300;
    request.job = 1;
    request.choices = 2;
    request.resume_counts = counts;
    request.resume_ids = ids;
    REFUSED("resume id 1 of choice 0 is 4096", bad.resume_ids = high);
    REFUSED("resume id 0 of choice 1 is 1, which has no text", bad.resume_ids = masked);
    REFUSED("resume id 0 of choice 0 is 2, which ends a reply", bad.resume_ids = end);
    REFUSED("resume id 1 of choice 0 is 301, which ends a reply", bad.stop_ids = &stop_id; bad.stop_id_count = 1);
    REFUSED("at most 20 are possible (tokens_max)", bad.resume_counts = too_many; bad.resume_ids = many);
    REFUSED("at most 20 are possible (the rest of the context)",
            bad.prompt_ids = fixture_ids(1, FIXTURE_CONTEXT - TOKENS);
            bad.prompt_id_count = FIXTURE_CONTEXT - TOKENS; bad.tokens_max = 0; bad.resume_counts = too_many;
            bad.resume_ids = many);
    REFUSED("no ids", bad.resume_ids = NULL);
    assert_ok(engine_submit(engine, &request, NULL));
    engine_destroy(&engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_resume),
        cmocka_unit_test(sampled_resume),
        cmocka_unit_test(penalised_resume),
        cmocka_unit_test(with_logprobs_resume),
        cmocka_unit_test(stop_strings_resume),
        cmocka_unit_test(half_characters_resume),
        cmocka_unit_test(least_lengths_resume),
        cmocka_unit_test(several_choices_resume),
        cmocka_unit_test(chat_resume),
        cmocka_unit_test(the_prompt_is_computed_once),
        cmocka_unit_test(cached_tokens_are_not_computed_again),
        cmocka_unit_test(what_has_ended_is_not_computed),
        cmocka_unit_test(bad_resumes_are_refused),
    };
    return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
