/* What the engine says of the KV of ended jobs is true: it is there until it is said to be gone, and then it is gone. */
#include "tests/unit/worker/unit.h"
#include "tests/unit/worker/engine_fixture.h"

enum { TALKS = 24, PROMPT = 300, REPLY = 20 };

static struct engine *make_engine(unsigned device, unsigned host)
{
    struct engine_config config = fixture_config();
    config.kv_bytes = device * FIXTURE_CONVERSATION;
    config.kv_host_bytes = host * FIXTURE_CONVERSATION;
    return fixture_engine(&config);
}

/* The prompt and the reply of a job, and another token. */
static struct engine_request next_turn(const uint32_t *prompt, const struct client_job *job, uint32_t *ids)
{
    memcpy(ids, prompt, PROMPT * sizeof *ids);
    memcpy(ids + PROMPT, job->replies[0].ids, job->replies[0].count * sizeof *ids);
    ids[PROMPT + job->replies[0].count] = 77;
    struct engine_request request = fixture_request(ids, PROMPT + job->replies[0].count + 1, 1);
    request.tell_fate = true;
    return request;
}

/* Unlike conversations without a reply encoded anew: exactly what was kept is found again, or nothing at all. */
static void raw(unsigned host, unsigned choices, unsigned *demoted, unsigned *evicted)
{
    const uint32_t all = PROMPT + REPLY - 1; /* the last one drawn was not computed */
    struct client client;
    struct client_job *jobs[TALKS];
    const uint32_t *prompts[TALKS];
    uint64_t rng = test_seed(41);
    client_setup(&client, make_engine(3, host));
    for (unsigned i = 0; i < TALKS; i++) {
        prompts[i] = fixture_ids(rng_next(&rng), PROMPT);
        struct engine_request request = fixture_request(prompts[i], PROMPT, REPLY);
        request.choices = choices;
        request.sampling.temperature = 1;
        request.seed_given = true;
        request.seed = i;
        request.tell_fate = i % 7 != 6; /* of the others nothing is said */
        jobs[i] = client_ask(&client, &request);
    }
    for (unsigned i = 0; i < TALKS; i++) {
        *demoted += jobs[i]->demoted;
        *evicted += jobs[i]->evicted;
        assert_true(jobs[i]->tell_fate || !(jobs[i]->demoted || jobs[i]->evicted));
    }
    for (unsigned n = 0; n < TALKS; n++) {
        const unsigned i = rng_below(&rng, TALKS);
        uint32_t ids[PROMPT + REPLY + 1];
        if (jobs[i] == NULL || !jobs[i]->tell_fate)
            continue;
        const bool gone = jobs[i]->evicted;
        struct engine_request request = next_turn(prompts[i], jobs[i], ids);
        const struct client_job *again = client_ask(&client, &request);
        if (choices == 1)
            assert_int_equal(again->end.cached_tokens, gone ? 0 : all);
        else if (gone)
            assert_int_equal(again->end.cached_tokens, 0); /* no choice is left, so neither is the prompt */
        else
            assert_true(again->end.cached_tokens >= PROMPT);
        jobs[i] = NULL; /* it is part of the longer one, whose fate it shares */
    }
    assert_ok(engine_check(client.engine));
    engine_forget_cache(client.engine); /* between two steps: nobody is told */
    client_free(&client);
    engine_destroy(&client.engine);
}

static void what_is_said_to_be_gone_is_gone(void **state)
{
    (void)state;
    unsigned demoted = 0, evicted = 0;
    raw(0, 1, &demoted, &evicted);
    raw(0, 2, &demoted, &evicted);
    assert_int_equal(demoted, 0);
    assert_true(evicted > 0);
}

static void what_went_to_the_host_is_said(void **state)
{
    (void)state;
    unsigned demoted = 0, evicted = 0;
    raw(2, 1, &demoted, &evicted);
    assert_true(demoted > 0 && evicted > 0);
}

/* A reply that is encoded anew when the engine is idle: the path that the next turn takes is the one whose fate counts. */
static void the_next_turn_finds_what_was_not_said_to_be_gone(void **state)
{
    (void)state;
    struct client client;
    static struct talk talks[TALKS];
    struct client_job *last[TALKS] = {NULL};
    uint64_t rng = test_seed(41);
    unsigned kept = 0, gone = 0;
    memset(talks, 0, sizeof talks);
    client_setup(&client, make_engine(4, 1));
    for (unsigned n = 0; n < 12 * TALKS; n++) {
        struct talk *talk = &talks[rng_below(&rng, TALKS)];
        struct client_job **before = &last[talk - talks];
        struct engine_request request = {.tokens_max = 8, .truncate = true, .tell_fate = true};
        fixture_say_random(talk, ENGINE_ROLE_USER, &rng);
        talk_request(talk, &request);
        const bool was_gone = *before != NULL && (*before)->evicted;
        struct client_job *job = NULL;
        if (talk->count >= TALK_MESSAGES - 2 || client_submit(&client, &request, &job) != STATUS_OK) { /* full */
            *talk = (struct talk){.count = 0};
            *before = NULL;
            continue;
        }
        client_run(&client);
        assert_int_equal(job->end.kind, ENGINE_DONE);
        if (*before != NULL && job->end.dropped_messages == 0) {
            const uint32_t known = (*before)->end.prompt_tokens;
            if (was_gone)
                assert_true(job->end.cached_tokens < known);
            else
                assert_true(job->end.cached_tokens >= known);
            kept += !was_gone;
            gone += was_gone;
        }
        talk_say(talk, ENGINE_ROLE_ASSISTANT, job->replies[0].text, job->replies[0].text_size);
        *before = job;
    }
    assert_true(kept > 0 && gone > 0);
    client_free(&client);
    engine_destroy(&client.engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_said_to_be_gone_is_gone),
        cmocka_unit_test(what_went_to_the_host_is_said),
        cmocka_unit_test(the_next_turn_finds_what_was_not_said_to_be_gone),
    };
    return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
