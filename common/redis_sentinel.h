/* redis_sentinel.h - asks Redis Sentinels where the master is: `SENTINEL get-master-addr-by-name`, one after the other,
 * each on a connection of its own that lasts for the question. hiredis has nothing for it.
 *
 * Sentinels are hints too: what they say is checked (a numeric address and a port), and whoever uses it asks the server
 * itself for its role. Sentinels that need a password are not supported. Loop thread only. */
#ifndef ROOST_COMMON_REDIS_SENTINEL_H
#define ROOST_COMMON_REDIS_SENTINEL_H
#include <stdbool.h>
#include <stddef.h>
#include "common/status.h"

struct loop;
struct redisReply;
struct redis_sentinel;

#define REDIS_SENTINELS_MAX   16
#define REDIS_SENTINEL_ASK_MS 300 /* for one of them to connect and answer; 16 silent ones: 4.8 s */

struct redis_sentinel_config {
    const char *const *addresses; /* numeric, as of redis_link; copied */
    unsigned count;               /* 1 to REDIS_SENTINELS_MAX */
    const char *master;           /* copied */
    /* An answer: "IP:PORT". Called at most once for each redis_sentinel_ask. It must not destroy the sentinel. */
    void (*on_master)(void *user, const char *address);
    void *user;
};

enum status redis_sentinel_create(struct loop *loop, const struct redis_sentinel_config *config,
                                  struct redis_sentinel **out);
void redis_sentinel_destroy(struct redis_sentinel **sentinel); /* accepts NULL */
/* Asks each in turn until one answers, beginning with the next one after that which was asked last: one that tells old
 * news does not stand in the way. Nothing happens while a question is open. */
void redis_sentinel_ask(struct redis_sentinel *sentinel);

/* The address in an answer, as "IP:PORT" or "[IP]:PORT". STATUS_NOT_FOUND: it does not know the master. STATUS_INVALID:
 * no numeric address. STATUS_CORRUPT: no such answer. A pure function, for tests and fuzzing. */
enum status redis_sentinel_parse(const struct redisReply *reply, char *address, size_t size);
/* Is this an answer to ROLE, of a master? The same. */
bool redis_role_is_master(const struct redisReply *reply);

#endif
