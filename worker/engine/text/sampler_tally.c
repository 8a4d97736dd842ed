#include "worker/engine/text/sampler_tally.h"
#include <stdlib.h>
#include <string.h>
#include "worker/engine/text/sampler.h"

#define SLOTS_MIN 256u /* a power of two; at most half of the slots are used */

struct sampler_tally {
    struct sampler_tally_entry *entries; /* (slot_count / 2) */
    uint32_t *slots;                     /* (slot_count): index of an entry, plus one; 0: free */
    uint32_t slot_count, entry_count;
    uint32_t seen, prompt_count; /* of the history */
};

enum status sampler_tally_create(struct sampler_tally **out)
{
    struct sampler_tally *tally = calloc(1, sizeof *tally);
    if (tally == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for counts of ids");
    *out = tally;
    return STATUS_OK;
}

void sampler_tally_destroy(struct sampler_tally **tally)
{
    if (*tally == NULL)
        return;
    free((*tally)->entries);
    free((*tally)->slots);
    free(*tally);
    *tally = NULL;
}

void sampler_tally_clear(struct sampler_tally *tally)
{
    if (tally->entry_count > 0)
        memset(tally->slots, 0, tally->slot_count * sizeof *tally->slots);
    tally->entry_count = tally->seen = tally->prompt_count = 0;
}

/* The slot of id, or the free one where it belongs. */
static uint32_t find_slot(const struct sampler_tally *tally, uint32_t id)
{
    const uint32_t last = tally->slot_count - 1;
    uint32_t slot = (uint32_t)(((uint64_t)id * 0x9E3779B97F4A7C15u) >> 32) & last;
    while (tally->slots[slot] != 0 && tally->entries[tally->slots[slot] - 1].id != id)
        slot = (slot + 1) & last;
    return slot;
}

static enum status grow(struct sampler_tally *tally)
{
    const uint32_t slot_count = tally->slot_count == 0 ? SLOTS_MIN : 2 * tally->slot_count;
    uint32_t *slots = calloc(slot_count, sizeof *slots);
    struct sampler_tally_entry *entries = realloc(tally->entries, slot_count / 2 * sizeof *entries);
    if (entries != NULL)
        tally->entries = entries;
    if (slots == NULL || entries == NULL) {
        free(slots);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to count %u ids", slot_count / 2);
    }
    free(tally->slots);
    tally->slots = slots;
    tally->slot_count = slot_count;
    for (uint32_t i = 0; i < tally->entry_count; i++)
        slots[find_slot(tally, entries[i].id)] = i + 1;
    return STATUS_OK;
}

enum status sampler_tally_update(struct sampler_tally *tally, const struct sampler_history *history)
{
    if (history->count < tally->seen || history->prompt_count != tally->prompt_count)
        sampler_tally_clear(tally);
    tally->prompt_count = history->prompt_count;
    for (; tally->seen < history->count; tally->seen++) {
        const uint32_t id = history->ids[tally->seen];
        if (tally->entry_count == tally->slot_count / 2)
            TRY(grow(tally));
        const uint32_t slot = find_slot(tally, id);
        if (tally->slots[slot] == 0) {
            tally->entries[tally->entry_count++] = (struct sampler_tally_entry){id, 0};
            tally->slots[slot] = tally->entry_count;
        }
        tally->entries[tally->slots[slot] - 1].reply_count += tally->seen >= history->prompt_count;
    }
    return STATUS_OK;
}

const struct sampler_tally_entry *sampler_tally_entries(const struct sampler_tally *tally, uint32_t *count)
{
    *count = tally->entry_count;
    return tally->entries;
}
