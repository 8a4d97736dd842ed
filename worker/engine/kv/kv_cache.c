/* kv_cache.c - the cache as a whole: made, counted, measured for admission, emptied. The parts are in kv_state.h. */
#include "worker/engine/kv/kv_cache.h"
#include <stdlib.h>
#include "worker/engine/kv/kv_state.h"

/* ---- sizes ---- */

/* Local pages that one sequence needs at a time at most while it grows to `tokens`: its window, a chunk, and their ragged edges. */
static uint32_t local_blocks(const struct kv_cache_config *config, uint32_t tokens)
{
    const uint64_t span = (uint64_t)config->groups[1].window + config->chunk_tokens_max;
    const uint64_t most = span / KV_BLOCK + (span % KV_BLOCK != 0) + 1 + kv_blocks(config->groups[1].sinks);
    return most < kv_blocks(tokens) ? (uint32_t)most : kv_blocks(tokens);
}

static uint64_t need(const struct kv_cache_config *config, uint32_t tokens, const uint32_t has[BACKEND_GROUPS_MAX])
{
    const uint32_t most[BACKEND_GROUPS_MAX] = {kv_blocks(tokens), local_blocks(config, tokens)};
    uint64_t bytes = 0;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        bytes += (most[g] > has[g] ? most[g] - has[g] : 0) * (uint64_t)config->groups[g].page_bytes;
    return bytes;
}

/* A new one may also hold the page whose beginning it copies. */
static uint64_t need_new(const struct kv_cache_config *config, uint32_t tokens)
{
    static const uint32_t none[BACKEND_GROUPS_MAX];
    return need(config, tokens, none) + config->groups[0].page_bytes + config->groups[1].page_bytes;
}

uint64_t kv_cache_need(const struct kv_cache *cache, const struct kv_sequence *sequence, uint32_t tokens)
{
    if (sequence == NULL || sequence->suspended)
        return need_new(&cache->config, tokens);
    uint32_t local = sequence->block_count - sequence->pin_from;
    local += cache->sink_blocks < sequence->pin_from ? cache->sink_blocks : sequence->pin_from;
    const uint32_t has[BACKEND_GROUPS_MAX] = {sequence->block_count, local};
    return need(&cache->config, tokens, has);
}

uint64_t kv_cache_promised(const struct kv_cache *cache)
{
    uint64_t bytes = 0;
    for (uint32_t s = 0; s < cache->config.open_max; s++) {
        const struct kv_sequence *sequence = cache->sequences[s];
        if (sequence != NULL && sequence->prompt_tokens > (sequence->suspended ? 0 : sequence->tokens))
            bytes += kv_cache_need(cache, sequence, sequence->prompt_tokens);
    }
    return bytes;
}

uint64_t kv_cache_room(const struct kv_cache *cache)
{
    const struct kv_arena *arena = &cache->arenas[DEVICE];
    const uint64_t held[BACKEND_GROUPS_MAX] = {cache->held[0], cache->held[1]};
    return kv_arena_room(&arena->layout, arena->extent_count, held);
}

uint64_t kv_cache_formula(const struct kv_cache_config *config, uint32_t tokens, const uint32_t *ends, uint32_t end_count,
                          uint64_t bytes[BACKEND_GROUPS_MAX])
{
    struct kv_cache shape = {.config = *config, .sink_blocks = kv_blocks(config->groups[1].sinks)}; /* without pages */
    struct kv_points points;
    uint64_t local = 0;
    kv_points_choose(&shape, NULL, 0, tokens, ends, end_count, 0, &points);
    const uint32_t from = tokens > 0 ? kv_claim_block(&shape, tokens, config->rewind_tokens) : 0;
    for (uint32_t b = 0; b < kv_blocks(tokens); b++)
        local += kv_claims_of(&shape, &points, from, b) > 0;
    bytes[0] = kv_blocks(tokens) * (uint64_t)config->groups[0].page_bytes;
    bytes[1] = local * config->groups[1].page_bytes;
    return bytes[0] + bytes[1];
}

uint64_t kv_cache_prompt_bytes(const struct kv_cache *cache, uint32_t tokens)
{
    uint64_t bytes[BACKEND_GROUPS_MAX];
    return kv_cache_formula(&cache->config, tokens, NULL, 0, bytes);
}

/* ---- life ---- */

static enum status check_config(const struct kv_cache_config *config)
{
    const struct kv_group_config *global = &config->groups[0], *local = &config->groups[1];
    if (config->ops == NULL || config->backend == NULL || (global->page_bytes == 0 && local->page_bytes == 0))
        return STATUS_FAIL(STATUS_INVALID, "a KV cache needs a backend and pages of one group at least");
    if (global->page_bytes % 64 != 0 || local->page_bytes % 64 != 0)
        return STATUS_FAIL(STATUS_INVALID, "the bytes of a KV page are a multiple of 64");
    if (global->window != 0 || global->sinks != 0 || (local->page_bytes > 0 && local->window == 0))
        return STATUS_FAIL(STATUS_INVALID, "group 1 has a window, group 0 has none");
    if (config->sequence_tokens_max == 0 || config->sequence_tokens_max > UINT32_MAX / 4 || config->open_max == 0 ||
        config->open_max >= KV_OWNER_TAIL || config->chunk_tokens_max == 0 || config->rewind_tokens > UINT32_MAX / 4 ||
        local->window > UINT32_MAX / 4)
        return STATUS_FAIL(STATUS_INVALID, "a KV cache needs a sequence length, open sequences and a chunk, all within bounds");
    if (config->snapshots_max > KV_SNAPSHOTS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "at most %u snapshots are kept of a path, not %u", KV_SNAPSHOTS_MAX, config->snapshots_max);
    return STATUS_OK;
}

/* The smallest arena in which a sequence alone always finds what it needs. */
static enum status check_device(const struct kv_cache_config *config)
{
    static const uint64_t none[BACKEND_GROUPS_MAX];
    const uint64_t page_bytes[BACKEND_GROUPS_MAX] = {config->groups[0].page_bytes, config->groups[1].page_bytes};
    const struct kv_arena_layout layout = kv_arena_layout(page_bytes);
    const uint64_t wanted = need_new(config, config->sequence_tokens_max);
    uint64_t extents = wanted / layout.filled_bytes;
    while (kv_arena_room(&layout, extents, none) < wanted)
        extents++;
    if (config->device_bytes / layout.extent_bytes >= extents)
        return STATUS_OK;
    return STATUS_FAIL(STATUS_LIMIT, "%llu bytes of KV memory cannot hold a sequence of %u tokens; give it %llu bytes or more",
                       (unsigned long long)config->device_bytes, config->sequence_tokens_max,
                       (unsigned long long)(extents * layout.extent_bytes));
}

static uint64_t pages_max(const struct kv_arena *arena, uint32_t group)
{
    return (uint64_t)arena->extent_count * arena->layout.slots[group];
}

static enum status create_tables(struct kv_cache *cache)
{
    const struct kv_cache_config *config = &cache->config;
    const bool global = kv_has_group(cache, 0);
    /* A node has a page of group 0; without that group, open sequences have nodes behind their window too. A root has a node. */
    uint64_t nodes = pages_max(&cache->arenas[DEVICE], global ? 0 : 1) + pages_max(&cache->arenas[HOST], global ? 0 : 1);
    if (!global)
        nodes += (uint64_t)config->open_max * cache->blocks_max;
    nodes = 2 * nodes + config->open_max;
    const uint64_t transfers = (uint64_t)cache->arenas[DEVICE].extent_count * cache->arenas[DEVICE].layout.slots_max;
    if (nodes >= KV_OWNER_TAIL)
        return STATUS_FAIL(STATUS_LIMIT, "%llu nodes are too many for a KV cache", (unsigned long long)nodes);
    TRY(kv_tree_create(&cache->tree, (uint32_t)nodes, config->hash_mask != 0 ? config->hash_mask : UINT64_MAX, kv_has_group(cache, 1)));
    cache->record_capacity = (uint32_t)nodes;
    cache->label_capacity = nodes < KV_CACHE_LABELS_MAX ? (uint32_t)nodes : KV_CACHE_LABELS_MAX;
    TRY(recent_create(cache->label_capacity, sizeof(struct kv_label), &cache->labels));
    cache->transfer_capacity = (uint32_t)transfers;
    cache->records = calloc(nodes + 1, sizeof *cache->records);
    cache->transfers = calloc(transfers, sizeof *cache->transfers);
    cache->sequences = calloc(config->open_max, sizeof *cache->sequences);
    cache->path = calloc(cache->blocks_max, sizeof *cache->path);
    cache->missing = calloc(cache->blocks_max, sizeof *cache->missing);
    if (config->ops->load_start != NULL) {
        cache->load_capacity = BACKEND_GROUPS_MAX * (cache->blocks_max + 2);       /* the source's pages, and its prefix */
        cache->load = calloc(cache->load_capacity, sizeof *cache->load);
    }
    if (cache->records == NULL || cache->transfers == NULL || cache->sequences == NULL || cache->path == NULL || cache->missing == NULL ||
        (cache->load == NULL && config->ops->load_start != NULL))
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the tables of a KV cache");
    return STATUS_OK;
}

enum status kv_cache_create(const struct kv_cache_config *config, struct kv_cache **out)
{
    enum status st;
    TRY(check_config(config));
    TRY(check_device(config));
    struct kv_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a KV cache");
    cache->config = *config;
    cache->blocks_max = kv_blocks(config->sequence_tokens_max);
    cache->sink_blocks = config->groups[1].page_bytes > 0 ? kv_blocks(config->groups[1].sinks) : 0;
    for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++) {
        cache->arenas[tier] = (struct kv_arena){.ops = config->ops, .backend = config->backend, .tier = (enum backend_tier)tier,
                                                .home = config->home};
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
            cache->arenas[tier].page_bytes[g] = config->groups[g].page_bytes;
        TRY_GOTO(kv_arena_create(&cache->arenas[tier], tier == DEVICE ? config->device_bytes : config->host_bytes), st, fail);
    }
    TRY_GOTO(create_tables(cache), st, fail);
    *out = cache;
    return STATUS_OK;
fail:
    kv_cache_destroy(&cache);
    return st;
}

void kv_cache_destroy(struct kv_cache **pointer)
{
    struct kv_cache *cache = *pointer;
    if (cache == NULL)
        return;
    cache->config.on_fate = NULL;
    if (cache->transfers != NULL)
        kv_pages_land_all(cache);
    for (uint32_t s = 0; cache->sequences != NULL && s < cache->config.open_max; s++) {
        struct kv_sequence *sequence = cache->sequences[s];
        if (sequence != NULL)
            kv_cache_drop(cache, &sequence);
    }
    recent_destroy(&cache->labels);
    free(cache->sequences);
    free(cache->transfers);
    free(cache->load);
    free(cache->records);
    free(cache->path);
    free(cache->missing);
    kv_tree_destroy(&cache->tree);
    for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++)
        kv_arena_destroy(&cache->arenas[tier]);
    free(cache);
    *pointer = NULL;
}

void kv_cache_load_by_layers(struct kv_cache *cache, bool by_layers)
{
    cache->by_layers = by_layers && cache->load != NULL;
}

void kv_cache_forget(struct kv_cache *cache)
{
    for (uint32_t l = 0; l < KV_RECORD_LISTS; l++)
        while (cache->lists[l].oldest != 0)
            kv_record_evict(cache, cache->lists[l].oldest);
}

/* ---- counts ---- */

static void count_tier(const struct kv_cache *cache, uint32_t tier, struct kv_tier_counts *out)
{
    const struct kv_arena *arena = &cache->arenas[tier];
    uint64_t used = 0, in_use = 0, in_copy = 0;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        used += arena->used[g] * arena->page_bytes[g];
        in_use += tier == DEVICE ? cache->held[g] * arena->page_bytes[g] : 0;
    }
    for (uint32_t t = 0; t < cache->transfer_count; t++) {
        const struct kv_transfer *transfer = &cache->transfers[(cache->transfer_first + t) % cache->transfer_capacity];
        const uint64_t bytes = arena->page_bytes[transfer->group];
        const uint32_t owner = arena->owners[(transfer->out == (tier == DEVICE) ? transfer->from : transfer->to) - 1];
        in_copy += bytes;
        if (tier == DEVICE && owner != KV_OWNER_ORPHAN)
            in_use -= (transfer->group == 0 ? kv_node(cache, owner)->uses : kv_node(cache, owner)->pins) > 0 ? bytes : 0;
    }
    *out = (struct kv_tier_counts){.total = tier == DEVICE ? cache->config.device_bytes : cache->config.host_bytes,
                                   .cached = used - in_use - in_copy,
                                   .in_use = in_use,
                                   .in_copy = in_copy};
    out->free = out->total - used;
}

static uint64_t metadata_bytes(const struct kv_cache *cache)
{
    uint64_t bytes = sizeof *cache + kv_tree_metadata_bytes(&cache->tree);
    for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++)
        bytes += kv_arena_metadata_bytes(&cache->arenas[tier]);
    bytes += cache->record_touched * sizeof *cache->records;
    for (uint32_t s = 0; s < cache->config.open_max; s++)
        if (cache->sequences[s] != NULL)
            bytes += sizeof(struct kv_sequence) + cache->config.sequence_tokens_max * sizeof(uint32_t) +
                     (uint64_t)cache->blocks_max * (3 * sizeof(uint32_t) + 2 * sizeof(void *));
    return bytes;
}

void kv_cache_counts(const struct kv_cache *cache, struct kv_cache_counts *out)
{
    *out = (struct kv_cache_counts){
        .nodes = cache->tree.node_count,
        .leaves = cache->record_count,
        .tombstones = cache->tree.tombstones,
        .snapshots = cache->snapshots,
        .sequence_open = cache->open_count,
        .sequence_suspended = cache->suspended_count,
        .evicted_snapshots = cache->evicted_snapshots,
        .evicted_rewinds = cache->evicted_rewinds,
        .evicted_leaves = cache->evicted_leaves,
        .demoted = cache->demoted,
        .promoted = cache->promoted,
        .moved = cache->moved,
        .metadata_bytes = metadata_bytes(cache),
    };
    for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++) {
        count_tier(cache, tier, &out->tiers[tier]);
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
            out->pages[tier][g] = cache->arenas[tier].used[g];
    }
}
