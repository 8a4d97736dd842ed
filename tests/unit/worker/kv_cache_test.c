/* What is promised about matches, sharing, resume points and what they cost, one promise at a time. */
#include "tests/unit/worker/kv_world.h"
#include "worker/engine/kv/kv_state.h"

static const struct world_shape roomy = {.global = true,
                                         .local = true,
                                         .window = 128,
                                         .rewind = 128,
                                         .snapshots = 2,
                                         .context = 1024,
                                         .chunk = 64,
                                         .open_max = 4,
                                         .device_bytes = 1 << 18};

static void talk(struct world_request *request, uint32_t messages, uint32_t tokens, uint64_t seed)
{
    *request = (struct world_request){0};
    for (uint32_t m = 0; m < messages; m++)
        world_add_message(request, tokens, 1u << 30, &seed);
}

static uint32_t matched(struct world *world, const struct world_request *request, uint32_t count)
{
    struct kv_prompt prompt = world_prompt(request);
    prompt.count = count;
    prompt.end_count = 0;
    return kv_cache_match(world->cache, &prompt);
}

static void a_match_ends_at_any_token(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b;
    world_create(&world, &roomy);
    talk(&a, 1, 200, 1);
    assert_int_equal(world_say(&world, &a), 0);
    for (uint32_t same = 72; same < 200; same++) { /* 200 - R is the least within R */
        b = a;
        b.ids[same] ^= 1;
        b.total = b.count = 201;
        assert_int_equal(matched(&world, &b, 201), same);
    }
    assert_int_equal(matched(&world, &a, 200), 199); /* the last token is computed anew */
    assert_int_equal(matched(&world, &a, 129), 128);
    assert_int_equal(matched(&world, &a, 1), 0);
    b = a; /* two leaves in one block, apart at token 195 */
    b.ids[195] ^= 1;
    world.tokens_computed = 0;
    assert_int_equal(world_say(&world, &b), 195);
    assert_int_equal(world.tokens_computed, 5);
    assert_int_equal(matched(&world, &a, 200), 199);
    assert_int_equal(matched(&world, &b, 200), 199);
    struct kv_cache_counts counts;
    kv_cache_counts(world.cache, &counts);
    assert_true(counts.leaves == 2 && counts.nodes == 5);
    assert_int_equal(counts.pages[0][0], 5);
    world_destroy(&world);
}

static void equal_blocks_are_shared_while_both_compute(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b;
    world_create(&world, &roomy);
    talk(&a, 1, 300, 2);
    b = a;
    b.ids[299] ^= 1;
    assert_ok(world_open(&world, &a));
    assert_ok(world_open(&world, &b)); /* nothing to share yet */
    assert_ok(world_compute(&world, &a, 192, 64));
    assert_ok(world_compute(&world, &b, 192, 50));
    world_check(&world);
    for (uint32_t block = 0; block < 3; block++)
        assert_ptr_equal(kv_sequence_pages(a.sequence, 0)[block], kv_sequence_pages(b.sequence, 0)[block]);
    assert_ok(world_compute(&world, &a, 300, 64));
    assert_ok(world_compute(&world, &b, 300, 64));
    world_verify(&world, &a);
    world_verify(&world, &b);
    struct world_request c = a;
    assert_ok(world_open(&world, &c)); /* while they are open */
    assert_int_equal(kv_sequence_matched(c.sequence), 256);
    kv_cache_drop(world.cache, &c.sequence);
    kv_cache_drop(world.cache, &a.sequence);
    world_keep(&world, &b);
    struct kv_cache_counts counts;
    kv_cache_counts(world.cache, &counts);
    assert_int_equal(counts.pages[0][0], 5);
    world_destroy(&world);
}

static void a_leaf_that_is_a_beginning_is_absorbed(void **state)
{
    (void)state;
    struct world world;
    struct world_request a;
    struct kv_cache_counts counts;
    world_create(&world, &roomy);
    talk(&a, 6, 50, 3);
    for (uint32_t m = 1; m <= 6; m++) {
        a.end_count = m;
        a.count = a.total = a.ends[m - 1];
        assert_int_equal(world_say(&world, &a), m == 1 ? 0 : a.ends[m - 2]);
        world_check(&world);
        kv_cache_counts(world.cache, &counts);
        assert_int_equal(counts.leaves, 1);
        assert_int_equal(counts.nodes, (a.count + 63) / 64);
    }
    world_destroy(&world);
}

static void roots_share_nothing(void **state)
{
    (void)state;
    struct world world;
    struct world_request a;
    world_create(&world, &roomy);
    talk(&a, 1, 200, 4);
    assert_int_equal(world_say(&world, &a), 0);
    for (int byte = 0; byte < KV_CACHE_ROOT_BYTES; byte++) { /* another tenant, another digest: one bit */
        a.root[byte] ^= 0x10;
        assert_int_equal(matched(&world, &a, 200), 0);
        a.root[byte] ^= 0x10;
    }
    a.root[31] = 1;
    assert_int_equal(world_say(&world, &a), 0);
    assert_int_equal(world_say(&world, &a), 199);
    struct kv_cache_counts counts;
    kv_cache_counts(world.cache, &counts);
    assert_int_equal(counts.pages[0][0], 8);
    world_destroy(&world);
}

static void colliding_hashes_are_caught(void **state)
{
    (void)state;
    struct world world;
    struct world_shape shape = roomy;
    static struct world_request talks[20];
    shape.hash_mask = UINT64_C(1) << 63; /* two hashes for everything */
    world_create(&world, &shape);
    for (uint32_t t = 0; t < 20; t++) {
        talk(&talks[t], 1, 150, 5);
        talks[t].ids[3 * t] ^= 1; /* its first block is its own */
        const uint32_t same = world_say(&world, &talks[t]); /* compared with the search by brute force */
        assert_true(t == 0 ? same == 0 : same == 3 * (t - 1) || same == 3 * t || same == 0);
        world_check(&world);
    }
    for (uint32_t t = 0; t < 20; t++) /* all of them live, and none is taken for another */
        assert_int_equal(world_say(&world, &talks[t]), 149);
    world_destroy(&world);
}

static void inside_r_is_exact_and_cheap(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b;
    world_create(&world, &roomy);
    talk(&a, 40, 25, 6); /* 1000 tokens */
    assert_int_equal(world_say(&world, &a), 0);
    for (uint32_t back = 1; back <= roomy.rewind; back++)
        assert_int_equal(matched(&world, &a, 1000 - back + 1), 1000 - back);
    b = a;
    b.ids[900] ^= 1;
    world.tokens_computed = 0;
    assert_int_equal(world_say(&world, &b), 900);
    assert_int_equal(world.tokens_computed, 100);
    world_check(&world);
    world_destroy(&world);
}

static void further_back_goes_on_from_the_nearest_point(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b;
    world_create(&world, &roomy);
    talk(&a, 40, 25, 7);
    assert_int_equal(world_say(&world, &a), 0);
    struct kv_cache_counts counts;
    kv_cache_counts(world.cache, &counts);
    assert_int_equal(counts.snapshots, 2); /* 625, the furthest that is still less than 512 away R tokens on, and 50 */
    b = a;
    b.ids[700] ^= 1;
    const uint32_t expected = world_match(&world, &b, 999);
    assert_int_equal(expected, 640); /* the whole page that holds 625 */
    world.tokens_computed = 0;
    assert_int_equal(world_say(&world, &b), expected);
    assert_int_equal(world.tokens_computed, 1000 - expected);
    world_destroy(&world);

    struct world_shape shape = roomy; /* without snapshots the first message is left */
    shape.snapshots = 0;
    world_create(&world, &shape);
    talk(&a, 40, 25, 7);
    a.ends[0] = 25;
    assert_int_equal(world_say(&world, &a), 0);
    const uint32_t first = world_match(&world, &b, 999);
    assert_int_equal(first, 64); /* the whole page that holds its end */
    assert_int_equal(world_say(&world, &b), first);
    world_destroy(&world);
}

static void local_pages_are_bounded(void **state)
{
    (void)state;
    struct world world;
    struct world_request a;
    struct world_shape shape = roomy;
    shape.snapshots = 0;
    world_create(&world, &shape);
    talk(&a, 1, 1024, 8);
    a.end_count = 0;
    assert_ok(world_open(&world, &a));
    uint64_t most = 0;
    for (uint32_t to = 8; to <= 1024; to += 8) {
        assert_ok(world_compute(&world, &a, to, 8));
        const uint64_t pages = world_local_pages(&world);
        most = pages > most ? pages : most;
        assert_true(pages <= (128 + 128 + 64) / 64 + 1);
    }
    assert_true(most >= (128 + 128) / 64);
    world_keep(&world, &a);
    world_destroy(&world);
}

static void a_tombstone_heals(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b;
    struct world_shape shape = roomy;
    struct kv_cache_counts before, after;
    shape.snapshots = 0;
    world_create(&world, &shape);
    talk(&a, 40, 25, 9);
    assert_int_equal(world_say(&world, &a), 0);
    b = a; /* a prefix: back in the middle, where the window is gone */
    b.count = b.total = 512; /* (ended inside a block, that block would be a leaf of its own: its local page is no whole one) */
    b.end_count = 20;
    kv_cache_counts(world.cache, &before);
    assert_true(before.tombstones > 5);
    const uint32_t start = world_say(&world, &b);
    assert_true(start < 100);
    kv_cache_counts(world.cache, &after);
    world_check(&world);
    assert_true(after.tombstones < before.tombstones);
    assert_int_equal(after.pages[0][0], before.pages[0][0]); /* no page of group 0 twice */
    assert_int_equal(after.leaves, 2);
    b.ids[450] ^= 1;
    assert_int_equal(world_say(&world, &b), 450); /* and R is there again */
    world_destroy(&world);
}

static void a_conversation_takes_what_the_formula_says(void **state)
{
    (void)state;
    struct world world;
    struct world_request a;
    struct world_shape shape = roomy;
    world_create(&world, &shape);
    talk(&a, 40, 25, 10);
    assert_int_equal(world_say(&world, &a), 0);
    struct kv_cache_counts counts;
    kv_cache_counts(world.cache, &counts);
    uint64_t bytes[2];
    const uint64_t all = kv_cache_formula(&world.cache->config, 1000, a.ends, a.end_count, bytes);
    assert_int_equal(bytes[0], counts.pages[0][0] * FAKE_BACKEND_PAGE_GLOBAL);
    assert_int_equal(bytes[1], counts.pages[0][1] * FAKE_BACKEND_PAGE_LOCAL);
    assert_int_equal(all, counts.tiers[0].cached);
    world_destroy(&world);
}

static void bad_input_is_refused(void **state)
{
    (void)state;
    struct world world;
    struct world_request a;
    struct kv_sequence *sequence = NULL;
    world_create(&world, &roomy);
    talk(&a, 2, 20, 11);
    struct kv_prompt prompt = world_prompt(&a);
    prompt.count = 0;
    assert_int_equal(kv_cache_open(world.cache, &prompt, &sequence), STATUS_INVALID);
    prompt.count = 1025;
    assert_int_equal(kv_cache_open(world.cache, &prompt, &sequence), STATUS_INVALID);
    prompt = world_prompt(&a);
    a.ends[1] = a.ends[0];
    assert_int_equal(kv_cache_open(world.cache, &prompt, &sequence), STATUS_INVALID);
    a.ends[1] = 41;
    assert_int_equal(kv_cache_open(world.cache, &prompt, &sequence), STATUS_INVALID);
    a.ends[1] = 40;
    struct kv_sequence *open[4];
    for (int i = 0; i < 4; i++)
        assert_ok(kv_cache_open(world.cache, &prompt, &open[i]));
    assert_int_equal(kv_cache_open(world.cache, &prompt, &sequence), STATUS_LIMIT);
    assert_int_equal(kv_cache_reserve(world.cache, open[0], 65), STATUS_INVALID);
    assert_int_equal(kv_cache_reserve(world.cache, open[0], 1025), STATUS_LIMIT);
    assert_null(sequence);
    for (int i = 0; i < 4; i++)
        kv_cache_drop(world.cache, &open[i]);
    struct kv_cache_config config = world.cache->config;
    struct kv_cache *cache = NULL;
    config.snapshots_max = 9;
    assert_int_equal(kv_cache_create(&config, &cache), STATUS_INVALID);
    config = world.cache->config;
    config.groups[1].window = 0;
    assert_int_equal(kv_cache_create(&config, &cache), STATUS_INVALID);
    config = world.cache->config;
    config.groups[0].page_bytes = config.groups[1].page_bytes = 0;
    assert_int_equal(kv_cache_create(&config, &cache), STATUS_INVALID);
    config = world.cache->config;
    config.device_bytes = 4096;
    assert_int_equal(kv_cache_create(&config, &cache), STATUS_LIMIT);
    world_destroy(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_match_ends_at_any_token),
        cmocka_unit_test(equal_blocks_are_shared_while_both_compute),
        cmocka_unit_test(a_leaf_that_is_a_beginning_is_absorbed),
        cmocka_unit_test(roots_share_nothing),
        cmocka_unit_test(colliding_hashes_are_caught),
        cmocka_unit_test(inside_r_is_exact_and_cheap),
        cmocka_unit_test(further_back_goes_on_from_the_nearest_point),
        cmocka_unit_test(local_pages_are_bounded),
        cmocka_unit_test(a_tombstone_heals),
        cmocka_unit_test(a_conversation_takes_what_the_formula_says),
        cmocka_unit_test(bad_input_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
