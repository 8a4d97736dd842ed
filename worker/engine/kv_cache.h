/* kv_cache.h - the KV pages of one worker and the sequences that own them.
 *
 * A page is BACKEND_PAGE_TOKENS positions of all producing layers (backend.h). All pages lie in one arena, made at start.
 * A sequence is a list of page references; the token ids of a page's positions are kept beside the page. A sequence is
 * *open* while a request computes with it, then *kept* for a later prompt that begins with the same tokens, until it is evicted.
 *
 * Owns the arena, the references and the ids. Borrows the backend, which outlives it. Called only by the engine thread.
 *
 * Always true (kv_cache_check verifies all but 5):
 *   1. pages free + pages used == page_count;
 *   2. the references of a page are as many as the sequences that list it; a free page has none;
 *   3. a page is shared only among sequences of one root, at the same index, and all its positions that more than one of them
 *      counts have the same tokens before them;
 *   4. pages at or after an open sequence's first writable page are listed by it alone: a shared page is never written;
 *   5. the positions a sequence counts hold KV computed from its own tokens (or from the same tokens, under the same root);
 *   6. no kept sequence is a prefix of, or equal to, another one of the same root, so each has a page of its own and there
 *      are at most page_count of them;
 *   7. references of kept sequences <= 16 per page: what a sequence list costs is bounded by 16 * 4 bytes a page, and token ids
 *      cost exactly 64 * 4 bytes a page; for the folio model (43,520 bytes a page) 0.7% together.
 *
 * Local layers keep every token in this version, so any prefix of a kept sequence can be resumed; windows, a radix tree and
 * further tiers are to change the inside of this module, not its callers. Pages are not cleared when reused: a backend
 * reads no position that it has not written for this sequence. */
#ifndef ROOST_WORKER_ENGINE_KV_CACHE_H
#define ROOST_WORKER_ENGINE_KV_CACHE_H
#include <stdint.h>
#include "common/status.h"

struct backend;                      /* worker/engine/backend.h */
struct backend_ops;
struct kv_cache;                     /* opaque */
struct kv_sequence;                  /* opaque; an open sequence */

#define KV_CACHE_ROOT_BYTES 32
#define KV_CACHE_PAGES_MAX (1u << 24)

struct kv_cache_config {
    const struct backend_ops *ops;   /* ref */
    struct backend *backend;         /* ref */
    uint64_t arena_bytes;            /* rounded down to whole pages, each rounded up to 64 bytes */
    uint32_t sequence_tokens_max;    /* of one sequence; the arena must hold one such sequence (STATUS_LIMIT) */
    uint32_t open_max;               /* open sequences at a time */
};

struct kv_cache_counts {
    uint32_t page_count, page_free, page_used;   /* free + used == count */
    uint32_t sequence_open, sequence_kept;
    uint64_t references;             /* of open and kept sequences */
    uint64_t evicted;                /* kept sequences dropped for room, since start */
};

enum status kv_cache_create(const struct kv_cache_config *config, struct kv_cache **out);
void kv_cache_destroy(struct kv_cache **cache);      /* accepts NULL; open sequences die with it */

/* Opens a sequence for a prompt: shares what the longest matching kept sequence of the same root has computed, at most
 * count - 1 tokens (the last is always recomputed: its logits are wanted). Whole pages are shared, the rest of the match is copied.
 * root: digest of tenant and weights; nothing is shared between roots. STATUS_INVALID: count is 0 or over the limit.
 * STATUS_LIMIT: open_max. */
enum status kv_cache_open(struct kv_cache *cache, const uint8_t root[KV_CACHE_ROOT_BYTES], const uint32_t *ids, uint32_t count,
                          struct kv_sequence **out);

/* Makes pages for the positions [0, tokens), evicting kept sequences, least recently used first. STATUS_LIMIT: no more to evict. */
enum status kv_cache_reserve(struct kv_cache *cache, struct kv_sequence *sequence, uint32_t tokens);

/* Says that the KV of these tokens, which follow the ones counted so far, is in the pages. They must be reserved. */
void kv_cache_append(struct kv_cache *cache, struct kv_sequence *sequence, const uint32_t *ids, uint32_t count);

/* Ends an open sequence: keeps what it counts, or drops it. *sequence becomes NULL. */
void kv_cache_keep(struct kv_cache *cache, struct kv_sequence **sequence);
void kv_cache_drop(struct kv_cache *cache, struct kv_sequence **sequence);

void kv_cache_forget(struct kv_cache *cache);        /* drops every kept sequence */

uint32_t kv_sequence_tokens(const struct kv_sequence *sequence);           /* counted: matched and appended */
uint32_t kv_sequence_matched(const struct kv_sequence *sequence);          /* what open found */
void *const *kv_sequence_pages(const struct kv_sequence *sequence);        /* as backend_run.pages; those reserved */

void kv_cache_counts(const struct kv_cache *cache, struct kv_cache_counts *out);
uint32_t kv_cache_page_count(const struct kv_cache *cache);
uint32_t kv_cache_page_stride(const struct kv_cache *cache);               /* bytes of a page in the arena */

/* Verifies the invariants, slowly. STATUS_INTERNAL with the broken one's number. For tests and debugging. */
enum status kv_cache_check(const struct kv_cache *cache);

#endif
