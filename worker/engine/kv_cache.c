/* kv_cache.c
 *
 *   kv_cache_open ---> open ---kv_cache_keep---> kept ---evict, replace, forget---> gone
 *                        \-----kv_cache_drop------------------------------------->/
 *
 * Kept sequences form a list, most recently used first. A match walks the list and compares tokens page by page; pages
 * that two sequences share compare equal by number. Walking costs at most page_count sequences and is cheap beside a
 * step. */
#include "worker/engine/kv_cache.h"
#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "worker/engine/backend.h"

#define PAGE_TOKENS         BACKEND_PAGE_TOKENS
#define REFERENCES_PER_PAGE 16u

struct kv_sequence {
    struct kv_sequence *previous, *next; /* in the list of kept or of open sequences */
    uint8_t root[KV_CACHE_ROOT_BYTES];
    uint32_t tokens; /* counted */
    uint32_t matched;
    uint32_t page_count; /* listed in pages; tokens <= 64 * page_count */
    uint32_t writable;   /* open: first page that this sequence alone lists */
    uint32_t *pages;     /* page numbers; open: room for sequence_tokens_max */
    void **addresses;    /* open: of the pages; kept: NULL */
};

struct kv_cache {
    const struct backend_ops *ops; /* ref */
    struct backend *backend;       /* ref */
    uint32_t sequence_tokens_max;
    uint32_t sequence_pages_max;
    uint32_t open_max;
    uint32_t page_count;
    size_t page_stride;
    uint8_t *arena;       /* (page_count, page_stride), mapped */
    uint32_t *references; /* (page_count) */
    uint32_t *ids;        /* (page_count, PAGE_TOKENS) */
    uint32_t *free_pages; /* a stack, (page_count) */
    uint32_t free_count;
    struct kv_sequence *kept, *kept_last; /* most and least recently used */
    struct kv_sequence *open;
    uint32_t kept_count, open_count;
    uint64_t kept_references;
    uint64_t evicted;
};

static uint32_t pages_for(uint32_t tokens)
{
    return tokens / PAGE_TOKENS + (tokens % PAGE_TOKENS != 0);
}

static void *page_address(const struct kv_cache *cache, uint32_t page)
{
    return cache->arena + (size_t)page * cache->page_stride;
}

static uint32_t *page_ids(const struct kv_cache *cache, uint32_t page)
{
    return cache->ids + (size_t)page * PAGE_TOKENS;
}

enum status kv_cache_create(const struct kv_cache_config *config, struct kv_cache **out)
{
    const size_t page_bytes = config->ops->page_bytes(config->backend);
    enum status st;
    if (page_bytes == 0 || page_bytes > UINT32_MAX - 63 || config->sequence_tokens_max == 0 || config->open_max == 0)
        return STATUS_FAIL(STATUS_INVALID, "a KV cache needs pages, a sequence length and an open sequence");
    const size_t stride = (page_bytes + 63) / 64 * 64;
    const uint64_t page_count = config->arena_bytes / stride;
    const uint32_t needed = pages_for(config->sequence_tokens_max);
    if (page_count < needed)
        return STATUS_FAIL(
            STATUS_LIMIT,
            "%llu bytes hold %llu KV pages of %zu bytes; one conversation at full context needs %u (%llu bytes)",
            (unsigned long long)config->arena_bytes, (unsigned long long)page_count, stride, needed,
            (unsigned long long)needed * stride);
    if (page_count > KV_CACHE_PAGES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%llu KV pages are more than %u", (unsigned long long)page_count,
                           KV_CACHE_PAGES_MAX);

    struct kv_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a KV cache");
    cache->ops = config->ops;
    cache->backend = config->backend;
    cache->sequence_tokens_max = config->sequence_tokens_max;
    cache->sequence_pages_max = needed;
    cache->open_max = config->open_max;
    cache->page_count = (uint32_t)page_count;
    cache->page_stride = stride;
    void *arena = mmap(NULL, page_count * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cache->arena = arena == MAP_FAILED ? NULL : arena;
    cache->references = calloc(page_count, sizeof *cache->references);
    cache->ids = calloc(page_count, PAGE_TOKENS * sizeof *cache->ids);
    cache->free_pages = calloc(page_count, sizeof *cache->free_pages);
    if (cache->arena == NULL || cache->references == NULL || cache->ids == NULL || cache->free_pages == NULL) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %llu KV pages of %zu bytes", (unsigned long long)page_count,
                         stride);
        kv_cache_destroy(&cache);
        return st;
    }
    for (uint32_t i = 0; i < cache->page_count; i++) /* page 0 is handed out first */
        cache->free_pages[i] = cache->page_count - 1 - i;
    cache->free_count = cache->page_count;
    *out = cache;
    return STATUS_OK;
}

static void sequence_free(struct kv_sequence *sequence)
{
    if (sequence == NULL)
        return;
    free(sequence->addresses);
    free(sequence->pages);
    free(sequence);
}

static void list_free(struct kv_sequence *sequence)
{
    while (sequence != NULL) {
        struct kv_sequence *next = sequence->next;
        sequence_free(sequence);
        sequence = next;
    }
}

void kv_cache_destroy(struct kv_cache **pointer)
{
    struct kv_cache *cache = *pointer;
    if (cache == NULL)
        return;
    list_free(cache->open);
    list_free(cache->kept);
    if (cache->arena != NULL)
        munmap(cache->arena, cache->page_count * cache->page_stride);
    free(cache->references);
    free(cache->ids);
    free(cache->free_pages);
    free(cache);
    *pointer = NULL;
}

/* ---- pages ---- */

static void page_ref(struct kv_cache *cache, uint32_t page)
{
    assert(cache->references[page] > 0);
    cache->references[page]++;
}

static void page_unref(struct kv_cache *cache, uint32_t page)
{
    assert(cache->references[page] > 0);
    if (--cache->references[page] == 0)
        cache->free_pages[cache->free_count++] = page;
}

/* ---- lists ---- */

static void open_link(struct kv_cache *cache, struct kv_sequence *sequence)
{
    sequence->previous = NULL;
    sequence->next = cache->open;
    if (cache->open != NULL)
        cache->open->previous = sequence;
    cache->open = sequence;
    cache->open_count++;
}

static void open_unlink(struct kv_cache *cache, struct kv_sequence *sequence)
{
    if (sequence->previous != NULL)
        sequence->previous->next = sequence->next;
    else
        cache->open = sequence->next;
    if (sequence->next != NULL)
        sequence->next->previous = sequence->previous;
    cache->open_count--;
}

static void kept_link(struct kv_cache *cache, struct kv_sequence *sequence)
{
    sequence->previous = NULL;
    sequence->next = cache->kept;
    if (cache->kept != NULL)
        cache->kept->previous = sequence;
    else
        cache->kept_last = sequence;
    cache->kept = sequence;
    cache->kept_count++;
    cache->kept_references += sequence->page_count;
}

static void kept_unlink(struct kv_cache *cache, struct kv_sequence *sequence)
{
    if (sequence->previous != NULL)
        sequence->previous->next = sequence->next;
    else
        cache->kept = sequence->next;
    if (sequence->next != NULL)
        sequence->next->previous = sequence->previous;
    else
        cache->kept_last = sequence->previous;
    cache->kept_count--;
    cache->kept_references -= sequence->page_count;
}

static void release_pages(struct kv_cache *cache, struct kv_sequence *sequence, uint32_t keep)
{
    while (sequence->page_count > keep)
        page_unref(cache, sequence->pages[--sequence->page_count]);
}

static void kept_drop(struct kv_cache *cache, struct kv_sequence *sequence)
{
    kept_unlink(cache, sequence);
    release_pages(cache, sequence, 0);
    sequence_free(sequence);
}

static void kept_touch(struct kv_cache *cache, struct kv_sequence *sequence)
{
    kept_unlink(cache, sequence);
    kept_link(cache, sequence);
}

/* Takes a free page with one reference, evicting as needed. */
static bool page_take(struct kv_cache *cache, uint32_t *page)
{
    while (cache->free_count == 0 && cache->kept_last != NULL) {
        kept_drop(cache, cache->kept_last);
        cache->evicted++;
    }
    if (cache->free_count == 0)
        return false;
    *page = cache->free_pages[--cache->free_count];
    cache->references[*page] = 1;
    return true;
}

/* ---- matching ---- */

static uint32_t common_ids(const uint32_t *a, const uint32_t *b, uint32_t count)
{
    uint32_t i = 0;
    while (i < count && a[i] == b[i])
        i++;
    return i;
}

static uint32_t match_ids(const struct kv_cache *cache, const struct kv_sequence *sequence, const uint32_t *ids,
                          uint32_t count)
{
    const uint32_t limit = sequence->tokens < count ? sequence->tokens : count;
    uint32_t at = 0;
    while (at < limit) {
        const uint32_t part = limit - at < PAGE_TOKENS ? limit - at : PAGE_TOKENS;
        const uint32_t same = common_ids(page_ids(cache, sequence->pages[at / PAGE_TOKENS]), ids + at, part);
        at += same;
        if (same < part)
            break;
    }
    return at;
}

/* Whether the first tokens of a (all that it counts) are those of b. */
static bool is_prefix(const struct kv_cache *cache, const struct kv_sequence *a, const struct kv_sequence *b)
{
    if (a->tokens > b->tokens || memcmp(a->root, b->root, sizeof a->root) != 0)
        return false;
    for (uint32_t at = 0; at < a->tokens; at += PAGE_TOKENS) {
        const uint32_t part = a->tokens - at < PAGE_TOKENS ? a->tokens - at : PAGE_TOKENS;
        const uint32_t page_a = a->pages[at / PAGE_TOKENS], page_b = b->pages[at / PAGE_TOKENS];
        if (page_a != page_b && memcmp(page_ids(cache, page_a), page_ids(cache, page_b), part * sizeof(uint32_t)) != 0)
            return false;
    }
    return true;
}

/* Shares the first `matched` tokens of source: whole pages by reference, the rest copied into a page of our own. */
static void share(struct kv_cache *cache, struct kv_sequence *sequence, const struct kv_sequence *source,
                  uint32_t matched)
{
    const uint32_t whole = matched / PAGE_TOKENS, rest = matched % PAGE_TOKENS;
    for (uint32_t i = 0; i < whole; i++) {
        page_ref(cache, source->pages[i]);
        sequence->pages[i] = source->pages[i];
        sequence->addresses[i] = page_address(cache, source->pages[i]);
    }
    sequence->page_count = sequence->writable = whole;
    sequence->tokens = whole * PAGE_TOKENS;
    if (rest > 0) {
        const uint32_t from = source->pages[whole];
        uint32_t to;
        page_ref(cache, from); /* taking a page may evict the source itself */
        if (page_take(cache, &to)) {
            cache->ops->page_copy_prefix(cache->backend, page_address(cache, to), page_address(cache, from), rest);
            memcpy(page_ids(cache, to), page_ids(cache, from), rest * sizeof(uint32_t));
            sequence->pages[whole] = to;
            sequence->addresses[whole] = page_address(cache, to);
            sequence->page_count = whole + 1;
            sequence->tokens = matched;
        }
        page_unref(cache, from);
    }
    sequence->matched = sequence->tokens;
}

enum status kv_cache_open(struct kv_cache *cache, const uint8_t root[KV_CACHE_ROOT_BYTES], const uint32_t *ids,
                          uint32_t count, struct kv_sequence **out)
{
    if (count == 0 || count > cache->sequence_tokens_max)
        return STATUS_FAIL(STATUS_INVALID, "a sequence has 1 to %u tokens, not %u", cache->sequence_tokens_max, count);
    if (cache->open_count == cache->open_max)
        return STATUS_FAIL(STATUS_LIMIT, "%u sequences are open already", cache->open_max);
    struct kv_sequence *sequence = calloc(1, sizeof *sequence);
    if (sequence != NULL) {
        sequence->pages = calloc(cache->sequence_pages_max, sizeof *sequence->pages);
        sequence->addresses = calloc(cache->sequence_pages_max, sizeof *sequence->addresses);
    }
    if (sequence == NULL || sequence->pages == NULL || sequence->addresses == NULL) {
        sequence_free(sequence);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a sequence of %u pages", cache->sequence_pages_max);
    }
    memcpy(sequence->root, root, sizeof sequence->root);

    struct kv_sequence *best = NULL;
    uint32_t matched = 0;
    for (struct kv_sequence *kept = cache->kept; kept != NULL; kept = kept->next) {
        if (memcmp(kept->root, root, sizeof kept->root) != 0)
            continue;
        const uint32_t same = match_ids(cache, kept, ids, count - 1);
        if (same > matched) {
            best = kept;
            matched = same;
        }
    }
    if (best != NULL) {
        kept_touch(cache, best);
        share(cache, sequence, best, matched);
    }
    open_link(cache, sequence);
    *out = sequence;
    return STATUS_OK;
}

enum status kv_cache_reserve(struct kv_cache *cache, struct kv_sequence *sequence, uint32_t tokens)
{
    if (tokens > cache->sequence_tokens_max)
        return STATUS_FAIL(STATUS_LIMIT, "a sequence has at most %u tokens, not %u", cache->sequence_tokens_max,
                           tokens);
    while (sequence->page_count < pages_for(tokens)) {
        uint32_t page;
        if (!page_take(cache, &page))
            return STATUS_FAIL(STATUS_LIMIT, "all %u KV pages are in use by running requests", cache->page_count);
        sequence->pages[sequence->page_count] = page;
        sequence->addresses[sequence->page_count] = page_address(cache, page);
        sequence->page_count++;
    }
    return STATUS_OK;
}

void kv_cache_append(struct kv_cache *cache, struct kv_sequence *sequence, const uint32_t *ids, uint32_t count)
{
    assert(count <= sequence->page_count * PAGE_TOKENS - sequence->tokens);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = sequence->tokens++;
        assert(at / PAGE_TOKENS >= sequence->writable);
        page_ids(cache, sequence->pages[at / PAGE_TOKENS])[at % PAGE_TOKENS] = ids[i];
    }
}

void kv_cache_keep(struct kv_cache *cache, struct kv_sequence **pointer)
{
    struct kv_sequence *sequence = *pointer;
    if (sequence == NULL)
        return;
    if (sequence->tokens == 0) {
        kv_cache_drop(cache, pointer);
        return;
    }
    release_pages(cache, sequence, pages_for(sequence->tokens));
    struct kv_sequence *next;
    for (struct kv_sequence *kept = cache->kept; kept != NULL; kept = next) {
        next = kept->next;
        if (kept->tokens < sequence->tokens && is_prefix(cache, kept, sequence)) {
            kept_drop(cache, kept);
        } else if (is_prefix(cache, sequence, kept)) {
            kept_touch(cache, kept);
            kv_cache_drop(cache, pointer);
            return;
        }
    }
    open_unlink(cache, sequence);
    free(sequence->addresses);
    sequence->addresses = NULL;
    uint32_t *fitted = realloc(sequence->pages, sequence->page_count * sizeof *fitted);
    if (fitted != NULL)
        sequence->pages = fitted;
    kept_link(cache, sequence);
    while (cache->kept_references > (uint64_t)REFERENCES_PER_PAGE * cache->page_count) {
        kept_drop(cache, cache->kept_last);
        cache->evicted++;
    }
    *pointer = NULL;
}

void kv_cache_drop(struct kv_cache *cache, struct kv_sequence **pointer)
{
    struct kv_sequence *sequence = *pointer;
    if (sequence == NULL)
        return;
    open_unlink(cache, sequence);
    release_pages(cache, sequence, 0);
    sequence_free(sequence);
    *pointer = NULL;
}

void kv_cache_forget(struct kv_cache *cache)
{
    while (cache->kept != NULL)
        kept_drop(cache, cache->kept);
}

uint32_t kv_sequence_tokens(const struct kv_sequence *sequence)
{
    return sequence->tokens;
}

uint32_t kv_sequence_matched(const struct kv_sequence *sequence)
{
    return sequence->matched;
}

void *const *kv_sequence_pages(const struct kv_sequence *sequence)
{
    return sequence->addresses;
}

void kv_cache_counts(const struct kv_cache *cache, struct kv_cache_counts *out)
{
    *out = (struct kv_cache_counts){
        .page_count = cache->page_count,
        .page_free = cache->free_count,
        .page_used = cache->page_count - cache->free_count,
        .sequence_open = cache->open_count,
        .sequence_kept = cache->kept_count,
        .evicted = cache->evicted,
    };
    out->references = cache->kept_references;
    for (const struct kv_sequence *open = cache->open; open != NULL; open = open->next)
        out->references += open->page_count;
}

uint32_t kv_cache_page_count(const struct kv_cache *cache)
{
    return cache->page_count;
}

uint32_t kv_cache_page_stride(const struct kv_cache *cache)
{
    return (uint32_t)cache->page_stride;
}

/* ---- checking ---- */

#define BROKEN(number) STATUS_FAIL(STATUS_INTERNAL, "KV cache invariant %d is broken", (number))

struct page_owner { /* the first sequence seen with a page */
    const struct kv_sequence *sequence;
    uint32_t index;
    uint32_t references;
};

static enum status check_sequence(const struct kv_cache *cache, const struct kv_sequence *sequence,
                                  struct page_owner *owners)
{
    if (sequence->tokens > (uint64_t)sequence->page_count * PAGE_TOKENS ||
        sequence->page_count > cache->sequence_pages_max)
        return BROKEN(5);
    for (uint32_t i = 0; i < sequence->page_count; i++) {
        const uint32_t page = sequence->pages[i];
        if (page >= cache->page_count)
            return BROKEN(2);
        struct page_owner *owner = &owners[page];
        if (owner->references++ == 0) {
            owner->sequence = sequence;
            owner->index = i;
        } else {
            if (owner->index != i || memcmp(owner->sequence->root, sequence->root, sizeof sequence->root) != 0)
                return BROKEN(3);
            for (uint32_t j = 0; j < i; j++) { /* what stands before a shared page is the same */
                const uint32_t a = owner->sequence->pages[j], b = sequence->pages[j];
                if (a != b && memcmp(page_ids(cache, a), page_ids(cache, b), PAGE_TOKENS * sizeof(uint32_t)) != 0)
                    return BROKEN(3);
            }
        }
        if (sequence->addresses != NULL && sequence->addresses[i] != page_address(cache, page))
            return BROKEN(4);
        if (sequence->addresses != NULL && i >= sequence->writable && cache->references[page] != 1)
            return BROKEN(4);
    }
    return STATUS_OK;
}

static enum status check_kept(const struct kv_cache *cache)
{
    uint32_t count = 0;
    uint64_t references = 0;
    const struct kv_sequence *previous = NULL;
    for (const struct kv_sequence *a = cache->kept; a != NULL; a = a->next) {
        if (a->previous != previous || a->tokens == 0 || a->page_count != pages_for(a->tokens))
            return BROKEN(6);
        for (const struct kv_sequence *b = cache->kept; b != NULL; b = b->next)
            if (a != b && is_prefix(cache, a, b))
                return BROKEN(6);
        count++;
        references += a->page_count;
        previous = a;
    }
    if (count != cache->kept_count || cache->kept_last != previous || count > cache->page_count)
        return BROKEN(6);
    if (references != cache->kept_references || references > (uint64_t)REFERENCES_PER_PAGE * cache->page_count)
        return BROKEN(7);
    return STATUS_OK;
}

enum status kv_cache_check(const struct kv_cache *cache)
{
    uint32_t used = 0;
    enum status st;
    struct page_owner *owners = calloc(cache->page_count, sizeof *owners);
    if (owners == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to check %u pages", cache->page_count);
    for (const struct kv_sequence *s = cache->open; s != NULL; s = s->next)
        TRY_GOTO(check_sequence(cache, s, owners), st, done);
    for (const struct kv_sequence *s = cache->kept; s != NULL; s = s->next)
        TRY_GOTO(check_sequence(cache, s, owners), st, done);
    for (uint32_t i = 0; i < cache->page_count; i++) {
        used += cache->references[i] > 0;
        if (cache->references[i] != owners[i].references) {
            st = BROKEN(2);
            goto done;
        }
    }
    for (uint32_t i = 0; i < cache->free_count; i++) {
        const uint32_t page = cache->free_pages[i];
        if (page >= cache->page_count || owners[page].sequence == NULL) {
            if (page >= cache->page_count || owners[page].index == UINT32_MAX) { /* free twice */
                st = BROKEN(1);
                goto done;
            }
            owners[page].index = UINT32_MAX;
        } else {
            st = BROKEN(2);
            goto done;
        }
    }
    st = used + cache->free_count == cache->page_count ? check_kept(cache) : BROKEN(1);
done:
    free(owners);
    return st;
}
