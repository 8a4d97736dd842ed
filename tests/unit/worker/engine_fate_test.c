/* What the engine says of the KV of conversations is true: it is there until it is said to be gone, and then it is gone. */
#include "tests/unit/worker/unit.h"
#include <string.h>
#include "tests/unit/worker/engine_fixture.h"

enum { TALKS = 24, PROMPT = 300, REPLY = 20, ALL = PROMPT + REPLY - 1 /* the last one drawn was not computed */ };

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
    return fixture_request(ids, PROMPT + job->replies[0].count + 1, 1);
}

static void ask_others(struct client *client, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct engine_request other = fixture_request(fixture_ids(1000 + i, PROMPT), PROMPT, REPLY);
        (void)client_ask(client, &other);
    }
}

/* As if the engine were new. */
static void start_over(struct client *client)
{
    client_run(client);
    engine_forget_cache(client->engine); /* between two steps: nobody is told */
    memset(client->fates, 0, sizeof client->fates);
    client_reset(client);
}

/* Unlike conversations without a reply encoded anew: exactly what was kept is found again, or nothing at all. */
static void raw(unsigned host, unsigned choices, struct client_fate *sum)
{
    struct client client;
    struct client_job *jobs[TALKS];
    const uint32_t *prompts[TALKS];
    uint64_t rng = test_seed(41);
    client_setup(&client, make_engine(3, host));
    client.check = true;
    for (unsigned i = 0; i < TALKS; i++) {
        prompts[i] = fixture_ids(rng_next(&rng), PROMPT);
        struct engine_request request = fixture_request(prompts[i], PROMPT, REPLY);
        request.choices = choices;
        request.sampling.temperature = 1;
        request.seed_given = true;
        request.seed = i;
        if (i % 7 != 6) /* of the others nothing is said */
            client_converse(&request, i);
        jobs[i] = client_ask(&client, &request);
    }
    for (unsigned n = 0; n < TALKS; n++) {
        const unsigned i = rng_below(&rng, TALKS);
        uint32_t ids[PROMPT + REPLY + 1];
        if (jobs[i] == NULL || jobs[i]->fate == NULL)
            continue;
        const struct client_fate before = *jobs[i]->fate;
        struct engine_request request = next_turn(prompts[i], jobs[i], ids);
        client_converse(&request, i);
        const struct client_job *again = client_ask(&client, &request);
        if (choices == 1)
            assert_int_equal(again->end.cached_tokens, before.kept ? ALL : 0);
        else if (before.kept)
            assert_true(again->end.cached_tokens >= PROMPT);
        else
            assert_int_equal(again->end.cached_tokens, 0); /* no choice is left, so neither is the prompt */
        const bool came = jobs[i]->fate->promoted > before.promoted;
        if (before.kept && before.host) /* or its own coming back pushed it out of the order of eviction: it is kept anew */
            assert_true(came || jobs[i]->fate->evicted > before.evicted);
        else if (came) /* it was on its way to the host when it was asked for */
            assert_true(jobs[i]->fate->demoted > before.demoted);
        jobs[i] = NULL;
    }
    for (unsigned i = 0; i < TALKS; i++) {
        sum->demoted += client.fates[i].demoted;
        sum->promoted += client.fates[i].promoted;
        sum->evicted += client.fates[i].evicted;
    }
    client_free(&client);
    engine_destroy(&client.engine);
}

static void what_is_said_to_be_gone_is_gone(void **state)
{
    (void)state;
    struct client_fate sum = {0};
    raw(0, 1, &sum);
    raw(0, 2, &sum);
    assert_int_equal(sum.demoted + sum.promoted, 0);
    assert_true(sum.evicted > 0);
}

static void what_went_to_the_host_is_said(void **state)
{
    (void)state;
    struct client_fate sum = {0};
    raw(2, 1, &sum);
    assert_true(sum.demoted > sum.promoted && sum.promoted > 0 && sum.evicted > 0);
}

enum successor { NONE, ANOTHER, NOBODY, CANCELLED, CANCELLED_AND_RETRIED, EDITED };

/* Others continue it, or it goes on and is cancelled: its KV is then part of a longer path, far from whose end its own is. */
static void succeed(struct client *client, enum successor successor, const uint32_t *prompt, const struct client_job *first)
{
    uint32_t ids[PROMPT + REPLY + 1];
    struct engine_request request = next_turn(prompt, first, ids);
    struct client_job *job = NULL;
    request.tokens_max = 200;
    if (successor == NONE)
        return;
    if (successor != NOBODY)
        client_converse(&request, successor == ANOTHER ? 2 : 1);
    if (successor == EDITED)
        ids[PROMPT / 2]++;
    assert_ok(client_submit(client, &request, &job));
    if (successor == CANCELLED || successor == CANCELLED_AND_RETRIED) {
        for (unsigned i = 0; i < 150; i++)
            (void)client_step(client);
        assert_true(!job->ended && job->replies[0].count > 100);
        engine_cancel(client->engine, job->job);
    }
    client_run(client);
    if (successor == CANCELLED_AND_RETRIED)
        (void)client_ask(client, &request);
}

static void own_fates(unsigned host)
{
    struct client client;
    client_setup(&client, make_engine(3, host));
    client.check = true;
    for (enum successor successor = NONE; successor <= EDITED; successor++) {
        unsigned kept = 0, gone = 0;
        for (unsigned others = 0; others < 32; others += 1 + others / 4) {
            const uint32_t *prompt = fixture_ids(1, PROMPT);
            uint32_t ids[PROMPT + REPLY + 1];
            struct engine_request request = fixture_request(prompt, PROMPT, REPLY);
            client_converse(&request, 1);
            const struct client_job *first = client_ask(&client, &request);
            const struct client_fate *fate = first->fate;
            succeed(&client, successor, prompt, first);
            ask_others(&client, others);
            request = next_turn(prompt, first, ids);
            if (successor == EDITED)
                ids[PROMPT / 2]++;
            const bool said = fate->kept;
            const struct client_job *next = client_ask(&client, &request);
            if (said)
                assert_true(next->end.cached_tokens >= ALL);
            else if (successor == NONE || others > 26) /* before, others may keep a part of it */
                assert_int_equal(next->end.cached_tokens, 0);
            kept += said;
            gone += !said;
            start_over(&client);
        }
        assert_true(kept > 0 && gone > 0);
    }
    client_free(&client);
    engine_destroy(&client.engine);
}

static void a_fate_is_its_own(void **state)
{
    (void)state;
    own_fates(0);
    own_fates(1);
}

/* Several conversations of one path: all learn of its end, each once. */
static void a_shared_path_has_many_fates(void **state)
{
    (void)state;
    struct client client;
    client_setup(&client, make_engine(3, 0));
    client.check = true;
    for (unsigned i = 0; i < 8; i++) {
        struct engine_request request = fixture_request(fixture_ids(1, PROMPT), PROMPT, REPLY);
        client_converse(&request, i);
        assert_int_equal(client_ask(&client, &request)->end.cached_tokens, i == 0 ? 0 : PROMPT - 1);
        assert_int_equal(client.fates[0].evicted, 0);
    }
    ask_others(&client, 16);
    for (unsigned i = 0; i < 8; i++)
        assert_true(!client.fates[i].kept && client.fates[i].evicted == 1);
    client_free(&client);
    engine_destroy(&client.engine);
}

/* DONE promises nothing when nothing was computed; what never came to its end is not spoken of. */
static void what_was_not_kept_is_said(void **state)
{
    (void)state;
    struct client client;
    struct client_job *job;
    client_setup(&client, make_engine(3, 0));
    const uint32_t *prompt = fixture_ids(1, PROMPT), *reply = fixture_ids(2, REPLY), count = REPLY;
    struct engine_request request = fixture_request(prompt, PROMPT, REPLY);
    client_converse(&request, 1);
    request.resume_counts = &count;
    request.resume_ids = reply;
    assert_int_equal(client_ask(&client, &request)->end.cached_tokens, 0);
    assert_true(!client.fates[1].kept && client.fates[1].evicted == 1);
    request = fixture_request(prompt, PROMPT, REPLY);
    client_converse(&request, 2);
    assert_ok(client_submit(&client, &request, &job));
    (void)client_step(&client);
    engine_cancel(client.engine, job->job);
    client_run(&client);
    ask_others(&client, 16);
    assert_int_equal(client.fates[2].evicted, 0);
    client_free(&client);
    engine_destroy(&client.engine);
}

/* A reply that is encoded anew when the engine is idle, if there is time: the path that the next turn takes is the one whose fate counts. */
static void the_next_turn_finds_what_was_not_said_to_be_gone(void **state)
{
    (void)state;
    struct client client;
    static struct talk talks[TALKS];
    struct client_job *last[TALKS] = {NULL};
    uint64_t rng = test_seed(41);
    unsigned kept = 0, gone = 0, found = 0;
    memset(talks, 0, sizeof talks);
    client_setup(&client, make_engine(4, 1));
    for (unsigned n = 0; n < 12 * TALKS; n++) {
        const unsigned i = rng_below(&rng, TALKS);
        struct talk *talk = &talks[i];
        struct engine_request request = {.tokens_max = 8, .truncate = true};
        client_converse(&request, i);
        fixture_say_random(talk, ENGINE_ROLE_USER, &rng);
        talk_request(talk, &request);
        const bool was_kept = last[i] != NULL && last[i]->fate->kept;
        struct client_job *job = NULL;
        if (talk->count >= TALK_MESSAGES - 2 || client_submit(&client, &request, &job) != STATUS_OK) { /* full */
            *talk = (struct talk){.count = 0};
            last[i] = NULL;
            continue;
        }
        if (rng_below(&rng, 3) == 0)
            client_run_jobs(&client);
        else
            client_run(&client);
        assert_int_equal(job->end.kind, ENGINE_DONE);
        if (last[i] != NULL && job->end.dropped_messages == 0) {
            const uint32_t known = last[i]->end.prompt_tokens;
            if (was_kept)
                assert_true(job->end.cached_tokens >= known);
            else /* what was being encoded anew just then is kept, by nobody's name */
                found += job->end.cached_tokens >= known;
            kept += was_kept;
            gone += !was_kept;
        }
        talk_say(talk, ENGINE_ROLE_ASSISTANT, job->replies[0].text, job->replies[0].text_size);
        last[i] = job;
    }
    assert_true(kept > 0 && gone > 10 && found * 10 < gone);
    client_free(&client);
    engine_destroy(&client.engine);
}

static struct client_job *say(struct client *client, struct talk *talk, uint64_t *rng)
{
    struct engine_request request = {.tokens_max = 60, .seed_given = true};
    struct client_job *job;
    client_converse(&request, 1);
    request.sampling.temperature = 1;
    fixture_say_random(talk, ENGINE_ROLE_USER, rng);
    talk_request(talk, &request);
    assert_ok(client_submit(client, &request, &job));
    client_run_jobs(client);
    assert_int_equal(job->end.kind, ENGINE_DONE);
    talk_say(talk, ENGINE_ROLE_ASSISTANT, job->replies[0].text, job->replies[0].text_size);
    return job;
}

/* Two turns, `steps` of idle time, some others without any, and a third turn. True: it was said to be gone before. */
static bool third_turn(struct client *client, unsigned steps, unsigned others)
{
    static struct talk talk;
    struct client_job *job;
    uint64_t rng = 7;
    talk.count = 0;
    (void)say(client, &talk, &rng);
    const uint32_t known = say(client, &talk, &rng)->end.prompt_tokens;
    for (unsigned i = 0; i < steps; i++)
        (void)client_step(client);
    for (unsigned i = 0; i < others; i++) {
        struct engine_request other = fixture_request(fixture_ids(1000 + i, 60), 60, 1);
        assert_ok(client_submit(client, &other, &job));
        client_run_jobs(client);
    }
    const bool kept = client->fates[1].kept;
    const uint32_t cached = say(client, &talk, &rng)->end.cached_tokens;
    if (kept)
        assert_true(cached >= known);
    else
        assert_true(cached < known);
    start_over(client);
    return !kept;
}

/* The path whose fate is told is that of the last turn, encoded anew if there was time for it, and of no earlier one. */
static void idle_time_changes_the_path(void **state)
{
    (void)state;
    struct client client;
    client_setup(&client, make_engine(2, 0));
    for (unsigned steps = 0; steps < 12; steps++) {
        unsigned others = 0;
        while (!third_turn(&client, steps, others))
            others++;
        assert_true(others > 2);
    }
    client_free(&client);
    engine_destroy(&client.engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_said_to_be_gone_is_gone),
        cmocka_unit_test(what_went_to_the_host_is_said),
        cmocka_unit_test(a_fate_is_its_own),
        cmocka_unit_test(a_shared_path_has_many_fates),
        cmocka_unit_test(what_was_not_kept_is_said),
        cmocka_unit_test(idle_time_changes_the_path),
        cmocka_unit_test(the_next_turn_finds_what_was_not_said_to_be_gone),
    };
    return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
