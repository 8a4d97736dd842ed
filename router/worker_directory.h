/* worker_directory.h - the workers that Redis knows: `roost:workers` is the set of their names, `roost:worker:NAME` a
 * hash {endpoint, incarnation, state} that the worker renews and that expires without it. Read once a second. A hint
 * like all of Redis: it adds workers and tells whose lease has expired; losing it removes nobody. Borrows the link,
 * which outlives it. Loop thread only. */
#ifndef ROOST_ROUTER_WORKER_DIRECTORY_H
#define ROOST_ROUTER_WORKER_DIRECTORY_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "proto/wire.h"

struct loop;
struct redisReply;
struct redis_link;
struct worker_directory;

#define WORKER_DIRECTORY_READ_MS     1000 /* 1 + 1,024 small commands a second at most, for each router */
#define WORKER_DIRECTORY_ENTRIES_MAX 1024 /* WORKER_POOL_MAX; 321 bytes each: 330 KB */
#define WORKER_ENDPOINT_MAX          256  /* with its NUL; longer ones are refused */

struct worker_directory_entry {
    char name[WIRE_NAME_MAX + 1];
    char endpoint[WORKER_ENDPOINT_MAX]; /* control */
};

/* A complete reading, begun at begun_ms on the loop's clock. Entries are borrowed for the call. */
typedef void worker_directory_fn(void *user, const struct worker_directory_entry *entries, unsigned count,
                                 uint64_t begun_ms);

enum status worker_directory_create(struct loop *loop, struct redis_link *link, worker_directory_fn *fn, void *user,
                                    struct worker_directory **out);
/* Now, unless a reading is under way: Redis has just come. */
void worker_directory_read(struct worker_directory *directory);
/* What Redis answers, checked: the name at i, an endpoint. False: it is none. Pure functions, for tests and fuzzing. */
bool worker_directory_parse_name(const struct redisReply *names, size_t i, char name[WIRE_NAME_MAX + 1]);
bool worker_directory_parse_endpoint(const struct redisReply *reply, char endpoint[WORKER_ENDPOINT_MAX]);
/* After the link: the link answers what is open. */
void worker_directory_destroy(struct worker_directory **directory);

#endif
