/* kv_world.h - a KV cache over the fake backend, and requests that compute with it: every token goes through forward, every page a
 * sequence shows is compared with what its tokens must have left there. Matches are compared with a search that knows no hash, no order
 * and no hints: all nodes, one by one. */
#ifndef ROOST_TESTS_KV_WORLD_H
#define ROOST_TESTS_KV_WORLD_H
#include "tests/unit/worker/fake_backend.h"
#include "tests/unit/worker/unit.h"
#include "worker/engine/kv/kv_cache.h"

enum { WORLD_TOKENS = 1024 };

struct world_shape {
    bool global, local;
    uint32_t window, sinks, rewind, snapshots, context, chunk, open_max, late;
    uint64_t device_bytes, host_bytes, hash_mask;   /* device_bytes 0: the least that is accepted */
    kv_fate_fn *on_fate;                /* NULL: nobody asks */
    void *fate_user;
    bool loads;                         /* pages come back as loads, and sequences may compute behind them */
    bool tight;                         /* no tier holds a second sequence: what was matched may have to give way */
};

struct world {
    struct world_shape shape;
    struct backend *backend;
    struct kv_cache *cache;
    uint64_t tokens_computed;
};

struct world_request {                  /* a prompt, and the reply that follows it */
    uint8_t root[KV_CACHE_ROOT_BYTES];
    uint32_t ids[WORLD_TOKENS], ends[WORLD_TOKENS];
    uint32_t count, end_count, total;   /* tokens of the prompt; and with the reply */
    const uint8_t *label;               /* of the kept path; NULL: none */
    struct kv_sequence *sequence;
};

void world_create(struct world *world, const struct world_shape *shape);
void world_destroy(struct world *world);    /* after checking that everything comes back */
void world_check(const struct world *world);
struct kv_prompt world_prompt(const struct world_request *request);

/* The longest resumable beginning, by brute force over every node. */
uint32_t world_match(const struct world *world, const struct world_request *request, uint32_t limit);
/* Opens, comparing the match with the other way to find it. */
enum status world_open(struct world *world, struct world_request *request);
void world_settle(struct world *world, struct kv_sequence *sequence);    /* polls until it is ready */
/* The pages hold what the tokens counted must have left. */
void world_verify(const struct world *world, const struct world_request *request);
/* Computes up to `tokens` tokens in chunks of at most `chunk`. */
enum status world_compute(struct world *world, struct world_request *request, uint32_t tokens, uint32_t chunk);
void world_keep(struct world *world, struct world_request *request);
/* All of it: opened, computed, kept; returns what was matched. */
uint32_t world_say(struct world *world, struct world_request *request);

/* Tokens drawn from 1 .. 1 + kinds appended as one message. */
void world_add_message(struct world_request *request, uint32_t count, uint32_t kinds, uint64_t *rng);
uint64_t world_local_pages(const struct world *world);      /* used, both tiers */

#endif
