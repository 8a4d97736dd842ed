/* placement.h - who owns a conversation: the interface to the store of placement records, and what its stores share.
 *
 * Records are hints: a wrong one costs a recompute, never a wrong answer. Every call answers through its callback
 * within its budget, never from inside the call:
 *
 *   claim    first writer wins: there is no record -> the proposal stands (ours); there is one -> the answer tells it.
 *            Renews the record's life. A record that breaks a rule counts as none.
 *   replace  compare-and-set on (owner, epoch): ours says whether desired stands; the answer tells what stands.
 *            A new owner raises the epoch, and has no tokens yet. The same owner (to note its cache id) keeps epoch,
 *            tokens and tier.
 *
 * Routers write owner, cache id and epoch. Tokens and tier are written by the owner alone, and it alone deletes a
 * record (worker/server/conversations.h); what a caller puts there is not looked at.
 *
 * Epochs grow: a new one is max(stored + 1, the store's clock in us, the epoch given). So the store's clock and the
 * epoch tell how old an ownership is. Loop thread only. */
#ifndef ROOST_ROUTER_PLACEMENT_H
#define ROOST_ROUTER_PLACEMENT_H
#include <stdbool.h>
#include <stdint.h>
#include "common/hash.h"
#include "common/redis_record.h"
#include "common/status.h"
#include "proto/wire.h"

struct loop;
struct redisReply;
struct redis_link;

#define PLACEMENT_TTL_S     REDIS_RECORD_TTL_S
#define PLACEMENT_EPOCH_MAX REDIS_RECORD_EPOCH_MAX
#define PLACEMENT_BUDGET_MS 2 /* what a request may lose to a slow Redis; it usually answers in a fraction of it */

struct placement_key {
    uint8_t id[16];
    char hex[HASH_HEX_SIZE(16)];
};

enum placement_tier { PLACEMENT_TIER_UNKNOWN, PLACEMENT_TIER_DEVICE, PLACEMENT_TIER_HOST };

struct placement_record {
    char owner[WIRE_NAME_MAX + 1]; /* worker name */
    bool has_cache;
    uint8_t cache_id[WIRE_ID_BYTES];
    uint64_t epoch;
    uint32_t tokens;          /* that the owner held at the end of its last turn; 0: it has not said */
    enum placement_tier tier; /* where it held them */
};

struct placement_answer {
    enum status st; /* OK; TIMEOUT: over budget; CLOSED, LIMIT or IO: the store does not serve */
    bool late;      /* after a STATUS_TIMEOUT: the answer after all, or STATUS_CLOSED when there will be none */
    bool ours;
    bool found; /* record is valid */
    struct placement_record record;
    uint64_t age_ms; /* with found: since the owner became it, on the store's clock; 0: just now, or in its future */
};

/* Called exactly once, and exactly once more (late) after a STATUS_TIMEOUT. */
typedef void placement_answer_fn(void *user, const struct placement_answer *answer);

struct placement; /* first member of each store: struct placement { ops } */

struct placement_ops {
    const char *name;
    /* Fail at once, without a callback: the store is known not to serve. The key and records are copied. */
    enum status (*claim)(struct placement *self, const struct placement_key *key,
                         const struct placement_record *proposal, uint32_t budget_ms, placement_answer_fn *fn,
                         void *user);
    enum status (*replace)(struct placement *self, const struct placement_key *key,
                           const struct placement_record *expected, const struct placement_record *desired,
                           uint32_t budget_ms, placement_answer_fn *fn, void *user);
    bool (*up)(const struct placement *self);
    void (*destroy)(struct placement *self); /* open callbacks get STATUS_CLOSED first */
};

struct placement {
    const struct placement_ops *ops;
};

/* Over a link, which is borrowed and outlives the store. Destroy the store only after the link: the link answers what
 * is open. */
enum status placement_redis_create(struct redis_link *link, struct placement **out);
/* What a script answered; st and late are the caller's. STATUS_CORRUPT: it is no such answer, and *out is untouched. A
 * pure function, for tests and fuzzing. */
enum status placement_redis_parse(const struct redisReply *reply, struct placement_answer *out);
/* In this process: for one router, and for tests. Keeps the entries_max most recent records. */
enum status placement_memory_create(struct loop *loop, uint32_t entries_max, struct placement **out);
void placement_destroy(struct placement **placement); /* accepts NULL */

/* Names in the store say nothing about tenants: a hash keyed with the digest of the salt. */
struct placement_salt {
    uint8_t digest[HASH_DIGEST_BYTES];
};
void placement_salt_make(const char *text, struct placement_salt *out);
void placement_key_make(const struct placement_salt *salt, struct wire_span tenant, struct wire_span conversation,
                        struct placement_key *out);

#endif
