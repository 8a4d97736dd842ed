#include "tests/unit/worker/unit.h"
#include "tests/unit/worker/fake_backend.h"
#include "worker/engine/kv_cache.h"
#include "worker/engine/model.h"

enum { P = BACKEND_PAGE_TOKENS, TOKENS_MAX = 5 * P + 20, PAGES_MAX = 6, ARENA = 13, OPEN_MAX = 3, SEQUENCES = 64 };

static struct kv_cache *cache_create(uint32_t pages, struct backend **backend)
{
    struct kv_cache *cache = NULL;
    static struct model model;
    assert_ok(fake_backend_ops.create(&model, 64, backend));
    const struct kv_cache_config config = {
        .ops = &fake_backend_ops,
        .backend = *backend,
        .arena_bytes = pages * fake_backend_ops.page_bytes(*backend),
        .sequence_tokens_max = TOKENS_MAX,
        .open_max = OPEN_MAX,
    };
    assert_ok(kv_cache_create(&config, &cache));
    assert_int_equal(kv_cache_page_count(cache), pages);
    return cache;
}

/* "Computes" the KV of a token: the row of its page becomes a number made of position and token. */
static uint64_t kv_of(uint32_t position, uint32_t id)
{
    return (uint64_t)position << 32 | (id + 1);
}

static void compute(struct kv_cache *cache, struct kv_sequence *sequence, const uint32_t *ids, uint32_t count)
{
    const uint32_t start = kv_sequence_tokens(sequence);
    for (uint32_t i = 0; i < count; i++)
        ((uint64_t *)kv_sequence_pages(sequence)[(start + i) / P])[(start + i) % P] = kv_of(start + i, ids[i]);
    kv_cache_append(cache, sequence, ids, count);
}

/* ---- the same cache, written as plainly as possible ---- */

struct plain_sequence {
    uint8_t root;
    uint32_t ids[TOKENS_MAX], tokens;
    int pages[PAGES_MAX], page_count; /* names of pages, never used twice */
    struct kv_sequence *real;         /* open ones */
};

struct plain {
    struct plain_sequence kept[SEQUENCES], open[OPEN_MAX];
    int kept_count, open_count, page_names;
    uint32_t page_limit;
    int pinned; /* a page name in use besides those listed, or -1 */
    uint64_t evicted;
};

static uint32_t plain_used(const struct plain *plain)
{
    static int seen[SEQUENCES * PAGES_MAX];
    uint32_t count = 0;
    for (int s = -1; s < plain->kept_count + plain->open_count; s++) {
        const struct plain_sequence *q = s < 0                   ? NULL
                                         : s < plain->kept_count ? &plain->kept[s]
                                                                 : &plain->open[s - plain->kept_count];
        const int n = q == NULL ? (plain->pinned >= 0) : q->page_count;
        for (int i = 0; i < n; i++) {
            const int name = q == NULL ? plain->pinned : q->pages[i];
            bool found = false;
            for (uint32_t j = 0; j < count; j++)
                found = found || seen[j] == name;
            if (!found)
                seen[count++] = name;
        }
    }
    return count;
}

static void plain_remove_kept(struct plain *plain, int index)
{
    memmove(&plain->kept[index], &plain->kept[index + 1],
            (size_t)(--plain->kept_count - index) * sizeof plain->kept[0]);
}

static bool plain_take(struct plain *plain, int *name)
{
    while (plain_used(plain) == plain->page_limit && plain->kept_count > 0) {
        plain->kept_count--; /* the last is the least recently used */
        plain->evicted++;
    }
    if (plain_used(plain) == plain->page_limit)
        return false;
    *name = plain->page_names++;
    return true;
}

static void plain_to_front(struct plain *plain, int index)
{
    const struct plain_sequence moved = plain->kept[index];
    memmove(&plain->kept[1], &plain->kept[0], (size_t)index * sizeof moved);
    plain->kept[0] = moved;
}

static uint32_t plain_match(const struct plain_sequence *q, const uint32_t *ids, uint32_t count)
{
    uint32_t i = 0;
    while (i < q->tokens && i < count && q->ids[i] == ids[i])
        i++;
    return i;
}

static struct plain_sequence *plain_open(struct plain *plain, uint8_t root, const uint32_t *ids, uint32_t count)
{
    int best = -1;
    uint32_t matched = 0;
    for (int k = 0; k < plain->kept_count; k++)
        if (plain->kept[k].root == root && plain_match(&plain->kept[k], ids, count - 1) > matched) {
            matched = plain_match(&plain->kept[k], ids, count - 1);
            best = k;
        }
    struct plain_sequence *q = &plain->open[plain->open_count];
    memset(q, 0, sizeof *q);
    q->root = root;
    plain->open_count++;
    if (best < 0)
        return q;
    plain_to_front(plain, best);
    const struct plain_sequence source = plain->kept[0];
    memcpy(q->ids, ids, matched * sizeof *ids);
    q->page_count = (int)(matched / P);
    memcpy(q->pages, source.pages, (size_t)q->page_count * sizeof(int));
    q->tokens = matched / P * P;
    if (matched % P != 0) {
        int name;
        plain->pinned = source.pages[matched / P];
        if (plain_take(plain, &name)) {
            q->pages[q->page_count++] = name;
            q->tokens = matched;
        }
        plain->pinned = -1;
    }
    return q;
}

static void plain_close(struct plain *plain, int index, bool keep)
{
    struct plain_sequence q = plain->open[index];
    plain->open[index] = plain->open[--plain->open_count];
    if (!keep || q.tokens == 0)
        return;
    q.page_count = (int)((q.tokens + P - 1) / P);
    for (int k = 0; k < plain->kept_count; k++)
        if (plain->kept[k].root == q.root && plain->kept[k].tokens >= q.tokens &&
            plain_match(&plain->kept[k], q.ids, q.tokens) == q.tokens) {
            plain_to_front(plain, k);
            return;
        }
    for (int k = plain->kept_count - 1; k >= 0; k--)
        if (plain->kept[k].root == q.root && plain_match(&plain->kept[k], q.ids, q.tokens) == plain->kept[k].tokens)
            plain_remove_kept(plain, k);
    assert_true(plain->kept_count < SEQUENCES);
    memmove(&plain->kept[1], &plain->kept[0], (size_t)plain->kept_count++ * sizeof q);
    plain->kept[0] = q;
}

/* Everything that the cache says, and every byte of KV it gives out, against the plain one. */
static void compare(const struct kv_cache *cache, const struct plain *plain)
{
    struct kv_cache_counts counts;
    assert_ok(kv_cache_check(cache));
    kv_cache_counts(cache, &counts);
    assert_int_equal(counts.page_used, plain_used(plain));
    assert_int_equal(counts.page_used + counts.page_free, plain->page_limit);
    assert_int_equal(counts.sequence_kept, plain->kept_count);
    assert_int_equal(counts.sequence_open, plain->open_count);
    assert_int_equal(counts.evicted, plain->evicted);
    uint64_t references = 0;
    for (int k = 0; k < plain->kept_count; k++)
        references += (uint64_t)plain->kept[k].page_count;
    for (int o = 0; o < plain->open_count; o++) {
        const struct plain_sequence *q = &plain->open[o];
        references += (uint64_t)q->page_count;
        assert_int_equal(kv_sequence_tokens(q->real), q->tokens);
        for (uint32_t i = 0; i < q->tokens; i++)
            if (((const uint64_t *)kv_sequence_pages(q->real)[i / P])[i % P] != kv_of(i, q->ids[i]))
                fail_msg("position %u holds other KV", i);
    }
    assert_int_equal(counts.references, references);
}

static uint32_t make_prompt(const struct plain *plain, uint64_t *rng, uint8_t *root, uint32_t *ids)
{
    uint32_t count = 1 + rng_below(rng, TOKENS_MAX), at = 0;
    *root = (uint8_t)rng_below(rng, 3);
    if (plain->kept_count > 0 && rng_below(rng, 4) != 0) { /* continue, branch or shorten a kept one, of any root */
        const struct plain_sequence *q = &plain->kept[rng_below(rng, (uint32_t)plain->kept_count)];
        at = rng_below(rng, 3) == 0 ? q->tokens : rng_below(rng, q->tokens + 1);
        memcpy(ids, q->ids, at * sizeof *ids);
        if (rng_below(rng, 5) != 0)
            *root = q->root;
        count = at + rng_below(rng, TOKENS_MAX - at + 1);
        if (count == 0)
            count = 1;
    }
    for (; at < count; at++)
        ids[at] = rng_below(rng, 3);
    return count;
}

static void random_operations_equal_the_plain_cache(void **state)
{
    (void)state;
    struct backend *backend = NULL;
    struct kv_cache *cache = cache_create(ARENA, &backend);
    static struct plain plain;
    plain = (struct plain){.page_limit = ARENA, .pinned = -1};
    uint64_t rng = test_seed(0), shared = 0, refused = 0;
    for (int step = 0; step < 60000; step++) {
        const uint32_t what = rng_below(&rng, 100);
        if (what < 30 && plain.open_count < OPEN_MAX) {
            uint32_t ids[TOKENS_MAX];
            uint8_t root, key[KV_CACHE_ROOT_BYTES] = {0};
            const uint32_t count = make_prompt(&plain, &rng, &root, ids);
            struct kv_sequence *real = NULL;
            key[31] = root;
            struct plain_sequence *q = plain_open(&plain, root, ids, count);
            assert_ok(kv_cache_open(cache, key, ids, count, &real));
            q->real = real;
            assert_int_equal(kv_sequence_matched(real), q->tokens);
            assert_true(q->tokens < count);
            shared += q->tokens;
        } else if (what < 75 && plain.open_count > 0) {
            struct plain_sequence *q = &plain.open[rng_below(&rng, (uint32_t)plain.open_count)];
            const uint32_t room = TOKENS_MAX - q->tokens, count = rng_below(&rng, (room < 130 ? room : 130) + 1);
            uint32_t ids[TOKENS_MAX];
            bool enough = true;
            for (uint32_t i = 0; i < count; i++)
                ids[i] = rng_below(&rng, 3);
            while (enough && q->page_count < (int)((q->tokens + count + P - 1) / P)) {
                int name;
                enough = plain_take(&plain, &name);
                if (enough)
                    q->pages[q->page_count++] = name;
            }
            const enum status st = kv_cache_reserve(cache, q->real, q->tokens + count);
            assert_int_equal(st, enough ? STATUS_OK : STATUS_LIMIT);
            refused += !enough;
            if (enough) {
                compute(cache, q->real, ids, count);
                memcpy(q->ids + q->tokens, ids, count * sizeof *ids);
                q->tokens += count;
            }
        } else if (what < 99 && plain.open_count > 0) {
            const int index = (int)rng_below(&rng, (uint32_t)plain.open_count);
            const bool keep = rng_below(&rng, 5) != 0;
            struct kv_sequence *real = plain.open[index].real;
            plain_close(&plain, index, keep);
            if (keep)
                kv_cache_keep(cache, &real);
            else
                kv_cache_drop(cache, &real);
            assert_null(real);
        } else if (what == 99 && rng_below(&rng, 20) == 0) {
            plain.kept_count = 0;
            kv_cache_forget(cache);
        }
        compare(cache, &plain);
    }
    assert_true(shared > 100000 && refused > 100 && plain.evicted > 1000); /* the mix did exercise these */
    while (plain.open_count > 0) {
        struct kv_sequence *real = plain.open[0].real;
        plain_close(&plain, 0, false);
        kv_cache_drop(cache, &real);
    }
    kv_cache_forget(cache);
    plain.kept_count = 0;
    compare(cache, &plain);
    struct kv_cache_counts counts;
    kv_cache_counts(cache, &counts);
    assert_int_equal(counts.references, 0);
    assert_int_equal(counts.page_free, ARENA);
    kv_cache_destroy(&cache);
    fake_backend_ops.destroy(&backend);
}

static void keep_ids(struct kv_cache *cache, uint8_t root, const uint32_t *ids, uint32_t count)
{
    const uint8_t key[KV_CACHE_ROOT_BYTES] = {root};
    struct kv_sequence *sequence = NULL;
    assert_ok(kv_cache_open(cache, key, ids, count, &sequence));
    assert_ok(kv_cache_reserve(cache, sequence, count));
    compute(cache, sequence, ids + kv_sequence_tokens(sequence), count - kv_sequence_tokens(sequence));
    kv_cache_keep(cache, &sequence);
}

static uint32_t matched(struct kv_cache *cache, uint8_t root, const uint32_t *ids, uint32_t count)
{
    const uint8_t key[KV_CACHE_ROOT_BYTES] = {root};
    struct kv_sequence *sequence = NULL;
    assert_ok(kv_cache_open(cache, key, ids, count, &sequence));
    const uint32_t found = kv_sequence_matched(sequence);
    kv_cache_drop(cache, &sequence);
    assert_ok(kv_cache_check(cache));
    return found;
}

static void matches_end_at_any_token_and_stay_within_a_root(void **state)
{
    (void)state;
    struct backend *backend = NULL;
    struct kv_cache *cache = cache_create(30, &backend);
    uint32_t ids[TOKENS_MAX];
    for (uint32_t i = 0; i < TOKENS_MAX; i++)
        ids[i] = i * 7;
    keep_ids(cache, 1, ids, 200);
    for (uint32_t count = 1; count <= 260; count++)
        assert_int_equal(matched(cache, 1, ids, count), count - 1 < 200 ? count - 1 : 200);
    assert_int_equal(matched(cache, 2, ids, 200), 0);
    for (uint32_t at = 0; at < 200; at++) { /* an edit at any token */
        ids[at]++;
        assert_int_equal(matched(cache, 1, ids, 250), at);
        ids[at]--;
    }
    kv_cache_destroy(&cache);
    fake_backend_ops.destroy(&backend);
}

static void prefixes_are_replaced_and_running_sequences_stay(void **state)
{
    (void)state;
    struct backend *backend = NULL;
    struct kv_cache *cache = cache_create(6, &backend);
    const uint8_t root[KV_CACHE_ROOT_BYTES] = {1};
    struct kv_cache_counts counts;
    struct kv_sequence *a = NULL, *b = NULL;
    uint32_t ids[TOKENS_MAX] = {0};
    keep_ids(cache, 1, ids, 100);
    keep_ids(cache, 1, ids, 150); /* replaces the first */
    keep_ids(cache, 1, ids, 120); /* adds nothing */
    kv_cache_counts(cache, &counts);
    assert_int_equal(counts.sequence_kept, 1);
    assert_int_equal(counts.page_used, 3);
    /* One open sequence takes every page; the other can have none, and the first keeps its own. */
    assert_ok(kv_cache_open(cache, root, ids, 20, &a));
    assert_ok(kv_cache_reserve(cache, a, TOKENS_MAX));
    assert_ok(kv_cache_check(cache));
    assert_ok(kv_cache_open(cache, root, ids, 20, &b));
    assert_int_equal(kv_sequence_matched(b), 0); /* the kept one had to go */
    assert_int_equal(kv_cache_reserve(cache, b, 1), STATUS_LIMIT);
    assert_int_equal(kv_cache_reserve(cache, a, TOKENS_MAX + 1), STATUS_LIMIT);
    assert_ok(kv_cache_check(cache));
    kv_cache_drop(cache, &a);
    assert_ok(kv_cache_reserve(cache, b, TOKENS_MAX));
    kv_cache_keep(cache, &b); /* nothing computed: nothing kept */
    kv_cache_counts(cache, &counts);
    assert_int_equal(counts.page_free, 6);
    kv_cache_destroy(&cache);
    fake_backend_ops.destroy(&backend);
}

static void bad_sizes_are_refused(void **state)
{
    (void)state;
    struct backend *backend = NULL;
    struct kv_cache *cache = cache_create(6, &backend), *other = NULL;
    const uint8_t root[KV_CACHE_ROOT_BYTES] = {1};
    uint32_t ids[TOKENS_MAX + 1] = {0};
    struct kv_sequence *open[OPEN_MAX + 1] = {NULL};
    assert_int_equal(kv_cache_open(cache, root, ids, 0, &open[0]), STATUS_INVALID);
    assert_int_equal(kv_cache_open(cache, root, ids, TOKENS_MAX + 1, &open[0]), STATUS_INVALID);
    for (int i = 0; i < OPEN_MAX; i++)
        assert_ok(kv_cache_open(cache, root, ids, 1, &open[i]));
    assert_int_equal(kv_cache_open(cache, root, ids, 1, &open[OPEN_MAX]), STATUS_LIMIT);
    const struct kv_cache_config small = {&fake_backend_ops, backend, 5 * 512, TOKENS_MAX, 1};
    assert_int_equal(kv_cache_create(&small, &other), STATUS_LIMIT);
    assert_null(other);
    kv_cache_destroy(&cache); /* with open sequences */
    fake_backend_ops.destroy(&backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_operations_equal_the_plain_cache),
        cmocka_unit_test(matches_end_at_any_token_and_stay_within_a_root),
        cmocka_unit_test(prefixes_are_replaced_and_running_sequences_stay),
        cmocka_unit_test(bad_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
