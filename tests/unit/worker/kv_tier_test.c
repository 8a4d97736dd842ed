/* Two tiers: pages that go to the host and come back, preemption, and the two page sizes sharing one memory. */
#include "tests/unit/worker/kv_world.h"
#include "worker/engine/kv/kv_state.h"

static const struct world_shape small = {.global = true,
                                         .local = true,
                                         .window = 128,
                                         .rewind = 64,
                                         .snapshots = 0,
                                         .context = 512,
                                         .chunk = 64,
                                         .open_max = 4,
                                         .host_bytes = 1 << 17,
                                         .late = 5};

static void talk(struct world_request *request, uint32_t tokens, uint64_t seed)
{
    *request = (struct world_request){0};
    world_add_message(request, tokens, 1u << 30, &seed);
}

static struct kv_cache_counts counts_of(const struct world *world)
{
    struct kv_cache_counts counts;
    kv_cache_counts(world->cache, &counts);
    return counts;
}

static void what_went_to_the_host_comes_back(void **state)
{
    (void)state;
    struct world world;
    struct world_request talks[6];
    world_create(&world, &small); /* the device holds one at full length */
    for (int t = 0; t < 6; t++) {
        talk(&talks[t], 400, 10 + (uint64_t)t);
        assert_int_equal(world_say(&world, &talks[t]), 0);
        world_check(&world);
    }
    assert_true(counts_of(&world).demoted > 0);
    for (int t = 0; t < 6; t++)
        assert_int_equal(world_say(&world, &talks[t]), 399); /* verified page by page */
    const struct kv_cache_counts counts = counts_of(&world);
    assert_true(counts.promoted > 0);
    assert_int_equal(counts.evicted_leaves + counts.evicted_rewinds, 0);
    world_destroy(&world);
}

static void a_preempted_sequence_loses_nothing(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b;
    struct world_shape shape = small;
    shape.host_bytes = 1 << 15;
    world_create(&world, &shape);
    talk(&a, 450, 1);
    talk(&b, 450, 2);
    assert_ok(world_open(&world, &a));
    assert_ok(world_compute(&world, &a, 300, 64));
    kv_cache_suspend(world.cache, a.sequence);
    assert_false(kv_sequence_ready(a.sequence));
    world_check(&world);
    assert_int_equal(world_say(&world, &b), 0); /* the whole device, and what is kept competes for the host */
    assert_int_equal(kv_cache_resume(world.cache, a.sequence), STATUS_OK);
    assert_int_equal(kv_sequence_tokens(a.sequence), 300);
    world_settle(&world, a.sequence);
    world_verify(&world, &a);
    assert_ok(world_compute(&world, &a, 450, 64));
    world_verify(&world, &a);
    world_keep(&world, &a);
    world_destroy(&world);
}

static void without_a_host_it_starts_from_what_is_left(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b;
    struct world_shape shape = small;
    shape.host_bytes = 0;
    world_create(&world, &shape);
    talk(&a, 450, 3);
    talk(&b, 450, 4);
    assert_ok(world_open(&world, &a));
    assert_ok(world_compute(&world, &a, 300, 64));
    kv_cache_suspend(world.cache, a.sequence);
    assert_ok(kv_cache_resume(world.cache, a.sequence)); /* nobody wanted the room */
    assert_int_equal(kv_sequence_tokens(a.sequence), 300);
    kv_cache_suspend(world.cache, a.sequence);
    assert_int_equal(world_say(&world, &b), 0);
    assert_ok(kv_cache_resume(world.cache, a.sequence));
    assert_int_equal(kv_sequence_tokens(a.sequence), 0);
    assert_ok(world_compute(&world, &a, 450, 64));
    world_verify(&world, &a);
    world_keep(&world, &a);
    world_destroy(&world);
}

static void a_sequence_waits_for_its_pages_and_shares_them(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b, c;
    struct world_shape shape = small;
    shape.device_bytes = 24000;
    shape.late = 50;
    world_create(&world, &shape);
    talk(&a, 200, 5);
    assert_int_equal(world_say(&world, &a), 0);
    for (uint64_t t = 0; t < 3; t++) {
        talk(&b, 500, 20 + t);
        assert_int_equal(world_say(&world, &b), 0);
    }
    while (kv_cache_poll(world.cache))
        ;
    b = c = a;
    assert_ok(world_open(&world, &b));
    assert_false(kv_sequence_ready(b.sequence)); /* its pages are on the host */
    assert_ok(world_open(&world, &c));
    world_check(&world);
    kv_cache_drop(world.cache, &b.sequence); /* while they are coming */
    world_check(&world);
    world_settle(&world, c.sequence);
    world_verify(&world, &c);
    world_keep(&world, &c);
    world_destroy(&world);
}

/* A demotion that is called off and taken up again goes on with the older copy: the parent is away before its child. */
static void no_child_stays_below_a_parent_that_is_away(void **state)
{
    (void)state;
    struct world world;
    struct world_request a, b;
    struct world_shape shape = small;
    shape.late = 0;
    world_create(&world, &shape);
    talk(&a, 130, 30);
    talk(&b, 440, 31);
    assert_ok(world_open(&world, &a));
    assert_ok(world_compute(&world, &a, 64, 64));
    kv_cache_suspend(world.cache, a.sequence);
    assert_ok(kv_cache_resume(world.cache, a.sequence)); /* nobody has asked whether the copy has landed */
    assert_ok(world_compute(&world, &a, 130, 64));
    assert_ok(world_open(&world, &b));
    assert_ok(world_compute(&world, &b, 384, 64));
    fake_backend.late_polls_max = 1 << 20;
    kv_cache_suspend(world.cache, a.sequence);
    fake_backend.late_polls_max = 0;
    assert_true(kv_cache_poll(world.cache)); /* lands what was copied first, no more */
    assert_ok(world_compute(&world, &b, 440, 64));
    assert_int_equal(kv_cache_resume(world.cache, a.sequence), STATUS_AGAIN); /* b has the parent's room */
    world_check(&world);
    world_keep(&world, &b);
    assert_ok(kv_cache_resume(world.cache, a.sequence));
    assert_int_equal(kv_sequence_tokens(a.sequence), 130);
    world_settle(&world, a.sequence);
    world_verify(&world, &a);
    world_keep(&world, &a);
    world_destroy(&world);
}

/* Demands that sum to no more than the room can all be met, whatever lies around. */
static void room_keeps_its_word(void **state)
{
    (void)state;
    struct world world;
    struct world_shape shape = small;
    static struct world_request requests[4];
    uint64_t rng = test_seed(77);
    shape.device_bytes = 24000;
    world_create(&world, &shape);
    uint32_t opened = 0;
    for (int round = 0; round < 300; round++) {
        const uint64_t room = kv_cache_room(world.cache);
        uint64_t taken = 0;
        int count = 0;
        for (; count < 4; count++) {
            const uint32_t tokens = 20 + rng_below(&rng, 490);
            talk(&requests[count], tokens, rng_below(&rng, 8));
            if (taken + kv_cache_need(world.cache, NULL, tokens) > room)
                break;
            taken += kv_cache_need(world.cache, NULL, tokens);
        }
        for (int r = 0; r < count; r++, opened++) {
            assert_ok(world_open(&world, &requests[r]));
            world_settle(&world, requests[r].sequence);
        }
        for (uint32_t to = 30; to < 512 + 30; to += 30)
            for (int r = 0; r < count; r++)
                assert_ok(world_compute(&world, &requests[r], to < requests[r].total ? to : requests[r].total, 30));
        for (int r = 0; r < count; r++)
            world_keep(&world, &requests[r]);
        world_check(&world);
    }
    assert_true(opened > 300);
    assert_true(counts_of(&world).moved > 0);
    world_destroy(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_went_to_the_host_comes_back),
        cmocka_unit_test(a_preempted_sequence_loses_nothing),
        cmocka_unit_test(without_a_host_it_starts_from_what_is_left),
        cmocka_unit_test(a_sequence_waits_for_its_pages_and_shares_them),
        cmocka_unit_test(no_child_stays_below_a_parent_that_is_away),
        cmocka_unit_test(room_keeps_its_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
