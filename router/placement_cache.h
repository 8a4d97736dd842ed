/* placement_cache.h - the most recent placement records, in a fixed block of memory; the least recently used one makes
 * room (common/recent.h). A router keeps one for the time when Redis does not answer; the in-process store is one.
 * 65,536 records of 144 bytes and 131,072 buckets of 4: 10 MB, and at 100 requests a second the conversations of 11
 * minutes. Owned by one thread. */
#ifndef ROOST_ROUTER_PLACEMENT_CACHE_H
#define ROOST_ROUTER_PLACEMENT_CACHE_H
#include "router/placement.h"

#define PLACEMENT_CACHE_ENTRIES 65536

struct placement_cache;

enum status placement_cache_create(uint32_t entries_max, struct placement_cache **out);
void placement_cache_destroy(struct placement_cache **cache); /* accepts NULL */
/* Both count as a use. The pointer is borrowed until the next call on the cache. */
struct placement_record *placement_cache_find(struct placement_cache *cache, const struct placement_key *key);
struct placement_record *placement_cache_put(struct placement_cache *cache, const struct placement_key *key,
                                             const struct placement_record *record);
uint32_t placement_cache_count(const struct placement_cache *cache);

#endif
