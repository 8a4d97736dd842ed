/* redis_link.c - owns at most one hiredis connection, the commands that wait on it and the breaker.
 *
 *   redis_link_command --> pending (hiredis' queue, in order of sending) --> reply --> fn
 *                      `-> waiting (by deadline) --deadline--> fn(TIMEOUT), stays pending as late
 *                            | on_writable: its bytes are given to the kernel, and its time begins
 *                            | on_deadline: what has arrived is read, then time is judged
 *
 *   DOWN --every 250 ms: new connection, AUTH, SELECT, PING, with sentinels ROLE, SCRIPT LOADs--> answered --> UP
 *   UP --connection lost, REDIS_LINK_MISSES_MAX deadlines missed in a row, or no master any more--> DOWN: all pending
 *        are answered
 *
 * Always true:
 *   1. each command with a callback gets exactly one first answer, and after a STATUS_TIMEOUT exactly one late one;
 *   2. waiting holds exactly the commands that have had no answer yet, earliest deadline first;
 *   3. a callback may call redis_link_command; it must not destroy the link;
 *   4. the link goes down inside hiredis' callbacks, but a connection is freed only from our own events. */
#include "common/redis_link.h"
#include <arpa/inet.h>
#include <event2/event.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/redis_link_internal.h"
#include "common/redis_sentinel.h"

enum {
    PROBE_MS = 250,
    PROBES_PER_QUESTION = 4, /* to the sentinels, while the link is down */
    PROBES_PER_CHECK = 40,   /* and while it is up: a master behind a partition may not know that it is none */
    READS_MAX = 64,          /* before deadlines are judged; hiredis reads 16 KB at a time: 1 MiB */
    ARGUMENTS_MAX = 64,
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
        link->unbegun -= !command->begun;
        command->answered = true;
    }
    redis_link_reply_fn *fn = command->fn;
    void *user = command->user;
    if (final) {
        link->stats.pending--;
        free(command);
    }
    if (fn)
        fn(user, st, reply, late);
}

/* ---- connection: writing and reading ---- */

/* What was asked in this turn of the loop is on its way, or the kernel takes no more: from now on it is Redis' time,
 * not that of a turn with much to do. */
static void begin_commands(struct redis_link *link)
{
    uint64_t now = clock_now_us();
    struct command *command = TAILQ_FIRST(&link->waiting), *next;
    for (; command && link->unbegun > 0; command = next) {
        next = TAILQ_NEXT(command, by_deadline);
        if (command->begun)
            continue;
        command->begun = true;
        link->unbegun--;
        command->begun_us = now;
        command->deadline_us = now + command->budget_us;
        TAILQ_REMOVE(&link->waiting, command, by_deadline);
        wait_insert(link, command);
    }
    arm_deadline(link);
}

static void write_out(struct connection *connection)
{
    struct redis_link *link = connection->link;
    redisAsyncHandleWrite(connection->context); /* may free both */
    if (link->connection == connection && link->unbegun > 0)
        begin_commands(link);
}

static const char too_large[] = "sent a reply of more elements or bytes than any that is asked for";

static void read_in(struct connection *connection)
{
    struct redis_link *link = connection->link;
    redisAsyncHandleRead(connection->context); /* may free both */
    if (link->connection == connection && connection->context->c.reader &&
        connection->context->c.reader->len > REDIS_REPLY_BYTES_MAX)
        go_down(link, too_large);
}

static void on_readable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    read_in(user);
}

static void on_writable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    write_out(user);
}

/* This process may have stood still, or been busy: answers that are here were in time. */
static void read_arrived(struct redis_link *link)
{
    struct connection *connection = link->connection;
    struct pollfd in = {.fd = connection->context->c.fd, .events = POLLIN};
    for (unsigned i = 0; i < READS_MAX && link->up && link->connection == connection && poll(&in, 1, 0) == 1; i++)
        read_in(connection);
}

/* ---- missed deadlines ---- */

/* Commands that were asked together miss together: that is one miss. */
static void count_miss(struct redis_link *link, const struct command *command, uint64_t now)
{
    link->stats.timeouts++;
    if (command->begun_us < link->missed_us)
        return;
    link->missed_us = now;
    link->misses++;
}

static void on_deadline(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct redis_link *link = user;
    if (link->up && link->connection && link->unbegun > 0)
        write_out(link->connection);
    if (link->up && link->connection)
        read_arrived(link);
    uint64_t now = clock_now_us();
    struct command *first;
    while ((first = TAILQ_FIRST(&link->waiting)) && first->deadline_us <= now) {
        count_miss(link, first, now);
        (void)STATUS_FAIL(STATUS_TIMEOUT, "redis did not answer in time");
        command_answer(first, STATUS_TIMEOUT, NULL, false);
    }
    if (link->up && link->misses >= REDIS_LINK_MISSES_MAX)
        go_down(link, "missed too many deadlines in a row");
    arm_deadline(link);
}

/* ---- connection: its life ---- */

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
    const redisAsyncContext *context = connection->context;
    bool broken = connection->bound.broken;
    redis_bound_remove(&connection->bound, context->c.reader);
    if (broken && !link->up)
        redis_handshake_refuse(connection, too_large);
    if (link->connection == connection) {
        link->connection = NULL;
        go_down(link, broken ? too_large : context->err && context->errstr ? context->errstr : "closed the connection");
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

static void connection_start(struct redis_link *link);

static void on_drop(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct redis_link *link = user;
    if (link->up)
        return;
    connection_free(link);
    if (link->moved)
        connection_start(link);
}

static void tell(struct redis_link *link, bool up)
{
    for (unsigned i = 0; i < link->watcher_count; i++)
        link->watchers[i].fn(link->watchers[i].user, up);
}

static void go_down(struct redis_link *link, const char *why)
{
    bool was_up = link->up;
    link->up = false;
    link->misses = 0;
    if (link->connection)
        event_active(link->drop_event, EV_TIMEOUT, 0);
    if (!was_up || link->closing)
        return;
    link->stats.losses++;
    if (link->sentinel)
        redis_sentinel_ask(link->sentinel);
    (void)STATUS_FAIL(STATUS_CLOSED, "redis %s", why);
    tell(link, false);
}

void redis_link_go_up(struct redis_link *link)
{
    link->up = true;
    link->misses = 0;
    link->refusal_logged_us = 0;
    tell(link, true);
}

static void connection_start(struct redis_link *link)
{
    const struct endpoint *endpoint = &link->endpoint;
    link->moved = false;
    if (!link->address[0])
        return;
    redisAsyncContext *context =
        endpoint->port ? redisAsyncConnect(endpoint->host, endpoint->port) : redisAsyncConnectUnix(endpoint->host);
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
    redis_bound_set(&connection->bound, context->c.reader);
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
    redis_handshake_start(connection);
}

static void on_probe(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct redis_link *link = user;
    link->probes++;
    if (link->sentinel && link->probes % (link->up ? PROBES_PER_CHECK : PROBES_PER_QUESTION) == 0)
        redis_sentinel_ask(link->sentinel);
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
    bool demoted = false;
    if (!reply) {
        st = STATUS_FAIL(STATUS_CLOSED, "the connection to redis is lost");
    } else {
        if (!command->answered)
            link->misses = 0;
        if (reply->type == REDIS_REPLY_ERROR) {
            st = STATUS_FAIL(STATUS_IO, "redis: %.200s", reply->str);
            demoted = link->sentinel && strstr(reply->str, "READONLY");
        }
    }
    command_answer(command, st, reply, true);
    if (demoted && link->up)
        go_down(link, "is no master any more");
    if (!TAILQ_FIRST(&link->waiting))
        event_del(link->deadline_event);
}

bool redis_link_up(const struct redis_link *link)
{
    return link->up;
}

const char *redis_link_address(const struct redis_link *link)
{
    return link->address;
}

void redis_link_stats(const struct redis_link *link, struct redis_link_stats *out)
{
    *out = link->stats;
}

enum status redis_link_command(struct redis_link *link, uint32_t deadline_ms, redis_link_reply_fn *fn, void *user,
                               unsigned argc, const char *const *argv, const size_t *argv_sizes)
{
    if (!link->up || !link->connection || link->closing) {
        link->stats.refused++;
        return STATUS_FAIL(STATUS_CLOSED, "redis is not reachable");
    }
    if (link->stats.pending >= REDIS_LINK_PENDING_MAX) {
        link->stats.refused++;
        return STATUS_FAIL(STATUS_LIMIT, "%u commands wait for redis already", link->stats.pending);
    }
    if (argc == 0 || argc > ARGUMENTS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "a command of %u words", argc);
    struct command *command = calloc(1, sizeof *command);
    if (!command)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a redis command");
    command->link = link;
    command->fn = fn;
    command->user = user;
    command->budget_us = (uint64_t)deadline_ms * 1000;
    command->begun_us = clock_now_us();
    command->deadline_us = command->begun_us + command->budget_us;
    const char *words[ARGUMENTS_MAX];
    memcpy(words, argv, argc * sizeof *argv);
    if (redisAsyncCommandArgv(link->connection->context, on_reply, command, (int)argc, words, argv_sizes) != REDIS_OK) {
        free(command);
        return STATUS_FAIL(STATUS_CLOSED, "redis is being disconnected");
    }
    link->stats.commands++;
    link->stats.pending++;
    link->unbegun++;
    wait_insert(link, command);
    if (TAILQ_FIRST(&link->waiting) == command)
        arm_deadline(link);
    return STATUS_OK;
}

/* ---- life ---- */

static enum status parse_address(const char *what, const char *address, struct endpoint *out)
{
    struct endpoint endpoint = {.port = 0};
    size_t size = strlen(address);
    if (size == 0 || size >= sizeof endpoint.host)
        return STATUS_FAIL(STATUS_INVALID, "%s: 1 to %zu characters", what, sizeof endpoint.host - 1);
    memcpy(endpoint.host, address, size + 1);
    if (address[0] == '/') {
        *out = endpoint;
        return STATUS_OK;
    }
    char *colon = strrchr(endpoint.host, ':');
    char *end = NULL;
    long port = colon ? strtol(colon + 1, &end, 10) : 0;
    if (port < 1 || port > 65535 || *end)
        return STATUS_FAIL(STATUS_INVALID, "%s: %s: use IP:PORT, [IP]:PORT or /path/to.sock", what, address);
    *colon = 0;
    struct in6_addr binary;
    if (endpoint.host[0] == '[' && colon[-1] == ']') {
        colon[-1] = 0;
        memmove(endpoint.host, endpoint.host + 1, strlen(endpoint.host));
        if (inet_pton(AF_INET6, endpoint.host, &binary) != 1)
            return STATUS_FAIL(STATUS_INVALID, "%s: %s: the part in brackets must be an IPv6 address", what, address);
    } else if (inet_pton(AF_INET, endpoint.host, &binary) != 1) {
        return STATUS_FAIL(STATUS_INVALID,
                           "%s: %s: must be numeric, names would be looked up with the loop standing still", what,
                           address);
    }
    endpoint.port = (int)port;
    *out = endpoint;
    return STATUS_OK;
}

enum status redis_address_check(const char *what, const char *address)
{
    struct endpoint endpoint;
    return parse_address(what, address, &endpoint);
}

static enum status take_address(struct redis_link *link, const char *address)
{
    TRY(parse_address("redis_address", address, &link->endpoint));
    snprintf(link->address, sizeof link->address, "%s", address);
    return STATUS_OK;
}

enum status redis_link_set_address(struct redis_link *link, const char *address)
{
    if (strcmp(link->address, address) == 0)
        return STATUS_OK;
    TRY(take_address(link, address));
    link->moved = true;
    if (link->up)
        go_down(link, "is to be used at another address");
    event_active(link->drop_event, EV_TIMEOUT, 0);
    return STATUS_OK;
}

static void on_master(void *user, const char *address)
{
    struct redis_link *link = user;
    if (strcmp(link->address, address) == 0)
        return;
    LOG_INFO("redis: the sentinels say that the master is %s", address);
    link->stats.masters++;
    (void)redis_link_set_address(link, address);
}

enum status redis_link_watch(struct redis_link *link, redis_link_state_fn *fn, void *user)
{
    if (link->watcher_count == REDIS_LINK_WATCHERS_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%d watch this redis link already", REDIS_LINK_WATCHERS_MAX);
    link->watchers[link->watcher_count++] = (struct watcher){.fn = fn, .user = user};
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
    if (config->on_state)
        link->watchers[link->watcher_count++] = (struct watcher){.fn = config->on_state, .user = config->user_data};
    TAILQ_INIT(&link->waiting);
    /* hiredis writes without MSG_NOSIGNAL: a server that has gone must be an error, not our end. */
    struct sigaction old;
    if (sigaction(SIGPIPE, NULL, &old) == 0 && old.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);

    enum status st;
    if (config->sentinel_count == 0)
        TRY_GOTO(take_address(link, config->address ? config->address : ""), st, fail);
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
    if (config->sentinel_count > 0) {
        struct redis_sentinel_config sentinel = {.addresses = config->sentinels,
                                                 .count = config->sentinel_count,
                                                 .master = config->sentinel_master,
                                                 .on_master = on_master,
                                                 .user = link};
        TRY_GOTO(redis_sentinel_create(loop, &sentinel, &link->sentinel), st, fail);
        redis_sentinel_ask(link->sentinel);
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
    redis_sentinel_destroy(&gone->sentinel);
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
