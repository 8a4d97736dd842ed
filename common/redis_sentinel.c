/* redis_sentinel.c - one question at a time:
 *
 *   redis_sentinel_ask --> link to the next one --up--> command --answer--> on_master
 *                            ^                                  `--nil, error, bad address--.
 *                            `---- the next tick, until each was asked once <--silence------' */
#include "common/redis_sentinel.h"
#include <arpa/inet.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/redis_link.h"

enum {
    TICK_MS = 20,
    LOG_US = 60 * 1000000, /* no more than one line a minute */
};

struct redis_sentinel {
    struct loop *loop; /* ref */
    char *addresses[REDIS_SENTINELS_MAX];
    unsigned count;
    char *master;
    void (*on_master)(void *user, const char *address);
    void *user;
    unsigned next;            /* to be asked */
    struct loop_timer *timer; /* while a question is open */
    unsigned left;            /* not asked yet in this round */
    struct redis_link *link;  /* to the one that is asked now; freed by the tick, for its callbacks must not */
    uint64_t asked_ms;
    bool over;     /* it answered */
    bool answered; /* and with an address: the round is over */
    uint64_t logged_us;
};

enum status redis_sentinel_parse(const struct redisReply *reply, char *address, size_t size)
{
    if (reply->type == REDIS_REPLY_NIL)
        return STATUS_FAIL(STATUS_NOT_FOUND, "the sentinel does not know this master");
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 || reply->element[0]->type != REDIS_REPLY_STRING ||
        reply->element[1]->type != REDIS_REPLY_STRING)
        return STATUS_FAIL(STATUS_CORRUPT, "the sentinel answered no address");
    const struct redisReply *host = reply->element[0], *port = reply->element[1];
    char text[INET6_ADDRSTRLEN];
    struct in6_addr binary;
    if ((size_t)host->len >= sizeof text || memchr(host->str, 0, (size_t)host->len) || port->len < 1 || port->len > 5)
        return STATUS_FAIL(STATUS_INVALID,
                           "the sentinel answered a name, or no address: it must announce numeric ones");
    memcpy(text, host->str, (size_t)host->len);
    text[host->len] = 0;
    bool six = inet_pton(AF_INET6, text, &binary) == 1;
    if (!six && inet_pton(AF_INET, text, &binary) != 1)
        return STATUS_FAIL(STATUS_INVALID,
                           "the sentinel answered a name, or no address: it must announce numeric ones");
    unsigned number = 0;
    for (size_t i = 0; i < (size_t)port->len; i++) {
        if (port->str[i] < '0' || port->str[i] > '9')
            return STATUS_FAIL(STATUS_INVALID, "the sentinel answered no port");
        number = number * 10 + (unsigned)(port->str[i] - '0');
    }
    if (number < 1 || number > 65535)
        return STATUS_FAIL(STATUS_INVALID, "the sentinel answered no port");
    if (snprintf(address, size, six ? "[%s]:%u" : "%s:%u", text, number) >= (int)size)
        return STATUS_FAIL(STATUS_LIMIT, "no room for the address of the master");
    return STATUS_OK;
}

bool redis_role_is_master(const struct redisReply *reply)
{
    return reply->type == REDIS_REPLY_ARRAY && reply->elements >= 1 && reply->element[0]->type == REDIS_REPLY_STRING &&
           reply->element[0]->len == 6 && memcmp(reply->element[0]->str, "master", 6) == 0;
}

static void complain(struct redis_sentinel *sentinel, const char *words)
{
    uint64_t now = clock_now_us();
    if (sentinel->logged_us && now - sentinel->logged_us < LOG_US)
        return;
    sentinel->logged_us = now;
    LOG_WARN("redis sentinels, master %s: %.200s", sentinel->master, words);
}

static void on_answer(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct redis_sentinel *sentinel = user;
    char address[REDIS_ADDRESS_MAX];
    if (late || st == STATUS_TIMEOUT)
        return; /* the tick goes on to the next one */
    if (st == STATUS_CLOSED) {
        sentinel->over = true;
        return;
    }
    sentinel->over = true;
    if (st != STATUS_OK || redis_sentinel_parse(reply, address, sizeof address) != STATUS_OK) {
        complain(sentinel, status_detail());
        return;
    }
    sentinel->answered = true;
    sentinel->on_master(sentinel->user, address);
}

static void on_state(void *user, bool up)
{
    struct redis_sentinel *sentinel = user;
    const char *words[] = {"SENTINEL", "get-master-addr-by-name", sentinel->master};
    const size_t sizes[] = {8, 23, strlen(sentinel->master)};
    if (!up || sentinel->over)
        return;
    if (redis_link_command(sentinel->link, REDIS_SENTINEL_ASK_MS, on_answer, sentinel, 3, words, sizes) != STATUS_OK)
        sentinel->over = true;
}

static void ask_next(struct redis_sentinel *sentinel)
{
    redis_link_destroy(&sentinel->link);
    if (sentinel->answered || sentinel->left == 0) {
        if (!sentinel->answered)
            complain(sentinel, "none of them answered where it is");
        loop_timer_destroy(&sentinel->timer);
        return;
    }
    const char *address = sentinel->addresses[sentinel->next];
    sentinel->next = (sentinel->next + 1) % sentinel->count;
    sentinel->left--;
    sentinel->over = false;
    sentinel->asked_ms = clock_now_ms();
    struct redis_link_config config = {.address = address, .on_state = on_state, .user_data = sentinel};
    if (redis_link_create(sentinel->loop, &config, &sentinel->link) != STATUS_OK)
        sentinel->over = true;
}

static void on_tick(void *user)
{
    struct redis_sentinel *sentinel = user;
    if (sentinel->over || clock_now_ms() - sentinel->asked_ms >= REDIS_SENTINEL_ASK_MS)
        ask_next(sentinel);
}

void redis_sentinel_ask(struct redis_sentinel *sentinel)
{
    if (sentinel->timer ||
        loop_timer_create(sentinel->loop, TICK_MS, true, on_tick, sentinel, &sentinel->timer) != STATUS_OK)
        return;
    sentinel->left = sentinel->count;
    sentinel->answered = false;
    ask_next(sentinel);
}

enum status redis_sentinel_create(struct loop *loop, const struct redis_sentinel_config *config,
                                  struct redis_sentinel **out)
{
    if (config->count < 1 || config->count > REDIS_SENTINELS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "redis_sentinels: 1 to %d addresses", REDIS_SENTINELS_MAX);
    if (!config->master || !config->master[0])
        return STATUS_FAIL(STATUS_INVALID, "redis_sentinel_master: missing, the name that the sentinels know it by");
    struct redis_sentinel *sentinel = calloc(1, sizeof *sentinel);
    if (!sentinel)
        return STATUS_FAIL(STATUS_NO_MEMORY, "questions to redis sentinels");
    enum status st;
    sentinel->loop = loop;
    sentinel->on_master = config->on_master;
    sentinel->user = config->user;
    sentinel->master = strdup(config->master);
    if (!sentinel->master) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "questions to redis sentinels");
        goto fail;
    }
    for (; sentinel->count < config->count; sentinel->count++) {
        TRY_GOTO(redis_address_check("redis_sentinels", config->addresses[sentinel->count]), st, fail);
        sentinel->addresses[sentinel->count] = strdup(config->addresses[sentinel->count]);
        if (!sentinel->addresses[sentinel->count]) {
            st = STATUS_FAIL(STATUS_NO_MEMORY, "questions to redis sentinels");
            goto fail;
        }
    }
    *out = sentinel;
    return STATUS_OK;
fail:
    redis_sentinel_destroy(&sentinel);
    return st;
}

void redis_sentinel_destroy(struct redis_sentinel **sentinel_pointer)
{
    struct redis_sentinel *sentinel = *sentinel_pointer;
    if (!sentinel)
        return;
    *sentinel_pointer = NULL;
    loop_timer_destroy(&sentinel->timer);
    redis_link_destroy(&sentinel->link);
    for (unsigned i = 0; i < sentinel->count; i++)
        free(sentinel->addresses[i]);
    free(sentinel->master);
    free(sentinel);
}
