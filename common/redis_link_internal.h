/* redis_link_internal.h - what redis_link.c and redis_handshake.c share; nobody else includes it. Loop thread only. */
#ifndef ROOST_COMMON_REDIS_LINK_INTERNAL_H
#define ROOST_COMMON_REDIS_LINK_INTERNAL_H
#include <hiredis/async.h>
#include <sys/queue.h>
#include "common/redis_bound.h"
#include "common/redis_link.h"

struct event;
struct redis_sentinel;

enum { REDIS_DIGEST_HEX = 40 };

struct command {
    TAILQ_ENTRY(command) by_deadline; /* on waiting while !answered */
    struct redis_link *link;          /* ref */
    redis_link_reply_fn *fn;
    void *user;
    uint64_t budget_us, begun_us, deadline_us;
    bool begun; /* given to the kernel, as far as it takes anything; until then the times count from the call */
    bool answered;
};
TAILQ_HEAD(command_list, command);

struct connection {
    struct redis_link *link; /* ref */
    redisAsyncContext *context;
    struct redis_bound bound; /* of its reader */
    struct event *read_event, *write_event;
    unsigned handshake_replies; /* still to come: AUTH, SELECT, PING, ROLE, SCRIPT LOAD */
    bool refused;               /* one of them was an error */
};

struct endpoint {
    char host[REDIS_ADDRESS_MAX];
    int port; /* 0: host is the path of a unix socket */
};

struct watcher {
    redis_link_state_fn *fn;
    void *user;
};

struct redis_link_script {
    const char *text; /* ref */
    char digest[REDIS_DIGEST_HEX + 1];
};

struct redis_link {
    struct loop *loop;               /* ref */
    char address[REDIS_ADDRESS_MAX]; /* "": not known yet */
    struct endpoint endpoint;        /* the same */
    struct redis_sentinel *sentinel; /* NULL: the address is fixed */
    char *user, *password;
    uint32_t database;
    struct watcher watchers[REDIS_LINK_WATCHERS_MAX];
    unsigned watcher_count;
    struct redis_link_stats stats;

    struct connection *connection; /* NULL: none */
    bool up, closing;
    bool moved; /* to another address: connect there as soon as the old connection is freed */
    unsigned misses, probes;
    uint64_t missed_us; /* the last one that counted was judged */
    unsigned unbegun;   /* of waiting */
    struct command_list waiting;
    struct redis_link_script scripts[REDIS_LINK_SCRIPTS_MAX];
    unsigned script_count;
    struct event *deadline_event; /* libevent's own timer: loop.h's count whole milliseconds */
    struct event *probe_event;
    struct event *drop_event; /* active: the connection is to be freed outside of hiredis' callbacks */
    uint64_t refusal_logged_us;
};

/* ---- redis_link.c ---- */

/* All that was to be asked is answered: commands may be sent. */
void redis_link_go_up(struct redis_link *link);

/* ---- redis_handshake.c ---- */

/* Asks on a new connection, which hiredis sends when it is there; redis_link_go_up when nothing was refused. */
void redis_handshake_start(struct connection *connection);
/* This connection will not come up: says so, once a minute. */
void redis_handshake_refuse(struct connection *connection, const char *words);

#endif
