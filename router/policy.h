/* policy.h - which worker takes a request, and why. Pure: a function of a table, no clock, no state, no I/O, so that
 * another program can replay decisions with the same code.
 *
 * The order of a conversation is weighted rendezvous hashing (Thaler and Ravishankar 1998; the weights as in
 * Schindelhauer and Schomaker 2005): each worker scores -weight / ln(u), u a uniform hash of (conversation, worker
 * name), highest first. A worker that leaves moves only the conversations that had it first, and a worker is first for
 * a share of the conversations that equals its share of the weights.
 *
 *   no conversation                     the least loaded of all                                            load
 *   no record yet                       the least loaded of the first new_choices in its order             new
 *   the store does not answer           what we remember, else the first in its order                      redis-down
 *   the owner is lost, or drains        as new, and the record is replaced                                 owner-dead,
 * moved the owner may come back any moment  wait for POLICY_SUSPECT_WAIT_MS, then the next in order            (none),
 * spill the owner is down, or full          the next in order; the record stays                                spill
 *   the owner is in lasting overload    the cheapest elsewhere, once, or with its record for good          overload,
 * moved else                                home                                                               owner,
 * new
 *
 * Load is tokens queued and running per capacity, with this request's own, times the ramp of a worker that came up
 * late.
 *
 * Overload. Home costs the tokens queued there and those of this request that its cache lacks; elsewhere costs what is
 * queued there and the whole prompt; both in the measured time of a token there. Leaving home must be cheaper by
 * POLICY_GAIN times and by POLICY_GAIN_MS (an error of either estimate, or a lease of 200 ms that is out of date, is
 * less), the owner must have been in overload for POLICY_OVERLOAD_MS, the other must not be, and the caller must say
 * that there is budget left (5% of the requests: a fleet that is overloaded as a whole must not copy contexts around).
 * After POLICY_MOVE_MS of overload the conversation moves, unless its record is younger than POLICY_SETTLED_MS: so none
 * is moved by choice twice within that time. A spill copies a context and relieves the owner of one turn only, as it
 * has to catch up at the next; so spilling is for bursts, and moving for what lasts.
 *
 * A suspect owner. Its process lives in most cases, and its link is back after 50 ms, a handshake and a lease of 200
 * ms: 0.3 s. One that was killed is known to be gone within some 10 ms, because its address refuses. So waiting twice
 * 0.3 s costs a turn at most that, and only with an owner that is frozen or cut off; spilling at once would compute the
 * whole context of every turn of that moment elsewhere, whenever a link flaps.
 *
 * Always true: a worker that is not ready is never chosen; the same table and query give the same choice. */
#ifndef ROOST_ROUTER_POLICY_H
#define ROOST_ROUTER_POLICY_H
#include <stdbool.h>
#include <stdint.h>

#define POLICY_NO_WORKER       (-1)
#define POLICY_SUSPECT_WAIT_MS 600
#define POLICY_OVERLOAD_MS     1000  /* five leases */
#define POLICY_MOVE_MS         10000 /* a burst of turns that a spill or two get over is none */
#define POLICY_SETTLED_MS      60000
#define POLICY_GAIN            2
#define POLICY_GAIN_MS         500
#define POLICY_CHOICES_MAX     16 /* largest new_choices of the settings; a list on the stack, kept by insertion */

/* Why a worker was chosen. DONE tells the client, logs say it, and statistics count dispatches by it. */
enum policy_reason {
    POLICY_NONE,       /* nobody is ready, or the owner is waited for */
    POLICY_NEW,        /* a new conversation: least loaded of the first few in its order */
    POLICY_OWNER,      /* home */
    POLICY_SPILL,      /* the owner cannot take it now: next in order; the record stays */
    POLICY_OVERLOAD,   /* the owner could, much later: cheapest elsewhere; the record stays */
    POLICY_MOVED,      /* the owner drains, or is in overload for long: its record is replaced */
    POLICY_OWNER_DEAD, /* the owner is lost: taken over */
    POLICY_REDIS_DOWN, /* no record to be had: what we remember, else the order alone */
    POLICY_LOAD,       /* no conversation: least loaded of all */
    POLICY_ATTACHED,   /* the worker has this very request already, and said so; not chosen here */
    POLICY_REASON_COUNT
};
const char *policy_reason_name(enum policy_reason reason); /* "owner-dead"; never NULL */

struct policy_worker {
    uint64_t name_hash;     /* hash_fast of the name, seed 0 */
    uint64_t weight;        /* capacity, kv_tokens_max; 0 counts as 1 */
    uint64_t load_tokens;   /* queued and running, with what was sent there and not reported yet */
    uint64_t queued_tokens; /* to compute before what comes next; likewise */
    uint64_t overloaded_ms; /* for how long; 0: is not */
    uint64_t suspect_ms;    /* of one that is not ready: for how long it has been suspect */
    uint32_t token_ns;      /* of a computed prompt token; 0: not known, and then it is not compared */
    float ramp;             /* its load counts so many times; below 1 counts as 1 */
    bool ready;             /* may take this request */
    bool suspect;           /* up, but its link or its echoes are missing: it may be back any moment */
    bool draining;
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
    bool owner_lost;    /* its link is down and its lease is gone: it may be replaced */
    bool may_take_over; /* the record can be replaced now; else such a request spills */
    bool may_choose;    /* budget is left to leave an owner that could take it */
    uint64_t key;       /* of the conversation */
    enum policy_record record;
    int owner;              /* index in the table, or POLICY_NO_WORKER: not in the table */
    unsigned new_choices;   /* first few of the order that a new conversation may go to; 0 counts as 1 */
    uint64_t prompt_tokens; /* of this request, about */
    uint64_t cached_tokens; /* of these the owner has, as its record says */
    uint64_t record_age_ms; /* since its owner last changed */
};

struct policy_choice {
    int worker; /* index, or POLICY_NO_WORKER: wait */
    enum policy_reason reason;
    bool take_over; /* the record is to be replaced */
    bool by_choice; /* the owner could have taken it: costs budget */
};

/* The order of a conversation over the whole table, ready or not, into order[count]. */
void policy_order(const struct policy_table *table, uint64_t key, unsigned *order);

struct policy_choice policy_choose(const struct policy_table *table, const struct policy_query *query);

#endif
