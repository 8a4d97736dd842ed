/* recent.c - chained hash table and LRU list over an array, linked by indices. */
#include "common/recent.h"
#include <stdlib.h>
#include <string.h>

#define NIL UINT32_MAX

struct slot {
    uint8_t key[RECENT_KEY_BYTES];
    uint32_t chain;        /* next in the bucket, or in the free list */
    uint32_t newer, older; /* order of use */
    uint32_t unused;
    max_align_t value[];
};

struct recent {
    uint8_t *slots;
    size_t slot_size, value_size;
    uint32_t *buckets;
    uint32_t bucket_mask, entries_max, count;
    uint32_t free_first, newest, oldest;
};

static struct slot *slot_at(const struct recent *recent, uint32_t i)
{
    return (struct slot *)(void *)(recent->slots + i * recent->slot_size);
}

static struct slot *slot_of(const void *value)
{
    return (struct slot *)(void *)((uintptr_t)value - offsetof(struct slot, value));
}

static void *value_at(const struct recent *recent, uint32_t i)
{
    return i == NIL ? NULL : slot_at(recent, i)->value;
}

enum status recent_create(uint32_t entries_max, size_t value_size, struct recent **out)
{
    struct recent *recent = calloc(1, sizeof *recent);
    if (!recent)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a table of recent values");
    uint32_t buckets = 1;
    while (buckets < 2 * entries_max)
        buckets *= 2;
    recent->entries_max = entries_max;
    recent->bucket_mask = buckets - 1;
    recent->value_size = value_size;
    size_t align = _Alignof(max_align_t);
    recent->slot_size = (sizeof(struct slot) + value_size + align - 1) / align * align;
    recent->slots = calloc(entries_max, recent->slot_size);
    recent->buckets = malloc(buckets * sizeof *recent->buckets);
    if (!recent->slots || !recent->buckets) {
        recent_destroy(&recent);
        return STATUS_FAIL(STATUS_NO_MEMORY, "a table of %u recent values", entries_max);
    }
    memset(recent->buckets, 0xff, buckets * sizeof *recent->buckets);
    for (uint32_t i = 0; i < entries_max; i++)
        slot_at(recent, i)->chain = i + 1 < entries_max ? i + 1 : NIL;
    recent->newest = recent->oldest = NIL;
    *out = recent;
    return STATUS_OK;
}

void recent_destroy(struct recent **recent)
{
    if (!*recent)
        return;
    free((*recent)->slots);
    free((*recent)->buckets);
    free(*recent);
    *recent = NULL;
}

static uint32_t *bucket_of(struct recent *recent, const uint8_t *key)
{
    uint32_t hash;
    memcpy(&hash, key, sizeof hash);
    return &recent->buckets[hash & recent->bucket_mask];
}

static void unlink_slot(struct recent *recent, const struct slot *slot)
{
    *(slot->newer == NIL ? &recent->newest : &slot_at(recent, slot->newer)->older) = slot->older;
    *(slot->older == NIL ? &recent->oldest : &slot_at(recent, slot->older)->newer) = slot->newer;
}

static void push_newest(struct recent *recent, uint32_t i)
{
    struct slot *slot = slot_at(recent, i);
    slot->newer = NIL;
    slot->older = recent->newest;
    *(recent->newest == NIL ? &recent->oldest : &slot_at(recent, recent->newest)->newer) = i;
    recent->newest = i;
}

static uint32_t find(struct recent *recent, const uint8_t *key)
{
    uint32_t i = *bucket_of(recent, key);
    while (i != NIL && memcmp(slot_at(recent, i)->key, key, RECENT_KEY_BYTES) != 0)
        i = slot_at(recent, i)->chain;
    return i;
}

static void drop(struct recent *recent, uint32_t i)
{
    struct slot *slot = slot_at(recent, i);
    uint32_t *at = bucket_of(recent, slot->key);
    while (*at != i)
        at = &slot_at(recent, *at)->chain;
    *at = slot->chain;
    unlink_slot(recent, slot);
    slot->chain = recent->free_first;
    recent->free_first = i;
    recent->count--;
}

void *recent_peek(struct recent *recent, const uint8_t *key)
{
    return value_at(recent, find(recent, key));
}

void *recent_find(struct recent *recent, const uint8_t *key)
{
    uint32_t i = find(recent, key);
    if (i == NIL)
        return NULL;
    unlink_slot(recent, slot_at(recent, i));
    push_newest(recent, i);
    return value_at(recent, i);
}

void *recent_put(struct recent *recent, const uint8_t *key, const void *value)
{
    void *known = recent_find(recent, key);
    if (known) {
        memcpy(known, value, recent->value_size);
        return known;
    }
    if (recent->free_first == NIL)
        drop(recent, recent->oldest);
    uint32_t i = recent->free_first;
    struct slot *slot = slot_at(recent, i);
    recent->free_first = slot->chain;
    memcpy(slot->key, key, sizeof slot->key);
    memcpy(slot->value, value, recent->value_size);
    uint32_t *bucket = bucket_of(recent, key);
    slot->chain = *bucket;
    *bucket = i;
    push_newest(recent, i);
    recent->count++;
    return slot->value;
}

void recent_remove(struct recent *recent, const uint8_t *key)
{
    uint32_t i = find(recent, key);
    if (i != NIL)
        drop(recent, i);
}

uint32_t recent_count(const struct recent *recent)
{
    return recent->count;
}

void *recent_newest(const struct recent *recent)
{
    return value_at(recent, recent->newest);
}

void *recent_oldest(const struct recent *recent)
{
    return value_at(recent, recent->oldest);
}

void *recent_older(const struct recent *recent, const void *value)
{
    return value_at(recent, slot_of(value)->older);
}

const uint8_t *recent_key(const struct recent *recent, const void *value)
{
    (void)recent;
    return slot_of(value)->key;
}
