#include "tests/unit/worker/engine_fixture.h"
#include "tests/unit/worker/random_model.h"
#include "tests/unit/worker/unit.h"

enum { RING = 1 << 16 };
static char model_dir[RANDOM_MODEL_PATH_MAX];

int fixture_setup(void **state)
{
    (void)state;
    struct random_model shape = random_model_small();
    shape.vocab_size = 4096;
    shape.hidden_size = 128;
    shape.context_tokens = FIXTURE_CONTEXT;
    shape.window = FIXTURE_WINDOW;
    shape.tokenizer = true;
    assert_ok(random_model_create(&shape, model_dir));
    return 0;
}

int fixture_teardown(void **state)
{
    (void)state;
    random_model_remove(model_dir);
    return 0;
}

const char *fixture_model_dir(void)
{
    return model_dir;
}

struct engine_config fixture_config(void)
{
    return (struct engine_config){
        .model_dir = model_dir,
        .kv_bytes = 8 * FIXTURE_CONVERSATION,
        .chunk_tokens = 64,
        .batch_tokens = 512,
        .sequences_max = 8,
        .step_ms_max = 3600000,
        .queue_requests_max = 64,
        .rewind_tokens = 64,
        .snapshots_max = 4,
        .skip_known_answer = true,
        .backend = &fake_backend_ops,
    };
}

struct engine *fixture_engine(const struct engine_config *config)
{
    const struct engine_config standard = fixture_config();
    struct engine *engine = NULL;
    fake_backend = (struct fake_backend_state){.late_seed = 1};
    assert_ok(engine_create(config != NULL ? config : &standard, &engine));
    return engine;
}

struct engine_request fixture_request(const uint32_t *ids, unsigned count, uint32_t tokens_max)
{
    return (struct engine_request){
        .prompt_ids = ids, .prompt_id_count = count, .tokens_max = tokens_max, .sampling = {.tokens_min = 4096}};
}

const uint32_t *fixture_ids(uint64_t seed, unsigned count)
{
    static uint32_t ring[RING];
    static unsigned used;
    assert_true(count <= RING);
    if (used + count > RING)
        used = 0;
    uint32_t *ids = ring + used;
    used += count;
    for (unsigned i = 0; i < count; i++)
        ids[i] = 5 + rng_below(&seed, 4091);
    return ids;
}

void fixture_say_random(struct talk *talk, enum engine_role role, uint64_t *rng)
{
    static const char *const words[] = {"the ",   "king ", "\n",           "Who's there? ", "\xC3\xA9\xF0\x9F\x99\x82 ",
                                        "<turn>", "no ",   "a long road. "};
    char text[400];
    size_t size = 0;
    for (uint32_t n = rng_below(rng, 12); n > 0; n--)
        size += (size_t)snprintf(text + size, sizeof text - size, "%s", words[rng_below(rng, 8)]);
    talk_say(talk, role, text, size);
}
