/* kv_sequence.c - open sequences: from a match to a kept path.
 *
 *                       copies landed             reserve, append
 *     open ---> coming ---------------> ready ---------------------> ready ---keep---> a record in the tree
 *                 ^   \_ computes _______/| suspend                    \-----drop---> nothing but what others have
 *                 \------- resume ------- suspended (a record too: pinned where the host has room for it)
 *
 * A suspended sequence is a kept path whose ids are remembered: its nodes leave for the host like any others, at once, and resuming it
 * is a match of those ids. So there is one way in, one way out, and nothing to lose but time. */
#include <stdlib.h>
#include <string.h>
#include "worker/engine/kv/kv_state.h"

struct match {
    uint32_t tokens; /* blocks of cache->path, then of source */
    uint32_t source; /* node whose first tokens % 64 tokens go on; 0: tokens is a multiple of 64 */
};

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static bool pinned(const struct kv_sequence *sequence, uint32_t block)
{
    return kv_has_group(sequence->cache, 1) && (block >= sequence->pin_from || block < sequence->cache->sink_blocks);
}

/* ---- matching ---- */

/* The block before which a match has to end because going on at `tokens` needs a local page that is missing; UINT32_MAX: none. */
static uint32_t hole(const struct kv_cache *cache, uint32_t tokens)
{
    const uint32_t blocks = tokens / KV_BLOCK;
    if (!kv_has_group(cache, 1) || tokens == 0)
        return UINT32_MAX;
    for (uint32_t b = 0; b < least(blocks, cache->sink_blocks); b++)
        if (!kv_node(cache, cache->path[b])->live)
            return b;
    const uint32_t from = kv_window_block(cache, tokens, 0);
    for (uint32_t b = blocks; b-- > from;)
        if (!kv_node(cache, cache->path[b])->live)
            return b;
    return UINT32_MAX;
}

/* The longest beginning of ids, at most `limit` tokens, that can be resumed. */
static struct match find_match(const struct kv_cache *cache, const uint8_t *root_name, const uint32_t *ids, uint32_t limit)
{
    const uint32_t root = kv_tree_root(&cache->tree, root_name);
    struct match match = {0};
    if (root == 0)
        return match;
    uint32_t blocks = kv_tree_walk(&cache->tree, root, ids, limit, cache->path), at;
    do {
        const uint32_t parent = blocks > 0 ? cache->path[blocks - 1] : root, done = blocks * KV_BLOCK;
        uint32_t same;
        match.source = kv_tree_best(&cache->tree, parent, ids + done, least(limit - done, KV_BLOCK), &same);
        match.tokens = done + same;
        at = hole(cache, match.tokens);
        if (at != UINT32_MAX)
            blocks = at;
    } while (at != UINT32_MAX);
    return match;
}

static enum status check_prompt(const struct kv_cache *cache, const struct kv_prompt *prompt)
{
    if (prompt->count == 0 || prompt->count > cache->config.sequence_tokens_max)
        return STATUS_FAIL(STATUS_INVALID, "a prompt has 1 to %u tokens, not %u", cache->config.sequence_tokens_max, prompt->count);
    for (uint32_t e = 0; prompt->ends != NULL && e < prompt->end_count; e++)
        if (prompt->ends[e] == 0 || prompt->ends[e] > prompt->count || (e > 0 && prompt->ends[e] <= prompt->ends[e - 1]))
            return STATUS_FAIL(STATUS_INVALID, "message ends must ascend within the prompt's %u tokens", prompt->count);
    return STATUS_OK;
}

uint32_t kv_cache_match(const struct kv_cache *cache, const struct kv_prompt *prompt)
{
    return check_prompt(cache, prompt) == STATUS_OK ? find_match(cache, prompt->root, prompt->ids, prompt->count - 1).tokens : 0;
}

void kv_cache_let_go(struct kv_cache *cache, const struct kv_prompt *prompt)
{
    if (check_prompt(cache, prompt) != STATUS_OK)
        return;
    const struct match match = find_match(cache, prompt->root, prompt->ids, prompt->count);
    const uint32_t end = match.source != 0 ? match.source : match.tokens > 0 ? cache->path[match.tokens / KV_BLOCK - 1] : 0;
    uint32_t next;
    for (uint32_t at = end != 0 ? kv_node(cache, end)->records : 0; at != 0; at = next) {
        next = cache->records[at].next;
        if (cache->records[at].tokens > match.tokens || cache->records[at].state == KV_RECORD_PINNED)
            continue;
        kv_label_lose(cache, cache->records[at].label);
        kv_record_drop(cache, at);
    }
}

/* ---- life of the object ---- */

static void sequence_free(struct kv_sequence *sequence)
{
    if (sequence == NULL)
        return;
    free(sequence->ids);
    free(sequence->ends);
    free(sequence->nodes);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        free(sequence->tails[g]);
        free(sequence->table[g]);
    }
    free(sequence);
}

static enum status sequence_create(struct kv_cache *cache, const uint8_t *root, struct kv_sequence **out)
{
    uint32_t slot = 0;
    while (slot < cache->config.open_max && cache->sequences[slot] != NULL)
        slot++;
    if (slot == cache->config.open_max)
        return STATUS_FAIL(STATUS_LIMIT, "%u sequences are open already", cache->config.open_max);
    struct kv_sequence *sequence = calloc(1, sizeof *sequence);
    if (sequence == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a sequence");
    sequence->cache = cache;
    sequence->slot = slot;
    memcpy(sequence->root, root, sizeof sequence->root);
    sequence->ids = calloc(cache->config.sequence_tokens_max, sizeof *sequence->ids);
    sequence->nodes = calloc(cache->blocks_max, sizeof *sequence->nodes);
    bool whole = sequence->ids != NULL && sequence->nodes != NULL;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        if (!kv_has_group(cache, g))
            continue;
        sequence->tails[g] = calloc(cache->blocks_max, sizeof *sequence->tails[g]);
        sequence->table[g] = calloc(cache->blocks_max, sizeof *sequence->table[g]);
        whole = whole && sequence->tails[g] != NULL && sequence->table[g] != NULL;
    }
    if (!whole) {
        sequence_free(sequence);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a sequence of %u tokens", cache->config.sequence_tokens_max);
    }
    *out = sequence;
    return STATUS_OK;
}

static void sequence_link(struct kv_sequence *sequence)
{
    sequence->cache->sequences[sequence->slot] = sequence;
    sequence->cache->open_count++;
}

static void sequence_end(struct kv_cache *cache, struct kv_sequence **pointer)
{
    struct kv_sequence *sequence = *pointer;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        cache->host_held[g] -= sequence->host_pages[g];
    if (sequence->suspended)
        cache->suspended_count--;
    else
        cache->open_count--;
    cache->sequences[sequence->slot] = NULL;
    sequence_free(sequence);
    *pointer = NULL;
}

/* ---- tables ---- */

static void table_set_node(struct kv_sequence *sequence, uint32_t block)
{
    const struct kv_cache *cache = sequence->cache;
    const struct kv_node *node = kv_node(cache, sequence->nodes[block]);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        if (kv_has_group(cache, g))
            sequence->table[g][block] =
                g == 0 || pinned(sequence, block) ? kv_arena_address(&cache->arenas[DEVICE], node->page[DEVICE][g]) : NULL;
}

static void tail_add(struct kv_sequence *sequence)
{
    struct kv_cache *cache = sequence->cache;
    const uint32_t block = sequence->block_count++;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        if (kv_has_group(cache, g))
            sequence->tails[g][block] = 0; /* a page taken for the other group may move pages: none of ours is there yet */
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        if (kv_has_group(cache, g)) {
            const uint32_t page = kv_page_tail(cache, sequence, g);
            sequence->tails[g][block] = page;
            sequence->table[g][block] = kv_arena_address(&cache->arenas[DEVICE], page);
        }
}

static void tails_give(struct kv_sequence *sequence)
{
    for (; sequence->block_count > sequence->node_count; sequence->block_count--)
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
            if (kv_has_group(sequence->cache, g))
                kv_page_tail_give(sequence->cache, g, sequence->tails[g][sequence->block_count - 1]);
}

void kv_sequence_moved(struct kv_cache *cache, uint32_t group, uint32_t owner, uint32_t from, uint32_t to)
{
    void *address = kv_arena_address(&cache->arenas[DEVICE], to);
    if ((owner & KV_OWNER_TAIL) != 0) {
        struct kv_sequence *sequence = cache->sequences[owner & ~KV_OWNER_TAIL];
        uint32_t b = sequence->node_count;
        while (sequence->tails[group][b] != from)
            b++;
        assert(b < sequence->block_count);
        sequence->tails[group][b] = to;
        sequence->table[group][b] = address;
        return;
    }
    const uint32_t block = kv_node(cache, owner)->block;
    for (uint32_t s = 0; s < cache->config.open_max; s++) {
        struct kv_sequence *sequence = cache->sequences[s];
        if (sequence != NULL && block < sequence->node_count && sequence->nodes[block] == owner &&
            sequence->table[group][block] != NULL)
            sequence->table[group][block] = address;
    }
}

/* ---- coming in ---- */

static void use(struct kv_cache *cache, uint32_t node, bool pin, int change)
{
    if (pin)
        kv_node_pin(cache, node, change);
    kv_node_use(cache, node, change);
    if (change > 0 && (kv_node(cache, node)->page[DEVICE][0] != 0 || !kv_has_group(cache, 0)))
        kv_node_stay(cache, node);
}

static void count_missing(const struct kv_cache *cache, uint32_t node, bool pin, uint32_t want[BACKEND_GROUPS_MAX])
{
    want[0] += kv_has_group(cache, 0) && kv_node(cache, node)->page[DEVICE][0] == 0;
    want[1] += pin && kv_node(cache, node)->page[DEVICE][1] == 0;
}

static bool bring(struct kv_cache *cache, uint32_t node, bool pin)
{
    kv_node_stay(cache, node);
    if (kv_has_group(cache, 0))
        kv_node_fetch(cache, node, 0);
    if (pin)
        kv_node_fetch(cache, node, 1);
    return (kv_node(cache, node)->copy_in & (1u | (pin ? 2u : 0))) != 0;
}

static void claim_all(struct kv_sequence *sequence, bool more)
{
    struct kv_cache *cache = sequence->cache;
    for (uint32_t b = sequence->node_count; kv_has_group(cache, 1) && b-- > 0;) {
        const uint32_t claims = kv_claims_of(cache, &sequence->points, sequence->claim_from, b);
        kv_node_claim(cache, sequence->nodes[b], more ? claims : 0, more ? 0 : claims);
    }
}

static void set_windows(struct kv_sequence *sequence)
{
    const struct kv_cache *cache = sequence->cache;
    const uint32_t tokens = sequence->tokens;
    sequence->pin_from = kv_window_block(cache, tokens, 0);
    sequence->claim_from = sequence->trimmed || tokens == 0 ? sequence->pin_from
                                                            : kv_claim_block(cache, tokens, cache->config.rewind_tokens);
}

/* The prefix of the source's pages, once they are here. */
static void settle(struct kv_sequence *sequence)
{
    struct kv_cache *cache = sequence->cache;
    if (sequence->source == 0 || sequence->ticket > cache->ticket_landed)
        return;
    const struct kv_node *node = kv_node(cache, sequence->source);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        if (kv_has_group(cache, g) && !sequence->prefixed)
            cache->config.ops->page_copy_prefix(cache->config.backend, g, sequence->table[g][sequence->node_count],
                                                kv_arena_address(&cache->arenas[DEVICE], node->page[DEVICE][g]),
                                                sequence->tokens % KV_BLOCK);
    const uint32_t source = sequence->source;
    sequence->source = 0;
    sequence->prefixed = false;
    use(cache, source, kv_has_group(cache, 1), -1);
    kv_node_release(cache, source);
}

static void arrive(struct kv_sequence *sequence)
{
    if (sequence->ticket > sequence->cache->ticket_landed)
        kv_pages_land_until(sequence->cache, sequence->ticket);
    settle(sequence);
}

/* Before its own pages change hands: a load may still write into the first. */
static void finish_load(struct kv_sequence *sequence)
{
    if (sequence->prefixed)
        arrive(sequence);
}

/* The prefix of the source's pages goes with the load of the others, if there is one. */
static void load_prefix(struct kv_sequence *sequence)
{
    struct kv_cache *cache = sequence->cache;
    sequence->prefixed = sequence->source != 0 && kv_load_any(cache);
    for (uint32_t g = 0; sequence->prefixed && g < BACKEND_GROUPS_MAX; g++)
        if (kv_has_group(cache, g))
            kv_load_prefix(cache, sequence->source, g, sequence->table[g][sequence->node_count], sequence->tokens % KV_BLOCK);
}

static void release_nodes(struct kv_sequence *sequence, uint32_t count)
{
    struct kv_cache *cache = sequence->cache;
    for (uint32_t b = count; b-- > 0;) {
        use(cache, sequence->nodes[b], pinned(sequence, b), -1);
        kv_node_release(cache, sequence->nodes[b]);
    }
}

static void release_source(struct kv_sequence *sequence)
{
    if (sequence->source == 0)
        return;
    use(sequence->cache, sequence->source, kv_has_group(sequence->cache, 1), -1);
    kv_node_release(sequence->cache, sequence->source);
    sequence->source = 0;
}

static void release_all(struct kv_sequence *sequence, uint32_t end)
{
    struct kv_cache *cache = sequence->cache;
    if (end != 0) {
        use(cache, end, kv_has_group(cache, 1), -1);
        kv_node_release(cache, end);
    }
    claim_all(sequence, false);
    release_nodes(sequence, sequence->node_count);
    sequence->node_count = sequence->block_count = 0;
    sequence->source = 0;
}

/* A node can still be on its way to the host when its parent has arrived there: the parent's copy may be an older one, of a demotion that
 * was called off. Such a node arrives first, so that none stays on the device below one that is away. */
static void let_arrive(struct kv_cache *cache, uint32_t blocks, uint32_t source)
{
    bool away = false;
    for (uint32_t b = 0; kv_has_group(cache, 0) && b < blocks + (source != 0); b++) {
        const bool here = kv_node(cache, b < blocks ? cache->path[b] : source)->page[DEVICE][0] != 0;
        if (away && here) {
            kv_pages_land_all(cache);
            return;
        }
        away |= !here;
    }
}

/* Takes over what was matched; a block of its own begins where tokens end inside one. STATUS_AGAIN: nothing has changed. */
static enum status attach(struct kv_sequence *sequence, struct match match)
{
    struct kv_cache *cache = sequence->cache;
    const uint32_t blocks = match.tokens / KV_BLOCK;
    const bool local = kv_has_group(cache, 1);
    uint32_t want[BACKEND_GROUPS_MAX] = {0};
    let_arrive(cache, blocks, match.source);
    memcpy(sequence->nodes, cache->path, blocks * sizeof *sequence->nodes);
    sequence->node_count = sequence->block_count = blocks;
    sequence->tokens = match.tokens;
    sequence->source = match.source;
    sequence->by_layers = sequence->prefixed = sequence->trimmed = false;
    set_windows(sequence);
    /* As if it were R longer already: what is computed on the way has to be in the same bucket when the path is kept. */
    kv_points_choose(cache, sequence->nodes, blocks, sequence->prompt_tokens + cache->config.rewind_tokens, sequence->ends,
                     sequence->end_count, sequence->prompt_tokens, &sequence->points);
    for (uint32_t b = 0; b < blocks; b++) {
        use(cache, sequence->nodes[b], pinned(sequence, b), 1);
        count_missing(cache, sequence->nodes[b], pinned(sequence, b), want);
        for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
            if (kv_has_group(cache, g))
                sequence->table[g][b] = NULL;
    }
    claim_all(sequence, true);
    if (match.source != 0) {
        use(cache, match.source, local, 1);
        count_missing(cache, match.source, local, want);
    }
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        want[g] += kv_has_group(cache, g) && match.tokens % KV_BLOCK != 0;
    const enum status st = kv_pages_make_room(cache, want);
    if (st != STATUS_OK) {
        release_source(sequence);
        release_all(sequence, 0);
        return st;
    }
    bool coming = false;
    kv_load_begin(cache);
    for (uint32_t b = 0; b < blocks; b++) {
        coming |= bring(cache, sequence->nodes[b], pinned(sequence, b));
        if (b > 0)
            kv_node(cache, sequence->nodes[b - 1])->recent = sequence->nodes[b];
    }
    if (match.source != 0)
        coming |= bring(cache, match.source, local);
    for (uint32_t b = 0; b < blocks; b++)
        table_set_node(sequence, b);
    if (match.tokens % KV_BLOCK != 0)
        tail_add(sequence);
    load_prefix(sequence);
    sequence->by_layers = kv_load_any(cache);
    kv_load_end(cache);
    sequence->ticket = coming ? cache->ticket_last : 0;
    const uint32_t end = match.source != 0 ? match.source : blocks > 0 ? sequence->nodes[blocks - 1] : 0;
    for (uint32_t at = end != 0 ? kv_node(cache, end)->records : 0; at != 0; at = cache->records[at].next)
        kv_record_touch(cache, at);
    settle(sequence);
    return STATUS_OK;
}

/* Takes over the longest match of ids. Where both tiers are so full that the matched pages cannot leave the host before others, which
 * wait for their place there, leave the device: those that nobody else keeps went with the attempt, and a shorter match remains. */
static enum status attach_longest(struct kv_sequence *sequence, const uint32_t *ids, uint32_t limit)
{
    struct match match = find_match(sequence->cache, sequence->root, ids, limit);
    enum status st = attach(sequence, match);
    while (st == STATUS_INTERNAL && match.tokens > 0) {
        const uint32_t tokens = match.tokens;
        match = find_match(sequence->cache, sequence->root, ids, tokens - 1);
        st = attach(sequence, match);
    }
    return st;
}

/* Host pages for the whole of it, should it be preempted; a number only, the space is taken when it is needed. */
static void reserve_host(struct kv_sequence *sequence)
{
    struct kv_cache *cache = sequence->cache;
    const struct kv_arena *arena = &cache->arenas[HOST];
    const uint64_t tokens = (uint64_t)sequence->prompt_tokens + cache->config.chunk_tokens_max;
    const uint32_t most = cache->config.sequence_tokens_max, count = tokens < most ? (uint32_t)tokens : most;
    uint32_t want[BACKEND_GROUPS_MAX] = {kv_has_group(cache, 0) ? kv_blocks(count) : 0, 0};
    const uint32_t from = kv_claim_block(cache, sequence->prompt_tokens, cache->config.rewind_tokens);
    for (uint32_t b = 0; kv_has_group(cache, 1) && b < kv_blocks(count); b++)
        want[1] += kv_claims_of(cache, &sequence->points, from, b) > 0;
    const uint64_t all[BACKEND_GROUPS_MAX] = {(uint64_t)cache->host_held[0] + want[0], (uint64_t)cache->host_held[1] + want[1]};
    if (kv_arena_extents(&arena->layout, all) > arena->extent_count)
        return;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        sequence->host_pages[g] = want[g];
        cache->host_held[g] += want[g];
    }
}

enum status kv_cache_open(struct kv_cache *cache, const struct kv_prompt *prompt, struct kv_sequence **out)
{
    struct kv_sequence *sequence = NULL;
    enum status st;
    TRY(check_prompt(cache, prompt));
    TRY(sequence_create(cache, prompt->root, &sequence));
    sequence->prompt_tokens = prompt->count;
    if (prompt->ends != NULL && prompt->end_count > 0) {
        sequence->ends = malloc(prompt->end_count * sizeof *sequence->ends);
        if (sequence->ends == NULL) {
            st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u message ends", prompt->end_count);
            goto fail;
        }
        sequence->end_count = prompt->end_count;
        memcpy(sequence->ends, prompt->ends, prompt->end_count * sizeof *sequence->ends);
    }
    sequence_link(sequence);
    TRY_GOTO(attach_longest(sequence, prompt->ids, prompt->count - 1), st, unlink);
    sequence->matched = sequence->tokens;
    memcpy(sequence->ids, prompt->ids, sequence->tokens * sizeof *sequence->ids);
    reserve_host(sequence);
    *out = sequence;
    return STATUS_OK;
unlink:
    sequence_end(cache, &sequence);
    return st;
fail:
    sequence_free(sequence);
    return st;
}

enum status kv_cache_branch(struct kv_cache *cache, const struct kv_sequence *sequence, struct kv_sequence **out)
{
    struct kv_sequence *twin = NULL;
    enum status st;
    if (!kv_sequence_ready(sequence))
        return STATUS_FAIL(STATUS_AGAIN, "a sequence that is not ready cannot branch");
    TRY(sequence_create(cache, sequence->root, &twin));
    if (sequence->end_count > 0) {
        twin->ends = malloc(sequence->end_count * sizeof *twin->ends);
        if (twin->ends == NULL) {
            sequence_free(twin);
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u message ends", sequence->end_count);
        }
        memcpy(twin->ends, sequence->ends, sequence->end_count * sizeof *twin->ends);
    }
    twin->end_count = sequence->end_count;
    twin->prompt_tokens = sequence->prompt_tokens;
    memcpy(twin->ids, sequence->ids, sequence->tokens * sizeof *twin->ids);
    memcpy(cache->path, sequence->nodes, sequence->node_count * sizeof *cache->path);
    sequence_link(twin);
    TRY_GOTO(attach(twin, (struct match){.tokens = sequence->tokens}), st, fail);
    for (uint32_t g = 0; sequence->tokens % KV_BLOCK != 0 && g < BACKEND_GROUPS_MAX; g++)
        if (kv_has_group(cache, g))
            cache->config.ops->page_copy_prefix(cache->config.backend, g, twin->table[g][twin->node_count],
                                                sequence->table[g][sequence->node_count], sequence->tokens % KV_BLOCK);
    twin->matched = sequence->matched;
    reserve_host(twin);
    *out = twin;
    return STATUS_OK;
fail:
    sequence_end(cache, &twin);
    return st;
}

bool kv_sequence_ready(const struct kv_sequence *sequence)
{
    return !sequence->suspended && (sequence->source == 0 || sequence->prefixed) && sequence->ticket <= sequence->cache->ticket_landed;
}

uint64_t kv_sequence_after(const struct kv_sequence *sequence)
{
    return !sequence->suspended && sequence->by_layers && sequence->ticket > sequence->cache->ticket_landed ? sequence->ticket : 0;
}

bool kv_cache_poll(struct kv_cache *cache)
{
    const struct kv_arena *device = &cache->arenas[DEVICE];
    (void)kv_pages_land(cache);
    for (uint32_t s = 0; s < cache->config.open_max; s++)
        if (cache->sequences[s] != NULL && !cache->sequences[s]->suspended)
            settle(cache->sequences[s]);
    /* Ahead of need: while less than a sixteenth of the device is free, candidates go where the host has free room. */
    if (cache->arenas[HOST].extent_count > 0) {
        uint32_t most = KV_CANDIDATES_AHEAD;
        uint64_t taken[BACKEND_GROUPS_MAX];
        do {
            for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
                taken[g] = device->used[g] - cache->soon[g];
        } while (kv_arena_extents(&device->layout, taken) > device->extent_count - device->extent_count / 16 && most-- > 0 &&
                 cache->candidate_oldest != 0 && kv_node_demote(cache, cache->candidate_oldest));
    }
    return cache->transfer_count > 0;
}

/* ---- computing ---- */

enum status kv_cache_reserve(struct kv_cache *cache, struct kv_sequence *sequence, uint32_t tokens)
{
    assert(kv_sequence_ready(sequence) || kv_sequence_after(sequence) != 0);
    if (tokens > cache->config.sequence_tokens_max)
        return STATUS_FAIL(STATUS_LIMIT, "a sequence has at most %u tokens, not %u", cache->config.sequence_tokens_max, tokens);
    if (tokens > sequence->tokens && tokens - sequence->tokens > cache->config.chunk_tokens_max)
        return STATUS_FAIL(STATUS_INVALID, "at most %u tokens are reserved at a time, not %u", cache->config.chunk_tokens_max,
                           tokens - sequence->tokens);
    if (kv_blocks(tokens) <= sequence->block_count)
        return STATUS_OK;
    const uint32_t more = kv_blocks(tokens) - sequence->block_count;
    const uint32_t want[BACKEND_GROUPS_MAX] = {kv_has_group(cache, 0) ? more : 0, kv_has_group(cache, 1) ? more : 0};
    TRY(kv_pages_make_room(cache, want));
    while (sequence->block_count < kv_blocks(tokens))
        tail_add(sequence);
    return STATUS_OK;
}

/* A node under `parent`, evicting where the tree is full; the nodes of open sequences always fit. */
static uint32_t add_node(struct kv_cache *cache, uint32_t parent, const uint32_t *ids, uint32_t count, const uint8_t *root)
{
    uint32_t at;
    do {
        at = root != NULL ? kv_tree_add_root(&cache->tree, root) : kv_tree_add(&cache->tree, parent, ids, count);
    } while (at == 0 && kv_evict_step(cache));
    assert(at != 0);
    return at;
}

static uint32_t parent_of(const struct kv_sequence *sequence)
{
    struct kv_cache *cache = sequence->cache;
    if (sequence->node_count > 0)
        return sequence->nodes[sequence->node_count - 1];
    const uint32_t root = kv_tree_root(&cache->tree, sequence->root);
    return root != 0 ? root : add_node(cache, 0, NULL, 0, sequence->root);
}

/* The first tail block becomes the node: its pages go where the node has none on the device, the others were duplicates. */
static void hand_over(struct kv_sequence *sequence, uint32_t node)
{
    struct kv_cache *cache = sequence->cache;
    if (kv_node(cache, node)->copy_in != 0)
        kv_pages_land_all(cache); /* what is coming for another sequence is needed here, now */
    use(cache, node, kv_has_group(cache, 1), 1);
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        if (!kv_has_group(cache, g))
            continue;
        const uint32_t page = sequence->tails[g][sequence->node_count];
        if (kv_node(cache, node)->page[DEVICE][g] != 0)
            kv_page_tail_give(cache, g, page);
        else
            kv_node_attach(cache, node, g, page);
    }
    kv_node_stay(cache, node);
}

static void publish(struct kv_sequence *sequence)
{
    struct kv_cache *cache = sequence->cache;
    const uint32_t block = sequence->node_count, parent = parent_of(sequence);
    const uint32_t *ids = sequence->ids + block * KV_BLOCK;
    uint32_t node = kv_tree_find(&cache->tree, parent, ids, KV_BLOCK);
    if (node == 0)
        node = add_node(cache, parent, ids, KV_BLOCK, NULL);
    hand_over(sequence, node);
    sequence->nodes[block] = node;
    sequence->node_count++;
    table_set_node(sequence, block);
    if (kv_has_group(cache, 1))
        kv_node_claim(cache, node, kv_claims_of(cache, &sequence->points, sequence->claim_from, block), 0);
}

/* Local pages behind the window are let go, those behind R not claimed any more. */
static void slide(struct kv_sequence *sequence)
{
    struct kv_cache *cache = sequence->cache;
    const uint32_t pin_from = sequence->pin_from, claim_from = sequence->claim_from;
    if (!kv_has_group(cache, 1))
        return;
    set_windows(sequence);
    for (uint32_t b = pin_from; b < sequence->pin_from; b++)
        if (b >= cache->sink_blocks) {
            kv_node_pin(cache, sequence->nodes[b], -1);
            sequence->table[1][b] = NULL;
        }
    for (uint32_t b = claim_from; b < sequence->claim_from; b++)
        kv_node_claim(cache, sequence->nodes[b], 0, 1);
}

void kv_cache_append(struct kv_cache *cache, struct kv_sequence *sequence, const uint32_t *ids, uint32_t count)
{
    assert(kv_sequence_ready(sequence) || kv_sequence_after(sequence) != 0);
    assert(count <= sequence->block_count * KV_BLOCK - sequence->tokens);
    (void)cache;
    arrive(sequence);
    memcpy(sequence->ids + sequence->tokens, ids, count * sizeof *ids);
    sequence->tokens += count;
    while (sequence->tokens / KV_BLOCK > sequence->node_count)
        publish(sequence);
    slide(sequence);
}

bool kv_sequence_trim(struct kv_cache *cache)
{
    static const struct kv_points none;
    bool any = false;
    for (uint32_t s = 0; s < cache->config.open_max && kv_has_group(cache, 1); s++) {
        struct kv_sequence *sequence = cache->sequences[s];
        if (sequence == NULL || sequence->suspended || sequence->trimmed)
            continue;
        for (uint32_t b = sequence->node_count; b-- > 0;)
            kv_node_claim(cache, sequence->nodes[b], kv_claims_of(cache, &none, sequence->pin_from, b),
                          kv_claims_of(cache, &sequence->points, sequence->claim_from, b));
        sequence->trimmed = true;
        sequence->points = none;
        sequence->claim_from = sequence->pin_from;
        any = true;
    }
    return any;
}

/* ---- going out ---- */

/* Publishes the last, partly filled block too and names the whole path in cache->path; the pages it does not need go back. Its last
 * node, if it is new, is used once more: the caller ends that. Returns that node. */
static uint32_t close_path(struct kv_sequence *sequence)
{
    struct kv_cache *cache = sequence->cache;
    const uint32_t part = sequence->tokens % KV_BLOCK, blocks = sequence->node_count;
    uint32_t end = 0;
    assert(!sequence->prefixed);
    if (part > 0 && sequence->source != 0) {
        end = sequence->source;
    } else if (part > 0) {
        const uint32_t parent = parent_of(sequence), *ids = sequence->ids + blocks * KV_BLOCK;
        uint32_t same;
        end = kv_tree_best(&cache->tree, parent, ids, part, &same);
        if (same == part) {
            use(cache, end, kv_has_group(cache, 1), 1);
        } else {
            end = add_node(cache, parent, ids, part, NULL);
            hand_over(sequence, end);
            sequence->node_count++;     /* its pages are gone from the tails */
        }
    }
    tails_give(sequence);
    sequence->node_count = sequence->block_count = blocks;
    memcpy(cache->path, sequence->nodes, blocks * sizeof *cache->path);
    if (end != 0)
        cache->path[blocks] = end;
    return end;
}

/* The end's own claim comes with the record. */
static uint32_t record_path(struct kv_sequence *sequence, uint32_t prompt_tokens, bool pin, bool bare)
{
    struct kv_cache *cache = sequence->cache;
    struct kv_points points = {0};
    if (!bare)
        kv_points_choose(cache, sequence->nodes, sequence->node_count, sequence->tokens, sequence->ends, sequence->end_count,
                         prompt_tokens, &points);
    return kv_record_add(cache, cache->path, sequence->tokens, &points, pin, bare);
}

void kv_cache_drop(struct kv_cache *cache, struct kv_sequence **pointer)
{
    struct kv_sequence *sequence = *pointer;
    if (sequence == NULL)
        return;
    if (sequence->suspended) {
        if (sequence->record != 0)
            kv_record_drop(cache, sequence->record);
    } else {
        finish_load(sequence);
        tails_give(sequence);
        release_source(sequence);
        release_all(sequence, 0);
    }
    sequence_end(cache, pointer);
}

void kv_cache_keep(struct kv_cache *cache, struct kv_sequence **pointer, uint32_t prompt_tokens, const uint8_t *label)
{
    struct kv_sequence *sequence = *pointer;
    uint32_t record = 0;
    if (sequence == NULL)
        return;
    struct kv_label *before = kv_label_take_off(cache, label);
    if (sequence->suspended) {
        record = sequence->record;
        if (record != 0)
            kv_record_unpin(cache, record);
    } else if (sequence->tokens == 0) {
        kv_label_lose(cache, before);
        kv_cache_drop(cache, pointer);
        return;
    } else {
        finish_load(sequence);
        const uint32_t end = close_path(sequence);
        record = record_path(sequence, prompt_tokens, false, false);
        release_all(sequence, end);
    }
    if (label != NULL && record != 0)
        kv_label_put(cache, record, label);
    else
        kv_label_lose(cache, before);
    sequence_end(cache, pointer);
}

/* ---- preemption ---- */

/* Whether the host can hold its path beside what it has promised to others; its own promise becomes that. */
static bool pin_host(struct kv_sequence *sequence, bool bare)
{
    struct kv_cache *cache = sequence->cache;
    struct kv_points points = {0};
    uint32_t need[BACKEND_GROUPS_MAX] = {kv_has_group(cache, 0) ? kv_blocks(sequence->tokens) : 0, 0};
    if (!bare)
        kv_points_choose(cache, sequence->nodes, sequence->node_count, sequence->tokens, sequence->ends, sequence->end_count,
                         sequence->prompt_tokens, &points);
    const uint32_t from = kv_claim_block(cache, sequence->tokens, bare ? 0 : cache->config.rewind_tokens);
    for (uint32_t b = 0; kv_has_group(cache, 1) && b < kv_blocks(sequence->tokens); b++)
        need[1] += kv_claims_of(cache, &points, from, b) > 0;
    uint64_t all[BACKEND_GROUPS_MAX];
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        all[g] = (uint64_t)cache->host_held[g] - sequence->host_pages[g] + need[g];
    if (kv_arena_extents(&cache->arenas[HOST].layout, all) > cache->arenas[HOST].extent_count)
        return false;
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        cache->host_held[g] += need[g] - sequence->host_pages[g];
        sequence->host_pages[g] = need[g];
    }
    return true;
}

static void unpin_host(struct kv_sequence *sequence)
{
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++) {
        sequence->cache->host_held[g] -= sequence->host_pages[g];
        sequence->host_pages[g] = 0;
    }
}

void kv_cache_suspend(struct kv_cache *cache, struct kv_sequence *sequence)
{
    if (sequence->suspended)
        return;
    sequence->record = 0;
    finish_load(sequence);
    if (sequence->tokens > 0) {
        const bool whole = pin_host(sequence, false), pin = whole || pin_host(sequence, true);
        const uint32_t end = close_path(sequence);
        const uint32_t last = end != 0 ? end : sequence->nodes[sequence->node_count - 1];
        const uint32_t record = record_path(sequence, sequence->prompt_tokens, pin, pin && !whole);
        if (pin)
            sequence->record = record;
        if (sequence->record == 0)
            unpin_host(sequence);
        release_all(sequence, end);
        for (uint32_t at = last; sequence->record != 0 && kv_node(cache, at)->candidate;) {
            const uint32_t parent = kv_node(cache, at)->parent;
            if (kv_node_demote(cache, at))
                at = parent;
            else if (!kv_evict_step(cache))
                break; /* goes later, when copies have landed */
        }
    } else {
        tails_give(sequence);
        unpin_host(sequence);
    }
    sequence->suspended = true;
    cache->open_count--;
    cache->suspended_count++;
}

enum status kv_cache_resume(struct kv_cache *cache, struct kv_sequence *sequence)
{
    if (!sequence->suspended)
        return STATUS_OK;
    const uint32_t tokens = sequence->tokens;
    sequence->suspended = false;
    const enum status st = attach_longest(sequence, sequence->ids, tokens);
    if (st != STATUS_OK) {
        sequence->suspended = true;
        sequence->tokens = tokens;
        return st;
    }
    if (sequence->record != 0)
        kv_record_drop(cache, sequence->record);
    sequence->record = 0;
    unpin_host(sequence);
    reserve_host(sequence);
    cache->suspended_count--;
    cache->open_count++;
    return STATUS_OK;
}

/* ---- what a sequence says ---- */

uint32_t kv_sequence_tokens(const struct kv_sequence *sequence)
{
    return sequence->tokens;
}

struct kv_cache *kv_sequence_cache(const struct kv_sequence *sequence)
{
    return sequence->cache;
}

uint32_t kv_sequence_matched(const struct kv_sequence *sequence)
{
    return sequence->matched;
}

void *const *kv_sequence_pages(const struct kv_sequence *sequence, uint32_t group)
{
    return sequence->table[group];
}
