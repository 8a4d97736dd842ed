/* worker_directory.c - one reading at a time: the names, then the entry of each name; an unanswered command spoils it.
 * What Redis holds is not trusted: SRANDMEMBER with a count and the check of each name bound what a poisoned set can
 * send, HSTRLEN in front of HGET what a poisoned entry can. What is no name, and who has no entry any more, is taken
 * out of the set: a worker that lives puts its name back with its next renewal. A set of another type is an error, and
 * no reading; the workers put it right. */
#include "router/worker_directory.h"
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/loop.h"
#include "common/redis_link.h"
#include "common/redis_script.h"

enum { DEADLINE_MS = 500 }; /* half of WORKER_DIRECTORY_READ_MS: a reading is over before the next one */

static const char names_script[] = "local names = {}\n"
                                   "for _, name in ipairs(redis.call('SRANDMEMBER', KEYS[1], 1024)) do\n"
                                   "  if #name >= 1 and #name <= 64 and not string.find(name, '[^%w._:-]') then\n"
                                   "    names[#names + 1] = name\n"
                                   "  else redis.call('SREM', KEYS[1], name) end\n"
                                   "end\n"
                                   "if redis.call('SCARD', KEYS[1]) > 1024 then names[#names + 1] = '' end\n"
                                   "return names\n";
static const char entry_script[] = "local kind = redis.call('TYPE', KEYS[1]).ok\n"
                                   "if kind == 'none' then redis.call('SREM', KEYS[2], ARGV[1]) end\n"
                                   "if kind ~= 'hash' then return false end\n"
                                   "local n = redis.call('HSTRLEN', KEYS[1], 'endpoint')\n"
                                   "if n < 1 or n > 255 then return false end\n"
                                   "return redis.call('HGET', KEYS[1], 'endpoint')\n";

struct worker_directory {
    struct redis_script *names_script, *entry_script;
    struct loop *loop; /* ref */
    worker_directory_fn *fn;
    void *user;
    struct loop_timer *timer;
    unsigned open; /* commands not finally answered */
    bool spoiled;
    uint64_t begun_ms;
    unsigned count;
    struct worker_directory_entry entries[WORKER_DIRECTORY_ENTRIES_MAX];
};

struct lookup {
    struct worker_directory *directory; /* ref */
    char name[WIRE_NAME_MAX + 1];
};

bool worker_directory_parse_endpoint(const struct redisReply *reply, char endpoint[WORKER_ENDPOINT_MAX])
{
    if (reply->type != REDIS_REPLY_STRING || reply->len < 1 || reply->len >= WORKER_ENDPOINT_MAX ||
        memchr(reply->str, 0, (size_t)reply->len))
        return false;
    memcpy(endpoint, reply->str, (size_t)reply->len);
    endpoint[reply->len] = 0;
    return true;
}

bool worker_directory_parse_name(const struct redisReply *names, size_t i, char name[WIRE_NAME_MAX + 1])
{
    if (names->type != REDIS_REPLY_ARRAY || i >= names->elements)
        return false;
    const struct redisReply *text = names->element[i];
    if (text->type != REDIS_REPLY_STRING || !wire_name_valid(wire_span_of(text->str, (size_t)text->len)))
        return false;
    memcpy(name, text->str, (size_t)text->len);
    name[text->len] = 0;
    return true;
}

static void finish(struct worker_directory *directory)
{
    if (directory->open == 0 && !directory->spoiled)
        directory->fn(directory->user, directory->entries, directory->count, directory->begun_ms);
}

static void on_entry(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct lookup *lookup = user;
    struct worker_directory *directory = lookup->directory;
    if (st != STATUS_OK || late)
        directory->spoiled = true;
    if (st == STATUS_TIMEOUT)
        return; /* answered once more */
    struct worker_directory_entry *entry = &directory->entries[directory->count];
    if (!directory->spoiled && worker_directory_parse_endpoint(reply, entry->endpoint)) {
        snprintf(entry->name, sizeof entry->name, "%s", lookup->name);
        directory->count++;
    }
    free(lookup);
    directory->open--;
    finish(directory);
}

static void ask_entry(struct worker_directory *directory, const char *name)
{
    struct lookup *lookup = calloc(1, sizeof *lookup);
    if (!lookup) {
        directory->spoiled = true;
        return;
    }
    lookup->directory = directory;
    snprintf(lookup->name, sizeof lookup->name, "%s", name);
    char key[16 + WIRE_NAME_MAX];
    snprintf(key, sizeof key, "roost:worker:%s", name);
    const char *words[] = {key, "roost:workers", name};
    if (redis_script_call(directory->entry_script, DEADLINE_MS, on_entry, lookup, 2, 3, words) != STATUS_OK) {
        directory->spoiled = true;
        free(lookup);
        return;
    }
    directory->open++;
}

static void on_names(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct worker_directory *directory = user;
    if (st != STATUS_OK || late)
        directory->spoiled = true;
    if (st == STATUS_TIMEOUT)
        return;
    char name[WIRE_NAME_MAX + 1];
    bool partial = false; /* an empty name at the end: there are more, some of them not workers any more */
    if (!directory->spoiled && reply->type != REDIS_REPLY_ARRAY)
        directory->spoiled = true;
    for (size_t i = 0; !directory->spoiled && i < reply->elements && i < WORKER_DIRECTORY_ENTRIES_MAX; i++)
        if (worker_directory_parse_name(reply, i, name))
            ask_entry(directory, name);
        else
            partial = true;
    directory->spoiled = directory->spoiled || partial;
    directory->open--;
    finish(directory);
}

void worker_directory_read(struct worker_directory *directory)
{
    if (directory->open > 0)
        return; /* the last reading is not over */
    const char *words[] = {"roost:workers"};
    _Static_assert(WORKER_DIRECTORY_ENTRIES_MAX == 1024, "the count in the script");
    directory->count = 0;
    directory->spoiled = false;
    directory->begun_ms = loop_now_ms(directory->loop);
    if (redis_script_call(directory->names_script, DEADLINE_MS, on_names, directory, 1, 1, words) == STATUS_OK)
        directory->open++;
}

static void on_timer(void *user)
{
    worker_directory_read(user);
}

enum status worker_directory_create(struct loop *loop, struct redis_link *link, worker_directory_fn *fn, void *user,
                                    struct worker_directory **out)
{
    struct worker_directory *directory = calloc(1, sizeof *directory);
    if (!directory)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the worker directory");
    directory->loop = loop;
    directory->fn = fn;
    directory->user = user;
    enum status st;
    TRY_GOTO(redis_script_create(link, names_script, &directory->names_script), st, fail);
    TRY_GOTO(redis_script_create(link, entry_script, &directory->entry_script), st, fail);
    TRY_GOTO(loop_timer_create(loop, WORKER_DIRECTORY_READ_MS, true, on_timer, directory, &directory->timer), st, fail);
    *out = directory;
    return STATUS_OK;
fail:
    worker_directory_destroy(&directory);
    return st;
}

void worker_directory_destroy(struct worker_directory **directory)
{
    if (!*directory)
        return;
    loop_timer_destroy(&(*directory)->timer);
    redis_script_destroy(&(*directory)->names_script);
    redis_script_destroy(&(*directory)->entry_script);
    free(*directory);
    *directory = NULL;
}
