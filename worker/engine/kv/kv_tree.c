/* kv_tree.c - nodes in one reserved array, a chained hash index beside it, and a treap (a search tree kept in balance by drawn
 * priorities: Seidel and Aragon, 1996) among the live children of each node. */
#include "worker/engine/kv/kv_tree.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>
#include "common/hash.h"

static_assert(sizeof(struct kv_node) == KV_NODE_BYTES, "the size of a node is part of the contract");
#define ROOT_IDS 8u /* the 32 bytes of a root's name */

/* ---- life ---- */

/* Zeroed, and costs memory only where it is touched. In huge pages where the system gives them: a match reads its nodes from all over the
 * tree, and would miss the address translation of each. */
static void *reserve(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

enum status kv_tree_create(struct kv_tree *tree, uint32_t capacity, uint64_t hash_mask, bool local)
{
    uint64_t buckets = 64;
    while (buckets < capacity)
        buckets *= 2;
    *tree = (struct kv_tree){.capacity = capacity, .bucket_mask = buckets - 1, .hash_mask = hash_mask, .local = local};
    tree->nodes = reserve(((uint64_t)capacity + 1) * sizeof *tree->nodes);
    tree->buckets = reserve(buckets * sizeof *tree->buckets);
    if (tree->nodes == NULL || tree->buckets == NULL) {
        kv_tree_destroy(tree);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u nodes of the KV cache", capacity);
    }
    return STATUS_OK;
}

void kv_tree_destroy(struct kv_tree *tree)
{
    if (tree->nodes != NULL)
        munmap(tree->nodes, ((uint64_t)tree->capacity + 1) * sizeof *tree->nodes);
    if (tree->buckets != NULL)
        munmap(tree->buckets, (tree->bucket_mask + 1) * sizeof *tree->buckets);
    *tree = (struct kv_tree){0};
}

uint64_t kv_tree_metadata_bytes(const struct kv_tree *tree)
{
    return (uint64_t)tree->touched * sizeof *tree->nodes + (tree->bucket_mask + 1) * sizeof *tree->buckets;
}

/* ---- the index ---- */

static uint64_t chain(const struct kv_tree *tree, uint64_t parent, const uint32_t *ids, uint32_t count)
{
    return hash_mix(parent, XXH3_64bits(ids, count * sizeof *ids)) & tree->hash_mask;
}

static uint32_t *bucket(const struct kv_tree *tree, uint64_t hash)
{
    return &tree->buckets[hash & tree->bucket_mask];
}

static uint32_t look_up(const struct kv_tree *tree, uint64_t hash, uint32_t parent, const uint32_t *ids, uint32_t id_count, uint32_t count)
{
    for (uint32_t at = *bucket(tree, hash); at != 0; at = tree->nodes[at].hash_next) {
        const struct kv_node *node = &tree->nodes[at];
        if (node->hash == hash && node->parent == parent && node->count == count &&
            memcmp(node->ids, ids, id_count * sizeof *ids) == 0)
            return at;
    }
    return 0;
}

uint32_t kv_tree_root(const struct kv_tree *tree, const uint8_t *name)
{
    uint32_t ids[ROOT_IDS];
    memcpy(ids, name, sizeof ids);
    return look_up(tree, chain(tree, 0, ids, ROOT_IDS), 0, ids, ROOT_IDS, 0);
}

uint32_t kv_tree_find(const struct kv_tree *tree, uint32_t parent, const uint32_t *ids, uint32_t count)
{
    return look_up(tree, chain(tree, tree->nodes[parent].hash, ids, count), parent, ids, count, count);
}

static uint32_t node_take(struct kv_tree *tree, const uint32_t *ids, uint32_t id_count, uint64_t hash)
{
    uint32_t at = tree->free_list;
    if (at != 0)
        tree->free_list = tree->nodes[at].hash_next;
    else if (tree->touched < tree->capacity)
        at = ++tree->touched;
    else
        return 0;
    struct kv_node *node = &tree->nodes[at];
    memset(node, 0, sizeof *node);
    memcpy(node->ids, ids, id_count * sizeof *ids);
    node->hash = hash;
    node->hash_next = *bucket(tree, hash);
    *bucket(tree, hash) = at;
    return at;
}

uint32_t kv_tree_add_root(struct kv_tree *tree, const uint8_t *name)
{
    uint32_t ids[ROOT_IDS];
    memcpy(ids, name, sizeof ids);
    const uint32_t at = node_take(tree, ids, ROOT_IDS, chain(tree, 0, ids, ROOT_IDS));
    tree->root_count += at != 0;
    return at;
}

uint32_t kv_tree_add(struct kv_tree *tree, uint32_t parent, const uint32_t *ids, uint32_t count)
{
    const uint32_t at = node_take(tree, ids, count, chain(tree, tree->nodes[parent].hash, ids, count));
    if (at == 0)
        return 0;
    struct kv_node *node = &tree->nodes[at], *above = &tree->nodes[parent];
    node->parent = parent;
    node->count = (uint8_t)count;
    node->block = above->count == 0 ? 0 : above->block + 1;
    above->child_count++;
    above->partial_count += count < KV_BLOCK;
    tree->node_count++;
    tree->tombstones += tree->local;
    if (!tree->local)
        kv_tree_set_live(tree, at, true);
    if (count == KV_BLOCK)
        above->recent = at;
    uint32_t ancestor = parent;
    for (uint32_t i = 1; i < KV_TREE_AHEAD && ancestor != 0; i++)
        ancestor = tree->nodes[ancestor].parent;
    if (ancestor != 0)
        tree->nodes[ancestor].ahead = at;
    return at;
}

void kv_tree_remove(struct kv_tree *tree, uint32_t at)
{
    struct kv_node *node = &tree->nodes[at];
    assert(node->child_count == 0);
    if (!tree->local)
        kv_tree_set_live(tree, at, false);
    assert(!node->live);
    uint32_t *link = bucket(tree, node->hash);
    while (*link != at)
        link = &tree->nodes[*link].hash_next;
    *link = node->hash_next;
    if (node->parent != 0) {
        struct kv_node *above = &tree->nodes[node->parent];
        above->child_count--;
        above->partial_count -= node->count < KV_BLOCK;
        tree->node_count--;
        tree->tombstones -= tree->local;
    } else {
        tree->root_count--;
    }
    node->parent = node->count = 0;
    node->hash_next = tree->free_list;
    tree->free_list = at;
}

/* ---- live children ---- */

static uint32_t common(const uint32_t *a, const uint32_t *b, uint32_t count)
{
    uint32_t i = 0;
    while (i < count && a[i] == b[i])
        i++;
    return i;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* By tokens, the shorter of two that begin alike first. */
static int compare(const uint32_t *a, uint32_t a_count, const uint32_t *b, uint32_t b_count, uint32_t *same)
{
    const uint32_t both = least(a_count, b_count);
    *same = common(a, b, both);
    if (*same < both)
        return a[*same] < b[*same] ? -1 : 1;
    return a_count < b_count ? -1 : a_count > b_count;
}

static int compare_nodes(const struct kv_tree *tree, uint32_t a, uint32_t b)
{
    uint32_t same;
    return compare(tree->nodes[a].ids, tree->nodes[a].count, tree->nodes[b].ids, tree->nodes[b].count, &same);
}

static uint32_t priority(uint32_t at)
{
    uint32_t x = at * 0x9E3779B1u; /* drawn once for each number */
    x ^= x >> 15;
    return x * 0x85EBCA77u;
}

static void split(struct kv_tree *tree, uint32_t at, uint32_t key, uint32_t *less, uint32_t *more)
{
    while (at != 0) {
        struct kv_node *node = &tree->nodes[at];
        if (compare_nodes(tree, at, key) < 0) {
            *less = at;
            less = &node->live_right;
            at = node->live_right;
        } else {
            *more = at;
            more = &node->live_left;
            at = node->live_left;
        }
    }
    *less = *more = 0;
}

static uint32_t *live_link(struct kv_tree *tree, uint32_t at)
{
    uint32_t *link = &tree->nodes[tree->nodes[at].parent].live_children;
    while (*link != at && *link != 0)
        link = compare_nodes(tree, at, *link) < 0 ? &tree->nodes[*link].live_left : &tree->nodes[*link].live_right;
    return link;
}

static void live_insert(struct kv_tree *tree, uint32_t at)
{
    struct kv_node *node = &tree->nodes[at];
    uint32_t *link = &tree->nodes[node->parent].live_children;
    while (*link != 0 && priority(*link) >= priority(at))
        link = compare_nodes(tree, at, *link) < 0 ? &tree->nodes[*link].live_left : &tree->nodes[*link].live_right;
    split(tree, *link, at, &node->live_left, &node->live_right);
    *link = at;
}

static void live_erase(struct kv_tree *tree, uint32_t at)
{
    uint32_t *link = live_link(tree, at);
    assert(*link == at);
    uint32_t left = tree->nodes[at].live_left, right = tree->nodes[at].live_right;
    while (left != 0 && right != 0) { /* merge */
        if (priority(left) >= priority(right)) {
            *link = left;
            link = &tree->nodes[left].live_right;
            left = *link;
        } else {
            *link = right;
            link = &tree->nodes[right].live_left;
            right = *link;
        }
    }
    *link = left | right;
    tree->nodes[at].live_left = tree->nodes[at].live_right = 0;
}

void kv_tree_set_live(struct kv_tree *tree, uint32_t at, bool live)
{
    struct kv_node *node = &tree->nodes[at];
    if (node->live == live)
        return;
    if (live)
        live_insert(tree, at);
    else
        live_erase(tree, at);
    node->live = live;
    if (tree->local)
        tree->tombstones += live ? (uint64_t)-1 : 1;
}

uint32_t kv_tree_best(const struct kv_tree *tree, uint32_t parent, const uint32_t *ids, uint32_t count, uint32_t *same)
{
    /* The neighbours of ids in the order share most with it, and a search passes both. */
    uint32_t best = 0;
    *same = 0;
    for (uint32_t at = tree->nodes[parent].live_children; at != 0 && *same < count;) {
        const struct kv_node *node = &tree->nodes[at];
        uint32_t here;
        const int order = compare(ids, count, node->ids, node->count, &here);
        if (here > *same) {
            *same = here;
            best = at;
        }
        at = order < 0 ? node->live_left : node->live_right;
    }
    return best;
}

/* ---- walking ---- */

static void fetch(const struct kv_node *node)
{
    for (uint32_t line = 0; line < 5; line++)
        __builtin_prefetch((const char *)node + 64 * line);
}

uint32_t kv_tree_walk(const struct kv_tree *tree, uint32_t root, const uint32_t *ids, uint32_t count, uint32_t *path)
{
    uint32_t at = root, blocks = 0;
    if (root == 0)
        return 0;
    for (; blocks < count / KV_BLOCK; blocks++, ids += KV_BLOCK) {
        const struct kv_node *node = &tree->nodes[at];
        fetch(&tree->nodes[node->ahead]);
        uint32_t next = node->recent;
        const struct kv_node *child = &tree->nodes[next];
        if (next == 0 || child->parent != at || child->count != KV_BLOCK || memcmp(child->ids, ids, sizeof child->ids) != 0) {
            next = kv_tree_find(tree, at, ids, KV_BLOCK);
            if (next == 0)
                break;
        }
        at = path[blocks] = next;
    }
    return blocks;
}

/* ---- checking ---- */

#define BROKEN(what) STATUS_FAIL(STATUS_INTERNAL, "KV cache invariant 4 is broken: %s", (what))

static enum status check_live(const struct kv_tree *tree, uint32_t parent, uint32_t *live)
{
    /* In order, without recursion deeper than the treap: by successor search from the smallest. */
    uint32_t stack[128], depth = 0, last = 0;
    uint32_t at = tree->nodes[parent].live_children;
    while (at != 0 || depth > 0) {
        while (at != 0) {
            if (depth == 128)
                return BROKEN("children are out of balance");
            stack[depth++] = at;
            at = tree->nodes[at].live_left;
        }
        at = stack[--depth];
        if (tree->nodes[at].parent != parent || !tree->nodes[at].live)
            return BROKEN("a strange node among the children");
        if (last != 0 && compare_nodes(tree, last, at) >= 0)
            return BROKEN("children are out of order");
        (*live)++;
        last = at;
        at = tree->nodes[at].live_right;
    }
    return STATUS_OK;
}

static enum status check_node(const struct kv_tree *tree, uint32_t at)
{
    const struct kv_node *node = &tree->nodes[at];
    if (node->parent == 0)
        return kv_tree_root(tree, (const uint8_t *)node->ids) == at ? STATUS_OK : BROKEN("a root is not found");
    const struct kv_node *parent = &tree->nodes[node->parent];
    if (parent->parent == 0 ? node->block != 0 : node->block != parent->block + 1)
        return BROKEN("a child does not follow its parent");
    if (parent->parent != 0 && parent->count != KV_BLOCK)
        return BROKEN("a child of a partial node");
    if (kv_tree_find(tree, node->parent, node->ids, node->count) != at)
        return BROKEN("a node is not found, or is there twice");
    return STATUS_OK;
}

enum status kv_tree_check(const struct kv_tree *tree)
{
    uint64_t children = 0, counted = 0, live = 0, listed_live = 0, tombstones = 0, nodes = 0, roots = 0, partials = 0, listed_partials = 0;
    for (uint64_t b = 0; b <= tree->bucket_mask; b++)
        for (uint32_t at = tree->buckets[b]; at != 0; at = tree->nodes[at].hash_next) {
            const struct kv_node *node = &tree->nodes[at];
            uint32_t here = 0;
            TRY(check_node(tree, at));
            TRY(check_live(tree, at, &here));
            nodes += node->parent != 0;
            roots += node->parent == 0;
            children += node->parent != 0;
            counted += node->child_count;
            partials += node->parent != 0 && node->count < KV_BLOCK;
            listed_partials += node->partial_count;
            live += node->live;
            listed_live += here;
            tombstones += tree->local && node->parent != 0 && !node->live;
            if (node->parent != 0 && node->live != (!tree->local || kv_node_has_local(node)))
                return BROKEN("a node is live without its local page, or not with it");
        }
    if (children != counted || partials != listed_partials || live != listed_live)
        return BROKEN("the numbers of children");
    if (nodes != tree->node_count || roots != tree->root_count || tombstones != tree->tombstones)
        return BROKEN("the numbers of nodes");
    return STATUS_OK;
}
