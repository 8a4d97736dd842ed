/* Cold equals warm with real arithmetic: the tokens of a reply and the bits of its logits, computed over cached KV, are
 * those of a fresh engine that was given the full text, for every chunk size, greedy and at temperature 1.5, over
 * turns, retries, edits and branches; and many at a time are what each is alone. One engine has its tokens drawn by the backend. */
#include "tests/unit/worker/unit.h"
#include <unistd.h>
#include "tests/unit/worker/drawing_backend.h"
#include "tests/unit/worker/engine_client.h"
#include "tests/unit/worker/random_model.h"

static struct engine *make_engine(const char *dir, uint64_t kv_bytes, uint32_t chunk_tokens, const struct backend_ops *backend)
{
    struct engine *engine = NULL;
    const struct engine_config config = {.model_dir = dir,
                                         .backend = backend,
                                         .kv_bytes = kv_bytes,
                                         .chunk_tokens = chunk_tokens,
                                         .sequences_max = 4,
                                         .queue_requests_max = 4,
                                         .rewind_tokens = UINT32_MAX,
                                         .snapshots_max = UINT32_MAX};
    assert_ok(engine_create(&config, &engine));
    return engine;
}

static uint64_t cached_total, drawn_total;

/* The same request on the warm engine and on the cold ones, which forget before each. The last one's logits nobody sees. */
static struct client_job *ask_all(struct client *clients, unsigned count, struct talk *talk, float temperature,
                                  uint64_t seed, uint32_t tokens)
{
    struct client_job *first = NULL;
    struct engine_request request = {
        .sampling = {.temperature = temperature}, .seed = seed, .seed_given = true, .tokens_max = tokens};
    talk_request(talk, &request);
    for (unsigned i = 0; i < count; i++) {
        if (i > 0)
            engine_forget_cache(clients[i].engine);
        client_reset(&clients[i]);
        struct client_job *job = client_ask(&clients[i], &request);
        if (i > 0) {
            assert_int_equal(job->end.cached_tokens, 0);
            assert_int_equal(job->end.prompt_tokens, first->end.prompt_tokens);
            if (i + 1 < count)
                assert_same_reply(first, job);
            else
                assert_same_tokens(first, job);
        } else {
            first = job;
            cached_total += job->end.cached_tokens;
            drawn_total += job->replies[0].draws;
        }
        assert_ok(engine_check(clients[i].engine));
    }
    return first;
}

static void live(const char *dir, uint64_t kv_bytes, float temperature, uint32_t warm_chunk, uint32_t tokens)
{
    static const uint32_t chunks[] = {1, 17, 64, 1024};
    enum { COLD = 4, ENGINES = COLD + 2 };
    struct client clients[ENGINES];
    static struct talk talk, branch;
    struct client_job *reply;
    client_setup(&clients[0], make_engine(dir, kv_bytes, warm_chunk, NULL));
    for (int i = 0; i < COLD; i++)
        client_setup(&clients[1 + i], make_engine(dir, kv_bytes, chunks[i], NULL));
    drawing_backend = (struct drawing_backend_state){.base = &backend_cpu_ops};
    client_setup(&clients[ENGINES - 1], make_engine(dir, kv_bytes, warm_chunk, &drawing_backend_ops));
    engine_observe_logits(clients[ENGINES - 1].engine, NULL, NULL);
    const uint64_t shown = drawing_backend.shown; /* the known answer's */
    cached_total = drawn_total = 0;
    memset(&talk, 0, sizeof talk);
    talk_say(&talk, ENGINE_ROLE_SYSTEM, "Elsinore. A platform before the Castle. Night. The guard is changed.", 68);
    talk_say(&talk, ENGINE_ROLE_USER, "Who's there?", 12);
    reply = ask_all(clients, ENGINES, &talk, temperature, 1, tokens);
    for (int turn = 0; turn < 3; turn++) {
        talk_say(&talk, ENGINE_ROLE_ASSISTANT, reply->replies[0].text, reply->replies[0].text_size);
        talk_say(
            &talk, ENGINE_ROLE_USER,
            "Nay, answer me: stand, and unfold yourself. Long live the king! You come most carefully upon your hour.",
            103);
        reply = ask_all(clients, ENGINES, &talk, temperature, 2, tokens);
        if (turn == 0)
            branch = talk;
    }
    ask_all(clients, ENGINES, &talk, temperature, 3, tokens); /* retry */
    talk.messages[3].text[20] ^= 1;                           /* edit an earlier message */
    ask_all(clients, ENGINES, &talk, temperature, 4, tokens);
    talk_say(&branch, ENGINE_ROLE_USER, "'Tis now struck twelve; get thee to bed.",
             40); /* branch from the second turn */
    ask_all(clients, ENGINES, &branch, temperature, 5, tokens);
    talk.messages[3].text[20] ^= 1; /* and back to the first line */
    ask_all(clients, ENGINES, &talk, temperature, 6, tokens);
    assert_true(cached_total > 300);
    assert_true(drawing_backend.drawn == drawn_total && drawing_backend.shown == shown);
    for (int i = 0; i < ENGINES; i++) {
        engine_destroy(&clients[i].engine);
        client_free(&clients[i]);
    }
}

static void a_random_model(void **state)
{
    (void)state;
    static const uint32_t warm_chunks[] = {1, 17, 64, 1024};
    char dir[RANDOM_MODEL_PATH_MAX];
    struct random_model shape = random_model_small();
    shape.vocab_size = 4096;
    shape.hidden_size = 128;
    shape.tokenizer = true;
    assert_ok(random_model_create(&shape, dir));
    assert_ok(engine_seal(dir)); /* so each engine below also computes the known answer in its chunks */
    for (int i = 0; i < 4; i++)  /* each is compared with four cold engines, one of each chunk size */
        live(dir, 32 << 20, i % 2 ? 1.5f : 0, warm_chunks[i], 24);
    live(dir, 32 << 20, 1.5f, 64, 24);
    random_model_remove(dir);
}

/* What strangers do beside a request does not matter: alone in an engine that forgets, and all together in one with
 * little memory, two threads and another chunk size. */
static void many_at_a_time(void **state)
{
    (void)state;
    enum { JOBS = 7 };
    char dir[RANDOM_MODEL_PATH_MAX];
    struct random_model shape = random_model_small();
    shape.vocab_size = 4096;
    shape.hidden_size = 128;
    shape.tokenizer = true;
    shape.context_tokens = 640;
    assert_ok(random_model_create(&shape, dir));
    struct client alone, together;
    struct client_job *jobs[JOBS];
    struct engine_request requests[JOBS];
    uint32_t ids[JOBS][500];
    uint64_t rng = 1, page_bytes;
    client_setup(&alone, make_engine(dir, 32 << 20, 1024, NULL));
    page_bytes = (uint64_t)engine_info(alone.engine)->kv_bytes_per_token * 64;
    struct engine *engine = NULL;
    const struct engine_config config = {.model_dir = dir,
                                         .kv_bytes = 16 * page_bytes,
                                         .kv_host_bytes = 20 * page_bytes,
                                         .chunk_tokens = 48,
                                         .batch_tokens = 100,
                                         .sequences_max = 5,
                                         .queue_requests_max = JOBS,
                                         .rewind_tokens = 64,
                                         .threads = 2};
    assert_ok(engine_create(&config, &engine));
    client_setup(&together, engine);
    together.check = true;
    for (unsigned i = 0; i < JOBS; i++) {
        const unsigned count = 20 + 65 * i;
        for (unsigned n = 0; n < count; n++)
            ids[i][n] = 5 + rng_below(&rng, 4091);
        requests[i] = (struct engine_request){.prompt_ids = ids[i],
                                              .prompt_id_count = count,
                                              .seed = i,
                                              .seed_given = true,
                                              .tokens_max = 60,
                                              .choices = 1 + i % 3,
                                              .logprobs = i % 2,
                                              .alternatives = i,
                                              .prompt_logprobs = i == 3,
                                              .priority = (int32_t)(i % 2)};
        requests[i].sampling.temperature = i == 2 ? 0 : 1;
        requests[i].sampling.repetition_penalty = 1.2f;
        requests[i].sampling.tokens_min = 60;
        assert_ok(client_submit(&together, &requests[i], &jobs[i]));
    }
    client_run(&together);
    for (unsigned i = 0; i < JOBS; i++) {
        engine_forget_cache(alone.engine);
        assert_same_reply(jobs[i], client_ask(&alone, &requests[i]));
    }
    engine_destroy(&alone.engine);
    engine_destroy(&together.engine);
    client_free(&alone);
    client_free(&together);
    random_model_remove(dir);
}

static void the_folio_model(void **state)
{
    (void)state;
    char dir[512], weights[600];
    source_path("deploy/models/folio", dir, sizeof dir);
    snprintf(weights, sizeof weights, "%s/model.safetensors", dir);
    if (access(weights, R_OK) != 0)
        skip();
    live(dir, 64 << 20, 0, 64, 20);
    live(dir, 64 << 20, 1.5f, 17, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_random_model),
        cmocka_unit_test(many_at_a_time),
        cmocka_unit_test(the_folio_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
