/* kv_arena.h - the memory of one tier, handed out as pages of at most two sizes.
 *
 * The memory is cut into *extents* of one size. An extent is free, or given to one group and cut into pages of it; it returns when its last
 * page does. An extent is one page of the larger group (or a few, where the smaller would leave more than a sixteenth unused), so little
 * is lost at the edges. When a group needs an extent and none is free, the pages of the other group's emptiest extent are moved into its
 * other extents (kv_arena_compact): so what is free can always be used by either group.
 *
 * A page is a number from 1; 0 is none. Each page has an owner, a number that means something to the caller; pages that are given back
 * later (because a copy is under way) stay owned. Owns the memory (through the backend) and the tables. */
#ifndef ROOST_WORKER_ENGINE_KV_ARENA_H
#define ROOST_WORKER_ENGINE_KV_ARENA_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/backend/backend.h"

struct kv_extent {
    uint32_t group;                  /* BACKEND_GROUPS_MAX: free */
    uint32_t used;                   /* pages */
    uint32_t free_slot;              /* first free slot + 1; 0: none. The others follow in owners */
    uint32_t previous, next;         /* extents + 1 in the list of free ones, or of those of the group with as many pages used */
};

struct kv_arena_layout {             /* how a pair of page sizes is cut */
    uint64_t extent_bytes;
    uint64_t filled_bytes;           /* what pages of either group take of an extent at least; the rest is slack */
    uint32_t slots[BACKEND_GROUPS_MAX];  /* pages of an extent; 0: absent */
    uint32_t slots_max;
};

struct kv_arena {
    const struct backend_ops *ops;   /* ref */
    struct backend *backend;         /* ref */
    enum backend_tier tier;
    uint32_t home;                   /* device tier: of backend_ops.arena_create_at */
    uint8_t *base;
    struct kv_arena_layout layout;
    uint64_t page_bytes[BACKEND_GROUPS_MAX];
    uint64_t bytes;                  /* of all extents */
    uint32_t extent_count, extent_free;
    struct kv_extent *extents;
    uint32_t free_list;              /* extent + 1 */
    uint32_t *partial[BACKEND_GROUPS_MAX];   /* (slots) lists of extents by pages used; those that are full are in none */
    uint32_t *owners;                /* (extent_count, slots_max) */
    uint32_t used[BACKEND_GROUPS_MAX];       /* pages not free */
};

struct kv_arena_layout kv_arena_layout(const uint64_t page_bytes[BACKEND_GROUPS_MAX]);
/* Extents that hold so many pages of each group, however they are spread at the time (after compaction). */
uint64_t kv_arena_extents(const struct kv_arena_layout *layout, const uint64_t pages[BACKEND_GROUPS_MAX]);
/* Bytes for pages of either group that may still be wanted, in any mix, beside the pages held: see kv_cache_room. */
uint64_t kv_arena_room(const struct kv_arena_layout *layout, uint64_t extent_count, const uint64_t held[BACKEND_GROUPS_MAX]);

/* arena->ops, backend, tier, home and page_bytes are set. bytes 0: an arena without pages. */
enum status kv_arena_create(struct kv_arena *arena, uint64_t bytes);
void kv_arena_destroy(struct kv_arena *arena);       /* copes with a zeroed one */

uint32_t kv_arena_take(struct kv_arena *arena, uint32_t group, uint32_t owner);   /* 0: compaction first, or there is no room */
void kv_arena_give(struct kv_arena *arena, uint32_t page);
void *kv_arena_address(const struct kv_arena *arena, uint32_t page);
uint32_t kv_arena_group(const struct kv_arena *arena, uint32_t page);
/* Whether so many more pages fit, if so many of those used are taken away first (NULL: none). */
bool kv_arena_fits(const struct kv_arena *arena, const uint32_t want[BACKEND_GROUPS_MAX], const uint32_t less[BACKEND_GROUPS_MAX]);

/* Frees an extent for `group` by moving pages of the other one; `move` copies a page's bytes and tells its owner. False: nothing can be
 * gained. No page may be under a copy. */
typedef void kv_arena_move_fn(void *user, uint32_t group, uint32_t from, uint32_t to, uint32_t owner);
bool kv_arena_compact(struct kv_arena *arena, uint32_t group, kv_arena_move_fn *move, void *user);

uint64_t kv_arena_metadata_bytes(const struct kv_arena *arena);
enum status kv_arena_check(const struct kv_arena *arena);    /* lists and counts agree with the owners */

#endif
