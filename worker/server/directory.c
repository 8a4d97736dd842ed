/* directory.c - owns the timer that renews the entry. Each renewal is one script, so that an entry
 * without a time to live cannot be left behind by a connection that breaks in between. */
#include "worker/server/directory.h"
#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/redis_link.h"

/* Answers the incarnation that was there before. What has another type is not ours, and would keep us out for ever. */
static const char renew_script[] =
    "for i, kind in ipairs({'set', 'hash'}) do "
    "local found = redis.call('TYPE', KEYS[i]).ok "
    "if found ~= kind and found ~= 'none' then redis.call('UNLINK', KEYS[i]) end end "
    "local before = '' "
    "if redis.call('HSTRLEN', KEYS[2], 'incarnation') == 32 then before = redis.call('HGET', KEYS[2], 'incarnation') "
    "end "
    "redis.call('HSET', KEYS[2], 'endpoint', ARGV[2], 'incarnation', ARGV[3], 'state', ARGV[4]) "
    "redis.call('PEXPIRE', KEYS[2], ARGV[5]) "
    "redis.call('SADD', KEYS[1], ARGV[1]) "
    "return before";
/* A worker that was started again under the same name has its own incarnation there: it stays. */
static const char leave_script[] = "if redis.call('HGET', KEYS[2], 'incarnation') ~= ARGV[2] then return 0 end "
                                   "redis.call('DEL', KEYS[2]) "
                                   "redis.call('SREM', KEYS[1], ARGV[1]) "
                                   "return 1";

struct directory {
    struct redis_link *link; /* ref */
    struct loop_timer *timer;
    char *name, *endpoint, *key;
    char incarnation[HASH_HEX_SIZE(HASH_ID_BYTES)];
    const char *state;
    bool registered;  /* the last renewal was taken */
    bool troubled;    /* and the one before was not: said once in the log */
    bool shared_name; /* another process uses our name: said once */
    void (*left)(void *user);
    void *left_user;
};

static void note_trouble(struct directory *directory, const char *words)
{
    directory->registered = false;
    if (!directory->troubled)
        LOG_WARN("not registered in redis: %s", words);
    directory->troubled = true;
}

static void on_renewed(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct directory *directory = user;
    if (st == STATUS_TIMEOUT || st == STATUS_CLOSED) {
        note_trouble(directory, st == STATUS_TIMEOUT ? "no answer in time" : "no connection");
        return;
    }
    if (st != STATUS_OK || !reply || reply->type == REDIS_REPLY_ERROR) {
        note_trouble(directory, reply && reply->type == REDIS_REPLY_ERROR ? reply->str : status_name(st));
        return;
    }
    bool ours = reply->type == REDIS_REPLY_STRING && reply->len == strlen(directory->incarnation) &&
                memcmp(reply->str, directory->incarnation, reply->len) == 0;
    if (directory->registered && !ours && reply->type == REDIS_REPLY_STRING && reply->len > 0 &&
        !directory->shared_name) {
        directory->shared_name = true;
        LOG_WARN("another process registers as %s in redis: names must be unique", directory->name);
    }
    if (directory->troubled || !directory->registered)
        LOG_INFO("registered in redis as %s", directory->name);
    directory->troubled = false;
    directory->registered = !late || directory->registered;
}

static void renew(void *user)
{
    struct directory *directory = user;
    char ttl[16];
    if (!directory->state || directory->left)
        return;
    snprintf(ttl, sizeof ttl, "%u", DIRECTORY_TTL_MS);
    const char *argv[] = {"EVAL",
                          renew_script,
                          "2",
                          "roost:workers",
                          directory->key,
                          directory->name,
                          directory->endpoint,
                          directory->incarnation,
                          directory->state,
                          ttl};
    enum { ARGC = sizeof argv / sizeof *argv };
    size_t sizes[ARGC];
    for (unsigned i = 0; i < ARGC; i++)
        sizes[i] = strlen(argv[i]);
    if (redis_link_command(directory->link, DIRECTORY_DEADLINE_MS, on_renewed, directory, ARGC, argv, sizes) !=
        STATUS_OK)
        note_trouble(directory, "no connection");
}

static void on_link(void *user, bool up)
{
    if (up)
        renew(user);
}

enum status directory_create(const struct directory_config *config, struct directory **out)
{
    enum status st;
    struct directory *directory = calloc(1, sizeof *directory);
    if (!directory)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the directory entry");
    directory->name = strdup(config->name);
    directory->endpoint = strdup(config->endpoint);
    if (!directory->name || !directory->endpoint || asprintf(&directory->key, "roost:worker:%s", config->name) < 0) {
        directory->key = NULL;
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the directory entry");
        goto fail;
    }
    hash_hex(config->incarnation, HASH_ID_BYTES, directory->incarnation);
    directory->link = config->link;
    TRY_GOTO(loop_timer_create(config->loop, DIRECTORY_RENEW_MS, true, renew, directory, &directory->timer), st, fail);
    TRY_GOTO(redis_link_watch(config->link, on_link, directory), st, fail);
    *out = directory;
    return STATUS_OK;
fail:
    directory_destroy(&directory);
    return st;
}

void directory_destroy(struct directory **directory_pointer)
{
    struct directory *directory = directory_pointer ? *directory_pointer : NULL;
    if (!directory)
        return;
    loop_timer_destroy(&directory->timer);
    free(directory->name);
    free(directory->endpoint);
    free(directory->key);
    free(directory);
    *directory_pointer = NULL;
}

void directory_set_state(struct directory *directory, const char *state)
{
    directory->state = state;
    if (redis_link_up(directory->link))
        renew(directory);
}

static void on_left(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct directory *directory = user;
    (void)st;
    (void)reply;
    if (!late && directory->left_user != NULL) {
        void *left_user = directory->left_user;
        directory->left_user = NULL; /* once */
        directory->left(left_user);
    }
}

void directory_leave(struct directory *directory, void (*fn)(void *user), void *user)
{
    const char *argv[] = {"EVAL",          leave_script,          "2", "roost:workers", directory->key,
                          directory->name, directory->incarnation};
    enum { ARGC = sizeof argv / sizeof *argv };
    size_t sizes[ARGC];
    for (unsigned i = 0; i < ARGC; i++)
        sizes[i] = strlen(argv[i]);
    directory->left = fn;
    directory->left_user = user;
    if (redis_link_command(directory->link, DIRECTORY_DEADLINE_MS, on_left, directory, ARGC, argv, sizes) != STATUS_OK)
        on_left(directory, STATUS_CLOSED, NULL, false);
}
