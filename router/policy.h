/* policy.h - which worker takes a request, and why. Pure: a function of a table, no clock, no state, no I/O, so that
 * another program can replay decisions with the same code.
 *
 * The order of a conversation is weighted rendezvous hashing (Thaler and Ravishankar 1998; the weights as in
 * Schindelhauer and Schomaker 2005): each worker scores -weight / ln(u), u a uniform hash of (conversation, worker
 * name), highest first. A worker that leaves moves only the conversations that had it first, and a worker is first for
 * a share of the conversations that equals its share of the weights.
 *
 * Always true: a worker that is not ready is never chosen; the same table and query give the same choice. */
#ifndef ROOST_ROUTER_POLICY_H
#define ROOST_ROUTER_POLICY_H
#include <stdbool.h>
#include <stdint.h>

#define POLICY_NO_WORKER (-1)

/* Why a worker was chosen. DONE tells the client, logs say it, and statistics count dispatches by it. */
enum policy_reason {
    POLICY_NONE,       /* nobody is ready */
    POLICY_NEW,        /* a new conversation: least loaded of the first few in its order */
    POLICY_OWNER,      /* home */
    POLICY_SPILL,      /* the owner cannot take it now: next in order; the record stays */
    POLICY_OWNER_DEAD, /* the owner is lost: taken over */
    POLICY_REDIS_DOWN, /* no record to be had: what we remember, else the order alone */
    POLICY_LOAD,       /* no conversation: least loaded of all */
    POLICY_REASON_COUNT
};
const char *policy_reason_name(enum policy_reason reason); /* "owner-dead"; never NULL */

struct policy_worker {
    uint64_t name_hash;   /* hash_fast of the name, seed 0 */
    uint64_t weight;      /* capacity, kv_tokens_max; 0 counts as 1 */
    uint64_t load_tokens; /* queued and running, with what was sent there and not reported yet */
    bool ready;           /* may take this request */
};

struct policy_table {
    const struct policy_worker *workers; /* borrowed */
    unsigned count;
};

enum policy_record {
    POLICY_RECORD_UNKNOWN, /* not asked yet: what would we propose? */
    POLICY_RECORD_OURS,    /* our proposal stands: owner is the proposed worker */
    POLICY_RECORD_OTHER,   /* the record names an owner */
    POLICY_RECORD_DOWN,    /* the store does not answer; owner is what we remember or POLICY_NO_WORKER */
};

struct policy_query {
    bool conversation;
    uint64_t key; /* of the conversation */
    enum policy_record record;
    int owner;            /* index in the table, or POLICY_NO_WORKER: not in the table */
    bool owner_lost;      /* the owner may be replaced (its link is down and its lease is gone, or it drains) */
    unsigned new_choices; /* first few of the order that a new conversation may go to; 0 counts as 1 */
};

struct policy_choice {
    int worker; /* index, or POLICY_NO_WORKER */
    enum policy_reason reason;
    bool take_over; /* the record is to be replaced */
};

/* The order of a conversation over the whole table, ready or not, into order[count]. */
void policy_order(const struct policy_table *table, uint64_t key, unsigned *order);

struct policy_choice policy_choose(const struct policy_table *table, const struct policy_query *query);

#endif
