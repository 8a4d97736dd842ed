/* Replies over the fake backend: how they end, stop strings and ids, log probabilities, seeds, going on in the middle.
 */
#include "tests/unit/worker/unit.h"
#include <math.h>
#include "tests/unit/worker/engine_fixture.h"

enum { CONTEXT = FIXTURE_CONTEXT };

struct bed {
    struct engine *engine;
    struct client client;
};

static void bed_make(struct bed *bed, const struct engine_config *config)
{
    bed->engine = fixture_engine(config);
    client_setup(&bed->client, bed->engine);
    bed->client.check = true;
}

static void bed_free(struct bed *bed)
{
    client_free(&bed->client);
    engine_destroy(&bed->engine);
}

static void replies_stop_or_fill_the_context(void **state)
{
    (void)state;
    struct bed bed;
    bed_make(&bed, NULL);
    struct engine_request request = fixture_request(fixture_ids(7, CONTEXT), 600, 0);
    struct client_job *job = client_ask(&bed.client, &request);
    assert_int_equal(job->end.finish[0], ENGINE_FINISH_LENGTH);
    assert_int_equal(job->replies[0].count, CONTEXT - 600);
    request.prompt_id_count = CONTEXT - 1;
    request.tokens_max = 1000;
    assert_int_equal(client_ask(&bed.client, &request)->replies[0].count, 1);
    fake_backend.eos_bonus = 1000;
    request.sampling.tokens_min = 0;
    job = client_ask(&bed.client, &request);
    assert_int_equal(job->end.finish[0], ENGINE_FINISH_STOP); /* the end id is not released and not counted */
    assert_int_equal(job->replies[0].count, 0);
    request.prompt_id_count = 10;
    request.sampling.tokens_min = 7;
    job = client_ask(&bed.client, &request);
    assert_int_equal(job->end.finish[0], ENGINE_FINISH_STOP);
    assert_int_equal(job->replies[0].count, 7);
    bed_free(&bed);
}

static void control_ids_are_never_drawn(void **state)
{
    (void)state;
    struct bed bed;
    bed_make(&bed, NULL);
    fake_backend.eos_bonus = -1000;
    for (int round = 0; round < 100; round++) { /* hot: each of 4,096 ids is about as likely */
        struct engine_request request = fixture_request(fixture_ids((uint64_t)round, 5), 5, 100);
        request.sampling.temperature = 100;
        request.seed_given = true;
        request.seed = (uint64_t)round;
        const struct client_job *job = client_ask(&bed.client, &request);
        for (uint32_t i = 0; i < job->replies[0].count; i++)
            assert_true(job->replies[0].ids[i] >= 5);
        client_reset(&bed.client);
    }
    bed_free(&bed);
}

static void the_default_seed_is_that_of_the_request(void **state)
{
    (void)state;
    struct bed bed;
    bed_make(&bed, NULL);
    struct engine_request request = fixture_request(fixture_ids(8, 20), 20, 30);
    request.sampling.temperature = 1;
    request.request_id[0] = 1;
    struct client_job *first = client_ask(&bed.client, &request), *second = client_ask(&bed.client, &request);
    assert_same_reply(first, second);
    request.request_id[0] = 2;
    const struct client_job *other = client_ask(&bed.client, &request);
    assert_int_not_equal(memcmp(other->replies[0].ids, first->replies[0].ids, 30 * sizeof(uint32_t)), 0);
    bed_free(&bed);
}

/* Another worker can go on where a lost one stopped: the rest of a reply follows from its beginning and the seed. */
static void a_reply_continues_from_any_of_its_tokens(void **state)
{
    (void)state;
    struct bed bed;
    uint32_t ids[200];
    bed_make(&bed, NULL);
    memcpy(ids, fixture_ids(10, 100), 100 * sizeof ids[0]);
    struct engine_request request = fixture_request(ids, 100, 50);
    request.sampling.temperature = 1.5f;
    request.seed = 77;
    request.seed_given = true;
    const struct client_reply *whole = &client_ask(&bed.client, &request)->replies[0];
    assert_int_equal(whole->count, 50);
    for (uint32_t at = 1; at < 50; at += 7) {
        memcpy(ids + 100, whole->ids, at * sizeof ids[0]);
        request.prompt_id_count = 100 + at;
        request.tokens_max = 50 - at;
        engine_forget_cache(bed.engine);
        const struct client_reply *rest = &client_ask(&bed.client, &request)->replies[0];
        assert_int_equal(rest->count, 50 - at);
        assert_memory_equal(rest->ids, whole->ids + at, rest->count * sizeof ids[0]);
    }
    bed_free(&bed);
}

/* ---- stops ---- */

/* The reply without stops says where each must cut: at every place, with strings that lie in one token, across two,
 * across many. */
static void stop_strings_cut_exactly(void **state)
{
    (void)state;
    struct bed bed;
    bed_make(&bed, NULL);
    struct engine_request request = fixture_request(fixture_ids(11, 30), 30, 60);
    request.logprobs = true;
    request.alternatives = 2;
    const struct client_job *whole = client_ask(&bed.client, &request);
    const struct client_reply *said = &whole->replies[0];
    assert_true(said->text_size > 100);
    for (size_t at = 1; at + 12 < said->text_size; at += 5)
        for (size_t size = 1; size <= 11; size += 5) {
            char stop[16];
            memcpy(stop, said->text + at, size);
            stop[size] = '\0';
            struct engine_request stopping = request;
            const char *stops[2] = {"never said, I hope", stop};
            const size_t sizes[2] = {18, size};
            stopping.stops = stops;
            stopping.stop_sizes = sizes;
            stopping.stop_count = 2;
            struct client_job *job = NULL;
            if (client_submit(&bed.client, &stopping, &job) == STATUS_INVALID)
                continue; /* half a character */
            client_run(&bed.client);
            assert_int_equal(job->end.kind, ENGINE_DONE);
            const struct client_reply *cut = &job->replies[0];
            const size_t end = (size_t)(strstr(said->text, stop) - said->text);
            assert_int_equal(job->end.finish[0], ENGINE_FINISH_STOP_STRING);
            assert_int_equal(cut->text_size, end);
            assert_memory_equal(cut->text, said->text, end);
            assert_memory_equal(cut->ids, said->ids, cut->count * sizeof cut->ids[0]);
            assert_memory_equal(cut->logprobs, said->logprobs, cut->count * sizeof cut->logprobs[0]);
            assert_memory_equal(cut->alternative_ids, said->alternative_ids, 2 * cut->count * sizeof cut->ids[0]);
        }
    char held[64]; /* what the reply ends with could be its beginning: held back to the end, and let out */
    size_t last = said->text_size - 1;
    while (((unsigned char)said->text[last] & 0xC0) == 0x80)
        last--;
    const char *unsaid = held;
    const size_t size = (size_t)snprintf(held, sizeof held, "%snever said, I hope", said->text + last);
    request.stops = &unsaid;
    request.stop_sizes = &size;
    request.stop_count = 1;
    assert_same_reply(client_ask(&bed.client, &request), whole);
    bed_free(&bed);
}

static void stop_ids_end_like_end_ids(void **state)
{
    (void)state;
    struct bed bed;
    bed_make(&bed, NULL);
    struct engine_request request = fixture_request(fixture_ids(12, 30), 30, 40);
    const struct client_reply *whole = &client_ask(&bed.client, &request)->replies[0];
    request.sampling.tokens_min = 0;
    for (uint32_t at = 0; at < 40; at += 13) {
        uint32_t first = 0;
        while (whole->ids[first] != whole->ids[at])
            first++;
        request.stop_ids = &whole->ids[at];
        request.stop_id_count = 1;
        const struct client_job *job = client_ask(&bed.client, &request);
        assert_int_equal(job->end.finish[0], ENGINE_FINISH_STOP);
        assert_int_equal(job->replies[0].count, first);
    }
    request.sampling.tokens_min = 20; /* not before: another token is drawn instead */
    request.stop_ids = &whole->ids[3];
    assert_true(client_ask(&bed.client, &request)->replies[0].count >= 20);
    bed_free(&bed);
}

/* ---- log probabilities ---- */

static void check_logprobs(const struct client_reply *reply, uint32_t alternatives)
{
    for (uint32_t i = 0; i < reply->count; i++) {
        assert_true(isfinite(reply->logprobs[i]) && reply->logprobs[i] <= 0);
        double sum = 0;
        for (uint32_t a = 0; a < alternatives; a++) {
            const float value = reply->alternative_logprobs[i * alternatives + a];
            assert_true(a == 0 || value <= reply->alternative_logprobs[i * alternatives + a - 1]);
            assert_true(reply->alternative_ids[i * alternatives + a] != reply->ids[i] || value == reply->logprobs[i]);
            sum += exp(value);
        }
        assert_true(sum <= 1.0001);
    }
}

static void log_probabilities_come_with_their_tokens(void **state)
{
    (void)state;
    struct bed bed;
    bed_make(&bed, NULL);
    for (uint32_t alternatives = 0; alternatives <= SAMPLER_LOGPROBS_MAX; alternatives += 5) {
        struct engine_request request = fixture_request(fixture_ids(13, 50), 50, 30);
        fake_backend.byte_ids_only = alternatives % 2 ? 261 : 0; /* half characters: tokens wait for one another */
        request.logprobs = true;
        request.alternatives = alternatives;
        request.sampling.temperature = alternatives % 2 ? 0.7f : 0;
        request.choices = 2;
        const struct client_job *job = client_ask(&bed.client, &request);
        check_logprobs(&job->replies[0], alternatives);
        check_logprobs(&job->replies[1], alternatives);
        for (uint32_t i = 0; alternatives > 0 && request.sampling.temperature == 0 && i < job->replies[0].count; i++)
            assert_int_equal(job->replies[0].ids[i],
                             job->replies[0].alternative_ids[i * alternatives]); /* greedy: the likeliest */
    }
    bed_free(&bed);
}

/* A prompt that is somebody's reply has the log probabilities that the reply had. */
static void prompt_log_probabilities(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {1, 50, 64, 500};
    struct client_job *first = NULL;
    struct bed beds[4];
    for (int i = 0; i < 4; i++) {
        struct engine_config config = fixture_config();
        uint32_t ids[400];
        config.chunk_tokens = chunks[i];
        bed_make(&beds[i], &config);
        memcpy(ids, fixture_ids(14, 30), 30 * sizeof ids[0]);
        struct engine_request request = fixture_request(ids, 30, 200);
        request.logprobs = true;
        request.alternatives = 3;
        const struct client_reply *reply = &client_ask(&beds[i].client, &request)->replies[0];
        memcpy(ids + 30, reply->ids, 200 * sizeof ids[0]);
        struct engine_request scoring = fixture_request(ids, 230, 4);
        scoring.prompt_logprobs = true;
        scoring.alternatives = 3;
        struct client_job *beside = NULL, *job = NULL;
        const uint64_t before = fake_backend.tokens_computed;
        assert_ok(client_submit(&beds[i].client, &scoring, &job));
        assert_ok(client_submit(&beds[i].client, &scoring, &beside)); /* two share the rows of a step */
        client_run(&beds[i].client);
        assert_int_equal(fake_backend.tokens_computed - before, 2 * (230 + 3)); /* nothing from the cache */
        assert_int_equal(job->end.cached_tokens, 0);
        assert_int_equal(job->prompt.count, 229);
        assert_memory_equal(job->prompt.ids, ids + 1, 229 * sizeof ids[0]);
        assert_memory_equal(job->prompt.logprobs + 29, reply->logprobs, 200 * sizeof(float));
        assert_memory_equal(job->prompt.alternative_ids + 3 * 29, reply->alternative_ids, 3 * 200 * sizeof(uint32_t));
        check_logprobs(&job->prompt, 3);
        assert_same_reply(job, beside);
        if (i == 0)
            first = job;
        assert_same_reply(job, first);
        scoring.prompt_logprobs = false;
        scoring.alternatives = 0;
        assert_int_equal(client_ask(&beds[i].client, &scoring)->end.cached_tokens,
                         229); /* and what it computed is found */
    }
    for (int i = 0; i < 4; i++)
        bed_free(&beds[i]);
}

static void penalties_change_the_reply(void **state)
{
    (void)state;
    struct bed bed;
    bed_make(&bed, NULL);
    struct engine_request request = fixture_request(fixture_ids(15, 50), 50, 300);
    request.sampling.presence_penalty = 10; /* more than logits differ: no id comes twice */
    const struct client_job *job = client_ask(&bed.client, &request);
    for (uint32_t i = 0; i < 300; i++)
        for (uint32_t j = 0; j < i; j++)
            assert_int_not_equal(job->replies[0].ids[i], job->replies[0].ids[j]);
    bed_free(&bed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replies_stop_or_fill_the_context),
        cmocka_unit_test(control_ids_are_never_drawn),
        cmocka_unit_test(the_default_seed_is_that_of_the_request),
        cmocka_unit_test(a_reply_continues_from_any_of_its_tokens),
        cmocka_unit_test(stop_strings_cut_exactly),
        cmocka_unit_test(stop_ids_end_like_end_ids),
        cmocka_unit_test(log_probabilities_come_with_their_tokens),
        cmocka_unit_test(prompt_log_probabilities),
        cmocka_unit_test(penalties_change_the_reply),
    };
    return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
