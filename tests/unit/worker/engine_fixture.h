/* engine_fixture.h - what the tests of the engine share: a small random model with a real tokenizer, engines over the fake backend
 * (fake_backend.h: tokens betray every wrong KV page), requests of raw ids. */
#ifndef ROOST_TESTS_ENGINE_FIXTURE_H
#define ROOST_TESTS_ENGINE_FIXTURE_H
#include <stdint.h>
#include "tests/unit/worker/engine_client.h"
#include "tests/unit/worker/fake_backend.h"
#include "worker/engine/engine.h"

enum {
    FIXTURE_CONTEXT = 640,
    FIXTURE_WINDOW = 24,
    FIXTURE_PAGE = FAKE_BACKEND_PAGE_GLOBAL + FAKE_BACKEND_PAGE_LOCAL,        /* of both groups */
    FIXTURE_CONVERSATION = (FIXTURE_CONTEXT / 64 + 4) * FIXTURE_PAGE,         /* device bytes of one at full context, and to spare */
};

int fixture_setup(void **state);                     /* cmocka group setup: writes the model */
int fixture_teardown(void **state);
const char *fixture_model_dir(void);

/* chunk 64, 8 sequences, 64 may wait, no step is too slow, room for eight conversations, R = 64, over the fake backend, which is reset. */
struct engine_config fixture_config(void);
struct engine *fixture_engine(const struct engine_config *config);   /* NULL: the above */

struct engine_request fixture_request(const uint32_t *ids, unsigned count, uint32_t tokens_max);
/* `count` ids above the control ids; the same seed gives the same. Valid until as many more are asked for as one ring holds (64k). */
const uint32_t *fixture_ids(uint64_t seed, unsigned count);

void fixture_say_random(struct talk *talk, enum engine_role role, uint64_t *rng);

#endif
