/* redis_link.h - one asynchronous connection to Redis on a loop, with deadlines and a breaker. Redis holds hints: every
 * failure here is an answer (STATUS_...), never a wait.
 *
 * hiredis 0.14 has no command timeouts and resolves names synchronously, so: the address is numeric (or a unix socket
 * path), each command has its own deadline here, and a late reply is delivered as late to whoever still wants it.
 *
 * A deadline is Redis' time: it begins when the command is given to the kernel, at the end of the turn of the loop that
 * asked, and is judged only after everything that has arrived was read. So a process that stood still, or had a long
 * turn, does not take its own time for that of Redis.
 *
 * Breaker: REDIS_LINK_MISSES_MAX deadlines missed in a row, or a lost connection, open it: commands fail at once with
 * STATUS_CLOSED, nothing is sent, and a PING goes out every 250 ms on a new connection until one is answered. Commands
 * that were on their way before a miss was judged belong to that miss: in a row are 10 ms of silence with budgets of 2
 * ms, not five commands of one instant. A late reply does not count as an answer. At most REDIS_LINK_PENDING_MAX
 * commands wait for replies.
 *
 * What one reply may make us keep is bounded (redis_bound.h): a connection that sends more ends, and is built anew.
 *
 * Scripts are loaded before a connection counts as up, so that nobody's budget pays for it.
 *
 * With sentinels the address is what they say (redis_sentinel.h): asked when the link goes down, every second while it
 * is, and every 10 s while it is not. Then a connection counts only if ROLE says master, and a READONLY answer ends it.
 *
 * Owns its sentinel questions. Loop thread only. */
#ifndef ROOST_COMMON_REDIS_LINK_H
#define ROOST_COMMON_REDIS_LINK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

struct loop;
struct redisReply;
struct redis_link;

#define REDIS_LINK_MISSES_MAX   5
#define REDIS_LINK_PENDING_MAX  4096 /* some 200 bytes each here, and their replies */
#define REDIS_LINK_WATCHERS_MAX 4
#define REDIS_LINK_SCRIPTS_MAX  8    /* a router has 6 */
#define REDIS_ADDRESS_MAX       256  /* with its NUL */

typedef void redis_link_state_fn(void *user, bool up); /* down: status_detail() says why */

struct redis_link_config {
    const char *address;            /* "127.0.0.1:6379", "[::1]:6379" or "/path/to.sock"; copied; not looked at with
                                       sentinels */
    const char *const *sentinels;   /* their addresses; copied */
    unsigned sentinel_count;        /* 0: none */
    const char *sentinel_master;    /* the name that they know the master by; copied */
    const char *user, *password;    /* NULL or empty: none; copied; for Redis, not for the sentinels */
    uint32_t database;
    redis_link_state_fn *on_state;  /* the first watcher; NULL if not wanted */
    void *user_data;
};

struct redis_link_stats {           /* totals since create, but the last */
    uint64_t commands, timeouts;    /* sent; of these not answered in time */
    uint64_t refused;               /* not sent: the link was down, or too many were pending */
    uint64_t losses;                /* the link was up and went down */
    uint64_t masters;               /* addresses that sentinels gave, each that differed from the one before */
    unsigned pending;
};

/* st is STATUS_OK with a reply, STATUS_TIMEOUT (deadline passed; late == false), or STATUS_CLOSED (no connection, reply
 * NULL). After a STATUS_TIMEOUT the callback comes exactly once more with late == true: STATUS_OK or STATUS_IO when the
 * reply arrives after all, STATUS_CLOSED when it never will (so that user can be freed). It must not destroy the link.
 * An error reply from Redis (wrong type, OOM, READONLY, LOADING) is STATUS_IO with the reply. reply is borrowed. */
typedef void redis_link_reply_fn(void *user, enum status st, const struct redisReply *reply, bool late);

enum status redis_link_create(struct loop *loop, const struct redis_link_config *config, struct redis_link **out);
void redis_link_destroy(struct redis_link **link); /* pending callbacks get STATUS_CLOSED first; watchers are not told */
bool redis_link_up(const struct redis_link *link);
const char *redis_link_address(const struct redis_link *link); /* "": the sentinels have not said one yet */
void redis_link_stats(const struct redis_link *link, struct redis_link_stats *out);

/* fn(user) is told of each change from now on, in order of watching. STATUS_LIMIT: too many. */
enum status redis_link_watch(struct redis_link *link, redis_link_state_fn *fn, void *user);
/* From the next connection on text is loaded there (SCRIPT LOAD); *out names it. text is borrowed and outlives the link.
 * STATUS_LIMIT: too many. */
enum status redis_link_add_script(struct redis_link *link, const char *text, unsigned *out);
/* Its digest for EVALSHA, borrowed; "": not known yet, or Redis does not let us load it. */
const char *redis_link_script_digest(const struct redis_link *link, unsigned script);
/* Connects to another address; what is pending gets STATUS_CLOSED. The same address again: nothing happens. Not from a
 * callback of the link itself. */
enum status redis_link_set_address(struct redis_link *link, const char *address);
/* STATUS_INVALID with what is wrong with it; what names the setting. */
enum status redis_address_check(const char *what, const char *address);

/* Sends one command; fn is called exactly once, and once more after a STATUS_TIMEOUT (above). STATUS_CLOSED or
 * STATUS_LIMIT at once: fn is not called. fn NULL: fire and forget. */
enum status redis_link_command(struct redis_link *link, uint32_t deadline_ms, redis_link_reply_fn *fn, void *user,
                               unsigned argc, const char *const *argv, const size_t *argv_sizes);

#endif
