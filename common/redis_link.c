/* redis_link.c - owns at most one hiredis connection, the commands that wait on it and the breaker.
 *
 *   redis_link_command --> pending (hiredis' queue, in order of sending) --> reply --> fn
 *                      `-> waiting (by deadline) --deadline--> fn(TIMEOUT), stays pending as late
 *
 *   DOWN --every 250 ms: new connection, AUTH, SELECT, PING--> PONG --> UP
 *   UP --connection lost, or REDIS_LINK_MISSES_MAX deadlines missed in a row--> DOWN: all pending are answered
 *
 * Always true:
 *   1. each command with a callback gets exactly one first answer, and after a STATUS_TIMEOUT exactly one late one;
 *   2. waiting holds exactly the commands that have had no answer yet, earliest deadline first;
 *   3. a callback may call redis_link_command; it must not destroy the link;
 *   4. the link goes down inside hiredis' callbacks, but a connection is freed only from our own events. */
#include "common/redis_link.h"
#include <arpa/inet.h>
#include <event2/event.h>
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"

enum {
    PROBE_MS = 250,
    REPLY_BYTES_MAX = 4 << 20, /* unread reply bytes; the largest honest one is a directory of 4,096 names: 300 KB */
    ADDRESS_MAX = 256,
    ARGUMENTS_MAX = 64,
};

struct command {
    TAILQ_ENTRY(command) by_deadline; /* on waiting while !answered */
    struct redis_link *link;          /* ref */
    redis_link_reply_fn *fn;
    void *user;
    uint64_t deadline_us;
    bool answered;
};
TAILQ_HEAD(command_list, command);

struct connection {
    struct redis_link *link; /* ref */
    redisAsyncContext *context;
    struct event *read_event, *write_event;
    unsigned handshake_replies; /* still to come: AUTH, SELECT, PING */
    bool refused;               /* one of them was an error */
};

struct redis_link {
    struct loop *loop; /* ref */
    char host[ADDRESS_MAX];
    int port; /* 0: host is a path of a unix socket */
    char *user, *password;
    uint32_t database;
    void (*on_state)(void *user, bool up);
    void *user_data;

    struct connection *connection; /* NULL: none */
    bool up, closing;
    unsigned misses, pending;
    struct command_list waiting;
    struct event *deadline_event; /* libevent's own timer: loop.h's count whole milliseconds */
    struct event *probe_event;
    struct event *drop_event; /* active: the connection is to be freed outside of hiredis' callbacks */
    uint64_t refusal_logged_us;
};

static void go_down(struct redis_link *link, const char *why);

/* ---- deadlines ---- */

static void arm_deadline(struct redis_link *link)
{
    const struct command *first = TAILQ_FIRST(&link->waiting);
    if (!first) {
        event_del(link->deadline_event);
        return;
    }
    uint64_t now = clock_now_us();
    uint64_t left = first->deadline_us > now ? first->deadline_us - now : 0;
    struct timeval tv = {.tv_sec = (time_t)(left / 1000000), .tv_usec = (suseconds_t)(left % 1000000)};
    event_add(link->deadline_event, &tv);
}

static void wait_insert(struct redis_link *link, struct command *command)
{
    struct command *before = TAILQ_LAST(&link->waiting, command_list);
    while (before && before->deadline_us > command->deadline_us)
        before = TAILQ_PREV(before, command_list, by_deadline);
    if (before)
        TAILQ_INSERT_AFTER(&link->waiting, before, command, by_deadline);
    else
        TAILQ_INSERT_HEAD(&link->waiting, command, by_deadline);
}

/* The only place that calls a command's fn. final: hiredis has let go of it, and so do we. */
static void command_answer(struct command *command, enum status st, const redisReply *reply, bool final)
{
    struct redis_link *link = command->link;
    bool late = command->answered;
    if (!late) {
        TAILQ_REMOVE(&link->waiting, command, by_deadline);
        command->answered = true;
    }
    redis_link_reply_fn *fn = command->fn;
    void *user = command->user;
    if (final) {
        link->pending--;
        free(command);
    }
    if (fn)
        fn(user, st, reply, late);
}

static void on_deadline(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct redis_link *link = user;
    uint64_t now = clock_now_us();
    struct command *first;
    while ((first = TAILQ_FIRST(&link->waiting)) && first->deadline_us <= now) {
        link->misses++;
        (void)STATUS_FAIL(STATUS_TIMEOUT, "redis did not answer in time");
        command_answer(first, STATUS_TIMEOUT, NULL, false);
    }
    if (link->up && link->misses >= REDIS_LINK_MISSES_MAX)
        go_down(link, "missed too many deadlines in a row");
    arm_deadline(link);
}

/* ---- connection ---- */

static void on_readable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct connection *connection = user;
    struct redis_link *link = connection->link;
    redisAsyncHandleRead(connection->context); /* may free both */
    if (link->connection == connection && connection->context->c.reader &&
        connection->context->c.reader->len > REPLY_BYTES_MAX)
        go_down(link, "sent a reply that is too large");
}

static void on_writable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    redisAsyncHandleWrite(((struct connection *)user)->context);
}

static void hook_add_read(void *data)
{
    event_add(((struct connection *)data)->read_event, NULL);
}
static void hook_del_read(void *data)
{
    event_del(((struct connection *)data)->read_event);
}
static void hook_add_write(void *data)
{
    event_add(((struct connection *)data)->write_event, NULL);
}
static void hook_del_write(void *data)
{
    event_del(((struct connection *)data)->write_event);
}

/* hiredis frees the context right after this, in whatever way it ended, and has answered its pending commands. */
static void hook_cleanup(void *data)
{
    struct connection *connection = data;
    struct redis_link *link = connection->link;
    if (connection->read_event)
        event_free(connection->read_event);
    if (connection->write_event)
        event_free(connection->write_event);
    if (link->connection == connection) {
        link->connection = NULL;
        const redisAsyncContext *context = connection->context;
        go_down(link, context->err && context->errstr ? context->errstr : "closed the connection");
    }
    free(connection);
}

/* Frees the connection; hiredis answers each pending command with a NULL reply. Never inside a hiredis callback. */
static void connection_free(struct redis_link *link)
{
    struct connection *connection = link->connection;
    if (!connection)
        return;
    link->connection = NULL;
    redisAsyncFree(connection->context); /* frees connection in hook_cleanup */
}

static void on_drop(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct redis_link *link = user;
    if (!link->up)
        connection_free(link);
}

static void go_down(struct redis_link *link, const char *why)
{
    bool was_up = link->up;
    link->up = false;
    link->misses = 0;
    if (link->connection)
        event_active(link->drop_event, EV_TIMEOUT, 0);
    if (was_up && !link->closing && link->on_state) {
        (void)STATUS_FAIL(STATUS_CLOSED, "redis %s", why);
        link->on_state(link->user_data, false);
    }
}

static void on_handshake_reply(redisAsyncContext *context, void *data, void *privdata)
{
    (void)privdata;
    const redisReply *reply = data;
    struct connection *connection = context->data;
    struct redis_link *link = connection->link;
    if (!reply || link->connection != connection)
        return;
    if (reply->type == REDIS_REPLY_ERROR && !connection->refused) {
        connection->refused = true; /* LOADING, wrong password, ...: try again on the next connection */
        uint64_t now = clock_now_us();
        if (now - link->refusal_logged_us > 60 * 1000000ull || link->refusal_logged_us == 0) {
            link->refusal_logged_us = now;
            LOG_WARN("redis refuses this connection: %.200s", reply->str);
        }
    }
    if (--connection->handshake_replies > 0 || connection->refused)
        return;
    link->up = true;
    link->misses = 0;
    link->refusal_logged_us = 0;
    if (link->on_state)
        link->on_state(link->user_data, true);
}

static void handshake_send(struct connection *connection, int argc, const char **argv)
{
    if (redisAsyncCommandArgv(connection->context, on_handshake_reply, NULL, argc, argv, NULL) == REDIS_OK)
        connection->handshake_replies++;
}

static void connection_start(struct redis_link *link)
{
    redisAsyncContext *context =
        link->port ? redisAsyncConnect(link->host, link->port) : redisAsyncConnectUnix(link->host);
    if (!context)
        return;
    struct connection *connection = calloc(1, sizeof *connection);
    if (context->err || !connection) {
        free(connection);
        redisAsyncFree(context);
        return;
    }
    struct event_base *base = loop_event_base(link->loop);
    connection->link = link;
    connection->context = context;
    context->data = connection;
    context->ev.data = connection;
    context->ev.addRead = hook_add_read;
    context->ev.delRead = hook_del_read;
    context->ev.addWrite = hook_add_write;
    context->ev.delWrite = hook_del_write;
    context->ev.cleanup = hook_cleanup;
    connection->read_event = event_new(base, context->c.fd, EV_READ | EV_PERSIST, on_readable, connection);
    connection->write_event = event_new(base, context->c.fd, EV_WRITE, on_writable, connection);
    if (!connection->read_event || !connection->write_event) {
        redisAsyncFree(context);
        return;
    }
    link->connection = connection;
    if (link->password && link->user)
        handshake_send(connection, 3, (const char *[]){"AUTH", link->user, link->password});
    else if (link->password)
        handshake_send(connection, 2, (const char *[]){"AUTH", link->password});
    if (link->database) {
        char number[16];
        snprintf(number, sizeof number, "%u", link->database);
        handshake_send(connection, 2, (const char *[]){"SELECT", number});
    }
    handshake_send(connection, 1, (const char *[]){"PING"});
}

static void on_probe(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct redis_link *link = user;
    if (!link->up) {
        connection_free(link); /* the last probe was not answered in time */
        connection_start(link);
    }
}

/* ---- commands ---- */

static void on_reply(redisAsyncContext *context, void *data, void *privdata)
{
    (void)context;
    const redisReply *reply = data;
    struct command *command = privdata;
    struct redis_link *link = command->link;
    enum status st = STATUS_OK;
    if (!reply) {
        st = STATUS_FAIL(STATUS_CLOSED, "the connection to redis is lost");
    } else {
        link->misses = 0;
        if (reply->type == REDIS_REPLY_ERROR)
            st = STATUS_FAIL(STATUS_IO, "redis: %.200s", reply->str);
    }
    command_answer(command, st, reply, true);
    if (!TAILQ_FIRST(&link->waiting))
        event_del(link->deadline_event);
}

bool redis_link_up(const struct redis_link *link)
{
    return link->up;
}

enum status redis_link_command(struct redis_link *link, uint32_t deadline_ms, redis_link_reply_fn *fn, void *user,
                               unsigned argc, const char *const *argv, const size_t *argv_sizes)
{
    if (!link->up || !link->connection || link->closing)
        return STATUS_FAIL(STATUS_CLOSED, "redis is not reachable");
    if (link->pending >= REDIS_LINK_PENDING_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%u commands wait for redis already", link->pending);
    if (argc == 0 || argc > ARGUMENTS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "a command of %u words", argc);
    struct command *command = calloc(1, sizeof *command);
    if (!command)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a redis command");
    command->link = link;
    command->fn = fn;
    command->user = user;
    command->deadline_us = clock_now_us() + (uint64_t)deadline_ms * 1000;
    const char *words[ARGUMENTS_MAX];
    memcpy(words, argv, argc * sizeof *argv);
    if (redisAsyncCommandArgv(link->connection->context, on_reply, command, (int)argc, words, argv_sizes) != REDIS_OK) {
        free(command);
        return STATUS_FAIL(STATUS_CLOSED, "redis is being disconnected");
    }
    link->pending++;
    wait_insert(link, command);
    if (TAILQ_FIRST(&link->waiting) == command)
        arm_deadline(link);
    return STATUS_OK;
}

/* ---- life ---- */

static enum status parse_address(struct redis_link *link, const char *address)
{
    size_t size = strlen(address);
    if (size == 0 || size >= ADDRESS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "redis address: 1 to %d characters", ADDRESS_MAX - 1);
    memcpy(link->host, address, size + 1);
    if (address[0] == '/')
        return STATUS_OK;
    char *colon = strrchr(link->host, ':');
    char *end = NULL;
    long port = colon ? strtol(colon + 1, &end, 10) : 0;
    if (port < 1 || port > 65535 || *end)
        return STATUS_FAIL(STATUS_INVALID, "redis address: use IP:PORT, [IP]:PORT or /path/to.sock");
    *colon = 0;
    struct in6_addr binary;
    if (link->host[0] == '[' && colon[-1] == ']') {
        colon[-1] = 0;
        memmove(link->host, link->host + 1, strlen(link->host));
        if (inet_pton(AF_INET6, link->host, &binary) != 1)
            return STATUS_FAIL(STATUS_INVALID, "redis address: the part in brackets must be an IPv6 address");
    } else if (inet_pton(AF_INET, link->host, &binary) != 1) {
        return STATUS_FAIL(STATUS_INVALID,
                           "redis address: must be numeric, names would be looked up with the loop standing still");
    }
    link->port = (int)port;
    return STATUS_OK;
}

static enum status copy_text(const char *text, char **out)
{
    if (text && *text && !(*out = strdup(text)))
        return STATUS_FAIL(STATUS_NO_MEMORY, "redis settings");
    return STATUS_OK;
}

enum status redis_link_create(struct loop *loop, const struct redis_link_config *config, struct redis_link **out)
{
    struct redis_link *link = calloc(1, sizeof *link);
    if (!link)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a redis link");
    link->loop = loop;
    link->database = config->database;
    link->on_state = config->on_state;
    link->user_data = config->user_data;
    TAILQ_INIT(&link->waiting);
    /* hiredis writes without MSG_NOSIGNAL: a server that has gone must be an error, not our end. */
    struct sigaction old;
    if (sigaction(SIGPIPE, NULL, &old) == 0 && old.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);

    enum status st;
    TRY_GOTO(parse_address(link, config->address), st, fail);
    TRY_GOTO(copy_text(config->user, &link->user), st, fail);
    TRY_GOTO(copy_text(config->password, &link->password), st, fail);
    struct event_base *base = loop_event_base(loop);
    link->deadline_event = evtimer_new(base, on_deadline, link);
    link->drop_event = evtimer_new(base, on_drop, link);
    link->probe_event = event_new(base, -1, EV_PERSIST, on_probe, link);
    struct timeval probe = {.tv_usec = PROBE_MS * 1000};
    if (!link->deadline_event || !link->drop_event || !link->probe_event || event_add(link->probe_event, &probe) != 0) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "redis timers");
        goto fail;
    }
    connection_start(link);
    *out = link;
    return STATUS_OK;
fail:
    redis_link_destroy(&link);
    return st;
}

void redis_link_destroy(struct redis_link **link)
{
    struct redis_link *gone = *link;
    if (!gone)
        return;
    *link = NULL;
    gone->closing = true;
    connection_free(gone);
    if (gone->deadline_event)
        event_free(gone->deadline_event);
    if (gone->drop_event)
        event_free(gone->drop_event);
    if (gone->probe_event)
        event_free(gone->probe_event);
    free(gone->user);
    free(gone->password);
    free(gone);
}
