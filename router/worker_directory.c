/* worker_directory.c - one reading at a time: the names, then the entry of each name; an unanswered command spoils it.
 * SRANDMEMBER with a count bounds what a poisoned set can send, HSTRLEN in front of HGET what a poisoned entry can. */
#include "router/worker_directory.h"
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/loop.h"
#include "common/redis_link.h"

enum { DEADLINE_MS = 500 }; /* half of WORKER_DIRECTORY_READ_MS: a reading is over before the next one */

static const char entry_script[] = "if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return false end\n"
                                   "local n = redis.call('HSTRLEN', KEYS[1], 'endpoint')\n"
                                   "if n < 1 or n > 255 then return false end\n"
                                   "return redis.call('HGET', KEYS[1], 'endpoint')\n";

struct worker_directory {
    struct redis_link *link; /* ref */
    struct loop *loop;       /* ref */
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
    if (!directory->spoiled && reply->type == REDIS_REPLY_STRING && reply->len > 0 &&
        reply->len < WORKER_ENDPOINT_MAX && !memchr(reply->str, 0, (size_t)reply->len)) {
        struct worker_directory_entry *entry = &directory->entries[directory->count++];
        snprintf(entry->name, sizeof entry->name, "%s", lookup->name);
        memcpy(entry->endpoint, reply->str, (size_t)reply->len);
        entry->endpoint[reply->len] = 0;
    }
    free(lookup);
    directory->open--;
    finish(directory);
}

static void ask_entry(struct worker_directory *directory, const char *name, size_t size)
{
    struct lookup *lookup = calloc(1, sizeof *lookup);
    if (!lookup) {
        directory->spoiled = true;
        return;
    }
    lookup->directory = directory;
    memcpy(lookup->name, name, size);
    char key[16 + WIRE_NAME_MAX];
    int key_size = snprintf(key, sizeof key, "roost:worker:%s", lookup->name);
    const char *words[] = {"EVAL", entry_script, "1", key};
    const size_t sizes[] = {4, sizeof entry_script - 1, 1, (size_t)key_size};
    if (redis_link_command(directory->link, DEADLINE_MS, on_entry, lookup, 4, words, sizes) != STATUS_OK) {
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
    if (!directory->spoiled && reply->type == REDIS_REPLY_ARRAY) {
        for (size_t i = 0; i < reply->elements && i < WORKER_DIRECTORY_ENTRIES_MAX; i++) {
            const struct redisReply *name = reply->element[i];
            if (name->type == REDIS_REPLY_STRING && wire_name_valid(wire_span_of(name->str, (size_t)name->len)))
                ask_entry(directory, name->str, (size_t)name->len);
        }
    }
    directory->open--;
    finish(directory);
}

void worker_directory_read(struct worker_directory *directory)
{
    if (directory->open > 0)
        return; /* the last reading is not over */
    const char *words[] = {"SRANDMEMBER", "roost:workers", "1024"};
    const size_t sizes[] = {11, 13, 4};
    _Static_assert(WORKER_DIRECTORY_ENTRIES_MAX == 1024, "the count in the command");
    directory->count = 0;
    directory->spoiled = false;
    directory->begun_ms = loop_now_ms(directory->loop);
    if (redis_link_command(directory->link, DEADLINE_MS, on_names, directory, 3, words, sizes) == STATUS_OK)
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
    directory->link = link;
    directory->fn = fn;
    directory->user = user;
    enum status st = loop_timer_create(loop, WORKER_DIRECTORY_READ_MS, true, on_timer, directory, &directory->timer);
    if (st != STATUS_OK) {
        free(directory);
        return st;
    }
    *out = directory;
    return STATUS_OK;
}

void worker_directory_destroy(struct worker_directory **directory)
{
    if (!*directory)
        return;
    loop_timer_destroy(&(*directory)->timer);
    free(*directory);
    *directory = NULL;
}
