/* kv_tree.h - the tree over tokens: a node is a block of 64 tokens behind those of its parents.
 *
 * A node with fewer tokens is *partial*: the end of a kept path; it has no children. Above each tree stands a root node without tokens,
 * named by 32 bytes. Nodes are numbers from 1 that keep their place; 0 is none.
 *
 * Three ways down from a node: its `recent` child (most next turns; only tokens are compared, and `ahead`, a node AHEAD blocks on, is
 * fetched meanwhile), the index over the chained hash, and the ordered tree of those children that can be resumed inside ("live": with
 * a local page; all, where there is no group 1), which finds the longest common beginning in O(log children).
 *
 * Knows nothing of arenas, sequences and claims, whose fields it only stores. Owns nodes and index. */
#ifndef ROOST_WORKER_ENGINE_KV_TREE_H
#define ROOST_WORKER_ENGINE_KV_TREE_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/backend/backend.h"

#define KV_NODE_BYTES 384u           /* 256 of them tokens */
#define KV_BLOCK BACKEND_PAGE_TOKENS
#define KV_TREE_AHEAD 8u

struct kv_node {
    uint32_t ids[KV_BLOCK];          /* of a root: its name */
    /* What a match reads: one line. */
    uint64_t hash;                   /* chained from the root */
    uint32_t parent;                 /* 0: a root, or free */
    uint32_t hash_next;              /* in its bucket; of a free node: the next free one */
    uint32_t recent, ahead;          /* hints, may be stale: believed only after comparing */
    uint32_t page[BACKEND_TIERS][BACKEND_GROUPS_MAX];   /* 0: not there */
    uint32_t live_children;          /* treap of children, by tokens */
    uint32_t live_left, live_right;  /* its own place among its siblings */
    uint32_t block;                  /* its tokens are at 64 * block on */
    uint8_t count;                   /* tokens; 0: a root, or free */
    bool live;
    uint8_t copy_in, copy_out;       /* a bit a group: a copy to the device, to the host is under way */
    /* The rest. */
    uint8_t leaving;                 /* a bit a group: when that copy lands, the device page goes (else the host page) */
    bool resident;                   /* on the device and meant to stay; so are its parents */
    bool candidate;                  /* in the list of nodes that may leave the device */
    uint32_t child_count;
    uint32_t partial_count;          /* of them partial */
    uint32_t resident_children;
    uint32_t records;                /* first record that ends in it */
    uint32_t uses;                   /* open sequences on the device through it */
    uint32_t pins;                   /* of them, those whose next token sees its local page */
    uint32_t claims;                 /* on its local page */
    uint32_t newer, older;           /* in the list of candidates */
} __attribute__((aligned(64)));

struct kv_tree {
    struct kv_node *nodes;           /* (capacity + 1) */
    uint32_t capacity, touched, free_list;
    uint32_t *buckets;
    uint64_t bucket_mask, hash_mask;
    bool local;                      /* there is a group 1 */
    uint64_t node_count, tombstones; /* roots are not counted */
    uint32_t root_count;
};

enum status kv_tree_create(struct kv_tree *tree, uint32_t capacity, uint64_t hash_mask, bool local);
void kv_tree_destroy(struct kv_tree *tree);

uint32_t kv_tree_root(const struct kv_tree *tree, const uint8_t *name);               /* 0: not there */
uint32_t kv_tree_find(const struct kv_tree *tree, uint32_t parent, const uint32_t *ids, uint32_t count);   /* exactly these; 0 */
/* 0: the tree is full. A node begins without pages, not live. */
uint32_t kv_tree_add_root(struct kv_tree *tree, const uint8_t *name);
uint32_t kv_tree_add(struct kv_tree *tree, uint32_t parent, const uint32_t *ids, uint32_t count);
void kv_tree_remove(struct kv_tree *tree, uint32_t node);                             /* without children */
void kv_tree_set_live(struct kv_tree *tree, uint32_t node, bool live);
/* The live child that begins with most of ids; *same says how many. 0: none begins so. */
uint32_t kv_tree_best(const struct kv_tree *tree, uint32_t parent, const uint32_t *ids, uint32_t count, uint32_t *same);
/* Follows whole blocks of ids from the root (0: none), at most count / 64; returns how many and names them in path. */
uint32_t kv_tree_walk(const struct kv_tree *tree, uint32_t root, const uint32_t *ids, uint32_t count, uint32_t *path);

uint64_t kv_tree_metadata_bytes(const struct kv_tree *tree);
enum status kv_tree_check(const struct kv_tree *tree);   /* index, children, order */

static inline struct kv_node *kv_tree_node(const struct kv_tree *tree, uint32_t node)
{
    return &tree->nodes[node];
}

static inline bool kv_node_has_local(const struct kv_node *node)
{
    return (node->page[BACKEND_TIER_DEVICE][1] | node->page[BACKEND_TIER_HOST][1]) != 0;
}

#endif
