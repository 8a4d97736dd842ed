/* kv_label.c - names of kept paths, so that the one who gave a name learns what became of the path.
 *
 *     keep with a name --> on that path's record; taken off the one that had it, which may be absorbed now
 *     its record is evicted, or the table is full and nothing was kept longer ago --> GONE, forgotten */
#include <string.h>
#include "worker/engine/kv/kv_state.h"

static void tell(const struct kv_cache *cache, const struct kv_label *label, enum kv_fate fate)
{
    if (cache->config.on_fate != NULL)
        cache->config.on_fate(cache->config.fate_user, recent_key(cache->labels, label), fate);
}

void kv_label_lose(struct kv_cache *cache, struct kv_label *label)
{
    uint8_t name[KV_CACHE_LABEL_BYTES];
    if (label == NULL)
        return;
    tell(cache, label, KV_FATE_GONE);
    if (label->record != 0)
        cache->records[label->record].label = NULL;
    memcpy(name, recent_key(cache->labels, label), sizeof name);
    recent_remove(cache->labels, name);
}

struct kv_label *kv_label_take_off(struct kv_cache *cache, const uint8_t *name)
{
    struct kv_label *label = name != NULL ? recent_peek(cache->labels, name) : NULL;
    if (label != NULL) {
        cache->records[label->record].label = NULL;
        label->record = 0;
    }
    return label;
}

void kv_label_put(struct kv_cache *cache, uint32_t record, const uint8_t *name)
{
    struct kv_label *label = recent_find(cache->labels, name);
    kv_label_lose(cache, cache->records[record].label);
    if (label == NULL) {
        if (recent_count(cache->labels) == cache->label_capacity)
            kv_label_lose(cache, recent_oldest(cache->labels));
        label = recent_put(cache->labels, name, &(struct kv_label){0});
    }
    *label = (struct kv_label){.record = record}; /* who keeps a path knows that it is on the device */
    cache->records[record].label = label;
    kv_label_settle(cache, kv_node(cache, cache->records[record].node));
}

void kv_label_settle(struct kv_cache *cache, const struct kv_node *node)
{
    const bool host = node->page[DEVICE][0] == 0 && node->page[DEVICE][1] == 0;
    for (uint32_t at = node->records; at != 0; at = cache->records[at].next) {
        struct kv_label *label = cache->records[at].label;
        if (label != NULL && label->host != host) {
            tell(cache, label, host ? KV_FATE_HOST : KV_FATE_DEVICE);
            label->host = host;
        }
    }
}

void kv_cache_unlabel(struct kv_cache *cache, const uint8_t *name)
{
    if (kv_label_take_off(cache, name) != NULL)
        recent_remove(cache->labels, name);
}

bool kv_cache_labelled(const struct kv_cache *cache, const uint8_t *name)
{
    return recent_peek(cache->labels, name) != NULL;
}
