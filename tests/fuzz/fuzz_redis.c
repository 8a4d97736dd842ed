/* fuzz_redis.c - bytes as Redis may send them: through hiredis' reader into everything of ours that reads a reply. The
 * first byte says how the rest is cut into two reads. */
#include <hiredis/hiredis.h>
#include <string.h>
#include "common/redis_bound.h"
#include "common/redis_link.h"
#include "common/redis_sentinel.h"
#include "router/placement.h"
#include "tests/fuzz/fuzz.h"
#include "worker/server/conversations.h"

enum { BYTES_MAX = 1 << 16 };

/* What comes out keeps the rules of a record, whatever went in. */
static void check_placement(const struct redisReply *reply)
{
    struct placement_answer answer = {.st = STATUS_OK};
    if (placement_redis_parse(reply, &answer) != STATUS_OK || !answer.found)
        return;
    FUZZ_CHECK(memchr(answer.record.owner, 0, sizeof answer.record.owner) != NULL);
    FUZZ_CHECK(wire_name_valid(wire_span_str(answer.record.owner)));
    FUZZ_CHECK(answer.record.epoch < PLACEMENT_EPOCH_MAX && answer.record.tokens <= 999999999);
    FUZZ_CHECK(answer.record.tier <= PLACEMENT_TIER_HOST);
}

static void check_reply(const struct redisReply *reply)
{
    bool ours;
    uint64_t epoch;
    char address[REDIS_ADDRESS_MAX];
    check_placement(reply);
    if (conversations_parse(reply, &ours, &epoch) == STATUS_OK)
        FUZZ_CHECK(epoch < PLACEMENT_EPOCH_MAX);
    if (redis_sentinel_parse(reply, address, sizeof address) == STATUS_OK)
        FUZZ_CHECK(memchr(address, 0, sizeof address) != NULL && redis_address_check("fuzz", address) == STATUS_OK);
}

static size_t elements_of(const struct redisReply *reply)
{
    size_t elements = 0;
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++)
        elements += 1 + elements_of(reply->element[i]);
    return elements;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > BYTES_MAX)
        return 0;
    size_t cut = 1 + data[0] % size;
    redisReader *reader = redisReaderCreate();
    if (!reader)
        return 0;
    struct redis_bound bound; /* without it every run would soon be one that announces 10^9 elements */
    redis_bound_set(&bound, reader);
    const size_t ends[] = {cut, size};
    size_t at = 1;
    for (unsigned i = 0; i < 2; i++) {
        void *reply = NULL;
        if (ends[i] > at && redisReaderFeed(reader, (const char *)data + at, ends[i] - at) != REDIS_OK)
            break;
        at = ends[i] > at ? ends[i] : at;
        while (redisReaderGetReply(reader, &reply) == REDIS_OK && reply) {
            check_reply(reply);
            FUZZ_CHECK(elements_of(reply) <= REDIS_REPLY_ELEMENTS_MAX);
            freeReplyObject(reply);
        }
    }
    redis_bound_remove(&bound, reader);
    redisReaderFree(reader);
    return 0;
}
