/* conversations.h - the conversations that this worker holds, and what Redis is told about them.
 *
 * Routers write who owns a conversation; how many tokens the owner holds, where, and that it still does, is written by
 * the owner alone: `tokens`, `tier` and the life of `roost:{H}:place`. Each note is one script that looks at the owner
 * first. Notes are pipelined and nobody waits for them.
 *
 * What the cache has evicted is forgotten, and so is its record, if owner, epoch and cache id are still ours and no turn
 * of it runs here: the next turn is a new conversation to the policy. What went to the host tier, or came back, is written
 * down as that. Both go with the announcements, within their rate, and wait while the worker drains.
 *
 * They are also remembered, for the day on which Redis loses everything: who finds the key `roost:generation` missing
 * sets it to a random value, and a value that has changed means that Redis was wiped. Then each worker announces what
 * it holds, hottest first, CONVERSATIONS_ANNOUNCE_PER_SECOND. A free record is written; one of another owner with
 * fewer tokens is taken over; a tie stays with who is written. A note that Redis did not take is written again when
 * Redis is back, without taking anything over. The cache id is left to the routers, which learn it from the next ACK.
 *
 * Entries: 65,536 of 80 bytes and 131,072 buckets of 4: 5.8 MB. All of them are announced within 66 s. The least
 * recently noted one makes room: its record runs out by itself.
 *
 * main.c passes on what the server says of conversations (server_config.on_turn, on_fate).
 *
 * Always true: an entry is here as long as nobody else is known to be its owner. Borrows loop and link; the link is
 * destroyed first, for it answers what is open. Loop thread only. */
#ifndef ROOST_WORKER_SERVER_CONVERSATIONS_H
#define ROOST_WORKER_SERVER_CONVERSATIONS_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

struct conversations;
struct loop;
struct redisReply;
struct redis_link;

#define CONVERSATIONS_MAX                 65536u
#define CONVERSATIONS_ANNOUNCE_PER_SECOND 1000u
#define CONVERSATIONS_ANNOUNCE_OPEN_MAX   256u   /* unanswered announcements: a slow Redis is not flooded */
#define CONVERSATIONS_GENERATION_MS       1000u  /* how often the marker is read */
#define CONVERSATIONS_DEADLINE_MS         500u   /* of a command; it only feeds the breaker of the link */
#define CONVERSATIONS_KEY_BYTES           16

struct conversations_config {
    struct loop *loop;           /* ref */
    struct redis_link *link;     /* ref */
    const char *owner;           /* name of this worker; copied */
    const uint8_t *cache_id;     /* 16 bytes; copied */
    bool (*running)(void *user, const uint8_t *key);    /* a turn of it is queued or runs here. NULL: none ever does */
    void *user;
};

struct conversations_stats {     /* totals since start, but the two that say "now" */
    uint64_t notes;              /* conversations_note was called */
    uint64_t written;            /* notes and announcements that Redis took */
    uint64_t lost;               /* another worker owns it: forgotten here */
    uint64_t failed;             /* not taken: no connection, or refused by Redis */
    uint64_t wipes;              /* the marker changed */
    uint64_t announced;          /* written again after a wipe, a failure, or a move between the tiers */
    uint64_t evicted;            /* forgotten because their KV was evicted */
    uint32_t held;               /* now */
    uint32_t due;                /* now: to be announced */
};

enum status conversations_create(const struct conversations_config *config, struct conversations **out);
void conversations_destroy(struct conversations **conversations);    /* accepts NULL */

/* key: of the record, Head.placement, 16 bytes. The next three do nothing with conversations NULL (no Redis). */
/* A turn has ended here: this worker holds so many tokens of the conversation, on the device. epoch: Head.epoch. */
void conversations_note(struct conversations *conversations, const uint8_t *key, uint64_t epoch, uint32_t tokens);
/* What the last turn left in the cache is gone; or in the host tier, or no longer there. */
void conversations_evicted(struct conversations *conversations, const uint8_t *key);
void conversations_moved(struct conversations *conversations, const uint8_t *key, bool to_host);
/* Draining: records of ours are kept up to date, no others are written. */
void conversations_set_draining(struct conversations *conversations, bool draining);

uint32_t conversations_count(const struct conversations *conversations);    /* NULL: 0 */
void conversations_stats(const struct conversations *conversations, struct conversations_stats *out);

/* What a script of ours answered: whether we own the record, and its epoch. STATUS_CORRUPT: it is no such answer.
 * A pure function, for tests and fuzzing. */
enum status conversations_parse(const struct redisReply *reply, bool *ours, uint64_t *epoch);

#endif
