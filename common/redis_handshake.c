/* redis_handshake.c - what is asked on a new connection before commands may use it: AUTH, SELECT, PING, with sentinels
 * ROLE, then the scripts (SCRIPT LOAD), so that whoever finds the link up finds them there. */
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/redis_link_internal.h"
#include "common/redis_sentinel.h"

void redis_handshake_refuse(struct connection *connection, const char *words)
{
    struct redis_link *link = connection->link;
    uint64_t now = clock_now_us();
    if (!connection->refused && (link->refusal_logged_us == 0 || now - link->refusal_logged_us > 60 * 1000000ull)) {
        link->refusal_logged_us = now;
        LOG_WARN("redis refuses this connection: %.200s", words);
    }
    connection->refused = true; /* try again on the next connection */
}

/* NULL: the answer to it is of no use any more. */
static struct connection *handshaking(redisAsyncContext *context, const redisReply *reply)
{
    struct connection *connection = context->data;
    struct redis_link *link = connection->link;
    return reply && link->connection == connection && !link->moved ? connection : NULL;
}

static void handshake_answered(struct connection *connection)
{
    if (--connection->handshake_replies == 0 && !connection->refused)
        redis_link_go_up(connection->link);
}

/* privdata: not NULL for the answer to ROLE. */
static void on_handshake_reply(redisAsyncContext *context, void *data, void *privdata)
{
    const redisReply *reply = data;
    struct connection *connection = handshaking(context, reply);
    if (!connection)
        return;
    if (reply->type == REDIS_REPLY_ERROR)
        redis_handshake_refuse(connection, reply->str); /* LOADING, wrong password, ... */
    else if (privdata && !redis_role_is_master(reply))
        redis_handshake_refuse(connection, "the sentinels say that it is the master, and it says that it is not");
    handshake_answered(connection);
}

/* An error is no refusal: who may not load scripts may run them whole. */
static void on_script_reply(redisAsyncContext *context, void *data, void *privdata)
{
    const redisReply *reply = data;
    struct redis_link_script *script = privdata;
    struct connection *connection = handshaking(context, reply);
    if (!connection)
        return;
    if (reply->type == REDIS_REPLY_STRING && reply->len == REDIS_DIGEST_HEX)
        memcpy(script->digest, reply->str, REDIS_DIGEST_HEX);
    handshake_answered(connection);
}

static void handshake_send(struct connection *connection, void *role, int argc, const char **argv)
{
    if (redisAsyncCommandArgv(connection->context, on_handshake_reply, role, argc, argv, NULL) == REDIS_OK)
        connection->handshake_replies++;
}

static void handshake_script(struct connection *connection, struct redis_link_script *script)
{
    if (redisAsyncCommandArgv(connection->context, on_script_reply, script, 3,
                              (const char *[]){"SCRIPT", "LOAD", script->text}, NULL) == REDIS_OK)
        connection->handshake_replies++;
}

void redis_handshake_start(struct connection *connection)
{
    struct redis_link *link = connection->link;
    if (link->password && link->user)
        handshake_send(connection, NULL, 3, (const char *[]){"AUTH", link->user, link->password});
    else if (link->password)
        handshake_send(connection, NULL, 2, (const char *[]){"AUTH", link->password});
    if (link->database) {
        char number[16];
        snprintf(number, sizeof number, "%u", link->database);
        handshake_send(connection, NULL, 2, (const char *[]){"SELECT", number});
    }
    handshake_send(connection, NULL, 1, (const char *[]){"PING"});
    if (link->sentinel)
        handshake_send(connection, connection, 1, (const char *[]){"ROLE"});
    for (unsigned i = 0; i < link->script_count; i++)
        handshake_script(connection, &link->scripts[i]);
}

/* ---- scripts ---- */

enum status redis_link_add_script(struct redis_link *link, const char *text, unsigned *out)
{
    if (link->script_count == REDIS_LINK_SCRIPTS_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%d scripts are known to this redis link already", REDIS_LINK_SCRIPTS_MAX);
    struct redis_link_script *script = &link->scripts[link->script_count];
    *script = (struct redis_link_script){.text = text};
    *out = link->script_count++;
    if (link->connection && !link->up)
        handshake_script(link->connection, script);
    return STATUS_OK;
}

const char *redis_link_script_digest(const struct redis_link *link, unsigned script)
{
    return link->scripts[script].digest;
}
