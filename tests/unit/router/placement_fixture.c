#include "placement_fixture.h"
#include <string.h>
#include "common/clock.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "spin.h"
#include "tests/unit/unit.h"

void on_answer(void *user, const struct placement_answer *got)
{
    struct answer *answer = user;
    if (got->late) {
        answer->lates++;
        answer->late = *got;
    } else {
        answer->firsts++;
        answer->first = *got;
        answer->first_us = clock_now_us();
    }
}

struct placement_key key_of(const char *tenant, const char *conversation)
{
    struct placement_salt salt;
    struct placement_key key;
    placement_salt_make("salt", &salt);
    placement_key_make(&salt, wire_span_str(tenant), wire_span_str(conversation), &key);
    return key;
}

struct placement_record record_of(const char *owner, uint64_t epoch)
{
    struct placement_record record = {.epoch = epoch};
    snprintf(record.owner, sizeof record.owner, "%s", owner);
    return record;
}

void bench_start(struct bench *bench, bool redis)
{
    memset(bench, 0, sizeof *bench);
    bench->redis = redis;
    assert_int_equal(loop_create(&bench->loop), STATUS_OK);
    if (!redis) {
        assert_int_equal(placement_memory_create(bench->loop, 1000, &bench->stores[0]), STATUS_OK);
        bench->stores[2] = bench->stores[1] = bench->stores[0];
        return;
    }
    redis_server_start(&bench->server);
    for (unsigned i = 0; i < 3; i++) {
        struct redis_link_config config = {.address = bench->server.socket};
        assert_int_equal(redis_link_create(bench->loop, &config, &bench->links[i]), STATUS_OK);
        assert_int_equal(placement_redis_create(bench->links[i], &bench->stores[i]), STATUS_OK);
    }
    SPIN_UNTIL(bench->loop, 2000,
               redis_link_up(bench->links[0]) && redis_link_up(bench->links[1]) && redis_link_up(bench->links[2]));
}

void bench_stop(struct bench *bench)
{
    for (unsigned i = 0; i < 3; i++)
        redis_link_destroy(&bench->links[i]);
    for (unsigned i = 0; i < (bench->redis ? 3 : 1); i++)
        placement_destroy(&bench->stores[i]);
    redis_server_destroy(&bench->server);
    loop_destroy(&bench->loop);
}

enum status start_claim(struct bench *bench, unsigned store, const struct placement_key *key, const char *owner,
                        uint32_t budget_ms, struct answer *answer)
{
    struct placement_record proposal = record_of(owner, 0);
    memset(answer, 0, sizeof *answer);
    answer->sent_us = clock_now_us();
    struct placement *self = bench->stores[store];
    return self->ops->claim(self, key, &proposal, budget_ms, on_answer, answer);
}

struct placement_answer claim(struct bench *bench, unsigned store, const struct placement_key *key, const char *owner)
{
    struct answer answer;
    assert_int_equal(start_claim(bench, store, key, owner, 2000, &answer), STATUS_OK);
    assert_int_equal(answer.firsts, 0); /* never from inside the call */
    SPIN_UNTIL(bench->loop, 3000, answer.firsts == 1);
    return answer.first;
}

struct placement_answer replace(struct bench *bench, unsigned store, const struct placement_key *key,
                                const struct placement_record *expected, const struct placement_record *desired)
{
    struct answer answer = {0};
    struct placement *self = bench->stores[store];
    assert_int_equal(self->ops->replace(self, key, expected, desired, 2000, on_answer, &answer), STATUS_OK);
    SPIN_UNTIL(bench->loop, 3000, answer.firsts == 1);
    return answer.first;
}
