/* redis_server.h - a redis-server of the test's own, on a unix socket in a directory of its own, and if asked for on a
 * port of loopback. Aborts the test on failure. */
#ifndef ROOST_TESTS_ROUTER_REDIS_SERVER_H
#define ROOST_TESTS_ROUTER_REDIS_SERVER_H
#include <stdbool.h>
#include <sys/types.h>

struct redisReply;

struct redis_server {
    char directory[64];
    char socket[96];
    const char *options[12];    /* more words for its command line, NULL-terminated; set before the start */
    unsigned port;              /* 0: none. Set before the start */
    const char *sentinel_rules; /* NULL: none; it is a sentinel with this configuration. Set before the start */
    pid_t pid;                  /* 0: not running */
};

bool redis_server_available(void);
int redis_skip(void); /* says why on stderr; what CTest takes for skipped */
/* Runs an array of tests that need a redis-server. */
#define redis_run(tests, setup, teardown)                                                                              \
    (redis_server_available() ? cmocka_run_group_tests(tests, setup, teardown) : redis_skip())
void redis_server_start(struct redis_server *server);  /* makes the directory the first time */
void redis_server_kill(struct redis_server *server);   /* SIGKILL */
void redis_server_freeze(struct redis_server *server); /* SIGSTOP, and waits until it has stopped */
void redis_server_thaw(struct redis_server *server);
void redis_server_destroy(struct redis_server *server); /* and its directory */
/* One command over a connection of its own. The text of the reply ("" for none), valid until the next call. */
const char *redis_server_ask(const struct redis_server *server, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
