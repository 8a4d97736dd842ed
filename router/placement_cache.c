/* placement_cache.c - chained hash table and LRU list over an array, linked by indices. */
#include "router/placement_cache.h"
#include <stdlib.h>
#include <string.h>

#define NIL UINT32_MAX

struct slot {
    uint8_t id[16];
    struct placement_record record;
    uint32_t chain;        /* next in the bucket, or in the free list */
    uint32_t newer, older; /* LRU list */
};

struct placement_cache {
    struct slot *slots;
    uint32_t *buckets;
    uint32_t bucket_mask, entries_max, count;
    uint32_t free_first, newest, oldest;
};

enum status placement_cache_create(uint32_t entries_max, struct placement_cache **out)
{
    struct placement_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement cache");
    uint32_t buckets = 1;
    while (buckets < 2 * entries_max)
        buckets *= 2;
    cache->entries_max = entries_max;
    cache->bucket_mask = buckets - 1;
    cache->slots = calloc(entries_max, sizeof *cache->slots);
    cache->buckets = malloc(buckets * sizeof *cache->buckets);
    if (!cache->slots || !cache->buckets) {
        placement_cache_destroy(&cache);
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement cache of %u records", entries_max);
    }
    memset(cache->buckets, 0xff, buckets * sizeof *cache->buckets);
    for (uint32_t i = 0; i < entries_max; i++)
        cache->slots[i].chain = i + 1 < entries_max ? i + 1 : NIL;
    cache->newest = cache->oldest = NIL;
    *out = cache;
    return STATUS_OK;
}

void placement_cache_destroy(struct placement_cache **cache)
{
    if (!*cache)
        return;
    free((*cache)->slots);
    free((*cache)->buckets);
    free(*cache);
    *cache = NULL;
}

/* The id is a keyed digest already: any four bytes of it are a good hash. */
static uint32_t *bucket_of(struct placement_cache *cache, const uint8_t id[16])
{
    uint32_t hash;
    memcpy(&hash, id, sizeof hash);
    return &cache->buckets[hash & cache->bucket_mask];
}

static void lru_unlink(struct placement_cache *cache, uint32_t i)
{
    struct slot *slot = &cache->slots[i];
    *(slot->newer == NIL ? &cache->newest : &cache->slots[slot->newer].older) = slot->older;
    *(slot->older == NIL ? &cache->oldest : &cache->slots[slot->older].newer) = slot->newer;
}

static void lru_push(struct placement_cache *cache, uint32_t i)
{
    struct slot *slot = &cache->slots[i];
    slot->newer = NIL;
    slot->older = cache->newest;
    *(cache->newest == NIL ? &cache->oldest : &cache->slots[cache->newest].newer) = i;
    cache->newest = i;
}

static uint32_t find(struct placement_cache *cache, const uint8_t id[16])
{
    uint32_t i = *bucket_of(cache, id);
    while (i != NIL && memcmp(cache->slots[i].id, id, 16) != 0)
        i = cache->slots[i].chain;
    return i;
}

static void drop(struct placement_cache *cache, uint32_t i)
{
    uint32_t *at = bucket_of(cache, cache->slots[i].id);
    while (*at != i)
        at = &cache->slots[*at].chain;
    *at = cache->slots[i].chain;
    lru_unlink(cache, i);
    cache->slots[i].chain = cache->free_first;
    cache->free_first = i;
    cache->count--;
}

struct placement_record *placement_cache_find(struct placement_cache *cache, const struct placement_key *key)
{
    uint32_t i = find(cache, key->id);
    if (i == NIL)
        return NULL;
    lru_unlink(cache, i);
    lru_push(cache, i);
    return &cache->slots[i].record;
}

struct placement_record *placement_cache_put(struct placement_cache *cache, const struct placement_key *key,
                                             const struct placement_record *record)
{
    struct placement_record *known = placement_cache_find(cache, key);
    if (known) {
        *known = *record;
        return known;
    }
    if (cache->free_first == NIL)
        drop(cache, cache->oldest);
    uint32_t i = cache->free_first;
    struct slot *slot = &cache->slots[i];
    cache->free_first = slot->chain;
    memcpy(slot->id, key->id, sizeof slot->id);
    slot->record = *record;
    uint32_t *bucket = bucket_of(cache, key->id);
    slot->chain = *bucket;
    *bucket = i;
    lru_push(cache, i);
    cache->count++;
    return &slot->record;
}

void placement_cache_remove(struct placement_cache *cache, const struct placement_key *key)
{
    uint32_t i = find(cache, key->id);
    if (i != NIL)
        drop(cache, i);
}

uint32_t placement_cache_count(const struct placement_cache *cache)
{
    return cache->count;
}
