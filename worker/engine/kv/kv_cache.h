/* kv_cache.h - the KV pages of one worker, the tree that finds them again, and the sequences that compute.
 *
 * A page holds BACKEND_PAGE_TOKENS positions of all producing layers of one group (backend.h): group 0 keeps every token, group 1
 * (local layers) has a window W. Pages of both sizes come from one arena a tier, cut into extents that are given to a size and
 * taken back, pages being moved together when one size needs room (so neither starves).
 *
 * A *sequence* is open while a request computes with it. Its pages become nodes of a *tree* over tokens, one node a block of 64
 * tokens, as soon as they are full; when it ends its last, partly filled block becomes a leaf. Nodes are found by the chained
 * hash of their tokens from the root on, and believed only after comparing the tokens. The root is salted with tenant and weights.
 *
 * What can be resumed. To go on at token p a sequence needs group 0's pages of [0, p) and group 1's pages of [p - W + 1, p) and
 * of the sinks. A node without its local page is a *tombstone*: tokens there match, but p cannot be a resume point if its window
 * has one. The match is the largest such p, at most prompt length - 1, and may end inside a block: its first p mod 64 tokens are then
 * copied into new pages, the rest zeroed. Local pages live while a *claim* names them; each kept path and each open sequence claims
 *   a. those of its last W + R tokens (R = rewind_tokens), and of the sinks;
 *   b. those of the last W tokens before each of its *points*: the end of the first message, the end of the prompt, and at most
 *      snapshots_max older message ends spaced geometrically: of each span of distances from its end, from R * 4^k up to but not
 *      including R * 4^(k+1) (R counted as 64 at least, k from 0 on), the furthest.
 * Points are chosen at open and again at keep, and only such whose local pages are all there or still to be computed. At open the path
 * counts as R longer than its prompt, so that a point whose window is computed now is still the choice of its span after the reply.
 *
 * Nodes that no kept path or open sequence passes are freed. Keeping a path that exists heals it: missing local pages of whole blocks
 * are attached, present ones are never duplicated. A kept path that is a beginning of one kept later is absorbed by it: its claims go.
 * (Unless it has a label, and the longer one another or none: they may go on apart. Or it ended inside a block of a third path: that
 * end stays until it is evicted, for finding it would mean a search among all siblings.) One that is kept after a longer one is a leaf
 * of its own in the middle of that path.
 *
 * Two tiers: device (pages that compute) and host. A node's page is on one of them, on both while it is copied. When the device is
 * full, pages not in use go to the host, least recently used first (copied beside the compute) and leave the device when the copy
 * has landed; kv_cache_poll begins with that when less than a sixteenth of the device is free. When the host is full too, or there is
 * none, kept paths are evicted, least recently used first (open and keep are uses). Taking from each path in turn all it can spare
 * would cost everybody their edits before one forgotten conversation went; taking whole paths first would waste on the oldest what nobody
 * will ask for. So the paths are halved by age: while more than half of all paths have their snapshots, the oldest of those loses them;
 * then, while more than half have R, the oldest of those loses it; then the oldest path that has neither goes whole. The newer half
 * keeps every point and R, at any pressure. Last, open sequences give up their R and points.
 *
 * Nothing here waits for a copy, except where room for open, reserve or resume is only to be had by one that is under way: then they wait
 * (copy_wait). STATUS_AGAIN means that open sequences need what is left, never that a copy takes its time.
 *
 * Owns arenas, pages, nodes, sequences. Borrows the backend, which outlives it. Called only by the engine thread.
 *
 * Always true (kv_cache_check verifies them):
 *   1. per tier: free + cached + in use + in copy == total, in bytes;
 *   2. a page has one owner: free list, one node, or one open sequence's unpublished tail; its claims are as many as claimants;
 *   3. a page that a node owns is never written again; a sequence writes only pages that it alone owns;
 *   4. all tokens of a node were compared before it was shared; a child's position follows its parent's; a root's tree is its own;
 *   5. local pages in the device tier for an open sequence: at most W + R + chunk, rounded up to pages, plus resume points and sinks;
 *   6. what open sequences need to compute (all of group 0, the window of group 1) is never evicted;
 *   7. a label is on one record, a record has one at most, and what was told last is HOST exactly if no page of its end is on the device;
 *   8. node memory: KV_NODE_BYTES a node (kv_tree.h); nodes are at most pages of group 0, both tiers (without a group 0: twice the pages
 *      of group 1 and the blocks of open sequences), and a root a tenant with nodes. */
#ifndef ROOST_WORKER_ENGINE_KV_CACHE_H
#define ROOST_WORKER_ENGINE_KV_CACHE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/backend/backend.h"

struct kv_cache;                     /* opaque */
struct kv_sequence;                  /* opaque; an open sequence */

#define KV_CACHE_ROOT_BYTES 32

/* What became of a kept path that has a label (kv_cache_keep). */
enum kv_fate {
    KV_FATE_HOST,                    /* its end left the device: the next turn waits for it to come back */
    KV_FATE_DEVICE,                  /* and is there again, or on its way */
    KV_FATE_GONE,                    /* evicted: what is left of it others keep. The label is forgotten */
};
#define KV_CACHE_LABEL_BYTES 16      /* random, or a hash */
#define KV_CACHE_LABELS_MAX  65536u  /* 48 bytes each and 8 of buckets: 3.7 MB; at most one a record. Over it the one kept longest ago is GONE */
typedef void kv_fate_fn(void *user, const uint8_t *label, enum kv_fate fate);   /* inside a call; must not call the cache */

struct kv_group_config {
    size_t page_bytes;               /* of backend_ops.page_bytes; 0: the group is absent. At least one group is there */
    uint32_t window;                 /* W; 0 for group 0 */
    uint32_t sinks;                  /* group 1: the first s positions stay */
};

struct kv_cache_config {
    const struct backend_ops *ops;   /* ref */
    struct backend *backend;         /* ref */
    struct kv_group_config groups[BACKEND_GROUPS_MAX];
    uint64_t device_bytes;           /* must hold one sequence of sequence_tokens_max (STATUS_LIMIT with the bytes wanted) */
    uint64_t host_bytes;             /* 0: no host tier */
    uint32_t sequence_tokens_max;    /* of one sequence */
    uint32_t open_max;               /* open sequences at a time */
    uint32_t chunk_tokens_max;       /* tokens reserved ahead of those counted, at most */
    uint32_t rewind_tokens;          /* R */
    uint32_t snapshots_max;          /* 0 .. 8 */
    uint32_t home;                   /* where its device memory is (backend_ops.arena_create_at); 0 for most backends */
    kv_fate_fn *on_fate;             /* NULL: nobody asks */
    void *fate_user;
    uint64_t hash_mask;              /* 0: the whole hash. Tests force collisions with a few bits */
};

struct kv_prompt {                   /* borrowed during the call */
    const uint8_t *root;             /* (KV_CACHE_ROOT_BYTES): digest of tenant and weights; nothing is shared between roots */
    const uint32_t *ids;
    uint32_t count;                  /* 1 .. sequence_tokens_max */
    const uint32_t *ends;            /* message ends, ascending positions in (0, count]; the first is the first message's. May be NULL */
    uint32_t end_count;
};

struct kv_tier_counts { uint64_t total, free, cached, in_use, in_copy; };   /* bytes; the four add up to total. Slack of an extent
                                                                               counts as free */
struct kv_cache_counts {
    struct kv_tier_counts tiers[BACKEND_TIERS];
    uint64_t pages[BACKEND_TIERS][BACKEND_GROUPS_MAX];   /* not free */
    uint64_t nodes, leaves, tombstones, snapshots;
    uint64_t sequence_open, sequence_suspended;
    uint64_t evicted_snapshots, evicted_rewinds, evicted_leaves, demoted, promoted, moved;   /* since start; leaves, and pages for the
                                                                                               last three */
    uint64_t metadata_bytes;         /* nodes, tables, hash index */
};

enum status kv_cache_create(const struct kv_cache_config *config, struct kv_cache **out);
void kv_cache_destroy(struct kv_cache **cache);      /* accepts NULL; open sequences die with it */

/* What open would find, without opening; changes nothing (no LRU either). */
uint32_t kv_cache_match(const struct kv_cache *cache, const struct kv_prompt *prompt);

/* The prompt will be computed and kept elsewhere: drops what is kept of it here, as keeping it here would have (a kept path that is a
 * beginning of it; what others share stays). */
void kv_cache_let_go(struct kv_cache *cache, const struct kv_prompt *prompt);

/* Opens a sequence for a prompt, sharing the longest match. Pages that are only on the host start to come back: the
 * sequence is ready when they have. STATUS_INVALID: count is 0 or over the limit, ends not ascending. STATUS_LIMIT: open_max.
 * STATUS_AGAIN: no room now for what is matched; other open sequences hold it. */
enum status kv_cache_open(struct kv_cache *cache, const struct kv_prompt *prompt, struct kv_sequence **out);

/* A second sequence with the same tokens, sharing every full page and copying the last (n > 1). Errors as open. */
enum status kv_cache_branch(struct kv_cache *cache, const struct kv_sequence *sequence, struct kv_sequence **out);

/* Lets finished copies take effect; to be called before each step. False when no copy is under way. */
bool kv_cache_poll(struct kv_cache *cache);
bool kv_sequence_ready(const struct kv_sequence *sequence);       /* all its pages are on the device, nothing is under way */
/* Whether what open and resume bring from the host from now on comes layer by layer, where the backend can do that, so that the sequence can
 * compute behind it (kv_sequence_after). That takes some of the device from others that compute. At first: no. */
void kv_cache_load_by_layers(struct kv_cache *cache, bool by_layers);
/* Of one that is not ready and comes layer by layer: it may be reserved for and computed with, if the run says so (backend_run.after); append
 * then waits for what is still under way, which is next to nothing. 0: it is ready, or has to wait. */
uint64_t kv_sequence_after(const struct kv_sequence *sequence);

/* Makes pages for the positions [tokens counted, tokens), at most chunk_tokens_max beyond the counted, demoting or evicting what is not
 * in use. STATUS_AGAIN: open sequences hold the rest; suspend or end one. The sequence must be ready, or compute behind its copies. */
enum status kv_cache_reserve(struct kv_cache *cache, struct kv_sequence *sequence, uint32_t tokens);

/* Says that the KV of these tokens, which follow the ones counted so far, is in the pages. They must be reserved. Full blocks become
 * nodes, local pages that no claim names any more are let go. */
void kv_cache_append(struct kv_cache *cache, struct kv_sequence *sequence, const uint32_t *ids, uint32_t count);

/* Preemption: takes a sequence's pages off the device. If the host space promised to it at open (or to be had now) holds them, they go there
 * and stay; else they are kept like a finished path's, and resume finds what is left of them. */
void kv_cache_suspend(struct kv_cache *cache, struct kv_sequence *sequence);
/* Brings it back; it is ready when its pages are there. kv_sequence_tokens may be less than before: the best resume point left, the caller
 * computes the rest again. STATUS_AGAIN: no room now, it stays suspended. */
enum status kv_cache_resume(struct kv_cache *cache, struct kv_sequence *sequence);

/* Ends a sequence: keeps what it counts as a leaf, or drops what nobody else has. prompt_tokens: where the prompt ended, a resume point
 * (0: none). *sequence becomes NULL. label (NULL: none; KV_CACHE_LABEL_BYTES) names the path from now on, and no other: its fate is told as
 * on_fate. */
void kv_cache_keep(struct kv_cache *cache, struct kv_sequence **sequence, uint32_t prompt_tokens, const uint8_t *label);
void kv_cache_unlabel(struct kv_cache *cache, const uint8_t *label);               /* untold; copes with one that no path has */
bool kv_cache_labelled(const struct kv_cache *cache, const uint8_t *label);        /* some path has it */
void kv_cache_drop(struct kv_cache *cache, struct kv_sequence **sequence);

void kv_cache_forget(struct kv_cache *cache);        /* drops everything that is not open */

uint32_t kv_sequence_tokens(const struct kv_sequence *sequence);           /* counted: matched and appended */
struct kv_cache *kv_sequence_cache(const struct kv_sequence *sequence);    /* the one it was opened in */
uint32_t kv_sequence_matched(const struct kv_sequence *sequence);          /* what open found */
/* As backend_run.pages[group]; valid until the next call that changes the cache. */
void *const *kv_sequence_pages(const struct kv_sequence *sequence, uint32_t group);

/* Admission. Device bytes that reserve could hand out now: free, or not in use; the slack of extents is taken off, so that demands that sum
 * to no more can all be met. */
uint64_t kv_cache_room(const struct kv_cache *cache);
/* Device bytes that a sequence still needs to grow to `tokens`; NULL, or one that is suspended: from nothing. */
uint64_t kv_cache_need(const struct kv_cache *cache, const struct kv_sequence *sequence, uint32_t tokens);

/* Device bytes of the pages of a path of `tokens` tokens, as far as its length says: all of group 0, W + R of group 1. */
uint64_t kv_cache_prompt_bytes(const struct kv_cache *cache, uint32_t tokens);

/* Device bytes that open sequences will still take to the ends of their prompts, suspended ones from nothing. */
uint64_t kv_cache_promised(const struct kv_cache *cache);

void kv_cache_counts(const struct kv_cache *cache, struct kv_cache_counts *out);
/* Bytes that one kept conversation of `tokens` tokens with these message ends takes, by the formula (claims a and b); page bytes by group. */
uint64_t kv_cache_formula(const struct kv_cache_config *config, uint32_t tokens, const uint32_t *ends, uint32_t end_count,
                          uint64_t bytes[BACKEND_GROUPS_MAX]);

/* Verifies the invariants, slowly. STATUS_INTERNAL with the broken one's number. For tests and debugging. */
enum status kv_cache_check(const struct kv_cache *cache);

#endif
