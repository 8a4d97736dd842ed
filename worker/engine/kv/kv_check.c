/* kv_check.c - counts everything again from what refers to what, and compares. Slow on purpose: it trusts no counter. */
#include <stdlib.h>
#include <string.h>
#include "worker/engine/kv/kv_state.h"

#define BROKEN(number, what) STATUS_FAIL(STATUS_INTERNAL, "KV cache invariant %d is broken: %s", (number), (what))

struct tally { /* of one node */
    uint32_t uses, pins, claims, records, resident_children;
    bool candidate;
};

static enum status tally_sequence(const struct kv_cache *cache, const struct kv_sequence *sequence, struct tally *tallies)
{
    const bool local = kv_has_group(cache, 1);
    if (sequence->suspended)
        return sequence->node_count == 0 && sequence->block_count == 0 ? STATUS_OK : BROKEN(2, "a suspended sequence has pages");
    if (sequence->node_count != sequence->tokens / KV_BLOCK || sequence->block_count < kv_blocks(sequence->tokens) ||
        sequence->block_count > cache->blocks_max)
        return BROKEN(2, "the blocks of a sequence");
    for (uint32_t b = 0; b < sequence->node_count; b++) {
        const struct kv_node *node = kv_node(cache, sequence->nodes[b]);
        struct tally *tally = &tallies[sequence->nodes[b]];
        const bool pin = local && (b >= sequence->pin_from || b < cache->sink_blocks);
        if (node->block != b || node->count != KV_BLOCK || !node->resident ||
            memcmp(node->ids, sequence->ids + b * KV_BLOCK, sizeof node->ids) != 0 ||
            (b > 0 && node->parent != sequence->nodes[b - 1]))
            return BROKEN(4, "a sequence's nodes are not its tokens");
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
            const bool needed = kv_has_group(cache, g) && (g == 0 || pin);
            if (!needed && kv_has_group(cache, g) && sequence->table[g][b] != NULL)
                return BROKEN(6, "a table names a page behind the window");
            if (needed && (node->page[DEVICE][g] == 0 || (node->leaving >> g & 1) != 0 ||
                           sequence->table[g][b] != kv_arena_address(&cache->arenas[DEVICE], node->page[DEVICE][g])))
                return BROKEN(6, "a page that an open sequence needs is not where it looks");
        }
        tally->uses++;
        tally->pins += pin;
        tally->claims += local ? kv_claims_of(cache, &sequence->points, sequence->claim_from, b) : 0;
    }
    if (sequence->source != 0) {
        tallies[sequence->source].uses++;
        tallies[sequence->source].pins += local;
    }
    for (uint32_t b = sequence->node_count; b < sequence->block_count; b++)
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
            if (kv_has_group(cache, g) &&
                (cache->arenas[DEVICE].owners[sequence->tails[g][b] - 1] != (KV_OWNER_TAIL | sequence->slot) ||
                 sequence->table[g][b] != kv_arena_address(&cache->arenas[DEVICE], sequence->tails[g][b])))
                return BROKEN(2, "a tail page is not its sequence's");
    return STATUS_OK;
}

/* 5: what a sequence alone keeps in the device tier of group 1. */
static enum status check_bound(const struct kv_cache *cache, const struct kv_sequence *sequence)
{
    if (sequence->suspended || !kv_has_group(cache, 1))
        return STATUS_OK;
    const uint64_t span = (uint64_t)cache->config.groups[1].window + cache->config.rewind_tokens + cache->config.chunk_tokens_max;
    uint64_t bound = span / KV_BLOCK + 2 + cache->sink_blocks, claimed = sequence->block_count - sequence->node_count;
    bound += (uint64_t)(2 + cache->config.snapshots_max) * (kv_blocks(cache->config.groups[1].window) + 1);
    for (uint32_t b = 0; b < sequence->node_count; b++)
        claimed += kv_claims_of(cache, &sequence->points, sequence->claim_from, b) > 0;
    return claimed <= bound ? STATUS_OK : BROKEN(5, "an open sequence keeps too many local pages");
}

static enum status check_record_lists(const struct kv_cache *cache, uint64_t *listed)
{
    for (uint32_t l = 0; l < KV_RECORD_LISTS; l++) {
        uint64_t here = 0;
        for (uint32_t r = cache->lists[l].oldest; r != 0 && here <= cache->record_count; r = cache->records[r].newer, here++)
            if (cache->records[r].state != l)
                return BROKEN(2, "a record is in a wrong list");
        if (here != cache->lists[l].count)
            return BROKEN(2, "a list of records");
        *listed += here;
    }
    return STATUS_OK;
}

static enum status check_label(const struct kv_cache *cache, uint32_t record)
{
    const struct kv_label *label = cache->records[record].label;
    const struct kv_node *node = kv_node(cache, cache->records[record].node);
    if (label->record != record || recent_peek(cache->labels, recent_key(cache->labels, label)) != label)
        return BROKEN(7, "a label that nobody knows");
    if (label->host != (node->page[DEVICE][0] == 0 && node->page[DEVICE][1] == 0))
        return BROKEN(7, "a label says another tier");
    return STATUS_OK;
}

static enum status tally_records(const struct kv_cache *cache, struct tally *tallies)
{
    uint64_t listed = 0, pinned = 0, snapshots = 0, labels = 0;
    for (uint32_t r = 1; r <= cache->record_touched; r++) {
        const struct kv_record *record = &cache->records[r];
        if (record->node == 0)
            continue;
        const uint32_t from = kv_record_claim_from(cache, record);
        tallies[record->node].records++;
        pinned += record->state == KV_RECORD_PINNED;
        if (kv_blocks(record->tokens) != kv_node(cache, record->node)->block + 1 ||
            record->tokens > kv_node(cache, record->node)->block * KV_BLOCK + kv_node(cache, record->node)->count)
            return BROKEN(4, "a record ends outside its node");
        if (record->label != NULL)
            TRY(check_label(cache, r));
        labels += record->label != NULL;
        for (uint32_t s = 0; s < KV_SNAPSHOTS_MAX; s++)
            snapshots += record->points.snapshots[s] != 0;
        for (uint32_t at = record->node; kv_has_group(cache, 1) && kv_node(cache, at)->parent != 0; at = kv_node(cache, at)->parent)
            tallies[at].claims += kv_claims_of(cache, &record->points, from, kv_node(cache, at)->block);
    }
    TRY(check_record_lists(cache, &listed));
    if (listed + pinned != cache->record_count || snapshots != cache->snapshots)
        return BROKEN(2, "the number of records");
    if (labels != recent_count(cache->labels))
        return BROKEN(7, "a label without a path");
    return STATUS_OK;
}

static enum status check_node_pages(const struct kv_cache *cache, uint32_t at, uint32_t pages[BACKEND_TIERS][BACKEND_GROUPS_MAX],
                                    uint32_t held[BACKEND_GROUPS_MAX], uint32_t soon[BACKEND_GROUPS_MAX])
{
    const struct kv_node *node = kv_node(cache, at);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        const bool copied = ((node->copy_in | node->copy_out) >> g & 1) != 0, leaves = (node->leaving >> g & 1) != 0;
        if (leaves && (node->copy_out >> g & 1) == 0)
            return BROKEN(2, "a page leaves without a copy");
        if ((node->page[DEVICE][g] != 0 && node->page[HOST][g] != 0) != copied)
            return BROKEN(2, "a page is on both tiers without a copy, or not with one");
        if (g == 0 && kv_has_group(cache, 0) && node->page[DEVICE][0] == 0 && node->page[HOST][0] == 0)
            return BROKEN(2, "a node has lost its page of group 0");
        for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++) {
            const uint32_t page = node->page[tier][g];
            if (page == 0)
                continue;
            if (cache->arenas[tier].owners[page - 1] != at || kv_arena_group(&cache->arenas[tier], page) != g)
                return BROKEN(2, "a page is not its node's");
            pages[tier][g]++;
        }
        held[g] += node->page[DEVICE][g] != 0 && (g == 0 ? node->uses : node->pins) > 0;
        soon[g] += leaves;
    }
    return STATUS_OK;
}

static enum status check_node(const struct kv_cache *cache, uint32_t at, const struct tally *tally)
{
    const struct kv_node *node = kv_node(cache, at);
    if (node->uses != tally->uses || node->pins != tally->pins || node->claims != tally->claims)
        return BROKEN(2, "uses, pins or claims of a node");
    if (kv_node_has_local(node) && node->claims == 0 && node->pins == 0)
        return BROKEN(2, "a local page that nobody claims");
    if (node->child_count == 0 && tally->records == 0 && node->uses == 0)
        return BROKEN(2, "a node that nobody needs");
    if (node->resident_children != tally->resident_children)
        return BROKEN(2, "resident children");
    if (node->resident && kv_node(cache, node->parent)->parent != 0 && !kv_node(cache, node->parent)->resident)
        return BROKEN(2, "a resident node below one that is not");
    if (node->resident && kv_has_group(cache, 0) && (node->page[DEVICE][0] == 0 || (node->leaving & 1) != 0))
        return BROKEN(2, "a resident node without its page");
    const uint32_t there = (node->page[DEVICE][0] != 0 ? 1u : 0) | (node->page[DEVICE][1] != 0 ? 2u : 0);
    if (!node->resident && (there & ~(uint32_t)node->leaving) != 0)
        return BROKEN(2, "a page stays behind on the device");
    const bool may_leave = node->resident && node->uses == 0 && node->resident_children == 0 && node->copy_in == 0;
    if (node->candidate != may_leave || tally->candidate != may_leave)
        return BROKEN(2, "a candidate to leave the device");
    return STATUS_OK;
}

static enum status tally_nodes(const struct kv_cache *cache, struct tally *tallies, uint32_t pages[BACKEND_TIERS][BACKEND_GROUPS_MAX],
                               uint32_t held[BACKEND_GROUPS_MAX], uint32_t soon[BACKEND_GROUPS_MAX])
{
    const struct kv_tree *tree = &cache->tree;
    uint64_t candidates = 0;
    for (uint64_t b = 0; b <= tree->bucket_mask; b++)
        for (uint32_t at = tree->buckets[b]; at != 0; at = tree->nodes[at].hash_next)
            if (tree->nodes[at].parent != 0)
                tallies[tree->nodes[at].parent].resident_children += tree->nodes[at].resident;
    for (uint32_t at = cache->candidate_oldest; at != 0; at = kv_node(cache, at)->newer) {
        if (++candidates > tree->node_count || tallies[at].candidate)
            return BROKEN(2, "the list of candidates");
        tallies[at].candidate = true;
    }
    for (uint64_t b = 0; b <= tree->bucket_mask; b++)
        for (uint32_t at = tree->buckets[b]; at != 0; at = tree->nodes[at].hash_next)
            if (tree->nodes[at].parent != 0) {
                TRY(check_node_pages(cache, at, pages, held, soon));
                TRY(check_node(cache, at, &tallies[at]));
            } else if (tree->nodes[at].child_count == 0) {
                return BROKEN(2, "a root without nodes");
            }
    return STATUS_OK;
}

/* Copies whose node went: both their pages, the device one among those that come free. */
static enum status tally_transfers(const struct kv_cache *cache, uint32_t pages[BACKEND_TIERS][BACKEND_GROUPS_MAX],
                                   uint32_t soon[BACKEND_GROUPS_MAX])
{
    for (uint32_t t = 0; t < cache->transfer_count; t++) {
        const struct kv_transfer *transfer = &cache->transfers[(cache->transfer_first + t) % cache->transfer_capacity];
        const uint32_t owner = cache->arenas[transfer->out ? DEVICE : HOST].owners[transfer->from - 1];
        if (owner == KV_OWNER_ORPHAN) {
            pages[DEVICE][transfer->group]++;
            pages[HOST][transfer->group]++;
            soon[transfer->group]++;
        } else if (((transfer->out ? kv_node(cache, owner)->copy_out : kv_node(cache, owner)->copy_in) >> transfer->group & 1) == 0) {
            return BROKEN(2, "a copy that its node does not know");
        }
    }
    return STATUS_OK;
}

/* Pages of tails, and what the host has promised. */
static enum status tally_tails(const struct kv_cache *cache, uint32_t pages[BACKEND_TIERS][BACKEND_GROUPS_MAX],
                               uint32_t held[BACKEND_GROUPS_MAX])
{
    uint64_t host[BACKEND_GROUPS_MAX] = {0};
    uint32_t open = 0, suspended = 0;
    for (uint32_t s = 0; s < cache->config.open_max; s++) {
        const struct kv_sequence *sequence = cache->sequences[s];
        if (sequence == NULL)
            continue;
        open += !sequence->suspended;
        suspended += sequence->suspended;
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
            const uint32_t tails = kv_has_group(cache, g) ? sequence->block_count - sequence->node_count : 0;
            pages[DEVICE][g] += tails;
            held[g] += tails;
            host[g] += sequence->host_pages[g];
        }
    }
    if (open != cache->open_count || suspended != cache->suspended_count)
        return BROKEN(2, "the number of sequences");
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        if (host[g] != cache->host_held[g])
            return BROKEN(1, "pages promised on the host");
    if (kv_arena_extents(&cache->arenas[HOST].layout, host) > cache->arenas[HOST].extent_count)
        return BROKEN(1, "more of the host is promised than there is");
    return STATUS_OK;
}

static enum status check_totals(const struct kv_cache *cache, const uint32_t pages[BACKEND_TIERS][BACKEND_GROUPS_MAX],
                                const uint32_t held[BACKEND_GROUPS_MAX], const uint32_t soon[BACKEND_GROUPS_MAX])
{
    struct kv_cache_counts counts;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++)
            if (pages[tier][g] != cache->arenas[tier].used[g])
                return BROKEN(2, "a page without an owner, or with two");
        if (held[g] != cache->held[g] || soon[g] != cache->soon[g])
            return BROKEN(1, "pages held, or leaving");
    }
    kv_cache_counts(cache, &counts);
    for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++) {
        const struct kv_tier_counts *of = &counts.tiers[tier];
        if (of->free + of->cached + of->in_use + of->in_copy != of->total || of->free > of->total || of->cached > of->total ||
            of->in_use > of->total)
            return BROKEN(1, "the bytes of a tier do not add up");
    }
    return STATUS_OK;
}

enum status kv_cache_check(const struct kv_cache *cache)
{
    uint32_t pages[BACKEND_TIERS][BACKEND_GROUPS_MAX] = {{0}}, held[BACKEND_GROUPS_MAX] = {0}, soon[BACKEND_GROUPS_MAX] = {0};
    enum status st;
    struct tally *tallies = calloc((size_t)cache->tree.touched + 1, sizeof *tallies);
    if (tallies == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to check %u nodes", cache->tree.touched);
    for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++)
        TRY_GOTO(kv_arena_check(&cache->arenas[tier]), st, done);
    TRY_GOTO(kv_tree_check(&cache->tree), st, done);
    for (uint32_t s = 0; s < cache->config.open_max; s++)
        if (cache->sequences[s] != NULL) {
            TRY_GOTO(tally_sequence(cache, cache->sequences[s], tallies), st, done);
            TRY_GOTO(check_bound(cache, cache->sequences[s]), st, done);
        }
    TRY_GOTO(tally_records(cache, tallies), st, done);
    TRY_GOTO(tally_nodes(cache, tallies, pages, held, soon), st, done);
    TRY_GOTO(tally_transfers(cache, pages, soon), st, done);
    TRY_GOTO(tally_tails(cache, pages, held), st, done);
    TRY_GOTO(check_totals(cache, pages, held, soon), st, done);
    if (kv_has_group(cache, 0) && cache->tree.node_count > (uint64_t)cache->arenas[DEVICE].used[0] + cache->arenas[HOST].used[0])
        st = BROKEN(8, "more nodes than pages");
done:
    free(tallies);
    return st;
}
