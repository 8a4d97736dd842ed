/* placement_cache.c - recent.h under the types of placement.h. */
#include "router/placement_cache.h"
#include <stdlib.h>
#include "common/recent.h"

struct placement_cache {
    struct recent *records;
};

enum status placement_cache_create(uint32_t entries_max, struct placement_cache **out)
{
    struct placement_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a placement cache");
    enum status st = recent_create(entries_max, sizeof(struct placement_record), &cache->records);
    if (st != STATUS_OK) {
        free(cache);
        return st;
    }
    *out = cache;
    return STATUS_OK;
}

void placement_cache_destroy(struct placement_cache **cache)
{
    if (!*cache)
        return;
    recent_destroy(&(*cache)->records);
    free(*cache);
    *cache = NULL;
}

struct placement_record *placement_cache_find(struct placement_cache *cache, const struct placement_key *key)
{
    return recent_find(cache->records, key->id);
}

struct placement_record *placement_cache_put(struct placement_cache *cache, const struct placement_key *key,
                                             const struct placement_record *record)
{
    return recent_put(cache->records, key->id, record);
}

uint32_t placement_cache_count(const struct placement_cache *cache)
{
    return recent_count(cache->records);
}
