/* Conversations through the engine on the CUDA backend, under emulation: tokens and log probabilities are those of the CPU's engine, with
 * tokens drawn on the device beside others that the engine draws; of all families, over turns, choices, a rewind and the host tier. */
#include "tests/unit/worker/unit.h"
#include "tests/unit/worker/engine_client.h"
#include "tests/unit/worker/random_model.h"
#include "worker/engine/backend/cuda/backend_cuda.h"

enum { CPU, CUDA, ENGINES };
enum { REPLY = 3, TALKS = 4 };

struct world {
    char dir[RANDOM_MODEL_PATH_MAX];
    struct client clients[ENGINES];
};

/* The backend, and a count of what it draws, and of runs that begin before their pages have come. */
static struct backend_ops counted;
static unsigned drawn, followed;

static enum status count_forward(struct backend *backend, const struct backend_batch *batch, uint32_t *failed_run)
{
    for (uint32_t i = 0; i < batch->run_count; i++) {
        drawn += batch->runs[i].sample != NULL;
        followed += batch->runs[i].after != 0;
    }
    return backend_cuda_ops.forward(backend, batch, failed_run);
}

static void setup(struct world *world, struct random_model shape, bool sealed, uint64_t kv_bytes, uint64_t kv_host_bytes)
{
    shape.vocab_size = 4096;
    shape.tokenizer = true;
    shape.context_tokens = 512;
    counted = backend_cuda_ops;
    counted.forward = count_forward;
    drawn = followed = 0;
    assert_ok(random_model_create(&shape, world->dir));
    if (sealed)
        assert_ok(engine_seal(world->dir));       /* so the device has to give the CPU's answer */
    for (unsigned i = 0; i < ENGINES; i++) {
        struct engine *engine = NULL;
        const struct engine_config config = {.model_dir = world->dir, .kv_bytes = kv_bytes, .kv_host_bytes = kv_host_bytes,
                                             .chunk_tokens = 96, .sequences_max = 5, .queue_requests_max = 8,
                                             .rewind_tokens = 64, .snapshots_max = 2,
                                             .skip_known_answer = !sealed, .backend = i == CPU ? NULL : &counted};
        assert_ok(engine_create(&config, &engine));
        client_setup(&world->clients[i], engine);
        engine_observe_logits(engine, NULL, NULL);
    }
}

static void teardown(struct world *world)
{
    for (unsigned i = 0; i < ENGINES; i++) {
        assert_ok(engine_check(world->clients[i].engine));
        engine_destroy(&world->clients[i].engine);
        client_free(&world->clients[i]);
    }
    random_model_remove(world->dir);
}

/* All requests at a time, on both engines. The CPU's jobs. */
static struct client_job **ask(struct world *world, struct engine_request *requests, unsigned count)
{
    static struct client_job *jobs[ENGINES][TALKS];
    for (unsigned i = 0; i < ENGINES; i++) {
        client_reset(&world->clients[i]);
        for (unsigned k = 0; k < count; k++)
            assert_ok(client_submit(&world->clients[i], &requests[k], &jobs[i][k]));
        client_run(&world->clients[i]);
    }
    for (unsigned k = 0; k < count; k++) {
        assert_int_equal(jobs[CPU][k]->end.kind, ENGINE_DONE);
        assert_int_equal(jobs[CUDA][k]->end.cached_tokens, jobs[CPU][k]->end.cached_tokens);
        assert_same_tokens(jobs[CPU][k], jobs[CUDA][k]);
    }
    return jobs[CPU];
}

static void say(struct talk *talk, enum engine_role role, const char *text)
{
    talk_say(talk, role, text, strlen(text));
}

static struct engine_request turn(struct talk *talk, float temperature, uint64_t seed)
{
    struct engine_request request = {.sampling = {.temperature = temperature}, .seed = seed, .seed_given = true, .tokens_max = REPLY};
    talk_request(talk, &request);
    return request;
}

/* Greedy; cut; two choices; one that the engine draws, beside those of the device. */
static void request_turn(struct talk *talks, unsigned t, struct engine_request *requests)
{
    for (unsigned i = 0; i < TALKS; i++)
        requests[i] = turn(&talks[i], i == 0 ? 0 : 1.2f, 10 * t + i);
    requests[1].sampling.top_p = 0.9f;
    requests[1].sampling.top_k = 300;
    requests[1].sampling.min_p = t ? 0.02f : 0;
    requests[2].choices = 2;
    requests[3].sampling.repetition_penalty = t ? 1.0f : 1.3f;
    requests[3].logprobs = t == 1;
}

static void family_agrees(const struct random_model *shape, bool sealed)
{
    struct world world;
    static struct talk talks[TALKS];
    struct engine_request requests[TALKS];
    uint32_t cached = 0;
    memset(talks, 0, sizeof talks);
    setup(&world, *shape, sealed, 3 << 20, 0);
    for (unsigned i = 0; i < TALKS; i++) {
        say(&talks[i], ENGINE_ROLE_SYSTEM, "Elsinore. A platform before the Castle. Night.");
        say(&talks[i], ENGINE_ROLE_USER, i % 2 ? "Who's there? Nay, answer me: stand, and unfold yourself." : "Long live the king!");
    }
    for (unsigned t = 0; t < 2; t++) {
        request_turn(talks, t, requests);
        struct client_job **jobs = ask(&world, requests, TALKS);
        for (unsigned i = 0; i < TALKS; i++) {
            cached += jobs[i]->end.cached_tokens;
            talk_say(&talks[i], ENGINE_ROLE_ASSISTANT, jobs[i]->replies[0].text, jobs[i]->replies[0].text_size);
            say(&talks[i], ENGINE_ROLE_USER, "'Tis now struck twelve; get thee to bed.");
        }
    }
    assert_true(cached > 60);
    assert_true(drawn >= 2 * 2);
    talks[0].messages[1].text[3] ^= 1;          /* an edit: what is behind it is computed anew */
    struct engine_request again = turn(&talks[0], 1.0f, 77);
    (void)ask(&world, &again, 1);
    teardown(&world);
}

static void conversations_agree(void **state)
{
    (void)state;
    const struct random_model *shape;
    for (unsigned i = 0; (shape = random_model_at(i)) != NULL; i++)
        family_agrees(shape, i == 0);
}

/* Two conversations in turn where the device holds one and a bit: each goes to the host and back. */
static void the_host_tier_agrees(void **state)
{
    (void)state;
    struct world world;
    static struct talk talks[3];
    unsigned demoted = 0, promoted = 0;
    memset(talks, 0, sizeof talks);
    setup(&world, random_model_small(), false, 150000, 4 << 20);
    for (unsigned i = 0; i < 3; i++)
        say(&talks[i], ENGINE_ROLE_SYSTEM, i == 0 ? "The wild waste of the sea." : i == 1 ? "A hall in the castle." : "A room.");
    for (unsigned t = 0; t < 3; t++)
        for (unsigned i = 0; i < 3; i++) {
            for (unsigned k = 0; k < 3; k++)
                say(&talks[i], ENGINE_ROLE_USER, "You come most carefully upon your hour, and it is bitter cold, and I am sick at heart.");
            struct engine_request request = turn(&talks[i], 0.8f, 3 * t + i);
            client_converse(&request, i);
            struct client_job **jobs = ask(&world, &request, 1);
            talk_say(&talks[i], ENGINE_ROLE_ASSISTANT, jobs[0]->replies[0].text, jobs[0]->replies[0].text_size);
        }
    for (unsigned i = 0; i < 3; i++) {
        demoted += world.clients[CUDA].fates[i].demoted;
        promoted += world.clients[CUDA].fates[i].promoted;
    }
    assert_true(demoted > 0 && promoted > 0 && followed > 0);
    teardown(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(conversations_agree), cmocka_unit_test(the_host_tier_agrees)};
    return unit_run(tests, NULL, NULL);
}
