/* kv_arena.c - extents in lists by how many of their pages are used: taking prefers the fullest, compaction the emptiest. */
#include "worker/engine/kv/kv_arena.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define EXTENT_PAGES_MAX 16u   /* of the larger group in an extent */
#define SLACK_SHARE      16u   /* an extent may leave one part in this many unused */
#define FREE             BACKEND_GROUPS_MAX

static uint64_t divide_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

struct kv_arena_layout kv_arena_layout(const uint64_t page_bytes[BACKEND_GROUPS_MAX])
{
    const uint64_t large = page_bytes[0] > page_bytes[1] ? page_bytes[0] : page_bytes[1];
    const uint64_t small = page_bytes[0] + page_bytes[1] - large;
    uint64_t best = large;
    if (small > 0)
        for (uint64_t k = 1; k <= EXTENT_PAGES_MAX; k++) {
            const uint64_t extent = k * large;
            if (extent % small * best < best % small * extent)   /* a smaller share of it is lost */
                best = extent;
            if (best % small * SLACK_SHARE <= best)
                break;
        }
    struct kv_arena_layout layout = {.extent_bytes = best, .filled_bytes = best};
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        if (page_bytes[g] == 0)
            continue;
        layout.slots[g] = (uint32_t)(best / page_bytes[g]);
        if (layout.slots[g] > layout.slots_max)
            layout.slots_max = layout.slots[g];
        if (layout.slots[g] * page_bytes[g] < layout.filled_bytes)
            layout.filled_bytes = layout.slots[g] * page_bytes[g];
    }
    return layout;
}

uint64_t kv_arena_extents(const struct kv_arena_layout *layout, const uint64_t pages[BACKEND_GROUPS_MAX])
{
    uint64_t extents = 0;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        if (layout->slots[g] > 0)
            extents += divide_up(pages[g], layout->slots[g]);
    return extents;
}

/* n pages of a group need at most (n + slots - 1) / slots extents, and b bytes of pages make b / filled_bytes such quotients at most. So
 * demands of b bytes in any mix fit into E extents if b / filled_bytes <= E - sum over groups of (held + slots - 1) / slots. */
uint64_t kv_arena_room(const struct kv_arena_layout *layout, uint64_t extent_count, const uint64_t held[BACKEND_GROUPS_MAX])
{
    const uint64_t a = layout->slots[0] > 0 ? layout->slots[0] : 1, b = layout->slots[1] > 0 ? layout->slots[1] : 1;
    const uint64_t taken = (held[0] + a - 1) * b + (held[1] + b - 1) * a; /* extents, times a * b */
    if (taken >= extent_count * a * b)
        return 0;
    return (uint64_t)((unsigned __int128)(extent_count * a * b - taken) * layout->filled_bytes / (a * b));
}

/* ---- lists of extents ---- */

static uint32_t *list_of(struct kv_arena *arena, const struct kv_extent *extent)
{
    if (extent->group == FREE)
        return &arena->free_list;
    return extent->used < arena->layout.slots[extent->group] ? &arena->partial[extent->group][extent->used] : NULL;
}

static void extent_link(struct kv_arena *arena, uint32_t index)
{
    struct kv_extent *extent = &arena->extents[index];
    uint32_t *list = list_of(arena, extent);
    if (list == NULL)
        return;
    extent->previous = 0;
    extent->next = *list;
    if (*list != 0)
        arena->extents[*list - 1].previous = index + 1;
    *list = index + 1;
}

static void extent_unlink(struct kv_arena *arena, uint32_t index)
{
    struct kv_extent *extent = &arena->extents[index];
    uint32_t *list = list_of(arena, extent);
    if (list == NULL)
        return;
    if (extent->previous != 0)
        arena->extents[extent->previous - 1].next = extent->next;
    else
        *list = extent->next;
    if (extent->next != 0)
        arena->extents[extent->next - 1].previous = extent->previous;
}

/* ---- life ---- */

enum status kv_arena_create(struct kv_arena *arena, uint64_t bytes)
{
    arena->layout = kv_arena_layout(arena->page_bytes);
    const uint64_t extents = bytes / arena->layout.extent_bytes;
    if (extents > (UINT32_MAX >> 1) / arena->layout.slots_max)
        return STATUS_FAIL(STATUS_LIMIT, "%llu bytes are too many KV pages", (unsigned long long)bytes);
    arena->extent_count = arena->extent_free = (uint32_t)extents;
    arena->bytes = extents * arena->layout.extent_bytes;
    if (extents == 0)
        return STATUS_OK;
    arena->extents = calloc(extents, sizeof *arena->extents);
    arena->owners = calloc(extents * arena->layout.slots_max, sizeof *arena->owners);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        arena->partial[g] = calloc(arena->layout.slots[g] + 1, sizeof *arena->partial[g]);
    if (arena->extents == NULL || arena->owners == NULL || arena->partial[0] == NULL || arena->partial[1] == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the tables of %llu bytes of KV", (unsigned long long)bytes);
    for (uint32_t i = arena->extent_count; i-- > 0;) { /* the first is handed out first */
        arena->extents[i].group = FREE;
        extent_link(arena, i);
    }
    void *base = NULL;
    if (arena->home > 0 && arena->tier == BACKEND_TIER_DEVICE)
        TRY(arena->ops->arena_create_at(arena->backend, arena->home, arena->bytes, &base));
    else
        TRY(arena->ops->arena_create(arena->backend, arena->tier, arena->bytes, &base));
    arena->base = base;
    return STATUS_OK;
}

void kv_arena_destroy(struct kv_arena *arena)
{
    void *base = arena->base;
    if (base != NULL)
        arena->ops->arena_destroy(arena->backend, arena->tier, &base);
    free(arena->extents);
    free(arena->owners);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        free(arena->partial[g]);
    *arena = (struct kv_arena){0};
}

/* ---- pages ---- */

static uint32_t extent_of(const struct kv_arena *arena, uint32_t page)
{
    return (page - 1) / arena->layout.slots_max;
}

uint32_t kv_arena_group(const struct kv_arena *arena, uint32_t page)
{
    return arena->extents[extent_of(arena, page)].group;
}

void *kv_arena_address(const struct kv_arena *arena, uint32_t page)
{
    const uint32_t extent = extent_of(arena, page), slot = (page - 1) % arena->layout.slots_max;
    return arena->base + extent * arena->layout.extent_bytes + slot * arena->page_bytes[arena->extents[extent].group];
}

static void extent_start(struct kv_arena *arena, uint32_t index, uint32_t group)
{
    struct kv_extent *extent = &arena->extents[index];
    uint32_t *slots = &arena->owners[(size_t)index * arena->layout.slots_max];
    extent_unlink(arena, index);
    extent->group = group;
    extent->free_slot = 1;
    for (uint32_t s = 0; s < arena->layout.slots[group]; s++)
        slots[s] = s + 1 < arena->layout.slots[group] ? s + 2 : 0;
    extent_link(arena, index);
    arena->extent_free--;
}

static uint32_t fullest(const struct kv_arena *arena, uint32_t group)
{
    for (uint32_t used = arena->layout.slots[group]; used-- > 0;)
        if (arena->partial[group][used] != 0)
            return arena->partial[group][used];
    return 0;
}

uint32_t kv_arena_take(struct kv_arena *arena, uint32_t group, uint32_t owner)
{
    if (arena->extent_count == 0)
        return 0;
    uint32_t at = fullest(arena, group);
    if (at == 0) {
        at = arena->free_list;
        if (at == 0)
            return 0;
        extent_start(arena, at - 1, group);
    }
    struct kv_extent *extent = &arena->extents[at - 1];
    extent_unlink(arena, at - 1);
    const uint32_t slot = extent->free_slot - 1;
    uint32_t *cell = &arena->owners[(size_t)(at - 1) * arena->layout.slots_max + slot];
    extent->free_slot = *cell;
    *cell = owner;
    extent->used++;
    arena->used[group]++;
    extent_link(arena, at - 1);
    return (at - 1) * arena->layout.slots_max + slot + 1;
}

void kv_arena_give(struct kv_arena *arena, uint32_t page)
{
    const uint32_t index = extent_of(arena, page), slot = (page - 1) % arena->layout.slots_max;
    struct kv_extent *extent = &arena->extents[index];
    assert(extent->group != FREE && extent->used > 0);
    extent_unlink(arena, index);
    arena->used[extent->group]--;
    arena->owners[page - 1] = extent->free_slot;
    extent->free_slot = slot + 1;
    if (--extent->used == 0) {
        extent->group = FREE;
        arena->extent_free++;
    }
    extent_link(arena, index);
}

bool kv_arena_fits(const struct kv_arena *arena, const uint32_t want[BACKEND_GROUPS_MAX], const uint32_t less[BACKEND_GROUPS_MAX])
{
    uint64_t pages[BACKEND_GROUPS_MAX];
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        pages[g] = (uint64_t)arena->used[g] + want[g] - (less != NULL ? less[g] : 0);
    return kv_arena_extents(&arena->layout, pages) <= arena->extent_count;
}

/* ---- compaction ---- */

bool kv_arena_compact(struct kv_arena *arena, uint32_t group, kv_arena_move_fn *move, void *user)
{
    const uint32_t other = 1 - group, slots = arena->layout.slots[other];
    uint32_t emptiest = 0, extents_used = arena->extent_count - arena->extent_free;
    if (slots == 0)
        return false;
    if (arena->layout.slots[group] > 0)
        extents_used -= (uint32_t)divide_up(arena->used[group], arena->layout.slots[group]); /* it has no partial extent now */
    if ((uint64_t)extents_used * slots < (uint64_t)arena->used[other] + slots)
        return false; /* the others have no room for an extent's pages */
    for (uint32_t used = 1; used < slots && emptiest == 0; used++)
        emptiest = arena->partial[other][used];
    assert(emptiest != 0);
    const uint32_t victim = emptiest - 1;
    extent_unlink(arena, victim);            /* so that nothing is taken from it */
    uint32_t left = arena->extents[victim].used;
    bool taken[slots];
    for (uint32_t s = 0; s < slots; s++)
        taken[s] = true;
    const uint32_t *cells = &arena->owners[(size_t)victim * arena->layout.slots_max];
    for (uint32_t s = arena->extents[victim].free_slot; s != 0; s = cells[s - 1])
        taken[s - 1] = false;
    for (uint32_t s = 0; s < slots; s++)
        if (taken[s]) {
            const uint32_t to = kv_arena_take(arena, other, cells[s]);
            assert(to != 0);
            move(user, other, victim * arena->layout.slots_max + s + 1, to, cells[s]);
            left--;
        }
    assert(left == 0);
    (void)left;
    arena->used[other] -= arena->extents[victim].used;
    arena->extents[victim] = (struct kv_extent){.group = FREE};
    arena->extent_free++;
    extent_link(arena, victim);
    return true;
}

/* ---- checking ---- */

uint64_t kv_arena_metadata_bytes(const struct kv_arena *arena)
{
    return arena->extent_count * (sizeof *arena->extents + (uint64_t)arena->layout.slots_max * sizeof *arena->owners);
}

#define BROKEN(what) STATUS_FAIL(STATUS_INTERNAL, "KV cache invariant 1 is broken: %s", (what))

enum status kv_arena_check(const struct kv_arena *arena)
{
    uint32_t used[BACKEND_GROUPS_MAX] = {0}, listed = 0, listable = 0;
    for (uint32_t i = 0; i < arena->extent_count; i++) {
        const struct kv_extent *extent = &arena->extents[i];
        const uint32_t *cells = &arena->owners[(size_t)i * arena->layout.slots_max];
        if (extent->group == FREE) {
            if (extent->used != 0)
                return BROKEN("a free extent has pages");
            listable++;
            continue;
        }
        const uint32_t slots = arena->layout.slots[extent->group];
        uint32_t free_slots = 0;
        for (uint32_t s = extent->free_slot; s != 0 && free_slots <= slots; s = cells[s - 1])
            free_slots++;
        if (extent->used == 0 || extent->used + free_slots != slots)
            return BROKEN("an extent's pages do not add up");
        used[extent->group] += extent->used;
        listable += extent->used < slots;
    }
    for (uint32_t e = arena->free_list; e != 0 && listed <= arena->extent_count; e = arena->extents[e - 1].next, listed++)
        if (arena->extents[e - 1].group != FREE)
            return BROKEN("an extent in use is listed as free");
    if (listed != arena->extent_free)
        return BROKEN("the number of free extents");
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        for (uint32_t n = 1; arena->extent_count > 0 && n < arena->layout.slots[g]; n++)
            for (uint32_t e = arena->partial[g][n]; e != 0 && listed <= arena->extent_count; e = arena->extents[e - 1].next, listed++)
                if (arena->extents[e - 1].group != g || arena->extents[e - 1].used != n)
                    return BROKEN("an extent is in a wrong list");
        if (used[g] != arena->used[g])
            return BROKEN("the number of pages used");
    }
    return listed == listable ? STATUS_OK : BROKEN("an extent is in no list");
}
