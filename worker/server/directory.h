/* directory.h - the worker's entry in Redis, where routers look for workers that are not in their configuration.
 * roost:workers is the set of names; roost:worker:NAME a hash {endpoint, incarnation, state} that lives DIRECTORY_TTL_MS and is
 * renewed every DIRECTORY_RENEW_MS. A hint: without Redis the worker serves those who know it. Borrows the link, which is destroyed
 * first, for it answers what is open. Loop thread only. */
#ifndef ROOST_WORKER_SERVER_DIRECTORY_H
#define ROOST_WORKER_SERVER_DIRECTORY_H
#include <stdint.h>
#include "common/status.h"

struct loop;
struct directory;
struct redis_link;

#define DIRECTORY_TTL_MS 3000u
#define DIRECTORY_RENEW_MS 1000u
#define DIRECTORY_DEADLINE_MS 500u     /* of one command */

struct directory_config {              /* strings are copied */
    struct loop *loop;                 /* ref */
    struct redis_link *link;           /* ref */
    const char *name, *endpoint;       /* of the control connection, as routers should use it */
    const uint8_t *incarnation;        /* 16 bytes */
};

enum status directory_create(const struct directory_config *config, struct directory **out);
void directory_destroy(struct directory **directory);      /* accepts NULL; the entry runs out by itself */
void directory_set_state(struct directory *directory, const char *state);   /* "ready", ...: a static string; written at once */
/* Removes the entry if it is still ours, then calls fn once: within DIRECTORY_DEADLINE_MS, or before this returns without Redis.
 * user is not NULL. */
void directory_leave(struct directory *directory, void (*fn)(void *user), void *user);

#endif
