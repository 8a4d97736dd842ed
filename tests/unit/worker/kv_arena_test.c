/* The memory of a tier alone: page by page against a list of what was taken, every page full of bytes that are its own. */
#include "common/hash.h"
#include "tests/unit/worker/fake_backend.h"
#include "tests/unit/worker/unit.h"
#include "worker/engine/kv/kv_arena.h"

enum { PAGES_MAX = 1024 };

struct taken { uint32_t page, group, owner; };

struct store {                       /* an arena and what is taken from it */
    struct kv_arena arena;
    struct taken taken[PAGES_MAX];
    uint32_t count, next_owner;
    uint64_t rng, moves;
};

static void store_create(struct store *store, uint64_t global_bytes, uint64_t local_bytes, uint64_t bytes, uint64_t seed)
{
    const struct backend_config config = {.rows_max = 1, .threads = 1};
    memset(store, 0, sizeof *store);
    store->rng = test_seed(seed);
    store->arena.ops = &fake_backend_ops;
    store->arena.page_bytes[0] = global_bytes;
    store->arena.page_bytes[1] = local_bytes;
    assert_ok(fake_backend_ops.create(NULL, &config, &store->arena.backend));
    assert_ok(kv_arena_create(&store->arena, bytes));
}

static void store_destroy(struct store *store)
{
    struct backend *backend = store->arena.backend;
    kv_arena_destroy(&store->arena);
    kv_arena_destroy(&store->arena);
    fake_backend_ops.destroy(&backend);
}

/* ---- contents ---- */

static void write_page(struct store *store, const struct taken *taken)
{
    uint64_t *words = kv_arena_address(&store->arena, taken->page);
    for (uint64_t i = 0; i < store->arena.page_bytes[taken->group] / 8; i++)
        words[i] = hash_mix(taken->owner, i);
}

static void verify_page(const struct store *store, const struct taken *taken)
{
    const uint64_t *words = kv_arena_address(&store->arena, taken->page);
    assert_int_equal(kv_arena_group(&store->arena, taken->page), taken->group);
    assert_int_equal(store->arena.owners[taken->page - 1], taken->owner);
    for (uint64_t i = 0; i < store->arena.page_bytes[taken->group] / 8; i++)
        if (words[i] != hash_mix(taken->owner, i))
            fail_msg("page %u of group %u does not hold what was written", taken->page, taken->group);
}

static void verify(const struct store *store)
{
    uint64_t used[BACKEND_GROUPS_MAX] = {0};
    assert_ok(kv_arena_check(&store->arena));
    for (uint32_t t = 0; t < store->count; t++) {
        verify_page(store, &store->taken[t]);
        used[store->taken[t].group]++;
    }
    for (uint32_t g = 0; g < BACKEND_GROUPS_MAX; g++)
        assert_int_equal(store->arena.used[g], used[g]);
}

static void move(void *user, uint32_t group, uint32_t from, uint32_t to, uint32_t owner)
{
    struct store *store = user;
    uint32_t t = 0;
    while (t < store->count && store->taken[t].page != from)
        t++;
    assert_true(t < store->count && store->taken[t].group == group && store->taken[t].owner == owner);
    memcpy(kv_arena_address(&store->arena, to), kv_arena_address(&store->arena, from), store->arena.page_bytes[group]);
    store->taken[t].page = to;
    store->moves++;
}

static uint32_t fewest_pages(const struct kv_arena *arena, uint32_t group)
{
    uint32_t fewest = UINT32_MAX;
    for (uint32_t e = 0; e < arena->extent_count; e++)
        if (arena->extents[e].group == group && arena->extents[e].used < fewest)
            fewest = arena->extents[e].used;
    return fewest;
}

static bool take(struct store *store, uint32_t group)
{
    const uint32_t want[BACKEND_GROUPS_MAX] = {group == 0, group == 1}, owner = ++store->next_owner;
    const bool fits = kv_arena_fits(&store->arena, want, NULL);
    uint32_t page = kv_arena_take(&store->arena, group, owner);
    const uint64_t moves = store->moves + fewest_pages(&store->arena, 1 - group);
    if (page == 0 && kv_arena_compact(&store->arena, group, move, store)) {
        assert_int_equal(store->moves, moves); /* no more than must be */
        page = kv_arena_take(&store->arena, group, owner);
    }
    assert_int_equal(page != 0, fits); /* exactly what was said to fit is to be had */
    if (page == 0)
        return false;
    assert_true(store->count < PAGES_MAX);
    store->taken[store->count] = (struct taken){.page = page, .group = group, .owner = owner};
    write_page(store, &store->taken[store->count++]);
    return true;
}

static void give(struct store *store, uint32_t t)
{
    verify_page(store, &store->taken[t]);
    kv_arena_give(&store->arena, store->taken[t].page);
    store->taken[t] = store->taken[--store->count];
}

/* ---- cases ---- */

static void extents_suit_both_sizes(void **state)
{
    (void)state;
    uint64_t rng = test_seed(1);
    for (int round = 0; round < 2000; round++) {
        const uint64_t bytes[2] = {64 * (1 + rng_below(&rng, 400)), 64 * (uint64_t)rng_below(&rng, 400)};
        const struct kv_arena_layout layout = kv_arena_layout(bytes);
        const uint64_t large = bytes[0] > bytes[1] ? bytes[0] : bytes[1], small = bytes[0] + bytes[1] - large;
        assert_int_equal(layout.extent_bytes % large, 0);
        assert_true(layout.extent_bytes / large <= 16);
        uint64_t filled = layout.extent_bytes;
        for (int g = 0; g < 2; g++) {
            assert_int_equal(layout.slots[g], bytes[g] > 0 ? layout.extent_bytes / bytes[g] : 0);
            assert_true(layout.slots[g] <= layout.slots_max);
            if (bytes[g] > 0 && layout.slots[g] * bytes[g] < filled)
                filled = layout.slots[g] * bytes[g];
        }
        assert_int_equal(layout.filled_bytes, filled);
        for (uint64_t k = 1; small > 0 && k < layout.extent_bytes / large; k++) /* no fewer pages would have done */
            assert_true(k * large % small * 16 > k * large);
    }
}

static void pages_keep_their_bytes(void **state)
{
    (void)state;
    static struct store store;
    static const uint64_t sizes[][2] = {{512, 768}, {768, 512}, {64, 640}, {1024, 192}, {320, 320}};
    for (uint64_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        store_create(&store, sizes[s][0], sizes[s][1], 40000, 10 + s);
        for (int operation = 0; operation < 6000; operation++) {
            const uint32_t favoured = (uint32_t)operation / 500 % 2; /* now one group wants more, now the other */
            if (rng_below(&store.rng, 100) < 55)
                (void)take(&store, rng_below(&store.rng, 4) > 0 ? favoured : 1 - favoured);
            else if (store.count > 0)
                give(&store, rng_below(&store.rng, store.count));
            if (operation % 50 == 0)
                verify(&store);
        }
        assert_true(store.moves > 0 || store.arena.layout.slots_max == 1);
        while (store.count > 0)
            give(&store, store.count - 1);
        verify(&store);
        assert_int_equal(store.arena.extent_free, store.arena.extent_count);
        store_destroy(&store);
    }
}

/* One group has everything and gives back some of it, anywhere: the other gets all that this leaves. */
static void neither_size_starves(void **state)
{
    (void)state;
    static struct store store;
    for (uint32_t round = 0; round < 60; round++) {
        const uint32_t first = round % 2, other = 1 - first;
        store_create(&store, 512, 768, 1536 * 40, 100 + round);
        while (take(&store, first))
            ;
        assert_int_equal(store.count, 40 * store.arena.layout.slots[first]);
        for (uint32_t n = rng_below(&store.rng, store.count); n > 0; n--)
            give(&store, rng_below(&store.rng, store.count));
        const uint32_t slots = store.arena.layout.slots[first], left = store.count;
        uint32_t got = 0;
        while (take(&store, other))
            got++;
        assert_int_equal(got, (40 - (left + slots - 1) / slots) * store.arena.layout.slots[other]);
        verify(&store);
        store_destroy(&store);
    }
}

static void demands_within_the_room_fit(void **state)
{
    (void)state;
    uint64_t rng = test_seed(3);
    for (int round = 0; round < 3000; round++) {
        const uint64_t bytes[2] = {64 * (1 + rng_below(&rng, 50)), 64 * (1 + (uint64_t)rng_below(&rng, 50))};
        const struct kv_arena_layout layout = kv_arena_layout(bytes);
        const uint64_t extents = 1 + rng_below(&rng, 100);
        const uint64_t held[2] = {rng_below(&rng, (uint32_t)extents * layout.slots[0]), rng_below(&rng, 50)};
        const uint64_t room = kv_arena_room(&layout, extents, held), local = rng_below(&rng, (uint32_t)(room / bytes[1]) + 1);
        const uint64_t pages[2] = {held[0] + (room - local * bytes[1]) / bytes[0], held[1] + local};
        assert_true(room == 0 || kv_arena_extents(&layout, pages) <= extents);
    }
}

static void an_arena_may_be_empty_or_have_one_size(void **state)
{
    (void)state;
    static struct store store;
    store_create(&store, 512, 768, 1535, 4);
    assert_int_equal(store.arena.extent_count, 0);
    assert_false(take(&store, 0));
    assert_false(take(&store, 1));
    store_destroy(&store);
    store_create(&store, 0, 768, 7680, 5);
    for (int n = 0; n < 10; n++)
        assert_true(take(&store, 1));
    assert_false(take(&store, 1));
    verify(&store);
    while (store.count > 0)
        give(&store, rng_below(&store.rng, store.count));
    store_destroy(&store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(extents_suit_both_sizes),
        cmocka_unit_test(pages_keep_their_bytes),
        cmocka_unit_test(neither_size_starves),
        cmocka_unit_test(demands_within_the_room_fit),
        cmocka_unit_test(an_arena_may_be_empty_or_have_one_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
