/* recent.h - a fixed number of values under 16-byte keys; the least recently used one makes room. One block of memory,
 * taken at create: each value, its key and 16 bytes, and 8 to 16 bytes of buckets. Keys are random or hashes: any four
 * bytes of them are a good hash. Owned by one thread.
 * Always true: each value is in one bucket chain and in the order of use, or free. */
#ifndef ROOST_COMMON_RECENT_H
#define ROOST_COMMON_RECENT_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define RECENT_KEY_BYTES 16

struct recent;

enum status recent_create(uint32_t entries_max, size_t value_size, struct recent **out);
void recent_destroy(struct recent **recent); /* accepts NULL */

/* Both count as a use. A value stays where it is until it is removed or makes room. */
void *recent_find(struct recent *recent, const uint8_t *key);                   /* NULL: not there */
void *recent_put(struct recent *recent, const uint8_t *key, const void *value); /* copied; a known one is replaced */
void *recent_peek(struct recent *recent, const uint8_t *key);                   /* as find, and counts as no use */
void recent_remove(struct recent *recent, const uint8_t *key);                  /* unknown ones are ignored */

uint32_t recent_count(const struct recent *recent);
void *recent_newest(const struct recent *recent);                   /* NULL: empty */
void *recent_oldest(const struct recent *recent);                   /* NULL: empty */
void *recent_older(const struct recent *recent, const void *value); /* the next one in the order of use, or NULL */
const uint8_t *recent_key(const struct recent *recent, const void *value);

#endif
