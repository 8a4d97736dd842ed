/* placement_redis.c - placement records in Redis (common/redis_record.h). Each call is one script, so that reading,
 * deciding and writing are one step. Replies are checked again here. */
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/redis_link.h"
#include "common/redis_script.h"
#include "router/placement.h"

enum script_kind { SCRIPT_CLAIM, SCRIPT_REPLACE, SCRIPT_COUNT };

static const char *const script_text[SCRIPT_COUNT] = {
    /* owner, cache, epoch given, ttl */
    [SCRIPT_CLAIM] = REDIS_RECORD_LUA "if r then redis.call('EXPIRE', key, ARGV[4]) return answer(0, r) end\n"
                                      "r = {ARGV[1], ARGV[2], epoch(0, tonumber(ARGV[3])), '0', ''}\n"
                                      "write(r, ARGV[4])\n"
                                      "return answer(1, r)\n",
    /* owner, cache, epoch given, ttl, expected owner, expected epoch */
    [SCRIPT_REPLACE] =
        REDIS_RECORD_LUA "if r and (r[1] ~= ARGV[5] or r[3] ~= ARGV[6]) then return answer(0, r) end\n"
                         "if r and r[1] == ARGV[1] then r[2] = ARGV[2]\n"
                         "else r = {ARGV[1], ARGV[2], epoch(tonumber(ARGV[6]), tonumber(ARGV[3])), '0', ''} end\n"
                         "write(r, ARGV[4])\n"
                         "return answer(1, r)\n",
};

enum { NUMBER_MAX = 24 }; /* 20 digits of 2^64 */

struct store {
    struct placement base;
    struct redis_link *link; /* ref */
    struct redis_script *scripts[SCRIPT_COUNT];
};

/* One call, until its last callback. */
struct operation {
    placement_answer_fn *fn;
    void *user;
};

static struct store *store_of(const struct placement *self)
{
    return (struct store *)self;
}

/* ---- replies ---- */

static bool is_string(const struct redisReply *reply, size_t size_max)
{
    return reply->type == REDIS_REPLY_STRING && (size_t)reply->len <= size_max;
}

static bool is_text(const struct redisReply *reply, const char *text)
{
    return reply->type == REDIS_REPLY_STRING && (size_t)reply->len == strlen(text) &&
           memcmp(reply->str, text, strlen(text)) == 0;
}

/* 1 to digits_max digits; at most 18, so that it fits. */
static bool parse_number(const struct redisReply *reply, size_t digits_max, uint64_t *out)
{
    if (!is_string(reply, digits_max) || reply->len == 0)
        return false;
    uint64_t number = 0;
    for (size_t i = 0; i < (size_t)reply->len; i++) {
        if (reply->str[i] < '0' || reply->str[i] > '9')
            return false;
        number = number * 10 + (uint64_t)(reply->str[i] - '0');
    }
    *out = number;
    return true;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* owner, cache, epoch, tokens, tier */
static bool parse_record(struct redisReply *const *fields, struct placement_record *out)
{
    struct placement_record record = {0};
    if (!is_string(fields[0], WIRE_NAME_MAX) || !wire_name_valid(wire_span_of(fields[0]->str, (size_t)fields[0]->len)))
        return false;
    memcpy(record.owner, fields[0]->str, (size_t)fields[0]->len);
    if (!is_string(fields[1], 2 * WIRE_ID_BYTES) || (fields[1]->len != 0 && fields[1]->len != 2 * WIRE_ID_BYTES))
        return false;
    record.has_cache = fields[1]->len != 0;
    for (size_t i = 0; record.has_cache && i < WIRE_ID_BYTES; i++) {
        int high = hex_digit(fields[1]->str[2 * i]), low = hex_digit(fields[1]->str[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        record.cache_id[i] = (uint8_t)(high << 4 | low);
    }
    uint64_t tokens;
    if (!parse_number(fields[2], 16, &record.epoch) || record.epoch >= PLACEMENT_EPOCH_MAX ||
        !parse_number(fields[3], 9, &tokens))
        return false;
    record.tokens = (uint32_t)tokens;
    record.tier = is_text(fields[4], "device") ? PLACEMENT_TIER_DEVICE
                  : is_text(fields[4], "host") ? PLACEMENT_TIER_HOST
                                               : PLACEMENT_TIER_UNKNOWN;
    *out = record;
    return true;
}

enum status placement_redis_parse(const struct redisReply *reply, struct placement_answer *out)
{
    struct placement_answer answer = {.st = out->st, .late = out->late};
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != REDIS_RECORD_FIELDS ||
        reply->element[0]->type != REDIS_REPLY_INTEGER || reply->element[6]->type != REDIS_REPLY_INTEGER)
        return STATUS_FAIL(STATUS_CORRUPT, "redis answered no placement");
    answer.ours = reply->element[0]->integer == 1;
    if (!is_text(reply->element[1], "")) {
        if (!parse_record(&reply->element[1], &answer.record))
            return STATUS_FAIL(STATUS_CORRUPT, "redis answered a placement record that breaks a rule");
        answer.found = true;
        answer.age_ms = reply->element[6]->integer > 0 ? (uint64_t)reply->element[6]->integer : 0;
    }
    *out = answer;
    return STATUS_OK;
}

static void on_answer(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct operation *operation = user;
    struct placement_answer answer = {.st = st, .late = late};
    if (st == STATUS_OK && placement_redis_parse(reply, &answer) != STATUS_OK)
        answer.st = STATUS_IO;
    placement_answer_fn *fn = operation->fn;
    void *fn_user = operation->user;
    if (late || st != STATUS_TIMEOUT)
        free(operation);
    if (fn)
        fn(fn_user, &answer);
}

/* ---- the interface ---- */

/* key, owner, cache, epoch given, ttl; or key and what is expected; or all of them */
struct arguments {
    char key[REDIS_RECORD_KEY_SIZE];
    char cache[HASH_HEX_SIZE(WIRE_ID_BYTES)];
    char epoch[NUMBER_MAX], ttl[NUMBER_MAX], expected_epoch[NUMBER_MAX];
    const char *words[7];
    unsigned count;
};

static void add_record(struct arguments *arguments, const struct placement_record *record)
{
    if (record->has_cache)
        hash_hex(record->cache_id, sizeof record->cache_id, arguments->cache);
    snprintf(arguments->epoch, sizeof arguments->epoch, "%" PRIu64,
             record->epoch < PLACEMENT_EPOCH_MAX ? record->epoch : 0);
    snprintf(arguments->ttl, sizeof arguments->ttl, "%d", PLACEMENT_TTL_S);
    arguments->words[arguments->count++] = record->owner;
    arguments->words[arguments->count++] = arguments->cache;
    arguments->words[arguments->count++] = arguments->epoch;
    arguments->words[arguments->count++] = arguments->ttl;
}

static void add_expected(struct arguments *arguments, const struct placement_record *expected)
{
    snprintf(arguments->expected_epoch, sizeof arguments->expected_epoch, "%" PRIu64, expected->epoch);
    arguments->words[arguments->count++] = expected->owner;
    arguments->words[arguments->count++] = arguments->expected_epoch;
}

/* expected may be NULL. */
static enum status call(struct placement *self, enum script_kind kind, const struct placement_key *key,
                        const struct placement_record *desired, const struct placement_record *expected,
                        uint32_t budget_ms, placement_answer_fn *fn, void *user)
{
    struct arguments arguments = {.cache = ""};
    snprintf(arguments.key, sizeof arguments.key, REDIS_RECORD_KEY, key->hex);
    arguments.words[arguments.count++] = arguments.key;
    add_record(&arguments, desired);
    if (expected)
        add_expected(&arguments, expected);
    struct operation *operation = calloc(1, sizeof *operation);
    if (!operation)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement call");
    operation->fn = fn;
    operation->user = user;
    enum status st = redis_script_call(store_of(self)->scripts[kind], budget_ms, on_answer, operation, 1,
                                       arguments.count, arguments.words);
    if (st != STATUS_OK)
        free(operation);
    return st;
}

static enum status store_claim(struct placement *self, const struct placement_key *key,
                               const struct placement_record *proposal, uint32_t budget_ms, placement_answer_fn *fn,
                               void *user)
{
    return call(self, SCRIPT_CLAIM, key, proposal, NULL, budget_ms, fn, user);
}

static enum status store_replace(struct placement *self, const struct placement_key *key,
                                 const struct placement_record *expected, const struct placement_record *desired,
                                 uint32_t budget_ms, placement_answer_fn *fn, void *user)
{
    return call(self, SCRIPT_REPLACE, key, desired, expected, budget_ms, fn, user);
}

static bool store_up(const struct placement *self)
{
    return redis_link_up(store_of(self)->link);
}

static void store_destroy(struct placement *self)
{
    struct store *store = store_of(self);
    for (unsigned i = 0; i < SCRIPT_COUNT; i++)
        redis_script_destroy(&store->scripts[i]);
    free(store);
}

static const struct placement_ops store_ops = {
    .name = "redis",
    .claim = store_claim,
    .replace = store_replace,
    .up = store_up,
    .destroy = store_destroy,
};

enum status placement_redis_create(struct redis_link *link, struct placement **out)
{
    struct store *store = calloc(1, sizeof *store);
    if (!store)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement store");
    store->base.ops = &store_ops;
    store->link = link;
    for (unsigned i = 0; i < SCRIPT_COUNT; i++) {
        enum status st = redis_script_create(link, script_text[i], &store->scripts[i]);
        if (st != STATUS_OK) {
            store_destroy(&store->base);
            return st;
        }
    }
    *out = &store->base;
    return STATUS_OK;
}
