/* placement_redis.c - placement records in Redis: one hash per conversation, `roost:{H}:place` with owner, cache and
 * epoch.
 *
 * Each call is one script, so that reading, deciding and writing are one step. Scripts are sent by digest (EVALSHA);
 * where Redis does not know the digest, whole (EVAL) within what is left of the budget. What Redis holds is not
 * trusted: the script looks at type and sizes before it reads a field, so that neither a wrong type nor a huge value
 * gets out of Redis; both count as no record. Replies are checked again here. */
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/redis_link.h"
#include "router/placement.h"

enum script { SCRIPT_CLAIM, SCRIPT_REPLACE, SCRIPT_FORGET, SCRIPT_COUNT };

/* Shared head. 4503599627370496 is PLACEMENT_EPOCH_MAX. DEL only where there is something: after a first write that
 * Redis allows without memory, a script may go on over maxmemory. */
#define SCRIPT_HEAD                                                                                                    \
    "local key = KEYS[1]\n"                                                                                            \
    "local function read()\n"                                                                                          \
    "  if redis.call('TYPE', key).ok ~= 'hash' then return nil end\n"                                                  \
    "  local n = redis.call('HSTRLEN', key, 'owner')\n"                                                                \
    "  if n < 1 or n > 64 then return nil end\n"                                                                       \
    "  n = redis.call('HSTRLEN', key, 'epoch')\n"                                                                      \
    "  if n < 1 or n > 16 then return nil end\n"                                                                       \
    "  n = redis.call('HSTRLEN', key, 'cache')\n"                                                                      \
    "  if n ~= 0 and n ~= 32 then return nil end\n"                                                                    \
    "  local f = redis.call('HMGET', key, 'owner', 'cache', 'epoch')\n"                                                \
    "  local cache = f[2] or ''\n"                                                                                     \
    "  if string.find(f[1], '[^%w._:-]') or string.find(f[3], '%D') or string.find(f[3], '^0%d') or "                  \
    "string.find(cache, '%X') then return nil end\n"                                                                   \
    "  if tonumber(f[3]) >= 4503599627370496 then return nil end\n"                                                    \
    "  return {f[1], cache, f[3]}\n"                                                                                   \
    "end\n"                                                                                                            \
    "local function epoch(stored, given)\n"                                                                            \
    "  local t = redis.call('TIME')\n"                                                                                 \
    "  local e = tonumber(t[1]) * 1000000 + tonumber(t[2])\n"                                                          \
    "  if stored + 1 > e then e = stored + 1 end\n"                                                                    \
    "  if given > e then e = given end\n"                                                                              \
    "  return string.format('%.0f', e)\n"                                                                              \
    "end\n"                                                                                                            \
    "local function write(owner, cache, e, ttl)\n"                                                                     \
    "  if redis.call('EXISTS', key) == 1 then redis.call('DEL', key) end\n"                                            \
    "  redis.call('HSET', key, 'owner', owner, 'cache', cache, 'epoch', e)\n"                                          \
    "  redis.call('EXPIRE', key, ttl)\n"                                                                               \
    "  return {1, owner, cache, e}\n"                                                                                  \
    "end\n"                                                                                                            \
    "local r = read()\n"

static const char *const script_text[SCRIPT_COUNT] = {
    /* owner, cache, epoch given, ttl */
    [SCRIPT_CLAIM] = SCRIPT_HEAD "if r then redis.call('EXPIRE', key, ARGV[4]) return {0, r[1], r[2], r[3]} end\n"
                                 "return write(ARGV[1], ARGV[2], epoch(0, tonumber(ARGV[3])), ARGV[4])\n",
    /* owner, cache, epoch given, ttl, expected owner, expected epoch */
    [SCRIPT_REPLACE] =
        SCRIPT_HEAD "if r and (r[1] ~= ARGV[5] or r[3] ~= ARGV[6]) then return {0, r[1], r[2], r[3]} end\n"
                    "if r and r[1] == ARGV[1] then return write(ARGV[1], ARGV[2], r[3], ARGV[4]) end\n"
                    "local e = epoch(tonumber(ARGV[6]), tonumber(ARGV[3]))\n"
                    "return write(ARGV[1], ARGV[2], e, ARGV[4])\n",
    /* expected owner, expected epoch */
    [SCRIPT_FORGET] = SCRIPT_HEAD "if not r then return {0, '', '', '0'} end\n"
                                  "if r[1] ~= ARGV[1] or r[3] ~= ARGV[2] then return {0, r[1], r[2], r[3]} end\n"
                                  "redis.call('DEL', key)\n"
                                  "return {1, '', '', '0'}\n",
};

enum {
    ARGUMENTS_MAX = 6,
    NUMBER_MAX = 24,         /* 20 digits of 2^64 */
    LOAD_DEADLINE_MS = 1000, /* nobody waits for it: until then scripts are sent whole */
    DIGEST_HEX = 40,
    TEXT_MAX = 16 + 40, /* of a key: "roost:{" 32 hex "}:place" */
};

struct store {
    struct placement base;
    struct redis_link *link; /* ref */
    char digest[SCRIPT_COUNT][DIGEST_HEX + 1];
    bool loading[SCRIPT_COUNT];
};

/* One call, until its last callback. */
struct operation {
    struct store *store; /* ref */
    enum script script;
    bool whole; /* sent as EVAL */
    uint64_t deadline_us;
    placement_answer_fn *fn;
    void *user;
    char key[TEXT_MAX];
    unsigned argument_count;
    char arguments[ARGUMENTS_MAX][WIRE_NAME_MAX + 1];
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

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

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
    if (!is_string(fields[2], 16) || fields[2]->len == 0)
        return false;
    for (size_t i = 0; i < (size_t)fields[2]->len; i++) {
        if (fields[2]->str[i] < '0' || fields[2]->str[i] > '9')
            return false;
        record.epoch = record.epoch * 10 + (uint64_t)(fields[2]->str[i] - '0');
    }
    *out = record;
    return true;
}

static bool parse_answer(const struct redisReply *reply, struct placement_answer *answer)
{
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 4 || reply->element[0]->type != REDIS_REPLY_INTEGER)
        return false;
    answer->ours = reply->element[0]->integer == 1;
    if (is_string(reply->element[1], WIRE_NAME_MAX) && reply->element[1]->len == 0)
        return true; /* no record stands */
    answer->found = parse_record(&reply->element[1], &answer->record);
    return answer->found;
}

/* ---- sending ---- */

static enum status operation_send(struct operation *operation, bool whole);

static void on_loaded(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct store *store = user;
    (void)late;
    if (st == STATUS_TIMEOUT)
        return; /* the late answer comes still */
    /* which script it was shows in what is still loading: they are loaded one after the other */
    for (unsigned i = 0; i < SCRIPT_COUNT; i++) {
        if (!store->loading[i])
            continue;
        store->loading[i] = false;
        if (st == STATUS_OK && reply->type == REDIS_REPLY_STRING && reply->len == DIGEST_HEX)
            memcpy(store->digest[i], reply->str, DIGEST_HEX);
        return;
    }
}

static void load_script(struct store *store, enum script script)
{
    for (unsigned i = 0; i < SCRIPT_COUNT; i++)
        if (store->loading[i])
            return;
    if (store->digest[script][0])
        return;
    const char *words[] = {"SCRIPT", "LOAD", script_text[script]};
    const size_t sizes[] = {6, 4, strlen(script_text[script])};
    store->loading[script] =
        redis_link_command(store->link, LOAD_DEADLINE_MS, on_loaded, store, 3, words, sizes) == STATUS_OK;
}

static void on_answer(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct operation *operation = user;
    if (st == STATUS_IO && !operation->whole && strncmp(reply->str, "NOSCRIPT", 8) == 0) {
        if (!late && operation_send(operation, true) == STATUS_OK)
            return;
        st = STATUS_CLOSED; /* nothing was done there, and there is no time left to do it */
    }
    struct placement_answer answer = {.st = st, .late = late};
    if (st == STATUS_OK && !parse_answer(reply, &answer))
        answer = (struct placement_answer){.st = STATUS_IO, .late = late};
    placement_answer_fn *fn = operation->fn;
    void *fn_user = operation->user;
    if (late || st != STATUS_TIMEOUT)
        free(operation);
    if (fn)
        fn(fn_user, &answer);
}

static enum status operation_send(struct operation *operation, bool whole)
{
    struct store *store = operation->store;
    const char *words[4 + ARGUMENTS_MAX];
    size_t sizes[4 + ARGUMENTS_MAX];
    unsigned count = 0;
    operation->whole = whole || !store->digest[operation->script][0];
    words[count++] = operation->whole ? "EVAL" : "EVALSHA";
    words[count++] = operation->whole ? script_text[operation->script] : store->digest[operation->script];
    words[count++] = "1";
    words[count++] = operation->key;
    for (unsigned i = 0; i < operation->argument_count; i++)
        words[count++] = operation->arguments[i];
    for (unsigned i = 0; i < count; i++)
        sizes[i] = strlen(words[i]);
    uint64_t now = clock_now_us();
    uint64_t left_ms = operation->deadline_us > now ? (operation->deadline_us - now + 999) / 1000 : 0;
    if (left_ms == 0)
        return STATUS_FAIL(STATUS_TIMEOUT, "no time left for redis");
    return redis_link_command(store->link, (uint32_t)left_ms, on_answer, operation, count, words, sizes);
}

static struct operation *operation_create(struct store *store, enum script script, const struct placement_key *key,
                                          uint32_t budget_ms, placement_answer_fn *fn, void *user)
{
    struct operation *operation = calloc(1, sizeof *operation);
    if (!operation)
        return NULL;
    operation->store = store;
    operation->script = script;
    operation->deadline_us = clock_now_us() + (uint64_t)budget_ms * 1000;
    operation->fn = fn;
    operation->user = user;
    snprintf(operation->key, sizeof operation->key, "roost:{%s}:place", key->hex);
    return operation;
}

static enum status operation_start(struct operation *operation)
{
    struct store *store = operation->store;
    enum script script = operation->script;
    enum status st = operation_send(operation, false);
    if (st != STATUS_OK)
        free(operation);
    else
        load_script(store, script);
    return st;
}

static void add_text(struct operation *operation, const char *text)
{
    snprintf(operation->arguments[operation->argument_count++], sizeof operation->arguments[0], "%s", text);
}

static void add_number(struct operation *operation, uint64_t number)
{
    char text[NUMBER_MAX];
    snprintf(text, sizeof text, "%" PRIu64, number);
    add_text(operation, text);
}

/* owner, cache, epoch given, ttl */
static void add_record(struct operation *operation, const struct placement_record *record)
{
    char cache[HASH_HEX_SIZE(WIRE_ID_BYTES)] = "";
    if (record->has_cache)
        hash_hex(record->cache_id, sizeof record->cache_id, cache);
    add_text(operation, record->owner);
    add_text(operation, cache);
    add_number(operation, record->epoch < PLACEMENT_EPOCH_MAX ? record->epoch : 0);
    add_number(operation, PLACEMENT_TTL_S);
}

/* ---- the interface ---- */

static enum status store_claim(struct placement *self, const struct placement_key *key,
                               const struct placement_record *proposal, uint32_t budget_ms, placement_answer_fn *fn,
                               void *user)
{
    struct operation *operation = operation_create(store_of(self), SCRIPT_CLAIM, key, budget_ms, fn, user);
    if (!operation)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement claim");
    add_record(operation, proposal);
    return operation_start(operation);
}

static enum status store_replace(struct placement *self, const struct placement_key *key,
                                 const struct placement_record *expected, const struct placement_record *desired,
                                 uint32_t budget_ms, placement_answer_fn *fn, void *user)
{
    struct operation *operation = operation_create(store_of(self), SCRIPT_REPLACE, key, budget_ms, fn, user);
    if (!operation)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement replacement");
    add_record(operation, desired);
    add_text(operation, expected->owner);
    add_number(operation, expected->epoch);
    return operation_start(operation);
}

static enum status store_forget(struct placement *self, const struct placement_key *key,
                                const struct placement_record *expected, uint32_t budget_ms, placement_answer_fn *fn,
                                void *user)
{
    struct operation *operation = operation_create(store_of(self), SCRIPT_FORGET, key, budget_ms, fn, user);
    if (!operation)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement deletion");
    add_text(operation, expected->owner);
    add_number(operation, expected->epoch);
    return operation_start(operation);
}

static bool store_up(const struct placement *self)
{
    return redis_link_up(store_of(self)->link);
}

static void store_destroy(struct placement *self)
{
    free(store_of(self));
}

static const struct placement_ops store_ops = {
    .name = "redis",
    .claim = store_claim,
    .replace = store_replace,
    .forget = store_forget,
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
    *out = &store->base;
    return STATUS_OK;
}
