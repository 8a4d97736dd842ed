/* redis_link.h - one asynchronous connection to Redis on a loop, with deadlines and a breaker. Redis holds hints: every failure here
 * is an answer (STATUS_...), never a wait.
 *
 * hiredis 0.14 has no command timeouts and resolves names synchronously, so: the address is numeric (or a unix socket path),
 * each command has its own deadline here, and a late reply is delivered as late to whoever still wants it.
 * Breaker: REDIS_LINK_MISSES_MAX deadlines missed in a row, or a lost connection, open it: commands fail at once with STATUS_CLOSED, nothing is
 * sent, and a PING goes out every 250 ms on a new connection until one is answered. At most REDIS_LINK_PENDING_MAX commands
 * wait for replies. Loop thread only. */
#ifndef ROOST_COMMON_REDIS_LINK_H
#define ROOST_COMMON_REDIS_LINK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

struct loop;
struct redisReply;
struct redis_link;

#define REDIS_LINK_MISSES_MAX 5
#define REDIS_LINK_PENDING_MAX 4096

struct redis_link_config {
    const char *address;            /* "127.0.0.1:6379", "[::1]:6379" or "/path/to.sock"; copied */
    const char *user, *password;    /* NULL or empty: none; copied */
    uint32_t database;
    void (*on_state)(void *user, bool up);   /* NULL if not wanted */
    void *user_data;
};

/* st is STATUS_OK with a reply, STATUS_TIMEOUT (deadline passed; late == false), or STATUS_CLOSED (no connection, reply NULL).
 * After a STATUS_TIMEOUT the callback comes exactly once more with late == true: STATUS_OK or STATUS_IO when the reply arrives
 * after all, STATUS_CLOSED when it never will (so that user can be freed). It must not destroy the link.
 * An error reply from Redis (wrong type, OOM, READONLY, LOADING) is STATUS_IO with the reply. reply is borrowed. */
typedef void redis_link_reply_fn(void *user, enum status st, const struct redisReply *reply, bool late);

enum status redis_link_create(struct loop *loop, const struct redis_link_config *config, struct redis_link **out);
void redis_link_destroy(struct redis_link **link);   /* pending callbacks get STATUS_CLOSED first */
bool redis_link_up(const struct redis_link *link);

/* Sends one command; fn is called exactly once, and once more after a STATUS_TIMEOUT (above). STATUS_CLOSED or STATUS_LIMIT at once: fn is not called. fn NULL: fire and forget. */
enum status redis_link_command(struct redis_link *link, uint32_t deadline_ms, redis_link_reply_fn *fn, void *user,
                               unsigned argc, const char *const *argv, const size_t *argv_sizes);

#endif
