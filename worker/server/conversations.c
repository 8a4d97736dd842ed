/* conversations.c - owns the table of what is held, and the list of what is due to be announced, hottest first.
 *
 *   note --> table --script--> Redis: taken            --> written
 *              ^                      another owner    --> forgotten
 *              |                      not taken (down) --> due, UNWRITTEN
 *   the marker changed: everything is due, WIPED; moved: due, CHANGED; evicted: due, GONE
 *   the tick announces what is due, within its rate and its window; what is GONE is forgotten when Redis knows
 *   CHANGED and GONE wait while a turn of the conversation runs, whose note takes them back
 *
 * Always true:
 *   1. an entry is on the list of due ones exactly if its due is not NO, and it is not being announced;
 *   2. an answer finds its entry by key, for the entry may have made room meanwhile; the number of its last note says
 *      whether another turn ended meanwhile. */
#include "worker/server/conversations.h"
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/recent.h"
#include "common/redis_link.h"
#include "common/redis_record.h"
#include "common/redis_script.h"

enum {
    TICK_MS = 100,
    PER_TICK = CONVERSATIONS_ANNOUNCE_PER_SECOND * TICK_MS / 1000,
    PAUSE_MS = 1000, /* after Redis refused an announcement: out of memory, say */
    OWNER_MAX = 64,
    TOKENS_MAX = 999999999, /* nine digits in the record */
    RECENT_MS = 2000, /* written so short before a lost connection, it may be lost: everysec writes once a second */
};

/* owner, epoch given, tokens, tier, ttl, mode: "keep" only keeps a record of ours up to date, "free" also writes a free
 * one, "take" also takes over one with fewer tokens. */
static const char note_text[] = REDIS_RECORD_LUA
    "if r and r[1] == ARGV[1] then\n"
    "  redis.call('HSET', key, 'tokens', ARGV[3], 'tier', ARGV[4])\n"
    "  redis.call('EXPIRE', key, ARGV[5])\n"
    "  r[4] = ARGV[3] r[5] = ARGV[4]\n"
    "  return answer(1, r)\n"
    "end\n"
    "if ARGV[6] == 'keep' then return answer(0, r) end\n"
    "if r and not (ARGV[6] == 'take' and tonumber(ARGV[3]) > tonumber(r[4])) then return answer(0, r) end\n"
    "r = {ARGV[1], '', epoch(r and tonumber(r[3]) or 0, tonumber(ARGV[2])), ARGV[3], ARGV[4]}\n"
    "write(r, ARGV[5])\n"
    "return answer(1, r)\n";

/* owner, epoch, cache id: the record goes if they are still these. A cache id that no router has heard of yet is empty. */
static const char forget_text[] = REDIS_RECORD_LUA
    "if r and r[1] == ARGV[1] and r[3] == ARGV[2] and (r[2] == ARGV[3] or r[2] == '') then\n"
    "  redis.call('UNLINK', key)\n"
    "  return answer(1, nil)\n"
    "end\n"
    "return answer(0, r)\n";

/* The marker: 32 characters. Anything else there is no marker. */
static const char generation_text[] =
    "if redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('STRLEN', KEYS[1]) == 32 then\n"
    "  return redis.call('GET', KEYS[1])\n"
    "end\n"
    "redis.call('SET', KEYS[1], ARGV[1])\n"
    "return ARGV[1]\n";

/* Why it is due. CHANGED keeps a record of ours up to date, UNWRITTEN writes a free one too, WIPED takes over, GONE
 * deletes; the later ones include the earlier ones. */
enum due { DUE_NO, DUE_CHANGED, DUE_UNWRITTEN, DUE_WIPED, DUE_GONE };

struct entry {
    TAILQ_ENTRY(entry) next; /* on due, if listed */
    uint64_t epoch, written_ms;
    uint64_t note; /* the number of the last one */
    uint32_t tokens;
    uint8_t due; /* enum due */
    bool listed;
    bool on_host;
};
TAILQ_HEAD(entry_list, entry);

struct conversations {
    struct loop *loop;       /* ref */
    struct redis_link *link; /* ref */
    char owner[OWNER_MAX + 1];
    char cache_id[HASH_HEX_SIZE(CONVERSATIONS_KEY_BYTES)];
    bool (*running)(void *user, const uint8_t *key);
    void *user;
    struct recent *entries;
    struct entry_list due;
    struct redis_script *note_script, *forget_script, *generation_script;
    struct loop_timer *timer;
    char generation[33]; /* "": not read yet */
    bool asking;         /* for the marker */
    bool settled;        /* it was read since the link came up: a wipe would be known by now */
    bool draining;
    uint64_t asked_ms, paused_until_ms;
    unsigned announcing; /* unanswered */
    struct conversations_stats stats;
};

struct operation {
    struct conversations *conversations; /* ref */
    uint8_t key[CONVERSATIONS_KEY_BYTES];
    uint64_t note;
    bool on_host;
    bool announcement, forget;
};

/* ---- what is due ---- */

static void due_remove(struct conversations *conversations, struct entry *entry)
{
    if (entry->listed) {
        TAILQ_REMOVE(&conversations->due, entry, next);
        entry->listed = false;
        conversations->stats.due--;
    }
    entry->due = DUE_NO;
}

/* The hottest first: what has just failed is hotter than what is listed. */
static void due_add(struct conversations *conversations, struct entry *entry, enum due due, bool first)
{
    if (entry->due < due)
        entry->due = (uint8_t)due;
    if (entry->listed)
        return;
    if (first)
        TAILQ_INSERT_HEAD(&conversations->due, entry, next);
    else
        TAILQ_INSERT_TAIL(&conversations->due, entry, next);
    entry->listed = true;
    conversations->stats.due++;
}

static void entry_forget(struct conversations *conversations, const uint8_t *key)
{
    struct entry *entry = recent_peek(conversations->entries, key);
    if (!entry)
        return;
    due_remove(conversations, entry);
    recent_remove(conversations->entries, key);
}

/* ---- telling Redis ---- */

enum status conversations_parse(const struct redisReply *reply, bool *ours, uint64_t *epoch)
{
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != REDIS_RECORD_FIELDS ||
        reply->element[0]->type != REDIS_REPLY_INTEGER || reply->element[3]->type != REDIS_REPLY_STRING)
        return STATUS_FAIL(STATUS_CORRUPT, "redis answered no placement");
    const struct redisReply *text = reply->element[3];
    uint64_t number = 0;
    if (text->len < 1 || text->len > 16)
        return STATUS_FAIL(STATUS_CORRUPT, "redis answered no epoch");
    for (size_t i = 0; i < (size_t)text->len; i++) {
        if (text->str[i] < '0' || text->str[i] > '9')
            return STATUS_FAIL(STATUS_CORRUPT, "redis answered no epoch");
        number = number * 10 + (uint64_t)(text->str[i] - '0');
    }
    if (number >= REDIS_RECORD_EPOCH_MAX)
        return STATUS_FAIL(STATUS_CORRUPT, "redis answered no epoch");
    *ours = reply->element[0]->integer == 1;
    *epoch = number;
    return STATUS_OK;
}

static void on_noted(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct operation *operation = user;
    struct conversations *conversations = operation->conversations;
    if (st == STATUS_TIMEOUT)
        return; /* answered once more */
    (void)late;
    bool ours = false;
    uint64_t epoch = 0;
    bool understood = st == STATUS_OK && conversations_parse(reply, &ours, &epoch) == STATUS_OK;
    struct entry *entry = recent_peek(conversations->entries, operation->key);
    if (operation->announcement)
        conversations->announcing--;
    if (!understood) {
        conversations->stats.failed++;
        if (st != STATUS_CLOSED)
            conversations->paused_until_ms = loop_now_ms(conversations->loop) + PAUSE_MS;
        if (entry)
            due_add(conversations, entry, operation->forget && entry->note == operation->note ? DUE_GONE : DUE_UNWRITTEN, true);
    } else if (operation->forget) {
        if (entry && entry->note == operation->note) { /* else a turn ended meanwhile, and its note is behind this */
            conversations->stats.evicted++;
            entry_forget(conversations, operation->key);
        }
    } else if (!ours) {
        conversations->stats.lost++;
        entry_forget(conversations, operation->key);
    } else {
        conversations->stats.written++;
        conversations->stats.announced += operation->announcement;
        if (entry && entry->epoch <= epoch)
            entry->epoch = epoch;
        if (entry && entry->note == operation->note && entry->on_host == operation->on_host && entry->due != DUE_GONE) {
            due_remove(conversations, entry);
            entry->written_ms = loop_now_ms(conversations->loop);
        }
    }
    free(operation);
}

static enum status call_note(struct conversations *conversations, struct operation *operation, const char *name,
                             const char *epoch, const struct entry *entry)
{
    char tokens[12], ttl[12];
    snprintf(tokens, sizeof tokens, "%" PRIu32, entry->tokens);
    snprintf(ttl, sizeof ttl, "%d", REDIS_RECORD_TTL_S);
    const char *mode = conversations->draining || entry->due == DUE_CHANGED ? "keep"
                       : entry->due == DUE_WIPED                           ? "take"
                                                                           : "free";
    const char *tier = entry->on_host ? "host" : "device";
    const char *words[] = {name, conversations->owner, epoch, tokens, tier, ttl, mode};
    return redis_script_call(conversations->note_script, CONVERSATIONS_DEADLINE_MS, on_noted, operation, 1,
                             sizeof words / sizeof *words, words);
}

static enum status call_forget(struct conversations *conversations, struct operation *operation, const char *name,
                               const char *epoch)
{
    const char *words[] = {name, conversations->owner, epoch, conversations->cache_id};
    return redis_script_call(conversations->forget_script, CONVERSATIONS_DEADLINE_MS, on_noted, operation, 1,
                             sizeof words / sizeof *words, words);
}

/* False: Redis could not be asked. */
static bool tell(struct conversations *conversations, const uint8_t *key, const struct entry *entry, bool announcement)
{
    char name[REDIS_RECORD_KEY_SIZE], hex[HASH_HEX_SIZE(CONVERSATIONS_KEY_BYTES)], epoch[24];
    struct operation *operation = calloc(1, sizeof *operation);
    if (!operation)
        return false;
    operation->conversations = conversations;
    memcpy(operation->key, key, sizeof operation->key);
    operation->note = entry->note;
    operation->on_host = entry->on_host;
    operation->announcement = announcement;
    operation->forget = entry->due == DUE_GONE;
    hash_hex(key, CONVERSATIONS_KEY_BYTES, hex);
    snprintf(name, sizeof name, REDIS_RECORD_KEY, hex);
    snprintf(epoch, sizeof epoch, "%" PRIu64, entry->epoch < REDIS_RECORD_EPOCH_MAX ? entry->epoch : 0);
    enum status st = operation->forget ? call_forget(conversations, operation, name, epoch)
                                       : call_note(conversations, operation, name, epoch, entry);
    if (st != STATUS_OK) {
        free(operation);
        return false;
    }
    conversations->announcing += announcement;
    return true;
}

void conversations_note(struct conversations *conversations, const uint8_t *key, uint64_t epoch, uint32_t tokens)
{
    if (!conversations)
        return;
    struct entry *entry = recent_find(conversations->entries, key);
    if (!entry) {
        struct entry *oldest = recent_oldest(conversations->entries);
        if (recent_count(conversations->entries) == CONVERSATIONS_MAX)
            due_remove(conversations, oldest);
        entry = recent_put(conversations->entries, key, &(struct entry){.epoch = epoch});
    }
    if (epoch > entry->epoch)
        entry->epoch = epoch;
    entry->tokens = tokens < TOKENS_MAX ? tokens : TOKENS_MAX;
    entry->on_host = false;
    entry->note = ++conversations->stats.notes;
    if (entry->due == DUE_GONE || entry->due == DUE_CHANGED)
        due_remove(conversations, entry);
    if (!tell(conversations, key, entry, false)) {
        conversations->stats.failed++;
        due_add(conversations, entry, DUE_UNWRITTEN, true);
    }
}

void conversations_evicted(struct conversations *conversations, const uint8_t *key)
{
    struct entry *entry = conversations ? recent_peek(conversations->entries, key) : NULL;
    if (entry)
        due_add(conversations, entry, DUE_GONE, false);
}

void conversations_moved(struct conversations *conversations, const uint8_t *key, bool to_host)
{
    struct entry *entry = conversations ? recent_peek(conversations->entries, key) : NULL;
    if (!entry)
        return;
    entry->on_host = to_host;
    due_add(conversations, entry, DUE_CHANGED, false);
}

/* Its turn that runs writes the tier, and keeps the record, if it ends well. */
static bool must_wait(const struct conversations *conversations, const struct entry *entry, const uint8_t *key)
{
    return (entry->due == DUE_CHANGED || entry->due == DUE_GONE) && conversations->running &&
           conversations->running(conversations->user, key);
}

static void announce(struct conversations *conversations)
{
    uint64_t now = loop_now_ms(conversations->loop);
    struct entry *entry;
    if (conversations->draining || now < conversations->paused_until_ms || !conversations->settled)
        return;
    for (unsigned i = 0; i < PER_TICK && conversations->announcing < CONVERSATIONS_ANNOUNCE_OPEN_MAX; i++) {
        if (!(entry = TAILQ_FIRST(&conversations->due)))
            return;
        const uint8_t *key = recent_key(conversations->entries, entry);
        if (must_wait(conversations, entry, key)) {
            TAILQ_REMOVE(&conversations->due, entry, next);
            TAILQ_INSERT_TAIL(&conversations->due, entry, next);
            continue;
        }
        if (!tell(conversations, key, entry, true))
            return;
        TAILQ_REMOVE(&conversations->due, entry, next); /* due stays until it is answered */
        entry->listed = false;
        conversations->stats.due--;
    }
}

/* ---- the marker ---- */

static void everything_is_due(struct conversations *conversations)
{
    for (struct entry *entry = recent_newest(conversations->entries); entry;
         entry = recent_older(conversations->entries, entry)) {
        if (entry->listed)
            TAILQ_REMOVE(&conversations->due, entry, next);
        else
            conversations->stats.due++;
        TAILQ_INSERT_TAIL(&conversations->due, entry, next);
        entry->listed = true;
        if (entry->due < DUE_WIPED)
            entry->due = DUE_WIPED;
    }
}

static void on_generation(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct conversations *conversations = user;
    (void)late;
    if (st == STATUS_TIMEOUT)
        return;
    conversations->asking = false;
    if (st != STATUS_OK || reply->type != REDIS_REPLY_STRING || reply->len != 32)
        return;
    bool known = conversations->generation[0];
    bool same = known && memcmp(conversations->generation, reply->str, 32) == 0;
    memcpy(conversations->generation, reply->str, 32);
    conversations->settled = true;
    if (!known || same)
        return;
    conversations->stats.wipes++;
    conversations->paused_until_ms = 0;
    everything_is_due(conversations);
    LOG_WARN("redis was wiped: announcing %" PRIu32 " conversations again", recent_count(conversations->entries));
}

static void ask_generation(struct conversations *conversations)
{
    uint8_t random[16];
    char fresh[HASH_HEX_SIZE(sizeof random)];
    hash_random(random, sizeof random);
    hash_hex(random, sizeof random, fresh);
    const char *words[] = {"roost:generation", fresh};
    if (conversations->asking)
        return;
    conversations->asked_ms = loop_now_ms(conversations->loop);
    conversations->asking = redis_script_call(conversations->generation_script, CONVERSATIONS_DEADLINE_MS,
                                              on_generation, conversations, 1, 2, words) == STATUS_OK;
}

static void on_link(void *user, bool up)
{
    struct conversations *conversations = user;
    conversations->settled = false;
    if (up) {
        ask_generation(conversations);
        return;
    }
    /* What was taken a moment ago may not have been saved. */
    uint64_t now = loop_now_ms(conversations->loop);
    for (struct entry *entry = recent_newest(conversations->entries); entry;
         entry = recent_older(conversations->entries, entry))
        if (entry->written_ms && now - entry->written_ms < RECENT_MS)
            due_add(conversations, entry, DUE_UNWRITTEN, false);
}

static void on_tick(void *user)
{
    struct conversations *conversations = user;
    if (redis_link_up(conversations->link) &&
        loop_now_ms(conversations->loop) - conversations->asked_ms >= CONVERSATIONS_GENERATION_MS)
        ask_generation(conversations);
    announce(conversations);
}

/* ---- life ---- */

enum status conversations_create(const struct conversations_config *config, struct conversations **out)
{
    if (strlen(config->owner) > OWNER_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "the name of a worker has at most %d characters", OWNER_MAX);
    struct conversations *conversations = calloc(1, sizeof *conversations);
    if (!conversations)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the conversations");
    enum status st;
    conversations->loop = config->loop;
    conversations->link = config->link;
    conversations->running = config->running;
    conversations->user = config->user;
    TAILQ_INIT(&conversations->due);
    snprintf(conversations->owner, sizeof conversations->owner, "%s", config->owner);
    hash_hex(config->cache_id, CONVERSATIONS_KEY_BYTES, conversations->cache_id);
    TRY_GOTO(recent_create(CONVERSATIONS_MAX, sizeof(struct entry), &conversations->entries), st, fail);
    TRY_GOTO(redis_script_create(config->link, note_text, &conversations->note_script), st, fail);
    TRY_GOTO(redis_script_create(config->link, forget_text, &conversations->forget_script), st, fail);
    TRY_GOTO(redis_script_create(config->link, generation_text, &conversations->generation_script), st, fail);
    TRY_GOTO(loop_timer_create(config->loop, TICK_MS, true, on_tick, conversations, &conversations->timer), st, fail);
    TRY_GOTO(redis_link_watch(config->link, on_link, conversations), st, fail);
    if (redis_link_up(config->link))
        ask_generation(conversations);
    *out = conversations;
    return STATUS_OK;
fail:
    conversations_destroy(&conversations);
    return st;
}

void conversations_destroy(struct conversations **conversations_pointer)
{
    struct conversations *conversations = *conversations_pointer;
    if (!conversations)
        return;
    *conversations_pointer = NULL;
    loop_timer_destroy(&conversations->timer);
    redis_script_destroy(&conversations->note_script);
    redis_script_destroy(&conversations->forget_script);
    redis_script_destroy(&conversations->generation_script);
    recent_destroy(&conversations->entries);
    free(conversations);
}

void conversations_set_draining(struct conversations *conversations, bool draining)
{
    if (conversations)
        conversations->draining = draining;
}

uint32_t conversations_count(const struct conversations *conversations)
{
    return conversations ? recent_count(conversations->entries) : 0;
}

void conversations_stats(const struct conversations *conversations, struct conversations_stats *out)
{
    *out = conversations->stats;
    out->held = recent_count(conversations->entries);
}
