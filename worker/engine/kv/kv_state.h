/* kv_state.h - what the parts of the KV cache share; for worker/engine/kv_*.c only. Everybody else sees kv_cache.h.
 *
 *   kv_cache.c      create, counts, room and need, the formula
 *   kv_sequence.c   match, open, branch, reserve, append, suspend, resume, keep, drop
 *   kv_label.c      names of kept paths, and what is told of them
 *   kv_retention.c  claims on local pages, resume points, records (the kept ends of paths), the order of eviction
 *   kv_pages.c      pages of nodes: taken, attached, dropped, moved between the tiers; making room
 *   kv_tree.c, kv_arena.c   nodes and memory; know nothing of the others
 *   kv_check.c      the invariants
 *
 * Life of a page:
 *              reserve            append, keep                 make room, poll               landed
 *     free --------------> tail -------------> node (device) -----------------> leaving ---------------> node (host)
 *       ^                   |                    ^    |                            |  open: stays            |
 *       |      drop         |                    |    |     evict, drop, tombstone |                         |
 *       +-------------------+------- landed -----|----+----------------------------+-------------------------+
 *                                     \          +--------------- coming <------------- open, resume --------+
 *                                      orphan (its node went while a copy was under way)
 *
 * A page of a node is on one tier, on both only while it is copied. A node is *resident* if it is on the device to stay; the parents
 * of a resident node are resident. Resident nodes that no open sequence uses and that have no resident child are *candidates* to leave,
 * in the order in which they were last used; a parent that becomes one after its last child has left is the next to go. */
#ifndef ROOST_WORKER_ENGINE_KV_STATE_H
#define ROOST_WORKER_ENGINE_KV_STATE_H
#include <assert.h>
#include "common/recent.h"
#include "worker/engine/kv/kv_arena.h"
#include "worker/engine/kv/kv_cache.h"
#include "worker/engine/kv/kv_tree.h"

#define DEVICE BACKEND_TIER_DEVICE
#define HOST BACKEND_TIER_HOST
#define KV_SNAPSHOTS_MAX 8u
#define KV_OWNER_TAIL 0x80000000u       /* | slot of the sequence; other owners are nodes */
#define KV_OWNER_ORPHAN UINT32_MAX      /* given back when its copy has landed */
#define KV_CANDIDATES_AHEAD 64u         /* nodes that one poll sends to the host ahead of need, at most */

struct kv_label {                       /* in kv_cache.labels under its name */
    uint32_t record;                    /* 0: during a keep */
    bool host;                          /* told so */
};

struct kv_points {                      /* resume points of a path beside its end; positions, 0: none */
    uint32_t first, prompt;
    uint32_t snapshots[KV_SNAPSHOTS_MAX];   /* by distance from the end, nearest bucket first */
};

/* What a record may still lose; also the lists it is in. */
enum kv_record_state { KV_RECORD_WHOLE, KV_RECORD_NO_SNAPSHOTS, KV_RECORD_BARE, KV_RECORD_PINNED };
#define KV_RECORD_LISTS 3u              /* a pinned one (of a suspended sequence) is in none */

struct kv_record {                      /* a kept path: one leaf, or the end of a shorter path that was kept later */
    uint32_t node, tokens;              /* its end: the first tokens - 64 * block tokens of node; node 0: free */
    enum kv_record_state state;
    bool bare;                          /* without R */
    uint32_t newer, older;              /* of its list; free: older is the next free one */
    uint32_t next;                      /* of those that end in the same node */
    struct kv_label *label;             /* ref; NULL: none */
    struct kv_points points;
};

struct kv_record_list { uint32_t newest, oldest; uint64_t count; };

struct kv_transfer { uint64_t ticket; uint32_t from, to; uint8_t group; bool out; };   /* out: device to host */

struct kv_sequence {
    struct kv_cache *cache;
    uint32_t slot;
    bool suspended, trimmed;            /* trimmed: gave up R and its points under pressure */
    uint8_t root[KV_CACHE_ROOT_BYTES];
    uint32_t *ids;                      /* (sequence_tokens_max) */
    uint32_t *ends;                     /* (end_count) of the prompt */
    uint32_t end_count, prompt_tokens;
    uint32_t tokens, matched;
    uint32_t *nodes;                    /* (blocks_max) of its whole, published blocks */
    uint32_t node_count;
    uint32_t *tails[BACKEND_GROUPS_MAX];    /* (blocks_max) pages of blocks node_count .. block_count - 1 */
    uint32_t block_count;
    void **table[BACKEND_GROUPS_MAX];   /* (blocks_max) */
    uint32_t source;                    /* node whose first tokens % 64 tokens are still to be copied; used until then */
    uint64_t ticket;                    /* ready when this copy has landed */
    bool by_layers;                     /* that copy is a load; what else is missing was under way before it */
    bool prefixed;                      /* it copies the source's prefix, too, which is still to settle */
    uint32_t pin_from, claim_from;      /* blocks; its nodes from there on are pinned, claimed (beside sinks and points) */
    struct kv_points points;
    uint32_t host_pages[BACKEND_GROUPS_MAX];    /* reserved on the host, or pinned there while suspended */
    uint32_t record;                    /* suspended: its path */
};

struct kv_cache {
    struct kv_cache_config config;
    uint32_t blocks_max;                /* of a sequence */
    uint32_t sink_blocks;
    struct kv_arena arenas[BACKEND_TIERS];
    struct kv_tree tree;
    struct kv_sequence **sequences;     /* (open_max), NULL: free slot */
    uint32_t open_count, suspended_count;
    struct kv_record *records;          /* (record_capacity + 1) */
    uint32_t record_capacity, record_free, record_touched, record_count;
    struct kv_record_list lists[KV_RECORD_LISTS];
    struct recent *labels;              /* struct kv_label by name; the one kept longest ago makes room */
    uint32_t label_capacity;
    uint32_t candidate_newest, candidate_oldest;
    struct kv_transfer *transfers;      /* ring (transfer_capacity) */
    uint32_t transfer_capacity, transfer_first, transfer_count;
    uint64_t ticket_last, ticket_landed;
    struct backend_page_copy *load;     /* (load_capacity): of the sequence that is coming in, not started. NULL: the backend has no load_start */
    uint32_t load_capacity, load_count, load_transfers;  /* transfers: the last of the ring, ticket 0 until the load has started */
    bool by_layers;                     /* what open and resume bring goes into it */
    bool gathering;                     /* one of them is at it */
    uint32_t held[BACKEND_GROUPS_MAX];  /* device pages that open sequences need: of nodes used (0) or pinned (1), and tails */
    uint32_t soon[BACKEND_GROUPS_MAX];  /* device pages that are given back when their copy lands */
    uint32_t host_held[BACKEND_GROUPS_MAX];     /* sum of host_pages */
    uint32_t *path, *missing;           /* (blocks_max) scratch */
    uint64_t snapshots;
    uint64_t evicted_snapshots, evicted_rewinds, evicted_leaves, demoted, promoted, moved;
};

static inline struct kv_node *kv_node(const struct kv_cache *cache, uint32_t node)
{
    return kv_tree_node(&cache->tree, node);
}

static inline bool kv_has_group(const struct kv_cache *cache, uint32_t group)
{
    return cache->config.groups[group].page_bytes != 0;
}

static inline uint32_t kv_blocks(uint32_t tokens)
{
    return tokens / KV_BLOCK + (tokens % KV_BLOCK != 0);
}

/* First block of the local pages that going on at `tokens` needs, and `extra` tokens before it. */
static inline uint32_t kv_window_block(const struct kv_cache *cache, uint32_t tokens, uint32_t extra)
{
    const uint64_t reach = (uint64_t)cache->config.groups[1].window + extra;
    return (uint64_t)tokens + 1 > reach ? (uint32_t)((tokens + 1 - reach) / KV_BLOCK) : 0;
}

/* First block that a resume point at `tokens` claims: another prompt may end there, and its last token is computed again. */
static inline uint32_t kv_claim_block(const struct kv_cache *cache, uint32_t tokens, uint32_t extra)
{
    return kv_window_block(cache, tokens - 1, extra);
}

/* ---- kv_pages.c ---- */

/* Lets copies that have landed take effect; true if any did. */
bool kv_pages_land(struct kv_cache *cache);
void kv_pages_land_all(struct kv_cache *cache);     /* waits */
void kv_pages_land_until(struct kv_cache *cache, uint64_t ticket);      /* waits, as far as needed */

/* One load (backend_ops.load_start) of what is fetched between begin and end, if pages are to come by layers. any: something is in it that has not
 * started. prefix: the first tokens of a node's page, into another one, go with it. */
void kv_load_begin(struct kv_cache *cache);
bool kv_load_any(const struct kv_cache *cache);
void kv_load_prefix(struct kv_cache *cache, uint32_t node, uint32_t group, void *dst, uint32_t tokens);
void kv_load_end(struct kv_cache *cache);

/* uses, pins: of open sequences on the device; a page that was leaving stays. kv_node_release frees a node that nothing refers to. */
void kv_node_use(struct kv_cache *cache, uint32_t node, int change);
void kv_node_pin(struct kv_cache *cache, uint32_t node, int change);
void kv_node_release(struct kv_cache *cache, uint32_t node);        /* and its parents */
void kv_node_drop_page(struct kv_cache *cache, uint32_t node, uint32_t group);
/* Gives a tail page to a node that has none of this group on the device; a host page goes. */
void kv_node_attach(struct kv_cache *cache, uint32_t node, uint32_t group, uint32_t page);
void kv_node_stay(struct kv_cache *cache, uint32_t node);           /* makes it resident; its parent is */
/* Starts to bring a page to the device. There is room. */
void kv_node_fetch(struct kv_cache *cache, uint32_t node, uint32_t group);
bool kv_node_demote(struct kv_cache *cache, uint32_t node);         /* a candidate; false: the host has no room now */

uint32_t kv_page_tail(struct kv_cache *cache, struct kv_sequence *sequence, uint32_t group);   /* there is room */
void kv_page_tail_give(struct kv_cache *cache, uint32_t group, uint32_t page);
/* Makes room for so many pages on the device, waiting for copies if it must. STATUS_AGAIN, nothing changed: open sequences need the rest.
 * STATUS_INTERNAL: what is about to be brought from the host is itself in the way. */
enum status kv_pages_make_room(struct kv_cache *cache, const uint32_t want[BACKEND_GROUPS_MAX]);

/* ---- kv_retention.c ---- */

/* The claims of a path on the local page of one of its blocks. `from`: its last tokens begin there. */
uint32_t kv_claims_of(const struct kv_cache *cache, const struct kv_points *points, uint32_t from, uint32_t block);
void kv_node_claim(struct kv_cache *cache, uint32_t node, uint32_t more, uint32_t less);
/* Chooses the resume points of a path of `tokens` tokens; whole windows only: blocks before `known` are path's nodes and may lack
 * their local page, later ones have it. */
void kv_points_choose(struct kv_cache *cache, const uint32_t *path, uint32_t known, uint32_t tokens, const uint32_t *ends,
                      uint32_t end_count, uint32_t prompt, struct kv_points *out);
uint32_t kv_record_claim_from(const struct kv_cache *cache, const struct kv_record *record);
/* path: its nodes, the end included, which something else keeps until then. Absorbs the records that are beginnings of it. 0: there are
 * as many records as nodes, and none may go. */
uint32_t kv_record_add(struct kv_cache *cache, const uint32_t *path, uint32_t tokens, const struct kv_points *points, bool pinned,
                       bool bare);
void kv_record_drop(struct kv_cache *cache, uint32_t record);
void kv_record_evict(struct kv_cache *cache, uint32_t record);     /* drops it, and its label is gone */
void kv_record_unpin(struct kv_cache *cache, uint32_t record);
void kv_record_touch(struct kv_cache *cache, uint32_t record);
bool kv_evict_step(struct kv_cache *cache);         /* the next thing in the order; false: no record is left that may go */

/* ---- kv_label.c ---- */

struct kv_label *kv_label_take_off(struct kv_cache *cache, const uint8_t *name);    /* no record has it; NULL: none had */
void kv_label_put(struct kv_cache *cache, uint32_t record, const uint8_t *name);     /* after take_off */
void kv_label_lose(struct kv_cache *cache, struct kv_label *label);        /* GONE, forgotten. Accepts NULL */
void kv_label_settle(struct kv_cache *cache, const struct kv_node *node);  /* tells those that end there if the tier is another now */

/* ---- kv_sequence.c ---- */

bool kv_sequence_trim(struct kv_cache *cache);      /* lets go what open sequences hold beyond their need; false: nothing */
void kv_sequence_moved(struct kv_cache *cache, uint32_t group, uint32_t owner, uint32_t from, uint32_t to);

#endif
