/* kv_pages.c - pages of nodes, the copies between the tiers, and how room is made. */
#include "worker/engine/kv/kv_state.h"

/* ---- candidates: resident nodes that may leave ---- */

static void candidate_unlink(struct kv_cache *cache, uint32_t at)
{
    struct kv_node *node = kv_node(cache, at);
    if (node->newer != 0)
        kv_node(cache, node->newer)->older = node->older;
    else
        cache->candidate_newest = node->older;
    if (node->older != 0)
        kv_node(cache, node->older)->newer = node->newer;
    else
        cache->candidate_oldest = node->newer;
    node->newer = node->older = 0;
    node->candidate = false;
}

static void candidate_link(struct kv_cache *cache, uint32_t at, bool oldest)
{
    struct kv_node *node = kv_node(cache, at);
    node->newer = oldest ? cache->candidate_oldest : 0;
    node->older = oldest ? 0 : cache->candidate_newest;
    if (node->newer != 0)
        kv_node(cache, node->newer)->older = at;
    else
        cache->candidate_newest = at;
    if (node->older != 0)
        kv_node(cache, node->older)->newer = at;
    else
        cache->candidate_oldest = at;
    node->candidate = true;
}

static void candidate_update(struct kv_cache *cache, uint32_t at, bool oldest)
{
    const struct kv_node *node = kv_node(cache, at);
    const bool may_leave = node->resident && node->uses == 0 && node->resident_children == 0 && node->copy_in == 0;
    if (may_leave && !node->candidate)
        candidate_link(cache, at, oldest);
    else if (!may_leave && node->candidate)
        candidate_unlink(cache, at);
}

/* ---- copies ---- */

static void transfer_start(struct kv_cache *cache, uint32_t group, bool out, uint32_t from, uint32_t to)
{
    const struct kv_arena *source = &cache->arenas[out ? DEVICE : HOST], *target = &cache->arenas[out ? HOST : DEVICE];
    void *dst = kv_arena_address(target, to);
    const void *src = kv_arena_address(source, from);
    struct kv_transfer transfer = {.from = from, .to = to, .group = (uint8_t)group, .out = out};
    assert(cache->transfer_count < cache->transfer_capacity); /* a device page is in one copy at most */
    if (cache->gathering) {
        assert(!out && cache->load_count < cache->load_capacity);
        cache->load[cache->load_count++] = (struct backend_page_copy){.group = group, .tokens = KV_BLOCK, .dst = dst, .src = src};
        cache->load_transfers++;
    } else {
        transfer.ticket = cache->ticket_last = cache->config.ops->copy_start(cache->config.backend, dst, src, source->page_bytes[group]);
    }
    cache->transfers[(cache->transfer_first + cache->transfer_count++) % cache->transfer_capacity] = transfer;
}

static void start_load(struct kv_cache *cache)
{
    if (cache->load_count == 0)
        return;
    cache->ticket_last = cache->config.ops->load_start(cache->config.backend, cache->load, cache->load_count);
    for (uint32_t t = cache->transfer_count - cache->load_transfers; t < cache->transfer_count; t++)
        cache->transfers[(cache->transfer_first + t) % cache->transfer_capacity].ticket = cache->ticket_last;
    cache->load_count = cache->load_transfers = 0;
}

void kv_load_begin(struct kv_cache *cache)
{
    cache->gathering = cache->by_layers;
}

bool kv_load_any(const struct kv_cache *cache)
{
    return cache->load_count > 0;
}

void kv_load_prefix(struct kv_cache *cache, uint32_t at, uint32_t group, void *dst, uint32_t tokens)
{
    const struct kv_node *node = kv_node(cache, at);
    const void *src = kv_arena_address(&cache->arenas[DEVICE], node->page[DEVICE][group]);
    for (uint32_t i = 0; i < cache->load_transfers; i++)
        if (cache->load[i].dst == src) { /* it comes itself: both from the host */
            src = cache->load[i].src;
            break;
        }
    assert(cache->load_count < cache->load_capacity);
    cache->load[cache->load_count++] = (struct backend_page_copy){.group = group, .tokens = tokens, .dst = dst, .src = src};
}

void kv_load_end(struct kv_cache *cache)
{
    start_load(cache);
    cache->gathering = false;
}

static void held_add(struct kv_cache *cache, const struct kv_node *node, uint32_t group, int change)
{
    if (node->page[DEVICE][group] != 0 && (group == 0 ? node->uses : node->pins) > 0)
        cache->held[group] += (uint32_t)change;
}

static void land(struct kv_cache *cache)
{
    const struct kv_transfer transfer = cache->transfers[cache->transfer_first];
    const enum backend_tier from = transfer.out ? DEVICE : HOST, to = transfer.out ? HOST : DEVICE;
    const uint32_t owner = cache->arenas[from].owners[transfer.from - 1];
    const uint8_t bit = (uint8_t)(1u << transfer.group);
    cache->transfer_first = (cache->transfer_first + 1) % cache->transfer_capacity;
    cache->transfer_count--;
    cache->ticket_landed = transfer.ticket;
    if (owner == KV_OWNER_ORPHAN) {
        kv_arena_give(&cache->arenas[from], transfer.from);
        kv_arena_give(&cache->arenas[to], transfer.to);
        cache->soon[transfer.group]--;
        return;
    }
    struct kv_node *node = kv_node(cache, owner);
    enum backend_tier goes = HOST;
    if (transfer.out && (node->leaving & bit) != 0) {
        goes = DEVICE;
        cache->soon[transfer.group]--;
        cache->demoted++;
        held_add(cache, node, transfer.group, -1);
    }
    kv_arena_give(&cache->arenas[goes], node->page[goes][transfer.group]);
    node->page[goes][transfer.group] = 0;
    node->leaving &= (uint8_t)~bit;
    if (transfer.out) {
        node->copy_out &= (uint8_t)~bit;
        kv_label_settle(cache, node);
    } else {
        node->copy_in &= (uint8_t)~bit;
        cache->promoted++;
        candidate_update(cache, owner, false);
    }
}

bool kv_pages_land(struct kv_cache *cache)
{
    bool any = false;
    while (cache->transfer_count > 0 &&
           cache->config.ops->copy_done(cache->config.backend, cache->transfers[cache->transfer_first].ticket)) {
        land(cache);
        any = true;
    }
    return any;
}

void kv_pages_land_until(struct kv_cache *cache, uint64_t ticket)
{
    if (cache->ticket_landed < ticket)
        cache->config.ops->copy_wait(cache->config.backend, ticket);
    while (cache->transfer_count > 0 && cache->transfers[cache->transfer_first].ticket <= ticket)
        land(cache);
}

static void land_first(struct kv_cache *cache)
{
    kv_pages_land_until(cache, cache->transfers[cache->transfer_first].ticket);
}

void kv_pages_land_all(struct kv_cache *cache)
{
    if (cache->transfer_count > 0)
        kv_pages_land_until(cache, cache->ticket_last);
}

/* ---- taking a page ---- */

struct move { struct kv_cache *cache; enum backend_tier tier; };

static void move_page(void *user, uint32_t group, uint32_t from, uint32_t to, uint32_t owner)
{
    const struct move *move = user;
    struct kv_cache *cache = move->cache;
    const struct kv_arena *arena = &cache->arenas[move->tier];
    cache->ticket_last = cache->config.ops->copy_start(cache->config.backend, kv_arena_address(arena, to),
                                                       kv_arena_address(arena, from), arena->page_bytes[group]);
    cache->config.ops->copy_wait(cache->config.backend, cache->ticket_last);
    cache->ticket_landed = cache->ticket_last;
    cache->moved++;
    if ((owner & KV_OWNER_TAIL) == 0)
        kv_node(cache, owner)->page[move->tier][group] = to;
    if (move->tier == DEVICE)
        kv_sequence_moved(cache, group, owner, from, to);
}

/* There is room for it, perhaps only after pages were moved together. */
static uint32_t take(struct kv_cache *cache, enum backend_tier tier, uint32_t group, uint32_t owner)
{
    struct kv_arena *arena = &cache->arenas[tier];
    uint32_t page = kv_arena_take(arena, group, owner);
    if (page != 0)
        return page;
    start_load(cache);
    kv_pages_land_all(cache); /* what is being copied cannot move; nothing else is waited for here often */
    page = kv_arena_take(arena, group, owner);
    if (page == 0 && kv_arena_compact(arena, group, move_page, &(struct move){.cache = cache, .tier = tier}))
        page = kv_arena_take(arena, group, owner);
    assert(page != 0);
    return page;
}

uint32_t kv_page_tail(struct kv_cache *cache, struct kv_sequence *sequence, uint32_t group)
{
    cache->held[group]++;
    return take(cache, DEVICE, group, KV_OWNER_TAIL | sequence->slot);
}

void kv_page_tail_give(struct kv_cache *cache, uint32_t group, uint32_t page)
{
    cache->held[group]--;
    kv_arena_give(&cache->arenas[DEVICE], page);
}

/* ---- pages of a node ---- */

static void stop_leaving(struct kv_cache *cache, struct kv_node *node, uint32_t group)
{
    const uint8_t bit = (uint8_t)(1u << group);
    cache->soon[group] -= (node->leaving & bit) != 0;
    node->leaving &= (uint8_t)~bit;
}

void kv_node_use(struct kv_cache *cache, uint32_t at, int change)
{
    struct kv_node *node = kv_node(cache, at);
    stop_leaving(cache, node, 0);
    held_add(cache, node, 0, -1);
    node->uses += (uint32_t)change;
    held_add(cache, node, 0, 1);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) /* used for a moment only: it goes on leaving */
        if (node->uses == 0 && !node->resident && ((node->copy_out & ~node->leaving) >> g & 1) != 0) {
            node->leaving |= (uint8_t)(1u << g);
            cache->soon[g]++;
        }
    candidate_update(cache, at, false);
}

void kv_node_pin(struct kv_cache *cache, uint32_t at, int change)
{
    struct kv_node *node = kv_node(cache, at);
    stop_leaving(cache, node, 1);
    held_add(cache, node, 1, -1);
    node->pins += (uint32_t)change;
    held_add(cache, node, 1, 1);
    kv_node_claim(cache, at, 0, 0); /* lets the page go if nobody claims it */
}

void kv_node_drop_page(struct kv_cache *cache, uint32_t at, uint32_t group)
{
    struct kv_node *node = kv_node(cache, at);
    const uint8_t bit = (uint8_t)(1u << group);
    held_add(cache, node, group, -1);
    if (((node->copy_in | node->copy_out) & bit) != 0) {
        for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++)
            cache->arenas[tier].owners[node->page[tier][group] - 1] = KV_OWNER_ORPHAN;
        cache->soon[group] += (node->leaving & bit) == 0;
        node->copy_in &= (uint8_t)~bit;
        node->copy_out &= (uint8_t)~bit;
        node->leaving &= (uint8_t)~bit;
    } else {
        for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++)
            if (node->page[tier][group] != 0)
                kv_arena_give(&cache->arenas[tier], node->page[tier][group]);
    }
    node->page[DEVICE][group] = node->page[HOST][group] = 0;
    kv_label_settle(cache, node);
    if (group == 1)
        kv_tree_set_live(&cache->tree, at, false);
    candidate_update(cache, at, false); /* a copy to the device may have kept it from leaving */
}

void kv_node_attach(struct kv_cache *cache, uint32_t at, uint32_t group, uint32_t page)
{
    struct kv_node *node = kv_node(cache, at);
    assert(node->page[DEVICE][group] == 0);
    cache->held[group]--; /* as a tail */
    if (node->page[HOST][group] != 0)
        kv_arena_give(&cache->arenas[HOST], node->page[HOST][group]);
    node->page[HOST][group] = 0;
    node->page[DEVICE][group] = page;
    cache->arenas[DEVICE].owners[page - 1] = at;
    held_add(cache, node, group, 1);
    kv_label_settle(cache, node);
    if (group == 1)
        kv_tree_set_live(&cache->tree, at, true);
}

void kv_node_stay(struct kv_cache *cache, uint32_t at)
{
    struct kv_node *node = kv_node(cache, at);
    if (node->resident)
        return;
    assert(kv_node(cache, node->parent)->parent == 0 || kv_node(cache, node->parent)->resident);
    node->resident = true;
    kv_node(cache, node->parent)->resident_children++;
    candidate_update(cache, node->parent, false);
    candidate_update(cache, at, false);
}

static void leave(struct kv_cache *cache, uint32_t at, bool oldest)
{
    struct kv_node *node = kv_node(cache, at);
    if (node->candidate)
        candidate_unlink(cache, at);
    if (!node->resident)
        return;
    node->resident = false;
    kv_node(cache, node->parent)->resident_children--;
    candidate_update(cache, node->parent, oldest);
}

void kv_node_release(struct kv_cache *cache, uint32_t at)
{
    while (at != 0) {
        const struct kv_node *node = kv_node(cache, at);
        const uint32_t parent = node->parent;
        if (node->child_count > 0 || node->records != 0 || node->uses > 0)
            return;
        if (parent != 0) {
            for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
                if (kv_has_group(cache, g))
                    kv_node_drop_page(cache, at, g);
            leave(cache, at, false);
        }
        kv_tree_remove(&cache->tree, at);
        at = parent;
    }
}

/* ---- between the tiers ---- */

void kv_node_fetch(struct kv_cache *cache, uint32_t at, uint32_t group)
{
    const uint8_t bit = (uint8_t)(1u << group);
    struct kv_node *node = kv_node(cache, at);
    if (node->page[DEVICE][group] != 0) /* there, or coming */
        return;
    const uint32_t to = take(cache, DEVICE, group, at);
    node->page[DEVICE][group] = to;
    node->copy_in |= bit;
    kv_label_settle(cache, node);
    held_add(cache, node, group, 1);
    candidate_update(cache, at, false);
    transfer_start(cache, group, false, node->page[HOST][group], to);
}

/* Its device page goes when the copy has landed. */
static void send(struct kv_cache *cache, uint32_t at, uint32_t group)
{
    const uint8_t bit = (uint8_t)(1u << group);
    struct kv_node *node = kv_node(cache, at);
    if ((node->leaving & bit) != 0)
        return;
    if ((node->copy_out & bit) == 0) {
        const uint32_t to = take(cache, HOST, group, at);
        node->page[HOST][group] = to;
        node->copy_out |= bit;
        transfer_start(cache, group, true, node->page[DEVICE][group], to);
    }
    node->leaving |= bit;
    cache->soon[group]++;
}

bool kv_node_demote(struct kv_cache *cache, uint32_t at)
{
    const struct kv_node *node = kv_node(cache, at);
    uint32_t want[BACKEND_GROUPS_MAX];
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        want[g] = node->page[DEVICE][g] != 0 && node->page[HOST][g] == 0;
    if (!kv_arena_fits(&cache->arenas[HOST], want, NULL))
        return false;
    leave(cache, at, true);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        if (node->page[DEVICE][g] != 0)
            send(cache, at, g);
    return true;
}

/* Local pages on the device that no next token sees, of nodes that cannot leave, go to the host alone. */
static bool send_unpinned(struct kv_cache *cache)
{
    static const uint32_t one_local[BACKEND_GROUPS_MAX] = {0, 1};
    bool any = false;
    for (uint32_t s = 0; s < cache->config.open_max; s++) {
        const struct kv_sequence *sequence = cache->sequences[s];
        if (sequence == NULL || sequence->suspended)
            continue;
        for (uint32_t b = 0; b < sequence->node_count; b++) {
            const struct kv_node *node = kv_node(cache, sequence->nodes[b]);
            if (node->page[DEVICE][1] == 0 || node->pins > 0 || ((node->copy_in | node->leaving) & 2) != 0)
                continue;
            if ((node->copy_out & 2) == 0 && !kv_arena_fits(&cache->arenas[HOST], one_local, NULL))
                return any;
            send(cache, sequence->nodes[b], 1);
            any = true;
        }
    }
    return any;
}

/* Order: what lands anyway; to the host what is not in use; out of the cache; what open sequences hold beyond their need. */
static bool make_some_room(struct kv_cache *cache, const uint32_t want[BACKEND_GROUPS_MAX])
{
    if (cache->transfer_count > 0 && kv_arena_fits(&cache->arenas[DEVICE], want, cache->soon)) {
        land_first(cache);
        return true;
    }
    if (cache->arenas[HOST].extent_count > 0) {
        if (cache->candidate_oldest != 0 && kv_node_demote(cache, cache->candidate_oldest))
            return true;
        if (send_unpinned(cache))
            return true;
    }
    if (kv_evict_step(cache))
        return true;
    if (cache->transfer_count > 0) {
        land_first(cache);
        return true;
    }
    return kv_sequence_trim(cache);
}

enum status kv_pages_make_room(struct kv_cache *cache, const uint32_t want[BACKEND_GROUPS_MAX])
{
    const struct kv_arena *arena = &cache->arenas[DEVICE];
    uint64_t pages[BACKEND_GROUPS_MAX];
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        pages[g] = (uint64_t)cache->held[g] + want[g];
    if (kv_arena_extents(&arena->layout, pages) > arena->extent_count)
        return STATUS_AGAIN;
    while (!kv_arena_fits(arena, want, NULL))
        if (!kv_pages_land(cache) && !make_some_room(cache, want))
            return STATUS_FAIL(STATUS_INTERNAL, "the KV cache has room and cannot find it");
    return STATUS_OK;
}
