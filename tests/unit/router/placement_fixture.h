/* placement_fixture.h - for tests of placements: one store in memory, or three of a Redis of their own, and their
 * answers. */
#ifndef ROOST_TESTS_ROUTER_PLACEMENT_FIXTURE_H
#define ROOST_TESTS_ROUTER_PLACEMENT_FIXTURE_H
#include <stdbool.h>
#include <stdint.h>
#include "redis_server.h"
#include "router/placement.h"

struct loop;
struct redis_link;

struct bench {
    struct loop *loop;
    bool redis;
    struct redis_server server;
    struct redis_link *links[3];
    struct placement *stores[3]; /* three routers; the same one thrice in memory */
};

struct answer {
    unsigned firsts, lates;
    struct placement_answer first, late;
    uint64_t sent_us, first_us;
};

void bench_start(struct bench *bench, bool redis);
void bench_stop(struct bench *bench);

struct placement_key key_of(const char *tenant, const char *conversation);
struct placement_record record_of(const char *owner, uint64_t epoch);

void on_answer(void *user, const struct placement_answer *got); /* user is an answer */
enum status start_claim(struct bench *bench, unsigned store, const struct placement_key *key, const char *owner,
                        uint32_t budget_ms, struct answer *answer);
/* These wait for the answer. */
struct placement_answer claim(struct bench *bench, unsigned store, const struct placement_key *key, const char *owner);
struct placement_answer replace(struct bench *bench, unsigned store, const struct placement_key *key,
                                const struct placement_record *expected, const struct placement_record *desired);

#endif
