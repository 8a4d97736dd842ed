#include "worker/engine/kv/kv_homes.h"
#include <stdio.h>
#include <stdlib.h>

struct kv_homes {
    struct kv_cache *caches[KV_HOMES_MAX];   /* owned */
    uint32_t count;
    uint64_t home_bytes;                     /* device bytes of each */
    int64_t largest_bytes;                   /* of the prompts opened so far */
};

struct candidate {                           /* a home for a prompt */
    uint32_t home, matched;
    int64_t bytes, held;                     /* with the prompt in it, at most what it has; by open sequences */
};

/* ---- life ---- */

static enum status create_home(const struct kv_cache_config *each, uint32_t count, struct kv_cache **out)
{
    const enum status st = kv_cache_create(each, out);
    char detail[512];
    if (st == STATUS_OK || count == 1)
        return st;
    snprintf(detail, sizeof detail, "%s", status_detail());
    return STATUS_FAIL(st, "the share of each of %u ranks: %s", count, detail);
}

enum status kv_homes_create(const struct kv_cache_config *config, struct kv_homes **out)
{
    enum status st;
    const uint32_t count = config->ops != NULL && config->ops->homes != NULL ? config->ops->homes(config->backend) : 1;
    if (count < 1 || count > KV_HOMES_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%u places for KV, want 1 to %u", count, KV_HOMES_MAX);
    struct kv_homes *homes = calloc(1, sizeof *homes);
    if (homes == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a KV cache");
    struct kv_cache_config each = *config;
    each.device_bytes = homes->home_bytes = config->device_bytes / count;
    each.host_bytes = config->host_bytes / count;
    for (; homes->count < count; homes->count++) {
        each.home = homes->count;
        TRY_GOTO(create_home(&each, count, &homes->caches[homes->count]), st, fail);
    }
    *out = homes;
    return STATUS_OK;
fail:
    kv_homes_destroy(&homes);
    return st;
}

void kv_homes_destroy(struct kv_homes **pointer)
{
    struct kv_homes *homes = *pointer;
    if (homes == NULL)
        return;
    for (uint32_t home = 0; home < homes->count; home++)
        kv_cache_destroy(&homes->caches[home]);
    free(homes);
    *pointer = NULL;
}

uint32_t kv_homes_count(const struct kv_homes *homes)
{
    return homes->count;
}

struct kv_cache *kv_homes_cache(const struct kv_homes *homes, uint32_t home)
{
    return homes->caches[home];
}

/* ---- the choice ---- */

static bool is_better(const struct candidate *a, const struct candidate *b)
{
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes;
    if (a->held != b->held)
        return a->held < b->held;
    return a->matched != b->matched ? a->matched > b->matched : a->home < b->home;
}

/* What a match is worth beyond the bytes that it saves. The quarter covers what its length does not tell: resume points, the last page. */
static int64_t bonus(const struct kv_homes *homes, const struct kv_prompt *prompt, uint32_t matched, int64_t there)
{
    if (matched <= prompt->count / 2)
        return 0;
    return (homes->largest_bytes > there ? homes->largest_bytes - there : 0) + there / 4;
}

static struct candidate weigh(const struct kv_homes *homes, uint32_t home, const struct kv_prompt *prompt)
{
    const struct kv_cache *cache = homes->caches[home];
    struct candidate candidate = {.home = home, .matched = kv_cache_match(cache, prompt)};
    const int64_t whole = (int64_t)kv_cache_prompt_bytes(cache, prompt->count);
    const int64_t there = (int64_t)kv_cache_prompt_bytes(cache, candidate.matched), limit = (int64_t)homes->home_bytes;
    struct kv_cache_counts counts;
    kv_cache_counts(cache, &counts);
    const struct kv_tier_counts *device = &counts.tiers[BACKEND_TIER_DEVICE];
    const int64_t more = (int64_t)kv_cache_promised(cache) + whole - there - bonus(homes, prompt, candidate.matched, there);
    candidate.bytes = (int64_t)(device->total - device->free) + more;
    candidate.bytes = candidate.bytes < limit ? candidate.bytes : limit;
    candidate.held = (int64_t)device->in_use + more;
    return candidate;
}

/* Best first. */
static void choose(const struct kv_homes *homes, const struct kv_prompt *prompt, struct candidate *candidates)
{
    for (uint32_t home = 0; home < homes->count; home++) {
        const struct candidate candidate = weigh(homes, home, prompt);
        uint32_t at = home;
        for (; at > 0 && is_better(&candidate, &candidates[at - 1]); at--)
            candidates[at] = candidates[at - 1];
        candidates[at] = candidate;
    }
}

uint32_t kv_homes_match(const struct kv_homes *homes, const struct kv_prompt *prompt)
{
    struct candidate candidates[KV_HOMES_MAX];
    if (homes->count == 1)
        return kv_cache_match(homes->caches[0], prompt);
    choose(homes, prompt, candidates);
    return candidates[0].matched;
}

enum status kv_homes_open(struct kv_homes *homes, const struct kv_prompt *prompt, struct kv_sequence **out)
{
    struct candidate candidates[KV_HOMES_MAX];
    enum status st = STATUS_AGAIN;
    if (homes->count == 1)
        return kv_cache_open(homes->caches[0], prompt, out);
    const int64_t bytes = (int64_t)kv_cache_prompt_bytes(homes->caches[0], prompt->count);
    homes->largest_bytes = bytes > homes->largest_bytes ? bytes : homes->largest_bytes;
    choose(homes, prompt, candidates);
    uint32_t taken = 0;
    for (uint32_t i = 0; i < homes->count && st == STATUS_AGAIN; i++)
        st = kv_cache_open(homes->caches[taken = candidates[i].home], prompt, out);
    for (uint32_t i = 0; i < homes->count && st == STATUS_OK; i++)
        if (candidates[i].home != taken && candidates[i].matched > 0)
            kv_cache_let_go(homes->caches[candidates[i].home], prompt);
    return st;
}

/* ---- all of them ---- */

void kv_homes_keep(struct kv_homes *homes, struct kv_sequence **sequence, uint32_t prompt_tokens, const uint8_t *label)
{
    if (*sequence == NULL)
        return;
    struct kv_cache *cache = kv_sequence_cache(*sequence);
    for (uint32_t home = 0; home < homes->count && label != NULL; home++)
        if (homes->caches[home] != cache)
            kv_cache_unlabel(homes->caches[home], label);
    kv_cache_keep(cache, sequence, prompt_tokens, label);
}

bool kv_homes_labelled(const struct kv_homes *homes, const uint8_t *label)
{
    for (uint32_t home = 0; home < homes->count; home++)
        if (kv_cache_labelled(homes->caches[home], label))
            return true;
    return false;
}

bool kv_homes_poll(struct kv_homes *homes)
{
    bool copies = false;
    for (uint32_t home = 0; home < homes->count; home++)
        copies |= kv_cache_poll(homes->caches[home]);
    return copies;
}

void kv_homes_load_by_layers(struct kv_homes *homes, bool by_layers)
{
    for (uint32_t home = 0; home < homes->count; home++)
        kv_cache_load_by_layers(homes->caches[home], by_layers);
}

void kv_homes_forget(struct kv_homes *homes)
{
    for (uint32_t home = 0; home < homes->count; home++)
        kv_cache_forget(homes->caches[home]);
}

uint64_t kv_homes_room(const struct kv_homes *homes)
{
    uint64_t bytes = 0;
    for (uint32_t home = 0; home < homes->count; home++)
        bytes += kv_cache_room(homes->caches[home]);
    return bytes;
}

uint64_t kv_homes_need(const struct kv_homes *homes, const struct kv_sequence *sequence, uint32_t tokens)
{
    return kv_cache_need(sequence != NULL ? kv_sequence_cache(sequence) : homes->caches[0], sequence, tokens);
}

static void add_tier(struct kv_tier_counts *sum, const struct kv_tier_counts *more)
{
    sum->total += more->total;
    sum->free += more->free;
    sum->cached += more->cached;
    sum->in_use += more->in_use;
    sum->in_copy += more->in_copy;
}

void kv_homes_counts(const struct kv_homes *homes, struct kv_cache_counts *out)
{
    kv_cache_counts(homes->caches[0], out);
    for (uint32_t home = 1; home < homes->count; home++) {
        struct kv_cache_counts more;
        kv_cache_counts(homes->caches[home], &more);
        for (uint32_t tier = 0; tier < BACKEND_TIERS; tier++) {
            add_tier(&out->tiers[tier], &more.tiers[tier]);
            for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
                out->pages[tier][group] += more.pages[tier][group];
        }
        out->nodes += more.nodes;
        out->leaves += more.leaves;
        out->tombstones += more.tombstones;
        out->snapshots += more.snapshots;
        out->sequence_open += more.sequence_open;
        out->sequence_suspended += more.sequence_suspended;
        out->evicted_snapshots += more.evicted_snapshots;
        out->evicted_rewinds += more.evicted_rewinds;
        out->evicted_leaves += more.evicted_leaves;
        out->demoted += more.demoted;
        out->promoted += more.promoted;
        out->moved += more.moved;
        out->metadata_bytes += more.metadata_bytes;
    }
}

enum status kv_homes_check(const struct kv_homes *homes)
{
    for (uint32_t home = 0; home < homes->count; home++)
        TRY(kv_cache_check(homes->caches[home]));
    return STATUS_OK;
}
