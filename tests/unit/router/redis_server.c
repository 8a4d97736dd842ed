#include "redis_server.h"
#include <fcntl.h>
#include <ftw.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static void fail(const char *what)
{
    perror(what);
    abort();
}

bool redis_server_available(void)
{
    return system("command -v redis-server >/dev/null 2>&1") == 0;
}

int redis_skip(void)
{
    fprintf(stderr, "redis-server is not installed: the tests with it are skipped\n");
    return 77;
}

static const char *write_rules(const struct redis_server *server)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/sentinel.conf", server->directory);
    FILE *file = fopen(path, "we");
    if (!file || fputs(server->sentinel_rules, file) < 0 || fclose(file) != 0)
        fail("sentinel.conf");
    return path;
}

static void run(const struct redis_server *server)
{
    char port[12];
    snprintf(port, sizeof port, "%u", server->port);
    const char *words[40] = {"redis-server"};
    unsigned count = 1;
    if (server->sentinel_rules)
        words[count++] = write_rules(server);
    const char *const more[] = {"--port",       port,    "--bind",          "127.0.0.1",  "--unixsocket",
                                server->socket, "--dir", server->directory, "--loglevel", "warning"};
    for (unsigned i = 0; i < sizeof more / sizeof *more; i++)
        words[count++] = more[i];
    if (server->sentinel_rules) {
        words[count++] = "--sentinel";
    } else {
        const char *const alone[] = {"--save", "", "--appendonly", "no"};
        for (unsigned i = 0; i < sizeof alone / sizeof *alone; i++)
            words[count++] = alone[i];
    }
    for (unsigned i = 0; i < 12 && server->options[i]; i++)
        words[count++] = server->options[i];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int nowhere = open("/dev/null", O_RDWR);
    dup2(nowhere, 0);
    dup2(nowhere, 1);
    execvp(words[0], (char *const *)words);
    _exit(127);
}

void redis_server_start(struct redis_server *server)
{
    if (!server->directory[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(server->directory, sizeof server->directory, "%s/roost-redis-XXXXXX",
                 base && strlen(base) < sizeof server->directory - 24 ? base : P_tmpdir);
        if (!mkdtemp(server->directory))
            fail("mkdtemp");
        snprintf(server->socket, sizeof server->socket, "%s/redis.sock", server->directory);
    }
    unlink(server->socket);
    server->pid = fork();
    if (server->pid < 0)
        fail("fork");
    if (server->pid == 0)
        run(server);
    for (unsigned i = 0; i < 500; i++) {
        redisContext *context = redisConnectUnix(server->socket);
        bool up = context && !context->err;
        if (context)
            redisFree(context);
        if (up)
            return;
        pause_ms(10);
    }
    fail("redis-server does not start");
}

void redis_server_kill(struct redis_server *server)
{
    if (!server->pid)
        return;
    kill(server->pid, SIGKILL);
    waitpid(server->pid, NULL, 0);
    server->pid = 0;
}

void redis_server_freeze(struct redis_server *server)
{
    int st;
    kill(server->pid, SIGSTOP);
    waitpid(server->pid, &st, WUNTRACED);
}

void redis_server_thaw(struct redis_server *server)
{
    kill(server->pid, SIGCONT);
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info, (void)kind, (void)at;
    return remove(path);
}

void redis_server_destroy(struct redis_server *server)
{
    redis_server_kill(server);
    if (server->directory[0])
        nftw(server->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    memset(server, 0, sizeof *server);
}

const char *redis_server_ask(const struct redis_server *server, const char *format, ...)
{
    static char text[256];
    redisContext *context = redisConnectUnix(server->socket);
    if (!context || context->err)
        fail("connect to redis");
    va_list arguments;
    va_start(arguments, format);
    redisReply *reply = redisvCommand(context, format, arguments);
    va_end(arguments);
    text[0] = 0;
    if (reply && reply->type == REDIS_REPLY_INTEGER)
        snprintf(text, sizeof text, "%lld", reply->integer);
    else if (reply && reply->str)
        snprintf(text, sizeof text, "%s", reply->str);
    if (reply)
        freeReplyObject(reply);
    redisFree(context);
    return text;
}
