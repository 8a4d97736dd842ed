/* kv_retention.c - who keeps which local page, and who goes first.
 *
 * Records are in three lists, most recently used first: whole ones, those without snapshots, and bare ones (without R either). When
 * something has to go, the older half loses its snapshots first, then its R, and only then the oldest record goes: so the half
 * that was used last keeps all that the rules promise, at any pressure. */
#include "worker/engine/kv/kv_state.h"

/* ---- claims ---- */

static bool in_window(const struct kv_cache *cache, uint32_t end, uint32_t block)
{
    return end > 0 && block >= kv_claim_block(cache, end, 0) && block < kv_blocks(end);
}

uint32_t kv_claims_of(const struct kv_cache *cache, const struct kv_points *points, uint32_t from, uint32_t block)
{
    uint32_t claims = (block >= from) + (block < cache->sink_blocks);
    claims += in_window(cache, points->first, block);
    claims += in_window(cache, points->prompt, block);
    for (uint32_t s = 0; s < cache->config.snapshots_max; s++)
        claims += in_window(cache, points->snapshots[s], block);
    return claims;
}

void kv_node_claim(struct kv_cache *cache, uint32_t at, uint32_t more, uint32_t less)
{
    struct kv_node *node = kv_node(cache, at);
    node->claims += more - less;
    if (node->claims == 0 && node->pins == 0 && kv_node_has_local(node))
        kv_node_drop_page(cache, at, 1);
}

uint32_t kv_record_claim_from(const struct kv_cache *cache, const struct kv_record *record)
{
    return kv_claim_block(cache, record->tokens, record->bare ? 0 : cache->config.rewind_tokens);
}

/* From the end up to the root: what one description claims more, and another less. NULL: nothing. */
static void change_claims(struct kv_cache *cache, uint32_t at, const struct kv_points *more, uint32_t more_from,
                          const struct kv_points *less, uint32_t less_from)
{
    if (!kv_has_group(cache, 1))
        return;
    while (kv_node(cache, at)->parent != 0) {
        const struct kv_node *node = kv_node(cache, at);
        const uint32_t block = node->block, parent = node->parent;
        kv_node_claim(cache, at, more != NULL ? kv_claims_of(cache, more, more_from, block) : 0,
                      less != NULL ? kv_claims_of(cache, less, less_from, block) : 0);
        at = parent;
    }
}

/* ---- resume points ---- */

static uint32_t snapshot_bucket(uint32_t rewind, uint32_t distance)
{
    uint32_t bucket = 0;
    for (uint64_t bound = (uint64_t)rewind * 4; distance >= bound; bound *= 4)
        bucket++;
    return bucket;
}

void kv_points_choose(struct kv_cache *cache, const uint32_t *path, uint32_t known, uint32_t tokens, const uint32_t *ends,
                      uint32_t end_count, uint32_t prompt, struct kv_points *out)
{
    const uint32_t rewind = cache->config.rewind_tokens > KV_BLOCK ? cache->config.rewind_tokens : KV_BLOCK;
    *out = (struct kv_points){0};
    if (!kv_has_group(cache, 1))
        return;
    for (uint32_t b = 0; b < known; b++) /* 1 + the last block up to b that lacks its local page */
        cache->missing[b] = !kv_node_has_local(kv_node(cache, path[b])) ? b + 1 : b > 0 ? cache->missing[b - 1] : 0;
#define WHOLE(end)                                                                                                     \
    (known == 0 || cache->missing[kv_blocks(end) < known ? kv_blocks(end) - 1 : known - 1] <= kv_claim_block(cache, (end), 0))
    if (prompt > 0 && prompt <= tokens && WHOLE(prompt))
        out->prompt = prompt;
    if (end_count > 0 && ends[0] <= tokens && WHOLE(ends[0]))
        out->first = ends[0];
    for (uint32_t e = 1; e < end_count && ends[e] <= tokens && tokens - ends[e] >= rewind; e++) { /* furthest first */
        const uint32_t bucket = snapshot_bucket(rewind, tokens - ends[e]);
        if (bucket < cache->config.snapshots_max && out->snapshots[bucket] == 0 && ends[e] != out->prompt && WHOLE(ends[e]))
            out->snapshots[bucket] = ends[e];
    }
#undef WHOLE
}

static uint32_t snapshot_count(const struct kv_points *points)
{
    uint32_t count = 0;
    for (uint32_t s = 0; s < KV_SNAPSHOTS_MAX; s++)
        count += points->snapshots[s] != 0;
    return count;
}

/* ---- lists of records ---- */

static void list_remove(struct kv_cache *cache, uint32_t at)
{
    struct kv_record *record = &cache->records[at];
    if (record->state == KV_RECORD_PINNED)
        return;
    struct kv_record_list *list = &cache->lists[record->state];
    if (record->newer != 0)
        cache->records[record->newer].older = record->older;
    else
        list->newest = record->older;
    if (record->older != 0)
        cache->records[record->older].newer = record->newer;
    else
        list->oldest = record->newer;
    list->count--;
}

static void list_add(struct kv_cache *cache, uint32_t at)
{
    struct kv_record *record = &cache->records[at];
    if (record->state == KV_RECORD_PINNED)
        return;
    struct kv_record_list *list = &cache->lists[record->state];
    record->newer = 0;
    record->older = list->newest;
    if (list->newest != 0)
        cache->records[list->newest].newer = at;
    else
        list->oldest = at;
    list->newest = at;
    list->count++;
}

static void set_state(struct kv_cache *cache, uint32_t at, enum kv_record_state state)
{
    list_remove(cache, at);
    cache->records[at].state = state;
    list_add(cache, at);
}

void kv_record_unpin(struct kv_cache *cache, uint32_t at)
{
    set_state(cache, at, cache->records[at].bare ? KV_RECORD_BARE : KV_RECORD_WHOLE);
}

void kv_record_touch(struct kv_cache *cache, uint32_t at)
{
    set_state(cache, at, cache->records[at].state);
}

/* ---- records ---- */

static uint32_t record_take(struct kv_cache *cache)
{
    while (cache->record_free == 0 && cache->record_touched == cache->record_capacity)
        if (!kv_evict_step(cache))
            return 0;
    uint32_t at = cache->record_free;
    if (at != 0)
        cache->record_free = cache->records[at].older;
    else
        at = ++cache->record_touched;
    cache->record_count++;
    return at;
}

void kv_record_drop(struct kv_cache *cache, uint32_t at)
{
    struct kv_record *record = &cache->records[at];
    const uint32_t end = record->node;
    const struct kv_points points = record->points;
    const uint32_t from = kv_record_claim_from(cache, record);
    assert(record->label == NULL);
    list_remove(cache, at);
    uint32_t *link = &kv_node(cache, end)->records;
    while (*link != at)
        link = &cache->records[*link].next;
    *link = record->next;
    cache->snapshots -= snapshot_count(&points);
    cache->record_count--;
    *record = (struct kv_record){.older = cache->record_free};
    cache->record_free = at;
    change_claims(cache, end, NULL, 0, &points, from);
    kv_node_release(cache, end);
}

void kv_record_evict(struct kv_cache *cache, uint32_t at)
{
    kv_label_lose(cache, cache->records[at].label);
    kv_record_drop(cache, at);
}

/* Drops the records of a node that end within the first `tokens` tokens of a path; not those of suspended sequences, nor what has a name:
 * its end is promised to somebody. */
static void absorb_ends(struct kv_cache *cache, uint32_t node, uint32_t tokens, uint32_t except)
{
    uint32_t next;
    for (uint32_t at = kv_node(cache, node)->records; at != 0; at = next) {
        next = cache->records[at].next;
        if (at != except && cache->records[at].tokens <= tokens && cache->records[at].state != KV_RECORD_PINNED &&
            cache->records[at].label == NULL)
            kv_record_drop(cache, at);
    }
}

static void absorb(struct kv_cache *cache, const uint32_t *path, uint32_t tokens, uint32_t record)
{
    for (uint32_t b = 0; b < kv_blocks(tokens); b++) {
        const struct kv_node *node = kv_node(cache, path[b]);
        const uint32_t part = tokens - b * KV_BLOCK < KV_BLOCK ? tokens - b * KV_BLOCK : KV_BLOCK;
        absorb_ends(cache, path[b], tokens, record);
        for (uint32_t n = 1; n <= part && n < KV_BLOCK && kv_node(cache, node->parent)->partial_count > 0; n++) {
            const uint32_t shorter = kv_tree_find(&cache->tree, node->parent, node->ids, n);
            if (shorter != 0 && shorter != path[b])
                absorb_ends(cache, shorter, tokens, record);
        }
    }
}

uint32_t kv_record_add(struct kv_cache *cache, const uint32_t *path, uint32_t tokens, const struct kv_points *points, bool pinned,
                       bool bare)
{
    const uint32_t at = record_take(cache);
    if (at == 0)
        return 0;
    struct kv_record *record = &cache->records[at];
    const uint32_t end = path[kv_blocks(tokens) - 1];
    bare |= !kv_has_group(cache, 1);
    *record = (struct kv_record){.node = end,
                                 .tokens = tokens,
                                 .state = pinned ? KV_RECORD_PINNED : bare ? KV_RECORD_BARE : KV_RECORD_WHOLE,
                                 .bare = bare,
                                 .next = kv_node(cache, end)->records,
                                 .points = *points};
    kv_node(cache, end)->records = at;
    list_add(cache, at);
    cache->snapshots += snapshot_count(points);
    change_claims(cache, end, points, kv_record_claim_from(cache, record), NULL, 0);
    absorb(cache, path, tokens, at);
    return at;
}

/* ---- the order of eviction ---- */

static void strip_snapshots(struct kv_cache *cache, uint32_t at)
{
    struct kv_record *record = &cache->records[at];
    const struct kv_points points = record->points;
    const uint32_t from = kv_record_claim_from(cache, record), count = snapshot_count(&points);
    for (uint32_t s = 0; s < KV_SNAPSHOTS_MAX; s++)
        record->points.snapshots[s] = 0;
    cache->snapshots -= count;
    cache->evicted_snapshots += count;
    set_state(cache, at, KV_RECORD_NO_SNAPSHOTS);
    if (count > 0)
        change_claims(cache, record->node, &record->points, from, &points, from);
}

static void strip_rewind(struct kv_cache *cache, uint32_t at)
{
    struct kv_record *record = &cache->records[at];
    const uint32_t from = kv_record_claim_from(cache, record);
    record->bare = true;
    set_state(cache, at, KV_RECORD_BARE);
    cache->evicted_rewinds++;
    change_claims(cache, record->node, &record->points, kv_record_claim_from(cache, record), &record->points, from);
}

bool kv_evict_step(struct kv_cache *cache)
{
    const struct kv_record_list *lists = cache->lists;
    const uint64_t whole = lists[KV_RECORD_WHOLE].count, rewind = whole + lists[KV_RECORD_NO_SNAPSHOTS].count;
    const uint64_t all = rewind + lists[KV_RECORD_BARE].count;
    if (all == 0)
        return false;
    if (whole > all / 2) {
        strip_snapshots(cache, lists[KV_RECORD_WHOLE].oldest);
    } else if (rewind > all / 2) {
        strip_rewind(cache, lists[KV_RECORD_NO_SNAPSHOTS].oldest);
    } else {
        kv_record_evict(cache, lists[KV_RECORD_BARE].oldest);
        cache->evicted_leaves++;
    }
    return true;
}
